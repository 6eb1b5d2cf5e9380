//! What a host is owed, as far as one test of many in a process can tell. What concerns a whole process is in
//! `tests/legacy`.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use dormouse::bucket::{
    BucketConfig, BucketState, CloseError, FollowCause, FollowOptions, IntakeError, PauseError, PauseOptions,
};
use dormouse::index::KeyRange;
use dormouse::objstore::{
    CallInfo, CredentialSource, Credentials, FileStore, Layer, Policy, S3Config, S3Store, StoreError,
};
use dormouse::shard::{ShardSetConfig, StoreKind, lock_all};
use dormouse::source::Input;
use dormouse::thread::{Cancel, Thread, Until, recv, spawn};
use slog::{Drain, Logger, Never, OwnedKVList, Record, o};
use tempfile::TempDir;

use crate::support::buckets::{
    World, applied, close, ids, ingest, input, is_locked, lines, options, pause, scan,
};
use crate::support::consumer::{Consumer, expected, follow, write};
use crate::support::failures::Failures;
use crate::support::path::Dice;
use crate::support::producer::{Producer, cluster_at};
use crate::support::shards::for_each_store;
use crate::support::{eventually, push, watchdog};

for_each_store! {
    instances_are_opened_paused_and_closed_at_the_same_time,
    close_ends_at_its_deadline_while_a_recovery_point_hangs_and_may_be_called_again,
}

const INSTANCES: u64 = 4;
/// What a call may take beyond its deadline on a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(20);

/// One that has no part in what happens to the others: it sleeps and wakes, and finds what it had.
fn live(kind: StoreKind, begin: &Barrier, seed: u64) {
    let (world, mut dice) = (World::of(kind), Dice::new(seed));
    begin.wait();
    let mut bucket = world.bucket("b");
    for round in 1..=5 {
        let documents = 20 * round;
        ingest(&bucket, lines(0..documents)).unwrap();
        pause(&bucket, &world.store, dice.below(2) == 0).unwrap();
        close(bucket);
        world.resume("b", &watchdog()).unwrap();
        bucket = world.open("b");
        assert_eq!(scan(&bucket), ids(0..documents));
    }
    close(bucket);
    assert!(world.staged().is_empty());
}

fn instances_are_opened_paused_and_closed_at_the_same_time(kind: StoreKind) {
    let begin = Barrier::new(usize::try_from(INSTANCES).unwrap());
    std::thread::scope(|scope| {
        for seed in 0..INSTANCES {
            let begin = &begin;
            scope.spawn(move || live(kind, begin, seed));
        }
    });
}

#[test]
fn what_happens_to_one_instance_happens_to_no_other() {
    let (locked, broken, other) = (World::new(), World::new(), World::new());
    let held = locked.bucket("b");
    ingest(&held, lines(0..10)).unwrap();
    let guards = lock_all(held.shards(), "a test", &watchdog()).unwrap();
    let config = BucketConfig { logger: panics_on("dm-flush"), ..broken.config.clone() };
    let spoilt = broken.data.create_bucket(&"b".parse().unwrap(), broken.spec, &config).unwrap();
    spoilt.ensure_index(&crate::support::buckets::by_n(), false).unwrap();
    assert!(ingest(&spoilt, lines(0..10)).is_err());

    let bucket = other.filled("b", 0..10);
    pause(&bucket, &other.store, true).unwrap();
    close(bucket);
    other.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&other.open("b")), ids(0..10));
    assert!(other.data.tasks().tasks.iter().all(|task| task.bucket.as_str() == "b"));
    assert!(is_locked(&held) && locked.data.tasks().revision != other.data.tasks().revision);
    drop(guards);
    close(held);
}

/// Panics on threads whose names begin like this, past the hook.
struct PanicsOn(&'static str);

impl Drain for PanicsOn {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let thread = std::thread::current();
        if thread.name().is_some_and(|name| name.starts_with(self.0)) && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new(format!("the host's logger fails at: {}", record.msg())));
        }
        Ok(())
    }
}

fn panics_on(prefix: &'static str) -> Logger {
    Logger::root(PanicsOn(prefix), o!())
}

/// The beginnings of the names of all threads, without their numbers.
fn prefixes() -> BTreeSet<&'static str> {
    let lib = include_str!("../src/lib.rs");
    let rows = lib.split("//! # Threads").nth(1).unwrap().lines().skip_while(|line| !line.contains('|'));
    let names = rows.take_while(|line| line.contains('|')).filter_map(|row| row.split('`').nth(1));
    names.map(|name| name.split("-N").next().unwrap()).collect()
}

#[test]
fn whatever_thread_panics_closes_its_instance_with_an_error_and_nothing_else() {
    let prefixes = prefixes();
    assert!(prefixes.len() >= 13, "{prefixes:?}");
    for prefix in prefixes {
        for kind in [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow] {
            let world = World::of(kind);
            close(world.bucket("b"));
            let config = BucketConfig { logger: panics_on(prefix), ..world.config.clone() };
            let bucket = world.data.open_bucket(&"b".parse().unwrap(), &config).unwrap();
            let ingested = ingest(&bucket, lines(0..50));
            let closed = bucket.close(&watchdog());
            assert!(!matches!(closed, Err(CloseError::StillRunning { .. })), "{prefix}: {closed:?}");
            if prefix == "dm-flush" {
                let told = [ingested.unwrap_err().to_string(), closed.unwrap_err().to_string()];
                assert!(told.iter().all(|error| error.contains("thread dm-flush panicked")), "{told:?}");
            }
            drop(bucket);
            let bucket = world.open("b");
            ingest(&bucket, lines(0..50)).unwrap();
            assert_eq!(scan(&bucket), ids(0..50), "{prefix}");
            close(bucket);
        }
    }
}

#[test]
fn whatever_thread_of_a_follower_panics_it_ends_with_an_error_and_can_be_followed_again() {
    for prefix in prefixes() {
        let folder = TempDir::new().unwrap();
        let (producer, mut dice) = (Producer::start(8), Dice::new(1));
        write(&producer, &mut dice, 300);
        let config = BucketConfig { logger: panics_on(prefix), ..crate::support::consumer::config() };
        let mut consumer = Consumer::open_with(folder.path(), Consumer::spec(), &config);
        consumer.begin(follow(&producer, true));
        let followed = consumer.join();
        let bucket = Arc::into_inner(consumer.bucket).unwrap();
        let closed = bucket.close(&watchdog());
        assert!(!matches!(closed, Err(CloseError::StillRunning { .. })), "{prefix}: {closed:?}");
        if let Err(error) = followed
            && ["dm-flush", "vbc", "dm-follow"].contains(&prefix)
        {
            assert!(error.to_string().contains("panicked"), "{prefix}: {error}");
        }
        drop(bucket);
        let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
        consumer.once(&producer);
        assert_eq!(consumer.indexed(), expected(&producer), "{prefix}");
        consumer.close();
        producer.check();
    }
}

/// A reader of the host's that fails in its own way.
struct PanickingReader;

impl std::io::Read for PanickingReader {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        std::panic::resume_unwind(Box::new("the host's reader fails"));
    }
}

#[test]
fn a_reader_that_panics_ends_its_ingest_and_nothing_else() {
    let world = World::new();
    let bucket = world.bucket("b");
    let reader = Input::Reader { name: "panics".to_owned(), reader: Box::new(PanickingReader) };
    let inputs = vec![input(lines(0..10)), reader];
    let ended = bucket.ingest(inputs, &options(), &watchdog(), &mut |_| {}).unwrap_err();
    assert!(ended.to_string().ends_with("thread dm-source panicked: the host's reader fails"), "{ended}");
    ingest(&bucket, lines(0..50)).unwrap();
    assert_eq!(scan(&bucket), ids(0..50));
    close(bucket);
}

/// Panics in each call on a thread that carries files.
struct Panics;

impl Policy for Panics {
    fn call<T>(
        &self,
        _: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if std::thread::current().name().is_some_and(|name| name.starts_with("dm-store-")) {
            std::panic::resume_unwind(Box::new("the host's store fails"));
        }
        go(until)
    }
}

#[test]
fn a_store_that_panics_while_it_carries_files_ends_its_pause_and_nothing_else() {
    let world = World::new();
    let bucket = world.filled("b", 0..50);
    let panicking = Layer::new(Box::new(FileStore::open(&world.dir.path().join("archive")).unwrap()), Panics);
    let failed = pause(&bucket, &panicking, true).unwrap_err();
    assert!(failed.to_string().contains("panicked: the host's store fails"), "{failed}");
    assert!(!is_locked(&bucket) && bucket.describe().state == BucketState::Online);
    ingest(&bucket, lines(50..60)).unwrap();
    pause(&bucket, &world.store, true).unwrap();
    close(bucket);
    world.resume("b", &watchdog()).unwrap();
    assert_eq!(scan(&world.open("b")), ids(0..60));
}

/// Where something hangs, until it is let on.
#[derive(Clone, Default)]
struct Gate {
    /// Given once it hangs.
    hangs: Cancel,
    let_on: Cancel,
}

/// Hangs at records that say this: what calls it hangs as it does in a disk.
struct HangsAt {
    text: &'static str,
    gate: AssertUnwindSafe<Gate>,
}

impl Drain for HangsAt {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        if record.msg().to_string() == self.text {
            self.gate.hangs.cancel();
            let _ = self.gate.let_on.fin().wait(&watchdog());
        }
        Ok(())
    }
}

/// Fails where `call` takes much longer than its deadline.
fn in_time<T>(what: &str, call: impl FnOnce(&Until) -> T) -> T {
    let began = Instant::now();
    let done = call(&Until::within(Duration::from_millis(200)));
    assert!(began.elapsed() < SLACK, "{what} took {:?}", began.elapsed());
    done
}

fn close_ends_at_its_deadline_while_a_recovery_point_hangs_and_may_be_called_again(kind: StoreKind) {
    let (world, gate) = (World::of(kind), Gate::default());
    let config = BucketConfig { logger: hangs_at("recovery point made", &gate), ..world.config.clone() };
    let bucket = world.data.create_bucket(&"b".parse().unwrap(), world.spec, &config).unwrap();
    bucket.ensure_index(&crate::support::buckets::by_n(), false).unwrap();
    // The other thread is told to end only when there is no time left to see it.
    let closed = in_time("a close", |until| bucket.close(until)).unwrap_err();
    assert!(matches!(&closed, CloseError::StillRunning { threads } if threads[0] == "dm-flush"), "{closed}");
    eventually("a close names the thread that hangs alone", || {
        let closed = in_time("a close", |until| bucket.close(until)).unwrap_err();
        matches!(&closed, CloseError::StillRunning { threads } if threads == &["dm-flush"])
    });
    gate.let_on.cancel();
    bucket.close(&watchdog()).unwrap();
    bucket.close(&watchdog()).unwrap();
}

/// A logger that hangs at records that say `text`.
fn hangs_at(text: &'static str, gate: &Gate) -> Logger {
    Logger::root(HangsAt { text, gate: AssertUnwindSafe(gate.clone()) }, o!())
}

/// What a shard says with its turn still taken, once a write has failed at what it read.
const FAILED_WRITE: &str = "a write failed half-way; nothing is committed any more";

/// Reads each table anew.
fn without_cache(config: &BucketConfig, logger: Logger) -> BucketConfig {
    let shards = ShardSetConfig { cache_bytes: 0, ..config.shards.clone() };
    BucketConfig { logger, shards, ..config.clone() }
}

/// Spoils what a bucket's tables hold, which are open.
fn spoil_tables(bucket: &Path) {
    for shard in ["shard-0000", "shard-0001"] {
        for table in std::fs::read_dir(bucket.join(shard).join("lsm/tables")).unwrap() {
            let path = table.unwrap().path();
            let length = std::fs::metadata(&path).unwrap().len();
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&vec![0xff; usize::try_from(length).unwrap()], 0).unwrap();
        }
    }
}

#[test]
fn an_ingest_and_every_look_end_in_time_while_a_shard_hangs_in_a_write() {
    let (world, gate) = (World::new(), Gate::default());
    let bucket = world.filled("b", 0..50);
    close(bucket);
    let config = without_cache(&world.config, hangs_at(FAILED_WRITE, &gate));
    let bucket = world.data.open_bucket(&"b".parse().unwrap(), &config).unwrap();
    spoil_tables(&world.dir.path().join("data/buckets/b"));
    let began = Instant::now();
    let once_it_hangs = Until::new(None, gate.hangs.clone());
    let ended = bucket.ingest(vec![input(lines(0..50))], &options(), &once_it_hangs, &mut |_| {});
    assert!(ended.is_err(), "{ended:?}");
    // What it started has half a minute to end.
    assert!(began.elapsed() < Duration::from_secs(30) + SLACK, "it took {:?}", began.elapsed());
    let looks = in_time("looks", |_| (bucket.status().indexes[0].changes, bucket.open_scans()));
    assert_eq!(looks, (50, 0));
    let by_n = crate::support::buckets::by_n();
    let scan = in_time("a scan", |until| bucket.scan(by_n.name(), &KeyRange::default(), false, until));
    assert!(scan.is_err());
    let closed = in_time("a close", |until| bucket.close(until)).unwrap_err();
    let CloseError::StillRunning { threads } = &closed else { panic!("{closed}") };
    assert!(threads.iter().any(|name| name.starts_with("kv-")), "{closed}");
    gate.let_on.cancel();
    let closed = bucket.close(&watchdog());
    assert!(!matches!(closed, Err(CloseError::StillRunning { .. })), "{closed:?}");
}

#[test]
fn following_ends_in_time_while_a_shard_hangs_in_a_write() {
    let (folder, gate) = (TempDir::new().unwrap(), Gate::default());
    let (producer, mut dice) = (Producer::start(8), Dice::new(1));
    write(&producer, &mut dice, 300);
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    consumer.once(&producer);
    consumer.close();
    let config = without_cache(&crate::support::consumer::config(), hangs_at(FAILED_WRITE, &gate));
    let mut consumer = Consumer::open_with(folder.path(), Consumer::spec(), &config);
    spoil_tables(&folder.path().join("buckets/travel"));
    consumer.begin(follow(&producer, false));
    write(&producer, &mut dice, 300);
    eventually("a write hangs", || gate.hangs.is_cancelled());
    let began = Instant::now();
    consumer.end().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(30) + SLACK, "it took {:?}", began.elapsed());
    let closed = in_time("a close", |until| consumer.bucket.close(until)).unwrap_err();
    assert!(matches!(closed, CloseError::StillRunning { .. }), "{closed}");
    gate.let_on.cancel();
    let closed = consumer.bucket.close(&watchdog());
    assert!(!matches!(closed, Err(CloseError::StillRunning { .. })), "{closed:?}");
    producer.check();
}

#[test]
fn a_disk_that_hangs_under_the_metadata_holds_up_no_look_and_no_scan() {
    let (world, gate) = (World::new(), Gate::default());
    let bucket = world.filled("b", 0..10);
    close(bucket);
    let config = BucketConfig { logger: hangs_at("the metadata is on disk", &gate), ..world.config.clone() };
    let bucket = world.data.open_bucket(&"b".parse().unwrap(), &config).unwrap();
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| pause(&bucket, &world.store, false));
        eventually("its disk hangs", || gate.hangs.is_cancelled());
        in_time("looks", |_| {
            assert_eq!(bucket.status().bucket, bucket.name());
            assert_eq!(scan(&bucket), ids(0..10));
        });
        gate.let_on.cancel();
        pausing.join().unwrap().unwrap();
    });
    close(bucket);
}

/// Takes connections and says nothing, until it is dropped.
struct Silent {
    stop: Cancel,
    thread: Option<Thread<()>>,
    address: std::net::SocketAddr,
}

impl Silent {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Cancel::new());
        let stopped = stop.clone();
        let thread = spawn("t-silent", move || {
            let mut clients: Vec<TcpStream> = Vec::new();
            while stopped.fin().wait(&Until::within(Duration::from_millis(1))).is_err() {
                clients.extend(listener.accept().map(|(client, _)| client));
            }
        });
        Self { stop, thread: Some(thread.unwrap()), address }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.stop.cancel();
        drop(self.thread.take().map(|thread| thread.join(&watchdog())));
    }
}

#[test]
fn a_pause_into_a_silent_server_ends_at_its_deadline_and_the_bucket_is_closed() {
    let (world, server) = (World::new(), Silent::start());
    let bucket = world.filled("b", 0..50);
    let credentials = Credentials {
        access_key_id: "key".to_owned(),
        secret_access_key: "secret".to_owned(),
        session_token: None,
        expires: None,
    };
    let store = S3Store::open(S3Config {
        endpoint: Some(format!("http://{}", server.address)),
        path_style: true,
        credentials: vec![CredentialSource::Given(credentials)],
        ..S3Config::new("bucket", "region")
    });
    let store = store.unwrap();
    let evict = PauseOptions { evict: true, ..PauseOptions::default() };
    let paused = in_time("a pause", |until| bucket.pause(&store, evict, until, &mut |_| {}));
    assert!(matches!(&paused, Err(PauseError::Manifest { .. } | PauseError::Stopped { .. })), "{paused:?}");
    assert!(!is_locked(&bucket) && bucket.describe().state.is_lasting());
    in_time("a close", |_| bucket.close(&watchdog())).unwrap();
    in_time("the store's end", |_| drop(store));
}

#[test]
fn following_a_silent_node_ends_at_its_deadline_and_the_bucket_is_closed() {
    let (folder, server) = (TempDir::new().unwrap(), Silent::start());
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    let options = FollowOptions {
        cluster: cluster_at(server.address, 8),
        connections: 1,
        once: false,
        idle_after: None,
    };
    let followed = in_time("following", |until| consumer.bucket.follow(&options, until, &mut |_| {}));
    assert!(
        matches!(
            &followed,
            Err(IntakeError::Stopped { .. } | IntakeError::Cluster { cause: FollowCause::Node(_), .. })
        ),
        "{followed:?}"
    );
    in_time("a close", |_| consumer.close());
}

#[test]
fn a_node_that_falls_silent_holds_up_no_end() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start(8), Dice::new(1));
    write(&producer, &mut dice, 300);
    let mut consumer = Consumer::open(folder.path(), StoreKind::Lsm, 8);
    consumer.begin(follow(&producer, false));
    consumer.catch_up(&producer);
    producer.behave(|behaviour| behaviour.stalled = true);
    write(&producer, &mut dice, 300);
    let ended = in_time("the end of following", |_| consumer.end());
    assert!(matches!(ended, Err(IntakeError::Stopped { .. })), "{ended:?}");
    in_time("a close", |_| consumer.close());
    producer.check();
}

#[test]
fn a_shard_that_is_broken_is_told_of_once() {
    let (world, (failures, logger)) = (World::new(), Failures::heard());
    let shards = ShardSetConfig { commit_interval: Duration::from_millis(1), ..world.config.shards.clone() };
    let config = BucketConfig { logger, shards, ..world.config.clone() };
    let bucket = world.data.create_bucket(&"b".parse().unwrap(), world.spec, &config).unwrap();
    bucket.ensure_index(&crate::support::buckets::by_n(), false).unwrap();
    bucket.close(&watchdog()).unwrap();
    drop(bucket);

    // Where a table is to be written there is no folder any more.
    let bucket = world.data.open_bucket(&"b".parse().unwrap(), &config).unwrap();
    for shard in ["shard-0000", "shard-0001"] {
        std::fs::remove_dir_all(world.dir.path().join("data/buckets/b").join(shard).join("lsm/tables"))
            .unwrap();
    }
    let ingested = bucket.ingest(vec![input(lines(0..50))], &options(), &watchdog(), &mut |_| {});
    assert!(ingested.is_err());
    let told = || failures.told().values().sum::<usize>();
    eventually("it is told", || told() >= 1);
    // It is tried again each second.
    let never = Cancel::new();
    let _ = never.fin().wait(&Until::within(Duration::from_millis(2500)));
    assert!(told() <= 4, "{:?}", failures.told());
    let _ = bucket.close(&watchdog());
}

/// Reads what the test sends, and hangs where there is nothing.
struct Hanging(Receiver<String>);

impl Read for Hanging {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Shorter than the room that is read into.
        let piece = recv(&self.0, &watchdog()).unwrap_or_default();
        buffer[..piece.len()].copy_from_slice(piece.as_bytes());
        Ok(piece.len())
    }
}

#[test]
fn why_an_ingest_ended_is_told_also_where_its_reader_hangs() {
    let world = World::new();
    let bucket = world.bucket("b");
    let (sender, pieces) = bounded(16);
    let source = Input::Reader { name: "hanging".to_owned(), reader: Box::new(Hanging(pieces)) };
    let ended = std::thread::scope(|scope| {
        let ingest = scope.spawn(|| bucket.ingest(vec![source], &options(), &watchdog(), &mut |_| {}));
        push(&sender, lines(0..10));
        eventually("it is applied", || applied(&bucket) == 10);
        pause(&bucket, &world.store, false).unwrap();
        push(&sender, lines(10..11));
        ingest.join().unwrap()
    });
    assert!(matches!(&ended, Err(IntakeError::PutToSleep { .. })), "{ended:?}");
    drop(sender);
    close(bucket);
}
