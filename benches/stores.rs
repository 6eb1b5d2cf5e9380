//! The stores of a shard side by side, as tables: what a document costs, what the data takes, what a lock waits for,
//! and what an archive of the shard has in common with the one before.
//!
//! Every figure comes from a process of its own, so that its CPU time and its peak memory are those of one store
//! alone; the stores take turns, and medians are shown. `DORMOUSE_BENCH_DOCUMENTS` sets the number of documents,
//! `DORMOUSE_BENCH_ROUNDS` that of the turns, `DORMOUSE_BENCH_LOCK_MIB` the sizes of the shards that are locked.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]
#![expect(
    clippy::disallowed_methods,
    reason = "nothing tells when the last merge is over but that nothing changes"
)]
#![expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use dormouse::shard::store::PinnedFiles;
use dormouse::thread::Until;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

#[path = "support/engines.rs"]
mod engines;
#[path = "support/folder.rs"]
mod folder;

use engines::{
    BATCH_DOCUMENTS, COMMIT_DOCUMENTS, Engine, KEY_BYTES, Ours, SUBJECTS, Write, cpu_time, kind, write_all,
};
use folder::{folder_bytes, settle};

/// Keys of the shards that are locked: a shard of some size then has few documents.
const WIDE_KEY_BYTES: usize = 240;
/// Recovery points that the changes between two archives are spread over.
const UPDATE_POINTS: usize = 8;
const LOCKS: usize = 20;
const SCANS: u32 = 5;
const RANGES: u32 = 2000;

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What a child process prints: numbers, by the names of its table's columns.
type Figures = Vec<(&'static str, f64)>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_test = args.iter().any(|arg| arg == "--test");
    let documents = if is_test { 3000 } else { setting("DORMOUSE_BENCH_DOCUMENTS", 1_000_000) };
    if let Some(place) = args.iter().position(|arg| arg == "--child") {
        let figures = child(&args[place + 1], &args[place + 2], args[place + 3].parse().unwrap());
        for (name, value) in figures {
            println!("{name}={value}");
        }
        return;
    }
    let rounds = if is_test { 1 } else { setting("DORMOUSE_BENCH_ROUNDS", 5) };
    println!("{documents} documents with one key of {KEY_BYTES} bytes, {rounds} rounds, medians");
    table(&SUBJECTS, rounds, "costs", documents);
    let ours = SUBJECTS.into_iter().filter(|subject| kind(subject).is_some()).collect::<Vec<_>>();
    println!(
        "\nbytes of a recovery point that are in files of the one before, after 5 % of the documents changed"
    );
    table(&ours, 1, "shares", documents);
    let sizes = if is_test {
        vec![1]
    } else {
        let text = std::env::var("DORMOUSE_BENCH_LOCK_MIB").unwrap_or_else(|_| "64 256 1024".to_owned());
        text.split(' ').map(|size| size.parse().unwrap()).collect()
    };
    for mib in sizes {
        println!("\nlock and unlock of an idle shard of about {mib} MiB");
        table(&ours, 1, "locks", mib);
    }
}

fn child(work: &str, subject: &str, number: u32) -> Figures {
    match work {
        "costs" => costs(subject, number),
        "shares" => shares(subject, number),
        _ => locks(subject, number),
    }
}

/// Runs `work` for each subject in turns and prints the medians, a row each.
fn table(subjects: &[&str], rounds: u32, work: &str, number: u32) {
    let mut found: Vec<Vec<Vec<(String, f64)>>> = vec![Vec::new(); subjects.len()];
    for _ in 0..rounds {
        for (subject, found) in subjects.iter().zip(&mut found) {
            found.push(run(work, subject, number));
        }
    }
    let names = found[0][0].iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    println!("| store | {} |\n|---|{}", names.join(" | "), "--:|".repeat(names.len()));
    for (subject, found) in subjects.iter().zip(&found) {
        let cells = (0..names.len()).map(|column| {
            let mut values: Vec<f64> = found.iter().map(|row| row[column].1).collect();
            values.sort_by(f64::total_cmp);
            format!("{:.3}", values[values.len() / 2])
        });
        println!("| {subject} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

fn run(work: &str, subject: &str, number: u32) -> Vec<(String, f64)> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let out = child.args(["--child", work, subject, &number.to_string()]).output().unwrap();
    assert!(out.status.success(), "{work} of {subject}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let figures = text.lines().filter_map(|line| line.split_once('='));
    figures.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// Thousands of a second of CPU time.
fn per_cpu_second(count: u32, work: impl FnOnce()) -> f64 {
    let began = cpu_time();
    work();
    f64::from(count) / cpu_time().saturating_sub(began).as_secs_f64() / 1000.0
}

fn mib(bytes: u64) -> f64 {
    Duration::from_micros(bytes).as_secs_f64() * 1e6 / 1024.0 / 1024.0
}

fn peak_memory_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    mib(line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024)
}

/// Every `step`th document with another key.
fn updates(documents: u32, step: u32) -> impl Iterator<Item = Write> {
    (0..documents / step).map(move |n| (n * step, Some(documents + n)))
}

fn costs(subject: &str, documents: u32) -> Figures {
    let tenth = documents / 10;
    let (mut engine, dir): (Box<dyn Engine>, TempDir) = engines::fresh(subject);
    let load = per_cpu_second(documents, || {
        write_all(engine.as_mut(), (0..documents).map(|n| (n, Some(n))));
    });
    let update = per_cpu_second(tenth, || write_all(engine.as_mut(), updates(documents, 10)));
    let delete = per_cpu_second(tenth, || {
        write_all(engine.as_mut(), (0..tenth).map(|n| (n * 10 + 1, None)));
    });
    let left = documents - tenth;
    let scan = per_cpu_second(left * SCANS, || {
        (0..SCANS).for_each(|_| assert_eq!(engine.scan(None, usize::MAX), left as usize));
    });
    let ranges = per_cpu_second(RANGES * 100, || {
        (0..RANGES).for_each(|n| {
            engine.scan(Some(n.wrapping_mul(7919) % documents), 100);
        });
    });
    settle(dir.path());
    vec![
        ("load k/CPU-s", load),
        ("update k/CPU-s", update),
        ("delete k/CPU-s", delete),
        ("scan k/CPU-s", scan),
        ("ranges of 100, k/CPU-s", ranges),
        ("disk MiB", mib(folder_bytes(dir.path()))),
        ("peak memory MiB", peak_memory_mib()),
    ]
}

/// Names and contents of files, with their lengths.
fn contents(pinned: &PinnedFiles) -> BTreeSet<(String, u128, u64)> {
    let one = |file: &dormouse::shard::store::ShardFile| {
        (file.name.clone(), xxh3_128(&fs::read(&file.path).unwrap()), file.length_bytes)
    };
    pinned.files().iter().map(one).collect()
}

fn shares(subject: &str, documents: u32) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let mut ours = Ours::create(kind(subject).unwrap(), dir.path(), KEY_BYTES);
    write_all(&mut ours, (0..documents).map(|n| (n, Some(n))));
    settle(dir.path());
    let until = Until::default();
    let shard = ours.set.shards()[0].clone();
    let first = contents(&shard.pin(&until).unwrap());
    let common = |now: &BTreeSet<(String, u128, u64)>| {
        let bytes =
            |files: &mut dyn Iterator<Item = &(String, u128, u64)>| mib(files.map(|file| file.2).sum());
        bytes(&mut now.intersection(&first)) / bytes(&mut now.iter())
    };
    let merge_hold = shard.hold_merges(&until).unwrap();
    let writes: Vec<Write> = updates(documents, 20).collect();
    // So many recovery points that merges are due.
    for some in writes.chunks(writes.len().div_ceil(UPDATE_POINTS)) {
        write_all(&mut ours, some.iter().copied());
    }
    let under_hold = common(&contents(&shard.pin(&until).unwrap()));
    drop(merge_hold);
    ours.commit();
    settle(dir.path());
    let settled = common(&contents(&shard.pin(&until).unwrap()));
    let bytes = first.iter().map(|file| file.2).sum();
    vec![
        ("merges held", under_hold),
        ("settled", settled),
        ("first MiB", mib(bytes)),
        ("files", first.len() as f64),
    ]
}

fn locks(subject: &str, size_mib: u32) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let mut ours = Ours::create(kind(subject).unwrap(), dir.path(), WIDE_KEY_BYTES);
    let mut documents = 0;
    while mib(folder_bytes(dir.path())) < f64::from(size_mib) {
        let more = COMMIT_DOCUMENTS.min(size_mib * 400).max(BATCH_DOCUMENTS);
        write_all(&mut ours, (documents..documents + more).map(|n| (n, Some(n))));
        documents += more;
    }
    settle(dir.path());
    let until = Until::default();
    let mut waits: Vec<f64> = (0..LOCKS)
        .map(|_| {
            let began = Instant::now();
            drop(ours.set.shards()[0].lock("bench", &until).unwrap());
            began.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    waits.sort_by(f64::total_cmp);
    let began = Instant::now();
    drop(ours);
    let closed = began.elapsed();
    let began = Instant::now();
    let ours = Ours::open(kind(subject).unwrap(), dir.path(), WIDE_KEY_BYTES);
    let opened = began.elapsed();
    drop(ours);
    vec![
        ("median ms", waits[LOCKS / 2]),
        ("longest ms", waits[LOCKS - 1]),
        ("close ms", closed.as_secs_f64() * 1000.0),
        ("open ms", opened.as_secs_f64() * 1000.0),
        ("disk MiB", mib(folder_bytes(dir.path()))),
    ]
}
