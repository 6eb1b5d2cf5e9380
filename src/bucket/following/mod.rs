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
//!   [map](topology) is asked for every few seconds, also of nodes that think they are what it says. A request that is not
//!   answered ends its [connection](links), whatever noops come. [`FollowProgress`] tells the streams that are open and
//!   those that are to be, and how far each vbucket is behind.
//! * *A position that the server does not know*, or that cannot be read. The first takes the shard to a recovery point
//!   of its own that fits, or to zero; there is no way to pass over what is missing, as an index without it is none. The
//!   second is an error that names the file.
//! * *A lag that is none, or none that is one.* It is measured against the collection's own last seqno, and what moves a
//!   stream on without a document counts. It is unknown where a node has not told, as after a move, and idle is only
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
mod follower;
mod jobs;
mod links;
mod manifests;
mod notes;
mod rolling;
mod streams;
mod topology;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use slog::{info, warn};

use crate::event::{StreamEndReason, StreamStatus, VbId};
use crate::pause::Refusal;
use crate::projector::{EndReason, FeedError};
use crate::shard::{ApplyError, CommitError, ReadError, RollBackError};
use crate::source::dcp::{
    Cluster, ClusterError, ClusterMap, ConnectionError, DcpRequestError, NodeAddress, Status,
};
use crate::thread::{self, Panicked, RecvError, Stopped, Until};

use super::bucket::Bucket;
use super::error::{Closed, Forked};
use super::ingest::GRACE;
use super::meta::{BucketName, BucketSpec, MetaError, SourceKind};
use super::pausing::millis;
use follower::{Broken, Follower, LeftOut};
use jobs::{Done, Jobs};

/// What the job that asks for the first map may take to end once nobody waits for it any more.
const MAP_GRACE: Duration = Duration::from_secs(1);

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

/// Why following did not come to its end. Unless a commit failed, what was applied is durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The bucket was closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The bucket sleeps.
    #[error("cannot follow into bucket {bucket}: it is paused in {archive}; resume it first")]
    Paused {
        /// The bucket.
        bucket: BucketName,
        /// Where it sleeps.
        archive: String,
    },
    /// It may sleep.
    #[error("cannot follow into bucket {bucket}: {refusal}")]
    InDoubt {
        /// The bucket.
        bucket: BucketName,
        /// The pause, its archive, and the way out.
        refusal: Refusal,
    },
    /// It was put to sleep meanwhile.
    #[error("following ended: bucket {bucket} was put to sleep by {by}; resume it and follow again")]
    PutToSleep {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        by: String,
    },
    /// Another ingest runs.
    #[error("cannot follow into bucket {bucket}: another ingest is running; wait for it to end")]
    Busy {
        /// The bucket.
        bucket: BucketName,
    },
    /// The bucket was made for something else.
    #[error(
        "cannot follow into bucket {bucket}: it was made for {kind} as its source, which is fixed; take another bucket"
    )]
    Source {
        /// The bucket.
        bucket: BucketName,
        /// What it was made for.
        kind: SourceKind,
    },
    /// It has no index: there would be nothing to keep positions with.
    #[error("cannot follow into bucket {bucket}: it has no index; create one first")]
    NoIndex {
        /// The bucket.
        bucket: BucketName,
    },
    /// The numbers of vbuckets differ.
    #[error(
        "cannot follow into bucket {bucket}: the cluster's has {there} vbuckets and this one was made with {here}; \
         take a new bucket"
    )]
    Vbuckets {
        /// The bucket.
        bucket: BucketName,
        /// The number here.
        here: u16,
        /// The number there.
        there: u16,
    },
    /// The cluster.
    #[error("cannot follow into bucket {bucket}: {error}")]
    Cluster {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: ClusterError,
    },
    /// A stream was refused for good.
    #[error("cannot follow into bucket {bucket}: vbucket {vb}: {status}; what was applied is kept; {}", way_out(*.status))]
    Refused {
        /// The bucket.
        bucket: BucketName,
        /// The vbucket.
        vb: VbId,
        /// What the producer answered.
        status: StreamStatus,
    },
    /// A node stays behind on the bucket's collections.
    #[error(
        "cannot follow into bucket {bucket}: the node of vbucket {vb} has not heard of the bucket's newest collections \
         for {seconds} seconds; what was applied is kept; see that it is in touch with its cluster, and follow again"
    )]
    ManifestBehind {
        /// The bucket.
        bucket: BucketName,
        /// The vbucket.
        vb: VbId,
        /// How long it was asked again and again.
        seconds: u64,
    },
    /// A stream ended for good.
    #[error(
        "cannot follow into bucket {bucket}: the stream of vbucket {vb} ended: {reason}; what was applied is kept; see          that the user may read the bucket and that what is followed there exists, and follow again"
    )]
    StreamLost {
        /// The bucket.
        bucket: BucketName,
        /// The vbucket.
        vb: VbId,
        /// Why.
        reason: StreamEndReason,
    },
    /// A stream could not be asked for.
    #[error("cannot follow into bucket {bucket}: {error}")]
    Request {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: DcpRequestError,
    },
    /// A node does not tell how far its vbuckets are.
    #[error("cannot tell how far bucket {bucket} is behind: {error}")]
    Seqnos {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: DcpRequestError,
    },
    /// A node sends what makes no sense, each time that it is asked.
    #[error(
        "cannot follow into bucket {bucket}: what node {node} sends makes no sense, {times} times at the same place:          {error}; what was applied is kept; see that nothing between here and the node changes what is sent, and          report it where that is so"
    )]
    Malformed {
        /// The bucket.
        bucket: BucketName,
        /// The node.
        node: NodeAddress,
        /// How often.
        times: u32,
        /// What is wrong with it.
        error: ConnectionError,
    },
    /// A connection ended without a reason.
    #[error("cannot follow into bucket {bucket}: a connection's thread failed; follow again")]
    ConnectionBroke {
        /// The bucket.
        bucket: BucketName,
    },
    /// A shard could not be rolled back.
    #[error("cannot follow into bucket {bucket}: {error}")]
    RollBack {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: RollBackError,
    },
    /// A shard's recovery points could not be read.
    #[error("cannot roll bucket {bucket} back: {error}")]
    Points {
        /// The bucket.
        bucket: BucketName,
        /// What failed.
        error: ReadError,
    },
    /// The data path failed.
    #[error("cannot follow into bucket {bucket}: {reason}")]
    DataPath {
        /// The bucket.
        bucket: BucketName,
        /// Why it ended.
        reason: EndReason,
    },
    /// The data path did not start.
    #[error("cannot follow into bucket {bucket}: {error}")]
    Feed {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: FeedError,
    },
    /// A thread panicked.
    #[error("cannot follow into bucket {bucket}: {panicked}")]
    Panicked {
        /// The bucket.
        bucket: BucketName,
        /// What it said.
        panicked: Panicked,
    },
    /// The caller's limit ended.
    #[error("following into bucket {bucket} ended: {why}; the {kept} changes that came are kept")]
    Stopped {
        /// The bucket.
        bucket: BucketName,
        /// What ended it.
        why: Stopped,
        /// Changes that were evaluated.
        kept: u64,
    },
    /// Threads could not be started.
    #[error(
        "cannot follow into bucket {bucket}: no thread could be started: {source}; raise the limit of threads"
    )]
    Spawn {
        /// The bucket.
        bucket: BucketName,
        /// What the system said.
        source: std::io::Error,
    },
    /// Threads hang, in a disk, in names or in the host's code.
    #[error(
        "following into bucket {bucket} ended, but these threads are still running: {}; close the bucket to wait for \
         them", threads.join(", ")
    )]
    StillRunning {
        /// The bucket.
        bucket: BucketName,
        /// Their names.
        threads: Vec<String>,
    },
    /// What was applied is not durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The bucket's metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// What may be done about a stream that is refused for good.
fn way_out(status: StreamStatus) -> &'static str {
    match status {
        StreamStatus::UnknownCollection | StreamStatus::UnknownScope => {
            "follow what exists there, into a new bucket"
        }
        StreamStatus::Refused { status }
            if [Status::AUTH_ERROR, Status::EACCESS].contains(&Status(status)) =>
        {
            "let the user read the bucket's changes, and follow again"
        }
        _ => "follow again, and where that comes again into a new bucket; report it, with the node's log",
    }
}

fn check_vbuckets(bucket: BucketName, spec: BucketSpec, map: &ClusterMap) -> Result<(), FollowError> {
    let (here, there) = (spec.vbuckets, map.vbuckets());
    if here == there { Ok(()) } else { Err(FollowError::Vbuckets { bucket, here, there }) }
}

impl Bucket {
    /// Follows a bucket of a cluster until what `options` say, or until the limit ends. `on_progress` is called on
    /// this thread, several times a second. Without `once` and `idle_after` nothing but the limit ends it, with
    /// [`FollowError::Stopped`], which is no failure then: what was applied is durable.
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
    ) -> Result<FollowReport, FollowError> {
        let began = Instant::now();
        let call = self.begin_call::<FollowError>("following", until)?;
        let until = call.until();
        let bucket = self.name();
        let busy = || FollowError::Busy { bucket: bucket.clone() };
        let _only_one = self.ingesting.try_lock().ok_or_else(busy)?;
        self.admit_following()?;
        let map = self.fetch_first_map(&options.cluster, until)?;
        check_vbuckets(bucket.clone(), self.describe().spec, &map)?;
        let mut worker = Follower::start(self, options, map, until)?;
        let mut on_progress = |at: FollowProgress| {
            // What is written meanwhile must not pile up behind a scan that somebody forgot.
            self.scans.end_old();
            on_progress(at);
        };
        // A panic of the callback goes on to the host once the threads that would go on without it are taken down.
        let ran = catch_unwind(AssertUnwindSafe(|| worker.run(until, &mut on_progress)));
        let mut started = worker.take_started();
        let taken_down = started.end(&Until::within(GRACE));
        // Also after a failure: what was applied is kept.
        let committed = self.set.commit(&Until::within(GRACE));
        let (fin, still_running) = match taken_down {
            Ok(fin) => (fin, None),
            Err(threads) => {
                warn!(self.logger, "threads of a follower are still running"; "threads" => threads.join(", "));
                self.leftovers.keep(started.into_leftover());
                (None, Some(FollowError::StillRunning { bucket: bucket.clone(), threads }))
            }
        };
        let kept = worker.documents();
        let end = match ran.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok(end) => committed.map(|()| end)?,
            Err(Broken::Ended) => return Err(self.explain_end(fin)),
            Err(Broken::Failed(error)) => {
                if let Err(commit) = committed {
                    warn!(
                        self.logger,
                        "what was applied since the last recovery point may not be durable: {commit}"
                    );
                }
                return Err(error);
            }
            // It says what is kept, which is not true where the commit failed.
            Err(Broken::Stopped(why)) => {
                committed?;
                return Err(FollowError::Stopped { bucket, why, kept });
            }
        };
        still_running.map_or(Ok(()), Err)?;
        let LeftOut { quarantined, oversize_keys } = worker.left_out();
        let (roll_backs, total_ms) = (worker.rolled_back, millis(began));
        info!(self.logger, "followed"; "documents" => kept, "ms" => total_ms);
        Ok(FollowReport { bucket, end, documents: kept, quarantined, oversize_keys, roll_backs, total_ms })
    }

    /// The cluster's map, asked for by a job: nobody can end what looks a name up.
    fn fetch_first_map(&self, cluster: &Cluster, until: &Until) -> Result<ClusterMap, FollowError> {
        let bucket = self.name();
        let mut jobs = Jobs::new();
        let (asked, logger) = (cluster.clone(), self.logger.clone());
        jobs.start(move |until| Done::Map(asked.fetch_map(&asked.seeds, &logger, until)))
            .map_err(|source| FollowError::Spawn { bucket: bucket.clone(), source })?;
        let fetched = thread::recv(jobs.outcomes(), until);
        let running = jobs.end(&Until::within(MAP_GRACE));
        if !running.is_empty() {
            warn!(self.logger, "a thread that asks for a cluster's map is still running"; "threads" => running.join(", "));
            self.leftovers.keep(Box::new(move |until| jobs.end(until)));
        }
        match fetched {
            Ok(Done::Map(Ok(map))) => Ok(map),
            Ok(Done::Map(Err(error))) => Err(FollowError::Cluster { bucket, error }),
            Ok(Done::Panicked(panicked)) => Err(FollowError::Panicked { bucket, panicked }),
            Err(RecvError::Stopped(why)) => Err(FollowError::Stopped { bucket, why, kept: 0 }),
            // It has this one outcome.
            Ok(_) | Err(RecvError::Closed) => Err(FollowError::ConnectionBroke { bucket }),
        }
    }

    fn admit_following(&self) -> Result<(), FollowError> {
        let bucket = self.name();
        match self.closed_for_writes() {
            Some(Refusal::Asleep { archive, .. }) => return Err(FollowError::Paused { bucket, archive }),
            Some(refusal) => return Err(FollowError::InDoubt { bucket, refusal }),
            None => {}
        }
        let meta = self.meta();
        match meta.spec.source {
            SourceKind::Couchbase if meta.indexes.is_empty() => Err(FollowError::NoIndex { bucket }),
            SourceKind::Couchbase => Ok(()),
            kind @ SourceKind::Files => Err(FollowError::Source { bucket, kind }),
        }
    }

    fn explain_end(&self, fin: Option<EndReason>) -> FollowError {
        let bucket = self.name();
        match fin.unwrap_or(EndReason::Closed) {
            EndReason::Endpoint(error) => match error.downcast_ref::<ApplyError>() {
                Some(ApplyError::Sealed { by, .. }) => FollowError::PutToSleep { bucket, by: by.clone() },
                _ => FollowError::DataPath { bucket, reason: EndReason::Endpoint(error) },
            },
            reason => FollowError::DataPath { bucket, reason },
        }
    }
}
