//! The store `memdb`: everything in memory, with recovery points on disk.
//!
//! Each instance has two ordered maps: its entries, and the back index that finds the entries of a document. A map
//! hands out copies of itself for nothing, which share what does not change, so a snapshot is a copy, and so is
//! the state that a recovery point has.
//!
//! * `leaf`, `packed`: the maps. Records are packed into leaves of a few KiB, and the leaves hang in a persistent
//!   ordered map ([`imbl::OrdMap`]). That map with an entry for each record is as fast to change, takes 1.7 times
//!   the memory and ten times as long to free; a concurrent skip list with versions of our own takes 1.8 times
//!   the memory and five times as long to scan, and what it gives for that, writers side by side, a shard has no
//!   use for. And with leaves a file holds what memory does: reading one is copying.
//! * `state`: the operations, and what they lead to.
//! * `file`, `manifest`: what is on disk.
//! * `load`, `merge`: how a state gets out of files and into them.
//!
//! A recovery point is a log of the operations since the one before: making one costs what changed. Logs become
//! parts, packed maps, when they outweigh half of those.
//!
//! Invariants:
//! * A file is durable before a manifest names it, and is never changed; a manifest is replaced in one step. What
//!   is on disk is therefore one recovery point, whenever it is looked at.
//! * Positions are operations, appended in [`ShardStore::cut`]: they are in the log that has the entries before
//!   them, or in none.
//! * Parts are written only from a state that a cut froze, and replace exactly the logs up to that cut.
//! * Nothing large is freed where a caller waits: maps that are not needed any more wait for
//!   [`ShardStore::compact`].
//!
//! No two of the store's mutexes are held together. That of the live state is held for a batch at most, that of
//! the files while a manifest is written.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::event::VbId;
use crate::thread::Until;
use crate::timestamp::Position;

use super::InstId;
use super::batch::Change;
use super::codec::write_back_value;
use super::kept::folder_bytes;
use super::store::{
    CheckFault, Entries, EntryBounds, InstancePositions, PinnedFiles, PointId, RecoveryPoint, ShardFile,
    ShardStore, StoreFault, StoreSize, StoreSnapshot,
};
use manifest::{Files, Image};
use merge::Unfinished;
use state::{Edits, Operation, Operations, State};

mod file;
mod leaf;
mod load;
mod manifest;
mod merge;
mod packed;
mod state;

/// Folder of the store within the shard's folder.
const FOLDER: &str = "memdb";

/// See the module.
pub(super) struct MemdbStore {
    folder: PathBuf,
    live: Mutex<Live>,
    files: Mutex<Files>,
    /// A state that is to be written as parts.
    due: Mutex<Option<Due>>,
    /// What nobody needs any more.
    retired: Mutex<Vec<State>>,
}

/// What was applied, and what of it is not durable yet.
struct Live {
    state: State,
    operations: Operations,
    frozen: VecDeque<Arc<Frozen>>,
}

/// A recovery point that was cut.
struct Frozen {
    operations: Operations,
    state: State,
    kept: Option<RecoveryPoint>,
}

/// A state, and the number of the last log that led to it.
struct Due {
    state: State,
    last_log: u64,
}

impl Live {
    /// Does an operation and notes it. Gives back roughly the bytes that this added.
    fn apply(&mut self, operation: Operation<'_>, edits: &mut Edits) -> Result<u64, StoreFault> {
        let changed = self.state.apply(operation, edits);
        let changed = changed.map_err(|e| StoreFault::new("apply a change", &e))?;
        Ok(if changed { self.operations.push(operation) } else { 0 })
    }
}

impl MemdbStore {
    /// Makes an empty store in the shard's folder.
    pub(super) fn create(shard_folder: &Path) -> Result<(), StoreFault> {
        Files::create(shard_folder)
    }

    /// Opens the store of a shard: reads all of it.
    pub(super) fn open(shard_folder: &Path) -> Result<Self, StoreFault> {
        let folder = shard_folder.join(FOLDER);
        let files = Files::open(shard_folder)?;
        let state = load::load(&folder, files.image())?;
        // Only what was read as a whole shows what is left over.
        files.remove_leftovers()?;
        Ok(Self {
            folder,
            live: Mutex::new(Live { state, operations: Operations::default(), frozen: VecDeque::new() }),
            files: Mutex::new(files),
            due: Mutex::default(),
            retired: Mutex::default(),
        })
    }

    /// Writes files that a manifest is going to name.
    fn write<T>(
        &self,
        work: impl FnOnce(&mut Unfinished<'_>) -> Result<T, StoreFault>,
    ) -> Result<T, StoreFault> {
        let mut number = || self.files.lock().new_number();
        let mut unfinished = Unfinished::new(&self.folder, &mut number);
        let made = work(&mut unfinished)?;
        unfinished.take()?;
        Ok(made)
    }

    /// Makes the oldest recovery point that was cut durable. What it has to keep is still to be kept.
    fn flush_one(&self, frozen: &Frozen) -> Result<(), StoreFault> {
        let log = match frozen.operations.bytes() {
            0 => None,
            _ => Some(self.write(|files| files.log(&frozen.operations))?),
        };
        let last_log = log.as_ref().map(|log| log.number);
        let is_due = {
            let mut files = self.files.lock();
            let mut image = files.image().clone();
            image.logs.extend(log);
            let points_up_to = frozen.kept.as_ref().map_or(files.points_up_to(), |point| point.id);
            files.publish(image, points_up_to)?;
            if let Some(point) = &frozen.kept {
                files.keep(point.clone());
            }
            merge::is_due(files.image(), &frozen.state)
        };
        if let Some(last_log) = last_log.filter(|_| is_due) {
            let due = Due { state: frozen.state.clone(), last_log };
            // What it replaces differs from it in little: there is little to free.
            self.due.lock().replace(due);
        }
        Ok(())
    }

    /// Replaces logs by what leads to the same state.
    fn write_parts(&self, due: &Due) -> Result<(), StoreFault> {
        let current = self.files.lock().image().clone();
        let Some(covered) = current.logs.iter().position(|log| log.number == due.last_log) else {
            return Ok(());
        };
        let mut image = self.write(|files| merge::write_state(files, &due.state, &current))?;
        let mut files = self.files.lock();
        // A flush appends logs meanwhile, and nothing else happens to them.
        image.logs.extend(files.image().logs.iter().skip(covered + 1).cloned());
        let points_up_to = files.points_up_to();
        files.publish(image, points_up_to)
    }

    /// Unites small logs, if there are many.
    fn unite_logs(&self) -> Result<bool, StoreFault> {
        let mut image = self.files.lock().image().clone();
        let Some(run) = merge::to_unite(&image.logs) else { return Ok(false) };
        let first = image.logs.len() - run.len();
        let united = self.write(|files| merge::unite(files, &self.folder, run))?;
        let last = image.logs.len();
        let mut files = self.files.lock();
        let newer = files.image().logs.iter().skip(last).cloned().collect::<Vec<_>>();
        image.logs.truncate(first);
        image.logs.push(united);
        image.logs.extend(newer);
        let points_up_to = files.points_up_to();
        files.publish(image, points_up_to)?;
        Ok(true)
    }

    /// Makes the state that a roll-back leads to, and what is to be on disk for it.
    fn rolled_back(&self, to: Option<PointId>, instances: &[InstId]) -> Result<(State, Image), StoreFault> {
        let mut image = match to {
            None => Image::default(),
            Some(point) => {
                let files = self.files.lock();
                let gone = || StoreFault::new("roll back", &format!("recovery point {point} is not kept"));
                files.point(point).ok_or_else(gone)?.image.clone()
            }
        };
        let state = load::load(&self.folder, &image)?;
        let found: Vec<InstId> = state.instances.keys().copied().collect();
        let mut live = Live { state, operations: Operations::default(), frozen: VecDeque::new() };
        let gone = found.iter().filter(|inst| !instances.contains(inst)).copied();
        let new = instances.iter().filter(|inst| !found.contains(inst)).copied();
        let changes = gone.map(Operation::RemoveInstance).chain(new.map(Operation::AddInstance));
        for change in changes {
            live.apply(change, &mut Edits::default())?;
        }
        if live.operations.bytes() > 0 {
            image.logs.push(self.write(|files| files.log(&live.operations))?);
        }
        Ok((live.state, image))
    }

    /// Leaves it to [`ShardStore::compact`] to free what nobody needs any more.
    fn retire(&self, states: impl IntoIterator<Item = State>) {
        self.retired.lock().extend(states);
    }
}

impl ShardStore for MemdbStore {
    fn load(&self) -> Result<Vec<InstancePositions>, StoreFault> {
        Ok(self.live.lock().state.positions())
    }

    fn apply(&self, changes: &[Change<'_>]) -> Result<u64, StoreFault> {
        let mut live = self.live.lock();
        let (mut edits, mut value) = (Edits::default(), Vec::new());
        let mut bytes = 0;
        for change in changes {
            write_back_value(&mut value, change.keys());
            let document = Operation::Document { inst: change.inst, doc_id: change.doc_id, value: &value };
            bytes += live.apply(document, &mut edits)?;
        }
        live.state.settle(&mut edits);
        Ok(bytes)
    }

    fn add_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        self.live.lock().apply(Operation::AddInstance(inst), &mut Edits::default()).map(drop)
    }

    fn remove_instance(&self, inst: InstId) -> Result<(), StoreFault> {
        let removed = {
            let mut live = self.live.lock();
            live.operations.push(Operation::RemoveInstance(inst));
            live.state.remove_instance(inst)
        };
        let instances = removed.map(|removed| (inst, removed)).into_iter().collect();
        self.retire([State { instances, ..State::default() }]);
        Ok(())
    }

    fn sweep(&self) -> Result<Option<u64>, StoreFault> {
        // An instance goes at once, on disk with one operation; its parts go with the next merge.
        Ok(None)
    }

    fn cut(&self, moved: &[(InstId, VbId, Position)], kept: Option<RecoveryPoint>) -> Result<(), StoreFault> {
        let mut live = self.live.lock();
        for (inst, vb, position) in moved {
            let moved = Operation::Position { inst: *inst, vb: *vb, position: *position };
            live.apply(moved, &mut Edits::default())?;
        }
        let operations = std::mem::take(&mut live.operations);
        let frozen = Frozen { operations, state: live.state.clone(), kept };
        live.state.has_dead = false;
        live.frozen.push_back(Arc::new(frozen));
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreFault> {
        // What a failure left.
        self.files.lock().write_point()?;
        loop {
            let Some(frozen) = self.live.lock().frozen.front().cloned() else { return Ok(()) };
            self.flush_one(&frozen)?;
            self.live.lock().frozen.pop_front();
            self.files.lock().write_point()?;
        }
    }

    fn points(&self) -> Result<Vec<RecoveryPoint>, StoreFault> {
        Ok(self.files.lock().points().map(|kept| kept.point.clone()).collect())
    }

    fn forget(&self, point: PointId) -> Result<(), StoreFault> {
        self.files.lock().forget(point)
    }

    fn roll_back(
        &self,
        to: Option<PointId>,
        instances: &[InstId],
    ) -> Result<Vec<InstancePositions>, StoreFault> {
        let (state, image) = self.rolled_back(to, instances)?;
        self.files.lock().publish(image, to.unwrap_or_default())?;
        let positions = state.positions();
        let old = {
            let mut live = self.live.lock();
            live.operations = Operations::default();
            live.frozen.clear();
            std::mem::replace(&mut live.state, state)
        };
        let due = self.due.lock().take();
        self.retire(due.map(|due| due.state).into_iter().chain([old]));
        self.files.lock().forget_gone_points()?;
        Ok(positions)
    }

    fn compact(&self) -> Result<bool, StoreFault> {
        let retired = std::mem::take(&mut *self.retired.lock());
        drop(retired);
        let unused = self.files.lock().take_unused();
        if !unused.is_empty() {
            unused.iter().try_for_each(|path| manifest::remove(path))?;
            return Ok(true);
        }
        let due = self.due.lock().take();
        let Some(due) = due else { return self.unite_logs() };
        let written = self.write_parts(&due);
        if written.is_err() {
            // A newer one may be due meanwhile.
            self.due.lock().get_or_insert(due);
        }
        written.map(|()| true)
    }

    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot>, StoreFault> {
        Ok(Box::new(MemdbSnapshot(self.live.lock().state.clone())))
    }

    fn files(&self) -> Result<Vec<ShardFile>, StoreFault> {
        self.files.lock().newest()
    }

    fn pin(&self) -> Result<PinnedFiles, StoreFault> {
        self.files.lock().pin()
    }

    fn check(&self, until: &Until) -> Result<(), CheckFault> {
        self.files.lock().check(until)
    }

    fn size(&self) -> StoreSize {
        let memory_bytes = {
            let live = self.live.lock();
            let frozen = live.frozen.iter().map(|frozen| frozen.operations.bytes()).sum::<u64>();
            live.state.memory_bytes() + live.operations.bytes() + frozen
        };
        StoreSize { disk_bytes: folder_bytes(&self.folder), memory_bytes }
    }
}

struct MemdbSnapshot(State);

impl StoreSnapshot for MemdbSnapshot {
    fn scan(&self, inst: InstId, bounds: &EntryBounds) -> Entries {
        match self.0.instances.get(&inst) {
            Some(instance) => Box::new(instance.entries.keys(bounds).map(Ok)),
            None => Box::new(std::iter::empty()),
        }
    }
}
