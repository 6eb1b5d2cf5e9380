//! Evaluation: which keys a document has.

use dormouse::index::collate::decode_parts;
use dormouse::index::{IndexDefinition, KEY_BYTES_MAX, KeyList};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::is_long;
use crate::support::naive::{Index, document, encoded, filtered, index};

/// The keys of `document`, decoded: a missing part shows as null.
fn keys(definition: &str, document: &Value) -> Value {
    let definition = IndexDefinition::parse(definition).unwrap();
    let mut list = KeyList::new();
    definition.keys("id", document, &mut list);
    list.iter().map(|key| Value::Array(decode_parts(key, definition.components()).unwrap().0)).collect()
}

#[test]
fn a_primary_key_is_the_documents_id() {
    let mut list = KeyList::new();
    IndexDefinition::primary("primary".parse().unwrap()).keys("airport::1", &json!(7), &mut list);
    let decoded: Vec<_> = list.iter().map(|key| decode_parts(key, 1).unwrap().0).collect();
    assert_eq!(decoded, [[json!("airport::1")]]);
}

#[test]
fn paths_lead_through_members_and_elements() {
    let document = json!({"a": {"b c": [1, {"d": 2}]}});
    assert_eq!(keys("i=a.`b c`[0],a.`b c`[1].d", &document), json!([[1, 2]]));
}

#[test]
fn a_document_whose_leading_path_is_missing_has_no_key() {
    for document in [json!({"b": 1}), json!([1]), json!("a"), json!(null), json!({"A": 1})] {
        assert_eq!(keys("i=a,b", &document), json!([]), "{document}");
    }
    assert_eq!(keys("i=a[0]", &json!({"a": {"0": 1}})), json!([]));
    assert_eq!(keys("i=a.b", &json!({"a": [{"b": 1}]})), json!([]));
}

#[test]
fn null_is_a_value_and_a_missing_part_is_lower() {
    let definition = IndexDefinition::parse("i=a,b").unwrap();
    let mut list = KeyList::new();
    definition.keys("id", &json!({"a": null, "b": null}), &mut list);
    definition.keys("id", &json!({"a": null}), &mut list);
    let expected = [encoded(&[Some(Value::Null), None]), encoded(&[Some(Value::Null), Some(Value::Null)])];
    assert!(list.iter().eq(expected));
}

#[test]
fn an_array_path_makes_one_key_for_each_different_element() {
    assert_eq!(keys("i=tags[]", &json!({"tags": ["b", 1, "a", "b", 1.0]})), json!([[1], ["a"], ["b"]]));
    assert_eq!(keys("i=n,tags[],m", &json!({"tags": [2, 1], "n": 0, "m": 3})), json!([[0, 1, 3], [0, 2, 3]]));
}

#[test]
fn a_leading_array_path_without_elements_makes_no_key() {
    for document in [json!({"tags": [], "n": 1}), json!({"tags": "a", "n": 1}), json!({"n": 1})] {
        assert_eq!(keys("i=tags[],n", &document), json!([]), "{document}");
    }
}

#[test]
fn another_array_path_without_elements_makes_one_key_with_a_missing_part() {
    let definition = IndexDefinition::parse("i=n,tags[]").unwrap();
    for document in [json!({"tags": [], "n": 1}), json!({"tags": {}, "n": 1}), json!({"n": 1})] {
        let mut list = KeyList::new();
        definition.keys("id", &document, &mut list);
        assert!(list.iter().eq([encoded(&[Some(json!(1)), None])]), "{document}");
    }
}

#[test]
fn an_element_without_the_member_after_it_is_missing() {
    let document = json!({"n": 1, "routes": [{"to": "MUC"}, {}, 5, {"to": null}]});
    assert_eq!(keys("i=routes[].to", &document), json!([[null], ["MUC"]]));
    let definition = IndexDefinition::parse("i=n,routes[].to").unwrap();
    let mut list = KeyList::new();
    definition.keys("id", &document, &mut list);
    let part = |part| encoded(&[Some(json!(1)), part]);
    assert!(list.iter().eq([part(None), part(Some(Value::Null)), part(Some(json!("MUC")))]));
}

#[test]
fn keys_that_are_too_long_are_left_out_and_counted() {
    let definition = IndexDefinition::parse("i=tags[],n").unwrap();
    // The tag and the end of the string, and one byte for the missing part.
    let fits = "x".repeat(KEY_BYTES_MAX - 3);
    let long = "x".repeat(KEY_BYTES_MAX - 2);
    let mut list = KeyList::new();
    definition.keys("id", &json!({"tags": ["a", fits, long, long]}), &mut list);
    assert_eq!((list.len(), list.oversize()), (2, 2));
    assert!(list.iter().all(|key| key.len() <= KEY_BYTES_MAX));
}

#[test]
fn a_value_that_is_nested_too_deep_is_counted_as_oversize() {
    let deep = (0..200).fold(Value::Null, |inner, _| json!([inner]));
    let mut list = KeyList::new();
    IndexDefinition::parse("i=a").unwrap().keys("id", &json!({"a": deep}), &mut list);
    assert_eq!((list.is_empty(), list.oversize()), (true, 1));
}

#[test]
fn a_cleared_list_is_as_new() {
    let mut list = KeyList::new();
    let definition = IndexDefinition::parse("i=a").unwrap();
    definition.keys("id", &json!({"a": 1}), &mut list);
    definition.keys("id", &json!({"a": "x".repeat(KEY_BYTES_MAX)}), &mut list);
    list.clear();
    assert_eq!((list.len(), list.oversize()), (0, 0));
    definition.keys("id", &json!({"a": 2}), &mut list);
    assert!(list.iter().eq([encoded(&[Some(json!(2))])]));
}

fn assert_has_keys_of_a_naive_evaluation(index: &Index, text: &str) {
    let document: Value = serde_json::from_str(text).unwrap();
    let mut list = KeyList::new();
    index.definition("i").keys("id", &document, &mut list);
    let keys: Vec<Vec<u8>> = list.iter().map(<[u8]>::to_vec).collect();
    let naive: Vec<Vec<u8>> = index.keys(&document).iter().map(|key| encoded(key)).collect();
    assert_eq!(keys, naive, "{}: {text}", index.definition("i"));
    assert_eq!(list.oversize(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn keys_are_those_of_a_naive_evaluation(index in index(), text in document()) {
        assert_has_keys_of_a_naive_evaluation(&index, &text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if is_long() { 2_000_000 } else { 30_000 }))]

    #[test]
    fn a_filter_says_what_a_naive_evaluation_of_it_says(index in filtered(), text in document()) {
        assert_has_keys_of_a_naive_evaluation(&index, &text);
    }
}
