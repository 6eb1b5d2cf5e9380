//! Following a bucket of a Couchbase cluster: its changes come in until there is an end, or until somebody ends it.
//!
//! ```text
//!  cluster map ──> links (connections to nodes) ──> one data path ──> shards
//!       ▲                ▲                                              │
//!       └──── follower: asks for streams, from where the shards stand <─┘ notes: begun, refused, ended
//! ```
//!
//! The [follower](follower::Follower) runs on the caller's thread. A stream begins where the instances stand that it
//! fills. A stream that ends is asked for again once everything that it
//! brought is applied; where the producer has lost what a shard has, the shard is [rolled back](rolling). A new index
//! over data that is there is [built](building) by streams of its own.
//!
//! All nodes feed one data path. A connection has its own threads, window and queue, so a node that is slow or stuck
//! holds up its own vbuckets alone; what all of them share, the channel to the workers and the byte budget, is held up
//! by shards, and those belong to no node. A data path for each node would take two threads and two for each worker
//! more, and a vbucket that moves would have to leave one path before another may write to its shard.
//!
//! What users of such streams have trouble with elsewhere, and what is done about it here:
//! * *A vbucket that stops silently.* A stream is asked for again whatever ended it, but for what an error says. The
//!   [map](topology) is asked for every few seconds, also of nodes that think they are what it says. A request that is
//!   not answered ends its [connection](links), whatever noops come. [`FollowProgress`] tells the streams that are open
//!   and those that are to be, and how far each vbucket is behind.
//! * *A position that the server does not know*, or that cannot be read. The first takes the shard to a recovery point
//!   of its own that fits, or to zero; there is no way to pass over what is missing, as an index without it is none.
//!   The second is an error that names the file.
//! * *A lag that is none, or none that is one.* It is measured against the collection's own last seqno, and what moves
//!   a stream on without a document counts. It is unknown where a node has not told, as after a move, and idle is only
//!   what nodes say so of afterwards.
//! * *Noise.* A stream is that of one collection, so what the server keeps for itself elsewhere does not come, and
//!   records of transactions are passed over where documents are evaluated.
//! * *Memory, and connections that are given up though they live.* A connection holds its window and no more, what all
//!   have handed on has a budget, and noops are answered whoever is locked. One is given up when nothing came for two
//!   intervals of noops. Its name is short. Waiting for a node's disk is there for who asks for it.
//!
//! Invariants:
//! * Nothing here remembers how far a stream was: positions are those of the shards, so a crash changes nothing.
//! * A vbucket has one stream at most, wherever it moves.
//! * However following ends, what was applied is committed.

mod backoff;
mod building;
mod cause;
mod follower;
mod jobs;
mod links;
mod manifests;
mod notes;
mod rolling;
mod streams;
mod topology;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use slog::{Logger, debug, info, warn};

use crate::event::VbId;
use crate::source::dcp::{Cluster, ClusterError, ClusterMap};
use crate::thread::{self, Failure, RecvError, Until};

use super::bucket::Bucket;
use super::intake::Broken;
use super::intake_error::IntakeError;
use super::meta::{BucketName, SourceKind};
use super::pausing::millis;
use backoff::{Backoff, chance};
pub use cause::FollowCause;
use follower::{Follower, LeftOut};
use jobs::{Done, Jobs};

/// What the job that asks for the first map may take to end once nobody waits for it any more.
const MAP_GRACE: Duration = Duration::from_secs(1);

/// How long a cluster that refuses at once is asked for its first map: a node may be starting, a connection may be cut.
const FIRST_MAP_LIMIT: Duration = Duration::from_secs(2);

/// What is followed, and for how long.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// The cluster, and the bucket there.
    pub cluster: Cluster,
    /// Connections to each node; zero counts as one.
    pub connections: u16,
    /// Stop at the seqnos that the nodes have when it begins.
    pub once: bool,
    /// Stop when no change came for that long.
    pub idle_after: Option<Duration>,
}

/// How far following is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowProgress {
    /// Changes that were evaluated so far.
    pub documents: u64,
    /// Changes that the indexes have not seen yet; unknown until all nodes told how many there are.
    pub lag: Option<u64>,
    /// The same for each vbucket of which that is known.
    pub lags: Arc<BTreeMap<VbId, u64>>,
    /// Streams that are open.
    pub live_streams: usize,
    /// Streams that are to be open.
    pub wanted_streams: usize,
    /// Connections that are open.
    pub connections: usize,
    /// Indexes that are being built from what the bucket held before.
    pub building: usize,
}

/// What ended following.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowEnd {
    /// Everything that was there when it began is applied.
    CaughtUp,
    /// No change came for as long as was asked for.
    Idle,
}

/// What following did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FollowReport {
    /// The bucket.
    pub bucket: BucketName,
    /// What ended it.
    pub end: FollowEnd,
    /// Changes that were applied and are durable, those that came twice counted twice.
    pub documents: u64,
    /// Evaluations that failed; the document has no entry in that index.
    pub quarantined: u64,
    /// Keys that were too long for an index.
    pub oversize_keys: u64,
    /// How often a shard was rolled back because the producer had lost what it had.
    pub roll_backs: u64,
    /// Time from the first connection to the last recovery point.
    pub total_ms: u64,
}

/// The map, asked for again while what fails may pass. A wrong address is told within the limit all the same.
fn first_map(cluster: &Cluster, logger: &Logger, until: &Until) -> Result<ClusterMap, ClusterError> {
    let (mut backoff, limit) = (Backoff::default(), Instant::now() + FIRST_MAP_LIMIT);
    loop {
        let fetched = cluster.ask_for_map(&cluster.seeds, logger, until);
        match fetched {
            Err(error) if error.is_temporary() && Instant::now() < limit => {
                debug!(logger, "the cluster is asked for its map again: {error}");
                backoff.fail(Instant::now(), chance());
                if backoff.wait(until).is_err() {
                    return Err(error);
                }
            }
            fetched => return fetched,
        }
    }
}

impl Bucket {
    /// Follows a bucket of a cluster until what `options` say, or until the limit ends. `on_progress` is called on
    /// this thread, several times a second. Without `once` and `idle_after` nothing but the limit ends it, with
    /// [`IntakeError::Stopped`], which is no failure then: what was applied is durable.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use dormouse::bucket::{BucketConfig, BucketSpec, DataDir, FollowOptions, SourceKind};
    /// use dormouse::source::dcp::{Cluster, ClusterUrl, Login};
    /// use dormouse::thread::Until;
    /// use slog::{Discard, Logger, o};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (until, logger) = (Until::default(), Logger::root(Discard, o!()));
    /// let url: ClusterUrl = "couchbase://me@node1,node2/travel".parse()?;
    /// let login = Login { user: "me".to_owned(), password: "…".to_owned(), plain_without_tls: false };
    /// let mut cluster = Cluster::new(&url, login, None, 1024);
    /// let map = cluster.fetch_map(&cluster.seeds, &logger, &until)?;
    /// cluster.connection.vbuckets = map.vbuckets();
    ///
    /// let data = DataDir::open_or_create("data".as_ref())?;
    /// let spec =
    ///     BucketSpec { source: SourceKind::Couchbase, vbuckets: map.vbuckets(), ..BucketSpec::default() };
    /// let bucket = data.create_bucket(&"travel".parse()?, spec, &BucketConfig::default())?;
    /// let idle_after = Some(Duration::from_secs(600));
    /// let options = FollowOptions { cluster, connections: 1, once: false, idle_after };
    /// let followed = bucket.follow(&options, &until, &mut |at| println!("{:?} behind", at.lag))?;
    /// println!("{} changes", followed.documents);
    /// # Ok(())
    /// # }
    /// ```
    pub fn follow(
        &self,
        options: &FollowOptions,
        until: &Until,
        on_progress: &mut dyn FnMut(FollowProgress),
    ) -> Result<FollowReport, IntakeError> {
        let began = Instant::now();
        let turn = self.begin_intake(SourceKind::Couchbase, until)?;
        let until = turn.until();
        if self.meta().indexes.is_empty() {
            return Err(self.cannot_follow(FollowCause::NoIndex));
        }
        let map = self.fetch_first_map(&options.cluster, until)?;
        self.check_vbuckets(&map)?;
        let mut follower = Follower::start(self, options, map, until)?;
        let (end, documents) = self.take_in(&mut follower, until, on_progress)?;
        let LeftOut { quarantined, oversize_keys } = follower.left_out();
        let (bucket, roll_backs, total_ms) = (self.name(), follower.rolled_back, millis(began));
        info!(self.logger, "followed"; "documents" => documents, "ms" => total_ms);
        Ok(FollowReport { bucket, end, documents, quarantined, oversize_keys, roll_backs, total_ms })
    }

    fn cannot_follow(&self, cause: FollowCause) -> IntakeError {
        IntakeError::Cluster { bucket: self.name(), cause }
    }

    fn check_vbuckets(&self, map: &ClusterMap) -> Result<(), IntakeError> {
        let (here, there) = (self.meta().spec.vbuckets, map.vbuckets());
        if here == there { Ok(()) } else { Err(self.cannot_follow(FollowCause::Vbuckets { here, there })) }
    }

    /// The cluster's map, asked for by a job: nobody can end what looks a name up.
    fn fetch_first_map(&self, cluster: &Cluster, until: &Until) -> Result<ClusterMap, IntakeError> {
        let mut jobs = Jobs::new();
        let (asked, logger) = (cluster.clone(), self.logger.clone());
        jobs.start(move |until| Done::Map(first_map(&asked, &logger, until))).map_err(|source| {
            let (doing, bucket) = self.intake();
            IntakeError::Spawn { doing, bucket, source }
        })?;
        let fetched = thread::recv(jobs.outcomes(), until);
        let running = jobs.end(&Until::within(MAP_GRACE));
        if !running.is_empty() {
            warn!(self.logger, "a thread that asks for a cluster's map is still running"; "threads" => running.join(", "));
            self.leftovers.keep(Box::new(move |until| jobs.end(until)));
        }
        match fetched {
            Ok(Done::Map(Ok(map))) => Ok(map),
            Ok(Done::Map(Err(error))) => Err(self.cannot_follow(error.into())),
            Ok(Done::Panicked(panicked)) => {
                let (doing, bucket) = self.intake();
                Err(IntakeError::Panicked { doing, bucket, panicked })
            }
            Err(RecvError::Stopped(why)) => Err(self.explain(Broken::Stopped(why), None, 0)),
            // It has this one outcome.
            Ok(_) | Err(RecvError::Closed) => Err(self.cannot_follow(FollowCause::ConnectionBroke)),
        }
    }
}
