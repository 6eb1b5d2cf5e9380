//! The store `lsm`: what is damaged in its files is found, what is new to it is not looked for, and what it needs no
//! longer goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dormouse::shard::{InstId, OpenError, Shard, ShardSet, ShardSetConfig, StoreKind};

use crate::support::failures::Failures;
use crate::support::shards::{
    apply, batch, close, create, entries, flip, in_snapshot, manual, open, specs, try_open,
};
use crate::support::{eventually, tree, watchdog};

/// Damages the folder of the only shard, and tells how it does not open any more.
fn damaged(damage: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let set = create(StoreKind::Lsm, dir.path(), 1, &manual());
    apply(&set.shards()[0], batch(0, 0, &[("d", &["k"])]));
    set.commit(&watchdog()).unwrap();
    close(set);
    damage(&dir.path().join("shard-0000"));
    match try_open(StoreKind::Lsm, dir.path(), 1, &manual()) {
        Err(error) => error.to_string(),
        Ok(set) => panic!("it opened, with {:?}", entries(&set.shards()[0], 1)),
    }
}

fn newest_version(shard: &Path) -> std::path::PathBuf {
    let current = std::fs::read(shard.join("lsm/current")).unwrap();
    let id = u64::from_le_bytes(current[..8].try_into().unwrap());
    shard.join(format!("lsm/v{id}"))
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
fn every_damaged_byte_of_a_shard_s_version_is_found() {
    let dir = tempfile::tempdir().unwrap();
    close(create(StoreKind::Lsm, dir.path(), 1, &manual()));
    let shard = dir.path().join("shard-0000");
    for path in [newest_version(&shard), shard.join("lsm/current")] {
        for at in 0..std::fs::read(&path).unwrap().len() {
            flip(&path, at);
            let opened = try_open(StoreKind::Lsm, dir.path(), 1, &manual());
            assert!(matches!(opened, Err(OpenError::Store { .. })), "byte {at} of {}", path.display());
            flip(&path, at);
        }
    }
    close(open(StoreKind::Lsm, dir.path(), 1, &manual()));
}

fn tables(shard_folder: &Path) -> BTreeSet<String> {
    let listed = std::fs::read_dir(shard_folder.join("lsm/tables")).unwrap();
    listed.map(|entry| format!("lsm/tables/{}", entry.unwrap().file_name().to_str().unwrap())).collect()
}

#[test]
fn a_scan_that_ends_under_the_lock_leaves_its_files_until_the_unlock() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(StoreKind::Lsm, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let folder = dir.path().join("shard-0000");
    let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    let (mut seqno, mut scans) = (0, Vec::new());
    let mut guard = None;
    eventually("a compaction made a table obsolete that a scan still reads", || {
        let id = format!("d{seqno}");
        apply(shard, batch(0, seqno, &[(&id, &["k"])]));
        seqno += 1;
        shard.commit(&watchdog()).unwrap();
        scans.push(shard.snapshot(&watchdog()).unwrap().scan(InstId(1), &all));
        let locked = shard.lock("test", &watchdog()).unwrap();
        let live: BTreeSet<String> = locked.files().iter().map(|file| file.name.clone()).collect();
        let has_obsolete = !tables(&folder).is_subset(&live);
        guard = has_obsolete.then_some(locked);
        has_obsolete
    });
    let before = tree(&folder);
    for scan in scans {
        assert!(scan.count() > 0);
    }
    assert!(tree(&folder) == before, "the disk changed under the lock");
    let live: BTreeSet<String> =
        guard.as_ref().unwrap().files().iter().map(|file| file.name.clone()).collect();
    let obsolete: BTreeSet<String> = tables(&folder).difference(&live).cloned().collect();
    drop(guard);
    eventually("obsolete tables go after the unlock", || tables(&folder).is_disjoint(&obsolete));
}

#[test]
fn a_document_that_changes_loses_its_old_entry_however_many_new_ones_came_before() {
    const PHASES: u32 = 3;
    // What tells which are new grows in the first phase and is given up in the second.
    const PHASE_DOCUMENTS: u32 = 50_000;
    let dir = tempfile::tempdir().unwrap();
    let config = ShardSetConfig { cache_bytes: 512 * 1024, ..manual() };
    let set = create(StoreKind::Lsm, dir.path(), 1, &config);
    let (mut keys, mut seqno) = (BTreeMap::new(), 0);
    let mut write = |numbers: Vec<u32>, key: &str| {
        let keys_now = [key];
        let ids: Vec<String> = numbers.into_iter().map(|number| format!("d{number:06}")).collect();
        for ids in ids.chunks(1000) {
            let documents: Vec<(&str, &[&str])> = ids.iter().map(|id| (id.as_str(), &keys_now[..])).collect();
            apply(&set.shards()[0], batch(0, seqno, &documents));
            seqno += documents.len() as u64;
        }
        keys.extend(ids.into_iter().map(|id| (id, key.to_owned())));
    };
    for phase in 0..PHASES {
        let end = (phase + 1) * PHASE_DOCUMENTS;
        write((phase * PHASE_DOCUMENTS..end).collect(), "first");
        write((phase..end).step_by(97).collect(), &format!("phase {phase}"));
        set.commit(&watchdog()).unwrap();
    }
    let mut expected: Vec<String> = keys.into_iter().map(|(id, key)| key + &id).collect();
    expected.sort();
    assert!(entries(&set.shards()[0], 1) == expected);
    close(set);
}

/// Writes a document again and again, from this seqno on, and sees that no recovery point leaves it in memory.
fn write_and_look(shard: &Shard, first: u64) {
    const KEY_BYTES: usize = 10_000;
    let key = "k".repeat(KEY_BYTES);
    for point in first..first + 10 {
        apply(shard, batch(0, point, &[("d", &[&key, &point.to_string()])]));
        assert!(shard.status().memory_bytes > KEY_BYTES as u64);
        shard.commit(&watchdog()).unwrap();
        let left_bytes = shard.status().memory_bytes;
        assert!(left_bytes < KEY_BYTES as u64, "{left_bytes} bytes are left after recovery point {point}");
    }
}

#[test]
fn what_is_durable_is_in_memory_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(StoreKind::Lsm, dir.path(), 1, &manual());
    write_and_look(&set.shards()[0], 0);
    close(set);
}

#[test]
fn a_snapshot_keeps_what_it_had_and_nothing_that_came_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(StoreKind::Lsm, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["first"])]));
    let snapshot = shard.snapshot(&watchdog()).unwrap();
    write_and_look(shard, 1);
    assert_eq!(in_snapshot(&snapshot, 1), ["firstd"]);
    drop(snapshot);
    close(set);
}

#[test]
fn what_was_merged_is_on_disk_no_longer() {
    const POINTS: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let set = create(StoreKind::Lsm, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let hold = shard.hold_merges(&watchdog()).unwrap();
    for point in 0..POINTS {
        apply(shard, batch(0, point, &[(&format!("d{point}"), &["k"])]));
        shard.commit(&watchdog()).unwrap();
    }
    drop(hold);
    eventually("only the tables of the newest version are there", || {
        let there = tables(&dir.path().join("shard-0000"));
        let guard = shard.lock("test", &watchdog()).unwrap();
        let is_listed = |table: &String| guard.files().iter().any(|file| file.name == *table);
        (there.len() as u64) < POINTS && there.iter().all(is_listed)
    });
    close(set);
}

#[test]
fn a_merge_that_fails_again_and_again_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut set, mut seqno) = (create(StoreKind::Lsm, dir.path(), 1, &manual()), 0);
    let mut write = |set: &ShardSet, changes: u64| {
        for _ in 0..changes {
            apply(&set.shards()[0], batch(0, seqno, &[(&format!("d{seqno}"), &["k"])]));
            seqno += 1;
        }
    };
    write(&set, 1000);
    set.commit(&watchdog()).unwrap();
    close(set);
    let (failures, logger) = Failures::heard();
    set = ShardSet::open(dir.path(), specs(StoreKind::Lsm, 1), &manual(), None, &logger).unwrap();
    let folder = dir.path().join("shard-0000");
    for table in tables(&folder) {
        // A block that nothing has read.
        let path = folder.join(table);
        let middle = std::fs::metadata(&path).unwrap().len() / 2;
        flip(&path, usize::try_from(middle).unwrap());
    }
    let mut write_durably = || {
        write(&set, 1);
        set.commit(&watchdog()).unwrap();
    };
    eventually("a merge fails", || {
        write_durably();
        !failures.told().is_empty()
    });
    (0..50).for_each(|_| write_durably());
    let told = failures.told();
    assert!(told.len() == 1 && told.values().all(|times| *times == 1), "{told:?}");
    close(set);
}
