//! Taking changes in: what an [ingest](super::ingest) of files and [following](super::following) a cluster have in
//! common.
//!
//! ```text
//! the bucket's turn ──> a data path, and what feeds it ──> run ──> both are ended ──> commit ──> what came of it
//! ```
//!
//! Everything happens on the caller's thread but reading and the data path, whose threads are joined before the call
//! returns. However it ends, what was applied is committed: a bad line, a lost cluster, an interrupt, a failed disk and
//! a panic in the host's callback keep every change before them.
//!
//! Invariants:
//! * A bucket has one intake at a time, and takes writes of its generation alone.
//! * Nothing here waits for a disk beyond its limit. Threads that do are named, and are the bucket's.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::MutexGuard;
use slog::warn;

use crate::event::{ByteBudget, EventBatch, Generation, VbId};
use crate::pause::Refusal;
use crate::projector::{
    EndReason, Endpoint, Engine, Feed, FeedError, Keyspace, KvDataConfig, RequestError, WorkerStats,
};
use crate::shard::ApplyError;
use crate::thread::{Stopped, Until};
use crate::timestamp::TsVbuuid;

use super::bucket::Bucket;
use super::calls::Call;
use super::intake_error::IntakeError;
use super::leftovers::Leftover;
use super::meta::{BucketName, IndexEntry, SourceKind};

/// How often the caller is told of progress.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// What the end of an intake may take after its limit has passed: to close, to join and to commit.
const GRACE: Duration = Duration::from_secs(30);

/// What takes changes in, once its threads were started.
pub(super) trait Intake {
    /// A look at how far it is.
    type Progress;
    /// What came of it.
    type Outcome;

    /// Goes on until there is an end.
    fn run(
        &mut self,
        until: &Until,
        on_progress: &mut dyn FnMut(Self::Progress),
    ) -> Result<Self::Outcome, Broken>;

    /// Takes out what has threads, and tells what feeds the data paths to end.
    fn take_started(&mut self) -> Started;

    /// Changes that came, once it has ended and what was applied is committed.
    fn kept(&self) -> u64;
}

/// What ended an intake before it had come to its end.
pub(super) enum Broken {
    Stopped(Stopped),
    /// A data path ended, and its fin says why.
    Ended,
    Failed(IntakeError),
}

impl Broken {
    /// The same, unless the limit has ended: then that is what ended the intake.
    pub(super) fn unless_ended(self, until: &Until) -> Self {
        until.check().map_or_else(Self::Stopped, |()| self)
    }
}

impl From<IntakeError> for Broken {
    fn from(error: IntakeError) -> Self {
        Self::Failed(error)
    }
}

impl From<RequestError> for Broken {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Stopped(why) => Self::Stopped(why),
            RequestError::Closed | RequestError::Busy => Self::Ended,
        }
    }
}

impl From<FeedError> for Broken {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Request { error, .. } => error.into(),
            _ => Self::Ended,
        }
    }
}

/// What an intake has started: data paths, and what feeds them.
pub(super) struct Started {
    pub(super) feed: Feed,
    pub(super) feeders: Leftover,
}

impl Started {
    /// Data paths that nothing feeds yet.
    pub(super) fn unfed(feed: Feed) -> Self {
        Self { feed, feeders: Box::new(|_| Vec::new()) }
    }

    /// Ends the data paths first, then what feeds them, and joins all their threads. Gives back why a data path ended,
    /// and the names of the threads that do not end; the call may then be repeated.
    fn end(&mut self, until: &Until) -> (Option<EndReason>, Vec<String>) {
        let (mut reason, mut running) = (None, Vec::new());
        for keyspace in self.feed.keyspaces() {
            match self.feed.stop(&keyspace, until) {
                Ok(Some(EndReason::Closed) | None) => {}
                Ok(ended) => reason = reason.or(ended),
                Err(still) => running.extend(still.threads),
            }
        }
        running.extend((self.feeders)(until));
        (reason, running)
    }
}

/// What a data path is to be.
pub(super) struct PathSpec<'a> {
    pub(super) keyspace: Keyspace,
    pub(super) generation: Generation,
    pub(super) endpoint: Arc<dyn Endpoint>,
    pub(super) engines: Vec<Engine>,
    /// Where its streams begin.
    pub(super) start: &'a TsVbuuid,
}

/// A data path that runs.
pub(super) struct DataPath {
    pub(super) keyspace: Keyspace,
    pub(super) upstream: Sender<EventBatch>,
    pub(super) budget: ByteBudget,
    pub(super) stats: Arc<WorkerStats>,
}

/// The bucket's only intake, until this is dropped.
pub(super) struct Turn<'b> {
    _only_one: MutexGuard<'b, ()>,
    call: Call,
}

impl Turn<'_> {
    /// The caller's limit, which also a close ends.
    pub(super) fn until(&self) -> &Until {
        self.call.until()
    }
}

impl SourceKind {
    /// What taking changes in from there is called, before the bucket's name.
    fn doing(self) -> &'static str {
        match self {
            Self::Files => "ingest into",
            Self::Couchbase => "follow into",
        }
    }

    fn call(self) -> &'static str {
        match self {
            Self::Files => "an ingest",
            Self::Couchbase => "following",
        }
    }
}

impl Bucket {
    /// Takes the turn, if the bucket takes changes from there.
    pub(super) fn begin_intake(&self, source: SourceKind, until: &Until) -> Result<Turn<'_>, IntakeError> {
        let call = self.begin_call::<IntakeError>(source.call(), until)?;
        let (doing, bucket) = (source.doing(), self.name());
        let Some(only_one) = self.ingesting.try_lock() else {
            return Err(IntakeError::Busy { doing, bucket });
        };
        match self.closed_for_writes() {
            Some(Refusal::Asleep { archive, .. }) => {
                return Err(IntakeError::Paused { doing, bucket, archive });
            }
            Some(refusal) => return Err(IntakeError::InDoubt { doing, bucket, refusal }),
            None => {}
        }
        let kind = self.meta().spec.source;
        if kind != source {
            return Err(IntakeError::SourceKind { doing, bucket, kind });
        }
        Ok(Turn { _only_one: only_one, call })
    }

    /// What the bucket's intake does and with which bucket, for its errors.
    pub(super) fn intake(&self) -> (&'static str, BucketName) {
        let meta = self.meta();
        (meta.spec.source.doing(), meta.name.clone())
    }

    /// The engines of some indexes.
    pub(super) fn engines_where(&self, wanted: impl Fn(&IndexEntry) -> bool) -> Vec<Engine> {
        let meta = self.meta();
        let engine =
            |entry: &IndexEntry| Engine { inst: entry.inst, evaluator: Arc::new(entry.definition.clone()) };
        meta.indexes.iter().filter(|entry| wanted(entry)).map(engine).collect()
    }

    /// Holds a message when a shard applied something.
    pub(super) fn watch_shards(&self) -> Receiver<()> {
        let (wake, applied) = bounded(1);
        self.shards().iter().for_each(|shard| shard.watch(wake.clone()));
        applied
    }

    /// Lets the shards take writes of a new generation, and of no older one.
    pub(super) fn fence_shards(&self, until: &Until) -> Result<Generation, IntakeError> {
        let (generation, vbuckets) = (self.next_generation(), self.meta().spec.vbuckets);
        for shard in self.shards() {
            shard
                .install_generation((0..vbuckets).map(VbId), generation, until)
                .map_err(|why| self.explain(Broken::Stopped(why), None, 0))?;
        }
        Ok(generation)
    }

    /// Starts a data path. Where that fails what was started of it is the feed's.
    pub(super) fn start_path(
        &self,
        feed: &mut Feed,
        path: PathSpec<'_>,
        until: &Until,
    ) -> Result<DataPath, IntakeError> {
        let PathSpec { keyspace, generation, endpoint, engines, start } = path;
        let (spec, config) = (self.meta().spec, &self.config);
        let (upstream, batches) = bounded(config.queue_batches.max(1));
        let shape = KvDataConfig {
            number: u16::try_from(feed.keyspaces().len()).unwrap_or(u16::MAX),
            workers: config.workers.clamp(1, spec.shards),
            vbuckets: spec.vbuckets,
            shards: spec.shards,
            worker_queue_batches: config.queue_batches,
        };
        let stats = feed
            .start(&keyspace, generation, &shape, &endpoint, batches, engines, start, until)
            .and_then(|()| Ok(feed.kvdata(&keyspace)?.worker_stats()))
            .map_err(|error| {
                let (doing, bucket) = self.intake();
                IntakeError::Feed { doing, bucket, error }
            })?;
        Ok(DataPath { keyspace, upstream, budget: ByteBudget::new(config.budget_bytes), stats })
    }

    /// Ends what was started of an intake that does not begin, and tells why.
    pub(super) fn give_up(&self, started: Started, broken: Broken, until: &Until) -> IntakeError {
        // The first error says more than threads that are still running.
        let (fin, _) = self.end_or_leave(started);
        self.explain(broken.unless_ended(until), fin, 0)
    }

    /// Runs what was started to its end and takes it down. Gives back what came of it, and the changes that came.
    pub(super) fn take_in<I: Intake>(
        &self,
        intake: &mut I,
        until: &Until,
        on_progress: &mut dyn FnMut(I::Progress),
    ) -> Result<(I::Outcome, u64), IntakeError> {
        let mut on_progress = |at: I::Progress| {
            // What is written meanwhile must not pile up behind a scan that somebody forgot.
            self.scans.end_old();
            on_progress(at);
        };
        // A panic of the callback goes on to the host once the threads that would go on without it are taken down.
        let ran = catch_unwind(AssertUnwindSafe(|| intake.run(until, &mut on_progress)));
        let (fin, threads) = self.end_or_leave(intake.take_started());
        // Also after a failure: what was applied is kept.
        let committed = self.set.commit(&Until::within(GRACE));
        let kept = intake.kept();
        match ran.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok(outcome) => {
                committed?;
                if threads.is_empty() {
                    return Ok((outcome, kept));
                }
                let (doing, bucket) = self.intake();
                Err(IntakeError::StillRunning { doing, bucket, threads })
            }
            Err(broken) => {
                match (&broken, committed) {
                    (_, Ok(())) => {}
                    // That error would say what is kept, which is not true.
                    (Broken::Stopped(_), Err(error)) => return Err(error.into()),
                    (_, Err(error)) => {
                        warn!(
                            self.logger,
                            "what was applied since the last recovery point may not be durable: {error}"
                        );
                    }
                }
                Err(self.explain(broken, fin, kept))
            }
        }
    }

    /// Ends what an intake has started, as [`Started::end`] does. What does not end in time is the bucket's, until it is
    /// closed.
    fn end_or_leave(&self, mut started: Started) -> (Option<EndReason>, Vec<String>) {
        let (fin, threads) = started.end(&Until::within(GRACE));
        if !threads.is_empty() {
            warn!(self.logger, "threads of an intake are still running"; "threads" => threads.join(", "));
            self.leftovers.keep(Box::new(move |until| started.end(until).1));
        }
        (fin, threads)
    }

    /// The error of an intake that came to no end.
    pub(super) fn explain(&self, broken: Broken, fin: Option<EndReason>, kept: u64) -> IntakeError {
        let (doing, bucket) = self.intake();
        match (broken, fin.unwrap_or(EndReason::Closed)) {
            (Broken::Failed(error), _) => error,
            (Broken::Stopped(why), _) => IntakeError::Stopped { doing, bucket, why, kept },
            (Broken::Ended, EndReason::Endpoint(error)) => match error.downcast_ref::<ApplyError>() {
                Some(ApplyError::Sealed { by, .. }) => {
                    IntakeError::PutToSleep { doing, bucket, by: by.clone() }
                }
                _ => IntakeError::DataPath { doing, bucket, reason: EndReason::Endpoint(error) },
            },
            (Broken::Ended, reason) => IntakeError::DataPath { doing, bucket, reason },
        }
    }
}
