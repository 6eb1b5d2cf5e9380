//! An ordered map of bytes whose copies cost nothing and share what did not change since.
//!
//! Leaves of packed records hang in a persistent ordered map, each under a *fence*: no key of the leaf is below
//! it, and none of the leaf before is at or above it. A leaf that a copy shares is copied before it is changed.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use super::super::store::EntryBounds;
use super::leaf::{LEAF_BYTES, Leaf, record_bytes};

type Fence = Arc<[u8]>;
type Leaves = OrdMap<Fence, Arc<Leaf>>;

/// A leaf with fewer bytes is united with the next one, where both fit into one.
const SPARSE_BYTES: usize = LEAF_BYTES / 4;
/// What two leaves may have together to become one: room is left for what comes next.
const UNITED_BYTES: usize = LEAF_BYTES / 4 * 3;
/// Bytes of a leaf beside its records: its place in the map, its fence and what allocations take.
const LEAF_OVERHEAD_BYTES: u64 = 160;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct PackedMap {
    leaves: Leaves,
    /// Bytes of all leaves.
    memory_bytes: u64,
}

impl PackedMap {
    /// Roughly the memory that the map takes up.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes + self.leaves.len() as u64 * LEAF_OVERHEAD_BYTES
    }

    /// The leaves in the order of their keys.
    pub(super) fn leaves(&self) -> impl Iterator<Item = &Arc<Leaf>> {
        self.leaves.values()
    }

    fn add(&mut self, fence: Fence, leaf: Leaf) {
        self.memory_bytes += leaf.memory_bytes() as u64;
        self.leaves.insert(fence, Arc::new(leaf));
    }

    /// Makes `value` the value of `key` and copies the one that it had into `old`, which is empty where there was
    /// none. `false`, and no change, where they are equal.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8], old: &mut Vec<u8>) -> bool {
        old.clear();
        let Some((_, leaf)) = self.leaves.get_prev_mut(key) else {
            let mut leaf = Leaf::default();
            leaf.insert(0, key, value);
            self.add(Fence::default(), leaf);
            return true;
        };
        let found = leaf.find(key);
        if let Ok(place) = found {
            let found_value = leaf.record(place).1;
            if found_value == value {
                return false;
            }
            old.extend_from_slice(found_value);
        }
        let before = leaf.memory_bytes() as u64;
        let leaf = Arc::make_mut(leaf);
        if let Ok(place) = found {
            leaf.remove(place);
        }
        let (Ok(place) | Err(place)) = found;
        leaf.insert(place, key, value);
        let right = split_if_full(leaf, place);
        self.memory_bytes = (self.memory_bytes + leaf.memory_bytes() as u64).saturating_sub(before);
        if let Some((fence, right)) = right {
            self.add(fence, right);
        }
        true
    }

    /// Removes `key` and copies its value into `old`; `false` where it is not there.
    pub(super) fn remove(&mut self, key: &[u8], old: &mut Vec<u8>) -> bool {
        old.clear();
        let Some((own_fence, leaf)) = self.leaves.get_prev_mut(key) else { return false };
        let Ok(place) = leaf.find(key) else { return false };
        old.extend_from_slice(leaf.record(place).1);
        let before = leaf.memory_bytes() as u64;
        let leaf = Arc::make_mut(leaf);
        leaf.remove(place);
        self.memory_bytes = (self.memory_bytes + leaf.memory_bytes() as u64).saturating_sub(before);
        let left = leaf.bytes();
        if left < SPARSE_BYTES {
            let own_fence = Fence::clone(own_fence);
            self.unite_or_remove(&own_fence, left);
        }
        true
    }

    /// Unites a leaf of `bytes` with the next one where they fit into one, and removes an empty one.
    fn unite_or_remove(&mut self, own_fence: &Fence, bytes: usize) {
        let next = leaf_after(&self.leaves, own_fence)
            .filter(|(_, next)| bytes > 0 && bytes + next.bytes() <= UNITED_BYTES);
        let gone_fence = match next.map(|(fence, next)| (Fence::clone(fence), Arc::clone(next))) {
            Some((fence, next)) => {
                if let Some(leaf) = self.leaves.get_mut(own_fence) {
                    let before = leaf.memory_bytes() as u64;
                    let leaf = Arc::make_mut(leaf);
                    leaf.append(&next);
                    self.memory_bytes =
                        (self.memory_bytes + leaf.memory_bytes() as u64).saturating_sub(before);
                }
                fence
            }
            None if bytes == 0 => Fence::clone(own_fence),
            None => return,
        };
        if let Some(gone) = self.leaves.remove(&gone_fence) {
            self.memory_bytes = self.memory_bytes.saturating_sub(gone.memory_bytes() as u64);
        }
    }

    /// The keys within `bounds`.
    pub(super) fn keys(&self, bounds: &EntryBounds) -> Keys {
        let front = match &bounds.0 {
            Bound::Unbounded => self.place_of(&[], false),
            Bound::Included(key) => self.place_of(key, false),
            Bound::Excluded(key) => self.place_of(key, true),
        };
        let back = match &bounds.1 {
            Bound::Unbounded => self.leaves.get_max().map(|(fence, leaf)| Place::after_last(fence, leaf)),
            Bound::Included(key) => self.place_of(key, true),
            Bound::Excluded(key) => self.place_of(key, false),
        };
        let ends =
            front.zip(back).filter(|(front, back)| (&front.fence, front.record) < (&back.fence, back.record));
        Keys { leaves: self.leaves.clone(), ends }
    }

    /// The place between the records before `key` and those after it; `key` itself is before it if `behind`.
    fn place_of(&self, key: &[u8], behind: bool) -> Option<Place> {
        let (fence, leaf) =
            self.leaves.get_prev(key).or_else(|| self.leaves.get_min().map(|(f, l)| (f, l)))?;
        let record = match leaf.find(key) {
            Ok(place) => place + usize::from(behind),
            Err(place) => place,
        };
        Some(Place { fence: Fence::clone(fence), leaf: Arc::clone(leaf), record })
    }
}

fn leaf_after<'l>(leaves: &'l Leaves, fence: &[u8]) -> Option<(&'l Fence, &'l Arc<Leaf>)> {
    leaves.range::<_, [u8]>((Bound::Excluded(fence), Bound::Unbounded)).next()
}

fn leaf_before<'l>(leaves: &'l Leaves, fence: &[u8]) -> Option<(&'l Fence, &'l Arc<Leaf>)> {
    leaves.range::<_, [u8]>((Bound::Unbounded, Bound::Excluded(fence))).next_back()
}

/// Makes a map of records or leaves that come in the order of their keys.
#[derive(Default)]
pub(super) struct Builder {
    map: PackedMap,
    /// The greatest key of the map, once it has one.
    last: Option<Vec<u8>>,
    open: Leaf,
    is_out_of_order: bool,
}

impl Builder {
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        let end = self.open.len();
        if end > 0 && self.open.bytes() + record_bytes(key, value) > LEAF_BYTES {
            let full = std::mem::take(&mut self.open);
            self.push_leaf(full);
            self.open.insert(0, key, value);
        } else {
            self.open.insert(end, key, value);
        }
    }

    pub(super) fn push_leaf(&mut self, leaf: Leaf) {
        let fence = match &self.last {
            None => Fence::default(),
            Some(last) => {
                self.is_out_of_order |= last.as_slice() >= leaf.first_key();
                fence(last, leaf.first_key())
            }
        };
        self.last = Some(leaf.last_key().to_vec());
        self.map.add(fence, leaf);
    }

    /// The map; `None` where leaves did not follow each other.
    pub(super) fn finish(mut self) -> Option<PackedMap> {
        let open = std::mem::take(&mut self.open);
        if open.len() > 0 {
            self.push_leaf(open);
        }
        (!self.is_out_of_order).then_some(self.map)
    }
}

/// Splits a leaf that has become too long, after `place` was inserted. Keys that come in ascending order leave
/// full leaves behind.
fn split_if_full(leaf: &mut Leaf, place: usize) -> Option<(Fence, Leaf)> {
    if leaf.bytes() <= LEAF_BYTES || leaf.len() < 2 {
        return None;
    }
    let is_last = place + 1 == leaf.len();
    let right = leaf.split_off(if is_last { place } else { leaf.middle() });
    Some((fence(leaf.last_key(), right.first_key()), right))
}

/// The shortest fence between two keys, of which the second is the greater one.
fn fence(last: &[u8], first: &[u8]) -> Fence {
    let common = last.iter().zip(first).take_while(|(a, b)| a == b).count();
    first.get(..=common).unwrap_or(first).into()
}

/// A place between two records.
struct Place {
    fence: Fence,
    leaf: Arc<Leaf>,
    /// The record behind the place; the leaf's length at its end.
    record: usize,
}

impl Place {
    fn after_last(fence: &Fence, leaf: &Arc<Leaf>) -> Self {
        Self { fence: Fence::clone(fence), leaf: Arc::clone(leaf), record: leaf.len() }
    }
}

/// Keys of a map as it was when they were asked for. They are looked up as they are read: what is held is the map.
pub(super) struct Keys {
    leaves: Leaves,
    /// What is left lies between the two, and is at least one record or the rest of a leaf that has none.
    ends: Option<(Place, Place)>,
}

impl Iterator for Keys {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let (front, back) = self.ends.as_mut()?;
        while front.record == front.leaf.len() && !Arc::ptr_eq(&front.leaf, &back.leaf) {
            let (fence, leaf) = leaf_after(&self.leaves, &front.fence)?;
            *front = Place { fence: Fence::clone(fence), leaf: Arc::clone(leaf), record: 0 };
        }
        if Arc::ptr_eq(&front.leaf, &back.leaf) && front.record >= back.record {
            self.ends = None;
            return None;
        }
        let key = front.leaf.key(front.record).to_vec();
        front.record += 1;
        Some(key)
    }
}

impl DoubleEndedIterator for Keys {
    fn next_back(&mut self) -> Option<Vec<u8>> {
        let (front, back) = self.ends.as_mut()?;
        while back.record == 0 && !Arc::ptr_eq(&front.leaf, &back.leaf) {
            let (fence, leaf) = leaf_before(&self.leaves, &back.fence)?;
            *back = Place::after_last(fence, leaf);
        }
        if Arc::ptr_eq(&front.leaf, &back.leaf) && front.record >= back.record {
            self.ends = None;
            return None;
        }
        back.record -= 1;
        Some(back.leaf.key(back.record).to_vec())
    }
}
