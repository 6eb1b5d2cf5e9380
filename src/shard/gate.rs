//! What one writer of a shard at a time may change: positions, generations, and what is uncommitted.
//!
//! Positions live here and reach the store only when a recovery point is cut, so that a batch costs no write for
//! each vbucket that it moves.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::event::{Generation, VbId};
use crate::timestamp::{Position, TsVbuuid};

use super::batch::{Change, WriteBatch};
use super::error::ApplyError;
use super::shard::{InstanceStart, ShardSpec};
use super::store::InstancePositions;
use super::{InstId, ShardId};

pub(super) struct Gate {
    spec: ShardSpec,
    instances: BTreeMap<InstId, Vec<Tracked>>,
    generations: Vec<Generation>,
    /// Roughly the bytes that were applied since the last cut.
    pub(super) uncommitted_bytes: u64,
    /// When the first write since the last cut came.
    pub(super) first_uncommitted: Option<Instant>,
    /// Something was cut that no flush has made durable yet.
    pub(super) flush_is_due: bool,
}

#[derive(Clone, Copy, Default)]
struct Tracked {
    position: Position,
    /// Changed since the last cut.
    moved: bool,
}

impl Gate {
    pub(super) fn load(spec: ShardSpec, loaded: Vec<InstancePositions>) -> Self {
        let slots = usize::from(spec.vbuckets.saturating_sub(spec.id.0).div_ceil(spec.shards.max(1)));
        let mut gate = Self {
            spec,
            instances: BTreeMap::new(),
            generations: vec![Generation::default(); slots],
            uncommitted_bytes: 0,
            first_uncommitted: None,
            flush_is_due: false,
        };
        for (inst, positions) in loaded {
            let mut tracked = vec![Tracked::default(); slots];
            for (vb, position) in positions {
                if let Some(slot) = gate.slot(vb).and_then(|slot| tracked.get_mut(slot)) {
                    slot.position = position;
                }
            }
            gate.instances.insert(inst, tracked);
        }
        gate
    }

    /// A shard's vbuckets are `id, id + shards, id + 2 * shards, …`: the slot counts them.
    fn slot(&self, vb: VbId) -> Option<usize> {
        let owned = ShardId::of_vb(vb, self.spec.shards) == self.spec.id;
        owned.then(|| usize::from(vb.0 / self.spec.shards.max(1)))
    }

    fn vb(&self, slot: usize) -> VbId {
        // A slot was made from a vbucket number, so the way back fits.
        let slot = u16::try_from(slot).unwrap_or(u16::MAX);
        VbId(slot.saturating_mul(self.spec.shards).saturating_add(self.spec.id.0))
    }

    fn tracked(&self, inst: InstId, vb: VbId) -> Option<&Tracked> {
        self.instances.get(&inst)?.get(self.slot(vb)?)
    }

    /// Refuses a batch that is not the continuation of what is here.
    pub(super) fn check(&self, batch: &WriteBatch) -> Result<(), ApplyError> {
        let shard = self.spec.id;
        for advance in &batch.advances {
            let vb = advance.vb;
            for inst in batch.instances.iter().copied() {
                let tracked = self.tracked(inst, vb).ok_or(ApplyError::Unknown { shard, inst, vb })?;
                let (stored, from) = (tracked.position.seqno, advance.from);
                if stored < from {
                    return Err(ApplyError::Gap { shard, inst, vb, stored, from });
                }
            }
            let slot = self.slot(vb).and_then(|slot| self.generations.get(slot));
            let current = slot.copied().unwrap_or_default();
            if batch.generation != current {
                return Err(ApplyError::Stale { shard, vb, current, found: batch.generation });
            }
        }
        Ok(())
    }

    pub(super) fn is_new(&self, change: &Change<'_>) -> bool {
        self.tracked(change.inst, change.vb).is_some_and(|t| change.seqno > t.position.seqno)
    }

    pub(super) fn advance(&mut self, batch: &WriteBatch) {
        for advance in &batch.advances {
            let Some(slot) = self.slot(advance.vb) else { continue };
            for inst in batch.instances.iter() {
                let tracked = self.instances.get_mut(inst).and_then(|tracked| tracked.get_mut(slot));
                if let Some(tracked) = tracked.filter(|t| t.position.seqno <= advance.to.seqno) {
                    *tracked = Tracked { position: advance.to, moved: true };
                }
            }
        }
    }

    pub(super) fn install_generation(&mut self, vb: VbId, generation: Generation) {
        if let Some(current) = self.slot(vb).and_then(|slot| self.generations.get_mut(slot)) {
            *current = generation;
        }
    }

    pub(super) fn add_instance(&mut self, inst: InstId, start: InstanceStart) {
        let zero = vec![Tracked::default(); self.generations.len()];
        let tracked = match start {
            InstanceStart::Zero => zero,
            InstanceStart::AtShard => self.instances.values().fold(zero, |mut furthest, tracked| {
                for (furthest, tracked) in furthest.iter_mut().zip(tracked) {
                    if furthest.position.seqno < tracked.position.seqno {
                        *furthest = Tracked { position: tracked.position, moved: true };
                    }
                }
                furthest
            }),
        };
        self.instances.insert(inst, tracked);
    }

    pub(super) fn has_instance(&self, inst: InstId) -> bool {
        self.instances.contains_key(&inst)
    }

    /// Gives back whether the instance was there.
    pub(super) fn remove_instance(&mut self, inst: InstId) -> bool {
        self.instances.remove(&inst).is_some()
    }

    pub(super) fn instances(&self) -> Vec<InstId> {
        self.instances.keys().copied().collect()
    }

    /// The positions of an instance that are past zero.
    pub(super) fn positions(&self, inst: InstId) -> Option<TsVbuuid> {
        let tracked = self.instances.get(&inst)?;
        let started = tracked.iter().enumerate().filter(|(_, t)| t.position != Position::default());
        Some(started.map(|(slot, t)| (self.vb(slot), t.position)).collect())
    }

    /// Whether every instance has reached all the positions that are of this shard's vbuckets.
    pub(super) fn covers(&self, ts: &TsVbuuid) -> bool {
        ts.iter().filter(|(vb, _)| self.slot(*vb).is_some()).all(|(vb, wanted)| {
            self.instances
                .keys()
                .all(|inst| self.tracked(*inst, vb).is_some_and(|t| t.position.seqno >= wanted.seqno))
        })
    }

    /// Counts a write. Gives back whether it was the first since the last cut.
    pub(super) fn note_write(&mut self, bytes: u64) -> bool {
        self.uncommitted_bytes += bytes;
        let first = self.first_uncommitted.is_none();
        self.first_uncommitted.get_or_insert_with(Instant::now);
        first
    }

    /// Ends what is uncommitted and gives back the positions that go with it.
    pub(super) fn cut(&mut self) -> Vec<(InstId, VbId, Position)> {
        let mut moved = Vec::new();
        for (inst, tracked) in &self.instances {
            let slots = tracked.iter().enumerate().filter(|(_, t)| t.moved);
            moved.extend(slots.map(|(slot, t)| (*inst, self.vb(slot), t.position)));
        }
        self.instances.values_mut().flatten().for_each(|tracked| tracked.moved = false);
        self.uncommitted_bytes = 0;
        self.first_uncommitted = None;
        self.flush_is_due = true;
        moved
    }
}
