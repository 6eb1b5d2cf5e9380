//! How much a disk has room for, asked before much is written to it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::path::{AtPath, PathError};

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

/// Bytes that the folder's disk has room for. A folder that is not there yet would be on the disk of the one above it.
pub fn free_bytes(folder: &Path) -> Result<u64, PathError> {
    let mut disk = Err(Errno::NOENT);
    for there in folder.ancestors() {
        // What is above a plain name is where the process stands.
        disk = rustix::fs::statvfs(if there.as_os_str().is_empty() { Path::new(".") } else { there });
        if !matches!(disk, Err(Errno::NOENT)) {
            break;
        }
    }
    let disk = disk.map_err(io::Error::from).at("look at the disk of", folder)?;
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
