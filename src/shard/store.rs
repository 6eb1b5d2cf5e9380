//! What a storage engine must do for a shard.
//!
//! A shard decides *when* (one writer at a time, commits, locks, fences); a [`ShardStore`] decides *how* bytes
//! get to the disk. A store starts no thread and does nothing on its own: between two calls no file of it
//! changes, which is what makes a locked shard a frozen one.
//!
//! Calls come in two groups. `apply`, `add_instance`, `remove_instance`, `sweep`, `cut` and `snapshot` come one at a
//! time, under the shard's gate. `flush`, `compact` and `files` come outside of it, at most one of each at a time.

use std::fmt;
use std::ops::Bound;
use std::path::PathBuf;

use crate::event::VbId;
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

    /// Replaces, change by change, the entries of a document in an instance. Gives back roughly how many bytes
    /// that added to what is uncommitted. After an error the store must not be used again before it is reopened:
    /// a part of the changes may have been made.
    fn apply(&self, changes: &mut dyn Iterator<Item = Change<'_>>) -> Result<u64, StoreFault>;

    /// Makes an instance known. It lasts from the next `cut` and `flush` on.
    fn add_instance(&self, inst: InstId) -> Result<(), StoreFault>;

    /// Forgets an instance, under the same rule. Its entries and positions go with `sweep`.
    fn remove_instance(&self, inst: InstId) -> Result<(), StoreFault>;

    /// Removes a bounded number of the entries and positions that removed instances left, also those of an
    /// earlier life of the store. Gives back the bytes as `apply` does, or `None` where nothing is left.
    fn sweep(&self) -> Result<Option<u64>, StoreFault>;

    /// Ends the recovery point that is being filled: what was applied before and the `moved` positions become
    /// durable together, by the next successful `flush`.
    fn cut(&self, moved: &[(InstId, VbId, Position)]);

    /// Makes everything durable that was cut. After an error it may be called again.
    fn flush(&self) -> Result<(), StoreFault>;

    /// Does one piece of background work; `false` when there is none. Never called on a locked shard.
    fn compact(&self) -> Result<bool, StoreFault>;

    /// A snapshot of everything that was applied.
    fn snapshot(&self) -> Box<dyn StoreSnapshot>;

    /// The files of the newest recovery point. They stay as they are until the next `flush` or `compact`.
    fn files(&self) -> Result<Vec<ShardFile>, StoreFault>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}
