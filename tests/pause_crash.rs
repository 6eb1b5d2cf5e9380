//! A process is killed at every step of a pause and of a resume: the next start leads the bucket to a state that
//! lasts, says so, and the same call succeeds.
//!
//! The process is this binary once more, with nothing but the test that is the sleeper. It is killed after a call of
//! its archive, or at a log record: each step is told before it is made and after it. Where its archive is a server,
//! which takes objects in parts, it is killed between them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse::bucket::{BucketConfig, BucketState, DataDir, PauseOptions, ResumeOptions};
use dormouse::objstore::{CHUNK_BYTES, FileStore, ObjectKey, ObjectStore, Operation, S3Store};
use dormouse::shard::StoreKind;
use serde_json::{Value, json};
use slog::{Drain, Logger, Never, OwnedKVList, Record, o};

use crate::support::buckets::{
    World, close, ids, ingest, is_locked, lines, long_lines, named, once_free, pause, prune_to_what_is_named,
    scan, scratch,
};
use crate::support::path::Dice;
use crate::support::shards::for_each_store;
use crate::support::stores::gateway::{self, Gateway};
use crate::support::{FailingStore, Fails, eventually, is_long, kill_this_process, watchdog};

for_each_store! {
    a_pause_that_is_killed_at_any_step_is_led_on_or_back,
    a_resume_that_is_killed_at_any_step_is_led_on_or_back,
    a_resume_in_place_that_is_killed_at_any_step_is_led_on_or_back,
    a_bucket_whose_process_is_killed_again_and_again_comes_to_rest,
    a_pause_that_is_killed_between_parts_uploads_none_of_them_again,
}

/// What the sleeper is to do, for its process.
const SLEEPER: &str = "DORMOUSE_TEST_SLEEPER";
const DOCUMENTS: u32 = 30;
/// Enough for files of several parts, compressed too.
const LONG_DOCUMENTS: u32 = 4800;

/// Counts records, and kills the process at one of them; 0 is none.
struct Told {
    records: AtomicUsize,
    kill_at: usize,
}

impl Told {
    fn new(kill_at: usize) -> Arc<Self> {
        Arc::new(Self { records: AtomicUsize::new(0), kill_at })
    }
}

impl Drain for Told {
    type Ok = ();
    type Err = Never;

    fn log(&self, _record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        if self.records.fetch_add(1, Ordering::SeqCst) + 1 == self.kill_at {
            kill_this_process();
        }
        Ok(())
    }
}

/// Carries the order out, which ends this process unless it asks for a step that does not come.
fn sleep(order: &Value) {
    let number = |name: &str| usize::try_from(order[name].as_u64().unwrap()).unwrap();
    let folder = Path::new(order["folder"].as_str().unwrap());
    let logger = Logger::root(Told::new(number("record")), o!());
    let config = BucketConfig { logger, ..BucketConfig::default() };
    let archive: Box<dyn ObjectStore> = match &order["server"] {
        Value::Array(server) => Box::new(on_server(&server[0], &server[1])),
        _ => Box::new(FileStore::open(&folder.join("archive")).unwrap()),
    };
    let mut store = FailingStore::new(archive.as_ref(), number("call"), Fails::Kills);
    let (kill_at, seen) = (number("step"), AtomicUsize::new(0));
    let kill_between_parts = |_: usize, operation: Operation, _: Option<&ObjectKey>| {
        let is_step = is_step(operation, seen.load(Ordering::SeqCst) > 0);
        if is_step && seen.fetch_add(1, Ordering::SeqCst) + 1 == kill_at {
            kill_this_process();
        }
    };
    store.around.before = Some(&kill_between_parts);
    store.around.one_at_a_time = kill_at > 0;
    let mut data = None;
    eventually("the data folder is free", || {
        data = DataDir::open(&folder.join("data")).ok();
        data.is_some()
    });
    let data = data.unwrap();
    if order["verb"] == "pause" {
        let bucket = once_free(|| data.open_bucket(&named("b"), &config)).unwrap();
        let options = PauseOptions { evict: order["evict"] == true, compress: order["compress"] == true };
        bucket.pause(&store, options, &watchdog(), &mut |_| {}).unwrap();
        close(bucket);
    } else {
        let resume =
            || data.resume(&named("b"), &store, ResumeOptions::default(), &config, &watchdog(), &mut |_| {});
        once_free(resume).unwrap();
    }
}

/// Whether an object that goes in parts is further before the call than before the last such one. With
/// `DORMOUSE_LONG` each call after the first of them is looked at.
fn is_step(operation: Operation, has_begun: bool) -> bool {
    match operation {
        Operation::PutPart | Operation::Complete => true,
        // What comes after an object was put together.
        Operation::Head => has_begun,
        _ => has_begun && is_long(),
    }
}

fn on_server(endpoint: &Value, prefix: &Value) -> S3Store {
    S3Store::open(gateway::config(endpoint.as_str().unwrap(), prefix.as_str().unwrap())).unwrap()
}

#[test]
fn the_sleeper_that_is_killed_does_its_work_when_it_is_not() {
    if let Ok(order) = std::env::var(SLEEPER) {
        sleep(&serde_json::from_str(&order).unwrap());
        return;
    }
    let world = world(StoreKind::Lsm);
    let dir = scratch();
    world.copy_to(dir.path());
    for verb in ["pause", "resume"] {
        let order =
            json!({ "verb": verb, "evict": true, "call": 0, "record": 0, "step": 0, "folder": dir.path() });
        sleep(&order);
    }
    assert_is_awake(&world.at(dir), "without a crash");
}

/// A bucket that is online and closed.
fn world(kind: StoreKind) -> World {
    let world = World::of(kind);
    let bucket = world.filled("b", 0..DOCUMENTS);
    close(bucket);
    world
}

/// Runs the sleeper in a copy of the world. Gives the copy, and whether the sleeper was killed.
fn killed(world: &World, order: Value) -> (World, bool) {
    let dir = scratch();
    world.copy_to(dir.path());
    let was_killed = is_killed_in(dir.path(), order);
    (world.at(dir), was_killed)
}

/// Runs the sleeper in the folder, and tells whether it was killed.
fn is_killed_in(folder: &Path, mut order: Value) -> bool {
    order["folder"] = json!(folder);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["pause_crash::the_sleeper_that_is_killed_does_its_work_when_it_is_not", "--exact"])
        .env(SLEEPER, order.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    // A signal leaves no code.
    assert!(matches!(status.code(), None | Some(0)), "{order}: {status}");
    status.code().is_none()
}

/// Kills the sleeper at each call of its archive and at each record.
fn at_every_step(world: &World, verb: &str, evict: bool, mut check: impl FnMut(&World, &str)) {
    for step in ["call", "record"] {
        for number in 1.. {
            let mut order = json!({ "verb": verb, "evict": evict, "call": 0, "record": 0, "step": 0 });
            order[step] = json!(number);
            let what = format!("{verb}, killed at {step} {number}");
            let (copy, was_killed) = killed(world, order);
            assert_is_led_on(&copy, &what);
            check(&copy, &what);
            if !was_killed {
                assert!(number > 2, "there is more of {step} than {number}");
                break;
            }
        }
    }
}

/// After the next start the state is one that lasts, and the log says so where it was none.
fn assert_is_led_on(world: &World, what: &str) {
    let Ok(found) = world.data.bucket_meta(&named("b")) else { return };
    let told = Told::new(0);
    let logger = Logger::root(Arc::clone(&told), o!());
    let recovered = once_free(|| world.data.recover(&named("b"), &logger)).unwrap();
    assert!(recovered.state.is_lasting(), "{what}: it is {}", recovered.state);
    if !found.state.is_lasting() {
        assert!(told.records.load(Ordering::SeqCst) > 0, "{what}: nothing was said");
    }
    assert_eq!(world.data.recover(&named("b"), &world.config.logger).unwrap(), recovered, "{what}");
}

fn assert_is_awake(world: &World, what: &str) {
    let bucket = world.open("b");
    assert_eq!(bucket.describe().state, BucketState::Online, "{what}");
    assert_eq!(scan(&bucket), ids(0..DOCUMENTS), "{what}");
    assert!(!is_locked(&bucket), "{what}");
    ingest(&bucket, lines(DOCUMENTS..DOCUMENTS + 1)).unwrap();
    assert_eq!(scan(&bucket), ids(0..DOCUMENTS + 1), "{what}");
    close(bucket);
    assert!(world.staged().is_empty(), "{what}: something is staged");
}

fn a_pause_that_is_killed_at_any_step_is_led_on_or_back(kind: StoreKind) {
    at_every_step(&world(kind), "pause", true, |world, what| {
        let state = world.data.bucket_meta(&named("b")).unwrap().state;
        if !state.is_evicted() {
            let bucket = world.open("b");
            assert_eq!(scan(&bucket), ids(0..DOCUMENTS), "{what}");
            pause(&bucket, &world.store, true).unwrap_or_else(|error| panic!("{what}: {error}"));
            close(bucket);
        }
        assert_eq!(world.local().len(), 1, "{what}: local data is left beside the record");
        world.resume("b", &watchdog()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_is_awake(world, what);
        prune_to_what_is_named(&world.store, "b");
    });
}

/// A bucket that is asleep and closed.
fn asleep(kind: StoreKind, evict: bool) -> World {
    let world = world(kind);
    let bucket = world.open("b");
    pause(&bucket, &world.store, evict).unwrap();
    close(bucket);
    world
}

fn assert_is_resumed(world: &World, what: &str) {
    let state = world.data.bucket_meta(&named("b")).map(|meta| meta.state);
    if !matches!(state, Ok(BucketState::Online)) {
        world.resume("b", &watchdog()).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    assert_is_awake(world, what);
}

fn a_resume_that_is_killed_at_any_step_is_led_on_or_back(kind: StoreKind) {
    at_every_step(&asleep(kind, true), "resume", false, assert_is_resumed);
}

fn a_resume_in_place_that_is_killed_at_any_step_is_led_on_or_back(kind: StoreKind) {
    at_every_step(&asleep(kind, false), "resume", false, assert_is_resumed);
}

/// With `DORMOUSE_LONG` for longer.
fn a_bucket_whose_process_is_killed_again_and_again_comes_to_rest(kind: StoreKind) {
    let (world, dir, mut dice) = (world(kind), scratch(), Dice::new(11));
    world.copy_to(dir.path());
    let verb = || {
        let data = once_free(|| DataDir::open(&dir.path().join("data"))).unwrap();
        let state = once_free(|| data.recover(&named("b"), &world.config.logger)).unwrap().state;
        assert!(state.is_lasting(), "it is {state}");
        if matches!(state, BucketState::Paused { .. }) { "resume" } else { "pause" }
    };
    let rounds = if is_long() { 300 } else { 15 };
    let mut kills = 0;
    for _ in 0..rounds {
        let mut order = json!({ "verb": verb(), "evict": dice.below(2) == 0, "compress": dice.below(2) == 0,
            "call": 0, "record": 0, "step": 0 });
        let step = if dice.below(2) == 0 { "call" } else { "record" };
        order[step] = json!(1 + dice.below(16));
        kills += u32::from(is_killed_in(dir.path(), order));
    }
    assert!(kills > rounds / 4, "{kills} kills in {rounds} rounds");
    if verb() == "pause" {
        let order = json!({ "verb": "pause", "evict": true, "call": 0, "record": 0, "step": 0 });
        assert!(!is_killed_in(dir.path(), order));
    }
    let world = world.at(dir);
    assert_is_resumed(&world, "after all");
    prune_to_what_is_named(&world.store, "b");
}

fn a_pause_that_is_killed_between_parts_uploads_none_of_them_again(kind: StoreKind) {
    between_parts(kind, false);
}

#[test]
fn a_compressing_pause_that_is_killed_between_parts_uploads_none_of_them_again() {
    between_parts(StoreKind::Lsm, true);
}

/// Parts of an object of so many bytes that goes in parts.
fn parts_of(length_bytes: u64) -> usize {
    let parts = usize::try_from(length_bytes.div_ceil(CHUNK_BYTES)).unwrap();
    if parts > 1 { parts } else { 0 }
}

/// Parts that the archive holds, of objects that are whole and of others.
fn parts_there(store: &S3Store) -> usize {
    let whole = store.list(None, &watchdog()).unwrap();
    let parts = store.in_parts().unwrap();
    let unfinished = parts.uploads(None, &watchdog()).unwrap();
    let in_uploads = unfinished.iter().map(|upload| parts.parts(upload, &watchdog()).unwrap().len());
    in_uploads.sum::<usize>() + whole.iter().map(|object| parts_of(object.length_bytes)).sum::<usize>()
}

/// Kills the sleeper at each step of objects that go in parts, each time with an archive of its own.
fn between_parts(kind: StoreKind, compress: bool) {
    let Some(gateway) = Gateway::get() else { return };
    let mut world = World::of(kind);
    // One file, or few, for all documents.
    world.spec.shards = 1;
    world.config.shards.commit_bytes = 1 << 40;
    let bucket = world.bucket("b");
    ingest(&bucket, long_lines(0..LONG_DOCUMENTS)).unwrap();
    close(bucket);
    let options = PauseOptions { evict: true, compress };
    let mut most_there = 0;
    for number in 1.. {
        let what = format!("killed at step {number}");
        let prefix = gateway.config().prefix.unwrap();
        let server = json!([gateway.endpoint(), prefix.as_str()]);
        let store = on_server(&server[0], &server[1]);
        let order = json!({ "verb": "pause", "evict": false, "compress": compress, "call": 0, "record": 0,
            "step": number, "server": server });
        let (copy, was_killed) = killed(&world, order);
        if !was_killed {
            assert!(number > 4 && most_there >= 2, "step {number}: {most_there} parts were there at most");
            break;
        }
        let there = parts_there(&store);
        most_there = most_there.max(there);
        let (bucket, put) = (copy.open("b"), AtomicUsize::new(0));
        assert_eq!(scan(&bucket).len(), LONG_DOCUMENTS as usize, "{what}");
        let count = |_: usize, operation: Operation, _: Option<&ObjectKey>| {
            put.fetch_add(usize::from(operation == Operation::PutPart), Ordering::SeqCst);
        };
        let mut counting = FailingStore::new(&store, 0, Fails::Before);
        counting.around.before = Some(&count);
        bucket.pause(&counting, options, &watchdog(), &mut |_| {}).unwrap();
        close(bucket);
        let objects = store.list(None, &watchdog()).unwrap();
        let all: usize = objects.iter().map(|object| parts_of(object.length_bytes)).sum();
        assert_eq!(there + put.into_inner(), all, "{what}: {there} of {all} parts were there");
        assert_eq!(store.in_parts().unwrap().uploads(None, &watchdog()).unwrap(), [], "{what}");
        copy.resume_from(&store, "b", &watchdog()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let bucket = copy.open("b");
        assert!(scan(&bucket) == ids(0..LONG_DOCUMENTS), "{what}: the scan differs");
        close(bucket);
        prune_to_what_is_named(&store, "b");
    }
}
