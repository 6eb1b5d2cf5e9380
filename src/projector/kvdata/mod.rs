//! A data path: a control thread and a data thread that share only `req_ts`.
//!
//! See the [projector](super) for the picture, and the two files for each thread's contract. A [`KvData`] is the
//! handle: requests are synchronous with a deadline, and after the end of `gen_server` every present and future
//! one returns [`RequestError::Closed`] — unless its result was produced, which is delivered even then.

mod gen_server;
mod run_scatter;
mod stats;

use std::fmt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded, select_biased};
use parking_lot::Mutex;
use slog::{Logger, o};

use crate::event::{EventBatch, Generation, Seqno, VbId};
use crate::shard::{InstId, ShardId};
use crate::thread::{self, Cancel, CancelOnDrop, Fin, Panicked, Roster, Stopped, Thread, Until, fin};
use crate::timestamp::TsVbuuid;

use super::endpoint::Endpoint;
use super::engine::Engine;
use super::feed::FeedLink;
use super::worker::{Installed, Reports, Scattered, Tuning, Worker, WorkerConfig, WorkerEnd, WorkerStats};
use gen_server::{Change, GenServer, Holders, Reply, Request};
use run_scatter::RunScatter;
pub use stats::KvStats;

/// Requests that wait to be served.
const REQUESTS_MAX: usize = 16;

/// The shape of a data path.
#[derive(Debug, Clone)]
pub struct KvDataConfig {
    /// Number of the data path, for the threads' names.
    pub number: u16,
    /// Workers; at least one.
    pub workers: u16,
    /// The bucket's number of vbuckets.
    pub vbuckets: u16,
    /// The bucket's number of shards.
    pub shards: u16,
    /// Batches that wait for each worker.
    pub worker_queue_batches: usize,
}

impl KvDataConfig {
    /// The worker of each vbucket: those of a shard have the same.
    fn routes(&self) -> Vec<u16> {
        let workers = self.workers.max(1);
        (0..self.vbuckets).map(|vb| ShardId::of_vb(VbId(vb), self.shards).0 % workers).collect()
    }
}

/// Why a data path ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum EndReason {
    /// It was closed.
    Closed,
    /// Its source is gone.
    UpstreamClosed,
    /// A worker did not take its share of a batch.
    HandOffFailed {
        /// Number of the worker.
        worker: usize,
    },
    /// One of its threads panicked.
    Panicked(Panicked),
    /// The endpoint refused a batch for good.
    Endpoint(anyhow::Error),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it was closed"),
            Self::UpstreamClosed => f.write_str("its source is gone"),
            Self::HandOffFailed { worker } => write!(f, "worker {worker} did not take its events"),
            Self::Panicked(panicked) => panicked.fmt(f),
            Self::Endpoint(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<WorkerEnd> for EndReason {
    fn from(end: WorkerEnd) -> Self {
        match end {
            WorkerEnd::Closed => Self::Closed,
            WorkerEnd::Panicked(panicked) => Self::Panicked(panicked),
            WorkerEnd::Endpoint(error) => Self::Endpoint(error),
        }
    }
}

/// Why a request gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The data path has ended.
    #[error("the data path is closed")]
    Closed,
    /// Too many requests of the kind are under way; nothing was done.
    #[error("the data path has too many requests under way; try again later")]
    Busy,
    /// The caller's limit ended: the outcome is unknown, and asking again is harmless.
    #[error("the data path gave no answer: {0}")]
    Stopped(#[from] Stopped),
}

/// Threads that did not end in time. The call may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these threads are still running: {}; close again to wait longer", threads.join(", "))]
pub struct StillRunning {
    /// Their names.
    pub threads: Vec<String>,
}

/// The workers of a data path, and the channels that they share.
struct Team {
    workers: Vec<Worker>,
    /// For each worker's share of a batch.
    senders: Vec<Sender<Scattered>>,
    installed: Receiver<Installed>,
    ended: Receiver<()>,
    stats: Arc<WorkerStats>,
}

impl Team {
    /// A failure ends and joins the workers that were started.
    fn start(
        config: &KvDataConfig,
        endpoint: &Arc<dyn Endpoint>,
        link: &FeedLink,
        roster: &Roster,
        logger: &Logger,
    ) -> std::io::Result<Self> {
        let count = config.workers.max(1);
        let (ended_tx, ended) = bounded(usize::from(count));
        let (installed_tx, installed) = bounded(usize::from(count));
        let stats = Arc::new(WorkerStats::default());
        let (mut workers, mut senders) = (Vec::new(), Vec::new());
        for number in 0..count {
            let config = WorkerConfig {
                path: config.number,
                number,
                workers: count,
                shards: config.shards,
                vbuckets: config.vbuckets,
                queue_batches: config.worker_queue_batches.max(1),
                generation: link.generation(),
            };
            let reports = Reports { installed: installed_tx.clone(), ended: ended_tx.clone() };
            let (endpoint, stats) = (Arc::clone(endpoint), Arc::clone(&stats));
            match Worker::start(&config, endpoint, reports, stats, roster, logger) {
                Ok((worker, sender)) => {
                    senders.push(sender);
                    workers.push(worker);
                }
                Err(error) => {
                    Worker::close_all(workers);
                    return Err(error);
                }
            }
        }
        Ok(Self { workers, senders, installed, ended, stats })
    }
}

/// A running data path.
pub struct KvData {
    requests: Sender<Request>,
    /// Given when requests are refused.
    gen_server_stop: Fin,
    /// Given when everything has ended and was told to the feed.
    done: Fin,
    /// Given when `run_scatter` takes nothing more.
    run_scatter_fin: Cancel,
    stats: Arc<KvStats>,
    worker_stats: Arc<WorkerStats>,
    roster: Roster,
    /// Taken out by whoever joins them.
    threads: Mutex<Vec<Thread<()>>>,
}

/// Starts both threads of a data path, or none: then the workers are ended and joined.
fn spawn(
    number: u16,
    roster: &Roster,
    run_scatter: impl FnOnce(&str) + Send + 'static,
    server: GenServer,
    holders: Holders,
) -> std::io::Result<Vec<Thread<()>>> {
    let name = format!("kv-data-{number}");
    let data = match roster.spawn(name.clone(), move || run_scatter(&name)) {
        Ok(data) => data,
        Err(error) => {
            Worker::close_all(server.workers);
            return Err(error);
        }
    };
    let name = format!("kv-ctl-{number}");
    let control = roster.spawn_with(name.clone(), (server, holders), move |(server, holders)| {
        server.run(&name, holders);
    });
    match control {
        Ok(control) => Ok(vec![data, control]),
        Err((error, given)) => {
            if let Some((server, holders)) = given {
                server.finish(EndReason::Closed, holders);
            }
            let _ = data.join(&Until::default());
            Err(error)
        }
    }
}

impl KvData {
    /// Starts the threads, all or none. Events come from `upstream`; what becomes of the streams is told to `link`.
    pub fn start(
        config: &KvDataConfig,
        endpoint: &Arc<dyn Endpoint>,
        upstream: Receiver<EventBatch>,
        link: &FeedLink,
        logger: &Logger,
    ) -> std::io::Result<Self> {
        let logger = logger.new(o!("path" => config.number, "generation" => link.generation().0));
        let roster = Roster::default();
        let team = Team::start(config, endpoint, link, &roster, &logger)?;
        let (requests_tx, requests) = bounded(REQUESTS_MAX);
        let (hand_over_tx, hand_over) = bounded(1);
        let (scatter_holder, scatter_ended) = fin();
        let (stop_holder, gen_server_stop) = fin();
        let (done_holder, done) = fin();
        let run_scatter_fin = Cancel::new();
        let req_ts = Arc::new(Mutex::new(TsVbuuid::default()));
        let stats = Arc::new(KvStats::new(config.vbuckets));
        let scatter = RunScatter {
            upstream,
            fin: run_scatter_fin.fin().clone(),
            workers: team.senders,
            routes: config.routes(),
            link: link.clone(),
            req_ts: Arc::clone(&req_ts),
            stats: Arc::clone(&stats),
            logger: logger.clone(),
        };
        let server = GenServer {
            requests,
            scatter_ended,
            hand_over,
            workers: team.workers,
            installed: team.installed,
            worker_ended: team.ended,
            link: link.clone(),
            req_ts,
            logger,
        };
        let holders = Holders {
            gen_server_stop: stop_holder,
            run_scatter_fin: CancelOnDrop(run_scatter_fin.clone()),
            done: done_holder,
        };
        let run_scatter = move |name: &str| scatter.run(name, &hand_over_tx, scatter_holder);
        let threads = spawn(config.number, &roster, run_scatter, server, holders)?;
        Ok(Self {
            requests: requests_tx,
            gen_server_stop,
            done,
            run_scatter_fin,
            stats,
            worker_stats: team.stats,
            roster,
            threads: Mutex::new(threads),
        })
    }

    /// Adds engines, or replaces those of the same instances, between two changes. Gives back, for each vbucket
    /// with a stream, the last seqno that the new ones have *not* seen: they see every later change, and none
    /// twice. Within an out-of-order snapshot that is the highest seqno so far, and later changes may be below it.
    pub fn add_engines(
        &self,
        engines: Vec<Engine>,
        until: &Until,
    ) -> Result<Vec<(VbId, Seqno)>, RequestError> {
        self.change(Change::AddEngines(engines), until)
    }

    /// Adds engines of instances that another data path fills, between two changes: to hand them over vbucket by
    /// vbucket. Changes are evaluated for them, and a shard takes that up only for the vbuckets where they have
    /// [joined](crate::shard::Shard::join). [`KvData::add_engines`] then adds them for good. Gives back the same.
    pub fn join_engines(
        &self,
        engines: Vec<Engine>,
        until: &Until,
    ) -> Result<Vec<(VbId, Seqno)>, RequestError> {
        self.change(Change::JoinEngines(engines), until)
    }

    /// Removes the engines of `instances` between two changes; those that are not there do not matter. Gives
    /// back, for each vbucket with a stream, the last seqno that they have seen.
    pub fn delete_engines(
        &self,
        instances: Vec<InstId>,
        until: &Until,
    ) -> Result<Vec<(VbId, Seqno)>, RequestError> {
        self.change(Change::DeleteEngines(instances), until)
    }

    /// Replaces the workers' tuning between two changes.
    pub fn reset_config(&self, tuning: Tuning, until: &Until) -> Result<(), RequestError> {
        self.change(Change::Tune(tuning), until).map(drop)
    }

    /// Writes to `shard` in another generation from now on: the one that it was given when it was rolled back. Its
    /// streams have ended before, and what they brought is applied: what comes later of an older one is refused by
    /// the shard, and ends the data path.
    pub fn fence(&self, shard: ShardId, generation: Generation, until: &Until) -> Result<(), RequestError> {
        self.change(Change::Fence(shard, generation), until).map(drop)
    }

    fn change(&self, change: Change, until: &Until) -> Result<Vec<(VbId, Seqno)>, RequestError> {
        self.request(until, |reply| Request::Change { change, reply })
    }

    /// Takes over the positions that streams are asked for from now on.
    pub fn update_ts(&self, ts: TsVbuuid, until: &Until) -> Result<(), RequestError> {
        self.request(until, |reply| Request::UpdateTs { ts, reply })
    }

    fn request<T>(
        &self,
        until: &Until,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, RequestError> {
        let (reply, answer) = bounded(1);
        let timer = until.timer();
        if self.gen_server_stop.is_given() {
            return Err(RequestError::Closed);
        }
        select_biased! {
            recv(self.gen_server_stop.receiver()) -> _ => return Err(RequestError::Closed),
            send(self.requests, request(reply)) -> sent => sent.map_err(|_| RequestError::Closed)?,
            recv(until.cancel().fin().receiver()) -> _ => return Err(Stopped::Cancelled.into()),
            recv(timer) -> _ => return Err(Stopped::DeadlinePassed.into()),
        }
        select_biased! {
            recv(answer) -> result => result.unwrap_or(Err(RequestError::Closed)),
            // The result may have been produced right before the stop.
            recv(self.gen_server_stop.receiver()) -> _ => answer.try_recv().unwrap_or(Err(RequestError::Closed)),
            recv(until.cancel().fin().receiver()) -> _ => Err(Stopped::Cancelled.into()),
            recv(timer) -> _ => Err(Stopped::DeadlinePassed.into()),
        }
    }

    /// Counters of the events that were scattered.
    pub fn stats(&self) -> Arc<KvStats> {
        Arc::clone(&self.stats)
    }

    /// Counters of what the workers made of them.
    pub fn worker_stats(&self) -> Arc<WorkerStats> {
        Arc::clone(&self.worker_stats)
    }

    /// Makes the data thread take nothing more, at once and without waiting for it. Everything else ends after it,
    /// in order, as by [`KvData::close`].
    pub fn stop_scatter(&self) {
        self.run_scatter_fin.cancel();
    }

    /// The names of the threads that run now, those of the workers among them.
    pub fn threads(&self) -> Vec<String> {
        self.roster.running()
    }

    /// Ends everything in order and joins the threads. It is harmless to call it again, or from several threads:
    /// after an error it waits for what still runs, after success there is nothing left to do. Requests that
    /// others wait for give their result or [`RequestError::Closed`].
    pub fn close(&self, until: &Until) -> Result<(), StillRunning> {
        let timer = until.timer();
        select_biased! {
            recv(self.gen_server_stop.receiver()) -> _ => {}
            send(self.requests, Request::Close) -> _ => {}
            recv(timer) -> _ => {}
        }
        // The join waits for `done` in any case; asking for it first makes one deadline serve both threads.
        if self.done.wait(until).is_err() {
            let threads = self.roster.running();
            // All have ended meanwhile, and are joined whatever the limit.
            if !threads.is_empty() {
                return Err(StillRunning { threads });
            }
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        let running = thread::join_all(threads, until);
        if running.is_empty() {
            return Ok(());
        }
        let threads = self.roster.still_running(running.iter().map(Thread::name));
        self.threads.lock().extend(running);
        Err(StillRunning { threads })
    }
}
