//! A connection to one node: opened, read and acknowledged.
//!
//! | thread | name | waits for | ends when |
//! |---|---|---|---|
//! | reader | `dcp-read-N` | its socket | the connection fails or is stopped |
//! | sender | `dcp-send-N` | batches, the node's disk, the byte budget, room in the channel | all was handed on, or it is stopped |
//!
//! `N` is the number that the opener gives. Bytes are acknowledged when the batch that they came in was handed on,
//! each once, as soon as a fifth of the window is owed: what nobody takes is never acknowledged, so the window fills
//! and the producer stops, while the reader goes on to answer noops.
//!
//! Invariants: every stream that was asked for gets one answer or one end, in the order of its events, unless the
//! connection is stopped; a connection never has two streams of a vbucket; acknowledged is what was handed on, to
//! the byte.

use std::sync::Arc;

use crossbeam::channel::{Receiver, TryRecvError};
use parking_lot::Mutex;
use slog::{Logger, o};

use super::answer::{FailoverLog, vb_seqnos};
use super::assembler::Assembler;
use super::config::DcpConfig;
use super::error::{DcpEnd, DcpRequestError, OpenError};
use super::frame::FRAME_BYTES_MAX;
use super::handshake::{self, Opened};
use super::leb128::CollectionId;
use super::manifest::Manifest;
use super::opcode::Opcode;
use super::persisted::Hold;
use super::queue::Queue;
use super::reader::{Reader, Streams};
use super::request::{Request, StreamRequest};
use super::sender::{BatchSender, DcpOutput};
use super::shared::Shared;
use super::stats::DcpStats;
use super::streams::{Answer, Book};
use crate::event::{Seqno, VbId};
use crate::thread::{self, Cancel, Fin, JoinError, Process, RecvError, Roster, Thread, Until, fin};

/// An open connection. Dropping it stops it; its threads then end by themselves.
pub struct Connection {
    shared: Arc<Shared>,
    vbuckets: u16,
    collection: CollectionId,
    name: String,
    manifest: Option<Manifest>,
    /// Given when everything was handed on that will be.
    ended: Fin,
    roster: Roster,
    /// Taken out by whoever joins them.
    threads: Mutex<Threads>,
    process: Process,
}

#[derive(Default)]
struct Threads {
    reader: Option<Thread<()>>,
    sender: Option<Thread<DcpEnd>>,
    /// What the sender told to a call that did not get to tell it.
    end: Option<DcpEnd>,
}

/// Threads that did not end in time. The call may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these threads are still running: {}; close again to wait longer", threads.join(", "))]
pub struct DcpStillRunning {
    /// Their names.
    pub threads: Vec<String>,
}

impl Connection {
    /// Connects to the node, logs in, selects the bucket and opens DCP, within `until`. `number` is for the names of
    /// the threads, of which there are two from then on.
    pub fn open(
        config: &DcpConfig,
        number: u16,
        output: DcpOutput,
        logger: &Logger,
        until: &Until,
    ) -> Result<Self, OpenError> {
        let (address, step) = (config.address, "naming it");
        let name = config.connection_name().map_err(|e| OpenError {
            address,
            step: step.to_owned(),
            cause: std::io::Error::from(e).into(),
        })?;
        let logger = logger.new(o!("node" => config.address.to_string(), "connection" => name.clone()));
        let Opened { socket, half, rest, manifest } = handshake::open(config, &name, until)?;
        let batch_bytes = config.batch_bytes.max(4096);
        let limit_bytes = u64::from(config.window_bytes) + FRAME_BYTES_MAX as u64;
        let shared = Arc::new(Shared {
            socket,
            book: Book::default(),
            queue: Queue::new(batch_bytes, limit_bytes),
            stats: Arc::default(),
            stop: Cancel::new(),
            failure: Mutex::default(),
            silence: config.noop_interval.saturating_mul(2),
        });
        let assembler = Assembler::new(output.generation, batch_bytes, &rest);
        let streams = Streams::new(&shared, config.collection, config.vbuckets, &logger);
        let reader = Reader { half, assembler, streams };
        let (ended_holder, ended) = fin();
        let window_bytes = u64::from(config.window_bytes);
        let hold = config.persisted_only.then(|| Hold::new(config.step_timeout, &logger));
        let sender = BatchSender {
            shared: Arc::clone(&shared),
            output,
            hold,
            window_bytes,
            batch_bytes,
            owed_bytes: Some(0),
            logger,
        };
        let roster = Roster::default();
        let spawned = |cause: std::io::Error| {
            shared.stop.cancel();
            shared.socket.shut_down();
            OpenError { address, step: "starting a thread".to_owned(), cause: cause.into() }
        };
        let reader = roster.spawn(format!("dcp-read-{number}"), move || reader.run()).map_err(spawned)?;
        let sender = roster.spawn(format!("dcp-send-{number}"), move || sender.run(ended_holder));
        let sender = match sender.map_err(spawned) {
            Ok(sender) => sender,
            Err(error) => {
                let _ = reader.join(until);
                return Err(error);
            }
        };
        let (vbuckets, collection) = (config.vbuckets, config.collection);
        let threads = Mutex::new(Threads { reader: Some(reader), sender: Some(sender), end: None });
        let process = Process::current();
        Ok(Self { shared, vbuckets, collection, name, manifest, ended, roster, threads, process })
    }

    /// What it is called at the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The manifest of collections that its node had when it was opened. Nothing, where the default collection is
    /// followed or the node did not tell.
    pub fn manifest(&self) -> Option<Manifest> {
        self.manifest
    }

    /// What it counted.
    pub fn stats(&self) -> Arc<DcpStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Streams that were asked for and have not ended; `None` once the connection has.
    pub fn open_streams(&self) -> Option<usize> {
        self.shared.book.open_streams()
    }

    /// Ends the connection where a request waits for its answer for longer than nothing may be heard: a server that
    /// only asks whether anybody is there would be waited for without end. Streams get their ends as where the server
    /// closes.
    pub fn give_up_unanswered(&self) {
        let limit = self.shared.silence;
        if let Some(opcode) = self.shared.book.unanswered(limit) {
            self.shared.fail(super::error::ConnectionError::Unanswered { opcode, seconds: limit.as_secs() });
        }
    }

    /// Given when the connection has ended and everything was handed on that will be.
    pub fn ended(&self) -> &Fin {
        &self.ended
    }

    /// The names of the threads that run now.
    pub fn threads(&self) -> Vec<String> {
        self.roster.running()
    }

    /// Asks for a stream. What becomes of it comes with the batches: an answer, or an end.
    pub fn request_stream(&self, request: &StreamRequest) -> Result<(), DcpRequestError> {
        let vb = request.vb;
        if vb.0 >= self.vbuckets {
            return Err(DcpRequestError::NoVbucket { vb, vbuckets: self.vbuckets });
        }
        let opaque = self.shared.book.stream(vb, request.from.seqno)?;
        self.shared.send(Opcode::DCP_STREAM_REQ, &Request::Stream(request, Some(self.collection)), opaque)
    }

    /// Asks for the end of a stream, which comes with the batches. Where there is no stream nothing happens.
    pub fn close_stream(&self, vb: VbId) -> Result<(), DcpRequestError> {
        self.shared.close_stream(vb)
    }

    /// The branches of a vbucket's history. It does not matter what streams there are.
    pub fn failover_log(&self, vb: VbId, until: &Until) -> Result<FailoverLog, DcpRequestError> {
        let opcode = Opcode::DCP_FAILOVER_LOG;
        let value = self.call(opcode, &Request::FailoverLog(vb), until)?;
        FailoverLog::decode(&value).map_err(|error| DcpRequestError::Answer { opcode, error })
    }

    /// The last seqno of each vbucket that is active on the node, whatever collection it is in.
    pub fn vb_seqnos(&self, until: &Until) -> Result<Vec<(VbId, Seqno)>, DcpRequestError> {
        let opcode = Opcode::GET_ALL_VB_SEQNOS;
        let value = self.call(opcode, &Request::VbSeqnos(None), until)?;
        vb_seqnos(&value).map_err(|error| DcpRequestError::Answer { opcode, error })
    }

    /// Asks for the last seqno that the collection has in each vbucket that is active on the node, and waits for
    /// nothing.
    pub fn ask_vb_seqnos(&self) -> Result<SeqnosAnswer, DcpRequestError> {
        let opcode = Opcode::GET_ALL_VB_SEQNOS;
        let (opaque, answer) = self.shared.book.call(opcode)?;
        self.shared.send(opcode, &Request::VbSeqnos(Some(self.collection)), opaque)?;
        Ok(SeqnosAnswer(answer))
    }

    /// The cluster's configuration as it is now, in JSON.
    pub(super) fn cluster_config(&self, until: &Until) -> Result<String, DcpRequestError> {
        let value = self.call(Opcode::GET_CLUSTER_CONFIG, &Request::ClusterConfig, until)?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    fn call(&self, opcode: Opcode, request: &Request<'_>, until: &Until) -> Result<Vec<u8>, DcpRequestError> {
        let (opaque, answer) = self.shared.book.call(opcode)?;
        self.shared.send(opcode, request, opaque)?;
        let answer = thread::recv(&answer, until).map_err(|error| match error {
            RecvError::Closed => DcpRequestError::Closed(opcode),
            RecvError::Stopped(why) => {
                // An answer that comes late is nobody's.
                self.shared.book.take(opaque);
                DcpRequestError::Stopped { opcode, why }
            }
        })?;
        answer.value(opcode)
    }

    /// Ends it at once, without waiting: nothing more is read, handed on or acknowledged, and streams get no end. In a
    /// forked process nothing happens: the socket is the other's.
    pub fn stop(&self) {
        if self.process.is_current() {
            self.shared.stop.cancel();
            self.shared.socket.shut_down();
        }
    }

    /// Stops it and joins its threads. Tells how it ended, which is by itself where that came first; `None` where an
    /// earlier call has told it. After an error it may be called again. In a forked process nothing is stopped, and the
    /// threads that are named run in the other one.
    pub fn close(&self, until: &Until) -> Result<Option<DcpEnd>, DcpStillRunning> {
        self.stop();
        self.join(until)
    }

    /// Waits for a connection that ends by itself and joins its threads.
    pub fn join(&self, until: &Until) -> Result<Option<DcpEnd>, DcpStillRunning> {
        let Threads { reader, sender, end } = std::mem::take(&mut *self.threads.lock());
        let (reader, _) = try_join(reader, until);
        let (sender, told) = try_join(sender, until);
        let end = told.or(end);
        let unjoined = reader.as_ref().map(Thread::name).into_iter().chain(sender.as_ref().map(Thread::name));
        let threads = self.roster.still_running(unjoined);
        if threads.is_empty() {
            return Ok(end);
        }
        // Another call may have kept what this one has not.
        let mut kept = self.threads.lock();
        kept.reader = kept.reader.take().or(reader);
        kept.sender = kept.sender.take().or(sender);
        kept.end = kept.end.take().or(end);
        Err(DcpStillRunning { threads })
    }
}

/// The thread where it still runs, or what it told. One that panicked told nothing.
fn try_join<T>(thread: Option<Thread<T>>, until: &Until) -> (Option<Thread<T>>, Option<T>) {
    match thread.map(|thread| thread.join(until)) {
        Some(Ok(told)) => (None, Some(told)),
        Some(Err(JoinError::StillRunning(thread))) => (Some(thread), None),
        Some(Err(JoinError::Panicked(_))) | None => (None, None),
    }
}

/// Seqnos that were asked for.
pub struct SeqnosAnswer(Receiver<Answer>);

impl SeqnosAnswer {
    /// The answer, once it is there. It is given once.
    pub fn take(&self) -> Option<Result<Vec<(VbId, Seqno)>, DcpRequestError>> {
        let opcode = Opcode::GET_ALL_VB_SEQNOS;
        let answer = match self.0.try_recv() {
            Ok(answer) => answer.value(opcode),
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(DcpRequestError::Closed(opcode)),
        };
        Some(
            answer.and_then(|value| {
                vb_seqnos(&value).map_err(|error| DcpRequestError::Answer { opcode, error })
            }),
        )
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop();
    }
}
