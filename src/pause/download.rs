//! From an archive to a staging folder.
//!
//! The staging folder is the caller's and goes into use, whole, after the download; until then nothing of it is
//! looked at. An error leaves it half filled: the caller removes it.
//!
//! Invariant: after success every file of the manifest is there, its content is the one the manifest names, and
//! files and folders are flushed to the disk.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::manifest::{Manifest, ManifestFile};
use super::verify::{BadObject, receive};
use super::{Meter, PauseId, Progress};
use crate::durable::{AtPath, PathError, create_new, sync_folder};
use crate::objstore::{ObjectStore, StoreCause, StoreError};
use crate::thread::{Stopped, Until};

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
    /// The caller's limit ended first.
    #[error("cannot download all files: {0}")]
    Stopped(#[from] Stopped),
}

/// Writes every file of the manifest to `<staging>/<shard folder>/<name>`. `staging` is created if it is not
/// there; a file that is there already is an error. Bytes count as done when their file was checked and flushed.
pub fn download(
    manifest: &Manifest,
    store: &dyn ObjectStore,
    staging: &Path,
    until: &Until,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<(), DownloadError> {
    let mut meter = Meter::new(manifest.bytes(), on_progress);
    let mut folders = BTreeSet::from([staging.to_owned()]);
    create_folder(staging)?;
    for file in &manifest.files {
        until.check()?;
        let path = staging.join(file.path());
        for folder in folders_of(&path, staging) {
            if !folders.contains(&folder) {
                create_folder(&folder)?;
                folders.insert(folder);
            }
        }
        download_file(manifest, store, file, &path, until)?;
        meter.add(file.length_bytes);
    }
    // Inner folders before those that hold them, and last the one that holds the staging folder.
    for folder in folders.iter().rev() {
        sync_folder(folder)?;
    }
    staging.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder)?;
    Ok(())
}

fn download_file(
    manifest: &Manifest,
    store: &dyn ObjectStore,
    file: &ManifestFile,
    path: &Path,
    until: &Until,
) -> Result<(), DownloadError> {
    let local = create_new(path)?;
    match receive(store, file, &local, until) {
        Ok(Ok(_)) => Ok(local.sync_all().at("sync", path)?),
        Ok(Err(difference)) => {
            let bad = BadObject { object: file.object.clone(), file: file.path(), difference };
            Err(DownloadError::Bad { pause: manifest.pause, store: store.describe(), bad: Box::new(bad) })
        }
        Err(e) => Err(match e.cause {
            StoreCause::Stopped(why) => why.into(),
            StoreCause::Receiver(source) => {
                PathError { doing: "write", path: path.to_owned(), source }.into()
            }
            _ => DownloadError::Store { file: file.path(), source: e },
        }),
    }
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
