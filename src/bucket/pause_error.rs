//! Why a bucket was not put to sleep.

use crate::durable::{PathError, RoomError};
use crate::objstore::{KeyError, ObjectKey};
use crate::pause::{IdError, ManifestError, PauseId, RecordError, UploadError};
use crate::shard::{CommitError, LockError};
use crate::thread::{Failure, FailureKind, Stopped};

use super::error::{Closed, Forked, StepError};
use super::meta::BucketName;
use super::tasks::TaskBusy;

/// Why a bucket was not paused, or not all of it. Its shards are unlocked, and open for changes unless the bucket is
/// paused or in doubt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PauseError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The bucket was closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// It sleeps already.
    #[error("cannot pause bucket {bucket}: it is paused in {archive} already; resume it first")]
    Paused {
        /// The bucket.
        bucket: BucketName,
        /// Where it sleeps.
        archive: String,
    },
    /// Another pause is under way, or an index is being made.
    #[error("cannot pause bucket {bucket}: {busy}")]
    Busy {
        /// The bucket.
        bucket: BucketName,
        /// What is under way.
        busy: TaskBusy,
    },
    /// Nobody knows whether it sleeps already, and this call could not find out.
    #[error(
        "bucket {bucket} may be paused as {pause} in {archive} or not, and takes no changes until a pause or a resume \
         with that archive finds out{}",
        because(cause.as_ref())
    )]
    InDoubt {
        /// The bucket.
        bucket: BucketName,
        /// The pause that may hold it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
        /// Why it could not be found out; none where another archive was given.
        cause: Option<ManifestError>,
    },
    /// The archive takes no objects.
    #[error("cannot pause bucket {bucket}, which stays online: a test of the archive failed: {error}")]
    Probe {
        /// The bucket.
        bucket: BucketName,
        /// What the test said.
        error: ManifestError,
    },
    /// The data folder is full.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    NoRoom {
        /// The bucket.
        bucket: BucketName,
        /// How much is missing.
        error: RoomError,
    },
    /// An index is unfinished: there would be nothing to fill it from after a resume.
    #[error(
        "cannot pause bucket {bucket}: index `{index}` is unfinished; let an ingest finish it, or drop it"
    )]
    Unfinished {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: String,
    },
    /// It has nothing to archive.
    #[error("cannot pause bucket {bucket}: it has no index, so there is nothing to archive; drop it instead")]
    Empty {
        /// The bucket.
        bucket: BucketName,
    },
    /// The shards.
    #[error("cannot pause bucket {bucket}: {error}")]
    Lock {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: LockError,
    },
    /// A shard's files could not be made durable and pinned.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Pin {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: CommitError,
    },
    /// A step could not be recorded before it was made.
    #[error("cannot pause bucket {bucket}: {error}")]
    Step {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: StepError,
    },
    /// A file's name cannot be archived.
    #[error("cannot pause bucket {bucket}: {error}")]
    Name {
        /// The bucket.
        bucket: BucketName,
        /// What is wrong with it.
        error: KeyError,
    },
    /// No identity could be made for the pause.
    #[error("cannot pause bucket {bucket}: {error}")]
    Id {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: IdError,
    },
    /// The files.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Upload {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: UploadError,
    },
    /// What it uploaded is taken away by prunes.
    #[error(
        "cannot pause bucket {bucket}, which stays online: a prune is about to delete the object {object}, or has; \
         pause it again, which uploads what is missing"
    )]
    Condemned {
        /// The bucket.
        bucket: BucketName,
        /// One of the objects.
        object: ObjectKey,
    },
    /// The records of prunes, which tell what a pause may rely on.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Records {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: RecordError,
    },
    /// The archive has pauses of another bucket of the same name.
    #[error(
        "cannot pause bucket {bucket} in {archive}, which stays online: the pauses there are those of another bucket of \
         this name, with the id {theirs:016x} instead of {ours:016x}; pause into another archive, or below another \
         prefix"
    )]
    Foreign {
        /// The bucket.
        bucket: BucketName,
        /// URL of the archive.
        archive: String,
        /// The id of this bucket.
        ours: u64,
        /// That of the one in the archive.
        theirs: u64,
    },
    /// The archive's manifests.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Manifest {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: ManifestError,
    },
    /// The caller's limit ended.
    #[error("cannot pause bucket {bucket}, which stays online: {why}")]
    Stopped {
        /// The bucket.
        bucket: BucketName,
        /// What ended it.
        why: Stopped,
    },
    /// It is archived and not known to be.
    #[error(
        "bucket {bucket} was archived as pause {pause}, which could not be recorded: {error}; it takes no changes \
         until it is paused or resumed with the same archive once more"
    )]
    Record {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        pause: PauseId,
        /// Why.
        error: StepError,
    },
    /// It is paused, and its local data was kept.
    #[error(
        "bucket {bucket} is paused as {pause}, and its local data is kept: {cause}; mend that and pause it with `evict` \
         (--evict) again"
    )]
    Evict {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        pause: PauseId,
        /// Why.
        cause: String,
    },
    /// It is paused, and not all of its local data could be removed.
    #[error(
        "bucket {bucket} is paused as {pause}, and not all of its local data could be removed: {error}; the rest goes \
         when the bucket is looked at again"
    )]
    EvictLater {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        pause: PauseId,
        /// Why.
        error: PathError,
    },
}

impl Failure for PauseError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Busy { .. } | Self::Condemned { .. } => FailureKind::Temporary,
            Self::Probe { error, .. }
            | Self::Manifest { error, .. }
            | Self::InDoubt { cause: Some(error), .. } => error.kind(),
            Self::Lock { error, .. } => error.kind(),
            Self::Pin { error, .. } => error.kind(),
            Self::Upload { error, .. } => error.kind(),
            Self::Records { error, .. } => error.kind(),
            _ => FailureKind::Lasting,
        }
    }
}

fn because(cause: Option<&ManifestError>) -> String {
    cause.map_or_else(String::new, |cause| format!("; this time {cause}"))
}
