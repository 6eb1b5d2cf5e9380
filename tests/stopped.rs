//! What ended a call is told alike, whatever the call was.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use dormouse::bucket::{
    CancelError, IntakeError, PauseError, PauseOptions, ResumeError, ResumeOptions, TaskId,
};
use dormouse::event::{Seqno, VbId};
use dormouse::index::ScanQuery;
use dormouse::objstore::{Operation, StoreError};
use dormouse::pause::{Manifest, ManifestError, PruneOptions, list_pauses, prune, verify};
use dormouse::shard::StoreKind;
use dormouse::thread::{Cancel, Failure, FailureKind, Stopped, Until};
use tempfile::TempDir;

use crate::support::buckets::{World, by_n, fed, ingest, lines, named, options, pause};
use crate::support::consumer::{Consumer, follow};
use crate::support::producer::Producer;
use crate::support::{forever, part};

/// Limits that have ended, and how they have.
fn ended() -> [(Until, Stopped); 2] {
    let cancel = Cancel::new();
    cancel.cancel();
    let (cancelled, passed) = (Until::new(None, cancel), Until::within(Duration::ZERO));
    [(cancelled, Stopped::Cancelled), (passed, Stopped::DeadlinePassed)]
}

type Failed = (&'static str, Box<dyn Failure>);

fn failed<T, E: Failure + 'static>(call: &'static str, outcome: Result<T, E>) -> Failed {
    (call, Box::new(outcome.err().unwrap_or_else(|| panic!("{call} did not fail"))))
}

#[test]
fn every_call_tells_how_its_limit_ended() {
    let world = World::new();
    let (bucket, asleep) = (world.bucket("b"), world.bucket("asleep"));
    ingest(&bucket, lines(0..10)).unwrap();
    ingest(&asleep, lines(0..10)).unwrap();
    pause(&asleep, &world.store, true).unwrap();
    let paused = list_pauses(&world.store, &part("asleep"), &forever()).unwrap()[0];
    let manifest = Manifest::read(&world.store, &part("asleep"), paused, &forever()).unwrap();
    let later = ScanQuery { at_least: vec![(VbId(0), Seqno(1 << 40))], ..ScanQuery::default() };
    let (day, now) = (Duration::from_secs(24 * 3600), SystemTime::now());
    let prune_options = PruneOptions { keep: None, grace: day, now, dry_run: true };
    for (until, why) in ended() {
        let (name, nothing) = (by_n().name().clone(), &mut |_| {});
        let (_sender, endless) = fed();
        let ingested = bucket.ingest(vec![endless], &options(), &until, &mut |_| {});
        let paused = bucket.pause(&world.store, PauseOptions::default(), &until, &mut |_| {});
        let (none, config) = (ResumeOptions::default(), &world.config);
        let resumed = world.data.resume(&named("asleep"), &world.store, none, config, &until, nothing);
        let calls = [
            failed("ingest", ingested),
            failed("pause", paused),
            failed("resume", resumed),
            failed("query", bucket.query(&name, &later, &until)),
            failed("tasks", world.data.wait_for_tasks(world.data.tasks().revision, &until)),
            failed("verify", verify(&manifest, &world.store, &until)),
            failed("prune", prune(&world.store, &part("asleep"), &prune_options, &until)),
        ];
        for (call, error) in calls {
            assert_eq!(error.kind(), FailureKind::Stopped(why), "{call}: {error}");
            assert_eq!((error.stopped(), error.is_temporary()), (Some(why), false), "{call}");
        }
    }
}

#[test]
fn following_tells_how_its_limit_ended() {
    let (folder, producer) = (TempDir::new().unwrap(), Producer::start(8));
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    for (until, why) in ended() {
        let error = consumer.bucket.follow(&follow(&producer, false), &until, &mut |_| {}).err().unwrap();
        assert_eq!(error.stopped(), Some(why), "{error}");
    }
    let until = Until::new(Some(Instant::now() + Duration::from_millis(300)), Cancel::new());
    let error = consumer.bucket.follow(&follow(&producer, false), &until, &mut |_| {}).err().unwrap();
    assert_eq!(error.stopped(), Some(Stopped::DeadlinePassed), "{error}");
    producer.check();
}

#[test]
fn what_may_pass_is_told_from_what_has_to_be_mended() {
    let of_store = |kind: io::ErrorKind| {
        ManifestError::Store(StoreError::new(Operation::Get, None, "memory:", io::Error::from(kind)))
    };
    let bucket = named("b");
    let temporary: [Box<dyn Failure>; 3] = [
        Box::new(PauseError::Probe { bucket: bucket.clone(), error: of_store(io::ErrorKind::TimedOut) }),
        Box::new(ResumeError::Manifest { bucket: bucket.clone(), error: of_store(io::ErrorKind::TimedOut) }),
        Box::new(IntakeError::Busy { doing: "ingest into", bucket: bucket.clone() }),
    ];
    let lasting: [Box<dyn Failure>; 3] = [
        Box::new(PauseError::Probe {
            bucket: bucket.clone(),
            error: of_store(io::ErrorKind::PermissionDenied),
        }),
        Box::new(ResumeError::Online { bucket }),
        Box::new(CancelError::Missing { task: TaskId(7) }),
    ];
    for (errors, is_temporary) in [(temporary, true), (lasting, false)] {
        for error in errors {
            assert_eq!((error.stopped(), error.is_temporary()), (None, is_temporary), "{error}");
        }
    }
}
