//! The data thread of a worker: evaluates each batch, in pieces, and hands its endpoint one write batch per shard and
//! piece.
//!
//! It looks at its end and at control before each piece, before each call of its endpoint, and while it waits for
//! anything: a call is all that it can be held up by. A shard that does not take a batch now gets a [`Lane`] of
//! waiting ones, in order, while the other shards go on; when too many or too heavy ones wait, no more data is taken
//! until they move again, and the queue before this thread holds up the source. What waits keeps the charge of its
//! events: it weighs on the source's budget as well.
//!
//! Few bytes of events may make many keys: a batch is evaluated in pieces, each applied before the next one is made.
//!
//! On the way out waiting batches are dropped unapplied. Their positions have not moved, so the stream delivers
//! them again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Select, Sender, TryRecvError};
use slog::{Logger, warn};

use crate::event::EventBatch;
use crate::shard::ShardId;
use crate::shard::batch::WriteBatch;
use crate::thread::{self, Fin};

use super::super::endpoint::{Endpoint, EndpointRefused};
use super::evaluate::Evaluation;
use super::{Installed, Order, Scattered, Spare, Tuning, WorkerConfig, WorkerEnd, WorkerStats};

/// What is to be applied to one shard.
struct Lane {
    shard: ShardId,
    pending: VecDeque<Pending>,
    /// Given when the first of them may be tried again; without it, it was not tried yet.
    ready: Option<Fin>,
    /// What those that wait weigh.
    waiting_bytes: usize,
    stats: Arc<WorkerStats>,
}

struct Pending {
    batch: Box<WriteBatch>,
    /// Held for its charge.
    events: Arc<EventBatch>,
    /// What it weighs; zero as long as it does not wait.
    waiting_bytes: usize,
}

pub(super) struct Run {
    events: Receiver<Scattered>,
    orders: Receiver<Order>,
    fin: Fin,
    installed: Sender<Installed>,
    endpoint: Arc<dyn Endpoint>,
    logger: Logger,
    evaluation: Evaluation,
    /// Events of which a part was evaluated, and the first one that was not.
    begun: Option<(Scattered, usize)>,
    lanes: Vec<Lane>,
    spare: Spare,
    tuning: Tuning,
}

/// What the thread woke up for.
enum Next {
    End,
    Order(Order),
    /// The number of a lane that moves.
    Apply(usize),
    /// Events, and the first one that was not evaluated.
    Data(Scattered, usize),
}

impl Run {
    #[expect(
        clippy::too_many_arguments,
        reason = "the ends of six channels and signals, each used here alone"
    )]
    pub(super) fn new(
        config: &WorkerConfig,
        events: Receiver<Scattered>,
        orders: Receiver<Order>,
        fin: Fin,
        installed: Sender<Installed>,
        endpoint: Arc<dyn Endpoint>,
        stats: Arc<WorkerStats>,
        logger: Logger,
    ) -> Self {
        let lanes = (config.number..config.shards)
            .step_by(usize::from(config.workers.max(1)))
            .map(|shard| Lane::new(ShardId(shard), &stats))
            .collect();
        let evaluation = Evaluation::new(config, stats, logger.clone());
        Self {
            events,
            orders,
            fin,
            installed,
            endpoint,
            logger,
            evaluation,
            begun: None,
            lanes,
            spare: Vec::new(),
            tuning: Tuning::default(),
        }
    }

    /// The thread's body.
    pub(super) fn run(mut self) -> WorkerEnd {
        loop {
            let step = match self.next() {
                Next::End => return self.end(),
                Next::Order(order) => {
                    self.carry_out(order);
                    Ok(())
                }
                Next::Apply(lane) => self.apply(lane),
                Next::Data(scattered, from) => {
                    self.evaluate(scattered, from);
                    Ok(())
                }
            };
            if let Err(error) = step {
                return WorkerEnd::Endpoint(error);
            }
        }
    }

    fn end(self) -> WorkerEnd {
        // One that was not tried yet is as much in order as those in the queue before this thread.
        let waiting =
            self.lanes.iter().flat_map(|lane| &lane.pending).filter(|batch| batch.waiting_bytes > 0);
        let dropped = waiting.count();
        if dropped > 0 {
            warn!(self.logger, "closed with batches that were not applied; they come again"; "batches" => dropped);
        }
        WorkerEnd::Closed
    }

    /// Waits for something to do: the end first, then control, then shards that move, then data.
    fn next(&mut self) -> Next {
        loop {
            if self.fin.is_given() {
                return Next::End;
            }
            match self.orders.try_recv() {
                Ok(order) => return Next::Order(order),
                Err(TryRecvError::Disconnected) => return Next::End,
                Err(TryRecvError::Empty) => {}
            }
            if let Some(lane) = self.lanes.iter().position(Lane::moves) {
                return Next::Apply(lane);
            }
            let takes_data = self.has_room();
            if takes_data {
                if let Some((scattered, from)) = self.begun.take() {
                    return Next::Data(scattered, from);
                }
                match self.events.try_recv() {
                    Ok(scattered) => return Next::Data(scattered, 0),
                    Err(TryRecvError::Disconnected) => return Next::End,
                    Err(TryRecvError::Empty) => {}
                }
            }
            let mut select = Select::new();
            select.recv(self.fin.receiver());
            select.recv(&self.orders);
            for ready in self.lanes.iter().filter_map(|lane| lane.ready.as_ref()) {
                select.recv(ready.receiver());
            }
            if takes_data {
                select.recv(&self.events);
            }
            // Only waits: what is ready is taken above, in the order of its importance.
            select.ready();
        }
    }

    fn has_room(&self) -> bool {
        let waiting_bytes: usize = self.lanes.iter().map(|lane| lane.waiting_bytes).sum();
        let batches_max = self.tuning.lane_batches_max.max(1);
        // What waits is never nothing, so that without a waiting batch there is room under any bound.
        (waiting_bytes == 0 || waiting_bytes < self.tuning.lane_bytes_max)
            && self.lanes.iter().all(|lane| lane.pending.len() < batches_max)
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Swap(engines) => self.evaluation.set_engines(engines),
            Order::Tune(tuning) => {
                self.tuning = tuning;
                self.evaluation.set_quarantine_log_interval(tuning.quarantine_log_interval);
            }
            Order::Fence(shard, generation) => self.evaluation.fence(shard, generation),
        }
        let answer = Installed { evaluated: self.evaluation.evaluated() };
        // One order is under way at a time and the channel has room for an answer of each worker; nobody waits
        // for the answer once the data path is ending.
        let _ = thread::send(&self.installed, answer, &self.fin);
    }

    /// Evaluates a piece, and keeps what is left.
    fn evaluate(&mut self, scattered: Scattered, from: usize) {
        let (batches, next) = self.evaluation.evaluate(&scattered, from, &mut self.spare);
        for (lane, batch) in self.lanes.iter_mut().zip(batches) {
            if let Some(batch) = batch {
                lane.push(batch, &scattered.batch);
            }
        }
        if next < scattered.events.len() {
            self.begun = Some((scattered, next));
        }
    }

    fn apply(&mut self, lane: usize) -> anyhow::Result<()> {
        // One spare for each lane is what steady work needs; a lane that waited may leave many.
        let spares_max = self.lanes.len();
        let Some(lane) = self.lanes.get_mut(lane) else { return Ok(()) };
        if let Some(empty) = lane.apply_first(self.endpoint.as_ref())?
            && self.spare.len() < spares_max
        {
            self.spare.push(empty);
        }
        Ok(())
    }
}

impl Lane {
    fn new(shard: ShardId, stats: &Arc<WorkerStats>) -> Self {
        Self { shard, pending: VecDeque::new(), ready: None, waiting_bytes: 0, stats: Arc::clone(stats) }
    }

    /// Whether there is something that may be tried.
    fn moves(&self) -> bool {
        !self.pending.is_empty() && self.ready.as_ref().is_none_or(Fin::is_given)
    }

    fn push(&mut self, batch: Box<WriteBatch>, events: &Arc<EventBatch>) {
        let mut pending = Pending { batch, events: Arc::clone(events), waiting_bytes: 0 };
        if self.ready.is_some() {
            self.note_waiting(&mut pending);
        }
        self.pending.push_back(pending);
    }

    fn note_waiting(&mut self, pending: &mut Pending) {
        if pending.waiting_bytes == 0 {
            pending.waiting_bytes = pending.batch.weight_bytes();
            self.waiting_bytes += pending.waiting_bytes;
            self.stats.waiting_bytes.fetch_add(pending.waiting_bytes as u64, Ordering::Relaxed);
        }
    }

    fn note_moved(&mut self, waiting_bytes: usize) {
        self.waiting_bytes -= waiting_bytes;
        self.stats.waiting_bytes.fetch_sub(waiting_bytes as u64, Ordering::Relaxed);
    }

    /// Tries the first one. Gives it back empty where it was applied; where it was refused for now, it waits.
    fn apply_first(&mut self, endpoint: &dyn Endpoint) -> anyhow::Result<Option<Box<WriteBatch>>> {
        self.ready = None;
        let Some(Pending { batch, events, waiting_bytes }) = self.pending.pop_front() else {
            return Ok(None);
        };
        match endpoint.try_apply(self.shard, batch) {
            Ok(empty) => {
                if waiting_bytes > 0 {
                    self.note_moved(waiting_bytes);
                }
                Ok(Some(empty))
            }
            Err(EndpointRefused::Later { batch, ready }) => {
                let mut pending = Pending { batch, events, waiting_bytes };
                self.note_waiting(&mut pending);
                self.pending.push_front(pending);
                self.ready = Some(ready);
                Ok(None)
            }
            Err(EndpointRefused::Never(error)) => Err(error),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.note_moved(self.waiting_bytes);
    }
}
