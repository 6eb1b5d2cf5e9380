//! The control thread of a `KvData`: serves requests, and ends everything in order.
//!
//! It never waits for data: an engine set is passed to the workers, whose answers come back on a channel of this
//! thread's own select. The order of the end is the same whatever ended first:
//!
//! 1. requests are refused from now on (`gen_server_stop`);
//! 2. `run_scatter` is told to end, and its ledger is awaited;
//! 3. the workers are closed and joined;
//! 4. each stream that is still owed its end gets it;
//! 5. one fin is posted;
//! 6. `done` is given.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, select_biased};
use parking_lot::Mutex;
use slog::{Logger, info, warn};

use crate::event::{Seqno, StreamEndReason, VbId};
use crate::thread::{self, Fin, FinHolder, RecvError, Until};
use crate::timestamp::TsVbuuid;

use super::super::engine::{Engine, EngineSet};
use super::super::feed::{FeedLink, StreamState};
use super::super::worker::{Installed, Worker, WorkerEnd};
use super::run_scatter::HandOver;
use super::{EndReason, RequestError};

/// The most engine sets that wait for the one before them.
const INSTALLS_WAITING_MAX: usize = 16;

/// For each vbucket with a stream, the last seqno that was evaluated with the old engine set.
pub(super) type InstallPoint = Vec<(VbId, Seqno)>;

/// Takes one answer. One that is dropped without says that the data path has ended.
pub(super) type Reply<T> = Sender<Result<T, RequestError>>;

/// What can be asked of a `KvData`.
pub(super) enum Request {
    AddEngines { engines: Vec<Engine>, reply: Reply<InstallPoint> },
    UpdateTs { ts: TsVbuuid, reply: Reply<()> },
    Close,
}

/// An engine set that the workers are installing.
struct Install {
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
    pub(super) run_scatter_fin: FinHolder,
    pub(super) done: FinHolder,
}

#[derive(Default)]
struct Installs {
    engines: EngineSet,
    running: Option<Install>,
    waiting: VecDeque<(Vec<Engine>, Reply<InstallPoint>)>,
}

impl GenServer {
    /// The thread's body.
    pub(super) fn run(self, name: &str, holders: Holders) {
        let reason = thread::catch(name, || self.serve()).unwrap_or_else(EndReason::Panicked);
        self.finish(reason, holders);
    }

    fn serve(&self) -> EndReason {
        let mut installs = Installs::default();
        loop {
            select_biased! {
                recv(self.scatter_ended.receiver()) -> _ => return EndReason::Closed,
                recv(self.worker_ended) -> _ => return EndReason::Closed,
                recv(self.installed) -> answer => if let Ok(answer) = answer {
                    self.take_answer(&mut installs, answer);
                },
                recv(self.requests) -> request => match request {
                    Ok(Request::Close) | Err(_) => return EndReason::Closed,
                    Ok(Request::UpdateTs { ts, reply }) => {
                        self.req_ts.lock().union(&ts);
                        let _ = reply.try_send(Ok(()));
                    }
                    Ok(Request::AddEngines { engines, reply }) => self.add_engines(&mut installs, engines, reply),
                },
            }
        }
    }

    fn add_engines(&self, installs: &mut Installs, engines: Vec<Engine>, reply: Reply<InstallPoint>) {
        if installs.running.is_none() {
            self.begin_install(installs, &engines, reply);
        } else if installs.waiting.len() < INSTALLS_WAITING_MAX {
            installs.waiting.push_back((engines, reply));
        } else {
            let _ = reply.try_send(Err(RequestError::Busy));
        }
    }

    fn begin_install(&self, installs: &mut Installs, engines: &[Engine], reply: Reply<InstallPoint>) {
        installs.engines = installs.engines.with(engines);
        let set = Arc::new(installs.engines.clone());
        for worker in &self.workers {
            // At most one set is under way, so there is room; a worker that is gone is reported as ended.
            worker.install(Arc::clone(&set));
        }
        installs.running = Some(Install { missing_answers: self.workers.len(), point: Vec::new(), reply });
    }

    fn take_answer(&self, installs: &mut Installs, answer: Installed) {
        let Some(running) = &mut installs.running else { return };
        running.point.extend(answer.evaluated);
        running.missing_answers -= 1;
        if running.missing_answers > 0 {
            return;
        }
        if let Some(done) = installs.running.take() {
            let _ = done.reply.try_send(Ok(done.point));
        }
        if let Some((engines, reply)) = installs.waiting.pop_front() {
            self.begin_install(installs, &engines, reply);
        }
    }

    fn finish(self, reason: EndReason, holders: Holders) {
        let Holders { gen_server_stop, run_scatter_fin, done } = holders;
        drop(gen_server_stop);
        drop(run_scatter_fin);
        let handed_over = thread::recv(&self.hand_over, &Until::default());
        let worker_ends: Vec<WorkerEnd> = self.workers.into_iter().filter_map(Worker::close).collect();
        let (owed, scatter_reason) = match handed_over {
            Ok(HandOver { ledger, reason }) => (Some(ledger.owed()), reason),
            Err(RecvError::Closed | RecvError::Stopped(_)) => (None, EndReason::Closed),
        };
        let reason = first_cause(reason, worker_ends, scatter_reason);
        for vb in owed.into_iter().flatten() {
            self.link.post_stream(vb, StreamState::Ended(StreamEndReason::Closed));
        }
        match &reason {
            EndReason::Closed | EndReason::UpstreamClosed => {
                info!(self.logger, "the data path ended: {reason}");
            }
            _ => {
                warn!(self.logger, "the data path ended: {reason}");
            }
        }
        self.link.post_fin(reason);
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
