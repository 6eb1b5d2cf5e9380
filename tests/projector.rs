//! The data path: order, lanes, endings, and what it does with host code that misbehaves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use dormouse::event::{ByteBudget, Generation, StreamEndReason, VbId};
use dormouse::index::{Document, IndexDefinition, KeyList};
use dormouse::projector::{EndReason, Evaluator, RequestError, StreamState, Tuning};
use dormouse::shard::InstId;
use dormouse::thread::{Fin, FinHolder, Until, fin, recv, spawn};
use dormouse::timestamp::TsVbuuid;
use serde_json::Value;

use crate::support::endpoint::{Events, Failure, Path, SHARDS, VBUCKETS, engine, engine_of};
use crate::support::prolific::Prolific;
use crate::support::{eventually, forever, push, watchdog};

/// Sends `rounds` batches, each with one change of every vbucket, from `first` on.
fn send_changes(path: &Path, first: u64, rounds: u64) {
    for seqno in first..first + rounds {
        let batch = (0..VBUCKETS)
            .fold(path.events(), |events, vb| events.put(vb, seqno, &format!("v{vb}s{seqno}"), r#"{"a":1}"#));
        path.send(batch);
    }
}

fn reached(path: &Path, seqno: u64) -> bool {
    (0..VBUCKETS).all(|vb| path.recorder.reached(vb) == seqno)
}

fn close(path: &mut Path) {
    path.kvdata.close(&watchdog()).unwrap();
}

#[test]
fn each_vbucket_s_changes_are_applied_in_order() {
    let mut path = Path::begun(100);
    send_changes(&path, 1, 40);
    eventually("everything is applied", || reached(&path, 40));
    for vb in 0..VBUCKETS {
        let changes = path.recorder.changes();
        let seqnos: Vec<u64> =
            changes.iter().filter(|change| change.1 == VbId(vb)).map(|change| change.2.0).collect();
        assert_eq!(seqnos, (1..=40).collect::<Vec<_>>());
    }
    assert_eq!(path.kvdata.stats().mutations(), 40 * u64::from(VBUCKETS));
    close(&mut path);
}

#[test]
fn a_locked_shard_stops_its_own_lane_alone() {
    let mut path = Path::begun(101);
    // The shards 0 and 2 belong to the same worker.
    path.recorder.lock(0);
    send_changes(&path, 1, 10);
    eventually("the other shards go on", || [1, 2, 3].iter().all(|vb| path.recorder.reached(*vb) == 10));
    assert_eq!(path.recorder.reached(0), 0);
    path.recorder.unlock(0);
    eventually("the locked one catches up", || reached(&path, 10));
    close(&mut path);
}

#[test]
fn a_close_does_not_wait_for_a_locked_shard() {
    let mut path = Path::begun(102);
    path.recorder.lock(0);
    send_changes(&path, 1, 10);
    close(&mut path);
    assert_eq!(path.recorder.reached(0), 0);
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Close,
    Upstream,
    Refusal,
    Panic,
}

#[test]
fn every_ending_gives_each_stream_its_end_and_the_feed_one_fin() {
    let endings = [Ending::Close, Ending::Upstream, Ending::Refusal, Ending::Panic];
    for (node, ending) in (110..).zip(endings) {
        let mut path = Path::begun(node);
        send_changes(&path, 1, 3);
        eventually("it runs", || reached(&path, 3));
        path.send(path.events().end(5, 3));
        eventually("a stream ended by itself", || {
            let ended = (VbId(5), StreamState::Ended(StreamEndReason::Finished));
            path.feed.streams(Generation(path.generation)).contains(&ended)
        });
        let generation = Generation(path.generation);
        assert!(path.feed.take_fin(generation).is_none());
        match ending {
            Ending::Close => {}
            Ending::Upstream => path.upstream = None,
            Ending::Refusal => path.recorder.fail(Failure::Refuses),
            Ending::Panic => path.recorder.fail(Failure::Panics),
        }
        if matches!(ending, Ending::Refusal | Ending::Panic) {
            path.send(path.events().put(0, 4, "d", "{}"));
        }
        if !matches!(ending, Ending::Close) {
            // The fin is the last that is posted; what it comes from has begun to refuse requests before.
            eventually("it ends by itself", || {
                path.kvdata.add_engines(vec![engine(1)], &watchdog()) == Err(RequestError::Closed)
            });
        }
        close(&mut path);
        for (vb, state) in path.feed.streams(generation) {
            let reason =
                if vb == VbId(5) { StreamEndReason::Finished } else { StreamEndReason::DataPathEnded };
            assert_eq!(state, StreamState::Ended(reason), "{ending:?}, vbucket {vb}");
        }
        let reason = path.feed.take_fin(generation).unwrap();
        match ending {
            Ending::Close => assert!(matches!(reason, EndReason::Closed), "{reason}"),
            Ending::Upstream => assert!(matches!(reason, EndReason::UpstreamClosed), "{reason}"),
            Ending::Refusal => assert_eq!(reason.to_string(), "the disk is gone"),
            Ending::Panic => {
                let text = format!("thread vbd-{node}-0 panicked: the endpoint's own defect");
                assert_eq!(reason.to_string(), text);
            }
        }
        assert!(path.feed.take_fin(generation).is_none(), "{ending:?}: a second fin");
        eventually("no thread is left", || path.threads().is_empty());
    }
}

#[test]
fn a_data_path_that_is_dropped_ends_by_itself() {
    let path = Path::begun(120);
    // A thread has its name once it runs.
    eventually("all its threads run", || path.threads().len() == 6);
    let Path { feed, kvdata, generation, upstream, .. } = path;
    drop(kvdata);
    eventually("its fin", || matches!(feed.take_fin(Generation(generation)), Some(EndReason::Closed)));
    drop(upstream);
}

#[test]
fn a_stream_that_ended_and_began_again_in_one_batch_is_owed_its_end() {
    let mut path = Path::start(121);
    path.send(path.events().begin(0).put(0, 1, "d", "{}").end(0, 1).begin(0));
    let generation = Generation(path.generation);
    eventually("it is active", || {
        matches!(path.feed.streams(generation)[..], [(VbId(0), StreamState::Active(_))])
    });
    close(&mut path);
    let ended = StreamState::Ended(StreamEndReason::DataPathEnded);
    assert_eq!(path.feed.streams(generation), [(VbId(0), ended)]);
}

#[test]
fn a_second_close_is_harmless_and_requests_after_it_are_refused() {
    let mut path = Path::begun(122);
    close(&mut path);
    close(&mut path);
    let late = path.kvdata.add_engines(vec![engine(2)], &forever());
    assert_eq!(late, Err(RequestError::Closed));
    assert_eq!(
        path.kvdata.update_ts(dormouse::timestamp::TsVbuuid::default(), &forever()),
        Err(RequestError::Closed)
    );
}

#[test]
fn requests_that_race_a_failure_are_answered_or_refused_as_closed() {
    for node in 130..140 {
        let mut path = Path::begun(node);
        path.recorder.fail(Failure::Refuses);
        path.send(path.events().put(0, 1, "d", "{}"));
        let last = loop {
            match path.kvdata.add_engines(vec![engine(2)], &watchdog()) {
                Ok(point) => assert!(point.len() <= usize::from(VBUCKETS)),
                Err(error) => break error,
            }
        };
        assert_eq!(last, RequestError::Closed);
        close(&mut path);
    }
}

/// Fails, or panics, on the documents that ask for it.
struct Moody(IndexDefinition);

impl Evaluator for Moody {
    fn keys(&self, id: &str, document: &Document<'_>, out: &mut KeyList) -> anyhow::Result<()> {
        self.0.keys(id, document.value()?, out);
        match document.value()?.get("mood").and_then(Value::as_str) {
            Some("bad") => anyhow::bail!("not today"),
            Some("worse") => panic!("never again"),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_document_that_an_evaluator_cannot_take_loses_its_entry_and_the_stream_goes_on() {
    let mut path = Path::start(123);
    let moody = engine_of(2, Moody(IndexDefinition::parse("by_a=a").unwrap()));
    path.kvdata.add_engines(vec![engine(1), moody], &watchdog()).unwrap();
    let documents =
        [r#"{"a":1}"#, r#"{"a":1,"mood":"bad"}"#, r#"{"a":1,"mood":"worse"}"#, "{no json", r#"{"a":1}"#];
    let events = (1_u64..)
        .zip(documents)
        .fold(path.events().begin(0), |events, (seqno, document)| events.put(0, seqno, "d", document));
    path.send(events);
    eventually("the last one is applied", || path.recorder.reached(0) == 5);
    let keys = |inst: u32| -> Vec<usize> {
        let changes = path.recorder.changes();
        changes.iter().filter(|change| change.0 == InstId(inst)).map(|change| change.4).collect()
    };
    assert_eq!(keys(1), [1, 1, 1, 0, 1], "the engine beside it is not concerned");
    assert_eq!(keys(2), [1, 0, 0, 0, 1]);
    assert_eq!(path.kvdata.worker_stats().quarantined(), 4);
    close(&mut path);
}

/// Leaves keys behind, and panics then.
struct Untidy(IndexDefinition);

impl Evaluator for Untidy {
    fn keys(&self, id: &str, document: &Document<'_>, out: &mut KeyList) -> anyhow::Result<()> {
        self.0.keys(id, document.value()?, out);
        panic!("half-way");
    }
}

/// Fails where what it is given is not what the document is.
struct Picky(IndexDefinition);

impl Evaluator for Picky {
    fn keys(&self, id: &str, document: &Document<'_>, out: &mut KeyList) -> anyhow::Result<()> {
        anyhow::ensure!(
            out.is_empty() && *document.value()? == serde_json::json!({"a": 1}),
            "somebody was here"
        );
        self.0.keys(id, document.value()?, out);
        Ok(())
    }
}

#[test]
fn what_an_engine_leaves_behind_is_not_seen_by_the_next() {
    let mut path = Path::begun(132);
    let by_a = || IndexDefinition::parse("by_a=a").unwrap();
    let beside = vec![engine_of(2, Untidy(by_a())), engine_of(3, Picky(by_a())), engine_of(4, Picky(by_a()))];
    path.kvdata.add_engines(beside, &watchdog()).unwrap();
    send_changes(&path, 1, 5);
    eventually("everything is applied", || reached(&path, 5));
    let per_engine = 5 * u64::from(VBUCKETS);
    let stats = path.kvdata.worker_stats();
    assert_eq!((stats.quarantined(), stats.entries()), (per_engine, 3 * per_engine));
    let changes = path.recorder.changes();
    assert!(changes.iter().all(|change| change.4 == usize::from(change.0 != InstId(2))));
    close(&mut path);
}

#[test]
fn counters_lose_nothing_while_they_are_read_and_engines_and_numbers_change() {
    const ROUNDS: u64 = 30_000;
    // Without an entry to make, the workers do little else than count.
    let mut path = Path::start(133);
    path.send((0..VBUCKETS).fold(path.events(), Events::begin));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (stats, of_workers) = (path.kvdata.stats(), path.kvdata.worker_stats());
            let mut last = (0, 0);
            while !done.load(Ordering::SeqCst) {
                let seen = (stats.mutations(), of_workers.documents());
                assert!(seen.0 >= last.0 && seen.1 >= last.1, "{seen:?} after {last:?}");
                last = seen;
                path.kvdata.reset_config(Tuning::default(), &watchdog()).unwrap();
                path.kvdata.delete_engines(vec![InstId(1)], &watchdog()).unwrap();
            }
        });
        for seqno in 1..=ROUNDS {
            path.send((0..VBUCKETS).fold(path.events(), |events, vb| events.put(vb, seqno, "d", "1")));
        }
        eventually("everything is applied", || reached(&path, ROUNDS));
        done.store(true, Ordering::SeqCst);
    });
    let sent = ROUNDS * u64::from(VBUCKETS);
    let (stats, of_workers) = (path.kvdata.stats(), path.kvdata.worker_stats());
    // The first batch began the streams, with two events each.
    assert_eq!((stats.batches(), stats.events()), (ROUNDS + 1, sent + 2 * u64::from(VBUCKETS)));
    assert_eq!((stats.mutations(), of_workers.documents()), (sent, sent));
    close(&mut path);
}

#[test]
fn engines_that_are_added_under_load_see_every_later_change_and_no_earlier_one() {
    const ROUNDS: u64 = 60;
    let mut path = Path::begun(124);
    let sender = path.upstream.clone().unwrap();
    let (started, is_running) = bounded(1);
    let load = {
        let batches: Vec<_> = (1..=ROUNDS)
            .map(|seqno| {
                (0..VBUCKETS).fold(path.events(), |events, vb| events.put(vb, seqno, "d", r#"{"a":1}"#))
            })
            .collect();
        spawn("t-load", move || {
            for batch in batches {
                push(&sender, batch.build());
                let _ = started.try_send(());
            }
        })
        .unwrap()
    };
    recv(&is_running, &watchdog()).unwrap();
    let points: Vec<_> = (2..5)
        .map(|inst| (inst, path.kvdata.add_engines(vec![engine(inst)], &watchdog()).unwrap()))
        .collect();
    load.join(&watchdog()).unwrap();
    eventually("everything is applied", || reached(&path, ROUNDS));
    let changes = path.recorder.changes();
    for (inst, point) in points {
        for vb in (0..VBUCKETS).map(VbId) {
            // A vbucket that is not named had no stream yet.
            let unseen = point.iter().find(|(named, _)| *named == vb).map_or(0, |(_, unseen)| unseen.0);
            let of_vb = changes.iter().filter(|change| change.0 == InstId(inst) && change.1 == vb);
            let seen: Vec<u64> = of_vb.map(|change| change.2.0).collect();
            assert_eq!(seen, (unseen + 1..=ROUNDS).collect::<Vec<_>>(), "instance {inst}, vbucket {vb}");
        }
    }
    close(&mut path);
}

#[test]
fn batches_of_another_generation_are_dropped_and_counted() {
    let mut path = Path::begun(125);
    let old = crate::support::endpoint::Events::of(path.generation - 1).put(0, 1, "old", r#"{"a":1}"#);
    path.send(old);
    path.send(path.events().put(0, 1, "new", r#"{"a":1}"#));
    eventually("the new one is applied", || path.recorder.reached(0) == 1);
    let ids: Vec<String> = path.recorder.changes().into_iter().map(|change| change.3).collect();
    assert_eq!(ids, ["new"]);
    assert_eq!(path.kvdata.stats().foreign(), 1);
    close(&mut path);
}

#[test]
fn events_without_a_stream_are_dropped_and_counted() {
    let mut path = Path::start(126);
    path.send(path.events().put(0, 1, "d", r#"{"a":1}"#).put(99, 1, "d", "{}"));
    eventually("they are counted", || {
        path.kvdata.worker_stats().without_stream() == 1 && path.kvdata.stats().foreign() == 1
    });
    assert!(path.recorder.changes().is_empty());
    close(&mut path);
}

/// Hangs until it is released.
struct Hanging {
    entered: Sender<()>,
    released: Fin,
}

impl Evaluator for Hanging {
    fn keys(&self, _: &str, _: &Document<'_>, _: &mut KeyList) -> anyhow::Result<()> {
        let _ = self.entered.try_send(());
        self.released.wait(&forever())?;
        Ok(())
    }
}

fn hanging(path: &Path) -> FinHolder {
    let (entered, has_entered) = bounded(1);
    let (release, released) = fin();
    path.kvdata.add_engines(vec![engine_of(1, Hanging { entered, released })], &watchdog()).unwrap();
    path.send(path.events().put(0, 1, "d", "{}"));
    recv(&has_entered, &watchdog()).unwrap();
    release
}

#[test]
fn a_close_that_hangs_names_the_thread_and_succeeds_once_it_is_released() {
    let mut path = Path::begun(127);
    let release = hanging(&path);
    let mut threads = Vec::new();
    eventually("the other worker ends", || {
        threads = path.kvdata.close(&Until::within(Duration::from_millis(20))).unwrap_err().threads;
        !threads.contains(&"vbd-127-1".to_owned())
    });
    assert!(threads.contains(&"vbd-127-0".to_owned()), "{threads:?}");
    drop(release);
    close(&mut path);
    eventually("no thread is left", || path.threads().is_empty());
}

#[test]
fn control_does_not_wait_for_data() {
    let mut path = Path::begun(128);
    let release = hanging(&path);
    let hung = path.kvdata.add_engines(vec![engine(2)], &Until::within(Duration::from_millis(20)));
    assert!(matches!(hung, Err(RequestError::Stopped(_))), "{hung:?}");
    path.kvdata.update_ts(dormouse::timestamp::TsVbuuid::default(), &watchdog()).unwrap();
    eventually("requests that pile up are refused", || {
        let until = Until::within(Duration::from_millis(1));
        path.kvdata.add_engines(vec![engine(2)], &until) == Err(RequestError::Busy)
    });
    drop(release);
    eventually("it serves again", || path.kvdata.add_engines(vec![engine(2)], &watchdog()).is_ok());
    close(&mut path);
}

#[test]
fn a_request_is_refused_while_a_close_hangs() {
    let mut path = Path::begun(129);
    let release = hanging(&path);
    assert!(path.kvdata.close(&Until::within(Duration::from_millis(5))).is_err());
    assert_eq!(path.kvdata.add_engines(vec![engine(2)], &watchdog()), Err(RequestError::Closed));
    drop(release);
    close(&mut path);
}

#[test]
fn what_is_made_of_events_for_locked_shards_stays_within_its_bound() {
    const BATCHES: u64 = 300;
    const BOUND_BYTES: usize = 64 * 1024;
    let mut path = Path::start(134);
    path.kvdata.add_engines(vec![engine_of(1, Prolific::new())], &watchdog()).unwrap();
    let tuning = Tuning { lane_bytes_max: BOUND_BYTES, ..Tuning::default() };
    path.kvdata.reset_config(tuning, &watchdog()).unwrap();
    path.send((0..VBUCKETS).fold(path.events(), Events::begin));
    (0..SHARDS).for_each(|shard| path.recorder.lock(shard));
    let stats = path.kvdata.worker_stats();
    let peak = std::thread::scope(|scope| {
        let sends = scope.spawn(|| send_changes(&path, 1, BATCHES));
        eventually("it holds the source up", || path.upstream.as_ref().unwrap().is_full());
        // Until it stays as it is. Control goes on meanwhile.
        let (_holder, never) = fin();
        let (mut last, mut peak, mut unchanged) = (0, 0, 0);
        while unchanged < 30 {
            let _ = never.wait(&Until::within(Duration::from_millis(1)));
            path.kvdata.update_ts(TsVbuuid::default(), &watchdog()).unwrap();
            peak = peak.max(stats.waiting_bytes());
            unchanged = if stats.documents() == last { unchanged + 1 } else { 0 };
            last = stats.documents();
        }
        assert!(!sends.is_finished(), "all batches were taken, and {peak} bytes wait");
        (0..SHARDS).for_each(|shard| path.recorder.unlock(shard));
        sends.join().unwrap();
        peak
    });
    eventually("everything is applied", || reached(&path, BATCHES));
    // Two workers, and a batch of each lane that was evaluated before they saw that the bound is reached.
    let most = 2 * BOUND_BYTES + usize::from(SHARDS) * path.recorder.heaviest_bytes();
    assert!((1..=most as u64).contains(&peak), "{peak} bytes wait, at most {most} may");
    assert_eq!(stats.waiting_bytes(), 0);
    assert_eq!(stats.entries(), BATCHES * u64::from(VBUCKETS) * 50);
    close(&mut path);
}

#[test]
fn what_is_made_of_few_events_is_applied_in_pieces() {
    const DOCUMENTS: u64 = 16;
    let (elements, long): (Vec<u32>, String) = ((0..1000).collect(), "x".repeat(3900));
    let document = serde_json::json!({ "t": elements, "d": long }).to_string();
    let mut path = Path::start(177);
    let index = IndexDefinition::parse("i=t[],d").unwrap();
    path.kvdata.add_engines(vec![engine_of(1, index)], &watchdog()).unwrap();
    // 4 MB of keys each, and all for one shard.
    let events = (1..=DOCUMENTS)
        .fold(path.events().begin(0), |events, seqno| events.put(0, seqno, &format!("d{seqno}"), &document));
    path.send(events);
    eventually("everything is applied", || path.recorder.reached(0) == DOCUMENTS);
    assert!(path.recorder.heaviest_bytes() < 20 << 20, "{}", path.recorder.heaviest_bytes());
    let changes = path.recorder.changes();
    assert_eq!(changes.len() as u64, DOCUMENTS);
    assert!(changes.iter().all(|(_, _, _, _, keys)| *keys == 1000));
    close(&mut path);
}

#[test]
fn what_waits_for_a_locked_shard_stays_within_the_budget_and_control_goes_on() {
    const LIMIT_BYTES: usize = 64 * 1024;
    let path = Path::begun(131);
    (0..4).for_each(|shard| path.recorder.lock(shard));
    let budget = ByteBudget::new(LIMIT_BYTES);
    let (source_fin, stopped) = fin();
    let (charged, upstream, generation) = (budget.clone(), path.upstream.clone().unwrap(), path.generation);
    let source = spawn("source", move || {
        let mut sent = 0;
        loop {
            let events =
                Events::of(generation).put(0, sent + 1, "d", &format!(r#"{{"a":"{}"}}"#, "x".repeat(500)));
            let mut batch = events.build();
            let Some(charge) = charged.charge(batch.weight_bytes(), &stopped) else { return sent };
            batch.charge = Some(charge);
            if dormouse::thread::send(&upstream, batch, &stopped).is_err() {
                return sent;
            }
            sent += 1;
        }
    })
    .unwrap();
    eventually("the budget is used up", || budget.used_bytes() > LIMIT_BYTES - 4096);
    for _ in 0..100 {
        path.kvdata.update_ts(TsVbuuid::default(), &watchdog()).unwrap();
        assert!(budget.used_bytes() <= LIMIT_BYTES);
    }
    drop(source_fin);
    let sent = source.join(&watchdog()).unwrap();
    (0..4).for_each(|shard| path.recorder.unlock(shard));
    eventually("all is applied", || path.recorder.reached(0) == sent);
    eventually("all is given back", || budget.used_bytes() == 0);
    path.kvdata.close(&watchdog()).unwrap();
}
