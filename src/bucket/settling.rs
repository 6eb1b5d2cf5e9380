//! The ends of a pause: its manifest is published, what is in doubt is settled, local data is removed.
//!
//! Whether a pause exists is told by its manifest's key alone. Where the answer to the manifest's put is lost, the key
//! is read until it is known what became of it, for as long as the caller's limit lasts and a little after; then the
//! bucket is in doubt. Its shards stay sealed, and the next call that has the archive asks again.
//!
//! A manifest that is not there may still appear: the server may carry the put out later. A pause that is taken to be
//! absent is therefore remembered as given up, with the same record. Its generation is never used again, so no two
//! pauses share one; where it appears, it counts for nothing and the next pause or resume removes it.

use std::time::Duration;

use slog::{debug, info, warn};

use crate::objstore::{ObjectStore, StoreCause};
use crate::pause::{BucketPart, BucketState, Event, Manifest, ManifestError, PauseId, VerifyError, verify};
use crate::shard::{ShardLock, lock_sealed};
use crate::thread::Until;

use super::bucket::Bucket;
use super::pause_error::PauseError;
use super::resuming::bucket_of;

/// How long an archive is asked for what became of a manifest, at most: the shards are locked.
const ASKING_MAX: Duration = Duration::from_secs(30);
/// How long it is asked after the caller's limit has ended.
const ASKING_GRACE: Duration = Duration::from_millis(500);
/// Between two questions.
const ASKING_PAUSE: Duration = Duration::from_millis(50);

/// What is known of a manifest.
pub(super) enum Fate {
    There(Box<Manifest>),
    Absent,
    Unknown(ManifestError),
}

/// Asks the archive whether the pause exists, until that is known or the time is over.
pub(super) fn ask(store: &dyn ObjectStore, bucket: &BucketPart, pause: PauseId, until: &Until) -> Fate {
    let mut limits = [until.at_most(ASKING_MAX), Until::within(ASKING_GRACE)].into_iter();
    let mut limit = limits.next().unwrap_or_default();
    loop {
        match Manifest::read(store, bucket, pause, &limit) {
            Ok(manifest) => return Fate::There(Box::new(manifest)),
            Err(ManifestError::Missing { .. }) => return Fate::Absent,
            Err(error) if limit.check().is_err() => match limits.next() {
                Some(next) => limit = next,
                None => return Fate::Unknown(error),
            },
            // It is cancelled, or its time is over: the next question is told so.
            Err(_) => {
                let _ = limit.pause(ASKING_PAUSE);
            }
        }
    }
}

impl Bucket {
    /// Publishes the manifest. Where the store's answer is lost, the manifest's key says what happened. On an error
    /// the state is `online`, or still `publishing` where nobody knows.
    pub(super) fn publish(
        &self,
        manifest: &Manifest,
        store: &dyn ObjectStore,
        until: &Until,
    ) -> Result<(), PauseError> {
        let bucket = self.name();
        let error = match manifest.publish(store, until) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let fate = match error {
            ManifestError::Store(_) => ask(store, &manifest.part(), manifest.pause, until),
            // Nothing was put.
            _ => Fate::Absent,
        };
        match fate {
            Fate::There(found) if *found == *manifest => {
                warn!(self.logger, "the manifest's answer was lost, and it is there"; "error" => %error);
                Ok(())
            }
            Fate::There(_) | Fate::Absent => {
                self.record(Event::Absent)?;
                match error {
                    ManifestError::Store(error) => match error.cause {
                        StoreCause::Stopped(why) => Err(PauseError::Stopped { bucket, why }),
                        _ => Err(PauseError::Manifest { bucket, error: error.into() }),
                    },
                    error => Err(PauseError::Manifest { bucket, error }),
                }
            }
            Fate::Unknown(cause) => {
                let (pause, archive) = (manifest.pause, store.describe());
                Err(PauseError::InDoubt { bucket, pause, archive, cause: Some(cause) })
            }
        }
    }

    /// What is left to do of an earlier pause: one that is in doubt is settled, and one that kept the local data
    /// can still be evicted. Gives its manifest, where no other pause is to be made.
    pub(super) fn go_on(
        &self,
        store: &dyn ObjectStore,
        evict: bool,
        until: &Until,
    ) -> Result<Option<Manifest>, PauseError> {
        if !self.meta().state.is_lasting() {
            // The end of an earlier call could not be recorded.
            self.record(Event::Restarted)?;
        }
        let (bucket, state) = (self.name(), self.meta().state.clone());
        match state {
            BucketState::InDoubt { pause, archive } if archive == store.describe() => {
                self.settle(pause, store, until)
            }
            BucketState::InDoubt { pause, archive } => {
                Err(PauseError::InDoubt { bucket, pause, archive, cause: None })
            }
            _ if evict => self.pause_to_evict(store, until),
            _ => Ok(None),
        }
    }

    /// The manifest of the pause in this store that kept the local data, if it is paused so.
    pub(super) fn pause_to_evict(
        &self,
        store: &dyn ObjectStore,
        until: &Until,
    ) -> Result<Option<Manifest>, PauseError> {
        let pause = match &self.meta().state {
            BucketState::Paused { pause, archive, evicted: false } if *archive == store.describe() => *pause,
            _ => return Ok(None),
        };
        let read = Manifest::read(store, &self.part(), pause, until);
        read.map(Some).map_err(|e| PauseError::Evict { bucket: self.name(), pause, cause: e.to_string() })
    }

    fn settle(
        &self,
        pause: PauseId,
        store: &dyn ObjectStore,
        until: &Until,
    ) -> Result<Option<Manifest>, PauseError> {
        let (bucket, archive) = (self.name(), store.describe());
        match ask(store, &self.part(), pause, until) {
            Fate::There(manifest) => {
                self.record(Event::Published)?;
                info!(self.logger, "the pause that was in doubt exists"; "pause" => %pause);
                Ok(Some(*manifest))
            }
            Fate::Absent => {
                let owner = format!("pause {pause}");
                // Until it is on record that the pause is not there, no write is taken.
                let mut guards = lock_sealed(self.set.shards(), &owner)
                    .map_err(|error| PauseError::Lock { bucket, error })?;
                self.record(Event::Absent)?;
                guards.iter_mut().for_each(ShardLock::open_on_drop);
                drop(guards);
                info!(self.logger, "the pause that was in doubt does not exist"; "pause" => %pause);
                Ok(None)
            }
            Fate::Unknown(cause) => Err(PauseError::InDoubt { bucket, pause, archive, cause: Some(cause) }),
        }
    }

    /// Removes the local data, once the archive was proved to hold it and nobody reads it.
    pub(super) fn evict(
        &self,
        manifest: &Manifest,
        store: &dyn ObjectStore,
        until: &Until,
    ) -> Result<(), PauseError> {
        let (bucket, pause) = (self.name(), manifest.pause);
        let kept = |cause: String| PauseError::Evict { bucket: bucket.clone(), pause, cause };
        let read = Manifest::read(store, &manifest.part(), pause, until).map_err(|e| kept(e.to_string()))?;
        if read != *manifest {
            return Err(kept("the archive gave back another manifest than the one published".to_owned()));
        }
        bucket_of(&bucket, &read).map_err(|e| kept(e.to_string()))?;
        // That it can be read does not say that it is durable, where its put failed or its answer was lost.
        read.publish(store, until).map_err(|e| kept(e.to_string()))?;
        let bad = verify(&read, store, until).map_err(|e: VerifyError| kept(e.to_string()))?;
        if let Some(first) = bad.first() {
            return Err(kept(format!(
                "{} objects are bad, such as {first}: remove them from the archive, resume it here, and pause it again, which \
                 uploads what is missing",
                bad.len()
            )));
        }
        // From here on no scan begins.
        self.scans.close_if_none().map_err(|scans| kept(format!("{scans} scans are open, which read it")))?;
        // What is not removed by this call is when the bucket is opened again.
        if let Err(error) = self.step(Event::Evicting) {
            self.scans.reopen();
            return Err(kept(error.to_string()));
        }
        for shard in self.set.shards() {
            let folder = self.folder.join(shard.id().folder());
            self.data_dir.discard(&folder).map_err(|error| PauseError::EvictLater {
                bucket: bucket.clone(),
                pause,
                error,
            })?;
            debug!(self.logger, "a shard was removed"; "shard" => shard.id().0);
        }
        info!(self.logger, "the local data was removed"; "pause" => %pause);
        Ok(())
    }
}
