//! Filters: what they say of a document, their text, and what is said of a text that is none.

use dormouse::index::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX, Filter, IndexDefinition, KeyList};
use proptest::prelude::*;
use serde_json::{Value, json};

fn refusal(text: &str) -> String {
    text.parse::<Filter>().unwrap_err().to_string()
}

fn canonical(text: &str) -> String {
    text.parse::<Filter>().unwrap().to_string()
}

/// Whether the document has an entry.
fn holds(filter: &str, document: &Value) -> bool {
    let definition = IndexDefinition::primary("i".parse().unwrap()).with_filter(filter.parse().unwrap());
    let mut keys = KeyList::new();
    definition.keys("id", document, &mut keys);
    keys.len() == 1
}

#[test]
fn tests_say_what_they_look_like() {
    let document = json!({"s": "Berlin", "n": 5, "big": 9_007_199_254_740_993_i64, "z": null, "t": true,
        "tags": ["a", "b"], "o": {"b": 1, "a": [2]}, "MPAA Rating": "R", "m": 5.0, "like": 1});
    for filter in [
        "s = \"Berlin\"",
        "s != \"B\"",
        "s < \"Bern\"",
        "s >= \"Berlin\"",
        "n > 4.5",
        "n <= 5",
        "n = 5.0",
        "n = m",
        "big > 9007199254740992",
        "z = null",
        "t = true",
        "tags = [\"a\",\"b\"]",
        "o = {\"a\":[2],\"b\":1}",
        "o.a[0] = 2",
        "tags[] = \"b\"",
        "exists tags[]",
        "not tags[] = \"c\"",
        "`MPAA Rating` in [\"R\", \"PG\"]",
        "s like \"Ber%\"",
        "s like \"%\"",
        "exists z",
        "not exists y",
        "`like` = 1",
        "n=5 AND NOT (n=6 or n=7)",
        "n = 1 or n = 5 and s = \"Berlin\"",
        "y = 1 or n = 5",
        "n in [1,5.0]",
        "not n in []",
    ] {
        assert!(holds(filter, &document), "{filter}");
    }
    for filter in [
        "s = \"berlin\"",
        "n > 5",
        "n < \"x\"",
        "n >= \"x\"",
        "z < 1",
        "s like \"ber%\"",
        "n like \"5%\"",
        "exists y",
        "n in []",
        "tags[] = \"c\"",
        "n = 5 and y = 1",
        "big = 9007199254740992",
    ] {
        assert!(!holds(filter, &document), "{filter}");
    }
}

#[test]
fn what_says_nothing_is_not_true_and_neither_is_its_opposite() {
    let document = json!({"n": 5, "empty": []});
    for test in
        ["y = 1", "y != 1", "y in [1]", "y in []", "y like \"a%\"", "n < \"x\"", "n = y", "empty[] = 1"]
    {
        assert!(!holds(test, &document), "{test}");
        assert!(!holds(&format!("not {test}"), &document), "not {test}");
        assert!(holds(&format!("n = 5 or {test}"), &document));
        assert!(!holds(&format!("not (n = 6 or {test})"), &document));
    }
}

/// One element is in no list, and nothing is known of the other.
#[test]
fn an_element_that_lacks_the_member_leaves_open_whether_it_is_in_an_empty_list() {
    let document = json!({"n": 5, "a": [{"b": 1}, {}]});
    for test in ["a[].b in []", "a[].b in [2]", "a[].b = 2", "a[].b like \"x%\""] {
        assert!(!holds(test, &document), "{test}");
        assert!(!holds(&format!("not {test}"), &document), "not {test}");
    }
}

#[test]
fn a_prefix_is_taken_as_it_stands() {
    assert!(holds(r#"s like "50\\%\\_\\\\%""#, &json!({"s": "50%_\\ off"})));
    assert!(!holds(r#"s like "50\\%%""#, &json!({"s": "500"})));
    for pattern in [r#""a""#, r#""a%b%""#, r#""a_%""#, r#""%%""#, r#""a\\%""#, r#""\\a%""#, "5", "a"] {
        assert!(refusal(&format!("s like {pattern}")).contains("a string such as \"Ber%\""), "{pattern}");
    }
}

#[test]
fn values_that_are_too_long_for_a_key_are_compared_by_their_beginning() {
    let long = |end: &str| json!({ "s": "x".repeat(10_000) + end, "t": "x".repeat(10_000), "u": "y".repeat(10_000) });
    for filter in ["s like \"xxx%\"", "s > \"x\"", "s != \"x\"", "exists s", "s < u"] {
        assert!(holds(filter, &long("")), "{filter}");
    }
    assert!(!holds("s = t", &long("z")) && !holds("s != t", &long("z")), "nobody knows");
    assert!(refusal(&format!("s = \"{}\"", "x".repeat(5_000))).contains("short enough"));
}

#[test]
fn a_filter_that_is_too_long_as_it_is_shown_is_refused() {
    let given = |numbers: usize| format!("a in[{}]", vec!["0"; numbers].join(","));
    let refused = given(4000).parse::<Filter>().unwrap_err();
    assert!(refused.to_string().contains("12005 bytes"), "{refused}");
    // The most that there may be is read again.
    let most = (1..4000).rev().find_map(|numbers| given(numbers).parse::<Filter>().ok()).unwrap();
    assert!(most.to_string().len() > FILTER_BYTES_MAX - 4);
    let stored = serde_json::to_string(&most).unwrap();
    assert_eq!(serde_json::from_str::<Filter>(&stored).unwrap(), most);
}

#[test]
fn the_text_of_a_filter_is_its_shortest() {
    for (text, shown) in [
        ("( a=1 )and(b=2 AND c=3)", "a = 1 and b = 2 and c = 3"),
        ("a=1 and (b=2 or (c=3))", "a = 1 and (b = 2 or c = 3)"),
        ("not ( not a=1 )", "not not a = 1"),
        ("not (a=1 or b=2)", "not (a = 1 or b = 2)"),
        ("`and`.b in[ 1 ,\"x\" ]", "`and`.b in [1, \"x\"]"),
        ("exists a[ ].b", "error"),
        ("a like \"x\\\\%%\"", "a like \"x\\\\%%\""),
        ("a <= `2020`", "a <= `2020`"),
    ] {
        if shown == "error" {
            assert!(text.parse::<Filter>().is_err());
        } else {
            assert_eq!(canonical(text), shown);
            assert_eq!(canonical(shown), shown);
        }
    }
}

#[test]
fn a_refusal_names_the_place_and_what_was_expected() {
    assert_eq!(refusal(""), "filter ``: at character 1: found the end, expected a path");
    assert_eq!(
        refusal("é ~ 1"),
        "filter `é ~ 1`: at character 3: found `~`, expected `=`, `!=`, `<`, `<=`, `>`, `>=`, `in` or `like`"
    );
    assert_eq!(
        refusal("a = 1 b"),
        "filter `a = 1 b`: at character 7: found `b`, expected `and`, `or` or the end"
    );
    assert_eq!(
        refusal("(a = 1"),
        "filter `(a = 1`: at character 7: found the end, expected `and`, `or` or `)`"
    );
    assert!(refusal("a..b = 1").contains("path `a..b`: at character 3"));
    assert!(refusal("a = b[]").contains("at character 5: found `b`, expected a path without `[]`"));
    assert!(refusal("or = 1").contains("found `or`, expected a path"));
}

#[test]
fn depth_and_length_are_bounded() {
    let nested = |depth: usize| format!("{}a = 1{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(canonical(&nested(FILTER_DEPTH_MAX - 1)), "a = 1");
    assert!(refusal(&nested(FILTER_DEPTH_MAX)).contains("at most 64"));
    assert!(refusal(&"not ".repeat(1000)).contains("at most 64"));
    assert!(refusal(&format!("a = {}", "[".repeat(3000))).contains("a JSON value"));
    assert!(refusal(&"(".repeat(100_000)).contains("too long"));
}

fn filter_text() -> impl Strategy<Value = String> {
    let path = proptest::sample::select(&["a", "b.c", "`in`", "t[]", "e[0]", "`x y`.z[].w", "`2`"][..]);
    let value = crate::support::json::value().prop_map(|value| value.to_string()).boxed();
    let sign = proptest::sample::select(&["=", "!=", "<", "<=", ">", ">="][..]);
    let test = prop_oneof![
        (path.clone(), sign.clone(), value.clone()).prop_map(|(p, s, v)| format!("{p} {s} {v}")),
        (path.clone(), sign).prop_map(|(p, s)| format!("{p}{s}b.c")),
        (path.clone(), proptest::collection::vec(value, 0..3))
            .prop_map(|(p, v)| format!("{p} in [{}]", v.join(","))),
        path.clone().prop_map(|p| format!("exists {p}")),
        path.prop_map(|p| format!("{p} LIKE \"a\\\\_é%\"")),
    ];
    test.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|f| format!("not ({f})")),
            proptest::collection::vec(inner.clone(), 1..4)
                .prop_map(|all| format!("({})", all.join(") and ("))),
            proptest::collection::vec(inner, 1..4).prop_map(|all| format!("({})", all.join(" or "))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_displayed_filter_parses_to_the_same_filter(text in filter_text()) {
        let filter: Filter = text.parse().unwrap();
        let shown = filter.to_string();
        prop_assert_eq!(&shown.parse::<Filter>().unwrap(), &filter);
        prop_assert_eq!(canonical(&shown), shown);
    }

    #[test]
    fn any_text_is_parsed_or_refused(
        text in prop_oneof![".*", "[a`.\\[\\]0, \"=<>!()%{}:-]{0,24}", "((not|and|or|in|like|exists|a|1|=|\\(|\\)|\"x%\"|\\[1\\]) ?){0,9}"],
    ) {
        if let Ok(filter) = text.parse::<Filter>() {
            prop_assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
        }
    }
}
