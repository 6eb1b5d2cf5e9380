//! Waking a bucket up: verify everything, then switch over with one rename.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use slog::info;

use crate::durable::PathError;
use crate::objstore::ObjectStore;
use crate::pause::{
    CheckError, DownloadError, Manifest, ManifestError, PauseId, Progress, check_local, download, list_pauses,
};
use crate::shard::{OpenError, ShardSet};
use crate::thread::{Stopped, Until};

use super::bucket::{BucketConfig, BucketError};
use super::folder::DataDir;
use super::meta::{BucketMeta, BucketName, BucketState, MetaError};
use super::pausing::millis;

/// What a resume did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResumeReport {
    /// The pause that the bucket was resumed from.
    pub pause: PauseId,
    /// Files of all shards.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were downloaded; none where the bucket still lay in the folder.
    pub downloaded_files: usize,
    /// Their bytes.
    pub downloaded_bytes: u64,
    /// How long it took.
    pub total_ms: u64,
}

/// Why a bucket was not resumed. Local state is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The archive has no pause of the bucket.
    #[error("cannot resume bucket {bucket}: {store} has no pause of it; is the archive the right one?")]
    NoPause {
        /// The bucket.
        bucket: BucketName,
        /// URL of the archive.
        store: String,
    },
    /// It is awake here.
    #[error(
        "cannot resume bucket {bucket}: it is online in this data folder; drop it first, or resume elsewhere"
    )]
    Online {
        /// The bucket.
        bucket: BucketName,
    },
    /// It sleeps here as another pause.
    #[error(
        "cannot resume bucket {bucket} from pause {wanted}: in this data folder it is paused as {there}; resume that \
         one, or drop the bucket first"
    )]
    OtherPause {
        /// The bucket.
        bucket: BucketName,
        /// The pause that was asked for.
        wanted: PauseId,
        /// The pause that it is in.
        there: PauseId,
    },
    /// The manifest describes no bucket of this program.
    #[error("cannot resume bucket {bucket} from pause {pause}: its manifest is not understood: {cause}")]
    Definitions {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        pause: PauseId,
        /// What is wrong.
        cause: String,
    },
    /// The archive's manifests.
    #[error("cannot resume bucket {bucket}: {error}")]
    Manifest {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: ManifestError,
    },
    /// The files.
    #[error("cannot resume bucket {bucket}: {error}")]
    Download {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: DownloadError,
    },
    /// The files that are here.
    #[error("cannot resume bucket {bucket}: {error}")]
    Check {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: CheckError,
    },
    /// What was restored does not open.
    #[error("cannot resume bucket {bucket}: {error}")]
    Open {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: Box<BucketError>,
    },
    /// The caller's limit ended.
    #[error("cannot resume bucket {bucket}: {why}")]
    Stopped {
        /// The bucket.
        bucket: BucketName,
        /// What ended it.
        why: Stopped,
    },
    /// A file or folder.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The bucket's metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// What there is to do.
enum Way {
    /// Download into this folder. An evicted bucket is there and gives way.
    Download { replaces: bool },
    /// Check what is here and switch it on.
    SwitchOn(BucketMeta),
}

impl DataDir {
    /// What a resume would do. Nothing is changed.
    pub fn plan_resume(
        &self,
        name: &BucketName,
        store: &dyn ObjectStore,
        pause: Option<PauseId>,
        until: &Until,
    ) -> Result<ResumeReport, ResumeError> {
        let began = Instant::now();
        let manifest = find_pause(name, store, pause, until)?;
        let way = self.choose_way(name, manifest.pause)?;
        Ok(report(&manifest, &way, began))
    }

    /// Restores a bucket from its newest pause in `store`, or from `pause`, and leaves it online and closed.
    /// Where the paused bucket still lies in the folder it is checked against the manifest and switched on
    /// without download. `on_progress` is called on this thread with the bytes that are checked and durable.
    pub fn resume(
        &self,
        name: &BucketName,
        store: &dyn ObjectStore,
        pause: Option<PauseId>,
        config: &BucketConfig,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<ResumeReport, ResumeError> {
        let began = Instant::now();
        let manifest = find_pause(name, store, pause, until)?;
        let way = self.choose_way(name, manifest.pause)?;
        let done = report(&manifest, &way, began);
        let folder = self.bucket_folder(name);
        match way {
            Way::SwitchOn(meta) => {
                let _claims = ShardSet::claim(&folder).map_err(|error| cannot_open(name, error))?;
                check_local(&manifest, &folder, until)
                    .map_err(|error| ResumeError::Check { bucket: name.clone(), error })?;
                BucketMeta { state: BucketState::Online, ..meta }.write(&folder)?;
            }
            Way::Download { replaces } => {
                let staging = self.staged("resuming", name.as_str());
                let meta = restore(name, &manifest, store, &staging, until, on_progress)?;
                self.switch_over(&meta, &staging, replaces, config, until)?;
            }
        }
        info!(config.logger, "resumed"; "bucket" => %name, "pause" => %manifest.pause);
        Ok(ResumeReport { total_ms: millis(began), ..done })
    }

    fn choose_way(&self, name: &BucketName, wanted: PauseId) -> Result<Way, ResumeError> {
        let bucket = || name.clone();
        if !self.has_bucket(name) {
            return Ok(Way::Download { replaces: false });
        }
        let meta = match self.bucket_meta(name) {
            Ok(meta) => meta,
            Err(error) => return Err(ResumeError::Open { bucket: bucket(), error: Box::new(error) }),
        };
        match meta.state {
            BucketState::Online => Err(ResumeError::Online { bucket: bucket() }),
            // Nothing but the record of the pause is left of it, so any pause may take its place.
            BucketState::Paused { evicted: true, .. } => Ok(Way::Download { replaces: true }),
            BucketState::Paused { pause: there, .. } if there != wanted => {
                Err(ResumeError::OtherPause { bucket: bucket(), wanted, there })
            }
            BucketState::Paused { .. } => Ok(Way::SwitchOn(meta)),
        }
    }

    /// Opens the restored shards where they are, as a last proof, and puts the bucket in its place.
    fn switch_over(
        &self,
        meta: &BucketMeta,
        staging: &Path,
        replaces: bool,
        config: &BucketConfig,
        until: &Until,
    ) -> Result<(), ResumeError> {
        let name = &meta.name;
        let stopped = |why| ResumeError::Stopped { bucket: name.clone(), why };
        let mut set =
            ShardSet::open(staging, meta.shard_specs(), &config.shards, Some("resume"), &config.logger)
                .map_err(|error| cannot_open(name, error))?;
        set.close(until).map_err(|_| stopped(until.check().err().unwrap_or(Stopped::DeadlinePassed)))?;
        drop(set);
        until.check().map_err(stopped)?;
        if replaces {
            self.replace(staging, name)?;
        } else {
            self.move_in(staging, name)?;
        }
        Ok(())
    }
}

fn cannot_open(bucket: &BucketName, error: OpenError) -> ResumeError {
    ResumeError::Open { bucket: bucket.clone(), error: Box::new(BucketError::Shard(error)) }
}

fn restore(
    name: &BucketName,
    manifest: &Manifest,
    store: &dyn ObjectStore,
    staging: &Path,
    until: &Until,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<BucketMeta, ResumeError> {
    let meta = bucket_of(name, manifest)?;
    download(manifest, store, staging, until, on_progress)
        .map_err(|error| ResumeError::Download { bucket: name.clone(), error })?;
    meta.write(staging)?;
    Ok(meta)
}

fn find_pause(
    name: &BucketName,
    store: &dyn ObjectStore,
    pause: Option<PauseId>,
    until: &Until,
) -> Result<Manifest, ResumeError> {
    let failed = |error| ResumeError::Manifest { bucket: name.clone(), error };
    let pause = match pause {
        Some(pause) => pause,
        None => list_pauses(store, name.as_str(), until)
            .map_err(failed)?
            .pop()
            .ok_or_else(|| ResumeError::NoPause { bucket: name.clone(), store: store.describe() })?,
    };
    Manifest::read(store, name.as_str(), pause, until).map_err(failed)
}

/// The bucket that a manifest describes, awake.
fn bucket_of(name: &BucketName, manifest: &Manifest) -> Result<BucketMeta, ResumeError> {
    let unknown =
        |cause: String| ResumeError::Definitions { bucket: name.clone(), pause: manifest.pause, cause };
    let meta: BucketMeta =
        serde_json::from_value(manifest.definitions.clone()).map_err(|e| unknown(e.to_string()))?;
    let agrees = meta.name == *name
        && meta.uuid == manifest.bucket_uuid
        && meta.spec.vbuckets == manifest.vbuckets
        && meta.spec.shards == manifest.shards
        && meta.spec.problem().is_none()
        && meta.vbuuids.len() == usize::from(manifest.vbuckets);
    if !agrees {
        return Err(unknown("its parts contradict each other".to_owned()));
    }
    Ok(BucketMeta { state: BucketState::Online, ..meta })
}

fn report(manifest: &Manifest, way: &Way, began: Instant) -> ResumeReport {
    let (files, bytes) = (manifest.files.len(), manifest.bytes());
    let (downloaded_files, downloaded_bytes) = match way {
        Way::Download { .. } => (files, bytes),
        Way::SwitchOn(_) => (0, 0),
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
