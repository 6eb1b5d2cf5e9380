//! Encoded objects to files, or only through the hashes.
//!
//! A frame is decoded from its start to its end, so the chunks of an object come one after the other; several objects
//! come at the same time.
//!
//! Invariant: what is told of an object and of what is in it is computed from the bytes that came, all of them, and a
//! file never grows beyond the length that is expected.

use std::io::{self, Write};
use std::path::Path;

use zstd::stream::write::Decoder;

use super::download::{Piece, get_piece, pieces_of};
use super::{TransferError, run_jobs};
use crate::durable::{AtPath, PathError, Steady, create_new};
use crate::objstore::encoding::Encoding;
use crate::objstore::error::StoreError;
use crate::objstore::hash::{Content, ContentHash, HashingWriter};
use crate::objstore::key::ObjectKey;
use crate::objstore::store::ObjectStore;
use crate::thread::Until;

/// An encoded object that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct EncodedFetch<'a> {
    /// The object.
    pub key: &'a ObjectKey,
    /// The length that it is expected to have.
    pub object_bytes: u64,
    /// How it is encoded.
    pub encoding: Encoding,
    /// The length that the file in it is expected to have.
    pub file_bytes: u64,
    /// The file that is to be made of it; `None` where only its content is to be known.
    pub path: Option<&'a Path>,
}

/// What an encoded object turned out to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The object.
    pub object: Content,
    /// The file in it, or why it cannot be decoded.
    pub file: Result<Content, String>,
}

/// Fetches the objects, decodes them, and tells of each once, as [`fetch_files`](super::fetch_files) does.
pub fn fetch_encoded(
    store: &dyn ObjectStore,
    files: &[EncodedFetch<'_>],
    until: &Until,
    on_object: &mut dyn FnMut(usize, Result<Decoded, StoreError>) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let jobs: Vec<(usize, EncodedFetch<'_>)> = files.iter().copied().enumerate().collect();
    let work = |(number, wanted): &(usize, EncodedFetch<'_>), until: &Until| {
        fetch(store, wanted, until).map(|found| (*number, found))
    };
    run_jobs(store.parallel(), &jobs, until, work, &mut |(number, found)| on_object(number, found))
}

fn fetch(
    store: &dyn ObjectStore,
    wanted: &EncodedFetch<'_>,
    until: &Until,
) -> Result<Result<Decoded, StoreError>, TransferError> {
    let local = |doing, source| {
        let path = wanted.path.unwrap_or(Path::new("")).to_owned();
        TransferError::from(PathError { doing, path, source })
    };
    let file = wanted.path.map(create_new).transpose()?;
    let bounded = Bounded {
        file: file.as_ref().map(Steady::new),
        left_bytes: wanted.file_bytes,
        content: HashingWriter::new(io::sink()),
        has_failed: false,
    };
    let mut unpacking =
        Unpacking::new(wanted.encoding, bounded).map_err(|error| local("decode the content of", error))?;
    for range in pieces_of(wanted.object_bytes) {
        let failed = |source| local("write", source);
        match get_piece(store, (wanted.key, wanted.object_bytes), range, &mut unpacking, until, failed)? {
            Piece::Whole => {}
            Piece::OtherLength(length_bytes) => {
                let object = Content { length_bytes, hash: ContentHash::of_chunks(&[]) };
                return Ok(Ok(Decoded { object, file: Err("it is not whole".to_owned()) }));
            }
            Piece::Failed(error) => return Ok(Err(error)),
        }
    }
    let decoded = unpacking.finish().map_err(|error| local("write", error))?;
    if let (Some(file), Some(path)) = (&file, wanted.path) {
        file.sync_all().at("sync", path)?;
    }
    Ok(Ok(decoded))
}

/// Takes the bytes of an object. One that cannot be decoded any further is still hashed to its end, which tells
/// whether it was damaged or never right.
struct Unpacking<'a> {
    object: HashingWriter<io::Sink>,
    decoder: Decoder<'static, Bounded<'a>>,
    problem: Option<String>,
}

impl<'a> Unpacking<'a> {
    fn new(encoding: Encoding, to: Bounded<'a>) -> io::Result<Self> {
        Ok(Self { object: HashingWriter::new(io::sink()), decoder: encoding.decoder(to)?, problem: None })
    }

    /// Takes the decoder's error for what it is: of the file, which comes back, or of what is in the object.
    fn note(&mut self, decoded: io::Result<()>) -> io::Result<()> {
        match decoded {
            Err(error) if self.decoder.get_ref().has_failed => Err(error),
            Err(error) => {
                self.problem = Some(error.to_string());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn finish(mut self) -> io::Result<Decoded> {
        if self.problem.is_none() {
            let flushed = self.decoder.flush();
            self.note(flushed)?;
        }
        let object = self.object.finish().0;
        let Bounded { content, left_bytes, .. } = self.decoder.into_inner();
        let content = content.finish().0;
        let file = match self.problem {
            Some(problem) => Err(problem),
            None if left_bytes > 0 => Err(format!(
                "it ends after {} of {} bytes",
                content.length_bytes,
                content.length_bytes + left_bytes
            )),
            None => Ok(content),
        };
        Ok(Decoded { object, file })
    }
}

impl Write for Unpacking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.object.write_all(bytes)?;
        if self.problem.is_none() {
            let decoded = self.decoder.write_all(bytes);
            self.note(decoded)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what was decoded, and no more than is expected.
struct Bounded<'a> {
    file: Option<Steady<'a>>,
    left_bytes: u64,
    content: HashingWriter<io::Sink>,
    /// The file, not what was to be decoded.
    has_failed: bool,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left_bytes) = self.left_bytes.checked_sub(bytes.len() as u64) else {
            return Err(io::Error::other("it holds more than the file has"));
        };
        if let Some(file) = &mut self.file {
            file.write_all(bytes).inspect_err(|_| self.has_failed = true)?;
        }
        self.content.write_all(bytes)?;
        self.left_bytes = left_bytes;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
