//! What a consumer asks a test's producer for, taken apart.

use super::Raw;

/// Takes the next frame out of what was read, when it is there as a whole.
pub(super) fn take_frame(read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let body = u32::from_be_bytes(read.get(8..12)?.try_into().unwrap());
    let len = 24 + usize::try_from(body).unwrap();
    (read.len() >= len).then(|| read.drain(..len).collect())
}

/// A request, taken apart by hand.
pub(super) struct Asked<'a> {
    pub(super) magic: u8,
    pub(super) opcode: u8,
    pub(super) datatype: u8,
    pub(super) vb: u16,
    pub(super) opaque: u32,
    pub(super) extras: &'a [u8],
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
}

impl<'a> Asked<'a> {
    /// Nothing, where its parts are longer than it is.
    pub(super) fn of(frame: &'a [u8]) -> Option<Self> {
        let key = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
        let (extras, rest) = frame[24..].split_at_checked(usize::from(frame[4]))?;
        let (key, value) = rest.split_at_checked(key)?;
        Some(Self {
            magic: frame[0],
            opcode: frame[1],
            datatype: frame[5],
            vb: u16::from_be_bytes([frame[6], frame[7]]),
            opaque: u32::from_be_bytes(frame[12..16].try_into().unwrap()),
            extras,
            key,
            value,
        })
    }

    pub(super) fn number(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.extras[at..at + 8].try_into().unwrap())
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.extras[at..at + 4].try_into().unwrap())
    }

    pub(super) fn answer(&self, status: u16, value: &[u8]) -> Vec<u8> {
        let (opcode, opaque) = (self.opcode, self.opaque);
        Raw { magic: 0x81, opcode, vb_or_status: status, opaque, value, ..Raw::default() }.bytes()
    }
}

/// What a stream is asked for of: a collection, or the whole bucket, and the manifest that the consumer knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) collection: Option<u32>,
    pub(super) manifest_uid: Option<u64>,
}

impl Filter {
    /// An error, where it is asked for in a way that consumers here have no use for: by scope, by several collections,
    /// with a number of the stream.
    pub(super) fn of(value: &[u8]) -> Result<Self, String> {
        let wrong = || format!("a filter that nobody understands: {}", String::from_utf8_lossy(value));
        if value.is_empty() {
            return Ok(Self::default());
        }
        let mut filter: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(value).map_err(|_| wrong())?;
        let number = |value: &serde_json::Value| u64::from_str_radix(value.as_str()?, 16).ok();
        let manifest_uid = filter.remove("uid").map(|uid| number(&uid).ok_or_else(wrong)).transpose()?;
        let wanted = filter.remove("collections").filter(|_| filter.is_empty());
        let wanted = wanted.as_ref().and_then(|wanted| wanted.as_array());
        let Some([wanted]) = wanted.map(Vec::as_slice) else { return Err(wrong()) };
        let collection = number(wanted).and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
        Ok(Self { collection: Some(collection), manifest_uid })
    }
}
