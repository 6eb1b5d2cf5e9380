//! What can go wrong with a shard, one enum an operation.

use std::path::PathBuf;

use crate::durable::{PathError, UnsealError};
use crate::event::{Generation, Seqno, VbId};
use crate::thread::{Failure, FailureKind, Fin, Stopped};

use super::batch::WriteBatch;
use super::store::{PointId, StoreFault};
use super::{InstId, ShardId};

/// The call was made in a fork of the process that opened the shard. It did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot use shard {shard} in process {here}: process {opened_by} opened it, and this one is a fork of it that has none \
     of its threads; fork first, and open data folders afterwards"
)]
pub struct Forked {
    /// The shard.
    pub shard: ShardId,
    /// The process that it belongs to.
    pub opened_by: u32,
    /// The process that called.
    pub here: u32,
}

/// Why a shard was not made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file or folder.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The metadata is damaged or of a newer version.
    #[error(
        "cannot open shard {shard}: {}: {why}; bring the bucket back from an archive with `resume`, after a `drop` or into \
         another data folder",
        path.display()
    )]
    Spec {
        /// The shard.
        shard: ShardId,
        /// Its metadata file.
        path: PathBuf,
        /// What is wrong.
        why: UnsealError,
    },
    /// The folder holds another shard than the one asked for.
    #[error(
        "cannot open shard {shard}: {} belongs to another bucket or shard; put the right folder back", path.display()
    )]
    Foreign {
        /// The shard.
        shard: ShardId,
        /// Its metadata file.
        path: PathBuf,
    },
    /// An open bucket, a scan or a lock still holds the shard.
    #[error("cannot use {}: it is open already; close the bucket and end its scans first", folder.display())]
    InUse {
        /// The shard's folder.
        folder: PathBuf,
    },
    /// The engine refused.
    #[error(
        "cannot open shard {shard}: {fault}; if a file is damaged, bring the bucket back with `resume`, after a `drop` or \
         into another data folder"
    )]
    Store {
        /// The shard.
        shard: ShardId,
        /// What the engine said.
        fault: StoreFault,
    },
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug)]
pub enum Refused {
    /// It may be applied later: the batch comes back with a signal that is given when it is worth another try.
    Later {
        /// The batch.
        batch: Box<WriteBatch>,
        /// What it waits for.
        why: Later,
        /// Given when the wait is over.
        ready: Fin,
    },
    /// It will never be applied.
    Never(ApplyError),
}

/// What a batch that came back waits for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Later {
    /// The shard is locked.
    #[error("it is locked by {owner}")]
    Locked {
        /// Who holds the lock.
        owner: String,
    },
    /// Writing to disk does not keep up: twice the bytes of a recovery point came since the last one, or three times as
    /// many are in memory alone.
    #[error("it waits for a recovery point")]
    Full,
}

/// Why a batch can never be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The batch is of an older life of its streams.
    #[error(
        "cannot write to shard {shard}: vbucket {vb} is at generation {current}, the batch is of {found}; \
         install the generation before its streams are asked for"
    )]
    Stale {
        /// The shard.
        shard: ShardId,
        /// First vbucket that was started again since.
        vb: VbId,
        /// Its generation.
        current: Generation,
        /// The batch's.
        found: Generation,
    },
    /// The batch starts behind the shard's position: changes in between would be lost.
    #[error(
        "cannot write to shard {shard}: instance {inst} has vbucket {vb} up to {stored}, the batch starts after \
         {from}; start the stream again from the stored position"
    )]
    Gap {
        /// The shard.
        shard: ShardId,
        /// The instance.
        inst: InstId,
        /// The vbucket.
        vb: VbId,
        /// The shard's position.
        stored: Seqno,
        /// Where the batch starts.
        from: Seqno,
    },
    /// The batch names an instance that is not there, or a vbucket of another shard.
    #[error(
        "cannot write to shard {shard}: it has no instance {inst} or no vbucket {vb}; \
         route by the bucket's numbers, and create the instance first"
    )]
    Unknown {
        /// The shard.
        shard: ShardId,
        /// The instance.
        inst: InstId,
        /// The vbucket.
        vb: VbId,
    },
    /// The batch holds an entry that no store takes.
    #[error(
        "cannot write to shard {shard}: the batch has an entry of {found_bytes} bytes, the longest may have {}; leave \
         such keys out",
        super::batch::ENTRY_BYTES_MAX
    )]
    TooLong {
        /// The shard.
        shard: ShardId,
        /// Length of the batch's longest entry.
        found_bytes: usize,
    },
    /// The bucket went to sleep.
    #[error("cannot write to shard {shard}: it was put to sleep by {by}; resume the bucket first")]
    Sealed {
        /// The shard.
        shard: ShardId,
        /// Who sealed it.
        by: String,
    },
    /// The engine failed; what was applied since the last recovery point may come again after a restart.
    #[error("cannot write to shard {shard}: {fault}; mend the cause and open the bucket again")]
    Store {
        /// The shard.
        shard: ShardId,
        /// What the engine said.
        fault: StoreFault,
    },
}

/// Why no recovery point was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The caller's limit ended first. The recovery point may still be made.
    #[error("cannot commit shard {shard}: {why}; commit again")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// What ended the wait.
        why: Stopped,
    },
    /// The shard is locked or sealed.
    #[error("cannot make a recovery point of shard {shard}: it is locked by {owner}; wait until that ends")]
    Locked {
        /// The shard.
        shard: ShardId,
        /// Who holds it.
        owner: String,
    },
    /// The engine failed.
    #[error(
        "cannot commit shard {shard}: {fault}; what is on disk is its last recovery point: mend the cause and open the \
         bucket again"
    )]
    Store {
        /// The shard.
        shard: ShardId,
        /// What the engine said.
        fault: StoreFault,
    },
}

impl Failure for CommitError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Locked { .. } => FailureKind::Temporary,
            Self::Forked(_) | Self::Store { .. } => FailureKind::Lasting,
        }
    }
}

/// Why the instances of a shard stayed as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The shard is locked.
    #[error("cannot {doing} in shard {shard}: it is locked by {owner}; wait until that ends")]
    Locked {
        /// What was asked for.
        doing: &'static str,
        /// The shard.
        shard: ShardId,
        /// Who holds the lock.
        owner: String,
    },
    /// The engine failed.
    #[error("cannot {doing} in shard {shard}: {fault}; mend the cause and open the bucket again")]
    Store {
        /// What was asked for.
        doing: &'static str,
        /// The shard.
        shard: ShardId,
        /// What the engine said.
        fault: StoreFault,
    },
}

impl Failure for InstanceError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Locked { .. } => FailureKind::Temporary,
            Self::Forked(_) | Self::Store { .. } => FailureKind::Lasting,
        }
    }
}

/// Why a shard was not read or checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The caller's limit ended first.
    #[error("cannot read shard {shard}: {why}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// What ended the wait.
        why: Stopped,
    },
    /// The engine failed, or a file is damaged.
    #[error(
        "cannot read shard {shard}: {fault}; if a file is damaged, bring the bucket back with `resume`, after a `drop` or \
         into another data folder"
    )]
    Store {
        /// The shard.
        shard: ShardId,
        /// What the engine said.
        fault: StoreFault,
    },
}

impl Failure for ReadError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Forked(_) | Self::Store { .. } => FailureKind::Lasting,
        }
    }
}

/// Why a shard was not rolled back. It is as it was, but for [`RollBackError::Store`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RollBackError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The shard is locked or sealed.
    #[error("cannot roll back shard {shard}: it is locked by {owner}; wait until that ends")]
    Locked {
        /// The shard.
        shard: ShardId,
        /// Who holds it.
        owner: String,
    },
    /// No such recovery point is kept.
    #[error(
        "cannot roll back shard {shard} to its recovery point {point}: it is not kept; take one of those listed, or zero"
    )]
    NoPoint {
        /// The shard.
        shard: ShardId,
        /// The point that was asked for.
        point: PointId,
    },
    /// The caller's limit ended before the shard was free.
    #[error("cannot roll back shard {shard}: {why}; try again")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// What ended the wait.
        why: Stopped,
    },
    /// The engine failed. The shard takes no writes until it is opened again.
    #[error("cannot roll back shard {shard}: {fault}; mend the cause and open the bucket again")]
    Store {
        /// The shard.
        shard: ShardId,
        /// What the engine said.
        fault: StoreFault,
    },
}

impl Failure for RollBackError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Locked { .. } => FailureKind::Temporary,
            Self::Forked(_) | Self::NoPoint { .. } | Self::Store { .. } => FailureKind::Lasting,
        }
    }
}
