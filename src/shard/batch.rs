//! The unit of writing: what one worker made of one batch of events, or of a piece of one, for one shard.
//!
//! A [`WriteBatch`] holds, for each changed document and index instance, the *whole* set of entries that the
//! document has from now on, and how far each vbucket was followed, also where no entry changed. A shard applies
//! it as a whole or not at all. All bytes stand in one buffer, so that the number of allocations belongs to the
//! batch; a batch that was applied comes back empty, to be filled again.

use std::sync::Arc;

use crate::event::{DcpEvent, Generation, Seqno, Span, VbId};
use crate::timestamp::Position;

use super::InstId;

/// The longest entry, and the longest document id, that a shard takes.
pub const ENTRY_BYTES_MAX: usize = 60 * 1024;

/// What an empty batch keeps at most: bytes, and places of documents and of keys.
const KEPT_BYTES: usize = 1024 * 1024;
const KEPT_PLACES: usize = 32 * 1024;

/// What the producer promised about the changes of one vbucket in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Window {
    /// They are in the order of their seqnos, and nothing else is promised.
    #[default]
    Ordered,
    /// They are all of the first snapshot of a stream from seqno zero, in which each document comes once.
    First,
    /// The batch ends within an out-of-order snapshot: what it holds stands behind its position.
    OutOfOrder,
}

impl Window {
    /// The window of changes of `self` that are followed by changes of `next` without a gap or a step back.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        if self == next || next == Self::OutOfOrder { next } else { Self::Ordered }
    }
}

/// How far a batch moves one vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// The vbucket.
    pub vb: VbId,
    /// The stream's position before the batch. The shard must have reached it, or changes would be missing.
    pub from: Seqno,
    /// The position after the batch.
    pub to: Position,
    /// What is known of the changes in between.
    pub window: Window,
}

/// The entries that a document has in an instance from `seqno` on.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The index instance.
    pub inst: InstId,
    /// Vbucket of the document.
    pub vb: VbId,
    /// The change's position in the vbucket.
    pub seqno: Seqno,
    /// Document id.
    pub doc_id: &'a [u8],
    /// Whether the instance is known to have no entries of the document, so that none have to be looked for.
    pub once: bool,
    keys: &'a [Span],
    bytes: &'a [u8],
}

impl<'a> Change<'a> {
    /// The encoded keys, ascending and without duplicates; none where the document has no entry.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let bytes = self.bytes;
        self.keys.iter().map(move |span| span.of(bytes))
    }
}

#[derive(Debug, Clone, Copy)]
struct Record {
    inst: InstId,
    vb: VbId,
    seqno: Seqno,
    doc_id: Span,
    first_key: usize,
    key_count: usize,
}

/// Changes and positions that belong together.
#[derive(Debug, Default)]
pub struct WriteBatch {
    /// Life of the streams that the batch comes from.
    pub generation: Generation,
    /// The instances that were evaluated: their positions move, all of them alike.
    pub instances: Arc<[InstId]>,
    /// Instances that were evaluated too while another data path fills them: their positions move with the others'
    /// in the vbuckets where they have [joined](super::Shard::join) these; elsewhere their changes are passed over.
    pub joining: Arc<[InstId]>,
    /// At most one for each vbucket.
    pub advances: Vec<Advance>,
    /// What happened to the streams themselves: begins, refusals, snapshots, system events, ends. One that stands
    /// at a seqno comes after the changes up to it. Shards pass over them; an endpoint of a host may not.
    pub notes: Vec<DcpEvent>,
    records: Vec<Record>,
    keys: Vec<Span>,
    bytes: Vec<u8>,
    longest_entry_bytes: usize,
}

impl WriteBatch {
    /// Copies a document's id into the batch, for the changes of that document.
    pub fn add_document(&mut self, doc_id: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(doc_id);
        self.longest_entry_bytes = self.longest_entry_bytes.max(doc_id.len());
        Span::since(start, &self.bytes)
    }

    /// Adds the new entries of a document in one instance. `keys` must be ascending and without duplicates.
    pub fn add_change<'k>(
        &mut self,
        inst: InstId,
        (vb, seqno): (VbId, Seqno),
        doc_id: Span,
        keys: impl IntoIterator<Item = &'k [u8]>,
    ) {
        let first_key = self.keys.len();
        let doc_id_bytes = doc_id.of(&self.bytes).len();
        for key in keys {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(key);
            self.longest_entry_bytes = self.longest_entry_bytes.max(key.len() + doc_id_bytes);
            self.keys.push(Span::since(start, &self.bytes));
        }
        let key_count = self.keys.len() - first_key;
        self.records.push(Record { inst, vb, seqno, doc_id, first_key, key_count });
    }

    /// The changes, in the order in which they were added.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        self.records.iter().map(|record| Change {
            inst: record.inst,
            vb: record.vb,
            seqno: record.seqno,
            doc_id: record.doc_id.of(&self.bytes),
            once: false,
            keys: self.keys.get(record.first_key..record.first_key + record.key_count).unwrap_or_default(),
            bytes: &self.bytes,
        })
    }

    /// Bytes of documents' ids and keys.
    pub fn content_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Length of the longest entry, an encoded key with the document's id behind it.
    pub fn longest_entry_bytes(&self) -> usize {
        self.longest_entry_bytes
    }

    /// Whether applying the batch would change nothing.
    pub fn is_empty(&self) -> bool {
        self.advances.is_empty() && self.notes.is_empty()
    }

    /// The memory that the batch holds, in bytes. One that was filled before holds more than its changes need.
    pub fn weight_bytes(&self) -> usize {
        size_of::<Self>()
            + self.advances.capacity() * size_of::<Advance>()
            + self.notes.capacity() * size_of::<DcpEvent>()
            + self.records.capacity() * size_of::<Record>()
            + self.keys.capacity() * size_of::<Span>()
            + self.bytes.capacity()
    }

    /// Empties the batch and keeps its memory, but for what only an unusual document takes.
    pub fn clear(&mut self) {
        self.advances.clear();
        self.notes.clear();
        self.records.clear();
        self.keys.clear();
        self.bytes.clear();
        self.longest_entry_bytes = 0;
        self.records.shrink_to(KEPT_PLACES);
        self.keys.shrink_to(KEPT_PLACES);
        self.bytes.shrink_to(KEPT_BYTES);
    }
}
