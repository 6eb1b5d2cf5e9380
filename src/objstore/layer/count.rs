//! How much passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{CallInfo, Policy};
use crate::objstore::error::StoreError;
use crate::thread::Until;

/// What has passed a [`Count`] so far. Each number only grows.
#[derive(Debug, Default)]
pub struct Counts {
    calls: AtomicU64,
    failed_calls: AtomicU64,
    durable_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Counts {
    /// Calls that have ended.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Those of them that failed.
    pub fn failed_calls(&self) -> u64 {
        self.failed_calls.load(Ordering::Relaxed)
    }

    /// Bytes of objects and parts that were put and are durable.
    pub fn durable_bytes(&self) -> u64 {
        self.durable_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of content that came, also by calls that failed later.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }
}

/// Counts calls and bytes.
#[derive(Debug, Default)]
pub struct Count(Arc<Counts>);

impl Count {
    /// Counts into `counts`, which may be looked at by any thread at any time.
    pub fn new(counts: Arc<Counts>) -> Self {
        Self(counts)
    }
}

impl Policy for Count {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = go(until);
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(_) => self.0.durable_bytes.fetch_add(call.sent_bytes, Ordering::Relaxed),
            Err(_) => self.0.failed_calls.fetch_add(1, Ordering::Relaxed),
        };
        result
    }

    fn came(&self, bytes: usize, _: &Until) {
        self.0.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn is_durable(&self, bytes: u64) {
        self.0.durable_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
