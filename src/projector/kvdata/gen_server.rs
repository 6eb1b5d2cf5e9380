//! The control thread of a `KvData`: serves requests, and ends everything in order.
//!
//! It never waits for data: a change is passed to the workers, whose answers come back on a channel of this
//! thread's own select. The order of the end is the same whatever ended first:
//!
//! 1. requests are refused from now on (`gen_server_stop`);
//! 2. `run_scatter` is told to end, and its ledger is awaited;
//! 3. the workers are closed, all at once, and joined;
//! 4. the feed is told what it was not told yet, and each stream that has no end gets it;
//! 5. one fin is posted;
//! 6. `done` is given.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, select_biased};
use parking_lot::Mutex;
use slog::{Logger, info, warn};

use crate::event::{Generation, Seqno, VbId};
use crate::shard::{InstId, ShardId};
use crate::thread::{self, CancelOnDrop, Fin, FinHolder, RecvError, Until};
use crate::timestamp::TsVbuuid;

use super::super::engine::{Engine, EngineSet};
use super::super::feed::FeedLink;
use super::super::worker::{Installed, Order, Tuning, Worker, WorkerEnd};
use super::run_scatter::HandOver;
use super::{EndReason, RequestError};

/// The most changes that wait for the one before them.
const CHANGES_WAITING_MAX: usize = 16;

/// For each vbucket with a stream, the last seqno that was evaluated before a change.
pub(super) type InstallPoint = Vec<(VbId, Seqno)>;

/// Takes one answer. One that is dropped without says that the data path has ended.
pub(super) type Reply<T> = Sender<Result<T, RequestError>>;

/// What can be asked of a `KvData`.
pub(super) enum Request {
    Change { change: Change, reply: Reply<InstallPoint> },
    UpdateTs { ts: TsVbuuid, reply: Reply<()> },
    Close,
}

/// What the workers have to take up between two pieces of batches.
pub(super) enum Change {
    AddEngines(Vec<Engine>),
    JoinEngines(Vec<Engine>),
    DeleteEngines(Vec<InstId>),
    Tune(Tuning),
    Fence(ShardId, Generation),
}

/// A change that the workers are taking up.
struct UnderWay {
    missing_answers: usize,
    point: InstallPoint,
    reply: Reply<InstallPoint>,
}

pub(super) struct GenServer {
    pub(super) requests: Receiver<Request>,
    /// Given when `run_scatter` has ended.
    pub(super) scatter_ended: Fin,
    pub(super) hand_over: Receiver<HandOver>,
    pub(super) workers: Vec<Worker>,
    pub(super) installed: Receiver<Installed>,
    /// Holds a message for each worker that has ended by itself.
    pub(super) worker_ended: Receiver<()>,
    pub(super) link: FeedLink,
    pub(super) req_ts: Arc<Mutex<TsVbuuid>>,
    pub(super) logger: Logger,
}

/// The signals that this thread gives by ending.
pub(super) struct Holders {
    pub(super) gen_server_stop: FinHolder,
    pub(super) run_scatter_fin: CancelOnDrop,
    pub(super) done: FinHolder,
}

#[derive(Default)]
struct Changes {
    engines: EngineSet,
    under_way: Option<UnderWay>,
    waiting: VecDeque<(Change, Reply<InstallPoint>)>,
}

impl GenServer {
    /// The thread's body.
    pub(super) fn run(self, name: &str, holders: Holders) {
        let reason = thread::catch(name, || self.serve()).unwrap_or_else(EndReason::Panicked);
        self.finish(reason, holders);
    }

    fn serve(&self) -> EndReason {
        let mut changes = Changes::default();
        loop {
            select_biased! {
                recv(self.scatter_ended.receiver()) -> _ => return EndReason::Closed,
                recv(self.worker_ended) -> _ => return EndReason::Closed,
                recv(self.installed) -> answer => if let Ok(answer) = answer {
                    self.take_answer(&mut changes, answer);
                },
                recv(self.requests) -> request => match request {
                    Ok(Request::Close) | Err(_) => return EndReason::Closed,
                    Ok(Request::UpdateTs { ts, reply }) => {
                        self.req_ts.lock().union(&ts);
                        let _ = reply.try_send(Ok(()));
                    }
                    Ok(Request::Change { change, reply }) => self.take_change(&mut changes, change, reply),
                },
            }
        }
    }

    fn take_change(&self, changes: &mut Changes, change: Change, reply: Reply<InstallPoint>) {
        if changes.under_way.is_none() {
            self.begin(changes, change, reply);
        } else if changes.waiting.len() < CHANGES_WAITING_MAX {
            changes.waiting.push_back((change, reply));
        } else {
            let _ = reply.try_send(Err(RequestError::Busy));
        }
    }

    fn begin(&self, changes: &mut Changes, change: Change, reply: Reply<InstallPoint>) {
        let order = match change {
            Change::Tune(tuning) => Order::Tune(tuning),
            Change::Fence(shard, generation) => Order::Fence(shard, generation),
            Change::AddEngines(engines) => {
                changes.engines = changes.engines.with(&engines);
                Order::Swap(Arc::new(changes.engines.clone()))
            }
            Change::JoinEngines(engines) => {
                changes.engines = changes.engines.with_joining(&engines);
                Order::Swap(Arc::new(changes.engines.clone()))
            }
            Change::DeleteEngines(instances) => {
                changes.engines = changes.engines.without(&instances);
                Order::Swap(Arc::new(changes.engines.clone()))
            }
        };
        for worker in &self.workers {
            // At most one order is under way, so there is room; a worker that is gone is reported as ended.
            worker.order(order.clone());
        }
        changes.under_way = Some(UnderWay { missing_answers: self.workers.len(), point: Vec::new(), reply });
    }

    fn take_answer(&self, changes: &mut Changes, answer: Installed) {
        let Some(under_way) = &mut changes.under_way else { return };
        under_way.point.extend(answer.evaluated);
        under_way.missing_answers -= 1;
        if under_way.missing_answers > 0 {
            return;
        }
        if let Some(done) = changes.under_way.take() {
            let _ = done.reply.try_send(Ok(done.point));
        }
        if let Some((change, reply)) = changes.waiting.pop_front() {
            self.begin(changes, change, reply);
        }
    }

    /// Ends everything in order.
    pub(super) fn finish(self, reason: EndReason, holders: Holders) {
        let Holders { gen_server_stop, run_scatter_fin, done } = holders;
        drop(gen_server_stop);
        drop(run_scatter_fin);
        let handed_over = thread::recv(&self.hand_over, &Until::default());
        let worker_ends = Worker::close_all(self.workers);
        let scatter_reason = match handed_over {
            Ok(HandOver { ledger, reason }) => {
                ledger.settle(&self.link, &self.req_ts);
                reason
            }
            Err(RecvError::Closed | RecvError::Stopped(_)) => EndReason::Closed,
        };
        let reason = first_cause(reason, worker_ends, scatter_reason);
        let (why, is_orderly) =
            (reason.to_string(), matches!(reason, EndReason::Closed | EndReason::UpstreamClosed));
        // A host's logger may fail: the feed learns of the end before it is called.
        self.link.post_fin(reason, &self.logger);
        if is_orderly {
            info!(self.logger, "the data path ended: {why}");
        } else {
            warn!(self.logger, "the data path ended: {why}");
        }
        drop(done);
    }
}

/// What began the end. A worker's failure comes before the hand-off that failed because of it.
fn first_cause(control: EndReason, workers: Vec<WorkerEnd>, scatter: EndReason) -> EndReason {
    if !matches!(control, EndReason::Closed) {
        return control;
    }
    let failed = workers.into_iter().find(|end| !matches!(end, WorkerEnd::Closed));
    failed.map_or(scatter, EndReason::from)
}
