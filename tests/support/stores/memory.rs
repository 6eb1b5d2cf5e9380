//! A store in memory that takes the contract at its word.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use dormouse::objstore::{
    Body, ObjectKey, ObjectMeta, ObjectStore, Operation, PARTS_MAX, Page, PageMark, Part, PartStore,
    StoreCause, StoreError, Upload,
};
use dormouse::thread::Until;
use parking_lot::Mutex;

use super::chunks_of;

/// The least size of a part that is not the last, as S3 has it.
const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// Objects of a page: few, so that every listing has pages.
const PAGE: usize = 3;

/// Clones are the same store.
#[derive(Clone, Default)]
pub(crate) struct MemoryStore(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    objects: BTreeMap<ObjectKey, Vec<u8>>,
    uploads: BTreeMap<String, (ObjectKey, BTreeMap<u32, Vec<u8>>)>,
    last_upload: u64,
    room_bytes: Option<u64>,
}

impl MemoryStore {
    /// A store that says that it has room for so many bytes.
    pub(crate) fn with_room(room_bytes: u64) -> Self {
        let content = Content { room_bytes: Some(room_bytes), ..Content::default() };
        Self(Arc::new(Mutex::new(content)))
    }

    /// Parts of unfinished uploads.
    pub(crate) fn parts_left(&self) -> usize {
        self.0.lock().uploads.values().map(|(_, parts)| parts.len()).sum()
    }

    /// Unfinished uploads.
    pub(crate) fn uploads_left(&self) -> usize {
        self.0.lock().uploads.len()
    }

    pub(crate) fn objects(&self) -> BTreeMap<ObjectKey, Vec<u8>> {
        self.0.lock().objects.clone()
    }

    /// Carries a call out, unless its limit has ended.
    fn call<T>(
        &self,
        operation: Operation,
        key: Option<&ObjectKey>,
        until: &Until,
        carry_out: impl FnOnce(&mut Content) -> Result<T, StoreCause>,
    ) -> Result<T, StoreError> {
        let result = until.check().map_err(StoreCause::from).and_then(|()| carry_out(&mut self.0.lock()));
        result.map_err(|cause| StoreError::new(operation, key, self.describe(), cause))
    }
}

/// The bytes of a body, which are what they are said to be.
fn read(body: Body<'_>) -> Result<Vec<u8>, StoreCause> {
    match body {
        Body::Bytes(bytes) => Ok(bytes.to_vec()),
        Body::File { file, offset_bytes, length_bytes, chunks } => {
            let found_bytes = file.metadata()?.len().saturating_sub(offset_bytes);
            if found_bytes < length_bytes {
                return Err(StoreCause::BodyTooShort { expected_bytes: length_bytes, found_bytes });
            }
            let mut bytes = vec![0; usize::try_from(length_bytes).unwrap()];
            file.read_exact_at(&mut bytes, offset_bytes).map_err(StoreCause::Body)?;
            if chunks_of(&bytes) == chunks { Ok(bytes) } else { Err(StoreCause::BodyChanged) }
        }
    }
}

/// Hands content on without holding the store, so that the receiver may use it.
fn hand_on(content: &[u8], range: Range<u64>, to: &mut dyn Write, until: &Until) -> Result<u64, StoreCause> {
    let place = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
    let bytes = content.get(place).ok_or(StoreCause::OutOfRange { start: range.start, end: range.end })?;
    for piece in bytes.chunks(64 * 1024) {
        until.check()?;
        to.write_all(piece).map_err(StoreCause::Receiver)?;
    }
    until.check()?;
    Ok(content.len() as u64)
}

impl ObjectStore for MemoryStore {
    fn describe(&self) -> String {
        "memory:".to_owned()
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Put, Some(key), until, |content| {
            content.objects.insert(key.clone(), read(body)?);
            Ok(())
        })
    }

    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Put, Some(key), until, |content| {
            if content.objects.contains_key(key) {
                return Err(StoreCause::Exists);
            }
            content.objects.insert(key.clone(), read(body)?);
            Ok(())
        })
    }

    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError> {
        let found = |content: &mut Content| content.objects.get(key).cloned().ok_or(StoreCause::NotFound);
        let bytes = self.call(Operation::Get, Some(key), until, found)?;
        let got = hand_on(&bytes, 0..bytes.len() as u64, to, until);
        got.map_err(|cause| StoreError::new(Operation::Get, Some(key), self.describe(), cause))
    }

    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError> {
        let found = |content: &mut Content| content.objects.get(key).cloned().ok_or(StoreCause::NotFound);
        let bytes = self.call(Operation::Get, Some(key), until, found)?;
        let got = hand_on(&bytes, range, to, until);
        got.map_err(|cause| StoreError::new(Operation::Get, Some(key), self.describe(), cause))
    }

    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError> {
        self.call(Operation::Head, Some(key), until, |content| {
            Ok(content.objects.get(key).map(|bytes| bytes.len() as u64))
        })
    }

    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError> {
        self.call(Operation::List, folder, until, |content| {
            let mut wanted = content
                .objects
                .iter()
                .filter(|(key, _)| folder.is_none_or(|folder| key.below(folder).is_some()))
                .filter(|(key, _)| after.is_none_or(|mark| key.as_str() > mark.0.as_str()))
                .map(|(key, bytes)| ObjectMeta { key: key.clone(), length_bytes: bytes.len() as u64 });
            let objects: Vec<ObjectMeta> = wanted.by_ref().take(PAGE).collect();
            let is_last = wanted.next().is_none();
            let next = objects.last().filter(|_| !is_last).map(|last| PageMark(last.key.to_string()));
            Ok(Page { objects, next })
        })
    }

    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Delete, keys.first(), until, |content| {
            content.objects.retain(|key, _| !keys.contains(key));
            Ok(())
        })
    }

    fn room_bytes(&self, until: &Until) -> Result<Option<u64>, StoreError> {
        self.call(Operation::Open, None, until, |content| Ok(content.room_bytes))
    }

    fn in_parts(&self) -> Option<&dyn PartStore> {
        Some(self)
    }

    fn parallel(&self) -> usize {
        3
    }
}

fn parts_of<'a>(
    content: &'a mut Content,
    upload: &Upload,
) -> Result<&'a mut BTreeMap<u32, Vec<u8>>, StoreCause> {
    let found = content.uploads.get_mut(&upload.id).filter(|(key, _)| *key == upload.key);
    found.map(|(_, parts)| parts).ok_or(StoreCause::NotFound)
}

fn part(number: u32, bytes: &[u8]) -> Part {
    Part { number, length_bytes: bytes.len() as u64, tag: format!("{:?}", chunks_of(bytes)) }
}

impl PartStore for MemoryStore {
    fn begin(&self, key: &ObjectKey, until: &Until) -> Result<Upload, StoreError> {
        self.call(Operation::Begin, Some(key), until, |content| {
            content.last_upload += 1;
            let id = format!("{:04}", content.last_upload);
            content.uploads.insert(id.clone(), (key.clone(), BTreeMap::new()));
            Ok(Upload { key: key.clone(), id })
        })
    }

    fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Body<'_>,
        until: &Until,
    ) -> Result<Part, StoreError> {
        assert!((1..=PARTS_MAX).contains(&number), "{number} is no number of a part");
        self.call(Operation::PutPart, Some(&upload.key), until, |content| {
            let parts = parts_of(content, upload)?;
            let bytes = read(body)?;
            let put = part(number, &bytes);
            parts.insert(number, bytes);
            Ok(put)
        })
    }

    fn parts(&self, upload: &Upload, until: &Until) -> Result<Vec<Part>, StoreError> {
        self.call(Operation::Parts, Some(&upload.key), until, |content| {
            Ok(parts_of(content, upload)?.iter().map(|(number, bytes)| part(*number, bytes)).collect())
        })
    }

    fn complete(&self, upload: &Upload, parts: &[Part], until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Complete, Some(&upload.key), until, |content| {
            let there = parts_of(content, upload)?;
            assert!(parts.is_sorted_by(|a, b| a.number < b.number), "{parts:?}");
            let mut whole = Vec::new();
            for (at, wanted) in parts.iter().enumerate() {
                let bytes = &there[&wanted.number];
                assert_eq!(part(wanted.number, bytes), *wanted);
                assert!(
                    at + 1 == parts.len() || wanted.length_bytes >= PART_BYTES_MIN,
                    "{wanted:?} is too small"
                );
                whole.extend_from_slice(bytes);
            }
            content.uploads.remove(&upload.id);
            content.objects.insert(upload.key.clone(), whole);
            Ok(())
        })
    }

    fn abort(&self, upload: &Upload, until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Abort, Some(&upload.key), until, |content| {
            content.uploads.remove(&upload.id);
            Ok(())
        })
    }

    fn uploads(&self, key: Option<&ObjectKey>, until: &Until) -> Result<Vec<Upload>, StoreError> {
        self.call(Operation::Uploads, key, until, |content| {
            let all =
                content.uploads.iter().map(|(id, (key, _))| Upload { key: key.clone(), id: id.clone() });
            Ok(all.filter(|upload| key.is_none_or(|key| upload.key == *key)).collect())
        })
    }
}
