//! Folders beside a store's own files: recovery points that are kept, and files that are pinned.
//!
//! ```text
//! points/7/        a kept recovery point: its files, and point.meta
//! pins/3/          pinned files
//! ```
//!
//! A recovery point's folder is filled under a temporary name, so it is there whole or not at all. Pinned files
//! last no longer than the process. What neither names is removed when the store is opened.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::durable::{self, TEMPORARY_SUFFIX};

use super::store::{PointId, RecoveryPoint, StoreFault};

const POINTS: &str = "points";
const POINT_FILE: &str = "point.meta";
const POINT_KIND: &str = "recovery-point";
const PINS: &str = "pins";
const VERSION: u32 = 1;

/// Removes a folder; one that is not there is fine.
pub(super) fn remove(folder: &Path, doing: &'static str) -> Result<(), StoreFault> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreFault::at(doing, folder, &error))
        }
        _ => Ok(()),
    }
}

/// Removes recovery points that were never finished, and files that were pinned.
pub(super) fn remove_leftovers(shard_folder: &Path, doing: &'static str) -> Result<(), StoreFault> {
    remove(&shard_folder.join(PINS), doing)?;
    for entry in fs::read_dir(shard_folder.join(POINTS)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
            remove(&entry.path(), doing)?;
        }
    }
    Ok(())
}

pub(super) fn point_folder(shard_folder: &Path, point: PointId) -> PathBuf {
    shard_folder.join(POINTS).join(point.to_string())
}

/// Keeps a recovery point whose files `fill` puts into the folder that it is given.
pub(super) fn keep(
    shard_folder: &Path,
    point: &RecoveryPoint,
    fill: impl FnOnce(&Path) -> Result<(), StoreFault>,
) -> Result<(), StoreFault> {
    let doing = "keep a recovery point";
    let folder = point_folder(shard_folder, point.id);
    let unfinished = folder.with_extension("tmp");
    remove(&unfinished, doing)?;
    remove(&folder, doing)?;
    fs::create_dir_all(&unfinished).map_err(|e| StoreFault::at(doing, &unfinished, &e))?;
    fill(&unfinished)?;
    let sealed = durable::seal(POINT_KIND, VERSION, point).map_err(|e| StoreFault::new(doing, &e))?;
    durable::replace(&unfinished.join(POINT_FILE), &sealed).map_err(|e| StoreFault::new(doing, &e))?;
    fs::rename(&unfinished, &folder).map_err(|e| StoreFault::at(doing, &folder, &e))?;
    durable::sync_folder(&shard_folder.join(POINTS))
        .and_then(|()| durable::sync_folder(shard_folder))
        .map_err(|e| StoreFault::new(doing, &e))
}

/// Keeps a recovery point no longer; one that is not there is fine.
pub(super) fn forget(shard_folder: &Path, point: PointId) -> Result<(), StoreFault> {
    let doing = "forget a recovery point";
    let folder = point_folder(shard_folder, point);
    let unwanted = folder.with_extension("tmp");
    remove(&unwanted, doing)?;
    // A removal that breaks off half-way must leave no point that can be gone back to.
    match fs::rename(&folder, &unwanted) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreFault::at(doing, &folder, &error)),
        Ok(()) => remove(&unwanted, doing),
    }
}

/// Keeps none of the recovery points after `to` any longer, or with `None` none at all. Done before a roll-back is
/// made: where that breaks off, there is none of a time that was given up.
pub(super) fn forget_after(shard_folder: &Path, to: Option<PointId>) -> Result<(), StoreFault> {
    let points = list(shard_folder)?;
    points
        .iter()
        .filter(|point| to.is_none_or(|to| point.id > to))
        .try_for_each(|point| forget(shard_folder, point.id))
}

/// The recovery points that are kept, ascending.
pub(super) fn list(shard_folder: &Path) -> Result<Vec<RecoveryPoint>, StoreFault> {
    let doing = "list the recovery points";
    let folder = shard_folder.join(POINTS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreFault::at(doing, &folder, &error)),
    };
    let mut points = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| StoreFault::at(doing, &folder, &e))?;
        if entry.file_name().to_string_lossy().parse::<u64>().is_ok() {
            let path = entry.path().join(POINT_FILE);
            let sealed = fs::read(&path).map_err(|e| StoreFault::at(doing, &path, &e))?;
            let point: RecoveryPoint = durable::unseal(POINT_KIND, VERSION, &sealed)
                .map_err(|why| StoreFault::at(doing, &path, &why))?;
            points.push(point);
        }
    }
    points.sort_by_key(|point| point.id);
    Ok(points)
}

/// Bytes of all files below a folder; one that has several names there counts once.
pub(super) fn folder_bytes(folder: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        // A file that goes while it is looked for takes no room.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if seen.insert(meta.ino()) => bytes += meta.len(),
                _ => {}
            }
        }
    }
    bytes
}

/// Folders of pinned files, each with what tells whether they still are.
pub(super) struct Pins {
    folder: PathBuf,
    held: Mutex<Vec<(Weak<()>, PathBuf)>>,
    next: AtomicU64,
}

impl Pins {
    pub(super) fn of(shard_folder: &Path) -> Self {
        Self { folder: shard_folder.join(PINS), held: Mutex::default(), next: AtomicU64::new(1) }
    }

    /// Makes an empty folder, which may go once the hold that comes with it is dropped.
    pub(super) fn add(&self, doing: &'static str) -> Result<(PathBuf, Arc<()>), StoreFault> {
        let folder = self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(&folder).map_err(|e| StoreFault::at(doing, &folder, &e))?;
        let hold = Arc::new(());
        // Known before it is filled: what a failure leaves there is removed like the rest.
        self.held.lock().push((Arc::downgrade(&hold), folder.clone()));
        Ok((folder, hold))
    }

    /// Removes one folder that nobody holds any more. Gives back whether there was one.
    pub(super) fn remove_unused(&self, doing: &'static str) -> Result<bool, StoreFault> {
        let unused = {
            let mut held = self.held.lock();
            let place = held.iter().position(|(hold, _)| hold.strong_count() == 0);
            place.map(|place| held.remove(place).1)
        };
        match unused {
            Some(folder) => remove(&folder, doing).map(|()| true),
            None => Ok(false),
        }
    }
}
