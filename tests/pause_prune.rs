//! Every step of a pause interleaved with every step of a prune: whatever the order, each pause that is published is
//! whole, and stays so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use dormouse::bucket::{Bucket, PauseError, PauseOptions, ResumeOptions};
use dormouse::objstore::{Body, FileStore, ObjectKey, ObjectStore, Operation};
use dormouse::pause::{
    GRACE_DEFAULT, Manifest, PruneError, PruneOptions, RecordError, SMALL_BYTES_MAX, list_pauses, prune,
    verify,
};
use dormouse::thread::{Cancel, Until};
use parking_lot::Mutex;

use crate::support::buckets::{World, close, ids, ingest, lines, named, once_free, pause, scan};
use crate::support::stores::memory::MemoryStore;
use crate::support::{BUCKET, FailingStore, Fails, forever, key, part, watchdog};

const HOUR: Duration = Duration::from_secs(3600);
const DOCUMENTS: u32 = 50;

fn prune_at(store: &dyn ObjectStore, now: SystemTime) {
    let options = PruneOptions { keep: Some(1), grace: GRACE_DEFAULT, now, dry_run: false };
    prune(store, &part(BUCKET), &options, &watchdog()).unwrap();
}

fn is_manifest(key: Option<&ObjectKey>) -> bool {
    key.is_some_and(|key| key.as_str().ends_with(".manifest"))
}

/// A pause that is cancelled when everything is uploaded.
fn interrupted_pause(bucket: &Bucket, store: &dyn ObjectStore) {
    let cancel = Cancel::new();
    let before = |_: usize, operation: Operation, key: Option<&ObjectKey>| {
        if operation == Operation::Put && is_manifest(key) {
            cancel.cancel();
        }
    };
    let mut watched = FailingStore::new(store, 0, Fails::Before);
    watched.around.before = Some(&before);
    let until = Until::new(None, cancel.clone());
    let stopped = bucket.pause(&watched, PauseOptions::default(), &until, &mut |_| {}).unwrap_err();
    assert!(matches!(stopped, PauseError::Stopped { .. }), "{stopped}");
}

fn resume(world: &World, store: &dyn ObjectStore) -> Bucket {
    let resume = || {
        let (name, options) = (named(BUCKET), ResumeOptions::default());
        world.data.resume(&name, store, options, &world.config, &watchdog(), &mut |_| {})
    };
    once_free(resume).unwrap();
    world.open(BUCKET)
}

/// A bucket with two pauses and what an interrupted one had uploaded.
fn bucket(world: &World, store: &dyn ObjectStore) -> Bucket {
    let mut bucket = world.bucket(BUCKET);
    for n in [0, 10] {
        ingest(&bucket, lines(n..n + 10)).unwrap();
        pause(&bucket, store, false).unwrap();
        close(bucket);
        bucket = resume(world, store);
    }
    ingest(&bucket, lines(20..40)).unwrap();
    interrupted_pause(&bucket, store);
    ingest(&bucket, lines(40..DOCUMENTS)).unwrap();
    bucket
}

/// Prunes go on for long; afterwards every pause is whole, and the bucket wakes up with everything.
fn assert_is_whole(world: &World, bucket: Bucket, store: &dyn ObjectStore, what: &str) {
    close(bucket);
    for hours in [0, 11, 13, 25, 50, 75] {
        prune_at(store, SystemTime::now() + HOUR * hours);
        for pause in list_pauses(store, &part(BUCKET), &forever()).unwrap() {
            let manifest = Manifest::read(store, &part(BUCKET), pause, &forever()).unwrap();
            let bad = verify(&manifest, store, &forever()).unwrap();
            assert!(bad.is_empty(), "{what}, {hours} hours later: {bad:?}");
        }
    }
    // Of what is here nothing is needed.
    world.data.drop_bucket(&named(BUCKET)).unwrap();
    let bucket = resume(world, store);
    assert_eq!(scan(&bucket), ids(0..DOCUMENTS), "{what}");
    close(bucket);
}

/// When prunes run within a pause, in hours from now. The first of them condemns what nothing names yet.
type Hours = [i32; 2];

fn at(hours: i32) -> SystemTime {
    let (now, by) = (SystemTime::now(), HOUR * hours.unsigned_abs());
    if hours < 0 { now - by } else { now + by }
}

/// Runs prunes before call `number` of a pause. Between the last look at what is condemned and the manifest no more
/// than half of the grace time passes. Gives the calls that the pause made.
fn pause_with_prunes(inner: &dyn ObjectStore, number: usize, hours: Hours) -> usize {
    let what = format!("prunes at {hours:?} before call {number}");
    let world = World::new();
    let bucket = bucket(&world, inner);
    let has_looked = AtomicBool::new(false);
    let before = |call: usize, operation: Operation, key: Option<&ObjectKey>| {
        let looks =
            operation == Operation::List && key.is_some_and(|key| key.as_str().ends_with("/condemned"));
        if call == number {
            let is_short = has_looked.load(Ordering::SeqCst) && !looks;
            for hours in if is_short { [0, 11] } else { hours } {
                prune_at(inner, at(hours));
            }
        }
        let puts = operation == Operation::Put && !is_manifest(key);
        if looks || puts {
            has_looked.store(looks, Ordering::SeqCst);
        }
    };
    let mut store = FailingStore::new(inner, 0, Fails::Before);
    store.around.before = Some(&before);
    store.around.one_at_a_time = true;
    pause(&bucket, &store, false).unwrap_or_else(|error| panic!("{what}: {error}"));
    let calls = store.calls();
    assert_is_whole(&world, bucket, inner, &what);
    calls
}

fn every_step_of_a_pause(new_store: impl Fn() -> Box<dyn ObjectStore>) {
    for hours in [[0, 25], [-13, 0]] {
        let mut number = 1;
        while number <= pause_with_prunes(&*new_store(), number, hours) {
            number += 1;
        }
        assert!(number > 12, "a pause has more calls than {number}");
    }
}

/// Runs a pause before call `number` of a prune that deletes what was condemned a day ago. Gives the calls that the
/// prune made.
fn prune_with_pause(inner: &dyn ObjectStore, number: usize) -> usize {
    let what = format!("a pause before call {number}");
    let world = World::new();
    let bucket = bucket(&world, inner);
    prune_at(inner, at(-25));
    let paused = Mutex::new(None);
    let before = |call: usize, _: Operation, _: Option<&ObjectKey>| {
        if call == number {
            *paused.lock() = Some(pause(&bucket, inner, false));
        }
    };
    let mut store = FailingStore::new(inner, 0, Fails::Before);
    store.around.before = Some(&before);
    prune_at(&store, SystemTime::now());
    let calls = store.calls();
    let paused = paused.into_inner().unwrap_or_else(|| pause(&bucket, inner, false));
    paused.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_is_whole(&world, bucket, inner, &what);
    calls
}

fn every_step_of_a_prune(new_store: impl Fn() -> Box<dyn ObjectStore>) {
    let mut number = 1;
    while number <= prune_with_pause(&*new_store(), number) {
        number += 1;
    }
    assert!(number > 6, "a prune has more calls than {number}");
}

#[test]
fn every_step_of_a_pause_into_memory_survives_a_prune() {
    every_step_of_a_pause(|| Box::<MemoryStore>::default());
}

#[test]
fn every_step_of_a_pause_into_a_folder_survives_a_prune() {
    let folder = crate::support::buckets::scratch();
    let stores = AtomicUsize::new(0);
    every_step_of_a_pause(|| next_folder(folder.path(), &stores));
}

#[test]
fn every_step_of_a_prune_of_memory_survives_a_pause() {
    every_step_of_a_prune(|| Box::<MemoryStore>::default());
}

#[test]
fn every_step_of_a_prune_of_a_folder_survives_a_pause() {
    let folder = crate::support::buckets::scratch();
    let stores = AtomicUsize::new(0);
    every_step_of_a_prune(|| next_folder(folder.path(), &stores));
}

fn next_folder(folder: &std::path::Path, stores: &AtomicUsize) -> Box<dyn ObjectStore> {
    let number = stores.fetch_add(1, Ordering::SeqCst);
    Box::new(FileStore::open(&folder.join(number.to_string())).unwrap())
}

#[test]
fn a_pause_that_takes_longer_than_half_of_the_grace_time_is_published() {
    let (world, memory) = (World::new(), MemoryStore::default());
    let bucket = world.bucket(BUCKET);
    ingest(&bucket, lines(0..DOCUMENTS)).unwrap();
    let puts = AtomicUsize::new(0);
    let before = |_: usize, operation: Operation, key: Option<&ObjectKey>| {
        // What was uploaded before the third object was condemned 14 hours ago.
        let is_object =
            key.is_some_and(|key| key.as_str().contains("/objects/") && !key.as_str().contains("probe"));
        if operation == Operation::Put && is_object && puts.fetch_add(1, Ordering::SeqCst) == 2 {
            prune_at(&memory, at(-14));
        }
    };
    let mut store = FailingStore::new(&memory, 0, Fails::Before);
    store.around.before = Some(&before);
    store.around.one_at_a_time = true;
    pause(&bucket, &store, false).unwrap();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for name in memory.objects().keys().filter_map(|key| key.as_str().strip_prefix("travel/objects/")) {
        *times.entry(name.split('-').next().unwrap().to_owned()).or_default() += 1;
    }
    let again = times.values().filter(|times| **times == 2).count();
    assert_eq!(again, 2, "what was condemned is uploaded again, and nothing else: {times:?}");
    // It had not begun when the first objects were condemned, and deletes them when the pause is over.
    prune_at(&memory, at(10));
    assert_is_whole(&world, bucket, &memory, "after 14 hours");
}

#[test]
fn what_an_interrupted_pause_uploaded_is_taken_up_but_for_what_a_prune_is_about_to_delete() {
    for (condemned, is_taken_up) in [(None, true), (Some(-11), true), (Some(-13), false)] {
        let (world, memory) = (World::new(), MemoryStore::default());
        let bucket = world.bucket(BUCKET);
        ingest(&bucket, lines(0..DOCUMENTS)).unwrap();
        interrupted_pause(&bucket, &memory);
        if let Some(hours) = condemned {
            prune_at(&memory, at(hours));
        }
        let report = bucket.pause(&memory, PauseOptions::default(), &watchdog(), &mut |_| {}).unwrap();
        // A shard may have come to another recovery point, and what it says of that is new.
        let is_little = report.uploaded_bytes * 2 < report.bytes;
        assert_eq!(is_little, is_taken_up, "condemned {condemned:?}: {report:?}");
    }
}

#[test]
fn a_prune_with_a_grace_time_that_no_pause_can_keep_is_refused() {
    let memory = MemoryStore::default();
    let options = PruneOptions { keep: None, grace: HOUR / 2, now: SystemTime::now(), dry_run: false };
    let refused = prune(&memory, &part(BUCKET), &options, &watchdog()).unwrap_err();
    assert_eq!(refused.to_string(), "cannot prune with a grace time of 30m: give 1h or more");
}

#[test]
fn what_is_condemned_keeps_the_grace_time_that_it_was_given() {
    let memory = MemoryStore::default();
    let left = key(&format!("{BUCKET}/objects/{}-00000000000000cc", "ab".repeat(32)));
    memory.put(&left, Body::Bytes(b"left"), &forever()).unwrap();
    let deleted = |hours, grace| {
        let options = PruneOptions { keep: None, grace, now: at(hours), dry_run: false };
        prune(&memory, &part(BUCKET), &options, &watchdog()).unwrap().deleted_objects
    };
    assert_eq!(deleted(0, HOUR * 10), 0);
    assert_eq!(deleted(9, HOUR), 0, "a pause may rely on ten hours");
    assert_eq!(deleted(11, HOUR * 20), 0, "it is to stay longer");
    assert_eq!(deleted(11, HOUR), 1);
}

#[test]
fn a_record_of_the_first_version_has_the_grace_time_that_is_usual() {
    let memory = MemoryStore::default();
    let left = key(&format!("{BUCKET}/objects/{}-00000000000000cc", "ab".repeat(32)));
    memory.put(&left, Body::Bytes(b"left"), &forever()).unwrap();
    let since = at(0).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let record =
        serde_json::json!({ "condemned_ms": u64::try_from(since).unwrap(), "objects": [left.as_str()] });
    let sealed = dormouse::durable::seal("condemned", 1, &record).unwrap();
    memory.put(&key(&format!("{BUCKET}/condemned/1.condemned")), Body::Bytes(&sealed), &forever()).unwrap();
    let deleted = |hours| {
        let options = PruneOptions { keep: None, grace: HOUR, now: at(hours), dry_run: false };
        prune(&memory, &part(BUCKET), &options, &watchdog()).unwrap().deleted_objects
    };
    assert_eq!((deleted(23), deleted(25)), (0, 1));
}

#[test]
fn a_record_that_is_too_large_is_refused_by_prunes_and_pauses_and_not_read() {
    let world = World::new();
    let bucket = world.bucket(BUCKET);
    ingest(&bucket, lines(0..10)).unwrap();
    let record = key(&format!("{BUCKET}/condemned/1.condemned"));
    world.store.put(&record, Body::Bytes(b"record"), &forever()).unwrap();
    let file =
        std::fs::File::options().write(true).open(world.dir.path().join("archive").join(record.as_str()));
    file.unwrap().set_len(SMALL_BYTES_MAX + 1).unwrap();
    let options = PruneOptions { keep: None, grace: GRACE_DEFAULT, now: SystemTime::now(), dry_run: false };
    let pruned = prune(&world.store, &part(BUCKET), &options, &watchdog());
    assert!(matches!(pruned, Err(PruneError::Record(RecordError::TooLarge { .. }))), "{pruned:?}");
    let paused = pause(&bucket, &world.store, false).unwrap_err();
    assert!(matches!(paused, PauseError::Records { error: RecordError::TooLarge { .. }, .. }), "{paused}");
    assert!(paused.to_string().contains(record.as_str()), "{paused}");
}

/// Two prunes at a time, of which one is slow, and a pause that begins after the other one has deleted what an
/// interrupted one had uploaded.
#[test]
fn what_a_slow_prune_is_still_deleting_is_uploaded_under_another_name() {
    let (world, memory) = (World::new(), MemoryStore::default());
    let bucket = world.bucket(BUCKET);
    ingest(&bucket, lines(0..DOCUMENTS)).unwrap();
    interrupted_pause(&bucket, &memory);
    prune_at(&memory, at(-25));
    let paused = AtomicBool::new(false);
    let before = |_: usize, operation: Operation, key: Option<&ObjectKey>| {
        let is_object = key.is_some_and(|key| key.as_str().contains("/objects/"));
        if operation == Operation::Delete && is_object && !paused.swap(true, Ordering::SeqCst) {
            prune_at(&memory, at(0));
            pause(&bucket, &memory, true).unwrap();
        }
    };
    let mut slow = FailingStore::new(&memory, 0, Fails::Before);
    slow.around.before = Some(&before);
    prune_at(&slow, at(0));
    assert!(paused.load(Ordering::SeqCst), "nothing was deleted");
    let [newest] = list_pauses(&memory, &part(BUCKET), &forever()).unwrap()[..] else { panic!("one pause") };
    let manifest = Manifest::read(&memory, &part(BUCKET), newest, &forever()).unwrap();
    assert_eq!(verify(&manifest, &memory, &forever()).unwrap(), []);
    close(bucket);
    assert_eq!(scan(&resume(&world, &memory)), ids(0..DOCUMENTS));
}
