//! Engines: the index instances as a worker sees them.

use std::sync::Arc;

use crate::index::{Document, IndexDefinition, KeyList, KeyPlan};
use crate::shard::InstId;

/// Makes the index keys of a document. [`IndexDefinition`] is the usual one; a host may bring its own.
///
/// It is called on the workers' data threads, on several at a time. A document for which it fails or panics is
/// left out of the index and counted; the stream goes on.
///
/// A closure will do:
///
/// ```
/// use std::sync::Arc;
///
/// use dormouse::index::{Document, KeyList};
/// use dormouse::projector::{Engine, Evaluator};
/// use dormouse::shard::InstId;
/// use serde_json::Value;
///
/// // An index over the length of each name.
/// let by_length = |_id: &str, document: &Document<'_>, out: &mut KeyList| {
///     if let Some(name) = document.value()?.get("name").and_then(Value::as_str) {
///         out.add(&[Some(&Value::from(name.chars().count()))]);
///     }
///     Ok(())
/// };
/// let mut keys = KeyList::new();
/// by_length.keys("k", &Document::json(br#"{"name":"Fornebu"}"#), &mut keys)?;
/// assert_eq!(keys.len(), 1);
/// let engine = Engine { inst: InstId(1), evaluator: Arc::new(by_length) };
/// # drop(engine);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub trait Evaluator: Send + Sync {
    /// Adds the encoded keys of the document to `out`, which comes empty. The document was checked as a whole; its
    /// value is made when the first evaluator asks for it. Its extended attributes are as they came.
    fn keys(&self, id: &str, document: &Document<'_>, out: &mut KeyList) -> anyhow::Result<()>;

    /// What the keys are made of, where they are those of a definition. Such evaluators are not asked for keys: one
    /// walk of the document serves all of them.
    fn definition(&self) -> Option<&IndexDefinition> {
        None
    }
}

impl Evaluator for IndexDefinition {
    fn keys(&self, id: &str, document: &Document<'_>, out: &mut KeyList) -> anyhow::Result<()> {
        IndexDefinition::keys(self, id, document.value()?, out);
        Ok(())
    }

    fn definition(&self) -> Option<&IndexDefinition> {
        Some(self)
    }
}

impl<F> Evaluator for F
where
    F: Fn(&str, &Document<'_>, &mut KeyList) -> anyhow::Result<()> + Send + Sync,
{
    fn keys(&self, id: &str, document: &Document<'_>, out: &mut KeyList) -> anyhow::Result<()> {
        self(id, document, out)
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
pub(super) struct EngineSet {
    engines: Vec<Engine>,
    /// Instances that are filled by another data path, and are to join this one.
    joining: Arc<[InstId]>,
    instances: Arc<[InstId]>,
    plan: Arc<KeyPlan>,
    /// For each engine, its place in the plan.
    planned: Vec<Option<usize>>,
}

impl EngineSet {
    /// This set with `more` in it; of several engines of the same instance the last one stays.
    #[must_use]
    pub(super) fn with(&self, more: &[Engine]) -> Self {
        self.with_all(more, Vec::new())
    }

    /// The same, for engines whose instances join: see [`WriteBatch::joining`](crate::shard::batch::WriteBatch).
    #[must_use]
    pub(super) fn with_joining(&self, more: &[Engine]) -> Self {
        self.with_all(more, more.iter().map(|engine| engine.inst).collect())
    }

    fn with_all(&self, more: &[Engine], mut joining: Vec<InstId>) -> Self {
        let is_new = |inst: &InstId| more.iter().any(|new| new.inst == *inst);
        let mut engines = self.engines.clone();
        for new in more {
            engines.retain(|old| old.inst != new.inst);
            engines.push(new.clone());
        }
        joining.extend(self.joining.iter().filter(|inst| !is_new(inst)));
        Self::of(engines, &joining)
    }

    /// This set without the engines of `instances`.
    #[must_use]
    pub(super) fn without(&self, instances: &[InstId]) -> Self {
        let engines: Vec<Engine> =
            self.engines.iter().filter(|engine| !instances.contains(&engine.inst)).cloned().collect();
        Self::of(engines, &self.joining)
    }

    fn of(engines: Vec<Engine>, joining: &[InstId]) -> Self {
        let joins = |engine: &&Engine| joining.contains(&engine.inst);
        let instances = engines.iter().filter(|engine| !joins(engine)).map(|engine| engine.inst).collect();
        let joining = engines.iter().filter(joins).map(|engine| engine.inst).collect();
        let definition = |engine: &Engine| engine.evaluator.definition().cloned();
        let definitions: Vec<Option<IndexDefinition>> = engines.iter().map(definition).collect();
        let mut places = 0..;
        let planned = definitions.iter().map(|one| one.as_ref().and_then(|_| places.next())).collect();
        let plan = Arc::new(KeyPlan::new(definitions.iter().flatten()));
        Self { engines, joining, instances, plan, planned }
    }

    /// The engines.
    pub(super) fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// The engines, each with its place in the plan if it is in there.
    pub(super) fn planned(&self) -> impl Iterator<Item = (&Engine, Option<usize>)> {
        self.engines.iter().zip(self.planned.iter().copied())
    }

    /// How documents are read for all engines that have a definition.
    pub(super) fn plan(&self) -> &KeyPlan {
        &self.plan
    }

    /// The instances of those that do not join, in the same order.
    pub(super) fn instances(&self) -> Arc<[InstId]> {
        Arc::clone(&self.instances)
    }

    /// The instances of those that join, in the same order.
    pub(super) fn joining(&self) -> Arc<[InstId]> {
        Arc::clone(&self.joining)
    }
}
