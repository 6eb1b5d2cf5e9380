//! The thread `dcp-read-N`: reads a connection, answers noops, and makes batches of what comes.
//!
//! It waits for nothing but its socket, and, where a producer sends more than its window, for room in the queue. On
//! every way out it closes the book and puts an end for each stream that has none behind what came before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use slog::{Logger, debug};

use super::answer::{said, stream_status};
use super::assembler::{Assembler, PendingEvents, span_in};
use super::body::{Body, is_compressed};
use super::error::{ConnectionError, DcpEnd};
use super::frame::{Decoded, FRAME_BYTES_MAX, Frame};
use super::leb128::CollectionId;
use super::message::{DocumentKey, Message, Mutation};
use super::opcode::{Opcode, Status};
use super::request::Request;
use super::shared::Shared;
use super::socket::ReadHalf;
use super::stats::add;
use super::streams::{Answer, Pending};
use crate::event::{Datatype, DcpEvent, EventKind, Seqno, StreamEndReason, StreamStatus, SystemEvent, VbId};
use crate::thread::catch;

/// A stream that has begun.
#[derive(Debug, Clone, Copy)]
struct Live {
    opaque: u32,
    /// The highest seqno that came.
    highest: Seqno,
}

pub(super) struct Reader {
    pub(super) half: ReadHalf,
    pub(super) assembler: Assembler,
    pub(super) streams: Streams,
}

/// What the reader knows of its streams.
pub(super) struct Streams {
    shared: Arc<Shared>,
    collection: CollectionId,
    live: Vec<Option<Live>>,
    logger: Logger,
    answer: Vec<u8>,
}

/// Why parsing paused.
enum Paused {
    /// A batch is full.
    Full,
    /// A frame of so many bytes is not there as a whole.
    Partial(usize),
}

/// Why the reader ends.
enum Halt {
    Stopped,
    Failed(ConnectionError),
}

impl<E: Into<ConnectionError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Reader {
    /// The thread's body.
    pub(super) fn run(mut self) {
        let halt = catch("dcp-read", || self.read_all())
            .unwrap_or_else(|panicked| Halt::Failed(ConnectionError::Panicked(panicked)));
        let shared = Arc::clone(&self.streams.shared);
        shared.socket.shut_down();
        // What came before is delivered, and behind it the ends that are owed, in the order of the vbuckets.
        for (vb, from) in shared.book.close() {
            let live = self.streams.live.get(usize::from(vb.0)).copied().flatten();
            let seqno = live.map_or(from, |live| live.highest);
            let kind = EventKind::StreamEnd { reason: StreamEndReason::Disconnected };
            self.assembler.pending.events.push(DcpEvent { vb, seqno, kind });
        }
        self.flush();
        let end = match halt {
            Halt::Failed(error) if !shared.stop.is_cancelled() => {
                DcpEnd::Failed(shared.failure.lock().take().unwrap_or(error))
            }
            _ => DcpEnd::Stopped,
        };
        shared.queue.finish(end);
    }

    fn read_all(&mut self) -> Halt {
        loop {
            let step = match self.parse() {
                Ok(Paused::Full) => {
                    if self.flush() {
                        continue;
                    }
                    Err(Halt::Stopped)
                }
                Ok(Paused::Partial(bytes)) => self.read_for(bytes),
                Err(halt) => Err(halt),
            };
            if let Err(halt) = step {
                return halt;
            }
        }
    }

    /// Reads what is there of a frame of so many bytes. What came before is sent when that would wait.
    fn read_for(&mut self, bytes: usize) -> Result<(), Halt> {
        let is_cut = !self.assembler.has_room(bytes) || !self.half.is_ready();
        if is_cut && !self.flush() {
            return Err(Halt::Stopped);
        }
        self.assembler.make_room(bytes);
        match self.half.read(self.assembler.room()) {
            Ok(0) => Err(ConnectionError::Closed.into()),
            Ok(read) => {
                self.assembler.fill(read);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(ConnectionError::Silent(self.streams.shared.silence.as_secs()).into())
            }
            Err(error) => Err(ConnectionError::Read(error).into()),
        }
    }

    fn parse(&mut self) -> Result<Paused, Halt> {
        loop {
            if self.assembler.is_full() {
                return Ok(Paused::Full);
            }
            let (buffer, unparsed, pending) = self.assembler.parts();
            match Frame::decode(unparsed, FRAME_BYTES_MAX)? {
                Decoded::Partial(bytes) => return Ok(Paused::Partial(bytes)),
                Decoded::Whole(frame, bytes) => {
                    self.streams.take(buffer, &frame, bytes, pending)?;
                    self.assembler.advance(bytes);
                }
            }
        }
    }

    /// Puts what there is into the queue. `false` when the connection is to end.
    fn flush(&mut self) -> bool {
        let shared = &self.streams.shared;
        let Some(ready) = self.assembler.cut() else { return !shared.stop.is_cancelled() };
        let is_in = shared.queue.push(ready, shared.stop.fin());
        let held = shared.queue.held_bytes() as u64;
        shared.stats.held_bytes.fetch_max(held, Ordering::Relaxed);
        is_in
    }
}

impl Streams {
    pub(super) fn new(
        shared: &Arc<Shared>,
        collection: CollectionId,
        vbuckets: u16,
        logger: &Logger,
    ) -> Self {
        let (shared, logger) = (Arc::clone(shared), logger.clone());
        Self { shared, collection, live: vec![None; usize::from(vbuckets)], logger, answer: Vec::new() }
    }

    /// Takes a frame up, which lies in `buffer`.
    fn take(
        &mut self,
        buffer: &[u8],
        frame: &Frame<'_>,
        bytes: usize,
        out: &mut PendingEvents,
    ) -> Result<(), Halt> {
        add(&self.shared.stats.frames, 1);
        if frame.magic.is_response() {
            return self.take_answer(frame, out);
        }
        if !frame.magic.is_request() {
            return Err(ConnectionError::Magic(frame.opcode).into());
        }
        let vb = VbId(frame.vb_or_status);
        let message = Message::decode(frame).map_err(|error| ConnectionError::Message { vb, error })?;
        if message == Message::Noop {
            return self.answer_noop(frame.opaque);
        }
        // Everything else that a producer tells counts, whatever becomes of it here.
        out.ack_bytes += bytes as u64;
        add(&self.shared.stats.window_bytes, bytes as u64);
        if message == Message::Unknown {
            add(&self.shared.stats.unknown, 1);
            return Ok(());
        }
        let slot = self.live.get_mut(usize::from(vb.0));
        let Some(slot) = slot.filter(|slot| slot.is_some_and(|live| live.opaque == frame.opaque)) else {
            add(&self.shared.stats.spurious, 1);
            return Ok(());
        };
        if let Message::StreamEnd(reason) = message {
            let seqno = slot.take().map(|live| live.highest).unwrap_or_default();
            self.shared.book.end(vb, frame.opaque);
            out.events.push(DcpEvent { vb, seqno, kind: EventKind::StreamEnd { reason } });
            return Ok(());
        }
        if let Some(live) = slot {
            let wants = Wants { collection: self.collection, vb, has_bad_value: false };
            if wants.take(buffer, &message, live, out) {
                self.shared.note_bad_value(vb, live.highest, &self.logger);
            }
        }
        Ok(())
    }

    fn answer_noop(&mut self, opaque: u32) -> Result<(), Halt> {
        self.answer.clear();
        Request::NoopAnswer.encode(opaque, &mut self.answer)?;
        self.shared.socket.send(&self.answer).map_err(ConnectionError::Write)?;
        add(&self.shared.stats.noops, 1);
        Ok(())
    }

    fn take_answer(&mut self, frame: &Frame<'_>, out: &mut PendingEvents) -> Result<(), Halt> {
        let status = Status(frame.vb_or_status);
        match self.shared.book.take(frame.opaque) {
            Some(Pending::Stream(vb, from)) => {
                let answer = stream_status(status, frame.value);
                let opcode = frame.opcode;
                let status = answer.map_err(|error| ConnectionError::Answer { opcode, error })?;
                if matches!(status, StreamStatus::Success { .. }) {
                    if let Some(slot) = self.live.get_mut(usize::from(vb.0)) {
                        *slot = Some(Live { opaque: frame.opaque, highest: from });
                    }
                } else {
                    self.shared.book.end(vb, frame.opaque);
                }
                out.events.push(DcpEvent { vb, seqno: from, kind: EventKind::StreamReq { status } });
            }
            // Its end follows by itself.
            Some(Pending::Close(..)) if status == Status::SUCCESS => {}
            Some(Pending::Close(vb, stream)) if status == Status::KEY_ENOENT => {
                self.closed_in_vain(vb, stream, out);
            }
            Some(Pending::Close(vb, _)) => {
                return Err(ConnectionError::NotClosed { vb, status, said: said(frame.value) }.into());
            }
            Some(Pending::Call(caller)) => {
                // There is room for it, and nobody may be left to take it.
                let _ = caller.try_send(Answer { status, value: frame.value.to_vec() });
            }
            None if frame.opcode == Opcode::DCP_BUFFER_ACK => {
                if status != Status::SUCCESS {
                    let said = said(frame.value);
                    return Err(ConnectionError::Unacknowledged { status, said }.into());
                }
            }
            None => {
                add(&self.shared.stats.stray_answers, 1);
                debug!(self.logger, "an answer that nobody waits for"; "opcode" => %frame.opcode, "status" => %status);
            }
        }
        Ok(())
    }

    /// A producer that does not know the stream sends no end of it. Where it has sent one before there is nothing left
    /// to end, also when the vbucket was asked for again in the meantime.
    fn closed_in_vain(&mut self, vb: VbId, stream: Option<u32>, out: &mut PendingEvents) {
        if stream.is_some_and(|opaque| self.shared.book.end(vb, opaque)) {
            let slot = self.live.get_mut(usize::from(vb.0)).and_then(Option::take);
            let seqno = slot.map(|live| live.highest).unwrap_or_default();
            let kind = EventKind::StreamEnd { reason: StreamEndReason::Closed };
            out.events.push(DcpEvent { vb, seqno, kind });
        }
    }
}

/// What one stream wants to know.
struct Wants {
    collection: CollectionId,
    vb: VbId,
    has_bad_value: bool,
}

impl Wants {
    /// Adds the event of a message; gives whether it has a value that cannot be read. Whether one that is compressed
    /// can be is seen later.
    fn take(
        mut self,
        buffer: &[u8],
        message: &Message<'_>,
        live: &mut Live,
        out: &mut PendingEvents,
    ) -> bool {
        let vb = self.vb;
        let at = |live: &mut Live, seqno: Seqno| {
            live.highest = live.highest.max(seqno);
            seqno
        };
        match message {
            Message::Mutation(mutation) => {
                let seqno = at(live, mutation.seqno);
                self.take_mutation(buffer, mutation, seqno, out);
            }
            Message::Deletion(removal) => {
                let kind = self
                    .of_key(&removal.key, || EventKind::Deletion { key: span_in(buffer, removal.key.name) });
                out.events.push(DcpEvent { vb, seqno: at(live, removal.seqno), kind });
            }
            Message::Expiration(removal) => {
                let kind = self.of_key(&removal.key, || EventKind::Expiration {
                    key: span_in(buffer, removal.key.name),
                });
                out.events.push(DcpEvent { vb, seqno: at(live, removal.seqno), kind });
            }
            Message::SystemEvent(event) => {
                let kind = system_event(event.event)
                    .map_or(EventKind::SeqnoAdvanced, |event| EventKind::SystemEvent { event });
                out.events.push(DcpEvent { vb, seqno: at(live, event.seqno), kind });
            }
            Message::SeqnoAdvanced(seqno) => {
                out.events.push(DcpEvent { vb, seqno: at(live, *seqno), kind: EventKind::SeqnoAdvanced });
            }
            Message::SnapshotMarker(marker) => {
                let (start, end, each_once) = (marker.start, marker.end, marker.is_disk());
                let kind = EventKind::SnapshotMarker { start, end, each_once };
                out.events.push(DcpEvent { vb, seqno: live.highest, kind });
            }
            Message::OsoSnapshot(edge) => {
                let kind = EventKind::OsoSnapshot { edge: *edge };
                out.events.push(DcpEvent { vb, seqno: live.highest, kind });
            }
            Message::StreamEnd(_) | Message::Noop | Message::Unknown => {}
        }
        self.has_bad_value
    }

    /// Documents of other collections only move the stream on.
    fn of_key(&self, key: &DocumentKey<'_>, kind: impl FnOnce() -> EventKind) -> EventKind {
        if key.collection == self.collection { kind() } else { EventKind::SeqnoAdvanced }
    }

    fn take_mutation(
        &mut self,
        buffer: &[u8],
        mutation: &Mutation<'_>,
        seqno: Seqno,
        out: &mut PendingEvents,
    ) {
        let vb = self.vb;
        if mutation.key.collection != self.collection {
            out.events.push(DcpEvent { vb, seqno, kind: EventKind::SeqnoAdvanced });
            return;
        }
        let key = span_in(buffer, mutation.key.name);
        let kind = if is_compressed(mutation.datatype) {
            out.has_compressed = true;
            let (value, datatype) = (span_in(buffer, mutation.value), Datatype(mutation.datatype));
            EventKind::Mutation { key, value, xattrs_len: 0, datatype }
        } else {
            let body = Body::split(mutation.datatype, mutation.value);
            self.has_bad_value = body.is_err();
            let read = body.map(|body| (span_in(buffer, body.document), body.xattrs_len()));
            let (value, xattrs_len) = read.unwrap_or_default();
            let datatype = Body::document_datatype(mutation.datatype);
            EventKind::Mutation { key, value, xattrs_len, datatype }
        };
        out.events.push(DcpEvent { vb, seqno, kind });
    }
}

/// What happened to a collection or scope; `None` where this version does not know it.
fn system_event(event: u32) -> Option<SystemEvent> {
    Some(match event {
        0 => SystemEvent::CollectionCreate,
        1 => SystemEvent::CollectionDrop,
        2 => SystemEvent::CollectionFlush,
        3 => SystemEvent::ScopeCreate,
        4 => SystemEvent::ScopeDrop,
        5 => SystemEvent::CollectionChanged,
        _ => return None,
    })
}
