//! The command line: buckets are put to sleep and woken up again.

use std::fs;

use serde_json::json;

use crate::support::cli::{AIRPORTS, BUCKET, INDEXES, World};
use crate::support::tree;

fn pause(options: &[&'static str]) -> Vec<&'static str> {
    [&["pause"], &BUCKET[..], &["--archive", "a"], options].concat()
}

fn resume(options: &[&'static str]) -> Vec<&'static str> {
    [&["resume"], &BUCKET[..], &["--archive", "a"], options].concat()
}

const SCAN: [&str; 7] = ["scan", "--data-dir", "d", "--bucket", "travel", "--index", "by_tz"];
const ELSEWHERE: [&str; 7] = ["resume", "--data-dir", "e", "--bucket", "travel", "--archive", "a"];

#[test]
fn a_bucket_that_is_resumed_elsewhere_gives_the_same_scans() {
    let world = World::with_airports();
    let before = world.all_scans("d");
    let paused = world.json(&pause(&[]));
    let mut members: Vec<&String> = paused.as_object().unwrap().keys().collect();
    members.sort();
    let contract = ["bytes", "files", "locked_ms", "pause", "total_ms", "uploaded_bytes", "uploaded_files"];
    assert_eq!(members, contract);
    assert!(world.all_scans("d") == before, "a paused bucket can be scanned");
    let resumed = world.json(&ELSEWHERE);
    assert_eq!(resumed["pause"], paused["pause"]);
    assert_eq!((&resumed["files"], &resumed["downloaded_bytes"]), (&paused["files"], &paused["bytes"]));
    assert!(world.all_scans("e") == before);
}

#[test]
fn an_evicted_bucket_is_scanned_again_after_a_resume() {
    let world = World::with_airports();
    let before = world.all_scans("d");
    world.ok(&pause(&["--evict"]));
    assert!(!world.path("d/buckets/travel/shard-0000").exists());
    world.refused(1, &SCAN, &["travel", "resume"]);
    let status = world.json(&[&["status"], &BUCKET[..]].concat());
    assert_eq!((&status["state"], &status["evicted"]), (&json!("paused"), &json!(true)));
    assert!(world.ok(&["status", "--data-dir", "d"]).contains("local data removed"));
    world.ok(&resume(&[]));
    assert!(world.all_scans("d") == before);
}

#[test]
fn a_paused_bucket_takes_no_changes_until_it_is_resumed_where_it_lies() {
    let world = World::with_airports();
    let before = world.all_scans("d");
    world.ok(&pause(&[]));
    let ingest = [&["ingest"], &BUCKET[..], &[AIRPORTS]].concat();
    world.refused(1, &ingest, &["travel", "paused", "resume"]);
    world.refused(1, &pause(&[]), &["travel", "paused"]);
    assert_eq!(world.json(&resume(&[]))["downloaded_files"], 0);
    assert!(world.all_scans("d") == before);
    world.ok(&ingest);
    assert!(world.all_scans("d") == before);
}

#[test]
fn a_second_pause_after_a_small_change_uploads_less_than_everything() {
    let world = World::with_airports();
    world.ok(&pause(&[]));
    world.ok(&resume(&[]));
    world.write("f", "{\"id\":\"airport::1\",\"country\":\"Atlantis\"}\n");
    world.ingest(&[], "f");
    let after_the_change = world.all_scans("d");
    let planned = world.json(&pause(&["--dry-run"]));
    let paused = world.json(&pause(&[]));
    // Not to the byte the same: a merge may come between the two.
    for told in [planned, paused] {
        let (uploaded, all) = (told["uploaded_bytes"].as_u64().unwrap(), told["bytes"].as_u64().unwrap());
        assert!(0 < uploaded && uploaded < all / 2, "{uploaded} of {all}");
    }
    world.ok(&ELSEWHERE);
    assert!(world.all_scans("e") == after_the_change);
}

#[test]
fn an_earlier_pause_can_be_resumed() {
    let world = World::with_airports();
    let first = world.json(&pause(&[]));
    let before = world.all_scans("d");
    world.ok(&resume(&[]));
    world.write("f", "{\"id\":\"airport::1\",\"country\":\"Atlantis\"}\n");
    world.ingest(&[], "f");
    world.ok(&pause(&[]));
    world.ok(&[&ELSEWHERE[..], &["--pause", first["pause"].as_str().unwrap()]].concat());
    assert!(world.all_scans("e") == before);
}

#[test]
fn dry_runs_change_nothing() {
    let world = World::with_airports();
    let scans = world.all_scans("d");
    let planned = world.json(&pause(&["--dry-run"]));
    assert_eq!((&planned["pause"], &planned["uploaded_bytes"]), (&json!(null), &planned["bytes"]));
    assert!(!world.path("a").exists());
    // The files need not be the same: a merge of tables that was due may come between.
    assert!(world.all_scans("d") == scans);
    assert_eq!(world.json(&[&["status"], &BUCKET[..]].concat())["state"], "online");
    world.ok(&pause(&[]));
    let (before, archive) = (world.data_files(), tree(&world.path("a")));
    let here = world.json(&resume(&["--dry-run"]));
    assert_eq!(here["downloaded_bytes"], 0);
    let elsewhere = world.json(&[&ELSEWHERE[..], &["--dry-run"]].concat());
    assert_eq!(elsewhere["downloaded_bytes"], elsewhere["bytes"]);
    assert!(!world.path("e").exists());
    assert!(world.data_files() == before && tree(&world.path("a")) == archive);
}

#[test]
fn a_compressed_pause_takes_less_room_and_gives_the_same_scans() {
    let world = World::with_airports();
    let before = world.all_scans("d");
    let of = |told: &serde_json::Value, member: &str| told[member].as_u64().unwrap();
    let planned = world.json(&pause(&["--compress", "--dry-run"]));
    assert!(of(&planned, "uploaded_bytes") < of(&planned, "bytes") * 3 / 4, "{planned}");
    let paused = world.json(&pause(&["--compress", "--evict"]));
    let objects = fs::read_dir(world.path("a/travel/objects")).unwrap();
    let stored: u64 = objects.map(|object| object.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(of(&paused, "uploaded_bytes"), stored, "bytes are told as they are in the archive");
    assert!(stored < of(&paused, "bytes") * 3 / 4, "{paused}");
    let listed = world.json(&["archive", "list", "--archive", "a"]);
    let listed = &listed["pauses"][0];
    assert_eq!(listed["bytes"], paused["bytes"]);
    // Objects that are the content of several files count for each.
    assert!(
        of(listed, "object_bytes") >= stored && of(listed, "object_bytes") < of(&paused, "bytes") * 3 / 4
    );
    assert!(world.ok(&["archive", "list", "--archive", "a"]).contains("compressed to"));
    assert_eq!(world.json(&["verify", "--archive", "a"])["bad"], json!([]));
    let resumed = world.json(&resume(&[]));
    assert_eq!(
        (&resumed["bytes"], &resumed["downloaded_bytes"]),
        (&paused["bytes"], &listed["object_bytes"])
    );
    assert!(world.all_scans("d") == before);
    let help = world.ok(&["pause", "--help"]);
    let words: Vec<&str> = help.split_whitespace().collect();
    assert!(words.join(" ").contains("more work [default: off]"), "{help}");
}

#[test]
fn a_missing_archive_is_told_and_not_made() {
    let world = World::with_airports();
    world.refused(1, &ELSEWHERE, &["travel", "no archive a"]);
    assert!(!world.path("a").exists() && !world.path("e").exists());
    fs::create_dir(world.path("a")).unwrap();
    world.refused(1, &ELSEWHERE, &["travel", "no pause"]);
}

#[test]
fn an_archive_that_cannot_be_written_leaves_the_bucket_online() {
    let world = World::with_airports();
    let before = world.data_files();
    world.write("file", "");
    let call = [&["pause"], &BUCKET[..], &["--archive", "file/a"]].concat();
    world.refused(1, &call, &["cannot pause bucket travel", "file/a"]);
    assert!(world.data_files() == before);
    assert_eq!(world.json(&[&["status"], &BUCKET[..]].concat())["state"], "online");
}

/// Damages the archive of a bucket that was paused and evicted, and checks that a resume is refused and changes
/// nothing.
fn assert_damage_is_told(damage: impl FnOnce(&World), words: &[&str]) {
    let world = World::with_airports();
    world.ok(&pause(&["--evict"]));
    damage(&world);
    let (before, archive) = (tree(&world.path("d/buckets")), tree(&world.path("a")));
    world.refused(1, &resume(&[]), words);
    assert!(tree(&world.path("d/buckets")) == before && tree(&world.path("a")) == archive);
    world.refused(1, &SCAN, &["resume"]);
}

#[test]
fn a_manifest_with_a_flipped_byte_is_not_believed() {
    let flip = |world: &World| {
        let names = tree(&world.path("a"));
        let name =
            names.keys().find(|name| name.starts_with("travel/") && !name.contains("/objects/")).unwrap();
        let mut bytes = names[name].clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(world.path("a").join(name), bytes).unwrap();
    };
    assert_damage_is_told(flip, &["cannot resume bucket travel", "checksum"]);
}

#[test]
fn a_missing_object_is_told() {
    let remove = |world: &World| {
        let objects = fs::read_dir(world.path("a/travel/objects")).unwrap();
        fs::remove_file(objects.last().unwrap().unwrap().path()).unwrap();
    };
    assert_damage_is_told(remove, &["cannot resume bucket travel", "objects/"]);
}

#[test]
fn all_indexes_are_part_of_a_pause() {
    let world = World::with_airports();
    world.ok(&pause(&[]));
    world.ok(&ELSEWHERE);
    let status = world.json(&["status", "--data-dir", "e", "--bucket", "travel"]);
    let names: Vec<&str> =
        status["indexes"].as_array().unwrap().iter().map(|index| index["name"].as_str().unwrap()).collect();
    assert_eq!(names, INDEXES.map(|(name, _)| name));
}

/// The only file below a folder of the archive whose content is longest.
fn largest_object(world: &World) -> std::path::PathBuf {
    let folder = world.path("a/travel/objects");
    let objects = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    objects.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

#[test]
fn an_archive_is_verified_and_each_bad_object_is_listed() {
    let world = World::with_airports();
    let paused = world.json(&pause(&[]));
    let verified = world.json(&["verify", "--archive", "a"]);
    assert_eq!((&verified["files"], &verified["bytes"]), (&paused["files"], &paused["bytes"]));
    assert_eq!((&verified["pauses"], &verified["bad"]), (&json!(1), &json!([])));
    let object = largest_object(&world);
    let mut content = fs::read(&object).unwrap();
    content[100] ^= 1;
    fs::write(&object, content).unwrap();
    let name = object.file_name().unwrap().to_str().unwrap();
    let failed = world.run(&["verify", "--archive", "a", "--bucket", "travel"]);
    assert_eq!(failed.status, Some(1));
    assert!(failed.stdout.contains(name));
    world.refused(
        2,
        &["verify", "--archive", "a", "--pause", paused["pause"].as_str().unwrap()],
        &["--bucket"],
    );
    world.refused(1, &["verify", "--archive", "a", "--bucket", "other"], &["other", "archive list"]);
}

#[test]
fn what_is_bad_is_uploaded_again_once_it_was_removed() {
    let world = World::with_airports();
    world.ok(&pause(&[]));
    let object = largest_object(&world);
    let mut content = fs::read(&object).unwrap();
    content[100] ^= 1;
    fs::write(&object, content).unwrap();
    world.refused(
        1,
        &pause(&["--evict"]),
        &["remove them from the archive, resume it here, and pause it again"],
    );
    fs::remove_file(&object).unwrap();
    world.ok(&resume(&[]));
    world.ok(&pause(&["--evict"]));
    world.ok(&resume(&[]));
}

#[test]
fn pauses_beside_a_damaged_one_are_listed() {
    let world = World::with_airports();
    let first = world.json(&pause(&[]));
    world.ok(&resume(&[]));
    let second = world.json(&pause(&[]));
    let manifest = world.path(&format!("a/travel/manifests/{}.manifest", second["pause"].as_str().unwrap()));
    fs::write(&manifest, b"nothing of ours").unwrap();
    let listed = world.run(&["archive", "list", "--archive", "a"]);
    assert_eq!(listed.status, Some(1));
    assert!(listed.stdout.contains(first["pause"].as_str().unwrap()), "{}", listed.stdout);
    assert!(listed.stderr.contains("remove this one from the archive"), "{}", listed.stderr);
}

#[test]
fn a_dry_run_of_the_eviction_of_a_paused_bucket_tells_what_is_archived() {
    let world = World::with_airports();
    let paused = world.json(&pause(&[]));
    let planned = world.json(&pause(&["--evict", "--dry-run"]));
    assert_eq!((&planned["files"], &planned["uploaded_files"]), (&paused["files"], &json!(0)));
    assert!(world.path("d/buckets/travel/shard-0000").exists());
}

#[test]
fn pauses_are_listed_and_old_ones_are_pruned() {
    let world = World::with_airports();
    let first = world.json(&pause(&[]));
    world.ok(&resume(&[]));
    let second = world.json(&pause(&[]));
    let listed = world.json(&["archive", "list", "--archive", "a"]);
    let ids: Vec<&serde_json::Value> =
        listed["pauses"].as_array().unwrap().iter().map(|pause| &pause["pause"]).collect();
    assert_eq!(ids, [&first["pause"], &second["pause"]]);
    let prune = ["archive", "prune", "--archive", "a", "--keep", "1"];
    let dry = world.json(&[&prune[..], &["--dry-run"]].concat());
    let done = world.json(&prune);
    assert_eq!(dry, done);
    assert_eq!(done["buckets"][0]["removed_pauses"], json!([first["pause"]]));
    assert!(world.ok(&["archive", "list", "--archive", "a"]).contains(second["pause"].as_str().unwrap()));
    world.ok(&["verify", "--archive", "a"]);
    world.refused(2, &["archive", "prune", "--archive", "a", "--keep", "0"], &["--keep"]);
}
