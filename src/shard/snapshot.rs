//! Reading: snapshots of a shard, and the scans over them.
//!
//! A scan holds the files that it reads. Its end may delete some that no version names any more, so it happens
//! under the compaction's turn, which a lock waits for, or it is left to the thread that compacts: nothing on
//! disk changes while a lock is held, and no drop waits for a compaction.

use super::InstId;
use super::shard::{Access, Shard};
use super::store::{Entries, EntryBounds, StoreFault, StoreSnapshot};

/// A state of a shard that later writes do not touch.
pub struct ShardSnapshot {
    pub(super) store: Box<dyn StoreSnapshot>,
    pub(super) shard: Shard,
}

impl ShardSnapshot {
    /// The entries of an instance within `bounds`, in key order.
    pub fn scan(&self, inst: InstId, bounds: &EntryBounds) -> ShardScan {
        ShardScan { entries: Some(self.store.scan(inst, bounds)), shard: self.shard.clone() }
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
        let Some(entries) = self.entries.take() else { return };
        if let Some(_turn) = self.shard.0.compact_turn.try_lock()
            && !matches!(self.shard.0.state.lock().access, Access::Locked(_))
        {
            drop(entries);
            return;
        }
        self.shard.0.state.lock().retired.push(entries);
        self.shard.wake_maintenance();
    }
}
