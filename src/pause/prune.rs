//! Removing what no pause needs any more, in two phases.
//!
//! Objects that no manifest names are *condemned*: a record lists them, with the time. Only when the record is older
//! than its grace time, and the manifests of then do not name them either, are they deleted. In between a pause
//! that had already begun may publish a manifest that names them: it may reuse what an earlier pause had, or what
//! it uploaded itself. It looks at the records before it is published (see [`condemned`](super::Standing)), so every
//! such manifest is seen in time.
//!
//! Uploads in parts that nobody has finished are condemned and given up in the same way, as no store tells their age
//! alike. What a put that broke off left in a folder is removed when nobody has written to it for the grace time.
//!
//! What a pause named that is removed is condemned before its manifest goes, whatever records say of it already: whoever
//! reads that pause meanwhile has the whole time of grace.
//!
//! Invariants: an object that a listed manifest names is never deleted; the newest pause is never removed; a prune
//! that was interrupted at any step is finished by later ones.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::PauseId;
use super::condemned::{Condemned, GRACE_MIN, RecordError, UploadId};
use super::manifest::{Manifest, ManifestError, list_pauses};
use super::part::BucketPart;
use crate::objstore::{ObjectKey, ObjectMeta, ObjectStore, StoreError, Upload};
use crate::thread::{Failure, FailureKind, Until};

/// What is to be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneOptions {
    /// How many of the newest pauses stay, at least one; `None` keeps all.
    pub keep: Option<usize>,
    /// How long condemned objects stay, at least [`GRACE_MIN`]. Those that are condemned already stay for as long as
    /// was said then, if that is longer.
    pub grace: Duration,
    /// The time that it is.
    pub now: SystemTime,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was pruned, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Pauses that were removed, oldest first.
    pub removed_pauses: Vec<PauseId>,
    /// Objects that were deleted.
    pub deleted_objects: usize,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Objects that nothing names and that are deleted after the grace time.
    pub condemned_objects: usize,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Unfinished uploads that were given up, with their parts, and what puts that broke off had left.
    pub deleted_leftovers: usize,
    /// Unfinished uploads that are given up after the grace time, unless they are finished until then.
    pub condemned_uploads: usize,
}

/// Why an archive was not pruned to the end. What was not done is done by the next prune.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// A manifest could not be listed or read. Without it nobody knows which objects it names.
    #[error("cannot prune: {0}")]
    Manifest(#[from] ManifestError),
    /// The store failed.
    #[error("cannot prune to the end: {0}; prune again")]
    Store(#[from] StoreError),
    /// The records of condemned objects.
    #[error("cannot prune: {0}")]
    Record(RecordError),
    /// The grace time is so short that a pause that is being published might not be seen.
    #[error(
        "cannot prune with a grace time of {}: give {} or more",
        humantime::format_duration(*grace),
        humantime::format_duration(GRACE_MIN)
    )]
    Grace {
        /// What was given.
        grace: Duration,
    },
}

impl Failure for PruneError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Manifest(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::Grace { .. } => FailureKind::Lasting,
        }
    }
}

impl From<RecordError> for PruneError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Bucket(error) => Self::Manifest(error),
            RecordError::Store(error) => Self::Store(error),
            error => Self::Record(error),
        }
    }
}

/// What is in the archive of a bucket beside its manifests.
struct Found {
    objects: Vec<ObjectMeta>,
    named: BTreeSet<ObjectKey>,
    /// What only pauses named that were removed just now.
    freed: BTreeSet<ObjectKey>,
    uploads: BTreeSet<UploadId>,
}

/// What records say.
#[derive(Default)]
struct Waiting {
    objects: BTreeSet<ObjectKey>,
    uploads: BTreeSet<UploadId>,
}

/// Removes old pauses of a bucket, and what no pause needs any more, as far as its time has come.
pub fn prune(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    options: &PruneOptions,
    until: &Until,
) -> Result<PruneReport, PruneError> {
    if options.grace < GRACE_MIN {
        return Err(PruneError::Grace { grace: options.grace });
    }
    let began = Instant::now();
    let mut pauses = list_pauses(store, bucket, until)?;
    let removed = pauses.len().saturating_sub(options.keep.unwrap_or(usize::MAX).max(1));
    let removed_pauses: Vec<PauseId> = pauses.drain(..removed).collect();
    let mut named = BTreeSet::new();
    for pause in pauses {
        named.extend(Manifest::read(store, bucket, pause, until)?.files.into_iter().map(|file| file.object));
    }
    let freed = named_before(store, bucket, &removed_pauses, &named, until)?;
    if !options.dry_run {
        // First: whoever does not see the manifests any more sees that what they named has its time of grace from now.
        condemn((store, bucket), (freed.iter(), &[]), (options, began), until)?;
        let keys = removed_pauses.iter().map(|pause| bucket.manifest_key(*pause));
        store.delete(&keys.collect::<Result<Vec<_>, _>>()?, until)?;
    }
    let mut report = PruneReport { removed_pauses, ..PruneReport::default() };
    let folder = bucket.objects()?;
    let objects: Vec<ObjectMeta> = store.list(Some(&folder), until)?;
    let found = Found { objects, named, freed, uploads: unfinished(store, &folder, until)? };
    let waiting = delete_due(store, bucket, &found, options, &mut report, until)?;
    sweep(store, bucket, options, &mut report, until)?;
    let is_new =
        |object: &&ObjectMeta| !found.named.contains(&object.key) && !waiting.objects.contains(&object.key);
    let is_freed = |object: &&ObjectMeta| found.freed.contains(&object.key);
    let unnamed: Vec<&ObjectMeta> = found.objects.iter().filter(is_new).collect();
    let uploads: Vec<UploadId> = found.uploads.difference(&waiting.uploads).cloned().collect();
    let condemned = unnamed.iter().copied().chain(found.objects.iter().filter(is_freed));
    (report.condemned_objects, report.condemned_bytes) = count(condemned);
    report.condemned_uploads = uploads.len();
    if !options.dry_run {
        let unnamed = unnamed.into_iter().map(|object| &object.key);
        condemn((store, bucket), (unnamed, &uploads), (options, began), until)?;
    }
    Ok(report)
}

/// How many objects, and their bytes.
fn count<'a>(objects: impl Iterator<Item = &'a ObjectMeta>) -> (usize, u64) {
    objects.fold((0, 0), |(count, bytes), object| (count + 1, bytes.saturating_add(object.length_bytes)))
}

/// What pauses name that are removed, and no pause that stays. One that cannot be read says nothing.
fn named_before(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    removed: &[PauseId],
    named: &BTreeSet<ObjectKey>,
    until: &Until,
) -> Result<BTreeSet<ObjectKey>, PruneError> {
    let mut freed = BTreeSet::new();
    for pause in removed {
        match Manifest::read(store, bucket, *pause, until) {
            Ok(manifest) => freed.extend(manifest.files.into_iter().map(|file| file.object)),
            Err(error @ (ManifestError::Store(_) | ManifestError::Bucket { .. })) => return Err(error.into()),
            // Another prune has removed it, or it is damaged.
            Err(_) => {}
        }
    }
    freed.retain(|object| !named.contains(object));
    Ok(freed)
}

/// Records what is condemned. It is later than when the prune began: who looks at the records before they are there
/// does not see them.
fn condemn<'a>(
    (store, bucket): (&dyn ObjectStore, &BucketPart),
    (objects, uploads): (impl Iterator<Item = &'a ObjectKey>, &[UploadId]),
    (options, began): (&PruneOptions, Instant),
    until: &Until,
) -> Result<(), PruneError> {
    let objects: Vec<ObjectKey> = objects.cloned().collect();
    let since = options.now + began.elapsed();
    for record in Condemned::all(&objects, uploads, since, options.grace) {
        record.write(store, bucket, until)?;
    }
    Ok(())
}

/// The uploads in parts of objects in `folder` that are neither finished nor given up.
fn unfinished(
    store: &dyn ObjectStore,
    folder: &ObjectKey,
    until: &Until,
) -> Result<BTreeSet<UploadId>, StoreError> {
    let Some(parts) = store.in_parts() else { return Ok(BTreeSet::new()) };
    let uploads = parts.uploads(None, until)?.into_iter();
    let of_bucket = uploads.filter(|upload| upload.key.below(folder).is_some());
    Ok(of_bucket.map(|Upload { key, id }| (key, id)).collect())
}

/// Deletes what was condemned long enough ago. Gives back what is or was condemned otherwise.
///
/// An object goes when all records that list it are due. A record goes when nothing that it lists was left to delete,
/// which is a prune after the one that deleted it: in between it tells those who pause not to use the names of what was
/// deleted again, which another prune may still be deleting.
fn delete_due(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    found: &Found,
    options: &PruneOptions,
    report: &mut PruneReport,
    until: &Until,
) -> Result<Waiting, PruneError> {
    let mut records = Vec::new();
    for key in Condemned::list(store, bucket, until)? {
        records.extend(Condemned::read(store, &key, until)?.map(|record| (key, record)));
    }
    let (due, later): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|(_, record)| record.is_due(options.now, options.grace));
    // What was freed just now is among them, but in a dry run.
    let mut waiting = Waiting { objects: found.freed.clone(), uploads: BTreeSet::new() };
    for (_, record) in later {
        waiting.objects.extend(record.objects);
        waiting.uploads.extend(record.uploads);
    }
    let (mut listed, mut deleted) = (Waiting::default(), BTreeSet::new());
    for (key, record) in due {
        let is_left = |object: &&ObjectMeta| {
            record.objects.contains(&object.key)
                && !found.named.contains(&object.key)
                && !deleted.contains(&object.key)
        };
        let (kept, gone): (Vec<&ObjectMeta>, Vec<&ObjectMeta>) =
            found.objects.iter().filter(is_left).partition(|object| waiting.objects.contains(&object.key));
        let uploads: Vec<_> = record.uploads.intersection(&found.uploads).collect();
        let (objects, bytes) = count(gone.iter().copied());
        report.deleted_objects += objects;
        report.deleted_bytes = report.deleted_bytes.saturating_add(bytes);
        report.deleted_leftovers += uploads.len();
        let is_done = kept.is_empty() && gone.is_empty() && uploads.is_empty();
        if !options.dry_run {
            let keys: Vec<ObjectKey> = gone.iter().map(|object| object.key.clone()).collect();
            store.delete(&keys, until)?;
            for (key, id) in uploads {
                let upload = Upload { key: key.clone(), id: id.clone() };
                store.in_parts().map_or(Ok(()), |parts| parts.abort(&upload, until))?;
            }
            if is_done {
                store.delete(&[key], until)?;
            }
        }
        deleted.extend(gone.into_iter().map(|object| object.key.clone()));
        listed.objects.extend(record.objects);
        listed.uploads.extend(record.uploads);
    }
    waiting.objects.append(&mut listed.objects);
    waiting.uploads.append(&mut listed.uploads);
    Ok(waiting)
}

/// Removes what puts that broke off left.
fn sweep(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    options: &PruneOptions,
    report: &mut PruneReport,
    until: &Until,
) -> Result<(), PruneError> {
    let Some(before) = options.now.checked_sub(options.grace) else { return Ok(()) };
    for folder in [bucket.objects()?, bucket.manifests()?, bucket.condemned()?] {
        report.deleted_leftovers += store.sweep(&folder, before, options.dry_run, until)?;
    }
    Ok(())
}
