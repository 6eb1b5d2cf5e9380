//! What one writer of a shard at a time may change: positions, generations, and what is uncommitted. Anybody may look
//! at it at any time: a batch moves positions once it is applied, and in one step.
//!
//! Positions live here and reach the store only when a recovery point is cut, so that a batch costs no write for
//! each vbucket that it moves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::event::{Generation, Seqno, VbId};
use crate::timestamp::{Position, TsVbuuid};

use super::batch::{Change, ENTRY_BYTES_MAX, Window, WriteBatch};
use super::error::ApplyError;
use super::shard::{InstanceStart, Joined, ShardSpec};
use super::store::{InstancePositions, PointId, RecoveryPoint};
use super::{InstId, ShardId};

pub(super) struct Gate {
    spec: ShardSpec,
    instances: BTreeMap<InstId, Vec<Tracked>>,
    generations: Vec<Generation>,
    /// Roughly the bytes that were applied since the last cut.
    pub(super) uncommitted_bytes: u64,
    /// Those that were cut and are not durable yet.
    flushing_bytes: u64,
    /// When the first write since the last cut came.
    pub(super) first_uncommitted: Option<Instant>,
    /// Something was cut that no flush has made durable yet.
    pub(super) flush_is_due: bool,
    /// Number of the next recovery point that is kept.
    pub(super) next_point: PointId,
    /// When the newest one was made, or the shard opened.
    pub(super) kept_at: Instant,
}

/// An instance in a vbucket.
#[derive(Clone, Copy, Default)]
struct Tracked {
    position: Position,
    /// Changed since the last cut.
    moved: bool,
    /// There may be entries of changes up to here, in whatever order they came. Until the position has reached it the
    /// shard is in no state to go back to.
    unordered_up_to: Seqno,
    /// Everything that it has came in the first snapshot of one stream from seqno zero, in which each document comes
    /// once: no document that still comes has entries.
    filling: bool,
    /// Batches that name the instance as joining move it.
    joined: bool,
    /// The windows in which instances stood that joined here, together. Within one of them a document may be missing
    /// that comes later in it, so as long as its end is not reached this is the window of each position: a producer that
    /// lost a part of it sends all of it again.
    joint: Option<(Seqno, Seqno)>,
}

impl Tracked {
    const EMPTY: Self = Self {
        position: Position::ZERO,
        moved: false,
        unordered_up_to: Seqno(0),
        filling: true,
        joined: false,
        joint: None,
    };

    /// Goes on to a position.
    fn reach(&mut self, position: Position) {
        (self.position, self.moved) = (position, true);
        self.joint = self.joint.filter(|(_, end)| position.seqno < *end);
        if let Some((start, end)) = self.joint {
            self.position.snap_start = position.snap_start.min(start);
            self.position.snap_end = position.snap_end.max(end);
        }
    }

    /// Whether it holds all changes up to its position and no others.
    fn is_ordered(&self) -> bool {
        self.position.seqno >= self.unordered_up_to
    }

    /// The position that is written: where changes are ahead of it, the one before all of them with all of them in its
    /// window, as it was within the out-of-order snapshot. A window alone does not tell them: one that is in order may
    /// end with changes that nobody is told of.
    fn saved(&self) -> Position {
        if self.is_ordered() {
            return self.position;
        }
        let (start, snap_end) = (Seqno::default(), self.unordered_up_to);
        Position { seqno: start, snap_start: start, snap_end, ..self.position }
    }

    /// From what [`Tracked::saved`] gave. A window that is in order has a change up to its position.
    fn loaded(position: Position) -> Self {
        let is_ordered = position.seqno > Seqno::default();
        let unordered_up_to = if is_ordered { Seqno::default() } else { position.snap_end };
        Self { position, unordered_up_to, ..Self::default() }
    }
}

impl Gate {
    pub(super) fn load(spec: ShardSpec, loaded: Vec<InstancePositions>) -> Self {
        let slots = usize::from(spec.vbuckets.saturating_sub(spec.id.0).div_ceil(spec.shards.max(1)));
        let mut gate = Self {
            spec,
            instances: BTreeMap::new(),
            generations: vec![Generation::default(); slots],
            uncommitted_bytes: 0,
            flushing_bytes: 0,
            first_uncommitted: None,
            flush_is_due: false,
            next_point: PointId(1),
            kept_at: Instant::now(),
        };
        gate.take_positions(loaded);
        gate
    }

    /// Goes back to what was loaded. Only batches of `generation` are applied from now on.
    pub(super) fn roll_back(&mut self, loaded: Vec<InstancePositions>, generation: Generation) {
        self.generations.fill(generation);
        (self.uncommitted_bytes, self.flushing_bytes) = (0, 0);
        (self.first_uncommitted, self.flush_is_due) = (None, false);
        self.take_positions(loaded);
    }

    fn take_positions(&mut self, loaded: Vec<InstancePositions>) {
        self.instances.clear();
        for (inst, positions) in loaded {
            let mut all = vec![Tracked::default(); self.generations.len()];
            for (vb, position) in positions {
                if let Some(tracked) = self.slot(vb).and_then(|slot| all.get_mut(slot)) {
                    *tracked = Tracked::loaded(position);
                }
            }
            self.instances.insert(inst, all);
        }
    }

    /// An instance that has nothing at all: its first snapshot needs no look-ups.
    pub(super) fn note_empty(&mut self, inst: InstId) {
        if let Some(all) = self.instances.get_mut(&inst) {
            all.fill(Tracked::EMPTY);
        }
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
        let found_bytes = batch.longest_entry_bytes();
        if found_bytes > ENTRY_BYTES_MAX {
            return Err(ApplyError::TooLong { shard, found_bytes });
        }
        for advance in &batch.advances {
            let vb = advance.vb;
            for inst in self.moved_by(batch, vb) {
                let tracked = self.tracked(inst, vb).ok_or(ApplyError::Unknown { shard, inst, vb })?;
                let (stored, from) = (tracked.position.seqno, advance.from);
                if stored < from {
                    return Err(ApplyError::Gap { shard, inst, vb, stored, from });
                }
            }
            let generation = self.slot(vb).and_then(|slot| self.generations.get(slot));
            let current = generation.copied().unwrap_or_default();
            if batch.generation != current {
                return Err(ApplyError::Stale { shard, vb, current, found: batch.generation });
            }
        }
        Ok(())
    }

    /// The instances that a batch moves in a vbucket.
    fn moved_by<'b>(&'b self, batch: &'b WriteBatch, vb: VbId) -> impl Iterator<Item = InstId> + 'b {
        let joined = move |inst: &&InstId| self.tracked(**inst, vb).is_some_and(|tracked| tracked.joined);
        batch.instances.iter().chain(batch.joining.iter().filter(joined)).copied()
    }

    fn tracked_mut(&mut self, inst: InstId, vb: VbId) -> Option<&mut Tracked> {
        let slot = self.slot(vb)?;
        self.instances.get_mut(&inst)?.get_mut(slot)
    }

    /// Prepares for a batch that was checked.
    pub(super) fn begin(&mut self, batch: &WriteBatch) {
        for advance in &batch.advances {
            for inst in batch.instances.iter() {
                if let Some(tracked) = self.tracked_mut(*inst, advance.vb) {
                    // A stream that begins before the position brings documents again.
                    let goes_on = tracked.position.seqno == advance.from;
                    tracked.filling &= goes_on && advance.window == Window::First;
                }
            }
            for inst in batch.joining.iter() {
                if let Some(tracked) = self.tracked_mut(*inst, advance.vb).filter(|tracked| tracked.joined) {
                    // What it has may have come in the first snapshot of another stream.
                    tracked.filling = false;
                    // The stream was judged by where it begins: on another branch that says nothing of what is further.
                    let is_further = tracked.position.seqno > advance.from;
                    tracked.joined = !is_further || tracked.position.vbuuid == advance.to.vbuuid;
                }
            }
        }
    }

    /// The change, if its instance takes it and does not have it yet.
    pub(super) fn admit<'a>(&self, batch: &WriteBatch, mut change: Change<'a>) -> Option<Change<'a>> {
        let tracked = self.tracked(change.inst, change.vb)?;
        if !tracked.joined && batch.joining.contains(&change.inst) {
            return None;
        }
        change.once = tracked.filling;
        (change.seqno > tracked.position.seqno).then_some(change)
    }

    pub(super) fn advance(&mut self, batch: &WriteBatch) {
        for advance in &batch.advances {
            let members = batch.instances.iter().map(|inst| (inst, true));
            for (inst, is_member) in members.chain(batch.joining.iter().map(|inst| (inst, false))) {
                let tracked = self.tracked_mut(*inst, advance.vb);
                let Some(tracked) = tracked.filter(|tracked| is_member || tracked.joined) else { continue };
                if advance.window == Window::OutOfOrder {
                    tracked.unordered_up_to = tracked.unordered_up_to.max(advance.to.snap_end);
                }
                if tracked.position.seqno <= advance.to.seqno {
                    tracked.reach(advance.to);
                }
            }
        }
    }

    pub(super) fn install_generation(&mut self, vb: VbId, generation: Generation) {
        if let Some(current) = self.slot(vb).and_then(|slot| self.generations.get_mut(slot)) {
            *current = generation;
        }
    }

    /// Whether the shard holds all changes up to its positions and no others, so that it is a state to go back to.
    pub(super) fn is_ordered(&self) -> bool {
        self.instances.values().flatten().all(Tracked::is_ordered)
    }

    /// See [`Shard::join`](super::Shard::join).
    pub(super) fn join(&mut self, vb: VbId, joining: &[InstId], members: &[InstId], from: Seqno) -> bool {
        let there = |insts: &[InstId]| -> Option<Vec<Tracked>> {
            insts.iter().map(|inst| self.tracked(*inst, vb).copied()).collect()
        };
        let (Some(new), Some(old)) = (there(joining), there(members)) else { return false };
        let covers = |new: &Tracked, old: &Tracked| {
            let (new, old) = (new.position, old.position);
            new.seqno == old.seqno || (new.seqno > old.seqno && new.vbuuid == old.vbuuid)
        };
        let may_join = new.iter().chain(&old).all(Tracked::is_ordered)
            && old.iter().all(|old| old.position.seqno >= from && new.iter().all(|new| covers(new, old)));
        if !may_join {
            return false;
        }
        let windows = || new.iter().chain(&old).map(|tracked| tracked.position);
        let start = windows().map(|position| position.snap_start).min();
        let joint = start.zip(windows().map(|position| position.snap_end).max());
        for inst in joining {
            let Some(tracked) = self.tracked_mut(*inst, vb) else { continue };
            tracked.joined = true;
            // From here on they have one history, and one place in it.
            if let Some(old) = old.iter().find(|old| old.position.seqno == tracked.position.seqno) {
                tracked.position = old.position;
            }
        }
        for inst in joining.iter().chain(members) {
            if let Some(tracked) = self.tracked_mut(*inst, vb) {
                tracked.joint = joint;
                tracked.reach(tracked.position);
            }
        }
        true
    }

    /// See [`Shard::part`](super::Shard::part).
    pub(super) fn part(&mut self, instances: &[InstId]) {
        let parted = self.instances.iter_mut().filter(|(inst, _)| instances.contains(inst));
        parted.flat_map(|(_, all)| all).for_each(|tracked| tracked.joined = false);
    }

    /// See [`Shard::joined`](super::Shard::joined).
    pub(super) fn joined(&self, vb: VbId, joining: &[InstId], members: &[InstId]) -> Joined {
        let all = |insts: &[InstId], holds: &dyn Fn(&Tracked) -> bool| {
            insts.iter().all(|inst| self.tracked(*inst, vb).is_some_and(holds))
        };
        if !all(joining, &|tracked| tracked.joined) {
            return Joined::No;
        }
        let first = joining.first().and_then(|inst| self.tracked(*inst, vb));
        let seqno = first.map(|tracked| tracked.position.seqno).unwrap_or_default();
        let is_level = |tracked: &Tracked| tracked.position.seqno == seqno;
        if all(joining, &is_level) && all(members, &is_level) { Joined::Level } else { Joined::Ahead }
    }

    pub(super) fn add_instance(&mut self, inst: InstId, start: InstanceStart) {
        let zero = vec![Tracked::EMPTY; self.generations.len()];
        let tracked = match start {
            InstanceStart::Zero => zero,
            InstanceStart::AtShard => self.instances.values().fold(zero, |mut furthest, tracked| {
                for (furthest, tracked) in furthest.iter_mut().zip(tracked) {
                    if furthest.position.seqno < tracked.position.seqno {
                        *furthest = Tracked { position: tracked.position, moved: true, ..Tracked::default() };
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

    /// All positions that are past zero.
    pub(super) fn all_positions(&self) -> Vec<InstancePositions> {
        let of = |inst: &InstId| self.positions(*inst).unwrap_or_default().iter().collect();
        self.instances.keys().map(|inst| (*inst, of(inst))).collect()
    }

    /// Continues the numbers and the times of the recovery points that are kept.
    pub(super) fn note_newest_point(&mut self, newest: &RecoveryPoint) {
        self.next_point = PointId(newest.id.0 + 1);
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(newest.made_at_ms));
        if let Some(kept_at) = age.ok().and_then(|age| Instant::now().checked_sub(age)) {
            self.kept_at = kept_at;
        }
    }

    /// What was cut is durable.
    pub(super) fn note_flushed(&mut self, kept: Option<PointId>) {
        self.flush_is_due = false;
        self.flushing_bytes = 0;
        if let Some(kept) = kept {
            self.next_point = PointId(kept.0 + 1);
            self.kept_at = Instant::now();
        }
    }

    /// Whether all that was applied is in a recovery point.
    pub(super) fn is_committed(&self) -> bool {
        self.first_uncommitted.is_none() && !self.flush_is_due
    }

    /// Whether so much is in memory that writers wait, where a recovery point is made of `commit_bytes`.
    pub(super) fn is_full(&self, commit_bytes: u64) -> bool {
        self.uncommitted_bytes >= commit_bytes.saturating_mul(2)
            || self.volatile_bytes() >= commit_bytes.saturating_mul(3)
    }

    /// Roughly the bytes that are in memory alone.
    pub(super) fn volatile_bytes(&self) -> u64 {
        self.uncommitted_bytes.saturating_add(self.flushing_bytes)
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
            moved.extend(slots.map(|(slot, t)| (*inst, self.vb(slot), t.saved())));
        }
        self.instances.values_mut().flatten().for_each(|tracked| tracked.moved = false);
        self.flushing_bytes += std::mem::take(&mut self.uncommitted_bytes);
        self.first_uncommitted = None;
        self.flush_is_due = true;
        moved
    }
}
