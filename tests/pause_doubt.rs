//! A pause whose manifest may be there or not: no change is taken until the archive has been asked.

use std::process::Command;

use dormouse::bucket::{
    Bucket, BucketError, BucketState, IndexError, IngestError, PauseError, PauseOptions, ResumeError,
};
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::{FileStore, ObjectStore};
use dormouse::shard::StoreKind;
use dormouse::thread::{Cancel, Until};

use crate::support::buckets::{
    World, close, ids, ingest, is_locked, lines, named, pause, prune_to_what_is_named, scan,
};
use crate::support::shards::for_each_store;
use crate::support::stores::lost::LostStore;
use crate::support::{forever, watchdog};

for_each_store! {
    a_pause_that_is_in_doubt_takes_no_changes_and_is_settled_by_the_next_pause,
    a_pause_that_is_in_doubt_is_settled_by_a_resume_after_a_restart,
}

fn bucket(world: &World) -> Bucket {
    let bucket = world.bucket("b");
    ingest(&bucket, lines(0..30)).unwrap();
    bucket
}

/// Pauses into a store that is lost with the manifest: whether that arrived is known to the archive alone. A cancel
/// ends the wait for it, and is not taken for an answer.
fn doubtful_pause(world: &World, bucket: &Bucket, arrives: bool) {
    let cancel = Cancel::new();
    let tell = || cancel.cancel();
    let mut lost = LostStore::with_the_manifest(&world.store, arrives);
    lost.on_manifest = Some(&tell);
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
}

fn assert_takes_no_changes(bucket: &Bucket) {
    let refused = ingest(bucket, lines(30..60)).unwrap_err();
    assert!(matches!(refused, IngestError::InDoubt { .. }), "{refused}");
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
        lost.comes_back_after = 3;
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

#[test]
fn a_pause_that_kept_its_data_is_evicted_by_another_call() {
    let world = World::new();
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
