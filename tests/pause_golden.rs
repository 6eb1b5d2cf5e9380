//! Archives of every version of the format, as they were written when it was new, are resumed: what opens, scans and
//! goes to sleep again is a bucket.

use std::path::{Path, PathBuf};

use dormouse::bucket::PauseOptions;
use dormouse::objstore::FileStore;
use dormouse::pause::{Manifest, list_pauses};

use crate::support::buckets::{World, close, ids, ingest, lines, pause, scan};
use crate::support::{BUCKET, forever, part, tree, watchdog};

const DOCUMENTS: u32 = 1000;

/// An archive of this version with a pause of a bucket. None of them ever changes.
fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/archive-v{version}-bucket"))
}

/// `DORMOUSE_GOLDEN=1` writes the golden image where there is none.
fn make_where_there_is_none(version: u32) {
    if std::env::var_os("DORMOUSE_GOLDEN").is_none() || golden(version).exists() {
        return;
    }
    let (world, store) = (World::new(), FileStore::open(&golden(version)).unwrap());
    let bucket = world.bucket(BUCKET);
    ingest(&bucket, lines(0..DOCUMENTS)).unwrap();
    let options = PauseOptions { compress: version == 2, ..PauseOptions::default() };
    bucket.pause(&store, options, &watchdog(), &mut |_| {}).unwrap();
    close(bucket);
}

fn assert_is_resumed(version: u32) {
    make_where_there_is_none(version);
    let world = World::new();
    for (name, content) in tree(&golden(version)) {
        let path = world.dir.path().join("archive").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let pauses = list_pauses(&world.store, &part(BUCKET), &forever()).unwrap();
    let manifest = Manifest::read(&world.store, &part(BUCKET), pauses[0], &forever()).unwrap();
    assert_eq!(manifest.format_version(), version);
    world.resume(BUCKET, &watchdog()).unwrap();
    let bucket = world.open(BUCKET);
    assert_eq!(scan(&bucket), ids(0..DOCUMENTS));
    ingest(&bucket, lines(DOCUMENTS..DOCUMENTS + 10)).unwrap();
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    let pauses = list_pauses(&world.store, &part(BUCKET), &forever()).unwrap();
    let next = Manifest::read(&world.store, &part(BUCKET), pauses[1], &forever()).unwrap();
    assert_eq!(next.parent, Some(pauses[0]));
    let reused = next.files.iter().filter(|file| manifest.files.iter().any(|old| old.object == file.object));
    assert!(reused.count() > 0, "nothing of the first pause is named again");
    world.resume(BUCKET, &watchdog()).unwrap();
    assert_eq!(scan(&world.open(BUCKET)), ids(0..DOCUMENTS + 10));
}

#[test]
fn a_bucket_that_was_archived_in_format_1_is_resumed_and_goes_on() {
    assert_is_resumed(1);
}

#[test]
fn a_bucket_that_was_archived_in_format_2_is_resumed_and_goes_on() {
    assert_is_resumed(2);
}
