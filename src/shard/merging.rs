//! Merges: when a shard's files are made fewer, who keeps them from it, and how many recovery points may wait for it.
//!
//! The set's thread merges after each recovery point. Where documents come faster than it merges, recovery points that
//! are due wait for it, and writers wait for them in the end. Those that are asked for do not, and nobody waits for
//! merges that fail or are held: then recovery points add up, until a merge is made in spite of those who hold them, and
//! in the end no recovery point is made without one.
//!
//! Invariant: a merge is made in the compaction's turn, and none while the shard is locked.

use std::time::Duration;

use crate::thread::{Stopped, Until};

use super::error::CommitError;
use super::shard::{Access, Shard};
use super::store::StoreFault;
use super::turn::take_turn;

/// How long the thread that merges waits for its turn before it looks at the next shard.
const COMPACT_TURN_WAIT: Duration = Duration::from_millis(50);
/// With as many recovery points the next one that is due waits while the thread merges: readers look into each of them,
/// and stores keep something of each in memory.
const UNMERGED_MAX: usize = 32;
/// With as many merges are made although they are held.
const UNMERGED_HELD_MAX: usize = 96;
/// With as many a merge comes before the next one in any case. Stores have room for some more, which locks make without
/// a merge.
const UNMERGED_LAST: usize = 224;

/// How far merges are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Until very many recovery points wait for one.
    Lenient,
    /// In any case, while its owner has the commit's turn.
    Strict,
}

/// While it lives no merge of the shard's files begins, so that recovery points share the files that they can.
/// Recovery points are made as ever; where very many of them wait to be merged, a merge is made all the same.
#[must_use = "dropping the hold lets merges begin"]
pub struct MergeHold(Shard, Hold);

impl Drop for MergeHold {
    fn drop(&mut self) {
        *self.0.0.state.lock().merge_holds.of(self.1) -= 1;
        self.0.wake_maintenance();
    }
}

/// How many hold merges now.
#[derive(Debug, Default)]
pub(super) struct MergeHolds {
    lenient: usize,
    strict: usize,
}

impl MergeHolds {
    fn of(&mut self, hold: Hold) -> &mut usize {
        match hold {
            Hold::Lenient => &mut self.lenient,
            Hold::Strict => &mut self.strict,
        }
    }

    fn allow(&self, unmerged: usize) -> bool {
        self.strict == 0 && (self.lenient == 0 || unmerged >= UNMERGED_HELD_MAX)
    }
}

impl Shard {
    /// Does one piece of background work, unless the shard is locked. `false` when there is nothing to do. The turn is
    /// not waited for long: other shards may have work.
    pub(super) fn compact(&self) -> Result<bool, StoreFault> {
        let Ok(_turn) = take_turn(&self.0.compact_turn, &Until::within(COMPACT_TURN_WAIT)) else {
            return Ok(true);
        };
        let merged = self.compact_in_turn();
        self.0.state.lock().merging = matches!(merged, Ok(true));
        // A recovery point may have waited for it.
        let _ = self.0.config.flush_wake.try_send(());
        merged
    }

    fn compact_in_turn(&self) -> Result<bool, StoreFault> {
        let unmerged = self.0.store.unmerged();
        let (retired, may_compact) = {
            let mut state = self.0.state.lock();
            match state.access {
                _ if state.broken.is_some() => return Ok(false),
                Access::Locked(_) => {
                    state.merge_was_held = true;
                    return Ok(false);
                }
                Access::Sealed { .. } => (std::mem::take(&mut state.retired), false),
                Access::Open => {
                    state.merging = state.merge_holds.allow(unmerged);
                    (std::mem::take(&mut state.retired), state.merging)
                }
            }
        };
        drop(retired);
        if !may_compact {
            return Ok(false);
        }
        Ok(self.sweep()? || self.0.store.compact()?)
    }

    /// Removes a part of what dropped instances left, where there is room for it; a recovery point makes room,
    /// and wakes the thread that goes on here.
    pub(super) fn sweep(&self) -> Result<bool, StoreFault> {
        let _turn = self.0.write_turn.lock();
        let has_room = self.0.gate.lock().uncommitted_bytes < self.0.config.commit_bytes;
        let is_open = matches!(self.0.state.lock().access, Access::Open);
        if !is_open || !has_room {
            return Ok(false);
        }
        let swept = self.0.store.sweep()?;
        if let Some(bytes) = swept {
            self.note_write(&mut self.0.gate.lock(), bytes);
        }
        Ok(swept.is_some())
    }

    /// Merges, in the commit's turn, where the store has hardly room for another recovery point, whoever holds merges.
    pub(super) fn make_room(&self, until: &Until) -> Result<(), CommitError> {
        let shard = self.id();
        while self.0.store.unmerged() >= UNMERGED_LAST {
            let turn = take_turn(&self.0.compact_turn, until);
            let _turn = turn.map_err(|why| CommitError::Stopped { shard, why })?;
            if !matches!(self.0.state.lock().access, Access::Open) {
                break;
            }
            let merged = self.0.store.compact();
            // Where nothing is uncommitted no later recovery point would tell them that it went well.
            if merged.is_err() && !self.0.gate.lock().is_committed() {
                self.tell_writers(&merged);
            }
            if !merged.map_err(|fault| CommitError::Store { shard, fault })? {
                break;
            }
        }
        Ok(())
    }

    /// Whether so many recovery points are being merged that the next one waits for it. Where merges fail or are held,
    /// what is in memory is made durable all the same.
    pub(super) fn is_crowded(&self) -> bool {
        self.0.state.lock().merging && self.0.store.unmerged() >= UNMERGED_MAX
    }

    /// Waits for the merge in flight, and holds merges from then on.
    pub fn hold_merges(&self, until: &Until) -> Result<MergeHold, Stopped> {
        self.hold(Hold::Lenient, until)
    }

    pub(super) fn hold(&self, how: Hold, until: &Until) -> Result<MergeHold, Stopped> {
        *self.0.state.lock().merge_holds.of(how) += 1;
        let hold = MergeHold(self.clone(), how);
        self.wait_for_compaction(until)?;
        Ok(hold)
    }

    /// Waits until no compaction runs. Afterwards none starts while the state is `Locked`.
    pub(super) fn wait_for_compaction(&self, until: &Until) -> Result<(), Stopped> {
        take_turn(&self.0.compact_turn, until).map(drop)
    }

    pub(super) fn wake_maintenance(&self) {
        let _ = self.0.config.compact_wake.try_send(());
    }
}
