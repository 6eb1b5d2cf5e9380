//! The scatter path: from batches of events to the workers, without evaluators and without shards.
//!
//! What is measured is the cost of moving events: workers have no engine, so they keep the positions of their
//! vbuckets and read no key and no value, and the endpoint takes write batches and does nothing with them. Batches
//! are made before the clock starts, a chunk at a time, because they cannot be sent twice; dropping them is part
//! of the time. An iteration is one batch, and `elem/s` are events.
//!
//! `kvdata/stuck_endpoint` is about memory: with an endpoint that takes nothing and an evaluator that makes much of
//! little, it prints what the process holds once the source is held up.
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
    ByteBudget, Datatype, DcpEvent, EventBatch, EventKind, Generation, Seqno, Span, StreamStatus, VbId,
    VbUuid,
};
use dormouse::projector::{Endpoint, EndpointRefused, Engine, Feed, KvData, KvDataConfig, Tuning};
use dormouse::shard::batch::WriteBatch;
use dormouse::shard::{InstId, ShardId};
use dormouse::thread::{self, Fin, FinHolder, Thread, Until, fin};
use dormouse::timestamp::{Position, TsVbuuid};
use slog::{Discard, Logger, o};

use prolific::Prolific;

#[path = "../tests/support/prolific.rs"]
mod prolific;

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
                xattrs_len: 0,
                datatype: Datatype::JSON,
            },
        }
    }

    fn next_batch(&mut self) -> EventBatch {
        let events = (0..self.events).map(|index| self.next_event(index)).collect();
        let mut buffer = vec![b'x'; self.events * (KEY_BYTES + VALUE_BYTES)];
        // A string, for those who evaluate.
        for document in buffer.chunks_exact_mut(KEY_BYTES + VALUE_BYTES) {
            document[KEY_BYTES] = b'"';
            document[KEY_BYTES + VALUE_BYTES - 1] = b'"';
        }
        EventBatch { generation: GENERATION, events, buffer, charge: None }
    }
}

/// Takes everything, and tells when as many events came as were waited for. Every vbucket comes at most once in
/// a batch, so that advances are events.
struct Countdown {
    left: AtomicI64,
    done: Sender<()>,
    /// What each call blocks for.
    call_takes: Duration,
    /// A signal that is not given, to block on.
    never: (FinHolder, Fin),
}

impl Endpoint for Countdown {
    fn try_apply(
        &self,
        _shard: ShardId,
        mut batch: Box<WriteBatch>,
    ) -> Result<Box<WriteBatch>, EndpointRefused> {
        let events = i64::try_from(batch.advances.len()).unwrap();
        batch.clear();
        if !self.call_takes.is_zero() {
            let _ = self.never.1.wait(&Until::within(self.call_takes));
        }
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

/// Starts a data path, whose source may send now.
fn start(workers: u16, endpoint: &Arc<dyn Endpoint>) -> (Feed, KvData, Sender<EventBatch>) {
    let (upstream, batches) = bounded(QUEUE_BATCHES);
    let config = KvDataConfig {
        number: 0,
        workers,
        vbuckets: VBUCKETS,
        shards: SHARDS,
        worker_queue_batches: QUEUE_BATCHES,
    };
    let logger = Logger::root(Discard, o!());
    let feed = Feed::new(&logger);
    let link = feed.begin_generation(GENERATION, &TsVbuuid::default()).unwrap();
    let kvdata = KvData::start(&config, endpoint, batches, &link, &logger).unwrap();
    (feed, kvdata, upstream)
}

impl Path {
    fn start(workers: u16) -> Self {
        Self::start_with(workers, Duration::ZERO)
    }

    fn start_with(workers: u16, call_takes: Duration) -> Self {
        let (done_tx, done) = bounded(1);
        let left = AtomicI64::new(0);
        let countdown = Arc::new(Countdown { left, done: done_tx, call_takes, never: fin() });
        let endpoint: Arc<dyn Endpoint> = Arc::clone(&countdown) as _;
        let (feed, kvdata, upstream) = start(workers, &endpoint);
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

    /// Sends for as long as there is a data path. Returns once so many batches have gone through.
    fn load(&self, first_batches: usize) -> Thread<()> {
        let (upstream, fin) = (self.upstream.clone(), self.fin.clone());
        let mut batches = Batches::new(BATCH_EVENTS);
        let thread =
            thread::spawn(
                "bench-load",
                move || {
                    while thread::send(&upstream, batches.next_batch(), &fin).is_ok() {}
                },
            );
        self.expect(first_batches * BATCH_EVENTS);
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
    let endpoints = [("immediate", Duration::ZERO, 16), ("10 ms a call", Duration::from_millis(10), 1)];
    for (name, call_takes, first_batches) in endpoints {
        group.sample_size(10).measurement_time(Duration::from_secs(1));
        let mut times = Vec::new();
        group.bench_function(format!("close_under_load/{name}"), |bencher| {
            bencher.iter_custom(|iters| {
                sample(iters, &mut times, || close_under_load(call_takes, first_batches))
            });
        });
        print_quantiles(name, times);
    }
    group.bench_function("stuck_endpoint", |bencher| {
        bencher.iter_custom(|iters| (0..iters).map(|_| stuck_endpoint()).sum());
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
            let load = path.load(16);
            (path, load)
        });
        let timed = || {
            let began = Instant::now();
            request(path);
            began.elapsed()
        };
        bencher.iter_custom(|iters| sample(iters, &mut latencies, timed));
    });
    group.finish();
    if let Some((path, load)) = loaded {
        path.kvdata.close(&Until::default()).unwrap();
        load.join(&Until::default()).unwrap();
        print_quantiles(name, latencies);
    }
}

fn close_under_load(call_takes: Duration, first_batches: usize) -> Duration {
    let path = Path::start_with(2, call_takes);
    let load = path.load(first_batches);
    let began = Instant::now();
    path.kvdata.close(&Until::default()).unwrap();
    let took = began.elapsed();
    load.join(&Until::default()).unwrap();
    took
}

/// Calls `measure` so often and keeps each of the times that it gives.
fn sample(iters: u64, times: &mut Vec<Duration>, measure: impl Fn() -> Duration) -> Duration {
    let before = times.len();
    times.extend((0..iters).map(|_| measure()));
    times[before..].iter().sum()
}

/// Takes nothing.
struct Stuck(Fin);

impl Endpoint for Stuck {
    fn try_apply(&self, _: ShardId, batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        Err(EndpointRefused::Later { batch, ready: self.0.clone() })
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Sends until the source is held up, and prints what the process holds then. Gives back how long that took.
fn stuck_endpoint() -> Duration {
    const BUDGET_BYTES: usize = 16 * 1024 * 1024;
    const WORKERS: u16 = 2;
    let (_holder, never) = fin();
    let endpoint: Arc<dyn Endpoint> = Arc::new(Stuck(never));
    let before_kib = resident_kib();
    let (_feed, kvdata, upstream) = start(WORKERS, &endpoint);
    let engine = Engine { inst: InstId(1), evaluator: Arc::new(Prolific::new()) };
    kvdata.add_engines(vec![engine], &Until::default()).unwrap();
    let (fin_holder, stopped) = fin();
    let budget = ByteBudget::new(BUDGET_BYTES);
    let charged = budget.clone();
    let began = Instant::now();
    let source = thread::spawn("bench-source", move || {
        let mut batches = Batches::new(BATCH_EVENTS);
        let mut next = begins();
        loop {
            next.charge = charged.charge(next.weight_bytes(), &stopped);
            if next.charge.is_none() || thread::send(&upstream, next, &stopped).is_err() {
                return;
            }
            next = batches.next_batch();
        }
    })
    .unwrap();
    let (_holder, tick) = fin();
    let taken = || (kvdata.stats().events(), kvdata.worker_stats().documents(), budget.used_bytes());
    let mut last = taken();
    loop {
        let _ = tick.wait(&Until::within(Duration::from_millis(100)));
        let now = taken();
        if now == last {
            break;
        }
        last = now;
    }
    let took = began.elapsed();
    println!(
        "stuck endpoint: {} KiB resident more than before; {} KiB of events of {} KiB, {} KiB evaluated of {} KiB",
        resident_kib().saturating_sub(before_kib),
        budget.used_bytes() / 1024,
        BUDGET_BYTES / 1024,
        kvdata.worker_stats().waiting_bytes() / 1024,
        usize::from(WORKERS) * Tuning::default().lane_bytes_max / 1024,
    );
    drop(fin_holder);
    kvdata.close(&Until::default()).unwrap();
    source.join(&Until::default()).unwrap();
    took
}

fn print_quantiles(what: &str, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    // Criterion does not call what is filtered out.
    let Some(last) = latencies.len().checked_sub(1) else { return };
    let at = |percent: usize| latencies[last * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?}, most {:?} of {}", at(50), at(99), at(100), latencies.len());
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
