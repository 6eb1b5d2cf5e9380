//! Why changes did not come in, or not all of them.

use crate::pause::Refusal;
use crate::projector::{EndReason, FeedError};
use crate::shard::CommitError;
use crate::source::ReplayError;
use crate::thread::{Failure, FailureKind, Panicked, Stopped};

use super::error::{Closed, Forked};
use super::following::FollowCause;
use super::meta::{BucketName, MetaError, SourceKind};

/// Why an ingest or following did not come to its end. Unless a commit failed, what was applied is kept and durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntakeError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The bucket was closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The bucket sleeps.
    #[error("cannot {doing} bucket {bucket}: it is paused in {archive}; resume it first")]
    Paused {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// Where it sleeps.
        archive: String,
    },
    /// It may sleep.
    #[error("cannot {doing} bucket {bucket}: {refusal}")]
    InDoubt {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// The pause, its archive, and the way out.
        refusal: Refusal,
    },
    /// It was put to sleep meanwhile.
    #[error("cannot {doing} bucket {bucket} any further: it was put to sleep by {by}; resume it first")]
    PutToSleep {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        by: String,
    },
    /// Changes come in already.
    #[error("cannot {doing} bucket {bucket}: another ingest is running; wait for it to end")]
    Busy {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
    },
    /// The bucket was made for another source.
    #[error(
        "cannot {doing} bucket {bucket}: it was made for {kind} as its source, which is fixed; take another bucket"
    )]
    SourceKind {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// What it was made for.
        kind: SourceKind,
    },
    /// There is no index that could be kept up to date.
    #[error("cannot ingest into bucket {bucket}: it has no index; create one first")]
    NoIndex {
        /// The bucket.
        bucket: BucketName,
    },
    /// An index waits for all documents, and these are not said to be all.
    #[error(
        "cannot ingest into bucket {bucket}: index `{index}` is unfinished; ingest all documents with `rebuild` \
         (--rebuild)"
    )]
    Unfinished {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: String,
    },
    /// An input failed.
    #[error("{error}; the {kept} changes before it are kept")]
    Input {
        /// What failed.
        error: ReplayError,
        /// Changes that are kept.
        kept: u64,
    },
    /// The cluster.
    #[error("cannot follow into bucket {bucket}: {cause}")]
    Cluster {
        /// The bucket.
        bucket: BucketName,
        /// What is wrong with it.
        cause: FollowCause,
    },
    /// The data path failed.
    #[error("cannot {doing} bucket {bucket}: {reason}")]
    DataPath {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// Why it ended.
        reason: EndReason,
    },
    /// The data path did not start.
    #[error("cannot {doing} bucket {bucket}: {error}")]
    Feed {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: FeedError,
    },
    /// A thread panicked.
    #[error("cannot {doing} bucket {bucket}: {panicked}")]
    Panicked {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// What it said.
        panicked: Panicked,
    },
    /// The caller's limit ended.
    #[error(
        "cannot {doing} bucket {bucket} any further: {why}; the {kept} changes that were applied are kept"
    )]
    Stopped {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// What ended it.
        why: Stopped,
        /// Changes that are kept.
        kept: u64,
    },
    /// Threads could not be started.
    #[error(
        "cannot {doing} bucket {bucket}: no thread could be started: {source}; raise the limit of threads"
    )]
    Spawn {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// What the system said.
        source: std::io::Error,
    },
    /// Threads hang, in a disk, in names or in the host's code.
    #[error(
        "cannot {doing} bucket {bucket} any further: it has ended, but these threads are still running: {}; close the \
         bucket to wait for them", threads.join(", ")
    )]
    StillRunning {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// Their names.
        threads: Vec<String>,
    },
    /// What was applied is not durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The bucket's metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl Failure for IntakeError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Busy { .. } => FailureKind::Temporary,
            Self::Cluster { cause, .. } => cause.kind(),
            Self::Commit(error) => error.kind(),
            _ => FailureKind::Lasting,
        }
    }
}
