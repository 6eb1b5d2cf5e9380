//! An open bucket: its shards, its indexes and what they hold.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use slog::{Discard, Logger, info, o};

use crate::durable::PathError;
use crate::event::{Generation, VbId};
use crate::index::{IndexDefinition, IndexName, OpenScans, QueryError, ScanError};
use crate::shard::{
    CommitError, InstId, InstanceError, InstanceStart, OpenError, Shard, ShardSet, ShardSetConfig, ShardSpec,
    ShardStatus,
};
use crate::thread::Until;
use crate::timestamp::{Position, TsVbuuid};

use super::folder::{DataDir, DataDirError};
use super::meta::{BucketMeta, BucketName, BucketState, IndexEntry, IndexState, MetaError, SourceKind};

/// How a bucket works, as opposed to what it is. Every field has a default.
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
            batch_events: 512,
            queue_batches: 4,
            scan_max_age: Duration::from_secs(3600),
        }
    }
}

/// Why a bucket was not opened, made or dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// There is none.
    #[error("there is no bucket {bucket} in {}: {}", data_dir.display(), there_are(there))]
    Missing {
        /// The name that was asked for.
        bucket: BucketName,
        /// Where it was looked for.
        data_dir: PathBuf,
        /// The buckets that are there.
        there: Vec<BucketName>,
    },
    /// There is one already.
    #[error("cannot create bucket {bucket}: it is there already; drop it first, or take another name")]
    Exists {
        /// Its name.
        bucket: BucketName,
    },
    /// Its numbers are out of range.
    #[error("cannot create bucket {bucket}: {problem}")]
    Spec {
        /// Its name.
        bucket: BucketName,
        /// What is wrong.
        problem: String,
    },
    /// Its local data was removed after a pause.
    #[error("bucket {bucket} sleeps in {archive} and its local data was removed: resume it first")]
    Evicted {
        /// Its name.
        bucket: BucketName,
        /// Where its data is.
        archive: String,
    },
    /// The data folder.
    #[error(transparent)]
    DataDir(DataDirError),
    /// A file or folder.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Its metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A shard.
    #[error(transparent)]
    Shard(OpenError),
    /// A shard's instances could not be brought in line with the metadata.
    #[error(transparent)]
    Instance(#[from] InstanceError),
}

fn there_are(buckets: &[BucketName]) -> String {
    if buckets.is_empty() {
        return "it has none yet; `ingest` makes one".to_owned();
    }
    let names: Vec<&str> = buckets.iter().map(BucketName::as_str).collect();
    format!("it has {}", names.join(", "))
}

/// Why an index was not made, dropped or scanned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// There is none.
    #[error("bucket {bucket} has no index `{index}`: {}", indexes_are(there))]
    Missing {
        /// The bucket.
        bucket: BucketName,
        /// The name that was asked for.
        index: IndexName,
        /// The indexes that are there.
        there: Vec<IndexName>,
    },
    /// There is another one of the name.
    #[error("cannot create index `{wanted}`: there is one with another definition, `{there}`; drop it first")]
    Differs {
        /// What was asked for.
        wanted: IndexDefinition,
        /// What is there.
        there: IndexDefinition,
    },
    /// The bucket has data already.
    #[error(
        "cannot create index `{wanted}`: bucket {bucket} has data already; ingest all its documents again with \
         --rebuild"
    )]
    NeedsRebuild {
        /// The bucket.
        bucket: BucketName,
        /// What was asked for.
        wanted: IndexDefinition,
    },
    /// It does not hold everything yet.
    #[error(
        "cannot scan index `{index}`: it is unfinished, {documents} changes came since it was created over {before} \
         earlier ones; ingest all documents of bucket {bucket} with --rebuild"
    )]
    Unfinished {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: IndexName,
        /// Changes that it has seen.
        documents: u64,
        /// Changes that came before it was created, those of documents that changed again among them.
        before: u64,
    },
    /// A second stream fills it.
    #[error(
        "cannot scan index `{index}`: it is being built, {covered} of {changes} changes are in it; follow bucket \
         {bucket} until it is finished"
    )]
    Building {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: IndexName,
        /// Changes that it has seen.
        covered: u64,
        /// Changes that the bucket has seen.
        changes: u64,
    },
    /// Something is being ingested, paused or changed.
    #[error(
        "cannot {doing} in bucket {bucket}: an ingest, a pause or another change is under way; wait for it"
    )]
    Busy {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
    },
    /// The bucket sleeps.
    #[error("cannot {doing} in bucket {bucket}: it is paused in {archive}; resume it first")]
    Paused {
        /// What was asked for.
        doing: &'static str,
        /// The bucket.
        bucket: BucketName,
        /// Where it sleeps.
        archive: String,
    },
    /// The index cannot be asked for this.
    #[error("cannot scan index `{index}`: {error}")]
    Query {
        /// The index.
        index: IndexName,
        /// What is wrong.
        error: QueryError,
    },
    /// The bucket's metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A shard's instances.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// A shard's recovery point.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The scan itself.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

fn indexes_are(indexes: &[IndexName]) -> String {
    if indexes.is_empty() {
        return "it has none; `ingest --index` makes one".to_owned();
    }
    let names: Vec<&str> = indexes.iter().map(IndexName::as_str).collect();
    format!("it has {}", names.join(", "))
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

/// An open bucket. It may be used from several threads at a time.
pub struct Bucket {
    pub(super) data_dir: DataDir,
    pub(super) folder: PathBuf,
    pub(super) config: BucketConfig,
    pub(super) logger: Logger,
    pub(super) set: ShardSet,
    pub(super) generations: AtomicU64,
    /// Held for as long as something is ingested.
    pub(super) ingesting: Mutex<()>,
    /// Held for as long as the bucket is being paused or its indexes change.
    pub(super) changing: Mutex<()>,
    pub(super) scans: OpenScans,
    /// Never held over a file access but that of the metadata itself.
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
            BucketState::Online => None,
            BucketState::Paused { archive, evicted: true, .. } => {
                return Err(BucketError::Evicted { bucket: meta.name, archive: archive.clone() });
            }
            BucketState::Paused { pause, .. } => Some(format!("pause {pause}")),
        };
        let set = ShardSet::open(&folder, meta.shard_specs(), &config.shards, sealed_by.as_deref(), &logger)
            .map_err(BucketError::Shard)?;
        let bucket = Self {
            data_dir: data_dir.clone(),
            folder,
            config: config.clone(),
            logger,
            set,
            generations: AtomicU64::new(1),
            ingesting: Mutex::new(()),
            changing: Mutex::new(()),
            scans: OpenScans::new(config.scan_max_age),
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
        let mut meta = self.meta.lock();
        let mut changed = meta.clone();
        change(&mut changed);
        changed.write(&self.folder)?;
        *meta = changed;
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> BucketName {
        self.meta().name.clone()
    }

    /// The metadata as it is now.
    pub fn describe(&self) -> BucketMeta {
        self.meta().clone()
    }

    /// Its shards, in ascending order of their ids.
    pub fn shards(&self) -> &[Shard] {
        self.set.shards()
    }

    /// The archive that the bucket sleeps in, if it does.
    pub(super) fn paused_in(&self) -> Option<String> {
        match &self.meta().state {
            BucketState::Online => None,
            BucketState::Paused { archive, .. } => Some(archive.clone()),
        }
    }

    /// Refuses to change the indexes of a bucket that sleeps, or whose stream was built with the present ones.
    fn begin_change(
        &self,
        doing: &'static str,
    ) -> Result<(MutexGuard<'_, ()>, MutexGuard<'_, ()>), IndexError> {
        let busy = || IndexError::Busy { doing, bucket: self.name() };
        let changing = self.changing.try_lock().ok_or_else(busy)?;
        let ingesting = self.ingesting.try_lock().ok_or_else(busy)?;
        match self.paused_in() {
            Some(archive) => Err(IndexError::Paused { doing, bucket: self.name(), archive }),
            None => Ok((changing, ingesting)),
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
        self.start_positions().iter().map(|(_, position)| position.seqno.0).sum()
    }

    /// The next generation of streams.
    pub(super) fn next_generation(&self) -> Generation {
        Generation(self.generations.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    /// Makes sure that there is such an index. On a bucket that has data from files a new one needs `rebuild`, which
    /// says that all documents are going to be ingested again; it can be scanned after that. On one that follows a
    /// cluster it is built by a stream of its own the next time that it is followed. Indexes do not change
    /// while something is ingested: a new one would miss what is under way.
    pub fn ensure_index(&self, wanted: &IndexDefinition, rebuild: bool) -> Result<(), IndexError> {
        self.ensure_indexes(std::slice::from_ref(wanted), rebuild)
    }

    /// Makes sure that there are all these indexes, as [`Bucket::ensure_index`] does; where one of them cannot be
    /// made, none is.
    pub fn ensure_indexes(&self, wanted: &[IndexDefinition], rebuild: bool) -> Result<(), IndexError> {
        if self.new_indexes(wanted)?.is_empty() && !self.lacks_instances() {
            return Ok(());
        }
        let _change = self.begin_change("create an index")?;
        // Asked again: somebody else may have been quicker.
        let new = self.new_indexes(wanted)?;
        if let Some(first) = new.first() {
            let changes_before = self.changes();
            let has_data = changes_before > 0;
            let comes_again = self.meta().spec.source == SourceKind::Couchbase;
            if has_data && !rebuild && !comes_again {
                return Err(IndexError::NeedsRebuild { bucket: self.name(), wanted: first.clone() });
            }
            let state = if has_data { IndexState::Building } else { IndexState::Ready };
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
        self.find_index(name)?;
        let _change = self.begin_change("drop an index")?;
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

    /// Makes everything that was applied durable and ends the threads. Gives back the names of threads that
    /// still run when the limit ends; the call may then be repeated.
    pub fn close(&mut self, until: &Until) -> Result<(), CloseError> {
        let committed = if self.paused_in().is_some() { Ok(()) } else { self.set.commit(until) };
        self.set.close(until).map_err(|threads| CloseError::StillRunning { threads })?;
        Ok(committed?)
    }
}

/// Why a bucket did not close in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Threads did not end in time.
    #[error("cannot close the bucket: these threads are still running: {}; close again to wait longer", threads.join(", "))]
    StillRunning {
        /// Their names.
        threads: Vec<String>,
    },
    /// The last recovery point could not be made.
    #[error(transparent)]
    Commit(#[from] CommitError),
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
