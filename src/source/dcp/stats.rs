//! What a connection counted. Anyone may look at any time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one connection, from its opening on.
#[derive(Debug, Default)]
pub struct DcpStats {
    pub(super) frames: AtomicU64,
    pub(super) window_bytes: AtomicU64,
    pub(super) acked_bytes: AtomicU64,
    pub(super) noops: AtomicU64,
    pub(super) spurious: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) stray_answers: AtomicU64,
    pub(super) bad_values: AtomicU64,
    pub(super) held_bytes: AtomicU64,
    pub(super) observed: AtomicU64,
    pub(super) lost: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl DcpStats {
    /// Frames that came, answers and noops among them.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Bytes that came and count on the flow-control window.
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of these that were acknowledged.
    pub fn acked_bytes(&self) -> u64 {
        self.acked_bytes.load(Ordering::Relaxed)
    }

    /// Noops that were answered.
    pub fn noops(&self) -> u64 {
        self.noops.load(Ordering::Relaxed)
    }

    /// Messages of streams that are over or that nobody asked for. They are acknowledged and dropped.
    pub fn spurious(&self) -> u64 {
        self.spurious.load(Ordering::Relaxed)
    }

    /// Messages of a kind that nobody asked for. They are acknowledged and dropped.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// Answers that nobody waits for.
    pub fn stray_answers(&self) -> u64 {
        self.stray_answers.load(Ordering::Relaxed)
    }

    /// Values that could not be inflated, or whose attributes could not be stripped: they were sent on as empty.
    pub fn bad_values(&self) -> u64 {
        self.bad_values.load(Ordering::Relaxed)
    }

    /// Times that a node was asked how far a vbucket is on disk.
    pub fn observed(&self) -> u64 {
        self.observed.load(Ordering::Relaxed)
    }

    /// Changes that were lost before they were on disk, and dropped.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The most memory that batches held while they waited to be handed on, in bytes.
    pub fn held_bytes_max(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }
}
