//! A day of the service: buckets of all stores are made, filled, read, put to sleep and woken up, on its own threads.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use dormouse::bucket::{Bucket, DataDir};
use dormouse::objstore::FileStore;
use dormouse::shard::StoreKind;
use dormouse::source::Input;
use tempfile::TempDir;

use crate::process::{Facts, eventually, memory_mib, tasks, threads};
use crate::service::{
    Journal, Pool, STORES, away_and_back, config, fed, ingest, make, minutes, named, numbers, scan,
    write_documents,
};

const DOCUMENTS: u32 = 4000;
const DAYS: u32 = 6;
/// What the allocator may keep of a day.
const KEPT_MIB_MAX: u64 = 16;

/// Signals that the service blocks, to wait for them in a call, as `env` knows them, and the bits of their numbers.
const BLOCKED: &str = "--block-signal=HUP,USR1,TERM";
const BLOCKED_BITS: u64 = 1 | 1 << 9 | 1 << 14;

/// The names in the library's table of threads.
fn table() -> BTreeSet<&'static str> {
    let lib = include_str!("../../src/lib.rs");
    let rows = lib.split("//! # Threads").nth(1).unwrap().lines().skip_while(|line| !line.contains('|'));
    let rows = rows.take_while(|line| line.contains('|'));
    rows.filter_map(|row| row.split('|').nth(1)?.split('`').nth(1)).collect()
}

/// A thread's name as the table has it: with letters for numbers.
fn as_in_table(name: &str) -> String {
    let mut letters = ["N", "W"].into_iter();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('-').map(|part| if is_number(part) { letters.next().unwrap() } else { part });
    parts.collect::<Vec<_>>().join("-")
}

/// Starts the service as one that has blocked signals from its first moment on.
pub(crate) fn prepare(command: &mut Command) {
    let program = command.get_program().to_owned();
    *command = Command::new("env");
    command.arg(BLOCKED).arg(program);
}

/// Looks at every thread but the service's own: it is in the table, and blocks what its starter does.
fn check_threads(own: &[String], seen: &mut BTreeSet<String>) {
    let table = table();
    for (name, blocked) in tasks(std::process::id()).into_iter().filter(|(name, _)| !own.contains(name)) {
        let named = as_in_table(&name);
        assert!(table.contains(named.as_str()), "{name} is not in the table of threads");
        assert_eq!(blocked & BLOCKED_BITS, BLOCKED_BITS, "{name} takes signals of the service");
        seen.insert(named);
    }
}

fn live(data: &DataDir, root: &Path, store: StoreKind, journal: &Arc<Journal>) {
    let (name, config) = (store.to_string(), config(journal));
    let bucket = make(data, &name, store, &config);
    ingest(&bucket, Input::Path(root.join("documents"))).unwrap();
    assert_eq!(scan(&bucket), numbers(0..DOCUMENTS));
    let archive = FileStore::open(&root.join("archive")).unwrap();
    let bucket = away_and_back(bucket, data, &archive, &config);
    ingest(&bucket, Input::Path(root.join("documents"))).unwrap();
    assert_eq!(scan(&bucket), numbers(0..DOCUMENTS));
    bucket.close(&minutes(1)).unwrap();
    drop(bucket);
    data.drop_bucket(&named(&name)).unwrap();
}

fn one(pool: &Pool, own: &[String], journal: &Arc<Journal>, seen: &mut BTreeSet<String>) {
    let root = TempDir::new().unwrap();
    write_documents(&root.path().join("documents"), 0..DOCUMENTS);
    let data = DataDir::open_or_create(&root.path().join("data")).unwrap();
    let (done, over) = channel();
    for store in STORES {
        let (data, root, done) = (data.clone(), root.path().to_owned(), done.clone());
        let journal = Arc::clone(journal);
        pool.give(move || {
            live(&data, &root, store, &journal);
            drop((data, journal));
            done.send(()).unwrap();
        });
    }
    let mut missing = STORES.len();
    while missing > 0 {
        check_threads(own, seen);
        if over.recv_timeout(Duration::from_millis(2)).is_ok() {
            missing -= 1;
        }
    }
}

pub(crate) fn after_another() {
    let (journal, pool) = (Arc::<Journal>::default(), Pool::new(STORES.len()));
    eventually("the pool", || threads().iter().filter(|name| name.starts_with("pool-")).count() == 3);
    // Until it has taken its name a thread has that of the one that started it.
    let (facts, own) = (Facts::now(), threads());
    let mut seen = BTreeSet::new();
    one(&pool, &own, &journal, &mut seen);
    one(&pool, &own, &journal, &mut seen);
    facts.assert_again("after the second day");
    let before = memory_mib();
    for day in 2..DAYS {
        one(&pool, &own, &journal, &mut seen);
        facts.assert_again(&format!("after day {day}"));
    }
    let after = memory_mib();
    assert!(after <= before + KEPT_MIB_MAX, "{before} MiB have become {after} MiB");
    assert!(journal.lines() > 0, "nothing was logged");
    for name in ["dm-flush", "dm-compact", "dm-source", "kv-ctl-N", "kv-data-N", "vbc-N-W", "vbd-N-W"] {
        assert!(seen.contains(name), "{name} was not seen: {seen:?}");
    }
    pool.end();
}

/// The threads of a bucket of two workers into which something is ingested, in the order of their names.
const OF_AN_INGEST: [&str; 9] = [
    "dm-compact",
    "dm-flush",
    "dm-source",
    "kv-ctl-0",
    "kv-data-0",
    "vbc-0-0",
    "vbc-0-1",
    "vbd-0-0",
    "vbd-0-1",
];

/// The library's threads.
fn theirs() -> Vec<String> {
    let prefixes = ["dm-", "kv-", "vbc-", "vbd-", "dcp-"];
    threads().into_iter().filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))).collect()
}

fn names(of: &[&str], times: usize) -> Vec<String> {
    of.iter().flat_map(|name| std::iter::repeat_n((*name).to_owned(), times)).collect()
}

pub(crate) fn of_two_instances() {
    let (root, journal, facts) = (TempDir::new().unwrap(), Arc::<Journal>::default(), Facts::now());
    let open = |folder: &str| {
        let data = DataDir::open_or_create(&root.path().join(folder)).unwrap();
        make(&data, "travel", StoreKind::Lsm, &config(&journal))
    };
    let close = |bucket: Bucket| bucket.close(&minutes(1)).unwrap();
    std::thread::scope(|scope| {
        let (first, second) = (open("one"), open("two"));
        eventually("both are open", || theirs() == names(&["dm-compact", "dm-flush"], 2));
        let (feed_first, into_first) = fed();
        let (feed_second, into_second) = fed();
        let first = scope.spawn(move || ingest(&first, into_first).map(|_| first));
        let second = scope.spawn(move || ingest(&second, into_second).map(|_| second));
        eventually("both ingest", || theirs() == names(&OF_AN_INGEST, 2));
        feed_first.send(b"{\"id\":\"a\",\"n\":1}\n".to_vec()).unwrap();
        drop(feed_first);
        let first = first.join().unwrap().unwrap();
        eventually("the first is idle", || {
            let mut wanted = names(&OF_AN_INGEST, 1);
            wanted.extend(names(&["dm-compact", "dm-flush"], 1));
            wanted.sort();
            theirs() == wanted
        });
        assert_eq!(scan(&first), [1]);
        close(first);
        eventually("the second is alone", || theirs() == names(&OF_AN_INGEST, 1));
        feed_second.send(b"{\"id\":\"b\",\"n\":2}\n".to_vec()).unwrap();
        drop(feed_second);
        let second = second.join().unwrap().unwrap();
        assert_eq!(scan(&second), [2]);
        close(second);
    });
    facts.assert_again("after both");
}
