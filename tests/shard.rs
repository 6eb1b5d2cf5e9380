//! Shards: what is applied, what is durable, and what is refused.

use std::time::Duration;

use dormouse::event::{Generation, Seqno, VbId};
use dormouse::shard::{
    ApplyError, InstId, InstanceStart, Later, OpenError, Refused, Shard, ShardSetConfig, StoreKind,
};
use dormouse::timestamp::Position;

use crate::support::shards::{
    apply, batch, batch_for, close, create, entries, flip, for_each_store, manual, open, refusal, try_open,
};
use crate::support::{eventually, watchdog};

for_each_store! {
    a_batch_of_another_generation_is_refused_as_stale,
    a_batch_that_leaves_changes_out_is_refused_as_a_gap,
    a_batch_for_what_is_not_there_is_refused,
    an_instance_skips_what_it_has,
    a_new_instance_begins_where_it_was_told_to,
    creating_an_instance_that_is_there_does_not_move_it,
    a_dropped_instance_leaves_the_others_and_gives_its_room_back,
    the_sweep_of_a_dropped_instance_goes_on_after_a_crash,
    new_writes_win_over_old_ones_after_a_reopening_and_a_compaction,
    a_recovery_point_is_made_when_many_bytes_are_uncommitted,
    a_recovery_point_is_made_some_time_after_a_write,
    an_interval_that_is_longer_than_the_clock_goes_is_never_over,
    a_writer_that_is_ahead_of_the_disk_waits_for_a_recovery_point,
    a_shard_belongs_to_one_set_at_a_time_and_a_scan_holds_it,
    the_shard_of_another_bucket_is_not_opened,
    positions_keep_their_windows_over_a_reopening,
    every_damaged_byte_of_a_shard_s_metadata_is_found,
}

fn a_batch_of_another_generation_is_refused_as_stale(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    shard.install_generation([VbId(3)], Generation(2), &watchdog()).unwrap();
    let error = refusal(shard, batch(3, 0, &[("d", &["k"])]));
    assert!(matches!(error, ApplyError::Stale { vb: VbId(3), current: Generation(2), .. }), "{error}");
    apply(shard, batch(2, 0, &[("d", &["k"])]));
    assert_eq!(entries(shard, 1), ["kd"]);
}

fn a_batch_that_leaves_changes_out_is_refused_as_a_gap(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    let error = refusal(shard, batch(0, 2, &[("e", &["k"])]));
    assert!(matches!(error, ApplyError::Gap { stored: Seqno(1), from: Seqno(2), .. }), "{error}");
    assert_eq!(entries(shard, 1), ["kd"]);
}

fn a_batch_for_what_is_not_there_is_refused(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 2, &manual());
    let shard = &set.shards()[0];
    assert!(matches!(refusal(shard, batch(1, 0, &[("d", &["k"])])), ApplyError::Unknown { vb: VbId(1), .. }));
    shard.drop_instance(InstId(2)).unwrap();
    let error = refusal(shard, batch(0, 0, &[("d", &["k"])]));
    assert!(matches!(error, ApplyError::Unknown { inst: InstId(2), .. }), "{error}");
    assert!(entries(shard, 1).is_empty(), "nothing of a refused batch is applied");
}

fn an_instance_skips_what_it_has(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["old"]), ("d", &["new"])]));
    apply(shard, batch(0, 0, &[("d", &["old"])]));
    assert_eq!(entries(shard, 1), ["newd"]);
    apply(shard, batch(0, 1, &[("d", &["old"]), ("d", &["newest"])]));
    assert_eq!(entries(shard, 1), ["newestd"]);
    assert_eq!(shard.positions(InstId(1)).unwrap().get(VbId(0)).unwrap().seqno, Seqno(3));
}

fn a_new_instance_begins_where_it_was_told_to(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    shard.create_instance(InstId(3), InstanceStart::Zero).unwrap();
    shard.create_instance(InstId(4), InstanceStart::AtShard).unwrap();
    assert!(shard.positions(InstId(3)).unwrap().is_empty());
    assert_eq!(shard.positions(InstId(4)).unwrap(), shard.positions(InstId(1)).unwrap());
    assert_eq!(shard.positions(InstId(5)), None);
}

fn creating_an_instance_that_is_there_does_not_move_it(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    shard.create_instance(InstId(3), InstanceStart::Zero).unwrap();
    shard.create_instance(InstId(3), InstanceStart::AtShard).unwrap();
    assert!(shard.positions(InstId(3)).unwrap().is_empty(), "changes that it has not seen would be skipped");
}

fn a_dropped_instance_leaves_the_others_and_gives_its_room_back(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    // More than one sweep removes.
    let ids: Vec<String> = (0..6000).map(|n| format!("document-{n:05}")).collect();
    let documents: Vec<(&str, &[&str])> =
        ids.iter().map(|id| (id.as_str(), &["some key of a document"][..])).collect();
    apply(shard, batch(0, 0, &documents));
    shard.commit(&watchdog()).unwrap();
    let full_bytes = shard.status().disk_bytes;
    shard.drop_instance(InstId(2)).unwrap();
    assert_eq!(shard.instances(), [InstId(1)]);
    let mut seqno = 0;
    // Room is given back by compactions, which come with further recovery points.
    eventually("the room is given back", || {
        apply_to_first(shard, 1, seqno);
        seqno += 1;
        shard.commit(&watchdog()).unwrap();
        shard.status().disk_bytes < full_bytes * 2 / 3
    });
    assert_eq!(entries(shard, 1).len(), ids.len() + 1);
    assert!(entries(shard, 2).is_empty());
}

/// Writes a document of instance 1 alone.
fn apply_to_first(shard: &Shard, vb: u16, from: u64) {
    apply(shard, batch_for(&[InstId(1)], vb, from, &[("other", &["k"])]));
}

fn the_sweep_of_a_dropped_instance_goes_on_after_a_crash(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    apply(&set.shards()[0], batch(0, 0, &[("d", &["k"])]));
    // Under this lock nothing is swept, and what is dropped before it is durable with it.
    set.shards()[0].drop_instance(InstId(2)).unwrap();
    drop(set.shards()[0].lock("test", &watchdog()).unwrap());
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    assert_eq!(shard.instances(), [InstId(1)]);
    eventually("nothing of it is left", || entries(shard, 2).is_empty());
    assert_eq!(entries(shard, 1), ["kd"]);
}

fn new_writes_win_over_old_ones_after_a_reopening_and_a_compaction(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let mut set = create(kind, dir.path(), 1, &manual());
    let mut seqno = 0;
    for round in 0..4 {
        for _ in 0..3 {
            let key = format!("key-{seqno:02}");
            apply(&set.shards()[0], batch(0, seqno, &[("d", &[&key])]));
            seqno += 1;
            set.commit(&watchdog()).unwrap();
            assert_eq!(entries(&set.shards()[0], 1), [format!("{key}d")], "round {round}");
        }
        close(set);
        set = open(kind, dir.path(), 1, &manual());
    }
    assert_eq!(entries(&set.shards()[0], 1), ["key-11d"]);
}

fn a_recovery_point_is_made_when_many_bytes_are_uncommitted(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let config = ShardSetConfig { commit_bytes: 1000, ..manual() };
    let set = create(kind, dir.path(), 1, &config);
    let shard = &set.shards()[0];
    let commits = shard.status().commits;
    let key = "k".repeat(1000);
    apply(shard, batch(0, 0, &[("d", &[&key])]));
    eventually("a recovery point", || shard.status().commits > commits);
}

fn a_recovery_point_is_made_some_time_after_a_write(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let config = ShardSetConfig { commit_interval: Duration::from_millis(10), ..manual() };
    let set = create(kind, dir.path(), 1, &config);
    let shard = &set.shards()[0];
    let commits = shard.status().commits;
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    eventually("a recovery point", || shard.status().commits > commits);
    assert_eq!(shard.status().uncommitted_bytes, 0);
}

fn an_interval_that_is_longer_than_the_clock_goes_is_never_over(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let config = ShardSetConfig { commit_interval: Duration::MAX, commit_bytes: 1000, ..manual() };
    let set = create(kind, dir.path(), 1, &config);
    let shard = &set.shards()[0];
    let commits = shard.status().commits;
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    let key = "k".repeat(1000);
    apply(shard, batch(0, 1, &[("e", &[&key])]));
    eventually("a recovery point", || shard.status().commits > commits);
}

#[test]
fn an_empty_batch_keeps_no_memory_that_only_unusual_documents_take() {
    let key = "k".repeat(50_000);
    let mut batch = batch(0, 0, &vec![("d", &[key.as_str()][..]); 600]);
    assert!(batch.weight_bytes() > 20 << 20);
    batch.clear();
    assert!(batch.weight_bytes() < 4 << 20, "{}", batch.weight_bytes());
}

fn a_writer_that_is_ahead_of_the_disk_waits_for_a_recovery_point(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    for commit_bytes in [0, 1, 64] {
        let folder = dir.path().join(commit_bytes.to_string());
        std::fs::create_dir(&folder).unwrap();
        let set = create(kind, &folder, 1, &ShardSetConfig { commit_bytes, ..manual() });
        let shard = &set.shards()[0];
        let mut waits = 0;
        for n in 0..50 {
            let mut next = batch(0, n, &[(&format!("d{n:02}"), &["k"])]);
            loop {
                match shard.try_apply(next) {
                    Ok(_) => break,
                    Err(Refused::Later { batch, why, ready }) => {
                        assert_eq!(why, Later::Full);
                        ready.wait(&watchdog()).unwrap();
                        waits += 1;
                        next = batch;
                    }
                    Err(Refused::Never(error)) => panic!("{error}"),
                }
            }
        }
        assert_eq!(entries(shard, 1).len(), 50);
        assert!(waits > 0, "fifty writes outran no disk");
    }
}

fn a_shard_belongs_to_one_set_at_a_time_and_a_scan_holds_it(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let refused = |what: &str| match try_open(kind, dir.path(), 1, &manual()) {
        Err(error @ OpenError::InUse { .. }) => assert!(error.to_string().contains("close the bucket")),
        other => panic!("{what}: {:?}", other.err()),
    };
    refused("while the set is open");
    let snapshot = set.shards()[0].snapshot(&watchdog()).unwrap();
    close(set);
    refused("while a snapshot is left");
    drop(snapshot);
    close(open(kind, dir.path(), 1, &manual()));
}

fn the_shard_of_another_bucket_is_not_opened(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    close(create(kind, dir.path(), 1, &manual()));
    assert!(matches!(try_open(kind, dir.path(), 2, &manual()), Err(OpenError::Foreign { .. })));
}

fn positions_keep_their_windows_over_a_reopening(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(kind, dir.path(), 1, &manual());
    let mut within = batch(0, 0, &[("d", &["k"])]);
    let position = Position { snap_end: Seqno(9), ..within.advances[0].to };
    within.advances[0].to = position;
    apply(&set.shards()[0], within);
    set.commit(&watchdog()).unwrap();
    close(set);
    let set = open(kind, dir.path(), 1, &manual());
    assert_eq!(set.shards()[0].positions(InstId(2)).unwrap().get(VbId(0)), Some(position));
}

fn every_damaged_byte_of_a_shard_s_metadata_is_found(kind: StoreKind) {
    let dir = tempfile::tempdir().unwrap();
    close(create(kind, dir.path(), 1, &manual()));
    let path = dir.path().join("shard-0000/shard.meta");
    for at in 0..std::fs::read(&path).unwrap().len() {
        flip(&path, at);
        let opened = try_open(kind, dir.path(), 1, &manual());
        assert!(matches!(opened, Err(OpenError::Spec { .. })), "byte {at}: {:?}", opened.err());
        flip(&path, at);
    }
    close(open(kind, dir.path(), 1, &manual()));
}
