//! New indexes over a bucket that has data: they are built while the others go on, are handed over vbucket by vbucket,
//! and hold what the producer has, whatever happens meanwhile.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

use dormouse::bucket::{BucketConfig, IndexError, IndexState, IntakeError};
use dormouse::index::{IndexDefinition, KEY_BYTES_MAX, KeyRange};
use dormouse::shard::StoreKind;
use dormouse::thread::{Cancel, Stopped, Until};
use slog::{Drain, Logger, Never, OwnedKVList, Record, o};
use tempfile::TempDir;

use crate::support::consumer::{Consumer, by_n, config, expected, follow, write};
use crate::support::path::Dice;
use crate::support::producer::{Producer, What};
use crate::support::shards::for_each_store;
use crate::support::{eventually, watchdog};

for_each_store! {
    each_vbucket_is_handed_over_at_its_own_time_while_documents_change,
    a_roll_back_to_before_an_index_was_made_brings_it_up_again,
    a_first_index_is_unfinished_until_what_the_cluster_had_is_there,
}

const VBUCKETS: u16 = 8;

fn second() -> IndexDefinition {
    IndexDefinition::parse("second=n").unwrap()
}

/// A bucket that has what a producer had, and the dice that wrote it.
fn full(folder: &TempDir, store: StoreKind, seed: u64) -> (Producer, Consumer, Dice) {
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(seed));
    write(&producer, &mut dice, 2000);
    let consumer = Consumer::open(folder.path(), store, VBUCKETS);
    consumer.once(&producer);
    (producer, consumer, dice)
}

fn state(consumer: &Consumer, index: &IndexDefinition) -> IndexState {
    let indexes = consumer.bucket.describe().indexes;
    indexes.iter().find(|entry| entry.definition.name() == index.name()).unwrap().state
}

/// Waits until an index is ready, while documents change.
fn wait_until_ready(consumer: &Consumer, producer: &Producer, dice: &mut Dice, index: &IndexDefinition) {
    eventually("it is built", || {
        write(producer, dice, 2);
        state(consumer, index) == IndexState::Ready
    });
}

/// Ends what follows, and checks what the indexes hold.
fn finish(mut consumer: Consumer, producer: Producer, indexes: &[IndexDefinition]) {
    eventually("the first index is there", || consumer.reached() == producer.highs());
    assert!(matches!(consumer.end(), Err(IntakeError::Stopped { .. })));
    consumer.once(&producer);
    for index in indexes {
        assert_eq!(consumer.indexed_by(index), expected(&producer), "{index}");
    }
    consumer.close();
    producer.check();
}

fn each_vbucket_is_handed_over_at_its_own_time_while_documents_change(store: StoreKind) {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, mut dice) = full(&folder, store, 1);
    consumer.bucket.ensure_index(&second(), false).unwrap();
    let asked = producer.state.lock().requests.len();
    producer.behave(|behaviour| behaviour.stalled_from_zero = (0..VBUCKETS).collect());
    consumer.begin(follow(&producer, false));
    let closed = || producer.state.lock().closes.iter().copied().collect::<BTreeSet<u16>>();
    let hand_over = |vb: u16, dice: &mut Dice| {
        producer.behave(|behaviour| behaviour.stalled_from_zero.retain(|stalled| *stalled != vb));
        eventually("the second stream of the vbucket is closed", || {
            write(&producer, dice, 2);
            closed().contains(&vb)
        });
    };
    for vb in 0..3 {
        hand_over(vb, &mut dice);
        assert_eq!(closed(), (0..=vb).collect(), "others were handed over too");
        let refused = consumer.bucket.scan(second().name(), &KeyRange::default(), false, &watchdog());
        assert!(matches!(refused, Err(IndexError::Building { .. })));
    }
    let requests = producer.state.lock().requests[asked..].to_vec();
    for vb in 0..VBUCKETS {
        let of_vb = requests.iter().filter(|(asked, _)| asked.0 == vb).count();
        assert_eq!(of_vb, 2, "a stream of vbucket {vb} was interrupted: {requests:?}");
    }
    // A connection is lost, and then a shard goes back while some of its vbuckets are handed over.
    producer.behave(|behaviour| behaviour.cut_after = Some(2000));
    eventually("it is cut", || {
        write(&producer, &mut dice, 2);
        producer.state.lock().behaviour.cut_after.is_none()
    });
    hand_over(3, &mut dice);
    producer.fail_over(1, producer.high(1) - 5);
    for vb in 4..VBUCKETS {
        hand_over(vb, &mut dice);
    }
    wait_until_ready(&consumer, &producer, &mut dice, &second());
    assert!(producer.state.lock().rollbacks > 0);
    finish(consumer, producer, &[by_n(), second()]);
}

fn a_roll_back_to_before_an_index_was_made_brings_it_up_again(store: StoreKind) {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, mut dice) = full(&folder, store, 2);
    assert!(consumer.bucket.shards()[0].keep_point(&watchdog()).unwrap().is_some());
    let at_point = producer.highs();
    consumer.bucket.ensure_index(&second(), false).unwrap();
    consumer.begin(follow(&producer, false));
    wait_until_ready(&consumer, &producer, &mut dice, &second());
    write(&producer, &mut dice, 200);
    consumer.catch_up(&producer);
    producer.fail_over(2, at_point[2] + 3);
    write(&producer, &mut dice, 100);
    eventually("both hold what the producer has", || {
        consumer.indexed() == expected(&producer) && consumer.indexed_by(&second()) == expected(&producer)
    });
    finish(consumer, producer, &[by_n(), second()]);
}

fn a_first_index_is_unfinished_until_what_the_cluster_had_is_there(store: StoreKind) {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(6));
    write(&producer, &mut dice, 2000);
    let refused = |consumer: &Consumer| {
        let scan = consumer.bucket.scan(by_n().name(), &KeyRange::default(), false, &watchdog());
        matches!(scan, Err(IndexError::Building { .. }))
    };
    let mut consumer = Consumer::open(folder.path(), store, VBUCKETS);
    assert!(refused(&consumer), "before anything came");
    producer.behave(|behaviour| behaviour.stalled_from_zero = BTreeSet::from([5]));
    consumer.begin(follow(&producer, false));
    eventually("the others are there", || {
        let (reached, highs) = (consumer.reached(), producer.highs());
        (0..8).all(|vb| vb == 5 || reached[vb] == highs[vb])
    });
    assert!(refused(&consumer), "while one vbucket is to come");
    assert!(matches!(consumer.end(), Err(IntakeError::Stopped { .. })));
    consumer.close();
    let mut consumer = Consumer::open(folder.path(), store, VBUCKETS);
    assert!(refused(&consumer), "after a restart");
    producer.behave(|behaviour| behaviour.stalled_from_zero.clear());
    consumer.begin(follow(&producer, false));
    wait_until_ready(&consumer, &producer, &mut dice, &by_n());
    finish(consumer, producer, &[by_n()]);
}

#[test]
fn the_indexes_of_a_cluster_without_documents_are_finished_once_it_was_asked() {
    let folder = TempDir::new().unwrap();
    let producer = Producer::start(VBUCKETS);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    for index in [by_n(), second()] {
        consumer.bucket.ensure_index(&index, false).unwrap();
        assert_eq!(state(&consumer, &index), IndexState::Building);
        consumer.once(&producer);
        assert!(consumer.indexed_by(&index).is_empty());
    }
    consumer.close();
    producer.check();
}

#[test]
fn an_index_is_built_after_a_restart_within_a_window_whose_end_nobody_is_told_of() {
    let folder = TempDir::new().unwrap();
    let producer = Producer::start(VBUCKETS);
    for vb in 0..VBUCKETS {
        producer.put(vb, &format!("d{vb}"), r#"{"n":1}"#);
        producer.change(vb, "durable", What::Prepare);
    }
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    consumer.once(&producer);
    consumer.close();
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    consumer.bucket.ensure_index(&second(), false).unwrap();
    consumer.once(&producer);
    assert_eq!(state(&consumer, &second()), IndexState::Ready);
    assert_eq!(consumer.indexed_by(&second()), expected(&producer));
    assert!(consumer.bucket.shards()[0].keep_point(&watchdog()).unwrap().is_some());
    consumer.close();
    producer.check();
}

#[test]
fn a_second_stream_that_stays_behind_is_let_past_the_first() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, mut dice) = full(&folder, StoreKind::Memdb, 3);
    consumer.bucket.ensure_index(&second(), false).unwrap();
    producer.behave(|behaviour| behaviour.lags_from_zero = 40);
    consumer.begin(follow(&producer, false));
    wait_until_ready(&consumer, &producer, &mut dice, &second());
    // The second stream of each vbucket was closed, and first ones were held.
    assert!(producer.state.lock().closes.len() > usize::from(VBUCKETS));
    finish(consumer, producer, &[by_n(), second()]);
}

#[test]
fn an_index_of_a_bucket_without_another_is_unfinished_until_it_is_there() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, mut dice) = full(&folder, StoreKind::Lsm, 4);
    consumer.bucket.ensure_index(&second(), false).unwrap();
    consumer.bucket.drop_index(by_n().name(), &watchdog()).unwrap();
    producer.behave(|behaviour| behaviour.stalled_from_zero = BTreeSet::from([5]));
    consumer.begin(follow(&producer, false));
    eventually("the others are there", || {
        let (reached, highs) = (consumer.reached(), producer.highs());
        (0..8).all(|vb| vb == 5 || reached[vb] == highs[vb])
    });
    assert_eq!(state(&consumer, &second()), IndexState::Building);
    producer.behave(|behaviour| behaviour.stalled_from_zero.clear());
    wait_until_ready(&consumer, &producer, &mut dice, &second());
    finish(consumer, producer, &[second()]);
}

#[test]
fn indexes_that_stand_at_different_places_are_built_one_after_the_other() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, mut dice) = full(&folder, StoreKind::Lsm, 5);
    let third = IndexDefinition::parse("third=n").unwrap();
    consumer.bucket.ensure_index(&second(), false).unwrap();
    producer.behave(|behaviour| behaviour.stalled_from_zero = (0..4).collect());
    consumer.begin(follow(&producer, false));
    eventually("a half is handed over", || producer.state.lock().closes.len() >= 4);
    assert!(matches!(consumer.end(), Err(IntakeError::Stopped { .. })));
    consumer.bucket.ensure_index(&third, false).unwrap();
    // What the second index has of this vbucket is lost in part, and the third one has nothing.
    producer.fail_over(5, producer.high(5) - 20);
    write(&producer, &mut dice, 400);
    producer.behave(|behaviour| behaviour.stalled_from_zero.clear());
    consumer.begin(follow(&producer, false));
    for index in [&second(), &third] {
        wait_until_ready(&consumer, &producer, &mut dice, index);
    }
    finish(consumer, producer, &[by_n(), second(), third]);
}

#[test]
fn what_a_build_leaves_out_of_an_index_is_reported() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, _) = full(&folder, StoreKind::Lsm, 8);
    let long = "x".repeat(KEY_BYTES_MAX);
    for number in 0..10 {
        producer.put(number % VBUCKETS, &format!("long-{number}"), &format!("{{\"n\":1,\"s\":\"{long}\"}}"));
    }
    assert_eq!(consumer.once(&producer).oversize_keys, 0);
    consumer.bucket.ensure_index(&IndexDefinition::parse("by_s=s").unwrap(), false).unwrap();
    assert_eq!(consumer.once(&producer).oversize_keys, 10);
    consumer.close();
    producer.check();
}

/// Gives a cancel when the connections of a build go.
struct CancelsAtTheEndOfABuild(AssertUnwindSafe<Cancel>);

impl Drain for CancelsAtTheEndOfABuild {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        if record.msg().to_string() == "a connection is not needed any more" {
            self.0.cancel();
        }
        Ok(())
    }
}

#[test]
fn a_cancel_while_a_build_ends_is_told_as_one() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, _) = full(&folder, StoreKind::Lsm, 9);
    consumer.close();
    let cancel = Cancel::new();
    let drain = CancelsAtTheEndOfABuild(AssertUnwindSafe(cancel.clone()));
    let config = BucketConfig { logger: Logger::root(drain, o!()), ..config() };
    let consumer = Consumer::open_with(folder.path(), Consumer::spec(), &config);
    consumer.bucket.ensure_index(&second(), false).unwrap();
    let until = Until::new(None, cancel);
    let ended = consumer.bucket.follow(&follow(&producer, false), &until, &mut |_| {}).unwrap_err();
    assert!(matches!(ended, IntakeError::Stopped { why: Stopped::Cancelled, .. }), "{ended}");
    consumer.once(&producer);
    assert_eq!(consumer.indexed_by(&second()), expected(&producer));
    consumer.close();
    producer.check();
}
