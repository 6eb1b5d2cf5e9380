//! Paths: what their text means, and what is said of a text that is none.

use dormouse::index::{KeyPath, STEPS_MAX};
use proptest::prelude::*;

fn refusal(text: &str) -> String {
    text.parse::<KeyPath>().unwrap_err().to_string()
}

fn canonical(text: &str) -> String {
    text.parse::<KeyPath>().unwrap().to_string()
}

#[test]
fn canonical_texts_are_displayed_as_they_were_written() {
    for text in [
        "country",
        "address.city",
        "`MPAA Rating`",
        "a.`b.c`.d",
        "`a``b`",
        "````",
        "``",
        "tags[]",
        "routes[].airport",
        "geo.coordinates[0]",
        "a[0][1]",
        "a[0].b",
        "a[4294967295][].b[2]",
        "straße.2020.名前_1",
    ] {
        assert_eq!(canonical(text), text);
    }
}

#[test]
fn other_writings_are_displayed_in_the_canonical_one() {
    assert_eq!(canonical("`city`"), "city");
    assert_eq!(canonical("a[007].`b_1`"), "a[7].b_1");
}

#[test]
fn paths_are_equal_when_their_canonical_texts_are() {
    assert_eq!("`a`.b[01]".parse::<KeyPath>(), "a.`b`[1]".parse());
    assert_ne!("a.b".parse::<KeyPath>(), "`a.b`".parse());
}

#[test]
fn a_refusal_names_the_path_the_place_and_what_was_expected() {
    let rest = "expected `.`, `[` or the end (a name with other characters than letters, digits and `_` stands in \
                backticks)";
    assert_eq!(refusal("a..b"), "path `a..b`: at character 3: found `.`, expected a member name");
    assert_eq!(refusal(""), "path ``: at character 1: found the end, expected a member name");
    assert_eq!(refusal("é."), "path `é.`: at character 3: found the end, expected a member name");
    assert_eq!(refusal("[0]"), "path `[0]`: at character 1: found `[`, expected a member name");
    assert_eq!(refusal("a b"), format!("path `a b`: at character 2: found ` `, {rest}"));
    assert_eq!(refusal("a[0]b"), format!("path `a[0]b`: at character 5: found `b`, {rest}"));
    assert_eq!(refusal("`a`b"), format!("path ``a`b`: at character 4: found `b`, {rest}"));
    assert_eq!(refusal("a`"), format!("path `a``: at character 2: found a backtick, {rest}"));
    assert_eq!(refusal("`a"), "path ``a`: at character 3: found the end, expected a closing backtick");
    assert_eq!(refusal("a[x]"), "path `a[x]`: at character 3: found `x`, expected an element's place or `]`");
    assert_eq!(
        refusal("a[-1]"),
        "path `a[-1]`: at character 3: found `-`, expected an element's place or `]`"
    );
    assert_eq!(refusal("a[1"), "path `a[1`: at character 4: found the end, expected a digit or `]`");
    assert_eq!(
        refusal("a[4294967296]"),
        "path `a[4294967296]`: at character 3: found `4294967296`, expected a place up to 4294967295"
    );
    assert_eq!(
        refusal("a[].b[]"),
        "path `a[].b[]`: at character 6: found a second `[]`, expected at most one in a path"
    );
}

#[test]
fn a_refusal_is_one_line_of_bounded_length() {
    let message = refusal(&format!("a\n{}", "b".repeat(10_000)));
    assert!(!message.contains('\n') && message.chars().count() < 400, "{message}");
}

#[test]
fn a_path_of_too_many_steps_is_refused() {
    let longest = vec!["a"; STEPS_MAX].join(".");
    assert_eq!(canonical(&longest), longest);
    assert!(
        refusal(&format!("{longest}.a")).contains("at character 129: found step 65, expected at most 64")
    );
}

#[test]
fn a_list_is_split_at_commas_outside_backticks() {
    let paths = KeyPath::parse_list("country,address.city,`a,``b`,tags[]").unwrap();
    let texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["country", "address.city", "`a,``b`", "tags[]"]);
}

#[test]
fn a_list_with_an_empty_path_is_refused() {
    for list in ["", "a,", ",a", "a,,b"] {
        assert!(KeyPath::parse_list(list).is_err(), "{list}");
    }
}

#[test]
fn a_path_is_serialised_as_its_text() {
    let path: KeyPath = serde_json::from_str(r#""a.`b c`[0]""#).unwrap();
    assert_eq!(serde_json::to_string(&path).unwrap(), r#""a.`b c`[0]""#);
    assert!(serde_json::from_str::<KeyPath>(r#""a..b""#).unwrap_err().to_string().contains("character 3"));
}

#[test]
fn only_a_path_with_an_empty_subscript_is_an_array_path() {
    for (text, is_array) in [("a[]", true), ("a[].b", true), ("a[0]", false), ("`a[]`", false)] {
        assert_eq!(text.parse::<KeyPath>().unwrap().is_array(), is_array, "{text}");
    }
}

/// Texts of paths in any writing that the grammar has.
fn path_text() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        "[a-z_0-9]{1,3}",
        "[\\p{L}]{1,3}",
        proptest::collection::vec(prop_oneof![Just('`'), Just(','), any::<char>()], 0..4)
            .prop_map(|chars| format!("`{}`", String::from_iter(chars).replace('`', "``"))),
    ];
    let step = prop_oneof![
        name.clone().prop_map(|name| format!(".{name}")),
        any::<u32>().prop_map(|place| format!("[{place}]")),
    ];
    let steps = proptest::collection::vec(step, 0..6).prop_map(|steps| steps.concat());
    (name, steps.clone(), prop_oneof![Just(""), Just("[]")], steps)
        .prop_map(|(name, before, each, after)| format!("{name}{before}{each}{after}"))
}

proptest! {
    #[test]
    fn a_displayed_path_parses_to_the_same_path(text in path_text()) {
        let path: KeyPath = text.parse().unwrap();
        let displayed = path.to_string();
        prop_assert_eq!(displayed.parse::<KeyPath>().unwrap(), path);
        prop_assert_eq!(canonical(&displayed), displayed);
    }

    #[test]
    fn a_displayed_list_parses_to_the_same_list(texts in proptest::collection::vec(path_text(), 1..5)) {
        let paths = KeyPath::parse_list(&texts.join(",")).unwrap();
        prop_assert_eq!(paths.len(), texts.len());
        let displayed: Vec<String> = paths.iter().map(ToString::to_string).collect();
        prop_assert_eq!(KeyPath::parse_list(&displayed.join(",")).unwrap(), paths);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in prop_oneof![".*", "[a`.\\[\\]0,]{0,12}"]) {
        if let Ok(path) = text.parse::<KeyPath>() {
            prop_assert_eq!(path.to_string().parse::<KeyPath>().unwrap(), path);
        }
        let _ = KeyPath::parse_list(&text);
    }
}
