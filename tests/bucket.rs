//! A bucket from its first change to the archive and back, through the library.

use std::path::Path;

use dormouse::bucket::{BucketConfig, BucketSpec, DataDir, IngestOptions};
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::FileStore;
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(&dir.path().join("d")).unwrap();
    let name = "travel".parse().unwrap();
    let config = BucketConfig::default();
    let mut bucket = data.create_bucket(&name, BucketSpec::default(), &config).unwrap();
    let def = IndexDefinition::parse("by_country=country,city").unwrap();
    bucket.ensure_index(&def, false).unwrap();
    let until = Until::default();
    let options = IngestOptions {
        format: ReplayFormat::Documents { id_field: "id".into() },
        skip_bad: false,
        rebuild: false,
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/airports.jsonl");
    let r = bucket.ingest(vec![Input::Path(path)], &options, &until, &mut |_| {}).unwrap();
    println!("{r:?}");
    let n = bucket.scan(def.name(), &KeyRange::default(), false, &until).unwrap().count();
    println!("{n} {:?}", bucket.status());
    let store = FileStore::open(&dir.path().join("a")).unwrap();
    println!("{:?}", bucket.pause(&store, true, &until, &mut |_| {}).unwrap());
    bucket.close(&until).unwrap();
    drop(bucket);
    let r = data.resume(&name, &store, None, &config, &until, &mut |_| {}).unwrap();
    println!("{r:?}");
    let bucket = data.open_bucket(&name, &config).unwrap();
    let n2 = bucket.scan(def.name(), &KeyRange::default(), false, &until).unwrap().count();
    assert_eq!(n, n2);
    assert_eq!(n, 7184);
}
