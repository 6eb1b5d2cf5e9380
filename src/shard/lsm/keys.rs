//! Keys of the tree; their table is in the module above.

use std::ops::Bound;

use super::super::InstId;
use super::super::store::EntryBounds;

pub(super) const REGISTRY: InstId = InstId(0);
pub(super) const REGISTRY_LIVE: u8 = 0x00;
pub(super) const REGISTRY_DROPPED: u8 = 0x01;
pub(super) const POSITION: u8 = 0x01;
pub(super) const ENTRY: u8 = 0x02;
pub(super) const BACK: u8 = 0x03;
pub(super) const PREFIX_BYTES: usize = 5;

pub(super) fn key(inst: InstId, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX_BYTES + rest.len());
    write_key(&mut key, inst, kind, &[rest]);
    key
}

pub(super) fn registry_key(list: u8, inst: InstId) -> Vec<u8> {
    key(REGISTRY, list, &inst.0.to_be_bytes())
}

pub(super) fn write_key(key: &mut Vec<u8>, inst: InstId, kind: u8, rest: &[&[u8]]) {
    key.clear();
    append_key(key, inst, kind, rest);
}

pub(super) fn append_key(keys: &mut Vec<u8>, inst: InstId, kind: u8, rest: &[&[u8]]) {
    keys.extend_from_slice(&inst.0.to_be_bytes());
    keys.push(kind);
    for part in rest {
        keys.extend_from_slice(part);
    }
}

/// The tree's bounds of a scan over an instance's entries; `None` where nothing lies between them.
pub(super) fn entry_range(inst: InstId, bounds: &EntryBounds) -> Option<EntryBounds> {
    let prefixed = |bound: &[u8]| key(inst, ENTRY, bound);
    let low = match &bounds.0 {
        Bound::Included(low) => Bound::Included(prefixed(low)),
        Bound::Excluded(low) => Bound::Excluded(prefixed(low)),
        Bound::Unbounded => Bound::Included(prefixed(&[])),
    };
    let high = match &bounds.1 {
        Bound::Included(high) => Bound::Included(prefixed(high)),
        Bound::Excluded(high) => Bound::Excluded(prefixed(high)),
        Bound::Unbounded => Bound::Excluded(key(inst, BACK, &[])),
    };
    (!is_inverted(&low, &high)).then_some((low, high))
}

fn is_inverted(low: &Bound<Vec<u8>>, high: &Bound<Vec<u8>>) -> bool {
    use Bound::{Excluded, Included, Unbounded};
    match (low, high) {
        (Included(low), Included(high)) => low > high,
        (Included(low) | Excluded(low), Included(high) | Excluded(high)) => low >= high,
        (Unbounded, _) | (_, Unbounded) => false,
    }
}
