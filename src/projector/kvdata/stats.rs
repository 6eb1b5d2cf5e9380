//! Counters of a data path, which anyone may read at any time.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::{Seqno, VbId};

/// What `run_scatter` has seen.
#[derive(Debug)]
pub struct KvStats {
    /// By vbucket.
    seqnos: Vec<AtomicU64>,
    batches: AtomicU64,
    events: AtomicU64,
    mutations: AtomicU64,
    deletions: AtomicU64,
    expirations: AtomicU64,
    system_events: AtomicU64,
    seqnos_advanced: AtomicU64,
    foreign: AtomicU64,
}

/// Counts of one batch, added up before they touch the shared counters.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct BatchCounts {
    pub(super) events: u64,
    pub(super) mutations: u64,
    pub(super) deletions: u64,
    pub(super) expirations: u64,
    pub(super) system_events: u64,
    pub(super) seqnos_advanced: u64,
    pub(super) foreign: u64,
}

impl KvStats {
    pub(super) fn new(vbuckets: u16) -> Self {
        Self {
            seqnos: (0..vbuckets).map(|_| AtomicU64::new(0)).collect(),
            batches: AtomicU64::new(0),
            events: AtomicU64::new(0),
            mutations: AtomicU64::new(0),
            deletions: AtomicU64::new(0),
            expirations: AtomicU64::new(0),
            system_events: AtomicU64::new(0),
            seqnos_advanced: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
        }
    }

    pub(super) fn note_seqno(&self, vb: VbId, seqno: Seqno) {
        if let Some(slot) = self.seqnos.get(usize::from(vb.0)) {
            slot.store(seqno.0, Ordering::Relaxed);
        }
    }

    pub(super) fn add(&self, counts: BatchCounts) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(counts.events, Ordering::Relaxed);
        self.mutations.fetch_add(counts.mutations, Ordering::Relaxed);
        self.deletions.fetch_add(counts.deletions, Ordering::Relaxed);
        self.expirations.fetch_add(counts.expirations, Ordering::Relaxed);
        self.system_events.fetch_add(counts.system_events, Ordering::Relaxed);
        self.seqnos_advanced.fetch_add(counts.seqnos_advanced, Ordering::Relaxed);
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

    /// Changes of collections and scopes.
    pub fn system_events(&self) -> u64 {
        self.system_events.load(Ordering::Relaxed)
    }

    /// Moves past changes that are of no interest.
    pub fn seqnos_advanced(&self) -> u64 {
        self.seqnos_advanced.load(Ordering::Relaxed)
    }

    /// The last seqno of a vbucket that was scattered; zero before the first.
    pub fn seqno(&self, vb: VbId) -> Seqno {
        Seqno(self.seqnos.get(usize::from(vb.0)).map_or(0, |seqno| seqno.load(Ordering::Relaxed)))
    }

    /// Events of another generation or of a vbucket that the bucket does not have. They were dropped.
    pub fn foreign(&self) -> u64 {
        self.foreign.load(Ordering::Relaxed)
    }
}
