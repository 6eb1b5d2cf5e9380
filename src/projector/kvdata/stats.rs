//! Counters of a data path, which anyone may read at any time.

use std::sync::atomic::{AtomicU64, Ordering};

/// What `run_scatter` has seen.
#[derive(Debug, Default)]
pub struct KvStats {
    batches: AtomicU64,
    events: AtomicU64,
    mutations: AtomicU64,
    deletions: AtomicU64,
    expirations: AtomicU64,
    foreign: AtomicU64,
}

/// Counts of one batch, added up before they touch the shared counters.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct BatchCounts {
    pub(super) events: u64,
    pub(super) mutations: u64,
    pub(super) deletions: u64,
    pub(super) expirations: u64,
    pub(super) foreign: u64,
}

impl KvStats {
    pub(super) fn add(&self, counts: BatchCounts) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(counts.events, Ordering::Relaxed);
        self.mutations.fetch_add(counts.mutations, Ordering::Relaxed);
        self.deletions.fetch_add(counts.deletions, Ordering::Relaxed);
        self.expirations.fetch_add(counts.expirations, Ordering::Relaxed);
        self.foreign.fetch_add(counts.foreign, Ordering::Relaxed);
    }

    /// Batches that were taken from the source.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// Events of all kinds.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Documents that were written.
    pub fn mutations(&self) -> u64 {
        self.mutations.load(Ordering::Relaxed)
    }

    /// Documents that were deleted.
    pub fn deletions(&self) -> u64 {
        self.deletions.load(Ordering::Relaxed)
    }

    /// Documents that expired.
    pub fn expirations(&self) -> u64 {
        self.expirations.load(Ordering::Relaxed)
    }

    /// Events of another generation or of a vbucket that the bucket does not have. They were dropped.
    pub fn foreign(&self) -> u64 {
        self.foreign.load(Ordering::Relaxed)
    }
}
