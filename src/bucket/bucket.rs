//! An open bucket: its shards, what it keeps about itself, a look at both, and its end.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use slog::{Discard, Logger, debug, info, o, trace};

use crate::event::{Generation, VbId};
use crate::index::{IndexName, OpenScans};
use crate::pause::{BucketPart, BucketState, Event, Refusal};
use crate::shard::{
    InstId, InstanceError, InstanceStart, Shard, ShardSet, ShardSetConfig, ShardSpec, ShardStatus, take_turn,
};
use crate::thread::Until;
use crate::timestamp::{Position, TsVbuuid};

use super::calls::{Call, Calls};
use super::error::{BucketError, CloseError, Closed, Forked, StepError};
use super::folder::DataDir;
use super::leftovers::Leftovers;
use super::meta::{BucketMeta, BucketName, IndexEntry, IndexState, MetaError, SourceKind};

/// How a bucket works, as opposed to what it is. Every field has a default.
///
/// Memory that an intake holds, at most, whatever the number of documents and indexes: `budget_bytes` of events, 8 MiB
/// a worker of what was made of them ([`Tuning`](crate::projector::Tuning)), `shards.cache_bytes`, and for each shard
/// of the stores `lsm` and `cow` four times `shards.commit_bytes`: three times that are changes that are not durable
/// yet, and the rest is what the allocator keeps besides. With the defaults and four shards these are 400 MiB; a load
/// of one index stays far below. A shard of the store `lsm` has some 0.2 MiB besides for each recovery point that waits
/// to be merged: 32 of them in a load, and 96 while a pause holds merges. `memdb` holds all entries besides.
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

    pub(super) fn index(&self, name: &IndexName) -> Option<&IndexEntry> {
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

    /// Where a new instance begins: files bring documents again as new changes, streams bring the old ones.
    pub(super) fn instance_start(&self) -> InstanceStart {
        match self.meta().spec.source {
            SourceKind::Files => InstanceStart::AtShard,
            SourceKind::Couchbase => InstanceStart::Zero,
        }
    }

    pub(super) fn instances(&self) -> Vec<InstId> {
        self.meta().indexes.iter().map(|entry| entry.inst).collect()
    }

    /// A look at the bucket.
    pub fn status(&self) -> BucketStatus {
        let meta = self.describe();
        let mut status = BucketStatus::closed(&meta);
        for (index, entry) in status.indexes.iter_mut().zip(&meta.indexes) {
            index.changes = self.changes_of(entry.inst);
        }
        status.shards = self.set.shards().iter().map(Shard::status).collect();
        status
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
