//! Files of a store against the checksums that it has of them.
//!
//! A pause and a resume believe no file because its name is there: what a store wrote is read again, whole, by one
//! reader for all stores that keep checksums of files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3Default;

use crate::durable::PageBuffer;
use crate::thread::Until;

use super::store::{CheckFault, StoreFault};

/// Bytes that are read at once; in between the caller's limit is asked.
const READ_BYTES: usize = 1024 * 1024;
/// What is wrong with a file whose checksum is another one.
pub(super) const DAMAGED: &str = "it is damaged: its checksum does not match";

/// The XXH3 (128 bits) of what an open file has from its cursor on. An error says that it came while `doing`, at `path`.
pub(super) fn checksum(
    mut file: &File,
    path: &Path,
    doing: &'static str,
    until: &Until,
) -> Result<u128, CheckFault> {
    let (mut hash, mut buffer) = (Xxh3Default::new(), PageBuffer::new(READ_BYTES));
    loop {
        until.check()?;
        let bytes = buffer.bytes();
        match file.read(bytes) {
            Ok(0) => return Ok(hash.digest128()),
            Ok(read) => hash.update(bytes.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreFault::at(doing, path, &error).into()),
        }
    }
}
