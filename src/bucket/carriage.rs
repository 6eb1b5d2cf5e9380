//! What one pause carries into the archive, round by round.

use std::time::Instant;

use crate::objstore::{ObjectKey, ObjectStore};
use crate::pause::{
    AttemptId, ImageFile, KnownHashes, Manifest, PauseId, Progress, Reusable, UploadPlan, plan_upload, upload,
};
use crate::shard::ShardId;
use crate::shard::store::{PinnedFiles, ShardFile};
use crate::thread::Until;

use super::bucket::Bucket;
use super::meta::BucketName;
use super::pause_error::PauseError;
use super::pausing::{PauseReport, millis};

/// The pinned files of all shards.
pub(super) type Pins = Vec<(ShardId, PinnedFiles)>;

pub(super) fn pinned_files(pins: &Pins) -> Vec<(ShardId, &[ShardFile])> {
    pins.iter().map(|(shard, pinned)| (*shard, pinned.files())).collect()
}

/// What is carried into the archive by one pause, in several rounds.
pub(super) struct Carriage<'a> {
    bucket: BucketName,
    store: &'a dyn ObjectStore,
    pub(super) attempt: AttemptId,
    reusable: Reusable,
    /// Of files that are pinned until the pause is over.
    known: KnownHashes,
    uploaded_files: usize,
    uploaded_bytes: u64,
}

impl<'a> Carriage<'a> {
    pub(super) fn load(
        bucket: &Bucket,
        store: &'a dyn ObjectStore,
        parent: Option<&Manifest>,
        attempt: AttemptId,
        until: &Until,
    ) -> Result<Self, PauseError> {
        let bucket = bucket.name();
        let reusable = Reusable::find(bucket.as_str(), parent, attempt, store, until)
            .map_err(|error| PauseError::Upload { bucket: bucket.clone(), error })?;
        let known = KnownHashes::read_by(store.parallel());
        Ok(Self { bucket, store, attempt, reusable, known, uploaded_files: 0, uploaded_bytes: 0 })
    }

    pub(super) fn plan(
        &mut self,
        shards: &[(ShardId, &[ShardFile])],
        until: &Until,
    ) -> Result<UploadPlan, PauseError> {
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
    pub(super) fn carry(
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

    pub(super) fn count(&mut self, plan: &UploadPlan) {
        self.uploaded_files += plan.new_files();
        self.uploaded_bytes += plan.new_bytes();
    }

    pub(super) fn report(
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
