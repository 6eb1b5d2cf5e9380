//! Buckets that are fed by the test, put to sleep and woken up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crossbeam::channel::{Receiver, Sender, bounded};
use dormouse::bucket::{
    Bucket, BucketConfig, BucketName, BucketSpec, BucketState, DataDir, IngestOptions, IngestReport,
    IntakeError, PauseError, PauseOptions, ResumeError, ResumeOptions, ResumeReport,
};
use dormouse::durable::require_room;
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::{FileStore, ObjectKey, ObjectStore};
use dormouse::pause::{Manifest, PruneOptions, list_pauses, prune, verify};
use dormouse::shard::{ShardSetConfig, StoreKind};
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::{RecvError, Until, recv};

use super::{eventually, forever, part, tree, watchdog};

pub(crate) const SPEC: fn() -> BucketSpec = || BucketSpec { vbuckets: 8, shards: 2, ..BucketSpec::default() };

/// A data folder and an archive.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) data: DataDir,
    pub(crate) store: FileStore,
    pub(crate) config: BucketConfig,
    pub(crate) spec: BucketSpec,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::of(StoreKind::Lsm)
    }

    /// Its buckets have shards of this kind.
    pub(crate) fn of(store: StoreKind) -> Self {
        let spec = BucketSpec { store, ..SPEC() };
        let dir = scratch();
        let data = DataDir::open_or_create(&dir.path().join("data")).unwrap();
        let archive = FileStore::open(&dir.path().join("archive")).unwrap();
        let never = Duration::from_secs(3600);
        let shards = ShardSetConfig { commit_interval: never, ..ShardSetConfig::default() };
        // Small batches: what a test sends line by line goes through all queues.
        let config = BucketConfig { shards, batch_events: 8, ..BucketConfig::default() };
        Self { dir, data, store: archive, config, spec }
    }

    /// A new bucket with the index `by_n`.
    pub(crate) fn bucket(&self, name: &str) -> Bucket {
        let bucket = self.data.create_bucket(&named(name), self.spec, &self.config).unwrap();
        bucket.ensure_index(&by_n(), false).unwrap();
        bucket
    }

    /// A new bucket with the index `by_n` and the documents of [`lines`].
    pub(crate) fn filled(&self, name: &str, numbers: std::ops::Range<u32>) -> Bucket {
        let bucket = self.bucket(name);
        ingest(&bucket, lines(numbers)).unwrap();
        bucket
    }

    pub(crate) fn open(&self, name: &str) -> Bucket {
        once_free(|| self.data.open_bucket(&named(name), &self.config)).unwrap()
    }

    pub(crate) fn resume(&self, name: &str, until: &Until) -> Result<(), ResumeError> {
        self.resume_from(&self.store, name, until).map(drop)
    }

    pub(crate) fn resume_from(
        &self,
        store: &dyn ObjectStore,
        name: &str,
        until: &Until,
    ) -> Result<ResumeReport, ResumeError> {
        // A test may want to see that it is held.
        let patience = Duration::from_millis(300);
        let resume = || {
            self.data.resume(&named(name), store, ResumeOptions::default(), &self.config, until, &mut |_| {})
        };
        once_free_within(patience, resume)
    }

    /// The folders of all buckets, with every file in them.
    pub(crate) fn local(&self) -> BTreeMap<String, Vec<u8>> {
        tree(&self.dir.path().join("data/buckets"))
    }

    /// The same folders once more, in another place. Nothing may be open in them.
    pub(crate) fn copy(&self) -> Self {
        let dir = scratch();
        self.copy_to(dir.path());
        self.at(dir)
    }

    /// Makes the same folders in `to`.
    pub(crate) fn copy_to(&self, to: &Path) {
        for (name, content) in tree(self.dir.path()) {
            let path = to.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    /// A world like this one, in folders that are there.
    pub(crate) fn at(&self, dir: tempfile::TempDir) -> Self {
        let mut data = None;
        // A process that another test starts at the same time holds the lock of a folder until its program runs.
        eventually("the data folder is free", || {
            data = DataDir::open_or_create(&dir.path().join("data")).ok();
            data.is_some()
        });
        let store = FileStore::open(&dir.path().join("archive")).unwrap();
        Self { dir, data: data.unwrap(), store, config: self.config.clone(), spec: self.spec }
    }

    /// What is staged in the data folder.
    pub(crate) fn staged(&self) -> BTreeMap<String, Vec<u8>> {
        tree(&self.dir.path().join("data/staging"))
    }

    /// Removes what failed resumes have downloaded.
    pub(crate) fn forget_downloads(&self) {
        for entry in std::fs::read_dir(self.dir.path().join("data/staging")).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    }

    pub(crate) fn pauses(&self, name: &str) -> usize {
        list_pauses(&self.store, &part(name), &forever()).unwrap().len()
    }
}

pub(crate) fn named(name: &str) -> BucketName {
    name.parse().unwrap()
}

pub(crate) fn by_n() -> IndexDefinition {
    IndexDefinition::parse("by_n=n").unwrap()
}

pub(crate) fn options() -> IngestOptions {
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    IngestOptions { format, skip_bad: false, rebuild: false }
}

/// Lines of documents whose member `n` is their number.
pub(crate) fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|n| format!("{{\"id\":\"d{n:05}\",\"n\":{n}}}\n")).collect::<Vec<_>>().concat()
}

/// Lines of documents whose keys are long and not alike: of 4 KB.
pub(crate) fn long_lines(numbers: std::ops::Range<u32>) -> String {
    const KEY_BYTES: usize = 4000;
    let mut lines = String::new();
    for n in numbers {
        write!(lines, "{{\"id\":\"d{n:05}\",\"n\":\"{n:05}").unwrap();
        let mut state = u64::from(n) + 1;
        for _ in 0..KEY_BYTES / 8 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            write!(lines, "{:08x}", state >> 32).unwrap();
        }
        lines.push_str("\"}\n");
    }
    lines
}

pub(crate) fn input(text: String) -> Input {
    Input::Reader { name: "lines".to_owned(), reader: Box::new(io::Cursor::new(text.into_bytes())) }
}

pub(crate) fn ingest(bucket: &Bucket, text: String) -> Result<IngestReport, IntakeError> {
    bucket.ingest(vec![input(text)], &options(), &watchdog(), &mut |_| {})
}

/// Pauses without noise.
pub(crate) fn pause(bucket: &Bucket, store: &dyn ObjectStore, evict: bool) -> Result<(), PauseError> {
    let options = PauseOptions { evict, ..PauseOptions::default() };
    bucket.pause(store, options, &watchdog(), &mut |_| {}).map(drop)
}

/// The ids that a scan of `by_n` gives, in key order.
pub(crate) fn scan(bucket: &Bucket) -> Vec<String> {
    let scan = bucket.scan(by_n().name(), &KeyRange::default(), false, &forever()).unwrap();
    scan.map(|entry| entry.unwrap().id).collect()
}

pub(crate) fn ids(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|n| format!("d{n:05}")).collect()
}

pub(crate) fn close(bucket: Bucket) {
    bucket.close(&watchdog()).unwrap();
    drop(bucket);
}

pub(crate) fn is_locked(bucket: &Bucket) -> bool {
    bucket.status().shards.iter().any(|shard| shard.locked_by.is_some())
}

pub(crate) fn is_paused(bucket: &Bucket) -> bool {
    matches!(bucket.describe().state, BucketState::Paused { .. })
}

pub(crate) fn applied(bucket: &Bucket) -> u64 {
    bucket.status().indexes.iter().map(|index| index.changes).sum()
}

/// Reads what the test sends, until its side is dropped.
pub(crate) struct Fed {
    pieces: Receiver<String>,
    piece: io::Cursor<Vec<u8>>,
}

pub(crate) fn fed() -> (Sender<String>, Input) {
    let (sender, pieces) = bounded(16);
    let reader = Box::new(Fed { pieces, piece: io::Cursor::default() });
    (sender, Input::Reader { name: "fed".to_owned(), reader })
}

impl Read for Fed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.piece.read(buffer)?;
        if read > 0 {
            return Ok(read);
        }
        match recv(&self.pieces, &Until::within(Duration::from_millis(10))) {
            Ok(piece) => {
                self.piece = io::Cursor::new(piece.into_bytes());
                self.piece.read(buffer)
            }
            Err(RecvError::Closed) => Ok(0),
            Err(RecvError::Stopped(_)) => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

/// Runs `test` while documents are ingested, with the sender of further lines. Gives back how the ingest ended
/// after `test` had dropped it.
pub(crate) fn while_ingesting(
    bucket: &Bucket,
    test: impl FnOnce(Sender<String>),
) -> Result<IngestReport, IntakeError> {
    let (sender, input) = fed();
    std::thread::scope(|scope| {
        let ingest = scope.spawn(|| bucket.ingest(vec![input], &options(), &watchdog(), &mut |_| {}));
        test(sender);
        ingest.join().unwrap()
    })
}

/// A folder in memory, where there is room for one: flushing to a disk takes most of the time of small buckets, and a
/// process that is killed leaves the same behind in both.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if require_room(memory, 1 << 30).is_ok() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

/// Does what needs files that nobody holds. A process that another test starts holds them, like all that is open here,
/// until its program runs.
pub(crate) fn once_free<T, E: std::fmt::Display>(attempt: impl Fn() -> Result<T, E>) -> Result<T, E> {
    once_free_within(Duration::from_secs(5), attempt)
}

fn once_free_within<T, E: std::fmt::Display>(
    patience: Duration,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let is_held = |outcome: &Result<T, E>| {
        outcome.as_ref().is_err_and(|error| error.to_string().contains("it is open already"))
    };
    let patience = Until::within(patience);
    loop {
        let outcome = attempt();
        if !is_held(&outcome) || patience.check().is_err() {
            return outcome;
        }
        std::thread::yield_now();
    }
}

/// Removes from the archive what no pause needs, and checks that nothing else is left in it.
pub(crate) fn prune_to_what_is_named(store: &dyn ObjectStore, name: &str) {
    let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    for days in 0..4 {
        let now = now + day * days;
        let options = PruneOptions { keep: None, grace: day, now, dry_run: false };
        prune(store, &part(name), &options, &watchdog()).unwrap();
    }
    let mut named = BTreeSet::new();
    for pause in list_pauses(store, &part(name), &forever()).unwrap() {
        let manifest = Manifest::read(store, &part(name), pause, &forever()).unwrap();
        assert!(verify(&manifest, store, &forever()).unwrap().is_empty());
        named.extend(manifest.files.into_iter().map(|file| file.object));
        named.insert(format!("{name}/manifests/{pause}.manifest").parse().unwrap());
    }
    let there: BTreeSet<ObjectKey> =
        store.list(None, &forever()).unwrap().into_iter().map(|object| object.key).collect();
    assert_eq!(there, named, "something is left in the archive, or missing from it");
}
