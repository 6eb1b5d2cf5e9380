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
//! Invariants:
//! * Positions enter the tree only in [`ShardStore::cut`], right before the memtable is rotated. A table on disk
//!   therefore holds the entries of a batch and its positions, or neither.
//! * The sequence counter is set behind the highest number on disk when the tree is opened; otherwise new
//!   writes would lose against old ones in a compaction.
//! * The garbage-collection watermark stays below every open snapshot: the crate panics on a read below it.
//! * Nothing is opened whose version file does not have the checksum that `current` names: the crate does not
//!   compare them, and may abort the process over a damaged one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree, Cache, Config, DescriptorTable, Guard, SeqNo, SequenceNumberCounter};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use crate::event::{Seqno, VbId, VbUuid};
use crate::timestamp::Position;

use super::InstId;
use super::batch::Change;
use super::store::{
    Entries, EntryBounds, InstancePositions, ShardFile, ShardStore, StoreFault, StoreSnapshot,
};

/// Folder of the tree within the shard's folder.
const FOLDER: &str = "lsm";
/// File that names the tree's newest version: 8 bytes version id, 16 bytes checksum, 1 byte kind of checksum.
const CURRENT: &str = "current";
const TABLES: &str = "tables";
const CHECKSUM_XXH3: u8 = 0;
/// Small tables make the next archive of the shard cheap: a merge rewrites, and so uploads, less.
const TABLE_TARGET_BYTES: u64 = 8 * 1024 * 1024;

const REGISTRY: InstId = InstId(0);
const REGISTRY_LIVE: u8 = 0x00;
const REGISTRY_DROPPED: u8 = 0x01;
const POSITION: u8 = 0x01;
const ENTRY: u8 = 0x02;
const BACK: u8 = 0x03;
const PREFIX_BYTES: usize = 5;
/// Keys of a dropped instance that one sweep removes.
const SWEEP_KEYS: usize = 4096;

/// Memory and file handles that the trees of one bucket share.
#[derive(Clone)]
pub(super) struct LsmShared {
    cache: Arc<Cache>,
    descriptors: Arc<DescriptorTable>,
}

impl LsmShared {
    /// A block cache of `cache_bytes` and at most `open_files_max` open tables.
    pub(super) fn new(cache_bytes: u64, open_files_max: usize) -> Self {
        Self {
            cache: Arc::new(Cache::with_capacity_bytes(cache_bytes)),
            descriptors: Arc::new(DescriptorTable::new(open_files_max)),
        }
    }
}

/// Numbers of the open snapshots, with how many hold each.
type Snapshots = Arc<Mutex<BTreeMap<SeqNo, usize>>>;

/// See the module.
pub(super) struct LsmStore {
    tree: AnyTree,
    folder: PathBuf,
    seqno: SequenceNumberCounter,
    snapshots: Snapshots,
    /// Instances whose keys are still being removed, each with the last key that was.
    dropped: Mutex<Vec<(InstId, Vec<u8>)>>,
}

fn fault<E: std::fmt::Debug>(doing: &'static str) -> impl Fn(E) -> StoreFault {
    move |error| StoreFault { doing, cause: format!("{error:?}") }
}

fn tree_fault(doing: &'static str) -> impl Fn(lsm_tree::Error) -> StoreFault {
    move |error| match error {
        lsm_tree::Error::Io(io) => StoreFault::new(doing, &io),
        other => fault(doing)(other),
    }
}

fn key(inst: InstId, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX_BYTES + rest.len());
    write_key(&mut key, inst, kind, &[rest]);
    key
}

fn write_key(key: &mut Vec<u8>, inst: InstId, kind: u8, rest: &[&[u8]]) {
    key.clear();
    key.extend_from_slice(&inst.0.to_be_bytes());
    key.push(kind);
    for part in rest {
        key.extend_from_slice(part);
    }
}

fn encode_position(position: &Position) -> [u8; 32] {
    let mut bytes = [0; 32];
    let numbers = [position.vbuuid.0, position.seqno.0, position.snap_start.0, position.snap_end.0];
    for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

fn decode_position(bytes: &[u8]) -> Option<Position> {
    let number = |at: usize| -> Option<u64> {
        Some(u64::from_be_bytes(bytes.get(at * 8..at * 8 + 8)?.try_into().ok()?))
    };
    Some(Position {
        vbuuid: VbUuid(number(0)?),
        seqno: Seqno(number(1)?),
        snap_start: Seqno(number(2)?),
        snap_end: Seqno(number(3)?),
    })
}

/// The encoded keys of a back-index value.
fn back_keys(mut value: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    std::iter::from_fn(move || {
        let (length, rest) = value.split_first_chunk::<2>()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        value = rest;
        Some(key)
    })
}

fn write_back_value<'k>(value: &mut Vec<u8>, keys: impl Iterator<Item = &'k [u8]>) {
    value.clear();
    for key in keys {
        // Keys are bounded far below 64 KiB by the index room; a longer one could not be a tree key either.
        value.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes());
        value.extend_from_slice(key);
    }
}

impl LsmStore {
    /// Makes an empty tree in the shard's folder.
    pub(super) fn create(shard_folder: &Path, shared: &LsmShared) -> Result<Self, StoreFault> {
        Self::open_tree(shard_folder, shared, "create the tree")
    }

    /// Opens the tree of a shard. A tree without its version file is damaged, never an empty one: the crate
    /// would start afresh and delete the tables.
    pub(super) fn open(shard_folder: &Path, shared: &LsmShared) -> Result<Self, StoreFault> {
        let folder = shard_folder.join(FOLDER);
        check_version_file(&folder)?;
        Self::open_tree(shard_folder, shared, "open the tree")
    }

    fn open_tree(shard_folder: &Path, shared: &LsmShared, doing: &'static str) -> Result<Self, StoreFault> {
        let folder = shard_folder.join(FOLDER);
        let seqno = SequenceNumberCounter::default();
        let visible = SequenceNumberCounter::default();
        let tree = Config::new(&folder, seqno.clone(), visible.clone())
            .use_cache(Arc::clone(&shared.cache))
            .use_descriptor_table(Some(Arc::clone(&shared.descriptors)))
            .open()
            .map_err(tree_fault(doing))?;
        let next = tree.get_highest_seqno().map_or(1, |highest| highest + 1);
        seqno.set(next);
        visible.set(next);
        Ok(Self { tree, folder, seqno, snapshots: Snapshots::default(), dropped: Mutex::default() })
    }

    fn watermark(&self) -> SeqNo {
        // The counter is read under the registry's mutex: a snapshot that is opened later has a higher number.
        let snapshots = self.snapshots.lock();
        let oldest = snapshots.first_key_value().map(|(seqno, _)| *seqno);
        oldest.unwrap_or_else(|| self.seqno.get()).saturating_sub(1)
    }

    fn keys_with_prefix(&self, inst: InstId, kind: u8) -> impl Iterator<Item = Result<Vec<u8>, StoreFault>> {
        self.tree
            .prefix(key(inst, kind, &[]), SeqNo::MAX, None)
            .map(|item| item.key().map(|key| key.to_vec()).map_err(tree_fault("read the tree")))
    }

    fn registered(&self, list: u8) -> Result<Vec<InstId>, StoreFault> {
        self.keys_with_prefix(REGISTRY, list)
            .map(|key| {
                let key = key?;
                let id = key.get(PREFIX_BYTES..).and_then(|id| id.try_into().ok()).ok_or_else(|| {
                    StoreFault { doing: "read the registry", cause: "a record is damaged".to_owned() }
                })?;
                Ok(InstId(u32::from_be_bytes(id)))
            })
            .collect()
    }

    fn positions(&self, inst: InstId) -> Result<Vec<(VbId, Position)>, StoreFault> {
        let doing = "read the positions";
        self.tree
            .prefix(key(inst, POSITION, &[]), SeqNo::MAX, None)
            .map(|item| {
                let (key, value) = item.into_inner().map_err(tree_fault(doing))?;
                let vb = key.get(PREFIX_BYTES..).and_then(|vb| vb.try_into().ok());
                match (vb, decode_position(&value)) {
                    (Some(vb), Some(position)) => Ok((VbId(u16::from_be_bytes(vb)), position)),
                    _ => Err(StoreFault { doing, cause: "a record is damaged".to_owned() }),
                }
            })
            .collect()
    }
}

/// Where the sweep of an instance starts: below all of its keys.
fn sweep_start(inst: InstId) -> (InstId, Vec<u8>) {
    (inst, key(inst, 0, &[]))
}

/// The file of the version that `current` names, and the checksum that it must have.
fn current_version(folder: &Path) -> Result<(PathBuf, u128), StoreFault> {
    let doing = "read the tree's version";
    let path = folder.join(CURRENT);
    let current =
        std::fs::read(&path).map_err(|e| StoreFault { doing, cause: format!("{}: {e}", path.display()) })?;
    let damaged = || StoreFault { doing, cause: format!("{} is damaged", path.display()) };
    let (id, rest) = current.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (checksum, kind) = rest.split_first_chunk::<16>().ok_or_else(damaged)?;
    if kind != [CHECKSUM_XXH3] {
        return Err(damaged());
    }
    Ok((folder.join(format!("v{}", u64::from_le_bytes(*id))), u128::from_le_bytes(*checksum)))
}

fn check_version_file(folder: &Path) -> Result<(), StoreFault> {
    let doing = "open the tree";
    let (path, checksum) = current_version(folder)?;
    let version =
        std::fs::read(&path).map_err(|e| StoreFault { doing, cause: format!("{}: {e}", path.display()) })?;
    if xxh3_128(&version) == checksum {
        return Ok(());
    }
    Err(StoreFault { doing, cause: format!("{} is damaged: its checksum does not match", path.display()) })
}

/// Memory that is used again from one change to the next.
#[derive(Default)]
struct Scratch {
    back_key: Vec<u8>,
    back_value: Vec<u8>,
    entry_key: Vec<u8>,
}

impl LsmStore {
    fn apply_change(&self, change: &Change<'_>, scratch: &mut Scratch) -> Result<u64, StoreFault> {
        write_key(&mut scratch.back_key, change.inst, BACK, &[change.doc_id]);
        let old = self.tree.get(&scratch.back_key, SeqNo::MAX).map_err(tree_fault("read the back index"))?;
        let old_value = old.as_deref().unwrap_or_default();
        write_back_value(&mut scratch.back_value, change.keys());
        if old_value == scratch.back_value {
            return Ok(0);
        }
        // Each change has a number of its own: two changes of a document in one batch keep their order.
        let seqno = self.seqno.next();
        let mut bytes = 0;
        for gone in back_keys(old_value).filter(|old| !change.keys().any(|new| new == *old)) {
            write_key(&mut scratch.entry_key, change.inst, ENTRY, &[gone, change.doc_id]);
            bytes += self.tree.remove(scratch.entry_key.as_slice(), seqno).0;
        }
        for new in change.keys().filter(|new| !back_keys(old_value).any(|old| old == *new)) {
            write_key(&mut scratch.entry_key, change.inst, ENTRY, &[new, change.doc_id]);
            bytes += self.tree.insert(scratch.entry_key.as_slice(), [], seqno).0;
        }
        bytes += if scratch.back_value.is_empty() {
            self.tree.remove(scratch.back_key.as_slice(), seqno).0
        } else {
            self.tree.insert(scratch.back_key.as_slice(), scratch.back_value.as_slice(), seqno).0
        };
        Ok(bytes)
    }
}

impl ShardStore for LsmStore {
    fn load(&self) -> Result<Vec<InstancePositions>, StoreFault> {
        *self.dropped.lock() = self.registered(REGISTRY_DROPPED)?.into_iter().map(sweep_start).collect();
        self.registered(REGISTRY_LIVE)?.into_iter().map(|inst| Ok((inst, self.positions(inst)?))).collect()
    }

    fn apply(&self, changes: &mut dyn Iterator<Item = Change<'_>>) -> Result<u64, StoreFault> {
        let mut scratch = Scratch::default();
        let mut bytes = 0;
        for change in changes {
            bytes += self.apply_change(&change, &mut scratch)?;
        }
        Ok(bytes)
    }

    fn add_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        self.tree.insert(key(REGISTRY, REGISTRY_LIVE, &inst.0.to_be_bytes()), [], self.seqno.next());
        Ok(())
    }

    fn remove_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        let seqno = self.seqno.next();
        self.tree.remove(key(REGISTRY, REGISTRY_LIVE, &inst.0.to_be_bytes()), seqno);
        self.tree.insert(key(REGISTRY, REGISTRY_DROPPED, &inst.0.to_be_bytes()), [], seqno);
        self.dropped.lock().push(sweep_start(inst));
        Ok(())
    }

    fn sweep(&self) -> Result<Option<u64>, StoreFault> {
        let mut dropped = self.dropped.lock();
        let Some((inst, swept)) = dropped.last_mut() else { return Ok(None) };
        let rest = (Bound::Excluded(swept.clone()), Bound::Excluded(key(*inst, BACK + 1, &[])));
        let (mut keys, mut bytes) = (0, 0);
        for item in self.tree.range(rest, SeqNo::MAX, None).take(SWEEP_KEYS) {
            let key = item.key().map_err(tree_fault("remove a dropped index"))?;
            *swept = key.to_vec();
            bytes += self.tree.remove(key, self.seqno.next()).0;
            keys += 1;
        }
        if keys < SWEEP_KEYS {
            let record = key(REGISTRY, REGISTRY_DROPPED, &inst.0.to_be_bytes());
            bytes += self.tree.remove(record, self.seqno.next()).0;
            dropped.pop();
        }
        Ok(Some(bytes))
    }

    fn cut(&self, moved: &[(InstId, VbId, Position)]) {
        let seqno = self.seqno.next();
        for (inst, vb, position) in moved {
            let key = key(*inst, POSITION, &vb.0.to_be_bytes());
            self.tree.insert(key, encode_position(position), seqno);
        }
        self.tree.rotate_memtable();
    }

    fn flush(&self) -> Result<(), StoreFault> {
        let turn = self.tree.get_flush_lock();
        self.tree.flush(&turn, self.watermark()).map_err(tree_fault("write a recovery point"))?;
        Ok(())
    }

    fn compact(&self) -> Result<bool, StoreFault> {
        let before = self.tree.current_version().id();
        let strategy = Leveled::default().with_table_target_size(TABLE_TARGET_BYTES);
        self.tree.compact(Arc::new(strategy), self.watermark()).map_err(tree_fault("compact the tree"))?;
        Ok(self.tree.current_version().id() != before)
    }

    fn snapshot(&self) -> Box<dyn StoreSnapshot> {
        let mut snapshots = self.snapshots.lock();
        let seqno = self.seqno.get();
        *snapshots.entry(seqno).or_default() += 1;
        Box::new(LsmSnapshot { tree: self.tree.clone(), seqno, snapshots: Arc::clone(&self.snapshots) })
    }

    fn files(&self) -> Result<Vec<ShardFile>, StoreFault> {
        let version = self.tree.current_version();
        let (version_file, _) = current_version(&self.folder)?;
        if version_file.file_name().is_none_or(|name| name != format!("v{}", version.id()).as_str()) {
            return Err(StoreFault {
                doing: "list the files of the tree",
                cause: format!("{} names another version than v{}", CURRENT, version.id()),
            });
        }
        let mut names = vec![CURRENT.to_owned(), format!("v{}", version.id())];
        names.extend(version.iter_tables().map(|table| format!("{TABLES}/{}", table.id())));
        names
            .into_iter()
            .map(|name| {
                let path = self.folder.join(&name);
                let length_bytes = std::fs::metadata(&path)
                    .map_err(|e| StoreFault {
                        doing: "list the files of the tree",
                        cause: format!("{}: {e}", path.display()),
                    })?
                    .len();
                Ok(ShardFile { name: format!("{FOLDER}/{name}"), path, length_bytes })
            })
            .collect()
    }

    fn disk_bytes(&self) -> u64 {
        self.tree.disk_space()
    }
}

struct LsmSnapshot {
    tree: AnyTree,
    seqno: SeqNo,
    snapshots: Snapshots,
}

impl StoreSnapshot for LsmSnapshot {
    fn scan(&self, inst: InstId, bounds: &EntryBounds) -> Entries {
        let prefixed = |bound: &[u8]| key(inst, ENTRY, bound);
        let low = match &bounds.0 {
            Bound::Included(low) => Bound::Included(prefixed(low)),
            Bound::Excluded(low) => Bound::Excluded(prefixed(low)),
            Bound::Unbounded => Bound::Included(prefixed(&[])),
        };
        let high = match &bounds.1 {
            Bound::Included(high) => Bound::Included(prefixed(high)),
            Bound::Excluded(high) => Bound::Excluded(prefixed(high)),
            Bound::Unbounded => Bound::Excluded(key(inst, BACK, &[])),
        };
        if is_inverted(&low, &high) {
            return Box::new(std::iter::empty());
        }
        let entries = self.tree.range((low, high), self.seqno, None).map(|item| {
            let key = item.key().map_err(tree_fault("read an entry"))?;
            Ok(key.get(PREFIX_BYTES..).unwrap_or_default().to_vec())
        });
        Box::new(entries)
    }
}

fn is_inverted(low: &Bound<Vec<u8>>, high: &Bound<Vec<u8>>) -> bool {
    use Bound::{Excluded, Included, Unbounded};
    match (low, high) {
        (Included(low), Included(high)) => low > high,
        (Included(low) | Excluded(low), Included(high) | Excluded(high)) => low >= high,
        (Unbounded, _) | (_, Unbounded) => false,
    }
}

impl Drop for LsmSnapshot {
    fn drop(&mut self) {
        let mut snapshots = self.snapshots.lock();
        if let Some(holders) = snapshots.get_mut(&self.seqno) {
            *holders -= 1;
            if *holders == 0 {
                snapshots.remove(&self.seqno);
            }
        }
    }
}
