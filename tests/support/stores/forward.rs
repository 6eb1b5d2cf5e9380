//! A store around a store, for tests in which something befalls its calls and what they carry.

use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use dormouse::objstore::{
    Body, DraftStore, ObjectKey, ObjectStore, Operation, Page, PageMark, Part, PartStore, StoreCause,
    StoreError, Upload, WriteDraft,
};
use dormouse::thread::Until;

use super::chunks_of;

/// What befalls the calls of a [`Forward`].
pub(crate) trait Around: Send + Sync {
    /// Carries the call out by `go`, as often as it likes, or does not.
    fn call<T>(
        &self,
        call: &Call<'_>,
        go: &mut dyn FnMut(Pass<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError>;

    /// How many calls at the same time are made, where the store itself takes so many.
    fn parallel(&self, of_inner: usize) -> usize {
        of_inner
    }

    /// What it says of its room, where that is not what the store itself says.
    fn room_bytes(&self) -> Option<u64> {
        None
    }
}

/// A call on its way.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) operation: Operation,
    /// The object or the folder that it is about, the first of several.
    pub(crate) key: Option<&'a ObjectKey>,
    pub(crate) carries: Carries<'a>,
    pub(crate) until: &'a Until,
    store: &'a dyn ObjectStore,
}

impl Call<'_> {
    /// The error of this call that `cause` makes.
    pub(crate) fn failed(&self, cause: impl Into<StoreCause>) -> StoreError {
        StoreError::new(self.operation, self.key, self.store.describe(), cause)
    }
}

/// What a call carries.
#[derive(Clone, Copy)]
pub(crate) enum Carries<'a> {
    Nothing,
    /// An object, or a part of one, goes out.
    Body(Body<'a>),
    /// An object goes out that must be new.
    NewBody(Body<'a>),
    /// A draft goes out.
    Draft,
    /// Content comes.
    Content,
}

/// How what is carried passes.
pub(crate) enum Pass<'a> {
    /// As it is.
    Whole,
    /// A half of it and no more, which no store may take for the whole.
    Half,
    /// Drafts and content that comes: a byte at a time, each after this. A body as it is.
    Slowly(&'a dyn Fn() -> io::Result<()>),
}

/// Hands calls on to another store, as `around` has it.
pub(crate) struct Forward<'a, A> {
    pub(crate) inner: &'a dyn ObjectStore,
    pub(crate) around: A,
}

impl<'a, A: Around> Forward<'a, A> {
    pub(crate) fn around(inner: &'a dyn ObjectStore, around: A) -> Self {
        Self { inner, around }
    }

    /// A call that carries nothing.
    fn call<T>(
        &self,
        (operation, key): (Operation, Option<&ObjectKey>),
        until: &Until,
        carry_out: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let call = Call { operation, key, carries: Carries::Nothing, until, store: self.inner };
        self.around.call(&call, &mut |_| carry_out())
    }

    /// A call that carries the body that `carries` holds.
    fn send<T>(
        &self,
        (operation, key): (Operation, &ObjectKey),
        carries: Carries<'_>,
        until: &Until,
        carry_out: impl Fn(Body<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (Carries::Body(body) | Carries::NewBody(body)) = carries else { unreachable!("it has a body") };
        let call = Call { operation, key: Some(key), carries, until, store: self.inner };
        self.around.call(&call, &mut |pass| match pass {
            Pass::Half => send_half(body, &carry_out),
            Pass::Whole | Pass::Slowly(_) => carry_out(body),
        })
    }

    /// A call that hands content on to `to`.
    fn receive(
        &self,
        key: &ObjectKey,
        to: &mut dyn Write,
        until: &Until,
        carry_out: impl Fn(&mut dyn Write) -> Result<u64, StoreError>,
    ) -> Result<u64, StoreError> {
        let (operation, carries) = (Operation::Get, Carries::Content);
        let call = Call { operation, key: Some(key), carries, until, store: self.inner };
        self.around.call(&call, &mut |pass| match pass {
            Pass::Whole => carry_out(to),
            Pass::Half => {
                let mut content = Vec::new();
                let length_bytes = carry_out(&mut content)?;
                to.write_all(&content[..content.len() / 2]).unwrap();
                Ok(length_bytes)
            }
            Pass::Slowly(wait) => carry_out(&mut Dribble { to, wait }),
        })
    }

    fn parts_of_inner(&self) -> &dyn PartStore {
        self.inner.in_parts().unwrap()
    }
}

/// Sends a file that ends in the middle of the body.
fn send_half<T>(
    body: Body<'_>,
    carry_out: impl Fn(Body<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let bytes = bytes_of(body);
    if bytes.is_empty() {
        return carry_out(body);
    }
    let mut half = tempfile::tempfile().unwrap();
    half.write_all(&bytes[..bytes.len() / 2]).unwrap();
    let (length_bytes, chunks) = (body.length_bytes(), chunks_of(&bytes));
    let sent = carry_out(Body::File { file: &half, offset_bytes: 0, length_bytes, chunks: &chunks });
    assert!(sent.is_err(), "a half was taken for the whole");
    sent
}

fn bytes_of(body: Body<'_>) -> Vec<u8> {
    match body {
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::File { file, offset_bytes, length_bytes, .. } => {
            let mut bytes = vec![0; usize::try_from(length_bytes).unwrap()];
            file.read_exact_at(&mut bytes, offset_bytes).unwrap();
            bytes
        }
    }
}

/// Hands on a byte at a time, each after a wait.
struct Dribble<'a> {
    to: &'a mut dyn Write,
    wait: &'a dyn Fn() -> io::Result<()>,
}

impl Write for Dribble<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            (self.wait)()?;
            self.to.write_all(&[*byte])?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Takes so many bytes and no more.
struct Cut<'a> {
    to: &'a mut dyn Write,
    left_bytes: usize,
}

impl Write for Cut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.left_bytes);
        self.to.write_all(&bytes[..taken])?;
        self.left_bytes -= taken;
        if taken < bytes.len() { Err(io::Error::other("it was cut off")) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<A: Around> ObjectStore for Forward<'_, A> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        let put = |body: Body<'_>| self.inner.put(key, body, until);
        self.send((Operation::Put, key), Carries::Body(body), until, put)
    }

    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        let put = |body: Body<'_>| self.inner.put_if_absent(key, body, until);
        self.send((Operation::Put, key), Carries::NewBody(body), until, put)
    }

    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError> {
        self.receive(key, to, until, |to| self.inner.get(key, to, until))
    }

    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError> {
        self.receive(key, to, until, |to| self.inner.get_range(key, range.clone(), to, until))
    }

    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError> {
        self.call((Operation::Head, Some(key)), until, || self.inner.head(key, until))
    }

    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError> {
        self.call((Operation::List, folder), until, || self.inner.list_page(folder, after, until))
    }

    fn room_bytes(&self, until: &Until) -> Result<Option<u64>, StoreError> {
        self.around.room_bytes().map_or_else(|| self.inner.room_bytes(until), |room| Ok(Some(room)))
    }

    fn sweep(
        &self,
        folder: &ObjectKey,
        before: SystemTime,
        dry_run: bool,
        until: &Until,
    ) -> Result<usize, StoreError> {
        let sweep = || self.inner.sweep(folder, before, dry_run, until);
        self.call((Operation::Delete, Some(folder)), until, sweep)
    }

    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        self.call((Operation::Delete, keys.first()), until, || self.inner.delete(keys, until))
    }

    fn in_parts(&self) -> Option<&dyn PartStore> {
        self.inner.in_parts().map(|_| self as &dyn PartStore)
    }

    fn in_drafts(&self) -> Option<&dyn DraftStore> {
        self.inner.in_drafts().map(|_| self as &dyn DraftStore)
    }

    fn parallel(&self) -> usize {
        self.around.parallel(self.inner.parallel())
    }
}

impl<A: Around> DraftStore for Forward<'_, A> {
    fn put_draft(
        &self,
        folder: &ObjectKey,
        write: &mut WriteDraft<'_>,
        until: &Until,
    ) -> Result<Option<ObjectKey>, StoreError> {
        let drafts = self.inner.in_drafts().unwrap();
        let (operation, carries) = (Operation::Put, Carries::Draft);
        let call = Call { operation, key: Some(folder), carries, until, store: self.inner };
        self.around.call(&call, &mut |pass| match pass {
            Pass::Whole => drafts.put_draft(folder, write, until),
            Pass::Half => {
                let mut all = Cut { to: &mut io::sink(), left_bytes: usize::MAX };
                let _ = write(&mut all);
                let half = (usize::MAX - all.left_bytes) / 2;
                let mut cut = |to: &mut dyn Write| write(&mut Cut { to, left_bytes: half });
                let put = drafts.put_draft(folder, &mut cut, until);
                assert!(!matches!(put, Ok(Some(_))), "a half was taken for the whole");
                put
            }
            Pass::Slowly(wait) => {
                let mut slow = |to: &mut dyn Write| write(&mut Dribble { to, wait });
                drafts.put_draft(folder, &mut slow, until)
            }
        })
    }
}

impl<A: Around> PartStore for Forward<'_, A> {
    fn begin(&self, key: &ObjectKey, until: &Until) -> Result<Upload, StoreError> {
        self.call((Operation::Begin, Some(key)), until, || self.parts_of_inner().begin(key, until))
    }

    fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Body<'_>,
        until: &Until,
    ) -> Result<Part, StoreError> {
        let put = |body: Body<'_>| self.parts_of_inner().put_part(upload, number, body, until);
        self.send((Operation::PutPart, &upload.key), Carries::Body(body), until, put)
    }

    fn parts(&self, upload: &Upload, until: &Until) -> Result<Vec<Part>, StoreError> {
        let call = (Operation::Parts, Some(&upload.key));
        self.call(call, until, || self.parts_of_inner().parts(upload, until))
    }

    fn complete(&self, upload: &Upload, parts: &[Part], until: &Until) -> Result<(), StoreError> {
        let call = (Operation::Complete, Some(&upload.key));
        self.call(call, until, || self.parts_of_inner().complete(upload, parts, until))
    }

    fn abort(&self, upload: &Upload, until: &Until) -> Result<(), StoreError> {
        let call = (Operation::Abort, Some(&upload.key));
        self.call(call, until, || self.parts_of_inner().abort(upload, until))
    }

    fn uploads(&self, key: Option<&ObjectKey>, until: &Until) -> Result<Vec<Upload>, StoreError> {
        self.call((Operation::Uploads, key), until, || self.parts_of_inner().uploads(key, until))
    }
}
