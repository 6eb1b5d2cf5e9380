//! A store that is out of reach from the moment on that a manifest is put.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dormouse::objstore::{Body, ObjectKey, ObjectStore, Operation, Page, PageMark, StoreCause, StoreError};
use dormouse::thread::Until;
use parking_lot::Mutex;

pub(crate) struct LostStore<'a> {
    inner: &'a dyn ObjectStore,
    arrives: bool,
    is_lost: AtomicBool,
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
        Self {
            inner,
            arrives,
            is_lost: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            comes_back_after: usize::MAX,
            late: Mutex::new(None),
            on_manifest: None,
        }
    }

    /// A manifest that did not arrive arrives after all, if it has not yet.
    pub(crate) fn arrive_late(&self) {
        if let Some((key, manifest)) = self.late.lock().take() {
            self.inner.put(&key, Body::Bytes(&manifest), &Until::default()).unwrap();
        }
    }

    fn call<T>(
        &self,
        operation: Operation,
        carry_out: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_lost = self.is_lost.load(Ordering::SeqCst);
        if is_lost && self.calls.fetch_add(1, Ordering::SeqCst) < self.comes_back_after {
            let cause = StoreCause::Connection("nobody answers".to_owned());
            return Err(StoreError::new(operation, None, self.describe(), cause));
        }
        carry_out()
    }
}

impl ObjectStore for LostStore<'_> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Put, || self.inner.put(key, body, until))
    }

    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        if self.arrives {
            self.inner.put_if_absent(key, body, until)?;
        } else {
            let Body::Bytes(manifest) = body else { panic!("a manifest is no file") };
            *self.late.lock() = Some((key.clone(), manifest.to_vec()));
        }
        self.is_lost.store(true, Ordering::SeqCst);
        if let Some(tell) = &self.on_manifest {
            tell();
        }
        self.call(Operation::Put, || Ok(()))
    }

    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError> {
        self.call(Operation::Get, || self.inner.get(key, to, until))
    }

    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError> {
        self.call(Operation::Get, || self.inner.get_range(key, range, to, until))
    }

    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError> {
        self.call(Operation::Head, || self.inner.head(key, until))
    }

    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError> {
        self.call(Operation::List, || self.inner.list_page(folder, after, until))
    }

    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Delete, || self.inner.delete(keys, until))
    }
}
