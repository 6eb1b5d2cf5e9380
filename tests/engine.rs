//! Documents as text: a plan of many indexes gives each the keys that it would have by itself.

use dormouse::index::{
    DOCUMENT_DEPTH_MAX, DOCUMENT_KEYS_MAX, Document, Extract, IndexDefinition, KEY_BYTES_MAX, KeyList,
    KeyPlan,
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::cli::AIRPORTS;
use crate::support::naive::{Index, Step, document, encoded, index};

fn definition(text: &str) -> IndexDefinition {
    let (paths, filter) = text.split_once(" where ").map_or((text, None), |(a, b)| (a, Some(b)));
    let definition = IndexDefinition::parse(&format!("i={paths}")).unwrap();
    match filter {
        Some(filter) => definition.with_filter(filter.parse().unwrap()),
        None => definition,
    }
}

fn keys_of(list: &KeyList) -> Vec<Vec<u8>> {
    list.iter().map(<[u8]>::to_vec).collect()
}

/// The keys of each definition, by one walk of the text.
fn by_plan(definitions: &[IndexDefinition], text: &str) -> Vec<Vec<Vec<u8>>> {
    let plan = KeyPlan::new(definitions);
    let (mut extract, mut list) = (Extract::new(), KeyList::new());
    // What an earlier document left must not matter.
    let _ = plan.read(br#"{"a":[{"b":1},2],"b":{"c":[1]},"c":"#, &mut extract);
    plan.read(text.as_bytes(), &mut extract).unwrap();
    (0..definitions.len())
        .map(|place| {
            list.clear();
            plan.keys(place, "id", &extract, &mut list);
            keys_of(&list)
        })
        .collect()
}

/// A plan of all definitions finds what each finds in the value of a text.
fn plan_agrees(definitions: &[IndexDefinition], text: &str) {
    let value: Value = serde_json::from_str(text).unwrap();
    for (definition, found) in definitions.iter().zip(by_plan(definitions, text)) {
        let mut list = KeyList::new();
        definition.keys("id", &value, &mut list);
        assert_eq!(found, keys_of(&list), "{definition} {text}");
    }
}

/// What `serde_json` says of a text, where it nests no deeper than a document may.
fn by_serde_json(text: &[u8]) -> Option<Value> {
    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or_default(),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
            _ => 0,
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    reader.disable_recursion_limit();
    let value = Value::deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    (depth(&value) <= DOCUMENT_DEPTH_MAX).then_some(value)
}

fn one(paths: &str, text: &str) -> Vec<Vec<u8>> {
    by_plan(&[definition(paths)], text).remove(0)
}

fn key(part: &Value) -> Vec<u8> {
    encoded(&[Some(part.clone())])
}

#[test]
fn the_last_of_duplicate_members_wins_at_every_depth() {
    assert_eq!(one("a", r#"{"a":1,"a":2}"#), [key(&json!(2))]);
    assert_eq!(one("a.b", r#"{"a":{"b":1},"a":{}}"#), [[0_u8; 0]; 0]);
    assert_eq!(one("a.b", r#"{"a":{"b":1},"a":{"b":3}}"#), [key(&json!(3))]);
    assert_eq!(one("a[]", r#"{"a":[1,2],"a":[3]}"#), [key(&json!(3))]);
    assert_eq!(one("a[].b", r#"{"a":[{"b":1,"b":2},{"b":3,"b":4}]}"#), [key(&json!(2)), key(&json!(4))]);
    assert_eq!(one("a[].b.c", r#"{"a":[{"b":{"c":1},"b":5}]}"#), [[0_u8; 0]; 0]);
    assert_eq!(one("a", r#"{"a":{"x":1,"x":2}}"#), [key(&json!({"x": 2}))]);
    assert_eq!(one("a", r#"{"\u0061":1}"#), [key(&json!(1))]);
}

#[test]
fn one_value_serves_several_paths() {
    let definitions: Vec<_> =
        ["a", "a.b", "a[]", "a[0]", "a[].b", "a[1].b,a[]", "a.b.c,a"].map(definition).into();
    for text in [r#"{"a":[{"b":1},{"b":2},3]}"#, r#"{"a":{"b":{"c":1}}}"#, r#"{"a":null}"#, "{}", "[1]"] {
        plan_agrees(&definitions, text);
    }
}

#[test]
fn numbers_and_texts_keep_their_value() {
    for part in [json!(9_007_199_254_740_993_i64), json!(u64::MAX), json!(i64::MIN), json!(0.1), json!(1e300)]
    {
        assert_eq!(one("a", &format!("{{\"a\":{part}}}")), [key(&part)]);
    }
    assert_eq!(one("a", r#"{"a":"\ud83d\ude00\u0000\u0001é"}"#), [key(&json!("😀\u{0}\u{1}é"))]);
    assert_eq!(one("a", r#"{"a":-0}"#), [key(&json!(0))]);
}

#[test]
fn what_no_index_names_is_checked_too() {
    let plan = KeyPlan::new(&[definition("a")]);
    let mut extract = Extract::new();
    let nested = |depth: usize| format!("{{\"b\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert!(plan.read(nested(DOCUMENT_DEPTH_MAX).as_bytes(), &mut extract).is_ok());
    for depth in [DOCUMENT_DEPTH_MAX + 1, 1_000_000] {
        for name in ["a", "b"] {
            let text = nested(depth).replace('b', name);
            assert!(
                plan.read(text.as_bytes(), &mut extract).unwrap_err().to_string().contains("more than 128")
            );
            assert!(Document::json(text.as_bytes()).value().is_err());
        }
    }
    let bad: [&[u8]; 9] = [
        b"{\"b\":\"\xff\"}",
        br#"{"b":"\ud800"}"#,
        br#"{"b":1e999}"#,
        br#"{"b":01}"#,
        br#"{"b":[1,]}"#,
        b"{\"b\":\"\x01\"}",
        br#"{"a":1}x"#,
        br#"{"a":1"#,
        b"",
    ];
    for text in bad {
        assert!(plan.read(text, &mut extract).is_err(), "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn keys_of_four_kib_are_left_out_and_counted_and_huge_arrays_are_taken() {
    let fits = "x".repeat(KEY_BYTES_MAX - 2);
    let many: Vec<String> = (0..10_000).map(|n| format!("\"{n}\"")).collect();
    let text = format!(r#"{{"a":["{fits}","{fits}y",["{fits}","{fits}"],{}]}}"#, many.join(","));
    let plan = KeyPlan::new(&[definition("a[]")]);
    let (mut extract, mut list) = (Extract::new(), KeyList::new());
    plan.read(text.as_bytes(), &mut extract).unwrap();
    plan.keys(0, "id", &extract, &mut list);
    assert_eq!((list.len(), list.oversize(), list.is_left_out()), (10_001, 2, false));
}

#[test]
fn a_document_of_too_many_keys_is_left_out_as_a_whole() {
    let numbers = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let long = "x".repeat(3000);
    for (count, paths, is_left_out) in [
        (DOCUMENT_KEYS_MAX, "a[]", false),
        (DOCUMENT_KEYS_MAX + 1, "a[]", true),
        (1000, "a[],b", false),
        (2000, "a[],b", true),
    ] {
        let plan = KeyPlan::new(&[definition(paths)]);
        let (mut extract, mut list) = (Extract::new(), KeyList::new());
        let text = format!(r#"{{"a":[{}],"b":"{long}"}}"#, numbers(count));
        plan.read(text.as_bytes(), &mut extract).unwrap();
        plan.keys(0, "id", &extract, &mut list);
        assert_eq!((list.is_left_out(), list.is_empty()), (is_left_out, is_left_out), "{count} {paths}");
    }
}

#[test]
fn a_host_makes_keys_of_its_own() {
    let mut list = KeyList::new();
    let (two, one) = (json!(2), json!(1));
    list.add(&[Some(&two), None]);
    list.add(&[Some(&one), Some(&two)]);
    list.add(&[None, Some(&two)]);
    list.add(&[Some(&json!("x".repeat(5000)))]);
    assert_eq!(keys_of(&list), [encoded(&[Some(one), Some(two.clone())]), encoded(&[Some(two), None])]);
    assert_eq!(list.oversize(), 1);
}

#[test]
fn the_airports_have_the_keys_of_their_values() {
    let definitions: Vec<_> =
        ["country,city", "tz", "altitude,missing", "name where altitude > 1000 and country != \"France\""]
            .map(definition)
            .into();
    for text in std::fs::read_to_string(AIRPORTS).unwrap().lines() {
        plan_agrees(&definitions, text);
    }
}

#[test]
fn nulls_in_every_place_are_values() {
    use Step::{Each, Element, Member};
    let indexes = [
        Index::of(&[&[Member("a"), Member("b"), Element(0)], &[Member("a")]]),
        Index::of(&[&[Member("a"), Member("b"), Element(1), Member("c")], &[Member("c d")]]),
        Index::of(&[&[Member("e"), Each], &[Member("c d")]]),
        Index::of(&[&[Member("a"), Member("b"), Each, Member("c")], &[Member("e"), Element(0)]]),
        Index::of(&[&[Member("c d")], &[Member("e"), Each], &[Member("missing")]]),
    ];
    let definitions: Vec<IndexDefinition> = indexes.iter().map(|index| index.definition("i")).collect();
    let places = ["1", r#""x""#, r#"{"c":2}"#, "[3]", r#"{"b":[0,{"c":4}]}"#, "[[],[null]]"];
    for nulls in 0..1_u32 << places.len() {
        let at = |place: usize| if nulls >> place & 1 == 1 { "null" } else { places[place] };
        for text in [
            format!(r#"{{"a":{{"b":[{},{}]}},"c d":{},"e":[{},null,7]}}"#, at(0), at(2), at(1), at(3)),
            format!(r#"{{"a":{},"c d":{},"e":{}}}"#, at(4), at(1), at(5)),
        ] {
            let document = serde_json::from_str(&text).unwrap();
            for (index, found) in indexes.iter().zip(by_plan(&definitions, &text)) {
                let naive: Vec<Vec<u8>> = index.keys(&document).iter().map(|key| encoded(key)).collect();
                assert_eq!(found, naive, "{} {text}", index.definition("i"));
            }
        }
    }
}

/// A value that is refused, or nearly, by a reader that looks at all of it.
fn odd() -> impl Strategy<Value = String> {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    prop_oneof![
        ("-?[1-9][0-9]{0,3}(\\.[0-9]{1,3})?[eE][+-]?[0-9]{1,4}"),
        (300_usize..320, "(\\.5|e-9|e9|)").prop_map(|(digits, end)| "9".repeat(digits) + &end),
        (80_usize..120, 200_usize..300).prop_map(|(digits, power)| format!("{}e{power}", "9".repeat(digits))),
        "\"(\\\\\\\\|\\\\\"|\\\\u[dD][0-9a-f]{3}|\\\\u00e9|[a-f0-9]{0,4}e1234|[\\[\\]{}]{0,9}){0,4}\"",
        (120_usize..130).prop_map(nested),
        (60_usize..70, 120_usize..130)
            .prop_map(move |(many, depth)| { format!("[{}{}]", "[{}],".repeat(many), nested(depth)) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn keys_are_those_of_a_naive_evaluation(
        indexes in proptest::collection::vec(index(), 1..5),
        text in document(),
    ) {
        let document: Value = serde_json::from_str(&text).unwrap();
        let definitions: Vec<IndexDefinition> = indexes.iter().map(|index| index.definition("i")).collect();
        let found = by_plan(&definitions, &text);
        for ((index, definition), found) in indexes.iter().zip(&definitions).zip(found) {
            let naive: Vec<Vec<u8>> = index.keys(&document).iter().map(|key| encoded(key)).collect();
            prop_assert_eq!(&found, &naive, "{}", definition);
        }
    }

    #[test]
    fn any_bytes_are_read_as_a_value_is(
        text in prop_oneof![
            document().prop_map(String::into_bytes),
            (document(), any::<proptest::sample::Index>(), any::<u8>()).prop_map(|(text, place, byte)| {
                let mut bytes = text.into_bytes();
                let place = place.index(bytes.len());
                bytes[place] = byte;
                bytes
            }),
            "[{}\\[\\]\":,ab0-9.e\\\\u ]{0,24}".prop_map(String::into_bytes),
            (odd(), odd()).prop_map(|(a, b)| format!("{{\"e\":{a}, \"c d\":[{b}]}}").into_bytes()),
        ],
    ) {
        let (expected, found) = (by_serde_json(&text), Document::json(&text));
        let shown = String::from_utf8_lossy(&text);
        prop_assert_eq!(found.value().ok(), expected.as_ref(), "{}", shown);
        for paths in ["a.b,b[]", "e", "`c d`[0]", "z"] {
            let read = KeyPlan::new(&[definition(paths)]).read(&text, &mut Extract::new());
            prop_assert_eq!(read.is_ok(), expected.is_some(), "{} of {}", paths, shown);
        }
    }

    #[test]
    fn numbers_are_those_of_serde_json_to_the_last_bit(
        text in "-?(0|[1-9][0-9]{0,22})(\\.(0{0,18})[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?",
    ) {
        let (expected, found) = (by_serde_json(text.as_bytes()), Document::json(text.as_bytes()));
        prop_assert_eq!(found.value().ok(), expected.as_ref());
        let bits = |value: &Value| value.as_f64().map(f64::to_bits);
        prop_assert_eq!(found.value().ok().map(bits), expected.as_ref().map(bits));
    }
}
