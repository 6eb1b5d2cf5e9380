//! The books of one topic: which streams were asked for, which are active or rolled back, how a data path ended;
//! and the data paths themselves, one for each keyspace.
//!
//! What comes back from a data path is a *book*, not a queue: one record for each vbucket, changed under a mutex,
//! and a wake-up that never blocks the one who gives it. Nobody can therefore be held up by a reader that does
//! not come, and nothing that was not read yet is lost: a later message about a stream replaces only an earlier
//! one about the same stream.
//!
//! A keyspace has one life at a time, told from the next by its [`Generation`]. The books know only generations
//! that are alive; what an older one still says is counted and dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use slog::{Logger, debug, o};

use crate::event::{EventBatch, Generation, Seqno, StreamEndReason, StreamStatus, VbId};
use crate::thread::Until;
use crate::timestamp::{Position, TsVbuuid};

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

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// It was asked for, from this position on.
    Requested(Position),
    /// It began, at this position.
    Active(Position),
    /// The producer wants the consumer to go back.
    RolledBack {
        /// What was asked for.
        from: Position,
        /// How far to go back.
        to: Seqno,
    },
    /// The producer refused it.
    Refused(StreamStatus),
    /// It ended.
    Ended(StreamEndReason),
}

/// How often the stream of a vbucket began and ended within one generation. Each begin gets one end; a stream
/// whose begin was still under way when the data path ended has the end alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamCounts {
    /// Times that it began.
    pub begins: u64,
    /// Times that it ended.
    pub ends: u64,
}

/// The streams of a keyspace, by what they stand at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Books {
    /// Asked for and not answered.
    pub requested: TsVbuuid,
    /// Begun and not ended.
    pub active: TsVbuuid,
    /// To be rolled back, to these seqnos.
    pub rolled_back: TsVbuuid,
    /// Refused.
    pub refused: BTreeMap<VbId, StreamStatus>,
    /// Ended.
    pub ended: BTreeMap<VbId, StreamEndReason>,
    /// What was counted for each stream that ever began or ended.
    pub counts: BTreeMap<VbId, StreamCounts>,
}

#[derive(Default)]
struct Life {
    streams: BTreeMap<VbId, StreamState>,
    counts: BTreeMap<VbId, StreamCounts>,
    fin: Option<EndReason>,
}

#[derive(Default)]
struct Records {
    lives: BTreeMap<Generation, Life>,
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
    /// from. The source may send as soon as this returns. `generation` must be higher than any before it.
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
        let link = self.begin_generation(generation, requested);
        let logger = self.logger.new(o!("keyspace" => keyspace.to_string()));
        let started = KvData::start(config, endpoint, upstream, &link, &logger)
            .map_err(|source| FeedError::Spawn { keyspace: keyspace.clone(), source })
            .and_then(|kvdata| {
                let prepared = kvdata
                    .update_ts(requested.clone(), until)
                    .and_then(|()| kvdata.add_engines(engines, until).map(drop));
                // A path that was not prepared ends by itself: dropping the handle closes its requests.
                prepared.map_err(|error| FeedError::Request { keyspace: keyspace.clone(), error })?;
                Ok(kvdata)
            });
        match started {
            Ok(kvdata) => {
                self.running.insert(keyspace.clone(), Running { generation, kvdata });
                Ok(())
            }
            Err(error) => {
                self.shared.records.lock().lives.remove(&generation);
                Err(error)
            }
        }
    }

    /// Opens the book of a generation whose data path the caller runs by itself, and gives the link to it.
    pub fn begin_generation(&self, generation: Generation, requested: &TsVbuuid) -> FeedLink {
        let streams = requested.iter().map(|(vb, position)| (vb, StreamState::Requested(position))).collect();
        self.shared.records.lock().lives.insert(generation, Life { streams, ..Life::default() });
        FeedLink { shared: Arc::clone(&self.shared), generation }
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
        let life = records.lives.get(&generation);
        life.into_iter().flat_map(|life| &life.streams).map(|(vb, state)| (*vb, *state)).collect()
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
            life.streams.extend(ts.iter().map(|(vb, position)| (vb, StreamState::Requested(position))));
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

    /// Holds a message when something was written since it was last read.
    pub fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// The streams of a keyspace.
    pub fn books(&self, keyspace: &Keyspace) -> Result<Books, FeedError> {
        let generation = self.find(keyspace)?.generation;
        let records = self.shared.records.lock();
        let mut books = Books::default();
        let Some(life) = records.lives.get(&generation) else { return Ok(books) };
        books.counts.clone_from(&life.counts);
        for (vb, state) in &life.streams {
            let vb = *vb;
            match *state {
                StreamState::Requested(position) => {
                    books.requested.insert(vb, position);
                }
                StreamState::Active(position) => {
                    books.active.insert(vb, position);
                }
                StreamState::RolledBack { from, to } => {
                    books.rolled_back.insert(vb, Position::at(from.vbuuid, to));
                }
                StreamState::Refused(status) => {
                    books.refused.insert(vb, status);
                }
                StreamState::Ended(reason) => {
                    books.ended.insert(vb, reason);
                }
            }
        }
        Ok(books)
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
        self.post(|life| {
            match state {
                StreamState::Active(_) => life.counts.entry(vb).or_default().begins += 1,
                StreamState::Ended(_) => life.counts.entry(vb).or_default().ends += 1,
                StreamState::Requested(_) | StreamState::RolledBack { .. } | StreamState::Refused(_) => {}
            }
            life.streams.insert(vb, state);
        });
    }

    pub(super) fn post_fin(&self, reason: EndReason, logger: &Logger) {
        self.post(|life| match &life.fin {
            None => life.fin = Some(reason),
            Some(first) => debug!(logger, "a second fin was dropped"; "first" => %first),
        });
    }
}
