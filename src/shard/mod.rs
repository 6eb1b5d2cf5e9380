//! Shards: the directories that hold index entries, and the unit that is locked and archived.
//!
//! A bucket's vbuckets are spread over its shards (`vb mod shards`), and each shard holds the entries of *all*
//! index instances for its vbuckets, with one position per (instance, vbucket). The rooms within:
//!
//! * [`batch`]: the unit of writing.
//! * [`store`]: what a storage engine must do; `lsm` and `cow` do it.
//! * [`Shard`]: one writer at a time, fences, commits, snapshots; and recovery points, kept and gone back to.
//! * [`lock`]: [`ShardLock`], which freezes a shard until it is dropped, and [`lock_all`].
//! * [`ShardSet`]: all shards of a bucket, with the two threads that flush and compact for them.
//!
//! Invariants:
//! * Entries and positions become durable together. After a crash a shard is at its last recovery point: each
//!   change at or below a position is counted once, each change above it comes again from the source.
//! * Nothing on disk changes while a [`ShardLock`] lives. Reads go on.
//! * Lock order: a commit's turn, then the compaction's turn, then the gate, then the state. The two turns and
//!   the gate may be held over file access, the state never is.

pub mod batch;
mod codec;
mod cow;
mod error;
mod gate;
mod kept;
pub mod lock;
mod lsm;
mod memdb;
mod recovery;
mod set;
#[expect(clippy::module_inception, reason = "the room's main type lives in the file of its name")]
mod shard;
mod snapshot;
pub mod store;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::VbId;

pub use error::{
    ApplyError, CommitError, InstanceError, Later, OpenError, ReadError, Refused, RollBackError,
};
pub(crate) use lock::lock_sealed;
pub use lock::{LockError, ShardLock, lock_all};
pub use recovery::MergeHold;
pub use set::{ShardSet, ShardSetConfig};
pub use shard::{InstanceStart, Shard, ShardSpec, ShardStatus};
pub use snapshot::{ShardScan, ShardSnapshot};

/// Number of a shard within its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

/// Number of an index instance within its bucket. Numbers start at one and are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for InstId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ShardId {
    /// The shard of a vbucket in a bucket of `shards` shards.
    pub fn of_vb(vb: VbId, shards: u16) -> Self {
        Self(vb.0 % shards.max(1))
    }

    /// Name of the shard's folder within its bucket's.
    pub fn folder(self) -> String {
        format!("shard-{:04}", self.0)
    }
}

/// The storage engine of a bucket's shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A log-structured merge tree.
    Lsm,
    /// Everything in memory, with recovery points on disk.
    Memdb,
    /// A copy-on-write B-tree in one file.
    Cow,
}

impl StoreKind {
    /// Whether most of a shard's files stay as they are while changes come in, so that it pays to copy them before
    /// the shard is locked.
    pub fn is_copied_first(self) -> bool {
        match self {
            Self::Lsm | Self::Memdb => true,
            Self::Cow => false,
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lsm => "lsm",
            Self::Memdb => "memdb",
            Self::Cow => "cow",
        })
    }
}
