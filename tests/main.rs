//! The tests of the public API, one module for each room or part of a room, in one binary so that it links
//! once.
#![expect(clippy::unwrap_used, reason = "in a test's helpers a panic is the failure")]

mod archive;
mod bucket;
mod cli;
mod cli_pause;
mod cli_process;
mod cli_refusals;
mod collate;
mod definition;
mod evaluate;
mod house;
mod manifest;
mod objstore;
mod path;
mod range;
mod support;
