//! The command line: documents go in, entries come out.

use std::cmp::Ordering;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::support::cli::{
    AIRPORTS, BUCKET, INDEX_OPTIONS, INDEXES, World, all_expected, documents, expected, kept, lines,
};

#[test]
fn scans_of_ingested_documents_equal_a_plain_sort_of_the_file() {
    let world = World::with_airports();
    let documents = documents(AIRPORTS);
    for (index, members) in INDEXES {
        let all = expected(&documents, members);
        assert!(world.scan(index, &[]) == all, "{index}");
        assert_eq!(world.count(index), documents.len());
        let reversed: Vec<Value> = all.iter().rev().cloned().collect();
        assert!(world.scan(index, &["--reverse"]) == reversed, "{index} in reverse");
        assert!(world.scan(index, &["--reverse", "--limit", "7"]) == reversed[..7], "{index}, the last");
        assert!(world.scan(index, &["--limit", "0"]).is_empty());
    }
    assert_eq!(world.scan("by_tz", &["--limit", "1"])[0]["key"], json!([null]));
}

#[test]
fn scans_of_ranges_give_every_key_that_begins_within_their_ends() {
    let world = World::with_airports();
    let documents = documents(AIRPORTS);
    let by_country = expected(&documents, INDEXES[0].1);
    let by_alt = expected(&documents, INDEXES[2].1);
    let check = |index: &str, all: &[Value], from: &Value, to: &Value| {
        let (low, high) = (from.to_string(), to.to_string());
        let ends = ["--from", &low, "--to", &high];
        let closed = kept(&kept(all, from, Ordering::is_ge), to, Ordering::is_le);
        assert!(!closed.is_empty() && closed.len() < all.len(), "{index} {from} {to}");
        assert!(world.scan(index, &ends) == closed, "{index} {from} {to}");
        let reversed: Vec<Value> = closed.iter().rev().cloned().collect();
        assert!(world.scan(index, &[&ends[..], &["--reverse"]].concat()) == reversed);
        let open = kept(&kept(all, from, Ordering::is_gt), to, Ordering::is_lt);
        let exclusive = [&ends[..], &["--exclusive-from", "--exclusive-to"]].concat();
        assert!(world.scan(index, &exclusive) == open, "{index} {from} {to} without its ends");
        let count = [&["scan"], &BUCKET[..], &["--index", index], &ends[..], &["--count", "--limit", "1"]];
        assert_eq!(world.ok(&count.concat()), format!("{}\n", closed.len()));
    };
    check("by_country", &by_country, &json!(["Iceland"]), &json!(["Iceland"]));
    check("by_country", &by_country, &json!(["France", "Paris"]), &json!(["Germany", "Berlin"]));
    check("by_country", &by_country, &json!(["France", "Paris"]), &json!(["Germany"]));
    check("by_alt", &by_alt, &json!([-100]), &json!([0]));
    check("by_alt", &by_alt, &json!([0.5]), &json!([1e3]));
    assert!(world.scan("by_alt", &["--from", "[5]", "--to", "[4]"]).is_empty());
    let nulls = world.scan("by_tz", &["--from", "[null]", "--to", "[null]"]);
    assert_eq!(nulls.len(), documents.iter().filter(|document| document["tz"].is_null()).count());
}

#[test]
fn a_scan_of_several_ranges_gives_what_lies_in_any_of_them_once_and_in_order() {
    let world = World::with_airports();
    let by_alt = expected(&documents(AIRPORTS), INDEXES[2].1);
    let ranges = ["--range", r#"{"from":[5000]}"#, "--range", r#"{"to":[0],"exclusive_to":true}"#];
    let overlapping = [&ranges[..], &["--range", r#"{"from":[6000],"to":[7000]}"#]].concat();
    let mut low = kept(&by_alt, &json!([0]), Ordering::is_lt);
    low.extend(kept(&by_alt, &json!([5000]), Ordering::is_ge));
    assert!(world.scan("by_alt", &overlapping) == low);
    low.reverse();
    assert!(world.scan("by_alt", &[&overlapping[..], &["--reverse"]].concat()) == low);
    let scan = [&["scan"], &BUCKET[..], &["--index", "by_alt"]].concat();
    world.refused(2, &[&scan[..], &["--range", "[1]"]].concat(), &["as a range", "\"from\":[\"DE\"]"]);
    world.refused(2, &[&scan[..], &ranges[..2], &["--from", "[1]"]].concat(), &["--range", "--from"]);
    world.refused(1, &[&scan[..], &["--range", r#"{"from":[1,2]}"#]].concat(), &["a bound of 2 parts"]);
}

#[test]
fn a_scan_that_is_to_cover_what_did_not_come_is_refused_at_once() {
    let world = World::new();
    world.write("one.jsonl", "{\"id\":\"a\",\"n\":1}\n");
    world.ok(&[
        &["ingest"],
        &BUCKET[..],
        &["--vbuckets", "1", "--shards", "1", "--index", "by_n=n", "one.jsonl"],
    ]
    .concat());
    assert_eq!(world.scan("by_n", &["--at-least", "0:1"]).len(), 1);
    let scan = [&["scan"], &BUCKET[..], &["--index", "by_n", "--at-least"]].concat();
    let behind =
        ["index `by_n` at seqno 2 of vbucket 0: it has come to 1", "ingest into bucket travel first"];
    world.refused(1, &[&scan[..], &["0:1", "--at-least", "0:2"]].concat(), &behind);
    world.refused(1, &[&scan[..], &["1:1"]].concat(), &["there is no vbucket 1 to wait for"]);
    for wrong in ["7", "7:", "a:1", "70000:1", "1:-1"] {
        world.refused(2, &[&scan[..], &[wrong]].concat(), &["--at-least", "such as 7:1200"]);
    }
}

#[test]
fn a_document_that_stops_matching_its_filter_loses_its_entry() {
    let world = World::new();
    world.write(
        "f",
        "{\"id\":\"a\",\"n\":1,\"on\":true}\n{\"id\":\"b\",\"n\":2,\"on\":true}\n{\"id\":\"c\",\"n\":3}\n",
    );
    let options = ["--index", "by_n=n", "--where", "by_n=on = true"];
    world.ingest(&options, "f");
    let ids = || world.scan("by_n", &[]).iter().map(|entry| entry["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(), ["a", "b"]);
    world.write("f", "{\"id\":\"a\",\"n\":1,\"on\":false}\n{\"id\":\"c\",\"n\":3,\"on\":true}\n");
    world.ingest(&options, "f");
    assert_eq!(ids(), ["b", "c"]);
    assert_eq!(
        world.json(&[&["status"], &BUCKET[..]].concat())["indexes"][0]["definition"],
        "by_n=n where on = true"
    );
    let ingest = |options: &[&'static str]| [&["ingest"], &BUCKET[..], options, &["f"]].concat();
    world.refused(1, &ingest(&options[..2]), &["another definition"]);
    world.refused(2, &ingest(&["--where", "by_n=on = true"]), &["no --index of the name `by_n`"]);
    world.refused(2, &ingest(&["--index", "by_n=n", "--where", "by_n=on ="]), &["at character 5"]);
    world.refused(2, &ingest(&[&options[..], &options[2..]].concat()), &["filtered twice"]);
}

#[test]
fn keys_that_are_too_long_are_counted_and_said_and_leave_the_others() {
    let world = World::new();
    let long = "x".repeat(5000);
    world.write("f", format!("{{\"id\":\"a\",\"t\":[\"{long}\",1]}}\n{{\"id\":\"b\",\"t\":[\"{long}\"]}}\n"));
    let words = [&["ingest"], &BUCKET[..], &["--index", "by_t=t[]", "f"]].concat();
    let table = world.ok(&words);
    assert!(table.contains("2 keys were too long and are not in an index"), "{table}");
    let report = world.json(&words);
    assert_eq!((&report["documents"], &report["oversize_keys"]), (&json!(2), &json!(2)));
    assert_eq!(world.scan("by_t", &[]), [json!({"key": [1], "id": "a"})]);
}

#[test]
fn a_limit_tells_the_cursor_that_goes_on_behind_it() {
    let world = World::with_airports();
    for reverse in [&[][..], &["--reverse"]] {
        let all = world.scan("by_tz", reverse);
        let (mut paged, mut after) = (Vec::new(), Vec::new());
        loop {
            let words = [
                &["scan"],
                &BUCKET[..],
                &["--index", "by_tz", "--format", "json", "--limit", "3000"],
                reverse,
            ];
            let words: Vec<&str> =
                words.concat().into_iter().chain(after.iter().map(String::as_str)).collect();
            let done = world.run(&words);
            assert_eq!(done.status, Some(0), "{}", done.stderr);
            paged.extend(done.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
            let Some((_, cursor)) = done.stderr.trim_end().rsplit_once(' ') else { break };
            after = vec!["--after".to_owned(), cursor.to_owned()];
        }
        assert!(paged == all, "{reverse:?}");
    }
    world.refused(
        2,
        &[&["scan"], &BUCKET[..], &["--index", "by_tz", "--after", "12"]].concat(),
        &["this is no cursor"],
    );
}

#[test]
fn distinct_beginnings_of_keys_are_printed_and_counted_without_ids() {
    let world = World::with_airports();
    let mut countries: Vec<Value> = expected(&documents(AIRPORTS), INDEXES[0].1)
        .iter()
        .map(|entry| json!({ "key": [entry["key"][0]] }))
        .collect();
    countries.dedup();
    assert!(world.scan("by_country", &["--distinct", "1"]) == countries);
    let words = [&["scan"], &BUCKET[..], &["--index", "by_country", "--distinct", "1"]].concat();
    assert!(world.ok(&words).starts_with("[\"Afghanistan\"]\n"));
    assert_eq!(world.ok(&[&words[..], &["--count"]].concat()), format!("{}\n", countries.len()));
}

#[test]
fn a_table_has_the_key_a_tab_and_the_id() {
    let world = World::new();
    world.write("f", "{\"id\":\"k\\n1\",\"a\":[1,\"x\"]}\n");
    world.ingest(&["--index", "by_a=a"], "f");
    let words = [&["scan"], &BUCKET[..], &["--index", "by_a"]].concat();
    assert_eq!(world.ok(&words), "[[1,\"x\"]]\tk\\n1\n");
}

#[test]
fn changed_documents_leave_no_stale_entry() {
    let world = World::with_airports();
    let mut documents = documents(AIRPORTS);
    let mut changes = Vec::new();
    for document in &mut documents[..200] {
        document["country"] = json!("Atlantis");
        document["tz"] = json!(["moved"]);
        document.as_object_mut().unwrap().remove("altitude");
        changes.push(json!({ "op": "upsert", "id": document["id"], "doc": document }));
    }
    for (count, gone) in documents.drain(200..400).enumerate() {
        changes.push(json!({ "op": if count % 2 == 0 { "delete" } else { "expire" }, "id": gone["id"] }));
    }
    world.write("changes", lines(&changes));
    assert_eq!(world.ingest(&["--changes"], "changes")["documents"], 400);
    assert!(world.all_scans("d") == all_expected(&documents));

    for document in &mut documents[..50] {
        document["country"] = json!("Lemuria");
    }
    world.write("again", lines(&documents));
    world.ingest(&[], "again");
    assert!(world.all_scans("d") == all_expected(&documents));
}

#[test]
fn a_bucket_without_any_index_gets_a_primary_one() {
    let world = World::new();
    world.write("f", "{\"key\":\"b\"}\n{\"key\":\"a\"}\n");
    let report = world.ingest(&["--id-field", "key"], "f");
    assert_eq!((&report["bucket"], &report["documents"]), (&json!("travel"), &json!(2)));
    let entries = world.scan("primary", &[]);
    assert_eq!(entries, [json!({ "key": ["a"], "id": "a" }), json!({ "key": ["b"], "id": "b" })]);
}

#[test]
fn a_file_whose_name_ends_in_gz_is_read_as_gzip() {
    let world = World::new();
    let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
    zipped.write_all(&fs::read(AIRPORTS).unwrap()).unwrap();
    world.write("f.gz", zipped.finish().unwrap());
    world.ingest(&INDEX_OPTIONS, "f.gz");
    assert!(world.all_scans("d") == all_expected(&documents(AIRPORTS)));
}

#[test]
fn a_new_index_of_a_bucket_with_data_is_built_by_a_rebuild() {
    let world = World::new();
    world.ingest(&INDEX_OPTIONS[..2], AIRPORTS);
    world.ingest(&[&INDEX_OPTIONS[2..], &["--rebuild"]].concat(), AIRPORTS);
    assert!(world.all_scans("d") == all_expected(&documents(AIRPORTS)));
}

#[test]
fn bad_lines_are_skipped_and_counted_where_that_is_asked_for() {
    let world = World::new();
    world.write("f", "{\"id\":\"a\"}\nnonsense\n{\"id\":1}\n{\"id\":\"b\"}\n{\"id\":");
    let words = [&["ingest"], &BUCKET[..], &["--skip-bad", "--format", "json", "f"]].concat();
    let done = world.run(&words);
    assert_eq!(done.status, Some(0), "{}", done.stderr);
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&report["documents"], &report["bad_lines"]), (&json!(2), &json!(3)));
    for told in ["3 bad lines", "f: line 2", "f: line 3", "f: line 5"] {
        assert!(done.stderr.contains(told), "{}", done.stderr);
    }
    assert_eq!(world.count("primary"), 2);
}

#[test]
fn status_shows_buckets_and_their_indexes() {
    let world = World::with_airports();
    world.write("f", "{\"id\":\"a\"}\n");
    world.ok(&["ingest", "--data-dir", "d", "--bucket", "other", "--shards", "2", "--vbuckets", "16", "f"]);
    let all = world.json(&["status", "--data-dir", "d"]);
    let buckets = all["buckets"].as_array().unwrap();
    assert_eq!([&buckets[0]["bucket"], &buckets[1]["bucket"]], [&json!("other"), &json!("travel")]);
    assert_eq!((&buckets[0]["vbuckets"], buckets[0]["shards"].as_array().unwrap().len()), (&json!(16), 2));
    let one = world.json(&[&["status"], &BUCKET[..]].concat());
    assert_eq!(one["state"], "online");
    assert_eq!(one["indexes"][0]["definition"], "by_country=country,city");
    assert_eq!(one["indexes"][0]["changes"], 7184);
    let table = world.ok(&["status", "--data-dir", "d"]);
    assert!(table.contains("bucket other: online") && table.contains("by_tz=tz"), "{table}");
}

#[test]
fn drop_removes_an_index_or_a_whole_bucket() {
    let world = World::with_airports();
    world.ok(&[&["drop"], &BUCKET[..], &["--index", "by_alt", "--yes"]].concat());
    let scan_of = |index| [&["scan"], &BUCKET[..], &["--index", index]].concat();
    world.refused(1, &scan_of("by_alt"), &["no index `by_alt`", "by_country", "by_tz"]);
    assert_eq!(world.count("by_tz"), 7184);
    world.ok(&[&["drop"], &BUCKET[..], &["--yes"]].concat());
    world.refused(1, &scan_of("by_tz"), &["no bucket travel"]);
    assert!(!world.path("d/buckets/travel").exists());
}

#[test]
fn a_closed_output_pipe_ends_a_scan_quietly() {
    let world = World::with_airports();
    let words = [&["scan"], &BUCKET[..], &["--index", "by_country"]].concat();
    let mut child = world.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    drop(reader);
    assert_eq!(line, "[\"Afghanistan\",\"Bamyan\"]\tairport::8825\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut stderr = String::new();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
}

#[test]
fn logs_go_to_standard_error_in_the_format_that_is_asked_for() {
    let world = World::new();
    let words = [&["ingest"], &BUCKET[..], &["-v", "--log-format", "json", "--format", "json", AIRPORTS]];
    let done = world.run(&words.concat());
    assert_eq!(done.stdout.lines().count(), 1);
    let logs: Vec<Value> = done.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(logs.iter().any(|log| log["msg"] == "ingested" && log["documents"] == 7184), "{logs:?}");
}

#[test]
fn the_demo_works_with_nothing_but_the_binary() {
    let world = World::new();
    let began = Instant::now();
    let done = world.run(&["demo"]);
    assert!(began.elapsed().as_secs() < 10, "the demo took {:?}", began.elapsed());
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    assert!(done.stdout.contains("21552 entries of 3 indexes are equal"), "{}", done.stdout);
    assert!(done.stdout.lines().count() <= 12);
    let report = world.json(&["demo", "--work-dir", "w/x"]);
    assert_eq!((&report["equal"], &report["compared_entries"]), (&json!(true), &json!(21552)));
    assert!(world.path("w/x/archive/travel").is_dir());
    world.refused(1, &["demo", "--work-dir", "w/x"], &["w/x", "not empty"]);
}

#[test]
fn the_help_of_every_verb_names_its_options_and_their_defaults() {
    let world = World::new();
    let common = "--format --deadline -v --log-format";
    for (verb, options) in [
        ("demo", "--work-dir"),
        (
            "ingest",
            "--data-dir --bucket --store --shards --vbuckets --index --rebuild --id-field --changes --skip-bad \
             --commit-interval SOURCE",
        ),
        (
            "scan",
            "--data-dir --bucket --index --from --to --exclusive-from --exclusive-to --reverse --limit --count",
        ),
        ("status", "--data-dir --bucket"),
        ("drop", "--data-dir --bucket --index --yes"),
        ("pause", "--data-dir --bucket --archive --evict --dry-run"),
        ("resume", "--data-dir --bucket --archive --pause --dry-run"),
    ] {
        let help = world.ok(&[verb, "--help"]);
        assert!(help.contains("Examples:"), "{help}");
        for option in options.split_whitespace().chain(common.split_whitespace()) {
            let mut lines = help.lines().skip_while(|line| !line.trim_start().starts_with(option));
            let about: Vec<&str> = lines.by_ref().take(9).collect();
            let has_default =
                about.iter().any(|line| ["[default", "(required)"].iter().any(|it| line.contains(it)));
            assert!(has_default || option == "SOURCE", "{verb} {option} in: {help}");
        }
    }
    assert!(world.ok(&["--help"]).contains("resume"));
    for (verb, own) in
        [("ingest", "--index"), ("pause", "--evict"), ("resume", "--dry-run"), ("verify", "--bucket")]
    {
        let help = world.ok(&[verb, "--help"]);
        let place =
            |word: &str| help.find(&format!("\n      {word}")).or_else(|| help.find(&format!("\n{word}")));
        assert!(place(own) < place("Options of every archive"), "{verb} files {own} elsewhere: {help}");
    }
}

#[test]
fn no_source_file_knows_an_async_runtime() {
    let mut folders = vec![format!("{}/src", env!("CARGO_MANIFEST_DIR")).into()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir::<std::path::PathBuf>(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for name in ["tokio", "hyper", "futures"] {
                assert!(!text.contains(&format!("{name}::")), "{} uses {name}", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20);
}
