//! The keeper of one topic: of its [`Books`], which say what streams were asked for, are active or rolled back, of
//! how each data path ended, and of the data paths themselves, one for each keyspace.
//!
//! What comes back from a data path is a *book*, not a queue: one record for each vbucket, changed under a mutex,
//! and a wake-up that never blocks the one who gives it. Nobody can therefore be held up by a reader that does
//! not come, and nothing that was not read yet is lost: a later message about a stream replaces only an earlier
//! one about the same stream.
//!
//! A keyspace has one life at a time, told from the next by its [`Generation`], which is higher than any before
//! it. The books know only generations that are alive; what an older one still says is counted and dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use slog::{Logger, debug, o};

use crate::event::{EventBatch, Generation, VbId};
use crate::thread::Until;
use crate::timestamp::TsVbuuid;

use super::books::{Books, Life, StreamState};
use super::endpoint::Endpoint;
use super::engine::Engine;
use super::kvdata::{EndReason, KvData, KvDataConfig, RequestError, StillRunning};

/// The name of what a data path follows: a bucket, or a scope or collection of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keyspace(pub String);

impl fmt::Display for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Default)]
struct Records {
    lives: BTreeMap<Generation, Life>,
    /// The highest generation that was ever begun.
    newest: Option<Generation>,
    late_messages: u64,
}

struct Shared {
    records: Mutex<Records>,
    wake: Sender<()>,
}

struct Running {
    generation: Generation,
    kvdata: KvData,
}

/// Why a keyspace was not started or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// It runs already.
    #[error("cannot start keyspace {0}: it is followed already; stop it first")]
    AlreadyRuns(Keyspace),
    /// Nothing follows it.
    #[error("keyspace {0} is not followed; start it first")]
    NotRunning(Keyspace),
    /// The generation does not tell this life from one that was.
    #[error(
        "cannot begin generation {generation}: the feed has seen generation {newest}; take one above that"
    )]
    StaleGeneration {
        /// What was asked for.
        generation: Generation,
        /// The highest that the feed has seen.
        newest: Generation,
    },
    /// Threads could not be started.
    #[error("cannot start keyspace {keyspace}: no thread could be started: {source}")]
    Spawn {
        /// The keyspace.
        keyspace: Keyspace,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its data path did not carry a request out.
    #[error("cannot change keyspace {keyspace}: {error}")]
    Request {
        /// The keyspace.
        keyspace: Keyspace,
        /// What it said.
        error: RequestError,
    },
    /// Its data path ended while it was started.
    #[error("cannot start keyspace {keyspace}: its data path ended: {reason}")]
    Ended {
        /// The keyspace.
        keyspace: Keyspace,
        /// Why it ended.
        reason: EndReason,
    },
    /// It was not started as a whole, and what was started did not end in time.
    #[error(
        "cannot start keyspace {keyspace}: {error}; these threads are still running: {}; stop it to wait for them",
        threads.join(", ")
    )]
    HalfStarted {
        /// The keyspace. It counts as running until it is stopped.
        keyspace: Keyspace,
        /// What its data path said.
        error: RequestError,
        /// The threads' names.
        threads: Vec<String>,
    },
}

/// See the module. It has no thread: whoever holds it reads it.
pub struct Feed {
    shared: Arc<Shared>,
    woken: Receiver<()>,
    running: BTreeMap<Keyspace, Running>,
    logger: Logger,
}

/// The side of the books that one generation's data path writes.
#[derive(Clone)]
pub struct FeedLink {
    shared: Arc<Shared>,
    generation: Generation,
}

impl Feed {
    /// A feed that follows nothing yet.
    pub fn new(logger: &Logger) -> Self {
        let (wake, woken) = bounded(1);
        Self {
            shared: Arc::new(Shared { records: Mutex::default(), wake }),
            woken,
            running: BTreeMap::new(),
            logger: logger.new(o!()),
        }
    }

    /// Starts a life of a keyspace: its data path, its engines, and the positions that its streams are asked for
    /// from. The source may send as soon as this returns. `generation` must be higher than any before it, also
    /// than those whose start failed. A start that fails half-way ends and joins what it started, within `until`.
    #[expect(clippy::too_many_arguments, reason = "everything that one life is made of")]
    pub fn start(
        &mut self,
        keyspace: &Keyspace,
        generation: Generation,
        config: &KvDataConfig,
        endpoint: &Arc<dyn Endpoint>,
        upstream: Receiver<EventBatch>,
        engines: Vec<Engine>,
        requested: &TsVbuuid,
        until: &Until,
    ) -> Result<(), FeedError> {
        if self.running.contains_key(keyspace) {
            return Err(FeedError::AlreadyRuns(keyspace.clone()));
        }
        let link = self.begin_generation(generation, requested)?;
        let logger = self.logger.new(o!("keyspace" => keyspace.to_string()));
        let kvdata = KvData::start(config, endpoint, upstream, &link, &logger).map_err(|source| {
            self.shared.records.lock().lives.remove(&generation);
            FeedError::Spawn { keyspace: keyspace.clone(), source }
        })?;
        let prepared =
            kvdata.update_ts(requested.clone(), until).and_then(|()| kvdata.add_engines(engines, until));
        self.running.insert(keyspace.clone(), Running { generation, kvdata });
        let Err(error) = prepared else { return Ok(()) };
        let keyspace = keyspace.clone();
        Err(match self.stop(&keyspace, until) {
            Ok(Some(reason)) if !matches!(reason, EndReason::Closed) => FeedError::Ended { keyspace, reason },
            Ok(_) => FeedError::Request { keyspace, error },
            Err(StillRunning { threads }) => FeedError::HalfStarted { keyspace, error, threads },
        })
    }

    /// Opens the book of a generation whose data path the caller runs by itself, and gives the link to it. The
    /// generation must be higher than any before it.
    pub fn begin_generation(
        &self,
        generation: Generation,
        requested: &TsVbuuid,
    ) -> Result<FeedLink, FeedError> {
        let mut records = self.shared.records.lock();
        if let Some(newest) = records.newest.filter(|newest| generation <= *newest) {
            return Err(FeedError::StaleGeneration { generation, newest });
        }
        records.newest = Some(generation);
        records.lives.entry(generation).or_default().request(requested);
        Ok(FeedLink { shared: Arc::clone(&self.shared), generation })
    }

    /// Closes the book of a generation once its data path has ended, and gives back why it did.
    pub fn take_fin(&self, generation: Generation) -> Option<EndReason> {
        let mut records = self.shared.records.lock();
        records.lives.get(&generation)?.fin.as_ref()?;
        records.lives.remove(&generation)?.fin
    }

    /// Where the streams of a generation stand.
    pub fn streams(&self, generation: Generation) -> Vec<(VbId, StreamState)> {
        let records = self.shared.records.lock();
        records.lives.get(&generation).into_iter().flat_map(Life::states).collect()
    }

    /// Notes that streams are asked for again, or more of them, from the given positions.
    pub fn request_streams(
        &self,
        keyspace: &Keyspace,
        ts: &TsVbuuid,
        until: &Until,
    ) -> Result<(), FeedError> {
        let running = self.find(keyspace)?;
        running
            .kvdata
            .update_ts(ts.clone(), until)
            .map_err(|error| FeedError::Request { keyspace: keyspace.clone(), error })?;
        if let Some(life) = self.shared.records.lock().lives.get_mut(&running.generation) {
            life.request(ts);
        }
        Ok(())
    }

    /// The data path of a keyspace.
    pub fn kvdata(&self, keyspace: &Keyspace) -> Result<&KvData, FeedError> {
        self.find(keyspace).map(|running| &running.kvdata)
    }

    fn find(&self, keyspace: &Keyspace) -> Result<&Running, FeedError> {
        self.running.get(keyspace).ok_or_else(|| FeedError::NotRunning(keyspace.clone()))
    }

    /// Ends a keyspace's life: first its data path takes nothing more, then what its source still sends is
    /// dropped with the channel, then everything is joined. Gives back why it ended. After an error it may be
    /// called again; the keyspace counts as running until then.
    pub fn stop(&mut self, keyspace: &Keyspace, until: &Until) -> Result<Option<EndReason>, StillRunning> {
        let Some(running) = self.running.get_mut(keyspace) else { return Ok(None) };
        running.kvdata.stop_scatter();
        running.kvdata.close(until)?;
        let generation = running.generation;
        self.running.remove(keyspace);
        Ok(self.take_fin(generation))
    }

    /// The keyspaces that run, in order.
    pub fn keyspaces(&self) -> Vec<Keyspace> {
        self.running.keys().cloned().collect()
    }

    /// Holds a message when something was written since it was last read.
    pub fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// The streams of a keyspace.
    pub fn books(&self, keyspace: &Keyspace) -> Result<Books, FeedError> {
        let generation = self.find(keyspace)?.generation;
        let records = self.shared.records.lock();
        Ok(records.lives.get(&generation).map(Life::books).unwrap_or_default())
    }

    /// Whether the data path of a keyspace has ended by itself; [`Feed::stop`] then tells why.
    pub fn has_ended(&self, keyspace: &Keyspace) -> bool {
        let Some(running) = self.running.get(keyspace) else { return false };
        self.shared.records.lock().lives.get(&running.generation).is_some_and(|life| life.fin.is_some())
    }

    /// Messages that came from a generation that is over.
    pub fn late_messages(&self) -> u64 {
        self.shared.records.lock().late_messages
    }
}

impl FeedLink {
    /// The generation that the link writes for.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    fn post(&self, write: impl FnOnce(&mut Life)) {
        {
            let mut records = self.shared.records.lock();
            match records.lives.get_mut(&self.generation) {
                Some(life) => write(life),
                None => records.late_messages += 1,
            }
        }
        let _ = self.shared.wake.try_send(());
    }

    pub(super) fn post_stream(&self, vb: VbId, state: StreamState) {
        self.post(|life| life.note(vb, state));
    }

    pub(super) fn post_fin(&self, reason: EndReason, logger: &Logger) {
        self.post(|life| match &life.fin {
            None => life.fin = Some(reason),
            Some(first) => debug!(logger, "a second fin was dropped"; "first" => %first),
        });
    }
}
