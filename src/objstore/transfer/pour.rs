//! Files that are read once, and hashed, encoded and written in the same pass.
//!
//! Invariant: what is told of a file, and of what was written in its place, is computed from the bytes that went by.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::{TransferError, run_jobs};
use crate::durable::{AtPath, PathError, create_new};
use crate::objstore::encoding::{ENCODED_FILE_BYTES_MIN, Encoding, pays};
use crate::objstore::hash::{
    CHUNK_BYTES, ChunkHash, Content, ContentHash, HashingWriter, ReadError, read_pieces,
};
use crate::thread::Until;

/// What a file turned out to hold, and what was written of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// The hashes of the file's chunks.
    pub chunks: Vec<ChunkHash>,
    /// What was written in its place, where it was encoded.
    pub encoded: Option<EncodedContent>,
}

/// Content that was encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedContent {
    /// How.
    pub encoding: Encoding,
    /// Number of encoded bytes.
    pub length_bytes: u64,
    /// The hashes of their chunks.
    pub chunks: Vec<ChunkHash>,
}

impl FileContent {
    /// The file's hash.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of_chunks(&self.chunks)
    }
}

impl EncodedContent {
    /// Length and hash of the encoded bytes.
    pub fn content(&self) -> Content {
        Content { length_bytes: self.length_bytes, hash: ContentHash::of_chunks(&self.chunks) }
    }
}

/// A file that is to be encoded.
#[derive(Debug, Clone, Copy)]
pub struct FileEncode<'a> {
    /// Where the file lies.
    pub path: &'a Path,
    /// How many of its first bytes are meant.
    pub length_bytes: u64,
    /// How it is encoded.
    pub encoding: Encoding,
    /// The file that is made of it; `None` where only its content is to be known.
    pub to: Option<&'a Path>,
}

/// Encodes the files, on up to `parallel` threads, and gives what came of each, in the files' order: nothing of one
/// whose encoding does not pay, and no file either. What is made is not flushed to the disk.
pub fn encode_files(
    parallel: usize,
    files: &[FileEncode<'_>],
    until: &Until,
) -> Result<Vec<Option<FileContent>>, TransferError> {
    let jobs: Vec<usize> = (0..files.len()).collect();
    let work = |&number: &usize, until: &Until| {
        let found = files.get(number).map(|file| encode(file, until)).transpose()?;
        Ok((number, found.flatten()))
    };
    let mut found = vec![None; files.len()];
    run_jobs(parallel, &jobs, until, work, &mut |(number, content)| {
        if let Some(place) = found.get_mut(number) {
            *place = content;
        }
        Ok(())
    })?;
    Ok(found)
}

fn encode(file: &FileEncode<'_>, until: &Until) -> Result<Option<FileContent>, TransferError> {
    let FileEncode { path, length_bytes, encoding, to } = *file;
    let from = File::open(path).at("open", path)?;
    let poured = match to {
        None => pour(&from, length_bytes, Some(encoding), io::sink(), until),
        Some(to) => {
            let poured = pour(&from, length_bytes, Some(encoding), create_new(to)?, until);
            if !matches!(poured, Ok(Some(_))) {
                fs::remove_file(to).at("remove", to)?;
            }
            poured
        }
    };
    poured.map_err(|error| match error {
        PourError::Read(ReadError::Stopped(why)) => why.into(),
        PourError::Read(ReadError::Io(source)) => {
            PathError { doing: "read", path: path.to_owned(), source }.into()
        }
        PourError::Read(short) => TransferError::Short { path: path.to_owned(), what: short.to_string() },
        PourError::Write(source) => {
            PathError { doing: "write", path: to.unwrap_or(path).to_owned(), source }.into()
        }
    })
}

/// Which side of a pass failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PourError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Write(io::Error),
}

/// Why a pass ends early.
enum End {
    Failed(PourError),
    DoesNotPay,
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        Self::Failed(error.into())
    }
}

/// Reads the first bytes of a file and writes them, encoded if wanted. Nothing comes back where that does not pay, and
/// `to` may have taken a part of it then.
pub(super) fn pour(
    file: &File,
    length_bytes: u64,
    encoding: Option<Encoding>,
    to: impl Write,
    until: &Until,
) -> Result<Option<FileContent>, PourError> {
    let poured = match encoding {
        Some(_) if length_bytes < ENCODED_FILE_BYTES_MIN => Err(End::DoesNotPay),
        Some(encoding) => pour_encoded(file, length_bytes, encoding, to, until),
        None => pour_as_it_is(file, length_bytes, to, until),
    };
    match poured {
        Ok(content) => Ok(Some(content)),
        Err(End::DoesNotPay) => Ok(None),
        Err(End::Failed(error)) => Err(error),
    }
}

fn write_failed(error: io::Error) -> End {
    End::Failed(PourError::Write(error))
}

fn pour_as_it_is(file: &File, length_bytes: u64, to: impl Write, until: &Until) -> Result<FileContent, End> {
    let mut to = HashingWriter::new(to);
    read_pieces(file, 0..length_bytes, until, |piece| to.write_all(piece).map_err(write_failed))?;
    Ok(FileContent { chunks: to.into_chunks().0, encoded: None })
}

fn pour_encoded(
    file: &File,
    length_bytes: u64,
    encoding: Encoding,
    to: impl Write,
    until: &Until,
) -> Result<FileContent, End> {
    let packing = encoding.encoder(HashingWriter::new(to), length_bytes).map_err(write_failed)?;
    let mut to = HashingWriter::new(packing);
    read_pieces(file, 0..length_bytes, until, |piece| {
        to.write_all(piece).map_err(write_failed)?;
        let (read_bytes, written_bytes) = (to.length_bytes(), to.inner().get_ref().length_bytes());
        // The first chunk speaks for the others.
        if read_bytes == CHUNK_BYTES && !pays(written_bytes, read_bytes) {
            return Err(End::DoesNotPay);
        }
        Ok(())
    })?;
    let (chunks, packing) = to.into_chunks();
    let to = packing.finish().map_err(write_failed)?;
    let encoded_bytes = to.length_bytes();
    if !pays(encoded_bytes, length_bytes) {
        return Err(End::DoesNotPay);
    }
    let encoded = EncodedContent { encoding, length_bytes: encoded_bytes, chunks: to.into_chunks().0 };
    Ok(FileContent { chunks, encoded: Some(encoded) })
}
