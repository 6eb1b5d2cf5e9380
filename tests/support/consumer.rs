//! A bucket that follows a test's producer, and what its index holds.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dormouse::bucket::{
    Bucket, BucketConfig, BucketError, BucketSpec, DataDir, DataDirError, FollowOptions, FollowReport,
    IndexError, IndexState, IntakeError, SourceKind,
};
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::shard::{OpenError, ShardSetConfig, StoreKind};
use dormouse::thread::{self, Cancel, Thread, Until};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::path::Dice;
use super::producer::{Producer, What};
use super::{eventually, eventually_or, forever, watchdog};

/// Number of shards of the buckets here.
pub(crate) const SHARDS: u16 = 2;

/// Follows what a producer has now, or for ever.
pub(crate) fn follow(producer: &Producer, once: bool) -> FollowOptions {
    FollowOptions { cluster: producer.cluster(), connections: 1, once, idle_after: None }
}

/// Every recovery point is kept, and none is made by itself.
pub(crate) fn config() -> BucketConfig {
    let never = Duration::from_secs(3600);
    let shards = ShardSetConfig {
        commit_interval: never,
        point_interval: Duration::ZERO,
        points_kept: 4,
        ..ShardSetConfig::default()
    };
    BucketConfig { shards, ..BucketConfig::default() }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap()
}

pub(crate) struct Consumer {
    pub(crate) bucket: Arc<Bucket>,
    following: Option<(Cancel, Thread<Result<FollowReport, IntakeError>>)>,
    /// How far following is, as it told last, or how it ended.
    told: Arc<Mutex<String>>,
}

pub(crate) fn by_n() -> IndexDefinition {
    IndexDefinition::parse("by_n=n").unwrap()
}

impl Consumer {
    /// Makes a bucket with the index `by_n`, or opens the one that is there.
    pub(crate) fn open(folder: &Path, store: StoreKind, vbuckets: u16) -> Self {
        Self::open_with(folder, BucketSpec { store, vbuckets, ..Self::spec() }, &config())
    }

    pub(crate) fn spec() -> BucketSpec {
        BucketSpec { vbuckets: 8, shards: SHARDS, source: SourceKind::Couchbase, ..BucketSpec::default() }
    }

    pub(crate) fn open_with(folder: &Path, spec: BucketSpec, config: &BucketConfig) -> Self {
        let name = "travel".parse().unwrap();
        let mut opened = None;
        // A process that another test starts at the same time holds the locks of this one's files until its program
        // runs.
        eventually("the folder is free", || {
            let data = match DataDir::open_or_create(folder) {
                Err(DataDirError::Held { .. }) => return false,
                data => data.unwrap(),
            };
            opened = if data.has_bucket(&name) {
                match data.open_bucket(&name, config) {
                    Err(BucketError::Shard(OpenError::InUse { .. })) => None,
                    bucket => Some(bucket.unwrap()),
                }
            } else {
                Some(data.create_bucket(&name, spec, config).unwrap())
            };
            opened.is_some()
        });
        let bucket = opened.unwrap();
        bucket.ensure_index(&by_n(), false).unwrap();
        Self::of(bucket)
    }

    /// A consumer of a bucket that is open.
    pub(crate) fn of(bucket: Bucket) -> Self {
        Self { bucket: Arc::new(bucket), following: None, told: Arc::default() }
    }

    /// Follows to the end.
    pub(crate) fn once(&self, producer: &Producer) -> FollowReport {
        self.bucket.follow(&follow(producer, true), &watchdog(), &mut |_| {}).unwrap()
    }

    /// Begins to follow, on a thread of its own.
    pub(crate) fn begin(&mut self, options: FollowOptions) {
        let (cancel, bucket) = (Cancel::new(), Arc::clone(&self.bucket));
        let until = Until::new(None, cancel.clone());
        let told = Arc::clone(&self.told);
        let follow = move || {
            let ended = bucket.follow(&options, &until, &mut |at| *told.lock() = format!("{at:?}"));
            *told.lock() = format!("{ended:?}");
            ended
        };
        self.following = Some((cancel, thread::spawn("t-follow", follow).unwrap()));
    }

    /// Ends what was begun.
    pub(crate) fn end(&mut self) -> Result<FollowReport, IntakeError> {
        let (cancel, thread) = self.following.take().unwrap();
        cancel.cancel();
        thread.join(&watchdog()).unwrap()
    }

    /// Waits until what was begun ends by itself.
    pub(crate) fn join(&mut self) -> Result<FollowReport, IntakeError> {
        let (_, thread) = self.following.take().unwrap();
        thread.join(&watchdog()).unwrap()
    }

    /// The entries of the index `by_n`.
    pub(crate) fn indexed(&self) -> BTreeSet<(i64, String)> {
        self.indexed_by(&by_n())
    }

    /// The same of another index. One that is filled still is waited for.
    pub(crate) fn indexed_by(&self, index: &IndexDefinition) -> BTreeSet<(i64, String)> {
        let mut begun = None;
        eventually("the index is built", || {
            begun = match self.bucket.scan(index.name(), &KeyRange::default(), false, &forever()) {
                Err(IndexError::Building { .. }) => None,
                scan => Some(scan.unwrap()),
            };
            begun.is_some()
        });
        begun.unwrap().map(|found| found.unwrap()).map(|entry| (number(&entry.key[0]), entry.id)).collect()
    }

    /// Waits until every vbucket is where the producer is, and the index `by_n` is finished.
    pub(crate) fn catch_up(&self, producer: &Producer) {
        let what = || format!("everything is there; {}", self.compare(producer));
        let is_finished = || self.bucket.describe().indexes[0].state == IndexState::Ready;
        eventually_or(what, || self.reached() == producer.highs() && is_finished());
    }

    /// Waits until the index holds what the producer has, also where that has other changes at the same seqnos.
    pub(crate) fn settle(&self, producer: &Producer) {
        let what = || format!("the index holds what the producer has; {}", self.compare(producer));
        eventually_or(what, || self.reached() == producer.highs() && self.indexed() == expected(producer));
    }

    /// What there is and what there should be, for a message.
    fn compare(&self, producer: &Producer) -> String {
        let (reached, highs, told) = (self.reached(), producer.highs(), self.told.lock());
        format!("reached {reached:?} of {highs:?}, following: {told}; {}", producer.describe())
    }

    /// The seqno that each vbucket has, where there are any.
    pub(crate) fn reached(&self) -> Vec<u64> {
        let inst = self.bucket.describe().indexes[0].inst;
        let mut reached = vec![0; usize::from(self.bucket.describe().spec.vbuckets)];
        for shard in self.bucket.shards() {
            for (vb, position) in shard.positions(inst).unwrap().iter() {
                reached[usize::from(vb.0)] = position.seqno.0;
            }
        }
        reached
    }

    /// Ends what never ends by itself, and checks what the index holds.
    pub(crate) fn finish(self, producer: Producer) {
        self.settle(&producer);
        self.stop(producer);
    }

    /// Ends what never ends by itself.
    pub(crate) fn stop(mut self, producer: Producer) {
        assert!(matches!(self.end(), Err(IntakeError::Stopped { .. })));
        self.close();
        producer.check();
    }

    pub(crate) fn close(self) {
        assert!(self.following.is_none(), "it is followed still");
        let bucket = Arc::try_unwrap(self.bucket).ok().unwrap();
        bucket.close(&watchdog()).unwrap();
    }
}

/// What the index `by_n` has to hold.
pub(crate) fn expected(producer: &Producer) -> BTreeSet<(i64, String)> {
    let entry = |(id, value): (String, Vec<u8>)| {
        let value: Value = serde_json::from_slice(&value).unwrap();
        (number(&value["n"]), id)
    };
    producer.contents().into_iter().map(entry).collect()
}

/// Changes documents at random.
pub(crate) fn write(producer: &Producer, dice: &mut Dice, changes: u64) {
    let vbuckets = producer.highs().len() as u64;
    for _ in 0..changes {
        let vb = u16::try_from(dice.below(vbuckets)).unwrap();
        let id = format!("d{vb}-{:03}", dice.below(200));
        match dice.below(10) {
            0..7 => producer.put(vb, &id, &json!({ "n": dice.below(1000) }).to_string()),
            7 => producer.change(vb, &id, What::Expire),
            8 => producer.delete(vb, &id),
            _ => producer.change_in(8, vb, &id, What::Delete),
        };
    }
}
