//! What travels from a source to the workers: events, and the batches that carry them.
//!
//! A [`DcpEvent`] is one change of a document or one control message of a vbucket's stream. Events never travel
//! alone: an [`EventBatch`] holds many of them beside *one* buffer with all their keys and values, so that the
//! number of allocations belongs to the batch and not to the event. A batch carries its [`Charge`] on the
//! [`ByteBudget`] of its source; when the last holder drops the batch, the bytes are given back.
//!
//! Invariants: every [`Span`] of a batch lies within its buffer; keys are UTF-8 of 1 to [`KEY_BYTES_MAX`] bytes;
//! the events of one vbucket stand in the order of its stream; all events of a batch belong to one generation.

use std::fmt;

use crate::text::number_id;

mod budget;
mod xattrs;

pub use budget::{ByteBudget, Charge};
pub use xattrs::{Xattrs, XattrsCutOff};

/// The longest document key, as in Couchbase.
pub const KEY_BYTES_MAX: usize = 250;

/// The largest document, as in Couchbase.
pub const DOCUMENT_BYTES_MAX: usize = 20 * 1024 * 1024;

/// The largest number of vbuckets: key hashes have fifteen bits.
pub const VBUCKETS_MAX: u16 = 1 << 15;

number_id! {
    /// A hash partition of a bucket.
    VbId(u16)
}
number_id! {
    /// A position in a vbucket's history. Zero is before the first change.
    Seqno(u64)
}
number_id! {
    /// The identity of one branch of a vbucket's history.
    VbUuid(u64)
}
number_id! {
    /// Tells one life of a stream from the next: messages of an older generation are never taken for the new one's.
    Generation(u64)
}

impl Seqno {
    /// As the end of a snapshot window: the window is open-ended and every seqno in it is a consistent point.
    /// Files are read in such a window, because nobody knows their number of lines beforehand.
    pub const OPEN_END: Self = Self(u64::MAX);

    /// The seqno of the next change.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl VbId {
    /// The vbucket of a document, as every Couchbase client computes it: the upper half of the key's CRC-32
    /// (IEEE), fifteen bits of it, modulo the number of vbuckets. Source: `vbucket.c` of libcouchbase.
    pub fn of_key(key: &[u8], vbuckets: u16) -> Self {
        let digest = (crc32fast::hash(key) >> 16) & 0x7fff;
        // Fifteen bits fit, and the remainder is smaller still.
        Self((digest % u32::from(vbuckets.max(1))) as u16)
    }
}

/// A slice of the buffer of an [`EventBatch`], in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// The slice from `start` to the present end of `buffer`. Buffers of batches stay far below 4 GiB; a longer
    /// one gives an empty span.
    pub fn since(start: usize, buffer: &[u8]) -> Self {
        Self::new(start, buffer.len().saturating_sub(start))
    }

    /// The slice of `len` bytes from `start` on.
    pub fn new(start: usize, len: usize) -> Self {
        match (u32::try_from(start), u32::try_from(len)) {
            (Ok(start), Ok(len)) => Self { start, len },
            _ => Self::default(),
        }
    }

    /// The same bytes once `by` bytes were put before their buffer.
    #[must_use]
    pub fn shifted(self, by: usize) -> Self {
        Self::new(self.start as usize + by, self.len as usize)
    }

    /// The `len` bytes before these; nothing where there are fewer.
    #[must_use]
    pub fn before(self, len: u32) -> Self {
        self.start.checked_sub(len).map_or_else(Self::default, |start| Self { start, len })
    }

    /// The bytes in `buffer`; none where the span does not lie in it.
    pub fn of(self, buffer: &[u8]) -> &[u8] {
        let start = self.start as usize;
        buffer.get(start..start + self.len as usize).unwrap_or_default()
    }
}

/// One message of a vbucket's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DcpEvent {
    /// The vbucket.
    pub vb: VbId,
    /// The change's position; for control messages the position at which they stand.
    pub seqno: Seqno,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a vbucket or to one of its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The answer to a stream that was asked for. If it began, its first change comes after the event's seqno.
    StreamReq {
        /// Whether it began.
        status: StreamStatus,
    },
    /// The changes that follow belong to this snapshot window.
    SnapshotMarker {
        /// First seqno of the window.
        start: Seqno,
        /// Last seqno of the window, or [`Seqno::OPEN_END`].
        end: Seqno,
        /// Whether the producer promises that each document comes at most once in the window, as it does where it
        /// reads the window from its disk.
        each_once: bool,
    },
    /// The changes between the two edges come in no order of their seqnos. Until the second one, no seqno is a
    /// point that a stream could be continued from.
    OsoSnapshot {
        /// Which of the two.
        edge: OsoEdge,
    },
    /// A document was written.
    Mutation {
        /// Document key.
        key: Span,
        /// The whole document.
        value: Span,
        /// Bytes of extended attributes, which stand right before the value; zero where there are none.
        xattrs_len: u32,
        /// What the value is.
        datatype: Datatype,
    },
    /// A document was deleted.
    Deletion {
        /// Document key.
        key: Span,
    },
    /// A document reached its time to live.
    Expiration {
        /// Document key.
        key: Span,
    },
    /// A collection or scope changed.
    SystemEvent {
        /// How.
        event: SystemEvent,
    },
    /// Changes up to here are of no interest to the stream.
    SeqnoAdvanced,
    /// The stream ended.
    StreamEnd {
        /// Why.
        reason: StreamEndReason,
    },
}

/// The producer's answer to a stream request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamStatus {
    /// The stream began.
    Success {
        /// Branch of the history that it follows: the newest entry of the failover log.
        vbuuid: VbUuid,
    },
    /// The consumer is ahead of the producer, or on another branch, and has to go back.
    Rollback {
        /// How far.
        to: Seqno,
    },
    /// A collection that was asked for does not exist.
    UnknownCollection,
    /// A scope that was asked for does not exist.
    UnknownScope,
    /// Any other refusal, with the status on the wire.
    Refused {
        /// Status of the memcached protocol.
        status: u16,
    },
}

impl fmt::Display for StreamStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success { .. } => f.write_str("success"),
            Self::Rollback { to } => write!(f, "roll back to {to}"),
            Self::UnknownCollection => f.write_str("unknown collection"),
            Self::UnknownScope => f.write_str("unknown scope"),
            Self::Refused { status } => write!(f, "refused with status {status:#04x}"),
        }
    }
}

/// An edge of an out-of-order snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OsoEdge {
    /// It begins.
    Start,
    /// It is complete.
    End,
}

/// What a value is: the bits of the wire's datatype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Datatype(pub u8);

impl Datatype {
    /// A JSON document.
    pub const JSON: Self = Self(0x01);
    /// Extended attributes were there. They are not part of the value, and stand before it.
    pub const XATTR: Self = Self(0x04);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A change of a bucket's collections or scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemEvent {
    /// A collection was created.
    CollectionCreate,
    /// A collection was dropped.
    CollectionDrop,
    /// A collection was emptied.
    CollectionFlush,
    /// A scope was created.
    ScopeCreate,
    /// A scope was dropped.
    ScopeDrop,
    /// A collection's settings changed.
    CollectionChanged,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEndReason {
    /// Everything that was asked for was delivered.
    Finished,
    /// It was closed by request.
    Closed,
    /// The vbucket is no longer active on the node.
    StateChanged,
    /// The connection was lost.
    Disconnected,
    /// The consumer was too slow.
    TooSlow,
    /// The producer could not read its data back.
    BackfillFailed,
    /// The producer rolled the vbucket back.
    RolledBack,
    /// Nothing of what was asked for exists any more.
    FilterEmpty,
    /// The user may no longer read the bucket.
    LostPrivileges,
    /// The same stream began again.
    Superseded,
    /// The data path ended before the stream had.
    DataPathEnded,
}

impl fmt::Display for StreamEndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::Closed => "closed",
            Self::StateChanged => "the vbucket is no longer active there",
            Self::Disconnected => "the connection was lost",
            Self::TooSlow => "the consumer was too slow",
            Self::BackfillFailed => "the producer could not read its data back",
            Self::RolledBack => "the producer rolled back",
            Self::FilterEmpty => "nothing that was asked for exists any more",
            Self::LostPrivileges => "the user may no longer read the bucket",
            Self::Superseded => "the stream began again",
            Self::DataPathEnded => "the data path ended",
        })
    }
}

/// Events and the one buffer that their spans point into.
#[derive(Debug, Default)]
pub struct EventBatch {
    /// Life of the streams that the events belong to.
    pub generation: Generation,
    /// The events, each vbucket's in the order of its stream.
    pub events: Vec<DcpEvent>,
    /// Keys and values.
    pub buffer: Vec<u8>,
    /// What the batch weighs on its source's budget.
    pub charge: Option<Charge>,
}

impl EventBatch {
    /// Puts the events of `later`, which is of the same generation and has no charge, behind these.
    pub fn append(&mut self, later: &Self) {
        let by = self.buffer.len();
        self.buffer.extend_from_slice(&later.buffer);
        self.events.extend(later.events.iter().map(|event| {
            let kind = match event.kind {
                EventKind::Mutation { key, value, xattrs_len, datatype } => {
                    let (key, value) = (key.shifted(by), value.shifted(by));
                    EventKind::Mutation { key, value, xattrs_len, datatype }
                }
                EventKind::Deletion { key } => EventKind::Deletion { key: key.shifted(by) },
                EventKind::Expiration { key } => EventKind::Expiration { key: key.shifted(by) },
                other => other,
            };
            DcpEvent { kind, ..*event }
        }));
    }

    /// The memory that the batch holds, in bytes, with a constant for what every batch needs on its way, so that a
    /// budget also bounds the number of small ones. A batch that was sent early holds more than its events need.
    pub fn weight_bytes(&self) -> usize {
        const BATCH_BYTES: usize = 1024;
        self.buffer.capacity() + self.events.capacity() * size_of::<DcpEvent>() + BATCH_BYTES
    }
}
