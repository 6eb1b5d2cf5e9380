//! An open bucket: its shards, its indexes and what they hold.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use slog::{Discard, Logger, debug, info, o, trace};

use crate::event::{Generation, VbId};
use crate::index::{IndexDefinition, IndexName, OpenScans};
use crate::pause::{BucketPart, BucketState, Event, Refusal};
use crate::shard::{
    InstId, InstanceError, InstanceStart, Shard, ShardSet, ShardSetConfig, ShardSpec, ShardStatus, take_turn,
};
use crate::thread::Until;
use crate::timestamp::{Position, TsVbuuid};

use super::calls::{Call, Calls};
use super::error::{BucketError, CloseError, Closed, Forked, IndexError, StepError};
use super::folder::DataDir;
use super::leftovers::Leftovers;
use super::meta::{BucketMeta, BucketName, IndexEntry, IndexState, MetaError, SourceKind};
use super::tasks::{Task, TaskKind};

/// How a bucket works, as opposed to what it is. Every field has a default.
///
/// Memory that an intake holds, at most, whatever the number of documents and indexes: `budget_bytes` of events, 8 MiB a
/// worker of what was made of them ([`Tuning`](crate::projector::Tuning)), `shards.cache_bytes`, and for each shard of
/// the stores `lsm` and `cow` four times `shards.commit_bytes`: twice that is being made durable, and as much comes in
/// meanwhile. With the defaults and four shards these are 400 MiB; a load of one index stays far below. The allocator
/// adds what it keeps, and `memdb` holds all entries besides.
#[derive(Debug, Clone)]
pub struct BucketConfig {
    /// Where the bucket logs to.
    pub logger: Logger,
    /// When shards make recovery points, and their caches.
    pub shards: ShardSetConfig,
    /// Workers of a data path; each has two threads.
    pub workers: u16,
    /// Bytes that may be under way between a source and the shards.
    pub budget_bytes: usize,
    /// A source sends a batch when it has this many bytes.
    pub batch_bytes: usize,
    /// A source sends a batch when it has this many documents.
    pub batch_events: usize,
    /// Batches that wait in front of each thread of the data path.
    pub queue_batches: usize,
    /// A scan that is open for longer is ended, as it holds files that are to go.
    pub scan_max_age: Duration,
}

impl Default for BucketConfig {
    fn default() -> Self {
        Self {
            logger: Logger::root(Discard, o!()),
            shards: ShardSetConfig::default(),
            workers: 2,
            budget_bytes: 64 * 1024 * 1024,
            batch_bytes: 256 * 1024,
            batch_events: 2048,
            queue_batches: 4,
            scan_max_age: Duration::from_secs(3600),
        }
    }
}

/// A look at an index.
#[derive(Debug, Clone, Serialize)]
pub struct IndexStatus {
    /// Its name.
    pub name: IndexName,
    /// Its definition, as on the command line.
    pub definition: String,
    /// Whether it may be scanned.
    pub state: IndexState,
    /// Changes that it covers: the sum of its seqnos over all vbuckets.
    pub changes: u64,
}

/// A look at a bucket.
#[derive(Debug, Clone, Serialize)]
pub struct BucketStatus {
    /// Its name.
    pub bucket: BucketName,
    /// What it is doing.
    #[serde(flatten)]
    pub state: BucketState,
    /// Where its changes come from.
    pub source: SourceKind,
    /// Storage engine of its shards.
    pub store: crate::shard::StoreKind,
    /// Number of vbuckets.
    pub vbuckets: u16,
    /// Its indexes.
    pub indexes: Vec<IndexStatus>,
    /// Its shards; none where the local data was removed.
    pub shards: Vec<ShardStatus>,
}

/// An open bucket. It may be used from several threads at a time, in an [`Arc`](std::sync::Arc) too: whoever closes it
/// ends what the others do with it.
pub struct Bucket {
    pub(super) data_dir: DataDir,
    pub(super) folder: PathBuf,
    pub(super) config: BucketConfig,
    pub(super) logger: Logger,
    pub(super) set: ShardSet,
    pub(super) generations: AtomicU64,
    /// Held for as long as something is ingested.
    pub(super) ingesting: Mutex<()>,
    pub(super) scans: OpenScans,
    pub(super) leftovers: Leftovers,
    calls: Calls,
    /// Held by whoever closes the bucket.
    closing: Mutex<()>,
    /// Held by whoever changes the metadata, over its file; taken before `meta`.
    meta_turn: Mutex<()>,
    /// Held for a moment, and over no file access.
    meta: Mutex<BucketMeta>,
}

impl BucketMeta {
    pub(super) fn shard_specs(&self) -> impl Iterator<Item = ShardSpec> + use<> {
        let (spec, bucket_uuid) = (self.spec, self.uuid);
        ShardSpec::all(spec.shards, spec.vbuckets, spec.store, bucket_uuid)
    }

    fn index(&self, name: &IndexName) -> Option<&IndexEntry> {
        self.indexes.iter().find(|entry| entry.definition.name() == name)
    }
}

impl Bucket {
    pub(super) fn open(
        data_dir: &DataDir,
        meta: BucketMeta,
        config: &BucketConfig,
    ) -> Result<Self, BucketError> {
        let folder = data_dir.bucket_folder(&meta.name);
        let logger = config.logger.new(o!("bucket" => meta.name.to_string()));
        let sealed_by = match &meta.state {
            BucketState::Paused { archive, evicted: true, .. } => {
                return Err(BucketError::Evicted { bucket: meta.name, archive: archive.clone() });
            }
            BucketState::Paused { pause, .. }
            | BucketState::InDoubt { pause, .. }
            | BucketState::Publishing { pause, .. }
            | BucketState::Resuming { pause, .. } => Some(format!("pause {pause}")),
            BucketState::Online | BucketState::Preparing { .. } | BucketState::Pausing { .. } => None,
        };
        let set = ShardSet::open(&folder, meta.shard_specs(), &config.shards, sealed_by.as_deref(), &logger)
            .map_err(BucketError::Shard)?;
        // Before the shards were held, somebody else may have had the bucket.
        if BucketMeta::read(&folder)? != meta {
            return Err(BucketError::Changed { bucket: meta.name });
        }
        let bucket = Self {
            data_dir: data_dir.clone(),
            folder,
            config: config.clone(),
            logger,
            set,
            generations: AtomicU64::new(1),
            ingesting: Mutex::new(()),
            scans: OpenScans::new(config.scan_max_age),
            leftovers: Leftovers::default(),
            calls: Calls::default(),
            closing: Mutex::new(()),
            meta_turn: Mutex::new(()),
            meta: Mutex::new(meta),
        };
        if sealed_by.is_none() {
            bucket.align_instances()?;
        }
        Ok(bucket)
    }

    /// Brings the shards in line with the metadata, where a crash came between the two.
    fn align_instances(&self) -> Result<(), InstanceError> {
        let wanted = self.instances();
        for shard in self.set.shards() {
            let there = shard.instances();
            for inst in wanted.iter().filter(|inst| !there.contains(inst)) {
                info!(self.logger, "an index is made again in a shard"; "shard" => shard.id().0, "instance" => inst.0);
                shard.create_instance(*inst, self.instance_start())?;
            }
            for inst in there.iter().filter(|inst| !wanted.contains(inst)) {
                info!(self.logger, "an index is dropped from a shard"; "shard" => shard.id().0, "instance" => inst.0);
                shard.drop_instance(*inst)?;
            }
        }
        Ok(())
    }

    /// What the bucket keeps about itself, for a moment.
    pub(super) fn meta(&self) -> MutexGuard<'_, BucketMeta> {
        self.meta.lock()
    }

    /// Changes the metadata durably: in memory only once it is on disk.
    pub(super) fn change_meta(&self, change: impl FnOnce(&mut BucketMeta)) -> Result<(), MetaError> {
        let _turn = self.meta_turn.lock();
        let mut changed = self.describe();
        change(&mut changed);
        changed.write(&self.folder)?;
        trace!(self.logger, "the metadata is on disk");
        *self.meta.lock() = changed;
        Ok(())
    }

    /// Begins a call that a close ends. Refused in a forked process, and on a bucket that is closed.
    pub(super) fn begin_call<E: From<Forked> + From<Closed>>(
        &self,
        doing: &'static str,
        until: &Until,
    ) -> Result<Call, E> {
        self.data_dir.refuse_fork()?;
        Ok(self.calls.begin(doing, until).ok_or_else(|| Closed { bucket: self.name() })?)
    }

    /// Changes the state durably, as `event` has it, before the step that it speaks of. Whoever calls has the
    /// bucket's entry, so no other step comes between.
    pub(super) fn step(&self, event: Event) -> Result<(), StepError> {
        self.step_with(event, |_| {})
    }

    /// The same, with something else that is to be on record with the step.
    pub(super) fn step_with(
        &self,
        event: Event,
        also: impl FnOnce(&mut BucketMeta),
    ) -> Result<(), StepError> {
        let next = self.meta().after(event)?;
        debug!(self.logger, "a step begins"; "state" => %next.state);
        self.change_meta(|meta| {
            (meta.state, meta.attempt, meta.given_up) = (next.state, next.attempt, next.given_up);
            also(meta);
        })?;
        debug!(self.logger, "a step is recorded");
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> BucketName {
        self.meta().name.clone()
    }

    /// Its place in an archive.
    pub(super) fn part(&self) -> BucketPart {
        self.meta().part()
    }

    /// The metadata as it is now.
    pub fn describe(&self) -> BucketMeta {
        self.meta().clone()
    }

    /// Its shards, in ascending order of their ids.
    pub fn shards(&self) -> &[Shard] {
        self.set.shards()
    }

    /// Why the bucket takes no changes, if it takes none.
    pub(super) fn closed_for_writes(&self) -> Option<Refusal> {
        self.meta().state.closed_for_writes()
    }

    /// Takes the bucket's entry, in which nothing else may be under way.
    fn begin_change(&self, doing: &'static str, until: &Until) -> Result<Task, IndexError> {
        let begun = self.data_dir.begin_task(&self.name(), TaskKind::Index, until);
        begun.map_err(|busy| IndexError::Task { doing, bucket: self.name(), busy })
    }

    /// Refuses to change the indexes of a bucket that sleeps, or whose stream was built with the present ones.
    fn admit_change(&self, doing: &'static str) -> Result<MutexGuard<'_, ()>, IndexError> {
        let bucket = self.name();
        match self.closed_for_writes() {
            Some(Refusal::Asleep { archive, .. }) => Err(IndexError::Paused { doing, bucket, archive }),
            Some(refusal) => Err(IndexError::InDoubt { doing, bucket, refusal }),
            None => self.ingesting.try_lock().ok_or(IndexError::Busy { doing, bucket }),
        }
    }

    /// For each vbucket, where the furthest instance stands: what a stream of files continues.
    pub(super) fn start_positions(&self) -> TsVbuuid {
        let meta = self.meta().clone();
        let mut start: TsVbuuid = (0_u16..)
            .zip(&meta.vbuuids)
            .map(|(vb, vbuuid)| (VbId(vb), Position { vbuuid: *vbuuid, ..Position::default() }))
            .collect();
        for shard in self.set.shards() {
            for positions in meta.indexes.iter().filter_map(|entry| shard.positions(entry.inst)) {
                for (vb, position) in positions.iter() {
                    if start.get(vb).is_none_or(|furthest| furthest.seqno < position.seqno) {
                        start.insert(vb, position);
                    }
                }
            }
        }
        start
    }

    /// Changes that came so far: the sum of the furthest seqnos of all vbuckets.
    pub(super) fn changes(&self) -> u64 {
        self.start_positions().changes()
    }

    /// The next generation of streams.
    pub(super) fn next_generation(&self) -> Generation {
        Generation(self.generations.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    /// Makes sure that there is such an index. On a bucket of files without data it can be scanned at once; on one that
    /// has data a new one needs `rebuild`, which says that all documents are going to be ingested again, and can be
    /// scanned after that. On a bucket that follows a cluster an index can be scanned once following has brought it to
    /// where the cluster's vbuckets were when it began: the first ones are filled by the streams of the bucket, later
    /// ones by streams of their own. It stays so after a shard was rolled back, and a scan gives what came again so far:
    /// who needs more says so by [`ScanQuery::at_least`](crate::index::ScanQuery::at_least). Indexes do not change while
    /// something is ingested: a new one would miss what is under way.
    pub fn ensure_index(&self, wanted: &IndexDefinition, rebuild: bool) -> Result<(), IndexError> {
        self.ensure_indexes(std::slice::from_ref(wanted), rebuild)
    }

    /// Makes sure that there are all these indexes, as [`Bucket::ensure_index`] does; where one of them cannot be
    /// made, none is.
    pub fn ensure_indexes(&self, wanted: &[IndexDefinition], rebuild: bool) -> Result<(), IndexError> {
        let call = self.begin_call::<IndexError>("a change of its indexes", &Until::default())?;
        if self.new_indexes(wanted)?.is_empty() && !self.lacks_instances() {
            return Ok(());
        }
        let task = self.begin_change("create an index", call.until())?;
        task.end(self.make_indexes(wanted, rebuild))
    }

    fn make_indexes(&self, wanted: &[IndexDefinition], rebuild: bool) -> Result<(), IndexError> {
        let _not_ingesting = self.admit_change("create an index")?;
        // Asked again: somebody else may have been quicker.
        let new = self.new_indexes(wanted)?;
        if let Some(first) = new.first() {
            let changes_before = self.changes();
            let has_data = changes_before > 0;
            let comes_again = self.meta().spec.source == SourceKind::Couchbase;
            if has_data && !rebuild && !comes_again {
                return Err(IndexError::NeedsRebuild { bucket: self.name(), wanted: first.clone() });
            }
            // What a cluster has already comes only once it is followed: till then nothing is there that is whole.
            let state = if has_data || comes_again { IndexState::Building } else { IndexState::Ready };
            self.change_meta(|meta| {
                for definition in new {
                    let inst = meta.next_inst;
                    meta.next_inst = InstId(inst.0 + 1);
                    meta.indexes.push(IndexEntry { inst, definition, state, changes_before });
                }
            })?;
        }
        // All of them: a shard that was locked when an index was made has no instance of it yet.
        for shard in self.set.shards() {
            for inst in self.instances() {
                shard.create_instance(inst, self.instance_start())?;
            }
        }
        Ok(())
    }

    /// Where a new instance begins: files bring documents again as new changes, streams bring the old ones.
    fn instance_start(&self) -> InstanceStart {
        match self.meta().spec.source {
            SourceKind::Files => InstanceStart::AtShard,
            SourceKind::Couchbase => InstanceStart::Zero,
        }
    }

    pub(super) fn instances(&self) -> Vec<InstId> {
        self.meta().indexes.iter().map(|entry| entry.inst).collect()
    }

    /// Whether a shard has no instance of one of the indexes.
    fn lacks_instances(&self) -> bool {
        let wanted = self.instances();
        self.set.shards().iter().any(|shard| {
            let there = shard.instances();
            wanted.iter().any(|inst| !there.contains(inst))
        })
    }

    /// Those of `wanted` that are not there yet.
    fn new_indexes(&self, wanted: &[IndexDefinition]) -> Result<Vec<IndexDefinition>, IndexError> {
        let meta = self.meta();
        let mut new: Vec<IndexDefinition> = Vec::new();
        for wanted in wanted {
            let there = meta.index(wanted.name()).map(|entry| &entry.definition);
            match there.or_else(|| new.iter().find(|other| other.name() == wanted.name())) {
                Some(there) if there != wanted => {
                    let (wanted, there) = (wanted.clone(), there.clone());
                    return Err(IndexError::Differs { wanted, there });
                }
                Some(_) => {}
                None => new.push(wanted.clone()),
            }
        }
        Ok(new)
    }

    /// Removes an index, durably; its entries go bit by bit afterwards.
    pub fn drop_index(&self, name: &IndexName, until: &Until) -> Result<(), IndexError> {
        let call = self.begin_call::<IndexError>("a change of its indexes", until)?;
        self.find_index(name)?;
        let task = self.begin_change("drop an index", call.until())?;
        let dropped = self.drop_index_now(name, task.until());
        task.end(dropped)
    }

    fn drop_index_now(&self, name: &IndexName, until: &Until) -> Result<(), IndexError> {
        let _not_ingesting = self.admit_change("drop an index")?;
        let inst = self.find_index(name)?.inst;
        self.change_meta(|meta| meta.indexes.retain(|entry| entry.inst != inst))?;
        for shard in self.set.shards() {
            shard.drop_instance(inst)?;
        }
        self.set.commit(until)?;
        Ok(())
    }

    pub(super) fn find_index(&self, name: &IndexName) -> Result<IndexEntry, IndexError> {
        let meta = self.meta();
        meta.index(name).cloned().ok_or_else(|| IndexError::Missing {
            bucket: meta.name.clone(),
            index: name.clone(),
            there: meta.indexes.iter().map(|entry| entry.definition.name().clone()).collect(),
        })
    }

    /// A look at the bucket.
    pub fn status(&self) -> BucketStatus {
        let meta = self.describe();
        let indexes = meta.indexes.iter().map(|entry| IndexStatus {
            name: entry.definition.name().clone(),
            definition: entry.definition.to_string(),
            state: entry.state,
            changes: self.changes_of(entry.inst),
        });
        BucketStatus {
            indexes: indexes.collect(),
            shards: self.set.shards().iter().map(Shard::status).collect(),
            ..BucketStatus::closed(&meta)
        }
    }

    /// Ends the calls that are under way, as if their limits had been cancelled, makes everything that was applied
    /// durable and ends the threads, those among them that an ingest or following left behind because they did not
    /// end. Gives back what still runs when the limit ends, whatever it hangs in; the call may then be repeated.
    ///
    /// From its beginning on no other call is taken but looks, such as [`Bucket::status`]. Scans that are open go on,
    /// and hold the shards: the bucket is free for another opening once they and the bucket are dropped.
    pub fn close(&self, until: &Until) -> Result<(), CloseError> {
        self.data_dir.refuse_fork()?;
        let mut calls = self.calls.close(until);
        let turn = take_turn(&self.closing, until);
        if turn.is_err() {
            calls.push("another close");
        }
        if !calls.is_empty() {
            return Err(CloseError::Busy { calls });
        }
        let committed = if self.closed_for_writes().is_some() { Ok(()) } else { self.set.commit(until) };
        // Before the wait for what hangs, so that what does not has ended after it.
        self.set.stop();
        let mut threads = self.leftovers.end(until);
        threads.extend(self.set.close(until).err().into_iter().flatten());
        if !threads.is_empty() {
            return Err(CloseError::StillRunning { threads });
        }
        Ok(committed?)
    }
}

impl BucketStatus {
    /// What can be told of a bucket whose shards are closed.
    pub fn closed(meta: &BucketMeta) -> Self {
        let indexes = meta.indexes.iter().map(|entry| IndexStatus {
            name: entry.definition.name().clone(),
            definition: entry.definition.to_string(),
            state: entry.state,
            changes: 0,
        });
        Self {
            bucket: meta.name.clone(),
            state: meta.state.clone(),
            source: meta.spec.source,
            store: meta.spec.store,
            vbuckets: meta.spec.vbuckets,
            indexes: indexes.collect(),
            shards: Vec::new(),
        }
    }
}
