//! What an archive holds: its buckets, and the pauses of each.

use serde::Serialize;

use super::manifest::{MANIFESTS, Manifest, ManifestError, list_pauses};
use super::{Membership, PauseId};
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

/// The buckets that have a pause in the archive, in ascending order of their names.
pub fn list_buckets(store: &dyn ObjectStore, until: &Until) -> Result<Vec<String>, ManifestError> {
    let mut buckets: Vec<String> = store
        .list(None, until)?
        .iter()
        .filter_map(|object| {
            let mut parts = object.key.as_str().split('/');
            let bucket = parts.next()?;
            (parts.next() == Some(MANIFESTS)).then(|| bucket.to_owned())
        })
        .collect();
    // The listing is in the order of keys, so those of a bucket stand together.
    buckets.dedup();
    Ok(buckets)
}

/// The pauses of a bucket, oldest first, with what their manifests say.
pub fn describe_pauses(
    store: &dyn ObjectStore,
    bucket: &str,
    until: &Until,
) -> Result<Vec<PauseSummary>, ManifestError> {
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
    list_pauses(store, bucket, until)?.into_iter().map(describe).collect()
}
