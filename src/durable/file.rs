//! Files and folders that survive a crash once a call has returned.
//!
//! Invariant: a name is flushed together with what it names, so neither is there without the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::Advice;

use super::path::{AtPath, PathError};

/// A page of memory. Where they are larger, the beginning of one is no worse a place.
const PAGE_BYTES: usize = 4096;

/// Suffix of names that are not finished; whoever finds one may remove it.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

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

/// Has these bytes of a file go to the disk while other things are done. A flush still has to follow, and finds less
/// to do then.
pub fn begin_flush(file: &File, offset_bytes: u64, length_bytes: u64) {
    // Linux begins to write what it is told will not be needed. Where it does not, the flush has it all to do.
    let _ = rustix::fs::fadvise(file, offset_bytes, NonZeroU64::new(length_bytes), Advice::DontNeed);
}

/// Room for the bytes that are read of a file at once. It begins where a page of memory does.
///
/// The kernel copies what it has of a file page by page. Some CPUs take three times as long for that where the target
/// lies 16 bytes further into its page than the source (AMD Zen 3: 0.50 CPU-seconds a GiB instead of 0.17), and 16 bytes
/// into a page is where glibc has whatever is large begin.
#[derive(Debug)]
pub struct PageBuffer(Vec<u8>);

impl PageBuffer {
    /// Room for so many bytes, all of them zero.
    pub fn new(size_bytes: usize) -> Self {
        Self(vec![0; size_bytes.saturating_add(PAGE_BYTES)])
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        let end = self.0.len() - PAGE_BYTES + start;
        self.0.get_mut(start..end).unwrap_or_default()
    }
}

/// A file whose bytes go to the disk while it is written: what is left for the last flush, which nothing can
/// interrupt, is little, and the disk works while the next bytes are made.
#[derive(Debug)]
pub struct Steady<'a> {
    file: &'a File,
    written_bytes: u64,
    unflushed_bytes: u64,
}

/// Bytes that are written to a large file between two flushes.
pub const FLUSH_BYTES: u64 = 64 * 1024 * 1024;

impl<'a> Steady<'a> {
    /// Writes a file that is empty yet.
    pub fn new(file: &'a File) -> Self {
        Self { file, written_bytes: 0, unflushed_bytes: 0 }
    }
}

impl Write for Steady<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        begin_flush(self.file, self.written_bytes, taken as u64);
        self.written_bytes += taken as u64;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_buffer_begins_with_a_page_and_has_the_size_it_was_asked_for() {
        for size_bytes in [0, 1, 4095, 64 * 1024, 1024 * 1024 + 1] {
            let mut buffer = PageBuffer::new(size_bytes);
            assert_eq!(buffer.bytes().len(), size_bytes);
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(PAGE_BYTES), "{size_bytes} bytes");
        }
    }
}
