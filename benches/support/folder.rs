//! How much a folder holds on disk, and when it has come to rest.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes on disk of all files below a folder.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let bytes = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        // A merge may remove it meanwhile.
        let meta = fs::metadata(&path).ok()?;
        Some(if meta.is_dir() { folder_bytes(&path) } else { meta.blocks() * 512 })
    };
    fs::read_dir(folder).map_or(0, |entries| entries.filter_map(bytes).sum())
}

/// Waits until no merge changes the files any more.
pub(crate) fn settle(folder: &Path) {
    let quiet = Duration::from_millis(1500);
    let mut last = (Instant::now(), folder_bytes(folder));
    while last.0.elapsed() < quiet {
        std::thread::sleep(Duration::from_millis(50));
        let bytes = folder_bytes(folder);
        if bytes != last.1 {
            last = (Instant::now(), bytes);
        }
    }
}
