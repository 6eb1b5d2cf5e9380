//! A worker: evaluates the events of its vbuckets and writes to its shards.
//!
//! Its control thread supervises: it passes engine sets on, ends the data thread, joins it, and reports how it
//! ended. Its data thread does the work; see [`run`].

mod evaluate;
mod gen_server;
mod run;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use slog::Logger;

use crate::event::{EventBatch, Generation, Seqno, VbId};
use crate::shard::ShardId;
use crate::shard::batch::WriteBatch;
use crate::thread::{FinHolder, JoinError, Panicked, Roster, Thread, Until, fin};

use super::endpoint::Endpoint;
use super::engine::EngineSet;
use run::Run;

/// The events of a batch that are one worker's.
pub(super) struct Scattered {
    pub(super) batch: Arc<EventBatch>,
    /// Their numbers in the batch, ascending.
    pub(super) events: Vec<u32>,
}

/// What a data thread does between two pieces of batches. It answers each with [`Installed`].
#[derive(Clone)]
pub(super) enum Order {
    /// Evaluate with this set from now on.
    Swap(Arc<EngineSet>),
    /// Work with these numbers from now on.
    Tune(Tuning),
    /// What is written to this shard is of this generation from now on.
    Fence(ShardId, Generation),
}

impl Order {
    fn name(&self) -> &'static str {
        match self {
            Self::Swap(..) => "evaluate with other engines",
            Self::Tune(_) => "work with other numbers",
            Self::Fence(..) => "write to a shard in another generation",
        }
    }
}

/// What may be changed while the workers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Write batches that may wait for one shard before its worker takes no more data. Zero counts as one.
    pub lane_batches_max: usize,
    /// Bytes of evaluated batches that may wait for the shards of a worker before it takes no more data. The
    /// events that they come from weigh on the source's byte budget meanwhile; this bounds what was made of them,
    /// which many indexes can make many times as much. A batch that was evaluated is kept in any case, so that
    /// at most one for each shard lies beyond the bound. Each worker has a bound of its own: only what it waits
    /// for itself then stops it, so that it goes on as soon as a shard of its own does.
    pub lane_bytes_max: usize,
    /// The least time between two log lines about documents that were left out of an index.
    pub quarantine_log_interval: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            lane_batches_max: 1024,
            lane_bytes_max: 8 * 1024 * 1024,
            quarantine_log_interval: Duration::from_secs(1),
        }
    }
}

/// The answer of a data thread that carried out an order.
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
    /// Number of the data path.
    pub(super) path: u16,
    /// Number of the worker.
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
    transactions: AtomicU64,
    out_of_order: AtomicU64,
    waiting_bytes: AtomicU64,
}

/// Counts of one batch, added up before they touch the shared counters.
#[derive(Debug, Default, Clone, Copy)]
struct BatchCounts {
    documents: u64,
    entries: u64,
    quarantined: u64,
    oversize_keys: u64,
    without_stream: u64,
    transactions: u64,
    out_of_order: u64,
}

impl WorkerStats {
    fn add(&self, counts: BatchCounts) {
        self.documents.fetch_add(counts.documents, Ordering::Relaxed);
        self.entries.fetch_add(counts.entries, Ordering::Relaxed);
        self.quarantined.fetch_add(counts.quarantined, Ordering::Relaxed);
        self.oversize_keys.fetch_add(counts.oversize_keys, Ordering::Relaxed);
        self.without_stream.fetch_add(counts.without_stream, Ordering::Relaxed);
        self.transactions.fetch_add(counts.transactions, Ordering::Relaxed);
        self.out_of_order.fetch_add(counts.out_of_order, Ordering::Relaxed);
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

    /// Records of transactions. They are not indexed.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Changes that came at or below the position of their stream, outside of an out-of-order snapshot. They were
    /// dropped: what they say is covered.
    pub fn out_of_order(&self) -> u64 {
        self.out_of_order.load(Ordering::Relaxed)
    }

    /// Bytes of evaluated batches that wait for their shards now.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Events of a vbucket whose stream had not begun. They were dropped.
    pub fn without_stream(&self) -> u64 {
        self.without_stream.load(Ordering::Relaxed)
    }
}

/// Empty batches, to be filled again.
type Spare = Vec<Box<WriteBatch>>;

/// What a worker tells the control thread of its `KvData`. Each channel has room for a message of each worker.
pub(super) struct Reports {
    /// An order was carried out.
    pub(super) installed: Sender<Installed>,
    /// The worker has ended.
    pub(super) ended: Sender<()>,
}

/// The handle of a worker, held by the control thread of its `KvData`.
pub(super) struct Worker {
    orders: Sender<Order>,
    stop: FinHolder,
    control: Thread<()>,
    end: Receiver<WorkerEnd>,
}

impl Worker {
    /// Starts both threads, or none. The sender is for the worker's share of each batch.
    pub(super) fn start(
        config: &WorkerConfig,
        endpoint: Arc<dyn Endpoint>,
        reports: Reports,
        stats: Arc<WorkerStats>,
        roster: &Roster,
        logger: &Logger,
    ) -> std::io::Result<(Self, Sender<Scattered>)> {
        let (path, number) = (config.path, config.number);
        let logger = logger.new(slog::o!("worker" => number));
        let (data, events) = bounded(config.queue_batches);
        let (orders_tx, data_orders) = bounded(1);
        let (run_fin_holder, run_fin) = fin();
        let (data_ended_holder, data_ended) = fin();
        let control_logger = logger.clone();
        let run = Run::new(config, events, data_orders, run_fin, reports.installed, endpoint, stats, logger);
        let data_thread = roster.spawn(format!("vbd-{path}-{number}"), move || {
            // Dropped on every way out: the control thread sees that the data thread is ending.
            let _ended = data_ended_holder;
            run.run()
        })?;
        let (orders, control_orders) = bounded(1);
        let (stop, stopped) = fin();
        let (end_tx, end) = bounded(1);
        let server = gen_server::GenServer {
            name: format!("vbc-{path}-{number}"),
            orders: control_orders,
            data_orders: orders_tx,
            stopped,
            data_ended,
            ended: reports.ended,
            end: end_tx,
            logger: control_logger,
        };
        let control = roster.spawn_with(format!("vbc-{path}-{number}"), data_thread, move |data_thread| {
            server.run(run_fin_holder, data_thread);
        });
        match control {
            Ok(control) => Ok((Self { orders, stop, control, end }, data)),
            Err((error, data_thread)) => {
                // Its fin went with the body of the thread that is not there.
                let _ = data_thread.map(|data_thread| data_thread.join(&Until::default()));
                Err(error)
            }
        }
    }

    /// Passes an order on. Never blocks: at most one is under way at a time.
    pub(super) fn order(&self, order: Order) {
        let _ = self.orders.try_send(order);
    }

    /// Ends all of them at once and joins them, however long their endpoint or evaluators take. Gives back how they
    /// ended.
    pub(super) fn close_all(workers: Vec<Self>) -> Vec<WorkerEnd> {
        let told: Vec<_> = workers
            .into_iter()
            .map(|Self { stop, control, end, .. }| {
                drop(stop);
                (control, end)
            })
            .collect();
        told.into_iter()
            .filter_map(|(control, end)| match control.join(&Until::default()) {
                Err(JoinError::Panicked(panicked)) => Some(WorkerEnd::Panicked(panicked)),
                Ok(()) | Err(JoinError::StillRunning(_)) => end.try_recv().ok(),
            })
            .collect()
    }
}
