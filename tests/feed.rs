//! The books of a feed, and the lives of its keyspaces.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use dormouse::event::{
    DcpEvent, EventBatch, EventKind, Generation, Seqno, StreamEndReason, StreamStatus, VbId, VbUuid,
};
use dormouse::projector::{
    EndReason, Endpoint, Feed, FeedError, Keyspace, KvDataConfig, RequestError, StreamCounts, StreamState,
};
use dormouse::thread::{self, Fin, FinHolder, Until, fin};
use dormouse::timestamp::{Position, TsVbuuid};
use slog::{Discard, Logger, o};

use crate::support::endpoint::Recorder;
use crate::support::{eventually, push, watchdog};

fn feed() -> Feed {
    Feed::new(&Logger::root(Discard, o!()))
}

/// Panics before a worker passes an order on, and waits where the path logs its end.
struct Reluctant {
    released: Fin,
    has_ended: Arc<AtomicBool>,
}

impl slog::Drain for Reluctant {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let line = record.msg().to_string();
        if line == "an order came" {
            std::panic::resume_unwind(Box::new("there is no room for logs"));
        }
        if line.starts_with("the data path ended") {
            let _ = self.released.wait(&Until::within(Duration::from_secs(10)));
            self.has_ended.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// A feed whose data paths fail as they are started, and end once they are released.
fn reluctant() -> (Feed, FinHolder, Arc<AtomicBool>) {
    let (holder, released) = fin();
    let has_ended = Arc::new(AtomicBool::new(false));
    let drain = Reluctant { released, has_ended: Arc::clone(&has_ended) };
    (Feed::new(&Logger::root(drain, o!())), holder, has_ended)
}

fn keyspace(name: &str) -> Keyspace {
    Keyspace(name.to_owned())
}

fn ts(positions: &[(u16, u64)]) -> TsVbuuid {
    positions.iter().map(|(vb, seqno)| (VbId(*vb), Position::at(VbUuid(5), Seqno(*seqno)))).collect()
}

/// Starts a life of `name` and gives the sender of its source.
fn start(
    feed: &mut Feed,
    name: &str,
    generation: u64,
    requested: &TsVbuuid,
) -> Result<Sender<EventBatch>, FeedError> {
    start_until(feed, name, generation, requested, &watchdog())
}

fn start_until(
    feed: &mut Feed,
    name: &str,
    generation: u64,
    requested: &TsVbuuid,
    until: &Until,
) -> Result<Sender<EventBatch>, FeedError> {
    let endpoint: Arc<dyn Endpoint> = Arc::new(Recorder::default());
    let (upstream, batches) = bounded(2);
    let config = KvDataConfig { number: 160, workers: 1, vbuckets: 8, shards: 1, worker_queue_batches: 2 };
    let (name, generation) = (keyspace(name), Generation(generation));
    feed.start(&name, generation, &config, &endpoint, batches, Vec::new(), requested, until)?;
    Ok(upstream)
}

fn answer(upstream: &Sender<EventBatch>, generation: u64, vb: u16, kind: EventKind) {
    let events = vec![DcpEvent { vb: VbId(vb), seqno: Seqno(0), kind }];
    push(upstream, EventBatch { generation: Generation(generation), events, ..EventBatch::default() });
}

fn begin(vbuuid: u64) -> EventKind {
    EventKind::StreamReq { status: StreamStatus::Success { vbuuid: VbUuid(vbuuid) } }
}

#[test]
fn a_stream_is_in_one_book_at_a_time() {
    let mut feed = feed();
    let upstream = start(&mut feed, "k", 1, &ts(&[(0, 7), (1, 3)])).unwrap();
    let books = |feed: &Feed| feed.books(&keyspace("k")).unwrap();
    assert_eq!(books(&feed).requested, ts(&[(0, 7), (1, 3)]));
    let rollback = EventKind::StreamReq { status: StreamStatus::Rollback { to: Seqno(2) } };
    answer(&upstream, 1, 0, rollback);
    eventually("it is rolled back", || books(&feed).rolled_back == ts(&[(0, 2)]));
    assert_eq!(books(&feed).requested, ts(&[(1, 3)]));
    answer(&upstream, 1, 0, begin(5));
    eventually("it is active", || books(&feed).active.len() == 1);
    assert!(books(&feed).rolled_back.is_empty());
    answer(&upstream, 1, 0, EventKind::StreamEnd { reason: StreamEndReason::TooSlow });
    eventually("it has ended", || books(&feed).ended.get(&VbId(0)) == Some(&StreamEndReason::TooSlow));
    assert!(books(&feed).active.is_empty());
    assert!(matches!(feed.stop(&keyspace("k"), &watchdog()), Ok(Some(EndReason::Closed))));
}

#[test]
fn asking_for_streams_again_keeps_the_others_as_they_are() {
    let mut feed = feed();
    let upstream = start(&mut feed, "k", 1, &ts(&[(0, 7), (1, 3)])).unwrap();
    answer(&upstream, 1, 0, begin(5));
    eventually("it is active", || feed.books(&keyspace("k")).unwrap().active.len() == 1);
    feed.request_streams(&keyspace("k"), &ts(&[(2, 9)]), &watchdog()).unwrap();
    let books = feed.books(&keyspace("k")).unwrap();
    assert_eq!((books.active, books.requested), (ts(&[(0, 7)]), ts(&[(1, 3), (2, 9)])));
    answer(&upstream, 1, 2, begin(6));
    // The begin carries the position that was asked for last, on the branch that the producer named.
    let expected = Position { vbuuid: VbUuid(6), ..Position::at(VbUuid(5), Seqno(9)) };
    let active = |feed: &Feed| feed.books(&keyspace("k")).unwrap().active.get(VbId(2));
    eventually("it is active", || active(&feed) == Some(expected));
    feed.stop(&keyspace("k"), &watchdog()).unwrap();
}

#[test]
fn a_keyspace_that_is_not_followed_is_an_error_and_stays_so() {
    let mut feed = feed();
    let unknown = keyspace("none");
    assert!(matches!(feed.books(&unknown), Err(FeedError::NotRunning(_))));
    assert!(matches!(feed.request_streams(&unknown, &ts(&[]), &watchdog()), Err(FeedError::NotRunning(_))));
    assert!(feed.kvdata(&unknown).is_err() && !feed.has_ended(&unknown));
    assert!(feed.stop(&unknown, &watchdog()).unwrap().is_none());
    assert!(matches!(feed.books(&unknown), Err(FeedError::NotRunning(_))));
}

#[test]
fn a_keyspace_that_is_followed_is_not_started_again() {
    let mut feed = feed();
    let upstream = start(&mut feed, "k", 1, &ts(&[(0, 7)])).unwrap();
    assert!(matches!(start(&mut feed, "k", 2, &ts(&[])), Err(FeedError::AlreadyRuns(_))));
    let other = start(&mut feed, "other", 3, &ts(&[])).unwrap();
    answer(&upstream, 1, 0, begin(5));
    eventually("it goes on", || feed.books(&keyspace("k")).unwrap().active.len() == 1);
    drop(other);
    feed.stop(&keyspace("other"), &watchdog()).unwrap();
    feed.stop(&keyspace("k"), &watchdog()).unwrap();
}

#[test]
fn streams_are_not_asked_for_on_a_path_that_has_ended() {
    let mut feed = feed();
    let upstream = start(&mut feed, "k", 1, &ts(&[])).unwrap();
    drop(upstream);
    eventually("it ends", || feed.has_ended(&keyspace("k")));
    let refused = feed.request_streams(&keyspace("k"), &ts(&[(0, 1)]), &watchdog());
    assert!(matches!(refused, Err(FeedError::Request { error: RequestError::Closed, .. })));
    assert!(feed.books(&keyspace("k")).unwrap().requested.is_empty());
    assert!(matches!(feed.stop(&keyspace("k"), &watchdog()), Ok(Some(EndReason::UpstreamClosed))));
}

#[test]
fn a_message_of_a_life_that_is_over_is_counted_and_changes_nothing() {
    let mut feed = feed();
    let old = feed.begin_generation(Generation(1), &ts(&[(0, 7)])).unwrap();
    let endpoint: Arc<dyn Endpoint> = Arc::new(Recorder::default());
    let (old_upstream, batches) = bounded(2);
    let config = KvDataConfig { number: 161, workers: 1, vbuckets: 8, shards: 1, worker_queue_batches: 2 };
    let logger = Logger::root(Discard, o!());
    let path = dormouse::projector::KvData::start(&config, &endpoint, batches, &old, &logger).unwrap();
    path.close(&watchdog()).unwrap();
    assert!(feed.take_fin(Generation(1)).is_some());
    drop(old_upstream);
    // The same keyspace's next life: what the old link still says is not for its books.
    let upstream = start(&mut feed, "k", 2, &ts(&[(0, 7)])).unwrap();
    let (late_upstream, batches) = bounded(2);
    let late = dormouse::projector::KvData::start(&config, &endpoint, batches, &old, &logger).unwrap();
    answer(&late_upstream, 1, 0, begin(9));
    eventually("it came late", || feed.late_messages() > 0);
    assert!(feed.books(&keyspace("k")).unwrap().active.is_empty());
    late.close(&watchdog()).unwrap();
    drop(upstream);
    feed.stop(&keyspace("k"), &watchdog()).unwrap();
}

#[test]
fn a_refused_request_for_a_stream_that_is_active_leaves_it_active() {
    let mut feed = feed();
    let upstream = start(&mut feed, "k", 1, &ts(&[(0, 7)])).unwrap();
    answer(&upstream, 1, 0, begin(5));
    let books = |feed: &Feed| feed.books(&keyspace("k")).unwrap();
    eventually("it is active", || books(&feed).active == ts(&[(0, 7)]));
    feed.request_streams(&keyspace("k"), &ts(&[(0, 9)]), &watchdog()).unwrap();
    let asked = StreamState::Requested(Position::at(VbUuid(5), Seqno(9)));
    assert_eq!((books(&feed).active, books(&feed).asked_again[&VbId(0)]), (ts(&[(0, 7)]), asked));
    let status = StreamStatus::Refused { status: 2 };
    answer(&upstream, 1, 0, EventKind::StreamReq { status });
    let refused = StreamState::Refused(status);
    eventually("the refusal is seen", || books(&feed).asked_again.get(&VbId(0)) == Some(&refused));
    assert_eq!((books(&feed).active, books(&feed).refused.len()), (ts(&[(0, 7)]), 0));
    assert_eq!(
        feed.streams(Generation(1)),
        [(VbId(0), StreamState::Active(Position::at(VbUuid(5), Seqno(7))))]
    );
    // What the request stands at is what is left once the stream has ended.
    answer(&upstream, 1, 0, EventKind::StreamEnd { reason: StreamEndReason::StateChanged });
    eventually("it has ended", || books(&feed).active.is_empty());
    assert_eq!((books(&feed).refused[&VbId(0)], books(&feed).asked_again.len()), (status, 0));
    assert_eq!(books(&feed).counts[&VbId(0)], StreamCounts { begins: 1, ends: 1, stray_ends: 0 });
    feed.stop(&keyspace("k"), &watchdog()).unwrap();
}

#[test]
fn the_end_of_a_stream_that_is_not_active_counts_as_stray() {
    let mut feed = feed();
    let upstream = start(&mut feed, "k", 1, &ts(&[(0, 7), (1, 3)])).unwrap();
    let reason = StreamEndReason::Disconnected;
    answer(&upstream, 1, 1, EventKind::StreamReq { status: StreamStatus::Rollback { to: Seqno(2) } });
    for vb in [0, 1, 2, 2] {
        answer(&upstream, 1, vb, EventKind::StreamEnd { reason });
    }
    let books = || feed.books(&keyspace("k")).unwrap();
    let stray = |stray_ends| StreamCounts { stray_ends, ..StreamCounts::default() };
    eventually("all came", || books().counts.get(&VbId(2)) == Some(&stray(2)));
    assert_eq!((books().counts[&VbId(0)], books().counts[&VbId(1)]), (stray(1), stray(1)));
    // Nobody answers the request any more; that the other is to be rolled back stays true.
    assert_eq!(books().ended, [(VbId(0), reason), (VbId(2), reason)].into());
    assert_eq!(books().rolled_back, ts(&[(1, 2)]));
    feed.stop(&keyspace("k"), &watchdog()).unwrap();
}

#[test]
fn a_generation_that_is_not_above_all_before_it_is_refused() {
    let mut feed = feed();
    let upstream = start(&mut feed, "k", 5, &ts(&[])).unwrap();
    feed.stop(&keyspace("k"), &watchdog()).unwrap();
    for generation in [4, 5] {
        let refused = start(&mut feed, "k", generation, &ts(&[])).unwrap_err();
        let expected = format!(
            "cannot begin generation {generation}: the feed has seen generation 5; take one above that"
        );
        assert_eq!(refused.to_string(), expected);
        assert!(feed.begin_generation(Generation(generation), &ts(&[])).is_err());
    }
    assert!(feed.kvdata(&keyspace("k")).is_err());
    drop(upstream);
    let _upstream = start(&mut feed, "k", 6, &ts(&[])).unwrap();
    feed.stop(&keyspace("k"), &watchdog()).unwrap();
}

#[test]
fn a_start_that_fails_half_way_has_joined_its_threads() {
    let (mut feed, holder, has_ended) = reluctant();
    let released = thread::spawn("release", move || {
        let (_holder, never) = fin();
        // The test holds without it; with it a start that does not join is seen to return too early.
        let _ = never.wait(&Until::within(Duration::from_millis(20)));
        drop(holder);
    });
    let failed = start(&mut feed, "k", 1, &ts(&[])).unwrap_err();
    assert!(matches!(failed, FeedError::Ended { reason: EndReason::Panicked(_), .. }), "{failed}");
    assert!(has_ended.load(Ordering::SeqCst), "its threads were left to themselves");
    assert!(feed.kvdata(&keyspace("k")).is_err());
    released.unwrap().join(&watchdog()).unwrap();
}

#[test]
fn a_start_that_fails_and_does_not_end_in_time_is_joined_by_a_stop() {
    let (mut feed, holder, has_ended) = reluctant();
    let until = Until::within(Duration::from_millis(100));
    match start_until(&mut feed, "k", 1, &ts(&[]), &until).unwrap_err() {
        FeedError::HalfStarted { threads, .. } => {
            assert!(threads.contains(&"kv-ctl-160".to_owned()), "{threads:?}");
        }
        other => panic!("it failed as: {other}"),
    }
    eventually("all other threads end", || feed.kvdata(&keyspace("k")).unwrap().threads() == ["kv-ctl-160"]);
    assert!(matches!(start(&mut feed, "k", 2, &ts(&[])), Err(FeedError::AlreadyRuns(_))));
    drop(holder);
    assert!(feed.stop(&keyspace("k"), &watchdog()).unwrap().is_some());
    assert!(has_ended.load(Ordering::SeqCst) && feed.kvdata(&keyspace("k")).is_err());
}
