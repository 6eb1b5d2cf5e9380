//! The one hash of content in this library.
//!
//! A file is cut into chunks of [`CHUNK_BYTES`]; its [`ContentHash`] is the SHA-256 of the SHA-256 digests of
//! its chunks, one after the other. A chunk is also a part of an upload, so a store that checks each part's
//! digest has checked the file, and an upload can go on after any part without reading the earlier ones again.
//! A file without bytes has no chunks: its hash is the SHA-256 of nothing.
//!
//! Invariant: the hash depends on the bytes alone, not on how they were cut into reads and writes.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::durable::{PageBuffer, hex};
use crate::text::stored_as_text;
use crate::thread::{Stopped, Until};

/// Size of a chunk; only a file's last chunk may be shorter.
pub const CHUNK_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes that are copied at once. Between two such steps the caller's limit is asked.
pub(super) const COPY_BYTES: usize = 1024 * 1024;

/// The hash of a file's content; as text 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

/// The SHA-256 of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHash(pub [u8; 32]);

/// A text is no [`ContentHash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no content hash: it takes 64 lower-case hexadecimal digits")]
pub struct ParseHashError(String);

impl ContentHash {
    /// The hash of the content that has these chunks.
    pub fn of_chunks(chunks: &[ChunkHash]) -> Self {
        let mut all = Sha256::new();
        for chunk in chunks {
            all.update(chunk.0);
        }
        Self(all.finalize().into())
    }
}

/// What passed through a [`HashingWriter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Content {
    /// Number of bytes.
    pub length_bytes: u64,
    /// Their hash.
    pub hash: ContentHash,
}

/// Hands bytes on to another writer and computes their length and hash.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    length_bytes: u64,
    chunk: Sha256,
    chunks: Vec<ChunkHash>,
}

impl<W: Write> HashingWriter<W> {
    /// A writer that no byte has passed yet.
    pub fn new(inner: W) -> Self {
        Self { inner, length_bytes: 0, chunk: Sha256::new(), chunks: Vec::new() }
    }

    /// What has passed, and the writer that took it.
    pub fn finish(self) -> (Content, W) {
        let length_bytes = self.length_bytes;
        let (chunks, inner) = self.into_chunks();
        (Content { length_bytes, hash: ContentHash::of_chunks(&chunks) }, inner)
    }

    /// The writer that takes the bytes.
    pub(super) fn inner(&self) -> &W {
        &self.inner
    }

    /// Number of bytes that have passed so far.
    pub(super) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// The hashes of the chunks that have passed, and the writer that took them.
    pub(super) fn into_chunks(mut self) -> (Vec<ChunkHash>, W) {
        if !self.length_bytes.is_multiple_of(CHUNK_BYTES) {
            self.chunks.push(ChunkHash(self.chunk.finalize().into()));
        }
        (self.chunks, self.inner)
    }

    fn digest(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = CHUNK_BYTES - self.length_bytes % CHUNK_BYTES;
            let taken = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            let (now, later) = bytes.split_at(taken);
            self.chunk.update(now);
            self.length_bytes += now.len() as u64;
            if self.length_bytes.is_multiple_of(CHUNK_BYTES) {
                self.chunks.push(ChunkHash(self.chunk.finalize_reset().into()));
            }
            bytes = later;
        }
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.digest(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Why a file could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The caller's limit ended first.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The file ends before the length that it is said to have.
    #[error("it ends after {found_bytes} of {expected_bytes} bytes")]
    TooShort {
        /// The length it is said to have.
        expected_bytes: u64,
        /// The length it has.
        found_bytes: u64,
    },
    /// The system's word.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The hash of the first `length_bytes` of `file`, whatever its cursor. The limit is asked between reads.
pub fn hash_file(file: &File, length_bytes: u64, until: &Until) -> Result<ContentHash, ReadError> {
    Ok(ContentHash::of_chunks(&hash_chunks(file, length_bytes, until)?))
}

/// The hashes of the chunks of the first `length_bytes` of `file`, in order, as [`hash_file`] reads them.
pub fn hash_chunks(file: &File, length_bytes: u64, until: &Until) -> Result<Vec<ChunkHash>, ReadError> {
    let mut hashing = HashingWriter::new(io::sink());
    read_pieces(file, 0..length_bytes, until, |piece| Ok::<_, ReadError>(hashing.write_all(piece)?))?;
    Ok(hashing.into_chunks().0)
}

/// The hash of the chunk that the bytes `range` of `file` are. Lengths in the error count from its start.
pub(super) fn hash_chunk(file: &File, range: Range<u64>, until: &Until) -> Result<ChunkHash, ReadError> {
    let mut chunk = Sha256::new();
    read_pieces(file, range, until, |piece| {
        chunk.update(piece);
        Ok::<_, ReadError>(())
    })?;
    Ok(ChunkHash(chunk.finalize().into()))
}

/// Reads the bytes `range` of `file` by position, so that the file can be read again by another try, and hands them
/// on in pieces. The limit is asked before each piece. Lengths in the error count from the start of the range.
pub(super) fn read_pieces<E: From<ReadError>>(
    file: &File,
    range: Range<u64>,
    until: &Until,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = PageBuffer::new(COPY_BYTES);
    let mut position = range.start;
    while position < range.end {
        until.check().map_err(ReadError::from)?;
        let rest = usize::try_from(range.end - position).unwrap_or(COPY_BYTES);
        let wanted = buffer.bytes().get_mut(..rest.min(COPY_BYTES)).unwrap_or_default();
        let count = match file.read_at(wanted, position) {
            Ok(0) => {
                let expected_bytes = range.end - range.start;
                let found_bytes = position - range.start;
                return Err(ReadError::TooShort { expected_bytes, found_bytes }.into());
            }
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(ReadError::from(e).into()),
        };
        each(wanted.get(..count).unwrap_or_default())?;
        position += count as u64;
    }
    Ok(())
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl FromStr for ContentHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let refused = || ParseHashError(text.to_owned());
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.is_ascii() {
            return Err(refused());
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = pair
                .iter()
                .try_fold(0, |value, &digit| Some(value << 4 | digit_value(digit)?))
                .ok_or_else(refused)?;
        }
        Ok(Self(bytes))
    }
}

stored_as_text!(ContentHash);

fn digit_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
