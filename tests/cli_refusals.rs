//! The command line: what is refused, in one line, and leaves everything as it was.

use std::fs;

use crate::support::cli::{
    AIRPORTS, BUCKET, INDEX_OPTIONS, World, assert_is_one_error, feed, thread_names, wait_until,
};

/// Ingests one good line, `bad`, and another good line, into a bucket with a document, and checks that the line
/// is told and what came before it is kept.
fn assert_bad_line(bad: &[u8], words: &[&str]) {
    let world = World::new();
    world.write("f", "{\"id\":\"old\"}\n");
    world.ingest(&[], "f");
    world.write("f", [b"{\"id\":\"new\"}\n", bad].concat());
    let call = [&["ingest"], &BUCKET[..], &["f"]].concat();
    let told = world.refused(1, &call, &["read f: line 2", "1 changes before it are kept", "--skip-bad"]);
    assert_is_one_error(&told, words);
    let ids: Vec<String> = world.scan("primary", &[]).iter().map(|entry| entry["id"].to_string()).collect();
    assert_eq!(ids, ["\"new\"", "\"old\""]);
}

#[test]
fn a_line_that_is_no_json() {
    assert_bad_line(b"nonsense\n{\"id\":\"later\"}\n", &["not JSON"]);
}

#[test]
fn a_line_that_is_no_object() {
    assert_bad_line(b"[1]\n{\"id\":\"later\"}\n", &["object"]);
}

#[test]
fn a_document_without_id() {
    assert_bad_line(b"{\"key\":\"k\"}\n{\"id\":\"later\"}\n", &["no member `id`"]);
}

#[test]
fn an_id_that_is_no_string() {
    assert_bad_line(b"{\"id\":7}\n{\"id\":\"later\"}\n", &["no string"]);
}

#[test]
fn an_empty_id() {
    assert_bad_line(b"{\"id\":\"\"}\n{\"id\":\"later\"}\n", &["0 bytes", "1 to 250"]);
}

#[test]
fn an_id_of_more_than_250_bytes() {
    let line = format!("{{\"id\":\"{}\"}}\n{{\"id\":\"later\"}}\n", "k".repeat(251));
    assert_bad_line(line.as_bytes(), &["251 bytes", "1 to 250"]);
}

#[test]
fn a_document_of_more_than_20_mib() {
    let line = format!("{{\"id\":\"k\",\"a\":\"{}\"}}\n{{\"id\":\"later\"}}\n", "x".repeat(20 << 20));
    assert_bad_line(line.as_bytes(), &["larger than 20 MiB"]);
}

#[test]
fn a_file_that_ends_in_the_middle_of_a_line() {
    assert_bad_line(b"{\"id\":\"k\",\"a\":", &["the file ends in the middle of the line"]);
}

#[test]
fn a_line_that_is_no_utf8() {
    assert_bad_line(b"{\"id\":\"k\",\"a\":\"\xff\xfe\"}\n{\"id\":\"later\"}\n", &["not JSON"]);
}

#[test]
fn a_data_folder_that_another_process_holds() {
    let world = World::with_airports();
    let mut child = world.start(&[&["ingest"], &BUCKET[..], &["-"]].concat());
    feed(&mut child, "{\"id\":\"a\",\"country\":\"x\"}\n");
    wait_until("the ingest", || thread_names(child.id()).contains("dm-source"));
    let holder = format!("process {}", child.id());
    world.refused(1, &[&["scan"], &BUCKET[..], &["--index", "by_tz"]].concat(), &[&holder, "since"]);
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(world.count("by_country"), 7185);
}

/// Makes calls that must be refused and checks that the data folder is as it was.
fn assert_refused(status: i32, options: &[&str], words: &[&str]) {
    let world = World::new();
    world.ingest(&INDEX_OPTIONS, AIRPORTS);
    let before = world.data_files();
    world.refused(status, &[&options[..1], &BUCKET[..2], &options[1..]].concat(), words);
    assert!(world.data_files() == before);
}

#[test]
fn a_bucket_that_does_not_exist() {
    assert_refused(1, &["scan", "--bucket", "none", "--index", "by_tz"], &["no bucket none", "travel"]);
}

#[test]
fn a_data_folder_that_does_not_exist() {
    let world = World::new();
    world.refused(1, &["status", "--data-dir", "none"], &["no data folder none"]);
    assert!(!world.path("none").exists());
}

#[test]
fn an_index_that_does_not_exist() {
    assert_refused(1, &["scan", "--bucket", "travel", "--index", "none"], &["no index `none`", "by_country"]);
}

#[test]
fn an_index_path_that_does_not_parse() {
    let options = ["ingest", "--bucket", "travel", "--index", "x=a..b", AIRPORTS];
    assert_refused(2, &options, &["--index", "x=a..b", "character 3"]);
}

#[test]
fn names_that_are_none() {
    assert_refused(2, &["scan", "--bucket", "a/b", "--index", "by_tz"], &["--bucket", "a/b"]);
    assert_refused(2, &["scan", "--bucket", "travel", "--index", "a/b"], &["--index", "a/b"]);
}

#[test]
fn a_bound_that_is_no_json_array() {
    for bound in ["\"DE\"", "{}", "[", "DE"] {
        let options = ["scan", "--bucket", "travel", "--index", "by_tz", "--from", bound];
        assert_refused(2, &options, &["--from", bound, "JSON array"]);
    }
}

#[test]
fn a_bound_with_more_parts_than_the_key() {
    let options = ["scan", "--bucket", "travel", "--index", "by_tz", "--to", "[1,2]"];
    assert_refused(1, &options, &["by_tz", "2 parts"]);
}

#[test]
fn durations_numbers_and_archives_that_are_not_understood() {
    let ingest = ["ingest", "--bucket", "travel", AIRPORTS];
    assert_refused(
        2,
        &[&ingest[..], &["--commit-interval", "soon"]].concat(),
        &["--commit-interval", "soon"],
    );
    assert_refused(2, &[&ingest[..], &["--deadline", "5"]].concat(), &["--deadline"]);
    assert_refused(2, &[&ingest[..], &["--shards", "0"]].concat(), &["0 shards"]);
    assert_refused(
        2,
        &["pause", "--bucket", "travel", "--archive", "s3:///y"],
        &["s3:///y", "s3://bucket/prefix"],
    );
    assert_refused(2, &["resume", "--bucket", "travel", "--archive", "a", "--pause", "1"], &["--pause"]);
}

#[test]
fn another_number_of_shards_than_the_bucket_has() {
    let ingest = ["ingest", "--bucket", "travel", AIRPORTS];
    assert_refused(1, &[&ingest[..], &["--shards", "8"]].concat(), &["--shards 8", "--shards 4"]);
    assert_refused(1, &[&ingest[..], &["--vbuckets", "64"]].concat(), &["--vbuckets 64", "--vbuckets 1024"]);
}

#[test]
fn a_new_index_on_a_bucket_with_data_without_a_rebuild() {
    let options = ["ingest", "--bucket", "travel", "--index", "by_icao=icao", AIRPORTS];
    assert_refused(1, &options, &["by_icao", "travel", "--rebuild"]);
}

#[test]
fn an_index_of_another_definition_keeps_other_new_indexes_from_being_made() {
    let options =
        ["ingest", "--bucket", "travel", "--rebuild", "--index", "by_icao=icao", "--index", "by_tz=iata"];
    assert_refused(1, &[&options[..], &[AIRPORTS]].concat(), &["by_tz=iata", "by_tz=tz"]);
    let options = ["ingest", "--bucket", "travel", "--index", "x=a", "--index", "x=b", AIRPORTS];
    assert_refused(2, &options, &["`x`", "twice"]);
}

#[test]
fn a_drop_without_yes() {
    assert_refused(2, &["drop", "--bucket", "travel"], &["bucket travel", "--yes"]);
    assert_refused(2, &["drop", "--bucket", "travel", "--index", "by_tz"], &["`by_tz`", "--yes"]);
}

#[test]
fn words_that_are_missing_or_unknown() {
    assert_refused(2, &["scan", "--bucket", "travel"], &["--index <NAME>"]);
    assert_refused(2, &["scan", "--bucket", "travel", "--index", "by_tz", "--revers"], &["--reverse"]);
    assert_refused(2, &["scan", "--bucket", "travel", "--index", "by_tz", "--exclusive-to"], &["--to"]);
}

#[test]
fn a_source_that_cannot_be_read_makes_no_bucket() {
    let world = World::new();
    world.write("good", "{\"id\":\"a\"}\n");
    fs::create_dir(world.path("folder")).unwrap();
    for source in ["missing", "folder"] {
        let call = [&["ingest"], &BUCKET[..], &["good", source]].concat();
        world.refused(1, &call, &["cannot read the source", source]);
        assert!(!world.path("d").exists());
    }
    let call = [&["ingest"], &BUCKET[..], &["-", "-"]].concat();
    world.refused(2, &call, &["standard input", "once"]);
}
