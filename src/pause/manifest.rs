//! The manifest: the one document that makes a pause.
//!
//! It names every object of the pause with length and hash, and everything else that a resume needs. It is
//! written after all that it names, and under a key that no pause had before.
//!
//! Invariant: a [`Manifest`] that was read is whole (its checksum was right), belongs to the bucket and the
//! pause that were asked for, and names only files inside shard folders and only objects of its bucket.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::id::{AttemptId, PauseId, parse_hex};
use super::part::{BucketPart, MANIFEST_SUFFIX, Membership};
use super::small::{SMALL_BYTES_MAX, get_small};
use crate::durable::{UnsealError, seal, unseal_any};
use crate::objstore::{
    Body, Content, ContentHash, Encoding, KeyError, ObjectKey, ObjectStore, StoreCause, StoreError,
};
use crate::shard::ShardId;
use crate::thread::{Failure, FailureKind, Until};

/// The versions of the archive's format that this program writes and reads. A manifest has the lowest one that can say
/// what it says, so that older programs read what they understand: 2 where an object is encoded, else 1.
pub const FORMAT_VERSIONS: RangeInclusive<u32> = 1..=2;

const KIND: &str = "manifest";

/// A published pause of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The pause; its generation is greater than any that the archive listed for the bucket.
    pub pause: PauseId,
    /// The attempt that made the pause.
    pub attempt: AttemptId,
    /// The pause whose objects this one may name again.
    pub parent: Option<PauseId>,
    /// When the pause was made, in RFC 3339.
    pub created: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Identity of the bucket, as 16 hexadecimal digits: readers of JSON may not keep 64 bits of a number.
    #[serde(with = "hex_u64")]
    pub bucket_uuid: u64,
    /// Number of the bucket's vbuckets.
    pub vbuckets: u16,
    /// Number of the bucket's shards.
    pub shards: u16,
    /// Kind of the shards' store.
    pub store: String,
    /// Kind of the bucket's source.
    pub source: String,
    /// Which part of a bucket that is spread over several members this is.
    pub membership: Membership,
    /// Definitions of the indexes, as the caller keeps them.
    pub definitions: serde_json::Value,
    /// Positions of the shards' index instances, as the caller keeps them.
    pub positions: serde_json::Value,
    /// Every file of every shard.
    pub files: Vec<ManifestFile>,
}

/// One file of a shard, and the object with its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// The shard.
    pub shard: ShardId,
    /// Path of the file inside the shard's folder.
    pub name: ObjectKey,
    /// Length of the file.
    pub length_bytes: u64,
    /// Hash of its content.
    pub hash: ContentHash,
    /// The object, which is named after the hash of its own content.
    pub object: ObjectKey,
    /// What the object is, where it is not the file as it is. Since format version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
}

/// An object that holds a file in another way than as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// How it holds the file.
    pub encoding: Encoding,
    /// Length of the object, which is less than that of the file.
    pub length_bytes: u64,
    /// Hash of the object's content.
    pub hash: ContentHash,
}

/// Where an archive holds a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Hash of the content.
    pub hash: ContentHash,
    /// The object.
    pub object: ObjectKey,
    /// What the object is, where it is not the content as it is.
    pub stored: Option<Stored>,
}

impl ManifestFile {
    /// Length and hash of the file.
    pub fn content(&self) -> Content {
        Content { length_bytes: self.length_bytes, hash: self.hash }
    }

    /// Length and hash of the object.
    pub fn object_content(&self) -> Content {
        let of = |stored: Stored| Content { length_bytes: stored.length_bytes, hash: stored.hash };
        self.stored.map_or_else(|| self.content(), of)
    }

    pub(super) fn archived(&self) -> Archived {
        Archived { hash: self.hash, object: self.object.clone(), stored: self.stored }
    }

    /// Path of the file inside a folder that holds all shards.
    pub fn path(&self) -> String {
        format!("{}/{}", self.shard.folder(), self.name)
    }
}

/// Why a manifest could not be written, found or believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The bucket's name cannot be used in an archive.
    #[error("cannot archive the bucket {bucket:?}: {source}; give the bucket another name")]
    Bucket {
        /// Name of the bucket.
        bucket: String,
        /// The rule that the name breaks.
        source: KeyError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such pause.
    #[error("bucket {bucket} has no pause {pause} in {store}: `archive list` shows those that there are")]
    Missing {
        /// The bucket.
        bucket: BucketPart,
        /// The pause that was asked for.
        pause: PauseId,
        /// URL of the store.
        store: String,
    },
    /// Another pause has the key.
    #[error("cannot publish pause {pause} in {store}: another manifest has its key; pause again")]
    Taken {
        /// The pause.
        pause: PauseId,
        /// URL of the store.
        store: String,
    },
    /// The manifest is not what was written.
    #[error(
        "cannot read the manifest {key} in {store}: {source}; resume from another pause, which `archive list` shows, or \
         remove this one from the archive where the bucket is online"
    )]
    Damaged {
        /// The manifest's object.
        key: ObjectKey,
        /// URL of the store.
        store: String,
        /// What is wrong.
        source: UnsealError,
    },
    /// The manifest is larger than a manifest may be.
    #[error(
        "the manifest {key} in {store} has more than the {SMALL_BYTES_MAX} bytes that a manifest may have; use another \
         pause, or make one of fewer files"
    )]
    TooLarge {
        /// The manifest's object.
        key: ObjectKey,
        /// URL of the store.
        store: String,
    },
    /// The manifest breaks a rule of the format.
    #[error("the manifest of pause {pause} of bucket {bucket} is not valid: {reason}; use another pause")]
    Invalid {
        /// The pause.
        pause: PauseId,
        /// The bucket.
        bucket: BucketPart,
        /// The rule.
        reason: String,
    },
    /// The manifest cannot be written as JSON.
    #[error("cannot write the manifest of pause {pause}: {source}")]
    Encode {
        /// The pause.
        pause: PauseId,
        /// What the encoder said.
        source: serde_json::Error,
    },
    /// Two processes paused the bucket at the same time.
    #[error(
        "bucket {bucket} in {store} has two pauses of one generation, with the manifests {first} and {second}: look at \
         both with `verify --pause`, and delete the one that is not wanted from the archive"
    )]
    TwoOfOneGeneration {
        /// The bucket.
        bucket: BucketPart,
        /// URL of the store.
        store: String,
        /// The manifest of one of the two.
        first: ObjectKey,
        /// That of the other one.
        second: ObjectKey,
    },
}

impl Failure for ManifestError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Store(error) => error.kind(),
            _ => FailureKind::Lasting,
        }
    }
}

/// The pauses of `bucket` in `store`, oldest first. Objects whose names are none of ours are left out.
pub fn list_pauses(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    until: &Until,
) -> Result<Vec<PauseId>, ManifestError> {
    let pauses = listed(store, bucket, until)?;
    let pairs = pauses.iter().zip(pauses.iter().skip(1));
    if let Some((&first, &second)) = pairs.into_iter().find(|(a, b)| a.generation() == b.generation()) {
        let (first, second) = (bucket.manifest_key(first)?, bucket.manifest_key(second)?);
        let (bucket, store) = (bucket.clone(), store.describe());
        return Err(ManifestError::TwoOfOneGeneration { bucket, store, first, second });
    }
    Ok(pauses)
}

fn listed(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    until: &Until,
) -> Result<Vec<PauseId>, ManifestError> {
    let folder = bucket.manifests()?;
    let listed = store.list(Some(&folder), until)?;
    let names = listed.iter().filter_map(|object| object.key.below(&folder)?.strip_suffix(MANIFEST_SUFFIX));
    let mut pauses: Vec<PauseId> = names.filter_map(|name| name.parse().ok()).collect();
    pauses.sort_unstable();
    Ok(pauses)
}

/// Removes the manifests of pauses that were given up and appeared later. Gives those that had.
pub fn withdraw(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    given_up: &[PauseId],
    until: &Until,
) -> Result<Vec<PauseId>, ManifestError> {
    if given_up.is_empty() {
        return Ok(Vec::new());
    }
    let mut appeared = listed(store, bucket, until)?;
    appeared.retain(|pause| given_up.contains(pause));
    let keys: Vec<ObjectKey> =
        appeared.iter().map(|pause| bucket.manifest_key(*pause)).collect::<Result<_, _>>()?;
    if !keys.is_empty() {
        store.delete(&keys, until)?;
    }
    Ok(appeared)
}

impl Manifest {
    /// Checks the manifest and creates its object: from then on the pause exists. All objects that it names must
    /// be there already. Publishing the same manifest again is fine.
    ///
    /// After [`ManifestError::Store`] it is unknown whether the pause exists: publish again, or read it.
    pub fn publish(&self, store: &dyn ObjectStore, until: &Until) -> Result<(), ManifestError> {
        self.validate()?;
        let key = self.part().manifest_key(self.pause)?;
        let encode = |source| ManifestError::Encode { pause: self.pause, source };
        let sealed = seal(KIND, self.format_version(), self).map_err(encode)?;
        if sealed.len() as u64 > SMALL_BYTES_MAX {
            return Err(ManifestError::TooLarge { key, store: store.describe() });
        }
        let put = store.put_if_absent(&key, Body::Bytes(&sealed), until);
        match put {
            // An earlier try may have succeeded although its answer was lost.
            Err(e) if matches!(e.cause, StoreCause::Exists) => {
                let found = get_small(store, &key, until)?;
                let taken = || ManifestError::Taken { pause: self.pause, store: store.describe() };
                if found.as_ref() == Some(&sealed) { Ok(()) } else { Err(taken()) }
            }
            result => Ok(result?),
        }
    }

    /// Reads and checks the manifest of a pause.
    pub fn read(
        store: &dyn ObjectStore,
        bucket: &BucketPart,
        pause: PauseId,
        until: &Until,
    ) -> Result<Self, ManifestError> {
        let key = bucket.manifest_key(pause)?;
        let sealed = get_small(store, &key, until).map_err(|e| match e.cause {
            StoreCause::NotFound => {
                ManifestError::Missing { bucket: bucket.clone(), pause, store: store.describe() }
            }
            _ => e.into(),
        })?;
        let Some(sealed) = sealed else {
            return Err(ManifestError::TooLarge { key, store: store.describe() });
        };
        let (version, manifest): (u32, Self) = unseal_any(KIND, FORMAT_VERSIONS, &sealed)
            .map_err(|source| ManifestError::Damaged { key, store: store.describe(), source })?;
        let invalid = |reason| ManifestError::Invalid { pause, bucket: bucket.clone(), reason };
        if manifest.pause != pause {
            return Err(invalid(format!("it is that of pause {}", manifest.pause)));
        }
        if manifest.part() != *bucket {
            let (name, membership) = (&manifest.bucket, manifest.membership);
            return Err(invalid(format!("it is that of bucket {name:?}, member {membership}")));
        }
        if manifest.format_version() != version {
            return Err(invalid(format!("it has format version {version} and says what is of another")));
        }
        manifest.validate()?;
        Ok(manifest)
    }

    /// Whose pause it is.
    pub fn part(&self) -> BucketPart {
        BucketPart::new(self.bucket.as_str(), self.membership)
    }

    /// The version of the format that the manifest is written in, one of [`FORMAT_VERSIONS`].
    pub fn format_version(&self) -> u32 {
        if self.files.iter().any(|file| file.stored.is_some()) { 2 } else { 1 }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.length_bytes))
    }

    /// Bytes of their objects; one that several files share counts for each.
    pub fn object_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.object_content().length_bytes))
    }

    fn validate(&self) -> Result<(), ManifestError> {
        let objects = self.part().objects()?;
        match self.broken_rule(&objects) {
            None => Ok(()),
            Some(reason) => Err(ManifestError::Invalid { pause: self.pause, bucket: self.part(), reason }),
        }
    }

    fn broken_rule(&self, objects: &ObjectKey) -> Option<String> {
        let Membership { member, of } = self.membership;
        if member == 0 || member > of {
            return Some(format!("it is that of member {member} of {of}"));
        }
        if self.vbuckets == 0 || self.shards == 0 {
            return Some(format!("it has {} vbuckets and {} shards", self.vbuckets, self.shards));
        }
        if self.parent.is_some_and(|parent| parent >= self.pause) {
            return Some("its parent is no earlier pause".to_owned());
        }
        let mut names = BTreeSet::new();
        self.files.iter().find_map(|file| {
            if file.shard.0 >= self.shards {
                return Some(format!("{} is in none of its {} shards", file.path(), self.shards));
            }
            if !names.insert((file.shard, &file.name)) {
                return Some(format!("it names {} twice", file.path()));
            }
            if file.stored.is_some_and(|stored| stored.length_bytes >= file.length_bytes) {
                return Some(format!("the object {} of {} is encoded to no use", file.object, file.path()));
            }
            (!names_its_content(file, objects))
                .then(|| format!("the object {} of {} is none of its bucket's", file.object, file.path()))
        })
    }
}

/// Whether the file's object lies in the folder `objects` and is named after the hash of what it holds.
fn names_its_content(file: &ManifestFile, objects: &ObjectKey) -> bool {
    file.object.below(objects).and_then(|name| name.split_once('-')).is_some_and(|(hash, attempt)| {
        hash == file.object_content().hash.to_string() && parse_hex(attempt).is_some()
    })
}

mod hex_u64 {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_hex(&text).ok_or_else(|| D::Error::custom("an identity takes 16 hexadecimal digits"))
    }
}
