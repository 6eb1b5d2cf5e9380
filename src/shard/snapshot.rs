//! Reading: snapshots of a shard, and the scans over them.
//!
//! Both hold the files that they read. Their end may delete some that no version names any more, so it happens
//! under the compaction's turn, which a lock waits for, or it is left to the thread that compacts: nothing on
//! disk changes while a lock is held, and no drop waits for a compaction. In a fork of the process the files are the
//! other's, and nothing happens.

use super::InstId;
use super::shard::{Access, Shard};
use super::store::{Entries, EntryBounds, StoreFault, StoreSnapshot};

/// A state of a shard that later writes do not touch. One that ends while the shard is locked leaves its files on disk
/// until the unlock.
pub struct ShardSnapshot {
    store: Option<Box<dyn StoreSnapshot>>,
    shard: Shard,
}

impl ShardSnapshot {
    pub(super) fn new(store: Box<dyn StoreSnapshot>, shard: Shard) -> Self {
        Self { store: Some(store), shard }
    }

    /// The entries of an instance within `bounds`, in key order.
    pub fn scan(&self, inst: InstId, bounds: &EntryBounds) -> ShardScan {
        let entries = self.store.as_ref().map(|store| store.scan(inst, bounds));
        ShardScan { entries, shard: self.shard.clone() }
    }
}

impl Drop for ShardSnapshot {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            self.shard.retire(store);
        }
    }
}

/// An open scan. One that ends while the shard is locked leaves its files on disk until the unlock.
pub struct ShardScan {
    entries: Option<Entries>,
    shard: Shard,
}

impl Iterator for ShardScan {
    type Item = Result<Vec<u8>, StoreFault>;

    fn next(&mut self) -> Option<Self::Item> {
        self.entries.as_mut()?.next()
    }
}

impl DoubleEndedIterator for ShardScan {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.entries.as_mut()?.next_back()
    }
}

impl Drop for ShardScan {
    fn drop(&mut self) {
        if let Some(entries) = self.entries.take() {
            self.shard.retire(entries);
        }
    }
}

impl Shard {
    fn retire(&self, reader: impl Send + 'static) {
        if self.refuse_fork().is_err() {
            std::mem::forget(reader);
            return;
        }
        if let Some(_turn) = self.0.compact_turn.try_lock()
            && !matches!(self.0.state.lock().access, Access::Locked(_))
        {
            drop(reader);
            return;
        }
        self.0.state.lock().retired.push(Box::new(reader));
        self.wake_maintenance();
    }
}
