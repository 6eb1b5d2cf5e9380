//! Behaviour that any store can be given: a [`Layer`] is a store around a store.
//!
//! What a layer does is a [`Policy`]; how calls and bytes pass through it is the same for all and written once.
//! The usual order, outermost first: retry, rate, floor, count, store. So each try waits for its share of the rate
//! before its time begins to run.
//!
//! Invariant: a layer keeps the contract of the store in it. A `get` that is tried again hands on each byte once,
//! which is right because an object's content never changes.

mod count;
mod floor;
mod rate;
mod retry;

pub use count::{Count, Counts};
pub use floor::{Floor, GRACES_WITHOUT_CONTENT};
pub use rate::Rate;
pub use retry::{Retry, RetryConfig};

use std::cell::Cell;
use std::io::{self, Write};
use std::ops::Range;
use std::time::SystemTime;

use super::error::{Operation, StoreCause, StoreError};
use super::key::ObjectKey;
use super::store::{Body, DraftStore, ObjectStore, Page, PageMark, Part, PartStore, Upload, WriteDraft};
use crate::thread::Until;

/// What a call is about.
#[derive(Debug, Clone, Copy)]
pub struct CallInfo<'a> {
    /// Which call.
    pub operation: Operation,
    /// The object or the folder that it is about, the first of several; `None` is the whole store.
    pub key: Option<&'a ObjectKey>,
    /// Bytes that it sends, where that is known. The bytes of a draft are told by [`Policy::went`] and
    /// [`Policy::is_durable`].
    pub sent_bytes: u64,
    /// Bytes that it asks for, where that is known.
    pub wanted_bytes: u64,
}

/// What a layer does around a call.
pub trait Policy: Send + Sync {
    /// Carries a call out by `go`, which makes one try under the limit that it is given.
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError>;

    /// Is told of bytes of content that have come, before they are handed on; it may take its time.
    fn came(&self, _bytes: usize, _until: &Until) {}

    /// Is told of bytes of a draft before they are handed on; it may take its time.
    fn went(&self, _bytes: usize, _until: &Until) {}

    /// Is told of the bytes of a draft that is durable.
    fn is_durable(&self, _bytes: u64) {}

    /// Whether it has to know how many bytes a whole object has before that is asked for.
    fn needs_length(&self) -> bool {
        false
    }
}

/// A store with a policy around each call.
pub struct Layer<P> {
    inner: Box<dyn ObjectStore>,
    policy: P,
}

impl<P: Policy> Layer<P> {
    /// `inner` under `policy`.
    pub fn new(inner: Box<dyn ObjectStore>, policy: P) -> Self {
        Self { inner, policy }
    }

    fn call<T>(
        &self,
        (operation, key): (Operation, Option<&ObjectKey>),
        sent_bytes: u64,
        until: &Until,
        mut go: impl FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.policy.call(CallInfo { operation, key, sent_bytes, wanted_bytes: 0 }, until, &mut go)
    }

    /// A call that hands on content, by `go`.
    fn receive(
        &self,
        (key, wanted_bytes): (&ObjectKey, u64),
        to: &mut dyn Write,
        until: &Until,
        go: impl Fn(&mut dyn Write, &Until) -> Result<u64, StoreError>,
    ) -> Result<u64, StoreError> {
        let delivered = Cell::new(0);
        let call = CallInfo { operation: Operation::Get, key: Some(key), sent_bytes: 0, wanted_bytes };
        self.policy.call(call, until, &mut |until| {
            let mut through = Through {
                to: &mut *to,
                policy: &self.policy,
                until,
                delivered: &delivered,
                again: delivered.get(),
            };
            go(&mut through, until).map_err(|e| match (e.cause, until.check()) {
                // It gave way to the limit.
                (StoreCause::Receiver(_), Err(why)) => StoreError { cause: why.into(), ..e },
                (cause, _) => StoreError { cause, ..e },
            })
        })
    }
}

/// Hands content on, but for what an earlier try has handed on already.
struct Through<'a, P> {
    to: &'a mut dyn Write,
    policy: &'a P,
    until: &'a Until,
    delivered: &'a Cell<u64>,
    again: u64,
}

impl<P: Policy> Write for Through<'_, P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.policy.came(bytes.len(), self.until);
        self.until.check().map_err(io::Error::other)?;
        let known = usize::try_from(self.again).unwrap_or(usize::MAX).min(bytes.len());
        let new = bytes.get(known..).unwrap_or_default();
        self.again -= known as u64;
        self.to.write_all(new)?;
        self.delivered.set(self.delivered.get() + new.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<P: Policy> ObjectStore for Layer<P> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        let call = (Operation::Put, Some(key));
        self.call(call, body.length_bytes(), until, |until| self.inner.put(key, body, until))
    }

    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        let call = (Operation::Put, Some(key));
        self.call(call, body.length_bytes(), until, |until| self.inner.put_if_absent(key, body, until))
    }

    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError> {
        let length = if self.policy.needs_length() { self.head(key, until)? } else { None };
        let wanted = (key, length.unwrap_or_default());
        self.receive(wanted, to, until, |to, until| self.inner.get(key, to, until))
    }

    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError> {
        let wanted = (key, range.end.saturating_sub(range.start));
        self.receive(wanted, to, until, |to, until| self.inner.get_range(key, range.clone(), to, until))
    }

    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError> {
        self.call((Operation::Head, Some(key)), 0, until, |until| self.inner.head(key, until))
    }

    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError> {
        self.call((Operation::List, folder), 0, until, |until| self.inner.list_page(folder, after, until))
    }

    fn sweep(
        &self,
        folder: &ObjectKey,
        before: SystemTime,
        dry_run: bool,
        until: &Until,
    ) -> Result<usize, StoreError> {
        let call = (Operation::Delete, Some(folder));
        self.call(call, 0, until, |until| self.inner.sweep(folder, before, dry_run, until))
    }

    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        self.call((Operation::Delete, keys.first()), 0, until, |until| self.inner.delete(keys, until))
    }

    fn in_parts(&self) -> Option<&dyn PartStore> {
        self.inner.in_parts().map(|_| self as &dyn PartStore)
    }

    fn in_drafts(&self) -> Option<&dyn DraftStore> {
        self.inner.in_drafts().map(|_| self as &dyn DraftStore)
    }

    fn parallel(&self) -> usize {
        self.inner.parallel()
    }

    fn room_bytes(&self, until: &Until) -> Result<Option<u64>, StoreError> {
        self.inner.room_bytes(until)
    }
}

/// Hands a draft's content on.
struct Outward<'a, P> {
    to: &'a mut dyn Write,
    policy: &'a P,
    until: &'a Until,
    went_bytes: u64,
}

impl<P: Policy> Write for Outward<'_, P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.policy.went(bytes.len(), self.until);
        self.to.write_all(bytes)?;
        self.went_bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<P: Policy> DraftStore for Layer<P> {
    fn put_draft(
        &self,
        folder: &ObjectKey,
        write: &mut WriteDraft<'_>,
        until: &Until,
    ) -> Result<Option<ObjectKey>, StoreError> {
        let went_bytes = Cell::new(0);
        let put =
            self.call((Operation::Put, Some(folder)), 0, until, |until| match self.inner.in_drafts() {
                Some(drafts) => {
                    let mut counted = |to: &mut dyn Write| {
                        let mut outward = Outward { to, policy: &self.policy, until, went_bytes: 0 };
                        let key = write(&mut outward)?;
                        went_bytes.set(outward.went_bytes);
                        Ok(key)
                    };
                    drafts.put_draft(folder, &mut counted, until)
                }
                None => Err(StoreError::new(
                    Operation::Put,
                    Some(folder),
                    self.inner.describe(),
                    StoreCause::NotFound,
                )),
            })?;
        if put.is_some() {
            self.policy.is_durable(went_bytes.get());
        }
        Ok(put)
    }
}

impl<P: Policy> Layer<P> {
    /// A call on the store in parts. Who makes it was told by `in_parts` that there is one.
    fn part_call<T>(
        &self,
        operation: Operation,
        key: Option<&ObjectKey>,
        sent_bytes: u64,
        until: &Until,
        go: impl Fn(&dyn PartStore, &Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.call((operation, key), sent_bytes, until, |until| match self.inner.in_parts() {
            Some(parts) => go(parts, until),
            None => Err(StoreError::new(operation, key, self.inner.describe(), StoreCause::NotFound)),
        })
    }
}

impl<P: Policy> PartStore for Layer<P> {
    fn begin(&self, key: &ObjectKey, until: &Until) -> Result<Upload, StoreError> {
        self.part_call(Operation::Begin, Some(key), 0, until, |parts, until| parts.begin(key, until))
    }

    fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Body<'_>,
        until: &Until,
    ) -> Result<Part, StoreError> {
        let bytes = body.length_bytes();
        self.part_call(Operation::PutPart, Some(&upload.key), bytes, until, |parts, until| {
            parts.put_part(upload, number, body, until)
        })
    }

    fn parts(&self, upload: &Upload, until: &Until) -> Result<Vec<Part>, StoreError> {
        let key = Some(&upload.key);
        self.part_call(Operation::Parts, key, 0, until, |parts, until| parts.parts(upload, until))
    }

    fn complete(&self, upload: &Upload, parts: &[Part], until: &Until) -> Result<(), StoreError> {
        self.part_call(Operation::Complete, Some(&upload.key), 0, until, |store, until| {
            store.complete(upload, parts, until)
        })
    }

    fn abort(&self, upload: &Upload, until: &Until) -> Result<(), StoreError> {
        let key = Some(&upload.key);
        self.part_call(Operation::Abort, key, 0, until, |parts, until| parts.abort(upload, until))
    }

    fn uploads(&self, key: Option<&ObjectKey>, until: &Until) -> Result<Vec<Upload>, StoreError> {
        self.part_call(Operation::Uploads, key, 0, until, |parts, until| parts.uploads(key, until))
    }
}
