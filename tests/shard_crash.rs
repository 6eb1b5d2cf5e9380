//! A process is killed at any moment: what is found is a recovery point, the last one that it told of or a later one.
//!
//! The writer is this binary once more, with nothing but the test that is the writer. Each change of a vbucket is
//! a function of its seqno, so the position alone says what a shard must hold.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam::channel::bounded;
use dormouse::event::{Generation, VbId};
use dormouse::shard::{InstId, Shard, ShardSetConfig, StoreKind};
use dormouse::thread::{self, Until, fin, spawn};

use crate::support::path::Dice;
use crate::support::shards::{apply, batch, close, create, entries, for_each_store, manual, open};
use crate::support::{is_long, watchdog};

for_each_store! {
    a_killed_process_leaves_a_recovery_point,
}

/// Folder, store and seed, for the writer.
const WRITER: &str = "DORMOUSE_TEST_WRITER";
const DOCUMENTS: u64 = 40;
const VBUCKETS: u16 = 2;
const ROUNDS: u64 = 20;
const LONG_ROUNDS: u64 = 200;

fn config() -> ShardSetConfig {
    ShardSetConfig { points_kept: 2, ..manual() }
}

/// The document that a change writes, and its keys.
fn change(vb: u16, seqno: u64) -> (String, Vec<String>) {
    let mut dice = Dice::new(seqno * 2 + u64::from(vb));
    let id = format!("v{vb}d{:02}", dice.below(DOCUMENTS));
    let mut keys: Vec<String> = (0..dice.below(4)).map(|_| format!("key-{:03}-", dice.below(500))).collect();
    keys.sort();
    keys.dedup();
    (id, keys)
}

fn expected(reached: [u64; VBUCKETS as usize]) -> Vec<String> {
    let mut documents = BTreeMap::new();
    for (vb, reached) in (0..).zip(reached) {
        documents.extend((1..=reached).map(|seqno| change(vb, seqno)));
    }
    let mut all: Vec<String> =
        documents.iter().flat_map(|(id, keys)| keys.iter().map(move |key| format!("{key}{id}"))).collect();
    all.sort();
    all
}

fn reached(shard: &Shard) -> [u64; VBUCKETS as usize] {
    let positions = shard.positions(InstId(1)).unwrap();
    [0, 1].map(|vb| positions.get(VbId(vb)).unwrap_or_default().seqno.0)
}

/// Applies changes to both vbuckets, commits, keeps points and rolls back, as the dice fall, and tells of each
/// position that is durable before it goes on.
fn write(folder: &Path, kind: StoreKind, seed: u64, mut steps: u64, tell: &mut dyn FnMut(String)) {
    let mut dice = Dice::new(seed);
    let set = open(kind, folder, 1, &config());
    let shard = set.shards()[0].clone();
    let mut generation = 0;
    while steps > 0 {
        steps -= 1;
        match dice.below(12) {
            0..7 => {
                let vb = u16::try_from(dice.below(u64::from(VBUCKETS))).unwrap();
                let from = reached(&shard)[usize::from(vb)];
                let texts: Vec<(String, Vec<String>)> =
                    (1..=1 + dice.below(20)).map(|n| change(vb, from + n)).collect();
                let keys: Vec<Vec<&str>> =
                    texts.iter().map(|(_, keys)| keys.iter().map(String::as_str).collect()).collect();
                let changes: Vec<(&str, &[&str])> =
                    texts.iter().zip(&keys).map(|((id, _), keys)| (id.as_str(), keys.as_slice())).collect();
                let mut batch = batch(vb, from, &changes);
                batch.generation = Generation(generation);
                apply(&shard, batch);
            }
            7..10 => {
                shard.commit(&watchdog()).unwrap();
                tell(format!("at {:?}", reached(&shard)));
            }
            10 => {
                shard.keep_point(&watchdog()).unwrap();
                tell(format!("at {:?}", reached(&shard)));
            }
            _ => {
                let points = shard.points(&watchdog()).unwrap();
                let to = points.get(usize::try_from(dice.below(3)).unwrap()).map(|point| point.id);
                generation += 1;
                // Between the two lines it may be found on either side.
                tell("back".to_owned());
                shard.roll_back(to, Generation(generation), &watchdog()).unwrap();
                tell(format!("at {:?}", reached(&shard)));
            }
        }
    }
    close(set);
}

#[test]
fn the_writer_that_is_killed_keeps_its_own_promise() {
    if let Ok(order) = std::env::var(WRITER) {
        let (kind, rest) = order.split_once(',').unwrap();
        let (seed, folder) = rest.split_once(',').unwrap();
        let kind = serde_json::from_str(&format!("{kind:?}")).unwrap();
        let mut out = std::io::stdout();
        write(Path::new(folder), kind, seed.parse().unwrap(), u64::MAX, &mut |line| {
            writeln!(out, "writer {line}").and_then(|()| out.flush()).unwrap();
        });
    }
    let dir = tempfile::tempdir().unwrap();
    close(create(StoreKind::Lsm, dir.path(), 1, &config()));
    let mut told = String::new();
    write(dir.path(), StoreKind::Lsm, 3, 200, &mut |line| told = line);
    let set = open(StoreKind::Lsm, dir.path(), 1, &config());
    let shard = &set.shards()[0];
    assert_eq!(told, format!("at {:?}", reached(shard)));
    assert_eq!(entries(shard, 1), expected(reached(shard)));
}

struct Writer {
    child: Child,
    lines: crossbeam::channel::Receiver<String>,
    reader: thread::Thread<()>,
}

impl Writer {
    fn start(folder: &Path, kind: StoreKind, seed: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["shard_crash::the_writer_that_is_killed_keeps_its_own_promise", "--exact", "--nocapture"])
            .env(WRITER, format!("{kind},{seed},{}", folder.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = bounded(100_000);
        let reader = spawn("t-reader", move || {
            let (_holder, never) = fin();
            for line in out.lines().map_while(Result::ok) {
                // The first one stands behind the test's name.
                if let Some((_, line)) = line.rsplit_once("writer ") {
                    let _ = thread::send(&told, line.to_owned(), &never);
                }
            }
        })
        .unwrap();
        Self { child, lines, reader }
    }

    /// Kills it some time after it told `lines` lines; what it told last.
    fn kill(mut self, lines: u64, after: Duration) -> Vec<String> {
        let mut told: Vec<String> =
            (0..lines).map(|_| thread::recv(&self.lines, &watchdog()).unwrap()).collect();
        let (_holder, never) = fin();
        let _ = never.wait(&Until::within(after));
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.join(&watchdog()).unwrap();
        told.extend(self.lines.try_iter());
        told
    }
}

fn a_killed_process_leaves_a_recovery_point(kind: StoreKind) {
    let rounds = if is_long() { LONG_ROUNDS } else { ROUNDS };
    let dir = tempfile::tempdir().unwrap();
    let folder = PathBuf::from(dir.path());
    close(create(kind, &folder, 1, &config()));
    let mut dice = Dice::new(0xdead);
    for round in 0..rounds {
        let writer = Writer::start(&folder, kind, round);
        let told = writer.kill(dice.below(30), Duration::from_micros(dice.below(20_000)));
        let set = open(kind, &folder, 1, &config());
        let shard = &set.shards()[0];
        shard.check(&watchdog()).unwrap();
        let found = reached(shard);
        assert_eq!(entries(shard, 1), expected(found), "round {round}: it is no recovery point");
        assert_eq!(entries(shard, 2), expected(found), "round {round}: the indexes differ");
        if let Some(at) = told.last().and_then(|line| line.strip_prefix("at ")) {
            let at: [u64; VBUCKETS as usize] = serde_json::from_str(at).unwrap();
            let is_behind = found.iter().zip(at).any(|(found, at)| *found < at);
            assert!(!is_behind, "round {round}: {found:?} after {told:?}");
        }
        for point in shard.points(&watchdog()).unwrap() {
            assert_eq!(point.positions.len(), 2, "round {round}: a point is half done");
        }
        close(set);
    }
}
