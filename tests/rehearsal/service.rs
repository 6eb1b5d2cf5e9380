//! The service: does what it is told on its standard input, one order a line, and answers on its standard output.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use dormouse::bucket::{
    Bucket, BucketConfig, BucketSpec, DataDir, FollowOptions, IndexState, IntakeError, PauseOptions,
    ResumeOptions, SourceKind,
};
use dormouse::durable::hex;
use dormouse::index::IndexDefinition;
use dormouse::objstore::{FileStore, ObjectStore, S3Store};
use dormouse::shard::{ShardSetConfig, StoreKind};
use dormouse::thread::{Until, fin};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::support::consumer::{Consumer, by_n};
use crate::support::path::tasks;
use crate::support::producer::cluster_at;
use crate::support::stores::gateway;
use crate::support::{FailingStore, Fails, watchdog};

/// Holds the [`Place`] of the service, for its process.
const PLACE: &str = "DORMOUSE_TEST_REHEARSAL";
/// What an answer begins with: the test harness writes to the same output.
const MARK: &str = "@@";
const NAME: &str = "travel";
pub(super) const VBUCKETS: u16 = 16;

/// Where a service works.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) archive: Archive,
    pub(super) producer: SocketAddr,
    pub(super) store: StoreKind,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Archive {
    Folder(PathBuf),
    /// URL of the server, and a prefix.
    S3(String, String),
}

impl Archive {
    pub(super) fn open(&self) -> Box<dyn ObjectStore> {
        match self {
            Self::Folder(path) => Box::new(FileStore::open(path).unwrap()),
            Self::S3(endpoint, prefix) => Box::new(S3Store::open(gateway::config(endpoint, prefix)).unwrap()),
        }
    }
}

/// A call of the archive that fails, and how.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Fault {
    pub(super) at_call: usize,
    pub(super) fails: Failing,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Failing {
    Before,
    After,
    Passing,
    Half,
    Kills,
}

impl From<Failing> for Fails {
    fn from(failing: Failing) -> Self {
        match failing {
            Failing::Before => Self::Before,
            Failing::After => Self::After,
            Failing::Passing => Self::Passing,
            Failing::Half => Self::Half,
            Failing::Kills => Self::Kills,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Order {
    /// Makes the bucket, or opens the one that is there, and follows.
    Follow,
    Pause {
        evict: bool,
        compress: bool,
        fault: Option<Fault>,
    },
    Resume {
        fault: Option<Fault>,
    },
    Drop,
    MakeIndex,
    DropIndex,
    /// Waits until the bucket is at these seqnos, and each index at this digest.
    Settle {
        highs: Vec<u64>,
        digest: String,
    },
    /// Ends everything.
    Close,
}

/// What came of an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Why it was not carried out.
    pub(super) error: Option<String>,
    /// The bucket's state; none where there is no bucket.
    pub(super) state: Option<String>,
    pub(super) memory_mib: u64,
    /// Threads and open files of the process that are not the harness's.
    pub(super) left: Vec<String>,
}

/// What the entries of an index are told apart by.
pub(super) fn digest(entries: &BTreeSet<(i64, String)>) -> String {
    let mut hash = Sha256::new();
    for (n, id) in entries {
        hash.update(format!("{n} {id}\n"));
    }
    format!("{} {}", entries.len(), hex(&hash.finalize()))
}

/// The second index, which comes and goes.
fn second() -> IndexDefinition {
    IndexDefinition::parse("second=n").unwrap()
}

struct Service {
    place: Place,
    data: DataDir,
    consumer: Option<Consumer>,
    is_following: bool,
}

/// Is the service, where this process was started to be one.
pub(super) fn obey_if_ordered() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let place: Place = serde_json::from_str(&place).unwrap();
    let before = left();
    let data = DataDir::open_or_create(&place.folder).unwrap();
    let mut service = Service { place, data, consumer: None, is_following: false };
    service.answer(Ok(()));
    let orders = io::stdin().lock().lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
    for order in orders {
        if matches!(order, Order::Close) {
            service.end_following();
            service.close();
            drop(service);
            answer(Ok(()), None, left_since(&before));
            break;
        }
        let outcome = service.obey(order);
        service.answer(outcome.map_err(|error| format!("{error:#}")));
    }
    // The harness would go on to tell of a test that passed, which nobody asks for.
    let _ = io::stdout().flush();
    signal_hook::low_level::exit(0);
}

/// The command that starts a service.
pub(super) fn command(place: &Place) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["rehearsal::a_night_in_the_life_of_a_bucket", "--exact", "--nocapture"]);
    command.env(PLACE, serde_json::to_string(place).unwrap());
    command
}

/// The answer in a line of a service's output, if it is one.
pub(super) fn answer_in(line: &str) -> Option<Answer> {
    serde_json::from_str(line.split_once(MARK)?.1).ok()
}

fn left() -> BTreeMap<String, usize> {
    let mut left = BTreeMap::new();
    for (name, _) in tasks() {
        *left.entry(format!("thread {name}")).or_default() += 1;
    }
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        if let Ok(target) = std::fs::read_link(entry.unwrap().path())
            && !target.ends_with("fd")
        {
            *left.entry(format!("file {}", target.display())).or_default() += 1;
        }
    }
    left
}

/// What is there now and was not before. The system takes a thread off its list a moment after it was joined.
fn left_since(before: &BTreeMap<String, usize>) -> Vec<String> {
    let (limit, (_holder, never)) = (Until::within(Duration::from_secs(20)), fin());
    while left() != *before && limit.check().is_ok() {
        let _ = never.wait(&Until::within(Duration::from_millis(1)));
    }
    left().into_iter().filter(|(what, count)| before.get(what) != Some(count)).map(|(what, _)| what).collect()
}

fn answer(outcome: Result<(), String>, state: Option<String>, left: Vec<String>) {
    let answer = Answer { error: outcome.err(), state, memory_mib: memory_mib(), left };
    let mut out = io::stdout().lock();
    writeln!(out, "{MARK}{}", serde_json::to_string(&answer).unwrap()).unwrap();
    out.flush().unwrap();
}

fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Little memory, and recovery points that come quickly.
fn config() -> BucketConfig {
    let shards = ShardSetConfig {
        commit_interval: Duration::from_millis(20),
        commit_bytes: 1 << 20,
        point_interval: Duration::from_millis(300),
        points_kept: 3,
        cache_bytes: 4 << 20,
        ..ShardSetConfig::default()
    };
    BucketConfig { shards, budget_bytes: 4 << 20, ..BucketConfig::default() }
}

impl Service {
    fn answer(&self, outcome: Result<(), String>) {
        let meta = self.data.bucket_meta(&NAME.parse().unwrap()).ok();
        answer(outcome, meta.map(|meta| meta.state.to_string()), Vec::new());
    }

    fn obey(&mut self, order: Order) -> anyhow::Result<()> {
        match order {
            Order::Follow => self.follow(),
            Order::Pause { evict, compress, fault } => self.pause(PauseOptions { evict, compress }, fault),
            Order::Resume { fault } => self.resume(fault),
            Order::Drop => {
                self.end_following();
                self.close();
                Ok(self.data.drop_bucket(&NAME.parse()?)?)
            }
            Order::MakeIndex => {
                self.end_following();
                let made = self.bucket().ensure_index(&second(), false);
                self.follow()?;
                Ok(made?)
            }
            Order::DropIndex => {
                self.end_following();
                let dropped = self.bucket().drop_index(second().name(), &watchdog());
                self.follow()?;
                Ok(dropped?)
            }
            Order::Settle { highs, digest } => self.settle(&highs, &digest),
            Order::Close => Ok(()),
        }
    }

    fn bucket(&self) -> &Bucket {
        &self.consumer.as_ref().unwrap().bucket
    }

    fn open(&mut self) -> anyhow::Result<()> {
        let name = NAME.parse()?;
        let spec = BucketSpec {
            vbuckets: VBUCKETS,
            shards: 3,
            store: self.place.store,
            source: SourceKind::Couchbase,
            ..BucketSpec::default()
        };
        let bucket = if self.data.has_bucket(&name) {
            self.data.open_bucket(&name, &config())?
        } else {
            self.data.create_bucket(&name, spec, &config())?
        };
        bucket.ensure_index(&by_n(), false)?;
        self.consumer = Some(Consumer::of(bucket));
        Ok(())
    }

    fn follow(&mut self) -> anyhow::Result<()> {
        if self.consumer.is_none() {
            self.open()?;
        }
        let cluster = cluster_at(self.place.producer, VBUCKETS);
        let options = FollowOptions { cluster, connections: 2, once: false, idle_after: None };
        self.consumer.as_mut().unwrap().begin(options);
        self.is_following = true;
        Ok(())
    }

    fn end_following(&mut self) {
        if std::mem::take(&mut self.is_following) {
            let ended = self.consumer.as_mut().unwrap().end();
            let is_orderly =
                matches!(ended, Err(IntakeError::Stopped { .. } | IntakeError::PutToSleep { .. }));
            assert!(is_orderly, "{ended:?}");
        }
    }

    fn close(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            consumer.close();
        }
    }

    /// The archive, with a fault.
    fn with_archive<T>(&self, fault: Option<Fault>, work: impl FnOnce(&dyn ObjectStore) -> T) -> T {
        let archive = self.place.archive.open();
        match fault {
            None => work(&*archive),
            Some(Fault { at_call, fails }) => work(&FailingStore::new(&*archive, at_call, fails.into())),
        }
    }

    /// Pauses while changes come in. A bucket that stays awake is followed on.
    fn pause(&mut self, options: PauseOptions, fault: Option<Fault>) -> anyhow::Result<()> {
        let bucket = self.bucket();
        let paused = self.with_archive(fault, |store| bucket.pause(store, options, &watchdog(), &mut |_| {}));
        if bucket.describe().state.closed_for_writes().is_some() {
            self.end_following();
            self.close();
        }
        paused?;
        Ok(())
    }

    fn resume(&mut self, fault: Option<Fault>) -> anyhow::Result<()> {
        self.end_following();
        self.close();
        let name = NAME.parse()?;
        let resume = |store: &dyn ObjectStore| {
            self.data.resume(&name, store, ResumeOptions::default(), &config(), &watchdog(), &mut |_| {})
        };
        self.with_archive(fault, resume)?;
        Ok(())
    }

    fn settle(&mut self, highs: &[u64], wanted: &str) -> anyhow::Result<()> {
        let consumer = self.consumer.as_ref().unwrap();
        let indexes = || consumer.bucket.describe().indexes;
        let limit = Until::within(Duration::from_secs(90));
        let is_there = || {
            consumer.reached() == highs
                && indexes().iter().all(|entry| {
                    entry.state == IndexState::Ready
                        && digest(&consumer.indexed_by(&entry.definition)) == wanted
                })
        };
        while !is_there() {
            if limit.check().is_err() {
                let states: Vec<_> = indexes().iter().map(|entry| entry.state).collect();
                let reached = consumer.reached();
                self.is_following = false;
                let ended = self.consumer.as_mut().unwrap().end();
                anyhow::bail!(
                    "the bucket is at {reached:?} of {highs:?}, its indexes are {states:?}; following: {ended:?}"
                );
            }
            let (_holder, never) = fin();
            let _ = never.wait(&Until::within(Duration::from_millis(10)));
        }
        Ok(())
    }
}
