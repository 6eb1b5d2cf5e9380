//! What a user may give as the place of an archive.

use std::fmt;
use std::path::PathBuf;

use super::error::StoreError;
use super::file::FileStore;
use super::store::ObjectStore;

/// The place of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchiveUrl {
    /// A folder of a file system.
    Folder(PathBuf),
}

/// Why a text names no archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveUrlError {
    /// No text.
    #[error("the archive has no name: give a folder, such as file:///var/archive")]
    Empty,
    /// A `file:` URL that names a host or no absolute path.
    #[error(
        "cannot use the archive {0}: a file URL has three slashes and an absolute path, as in file:///var/archive"
    )]
    File(String),
    /// An `s3:` URL.
    #[error(
        "cannot use the archive {0}: this build keeps archives in folders only; give one, such as file:///var/archive"
    )]
    S3(String),
    /// Another scheme.
    #[error(
        "cannot use the archive {0}: its scheme is not known; give a folder, such as file:///var/archive"
    )]
    Scheme(String),
}

/// Reads `file:///abs/path` or a plain path, absolute or relative. Percent signs stand for themselves: nothing is
/// decoded. A plain path that looks like a URL can be given as `./that`.
pub fn parse_archive(text: &str) -> Result<ArchiveUrl, ArchiveUrlError> {
    if text.is_empty() {
        return Err(ArchiveUrlError::Empty);
    }
    let Some((scheme, rest)) = text.split_once(':').filter(|(scheme, rest)| is_url(scheme, rest)) else {
        return Ok(ArchiveUrl::Folder(PathBuf::from(text)));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => match rest.strip_prefix("//") {
            Some(path) if path.starts_with('/') => Ok(ArchiveUrl::Folder(PathBuf::from(path))),
            _ => Err(ArchiveUrlError::File(text.to_owned())),
        },
        "s3" => Err(ArchiveUrlError::S3(text.to_owned())),
        _ => Err(ArchiveUrlError::Scheme(text.to_owned())),
    }
}

fn is_url(scheme: &str, rest: &str) -> bool {
    let is_word =
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_word
        && (rest.starts_with("//")
            || scheme.eq_ignore_ascii_case("file")
            || scheme.eq_ignore_ascii_case("s3"))
}

impl ArchiveUrl {
    /// Opens the store at this place; a folder that is not there is created.
    pub fn open(&self) -> Result<Box<dyn ObjectStore>, StoreError> {
        match self {
            Self::Folder(path) => Ok(Box::new(FileStore::open(path)?)),
        }
    }

    /// Opens the store at this place and creates nothing; `None` where there is none.
    pub fn open_existing(&self) -> Result<Option<Box<dyn ObjectStore>>, StoreError> {
        match self {
            Self::Folder(path) => {
                Ok(FileStore::open_existing(path)?.map(|store| Box::new(store) as Box<dyn ObjectStore>))
            }
        }
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
        }
    }
}
