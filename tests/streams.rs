//! What a data path makes of each kind of event, and what the feed and the endpoint learn of it.

use std::time::Duration;

use dormouse::event::{
    Datatype, EventKind, Generation, OsoEdge, Seqno, StreamEndReason, StreamStatus, SystemEvent, VbId, VbUuid,
};
use dormouse::index::IndexDefinition;
use dormouse::projector::{StreamState, Tuning};
use dormouse::shard::InstId;
use dormouse::timestamp::Position;

use crate::support::endpoint::{Path, VBUCKETS, engine, engine_of};
use crate::support::{eventually, watchdog};

fn close(path: &Path) {
    path.kvdata.close(&watchdog()).unwrap();
}

fn ids(path: &Path) -> Vec<String> {
    path.recorder.changes().into_iter().map(|(_, _, _, id, _)| id).collect()
}

#[test]
fn every_answer_to_a_stream_request_reaches_feed_and_endpoint_without_an_engine() {
    let path = Path::start(140);
    let answers = [
        StreamStatus::Success { vbuuid: VbUuid(7) },
        StreamStatus::Rollback { to: Seqno(3) },
        StreamStatus::UnknownCollection,
        StreamStatus::UnknownScope,
        StreamStatus::Refused { status: 0x86 },
    ];
    let kinds = answers.map(|status| EventKind::StreamReq { status });
    path.send((0..).zip(kinds).fold(path.events(), |events, (vb, kind)| events.event(vb, 0, kind)));
    eventually("all are noted", || path.recorder.notes().len() == kinds.len());
    let mut noted = path.recorder.notes();
    noted.sort_by_key(|event| event.vb);
    assert_eq!(noted.iter().map(|event| event.kind).collect::<Vec<_>>(), kinds);
    let generation = Generation(path.generation);
    eventually("all are in the books", || path.feed.streams(generation).len() == kinds.len());
    let position = Position { vbuuid: VbUuid(7), ..Position::default() };
    let expected = [
        StreamState::Active(position),
        StreamState::RolledBack { from: Position::default(), to: Seqno(3) },
        StreamState::Refused(StreamStatus::UnknownCollection),
        StreamState::Refused(StreamStatus::UnknownScope),
        StreamState::Refused(StreamStatus::Refused { status: 0x86 }),
    ];
    let states: Vec<StreamState> =
        path.feed.streams(generation).into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, expected);
    close(&path);
}

#[test]
fn the_reason_of_a_stream_s_end_reaches_feed_and_endpoint() {
    let path = Path::begun(141);
    let kind = EventKind::StreamEnd { reason: StreamEndReason::StateChanged };
    path.send(path.events().event(2, 0, kind));
    let ended = (VbId(2), StreamState::Ended(StreamEndReason::StateChanged));
    eventually("it ended", || path.feed.streams(Generation(path.generation)).contains(&ended));
    eventually("it is noted", || {
        path.recorder.notes().iter().any(|note| note.vb == VbId(2) && note.kind == kind)
    });
    close(&path);
}

#[test]
fn records_of_transactions_are_skipped_and_their_seqno_moves_on() {
    let path = Path::begun(142);
    path.send(path.events().put_as(Datatype::XATTR, 0, 1, "_txn:client-record", "").put(
        0,
        2,
        "d",
        r#"{"a":1}"#,
    ));
    eventually("both passed", || path.recorder.reached(0) == 2);
    assert_eq!(ids(&path), ["d"]);
    assert_eq!(path.kvdata.worker_stats().transactions(), 1);
    close(&path);
}

#[test]
fn a_json_document_whose_key_looks_like_a_transaction_s_is_indexed() {
    let path = Path::begun(143);
    path.send(path.events().put(0, 1, "_txn:mine", r#"{"a":1}"#));
    eventually("it passed", || path.recorder.reached(0) == 1);
    assert_eq!(ids(&path), ["_txn:mine"]);
    close(&path);
}

#[test]
fn a_binary_document_has_an_entry_in_a_primary_index_alone() {
    let path = Path::begun(144);
    let primary = engine_of(2, IndexDefinition::primary("all".parse().unwrap()));
    path.kvdata.add_engines(vec![primary], &watchdog()).unwrap();
    path.send(path.events().put_as(Datatype(0), 0, 1, "b", "{\"a\":1"));
    eventually("it passed", || path.recorder.reached(0) == 1);
    let keys: Vec<(InstId, usize)> =
        path.recorder.changes().into_iter().map(|(inst, _, _, _, keys)| (inst, keys)).collect();
    assert_eq!(keys, [(InstId(1), 0), (InstId(2), 1)]);
    assert_eq!(path.kvdata.worker_stats().quarantined(), 0);
    close(&path);
}

#[test]
fn seqnos_advance_over_what_is_of_no_interest() {
    let path = Path::begun(145);
    let system = EventKind::SystemEvent { event: SystemEvent::CollectionCreate };
    path.send(path.events().event(0, 4, system).event(0, 9, EventKind::SeqnoAdvanced));
    eventually("both passed", || path.recorder.reached(0) == 9);
    assert!(path.recorder.changes().is_empty());
    assert!(path.recorder.notes().iter().any(|note| note.kind == system));
    let stats = path.kvdata.stats();
    assert_eq!((stats.system_events(), stats.seqnos_advanced(), stats.seqno(VbId(0))), (1, 1, Seqno(9)));
    close(&path);
}

#[test]
fn the_position_stays_before_an_out_of_order_snapshot_until_it_is_complete() {
    let path = Path::begun(146);
    let edge = |edge| EventKind::OsoSnapshot { edge };
    path.send(path.events().put(0, 1, "before", r#"{"a":1}"#).event(0, 0, edge(OsoEdge::Start)));
    path.send(path.events().put(0, 9, "late", r#"{"a":1}"#).put(0, 3, "early", r#"{"a":1}"#));
    eventually("both are applied", || ids(&path) == ["before", "late", "early"]);
    assert_eq!(path.recorder.reached(0), 1);
    path.send(path.events().event(0, 0, edge(OsoEdge::End)).put(0, 10, "after", r#"{"a":1}"#));
    eventually("the snapshot counts", || path.recorder.reached(0) == 10);
    close(&path);
}

#[test]
fn an_engine_that_is_added_in_an_out_of_order_snapshot_is_told_the_highest_seqno_it_missed() {
    let path = Path::begun(147);
    path.send(path.events().event(0, 0, EventKind::OsoSnapshot { edge: OsoEdge::Start }));
    path.send(path.events().put(0, 9, "late", r#"{"a":1}"#).put(0, 3, "early", r#"{"a":1}"#));
    eventually("both are applied", || ids(&path).len() == 2);
    let point = path.kvdata.add_engines(vec![engine(2)], &watchdog()).unwrap();
    assert!(point.contains(&(VbId(0), Seqno(9))), "{point:?}");
    close(&path);
}

#[test]
fn a_change_at_or_below_the_stream_s_position_is_dropped_and_counted() {
    let path = Path::begun(148);
    path.send(path.events().put(0, 5, "new", r#"{"a":1}"#).put(0, 5, "again", "{}").put(0, 4, "old", "{}"));
    path.send(path.events().put(0, 6, "next", r#"{"a":1}"#));
    eventually("the last passed", || path.recorder.reached(0) == 6);
    assert_eq!(ids(&path), ["new", "next"]);
    assert_eq!(path.kvdata.worker_stats().out_of_order(), 2);
    close(&path);
}

#[test]
fn a_deletion_takes_a_document_out_of_every_index() {
    let path = Path::begun(149);
    path.send(path.events().put(0, 1, "d", r#"{"a":1}"#).delete(0, 2, "d"));
    eventually("both passed", || path.recorder.reached(0) == 2);
    let keys: Vec<usize> = path.recorder.changes().into_iter().map(|(_, _, _, _, keys)| keys).collect();
    assert_eq!(keys, [1, 0]);
    close(&path);
}

#[test]
fn an_engine_that_was_deleted_has_seen_everything_up_to_the_answer_and_nothing_later() {
    let path = Path::begun(150);
    path.kvdata.add_engines(vec![engine(2)], &watchdog()).unwrap();
    path.send(path.events().put(0, 1, "d", r#"{"a":1}"#));
    eventually("it passed", || path.recorder.reached(0) == 1);
    let point = path.kvdata.delete_engines(vec![InstId(2), InstId(77)], &watchdog()).unwrap();
    assert!(point.contains(&(VbId(0), Seqno(1))), "{point:?}");
    path.send(path.events().put(0, 2, "d", r#"{"a":2}"#));
    eventually("it passed", || path.recorder.reached(0) == 2);
    let seen: Vec<(InstId, Seqno)> =
        path.recorder.changes().into_iter().map(|(inst, _, seqno, _, _)| (inst, seqno)).collect();
    assert_eq!(seen, [(InstId(1), Seqno(1)), (InstId(2), Seqno(1)), (InstId(1), Seqno(2))]);
    close(&path);
}

#[test]
fn an_engine_that_was_deleted_does_not_come_back_with_the_next_one() {
    let path = Path::begun(152);
    path.kvdata.add_engines(vec![engine(2)], &watchdog()).unwrap();
    path.kvdata.delete_engines(vec![InstId(1)], &watchdog()).unwrap();
    path.kvdata.add_engines(vec![engine(3)], &watchdog()).unwrap();
    path.send(path.events().put(0, 1, "d", r#"{"a":1}"#));
    eventually("it passed", || path.recorder.reached(0) == 1);
    let insts: Vec<InstId> = path.recorder.changes().into_iter().map(|change| change.0).collect();
    assert_eq!(insts, [InstId(2), InstId(3)]);
    close(&path);
}

#[test]
fn the_endpoint_gets_an_end_of_a_stream_that_begins_again_without_one() {
    let path = Path::begun(153);
    let again = EventKind::StreamReq { status: StreamStatus::Success { vbuuid: VbUuid(9) } };
    path.send(path.events().put(0, 4, "d", r#"{"a":1}"#).event(0, 4, again).put(0, 5, "d", "{}"));
    eventually("it goes on", || path.recorder.reached(0) == 5);
    let notes = path.recorder.notes().into_iter().filter(|note| note.vb == VbId(0));
    let last: Vec<(Seqno, EventKind)> = notes.skip(2).map(|note| (note.seqno, note.kind)).collect();
    let superseded = EventKind::StreamEnd { reason: StreamEndReason::Superseded };
    assert_eq!(last, [(Seqno(4), superseded), (Seqno(4), again)]);
    close(&path);
}

#[test]
fn the_ends_that_a_path_owes_when_it_is_closed_go_to_the_feed_alone() {
    let path = Path::begun(154);
    eventually("all began", || path.recorder.notes().len() == 2 * usize::from(VBUCKETS));
    close(&path);
    assert_eq!(path.recorder.notes().len(), 2 * usize::from(VBUCKETS));
    let states = path.feed.streams(Generation(path.generation));
    let ended = StreamState::Ended(StreamEndReason::DataPathEnded);
    assert_eq!(states, (0..VBUCKETS).map(|vb| (VbId(vb), ended)).collect::<Vec<_>>());
}

#[test]
fn a_reset_of_the_configuration_is_carried_out_by_every_worker() {
    let path = Path::begun(151);
    path.recorder.lock(0);
    // One batch may wait for the locked shard, and then the worker takes no more: neither for its other shard.
    let tuning = Tuning { lane_batches_max: 1, quarantine_log_interval: Duration::ZERO, ..Tuning::default() };
    path.kvdata.reset_config(tuning, &watchdog()).unwrap();
    path.send(path.events().put(0, 1, "held", r#"{"a":1}"#));
    path.send(path.events().put(2, 1, "behind", r#"{"a":1}"#).put(1, 1, "beside", r#"{"a":1}"#));
    eventually("the other worker goes on", || path.recorder.reached(1) == 1);
    assert_eq!(path.recorder.reached(2), 0);
    path.kvdata.reset_config(Tuning::default(), &watchdog()).unwrap();
    eventually("it takes data again", || path.recorder.reached(2) == 1);
    path.recorder.unlock(0);
    eventually("the batch is applied", || path.recorder.reached(0) == 1);
    close(&path);
}
