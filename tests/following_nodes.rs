//! A bucket follows one of a cluster whose nodes go wrong without saying so: they are cut off from the others, hang,
//! refuse for a while, leave requests without an answer, or send what makes no sense.

use std::time::{Duration, Instant};

use dormouse::bucket::{FollowCause, FollowEnd, FollowOptions, FollowProgress, IntakeError};
use dormouse::shard::StoreKind;
use dormouse::source::dcp::ConnectionError;
use dormouse::thread::Cancel;
use tempfile::TempDir;

use crate::support::consumer::{Consumer, expected, follow, write};
use crate::support::path::Dice;
use crate::support::producer::{Producer, What};
use crate::support::{eventually, watchdog};

const VBUCKETS: u16 = 8;
const TMPFAIL: u16 = 0x86;

/// A producer of some nodes, and a bucket that follows it and has everything.
fn following(folder: &TempDir, nodes: usize, seed: u64) -> (Producer, Consumer, Dice) {
    following_with(folder, nodes, seed, |_| {})
}

fn following_with(
    folder: &TempDir,
    nodes: usize,
    seed: u64,
    change: impl FnOnce(&mut FollowOptions),
) -> (Producer, Consumer, Dice) {
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, nodes, None), Dice::new(seed));
    write(&producer, &mut dice, 500);
    let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    let mut options = follow(&producer, false);
    change(&mut options);
    consumer.begin(options);
    consumer.catch_up(&producer);
    (producer, consumer, dice)
}

#[test]
fn the_vbuckets_of_a_node_that_does_not_know_it_was_failed_over_go_on_where_they_are() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 2, 1);
    // Node 0 answers on, and has the vbuckets with even numbers as far as it knows.
    producer.cut_off(0);
    for vb in (0..VBUCKETS).step_by(2) {
        producer.fail_over(vb, producer.high(vb) - 2);
        producer.move_vb(vb, Some(1));
    }
    write(&producer, &mut dice, 300);
    consumer.finish(producer);
}

#[test]
fn a_vbucket_that_moves_while_it_is_rolled_back_is_rolled_back_where_it_is_then() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 2, 2);
    producer.answer(0x54, TMPFAIL, b"");
    let before = producer.state.lock().rollbacks;
    producer.fail_over(2, producer.high(2) - 5);
    eventually("it is told to roll back", || producer.state.lock().rollbacks > before);
    producer.move_vb(2, Some(1));
    producer.behave(|behaviour| behaviour.answers.clear());
    write(&producer, &mut dice, 300);
    consumer.finish(producer);
}

#[test]
fn until_a_node_tells_the_branches_of_a_vbucket_the_others_of_its_shard_go_on() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 1, 3);
    producer.answer(0x54, TMPFAIL, b"");
    let before = producer.state.lock().rollbacks;
    producer.fail_over(2, producer.high(2) - 5);
    eventually("it is told to roll back", || producer.state.lock().rollbacks > before);
    for _ in 0..3 {
        write(&producer, &mut dice, 200);
        let others = |mut of_all: Vec<u64>| {
            of_all[2] = 0;
            of_all
        };
        eventually("the others go on", || others(consumer.reached()) == others(producer.highs()));
    }
    assert!(producer.state.lock().closes.is_empty(), "a stream was closed");
    producer.behave(|behaviour| behaviour.answers.clear());
    consumer.settle(&producer);
    let stood: Vec<Duration> = producer.state.lock().stood_still.iter().map(|(_, stood)| *stood).collect();
    println!(
        "the {} other streams of the shard stood still for {:?} at most",
        stood.len(),
        stood.iter().max()
    );
    assert_eq!(stood.len(), 3);
    assert!(stood.iter().all(|stood| *stood < Duration::from_secs(20)), "{stood:?}");
    consumer.finish(producer);
}

#[test]
fn bytes_that_make_no_sense_again_and_again_end_following_with_what_is_wrong() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(4));
    write(&producer, &mut dice, 300);
    producer.change(3, "broken", What::Malformed);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    let ended = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {});
    let is_told = matches!(
        &ended,
        Err(IntakeError::Cluster { cause: FollowCause::Malformed { times: 5, error: ConnectionError::Message { vb, .. }, .. }, .. }) if vb.0 == 3
    );
    assert!(is_told, "{ended:?}");
    assert!(producer.state.lock().connections.len() < 30);
    consumer.close();
    producer.check();
}

#[test]
fn a_connection_that_is_cut_while_following_begins_is_opened_again() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(8));
    write(&producer, &mut dice, 100);
    producer.behave(|behaviour| behaviour.cut_after = Some(0));
    let consumer = Consumer::open(folder.path(), StoreKind::Memdb, VBUCKETS);
    let followed = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {});
    assert!(followed.is_ok(), "{followed:?}");
    assert_eq!(consumer.reached(), producer.highs());
    consumer.close();
    producer.check();
}

#[test]
fn a_node_that_refuses_while_it_starts_is_followed_once_it_does_not() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 1, 5);
    producer.answer(0x89, 0x24, b"");
    producer.behave(|behaviour| behaviour.cut_after = Some(0));
    write(&producer, &mut dice, 100);
    let before = producer.state.lock().connections.len();
    eventually("it has asked many times", || producer.state.lock().connections.len() > before + 14);
    producer.behave(|behaviour| behaviour.answers.clear());
    consumer.finish(producer);
}

#[test]
fn a_node_that_does_nothing_but_refuse_for_too_long_ends_following() {
    let folder = TempDir::new().unwrap();
    let patience = Duration::from_millis(300);
    let (producer, mut consumer, mut dice) =
        following_with(&folder, 1, 6, |options| options.cluster.connection.refusal_timeout = patience);
    let began = Instant::now();
    producer.answer(0x89, 0x24, b"");
    producer.behave(|behaviour| behaviour.cut_after = Some(0));
    write(&producer, &mut dice, 100);
    let ended = consumer.join();
    assert!(matches!(ended, Err(IntakeError::Cluster { cause: FollowCause::Node(_), .. })), "{ended:?}");
    assert!(began.elapsed() >= patience);
    consumer.close();
    producer.check();
}

#[test]
fn a_connection_on_which_a_request_is_not_answered_is_opened_again_though_noops_come() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following_with(&folder, 1, 7, |options| {
        options.cluster.connection.noop_interval = Duration::from_secs(1);
    });
    producer.behave(|behaviour| drop(behaviour.answers.insert(0x53, None)));
    let (before, ends) = (producer.state.lock().connections.len(), 4);
    producer.end_stream(2, ends);
    write(&producer, &mut dice, 100);
    eventually("there is another connection", || producer.state.lock().connections.len() > before);
    producer.behave(|behaviour| behaviour.answers.clear());
    consumer.finish(producer);
}

#[test]
fn a_node_that_hangs_does_not_count_as_one_where_nothing_happens() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 2, None), Dice::new(8));
    write(&producer, &mut dice, 300);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    let options = FollowOptions { idle_after: Some(Duration::from_millis(300)), ..follow(&producer, false) };
    let mut looks = 0;
    let mut on_progress = |at: FollowProgress| {
        looks += u32::from(looks > 0 || at.lag == Some(0));
        match looks {
            1 => {
                producer.behave(|behaviour| behaviour.hung_nodes = [1].into());
                producer.put(1, "late", "{\"n\":1}");
            }
            // More than a second later.
            20 => producer.behave(|behaviour| behaviour.hung_nodes.clear()),
            _ => {}
        }
    };
    let ended = consumer.bucket.follow(&options, &watchdog(), &mut on_progress).unwrap();
    assert_eq!(ended.end, FollowEnd::Idle);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

#[test]
fn a_change_that_a_node_has_told_of_is_waited_for_before_a_bucket_counts_as_idle() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(9));
    write(&producer, &mut dice, 300);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    let options = FollowOptions { idle_after: Some(Duration::from_millis(300)), ..follow(&producer, false) };
    // Each time what comes is held up for longer than the node takes to tell of it.
    let (mut rounds, mut looks) = (0, 0);
    let mut on_progress = |at: FollowProgress| match looks {
        0 if rounds < 3 && at.lag == Some(0) => {
            producer.behave(|behaviour| behaviour.stalled = true);
            producer.put(5, &format!("late-{rounds}"), "{\"n\":1}");
            (rounds, looks) = (rounds + 1, 1);
        }
        0 => {}
        20 => {
            producer.behave(|behaviour| behaviour.stalled = false);
            looks = 0;
        }
        _ => looks += 1,
    };
    let ended = consumer.bucket.follow(&options, &watchdog(), &mut on_progress).unwrap();
    assert_eq!((ended.end, rounds), (FollowEnd::Idle, 3));
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

/// Puts documents that take their time to come.
fn put_long(producer: &Producer, count: usize) {
    let long = "x".repeat(20_000);
    for number in 0..count {
        producer.put(0, &format!("d{number}"), &format!("{{\"n\":2,\"s\":\"{long}\"}}"));
    }
}

/// The node of two vbuckets says that the first one is at seqno 5, and sends slowly what there is.
fn be_slow_from_five(producer: &Producer) {
    producer.answer(0x48, 0, &[&[0; 9][..], &[5], &[0, 1], &[0; 8]].concat());
    producer.behave(|behaviour| behaviour.bytes_a_second = Some(100_000));
}

#[test]
fn what_was_there_when_following_began_is_there_when_it_has_caught_up_also_where_it_was_changed_since() {
    let (folder, producer) = (TempDir::new().unwrap(), Producer::start(2));
    producer.put(0, "k", "{\"n\":1}");
    put_long(&producer, 8);
    // It comes last, in one snapshot with what its node had when it was asked how far it is.
    producer.put(0, "k", "{\"n\":3}");
    be_slow_from_five(&producer);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 2);
    let ended = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {}).unwrap();
    assert_eq!(ended.end, FollowEnd::CaughtUp);
    assert!(consumer.indexed().contains(&(3, "k".to_owned())), "{:?}", consumer.indexed());
    consumer.close();
    producer.check();
}

#[test]
fn a_connection_whose_node_refuses_to_close_a_stream_is_opened_again_until_it_does() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 1, 10);
    producer.answer(0x52, TMPFAIL, b"");
    let before = producer.state.lock().connections.len();
    producer.fail_over(2, producer.high(2) - 5);
    write(&producer, &mut dice, 200);
    eventually("it is connected anew", || producer.state.lock().connections.len() > before + 1);
    producer.behave(|behaviour| behaviour.answers.clear());
    consumer.finish(producer);
}

#[test]
fn catching_up_ends_while_documents_keep_changing() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(11));
    write(&producer, &mut dice, 500);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    let stop = Cancel::new();
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_cancelled() {
                write(&producer, &mut dice, 5);
            }
        });
        let ended = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {});
        stop.cancel();
        ended
    });
    assert_eq!(ended.unwrap().end, FollowEnd::CaughtUp);
    consumer.close();
    producer.check();
}

#[test]
fn what_had_come_within_a_snapshot_and_was_lost_holds_up_no_end() {
    let (folder, producer) = (TempDir::new().unwrap(), Producer::start(2));
    put_long(&producer, 10);
    be_slow_from_five(&producer);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 2);
    let mut was_lost = false;
    let mut lose = |_| {
        if !was_lost && (5..9).contains(&consumer.reached()[0]) {
            was_lost = true;
            producer.fail_over(0, 0);
            producer.behave(|behaviour| {
                behaviour.answers.clear();
                behaviour.be_quick();
            });
        }
    };
    let ended = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut lose).unwrap();
    assert_eq!((ended.end, was_lost), (FollowEnd::CaughtUp, true));
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}
