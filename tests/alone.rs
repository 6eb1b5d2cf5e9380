//! What a follower owes its host and what only a process that does nothing else can tell: its threads by their names,
//! the environment, names of hosts that cannot be looked up, and signals that interrupt its calls.
//!
//! Each test starts this binary once more, with nothing but itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse::bucket::{CloseError, FollowCause, FollowOptions, IntakeError};
use dormouse::index::IndexDefinition;
use dormouse::shard::StoreKind;
use dormouse::source::dcp::{ClusterCause, NodeAddress};
use dormouse::thread::{Stopped, Until, fin, spawn};
use rustix::fs::{CWD, Mode, OFlags, inotify, mkfifoat, open};
use rustix::process::{Pid, Signal, kill_process};
use slog::{Discard, Logger, o};
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
            while stopped.wait(&Until::within(Duration::from_micros(200))).is_err() {
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

/// A name that no resolver answers for while nobody writes into the pipe of [`with_hanging_names`].
const HANGING: &str = "dormouse-node";
/// What a call may take beyond its limit on a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(10);

/// Does `work` where the system looks names without a dot up in a pipe. It is given the end of that: from then on, each
/// look-up finds nothing each time that it is called.
fn with_hanging_names(name: &str, work: impl FnOnce(&dyn Fn())) {
    let (folder, variable) = (TempDir::new().unwrap(), "HOSTALIASES");
    let pipe = folder.path().join("aliases");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let variables = [(variable, pipe.into_os_string()), ("RES_OPTIONS", "timeout:1 attempts:1".into())];
    alone(name, &variables, || {
        let pipe = std::env::var_os(variable).unwrap();
        // Without a reader it cannot be opened so.
        work(&|| drop(open(&pipe, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty())));
    });
}

#[test]
fn a_look_up_that_hangs_ends_with_its_limit_and_a_close_names_its_thread() {
    with_hanging_names("a_look_up_that_hangs_ends_with_its_limit_and_a_close_names_its_thread", |release| {
        let (folder, producer) = (TempDir::new().unwrap(), Producer::start(8));
        let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
        let mut options = follow(&producer, false);
        options.cluster.seeds = vec![NodeAddress { host: HANGING.to_owned(), port: 11210 }];
        let (began, soon) = (Instant::now(), Until::within(Duration::from_millis(300)));
        let ended = consumer.bucket.follow(&options, &soon, &mut |_| {}).unwrap_err();
        assert!(matches!(ended, IntakeError::Stopped { why: Stopped::DeadlinePassed, .. }), "{ended}");
        assert!(began.elapsed() < SLACK, "it took {:?}", began.elapsed());
        let names_it_alone = || {
            let began = Instant::now();
            let closed = consumer.bucket.close(&Until::within(Duration::from_millis(200))).unwrap_err();
            assert!(began.elapsed() < SLACK, "it took {:?}", began.elapsed());
            matches!(&closed, CloseError::StillRunning { threads } if threads == &["dm-follow-0"])
        };
        // The first ones may have no time left to see the others end.
        eventually("a close names the thread that hangs", names_it_alone);
        assert!(names_it_alone(), "it was named once");
        eventually("it can be closed", || {
            release();
            consumer.bucket.close(&Until::within(Duration::from_millis(10))).is_ok()
        });
        drop(consumer);
        eventually("no thread is left", || theirs().is_empty());
        producer.check();
    });
}

#[test]
fn a_map_that_a_host_asks_for_comes_or_not_within_its_limit() {
    with_hanging_names("a_map_that_a_host_asks_for_comes_or_not_within_its_limit", |release| {
        let producer = Producer::start(8);
        let (cluster, logger) = (producer.cluster(), Logger::root(Discard, o!()));
        assert_eq!(cluster.fetch_map(&cluster.seeds, &logger, &watchdog()).unwrap().vbuckets(), 8);
        let seed = NodeAddress { host: HANGING.to_owned(), port: 11210 };
        let (began, soon) = (Instant::now(), Until::within(Duration::from_millis(300)));
        let ended = cluster.fetch_map(std::slice::from_ref(&seed), &logger, &soon).err().unwrap();
        assert!(matches!(ended.cause, ClusterCause::Stopped(Stopped::DeadlinePassed)), "{ended}");
        assert!(ended.node == seed && began.elapsed() < SLACK, "it took {:?}", began.elapsed());
        assert_eq!(theirs(), ["dm-map"]);
        eventually("no thread is left", || {
            release();
            theirs().is_empty()
        });
        producer.check();
    });
}

#[test]
fn a_node_whose_name_hangs_holds_up_its_own_vbuckets_alone() {
    with_hanging_names("a_node_whose_name_hangs_holds_up_its_own_vbuckets_alone", |release| {
        let (folder, producer, mut dice) =
            (TempDir::new().unwrap(), Producer::start_nodes(8, 2, None), Dice::new(1));
        producer.behave(|behaviour| behaviour.node_names = [(1, HANGING)].into());
        let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
        consumer.begin(follow(&producer, false));
        let of_others = |all: Vec<u64>| all.into_iter().step_by(2).collect::<Vec<_>>();
        for _ in 0..5 {
            write(&producer, &mut dice, 100);
            eventually("the others go on", || of_others(consumer.reached()) == of_others(producer.highs()));
        }
        // It has an end all the same, once the name has one.
        let ended = std::thread::scope(|scope| {
            let ending = scope.spawn(|| consumer.end());
            eventually("it ends", || {
                release();
                ending.is_finished()
            });
            ending.join().unwrap()
        });
        assert!(matches!(ended, Err(IntakeError::Stopped { .. })), "{ended:?}");
        consumer.close();
        eventually("no thread is left", || theirs().is_empty());
        producer.check();
    });
}

/// A bucket of two shards that nobody follows.
const OF_NOBODY: [&str; 2] = ["dm-compact", "dm-flush"];

#[test]
fn an_index_that_was_built_leaves_the_connections_and_threads_that_were_there_before() {
    alone("an_index_that_was_built_leaves_the_connections_and_threads_that_were_there_before", &[], || {
        let (folder, producer, mut dice) = (TempDir::new().unwrap(), Producer::start(8), Dice::new(1));
        write(&producer, &mut dice, 500);
        let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
        consumer.once(&producer);
        consumer.bucket.ensure_index(&IndexDefinition::parse("second=n").unwrap(), false).unwrap();
        producer.behave(|behaviour| behaviour.stalled_from_zero = (0..8).collect());
        consumer.begin(follow(&producer, false));
        eventually("it is built by streams of its own", || {
            producer.open_connections() == 2 && theirs().contains(&"kv-data-1".to_owned())
        });
        producer.behave(|behaviour| behaviour.stalled_from_zero.clear());
        eventually("the first streams are alone", || {
            producer.open_connections() == 1 && theirs() == times(&OF_A_FOLLOWER, 1)
        });
        consumer.finish(producer);
    });
}

#[test]
fn following_that_ends_in_whatever_way_leaves_neither_a_connection_nor_a_thread() {
    alone("following_that_ends_in_whatever_way_leaves_neither_a_connection_nor_a_thread", &[], || {
        for (waits_for_disk, is_once, builds) in
            [(true, false, false), (true, true, false), (false, false, true), (false, true, true)]
        {
            for is_cancelled in [true, false] {
                let (folder, producer, mut dice) =
                    (TempDir::new().unwrap(), Producer::start(8), Dice::new(1));
                write(&producer, &mut dice, 100);
                let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
                if builds {
                    consumer.once(&producer);
                    let second = IndexDefinition::parse("second=n").unwrap();
                    consumer.bucket.ensure_index(&second, false).unwrap();
                    producer.behave(|behaviour| behaviour.stalled_from_zero = (0..8).collect());
                }
                producer.behave(|behaviour| behaviour.keeps_in_memory = waits_for_disk);
                write(&producer, &mut dice, 100);
                let mut options = FollowOptions { connections: 2, ..follow(&producer, is_once) };
                options.cluster.connection.persisted_only = waits_for_disk;
                let (asked, observes) = {
                    let state = producer.state.lock();
                    (state.requests.len(), state.observes)
                };
                consumer.begin(options);
                eventually("it is under way", || {
                    let state = producer.state.lock();
                    let paths = if builds { 2 } else { 1 };
                    state.requests.len() == asked + 8 * paths
                        && (!waits_for_disk || state.observes > observes + 4)
                });
                let ended = if is_cancelled {
                    consumer.end()
                } else {
                    producer.answer(0x53, 0x24, b"no rights");
                    producer.behave(|behaviour| behaviour.cut_after = Some(0));
                    consumer.join()
                };
                let is_right = match &ended {
                    Err(IntakeError::Stopped { .. }) => is_cancelled,
                    Err(IntakeError::Cluster { cause: FollowCause::Refused { .. }, .. }) => !is_cancelled,
                    _ => false,
                };
                assert!(is_right, "{ended:?}");
                eventually("nothing of it is left", || {
                    producer.open_connections() == 0 && theirs() == times(&OF_NOBODY, 1)
                });
                consumer.close();
                producer.check();
            }
        }
    });
}
