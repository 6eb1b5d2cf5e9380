//! Ranges: which stored entries lie between two keys.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use dormouse::index::collate::{encode_missing, encode_value};
use dormouse::index::{DOCUMENT_DEPTH_MAX, KeyRange, RangeError};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::json::compare_parts;

type Parts = Vec<Option<Value>>;

fn entry(parts: &[Option<Value>], id: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            Some(value) => encode_value(value, &mut bytes).unwrap(),
            None => encode_missing(&mut bytes),
        }
    }
    bytes.extend_from_slice(id.as_bytes());
    bytes
}

fn range(from: &str, to: &str) -> KeyRange {
    let bound = |text: &str| (!text.is_empty()).then(|| KeyRange::parse_bound(text).unwrap());
    KeyRange { from: bound(from), to: bound(to), ..KeyRange::default() }
}

/// Those of four keys of two letters that lie in the range.
fn found(range: &KeyRange) -> Vec<String> {
    let keys = [("A", "x"), ("B", "x"), ("B", "y"), ("C", "x")];
    let entries: BTreeMap<Vec<u8>, String> = keys
        .iter()
        .map(|(a, b)| (entry(&[Some(json!(a)), Some(json!(b))], "id"), format!("{a}{b}")))
        .collect();
    entries.range(range.bounds(2).unwrap()).map(|(_, name)| name.clone()).collect()
}

#[test]
fn ends_are_inclusive_and_the_beginning_of_a_key_is_enough() {
    assert_eq!(found(&range(r#"["A"]"#, r#"["B"]"#)), ["Ax", "Bx", "By"]);
    assert_eq!(found(&range(r#"["B","y"]"#, "")), ["By", "Cx"]);
    assert_eq!(found(&range("", r#"["B","x"]"#)), ["Ax", "Bx"]);
}

#[test]
fn exclusive_ends_leave_out_every_key_that_begins_so() {
    let from = KeyRange { from_exclusive: true, ..range(r#"["A"]"#, r#"["C"]"#) };
    assert_eq!(found(&from), ["Bx", "By", "Cx"]);
    let to = KeyRange { to_exclusive: true, ..range(r#"["A"]"#, r#"["B"]"#) };
    assert_eq!(found(&to), ["Ax"]);
}

#[test]
fn no_parts_bound_nothing() {
    let whole = KeyRange { from_exclusive: true, to_exclusive: true, ..range("[]", "[]") };
    assert_eq!(whole.bounds(2).unwrap(), (Bound::Unbounded, Bound::Unbounded));
    assert_eq!(KeyRange::default().bounds(1).unwrap(), (Bound::Unbounded, Bound::Unbounded));
}

#[test]
fn ends_that_cross_give_an_empty_range() {
    assert_eq!(found(&range(r#"["C"]"#, r#"["A"]"#)), [""; 0]);
    let nothing = KeyRange { from_exclusive: true, to_exclusive: true, ..range(r#"["B"]"#, r#"["B"]"#) };
    assert_eq!(found(&nothing), [""; 0]);
}

#[test]
fn a_range_is_read_from_an_object_whose_members_may_be_left_out() {
    let parsed = |text: &str| KeyRange::parse(text).unwrap();
    assert_eq!(parsed("{}"), KeyRange::default());
    assert_eq!(parsed(r#"{"from":["A"],"to":["B","x"]}"#), range(r#"["A"]"#, r#"["B","x"]"#));
    let exclusive = KeyRange { from_exclusive: true, to_exclusive: true, ..range("[1]", "[2]") };
    let text = r#"{"exclusive_to":true,"to":[2],"exclusive_from":true,"from":[1]}"#;
    assert_eq!(parsed(text), exclusive);
    // As exact as an end that stands alone.
    assert_eq!(parsed(r#"{"from":[9007199254740993]}"#), range("[9007199254740993]", ""));
}

#[test]
fn a_text_that_is_no_range_is_refused_with_an_example() {
    for (text, why) in [
        ("[1]", "cannot use `[1]` as a range"),
        ("[[1],[2]]", "it is no object"),
        (r#"{"form":[1]}"#, "unknown field `form`"),
        (r#"{"from":[1]"#, "EOF while parsing"),
    ] {
        let refusal = KeyRange::parse(text).unwrap_err().to_string();
        assert!(refusal.contains(why), "{refusal}");
        assert!(refusal.ends_with(r#"such as {"from":["DE"],"to":["FR"],"exclusive_to":true}"#), "{refusal}");
    }
    let refusal = KeyRange::parse(r#"{"from":1}"#).unwrap_err().to_string();
    assert!(refusal.contains("cannot use `1` as a bound: it is a single value"), "{refusal}");
}

#[test]
fn a_bound_that_is_no_array_is_refused_with_an_example() {
    let refusal = |text: &str| KeyRange::parse_bound(text).unwrap_err().to_string();
    let way_out = r#"expected a JSON array such as ["DE","Berlin"]"#;
    assert_eq!(
        refusal("DE"),
        format!("cannot use `DE` as a bound: it is no JSON: expected value at line 1 column 1, {way_out}")
    );
    assert_eq!(refusal("\"DE\""), format!("cannot use `\"DE\"` as a bound: it is a single value, {way_out}"));
    assert_eq!(refusal("{}"), format!("cannot use `{{}}` as a bound: it is an object, {way_out}"));
}

#[test]
fn the_deepest_key_of_a_document_may_be_given_as_a_bound() {
    let depth = DOCUMENT_DEPTH_MAX;
    let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(KeyRange::parse_bound(&text).unwrap().len(), 1);
    assert!(KeyRange::parse_bound(&format!("[{text}]")).is_err());
}

#[test]
fn a_bound_of_more_parts_than_the_keys_is_refused_with_both_numbers() {
    let error = range("[1,2,3]", "").bounds(2).unwrap_err();
    assert_eq!(error, RangeError::TooManyParts { given: 3, components: 2 });
    assert_eq!(
        error.to_string(),
        "cannot use a bound of 3 parts: the index has keys of 2, give at most as many"
    );
}

#[test]
fn a_bound_that_cannot_be_encoded_is_refused() {
    let deep = (0..200).fold(Value::Null, |inner, _| json!([inner]));
    let range = KeyRange { to: Some(vec![json!(1), deep]), ..KeyRange::default() };
    assert_eq!(
        range.bounds(2).unwrap_err().to_string(),
        "cannot use part 2 of a bound: it holds more than 128 arrays and objects within each other: give fewer parts"
    );
}

/// Values of a small domain, so that bounds and keys often meet.
fn small() -> impl Strategy<Value = Value> {
    let values = [
        json!(null),
        json!(true),
        json!(1),
        json!(1.0),
        json!(2),
        json!(""),
        json!("a"),
        json!("a\u{0}"),
        json!("a\u{1}"),
        json!("ab"),
        json!([]),
        json!(["a"]),
        json!({}),
        json!({"a": 1}),
    ];
    proptest::sample::select(values.to_vec())
}

fn key() -> impl Strategy<Value = Parts> {
    (small(), proptest::option::weighted(0.8, small())).prop_map(|(first, second)| vec![Some(first), second])
}

fn bound() -> impl Strategy<Value = Option<Vec<Value>>> {
    proptest::option::of(proptest::collection::vec(small(), 0..3))
}

/// The order of a key's first parts and a bound.
fn against(key: &[Option<Value>], bound: &[Value]) -> Ordering {
    let parts = key.iter().zip(bound);
    parts
        .map(|(part, end)| compare_parts(part.as_ref(), Some(end)))
        .find(|o| o.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn naive(range: &KeyRange, key: &[Option<Value>]) -> bool {
    let bounding = |end: &Option<Vec<Value>>| end.clone().filter(|parts| !parts.is_empty());
    let low = bounding(&range.from).is_none_or(|from| match against(key, &from) {
        Ordering::Less => false,
        Ordering::Equal => !range.from_exclusive,
        Ordering::Greater => true,
    });
    let high = bounding(&range.to).is_none_or(|to| match against(key, &to) {
        Ordering::Less => true,
        Ordering::Equal => !range.to_exclusive,
        Ordering::Greater => false,
    });
    low && high
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_range_holds_the_entries_that_a_naive_filter_keeps(
        stored in proptest::collection::vec((key(), "[a\u{0}\u{10ffff}]{1,2}"), 0..24),
        from in bound(),
        to in bound(),
        from_exclusive: bool,
        to_exclusive: bool,
    ) {
        let range = KeyRange { from, to, from_exclusive, to_exclusive };
        let entries: BTreeMap<Vec<u8>, Parts> =
            stored.into_iter().map(|(parts, id)| (entry(&parts, &id), parts)).collect();
        let expected: Vec<&Vec<u8>> =
            entries.iter().filter(|(_, parts)| naive(&range, parts)).map(|(entry, _)| entry).collect();
        let found: Vec<&Vec<u8>> = entries.range(range.bounds(2).unwrap()).map(|(entry, _)| entry).collect();
        prop_assert_eq!(found, expected);
    }
}
