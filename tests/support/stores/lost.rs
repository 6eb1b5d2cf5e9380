//! A store that is out of reach from the moment on that a manifest is put.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dormouse::objstore::{Body, ObjectKey, ObjectStore, StoreCause, StoreError};
use dormouse::thread::Until;
use parking_lot::Mutex;

use super::forward::{Around, Call, Carries, Forward, Pass};

pub(crate) type LostStore<'a> = Forward<'a, Lost>;

pub(crate) struct Lost {
    arrives: bool,
    is_away: AtomicBool,
    calls: AtomicUsize,
    /// So many calls later it is there again.
    pub(crate) comes_back_after: usize,
    /// What a server has that has not carried it out yet.
    late: Mutex<Option<(ObjectKey, Vec<u8>)>>,
    /// Is called when the manifest is put.
    pub(crate) on_manifest: Option<Box<dyn Fn() + Send + Sync>>,
}

impl<'a> LostStore<'a> {
    /// The manifest itself may arrive, which nobody is told.
    pub(crate) fn with_the_manifest(inner: &'a dyn ObjectStore, arrives: bool) -> Self {
        let lost = Lost {
            arrives,
            is_away: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            comes_back_after: usize::MAX,
            late: Mutex::new(None),
            on_manifest: None,
        };
        Self::around(inner, lost)
    }

    /// A manifest that did not arrive arrives after all, if it has not yet.
    pub(crate) fn arrive_late(&self) {
        if let Some((key, manifest)) = self.around.late.lock().take() {
            self.inner.put(&key, Body::Bytes(&manifest), &Until::default()).unwrap();
        }
    }
}

impl Around for Lost {
    fn call<T>(
        &self,
        call: &Call<'_>,
        go: &mut dyn FnMut(Pass<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let (Carries::NewBody(body), Some(key)) = (call.carries, call.key) {
            if self.arrives {
                go(Pass::Whole)?;
            } else {
                let Body::Bytes(manifest) = body else { panic!("a manifest is no file") };
                *self.late.lock() = Some((key.clone(), manifest.to_vec()));
            }
            self.is_away.store(true, Ordering::SeqCst);
            if let Some(tell) = &self.on_manifest {
                tell();
            }
        } else if !self.is_away.load(Ordering::SeqCst)
            || self.calls.fetch_add(1, Ordering::SeqCst) >= self.comes_back_after
        {
            return go(Pass::Whole);
        }
        Err(call.failed(StoreCause::Connection("nobody answers".to_owned())))
    }
}
