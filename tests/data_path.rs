//! What a data path does with single batches and requests, seen from its feed and its endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use dormouse::event::{
    Datatype, DcpEvent, EventBatch, EventKind, Generation, Seqno, Span, StreamEndReason, StreamStatus, VbId,
    VbUuid,
};
use dormouse::index::KeyList;
use dormouse::projector::{
    EndReason, Endpoint, Engine, Evaluator, Feed, Keyspace, KvData, KvDataConfig, RequestError, StreamCounts,
    Tuning,
};
use dormouse::shard::InstId;
use dormouse::thread::{self, Cancel, Fin, FinHolder, Until, fin};
use dormouse::timestamp::TsVbuuid;
use serde_json::Value;
use slog::Logger;

use crate::support::forever;
use crate::support::path::{Switch, TestEndpoint, TestEvaluator, wait_for, watched};

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
    let (sender, upstream) = bounded(8);
    let mut feed = Feed::new(logger);
    let config = KvDataConfig { node: 60_001, workers: 1, vbuckets: 4, shards: 1, worker_queue_batches: 2 };
    let endpoint = Arc::clone(endpoint) as Arc<dyn Endpoint>;
    let requested = TsVbuuid::default();
    feed.start(&keyspace(), Generation(1), &config, &endpoint, upstream, engines, &requested, &forever())
        .unwrap();
    (feed, sender)
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
    EventKind::Mutation { key: Span::new(0, 1), value: Span::new(1, 2), datatype: Datatype::JSON }
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
        assert_eq!(books.counts[&VB], StreamCounts { begins: 2, ends: 2 });
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
        assert_eq!(feed.books(&keyspace()).unwrap().counts[&VB], StreamCounts { begins: 2, ends: 2 });
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
    fn keys(&self, _: &str, _: &Value, _: &mut KeyList) -> anyhow::Result<()> {
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
    let (feed, upstream) = started(endpoint, vec![engine(0)], &quiet());
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

/// Panics where a line with these words is logged, once it is armed.
struct NoLog(&'static str, Arc<AtomicBool>);

impl slog::Drain for NoLog {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if self.1.load(Ordering::SeqCst) && record.msg().to_string().contains(self.0) {
            std::panic::resume_unwind(Box::new("there is no room for logs"));
        }
        Ok(())
    }
}

fn no_log(words: &'static str) -> (Logger, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    (Logger::root(NoLog(words, Arc::clone(&armed)), slog::o!()), armed)
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
        assert_eq!(books.counts[&VB], StreamCounts { begins: 1, ends: 1 });
        match feed.stop(&keyspace(), &forever()).unwrap() {
            Some(EndReason::Panicked(panicked)) => assert_eq!(panicked.thread, "kv-data-60001"),
            other => panic!("it ended as: {other:?}"),
        }
    });
}

#[test]
fn a_panic_on_a_worker_s_control_thread_ends_the_path_in_order() {
    watched("control", || {
        let (logger, armed) = no_log("an order is passed");
        let (mut feed, upstream) = started(&Arc::default(), Vec::new(), &logger);
        upstream.try_send(batch(&[(0, BEGIN)])).unwrap();
        wait_for(|| feed.books(&keyspace()).unwrap().active.len() == 1);
        armed.store(true, Ordering::SeqCst);
        let refused = kvdata(&feed).add_engines(vec![engine(1)], &forever());
        assert_eq!(refused, Err(RequestError::Closed));
        wait_for(|| feed.has_ended(&keyspace()));
        let books = feed.books(&keyspace()).unwrap();
        assert_eq!(books.counts[&VB], StreamCounts { begins: 1, ends: 1 });
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
