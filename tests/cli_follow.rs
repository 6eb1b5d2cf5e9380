//! `ingest couchbase://…`, as a process against a producer in this one.

use std::collections::BTreeSet;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::cli::{AIRPORTS, BUCKET, Done, World, assert_is_one_error, thread_names, wait_until};
use crate::support::consumer::write;
use crate::support::path::Dice;
use crate::support::producer::{Certificate, PASSWORD, Producer, USER};

/// A world with the password in the file `p`.
fn world() -> World {
    let world = World::new();
    world.write("p", format!("{PASSWORD}\n"));
    world
}

fn url(producer: &Producer) -> String {
    format!("couchbase://{USER}@{}/travel", producer.address)
}

/// The words that follow the producer.
fn words<'a>(options: &[&'a str], url: &'a str) -> Vec<&'a str> {
    [&["ingest"], &BUCKET[..], &["--shards", "2", "--password-file", "p"], options, &[url]].concat()
}

fn ids(world: &World) -> BTreeSet<String> {
    let id = |entry: &Value| entry["id"].as_str().unwrap().to_owned();
    world.scan("primary", &[]).iter().map(id).collect()
}

fn start(world: &World, options: &[&str], url: &str) -> Child {
    world.start(&words(options, url))
}

#[test]
fn once_indexes_what_is_there_and_goes_on_from_there_the_next_time() {
    let (world, producer, mut dice) = (world(), Producer::start_nodes(16, 2, None), Dice::new(1));
    for round in 0..3 {
        write(&producer, &mut dice, 500);
        let told = world.json(&words(&["--once"], &url(&producer)));
        assert_eq!((&told["end"], &told["bucket"]), (&"caught_up".into(), &"travel".into()), "{told}");
        assert_eq!(ids(&world), producer.documents(), "round {round}");
    }
    let status = world.json(&[&["status"], &BUCKET[..]].concat());
    assert!(status.to_string().contains("\"source\":\"couchbase\""), "{status}");
    producer.check();
}

#[test]
fn a_password_from_the_environment_and_tls_work_as_well() {
    let certificate = Certificate::new("localhost");
    let (world, producer) = (world(), Producer::start_nodes(4, 1, Some(&certificate)));
    producer.put(1, "a", "{}");
    world.write("ca.pem", &certificate.authority_pem);
    let url = format!("couchbases://{USER}@localhost:{}/travel", producer.address.port());
    let words =
        [&["ingest"], &BUCKET[..], &["--shards", "2", "--once", "--ca-file", "ca.pem", &url]].concat();
    let done = Done::from(world.command(&words).env("DORMOUSE_PASSWORD", PASSWORD).output().unwrap());
    assert_eq!(done.status, Some(0), "{}", done.stderr);
    assert_eq!(ids(&world), producer.documents());
    producer.check();
}

#[test]
fn a_wrong_password_is_told_without_it_and_leaves_nothing_behind() {
    let (world, producer) = (world(), Producer::start(4));
    world.write("p", "hunter2");
    let url = url(&producer);
    let told = world.refused(1, &words(&["--once"], &url), &["logging in", "nothing was made"]);
    assert!(!told.contains("hunter2"));
    let done = world.run(&words(&["--once", "-vv"], &url));
    assert!(done.stderr.lines().count() > 1 && !done.stderr.contains("hunter2"), "{}", done.stderr);
    assert!(!world.path("d").exists());
    producer.check();
}

#[test]
fn words_that_make_no_sense_are_refused() {
    let world = world();
    for (options, source, told) in [
        (&["--once"][..], "couchbase://host/b", "names no user"),
        (&["--once"], "couchbase://me:hunter2@host/b", "no place"),
        (&["--once"], "couchbase://me@host", "names a bucket"),
        (&["--once", "--ca-file", "p"], "couchbase://me@host/b", "with an s"),
        (&["--once", "--changes"], "couchbase://me@host/b", "are for files"),
        (&["--sleep-after", "1s"], "couchbase://me@host/b", "--archive"),
        (&["--member", "3/2"], "couchbase://me@host/b", "from 1/M to M/M"),
        (&["--once"], AIRPORTS, "couchbase:// source"),
    ] {
        let told = world.refused(2, &words(options, source), &[told]);
        assert!(!told.contains("hunter2"), "{told}");
    }
    for option in ["--connections=2", "--network=external"] {
        let of_files = [&["ingest"], &BUCKET[..], &[option, AIRPORTS]].concat();
        world.refused(2, &of_files, &["couchbase:// source"]);
    }
    let no_password = [&["ingest"], &BUCKET[..], &["couchbase://me@host/b"]].concat();
    world.refused(2, &no_password, &["DORMOUSE_PASSWORD", "--password-file"]);
    assert!(!world.path("d").exists());
}

#[test]
fn files_and_clusters_do_not_mix_in_one_bucket() {
    let (world, producer) = (world(), Producer::start(1024));
    world.json(&words(&["--once"], &url(&producer)));
    let files = [&["ingest"], &BUCKET[..], &[AIRPORTS]].concat();
    world.refused(1, &files, &["it was made for couchbase", "another bucket"]);
    let other = World::with_airports();
    other.write("p", PASSWORD);
    let url = url(&producer);
    let cluster = [&["ingest"], &BUCKET[..], &["--password-file", "p", "--once", &url]].concat();
    other.refused(1, &cluster, &["it was made for files", "another bucket"]);
    producer.check();
}

#[test]
fn an_interrupt_ends_it_and_keeps_what_came() {
    let (world, producer, mut dice) = (world(), Producer::start(8), Dice::new(2));
    write(&producer, &mut dice, 500);
    let child = start(&world, &["--commit-interval", "5ms"], &url(&producer));
    wait_until("everything is taken", || {
        let state = producer.state.lock();
        state.connections.last().is_some_and(|seen| seen.sent > 0) && state.requests.len() == 8
    });
    world.wait_until_durable();
    let names = "dormouse dm-signals dm-flush dm-compact kv-ctl-0 kv-data-0 vbc-0-0 vbc-0-1 vbd-0-0 vbd-0-1 dcp-read-0 \
                 dcp-send-0";
    let names: BTreeSet<String> = names.split_whitespace().map(str::to_owned).collect();
    wait_until("the threads that are written down", || thread_names(child.id()) == names);
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let done = Done::from(child.wait_with_output().unwrap());
    assert_eq!((done.status, done.stdout.as_str()), (Some(130), ""));
    assert_is_one_error(&done.stderr, &["travel", "cancelled", "are kept"]);
    world.json(&words(&["--once"], &url(&producer)));
    assert_eq!(ids(&world), producer.documents());
    producer.check();
}

#[test]
fn an_idle_bucket_is_put_to_sleep_and_goes_on_after_it_was_woken_up() {
    let (world, producer, mut dice) = (world(), Producer::start(8), Dice::new(3));
    write(&producer, &mut dice, 500);
    let told = world.json(&words(&["--sleep-after", "200ms", "--archive", "a"], &url(&producer)));
    assert_eq!(told["end"], "idle", "{told}");
    assert!(told["paused"]["files"].as_u64().unwrap() > 0, "{told}");
    world.refused(1, &words(&["--once"], &url(&producer)), &["paused in", "resume"]);
    let documents = producer.documents();
    write(&producer, &mut dice, 200);
    world.ok(&[&["resume"], &BUCKET[..], &["--archive", "a"]].concat());
    assert_eq!(ids(&world), documents);
    world.json(&words(&["--once"], &url(&producer)));
    assert_eq!(ids(&world), producer.documents());
    producer.check();
}

#[test]
fn an_idle_bucket_leaves_the_disk_where_that_is_asked_for() {
    let (world, producer, mut dice) = (world(), Producer::start(8), Dice::new(3));
    write(&producer, &mut dice, 500);
    let sleeps = ["--sleep-after", "200ms", "--archive", "a", "--evict"];
    let told = world.json(&words(&sleeps, &url(&producer)));
    assert!(told["paused"]["files"].as_u64().unwrap() > 0, "{told}");
    world.refused(1, &[&["scan"], &BUCKET[..], &["--index", "primary"]].concat(), &["resume"]);
    world.ok(&[&["resume"], &BUCKET[..], &["--archive", "a"]].concat());
    assert_eq!(ids(&world), producer.documents());
    producer.check();
}

#[test]
fn a_new_index_is_built_from_what_the_bucket_held() {
    let (world, producer, mut dice) = (world(), Producer::start(8), Dice::new(4));
    write(&producer, &mut dice, 500);
    world.json(&words(&["--once"], &url(&producer)));
    write(&producer, &mut dice, 100);
    world.json(&words(&["--once", "--index", "by_n=n"], &url(&producer)));
    assert_eq!(world.count("by_n"), producer.documents().len());
    assert_eq!(ids(&world), producer.documents());
    producer.check();
}

#[test]
fn without_a_file_of_authorities_those_of_the_machine_are_trusted() {
    let certificate = Certificate::new("localhost");
    let (world, producer) = (world(), Producer::start_nodes(4, 1, Some(&certificate)));
    producer.put(1, "a", "{}");
    world.write("ca.pem", &certificate.authority_pem);
    world.write("none.pem", "");
    let url = format!("couchbases://{USER}@localhost:{}/travel", producer.address.port());
    let words = words(&["--once"], &url);
    // The way by which a machine's authorities are named to those who look for them.
    let run = |file: &str| {
        let mut command = world.command(&words);
        command.env("SSL_CERT_FILE", world.path(file)).env_remove("SSL_CERT_DIR");
        Done::from(command.output().unwrap())
    };
    let refused = run("none.pem");
    assert_eq!(refused.status, Some(1));
    assert_is_one_error(&refused.stderr, &["authorities of this machine", "--ca-file"]);
    let done = run("ca.pem");
    assert_eq!(done.status, Some(0), "{}", done.stderr);
    assert_eq!(ids(&world), producer.documents());
    producer.check();
}

#[test]
fn a_network_is_chosen_by_the_host_or_by_name() {
    let (world, producer) = (world(), Producer::start_nodes(4, 2, None));
    producer.behave(|behaviour| behaviour.is_hidden = true);
    producer.put(1, "a", "{}");
    let url = url(&producer);
    for network in ["auto", "external"] {
        world.json(&words(&["--once", "--network", network], &url));
        assert_eq!(ids(&world), producer.documents());
    }
    world.refused(1, &words(&["--once", "--network", "nowhere"], &url), &["nowhere", "another network"]);
    producer.check();
}

#[test]
fn only_what_is_on_disk_is_indexed_where_that_is_asked_for() {
    let (world, producer, mut dice) = (world(), Producer::start_nodes(8, 2, None), Dice::new(5));
    write(&producer, &mut dice, 300);
    world.json(&words(&["--once", "--persisted-only"], &url(&producer)));
    assert_eq!(ids(&world), producer.documents());
    assert!(producer.state.lock().observes > 0);
    producer.check();
}

#[test]
fn on_a_terminal_the_rate_and_the_lag_are_shown_while_it_follows() {
    let (world, producer, mut dice) = (world(), Producer::start(8), Dice::new(6));
    write(&producer, &mut dice, 500);
    producer.behave(|behaviour| behaviour.stalled_from_zero = [3].into());
    let url = url(&producer);
    let all = words(&["--once"], &url).join(" ");
    let program = env!("CARGO_BIN_EXE_dormouse");
    // It makes a terminal for what it runs.
    let mut command = std::process::Command::new("script");
    command.args(["-qefc", &format!("stty cols 200; {program} {all}"), "shown"]).current_dir(world.path(""));
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let child = command.spawn().unwrap();
    let shown = || std::fs::read_to_string(world.path("shown")).unwrap_or_default();
    let behind = producer.state.lock().vbs[3].high_of(0);
    let wanted = format!(" {behind} behind, 8 of 8 streams");
    wait_until("the lag is shown", || shown().contains(&wanted));
    assert!(shown().contains(" a second, "), "{}", shown());
    producer.behave(|behaviour| behaviour.stalled_from_zero.clear());
    assert!(child.wait_with_output().unwrap().status.success(), "{}", shown());
    producer.check();
}
