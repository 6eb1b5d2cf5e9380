//! A data path with an endpoint that records, and that does what real ones do on their bad days.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crossbeam::channel::{Sender, bounded};
use dormouse::event::{
    Datatype, DcpEvent, EventBatch, EventKind, Generation, Seqno, Span, StreamEndReason, StreamStatus, VbId,
    VbUuid,
};
use dormouse::index::IndexDefinition;
use dormouse::projector::{
    Endpoint, EndpointRefused, Engine, Evaluator, Feed, FeedLink, KvData, KvDataConfig,
};
use dormouse::shard::batch::WriteBatch;
use dormouse::shard::{InstId, ShardId};
use dormouse::thread::{Fin, FinHolder, fin};
use dormouse::timestamp::TsVbuuid;
use parking_lot::Mutex;
use slog::{Discard, Logger, o};

use super::{push, watchdog};

pub(crate) const VBUCKETS: u16 = 8;
pub(crate) const SHARDS: u16 = 4;

/// A change that was applied: its instance, vbucket and seqno, the document and how many keys it has.
pub(crate) type Applied = (InstId, VbId, Seqno, String, usize);

#[derive(Default)]
struct Recorded {
    changes: Vec<Applied>,
    notes: Vec<DcpEvent>,
    reached: BTreeMap<VbId, Seqno>,
    locked: BTreeMap<ShardId, (FinHolder, Fin)>,
    fails: Option<Failure>,
    heaviest_bytes: usize,
}

#[derive(Clone, Copy)]
pub(crate) enum Failure {
    Refuses,
    Panics,
}

/// Records what is applied. A batch that does not continue its vbuckets, or holds a change out of order, is
/// refused for good.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Recorded>);

impl Recorder {
    pub(crate) fn lock(&self, shard: u16) {
        self.0.lock().locked.insert(ShardId(shard), fin());
    }

    pub(crate) fn unlock(&self, shard: u16) {
        self.0.lock().locked.remove(&ShardId(shard));
    }

    /// From now on every batch meets this.
    pub(crate) fn fail(&self, failure: Failure) {
        self.0.lock().fails = Some(failure);
    }

    /// What the heaviest batch that came weighs.
    pub(crate) fn heaviest_bytes(&self) -> usize {
        self.0.lock().heaviest_bytes
    }

    /// How far a vbucket was applied.
    pub(crate) fn reached(&self, vb: u16) -> u64 {
        self.0.lock().reached.get(&VbId(vb)).map_or(0, |seqno| seqno.0)
    }

    /// What happened to the streams themselves, in its order.
    pub(crate) fn notes(&self) -> Vec<DcpEvent> {
        self.0.lock().notes.clone()
    }

    /// All changes, in the order in which they were applied.
    pub(crate) fn changes(&self) -> Vec<Applied> {
        self.0.lock().changes.clone()
    }
}

impl Endpoint for Recorder {
    fn try_apply(
        &self,
        shard: ShardId,
        mut batch: Box<WriteBatch>,
    ) -> Result<Box<WriteBatch>, EndpointRefused> {
        let mut recorded = self.0.lock();
        recorded.heaviest_bytes = recorded.heaviest_bytes.max(batch.weight_bytes());
        match recorded.fails {
            Some(Failure::Refuses) => {
                return Err(EndpointRefused::Never(anyhow::anyhow!("the disk is gone")));
            }
            Some(Failure::Panics) => panic!("the endpoint's own defect"),
            None => {}
        }
        if let Some((_, unlocked)) = recorded.locked.get(&shard) {
            let ready = unlocked.clone();
            return Err(EndpointRefused::Later { batch, ready });
        }
        let mut moved = BTreeSet::new();
        for advance in &batch.advances {
            let stored = recorded.reached.insert(advance.vb, advance.to.seqno).unwrap_or_default();
            let is_ours = ShardId::of_vb(advance.vb, SHARDS) == shard;
            if !is_ours || stored != advance.from || !moved.insert(advance.vb) {
                return Err(EndpointRefused::Never(anyhow::anyhow!("out of order: {advance:?}")));
            }
        }
        for change in batch.changes() {
            let id = String::from_utf8(change.doc_id.to_vec()).unwrap();
            recorded.changes.push((change.inst, change.vb, change.seqno, id, change.keys().len()));
        }
        recorded.notes.append(&mut batch.notes);
        batch.clear();
        Ok(batch)
    }
}

/// Events of one generation.
pub(crate) struct Events(EventBatch);

impl Events {
    pub(crate) fn of(generation: u64) -> Self {
        Self(EventBatch { generation: Generation(generation), ..EventBatch::default() })
    }

    pub(crate) fn event(mut self, vb: u16, seqno: u64, kind: EventKind) -> Self {
        self.0.events.push(DcpEvent { vb: VbId(vb), seqno: Seqno(seqno), kind });
        self
    }

    fn text(&mut self, text: &str) -> Span {
        let start = self.0.buffer.len();
        self.0.buffer.extend_from_slice(text.as_bytes());
        Span::since(start, &self.0.buffer)
    }

    pub(crate) fn begin(self, vb: u16) -> Self {
        self.event(vb, 0, EventKind::StreamReq { status: StreamStatus::Success { vbuuid: VbUuid(1) } }).event(
            vb,
            0,
            EventKind::SnapshotMarker { start: Seqno(0), end: Seqno::OPEN_END, each_once: false },
        )
    }

    pub(crate) fn end(self, vb: u16, seqno: u64) -> Self {
        self.event(vb, seqno, EventKind::StreamEnd { reason: StreamEndReason::Finished })
    }

    pub(crate) fn put(self, vb: u16, seqno: u64, id: &str, document: &str) -> Self {
        self.put_as(Datatype::JSON, vb, seqno, id, document)
    }

    pub(crate) fn put_as(mut self, datatype: Datatype, vb: u16, seqno: u64, id: &str, value: &str) -> Self {
        let (key, value) = (self.text(id), self.text(value));
        self.event(vb, seqno, EventKind::Mutation { key, value, xattrs_len: 0, datatype })
    }

    pub(crate) fn delete(mut self, vb: u16, seqno: u64, id: &str) -> Self {
        let key = self.text(id);
        self.event(vb, seqno, EventKind::Deletion { key })
    }

    pub(crate) fn build(self) -> EventBatch {
        self.0
    }
}

/// A running data path. Each has a node number of its own, which its threads' names show.
pub(crate) struct Path {
    pub(crate) node: u16,
    pub(crate) generation: u64,
    pub(crate) feed: Feed,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) kvdata: KvData,
    pub(crate) upstream: Option<Sender<EventBatch>>,
}

impl Path {
    pub(crate) fn start(node: u16) -> Self {
        let logger = Logger::root(Discard, o!());
        let (feed, generation) = (Feed::new(&logger), 3);
        let link: FeedLink = feed.begin_generation(Generation(generation), &TsVbuuid::default()).unwrap();
        let recorder = Arc::new(Recorder::default());
        let endpoint: Arc<dyn Endpoint> = Arc::<Recorder>::clone(&recorder);
        let (upstream, batches) = bounded(2);
        let config = KvDataConfig {
            number: node,
            workers: 2,
            vbuckets: VBUCKETS,
            shards: SHARDS,
            worker_queue_batches: 2,
        };
        let kvdata = KvData::start(&config, &endpoint, batches, &link, &logger).unwrap();
        Self { node, generation, feed, recorder, kvdata, upstream: Some(upstream) }
    }

    /// Like `start`, with the instance 1 on the member `a`, and all streams begun.
    pub(crate) fn begun(node: u16) -> Self {
        let path = Self::start(node);
        path.kvdata.add_engines(vec![engine(1)], &watchdog()).unwrap();
        path.send((0..VBUCKETS).fold(path.events(), Events::begin));
        path
    }

    pub(crate) fn events(&self) -> Events {
        Events::of(self.generation)
    }

    pub(crate) fn send(&self, events: Events) {
        push(self.upstream.as_ref().unwrap(), events.build());
    }

    /// The threads of this path that the system knows.
    pub(crate) fn threads(&self) -> Vec<String> {
        let (ours, of_workers) = (format!("-{}", self.node), format!("-{}-", self.node));
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names
            .map(|name| name.trim().to_owned())
            .filter(|name| {
                let is_path = name.starts_with("kv-") && name.ends_with(&ours);
                is_path || (name.starts_with("vb") && name.contains(&of_workers))
            })
            .collect()
    }
}

/// An instance over the member `a`.
pub(crate) fn engine(inst: u32) -> Engine {
    engine_of(inst, IndexDefinition::parse("by_a=a").unwrap())
}

pub(crate) fn engine_of(inst: u32, evaluator: impl Evaluator + 'static) -> Engine {
    Engine { inst: InstId(inst), evaluator: Arc::new(evaluator) }
}
