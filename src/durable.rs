//! Files that are there whole or not at all.
//!
//! Everything small that this library must not lose — a bucket's metadata, a shard's, an archive's manifest — is
//! written by [`replace`]: to a temporary name, flushed to the disk, renamed into place, and the folder flushed.
//! A reader therefore sees the old content or the new one. [`seal`] and [`unseal`] put a header with a checksum
//! before a JSON document, so that damage is found before a single field is believed:
//!
//! ```text
//! dormouse <kind> <format version> <SHA-256 of the rest, hex>\n
//! {…}
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::thread::Process;

/// Suffix of names that are not finished; whoever finds one may remove it.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// An I/O error that names its path and what was being done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct PathError {
    /// The verb, such as `read`.
    pub doing: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Gives an I/O result its path: `fs::read(p).at("read", p)`.
pub trait AtPath<T> {
    /// Wraps the error, if there is one.
    fn at(self, doing: &'static str, path: &Path) -> Result<T, PathError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, PathError> {
        self.map_err(|source| PathError { doing, path: path.to_owned(), source })
    }
}

/// Creates a file that only its owner may read, which must not exist yet.
pub fn create_new(path: &Path) -> Result<File, PathError> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).at("create", path)
}

/// Makes a folder, and those above it that are missing, durably.
pub fn create_folders(path: &Path) -> Result<(), PathError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.is_dir()).collect();
    fs::create_dir_all(path).at("create the folder", path)?;
    missing.into_iter().try_for_each(sync_parent)
}

fn sync_parent(path: &Path) -> Result<(), PathError> {
    match path.parent() {
        // The parent of a plain name is where the process stands.
        Some(parent) if parent.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

/// Flushes a folder's entries to the disk.
pub fn sync_folder(path: &Path) -> Result<(), PathError> {
    File::open(path).and_then(|folder| folder.sync_all()).at("sync the folder", path)
}

/// A file that is flushed now and then while it is written: what is left for the last flush, which nothing can
/// interrupt, is little.
#[derive(Debug)]
pub struct Steady<'a> {
    file: &'a File,
    unflushed_bytes: u64,
}

/// Bytes that are written to a large file between two flushes.
pub const FLUSH_BYTES: u64 = 64 * 1024 * 1024;

impl<'a> Steady<'a> {
    /// Writes where the file's cursor stands.
    pub fn new(file: &'a File) -> Self {
        Self { file, unflushed_bytes: 0 }
    }
}

impl Write for Steady<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.unflushed_bytes += taken as u64;
        if self.unflushed_bytes >= FLUSH_BYTES {
            self.file.sync_data()?;
            self.unflushed_bytes = 0;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes `path` hold `content`, durably and in one step. Nobody else may write the same path at the same time.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), PathError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at("remove", &temporary),
        _ => {}
    }
    let mut file = create_new(&temporary)?;
    file.write_all(content).at("write", &temporary)?;
    file.sync_all().at("sync", &temporary)?;
    fs::rename(&temporary, path).at("put in place", path)?;
    sync_parent(path)
}

/// A file that is locked against every other opening of it, in this process or another, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    file: File,
    process: Process,
}

impl Claim {
    /// Locks the file at `path`. It comes back where somebody else has it locked.
    pub fn take(file: File, path: &Path) -> Result<Result<Self, File>, PathError> {
        match file.try_lock() {
            Ok(()) => Ok(Ok(Self { file, process: Process::current() })),
            Err(TryLockError::WouldBlock) => Ok(Err(file)),
            Err(TryLockError::Error(source)) => Err(source).at("lock", path)?,
        }
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The process that it belongs to.
    pub fn process(&self) -> Process {
        self.process
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing does not give the lock back while a program that the host is starting still has a copy of the
        // file; and a copy in a forked process must not give it back. What fails here, closing mends.
        if self.process.is_current() {
            let _ = self.file.unlock();
        }
    }
}

/// Why there is no room for something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoomError {
    /// There is too little.
    #[error("{} has room for {free_bytes} bytes, and {needed_bytes} are needed; free some", folder.display())]
    TooLittle {
        /// The folder that was to take it.
        folder: PathBuf,
        /// How much there is.
        free_bytes: u64,
        /// How much there has to be.
        needed_bytes: u64,
    },
    /// The system does not say how much there is.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Bytes that the folder's disk has room for.
pub fn free_bytes(folder: &Path) -> Result<u64, PathError> {
    let disk = rustix::fs::statvfs(folder).map_err(io::Error::from).at("look at the disk of", folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether the folder's disk has room for so much more, as far as can be told beforehand.
pub fn require_room(folder: &Path, needed_bytes: u64) -> Result<(), RoomError> {
    let free_bytes = free_bytes(folder)?;
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(RoomError::TooLittle { folder: folder.to_owned(), free_bytes, needed_bytes })
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a sealed document was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnsealError {
    /// The header is not one of ours.
    #[error("it is no dormouse {kind} or its first line is damaged")]
    Header {
        /// What was expected.
        kind: &'static str,
    },
    /// The content is not what was written.
    #[error("it is damaged: its checksum does not match")]
    Checksum,
    /// Written by a version that this one does not know.
    #[error("it has format version {found}, this program reads version {known}: use a newer dormouse")]
    Version {
        /// Version in the header.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The checksum is right and the content is not: written by a defective program.
    #[error("its content is not understood: {0}")]
    Content(String),
}

/// A JSON document behind a header with kind, format version and checksum.
pub fn seal<T: Serialize>(kind: &str, version: u32, document: &T) -> serde_json::Result<Vec<u8>> {
    let mut body = serde_json::to_vec_pretty(document)?;
    body.push(b'\n');
    let mut sealed = format!("dormouse {kind} {version} {}\n", hex(&Sha256::digest(&body))).into_bytes();
    sealed.append(&mut body);
    Ok(sealed)
}

/// Checks what [`seal`] wrote and gives back the document.
pub fn unseal<T: DeserializeOwned>(
    kind: &'static str,
    version: u32,
    sealed: &[u8],
) -> Result<T, UnsealError> {
    unseal_any(kind, version..=version, sealed).map(|(_, document)| document)
}

/// Checks what [`seal`] wrote in one of several versions, and gives back which that is and the document.
pub fn unseal_any<T: DeserializeOwned>(
    kind: &'static str,
    versions: RangeInclusive<u32>,
    sealed: &[u8],
) -> Result<(u32, T), UnsealError> {
    let header_error = || UnsealError::Header { kind };
    let end = sealed.iter().position(|byte| *byte == b'\n').ok_or_else(header_error)?;
    let (header, body) = sealed.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let header = std::str::from_utf8(header).map_err(|_| header_error())?;
    let words: Vec<&str> = header.split(' ').collect();
    let [magic, found_kind, found_version, checksum] = words[..] else {
        return Err(header_error());
    };
    if magic != "dormouse" || found_kind != kind {
        return Err(header_error());
    }
    let found: u32 = found_version.parse().map_err(|_| header_error())?;
    if checksum != hex(&Sha256::digest(body)) {
        return Err(UnsealError::Checksum);
    }
    if !versions.contains(&found) {
        return Err(UnsealError::Version { found, known: *versions.end() });
    }
    let document = serde_json::from_slice(body).map_err(|e| UnsealError::Content(e.to_string()))?;
    Ok((found, document))
}
