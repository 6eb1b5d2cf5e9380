//! Shards: what is applied, what is durable, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use dormouse::event::{Generation, Seqno, VbId, VbUuid};
use dormouse::shard::batch::{Advance, Window, WriteBatch};
use dormouse::shard::{
    ApplyError, InstId, InstanceStart, Later, OpenError, Refused, Shard, ShardSet, ShardSetConfig,
    ShardSnapshot,
};
use dormouse::timestamp::Position;
use proptest::prelude::*;

use crate::support::shards::{
    apply, batch, close, create, entries, in_snapshot, manual, open, refusal, try_open,
};
use crate::support::{eventually, watchdog};

/// What a shard should hold, for each instance: the keys of each document, and the positions.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    documents: BTreeMap<(u32, String), BTreeSet<String>>,
    reached: [u64; 2],
}

impl Model {
    fn entries(&self, inst: u32) -> Vec<String> {
        let of_inst = self.documents.iter().filter(|((of, _), _)| *of == inst);
        let mut all: Vec<String> =
            of_inst.flat_map(|((_, id), keys)| keys.iter().map(move |key| format!("{key}{id}"))).collect();
        all.sort();
        all
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Documents of a vbucket get new keys, in one batch; a document may come twice.
    Write {
        vb: u16,
        documents: Vec<(u8, BTreeSet<u8>)>,
    },
    Commit,
    Snapshot,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let keys = proptest::collection::btree_set(0_u8..6, 0..4);
    let documents = proptest::collection::vec((0_u8..5, keys), 1..6);
    prop_oneof![
        6 => (0_u16..2, documents).prop_map(|(vb, documents)| Step::Write { vb, documents }),
        3 => Just(Step::Commit),
        2 => Just(Step::Snapshot),
        1 => Just(Step::Reopen),
    ]
}

struct Subject {
    set: Option<ShardSet>,
    model: Model,
    committed: Model,
    snapshots: Vec<(ShardSnapshot, Model)>,
}

impl Subject {
    fn shard(&self) -> &Shard {
        self.set.as_ref().unwrap().shards().first().unwrap()
    }

    fn write(&mut self, vb: u16, documents: &[(u8, BTreeSet<u8>)]) {
        let slot = &mut self.model.reached[usize::from(vb)];
        let from = *slot;
        *slot += documents.len() as u64;
        let texts: Vec<(String, Vec<String>)> = documents
            .iter()
            .map(|(id, keys)| (format!("-v{vb}d{id}"), keys.iter().map(|key| format!("k{key}")).collect()))
            .collect();
        let keys: Vec<Vec<&str>> =
            texts.iter().map(|(_, keys)| keys.iter().map(String::as_str).collect()).collect();
        let changes: Vec<(&str, &[&str])> =
            texts.iter().zip(&keys).map(|((id, _), keys)| (id.as_str(), keys.as_slice())).collect();
        apply(self.shard(), batch(vb, from, &changes));
        for ((id, keys), inst) in texts.iter().flat_map(|document| [(document, 1), (document, 2)]) {
            self.model.documents.insert((inst, id.clone()), keys.iter().cloned().collect());
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for inst in [1, 2] {
            prop_assert_eq!(entries(self.shard(), inst), self.model.entries(inst));
            let positions = self.shard().positions(InstId(inst)).unwrap();
            for (vb, reached) in [0, 1].into_iter().zip(self.model.reached) {
                prop_assert_eq!(positions.get(VbId(vb)).unwrap_or_default().seqno, Seqno(reached));
            }
            for (snapshot, model) in &self.snapshots {
                prop_assert_eq!(in_snapshot(snapshot, inst), model.entries(inst));
            }
        }
        Ok(())
    }

    fn reopen(&mut self, folder: &Path) {
        self.snapshots.clear();
        close(self.set.take().unwrap());
        self.set = Some(open(folder, 1, &manual()));
        self.model = self.committed.clone();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_shard_holds_what_a_map_holds_and_after_a_crash_what_was_committed(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let set = Some(create(dir.path(), 1, &manual()));
        let (model, committed) = (Model::default(), Model::default());
        let mut subject = Subject { set, model, committed, snapshots: Vec::new() };
        for step in &steps {
            match step {
                Step::Write { vb, documents } => subject.write(*vb, documents),
                Step::Commit => {
                    subject.shard().commit(&watchdog()).unwrap();
                    subject.committed = subject.model.clone();
                }
                Step::Snapshot => {
                    let snapshot = subject.shard().snapshot(&watchdog()).unwrap();
                    subject.snapshots.push((snapshot, subject.model.clone()));
                }
                Step::Reopen => subject.reopen(dir.path()),
            }
            subject.check()?;
        }
    }
}

#[test]
fn a_batch_of_another_generation_is_refused_as_stale() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    shard.install_generation([VbId(3)], Generation(2));
    let error = refusal(shard, batch(3, 0, &[("d", &["k"])]));
    assert!(matches!(error, ApplyError::Stale { vb: VbId(3), current: Generation(2), .. }), "{error}");
    apply(shard, batch(2, 0, &[("d", &["k"])]));
    assert_eq!(entries(shard, 1), ["kd"]);
}

#[test]
fn a_batch_that_leaves_changes_out_is_refused_as_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    let error = refusal(shard, batch(0, 2, &[("e", &["k"])]));
    assert!(matches!(error, ApplyError::Gap { stored: Seqno(1), from: Seqno(2), .. }), "{error}");
    assert_eq!(entries(shard, 1), ["kd"]);
}

#[test]
fn a_batch_for_what_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 2, &manual());
    let shard = &set.shards()[0];
    assert!(matches!(refusal(shard, batch(1, 0, &[("d", &["k"])])), ApplyError::Unknown { vb: VbId(1), .. }));
    shard.drop_instance(InstId(2)).unwrap();
    let error = refusal(shard, batch(0, 0, &[("d", &["k"])]));
    assert!(matches!(error, ApplyError::Unknown { inst: InstId(2), .. }), "{error}");
    assert!(entries(shard, 1).is_empty(), "nothing of a refused batch is applied");
}

#[test]
fn an_instance_skips_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["old"]), ("d", &["new"])]));
    apply(shard, batch(0, 0, &[("d", &["old"])]));
    assert_eq!(entries(shard, 1), ["newd"]);
    apply(shard, batch(0, 1, &[("d", &["old"]), ("d", &["newest"])]));
    assert_eq!(entries(shard, 1), ["newestd"]);
    assert_eq!(shard.positions(InstId(1)).unwrap().get(VbId(0)).unwrap().seqno, Seqno(3));
}

#[test]
fn a_new_instance_begins_where_it_was_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    shard.create_instance(InstId(3), InstanceStart::Zero).unwrap();
    shard.create_instance(InstId(4), InstanceStart::AtShard).unwrap();
    assert!(shard.positions(InstId(3)).unwrap().is_empty());
    assert_eq!(shard.positions(InstId(4)).unwrap(), shard.positions(InstId(1)).unwrap());
    assert_eq!(shard.positions(InstId(5)), None);
}

#[test]
fn creating_an_instance_that_is_there_does_not_move_it() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    shard.create_instance(InstId(3), InstanceStart::Zero).unwrap();
    shard.create_instance(InstId(3), InstanceStart::AtShard).unwrap();
    assert!(shard.positions(InstId(3)).unwrap().is_empty(), "changes that it has not seen would be skipped");
}

#[test]
fn a_dropped_instance_leaves_the_others_and_gives_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
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
    let mut next = Box::new(WriteBatch::default());
    next.instances = [InstId(1)].into();
    let (id, seqno) = (next.add_document(b"other"), Seqno(from + 1));
    next.add_change(InstId(1), (VbId(vb), seqno), id, [&b"k"[..]]);
    next.advances.push(Advance {
        vb: VbId(vb),
        from: Seqno(from),
        to: Position::at(VbUuid(9), seqno),
        window: Window::Ordered,
    });
    apply(shard, next);
}

#[test]
fn the_sweep_of_a_dropped_instance_goes_on_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    apply(&set.shards()[0], batch(0, 0, &[("d", &["k"])]));
    // Under this lock nothing is swept, and what is dropped before it is durable with it.
    set.shards()[0].drop_instance(InstId(2)).unwrap();
    drop(set.shards()[0].lock("test", &watchdog()).unwrap());
    close(set);
    let set = open(dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    assert_eq!(shard.instances(), [InstId(1)]);
    eventually("nothing of it is left", || entries(shard, 2).is_empty());
    assert_eq!(entries(shard, 1), ["kd"]);
}

#[test]
fn new_writes_win_over_old_ones_after_a_reopening_and_a_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = create(dir.path(), 1, &manual());
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
        set = open(dir.path(), 1, &manual());
    }
    assert_eq!(entries(&set.shards()[0], 1), ["key-11d"]);
}

#[test]
fn a_recovery_point_is_made_when_many_bytes_are_uncommitted() {
    let dir = tempfile::tempdir().unwrap();
    let config = ShardSetConfig { commit_bytes: 1000, ..manual() };
    let set = create(dir.path(), 1, &config);
    let shard = &set.shards()[0];
    let commits = shard.status().commits;
    let key = "k".repeat(1000);
    apply(shard, batch(0, 0, &[("d", &[&key])]));
    eventually("a recovery point", || shard.status().commits > commits);
}

#[test]
fn a_recovery_point_is_made_some_time_after_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let config = ShardSetConfig { commit_interval: Duration::from_millis(10), ..manual() };
    let set = create(dir.path(), 1, &config);
    let shard = &set.shards()[0];
    let commits = shard.status().commits;
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    eventually("a recovery point", || shard.status().commits > commits);
    assert_eq!(shard.status().uncommitted_bytes, 0);
}

#[test]
fn a_writer_that_is_ahead_of_the_disk_waits_for_a_recovery_point() {
    let dir = tempfile::tempdir().unwrap();
    for commit_bytes in [0, 1, 64] {
        let folder = dir.path().join(commit_bytes.to_string());
        std::fs::create_dir(&folder).unwrap();
        let set = create(&folder, 1, &ShardSetConfig { commit_bytes, ..manual() });
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

#[test]
fn a_shard_belongs_to_one_set_at_a_time_and_a_scan_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    let refused = |what: &str| match try_open(dir.path(), 1, &manual()) {
        Err(error @ OpenError::InUse { .. }) => assert!(error.to_string().contains("close the bucket")),
        other => panic!("{what}: {:?}", other.err()),
    };
    refused("while the set is open");
    let snapshot = set.shards()[0].snapshot(&watchdog()).unwrap();
    close(set);
    refused("while a snapshot is left");
    drop(snapshot);
    close(open(dir.path(), 1, &manual()));
}

/// Damages the folder of the only shard, and tells how it does not open any more.
fn damaged(damage: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    apply(&set.shards()[0], batch(0, 0, &[("d", &["k"])]));
    set.commit(&watchdog()).unwrap();
    close(set);
    damage(&dir.path().join("shard-0000"));
    match try_open(dir.path(), 1, &manual()) {
        Err(error) => error.to_string(),
        Ok(set) => panic!("it opened, with {:?}", entries(&set.shards()[0], 1)),
    }
}

fn newest_version(shard: &Path) -> std::path::PathBuf {
    let current = std::fs::read(shard.join("lsm/current")).unwrap();
    let id = u64::from_le_bytes(current[..8].try_into().unwrap());
    shard.join(format!("lsm/v{id}"))
}

fn flip(path: &Path, at: usize) {
    let mut content = std::fs::read(path).unwrap();
    content[at] ^= 0x10;
    std::fs::write(path, content).unwrap();
}

#[test]
fn a_shard_without_one_of_its_files_is_never_an_empty_one() {
    let missing_current = damaged(|shard| std::fs::remove_file(shard.join("lsm/current")).unwrap());
    assert!(missing_current.contains("current"), "{missing_current}");
    let missing_version = damaged(|shard| std::fs::remove_file(newest_version(shard)).unwrap());
    assert!(missing_version.contains("resume"), "{missing_version}");
    damaged(|shard| {
        for table in std::fs::read_dir(shard.join("lsm/tables")).unwrap() {
            std::fs::remove_file(table.unwrap().path()).unwrap();
        }
    });
    damaged(|shard| std::fs::remove_dir_all(shard.join("lsm")).unwrap());
    damaged(|shard| std::fs::remove_file(shard.join("shard.meta")).unwrap());
}

#[test]
fn every_damaged_byte_of_a_shard_s_metadata_is_found() {
    let dir = tempfile::tempdir().unwrap();
    close(create(dir.path(), 1, &manual()));
    let path = dir.path().join("shard-0000/shard.meta");
    for at in 0..std::fs::read(&path).unwrap().len() {
        flip(&path, at);
        let opened = try_open(dir.path(), 1, &manual());
        assert!(matches!(opened, Err(OpenError::Spec { .. })), "byte {at}: {:?}", opened.err());
        flip(&path, at);
    }
    close(open(dir.path(), 1, &manual()));
}

#[test]
fn every_damaged_byte_of_a_shard_s_version_is_found() {
    let dir = tempfile::tempdir().unwrap();
    close(create(dir.path(), 1, &manual()));
    let shard = dir.path().join("shard-0000");
    for path in [newest_version(&shard), shard.join("lsm/current")] {
        for at in 0..std::fs::read(&path).unwrap().len() {
            flip(&path, at);
            let opened = try_open(dir.path(), 1, &manual());
            assert!(matches!(opened, Err(OpenError::Store { .. })), "byte {at} of {}", path.display());
            flip(&path, at);
        }
    }
    close(open(dir.path(), 1, &manual()));
}

#[test]
fn the_shard_of_another_bucket_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    close(create(dir.path(), 1, &manual()));
    assert!(matches!(try_open(dir.path(), 2, &manual()), Err(OpenError::Foreign { .. })));
}

#[test]
fn positions_keep_their_windows_over_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(dir.path(), 1, &manual());
    let mut within = batch(0, 0, &[("d", &["k"])]);
    let position = Position { snap_end: Seqno(9), ..within.advances[0].to };
    within.advances[0].to = position;
    apply(&set.shards()[0], within);
    set.commit(&watchdog()).unwrap();
    close(set);
    let set = open(dir.path(), 1, &manual());
    assert_eq!(set.shards()[0].positions(InstId(2)).unwrap().get(VbId(0)), Some(position));
}
