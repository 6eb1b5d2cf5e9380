//! What a user may give as the place of an archive.

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use super::error::StoreError;
use super::file::{FOLDER_PARALLEL_DEFAULT, FileStore};
use super::key::ObjectKey;
use super::layer::{Floor, Layer, Rate, Retry, RetryConfig};
use super::s3::{S3Config, S3Store};
use super::store::ObjectStore;
use super::transfer::TRANSFER_BYTES_MAX;

/// The place of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchiveUrl {
    /// A folder of a file system.
    Folder(PathBuf),
    /// A bucket of an S3 server.
    S3 {
        /// The bucket.
        bucket: String,
        /// Everything is below this key; `None` is the whole bucket.
        prefix: Option<ObjectKey>,
    },
}

/// How archives are talked to.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// What a bucket is opened with; the bucket and the prefix are those of the archive.
    pub s3: S3Config,
    /// The most bytes a second, both ways together; `None` is no limit.
    pub bytes_per_second_max: Option<NonZeroU64>,
    /// Files, or parts of them, that are carried at the same time; `None` is [`S3Config::parallel`] for a bucket and
    /// [`FOLDER_PARALLEL_DEFAULT`] for a folder.
    pub parallel: Option<NonZeroUsize>,
    /// The most bytes of memory that what is carried at the same time may take: there are fewer of them where
    /// [`TRANSFER_BYTES_MAX`] each would be more, but at least one. `None` is no limit.
    pub memory_bytes_max: Option<u64>,
    /// The longest that one call to a server may take; `None` lets a call take a minute and the time that its bytes
    /// need at a low rate.
    pub call_limit: Option<Duration>,
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            s3: S3Config::new("", "us-east-1"),
            bytes_per_second_max: None,
            parallel: None,
            memory_bytes_max: None,
            call_limit: None,
        }
    }
}

impl ArchiveOptions {
    /// What is carried at the same time, where it would be `usual` by the kind of the archive.
    fn parallel(&self, usual: usize) -> NonZeroUsize {
        let wanted = self.parallel.map_or(usual, NonZeroUsize::get);
        let fits = self
            .memory_bytes_max
            .map_or(usize::MAX, |bytes| usize::try_from(bytes / TRANSFER_BYTES_MAX).unwrap_or(usize::MAX));
        NonZeroUsize::new(wanted.min(fits)).unwrap_or(NonZeroUsize::MIN)
    }
}

/// The least rate of a server's connection that is put up with, in bytes a second.
const FLOOR: u64 = 16 * 1024;
/// Time that each exchange of content has besides.
const GRACE: Duration = Duration::from_secs(60);

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
    /// An `s3:` URL that names no bucket, or a prefix that no key can have.
    #[error(
        "cannot use the archive {0}: an S3 URL names a bucket and perhaps a prefix, as in s3://bucket/prefix"
    )]
    S3(String),
    /// Another scheme.
    #[error(
        "cannot use the archive {0}: its scheme is not known; give a folder, such as file:///var/archive, or \
         s3://bucket/prefix"
    )]
    Scheme(String),
}

/// Reads `file:///abs/path`, `s3://bucket/prefix` or a plain path, absolute or relative. Percent signs stand for
/// themselves: nothing is decoded. A plain path that looks like a URL can be given as `./that`.
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
        "s3" => parse_s3(rest).ok_or_else(|| ArchiveUrlError::S3(text.to_owned())),
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

fn parse_s3(rest: &str) -> Option<ArchiveUrl> {
    let rest = rest.strip_prefix("//")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // One slash at the end says the same.
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let prefix = if prefix.is_empty() { None } else { Some(ObjectKey::new(prefix).ok()?) };
    (!bucket.is_empty()).then(|| ArchiveUrl::S3 { bucket: bucket.to_owned(), prefix })
}

impl ArchiveUrl {
    /// Opens the store at this place; a folder that is not there is created, a bucket is not. What a bucket fails
    /// at for the moment is tried again.
    pub fn open(&self, options: &ArchiveOptions) -> Result<Box<dyn ObjectStore>, StoreError> {
        match self {
            Self::Folder(path) => Ok(folder(FileStore::open(path)?, options)),
            Self::S3 { bucket, prefix } => open_s3(bucket, prefix.as_ref(), options),
        }
    }

    /// Opens the store at this place to be looked at. A folder that is not there is not created: it is an empty archive
    /// with the room of the disk that it would be on.
    pub fn open_to_plan(&self, options: &ArchiveOptions) -> Result<Box<dyn ObjectStore>, StoreError> {
        match self {
            Self::Folder(path) => Ok(folder(FileStore::open_to_plan(path)?, options)),
            Self::S3 { .. } => self.open(options),
        }
    }

    /// Opens the store at this place and creates nothing; `None` where there is no folder. Whether a bucket is
    /// there is seen by the first call.
    pub fn open_existing(
        &self,
        options: &ArchiveOptions,
    ) -> Result<Option<Box<dyn ObjectStore>>, StoreError> {
        match self {
            Self::Folder(path) => Ok(FileStore::open_existing(path)?.map(|store| folder(store, options))),
            Self::S3 { .. } => self.open(options).map(Some),
        }
    }
}

fn folder(store: FileStore, options: &ArchiveOptions) -> Box<dyn ObjectStore> {
    let parallel = options.parallel(FOLDER_PARALLEL_DEFAULT);
    limited(Box::new(store.with_parallel(parallel)), options)
}

fn open_s3(
    bucket: &str,
    prefix: Option<&ObjectKey>,
    options: &ArchiveOptions,
) -> Result<Box<dyn ObjectStore>, StoreError> {
    let parallel = options.parallel(options.s3.parallel).get();
    let config =
        S3Config { bucket: bucket.to_owned(), prefix: prefix.cloned(), parallel, ..options.s3.clone() };
    // Where all connections share a low rate, each of them may be slower still.
    let share = options.bytes_per_second_max.map(|bytes| bytes.get() / (2 * parallel as u64));
    let floor = Floor {
        bytes_per_second: share.unwrap_or(FLOOR).min(FLOOR),
        grace: GRACE,
        call_limit: options.call_limit,
    };
    let store = Box::new(Layer::new(Box::new(S3Store::open(config)?), floor));
    Ok(Box::new(Layer::new(limited(store, options), Retry::new(RetryConfig::default()))))
}

fn limited(store: Box<dyn ObjectStore>, options: &ArchiveOptions) -> Box<dyn ObjectStore> {
    match options.bytes_per_second_max {
        Some(bytes_per_second) => Box::new(Layer::new(store, Rate::new(bytes_per_second))),
        None => store,
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix: None } => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix: Some(prefix) } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}
