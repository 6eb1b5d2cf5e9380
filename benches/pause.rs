//! Pausing and waking up against copying the same bytes, and how long shards are locked.
//!
//! A bucket of four shards has one index with keys of 80 bytes that look random. All figures are medians.
//!
//! * `times`: `copy` copies its files to another folder and flushes each file and folder; `pause` archives it in an
//!   empty folder, hashing included; `resume` restores it from there into an empty data folder. The same, compressed.
//! * `locked`: how long its shards were locked by a pause, in whole milliseconds, while nothing is ingested and while
//!   documents come without end; the longest of all rounds in brackets.
//! * `second`: what a pause uploads after an earlier one and a change of every hundredth document, of all bytes: while
//!   merges are held, and when those that were due are over.
//!
//! `DORMOUSE_BENCH_MIB` sets the sizes of the buckets, as mebibytes of documents between commas,
//! `DORMOUSE_BENCH_STORES` the stores, `DORMOUSE_BENCH_PARTS` which of the above, and `DORMOUSE_BENCH_ROUNDS` how often.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]
#![expect(
    clippy::disallowed_methods,
    reason = "nothing tells when the last merge is over but that nothing changes"
)]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse::bucket::{
    Bucket, BucketConfig, BucketName, BucketSpec, DataDir, IngestOptions, PauseOptions, PauseReport,
    ResumeOptions,
};
use dormouse::index::IndexDefinition;
use dormouse::objstore::FileStore;
use dormouse::shard::StoreKind;
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use tempfile::TempDir;

/// Every so many documents are changed before a second pause.
const CHANGED_OF: u64 = 100;
/// Recovery points that the changes come in.
const CHANGE_POINTS: u64 = 10;
/// Bytes of a document's line, roughly.
const LINE_BYTES: u64 = 120;
const STORES: [StoreKind; 3] = [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow];

/// What the environment says, in one way or the other.
struct Settings {
    sizes_mib: Vec<u64>,
    stores: Vec<StoreKind>,
    parts: String,
    rounds: Option<usize>,
}

impl Settings {
    fn read() -> Self {
        let is_test = std::env::args().any(|word| word == "--test");
        let setting = |name: &str| std::env::var(format!("DORMOUSE_BENCH_{name}")).ok();
        let default = if is_test { "1" } else { "16" };
        let sizes = setting("MIB").unwrap_or_else(|| default.to_owned());
        let stores = setting("STORES").unwrap_or_else(|| "lsm,memdb,cow".to_owned());
        Self {
            sizes_mib: sizes.split(',').map(|size| size.trim().parse().unwrap()).collect(),
            stores: STORES.into_iter().filter(|store| stores.contains(&store.to_string())).collect(),
            parts: setting("PARTS").unwrap_or_else(|| "times,locked,second".to_owned()),
            rounds: setting("ROUNDS").map(|text| text.parse().unwrap()).or_else(|| is_test.then_some(1)),
        }
    }

    fn rounds(&self, size_mib: u64) -> usize {
        self.rounds.unwrap_or(if size_mib < 1024 { 20 } else { 5 })
    }
}

fn name() -> BucketName {
    "b".parse().unwrap()
}

/// Lines of documents, whose keys depend on their numbers and `version`.
struct Lines {
    numbers: std::iter::StepBy<std::ops::Range<u64>>,
    version: u64,
    line: io::Cursor<Vec<u8>>,
}

impl Lines {
    fn new(numbers: std::ops::Range<u64>, step: u64, version: u64) -> Self {
        let numbers = numbers.step_by(usize::try_from(step).unwrap());
        Self { numbers, version, line: io::Cursor::default() }
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.line.read(buffer)?;
        if read > 0 {
            return Ok(read);
        }
        let Some(number) = self.numbers.next() else { return Ok(0) };
        let mut state = number ^ (self.version << 40);
        let mut key = String::new();
        for _ in 0..5 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            write!(key, "{:016x}", state ^ (state >> 29)).unwrap();
        }
        self.line = io::Cursor::new(format!("{{\"id\":\"d{number:010}\",\"n\":\"{key}\"}}\n").into_bytes());
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
        ingest(&bucket, Lines::new(0..documents, 1, 0)).unwrap();
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

    /// Pauses into an empty archive, and gives how long that took and what was told. The bucket is awake again
    /// afterwards.
    fn pause(&self, options: PauseOptions, ingests: bool) -> (Duration, PauseReport) {
        let (_archive, store) = self.archive();
        let bucket = self.open();
        let paused = std::thread::scope(|scope| {
            if ingests {
                // The pause ends it.
                scope.spawn(|| ingest(&bucket, Lines::new(self.documents..u64::MAX, 1, 0)).unwrap_err());
                while bucket.status().indexes.iter().all(|index| index.changes <= self.documents) {
                    std::thread::yield_now();
                }
            }
            let began = Instant::now();
            let report = bucket.pause(&store, options, &Until::default(), &mut |_| {}).unwrap();
            (began.elapsed(), report)
        });
        close(bucket);
        self.wake(&store);
        paused
    }

    fn wake(&self, store: &FileStore) {
        self.data
            .resume(&name(), store, ResumeOptions::default(), &self.config, &Until::default(), &mut |_| {})
            .unwrap();
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

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Restores the bucket of the archive into an empty data folder.
fn resume_elsewhere(world: &World, store: &FileStore) -> Duration {
    let dir = tempfile::tempdir_in(world.dir.path()).unwrap();
    let data = DataDir::open_or_create(dir.path()).unwrap();
    let began = Instant::now();
    data.resume(&name(), store, ResumeOptions::default(), &world.config, &Until::default(), &mut |_| {})
        .unwrap();
    began.elapsed()
}

const PLAIN: PauseOptions = PauseOptions { evict: false, compress: false };
const COMPRESSED: PauseOptions = PauseOptions { evict: false, compress: true };

/// In turns, so that what the machine does besides befalls all of them.
fn times(world: &World, rounds: usize, what: &str) {
    let mut found = vec![Vec::new(); 5];
    let mut archives = Vec::new();
    for options in [PLAIN, COMPRESSED] {
        let (dir, store) = world.archive();
        let bucket = world.open();
        let report = bucket.pause(&store, options, &Until::default(), &mut |_| {}).unwrap();
        close(bucket);
        world.wake(&store);
        archives.push((dir, store, report));
    }
    for _ in 0..rounds {
        let to = tempfile::tempdir_in(world.dir.path()).unwrap();
        let began = Instant::now();
        copy(&world.folder(), &to.path().join("copy"));
        found[0].push(ms(began.elapsed()));
        drop(to);
        for (at, options) in [(1, PLAIN), (3, COMPRESSED)] {
            found[at].push(ms(world.pause(options, false).0));
        }
        for (at, (_, store, _)) in [2, 4].into_iter().zip(&archives) {
            found[at].push(ms(resume_elsewhere(world, store)));
        }
    }
    let [copy, pause, resume, compressed, decompressed] = [0, 1, 2, 3, 4].map(|at| median(found[at].clone()));
    let (bytes, stored) = (archives[0].2.uploaded_bytes, archives[1].2.uploaded_bytes);
    let (share, smaller) = (copy / pause * 100.0, percent(stored, bytes));
    println!(
        "{what} times: {bytes} bytes, copy {copy:.0} ms, pause {pause:.0} ms ({share:.0} % of the copy's rate), resume \
         {resume:.0} ms; compressed to {smaller:.0} %: pause {compressed:.0} ms, resume {decompressed:.0} ms"
    );
}

fn locked(world: &World, rounds: usize, what: &str) {
    let mut told = Vec::new();
    for ingests in [false, true] {
        let round = |_| f64::from(u32::try_from(world.pause(PLAIN, ingests).1.locked_ms).unwrap());
        let found: Vec<f64> = (0..rounds).map(round).collect();
        let longest = found.iter().copied().fold(0.0, f64::max);
        told.push(format!("{:.0} ms ({longest:.0})", median(found)));
    }
    println!("{what} locked: idle {}, under ingest {}", told[0], told[1]);
}

fn percent(part: u64, whole: u64) -> f64 {
    let float = |bytes: u64| f64::from(u32::try_from(bytes / 1024).unwrap());
    float(part) / float(whole) * 100.0
}

/// What is uploaded after every hundredth document got another key, of all bytes.
fn after_changes(world: &World, version: u64, holds_merges: bool) -> f64 {
    let (_archive, store) = world.archive();
    let (bucket, until) = (world.open(), Until::default());
    settle(&world.folder());
    bucket.pause(&store, PLAIN, &until, &mut |_| {}).unwrap();
    close(bucket);
    world.wake(&store);
    let bucket = world.open();
    let holds: Vec<_> = bucket
        .shards()
        .iter()
        .filter(|_| holds_merges)
        .map(|shard| shard.hold_merges(&until).unwrap())
        .collect();
    for point in 0..CHANGE_POINTS {
        let documents = point * CHANGED_OF..world.documents;
        ingest(&bucket, Lines::new(documents, CHANGED_OF * CHANGE_POINTS, version)).unwrap();
    }
    if !holds_merges {
        settle(&world.folder());
    }
    let report = bucket.pause(&store, PLAIN, &until, &mut |_| {}).unwrap();
    drop(holds);
    close(bucket);
    world.wake(&store);
    percent(report.uploaded_bytes, report.bytes)
}

/// Waits until no merge changes the files any more.
fn settle(folder: &Path) {
    let quiet = Duration::from_millis(1500);
    let mut last = (Instant::now(), folder_bytes(folder));
    while last.0.elapsed() < quiet {
        std::thread::sleep(Duration::from_millis(50));
        let bytes = folder_bytes(folder);
        if bytes != last.1 {
            last = (Instant::now(), bytes);
        }
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let bytes = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        // A merge may remove it meanwhile.
        let meta = fs::metadata(&path).ok()?;
        Some(if meta.is_dir() { folder_bytes(&path) } else { meta.len() })
    };
    fs::read_dir(folder).map_or(0, |entries| entries.filter_map(bytes).sum())
}

fn main() {
    let settings = Settings::read();
    for size_mib in &settings.sizes_mib {
        for kind in &settings.stores {
            let (world, rounds) = (World::new(*kind, *size_mib), settings.rounds(*size_mib));
            // What a merge does meanwhile would be measured in one and not in the other.
            close(world.open());
            let what = format!("{kind}, {size_mib} MiB of documents, {rounds} rounds:");
            if settings.parts.contains("times") {
                times(&world, rounds, &what);
            }
            if settings.parts.contains("second") {
                let (held, merged) = (after_changes(&world, 1, true), after_changes(&world, 2, false));
                println!("{what} second: {held:.1} % while merges are held, {merged:.1} % after merges");
            }
            if settings.parts.contains("locked") {
                locked(&world, rounds, &what);
            }
        }
    }
}
