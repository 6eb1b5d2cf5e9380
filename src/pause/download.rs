//! From an archive to a staging folder.
//!
//! The staging folder is the caller's and goes into use, whole, after the download. An error leaves it half filled:
//! [`take_up`] finds what of it can be used, from its content, and removes the rest.
//!
//! Invariant: after success every file of the manifest is there and no other, its content is the one the manifest
//! names, and files and folders are flushed to the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::fetch::fetch_all;
use super::manifest::{Manifest, ManifestFile};
use super::verify::{BadObject, CheckError, local_difference};
use super::{Meter, PauseId, Progress};
use crate::durable::{AtPath, PathError, sync_folder};
use crate::objstore::{ObjectStore, StoreError, TransferError};
use crate::thread::{Failure, FailureKind, Stopped, Until};

/// Why a pause could not be downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// An object is not what the manifest says.
    #[error(
        "cannot restore pause {pause} from {store}: {bad}; `verify` lists all such objects, \
         and another pause may be whole"
    )]
    Bad {
        /// The pause.
        pause: PauseId,
        /// URL of the store.
        store: String,
        /// The object and what is wrong with it.
        bad: Box<BadObject>,
    },
    /// The store failed.
    #[error("cannot restore {file}: {source}")]
    Store {
        /// The file, as `<shard folder>/<name>`.
        file: String,
        /// What failed.
        source: StoreError,
    },
    /// The staging folder failed.
    #[error(transparent)]
    Local(#[from] PathError),
    /// What an earlier download left cannot be read.
    #[error(transparent)]
    Staged(#[from] CheckError),
    /// The threads that fetch the objects.
    #[error("cannot download all files: {0}")]
    Thread(TransferError),
    /// The caller's limit ended first.
    #[error("cannot download all files: {0}")]
    Stopped(#[from] Stopped),
}

impl Failure for DownloadError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Store { source, .. } => source.kind(),
            Self::Staged(error) => error.kind(),
            Self::Thread(error) => error.kind(),
            Self::Stopped(why) => why.kind(),
            Self::Bad { .. } | Self::Local(_) => FailureKind::Lasting,
        }
    }
}

/// Files of a manifest that an earlier download left, checked and flushed to the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Staged(BTreeMap<PathBuf, ManifestFile>);

impl Staged {
    /// How many there are.
    pub fn files(&self) -> usize {
        self.0.len()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.0.values().fold(0, |sum, file| sum.saturating_add(file.length_bytes))
    }

    /// Bytes of their objects.
    pub fn object_bytes(&self) -> u64 {
        self.0.values().fold(0, |sum, file| sum.saturating_add(file.object_content().length_bytes))
    }
}

/// Reads every file below `staging`, which need not be there, and keeps those that the manifest names with this very
/// content. Everything else in it is removed.
pub fn take_up(manifest: &Manifest, staging: &Path, until: &Until) -> Result<Staged, DownloadError> {
    let named: BTreeMap<PathBuf, &ManifestFile> =
        manifest.files.iter().map(|file| (staging.join(file.path()), file)).collect();
    let mut staged = Staged::default();
    let mut folders = vec![staging.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.at("list", &folder)?,
        };
        for entry in entries {
            until.check()?;
            let entry = entry.at("list", &folder)?;
            let path = entry.path();
            if entry.file_type().at("look at", &path)?.is_dir() {
                folders.push(path);
            } else if let Some(file) = named.get(&path).filter(|_| path.is_file())
                && local_difference(file, &path, until)?.is_none()
            {
                File::open(&path).and_then(|file| file.sync_all()).at("sync", &path)?;
                staged.0.insert(path, (*file).clone());
            } else {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
    }
    Ok(staged)
}

/// Writes every file of the manifest that is not `staged` to `<staging>/<shard folder>/<name>`. `staging` is created
/// if it is not there; any other file that is there already is an error. Bytes count as done when their file was
/// checked and flushed.
pub fn download(
    manifest: &Manifest,
    store: &dyn ObjectStore,
    staging: &Path,
    staged: &Staged,
    until: &Until,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<(), DownloadError> {
    let mut meter = Meter::new(manifest.bytes(), on_progress);
    if staged.files() > 0 {
        meter.add(staged.bytes());
    }
    let mut folders = BTreeSet::from([staging.to_owned()]);
    create_folder(staging)?;
    let mut wanted = Vec::with_capacity(manifest.files.len());
    for file in &manifest.files {
        let path = staging.join(file.path());
        for folder in folders_of(&path, staging) {
            if !folders.contains(&folder) {
                create_folder(&folder)?;
                folders.insert(folder);
            }
        }
        if !staged.0.contains_key(&path) {
            wanted.push((file, path));
        }
    }
    fetch(manifest, store, &wanted, until, &mut |bytes| meter.add(bytes))?;
    // Inner folders before those that hold them, and last the one that holds the staging folder.
    for folder in folders.iter().rev() {
        sync_folder(folder)?;
    }
    staging.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder)?;
    Ok(())
}

fn fetch(
    manifest: &Manifest,
    store: &dyn ObjectStore,
    files: &[(&ManifestFile, PathBuf)],
    until: &Until,
    on_durable: &mut dyn FnMut(u64),
) -> Result<(), DownloadError> {
    let wanted: Vec<(&ManifestFile, Option<&Path>)> =
        files.iter().map(|(file, path)| (*file, Some(path.as_path()))).collect();
    let mut found_bad = None;
    let fetched = fetch_all(store, &wanted, until, &mut |number, came| {
        let Some((file, _)) = files.get(number) else { return Ok(()) };
        match came.map_err(|error| TransferError::Store { file: number, error })? {
            Ok(()) => on_durable(file.length_bytes),
            Err(difference) => {
                found_bad = Some(BadObject { object: file.object.clone(), file: file.path(), difference });
                // Ends the call; what is told is the difference.
                return Err(Stopped::Cancelled.into());
            }
        }
        Ok(())
    });
    if let Some(bad) = found_bad {
        let bad = Box::new(bad);
        return Err(DownloadError::Bad { pause: manifest.pause, store: store.describe(), bad });
    }
    fetched.map_err(|error| match error {
        TransferError::Local(error) => error.into(),
        TransferError::Stopped(why) => why.into(),
        TransferError::Store { file, error } => DownloadError::Store {
            file: files.get(file).map_or_else(String::new, |(file, _)| file.path()),
            source: error,
        },
        other => DownloadError::Thread(other),
    })
}

/// The folders that `path` goes through below `staging`, outermost first.
fn folders_of(path: &Path, staging: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        path.ancestors().skip(1).take_while(|folder| *folder != staging).map(Path::to_owned).collect();
    folders.reverse();
    folders
}

fn create_folder(path: &Path) -> Result<(), PathError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(_) if path.is_dir() => Ok(()),
        result => result.at("create the folder", path),
    }
}
