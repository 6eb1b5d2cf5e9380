//! The source `dcp`: decoding alone, and from a socket to an endpoint that does nothing.
//!
//! `decode/mutation_256` reads frames of 256 bytes from memory, header and message, on one core. `tcp/noop_endpoint`
//! has a node in this process that writes such frames over loopback, as the flow-control window allows, and takes as
//! long as it needs to have given what the workers of a data path make of them for one index to an endpoint that does
//! nothing. `elem/s` are events.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::channel::bounded;
use dormouse::event::{ByteBudget, Generation, VbId};
use dormouse::index::IndexDefinition;
use dormouse::projector::{Endpoint, EndpointRefused, Engine, Feed, KvData, KvDataConfig};
use dormouse::shard::batch::WriteBatch;
use dormouse::shard::{InstId, ShardId};
use dormouse::source::dcp::{
    Connection, DcpOutput, Decoded, FRAME_BYTES_MAX, Frame, Magic, Message, Opcode, StreamRequest,
};
use dormouse::thread::{self, Until};
use dormouse::timestamp::{Position, TsVbuuid};
use slog::{Discard, Logger, o};

#[path = "support/node.rs"]
mod node;

use node::{Document, Node};

const VBUCKETS: u16 = 64;
const FRAME_BYTES: usize = 256;
const KEY: &[u8] = b"\0document-of-some-length";
/// What a round of all vbuckets has, in `tcp`.
const ROUND: u64 = 64;

fn value() -> Vec<u8> {
    let mut value = br#"{"a":7,"b":""#.to_vec();
    value.resize(FRAME_BYTES - 24 - 31 - KEY.len() - 2, b'x');
    [&value[..], b"\"}"].concat()
}

fn decode(c: &mut Criterion) {
    const EVENTS: usize = 4096;
    let value = value();
    let mut bytes = Vec::with_capacity(EVENTS * FRAME_BYTES);
    for _ in 0..EVENTS {
        let (magic, opcode, framing, extras): (_, _, &[u8], &[u8]) =
            (Magic::Request, Opcode::DCP_MUTATION, &[], &[0; 31]);
        let (datatype, vb_or_status, opaque, cas) = (1, 3, 7, 0);
        Frame {
            magic,
            opcode,
            datatype,
            vb_or_status,
            opaque,
            cas,
            framing,
            extras,
            key: KEY,
            value: &value,
        }
        .encode(&mut bytes)
        .unwrap();
    }
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("mutation_256", |b| {
        b.iter(|| {
            let mut rest = black_box(&bytes[..]);
            while let Ok(Decoded::Whole(frame, len)) = Frame::decode(rest, FRAME_BYTES_MAX) {
                black_box(Message::decode(&frame).unwrap());
                rest = &rest[len..];
            }
            assert!(rest.is_empty());
        });
    });
    group.finish();
}

/// Takes everything and keeps nothing but the number of events.
#[derive(Default)]
struct Taker(AtomicU64);

impl Endpoint for Taker {
    fn try_apply(&self, _: ShardId, mut batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        let events: u64 = batch.advances.iter().map(|advance| advance.to.seqno.0 - advance.from.0).sum();
        self.0.fetch_add(events, Ordering::Relaxed);
        batch.clear();
        Ok(batch)
    }
}

struct Path {
    node: Node,
    kvdata: KvData,
    taker: Arc<Taker>,
    connection: Connection,
    events: u64,
}

impl Path {
    fn start() -> Self {
        let node = Node::start(VBUCKETS, Document { key: KEY, value: value(), number: |_, _, _| {} });
        let logger = Logger::root(Discard, o!());
        let feed = Feed::new(&logger);
        let generation = Generation(1);
        let link = feed.begin_generation(generation, &TsVbuuid::default()).unwrap();
        let shape =
            KvDataConfig { number: 0, workers: 2, vbuckets: VBUCKETS, shards: 8, worker_queue_batches: 4 };
        let taker = Arc::new(Taker::default());
        let endpoint: Arc<dyn Endpoint> = Arc::<Taker>::clone(&taker);
        let (upstream, batches) = bounded(4);
        let kvdata = KvData::start(&shape, &endpoint, batches, &link, &logger).unwrap();
        let evaluator = Arc::new(IndexDefinition::parse("by_a=a").unwrap());
        kvdata.add_engines(vec![Engine { inst: InstId(1), evaluator }], &Until::default()).unwrap();
        let output = DcpOutput { generation, batches: upstream, budget: ByteBudget::new(64 << 20) };
        let connection = Connection::open(&node.config(), 0, output, &logger, &Until::default()).unwrap();
        for vb in 0..VBUCKETS {
            connection.request_stream(&StreamRequest::follow(VbId(vb), Position::ZERO)).unwrap();
        }
        Self { node, kvdata, taker, connection, events: 0 }
    }

    fn run(&mut self, rounds: u64) -> Duration {
        self.events += rounds * ROUND * u64::from(VBUCKETS);
        let (_holder, never) = thread::fin();
        let began = Instant::now();
        self.node.allow(rounds * ROUND);
        while self.taker.0.load(Ordering::Relaxed) < self.events {
            let _ = never.wait(&Until::within(Duration::from_micros(100)));
        }
        began.elapsed()
    }
}

fn tcp(c: &mut Criterion) {
    let mut path = Path::start();
    let mut group = c.benchmark_group("tcp");
    group.throughput(Throughput::Elements(ROUND * u64::from(VBUCKETS))).sample_size(10);
    group.bench_function("noop_endpoint", |b| b.iter_custom(|rounds| path.run(rounds)));
    group.finish();
    path.connection.close(&Until::default()).unwrap();
    path.kvdata.close(&Until::default()).unwrap();
}

criterion_group!(benches, decode, tcp);
criterion_main!(benches);
