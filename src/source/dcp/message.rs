//! What a producer tells on a stream.
//!
//! [`Message::decode`] checks the length of every part before it reads it, and refuses what is longer or shorter than
//! its opcode says. Values stay as they came; [`Body`](super::Body) takes them apart.
//!
//! Source: `docs/dcp/documentation/commands` of `couchbase/kv_engine`, whose diagrams are wrong in places, and the
//! recorded sessions, which are right.

use super::frame::Frame;
use super::leb128::CollectionId;
use super::opcode::Opcode;
use crate::event::{KEY_BYTES_MAX, OsoEdge, Seqno, StreamEndReason};

/// Bits of a snapshot marker's type.
const MARKER_DISK: u32 = 0x02;

/// A message of a stream, or [`Message::Noop`], which belongs to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The changes that follow belong to a window.
    SnapshotMarker(SnapshotMarker),
    /// A document was written.
    Mutation(Mutation<'a>),
    /// A document was deleted.
    Deletion(Removal<'a>),
    /// A document reached its time to live.
    Expiration(Removal<'a>),
    /// A collection or scope changed.
    SystemEvent(SystemMessage<'a>),
    /// Changes up to here do not concern the stream.
    SeqnoAdvanced(Seqno),
    /// An edge of an out-of-order snapshot.
    OsoSnapshot(OsoEdge),
    /// The stream ended.
    StreamEnd(StreamEndReason),
    /// The producer wants to know whether its consumer is there.
    Noop,
    /// Something that nobody asked the producer for.
    Unknown,
}

/// A window of a vbucket's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotMarker {
    /// First seqno.
    pub start: Seqno,
    /// Last seqno.
    pub end: Seqno,
    /// Bits: 0x1 from memory, 0x2 from disk, 0x4 checkpoint, 0x8 to be acknowledged, 0x10 with history.
    pub kind: u32,
    /// The last seqno that clients may see, in markers of version 2.
    pub max_visible: Option<Seqno>,
}

impl SnapshotMarker {
    /// Whether each document comes at most once in the window.
    pub fn is_disk(&self) -> bool {
        self.kind & MARKER_DISK != 0
    }
}

/// A key and its collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentKey<'a> {
    /// The collection.
    pub collection: CollectionId,
    /// The key itself.
    pub name: &'a [u8],
}

/// A document that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// Position of the change.
    pub seqno: Seqno,
    /// How often the document was changed.
    pub revision: u64,
    /// What clients keep beside the document.
    pub flags: u32,
    /// When it expires, in seconds since 1970; zero is never.
    pub expiry: u32,
    /// For how long it is locked, in seconds.
    pub lock_time: u32,
    /// How lately it was used.
    pub nru: u8,
    /// Its key.
    pub key: DocumentKey<'a>,
    /// Bits that say what the value is.
    pub datatype: u8,
    /// The value as it came.
    pub value: &'a [u8],
    /// What the producer put behind the value.
    pub meta: &'a [u8],
}

/// A document that was deleted or that expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal<'a> {
    /// Position of the change.
    pub seqno: Seqno,
    /// How often the document was changed.
    pub revision: u64,
    /// When that was, in seconds since 1970, where the producer says so.
    pub time: Option<u32>,
    /// Its key.
    pub key: DocumentKey<'a>,
    /// Bits that say what the value is.
    pub datatype: u8,
    /// What is left of the document, as it came: its extended attributes.
    pub value: &'a [u8],
}

/// A change of collections or scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemMessage<'a> {
    /// Position of the change.
    pub seqno: Seqno,
    /// Number of the kind of event: 0 a collection is created, 1 dropped, 2 emptied, 3 a scope is created, 4 dropped,
    /// 5 a collection is changed.
    pub event: u32,
    /// How the value is laid out.
    pub version: u8,
    /// Name of the collection or scope, where it is created.
    pub name: &'a [u8],
    /// What it is about; `None` where the value is of a layout that was not asked for.
    pub subject: Option<SystemSubject>,
}

/// What a system event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemSubject {
    /// The manifest that the change made.
    pub manifest_uid: u64,
    /// The scope.
    pub scope: u32,
    /// The collection, where it is about one.
    pub collection: Option<CollectionId>,
    /// Seconds after which documents expire, where a collection was created with that.
    pub max_ttl: Option<u32>,
}

/// Why a message is not what its opcode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// A part has a length that it cannot have.
    #[error("cannot read {opcode}: its {part} has {bytes} bytes")]
    Length {
        /// What it is.
        opcode: Opcode,
        /// Which part.
        part: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A field has a value that it cannot have.
    #[error("cannot read {opcode}: its {field} is {value:#x}")]
    Field {
        /// What it is.
        opcode: Opcode,
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// The key does not begin with a collection.
    #[error("cannot read {0}: its key does not begin with the id of a collection")]
    Collection(Opcode),
}

/// Takes numbers off the front of a part.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (number, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*number)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn seqno(&mut self) -> Option<Seqno> {
        self.u64().map(Seqno)
    }
}

impl<'a> Message<'a> {
    /// Reads what a producer tells with a request, on a connection that has agreed on collections: each key begins with
    /// the id of its own.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, MessageError> {
        let parts = Parts { frame: *frame };
        match frame.opcode {
            Opcode::DCP_MUTATION => parts.mutation().map(Self::Mutation),
            Opcode::DCP_DELETION => parts.deletion().map(Self::Deletion),
            Opcode::DCP_EXPIRATION => parts.expiration().map(Self::Expiration),
            Opcode::DCP_SNAPSHOT_MARKER => parts.marker().map(Self::SnapshotMarker),
            Opcode::DCP_SYSTEM_EVENT => parts.system_event().map(Self::SystemEvent),
            Opcode::DCP_SEQNO_ADVANCED => parts.seqno_advanced().map(Self::SeqnoAdvanced),
            Opcode::DCP_OSO_SNAPSHOT => parts.oso_snapshot().map(Self::OsoSnapshot),
            Opcode::DCP_STREAM_END => parts.stream_end().map(Self::StreamEnd),
            Opcode::DCP_NOOP => parts.nothing().map(|()| Self::Noop),
            _ => Ok(Self::Unknown),
        }
    }
}

struct Parts<'a> {
    frame: Frame<'a>,
}

impl<'a> Parts<'a> {
    fn length(&self, part: &'static str, bytes: &[u8]) -> MessageError {
        MessageError::Length { opcode: self.frame.opcode, part, bytes: bytes.len() }
    }

    fn field(&self, field: &'static str, value: u64) -> MessageError {
        MessageError::Field { opcode: self.frame.opcode, field, value }
    }

    fn is_empty(&self, part: &'static str, bytes: &[u8]) -> Result<(), MessageError> {
        if bytes.is_empty() { Ok(()) } else { Err(self.length(part, bytes)) }
    }

    /// Reads extras of one length.
    fn extras<T>(&self, read: impl FnOnce(&mut Fields<'a>) -> Option<T>) -> Result<T, MessageError> {
        self.whole("extras", self.frame.extras, read)
    }

    fn whole<T>(
        &self,
        part: &'static str,
        bytes: &'a [u8],
        read: impl FnOnce(&mut Fields<'a>) -> Option<T>,
    ) -> Result<T, MessageError> {
        let mut fields = Fields(bytes);
        read(&mut fields).filter(|_| fields.0.is_empty()).ok_or_else(|| self.length(part, bytes))
    }

    fn nothing(&self) -> Result<(), MessageError> {
        self.is_empty("extras", self.frame.extras)?;
        self.is_empty("key", self.frame.key)?;
        self.is_empty("value", self.frame.value)
    }

    fn only_extras(&self) -> Result<(), MessageError> {
        self.is_empty("key", self.frame.key)?;
        self.is_empty("value", self.frame.value)
    }

    fn key(&self) -> Result<DocumentKey<'a>, MessageError> {
        let key = self.frame.key;
        let (collection, name) =
            CollectionId::split(key).ok_or(MessageError::Collection(self.frame.opcode))?;
        if name.is_empty() || name.len() > KEY_BYTES_MAX {
            return Err(self.length("key", key));
        }
        Ok(DocumentKey { collection, name })
    }

    fn mutation(&self) -> Result<Mutation<'a>, MessageError> {
        let key = self.key()?;
        let (mutation, meta_bytes) = self.extras(|fields| {
            let (seqno, revision) = (fields.seqno()?, fields.u64()?);
            let (flags, expiry, lock_time) = (fields.u32()?, fields.u32()?, fields.u32()?);
            let (meta_bytes, nru) = (fields.u16()?, fields.u8()?);
            let (datatype, value, meta): (u8, &[u8], &[u8]) = (self.frame.datatype, &[], &[]);
            let mutation =
                Mutation { seqno, revision, flags, expiry, lock_time, nru, key, datatype, value, meta };
            Some((mutation, usize::from(meta_bytes)))
        })?;
        let all = self.frame.value;
        let split = all.len().checked_sub(meta_bytes).and_then(|at| all.split_at_checked(at));
        let (value, meta) = split.ok_or_else(|| self.length("value", all))?;
        Ok(Mutation { value, meta, ..mutation })
    }

    fn removal(&self, seqno: Seqno, revision: u64, time: Option<u32>) -> Result<Removal<'a>, MessageError> {
        let key = self.key()?;
        let Frame { datatype, value, .. } = self.frame;
        Ok(Removal { seqno, revision, time, key, datatype, value })
    }

    fn deletion(&self) -> Result<Removal<'a>, MessageError> {
        // With times of deletion there are 21 bytes, without 18.
        let with_time = self.frame.extras.len() == 21;
        let (seqno, revision, time, meta) = self.extras(|fields| {
            let (seqno, revision) = (fields.seqno()?, fields.u64()?);
            Some(if with_time {
                let time = fields.u32()?;
                fields.u8()?;
                (seqno, revision, Some(time), 0)
            } else {
                (seqno, revision, None, fields.u16()?)
            })
        })?;
        let removal = self.removal(seqno, revision, time)?;
        let left = removal.value.len().checked_sub(usize::from(meta));
        let value = left.and_then(|left| removal.value.get(..left));
        Ok(Removal { value: value.ok_or_else(|| self.length("value", removal.value))?, ..removal })
    }

    fn expiration(&self) -> Result<Removal<'a>, MessageError> {
        let (seqno, revision, time) =
            self.extras(|fields| Some((fields.seqno()?, fields.u64()?, fields.u32()?)))?;
        self.removal(seqno, revision, Some(time))
    }

    fn marker(&self) -> Result<SnapshotMarker, MessageError> {
        self.is_empty("key", self.frame.key)?;
        let window = |fields: &mut Fields<'a>| {
            let (start, end, kind) = (fields.seqno()?, fields.seqno()?, fields.u32()?);
            Some(SnapshotMarker { start, end, kind, max_visible: None })
        };
        let marker = if self.frame.extras.len() == 1 {
            let version = self.extras(Fields::u8)?;
            // Behind what version 2.0 has, 2.1 has a time, 2.2 the last prepared and the last purged seqno.
            let more = match version {
                0 => 0,
                1 => 1,
                2 => 2,
                _ => return Err(self.field("version", u64::from(version))),
            };
            self.whole("value", self.frame.value, |fields| {
                let marker = window(fields)?;
                let (max_visible, _completed) = (fields.seqno()?, fields.seqno()?);
                for _ in 0..more {
                    fields.u64()?;
                }
                Some(SnapshotMarker { max_visible: Some(max_visible), ..marker })
            })?
        } else {
            self.is_empty("value", self.frame.value)?;
            self.extras(window)?
        };
        if marker.end < marker.start {
            return Err(self.field("last seqno", marker.end.0));
        }
        Ok(marker)
    }

    fn system_event(&self) -> Result<SystemMessage<'a>, MessageError> {
        let (seqno, event, version) =
            self.extras(|fields| Some((fields.seqno()?, fields.u32()?, fields.u8()?)))?;
        let value = self.frame.value;
        let subject = match (event, version) {
            (0..=2, 0 | 1) => {
                let has_ttl = event == 0 && version == 1;
                Some(self.whole("value", value, |fields| {
                    let (manifest_uid, scope) = (fields.u64()?, fields.u32()?);
                    let collection = Some(CollectionId(fields.u32()?));
                    let max_ttl = if has_ttl { Some(fields.u32()?) } else { None };
                    Some(SystemSubject { manifest_uid, scope, collection, max_ttl })
                })?)
            }
            (3 | 4, 0) => Some(self.whole("value", value, |fields| {
                let (manifest_uid, scope) = (fields.u64()?, fields.u32()?);
                Some(SystemSubject { manifest_uid, scope, collection: None, max_ttl: None })
            })?),
            _ => None,
        };
        Ok(SystemMessage { seqno, event, version, name: self.frame.key, subject })
    }

    fn seqno_advanced(&self) -> Result<Seqno, MessageError> {
        self.only_extras()?;
        self.extras(Fields::seqno)
    }

    fn oso_snapshot(&self) -> Result<OsoEdge, MessageError> {
        self.only_extras()?;
        match self.extras(Fields::u32)? {
            1 => Ok(OsoEdge::Start),
            2 => Ok(OsoEdge::End),
            other => Err(self.field("edge", u64::from(other))),
        }
    }

    fn stream_end(&self) -> Result<StreamEndReason, MessageError> {
        self.only_extras()?;
        let reason = self.extras(Fields::u32)?;
        Ok(match reason {
            0 => StreamEndReason::Finished,
            1 => StreamEndReason::Closed,
            2 => StreamEndReason::StateChanged,
            3 => StreamEndReason::Disconnected,
            4 => StreamEndReason::TooSlow,
            5 => StreamEndReason::BackfillFailed,
            6 => StreamEndReason::RolledBack,
            7 => StreamEndReason::FilterEmpty,
            8 => StreamEndReason::LostPrivileges,
            other => return Err(self.field("reason", u64::from(other))),
        })
    }
}
