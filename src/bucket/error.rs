//! What can go wrong with an open bucket, one enum an operation.

use std::path::PathBuf;

use crate::durable::PathError;
use crate::index::{IndexDefinition, IndexName, QueryError, ScanError};
use crate::pause::Refusal;
use crate::shard::{CommitError, InstanceError, OpenError};
use crate::thread::{Failure, FailureKind};

use super::folder::DataDirError;
use super::meta::{BucketName, MetaError};
use super::tasks::TaskBusy;

/// The call was made in a fork of the process that opened the data folder. It did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot use the data folder {} in process {here}: process {opened_by} opened it, and this one is a fork of it that has \
     none of its threads; fork first, and open data folders afterwards", data_dir.display()
)]
pub struct Forked {
    /// The data folder.
    pub data_dir: PathBuf,
    /// The process that it belongs to.
    pub opened_by: u32,
    /// The process that called.
    pub here: u32,
}

/// The call was made on a bucket that was closed, or is being closed. It did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use bucket {bucket}: it was closed; open it again")]
pub struct Closed {
    /// The bucket.
    pub bucket: BucketName,
}

/// Why a bucket was not opened, made or dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// There is none.
    #[error("there is no bucket {bucket} in {}: {}", data_dir.display(), there_are(there))]
    Missing {
        /// The name that was asked for.
        bucket: BucketName,
        /// Where it was looked for.
        data_dir: PathBuf,
        /// The buckets that are there.
        there: Vec<BucketName>,
    },
    /// There is one already.
    #[error("cannot create bucket {bucket}: it is there already; drop it first, or take another name")]
    Exists {
        /// Its name.
        bucket: BucketName,
    },
    /// Its numbers are out of range.
    #[error("cannot create bucket {bucket}: {problem}")]
    Spec {
        /// Its name.
        bucket: BucketName,
        /// What is wrong.
        problem: String,
    },
    /// Its local data was removed after a pause.
    #[error("bucket {bucket} sleeps in {archive} and its local data was removed: resume it first")]
    Evicted {
        /// Its name.
        bucket: BucketName,
        /// Where its data is.
        archive: String,
    },
    /// Something is being done with it.
    #[error("cannot {doing} bucket {bucket}: {busy}")]
    Busy {
        /// What was asked for.
        doing: &'static str,
        /// Its name.
        bucket: BucketName,
        /// What is under way.
        busy: TaskBusy,
    },
    /// It changed while it was opened.
    #[error("cannot open bucket {bucket}: it was paused or resumed at the same time; open it again")]
    Changed {
        /// Its name.
        bucket: BucketName,
    },
    /// Its state allows no such thing.
    #[error("cannot recover bucket {bucket}: {refusal}")]
    State {
        /// Its name.
        bucket: BucketName,
        /// Why.
        refusal: Refusal,
    },
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The data folder.
    #[error(transparent)]
    DataDir(DataDirError),
    /// A file or folder.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Its metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A shard.
    #[error(transparent)]
    Shard(OpenError),
    /// A shard's instances could not be brought in line with the metadata.
    #[error(transparent)]
    Instance(#[from] InstanceError),
}

fn there_are(buckets: &[BucketName]) -> String {
    if buckets.is_empty() {
        return "it has none yet; `ingest` makes one".to_owned();
    }
    let names: Vec<&str> = buckets.iter().map(BucketName::as_str).collect();
    format!("it has {}", names.join(", "))
}

/// Why an index was not made, dropped or scanned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// There is none.
    #[error("bucket {bucket} has no index `{index}`: {}", indexes_are(there))]
    Missing {
        /// The bucket.
        bucket: BucketName,
        /// The name that was asked for.
        index: IndexName,
        /// The indexes that are there.
        there: Vec<IndexName>,
    },
    /// There is another one of the name.
    #[error("cannot create index `{wanted}`: there is one with another definition, `{there}`; drop it first")]
    Differs {
        /// What was asked for.
        wanted: IndexDefinition,
        /// What is there.
        there: IndexDefinition,
    },
    /// The bucket has data already.
    #[error(
        "cannot create index `{wanted}`: bucket {bucket} has data already; ingest all its documents again with \
         `rebuild` (--rebuild)"
    )]
    NeedsRebuild {
        /// The bucket.
        bucket: BucketName,
        /// What was asked for.
        wanted: IndexDefinition,
    },
    /// It does not hold everything yet.
    #[error(
        "cannot scan index `{index}`: it is unfinished, {documents} changes came since it was created over {before} \
         earlier ones; ingest all documents of bucket {bucket} with `rebuild` (--rebuild)"
    )]
    Unfinished {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: IndexName,
        /// Changes that it has seen.
        documents: u64,
        /// Changes that came before it was created, those of documents that changed again among them.
        before: u64,
    },
    /// A second stream fills it.
    #[error(
        "cannot scan index `{index}`: it is being built, {covered} of the {changes} changes that came so far are in it; \
         follow bucket {bucket} until it is finished"
    )]
    Building {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: IndexName,
        /// Changes that it has seen.
        covered: u64,
        /// Changes that the bucket has seen.
        changes: u64,
    },
    /// Something is being ingested.
    #[error("cannot {doing} in bucket {bucket}: an ingest is under way; wait for it")]
    Busy {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
    },
    /// The bucket is being paused, or its indexes change.
    #[error("cannot {doing} in bucket {bucket}: {busy}")]
    Task {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// What is under way.
        busy: TaskBusy,
    },
    /// The bucket may sleep.
    #[error("cannot {doing} in bucket {bucket}: {refusal}")]
    InDoubt {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// The pause, its archive, and the way out.
        refusal: Refusal,
    },
    /// The bucket sleeps.
    #[error("cannot {doing} in bucket {bucket}: it is paused in {archive}; resume it first")]
    Paused {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// Where it sleeps.
        archive: String,
    },
    /// The index cannot be asked for this.
    #[error("cannot scan index `{index}`: {error}")]
    Query {
        /// The index.
        index: IndexName,
        /// What is wrong.
        error: QueryError,
    },
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The bucket was closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The bucket's metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A shard's instances.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// A shard's recovery point.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The scan itself.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

impl Failure for IndexError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Busy { .. } | Self::Task { .. } | Self::Building { .. } => FailureKind::Temporary,
            Self::Instance(error) => error.kind(),
            Self::Commit(error) => error.kind(),
            Self::Scan(error) => error.kind(),
            _ => FailureKind::Lasting,
        }
    }
}

fn indexes_are(indexes: &[IndexName]) -> String {
    if indexes.is_empty() {
        return "it has none; create one (`ingest --index`)".to_owned();
    }
    let names: Vec<&str> = indexes.iter().map(IndexName::as_str).collect();
    format!("it has {}", names.join(", "))
}

/// Why a bucket's state did not change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// It cannot follow on the one that it is in.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be recorded.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// Why a bucket did not close in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Threads did not end in time.
    #[error("cannot close the bucket: these threads are still running: {}; close again to wait longer", threads.join(", "))]
    StillRunning {
        /// Their names.
        threads: Vec<String>,
    },
    /// Calls of the host did not end in time.
    #[error("cannot close the bucket: these calls are still under way: {}; close again to wait longer", calls.join(", "))]
    Busy {
        /// What they do.
        calls: Vec<&'static str>,
    },
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The last recovery point could not be made.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Failure for CloseError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::StillRunning { .. } | Self::Busy { .. } => FailureKind::Temporary,
            Self::Forked(_) => FailureKind::Lasting,
            Self::Commit(error) => error.kind(),
        }
    }
}
