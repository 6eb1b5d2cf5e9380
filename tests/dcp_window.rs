//! The window of a connection: what counts is acknowledged once, and what waits is bounded.

use dormouse::event::VbId;
use dormouse::source::dcp::{ConnectionError, DcpConfig};
use dormouse::timestamp::Position;

use crate::support::followed::{failure, open, told};
use crate::support::producer::{Producer, Raw};
use crate::support::{eventually, watchdog};

#[test]
fn messages_of_no_stream_are_acknowledged() {
    let producer = Producer::start(1);
    let followed = open(&DcpConfig { window_bytes: 5000, ..producer.config() }, 29);
    let marker = [0; 20];
    let spurious = Raw { magic: 0x80, opcode: 0x56, opaque: 77, extras: &marker, ..Raw::default() }.bytes();
    let unknown = Raw { magic: 0x80, opcode: 0x66, value: &[0; 20], ..Raw::default() }.bytes();
    let bytes = 100 * (spurious.len() + unknown.len()) as u64;
    producer.state.lock().connections[0].sent += bytes;
    for _ in 0..100 {
        producer.inject(&spurious);
        producer.inject(&unknown);
    }
    let stats = followed.connection.stats();
    eventually("all came", || stats.window_bytes() == bytes);
    assert_eq!((stats.spurious(), stats.unknown()), (100, 100));
    // What is owed is less than a fifth of the window.
    eventually("they are acknowledged", || bytes - producer.seen().acked < 1000);
    followed.close();
    producer.check();
}

#[test]
fn every_byte_that_counts_is_acknowledged_once() {
    let producer = Producer::start(4);
    for number in 0..2000 {
        producer.put(number % 4, &format!("d{number}"), "{\"a\":1}");
        producer.delete(number % 4, &format!("d{}", number / 2));
    }
    let followed = open(&DcpConfig { window_bytes: 4096, batch_bytes: 4096, ..producer.config() }, 30);
    for vb in 0..4 {
        followed.follow_to(vb, producer.high(vb));
    }
    followed.until_ends(4);
    let stats = followed.connection.stats();
    eventually("all is acknowledged", || stats.window_bytes() - stats.acked_bytes() < 4096 / 5);
    eventually("the producer knows", || producer.seen().acked == stats.acked_bytes());
    let seen = producer.seen();
    assert_eq!(seen.sent, stats.window_bytes());
    assert!(seen.acks.iter().all(|bytes| *bytes >= 4096 / 5), "{:?}", seen.acks);
    followed.close();
    producer.check();
}

#[test]
fn a_refused_acknowledgement_ends_the_connection_once_all_that_was_read_is_handed_on() {
    let producer = Producer::start(1);
    producer.fill(100, "{\"a\":1}");
    producer.answer(0x5d, 0x24, b"no rights");
    let followed = open(&DcpConfig { window_bytes: 4096, ..producer.config() }, 45);
    followed.follow(0, Position::ZERO);
    let events = followed.until_ends(1);
    let seqnos: Vec<u64> =
        events.iter().filter(|(.., what)| what.starts_with('d')).map(|told| told.1).collect();
    assert!(seqnos.len() > 10 && seqnos.iter().copied().eq(1..=seqnos.len() as u64), "{seqnos:?}");
    let error = failure(&followed);
    assert!(matches!(error, ConnectionError::Unacknowledged { .. }), "{error}");
    assert!(error.to_string().contains("no rights") && error.to_string().contains("0x24"), "{error}");
    assert!(!error.is_malformed());
}

#[test]
fn noops_are_answered_and_memory_is_bounded_while_nobody_takes_batches() {
    let producer = Producer::start(1);
    let value = format!("\"{}\"", "w".repeat(1000));
    producer.fill(5000, &value);
    let window_bytes = 200_000;
    let followed = open(&DcpConfig { window_bytes, batch_bytes: 16_384, ..producer.config() }, 31);
    followed.follow_to(0, 5000);
    eventually("the window is full", || producer.seen().is_full);
    let sent = producer.seen().sent;
    producer.noop();
    eventually("the noop is answered", || producer.seen().noops_answered == 1);
    // Nothing else came in the meantime: a batch in the channel and one that waits were handed on.
    assert!(producer.seen().sent - sent <= u64::from(window_bytes));
    assert!(followed.budget.used_bytes() <= 1 << 20);
    assert_eq!(followed.until_ends(1).len(), 5003);
    let stats = followed.connection.stats();
    assert!(stats.held_bytes_max() < 3 * u64::from(window_bytes), "{} bytes", stats.held_bytes_max());
    followed.close();
    producer.check();
}

#[test]
fn the_window_is_what_fills_first_however_far_values_inflate() {
    let producer = Producer::start(1);
    producer.behave(|behaviour| behaviour.compresses = true);
    let value = format!("\"{}\"", "w".repeat(20_000));
    producer.fill(3000, &value);
    let window_bytes = 2 << 20;
    let followed = open(&DcpConfig { window_bytes, ..producer.config() }, 43);
    followed.follow_to(0, 3000);
    // Inflated it is more than the window and a frame.
    eventually("the window is full", || producer.seen().is_full);
    producer.noop();
    eventually("the noop is answered", || producer.seen().noops_answered == 1);
    assert!(followed.connection.failover_log(VbId(0), &watchdog()).is_ok());
    assert!(followed.connection.stats().held_bytes_max() < 3 * u64::from(window_bytes));
    let mut documents = 0;
    while documents < 3000 {
        let batch = dormouse::thread::recv(&followed.batches, &watchdog()).unwrap();
        let bytes = batch.buffer.len();
        assert!(bytes < producer.config().batch_bytes + 2 * value.len(), "{bytes} bytes in a batch");
        documents +=
            batch.events.iter().filter(|event| told(event, &batch.buffer).2.contains(&value)).count();
    }
    followed.close();
    producer.check();
}

#[test]
fn a_producer_that_sends_more_than_its_window_is_not_read_any_further() {
    let producer = Producer::start(1);
    producer.behave(|behaviour| behaviour.floods = true);
    let value = format!("\"{}\"", "v".repeat(1_000_000));
    producer.fill(60, &value);
    let followed = open(&DcpConfig { window_bytes: 4096, ..producer.config() }, 32);
    followed.follow_to(0, 60);
    let stats = followed.connection.stats();
    eventually("much waits", || stats.held_bytes_max() > 20_000_000);
    assert_eq!(followed.until_ends(1).len(), 63);
    assert!(stats.held_bytes_max() < 36_000_000, "{} bytes were held", stats.held_bytes_max());
    followed.close();
}
