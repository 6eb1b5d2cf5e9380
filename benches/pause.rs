//! Pausing and waking up against copying the same bytes, and how long shards are locked.
//!
//! A bucket has one index with keys of 80 bytes that look random. All figures are medians.
//!
//! * `times`: `copy` copies the files that a pause archives to another folder and flushes each file and folder; `pause`
//!   archives them in an empty archive, hashing included; `resume` restores them from there into an empty data folder.
//!   The same, compressed. With it the most memory that the process had during a pause, and how much of that it had
//!   before.
//! * `locked`: how long its shards were locked by a pause, in whole milliseconds, while nothing is ingested and while
//!   documents come without end; the longest of all rounds in brackets.
//! * `second`: what a pause uploads after an earlier one and a change of every hundredth document, of all bytes: while
//!   merges are held, when those that were due are over, and when everything was merged (which is what `memdb` does
//!   when an index was dropped; the merges that are due after so many recovery points are all of `lsm`, and `cow` has
//!   none).
//!
//! `DORMOUSE_BENCH_MIB` sets the sizes, as mebibytes of documents of *one shard* between commas, such as `64,256,1024`;
//! `DORMOUSE_BENCH_SHARDS` how many shards a bucket has (1), `DORMOUSE_BENCH_STORES` the stores, `DORMOUSE_BENCH_PARTS`
//! which of the above, and `DORMOUSE_BENCH_ROUNDS` how often (20): one number for each of the sizes, such as `20,20,5`,
//! the last of them for all others. The archive is a folder, or on the server that the variables of
//! `benches/support/archive.rs` name; `DORMOUSE_BENCH_DIR` is where all folders are.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]
#![expect(
    clippy::disallowed_methods,
    reason = "nothing tells when the last merge is over but that nothing changes"
)]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse::bucket::{
    Bucket, BucketConfig, BucketName, BucketSpec, DataDir, IngestOptions, IntakeError, PauseOptions,
    PauseReport, ResumeOptions,
};
use dormouse::index::IndexDefinition;
use dormouse::objstore::{FileStore, ObjectKey, ObjectStore};
use dormouse::shard::StoreKind;
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use tempfile::TempDir;

use archive::{open, setting};
use folder::{folder_bytes, settle};

#[path = "support/archive.rs"]
mod archive;
#[path = "support/folder.rs"]
mod folder;

/// Every so many documents are changed before a second pause.
const CHANGED_OF: u64 = 100;
/// Recovery points that the changes come in.
const CHANGE_POINTS: u64 = 10;
/// Bytes of a document's line, roughly.
const LINE_BYTES: u64 = 120;
const STORES: [StoreKind; 3] = [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow];

/// What the environment says, in one way or the other.
struct Settings {
    /// Of one shard.
    sizes_mib: Vec<u64>,
    shards: u16,
    stores: Vec<StoreKind>,
    parts: String,
    /// For each of the sizes; the last one for all others.
    rounds: Vec<usize>,
}

impl Settings {
    fn read() -> Self {
        let is_test = std::env::args().any(|word| word == "--test");
        let setting = |name: &str| setting(&format!("DORMOUSE_BENCH_{name}"));
        let default = if is_test { "1" } else { "16" };
        let sizes = setting("MIB").unwrap_or_else(|| default.to_owned());
        let stores = setting("STORES").unwrap_or_else(|| "lsm,memdb,cow".to_owned());
        let rounds = setting("ROUNDS").unwrap_or_else(|| if is_test { "1" } else { "20" }.to_owned());
        Self {
            sizes_mib: sizes.split(',').map(|size| size.trim().parse().unwrap()).collect(),
            shards: setting("SHARDS").map_or(1, |text| text.parse().unwrap()),
            stores: STORES.into_iter().filter(|store| stores.contains(&store.to_string())).collect(),
            parts: setting("PARTS").unwrap_or_else(|| "times,locked,second".to_owned()),
            rounds: rounds.split(',').map(|rounds| rounds.trim().parse().unwrap()).collect(),
        }
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

/// An archive that is empty at first, and goes when this does.
struct Archive {
    store: Box<dyn ObjectStore>,
    _folder: TempDir,
}

impl Drop for Archive {
    fn drop(&mut self) {
        let until = Until::default();
        let left = self.store.list(None, &until).unwrap();
        let keys: Vec<ObjectKey> = left.into_iter().map(|object| object.key).collect();
        self.store.delete(&keys, &until).unwrap();
    }
}

/// A folder where the environment wants it.
fn temporary() -> TempDir {
    setting("DORMOUSE_BENCH_DIR").map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap()
}

impl World {
    fn new(store: StoreKind, shards: u16, size_mib: u64) -> Self {
        let dir = temporary();
        let data = DataDir::open_or_create(&dir.path().join("data")).unwrap();
        let config = BucketConfig::default();
        let documents = u64::from(shards) * size_mib * 1024 * 1024 / LINE_BYTES;
        let spec = BucketSpec { store, shards, vbuckets: 16, ..BucketSpec::default() };
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

    fn archive(&self) -> Archive {
        let folder = tempfile::tempdir_in(self.dir.path()).unwrap();
        let unique = folder.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let prefix = ObjectKey::new(format!("bench/pause-{}-{unique}", std::process::id())).unwrap();
        Archive { store: open(folder.path(), Some(prefix)), _folder: folder }
    }

    /// Pauses into an empty archive, and gives how long that took and what was told. The bucket is awake again
    /// afterwards.
    fn pause(&self, options: PauseOptions, ingests: bool) -> (Duration, PauseReport) {
        let archive = self.archive();
        let bucket = self.open();
        let paused = std::thread::scope(|scope| {
            if ingests {
                // The pause ends it.
                scope.spawn(|| ingest(&bucket, Lines::new(self.documents..u64::MAX, 1, 0)).unwrap_err());
                while bucket.status().indexes.iter().all(|index| index.changes <= self.documents) {
                    std::thread::yield_now();
                }
            }
            let began = self.begin();
            let report = pause(&bucket, archive.store.as_ref(), options);
            (began.elapsed(), report)
        });
        close(bucket);
        self.wake(archive.store.as_ref());
        paused
    }

    /// Begins to measure where nothing of what was before is paid for: memory that was free for a while a virtual
    /// machine has to fetch from its host again, which takes whoever writes next several times as long as the copy, and
    /// what was removed the disk is told with the next flush.
    fn begin(&self) -> Instant {
        let path = self.dir.path().join("room");
        let mut room = File::create(&path).unwrap();
        let piece = vec![0; 1 << 20];
        for _ in 0..folder_bytes(&self.folder()) >> 20 {
            room.write_all(&piece).unwrap();
        }
        fs::remove_file(path).unwrap();
        drop(room);
        rustix::fs::syncfs(File::open(self.dir.path()).unwrap()).unwrap();
        Instant::now()
    }

    fn wake(&self, store: &dyn ObjectStore) {
        self.data
            .resume(&name(), store, ResumeOptions::default(), &self.config, &Until::default(), &mut |_| {})
            .unwrap();
    }
}

fn ingest(bucket: &Bucket, lines: Lines) -> Result<(), IntakeError> {
    ingest_with(bucket, lines, false)
}

fn ingest_with(bucket: &Bucket, lines: Lines, rebuild: bool) -> Result<(), IntakeError> {
    let input = Input::Reader { name: "lines".to_owned(), reader: Box::new(lines) };
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild };
    bucket.ingest(vec![input], &options, &Until::default(), &mut |_| {}).map(drop)
}

fn close(bucket: Bucket) {
    bucket.close(&Until::default()).unwrap();
    drop(bucket);
}

fn pause(bucket: &Bucket, store: &dyn ObjectStore, options: PauseOptions) -> PauseReport {
    bucket.pause(store, options, &Until::default(), &mut |_| {}).unwrap()
}

/// What a pause archives, as files: each object once, as it is.
struct Sources {
    paths: Vec<PathBuf>,
    _folder: TempDir,
}

impl Sources {
    fn of(world: &World) -> Self {
        let folder = tempfile::tempdir_in(world.dir.path()).unwrap();
        let store = FileStore::open(folder.path()).unwrap();
        let bucket = world.open();
        let report = pause(&bucket, &store, PLAIN);
        close(bucket);
        world.wake(&store);
        let listed = store.list(None, &Until::default()).unwrap();
        let objects = listed.iter().filter(|object| object.key.as_str().contains("/objects/"));
        let paths: Vec<PathBuf> = objects.map(|object| folder.path().join(object.key.as_str())).collect();
        let bytes: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(bytes, report.uploaded_bytes);
        Self { paths, _folder: folder }
    }

    /// Copies all files into a new folder, durably.
    fn copy(&self, to: &Path) {
        fs::create_dir(to).unwrap();
        for path in &self.paths {
            let copy = to.join(path.file_name().unwrap());
            fs::copy(path, &copy).unwrap();
            File::open(&copy).unwrap().sync_all().unwrap();
        }
        File::open(to).unwrap().sync_all().unwrap();
        File::open(to.parent().unwrap()).unwrap().sync_all().unwrap();
    }
}

/// Mebibytes of memory that this process has now, and had at most since that was forgotten.
fn memory_mib() -> (f64, f64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let told = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    };
    (told("VmRSS:"), told("VmHWM:"))
}

fn forget_peak_of_memory() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Restores the bucket of the archive into an empty data folder.
fn resume_elsewhere(world: &World, store: &dyn ObjectStore) -> Duration {
    let dir = tempfile::tempdir_in(world.dir.path()).unwrap();
    let data = DataDir::open_or_create(dir.path()).unwrap();
    let began = world.begin();
    data.resume(&name(), store, ResumeOptions::default(), &world.config, &Until::default(), &mut |_| {})
        .unwrap();
    began.elapsed()
}

const PLAIN: PauseOptions = PauseOptions { evict: false, compress: false };
const COMPRESSED: PauseOptions = PauseOptions { evict: false, compress: true };

/// In turns, so that what the machine does besides befalls all of them.
fn times(world: &World, rounds: usize, what: &str) {
    let mut found = vec![Vec::new(); 5];
    let sources = Sources::of(world);
    let mut archives = Vec::new();
    for options in [PLAIN, COMPRESSED] {
        let archive = world.archive();
        let bucket = world.open();
        forget_peak_of_memory();
        let (before, _) = memory_mib();
        let report = pause(&bucket, archive.store.as_ref(), options);
        let (_, peak) = memory_mib();
        close(bucket);
        world.wake(archive.store.as_ref());
        archives.push((archive, report, format!("{peak:.0} MiB ({before:.0} before)")));
    }
    for _ in 0..rounds {
        let to = tempfile::tempdir_in(world.dir.path()).unwrap();
        let began = world.begin();
        sources.copy(&to.path().join("copy"));
        found[0].push(ms(began.elapsed()));
        drop(to);
        for (at, options) in [(1, PLAIN), (3, COMPRESSED)] {
            found[at].push(ms(world.pause(options, false).0));
        }
        for (at, (archive, ..)) in [2, 4].into_iter().zip(&archives) {
            found[at].push(ms(resume_elsewhere(world, archive.store.as_ref())));
        }
    }
    let [copy, pause, resume, compressed, decompressed] = [0, 1, 2, 3, 4].map(|at| median(found[at].clone()));
    let (bytes, stored) = (archives[0].1.uploaded_bytes, archives[1].1.uploaded_bytes);
    let (share, smaller) = (copy / pause * 100.0, percent(stored, bytes));
    println!(
        "{what} times: {bytes} bytes, copy {copy:.0} ms, pause {pause:.0} ms ({share:.0} % of the copy's rate), resume \
         {resume:.0} ms; compressed to {smaller:.0} %: pause {compressed:.0} ms, resume {decompressed:.0} ms; memory at \
         most {}, compressing {}",
        archives[0].2, archives[1].2
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

/// Which merges there are between two pauses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Merges {
    Held,
    Due,
    All,
}

/// Makes and drops an index with a few entries, which `memdb` merges all of a shard for.
fn drop_an_index(bucket: &Bucket) {
    let index = IndexDefinition::parse("gone=n").unwrap();
    bucket.ensure_index(&index, true).unwrap();
    // Of each shard some.
    ingest_with(bucket, Lines::new(0..64, 1, 0), true).unwrap();
    bucket.drop_index(index.name(), &Until::default()).unwrap();
}

/// What is uploaded after every hundredth document got another key, of all bytes.
fn after_changes(world: &World, version: u64, merges: Merges) -> f64 {
    let archive = world.archive();
    let store = archive.store.as_ref();
    let (bucket, until) = (world.open(), Until::default());
    settle(&world.folder());
    pause(&bucket, store, PLAIN);
    close(bucket);
    world.wake(store);
    let bucket = world.open();
    let holds: Vec<_> = bucket
        .shards()
        .iter()
        .filter(|_| merges == Merges::Held)
        .map(|shard| shard.hold_merges(&until).unwrap())
        .collect();
    for point in 0..CHANGE_POINTS {
        let documents = point * CHANGED_OF..world.documents;
        ingest(&bucket, Lines::new(documents, CHANGED_OF * CHANGE_POINTS, version)).unwrap();
    }
    if merges == Merges::All {
        drop_an_index(&bucket);
    }
    if merges != Merges::Held {
        settle(&world.folder());
    }
    let report = pause(&bucket, store, PLAIN);
    drop(holds);
    close(bucket);
    world.wake(store);
    percent(report.uploaded_bytes, report.bytes)
}

fn main() {
    let settings = Settings::read();
    for (at, size_mib) in settings.sizes_mib.iter().enumerate() {
        let rounds = settings.rounds[at.min(settings.rounds.len() - 1)];
        for kind in &settings.stores {
            let shards = settings.shards;
            let world = World::new(*kind, shards, *size_mib);
            // What a merge does meanwhile would be measured in one and not in the other.
            close(world.open());
            let what =
                format!("{kind}, {shards} shards, each with {size_mib} MiB of documents, {rounds} rounds:");
            if settings.parts.contains("times") {
                times(&world, rounds, &what);
            }
            if settings.parts.contains("second") {
                let [held, due, all] = [(1, Merges::Held), (2, Merges::Due), (3, Merges::All)]
                    .map(|(version, merges)| after_changes(&world, version, merges));
                println!(
                    "{what} second: {held:.1} % while merges are held, {due:.1} % after those that were due, {all:.1} % \
                     after all"
                );
            }
            if settings.parts.contains("locked") {
                locked(&world, rounds, &what);
            }
        }
    }
}
