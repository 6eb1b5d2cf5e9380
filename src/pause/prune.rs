//! Removing what no pause needs any more, in two phases.
//!
//! Objects that no manifest names are *condemned*: a record lists them, with the time. Only when the record is older
//! than the grace time, and the manifests of then do not name them either, are they deleted. In between a pause
//! that had already begun may publish a manifest that names them: it may reuse what an earlier pause had. A pause
//! that takes longer than half the grace time is not published, so every such manifest is seen in time.
//!
//! ```text
//! <bucket>/condemned/<id>.condemned      a sealed record of the kind `condemned`
//! ```
//!
//! Uploads in parts that nobody has finished are condemned and given up in the same way, as no store tells their age
//! alike. What a put that broke off left in a folder is removed when nobody has written to it for the grace time.
//!
//! Invariants: an object that a listed manifest names is never deleted; the newest pause is never removed; a prune
//! that was interrupted at any step is finished by the next one.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::manifest::{
    Manifest, ManifestError, condemned_folder, list_pauses, manifest_key, manifests_folder, objects_folder,
};
use super::{AttemptId, IdError, PauseId};
use crate::durable::{UnsealError, seal, unseal};
use crate::objstore::{Body, ObjectKey, ObjectMeta, ObjectStore, StoreError, Upload};
use crate::thread::Until;

const KIND: &str = "condemned";
const VERSION: u32 = 1;
const KEY_SUFFIX: &str = ".condemned";

/// How long condemned objects stay, unless the caller says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// What is to be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneOptions {
    /// How many of the newest pauses stay, at least one; `None` keeps all.
    pub keep: Option<usize>,
    /// How long condemned objects stay. No pause may be under way for longer than half of it.
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
    /// A record of condemned objects is damaged.
    #[error("cannot prune: the record {record}: {why}; delete it, and its objects are condemned anew")]
    Record {
        /// Key of the record.
        record: ObjectKey,
        /// What is wrong.
        why: UnsealError,
    },
    /// A record could not be made.
    #[error("cannot prune: no record can be made: {0}")]
    Describe(String),
    /// No name could be made for a record.
    #[error("cannot prune: {0}")]
    Id(#[from] IdError),
}

/// Objects that nothing named when the record was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condemned {
    /// Milliseconds since 1970.
    #[serde(rename = "condemned_ms")]
    since_ms: u64,
    objects: BTreeSet<ObjectKey>,
    /// Uploads in parts that were not finished: object and the store's name for the upload.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    uploads: BTreeSet<(ObjectKey, String)>,
}

/// What is in the archive of a bucket beside its manifests.
struct Found {
    objects: Vec<ObjectMeta>,
    named: BTreeSet<ObjectKey>,
    uploads: BTreeSet<(ObjectKey, String)>,
}

/// What records say.
#[derive(Default)]
struct Waiting {
    objects: BTreeSet<ObjectKey>,
    uploads: BTreeSet<(ObjectKey, String)>,
}

/// Removes old pauses of a bucket, and what no pause needs any more, as far as its time has come.
pub fn prune(
    store: &dyn ObjectStore,
    bucket: &str,
    options: &PruneOptions,
    until: &Until,
) -> Result<PruneReport, PruneError> {
    let mut pauses = list_pauses(store, bucket, until)?;
    let removed = pauses.len().saturating_sub(options.keep.unwrap_or(usize::MAX).max(1));
    let removed_pauses: Vec<PauseId> = pauses.drain(..removed).collect();
    let mut named = BTreeSet::new();
    for pause in pauses {
        named.extend(Manifest::read(store, bucket, pause, until)?.files.into_iter().map(|file| file.object));
    }
    // The manifests go first: what they alone name is condemned from now on, not deleted.
    if !options.dry_run {
        let keys: Vec<ObjectKey> = removed_pauses
            .iter()
            .map(|pause| manifest_key(bucket, *pause))
            .collect::<Result<_, ManifestError>>()?;
        store.delete(&keys, until)?;
    }
    let mut report = PruneReport { removed_pauses, ..PruneReport::default() };
    let folder = objects_folder(bucket)?;
    let objects: Vec<ObjectMeta> = store.list(Some(&folder), until)?;
    let found = Found { objects, named, uploads: unfinished(store, &folder, until)? };
    let waiting = delete_due(store, bucket, &found, options, &mut report, until)?;
    sweep(store, bucket, options, &mut report, until)?;
    let is_new =
        |object: &&ObjectMeta| !found.named.contains(&object.key) && !waiting.objects.contains(&object.key);
    let unnamed: Vec<&ObjectMeta> = found.objects.iter().filter(is_new).collect();
    let uploads: BTreeSet<_> = found.uploads.difference(&waiting.uploads).cloned().collect();
    report.condemned_objects = unnamed.len();
    report.condemned_bytes = unnamed.iter().map(|object| object.length_bytes).sum();
    report.condemned_uploads = uploads.len();
    if !(unnamed.is_empty() && uploads.is_empty() || options.dry_run) {
        condemn(store, bucket, unnamed, uploads, options, until)?;
    }
    Ok(report)
}

/// The uploads in parts of objects in `folder` that are neither finished nor given up.
fn unfinished(
    store: &dyn ObjectStore,
    folder: &ObjectKey,
    until: &Until,
) -> Result<BTreeSet<(ObjectKey, String)>, StoreError> {
    let Some(parts) = store.in_parts() else { return Ok(BTreeSet::new()) };
    let uploads = parts.uploads(None, until)?.into_iter();
    let of_bucket = uploads.filter(|upload| upload.key.below(folder).is_some());
    Ok(of_bucket.map(|Upload { key, id }| (key, id)).collect())
}

/// Deletes what was condemned long enough ago. Gives back what is or was condemned otherwise.
fn delete_due(
    store: &dyn ObjectStore,
    bucket: &str,
    found: &Found,
    options: &PruneOptions,
    report: &mut PruneReport,
    until: &Until,
) -> Result<Waiting, PruneError> {
    let mut waiting = Waiting::default();
    for listed in store.list(Some(&condemned_folder(bucket)?), until)? {
        let record = read_record(store, &listed.key, until)?;
        let since = UNIX_EPOCH + Duration::from_millis(record.since_ms);
        let is_due = options.now.duration_since(since).is_ok_and(|age| age >= options.grace);
        if is_due {
            let is_unneeded = |object: &&ObjectMeta| {
                record.objects.contains(&object.key) && !found.named.contains(&object.key)
            };
            let due: Vec<&ObjectMeta> = found.objects.iter().filter(is_unneeded).collect();
            let uploads: Vec<_> = record.uploads.intersection(&found.uploads).collect();
            report.deleted_objects += due.len();
            report.deleted_bytes += due.iter().map(|object| object.length_bytes).sum::<u64>();
            report.deleted_leftovers += uploads.len();
            if !options.dry_run {
                let keys: Vec<ObjectKey> = due.iter().map(|object| object.key.clone()).collect();
                store.delete(&keys, until)?;
                for (key, id) in uploads {
                    let upload = Upload { key: key.clone(), id: id.clone() };
                    store.in_parts().map_or(Ok(()), |parts| parts.abort(&upload, until))?;
                }
                // Last: while it is there the objects are found again.
                store.delete(std::slice::from_ref(&listed.key), until)?;
            }
        }
        waiting.objects.extend(record.objects);
        waiting.uploads.extend(record.uploads);
    }
    Ok(waiting)
}

/// Removes what puts that broke off left.
fn sweep(
    store: &dyn ObjectStore,
    bucket: &str,
    options: &PruneOptions,
    report: &mut PruneReport,
    until: &Until,
) -> Result<(), PruneError> {
    let Some(before) = options.now.checked_sub(options.grace) else { return Ok(()) };
    for folder in [objects_folder(bucket)?, manifests_folder(bucket)?, condemned_folder(bucket)?] {
        report.deleted_leftovers += store.sweep(&folder, before, options.dry_run, until)?;
    }
    Ok(())
}

fn read_record(store: &dyn ObjectStore, key: &ObjectKey, until: &Until) -> Result<Condemned, PruneError> {
    let mut sealed = Vec::new();
    store.get(key, &mut sealed, until)?;
    unseal(KIND, VERSION, &sealed).map_err(|why| PruneError::Record { record: key.clone(), why })
}

fn condemn(
    store: &dyn ObjectStore,
    bucket: &str,
    objects: Vec<&ObjectMeta>,
    uploads: BTreeSet<(ObjectKey, String)>,
    options: &PruneOptions,
    until: &Until,
) -> Result<(), PruneError> {
    let since_1970 = options.now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
    let objects = objects.into_iter().map(|object| object.key.clone()).collect();
    let record = Condemned { since_ms, objects, uploads };
    let sealed = seal(KIND, VERSION, &record).map_err(|e| PruneError::Describe(e.to_string()))?;
    let name = format!("{}{KEY_SUFFIX}", AttemptId::generate()?);
    let key = condemned_folder(bucket)?.join(&name).map_err(|e| PruneError::Describe(e.to_string()))?;
    Ok(store.put(&key, Body::Bytes(&sealed), until)?)
}
