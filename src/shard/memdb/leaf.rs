//! A leaf: neighbouring records of a map, packed into one run of bytes.
//!
//! A record is the key's length (`u16`, big-endian), the key and the value. Records stand one behind the other in
//! the order of their keys; `ends` tells where each ends. A leaf that is shared with a snapshot is copied before
//! it is changed, which is two copies of memory, whatever its records are.
//!
//! Invariants: keys ascend strictly, and every record is at least as long as its key asks for. [`Leaf::decode`]
//! takes no bytes that are otherwise.

use std::cmp::Ordering as Order;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of records in a leaf that is full. A single record may be longer and is then alone. Small leaves are
/// cheap to change and to copy, large ones waste less: this is where loading 2 million entries takes least.
pub(super) const LEAF_BYTES: usize = 4096;
/// Bytes before a record's key.
const HEAD_BYTES: usize = 2;
/// Room is taken in steps: doubling would leave a quarter of the memory unused.
const BYTES_STEP: usize = LEAF_BYTES / 8;
const ENDS_STEP: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    ends: Vec<u32>,
    bytes: Vec<u8>,
    /// Number of the file that has exactly these records, or zero.
    part: AtomicU64,
}

impl Clone for Leaf {
    /// A copy is made to be changed, so no file has it.
    fn clone(&self) -> Self {
        Self { ends: self.ends.clone(), bytes: self.bytes.clone(), part: AtomicU64::new(0) }
    }
}

/// Bytes that a record with this key and value takes up.
pub(super) fn record_bytes(key: &[u8], value: &[u8]) -> usize {
    HEAD_BYTES + key.len() + value.len()
}

impl Leaf {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the records.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>() + size_of::<Self>()
    }

    pub(super) fn part(&self) -> u64 {
        self.part.load(Ordering::Relaxed)
    }

    /// Notes that a file has exactly these records. Whoever calls this shares the leaf: one that is changed
    /// meanwhile is another one.
    pub(super) fn set_part(&self, part: u64) {
        self.part.store(part, Ordering::Relaxed);
    }

    fn end(&self, place: usize) -> usize {
        self.ends.get(place).map_or(self.bytes.len(), |end| *end as usize)
    }

    fn start(&self, place: usize) -> usize {
        place.checked_sub(1).map_or(0, |before| self.end(before))
    }

    /// The key and the value at a place.
    pub(super) fn record(&self, place: usize) -> (&[u8], &[u8]) {
        let record = self.bytes.get(self.start(place)..self.end(place)).unwrap_or_default();
        split_record(record).unwrap_or_default()
    }

    pub(super) fn key(&self, place: usize) -> &[u8] {
        self.record(place).0
    }

    pub(super) fn first_key(&self) -> &[u8] {
        self.key(0)
    }

    pub(super) fn last_key(&self) -> &[u8] {
        self.key(self.len().saturating_sub(1))
    }

    /// The place of a key, or, as the error, where it belongs.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                Order::Less => low = middle + 1,
                Order::Greater => high = middle,
                Order::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// Adds a record at the place that [`Leaf::find`] gave for its key.
    pub(super) fn insert(&mut self, place: usize, key: &[u8], value: &[u8]) {
        self.set_part(0);
        let (start, old_len, added) = (self.start(place), self.bytes.len(), record_bytes(key, value));
        reserve(&mut self.bytes, added, BYTES_STEP);
        self.bytes.resize(old_len + added, 0);
        self.bytes.copy_within(start..old_len, start + added);
        if let Some(record) = self.bytes.get_mut(start..start + added) {
            let (head, rest) = record.split_at_mut(HEAD_BYTES);
            // A shard takes no key that is longer.
            head.copy_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes());
            let (key_room, value_room) = rest.split_at_mut(key.len());
            key_room.copy_from_slice(key);
            value_room.copy_from_slice(value);
        }
        reserve(&mut self.ends, 1, ENDS_STEP);
        let added = length(added);
        self.ends.insert(place, length(start));
        self.ends.iter_mut().skip(place).for_each(|end| *end += added);
    }

    /// Removes the record at a place that has one.
    pub(super) fn remove(&mut self, place: usize) {
        self.set_part(0);
        let (start, end) = (self.start(place), self.end(place));
        self.bytes.drain(start..end);
        self.ends.remove(place);
        let removed = length(end - start);
        self.ends.iter_mut().skip(place).for_each(|end| *end -= removed);
    }

    /// Moves the records from a place on into a new leaf.
    pub(super) fn split_off(&mut self, place: usize) -> Self {
        self.set_part(0);
        let start = self.start(place);
        let bytes = self.bytes.split_off(start);
        let mut ends = self.ends.split_off(place);
        let start = length(start);
        for end in &mut ends {
            *end -= start;
        }
        self.bytes.shrink_to(start as usize + BYTES_STEP);
        self.ends.shrink_to(place + ENDS_STEP);
        Self { ends, bytes, part: AtomicU64::new(0) }
    }

    /// The place that divides the records into halves of about the same number of bytes; never before the first.
    pub(super) fn middle(&self) -> usize {
        let half = self.bytes.len() / 2;
        self.ends.partition_point(|end| (*end as usize) < half).max(1)
    }

    /// Adds the records of the leaf that follows this one.
    pub(super) fn append(&mut self, next: &Self) {
        self.set_part(0);
        let start = length(self.bytes.len());
        reserve(&mut self.bytes, next.bytes.len(), 0);
        self.bytes.extend_from_slice(&next.bytes);
        self.ends.extend(next.ends.iter().map(|end| end + start));
    }

    /// Writes the leaf: number of records and their bytes, where each ends, and the records.
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&length(self.len()).to_be_bytes());
        to.extend_from_slice(&length(self.bytes.len()).to_be_bytes());
        self.ends.iter().for_each(|end| to.extend_from_slice(&end.to_be_bytes()));
        to.extend_from_slice(&self.bytes);
    }

    /// Reads what [`Leaf::encode`] wrote; `None` where that is not what `from` begins with.
    pub(super) fn decode(from: &mut &[u8], part: u64) -> Option<Self> {
        let mut take = |bytes: usize| {
            let (taken, rest) = from.split_at_checked(bytes)?;
            *from = rest;
            Some(taken)
        };
        let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
        let (records, length) = (number(take(4)?)? as usize, number(take(4)?)? as usize);
        let ends = take(records.checked_mul(4)?)?.chunks_exact(4).map(number).collect::<Option<Vec<_>>>()?;
        let leaf = Self { ends, bytes: take(length)?.to_vec(), part: AtomicU64::new(part) };
        leaf.is_sound().then_some(leaf)
    }

    fn is_sound(&self) -> bool {
        let mut start = 0;
        let mut last = None;
        let all = self.ends.iter().all(|end| {
            let record = self.bytes.get(start..*end as usize).and_then(split_record);
            start = *end as usize;
            let key = record.map(|(key, _)| key);
            let ascends = key.is_some() && last < key;
            last = key;
            ascends
        });
        all && start == self.bytes.len() && start > 0
    }
}

fn split_record(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = record.split_first_chunk::<HEAD_BYTES>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*head)))
}

/// A length within a leaf. A leaf is one record at most or about [`LEAF_BYTES`], and no record is near 4 GiB.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn reserve<T>(list: &mut Vec<T>, added: usize, step: usize) {
    if list.capacity() - list.len() < added {
        list.reserve_exact(added.max(step));
    }
}
