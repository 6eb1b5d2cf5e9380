//! Secondary indexes that follow a document bucket, and sleep for buckets that went idle.
pub mod durable;
pub mod event;
pub mod objstore;
pub mod pause;
pub mod thread;
pub mod timestamp;
