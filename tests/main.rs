//! The tests of the public API, one module for each room or part of a room, in one binary so that it links
//! once.
#![expect(clippy::unwrap_used, reason = "in a test's helpers a panic is the failure")]

mod archive;
mod bucket;
mod collate;
mod data_path;
mod definition;
mod evaluate;
mod manifest;
mod model;
mod objstore;
mod path;
mod range;
mod stress;
mod support;
mod timestamp;
