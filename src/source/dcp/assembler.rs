//! From bytes of a socket to batches of events, without a copy.
//!
//! Bytes are read into the buffer that becomes the batch's, and keys and values are slices of it. The part of a frame
//! that is there when a batch is cut off is copied to the next buffer.

use crate::event::{DcpEvent, EventBatch, Generation, Span};

use super::queue::Ready;

/// What was read and not cut off as a batch.
pub(super) struct Assembler {
    generation: Generation,
    batch_bytes: usize,
    buffer: Vec<u8>,
    /// Up to here there are bytes.
    filled: usize,
    /// Up to here there were frames.
    parsed: usize,
    pub(super) pending: PendingEvents,
}

/// The events of the batch to be.
#[derive(Default)]
pub(super) struct PendingEvents {
    pub(super) events: Vec<DcpEvent>,
    /// There are values among them that are compressed.
    pub(super) has_compressed: bool,
    pub(super) ack_bytes: u64,
}

/// Where `part` lies in `buffer`, of which it is a slice.
pub(super) fn span_in(buffer: &[u8], part: &[u8]) -> Span {
    Span::new((part.as_ptr() as usize).wrapping_sub(buffer.as_ptr() as usize), part.len())
}

impl Assembler {
    /// Begins with `rest`, which was read before.
    pub(super) fn new(generation: Generation, batch_bytes: usize, rest: &[u8]) -> Self {
        let mut buffer = vec![0; batch_bytes.max(rest.len())];
        if let Some(front) = buffer.get_mut(..rest.len()) {
            front.copy_from_slice(rest);
        }
        let pending = PendingEvents::default();
        Self { generation, batch_bytes, buffer, filled: rest.len(), parsed: 0, pending }
    }

    /// The whole buffer, the bytes in it that are no frames yet, and where events go.
    pub(super) fn parts(&mut self) -> (&[u8], &[u8], &mut PendingEvents) {
        let unparsed = self.buffer.get(self.parsed..self.filled).unwrap_or_default();
        (&self.buffer, unparsed, &mut self.pending)
    }

    /// So many bytes were a frame.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.parsed += bytes;
    }

    /// Whether the batch has what a batch has.
    pub(super) fn is_full(&self) -> bool {
        self.parsed >= self.batch_bytes
    }

    /// Whether a frame of so many bytes, of which a part is there, fits behind what was parsed.
    pub(super) fn has_room(&self, frame_bytes: usize) -> bool {
        self.filled < self.buffer.len() && self.parsed + frame_bytes <= self.buffer.len()
    }

    /// Makes room for a frame of so many bytes, once nothing parsed is in the buffer.
    pub(super) fn make_room(&mut self, frame_bytes: usize) {
        let bytes = self.parsed + frame_bytes;
        if bytes > self.buffer.len() {
            self.buffer.resize(bytes, 0);
        }
    }

    /// Where the next bytes go.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// So many bytes were read.
    pub(super) fn fill(&mut self, bytes: usize) {
        self.filled = (self.filled + bytes).min(self.buffer.len());
    }

    /// Cuts a batch off. `None` where nothing was in it for anybody.
    pub(super) fn cut(&mut self) -> Option<Ready> {
        let is_wanted = !self.pending.events.is_empty() || self.pending.ack_bytes > 0;
        let buffer = self.take_parsed(!self.pending.events.is_empty());
        if !is_wanted {
            return None;
        }
        let next = Vec::with_capacity(self.pending.events.len());
        let next = PendingEvents { events: next, ..PendingEvents::default() };
        let PendingEvents { events, has_compressed, ack_bytes } = std::mem::replace(&mut self.pending, next);
        let batch = EventBatch { generation: self.generation, events, buffer, charge: None };
        Some(Ready { batch, ack_bytes, has_compressed })
    }

    /// The bytes that were frames, where they are wanted. The rest moves to the front of a buffer of the usual size.
    fn take_parsed(&mut self, wanted: bool) -> Vec<u8> {
        let rest = self.parsed..self.filled;
        // A batch that was cut off early does not keep the memory of a full one.
        let is_small = self.parsed < self.buffer.len() / 4 && self.buffer.len() <= self.batch_bytes;
        let parsed = if !wanted || is_small {
            let parsed =
                if wanted { self.buffer.get(..self.parsed).unwrap_or_default() } else { &[] }.to_vec();
            self.buffer.copy_within(rest.clone(), 0);
            parsed
        } else {
            let mut next = vec![0; self.batch_bytes.max(rest.len())];
            if let (Some(front), Some(rest)) = (next.get_mut(..rest.len()), self.buffer.get(rest.clone())) {
                front.copy_from_slice(rest);
            }
            let mut parsed = std::mem::replace(&mut self.buffer, next);
            parsed.truncate(self.parsed);
            if self.parsed < parsed.capacity() / 4 {
                parsed.shrink_to_fit();
            }
            parsed
        };
        self.filled = rest.len();
        self.parsed = 0;
        parsed
    }
}
