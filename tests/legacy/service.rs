//! The service: its logger, its pool of threads, and what it does with buckets.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dormouse::bucket::{
    Bucket, BucketConfig, BucketName, BucketSpec, DataDir, IngestOptions, IngestReport, IntakeError,
    PauseOptions, ResumeOptions,
};
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::ObjectStore;
use dormouse::shard::StoreKind;
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use slog::{Drain, Logger, Never, OwnedKVList, Record, o};

pub(crate) const EVICT: PauseOptions = PauseOptions { evict: true, compress: false };
pub(crate) const STORES: [StoreKind; 3] = [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow];

/// Keeps what is logged in memory.
#[derive(Default)]
pub(crate) struct Journal(Mutex<Vec<String>>);

impl Drain for Journal {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        self.0.lock().unwrap().push(record.msg().to_string());
        Ok(())
    }
}

impl Journal {
    pub(crate) fn lines(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads that do what they are given.
pub(crate) struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> Self {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let start = |number| {
            let queue = Arc::clone(&queue);
            let name = format!("pool-{number}");
            std::thread::Builder::new().name(name).spawn(move || work(&queue)).unwrap()
        };
        Self { jobs: Some(jobs), threads: (0..threads).map(start).collect() }
    }

    pub(crate) fn give(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
    }

    /// Waits until everything is done.
    pub(crate) fn end(mut self) {
        self.jobs = None;
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap().try_recv();
        match job {
            Ok(job) => job(),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            Err(_) => std::thread::park_timeout(Duration::from_millis(1)),
        }
    }
}

pub(crate) fn minutes(minutes: u64) -> Until {
    Until::within(Duration::from_secs(60 * minutes))
}

pub(crate) fn named(name: &str) -> BucketName {
    name.parse().unwrap()
}

pub(crate) fn by_n() -> IndexDefinition {
    IndexDefinition::parse("by_n=n").unwrap()
}

pub(crate) fn config(journal: &Arc<Journal>) -> BucketConfig {
    BucketConfig { logger: Logger::root(Arc::clone(journal), o!()), ..BucketConfig::default() }
}

/// Makes a bucket with an index.
pub(crate) fn make(data: &DataDir, name: &str, store: StoreKind, config: &BucketConfig) -> Bucket {
    let spec = BucketSpec { vbuckets: 16, shards: 2, store, ..BucketSpec::default() };
    let bucket = data.create_bucket(&named(name), spec, config).unwrap();
    bucket.ensure_index(&by_n(), false).unwrap();
    bucket
}

pub(crate) fn options() -> IngestOptions {
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    IngestOptions { format, skip_bad: false, rebuild: false }
}

/// Writes a file of documents whose member `n` is their number.
pub(crate) fn write_documents(path: &Path, numbers: std::ops::Range<u32>) {
    let line = |n: u32| format!("{{\"id\":\"d{n:06}\",\"n\":{n}}}\n");
    fs::write(path, numbers.map(line).collect::<String>()).unwrap();
}

/// Puts a bucket to sleep and wakes it up.
pub(crate) fn away_and_back(
    bucket: Bucket,
    data: &DataDir,
    archive: &dyn ObjectStore,
    config: &BucketConfig,
) -> Bucket {
    let (name, until) = (bucket.name(), minutes(1));
    bucket.pause(archive, EVICT, &until, &mut |_| {}).unwrap();
    bucket.close(&until).unwrap();
    drop(bucket);
    data.resume(&name, archive, ResumeOptions::default(), config, &until, &mut |_| {}).unwrap();
    data.open_bucket(&name, config).unwrap()
}

pub(crate) fn ingest(bucket: &Bucket, input: Input) -> Result<IngestReport, IntakeError> {
    bucket.ingest(vec![input], &options(), &minutes(1), &mut |_| {})
}

/// The numbers that the index holds, in its order.
pub(crate) fn scan(bucket: &Bucket) -> Vec<i64> {
    let scan = bucket.scan(by_n().name(), &KeyRange::default(), false, &minutes(1)).unwrap();
    scan.map(|entry| entry.unwrap().key[0].as_i64().unwrap()).collect()
}

pub(crate) fn numbers(numbers: std::ops::Range<u32>) -> Vec<i64> {
    numbers.map(i64::from).collect()
}

/// A reader that gives what it is sent, and waits for more in a call that nothing interrupts.
pub(crate) struct Fed {
    pieces: Receiver<Vec<u8>>,
    piece: io::Cursor<Vec<u8>>,
}

pub(crate) fn fed() -> (Sender<Vec<u8>>, Input) {
    let (sender, pieces) = channel();
    let reader = Box::new(Fed { pieces, piece: io::Cursor::default() });
    (sender, Input::Reader { name: "fed".to_owned(), reader })
}

impl Read for Fed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.piece.read(buffer)?;
        if read > 0 {
            return Ok(read);
        }
        let next = self.pieces.iter().next().unwrap_or_default();
        self.piece = io::Cursor::new(next);
        self.piece.read(buffer)
    }
}
