//! From the events of a batch, or a piece of them, to one write batch per shard.
//!
//! Keeps, for each vbucket, where its stream stands. A document is read once for all engines. A document for
//! which an engine fails or panics is quarantined: its old entry goes, it is counted and logged at a limited
//! rate, and the stream goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use slog::{Logger, warn};

use crate::event::{
    Datatype, DcpEvent, EventKind, Generation, OsoEdge, Seqno, Span, StreamEndReason, StreamStatus, VbId,
    VbUuid, Xattrs,
};
use crate::index::{DOCUMENT_KEY_BYTES_MAX, DOCUMENT_KEYS_MAX, Document, Extract, KeyList};
use crate::shard::ShardId;
use crate::shard::batch::{Advance, Window, WriteBatch};
use crate::thread::catch;
use crate::timestamp::Position;

use super::super::engine::{Engine, EngineSet};
use super::{BatchCounts, Scattered, Spare, Tuning, WorkerConfig, WorkerStats};

/// What is made of events at once is applied when it has so many bytes, and then the next piece is made.
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// Keys of transaction records begin so.
const TRANSACTION_PREFIX: &[u8] = b"_txn:";

/// Where the stream of a vbucket stands.
#[derive(Debug, Clone, Copy)]
struct Stream {
    vbuuid: VbUuid,
    /// Everything up to here was evaluated.
    evaluated: Seqno,
    window: (Seqno, Seqno),
    /// Within an out-of-order snapshot, the highest seqno so far. `evaluated` stays before the snapshot.
    oso_highest: Option<Seqno>,
    /// Within the first snapshot of a stream from seqno zero, in which each document comes once.
    is_first: bool,
}

/// Where a vbucket's latest advance stands. It outlives the stream: one that ends and begins again within a batch
/// continues the advance that is there.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// Number of the batch.
    batch: u64,
    /// Place in the batch's advances.
    place: usize,
}

impl Stream {
    fn begin(vbuuid: VbUuid, seqno: Seqno) -> Self {
        Self { vbuuid, evaluated: seqno, window: (seqno, seqno), oso_highest: None, is_first: false }
    }

    fn position(&self) -> Position {
        if let Some(highest) = self.oso_highest {
            // The window tells the producer, and the shard, how far changes may already be there.
            let (snap_start, snap_end) = (self.evaluated, highest.max(self.evaluated));
            return Position { vbuuid: self.vbuuid, seqno: self.evaluated, snap_start, snap_end };
        }
        let (start, end) = self.window;
        if end == Seqno::OPEN_END {
            return Position::at(self.vbuuid, self.evaluated);
        }
        let (snap_start, snap_end) = (start.min(self.evaluated), end.max(self.evaluated));
        Position { vbuuid: self.vbuuid, seqno: self.evaluated, snap_start, snap_end }
    }

    fn promise(&self) -> Window {
        match self {
            Self { oso_highest: Some(_), .. } => Window::OutOfOrder,
            Self { is_first: true, .. } => Window::First,
            _ => Window::Ordered,
        }
    }

    /// The highest seqno that was evaluated.
    fn highest(&self) -> Seqno {
        self.oso_highest.unwrap_or_default().max(self.evaluated)
    }

    /// Takes a change up. `false` when the stream has it already.
    fn take(&mut self, seqno: Seqno) -> bool {
        if let Some(highest) = &mut self.oso_highest {
            *highest = seqno.max(*highest);
            return true;
        }
        let is_new = seqno > self.evaluated;
        if is_new {
            self.evaluated = seqno;
        }
        is_new
    }

    /// Passes an edge of an out-of-order snapshot.
    fn pass(&mut self, edge: OsoEdge) {
        match edge {
            OsoEdge::Start => self.oso_highest = Some(self.evaluated),
            OsoEdge::End => {
                self.evaluated = self.oso_highest.take().unwrap_or_default().max(self.evaluated);
            }
        }
    }
}

pub(super) struct Evaluation {
    number: u16,
    workers: u16,
    shards: u16,
    /// For each lane, what its batches are stamped with.
    generations: Vec<Generation>,
    engines: Arc<EngineSet>,
    streams: Vec<Option<Stream>>,
    marks: Vec<Mark>,
    keys: KeyList,
    extract: Extract,
    batches: u64,
    counts: BatchCounts,
    stats: Arc<WorkerStats>,
    logger: Logger,
    quarantine: Quarantine,
    quarantine_log_interval: Duration,
}

/// What the events of a batch are evaluated with.
struct With<'b> {
    buffer: &'b [u8],
    engines: &'b EngineSet,
}

#[derive(Default)]
struct Quarantine {
    logged_at: Option<Instant>,
    unlogged: u64,
}

impl Evaluation {
    pub(super) fn new(config: &WorkerConfig, stats: Arc<WorkerStats>, logger: Logger) -> Self {
        let workers = config.workers.max(1);
        let lanes = usize::from(config.shards.saturating_sub(config.number).div_ceil(workers));
        Self {
            number: config.number,
            workers,
            shards: config.shards,
            generations: vec![config.generation; lanes],
            engines: Arc::default(),
            streams: vec![None; usize::from(config.vbuckets)],
            marks: vec![Mark::default(); usize::from(config.vbuckets)],
            keys: KeyList::default(),
            extract: Extract::new(),
            batches: 0,
            counts: BatchCounts::default(),
            stats,
            logger,
            quarantine: Quarantine::default(),
            quarantine_log_interval: Tuning::default().quarantine_log_interval,
        }
    }

    pub(super) fn set_engines(&mut self, engines: Arc<EngineSet>) {
        self.engines = engines;
    }

    pub(super) fn set_quarantine_log_interval(&mut self, interval: Duration) {
        self.quarantine_log_interval = interval;
    }

    /// Stamps what is written to one of this worker's shards with another generation from now on.
    pub(super) fn fence(&mut self, shard: ShardId, generation: Generation) {
        let from_first = shard.0.checked_sub(self.number).filter(|others| others % self.workers == 0);
        let lane = from_first.map(|others| usize::from(others / self.workers));
        if let Some(current) = lane.and_then(|lane| self.generations.get_mut(lane)) {
            *current = generation;
        }
    }

    /// The highest seqno of each stream that was evaluated.
    pub(super) fn evaluated(&self) -> Vec<(VbId, Seqno)> {
        let streams = (0_u16..).zip(&self.streams);
        streams.filter_map(|(vb, stream)| stream.map(|stream| (VbId(vb), stream.highest()))).collect()
    }

    /// The write batches of this worker's shards, in the order of their lanes; `None` where nothing moved. They are of
    /// the events from one on, up to the one that is given back, which is the first of another piece: few bytes may
    /// make many keys.
    pub(super) fn evaluate(
        &mut self,
        scattered: &Scattered,
        from: usize,
        spare: &mut Spare,
    ) -> (Vec<Option<Box<WriteBatch>>>, usize) {
        self.batches += 1;
        let engines = Arc::clone(&self.engines);
        let with = With { buffer: &scattered.batch.buffer, engines: &engines };
        let mut batches: Vec<Option<Box<WriteBatch>>> = Vec::with_capacity(self.generations.len());
        batches.resize_with(self.generations.len(), || None);
        let (mut next, mut made_bytes) = (from, 0);
        for index in scattered.events.iter().skip(from) {
            if made_bytes >= PIECE_BYTES {
                break;
            }
            next += 1;
            let Some(event) = scattered.batch.events.get(*index as usize) else { continue };
            let lane = usize::from((ShardId::of_vb(event.vb, self.shards).0 - self.number) / self.workers);
            let generation = self.generations.get(lane).copied();
            if let (Some(batch), Some(generation)) = (batches.get_mut(lane), generation) {
                let before = batch.as_ref().map_or(0, |batch| batch.content_bytes());
                self.take(event, generation, &with, batch, spare);
                made_bytes += batch.as_ref().map_or(0, |batch| batch.content_bytes()) - before;
            }
        }
        self.stats.add(std::mem::take(&mut self.counts));
        (batches, next)
    }

    fn take(
        &mut self,
        event: &DcpEvent,
        generation: Generation,
        with: &With<'_>,
        batch: &mut Option<Box<WriteBatch>>,
        spare: &mut Spare,
    ) {
        let vb = usize::from(event.vb.0);
        let (Some(slot), Some(mark)) = (self.streams.get_mut(vb), self.marks.get_mut(vb)) else { return };
        let batch = batch.get_or_insert_with(|| {
            let mut empty = spare.pop().unwrap_or_default();
            empty.generation = generation;
            (empty.instances, empty.joining) = (with.engines.instances(), with.engines.joining());
            empty
        });
        if let EventKind::StreamReq { status } = event.kind {
            if let StreamStatus::Success { vbuuid } = status
                && let Some(before) = slot.replace(Stream::begin(vbuuid, event.seqno))
            {
                let kind = EventKind::StreamEnd { reason: StreamEndReason::Superseded };
                batch.notes.push(DcpEvent { vb: event.vb, seqno: before.highest(), kind });
            }
            batch.notes.push(*event);
            return;
        }
        let Some(stream) = slot else {
            self.counts.without_stream += 1;
            if let EventKind::StreamEnd { .. } = event.kind {
                // That of a request that nobody answered.
                batch.notes.push(*event);
            }
            return;
        };
        match event.kind {
            EventKind::SnapshotMarker { start, end, each_once } => {
                stream.window = (start, end);
                stream.is_first = each_once && stream.evaluated == Seqno::default();
                batch.notes.push(*event);
            }
            EventKind::OsoSnapshot { edge } => {
                let from = stream.evaluated;
                stream.pass(edge);
                note_advance(stream, (mark, self.batches), (event.vb, from), batch);
                batch.notes.push(*event);
            }
            EventKind::StreamEnd { .. } => {
                *slot = None;
                batch.notes.push(*event);
            }
            _ => {
                let from = stream.evaluated;
                if !stream.take(event.seqno) {
                    self.counts.out_of_order += 1;
                    return;
                }
                note_advance(stream, (mark, self.batches), (event.vb, from), batch);
                self.take_change(event, with, batch);
            }
        }
    }

    /// Evaluates what moves a stream on.
    fn take_change(&mut self, event: &DcpEvent, with: &With<'_>, batch: &mut WriteBatch) {
        match event.kind {
            EventKind::Mutation { key, datatype, .. } if is_transaction(key.of(with.buffer), datatype) => {
                self.counts.transactions += 1;
            }
            EventKind::Mutation { key, value, xattrs_len, datatype } => {
                let buffer = with.buffer;
                // A binary document has no members: only its key and its attributes can be indexed.
                let document = if datatype.has(Datatype::JSON) {
                    Document::json(value.of(buffer))
                } else {
                    Document::binary()
                };
                let document = document.with_xattrs(Xattrs::of(value.before(xattrs_len).of(buffer)));
                self.evaluate_document(event, key, Some(&document), with, batch);
            }
            EventKind::Deletion { key } | EventKind::Expiration { key } => {
                self.evaluate_document(event, key, None, with, batch);
            }
            EventKind::SystemEvent { .. } => batch.notes.push(*event),
            _ => {}
        }
    }

    fn evaluate_document(
        &mut self,
        event: &DcpEvent,
        key: Span,
        document: Option<&Document<'_>>,
        with: &With<'_>,
        batch: &mut WriteBatch,
    ) {
        self.counts.documents += 1;
        let With { buffer, engines } = *with;
        if engines.engines().is_empty() {
            return;
        }
        let doc_id = batch.add_document(key.of(buffer));
        let id = std::str::from_utf8(key.of(buffer)).ok();
        let plan = engines.plan();
        let read = if let Some(text) = document.and_then(Document::text) {
            plan.read(text, &mut self.extract)
        } else {
            // Every path is missing.
            plan.read_value(&Value::Null, &mut self.extract);
            Ok(())
        };
        for (engine, planned) in engines.planned() {
            self.keys.clear();
            let problem = match (id, document, &read) {
                (_, None, _) => None,
                (None, Some(_), _) => Some("its key is not UTF-8".to_owned()),
                (_, Some(_), Err(error)) => Some(error.to_string()),
                (Some(id), Some(document), Ok(())) => match planned {
                    Some(place) => {
                        plan.keys(place, id, &self.extract, &mut self.keys);
                        None
                    }
                    None => run_evaluator(engine, id, document, &mut self.keys),
                },
            };
            let problem = problem.or_else(|| self.keys.is_left_out().then(too_many_keys));
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
        if self.quarantine.logged_at.is_none_or(|at| at.elapsed() >= self.quarantine_log_interval) {
            warn!(self.logger, "a document was left out of an index: {problem}";
                "document" => id, "instance" => engine.inst.0, "documents" => self.quarantine.unlogged);
            self.quarantine = Quarantine { logged_at: Some(Instant::now()), unlogged: 0 };
        }
    }
}

/// Records of transactions are documents to nobody but the transactions.
fn is_transaction(key: &[u8], datatype: Datatype) -> bool {
    datatype.has(Datatype::XATTR) && !datatype.has(Datatype::JSON) && key.starts_with(TRANSACTION_PREFIX)
}

/// Notes in the batch how far its vbucket has moved, since `from` if this is the first move in the batch.
fn note_advance(
    stream: &Stream,
    (mark, batch_number): (&mut Mark, u64),
    (vb, from): (VbId, Seqno),
    batch: &mut WriteBatch,
) {
    let to = stream.position();
    match batch.advances.get_mut(mark.place) {
        // Where changes are missing between two streams the second advance stays by itself, for the shard to see.
        Some(advance) if mark.batch == batch_number && from <= advance.to.seqno => {
            let restarted = from < advance.to.seqno;
            let window = match stream.promise() {
                // A stream that began again brings documents a second time.
                Window::First if restarted => Window::Ordered,
                promise => promise,
            };
            *advance = Advance { to, window: advance.window.then(window), ..*advance };
        }
        _ => {
            *mark = Mark { batch: batch_number, place: batch.advances.len() };
            batch.advances.push(Advance { vb, from, to, window: stream.promise() });
        }
    }
}

fn too_many_keys() -> String {
    format!(
        "it has more than {DOCUMENT_KEYS_MAX} keys there, or more than {DOCUMENT_KEY_BYTES_MAX} bytes of them"
    )
}

/// Gives back what is wrong, if something is.
fn run_evaluator(engine: &Engine, id: &str, document: &Document<'_>, keys: &mut KeyList) -> Option<String> {
    // What a panicking evaluator leaves in `keys` is cleared by the caller; it shares nothing else with us.
    match catch("evaluator", || engine.evaluator.keys(id, document, keys)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panicked) => Some(format!("its evaluator panicked: {}", panicked.message)),
    }
}
