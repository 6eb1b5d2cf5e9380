//! The files of parts and logs: blocks, each behind its length and checksum.
//!
//! ```text
//! "dmpart\0\1" or "dmlog\0\0\1"
//! length u32 | xxh3 (64 bits) of the block | block        as often as there are blocks
//! ```
//!
//! Numbers are big-endian. The manifest names a file with its length and the xxh3 (128 bits) of the whole, so the
//! file itself needs no end mark. A block is believed, and used, only after its own checksum was right, and a
//! file only after that of the whole was.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::durable;
use crate::thread::Until;

use super::super::checksum::{DAMAGED, checksum};
use super::super::store::{CheckFault, StoreFault};

const MAGIC_BYTES: usize = 8;
const HEAD_BYTES: usize = 4 + 8;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Leaves of one map, in the order of their keys.
    Part,
    /// Operations in the order in which they were done.
    Log,
}

/// Name of a file. Numbers are never used twice for files that a manifest named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileName {
    pub(super) kind: Kind,
    pub(super) number: u64,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Part => write!(f, "part-{}", self.number),
            Kind::Log => write!(f, "log-{}", self.number),
        }
    }
}

/// A file as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRef {
    pub(super) number: u64,
    pub(super) length_bytes: u64,
    /// Of the whole file, as 32 hexadecimal digits.
    pub(super) xxh3: String,
}

impl Kind {
    fn magic(self) -> &'static [u8; MAGIC_BYTES] {
        match self {
            Self::Part => b"dmpart\0\x01",
            Self::Log => b"dmlog\0\0\x01",
        }
    }

    pub(super) fn name(self, number: u64) -> FileName {
        FileName { kind: self, number }
    }
}

fn digits(xxh3: u128) -> String {
    format!("{xxh3:032x}")
}

fn compare(xxh3: u128, expected: &str) -> io::Result<()> {
    if digits(xxh3) == expected { Ok(()) } else { Err(io::Error::other(DAMAGED)) }
}

/// A file that is being written. Nothing names it before [`Writer::finish`].
pub(super) struct Writer {
    file: BufWriter<File>,
    number: u64,
    hash: Xxh3Default,
    length_bytes: u64,
}

impl Writer {
    pub(super) fn create(folder: &Path, name: FileName) -> Result<Self, durable::PathError> {
        let file = BufWriter::new(durable::create_new(&folder.join(name.to_string()))?);
        let mut writer = Self { file, number: name.number, hash: Xxh3Default::new(), length_bytes: 0 };
        // What is buffered cannot fail yet.
        let _ = writer.write(name.kind.magic());
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.length_bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Adds a block.
    pub(super) fn block(&mut self, block: &[u8]) -> io::Result<()> {
        let length = u32::try_from(block.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.write(&length.to_be_bytes())?;
        self.write(&xxh3_64(block).to_be_bytes())?;
        self.write(block)
    }

    pub(super) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// Makes the content durable; the folder's entry is the caller's.
    pub(super) fn finish(mut self) -> io::Result<FileRef> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let xxh3 = digits(self.hash.digest128());
        Ok(FileRef { number: self.number, length_bytes: self.length_bytes, xxh3 })
    }
}

/// Reads a file block by block.
pub(super) struct Reader {
    file: File,
    left_bytes: u64,
    hash: Xxh3Default,
    xxh3: String,
}

impl Reader {
    /// Opens a file that has the length that the manifest names.
    pub(super) fn open(folder: &Path, kind: Kind, of: &FileRef) -> io::Result<Self> {
        let mut file = File::open(folder.join(kind.name(of.number).to_string()))?;
        check_length(&file, of)?;
        let mut magic = [0; MAGIC_BYTES];
        file.read_exact(&mut magic)?;
        if magic != *kind.magic() {
            return Err(io::Error::other("it is no file of this kind, or of a newer version"));
        }
        let mut hash = Xxh3Default::new();
        hash.update(&magic);
        let left_bytes = of.length_bytes - MAGIC_BYTES as u64;
        Ok(Self { file, left_bytes, hash, xxh3: of.xxh3.clone() })
    }

    /// Fills `block` with the next block, whose checksum is right. `false` at the end of a file that as a whole
    /// is what the manifest names.
    pub(super) fn next(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        if self.left_bytes == 0 {
            return compare(self.hash.digest128(), &self.xxh3).map(|()| false);
        }
        let mut head = [0; HEAD_BYTES];
        self.file.read_exact(&mut head)?;
        let (length, sum) = head.split_at(4);
        let (Ok(length), Ok(sum)) = (length.try_into().map(u32::from_be_bytes), sum.try_into()) else {
            return Err(io::Error::other(DAMAGED));
        };
        self.left_bytes = (self.left_bytes.checked_sub(HEAD_BYTES as u64))
            .and_then(|left| left.checked_sub(u64::from(length)))
            .ok_or_else(|| io::Error::other(DAMAGED))?;
        block.resize(length as usize, 0);
        self.file.read_exact(block)?;
        if xxh3_64(block) != u64::from_be_bytes(sum) {
            return Err(io::Error::other(DAMAGED));
        }
        self.hash.update(&head);
        self.hash.update(block);
        Ok(true)
    }
}

fn check_length(file: &File, of: &FileRef) -> io::Result<()> {
    let found = file.metadata()?.len();
    if found == of.length_bytes {
        return Ok(());
    }
    let cause = format!("it is damaged: it has {found} bytes and should have {}", of.length_bytes);
    Err(io::Error::other(cause))
}

/// Compares a whole file with what the manifest says of it.
pub(super) fn check(folder: &Path, kind: Kind, of: &FileRef, until: &Until) -> Result<(), CheckFault> {
    let doing = "check the store";
    let path = folder.join(kind.name(of.number).to_string());
    let fault = |error: io::Error| StoreFault::at(doing, &path, &error);
    let file = File::open(&path).map_err(fault)?;
    check_length(&file, of).map_err(fault)?;
    let xxh3 = checksum(&file, &path, doing, until)?;
    Ok(compare(xxh3, &of.xxh3).map_err(fault)?)
}
