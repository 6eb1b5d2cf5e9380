//! Shards without a bucket, and batches for them.

use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use dormouse::event::{Seqno, VbId, VbUuid};
use dormouse::shard::batch::{Advance, Window, WriteBatch};
use dormouse::shard::store::ShardFile;
use dormouse::shard::{
    InstId, InstanceStart, OpenError, Refused, Shard, ShardSet, ShardSetConfig, ShardSnapshot, ShardSpec,
    StoreKind,
};
use dormouse::timestamp::Position;
use slog::{Discard, Logger, o};

use super::{eventually, watchdog};

pub(crate) const VBUCKETS: u16 = 8;

/// Makes no recovery point that was not asked for.
pub(crate) fn manual() -> ShardSetConfig {
    ShardSetConfig {
        commit_bytes: 1 << 40,
        commit_interval: Duration::from_secs(3600),
        ..ShardSetConfig::default()
    }
}

/// Makes a test of each store of each function that is named: what every store has to do.
macro_rules! for_each_store {
    ($($check:ident),* $(,)?) => {
        mod lsm {
            $(#[test]
            fn $check() {
                super::$check(dormouse::shard::StoreKind::Lsm);
            })*
        }
        mod memdb {
            $(#[test]
            fn $check() {
                super::$check(dormouse::shard::StoreKind::Memdb);
            })*
        }
        mod cow {
            $(#[test]
            fn $check() {
                super::$check(dormouse::shard::StoreKind::Cow);
            })*
        }
    };
}
pub(crate) use for_each_store;

pub(crate) fn specs(kind: StoreKind, shards: u16) -> impl Iterator<Item = ShardSpec> {
    ShardSpec::all(shards, VBUCKETS, kind, 0xb0)
}

pub(crate) fn try_open(
    kind: StoreKind,
    folder: &Path,
    shards: u16,
    config: &ShardSetConfig,
) -> Result<ShardSet, OpenError> {
    ShardSet::open(folder, specs(kind, shards), config, None, &Logger::root(Discard, o!()))
}

pub(crate) fn open(kind: StoreKind, folder: &Path, shards: u16, config: &ShardSetConfig) -> ShardSet {
    let mut opened = None;
    // A process that another test starts at the same time holds the locks of this one's files until its program runs.
    eventually("the shards are free", || {
        opened = match try_open(kind, folder, shards, config) {
            Err(OpenError::InUse { .. }) => None,
            set => Some(set.unwrap()),
        };
        opened.is_some()
    });
    opened.unwrap()
}

/// New shards with the instances 1 and 2, which are durable.
pub(crate) fn create(kind: StoreKind, folder: &Path, shards: u16, config: &ShardSetConfig) -> ShardSet {
    ShardSet::create(folder, specs(kind, shards)).unwrap();
    let set = open(kind, folder, shards, config);
    for shard in set.shards() {
        shard.create_instance(InstId(1), InstanceStart::Zero).unwrap();
        shard.create_instance(InstId(2), InstanceStart::Zero).unwrap();
    }
    set.commit(&watchdog()).unwrap();
    set
}

/// Closes without a commit.
pub(crate) fn close(set: ShardSet) {
    set.close(&watchdog()).unwrap();
    drop(set);
}

/// A batch for the instances 1 and 2 that follows `from`: one change for each document with its keys.
pub(crate) fn batch(vb: u16, from: u64, documents: &[(&str, &[&str])]) -> Box<WriteBatch> {
    batch_for(&[InstId(1), InstId(2)], vb, from, documents)
}

/// The same for any instances.
pub(crate) fn batch_for(
    instances: &[InstId],
    vb: u16,
    from: u64,
    documents: &[(&str, &[&str])],
) -> Box<WriteBatch> {
    let vb = VbId(vb);
    let mut batch = Box::new(WriteBatch::default());
    batch.instances = instances.into();
    let mut seqno = Seqno(from);
    for (id, keys) in documents {
        seqno = seqno.next();
        let id = batch.add_document(id.as_bytes());
        for inst in instances {
            batch.add_change(*inst, (vb, seqno), id, keys.iter().map(|key| key.as_bytes()));
        }
    }
    let to = Position::at(VbUuid(9), seqno);
    batch.advances.push(Advance { vb, from: Seqno(from), to, window: Window::Ordered });
    batch
}

/// Applies a batch that must be taken.
pub(crate) fn apply(shard: &Shard, batch: Box<WriteBatch>) {
    match shard.try_apply(batch) {
        Ok(empty) => assert!(empty.is_empty()),
        Err(refused) => panic!("{refused:?}"),
    }
}

/// The error of a batch that must be refused for good.
pub(crate) fn refusal(shard: &Shard, batch: Box<WriteBatch>) -> dormouse::shard::ApplyError {
    match shard.try_apply(batch) {
        Err(Refused::Never(error)) => error,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn in_snapshot(snapshot: &ShardSnapshot, inst: u32) -> Vec<String> {
    let all = (Bound::Unbounded, Bound::Unbounded);
    snapshot.scan(InstId(inst), &all).map(|entry| String::from_utf8(entry.unwrap()).unwrap()).collect()
}

/// The entries of an instance: each is its key and the document's id.
pub(crate) fn entries(shard: &Shard, inst: u32) -> Vec<String> {
    in_snapshot(&shard.snapshot(&watchdog()).unwrap(), inst)
}

/// Copies the files of a recovery point into a bucket's folder, as the only shard.
pub(crate) fn restore(files: &[ShardFile], folder: &Path) {
    for file in files {
        let target = folder.join("shard-0000").join(&file.name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        assert_eq!(std::fs::copy(&file.path, target).unwrap(), file.length_bytes);
    }
}

/// Changes one bit of a file.
pub(crate) fn flip(path: &Path, at: usize) {
    let mut content = std::fs::read(path).unwrap();
    content[at] ^= 0x10;
    std::fs::write(path, content).unwrap();
}
