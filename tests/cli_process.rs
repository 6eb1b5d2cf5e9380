//! The command line as a process: killed, interrupted, and what threads it has.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::cli::{
    AIRPORTS, BUCKET, Done, INDEX_OPTIONS, World, all_expected, assert_is_one_error, documents, feed,
    thread_names, wait_until,
};

/// Starts an ingest that makes its changes durable at once.
fn start_ingest(world: &World, source: &str) -> Child {
    let words = [&["ingest"], &BUCKET[..], &INDEX_OPTIONS, &["--commit-interval", "5ms", source]];
    world.start(&words.concat())
}

fn first_half_of_the_airports() -> String {
    let text = fs::read_to_string(AIRPORTS).unwrap();
    text.lines().take(3592).fold(String::new(), |half, line| half + line + "\n")
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn an_ingest_that_is_killed_and_done_again_gives_the_scans_of_one_that_was_not() {
    let world = World::new();
    let mut child = start_ingest(&world, "-");
    feed(&mut child, &first_half_of_the_airports());
    world.wait_until_durable();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    world.ingest(&INDEX_OPTIONS, AIRPORTS);
    assert!(world.all_scans("d") == all_expected(&documents(AIRPORTS)));
}

#[test]
fn an_ingest_of_a_file_that_is_killed_and_done_again_gives_the_scans_of_one_that_was_not() {
    let world = World::new();
    let text = fs::read_to_string(AIRPORTS).unwrap();
    let mut wrong = String::new();
    for round in 0..20 {
        wrong.push_str(&text.replace("\"country\":\"", &format!("\"country\":\"{round} ")));
    }
    world.write("many", wrong + &text);
    let mut child = start_ingest(&world, "many");
    world.wait_until_durable();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    world.ingest(&INDEX_OPTIONS, "many");
    assert!(world.all_scans("d") == all_expected(&documents(AIRPORTS)));
}

/// Ends a half-done ingest by `signal` and checks that what came before is kept.
fn end_by(signal: Signal, status: i32) {
    let world = World::new();
    let mut child = start_ingest(&world, "-");
    feed(&mut child, &first_half_of_the_airports());
    world.wait_until_durable();
    send(&child, signal);
    // The pipe stays open meanwhile: the end of standard input must not be what ends it.
    let stdin = child.stdin.take();
    let done = Done::from(child.wait_with_output().unwrap());
    drop(stdin);
    assert_eq!((done.status, done.stdout.as_str()), (Some(status), ""));
    let mut told: Vec<&str> = done.stderr.lines().collect();
    let error = told.pop().unwrap();
    assert_is_one_error(error, &["travel", "cancelled", "are kept"]);
    assert_eq!(told.len(), 1, "{}", done.stderr);
    assert!(told[0].contains("cannot be replayed"));
    let kept: usize = error.split("the ").last().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(kept > 0);
    assert_eq!(world.count("by_country"), kept);
    world.ingest(&INDEX_OPTIONS, AIRPORTS);
    assert!(world.all_scans("d") == all_expected(&documents(AIRPORTS)));
}

#[test]
fn an_interrupt_ends_an_ingest_and_keeps_what_came_before() {
    end_by(Signal::INT, 130);
}

#[test]
fn a_termination_ends_an_ingest_and_keeps_what_came_before() {
    end_by(Signal::TERM, 143);
}

#[test]
fn an_interrupt_ends_a_scan_that_waits_for_its_reader() {
    let world = World::with_airports();
    let mut child = world.start(&[&["scan"], &BUCKET[..], &["--index", "by_country"]].concat());
    let written_bytes = || {
        let io = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok()).unwrap_or(0)
    };
    wait_until("a full pipe", || written_bytes() >= 64 * 1024);
    send(&child, Signal::INT);
    wait_until("the end of the scan", || child.try_wait().unwrap().is_some());
    let done = Done::from(child.wait_with_output().unwrap());
    assert_eq!(done.status, Some(130));
    assert_is_one_error(&done.stderr, &["cannot write the results", "cancelled"]);
    assert!(done.stdout.len() >= 32 * 1024, "what was written is there for a reader that comes late");
    assert_eq!(world.count("by_country"), 7184);
}

#[test]
fn an_interrupt_ends_the_wait_for_whoever_writes_to_a_named_pipe() {
    let world = World::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, world.path("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let mut child = start_ingest(&world, "pipe");
    wait_until("the ingest", || thread_names(child.id()).contains("dm-source"));
    fs::write(world.path("pipe"), "{\"id\":\"a\",\"country\":\"x\"}\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(world.count("by_country"), 1);

    let child = start_ingest(&world, "pipe");
    wait_until("the ingest", || thread_names(child.id()).contains("dm-source"));
    send(&child, Signal::INT);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}

#[test]
fn a_deadline_ends_an_ingest_and_keeps_what_came_before() {
    let world = World::new();
    let words = [&["ingest"], &BUCKET[..], &INDEX_OPTIONS, &["--deadline", "300ms", "-"]];
    let mut child = world.start(&words.concat());
    feed(&mut child, "{\"id\":\"a\",\"country\":\"x\"}\n");
    let stdin = child.stdin.take();
    let done = Done::from(child.wait_with_output().unwrap());
    drop(stdin);
    assert_eq!(done.status, Some(1));
    assert!(done.stderr.contains("deadline passed"), "{}", done.stderr);
    // How far it came by then is the machine's matter; what it says was kept has to be there.
    let kept = format!("the {} changes that were applied are kept", world.count("by_country"));
    assert!(done.stderr.contains(&kept), "not `{kept}`: {}", done.stderr);
}

#[test]
fn a_held_ingest_has_the_threads_that_are_written_down_and_no_other() {
    let world = World::new();
    let mut child = start_ingest(&world, "-");
    feed(&mut child, "{\"id\":\"a\",\"country\":\"x\"}\n");
    let names = "dormouse dm-signals dm-flush dm-compact dm-source kv-ctl-0 kv-data-0 vbc-0-0 vbc-0-1 vbd-0-0 vbd-0-1";
    let names: BTreeSet<String> = names.split_whitespace().map(str::to_owned).collect();
    let mut seen = BTreeSet::new();
    wait_until("the start of the ingest", || thread_names(child.id()).contains("dormouse"));
    wait_until("the ingest's threads", || {
        seen = thread_names(child.id());
        seen == names || !seen.is_subset(&names)
    });
    assert_eq!(seen, names);
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn every_verb_has_only_threads_that_are_written_down() {
    let world = World::with_airports();
    let verbs: [&[&str]; 9] = [
        &["demo"],
        &["ingest", AIRPORTS],
        &["scan", "--index", "by_country"],
        &["status"],
        &["pause", "--archive", "a", "--dry-run"],
        &["pause", "--archive", "a", "--evict"],
        &["resume", "--archive", "a", "--dry-run"],
        &["resume", "--archive", "a"],
        &["drop", "--yes"],
    ];
    let mut sampled = 0;
    for verb in verbs {
        let bucket = if verb[0] == "demo" { &[] } else { &BUCKET[..] };
        let mut child = world.start(&[&verb[..1], bucket, &verb[1..]].concat());
        // Until then its one thread has the name of the one that started it.
        wait_until("the start of the verb", || thread_names(child.id()).contains("dormouse"));
        let mut seen = BTreeSet::new();
        // A scan's output fits into no pipe, so that one is sampled while it waits to be read.
        for _ in 0..200 {
            seen.append(&mut thread_names(child.id()));
        }
        if verb[0] == "scan" {
            drop(child.stdout.take());
        }
        wait_until("the end of the verb", || {
            seen.append(&mut thread_names(child.id()));
            child.try_wait().unwrap().is_some()
        });
        let mut unknown = String::new();
        for name in &seen {
            let is_ours = ["dm-", "kv-", "vbc-", "vbd-"].iter().any(|prefix| name.starts_with(prefix));
            if name != "dormouse" && !is_ours {
                write!(unknown, "{name} ").unwrap();
            }
        }
        assert_eq!(unknown, "", "{verb:?}");
        sampled += usize::from(seen.contains("dm-signals"));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{verb:?}");
    }
    assert!(sampled > verbs.len() / 2, "only {sampled} verbs were sampled in time");
}
