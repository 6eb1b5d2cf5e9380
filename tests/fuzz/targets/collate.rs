//! Bytes as keys: what decodes is encoded to the same bytes. And JSON as keys: bytes are in the order of values.

#![no_main]

use dormouse::index::collate::{decode_parts, encode_value, split_parts};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../support/json.rs"]
mod json;

const MISSING: [u8; 1] = [0x10];

fn encoded(value: &Value) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    encode_value(value, &mut bytes).ok().map(|()| bytes)
}

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Ok((parts, behind)) = decode_parts(rest, 1) {
        let key = &rest[..rest.len() - behind.len()];
        assert_eq!(split_parts(rest, 1), Ok((key, behind)));
        if key == MISSING {
            assert_eq!(parts, [Value::Null]);
        } else {
            assert_eq!(encoded(&parts[0]).as_deref(), Some(key));
        }
        rest = behind;
    }
    let texts: Vec<Value> =
        data.split(|byte| *byte == b'\n').filter_map(|text| serde_json::from_slice(text).ok()).collect();
    for (a, b) in texts.iter().zip(texts.iter().skip(1)) {
        let (Some(first), Some(second)) = (encoded(a), encoded(b)) else { continue };
        assert_eq!(first.cmp(&second), json::compare(a, b), "{a} {b}");
        let (parts, behind) = decode_parts(&first, 1).expect("what was encoded");
        assert!(behind.is_empty() && json::compare(&parts[0], a).is_eq(), "{a}");
    }
});
