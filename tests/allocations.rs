//! What events cost the heap on their way from a source to the workers, and scans of everything. It is a binary of its
//! own, and its tests wait for each other, because what is counted is everything that its process allocates.

#![expect(clippy::unwrap_used, reason = "in a test's helpers a panic is the failure")]

use std::alloc::System;
use std::io::Cursor;
use std::sync::Arc;

use crossbeam::channel::{Sender, bounded};
use dormouse::bucket::{BucketConfig, BucketSpec, DataDir, IngestOptions};
use dormouse::event::{
    Datatype, DcpEvent, EventBatch, EventKind, Generation, Seqno, Span, StreamStatus, VbId, VbUuid,
};
use dormouse::index::{IndexDefinition, ScanQuery};
use dormouse::projector::{Endpoint, EndpointRefused, Engine, Feed, KvData, KvDataConfig};
use dormouse::shard::batch::WriteBatch;
use dormouse::shard::{InstId, ShardId, ShardSetConfig, StoreKind};
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::{self, Until, fin};
use dormouse::timestamp::TsVbuuid;
use parking_lot::Mutex;
use slog::{Discard, Logger, o};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Held by the test that runs.
static TURN: Mutex<()> = Mutex::new(());

const VBUCKETS: u16 = 64;
const GENERATION: Generation = Generation(1);

const DOCUMENT: &str = r#"{"name":"Sea View","country":"France","city":"Nantes","tags":["spa","pool","bar"],"stars":4,
    "price":99.5,"geo":{"lat":47.2,"lon":-1.55},"open":true,"note":null}"#;

/// Takes everything and keeps nothing.
struct Taker;

impl Endpoint for Taker {
    fn try_apply(&self, _: ShardId, mut batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        batch.clear();
        Ok(batch)
    }
}

/// Makes documents, each vbucket's in the order of its stream.
fn batch(events: u64, made: &mut u64) -> EventBatch {
    let event = |_| {
        let (vb, seqno) = (*made % u64::from(VBUCKETS), *made / u64::from(VBUCKETS) + 1);
        *made += 1;
        let (key, value) = (Span::new(0, 1), Span::new(1, DOCUMENT.len()));
        DcpEvent {
            vb: VbId(u16::try_from(vb).unwrap()),
            seqno: Seqno(seqno),
            kind: EventKind::Mutation { key, value, xattrs_len: 0, datatype: Datatype::JSON },
        }
    };
    let events = (0..events).map(event).collect();
    EventBatch { generation: GENERATION, events, buffer: format!("k{DOCUMENT}").into_bytes(), charge: None }
}

fn send(upstream: &Sender<EventBatch>, batch: EventBatch) {
    let (_holder, never) = fin();
    assert!(thread::send(upstream, batch, &never).is_ok(), "the data path ended");
}

/// Sends them and waits until the workers have evaluated everything that was ever sent.
fn follow(kvdata: &KvData, upstream: &Sender<EventBatch>, batches: Vec<EventBatch>, made: u64) {
    for batch in batches {
        send(upstream, batch);
    }
    let limit = Until::within(std::time::Duration::from_secs(60));
    while kvdata.worker_stats().documents() < made {
        assert!(limit.check().is_ok(), "the events did not come");
        std::thread::yield_now();
    }
}

/// The most allocations for one of `count` batches of `events` each, growing of buffers among them.
fn allocations(events: u64, count: u64, engines: Vec<Engine>) -> u64 {
    let (upstream, batches) = bounded(4);
    let logger = Logger::root(Discard, o!());
    let feed = Feed::new(&logger);
    let link = feed.begin_generation(GENERATION, &TsVbuuid::default()).unwrap();
    let config =
        KvDataConfig { number: 0, workers: 2, vbuckets: VBUCKETS, shards: 8, worker_queue_batches: 4 };
    let endpoint: Arc<dyn Endpoint> = Arc::new(Taker);
    let kvdata = KvData::start(&config, &endpoint, batches, &link, &logger).unwrap();
    kvdata.add_engines(engines, &Until::default()).unwrap();
    let kind = EventKind::StreamReq { status: StreamStatus::Success { vbuuid: VbUuid(1) } };
    let begins = (0..VBUCKETS).map(|vb| DcpEvent { vb: VbId(vb), seqno: Seqno(0), kind }).collect();
    send(&upstream, EventBatch { generation: GENERATION, events: begins, ..EventBatch::default() });
    let mut sent = 0;
    let mut make = |count: u64| -> Vec<EventBatch> { (0..count).map(|_| batch(events, &mut sent)).collect() };
    // What is made once and used again is there afterwards.
    let (first, counted) = (make(16), make(count));
    follow(&kvdata, &upstream, first, 16 * events);
    let region = Region::new(COUNTED);
    follow(&kvdata, &upstream, counted, sent);
    let change = region.change();
    kvdata.close(&Until::default()).unwrap();
    ((change.allocations + change.reallocations) as u64).div_ceil(count)
}

#[test]
fn a_batch_costs_a_few_allocations_however_many_events_and_entries_it_has() {
    const COUNT: u64 = 200;
    // For a batch: its shares and their list, the counter that holds it, the lists of write batches, and those of
    // the channels that each send and each wait looks at.
    const MOST: u64 = 24;
    let _turn = TURN.lock();
    for events in [64, 512, 4096] {
        let each = allocations(events, COUNT, Vec::new());
        assert!(each <= MOST, "{each} allocations for a batch of {events} events");
    }
    // Six entries of each document, whose buffers are there already.
    let definitions = ["a=country,city", "b=tags[],price", "c=name", "d=geo.lat,geo.lon,missing"];
    let engines = definitions.iter().zip(0..).map(|(text, inst)| Engine {
        inst: InstId(inst),
        evaluator: Arc::new(IndexDefinition::parse(text).unwrap()),
    });
    let engines: Vec<Engine> = engines.collect();
    for events in [512, 4096] {
        let each = allocations(events, COUNT, engines.clone());
        assert!(each <= MOST, "{each} allocations for a batch of {events} events in four indexes");
    }
}

/// The most bytes that are held at any time by a scan of all entries of so many documents.
fn held_by_a_scan(store: StoreKind, documents: u32) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(&dir.path().join("data")).unwrap();
    let shards = ShardSetConfig { cache_bytes: 1 << 20, ..ShardSetConfig::default() };
    let config = BucketConfig { shards, ..BucketConfig::default() };
    let spec = BucketSpec { vbuckets: 16, store, ..BucketSpec::default() };
    let bucket = data.create_bucket(&"b".parse().unwrap(), spec, &config).unwrap();
    let index = IndexDefinition::parse("by_name=name").unwrap();
    bucket.ensure_index(&index, false).unwrap();
    let line = |n: u32| format!("{{\"id\":\"d{n}\",\"name\":\"{:>0100}\"}}\n", n.wrapping_mul(0x9e37_79b9));
    let lines: String = (0..documents).map(line).collect();
    let input = Input::Reader { name: "lines".to_owned(), reader: Box::new(Cursor::new(lines.into_bytes())) };
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: false };
    bucket.ingest(vec![input], &options, &Until::default(), &mut |_| {}).unwrap();
    bucket.close(&Until::default()).unwrap();
    drop(bucket);
    let bucket = data.open_bucket(&"b".parse().unwrap(), &config).unwrap();
    let region = Region::new(COUNTED);
    let mut most = 0;
    let scan = bucket.query(index.name(), &ScanQuery::default(), &Until::default()).unwrap();
    let count = scan
        .inspect(|entry| {
            assert!(entry.is_ok());
            let change = region.change();
            most = most.max(change.bytes_allocated.saturating_sub(change.bytes_deallocated));
        })
        .count();
    assert_eq!(count, documents as usize);
    bucket.close(&Until::default()).unwrap();
    most
}

#[test]
fn a_scan_of_everything_holds_no_more_of_a_large_index_than_of_a_small_one() {
    let _turn = TURN.lock();
    for store in [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow] {
        let (small, large) = (held_by_a_scan(store, 20_000), held_by_a_scan(store, 100_000));
        // The block cache of the first, and what is read ahead of each shard.
        let bound = 4 << 20;
        assert!(small < bound && large < bound, "{store}: {small} and {large} bytes");
    }
}

#[test]
fn scans_that_waited_in_vain_on_an_idle_bucket_leave_nothing() {
    let _turn = TURN.lock();
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(&dir.path().join("data")).unwrap();
    let spec = BucketSpec { vbuckets: 16, ..BucketSpec::default() };
    let bucket = data.create_bucket(&"b".parse().unwrap(), spec, &BucketConfig::default()).unwrap();
    let index = IndexDefinition::parse("by_name=name").unwrap();
    bucket.ensure_index(&index, false).unwrap();
    let query = ScanQuery { at_least: vec![(VbId(0), Seqno(1))], ..ScanQuery::default() };
    let wait = |_| {
        let soon = Until::within(std::time::Duration::ZERO);
        assert!(bucket.query(index.name(), &query, &soon).is_err());
    };
    (0..100).for_each(wait);
    let region = Region::new(COUNTED);
    (0..1000).for_each(wait);
    let change = region.change();
    let left = change.bytes_allocated.saturating_sub(change.bytes_deallocated);
    assert!(left < 32 << 10, "{left} bytes were left");
    bucket.close(&Until::default()).unwrap();
}
