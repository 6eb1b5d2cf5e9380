//! A process is killed at every step of a pause and of a resume: the next start leads the bucket to a state that
//! lasts, says so, and the same call succeeds.
//!
//! The process is this binary once more, with nothing but the test that is the sleeper. It is killed after a call of
//! its archive, or at a log record: each step is told before it is made and after it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse::bucket::{BucketConfig, BucketState, DataDir, ResumeOptions};
use dormouse::objstore::FileStore;
use dormouse::shard::StoreKind;
use serde_json::{Value, json};
use slog::{Drain, Logger, Never, OwnedKVList, Record, o};

use crate::support::buckets::{
    World, close, ids, ingest, is_locked, lines, named, once_free, pause, prune_to_what_is_named, scan,
    scratch,
};
use crate::support::shards::for_each_store;
use crate::support::{FailingStore, Fails, eventually, kill_this_process, watchdog};

for_each_store! {
    a_pause_that_is_killed_at_any_step_is_led_on_or_back,
    a_resume_that_is_killed_at_any_step_is_led_on_or_back,
    a_resume_in_place_that_is_killed_at_any_step_is_led_on_or_back,
}

/// What the sleeper is to do, for its process.
const SLEEPER: &str = "DORMOUSE_TEST_SLEEPER";
const DOCUMENTS: u32 = 30;

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
    let folder_store = FileStore::open(&folder.join("archive")).unwrap();
    let store = FailingStore::new(&folder_store, number("call"), Fails::Kills);
    let mut data = None;
    eventually("the data folder is free", || {
        data = DataDir::open(&folder.join("data")).ok();
        data.is_some()
    });
    let data = data.unwrap();
    if order["verb"] == "pause" {
        let bucket = once_free(|| data.open_bucket(&named("b"), &config)).unwrap();
        pause(&bucket, &store, order["evict"] == true).unwrap();
        close(bucket);
    } else {
        let resume =
            || data.resume(&named("b"), &store, ResumeOptions::default(), &config, &watchdog(), &mut |_| {});
        once_free(resume).unwrap();
    }
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
        sleep(&json!({ "verb": verb, "evict": true, "call": 0, "record": 0, "folder": dir.path() }));
    }
    assert_is_awake(&world.at(dir), "without a crash");
}

/// A bucket that is online and closed.
fn world(kind: StoreKind) -> World {
    let world = World::of(kind);
    let bucket = world.bucket("b");
    ingest(&bucket, lines(0..DOCUMENTS)).unwrap();
    close(bucket);
    world
}

/// Runs the sleeper in a copy of the world. Gives the copy, and whether the sleeper was killed.
fn killed(world: &World, mut order: Value) -> (World, bool) {
    let dir = scratch();
    world.copy_to(dir.path());
    order["folder"] = json!(dir.path());
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["pause_crash::the_sleeper_that_is_killed_does_its_work_when_it_is_not", "--exact"])
        .env(SLEEPER, order.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    // A signal leaves no code.
    assert!(matches!(status.code(), None | Some(0)), "{order}: {status}");
    (world.at(dir), status.code().is_none())
}

/// Kills the sleeper at each call of its archive and at each record.
fn at_every_step(world: &World, verb: &str, evict: bool, mut check: impl FnMut(&World, &str)) {
    for step in ["call", "record"] {
        for number in 1.. {
            let mut order = json!({ "verb": verb, "evict": evict, "call": 0, "record": 0 });
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
