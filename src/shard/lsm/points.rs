//! Recovery points that are kept, files that are pinned, and how the tree gets back to one.
//!
//! ```text
//! lsm/             the tree, in a shard that was never rolled back
//! lsm-live         names the tree's folder otherwise: lsm-1, lsm-2, …
//! points/7/        a kept recovery point: second names of its files, and point.meta
//! pins/3/          pinned files
//! ```
//!
//! A roll-back fills a new folder and then names it in `lsm-live`, in one step. The old tree may still be read;
//! its folder goes when nobody holds it any more. Whatever no name leads to is removed when the store is opened.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{self, TEMPORARY_SUFFIX};

use super::super::store::{PointId, RecoveryPoint, StoreFault};
use super::FOLDER;

const LIVE_FILE: &str = "lsm-live";
const LIVE_KIND: &str = "live-tree";
const POINTS: &str = "points";
const POINT_FILE: &str = "point.meta";
const POINT_KIND: &str = "recovery-point";
const PINS: &str = "pins";
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

/// Removes the folders of trees that were rolled back, of unfinished recovery points and of pinned files.
pub(super) fn remove_leftovers(shard_folder: &Path, live: Life) -> Result<(), StoreFault> {
    let doing = "clear the shard's folder";
    let live = live.folder(shard_folder);
    remove(&shard_folder.join(PINS), doing)?;
    let entries = fs::read_dir(shard_folder).map_err(|e| StoreFault::at(doing, shard_folder, &e))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_tree = name == FOLDER || name.starts_with("lsm-") && name != LIVE_FILE;
        if is_tree && entry.path() != live && entry.path().is_dir() {
            remove(&entry.path(), doing)?;
        }
    }
    for entry in fs::read_dir(shard_folder.join(POINTS)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
            remove(&entry.path(), doing)?;
        }
    }
    Ok(())
}

/// Removes a folder; one that is not there is fine.
pub(super) fn remove(folder: &Path, doing: &'static str) -> Result<(), StoreFault> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreFault::at(doing, folder, &error))
        }
        _ => Ok(()),
    }
}

pub(super) fn point_folder(shard_folder: &Path, point: PointId) -> PathBuf {
    shard_folder.join(POINTS).join(point.to_string())
}

pub(super) fn pin_folder(shard_folder: &Path, number: u64) -> PathBuf {
    shard_folder.join(PINS).join(number.to_string())
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
