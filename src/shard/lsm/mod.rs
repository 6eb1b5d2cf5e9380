//! The store `lsm`: a log-structured merge tree, on the crate `lsm-tree`.
//!
//! The crate has no threads, no log and no background work: a flush or a compaction happens when it is called
//! for, on the caller's thread. One tree holds the whole shard, so that one flush is one recovery point over all
//! instances. Its keys are
//!
//! | key | value |
//! |---|---|
//! | `0u32` `00` `inst u32` | empty: the instance exists |
//! | `0u32` `01` `inst u32` | empty: the instance was dropped, its keys are still being removed |
//! | `inst u32` `01` `vb u16` | vbuuid, seqno, snapshot start and end (four `u64`) |
//! | `inst u32` `02` entry | empty; an entry is the encoded key and the document id |
//! | `inst u32` `03` document id | back index: the document's encoded keys, each behind its length (`u16`) |
//!
//! with all numbers in big-endian order. Instance ids are never used again, and none is zero.
//!
//! The folders beside the tree are told in `life` and in [`kept`].
//!
//! Invariants:
//! * Positions enter the tree only in [`ShardStore::cut`], right before the memtable is rotated. A table on disk
//!   therefore holds the entries of a batch and its positions, or neither.
//! * The sequence counter is set behind the highest number on disk when the tree is opened; otherwise new
//!   writes would lose against old ones in a compaction.
//! * A snapshot holds the version that it reads, with its memtables and tables. Nothing that is flushed, merged or let
//!   go of afterwards touches it, and of what came afterwards it keeps what the memtable of its time took, alone.
//! * Nothing is opened whose version file does not have the checksum that `current` names: the crate does not
//!   compare them, and may abort the process over a damaged one.
//! * The first level never has more tables than a version file can count: the crate would write one that cannot be
//!   read again.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_tree::compaction::Leveled;
use lsm_tree::config::CompressionPolicy;
use lsm_tree::{
    AbstractTree, AnyTree, Cache, Config, DescriptorTable, Guard, InternalValue, Memtable, SeqNo,
    SequenceNumberCounter, ValueType,
};
use parking_lot::Mutex;

use crate::event::VbId;
use crate::thread::Until;
use crate::timestamp::Position;

use super::InstId;
use super::batch::Change;
use super::codec::{EntryEdits, decode_position, edits, encode_position, write_back_value};
use super::kept::{self, Pins, folder_bytes};
use super::store::{
    CheckFault, Entries, EntryBounds, InstancePositions, PinnedFiles, PointId, RecoveryPoint, ShardFile,
    ShardStore, StoreFault, StoreSize, StoreSnapshot,
};
use keys::{
    BACK, ENTRY, POSITION, PREFIX_BYTES, REGISTRY, REGISTRY_DROPPED, REGISTRY_LIVE, append_key, entry_range,
    key, registry_key, write_key,
};
use known::Known;
use life::Life;
pub(super) use life::local_file;

mod files;
mod keys;
mod known;
mod life;

/// Folder of the tree within the shard's folder.
const FOLDER: &str = "lsm";
/// Tables are so small a share of the tree, between these bounds, and so many of the newest ones wait before they are
/// merged. The first level then has a 16th of the tree: changes gather there before they are merged into the last,
/// which few of them rewrite, so the next archive of the shard has most of its files already.
const TABLE_SHARE: u64 = 128;
const TABLE_BYTES_MIN: u64 = 512 * 1024;
const TABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;
const NEW_TABLES: u8 = 8;
/// As many of the newest tables as a version file has room for: it counts them in one byte, and the crate does not look
/// whether they fit.
const NEW_TABLES_MAX: usize = u8::MAX as usize;
/// Part of the cache's memory that tells which documents are new. With the 64 MiB that are the default it has room for
/// eleven million documents.
const KNOWN_SHARE: u64 = 4;
/// What a record takes of memory besides what the memtable counts: the rest of its node, and what the allocator adds to
/// it, to the key and to the value. Measured with keys of 24 to 100 bytes: 61 to 89.
const RECORD_BYTES: u64 = 64;
/// Keys of a dropped instance that one sweep removes.
const SWEEP_KEYS: usize = 4096;

/// Memory and file handles that the trees of one bucket share.
#[derive(Clone)]
pub(super) struct LsmShared {
    cache: Arc<Cache>,
    descriptors: Arc<DescriptorTable>,
    known_bytes_per_shard: usize,
}

impl LsmShared {
    /// Caches of `cache_bytes` and at most `open_files_max` open tables, for as many `shards`.
    pub(super) fn new(shards: u64, cache_bytes: u64, open_files_max: usize) -> Self {
        let known_bytes = cache_bytes / KNOWN_SHARE;
        Self {
            cache: Arc::new(Cache::with_capacity_bytes(cache_bytes - known_bytes)),
            descriptors: Arc::new(DescriptorTable::new(open_files_max)),
            known_bytes_per_shard: usize::try_from(known_bytes / shards).unwrap_or(usize::MAX),
        }
    }
}

/// See the module.
pub(super) struct LsmStore {
    folder: PathBuf,
    shared: LsmShared,
    /// Replaced by a roll-back; the mutex is held for a clone alone.
    tree: Mutex<Arc<Tree>>,
    /// Trees that a roll-back replaced. Their folders go when nobody holds them any more.
    replaced: Mutex<Vec<Arc<Tree>>>,
    /// The recovery point that the next flush makes, where it is to be kept.
    to_keep: Mutex<Option<RecoveryPoint>>,
    pins: Pins,
    /// Taken out while a batch is applied.
    known: Mutex<Option<Known>>,
}

/// One tree that is open.
struct Tree {
    engine: AnyTree,
    life: Life,
    folder: PathBuf,
    seqno: SequenceNumberCounter,
    /// Tables of the first level. Looking at the version would hold its files, maybe longer than it lasts.
    unmerged: Mutex<usize>,
    /// Instances whose keys are still being removed, each with the last key that was.
    dropped: Mutex<Vec<(InstId, Vec<u8>)>>,
}

fn tree_fault(doing: &'static str) -> impl Fn(lsm_tree::Error) -> StoreFault {
    move |error| match error {
        lsm_tree::Error::Io(io) => StoreFault::new(doing, &io),
        other => StoreFault { doing, cause: format!("{other:?}") },
    }
}

impl Tree {
    fn open(
        folder: PathBuf,
        life: Life,
        shared: &LsmShared,
        doing: &'static str,
    ) -> Result<Self, StoreFault> {
        let seqno = SequenceNumberCounter::default();
        let visible = SequenceNumberCounter::default();
        let engine = Config::new(&folder, seqno.clone(), visible.clone())
            .use_cache(Arc::clone(&shared.cache))
            .use_descriptor_table(Some(Arc::clone(&shared.descriptors)))
            // The crate's default depends on a feature that anything else in the host's program may switch on, and a
            // program without it could not read the tables.
            .data_block_compression_policy(CompressionPolicy::disabled())
            .open()
            .map_err(tree_fault(doing))?;
        let next = engine.get_highest_seqno().map_or(1, |highest| highest + 1);
        seqno.set(next);
        visible.set(next);
        let unmerged = Mutex::new(engine.l0_run_count());
        Ok(Self { engine, life, folder, seqno, unmerged, dropped: Mutex::default() })
    }

    /// What is older and was replaced goes when tables are written. Whoever reads it has a version of its own.
    fn watermark(&self) -> SeqNo {
        self.seqno.get().saturating_sub(1)
    }

    fn registered(&self, list: u8) -> Result<Vec<InstId>, StoreFault> {
        let doing = "read the registry";
        self.engine
            .prefix(key(REGISTRY, list, &[]), SeqNo::MAX, None)
            .map(|item| {
                let key = item.key().map_err(tree_fault(doing))?;
                let id = key.get(PREFIX_BYTES..).and_then(|id| id.try_into().ok());
                let id = id.ok_or_else(|| StoreFault::new(doing, &"a record is damaged"))?;
                Ok(InstId(u32::from_be_bytes(id)))
            })
            .collect()
    }

    fn positions(&self, inst: InstId) -> Result<Vec<(VbId, Position)>, StoreFault> {
        let doing = "read the positions";
        self.engine
            .prefix(key(inst, POSITION, &[]), SeqNo::MAX, None)
            .map(|item| {
                let (key, value) = item.into_inner().map_err(tree_fault(doing))?;
                let vb = key.get(PREFIX_BYTES..).and_then(|vb| vb.try_into().ok());
                match (vb, decode_position(&value)) {
                    (Some(vb), Some(position)) => Ok((VbId(u16::from_be_bytes(vb)), position)),
                    _ => Err(StoreFault::new(doing, &"a record is damaged")),
                }
            })
            .collect()
    }

    fn load(&self) -> Result<Vec<InstancePositions>, StoreFault> {
        *self.dropped.lock() = self.registered(REGISTRY_DROPPED)?.into_iter().map(sweep_start).collect();
        self.registered(REGISTRY_LIVE)?.into_iter().map(|inst| Ok((inst, self.positions(inst)?))).collect()
    }

    fn add_instance(&self, inst: InstId) {
        self.engine.insert(registry_key(REGISTRY_LIVE, inst), [], self.seqno.next());
    }

    fn remove_instance(&self, inst: InstId) {
        let seqno = self.seqno.next();
        self.engine.remove(registry_key(REGISTRY_LIVE, inst), seqno);
        self.engine.insert(registry_key(REGISTRY_DROPPED, inst), [], seqno);
        self.dropped.lock().push(sweep_start(inst));
    }

    fn flush(&self) -> Result<(), StoreFault> {
        let doing = "write a recovery point";
        let turn = self.engine.get_flush_lock();
        if self.engine.sealed_memtable_count() > 0 && self.engine.l0_run_count() >= NEW_TABLES_MAX {
            return Err(StoreFault::new(
                doing,
                &"too many wait to be merged; it is tried again after a merge",
            ));
        }
        self.engine.flush(&turn, self.watermark()).map_err(tree_fault(doing))?;
        // The recovery point is made. The next compaction does this again, and tells why it cannot be done.
        let _ = self.let_go();
        Ok(())
    }

    /// Drops all versions but the newest. The crate keeps the one before it until there is another, and with it the
    /// memtable that was flushed, or the tables that were merged.
    fn let_go(&self) -> Result<(), lsm_tree::Error> {
        {
            // Counted under the mutex: a flush and a merge may be here at the same time.
            let mut unmerged = self.unmerged.lock();
            *unmerged = self.engine.l0_run_count();
        }
        // The watermark has to be above the newest version's number.
        let _ = self.seqno.next();
        let path = &self.engine.tree_config().path;
        self.engine.get_version_history_lock().maintenance(path, self.watermark())
    }

    fn is_without_documents(&self) -> Result<bool, StoreFault> {
        let has_none =
            |inst: &InstId| self.engine.prefix(key(*inst, BACK, &[]), SeqNo::MAX, None).next().is_none();
        Ok(self.registered(REGISTRY_LIVE)?.iter().all(has_none))
    }

    fn apply(&self, changes: &[Change<'_>], known: &mut Option<Known>) -> Result<u64, StoreFault> {
        let seqno = self.seqno.next();
        let (mut back_key, mut back_value, mut entries) = (Vec::new(), Vec::new(), EntryEdits::default());
        // The tree would look for it before each write. No other takes its place before the next cut.
        let memtable = self.engine.active_memtable();
        let known = known.as_mut().map(|known| known.note(changes.iter().map(|change| change.doc_id)));
        let mut bytes = 0;
        for (place, change) in changes.iter().enumerate() {
            write_key(&mut back_key, change.inst, BACK, &[change.doc_id]);
            let is_new = known.as_ref().and_then(|known| known.get(place)) == Some(&false);
            let old = if change.once || is_new {
                None
            } else {
                self.engine.get(&back_key, SeqNo::MAX).map_err(tree_fault("read the back index"))?
            };
            let old_value = old.as_deref().unwrap_or_default();
            write_back_value(&mut back_value, change.keys());
            if old_value == back_value {
                continue;
            }
            for edit in edits(old_value, change) {
                let append =
                    |keys: &mut _, entry| append_key(keys, change.inst, ENTRY, &[entry, change.doc_id]);
                entries.note(edit, append);
            }
            let value = (!back_value.is_empty()).then_some(back_value.as_slice());
            bytes += write(&memtable, &back_key, value, seqno);
        }
        let written =
            entries.in_order().map(|(key, is_there)| write(&memtable, key, is_there.then_some(&[]), seqno));
        Ok(bytes + written.sum::<u64>())
    }

    fn sweep(&self) -> Result<Option<u64>, StoreFault> {
        let mut dropped = self.dropped.lock();
        let Some((inst, swept)) = dropped.last_mut() else { return Ok(None) };
        let rest = (Bound::Excluded(swept.clone()), Bound::Excluded(key(*inst, BACK + 1, &[])));
        let (mut keys, mut bytes) = (0, 0);
        for item in self.engine.range(rest, SeqNo::MAX, None).take(SWEEP_KEYS) {
            let key = item.key().map_err(tree_fault("remove a dropped index"))?;
            *swept = key.to_vec();
            bytes += self.engine.remove(key, self.seqno.next()).0 + RECORD_BYTES;
            keys += 1;
        }
        if keys < SWEEP_KEYS {
            bytes += self.engine.remove(registry_key(REGISTRY_DROPPED, *inst), self.seqno.next()).0;
            dropped.pop();
        }
        Ok(Some(bytes))
    }
}

/// The file that is to blame for a fault, where one is damaged: the crate does not say which one it cannot take.
fn named_damage(folder: &Path, fault: StoreFault) -> StoreFault {
    match files::check(folder, &Until::default()) {
        Err(CheckFault::Fault(damage)) => damage,
        _ => fault,
    }
}

/// Where the sweep of an instance starts: below all of its keys.
fn sweep_start(inst: InstId) -> (InstId, Vec<u8>) {
    (inst, key(inst, 0, &[]))
}

/// Writes a value, or that there is none any more. Gives back how many bytes the memtable grew by.
fn write(memtable: &Memtable, key: &[u8], value: Option<&[u8]>, seqno: SeqNo) -> u64 {
    let record = match value {
        Some(value) => InternalValue::from_components(key, value, seqno, ValueType::Value),
        None => InternalValue::new_tombstone(key, seqno),
    };
    memtable.insert(record).0 + RECORD_BYTES
}

impl LsmStore {
    /// Makes an empty tree in the shard's folder.
    pub(super) fn create(shard_folder: &Path, shared: &LsmShared) -> Result<(), StoreFault> {
        let life = Life::default();
        Tree::open(life.folder(shard_folder), life, shared, "create the tree").map(drop)
    }

    /// Opens the tree of a shard. A tree without its version file is damaged, never an empty one: the crate
    /// would start afresh and delete the tables.
    pub(super) fn open(shard_folder: &Path, shared: &LsmShared) -> Result<Self, StoreFault> {
        let life = Life::read(shard_folder)?;
        let folder = life.folder(shard_folder);
        files::check_version_file(&folder)?;
        life::remove_leftovers(shard_folder, life)?;
        let tree = Tree::open(folder.clone(), life, shared, "open the tree")
            .map_err(|fault| named_damage(&folder, fault))?;
        let is_empty = tree.is_without_documents().map_err(|fault| named_damage(&folder, fault))?;
        Ok(Self {
            folder: shard_folder.to_owned(),
            shared: shared.clone(),
            tree: Mutex::new(Arc::new(tree)),
            replaced: Mutex::default(),
            to_keep: Mutex::default(),
            pins: Pins::of(shard_folder),
            known: Mutex::new(is_empty.then(|| Known::nothing(shared.known_bytes_per_shard))),
        })
    }

    fn tree(&self) -> Arc<Tree> {
        Arc::clone(&self.tree.lock())
    }

    /// A tree in a folder of its own that is what a roll-back to `to` leaves. Nothing names the folder yet.
    fn rolled_back(
        &self,
        to: Option<PointId>,
        instances: &[InstId],
    ) -> Result<(Tree, Vec<InstancePositions>), StoreFault> {
        let doing = "open the rolled-back tree";
        let life = Life(self.tree().life.0 + 1);
        let folder = life.folder(&self.folder);
        kept::remove(&folder, doing)?;
        if let Some(point) = to {
            files::link_again(&kept::point_folder(&self.folder, point), &folder)?;
        }
        let tree = Tree::open(folder, life, &self.shared, doing)?;
        let found = tree.load()?;
        let is_found = |inst: &InstId| found.iter().any(|(found, _)| found == inst);
        instances.iter().filter(|inst| !is_found(inst)).for_each(|inst| tree.add_instance(*inst));
        found
            .iter()
            .filter(|(inst, _)| !instances.contains(inst))
            .for_each(|(inst, _)| tree.remove_instance(*inst));
        tree.engine.rotate_memtable();
        tree.flush()?;
        let positions = tree.load()?;
        Ok((tree, positions))
    }

    /// Removes one folder of a tree that was replaced or of files that were pinned, if nobody holds it any more.
    fn remove_unused(&self) -> Result<bool, StoreFault> {
        let doing = "remove files that nobody reads any more";
        let unused = {
            let mut replaced = self.replaced.lock();
            let place = replaced.iter().position(|tree| Arc::strong_count(tree) == 1);
            place.map(|place| replaced.remove(place))
        };
        if let Some(tree) = unused {
            kept::remove(&tree.folder, doing)?;
            return Ok(true);
        }
        self.pins.remove_unused(doing)
    }
}

impl ShardStore for LsmStore {
    fn load(&self) -> Result<Vec<InstancePositions>, StoreFault> {
        let tree = self.tree();
        tree.load().map_err(|fault| named_damage(&tree.folder, fault))
    }

    fn apply(&self, changes: &[Change<'_>]) -> Result<u64, StoreFault> {
        let mut known = self.known.lock().take();
        let applied = self.tree().apply(changes, &mut known);
        *self.known.lock() = known.filter(|known| !known.is_full());
        applied
    }

    fn add_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        self.tree().add_instance(inst);
        Ok(())
    }

    fn remove_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        self.tree().remove_instance(inst);
        Ok(())
    }

    fn sweep(&self) -> Result<Option<u64>, StoreFault> {
        self.tree().sweep()
    }

    fn cut(&self, moved: &[(InstId, VbId, Position)], kept: Option<RecoveryPoint>) -> Result<(), StoreFault> {
        let tree = self.tree();
        let seqno = tree.seqno.next();
        for (inst, vb, position) in moved {
            let key = key(*inst, POSITION, &vb.0.to_be_bytes());
            tree.engine.insert(key, encode_position(position), seqno);
        }
        tree.engine.rotate_memtable();
        *self.to_keep.lock() = kept;
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreFault> {
        let tree = self.tree();
        tree.flush()?;
        let kept = self.to_keep.lock().clone();
        if let Some(point) = kept {
            kept::keep(&self.folder, &point, |folder| {
                files::link(&tree.engine, &tree.folder, folder)?;
                files::sync_links(folder)
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
        let (tree, positions) = self.rolled_back(to, instances)?;
        kept::forget_after(&self.folder, to)?;
        tree.life.write(&self.folder)?;
        let old = std::mem::replace(&mut *self.tree.lock(), Arc::new(tree));
        self.replaced.lock().push(old);
        // A point may be older than the opening, and have documents that were gone by then.
        *self.known.lock() = to.is_none().then(|| Known::nothing(self.shared.known_bytes_per_shard));
        *self.to_keep.lock() = None;
        Ok(positions)
    }

    fn compact(&self) -> Result<bool, StoreFault> {
        if self.remove_unused()? {
            return Ok(true);
        }
        let tree = self.tree();
        let before = tree.engine.current_version().id();
        let table_bytes = (tree.engine.disk_space() / TABLE_SHARE).clamp(TABLE_BYTES_MIN, TABLE_BYTES_MAX);
        let strategy = Leveled::default().with_table_target_size(table_bytes).with_l0_threshold(NEW_TABLES);
        let doing = "compact the tree";
        tree.engine.compact(Arc::new(strategy), tree.watermark()).map_err(tree_fault(doing))?;
        tree.let_go().map_err(tree_fault(doing))?;
        Ok(tree.engine.current_version().id() != before)
    }

    fn unmerged(&self) -> usize {
        *self.tree().unmerged.lock()
    }

    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot>, StoreFault> {
        let tree = self.tree();
        let (version, seqno) = {
            let versions = tree.engine.get_version_history_lock();
            // They get their numbers under the lock, so the newest one's is lower.
            (versions.latest_version(), tree.seqno.get())
        };
        let read = move |range: &EntryBounds| -> Entries {
            let records = lsm_tree::Tree::create_internal_range(version.clone(), range, seqno, None);
            // The tree is held by what is scanned: its folder stays until the scan has ended.
            let tree = Arc::clone(&tree);
            Box::new(records.map(move |record| {
                let _held = &tree;
                let key = record.map_err(tree_fault("read an entry"))?.key.user_key;
                Ok(key.get(PREFIX_BYTES..).unwrap_or_default().to_vec())
            }))
        };
        Ok(Box::new(LsmSnapshot(read)))
    }

    fn files(&self) -> Result<Vec<ShardFile>, StoreFault> {
        let tree = self.tree();
        files::list(&tree.engine, &tree.folder)
    }

    fn pin(&self) -> Result<PinnedFiles, StoreFault> {
        let tree = self.tree();
        let (folder, hold) = self.pins.add("pin the files of a recovery point")?;
        let files = files::link(&tree.engine, &tree.folder, &folder)?;
        Ok(PinnedFiles::new(files, hold))
    }

    fn check(&self, until: &Until) -> Result<(), CheckFault> {
        files::check(&self.tree().folder, until)
    }

    fn size(&self) -> StoreSize {
        let tree = self.tree();
        let memory_bytes = tree.engine.active_memtable().size() + tree.engine.version_memtable_size_sum();
        StoreSize { disk_bytes: folder_bytes(&self.folder), memory_bytes }
    }
}

/// Reads a range of a version.
struct LsmSnapshot<R>(R);

impl<R: Fn(&EntryBounds) -> Entries + Send + Sync> StoreSnapshot for LsmSnapshot<R> {
    fn scan(&self, inst: InstId, bounds: &EntryBounds) -> Entries {
        entry_range(inst, bounds)
            .map_or_else(|| Box::new(std::iter::empty()) as Entries, |range| self.0(&range))
    }
}
