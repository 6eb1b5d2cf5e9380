//! What one pause carries into the archive, round by round.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::objstore::{ObjectKey, ObjectStore};
use crate::pause::{
    AttemptId, BucketPart, ImageFile, KnownHashes, Manifest, NewObjects, PauseId, Progress, Reusable,
    Standing, UploadOptions, UploadPlan, Uploaded, check_room, plan_upload, upload, weigh,
};
use crate::shard::ShardId;
use crate::shard::store::{PinnedFiles, ShardFile};
use crate::thread::Until;

use super::bucket::Bucket;
use super::meta::{BucketName, PauseAttempt};
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
    /// When it was last looked at what stands in the archive. One clock stands still while the machine sleeps, the other
    /// one may be set back.
    looked: (Instant, SystemTime),
}

/// Looks at what stands in the archive of a bucket.
pub(super) fn look(
    store: &dyn ObjectStore,
    (part, bucket): (&BucketPart, &BucketName),
    until: &Until,
) -> Result<Standing, PauseError> {
    Standing::look(store, part, SystemTime::now(), until)
        .map_err(|error| PauseError::Records { bucket: bucket.clone(), error })
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
        attempt: &PauseAttempt,
        standing: &Standing,
    ) -> Result<Self, PauseError> {
        let (data_dir, part, bucket) = (&bucket.data_dir, bucket.part(), bucket.name());
        let scratch = data_dir.staged("encoded", bucket.as_str());
        let reusable = Reusable::find(&part, parent, &attempt.all(), standing)
            .map_err(|error| PauseError::Upload { bucket: bucket.clone(), error })?;
        let options = UploadOptions {
            bucket: part,
            attempt: attempt.attempt,
            encoding: options.encoding(),
            takes_drafts: store.in_drafts().is_some(),
        };
        let known = KnownHashes::read_by(store.parallel());
        let new = NewObjects::default();
        let looked = (Instant::now(), SystemTime::now());
        Ok(Self { bucket, store, options, reusable, known, scratch, done_bytes: 0, new, looked })
    }

    /// What its objects are called by.
    pub(super) fn attempt(&self) -> AttemptId {
        self.options.attempt
    }

    /// Calls further objects by another attempt.
    pub(super) fn rename(&mut self, attempt: AttemptId) {
        self.options.attempt = attempt;
    }

    /// The time since [`Carriage::look`] began the last time.
    pub(super) fn since_look(&self) -> Duration {
        let (monotonic, wall) = self.looked;
        monotonic.elapsed().max(wall.elapsed().unwrap_or_default())
    }

    /// Looks at what stands in the archive. Nothing else is named without being uploaded from now on.
    pub(super) fn look(&mut self, until: &Until) -> Result<Standing, PauseError> {
        self.looked = (Instant::now(), SystemTime::now());
        let standing = look(self.store, (&self.options.bucket, &self.bucket), until)?;
        self.reusable.keep_standing(&standing);
        Ok(standing)
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

    /// Plans, counts what would be uploaded, and looks whether there is room for it. Every file that may be new is
    /// read.
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
        let folder = self.scratch.parent().unwrap_or(&self.scratch);
        check_room(&plan, self.new, (self.store, folder), until).map_err(failed)?;
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
