//! What has to be true of every pause and every resume, on every store.

use std::fs;
use std::path::PathBuf;

use dormouse::bucket::{
    Bucket, BucketError, BucketState, DataDir, PauseError, PauseOptions, ResumeError, ResumeOptions,
    ResumeReport, TaskState,
};
use dormouse::durable::RoomError;
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::{ObjectKey, Operation};
use dormouse::pause::{FORMAT_VERSIONS, Manifest, Progress, list_pauses, verify};
use dormouse::shard::StoreKind;
use dormouse::thread::{Cancel, Until};
use dormouse::timestamp::TsVbuuid;

use crate::support::buckets::{World, by_n, close, ids, ingest, is_locked, lines, named, pause, scan};
use crate::support::shards::for_each_store;
use crate::support::{FailingStore, Fails, forever, part, tree, watchdog};

for_each_store! {
    every_kind_of_index_comes_back_with_its_positions,
    an_archive_that_is_not_whole_is_refused_and_nothing_local_changes,
    a_later_pause_leaves_an_earlier_one_whole_at_every_call,
    a_caller_that_panics_leaves_no_lock_and_nothing_half_done,
    a_cancel_at_any_progress_leaves_a_bucket_that_is_online_and_indexes_that_may_change,
    a_lock_that_somebody_holds_fails_the_pause_and_leaves_all_shards_as_they_were,
    a_bucket_without_an_index_is_not_archived_and_not_paused,
    a_resume_without_room_is_refused_before_anything_is_downloaded,
    a_plan_of_a_resume_says_that_there_is_no_room,
    progress_only_grows_and_is_whole_after_success_alone,
    what_the_archive_does_not_hold_whole_is_not_evicted,
}

fn bucket(world: &World) -> Bucket {
    world.filled("b", 0..30)
}

fn all(bucket: &Bucket) -> Vec<(String, Vec<String>, TsVbuuid)> {
    let of_index = |entry: dormouse::bucket::IndexEntry| {
        let range = KeyRange::default();
        let entries = bucket.scan(entry.definition.name(), &range, false, &forever()).unwrap();
        let entries = entries.map(|entry| format!("{:?}", entry.unwrap())).collect();
        let mut positions = TsVbuuid::default();
        for of_shard in bucket.shards().iter().filter_map(|shard| shard.positions(entry.inst)) {
            positions.union(&of_shard);
        }
        (entry.definition.to_string(), entries, positions)
    };
    bucket.describe().indexes.into_iter().map(of_index).collect()
}

fn every_kind_of_index_comes_back_with_its_positions(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = world.bucket("b");
    bucket.ensure_index(&IndexDefinition::primary("primary".parse().unwrap()), false).unwrap();
    bucket.ensure_index(&IndexDefinition::parse("by_tag=tags[]").unwrap(), false).unwrap();
    bucket.ensure_index(&IndexDefinition::parse("both=n,tags[0]").unwrap(), false).unwrap();
    let documents =
        (0..50).map(|n| format!("{{\"id\":\"d{n}\",\"n\":{},\"tags\":[\"a{n}\",\"b\"]}}\n", n % 7));
    ingest(&bucket, documents.collect()).unwrap();
    let before = all(&bucket);
    assert_eq!(before.len(), 4);
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    world.resume("b", &watchdog()).unwrap();
    let bucket = world.open("b");
    assert!(all(&bucket) == before, "an index or a position differs");
    close(bucket);
}

/// The objects and the manifest of the archive.
fn archived(world: &World) -> Vec<PathBuf> {
    let archive = world.dir.path().join("archive");
    tree(&archive).into_keys().map(|name| archive.join(name)).collect()
}

/// A manifest as a version writes it that this program does not know.
fn of_a_newer_version(manifest: &[u8]) -> Vec<u8> {
    let newer = FORMAT_VERSIONS.end() + 1;
    let text = String::from_utf8(manifest.to_vec()).unwrap();
    text.replacen("manifest 1 ", &format!("manifest {newer} "), 1).into_bytes()
}

fn an_archive_that_is_not_whole_is_refused_and_nothing_local_changes(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    let before = world.local();
    for path in archived(&world) {
        let content = fs::read(&path).unwrap();
        let mut flipped = content.clone();
        flipped[content.len() / 2] ^= 1;
        let is_manifest = path.extension().is_some_and(|extension| extension == "manifest");
        let newer = is_manifest.then(|| of_a_newer_version(&content));
        let cut = content[..content.len() / 2].to_vec();
        let damaged = [Some(flipped), Some(cut), None].into_iter().chain(newer.clone().map(Some));
        for damage in damaged {
            match &damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let refused = world.resume("b", &watchdog()).unwrap_err().to_string();
            let is_newer = damage.is_some() && damage == newer;
            assert_eq!(refused.contains("use a newer dormouse"), is_newer, "{refused}");
            assert!(world.local() == before, "{}: local state changed", path.display());
            world.forget_downloads();
        }
        fs::write(&path, content).unwrap();
    }
    let archive = world.dir.path().join("archive");
    fs::rename(archive.join("b"), archive.join("c")).unwrap();
    let foreign = world.data.resume(
        &named("c"),
        &world.store,
        ResumeOptions::default(),
        &world.config,
        &watchdog(),
        &mut |_| {},
    );
    assert!(matches!(foreign, Err(ResumeError::Manifest { .. })), "{foreign:?}");
    fs::rename(archive.join("c"), archive.join("b")).unwrap();
    assert!(world.local() == before);
    world.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&world.open("b")), ids(0..30));
}

fn a_later_pause_leaves_an_earlier_one_whole_at_every_call(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    pause(&bucket, &world.store, false).unwrap();
    close(bucket);
    let first = list_pauses(&world.store, &part("b"), &forever()).unwrap()[0];
    world.resume("b", &watchdog()).unwrap();
    let bucket = world.open("b");
    ingest(&bucket, lines(30..60)).unwrap();
    for number in 1.. {
        let failing = FailingStore::new(&world.store, number, Fails::After);
        let paused = pause(&bucket, &failing, false);
        let manifest = Manifest::read(&world.store, &part("b"), first, &forever()).unwrap();
        assert!(verify(&manifest, &world.store, &forever()).unwrap().is_empty(), "call {number}");
        // The last answer that is lost, that of the manifest, is found out.
        if paused.is_ok() {
            break;
        }
    }
    let pauses = list_pauses(&world.store, &part("b"), &forever()).unwrap();
    assert_eq!(pauses.len(), 2);
    assert_eq!(Manifest::read(&world.store, &part("b"), pauses[1], &forever()).unwrap().parent, Some(first));
}

fn a_cancel_at_any_progress_leaves_a_bucket_that_is_online_and_indexes_that_may_change(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    for cancelled in 1..4 {
        let cancel = Cancel::new();
        let until = Until::new(None, cancel.clone());
        let paused = bucket.pause(&world.store, PauseOptions::default(), &until, &mut |_| cancel.cancel());
        // What an earlier one uploaded is not uploaded again, so a later one may have nothing to tell of.
        assert!(paused.is_err() || cancelled > 1);
        if paused.is_ok() {
            return;
        }
        assert!(!is_locked(&bucket) && bucket.describe().state.is_lasting());
        let name = format!("i{cancelled}");
        let definition = IndexDefinition::parse(&format!("{name}=n")).unwrap();
        bucket.ensure_index(&definition, true).unwrap();
        bucket.drop_index(&name.parse().unwrap(), &watchdog()).unwrap();
        assert_eq!(scan(&bucket), ids(0..30));
    }
    pause(&bucket, &world.store, false).unwrap();
}

fn a_caller_that_panics_leaves_no_lock_and_nothing_half_done(kind: StoreKind) {
    let panics = |work: &mut dyn FnMut()| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_err();
    };
    let world = World::of(kind);
    let bucket = bucket(&world);
    panics(&mut || {
        let options = PauseOptions::default();
        let _ = bucket.pause(&world.store, options, &watchdog(), &mut |_| panic!("on purpose"));
    });
    assert!(!is_locked(&bucket));
    assert_eq!(bucket.describe().state, BucketState::Online);
    ingest(&bucket, lines(30..60)).unwrap();
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    let before = world.local();
    panics(&mut || {
        let (name, until) = (named("b"), watchdog());
        let _ = world.data.resume(
            &name,
            &world.store,
            ResumeOptions::default(),
            &world.config,
            &until,
            &mut |_| panic!("on purpose"),
        );
    });
    assert!(world.local() == before);
    world.resume("b", &watchdog()).unwrap();
    let bucket = world.open("b");
    assert_eq!(scan(&bucket), ids(0..60));
    assert!(!is_locked(&bucket) && world.staged().is_empty());
}

fn a_lock_that_somebody_holds_fails_the_pause_and_leaves_all_shards_as_they_were(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    let guard = bucket.shards()[1].lock("the test", &watchdog()).unwrap();
    let error = pause(&bucket, &world.store, false).unwrap_err();
    assert!(error.to_string().contains("the test"), "{error}");
    let locked_by = |at: usize| bucket.status().shards[at].locked_by.as_ref().map(|(owner, _)| owner.clone());
    assert_eq!((locked_by(0), locked_by(1)), (None, Some("the test".to_owned())));
    drop(guard);
    ingest(&bucket, lines(30..60)).unwrap();
    pause(&bucket, &world.store, false).unwrap();
    assert!(!is_locked(&bucket));
}

fn a_bucket_without_an_index_is_not_archived_and_not_paused(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = world.data.create_bucket(&named("b"), world.spec, &world.config).unwrap();
    assert!(matches!(pause(&bucket, &world.store, true), Err(PauseError::Empty { .. })));
    assert!(archived(&world).is_empty());
    bucket.ensure_index(&by_n(), false).unwrap();
    ingest(&bucket, lines(0..30)).unwrap();
    assert_eq!(scan(&bucket), ids(0..30));
}

fn a_resume_without_room_is_refused_before_anything_is_downloaded(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    publish_a_huge_one(&world);
    let before = world.local();
    let refused = world.resume("b", &watchdog()).unwrap_err();
    assert!(matches!(refused, ResumeError::NoRoom { .. }), "{refused}");
    assert!(world.local() == before && world.staged().is_empty());
    assert!(matches!(world.data.open_bucket(&named("b"), &world.config), Err(BucketError::Evicted { .. })));
}

/// A second pause, of a file that fits on no disk.
fn publish_a_huge_one(world: &World) {
    let first = list_pauses(&world.store, &part("b"), &forever()).unwrap()[0];
    let mut manifest = Manifest::read(&world.store, &part("b"), first, &forever()).unwrap();
    manifest.pause = "0000000002-00000000000000aa".parse().unwrap();
    manifest.files[0].length_bytes = u64::MAX / 2;
    manifest.publish(&world.store, &forever()).unwrap();
}

/// How much room a plan says that a resume needs.
fn needed_bytes(planned: Result<ResumeReport, ResumeError>) -> u64 {
    match planned {
        Err(ResumeError::NoRoom { error: RoomError::TooLittle { needed_bytes, .. }, .. }) => needed_bytes,
        planned => panic!("{planned:?}"),
    }
}

fn a_plan_of_a_resume_says_that_there_is_no_room(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    let staged_bytes = (1..100).find_map(|call| {
        let store = FailingStore::new(&world.store, call, Fails::Before);
        world.resume_from(&store, "b", &watchdog()).unwrap_err();
        let bytes: usize = world.staged().values().map(Vec::len).sum();
        (bytes > 0).then_some(bytes as u64)
    });
    let staged_bytes = staged_bytes.unwrap();
    publish_a_huge_one(&world);
    let (name, options) = (named("b"), ResumeOptions::default());
    let here = needed_bytes(world.data.plan_resume(&name, &world.store, options, &watchdog()));
    let nowhere = world.dir.path().join("not/yet");
    let plan = DataDir::plan_first_resume(&nowhere, &name, &world.store, options, &watchdog());
    assert_eq!(here, needed_bytes(plan) - staged_bytes);
    assert!(!world.dir.path().join("not").exists());
    let taken = world.dir.path().join("file");
    fs::write(&taken, "").unwrap();
    let plan = DataDir::plan_first_resume(&taken, &name, &world.store, options, &watchdog());
    assert!(plan.unwrap_err().to_string().contains("Not a directory"));
}

/// The progress of the bucket's task.
fn progress(world: &World) -> (TaskState, f64) {
    let status = world.data.tasks().tasks.remove(0);
    (status.state, status.progress)
}

/// Looks at the task each time that its caller is told of progress.
fn watched<T>(world: &World, work: impl FnOnce(&mut dyn FnMut(Progress)) -> T) -> T {
    let mut seen = vec![0.0];
    let done = work(&mut |at| {
        assert!(at.done_bytes <= at.total_bytes, "{at:?}");
        let (state, progress) = progress(world);
        assert!(state == TaskState::Running && progress < 1.0, "{progress}");
        seen.push(progress);
    });
    seen.push(progress(world).1);
    assert!(seen.is_sorted(), "progress fell: {seen:?}");
    done
}

fn progress_only_grows_and_is_whole_after_success_alone(kind: StoreKind) {
    const DONE: (TaskState, f64) = (TaskState::Done, 1.0);
    let world = World::of(kind);
    let bucket = bucket(&world);
    let (options, until) = (PauseOptions::default(), watchdog());
    let cancel = Cancel::new();
    let cancelled = watched(&world, |told| {
        bucket.pause(&world.store, options, &Until::new(None, cancel.clone()), &mut |at| {
            told(at);
            cancel.cancel();
        })
    });
    assert!(cancelled.is_err());
    let (state, reached) = progress(&world);
    assert!(state == TaskState::Failed && reached > 0.0 && reached < 1.0, "{reached}");
    watched(&world, |told| bucket.pause(&world.store, options, &until, told)).unwrap();
    assert_eq!(progress(&world), DONE);
    close(bucket);
    let resume = || {
        let (name, options) = (named("b"), ResumeOptions::default());
        watched(&world, |told| world.data.resume(&name, &world.store, options, &world.config, &until, told))
            .unwrap();
        assert_eq!(progress(&world), DONE);
    };
    resume();
    // With nothing to upload.
    let bucket = world.open("b");
    let evict = PauseOptions { evict: true, ..options };
    watched(&world, |told| bucket.pause(&world.store, evict, &until, told)).unwrap();
    assert_eq!(progress(&world), DONE);
    close(bucket);
    resume();
}

fn what_the_archive_does_not_hold_whole_is_not_evicted(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = bucket(&world);
    let archive = world.dir.path().join("archive");
    // What is read back is something else than what was written.
    let damage = |_: usize, operation: Operation, key: Option<&ObjectKey>| {
        if let (Operation::Get, Some(key)) = (operation, key.filter(|key| key.as_str().contains("/objects/")))
        {
            let mut content = fs::read(archive.join(key.as_str())).unwrap();
            content[0] ^= 1;
            fs::write(archive.join(key.as_str()), content).unwrap();
        }
    };
    let mut damaging = FailingStore::new(&world.store, 0, Fails::Before);
    damaging.around.before = Some(&damage);
    let kept = pause(&bucket, &damaging, true).unwrap_err();
    assert!(matches!(kept, PauseError::Evict { .. }), "{kept}");
    assert!(matches!(bucket.describe().state, BucketState::Paused { evicted: false, .. }));
    assert_eq!(scan(&bucket), ids(0..30));
    close(bucket);
    assert!(world.local().len() > 1, "local data is gone");
}
