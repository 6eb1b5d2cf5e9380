//! Recorded and documented frames, and bytes from their text.

use std::sync::LazyLock;

use dormouse::source::dcp::{Decoded, FRAME_BYTES_MAX, Frame, Message, Opcode};
use serde_json::Value;

/// The lines of a file of frames.
pub(crate) fn data(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("tests/data/dcp/{name}")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The recorded sessions.
pub(crate) fn frame_lines() -> &'static [Value] {
    static LINES: LazyLock<Vec<Value>> = LazyLock::new(|| data("frames.jsonl"));
    &LINES
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "half a byte in {text}");
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.iter().map(byte).collect()
}

/// The frame that some bytes are.
pub(crate) fn whole(bytes: &[u8]) -> Frame<'_> {
    match Frame::decode(bytes, FRAME_BYTES_MAX) {
        Ok(Decoded::Whole(frame, len)) if len == bytes.len() => frame,
        other => panic!("{other:?} of {bytes:02x?}"),
    }
}

/// The message that some bytes are.
pub(crate) fn message(bytes: &[u8]) -> Message<'_> {
    Message::decode(&whole(bytes)).unwrap()
}

/// A message of a connection without collections as it is on one that has them: its key begins with the default one.
pub(crate) fn in_default_collection(bytes: &[u8]) -> Vec<u8> {
    let frame = whole(bytes);
    let is_document =
        matches!(frame.opcode, Opcode::DCP_MUTATION | Opcode::DCP_DELETION | Opcode::DCP_EXPIRATION);
    let key = [if is_document { &b"\0"[..] } else { b"" }, frame.key].concat();
    let mut written = Vec::new();
    Frame { key: &key, ..frame }.encode(&mut written).unwrap();
    written
}
