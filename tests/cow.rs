//! The store `cow`: its one file changes when it is written and at no other time, and damage in it is found.

use std::ops::Bound;
use std::path::{Path, PathBuf};

use dormouse::event::Generation;
use dormouse::shard::{InstId, InstanceStart, ShardSetConfig, StoreKind};
use dormouse::thread::{fin, spawn};

use crate::support::shards::{
    apply, batch, batch_for, close, create, entries, manual, open, restore, specs, try_open,
};
use crate::support::{cancelled, eventually, tree, watchdog};

const COW: StoreKind = StoreKind::Cow;
const PAGE_BYTES: usize = 4096;

fn file(folder: &Path) -> PathBuf {
    folder.join("shard-0000/cow.redb")
}

fn documents(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("document-{n:06}")).collect()
}

fn pairs(ids: &[String]) -> Vec<(&str, &[&str])> {
    ids.iter().map(|id| (id.as_str(), &["some key of a document"][..])).collect()
}

/// The content of a shard's file with two documents, and the folder that it is in.
fn small_shard() -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    apply(&set.shards()[0], batch(0, 0, &[("d", &["k", "l"]), ("e", &["k"])]));
    set.commit(&watchdog()).unwrap();
    close(set);
    let content = std::fs::read(file(dir.path())).unwrap();
    (dir, content)
}

/// Opens a shard with this file. It must be the shard of [`small_shard`], or not open and say which file it was.
fn opens_right_or_not_at_all(folder: &Path, content: &[u8], what: &str) -> bool {
    std::fs::write(file(folder), content).unwrap();
    match try_open(COW, folder, 1, &manual()) {
        Ok(set) => {
            for inst in [1, 2] {
                assert_eq!(entries(&set.shards()[0], inst), ["kd", "ke", "ld"], "{what}");
            }
            assert_eq!(set.shards()[0].positions(InstId(1)).unwrap().iter().count(), 1, "{what}");
            close(set);
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("cow.redb"), "{what}: {error}");
            false
        }
    }
}

#[test]
fn a_damaged_byte_of_the_file_is_found_or_was_of_no_use() {
    let (dir, whole) = small_shard();
    assert!(opens_right_or_not_at_all(dir.path(), &whole, "undamaged"));
    let header = 0..320;
    let used: Vec<usize> = (1..whole.len() / PAGE_BYTES)
        .filter(|page| whole[page * PAGE_BYTES..][..PAGE_BYTES].iter().any(|byte| *byte != 0))
        .flat_map(|page| [0, 1, 2, 4, 9, 17, 40, 64, 100, 300, 1000, 4000].map(|at| page * PAGE_BYTES + at))
        .collect();
    let mut found = 0;
    for at in header.chain(used.iter().copied()) {
        let mut content = whole.clone();
        content[at] ^= 0x10;
        found += usize::from(!opens_right_or_not_at_all(dir.path(), &content, &format!("byte {at}")));
    }
    assert!(found > 50, "{found} of {} damages found", used.len() + 320);
    assert!(opens_right_or_not_at_all(dir.path(), &whole, "repaired"));
}

#[test]
fn a_file_that_is_cut_or_missing_or_empty_is_never_an_empty_shard() {
    let (dir, whole) = small_shard();
    let lengths =
        (0..12).chain([100, 320, 4095, 4096, 4097, 8192, 9000]).chain((0..whole.len()).step_by(1 << 17));
    for length in lengths {
        opens_right_or_not_at_all(dir.path(), &whole[..length], &format!("cut to {length}"));
    }
    for length in [0, 8, 320, PAGE_BYTES, 2 * PAGE_BYTES, 5 * PAGE_BYTES] {
        let what = format!("cut to {length}");
        assert!(!opens_right_or_not_at_all(dir.path(), &whole[..length], &what), "{what}");
    }
    let mut zeros = whole.clone();
    zeros.fill(0);
    assert!(!opens_right_or_not_at_all(dir.path(), &zeros, "zeros"));
    std::fs::remove_file(file(dir.path())).unwrap();
    let error = try_open(COW, dir.path(), 1, &manual()).err().unwrap().to_string();
    assert!(error.contains("cow.redb"), "{error}");
    assert!(!file(dir.path()).exists());
}

#[test]
fn damage_under_an_open_shard_is_found_by_a_check() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let ids = documents(0..2000);
    apply(shard, batch(0, 0, &pairs(&ids)));
    shard.commit(&watchdog()).unwrap();
    // What is uncommitted does not disturb it.
    apply(shard, batch(0, 2000, &[("later", &["k"])]));
    shard.check(&watchdog()).unwrap();
    let content = std::fs::read(file(dir.path())).unwrap();
    let key = b"some key of a documentdocument-001000";
    let at = content.windows(key.len()).position(|window| window == key).unwrap();
    let opened = std::fs::File::options().write(true).open(file(dir.path())).unwrap();
    opened.write_all_at(b"X", at as u64).unwrap();
    let error = shard.check(&watchdog()).unwrap_err().to_string();
    assert!(error.contains("cow.redb"), "{error}");
    opened.write_all_at(&key[..1], at as u64).unwrap();
    shard.check(&watchdog()).unwrap();
    std::fs::remove_file(file(dir.path())).unwrap();
    let error = shard.check(&watchdog()).unwrap_err().to_string();
    assert!(error.contains("cow.redb"), "{error}");
}

#[test]
fn a_check_ends_with_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let error = set.shards()[0].check(&cancelled()).unwrap_err().to_string();
    assert!(error.contains("cancelled"), "{error}");
    set.shards()[0].check(&watchdog()).unwrap();
}

#[test]
fn opening_reading_and_closing_change_no_byte() {
    let (dir, whole) = small_shard();
    for sealed_by in [None, Some("pause 7")] {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let set = dormouse::shard::ShardSet::open(dir.path(), specs(COW, 1), &manual(), sealed_by, &logger)
            .unwrap();
        assert_eq!(entries(&set.shards()[0], 1), ["kd", "ke", "ld"]);
        set.shards()[0].check(&watchdog()).unwrap();
        close(set);
        assert!(std::fs::read(file(dir.path())).unwrap() == whole, "sealed by {sealed_by:?}");
    }
}

#[test]
fn closing_makes_nothing_durable_that_no_recovery_point_has() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["old"])]));
    shard.commit(&watchdog()).unwrap();
    apply(shard, batch(0, 1, &[("d", &["new"])]));
    // A snapshot makes the write visible to readers of the file.
    assert_eq!(entries(shard, 1), ["newd"]);
    apply(shard, batch(0, 2, &[("e", &["new"])]));
    close(set);
    let set = open(COW, dir.path(), 1, &manual());
    assert_eq!(entries(&set.shards()[0], 1), ["oldd"]);
    apply(&set.shards()[0], batch(0, 1, &[("d", &["newer"])]));
    set.commit(&watchdog()).unwrap();
    assert_eq!(entries(&set.shards()[0], 1), ["newerd"]);
}

#[test]
fn scans_that_read_and_end_under_a_lock_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    // Less than the shard's pages: reads have to make room.
    let config = ShardSetConfig { cache_bytes: 128 * 1024, ..manual() };
    let set = create(COW, dir.path(), 1, &config);
    let shard = &set.shards()[0];
    let mut from = 0;
    for round in 0..5 {
        let ids = documents(round * 1000..round * 1000 + 3000);
        apply(shard, batch(0, from, &pairs(&ids)));
        from += 3000;
        entries(shard, 1);
        shard.commit(&watchdog()).unwrap();
    }
    let all = (Bound::Unbounded, Bound::Unbounded);
    let early = shard.snapshot(&watchdog()).unwrap().scan(InstId(1), &all);
    let guard = shard.lock("test", &watchdog()).unwrap();
    let before = tree(&dir.path().join("shard-0000"));
    assert_eq!(early.count(), 7000);
    assert_eq!(entries(shard, 1).len(), 7000);
    assert_eq!(entries(shard, 2).len(), 7000);
    assert!(tree(&dir.path().join("shard-0000")) == before, "the disk changed under the lock");
    drop(guard);
    assert!(
        tree(&dir.path().join("shard-0000")) == before,
        "the disk changed after an unlock that held nothing up"
    );
}

/// Opens a folder with these files as a shard, and gives back its entries and its position.
fn restored(files: &[dormouse::shard::store::ShardFile]) -> (usize, u64) {
    let copy = tempfile::tempdir().unwrap();
    restore(files, copy.path());
    let set = open(COW, copy.path(), 1, &manual());
    let shard = &set.shards()[0];
    let position =
        shard.positions(InstId(1)).unwrap().iter().next().map_or(0, |(_, position)| position.seqno.0);
    let found = (entries(shard, 1).len(), position);
    assert_eq!(entries(shard, 2).len(), found.0);
    close(set);
    found
}

#[test]
fn files_that_are_pinned_while_others_write_are_a_recovery_point() {
    let dir = tempfile::tempdir().unwrap();
    let config = ShardSetConfig { cache_bytes: 256 * 1024, ..manual() };
    let set = create(COW, dir.path(), 1, &config);
    let shard = set.shards()[0].clone();
    let (stop, stopped) = fin();
    let writer = {
        let shard = shard.clone();
        spawn("writer", move || {
            let mut from = 0;
            while !stopped.is_given() {
                let ids = documents(from..from + 50);
                apply(&shard, batch(0, from as u64, &pairs(&ids)));
                from += 50;
            }
            from as u64
        })
        .unwrap()
    };
    let mut last = 0;
    for _ in 0..5 {
        let pinned = shard.pin(&watchdog()).unwrap();
        let (entries, position) = restored(pinned.files());
        assert_eq!(entries as u64, position);
        eventually("more is written", || {
            shard.positions(InstId(1)).unwrap().iter().any(|(_, p)| p.seqno.0 > position)
        });
        assert!(position >= last);
        last = position;
        let kept = shard.keep_point(&watchdog()).unwrap().unwrap();
        shard.check(&watchdog()).unwrap();
        assert!(shard.points(&watchdog()).unwrap().iter().any(|point| point.id == kept));
    }
    drop(stop);
    let written = writer.join(&watchdog()).unwrap();
    let point = shard.points(&watchdog()).unwrap().pop().unwrap();
    shard.roll_back(Some(point.id), Generation(1), &watchdog()).unwrap();
    let reached = point.positions[0].1[0].1.seqno.0;
    assert!(reached > 0 && reached <= written);
    assert_eq!(entries(&shard, 1).len() as u64, reached);
    close(set);
}

#[test]
fn kept_recovery_points_do_not_make_the_file_grow() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let ids = documents(0..1000);
    let mut from = 0;
    let mut rewrite = |round: usize| {
        let key = format!("key of round {round:03}");
        let changes: Vec<(&str, [&str; 1])> = ids.iter().map(|id| (id.as_str(), [key.as_str()])).collect();
        let changes: Vec<(&str, &[&str])> = changes.iter().map(|(id, keys)| (*id, &keys[..])).collect();
        apply(shard, batch(0, from, &changes));
        from += 1000;
        shard.commit(&watchdog()).unwrap();
        std::fs::metadata(file(dir.path())).unwrap().len()
    };
    (0..5).for_each(|round| {
        rewrite(round);
    });
    shard.keep_point(&watchdog()).unwrap().unwrap();
    let before = rewrite(5);
    let after = (6..40).map(&mut rewrite).last().unwrap();
    assert!(after <= 2 * before, "{before} bytes became {after}");
}

#[test]
fn points_of_a_time_that_was_rolled_back_are_gone_when_the_roll_back_broke_off() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["k"])]));
    let first = shard.keep_point(&watchdog()).unwrap().unwrap();
    apply(shard, batch(0, 1, &[("e", &["k"])]));
    let second = shard.keep_point(&watchdog()).unwrap().unwrap();
    let folder = dir.path().join(format!("shard-0000/points/{second}"));
    let aside = dir.path().join("aside");
    std::fs::create_dir(&aside).unwrap();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), aside.join(entry.file_name())).unwrap();
    }
    shard.roll_back(Some(first), Generation(1), &watchdog()).unwrap();
    close(set);
    std::fs::rename(&aside, &folder).unwrap();
    let set = open(COW, dir.path(), 1, &manual());
    let points: Vec<_> = set.shards()[0].points(&watchdog()).unwrap().iter().map(|point| point.id).collect();
    assert_eq!(points, [first]);
    assert!(!folder.exists());
    assert_eq!(entries(&set.shards()[0], 1), ["kd"]);
}

#[test]
fn what_a_crash_left_is_removed_when_the_shard_is_opened() {
    let (dir, _) = small_shard();
    let shard = dir.path().join("shard-0000");
    std::fs::write(shard.join("cow.redb.tmp"), b"half a roll-back").unwrap();
    for folder in ["points/9.tmp", "pins/1"] {
        std::fs::create_dir_all(shard.join(folder)).unwrap();
        std::fs::write(shard.join(folder).join("cow.redb"), b"half a copy").unwrap();
    }
    let set = open(COW, dir.path(), 1, &manual());
    assert_eq!(entries(&set.shards()[0], 1), ["kd", "ke", "ld"]);
    let left: Vec<String> = tree(&shard).into_keys().collect();
    assert_eq!(left, ["cow.redb", "shard.meta"]);
}

#[test]
fn a_damaged_recovery_point_is_not_gone_back_to() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    apply(shard, batch(0, 0, &[("d", &["key"])]));
    let point = shard.keep_point(&watchdog()).unwrap().unwrap();
    apply(shard, batch(0, 1, &[("e", &["key"])]));
    shard.commit(&watchdog()).unwrap();
    let kept = dir.path().join(format!("shard-0000/points/{point}/cow.redb"));
    let mut content = std::fs::read(&kept).unwrap();
    let at = content.windows(4).position(|window| window == b"keyd").unwrap();
    content[at] ^= 1;
    std::fs::write(&kept, content).unwrap();
    let error = shard.roll_back(Some(point), Generation(1), &watchdog()).unwrap_err().to_string();
    assert!(error.contains(&format!("points/{point}/cow.redb")), "{error}");
    close(set);
    let set = open(COW, dir.path(), 1, &manual());
    assert_eq!(entries(&set.shards()[0], 1), ["keyd", "keye"]);
}

#[test]
fn the_room_of_a_dropped_index_is_given_back_while_others_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let ids = documents(0..6000);
    apply(shard, batch(0, 0, &pairs(&ids)));
    shard.commit(&watchdog()).unwrap();
    let full = shard.status().disk_bytes;
    shard.drop_instance(InstId(2)).unwrap();
    let limit = watchdog();
    let mut seqno = 0;
    // No pause in which nothing is uncommitted, but for the commit itself.
    while shard.status().disk_bytes > full * 2 / 3 {
        limit.check().unwrap();
        apply(shard, batch_for(&[InstId(1)], 1, seqno, &[("other", &["k"])]));
        seqno += 1;
        if seqno % 10 == 0 {
            shard.commit(&watchdog()).unwrap();
            apply(shard, batch_for(&[InstId(1)], 1, seqno, &[("other", &["l"])]));
            seqno += 1;
        }
    }
    assert_eq!(entries(shard, 1).len(), ids.len() + 1);
    close(set);
}

#[test]
fn the_room_of_dropped_indexes_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let set = create(COW, dir.path(), 1, &manual());
    let shard = &set.shards()[0];
    let ids = documents(0..20_000);
    let mut from = 0;
    for some in ids.chunks(2000) {
        apply(shard, batch(0, from, &pairs(some)));
        from += 2000;
        shard.commit(&watchdog()).unwrap();
    }
    let full = shard.status().disk_bytes;
    shard.drop_instance(InstId(1)).unwrap();
    shard.drop_instance(InstId(2)).unwrap();
    eventually("the file is small", || {
        // Sweeps need room among what is uncommitted, which a recovery point makes.
        shard.commit(&watchdog()).unwrap();
        shard.status().disk_bytes < full / 10
    });
    shard.create_instance(InstId(3), InstanceStart::Zero).unwrap();
    close(set);
}
