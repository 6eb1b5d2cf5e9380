//! Recovery points: kept, gone back to, pinned; and damage, which is found.

use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use dormouse::event::{Generation, Seqno, VbId};
use dormouse::shard::batch::Window;
use dormouse::shard::store::PointId;
use dormouse::shard::{
    ApplyError, CommitError, InstId, InstanceStart, RollBackError, Shard, ShardSet, ShardSetConfig, StoreKind,
};
use dormouse::timestamp::Position;

use crate::support::shards::{
    apply, batch, batch_for, close, create, entries, flip, for_each_store, manual, open, refusal, restore,
    try_open,
};
use crate::support::{cancelled, eventually, tree, watchdog};

for_each_store! {
    a_kept_point_has_its_positions_and_outlives_a_reopening,
    recovery_points_without_number_are_made_while_merges_are_held,
    recovery_points_that_are_due_go_on_after_merges_were_held,
    a_roll_back_takes_entries_and_positions_back_and_is_durable,
    a_document_that_a_roll_back_brings_back_loses_its_entry_when_it_changes,
    a_roll_back_to_zero_leaves_the_indexes_empty_and_ready_to_be_filled,
    a_roll_back_keeps_the_indexes_that_are_there_now,
    a_scan_that_is_open_keeps_what_it_had_over_a_roll_back,
    what_is_still_on_its_way_after_a_roll_back_is_stale,
    a_locked_or_sealed_shard_is_not_rolled_back,
    a_point_that_is_not_kept_is_not_gone_back_to,
    a_roll_back_that_breaks_off_leaves_no_point_of_a_time_that_was_given_up,
    the_oldest_points_go_where_there_are_too_many,
    points_are_kept_by_themselves_at_intervals,
    no_point_is_kept_while_changes_stand_behind_their_position,
    a_window_whose_end_is_never_told_is_no_hindrance_after_a_restart,
    pinned_files_are_a_shard_whatever_happens_to_theirs,
    a_locked_shard_pins_and_keeps_nothing,
    a_first_snapshot_that_begins_again_replaces_what_it_brought_before,
    a_check_of_a_whole_shard_finds_nothing_and_can_be_cancelled,
    a_byte_that_changed_in_a_file_is_found_or_harms_nothing,
    a_file_that_was_cut_short_is_found,
    a_shard_without_one_of_its_files_is_not_opened,
}

fn only(set: &ShardSet) -> &Shard {
    &set.shards()[0]
}

fn keep(shard: &Shard) -> PointId {
    shard.keep_point(&watchdog()).unwrap().unwrap()
}

fn roll_back(shard: &Shard, to: Option<PointId>, generation: u64) {
    shard.roll_back(to, Generation(generation), &watchdog()).unwrap();
}

fn reached(shard: &Shard, inst: u32) -> u64 {
    shard.positions(InstId(inst)).unwrap().get(VbId(0)).unwrap_or_default().seqno.0
}

/// Of another generation than the first.
fn later(
    generation: u64,
    mut batch: Box<dormouse::shard::batch::WriteBatch>,
) -> Box<dormouse::shard::batch::WriteBatch> {
    batch.generation = Generation(generation);
    batch
}

/// More of them than the files of a store may be able to count. Each lock makes one too.
fn recovery_points_without_number_are_made_while_merges_are_held(store: StoreKind) {
    const POINTS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let set = create(store, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let hold = shard.hold_merges(&watchdog()).unwrap();
    for point in 0..POINTS {
        apply(shard, batch(0, point, &[(&format!("d{point:03}"), &["k"])]));
        if point % 2 == 0 {
            assert!(shard.commit(&watchdog()).unwrap());
        } else {
            drop(shard.lock("test", &watchdog()).unwrap());
        }
    }
    let copy = tempfile::tempdir().unwrap();
    restore(shard.lock("test", &watchdog()).unwrap().files(), copy.path());
    drop(hold);
    let copied = open(store, copy.path(), 1, &manual());
    let all: Vec<String> = (0..POINTS).map(|point| format!("kd{point:03}")).collect();
    assert_eq!(entries(&copied.shards()[0], 1), all);
    close(copied);
    close(set);
}

/// As many add up that those after them wait for the merges.
fn recovery_points_that_are_due_go_on_after_merges_were_held(kind: StoreKind) {
    const HELD: u64 = 50;
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &ShardSetConfig { commit_bytes: 1, ..manual() });
    let (shard, mut seqno) = (only(&set), 0);
    let mut write = |changes: u64| {
        for _ in 0..changes {
            apply(shard, batch(0, seqno, &[(&format!("d{seqno}"), &["k"])]));
            seqno += 1;
            eventually("it is durable", || shard.status().uncommitted_bytes == 0);
        }
    };
    for _ in 0..2 {
        let hold = shard.hold_merges(&watchdog()).unwrap();
        write(HELD);
        drop(hold);
        write(HELD / 10);
        drop(shard.lock("test", &watchdog()).unwrap());
        write(HELD / 10);
    }
    close(set);
}

fn a_kept_point_has_its_positions_and_outlives_a_reopening(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(only(&set), batch(0, 0, &[("d", &["k"])]));
    let point = keep(only(&set));
    apply(only(&set), batch(0, 1, &[("e", &["k"])]));
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    let points = only(&set).points(&watchdog()).unwrap();
    assert_eq!(points.len(), 1);
    assert_eq!(points[0].id, point);
    let reached: Vec<_> =
        points[0].positions.iter().map(|(inst, p)| (inst.0, p[0].0, p[0].1.seqno)).collect();
    assert_eq!(reached, [(1, VbId(0), Seqno(1)), (2, VbId(0), Seqno(1))]);
    assert!(keep(only(&set)) > point, "numbers go on");
}

fn a_roll_back_takes_entries_and_positions_back_and_is_durable(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(only(&set), batch(0, 0, &[("d", &["old"]), ("gone", &["k"])]));
    let point = keep(only(&set));
    apply(only(&set), batch(0, 2, &[("d", &["new"]), ("gone", &[]), ("more", &["k"])]));
    only(&set).commit(&watchdog()).unwrap();
    apply(only(&set), batch(0, 5, &[("even-more", &["k"])]));
    roll_back(only(&set), Some(point), 1);
    let check = |shard: &Shard| {
        assert_eq!(entries(shard, 1), ["kgone", "oldd"]);
        assert_eq!((reached(shard, 1), reached(shard, 2)), (2, 2));
    };
    check(only(&set));
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    check(only(&set));
    // It goes on from there, on another branch of the history.
    apply(only(&set), batch(0, 2, &[("d", &["other"])]));
    assert_eq!(entries(only(&set), 2), ["kgone", "otherd"]);
    only(&set).commit(&watchdog()).unwrap();
    close(set);
    assert_eq!(entries(only(&open(kind, dir.path(), 1, &manual())), 1), ["kgone", "otherd"]);
}

fn a_document_that_a_roll_back_brings_back_loses_its_entry_when_it_changes(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(only(&set), batch(0, 0, &[("d", &["old"])]));
    let point = keep(only(&set));
    apply(only(&set), batch(0, 1, &[("d", &[])]));
    only(&set).commit(&watchdog()).unwrap();
    close(set);
    // When it is opened no document has an entry.
    let set = open(kind, dir.path(), 1, &manual());
    roll_back(only(&set), Some(point), 1);
    assert_eq!(entries(only(&set), 1), ["oldd"]);
    apply(only(&set), later(1, batch(0, 1, &[("d", &["new"])])));
    assert_eq!(entries(only(&set), 1), ["newd"]);
    close(set);
}

fn a_roll_back_to_zero_leaves_the_indexes_empty_and_ready_to_be_filled(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = only(&set);
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    keep(shard);
    roll_back(shard, None, 4);
    assert_eq!(shard.instances(), [InstId(1), InstId(2)]);
    assert!(entries(shard, 1).is_empty() && reached(shard, 1) == 0);
    assert!(shard.points(&watchdog()).unwrap().is_empty());
    apply(shard, later(4, batch(0, 0, &[("d", &["again"])])));
    shard.commit(&watchdog()).unwrap();
    close(set);
    assert_eq!(entries(only(&open(kind, dir.path(), 1, &manual())), 1), ["againd"]);
}

fn a_roll_back_keeps_the_indexes_that_are_there_now(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(only(&set), batch(0, 0, &[("d", &["k"])]));
    let point = keep(only(&set));
    only(&set).create_instance(InstId(3), InstanceStart::AtShard).unwrap();
    only(&set).drop_instance(InstId(2)).unwrap();
    apply(only(&set), batch_for(&[InstId(1), InstId(3)], 0, 1, &[("e", &["k"])]));
    roll_back(only(&set), Some(point), 1);
    let check = |shard: &Shard| {
        assert_eq!(shard.instances(), [InstId(1), InstId(3)]);
        assert_eq!(entries(shard, 1), ["kd"]);
        assert!(entries(shard, 3).is_empty() && reached(shard, 3) == 0, "it is to be filled from zero");
    };
    check(only(&set));
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    check(only(&set));
    eventually("nothing of the dropped index is left", || entries(only(&set), 2).is_empty());
}

fn a_scan_that_is_open_keeps_what_it_had_over_a_roll_back(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = only(&set);
    apply(shard, batch(0, 0, &[("a", &["k"])]));
    let point = keep(shard);
    let ids: Vec<String> = (0..500).map(|n| format!("d{n:03}")).collect();
    let documents: Vec<(&str, &[&str])> = ids.iter().map(|id| (id.as_str(), &["k"][..])).collect();
    apply(shard, batch(0, 1, &documents));
    shard.commit(&watchdog()).unwrap();
    let all = (Bound::Unbounded, Bound::Unbounded);
    let mut scan = shard.snapshot(&watchdog()).unwrap().scan(InstId(1), &all);
    assert_eq!(scan.next().unwrap().unwrap(), b"ka");
    roll_back(shard, Some(point), 1);
    apply(shard, later(1, batch(0, 1, &[("other", &["k"])])));
    shard.commit(&watchdog()).unwrap();
    assert_eq!(scan.by_ref().map(Result::unwrap).count(), 500);
    drop(scan);
    assert_eq!(entries(shard, 1), ["ka", "kother"]);
}

fn what_is_still_on_its_way_after_a_roll_back_is_stale(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let point = keep(only(&set));
    apply(only(&set), batch(0, 0, &[("d", &["k"])]));
    roll_back(only(&set), Some(point), 7);
    let error = refusal(only(&set), batch(0, 0, &[("d", &["k"])]));
    assert!(matches!(error, ApplyError::Stale { current: Generation(7), .. }), "{error}");
    assert!(entries(only(&set), 1).is_empty());
}

fn a_locked_or_sealed_shard_is_not_rolled_back(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = only(&set);
    let point = keep(shard);
    let mut guard = shard.lock("pause 7", &watchdog()).unwrap();
    guard.seal_on_drop("pause 7");
    let before = tree(dir.path());
    let refused = || shard.roll_back(Some(point), Generation(1), &watchdog()).unwrap_err();
    let locked = refused();
    assert!(matches!(&locked, RollBackError::Locked { owner, .. } if owner == "pause 7"), "{locked}");
    drop(guard);
    assert!(matches!(refused(), RollBackError::Locked { .. }));
    assert!(tree(dir.path()) == before);
}

/// The recovery points of a time that is given up cannot be forgotten: with the roll-back, they would stay behind it.
fn a_roll_back_that_breaks_off_leaves_no_point_of_a_time_that_was_given_up(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(only(&set), batch(0, 0, &[("d", &["k"])]));
    let first = keep(only(&set));
    apply(only(&set), batch(0, 1, &[("e", &["k"])]));
    let second = keep(only(&set));
    let in_the_way = dir.path().join(match kind {
        StoreKind::Memdb => format!("shard-0000/memdb/point-{second}"),
        StoreKind::Lsm | StoreKind::Cow => format!("shard-0000/points/{second}.tmp"),
    });
    let aside = dir.path().join("aside");
    if kind == StoreKind::Memdb {
        std::fs::rename(&in_the_way, &aside).unwrap();
        std::fs::create_dir(&in_the_way).unwrap();
        std::fs::write(in_the_way.join("file"), b"").unwrap();
    } else {
        std::fs::write(&in_the_way, b"").unwrap();
    }
    let rolled = only(&set).roll_back(Some(first), Generation(1), &watchdog());
    assert!(matches!(rolled, Err(RollBackError::Store { .. })), "{rolled:?}");
    close(set);
    if kind == StoreKind::Memdb {
        std::fs::remove_dir_all(&in_the_way).unwrap();
        std::fs::rename(&aside, &in_the_way).unwrap();
    } else {
        std::fs::remove_file(&in_the_way).unwrap();
    }
    let set = open(kind, dir.path(), 1, &manual());
    let points: Vec<PointId> =
        only(&set).points(&watchdog()).unwrap().into_iter().map(|point| point.id).collect();
    let found = (reached(only(&set), 1), points.as_slice());
    assert!([(1, &[first][..]), (2, &[first]), (2, &[first, second])].contains(&found), "{found:?}");
    roll_back(only(&set), Some(first), 2);
    assert_eq!(entries(only(&set), 1), ["kd"]);
}

fn a_point_that_is_not_kept_is_not_gone_back_to(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(only(&set), batch(0, 0, &[("d", &["k"])]));
    let error = only(&set).roll_back(Some(PointId(99)), Generation(1), &watchdog()).unwrap_err();
    assert!(matches!(error, RollBackError::NoPoint { point: PointId(99), .. }), "{error}");
    assert!(matches!(
        only(&set).roll_back(None, Generation(1), &cancelled()),
        Ok(()) | Err(RollBackError::Stopped { .. })
    ));
    let point = keep(only(&set));
    roll_back(only(&set), None, 2);
    let error = only(&set).roll_back(Some(point), Generation(3), &watchdog()).unwrap_err();
    assert!(matches!(error, RollBackError::NoPoint { .. }), "{error}");
}

fn the_oldest_points_go_where_there_are_too_many(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &ShardSetConfig { points_kept: 2, ..manual() });
    let made: Vec<PointId> = (0..4)
        .map(|seqno| {
            apply(only(&set), batch(0, seqno, &[("d", &[&format!("k{seqno}")])]));
            keep(only(&set))
        })
        .collect();
    let kept: Vec<PointId> = only(&set).points(&watchdog()).unwrap().iter().map(|point| point.id).collect();
    assert_eq!(kept, made[2..]);
    roll_back(only(&set), Some(made[2]), 1);
    assert_eq!(entries(only(&set), 1), ["k2d"]);
}

fn points_are_kept_by_themselves_at_intervals(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let always = ShardSetConfig { point_interval: Duration::ZERO, points_kept: 3, ..manual() };
    let set = create(kind, dir.path(), 1, &always);
    apply(only(&set), batch(0, 0, &[("d", &["k"])]));
    only(&set).commit(&watchdog()).unwrap();
    let newest = only(&set).points(&watchdog()).unwrap().last().cloned().unwrap();
    assert_eq!(newest.positions[0].1[0].1.seqno, Seqno(1));
    close(set);
    let seldom = ShardSetConfig { point_interval: Duration::from_secs(3600), ..always };
    let set = open(kind, dir.path(), 1, &seldom);
    apply(only(&set), batch(0, 1, &[("e", &["k"])]));
    only(&set).commit(&watchdog()).unwrap();
    assert_eq!(
        only(&set).points(&watchdog()).unwrap().last(),
        Some(&newest),
        "the last one is not old enough"
    );
}

fn no_point_is_kept_while_changes_stand_behind_their_position(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    // Within an out-of-order snapshot: the changes 1 to 3 are there, the position is before them.
    let mut within = batch(0, 0, &[("c", &["k"]), ("b", &["k"]), ("a", &["k"])]);
    within.advances[0].window = Window::OutOfOrder;
    within.advances[0].to = Position { seqno: Seqno(0), snap_start: Seqno(0), ..within.advances[0].to };
    apply(only(&set), within);
    assert_eq!(only(&set).keep_point(&watchdog()).unwrap(), None);
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    assert_eq!(entries(only(&set), 1).len(), 3, "they are durable all the same");
    // The next stream brings the changes in order, and has not come to the third yet.
    apply(only(&set), batch(0, 0, &[("c", &["k"]), ("b", &["k"])]));
    assert_eq!(only(&set).keep_point(&watchdog()).unwrap(), None);
    close(set);
    // From where it stands nobody could tell any more that there is a third, so it stands before all of them.
    let set = open(kind, dir.path(), 1, &manual());
    assert_eq!(only(&set).keep_point(&watchdog()).unwrap(), None);
    apply(only(&set), batch(0, 0, &[("c", &["k"]), ("b", &["k"])]));
    assert_eq!(only(&set).keep_point(&watchdog()).unwrap(), None);
    apply(only(&set), batch(0, 2, &[("a", &["k"])]));
    assert!(only(&set).keep_point(&watchdog()).unwrap().is_some());
}

fn a_window_whose_end_is_never_told_is_no_hindrance_after_a_restart(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let mut first = batch(0, 0, &[("a", &["k"]), ("b", &["k"])]);
    // The third change is one that nobody is told of.
    first.advances[0].to = Position { snap_start: Seqno(0), snap_end: Seqno(3), ..first.advances[0].to };
    apply(only(&set), first);
    assert!(only(&set).keep_point(&watchdog()).unwrap().is_some());
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    assert_eq!(reached(only(&set), 1), 2);
    assert!(only(&set).keep_point(&watchdog()).unwrap().is_some());
}

fn pinned_files_are_a_shard_whatever_happens_to_theirs(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = only(&set);
    let point = keep(shard);
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    let pinned = shard.pin(&watchdog()).unwrap();
    let contents =
        || -> Vec<Vec<u8>> { pinned.files().iter().map(|file| std::fs::read(&file.path).unwrap()).collect() };
    let before = contents();
    for seqno in 1..20 {
        apply(shard, batch(0, seqno, &[(&format!("d{seqno}"), &["k"])]));
        shard.commit(&watchdog()).unwrap();
    }
    roll_back(shard, Some(point), 1);
    for seqno in 0..20 {
        apply(shard, later(1, batch(0, seqno, &[(&format!("e{seqno}"), &["k"])])));
        shard.commit(&watchdog()).unwrap();
    }
    assert!(contents() == before, "a pinned file changed");
    let copy = tempfile::tempdir().unwrap();
    restore(pinned.files(), copy.path());
    let restored = open(kind, copy.path(), 1, &manual());
    assert_eq!(entries(only(&restored), 1), ["kd"]);
    assert_eq!(reached(only(&restored), 2), 1);
    let paths: Vec<_> = pinned.files().iter().skip(1).map(|file| file.path.clone()).collect();
    drop(pinned);
    // The kept point may need some of them.
    roll_back(shard, None, 2);
    // What nothing else needs goes. A file that the shard itself still uses may be among them.
    let live = || -> Vec<_> {
        let guard = shard.lock("test", &watchdog()).unwrap();
        guard.files().iter().map(|file| file.path.clone()).collect()
    };
    eventually("the pinned files go", || {
        shard.commit(&watchdog()).unwrap();
        let live = live();
        paths.iter().all(|path| !path.exists() || live.contains(path))
    });
}

fn a_locked_shard_pins_and_keeps_nothing(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let guard = only(&set).lock("pause 7", &watchdog()).unwrap();
    let before = tree(dir.path());
    let is_refused =
        |error: CommitError| matches!(&error, CommitError::Locked { owner, .. } if owner == "pause 7");
    assert!(is_refused(only(&set).pin(&watchdog()).unwrap_err()));
    assert!(is_refused(only(&set).keep_point(&watchdog()).unwrap_err()));
    assert!(tree(dir.path()) == before);
    drop(guard);
    only(&set).pin(&watchdog()).unwrap();
}

fn a_first_snapshot_that_begins_again_replaces_what_it_brought_before(kind: StoreKind) {
    let first = |generation, from, documents: &[(&str, &[&str])]| {
        let mut batch = later(generation, batch(0, from, documents));
        batch.advances[0].window = Window::First;
        batch
    };
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(only(&set), first(0, 0, &[("a", &["old"]), ("b", &["old"])]));
    // The stream begins again from zero; the document was changed meanwhile, so it comes with a later seqno.
    only(&set).install_generation([VbId(0)], Generation(1), &watchdog()).unwrap();
    apply(only(&set), first(1, 0, &[("x", &[]), ("b", &["old"]), ("a", &["new"])]));
    assert_eq!(entries(only(&set), 1), ["newa", "oldb"]);
    only(&set).commit(&watchdog()).unwrap();
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    apply(only(&set), first(0, 3, &[("b", &["newer"])]));
    assert_eq!(entries(only(&set), 1), ["newa", "newerb"]);
}

fn a_check_of_a_whole_shard_finds_nothing_and_can_be_cancelled(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = filled(kind, dir.path());
    only(&set).check(&watchdog()).unwrap();
    assert!(only(&set).check(&cancelled()).is_err());
    apply(only(&set), batch(0, 300, &[("d", &["k"])]));
    only(&set).check(&watchdog()).unwrap();
}

/// A shard with three hundred documents, in several recovery points.
fn filled(kind: StoreKind, folder: &Path) -> ShardSet {
    let set = create(kind, folder, 1, &manual());
    for round in 0..3_u64 {
        let texts: Vec<(String, String)> = (0..100)
            .map(|n| (format!("document-{round}-{n:02}"), format!("key {:03}", n * 7 % 100)))
            .collect();
        let keys: Vec<[&str; 1]> = texts.iter().map(|(_, key)| [key.as_str()]).collect();
        let documents: Vec<(&str, &[&str])> =
            texts.iter().zip(&keys).map(|((id, _), keys)| (id.as_str(), &keys[..])).collect();
        apply(only(&set), batch(0, round * 100, &documents));
        only(&set).commit(&watchdog()).unwrap();
    }
    set
}

/// The files of a filled shard, by their names, and the entries that it has.
fn image(kind: StoreKind) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let set = filled(kind, dir.path());
    let guard = only(&set).lock("test", &watchdog()).unwrap();
    let files =
        guard.files().iter().map(|file| (file.name.clone(), std::fs::read(&file.path).unwrap())).collect();
    (files, entries(only(&set), 1))
}

/// Opens and checks what is in `folder`: the error, or what it holds.
fn look(kind: StoreKind, folder: &Path) -> Result<Vec<String>, String> {
    let set = try_open(kind, folder, 1, &manual()).map_err(|error| error.to_string())?;
    only(&set).check(&watchdog()).map_err(|error| error.to_string())?;
    let found = entries(only(&set), 1);
    close(set);
    Ok(found)
}

/// Writes an image with one file damaged by `damage`, looks at it, and tells what was found.
fn look_at_damaged(
    kind: StoreKind,
    files: &[(String, Vec<u8>)],
    name: &str,
    damage: impl FnOnce(&Path),
) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("shard-0000");
    for (name, content) in files {
        std::fs::create_dir_all(shard.join(name).parent().unwrap()).unwrap();
        std::fs::write(shard.join(name), content).unwrap();
    }
    damage(&shard.join(name));
    look(kind, dir.path())
}

fn names_the_file(error: &str, name: &str) -> bool {
    error.contains(name.rsplit('/').next().unwrap())
}

fn a_byte_that_changed_in_a_file_is_found_or_harms_nothing(kind: StoreKind) {
    let (files, whole) = image(kind);
    for (name, content) in &files {
        let step = (content.len() / 40).max(1);
        for at in (0..content.len()).step_by(step) {
            match look_at_damaged(kind, &files, name, |path| flip(path, at)) {
                Err(error) => assert!(names_the_file(&error, name), "byte {at} of {name}: {error}"),
                Ok(found) => assert!(found == whole, "byte {at} of {name} changed what is read"),
            }
        }
    }
}

fn a_file_that_was_cut_short_is_found(kind: StoreKind) {
    let (files, _) = image(kind);
    for (name, content) in &files {
        for keep in [0, 1, content.len() / 2, content.len() - 1] {
            let cut = |path: &Path| std::fs::write(path, &content[..keep]).unwrap();
            match look_at_damaged(kind, &files, name, cut) {
                Err(error) => assert!(names_the_file(&error, name), "{name} cut to {keep}: {error}"),
                Ok(found) => panic!("{name} cut to {keep} bytes was taken, with {} entries", found.len()),
            }
        }
    }
}

fn a_shard_without_one_of_its_files_is_not_opened(kind: StoreKind) {
    let (files, _) = image(kind);
    for (name, _) in &files {
        let found = look_at_damaged(kind, &files, name, |path| std::fs::remove_file(path).unwrap());
        let error = found.unwrap_err();
        assert!(names_the_file(&error, name) || error.contains("resume"), "without {name}: {error}");
    }
}
