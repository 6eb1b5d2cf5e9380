//! The lock of a shard: nothing changes on disk while it is held, and it is given back in every case.

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam::channel::bounded;
use dormouse::shard::{
    ApplyError, CommitError, InstId, InstanceError, InstanceStart, Later, LockError, Refused, Shard,
    ShardLock, ShardSetConfig, StoreKind, lock_all,
};
use dormouse::thread::{Fin, Thread, fin, spawn};

use crate::support::shards::{
    apply, batch, close, create, entries, for_each_store, manual, open, refusal, restore, specs,
};
use crate::support::{cancelled, tree, watchdog};

for_each_store! {
    nothing_on_disk_changes_under_a_lock_while_scans_begin_and_end,
    locks_writes_scans_and_indexes_meet_on_many_threads,
    a_batch_comes_back_from_a_locked_shard_with_a_signal_for_the_unlock,
    what_was_applied_before_a_lock_is_durable_and_readable_under_it,
    instances_stay_as_they_are_under_a_lock,
    a_second_lock_is_refused_and_names_the_first_one_s_owner,
    a_lock_that_is_given_up_leaves_nothing_locked,
    all_shards_are_locked_or_none,
    a_guard_that_is_dropped_while_unwinding_unlocks,
    a_guard_may_be_dropped_on_another_thread,
    a_sealed_shard_is_read_and_never_written_again,
    a_shard_that_is_opened_sealed_takes_no_writes,
    a_lock_waits_for_the_write_in_flight_and_cuts_between_batches,
}

fn lock(shard: &Shard, owner: &str) -> ShardLock {
    shard.lock(owner, &watchdog()).unwrap()
}

fn is_locked(shard: &Shard) -> bool {
    shard.status().locked_by.is_some()
}

/// The signal of a batch that came back from a locked shard.
fn sent_back(shard: &Shard, from: u64) -> (Fin, String) {
    match shard.try_apply(batch(0, from, &[("later", &["k"])])) {
        Err(Refused::Later { batch, why: Later::Locked { owner }, ready }) => {
            assert_eq!(batch.changes().count(), 2, "it comes back whole");
            (ready, owner)
        }
        other => panic!("{other:?}"),
    }
}

fn a_batch_comes_back_from_a_locked_shard_with_a_signal_for_the_unlock(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let guard = lock(shard, "the test");
    let (ready, owner) = sent_back(shard, 0);
    assert_eq!(owner, "the test");
    assert!(!ready.is_given());
    drop(guard);
    assert!(ready.is_given());
    apply(shard, batch(0, 0, &[("later", &["k"])]));
}

fn what_was_applied_before_a_lock_is_durable_and_readable_under_it(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    let guard = lock(shard, "test");
    assert_eq!(shard.status().uncommitted_bytes, 0);
    assert_eq!(entries(shard, 1), ["kd"]);
    // The files that the lock names are a shard by themselves.
    let copy = tempfile::tempdir().unwrap();
    restore(guard.files(), copy.path());
    let restored = open(kind, copy.path(), 1, &manual());
    assert_eq!(entries(&restored.shards()[0], 1), ["kd"]);
    close(restored);
}

fn instances_stay_as_they_are_under_a_lock(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let guard = lock(shard, "pause 7");
    for refused in [shard.create_instance(InstId(3), InstanceStart::Zero), shard.drop_instance(InstId(1))] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, InstanceError::Locked { owner, .. } if owner == "pause 7"), "{error}");
    }
    drop(guard);
    assert_eq!(shard.instances(), [InstId(1), InstId(2)]);
}

fn a_second_lock_is_refused_and_names_the_first_one_s_owner(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let guard = lock(shard, "first");
    let error = shard.lock("second", &watchdog()).err().unwrap();
    assert!(
        matches!(&error, LockError::Held { owner, wanted_by, .. } if owner == "first" && wanted_by == "second")
    );
    assert!(error.to_string().contains("first has held it for "), "{error}");
    drop(guard);
    drop(lock(shard, "second"));
}

fn a_lock_that_is_given_up_leaves_nothing_locked(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let _ = shard.lock("test", &cancelled());
    assert!(!is_locked(shard));
    apply(shard, batch(0, 0, &[("d", &["k"])]));
}

fn all_shards_are_locked_or_none(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 4, &manual());
    let held = lock(&set.shards()[2], "somebody");
    let mut shards = set.shards().to_vec();
    shards.reverse();
    let error = lock_all(&shards, "test", &watchdog()).err().unwrap();
    assert!(matches!(error, LockError::Held { .. }), "{error}");
    let locked: Vec<bool> = set.shards().iter().map(is_locked).collect();
    assert_eq!(locked, [false, false, true, false]);
    drop(held);
    let guards = lock_all(&shards, "test", &watchdog()).unwrap();
    let ids: Vec<u16> = guards.iter().map(|guard| guard.shard().id().0).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
}

fn a_guard_that_is_dropped_while_unwinding_unlocks(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let guard = lock(shard, "test");
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _guard = guard;
        panic!("on purpose");
    }));
    assert!(unwound.is_err() && !is_locked(shard));
}

fn a_guard_may_be_dropped_on_another_thread(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let guard = lock(shard, "test");
    spawn("t-guard", move || drop(guard)).unwrap().join(&watchdog()).unwrap();
    assert!(!is_locked(shard));
}

fn a_sealed_shard_is_read_and_never_written_again(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    let mut guard = lock(shard, "test");
    let (ready, _) = sent_back(shard, 1);
    guard.seal_on_drop("pause 7");
    drop(guard);
    assert!(ready.is_given(), "who waits for the unlock is told of the seal");
    let before = tree(dir.path());
    let error = refusal(shard, batch(0, 1, &[("e", &["k"])]));
    assert!(matches!(&error, ApplyError::Sealed { by, .. } if by == "pause 7"), "{error}");
    assert!(shard.create_instance(InstId(3), InstanceStart::Zero).is_err());
    assert!(shard.drop_instance(InstId(1)).is_err());
    assert!(matches!(shard.lock("again", &watchdog()), Err(LockError::Sealed { .. })));
    assert!(!shard.commit(&watchdog()).unwrap());
    assert_eq!(entries(shard, 1), ["kd"]);
    assert!(tree(dir.path()) == before, "a sealed shard changed on disk");
}

fn a_shard_that_is_opened_sealed_takes_no_writes(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    close(create(kind, dir.path(), 1, &manual()));
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let set =
        dormouse::shard::ShardSet::open(dir.path(), specs(kind, 1), &manual(), Some("pause 9"), &logger)
            .unwrap();
    let error = refusal(&set.shards()[0], batch(0, 0, &[("d", &["k"])]));
    assert!(matches!(&error, ApplyError::Sealed { by, .. } if by == "pause 9"), "{error}");
    close(set);
}

fn a_lock_waits_for_the_write_in_flight_and_cuts_between_batches(kind: StoreKind) {
    const BATCH: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let (stop, stopped) = fin();
    let (wrote, has_written) = bounded(1);
    let writer = {
        let shard = shard.clone();
        spawn("t-writer", move || {
            let mut seqno = 0;
            while !stopped.is_given() {
                let ids: Vec<String> = (0..BATCH as u64).map(|n| format!("d{:08}", seqno + n)).collect();
                let documents: Vec<(&str, &[&str])> =
                    ids.iter().map(|id| (id.as_str(), &["k"][..])).collect();
                match shard.try_apply(batch(0, seqno, &documents)) {
                    Ok(_) => seqno += BATCH as u64,
                    Err(Refused::Later { ready, .. }) => ready.wait(&watchdog()).unwrap(),
                    Err(Refused::Never(error)) => panic!("{error}"),
                }
                let _ = wrote.try_send(());
            }
            seqno
        })
        .unwrap()
    };
    for _ in 0..5 {
        dormouse::thread::recv(&has_written, &watchdog()).unwrap();
        let guard = lock(shard, "test");
        let held = entries(shard, 1).len();
        assert_eq!(held % BATCH, 0, "a batch was cut in two");
        assert_eq!(shard.status().uncommitted_bytes, 0, "something was written behind the commit");
        assert_eq!(entries(shard, 1).len(), held);
        drop(guard);
    }
    drop(stop);
    let wrote = writer.join(&watchdog()).unwrap();
    assert_eq!(entries(shard, 1).len() as u64, wrote);
}

/// Scans of an unlocked shard, whose ends may remove files.
fn scans(shard: &Shard) -> Vec<dormouse::shard::ShardScan> {
    let all = (Bound::Unbounded, Bound::Unbounded);
    (0..3).map(|_| shard.snapshot(&watchdog()).unwrap().scan(InstId(1), &all)).collect()
}

fn nothing_on_disk_changes_under_a_lock_while_scans_begin_and_end(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let mut open_scans = Vec::new();
    for seqno in 0..12 {
        apply(shard, batch(0, seqno, &[(&format!("d{:02}", seqno % 5), &[&format!("k{seqno:02}")])]));
        open_scans.extend(scans(shard));
        shard.commit(&watchdog()).unwrap();
    }
    let guard = lock(shard, "test");
    let before = tree(dir.path());
    open_scans.extend(scans(shard));
    for scan in open_scans {
        assert!(scan.map(Result::unwrap).count() <= 5);
    }
    assert_eq!(entries(shard, 1).len(), 5);
    assert!(!shard.commit(&watchdog()).unwrap());
    assert!(tree(dir.path()) == before, "the disk changed under the lock");
    drop(guard);
    apply(shard, batch(0, 12, &[("last", &["k"])]));
    shard.commit(&watchdog()).unwrap();
}

/// What one thread does, over and over, until it is stopped.
fn over_and_over(name: &str, stopped: &Fin, mut step: impl FnMut(u64) + Send + 'static) -> Thread<()> {
    let stopped = stopped.clone();
    spawn(name, move || {
        let mut steps = 0;
        // At least once, however late the thread gets to run.
        loop {
            step(steps);
            steps += 1;
            if stopped.is_given() {
                return;
            }
        }
    })
    .unwrap()
}

fn locks_writes_scans_and_indexes_meet_on_many_threads(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 2, &ShardSetConfig { points_kept: 1, ..manual() });
    let (stop, stopped) = fin();
    let mut threads = Vec::new();
    for shard in set.shards() {
        let (vb, writer) = (shard.id().0, shard.clone());
        let mut seqno = 0;
        threads.push(over_and_over("t-write", &stopped, move |_| {
            let ids: Vec<String> = (0..10).map(|n| format!("d{:02}", (seqno + n) % 40)).collect();
            let documents: Vec<(&str, &[&str])> = ids.iter().map(|id| (id.as_str(), &["k"][..])).collect();
            match writer.try_apply(batch(vb, seqno, &documents)) {
                Ok(_) => seqno += 10,
                Err(Refused::Later { ready, .. }) => ready.wait(&watchdog()).unwrap(),
                Err(Refused::Never(error)) => panic!("{error}"),
            }
        }));
        let reader = shard.clone();
        threads.push(over_and_over("t-scan", &stopped, move |_| {
            let held = entries(&reader, 1).len();
            assert!(held.is_multiple_of(10) && held <= 40, "a batch was cut in two: {held}");
        }));
        let indexer = shard.clone();
        threads.push(over_and_over("t-index", &stopped, move |step| {
            let inst = InstId(u32::try_from(step).unwrap() + 10);
            for outcome in
                [indexer.create_instance(inst, InstanceStart::AtShard), indexer.drop_instance(inst)]
            {
                assert!(matches!(outcome, Ok(()) | Err(InstanceError::Locked { .. })), "{outcome:?}");
            }
        }));
        let keeper = shard.clone();
        threads.push(over_and_over("t-keep", &stopped, move |_| match keeper.pin(&watchdog()) {
            Ok(pinned) => assert!(pinned.files().iter().all(|file| file.path.exists())),
            Err(CommitError::Locked { .. }) => {}
            Err(error) => panic!("{error}"),
        }));
    }
    for _ in 0..15 {
        let guards = lock_all(set.shards(), "test", &watchdog()).unwrap();
        let before = tree(dir.path());
        let held = entries(&set.shards()[0], 1);
        assert!(tree(dir.path()) == before, "the disk changed under the lock");
        assert_eq!(entries(&set.shards()[0], 1), held);
        drop(guards);
    }
    drop(stop);
    for thread in threads {
        thread.join(&watchdog()).unwrap();
    }
    set.shards().iter().for_each(|shard| shard.check(&watchdog()).unwrap());
}
