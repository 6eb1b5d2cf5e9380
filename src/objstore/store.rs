//! The contract of an object store.
//!
//! It is small because it is what an archive needs and no more, and blocking because its callers are threads
//! that wait for it. The words at [`ObjectStore`] and [`PartStore`] bind every implementation, and so do those of
//! a layer over another store.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::time::SystemTime;

use super::error::{Operation, StoreCause, StoreError};
use super::hash::ChunkHash;
use super::key::ObjectKey;
use crate::thread::Until;

/// Named, immutable pieces of bytes in one place.
///
/// * Each call is one try: it does not repeat itself, and its error tells whether another try can help.
/// * Each call ends soon after its [`Until`] has ended, with [`StoreCause::Stopped`]. A single operation of the
///   system, such as a flush to the disk, is not interrupted. A call whose limit has ended before it does
///   anything does nothing.
/// * A call that succeeded is seen by every later call, from every process.
/// * Callers do not use a key both for an object and as the beginning of other keys (`a` and `a/b`): a folder
///   cannot hold both.
///
/// [`StoreCause::Stopped`]: super::StoreCause::Stopped
pub trait ObjectStore: Send + Sync {
    /// The store's URL, for messages. It holds no secrets.
    fn describe(&self) -> String;

    /// Creates the object or replaces it. After success it is durable. After an error it is there with the
    /// whole of `body`, or what was there before (an object or none) is there unchanged.
    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError>;

    /// Creates the object unless there is one: then the cause is [`Exists`](super::StoreCause::Exists) and nothing
    /// changes. Otherwise like [`ObjectStore::put`].
    ///
    /// An object that was there before the call is always seen. That of several calls at the same time at most one
    /// succeeds is true of folders, and of those servers only that honour it; some ignore it without a word. What
    /// needs exclusiveness therefore uses a key that nobody else can use.
    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError>;

    /// Writes the object's content to `to` and gives its length in bytes. After an error `to` may have taken a
    /// part of it; an error of `to` itself is [`Receiver`](super::StoreCause::Receiver). No object:
    /// [`NotFound`](super::StoreCause::NotFound).
    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError>;

    /// Writes the bytes `range` of the object's content to `to` and gives the length of the whole object, like
    /// [`ObjectStore::get`]. The range is not empty. An object that does not have all of it:
    /// [`OutOfRange`](super::StoreCause::OutOfRange), and `to` takes nothing.
    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError>;

    /// The object's length in bytes; `None` if there is no object.
    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError>;

    /// Some of the objects below `folder` (those whose key begins with `folder` and a slash), or of all of the
    /// store, in ascending order of the key within the page: some, or those that follow `after`, the mark of an earlier
    /// page of the same listing. Unfinished objects, and names that are no [`ObjectKey`], are left out, so a page
    /// may be empty without being the last.
    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError>;

    /// All pages of a listing in one, in ascending order of the key. A store that gives the same again is not followed
    /// for ever: that is an [`Answer`](super::StoreCause::Answer) that cannot be right.
    fn list(&self, folder: Option<&ObjectKey>, until: &Until) -> Result<Vec<ObjectMeta>, StoreError> {
        let wrong = |what: &str| {
            let cause = StoreCause::Answer(what.to_owned());
            Err(StoreError::new(Operation::List, folder, self.describe(), cause))
        };
        let mut objects = BTreeMap::new();
        let mut mark = None;
        loop {
            let page = self.list_page(folder, mark.as_ref(), until)?;
            for ObjectMeta { key, length_bytes } in page.objects {
                match objects.entry(key) {
                    Entry::Vacant(new) => new.insert(length_bytes),
                    Entry::Occupied(there) => {
                        return wrong(&format!("the listing has {} twice", there.key()));
                    }
                };
            }
            match page.next {
                None => break,
                next if next == mark => return wrong("a page of the listing is to be followed by itself"),
                next => mark = next,
            }
        }
        let listed = objects.into_iter().map(|(key, length_bytes)| ObjectMeta { key, length_bytes });
        Ok(listed.collect())
    }

    /// Bytes that there is room for, as far as the store can tell; `None` where it cannot.
    fn room_bytes(&self, _until: &Until) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    /// Removes the objects, as many as there are; one that is not there is fine. An error names one that is still
    /// there, and others may be too. After a power failure they may be there again.
    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError>;

    /// Counts what puts that broke off left in `folder` and nobody has written to since `before`, and removes it unless
    /// this is a `dry_run`. No listing shows it. Parts do not belong to it: see [`PartStore::uploads`].
    fn sweep(
        &self,
        _folder: &ObjectKey,
        _before: SystemTime,
        _dry_run: bool,
        _until: &Until,
    ) -> Result<usize, StoreError> {
        Ok(0)
    }

    /// The store as one that takes objects in parts; `None` where each object is put whole, whatever its size.
    fn in_parts(&self) -> Option<&dyn PartStore> {
        None
    }

    /// The store as one that names an object after it was written; `None` where the key comes first.
    fn in_drafts(&self) -> Option<&dyn DraftStore> {
        None
    }

    /// How many calls at the same time are worth their threads; at least one.
    fn parallel(&self) -> usize {
        1
    }
}

/// Objects that get their key when all of their bytes are there, so that a key may be made of the content and a file
/// need be read only once.
///
/// The rules of [`ObjectStore`] hold here too. Nothing can be seen of the object before it has its key.
pub trait DraftStore: Send + Sync {
    /// Creates an object in `folder`, or replaces it: `write` writes its content and then gives the key, which lies
    /// in the folder itself. Where it gives none, nothing changes. Gives back what `write` gave. After success the
    /// object is durable; after an error it is there with the whole content, or what was there before is there
    /// unchanged.
    ///
    /// `write` looks at the limit itself, and it writes the same again when it is called again, by another try.
    fn put_draft(
        &self,
        folder: &ObjectKey,
        write: &mut WriteDraft<'_>,
        until: &Until,
    ) -> Result<Option<ObjectKey>, StoreError>;
}

/// Writes the content of a draft and names it.
pub type WriteDraft<'a> = dyn FnMut(&mut dyn Write) -> Result<Option<ObjectKey>, StoreCause> + 'a;

/// Objects that are put in parts: in any order, by several threads, with interruptions.
///
/// The rules of [`ObjectStore`] hold here too. Nothing can be seen of the object before [`PartStore::complete`],
/// and then all of it. Parts take up room until they are completed or given up.
pub trait PartStore: Send + Sync {
    /// Makes ready for the parts of the object `key`. Several uploads of one object do not know each other.
    fn begin(&self, key: &ObjectKey, until: &Until) -> Result<Upload, StoreError>;

    /// Puts the part with this number, which counts from 1 to [`PARTS_MAX`], or replaces it. After success it is
    /// durable; after an error it is there with the whole of `body`, or it is as it was before.
    fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Body<'_>,
        until: &Until,
    ) -> Result<Part, StoreError>;

    /// The parts that are there, in ascending order. No such upload: [`NotFound`](super::StoreCause::NotFound).
    fn parts(&self, upload: &Upload, until: &Until) -> Result<Vec<Part>, StoreError>;

    /// Makes the parts, in the order of their numbers, the object, which is created or replaced. The upload is
    /// over then. No such upload: [`NotFound`](super::StoreCause::NotFound), also where an earlier try succeeded
    /// although its answer was lost; whether it did is seen by the object.
    fn complete(&self, upload: &Upload, parts: &[Part], until: &Until) -> Result<(), StoreError>;

    /// Gives the upload up and removes its parts; one that is not there is fine. No other call for it may be under
    /// way.
    fn abort(&self, upload: &Upload, until: &Until) -> Result<(), StoreError>;

    /// The uploads that are neither completed nor given up, of the object `key` or of all of the store, oldest
    /// first for each object.
    fn uploads(&self, key: Option<&ObjectKey>, until: &Until) -> Result<Vec<Upload>, StoreError>;
}

/// The largest number of parts of an object.
pub const PARTS_MAX: u32 = 10_000;

/// An object on its way in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The object.
    pub key: ObjectKey,
    /// The store's name for this upload.
    pub id: String,
}

/// A part that is durable in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its place, from 1.
    pub number: u32,
    /// Its length.
    pub length_bytes: u64,
    /// The store's word for its content.
    pub tag: String,
}

/// What an object, or a part of one, is to hold.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// Bytes of a file. They are read by position, so the file's cursor does not matter and another try reads them
    /// again.
    File {
        /// The file, open for reading.
        file: &'a File,
        /// Where in the file they begin.
        offset_bytes: u64,
        /// How many bytes. A file that ends before them is refused as
        /// [`BodyTooShort`](super::StoreCause::BodyTooShort).
        length_bytes: u64,
        /// The hashes that their chunks must have. The store sees to it that other content is refused with
        /// [`BodyChanged`](super::StoreCause::BodyChanged) *before* the object appears: an object whose key
        /// promises a content never has another one.
        chunks: &'a [ChunkHash],
    },
}

impl Body<'_> {
    /// How many bytes it has.
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length_bytes, .. } => *length_bytes,
        }
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key.
    pub key: ObjectKey,
    /// Its length.
    pub length_bytes: u64,
}

/// A piece of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Objects in ascending order of the key.
    pub objects: Vec<ObjectMeta>,
    /// Where the listing goes on; `None` where this is the last page.
    pub next: Option<PageMark>,
}

/// Where a listing goes on: a text that only the store that made it understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageMark(pub String);
