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

/// The collection that a stream is asked for of, or the whole bucket. An error, where it is asked for in a way that
/// consumers here have no use for: by scope, by several collections, with a manifest or a number of the stream.
pub(super) fn filter(value: &[u8]) -> Result<Option<u32>, String> {
    let wrong = || format!("a filter that nobody understands: {}", String::from_utf8_lossy(value));
    if value.is_empty() {
        return Ok(None);
    }
    let filter: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(value).map_err(|_| wrong())?;
    let wanted = filter.get("collections").filter(|_| filter.len() == 1).and_then(|wanted| wanted.as_array());
    let Some([wanted]) = wanted.map(Vec::as_slice) else { return Err(wrong()) };
    let wanted = wanted.as_str().and_then(|wanted| u32::from_str_radix(wanted, 16).ok());
    wanted.map(Some).ok_or_else(wrong)
}
