//! Putting a bucket to sleep: copy, lock, copy the rest, publish, record, unlock.
//!
//! Most of the bytes are copied before anything is locked: recovery points are pinned and uploaded, in rounds, while
//! changes come in, until a round has little left to do. Merges are held meanwhile, so that what a round uploaded is
//! what the cut will have. Under the lock only what is new since is read and uploaded.
//!
//! What an interrupted pause uploaded is not uploaded again: its attempt is recorded before its first object, and
//! the next pause into the same archive takes it up.
//!
//! The guards of the shards' locks live in this call's frame. They are dropped when it returns, however it
//! returns; only after `paused` was recorded durably are they told to leave the shards sealed, so no write is
//! accepted between the cut and the record, and none after it.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use slog::{info, warn};

use crate::durable::PathError;
use crate::objstore::{KeyError, ObjectKey, ObjectStore};
use crate::pause::{
    AttemptId, GRACE_DEFAULT, IdError, ImageFile, KnownHashes, Manifest, ManifestError, PauseId, Progress,
    Reusable, UploadError, UploadPlan, VerifyError, list_pauses, plan_upload, upload, verify,
};
use crate::shard::store::{PinnedFiles, ShardFile};
use crate::shard::{CommitError, LockError, MergeHold, Shard, ShardId, ShardLock, lock_all};
use crate::thread::{Stopped, Until};

use super::bucket::Bucket;
use super::meta::{BucketMeta, BucketName, BucketState, IndexState, MetaError, PauseAttempt};

/// How often durable files are copied before the shards are locked, at most.
const ROUNDS_MAX: usize = 4;
/// A round that had no more than this to upload is the last one before the lock.
const REST_BYTES: u64 = 1024 * 1024;
/// How long what an attempt uploaded may be used: half of the time after which unnamed objects are removed.
const ATTEMPT_AGE_MAX: Duration = Duration::from_secs(GRACE_DEFAULT.as_secs() / 2);

/// What a pause did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PauseReport {
    /// The pause that was published; none for a dry run.
    pub pause: Option<PauseId>,
    /// Files of all shards.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that the archive did not have.
    pub uploaded_files: usize,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// How long the shards were locked.
    pub locked_ms: u64,
    /// How long it took.
    pub total_ms: u64,
}

/// Why a bucket was not paused, or not all of it. Its shards are unlocked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PauseError {
    /// It sleeps already.
    #[error("cannot pause bucket {bucket}: it is paused in {archive} already")]
    Paused {
        /// The bucket.
        bucket: BucketName,
        /// Where it sleeps.
        archive: String,
    },
    /// Another pause is under way, or an index is being made.
    #[error(
        "cannot pause bucket {bucket}: another pause or a change of its indexes is under way; wait for it"
    )]
    Busy {
        /// The bucket.
        bucket: BucketName,
    },
    /// An index is unfinished: there would be nothing to fill it from after a resume.
    #[error(
        "cannot pause bucket {bucket}: index `{index}` is unfinished; let an ingest finish it, or drop it"
    )]
    Unfinished {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: String,
    },
    /// It has nothing to archive.
    #[error("cannot pause bucket {bucket}: it has no index, so there is nothing to archive; drop it instead")]
    Empty {
        /// The bucket.
        bucket: BucketName,
    },
    /// The shards.
    #[error("cannot pause bucket {bucket}: {error}")]
    Lock {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: LockError,
    },
    /// A shard's files could not be made durable and pinned.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Pin {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: CommitError,
    },
    /// That a pause begins could not be recorded.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Intent {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: MetaError,
    },
    /// A file's name cannot be archived.
    #[error("cannot pause bucket {bucket}: {error}")]
    Name {
        /// The bucket.
        bucket: BucketName,
        /// What is wrong with it.
        error: KeyError,
    },
    /// No identity could be made for the pause.
    #[error("cannot pause bucket {bucket}: {error}")]
    Id {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: IdError,
    },
    /// The files.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Upload {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: UploadError,
    },
    /// It took so long that what it uploaded first may be pruned.
    #[error(
        "cannot pause bucket {bucket}, which stays online: it began {} ago, and nothing older than {} is published; \
         pause it again",
        humantime::format_duration(Duration::from_secs(took.as_secs())),
        humantime::format_duration(ATTEMPT_AGE_MAX)
    )]
    TooLong {
        /// The bucket.
        bucket: BucketName,
        /// How long ago it began.
        took: Duration,
    },
    /// The archive's manifests.
    #[error("cannot pause bucket {bucket}, which stays online: {error}")]
    Manifest {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: ManifestError,
    },
    /// The caller's limit ended.
    #[error("cannot pause bucket {bucket}, which stays online: {why}")]
    Stopped {
        /// The bucket.
        bucket: BucketName,
        /// What ended it.
        why: Stopped,
    },
    /// It is archived and not known to be.
    #[error(
        "bucket {bucket} was archived as pause {pause} and stays online, because that could not be recorded: \
         {error}; pause it again"
    )]
    Record {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        pause: PauseId,
        /// Why.
        error: MetaError,
    },
    /// It is paused, and its local data was kept.
    #[error("bucket {bucket} is paused as {pause}, and its local data is kept: {cause}")]
    Evict {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        pause: PauseId,
        /// Why.
        cause: String,
    },
}

impl Bucket {
    /// What a pause into `store` would upload. Nothing is put there, nothing is locked, and the bucket stays
    /// online.
    pub fn plan_pause(&self, store: &dyn ObjectStore, until: &Until) -> Result<PauseReport, PauseError> {
        let began = Instant::now();
        let busy = || PauseError::Busy { bucket: self.name() };
        let _only_one = self.changing.try_lock().ok_or_else(busy)?;
        self.check_pausable()?;
        let parent = self.newest_pause(store, until)?;
        let mut carriage = Carriage::load(self, store, parent.as_ref(), self.attempt_for(store)?, until)?;
        let pins = self.pin_all(until)?;
        let plan = carriage.plan(&pinned_files(&pins), until)?;
        carriage.count(&plan);
        Ok(PauseReport { locked_ms: 0, ..carriage.report(None, &plan, began, began) })
    }

    /// Archives the bucket in `store` and leaves it paused. With `evict` the local data is removed after
    /// everything that was published was read back and checked. `on_progress` is called on this thread with the
    /// bytes that are durable.
    pub fn pause(
        &self,
        store: &dyn ObjectStore,
        evict: bool,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<PauseReport, PauseError> {
        let began = Instant::now();
        let bucket = self.name();
        let busy = || PauseError::Busy { bucket: bucket.clone() };
        let _only_one = self.changing.try_lock().ok_or_else(busy)?;
        self.check_pausable()?;
        let parent = self.newest_pause(store, until)?;
        let pause = PauseId::following(parent.as_ref().map(|parent| parent.pause))
            .map_err(|error| PauseError::Id { bucket: bucket.clone(), error })?;
        let owner = format!("pause {pause}");
        let attempt = self.begin_attempt(store)?;
        let mut carriage = Carriage::load(self, store, parent.as_ref(), attempt, until)?;
        let _held = self.copy_first(&mut carriage, until, on_progress)?;

        let locked = Instant::now();
        let mut guards = self.lock_for(&owner, until)?;
        let cut: Vec<(ShardId, &[ShardFile])> =
            guards.iter().map(|guard| (guard.shard().id(), guard.files())).collect();
        let plan = carriage.carry(&cut, until, on_progress)?;
        until.check().map_err(|why| PauseError::Stopped { bucket: bucket.clone(), why })?;
        self.refuse_if_old()?;
        let files = plan.planned().iter().map(|planned| planned.file.clone()).collect();
        let manifest = self.describe_pause(pause, carriage.attempt, parent.as_ref(), files);
        self.publish(&manifest, store, until)?;
        let archive = store.describe();
        self.change_meta(|meta| {
            meta.state = BucketState::Paused { pause, archive, evicted: false };
            meta.attempt = None;
        })
        .map_err(|error| PauseError::Record { bucket: bucket.clone(), pause, error })?;
        for guard in &mut guards {
            guard.seal_on_drop(&owner);
        }
        drop(guards);
        let done = carriage.report(Some(pause), &plan, locked, began);
        info!(self.logger, "paused"; "pause" => %pause, "bytes" => done.bytes, "locked_ms" => done.locked_ms);
        if evict {
            self.evict(&manifest, store, until)?;
        }
        Ok(PauseReport { total_ms: millis(began), ..done })
    }

    /// The attempt that an interrupted pause into `store` left, if what it uploaded may still be used, or a new
    /// one.
    fn attempt_for(&self, store: &dyn ObjectStore) -> Result<AttemptId, PauseError> {
        let left = self.meta().attempt.clone();
        match left.filter(|left| left.archive == store.describe() && left.age() < ATTEMPT_AGE_MAX) {
            Some(left) => Ok(left.attempt),
            None => AttemptId::generate().map_err(|error| PauseError::Id { bucket: self.name(), error }),
        }
    }

    /// What took too long may have been condemned by a prune that saw no manifest name it.
    fn refuse_if_old(&self) -> Result<(), PauseError> {
        let age = self.meta().attempt.as_ref().map_or(Duration::ZERO, PauseAttempt::age);
        if age < ATTEMPT_AGE_MAX {
            return Ok(());
        }
        Err(PauseError::TooLong { bucket: self.name(), took: age })
    }

    /// Records the attempt before its first object.
    fn begin_attempt(&self, store: &dyn ObjectStore) -> Result<AttemptId, PauseError> {
        let attempt = self.attempt_for(store)?;
        let is_recorded = self.meta().attempt.as_ref().is_some_and(|left| left.attempt == attempt);
        if is_recorded {
            info!(self.logger, "an interrupted pause is taken up"; "attempt" => %attempt);
            return Ok(attempt);
        }
        let record = PauseAttempt::begin(attempt, store.describe());
        self.change_meta(|meta| meta.attempt = Some(record))
            .map_err(|error| PauseError::Intent { bucket: self.name(), error })?;
        Ok(attempt)
    }

    /// Uploads what is durable already, in rounds, without a lock. What comes back keeps the uploaded files where
    /// they are, and merges from replacing them, until it is dropped.
    fn copy_first(
        &self,
        carriage: &mut Carriage<'_>,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<MergeHold>, Vec<Pins>), PauseError> {
        let (mut holds, mut rounds) = (Vec::new(), Vec::new());
        if !self.describe().spec.store.is_copied_first() {
            return Ok((holds, rounds));
        }
        for shard in self.set.shards() {
            let held = shard.hold_merges(until);
            holds.push(held.map_err(|why| PauseError::Stopped { bucket: self.name(), why })?);
        }
        for _ in 0..ROUNDS_MAX {
            let pins = self.pin_all(until)?;
            let plan = carriage.carry(&pinned_files(&pins), until, on_progress)?;
            rounds.push(pins);
            if plan.new_bytes() <= REST_BYTES {
                break;
            }
        }
        Ok((holds, rounds))
    }

    fn pin_all(&self, until: &Until) -> Result<Pins, PauseError> {
        let failed = |error| PauseError::Pin { bucket: self.name(), error };
        let pin = |shard: &Shard| Ok((shard.id(), shard.pin(until).map_err(failed)?));
        self.set.shards().iter().map(pin).collect()
    }

    fn check_pausable(&self) -> Result<(), PauseError> {
        let bucket = self.name();
        if let Some(archive) = self.paused_in() {
            return Err(PauseError::Paused { bucket, archive });
        }
        let meta = self.meta();
        if meta.indexes.is_empty() {
            return Err(PauseError::Empty { bucket });
        }
        match meta.indexes.iter().find(|entry| entry.state == IndexState::Building) {
            Some(entry) => Err(PauseError::Unfinished { bucket, index: entry.definition.name().to_string() }),
            None => Ok(()),
        }
    }

    fn newest_pause(&self, store: &dyn ObjectStore, until: &Until) -> Result<Option<Manifest>, PauseError> {
        let bucket = self.name();
        let failed = |error| PauseError::Manifest { bucket: bucket.clone(), error };
        let newest = list_pauses(store, bucket.as_str(), until).map_err(failed)?.pop();
        newest.map(|pause| Manifest::read(store, bucket.as_str(), pause, until)).transpose().map_err(failed)
    }

    fn lock_for(&self, owner: &str, until: &Until) -> Result<Vec<ShardLock>, PauseError> {
        lock_all(self.set.shards(), owner, until)
            .map_err(|error| PauseError::Lock { bucket: self.name(), error })
    }

    fn describe_pause(
        &self,
        pause: PauseId,
        attempt: AttemptId,
        parent: Option<&Manifest>,
        files: Vec<crate::pause::ManifestFile>,
    ) -> Manifest {
        let meta = BucketMeta { attempt: None, ..self.describe() };
        let positions: Vec<_> = meta
            .indexes
            .iter()
            .map(|entry| {
                let shards = self.set.shards().iter().filter_map(|shard| shard.positions(entry.inst));
                let mut positions = crate::timestamp::TsVbuuid::default();
                shards.for_each(|of_shard| positions.union(&of_shard));
                (entry.inst, positions)
            })
            .collect();
        Manifest {
            pause,
            attempt,
            parent: parent.map(|parent| parent.pause),
            created: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            bucket: meta.name.to_string(),
            bucket_uuid: meta.uuid,
            vbuckets: meta.spec.vbuckets,
            shards: meta.spec.shards,
            store: meta.spec.store.to_string(),
            source: meta.spec.source.to_string(),
            membership: meta.spec.membership,
            // Neither can fail: plain numbers and texts under text keys.
            definitions: serde_json::to_value(&meta).unwrap_or_default(),
            positions: serde_json::to_value(&positions).unwrap_or_default(),
            files,
        }
    }

    /// Publishes the manifest. Where the store's answer is lost, the manifest's key says what happened.
    fn publish(&self, manifest: &Manifest, store: &dyn ObjectStore, until: &Until) -> Result<(), PauseError> {
        let published = manifest.publish(store, until);
        if let Err(error @ ManifestError::Store(_)) = published {
            let read = Manifest::read(store, &manifest.bucket, manifest.pause, until);
            if read.is_ok_and(|read| read == *manifest) {
                warn!(self.logger, "the manifest's answer was lost, and it is there"; "error" => %error);
                return Ok(());
            }
            return Err(PauseError::Manifest { bucket: self.name(), error });
        }
        published.map_err(|error| PauseError::Manifest { bucket: self.name(), error })
    }

    /// Removes the local data, once the archive was proved to hold it.
    fn evict(&self, manifest: &Manifest, store: &dyn ObjectStore, until: &Until) -> Result<(), PauseError> {
        let (bucket, pause) = (self.name(), manifest.pause);
        let kept = |cause: String| PauseError::Evict { bucket: bucket.clone(), pause, cause };
        let read = Manifest::read(store, &manifest.bucket, pause, until).map_err(|e| kept(e.to_string()))?;
        if read != *manifest {
            return Err(kept("the archive gave back another manifest than the one published".to_owned()));
        }
        let bad = verify(&read, store, until).map_err(|e: VerifyError| kept(e.to_string()))?;
        if let Some(first) = bad.first() {
            return Err(kept(format!("{} objects are bad, such as {first}", bad.len())));
        }
        self.change_meta(|meta| {
            if let BucketState::Paused { evicted, .. } = &mut meta.state {
                *evicted = true;
            }
        })
        .map_err(|e| kept(e.to_string()))?;
        for shard in self.set.shards() {
            let folder = self.folder.join(shard.id().folder());
            self.data_dir.discard(&folder).map_err(|e: PathError| kept(e.to_string()))?;
        }
        info!(self.logger, "the local data was removed"; "pause" => %pause);
        Ok(())
    }
}

/// The pinned files of all shards.
type Pins = Vec<(ShardId, PinnedFiles)>;

fn pinned_files(pins: &Pins) -> Vec<(ShardId, &[ShardFile])> {
    pins.iter().map(|(shard, pinned)| (*shard, pinned.files())).collect()
}

/// What is carried into the archive by one pause, in several rounds.
struct Carriage<'a> {
    bucket: BucketName,
    store: &'a dyn ObjectStore,
    attempt: AttemptId,
    reusable: Reusable,
    /// Of files that are pinned until the pause is over.
    known: KnownHashes,
    uploaded_files: usize,
    uploaded_bytes: u64,
}

impl<'a> Carriage<'a> {
    fn load(
        bucket: &Bucket,
        store: &'a dyn ObjectStore,
        parent: Option<&Manifest>,
        attempt: AttemptId,
        until: &Until,
    ) -> Result<Self, PauseError> {
        let bucket = bucket.name();
        let reusable = Reusable::find(bucket.as_str(), parent, attempt, store, until)
            .map_err(|error| PauseError::Upload { bucket: bucket.clone(), error })?;
        let known = KnownHashes::default();
        Ok(Self { bucket, store, attempt, reusable, known, uploaded_files: 0, uploaded_bytes: 0 })
    }

    fn plan(&mut self, shards: &[(ShardId, &[ShardFile])], until: &Until) -> Result<UploadPlan, PauseError> {
        let bucket = &self.bucket;
        let mut files = Vec::new();
        for (shard, file) in
            shards.iter().flat_map(|(shard, files)| files.iter().map(move |file| (*shard, file)))
        {
            let name = ObjectKey::new(file.name.as_str())
                .map_err(|error| PauseError::Name { bucket: bucket.clone(), error })?;
            files.push(ImageFile { shard, name, path: file.path.clone(), length_bytes: file.length_bytes });
        }
        let (reusable, known) = (&self.reusable, &mut self.known);
        plan_upload(bucket.as_str(), self.attempt, &files, reusable, known, until, &mut |_| {})
            .map_err(|error| PauseError::Upload { bucket: bucket.clone(), error })
    }

    /// Uploads what the archive does not have. Progress goes on from that of earlier rounds.
    fn carry(
        &mut self,
        shards: &[(ShardId, &[ShardFile])],
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<UploadPlan, PauseError> {
        let plan = self.plan(shards, until)?;
        let before = self.uploaded_bytes;
        let mut from_before = |Progress { done_bytes, total_bytes }| {
            on_progress(Progress { done_bytes: before + done_bytes, total_bytes: before + total_bytes });
        };
        let files = upload(&plan, self.store, until, &mut from_before)
            .map_err(|error| PauseError::Upload { bucket: self.bucket.clone(), error })?;
        self.reusable.add(&files);
        self.count(&plan);
        Ok(plan)
    }

    fn count(&mut self, plan: &UploadPlan) {
        self.uploaded_files += plan.new_files();
        self.uploaded_bytes += plan.new_bytes();
    }

    fn report(
        &self,
        pause: Option<PauseId>,
        plan: &UploadPlan,
        locked: Instant,
        began: Instant,
    ) -> PauseReport {
        PauseReport {
            pause,
            files: plan.files(),
            bytes: plan.bytes(),
            uploaded_files: self.uploaded_files,
            uploaded_bytes: self.uploaded_bytes,
            locked_ms: millis(locked),
            total_ms: millis(began),
        }
    }
}

pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
