//! Texts as filters: what is accepted is shown as a text that parses to the same, and can be asked about documents.

#![no_main]

use dormouse::index::{Filter, IndexDefinition, KeyList};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|text: &str| {
    let filter = match text.parse::<Filter>() {
        Ok(filter) => filter,
        Err(error) => {
            let message = error.to_string();
            assert!(message.chars().all(|c| !c.is_control()), "{message}");
            return;
        }
    };
    let shown = filter.to_string();
    assert_eq!(shown.parse::<Filter>().expect("what is shown is a filter"), filter, "{shown}");
    let definition = IndexDefinition::primary("i".parse().expect("a name")).with_filter(filter);
    let mut keys = KeyList::new();
    for document in [json!({"a": 1, "b": ["x", null], "c": {"d": "y"}}), json!({}), json!([1])] {
        keys.clear();
        definition.keys("id", &document, &mut keys);
        assert!(keys.len() <= 1);
    }
});
