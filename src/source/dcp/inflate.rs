//! From a batch with compressed values to batches without, which are of a bounded size however far values inflate.
//!
//! What is handed on has a buffer of its own with keys, attributes and values, so that nobody holds what was compressed
//! for longer than it takes.

use super::body::{Body, inflate, is_compressed};
use super::frame::FRAME_BYTES_MAX;
use crate::event::{Datatype, DcpEvent, EventBatch, EventKind, Seqno, Span, VbId};

/// The pieces of one batch.
pub(super) struct Pieces {
    batch: EventBatch,
    /// Number of events that are in pieces.
    taken: usize,
    piece_bytes: usize,
    bad: Vec<(VbId, Seqno)>,
}

impl Pieces {
    /// A piece is full when its buffer has `piece_bytes`.
    pub(super) fn new(batch: EventBatch, piece_bytes: usize) -> Self {
        Self { batch, taken: 0, piece_bytes, bad: Vec::new() }
    }

    /// The next piece; `None` when there are no more events.
    pub(super) fn next(&mut self) -> Option<EventBatch> {
        let rest = self.batch.events.get(self.taken..).filter(|rest| !rest.is_empty())?;
        let mut piece = EventBatch { generation: self.batch.generation, ..EventBatch::default() };
        for event in rest {
            if piece.buffer.len() >= self.piece_bytes {
                break;
            }
            let (kind, is_bad) = copy(event.kind, &self.batch.buffer, &mut piece.buffer);
            piece.events.push(DcpEvent { kind, ..*event });
            if is_bad {
                self.bad.push((event.vb, event.seqno));
            }
        }
        self.taken += piece.events.len();
        Some(piece)
    }

    /// The changes of the pieces so far whose values could not be inflated, each once.
    pub(super) fn take_bad(&mut self) -> Vec<(VbId, Seqno)> {
        std::mem::take(&mut self.bad)
    }
}

fn append(part: &[u8], to: &mut Vec<u8>) -> Span {
    let start = to.len();
    to.extend_from_slice(part);
    Span::since(start, to)
}

/// The same event in another buffer, and whether its value could not be inflated, which then is empty.
fn copy(kind: EventKind, from: &[u8], to: &mut Vec<u8>) -> (EventKind, bool) {
    let kind = match kind {
        EventKind::Mutation { key, value, xattrs_len, datatype } => {
            let key = append(key.of(from), to);
            if is_compressed(datatype.0) {
                return inflated(key, value.of(from), datatype, to);
            }
            append(value.before(xattrs_len).of(from), to);
            EventKind::Mutation { key, value: append(value.of(from), to), xattrs_len, datatype }
        }
        EventKind::Deletion { key } => EventKind::Deletion { key: append(key.of(from), to) },
        EventKind::Expiration { key } => EventKind::Expiration { key: append(key.of(from), to) },
        other => other,
    };
    (kind, false)
}

fn inflated(key: Span, value: &[u8], datatype: Datatype, to: &mut Vec<u8>) -> (EventKind, bool) {
    let start = to.len();
    let body = inflate(value, FRAME_BYTES_MAX, to)
        .and_then(|()| Body::split(datatype.0, to.get(start..).unwrap_or_default()))
        .map(|body| (body.document.len(), body.xattrs_len()));
    let is_bad = body.is_err();
    let (len, xattrs_len) = body.unwrap_or_default();
    // The document is what comes last.
    let value = Span::since(to.len() - len, to);
    (EventKind::Mutation { key, value, xattrs_len, datatype: Body::document_datatype(datatype.0) }, is_bad)
}
