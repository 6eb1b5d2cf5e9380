//! A bucket from its first change to the archive and back, through the library.

use std::path::Path;

use dormouse::bucket::{
    Bucket, BucketConfig, BucketError, BucketSpec, DataDir, IndexError, IngestOptions, IntakeError,
    PauseError, PauseOptions, ResumeError, ResumeOptions,
};
use dormouse::event::{Seqno, VbId};
use dormouse::index::{IndexDefinition, KeyRange, ScanQuery};
use dormouse::shard::{InstId, OpenError, ShardSet, ShardSetConfig, ShardSpec, StoreKind};
use dormouse::source::Input;
use dormouse::thread::{Cancel, Until};

use crate::support::buckets::{
    SPEC, World, applied, by_n, close, fed, ids, ingest, input, is_locked, lines, named, once_free, options,
    pause, scan, while_ingesting,
};
use crate::support::{FailingStore, Fails, cancelled, eventually, forever, push, tree, watchdog};

#[test]
fn documents_are_indexed_put_to_sleep_and_woken_up_again() {
    let world = World::new();
    let config = BucketConfig::default();
    let airports = named("airports");
    let by_country = IndexDefinition::parse("by_country=country,city").unwrap();
    let bucket = world.data.create_bucket(&airports, BucketSpec::default(), &config).unwrap();
    bucket.ensure_index(&by_country, false).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/airports.jsonl");
    let report = bucket.ingest(vec![Input::Path(path)], &options(), &forever(), &mut |_| {}).unwrap();
    assert_eq!(report.documents, 7184);
    let all = |bucket: &Bucket| -> Vec<_> {
        let scan = bucket.scan(by_country.name(), &KeyRange::default(), false, &forever()).unwrap();
        scan.map(Result::unwrap).collect()
    };
    let before = all(&bucket);
    assert_eq!(before.len(), 7184);
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    assert!(matches!(world.data.open_bucket(&airports, &config), Err(BucketError::Evicted { .. })));
    world.resume("airports", &forever()).unwrap();
    let bucket = world.data.open_bucket(&airports, &config).unwrap();
    assert!(all(&bucket) == before, "the scan after the resume differs");
    close(bucket);
}

#[test]
fn what_was_ingested_is_durable_when_the_call_returns() {
    let world = World::new();
    let bucket = world.bucket("b");
    assert_eq!(ingest(&bucket, lines(0..50)).unwrap().documents, 50);
    // Nothing is committed by this end.
    drop(bucket);
    let mut reopened = None;
    eventually("the threads of the dropped bucket have ended", || {
        reopened = world.data.open_bucket(&named("b"), &world.config).ok();
        reopened.is_some()
    });
    assert_eq!(scan(&reopened.unwrap()), ids(0..50));
}

#[test]
fn a_bad_line_keeps_what_stands_before_it() {
    let world = World::new();
    let bucket = world.bucket("b");
    let error = ingest(&bucket, format!("{}{{broken\n", lines(0..20))).unwrap_err();
    assert!(matches!(error, IntakeError::Input { kept: 20, .. }), "{error}");
    assert_eq!(scan(&bucket), ids(0..20));
}

#[test]
fn an_ingest_that_is_cancelled_keeps_what_was_applied() {
    let world = World::new();
    let bucket = world.bucket("b");
    let cancel = Cancel::new();
    let (sender, input) = fed();
    let ended = std::thread::scope(|scope| {
        let until = Until::new(None, cancel.clone());
        let ingest = scope.spawn(|| {
            let until = until;
            bucket.ingest(vec![input], &options(), &until, &mut |_| {})
        });
        push(&sender, lines(0..20));
        eventually("it is applied", || applied(&bucket) == 20);
        cancel.cancel();
        ingest.join().unwrap()
    });
    assert!(matches!(ended, Err(IntakeError::Stopped { kept: 20, .. })), "{ended:?}");
    assert_eq!(scan(&bucket), ids(0..20));
    drop(sender);
}

#[test]
fn an_idle_bucket_is_copied_before_it_is_locked() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    let mut calls = 0;
    let paused = bucket.pause(&world.store, PauseOptions::default(), &watchdog(), &mut |_| {
        calls += 1;
        assert!(!is_locked(&bucket), "something was uploaded under the lock");
    });
    assert!(paused.unwrap().uploaded_files > 0 && calls > 0);
}

#[test]
fn an_interrupted_pause_goes_on_where_it_was_also_after_a_restart() {
    // A store that merges nothing here: an `lsm` shard's files may be others once the first pause has let go of them.
    let world = World::of(StoreKind::Memdb);
    let bucket = world.filled("b", 0..30);
    let counting = FailingStore::new(&world.store, 0, Fails::Before);
    let puts = || counting.puts();
    let cancel = Cancel::new();
    let until = Until::new(None, cancel.clone());
    let interrupted = bucket.pause(&counting, PauseOptions::default(), &until, &mut |at| {
        if at.done_bytes == at.total_bytes {
            cancel.cancel();
        }
    });
    assert!(interrupted.is_err() && puts() > 4, "{} objects were uploaded", puts());
    close(bucket);
    let bucket = world.open("b");
    let before = puts();
    let paused = bucket.pause(&counting, PauseOptions::default(), &watchdog(), &mut |_| {}).unwrap();
    assert_eq!(puts() - before, 2, "the test of the archive and the manifest alone");
    assert_eq!(paused.uploaded_files, 0);
    close(bucket);
    world.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&world.open("b")), ids(0..30));
}

#[test]
fn a_bucket_that_still_lies_there_is_switched_on_without_a_download() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    pause(&bucket, &world.store, false).unwrap();
    assert!(matches!(pause(&bucket, &world.store, false), Err(PauseError::Paused { .. })));
    close(bucket);
    let resumed = world
        .data
        .resume(&named("b"), &world.store, ResumeOptions::default(), &world.config, &watchdog(), &mut |_| {})
        .unwrap();
    assert_eq!(resumed.downloaded_files, 0);
    let bucket = world.open("b");
    assert_eq!(scan(&bucket), ids(0..30));
    ingest(&bucket, lines(30..31)).unwrap();
    close(bucket);
}

#[test]
fn a_paused_bucket_is_scanned_and_an_evicted_one_is_not() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    pause(&bucket, &world.store, false).unwrap();
    close(bucket);
    let bucket = world.open("b");
    assert_eq!(scan(&bucket), ids(0..30));
    close(bucket);
    world.resume("b", &watchdog()).unwrap();
    let bucket = world.open("b");
    pause(&bucket, &world.store, true).unwrap();
    let refused = bucket.scan(by_n().name(), &KeyRange::default(), false, &forever()).err().unwrap();
    assert!(matches!(refused, IndexError::Paused { .. }), "{refused}");
    close(bucket);
}

#[test]
fn a_resume_that_fails_leaves_local_state_as_it_was() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    let before = world.local();
    let archive = world.dir.path().join("archive");
    let objects: Vec<String> = tree(&archive).into_keys().filter(|name| name.contains("/objects/")).collect();
    assert!(objects.len() > 3);
    for object in &objects {
        let path = archive.join(object);
        let content = std::fs::read(&path).unwrap();
        let mut flipped = content.clone();
        flipped[content.len() / 2] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        let error = world.resume("b", &watchdog()).unwrap_err();
        assert!(matches!(error, ResumeError::Download { .. }), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = world.resume("b", &watchdog()).unwrap_err();
        assert!(matches!(error, ResumeError::Download { .. }), "{error}");
        assert!(world.local() == before, "{object}: a failed resume changed something");
        world.forget_downloads();
        std::fs::write(&path, content).unwrap();
    }
    world.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&world.open("b")), ids(0..30));
}

#[test]
fn a_resume_that_is_cancelled_at_any_time_leaves_local_state_as_it_was() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    let before = world.local();
    // File by file: what was fetched beside a file whose callback cancels would be kept, and leave few to cancel at.
    let mut store = FailingStore::new(&world.store, 0, Fails::Before);
    store.around.one_at_a_time = true;
    let mut cancelled = 0;
    loop {
        let cancel = Cancel::new();
        let until = Until::new(None, cancel.clone());
        let mut calls = 0;
        let resumed = world.data.resume(
            &named("b"),
            &store,
            ResumeOptions::default(),
            &world.config,
            &until,
            &mut |_| {
                calls += 1;
                if calls > cancelled {
                    cancel.cancel();
                }
            },
        );
        if resumed.is_ok() {
            break;
        }
        assert!(world.local() == before, "cancelled at callback {calls}");
        cancelled += 1;
    }
    assert!(cancelled > 3, "there were only {cancelled} callbacks");
    assert_eq!(scan(&world.open("b")), ids(0..30));
}

#[test]
fn a_local_file_that_changed_is_not_switched_on() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    pause(&bucket, &world.store, false).unwrap();
    close(bucket);
    let table = world.local().into_keys().find(|name| name.contains("/tables/")).unwrap();
    let path = world.dir.path().join("data/buckets").join(table);
    let mut content = std::fs::read(&path).unwrap();
    content[10] ^= 1;
    std::fs::write(&path, content).unwrap();
    let before = world.local();
    let error = world.resume("b", &watchdog()).unwrap_err();
    assert!(matches!(error, ResumeError::Check { .. }), "{error}");
    assert!(world.local() == before);
}

#[test]
fn a_dropped_bucket_is_gone_and_its_name_is_free() {
    let world = World::new();
    for _ in 0..2 {
        let bucket = world.filled("b", 0..30);
        close(bucket);
        world.data.drop_bucket(&named("b")).unwrap();
        assert!(world.data.buckets().unwrap().is_empty());
        assert!(matches!(world.data.drop_bucket(&named("b")), Err(BucketError::Missing { .. })));
    }
}

#[test]
fn a_bucket_is_open_once() {
    let world = World::new();
    let bucket = world.bucket("b");
    let in_use = |what: &str, error: Option<BucketError>| {
        assert!(matches!(error, Some(BucketError::Shard(OpenError::InUse { .. }))), "{what}: {error:?}");
    };
    in_use("opened", world.data.open_bucket(&named("b"), &world.config).err());
    in_use("dropped", world.data.drop_bucket(&named("b")).err());
    ingest(&bucket, lines(0..30)).unwrap();
    pause(&bucket, &world.store, false).unwrap();
    let open_scan = bucket.scan(by_n().name(), &KeyRange::default(), false, &forever()).unwrap();
    let error = world.resume("b", &watchdog()).unwrap_err();
    assert!(error.to_string().contains("close the bucket and end its scans"), "{error}");
    close(bucket);
    assert!(world.resume("b", &watchdog()).is_err(), "a scan is left");
    assert_eq!(open_scan.count(), 30);
    world.resume("b", &watchdog()).unwrap();
}

#[test]
fn two_buckets_of_one_process_share_nothing() {
    let world = World::new();
    let buckets = [world.bucket("left"), world.bucket("right")];
    std::thread::scope(|scope| {
        for (bucket, numbers) in buckets.iter().zip([0..200, 100..300]) {
            let world = &world;
            scope.spawn(move || {
                ingest(bucket, lines(numbers.clone())).unwrap();
                assert_eq!(scan(bucket), ids(numbers));
                pause(bucket, &world.store, true).unwrap();
            });
        }
    });
    buckets.into_iter().for_each(close);
    for (name, numbers) in [("left", 0..200), ("right", 100..300)] {
        world.resume(name, &watchdog()).unwrap();
        assert_eq!(scan(&world.open(name)), ids(numbers));
    }
}

#[test]
fn a_data_folder_belongs_to_one_holder() {
    let world = World::new();
    let error = DataDir::open(world.data.root()).err().unwrap();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
}

/// The shards of a closed bucket, without it.
fn shards_of(world: &World, name: &str) -> ShardSet {
    let uuid = world.data.bucket_meta(&named(name)).unwrap().uuid;
    let specs = ShardSpec::all(SPEC().shards, SPEC().vbuckets, StoreKind::Lsm, uuid);
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let folder = world.data.root().join("buckets").join(name);
    ShardSet::open(&folder, specs, &ShardSetConfig::default(), None, &logger).unwrap()
}

#[test]
fn shards_are_brought_in_line_with_the_metadata_when_a_crash_came_between() {
    let world = World::new();
    close(world.bucket("b"));
    // As a crash leaves it between the metadata and the second shard: one instance missing, one too many.
    let set = shards_of(&world, "b");
    let shard = &set.shards()[1];
    shard.drop_instance(InstId(1)).unwrap();
    shard.create_instance(InstId(9), dormouse::shard::InstanceStart::Zero).unwrap();
    set.commit(&watchdog()).unwrap();
    set.close(&watchdog()).unwrap();
    drop(set);
    let bucket = world.open("b");
    for shard in bucket.shards() {
        assert_eq!(shard.instances(), [InstId(1)]);
    }
    ingest(&bucket, lines(0..30)).unwrap();
    assert_eq!(scan(&bucket), ids(0..30));
    close(bucket);
}

#[test]
fn an_index_that_met_a_locked_shard_is_completed_by_another_try() {
    let world = World::new();
    let bucket = world.bucket("b");
    let guard = bucket.shards()[1].lock("the test", &watchdog()).unwrap();
    let second = IndexDefinition::parse("second=n").unwrap();
    assert!(matches!(bucket.ensure_index(&second, false), Err(IndexError::Instance(_))));
    drop(guard);
    bucket.ensure_index(&second, false).unwrap();
    ingest(&bucket, lines(0..30)).unwrap();
    let scan = bucket.scan(second.name(), &KeyRange::default(), false, &forever()).unwrap();
    assert_eq!(scan.count(), 30);
}

#[test]
fn indexes_do_not_change_while_something_is_ingested() {
    let world = World::new();
    let bucket = world.bucket("b");
    let ingested = while_ingesting(&bucket, |sender| {
        push(&sender, lines(0..30));
        eventually("the first lines are applied", || applied(&bucket) == 30);
        let second = IndexDefinition::parse("second=n").unwrap();
        assert!(matches!(bucket.ensure_index(&second, true), Err(IndexError::Busy { .. })));
        assert!(matches!(bucket.drop_index(by_n().name(), &watchdog()), Err(IndexError::Busy { .. })));
        assert!(bucket.ensure_index(&by_n(), false).is_ok(), "one that is there is there");
        assert!(matches!(ingest(&bucket, lines(0..1)), Err(IntakeError::Busy { .. })));
    });
    assert_eq!(ingested.unwrap().documents, 30);
}

#[test]
fn a_new_index_over_data_is_scanned_after_a_rebuild() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    let second = IndexDefinition::parse("second=n").unwrap();
    assert!(matches!(bucket.ensure_index(&second, false), Err(IndexError::NeedsRebuild { .. })));
    bucket.ensure_index(&second, true).unwrap();
    let unfinished = bucket.scan(second.name(), &KeyRange::default(), false, &forever()).err().unwrap();
    assert!(matches!(unfinished, IndexError::Unfinished { documents: 0, before: 30, .. }), "{unfinished}");
    assert!(matches!(ingest(&bucket, lines(0..30)), Err(IntakeError::Unfinished { .. })));
    assert!(matches!(pause(&bucket, &world.store, false), Err(PauseError::Unfinished { .. })));
    let rebuild = IngestOptions { rebuild: true, ..options() };
    bucket.ingest(vec![input(lines(0..30))], &rebuild, &watchdog(), &mut |_| {}).unwrap();
    let scan = bucket.scan(second.name(), &KeyRange::default(), false, &forever()).unwrap();
    assert_eq!(scan.count(), 30);
}

#[test]
fn a_dropped_index_is_gone_after_a_reopening_and_its_name_is_free() {
    let world = World::new();
    let bucket = world.bucket("b");
    let second = IndexDefinition::parse("second=n").unwrap();
    bucket.ensure_index(&second, false).unwrap();
    ingest(&bucket, lines(0..30)).unwrap();
    bucket.drop_index(second.name(), &watchdog()).unwrap();
    assert!(matches!(bucket.drop_index(second.name(), &watchdog()), Err(IndexError::Missing { .. })));
    close(bucket);
    let bucket = world.open("b");
    assert_eq!(bucket.describe().indexes.len(), 1);
    assert_eq!(scan(&bucket), ids(0..30));
    assert!(matches!(bucket.ensure_index(&second, false), Err(IndexError::NeedsRebuild { .. })));
    close(bucket);
}

#[test]
fn a_scan_that_waits_to_begin_keeps_the_local_data() {
    let world = World::new();
    let bucket = world.filled("b", 0..10);
    let never = ScanQuery { at_least: vec![(VbId(0), Seqno(1000))], ..ScanQuery::default() };
    let until = Until::default();
    std::thread::scope(|scope| {
        let query = scope.spawn(|| bucket.query(by_n().name(), &never, &until).err().unwrap());
        eventually("the scan waits", || bucket.open_scans() == 1);
        let kept = pause(&bucket, &world.store, true).unwrap_err();
        assert!(kept.to_string().contains("1 scans are open, which read it"), "{kept}");
        assert_eq!(scan(&bucket), ids(0..10));
        until.cancel().cancel();
        query.join().unwrap();
    });
    pause(&bucket, &world.store, true).unwrap();
}

#[test]
fn a_scan_that_begins_while_the_local_data_goes_reads_all_of_it_or_is_refused() {
    for _ in 0..20 {
        let world = World::new();
        let bucket = world.filled("b", 0..20);
        let read = || {
            let begun = bucket.scan(by_n().name(), &KeyRange::default(), false, &forever());
            begun.map(|scan| scan.map(|entry| entry.unwrap().id).collect::<Vec<_>>())
        };
        std::thread::scope(|scope| {
            let scans = scope.spawn(|| {
                loop {
                    match read() {
                        Ok(found) => assert_eq!(found, ids(0..20)),
                        Err(refused) => break refused,
                    }
                }
            });
            let gone = |paused: Result<(), PauseError>| match paused {
                Err(PauseError::Evict { .. }) => false,
                paused => paused.map(|()| true).unwrap(),
            };
            eventually("no scan is open for a moment", || gone(pause(&bucket, &world.store, true)));
            let refused = scans.join().unwrap();
            assert!(matches!(refused, IndexError::Paused { .. }), "{refused}");
        });
    }
}

#[test]
fn a_bucket_whose_shards_cannot_be_looked_at_is_not_dropped() {
    let world = World::new();
    let bucket = world.filled("b", 0..10);
    let shards =
        ["shard-0000", "shard-0001"].map(|shard| world.dir.path().join("data/buckets/b").join(shard));
    for shard in &shards {
        std::fs::rename(shard.join("shard.meta"), shard.join("aside")).unwrap();
        std::os::unix::fs::symlink("shard.meta", shard.join("shard.meta")).unwrap();
    }
    let error = world.data.drop_bucket(&named("b")).unwrap_err();
    assert!(error.to_string().contains("shard.meta"), "{error}");
    for shard in &shards {
        std::fs::rename(shard.join("aside"), shard.join("shard.meta")).unwrap();
    }
    assert_eq!(scan(&bucket), ids(0..10));
    close(bucket);
    once_free(|| world.data.drop_bucket(&named("b"))).unwrap();
}

#[test]
fn the_way_out_of_damaged_metadata_leads_out_of_it() {
    let world = World::new();
    let bucket = world.filled("b", 0..10);
    pause(&bucket, &world.store, false).unwrap();
    close(bucket);
    let meta = world.dir.path().join("data/buckets/b/bucket.meta");
    let mut bytes = std::fs::read(&meta).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&meta, bytes).unwrap();
    let error = world.resume("b", &watchdog()).unwrap_err();
    assert!(error.to_string().contains("with `resume`, after a `drop`"), "{error}");
    once_free(|| world.data.drop_bucket(&named("b"))).unwrap();
    world.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&world.open("b")), ids(0..10));
}

#[test]
fn a_bucket_whose_last_index_was_dropped_has_data_still() {
    let world = World::new();
    let bucket = world.filled("b", 0..10);
    bucket.drop_index(by_n().name(), &watchdog()).unwrap();
    let nothing = ingest(&bucket, lines(10..20)).unwrap_err();
    assert!(matches!(nothing, IntakeError::NoIndex { .. }), "{nothing}");
    let refused = |bucket: &Bucket| {
        let refused = bucket.ensure_index(&by_n(), false).unwrap_err();
        assert!(matches!(refused, IndexError::NeedsRebuild { .. }), "{refused}");
    };
    refused(&bucket);
    close(bucket);
    let bucket = world.open("b");
    refused(&bucket);
    bucket.ensure_index(&by_n(), true).unwrap();
    let all = IngestOptions { rebuild: true, ..options() };
    bucket.ingest(vec![input(lines(0..20))], &all, &watchdog(), &mut |_| {}).unwrap();
    assert_eq!(scan(&bucket), ids(0..20));
}

#[test]
fn a_scan_of_many_ranges_without_an_entry_ends_with_its_limit() {
    let world = World::new();
    let bucket = world.filled("b", 0..10);
    let point = |n: i32| KeyRange::parse(&format!("{{\"from\":[{n}],\"to\":[{n}]}}")).unwrap();
    let query = ScanQuery { ranges: (100..5100).map(point).collect(), ..ScanQuery::default() };
    let asked = |until: &Until| bucket.query(by_n().name(), &query, until).map(Iterator::count);
    assert_eq!(asked(&watchdog()).unwrap(), 0);
    let ended = asked(&cancelled()).unwrap_err();
    assert!(ended.to_string().contains("it was cancelled"), "{ended}");
}
