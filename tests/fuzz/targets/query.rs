//! Bytes as what a scan is asked for: bounds, cursors and ways, against a filter over all entries.
//!
//! The first byte is the way; of the rest each line is a bound, or a cursor, or what a cursor would hold.

#![no_main]

use std::io::Cursor as Lines;
use std::ops::{Bound, RangeBounds};
use std::sync::LazyLock;

use dormouse::bucket::{Bucket, BucketConfig, BucketSpec, DataDir, IngestOptions};
use dormouse::index::collate::encode_value;
use dormouse::index::{Cursor, IndexDefinition, IndexName, KeyRange, ScanEntry, ScanQuery};
use dormouse::shard::StoreKind;
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

struct World {
    _dir: TempDir,
    bucket: Bucket,
    name: IndexName,
    /// All entries, each with its bytes.
    entries: Vec<(Vec<u8>, ScanEntry)>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a folder");
    let data = DataDir::open_or_create(&dir.path().join("data")).expect("a data folder");
    let spec = BucketSpec { vbuckets: 8, shards: 3, store: StoreKind::Memdb, ..BucketSpec::default() };
    let bucket = data.create_bucket(&"b".parse().expect("a name"), spec, &BucketConfig::default());
    let mut bucket = bucket.expect("a bucket");
    let index = IndexDefinition::parse("i=a,b").expect("a definition");
    bucket.ensure_index(&index, false).expect("an index");
    let values = ["null", "false", "1", "2.5", "\"\"", "\"a\"", "\"a\\u0000\"", "[1]", "{\"a\":1}"];
    let pairs = values.iter().flat_map(|a| values.iter().map(move |b| (a, b)));
    let lines: String = pairs
        .enumerate()
        .map(|(n, (a, b))| format!("{{\"id\":\"{}\",\"a\":{a},\"b\":{b}}}\n", n % 50))
        .collect();
    let input = Input::Reader { name: "lines".to_owned(), reader: Box::new(Lines::new(lines.into_bytes())) };
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: false };
    bucket.ingest(vec![input], &options, &Until::default(), &mut |_| {}).expect("an ingest");
    let name = index.name().clone();
    let scan = bucket.query(&name, &ScanQuery::default(), &Until::default()).expect("a scan");
    let entries = scan.map(|entry| {
        let entry = entry.expect("an entry");
        let mut bytes = Vec::new();
        entry.key.iter().for_each(|part| encode_value(part, &mut bytes).expect("a part"));
        bytes.extend_from_slice(entry.id.as_bytes());
        (bytes, entry)
    });
    let entries = entries.collect();
    // Its threads have nothing to do any more.
    bucket.close(&Until::default()).expect("its threads end");
    World { _dir: dir, bucket, name, entries }
});

fn cursor(line: &str) -> Option<Cursor> {
    if let Ok(cursor) = line.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor.clone()));
        return Some(cursor);
    }
    let mut bytes = vec![1];
    bytes.extend_from_slice(line.as_bytes());
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_be_bytes());
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.parse().ok()
}

fuzz_target!(|data: &[u8]| {
    let world = &*WORLD;
    let Some((way, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let mut lines = text.lines();
    let after = (way & 1 != 0).then(|| lines.next().and_then(cursor)).flatten();
    let mut ranges = Vec::new();
    while let Some(line) = lines.next() {
        let bound = |line: Option<&str>| KeyRange::parse_bound(line?).ok();
        let (from, to) = (bound(Some(line)), bound(lines.next()));
        ranges.push(KeyRange { from, to, from_exclusive: way & 2 != 0, to_exclusive: way & 4 != 0 });
    }
    let (reverse, distinct) = (way & 8 != 0, (way & 16 != 0).then_some(usize::from(way >> 5)));
    let query = ScanQuery { ranges, reverse, after, distinct, at_least: Vec::new() };
    let Ok(scan) = world.bucket.query(&world.name, &query, &Until::default()) else { return };
    let found: Vec<ScanEntry> = scan.map(|entry| entry.expect("an entry")).collect();
    let bounds: Vec<(Bound<Vec<u8>>, Bound<Vec<u8>>)> =
        query.ranges.iter().map(|range| range.bounds(2).expect("bounds that a scan took")).collect();
    let is_in = |entry: &Vec<u8>| bounds.is_empty() || bounds.iter().any(|bounds| bounds.contains(entry));
    let mut expected: Vec<ScanEntry> =
        world.entries.iter().filter(|(bytes, _)| is_in(bytes)).map(|(_, entry)| entry.clone()).collect();
    if reverse {
        expected.reverse();
    }
    if query.distinct.is_none() && query.after.is_none() {
        assert_eq!(found, expected);
    } else {
        let mut rest = expected.iter();
        for entry in &found {
            let is_its_own = |all: &ScanEntry| all.id == entry.id && all.key.starts_with(&entry.key);
            assert!(rest.any(is_its_own), "{entry:?} is in another order, or none of the entries");
        }
    }
});
