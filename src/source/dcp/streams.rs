//! What was asked for on a connection and is not over: requests that wait for their answer, and streams.
//!
//! Callers write here before they send, and the reader looks an answer up by its opaque. A stream stays from its
//! request to its end, so a vbucket is never asked for twice on a connection. When the reader ends it closes the
//! book, in one step with taking out every stream that is owed an end.
//!
//! Invariant: an opaque is used once in a connection's life.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::answer::said;
use super::error::DcpRequestError;
use super::opcode::{Opcode, Status};
use crate::event::{Seqno, VbId};

/// A server's answer.
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) value: Vec<u8>,
}

impl Answer {
    /// Its value, where it is a success.
    pub(super) fn value(self, opcode: Opcode) -> Result<Vec<u8>, DcpRequestError> {
        match self.status {
            Status::SUCCESS => Ok(self.value),
            status => Err(DcpRequestError::Refused { opcode, status, said: said(&self.value) }),
        }
    }
}

/// What an answer is for.
pub(super) enum Pending {
    /// A stream that begins after a seqno.
    Stream(VbId, Seqno),
    /// The end of a vbucket's stream, which is named by its opaque, where there was one.
    Close(VbId, Option<u32>),
    /// A call that somebody waits for. There is room for the one answer.
    Call(Sender<Answer>),
}

/// A request that was not answered.
struct Waiting {
    opcode: Opcode,
    since: Instant,
    pending: Pending,
}

#[derive(Default)]
struct Inner {
    is_closed: bool,
    last_opaque: u32,
    pending: HashMap<u32, Waiting>,
    /// Streams that were asked for: the opaque of each, and where it begins.
    streams: BTreeMap<VbId, (u32, Seqno)>,
}

#[derive(Default)]
pub(super) struct Book(Mutex<Inner>);

impl Inner {
    fn register(&mut self, opcode: Opcode, pending: Pending) -> Result<u32, DcpRequestError> {
        if self.is_closed {
            return Err(DcpRequestError::Closed(opcode));
        }
        // Far below the end of its range: a connection does not live for four thousand million requests.
        self.last_opaque = self.last_opaque.wrapping_add(1);
        self.pending.insert(self.last_opaque, Waiting { opcode, since: Instant::now(), pending });
        Ok(self.last_opaque)
    }
}

impl Book {
    /// Notes a stream; gives its opaque.
    pub(super) fn stream(&self, vb: VbId, from: Seqno) -> Result<u32, DcpRequestError> {
        let mut inner = self.0.lock();
        if inner.streams.contains_key(&vb) {
            return Err(DcpRequestError::HasStream(vb));
        }
        let opaque = inner.register(Opcode::DCP_STREAM_REQ, Pending::Stream(vb, from))?;
        inner.streams.insert(vb, (opaque, from));
        Ok(opaque)
    }

    /// Notes that a stream is to be closed; gives the opaque of that.
    pub(super) fn close_stream(&self, vb: VbId) -> Result<u32, DcpRequestError> {
        let mut inner = self.0.lock();
        let stream = inner.streams.get(&vb).map(|(opaque, _)| *opaque);
        inner.register(Opcode::DCP_CLOSE_STREAM, Pending::Close(vb, stream))
    }

    /// Notes a call; gives its opaque and where its answer comes, which ends without one when the connection does.
    pub(super) fn call(&self, opcode: Opcode) -> Result<(u32, Receiver<Answer>), DcpRequestError> {
        let (sender, answer) = bounded(1);
        Ok((self.0.lock().register(opcode, Pending::Call(sender))?, answer))
    }

    /// What an answer is for. Nothing, where nobody asked.
    pub(super) fn take(&self, opaque: u32) -> Option<Pending> {
        self.0.lock().pending.remove(&opaque).map(|waiting| waiting.pending)
    }

    /// A request that waits for its answer for longer than `limit`, if there is one.
    pub(super) fn unanswered(&self, limit: Duration) -> Option<Opcode> {
        let inner = self.0.lock();
        inner.pending.values().find(|waiting| waiting.since.elapsed() >= limit).map(|waiting| waiting.opcode)
    }

    /// The stream of this opaque is over. `false` where there is none: it ended before, and the vbucket may have
    /// another one since.
    pub(super) fn end(&self, vb: VbId, opaque: u32) -> bool {
        let mut inner = self.0.lock();
        let is_it = inner.streams.get(&vb).is_some_and(|(stream, _)| *stream == opaque);
        is_it && inner.streams.remove(&vb).is_some()
    }

    /// Streams that were asked for and are not over; `None` once the book is closed.
    pub(super) fn open_streams(&self) -> Option<usize> {
        let inner = self.0.lock();
        (!inner.is_closed).then_some(inner.streams.len())
    }

    /// Closes the book: nothing more can be asked for. Gives the streams that are owed an end.
    pub(super) fn close(&self) -> BTreeMap<VbId, Seqno> {
        let mut inner = self.0.lock();
        inner.is_closed = true;
        inner.pending.clear();
        std::mem::take(&mut inner.streams).into_iter().map(|(vb, (_, from))| (vb, from)).collect()
    }
}
