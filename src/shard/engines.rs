//! The storage engines that there are: which one a shard has is told by its [`StoreKind`], here and nowhere else.

use std::path::{Path, PathBuf};

use super::StoreKind;
use super::cow::CowStore;
use super::lsm::{self, LsmShared, LsmStore};
use super::memdb::MemdbStore;
use super::store::{ShardStore, StoreFault};

/// What the stores of one bucket share, or take a part of.
#[derive(Clone)]
pub(super) struct StoreShared {
    pub(super) lsm: LsmShared,
    /// Part of the cache that is each shard's own, in a store that shares none.
    pub(super) cache_bytes_per_shard: usize,
}

impl StoreShared {
    /// Caches of `cache_bytes` and at most `open_files_max` open files, for all `shards` together.
    pub(super) fn new(shards: usize, cache_bytes: u64, open_files_max: usize) -> Self {
        let shards = u64::try_from(shards.max(1)).unwrap_or(u64::MAX);
        Self {
            lsm: LsmShared::new(shards, cache_bytes, open_files_max),
            cache_bytes_per_shard: usize::try_from(cache_bytes / shards).unwrap_or(usize::MAX),
        }
    }
}

/// Makes an empty store in a shard's folder.
pub(super) fn create(kind: StoreKind, folder: &Path, shared: &StoreShared) -> Result<(), StoreFault> {
    match kind {
        StoreKind::Lsm => LsmStore::create(folder, &shared.lsm),
        StoreKind::Memdb => MemdbStore::create(folder),
        StoreKind::Cow => CowStore::create(folder),
    }
}

/// Where a file of a shard's newest recovery point lies that is called `name` there, in the folder of a shard that is
/// closed: after a roll-back that may be another place than its name says.
pub(crate) fn local_file(shard_folder: &Path, name: &str) -> Result<PathBuf, StoreFault> {
    lsm::local_file(shard_folder, name)
}

/// Opens the store in a shard's folder. One that is damaged or not there is a fault, never an empty store.
pub(super) fn open(
    kind: StoreKind,
    folder: &Path,
    shared: &StoreShared,
) -> Result<Box<dyn ShardStore>, StoreFault> {
    Ok(match kind {
        StoreKind::Lsm => Box::new(LsmStore::open(folder, &shared.lsm)?),
        StoreKind::Memdb => Box::new(MemdbStore::open(folder)?),
        StoreKind::Cow => Box::new(CowStore::open(folder, shared.cache_bytes_per_shard)?),
    })
}
