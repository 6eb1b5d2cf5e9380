//! Every ending of a data path under every load, many times with other numbers.
//!
//! Whatever ends first and whatever is under way then: the path ends, once, in order, and leaves nothing behind.
//! A cell is an ending under a load; each runs with [`SEEDS`] seeds, or with as many as `DORMOUSE_SEEDS` says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use dormouse::event::{ByteBudget, Generation, Seqno, VbId};
use dormouse::projector::{
    EndReason, Endpoint, Engine, Evaluator, Feed, Keyspace, KvData, KvDataConfig, RequestError, Tuning,
};
use dormouse::shard::InstId;
use dormouse::thread::{self, Cancel, Until};
use dormouse::timestamp::TsVbuuid;

use crate::support::forever;
use crate::support::path::{
    Bomb, CancelOnDrop, Dice, EndLines, Script, Source, Switch, TestEndpoint, TestEvaluator, tasks, wait_for,
    watched,
};

/// Seeds of a cell.
const SEEDS: u64 = 20;

const VBUCKETS: u16 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    UpstreamCloses,
    WorkerPanics,
    EndpointRefuses,
    ControlPanics,
    StopFromFeed,
    Close,
    CloseTwice,
    CloseWhileAdding,
    CloseWhileReading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Idle,
    Steady,
    DownstreamHangs,
    BooksAreNotRead,
    UpstreamIsFull,
}

/// An answer to an added engine.
type Point = (InstId, Vec<(VbId, Seqno)>);

/// A running data path and everything around it.
struct Fixture {
    load: Load,
    dice: Dice,
    node: u16,
    keyspace: Keyspace,
    endpoint: Arc<TestEndpoint>,
    evaluator: Arc<TestEvaluator>,
    /// Lets go what hangs or is put off.
    gate: Cancel,
    lines: Arc<EndLines>,
    budget: ByteBudget,
}

fn engine(inst: u32, evaluator: Arc<dyn Evaluator>) -> Engine {
    Engine { inst: InstId(inst), evaluator }
}

/// Adds engines until the path is closed. Every answer is a point, or says that it is closed.
fn add(kvdata: &KvData, insts: impl Iterator<Item = u32>) -> Vec<Point> {
    let mut points = Vec::new();
    for inst in insts {
        match kvdata.add_engines(vec![engine(inst, Arc::<TestEvaluator>::default())], &forever()) {
            Ok(point) => points.push((InstId(inst), point)),
            closed => {
                assert_eq!(closed, Err(RequestError::Closed));
                break;
            }
        }
    }
    points
}

impl Fixture {
    fn start(load: Load, seed: u64) -> (Self, Feed, Source) {
        static NODES: AtomicU16 = AtomicU16::new(0);
        let mut dice = Dice::new(seed);
        let fixture = Self {
            load,
            node: NODES.fetch_add(1, Ordering::SeqCst),
            keyspace: Keyspace("travel".to_owned()),
            endpoint: Arc::default(),
            evaluator: Arc::default(),
            gate: Cancel::new(),
            lines: Arc::default(),
            budget: ByteBudget::new(1 << 20),
            dice: Dice::new(seed ^ 0xffff),
        };
        let config = KvDataConfig {
            number: fixture.node,
            workers: 1 + dice.choose(3),
            vbuckets: VBUCKETS,
            shards: 1 + dice.choose(4),
            worker_queue_batches: 1 + usize::from(dice.choose(4)),
        };
        let generation = Generation(seed + 1);
        let script = Script::new(seed, generation, VBUCKETS);
        let capacity = 1 + usize::from(dice.choose(4));
        let (source, upstream) = Source::start(script, fixture.budget.clone(), capacity);
        let logger = slog::Logger::root(Arc::clone(&fixture.lines), slog::o!());
        let mut feed = Feed::new(&logger);
        let endpoint = Arc::clone(&fixture.endpoint) as Arc<dyn Endpoint>;
        let engines = vec![engine(0, Arc::clone(&fixture.evaluator) as Arc<dyn Evaluator>)];
        let (keyspace, requested) = (&fixture.keyspace, TsVbuuid::default());
        feed.start(keyspace, generation, &config, &endpoint, upstream, engines, &requested, &forever())
            .unwrap();
        (fixture, feed, source)
    }

    fn kvdata<'f>(&self, feed: &'f Feed) -> &'f KvData {
        feed.kvdata(&self.keyspace).unwrap()
    }

    fn hangs(&self) -> bool {
        self.endpoint.switched.hanging() + self.evaluator.switched.hanging() > 0
    }

    /// Brings the load about.
    fn load(&mut self, kvdata: &KvData, source: &Source) {
        let batches = match self.load {
            Load::Idle => return wait_for(|| kvdata.stats().batches() > 0),
            _ => self.dice.below(40),
        };
        source.go();
        wait_for(|| kvdata.stats().batches() >= batches);
        match self.load {
            Load::DownstreamHangs => {
                let switched = match self.dice.below(2) {
                    0 => &self.endpoint.switched,
                    _ => &self.evaluator.switched,
                };
                switched.set(Switch::Hangs(self.gate.clone()));
                wait_for(|| self.hangs());
            }
            Load::UpstreamIsFull => {
                let tuning = Tuning { lane_batches_max: 1, ..Tuning::default() };
                kvdata.reset_config(tuning, &forever()).unwrap();
                self.endpoint.switched.set(Switch::Later(self.gate.clone()));
                wait_for(|| source.is_full() && self.endpoint.put_off.load(Ordering::SeqCst) > 0);
            }
            Load::Idle | Load::Steady | Load::BooksAreNotRead => {}
        }
    }

    /// Closes the path; what hangs is let go after a first close gave up.
    fn close(&self, kvdata: &KvData) {
        if self.hangs() && !self.gate.is_cancelled() {
            let still_running = kvdata.close(&Until::within(Duration::from_millis(2))).unwrap_err();
            assert!(
                still_running.threads.iter().any(|name| name.starts_with("vbd-")),
                "{:?}",
                still_running.threads
            );
            self.gate.cancel();
        }
        kvdata.close(&forever()).unwrap();
    }

    /// Makes the control thread drop an evaluator that panics in its drop: more changes wait than it keeps.
    fn make_control_panic(&self, kvdata: &KvData, source: &Source) {
        let hold = Cancel::new();
        self.endpoint.switched.set(Switch::Hangs(hold.clone()));
        source.go();
        self.gate.cancel();
        wait_for(|| self.endpoint.switched.hanging() > 0);
        let bomb = || vec![engine(9, Arc::new(Bomb))];
        while kvdata.add_engines(bomb(), &Until::within(Duration::ZERO)) != Err(RequestError::Closed) {}
        hold.cancel();
    }

    /// Ends the path, and gives back the points that were answered meanwhile.
    fn end(&self, ending: Ending, feed: &Feed, source: &Source) -> Vec<Point> {
        let kvdata = self.kvdata(feed);
        let has_ended = || wait_for(|| feed.has_ended(&self.keyspace));
        match ending {
            Ending::UpstreamCloses => {
                source.stop();
                self.gate.cancel();
                has_ended();
            }
            Ending::WorkerPanics | Ending::EndpointRefuses => {
                let panics = ending == Ending::WorkerPanics;
                self.endpoint.switched.set(if panics { Switch::Panics } else { Switch::Never });
                source.go();
                self.gate.cancel();
                has_ended();
            }
            Ending::ControlPanics => {
                self.make_control_panic(kvdata, source);
                has_ended();
            }
            Ending::StopFromFeed => {
                kvdata.stop_scatter();
                self.gate.cancel();
                has_ended();
            }
            Ending::Close => self.close(kvdata),
            Ending::CloseTwice => {
                self.close(kvdata);
                kvdata.close(&forever()).unwrap();
            }
            Ending::CloseWhileAdding => return self.close_while_adding(kvdata),
            Ending::CloseWhileReading => self.close_while_reading(kvdata, feed),
        }
        Vec::new()
    }

    fn close_while_adding(&self, kvdata: &KvData) -> Vec<Point> {
        std::thread::scope(|scope| {
            let first = scope.spawn(|| add(kvdata, (10..).step_by(2)));
            let second = scope.spawn(|| add(kvdata, (11..).step_by(2)));
            let closes = scope.spawn(|| kvdata.close(&forever()).unwrap());
            self.close(kvdata);
            closes.join().unwrap();
            [first, second].into_iter().flat_map(|adding| adding.join().unwrap()).collect()
        })
    }

    fn close_while_reading(&self, kvdata: &KvData, feed: &Feed) {
        let closed = Cancel::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut before = 0;
                while !closed.is_cancelled() {
                    let seen = kvdata.stats().events() + kvdata.worker_stats().documents();
                    let books = feed.books(&self.keyspace).unwrap();
                    assert!(books.counts.len() <= usize::from(VBUCKETS) && seen >= before);
                    before = seen;
                }
            });
            let _ends_the_reader = CancelOnDrop(&closed);
            self.close(kvdata);
        });
    }

    /// What is true after every ending.
    fn assert_ended(self, ending: Ending, mut feed: Feed, source: Source, points: &[Point]) {
        let kvdata = self.kvdata(&feed);
        kvdata.close(&forever()).unwrap();
        assert_eq!(kvdata.threads(), Vec::<String>::new());
        assert_eq!(kvdata.add_engines(Vec::new(), &forever()), Err(RequestError::Closed));
        let books = feed.books(&self.keyspace).unwrap();
        let reason = feed.stop(&self.keyspace, &forever()).unwrap().unwrap();
        assert_reason(ending, &reason);
        assert_eq!(self.lines.ends.load(Ordering::SeqCst), 1, "lines that name the reason");
        assert_eq!(self.lines.second_fins.load(Ordering::SeqCst), 0);
        assert_eq!(feed.late_messages(), 0);
        let script = source.join();
        assert!(books.active.is_empty(), "{:?}", books.active);
        for (vb, begins) in &script.begins {
            let counts = books.counts.get(vb).copied().unwrap_or_default();
            assert_eq!((counts.begins, counts.stray_ends), (counts.ends, 0), "vbucket {vb}");
            // What was not taken from the source did not begin.
            let is_told = counts.begins == *begins || ending != Ending::UpstreamCloses;
            assert!(is_told && counts.begins <= *begins, "vbucket {vb}: {counts:?} of {begins}");
        }
        assert!(books.counts.keys().all(|vb| script.begins.contains_key(vb)));
        assert_eq!(self.budget.used_bytes(), 0, "bytes that were not given back");
        assert_eq!(Arc::strong_count(&self.endpoint), 1, "a thread holds the endpoint");
        let own = [format!("kv-ctl-{}", self.node), format!("kv-data-{}", self.node)];
        // The system takes a thread off its list a moment after it was joined.
        wait_for(|| tasks().iter().all(|(name, _)| !own.contains(name)));
        self.assert_no_gap(&script, points);
    }

    /// An added engine saw what came after its point, and nothing else.
    fn assert_no_gap(&self, script: &Script, points: &[Point]) {
        let seen = self.endpoint.seen.lock();
        assert_eq!(seen.faults, Vec::<String>::new());
        for (inst, point) in points {
            for vb in (0..VBUCKETS).map(VbId) {
                let of = |inst| seen.changes.get(&(inst, vb)).map(Vec::as_slice).unwrap_or_default();
                let (all, new) = (of(InstId(0)), of(*inst));
                let (before, after) = all.split_at(all.len().checked_sub(new.len()).unwrap());
                assert_eq!(after, new, "instance {inst:?}, vbucket {vb}: it missed a change");
                let Some((_, point)) = point.iter().find(|(at, _)| *at == vb) else { continue };
                assert!(before.iter().all(|seqno| seqno <= point), "{inst:?}, {vb}: a gap after {point}");
                let is_ordered = !script.out_of_order.contains(&vb);
                assert!(
                    !is_ordered || after.iter().all(|seqno| seqno > point),
                    "{inst:?}, {vb}: {point} came twice"
                );
            }
        }
    }
}

fn assert_reason(ending: Ending, reason: &EndReason) {
    let is_right = match ending {
        Ending::UpstreamCloses => matches!(reason, EndReason::UpstreamClosed),
        Ending::WorkerPanics => {
            matches!(reason, EndReason::Panicked(panicked) if panicked.thread.starts_with("vbd-"))
        }
        Ending::EndpointRefuses => matches!(reason, EndReason::Endpoint(_)),
        Ending::ControlPanics => {
            matches!(reason, EndReason::Panicked(panicked) if panicked.thread.starts_with("kv-ctl-"))
        }
        _ => matches!(reason, EndReason::Closed),
    };
    assert!(is_right, "{ending:?} ended as: {reason}");
}

fn run(ending: Ending, load: Load, seed: u64) {
    let (mut fixture, feed, source) = Fixture::start(load, seed);
    let keyspace = fixture.keyspace.clone();
    let done = Cancel::new();
    let points = std::thread::scope(|scope| {
        let _ends_the_reader = CancelOnDrop(&done);
        if load != Load::BooksAreNotRead {
            scope.spawn(|| {
                let until = Until::new(None, done.clone());
                while thread::recv(feed.woken(), &until).is_ok() {
                    feed.books(&keyspace).unwrap();
                }
            });
        }
        let kvdata = feed.kvdata(&keyspace).unwrap();
        let mut points = add(kvdata, 1..2);
        fixture.load(kvdata, &source);
        if !fixture.hangs() {
            points.extend(add(kvdata, 2..3));
        }
        points.extend(fixture.end(ending, &feed, &source));
        points
    });
    fixture.assert_ended(ending, feed, source, &points);
}

fn run_cells(ending: Ending) {
    let seeds = std::env::var("DORMOUSE_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let loads =
        [Load::Idle, Load::Steady, Load::DownstreamHangs, Load::BooksAreNotRead, Load::UpstreamIsFull];
    for load in loads {
        for seed in 0..seeds {
            watched(&format!("{ending:?} under {load:?}, seed {seed}"), move || run(ending, load, seed));
        }
    }
}

#[test]
fn it_ends_in_order_when_its_source_is_gone() {
    run_cells(Ending::UpstreamCloses);
}

#[test]
fn it_ends_in_order_when_a_worker_panics() {
    run_cells(Ending::WorkerPanics);
}

#[test]
fn it_ends_in_order_when_its_endpoint_refuses_for_good() {
    run_cells(Ending::EndpointRefuses);
}

#[test]
fn it_ends_in_order_when_its_control_thread_panics() {
    run_cells(Ending::ControlPanics);
}

#[test]
fn it_ends_in_order_when_the_feed_stops_it() {
    run_cells(Ending::StopFromFeed);
}

#[test]
fn it_ends_in_order_when_it_is_closed() {
    run_cells(Ending::Close);
}

#[test]
fn it_ends_in_order_when_it_is_closed_twice() {
    run_cells(Ending::CloseTwice);
}

#[test]
fn it_ends_in_order_when_it_is_closed_while_engines_are_added() {
    run_cells(Ending::CloseWhileAdding);
}

#[test]
fn it_ends_in_order_when_it_is_closed_while_statistics_are_read() {
    run_cells(Ending::CloseWhileReading);
}
