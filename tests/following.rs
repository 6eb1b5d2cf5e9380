//! A bucket follows one of a cluster: what its index holds is what the producer has, whatever happens on the way.

use std::time::Duration;

use dormouse::bucket::{
    DataDir, FollowCause, FollowEnd, FollowOptions, FollowProgress, IndexError, IndexState, IngestOptions,
    IntakeError, ResumeOptions,
};
use dormouse::event::VbId;
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::FileStore;
use dormouse::shard::StoreKind;
use dormouse::source::ReplayFormat;
use tempfile::TempDir;

use crate::support::buckets::{once_free, pause};
use crate::support::consumer::{Consumer, config, expected, follow, write};
use crate::support::path::Dice;
use crate::support::producer::Producer;
use crate::support::shards::for_each_store;
use crate::support::{eventually, watchdog};

for_each_store! {
    it_stops_at_the_seqnos_of_when_it_began,
    a_bucket_that_is_opened_again_goes_on_where_it_was,
    a_vbucket_that_fails_over_takes_its_shard_back_while_the_other_goes_on,
    a_new_index_is_built_by_a_second_stream_while_the_first_goes_on,
    a_bucket_that_was_rolled_back_sleeps_and_wakes_up_where_it_is,
}

fn it_stops_at_the_seqnos_of_when_it_began(store: StoreKind) {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(1));
    write(&producer, &mut dice, 3000);
    let consumer = Consumer::open(folder.path(), store, 8);
    let report = consumer.once(&producer);
    assert_eq!((report.end, report.roll_backs), (FollowEnd::CaughtUp, 0));
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

fn a_bucket_that_is_opened_again_goes_on_where_it_was(store: StoreKind) {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(2));
    for round in 0..4 {
        write(&producer, &mut dice, 500);
        let consumer = Consumer::open(folder.path(), store, 8);
        let before = consumer.reached();
        let asked = producer.state.lock().requests.len();
        consumer.once(&producer);
        let starts: Vec<u64> =
            producer.state.lock().requests[asked..].iter().map(|(_, start)| *start).collect();
        assert_eq!(starts, before, "round {round}");
        assert_eq!(consumer.indexed(), expected(&producer), "round {round}");
        consumer.close();
    }
    producer.check();
}

fn a_vbucket_that_fails_over_takes_its_shard_back_while_the_other_goes_on(store: StoreKind) {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(3));
    write(&producer, &mut dice, 2000);
    let mut consumer = Consumer::open(folder.path(), store, 8);
    consumer.begin(follow(&producer, false));
    consumer.catch_up(&producer);
    let shard = consumer.bucket.shards()[0].clone();
    let kept = shard.keep_point(&watchdog()).unwrap();
    assert!(kept.is_some());
    let at_point = producer.highs();
    write(&producer, &mut dice, 2000);
    consumer.catch_up(&producer);
    let asked = producer.state.lock().requests.len();
    // Vbucket 2 is of shard 0, and goes back to a seqno after the point.
    producer.fail_over(2, at_point[2] + 3);
    write(&producer, &mut dice, 500);
    consumer.catch_up(&producer);
    assert_eq!(consumer.indexed(), expected(&producer));
    let starts = producer.state.lock().requests[asked..].to_vec();
    for vb in [0, 2, 4, 6] {
        let again = starts.iter().rfind(|(asked, _)| asked.0 == vb);
        assert_eq!(again.map(|(_, start)| *start), Some(at_point[usize::from(vb)]), "vbucket {vb}");
    }
    assert!(starts.iter().all(|(vb, _)| vb.0 % 2 == 0), "the other shard was interrupted: {starts:?}");
    consumer.stop(producer);
}

fn a_new_index_is_built_by_a_second_stream_while_the_first_goes_on(store: StoreKind) {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(8));
    write(&producer, &mut dice, 3000);
    let mut consumer = Consumer::open(folder.path(), store, 8);
    consumer.once(&producer);
    let second = IndexDefinition::parse("second=n").unwrap();
    consumer.bucket.ensure_index(&second, false).unwrap();
    let refused = consumer.bucket.scan(second.name(), &KeyRange::default(), false, &watchdog());
    assert!(matches!(refused, Err(IndexError::Building { covered: 0, .. })));
    producer.behave(|behaviour| behaviour.cut_after = Some(20_000));
    consumer.begin(follow(&producer, false));
    for _ in 0..5 {
        write(&producer, &mut dice, 200);
        producer.fail_over(dice.choose(8), 10);
        eventually("the first one goes on", || consumer.reached() == producer.highs());
    }
    let state = || consumer.bucket.describe().indexes[1].state;
    eventually("it is built", || state() == IndexState::Ready);
    write(&producer, &mut dice, 500);
    consumer.catch_up(&producer);
    assert!(matches!(consumer.end(), Err(IntakeError::Stopped { .. })));
    consumer.once(&producer);
    assert_eq!(consumer.indexed(), expected(&producer));
    assert_eq!(consumer.indexed_by(&second), expected(&producer));
    consumer.close();
    producer.check();
}

fn a_bucket_that_was_rolled_back_sleeps_and_wakes_up_where_it_is(store: StoreKind) {
    let (folder, archive) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let archive = FileStore::open(archive.path()).unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(9));
    write(&producer, &mut dice, 500);
    let consumer = Consumer::open(folder.path(), store, 8);
    consumer.once(&producer);
    (0..8).for_each(|vb| producer.fail_over(vb, 20));
    assert_eq!(consumer.once(&producer).roll_backs, 2);
    pause(&consumer.bucket, &archive, false).unwrap();
    consumer.close();
    let data = DataDir::open(folder.path()).unwrap();
    let resume = || {
        data.resume(
            &"travel".parse().unwrap(),
            &archive,
            ResumeOptions::default(),
            &config(),
            &watchdog(),
            &mut |_| {},
        )
    };
    assert_eq!(once_free(resume).unwrap().downloaded_files, 0);
    drop(data);
    write(&producer, &mut dice, 300);
    let consumer = Consumer::open(folder.path(), store, 8);
    consumer.once(&producer);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

#[test]
fn without_a_recovery_point_that_fits_a_shard_goes_back_to_zero() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(4));
    write(&producer, &mut dice, 2000);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    consumer.once(&producer);
    for vb in 0..8 {
        producer.fail_over(vb, 20);
    }
    write(&producer, &mut dice, 300);
    let report = consumer.once(&producer);
    assert_eq!(report.roll_backs, 2);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

#[test]
fn streams_that_end_are_asked_for_again_from_where_the_shards_are() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(5));
    let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    consumer.begin(follow(&producer, false));
    for _ in 0..10 {
        write(&producer, &mut dice, 300);
        producer.behave(|behaviour| behaviour.cut_after = Some(usize::from(dice.choose(5000))));
        write(&producer, &mut dice, 300);
        eventually("it is cut", || producer.state.lock().behaviour.cut_after.is_none());
        consumer.catch_up(&producer);
    }
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.stop(producer);
}

#[test]
fn a_stream_that_ends_for_a_reason_that_may_pass_is_asked_for_again() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(10));
    let mut consumer = Consumer::open(folder.path(), StoreKind::Memdb, 8);
    consumer.begin(follow(&producer, false));
    consumer.catch_up(&producer);
    // Finished, closed, moved, disconnected, too slow, a failed backfill, rolled back, and one that nobody knows.
    for reason in [0, 1, 2, 3, 4, 5, 6, 99] {
        let asked = producer.state.lock().requests.len();
        for vb in [1, 4] {
            producer.end_stream(vb, reason);
        }
        write(&producer, &mut dice, 100);
        eventually("they are asked for again", || producer.state.lock().requests.len() >= asked + 2);
        consumer.catch_up(&producer);
    }
    assert_eq!(consumer.indexed(), expected(&producer));
    producer.end_stream(4, 8);
    let ended = consumer.join();
    assert!(
        matches!(
            &ended,
            Err(IntakeError::Cluster { cause: FollowCause::StreamLost { vb: VbId(4), .. }, .. })
        ),
        "{ended:?}"
    );
    consumer.close();
    producer.check();
}

#[test]
fn progress_tells_how_far_each_vbucket_is_behind() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(11));
    write(&producer, &mut dice, 800);
    producer.behave(|behaviour| behaviour.stalled_from_zero = [3].into());
    let consumer = Consumer::open(folder.path(), StoreKind::Memdb, 8);
    let behind = producer.state.lock().vbs[3].high_of(0);
    let mut seen = Vec::new();
    let mut on_progress = |at: FollowProgress| {
        let others = at.lags.iter().filter(|(vb, _)| vb.0 != 3).map(|(_, lag)| *lag);
        if at.lags.len() == 8 && others.sum::<u64>() == 0 && at.lags[&VbId(3)] == behind {
            // Once the others are there, the one that stands still may go on.
            producer.behave(|behaviour| behaviour.stalled_from_zero.clear());
        }
        seen.push(at);
    };
    let followed = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut on_progress);
    assert_eq!(followed.unwrap().end, FollowEnd::CaughtUp);
    let at_stall = seen.iter().find(|at| at.lag == Some(behind)).unwrap();
    assert_eq!((at_stall.live_streams, at_stall.wanted_streams, at_stall.connections), (8, 8, 1));
    assert!(at_stall.documents > 0 && seen.last().unwrap().documents > at_stall.documents);
    consumer.close();
    producer.check();
}

#[test]
fn it_ends_once_nothing_came_for_long_enough() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(6));
    write(&producer, &mut dice, 300);
    let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    let idle_after = Some(Duration::from_millis(300));
    consumer.begin(FollowOptions { idle_after, ..follow(&producer, false) });
    assert_eq!(consumer.join().unwrap().end, FollowEnd::Idle);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

#[test]
fn files_are_refused_by_a_bucket_that_follows_and_the_other_way_round() {
    let folder = TempDir::new().unwrap();
    let producer = Producer::start(8);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: true };
    let refused = consumer.bucket.ingest(Vec::new(), &options, &watchdog(), &mut |_| {});
    assert!(matches!(refused, Err(IntakeError::SourceKind { .. })), "{refused:?}");
    consumer.close();
    let other = TempDir::new().unwrap();
    let spec =
        dormouse::bucket::BucketSpec { source: dormouse::bucket::SourceKind::Files, ..Consumer::spec() };
    let consumer = Consumer::open_with(other.path(), spec, &config());
    let refused = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {});
    assert!(matches!(refused, Err(IntakeError::SourceKind { .. })), "{refused:?}");
    consumer.close();
    producer.check();
}
