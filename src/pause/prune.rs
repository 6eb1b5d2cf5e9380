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
//! Invariants: an object that a listed manifest names is never deleted; the newest pause is never removed; a prune
//! that was interrupted at any step is finished by the next one.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, ManifestError, condemned_folder, list_pauses, manifest_key, objects_folder};
use super::{AttemptId, IdError, PauseId};
use crate::durable::{UnsealError, seal, unseal};
use crate::objstore::{Body, ObjectKey, ObjectMeta, ObjectStore, StoreError};
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
    condemned_ms: u64,
    objects: BTreeSet<ObjectKey>,
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
    let objects: Vec<ObjectMeta> = store.list(Some(&objects_folder(bucket)?), until)?;
    let waiting = delete_due(store, bucket, (&objects, &named), options, &mut report, until)?;
    let unnamed: Vec<&ObjectMeta> = objects
        .iter()
        .filter(|object| !named.contains(&object.key) && !waiting.contains(&object.key))
        .collect();
    report.condemned_objects = unnamed.len();
    report.condemned_bytes = unnamed.iter().map(|object| object.length_bytes).sum();
    if !unnamed.is_empty() && !options.dry_run {
        condemn(store, bucket, unnamed, options, until)?;
    }
    Ok(report)
}

/// Deletes what was condemned long enough ago. Gives back what is or was condemned otherwise.
fn delete_due(
    store: &dyn ObjectStore,
    bucket: &str,
    (objects, named): (&[ObjectMeta], &BTreeSet<ObjectKey>),
    options: &PruneOptions,
    report: &mut PruneReport,
    until: &Until,
) -> Result<BTreeSet<ObjectKey>, PruneError> {
    let mut condemned = BTreeSet::new();
    for listed in store.list(Some(&condemned_folder(bucket)?), until)? {
        let record = read_record(store, &listed.key, until)?;
        let since = UNIX_EPOCH + Duration::from_millis(record.condemned_ms);
        let is_due = options.now.duration_since(since).is_ok_and(|age| age >= options.grace);
        if is_due {
            let due: Vec<&ObjectMeta> = objects
                .iter()
                .filter(|object| record.objects.contains(&object.key) && !named.contains(&object.key))
                .collect();
            report.deleted_objects += due.len();
            report.deleted_bytes += due.iter().map(|object| object.length_bytes).sum::<u64>();
            if !options.dry_run {
                let keys: Vec<ObjectKey> = due.iter().map(|object| object.key.clone()).collect();
                store.delete(&keys, until)?;
                // Last: while it is there the objects are found again.
                store.delete(std::slice::from_ref(&listed.key), until)?;
            }
        }
        condemned.extend(record.objects);
    }
    Ok(condemned)
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
    options: &PruneOptions,
    until: &Until,
) -> Result<(), PruneError> {
    let since_1970 = options.now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let condemned_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
    let record =
        Condemned { condemned_ms, objects: objects.into_iter().map(|object| object.key.clone()).collect() };
    let sealed = seal(KIND, VERSION, &record).map_err(|e| PruneError::Describe(e.to_string()))?;
    let name = format!("{}{KEY_SUFFIX}", AttemptId::generate()?);
    let key = condemned_folder(bucket)?.join(&name).map_err(|e| PruneError::Describe(e.to_string()))?;
    Ok(store.put(&key, Body::Bytes(&sealed), until)?)
}
