//! A worker: evaluates the events of its vbuckets and writes to its shards.
//!
//! Its control thread supervises: it passes engine sets on, ends the data thread, joins it, and reports how it
//! ended. Its data thread does the work; see [`run`].

mod evaluate;
mod gen_server;
mod run;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use slog::Logger;

use crate::event::{EventBatch, Generation, Seqno, VbId};
use crate::shard::batch::WriteBatch;
use crate::thread::{self, Fin, FinHolder, JoinError, Panicked, Thread, Until, fin};

use super::endpoint::Endpoint;
use super::engine::EngineSet;
use run::Run;

/// The events of a batch that are one worker's.
pub(super) struct Scattered {
    pub(super) batch: Arc<EventBatch>,
    /// Their numbers in the batch, ascending.
    pub(super) events: Vec<u32>,
}

/// The answer of a data thread that swapped its engine set.
pub(super) struct Installed {
    /// The last seqno of each stream that was evaluated with the old set.
    pub(super) evaluated: Vec<(VbId, Seqno)>,
}

/// How a worker ended.
#[derive(Debug)]
pub(super) enum WorkerEnd {
    /// It was told to, or nothing can come any more.
    Closed,
    Panicked(Panicked),
    Endpoint(anyhow::Error),
}

#[derive(Debug, Clone)]
pub(super) struct WorkerConfig {
    pub(super) node: u16,
    pub(super) number: u16,
    pub(super) workers: u16,
    pub(super) shards: u16,
    pub(super) vbuckets: u16,
    pub(super) queue_batches: usize,
    pub(super) generation: Generation,
}

/// What the workers of a data path made of its events. Anyone may read it at any time.
#[derive(Debug, Default)]
pub struct WorkerStats {
    documents: AtomicU64,
    entries: AtomicU64,
    quarantined: AtomicU64,
    oversize_keys: AtomicU64,
    without_stream: AtomicU64,
}

/// Counts of one batch, added up before they touch the shared counters.
#[derive(Debug, Default, Clone, Copy)]
struct BatchCounts {
    documents: u64,
    entries: u64,
    quarantined: u64,
    oversize_keys: u64,
    without_stream: u64,
}

impl WorkerStats {
    fn add(&self, counts: BatchCounts) {
        self.documents.fetch_add(counts.documents, Ordering::Relaxed);
        self.entries.fetch_add(counts.entries, Ordering::Relaxed);
        self.quarantined.fetch_add(counts.quarantined, Ordering::Relaxed);
        self.oversize_keys.fetch_add(counts.oversize_keys, Ordering::Relaxed);
        self.without_stream.fetch_add(counts.without_stream, Ordering::Relaxed);
    }

    /// Documents that were evaluated, deletions among them.
    pub fn documents(&self) -> u64 {
        self.documents.load(Ordering::Relaxed)
    }

    /// Index entries that they have.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Documents for which an evaluator failed or panicked. They have no entry in its index.
    pub fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Keys that were longer than an index holds. They have no entry.
    pub fn oversize_keys(&self) -> u64 {
        self.oversize_keys.load(Ordering::Relaxed)
    }

    /// Events of a vbucket whose stream had not begun. They were dropped.
    pub fn without_stream(&self) -> u64 {
        self.without_stream.load(Ordering::Relaxed)
    }
}

/// Empty batches, to be filled again.
type Spare = Vec<Box<WriteBatch>>;

/// The handle of a worker, held by the control thread of its `KvData`.
pub(super) struct Worker {
    installs: Sender<Arc<EngineSet>>,
    stop: FinHolder,
    control: Thread<()>,
    end: Receiver<WorkerEnd>,
    data_name: String,
    data_ended: Fin,
}

impl Worker {
    /// Starts both threads. The sender is for the worker's share of each batch; `ended` gets a message when the
    /// worker ends by itself.
    pub(super) fn start(
        config: &WorkerConfig,
        endpoint: Arc<dyn Endpoint>,
        installed: Sender<Installed>,
        ended: Sender<()>,
        stats: Arc<WorkerStats>,
        logger: &Logger,
    ) -> std::io::Result<(Self, Sender<Scattered>)> {
        let (node, number) = (config.node, config.number);
        let logger = logger.new(slog::o!("worker" => number));
        let (data, events) = bounded(config.queue_batches);
        let (swaps_tx, swaps) = bounded(1);
        let (run_fin_holder, run_fin) = fin();
        let (data_ended_holder, data_ended) = fin();
        let run = Run::new(config, events, swaps, run_fin, installed, endpoint, stats, logger);
        let data_thread = thread::spawn(format!("vbd-{node}-{number}"), move || {
            // Dropped on every way out: the control thread sees that the data thread is ending.
            let _ended = data_ended_holder;
            run.run()
        })?;
        let data_name = data_thread.name().to_owned();
        let (installs, install_requests) = bounded(1);
        let (stop, stopped) = fin();
        let (end_tx, end) = bounded(1);
        let server = gen_server::GenServer {
            name: format!("vbc-{node}-{number}"),
            installs: install_requests,
            swaps: swaps_tx,
            stopped,
            data_ended: data_ended.clone(),
            run_fin: run_fin_holder,
            data_thread,
            ended,
            end: end_tx,
        };
        let control = thread::spawn(format!("vbc-{node}-{number}"), move || server.run())?;
        Ok((Self { installs, stop, control, end, data_name, data_ended }, data))
    }

    /// Name of the data thread.
    pub(super) fn data_name(&self) -> String {
        self.data_name.clone()
    }

    /// Given when the data thread is ending.
    pub(super) fn data_ended(&self) -> Fin {
        self.data_ended.clone()
    }

    /// Passes an engine set on. Never blocks: at most one set is under way at a time.
    pub(super) fn install(&self, engines: Arc<EngineSet>) {
        let _ = self.installs.try_send(engines);
    }

    /// Ends the worker and joins it, however long its endpoint or evaluator takes. Gives back how it ended.
    pub(super) fn close(self) -> Option<WorkerEnd> {
        drop(self.stop);
        if let Err(JoinError::Panicked(panicked)) = self.control.join(&Until::default()) {
            return Some(WorkerEnd::Panicked(panicked));
        }
        self.end.try_recv().ok()
    }
}
