//! What one pause carries into the archive, round by round.

use std::path::PathBuf;
use std::time::Instant;

use crate::objstore::{ObjectKey, ObjectStore};
use crate::pause::{
    AttemptId, ImageFile, KnownHashes, Manifest, NewObjects, PauseId, Progress, Reusable, UploadOptions,
    UploadPlan, Uploaded, plan_upload, upload, weigh,
};
use crate::shard::ShardId;
use crate::shard::store::{PinnedFiles, ShardFile};
use crate::thread::Until;

use super::bucket::Bucket;
use super::meta::BucketName;
use super::pause_error::PauseError;
use super::pausing::{PauseOptions, PauseReport, millis};

/// The pinned files of all shards.
pub(super) type Pins = Vec<(ShardId, PinnedFiles)>;

pub(super) fn pinned_files(pins: &Pins) -> Vec<(ShardId, &[ShardFile])> {
    pins.iter().map(|(shard, pinned)| (*shard, pinned.files())).collect()
}

/// What is carried into the archive by one pause, in several rounds.
pub(super) struct Carriage<'a> {
    bucket: BucketName,
    store: &'a dyn ObjectStore,
    options: UploadOptions,
    reusable: Reusable,
    /// Of files that are pinned until the pause is over.
    known: KnownHashes,
    /// Where files are encoded.
    scratch: PathBuf,
    /// Bytes of files whose objects are durable.
    done_bytes: u64,
    new: NewObjects,
}

/// What came of a round.
pub(super) struct Carried {
    pub(super) plan: UploadPlan,
    pub(super) uploaded: Uploaded,
}

impl<'a> Carriage<'a> {
    pub(super) fn load(
        bucket: &Bucket,
        (store, options): (&'a dyn ObjectStore, PauseOptions),
        parent: Option<&Manifest>,
        attempt: AttemptId,
        until: &Until,
    ) -> Result<Self, PauseError> {
        let (data_dir, bucket) = (&bucket.data_dir, bucket.name());
        let scratch = data_dir.staged("encoded", bucket.as_str());
        let reusable = Reusable::find(bucket.as_str(), parent, attempt, store, until)
            .map_err(|error| PauseError::Upload { bucket: bucket.clone(), error })?;
        let options = UploadOptions {
            bucket: bucket.to_string(),
            attempt,
            encoding: options.encoding(),
            takes_drafts: store.in_drafts().is_some(),
        };
        let known = KnownHashes::read_by(store.parallel());
        let new = NewObjects::default();
        Ok(Self { bucket, store, options, reusable, known, scratch, done_bytes: 0, new })
    }

    fn images(&self, shards: &[(ShardId, &[ShardFile])]) -> Result<Vec<ImageFile>, PauseError> {
        let mut files = Vec::new();
        for (shard, file) in
            shards.iter().flat_map(|(shard, files)| files.iter().map(move |file| (*shard, file)))
        {
            let name = ObjectKey::new(file.name.as_str())
                .map_err(|error| PauseError::Name { bucket: self.bucket.clone(), error })?;
            files.push(ImageFile { shard, name, path: file.path.clone(), length_bytes: file.length_bytes });
        }
        Ok(files)
    }

    /// Plans, and counts what would be uploaded. Every file that may be new is read.
    pub(super) fn weigh(
        &mut self,
        shards: &[(ShardId, &[ShardFile])],
        until: &Until,
    ) -> Result<UploadPlan, PauseError> {
        let files = self.images(shards)?;
        let options = UploadOptions { takes_drafts: false, ..self.options.clone() };
        let failed = |error| PauseError::Upload { bucket: self.bucket.clone(), error };
        let plan = plan_upload(&options, &files, &self.reusable, &mut self.known, until).map_err(failed)?;
        self.new = weigh(&plan, self.store.parallel(), &self.reusable, until).map_err(failed)?;
        Ok(plan)
    }

    /// Uploads what the archive does not have. Progress goes on from that of earlier rounds.
    pub(super) fn carry(
        &mut self,
        shards: &[(ShardId, &[ShardFile])],
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Carried, PauseError> {
        let files = self.images(shards)?;
        let before = self.done_bytes;
        let mut from_before = |Progress { done_bytes, total_bytes }| {
            on_progress(Progress { done_bytes: before + done_bytes, total_bytes: before + total_bytes });
        };
        let failed = |error| PauseError::Upload { bucket: self.bucket.clone(), error };
        let (reusable, known) = (&mut self.reusable, &mut self.known);
        let plan = plan_upload(&self.options, &files, reusable, known, until).map_err(failed)?;
        let to = (self.store, self.scratch.as_path());
        let uploaded = upload(&plan, to, reusable, known, until, &mut from_before).map_err(failed)?;
        self.done_bytes += plan.new_bytes();
        self.new.files += uploaded.new.files;
        self.new.bytes += uploaded.new.bytes;
        Ok(Carried { plan, uploaded })
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
            uploaded_files: self.new.files,
            uploaded_bytes: self.new.bytes,
            locked_ms: millis(locked),
            total_ms: millis(began),
        }
    }
}
