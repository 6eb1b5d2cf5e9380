//! Frames of the memcached binary protocol: a header of 24 bytes, and a body in four parts.
//!
//! ```text
//!   0 magic  1 opcode  2 key length, 2 bytes      4 extras length  5 datatype  6 vbucket or status, 2 bytes
//!            with flexible framing: 2 framing length  3 key length
//!   8 body length, 4 bytes   12 opaque, 4 bytes   16 cas, 8 bytes   24 framing extras | extras | key | value
//! ```
//!
//! Numbers are big-endian. Source: `docs/BinaryProtocol.md` of `couchbase/kv_engine`.
//!
//! Invariants: a frame borrows from what was read; the parts that its header names lie within its body; nothing is
//! taken for a frame that is longer than the caller's limit.

use super::opcode::Opcode;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 24;

/// The longest frame that a server sends unless it is set to more, in bytes: `max_packet_size` of the KV engine.
pub const FRAME_BYTES_MAX: usize = 30 * 1024 * 1024;

/// What a frame is, and how its header is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// A request of the side that speaks, or what a producer tells.
    Request,
    /// An answer.
    Response,
    /// A request with framing extras.
    FlexRequest,
    /// An answer with framing extras.
    FlexResponse,
    /// A server's request to its client.
    ServerRequest,
    /// A client's answer to that.
    ServerResponse,
}

impl Magic {
    fn of_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x80 => Self::Request,
            0x81 => Self::Response,
            0x08 => Self::FlexRequest,
            0x18 => Self::FlexResponse,
            0x82 => Self::ServerRequest,
            0x83 => Self::ServerResponse,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Request => 0x80,
            Self::Response => 0x81,
            Self::FlexRequest => 0x08,
            Self::FlexResponse => 0x18,
            Self::ServerRequest => 0x82,
            Self::ServerResponse => 0x83,
        }
    }

    fn is_flexible(self) -> bool {
        matches!(self, Self::FlexRequest | Self::FlexResponse)
    }

    /// Whether it asks or tells, of the two sides that DCP knows.
    pub fn is_request(self) -> bool {
        matches!(self, Self::Request | Self::FlexRequest)
    }

    /// Whether it answers, of the two sides that DCP knows.
    pub fn is_response(self) -> bool {
        matches!(self, Self::Response | Self::FlexResponse)
    }
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub magic: Magic,
    /// What it is about.
    pub opcode: Opcode,
    /// Bits that say what the value is.
    pub datatype: u8,
    /// The vbucket of a request, the status of an answer.
    pub vb_or_status: u16,
    /// Comes back in the answer.
    pub opaque: u32,
    /// Version of a document.
    pub cas: u64,
    /// Framing extras, unread: none where the framing is not flexible.
    pub framing: &'a [u8],
    /// Fixed fields of the opcode.
    pub extras: &'a [u8],
    /// Name or key.
    pub key: &'a [u8],
    /// The rest.
    pub value: &'a [u8],
}

/// Why bytes are no frame, or a frame cannot be written as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The first byte is none of the protocol's.
    #[error("cannot read a frame: it begins with {0:#04x}, which this protocol does not know")]
    Magic(u8),
    /// Framing extras, extras and key are longer than the body.
    #[error("cannot read a frame of {opcode}: its parts have {parts} bytes and its body {body}")]
    Lengths {
        /// What it is about.
        opcode: Opcode,
        /// Bytes of framing extras, extras and key.
        parts: usize,
        /// Bytes of the body.
        body: usize,
    },
    /// The body is longer than it may be.
    #[error("cannot read a frame of {opcode}: it has {bytes} bytes, and {limit} are the most")]
    TooLong {
        /// What it is about.
        opcode: Opcode,
        /// Bytes of the frame.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A part is longer than a header can say.
    #[error("cannot write a frame of {0}: a part of it is too long")]
    Unwritable(Opcode),
}

/// What stands at the front of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A frame, and how many bytes it takes.
    Whole(Frame<'a>, usize),
    /// A part of a frame, which has at least this many bytes.
    Partial(usize),
}

impl<'a> Frame<'a> {
    /// Reads the frame at the front of `bytes`, which is refused where it has more than `limit` bytes.
    pub fn decode(bytes: &'a [u8], limit: usize) -> Result<Decoded<'a>, FrameError> {
        let Some(first) = bytes.first() else { return Ok(Decoded::Partial(HEADER_BYTES)) };
        let magic = Magic::of_byte(*first).ok_or(FrameError::Magic(*first))?;
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(Decoded::Partial(HEADER_BYTES));
        };
        let opcode = Opcode(header[1]);
        let (framing, key) = if magic.is_flexible() {
            (usize::from(header[2]), usize::from(header[3]))
        } else {
            (0, usize::from(u16::from_be_bytes([header[2], header[3]])))
        };
        let extras = usize::from(header[4]);
        let body = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let bytes = HEADER_BYTES.saturating_add(body);
        if bytes > limit {
            return Err(FrameError::TooLong { opcode, bytes, limit });
        }
        let parts = framing + extras + key;
        if parts > body {
            return Err(FrameError::Lengths { opcode, parts, body });
        }
        let Some(body) = rest.get(..body) else { return Ok(Decoded::Partial(bytes)) };
        // The parts were compared with the body: each of these splits lies within it.
        let (framing, rest) = body.split_at(framing);
        let (extras, rest) = rest.split_at(extras);
        let (key, value) = rest.split_at(key);
        let frame = Self {
            magic,
            opcode,
            datatype: header[5],
            vb_or_status: u16::from_be_bytes([header[6], header[7]]),
            opaque: u32::from_be_bytes([header[12], header[13], header[14], header[15]]),
            cas: u64::from_be_bytes([
                header[16], header[17], header[18], header[19], header[20], header[21], header[22],
                header[23],
            ]),
            framing,
            extras,
            key,
            value,
        };
        Ok(Decoded::Whole(frame, bytes))
    }

    /// Appends the frame's bytes to `out`, or nothing where a part is too long for the header.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let unwritable = |_| FrameError::Unwritable(self.opcode);
        let body = self.framing.len() + self.extras.len() + self.key.len() + self.value.len();
        let body = u32::try_from(body).map_err(unwritable)?;
        let extras = u8::try_from(self.extras.len()).map_err(unwritable)?;
        let lengths = if self.magic.is_flexible() {
            let framing = u8::try_from(self.framing.len()).map_err(unwritable)?;
            [framing, u8::try_from(self.key.len()).map_err(unwritable)?]
        } else if self.framing.is_empty() {
            u16::try_from(self.key.len()).map_err(unwritable)?.to_be_bytes()
        } else {
            return Err(FrameError::Unwritable(self.opcode));
        };
        out.extend_from_slice(&[self.magic.byte(), self.opcode.0]);
        out.extend_from_slice(&lengths);
        out.extend_from_slice(&[extras, self.datatype]);
        out.extend_from_slice(&self.vb_or_status.to_be_bytes());
        out.extend_from_slice(&body.to_be_bytes());
        out.extend_from_slice(&self.opaque.to_be_bytes());
        out.extend_from_slice(&self.cas.to_be_bytes());
        for part in [self.framing, self.extras, self.key, self.value] {
            out.extend_from_slice(part);
        }
        Ok(())
    }
}
