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

use std::hint::black_box;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Bencher, Criterion, Throughput};
use dormouse::event::{Seqno, VbId, VbUuid};
use dormouse::shard::batch::{Advance, Window, WriteBatch};
use dormouse::shard::{InstId, InstanceStart, ShardSet, ShardSetConfig, ShardSpec, StoreKind};
use dormouse::thread::Until;
use dormouse::timestamp::Position;
use rustix::time::{ClockId, clock_gettime};
use slog::{Discard, Logger, o};
use tempfile::TempDir;

const BATCH_DOCUMENTS: u32 = 1000;
const COMMIT_DOCUMENTS: u32 = 50_000;
const DOCUMENTS: u32 = 200_000;
const TEST_DOCUMENTS: u32 = 3000;
const INDEX: InstId = InstId(1);
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// A document's number, and the number that its key is made of; none where it is deleted.
type Write = (u32, Option<u32>);

/// Numbers that look random and come each once.
fn shuffled(n: u32) -> u32 {
    n.wrapping_mul(0x9e37_79b1).rotate_left(13).wrapping_mul(0x85eb_ca6b)
}

fn doc_id(n: u32) -> String {
    format!("doc-{:012x}", shuffled(n))
}

fn key(n: u32) -> String {
    format!("key-{:010x}-{:09}", shuffled(n ^ 0x5555), n % 1_000_000_000)
}

/// What is measured: one shard of ours, or the same on another engine.
trait Engine {
    /// One batch of documents, each once.
    fn write(&mut self, writes: &[Write]);
    /// Everything that was written is durable.
    fn commit(&mut self);
    /// Number of entries from the key of `from` on, at most `limit`.
    fn scan(&self, from: Option<u32>, limit: usize) -> usize;
}

struct Ours {
    set: ShardSet,
    seqno: u64,
    spare: Option<Box<WriteBatch>>,
}

fn config() -> ShardSetConfig {
    // Recovery points are made when they are asked for.
    ShardSetConfig {
        commit_bytes: 1 << 40,
        commit_interval: Duration::from_secs(3600),
        cache_bytes: CACHE_BYTES,
        ..ShardSetConfig::default()
    }
}

impl Ours {
    fn create(kind: StoreKind, folder: &Path) -> Self {
        ShardSet::create(folder, ShardSpec::all(1, 1, kind, 1)).unwrap();
        let ours = Self::open(kind, folder);
        ours.set.shards()[0].create_instance(INDEX, InstanceStart::Zero).unwrap();
        ours
    }

    fn open(kind: StoreKind, folder: &Path) -> Self {
        let logger = Logger::root(Discard, o!());
        let set = ShardSet::open(folder, ShardSpec::all(1, 1, kind, 1), &config(), None, &logger).unwrap();
        let position = set.shards()[0].positions(INDEX).and_then(|ts| ts.get(VbId(0)));
        Self { set, seqno: position.unwrap_or_default().seqno.0, spare: None }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.set.close(&Until::default()).unwrap();
    }
}

impl Engine for Ours {
    fn write(&mut self, writes: &[Write]) {
        let mut batch = self.spare.take().unwrap_or_default();
        batch.instances = [INDEX].into();
        let from = Seqno(self.seqno);
        for (document, key_of) in writes {
            self.seqno += 1;
            let id = batch.add_document(doc_id(*document).as_bytes());
            let key = key_of.map(key);
            batch.add_change(INDEX, (VbId(0), Seqno(self.seqno)), id, key.as_ref().map(String::as_bytes));
        }
        let to = Position::at(VbUuid(1), Seqno(self.seqno));
        batch.advances.push(Advance { vb: VbId(0), from, to, window: Window::Ordered });
        self.spare = Some(self.set.shards()[0].try_apply(batch).unwrap());
    }

    fn commit(&mut self) {
        self.set.commit(&Until::default()).unwrap();
    }

    fn scan(&self, from: Option<u32>, limit: usize) -> usize {
        let low = from.map_or(Bound::Unbounded, |n| Bound::Included(key(n).into_bytes()));
        let snapshot = self.set.shards()[0].snapshot(&Until::default()).unwrap();
        let entries = snapshot.scan(INDEX, &(low, Bound::Unbounded)).take(limit);
        entries.fold(0, |count, entry| {
            black_box(entry.unwrap());
            count + 1
        })
    }
}

struct Fjall {
    database: fjall::Database,
    entries: fjall::Keyspace,
    back: fjall::Keyspace,
    positions: fjall::Keyspace,
    seqno: u64,
}

impl Fjall {
    fn create(folder: &Path) -> Self {
        let database = fjall::Database::builder(folder).cache_size(CACHE_BYTES).open().unwrap();
        let open = |name| database.keyspace(name, fjall::KeyspaceCreateOptions::default).unwrap();
        let (entries, back, positions) = (open("entries"), open("back"), open("positions"));
        Self { database, entries, back, positions, seqno: 0 }
    }
}

impl Engine for Fjall {
    fn write(&mut self, writes: &[Write]) {
        let mut batch = self.database.batch();
        for (document, key_of) in writes {
            self.seqno += 1;
            let id = doc_id(*document);
            let entry = |key: &[u8]| [key, id.as_bytes()].concat();
            let old = self.back.get(&id).unwrap();
            let new = key_of.map(key);
            if let Some(old) = &old {
                batch.remove(&self.entries, entry(old));
            }
            match new {
                Some(new) => {
                    batch.insert(&self.entries, entry(new.as_bytes()), []);
                    batch.insert(&self.back, id.as_bytes(), new.as_bytes());
                }
                None => batch.remove(&self.back, id.as_bytes()),
            }
        }
        batch.insert(&self.positions, 0_u16.to_be_bytes(), self.seqno.to_be_bytes());
        batch.commit().unwrap();
    }

    fn commit(&mut self) {
        self.database.persist(fjall::PersistMode::SyncAll).unwrap();
    }

    fn scan(&self, from: Option<u32>, limit: usize) -> usize {
        let snapshot = self.database.snapshot();
        let low = from.map(key).unwrap_or_default();
        let entries = fjall::Readable::range(&snapshot, &self.entries, low.as_bytes()..).take(limit);
        entries.fold(0, |count, entry| {
            black_box(entry.key().unwrap());
            count + 1
        })
    }
}

const SUBJECTS: [&str; 3] = ["lsm", "memdb", "fjall"];

fn kind(subject: &str) -> Option<StoreKind> {
    serde_json::from_str(&format!("{subject:?}")).ok()
}

/// An empty engine, with the folder that it lies in.
fn fresh(subject: &str) -> (Box<dyn Engine>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let engine: Box<dyn Engine> = match kind(subject) {
        Some(kind) => Box::new(Ours::create(kind, dir.path())),
        None => Box::new(Fjall::create(dir.path())),
    };
    (engine, dir)
}

fn write_all(engine: &mut dyn Engine, writes: impl Iterator<Item = Write>) {
    let mut batch = Vec::with_capacity(BATCH_DOCUMENTS as usize);
    let mut uncommitted = 0;
    for write in writes {
        batch.push(write);
        uncommitted += 1;
        if batch.len() == BATCH_DOCUMENTS as usize {
            engine.write(&batch);
            batch.clear();
        }
        if uncommitted == COMMIT_DOCUMENTS {
            engine.commit();
            uncommitted = 0;
        }
    }
    engine.write(&batch);
    engine.commit();
}

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
        let now = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap())
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
            let mut ours = Ours::create(kind, dir.path());
            write_all(&mut ours, (0..documents).map(|n| (n, Some(n))));
            c.bench_function(&format!("lock_and_unlock/{subject}/{documents}"), |b| {
                b.iter(|| drop(ours.set.shards()[0].lock("bench", &Until::default()).unwrap()));
            });
            drop(ours);
            c.bench_function(&format!("open_and_close/{subject}/{documents}"), |b| {
                b.iter(|| drop(Ours::open(kind, dir.path())));
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
