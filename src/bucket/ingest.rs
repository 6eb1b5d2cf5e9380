//! Ingesting files: what replays them, and how far it is.

use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, never, select_biased, tick};
use serde::Serialize;
use slog::info;

use crate::event::Generation;
use crate::projector::{Feed, Keyspace, ShardEndpoint};
use crate::source::{Input, Replay, ReplayConfig, ReplayEnd, ReplayFormat, ReplayOutcome, ReplayProgress};
use crate::thread::{self, Fin, FinHolder, JoinError, Stopped, Thread, Until, fin};
use crate::timestamp::TsVbuuid;

use super::bucket::Bucket;
use super::intake::{Broken, DataPath, Intake, PROGRESS_INTERVAL, PathSpec, Started};
use super::intake_error::IntakeError;
use super::meta::{BucketName, IndexEntry, IndexState, SourceKind};
use super::pausing::millis;

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

/// A running data path with what replays files into it.
struct Replaying<'b> {
    bucket: &'b Bucket,
    feed: Feed,
    /// Its upstream is kept so that the source's end does not end the data path before everything was applied.
    path: DataPath,
    source: Option<Thread<ReplayOutcome>>,
    source_ended: Fin,
    source_fin: Option<FinHolder>,
    progress: Arc<ReplayProgress>,
    /// Holds a message when a shard applied something.
    applied: Receiver<()>,
    changes_before: u64,
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
    ) -> Result<IngestReport, IntakeError> {
        let began = Instant::now();
        let turn = self.begin_intake(SourceKind::Files, until)?;
        let until = turn.until();
        self.admit_files(options)?;
        let mut replaying = Replaying::start(self, inputs, options, until)?;
        let (outcome, kept) = self.take_in(&mut replaying, until, on_progress)?;
        match outcome.end {
            ReplayEnd::Failed(error) => return Err(IntakeError::Input { error, kept }),
            ReplayEnd::Stopped => return Err(self.explain(Broken::Stopped(Stopped::Cancelled), None, kept)),
            ReplayEnd::Finished => {}
        }
        if options.rebuild {
            let note = |entry: &mut IndexEntry| entry.state = IndexState::Ready;
            self.change_meta(|meta| meta.indexes.iter_mut().for_each(note))?;
        }
        let (progress, stats) = (&replaying.progress, &replaying.path.stats);
        let report = IngestReport {
            bucket: self.name(),
            documents: kept,
            bad_lines: progress.bad_lines(),
            quarantined: stats.quarantined(),
            oversize_keys: stats.oversize_keys(),
            total_ms: millis(began),
            first_bad_lines: outcome.bad_lines.iter().map(ToString::to_string).collect(),
        };
        info!(self.logger, "ingested"; "documents" => report.documents, "ms" => report.total_ms);
        Ok(report)
    }

    /// Refuses files where no index takes them, or where an index needs all documents and these are not said to be all.
    fn admit_files(&self, options: &IngestOptions) -> Result<(), IntakeError> {
        let meta = self.meta();
        if meta.indexes.is_empty() {
            return Err(IntakeError::NoIndex { bucket: meta.name.clone() });
        }
        let unfinished = meta.indexes.iter().find(|entry| entry.state == IndexState::Building);
        match unfinished.filter(|_| !options.rebuild) {
            Some(entry) => Err(IntakeError::Unfinished {
                bucket: meta.name.clone(),
                index: entry.definition.name().to_string(),
            }),
            None => Ok(()),
        }
    }
}

impl<'b> Replaying<'b> {
    /// Builds the data path and starts the source.
    fn start(
        bucket: &'b Bucket,
        inputs: Vec<Input>,
        options: &IngestOptions,
        until: &Until,
    ) -> Result<Self, IntakeError> {
        let generation = bucket.fence_shards(until)?;
        let applied = bucket.watch_shards();
        let start = bucket.start_positions();
        let mut feed = Feed::new(&bucket.logger);
        let path = PathSpec {
            keyspace: Keyspace(bucket.name().to_string()),
            generation,
            endpoint: Arc::new(ShardEndpoint::new(bucket.shards())),
            engines: bucket.engines_where(|_| true),
            start: &start,
        };
        let path = match bucket.start_path(&mut feed, path, until) {
            Ok(path) => path,
            Err(error) => return Err(bucket.give_up(Started::unfed(feed), error.into(), until)),
        };
        let (source_fin, source_stopped) = fin();
        let replay = new_replay(bucket, options, (generation, &start), &path, source_stopped);
        let progress = replay.progress();
        let (ended_holder, source_ended) = fin();
        let body = move || {
            // Dropped on every way out, also by a panic.
            let _ended = ended_holder;
            replay.run(inputs)
        };
        let source = match thread::spawn("dm-source", body) {
            Ok(source) => Some(source),
            Err(source) => {
                let (doing, name) = bucket.intake();
                let error = IntakeError::Spawn { doing, bucket: name, source };
                return Err(bucket.give_up(Started::unfed(feed), error.into(), until));
            }
        };
        let (source_fin, changes_before) = (Some(source_fin), start.changes());
        Ok(Self { bucket, feed, path, source, source_ended, source_fin, progress, applied, changes_before })
    }

    fn join_source(&mut self, until: &Until) -> Result<Option<ReplayOutcome>, Broken> {
        let Some(source) = self.source.take() else { return Ok(None) };
        match source.join(until) {
            Ok(outcome) => Ok(Some(outcome)),
            Err(JoinError::Panicked(panicked)) => {
                let (doing, bucket) = self.bucket.intake();
                Err(IntakeError::Panicked { doing, bucket, panicked }.into())
            }
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
}

fn new_replay(
    bucket: &Bucket,
    options: &IngestOptions,
    (generation, start): (Generation, &TsVbuuid),
    path: &DataPath,
    stop: Fin,
) -> Replay {
    let config = ReplayConfig {
        format: options.format.clone(),
        skip_bad: options.skip_bad,
        batch_bytes: bucket.config.batch_bytes,
        batch_events: bucket.config.batch_events,
    };
    Replay::new(config, generation, start, path.upstream.clone(), path.budget.clone(), stop)
}

impl Intake for Replaying<'_> {
    type Progress = IngestProgress;
    type Outcome = ReplayOutcome;

    /// Waits for the end of the source, and then until everything that it sent is applied.
    fn run(
        &mut self,
        until: &Until,
        on_progress: &mut dyn FnMut(IngestProgress),
    ) -> Result<ReplayOutcome, Broken> {
        let ticker = tick(PROGRESS_INTERVAL);
        let timer = until.timer();
        let (never_ended, source_ended) = (never(), self.source_ended.receiver().clone());
        let mut outcome: Option<ReplayOutcome> = None;
        loop {
            if self.feed.has_ended(&self.path.keyspace) {
                return Err(Broken::Ended);
            }
            if let Some(read) = &outcome
                && self.bucket.shards().iter().all(|shard| shard.covers(&read.reached))
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

    fn take_started(&mut self) -> Started {
        self.source_fin = None;
        let mut source = self.source.take();
        let feeders = move |until: &Until| match source.take().map(|source| source.join(until)) {
            Some(Err(JoinError::StillRunning(running))) => {
                let threads = vec![running.name().to_owned()];
                source = Some(running);
                threads
            }
            Some(_) | None => Vec::new(),
        };
        let feed = std::mem::replace(&mut self.feed, Feed::new(&self.bucket.logger));
        Started { feed, feeders: Box::new(feeders) }
    }

    fn kept(&self) -> u64 {
        self.bucket.changes().saturating_sub(self.changes_before)
    }
}
