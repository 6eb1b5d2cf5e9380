//! What a data path does with single batches and requests, seen from its feed and its endpoint.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use dormouse::event::{
    Datatype, DcpEvent, EventBatch, EventKind, Generation, Seqno, Span, StreamEndReason, StreamStatus, VbId,
    VbUuid,
};
use dormouse::index::{Document, KeyList};
use dormouse::projector::{
    EndReason, Endpoint, EndpointRefused, Engine, Evaluator, Feed, Keyspace, KvData, KvDataConfig,
    RequestError, StreamCounts, Tuning,
};
use dormouse::shard::batch::WriteBatch;
use dormouse::shard::{InstId, ShardId};
use dormouse::thread::{self, Cancel, Fin, FinHolder, Until, fin};
use dormouse::timestamp::TsVbuuid;
use slog::Logger;

use crate::support::forever;
use crate::support::path::{CancelOnDrop, Switch, TestEndpoint, TestEvaluator, tasks, wait_for, watched};

const VB: VbId = VbId(0);

fn keyspace() -> Keyspace {
    Keyspace("travel".to_owned())
}

/// A data path with one worker for one shard, and its upstream.
fn started(
    endpoint: &Arc<TestEndpoint>,
    engines: Vec<Engine>,
    logger: &Logger,
) -> (Feed, Sender<EventBatch>) {
    let endpoint = Arc::clone(endpoint) as Arc<dyn Endpoint>;
    started_with(1, &endpoint, engines, logger)
}

fn started_with(
    shards: u16,
    endpoint: &Arc<dyn Endpoint>,
    engines: Vec<Engine>,
    logger: &Logger,
) -> (Feed, Sender<EventBatch>) {
    let (sender, upstream) = bounded(8);
    let mut feed = Feed::new(logger);
    let config = KvDataConfig { number: 60_001, workers: 1, vbuckets: 4, shards, worker_queue_batches: 2 };
    let requested = TsVbuuid::default();
    feed.start(&keyspace(), Generation(1), &config, endpoint, upstream, engines, &requested, &forever())
        .unwrap();
    (feed, sender)
}

fn even(times: u64) -> StreamCounts {
    StreamCounts { begins: times, ends: times, stray_ends: 0 }
}

fn quiet() -> Logger {
    Logger::root(slog::Discard, slog::o!())
}

fn kvdata(feed: &Feed) -> &KvData {
    feed.kvdata(&keyspace()).unwrap()
}

fn engine(inst: u32) -> Engine {
    Engine { inst: InstId(inst), evaluator: Arc::<TestEvaluator>::default() }
}

const BEGIN: EventKind = EventKind::StreamReq { status: StreamStatus::Success { vbuuid: VbUuid(7) } };
const END: EventKind = EventKind::StreamEnd { reason: StreamEndReason::StateChanged };
const ADVANCED: EventKind = EventKind::SeqnoAdvanced;

fn document() -> EventKind {
    EventKind::Mutation {
        key: Span::new(0, 1),
        value: Span::new(1, 2),
        xattrs_len: 0,
        datatype: Datatype::JSON,
    }
}

fn batch(events: &[(u64, EventKind)]) -> EventBatch {
    let events = events.iter().map(|(seqno, kind)| DcpEvent { vb: VB, seqno: Seqno(*seqno), kind: *kind });
    EventBatch { generation: Generation(1), events: events.collect(), buffer: b"k{}".to_vec(), charge: None }
}

#[test]
fn a_stream_that_ends_and_begins_again_in_one_batch_is_owed_its_second_end() {
    watched("restart", || {
        let (feed, upstream) = started(&Arc::default(), Vec::new(), &quiet());
        upstream.try_send(batch(&[(0, BEGIN)])).unwrap();
        upstream.try_send(batch(&[(1, ADVANCED), (1, END), (1, BEGIN), (2, ADVANCED)])).unwrap();
        let begins = || feed.books(&keyspace()).unwrap().counts.get(&VB).map(|counts| counts.begins);
        wait_for(|| begins() == Some(2));
        kvdata(&feed).close(&forever()).unwrap();
        let books = feed.books(&keyspace()).unwrap();
        assert_eq!(books.counts[&VB], even(2));
        assert_eq!(books.ended[&VB], StreamEndReason::DataPathEnded);
    });
}

#[test]
fn a_stream_that_begins_again_without_an_end_is_superseded() {
    watched("superseded", || {
        let (feed, upstream) = started(&Arc::default(), Vec::new(), &quiet());
        upstream.try_send(batch(&[(0, BEGIN), (0, BEGIN), (0, END)])).unwrap();
        let ends = || feed.books(&keyspace()).unwrap().counts.get(&VB).map(|counts| counts.ends);
        wait_for(|| ends() == Some(2));
        kvdata(&feed).close(&forever()).unwrap();
        assert_eq!(feed.books(&keyspace()).unwrap().counts[&VB], even(2));
    });
}

#[test]
fn a_write_batch_moves_a_vbucket_once_also_across_a_restart_of_its_stream() {
    watched("one advance", || {
        let endpoint = Arc::<TestEndpoint>::default();
        let (feed, upstream) = started(&endpoint, vec![engine(0)], &quiet());
        upstream
            .try_send(batch(&[(0, BEGIN), (5, document()), (5, END), (5, BEGIN), (9, document())]))
            .unwrap();
        wait_for(|| endpoint.seen.lock().changes.len() == 1);
        kvdata(&feed).close(&forever()).unwrap();
        assert_eq!(endpoint.seen.lock().faults, Vec::<String>::new());
    });
}

#[test]
fn of_two_engines_of_an_instance_in_one_request_the_last_one_stays() {
    watched("two engines", || {
        let endpoint = Arc::<TestEndpoint>::default();
        let (feed, upstream) = started(&endpoint, vec![engine(0), engine(0)], &quiet());
        upstream.try_send(batch(&[(0, BEGIN), (1, document())])).unwrap();
        wait_for(|| !endpoint.seen.lock().changes.is_empty());
        kvdata(&feed).close(&forever()).unwrap();
        assert_eq!(endpoint.seen.lock().changes[&(InstId(0), VB)], [Seqno(1)]);
    });
}

#[test]
fn data_goes_on_when_no_batch_may_wait() {
    watched("no lane", || {
        let endpoint = Arc::<TestEndpoint>::default();
        let (feed, upstream) = started(&endpoint, vec![engine(0)], &quiet());
        let tuning = Tuning { lane_batches_max: 0, ..Tuning::default() };
        kvdata(&feed).reset_config(tuning, &forever()).unwrap();
        upstream.try_send(batch(&[(0, BEGIN), (1, document())])).unwrap();
        wait_for(|| !endpoint.seen.lock().changes.is_empty());
        kvdata(&feed).close(&forever()).unwrap();
    });
}

/// Holds up the control thread that drops it until it is let go.
struct SlowDrop(Fin);

impl Evaluator for SlowDrop {
    fn keys(&self, _: &str, _: &Document<'_>, _: &mut KeyList) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Drop for SlowDrop {
    fn drop(&mut self) {
        let _ = self.0.wait(&Until::within(Duration::from_secs(1)));
    }
}

/// A data path whose data thread hangs in its endpoint, so that changes stay under way.
fn hanging(endpoint: &Arc<TestEndpoint>, gate: &Cancel) -> (Feed, Sender<EventBatch>) {
    hanging_with(endpoint, gate, &quiet())
}

fn hanging_with(endpoint: &Arc<TestEndpoint>, gate: &Cancel, logger: &Logger) -> (Feed, Sender<EventBatch>) {
    let (feed, upstream) = started(endpoint, vec![engine(0)], logger);
    endpoint.switched.set(Switch::Hangs(gate.clone()));
    upstream.try_send(batch(&[(0, BEGIN), (1, document())])).unwrap();
    wait_for(|| endpoint.switched.hanging() > 0);
    (feed, upstream)
}

#[test]
fn a_change_that_a_close_overtakes_is_closed_and_not_busy() {
    watched("closed", || {
        let (endpoint, gate) = (Arc::<TestEndpoint>::default(), Cancel::new());
        let (feed, _upstream) = hanging(&endpoint, &gate);
        let (holder, answered): (FinHolder, Fin) = fin();
        let asked: (Sender<()>, Receiver<()>) = bounded(1);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let _holder = holder;
                asked.0.try_send(()).unwrap();
                kvdata(&feed).add_engines(vec![engine(1)], &forever())
            });
            thread::recv(&asked.1, &forever()).unwrap();
            // The test holds in every order; mostly the change is under way by now, and those below wait behind it.
            let _ = gate.fin().wait(&Until::within(Duration::from_millis(20)));
            for inst in 2..5 {
                let late = Engine { inst: InstId(inst), evaluator: Arc::new(SlowDrop(answered.clone())) };
                let short = Until::within(Duration::from_millis(5));
                assert!(kvdata(&feed).add_engines(vec![late], &short).is_err());
            }
            assert!(kvdata(&feed).close(&Until::within(Duration::from_millis(5))).is_err());
            assert_eq!(waits.join().unwrap(), Err(RequestError::Closed));
            gate.cancel();
            kvdata(&feed).close(&forever()).unwrap();
        });
    });
}

#[test]
fn one_change_too_many_is_busy() {
    watched("busy", || {
        let (endpoint, gate) = (Arc::<TestEndpoint>::default(), Cancel::new());
        let (feed, _upstream) = hanging(&endpoint, &gate);
        let add = |limit| kvdata(&feed).add_engines(vec![engine(1)], &Until::within(limit));
        while add(Duration::from_millis(20)) != Err(RequestError::Busy) {}
        gate.cancel();
        kvdata(&feed).close(&forever()).unwrap();
    });
}

/// Does something where a line with these words is logged.
struct OnLine<F>(&'static str, AssertUnwindSafe<F>);

impl<F: Fn() + Send + Sync> slog::Drain for OnLine<F> {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if record.msg().to_string().contains(self.0) {
            (self.1.0)();
        }
        Ok(())
    }
}

fn on_line(words: &'static str, act: impl Fn() + Send + Sync + 'static) -> Logger {
    Logger::root(OnLine(words, AssertUnwindSafe(act)), slog::o!())
}

/// A logger that panics at these words once it is armed.
fn no_log(words: &'static str) -> (Logger, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    let is_armed = Arc::clone(&armed);
    let panics = move || {
        if is_armed.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("there is no room for logs"));
        }
    };
    (on_line(words, panics), armed)
}

/// A logger that tells of each line with these words.
fn tells_of(words: &'static str) -> (Logger, Receiver<()>) {
    let (seen, is_seen) = bounded(64);
    let tell = move || {
        let _ = seen.try_send(());
    };
    (on_line(words, tell), is_seen)
}

fn await_line(line: &Receiver<()>) {
    thread::recv(line, &forever()).unwrap();
}

#[test]
fn a_panic_on_the_scattering_thread_ends_the_path_in_order() {
    watched("scatter", || {
        let (logger, armed) = no_log("refused");
        let (mut feed, upstream) = started(&Arc::default(), Vec::new(), &logger);
        upstream.try_send(batch(&[(0, BEGIN)])).unwrap();
        wait_for(|| feed.books(&keyspace()).unwrap().active.len() == 1);
        armed.store(true, Ordering::SeqCst);
        let refused = EventKind::StreamReq { status: StreamStatus::UnknownScope };
        let event = DcpEvent { vb: VbId(1), seqno: Seqno(0), kind: refused };
        let (generation, events) = (Generation(1), vec![event]);
        upstream.try_send(EventBatch { generation, events, ..EventBatch::default() }).unwrap();
        wait_for(|| feed.has_ended(&keyspace()));
        let books = feed.books(&keyspace()).unwrap();
        assert_eq!(books.ended.get(&VB), Some(&StreamEndReason::DataPathEnded));
        assert_eq!(books.counts[&VB], even(1));
        match feed.stop(&keyspace(), &forever()).unwrap() {
            Some(EndReason::Panicked(panicked)) => assert_eq!(panicked.thread, "kv-data-60001"),
            other => panic!("it ended as: {other:?}"),
        }
    });
}

#[test]
fn a_panic_on_a_worker_s_control_thread_ends_the_path_in_order() {
    watched("control", || {
        let (logger, armed) = no_log("an order was passed");
        let (mut feed, upstream) = started(&Arc::default(), Vec::new(), &logger);
        upstream.try_send(batch(&[(0, BEGIN)])).unwrap();
        wait_for(|| feed.books(&keyspace()).unwrap().active.len() == 1);
        armed.store(true, Ordering::SeqCst);
        // The order was passed on: its answer may come before the end.
        let _ = kvdata(&feed).add_engines(vec![engine(1)], &forever());
        wait_for(|| feed.has_ended(&keyspace()));
        assert_eq!(kvdata(&feed).add_engines(vec![engine(1)], &forever()), Err(RequestError::Closed));
        let books = feed.books(&keyspace()).unwrap();
        assert_eq!(books.counts[&VB], even(1));
        match feed.stop(&keyspace(), &forever()).unwrap() {
            Some(EndReason::Panicked(panicked)) => assert_eq!(panicked.thread, "vbc-60001-0"),
            other => panic!("it ended as: {other:?}"),
        }
    });
}

#[test]
fn the_feed_learns_of_the_end_when_the_hosts_logger_panics() {
    watched("logger", || {
        let (logger, armed) = no_log("ended");
        let (mut feed, upstream) = started(&Arc::default(), Vec::new(), &logger);
        armed.store(true, Ordering::SeqCst);
        drop(upstream);
        wait_for(|| feed.has_ended(&keyspace()));
        assert!(feed.stop(&keyspace(), &forever()).unwrap().is_some());
    });
}

/// Queues the changes 2 and 3 before a worker that hangs in its endpoint with change 1.
fn queue_more(feed: &Feed, upstream: &Sender<EventBatch>) {
    upstream.try_send(batch(&[(2, document())])).unwrap();
    upstream.try_send(batch(&[(3, document())])).unwrap();
    // Once the last of them was taken, the one before it was handed on.
    wait_for(|| kvdata(feed).stats().batches() == 3);
}

#[test]
fn a_worker_looks_at_its_orders_before_the_data_that_was_queued_before_them() {
    watched("orders", || {
        let (logger, passed) = tells_of("an order was passed");
        let (endpoint, gate) = (Arc::<TestEndpoint>::default(), Cancel::new());
        let (feed, upstream) = hanging_with(&endpoint, &gate, &logger);
        await_line(&passed);
        queue_more(&feed, &upstream);
        std::thread::scope(|scope| {
            let adds = scope.spawn(|| kvdata(&feed).add_engines(vec![engine(1)], &forever()));
            await_line(&passed);
            gate.cancel();
            assert_eq!(adds.join().unwrap(), Ok(vec![(VB, Seqno(1))]));
        });
        let seen = |inst| endpoint.seen.lock().changes.get(&(InstId(inst), VB)).cloned().unwrap_or_default();
        wait_for(|| seen(0).len() == 3);
        assert_eq!(seen(1), [Seqno(2), Seqno(3)]);
        kvdata(&feed).close(&forever()).unwrap();
    });
}

#[test]
fn a_worker_looks_at_its_end_before_the_data_that_was_queued_before_it() {
    watched("end", || {
        let (logger, told) = tells_of("was told to end");
        let (endpoint, gate) = (Arc::<TestEndpoint>::default(), Cancel::new());
        let (feed, upstream) = hanging_with(&endpoint, &gate, &logger);
        queue_more(&feed, &upstream);
        std::thread::scope(|scope| {
            let closes = scope.spawn(|| kvdata(&feed).close(&forever()));
            await_line(&told);
            gate.cancel();
            closes.join().unwrap().unwrap();
        });
        assert_eq!(endpoint.seen.lock().changes[&(InstId(0), VB)], [Seqno(1)]);
        assert_eq!(kvdata(&feed).worker_stats().documents(), 1);
    });
}

#[test]
fn the_scattering_thread_looks_at_its_end_before_the_next_batch() {
    watched("scatter's end", || {
        let (gate, (entered, has_entered)) = (Cancel::new(), bounded(1));
        let opened = gate.fin().clone();
        let logger = on_line("refused", move || {
            let _ = entered.try_send(());
            let _ = opened.wait(&forever());
        });
        let (feed, upstream) = started(&Arc::default(), Vec::new(), &logger);
        let refused = EventKind::StreamReq { status: StreamStatus::UnknownScope };
        upstream.try_send(batch(&[(0, refused)])).unwrap();
        await_line(&has_entered);
        upstream.try_send(batch(&[(0, BEGIN)])).unwrap();
        kvdata(&feed).stop_scatter();
        gate.cancel();
        wait_for(|| feed.has_ended(&keyspace()));
        kvdata(&feed).close(&forever()).unwrap();
        assert_eq!(kvdata(&feed).stats().batches(), 1);
        // What was taken is told all the same.
        assert_eq!(feed.books(&keyspace()).unwrap().refused[&VB], StreamStatus::UnknownScope);
    });
}

/// Tells when the thread that drops it is held up, until it is let go.
struct HeldDrop(Sender<()>, Fin);

impl Evaluator for HeldDrop {
    fn keys(&self, _: &str, _: &Document<'_>, _: &mut KeyList) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Drop for HeldDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
        let _ = self.1.wait(&forever());
    }
}

#[test]
fn the_control_thread_looks_at_the_end_of_its_data_before_the_next_request() {
    watched("control's end", || {
        let (endpoint, gate, drops) = (Arc::<TestEndpoint>::default(), Cancel::new(), Cancel::new());
        let (feed, upstream) = hanging(&endpoint, &gate);
        let now = Until::within(Duration::ZERO);
        while kvdata(&feed).add_engines(vec![engine(1)], &Until::within(Duration::from_millis(1)))
            != Err(RequestError::Busy)
        {}
        let (entered, has_entered) = bounded(1);
        let held = Engine { inst: InstId(2), evaluator: Arc::new(HeldDrop(entered, drops.fin().clone())) };
        assert!(kvdata(&feed).add_engines(vec![held], &now).is_err());
        await_line(&has_entered);
        drop(upstream);
        wait_for(|| kvdata(&feed).threads().iter().all(|name| !name.starts_with("kv-data")));
        std::thread::scope(|scope| {
            let _opens = CancelOnDrop(&gate);
            let asks = std::thread::Builder::new().name("order-asks".to_owned());
            let asks = asks
                .spawn_scoped(scope, || kvdata(&feed).update_ts(TsVbuuid::default(), &forever()))
                .unwrap();
            // The test holds in every order; by then the request is queued.
            let sleeps = |(name, state): &(String, String)| name == "order-asks" && state.starts_with('S');
            wait_for(|| tasks().iter().any(sleeps));
            drops.cancel();
            assert_eq!(asks.join().unwrap(), Err(RequestError::Closed));
        });
        kvdata(&feed).close(&forever()).unwrap();
    });
}

/// Takes a batch for each permit.
struct Stepped {
    entered: Sender<()>,
    permits: Receiver<()>,
}

impl Endpoint for Stepped {
    fn try_apply(&self, _: ShardId, mut batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        let _ = self.entered.try_send(());
        thread::recv(&self.permits, &forever()).map_err(|error| EndpointRefused::Never(error.into()))?;
        batch.clear();
        Ok(batch)
    }
}

/// A worker for two shards that hangs in the first of two calls for one batch, the number of calls that began, and
/// the sender of permits.
fn stepped(logger: &Logger) -> (Feed, Sender<EventBatch>, Receiver<()>, Sender<()>) {
    let ((entered, has_entered), (permit, permits)) = (bounded(8), bounded(8));
    let endpoint: Arc<dyn Endpoint> = Arc::new(Stepped { entered, permits });
    let (feed, upstream) = started_with(2, &endpoint, vec![engine(0)], logger);
    let begin = |vb| DcpEvent { vb: VbId(vb), seqno: Seqno(0), kind: BEGIN };
    let (generation, events) = (Generation(1), vec![begin(0), begin(1)]);
    upstream.try_send(EventBatch { generation, events, ..EventBatch::default() }).unwrap();
    await_line(&has_entered);
    (feed, upstream, has_entered, permit)
}

#[test]
fn a_request_waits_for_one_call_of_the_endpoint_at_most() {
    watched("one call", || {
        let (logger, passed) = tells_of("an order was passed");
        let (feed, _upstream, has_entered, permit) = stepped(&logger);
        await_line(&passed);
        std::thread::scope(|scope| {
            let adds = scope.spawn(|| kvdata(&feed).add_engines(vec![engine(1)], &forever()));
            await_line(&passed);
            permit.try_send(()).unwrap();
            let both = vec![(VbId(0), Seqno(0)), (VbId(1), Seqno(0))];
            assert_eq!(adds.join().unwrap(), Ok(both));
        });
        await_line(&has_entered);
        permit.try_send(()).unwrap();
        kvdata(&feed).close(&forever()).unwrap();
    });
}

#[test]
fn a_close_waits_for_one_call_of_the_endpoint_at_most() {
    watched("one call", || {
        let (logger, told) = tells_of("was told to end");
        let (feed, _upstream, has_entered, permit) = stepped(&logger);
        std::thread::scope(|scope| {
            let closes = scope.spawn(|| kvdata(&feed).close(&forever()));
            await_line(&told);
            permit.try_send(()).unwrap();
            closes.join().unwrap().unwrap();
        });
        assert!(has_entered.try_recv().is_err(), "the endpoint was called once more");
    });
}

#[test]
fn what_was_taken_and_not_handed_on_is_told_to_the_feed_with_its_end() {
    watched("untold", || {
        let (endpoint, gate) = (Arc::<TestEndpoint>::default(), Cancel::new());
        let (feed, upstream) = hanging(&endpoint, &gate);
        queue_more(&feed, &upstream);
        let status = StreamStatus::Rollback { to: Seqno(0) };
        let of = |vb, kind| DcpEvent { vb: VbId(vb), seqno: Seqno(0), kind };
        let events = vec![of(1, BEGIN), of(2, EventKind::StreamReq { status }), of(1, END), of(1, BEGIN)];
        upstream.try_send(EventBatch { events, ..batch(&[]) }).unwrap();
        // The worker's queue is full: the batch was taken and is not handed on.
        wait_for(|| kvdata(&feed).stats().batches() == 4);
        assert_eq!(feed.books(&keyspace()).unwrap().counts.get(&VbId(1)), None);
        assert!(kvdata(&feed).close(&Until::within(Duration::from_millis(5))).is_err());
        gate.cancel();
        kvdata(&feed).close(&forever()).unwrap();
        let books = feed.books(&keyspace()).unwrap();
        assert_eq!((books.counts[&VB], books.counts[&VbId(1)]), (even(1), even(2)));
        assert_eq!(books.rolled_back.len(), 1);
    });
}

#[test]
fn a_closed_path_holds_neither_endpoint_nor_engines() {
    watched("holds", || {
        let (endpoint, evaluator) = (Arc::<TestEndpoint>::default(), Arc::<TestEvaluator>::default());
        let engine = |inst| Engine { inst: InstId(inst), evaluator: Arc::clone(&evaluator) as _ };
        let (feed, _upstream) = started(&endpoint, vec![engine(0)], &quiet());
        kvdata(&feed).add_engines(vec![engine(1)], &forever()).unwrap();
        kvdata(&feed).delete_engines(vec![InstId(0)], &forever()).unwrap();
        kvdata(&feed).close(&forever()).unwrap();
        assert_eq!((Arc::strong_count(&endpoint), Arc::strong_count(&evaluator)), (1, 1));
    });
}
