//! The store `memdb`: maps of many leaves, logs and parts, and what is damaged in its files.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use dormouse::event::Generation;
use dormouse::shard::{InstId, Shard, ShardSet, ShardSnapshot, StoreKind};

use crate::support::path::Dice;
use crate::support::shards::{apply, batch_for, close, create, entries, flip, manual, open, try_open};
use crate::support::{eventually, watchdog};

const KIND: StoreKind = StoreKind::Memdb;

/// What an instance has: the keys of each document.
type Documents = BTreeMap<String, Vec<String>>;

/// Writes through a shard and remembers what it must hold.
struct Writer<'s> {
    shard: &'s Shard,
    dice: Dice,
    seqno: u64,
    documents: BTreeMap<u32, Documents>,
}

impl<'s> Writer<'s> {
    fn new(shard: &'s Shard) -> Self {
        Self { shard, dice: Dice::new(7), seqno: 0, documents: BTreeMap::new() }
    }

    /// Keys that are mostly short; a few do not fit into a leaf.
    fn keys(&mut self) -> Vec<String> {
        let mut keys: Vec<String> = (0..self.dice.below(3))
            .map(|_| {
                let pad = if self.dice.below(200) == 0 { 6000 } else { self.dice.below(60) };
                format!("{:05}{}", self.dice.below(50_000), "x".repeat(usize::try_from(pad).unwrap()))
            })
            .collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// Gives new keys to `count` documents out of `of`, in each of `instances`.
    fn write(&mut self, instances: &[u32], count: u64, of: u64) {
        for _ in 0..count.div_ceil(500) {
            let changed: Documents =
                (0..500).map(|_| (format!("-doc{:06}", self.dice.below(of)), self.keys())).collect();
            self.apply(instances, &changed);
        }
    }

    fn apply(&mut self, instances: &[u32], documents: &Documents) {
        let keys: Vec<Vec<&str>> =
            documents.values().map(|keys| keys.iter().map(String::as_str).collect()).collect();
        let changes: Vec<(&str, &[&str])> =
            documents.keys().zip(&keys).map(|(id, keys)| (id.as_str(), keys.as_slice())).collect();
        let ids: Vec<InstId> = instances.iter().copied().map(InstId).collect();
        apply(self.shard, batch_for(&ids, 0, self.seqno, &changes));
        self.seqno += changes.len() as u64;
        for inst in instances {
            self.documents.entry(*inst).or_default().extend(documents.clone());
        }
    }

    fn entries(&self, inst: u32) -> Vec<String> {
        let documents = self.documents.get(&inst).into_iter().flatten();
        let all: BTreeSet<String> =
            documents.flat_map(|(id, keys)| keys.iter().map(move |key| format!("{key}{id}"))).collect();
        all.into_iter().collect()
    }
}

fn only(set: &ShardSet) -> &Shard {
    &set.shards()[0]
}

fn files(folder: &Path, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let listed = std::fs::read_dir(folder.join("shard-0000/memdb")).unwrap();
    let named = listed.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // A file may go while it is looked at.
        let content = std::fs::read(folder.join("shard-0000/memdb").join(&name)).ok()?;
        name.starts_with(prefix).then_some((name, content))
    });
    named.collect()
}

fn scan(snapshot: &ShardSnapshot, low: Bound<Vec<u8>>, high: Bound<Vec<u8>>, dice: &mut Dice) -> Vec<String> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let mut scan = snapshot.scan(InstId(1), &(low, high));
    loop {
        let from_back = dice.below(2) == 0;
        let next = if from_back { scan.next_back() } else { scan.next() };
        let Some(entry) = next else { break };
        let entry = String::from_utf8(entry.unwrap()).unwrap();
        if from_back { back.push(entry) } else { front.push(entry) }
    }
    assert!(scan.next().is_none() && scan.next_back().is_none(), "the scan went on behind its end");
    front.extend(back.into_iter().rev());
    front
}

#[test]
fn scans_of_many_leaves_give_what_lies_between_their_bounds_from_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(KIND, dir.path(), 1, &manual());
    let mut writer = Writer::new(only(&set));
    writer.write(&[1], 6000, 4000);
    let all = writer.entries(1);
    let snapshot = only(&set).snapshot(&watchdog()).unwrap();
    let mut dice = Dice::new(11);
    for _ in 0..100 {
        let mut bound = || {
            let place = usize::try_from(dice.below(all.len() as u64)).unwrap();
            // A key that is there, or one that is next to it.
            let mut key = all[place].clone();
            if dice.below(2) == 0 {
                key.push('~');
            }
            match dice.below(5) {
                0 => Bound::Unbounded,
                1 | 2 => Bound::Included(key),
                _ => Bound::Excluded(key),
            }
        };
        let (low, high) = (bound(), bound());
        let is_within = |entry: &&String| {
            (match &low {
                Bound::Included(low) => *entry >= low,
                Bound::Excluded(low) => *entry > low,
                Bound::Unbounded => true,
            }) && (match &high {
                Bound::Included(high) => *entry <= high,
                Bound::Excluded(high) => *entry < high,
                Bound::Unbounded => true,
            })
        };
        let expected: Vec<String> = all.iter().filter(is_within).cloned().collect();
        let bytes = |bound: &Bound<String>| bound.clone().map(String::into_bytes);
        let found = scan(&snapshot, bytes(&low), bytes(&high), &mut dice);
        assert!(found == expected, "{low:?} to {high:?}: {} instead of {}", found.len(), expected.len());
    }
}

#[test]
fn many_changes_snapshots_and_reopenings_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = create(KIND, dir.path(), 1, &manual());
    let mut last = (BTreeMap::new(), 0);
    for round in 0..4 {
        let mut writer = Writer::new(only(&set));
        (writer.documents, writer.seqno) = last;
        writer.dice = Dice::new(100 + round);
        writer.write(&[1, 2], 12_000, 8000);
        let (before, snapshot) = (writer.entries(1), only(&set).snapshot(&watchdog()).unwrap());
        writer.write(&[1, 2], 1500, 8000);
        // Neighbouring leaves become sparse and are united.
        let gone = (0..1500).map(|n| (format!("-doc{:06}", n + round * 1500), Vec::new())).collect();
        writer.apply(&[1, 2], &gone);
        only(&set).commit(&watchdog()).unwrap();
        let all = (Bound::Unbounded, Bound::Unbounded);
        let found = snapshot.scan(InstId(1), &all).map(|entry| String::from_utf8(entry.unwrap()).unwrap());
        assert!(found.eq(before), "the snapshot changed");
        drop(snapshot);
        let expected = [1, 2].map(|inst| writer.entries(inst));
        last = (writer.documents, writer.seqno);
        only(&set).check(&watchdog()).unwrap();
        close(set);
        set = open(KIND, dir.path(), 1, &manual());
        assert!([1, 2].map(|inst| entries(only(&set), inst)) == expected, "after reopening {round}");
    }
    assert!(!files(dir.path(), "part-").is_empty(), "parts were never written");
}

#[test]
fn parts_of_an_instance_that_did_not_change_stay_when_others_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(KIND, dir.path(), 1, &manual());
    let mut writer = Writer::new(only(&set));
    writer.write(&[1, 2], 12_000, 12_000);
    only(&set).commit(&watchdog()).unwrap();
    eventually("logs become parts", || files(dir.path(), "part-").len() >= 2);
    let first = files(dir.path(), "part-");
    let mut changed = BTreeMap::new();
    eventually("parts are written once more", || {
        writer.write(&[2], 3000, 12_000);
        only(&set).commit(&watchdog()).unwrap();
        changed = files(dir.path(), "part-");
        changed.len() >= 2 && first.keys().any(|name| !changed.contains_key(name))
    });
    let stayed = first.iter().filter(|(name, content)| changed.get(*name) == Some(*content)).count();
    assert!(stayed > 0, "{:?} became {:?}", first.keys(), changed.keys());
    drop(set);
}

#[test]
fn small_logs_are_united() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(KIND, dir.path(), 1, &manual());
    let mut writer = Writer::new(only(&set));
    for n in 0..100 {
        writer.apply(&[1, 2], &Documents::from([(format!("-d{n}"), vec!["k".to_owned()])]));
        only(&set).commit(&watchdog()).unwrap();
    }
    eventually("logs are united", || files(dir.path(), "log-").len() < 8);
    let expected = writer.entries(1);
    close(set);
    assert_eq!(entries(only(&open(KIND, dir.path(), 1, &manual())), 1), expected);
}

#[test]
fn the_files_of_a_kept_point_stay_as_long_as_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(KIND, dir.path(), 1, &manual());
    let mut writer = Writer::new(only(&set));
    writer.write(&[1, 2], 1000, 1000);
    let expected = writer.entries(1);
    let point = only(&set).keep_point(&watchdog()).unwrap().unwrap();
    // Both are written as parts, and their logs go, but for the point's.
    eventually("parts are written", || {
        writer.write(&[1, 2], 12_000, 12_000);
        only(&set).commit(&watchdog()).unwrap();
        !files(dir.path(), "part-").is_empty()
    });
    only(&set).roll_back(Some(point), Generation(1), &watchdog()).unwrap();
    assert!(entries(only(&set), 1) == expected);
    eventually("parts go that the point does not have", || files(dir.path(), "part-").is_empty());
    only(&set).roll_back(None, Generation(2), &watchdog()).unwrap();
    eventually("the point's files go with it", || files(dir.path(), "log-").len() <= 1);
    assert!(files(dir.path(), "point-").is_empty());
}

/// A closed shard with parts, logs and a kept point, and the entries that it has.
fn whole(folder: &Path) -> Vec<String> {
    let set = create(KIND, folder, 1, &manual());
    let mut writer = Writer::new(only(&set));
    writer.write(&[1, 2], 1000, 1000);
    only(&set).keep_point(&watchdog()).unwrap().unwrap();
    // What a dropped index had is not worth keeping: parts are written.
    only(&set).drop_instance(InstId(2)).unwrap();
    only(&set).commit(&watchdog()).unwrap();
    eventually("parts are written", || !files(folder, "part-").is_empty());
    writer.write(&[1], 500, 1000);
    only(&set).commit(&watchdog()).unwrap();
    let expected = writer.entries(1);
    close(set);
    expected
}

fn store_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("shard-0000/memdb").join(name)
}

/// Whether the shard in `folder` opens: its entries, or the error.
fn look(folder: &Path) -> Result<Vec<String>, String> {
    let set = try_open(KIND, folder, 1, &manual()).map_err(|error| error.to_string())?;
    let found = entries(only(&set), 1);
    close(set);
    Ok(found)
}

/// The files that the newest recovery point has, and the descriptions of kept ones.
fn needed(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let set = open(KIND, folder, 1, &manual());
    let guard = only(&set).lock("test", &watchdog()).unwrap();
    let named = guard.files().iter().filter_map(|file| file.name.strip_prefix("memdb/"));
    let mut needed: BTreeMap<String, Vec<u8>> =
        named.map(|name| (name.to_owned(), std::fs::read(store_file(folder, name)).unwrap())).collect();
    needed.extend(files(folder, "point-"));
    drop(guard);
    close(set);
    needed
}

#[test]
fn a_damaged_byte_in_any_file_is_found_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let expected = whole(dir.path());
    let needed = needed(dir.path());
    let kinds: BTreeSet<&str> = needed.keys().map(|name| name.split('-').next().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(["log", "manifest", "part", "point"]));
    for (name, content) in &needed {
        let path = store_file(dir.path(), name);
        let near_the_start = 0..40.min(content.len());
        let step = (content.len() / 30).max(1);
        let spread = (0..content.len()).step_by(step);
        for at in near_the_start.chain(spread).chain([content.len() - 1]) {
            flip(&path, at);
            match look(dir.path()) {
                Err(error) => assert!(error.contains(name), "byte {at} of {name}: {error}"),
                Ok(_) => panic!("it opened with byte {at} of {name} changed"),
            }
            flip(&path, at);
        }
        for keep in [0, 7, 8, 19, content.len() / 2, content.len() - 1] {
            std::fs::write(&path, &content[..keep.min(content.len() - 1)]).unwrap();
            let error = look(dir.path()).unwrap_err();
            assert!(error.contains(name), "{name} cut to {keep}: {error}");
        }
        let longer = [content.as_slice(), b"x"].concat();
        std::fs::write(&path, longer).unwrap();
        let error = look(dir.path()).unwrap_err();
        assert!(error.contains(name), "{name} with a byte more: {error}");
        std::fs::write(&path, content).unwrap();
    }
    assert!(look(dir.path()).unwrap() == expected);
}

#[test]
fn a_roll_back_to_a_point_with_a_damaged_file_names_it_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = whole(dir.path());
    let newest: BTreeSet<String> = needed(dir.path()).into_keys().collect();
    let logs = files(dir.path(), "log-");
    let of_the_point = logs.keys().find(|name| !newest.contains(*name)).unwrap();
    flip(&store_file(dir.path(), of_the_point), 25);
    let set = open(KIND, dir.path(), 1, &manual());
    let point = only(&set).points(&watchdog()).unwrap()[0].id;
    let error = only(&set).roll_back(Some(point), Generation(1), &watchdog()).unwrap_err().to_string();
    assert!(error.contains(of_the_point), "{error}");
    close(set);
    assert!(look(dir.path()).unwrap() == expected);
}

#[test]
fn what_a_crash_left_is_removed_and_what_is_not_ours_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let expected = whole(dir.path());
    let before: BTreeSet<String> = files(dir.path(), "").into_keys().collect();
    let leftovers = ["part-900", "log-901", "point-902", "pin-1", "manifest.tmp", "point-903.tmp"];
    for name in leftovers.into_iter().chain(["notes"]) {
        std::fs::write(store_file(dir.path(), name), "x").unwrap();
    }
    assert!(look(dir.path()).unwrap() == expected);
    let after: BTreeSet<String> = files(dir.path(), "").into_keys().collect();
    assert!(after.is_subset(&(&before | &BTreeSet::from(["notes".to_owned()]))), "{after:?}");
    assert!(after.contains("notes"));
}

#[test]
fn files_of_format_version_1_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/memdb-v1"), dir.path());
    std::fs::create_dir_all(to.join("shard-0000/memdb")).unwrap();
    for name in ["shard.meta", "memdb/manifest", "memdb/part-4", "memdb/log-5", "memdb/log-6"] {
        std::fs::copy(from.join(name), to.join("shard-0000").join(name)).unwrap();
    }
    let set = open(KIND, to, 1, &manual());
    assert_eq!(only(&set).instances(), [InstId(1)]);
    assert_eq!(entries(only(&set), 1), ["a-2", "b-2", "b-3", "c-1"]);
    only(&set).check(&watchdog()).unwrap();
}
