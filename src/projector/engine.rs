//! Engines: the index instances as a worker sees them.

use std::sync::Arc;

use serde_json::Value;

use crate::index::{IndexDefinition, KeyList};
use crate::shard::InstId;

/// Makes the index keys of a document. [`IndexDefinition`] is the usual one; a host may bring its own.
///
/// It is called on the workers' data threads, on several at a time. A document for which it fails or panics is
/// left out of the index and counted; the stream goes on.
pub trait Evaluator: Send + Sync {
    /// Adds the encoded keys of the document to `out`, which comes empty.
    fn keys(&self, id: &str, document: &Value, out: &mut KeyList) -> anyhow::Result<()>;
}

impl Evaluator for IndexDefinition {
    fn keys(&self, id: &str, document: &Value, out: &mut KeyList) -> anyhow::Result<()> {
        IndexDefinition::keys(self, id, document, out);
        Ok(())
    }
}

/// One index instance's evaluator.
#[derive(Clone)]
pub struct Engine {
    /// The instance.
    pub inst: InstId,
    /// Makes its keys.
    pub evaluator: Arc<dyn Evaluator>,
}

/// The engines that evaluate a document together. A set never changes; another one takes its place between two
/// batches.
#[derive(Clone, Default)]
pub struct EngineSet {
    engines: Vec<Engine>,
    instances: Arc<[InstId]>,
}

impl EngineSet {
    /// This set with `more` in it; of several engines of the same instance the last one stays.
    #[must_use]
    pub fn with(&self, more: &[Engine]) -> Self {
        let mut engines = self.engines.clone();
        for new in more {
            engines.retain(|old| old.inst != new.inst);
            engines.push(new.clone());
        }
        let instances = engines.iter().map(|engine| engine.inst).collect();
        Self { engines, instances }
    }

    /// This set without the engines of `instances`.
    #[must_use]
    pub fn without(&self, instances: &[InstId]) -> Self {
        let engines: Vec<Engine> =
            self.engines.iter().filter(|engine| !instances.contains(&engine.inst)).cloned().collect();
        let instances = engines.iter().map(|engine| engine.inst).collect();
        Self { engines, instances }
    }

    /// The engines.
    pub fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// Their instances, in the same order.
    pub fn instances(&self) -> Arc<[InstId]> {
        Arc::clone(&self.instances)
    }
}
