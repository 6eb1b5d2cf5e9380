//! The wire's words: documented frames, recorded sessions, and bytes that are neither.

use std::fmt::Write;

use dormouse::event::{Datatype, OsoEdge, Seqno, StreamEndReason, StreamStatus, VbId, VbUuid};
use dormouse::source::dcp::{
    AnswerError, Body, BodyError, CollectionId, Decoded, FRAME_BYTES_MAX, FailoverLog, Feature, Frame,
    FrameError, HEADER_BYTES, Magic, Message, MessageError, Opcode, Request, Status, StreamRequest, features,
    stream_status, vb_seqnos,
};
use dormouse::timestamp::Position;
use serde_json::Value;

use crate::support::wire::{data, frame_lines, from_hex};

fn whole(bytes: &[u8]) -> Frame<'_> {
    match Frame::decode(bytes, FRAME_BYTES_MAX) {
        Ok(Decoded::Whole(frame, len)) if len == bytes.len() => frame,
        other => panic!("{other:?} of {bytes:02x?}"),
    }
}

/// The frame that documents print under this number.
fn documented(number: u64) -> Vec<u8> {
    let lines = data("documented.jsonl");
    let line = lines.iter().find(|line| line["n"] == number).unwrap();
    from_hex(line["hex"].as_str().unwrap())
}

fn message(bytes: &[u8]) -> Message<'_> {
    Message::decode(&whole(bytes), false).unwrap()
}

/// Where the documents' text says something else than their bytes: number of the frame, field, what it says.
const WRONG_TEXTS: &[(u64, &str, u64)] = &[
    (18, "total body", 0x80),
    (24, "opcode", 0x60),
    (56, "opaque", 0xdead_beef),
    (74, "magic", 0x82),
    (74, "opaque", 0xfeca_adde),
    (75, "opcode", 0x04),
];

#[test]
fn documented_frames_have_the_documented_fields_and_are_written_as_the_same_bytes() {
    let mut count = 0;
    for line in data("documented.jsonl").iter().filter(|line| line["consistent"] == true) {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let frame = whole(&bytes);
        let mut written = Vec::new();
        frame.encode(&mut written).unwrap();
        assert_eq!(written, bytes, "{line}");
        let body = bytes.len() - HEADER_BYTES;
        let number = line["n"].as_u64().unwrap();
        for (field, value) in line["fields"].as_object().unwrap() {
            let value = value.as_u64().unwrap();
            let read = match field.as_str() {
                "magic" => u64::from(bytes[0]),
                "opcode" => u64::from(frame.opcode.0),
                "key length" => frame.key.len() as u64,
                "extra length" => frame.extras.len() as u64,
                "data type" => u64::from(frame.datatype),
                "vbucket" | "status" => u64::from(frame.vb_or_status),
                "total body" => body as u64,
                "opaque" => u64::from(frame.opaque),
                "cas" => frame.cas,
                other => panic!("{other}"),
            };
            let is_wrong_text = WRONG_TEXTS.contains(&(number, field, value));
            assert!(read == value || is_wrong_text, "{field} of frame {number}: {read:#x}, told {value:#x}");
        }
        count += 1;
    }
    assert_eq!(count, 63);
}

#[test]
fn documented_frames_whose_lengths_are_wrong_are_rejected() {
    let mut count = 0;
    for line in data("documented.jsonl").iter().filter(|line| line["consistent"] == false) {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let is_message = match Frame::decode(&bytes, FRAME_BYTES_MAX) {
            Ok(Decoded::Whole(frame, len)) => {
                len == bytes.len() && frame.magic.is_request() && Message::decode(&frame, false).is_ok()
            }
            Ok(Decoded::Partial(_)) | Err(_) => false,
        };
        assert!(!is_message, "{line}");
        count += 1;
    }
    assert_eq!(count, 12);
}

#[test]
fn a_documented_mutation_has_its_fields() {
    let bytes = documented(20);
    let Message::Mutation(mutation) = message(&bytes) else { panic!("no mutation") };
    assert_eq!((mutation.seqno, mutation.revision), (Seqno(4), 1));
    assert_eq!((mutation.key.name, mutation.value), (&b"hello"[..], &b"world"[..]));
    assert_eq!((mutation.flags, mutation.expiry, mutation.lock_time, mutation.nru), (0, 0, 0, 0));
}

#[test]
fn a_documented_stream_end_is_finished() {
    assert_eq!(message(&documented(30)), Message::StreamEnd(StreamEndReason::Finished));
}

#[test]
fn a_documented_system_event_names_its_collection_and_its_scope() {
    let bytes = documented(35);
    let Message::SystemEvent(event) = message(&bytes) else { panic!("no system event") };
    assert_eq!((event.seqno, event.event, event.version, event.name), (Seqno(4), 0, 1, &b"mycollection"[..]));
    // The document tells the two ids the other way round; recorded sessions have the scope first.
    let subject = event.subject.unwrap();
    assert_eq!((subject.manifest_uid, subject.max_ttl), (2, Some(0x11940)));
    assert_eq!((subject.scope, subject.collection), (8, Some(CollectionId(0))));
}

#[test]
fn documented_answers_to_stream_requests_are_a_branch_and_a_rollback() {
    let (success, rollback) = (documented(34), documented(32));
    let status = |bytes: &[u8]| {
        let frame = whole(bytes);
        stream_status(Status(frame.vb_or_status), frame.value).unwrap()
    };
    assert_eq!(status(&success), StreamStatus::Success { vbuuid: VbUuid(0xfeed_deca) });
    assert_eq!(status(&rollback), StreamStatus::Rollback { to: Seqno(0) });
}

#[test]
fn documented_failover_logs_are_read_newest_first() {
    for number in [13, 59] {
        let bytes = documented(number);
        let log = FailoverLog::decode(whole(&bytes).value).unwrap();
        let branch = |vbuuid, seqno| (VbUuid(vbuuid), Seqno(seqno));
        let told = [
            branch(0xfeed_deca, 0x5432),
            branch(0xde_cafe, 0x0134_3214),
            branch(0xfeed_face, 4),
            branch(0xdead_beef, 0x6524),
        ];
        assert_eq!(log.entries(), told);
        assert_eq!(log.newest(), VbUuid(0xfeed_deca));
    }
}

#[test]
fn documented_seqnos_of_vbuckets_are_read() {
    let bytes = documented(19);
    let told = [(10, 0x5432), (13, 0x0134_3214), (127, 4), (720, 0x6524)];
    assert_eq!(vb_seqnos(whole(&bytes).value).unwrap(), told.map(|(vb, seqno)| (VbId(vb), Seqno(seqno))));
}

#[test]
fn requests_are_written_as_documents_print_them() {
    let from = Position {
        vbuuid: VbUuid(0xfeed_deca),
        seqno: Seqno(0x00ff_eedd),
        snap_start: Seqno(0x00ff_eedd),
        snap_end: Seqno(0x00ff_eeff),
    };
    let stream = StreamRequest { vb: VbId(0), flags: 0, from, to: Seqno::OPEN_END };
    // The document's window does not hold its start; everything up to there is compared.
    let mut written = Vec::new();
    Request::Stream(&stream, None).encode(0x1000, &mut written).unwrap();
    assert_eq!(written[..56], documented(31)[..56]);
    let requests = [
        (6, Request::CloseStream(VbId(5)), 0xdead_beef),
        (12, Request::FailoverLog(VbId(0)), 0xdead_beef),
        (57, Request::SelectBucket("engineering"), 0xefbe_adde),
        (61, Request::SaslMechanisms, 0),
        (63, Request::SaslAuth { mechanism: "PLAIN", message: b"\0user\0pencil" }, 0),
        (21, Request::DcpOpen { name: "bucketstream vb[100-105]", flags: 0 }, 1),
    ];
    for (number, request, opaque) in requests {
        let mut written = Vec::new();
        request.encode(opaque, &mut written).unwrap();
        assert_eq!(written, documented(number), "{request:?}");
    }
}

#[test]
fn captured_frames_with_stream_numbers_are_read_with_their_collections() {
    let lines = data("captured.jsonl");
    let bytes = |name: &str| {
        let line = lines.iter().find(|line| line["name"].as_str().unwrap().contains(name)).unwrap();
        from_hex(line["hex"].as_str().unwrap())
    };
    let mutation = bytes("header.0x57");
    let frame = whole(&mutation);
    assert_eq!((frame.magic, frame.stream_id().unwrap()), (Magic::FlexRequest, Some(1)));
    let Message::Mutation(read) = Message::decode(&frame, true).unwrap() else { panic!("no mutation") };
    assert_eq!((read.seqno, read.key.collection), (Seqno(24), CollectionId(8)));
    assert_eq!(read.key.name, b"xdcrProvCollections_C29854");
    let marker = bytes("header.0x56");
    let Message::SnapshotMarker(read) = message(&marker) else { panic!("no marker") };
    assert_eq!((read.start, read.end, read.is_disk()), (Seqno(0), Seqno(24), true));
    let scope = bytes("scopeDel");
    let Message::SystemEvent(read) = message(&scope) else { panic!("no system event") };
    let subject = read.subject.unwrap();
    assert_eq!((read.event, subject.scope, subject.collection), (4, 8, None));
    let compressed = bytes("defaultScopeDefaultColMutation");
    let Message::Mutation(read) = Message::decode(&whole(&compressed), true).unwrap() else { panic!("none") };
    let mut scratch = Vec::new();
    let body = Body::decode(read.datatype, read.value, 1 << 20, &mut scratch).unwrap();
    let document: Value = serde_json::from_slice(body.document).unwrap();
    assert_eq!(document["click"], "to edit");
    for line in &lines {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        if bytes.len() > HEADER_BYTES {
            let mut written = Vec::new();
            whole(&bytes).encode(&mut written).unwrap();
            assert_eq!(written, bytes, "{line}");
        }
    }
}

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
    let message = Message::decode(frame, collections).unwrap();
    let key = |collection: CollectionId, name: &[u8]| {
        let mut key = Vec::new();
        if collections {
            collection.put(&mut key);
        }
        key.extend_from_slice(name);
        shown(&key)
    };
    let stream = frame.stream_id().unwrap().map(|id| format!(" frames=22{id:04x}")).unwrap_or_default();
    let head = format!("vb={} opq={:#x}{stream}", frame.vb_or_status, frame.opaque);
    let removed = |name: &str, removal: dormouse::source::dcp::Removal<'_>| {
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

#[test]
fn recorded_sessions_replay_to_what_the_session_tells() {
    let session = std::fs::read_to_string("tests/data/dcp/session.txt").unwrap();
    let mut lines = session.lines().filter_map(|line| line.trim().strip_prefix("-> ")).peekable();
    let mut messages = 0;
    for line in frame_lines() {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let frame = whole(&bytes);
        if line["dir"] != "S>C" || frame.magic.is_response() {
            continue;
        }
        // One connection did not ask for collections.
        let text = told(&frame, line["c"] != "A3");
        messages += 1;
        // What came under flow control is not told.
        if lines.peek().is_some_and(|line| **line == text) {
            lines.next();
        }
    }
    assert_eq!(messages, 319);
    assert_eq!(lines.next(), None, "this was told and not read");
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

#[test]
fn ids_of_collections_are_read_and_written_in_their_shortest_form() {
    let vectors: [(u32, &[u8]); 13] = [
        (0, &[0]),
        (1, &[1]),
        (0x7f, &[0x7f]),
        (0x80, &[0x80, 1]),
        (0x555, &[0xd5, 0x0a]),
        (0x7fff, &[0xff, 0xff, 1]),
        (0xbfff, &[0xff, 0xff, 2]),
        (0xffff, &[0xff, 0xff, 3]),
        (0x8000, &[0x80, 0x80, 2]),
        (0x5555, &[0xd5, 0xaa, 1]),
        (0x0caf_ef00, &[0x80, 0xde, 0xbf, 0x65]),
        (0xcafe_f00d, &[0x8d, 0xe0, 0xfb, 0xd7, 0x0c]),
        (0xffff_ffff, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
    ];
    for (id, bytes) in vectors {
        let mut written = Vec::new();
        CollectionId(id).put(&mut written);
        assert_eq!(written, bytes);
        let mut key = bytes.to_vec();
        key.extend_from_slice(b"key");
        assert_eq!(CollectionId::split(&key), Some((CollectionId(id), &b"key"[..])));
    }
    let none: [&[u8]; 5] = [&[], &[0x80], &[0x80, 0], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0x80; 8]];
    for bytes in none {
        assert_eq!(CollectionId::split(bytes), None, "{bytes:02x?}");
    }
}

/// A frame with these parts.
fn frame(opcode: Opcode, extras: &[u8], key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (magic, datatype, framing): (_, u8, &[u8]) = (Magic::Request, 0, &[]);
    Frame { magic, opcode, datatype, vb_or_status: 3, opaque: 7, cas: 0, framing, extras, key, value }
        .encode(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn a_message_that_is_short_by_a_byte_is_an_error_and_no_panic() {
    let lengths = [
        (Opcode::DCP_MUTATION, 31, 2, 0),
        (Opcode::DCP_DELETION, 18, 2, 0),
        (Opcode::DCP_DELETION, 21, 2, 0),
        (Opcode::DCP_EXPIRATION, 20, 2, 0),
        (Opcode::DCP_SNAPSHOT_MARKER, 20, 0, 0),
        (Opcode::DCP_SNAPSHOT_MARKER, 1, 0, 36),
        (Opcode::DCP_SYSTEM_EVENT, 13, 0, 16),
        (Opcode::DCP_SEQNO_ADVANCED, 8, 0, 0),
        (Opcode::DCP_STREAM_END, 4, 0, 0),
        (Opcode::DCP_NOOP, 0, 0, 0),
    ];
    for (opcode, extras, key, value) in lengths {
        let zeros = [0; 64];
        let decoded = |extras: usize, value: usize| {
            let key = if key == 0 { &zeros[..0] } else { &b"\0k"[..] };
            let bytes = frame(opcode, &zeros[..extras], key, &zeros[..value]);
            Message::decode(&whole(&bytes), true).map(|_| ())
        };
        assert_eq!(decoded(extras, value), Ok(()), "{opcode}");
        assert!(matches!(decoded(extras + 1, value), Err(MessageError::Length { .. })), "{opcode}");
        if extras > 0 {
            assert!(matches!(decoded(extras - 1, value), Err(MessageError::Length { .. })), "{opcode}");
        }
        if value > 0 {
            assert!(matches!(decoded(extras, value - 1), Err(MessageError::Length { .. })), "{opcode}");
        }
    }
}

#[test]
fn a_marker_of_version_two_is_read_from_its_value_and_not_beyond() {
    let mut value = Vec::new();
    for number in [1_u64, 8] {
        value.extend_from_slice(&number.to_be_bytes());
    }
    value.extend_from_slice(&2_u32.to_be_bytes());
    value.extend_from_slice(&8_u64.to_be_bytes());
    value.extend_from_slice(&7_u64.to_be_bytes());
    let bytes = frame(Opcode::DCP_SNAPSHOT_MARKER, &[0], &[], &value);
    let Message::SnapshotMarker(marker) = message(&bytes) else { panic!("no marker") };
    assert_eq!((marker.start, marker.end, marker.is_disk()), (Seqno(1), Seqno(8), true));
    assert_eq!(marker.max_visible, Some(Seqno(8)));
    let of_version = |version: u8, value: &[u8]| {
        let bytes = frame(Opcode::DCP_SNAPSHOT_MARKER, &[version], &[], value);
        Message::decode(&whole(&bytes), false).map(|_| ())
    };
    value.extend_from_slice(&[0; 16]);
    assert_eq!(of_version(2, &value), Ok(()));
    assert!(matches!(of_version(0, &value), Err(MessageError::Length { part: "value", .. })));
    assert!(matches!(of_version(3, &value), Err(MessageError::Field { field: "version", .. })));
    // Extras of version 1 with a body behind them, and a window that ends before it starts.
    let long = frame(Opcode::DCP_SNAPSHOT_MARKER, &[0; 20], &[], &[0]);
    assert!(Message::decode(&whole(&long), false).is_err());
    let mut backwards = [0; 20];
    backwards[7] = 9;
    let backwards = frame(Opcode::DCP_SNAPSHOT_MARKER, &backwards, &[], &[]);
    assert!(matches!(
        Message::decode(&whole(&backwards), false),
        Err(MessageError::Field { field: "last seqno", .. })
    ));
}

#[test]
fn edges_of_out_of_order_snapshots_are_read() {
    let edge = |number: u32| {
        let bytes = frame(Opcode::DCP_OSO_SNAPSHOT, &number.to_be_bytes(), &[], &[]);
        Message::decode(&whole(&bytes), true).ok().map(|message| match message {
            Message::OsoSnapshot(edge) => edge,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!([edge(1), edge(2), edge(3)], [Some(OsoEdge::Start), Some(OsoEdge::End), None]);
}

#[test]
fn a_system_event_of_a_collection_keeps_scope_and_collection_apart() {
    let mut extras = [0; 13];
    extras[7] = 5;
    for (event, name) in [(0_u8, &b"orders"[..]), (1, &b""[..]), (2, &b""[..])] {
        extras[11] = event;
        let mut value = 9_u64.to_be_bytes().to_vec();
        value.extend_from_slice(&0x11_u32.to_be_bytes());
        value.extend_from_slice(&0x22_u32.to_be_bytes());
        let bytes = frame(Opcode::DCP_SYSTEM_EVENT, &extras, name, &value);
        let Message::SystemEvent(read) = message(&bytes) else { panic!("no system event") };
        let subject = read.subject.unwrap();
        assert_eq!((subject.scope, subject.collection), (0x11, Some(CollectionId(0x22))), "{event}");
    }
}

#[test]
fn answers_that_are_cut_off_are_refused() {
    assert_eq!(FailoverLog::decode(&[]), Err(AnswerError::FailoverLog(0)));
    assert_eq!(FailoverLog::decode(&[0; 17]), Err(AnswerError::FailoverLog(17)));
    assert_eq!(stream_status(Status::ROLLBACK, &[0; 7]), Err(AnswerError::Rollback(7)));
    assert_eq!(stream_status(Status::SUCCESS, &[]), Err(AnswerError::FailoverLog(0)));
    assert_eq!(vb_seqnos(&[0; 11]), Err(AnswerError::VbSeqnos(11)));
    assert_eq!(features(&[0; 3]), Err(AnswerError::Features(3)));
    assert_eq!(features(&[0, 0x12]), Ok(vec![Feature::COLLECTIONS]));
    let refused = stream_status(Status::NOT_MY_VBUCKET, b"{\"rev\":2}");
    assert_eq!(refused, Ok(StreamStatus::Refused { status: 7 }));
}

#[test]
fn extended_attributes_are_stripped_from_a_document_and_can_be_read() {
    let mut value = Vec::new();
    let pairs: [(&[u8], &[u8]); 2] = [(b"_sync", br#"{"rev":1}"#), (b"user", b"7")];
    let mut blob = Vec::new();
    for (name, content) in pairs {
        let pair = [name, &[0], content, &[0]].concat();
        blob.extend_from_slice(&u32::try_from(pair.len()).unwrap().to_be_bytes());
        blob.extend_from_slice(&pair);
    }
    value.extend_from_slice(&u32::try_from(blob.len()).unwrap().to_be_bytes());
    value.extend_from_slice(&blob);
    value.extend_from_slice(br#"{"a":1}"#);
    let compressed = snap::raw::Encoder::new().compress_vec(&value).unwrap();
    for (datatype, value) in [(0x05, &value), (0x07, &compressed)] {
        let mut scratch = Vec::new();
        let body = Body::decode(datatype, value, 1024, &mut scratch).unwrap();
        assert_eq!(body.document, br#"{"a":1}"#);
        let read: Vec<_> = body.xattrs.map(Result::unwrap).collect();
        assert_eq!(read, pairs);
    }
    assert_eq!(Body::document_datatype(0x07), Datatype(0x05));
    let mut scratch = Vec::new();
    let cut_off = Body::decode(0x04, &value[..6], 1024, &mut scratch);
    assert_eq!(cut_off.err(), Some(BodyError::Xattrs));
    let endless = [&[0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 1][..], b"x"].concat();
    let mut scratch = Vec::new();
    let mut xattrs = Body::decode(0x04, &endless, 1024, &mut scratch).unwrap().xattrs;
    assert_eq!((xattrs.next(), xattrs.next()), (Some(Err(BodyError::Xattrs)), None));
}

#[test]
fn a_value_that_would_inflate_beyond_the_limit_is_refused_before_it_is() {
    let bomb = snap::raw::Encoder::new().compress_vec(&vec![0; 1 << 20]).unwrap();
    let mut scratch = Vec::new();
    let refused = Body::decode(0x02, &bomb, 4096, &mut scratch).err();
    assert_eq!(refused, Some(BodyError::TooLong { bytes: 1 << 20, limit: 4096 }));
    // A length that is claimed and cannot be kept.
    let claim = [0x80, 0x80, 0x80, 0x08, 0, 1];
    assert_eq!(Body::decode(0x02, &claim, 1 << 24, &mut scratch).err(), Some(BodyError::Snappy));
    assert!(scratch.capacity() <= 4096, "{} bytes were allocated", scratch.capacity());
}

#[test]
fn a_frame_beyond_the_limit_is_refused_by_its_header() {
    let mut bytes = frame(Opcode::DCP_MUTATION, &[0; 31], b"\0k", b"v");
    bytes[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    let refused = Frame::decode(&bytes, 1024);
    assert!(matches!(refused, Err(FrameError::TooLong { limit: 1024, .. })), "{refused:?}");
    assert_eq!(Frame::decode(&[0x47], 1024), Err(FrameError::Magic(0x47)));
}

#[test]
fn frames_that_are_split_at_any_byte_are_the_same_frames() {
    for line in frame_lines().iter().take(120) {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        for at in 0..bytes.len() {
            match Frame::decode(&bytes[..at], FRAME_BYTES_MAX) {
                Ok(Decoded::Partial(need)) => assert!(need > at && need <= bytes.len()),
                other => panic!("{other:?} of {at} bytes of {line}"),
            }
        }
    }
}
