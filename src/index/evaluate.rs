//! Which keys a document has in an index.
//!
//! A document whose leading path is missing has no key; a path that is missing in another place gives the part
//! *missing*, which sorts before null; null is a value. A path with `[]` gives one key for each element, and equal
//! keys of one document are one key. Where there is no array, or an empty one, the path is missing; where an
//! element lacks the member that follows `[]`, it is missing for that element.
//!
//! A key beyond [`KEY_BYTES_MAX`] is left out and counted, and the document keeps its others. One that would have more
//! than [`DOCUMENT_KEYS_MAX`] keys in an index, or more than [`DOCUMENT_KEY_BYTES_MAX`] bytes of them, is left out of
//! that index as a whole: an array beside long other parts multiplies them, and a part of the keys would be taken for
//! all. Workers count and log such documents like those whose evaluation fails.
//!
//! Invariants: the keys of a [`KeyList`] are ascending, unlike each other and at most [`KEY_BYTES_MAX`] bytes
//! long; a document has at most as many keys as the array of its `[]` has elements, and one if there is none.

use serde_json::Value;

use super::collate;
use super::definition::IndexDefinition;
use super::plan::{Extract, KeyPlan};

/// The longest encoded key. Documents keep their other keys when one is longer.
pub const KEY_BYTES_MAX: usize = 4096;

/// The most keys of one document in one index, counted before equal ones are made one.
pub const DOCUMENT_KEYS_MAX: usize = 1 << 16;

/// The most bytes of encoded keys of one document in one index.
pub const DOCUMENT_KEY_BYTES_MAX: usize = 4 << 20;

/// What [`KeyList::clear`] leaves of the list's memory.
const KEPT_BYTES: usize = 1 << 20;
const KEPT_KEYS: usize = KEPT_BYTES / 64;

/// The encoded keys of a document. It is filled by [`IndexDefinition::keys`] and made to be used again for the
/// next document, so that a key costs no allocation.
#[derive(Debug, Default)]
pub struct KeyList {
    bytes: Vec<u8>,
    spans: Vec<(usize, usize)>,
    oversize: usize,
    left_out: bool,
}

/// A part of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'v> {
    /// The document does not have it.
    Missing,
    /// Its encoding.
    Whole(&'v [u8]),
    /// The beginning of one that is too long.
    Cut(&'v [u8]),
}

impl KeyList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all keys and what [`KeyList::oversize`] and [`KeyList::is_left_out`] told. Memory is kept for the next
    /// document, but not all that one huge document needed.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.spans.clear();
        self.spans.shrink_to(KEPT_KEYS);
        self.oversize = 0;
        self.left_out = false;
    }

    /// The keys in ascending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.spans.iter().map(|span| of(&self.bytes, *span))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Number of keys that were left out because they are longer than [`KEY_BYTES_MAX`] or hold a value that
    /// cannot be part of a key; equal ones are counted each.
    pub fn oversize(&self) -> usize {
        self.oversize
    }

    /// Whether the document has more keys than it may, and is to be left out of the index. The list is empty then.
    pub fn is_left_out(&self) -> bool {
        self.left_out
    }

    /// Adds a key of these parts, as an evaluator of a host's own makes it; `None` is a missing one. As everywhere a
    /// key whose leading part is missing is none.
    pub fn add(&mut self, parts: &[Option<&Value>]) {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(parts.len());
        for part in parts {
            let start = bytes.len();
            let encoded = part
                .is_some_and(|value| collate::encode_value_within(value, KEY_BYTES_MAX, &mut bytes).is_ok());
            ends.push((start, bytes.len(), part.is_some() && !encoded));
        }
        self.push_parts(parts.iter().zip(&ends).map(|(part, (start, end, is_cut))| match part {
            None => Part::Missing,
            Some(_) if *is_cut => Part::Cut(&[]),
            Some(_) => Part::Whole(bytes.get(*start..*end).unwrap_or_default()),
        }));
        self.sort();
    }

    /// Adds a key of these parts, out of order, unless the leading one is missing.
    pub(super) fn push_parts<'v>(&mut self, parts: impl Iterator<Item = Part<'v>>) {
        let start = self.bytes.len();
        let mut is_whole = true;
        for part in parts {
            match part {
                // The leading one: any other stands behind bytes, or behind one that was cut.
                Part::Missing if is_whole && self.bytes.len() == start => return,
                Part::Cut(_) => is_whole = false,
                // It is no key, however it goes on.
                _ if !is_whole || self.bytes.len() - start > KEY_BYTES_MAX => {}
                Part::Missing => collate::encode_missing(&mut self.bytes),
                Part::Whole(bytes) => self.bytes.extend_from_slice(bytes),
            }
        }
        self.end_key(start, is_whole);
    }

    /// Takes the bytes from `start` on as a key, if they are one that may be.
    fn end_key(&mut self, start: usize, is_whole: bool) {
        let length = self.bytes.len() - start;
        if !is_whole || length > KEY_BYTES_MAX {
            self.bytes.truncate(start);
            self.oversize += 1;
        } else if length > 0 {
            self.spans.push((start, self.bytes.len()));
        }
        if self.left_out || self.spans.len() > DOCUMENT_KEYS_MAX || self.bytes.len() > DOCUMENT_KEY_BYTES_MAX
        {
            self.leave_out();
        }
    }

    /// Leaves the document out, whatever comes yet.
    pub(super) fn leave_out(&mut self) {
        self.clear();
        self.left_out = true;
    }

    pub(super) fn push_id(&mut self, id: &str) {
        let start = self.bytes.len();
        collate::encode_str(id, &mut self.bytes);
        self.end_key(start, true);
    }

    pub(super) fn sort(&mut self) {
        let bytes = &self.bytes;
        // As they mostly are: there is one key, or the array was in order.
        if self.spans.len() < 2 || self.spans.is_sorted_by(|a, b| of(bytes, *a) < of(bytes, *b)) {
            return;
        }
        self.spans.sort_unstable_by(|a, b| of(bytes, *a).cmp(of(bytes, *b)));
        self.spans.dedup_by(|a, b| of(bytes, *a) == of(bytes, *b));
    }
}

fn of(bytes: &[u8], (start, end): (usize, usize)) -> &[u8] {
    bytes.get(start..end).unwrap_or_default()
}

impl IndexDefinition {
    /// Adds the keys of a document to `out`, where they stand in order with those already there; a key that is
    /// there already is not added again. Where there are many documents, a [`KeyPlan`] reads each without a value.
    pub fn keys(&self, id: &str, document: &Value, out: &mut KeyList) {
        let plan = KeyPlan::new([self]);
        let mut read = Extract::new();
        plan.read_value(document, &mut read);
        plan.keys(0, id, &read, out);
    }
}
