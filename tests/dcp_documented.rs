//! The wire's words as documents of the KV engine print them, and as other clients have captured them.

use dormouse::event::{OsoEdge, Seqno, StreamEndReason, StreamStatus, VbId, VbUuid};
use dormouse::source::dcp::{
    Body, CollectionId, Decoded, FRAME_BYTES_MAX, FailoverLog, Feature, Frame, HEADER_BYTES, Magic, Message,
    Opcode, Request, SnapshotMarker, Status, StreamRequest, features, stream_status, vb_seqnos,
};
use dormouse::timestamp::Position;
use serde_json::Value;

use crate::support::wire::{data, from_hex, in_default_collection, message, whole};

/// The frame that documents print under this number.
fn documented(number: u64) -> Vec<u8> {
    let lines = data("documented.jsonl");
    let line = lines.iter().find(|line| line["n"] == number).unwrap();
    from_hex(line["hex"].as_str().unwrap())
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
fn documented_frames_have_their_parts_where_documents_say() {
    let mut count = 0;
    for line in data("documented.jsonl").iter().filter(|line| line["consistent"] == true) {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let frame = whole(&bytes);
        let extras = HEADER_BYTES..HEADER_BYTES + frame.extras.len();
        let value = bytes.len() - frame.value.len();
        for part in line["parts"].as_array().unwrap() {
            let name = part[0].as_str().unwrap();
            let [from, to] = [1, 2].map(|at| usize::try_from(part[at].as_u64().unwrap()).unwrap());
            // One document counts one byte more than it prints.
            let told = &bytes[from..bytes.len().min(to + 1)];
            // The document says zero, and prints what it says of the start before.
            let is_wrong_text = line["n"] == 31 && name == "snapshot start seqno";
            match (&part[3], name) {
                (Value::String(text), "key") => {
                    assert_eq!(text.as_bytes(), told);
                    assert!(frame.key.ends_with(told), "{line}");
                }
                (Value::String(text), "value") => assert_eq!((text.as_bytes(), frame.value), (told, told)),
                // The collection's id stands at the front of the key.
                (number, "key (cid)") => {
                    assert!(number == 0xab04 && frame.key.starts_with(&[0xab, 0x04]), "{line}");
                }
                (number, _) => {
                    let within = if extras.contains(&from) {
                        &frame.extras[from - extras.start..=to - extras.start]
                    } else {
                        &frame.value[from - value..=to - value]
                    };
                    let read = within.iter().fold(0_u64, |read, byte| read << 8 | u64::from(*byte));
                    assert!(number.as_u64() == Some(read) || is_wrong_text, "{name} of {line}");
                }
            }
            count += 1;
        }
    }
    assert_eq!(count, 102);
}

/// Frames whose documents forgot parts of them in their headers, with the header mended: to the length of the extras,
/// and to the opcode that the document is about.
#[test]
fn documented_frames_whose_lengths_are_mended_have_the_documented_fields() {
    let mended = |number: u64, extras: usize| {
        let mut bytes = documented(number);
        let body = u32::try_from(bytes.len() - HEADER_BYTES).unwrap();
        bytes[4] = u8::try_from(extras).unwrap();
        bytes[8..12].copy_from_slice(&body.to_be_bytes());
        bytes
    };
    let expiration = in_default_collection(&mended(11, 20));
    let Message::Expiration(removal) = message(&expiration) else { panic!("no expiration") };
    assert_eq!((removal.seqno, removal.revision, removal.time), (Seqno(5), 1, Some(0)));
    assert_eq!((removal.key.name, removal.value), (&b"hello"[..], &b""[..]));
    assert_eq!(message(&mended(23, 4)), Message::OsoSnapshot(OsoEdge::Start));
    let mut advanced = mended(26, 8);
    advanced[1] = Opcode::DCP_SEQNO_ADVANCED.0;
    assert_eq!(message(&advanced), Message::SeqnoAdvanced(Seqno(4)));
    let marker = SnapshotMarker { start: Seqno(0), end: Seqno(8), kind: 1, max_visible: None };
    assert_eq!(message(&mended(28, 20)), Message::SnapshotMarker(marker));
    // The document tells version 0, and prints 1.
    let mut second = mended(29, 1);
    second[24] = 0;
    let marker = SnapshotMarker { start: Seqno(1), end: Seqno(8), kind: 2, max_visible: Some(Seqno(8)) };
    assert_eq!(message(&second), Message::SnapshotMarker(marker));
}

#[test]
fn documented_features_are_read() {
    let read = |number: u64| features(whole(&documented(number)).value).unwrap();
    assert_eq!(read(53), [1, 2, 3, 4, 5].map(Feature));
    assert_eq!(read(54), [3, 4].map(Feature));
}

#[test]
fn documented_frames_whose_lengths_are_wrong_are_rejected() {
    let mut count = 0;
    for line in data("documented.jsonl").iter().filter(|line| line["consistent"] == false) {
        let bytes = from_hex(line["hex"].as_str().unwrap());
        let is_message = match Frame::decode(&bytes, FRAME_BYTES_MAX) {
            Ok(Decoded::Whole(frame, len)) => {
                len == bytes.len() && frame.magic.is_request() && Message::decode(&frame).is_ok()
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
    let bytes = in_default_collection(&documented(20));
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
    let stream = StreamRequest { flags: 0, ..StreamRequest::follow(VbId(0), from) };
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
    assert_eq!((frame.magic, frame.framing), (Magic::FlexRequest, &[0x22, 0, 1][..]));
    let Message::Mutation(read) = Message::decode(&frame).unwrap() else { panic!("no mutation") };
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
    let Message::Mutation(read) = Message::decode(&whole(&compressed)).unwrap() else { panic!("none") };
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
