//! Pausing and waking up against copying the same bytes, and how long shards are locked.
//!
//! A bucket of four shards has one index with keys of 80 bytes that look random. `copy` copies its files to another
//! folder and flushes each file and folder; `pause` archives it in an empty folder, hashing included; `resume`
//! restores it from there into an empty data folder. `locked` is the time that its shards were locked by a pause, in
//! whole milliseconds, while nothing is ingested and while documents come without end.
//!
//! `DORMOUSE_BENCH_MIB` sets the sizes of the buckets, as mebibytes of documents between commas.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dormouse::bucket::{Bucket, BucketConfig, BucketName, BucketSpec, DataDir, IngestOptions};
use dormouse::index::IndexDefinition;
use dormouse::objstore::FileStore;
use dormouse::shard::StoreKind;
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use tempfile::TempDir;

const SIZES_MIB: &str = "16";
const TEST_SIZES_MIB: &str = "1";
/// Bytes of a document's line, roughly.
const LINE_BYTES: u64 = 120;
const STORES: [StoreKind; 3] = [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow];

fn sizes_mib() -> Vec<u64> {
    let is_test = std::env::args().any(|word| word == "--test");
    let default = if is_test { TEST_SIZES_MIB } else { SIZES_MIB };
    let text = std::env::var("DORMOUSE_BENCH_MIB").unwrap_or_else(|_| default.to_owned());
    text.split(',').map(|size| size.trim().parse().unwrap()).collect()
}

fn name() -> BucketName {
    "b".parse().unwrap()
}

/// Lines of the documents `next..end`.
struct Lines {
    next: u64,
    end: u64,
    line: io::Cursor<Vec<u8>>,
}

impl Lines {
    fn new(next: u64, end: u64) -> Self {
        Self { next, end, line: io::Cursor::default() }
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.line.read(buffer)?;
        if read > 0 || self.next == self.end {
            return Ok(read);
        }
        let mut state = self.next;
        let mut key = String::new();
        for _ in 0..5 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            write!(key, "{:016x}", state ^ (state >> 29)).unwrap();
        }
        self.line =
            io::Cursor::new(format!("{{\"id\":\"d{:010}\",\"n\":\"{key}\"}}\n", self.next).into_bytes());
        self.next += 1;
        self.line.read(buffer)
    }
}

struct World {
    dir: TempDir,
    data: DataDir,
    config: BucketConfig,
    documents: u64,
}

impl World {
    fn new(store: StoreKind, size_mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open_or_create(&dir.path().join("data")).unwrap();
        let config = BucketConfig::default();
        let documents = size_mib * 1024 * 1024 / LINE_BYTES;
        let spec = BucketSpec { store, vbuckets: 16, ..BucketSpec::default() };
        let bucket = data.create_bucket(&name(), spec, &config).unwrap();
        bucket.ensure_index(&IndexDefinition::parse("by_n=n").unwrap(), false).unwrap();
        ingest(&bucket, Lines::new(0, documents)).unwrap();
        close(bucket);
        Self { dir, data, config, documents }
    }

    fn open(&self) -> Bucket {
        self.data.open_bucket(&name(), &self.config).unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("data/buckets/b")
    }

    /// An archive that is empty.
    fn archive(&self) -> (TempDir, FileStore) {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        (dir, store)
    }

    /// Pauses into an empty archive, and gives how long it took and how long the shards were locked. The bucket is
    /// awake again afterwards.
    fn pause(&self, ingests: bool) -> (Duration, Duration) {
        let (_archive, store) = self.archive();
        let bucket = self.open();
        let (took, report) = std::thread::scope(|scope| {
            if ingests {
                // The pause ends it.
                scope.spawn(|| ingest(&bucket, Lines::new(self.documents, u64::MAX)).unwrap_err());
                while bucket.status().indexes.iter().all(|index| index.changes <= self.documents) {
                    std::thread::yield_now();
                }
            }
            let began = Instant::now();
            let report = bucket.pause(&store, false, &Until::default(), &mut |_| {}).unwrap();
            (began.elapsed(), report)
        });
        close(bucket);
        self.data.resume(&name(), &store, None, &self.config, &Until::default(), &mut |_| {}).unwrap();
        (took, Duration::from_millis(report.locked_ms))
    }
}

fn ingest(bucket: &Bucket, lines: Lines) -> Result<(), dormouse::bucket::IngestError> {
    let input = Input::Reader { name: "lines".to_owned(), reader: Box::new(lines) };
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: false };
    bucket.ingest(vec![input], &options, &Until::default(), &mut |_| {}).map(drop)
}

fn close(mut bucket: Bucket) {
    bucket.close(&Until::default()).unwrap();
}

/// Copies a folder with what is in it, durably. Gives the bytes.
fn copy(from: &Path, to: &Path) -> u64 {
    fs::create_dir(to).unwrap();
    let mut bytes = 0;
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            bytes += copy(&entry.path(), &to);
        } else {
            bytes += fs::copy(entry.path(), &to).unwrap();
            File::open(&to).unwrap().sync_all().unwrap();
        }
    }
    File::open(to).unwrap().sync_all().unwrap();
    bytes
}

fn throughput(c: &mut Criterion) {
    for size_mib in sizes_mib() {
        for kind in STORES {
            let world = World::new(kind, size_mib);
            // What a merge does meanwhile would be measured in one and not in the other.
            close(world.open());
            let scratch = tempfile::tempdir_in(world.dir.path()).unwrap();
            let bytes = copy(&world.folder(), &scratch.path().join("size"));
            let mut group = c.benchmark_group(format!("bucket/{kind}"));
            group.sample_size(20).throughput(Throughput::Bytes(bytes));
            group.bench_function(BenchmarkId::new("copy", size_mib), |b| {
                b.iter_custom(|rounds| {
                    let round = |_| {
                        let to = tempfile::tempdir_in(world.dir.path()).unwrap();
                        let began = Instant::now();
                        copy(&world.folder(), &to.path().join("copy"));
                        began.elapsed()
                    };
                    (0..rounds).map(round).sum()
                });
            });
            group.bench_function(BenchmarkId::new("pause", size_mib), |b| {
                b.iter_custom(|rounds| (0..rounds).map(|_| world.pause(false).0).sum());
            });
            let (_archive, store) = world.archive();
            let bucket = world.open();
            bucket.pause(&store, false, &Until::default(), &mut |_| {}).unwrap();
            close(bucket);
            group.bench_function(BenchmarkId::new("resume", size_mib), |b| {
                b.iter_custom(|rounds| (0..rounds).map(|_| resume_elsewhere(&world, &store)).sum());
            });
            group.finish();
        }
    }
}

fn resume_elsewhere(world: &World, store: &FileStore) -> Duration {
    let dir = tempfile::tempdir_in(world.dir.path()).unwrap();
    let data = DataDir::open_or_create(dir.path()).unwrap();
    let began = Instant::now();
    data.resume(&name(), store, None, &world.config, &Until::default(), &mut |_| {}).unwrap();
    began.elapsed()
}

fn locked(c: &mut Criterion) {
    for size_mib in sizes_mib() {
        for kind in STORES {
            let world = World::new(kind, size_mib);
            let mut group = c.benchmark_group(format!("locked/{kind}"));
            group.sample_size(20);
            for (what, ingests) in [("idle", false), ("ingest", true)] {
                group.bench_function(BenchmarkId::new(what, size_mib), |b| {
                    // A lock of less than a millisecond counts as one.
                    let round = |_| world.pause(ingests).1.max(Duration::from_millis(1));
                    b.iter_custom(|rounds| (0..rounds).map(round).sum());
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, throughput, locked);
criterion_main!(benches);
