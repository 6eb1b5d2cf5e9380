//! Comparing bytes with what a manifest says of them.
//!
//! Resuming, checking an archive and checking local files ask one question: is this the content that was
//! archived? It is answered here, always from the bytes themselves.
//!
//! Invariant: only content of equal length *and* equal hash counts as the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use super::fetch::fetch_all;
use super::manifest::{Manifest, ManifestFile};
use crate::durable::{AtPath, PathError};
use crate::objstore::{
    Content, ContentHash, ObjectKey, ObjectStore, ReadError, StoreCause, StoreError, TransferError, hash_file,
};
use crate::shard::local_file;
use crate::shard::store::StoreFault;
use crate::thread::{Failure, FailureKind, Stopped, Until};

/// How something differs from what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    /// It is not there.
    #[error("it is missing")]
    Missing,
    /// It is longer or shorter.
    #[error("it has {found_bytes} bytes instead of {expected_bytes}")]
    Length {
        /// What the manifest says.
        expected_bytes: u64,
        /// What is there.
        found_bytes: u64,
    },
    /// It is as long and has another content.
    #[error("its content is damaged: its hash is {found} instead of {expected}")]
    Hash {
        /// What the manifest says.
        expected: ContentHash,
        /// What is there.
        found: ContentHash,
    },
    /// It is what it is said to be, and does not hold the file that it is said to hold.
    #[error("it does not hold the file: {0}")]
    Encoded(String),
    /// The store cannot give it.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// An object of a pause that is not what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the object {object}, the content of {file}: {difference}")]
pub struct BadObject {
    /// The object.
    pub object: ObjectKey,
    /// The first of the files that it is the content of, as `<shard folder>/<name>`.
    pub file: String,
    /// What is wrong.
    pub difference: Difference,
}

/// Why an archive could not be verified; this says nothing of its objects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The store failed in a way that may pass.
    #[error("{0}; verify again")]
    Store(#[from] StoreError),
    /// The threads that read the objects.
    #[error("cannot verify to the end: {0}")]
    Thread(TransferError),
    /// The caller's limit ended first.
    #[error("cannot verify to the end: {0}")]
    Stopped(#[from] Stopped),
}

impl Failure for VerifyError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Thread(error) => error.kind(),
            Self::Stopped(why) => why.kind(),
        }
    }
}

/// Why local files are not, or cannot be compared with, those of a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A file is not what the manifest says.
    #[error(
        "the local file {file} is not that of pause {pause}: {difference}; resume into another data folder"
    )]
    Differs {
        /// The file, as `<shard folder>/<name>`.
        file: String,
        /// The pause.
        pause: super::PauseId,
        /// What is wrong.
        difference: Difference,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Local(#[from] PathError),
    /// A shard does not tell where its files are.
    #[error("cannot compare the local files: {0}; resume into another data folder")]
    Shard(#[from] StoreFault),
    /// The caller's limit ended first.
    #[error("cannot compare all local files: {0}")]
    Stopped(#[from] Stopped),
}

impl Failure for CheckError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped(why) => why.kind(),
            Self::Differs { .. } | Self::Local(_) | Self::Shard(_) => FailureKind::Lasting,
        }
    }
}

/// Reads every object of the manifest back and gives those that are not as they should be; none is good news.
/// An object that several files share is read once.
pub fn verify(
    manifest: &Manifest,
    store: &dyn ObjectStore,
    until: &Until,
) -> Result<Vec<BadObject>, VerifyError> {
    let mut objects = BTreeMap::new();
    for file in &manifest.files {
        objects.entry((&file.object, file.length_bytes, file.stored.is_some())).or_insert((file, None));
    }
    let files: Vec<(&ManifestFile, Option<&Path>)> = objects.into_values().collect();
    let mut bad = BTreeMap::new();
    let fetched = fetch_all(store, &files, until, &mut |number, came| {
        let Some((file, _)) = files.get(number) else { return Ok(()) };
        let difference = match came {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(difference)) => difference,
            Err(error) if error.is_temporary() => return Err(TransferError::Store { file: number, error }),
            Err(StoreError { cause: StoreCause::Stopped(why), .. }) => return Err(why.into()),
            Err(error) => Difference::Unreadable(error.cause.to_string()),
        };
        bad.insert(number, BadObject { object: file.object.clone(), file: file.path(), difference });
        Ok(())
    });
    fetched.map_err(|error| match error {
        TransferError::Store { error, .. } => VerifyError::Store(error),
        TransferError::Stopped(why) => why.into(),
        other => VerifyError::Thread(other),
    })?;
    Ok(bad.into_values().collect())
}

/// Compares the files below `folder`, which holds the shards' folders, with the manifest: each listed file must
/// be there with equal length and hash. Other files do not matter. The first difference ends the comparison.
pub fn check_local(manifest: &Manifest, folder: &Path, until: &Until) -> Result<(), CheckError> {
    for file in &manifest.files {
        let path = local_file(&folder.join(file.shard.folder()), file.name.as_str())?;
        if let Some(difference) = local_difference(file, &path, until)? {
            return Err(CheckError::Differs { file: file.path(), pause: manifest.pause, difference });
        }
    }
    Ok(())
}

/// How a local file differs from what the manifest says of it.
pub(super) fn local_difference(
    file: &ManifestFile,
    path: &Path,
    until: &Until,
) -> Result<Option<Difference>, CheckError> {
    until.check()?;
    let opened = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Difference::Missing)),
        opened => opened.at("open", path)?,
    };
    let length_bytes = opened.metadata().at("look at", path)?.len();
    let hash = if length_bytes == file.length_bytes {
        match hash_file(&opened, length_bytes, until) {
            Err(ReadError::Stopped(why)) => return Err(why.into()),
            Err(ReadError::Io(e)) => return Err(e).at("read", path)?,
            Err(e) => return Err(io::Error::other(e.to_string())).at("read", path)?,
            Ok(hash) => hash,
        }
    } else {
        file.hash
    };
    Ok(compare(file.content(), Content { length_bytes, hash }).err())
}

pub(super) fn compare(expected: Content, found: Content) -> Result<(), Difference> {
    if found.length_bytes != expected.length_bytes {
        Err(Difference::Length { expected_bytes: expected.length_bytes, found_bytes: found.length_bytes })
    } else if found.hash != expected.hash {
        Err(Difference::Hash { expected: expected.hash, found: found.hash })
    } else {
        Ok(())
    }
}
