//! Instances that one data path fills join those of another, in one vbucket of a shard at a time.

use dormouse::event::{Generation, Seqno, VbId, VbUuid};
use dormouse::shard::batch::{Window, WriteBatch};
use dormouse::shard::{InstId, Joined, Shard, StoreKind};
use dormouse::timestamp::Position;
use tempfile::TempDir;

use crate::support::shards::{apply, batch_for, close, create, entries, for_each_store, manual, open};
use crate::support::watchdog;

for_each_store! {
    what_has_not_joined_is_passed_over_and_what_has_takes_each_change_once,
}

/// One that is kept, and one that is built.
const OLD: InstId = InstId(1);
const NEW: InstId = InstId(2);

fn shard(folder: &TempDir, kind: StoreKind) -> Shard {
    create(kind, folder.path(), 1, &manual()).shards()[0].clone()
}

/// What the first path makes: both are evaluated, and the new one joins.
fn first(vb: u16, from: u64, documents: &[(&str, &[&str])]) -> Box<WriteBatch> {
    let mut batch = batch_for(&[OLD, NEW], vb, from, documents);
    (batch.instances, batch.joining) = ([OLD].into(), [NEW].into());
    batch
}

/// What the second path makes.
fn second(vb: u16, from: u64, documents: &[(&str, &[&str])]) -> Box<WriteBatch> {
    batch_for(&[NEW], vb, from, documents)
}

fn on_branch(mut batch: Box<WriteBatch>, branch: u64) -> Box<WriteBatch> {
    batch.advances.iter_mut().for_each(|advance| advance.to.vbuuid = VbUuid(branch));
    batch
}

fn join(shard: &Shard, vb: u16) -> bool {
    shard.join(VbId(vb), &[NEW], &[OLD], Seqno(0))
}

fn joined(shard: &Shard, vb: u16) -> Joined {
    shard.joined(VbId(vb), &[NEW], &[OLD])
}

fn at(shard: &Shard, inst: InstId, vb: u16) -> Position {
    shard.positions(inst).unwrap().get(VbId(vb)).unwrap_or_default()
}

fn what_has_not_joined_is_passed_over_and_what_has_takes_each_change_once(kind: StoreKind) {
    let folder = TempDir::new().unwrap();
    let shard = shard(&folder, kind);
    apply(&shard, first(0, 0, &[("a", &["1"]), ("b", &["2"]), ("c", &["3"])]));
    assert_eq!((entries(&shard, 1).len(), entries(&shard, 2).len()), (3, 0));
    apply(&shard, second(0, 0, &[("a", &["1"]), ("b", &["2"])]));
    assert!(!join(&shard, 0), "it is behind");
    apply(&shard, second(0, 2, &[("c", &["3"]), ("a", &["4"])]));
    assert!(join(&shard, 0));
    assert_eq!(joined(&shard, 0), Joined::Ahead);
    // It has the first of these two.
    apply(&shard, first(0, 3, &[("a", &["4"]), ("b", &["5"])]));
    assert_eq!(joined(&shard, 0), Joined::Level);
    assert_eq!(entries(&shard, 2), ["3c", "4a", "5b"]);
    // What the second stream had still on its way is there already.
    apply(&shard, second(0, 4, &[("b", &["5"])]));
    assert_eq!(joined(&shard, 0), Joined::Level);
    // A document that came in a stream's first snapshot comes again in another's: its old entry goes.
    let mut again = first(0, 5, &[("a", &["6"])]);
    again.advances[0].window = Window::First;
    apply(&shard, again);
    assert_eq!(entries(&shard, 2), ["3c", "5b", "6a"]);
    assert_eq!(at(&shard, NEW, 0), at(&shard, OLD, 0));
}

#[test]
fn a_vbucket_joins_apart_from_the_others_of_its_shard() {
    let folder = TempDir::new().unwrap();
    let shard = shard(&folder, StoreKind::Memdb);
    assert!(join(&shard, 0), "both have nothing");
    apply(&shard, first(0, 0, &[("a", &["1"])]));
    apply(&shard, first(3, 0, &[("b", &["2"])]));
    assert_eq!(entries(&shard, 2), ["1a"]);
    assert_eq!((joined(&shard, 0), joined(&shard, 3)), (Joined::Level, Joined::No));
}

#[test]
fn one_that_is_further_on_another_branch_does_not_join_and_leaves_where_it_has() {
    let folder = TempDir::new().unwrap();
    let shard = shard(&folder, StoreKind::Memdb);
    apply(&shard, on_branch(first(0, 0, &[("a", &["1"])]), 7));
    apply(&shard, on_branch(second(0, 0, &[("a", &["1"]), ("b", &["2"])]), 8));
    assert!(!join(&shard, 0));
    apply(&shard, on_branch(first(0, 1, &[("c", &["3"])]), 8));
    assert!(join(&shard, 0), "both are at the same seqno");
    assert_eq!(at(&shard, NEW, 0), at(&shard, OLD, 0));
    apply(&shard, on_branch(second(0, 2, &[("d", &["4"])]), 8));
    assert_eq!(joined(&shard, 0), Joined::Ahead);
    // The first stream went on from before that, on a branch of which nobody knows whether it has that.
    apply(&shard, on_branch(first(0, 2, &[("e", &["5"]), ("f", &["6"])]), 9));
    assert_eq!(joined(&shard, 0), Joined::No);
    assert_eq!((at(&shard, NEW, 0).seqno, at(&shard, OLD, 0).seqno), (Seqno(3), Seqno(4)));
    assert_eq!(entries(&shard, 2), ["1a", "2b", "4d"]);
}

#[test]
fn what_stands_in_a_window_whose_end_is_never_told_joins_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let set = create(StoreKind::Memdb, folder.path(), 1, &manual());
    let within = |mut batch: Box<WriteBatch>| {
        let to = &mut batch.advances[0].to;
        (to.snap_start, to.snap_end) = (Seqno(0), Seqno(3));
        batch
    };
    apply(&set.shards()[0], within(first(0, 0, &[("a", &["1"]), ("b", &["2"])])));
    assert!(set.shards()[0].commit(&watchdog()).unwrap());
    close(set);
    let set = open(StoreKind::Memdb, folder.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, within(second(0, 0, &[("a", &["1"]), ("b", &["2"])])));
    assert!(join(shard, 0));
}

#[test]
fn what_joins_within_a_window_stays_within_it_until_its_end() {
    let folder = TempDir::new().unwrap();
    let shard = shard(&folder, StoreKind::Memdb);
    let within = |mut batch: Box<WriteBatch>, start: u64, end: u64| {
        let to = &mut batch.advances[0].to;
        (to.snap_start, to.snap_end) = (Seqno(start), Seqno(end));
        batch
    };
    let window = |inst| (at(&shard, inst, 0).snap_start, at(&shard, inst, 0).snap_end);
    apply(&shard, within(first(0, 0, &[("a", &["1"]), ("b", &["2"])]), 0, 2));
    // It came to the same place in a longer snapshot, whose end has a document that the first one had in between.
    apply(&shard, within(second(0, 0, &[("a", &["1"]), ("b", &["2"])]), 0, 4));
    assert!(join(&shard, 0));
    assert_eq!((window(OLD), window(NEW)), ((Seqno(0), Seqno(4)), (Seqno(0), Seqno(4))));
    apply(&shard, within(first(0, 2, &[("c", &["3"])]), 3, 3));
    assert_eq!((window(OLD), window(NEW)), ((Seqno(0), Seqno(4)), (Seqno(0), Seqno(4))));
    apply(&shard, within(first(0, 3, &[("a", &["4"])]), 4, 4));
    assert_eq!((window(OLD), window(NEW)), ((Seqno(4), Seqno(4)), (Seqno(4), Seqno(4))));
    assert_eq!(at(&shard, NEW, 0), at(&shard, OLD, 0));
}

#[test]
fn nothing_joins_within_an_out_of_order_snapshot() {
    let folder = TempDir::new().unwrap();
    let shard = shard(&folder, StoreKind::Memdb);
    let mut unordered = first(0, 0, &[("a", &["1"]), ("b", &["2"])]);
    unordered.advances[0].window = Window::OutOfOrder;
    let (to, start) = (&mut unordered.advances[0].to, Seqno(0));
    (to.seqno, to.snap_start, to.snap_end) = (start, start, Seqno(2));
    apply(&shard, unordered);
    assert!(!join(&shard, 0), "changes that it passed over are behind the position");
    apply(&shard, first(0, 0, &[("a", &["1"]), ("b", &["2"]), ("c", &["3"])]));
    assert!(!join(&shard, 0));
    apply(&shard, second(0, 0, &[("a", &["1"]), ("b", &["2"]), ("c", &["3"])]));
    assert!(join(&shard, 0));
}

#[test]
fn nothing_joins_before_what_was_evaluated_without_it_is_applied() {
    let folder = TempDir::new().unwrap();
    let shard = shard(&folder, StoreKind::Memdb);
    apply(&shard, first(0, 0, &[("a", &["1"])]));
    apply(&shard, second(0, 0, &[("a", &["1"])]));
    assert!(!shard.join(VbId(0), &[NEW], &[OLD], Seqno(2)));
    apply(&shard, batch_for(&[OLD], 0, 1, &[("b", &["2"])]));
    assert!(!shard.join(VbId(0), &[NEW], &[OLD], Seqno(2)));
    apply(&shard, second(0, 1, &[("b", &["2"])]));
    assert!(shard.join(VbId(0), &[NEW], &[OLD], Seqno(2)));
}

#[test]
fn a_roll_back_ends_what_has_joined() {
    let folder = TempDir::new().unwrap();
    let shard = shard(&folder, StoreKind::Memdb);
    assert!(join(&shard, 0));
    apply(&shard, first(0, 0, &[("a", &["1"])]));
    shard.roll_back(None, Generation(5), &watchdog()).unwrap();
    assert_eq!(joined(&shard, 0), Joined::No);
    let mut after = first(0, 0, &[("a", &["1"])]);
    after.generation = Generation(5);
    apply(&shard, after);
    assert_eq!((entries(&shard, 1).len(), entries(&shard, 2).len()), (1, 0));
}
