//! Texts as paths, lists of paths and definitions: what is accepted is shown as a text that parses to the same.

#![no_main]

use dormouse::index::{IndexDefinition, KeyPath};
use libfuzzer_sys::fuzz_target;

fn is_one_line(message: &str) -> bool {
    message.chars().all(|c| !c.is_control())
}

fuzz_target!(|text: &str| {
    match text.parse::<KeyPath>() {
        Ok(path) => assert_eq!(path.to_string().parse::<KeyPath>().as_ref(), Ok(&path)),
        Err(error) => assert!(is_one_line(&error.to_string()), "{error}"),
    }
    match KeyPath::parse_list(text) {
        Ok(paths) => {
            let shown: Vec<String> = paths.iter().map(KeyPath::to_string).collect();
            assert_eq!(KeyPath::parse_list(&shown.join(",")), Ok(paths));
        }
        Err(error) => assert!(is_one_line(&error.to_string()), "{error}"),
    }
    match IndexDefinition::parse(text) {
        Ok(definition) => {
            let stored = serde_json::to_string(&definition).expect("it is stored");
            assert_eq!(serde_json::from_str::<IndexDefinition>(&stored).expect("it is read back"), definition);
        }
        Err(error) => assert!(is_one_line(&error.to_string()), "{error}"),
    }
});
