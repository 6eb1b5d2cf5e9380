//! Recovery points of a shard: which are kept, how a shard goes back to one, and files that outlive changes.
//!
//! A roll-back concerns everything in the shard. The caller first ends the streams of all its vbuckets; the
//! generation that it gives fences what is still on its way from them.

use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::Sender;
use slog::{debug, info, warn};

use crate::event::Generation;
use crate::thread::Until;

use super::error::{CommitError, ReadError, RollBackError};
use super::gate::Gate;
use super::merging::Hold;
use super::shard::{Access, Shard, caught};
use super::store::{CheckFault, PinnedFiles, PointId, RecoveryPoint, StoreFault};
use super::turn::take_turn;

/// Wakes the thread that removes what is not needed any more.
struct WakeOnDrop(Sender<()>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// Whether a recovery point is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// If the last one that was is old enough.
    IfDue,
    /// If the shard's state can be gone back to.
    Now,
}

/// A recovery point that was made.
pub(super) struct Committed {
    /// Its number, if it is kept.
    pub(super) kept: Option<PointId>,
}

impl Shard {
    /// Makes a recovery point of everything that was applied before the call. Gives back whether there was
    /// anything to commit.
    pub fn commit(&self, until: &Until) -> Result<bool, CommitError> {
        self.refuse_fork()?;
        let stopped = |why| CommitError::Stopped { shard: self.id(), why };
        let _turn = take_turn(&self.0.commit_turn, until).map_err(stopped)?;
        self.commit_in_turn(Keep::IfDue, until).map(|made| made.is_some())
    }

    /// Makes a recovery point if one is due.
    pub(super) fn commit_if_due(&self) -> Result<bool, CommitError> {
        let _turn = self.0.commit_turn.lock();
        // Asked in turn: the one that somebody else was making is not due once more.
        if self.commit_due().is_none_or(|due| due > Instant::now()) {
            return Ok(false);
        }
        self.commit_in_turn(Keep::IfDue, &Until::default()).map(|made| made.is_some())
    }

    /// Makes a recovery point, in the commit's turn. `None` where there was nothing to make it of.
    pub(super) fn commit_in_turn(&self, keep: Keep, until: &Until) -> Result<Option<Committed>, CommitError> {
        let stopped = |why| CommitError::Stopped { shard: self.id(), why };
        let fail = |fault| CommitError::Store { shard: self.id(), fault };
        if let Some(fault) = self.0.state.lock().broken.clone() {
            return Err(fail(fault));
        }
        if keep == Keep::Now || !self.0.gate.lock().is_committed() {
            self.make_room(until)?;
        }
        let kept = {
            // A write in flight is waited for, also where nothing is uncommitted before it: a lock relies on that.
            let _turn = take_turn(&self.0.write_turn, until).map_err(stopped)?;
            let mut gate = self.0.gate.lock();
            if keep == Keep::IfDue && gate.is_committed() {
                return Ok(None);
            }
            let moved = gate.cut();
            let point = self.point_to_keep(&gate, keep);
            drop(gate);
            let kept = point.as_ref().map(|point| point.id);
            if let Err(fault) = self.0.store.cut(&moved, point) {
                self.break_off(&fault);
                return Err(fail(fault));
            }
            kept
        };
        let flushed = self.0.store.flush();
        if flushed.is_ok() {
            self.0.gate.lock().note_flushed(kept);
            self.0.commits.fetch_add(1, Ordering::Relaxed);
            self.wake_maintenance();
            debug!(self.0.logger, "recovery point made"; "kept" => kept.map(|point| point.0));
        }
        self.tell_writers(&flushed);
        flushed.map_err(fail)?;
        if kept.is_some() {
            self.forget_old_points();
        }
        Ok(Some(Committed { kept }))
    }

    /// Lets those go on who wait for a recovery point, and tells those who write whether there was one.
    pub(super) fn tell_writers<T>(&self, made: &Result<T, StoreFault>) {
        let mut state = self.0.state.lock();
        state.flush_fault = made.as_ref().err().cloned();
        state.committed = None;
    }

    /// When the next recovery point is due, if anything is uncommitted: at once by bytes or after a failure. Never for
    /// a shard that is broken off, and not while merges come first: the thread that makes them wakes the other one.
    pub(super) fn commit_due(&self) -> Option<Instant> {
        if self.is_crowded() {
            return None;
        }
        let gate = self.0.gate.lock();
        if self.0.state.lock().broken.is_some() {
            return None;
        }
        if gate.flush_is_due {
            return Some(Instant::now());
        }
        let first = gate.first_uncommitted?;
        if gate.uncommitted_bytes >= self.0.config.commit_bytes {
            return Some(first);
        }
        // One that is longer than the clock goes is never over.
        first.checked_add(self.0.config.commit_interval)
    }

    /// The recovery points that can be rolled back to, ascending.
    pub fn points(&self, until: &Until) -> Result<Vec<RecoveryPoint>, ReadError> {
        self.refuse_fork()?;
        let shard = self.id();
        let _turn = take_turn(&self.0.commit_turn, until).map_err(|why| ReadError::Stopped { shard, why })?;
        self.0.store.points().map_err(|fault| ReadError::Store { shard, fault })
    }

    /// Makes a recovery point now and keeps it; the oldest may go for it. `None` where the shard's state is none to
    /// go back to: within an out-of-order snapshot, or until a stream that broke off in one has caught up.
    pub fn keep_point(&self, until: &Until) -> Result<Option<PointId>, CommitError> {
        self.refuse_fork()?;
        let shard = self.id();
        let _turn =
            take_turn(&self.0.commit_turn, until).map_err(|why| CommitError::Stopped { shard, why })?;
        self.refuse_commit_if_locked()?;
        Ok(self.commit_in_turn(Keep::Now, until)?.and_then(|made| made.kept))
    }

    /// Makes a recovery point of everything that was applied and pins its files: they stay as they are for as long
    /// as the result lives, whatever is written, merged or rolled back meanwhile. For the stores `lsm` and `memdb`
    /// the time does not depend on their size; `cow` copies its file.
    pub fn pin(&self, until: &Until) -> Result<PinnedFiles, CommitError> {
        self.refuse_fork()?;
        let shard = self.id();
        let failed = |fault| CommitError::Store { shard, fault };
        let _turn =
            take_turn(&self.0.commit_turn, until).map_err(|why| CommitError::Stopped { shard, why })?;
        self.refuse_commit_if_locked()?;
        self.commit_in_turn(Keep::IfDue, until)?;
        let pinned = self.0.store.pin().map_err(failed)?;
        let spec_file = self.spec_file().map_err(failed)?;
        Ok(pinned.with(spec_file, WakeOnDrop(self.0.config.compact_wake.clone())))
    }

    /// Goes back to a kept recovery point, or with `None` to the empty shard, durably and in one step: entries,
    /// positions and all. Instances that were created since are empty and without positions; ones that were
    /// dropped since stay so. Later recovery points are gone. From now on only batches of `generation` are
    /// applied, which must be higher than those of the streams that were ended for the roll-back. Snapshots that
    /// are open keep what they have.
    pub fn roll_back(
        &self,
        to: Option<PointId>,
        generation: Generation,
        until: &Until,
    ) -> Result<(), RollBackError> {
        self.refuse_fork()?;
        let shard = self.id();
        let stopped = |why| RollBackError::Stopped { shard, why };
        let failed = |fault| RollBackError::Store { shard, fault };
        let _commit = take_turn(&self.0.commit_turn, until).map_err(stopped)?;
        let _compaction = take_turn(&self.0.compact_turn, until).map_err(stopped)?;
        let _writes = take_turn(&self.0.write_turn, until).map_err(stopped)?;
        if let Some(owner) = self.holder() {
            return Err(RollBackError::Locked { shard, owner });
        }
        if let Some(fault) = self.0.state.lock().broken.clone() {
            return Err(failed(fault));
        }
        if let Some(point) = to
            && !self.0.store.points().map_err(failed)?.iter().any(|kept| kept.id == point)
        {
            return Err(RollBackError::NoPoint { shard, point });
        }
        let instances = self.instances();
        let loaded = caught(|| self.0.store.roll_back(to, &instances)).map_err(|fault| {
            self.break_off(&fault);
            failed(fault)
        })?;
        {
            let mut gate = self.0.gate.lock();
            gate.roll_back(loaded, generation);
            if to.is_none() {
                for inst in instances {
                    gate.note_empty(inst);
                }
            }
        }
        let mut state = self.0.state.lock();
        state.flush_fault = None;
        state.committed = None;
        drop(state);
        self.wake_maintenance();
        info!(self.0.logger, "rolled back"; "point" => to.map(|point| point.0));
        Ok(())
    }

    /// Reads every file of the newest recovery point and compares it with its checksums. The error names the first
    /// one that is damaged.
    pub fn check(&self, until: &Until) -> Result<(), ReadError> {
        self.refuse_fork()?;
        let shard = self.id();
        let stopped = |why| ReadError::Stopped { shard, why };
        let _hold = self.hold(Hold::Strict, until).map_err(stopped)?;
        let _turn = take_turn(&self.0.commit_turn, until).map_err(stopped)?;
        self.0.store.check(until).map_err(|fault| match fault {
            CheckFault::Stopped(why) => stopped(why),
            CheckFault::Fault(fault) => ReadError::Store { shard, fault },
        })
    }

    /// Who keeps the shard from being changed, if anybody does.
    pub(super) fn holder(&self) -> Option<String> {
        match &self.0.state.lock().access {
            Access::Open => None,
            Access::Locked(grant) => Some(grant.owner.clone()),
            Access::Sealed { by } => Some(by.clone()),
        }
    }

    fn refuse_commit_if_locked(&self) -> Result<(), CommitError> {
        match self.holder() {
            None => Ok(()),
            Some(owner) => Err(CommitError::Locked { shard: self.id(), owner }),
        }
    }

    /// The recovery point that is being cut, if it is to be kept.
    pub(super) fn point_to_keep(&self, gate: &Gate, keep: Keep) -> Option<RecoveryPoint> {
        let config = &self.0.config;
        let is_due = config.points_kept > 0 && gate.kept_at.elapsed() >= config.point_interval;
        if !gate.is_ordered() || !(is_due || keep == Keep::Now) {
            return None;
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let made_at_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Some(RecoveryPoint { id: gate.next_point, made_at_ms, positions: gate.all_positions() })
    }

    /// A point that stays too long costs room and nothing else: a failure is told, and the next one tries again.
    pub(super) fn forget_old_points(&self) {
        let kept = self.0.config.points_kept.max(1);
        let forget = |points: Vec<RecoveryPoint>| {
            let old = points.len().saturating_sub(kept);
            points.iter().take(old).try_for_each(|point| self.0.store.forget(point.id))
        };
        if let Err(fault) = self.0.store.points().and_then(forget) {
            warn!(self.0.logger, "an old recovery point could not be removed"; "error" => %fault);
        }
    }
}
