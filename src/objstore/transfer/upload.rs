//! Files to a store.
//!
//! A file of one chunk is put whole. A larger one goes in parts, where the store takes parts: an upload of the same
//! object that was interrupted is taken up again, and only parts that are missing are put. A part is a chunk, or
//! several where a file would have more than [`PARTS_MAX`] of them.
//!
//! Invariant: parts of an earlier upload are believed only where the store holds them with the length that they are
//! to have; their content was checked against the chunks' hashes when they were put. This needs keys that stand for
//! one content.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use parking_lot::Mutex;

use super::{TransferError, run_jobs};
use crate::durable::AtPath;
use crate::objstore::error::{Operation, StoreCause, StoreError};
use crate::objstore::hash::{CHUNK_BYTES, ChunkHash};
use crate::objstore::key::ObjectKey;
use crate::objstore::store::{Body, ObjectStore, PARTS_MAX, Part, PartStore, Upload};
use crate::thread::Until;

/// A file that is to become an object.
#[derive(Debug, Clone, Copy)]
pub struct FileUpload<'a> {
    /// The object. Its key stands for this content alone.
    pub key: &'a ObjectKey,
    /// Where the file lies.
    pub path: &'a Path,
    /// How many of its first bytes belong to the object.
    pub length_bytes: u64,
    /// The hashes of their chunks.
    pub chunks: &'a [ChunkHash],
}

/// How often what is unfinished is listed again after it was given up.
const GIVE_UP_ROUNDS: usize = 3;

/// One of the call's files, and how far it is.
struct Sending<'a> {
    number: usize,
    file: FileUpload<'a>,
    /// Chunks of a part; zero where the file is put whole.
    chunks_of_part: usize,
    state: Mutex<Option<InParts>>,
}

struct InParts {
    upload: Upload,
    /// Parts that an earlier call had put.
    known: BTreeMap<u32, Part>,
    /// Parts that this call has put or found.
    durable: BTreeMap<u32, Part>,
}

impl InParts {
    fn new(upload: Upload, known: Vec<Part>) -> Self {
        let known = known.into_iter().map(|part| (part.number, part)).collect();
        Self { upload, known, durable: BTreeMap::new() }
    }
}

/// Puts the files and tells of durable bytes, part by part. After an error the parts that are durable stay for
/// another call to take up, or for [`give_up`].
pub fn upload_files(
    store: &dyn ObjectStore,
    files: &[FileUpload<'_>],
    until: &Until,
    on_durable: &mut dyn FnMut(u64),
) -> Result<(), TransferError> {
    let sending: Vec<Sending<'_>> = files
        .iter()
        .enumerate()
        .map(|(number, file)| Sending::new(number, *file, store.in_parts().is_some()))
        .collect();
    let jobs: Vec<(&Sending<'_>, u32)> =
        sending.iter().flat_map(|sending| (1..=sending.parts()).map(move |part| (sending, part))).collect();
    let work = |&(sending, number): &(&Sending<'_>, u32), until: &Until| sending.send(store, number, until);
    run_jobs(store.parallel(), &jobs, until, work, &mut |bytes| {
        on_durable(bytes);
        Ok(())
    })
}

/// Removes the parts of all unfinished uploads of these objects.
pub fn give_up(store: &dyn ObjectStore, keys: &[&ObjectKey], until: &Until) -> Result<(), StoreError> {
    let Some(parts) = store.in_parts() else { return Ok(()) };
    for key in keys {
        // Again, because a part that a server was still taking in when its upload was given up may bring it back.
        for _ in 0..GIVE_UP_ROUNDS {
            let unfinished = parts.uploads(Some(key), until)?;
            if unfinished.is_empty() {
                break;
            }
            unfinished.iter().try_for_each(|upload| parts.abort(upload, until))?;
        }
    }
    Ok(())
}

impl<'a> Sending<'a> {
    fn new(number: usize, file: FileUpload<'a>, takes_parts: bool) -> Self {
        let chunks_of_part = match file.chunks.len() {
            0 | 1 => 0,
            _ if !takes_parts => 0,
            chunks => chunks.div_ceil(PARTS_MAX as usize),
        };
        Self { number, file, chunks_of_part, state: Mutex::new(None) }
    }

    fn parts(&self) -> u32 {
        let parts = self.file.chunks.len().checked_div(self.chunks_of_part);
        let rest = self.file.chunks.len().checked_rem(self.chunks_of_part).unwrap_or(0);
        u32::try_from(parts.unwrap_or(1) + usize::from(rest > 0)).unwrap_or(PARTS_MAX)
    }

    /// Puts part `number` and, if it was the last, puts the object together. Gives the bytes that are durable.
    fn send(&self, store: &dyn ObjectStore, number: u32, until: &Until) -> Result<u64, TransferError> {
        let failed = |error| self.failed(error);
        let open = || File::open(self.file.path).at("open", self.file.path);
        let Some(parts) = store.in_parts().filter(|_| self.chunks_of_part > 0) else {
            let FileUpload { key, length_bytes, chunks, .. } = self.file;
            let body = Body::File { file: &open()?, offset_bytes: 0, length_bytes, chunks };
            store.put(key, body, until).map_err(failed)?;
            return Ok(length_bytes);
        };
        let (offset_bytes, length_bytes) = self.place(number);
        let (upload, known) = self.begin(parts, number, until).map_err(failed)?;
        let part = if let Some(part) = known {
            part
        } else {
            let chunks = self.chunks(number);
            let body = Body::File { file: &open()?, offset_bytes, length_bytes, chunks };
            parts.put_part(&upload, number, body, until).map_err(failed)?
        };
        self.complete(part, store, parts, until).map_err(failed)?;
        Ok(length_bytes)
    }

    /// The hashes of the chunks of part `number`.
    fn chunks(&self, number: u32) -> &'a [ChunkHash] {
        let mut pieces = self.file.chunks.chunks(self.chunks_of_part.max(1));
        pieces.nth(number.saturating_sub(1) as usize).unwrap_or_default()
    }

    /// Where part `number` begins, and its length.
    fn place(&self, number: u32) -> (u64, u64) {
        let part_bytes = CHUNK_BYTES.saturating_mul(self.chunks_of_part as u64);
        let offset_bytes = part_bytes.saturating_mul(u64::from(number).saturating_sub(1));
        (offset_bytes, part_bytes.min(self.file.length_bytes.saturating_sub(offset_bytes)))
    }

    /// The upload that the parts belong to, and part `number` if it is there already. The first that asks takes
    /// an earlier upload up or begins one; the others wait for it, as long as its calls may take.
    fn begin(
        &self,
        parts: &dyn PartStore,
        number: u32,
        until: &Until,
    ) -> Result<(Upload, Option<Part>), StoreError> {
        let mut state = self.state.lock();
        let begun = match state.take() {
            Some(begun) => begun,
            None => self.take_up_or_begin(parts, until)?,
        };
        let found = (begun.upload.clone(), begun.known.get(&number).cloned());
        *state = Some(begun);
        Ok(found)
    }

    fn take_up_or_begin(&self, parts: &dyn PartStore, until: &Until) -> Result<InParts, StoreError> {
        match self.take_up(parts, until)? {
            Some(unfinished) => Ok(unfinished),
            None => Ok(InParts::new(parts.begin(self.file.key, until)?, Vec::new())),
        }
    }

    /// The newest unfinished upload of the object; older ones are given up.
    fn take_up(&self, parts: &dyn PartStore, until: &Until) -> Result<Option<InParts>, StoreError> {
        let mut unfinished = parts.uploads(Some(self.file.key), until)?;
        let newest = unfinished.pop();
        unfinished.iter().try_for_each(|older| parts.abort(older, until))?;
        let Some(upload) = newest else { return Ok(None) };
        let listed = match parts.parts(&upload, until) {
            Err(e) if matches!(e.cause, StoreCause::NotFound) => return Ok(None),
            listed => listed?,
        };
        let is_as_wanted = |part: &Part| {
            (1..=self.parts()).contains(&part.number) && self.place(part.number).1 == part.length_bytes
        };
        if !listed.iter().all(is_as_wanted) {
            // Cut in another way: nothing of it fits.
            parts.abort(&upload, until)?;
            return Ok(None);
        }
        Ok(Some(InParts::new(upload, listed)))
    }

    /// Takes note of a durable part. After the last one it puts the object together, looks whether that is as long as
    /// it is to be, and leaves no other upload of it.
    fn complete(
        &self,
        part: Part,
        store: &dyn ObjectStore,
        parts: &dyn PartStore,
        until: &Until,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let is_last = |begun: &mut InParts| {
            begun.durable.insert(part.number, part);
            begun.durable.len() == self.parts() as usize
        };
        let Some(begun) = state.take_if(is_last) else { return Ok(()) };
        drop(state);
        let durable: Vec<Part> = begun.durable.into_values().collect();
        let completed = parts.complete(&begun.upload, &durable, until);
        let is_gone = completed.as_ref().is_err_and(|e| matches!(e.cause, StoreCause::NotFound));
        if !is_gone {
            completed?;
        }
        let (key, expected_bytes) = (self.file.key, self.file.length_bytes);
        let wrong = |what: String| {
            Err(StoreError::new(Operation::Complete, Some(key), store.describe(), StoreCause::Answer(what)))
        };
        match store.head(key, until)? {
            // Where the answer to a begin was lost, there is another upload, which nobody knows by its name.
            Some(found_bytes) if found_bytes == expected_bytes => give_up(store, &[key], until),
            Some(found_bytes) => {
                wrong(format!("the object has {found_bytes} bytes instead of {expected_bytes}"))
            }
            None if is_gone => wrong("neither the parts nor the object are there any more".to_owned()),
            None => wrong("the object is not there".to_owned()),
        }
    }

    fn failed(&self, error: StoreError) -> TransferError {
        match error.cause {
            StoreCause::Stopped(why) => why.into(),
            _ => TransferError::Store { file: self.number, error },
        }
    }
}
