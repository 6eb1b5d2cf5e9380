//! What a follower owes its host and what only a process that does nothing else can tell: its threads by their names,
//! the environment, and signals that interrupt its calls.
//!
//! Each test starts this binary once more, with nothing but itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse::shard::StoreKind;
use dormouse::thread::{Until, fin, spawn};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::consumer::{Consumer, expected, follow, write};
use crate::support::path::Dice;
use crate::support::producer::Producer;
use crate::support::{eventually, watchdog};

/// Set in the process that a test has for itself.
const ALONE: &str = "DORMOUSE_TEST_ALONE";

/// Does `work` in a process of its own, which is this binary with only the test `name` and these variables.
fn alone(name: &str, variables: &[(&str, OsString)], work: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return work();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("alone::{name}"), "--exact", "--test-threads", "1"]);
    command.env(ALONE, "1").envs(variables.iter().map(|(name, value)| (name, value)));
    let done = command.stdin(Stdio::null()).output().unwrap();
    let told = [done.stdout, done.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
    assert!(done.status.success() && told[0].contains("1 passed"), "{}\n{}", told[0], told[1]);
}

/// The numbers and names of this process's threads.
fn threads() -> Vec<(i32, String)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap());
    let named = tasks.filter_map(|task| {
        let number = task.file_name().to_str()?.parse().ok()?;
        Some((number, std::fs::read_to_string(task.path().join("comm")).ok()?.trim_end().to_owned()))
    });
    named.collect()
}

/// The names of the library's threads, without the numbers of connections, sorted.
fn theirs() -> Vec<String> {
    let prefixes = ["dm-", "kv-", "vbc-", "vbd-", "dcp-"];
    let names = threads().into_iter().map(|(_, name)| name);
    let mut names: Vec<String> = names
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .map(|name| match name.strip_prefix("dcp-") {
            Some(rest) => format!("dcp-{}", rest.split('-').next().unwrap()),
            None => name,
        })
        .collect();
    names.sort();
    names
}

/// Of a bucket of two shards that follows one node over one connection.
const OF_A_FOLLOWER: [&str; 10] = [
    "dcp-read",
    "dcp-send",
    "dm-compact",
    "dm-flush",
    "kv-ctl-0",
    "kv-data-0",
    "vbc-0-0",
    "vbc-0-1",
    "vbd-0-0",
    "vbd-0-1",
];

fn times(names: &[&str], times: usize) -> Vec<String> {
    names.iter().flat_map(|name| std::iter::repeat_n((*name).to_owned(), times)).collect()
}

#[test]
fn two_instances_that_follow_at_once_end_their_own_threads_alone() {
    alone("two_instances_that_follow_at_once_end_their_own_threads_alone", &[], || {
        let (folders, mut dice) = ([TempDir::new().unwrap(), TempDir::new().unwrap()], Dice::new(1));
        let producers = [Producer::start(8), Producer::start(8)];
        let [mut first, mut second] =
            [0, 1].map(|place| Consumer::open(folders[place].path(), StoreKind::Lsm, 8));
        for (consumer, producer) in [(&mut first, &producers[0]), (&mut second, &producers[1])] {
            write(producer, &mut dice, 100);
            consumer.begin(follow(producer, false));
        }
        first.catch_up(&producers[0]);
        second.catch_up(&producers[1]);
        eventually("both follow", || theirs() == times(&OF_A_FOLLOWER, 2));
        first.end().unwrap_err();
        eventually("the first is idle", || {
            let mut wanted = times(&OF_A_FOLLOWER, 1);
            wanted.extend(times(&["dm-compact", "dm-flush"], 1));
            wanted.sort();
            theirs() == wanted
        });
        write(&producers[1], &mut dice, 100);
        second.catch_up(&producers[1]);
        assert_eq!(first.indexed(), expected(&producers[0]));
        first.close();
        eventually("the second is alone", || theirs() == times(&OF_A_FOLLOWER, 1));
        second.end().unwrap_err();
        assert_eq!(second.indexed(), expected(&producers[1]));
        second.close();
        eventually("no thread is left", || theirs().is_empty());
        producers.into_iter().for_each(Producer::check);
    });
}

#[test]
fn calls_of_a_follower_that_a_signal_interrupts_go_on() {
    alone("calls_of_a_follower_that_a_signal_interrupts_go_on", &[], || {
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::default()).unwrap();
        let (folder, producer, mut dice) = (TempDir::new().unwrap(), Producer::start(8), Dice::new(1));
        let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
        consumer.begin(follow(&producer, false));
        write(&producer, &mut dice, 50);
        consumer.catch_up(&producer);
        let connections = || {
            let names = threads().into_iter().map(|(_, name)| name);
            names.filter(|name| name.starts_with("dcp-")).collect::<BTreeSet<_>>()
        };
        let before = connections();
        let (stop, stopped) = fin();
        let interrupting = spawn("t-interrupt", move || {
            while stopped.wait(&Until::within(std::time::Duration::from_micros(200))).is_err() {
                for (number, _) in threads().into_iter().filter(|(_, name)| name.starts_with("dcp-")) {
                    // It may have ended since.
                    if kill_process(Pid::from_raw(number).unwrap(), Signal::USR1).is_ok() {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        for _ in 0..50 {
            write(&producer, &mut dice, 50);
            consumer.catch_up(&producer);
        }
        drop(stop);
        interrupting.unwrap().join(&watchdog()).unwrap();
        assert!(came.load(Ordering::Relaxed) > 100, "few signals came");
        assert_eq!(connections(), before, "an interrupted call ended a connection");
        assert_eq!(consumer.indexed(), expected(&producer));
        consumer.end().unwrap_err();
        consumer.close();
        producer.check();
    });
}

/// Variables that lead to a server, and those that lead to files.
const URLS: [&str; 6] = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const PATHS: [&str; 4] = ["SSLKEYLOGFILE", "SSL_CERT_FILE", "HOME", "XDG_CONFIG_HOME"];

#[test]
fn a_follower_reads_nothing_of_the_environment() {
    let (trap, nobody) = (TempDir::new().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    nobody.set_nonblocking(true).unwrap();
    let url = OsString::from(format!("http://{}", nobody.local_addr().unwrap()));
    let path = |name: &'static str| (name, trap.path().join(name).into_os_string());
    let mut variables: Vec<(&str, OsString)> = URLS.iter().map(|name| (*name, url.clone())).collect();
    variables.extend(PATHS.map(path));
    // Files that whoever follows a variable finds and opens, in a folder that is watched.
    for name in PATHS {
        std::fs::write(trap.path().join(name), "trapped").unwrap();
    }
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, trap.path(), inotify::WatchFlags::ALL_EVENTS).unwrap();
    let touched = || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let event = inotify::Reader::new(&watch, &mut buffer).next().map(|event| format!("{event:?}"));
        event.ok()
    };
    variables.extend([("DORMOUSE_PASSWORD", "trapped".into()), ("CB_PASSWORD", "trapped".into())]);
    alone("a_follower_reads_nothing_of_the_environment", &variables, || {
        let (folder, mut dice) = (TempDir::new().unwrap(), Dice::new(1));
        let producer = Producer::start(8);
        write(&producer, &mut dice, 100);
        let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
        consumer.once(&producer);
        assert_eq!(consumer.indexed(), expected(&producer));
        consumer.close();
        producer.check();
    });
    assert!(nobody.accept().is_err(), "the environment's server was called");
    assert_eq!(touched(), None, "a path of the environment was followed");
    // A trap that catches nothing would prove nothing.
    std::fs::read(trap.path().join("HOME")).unwrap();
    assert!(touched().is_some());
}
