//! Sessions that were recorded of a real KV engine: they are read as they are told, and written as they came.

use std::fmt::Write;

use dormouse::event::{Seqno, StreamEndReason, VbId, VbUuid};
use dormouse::source::dcp::{
    CollectionId, FailoverLog, Frame, Message, Opcode, Removal, Request, Status, StreamRequest, features,
};
use dormouse::timestamp::Position;

use crate::support::followed::open;
use crate::support::producer::Producer;
use crate::support::wire::{frame_lines, from_hex, in_default_collection, whole};

/// As `session.txt` shows keys: the text that Python makes of bytes.
fn shown(bytes: &[u8]) -> String {
    let mut text = String::from("b'");
    for byte in bytes {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").unwrap(),
        }
    }
    text + "'"
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A message as `session.txt` tells it.
fn told(frame: &Frame<'_>, collections: bool) -> String {
    let message = Message::decode(frame).unwrap();
    let key = |collection: CollectionId, name: &[u8]| {
        let mut key = Vec::new();
        if collections {
            collection.put(&mut key);
        }
        key.extend_from_slice(name);
        shown(&key)
    };
    let framing = if frame.framing.is_empty() { "" } else { " frames=" };
    let stream = format!("{framing}{}", hex(frame.framing));
    let head = format!("vb={} opq={:#x}{stream}", frame.vb_or_status, frame.opaque);
    let removed = |name: &str, removal: Removal<'_>| {
        let (extras, key) = (frame.extras, key(removal.key.collection, removal.key.name));
        let (datatype, len) = (removal.datatype, removal.value.len());
        format!("{name} {head} elen={} ex={} key={key} dt={datatype} vlen={len}", extras.len(), hex(extras))
    };
    match message {
        Message::SnapshotMarker(marker) if marker.max_visible.is_some() => {
            format!("SNAPSHOT_MARKER {head} v2.0 val={}", hex(frame.value))
        }
        Message::SnapshotMarker(marker) => {
            format!(
                "SNAPSHOT_MARKER {head} v1 start={} end={} flags={:#x}",
                marker.start, marker.end, marker.kind
            )
        }
        Message::Mutation(m) => format!(
            "MUTATION {head} seq={} rev={} flags={:#x} exp={} lock={} nmeta={} nru={} key={} dt={} vlen={}",
            m.seqno,
            m.revision,
            m.flags,
            m.expiry,
            m.lock_time,
            m.meta.len(),
            m.nru,
            key(m.key.collection, m.key.name),
            m.datatype,
            m.value.len()
        ),
        Message::Deletion(removal) => removed("DELETION", removal),
        Message::Expiration(removal) => removed("EXPIRATION", removal),
        Message::SystemEvent(event) => format!(
            "SYSTEM_EVENT {head} seq={} id={} ver={} key={} val={} dt={}",
            event.seqno,
            event.event,
            event.version,
            shown(event.name),
            hex(frame.value),
            frame.datatype
        ),
        Message::SeqnoAdvanced(seqno) => format!("SEQNO_ADVANCED {head} seq={seqno}"),
        Message::StreamEnd(reason) => {
            let status = match reason {
                StreamEndReason::Finished => 0,
                StreamEndReason::StateChanged => 2,
                other => panic!("{other}"),
            };
            format!("STREAM_END {head} status={status}")
        }
        Message::Noop => format!("NOOP {head}"),
        other => panic!("{other:?}"),
    }
}

/// An answer as `session.txt` tells it, which leaves out what is long.
fn told_answer(frame: &Frame<'_>) -> Option<String> {
    let name = match frame.opcode {
        Opcode::DCP_STREAM_REQ => "STREAM_REQ",
        Opcode::DCP_FAILOVER_LOG => "FAILOVER_LOG",
        Opcode::DCP_CLOSE_STREAM => "CLOSE_STREAM",
        _ => return None,
    };
    let status = Status(frame.vb_or_status);
    let what = if status != Status::SUCCESS {
        format!(" val={}", shown(frame.value))
    } else if frame.opcode == Opcode::DCP_CLOSE_STREAM {
        String::new()
    } else {
        let log = FailoverLog::decode(frame.value).unwrap();
        let branch = |(vbuuid, seqno): &(VbUuid, Seqno)| format!("('{:#x}', {seqno})", vbuuid.0);
        format!(" flog=[{}]", log.entries().iter().map(branch).collect::<Vec<_>>().join(", "))
    };
    Some(format!("<- {name} status={:#x}{what}", status.0))
}

#[test]
fn recorded_sessions_replay_to_what_the_session_tells() {
    let session = std::fs::read_to_string("tests/data/dcp/session.txt").unwrap();
    let is_told = |line: &&str| line.starts_with("-> ") || line.starts_with("<- ");
    let mut lines = session.lines().map(str::trim).filter(is_told).peekable();
    let (mut messages, mut answers) = (0, 0);
    for line in frame_lines().iter().filter(|line| line["dir"] == "S>C") {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let frame = whole(&bytes);
        let text = if frame.magic.is_response() {
            let Some(text) = told_answer(&frame) else { continue };
            answers += 1;
            text
        } else {
            messages += 1;
            // One connection did not ask for collections.
            match line["c"].as_str() {
                Some("A3") => format!("-> {}", told(&whole(&in_default_collection(&bytes)), false)),
                _ => format!("-> {}", told(&frame, true)),
            }
        };
        // What came under flow control is not told, nor are some answers.
        let is_next = |told: &&str| {
            if text.contains(" val=") { text.starts_with(told.trim_end_matches('\'')) } else { text == *told }
        };
        if lines.peek().is_some_and(is_next) {
            lines.next();
        }
    }
    assert_eq!((messages, answers), (319, 42));
    assert_eq!(lines.next(), None, "this was told and not read");
}

/// The first stream that was recorded, through a connection: what is in it is told in `session.txt`, and the values
/// stand in `frames.jsonl`.
#[test]
fn a_recorded_stream_comes_out_of_a_connection_as_the_documents_that_the_session_tells() {
    let producer = Producer::start(1);
    let followed = open(&producer.config(), 75);
    followed.follow(0, Position::ZERO);
    let mut events = followed.next();
    // The recording's stream has another number than this one.
    let (recorded, ours) = (0x1000_u32.to_be_bytes(), 1_u32.to_be_bytes());
    let frames = frame_lines().iter().filter(|line| line["c"] == "A1" && line["dir"] == "S>C");
    for line in frames {
        let mut bytes = from_hex(line["hex"].as_str().unwrap());
        if bytes[0] == 0x80 && bytes[12..16] == recorded {
            bytes[12..16].copy_from_slice(&ours);
            producer.inject(&bytes);
        }
    }
    events.extend(followed.until_ends(1));
    let events: Vec<(u64, &str)> = events.iter().map(|(_, seqno, what)| (*seqno, what.as_str())).collect();
    let told = [
        (0, "window 0 11 once"),
        (1, "ScopeCreate"),
        (2, "CollectionCreate"),
        (5, "a1={\"a\":3} 1"),
        (6, "-a2"),
        // A document of another collection.
        (7, "advanced"),
        (8, "bin=\0\u{1}\u{2}\u{fffd} 0"),
        (9, "x1={\"d\":1} 5"),
        (11, "~exp"),
        (11, "end Finished"),
    ];
    assert_eq!(events[1..], told);
    followed.close();
}

#[test]
fn recorded_frames_are_written_as_the_same_bytes() {
    let mut count = 0;
    for line in frame_lines() {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let mut written = Vec::new();
        whole(&bytes).encode(&mut written).unwrap();
        assert_eq!(written, bytes, "{line}");
        count += 1;
    }
    assert_eq!(count, 820);
}

#[test]
fn recorded_requests_are_written_as_the_real_engine_took_them() {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut count = 0;
    for line in frame_lines().iter().filter(|line| line["dir"] == "C>S") {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let frame = whole(&bytes);
        let (key, value, vb) = (text(frame.key), frame.value, VbId(frame.vb_or_status));
        let extra = |at: usize| u64::from_be_bytes(frame.extras[at..at + 8].try_into().unwrap());
        let last = || u32::from_be_bytes(*frame.extras.last_chunk().unwrap());
        let mut written = Vec::new();
        let granted = if frame.opcode == Opcode::HELLO { features(value).unwrap() } else { Vec::new() };
        let value_text = if frame.opcode == Opcode::DCP_CONTROL { text(value) } else { String::new() };
        let mut stream = StreamRequest::follow(vb, Position::ZERO);
        let request = match frame.opcode {
            Opcode::HELLO => Request::Hello { agent: &key, features: &granted },
            Opcode::SASL_AUTH => Request::SaslAuth { mechanism: &key, message: value },
            Opcode::SELECT_BUCKET => Request::SelectBucket(&key),
            Opcode::DCP_OPEN => Request::DcpOpen { name: &key, flags: last() },
            Opcode::DCP_CONTROL => Request::Control { name: &key, value: &value_text },
            Opcode::DCP_CLOSE_STREAM => Request::CloseStream(vb),
            Opcode::DCP_FAILOVER_LOG => Request::FailoverLog(vb),
            Opcode::DCP_BUFFER_ACK => Request::BufferAck(last()),
            Opcode::DCP_NOOP => Request::NoopAnswer,
            // The recording has one that is short on purpose, and filters of other kinds.
            Opcode::DCP_STREAM_REQ if frame.extras.len() == 48 && (value.is_empty() || value == FILTER) => {
                let [seqno, to, vbuuid, snap_start, snap_end] = [8, 16, 24, 32, 40].map(extra);
                let (seqno, snap_start, snap_end) = (Seqno(seqno), Seqno(snap_start), Seqno(snap_end));
                stream.from = Position { vbuuid: VbUuid(vbuuid), seqno, snap_start, snap_end };
                stream.to = Seqno(to);
                stream.flags = u32::from_be_bytes(*frame.extras.first_chunk().unwrap());
                Request::Stream(&stream, (!value.is_empty()).then_some(CollectionId(8)))
            }
            _ => continue,
        };
        request.encode(frame.opaque, &mut written).unwrap();
        assert_eq!(hex(&written), hex(&bytes), "{request:?}");
        count += 1;
    }
    assert!(count > 230, "{count}");
}

/// The filter of one collection, as the recording has it.
const FILTER: &[u8] = br#"{"collections":["8"]}"#;
