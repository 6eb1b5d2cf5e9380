//! Which keys a document has in an index.
//!
//! A document whose leading path is missing has no key; a path that is missing in another place gives the part
//! *missing*, which sorts before null; null is a value. A path with `[]` gives one key for each element, and equal
//! keys of one document are one key. Where there is no array, or an empty one, the path is missing; where an
//! element lacks the member that follows `[]`, it is missing for that element.
//!
//! Invariants: the keys of a [`KeyList`] are ascending, unlike each other and at most [`KEY_BYTES_MAX`] bytes
//! long; a document has at most as many keys as the array of its `[]` has elements, and one if there is none.

use serde_json::Value;

use super::collate;
use super::definition::{IndexDefinition, IndexKind, PATHS_MAX};
use super::path::KeyPath;

/// The longest encoded key. Documents keep their other keys when one is longer.
pub const KEY_BYTES_MAX: usize = 4096;

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
}

impl KeyList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all keys and the count of [`KeyList::oversize`]. Memory is kept for the next document, but not
    /// all that one huge document needed.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.spans.clear();
        self.spans.shrink_to(KEPT_KEYS);
        self.oversize = 0;
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

    /// Adds a key of these parts, out of order, unless the leading one is missing.
    fn push(&mut self, parts: &[Option<&Value>]) {
        if parts.first().is_none_or(Option::is_none) {
            return;
        }
        let start = self.bytes.len();
        for part in parts {
            let room = KEY_BYTES_MAX.saturating_sub(self.bytes.len() - start);
            match part {
                Some(value) if collate::encode_value_within(value, room, &mut self.bytes).is_ok() => {}
                None if room > 0 => collate::encode_missing(&mut self.bytes),
                _ => {
                    self.bytes.truncate(start);
                    self.oversize += 1;
                    return;
                }
            }
        }
        self.spans.push((start, self.bytes.len()));
    }

    fn push_id(&mut self, id: &str) {
        let start = self.bytes.len();
        collate::encode_str(id, &mut self.bytes);
        if self.bytes.len() - start > KEY_BYTES_MAX {
            self.bytes.truncate(start);
            self.oversize += 1;
        } else {
            self.spans.push((start, self.bytes.len()));
        }
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.spans.sort_unstable_by(|a, b| of(bytes, *a).cmp(of(bytes, *b)));
        self.spans.dedup_by(|a, b| of(bytes, *a) == of(bytes, *b));
    }
}

fn of(bytes: &[u8], (start, end): (usize, usize)) -> &[u8] {
    bytes.get(start..end).unwrap_or_default()
}

impl IndexDefinition {
    /// Adds the keys of a document to `out`, where they stand in order with those already there; a key that is
    /// there already is not added again.
    pub fn keys(&self, id: &str, document: &Value, out: &mut KeyList) {
        match self.kind() {
            IndexKind::Primary => out.push_id(id),
            IndexKind::Secondary { paths } => composite_keys(paths, document, out),
        }
        out.sort();
    }
}

fn composite_keys(paths: &[KeyPath], document: &Value, out: &mut KeyList) {
    let mut parts = [None; PATHS_MAX];
    let mut array = None;
    for (place, (part, path)) in parts.iter_mut().zip(paths).enumerate() {
        if path.is_array() {
            array = Some((place, path));
        } else {
            *part = path.value(document);
        }
    }
    let Some(parts) = parts.get_mut(..paths.len()) else { return };
    let mut has_elements = false;
    if let Some((place, path)) = array {
        for value in path.values(document) {
            has_elements = true;
            if let Some(part) = parts.get_mut(place) {
                *part = value;
            }
            out.push(parts);
        }
    }
    if !has_elements {
        out.push(parts);
    }
}
