//! The data thread of a worker: evaluates each batch and hands its endpoint one write batch per shard.
//!
//! It looks at control before each batch and while it waits for anything. A shard that does not take a batch now
//! gets a [`Lane`] of pending ones, in order, while the other shards go on; when a lane is full, no more data is
//! taken until it moves again, and the queue before this thread holds up the source. Pending batches keep the
//! charge of their events: what waits here weighs on the source's budget.
//!
//! On the way out pending batches are dropped unapplied. Their positions have not moved, so the stream delivers
//! them again.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Select, Sender, TryRecvError};
use slog::{Logger, warn};

use crate::event::EventBatch;
use crate::shard::ShardId;
use crate::shard::batch::WriteBatch;
use crate::thread::{self, Fin};

use super::super::endpoint::{Endpoint, EndpointRefused};
use super::evaluate::Evaluation;
use super::{Installed, Order, Scattered, Spare, Tuning, WorkerConfig, WorkerEnd, WorkerStats};

/// What waits for one shard.
struct Lane {
    shard: ShardId,
    pending: VecDeque<Pending>,
    /// Given when the first of them may be tried again.
    ready: Option<Fin>,
}

struct Pending {
    batch: Box<WriteBatch>,
    /// Held for its charge.
    events: Arc<EventBatch>,
}

pub(super) struct Run {
    events: Receiver<Scattered>,
    orders: Receiver<Order>,
    fin: Fin,
    installed: Sender<Installed>,
    endpoint: Arc<dyn Endpoint>,
    logger: Logger,
    evaluation: Evaluation,
    lanes: Vec<Lane>,
    spare: Spare,
    tuning: Tuning,
}

/// What the thread woke up for.
enum Next {
    End,
    Order(Order),
    Data(Scattered),
    Again,
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
            .map(|shard| Lane { shard: ShardId(shard), pending: VecDeque::new(), ready: None })
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
                Next::Data(scattered) => self.process(&scattered),
                Next::Again => self.retry(),
            };
            if let Err(error) = step {
                return WorkerEnd::Endpoint(error);
            }
        }
    }

    fn end(self) -> WorkerEnd {
        let dropped: usize = self.lanes.iter().map(|lane| lane.pending.len()).sum();
        if dropped > 0 {
            warn!(self.logger, "closed with batches that were not applied; they come again"; "batches" => dropped);
        }
        WorkerEnd::Closed
    }

    /// Waits for something to do: the end first, then control, then shards that move again, then data.
    fn next(&self) -> Next {
        loop {
            if self.fin.is_given() {
                return Next::End;
            }
            match self.orders.try_recv() {
                Ok(order) => return Next::Order(order),
                Err(TryRecvError::Disconnected) => return Next::End,
                Err(TryRecvError::Empty) => {}
            }
            if self.lanes.iter().any(|lane| lane.ready.as_ref().is_some_and(Fin::is_given)) {
                return Next::Again;
            }
            let takes_data =
                self.lanes.iter().all(|lane| lane.pending.len() < self.tuning.lane_batches_max.max(1));
            if takes_data {
                match self.events.try_recv() {
                    Ok(scattered) => return Next::Data(scattered),
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

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Swap(engines) => self.evaluation.set_engines(engines),
            Order::Tune(tuning) => {
                self.tuning = tuning;
                self.evaluation.set_quarantine_log_interval(tuning.quarantine_log_interval);
            }
        }
        let answer = Installed { evaluated: self.evaluation.evaluated() };
        // One order is under way at a time and the channel has room for an answer of each worker; nobody waits
        // for the answer once the data path is ending.
        let _ = thread::send(&self.installed, answer, &self.fin);
    }

    fn process(&mut self, scattered: &Scattered) -> anyhow::Result<()> {
        let batches = self.evaluation.evaluate(scattered, &mut self.spare);
        for (lane, batch) in self.lanes.iter_mut().zip(batches) {
            let Some(batch) = batch else { continue };
            lane.pending.push_back(Pending { batch, events: Arc::clone(&scattered.batch) });
            if lane.ready.is_none() {
                lane.push_on(self.endpoint.as_ref(), &mut self.spare)?;
            }
        }
        self.trim_spare();
        Ok(())
    }

    /// One spare for each lane is what steady work needs; a lane that waited may have left many.
    fn trim_spare(&mut self) {
        self.spare.truncate(self.lanes.len());
    }

    fn retry(&mut self) -> anyhow::Result<()> {
        for lane in &mut self.lanes {
            if lane.ready.as_ref().is_some_and(Fin::is_given) {
                lane.push_on(self.endpoint.as_ref(), &mut self.spare)?;
            }
        }
        self.trim_spare();
        Ok(())
    }
}

impl Lane {
    /// Applies what is pending, in order, until the shard refuses.
    fn push_on(&mut self, endpoint: &dyn Endpoint, spare: &mut Spare) -> anyhow::Result<()> {
        self.ready = None;
        while let Some(Pending { batch, events }) = self.pending.pop_front() {
            match endpoint.try_apply(self.shard, batch) {
                Ok(empty) => spare.push(empty),
                Err(EndpointRefused::Later { batch, ready }) => {
                    self.pending.push_front(Pending { batch, events });
                    self.ready = Some(ready);
                    return Ok(());
                }
                Err(EndpointRefused::Never(error)) => return Err(error),
            }
        }
        Ok(())
    }
}
