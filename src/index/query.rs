//! What a scan is asked for, as stretches of stored entries.
//!
//! Several ranges become stretches that do not meet, in ascending order, so that an entry which lies in two ranges
//! comes once. A cursor cuts off what lies before it in the direction of the scan.
//!
//! A cursor is the encoded key and the id of the last entry that was given, because what is printed of a key does
//! not tell a missing part from null. Its text is hexadecimal: the version `01`, the entry, and the CRC-32 (IEEE,
//! big-endian) of both, so that a slip of the fingers is told instead of followed.

use std::fmt;
use std::ops::Bound;
use std::str::FromStr;

use crate::durable::hex;
use crate::event::{Seqno, VbId};

use super::collate::split_parts;
use super::range::{BEYOND, KeyBounds, KeyRange, RangeError};

const CURSOR_VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// What is asked of an index. The default is everything, in ascending order.
#[derive(Debug, Clone, Default)]
pub struct ScanQuery {
    /// The parts of the index that are asked for; none ask for the whole. They may overlap and stand in any order:
    /// what comes is in key order all the same, and nothing comes twice.
    pub ranges: Vec<KeyRange>,
    /// From the highest key to the lowest.
    pub reverse: bool,
    /// Go on behind this entry, in the direction of the scan.
    pub after: Option<Cursor>,
    /// Give one entry for each different beginning of this many key parts: the first in the direction of the scan,
    /// its key cut to these parts.
    pub distinct: Option<usize>,
    /// Wait until the index covers these changes, while the scan's limit lasts.
    pub at_least: Vec<(VbId, Seqno)>,
}

impl From<KeyRange> for ScanQuery {
    fn from(range: KeyRange) -> Self {
        Self { ranges: vec![range], ..Self::default() }
    }
}

/// The place behind an entry, from which another scan of the same index goes on, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(Vec<u8>);

/// A text that is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no cursor: give the whole text that an earlier scan printed, or leave it out to begin anew")]
pub struct CursorError;

/// Why an index cannot be asked for this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The ends of a range do not fit the index.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The cursor is of another index.
    #[error("its keys have {components} parts, and those of the cursor do not; give a cursor of this index")]
    Cursor {
        /// Parts of the keys.
        components: usize,
    },
    /// There are no distinct beginnings of so many parts.
    #[error(
        "its keys have {components} parts: distinct beginnings have 1 to {components} of them, not {given}"
    )]
    Distinct {
        /// Parts that were asked for.
        given: usize,
        /// Parts of the keys.
        components: usize,
    },
    /// There is no such vbucket, and so nothing to wait for.
    #[error("there is no vbucket {vb} to wait for: the bucket has {vbuckets}, counted from 0")]
    Vbucket {
        /// The vbucket that was named.
        vb: VbId,
        /// Number of vbuckets.
        vbuckets: u16,
    },
}

impl Cursor {
    /// The place behind a stored entry.
    pub(super) fn behind(entry: &[u8]) -> Self {
        Self(entry.to_vec())
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![CURSOR_VERSION];
        bytes.extend_from_slice(&self.0);
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        f.write_str(&hex(&bytes))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.trim().as_bytes().chunks(2).map(pair).collect();
        let bytes = bytes.ok_or(CursorError)?;
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(CursorError)?;
        match content {
            [CURSOR_VERSION, entry @ ..] if crc32fast::hash(content).to_be_bytes() == *checksum => {
                Ok(Self(entry.to_vec()))
            }
            _ => Err(CursorError),
        }
    }
}

/// A stretch of stored entries: from `low` on, up to what lies before `high`. Without an end it is open there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    low: Option<Vec<u8>>,
    high: Option<Vec<u8>>,
}

impl Stretch {
    fn is_empty(&self) -> bool {
        let low = self.low.as_deref().unwrap_or_default();
        self.high.as_deref().is_some_and(|high| low >= high)
    }

    /// What of it lies at `place` or behind it, in the direction of the scan; nothing where that is empty.
    pub(super) fn from(&self, place: Option<&[u8]>, reverse: bool) -> Option<Self> {
        let mut cut = self.clone();
        if let Some(place) = place {
            if reverse {
                cut.high =
                    Some(cut.high.filter(|high| high.as_slice() <= place).unwrap_or_else(|| place.to_vec()));
            } else {
                cut.low =
                    Some(cut.low.filter(|low| low.as_slice() >= place).unwrap_or_else(|| place.to_vec()));
            }
        }
        (!cut.is_empty()).then_some(cut)
    }

    pub(super) fn bounds(self) -> KeyBounds {
        (
            self.low.map_or(Bound::Unbounded, Bound::Included),
            self.high.map_or(Bound::Unbounded, Bound::Excluded),
        )
    }
}

/// Where a scan goes on that leaves out what begins with `prefix`: the first place behind it, which in reverse is the
/// end of what lies before it.
pub(super) fn beyond(prefix: &[u8], reverse: bool) -> Vec<u8> {
    let mut place = prefix.to_vec();
    if !reverse {
        place.push(BEYOND);
    }
    place
}

impl ScanQuery {
    /// The stretches that are asked for, in ascending order, with what lies before the cursor cut off.
    pub(super) fn stretches(&self, components: usize) -> Result<Vec<Stretch>, QueryError> {
        if let Some(given) = self.distinct.filter(|parts| !(1..=components).contains(parts)) {
            return Err(QueryError::Distinct { given, components });
        }
        let mut all = Vec::with_capacity(self.ranges.len().max(1));
        for range in &self.ranges {
            let (low, high) = range.bounds(components)?;
            all.push(Stretch { low: end(low), high: end(high) });
        }
        if self.ranges.is_empty() {
            all.push(Stretch { low: None, high: None });
        }
        let start = self.after.as_ref().map(|cursor| self.start(cursor, components)).transpose()?;
        let left = all.iter().filter_map(|stretch| stretch.from(start.as_deref(), self.reverse));
        Ok(joined(left.collect()))
    }

    /// Where the scan goes on behind a cursor.
    fn start(&self, Cursor(entry): &Cursor, components: usize) -> Result<Vec<u8>, QueryError> {
        let foreign = |_| QueryError::Cursor { components };
        let (_, id) = split_parts(entry, components).map_err(foreign)?;
        if id.is_empty() || std::str::from_utf8(id).is_err() {
            return Err(QueryError::Cursor { components });
        }
        if let Some(parts) = self.distinct {
            let (group, _) = split_parts(entry, parts).map_err(foreign)?;
            return Ok(beyond(group, self.reverse));
        }
        let mut place = entry.clone();
        if !self.reverse {
            // The lowest text that is higher.
            place.push(0);
        }
        Ok(place)
    }
}

fn end(bound: Bound<Vec<u8>>) -> Option<Vec<u8>> {
    match bound {
        Bound::Included(end) | Bound::Excluded(end) => Some(end),
        Bound::Unbounded => None,
    }
}

/// The same entries in stretches that do not meet.
fn joined(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.sort_by(|a, b| a.low.cmp(&b.low));
    let mut joined: Vec<Stretch> = Vec::with_capacity(stretches.len());
    for next in stretches {
        match joined.last_mut() {
            Some(last) if last.high.is_none() || last.high >= next.low => {
                last.high = match (last.high.take(), next.high) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    _ => None,
                };
            }
            _ => joined.push(next),
        }
    }
    joined
}
