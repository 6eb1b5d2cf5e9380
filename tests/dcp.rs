//! A connection to a node: what it makes of streams, and how it ends.

use std::time::Duration;

use crossbeam::channel::bounded;
use dormouse::event::{ByteBudget, EventKind, Seqno, StreamEndReason, VbId};
use dormouse::source::dcp::{
    CollectionId, Connection, ConnectionError, DcpConfig, DcpEnd, DcpOutput, DcpRequestError, FrameError,
    StreamRequest,
};
use dormouse::thread::{Failure, Stopped, Until};
use dormouse::timestamp::Position;
use slog::{Discard, Logger, o};

use crate::support::followed::{Followed, GENERATION, by_vb, end, failure, open, try_open};
use crate::support::producer::{BUCKET_NAME, Producer, Raw, What};
use crate::support::{eventually, forever, watchdog};

#[test]
fn a_stream_is_told_as_the_producer_sends_it() {
    let producer = Producer::start(2);
    producer.put(0, "a", "1");
    producer.put(0, "b", "2");
    producer.put(0, "a", "3");
    producer.delete(0, "b");
    producer.change(0, "c", What::Expire);
    let followed = open(&producer.config(), 17);
    followed.follow(0, Position::ZERO);
    let branch = format!("begin {:x}", producer.branch(0).0);
    let mut events = followed.until(|(_, seqno, _)| *seqno == 5);
    producer.put(0, "d", "{}");
    events.extend(followed.until(|(_, seqno, _)| *seqno == 6));
    let expected = [
        (0, branch.as_str()),
        (0, "window 0 5 once"),
        (3, "a=3 1"),
        (4, "-b"),
        (5, "~c"),
        (5, "window 6 6"),
        (6, "d={} 1"),
    ];
    let events: Vec<(u64, &str)> = events.iter().map(|(_, seqno, what)| (*seqno, what.as_str())).collect();
    assert_eq!(events, expected);
    followed.close();
    producer.check();
}

#[test]
fn bytes_that_come_one_by_one_are_the_same_events() {
    let producer = Producer::start(1);
    producer.fill(20, "{\"a\":1}");
    let whole = open(&producer.config(), 18);
    whole.follow_to(0, 20);
    let expected = whole.until_ends(1);
    whole.close();
    for pieces in [1, 7] {
        producer.behave(|behaviour| behaviour.pieces = Some(pieces));
        let split = open(&producer.config(), 18);
        split.follow_to(0, 20);
        assert_eq!(split.until_ends(1), expected);
        split.close();
    }
    producer.check();
}

#[test]
fn a_frame_that_is_larger_than_a_batch_comes_whole_with_its_neighbours() {
    let producer = Producer::start(1);
    let large = format!("\"{}\"", "y".repeat(3_000_000));
    producer.put(0, "a", "1");
    producer.put(0, "b", &large);
    producer.put(0, "c", "2");
    let followed = open(&DcpConfig { batch_bytes: 4096, ..producer.config() }, 19);
    followed.follow_to(0, 3);
    let events = followed.until_ends(1);
    let texts: Vec<&str> = events[2..5].iter().map(|(_, _, what)| what.as_str()).collect();
    assert_eq!(texts, ["a=1 1", &format!("b={large} 1"), "c=2 1"]);
    followed.close();
    producer.check();
}

#[test]
fn compressed_values_are_inflated() {
    let producer = Producer::start(1);
    producer.behave(|behaviour| behaviour.compresses = true);
    let value = format!("\"{}\"", "z".repeat(5000));
    producer.fill(300, &value);
    let followed = open(&DcpConfig { batch_bytes: 64 * 1024, ..producer.config() }, 20);
    followed.follow_to(0, 300);
    let events = followed.until_ends(1);
    for (number, (_, _, what)) in events[2..302].iter().enumerate() {
        assert_eq!(*what, format!("d{number}={value} 1"));
    }
    followed.close();
    producer.check();
}

#[test]
fn a_value_that_cannot_be_inflated_counts_as_empty_and_the_stream_goes_on() {
    let producer = Producer::start(1);
    producer.change(0, "bad", What::Put { value: b"\xff\xff\xff".to_vec(), datatype: 3 });
    producer.put(0, "good", "1");
    let followed = open(&producer.config(), 21);
    followed.follow_to(0, 2);
    let events = followed.until_ends(1);
    assert_eq!((events[2].2.as_str(), events[3].2.as_str()), ("bad= 1", "good=1 1"));
    assert_eq!(followed.connection.stats().bad_values(), 1);
    followed.close();
}

#[test]
fn extended_attributes_stand_before_their_document_compressed_or_not() {
    let producer = Producer::start(1);
    let pair = b"rank\x003\0";
    let pairs = [&9_u32.to_be_bytes()[..], b"user\0\"x\"\0", &7_u32.to_be_bytes(), pair].concat();
    let len = u32::try_from(pairs.len()).unwrap();
    let value = [&len.to_be_bytes()[..], &pairs, br#"{"a":1}"#].concat();
    for compresses in [false, true] {
        producer.behave(|behaviour| behaviour.compresses = compresses);
        producer.put(0, "before", "1");
        let what = What::Put { value: value.clone(), datatype: 5 };
        let seqno = producer.change(0, "d", what);
        let followed = open(&producer.config(), 44);
        followed.follow_to(0, seqno);
        let mut found = None;
        while found.is_none() {
            let batch = dormouse::thread::recv(&followed.batches, &watchdog()).unwrap();
            found = batch.events.iter().find_map(|event| match event.kind {
                EventKind::Mutation { value, xattrs_len, datatype, .. } if event.seqno.0 == seqno => {
                    let of = |span: dormouse::event::Span| span.of(&batch.buffer).to_vec();
                    Some((of(value.before(xattrs_len)), of(value), datatype.0))
                }
                _ => None,
            });
        }
        assert_eq!(found.unwrap(), (pairs.clone(), br#"{"a":1}"#.to_vec(), 5), "{compresses}");
        followed.close();
    }
    let mut xattrs = dormouse::event::Xattrs::of(&pairs);
    assert_eq!((xattrs.get("rank"), xattrs.get("none")), (Some(&b"3"[..]), None));
    assert_eq!(xattrs.next(), Some(Ok((&b"user"[..], &b"\"x\""[..]))));
    producer.check();
}

#[test]
fn documents_of_another_collection_only_move_the_stream_on() {
    let producer = Producer::start(1);
    producer.put(0, "a", "1");
    producer.change_in(8, 0, "a", What::Put { value: b"8".to_vec(), datatype: 1 });
    let followed = open(&producer.config(), 22);
    followed.follow_to(0, 2);
    let events: Vec<_> = followed.until_ends(1).into_iter().map(|(_, seqno, what)| (seqno, what)).collect();
    let advanced = (2, "advanced".to_owned());
    assert_eq!(events[2..], [(1, "a=1 1".to_owned()), advanced, (2, end(StreamEndReason::Finished))]);
    followed.close();
    let other = DcpConfig { collection: CollectionId(8), ..producer.config() };
    let followed = open(&other, 22);
    followed.follow_to(0, 2);
    assert_eq!(followed.until_ends(1)[2].2, "a=8 1");
    followed.close();
    producer.check();
}

#[test]
fn system_events_are_told_and_those_that_nobody_knows_only_move_the_stream_on() {
    let producer = Producer::start(1);
    let subject = [&9_u64.to_be_bytes()[..], &8_u32.to_be_bytes(), &0x11_u32.to_be_bytes()].concat();
    for event in [0, 1, 9] {
        let value = subject.clone();
        producer.change(0, &format!("c{event}"), What::System { event, value });
    }
    let followed = open(&producer.config(), 43);
    followed.follow_to(0, 3);
    let events: Vec<_> = followed.until_ends(1).into_iter().map(|(_, seqno, what)| (seqno, what)).collect();
    let told = [(1, "CollectionCreate"), (2, "CollectionDrop"), (3, "advanced"), (3, "end Finished")];
    assert_eq!(events[2..], told.map(|(seqno, what)| (seqno, what.to_owned())));
    followed.close();
    producer.check();
}

#[test]
fn an_out_of_order_snapshot_has_its_edges_and_its_documents_as_they_come() {
    let producer = Producer::start(1);
    for key in ["c", "a", "b"] {
        producer.put(0, key, "1");
    }
    let followed = open(&DcpConfig { out_of_order: true, ..producer.config() }, 23);
    followed.follow_to(0, 3);
    let events: Vec<_> = followed.until_ends(1).into_iter().map(|(_, seqno, what)| (seqno, what)).collect();
    let seqnos: Vec<u64> = events[2..5].iter().map(|(seqno, _)| *seqno).collect();
    assert_eq!(seqnos, [2, 3, 1]);
    assert_eq!((events[1].1.as_str(), events[5].1.as_str()), ("Start", "End"));
    followed.close();
    producer.check();
}

#[test]
fn every_answer_to_a_stream_request_is_told() {
    let producer = Producer::start(4);
    for number in 0..5 {
        producer.put(0, &format!("d{number}"), "1");
        producer.put(1, &format!("e{number}"), "1");
    }
    producer.state.lock().vbs[2].is_active = false;
    let followed = open(&producer.config(), 24);
    followed.follow(0, Position::at(dormouse::event::VbUuid(1), Seqno(3)));
    followed.follow(1, Position::at(producer.branch(1), Seqno(9)));
    followed.follow(2, Position::ZERO);
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(followed.next());
    }
    let events = by_vb(events);
    assert_eq!(events[&0], [(3, "roll back to 0".to_owned())]);
    assert_eq!(events[&1], [(9, "roll back to 5".to_owned())]);
    assert_eq!(events[&2], [(0, "refused with status 0x07".to_owned())]);
    producer.answer(0x53, 0x88, b"{}");
    followed.follow(0, Position::ZERO);
    assert_eq!(followed.next()[0].2, "unknown collection");
    assert_eq!(followed.connection.open_streams(), Some(0));
    followed.close();
    producer.check();
}

#[test]
fn the_reason_of_a_stream_s_end_is_told_and_the_vbucket_can_be_asked_for_again() {
    let producer = Producer::start(2);
    producer.put(0, "a", "1");
    producer.put(1, "b", "1");
    let followed = open(&producer.config(), 25);
    followed.follow(0, Position::ZERO);
    followed.follow(1, Position::ZERO);
    let mut events = Vec::new();
    while events.len() < 6 {
        events.extend(followed.next());
    }
    followed.connection.close_stream(VbId(0)).unwrap();
    assert_eq!(followed.until_ends(1), [(0, 1, end(StreamEndReason::Closed))]);
    producer.state.lock().vbs[1].is_active = false;
    assert_eq!(followed.until_ends(1), [(1, 1, end(StreamEndReason::StateChanged))]);
    followed.follow(0, Position::at(producer.branch(0), Seqno(1)));
    producer.put(0, "c", "2");
    assert_eq!(followed.until(|(_, seqno, _)| *seqno == 2).last().unwrap().2, "c=2 1");
    followed.close();
    producer.check();
}

#[test]
fn a_stream_that_is_asked_for_while_an_older_one_is_closed_in_vain_goes_on() {
    let producer = Producer::start(1);
    producer.put(0, "a", "1");
    let followed = open(&producer.config(), 76);
    {
        // The producer answers neither before it has both.
        let _state = producer.state.lock();
        followed.connection.close_stream(VbId(0)).unwrap();
        followed.follow(0, Position::ZERO);
    }
    let events = followed.until(|(_, seqno, _)| *seqno == 1);
    assert!(events[0].2.starts_with("begin") && events.last().unwrap().2 == "a=1 1", "{events:?}");
    assert_eq!(followed.connection.open_streams(), Some(1));
    followed.close();
    producer.check();
}

#[test]
fn a_stream_that_is_asked_for_twice_is_refused_here_and_goes_on() {
    let producer = Producer::start(1);
    let followed = open(&producer.config(), 26);
    followed.follow(0, Position::ZERO);
    let again = || followed.connection.request_stream(&StreamRequest::follow(VbId(0), Position::ZERO));
    assert!(matches!(again(), Err(DcpRequestError::HasStream(VbId(0)))));
    producer.put(0, "a", "1");
    followed.until(|(_, seqno, _)| *seqno == 1);
    assert!(matches!(again(), Err(DcpRequestError::HasStream(VbId(0)))));
    producer.put(0, "b", "2");
    assert_eq!(followed.until(|(_, seqno, _)| *seqno == 2).last().unwrap().2, "b=2 1");
    let beyond = followed.connection.request_stream(&StreamRequest::follow(VbId(1), Position::ZERO));
    assert!(matches!(beyond, Err(DcpRequestError::NoVbucket { vb: VbId(1), vbuckets: 1 })));
    followed.close();
    producer.check();
}

#[test]
fn a_failover_log_and_seqnos_are_fetched_while_streams_run() {
    let producer = Producer::start(2);
    producer.fill(500, "1");
    producer.state.lock().vbs[1].fail_over(0xbeef, 0);
    let followed = open(&producer.config(), 27);
    followed.follow_to(0, 500);
    let log = followed.connection.failover_log(VbId(1), &watchdog()).unwrap();
    assert_eq!(log.newest(), producer.branch(1));
    let seqnos = followed.connection.vb_seqnos(&watchdog()).unwrap();
    assert_eq!(seqnos, [(VbId(0), Seqno(500)), (VbId(1), Seqno(0))]);
    assert_eq!(followed.until_ends(1).len(), 503);
    producer.behave(|behaviour| drop(behaviour.answers.insert(0x54, None)));
    let unanswered = followed.connection.failover_log(VbId(0), &Until::within(Duration::from_millis(50)));
    assert!(matches!(unanswered, Err(DcpRequestError::Stopped { why: Stopped::DeadlinePassed, .. })));
    followed.close();
    producer.check();
}

#[test]
fn answers_that_nobody_asked_for_are_counted_and_dropped() {
    let producer = Producer::start(1);
    let followed = open(&producer.config(), 28);
    for opcode in [0x1f, 0x50, 0x5e, 0x54, 0x53] {
        producer.inject(&Raw { magic: 0x81, opcode, opaque: 0xdead, ..Raw::default() }.bytes());
    }
    eventually("they are counted", || followed.connection.stats().stray_answers() == 5);
    producer.put(0, "a", "1");
    followed.follow_to(0, 1);
    assert_eq!(followed.until_ends(1).len(), 4);
    followed.close();
    producer.check();
}

#[test]
fn a_connection_is_closed_while_nobody_takes_its_batches() {
    let producer = Producer::start(1);
    producer.fill(3000, "{\"a\":1}");
    let followed = open(&DcpConfig { window_bytes: 20_000, batch_bytes: 4096, ..producer.config() }, 33);
    followed.follow(0, Position::ZERO);
    eventually("the window is full", || producer.seen().is_full);
    assert!(matches!(followed.connection.close(&watchdog()), Ok(Some(DcpEnd::Stopped))));
    assert!(followed.connection.threads().is_empty());
    assert!(matches!(followed.connection.close(&watchdog()), Ok(None)));
    producer.check();
}

#[test]
fn a_connection_is_closed_while_the_producer_floods_it() {
    let producer = Producer::start(1);
    producer.behave(|behaviour| behaviour.floods = true);
    let value = format!("\"{}\"", "u".repeat(500_000));
    producer.fill(200, &value);
    let followed = open(&producer.config(), 34);
    followed.follow(0, Position::ZERO);
    followed.until(|(_, seqno, _)| *seqno >= 3);
    followed.close();
    assert!(followed.connection.threads().is_empty());
}

#[test]
fn a_connection_whose_receiver_is_gone_ends() {
    let producer = Producer::start(1);
    let Followed { connection, batches, .. } = open(&producer.config(), 35);
    drop(batches);
    connection.request_stream(&StreamRequest::follow(VbId(0), Position::ZERO)).unwrap();
    connection.ended().wait(&watchdog()).unwrap();
    assert!(matches!(connection.join(&watchdog()), Ok(Some(DcpEnd::ReceiverGone))));
}

#[test]
fn a_connection_that_is_lost_takes_no_stream_any_more() {
    let producer = Producer::start(2);
    let followed = open(&producer.config(), 36);
    followed.follow(0, Position::ZERO);
    assert_eq!(followed.connection.open_streams(), Some(1));
    followed.next();
    producer.behave(|behaviour| behaviour.cut_after = Some(10));
    producer.put(0, "a", "1");
    assert_eq!(followed.until_ends(1).last().unwrap().2, end(StreamEndReason::Disconnected));
    assert_eq!(followed.connection.open_streams(), None);
    let asked = followed.connection.request_stream(&StreamRequest::follow(VbId(1), Position::ZERO));
    assert!(matches!(asked, Err(DcpRequestError::Closed(_))));
    assert!(matches!(followed.connection.failover_log(VbId(0), &forever()), Err(DcpRequestError::Closed(_))));
    let error = failure(&followed);
    assert!(matches!(error, ConnectionError::Closed | ConnectionError::Read(_)), "{error:?}");
}

#[test]
fn a_lost_connection_ends_more_streams_than_any_queue_has_room_for() {
    const STREAMS: u16 = 1024;
    let producer = Producer::start(STREAMS);
    producer.behave(|behaviour| behaviour.stalled = true);
    let followed = open(&producer.config(), 37);
    for vb in 0..STREAMS {
        followed.follow(vb, Position::ZERO);
    }
    let mut begun = 0;
    while begun < usize::from(STREAMS) {
        begun += followed.next().len();
    }
    producer.inject(&[0x47; 24]);
    let ends = followed.until_ends(usize::from(STREAMS));
    let vbs: Vec<u16> = ends.iter().map(|(vb, _, _)| *vb).collect();
    assert_eq!(vbs, (0..STREAMS).collect::<Vec<_>>());
    assert!(matches!(failure(&followed), ConnectionError::Frame(FrameError::Magic(0x47))));
}

#[test]
fn a_short_message_ends_its_connection_and_its_streams_in_order() {
    let producer = Producer::start(2);
    producer.put(0, "a", "1");
    let (bad, good) = (open(&producer.config(), 38), open(&producer.config(), 39));
    bad.close();
    let bad = open(&producer.config(), 38);
    bad.follow(0, Position::ZERO);
    bad.follow(1, Position::ZERO);
    let mut events = Vec::new();
    while events.len() < 4 {
        events.extend(bad.next());
    }
    let short = Raw { magic: 0x80, opcode: 0x57, extras: &[0; 30], key: b"\0k", ..Raw::default() };
    producer.inject(&short.bytes());
    let ends = bad.until_ends(2);
    let end = end(StreamEndReason::Disconnected);
    assert_eq!(ends, [(0, 1, end.clone()), (1, 0, end)]);
    let error = failure(&bad);
    assert!(matches!(error, ConnectionError::Message { vb: VbId(0), .. }), "{error:?}");
    // Nothing else suffers.
    good.follow(0, Position::ZERO);
    assert_eq!(good.until(|(_, seqno, _)| *seqno == 1).last().unwrap().2, "a=1 1");
    good.close();
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let producer = Producer::start(1);
    let mut config = producer.config();
    config.noop_interval = Duration::from_millis(500);
    let followed = open(&config, 40);
    followed.follow(0, Position::ZERO);
    assert_eq!(followed.until_ends(1).last().unwrap().2, end(StreamEndReason::Disconnected));
    assert!(matches!(failure(&followed), ConnectionError::Silent(_)));
}

#[test]
fn a_connection_is_refused_where_nobody_listens() {
    let producer = Producer::start(1);
    let config = producer.config();
    producer.check();
    let Err(error) = try_open(&config, 41, &watchdog()) else { panic!("it was opened") };
    assert!(error.cause.is_temporary() && error.to_string().contains("connecting"), "{error}");
    assert_eq!(config.bucket, BUCKET_NAME);
}

#[test]
fn a_connection_that_is_dropped_ends_by_itself() {
    let producer = Producer::start(1);
    let (sender, _batches) = bounded(1);
    let output = DcpOutput { generation: GENERATION, batches: sender, budget: ByteBudget::new(1000) };
    let logger = Logger::root(Discard, o!());
    let connection = Connection::open(&producer.config(), 42, output, &logger, &watchdog()).unwrap();
    let ended = connection.ended().clone();
    drop(connection);
    ended.wait(&watchdog()).unwrap();
    eventually("the server sees it", || !producer.seen().is_open);
    producer.check();
}
