//! What all stores write alike: positions, the back index's values, and what a change does to a document's entries.
//!
//! A back-index value holds the encoded keys of one document in one instance, ascending, each behind its length
//! (`u16`, big-endian). A position is four `u64`, big-endian: vbuuid, seqno, snapshot start and end.

use std::cmp::Ordering;
use std::ops::Range;

use crate::event::{Seqno, VbUuid};
use crate::timestamp::Position;

use super::batch::Change;

pub(super) fn encode_position(position: &Position) -> [u8; 32] {
    let mut bytes = [0; 32];
    let numbers = [position.vbuuid.0, position.seqno.0, position.snap_start.0, position.snap_end.0];
    for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// The position in `bytes`; `None` where they are too few.
pub(super) fn decode_position(bytes: &[u8]) -> Option<Position> {
    let number = |at: usize| -> Option<u64> {
        Some(u64::from_be_bytes(bytes.get(at * 8..at * 8 + 8)?.try_into().ok()?))
    };
    Some(Position {
        vbuuid: VbUuid(number(0)?),
        seqno: Seqno(number(1)?),
        snap_start: Seqno(number(2)?),
        snap_end: Seqno(number(3)?),
    })
}

/// The encoded keys of a back-index value.
pub(super) fn back_keys(mut value: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    std::iter::from_fn(move || {
        let (length, rest) = value.split_first_chunk::<2>()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        value = rest;
        Some(key)
    })
}

/// Makes `value` the back-index value of a document's keys; empty where it has none.
pub(super) fn write_back_value<'k>(value: &mut Vec<u8>, keys: impl Iterator<Item = &'k [u8]>) {
    value.clear();
    for key in keys {
        // A batch takes no key that is longer.
        value.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes());
        value.extend_from_slice(key);
    }
}

/// What has to be done to one entry of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit<'a> {
    /// The document has no entry with this key any more.
    Remove(&'a [u8]),
    /// It has one now.
    Insert(&'a [u8]),
}

/// What turns the entries that the back index knows into those of `change`. Both are in ascending order.
pub(super) fn edits<'a>(old_value: &'a [u8], change: &Change<'a>) -> impl Iterator<Item = Edit<'a>> {
    edits_between(old_value, change.keys())
}

/// The same for new keys from anywhere, in ascending order.
pub(super) fn edits_between<'a>(
    old_value: &'a [u8],
    new: impl Iterator<Item = &'a [u8]>,
) -> impl Iterator<Item = Edit<'a>> {
    let (mut old, mut new) = (back_keys(old_value).peekable(), new.peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some(old), Some(new)) => old.cmp(new),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return None,
            };
            match order {
                Ordering::Less => return old.next().map(Edit::Remove),
                Ordering::Greater => return new.next().map(Edit::Insert),
                Ordering::Equal => {
                    old.next();
                    new.next();
                }
            }
        }
    })
}

/// What becomes of the entries of a batch: noted first and written in the order of their keys, so that those which lie
/// side by side in the store are written one after another.
#[derive(Default)]
pub(super) struct EntryEdits {
    keys: Vec<u8>,
    /// Where each key lies, and whether it is to be there.
    edits: Vec<(Range<usize>, bool)>,
}

impl EntryEdits {
    /// Notes an edit. `append` adds the entry's key in the store, behind what is there.
    pub(super) fn note<'e>(&mut self, edit: Edit<'e>, append: impl FnOnce(&mut Vec<u8>, &'e [u8])) {
        let (entry, is_there) = match edit {
            Edit::Remove(entry) => (entry, false),
            Edit::Insert(entry) => (entry, true),
        };
        let start = self.keys.len();
        append(&mut self.keys, entry);
        self.edits.push((start..self.keys.len(), is_there));
    }

    /// The keys in their order, each with whether it is to be there.
    pub(super) fn in_order(&mut self) -> impl Iterator<Item = (&[u8], bool)> {
        let Self { keys, edits } = self;
        let keys: &[u8] = keys;
        let key = move |at: &Range<usize>| keys.get(at.clone()).unwrap_or_default();
        edits.sort_unstable_by(|(a, _), (b, _)| key(a).cmp(key(b)));
        edits.iter().map(move |(at, is_there)| (key(at), *is_there))
    }
}
