//! Archives: what a paused bucket leaves in an object store, and the ways there and back.
//!
//! Pausing is a [`plan_upload`], an [`upload`] and, last, a [`Manifest::publish`]; resuming is a
//! [`Manifest::read`] and a [`download`], or a [`check_local`] where the files are still there. The room knows
//! files, hashes and objects; what a shard is, and when it may be read, is the caller's knowledge. What state a
//! bucket is in, and what may follow on it, is decided by [`BucketState::after`].
//!
//! An archive holds, for each bucket:
//!
//! ```text
//! <bucket>/objects/<content hash>-<attempt>        the content of a file; never changed
//! <bucket>/manifests/<pause>.manifest              one pause; created last, never changed
//! <bucket>/condemned/<id>.condemned                objects that no pause named when it was made
//! <bucket>/member-<n>-of-<m>/…                     the same for a member of several ([`BucketPart`])
//! ```
//!
//! `<attempt>` is an [`AttemptId`], `<pause>` a [`PauseId`], `<content hash>` the
//! [`ContentHash`](crate::objstore::ContentHash) of the object. An object is a file as it is or, since format version
//! 2, a frame of an [`Encoding`](crate::objstore::Encoding), which the manifest says. A manifest is a
//! [sealed](crate::durable::seal()) JSON document of the kind `manifest`, with the fields of [`Manifest`], in the
//! lowest of [`FORMAT_VERSIONS`] that can say it.
//!
//! What is known to go wrong with pauses, and why it cannot here, stands in [`hazards`].
//!
//! Invariants: no key is ever written with two different contents, so a published pause cannot be damaged by a
//! later attempt. A pause exists when its manifest does; what an unfinished attempt left is named by no manifest
//! and is invisible. Nothing that comes from an archive is believed before its length and hash were checked.

mod catalog;
mod condemned;
mod download;
mod fetch;
pub mod hazards;
mod id;
mod manifest;
mod part;
mod plan;
mod prune;
mod small;
mod state;
mod upload;
mod verify;

pub use catalog::{PauseSummary, describe_pauses, list_parts};
pub use condemned::{GRACE_DEFAULT, GRACE_MIN, PUBLISH_MAX, RecordError, Standing};
pub use download::{DownloadError, Staged, download, take_up};
pub use id::{AttemptId, GENERATION_MAX, IdError, PauseId};
pub use manifest::{
    Archived, FORMAT_VERSIONS, Manifest, ManifestError, ManifestFile, Stored, list_pauses, withdraw,
};
pub use part::{BucketPart, Membership};
pub use plan::{ImageFile, KnownHashes, PlannedFile, Reusable, UploadOptions, UploadPlan, Way, plan_upload};
pub use prune::{PruneError, PruneOptions, PruneReport, prune};
pub use small::SMALL_BYTES_MAX;
pub use state::{BucketState, Event, Refusal};
pub use upload::{NewObjects, UploadError, Uploaded, check_room, probe, upload, weigh};
pub use verify::{BadObject, CheckError, Difference, VerifyError, check_local, verify};

/// How far a call has come. The numbers of one call never fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of files whose work is done: durable in the store, or flushed to the disk, as the call says.
    pub done_bytes: u64,
    /// Bytes that the whole call is about.
    pub total_bytes: u64,
}

/// Adds up finished files and tells the caller of each, on the caller's thread.
struct Meter<'a> {
    progress: Progress,
    on_progress: &'a mut dyn FnMut(Progress),
}

impl<'a> Meter<'a> {
    fn new(total_bytes: u64, on_progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self { progress: Progress { done_bytes: 0, total_bytes }, on_progress }
    }

    fn add(&mut self, bytes: u64) {
        self.progress.done_bytes = self.progress.done_bytes.saturating_add(bytes);
        (self.on_progress)(self.progress);
    }
}
