//! Definitions: their two written forms, and which ones are refused.

use dormouse::index::{IndexDefinition, IndexName, KeyPath, NAME_BYTES_MAX, PATHS_MAX};
use serde_json::json;

fn refusal(text: &str) -> String {
    IndexDefinition::parse(text).unwrap_err().to_string()
}

fn primary() -> IndexDefinition {
    IndexDefinition::primary("#primary".parse().unwrap())
}

#[test]
fn a_definition_is_displayed_in_the_form_of_the_command_line() {
    let text = "by_country=country,`MPAA Rating`,tags[]";
    assert_eq!(IndexDefinition::parse(text).unwrap().to_string(), text);
    assert_eq!(primary().to_string(), "#primary");
    let filtered = IndexDefinition::parse("i=a").unwrap().with_filter("b=1".parse().unwrap());
    assert_eq!(filtered.to_string(), "i=a where b = 1");
    assert_ne!(filtered, IndexDefinition::parse("i=a").unwrap());
}

#[test]
fn the_first_equals_sign_ends_the_name() {
    let definition = IndexDefinition::parse("a=`b=c`").unwrap();
    assert_eq!(definition.name().as_str(), "a");
    assert_eq!(definition.to_string(), "a=`b=c`");
}

#[test]
fn a_key_has_a_part_for_each_path_and_a_primary_key_one() {
    assert_eq!(IndexDefinition::parse("i=a,b[],c").unwrap().components(), 3);
    assert_eq!(primary().components(), 1);
}

#[test]
fn definitions_are_equal_when_name_and_paths_are() {
    let definition = IndexDefinition::parse("i=a,b").unwrap();
    assert_eq!(definition, IndexDefinition::parse("i=`a`,b").unwrap());
    for other in ["j=a,b", "i=b,a", "i=a", "i=a,b[]"] {
        assert_ne!(definition, IndexDefinition::parse(other).unwrap(), "{other}");
    }
}

#[test]
fn the_json_form_is_fixed_and_reads_back() {
    let forms = [
        (
            IndexDefinition::parse("by_country=country,address.city").unwrap(),
            json!({"name": "by_country", "kind": "secondary", "paths": ["country", "address.city"]}),
        ),
        (primary(), json!({"name": "#primary", "kind": "primary"})),
        (
            primary().with_filter("a=1 AND b=2".parse().unwrap()),
            json!({"version": 2, "name": "#primary", "kind": "primary", "filter": "a = 1 and b = 2"}),
        ),
    ];
    for (definition, form) in forms {
        assert_eq!(serde_json::to_value(&definition).unwrap(), form);
        assert_eq!(serde_json::from_value::<IndexDefinition>(form).unwrap(), definition);
    }
}

#[test]
fn json_that_breaks_a_rule_is_refused() {
    let refused = [
        json!({"name": "", "kind": "primary"}),
        json!({"name": "i", "kind": "primary", "paths": ["a"]}),
        json!({"name": "i", "kind": "secondary"}),
        json!({"name": "i", "kind": "secondary", "paths": ["a.."]}),
        json!({"name": "i", "kind": "secondary", "paths": ["a[]", "b[]"]}),
        json!({"name": "i", "kind": "secondary", "paths": ["a"], "unknown": 1}),
        json!({"name": "i", "kind": "other"}),
        json!({"name": "i", "kind": "primary", "version": 3}),
        json!({"name": "i", "kind": "primary", "version": 2, "filter": "a ="}),
    ];
    for form in refused {
        assert!(serde_json::from_value::<IndexDefinition>(form.clone()).is_err(), "{form}");
    }
}

#[test]
fn names_have_letters_digits_and_a_few_signs() {
    let longest = "n".repeat(NAME_BYTES_MAX);
    for name in ["a", "#primary", "by-country_2.v1", "0", longest.as_str()] {
        assert_eq!(name.parse::<IndexName>().unwrap().as_str(), name);
    }
    for name in ["", ".", ".hidden", "a b", "a/b", "é", "a=b", &format!("{longest}n")] {
        assert!(name.parse::<IndexName>().is_err(), "{name}");
    }
}

#[test]
fn a_refusal_says_what_was_found_and_what_is_expected() {
    assert_eq!(
        refusal("by_country"),
        "cannot define an index by `by_country`: expected NAME=PATH[,PATH…], such as by_country=country,city"
    );
    assert_eq!(
        refusal("a b=c"),
        "`a b` cannot name an index: expected 1 to 100 letters (a-z, A-Z), digits, `_`, `-`, `.` and `#`, not \
         beginning with `.`"
    );
    assert_eq!(
        refusal("i=a..b"),
        "cannot define index i: path `a..b`: at character 3: found `.`, expected a member name"
    );
    assert_eq!(
        refusal("i=a[],b,c[].d"),
        "cannot define index i: both `a[]` and `c[].d` hold `[]`, expected at most one such path"
    );
}

#[test]
fn a_definition_has_one_to_sixteen_paths() {
    let paths = vec!["a"; PATHS_MAX].join(",");
    assert_eq!(IndexDefinition::parse(&format!("i={paths}")).unwrap().components(), PATHS_MAX);
    assert_eq!(refusal(&format!("i={paths},a")), "cannot define index i: found 17 paths, expected 1 to 16");
    let none: Vec<KeyPath> = Vec::new();
    assert!(IndexDefinition::secondary("i".parse().unwrap(), none).is_err());
}

#[test]
fn a_refusal_is_one_line_whatever_the_names_in_the_paths_are() {
    let told = refusal(&format!("i=`a\nb`[],`{}`[]", "c".repeat(10_000)));
    assert!(told.chars().all(|c| !c.is_control()), "{told}");
    assert!(told.contains("`a\\nb`") && told.len() < 1000, "{told}");
}
