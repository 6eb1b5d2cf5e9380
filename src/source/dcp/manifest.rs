//! The manifest of a bucket's collections, as one node knows it.
//!
//! A change of it reaches the nodes one after the other, so they may know different ones: the one with the highest
//! number is the newest.
//!
//! Source: `docs/Collections.md` of `couchbase/kv_engine`.

use serde::Deserialize;

use super::leb128::CollectionId;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    /// Its number.
    pub uid: u64,
    /// Whether the collection that is followed is in it.
    pub has_collection: bool,
}

/// Numbers are hexadecimal.
#[derive(Deserialize)]
struct Told {
    uid: String,
    scopes: Vec<Scope>,
}

#[derive(Deserialize)]
struct Scope {
    #[serde(default)]
    collections: Vec<Collection>,
}

#[derive(Deserialize)]
struct Collection {
    uid: String,
}

impl Manifest {
    /// Reads the value of an answer, for whoever follows this collection. Nothing, where it is no manifest.
    pub fn decode(value: &[u8], collection: CollectionId) -> Option<Self> {
        let told: Told = serde_json::from_slice(value).ok()?;
        let uid = u64::from_str_radix(&told.uid, 16).ok()?;
        let mut collections = told.scopes.iter().flat_map(|scope| &scope.collections);
        let has_collection = collections.any(|is| u32::from_str_radix(&is.uid, 16) == Ok(collection.0));
        Some(Self { uid, has_collection })
    }
}
