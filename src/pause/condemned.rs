//! Condemned objects: what a prune is going to delete, and what a pause may therefore not rely on.
//!
//! ```text
//! <bucket>/condemned/<id>.condemned      a sealed record of the kind `condemned`
//! ```
//!
//! A record lists objects that no manifest named, with the time and the grace that they have from then on. Who pauses
//! looks at the records, then at the objects ([`Standing`]), and publishes soon afterwards ([`PUBLISH_MAX`]). The order
//! matters: objects are deleted before their record is, so an object that is listed after the records, and that none
//! of them names, was not being deleted then. A record outlasts its objects until the next prune: one that is slow may
//! still be deleting what another one has deleted already, and a key that is free again is not used again meanwhile.
//!
//! Invariant: a pause that names only what [`Standing`] has, and is published within [`PUBLISH_MAX`] of the look, is
//! listed by every prune that could delete one of its objects: what is condemned for less than half of its grace, or
//! later than the look, is not due before the other half is over. This takes the clocks of those who share an archive
//! to agree within a few minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::manifest::{ManifestError, ManifestFile};
use super::part::BucketPart;
use super::small::{SMALL_BYTES_MAX, get_small};
use super::{AttemptId, IdError};
use crate::durable::{UnsealError, seal, unseal_any};
use crate::objstore::{Body, ObjectKey, ObjectStore, StoreCause, StoreError};
use crate::thread::{Failure, FailureKind, Until};

const KIND: &str = "condemned";
/// Since version 2 a record says how long its grace is.
const VERSION: u32 = 2;
const KEY_SUFFIX: &str = ".condemned";
/// Objects that one record names, at most, so that it is read again.
const RECORD_OBJECTS_MAX: usize = 50_000;

/// How long condemned objects stay, unless the caller says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The shortest time that condemned objects stay.
pub const GRACE_MIN: Duration = Duration::from_secs(3600);
/// How long after the look at what stands a pause may be published, at most.
pub const PUBLISH_MAX: Duration = Duration::from_secs(GRACE_MIN.as_secs() / 2);

/// Why records of condemned objects could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bucket's name cannot be used in an archive.
    #[error(transparent)]
    Bucket(#[from] ManifestError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is damaged.
    #[error(
        "the record of condemned objects {record} cannot be read: {why}; delete it, and its objects are condemned anew"
    )]
    Damaged {
        /// Key of the record.
        record: ObjectKey,
        /// What is wrong.
        why: UnsealError,
    },
    /// A record is larger than one may be.
    #[error(
        "the record of condemned objects {record} has more than the {SMALL_BYTES_MAX} bytes that a record may have; \
         delete it, and its objects are condemned anew"
    )]
    TooLarge {
        /// Key of the record.
        record: ObjectKey,
    },
    /// A record could not be made.
    #[error("no record of condemned objects can be made: {0}")]
    Describe(String),
    /// No name could be made for a record.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl Failure for RecordError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Bucket(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Damaged { .. } | Self::TooLarge { .. } | Self::Describe(_) | Self::Id(_) => {
                FailureKind::Lasting
            }
        }
    }
}

/// An upload in parts: the object, and the store's name for the upload.
pub(super) type UploadId = (ObjectKey, String);

/// Objects that nothing named when the record was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Condemned {
    /// Milliseconds since 1970.
    #[serde(rename = "condemned_ms")]
    since_ms: u64,
    /// How long from then on the objects stay, in milliseconds; [`GRACE_DEFAULT`] where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace_ms: Option<u64>,
    pub(super) objects: BTreeSet<ObjectKey>,
    /// Uploads in parts that were not finished.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) uploads: BTreeSet<UploadId>,
}

impl Condemned {
    /// All that is condemned, in as many records as it takes.
    pub(super) fn all(
        objects: &[ObjectKey],
        uploads: &[UploadId],
        since: SystemTime,
        grace: Duration,
    ) -> Vec<Self> {
        let since_ms = millis(since.duration_since(UNIX_EPOCH).unwrap_or_default());
        let (mut objects, mut uploads) =
            (objects.chunks(RECORD_OBJECTS_MAX), uploads.chunks(RECORD_OBJECTS_MAX));
        let mut records = Vec::new();
        loop {
            let (next, parts) = (objects.next(), uploads.next());
            if next.is_none() && parts.is_none() {
                return records;
            }
            records.push(Self {
                since_ms,
                grace_ms: Some(millis(grace)),
                objects: next.unwrap_or_default().iter().cloned().collect(),
                uploads: parts.unwrap_or_default().iter().cloned().collect(),
            });
        }
    }

    /// The keys of the records.
    pub(super) fn list(
        store: &dyn ObjectStore,
        bucket: &BucketPart,
        until: &Until,
    ) -> Result<Vec<ObjectKey>, RecordError> {
        let listed = store.list(Some(&bucket.condemned()?), until)?;
        Ok(listed.into_iter().map(|object| object.key).collect())
    }

    /// Reads a record; `None` where it is gone: another prune has done what it says.
    pub(super) fn read(
        store: &dyn ObjectStore,
        record: &ObjectKey,
        until: &Until,
    ) -> Result<Option<Self>, RecordError> {
        let sealed = match get_small(store, record, until) {
            Err(StoreError { cause: StoreCause::NotFound, .. }) => return Ok(None),
            got => got?.ok_or_else(|| RecordError::TooLarge { record: record.clone() })?,
        };
        let damaged = |why| RecordError::Damaged { record: record.clone(), why };
        unseal_any(KIND, 1..=VERSION, &sealed).map(|(_, condemned)| Some(condemned)).map_err(damaged)
    }

    /// Writes it under a new key.
    pub(super) fn write(
        &self,
        store: &dyn ObjectStore,
        bucket: &BucketPart,
        until: &Until,
    ) -> Result<(), RecordError> {
        let sealed = seal(KIND, VERSION, self).map_err(|e| RecordError::Describe(e.to_string()))?;
        let name = format!("{}{KEY_SUFFIX}", AttemptId::generate()?);
        let key = bucket.below(&bucket.condemned()?, &name)?;
        Ok(store.put(&key, Body::Bytes(&sealed), until)?)
    }

    fn grace(&self) -> Duration {
        self.grace_ms.map_or(GRACE_DEFAULT, Duration::from_millis)
    }

    /// Whether the objects may be deleted now, by who gives them `grace` at least.
    pub(super) fn is_due(&self, now: SystemTime, grace: Duration) -> bool {
        self.is_older_than(grace.max(self.grace()), now)
    }

    /// Whether half of the grace is over: a pause that names the objects might come too late.
    fn dooms(&self, now: SystemTime) -> bool {
        self.is_older_than(self.grace() / 2, now)
    }

    fn is_older_than(&self, age: Duration, now: SystemTime) -> bool {
        let since = UNIX_EPOCH + Duration::from_millis(self.since_ms);
        now.duration_since(since).is_ok_and(|condemned| condemned >= age)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The objects of a bucket that a pause may name: they are there, and no prune is about to delete them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    objects: BTreeMap<ObjectKey, u64>,
    doomed: BTreeSet<ObjectKey>,
}

impl Standing {
    /// Looks at the records of condemned objects, then at the objects, of which none is read. It is `now` at the
    /// beginning.
    pub fn look(
        store: &dyn ObjectStore,
        bucket: &BucketPart,
        now: SystemTime,
        until: &Until,
    ) -> Result<Self, RecordError> {
        let mut standing = Self::default();
        for record in Condemned::list(store, bucket, until)? {
            let condemned = Condemned::read(store, &record, until)?;
            if let Some(condemned) = condemned.filter(|condemned| condemned.dooms(now)) {
                standing.doomed.extend(condemned.objects);
            }
        }
        let listed = store.list(Some(&bucket.objects()?), until)?.into_iter();
        let standing_ones = listed.filter(|object| !standing.doomed.contains(&object.key));
        standing.objects = standing_ones.map(|object| (object.key, object.length_bytes)).collect();
        Ok(standing)
    }

    /// The objects, each with its length.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&ObjectKey, u64)> {
        self.objects.iter().map(|(key, length_bytes)| (key, *length_bytes))
    }

    /// Whether the object is among them, with this length.
    pub(super) fn has(&self, object: &ObjectKey, length_bytes: u64) -> bool {
        self.objects.get(object) == Some(&length_bytes)
    }

    /// The first of the files whose object a pause may not name.
    pub fn lacks<'a>(&self, files: &'a [ManifestFile]) -> Option<&'a ManifestFile> {
        files.iter().find(|file| !self.has(&file.object, file.object_content().length_bytes))
    }

    /// Whether something that the attempt uploaded is about to be deleted: it cannot be uploaded again under the same
    /// key, where a prune may delete it at any time.
    pub fn dooms(&self, attempt: AttemptId) -> bool {
        let suffix = format!("-{attempt}");
        self.doomed.iter().any(|object| object.as_str().ends_with(&suffix))
    }
}
