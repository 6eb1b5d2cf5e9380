//! Changes that come before, during and after a pause, and after one that failed: none is lost or counted twice.

use dormouse::bucket::{IntakeError, PauseOptions};
use dormouse::shard::StoreKind;
use dormouse::thread::{Cancel, Until};

use crate::support::buckets::{
    World, applied, close, ids, ingest, is_locked, is_paused, lines, pause, scan, while_ingesting,
};
use crate::support::shards::for_each_store;
use crate::support::{FailingStore, Fails, eventually, push, watchdog};

for_each_store! {
    a_pause_that_fails_at_any_call_leaves_a_bucket_that_takes_data_or_sleeps,
    a_bucket_that_was_put_to_sleep_under_an_ingest_ends_up_with_the_whole_file,
    an_ingest_is_held_up_by_a_pause_and_not_lost_when_it_is_cancelled,
    changes_before_and_after_several_pauses_count_once,
}

fn a_pause_that_fails_at_any_call_leaves_a_bucket_that_takes_data_or_sleeps(kind: StoreKind) {
    for fails in [Fails::Before, Fails::After] {
        let mut fail_at = 1;
        loop {
            let world = World::of(kind);
            let bucket = world.bucket("b");
            let store = FailingStore::new(&world.store, fail_at, fails);
            let ingested = while_ingesting(&bucket, |sender| {
                push(&sender, lines(0..30));
                eventually("the first lines are applied", || applied(&bucket) == 30);
                let paused = pause(&bucket, &store, false);
                assert!(!is_locked(&bucket), "{fails:?} {fail_at}: a lock is left");
                assert_eq!(paused.is_ok(), is_paused(&bucket), "{fails:?} {fail_at}: {paused:?}");
                assert_eq!(world.pauses("b"), usize::from(paused.is_ok()), "{fails:?} {fail_at}: {paused:?}");
                push(&sender, lines(30..60));
            });
            if is_paused(&bucket) {
                assert!(matches!(ingested, Err(IntakeError::PutToSleep { .. })), "{ingested:?}");
                assert_eq!(scan(&bucket), ids(0..30));
            } else {
                assert_eq!(ingested.unwrap().documents, 60);
                assert_eq!(scan(&bucket), ids(0..60));
            }
            if !store.has_failed() {
                break;
            }
            fail_at += 1;
        }
        assert!(fail_at > 4, "a pause has more calls than that");
    }
}

fn a_bucket_that_was_put_to_sleep_under_an_ingest_ends_up_with_the_whole_file(kind: StoreKind) {
    for evict in [false, true] {
        let world = World::of(kind);
        let bucket = world.bucket("b");
        let ended = while_ingesting(&bucket, |sender| {
            push(&sender, lines(0..30));
            eventually("the first lines are applied", || applied(&bucket) == 30);
            pause(&bucket, &world.store, evict).unwrap();
            push(&sender, lines(30..60));
        });
        assert!(matches!(ended, Err(IntakeError::PutToSleep { .. })), "{ended:?}");
        assert!(matches!(ingest(&bucket, lines(0..1)), Err(IntakeError::Paused { .. })));
        close(bucket);
        world.resume("b", &watchdog()).unwrap();
        let bucket = world.open("b");
        assert_eq!(scan(&bucket), ids(0..30));
        ingest(&bucket, lines(0..60)).unwrap();
        assert_eq!(scan(&bucket), ids(0..60));
        close(bucket);
    }
}

fn an_ingest_is_held_up_by_a_pause_and_not_lost_when_it_is_cancelled(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = world.bucket("b");
    let ingested = while_ingesting(&bucket, |sender| {
        push(&sender, lines(0..30));
        eventually("the first lines are applied", || applied(&bucket) == 30);
        let cancel = Cancel::new();
        let until = Until::new(None, cancel.clone());
        let (mut sender, mut was_locked) = (Some(sender), false);
        let cancelled = bucket.pause(&world.store, PauseOptions::default(), &until, &mut |_| {
            if is_locked(&bucket) {
                was_locked = true;
                sender.take().into_iter().for_each(|sender| push(&sender, lines(60..90)));
                cancel.cancel();
            } else if applied(&bucket) == 30 {
                // What comes while files are copied without a lock is left for the cut.
                if let Some(sender) = &sender {
                    push(sender, lines(30..60));
                }
                eventually("more lines are applied", || applied(&bucket) == 60);
            }
        });
        assert!(cancelled.is_err() && was_locked && !is_locked(&bucket));
    });
    // A store that is one file is not copied before the lock.
    let all = if kind.is_copied_first() { ids(0..90) } else { [ids(0..30), ids(60..90)].concat() };
    assert_eq!(ingested.unwrap().documents, all.len() as u64);
    assert_eq!(scan(&bucket), all);
    assert_eq!(world.pauses("b"), 0);
}

fn changes_before_and_after_several_pauses_count_once(kind: StoreKind) {
    let world = World::of(kind);
    close(world.bucket("b"));
    for round in 0..3 {
        let bucket = world.open("b");
        ingest(&bucket, lines(0..20 * (round + 1))).unwrap();
        let failing = FailingStore::new(&world.store, 7, Fails::Before);
        assert!(pause(&bucket, &failing, false).is_err());
        ingest(&bucket, lines(10..20 * (round + 1) + 5)).unwrap();
        assert_eq!(scan(&bucket), ids(0..20 * (round + 1) + 5));
        pause(&bucket, &world.store, round % 2 == 0).unwrap();
        close(bucket);
        world.resume("b", &watchdog()).unwrap();
    }
    let bucket = world.open("b");
    assert_eq!(scan(&bucket), ids(0..65));
    let changes: u32 = (0..3).map(|round| 20 * (round + 1) + 20 * (round + 1) - 5).sum();
    assert_eq!(applied(&bucket), u64::from(changes), "each line was one change");
    close(bucket);
}
