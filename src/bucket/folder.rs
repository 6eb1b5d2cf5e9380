//! The data folder: which process it belongs to, and which buckets it holds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::durable::{self, AtPath, Claim, PathError};
use crate::shard::ShardSet;

use super::bucket::{Bucket, BucketConfig, BucketError};
use super::meta::{BucketMeta, BucketName, BucketSpec};

const LOCK_FILE: &str = "dormouse.lock";
const BUCKETS: &str = "buckets";
const STAGING: &str = "staging";

/// Why a data folder was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// There is none.
    #[error("there is no data folder {}: `ingest` and `resume` make one", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("cannot use the data folder {}: {holder}; wait for that process to end, or stop it", path.display())]
    Held {
        /// The folder.
        path: PathBuf,
        /// Who has it and since when.
        holder: String,
    },
    /// A file or folder.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// A data folder that belongs to this process until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct DataDir(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Tells what is staged for one call from what is staged for another.
    staged: AtomicU64,
    _claim: Claim,
}

impl DataDir {
    /// Opens a data folder, which must be there.
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        if root.join(BUCKETS).is_dir() {
            Self::take(root)
        } else {
            Err(DataDirError::Missing { path: root.to_owned() })
        }
    }

    /// Opens a data folder, and makes it where there is none.
    pub fn open_or_create(root: &Path) -> Result<Self, DataDirError> {
        let buckets = root.join(BUCKETS);
        durable::create_folders(&buckets)?;
        Self::take(root)
    }

    fn take(root: &Path) -> Result<Self, DataDirError> {
        let path = root.join(LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("open", &path)?;
        let mut claim = match Claim::take(file, &path)? {
            Ok(claim) => claim,
            Err(mut held) => {
                return Err(DataDirError::Held { path: root.to_owned(), holder: read_holder(&mut held) });
            }
        };
        write_holder(claim.file()).at("write", &path)?;
        let data_dir =
            Self(Arc::new(Inner { root: root.to_owned(), staged: AtomicU64::new(0), _claim: claim }));
        data_dir.empty_staging()?;
        Ok(data_dir)
    }

    fn empty_staging(&self) -> Result<(), PathError> {
        let staging = self.staging();
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at("empty", &staging),
            _ => {}
        }
        fs::create_dir(&staging).at("create the folder", &staging)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    fn staging(&self) -> PathBuf {
        self.root().join(STAGING)
    }

    /// A path in the staging folder that nothing else uses. What a failure leaves there is removed when the data
    /// folder is opened again.
    pub(super) fn staged(&self, purpose: &str, name: &str) -> PathBuf {
        let number = self.0.staged.fetch_add(1, Ordering::Relaxed);
        self.staging().join(format!("{purpose}-{number}-{name}"))
    }

    pub(super) fn bucket_folder(&self, name: &BucketName) -> PathBuf {
        self.root().join(BUCKETS).join(name.as_str())
    }

    /// The buckets, in the order of their names.
    pub fn buckets(&self) -> Result<Vec<BucketName>, DataDirError> {
        let folder = self.root().join(BUCKETS);
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).at("list", &folder)? {
            let entry = entry.at("list", &folder)?;
            names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is a bucket of this name.
    pub fn has_bucket(&self, name: &BucketName) -> bool {
        self.bucket_folder(name).is_dir()
    }

    /// What a bucket keeps about itself; its shards stay closed.
    pub fn bucket_meta(&self, name: &BucketName) -> Result<BucketMeta, BucketError> {
        let folder = self.bucket_folder(name);
        if !folder.is_dir() {
            return Err(self.no_such_bucket(name)?);
        }
        Ok(BucketMeta::read(&folder)?)
    }

    fn no_such_bucket(&self, name: &BucketName) -> Result<BucketError, BucketError> {
        let there = self.buckets().map_err(BucketError::DataDir)?;
        Ok(BucketError::Missing { bucket: name.clone(), data_dir: self.root().to_owned(), there })
    }

    /// Opens a bucket and starts its threads.
    pub fn open_bucket(&self, name: &BucketName, config: &BucketConfig) -> Result<Bucket, BucketError> {
        let meta = self.bucket_meta(name)?;
        Bucket::open(self, meta, config)
    }

    /// Makes an empty bucket without indexes and opens it.
    pub fn create_bucket(
        &self,
        name: &BucketName,
        spec: BucketSpec,
        config: &BucketConfig,
    ) -> Result<Bucket, BucketError> {
        if let Some(problem) = spec.problem() {
            return Err(BucketError::Spec { bucket: name.clone(), problem });
        }
        if self.has_bucket(name) {
            return Err(BucketError::Exists { bucket: name.clone() });
        }
        let meta = BucketMeta::new(name, spec)?;
        let making = self.staged("making", name.as_str());
        fs::create_dir(&making).at("create the folder", &making)?;
        ShardSet::create(&making, meta.shard_specs()).map_err(BucketError::Shard)?;
        meta.write(&making)?;
        self.move_in(&making, name)?;
        self.open_bucket(name, config)
    }

    /// Puts a finished bucket folder in its place, durably.
    pub(super) fn move_in(&self, finished: &Path, name: &BucketName) -> Result<(), PathError> {
        let target = self.bucket_folder(name);
        durable::sync_folder(finished)?;
        fs::rename(finished, &target).at("put in place", &target)?;
        durable::sync_folder(&self.root().join(BUCKETS))
    }

    /// Removes a bucket that is closed, with all its local data. What it left in archives stays.
    pub fn drop_bucket(&self, name: &BucketName) -> Result<(), BucketError> {
        let folder = self.bucket_folder(name);
        if !folder.is_dir() {
            return Err(self.no_such_bucket(name)?);
        }
        let claims = ShardSet::claim(&folder).map_err(BucketError::Shard)?;
        self.discard(&folder)?;
        drop(claims);
        Ok(())
    }

    /// Puts a finished bucket folder in the place of another. On failure the other one is back in its place.
    pub(super) fn replace(&self, finished: &Path, name: &BucketName) -> Result<(), PathError> {
        let target = self.bucket_folder(name);
        let away = self.staged("replaced", name.as_str());
        fs::rename(&target, &away).at("take away", &target)?;
        if let Err(error) = self.move_in(finished, name) {
            // Where even this fails, the first error says more.
            let _ = fs::rename(&away, &target);
            return Err(error);
        }
        fs::remove_dir_all(&away).at("remove", &away)
    }

    /// Takes a folder away in one step, then removes it.
    pub(super) fn discard(&self, folder: &Path) -> Result<(), PathError> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let away = self.staged("dropped", &name);
        fs::rename(folder, &away).at("take away", folder)?;
        folder.parent().map_or(Ok(()), durable::sync_folder)?;
        fs::remove_dir_all(&away).at("remove", &away)
    }
}

fn write_holder(lock: &mut File) -> io::Result<()> {
    let since = humantime::format_rfc3339_seconds(SystemTime::now());
    lock.set_len(0)?;
    lock.write_all(format!("process {} has held it since {since}\n", std::process::id()).as_bytes())
}

fn read_holder(lock: &mut File) -> String {
    let mut holder = String::new();
    match lock.read_to_string(&mut holder) {
        Ok(_) if !holder.trim().is_empty() => holder.trim().to_owned(),
        // The holder is about to write its name, or nobody can read it.
        _ => "another process holds it".to_owned(),
    }
}
