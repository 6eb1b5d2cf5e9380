//! Which folder holds the tree, and how the tree gets back to a recovery point.
//!
//! ```text
//! lsm/             the tree, in a shard that was never rolled back
//! lsm-live         names the tree's folder otherwise: lsm-1, lsm-2, …
//! ```
//!
//! A roll-back fills a new folder and then names it in `lsm-live`, in one step. The old tree may still be read;
//! its folder goes when nobody holds it any more. Whatever no name leads to is removed when the store is opened.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable;

use super::super::kept;
use super::super::store::StoreFault;
use super::FOLDER;

const LIVE_FILE: &str = "lsm-live";
const LIVE_KIND: &str = "live-tree";
const VERSION: u32 = 1;

/// How often the tree's folder was replaced by a roll-back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Life(pub(super) u64);

impl Life {
    pub(super) fn read(shard_folder: &Path) -> Result<Self, StoreFault> {
        let doing = "find the tree";
        let path = shard_folder.join(LIVE_FILE);
        match fs::read(&path) {
            Ok(sealed) => {
                durable::unseal(LIVE_KIND, VERSION, &sealed).map_err(|why| StoreFault::at(doing, &path, &why))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(StoreFault::at(doing, &path, &error)),
        }
    }

    pub(super) fn write(self, shard_folder: &Path) -> Result<(), StoreFault> {
        let doing = "put the rolled-back tree in place";
        let sealed = durable::seal(LIVE_KIND, VERSION, &self).map_err(|e| StoreFault::new(doing, &e))?;
        durable::replace(&shard_folder.join(LIVE_FILE), &sealed).map_err(|e| StoreFault::new(doing, &e))
    }

    pub(super) fn folder(self, shard_folder: &Path) -> PathBuf {
        shard_folder.join(match self.0 {
            0 => FOLDER.to_owned(),
            n => format!("{FOLDER}-{n}"),
        })
    }
}

/// Where a file lies that a recovery point names: `lsm/…` is in whichever folder holds the tree.
pub(in crate::shard) fn local_file(shard_folder: &Path, name: &str) -> Result<PathBuf, StoreFault> {
    match name.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) => Ok(Life::read(shard_folder)?.folder(shard_folder).join(rest)),
        None => Ok(shard_folder.join(name)),
    }
}

/// Removes the folders of trees that were rolled back, of unfinished recovery points and of pinned files.
pub(super) fn remove_leftovers(shard_folder: &Path, live: Life) -> Result<(), StoreFault> {
    let doing = "clear the shard's folder";
    kept::remove_leftovers(shard_folder, doing)?;
    let live = live.folder(shard_folder);
    let entries = fs::read_dir(shard_folder).map_err(|e| StoreFault::at(doing, shard_folder, &e))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_tree = name == FOLDER || name.starts_with("lsm-") && name != LIVE_FILE;
        if is_tree && entry.path() != live && entry.path().is_dir() {
            kept::remove(&entry.path(), doing)?;
        }
    }
    Ok(())
}
