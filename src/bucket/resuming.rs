//! Waking a bucket up: verify everything, then switch over with one rename.
//!
//! What is downloaded goes to a folder that is named after the pause and the bucket, and stays there until the bucket
//! is in its place: a resume that was killed, cancelled or failed is taken up by the next one from the same pause,
//! which reads every file that is there again before it counts. A resume from another pause removes it.
//!
//! A bucket that is in the data folder already says in its state that it is being woken up. On a failure the state is
//! led back; of a crash it is when the bucket is looked at the next time.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use slog::{Logger, debug, info, warn};

use crate::durable::{AtPath, require_room};
use crate::objstore::ObjectStore;
use crate::pause::{
    BucketPart, BucketState, Event, Manifest, Membership, PauseId, Progress, Refusal, Staged, check_local,
    download, list_parts, list_pauses, take_up, withdraw,
};
use crate::shard::{ShardLock, ShardSet, lock_sealed};
use crate::thread::{Stopped, Until};

use super::bucket::BucketConfig;
use super::error::BucketError;
use super::folder::DataDir;
use super::meta::{BucketMeta, BucketName};
use super::pausing::{millis, tell_withdrawn};
use super::resume_error::ResumeError;
use super::settling::{Fate, ask};
use super::tasks::TaskKind;

/// Which pause a bucket is woken up from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResumeOptions {
    /// The pause; `None` is the newest one.
    pub pause: Option<PauseId>,
    /// The member whose pause it is; `None` is the one that the bucket is in the data folder, or the only one where it
    /// is not there.
    pub member: Option<Membership>,
}

/// What a resume did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResumeReport {
    /// The pause that the bucket was resumed from.
    pub pause: PauseId,
    /// Files of all shards.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were downloaded; none where the bucket still lay in the folder, and without those that an earlier
    /// try had downloaded.
    pub downloaded_files: usize,
    /// Bytes of their objects, as they are in the archive.
    pub downloaded_bytes: u64,
    /// How long it took.
    pub total_ms: u64,
}

/// What there is to do.
enum Way {
    /// Download into this folder.
    Download,
    /// Check what is here and switch it on.
    SwitchOn,
}

/// A bucket that is here and is being woken up. Dropping it leads the state back, unless it was woken up.
struct Waking<'a> {
    meta: BucketMeta,
    folder: PathBuf,
    logger: &'a Logger,
    is_over: bool,
}

impl Waking<'_> {
    /// Records the step before it is made.
    fn record(&mut self, event: Event) -> Result<(), ResumeError> {
        let bucket = self.meta.name.clone();
        let next = self.meta.after(event).map_err(|refusal| refused(&bucket, refusal))?;
        debug!(self.logger, "a step begins"; "bucket" => %bucket, "state" => %next.state);
        next.write(&self.folder)?;
        debug!(self.logger, "a step is recorded"; "bucket" => %bucket);
        self.meta = next;
        Ok(())
    }
}

impl Drop for Waking<'_> {
    fn drop(&mut self) {
        if !self.is_over
            && matches!(self.meta.state, BucketState::Resuming { .. })
            && let Err(error) = self.record(Event::Failed)
        {
            // What is on disk is led on when the bucket is opened or resumed again.
            warn!(self.logger, "the end of a resume could not be recorded"; "error" => %error);
        }
    }
}

fn refused(bucket: &BucketName, refusal: Refusal) -> ResumeError {
    let bucket = bucket.clone();
    match refusal {
        Refusal::Awake => ResumeError::Online { bucket },
        Refusal::OtherPause { wanted, there } => ResumeError::OtherPause { bucket, wanted, there },
        refusal => ResumeError::State { bucket, refusal },
    }
}

impl DataDir {
    /// What a resume would do, and whether there is room for it. Nothing is changed.
    pub fn plan_resume(
        &self,
        name: &BucketName,
        store: &dyn ObjectStore,
        options: ResumeOptions,
        until: &Until,
    ) -> Result<ResumeReport, ResumeError> {
        self.refuse_fork()?;
        let there = self.has_bucket(name).then(|| self.bucket_meta(name)).transpose();
        let there = there.map_err(|error| cannot_open(name, error))?;
        // What an earlier try has downloaded stays or makes room.
        let staged_bytes = self.resumed_bytes(name)?;
        plan((self.root(), staged_bytes), (name, there), (store, options), until)
    }

    /// The same where the data folder `root` is not there yet. Nor is it afterwards.
    pub fn plan_first_resume(
        root: &Path,
        name: &BucketName,
        store: &dyn ObjectStore,
        options: ResumeOptions,
        until: &Until,
    ) -> Result<ResumeReport, ResumeError> {
        // What is in its place but a folder takes no bucket.
        match std::fs::read_dir(root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            listed => drop(listed.at("list", root)?),
        }
        plan((root, 0), (name, None), (store, options), until)
    }

    /// Restores a bucket from the pause in `store` that `options` name, and leaves it online and closed.
    /// Where the paused bucket still lies in the folder it is checked against the manifest and switched on
    /// without download. What was downloaded stays for another try where the resume does not come to its end. A
    /// bucket that is in doubt is settled first. `on_progress` is called on this thread with the bytes that are
    /// checked and durable.
    ///
    /// ```no_run
    /// use dormouse::bucket::{BucketConfig, BucketName, DataDir, ResumeOptions};
    /// use dormouse::objstore::FileStore;
    /// use dormouse::thread::Until;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (until, config) = (Until::within(std::time::Duration::from_secs(60)), BucketConfig::default());
    /// let (name, archive): (BucketName, _) = ("travel".parse()?, FileStore::open("archive".as_ref())?);
    /// let data = DataDir::open_or_create("data".as_ref())?;
    /// data.resume(&name, &archive, ResumeOptions::default(), &config, &until, &mut |_| {})?;
    /// let bucket = data.open_bucket(&name, &config)?;
    /// # bucket.close(&until)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume(
        &self,
        name: &BucketName,
        store: &dyn ObjectStore,
        options: ResumeOptions,
        config: &BucketConfig,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<ResumeReport, ResumeError> {
        self.refuse_fork()?;
        let task = self
            .begin_task(name, TaskKind::Resume, until)
            .map_err(|busy| ResumeError::Busy { bucket: name.clone(), busy })?;
        let mut on_progress = |at: Progress| {
            task.report(at);
            on_progress(at);
        };
        let resumed = self.resume_alone(name, store, options, config, task.until(), &mut on_progress);
        task.end(resumed)
    }

    fn resume_alone(
        &self,
        name: &BucketName,
        store: &dyn ObjectStore,
        options: ResumeOptions,
        config: &BucketConfig,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<ResumeReport, ResumeError> {
        let began = Instant::now();
        let there = self.settled(name, store, config, until)?;
        if let Some(meta) = &there {
            let given_up = meta.given_up_in(&store.describe());
            tell_withdrawn(withdraw(store, &meta.part(), &given_up, until), &config.logger);
        }
        let manifest = find_pause(name, store, options, there.as_ref(), until)?;
        let way = choose_way(there.as_ref());
        let folder = self.bucket_folder(name);
        // Until it is over nobody opens the shards that are here.
        let claims = there.as_ref().map(|_| ShardSet::claim(&folder)).transpose();
        let claims = claims.map_err(|error| cannot_open(name, BucketError::Shard(error)))?;
        let mut waking = there.map(|meta| {
            let (folder, logger) = (folder.clone(), &config.logger);
            Waking { meta, folder, logger, is_over: false }
        });
        if let Some(waking) = &mut waking {
            waking.record(Event::Waking { pause: manifest.pause })?;
        }
        let mut staged = Staged::default();
        match (&way, waking) {
            (Way::SwitchOn, Some(mut waking)) => {
                check_local(&manifest, &folder, until)
                    .map_err(|error| ResumeError::Check { bucket: name.clone(), error })?;
                waking.record(Event::Resumed)?;
            }
            (_, waking) => {
                let staging = self.resume_staging(manifest.pause, name);
                let meta;
                (meta, staged) = self.download(name, &manifest, store, config, until, on_progress)?;
                self.switch_over(&meta, (&staging, manifest.pause), waking, config, until)?;
            }
        }
        drop(claims);
        if let Err(error) = self.forget_resumes(name, None) {
            // The next resume of the bucket removes it.
            warn!(config.logger, "what an earlier resume had downloaded could not be removed"; "error" => %error);
        }
        info!(config.logger, "resumed"; "bucket" => %name, "pause" => %manifest.pause);
        Ok(report(&manifest, &way, &staged, began))
    }

    /// What is here of the bucket, after what was interrupted was cleaned up and what was in doubt was settled.
    fn settled(
        &self,
        name: &BucketName,
        store: &dyn ObjectStore,
        config: &BucketConfig,
        until: &Until,
    ) -> Result<Option<BucketMeta>, ResumeError> {
        if !self.has_bucket(name) {
            return Ok(None);
        }
        let meta = self.recover_alone(name, &config.logger).map_err(|error| cannot_open(name, error))?;
        let BucketState::InDoubt { pause, archive } = meta.state.clone() else { return Ok(Some(meta)) };
        let bucket = name.clone();
        if archive != store.describe() {
            let refusal = Refusal::InDoubt { pause, archive };
            return Err(ResumeError::State { bucket, refusal });
        }
        let folder = self.bucket_folder(name);
        let _claims =
            ShardSet::claim(&folder).map_err(|error| cannot_open(name, BucketError::Shard(error)))?;
        let mut settling = Waking { meta, folder, logger: &config.logger, is_over: false };
        match ask(store, &settling.meta.part(), pause, until) {
            Fate::There(_) => {
                settling.record(Event::Published)?;
                info!(config.logger, "the pause that was in doubt exists"; "bucket" => %name, "pause" => %pause);
                Ok(Some(settling.meta.clone()))
            }
            Fate::Absent => {
                settling.record(Event::Absent)?;
                info!(config.logger, "the pause that was in doubt does not exist"; "bucket" => %name,
                    "pause" => %pause);
                Err(ResumeError::NotPaused { bucket, pause, archive })
            }
            Fate::Unknown(error) => Err(ResumeError::Manifest { bucket, error }),
        }
    }

    /// Fills the staging folder with what the manifest names, and keeps of it what an earlier try has downloaded.
    fn download(
        &self,
        name: &BucketName,
        manifest: &Manifest,
        store: &dyn ObjectStore,
        config: &BucketConfig,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<(BucketMeta, Staged), ResumeError> {
        let meta = bucket_of(name, manifest)?;
        let staging = self.resume_staging(manifest.pause, name);
        let failed = |error| ResumeError::Download { bucket: name.clone(), error };
        self.forget_resumes(name, Some(manifest.pause))?;
        let staged = take_up(manifest, &staging, until).map_err(failed)?;
        if staged.files() > 0 {
            info!(config.logger, "an interrupted resume is taken up"; "bucket" => %name,
                "files" => staged.files(), "bytes" => staged.bytes());
        }
        require_room_for(name, self.root(), manifest.bytes().saturating_sub(staged.bytes()))?;
        debug!(config.logger, "a download begins"; "bucket" => %name);
        download(manifest, store, &staging, &staged, until, on_progress).map_err(failed)?;
        debug!(config.logger, "a download is checked and durable"; "bucket" => %name);
        Ok((meta, staged))
    }

    /// Opens the restored shards where they are, as a last proof, and puts the bucket in its place. The shards are
    /// locked until it is there, where its state is online.
    fn switch_over(
        &self,
        meta: &BucketMeta,
        (staging, pause): (&Path, PauseId),
        waking: Option<Waking<'_>>,
        config: &BucketConfig,
        until: &Until,
    ) -> Result<(), ResumeError> {
        let name = &meta.name;
        let stopped = |why| ResumeError::Stopped { bucket: name.clone(), why };
        let owner = format!("resume {pause}");
        let set = ShardSet::open(staging, meta.shard_specs(), &config.shards, Some(&owner), &config.logger);
        let set = set.map_err(|error| cannot_open(name, BucketError::Shard(error)))?;
        let mut guards = lock_sealed(set.shards(), &owner)
            .map_err(|error| ResumeError::Lock { bucket: name.clone(), error })?;
        set.close(until).map_err(|_| stopped(until.check().err().unwrap_or(Stopped::DeadlinePassed)))?;
        meta.write(staging)?;
        until.check().map_err(stopped)?;
        debug!(config.logger, "a bucket is put in its place"; "bucket" => %name);
        match waking {
            None => self.move_in(staging, name)?,
            Some(mut waking) => {
                self.replace(staging, name)?;
                waking.is_over = true;
            }
        }
        debug!(config.logger, "a bucket is in its place"; "bucket" => %name);
        guards.iter_mut().for_each(ShardLock::open_on_drop);
        Ok(())
    }
}

/// What a resume of a bucket into `root` would do, where so many bytes of it lie already.
fn plan(
    (root, staged_bytes): (&Path, u64),
    (name, there): (&BucketName, Option<BucketMeta>),
    (store, options): (&dyn ObjectStore, ResumeOptions),
    until: &Until,
) -> Result<ResumeReport, ResumeError> {
    let began = Instant::now();
    let manifest = find_pause(name, store, options, there.as_ref(), until)?;
    let way = choose_way(there.as_ref());
    if let Some(meta) = there {
        let lasting = meta.after(Event::Restarted).map_err(|refusal| refused(name, refusal))?;
        lasting.after(Event::Waking { pause: manifest.pause }).map_err(|refusal| refused(name, refusal))?;
    }
    if matches!(way, Way::Download) {
        require_room_for(name, root, manifest.bytes().saturating_sub(staged_bytes))?;
    }
    Ok(report(&manifest, &way, &Staged::default(), began))
}

fn require_room_for(name: &BucketName, root: &Path, needed_bytes: u64) -> Result<(), ResumeError> {
    require_room(root, needed_bytes).map_err(|error| ResumeError::NoRoom { bucket: name.clone(), error })
}

/// Of an evicted bucket nothing but the record of the pause is left.
fn choose_way(there: Option<&BucketMeta>) -> Way {
    if there.is_none_or(|meta| meta.state.is_evicted()) { Way::Download } else { Way::SwitchOn }
}

fn cannot_open(bucket: &BucketName, error: BucketError) -> ResumeError {
    ResumeError::Open { bucket: bucket.clone(), error: Box::new(error) }
}

/// The manifest of the pause that is asked for, which is one of the bucket that is `there`.
fn find_pause(
    name: &BucketName,
    store: &dyn ObjectStore,
    options: ResumeOptions,
    there: Option<&BucketMeta>,
    until: &Until,
) -> Result<Manifest, ResumeError> {
    let failed = |error| ResumeError::Manifest { bucket: name.clone(), error };
    let (bucket, archive) = (name.clone(), store.describe());
    let member = match (options.member, there.map(|meta| meta.spec.membership)) {
        (Some(wanted), Some(there)) if wanted != there => {
            return Err(ResumeError::OtherMember { bucket, wanted, there });
        }
        (wanted, there) => wanted.or(there).unwrap_or_default(),
    };
    let part = BucketPart::new(name.as_str(), member);
    let given_up = there.map(|meta| meta.given_up_in(&archive)).unwrap_or_default();
    let newest = || -> Result<PauseId, ResumeError> {
        let pauses = list_pauses(store, &part, until).map_err(failed)?;
        if let Some(newest) = pauses.into_iter().rfind(|pause| !given_up.contains(pause)) {
            return Ok(newest);
        }
        let parts = list_parts(store, Some(name.as_str()), until).map_err(failed)?;
        let members = parts.iter().map(BucketPart::membership).filter(|other| *other != member).collect();
        Err(ResumeError::NoPause { bucket: part.clone(), store: store.describe(), members })
    };
    let pause = options.pause.map_or_else(newest, Ok)?;
    let manifest = Manifest::read(store, &part, pause, until).map_err(failed)?;
    match there.map(|meta| meta.uuid).filter(|ours| *ours != manifest.bucket_uuid) {
        Some(ours) => {
            Err(ResumeError::Foreign { bucket, pause, archive, ours, theirs: manifest.bucket_uuid })
        }
        None => Ok(manifest),
    }
}

/// The bucket that a manifest describes, awake.
pub(super) fn bucket_of(name: &BucketName, manifest: &Manifest) -> Result<BucketMeta, ResumeError> {
    let unknown =
        |cause: String| ResumeError::Definitions { bucket: name.clone(), pause: manifest.pause, cause };
    let meta: BucketMeta =
        serde_json::from_value(manifest.definitions.clone()).map_err(|e| unknown(e.to_string()))?;
    let agrees = meta.name == *name
        && meta.uuid == manifest.bucket_uuid
        && meta.spec.vbuckets == manifest.vbuckets
        && meta.spec.shards == manifest.shards
        && meta.spec.membership == manifest.membership
        && meta.spec.problem().is_none()
        && meta.vbuuids.len() == usize::from(manifest.vbuckets);
    if !agrees {
        return Err(unknown("its parts contradict each other".to_owned()));
    }
    Ok(BucketMeta { state: BucketState::Online, ..meta })
}

fn report(manifest: &Manifest, way: &Way, staged: &Staged, began: Instant) -> ResumeReport {
    let (files, bytes, object_bytes) = (manifest.files.len(), manifest.bytes(), manifest.object_bytes());
    let (downloaded_files, downloaded_bytes) = match way {
        Way::Download => {
            (files.saturating_sub(staged.files()), object_bytes.saturating_sub(staged.object_bytes()))
        }
        Way::SwitchOn => (0, 0),
    };
    ResumeReport {
        pause: manifest.pause,
        files,
        bytes,
        downloaded_files,
        downloaded_bytes,
        total_ms: millis(began),
    }
}
