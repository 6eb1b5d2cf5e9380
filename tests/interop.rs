//! What was seen of a real KV engine: the test's producer behaves so, asked by hand, and a bucket that follows it holds
//! what it has.

use std::io::{Read, Write};
use std::net::TcpStream;

use dormouse::bucket::{FollowCause, FollowOptions, IntakeError};
use dormouse::event::{StreamEndReason, StreamStatus};
use dormouse::shard::StoreKind;
use dormouse::source::dcp::{CollectionId, DcpConfig};
use dormouse::timestamp::Position;
use tempfile::TempDir;

use crate::support::capture::{Capture, Captured};
use crate::support::consumer::{Consumer, expected, follow, write};
use crate::support::eventually;
use crate::support::followed::open;
use crate::support::path::Dice;
use crate::support::producer::{BUCKET_NAME, PASSWORD, Producer, Raw, USER, What};

const VBUCKETS: u16 = 8;

/// A client that knows nothing but frames.
struct Client(TcpStream);

/// A frame: opcode, status or vbucket, datatype, extras, key, value.
type Told = (u8, u16, u8, Vec<u8>, Vec<u8>, Vec<u8>);

impl Client {
    /// Logged in, with collections, and with the bucket selected.
    fn new(producer: &Producer) -> Self {
        let mut client = Self(TcpStream::connect(producer.address).unwrap());
        let features = [0x06_u16, 0x07, 0x08, 0x0a, 0x0b, 0x12].map(u16::to_be_bytes).concat();
        assert_eq!(client.ask(0x1f, 0, b"", b"by hand", &features).0, 0);
        let login = format!("\0{USER}\0{PASSWORD}");
        assert_eq!(client.ask(0x21, 0, b"", b"PLAIN", login.as_bytes()).0, 0);
        assert_eq!(client.ask(0x89, 0, b"", BUCKET_NAME.as_bytes(), b"").0, 0);
        client
    }

    /// The same as a connection of DCP.
    fn open(producer: &Producer, flags: u32) -> Self {
        let mut client = Self::new(producer);
        let extras = u64::from(flags).to_be_bytes();
        assert_eq!(client.ask(0x50, 0, &extras, format!("by hand {flags}").as_bytes(), b"").0, 0);
        client
    }

    fn control(&mut self, name: &str, value: &str) -> u16 {
        self.ask(0x5e, 0, b"", name.as_bytes(), value.as_bytes()).0
    }

    fn next(&mut self) -> Told {
        let mut header = [0; 24];
        self.0.read_exact(&mut header).unwrap();
        let mut body = vec![0; u32::from_be_bytes(header[8..12].try_into().unwrap()) as usize];
        self.0.read_exact(&mut body).unwrap();
        let (extras, rest) = body.split_at(usize::from(header[4]));
        let (key, value) = rest.split_at(usize::from(u16::from_be_bytes([header[2], header[3]])));
        let vb = u16::from_be_bytes([header[6], header[7]]);
        (header[1], vb, header[5], extras.to_vec(), key.to_vec(), value.to_vec())
    }

    /// Status and value of the answer.
    fn ask(&mut self, opcode: u8, vb: u16, extras: &[u8], key: &[u8], value: &[u8]) -> (u16, Vec<u8>) {
        let frame = Raw { magic: 0x80, opcode, vb_or_status: vb, extras, key, value, ..Raw::default() };
        self.0.write_all(&frame.bytes()).unwrap();
        loop {
            let (answered, status, _, _, _, value) = self.next();
            if answered == opcode {
                return (status, value);
            }
        }
    }

    /// Asks for a stream: flags, start, end, branch, window.
    fn stream(&mut self, vb: u16, flags: u32, numbers: [u64; 5]) -> (u16, Vec<u8>) {
        let numbers = numbers.map(u64::to_be_bytes).concat();
        self.ask(0x53, vb, &[&flags.to_be_bytes()[..], &[0; 4], &numbers].concat(), b"", b"")
    }

    fn next_of(&mut self, opcode: u8) -> Told {
        loop {
            let told = self.next();
            if told.0 == opcode {
                return told;
            }
        }
    }
}

const FOR_EVER: u64 = u64::MAX;

#[test]
fn a_stream_with_collections_needs_noops() {
    let producer = Producer::start(VBUCKETS);
    let mut client = Client::open(&producer, 0x5);
    assert_eq!(client.stream(0, 0, [0, FOR_EVER, 0, 0, 0]), (0x83, Vec::new()));
    assert_eq!(client.control("enable_noop", "true"), 0);
    assert_eq!(client.stream(0, 0, [0, FOR_EVER, 0, 0, 0]).0, 0);
}

#[test]
fn settings_are_refused_where_a_real_engine_refuses_them() {
    let producer = Producer::start(VBUCKETS);
    let mut client = Client::open(&producer, 0x5);
    for (name, value, status) in [
        ("connection_buffer_size", "abc", 0x04),
        ("no_such_thing", "true", 0x04),
        ("max_marker_version", "2.2", 0x04),
        ("enable_noop", "maybe", 0),
        ("set_noop_interval", "0", 0),
        ("enable_expiry_opcode", "true", 0),
    ] {
        assert_eq!(client.control(name, value), status, "{name}={value}");
    }
    assert_eq!(client.ask(0x50, 0, &5_u64.to_be_bytes(), b"once more", b"").0, 0x04);
    let mut client = Client::new(&producer);
    assert_eq!(client.stream(0, 0, [0, FOR_EVER, 0, 0, 0]).0, 0x04);
    assert_eq!(client.ask(0x54, 0, b"", b"", b"").0, 0x04);
}

#[test]
fn requests_are_judged_by_branch_and_window() {
    let producer = Producer::start(VBUCKETS);
    producer.fill(18, "{}");
    let branch = producer.branch(0).0;
    producer.state.lock().vbs[1].is_active = false;
    let mut client = Client::open(&producer, 0x5);
    client.control("enable_noop", "true");
    let to = |seqno: u64| seqno.to_be_bytes().to_vec();
    assert_eq!(client.stream(0, 0, [5, FOR_EVER, 0xbad, 5, 5]), (0x23, to(0)));
    assert_eq!(client.stream(0, 0, [30, FOR_EVER, branch, 30, 30]), (0x23, to(18)));
    assert_eq!(client.stream(0, 0, [5, 3, branch, 5, 5]), (0x22, Vec::new()));
    assert_eq!(client.stream(0, 0, [5, FOR_EVER, branch, 6, 8]), (0x22, Vec::new()));
    let (status, map) = client.stream(99, 0, [0, FOR_EVER, 0, 0, 0]);
    assert!(status == 0x07 && map.starts_with(b"{"), "{status:#x}");
    assert_eq!(client.stream(1, 0x10, [0, FOR_EVER, 0, 0, 0]).0, 0x07);
    assert_eq!(client.stream(0, 0, [5, FOR_EVER, branch, 5, 5]).0, 0);
    assert_eq!(client.stream(0, 0, [5, FOR_EVER, branch, 5, 5]).0, 0x02);
    let (status, said) = client.ask(0x53, 2, &[0; 47], b"", b"");
    assert!(status == 0x04 && said.starts_with(b"{\"error\""));
    assert_eq!(client.stream(2, 0, [0, FOR_EVER, 0, 0, 0]).0, 0, "the connection is kept");
}

#[test]
fn what_is_told_depends_on_what_was_agreed_on() {
    let value = [&8_u32.to_be_bytes()[..], &4_u32.to_be_bytes(), b"a\0b\0", b"{}"].concat();
    for (flags, expirations, removals, mutation) in [
        (0x1, false, [(0x58, 18), (0x58, 18)], (1_u8, b"{}".to_vec())),
        (0x25, true, [(0x58, 21), (0x59, 20)], (5, value.clone())),
    ] {
        let producer = Producer::start(VBUCKETS);
        producer.change(0, "x", What::Put { value: value.clone(), datatype: 5 });
        producer.change(0, "d", What::Delete);
        producer.change(0, "e", What::Expire);
        let mut client = Client::open(&producer, flags);
        client.control("enable_noop", "true");
        if expirations {
            client.control("enable_expiry_opcode", "true");
        }
        client.stream(0, 0, [0, FOR_EVER, 0, 0, 0]);
        let window = [0_u64.to_be_bytes().to_vec(), 3_u64.to_be_bytes().to_vec(), vec![0, 0, 0, 6]].concat();
        assert_eq!(client.next_of(0x56).3, window, "it begins where it was asked for");
        let (_, _, datatype, extras, key, told) = client.next_of(0x57);
        assert_eq!(((datatype, told), &key[..]), (mutation, &b"\0x"[..]));
        assert_eq!((extras.len(), extras[30]), (31, 2));
        for (opcode, bytes) in removals {
            let told = client.next();
            assert_eq!((told.0, told.3.len()), (opcode, bytes), "with flags {flags:#x}");
        }
        producer.put(0, "y", "{}");
        let window = [4_u64.to_be_bytes().to_vec(), 4_u64.to_be_bytes().to_vec(), vec![0, 0, 0, 5]].concat();
        assert_eq!(client.next_of(0x56).3, window, "from memory it begins with the change");
    }
}

#[test]
fn a_system_event_whose_value_is_in_another_form_is_told_by_its_number() {
    let producer = Producer::start(1);
    let followed = open(&producer.config(), 44);
    followed.follow(0, Position::ZERO);
    followed.next();
    // As recorded, of a server that was asked for such values; the first stream has the first opaque.
    let extras = [&14_u64.to_be_bytes()[..], &[0, 0, 0, 0, 2]].concat();
    let value = b"\x18\0\0\0\0\0\0\0\x10\0 \0\x18\0\x08\0";
    let event =
        Raw { magic: 0x80, opcode: 0x5f, opaque: 1, extras: &extras, key: b"ttl", value, ..Raw::default() };
    producer.inject(&event.bytes());
    assert_eq!(followed.next(), [(0, 14, "CollectionCreate".to_owned())]);
    followed.close();
}

#[test]
fn what_carries_the_number_of_its_stream_is_the_same_and_is_acknowledged_to_the_byte() {
    let events = [false, true].map(|numbers| {
        let producer = Producer::start(1);
        producer.behave(|behaviour| behaviour.numbers_streams = numbers);
        producer.fill(50, "1");
        producer.delete(0, "d3");
        let followed = open(&DcpConfig { window_bytes: 1000, ..producer.config() }, 45);
        followed.follow_to(0, 51);
        let events = followed.until_ends(1);
        let stats = followed.connection.stats();
        eventually("all but a fifth of the window is acknowledged", || {
            let seen = producer.seen();
            let is_counted = (stats.window_bytes(), stats.acked_bytes()) == (seen.sent, seen.acked);
            is_counted && seen.acked + 200 > seen.sent
        });
        followed.close();
        producer.check();
        events
    });
    assert_eq!(events[0], events[1]);
    assert_eq!(events[0].len(), 53);
}

/// A bucket that follows a producer which has some documents.
fn following(folder: &TempDir, seed: u64) -> (Producer, Consumer, Dice) {
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(seed));
    write(&producer, &mut dice, 500);
    let mut consumer = Consumer::open(folder.path(), StoreKind::Memdb, VBUCKETS);
    consumer.begin(follow(&producer, false));
    consumer.catch_up(&producer);
    (producer, consumer, dice)
}

#[test]
fn a_node_that_starts_again_with_everything_is_followed_on_without_going_back() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 1);
    for _ in 0..3 {
        producer.restart();
        write(&producer, &mut dice, 100);
        consumer.catch_up(&producer);
    }
    assert_eq!(producer.state.lock().rollbacks, 0);
    consumer.finish(producer);
}

#[test]
fn a_vbucket_that_is_no_longer_active_is_waited_for_and_followed_on_its_new_branch() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 2);
    producer.state.lock().vbs[3].is_active = false;
    let asked = producer.state.lock().requests.len();
    eventually("it is asked for again and again", || producer.state.lock().requests.len() > asked + 2);
    let high = producer.high(3);
    producer.fail_over(3, high);
    producer.state.lock().vbs[3].is_active = true;
    write(&producer, &mut dice, 100);
    consumer.finish(producer);
}

#[test]
fn who_has_not_seen_deletions_that_are_purged_begins_anew() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, mut dice) = following(&folder, 3);
    consumer.end().unwrap_err();
    write(&producer, &mut dice, 200);
    producer.purge(2, producer.high(2) - 1);
    let report = consumer.once(&producer);
    assert_eq!(report.roll_backs, 1);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.close();
    producer.check();
}

#[test]
fn a_node_whose_manifest_is_behind_is_asked_again_later() {
    let folder = TempDir::new().unwrap();
    let (producer, consumer, mut dice) = following(&folder, 4);
    producer.answer(0x53, 0x8b, br#"{"manifest_uid":"3"}"#);
    producer.state.lock().capture = Some(Capture::default());
    producer.behave(|behaviour| behaviour.cut_after = Some(0));
    write(&producer, &mut dice, 100);
    let asked = |vb: u16| {
        let state = producer.state.lock();
        let is_it = |frame: &&Captured| {
            !frame.is_from_server && frame.bytes[1] == 0x53 && frame.bytes[6..8] == vb.to_be_bytes()
        };
        state.capture.iter().flat_map(|capture| &capture.frames).filter(is_it).count()
    };
    eventually("each vbucket was asked for again", || (0..VBUCKETS).all(|vb| asked(vb) > 2));
    assert_ne!(consumer.reached(), producer.highs());
    producer.behave(|behaviour| behaviour.answers.clear());
    consumer.catch_up(&producer);
    consumer.stop(producer);
}

#[test]
fn a_collection_that_is_dropped_ends_what_follows_it_with_the_reason() {
    let folder = TempDir::new().unwrap();
    let producer = Producer::start(VBUCKETS);
    producer.change_in(8, 0, "a", What::Put { value: br#"{"n":1}"#.to_vec(), datatype: 1 });
    let options = || {
        let mut options = FollowOptions { once: false, ..follow(&producer, false) };
        options.cluster.connection.collection = CollectionId(8);
        options
    };
    let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    consumer.begin(options());
    eventually("it is indexed", || consumer.indexed().len() == 1);
    // A stream that is asked for later is refused, which ends following as well.
    eventually("all are asked for", || producer.state.lock().requests.len() >= usize::from(VBUCKETS));
    producer.drop_collection(8);
    let ended = consumer.join();
    let is_empty = matches!(
        ended,
        Err(IntakeError::Cluster {
            cause: FollowCause::StreamLost { reason: StreamEndReason::FilterEmpty, .. },
            ..
        })
    );
    assert!(is_empty, "{ended:?}");
    consumer.begin(options());
    let ended = consumer.join();
    let is_unknown = matches!(
        ended,
        Err(IntakeError::Cluster {
            cause: FollowCause::Refused { status: StreamStatus::UnknownCollection, .. },
            ..
        })
    );
    assert!(is_unknown, "{ended:?}");
    consumer.close();
    producer.check();
}

#[test]
fn a_window_that_ends_with_a_prepare_is_gone_on_from() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, mut dice) = following(&folder, 5);
    for round in 0..4 {
        producer.behave(|behaviour| behaviour.markers_v2 = round % 2 == 1);
        for vb in 0..VBUCKETS {
            producer.change(vb, &format!("durable{vb}"), What::Prepare);
        }
        eventually("everything that is told is there", || consumer.indexed() == expected(&producer));
        assert!(matches!(consumer.end(), Err(IntakeError::Stopped { .. })));
        write(&producer, &mut dice, 50);
        consumer.begin(follow(&producer, false));
        eventually("it goes on", || consumer.indexed() == expected(&producer));
    }
    let (rollbacks, indexed) = (producer.state.lock().rollbacks, consumer.indexed());
    assert_eq!((rollbacks, indexed), (0, expected(&producer)));
    assert!(matches!(consumer.end(), Err(IntakeError::Stopped { .. })));
    consumer.once(&producer);
    consumer.close();
    producer.check();
}
