//! What a shard holds at one moment, and the operations that lead from one moment to the next.
//!
//! The log on disk holds operations, not states: a document comes with all of its keys in an instance, so that an
//! operation that is done once more changes nothing. Numbers are big-endian.
//!
//! | operation | bytes |
//! |---|---|
//! | an instance is added | `01` `inst u32` |
//! | an instance is removed, with all that it has | `02` `inst u32` |
//! | a document's keys | `03` `inst u32` `id length u16` `value length u32` id value |
//! | a position | `04` `inst u32` `vb u16` vbuuid, seqno, snapshot start and end (four `u64`) |
//!
//! A value is one of the back index; an empty one means that the document has no keys.

use std::collections::BTreeMap;

use imbl::OrdMap;

use crate::event::VbId;
use crate::timestamp::Position;

use super::super::InstId;
use super::super::codec::{
    Edit, back_keys, decode_position, edits_between, encode_position, write_back_value,
};
use super::super::store::InstancePositions;
use super::packed::{Builder, PackedMap};

/// A block of operations is closed when it has this many bytes.
pub(super) const BLOCK_BYTES: usize = 256 * 1024;

/// Edits of entries that are gathered at most, so that their memory is bounded.
const EDITS_BYTES: usize = 4 * 1024 * 1024;

const ADD_INSTANCE: u8 = 1;
const REMOVE_INSTANCE: u8 = 2;
const DOCUMENT: u8 = 3;
const POSITION: u8 = 4;

/// Something that was done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation<'a> {
    AddInstance(InstId),
    RemoveInstance(InstId),
    Document { inst: InstId, doc_id: &'a [u8], value: &'a [u8] },
    Position { inst: InstId, vb: VbId, position: Position },
}

impl<'a> Operation<'a> {
    pub(super) fn inst(&self) -> InstId {
        match self {
            Self::AddInstance(inst)
            | Self::RemoveInstance(inst)
            | Self::Document { inst, .. }
            | Self::Position { inst, .. } => *inst,
        }
    }

    fn encode(&self, to: &mut Vec<u8>) {
        let mut head = |kind: u8| {
            to.push(kind);
            to.extend_from_slice(&self.inst().0.to_be_bytes());
        };
        match self {
            Self::AddInstance(_) => head(ADD_INSTANCE),
            Self::RemoveInstance(_) => head(REMOVE_INSTANCE),
            Self::Document { doc_id, value, .. } => {
                head(DOCUMENT);
                // A shard takes neither ids nor keys that are longer.
                to.extend_from_slice(&u16::try_from(doc_id.len()).unwrap_or(u16::MAX).to_be_bytes());
                to.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
                to.extend_from_slice(doc_id);
                to.extend_from_slice(value);
            }
            Self::Position { vb, position, .. } => {
                head(POSITION);
                to.extend_from_slice(&vb.0.to_be_bytes());
                to.extend_from_slice(&encode_position(position));
            }
        }
    }

    /// Takes the next operation off `from`; `None` where there is none that makes sense.
    pub(super) fn decode(from: &mut &'a [u8]) -> Option<Self> {
        let kind = take::<1>(from)?;
        let inst = InstId(u32::from_be_bytes(take(from)?));
        Some(match kind {
            [ADD_INSTANCE] => Self::AddInstance(inst),
            [REMOVE_INSTANCE] => Self::RemoveInstance(inst),
            [DOCUMENT] => {
                let id_length = usize::from(u16::from_be_bytes(take(from)?));
                let value_length = u32::from_be_bytes(take(from)?) as usize;
                let (doc_id, rest) = from.split_at_checked(id_length)?;
                let (value, rest) = rest.split_at_checked(value_length)?;
                *from = rest;
                is_sound(doc_id, value).then_some(Self::Document { inst, doc_id, value })?
            }
            [POSITION] => {
                let vb = VbId(u16::from_be_bytes(take(from)?));
                let position = decode_position(&take::<32>(from)?)?;
                Self::Position { inst, vb, position }
            }
            _ => return None,
        })
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*taken)
}

/// Whether the value is one whole number of ascending keys, each of which makes an entry that a map takes.
fn is_sound(doc_id: &[u8], value: &[u8]) -> bool {
    let keys = || back_keys(value);
    keys().map(|key| key.len() + 2).sum::<usize>() == value.len()
        && keys().all(|key| u16::try_from(key.len() + doc_id.len()).is_ok())
        && keys().is_sorted_by(|a, b| a < b)
}

/// Operations in the order in which they were done, in blocks as they go to the disk.
#[derive(Debug, Default)]
pub(super) struct Operations {
    blocks: Vec<Vec<u8>>,
    bytes: u64,
}

impl Operations {
    /// Gives back how many bytes the operation takes.
    pub(super) fn push(&mut self, operation: Operation<'_>) -> u64 {
        if self.blocks.last().is_none_or(|block| block.len() >= BLOCK_BYTES) {
            // Most of a shard's recovery points are a fraction of one block; the last operation may be a long one.
            let room = if self.blocks.is_empty() { 0 } else { BLOCK_BYTES + BLOCK_BYTES / 16 };
            self.blocks.push(Vec::with_capacity(room));
        }
        let Some(block) = self.blocks.last_mut() else { return 0 };
        let before = block.len();
        operation.encode(block);
        let added = (block.len() - before) as u64;
        self.bytes += added;
        added
    }

    pub(super) fn blocks(&self) -> &[Vec<u8>] {
        &self.blocks
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The entries of an instance, and the back index that finds a document's.
#[derive(Clone, Default)]
pub(super) struct Instance {
    /// Each key is an entry, its value the length of the document id that it ends with (`u16`, big-endian).
    pub(super) entries: PackedMap,
    /// The back-index value of each document. It says what the entries say.
    back: PackedMap,
}

impl Instance {
    /// The instance with these entries; `None` where one is shorter than the document id that it ends with.
    pub(super) fn from_entries(entries: PackedMap) -> Option<Self> {
        let records = entries.leaves().flat_map(|leaf| (0..leaf.len()).map(|place| leaf.record(place)));
        let split = records.map(|(entry, id_length)| {
            let id_length = usize::from(u16::from_be_bytes(id_length.try_into().ok()?));
            let (key, doc_id) = entry.split_at_checked(entry.len().checked_sub(id_length)?)?;
            Some((doc_id, key))
        });
        let mut keys: Vec<(&[u8], &[u8])> = split.collect::<Option<_>>()?;
        keys.sort_unstable();
        let mut value = Vec::new();
        let mut back = Builder::default();
        for of_document in keys.chunk_by(|a, b| a.0 == b.0) {
            write_back_value(&mut value, of_document.iter().map(|(_, key)| *key));
            back.push(of_document.first()?.0, &value);
        }
        let back = back.finish()?;
        Some(Self { entries, back })
    }
}

/// See the module. A clone costs as much as there are instances, whatever these have.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) instances: BTreeMap<InstId, Instance>,
    pub(super) positions: OrdMap<(InstId, VbId), Position>,
    /// An instance was removed whose operations may still be in the files.
    pub(super) has_dead: bool,
}

/// An operation names an instance that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("there is no index {0}")]
pub(super) struct UnknownInstance(InstId);

/// What is to become of entries: noted first and done in the order of their keys, which spares the maps most of
/// their cache misses.
#[derive(Default)]
pub(super) struct Edits {
    bytes: Vec<u8>,
    /// In the order in which they were noted.
    noted: Vec<Noted>,
    old_value: Vec<u8>,
}

struct Noted {
    inst: InstId,
    /// Where the entry stands.
    start: usize,
    end: usize,
    doc_id_bytes: u16,
    is_there: bool,
}

impl Edits {
    fn note(&mut self, inst: InstId, doc_id: &[u8], value: &[u8]) {
        for edit in edits_between(&self.old_value, back_keys(value)) {
            let (key, is_there) = match edit {
                Edit::Remove(key) => (key, false),
                Edit::Insert(key) => (key, true),
            };
            let start = self.bytes.len();
            self.bytes.extend_from_slice(key);
            self.bytes.extend_from_slice(doc_id);
            // A shard takes no ids that are longer.
            let doc_id_bytes = u16::try_from(doc_id.len()).unwrap_or(u16::MAX);
            self.noted.push(Noted { inst, start, end: self.bytes.len(), doc_id_bytes, is_there });
        }
    }
}

impl State {
    /// Does an operation, but for the entries: what becomes of them is in `edits` until [`State::settle`]. `false`
    /// where it changed nothing.
    pub(super) fn apply(
        &mut self,
        operation: Operation<'_>,
        edits: &mut Edits,
    ) -> Result<bool, UnknownInstance> {
        match operation {
            Operation::Document { inst, doc_id, value } => {
                let back = &mut self.instances.get_mut(&inst).ok_or(UnknownInstance(inst))?.back;
                let changed = if value.is_empty() {
                    back.remove(doc_id, &mut edits.old_value)
                } else {
                    back.insert(doc_id, value, &mut edits.old_value)
                };
                if changed {
                    edits.note(inst, doc_id, value);
                }
                if edits.bytes.len() > EDITS_BYTES {
                    self.settle(edits);
                }
                return Ok(changed);
            }
            Operation::AddInstance(inst) => {
                self.instances.entry(inst).or_default();
            }
            Operation::RemoveInstance(inst) => {
                self.settle(edits);
                drop(self.remove_instance(inst));
            }
            Operation::Position { inst, vb, position } => {
                self.positions.insert((inst, vb), position);
            }
        }
        Ok(true)
    }

    /// Does what was noted for entries.
    pub(super) fn settle(&mut self, edits: &mut Edits) {
        let Edits { bytes, noted, old_value } = edits;
        let entry = |edit: &Noted| bytes.get(edit.start..edit.end).unwrap_or_default();
        // Stable: what was noted last for an entry is done last.
        noted.sort_by(|a, b| (a.inst, entry(a)).cmp(&(b.inst, entry(b))));
        for of_inst in noted.chunk_by(|a, b| a.inst == b.inst) {
            let inst = of_inst.first().map(|edit| edit.inst).unwrap_or_default();
            let Some(instance) = self.instances.get_mut(&inst) else { continue };
            for edit in of_inst {
                if edit.is_there {
                    instance.entries.insert(entry(edit), &edit.doc_id_bytes.to_be_bytes(), old_value);
                } else {
                    instance.entries.remove(entry(edit), old_value);
                }
            }
        }
        noted.clear();
        bytes.clear();
    }

    /// Gives back what the instance had, for a place where freeing it holds nobody up.
    pub(super) fn remove_instance(&mut self, inst: InstId) -> Option<Instance> {
        let of_inst = self.positions.range((inst, VbId(0))..=(inst, VbId(u16::MAX)));
        let vbs: Vec<_> = of_inst.map(|(place, _)| *place).collect();
        for place in vbs {
            self.positions.remove(&place);
        }
        self.has_dead = true;
        self.instances.remove(&inst)
    }

    /// The instances with their positions.
    pub(super) fn positions(&self) -> Vec<InstancePositions> {
        let of = |inst: InstId| {
            let of_inst = self.positions.range((inst, VbId(0))..=(inst, VbId(u16::MAX)));
            of_inst.map(|((_, vb), position)| (*vb, *position)).collect()
        };
        self.instances.keys().map(|inst| (*inst, of(*inst))).collect()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.instances.values().map(|of| of.entries.memory_bytes() + of.back.memory_bytes()).sum()
    }
}
