//! The tests of the public API, one module for each room or part of a room, in one binary so that it links
//! once.
#![expect(clippy::unwrap_used, clippy::panic, reason = "in a test's helpers a panic is the failure")]

mod archive;
mod bucket;
mod cli;
mod cli_pause;
mod cli_process;
mod cli_refusals;
mod collate;
mod data_path;
mod definition;
mod evaluate;
mod event;
mod feed;
mod hazards;
mod house;
mod lsm;
mod manifest;
mod memdb;
mod model;
mod objstore;
mod path;
mod projector;
mod range;
mod shard;
mod shard_crash;
mod shard_lock;
mod shard_model;
mod shard_recovery;
mod source;
mod streams;
mod stress;
mod support;
mod thread;
mod timestamp;
