//! An evaluator that makes more of a document than there is in it. Tests and benches use it.

use dormouse::index::{Document, IndexDefinition, KeyList};
use dormouse::projector::Evaluator;
use serde_json::Value;

/// Makes fifty keys of about 70 bytes of every document.
pub(crate) struct Prolific {
    definition: IndexDefinition,
    document: Value,
}

impl Prolific {
    pub(crate) fn new() -> Self {
        let keys: Vec<String> = (0..50).map(|number| format!("{number:04}{}", "k".repeat(60))).collect();
        let definition = IndexDefinition::parse("by_tag=tags[]").unwrap();
        Self { definition, document: serde_json::json!({ "tags": keys }) }
    }
}

impl Evaluator for Prolific {
    fn keys(&self, id: &str, _: &Document<'_>, out: &mut KeyList) -> anyhow::Result<()> {
        self.definition.keys(id, &self.document, out);
        Ok(())
    }
}
