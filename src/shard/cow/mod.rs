//! The store `cow`: a copy-on-write B-tree in one file, on the crate `redb`.
//!
//! It is for shards that are read more than they are written, and for hosts that want few files and no merges in
//! the background: scans read pages that are in order, and a commit costs the pages that were touched. It is one
//! file that changes everywhere: an archive of it has nothing in common with the one before, and a recovery point
//! that is kept, or pinned files, are a whole copy (which costs nothing where the file system shares blocks
//! between files, and writes the file once more where it does not).
//!
//! ```text
//! cow.redb         the tables
//! points/7/        a copy of it, as it was at a kept recovery point
//! pins/3/          a copy of it that somebody holds
//! ```
//!
//! | table | key | value |
//! |---|---|---|
//! | `entries` | `inst u32`, entry | none; an entry is the encoded key and the document id |
//! | `back index` | `inst u32`, document id | the document's encoded keys, each behind its length (`u16`) |
//! | `positions` | instance and vbucket | vbuuid, seqno, snapshot start and end (four `u64`) |
//! | `instances` | instance | whether it exists: of one that was dropped, records may still be there |
//! | `facts` | name | a number: format version, newest kept recovery point, bytes of all records |
//!
//! with the numbers of the first two tables, and those of a position, in big-endian order.
//!
//! Writes go to a transaction that stays open from one recovery point to the next. A snapshot and a cut end it
//! without making it durable, which costs no write to the disk that anything waits for; `flush` then makes durable
//! all that was cut. A writer that comes while it does waits for it.
//!
//! The file takes up to five times the bytes of its records. It is made smaller between two recovery points while
//! nobody reads, after an index was dropped or where much more of it is free; writers and readers wait for that.
//!
//! Invariants:
//! * Positions enter the tables only in [`ShardStore::cut`]. Nothing is written between a cut and the durable
//!   commit after it: a write that comes first makes that commit itself. So no durable commit carries entries
//!   without their positions.
//! * Nothing else commits durably while there is something uncommitted: not a compaction, and not the crate when
//!   it closes the file (see [`file`]).
//! * No savepoint of the crate is used. One would keep every page that is freed after it from being used again, and
//!   the file from being made smaller: under a steady load a shard with recovery points would grow without bound.
//! * A copy is made while recovery points cannot be, so that the copied one stays whole; writes may go on.
//! * What an open finds, it finds by reading all that the file holds: pages are not compared with their checksums
//!   when they are read later.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::{AccessGuard, Durability, Range, ReadOnlyTable, StorageError, WriteTransaction};

use crate::durable;
use crate::event::VbId;
use crate::thread::Until;
use crate::timestamp::Position;

use super::InstId;
use super::batch::Change;
use super::kept::{self, Pins, folder_bytes};
use super::store::{
    CheckFault, Entries, EntryBounds, InstancePositions, PinnedFiles, PointId, RecoveryPoint, ShardFile,
    ShardStore, StoreFault, StoreSize, StoreSnapshot,
};
use live::{FILE, Held, Live};
use tables::Facts;

mod file;
mod live;
mod tables;

/// A file that is longer than this many times its records has room to give back. The crate doubles a file when it
/// grows, and a recovery point that touches every page needs room for all of them twice.
const LOOSE_FACTOR: u64 = 4;
/// A file that is no longer than this is left as it is.
const LOOSE_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// See the module.
pub(super) struct CowStore {
    folder: PathBuf,
    cache_bytes: usize,
    /// Before `live` in the order of locks.
    filling: Mutex<Filling>,
    /// Whether the open transaction has changes, for those who need not wait for its end.
    has_changes: AtomicBool,
    /// Replaced by a roll-back; the mutex is held for a clone, and by a compaction.
    live: Mutex<Arc<Live>>,
    /// The recovery point that the next flush makes, where it is to be kept.
    to_keep: Mutex<Option<RecoveryPoint>>,
    /// Instances whose records are still being removed.
    dropped: Mutex<Vec<InstId>>,
    pins: Pins,
}

/// The recovery point that is being filled.
#[derive(Default)]
struct Filling {
    txn: Option<WriteTransaction>,
    /// A cut was committed and is not durable yet.
    is_cut: bool,
    /// A snapshot committed what no cut has ended yet.
    is_ahead: bool,
    facts: Facts,
    /// Bytes that were written since the file was last made smaller, and those that sweeps removed.
    written: u64,
    swept: u64,
    /// The file is to be made smaller, and there was something uncommitted when its turn came.
    is_to_shrink: bool,
}

impl CowStore {
    /// Makes the empty file of a new shard.
    pub(super) fn create(shard_folder: &Path) -> Result<(), StoreFault> {
        Live::create(&shard_folder.join(FILE)).map(drop)
    }

    /// Opens the file of a shard, with a cache of `cache_bytes`.
    pub(super) fn open(shard_folder: &Path, cache_bytes: usize) -> Result<Self, StoreFault> {
        let doing = "clear the shard's folder";
        let live = Live::open(&shard_folder.join(FILE), cache_bytes)?;
        kept::remove_leftovers(shard_folder, doing)?;
        remove_file(&new_file(shard_folder), doing)?;
        let facts = live.read("read the facts", Facts::read)?;
        // Those of a time that was rolled back, and of a cut that did not become durable.
        kept::forget_after(shard_folder, Some(facts.newest_point))?;
        Ok(Self {
            folder: shard_folder.to_owned(),
            cache_bytes,
            filling: Mutex::new(Filling { facts, ..Filling::default() }),
            has_changes: AtomicBool::new(false),
            live: Mutex::new(Arc::new(live)),
            to_keep: Mutex::default(),
            dropped: Mutex::default(),
            pins: Pins::of(shard_folder),
        })
    }

    fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.lock())
    }

    /// Changes the recovery point that is being filled.
    fn fill<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&WriteTransaction, &mut Filling) -> Result<T, redb::Error>,
    ) -> Result<T, StoreFault> {
        let mut filling = self.filling.lock();
        let live = self.live();
        end_cut(&live, &mut filling)?;
        let txn = match filling.txn.take() {
            Some(txn) => txn,
            None => live.write(doing, |engine| {
                let mut txn = engine.begin_write()?;
                txn.set_durability(Durability::None)?;
                Ok(txn)
            })?,
        };
        self.has_changes.store(true, Ordering::Release);
        let outcome = live.write(doing, |_| work(&txn, &mut filling));
        filling.txn = Some(txn);
        outcome
    }

    /// Makes visible what was written, and ends its transaction.
    fn commit(&self, filling: &mut Filling) -> Result<(), StoreFault> {
        if let Some(txn) = filling.txn.take() {
            self.live().write("commit what was written", |_| Ok(txn.commit()?))?;
        }
        self.has_changes.store(false, Ordering::Release);
        Ok(())
    }

    /// Makes the file smaller, where that is worth it and possible now. Gives back whether it was done.
    fn shrink(&self, filling: &mut Filling) -> Result<bool, StoreFault> {
        let mut live = self.live.lock();
        let held = filling.facts.held_bytes;
        let is_loose = live.length_bytes() > LOOSE_BYTES_MIN.max(held.saturating_mul(LOOSE_FACTOR));
        // Writers and readers wait meanwhile: that is worth it after many writes, or where an index is gone.
        if !(is_loose && filling.written > held) && filling.swept <= held / 8 {
            filling.is_to_shrink = false;
            return Ok(false);
        }
        // The next flush does it: under a steady load there is no other moment.
        filling.is_to_shrink = filling.txn.is_some() || filling.is_cut || filling.is_ahead;
        if filling.is_to_shrink {
            return Ok(false);
        }
        // Somebody reads, or copies: the next time will do.
        let Some(live) = Arc::get_mut(&mut live) else { return Ok(false) };
        live.compact()?;
        (filling.written, filling.swept) = (0, 0);
        Ok(true)
    }

    /// A file of its own that is what a roll-back to `to` leaves. It has no name yet that anything leads to.
    fn rolled_back(
        &self,
        to: Option<PointId>,
        instances: &[InstId],
    ) -> Result<(Live, Vec<InstancePositions>), StoreFault> {
        let doing = "make the rolled-back file";
        let path = new_file(&self.folder);
        remove_file(&path, doing)?;
        let live = match to {
            None => {
                drop(Live::create(&path)?);
                Live::open(&path, self.cache_bytes)?
            }
            Some(point) => {
                let kept = kept::point_folder(&self.folder, point).join(FILE);
                fs::copy(&kept, &path).map_err(|e| StoreFault::at(doing, &kept, &e))?;
                Live::open(&path, self.cache_bytes)
                    .map_err(|fault| StoreFault::at(doing, &kept, &fault.cause))?
            }
        };
        let (found, _) = live.read(doing, tables::load)?;
        let is_found = |inst: &InstId| found.iter().any(|(found, _)| found == inst);
        live.write(doing, |engine| {
            let mut txn = engine.begin_write()?;
            txn.set_durability(Durability::None)?;
            for inst in instances.iter().filter(|inst| !is_found(inst)) {
                tables::set_instance(&txn, *inst, true)?;
            }
            for (inst, _) in found.iter().filter(|(inst, _)| !instances.contains(inst)) {
                tables::set_instance(&txn, *inst, false)?;
            }
            Ok(txn.commit()?)
        })?;
        live.make_durable(doing)?;
        let (positions, _) = live.read(doing, tables::load)?;
        Ok((live, positions))
    }
}

/// Makes durable what was cut, if it is not yet.
fn end_cut(live: &Live, filling: &mut Filling) -> Result<(), StoreFault> {
    if filling.is_cut {
        live.make_durable("write a recovery point")?;
        (filling.is_cut, filling.is_ahead) = (false, false);
    }
    Ok(())
}

/// Where a roll-back makes the file that takes the other's place.
fn new_file(shard_folder: &Path) -> PathBuf {
    shard_folder.join(format!("{FILE}{}", durable::TEMPORARY_SUFFIX))
}

/// Removes a file; one that is not there is fine.
fn remove_file(path: &Path, doing: &'static str) -> Result<(), StoreFault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreFault::at(doing, path, &error))
        }
        _ => Ok(()),
    }
}

impl Drop for CowStore {
    fn drop(&mut self) {
        if let Some(txn) = self.filling.get_mut().txn.take() {
            self.live().give_up(txn);
        }
    }
}

impl ShardStore for CowStore {
    fn load(&self) -> Result<Vec<InstancePositions>, StoreFault> {
        let (live, dropped) = self.live().read("read the positions", tables::load)?;
        *self.dropped.lock() = dropped;
        Ok(live)
    }

    fn apply(&self, changes: &[Change<'_>]) -> Result<u64, StoreFault> {
        self.fill("apply a batch", |txn, filling| {
            let moved = tables::apply(txn, changes)?;
            let held = &mut filling.facts.held_bytes;
            *held = (*held + moved.inserted).saturating_sub(moved.removed);
            filling.written += moved.of_all();
            Ok(moved.of_all())
        })
    }

    fn add_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        self.fill("add an index", |txn, _| tables::set_instance(txn, inst, true))
    }

    fn remove_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        self.fill("remove an index", |txn, _| tables::set_instance(txn, inst, false))?;
        self.dropped.lock().push(inst);
        Ok(())
    }

    fn sweep(&self) -> Result<Option<u64>, StoreFault> {
        let mut dropped = self.dropped.lock();
        let Some(inst) = dropped.last().copied() else { return Ok(None) };
        let (bytes, is_done) = self.fill("remove a dropped index", |txn, filling| {
            let (bytes, is_done) = tables::sweep(txn, inst)?;
            filling.swept += bytes;
            filling.facts.held_bytes = filling.facts.held_bytes.saturating_sub(bytes);
            Ok((bytes, is_done))
        })?;
        if is_done {
            dropped.pop();
        }
        Ok(Some(bytes))
    }

    fn cut(&self, moved: &[(InstId, VbId, Position)], kept: Option<RecoveryPoint>) -> Result<(), StoreFault> {
        self.fill("end a recovery point", |txn, filling| {
            if let Some(point) = &kept {
                filling.facts.newest_point = point.id;
            }
            tables::write_positions(txn, moved)?;
            filling.facts.write(txn)
        })?;
        let mut filling = self.filling.lock();
        self.commit(&mut filling)?;
        filling.is_cut = true;
        *self.to_keep.lock() = kept;
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreFault> {
        let mut filling = self.filling.lock();
        end_cut(&self.live(), &mut filling)?;
        if filling.is_to_shrink {
            self.shrink(&mut filling)?;
        }
        drop(filling);
        let live = self.live();
        let kept = self.to_keep.lock().clone();
        if let Some(point) = kept {
            kept::keep(&self.folder, &point, |folder| {
                live.copy(&folder.join(FILE), "keep a recovery point").map(drop)
            })?;
            *self.to_keep.lock() = None;
        }
        Ok(())
    }

    fn points(&self) -> Result<Vec<RecoveryPoint>, StoreFault> {
        kept::list(&self.folder)
    }

    fn forget(&self, point: PointId) -> Result<(), StoreFault> {
        kept::forget(&self.folder, point)
    }

    fn roll_back(
        &self,
        to: Option<PointId>,
        instances: &[InstId],
    ) -> Result<Vec<InstancePositions>, StoreFault> {
        let doing = "put the rolled-back file in place";
        let mut filling = self.filling.lock();
        let (mut new, positions) = self.rolled_back(to, instances)?;
        let facts = new.read(doing, Facts::read)?;
        kept::forget_after(&self.folder, to)?;
        let path = self.folder.join(FILE);
        fs::rename(new_file(&self.folder), &path).map_err(|e| StoreFault::at(doing, &path, &e))?;
        durable::sync_folder(&self.folder).map_err(|e| StoreFault::new(doing, &e))?;
        new.moved_to(&path);
        let old = std::mem::replace(&mut *self.live.lock(), Arc::new(new));
        if let Some(txn) = filling.txn.take() {
            old.give_up(txn);
        }
        *filling = Filling { facts, ..Filling::default() };
        self.has_changes.store(false, Ordering::Release);
        *self.to_keep.lock() = None;
        drop(filling);
        self.load()?;
        Ok(positions)
    }

    fn compact(&self) -> Result<bool, StoreFault> {
        if self.pins.remove_unused("remove files that nobody holds any more")? {
            return Ok(true);
        }
        self.shrink(&mut self.filling.lock())
    }

    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot>, StoreFault> {
        if self.has_changes.load(Ordering::Acquire) {
            let mut filling = self.filling.lock();
            self.commit(&mut filling)?;
            filling.is_ahead = true;
        }
        let live = self.live();
        let entries = live.read("open a snapshot", |txn| Ok(txn.open_table(tables::ENTRIES)?))?;
        Ok(Box::new(CowSnapshot(Held::new(entries, live))))
    }

    fn files(&self) -> Result<Vec<ShardFile>, StoreFault> {
        let path = self.folder.join(FILE);
        let meta = fs::metadata(&path).map_err(|e| StoreFault::at("list the shard's files", &path, &e))?;
        Ok(vec![ShardFile { name: FILE.to_owned(), path, length_bytes: meta.len() }])
    }

    fn pin(&self) -> Result<PinnedFiles, StoreFault> {
        let doing = "pin the files of a recovery point";
        let (folder, hold) = self.pins.add(doing)?;
        let path = folder.join(FILE);
        let length_bytes = self.live().copy(&path, doing)?;
        Ok(PinnedFiles::new(vec![ShardFile { name: FILE.to_owned(), path, length_bytes }], hold))
    }

    fn check(&self, until: &Until) -> Result<(), CheckFault> {
        // While it is held no compaction begins.
        self.live().check(self.cache_bytes, until)
    }

    fn size(&self) -> StoreSize {
        let cached = self.cache_bytes as u64;
        let memory_bytes = self.live.try_lock().map_or(cached, |live| live.length_bytes().min(cached));
        StoreSize { disk_bytes: folder_bytes(&self.folder), memory_bytes }
    }
}

struct CowSnapshot(Held<ReadOnlyTable<&'static [u8], ()>>);

impl StoreSnapshot for CowSnapshot {
    fn scan(&self, inst: InstId, bounds: &EntryBounds) -> Entries {
        let Some(entries) = self.0.get() else { return Box::new(std::iter::empty()) };
        let live = self.0.live();
        let (low, high) = tables::entry_range(inst, bounds);
        let range = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
        match live.run(READING, || Ok(entries.range::<&[u8]>(range)?)) {
            Ok(range) => Box::new(CowEntries(Held::new(range, Arc::clone(live)))),
            Err(fault) => Box::new(std::iter::once(Err(fault))),
        }
    }
}

const READING: &str = "read an entry";

struct CowEntries(Held<Range<'static, &'static [u8], ()>>);

/// An entry's key, on the page that it is on.
type Key = AccessGuard<'static, &'static [u8]>;

fn entry(read: Result<(Key, AccessGuard<'static, ()>), StorageError>) -> Result<Vec<u8>, redb::Error> {
    Ok(tables::entry_of(read?.0.value()).to_vec())
}

impl Iterator for CowEntries {
    type Item = Result<Vec<u8>, StoreFault>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.run(READING, |range| range.next().map(entry).transpose()).transpose()
    }
}

impl DoubleEndedIterator for CowEntries {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.run(READING, |range| range.next_back().map(entry).transpose()).transpose()
    }
}
