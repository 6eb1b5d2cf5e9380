//! Bytes that nobody should send: they are errors and no panics, cost no more memory than the limit, and hold nothing
//! up.

use dormouse::event::VbId;
use dormouse::source::dcp::{
    Body, ClusterMap, ClusterUrl, DcpEnd, Decoded, FailoverLog, Frame, Message, NodeAddress, Status,
    features, stream_status, vb_seqnos,
};
use dormouse::thread::{self, RecvError};
use dormouse::timestamp::Position;
use proptest::prelude::*;

use crate::support::followed::{Followed, Told, open, told};
use crate::support::path::Dice;
use crate::support::producer::Producer;
use crate::support::wire::{frame_lines, from_hex};
use crate::support::{eventually, watchdog};

/// Decodes whatever is there, as far as anything is.
fn decode_all(mut bytes: &[u8]) {
    const LIMIT: usize = 4096;
    let mut scratch = Vec::new();
    while let Ok(Decoded::Whole(frame, len)) = Frame::decode(bytes, LIMIT) {
        let value = match Message::decode(&frame) {
            Ok(Message::Mutation(mutation)) => Some((mutation.datatype, mutation.value)),
            Ok(Message::Deletion(removal) | Message::Expiration(removal)) => {
                Some((removal.datatype, removal.value))
            }
            _ => None,
        };
        if let Some((datatype, value)) = value {
            if let Ok(body) = Body::decode(datatype, value, LIMIT, &mut scratch) {
                assert!(body.xattrs.count() <= value.len() + LIMIT);
            }
            assert!(scratch.capacity() <= 2 * LIMIT, "{} bytes were allocated", scratch.capacity());
        }
        let _ = stream_status(Status(frame.vb_or_status), frame.value);
        let _ = (vb_seqnos(frame.value), features(frame.value), FailoverLog::decode(frame.value));
        bytes = &bytes[len..];
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_frames_or_errors(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
    }

    #[test]
    fn recorded_frames_with_wrong_bytes_are_messages_or_errors(
        line in 0_usize..820,
        wrong in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let line = &frame_lines()[line];
        let mut bytes = from_hex(line["hex"].as_str().unwrap());
        for (at, byte) in wrong {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        decode_all(&bytes);
    }

    #[test]
    fn any_text_is_a_url_or_an_error(text in "(couchbases?://)?[a-z@:/,\\[\\]%0-9é.]{0,30}") {
        let _ = text.parse::<ClusterUrl>();
    }

    #[test]
    fn a_map_with_wrong_bytes_is_a_map_or_an_error(
        wrong in proptest::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}\",:0-9a-z-]"), 1..4),
    ) {
        let mut text = concat!(
            r#"{"rev":7,"revEpoch":2,"nodesExt":[{"services":{"kv":11210},"hostname":"one"}],"#,
            r#""vBucketServerMap":{"serverList":["$HOST:11210"],"vBucketMap":[[0,-1],[0],[-1]]}}"#,
        )
        .to_owned();
        for (at, with) in wrong {
            let at = at.index(text.len());
            text.replace_range(at..=at, &with);
        }
        let asked = NodeAddress { host: "one".to_owned(), port: 1 };
        if let Ok(map) = ClusterMap::parse(&text, &asked, false) {
            for vb in 0..=map.vbuckets() {
                let _ = map.node_of(VbId(vb));
            }
        }
    }
}

/// A recorded frame of a server, of a stream that is open, with some wrong bytes.
fn nearly_right(dice: &mut Dice) -> Vec<u8> {
    let lines = frame_lines();
    let line = &lines[usize::from(dice.choose(u16::try_from(lines.len()).unwrap()))];
    let mut bytes = from_hex(line["hex"].as_str().unwrap());
    bytes[6..8].copy_from_slice(&[0, 0]);
    bytes[12..16].copy_from_slice(&[0, 0, 0, 1]);
    for _ in 0..dice.below(3) {
        let at = usize::from(dice.choose(u16::try_from(bytes.len()).unwrap()));
        bytes[at] = u8::try_from(dice.below(256)).unwrap();
    }
    bytes
}

/// What comes of a connection until it ends, in words.
fn rest(followed: &Followed) -> Vec<Told> {
    let mut all = Vec::new();
    loop {
        match thread::recv(&followed.batches, &watchdog()) {
            Ok(batch) => all.extend(batch.events.iter().map(|event| told(event, &batch.buffer))),
            Err(RecvError::Closed) => return all,
            Err(RecvError::Stopped(why)) => panic!("it does not end: {why}"),
        }
    }
}

#[test]
fn a_connection_on_which_any_bytes_come_ends_its_stream_once_and_holds_little_more_than_came() {
    let (producer, mut dice) = (Producer::start(1), Dice::new(0xb17e));
    producer.put(0, "a", "1");
    let config = producer.config();
    for round in 0..60 {
        let followed = open(&config, 80);
        followed.follow(0, Position::ZERO);
        followed.until(|(_, seqno, _)| *seqno == 1);
        let bytes: Vec<u8> = if round % 3 == 0 {
            (0..dice.below(300)).map(|_| u8::try_from(dice.below(256)).unwrap()).collect()
        } else {
            (0..3).flat_map(|_| nearly_right(&mut dice)).collect()
        };
        producer.inject(&bytes);
        eventually("the bytes are sent", || producer.has_injected());
        // Whatever was made of them, the node's end is the connection's.
        producer.set_down(0, true);
        let told = rest(&followed);
        let ends = told.iter().filter(|(_, _, what)| what.starts_with("end ")).count();
        assert_eq!(ends, 1, "{told:?} of {bytes:02x?}");
        assert!(matches!(followed.connection.join(&watchdog()), Ok(Some(DcpEnd::Failed(_)))));
        let held_bytes = followed.connection.stats().held_bytes_max();
        assert!(held_bytes <= 2 * config.batch_bytes as u64, "{held_bytes} bytes of {bytes:02x?}");
        eventually("the node is gone", || !producer.seen().is_open);
        producer.set_down(0, false);
    }
}
