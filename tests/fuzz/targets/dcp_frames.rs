//! Bytes as frames of the wire: what is read is written as the same bytes, its parts lie within it, and no value costs
//! more memory than its limit.

#![no_main]

use dormouse::source::dcp::{
    Body, Decoded, FailoverLog, Frame, HEADER_BYTES, Message, Status, features, stream_status,
    vb_seqnos,
};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 64 * 1024;

fn value(datatype: u8, value: &[u8]) {
    let mut scratch = Vec::new();
    let Ok(body) = Body::decode(datatype, value, LIMIT, &mut scratch) else { return };
    let pairs: Vec<_> = body.xattrs.clone().collect();
    assert!(pairs.iter().rev().skip(1).all(Result::is_ok), "it goes on behind an error");
    if pairs.iter().all(Result::is_ok) && datatype & 4 != 0 {
        let pairs = pairs.into_iter().flatten();
        let mut blob = Vec::new();
        for (name, content) in pairs {
            let pair = [name, &[0], content, &[0]].concat();
            blob.extend_from_slice(&u32::try_from(pair.len()).expect("it is short").to_be_bytes());
            blob.extend_from_slice(&pair);
        }
        let len = u32::try_from(blob.len()).expect("it is short").to_be_bytes();
        let whole = [&len[..], &blob, body.document].concat();
        let inflated = if datatype & 2 == 0 {
            value.to_vec()
        } else {
            snap::raw::Decoder::new().decompress_vec(value).expect("it was inflated before")
        };
        assert_eq!(whole, inflated);
    }
    assert!(scratch.capacity() <= 2 * LIMIT, "{} bytes were allocated", scratch.capacity());
}

fn message(frame: &Frame<'_>) {
    let Ok(message) = Message::decode(frame) else { return };
    let key = match message {
        Message::Mutation(mutation) => {
            assert_eq!([mutation.value, mutation.meta].concat(), frame.value);
            value(mutation.datatype, mutation.value);
            mutation.key
        }
        Message::Deletion(removal) | Message::Expiration(removal) => {
            assert!(frame.value.starts_with(removal.value));
            value(removal.datatype, removal.value);
            removal.key
        }
        Message::SnapshotMarker(marker) => return assert!(marker.start <= marker.end),
        _ => return,
    };
    let mut written = Vec::new();
    key.collection.put(&mut written);
    written.extend_from_slice(key.name);
    assert_eq!(written, frame.key);
}

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    loop {
        match Frame::decode(rest, LIMIT) {
            Ok(Decoded::Whole(frame, len)) => {
                let mut written = Vec::new();
                frame.encode(&mut written).expect("what was read can be written");
                assert_eq!(written, rest[..len]);
                message(&frame);
                let _ = stream_status(Status(frame.vb_or_status), frame.value);
                if let Ok(seqnos) = vb_seqnos(frame.value) {
                    assert_eq!(seqnos.len() * 10, frame.value.len());
                }
                if let Ok(features) = features(frame.value) {
                    assert_eq!(features.len() * 2, frame.value.len());
                }
                if let Ok(log) = FailoverLog::decode(frame.value) {
                    assert_eq!(log.entries().first().map(|(vbuuid, _)| *vbuuid), Some(log.newest()));
                }
                rest = &rest[len..];
            }
            Ok(Decoded::Partial(bytes)) => {
                assert!(bytes > rest.len() && (HEADER_BYTES..=LIMIT).contains(&bytes));
                return;
            }
            Err(_) => return,
        }
    }
});
