//! Every store against ordered maps: writes, indexes that come and go, snapshots, commits, crashes, roll-backs.

use std::collections::{BTreeMap, BTreeSet};

use dormouse::event::{Generation, Seqno, VbId};
use dormouse::shard::{InstId, InstanceStart, Shard, ShardSet, ShardSetConfig, ShardSnapshot, StoreKind};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

use crate::support::shards::{
    apply, batch_for, close, create, entries, for_each_store, in_snapshot, manual, open,
};
use crate::support::watchdog;

for_each_store! {
    a_shard_holds_what_a_map_holds_whatever_is_done_to_it,
}

const POINTS_KEPT: usize = 2;
const VBUCKETS: usize = 2;

/// A document and its keys from some change on.
type Change = (String, BTreeSet<String>);

/// What an instance has seen of each vbucket's changes: those after the first number, up to the second.
type Seen = [(usize, usize); VBUCKETS];

#[derive(Debug, Clone, Default)]
struct Model {
    /// The producer's history of each vbucket.
    history: [Vec<Change>; VBUCKETS],
    instances: BTreeMap<InstId, Seen>,
    points: BTreeMap<u64, BTreeMap<InstId, Seen>>,
}

impl Model {
    fn entries(&self, inst: InstId) -> Vec<String> {
        let mut all = Vec::new();
        for (history, (start, end)) in self.history.iter().zip(self.instances[&inst]) {
            let documents: BTreeMap<&String, &BTreeSet<String>> =
                history[start..end].iter().map(|(id, keys)| (id, keys)).collect();
            all.extend(
                documents.iter().flat_map(|(id, keys)| keys.iter().map(move |key| format!("{key}{id}"))),
            );
        }
        all.sort();
        all
    }

    /// How far the instance that is furthest behind has come.
    fn reached(&self, vb: usize) -> usize {
        self.instances.values().map(|seen| seen[vb].1).min().unwrap_or_default()
    }

    fn roll_back(&mut self, to: Option<u64>) {
        let target = to.map(|point| self.points[&point].clone()).unwrap_or_default();
        self.points.retain(|point, _| to.is_some_and(|to| *point <= to));
        for (inst, seen) in &mut self.instances {
            *seen = target.get(inst).copied().unwrap_or_default();
        }
        for (vb, history) in self.history.iter_mut().enumerate() {
            // What the producer did after the point did not happen.
            history.truncate(target.values().map(|seen| seen[vb].1).max().unwrap_or_default());
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Documents of a vbucket get new keys, in one batch; a document may come twice.
    Write {
        vb: usize,
        documents: Vec<(u8, BTreeSet<u8>)>,
    },
    Commit,
    Keep,
    /// To one of the points that are kept, or to zero.
    RollBack(u8),
    Snapshot,
    DropSnapshot,
    CreateInstance,
    DropInstance(u8),
    /// Without a commit: what a crash would do.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let keys = proptest::collection::btree_set(0_u8..6, 0..4);
    let documents = proptest::collection::vec((0_u8..5, keys), 1..6);
    prop_oneof![
        8 => (0..VBUCKETS, documents).prop_map(|(vb, documents)| Step::Write { vb, documents }),
        3 => Just(Step::Commit),
        2 => Just(Step::Keep),
        1 => any::<u8>().prop_map(Step::RollBack),
        2 => Just(Step::Snapshot),
        1 => Just(Step::DropSnapshot),
        1 => Just(Step::CreateInstance),
        1 => any::<u8>().prop_map(Step::DropInstance),
        1 => Just(Step::Reopen),
    ]
}

struct Subject {
    kind: StoreKind,
    folder: TempDir,
    set: Option<ShardSet>,
    model: Model,
    committed: Model,
    snapshots: Vec<(ShardSnapshot, BTreeMap<InstId, Vec<String>>)>,
    next_instance: u32,
    generation: u64,
}

impl Subject {
    fn new(kind: StoreKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let set = Some(create(kind, folder.path(), 1, &config()));
        let instances = [InstId(1), InstId(2)].map(|inst| (inst, Seen::default())).into();
        let model = Model { instances, ..Model::default() };
        let (committed, snapshots) = (model.clone(), Vec::new());
        Self { kind, folder, set, model, committed, snapshots, next_instance: 3, generation: 0 }
    }

    fn shard(&self) -> Shard {
        self.set.as_ref().unwrap().shards()[0].clone()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { vb, documents } => self.write(*vb, documents),
            Step::Commit => {
                self.shard().commit(&watchdog()).unwrap();
                self.committed = self.model.clone();
            }
            Step::Keep => self.keep(),
            Step::RollBack(pick) => self.roll_back(*pick),
            Step::Snapshot => {
                let snapshot = self.shard().snapshot(&watchdog()).unwrap();
                let entries = self.model.instances.keys().map(|inst| (*inst, self.model.entries(*inst)));
                self.snapshots.push((snapshot, entries.collect()));
            }
            Step::DropSnapshot => {
                self.snapshots.pop();
            }
            Step::CreateInstance => self.create_instance(),
            Step::DropInstance(pick) => {
                let count = self.model.instances.len();
                if count > 1 {
                    let inst = *self.model.instances.keys().nth(usize::from(*pick) % count).unwrap();
                    self.shard().drop_instance(inst).unwrap();
                    self.model.instances.remove(&inst);
                }
            }
            Step::Reopen => self.reopen(),
        }
    }

    fn write(&mut self, vb: usize, documents: &[(u8, BTreeSet<u8>)]) {
        let from = self.model.reached(vb);
        let history = &mut self.model.history[vb];
        history.extend(
            documents.iter().map(|(id, keys)| {
                (format!("-v{vb}d{id}"), keys.iter().map(|key| format!("k{key}")).collect())
            }),
        );
        let keys: Vec<(&str, Vec<&str>)> = history[from..]
            .iter()
            .map(|(id, keys)| (id.as_str(), keys.iter().map(String::as_str).collect()))
            .collect();
        let changes: Vec<(&str, &[&str])> = keys.iter().map(|(id, keys)| (*id, keys.as_slice())).collect();
        let reached = history.len();
        let instances: Vec<InstId> = self.model.instances.keys().copied().collect();
        let mut batch = batch_for(&instances, u16::try_from(vb).unwrap(), from as u64, &changes);
        batch.generation = Generation(self.generation);
        apply(&self.shard(), batch);
        self.model.instances.values_mut().for_each(|seen| seen[vb].1 = reached);
    }

    fn keep(&mut self) {
        let point = self.shard().keep_point(&watchdog()).unwrap().unwrap();
        self.model.points.insert(point.0, self.model.instances.clone());
        while self.model.points.len() > POINTS_KEPT {
            self.model.points.pop_first();
        }
        self.committed = self.model.clone();
    }

    fn roll_back(&mut self, pick: u8) {
        let points = self.shard().points(&watchdog()).unwrap();
        let to = points.get(usize::from(pick) % (points.len() + 1)).map(|point| point.id);
        self.generation += 1;
        self.shard().roll_back(to, Generation(self.generation), &watchdog()).unwrap();
        self.model.roll_back(to.map(|point| point.0));
        self.committed = self.model.clone();
    }

    fn create_instance(&mut self) {
        let inst = InstId(self.next_instance);
        self.next_instance += 1;
        self.shard().create_instance(inst, InstanceStart::AtShard).unwrap();
        let furthest = |vb: usize| self.model.instances.values().map(|seen| seen[vb].1).max().unwrap();
        let seen: Seen = std::array::from_fn(|vb| (furthest(vb), furthest(vb)));
        self.model.instances.insert(inst, seen);
    }

    fn reopen(&mut self) {
        self.snapshots.clear();
        close(self.set.take().unwrap());
        self.set = Some(open(self.kind, self.folder.path(), 1, &config()));
        let history = std::mem::take(&mut self.model.history);
        self.model = Model { history, ..self.committed.clone() };
        self.shard()
            .install_generation([VbId(0), VbId(1)], Generation(self.generation), &watchdog())
            .unwrap();
    }

    fn check(&self) {
        let shard = self.shard();
        assert!(shard.instances().iter().eq(self.model.instances.keys()));
        for (inst, seen) in &self.model.instances {
            assert_eq!(entries(&shard, inst.0), self.model.entries(*inst), "instance {inst}");
            let positions = shard.positions(*inst).unwrap();
            for (vb, (_, reached)) in [VbId(0), VbId(1)].into_iter().zip(seen) {
                assert_eq!(positions.get(vb).unwrap_or_default().seqno, Seqno(*reached as u64));
            }
        }
        let points = shard.points(&watchdog()).unwrap();
        assert!(points.iter().map(|point| point.id.0).eq(self.model.points.keys().copied()));
        for (snapshot, expected) in &self.snapshots {
            for (inst, entries) in expected {
                assert_eq!(&in_snapshot(snapshot, inst.0), entries, "a snapshot changed");
            }
        }
    }
}

fn config() -> ShardSetConfig {
    ShardSetConfig { points_kept: POINTS_KEPT, ..manual() }
}

fn a_shard_holds_what_a_map_holds_whatever_is_done_to_it(kind: StoreKind) {
    let cases = std::env::var("DORMOUSE_CASES").map_or(24, |cases| cases.parse().unwrap());
    let mut runner =
        TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&proptest::collection::vec(step(), 1..60), |steps| {
        let mut subject = Subject::new(kind);
        for step in &steps {
            subject.take(step);
            subject.check();
        }
        Ok(())
    });
    outcome.unwrap();
}
