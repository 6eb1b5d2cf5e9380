//! Secondary indexes that follow a document bucket, and sleep for buckets that went idle.
pub mod bucket;
pub mod durable;
pub mod event;
pub mod index;
pub mod objstore;
pub mod pause;
pub mod projector;
pub mod shard;
pub mod source;
pub mod thread;
pub mod timestamp;
