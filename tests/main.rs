//! The behaviour of the library, seen from outside.
#![expect(clippy::unwrap_used, reason = "what a test's helpers cannot do fails the test")]

mod support;

mod archive;
mod manifest;
mod objstore;
