//! Putting a bucket to sleep: check, copy, lock, copy the rest, publish, record, unlock.
//!
//! What can be found wrong is found first: the state, the indexes, the room on the disk, the archive, into which a
//! small object is put. Most of the bytes are copied before anything is locked: recovery points are pinned and
//! uploaded, in rounds, while changes come in, until a round has little left to do. Merges are held meanwhile, so that
//! what a round uploaded is what the cut will have. Under the lock only what is new since is read and uploaded.
//!
//! Each step is recorded as the bucket's state before it is made (see [`BucketState`](crate::pause::BucketState)).
//! What an interrupted pause uploaded is not uploaded again: its attempt is recorded before its first object, and
//! the next pause into the same archive takes it up, however long ago that was. What a prune is about to delete, or has
//! deleted meanwhile, is uploaded again, under the name of another attempt: it is looked for after every round, and for
//! the last time right before the manifest is put.
//!
//! The guards of the shards' locks live in this call's frame. They are dropped when it returns, however it
//! returns, after the state was led back to `online`, or on to `paused` or `in doubt`; the shards stay sealed in the
//! latter two, so no write is accepted between the cut and the record, and none after it.

use std::time::{Instant, SystemTime};

use serde::Serialize;
use slog::{Logger, debug, info, warn};

use crate::durable::require_room;
use crate::objstore::{Encoding, ObjectKey, ObjectStore};
use crate::pause::{
    AttemptId, BucketState, Event, Manifest, ManifestError, ManifestFile, PUBLISH_MAX, PauseId, Progress,
    Refusal, Standing, list_pauses, probe, withdraw,
};
use crate::shard::store::ShardFile;
use crate::shard::{MergeHold, Shard, ShardId, ShardLock, StoreKind, lock_all};
use crate::thread::Until;

use super::bucket::Bucket;
use super::carriage::{Carriage, Carried, Pins, look, pinned_files};
use super::error::StepError;
use super::meta::{BucketMeta, IndexState, PauseAttempt};
use super::pause_error::PauseError;
use super::tasks::TaskKind;

/// How often durable files are copied before the shards are locked, at most.
const ROUNDS_MAX: usize = 4;
/// A round that had no more than this to upload is the last one before the lock.
const REST_BYTES: u64 = 1024 * 1024;
/// How often the cut is carried, at most, where a prune takes from the archive what it is to name.
const CUT_TRIES: usize = 2;

/// How a bucket is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PauseOptions {
    /// Whether the local data is removed, after everything that was published was read back and checked.
    pub evict: bool,
    /// Whether files are compressed where that saves a tenth and more. They take less room in the archive and on the
    /// way there, and the pause takes more of the processor; files of the store `cow` are compressed under the lock.
    /// Where the archive has too little room for the files as they are they are compressed twice: once to know whether
    /// it has room for what becomes of them.
    pub compress: bool,
}

impl PauseOptions {
    pub(super) fn encoding(self) -> Option<Encoding> {
        self.compress.then_some(Encoding::Zstd)
    }
}

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
    /// Bytes of their objects, as they are in the archive.
    pub uploaded_bytes: u64,
    /// How long the shards were locked.
    pub locked_ms: u64,
    /// How long it took.
    pub total_ms: u64,
}

/// A pause that began. When it goes, the bucket's state is led to one that lasts, and only then the shards are
/// unlocked; also while a panic unwinds.
struct Underway<'a> {
    bucket: &'a Bucket,
    owner: String,
    guards: Vec<ShardLock>,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let state = self.bucket.meta().state.clone();
        let event = match state {
            BucketState::Preparing { .. } | BucketState::Pausing { .. } => Some(Event::Failed),
            BucketState::Publishing { .. } => Some(Event::Lost),
            _ => None,
        };
        // Before anything else that may fail, or panic in the host's logger.
        if matches!(state, BucketState::Publishing { .. } | BucketState::Paused { .. }) {
            self.guards.iter_mut().for_each(|guard| guard.seal_on_drop(&self.owner));
        }
        if let Some(Err(error)) = event.map(|event| self.bucket.step(event)) {
            // What is on disk is led on when the bucket is paused or opened again.
            warn!(self.bucket.logger, "the end of a pause could not be recorded"; "error" => %error);
        }
    }
}

impl Bucket {
    /// What a pause into `store` would upload. Nothing is put there, nothing is locked or recorded, and the bucket
    /// stays online. What is to be compressed is, for its length alone. Where there is no room for it, in the archive
    /// or here, the error is that of the pause.
    pub fn plan_pause(
        &self,
        store: &dyn ObjectStore,
        options: PauseOptions,
        until: &Until,
    ) -> Result<PauseReport, PauseError> {
        let began = Instant::now();
        let call = self.begin_call::<PauseError>("the plan of a pause", until)?;
        let until = call.until();
        if options.evict
            && let Some(manifest) = self.pause_to_evict(store, until)?
        {
            return Ok(PauseReport { pause: None, ..report_of(&manifest, began) });
        }
        self.check_pausable()?;
        self.check_room(true)?;
        let parent = self.newest_pause(store, until)?;
        let standing = look(store, (&self.part(), &self.name()), until)?;
        let attempt = self.attempt_for(store, &standing)?;
        let mut carriage = Carriage::load(self, (store, options), parent.as_ref(), &attempt, &standing)?;
        let pins = self.pin_all(until)?;
        let plan = carriage.weigh(&pinned_files(&pins), until)?;
        Ok(PauseReport { locked_ms: 0, ..carriage.report(None, &plan, began, began) })
    }

    /// Archives the bucket in `store` and leaves it paused. A bucket that is paused there already is evicted, if the
    /// options say so. A bucket that is in doubt is settled first, if `store` is the archive that knows. `on_progress`
    /// is called on this thread with the bytes that are durable.
    pub fn pause(
        &self,
        store: &dyn ObjectStore,
        options: PauseOptions,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<PauseReport, PauseError> {
        let call = self.begin_call::<PauseError>("a pause", until)?;
        let task = self
            .data_dir
            .begin_task(&self.name(), TaskKind::Pause, call.until())
            .map_err(|busy| PauseError::Busy { bucket: self.name(), busy })?;
        let mut on_progress = |at: Progress| {
            task.report(at);
            on_progress(at);
        };
        let paused = self.pause_alone(store, options, task.until(), &mut on_progress);
        task.end(paused)
    }

    fn pause_alone(
        &self,
        store: &dyn ObjectStore,
        options: PauseOptions,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<PauseReport, PauseError> {
        let (began, evict) = (Instant::now(), options.evict);
        if let Some(manifest) = self.go_on(store, evict, until)? {
            if evict {
                self.evict(&manifest, store, until)?;
            }
            return Ok(report_of(&manifest, began));
        }
        self.check_pausable()?;
        self.check_room(false)?;
        self.withdraw_given_up(store, until);
        let parent = self.newest_pause(store, until)?;
        let pause = self.next_pause(store, parent.as_ref())?;
        let standing = look(store, (&self.part(), &self.name()), until)?;
        let attempt = self.attempt_for(store, &standing)?;
        self.probe(attempt.attempt, store, until)?;

        let mut underway = self.begin_pause(pause, &attempt)?;
        let mut carriage = Carriage::load(self, (store, options), parent.as_ref(), &attempt, &standing)?;
        drop(standing);
        let _held = self.copy_first(&mut carriage, until, on_progress)?;
        self.record(Event::Cut { pause })?;
        let locked = Instant::now();
        underway.guards = self.lock_for(&underway.owner, until)?;
        debug!(self.logger, "the shards are locked");
        let cut: Vec<(ShardId, &[ShardFile])> =
            underway.guards.iter().map(|guard| (guard.shard().id(), guard.files())).collect();
        let carried = self.carry_cut(&mut carriage, &cut, until, on_progress)?;
        let manifest =
            self.describe_pause(pause, carriage.attempt(), parent.as_ref(), carried.uploaded.files);
        self.record(Event::Publishing)?;
        let in_time = until.at_most(PUBLISH_MAX.saturating_sub(carriage.since_look()));
        self.publish(&manifest, store, &in_time)?;
        debug!(self.logger, "the manifest is published"; "pause" => %pause);
        self.step(Event::Published).map_err(|error| PauseError::Record {
            bucket: self.name(),
            pause,
            error,
        })?;
        drop(underway);
        let done = carriage.report(Some(pause), &carried.plan, locked, began);
        info!(self.logger, "paused"; "pause" => %pause, "bytes" => done.bytes, "locked_ms" => done.locked_ms);
        if evict {
            self.evict(&manifest, store, until)?;
        }
        Ok(PauseReport { total_ms: millis(began), ..done })
    }

    pub(super) fn record(&self, event: Event) -> Result<(), PauseError> {
        self.step(event).map_err(|error| PauseError::Step { bucket: self.name(), error })
    }

    /// Whether the archive can be written.
    fn probe(&self, attempt: AttemptId, store: &dyn ObjectStore, until: &Until) -> Result<(), PauseError> {
        let left = probe(store, &self.part(), attempt, until)
            .map_err(|error| PauseError::Probe { bucket: self.name(), error })?;
        if let Some(error) = left {
            warn!(self.logger, "a test object is left for the next prune"; "error" => %error);
        }
        Ok(())
    }

    /// Removes from the archive what was given up and appeared later. Where that fails it is left out all the same.
    fn withdraw_given_up(&self, store: &dyn ObjectStore, until: &Until) {
        let given_up = self.meta().given_up_in(&store.describe());
        tell_withdrawn(withdraw(store, &self.part(), &given_up, until), &self.logger);
    }

    /// The attempt that an interrupted pause into `store` left, or a new one. It has another name where a prune is
    /// about to delete something that it uploaded.
    fn attempt_for(&self, store: &dyn ObjectStore, standing: &Standing) -> Result<PauseAttempt, PauseError> {
        let archive = store.describe();
        let left = self.meta().attempt.clone().filter(|left| left.archive == archive);
        let attempt = match left {
            Some(left) if standing.dooms(left.attempt) => left.renamed(),
            Some(left) => Ok(left),
            None => PauseAttempt::begin(archive),
        };
        attempt.map_err(|error| PauseError::Id { bucket: self.name(), error })
    }

    /// The next pause. Its generation is that of no other, also if one that was given up still appears.
    fn next_pause(&self, store: &dyn ObjectStore, parent: Option<&Manifest>) -> Result<PauseId, PauseError> {
        let given_up = self.meta().given_up_in(&store.describe());
        let latest = parent.map(|parent| parent.pause).into_iter().chain(given_up).max();
        PauseId::following(latest).map_err(|error| PauseError::Id { bucket: self.name(), error })
    }

    /// Records the pause, and the attempt before its first object.
    fn begin_pause(&self, pause: PauseId, attempt: &PauseAttempt) -> Result<Underway<'_>, PauseError> {
        let goes_on = self.meta().attempt.as_ref().is_some_and(|left| attempt.all().contains(&left.attempt));
        if goes_on {
            info!(self.logger, "an interrupted pause is taken up"; "attempt" => %attempt.attempt);
        }
        self.step_with(Event::Began { archive: attempt.archive.clone() }, |meta| {
            meta.attempt = Some(attempt.clone());
        })
        .map_err(|error| PauseError::Step { bucket: self.name(), error })?;
        Ok(Underway { bucket: self, owner: format!("pause {pause}"), guards: Vec::new() })
    }

    /// Uploads the rest, until all that the manifest is to name stands in the archive.
    fn carry_cut(
        &self,
        carriage: &mut Carriage<'_>,
        cut: &[(ShardId, &[ShardFile])],
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Carried, PauseError> {
        let mut tries = 0;
        loop {
            let carried = carriage.carry(cut, until, on_progress)?;
            until.check().map_err(|why| PauseError::Stopped { bucket: self.name(), why })?;
            tries += 1;
            match self.find_lost(carriage, &carried.uploaded.files, until)? {
                None => return Ok(carried),
                Some(object) if tries == CUT_TRIES => {
                    return Err(PauseError::Condemned { bucket: self.name(), object });
                }
                Some(_) => {}
            }
        }
    }

    /// An object of one of the files that does not stand in the archive any more. It is uploaded again by the next
    /// round, under another name: what a prune has begun to delete it may delete at any time.
    fn find_lost(
        &self,
        carriage: &mut Carriage<'_>,
        files: &[ManifestFile],
        until: &Until,
    ) -> Result<Option<ObjectKey>, PauseError> {
        let standing = carriage.look(until)?;
        let lost = standing.lacks(files).map(|file| file.object.clone());
        if let Some(object) = &lost {
            info!(self.logger, "what a prune takes is uploaded again"; "object" => %object);
        }
        let is_gone = |attempt: &PauseAttempt| lost.is_some() || standing.dooms(attempt.attempt);
        let attempt = self.meta().attempt.clone().filter(is_gone);
        if let Some(attempt) = attempt {
            let renamed = attempt.renamed().map_err(|error| PauseError::Id { bucket: self.name(), error })?;
            carriage.rename(renamed.attempt);
            self.change_meta(|meta| meta.attempt = Some(renamed))
                .map_err(|error| PauseError::Step { bucket: self.name(), error: error.into() })?;
        }
        Ok(lost)
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
        for round in 1..=ROUNDS_MAX {
            let pins = self.pin_all(until)?;
            let Carried { plan, uploaded } = carriage.carry(&pinned_files(&pins), until, on_progress)?;
            rounds.push(pins);
            debug!(self.logger, "files were copied without a lock"; "round" => round, "bytes" => plan.new_bytes());
            let lost = self.find_lost(carriage, &uploaded.files, until)?;
            if lost.is_none() && plan.new_bytes() <= REST_BYTES {
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
        match self.closed_for_writes() {
            Some(Refusal::Asleep { archive, .. }) => return Err(PauseError::Paused { bucket, archive }),
            Some(refusal) => {
                return Err(PauseError::Step { bucket, error: StepError::Refused(refusal) });
            }
            None => {}
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

    /// A pause writes what is not durable yet. A plan pins files besides, of which `cow` makes a copy.
    fn check_room(&self, is_plan: bool) -> Result<(), PauseError> {
        let copies = is_plan && self.meta().spec.store == StoreKind::Cow;
        let statuses = self.set.shards().iter().map(Shard::status);
        let needed_bytes = statuses.fold(0_u64, |sum, status| {
            let copied_bytes = if copies { status.disk_bytes } else { 0 };
            sum.saturating_add(status.uncommitted_bytes).saturating_add(copied_bytes)
        });
        require_room(&self.folder, needed_bytes)
            .map_err(|error| PauseError::NoRoom { bucket: self.name(), error })
    }

    /// The newest pause of this very bucket; one that was given up is none.
    fn newest_pause(&self, store: &dyn ObjectStore, until: &Until) -> Result<Option<Manifest>, PauseError> {
        let (bucket, part, archive) = (self.name(), self.part(), store.describe());
        let given_up = self.meta().given_up_in(&archive);
        let failed = |error| PauseError::Manifest { bucket: bucket.clone(), error };
        let pauses = list_pauses(store, &part, until).map_err(failed)?;
        let newest = pauses.into_iter().rfind(|pause| !given_up.contains(pause));
        let newest = newest.map(|pause| Manifest::read(store, &part, pause, until)).transpose();
        let (newest, ours) = (newest.map_err(failed)?, self.meta().uuid);
        match newest.as_ref().map(|newest| newest.bucket_uuid).filter(|theirs| *theirs != ours) {
            Some(theirs) => Err(PauseError::Foreign { bucket, archive, ours, theirs }),
            None => Ok(newest),
        }
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
        files: Vec<ManifestFile>,
    ) -> Manifest {
        // What the bucket is when it is awake.
        let meta = BucketMeta { attempt: None, state: BucketState::Online, ..self.describe() };
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
}

/// Of a pause that was there already.
fn report_of(manifest: &Manifest, began: Instant) -> PauseReport {
    PauseReport {
        pause: Some(manifest.pause),
        files: manifest.files.len(),
        bytes: manifest.bytes(),
        uploaded_files: 0,
        uploaded_bytes: 0,
        locked_ms: 0,
        total_ms: millis(began),
    }
}

/// What became of pauses that were given up and looked for.
pub(super) fn tell_withdrawn(withdrawn: Result<Vec<PauseId>, ManifestError>, logger: &Logger) {
    match withdrawn {
        Ok(appeared) => {
            for pause in appeared {
                warn!(logger, "a pause that was given up had appeared and was removed"; "pause" => %pause);
            }
        }
        Err(error) => warn!(logger, "pauses that were given up could not be looked for"; "error" => %error),
    }
}

pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
