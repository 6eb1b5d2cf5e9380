//! The product's loop: a bucket is made, followed, scanned, put to sleep, woken up and closed.
//!
//! This is the room that a host talks to. A [`DataDir`] is a folder that belongs to this process; it holds
//! buckets. A [`Bucket`] owns its shards, runs the data path while something is [ingested](Bucket::ingest), and
//! [pauses](Bucket::pause) into an archive. [`DataDir::resume`] wakes a bucket up again.
//!
//! ```text
//! <data folder>/dormouse.lock          held while the process uses the folder
//! <data folder>/buckets/<name>/        bucket.meta, shard-0000/, shard-0001/, …
//! <data folder>/staging/               what is being made or removed; emptied when the folder is opened
//! ```
//!
//! Invariants:
//! * A bucket's folder appears and disappears by one rename: it is whole or not there.
//! * `bucket.meta` is written whole. It is the authority on the bucket's state and its indexes; shards are made
//!   to agree with it when they are opened.
//! * Once a bucket is `paused`, no write is accepted until it is resumed.

#[expect(clippy::module_inception, reason = "the room's main type lives in the file of its name")]
mod bucket;
mod folder;
mod following;
mod ingest;
mod meta;
mod pausing;
mod resuming;
mod scanning;

pub use bucket::{Bucket, BucketConfig, BucketError, BucketStatus, CloseError, IndexError, IndexStatus};
pub use folder::{DataDir, DataDirError};
pub use following::{FollowEnd, FollowError, FollowOptions, FollowProgress, FollowReport};
pub use ingest::{IngestError, IngestOptions, IngestProgress, IngestReport};
pub use meta::{
    BucketMeta, BucketName, BucketNameError, BucketSpec, BucketState, IndexEntry, IndexState, SourceKind,
};
pub use pausing::{PauseError, PauseReport};
pub use resuming::{ResumeError, ResumeReport};
