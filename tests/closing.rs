//! The end of a bucket that several threads of a host share, and panics of the host's callbacks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use dormouse::bucket::{Bucket, BucketState, CloseError, IndexError, IntakeError, PauseError, PauseOptions};
use dormouse::event::{Seqno, VbId};
use dormouse::index::{KeyRange, ScanQuery};
use dormouse::shard::StoreKind;
use dormouse::thread::{Until, fin};
use tempfile::TempDir;

use crate::support::buckets::{
    World, applied, by_n, close, fed, ids, ingest, input, lines, named, options, pause, scan,
};
use crate::support::consumer::{Consumer, follow, write};
use crate::support::path::Dice;
use crate::support::producer::Producer;
use crate::support::{eventually, push, watchdog};

macro_rules! assert_closed {
    ($call:expr, $error:path) => {{
        let refused = $call.err().unwrap();
        assert!(matches!(refused, $error(_)), "{refused}");
        assert!(refused.to_string().ends_with("it was closed; open it again"), "{refused}");
    }};
}

#[test]
fn every_call_on_a_bucket_that_was_closed_is_refused() {
    let world = World::new();
    let bucket = world.filled("b", 0..10);
    bucket.close(&watchdog()).unwrap();
    let (name, until) = (by_n().name().clone(), watchdog());
    assert_closed!(ingest(&bucket, lines(0..10)), IntakeError::Closed);
    assert_closed!(pause(&bucket, &world.store, true), PauseError::Closed);
    assert_closed!(bucket.plan_pause(&world.store, PauseOptions::default(), &until), PauseError::Closed);
    assert_closed!(bucket.ensure_index(&by_n(), false), IndexError::Closed);
    assert_closed!(bucket.ensure_indexes(&[by_n()], false), IndexError::Closed);
    assert_closed!(bucket.drop_index(&name, &until), IndexError::Closed);
    assert_closed!(bucket.scan(&name, &KeyRange::default(), false, &until), IndexError::Closed);
    assert_closed!(bucket.query(&name, &ScanQuery::default(), &until), IndexError::Closed);
    // What only looks, and another close, are taken.
    assert_eq!((bucket.status().indexes[0].changes, bucket.name()), (10, named("b")));
    bucket.close(&watchdog()).unwrap();
    drop(bucket);
    assert_eq!(scan(&world.open("b")), ids(0..10));
}

#[test]
fn following_into_a_bucket_that_was_closed_is_refused() {
    let (folder, producer) = (TempDir::new().unwrap(), Producer::start(8));
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    consumer.bucket.close(&watchdog()).unwrap();
    let followed = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {});
    assert_closed!(followed, IntakeError::Closed);
    producer.check();
}

#[test]
fn a_close_ends_an_ingest_on_another_thread_and_keeps_what_came() {
    let world = World::new();
    let bucket = Arc::new(world.bucket("b"));
    let (sender, input) = fed();
    let ended = std::thread::scope(|scope| {
        let shared = Arc::clone(&bucket);
        let ingest = scope.spawn(move || shared.ingest(vec![input], &options(), &watchdog(), &mut |_| {}));
        push(&sender, lines(0..20));
        eventually("it is applied", || applied(&bucket) == 20);
        bucket.close(&watchdog()).unwrap();
        ingest.join().unwrap()
    });
    assert!(matches!(ended, Err(IntakeError::Stopped { kept: 20, .. })), "{ended:?}");
    drop((sender, bucket));
    assert_eq!(scan(&world.open("b")), ids(0..20));
}

#[test]
fn a_close_ends_a_scan_that_waits_to_begin() {
    let world = World::new();
    let bucket = world.bucket("b");
    let never = ScanQuery { at_least: vec![(VbId(0), Seqno(1))], ..ScanQuery::default() };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bucket.query(by_n().name(), &never, &watchdog()).err().unwrap());
        eventually("the scan waits", || bucket.open_scans() == 1);
        bucket.close(&watchdog()).unwrap();
        let ended = waiting.join().unwrap();
        assert!(ended.to_string().contains("it was cancelled"), "{ended}");
    });
}

#[test]
fn a_close_leads_a_pause_on_another_thread_back_to_online() {
    let world = World::new();
    let bucket = world.filled("b", 0..50);
    let paused = std::thread::scope(|scope| {
        let mut closing = None;
        bucket.pause(&world.store, PauseOptions::default(), &watchdog(), &mut |_| {
            // The close cancels the pause and waits for it; this callback goes on once it is known to have begun.
            closing.get_or_insert_with(|| {
                let closing = scope.spawn(|| bucket.close(&watchdog()).unwrap());
                eventually("it is closed", || is_closed(&bucket));
                closing
            });
        })
    });
    assert!(paused.is_err(), "{paused:?}");
    assert_eq!(bucket.describe().state, BucketState::Online);
    drop(bucket);
    assert_eq!(scan(&world.open("b")), ids(0..50));
}

#[test]
fn closes_at_the_same_time_both_wait_for_the_calls_that_are_under_way() {
    let world = World::new();
    let bucket = world.bucket("b");
    let (go_on, told) = fin();
    std::thread::scope(|scope| {
        let ingest = scope.spawn(|| {
            let mut wait = |_| told.wait(&watchdog()).unwrap();
            bucket.ingest(vec![input(lines(0..10))], &options(), &watchdog(), &mut wait)
        });
        eventually("it is applied", || applied(&bucket) == 10);
        let first = scope.spawn(|| bucket.close(&watchdog()));
        eventually("it is being closed", || is_closed(&bucket));
        let second = bucket.close(&Until::within(Duration::from_millis(50)));
        assert!(matches!(&second, Err(CloseError::Busy { calls }) if calls == &["an ingest"]), "{second:?}");
        drop(go_on);
        let _ = ingest.join().unwrap();
        first.join().unwrap().unwrap();
    });
}

#[test]
fn a_scan_that_is_open_goes_on_after_a_close() {
    let world = World::new();
    let bucket = world.filled("b", 0..5000);
    let mut scan = bucket.scan(by_n().name(), &KeyRange::default(), false, &watchdog()).unwrap();
    assert_eq!(scan.next().unwrap().unwrap().id, "d00000");
    close(bucket);
    let rest: Vec<String> = scan.map(|entry| entry.unwrap().id).collect();
    assert_eq!(rest, ids(1..5000));
}

fn is_closed(bucket: &Bucket) -> bool {
    let scan = bucket.scan(by_n().name(), &KeyRange::default(), false, &watchdog());
    matches!(scan, Err(IndexError::Closed(_)))
}

#[test]
fn a_close_within_a_callback_ends_at_its_deadline_and_names_the_call() {
    let world = World::new();
    let bucket = world.bucket("b");
    let mut told = String::new();
    let ended = bucket.ingest(vec![input(lines(0..10))], &options(), &watchdog(), &mut |_| {
        let soon = Until::within(Duration::from_millis(20));
        if let Err(busy @ CloseError::Busy { .. }) = bucket.close(&soon) {
            told = busy.to_string();
        }
    });
    assert_eq!(
        told,
        "cannot close the bucket: these calls are still under way: an ingest; close again to wait longer"
    );
    drop(ended);
    close(bucket);
}

#[test]
fn a_panic_of_the_callback_of_an_ingest_leaves_no_thread_and_keeps_what_came() {
    let world = World::new();
    let bucket = world.bucket("b");
    let (sender, input) = fed();
    push(&sender, lines(0..20));
    let ended = catch_unwind(AssertUnwindSafe(|| {
        bucket.ingest(vec![input], &options(), &watchdog(), &mut |_| {
            if applied(&bucket) == 20 {
                std::panic::resume_unwind(Box::new("the host's callback fails"));
            }
        })
    }));
    assert_eq!(ended.unwrap_err().downcast_ref::<&str>(), Some(&"the host's callback fails"));
    // Nothing of it holds the bucket: the next ingest begins, and so does the next opening.
    ingest(&bucket, lines(20..30)).unwrap();
    close(bucket);
    assert_eq!(scan(&world.data.open_bucket(&named("b"), &world.config).unwrap()), ids(0..30));
}

#[test]
fn a_panic_of_the_callback_of_following_leaves_no_thread() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(1));
    write(&producer, &mut dice, 100);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        consumer.bucket.follow(&follow(&producer, false), &watchdog(), &mut |_| {
            std::panic::resume_unwind(Box::new("the host's callback fails"));
        })
    }));
    assert_eq!(ended.unwrap_err().downcast_ref::<&str>(), Some(&"the host's callback fails"));
    consumer.once(&producer);
    consumer.close();
    producer.check();
}
