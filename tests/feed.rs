//! The books of a feed, and the lives of its keyspaces.

use std::sync::Arc;

use crossbeam::channel::{Sender, bounded};
use dormouse::event::{
    DcpEvent, EventBatch, EventKind, Generation, Seqno, StreamEndReason, StreamStatus, VbId, VbUuid,
};
use dormouse::projector::{EndReason, Endpoint, Feed, FeedError, Keyspace, KvDataConfig, RequestError};
use dormouse::timestamp::{Position, TsVbuuid};
use slog::{Discard, Logger, o};

use crate::support::endpoint::Recorder;
use crate::support::{eventually, push, watchdog};

fn feed() -> Feed {
    Feed::new(&Logger::root(Discard, o!()))
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
    let endpoint: Arc<dyn Endpoint> = Arc::new(Recorder::default());
    let (upstream, batches) = bounded(2);
    let config = KvDataConfig { node: 160, workers: 1, vbuckets: 8, shards: 1, worker_queue_batches: 2 };
    let (name, generation) = (keyspace(name), Generation(generation));
    feed.start(&name, generation, &config, &endpoint, batches, Vec::new(), requested, &watchdog())?;
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
    let old = feed.begin_generation(Generation(1), &ts(&[(0, 7)]));
    let endpoint: Arc<dyn Endpoint> = Arc::new(Recorder::default());
    let (old_upstream, batches) = bounded(2);
    let config = KvDataConfig { node: 161, workers: 1, vbuckets: 8, shards: 1, worker_queue_batches: 2 };
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
