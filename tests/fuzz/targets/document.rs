//! Bytes as documents: whether they are one, and their keys in any index, against `serde_json::Value` and a naive
//! evaluation of it. The first byte chooses the indexes.

#![no_main]

use std::sync::LazyLock;

use dormouse::index::{DOCUMENT_DEPTH_MAX, Document, Extract, IndexDefinition, KEY_BYTES_MAX, KeyList, KeyPlan};
use libfuzzer_sys::fuzz_target;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde::Deserialize;
use serde_json::Value;

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../support/json.rs"]
mod json;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../support/naive.rs"]
mod naive;

struct Set {
    indexes: Vec<naive::Index>,
    definitions: Vec<IndexDefinition>,
    plan: KeyPlan,
}

static SETS: LazyLock<Vec<Set>> = LazyLock::new(|| {
    let mut runner = TestRunner::deterministic();
    let set = |_| {
        let index = |_| naive::index().new_tree(&mut runner).expect("an index").current();
        let indexes: Vec<naive::Index> = (0..4).map(index).collect();
        let definitions: Vec<IndexDefinition> =
            indexes.iter().zip(0..).map(|(index, n)| index.definition(&format!("i{n}"))).collect();
        let plan = KeyPlan::new(&definitions);
        Set { indexes, definitions, plan }
    };
    (0..256).map(set).collect()
});

/// The most arrays and objects within each other in a text that is JSON.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    deepest
}

fn value(text: &[u8]) -> Option<Value> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    reader.disable_recursion_limit();
    let value = Value::deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    (depth(text) <= DOCUMENT_DEPTH_MAX).then_some(value)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else { return };
    let set = &SETS[usize::from(*choice)];
    let expected = value(text);
    let mut extract = Extract::new();
    let read = set.plan.read(text, &mut extract);
    assert_eq!(read.is_ok(), expected.is_some(), "{:?}: {read:?}", String::from_utf8_lossy(text));
    assert_eq!(Document::json(text).value().ok(), expected.as_ref());
    let Some(expected) = expected else { return };
    let mut keys = KeyList::new();
    for (place, (index, definition)) in set.indexes.iter().zip(&set.definitions).enumerate() {
        keys.clear();
        set.plan.keys(place, "id", &extract, &mut keys);
        let mut naive: Vec<Vec<u8>> = index.keys(&expected).iter().map(|key| naive::encoded(key)).collect();
        naive.retain(|key| key.len() <= KEY_BYTES_MAX);
        assert!(keys.iter().eq(&naive), "{definition}: {expected}");
    }
});
