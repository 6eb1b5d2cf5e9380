//! Why a bucket was not woken up.

use crate::durable::{PathError, RoomError};
use crate::pause::{BucketPart, CheckError, DownloadError, ManifestError, Membership, PauseId, Refusal};
use crate::shard::LockError;
use crate::thread::{Failure, FailureKind, Stopped};

use super::error::{BucketError, Forked};
use super::meta::{BucketName, MetaError};
use super::tasks::TaskBusy;

/// Why a bucket was not resumed. Local state is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The archive has no pause of the bucket.
    #[error("cannot resume bucket {bucket}: {store} has no pause of it{}", instead(members))]
    NoPause {
        /// The bucket, and which member of it.
        bucket: BucketPart,
        /// URL of the archive.
        store: String,
        /// Those that there are pauses of.
        members: Vec<Membership>,
    },
    /// What is in the data folder is another bucket of the same name.
    #[error(
        "cannot resume bucket {bucket} from pause {pause} in {archive}: that is one of another bucket of this name, with \
         the id {theirs:016x} instead of {ours:016x}; give the archive that this one was paused in, or drop it first"
    )]
    Foreign {
        /// The bucket.
        bucket: BucketName,
        /// The pause that is another bucket's.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
        /// The id of the bucket in the data folder.
        ours: u64,
        /// That of the one in the archive.
        theirs: u64,
    },
    /// What is in the data folder is another member.
    #[error(
        "cannot resume bucket {bucket} as member {wanted}: in this data folder it is member {there}; resume that one, or \
         drop it first"
    )]
    OtherMember {
        /// The bucket.
        bucket: BucketName,
        /// The member that was asked for.
        wanted: Membership,
        /// The member that it is.
        there: Membership,
    },
    /// It is awake here.
    #[error(
        "cannot resume bucket {bucket}: it is online in this data folder; drop it first, or resume elsewhere"
    )]
    Online {
        /// The bucket.
        bucket: BucketName,
    },
    /// It sleeps here as another pause.
    #[error(
        "cannot resume bucket {bucket} from pause {wanted}: in this data folder it is paused as {there}; resume that \
         one, or drop the bucket first"
    )]
    OtherPause {
        /// The bucket.
        bucket: BucketName,
        /// The pause that was asked for.
        wanted: PauseId,
        /// The pause that it is in.
        there: PauseId,
    },
    /// Something else is being done with it.
    #[error("cannot resume bucket {bucket}: {busy}")]
    Busy {
        /// The bucket.
        bucket: BucketName,
        /// What is under way.
        busy: TaskBusy,
    },
    /// Its state allows no resume.
    #[error("cannot resume bucket {bucket}: {refusal}")]
    State {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        refusal: Refusal,
    },
    /// It was in doubt and turned out to be awake.
    #[error(
        "bucket {bucket} need not be resumed: pause {pause} never came to be in {archive}; the bucket is online again \
         and takes changes"
    )]
    NotPaused {
        /// The bucket.
        bucket: BucketName,
        /// The pause that was in doubt.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
    },
    /// The disk is full.
    #[error("cannot resume bucket {bucket}: {error}")]
    NoRoom {
        /// The bucket.
        bucket: BucketName,
        /// How much is missing.
        error: RoomError,
    },
    /// The restored shards.
    #[error("cannot resume bucket {bucket}: {error}")]
    Lock {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: LockError,
    },
    /// The manifest describes no bucket of this program.
    #[error("cannot resume bucket {bucket} from pause {pause}: its manifest is not understood: {cause}")]
    Definitions {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        pause: PauseId,
        /// What is wrong.
        cause: String,
    },
    /// The archive's manifests.
    #[error("cannot resume bucket {bucket}: {error}")]
    Manifest {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: ManifestError,
    },
    /// The files.
    #[error("cannot resume bucket {bucket}: {error}")]
    Download {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: DownloadError,
    },
    /// The files that are here.
    #[error("cannot resume bucket {bucket}: {error}")]
    Check {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: CheckError,
    },
    /// What was restored does not open.
    #[error("cannot resume bucket {bucket}: {error}")]
    Open {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: Box<BucketError>,
    },
    /// The caller's limit ended.
    #[error("cannot resume bucket {bucket}: {why}")]
    Stopped {
        /// The bucket.
        bucket: BucketName,
        /// What ended it.
        why: Stopped,
    },
    /// A file or folder.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The bucket's metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl Failure for ResumeError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Busy { .. } => FailureKind::Temporary,
            Self::Lock { error, .. } => error.kind(),
            Self::Manifest { error, .. } => error.kind(),
            Self::Download { error, .. } => error.kind(),
            Self::Check { error, .. } => error.kind(),
            _ => FailureKind::Lasting,
        }
    }
}

fn instead(members: &[Membership]) -> String {
    if members.is_empty() {
        return "; is the archive the right one?".to_owned();
    }
    let members: Vec<String> = members.iter().map(ToString::to_string).collect();
    format!(", but of the members {} of it; say which one to resume", members.join(", "))
}
