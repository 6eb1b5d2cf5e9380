//! Ingesting files: the data path is built, what replays the files runs, and both are taken down again in order.
//!
//! Everything happens on the caller's thread but the reading and the data path, whose threads are joined before
//! the call returns. However it ends, what was applied is committed: a bad line, an interrupt, a failed disk and a
//! panic in the host's callback keep every change before them.
//!
//! Invariant: nothing here waits for a disk beyond its limit. Threads that do are named, and are the bucket's.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, never, select_biased, tick};
use serde::Serialize;
use slog::{info, warn};

use crate::event::{ByteBudget, EventBatch};
use crate::pause::Refusal;
use crate::projector::{
    EndReason, Endpoint, Engine, Feed, FeedError, Keyspace, KvDataConfig, ShardEndpoint, WorkerStats,
};
use crate::shard::{ApplyError, CommitError, Shard};
use crate::source::{
    Input, Replay, ReplayConfig, ReplayEnd, ReplayError, ReplayFormat, ReplayOutcome, ReplayProgress,
};
use crate::thread::{self, Fin, FinHolder, JoinError, Panicked, Stopped, Thread, Until, fin};
use crate::timestamp::TsVbuuid;

use super::bucket::Bucket;
use super::error::{Closed, Forked};
use super::meta::{BucketName, IndexEntry, IndexState, MetaError, SourceKind};

/// How often the caller is told of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// What the end of an ingest may take after its limit has passed: to close, to join and to commit.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// What is ingested, and how. The default takes lines for documents, with their ids in the member `id`.
#[derive(Debug, Clone, Default)]
pub struct IngestOptions {
    /// What a line is.
    pub format: ReplayFormat,
    /// Go on after bad lines, and count them.
    pub skip_bad: bool,
    /// The inputs hold all documents of the bucket: indexes that are unfinished are finished afterwards.
    pub rebuild: bool,
}

/// How far an ingest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngestProgress {
    /// Changes that were handed to the data path.
    pub documents: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes of all inputs, where that is known.
    pub total_bytes: Option<u64>,
}

/// What an ingest did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IngestReport {
    /// The bucket.
    pub bucket: BucketName,
    /// Changes that were applied and are durable.
    pub documents: u64,
    /// Lines that were skipped.
    pub bad_lines: u64,
    /// Evaluations that failed; the document has no entry in that index.
    pub quarantined: u64,
    /// Keys that were too long for an index.
    pub oversize_keys: u64,
    /// Time from the first byte to the last recovery point.
    pub total_ms: u64,
    /// The first of the lines that were skipped, and what is wrong with them.
    pub first_bad_lines: Vec<String>,
}

/// Why an ingest did not come to its end. Unless a commit failed, what `kept` counts is applied and durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The bucket was closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The bucket sleeps.
    #[error("cannot ingest into bucket {bucket}: it is paused in {archive}; resume it first")]
    Paused {
        /// The bucket.
        bucket: BucketName,
        /// Where it sleeps.
        archive: String,
    },
    /// It may sleep.
    #[error("cannot ingest into bucket {bucket}: {refusal}")]
    InDoubt {
        /// The bucket.
        bucket: BucketName,
        /// The pause, its archive, and the way out.
        refusal: Refusal,
    },
    /// It was put to sleep meanwhile.
    #[error("the ingest ended: bucket {bucket} was put to sleep by {by}; resume it and ingest again")]
    PutToSleep {
        /// The bucket.
        bucket: BucketName,
        /// The pause.
        by: String,
    },
    /// Another ingest runs.
    #[error("cannot ingest into bucket {bucket}: another ingest is running; wait for it to end")]
    Busy {
        /// The bucket.
        bucket: BucketName,
    },
    /// The bucket was made for something else.
    #[error(
        "cannot ingest files into bucket {bucket}: it was made for {kind} as its source, which is fixed; take another \
         bucket"
    )]
    SourceKind {
        /// The bucket.
        bucket: BucketName,
        /// What it was made for.
        kind: SourceKind,
    },
    /// An index waits for its documents.
    #[error(
        "cannot ingest into bucket {bucket}: index `{index}` is unfinished; ingest all documents with `rebuild` \
         (--rebuild)"
    )]
    Unfinished {
        /// The bucket.
        bucket: BucketName,
        /// The index.
        index: String,
    },
    /// An input failed.
    #[error("{error}; the {kept} changes before it are kept")]
    Source {
        /// What failed.
        error: ReplayError,
        /// Changes that are kept.
        kept: u64,
    },
    /// The data path failed.
    #[error("cannot ingest into bucket {bucket}: {reason}")]
    DataPath {
        /// The bucket.
        bucket: BucketName,
        /// Why it ended.
        reason: EndReason,
    },
    /// The data path did not start.
    #[error("cannot ingest into bucket {bucket}: {error}")]
    Feed {
        /// The bucket.
        bucket: BucketName,
        /// Why.
        error: FeedError,
    },
    /// The reading thread panicked.
    #[error("cannot ingest into bucket {bucket}: {panicked}")]
    Panicked {
        /// The bucket.
        bucket: BucketName,
        /// What it said.
        panicked: Panicked,
    },
    /// The caller's limit ended.
    #[error(
        "the ingest into bucket {bucket} ended early: {why}; the {kept} changes that were applied are kept"
    )]
    Stopped {
        /// The bucket.
        bucket: BucketName,
        /// What ended it.
        why: Stopped,
        /// Changes that are kept.
        kept: u64,
    },
    /// Threads could not be started.
    #[error(
        "cannot ingest into bucket {bucket}: no thread could be started: {source}; raise the limit of threads"
    )]
    Spawn {
        /// The bucket.
        bucket: BucketName,
        /// What the system said.
        source: std::io::Error,
    },
    /// Threads hang, in a disk or in the host's code.
    #[error(
        "the ingest into bucket {bucket} ended, but these threads are still running: {}; close the bucket to wait for \
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

/// A running data path with what replays files into it.
struct Replaying {
    keyspace: Keyspace,
    feed: Feed,
    /// Kept so that the source's end does not end the data path before everything was applied.
    _upstream: Sender<EventBatch>,
    source: Option<Thread<ReplayOutcome>>,
    source_ended: Fin,
    source_fin: Option<FinHolder>,
    progress: Arc<ReplayProgress>,
    stats: Arc<WorkerStats>,
    /// Holds a message when a shard applied something.
    applied: Receiver<()>,
}

/// What ended a data path before its time.
enum Broken {
    Stopped(Stopped),
    /// Its fin says why.
    Ended,
    Panicked(Panicked),
}

impl Bucket {
    /// Reads all inputs and returns when everything in them is applied and durable. `on_progress` is called on
    /// this thread, several times a second.
    pub fn ingest(
        &self,
        inputs: Vec<Input>,
        options: &IngestOptions,
        until: &Until,
        on_progress: &mut dyn FnMut(IngestProgress),
    ) -> Result<IngestReport, IngestError> {
        let began = Instant::now();
        let call = self.begin_call::<IngestError>("an ingest", until)?;
        let until = call.until();
        let bucket = self.name();
        let busy = || IngestError::Busy { bucket: bucket.clone() };
        let _only_one = self.ingesting.try_lock().ok_or_else(busy)?;
        self.admit(options)?;
        let start = self.start_positions();
        let mut replaying = self.begin(inputs, options, &start, until)?;
        let mut on_progress = |at: IngestProgress| {
            // What is written meanwhile must not pile up behind a scan that somebody forgot.
            self.scans.end_old();
            on_progress(at);
        };
        let run = || replaying.run(self.set.shards(), until, &mut on_progress);
        // A panic of the callback goes on to the host once the threads that would go on without it are taken down.
        let ran = catch_unwind(AssertUnwindSafe(run));
        let taken_down = replaying.take_down(&Until::within(GRACE));
        // Also after a failure: what was applied is kept.
        let committed = self.set.commit(&Until::within(GRACE));
        let kept = self.changes().saturating_sub(start.changes());
        let (progress, stats) = (Arc::clone(&replaying.progress), Arc::clone(&replaying.stats));
        let (fin, still_running) = match taken_down {
            Ok(fin) => (fin, None),
            Err(threads) => (None, Some(self.leave(replaying, threads))),
        };
        // The other errors say what is kept, which is not true where the commit failed.
        let outcome = match ran.unwrap_or_else(|panic| resume_unwind(panic)) {
            Err(broken @ Broken::Ended) => return Err(self.explain(broken, fin, kept)),
            ran => {
                committed?;
                ran.map_err(|broken| self.explain(broken, None, kept))?
            }
        };
        still_running.map_or(Ok(()), Err)?;
        match outcome.end {
            ReplayEnd::Failed(error) => return Err(IngestError::Source { error, kept }),
            ReplayEnd::Stopped => return Err(self.explain(Broken::Stopped(Stopped::Cancelled), None, kept)),
            ReplayEnd::Finished => {}
        }
        if options.rebuild {
            let note = |entry: &mut IndexEntry| entry.state = IndexState::Ready;
            self.change_meta(|meta| meta.indexes.iter_mut().for_each(note))?;
        }
        let report = IngestReport {
            bucket,
            documents: kept,
            bad_lines: progress.bad_lines(),
            quarantined: stats.quarantined(),
            oversize_keys: stats.oversize_keys(),
            total_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            first_bad_lines: outcome.bad_lines.iter().map(ToString::to_string).collect(),
        };
        info!(self.logger, "ingested"; "documents" => report.documents, "ms" => report.total_ms);
        Ok(report)
    }

    /// Keeps what did not end in time, for the bucket's close.
    fn leave(&self, mut replaying: Replaying, threads: Vec<String>) -> IngestError {
        warn!(self.logger, "threads of an ingest are still running"; "threads" => threads.join(", "));
        self.leftovers.keep(Box::new(move |until| replaying.take_down(until).err().unwrap_or_default()));
        IngestError::StillRunning { bucket: self.name(), threads }
    }

    fn admit(&self, options: &IngestOptions) -> Result<(), IngestError> {
        let bucket = self.name();
        match self.closed_for_writes() {
            Some(Refusal::Asleep { archive, .. }) => return Err(IngestError::Paused { bucket, archive }),
            Some(refusal) => return Err(IngestError::InDoubt { bucket, refusal }),
            None => {}
        }
        let meta = self.meta();
        if meta.spec.source != SourceKind::Files {
            return Err(IngestError::SourceKind { bucket, kind: meta.spec.source });
        }
        let unfinished = meta.indexes.iter().find(|entry| entry.state == IndexState::Building);
        match unfinished.filter(|_| !options.rebuild) {
            Some(entry) => {
                Err(IngestError::Unfinished { bucket, index: entry.definition.name().to_string() })
            }
            None => Ok(()),
        }
    }

    /// The engines of some indexes.
    pub(super) fn engines_where(&self, wanted: impl Fn(&IndexEntry) -> bool) -> Vec<Engine> {
        let meta = self.meta();
        let engine =
            |entry: &IndexEntry| Engine { inst: entry.inst, evaluator: Arc::new(entry.definition.clone()) };
        meta.indexes.iter().filter(|entry| wanted(entry)).map(engine).collect()
    }

    fn explain(&self, broken: Broken, fin: Option<EndReason>, kept: u64) -> IngestError {
        let bucket = self.name();
        match (broken, fin.unwrap_or(EndReason::Closed)) {
            (Broken::Stopped(why), _) => IngestError::Stopped { bucket, why, kept },
            (Broken::Panicked(panicked), _) => IngestError::Panicked { bucket, panicked },
            (Broken::Ended, EndReason::Endpoint(error)) => match error.downcast_ref::<ApplyError>() {
                Some(ApplyError::Sealed { by, .. }) => IngestError::PutToSleep { bucket, by: by.clone() },
                _ => IngestError::DataPath { bucket, reason: EndReason::Endpoint(error) },
            },
            (Broken::Ended, reason) => IngestError::DataPath { bucket, reason },
        }
    }

    /// Builds the data path and starts the source.
    fn begin(
        &self,
        inputs: Vec<Input>,
        options: &IngestOptions,
        start: &TsVbuuid,
        until: &Until,
    ) -> Result<Replaying, IngestError> {
        let bucket = self.name();
        let (spec, generation) = (self.meta().spec, self.next_generation());
        let shards = self.set.shards();
        let (wake, applied) = bounded(1);
        for shard in shards {
            shard
                .install_generation(start.iter().map(|(vb, _)| vb), generation, until)
                .map_err(|why| IngestError::Stopped { bucket: bucket.clone(), why, kept: 0 })?;
            shard.watch(wake.clone());
        }
        let keyspace = Keyspace(bucket.to_string());
        let mut feed = Feed::new(&self.logger);
        let endpoint: Arc<dyn Endpoint> = Arc::new(ShardEndpoint::new(shards));
        let (upstream, batches) = bounded(self.config.queue_batches.max(1));
        let kvdata_config = KvDataConfig {
            number: 0,
            workers: self.config.workers.clamp(1, spec.shards),
            vbuckets: spec.vbuckets,
            shards: spec.shards,
            worker_queue_batches: self.config.queue_batches,
        };
        let engines = self.engines_where(|_| true);
        let started =
            feed.start(&keyspace, generation, &kvdata_config, &endpoint, batches, engines, start, until);
        if let Err(error) = started {
            // What did not end within the caller's limit.
            self.stop_feed(feed, keyspace);
            return Err(match until.check() {
                Err(why) => IngestError::Stopped { bucket, why, kept: 0 },
                Ok(()) => IngestError::Feed { bucket, error },
            });
        }
        let stats = feed
            .kvdata(&keyspace)
            .map_err(|error| IngestError::Feed { bucket: bucket.clone(), error })?
            .worker_stats();
        let replay_config = ReplayConfig {
            format: options.format.clone(),
            skip_bad: options.skip_bad,
            batch_bytes: self.config.batch_bytes,
            batch_events: self.config.batch_events,
        };
        let (source_fin, source_stopped) = fin();
        let (ended_holder, source_ended) = fin();
        let budget = ByteBudget::new(self.config.budget_bytes);
        let replay = Replay::new(replay_config, generation, start, upstream.clone(), budget, source_stopped);
        let progress = replay.progress();
        let body = move || {
            // Dropped on every way out, also by a panic.
            let _ended = ended_holder;
            replay.run(inputs)
        };
        let source = match thread::spawn("dm-source", body) {
            Ok(source) => source,
            Err(source) => {
                self.stop_feed(feed, keyspace);
                return Err(IngestError::Spawn { bucket, source });
            }
        };
        Ok(Replaying {
            keyspace,
            feed,
            _upstream: upstream,
            source: Some(source),
            source_ended,
            source_fin: Some(source_fin),
            progress,
            stats,
            applied,
        })
    }
}

impl Bucket {
    /// Ends a data path that nothing was sent into, and keeps it where it does not end.
    fn stop_feed(&self, mut feed: Feed, keyspace: Keyspace) {
        let mut stop = move |until: &Until| match feed.stop(&keyspace, until) {
            Ok(_) => Vec::new(),
            Err(still) => still.threads,
        };
        if !stop(&Until::within(GRACE)).is_empty() {
            self.leftovers.keep(Box::new(stop));
        }
    }
}

impl Replaying {
    /// Waits for the end of the source, and then until everything that it sent is applied.
    fn run(
        &mut self,
        shards: &[Shard],
        until: &Until,
        on_progress: &mut dyn FnMut(IngestProgress),
    ) -> Result<ReplayOutcome, Broken> {
        let ticker = tick(PROGRESS_INTERVAL);
        let timer = until.timer();
        let (never_ended, source_ended) = (never(), self.source_ended.receiver().clone());
        let mut outcome: Option<ReplayOutcome> = None;
        loop {
            if self.feed.has_ended(&self.keyspace) {
                return Err(Broken::Ended);
            }
            if let Some(read) = &outcome
                && shards.iter().all(|shard| shard.covers(&read.reached))
            {
                on_progress(self.progress());
                return outcome.ok_or(Broken::Stopped(Stopped::Cancelled));
            }
            let waits_for_source = if outcome.is_none() { &source_ended } else { &never_ended };
            select_biased! {
                recv(until.cancel().fin().receiver()) -> _ => return Err(Broken::Stopped(Stopped::Cancelled)),
                recv(timer) -> _ => return Err(Broken::Stopped(Stopped::DeadlinePassed)),
                recv(self.feed.woken()) -> _ => {}
                recv(waits_for_source) -> _ => outcome = self.join_source(until)?,
                recv(ticker) -> _ => on_progress(self.progress()),
                recv(self.applied) -> _ => {}
            }
        }
    }

    fn join_source(&mut self, until: &Until) -> Result<Option<ReplayOutcome>, Broken> {
        let Some(source) = self.source.take() else { return Ok(None) };
        match source.join(until) {
            Ok(outcome) => Ok(Some(outcome)),
            Err(JoinError::Panicked(panicked)) => Err(Broken::Panicked(panicked)),
            Err(JoinError::StillRunning(source)) => {
                self.source = Some(source);
                Ok(None)
            }
        }
    }

    fn progress(&self) -> IngestProgress {
        IngestProgress {
            documents: self.progress.documents(),
            read_bytes: self.progress.read_bytes(),
            total_bytes: self.progress.total_bytes(),
        }
    }

    /// Ends the data path first, then the source, and joins their threads. Gives back why the data path ended,
    /// or the names of the threads that do not end; the call may then be repeated.
    fn take_down(&mut self, until: &Until) -> Result<Option<EndReason>, Vec<String>> {
        self.source_fin = None;
        let (fin, mut running) = match self.feed.stop(&self.keyspace, until) {
            Ok(fin) => (fin, Vec::new()),
            Err(still) => (None, still.threads),
        };
        if let Some(source) = self.source.take()
            && let Err(JoinError::StillRunning(source)) = source.join(until)
        {
            running.push(source.name().to_owned());
            self.source = Some(source);
        }
        if running.is_empty() { Ok(fin) } else { Err(running) }
    }
}
