//! A bucket follows one of a cluster while everything goes wrong: connections are cut, vbuckets roll back and move, the
//! process is killed, and shards are locked. What the index holds in the end is what the producer has.
//!
//! The process that is killed is this binary once more, with nothing but the test that is the follower.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse::bucket::{BucketConfig, BucketSpec, FollowOptions, IntakeError, PauseOptions};
use dormouse::objstore::FileStore;
use dormouse::shard::{ShardSetConfig, StoreKind, lock_all};
use dormouse::thread::{Cancel, Until, fin};
use tempfile::TempDir;

use crate::support::buckets::is_locked;
use crate::support::consumer::{Consumer, config, expected, follow, write};
use crate::support::path::Dice;
use crate::support::producer::{Behaviour, Producer, cluster_at};
use crate::support::shards::for_each_store;
use crate::support::{eventually, forever, is_long, watchdog};

for_each_store! {
    many_changes_with_cuts_roll_backs_and_moves_end_in_the_state_of_the_producer,
    a_follower_that_is_killed_again_and_again_loses_and_repeats_nothing,
}

const VBUCKETS: u16 = 16;
const NODES: usize = 3;
/// Address of a producer, store and folder, for the follower.
const FOLLOWER: &str = "DORMOUSE_TEST_FOLLOWER";

/// One fault, as the dice fall.
fn disturb(producer: &Producer, dice: &mut Dice) {
    let vb = dice.choose(VBUCKETS);
    match dice.below(9) {
        0 | 1 => {
            let after = usize::from(dice.choose(40_000));
            producer.behave(|behaviour| behaviour.cut_after = Some(after));
        }
        2 => producer.fail_over(vb, producer.high(vb).saturating_sub(dice.below(40))),
        3 | 4 => producer.move_vb(vb, Some(usize::from(dice.choose(3)))),
        5 => producer.behave(|behaviour| behaviour.compresses = !behaviour.compresses),
        6 => producer.behave(|behaviour| behaviour.pieces = Some(1 + usize::from(dice.choose(3000)))),
        7 => producer.behave(|behaviour| behaviour.bytes_a_second = Some(100_000)),
        _ => producer.behave(Behaviour::be_quick),
    }
}

fn many_changes_with_cuts_roll_backs_and_moves_end_in_the_state_of_the_producer(store: StoreKind) {
    let (faults, changes) = if is_long() { (500, 2000) } else { (60, 300) };
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, NODES, None), Dice::new(0xfa17));
    let mut consumer = Consumer::open(folder.path(), store, VBUCKETS);
    consumer.begin(FollowOptions { connections: 2, ..follow(&producer, false) });
    for _ in 0..faults {
        write(&producer, &mut dice, changes);
        disturb(&producer, &mut dice);
        if dice.below(4) == 0 {
            let shard = &consumer.bucket.shards()[usize::from(dice.choose(2))];
            shard.keep_point(&watchdog()).unwrap();
        }
        if dice.below(3) == 0 {
            // Otherwise faults would meet no more than the first backfill.
            consumer.catch_up(&producer);
        }
    }
    producer.behave(|behaviour| {
        behaviour.cut_after = None;
        behaviour.be_quick();
    });
    consumer.settle(&producer);
    assert!(matches!(consumer.end(), Err(IntakeError::Stopped { .. })));
    consumer.close();
    let (connections, requests) = {
        let state = producer.state.lock();
        (state.connections.len(), state.requests.len())
    };
    println!("{connections} connections, {requests} requests for streams");
    assert!(connections > 2 * NODES && requests > 2 * usize::from(VBUCKETS));
    producer.check();
}

/// Recovery points come quickly, and some are kept.
fn quick() -> BucketConfig {
    let shards = ShardSetConfig { commit_interval: Duration::from_millis(3), ..config().shards };
    BucketConfig { shards, ..config() }
}

fn spec(store: StoreKind) -> BucketSpec {
    BucketSpec { store, vbuckets: VBUCKETS, ..Consumer::spec() }
}

#[test]
fn the_follower_that_is_killed_follows() {
    if let Ok(order) = std::env::var(FOLLOWER) {
        let (address, rest) = order.split_once(',').unwrap();
        let (kind, folder) = rest.split_once(',').unwrap();
        let kind = serde_json::from_str(&format!("{kind:?}")).unwrap();
        let address: SocketAddr = address.parse().unwrap();
        let consumer = Consumer::open_with(Path::new(folder), spec(kind), &quick());
        let cluster = cluster_at(address, VBUCKETS);
        let options = FollowOptions { cluster, connections: 1, once: false, idle_after: None };
        consumer.bucket.follow(&options, &forever(), &mut |_| {}).unwrap();
    }
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(9));
    write(&producer, &mut dice, 100);
    let consumer = Consumer::open_with(folder.path(), spec(StoreKind::Lsm), &quick());
    consumer.once(&producer);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

fn a_follower_that_is_killed_again_and_again_loses_and_repeats_nothing(store: StoreKind) {
    let rounds = if is_long() { 60 } else { 5 };
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, NODES, None), Dice::new(0x9119));
    Consumer::open_with(folder.path(), spec(store), &quick()).close();
    let (_holder, never) = fin();
    for _ in 0..rounds {
        let asked = producer.state.lock().requests.len();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["following_faults::the_follower_that_is_killed_follows", "--exact"])
            .env(FOLLOWER, format!("{},{store},{}", producer.address, folder.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        write(&producer, &mut dice, 2000);
        eventually("it follows", || producer.state.lock().requests.len() > asked);
        disturb(&producer, &mut dice);
        write(&producer, &mut dice, 500);
        let _ = never.wait(&Until::within(Duration::from_micros(dice.below(60_000))));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    producer.behave(|behaviour| {
        behaviour.cut_after = None;
        behaviour.be_quick();
    });
    let consumer = Consumer::open_with(folder.path(), spec(store), &quick());
    consumer.once(&producer);
    consumer.settle(&producer);
    consumer.close();
    producer.check();
}

/// A producer, and a bucket that follows it with little room.
fn with_little_room(folder: &Path) -> (Producer, Consumer) {
    let producer = Producer::start(8);
    let config = BucketConfig { budget_bytes: 1 << 20, ..config() };
    let mut consumer = Consumer::open_with(folder, Consumer::spec(), &config);
    let mut options = follow(&producer, false);
    options.cluster.connection.window_bytes = 500_000;
    consumer.begin(options);
    eventually("it follows", || producer.state.lock().requests.len() == 8);
    (producer, consumer)
}

/// Writes far more than there is room for while nothing is taken, and fails where more comes than there is room for.
fn fill_the_window(producer: &Producer) {
    let before = producer.seen();
    let value = format!("{{\"n\":1,\"a\":\"{}\"}}", "x".repeat(2000));
    for number in 0..6000_u16 {
        producer.put(number % 8, &format!("d{number}"), &value);
    }
    eventually("the window is full", || producer.seen().is_full);
    producer.noop();
    eventually("the noop is answered", || producer.seen().noops_answered > before.noops_answered);
    // The window, the budget, and what a batch may have more than it holds: of 12 MB that there are.
    let taken = producer.seen().sent - before.sent;
    assert!(taken < 3_000_000, "{taken} bytes were taken");
}

#[test]
fn memory_is_bounded_while_the_shards_are_locked_and_it_goes_on_after_the_unlock() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer) = with_little_room(folder.path());
    let locks = lock_all(consumer.bucket.shards(), "a test", &watchdog()).unwrap();
    fill_the_window(&producer);
    drop(locks);
    consumer.finish(producer);
}

#[test]
fn memory_is_bounded_while_a_pause_holds_the_shards_and_it_goes_on_where_the_pause_comes_to_nothing() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer) = with_little_room(&folder.path().join("data"));
    let mut dice = Dice::new(13);
    write(&producer, &mut dice, 100);
    consumer.catch_up(&producer);
    let archive = FileStore::open(&folder.path().join("archive")).unwrap();
    let cancel = Cancel::new();
    let until = Until::new(None, cancel.clone());
    let (mut was_locked, mut has_more) = (false, false);
    let paused = consumer.bucket.pause(&archive, PauseOptions::default(), &until, &mut |_| {
        if is_locked(&consumer.bucket) {
            if !was_locked {
                fill_the_window(&producer);
            }
            was_locked = true;
            cancel.cancel();
        } else if !has_more {
            // What comes while files are copied without a lock is left for the cut.
            write(&producer, &mut dice, 100);
            consumer.catch_up(&producer);
            has_more = true;
        }
    });
    assert!(paused.is_err() && was_locked && !is_locked(&consumer.bucket), "{paused:?}");
    consumer.finish(producer);
}

#[test]
fn a_pause_ends_what_follows_and_keeps_everything_up_to_its_cut() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(12));
    write(&producer, &mut dice, 1000);
    let mut consumer = Consumer::open(&folder.path().join("data"), StoreKind::Lsm, 8);
    consumer.begin(follow(&producer, false));
    consumer.catch_up(&producer);
    let archive = FileStore::open(&folder.path().join("archive")).unwrap();
    let before = expected(&producer);
    consumer.bucket.pause(&archive, PauseOptions::default(), &watchdog(), &mut |_| {}).unwrap();
    // Also where nothing changes any more.
    let ended = consumer.join();
    assert!(matches!(ended, Err(IntakeError::PutToSleep { .. })), "{ended:?}");
    assert_eq!(consumer.indexed(), before);
    let refused = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {});
    assert!(matches!(refused, Err(IntakeError::Paused { .. })), "{refused:?}");
    consumer.close();
    producer.check();
}
