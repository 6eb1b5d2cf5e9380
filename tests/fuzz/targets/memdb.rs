//! Bytes as the files of a shard of the store `memdb`: the checksums are made right, so that what is behind them is
//! read. The first two bytes are the length of the part's block; what follows it is that of a log.

#![no_main]

use std::fs;
use std::ops::Bound;
use std::path::Path;
use std::sync::LazyLock;

use dormouse::durable::{hex, seal};
use dormouse::shard::{Shard, ShardSet, ShardSetConfig, ShardSpec, StoreKind};
use dormouse::thread::Until;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

const VBUCKETS: u16 = 8;

static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a folder");
    ShardSet::create(dir.path(), specs()).expect("an empty shard");
    dir
});

fn specs() -> impl Iterator<Item = ShardSpec> {
    ShardSpec::all(1, VBUCKETS, StoreKind::Memdb, 1)
}

/// Writes a file of one block, and gives what the manifest says of it.
fn file(folder: &Path, name: &str, number: u32, magic: &[u8], block: &[u8]) -> Value {
    let length = u32::try_from(block.len()).expect("a short block");
    let bytes = [magic, &length.to_be_bytes(), &xxh3_64(block).to_be_bytes(), block].concat();
    fs::write(folder.join(format!("{name}-{number}")), &bytes).expect("a file");
    json!({"number": number, "length_bytes": bytes.len(), "xxh3": hex(&xxh3_128(&bytes).to_be_bytes())})
}

/// Leaves in a block, as far as their heads tell.
fn leaves(mut block: &[u8]) -> usize {
    let mut count = 0;
    let number = |at: usize, block: &[u8]| {
        block.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    while let (Some(records), Some(bytes)) = (number(0, block), number(4, block)) {
        block = block.get(8 + records * 4 + bytes..).unwrap_or_default();
        count += 1;
    }
    count
}

fn read(shard: &Shard) {
    for inst in shard.instances() {
        let snapshot = shard.snapshot(&Until::default()).expect("a snapshot");
        let entries = snapshot.scan(inst, &(Bound::Unbounded, Bound::Unbounded));
        let entries: Vec<Vec<u8>> = entries.map(|entry| entry.expect("an entry").to_vec()).collect();
        assert!(entries.is_sorted_by(|a, b| a < b), "{entries:?}");
        assert!(shard.positions(inst).is_some());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((length, blocks)) = data.split_first_chunk::<2>() else { return };
    let (part, log) = blocks.split_at(usize::from(u16::from_be_bytes(*length)).min(blocks.len()));
    let folder = DIR.path().join("shard-0000/memdb");
    let parts = (!part.is_empty()).then(|| {
        let named = file(&folder, "part", 1, b"dmpart\0\x01", part);
        json!({"inst": 1, "leaves": leaves(part), "file": named})
    });
    let log = file(&folder, "log", 2, b"dmlog\0\0\x01", log);
    let parts: Vec<Value> = parts.into_iter().collect();
    let manifest = json!({"next_file": 3, "points_up_to": 0, "image": {"parts": parts, "logs": [log]}});
    let sealed = seal("memdb-manifest", 1, &manifest).expect("a manifest");
    fs::write(folder.join("manifest"), sealed).expect("a file");
    let config = ShardSetConfig::default();
    match ShardSet::open(DIR.path(), specs(), &config, None, &Logger::root(Discard, o!())) {
        Ok(mut set) => {
            read(&set.shards()[0]);
            set.close(&Until::default()).expect("its threads end");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
