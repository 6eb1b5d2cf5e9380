//! Changes are taken only once their node has them on its disk, where that is asked for: what a failover loses was
//! never in an index.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use dormouse::bucket::{BucketConfig, FollowOptions};
use dormouse::shard::StoreKind;
use dormouse::source::dcp::{DcpConfig, OpenCause, Status};
use serde_json::json;
use tempfile::TempDir;

use crate::support::consumer::{Consumer, config, expected, follow};
use crate::support::followed::{Followed, Told, open, try_open};
use crate::support::path::Dice;
use crate::support::producer::Producer;
use crate::support::{eventually, watchdog};

const VBUCKETS: u16 = 8;

/// A producer whose disk goes on by itself no more.
fn producer() -> Producer {
    let producer = Producer::start(VBUCKETS);
    producer.behave(|behaviour| behaviour.keeps_in_memory = true);
    producer
}

fn options(producer: &Producer) -> FollowOptions {
    let mut options = follow(producer, false);
    options.cluster.connection.persisted_only = true;
    options
}

fn persist_all(producer: &Producer) {
    (0..VBUCKETS).for_each(|vb| producer.persist(vb, u64::MAX));
}

#[test]
fn a_change_is_indexed_once_it_is_on_disk() {
    let folder = TempDir::new().unwrap();
    let producer = producer();
    let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    producer.put(1, "there", r#"{"n":1}"#);
    persist_all(&producer);
    consumer.begin(options(&producer));
    eventually("what is on disk is indexed", || consumer.indexed().len() == 1);
    producer.put(1, "in memory", r#"{"n":2}"#);
    producer.put(2, "in memory too", r#"{"n":3}"#);
    let asked = producer.state.lock().observes;
    eventually("the node was asked again and again", || producer.state.lock().observes > asked + 6);
    assert_eq!(consumer.indexed().len(), 1);
    persist_all(&producer);
    consumer.settle(&producer);
    consumer.stop(producer);
}

#[test]
fn changes_that_a_failover_loses_were_never_in_the_index() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (producer(), Dice::new(21));
    let mut consumer = Consumer::open(folder.path(), StoreKind::Memdb, VBUCKETS);
    consumer.begin(FollowOptions { connections: 2, ..options(&producer) });
    // It is finished before anything is there that may be lost.
    assert!(consumer.indexed().is_empty());
    let (mut number, mut lost, mut seen) = (0, BTreeSet::new(), BTreeSet::new());
    for round in 0..40 {
        for _ in 0..dice.below(60) {
            let vb = dice.choose(VBUCKETS);
            number += 1;
            producer.put(vb, &format!("d{vb}-{}", dice.below(30)), &json!({ "n": number }).to_string());
            if dice.below(10) == 0 {
                producer.persist(vb, producer.high(vb));
            }
        }
        seen.extend(consumer.indexed().into_iter().map(|(n, _)| n));
        let vb = dice.choose(VBUCKETS);
        let (persisted, before) = {
            let state = producer.state.lock();
            (state.vbs[usize::from(vb)].persisted, state.vbs[usize::from(vb)].numbers())
        };
        producer.fail_over(vb, persisted);
        let after = producer.state.lock().vbs[usize::from(vb)].numbers();
        lost.extend(before.difference(&after).copied());
        if round % 4 == 0 {
            producer.behave(|behaviour| behaviour.cut_after = Some(usize::from(dice.choose(2000))));
        }
        if round % 8 == 7 {
            persist_all(&producer);
            consumer.settle(&producer);
        }
    }
    producer.behave(|behaviour| behaviour.cut_after = None);
    persist_all(&producer);
    consumer.settle(&producer);
    seen.extend(consumer.indexed().into_iter().map(|(n, _)| n));
    assert!(lost.len() > 20 && seen.len() > 20, "{} lost, {} seen", lost.len(), seen.len());
    assert_eq!(seen.intersection(&lost).count(), 0);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.stop(producer);
}

#[test]
fn memory_is_bounded_while_nothing_gets_to_disk() {
    let folder = TempDir::new().unwrap();
    let producer = producer();
    let config = BucketConfig { budget_bytes: 1 << 20, ..config() };
    let mut consumer = Consumer::open_with(folder.path(), Consumer::spec(), &config);
    let mut options = options(&producer);
    options.cluster.connection.window_bytes = 200_000;
    consumer.begin(options);
    let value = json!({ "n": 1, "a": "x".repeat(2000) }).to_string();
    for number in 0..2000_u16 {
        producer.put(number % VBUCKETS, &format!("d{number}"), &value);
    }
    eventually("the window is full", || producer.seen().is_full);
    producer.noop();
    eventually("the noop is answered", || producer.seen().noops_answered == 1);
    let seen = producer.seen();
    assert!(seen.sent < 300_000 && seen.acked == 0, "{} bytes were taken", seen.sent);
    persist_all(&producer);
    consumer.settle(&producer);
    consumer.stop(producer);
}

/// A connection that waits for the disk.
fn held(producer: &Producer) -> Followed {
    open(&DcpConfig { persisted_only: true, ..producer.config() }, 1)
}

#[test]
fn a_node_is_asked_only_while_something_waits_and_then_not_too_often() {
    let producer = producer();
    producer.fill(10, "{}");
    persist_all(&producer);
    let followed = held(&producer);
    assert_eq!(producer.state.lock().observes, 1, "it is asked once whether it can tell");
    followed.follow(0, dormouse::timestamp::Position::ZERO);
    followed.until(|(_, seqno, what)| *seqno == 10 && what.starts_with("d9"));
    assert_eq!(followed.connection.stats().observed(), 0, "what comes from disk is on disk");
    producer.put(0, "later", "{}");
    eventually("it waits", || followed.connection.stats().observed() > 0);
    let (began, before) = (Instant::now(), followed.connection.stats().observed());
    eventually("it asks on", || followed.connection.stats().observed() >= before + 10);
    // From the sixth question on a tenth of a second lies between two.
    assert!(began.elapsed().as_millis() > 300, "{:?}", began.elapsed());
    persist_all(&producer);
    followed.until(|(_, seqno, what)| *seqno == 11 && what.starts_with("later"));
    assert_eq!(followed.connection.stats().lost(), 0);
    followed.close();
    producer.check();
}

/// The shortest of the waits between a vbucket and the last of so many behind it that are all on disk.
fn quickest(producer: &Producer, followed: &Followed, vbuckets: u16, rounds: Range<u32>) -> Duration {
    // A marker, and a change with a key of three bytes, its collection among them.
    const BYTES: u64 = (24 + 20) + (24 + 31 + 3 + 2);
    let round = |number: u32| {
        let stats = followed.connection.stats();
        let before = stats.window_bytes();
        producer.put(0, &format!("d{number}"), "{}");
        eventually("it waits", || stats.window_bytes() >= before + BYTES);
        // They are put together while the first one waits.
        for vb in 1..vbuckets {
            producer.put(vb, &format!("d{number}"), "{}");
            producer.persist(vb, u64::MAX);
        }
        eventually("all were sent", || stats.window_bytes() >= before + BYTES * u64::from(vbuckets));
        producer.persist(0, u64::MAX);
        let is_of_round = |(_, _, what): &&Told| what.starts_with(&format!("d{number}="));
        let first = followed.until(|told| told.0 == 0 && is_of_round(&told));
        let began = Instant::now();
        let mut left = usize::from(vbuckets) - first.iter().filter(is_of_round).count();
        while left > 0 {
            left -= followed.next().iter().filter(is_of_round).count();
        }
        began.elapsed()
    };
    rounds.map(round).min().unwrap()
}

#[test]
fn nothing_waits_for_vbuckets_that_were_not_asked_for_yet() {
    const MANY: u16 = 1024;
    let producer = Producer::start(MANY);
    producer.behave(|behaviour| behaviour.keeps_in_memory = true);
    let followed = held(&producer);
    for vb in 0..MANY {
        followed.follow(vb, dormouse::timestamp::Position::ZERO);
    }
    // What comes first comes from disk.
    quickest(&producer, &followed, MANY, 0..1);
    // As many as are asked for at once, and eight times as many: a wait after each time but the last would be 226
    // milliseconds.
    let at_once = quickest(&producer, &followed, 128, 1..7);
    let took = quickest(&producer, &followed, MANY, 7..13);
    assert!(took < at_once * 8 + Duration::from_millis(113), "{took:?}, and {at_once:?} for an eighth");
    followed.close();
    producer.check();
}

#[test]
fn what_is_lost_while_it_waits_is_dropped_and_its_stream_ends() {
    let producer = producer();
    let followed = held(&producer);
    for vb in 0..2 {
        followed.follow(vb, dormouse::timestamp::Position::ZERO);
    }
    for vb in 0..2 {
        producer.put(vb, "d", "{}");
    }
    eventually("it waits", || followed.connection.stats().observed() > 1);
    producer.fail_over(0, 0);
    producer.persist(1, 1);
    let mut told = followed.until_ends(1);
    let of = |vb: u16| told.iter().filter(move |told| told.0 == vb).map(|(_, _, what)| what.as_str());
    assert!(of(0).all(|what| !what.starts_with("d=")), "{told:?}");
    assert!(of(0).any(|what| what.starts_with("end ")), "{told:?}");
    let is_kept = |(vb, _, what): &(u16, u64, String)| *vb == 1 && what.starts_with("d=");
    if !told.iter().any(is_kept) {
        told.extend(followed.until(is_kept));
    }
    assert_eq!(followed.connection.stats().lost(), 1);
    followed.close();
    producer.check();
}

#[test]
fn a_server_that_does_not_tell_what_is_on_its_disk_is_refused() {
    let producer = producer();
    let config = DcpConfig { persisted_only: true, ..producer.config() };
    producer.answer(0x91, 0x81, b"");
    let refused = try_open(&config, 1, &watchdog()).err().unwrap();
    assert!(refused.to_string().contains("on disk"), "{refused}");
    assert!(matches!(refused.cause, OpenCause::Refused { status: Status::UNKNOWN_COMMAND, .. }));
    producer.check();
}
