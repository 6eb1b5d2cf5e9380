//! A store that is out of reach from the moment on that a manifest is put.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dormouse::objstore::{CallInfo, Operation, Policy, StoreCause, StoreError};
use dormouse::thread::Until;

/// What befalls the store.
pub(crate) struct Lost<'a> {
    arrives: bool,
    is_away: AtomicBool,
    calls: AtomicUsize,
    /// So many calls later it is there again.
    pub(crate) comes_back_after: usize,
    /// Is called when the manifest is put.
    pub(crate) on_manifest: Option<&'a (dyn Fn() + Sync)>,
}

impl Lost<'_> {
    /// The manifest itself may arrive, which nobody is told.
    pub(crate) fn with_the_manifest(arrives: bool) -> Self {
        Self {
            arrives,
            is_away: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            comes_back_after: usize::MAX,
            on_manifest: None,
        }
    }
}

impl Policy for Lost<'_> {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_manifest = call.key.is_some_and(|key| key.as_str().ends_with(".manifest"));
        if is_manifest && call.operation == Operation::Put && !self.is_away.swap(true, Ordering::SeqCst) {
            if self.arrives {
                go(until)?;
            }
            if let Some(tell) = self.on_manifest {
                tell();
            }
        }
        let is_away = self.is_away.load(Ordering::SeqCst);
        if is_away && self.calls.fetch_add(1, Ordering::SeqCst) < self.comes_back_after {
            let cause = StoreCause::Connection("nobody answers".to_owned());
            return Err(StoreError::new(call.operation, call.key, "an archive", cause));
        }
        go(until)
    }
}
