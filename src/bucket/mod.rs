//! The product's loop: a bucket is made, followed, scanned, put to sleep, woken up and closed.
//!
//! This is the room that a host talks to. A [`DataDir`] is a folder that belongs to this process; it holds
//! buckets. A [`Bucket`] owns its shards, runs the data path while something is [ingested](Bucket::ingest), and
//! [pauses](Bucket::pause) into an archive. [`DataDir::resume`] wakes a bucket up again.
//!
//! ```text
//! <data folder>/dormouse.lock          held while the process uses the folder
//! <data folder>/buckets/<name>/        bucket.meta, shard-0000/, shard-0001/, …
//! <data folder>/staging/               what is being made or removed, gone when the folder is opened again;
//!                                      and what resumes have downloaded, until they come to their end
//! ```
//!
//! What is done has a file each: `ingest` and `following`, which take changes in by one `intake`; `indexes` and
//! `scanning`; `pausing`, with what it carries (`carriage`) and how it ends (`settling`); `resuming` and `recovery`.
//! Under them lie `folder` and `bucket`, what is on disk about a bucket (`meta`), who works on it (`tasks`), what a
//! close ends (`calls`) and what it waits for (`leftovers`).
//!
//! Invariants:
//! * A bucket's folder appears and disappears by one rename: it is whole or not there.
//! * `bucket.meta` is written whole. It is the authority on the bucket's state and its indexes; shards are made
//!   to agree with it when they are opened.
//! * Once a bucket is `paused`, no write is accepted until it is resumed.
//! * The state in `bucket.meta` is written before the step that it speaks of, and changes by one function
//!   ([`BucketState::after`]). What a crash interrupted is led to a state that lasts when the bucket is opened.
//! * A pause, a resume and a change of indexes have the bucket's only entry in the list of tasks while they work.
//! * Threads that do not end in time stay the bucket's: it knows them until they were joined.
//! * A close ends the calls that are under way, and lets no other begin.
//! * Local data is removed only once no scan is open and none can begin.
//! * A data folder belongs to the process that opened it. In a fork of that process every call that has a result is
//!   refused, those on its shards too, and what is dropped there leaves locks, files and threads alone.

#[expect(clippy::module_inception, reason = "the room's main type lives in the file of its name")]
mod bucket;
mod calls;
mod carriage;
mod error;
mod folder;
mod following;
mod indexes;
mod ingest;
mod intake;
mod intake_error;
mod leftovers;
mod meta;
mod pause_error;
mod pausing;
mod recovery;
mod resume_error;
mod resuming;
mod scanning;
mod settling;
mod tasks;

pub use crate::pause::BucketState;
pub use bucket::{Bucket, BucketConfig, BucketStatus, IndexStatus};
pub use error::{BucketError, CloseError, Closed, Forked, IndexError, StepError};
pub use folder::{DataDir, DataDirError};
pub use following::{FollowCause, FollowEnd, FollowOptions, FollowProgress, FollowReport};
pub use ingest::{IngestOptions, IngestProgress, IngestReport};
pub use intake_error::IntakeError;
pub use meta::{
    BucketMeta, BucketName, BucketNameError, BucketSpec, IndexEntry, IndexState, MetaError, PauseAttempt,
    SourceKind,
};
pub use pause_error::PauseError;
pub use pausing::{PauseOptions, PauseReport};
pub use resume_error::ResumeError;
pub use resuming::{ResumeOptions, ResumeReport};
pub use tasks::{CancelError, TaskBusy, TaskId, TaskKind, TaskList, TaskState, TaskStatus, WaitError};
