//! The wire's words at their edges: lengths, versions and bytes that are none.

use dormouse::event::{Datatype, OsoEdge, Seqno, StreamStatus, XattrsCutOff};
use dormouse::source::dcp::{
    AnswerError, Body, BodyError, CollectionId, Decoded, FRAME_BYTES_MAX, FailoverLog, Feature, Frame,
    FrameError, Magic, Message, MessageError, Opcode, Status, features, stream_status, vb_seqnos,
};

use crate::support::wire::{frame_lines, from_hex, message, whole};

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
            Message::decode(&whole(&bytes)).map(|_| ())
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
        Message::decode(&whole(&bytes)).map(|_| ())
    };
    value.extend_from_slice(&[0; 16]);
    assert_eq!(of_version(2, &value), Ok(()));
    assert!(matches!(of_version(0, &value), Err(MessageError::Length { part: "value", .. })));
    assert!(matches!(of_version(3, &value), Err(MessageError::Field { field: "version", .. })));
    // Extras of version 1 with a body behind them, and a window that ends before it starts.
    let long = frame(Opcode::DCP_SNAPSHOT_MARKER, &[0; 20], &[], &[0]);
    assert!(Message::decode(&whole(&long)).is_err());
    let mut backwards = [0; 20];
    backwards[7] = 9;
    let backwards = frame(Opcode::DCP_SNAPSHOT_MARKER, &backwards, &[], &[]);
    assert!(matches!(
        Message::decode(&whole(&backwards)),
        Err(MessageError::Field { field: "last seqno", .. })
    ));
}

#[test]
fn edges_of_out_of_order_snapshots_are_read() {
    let edge = |number: u32| {
        let bytes = frame(Opcode::DCP_OSO_SNAPSHOT, &number.to_be_bytes(), &[], &[]);
        Message::decode(&whole(&bytes)).ok().map(|message| match message {
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
    assert_eq!((xattrs.next(), xattrs.next()), (Some(Err(XattrsCutOff)), None));
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
