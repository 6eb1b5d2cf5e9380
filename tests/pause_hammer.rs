//! Pause, resume, cancel, ingest, new indexes and looks from many threads on several buckets: whatever wins, every
//! bucket comes to rest, holds each document once, and no lock is left.
//!
//! With `DORMOUSE_LONG` that goes on for longer.

use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse::bucket::{Bucket, BucketState, TaskState};
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::shard::StoreKind;
use dormouse::thread::{Cancel, Until};

use crate::support::buckets::{World, close, ids, ingest, is_locked, lines, once_free, pause, scan};
use crate::support::path::{CancelOnDrop, Dice};
use crate::support::shards::for_each_store;
use crate::support::{is_long, watchdog};

for_each_store! {
    buckets_that_are_hammered_come_to_rest_with_every_document,
}

const BUCKETS: [&str; 2] = ["left", "right"];
const DOCUMENTS: u32 = 40;

/// Sleeps and wakes while others use the bucket, as the dice fall.
fn sleep_and_wake(world: &World, name: &str, rounds: u64, dice: &mut Dice) {
    for _ in 0..rounds {
        let Ok(bucket) = once_free(|| world.data.open_bucket(&name.parse().unwrap(), &world.config)) else {
            // It is evicted.
            let _ = world.resume(name, &watchdog());
            continue;
        };
        let evict = dice.below(3) == 0;
        std::thread::scope(|scope| {
            scope.spawn(|| drop(ingest(&bucket, lines(0..DOCUMENTS))));
            scope.spawn(|| drop(pause(&bucket, &world.store, evict)));
            scope.spawn(|| drop(pause(&bucket, &world.store, false)));
            scope.spawn(|| look(&bucket));
            scope.spawn(|| change_indexes(&bucket));
        });
        assert!(!is_locked(&bucket));
        assert!(bucket.describe().state.is_lasting(), "{}", bucket.describe().state);
        close(bucket);
        if dice.below(2) == 0 {
            std::thread::scope(|scope| {
                scope.spawn(|| drop(world.resume(name, &watchdog())));
                scope.spawn(|| drop(world.resume(name, &watchdog())));
            });
        }
    }
}

/// Makes an index that is never finished, and drops it, or one that another thread made before.
fn change_indexes(bucket: &Bucket) {
    let unfinished = IndexDefinition::parse("unfinished=n").unwrap();
    // Each may be refused beside a pause, or cancelled: then the index may be there, or not, but nothing else.
    let _ = bucket.ensure_index(&unfinished, true);
    let _ = bucket.drop_index(unfinished.name(), &watchdog());
    assert!((1..=2).contains(&bucket.describe().indexes.len()));
}

/// Whatever is seen of a bucket has each document once.
fn look(bucket: &Bucket) {
    let evicted = bucket.describe().state.is_evicted();
    if evicted {
        return;
    }
    let mut seen: Vec<String> = Vec::new();
    let Ok(scan) = bucket.scan(&"by_n".parse().unwrap(), &KeyRange::default(), false, &watchdog()) else {
        return;
    };
    // What is evicted meanwhile is an error.
    seen.extend(scan.map_while(Result::ok).map(|entry| entry.id));
    let count = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), count);
}

/// Cancels what runs, now and then, until it is told to end.
fn cancel_some(world: &World, over: &Cancel, dice: &mut Dice) -> usize {
    let (mut cancelled, mut revision) = (0, 0);
    let until = Until::new(None, over.clone());
    while let Ok(list) = world.data.wait_for_tasks(revision, &until) {
        revision = list.revision;
        for status in list.tasks.into_iter().filter(|status| status.state == TaskState::Running) {
            assert!((0.0..1.0).contains(&status.progress));
            if dice.below(6) == 0 {
                let ended = world.data.cancel_task(status.task, &watchdog());
                // It may have come to its end before.
                cancelled += usize::from(ended.is_ok_and(|ended| ended.state != TaskState::Done));
            }
        }
    }
    cancelled
}

fn buckets_that_are_hammered_come_to_rest_with_every_document(kind: StoreKind) {
    let world = World::of(kind);
    for name in BUCKETS {
        close(world.bucket(name));
    }
    let rounds = if is_long() { 200 } else { 8 };
    let (over, cancels) = (Cancel::new(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| cancels.store(cancel_some(&world, &over, &mut Dice::new(7)), Ordering::SeqCst));
        let _over = CancelOnDrop(&over);
        std::thread::scope(|scope| {
            for (seed, name) in (1..).zip(BUCKETS) {
                let world = &world;
                scope.spawn(move || sleep_and_wake(world, name, rounds, &mut Dice::new(seed)));
            }
        });
    });
    assert!(cancels.into_inner() > 0, "nothing was cancelled");
    for name in BUCKETS {
        let state = world.data.bucket_meta(&name.parse().unwrap()).unwrap().state;
        if state != BucketState::Online {
            world.resume(name, &watchdog()).unwrap();
        }
        let bucket = world.open(name);
        let _ = bucket.drop_index(&"unfinished".parse().unwrap(), &watchdog());
        assert_eq!(bucket.describe().indexes.len(), 1);
        ingest(&bucket, lines(0..DOCUMENTS)).unwrap();
        assert_eq!(scan(&bucket), ids(0..DOCUMENTS));
        pause(&bucket, &world.store, true).unwrap();
        close(bucket);
        world.resume(name, &watchdog()).unwrap();
        assert_eq!(scan(&world.open(name)), ids(0..DOCUMENTS));
    }
    assert!(world.staged().is_empty());
}
