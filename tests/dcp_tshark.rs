//! The decoder beside one that others wrote: `tshark`, the reader of captures of Wireshark, is given what crossed the
//! test producer's sockets and what was recorded of a real server, and has to see the same fields, frame by frame.
//!
//! Where `tshark` is not installed these tests say so in one line and are over, or fail where `.ci/run` has to have
//! installed it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::Command;

use dormouse::event::{OsoEdge, Seqno, StreamEndReason, VbId, VbUuid};
use dormouse::source::dcp::{
    Body, CollectionId, DcpConfig, Decoded, FRAME_BYTES_MAX, FailoverLog, Frame, Message, Mutation, Opcode,
    Removal, SnapshotMarker, Status, features, vb_seqnos,
};
use dormouse::timestamp::Position;
use slog::{Discard, Logger, o};
use tempfile::TempDir;

use crate::support::capture::{Capture, PORT};
use crate::support::followed::{Followed, open};
use crate::support::producer::{Producer, Raw, What};
use crate::support::wire::{frame_lines, from_hex, in_default_collection, whole};
use crate::support::{eventually, skip_without, watchdog};

/// Fields of a frame, by the names that `tshark` has for them.
type Row = BTreeMap<&'static str, String>;

const COLUMNS: [&str; 42] = [
    "magic",
    "opcode",
    "extras.length",
    "key.length",
    "value.length",
    "datatype",
    "vbucket",
    "status",
    "total_bodylength",
    "opaque",
    "cas",
    "flex_frame.frame.dcp_stream_id",
    "key.collection_id",
    "key.logical_key",
    "key",
    "value",
    "extras.by_seqno",
    "extras.rev_seqno",
    "extras.flags",
    "extras.expiration",
    "extras.lock_time",
    "extras.nmeta",
    "extras.nru",
    "extras.delete_time",
    "extras.start_seqno",
    "extras.end_seqno",
    "extras.vbucket_uuid",
    "extras.snap_start_seqno",
    "extras.snap_end_seqno",
    "extras.max_visible_seqno",
    "extras.system_event_id",
    "extras.system_event_version",
    "extras.dcp_oso_snapshot_flags",
    "extras.bytes_to_ack",
    "extras.unknown",
    "dcp.failover_log.vbucket_uuid",
    "dcp.failover_log.seqno",
    "vbucket_states.id",
    "vbucket_states.seqno",
    "hello.features.feature",
    "xattrs.pair.key",
    "xattrs.pair.value",
];

/// Notes of `tshark` that are about no frame's form: a status that is no success, and what it has to say of every
/// value that is no text.
fn is_harmless(note: &str) -> bool {
    const STATUSES: [&str; 8] = [
        ": Rollback",
        ": Range error",
        ": Not my vBucket",
        ": Command isn't supported",
        ": Operation attempted with an unknown collection.",
        ": Key exists",
        ": Key not found",
        ": Authentication continue",
    ];
    note.is_empty()
        || note == "Trailing stray characters"
        // Those of what is dropped have none.
        || note == "DCP System Event Request must have Key"
        || note.contains(" with status ") && note.ends_with("must have Value")
        || note.ends_with(": Invalid arguments")
        || STATUSES.iter().any(|status| note.ends_with(status))
}

/// What another reader made of a capture.
struct Reading {
    /// Of each frame that it took for one.
    rows: Vec<Row>,
    /// What it did not like, with the number of the frame.
    notes: Vec<(usize, String)>,
}

/// Reads a capture with `tshark`, which says in one line where it is not installed.
fn read(capture: &Capture) -> Option<Reading> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("session.pcap");
    capture.write(&path);
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&path).args(["-d", &format!("tcp.port=={PORT},couchbase"), "-Y", "couchbase"]);
    command.args(["-T", "fields", "-E", "separator=/t", "-E", "aggregator=;", "-e", "_ws.expert.message"]);
    for column in COLUMNS {
        command.args(["-e", &format!("couchbase.{column}")]);
    }
    // Its preferences are those that it comes with.
    let output = match command.env("HOME", folder.path()).env("LC_ALL", "C.UTF-8").output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip_without("tshark");
            return None;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for (number, line) in String::from_utf8_lossy(&output.stdout).lines().enumerate() {
        let mut fields = line.split('\t');
        let told = fields.next().unwrap().split(';');
        let row = COLUMNS.into_iter().zip(fields).filter(|(_, field)| !field.is_empty());
        let row: Row = row.map(|(column, field)| (column, field.to_owned())).collect();
        let is_mixed_up = |note: &str| note == "Null byte not found" && row["datatype"] == COMPRESSED_XATTRS;
        let wrong = told.filter(|note| !is_harmless(note) && !is_mixed_up(note));
        notes.extend(wrong.map(|note| (number, note.to_owned())));
        rows.push(row);
    }
    Some(Reading { rows, notes })
}

fn list<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(";")
}

/// The rows that this project's decoder makes.
#[derive(Default)]
struct Told(Row);

impl Told {
    fn put(&mut self, column: &'static str, text: impl std::fmt::Display) {
        let is_new = self.0.insert(column, text.to_string()).is_none();
        assert!(COLUMNS.contains(&column) && is_new, "{column}");
    }

    /// Columns that have nothing to tell are left out, as `tshark` does it.
    fn put_some(&mut self, column: &'static str, text: String) {
        if !text.is_empty() {
            self.put(column, text);
        }
    }

    fn of(bytes: &[u8], is_from_server: bool, collections: bool) -> Row {
        let frame = match Frame::decode(bytes, FRAME_BYTES_MAX) {
            Ok(Decoded::Whole(frame, len)) if len == bytes.len() => frame,
            other => panic!("{other:?} of {bytes:02x?}"),
        };
        let mut told = Self::default();
        told.header(&frame, bytes);
        if frame.magic.is_response() {
            told.answer(&frame);
        } else if is_from_server {
            let with = if collections { bytes.to_vec() } else { in_default_collection(bytes) };
            told.message(&whole(&with), collections);
        } else {
            told.request(&frame);
        }
        told.0
    }

    fn header(&mut self, frame: &Frame<'_>, bytes: &[u8]) {
        self.put("magic", format!("{:#04x}", bytes[0]));
        self.put("opcode", format!("{:#04x}", frame.opcode.0));
        self.put("extras.length", frame.extras.len());
        self.put("key.length", frame.key.len());
        self.put("value.length", frame.value.len());
        self.put("datatype", format!("{:#04x}", frame.datatype));
        if frame.magic.is_response() {
            self.put("status", format!("{:#06x}", frame.vb_or_status));
        } else {
            self.put("vbucket", frame.vb_or_status);
        }
        self.put("total_bodylength", bytes.len() - 24);
        // It is shown the other way round.
        self.put("opaque", format!("{:#010x}", frame.opaque.swap_bytes()));
        self.put("cas", format!("{:#018x}", frame.cas));
        if let [0x22, stream @ ..] = frame.framing {
            self.put("flex_frame.frame.dcp_stream_id", u16::from_be_bytes(stream.try_into().unwrap()));
        }
    }

    fn text(&mut self, column: &'static str, bytes: &[u8]) {
        let is_text = bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
        if is_text && !bytes.is_empty() {
            self.put(column, String::from_utf8_lossy(bytes));
        }
    }

    fn answer(&mut self, frame: &Frame<'_>) {
        let is_success = Status(frame.vb_or_status) == Status::SUCCESS;
        match frame.opcode {
            Opcode::DCP_STREAM_REQ | Opcode::DCP_FAILOVER_LOG if is_success => {
                let log = FailoverLog::decode(frame.value).unwrap();
                let branches = log.entries();
                let vbuuids = list(branches, |(vbuuid, _)| format!("{:#018x}", vbuuid.0));
                self.put("dcp.failover_log.vbucket_uuid", vbuuids);
                self.put("dcp.failover_log.seqno", list(branches, |(_, seqno)| seqno.to_string()));
            }
            Opcode::GET_ALL_VB_SEQNOS if is_success => {
                let seqnos = vb_seqnos(frame.value).unwrap();
                self.put_some("vbucket_states.id", list(&seqnos, |(vb, _)| vb.to_string()));
                self.put_some("vbucket_states.seqno", list(&seqnos, |(_, seqno)| seqno.to_string()));
            }
            Opcode::HELLO => self.features(frame),
            _ => self.text("value", frame.value),
        }
    }

    fn features(&mut self, frame: &Frame<'_>) {
        let features = features(frame.value).unwrap();
        self.put("hello.features.feature", list(features, |feature| format!("{:#06x}", feature.0)));
    }

    /// What requests carry is not read by the library; here it stands as documents say.
    fn request(&mut self, frame: &Frame<'_>) {
        let u32_at = |at: usize| u32::from_be_bytes(frame.extras[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_be_bytes(frame.extras[at..at + 8].try_into().unwrap());
        self.text("key", frame.key);
        match frame.opcode {
            Opcode::HELLO => self.features(frame),
            Opcode::DCP_OPEN => self.put("extras.flags", format!("{:#010x}", u32_at(4))),
            Opcode::DCP_BUFFER_ACK => self.put("extras.bytes_to_ack", u32_at(0)),
            Opcode::DCP_STREAM_REQ => {
                self.put("extras.flags", format!("{:#010x}", u32_at(0)));
                self.put("extras.start_seqno", u64_at(8));
                self.put("extras.end_seqno", u64_at(16));
                self.put("extras.vbucket_uuid", format!("{:#018x}", u64_at(24)));
                self.put("extras.snap_start_seqno", u64_at(32));
                self.put("extras.snap_end_seqno", u64_at(40));
            }
            _ => {}
        }
        if frame.opcode != Opcode::HELLO {
            self.text("value", frame.value);
        }
    }

    fn message(&mut self, frame: &Frame<'_>, collections: bool) {
        match Message::decode(frame).unwrap() {
            Message::Mutation(mutation) => self.mutation(&mutation, collections),
            Message::Deletion(removal) | Message::Expiration(removal) => self.removal(&removal, collections),
            Message::SnapshotMarker(marker) => self.marker(&marker),
            Message::SystemEvent(event) => {
                self.put("extras.by_seqno", event.seqno);
                self.put("extras.system_event_id", event.event);
                self.put("extras.system_event_version", event.version);
                self.text("key", event.name);
            }
            Message::SeqnoAdvanced(seqno) => self.put("extras.by_seqno", seqno),
            Message::OsoSnapshot(edge) => {
                self.put("extras.dcp_oso_snapshot_flags", if edge == OsoEdge::Start { 1 } else { 2 });
            }
            Message::StreamEnd(reason) => {
                let number = match reason {
                    StreamEndReason::Finished => 0,
                    StreamEndReason::Closed => 1,
                    StreamEndReason::StateChanged => 2,
                    other => panic!("{other}"),
                };
                // It does not know that there is a reason.
                self.put("extras.unknown", format!("{number:08x}"));
            }
            Message::Noop => {}
            Message::Unknown => panic!("the producer wrote what the decoder does not know"),
        }
    }

    fn document_key(&mut self, key: &dormouse::source::dcp::DocumentKey<'_>, collections: bool) {
        if collections {
            self.put("key.collection_id", format!("{:#010x}", key.collection.0));
            self.text("key.logical_key", key.name);
        } else {
            self.text("key", key.name);
        }
    }

    fn mutation(&mut self, mutation: &Mutation<'_>, collections: bool) {
        self.document_key(&mutation.key, collections);
        self.put("extras.by_seqno", mutation.seqno);
        self.put("extras.rev_seqno", mutation.revision);
        self.put("extras.flags", format!("{:#010x}", mutation.flags));
        self.put("extras.expiration", mutation.expiry);
        self.put("extras.lock_time", mutation.lock_time);
        self.put("extras.nmeta", mutation.meta.len());
        self.put("extras.nru", format!("{:#04x}", mutation.nru));
        let mut scratch = Vec::new();
        let body = Body::decode(mutation.datatype, mutation.value, FRAME_BYTES_MAX, &mut scratch).unwrap();
        // Where the value is compressed it shows it as it came.
        if mutation.datatype & 2 == 0 {
            let pairs: Vec<_> = body.xattrs.map(Result::unwrap).collect();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            self.put_some("xattrs.pair.key", list(&pairs, |(name, _)| text(name)));
            self.put_some("xattrs.pair.value", list(&pairs, |(_, value)| text(value)));
            self.text("value", body.document);
        }
    }

    fn removal(&mut self, removal: &Removal<'_>, collections: bool) {
        self.document_key(&removal.key, collections);
        self.put("extras.by_seqno", removal.seqno);
        self.put("extras.rev_seqno", removal.revision);
        match removal.time {
            Some(time) => self.put("extras.delete_time", time),
            // What the library does not read has to be nothing.
            None => self.put("extras.nmeta", 0),
        }
    }

    fn marker(&mut self, marker: &SnapshotMarker) {
        self.put("extras.start_seqno", marker.start);
        self.put("extras.end_seqno", marker.end);
        self.put("extras.flags", format!("{:#010x}", marker.kind));
        if let Some(seqno) = marker.max_visible {
            self.put("extras.max_visible_seqno", seqno);
        }
    }
}

/// Opcodes whose key is one of a document.
const DOCUMENTS: [&str; 3] = ["0x57", "0x58", "0x59"];

/// Datatype of a document with attributes that is compressed. `tshark` inflates it, and then looks for the names of the
/// attributes in what was not inflated.
const COMPRESSED_XATTRS: &str = "0x07";

/// Takes out what `tshark` shows wrongly: every key that begins with a collection as bare text too, every key of DCP
/// as if it began with a collection, values that are no text as far as they look like some.
fn mend(row: &mut Row, collections: bool, value_is_text: bool) {
    let is_document = DOCUMENTS.contains(&row["opcode"].as_str());
    if is_document && collections {
        row.remove("key");
    } else {
        row.remove("key.collection_id");
        row.remove("key.logical_key");
    }
    if !value_is_text {
        row.remove("value");
    }
    if row["datatype"] == COMPRESSED_XATTRS {
        row.remove("xattrs.pair.key");
        row.remove("xattrs.pair.value");
    }
}

/// Holds the reading of a capture against the decoder's, frame by frame. `collections` tells whether a connection has
/// them.
fn compare(capture: &Capture, reading: Reading, collections: impl Fn(usize) -> bool) {
    assert_eq!(reading.rows.len(), capture.frames.len(), "not every byte was taken for a part of a frame");
    for (number, (frame, mut theirs)) in capture.frames.iter().zip(reading.rows).enumerate() {
        let collections = collections(frame.connection);
        let ours = Told::of(&frame.bytes, frame.is_from_server, collections);
        mend(&mut theirs, collections, ours.contains_key("value"));
        assert_eq!(ours, theirs, "frame {number}, {:02x?}", frame.bytes);
    }
}

/// The recorded sessions. What is not as it should be in them was sent so on purpose.
#[test]
fn another_reader_sees_the_same_in_the_recorded_sessions() {
    let mut capture = Capture::default();
    let mut connections: Vec<&str> = Vec::new();
    for line in frame_lines() {
        let name = line["c"].as_str().unwrap();
        let number = connections.iter().position(|known| *known == name).unwrap_or_else(|| {
            connections.push(name);
            connections.len() - 1
        });
        capture.push(number, line["dir"] == "S>C", &from_hex(line["hex"].as_str().unwrap()));
    }
    assert_eq!(capture.frames.len(), 820);
    let Some(mut reading) = read(&capture) else { return };
    // A request for a stream that is a byte too short.
    let short =
        capture.frames.iter().position(|frame| frame.bytes[1] == 0x53 && frame.bytes[4] == 47).unwrap();
    assert_eq!(reading.notes, [(short, "Malformed Packet (Exception occurred)".to_owned())]);
    reading.rows.remove(short);
    capture.frames.remove(short);
    // One connection did not ask for collections.
    compare(&capture, reading, |connection| connections[connection] != "A3");
}

fn xattrs(pairs: &[(&str, &str)], document: &str) -> Vec<u8> {
    let mut blob = Vec::new();
    for (name, value) in pairs {
        let pair = format!("{name}\0{value}\0");
        blob.extend(u32::try_from(pair.len()).unwrap().to_be_bytes());
        blob.extend(pair.as_bytes());
    }
    [&u32::try_from(blob.len()).unwrap().to_be_bytes()[..], &blob, document.as_bytes()].concat()
}

/// Writes a bit of everything into vbuckets 0 and 1.
fn write_everything(producer: &Producer) {
    let text = format!("{{\"text\":\"{}\"}}", "abc".repeat(100));
    // Longer than a packet.
    let long = format!("{{\"long\":\"{}\"}}", "xyz".repeat(30_000));
    for vb in [0, 1] {
        for number in 0..20 {
            producer.put(vb, &format!("document-{number}"), &text);
        }
        producer.put(vb, "long", &long);
        producer.put(vb, "empty", "");
        let value = xattrs(&[("_sync", r#"{"rev":1}"#), ("user", "7")], r#"{"a":1}"#);
        producer.change(vb, "attributes", What::Put { value, datatype: 5 });
        producer.delete(vb, "document-3");
        producer.change(vb, "document-4", What::Expire);
        for collection in [8, 0x555, u32::MAX] {
            producer.change_in(collection, vb, "elsewhere", What::Put { value: b"8".to_vec(), datatype: 1 });
        }
        let subject = [&9_u64.to_be_bytes()[..], &8_u32.to_be_bytes(), &0x11_u32.to_be_bytes()].concat();
        for (event, name) in [(0, "orders"), (1, "")] {
            producer.change(vb, name, What::System { event, value: subject.clone() });
        }
    }
}

/// Follows two vbuckets to their ends.
fn follow_both(producer: &Producer, config: &DcpConfig, number: u16) -> Followed {
    let followed = open(config, number);
    for vb in [0, 1] {
        followed.follow_to(vb, producer.high(vb));
    }
    followed.until_ends(2);
    followed
}

/// Streams that are refused, closed and lost, and what else is asked for while they run.
fn ask_everything(producer: &Producer) {
    let cluster = producer.cluster();
    cluster.fetch_map(&cluster.seeds, &Logger::root(Discard, o!()), &watchdog()).unwrap();
    let followed = open(&producer.config(), 71);
    let wrong_branch = Position::at(VbUuid(1), Seqno(3));
    followed.follow(0, wrong_branch);
    producer.state.lock().vbs[2].is_active = false;
    followed.follow(2, Position::ZERO);
    let seqno = producer.high(1);
    followed.follow(1, Position::at(producer.branch(1), Seqno(seqno)));
    followed.connection.failover_log(VbId(0), &watchdog()).unwrap();
    followed.connection.vb_seqnos(&watchdog()).unwrap();
    producer.noop();
    eventually("the noop is answered", || producer.seen().noops_answered == 1);
    producer.put(1, "live", "{}");
    followed.until(|(vb, at, _)| (*vb, *at) == (1, seqno + 1));
    followed.connection.close_stream(VbId(1)).unwrap();
    followed.until_ends(1);
    // Nobody has this stream.
    followed.connection.close_stream(VbId(2)).unwrap();
    followed.follow(3, Position::ZERO);
    followed.until(|(vb, _, what)| *vb == 3 && what.starts_with("begin"));
    producer.move_vb(3, None);
    followed.until_ends(1);
    followed.close();
}

#[test]
fn another_reader_sees_the_same_in_what_crosses_the_test_producers_sockets() {
    let producer = Producer::start(4);
    producer.state.lock().capture = Some(Capture::default());
    producer.fail_over(1, 0);
    write_everything(&producer);
    let mechanisms = ["SCRAM-SHA512", "SCRAM-SHA256", "SCRAM-SHA1", "PLAIN SCRAM-SHA1"];
    for (number, mechanisms) in (64..).zip(mechanisms) {
        producer.behave(|behaviour| {
            (behaviour.mechanisms, behaviour.compresses) = (mechanisms, number == 65);
        });
        let small = DcpConfig { window_bytes: 4096, ..producer.config() };
        let collection = CollectionId(if number == 66 { 0x555 } else { 0 });
        let config = DcpConfig { out_of_order: number == 67, collection, ..small };
        follow_both(&producer, &config, number).close();
    }
    ask_everything(&producer);
    let capture = producer.state.lock().capture.take().unwrap();
    producer.check();
    let Some(reading) = read(&capture) else { return };
    assert!(reading.notes.is_empty(), "{:?}", reading.notes);
    // A bit of everything is in it.
    let opcodes: BTreeSet<&str> = reading.rows.iter().map(|row| row["opcode"].as_str()).collect();
    let wanted = "1f 20 21 22 48 50 52 53 54 55 56 57 58 59 5c 5d 5e 5f 64 65 89 b5 ba";
    let wanted: Vec<String> = wanted.split(' ').map(|opcode| format!("0x{opcode}")).collect();
    assert_eq!(opcodes, wanted.iter().map(String::as_str).collect());
    compare(&capture, reading, |_| true);
}

/// A test that cannot fail shows nothing.
#[test]
fn another_reader_notices_what_is_no_frame_or_has_other_parts_than_it_should() {
    let opaque = 7;
    let good = Raw { magic: 0x80, opcode: 0x57, opaque, extras: &[0; 31], key: b"\0k", ..Raw::default() };
    let noted = |bytes: Vec<u8>| {
        let mut capture = Capture::default();
        capture.push(0, true, &Raw { magic: 0x80, opcode: 0x5c, ..Raw::default() }.bytes());
        capture.push(0, true, &bytes);
        let reading = read(&capture)?;
        let mut text = format!("{} of {}", reading.rows.len(), capture.frames.len());
        for (number, note) in reading.notes {
            write!(text, ", {number}: {note}").unwrap();
        }
        Some(text)
    };
    let Some(nothing) = noted(good.bytes()) else { return };
    assert_eq!(nothing, "2 of 2");
    assert_ne!(noted(Raw { extras: &[0; 30], ..good }.bytes()).unwrap(), nothing);
    assert_ne!(noted(Raw { key: b"", ..good }.bytes()).unwrap(), nothing);
    assert_ne!(noted(Raw { opcode: 0x56, key: b"", extras: &[0; 19], ..good }.bytes()).unwrap(), nothing);
    assert_ne!(noted(Raw { magic: 0x47, ..good }.bytes()).unwrap(), nothing);
}
