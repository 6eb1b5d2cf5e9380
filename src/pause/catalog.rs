//! What an archive holds: its buckets, and the pauses of each.

use std::collections::BTreeSet;

use serde::Serialize;

use super::PauseId;
use super::manifest::{Manifest, ManifestError, list_pauses};
use super::part::{BucketPart, Membership};
use crate::objstore::ObjectStore;
use crate::thread::Until;

/// A pause in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PauseSummary {
    /// The bucket.
    pub bucket: String,
    /// The pause.
    pub pause: PauseId,
    /// When it was made, in RFC 3339.
    pub created: String,
    /// Kind of the shards' store.
    pub store: String,
    /// Which part of the bucket it is.
    pub membership: Membership,
    /// Number of files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of their objects; those that pauses share count for each.
    pub object_bytes: u64,
}

impl PauseSummary {
    /// Whose pause it is.
    pub fn part(&self) -> BucketPart {
        BucketPart::new(self.bucket.as_str(), self.membership)
    }
}

/// The buckets that the archive holds something of, or the members of the one of this name, in ascending order.
pub fn list_parts(
    store: &dyn ObjectStore,
    bucket: Option<&str>,
    until: &Until,
) -> Result<Vec<BucketPart>, ManifestError> {
    let folder = bucket.map(|bucket| BucketPart::whole(bucket).bucket_folder()).transpose()?;
    let listed = store.list(folder.as_ref(), until)?;
    let parts: BTreeSet<BucketPart> =
        listed.iter().filter_map(|object| BucketPart::holding(&object.key)).collect();
    Ok(parts.into_iter().collect())
}

/// The pauses of a bucket, oldest first, with what their manifests say, or why one of them says nothing. Where the
/// store fails, that is the error of all.
pub fn describe_pauses(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    until: &Until,
) -> Result<Vec<Result<PauseSummary, ManifestError>>, ManifestError> {
    let describe = |pause| {
        let manifest = Manifest::read(store, bucket, pause, until)?;
        Ok(PauseSummary {
            pause,
            files: manifest.files.len(),
            bytes: manifest.bytes(),
            object_bytes: manifest.object_bytes(),
            bucket: manifest.bucket,
            created: manifest.created,
            store: manifest.store,
            membership: manifest.membership,
        })
    };
    let described =
        list_pauses(store, bucket, until)?.into_iter().map(describe).map(|described| match described {
            Err(error @ ManifestError::Store(_)) => Err(error),
            described => Ok(described),
        });
    described.collect()
}
