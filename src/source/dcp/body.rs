//! A document's value as it travels: compressed perhaps, and with its extended attributes in front.
//!
//! ```text
//!   snappy( attributes length, 4 bytes | { pair length, 4 bytes | name 0 value 0 } … | document )
//! ```
//!
//! Invariant: nothing is inflated beyond the caller's limit.

use crate::event::{Datatype, Xattrs};

/// The bit of the datatype that says that the whole value is compressed.
const SNAPPY: Datatype = Datatype(0x02);

/// A value that was taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body<'a> {
    /// The extended attributes.
    pub xattrs: Xattrs<'a>,
    /// The document.
    pub document: &'a [u8],
}

/// Why a value cannot be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It is no compressed value, whatever its datatype says.
    #[error("it is not compressed as its datatype says")]
    Snappy,
    /// It would be longer than it may be.
    #[error("it has {bytes} bytes when it is inflated, and {limit} are the most")]
    TooLong {
        /// Bytes that it would have.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The attributes are longer than the value.
    #[error("its extended attributes are cut off")]
    Xattrs,
}

/// Whether a value has to be inflated before it can be read.
pub(super) fn is_compressed(datatype: u8) -> bool {
    Datatype(datatype).has(SNAPPY)
}

/// Appends what `value` is when it is inflated to `out`. Nothing is appended where that fails.
pub(super) fn inflate(value: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), BodyError> {
    let bytes = snap::raw::decompress_len(value).map_err(|_| BodyError::Snappy)?;
    if bytes > limit {
        return Err(BodyError::TooLong { bytes, limit });
    }
    // A length that the value is too short to have would be allocated for nothing: an element of three bytes makes
    // 64 at the most.
    if bytes / 64 > value.len() {
        return Err(BodyError::Snappy);
    }
    let start = out.len();
    out.resize(start + bytes, 0);
    let room = out.get_mut(start..).unwrap_or_default();
    let inflated = snap::raw::Decoder::new().decompress(value, room);
    if inflated != Ok(bytes) {
        out.truncate(start);
        return Err(BodyError::Snappy);
    }
    Ok(())
}

impl<'a> Body<'a> {
    /// Takes a value of `datatype` apart. One that is compressed is inflated into `scratch`, which is emptied
    /// before, and has at most `limit` bytes then.
    pub fn decode(
        datatype: u8,
        value: &'a [u8],
        limit: usize,
        scratch: &'a mut Vec<u8>,
    ) -> Result<Self, BodyError> {
        scratch.clear();
        if is_compressed(datatype) {
            inflate(value, limit, scratch)?;
            Self::split(datatype, scratch)
        } else {
            Self::split(datatype, value)
        }
    }

    /// Takes a value apart that is not compressed.
    pub(super) fn split(datatype: u8, value: &'a [u8]) -> Result<Self, BodyError> {
        if !Datatype(datatype).has(Datatype::XATTR) {
            return Ok(Self { xattrs: Xattrs::default(), document: value });
        }
        let split = value.split_first_chunk::<4>().and_then(|(len, rest)| {
            let (pairs, document) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            Some(Self { xattrs: Xattrs::of(pairs), document })
        });
        split.ok_or(BodyError::Xattrs)
    }

    /// Bytes of the extended attributes, right before the document.
    pub(super) fn xattrs_len(&self) -> u32 {
        u32::try_from(self.xattrs.as_bytes().len()).unwrap_or_default()
    }

    /// The datatype of the document alone.
    pub fn document_datatype(datatype: u8) -> Datatype {
        Datatype(datatype & !SNAPPY.0)
    }
}
