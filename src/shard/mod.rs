//! Shards: the directories that hold index entries, and the unit that is locked and archived.
//!
//! A bucket's vbuckets are spread over its shards (`vb mod shards`), and each shard holds the entries of *all*
//! index instances for its vbuckets, with one position per (instance, vbucket). The rooms within:
//!
//! * [`batch`]: the unit of writing.
//! * [`store`]: what a storage engine must do; `lsm`, `memdb` and `cow` do it.
//! * [`Shard`]: one writer at a time, fences, commits, snapshots; recovery points, kept and gone back to; and merges.
//! * [`lock`]: [`ShardLock`], which freezes a shard until it is dropped, and [`lock_all`].
//! * [`ShardSet`]: all shards of a bucket, with the two threads that flush and compact for them.
//!
//! Invariants:
//! * Entries and positions become durable together. After a crash a shard is at its last recovery point: each
//!   change at or below a position is counted once, each change above it comes again from the source.
//! * Nothing on disk changes while a [`ShardLock`] lives. Reads go on.
//! * Lock order: a commit's turn, then the compaction's turn, then the writer's turn, then the gate, then the state.
//!   The three turns may be held over file access, the gate and the state never are: how far a shard is can be told
//!   while its disk hangs.
//!
//! The stores side by side, as `cargo bench --bench stores` told on a virtual machine with two cores of an Intel Xeon
//! (Linux, rustc 1.95, 2026-11-28; medians of three rounds in turns): a million documents with one key of 24 bytes,
//! then a tenth of them updated and another tenth deleted, with a recovery point every 50,000. Rates are thousands of
//! documents or entries a CPU-second, of all threads together; `fjall` does the same work with its journal.
//!
//! | | load | update | delete | scan | ranges of 100 | disk MiB | peak memory MiB |
//! |---|--:|--:|--:|--:|--:|--:|--:|
//! | `lsm` | 126 | 50 | 54 | 1,600 | 1,340 | 143 | 105 |
//! | `memdb` | 204 | 105 | 160 | 16,200 | 9,280 | 54 | 137 |
//! | `cow` | 73 | 17 | 40 | 4,640 | 4,180 | 291 | 183 |
//! | `fjall` | 92 | 47 | 32 | 1,880 | 1,930 | 215 | 412 |
//!
//! After a twentieth of the documents changed, in eight recovery points, the files that were as before made up 93 %
//! of an `lsm` shard while merges were held and 57 % after the last merge, 95 % of a `memdb` shard both times, and
//! nothing of a `cow` shard, which is one file. A shard of fewer than eight recovery points has no merged tables yet:
//! its first merge replaces everything. To lock and unlock an idle shard of 256 MiB took 0.24, 0.02 and 0.003 ms.

pub mod batch;
mod checksum;
mod codec;
mod cow;
mod engines;
mod error;
mod gate;
mod kept;
pub mod lock;
mod lsm;
mod memdb;
mod merging;
mod recovery;
mod set;
#[expect(clippy::module_inception, reason = "the room's main type lives in the file of its name")]
mod shard;
mod snapshot;
pub mod store;
mod turn;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::VbId;
use crate::text::number_id;

pub(crate) use engines::local_file;
pub use error::{
    ApplyError, CommitError, Forked, InstanceError, Later, OpenError, ReadError, Refused, RollBackError,
};
pub(crate) use lock::lock_sealed;
pub use lock::{LockError, ShardLock, lock_all};
pub use merging::MergeHold;
pub use set::{ShardSet, ShardSetConfig};
pub use shard::{InstanceStart, Joined, Shard, ShardSpec, ShardStatus};
pub use snapshot::{ShardScan, ShardSnapshot};
pub(crate) use turn::take_turn;

number_id! {
    /// Number of a shard within its bucket.
    ShardId(u16)
}

number_id! {
    /// Number of an index instance within its bucket. Numbers start at one and are never used again.
    InstId(u32)
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
