//! A bucket that follows a node over loopback until everything is durable: what a document costs, and whom.
//!
//! The node is in this process. What its threads cost is taken off; the share of the source is that of the threads
//! that read connections and hand on what they read. Every row comes from a process of its own.
//! `DORMOUSE_BENCH_DOCUMENTS` sets the number of documents.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]
#![expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::time::Instant;

use dormouse::bucket::{BucketConfig, BucketSpec, DataDir, FollowOptions, SourceKind};
use dormouse::index::IndexDefinition;
use dormouse::shard::StoreKind;
use dormouse::source::dcp::{Cluster, Network, NodeAddress};
use dormouse::thread::Until;
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

#[path = "support/node.rs"]
mod node;

use node::{Document, Node};

const VBUCKETS: u16 = 1024;
const STORES: [StoreKind; 3] = [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_test = args.iter().any(|arg| arg == "--test");
    let wanted = std::env::var("DORMOUSE_BENCH_DOCUMENTS");
    let documents: u64 = if is_test { 3000 } else { wanted.map_or(1_000_000, |text| text.parse().unwrap()) };
    if let Some(place) = args.iter().position(|arg| arg == "--child") {
        let kind = STORES.into_iter().find(|kind| kind.to_string() == args[place + 1]).unwrap();
        return child(kind, documents);
    }
    println!(
        "{documents} documents of some 60 bytes with one key, {VBUCKETS} vbuckets, until they are durable"
    );
    for kind in STORES {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--child", &kind.to_string()]).env("DORMOUSE_BENCH_DOCUMENTS", documents.to_string());
        assert!(child.status().unwrap().success(), "{kind}");
    }
}

/// Writes digits from the right.
fn digits(into: &mut [u8], mut number: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap();
        number /= 10;
    }
}

fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// CPU-seconds of the threads that run, those of one kind together.
fn thread_seconds() -> BTreeMap<String, f64> {
    let mut found: BTreeMap<String, f64> = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let file = |name: &str| std::fs::read_to_string(task.as_ref().unwrap().path().join(name));
        // One that has just ended has no files any more.
        let (Ok(name), Ok(times)) = (file("comm"), file("schedstat")) else { continue };
        let name = name.trim_end().trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
        let nanos: u64 = times.split(' ').next().unwrap().parse().unwrap();
        *found.entry(name.to_owned()).or_default() += nanos as f64 / 1e9;
    }
    found
}

fn child(store: StoreKind, documents: u64) {
    let folder = TempDir::new().unwrap();
    let value = br#"{"name":"a document of a bench","n":0000000000}"#.to_vec();
    let number = |key: &mut [u8], value: &mut [u8], number: u64| {
        digits(&mut key[5..], number);
        let len = value.len();
        // Neighbours in a stream are none in the index.
        digits(
            &mut value[len - 11..len - 1],
            1_000_000_000 + number.wrapping_mul(0x9e37_79b9) % 1_000_000_000,
        );
    };
    let node = Node::start(VBUCKETS, Document { key: b"\0key-0000000000", value, number });
    let per_vb = documents.div_ceil(u64::from(VBUCKETS));
    node.allow(per_vb);
    let data = DataDir::open_or_create(folder.path()).unwrap();
    let spec =
        BucketSpec { store, vbuckets: VBUCKETS, source: SourceKind::Couchbase, ..BucketSpec::default() };
    let bucket = data.create_bucket(&"b".parse().unwrap(), spec, &BucketConfig::default()).unwrap();
    bucket.ensure_index(&IndexDefinition::parse("by_n=n").unwrap(), false).unwrap();
    let connection = node.config();
    let seed = NodeAddress { host: "127.0.0.1".to_owned(), port: connection.address.port() };
    let cluster = Cluster { seeds: vec![seed], network: Network::Auto, connection };
    let options = FollowOptions { cluster, connections: 1, once: true, idle_after: None };
    let mut threads = BTreeMap::new();
    let (began, cpu_began) = (Instant::now(), cpu_seconds());
    let report = bucket.follow(&options, &Until::default(), &mut |_| threads = thread_seconds()).unwrap();
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu_began);
    let node_cpu = thread_seconds()["bench-node"];
    assert_eq!(report.documents, per_vb * u64::from(VBUCKETS));
    let (documents, cpu) = (report.documents as f64, cpu - node_cpu);
    let of = |name: &str| threads.get(name).copied().unwrap_or_default();
    let share = 100.0 * (of("dcp-read") + of("dcp-send")) / cpu;
    println!(
        "{store}: {:.0} documents a second, {:.0} a CPU-second; the source has {share:.1} % of {cpu:.2} CPU-seconds",
        documents / wall,
        documents / cpu,
    );
    for (name, seconds) in threads {
        println!("    {name:<16}{seconds:.2}");
    }
    std::io::stdout().flush().unwrap();
    bucket.close(&Until::default()).unwrap();
}
