//! Keys as bytes: their order, their exact form, and what damage does to them.

use dormouse::durable::hex;
use dormouse::index::collate::{
    CollateError, DEPTH_MAX, EncodeError, decode_parts, encode_missing, encode_str, encode_value,
    encode_value_within, split_parts,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::json::{compare, compare_all, number, text, value};

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_value(value, &mut bytes).unwrap();
    bytes
}

fn encode_all(parts: &[Value]) -> Vec<u8> {
    parts.iter().flat_map(encode).collect()
}

fn decode(bytes: &[u8]) -> Result<Value, CollateError> {
    let (mut parts, rest) = decode_parts(bytes, 1)?;
    assert_eq!(rest, b"", "bytes are left");
    Ok(parts.remove(0))
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}

#[test]
fn the_form_on_disk_is_fixed() {
    let golden = [
        (json!(null), "18"),
        (json!(false), "20"),
        (json!(true), "28"),
        (json!(0), "3080000000000000008000"),
        (json!(1), "30bff00000000000008000"),
        (json!(-1), "30400fffffffffffff8000"),
        (json!(1.5), "30bff80000000000008000"),
        (json!(9_007_199_254_740_993_i64), "30c3400000000000008001"),
        (json!(i64::MIN), "303c1fffffffffffff8000"),
        (json!(i64::MAX), "30c3e00000000000007fff"),
        (json!(u64::MAX), "30c3f00000000000007fff"),
        (json!(f64::MAX), "30ffefffffffffffff8000"),
        (json!(""), "3800"),
        (json!("aé"), "3861c3a900"),
        (json!("\u{0}\u{1}\u{2}"), "38010101020200"),
        (json!([]), "4000"),
        (json!([null, ["a"]]), "4018403861000000"),
        (json!({}), "4800"),
        (json!({"b": true, "a": null}), "4838610018386200 28 00"),
    ];
    for (value, expected) in golden {
        assert_eq!(hex(&encode(&value)), expected.replace(' ', ""), "{value}");
    }
    let mut missing = Vec::new();
    encode_missing(&mut missing);
    assert_eq!(hex(&missing), "10");
}

#[test]
fn types_stand_in_the_contracts_order() {
    let mut ascending = vec![b"\x10".to_vec()];
    ascending.extend(
        [
            json!(null),
            json!(false),
            json!(true),
            json!(-1e300),
            json!(i64::MIN),
            json!(-1),
            json!(0),
            json!(0.5),
            json!(1),
            json!(9_007_199_254_740_992.0),
            json!(9_007_199_254_740_993_i64),
            json!(u64::MAX - 1),
            json!(u64::MAX),
            json!(18_446_744_073_709_551_616.0),
            json!(""),
            json!("\u{0}"),
            json!("A"),
            json!("a"),
            json!("a\u{0}"),
            json!("a\u{1}"),
            json!("aa"),
            json!("\u{ffff}"),
            json!("\u{10000}"),
            json!([]),
            json!([null]),
            json!([null, null]),
            json!([1]),
            json!([[]]),
            json!({}),
            json!({"a": 1}),
            json!({"a": 1, "b": 0}),
            json!({"a": 2}),
            json!({"b": 0}),
        ]
        .iter()
        .map(encode),
    );
    assert!(ascending.is_sorted_by(|a, b| a < b));
}

#[test]
fn equal_numbers_of_different_types_are_one_key_that_decodes_to_the_integer() {
    for (a, b) in [
        (json!(1), json!(1.0)),
        (json!(0), json!(-0.0)),
        (json!(1_u64 << 63), json!(9.223_372_036_854_776e18)),
    ] {
        assert_eq!(encode(&a), encode(&b));
        assert_eq!(decode(&encode(&b)).unwrap(), a);
    }
}

#[test]
fn a_missing_part_decodes_to_null() {
    let mut bytes = encode(&json!("DE"));
    encode_missing(&mut bytes);
    assert_eq!(decode_parts(&bytes, 2).unwrap().0, [json!("DE"), Value::Null]);
}

#[test]
fn values_nested_too_deep_are_refused_and_leave_no_bytes() {
    assert_eq!(decode(&encode(&nested(DEPTH_MAX))).unwrap(), nested(DEPTH_MAX));
    let mut bytes = b"before".to_vec();
    assert_eq!(encode_value(&nested(DEPTH_MAX + 1), &mut bytes), Err(EncodeError::TooDeep));
    assert_eq!(bytes, b"before");
}

#[test]
fn bytes_nested_too_deep_are_refused() {
    let arrays = encode(&nested(1))[0];
    let bytes = vec![arrays; 1_000_000];
    let refused = CollateError::TooDeep { at: DEPTH_MAX };
    assert_eq!(decode(&bytes).unwrap_err(), refused);
    assert_eq!(split_parts(&bytes, 1).unwrap_err(), refused);
}

#[test]
fn damage_is_named_with_its_place_and_the_way_out() {
    let messages = [
        ("", "cannot read an index key: its 0 bytes end within a value: rebuild the index"),
        ("3861", "cannot read an index key: its 2 bytes end within a value: rebuild the index"),
        ("401899", "cannot read an index key: no value begins with byte 0x99 at 2: rebuild the index"),
        ("4010", "cannot read an index key: no value begins with byte 0x10 at 1: rebuild the index"),
        ("38ff00", "cannot read an index key: a string before byte 3 is damaged: rebuild the index"),
        ("380100", "cannot read an index key: a string before byte 3 is damaged: rebuild the index"),
        (
            "307fffffffffffffff8000",
            "cannot read an index key: a number before byte 11 is damaged: rebuild the index",
        ),
        (
            "30fff00000000000008000",
            "cannot read an index key: a number before byte 11 is damaged: rebuild the index",
        ),
        (
            "30bff00000000000008001",
            "cannot read an index key: a number before byte 11 is damaged: rebuild the index",
        ),
        (
            "4838620018 38610018 00",
            "cannot read an index key: an object before byte 8 is damaged: rebuild the index",
        ),
        (
            "4838610018 38610018 00",
            "cannot read an index key: an object before byte 8 is damaged: rebuild the index",
        ),
    ];
    for (bytes, message) in messages {
        let bytes: Vec<u8> = bytes
            .replace(' ', "")
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(decode(&bytes).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_missing_part_is_refused_within_a_value() {
    let bytes = [0x40, 0x10, 0x00];
    let refused = CollateError::Tag { found: 0x10, at: 1 };
    assert_eq!(decode(&bytes).unwrap_err(), refused);
    assert_eq!(split_parts(&bytes, 1).unwrap_err(), refused);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn bytes_are_in_the_order_of_values(a in value(), b in value()) {
        prop_assert_eq!(encode(&a).cmp(&encode(&b)), compare(&a, &b));
    }

    #[test]
    fn bytes_of_numbers_are_in_the_order_of_numbers(a in number(), b in number()) {
        let (a, b) = (Value::Number(a), Value::Number(b));
        prop_assert_eq!(encode(&a).cmp(&encode(&b)), compare(&a, &b));
    }

    #[test]
    fn bytes_of_strings_are_in_the_order_of_code_points(a in text(), b in text()) {
        prop_assert_eq!(encode(&json!(a)).cmp(&encode(&json!(b))), a.chars().cmp(b.chars()));
    }

    #[test]
    fn bytes_of_composite_keys_are_in_the_order_of_their_parts(
        a in proptest::collection::vec(value(), 3),
        b in proptest::collection::vec(value(), 3),
        shared in 0_usize..4,
    ) {
        let b: Vec<Value> = a.iter().take(shared).chain(b.iter().skip(shared)).cloned().collect();
        prop_assert_eq!(encode_all(&a).cmp(&encode_all(&b)), compare_all(&a, &b));
    }

    #[test]
    fn no_key_begins_a_different_one(
        a in proptest::collection::vec(value(), 2),
        b in proptest::collection::vec(value(), 2),
    ) {
        let (a, b) = (encode_all(&a), encode_all(&b));
        prop_assert!(a == b || !a.starts_with(&b) && !b.starts_with(&a));
        prop_assert!((1..0xf0).contains(&a[0]));
    }

    #[test]
    fn keys_decode_to_what_was_encoded(parts in proptest::collection::vec(value(), 0..4), id in text()) {
        let key = encode_all(&parts);
        let entry = [&key, id.as_bytes()].concat();
        let (decoded, rest) = decode_parts(&entry, parts.len()).unwrap();
        prop_assert_eq!(rest, id.as_bytes());
        prop_assert!(compare_all(&decoded, &parts).is_eq(), "{:?}", decoded);
        prop_assert_eq!(split_parts(&entry, parts.len()).unwrap(), (&key[..], id.as_bytes()));
    }

    #[test]
    fn a_string_is_encoded_alike_with_and_without_a_value(text in text()) {
        let mut bytes = Vec::new();
        encode_str(&text, &mut bytes);
        prop_assert_eq!(bytes, encode(&json!(text)));
    }

    #[test]
    fn a_limit_is_kept_to_the_byte(value in value()) {
        let length = encode(&value).len();
        let mut bytes = b"before".to_vec();
        let limit_bytes = length - 1;
        let refused = encode_value_within(&value, limit_bytes, &mut bytes);
        prop_assert_eq!(refused, Err(EncodeError::TooLong { limit_bytes }));
        prop_assert_eq!(&bytes[..], &b"before"[..]);
        prop_assert_eq!(encode_value_within(&value, length, &mut bytes), Ok(()));
        prop_assert_eq!(bytes.len(), 6 + length);
    }

    #[test]
    fn a_number_that_was_printed_is_read_back_as_the_same_key(number in number()) {
        let printed = decode(&encode(&Value::Number(number.clone()))).unwrap().to_string();
        let read: Value = serde_json::from_str(&printed).unwrap();
        prop_assert_eq!(encode(&read), encode(&Value::Number(number)));
    }

    #[test]
    fn any_bytes_are_refused_or_are_what_their_values_encode_to(bytes in damaged()) {
        let split = split_parts(&bytes, 2);
        if let Ok((parts, rest)) = decode_parts(&bytes, 2) {
            let taken = bytes.len() - rest.len();
            prop_assert_eq!(split, Ok((&bytes[..taken], rest)));
            if !bytes[..taken].contains(&0x10) {
                prop_assert_eq!(encode_all(&parts), &bytes[..taken]);
            }
        }
    }
}

/// Bytes that look like keys often enough to be read far.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        proptest::sample::select(&[0_u8, 0, 0, 1, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x38, 0x40, 0x48][..]),
        any::<u8>(),
    ];
    let changed = (proptest::collection::vec(value(), 2), any::<proptest::sample::Index>(), any::<u8>())
        .prop_map(|(parts, place, byte)| {
            let mut bytes = encode_all(&parts);
            let place = place.index(bytes.len());
            bytes[place] = byte;
            bytes
        });
    prop_oneof![proptest::collection::vec(byte, 0..32), changed]
}
