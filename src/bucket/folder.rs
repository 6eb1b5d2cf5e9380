//! The data folder: which process it belongs to, and which buckets it holds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::durable::{self, AtPath, Claim, PathError};
use crate::pause::PauseId;
use crate::shard::ShardSet;
use crate::thread::{Process, Until};

use super::bucket::{Bucket, BucketConfig};
use super::error::{BucketError, Forked};
use super::meta::{BucketMeta, BucketName, BucketSpec};
use super::tasks::{CancelError, Task, TaskBusy, TaskId, TaskKind, TaskList, TaskStatus, Tasks, WaitError};

const LOCK_FILE: &str = "dormouse.lock";
const BUCKETS: &str = "buckets";
const STAGING: &str = "staging";
/// What a resume has downloaded: `resume-<pause>-<bucket>`. It outlives the process.
const RESUMES: &str = "resume-";
/// What gave its place to another folder: `replaced-<number>-<bucket>`.
const REPLACED: &str = "replaced";

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
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
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
    tasks: Arc<Tasks>,
    claim: Claim,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // In a forked process a thread that is not there may hold what it would wait for.
        if !self.claim.process().is_current() {
            std::mem::forget(Arc::clone(&self.tasks));
        }
    }
}

impl DataDir {
    /// Opens a data folder, which must be there.
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        let buckets = root.join(BUCKETS);
        match fs::metadata(&buckets) {
            Ok(found) if found.is_dir() => Self::take(root),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(error).at("look at", &buckets)?
            }
            _ => Err(DataDirError::Missing { path: root.to_owned() }),
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
        let (root, staged, tasks) = (root.to_owned(), AtomicU64::new(0), Arc::default());
        let data_dir = Self(Arc::new(Inner { root, staged, tasks, claim }));
        data_dir.tidy_staging()?;
        Ok(data_dir)
    }

    /// Gives back its place to what lost it to nothing, and removes the rest but for what resumes have downloaded.
    fn tidy_staging(&self) -> Result<(), PathError> {
        let staging = self.staging();
        durable::create_folders(&staging)?;
        for entry in fs::read_dir(&staging).at("list", &staging)? {
            let path = entry.at("list", &staging)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(bucket) = replaced_bucket(&name).filter(|bucket| !self.has_bucket(bucket)) {
                self.move_in(&path, &bucket)?;
            } else if !name.starts_with(RESUMES) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.at("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Fails in a fork of the process that opened the folder.
    pub(super) fn refuse_fork(&self) -> Result<(), Forked> {
        let (owner, here) = (self.0.claim.process(), Process::current());
        if owner == here {
            return Ok(());
        }
        Err(Forked { data_dir: self.root().to_owned(), opened_by: owner.id(), here: here.id() })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    fn staging(&self) -> PathBuf {
        self.root().join(STAGING)
    }

    /// A path in the staging folder that nothing else uses. What a failure leaves there goes when the data folder is
    /// opened again.
    pub(super) fn staged(&self, purpose: &str, name: &str) -> PathBuf {
        let number = self.0.staged.fetch_add(1, Ordering::Relaxed);
        self.staging().join(format!("{purpose}-{number}-{name}"))
    }

    /// Where a resume of the bucket from `pause` puts what it downloads.
    pub(super) fn resume_staging(&self, pause: PauseId, bucket: &BucketName) -> PathBuf {
        self.staging().join(format!("{RESUMES}{pause}-{bucket}"))
    }

    /// The folders of what resumes of the bucket have downloaded.
    fn resumes_of(&self, bucket: &BucketName) -> Result<Vec<PathBuf>, PathError> {
        let staging = self.staging();
        let mut folders = Vec::new();
        for entry in fs::read_dir(&staging).at("list", &staging)? {
            let path = entry.at("list", &staging)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if resumed_bucket(&name).is_some_and(|of| of == *bucket) {
                folders.push(path);
            }
        }
        Ok(folders)
    }

    /// How much resumes of the bucket have downloaded.
    pub(super) fn resumed_bytes(&self, bucket: &BucketName) -> Result<u64, PathError> {
        let mut folders = self.resumes_of(bucket)?;
        let mut bytes: u64 = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).at("list", &folder)? {
                let path = entry.at("list", &folder)?.path();
                let found = fs::symlink_metadata(&path).at("look at", &path)?;
                if found.is_dir() {
                    folders.push(path);
                } else {
                    bytes = bytes.saturating_add(found.len());
                }
            }
        }
        Ok(bytes)
    }

    /// Removes what resumes of the bucket have downloaded, but for `kept`.
    pub(super) fn forget_resumes(&self, bucket: &BucketName, kept: Option<PauseId>) -> Result<(), PathError> {
        let kept = kept.map(|pause| self.resume_staging(pause, bucket));
        for path in self.resumes_of(bucket)? {
            if kept.as_ref() != Some(&path) {
                fs::remove_dir_all(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Takes the entry of a bucket: nothing else is done with it until the result is gone.
    pub(super) fn begin_task(
        &self,
        bucket: &BucketName,
        kind: TaskKind,
        until: &Until,
    ) -> Result<Task, TaskBusy> {
        self.0.tasks.begin(bucket, kind, until)
    }

    /// What is or was under way: pauses, resumes and changes of indexes, one entry a bucket.
    pub fn tasks(&self) -> TaskList {
        self.0.tasks.list()
    }

    /// Waits until the list of tasks is another than the one with this revision.
    pub fn wait_for_tasks(&self, revision: u64, until: &Until) -> Result<TaskList, WaitError> {
        self.refuse_fork()?;
        Ok(self.0.tasks.wait(revision, until)?)
    }

    /// Cancels a task and waits until it is over: it has cleaned up, and holds no lock. One that has ended already
    /// is as it is.
    pub fn cancel_task(&self, task: TaskId, until: &Until) -> Result<TaskStatus, CancelError> {
        self.refuse_fork()?;
        self.0.tasks.cancel(task, until)
    }

    pub(super) fn bucket_folder(&self, name: &BucketName) -> PathBuf {
        self.root().join(BUCKETS).join(name.as_str())
    }

    /// The buckets, in the order of their names.
    pub fn buckets(&self) -> Result<Vec<BucketName>, DataDirError> {
        self.refuse_fork()?;
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
        self.refuse_fork()?;
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

    /// Opens a bucket and starts its threads. What was interrupted is cleaned up before, as by
    /// [`DataDir::recover`].
    pub fn open_bucket(&self, name: &BucketName, config: &BucketConfig) -> Result<Bucket, BucketError> {
        let meta = self.recover(name, &config.logger)?;
        Bucket::open(self, meta, config)
    }

    /// Makes an empty bucket without indexes and opens it.
    pub fn create_bucket(
        &self,
        name: &BucketName,
        spec: BucketSpec,
        config: &BucketConfig,
    ) -> Result<Bucket, BucketError> {
        self.refuse_fork()?;
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
        self.refuse_fork()?;
        let task = self
            .begin_task(name, TaskKind::Drop, &Until::default())
            .map_err(|busy| BucketError::Busy { doing: "drop", bucket: name.clone(), busy })?;
        task.end(self.drop_now(name))
    }

    fn drop_now(&self, name: &BucketName) -> Result<(), BucketError> {
        let folder = self.bucket_folder(name);
        if !folder.is_dir() {
            return Err(self.no_such_bucket(name)?);
        }
        let claims = ShardSet::claim(&folder).map_err(BucketError::Shard)?;
        self.discard(&folder)?;
        drop(claims);
        Ok(self.forget_resumes(name, None)?)
    }

    /// Puts a finished bucket folder in the place of another. On failure the other one is back in its place; after
    /// a crash the next opening of the data folder brings it back.
    pub(super) fn replace(&self, finished: &Path, name: &BucketName) -> Result<(), PathError> {
        let target = self.bucket_folder(name);
        let away = self.staged(REPLACED, name.as_str());
        fs::rename(&target, &away).at("take away", &target)?;
        if let Err(error) = self.move_in(finished, name) {
            // Where even this fails, the first error says more.
            let _ = fs::rename(&away, &target);
            return Err(error);
        }
        // It is replaced. What cannot be removed goes when the data folder is opened again.
        let _ = fs::remove_dir_all(&away);
        Ok(())
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

/// The bucket whose folder was replaced.
fn replaced_bucket(name: &str) -> Option<BucketName> {
    let (number, bucket) = name.strip_prefix(REPLACED)?.strip_prefix('-')?.split_once('-')?;
    number.parse::<u64>().ok().and_then(|_| bucket.parse().ok())
}

/// The bucket that a resume has downloaded files of.
fn resumed_bucket(name: &str) -> Option<BucketName> {
    let (generation, rest) = name.strip_prefix(RESUMES)?.split_once('-')?;
    let (random, bucket) = rest.split_once('-')?;
    format!("{generation}-{random}").parse::<PauseId>().ok().and_then(|_| bucket.parse().ok())
}

fn write_holder(lock: &mut File) -> io::Result<()> {
    let since = humantime::format_rfc3339_seconds(SystemTime::now());
    lock.set_len(0)?;
    lock.write_all(format!("process {} has held it since {since}\n", Process::current().id()).as_bytes())
}

fn read_holder(lock: &mut File) -> String {
    let mut holder = String::new();
    match lock.read_to_string(&mut holder) {
        Ok(_) if !holder.trim().is_empty() => holder.trim().to_owned(),
        // The holder is about to write its name, or nobody can read it.
        _ => "another process holds it".to_owned(),
    }
}
