//! Objects to files, or only through the hash.
//!
//! An object of one chunk is got whole. A larger one is got chunk by chunk, and each is written to its place in the
//! file; the file's hash is that of its chunks, so their order does not matter.
//!
//! Invariant: what is told of an object is computed from the bytes that came, all of them, and a file never grows
//! beyond the length that is expected.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{TransferError, run_jobs};
use crate::durable::{FLUSH_BYTES, PathError, begin_flush, create_new};
use crate::objstore::error::{Operation, StoreCause, StoreError};
use crate::objstore::hash::{CHUNK_BYTES, ChunkHash, Content, ContentHash};
use crate::objstore::key::ObjectKey;
use crate::objstore::store::ObjectStore;
use crate::thread::Until;

/// An object that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct FileFetch<'a> {
    /// The object.
    pub key: &'a ObjectKey,
    /// The length that it is expected to have.
    pub length_bytes: u64,
    /// The file that is to be made of it; `None` where only its content is to be known.
    pub path: Option<&'a Path>,
}

struct Fetching<'a> {
    number: usize,
    wanted: FileFetch<'a>,
    state: Mutex<State>,
}

struct State {
    file: Option<Arc<Target>>,
    chunks: Vec<Option<ChunkHash>>,
    /// Nothing more of it is wanted, for it was told to be bad.
    is_over: bool,
}

/// A file that several jobs write at the same time.
struct Target {
    file: File,
    /// Held over each write and each setting aside: the kernel lets one of them go on at a time in a file, and those
    /// that wait for it spin.
    turn: Mutex<()>,
}

impl Target {
    /// Has the disk set a chunk's place aside in one piece, which is cheaper than finding it a write at a time, and
    /// tells of a full disk before anything is written. The file's length stays as it is. File systems that cannot
    /// do this find the place when they write.
    fn reserve(&self, place: Range<u64>) -> io::Result<()> {
        let length_bytes = place.end.saturating_sub(place.start);
        let _turn = self.turn.lock();
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, place.start, length_bytes) {
            Err(full @ (Errno::NOSPC | Errno::DQUOT)) => Err(full.into()),
            _ => Ok(()),
        }
    }

    fn write(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        let _turn = self.turn.lock();
        self.file.write_all_at(bytes, offset_bytes)
    }

    /// Has a chunk go to the disk while others come, a chunk at a time: the disk is asked less often than with each
    /// write. Nothing can interrupt the last flush, so every now and then all that was written is waited for.
    fn flush_chunk(&self, piece: usize, kept_bytes: u64) -> io::Result<()> {
        begin_flush(&self.file, piece as u64 * CHUNK_BYTES, CHUNK_BYTES);
        if kept_bytes.is_multiple_of(FLUSH_BYTES) { self.file.sync_data() } else { Ok(()) }
    }
}

/// What a job found: the content of an object that is there to its end, or why it is not to be had.
type Found = Option<(usize, Result<Content, StoreError>)>;

/// Fetches the objects and tells of each once: its number in `files`, and what came or why nothing came. An object
/// of another length is told as such and not fetched to its end. A file is made new, and it was flushed to the disk
/// when it is told of. The call ends early with the first error of `on_object`.
pub fn fetch_files(
    store: &dyn ObjectStore,
    files: &[FileFetch<'_>],
    until: &Until,
    on_object: &mut dyn FnMut(usize, Result<Content, StoreError>) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let fetching: Vec<Fetching<'_>> =
        files.iter().enumerate().map(|(number, wanted)| Fetching::new(number, *wanted)).collect();
    let jobs: Vec<(&Fetching<'_>, (usize, Range<u64>))> = fetching
        .iter()
        .flat_map(|fetching| {
            let pieces = pieces_of(fetching.wanted.length_bytes).enumerate();
            pieces.map(move |piece| (fetching, piece))
        })
        .collect();
    let work = |(fetching, piece): &(&Fetching<'_>, (usize, Range<u64>)), until: &Until| {
        fetching.fetch(store, piece.clone(), until)
    };
    run_jobs(store.parallel(), &jobs, until, work, &mut |found| match found {
        Some((number, result)) => on_object(number, result),
        None => Ok(()),
    })
}

/// The pieces that an object of so many bytes is got in: one of an empty object, too.
pub(super) fn pieces_of(length_bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count_pieces(length_bytes)).map(move |piece| {
        let start = piece * CHUNK_BYTES;
        start..start.saturating_add(CHUNK_BYTES).min(length_bytes)
    })
}

fn count_pieces(length_bytes: u64) -> u64 {
    length_bytes.div_ceil(CHUNK_BYTES).max(1)
}

/// What came of a piece.
pub(super) enum Piece {
    /// All of it.
    Whole,
    /// The object has another length.
    OtherLength(u64),
    /// The store does not give it.
    Failed(StoreError),
}

/// Gets the bytes `range` of the object, which is expected to have so many. An error of `to` comes back through
/// `local`.
pub(super) fn get_piece(
    store: &dyn ObjectStore,
    (key, length_bytes): (&ObjectKey, u64),
    range: Range<u64>,
    to: &mut dyn Write,
    until: &Until,
    local: impl Fn(io::Error) -> TransferError,
) -> Result<Piece, TransferError> {
    let got = if range == (0..length_bytes) {
        store.get(key, to, until)
    } else {
        store.get_range(key, range, to, until)
    };
    let missing = || StoreError::new(Operation::Get, Some(key), store.describe(), StoreCause::NotFound);
    match got {
        Ok(found_bytes) if found_bytes == length_bytes => Ok(Piece::Whole),
        Ok(found_bytes) => Ok(Piece::OtherLength(found_bytes)),
        Err(StoreError { cause: StoreCause::Stopped(why), .. }) => Err(why.into()),
        Err(StoreError { cause: StoreCause::Receiver(source), .. }) => Err(local(source)),
        Err(StoreError { cause: StoreCause::OutOfRange { .. }, .. }) => Ok(match store.head(key, until) {
            Ok(Some(found_bytes)) => Piece::OtherLength(found_bytes),
            Ok(None) => Piece::Failed(missing()),
            Err(error) => Piece::Failed(error),
        }),
        Err(error) => Ok(Piece::Failed(error)),
    }
}

impl<'a> Fetching<'a> {
    fn new(number: usize, wanted: FileFetch<'a>) -> Self {
        let state = State { file: None, chunks: Vec::new(), is_over: false };
        Self { number, wanted, state: Mutex::new(state) }
    }

    fn fetch(
        &self,
        store: &dyn ObjectStore,
        (piece, range): (usize, Range<u64>),
        until: &Until,
    ) -> Result<Found, TransferError> {
        if self.state.lock().is_over {
            return Ok(None);
        }
        let target = self.target()?;
        target
            .as_deref()
            .map_or(Ok(()), |target| target.reserve(range.clone()))
            .map_err(|source| self.local("make room in", source))?;
        let mut receiver = Receiver {
            target: target.as_deref(),
            position: range.start,
            end: range.end,
            hash: Sha256::new(),
        };
        let object = (self.wanted.key, self.wanted.length_bytes);
        let failed = |source| self.local("write", source);
        match get_piece(store, object, range, &mut receiver, until, failed)? {
            Piece::Whole => {
                let chunk = ChunkHash(receiver.hash.finalize().into());
                self.keep(piece, chunk, target.as_deref())
            }
            Piece::OtherLength(length_bytes) => Ok(self.is_other(length_bytes)),
            Piece::Failed(error) => Ok(self.over(Err(error))),
        }
    }

    /// The file to write to, if one is wanted.
    fn target(&self) -> Result<Option<Arc<Target>>, TransferError> {
        let mut state = self.state.lock();
        if let (None, Some(path)) = (&state.file, self.wanted.path) {
            state.file = Some(Arc::new(Target { file: create_new(path)?, turn: Mutex::new(()) }));
        }
        Ok(state.file.clone())
    }

    /// Takes note of a chunk that is whole. With the last one the object is.
    fn keep(&self, piece: usize, chunk: ChunkHash, target: Option<&Target>) -> Result<Found, TransferError> {
        let mut state = self.state.lock();
        let pieces = usize::try_from(count_pieces(self.wanted.length_bytes)).unwrap_or(usize::MAX);
        state.chunks.resize(pieces, None);
        if let Some(place) = state.chunks.get_mut(piece) {
            *place = Some(chunk);
        }
        let Some(mut chunks) = state.chunks.iter().copied().collect::<Option<Vec<ChunkHash>>>() else {
            let kept_bytes = state.chunks.iter().flatten().count() as u64 * CHUNK_BYTES;
            drop(state);
            target
                .map_or(Ok(()), |target| target.flush_chunk(piece, kept_bytes))
                .map_err(|source| self.local("sync", source))?;
            return Ok(None);
        };
        if std::mem::replace(&mut state.is_over, true) {
            return Ok(None);
        }
        state.file = None;
        drop(state);
        if self.wanted.length_bytes == 0 {
            chunks.clear();
        }
        target
            .map_or(Ok(()), |target| target.file.sync_all())
            .map_err(|source| self.local("sync", source))?;
        let content =
            Content { length_bytes: self.wanted.length_bytes, hash: ContentHash::of_chunks(&chunks) };
        Ok(Some((self.number, Ok(content))))
    }

    /// The object has another length than it was expected to have, so its hash does not matter.
    fn is_other(&self, length_bytes: u64) -> Found {
        self.over(Ok(Content { length_bytes, hash: ContentHash::of_chunks(&[]) }))
    }

    fn over(&self, result: Result<Content, StoreError>) -> Found {
        let mut state = self.state.lock();
        let was_over = std::mem::replace(&mut state.is_over, true);
        (!was_over).then_some((self.number, result))
    }

    fn local(&self, doing: &'static str, source: io::Error) -> TransferError {
        let path = self.wanted.path.unwrap_or(Path::new("")).to_owned();
        PathError { doing, path, source }.into()
    }
}

/// Writes a chunk to its place, and swallows what is beyond its end, so that an object that is too long fills no
/// disk and its length is still known.
struct Receiver<'a> {
    target: Option<&'a Target>,
    position: u64,
    end: u64,
    hash: Sha256,
}

impl Write for Receiver<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let expected = bytes.get(..room).unwrap_or(bytes);
        if let Some(target) = self.target {
            target.write(expected, self.position)?;
        }
        self.hash.update(expected);
        self.position += expected.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
