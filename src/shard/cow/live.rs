//! One database that is open: where the crate is called, and what becomes of its panics.
//!
//! The crate may panic over a damaged file, and a lock that it poisons makes it panic again wherever it is
//! touched, also while it is dropped. So it is called under [`catch`] alone, and what has panicked is left in
//! memory and not dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Builder, Database, ReadableDatabase, WriteTransaction};

use crate::durable;
use crate::thread::{Until, catch};

use super::super::store::{CheckFault, StoreFault};
use super::file::{Backing, Handle};
use super::tables;

/// The file's name within the shard's folder, and in those of recovery points and pinned files.
pub(super) const FILE: &str = "cow.redb";

/// See the module.
pub(super) struct Live {
    /// `None` only while this is dropped.
    engine: Option<Database>,
    backing: Arc<Backing>,
    path: PathBuf,
    /// The crate has panicked.
    is_broken: AtomicBool,
}

fn run_caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch("", work).map_err(|panicked| format!("the database panicked: {}", panicked.message))
}

impl Live {
    /// Makes the file of a new shard.
    pub(super) fn create(path: &Path) -> Result<Self, StoreFault> {
        let doing = "create the shard's file";
        let file = durable::create_new(path).map_err(|e| StoreFault::new(doing, &e))?;
        // A file that was just created is written alone.
        drop(file);
        let live = Self::start(path, doing, 0)?;
        live.write(doing, |engine| {
            let txn = engine.begin_write()?;
            tables::create(&txn)?;
            txn.commit()?;
            Ok(())
        })?;
        live.make_durable(doing)?;
        Ok(live)
    }

    /// Opens a file, with a cache of `cache_bytes`, and compares all that it holds with its checksums.
    pub(super) fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreFault> {
        let doing = "open the shard's file";
        let at = |error: &dyn std::fmt::Display| StoreFault::at(doing, path, error);
        if std::fs::metadata(path).map_err(|e| at(&e))?.len() == 0 {
            return Err(at(&"it is empty"));
        }
        let live = Self::start(path, doing, cache_bytes)?;
        live.read(doing, tables::check_version)?;
        Ok(live)
    }

    fn start(path: &Path, doing: &'static str, cache_bytes: usize) -> Result<Self, StoreFault> {
        let at = |error: &dyn std::fmt::Display| StoreFault::at(doing, path, error);
        let file = File::options().read(true).write(true).open(path).map_err(|e| at(&e))?;
        let backing = Backing::new(file, &Until::default()).map_err(|e| at(&e))?;
        let engine = start_engine(&backing, cache_bytes).map_err(|e| at(&e))?;
        Ok(Self { engine: Some(engine), backing, path: path.to_owned(), is_broken: AtomicBool::new(false) })
    }

    /// Compares all that the last recovery point in the file holds with its checksums, while the limit lasts. The
    /// file may be written meanwhile, but no recovery point may be made in it.
    pub(super) fn check(&self, cache_bytes: usize, until: &Until) -> Result<(), CheckFault> {
        let doing = "check the shard's file";
        until.check()?;
        let at = |error: &dyn std::fmt::Display| CheckFault::from(StoreFault::at(doing, &self.path, error));
        let _unrepaired = self.backing.put_off_first_write();
        // By its name, so that one that is missing is found too.
        let backing =
            File::open(&self.path).and_then(|file| Backing::new(file, until)).map_err(|e| at(&e))?;
        let started = start_engine(&backing, cache_bytes);
        if let Some(why) = backing.stopped() {
            return Err(why.into());
        }
        let checked = run_caught(move || started.map(drop)).and_then(|outcome| outcome);
        checked.map_err(|e| at(&e))
    }

    fn engine(&self) -> Result<&Database, StoreFault> {
        let engine = self.engine.as_ref().filter(|_| !self.is_broken.load(Ordering::Acquire));
        engine.ok_or_else(|| {
            StoreFault::at("use the shard's file", &self.path, &"it failed before; open the bucket again")
        })
    }

    /// Runs what is done to the database. A panic is a fault, and the last that it does.
    pub(super) fn run<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce() -> Result<T, redb::Error>,
    ) -> Result<T, StoreFault> {
        self.engine()?;
        match run_caught(work) {
            Ok(outcome) => outcome.map_err(|error| StoreFault::at(doing, &self.path, &error)),
            Err(panicked) => {
                self.is_broken.store(true, Ordering::Release);
                Err(StoreFault::at(doing, &self.path, &panicked))
            }
        }
    }

    /// Reads the database.
    pub(super) fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreFault> {
        let engine = self.engine()?;
        self.run(doing, || work(&engine.begin_read()?))
    }

    /// Changes the database. One thread at a time does.
    pub(super) fn write<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreFault> {
        let engine = self.engine()?;
        let _pen = self.backing.take_pen().map_err(|e| StoreFault::at(doing, &self.path, &e))?;
        self.run(doing, || work(engine))
    }

    /// Makes durable what was committed. In two steps: what the first page names is then whole, and a file where it
    /// is not is damaged, where the crate would go back to the recovery point before it otherwise. Nothing is
    /// written for a quicker repair: a file that is opened is read as a whole anyway.
    pub(super) fn make_durable(&self, doing: &'static str) -> Result<(), StoreFault> {
        self.write(doing, |engine| {
            let mut txn = engine.begin_write()?;
            txn.set_two_phase_commit(true);
            Ok(txn.commit()?)
        })
    }

    /// Gives back the room in the file that nothing uses. Everything must be durable.
    pub(super) fn compact(&mut self) -> Result<(), StoreFault> {
        let doing = "make the shard's file smaller";
        self.engine()?;
        let Some(engine) = self.engine.as_mut() else { return Ok(()) };
        let pen = self.backing.take_pen().map_err(|e| StoreFault::at(doing, &self.path, &e))?;
        let outcome = run_caught(|| engine.compact());
        drop(pen);
        match outcome {
            Ok(outcome) => outcome.map(drop).map_err(|error| StoreFault::at(doing, &self.path, &error)),
            Err(panicked) => {
                self.is_broken.store(true, Ordering::Release);
                Err(StoreFault::at(doing, &self.path, &panicked))
            }
        }
    }

    /// Gives a transaction up, whatever state it is in.
    pub(super) fn give_up(&self, txn: WriteTransaction) {
        if self.engine().is_err() {
            std::mem::forget(txn);
            return;
        }
        // What cannot be undone in the file is undone when it is opened again.
        let _ = self.write("give up what is uncommitted", |_| Ok(txn.abort()?));
    }

    /// Makes `to` a durable copy of the file: of its last recovery point, as long as no other is made meanwhile.
    /// Writes may go on: like those before a crash they change no byte that a recovery point needs.
    pub(super) fn copy(&self, to: &Path, doing: &'static str) -> Result<u64, StoreFault> {
        self.backing.copy(to).map_err(|e| StoreFault::at(doing, to, &e))
    }

    /// Where the file lies, from now on.
    pub(super) fn moved_to(&mut self, path: &Path) {
        path.clone_into(&mut self.path);
    }

    /// The file's length.
    pub(super) fn length_bytes(&self) -> u64 {
        self.backing.length_bytes().unwrap_or(0)
    }
}

/// Something of a database, which stays open for it.
pub(super) struct Held<T> {
    /// `None` only while this is dropped.
    value: Option<T>,
    live: Arc<Live>,
}

impl<T> Held<T> {
    pub(super) fn new(value: T, live: Arc<Live>) -> Self {
        Self { value: Some(value), live }
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Runs what is done with it, as [`Live::run`] does.
    pub(super) fn run<R>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&mut T) -> Result<Option<R>, redb::Error>,
    ) -> Result<Option<R>, StoreFault> {
        let Some(value) = self.value.as_mut() else { return Ok(None) };
        self.live.run(doing, || work(value))
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        drop_caught(self.value.take(), &self.live.is_broken);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        drop_caught(self.engine.take(), &self.is_broken);
    }
}

fn drop_caught<T>(value: Option<T>, is_broken: &AtomicBool) {
    if is_broken.load(Ordering::Acquire) {
        std::mem::forget(value);
    } else if run_caught(move || drop(value)).is_err() {
        is_broken.store(true, Ordering::Release);
    }
}

/// Opens the database, and repairs what a crash left in it.
fn start_engine(backing: &Arc<Backing>, cache_bytes: usize) -> Result<Database, String> {
    run_caught(|| {
        Builder::new()
            .set_cache_size(cache_bytes)
            .set_check_integrity_on_open(true)
            .create_with_backend(Handle(Arc::clone(backing)))
            .map_err(|error| error.to_string())
    })?
}
