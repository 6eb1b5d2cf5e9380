//! What waits for nodes, names and disks, what is written to nodes among it, each on a thread `dm-follow-N` of its own,
//! so that one that hangs holds up nothing but itself.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::event::{Generation, VbId};
use crate::shard::{RollBackError, ShardId};
use crate::source::dcp::{ClusterError, ClusterMap, Connection, DcpRequestError};
use crate::thread::{self, Cancel, Panicked, Roster, Thread, Until};

use super::links::{LinkId, Written};

/// Outcomes that wait to be taken. A job that finds no room waits for it.
const OUTCOMES_MAX: usize = 64;

/// What came of a job.
pub(super) enum Done {
    /// The cluster's map was asked for.
    Map(Result<ClusterMap, ClusterError>),
    /// A connection was to be opened.
    Opened(LinkId, Result<Arc<Connection>, ClusterError>),
    /// The map was asked for over open connections. It is the newest of those that were told.
    Polled(Option<ClusterMap>),
    /// Something was to be written to a node.
    Written(Written),
    /// A recovery point was looked for that a shard may go back to.
    Chosen(ShardId, Result<(), RollFault>),
    /// A shard was to be rolled back. It takes writes of that generation and later ones from then on.
    RolledBack(ShardId, Result<Generation, RollFault>),
    /// The job has a defect.
    Panicked(Panicked),
}

/// Why a shard was not rolled back.
pub(super) enum RollFault {
    /// A node does not tell a vbucket's branches: asked again later.
    Log(VbId, DcpRequestError),
    /// The shard.
    Shard(RollBackError),
    /// Its recovery points.
    Points(crate::shard::ReadError),
}

/// See the module.
pub(super) struct Jobs {
    cancel: Cancel,
    outcomes: (Sender<Done>, Receiver<Done>),
    roster: Roster,
    threads: Vec<Thread<()>>,
    /// Connections that were opened and that nobody took.
    untaken: Arc<Mutex<Vec<Arc<Connection>>>>,
    started: u16,
}

impl Jobs {
    pub(super) fn new() -> Self {
        Self {
            cancel: Cancel::new(),
            outcomes: bounded(OUTCOMES_MAX),
            roster: Roster::default(),
            threads: Vec::new(),
            untaken: Arc::default(),
            started: 0,
        }
    }

    /// Starts one. What it waits for ends with the jobs.
    pub(super) fn start(
        &mut self,
        work: impl FnOnce(&Until) -> Done + Send + 'static,
    ) -> std::io::Result<()> {
        let number = self.started;
        self.started = number.wrapping_add(1);
        let (outcomes, until) = (self.outcomes.0.clone(), Until::new(None, self.cancel.clone()));
        let untaken = Arc::clone(&self.untaken);
        let thread = self.roster.spawn(format!("dm-follow-{number}"), move || {
            let done = thread::catch("dm-follow", || work(&until)).unwrap_or_else(Done::Panicked);
            let sent = thread::send(&outcomes, done, until.cancel().fin());
            // Once the jobs have ended nobody takes it.
            if let Err(Done::Opened(_, Ok(connection))) = sent {
                connection.stop();
                untaken.lock().push(connection);
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Holds the outcomes.
    pub(super) fn outcomes(&self) -> &Receiver<Done> {
        &self.outcomes.1
    }

    /// Joins those that have ended.
    pub(super) fn reap(&mut self) {
        self.threads = thread::join_all(std::mem::take(&mut self.threads), &Until::within(Duration::ZERO));
    }

    /// Ends all of them. Gives back the names of those that still run, and of connections' threads; the call may then
    /// be repeated.
    pub(super) fn end(&mut self, until: &Until) -> Vec<String> {
        self.cancel.cancel();
        self.threads = thread::join_all(std::mem::take(&mut self.threads), until);
        let opened = self.outcomes.1.try_iter().filter_map(|done| match done {
            Done::Opened(_, Ok(connection)) => Some(connection),
            _ => None,
        });
        let mut connections: Vec<Arc<Connection>> = opened.collect();
        connections.append(&mut self.untaken.lock());
        let mut running = self.roster.still_running(self.threads.iter().map(Thread::name));
        connections.retain(|connection| match connection.close(until) {
            Ok(_) => false,
            Err(still) => {
                running.extend(still.threads);
                true
            }
        });
        self.untaken.lock().append(&mut connections);
        running
    }
}
