//! Numbers in LEB128, unsigned, as ids of collections stand before keys.
//!
//! Invariant: what is accepted is the one shortest form of a number of 32 bits, so that a document has one key.

use std::fmt;

/// The longest form of a number of 32 bits.
const BYTES_MAX: usize = 5;

/// Number of a collection within its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CollectionId(pub u32);

/// Requests and manifests show it as hexadecimal text.
impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl CollectionId {
    /// Takes the id off the front of a key. Gives it and the rest; `None` where no number of 32 bits stands there
    /// in its shortest form.
    pub fn split(key: &[u8]) -> Option<(Self, &[u8])> {
        let (first, rest) = key.split_first()?;
        if *first < 0x80 {
            return Some((Self(u32::from(*first)), rest));
        }
        let len = key.iter().take(BYTES_MAX).position(|byte| *byte < 0x80)? + 1;
        let (number, rest) = key.split_at_checked(len)?;
        let value = number.iter().rev().fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
        let is_shortest = number.last() != Some(&0);
        let id = u32::try_from(value).ok().filter(|_| is_shortest)?;
        Some((Self(id), rest))
    }

    /// Appends the id as it stands before a key.
    pub fn put(self, out: &mut Vec<u8>) {
        let mut left = self.0;
        while left >= 0x80 {
            out.push(0x80 | (left & 0x7f) as u8);
            left >>= 7;
        }
        let [last, ..] = left.to_le_bytes();
        out.push(last);
    }
}
