//! A pause whose manifest may be there or not: no change is taken until the archive has been asked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dormouse::bucket::{
    Bucket, BucketConfig, BucketError, BucketState, IndexError, IntakeError, PauseError, PauseOptions,
    ResumeError,
};
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::{FileStore, ObjectKey, ObjectStore, Operation};
use dormouse::pause::{Manifest, list_pauses};
use dormouse::shard::{LockError, StoreKind};
use dormouse::thread::{Cancel, Until};
use slog::{Drain, Logger, Never, OwnedKVList, Record, o};

use crate::support::buckets::{
    World, close, ids, ingest, is_locked, lines, named, pause, prune_to_what_is_named, scan,
};
use crate::support::shards::for_each_store;
use crate::support::stores::lost::LostStore;
use crate::support::{FailingStore, Fails, forever, part, watchdog};

for_each_store! {
    a_pause_that_is_in_doubt_takes_no_changes_and_is_settled_by_the_next_pause,
    a_pause_that_is_in_doubt_is_settled_by_a_resume_after_a_restart,
    a_pause_that_kept_its_data_is_evicted_by_another_call,
}

fn bucket(world: &World) -> Bucket {
    world.filled("b", 0..30)
}

/// Pauses into a store that is lost with the manifest: whether that arrived is known to the archive alone. A cancel
/// ends the wait for it, and is not taken for an answer.
fn doubtful_pause<'a>(world: &'a World, bucket: &Bucket, arrives: bool) -> LostStore<'a> {
    let cancel = Cancel::new();
    let told = cancel.clone();
    let mut lost = LostStore::with_the_manifest(&world.store, arrives);
    lost.around.on_manifest = Some(Box::new(move || told.cancel()));
    let doubtful = bucket
        .pause(&lost, PauseOptions::default(), &Until::new(None, cancel.clone()), &mut |_| {})
        .unwrap_err();
    assert!(matches!(doubtful, PauseError::InDoubt { .. }), "{doubtful}");
    let BucketState::InDoubt { pause, archive } = bucket.describe().state else {
        panic!("it is not in doubt")
    };
    for word in [pause.to_string(), archive, "resume".to_owned()] {
        assert!(doubtful.to_string().contains(&word), "{doubtful}");
    }
    assert!(!is_locked(bucket), "a lock is left");
    assert_eq!(world.pauses("b"), usize::from(arrives));
    lost
}

fn assert_takes_no_changes(bucket: &Bucket) {
    let refused = ingest(bucket, lines(30..60)).unwrap_err();
    assert!(matches!(refused, IntakeError::InDoubt { .. }), "{refused}");
    let second = IndexDefinition::parse("second=n").unwrap();
    assert!(matches!(bucket.ensure_index(&second, true), Err(IndexError::InDoubt { .. })));
    assert_eq!(scan(bucket), ids(0..30), "it can be read");
}

fn a_pause_that_is_in_doubt_takes_no_changes_and_is_settled_by_the_next_pause(kind: StoreKind) {
    for arrives in [false, true] {
        let world = World::of(kind);
        let bucket = bucket(&world);
        doubtful_pause(&world, &bucket, arrives);
        assert_takes_no_changes(&bucket);
        let elsewhere = FileStore::open(&world.dir.path().join("elsewhere")).unwrap();
        let other = pause(&bucket, &elsewhere, false).unwrap_err();
        assert!(matches!(other, PauseError::InDoubt { cause: None, .. }), "{other}");
        pause(&bucket, &world.store, false).unwrap();
        assert_eq!(world.pauses("b"), 1, "what is there is not made again");
        close(bucket);
        world.resume("b", &watchdog()).unwrap();
        let bucket = world.open("b");
        ingest(&bucket, lines(30..60)).unwrap();
        assert_eq!(scan(&bucket), ids(0..60));
        prune_to_what_is_named(&world.store, "b");
    }
}

fn a_pause_that_is_in_doubt_is_settled_by_a_resume_after_a_restart(kind: StoreKind) {
    for arrives in [false, true] {
        let world = World::of(kind);
        let bucket = bucket(&world);
        doubtful_pause(&world, &bucket, arrives);
        close(bucket);
        let (dir, config, spec) = (world.dir, world.config, world.spec);
        drop((world.data, world.store));
        let world = World { config, spec, ..World::of(kind) }.at(dir);
        let bucket = world.open("b");
        assert_takes_no_changes(&bucket);
        close(bucket);
        match world.resume("b", &watchdog()) {
            Ok(()) => assert!(arrives),
            Err(error) => assert!(!arrives && matches!(error, ResumeError::NotPaused { .. }), "{error}"),
        }
        let bucket = world.open("b");
        ingest(&bucket, lines(30..60)).unwrap();
        assert_eq!(scan(&bucket), ids(0..60));
    }
}

#[test]
fn an_answer_that_is_found_out_while_the_limit_lasts_leaves_no_doubt() {
    for arrives in [false, true] {
        let world = World::new();
        let bucket = bucket(&world);
        let mut lost = LostStore::with_the_manifest(&world.store, arrives);
        lost.around.comes_back_after = 3;
        let paused = bucket.pause(&lost, PauseOptions::default(), &watchdog(), &mut |_| {});
        assert_eq!(paused.is_ok(), arrives, "{paused:?}");
        let is_online = bucket.describe().state == BucketState::Online;
        assert_eq!(is_online, !arrives);
    }
}

#[test]
fn a_status_shows_the_doubt_and_the_way_out() {
    let world = World::new();
    let bucket = bucket(&world);
    doubtful_pause(&world, &bucket, true);
    close(bucket);
    drop(world.data);
    let status = |format: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_dormouse"))
            .args(["status", "--bucket", "b", "--format", format, "--data-dir"])
            .arg(world.dir.path().join("data"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = status("table");
    assert!(table.contains("in doubt: paused as 0000000001-") && table.contains("a resume there"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&status("json")).unwrap();
    assert_eq!(json["state"], "in doubt");
    assert_eq!(json["archive"], serde_json::json!(world.store.describe()));
}

fn a_pause_that_kept_its_data_is_evicted_by_another_call(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    pause(&bucket, &world.store, false).unwrap();
    let open_scan = bucket.scan(&"by_n".parse().unwrap(), &KeyRange::default(), false, &forever()).unwrap();
    let kept = pause(&bucket, &world.store, true).unwrap_err();
    assert!(kept.to_string().contains("1 scans are open"), "{kept}");
    assert_eq!(open_scan.count(), 30, "what a scan reads is not removed");
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    assert_eq!(world.local().len(), 1);
    let refused = world.data.open_bucket(&named("b"), &world.config).err();
    assert!(matches!(refused, Some(BucketError::Evicted { .. })));
}

/// The state of the bucket cannot be recorded while this is there.
struct NoRecord(PathBuf);

impl NoRecord {
    fn of(world: &World) -> Self {
        let place = world.dir.path().join("data/buckets/b/bucket.meta.tmp");
        std::fs::create_dir(&place).unwrap();
        Self(place)
    }
}

impl Drop for NoRecord {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn a_pause_that_cannot_be_settled_on_record_leaves_its_shards_closed() {
    let world = World::new();
    let bucket = bucket(&world);
    doubtful_pause(&world, &bucket, false);
    let no_record = NoRecord::of(&world);
    let refused = pause(&bucket, &world.store, false).unwrap_err();
    assert!(matches!(refused, PauseError::Step { .. }), "{refused}");
    for shard in bucket.shards() {
        assert!(matches!(shard.lock("the test", &forever()), Err(LockError::Sealed { .. })));
    }
    assert_takes_no_changes(&bucket);
    drop(no_record);
    pause(&bucket, &world.store, false).unwrap();
    assert_eq!(world.pauses("b"), 1);
}

/// What the next pauses make of a manifest that appears before call `late` of the first of them.
fn pauses_around_a_late_manifest(late: usize) -> usize {
    let world = World::new();
    let bucket = bucket(&world);
    let lost = doubtful_pause(&world, &bucket, false);
    let BucketState::InDoubt { pause: given_up, .. } = bucket.describe().state else { unreachable!() };
    let arrive = |number: usize, _: Operation, _: Option<&ObjectKey>| {
        if number == late {
            lost.arrive_late();
        }
    };
    let mut store = FailingStore::new(&world.store, 0, Fails::Before);
    store.around.before = Some(&arrive);
    store.around.one_at_a_time = true;
    pause(&bucket, &store, false).unwrap();
    let first = list_pauses(&world.store, &part("b"), &forever()).unwrap();
    let BucketState::Paused { pause: newest, .. } = bucket.describe().state else { unreachable!() };
    assert_eq!(first.last(), Some(&newest), "call {late}");
    let calls = store.calls();
    close(bucket);
    // Whatever was not there by now appears, and is not taken for the newest.
    lost.arrive_late();
    world.resume("b", &watchdog()).unwrap();
    let bucket = world.open("b");
    assert_eq!(scan(&bucket), ids(0..30));
    ingest(&bucket, lines(30..60)).unwrap();
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    let pauses = list_pauses(&world.store, &part("b"), &forever()).unwrap();
    assert_eq!(pauses.contains(&given_up), newest == given_up, "call {late}: {pauses:?}");
    world.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&world.open("b")), ids(0..60), "call {late}");
    calls
}

#[test]
fn a_manifest_that_appears_after_its_pause_was_given_up_counts_for_nothing() {
    let mut late = 1;
    while late <= pauses_around_a_late_manifest(late) {
        late += 1;
    }
    assert!(late > 10, "a pause has more calls than that");
}

#[test]
fn a_pause_whose_answer_was_lost_and_that_was_not_there_is_given_up_with_its_generation() {
    let world = World::new();
    let bucket = bucket(&world);
    let mut lost = LostStore::with_the_manifest(&world.store, false);
    lost.around.comes_back_after = 3;
    pause(&bucket, &lost, false).unwrap_err();
    assert_eq!(bucket.describe().state, BucketState::Online);
    lost.arrive_late();
    let given_up = list_pauses(&world.store, &part("b"), &forever()).unwrap();
    pause(&bucket, &world.store, false).unwrap();
    let pauses = list_pauses(&world.store, &part("b"), &forever()).unwrap();
    assert_eq!((given_up.len(), pauses.len()), (1, 1));
    assert!(pauses[0].generation() > given_up[0].generation());
    let manifest = Manifest::read(&world.store, &part("b"), pauses[0], &forever()).unwrap();
    assert_eq!(manifest.parent, None, "what was given up is no parent");
}

#[test]
fn a_bucket_that_was_switched_on_is_resumed_also_where_nothing_can_be_cleared_away() {
    let world = World::new();
    let bucket = bucket(&world);
    pause(&bucket, &world.store, false).unwrap();
    close(bucket);
    let stuck = world.dir.path().join("data/staging/resume-0000000009-00000000000000aa-b");
    std::fs::write(&stuck, "no folder, as a download would be").unwrap();
    world.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&world.open("b")), ids(0..30));
    std::fs::remove_file(&stuck).unwrap();
}

#[test]
fn a_pause_in_doubt_that_cannot_be_settled_leaves_the_shards_sealed() {
    let world = World::new();
    let bucket = bucket(&world);
    doubtful_pause(&world, &bucket, false);
    let tables = world.dir.path().join("data/buckets/b/shard-0001/lsm/tables");
    let aside = world.dir.path().join("aside");
    std::fs::rename(&tables, &aside).unwrap();
    let error = pause(&bucket, &world.store, false).unwrap_err();
    assert!(matches!(error, PauseError::Lock { error: LockError::Store { .. }, .. }), "{error}");
    for shard in bucket.shards() {
        assert!(matches!(shard.lock("the test", &watchdog()), Err(LockError::Sealed { .. })));
    }
    std::fs::rename(&aside, &tables).unwrap();
    pause(&bucket, &world.store, false).unwrap();
}

#[test]
fn a_logger_that_panics_when_a_pause_comes_to_be_in_doubt_leaves_the_shards_sealed() {
    let world = World::new();
    close(bucket(&world));
    let (lost, cancel) = (LostStore::with_the_manifest(&world.store, true), Cancel::new());
    let is_lost = Arc::new(AtomicBool::new(false));
    let config = BucketConfig {
        logger: Logger::root(Panics(AssertUnwindSafe(Arc::clone(&is_lost))), o!()),
        ..world.config.clone()
    };
    let bucket = world.data.open_bucket(&named("b"), &config).unwrap();
    let mut lost = lost;
    let (told, seen) = (cancel.clone(), Arc::clone(&is_lost));
    lost.around.on_manifest = Some(Box::new(move || {
        seen.store(true, Ordering::SeqCst);
        told.cancel();
    }));
    let until = Until::new(None, cancel);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        bucket.pause(&lost, PauseOptions::default(), &until, &mut |_| {}).map(drop)
    }));
    assert!(panicked.is_err(), "{panicked:?}");
    for shard in bucket.shards() {
        assert!(matches!(shard.lock("the test", &watchdog()), Err(LockError::Sealed { .. })));
    }
}

/// Panics at a step that is told once this is set.
struct Panics(AssertUnwindSafe<Arc<AtomicBool>>);

impl Drain for Panics {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        assert!(!self.0.load(Ordering::SeqCst) || record.msg().to_string() != "a step begins", "on purpose");
        Ok(())
    }
}

#[test]
fn local_data_goes_only_after_the_manifest_was_put_once_more() {
    let world = World::new();
    let bucket = bucket(&world);
    let local = world.dir.path().join("data/buckets/b/shard-0000");
    let puts = AtomicUsize::new(0);
    let before = |_: usize, operation: Operation, key: Option<&ObjectKey>| {
        if operation == Operation::Put && key.is_some_and(|key| key.as_str().ends_with(".manifest")) {
            puts.fetch_add(1, Ordering::SeqCst);
            assert!(local.exists(), "the local data is gone already");
        }
    };
    let mut watched = FailingStore::new(&world.store, 0, Fails::Before);
    watched.around.before = Some(&before);
    pause(&bucket, &watched, false).unwrap();
    pause(&bucket, &watched, true).unwrap();
    assert_eq!(puts.load(Ordering::SeqCst), 2);
    assert!(!local.exists());
}
