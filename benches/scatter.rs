//! The scatter path: from batches of events to the workers, without evaluators and without shards.
//!
//! What is measured is the cost of moving events: workers have no engine, so they keep the positions of their
//! vbuckets and read no key and no value, and the endpoint takes write batches and does nothing with them. Batches
//! are made before the clock starts, a chunk at a time, because they cannot be sent twice; dropping them is part
//! of the time. An iteration is one batch, and `elem/s` are events.
//!
//! `baseline/per_event` has the same threads around the same kind of event, with one event a send and a `select!`
//! a hop. It is spared the payload, the shards and the endpoint, so what it gives is an upper bound of that
//! design.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::channel::{Receiver, Sender, bounded, select};
use dormouse::event::{
    Datatype, DcpEvent, EventBatch, EventKind, Generation, Seqno, Span, StreamStatus, VbId, VbUuid,
};
use dormouse::projector::{Endpoint, EndpointRefused, Feed, KvData, KvDataConfig};
use dormouse::shard::ShardId;
use dormouse::shard::batch::WriteBatch;
use dormouse::thread::{self, Fin, FinHolder, Thread, Until, fin};
use dormouse::timestamp::{Position, TsVbuuid};
use slog::{Discard, Logger, o};

const VBUCKETS: u16 = 1024;
const SHARDS: u16 = 8;
const KEY_BYTES: usize = 64;
const VALUE_BYTES: usize = 256;
const BATCH_EVENTS: usize = 512;
/// Events that are made before the clock starts: about 40 MiB.
const CHUNK_EVENTS: usize = 128 * 1024;
const QUEUE_BATCHES: usize = 4;
const GENERATION: Generation = Generation(1);

/// The stream's begin for each vbucket.
fn begins() -> EventBatch {
    let begin = |vb| DcpEvent {
        vb: VbId(vb),
        seqno: Seqno(0),
        kind: EventKind::StreamReq { status: StreamStatus::Success { vbuuid: VbUuid(u64::from(vb)) } },
    };
    EventBatch { generation: GENERATION, events: (0..VBUCKETS).map(begin).collect(), ..EventBatch::default() }
}

/// Makes batches of mutations, each vbucket's in the order of its stream.
struct Batches {
    events: usize,
    made: u64,
}

impl Batches {
    fn new(events: usize) -> Self {
        Self { events, made: 0 }
    }

    fn next_event(&mut self, index: usize) -> DcpEvent {
        let (vb, round) = (self.made % u64::from(VBUCKETS), self.made / u64::from(VBUCKETS));
        self.made += 1;
        let start = index * (KEY_BYTES + VALUE_BYTES);
        DcpEvent {
            vb: VbId(u16::try_from(vb).unwrap()),
            seqno: Seqno(round + 1),
            kind: EventKind::Mutation {
                key: Span::new(start, KEY_BYTES),
                value: Span::new(start + KEY_BYTES, VALUE_BYTES),
                datatype: Datatype::JSON,
            },
        }
    }

    fn next_batch(&mut self) -> EventBatch {
        let events = (0..self.events).map(|index| self.next_event(index)).collect();
        let buffer = vec![b'x'; self.events * (KEY_BYTES + VALUE_BYTES)];
        EventBatch { generation: GENERATION, events, buffer, charge: None }
    }
}

/// Takes everything, and tells when as many events came as were waited for. Every vbucket comes at most once in
/// a batch, so that advances are events.
struct Countdown {
    left: AtomicI64,
    done: Sender<()>,
}

impl Endpoint for Countdown {
    fn try_apply(
        &self,
        _shard: ShardId,
        mut batch: Box<WriteBatch>,
    ) -> Result<Box<WriteBatch>, EndpointRefused> {
        let events = i64::try_from(batch.advances.len()).unwrap();
        batch.clear();
        let before = self.left.fetch_sub(events, Ordering::AcqRel);
        if (1..=events).contains(&before) {
            let _ = self.done.try_send(());
        }
        Ok(batch)
    }
}

/// A data path whose streams have begun.
struct Path {
    kvdata: KvData,
    upstream: Sender<EventBatch>,
    countdown: Arc<Countdown>,
    done: Receiver<()>,
    _feed: Feed,
    _fin_holder: FinHolder,
    fin: Fin,
}

impl Path {
    fn start(workers: u16) -> Self {
        let (done_tx, done) = bounded(1);
        let countdown = Arc::new(Countdown { left: AtomicI64::new(0), done: done_tx });
        let endpoint: Arc<dyn Endpoint> = Arc::clone(&countdown) as _;
        let (upstream, batches) = bounded(QUEUE_BATCHES);
        let config = KvDataConfig {
            node: 0,
            workers,
            vbuckets: VBUCKETS,
            shards: SHARDS,
            worker_queue_batches: QUEUE_BATCHES,
        };
        let logger = Logger::root(Discard, o!());
        let feed = Feed::new(&logger);
        let link = feed.begin_generation(GENERATION, &TsVbuuid::default()).unwrap();
        let kvdata = KvData::start(&config, &endpoint, batches, &link, &logger).unwrap();
        let (fin_holder, fin) = fin();
        let path = Self { kvdata, upstream, countdown, done, _feed: feed, _fin_holder: fin_holder, fin };
        path.send(begins());
        path
    }

    fn send(&self, batch: EventBatch) {
        assert!(thread::send(&self.upstream, batch, &self.fin).is_ok(), "the data path is open");
    }

    fn expect(&self, events: usize) {
        self.countdown.left.store(i64::try_from(events).unwrap(), Ordering::Release);
    }

    fn wait(&self) {
        thread::recv(&self.done, &Until::within(Duration::from_secs(60))).unwrap();
    }

    /// The time from the first send to the last event's arrival.
    fn time(&self, chunk: Vec<EventBatch>) -> Duration {
        self.expect(chunk.iter().map(|batch| batch.events.len()).sum());
        let began = Instant::now();
        for batch in chunk {
            self.send(batch);
        }
        self.wait();
        began.elapsed()
    }

    /// Sends for as long as there is a data path.
    fn load(&self) -> Thread<()> {
        let (upstream, fin) = (self.upstream.clone(), self.fin.clone());
        let mut batches = Batches::new(BATCH_EVENTS);
        let thread =
            thread::spawn(
                "bench-load",
                move || {
                    while thread::send(&upstream, batches.next_batch(), &fin).is_ok() {}
                },
            );
        self.expect(16 * BATCH_EVENTS);
        self.wait();
        thread.unwrap()
    }
}

/// Runs `iters` batches in chunks and adds up the time of `run`, without the time to make them.
fn in_chunks<T>(
    iters: u64,
    chunk_batches: usize,
    mut make: impl FnMut() -> T,
    run: impl Fn(Vec<T>) -> Duration,
) -> Duration {
    let mut left = usize::try_from(iters).unwrap();
    let mut total = Duration::ZERO;
    while left > 0 {
        let chunk: Vec<T> = (0..left.min(chunk_batches)).map(|_| make()).collect();
        left -= chunk.len();
        total += run(chunk);
    }
    total
}

fn bench_scatter(criterion: &mut Criterion, name: &str, workers: u16, events: usize) {
    let mut group = criterion.benchmark_group("scatter");
    group.throughput(Throughput::Elements(events as u64));
    // Criterion calls the closure for each sample, and does not call it when the name is filtered out.
    let (mut path, mut batches) = (None, Batches::new(events));
    group.bench_function(name, |bencher| {
        let path = path.get_or_insert_with(|| Path::start(workers));
        bencher.iter_custom(|iters| {
            in_chunks(iters, CHUNK_EVENTS / events, || batches.next_batch(), |chunk| path.time(chunk))
        });
    });
    group.finish();
    if let Some(path) = path {
        path.kvdata.close(&Until::default()).unwrap();
    }
}

fn scatter(criterion: &mut Criterion) {
    bench_scatter(criterion, "1 workers", 1, BATCH_EVENTS);
    bench_scatter(criterion, "2 workers", 2, BATCH_EVENTS);
    bench_scatter(criterion, "8 workers", 8, BATCH_EVENTS);
    bench_scatter(criterion, "one_event_batches", 2, 1);
}

/// A source, a scatter thread and workers that pass single events on.
struct PerEvent {
    upstream: Sender<DcpEvent>,
    left: Arc<AtomicI64>,
    done: Receiver<()>,
    threads: Vec<Thread<()>>,
    fin_holder: FinHolder,
    fin: Fin,
}

impl PerEvent {
    fn start(workers: usize) -> Self {
        let (fin_holder, fin) = fin();
        let (done_tx, done) = bounded(1);
        let left = Arc::new(AtomicI64::new(0));
        let mut threads = Vec::new();
        let mut senders = Vec::new();
        for worker in 0..workers {
            let (sender, events) = bounded(QUEUE_BATCHES * BATCH_EVENTS);
            let (left, done, fin) = (Arc::clone(&left), done_tx.clone(), fin.clone());
            let work = move || per_event_worker(&events, &left, &done, &fin);
            threads.push(thread::spawn(format!("bench-work-{worker}"), work).unwrap());
            senders.push(sender);
        }
        let (upstream, events) = bounded(QUEUE_BATCHES * BATCH_EVENTS);
        let scatter_fin = fin.clone();
        let scatter = move || per_event_scatter(&events, &senders, &scatter_fin);
        threads.push(thread::spawn("bench-scatter", scatter).unwrap());
        Self { upstream, left, done, threads, fin_holder, fin }
    }

    fn time(&self, chunk: &[DcpEvent]) -> Duration {
        self.left.store(i64::try_from(chunk.len()).unwrap(), Ordering::Release);
        let began = Instant::now();
        for event in chunk {
            select! {
                send(self.upstream, *event) -> sent => sent.unwrap(),
                recv(self.fin.receiver()) -> _ => unreachable!("nobody gives it"),
            }
        }
        thread::recv(&self.done, &Until::within(Duration::from_secs(60))).unwrap();
        began.elapsed()
    }

    fn close(self) {
        drop(self.fin_holder);
        assert!(thread::join_all(self.threads, &Until::default()).is_empty());
    }
}

fn per_event_scatter(events: &Receiver<DcpEvent>, workers: &[Sender<DcpEvent>], fin: &Fin) {
    loop {
        let event = select! {
            recv(fin.receiver()) -> _ => return,
            recv(events) -> event => event.unwrap(),
        };
        let worker = usize::from(ShardId::of_vb(event.vb, SHARDS).0) % workers.len();
        select! {
            recv(fin.receiver()) -> _ => return,
            send(workers[worker], event) -> sent => sent.unwrap(),
        }
    }
}

/// Keeps the positions of its vbuckets, as the workers of a data path do for a batch without engines.
fn per_event_worker(events: &Receiver<DcpEvent>, left: &AtomicI64, done: &Sender<()>, fin: &Fin) {
    let mut positions = vec![Position::default(); usize::from(VBUCKETS)];
    loop {
        let event = select! {
            recv(fin.receiver()) -> _ => break,
            // The scattering thread may have seen the end first.
            recv(events) -> event => match event {
                Ok(event) => event,
                Err(_) => break,
            },
        };
        positions[usize::from(event.vb.0)] = Position::at(VbUuid(u64::from(event.vb.0)), event.seqno);
        if left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = done.try_send(());
        }
    }
    black_box(positions);
}

fn baseline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("baseline");
    group.throughput(Throughput::Elements(BATCH_EVENTS as u64));
    for workers in [1, 2, 8] {
        let (mut path, mut batches) = (None, Batches::new(BATCH_EVENTS));
        group.bench_function(format!("per_event/{workers} workers"), |bencher| {
            let path = path.get_or_insert_with(|| PerEvent::start(workers));
            bencher.iter_custom(|iters| {
                let chunk_batches = CHUNK_EVENTS / BATCH_EVENTS;
                let make = || batches.next_batch().events;
                in_chunks(iters, chunk_batches, make, |chunk| path.time(&chunk.concat()))
            });
        });
        if let Some(path) = path {
            path.close();
        }
    }
    group.finish();
}

fn kvdata(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kvdata");
    group.bench_function("close_under_load", |bencher| {
        bencher.iter_custom(|iters| (0..iters).map(|_| close_under_load()).sum());
    });
    group.finish();
    let ts: TsVbuuid = (0..VBUCKETS).map(|vb| (VbId(vb), Position::at(VbUuid(1), Seqno(1)))).collect();
    bench_request(criterion, "add_engines", |path| {
        drop(path.kvdata.add_engines(Vec::new(), &Until::default()).unwrap());
    });
    bench_request(criterion, "update_ts", |path| {
        path.kvdata.update_ts(ts.clone(), &Until::default()).unwrap();
    });
}

/// Makes requests one after another while batches come as quickly as they are taken.
fn bench_request(criterion: &mut Criterion, name: &str, request: impl Fn(&Path)) {
    let mut group = criterion.benchmark_group("kvdata/request_latency_under_load");
    let (mut loaded, mut latencies) = (None, Vec::new());
    group.bench_function(name, |bencher| {
        let (path, _) = loaded.get_or_insert_with(|| {
            let path = Path::start(2);
            let load = path.load();
            (path, load)
        });
        bencher.iter_custom(|iters| sample(iters, &mut latencies, || request(path)));
    });
    group.finish();
    if let Some((path, load)) = loaded {
        path.kvdata.close(&Until::default()).unwrap();
        load.join(&Until::default()).unwrap();
        print_quantiles(name, latencies);
    }
}

fn close_under_load() -> Duration {
    let path = Path::start(2);
    let load = path.load();
    let began = Instant::now();
    path.kvdata.close(&Until::default()).unwrap();
    let took = began.elapsed();
    load.join(&Until::default()).unwrap();
    took
}

/// Makes `iters` requests one after another and keeps how long each took.
fn sample(iters: u64, latencies: &mut Vec<Duration>, request: impl Fn()) -> Duration {
    let before = latencies.len();
    for _ in 0..iters {
        let began = Instant::now();
        request();
        latencies.push(began.elapsed());
    }
    latencies[before..].iter().sum()
}

fn print_quantiles(request: &str, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    println!("{request}: p50 {:?}, p99 {:?} of {} requests", at(50), at(99), latencies.len());
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = scatter, baseline, kvdata
}
criterion_main!(benches);
