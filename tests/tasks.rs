//! The list of what is under way: one entry a bucket, which keeps work apart, tells of it, and cancels it.

use std::time::Duration;

use crossbeam::channel::bounded;
use dormouse::bucket::{
    CancelError, IndexError, PauseError, PauseOptions, TaskId, TaskKind, TaskState, WaitError,
};
use dormouse::index::IndexDefinition;
use dormouse::shard::StoreKind;
use dormouse::thread::{Stopped, Until, recv};

use crate::support::buckets::{World, close, ids, ingest, is_locked, lines, pause, scan};
use crate::support::shards::for_each_store;
use crate::support::{cancelled, watchdog};

for_each_store! {
    who_comes_second_is_refused_and_leaves_nothing_behind,
}

#[test]
fn a_task_is_listed_while_it_runs_and_after_it_ended() {
    let world = World::new();
    assert!(world.data.tasks().tasks.is_empty());
    let bucket = world.filled("b", 0..30);
    let mut seen = Vec::new();
    let paused = bucket.pause(&world.store, PauseOptions::default(), &watchdog(), &mut |_| {
        seen.push(world.data.tasks().tasks.remove(0));
    });
    paused.unwrap();
    assert!(!seen.is_empty());
    for status in &seen {
        assert_eq!((status.kind, status.state), (TaskKind::Pause, TaskState::Running));
        assert!((0.0..1.0).contains(&status.progress) && status.error.is_none());
    }
    assert!(seen.is_sorted_by(|a, b| a.progress <= b.progress), "progress fell");
    let ended = world.data.tasks().tasks.remove(0);
    assert_eq!((ended.task, ended.state), (seen[0].task, TaskState::Done));
    assert!((ended.progress - 1.0).abs() < f64::EPSILON);
}

#[test]
fn a_task_that_failed_says_why_and_is_not_done() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    let error = bucket.pause(&world.store, PauseOptions::default(), &cancelled(), &mut |_| {}).unwrap_err();
    let ended = world.data.tasks().tasks.remove(0);
    assert_eq!((ended.state, ended.error), (TaskState::Failed, Some(error.to_string())));
    assert!(ended.progress < 1.0);
}

#[test]
fn a_task_whose_caller_panics_has_failed() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ =
            bucket.pause(&world.store, PauseOptions::default(), &watchdog(), &mut |_| panic!("on purpose"));
    }));
    assert!(unwound.is_err());
    assert_eq!(world.data.tasks().tasks[0].state, TaskState::Failed);
    pause(&bucket, &world.store, false).unwrap();
}

#[test]
fn a_revision_is_waited_on_until_something_changes_or_the_limit_ends() {
    let world = World::new();
    let bucket = world.bucket("b");
    let before = world.data.tasks().revision;
    let soon = Until::within(Duration::from_millis(5));
    assert_eq!(world.data.wait_for_tasks(before, &soon), Err(WaitError::Stopped(Stopped::DeadlinePassed)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| world.data.wait_for_tasks(before, &watchdog()).unwrap());
        let _ = pause(&bucket, &world.store, false);
        assert!(waiting.join().unwrap().revision > before);
    });
    assert!(world.data.wait_for_tasks(0, &cancelled()).is_ok(), "an old revision is answered at once");
}

fn who_comes_second_is_refused_and_leaves_nothing_behind(kind: StoreKind) {
    let world = World::of(kind);
    let bucket = world.filled("b", 0..30);
    let second = IndexDefinition::parse("second=n").unwrap();
    let mut refused = 0;
    let paused = bucket.pause(&world.store, PauseOptions::default(), &watchdog(), &mut |_| {
        let (meta, tasks) = (bucket.describe(), world.data.tasks());
        assert!(matches!(pause(&bucket, &world.store, true), Err(PauseError::Busy { .. })));
        assert!(matches!(bucket.ensure_index(&second, true), Err(IndexError::Task { .. })));
        assert!(matches!(
            bucket.drop_index(&"by_n".parse().unwrap(), &watchdog()),
            Err(IndexError::Task { .. })
        ));
        let resumed = world.resume("b", &watchdog()).unwrap_err().to_string();
        assert!(resumed.contains("a pause is under way (task "), "{resumed}");
        assert!(world.data.drop_bucket(&"b".parse().unwrap()).is_err());
        assert_eq!((bucket.describe(), world.data.tasks()), (meta, tasks));
        refused += 1;
    });
    paused.unwrap();
    assert!(refused > 0);
}

#[test]
fn a_pause_is_cancelled_by_its_task_and_leaves_every_lock_free() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    let mut task = None;
    let paused = bucket.pause(&world.store, PauseOptions::default(), &watchdog(), &mut |_| {
        let running = world.data.tasks().tasks[0].task;
        // Whoever cancels waits for the end, which cannot come while this callback waits for it.
        let not_over = world.data.cancel_task(running, &cancelled());
        assert!(matches!(not_over, Err(CancelError::Stopped { .. })), "{not_over:?}");
        task = Some(running);
    });
    assert!(paused.unwrap_err().to_string().contains("cancelled"));
    let status = world.data.cancel_task(task.unwrap(), &watchdog()).unwrap();
    assert_eq!((status.kind, status.state), (TaskKind::Pause, TaskState::Failed));
    assert!(!is_locked(&bucket));
    ingest(&bucket, lines(30..60)).unwrap();
    assert_eq!(scan(&bucket), ids(0..60));
    pause(&bucket, &world.store, false).unwrap();
    close(bucket);
}

#[test]
fn whoever_cancels_a_task_waits_until_it_has_cleaned_up() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    std::thread::scope(|scope| {
        let (sender, told) = bounded(1);
        let (data, bucket) = (&world.data, &bucket);
        let canceller = scope.spawn(move || {
            let task = recv(&told, &watchdog()).unwrap();
            let status = data.cancel_task(task, &watchdog()).unwrap();
            (status, is_locked(bucket), bucket.describe().state)
        });
        let mut calls = 0;
        let _ = bucket.pause(&world.store, PauseOptions::default(), &watchdog(), &mut |_| {
            calls += 1;
            let _ = sender.try_send(data.tasks().tasks[0].task);
        });
        assert!(calls > 0);
        let (status, was_locked, state) = canceller.join().unwrap();
        assert!(!was_locked && state.is_lasting() && status.state != TaskState::Running);
    });
}

#[test]
fn a_task_that_ended_is_cancelled_to_no_effect_and_an_unknown_one_is_told() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    pause(&bucket, &world.store, false).unwrap();
    let ended = world.data.tasks().tasks.remove(0);
    assert_eq!(world.data.cancel_task(ended.task, &watchdog()), Ok(ended));
    let unknown = world.data.cancel_task(TaskId(99), &watchdog());
    assert_eq!(unknown, Err(CancelError::Missing { task: TaskId(99) }));
}

#[test]
fn a_callers_token_is_not_given_by_the_cancel_of_a_task() {
    let world = World::new();
    let bucket = world.filled("b", 0..30);
    let until = watchdog();
    let mut task = None;
    let _ = bucket.pause(&world.store, PauseOptions::default(), &until, &mut |_| {
        task = Some(world.data.tasks().tasks[0].task);
        let _ = world.data.cancel_task(task.unwrap(), &cancelled());
    });
    assert!(task.is_some() && until.check().is_ok());
}
