//! Evaluation: which keys a document has.

use dormouse::index::collate::{decode_parts, encode_missing, encode_value};
use dormouse::index::{IndexDefinition, KEY_BYTES_MAX, KeyList};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::json::number;

/// The keys of `document`, decoded: a missing part shows as null.
fn keys(definition: &str, document: &Value) -> Value {
    let definition = IndexDefinition::parse(definition).unwrap();
    let mut list = KeyList::new();
    definition.keys("id", document, &mut list);
    list.iter().map(|key| Value::Array(decode_parts(key, definition.components()).unwrap().0)).collect()
}

fn encoded(parts: &[Option<Value>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            Some(value) => encode_value(value, &mut bytes).unwrap(),
            None => encode_missing(&mut bytes),
        }
    }
    bytes
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

#[derive(Debug, Clone)]
enum Step {
    Member(&'static str),
    Element(usize),
    Each,
}

fn text_of(path: &[Step]) -> String {
    let steps = path.iter().map(|step| match step {
        Step::Member(name) => format!(".`{name}`"),
        Step::Element(place) => format!("[{place}]"),
        Step::Each => "[]".to_owned(),
    });
    steps.collect::<String>()[1..].to_owned()
}

/// All values of a path, by trying each way through the document; `None` where one ends early.
fn naive_values(path: &[Step], value: &Value) -> Vec<Option<Value>> {
    let Some((step, rest)) = path.split_first() else { return vec![Some(value.clone())] };
    let next: Vec<&Value> = match (step, value) {
        (Step::Member(name), Value::Object(members)) => members.get(*name).into_iter().collect(),
        (Step::Element(place), Value::Array(elements)) => elements.get(*place).into_iter().collect(),
        (Step::Each, Value::Array(elements)) => elements.iter().collect(),
        _ => Vec::new(),
    };
    let values: Vec<_> = next.into_iter().flat_map(|value| naive_values(rest, value)).collect();
    if values.is_empty() { vec![None] } else { values }
}

fn naive_keys(paths: &[Vec<Step>], document: &Value) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<Option<Value>>> = vec![Vec::new()];
    for path in paths {
        let values = naive_values(path, document);
        keys = keys
            .iter()
            .flat_map(|key| values.iter().map(move |value| [&key[..], std::slice::from_ref(value)].concat()))
            .collect();
    }
    keys.retain(|key| key[0].is_some());
    let mut keys: Vec<_> = keys.iter().map(|key| encoded(key)).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn member() -> impl Strategy<Value = Step> {
    prop_oneof![Just(Step::Member("a")), Just(Step::Member("b")), Just(Step::Member("c d"))]
}

fn plain_path() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![3 => member(), 1 => (0_usize..3).prop_map(Step::Element)];
    (member(), proptest::collection::vec(step, 0..2)).prop_map(|(first, rest)| [vec![first], rest].concat())
}

fn paths() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let array = (plain_path(), proptest::collection::vec(member(), 0..2))
        .prop_map(|(before, after)| [before, vec![Step::Each], after].concat());
    let plain = || proptest::collection::vec(plain_path(), 0..3);
    prop_oneof![
        proptest::collection::vec(plain_path(), 1..4),
        (plain(), array, plain()).prop_map(|(before, array, after)| [before, vec![array], after].concat()),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), number().prop_map(Value::Number), "[xy]{0,2}".prop_map(Value::from)];
    let inner = leaf.prop_recursive(3, 32, 4, |inner| {
        let name = proptest::sample::select(&["a", "b", "c d"][..]).prop_map(str::to_owned);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name, inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    proptest::collection::vec(inner, 3).prop_map(|values| {
        ["a", "b", "c d"].into_iter().map(str::to_owned).zip(values).collect::<serde_json::Map<_, _>>().into()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn keys_are_those_of_a_naive_evaluation(paths in paths(), document in document()) {
        let texts: Vec<String> = paths.iter().map(|path| text_of(path)).collect();
        let definition = IndexDefinition::parse(&format!("i={}", texts.join(","))).unwrap();
        let mut list = KeyList::new();
        definition.keys("id", &document, &mut list);
        let keys: Vec<Vec<u8>> = list.iter().map(<[u8]>::to_vec).collect();
        prop_assert_eq!(keys, naive_keys(&paths, &document));
        prop_assert_eq!(list.oversize(), 0);
    }
}
