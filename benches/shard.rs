//! The stores of a shard: what a document costs, and what a reader and a lock wait for.
//!
//! A document has one key of 24 bytes in one index and an id of 16 bytes. Batches have 1,000 documents, and a
//! recovery point is made every 50,000. Each document's old key is looked up in the back index, removed, and the
//! new one put in its place. `fjall` does the same work beside ours, on the crate of that name, with its journal
//! flushed to the disk at the same points.
//!
//! Groups that end in `cpu` measure the CPU time of the whole process, with the threads that flush and merge:
//! their `elem/s` are documents or entries per CPU-second. The others measure the time that passes.
//! `DORMOUSE_BENCH_DOCUMENTS` sets the number of documents.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Bencher, Criterion, Throughput};
use dormouse::thread::Until;
use tempfile::TempDir;

#[path = "support/engines.rs"]
mod engines;

use engines::{BATCH_DOCUMENTS, Engine, KEY_BYTES, Ours, SUBJECTS, Write, cpu_time, fresh, kind, write_all};

const DOCUMENTS: u32 = 200_000;
const TEST_DOCUMENTS: u32 = 3000;

/// An engine that has `documents`.
fn loaded(subject: &str, documents: u32) -> (Box<dyn Engine>, TempDir) {
    let (mut engine, dir) = fresh(subject);
    write_all(engine.as_mut(), (0..documents).map(|n| (n, Some(n))));
    (engine, dir)
}

/// The CPU time of the process, all threads together.
struct CpuTime(WallTime);

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        self.0.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self.0.formatter()
    }
}

fn writes(c: &mut Criterion<CpuTime>, documents: u32) {
    let share = documents / 10;
    let mut group = c.benchmark_group("load_cpu");
    group.throughput(Throughput::Elements(documents.into()));
    for subject in SUBJECTS {
        group.bench_function(subject, |b| {
            b.iter_batched(
                || fresh(subject),
                |(mut engine, dir)| {
                    write_all(engine.as_mut(), (0..documents).map(|n| (n, Some(n))));
                    (engine, dir)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    let mut group = c.benchmark_group("update_cpu");
    group.throughput(Throughput::Elements(share.into()));
    for subject in SUBJECTS {
        let (mut engine, _dir) = loaded(subject, documents);
        let mut round = 0;
        group.bench_function(subject, |b| {
            b.iter(|| {
                round += 1;
                // Every tenth document, another tenth each time, with a key that it never had.
                let of = |n| (n * 10 + round % 10, Some(n * 10 + documents * round));
                write_all(engine.as_mut(), (0..share).map(of));
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("delete_cpu");
    group.throughput(Throughput::Elements(share.into()));
    for subject in SUBJECTS {
        let (engine, _dir) = loaded(subject, documents);
        let engine = std::cell::RefCell::new(engine);
        group.bench_function(subject, |b| {
            b.iter_batched(
                || write_all(engine.borrow_mut().as_mut(), (0..share).map(|n| (n * 10, Some(n * 10)))),
                |()| write_all(engine.borrow_mut().as_mut(), (0..share).map(|n| (n * 10, None))),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn reads(c: &mut Criterion<CpuTime>, documents: u32) {
    let mut scans = |name: &str, entries: u32, run: &dyn Fn(&mut Bencher<'_, CpuTime>, &dyn Engine)| {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(entries.into()));
        for subject in SUBJECTS {
            let (engine, _dir) = loaded(subject, documents);
            group.bench_function(subject, |b| run(b, engine.as_ref()));
        }
        group.finish();
    };
    scans("scan_cpu", documents, &|b, engine| {
        b.iter(|| assert_eq!(engine.scan(None, usize::MAX), documents as usize));
    });
    scans("range_of_100_cpu", 100, &|b, engine| {
        let mut n = 0;
        b.iter(|| {
            n = (n + 7919) % documents;
            engine.scan(Some(n), 100)
        });
    });
}

fn waits(c: &mut Criterion, documents: u32) {
    let kinds = || SUBJECTS.into_iter().filter_map(|subject| Some((subject, kind(subject)?)));
    for (subject, _) in kinds() {
        let (mut engine, _dir) = loaded(subject, documents);
        let mut n = 0;
        c.bench_function(&format!("commit_of_one_batch/{subject}"), |b| {
            b.iter(|| {
                let from = n * BATCH_DOCUMENTS % (documents - BATCH_DOCUMENTS);
                n += 1;
                let writes: Vec<Write> =
                    (0..BATCH_DOCUMENTS).map(|i| (from + i, Some(documents * n + i))).collect();
                engine.write(&writes);
                engine.commit();
            });
        });
    }
    for (subject, kind) in kinds() {
        for documents in [documents / 10, documents] {
            let dir = tempfile::tempdir().unwrap();
            let mut ours = Ours::create(kind, dir.path(), KEY_BYTES);
            write_all(&mut ours, (0..documents).map(|n| (n, Some(n))));
            c.bench_function(&format!("lock_and_unlock/{subject}/{documents}"), |b| {
                b.iter(|| drop(ours.set.shards()[0].lock("bench", &Until::default()).unwrap()));
            });
            drop(ours);
            c.bench_function(&format!("open_and_close/{subject}/{documents}"), |b| {
                b.iter(|| drop(Ours::open(kind, dir.path(), KEY_BYTES)));
            });
        }
    }
}

fn main() {
    let is_test = std::env::args().any(|arg| arg == "--test");
    let asked = std::env::var("DORMOUSE_BENCH_DOCUMENTS").ok().map(|text| text.parse().unwrap());
    let documents = if is_test { TEST_DOCUMENTS } else { asked.unwrap_or(DOCUMENTS) };
    let slow = || Criterion::default().sample_size(10);
    let mut cpu = slow().with_measurement(CpuTime(WallTime)).configure_from_args();
    writes(&mut cpu, documents);
    reads(&mut cpu, documents);
    cpu.final_summary();
    let mut wall = slow().configure_from_args();
    waits(&mut wall, documents);
    wall.final_summary();
}
