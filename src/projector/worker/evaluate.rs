//! From the events of a batch to one write batch per shard.
//!
//! Keeps, for each vbucket, where its stream stands. A document is parsed once for all engines. A document for
//! which an engine fails or panics is quarantined: its old entry goes, it is counted and logged at a limited
//! rate, and the stream goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use slog::{Logger, warn};

use crate::event::{DcpEvent, EventKind, Generation, Seqno, Span, VbId, VbUuid};
use crate::index::KeyList;
use crate::shard::ShardId;
use crate::shard::batch::{Advance, WriteBatch};
use crate::thread::catch;
use crate::timestamp::Position;

use super::super::engine::{Engine, EngineSet};
use super::{BatchCounts, Scattered, Spare, WorkerConfig, WorkerStats};

/// The least time between two log lines about quarantined documents.
const QUARANTINE_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Where the stream of a vbucket stands.
#[derive(Debug, Clone, Copy)]
struct Stream {
    vbuuid: VbUuid,
    evaluated: Seqno,
    window: (Seqno, Seqno),
    /// Number of the batch that last moved it, and the place of its advance there.
    advance: (u64, usize),
}

impl Stream {
    fn position(&self) -> Position {
        let (start, end) = self.window;
        if end == Seqno::OPEN_END {
            return Position::at(self.vbuuid, self.evaluated);
        }
        let (snap_start, snap_end) = (start.min(self.evaluated), end.max(self.evaluated));
        Position { vbuuid: self.vbuuid, seqno: self.evaluated, snap_start, snap_end }
    }
}

pub(super) struct Evaluation {
    number: u16,
    workers: u16,
    shards: u16,
    generation: Generation,
    engines: Arc<EngineSet>,
    streams: Vec<Option<Stream>>,
    keys: KeyList,
    batches: u64,
    counts: BatchCounts,
    stats: Arc<WorkerStats>,
    logger: Logger,
    quarantine: Quarantine,
}

#[derive(Default)]
struct Quarantine {
    logged_at: Option<Instant>,
    unlogged: u64,
}

impl Evaluation {
    pub(super) fn new(config: &WorkerConfig, stats: Arc<WorkerStats>, logger: Logger) -> Self {
        Self {
            number: config.number,
            workers: config.workers.max(1),
            shards: config.shards,
            generation: config.generation,
            engines: Arc::default(),
            streams: vec![None; usize::from(config.vbuckets)],
            keys: KeyList::default(),
            batches: 0,
            counts: BatchCounts::default(),
            stats,
            logger,
            quarantine: Quarantine::default(),
        }
    }

    pub(super) fn set_engines(&mut self, engines: Arc<EngineSet>) {
        self.engines = engines;
    }

    /// The last seqno of each stream that was evaluated.
    pub(super) fn evaluated(&self) -> Vec<(VbId, Seqno)> {
        let streams = (0_u16..).zip(&self.streams);
        streams.filter_map(|(vb, stream)| stream.map(|stream| (VbId(vb), stream.evaluated))).collect()
    }

    /// The write batches of this worker's shards, in the order of their lanes; `None` where nothing moved.
    pub(super) fn evaluate(
        &mut self,
        scattered: &Scattered,
        spare: &mut Spare,
    ) -> Vec<Option<Box<WriteBatch>>> {
        self.batches += 1;
        // Taken once: all workers share the set's counter, and touching it for each document would cost more than
        // the rest of the way.
        let engines = Arc::clone(&self.engines);
        let lanes = usize::from((self.shards.saturating_sub(self.number)).div_ceil(self.workers));
        let mut batches: Vec<Option<Box<WriteBatch>>> = Vec::with_capacity(lanes);
        batches.resize_with(lanes, || None);
        for index in &scattered.events {
            let Some(event) = scattered.batch.events.get(*index as usize) else { continue };
            let lane = usize::from((ShardId::of_vb(event.vb, self.shards).0 - self.number) / self.workers);
            if let Some(batch) = batches.get_mut(lane) {
                self.take(event, &scattered.batch.buffer, &engines, batch, spare);
            }
        }
        self.stats.add(std::mem::take(&mut self.counts));
        batches
    }

    fn take(
        &mut self,
        event: &DcpEvent,
        buffer: &[u8],
        engines: &EngineSet,
        batch: &mut Option<Box<WriteBatch>>,
        spare: &mut Spare,
    ) {
        let Some(slot) = self.streams.get_mut(usize::from(event.vb.0)) else { return };
        let (key, value) = match event.kind {
            EventKind::StreamReq { vbuuid } => {
                let window = (event.seqno, event.seqno);
                *slot = Some(Stream { vbuuid, evaluated: event.seqno, window, advance: (0, 0) });
                return;
            }
            EventKind::StreamEnd { .. } => {
                *slot = None;
                return;
            }
            EventKind::SnapshotMarker { start, end } => {
                if let Some(stream) = slot {
                    stream.window = (start, end);
                }
                return;
            }
            EventKind::Mutation { key, value } => (key, Some(value)),
            EventKind::Deletion { key } | EventKind::Expiration { key } => (key, None),
        };
        let Some(stream) = slot else {
            self.counts.without_stream += 1;
            return;
        };
        let batch = batch.get_or_insert_with(|| {
            let mut empty = spare.pop().unwrap_or_default();
            empty.generation = self.generation;
            empty.instances = engines.instances();
            empty
        });
        advance(stream, self.batches, event, batch);
        self.evaluate_document(event, (key, value), buffer, engines, batch);
    }

    fn evaluate_document(
        &mut self,
        event: &DcpEvent,
        (key, value): (Span, Option<Span>),
        buffer: &[u8],
        engines: &EngineSet,
        batch: &mut WriteBatch,
    ) {
        self.counts.documents += 1;
        if engines.engines().is_empty() {
            return;
        }
        let doc_id = batch.add_document(key.of(buffer));
        let id = std::str::from_utf8(key.of(buffer)).ok();
        let document = value.map(|value| serde_json::from_slice::<Value>(value.of(buffer)));
        for engine in engines.engines() {
            self.keys.clear();
            let problem = match (id, &document) {
                (_, None) => None,
                (Some(id), Some(Ok(document))) => run_evaluator(engine, id, document, &mut self.keys),
                (None, Some(Ok(_))) => Some("its key is not UTF-8".to_owned()),
                (_, Some(Err(error))) => Some(format!("it is no JSON: {error}")),
            };
            if let Some(problem) = problem {
                self.keys.clear();
                self.quarantine(engine, id.unwrap_or("?"), &problem);
            }
            self.counts.entries += self.keys.len() as u64;
            self.counts.oversize_keys += self.keys.oversize() as u64;
            batch.add_change(engine.inst, (event.vb, event.seqno), doc_id, self.keys.iter());
        }
    }

    fn quarantine(&mut self, engine: &Engine, id: &str, problem: &str) {
        self.counts.quarantined += 1;
        self.quarantine.unlogged += 1;
        if self.quarantine.logged_at.is_none_or(|at| at.elapsed() >= QUARANTINE_LOG_INTERVAL) {
            warn!(self.logger, "a document was left out of an index: {problem}";
                "document" => id, "instance" => engine.inst.0, "documents" => self.quarantine.unlogged);
            self.quarantine = Quarantine { logged_at: Some(Instant::now()), unlogged: 0 };
        }
    }
}

/// Notes in the batch how far the event moves its vbucket.
fn advance(stream: &mut Stream, batch_number: u64, event: &DcpEvent, batch: &mut WriteBatch) {
    let from = stream.evaluated;
    stream.evaluated = event.seqno;
    let to = stream.position();
    match batch.advances.get_mut(stream.advance.1) {
        Some(advance) if stream.advance.0 == batch_number => advance.to = to,
        _ => {
            stream.advance = (batch_number, batch.advances.len());
            batch.advances.push(Advance { vb: event.vb, from, to });
        }
    }
}

/// Gives back what is wrong, if something is.
fn run_evaluator(engine: &Engine, id: &str, document: &Value, keys: &mut KeyList) -> Option<String> {
    // What a panicking evaluator leaves in `keys` is cleared by the caller; it shares nothing else with us.
    match catch("evaluator", || engine.evaluator.keys(id, document, keys)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panicked) => Some(format!("its evaluator panicked: {}", panicked.message)),
    }
}
