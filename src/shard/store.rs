//! What a storage engine must do for a shard.
//!
//! A shard decides *when* (one writer at a time, commits, locks, fences); a [`ShardStore`] decides *how* bytes
//! get to the disk. A store starts no thread and does nothing on its own: between two calls no file of it
//! changes, which is what makes a locked shard a frozen one.
//!
//! A *recovery point* is what [`ShardStore::cut`] ends and [`ShardStore::flush`] makes durable: after a crash the
//! store is at the newest one. Some are *kept*, to be rolled back to.
//!
//! Calls come in four groups.
//!
//! * In the writer's turn, one at a time: `apply`, `add_instance`, `remove_instance`, `sweep`, `cut`, `snapshot`.
//! * In the commit's turn, one at a time: `flush`, `points`, `forget`, `files`, `pin`, `check`. In the compaction's
//!   turn: `compact`. The two turns may meet, but for `files` and `check`, and either may meet a call in the writer's.
//! * In all three turns, so alone: `load`, `roll_back`.
//! * At any time: `unmerged`, `size`.
//!
//! Snapshots and scans may be read at any time, also beyond a roll-back: they keep the state that they had.

use std::any::Any;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::event::VbId;
use crate::text::number_id;
use crate::thread::{Panicked, Stopped, Until};
use crate::timestamp::Position;

use super::InstId;
use super::batch::Change;

/// An error of a storage engine: what was being done, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {doing}: {cause}")]
pub struct StoreFault {
    /// The verb and its object, such as `read the back index`.
    pub doing: &'static str,
    /// The engine's words.
    pub cause: String,
}

impl StoreFault {
    pub(super) fn new(doing: &'static str, cause: &dyn fmt::Display) -> Self {
        Self { doing, cause: cause.to_string() }
    }

    /// A fault of the file or folder at `path`.
    pub(super) fn at(doing: &'static str, path: &Path, cause: &dyn fmt::Display) -> Self {
        Self { doing, cause: format!("{}: {cause}", path.display()) }
    }
}

/// An immutable file of a recovery point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardFile {
    /// Path relative to the shard's folder, with `/` between its parts.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub length_bytes: u64,
}

number_id! {
    /// Number of a recovery point within its shard. Later ones have higher numbers.
    PointId(u64)
}

/// A recovery point that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// Its number.
    pub id: PointId,
    /// When it was made, in milliseconds since 1970, by the clock of the machine. For people.
    pub made_at_ms: u64,
    /// The instances and positions that it has.
    pub positions: Vec<InstancePositions>,
}

/// Files of a recovery point that stay as they are for as long as this lives, whatever else happens to the shard.
pub struct PinnedFiles {
    files: Vec<ShardFile>,
    hold: Box<dyn Any + Send>,
}

impl PinnedFiles {
    /// `files`, which stay for as long as `hold` lives. Its drop frees memory at most: files are removed by
    /// [`ShardStore::compact`].
    pub(super) fn new(files: Vec<ShardFile>, hold: impl Any + Send) -> Self {
        Self { files, hold: Box::new(hold) }
    }

    /// With one more file, before the others, and with `last`, which is dropped when the files are free.
    pub(super) fn with(mut self, first: ShardFile, last: impl Any + Send) -> Self {
        self.files.insert(0, first);
        Self { files: self.files, hold: Box::new((self.hold, last)) }
    }

    /// The files, which opened as a shard's folder give the shard at the recovery point.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }
}

impl fmt::Debug for PinnedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PinnedFiles").field(&self.files).finish()
    }
}

/// A panic of the engine: nobody knows what it left half done.
impl From<Panicked> for StoreFault {
    fn from(panicked: Panicked) -> Self {
        Self::new("go on with the shard", &panicked)
    }
}

/// Why a store was not found to be whole.
#[derive(Debug)]
pub enum CheckFault {
    /// The caller's limit ended first.
    Stopped(Stopped),
    /// Something is damaged or cannot be read.
    Fault(StoreFault),
}

impl From<Stopped> for CheckFault {
    fn from(why: Stopped) -> Self {
        Self::Stopped(why)
    }
}

impl From<StoreFault> for CheckFault {
    fn from(fault: StoreFault) -> Self {
        Self::Fault(fault)
    }
}

/// What a store takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StoreSize {
    /// Bytes on disk, those of kept recovery points and pinned files included.
    pub disk_bytes: u64,
    /// Bytes in memory, roughly, without caches that shards share.
    pub memory_bytes: u64,
}

/// Entries of one instance in key order, or in reverse from the back. An entry is the encoded key followed by
/// the document id.
pub type Entries = Box<dyn DoubleEndedIterator<Item = Result<Vec<u8>, StoreFault>> + Send>;

/// The low and the high end of a scan, over entries.
pub type EntryBounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// A state of a store that later writes do not touch.
pub trait StoreSnapshot: Send + Sync {
    /// The entries of `inst` within `bounds`; none for an instance that does not exist.
    fn scan(&self, inst: InstId, bounds: &EntryBounds) -> Entries;
}

/// An instance and its position in each vbucket that has one.
pub type InstancePositions = (InstId, Vec<(VbId, Position)>);

/// A storage engine with the entries and positions of many index instances.
pub trait ShardStore: Send + Sync {
    /// All instances with their positions, as of the last recovery point.
    fn load(&self) -> Result<Vec<InstancePositions>, StoreFault>;

    /// Replaces, change by change, the entries of a document in an instance. The changes are in ascending order of
    /// instance and document, each document once. Gives back roughly how many bytes that added to what is
    /// uncommitted. After an error the store must not be used again before it is reopened: a part of the changes
    /// may have been made.
    fn apply(&self, changes: &[Change<'_>]) -> Result<u64, StoreFault>;

    /// Makes an instance known. It lasts from the next `cut` and `flush` on.
    fn add_instance(&self, inst: InstId) -> Result<(), StoreFault>;

    /// Forgets an instance, under the same rule. Its entries and positions go with `sweep`.
    fn remove_instance(&self, inst: InstId) -> Result<(), StoreFault>;

    /// Removes a bounded number of the entries and positions that removed instances left, also those of an
    /// earlier life of the store. Gives back the bytes as `apply` does, or `None` where nothing is left.
    fn sweep(&self) -> Result<Option<u64>, StoreFault>;

    /// Ends the recovery point that is being filled: what was applied before and the `moved` positions become
    /// durable together, by the next successful `flush`. With `kept` that recovery point is kept from then on,
    /// under the number and with the description given. After an error the store must be reopened.
    fn cut(&self, moved: &[(InstId, VbId, Position)], kept: Option<RecoveryPoint>) -> Result<(), StoreFault>;

    /// Makes everything durable that was cut. After an error it may be called again.
    fn flush(&self) -> Result<(), StoreFault>;

    /// The recovery points that are kept, ascending.
    fn points(&self) -> Result<Vec<RecoveryPoint>, StoreFault>;

    /// Keeps a recovery point no longer. One that is not there is fine.
    fn forget(&self, point: PointId) -> Result<(), StoreFault>;

    /// Makes a kept recovery point, or with `None` the empty store, the newest one, durably and in one step.
    /// Afterwards there are exactly the given instances: one that the point does not have is empty and without
    /// positions. Kept points after it are gone; what was applied since is too. Gives back what `load` would.
    /// After an error the store must not be used again before it is reopened. It is then as it was, but that kept
    /// points after `to` may be gone, or it was rolled back; no kept point is of a time that it does not have.
    fn roll_back(
        &self,
        to: Option<PointId>,
        instances: &[InstId],
    ) -> Result<Vec<InstancePositions>, StoreFault>;

    /// Does one piece of background work; `false` when there is none. Never called on a locked shard.
    fn compact(&self) -> Result<bool, StoreFault>;

    /// How many recovery points wait to be merged with what was before them. None in a store in which none adds to the
    /// others.
    fn unmerged(&self) -> usize {
        0
    }

    /// A snapshot of everything that was applied.
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot>, StoreFault>;

    /// The files of the newest recovery point. They stay as they are until the next `flush`, `forget`, `compact`
    /// or `roll_back`. This is quick, whatever the store's size.
    fn files(&self) -> Result<Vec<ShardFile>, StoreFault>;

    /// The same, pinned: they stay as they are for as long as the result lives.
    fn pin(&self) -> Result<PinnedFiles, StoreFault>;

    /// Reads every file of the newest recovery point and compares it with its checksums. The fault names the first
    /// damaged one.
    fn check(&self, until: &Until) -> Result<(), CheckFault>;

    /// What the store takes up now.
    fn size(&self) -> StoreSize;
}
