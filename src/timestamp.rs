//! Positions in the histories of vbuckets.
//!
//! A [`Position`] says how far one vbucket was followed, and on which branch of its history; a [`TsVbuuid`] is
//! one position per vbucket. They are what is asked of a source when a stream begins and what a shard saves
//! together with the data, so that after a crash each change counts once.
//!
//! Invariant: `snap_start <= seqno <= snap_end` in every position that was saved.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::event::{Seqno, VbId, VbUuid};

/// How far a vbucket was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Branch of the vbucket's history.
    pub vbuuid: VbUuid,
    /// Last change that is covered.
    pub seqno: Seqno,
    /// Start of the snapshot window that `seqno` lies in.
    pub snap_start: Seqno,
    /// End of the snapshot window that `seqno` lies in.
    pub snap_end: Seqno,
}

impl Position {
    /// Before the first change.
    pub const ZERO: Self =
        Self { vbuuid: VbUuid(0), seqno: Seqno(0), snap_start: Seqno(0), snap_end: Seqno(0) };

    /// A position that is a consistent point by itself: its window holds nothing but `seqno`.
    pub fn at(vbuuid: VbUuid, seqno: Seqno) -> Self {
        Self { vbuuid, seqno, snap_start: seqno, snap_end: seqno }
    }
}

/// A position for each of some vbuckets, in ascending order of the vbucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TsVbuuid(BTreeMap<VbId, Position>);

impl TsVbuuid {
    /// The position of `vb`, if there is one.
    pub fn get(&self, vb: VbId) -> Option<Position> {
        self.0.get(&vb).copied()
    }

    /// Sets the position of `vb` and gives back the one it had.
    pub fn insert(&mut self, vb: VbId, position: Position) -> Option<Position> {
        self.0.insert(vb, position)
    }

    /// Takes over every position of `newer`; vbuckets that it does not name keep theirs.
    pub fn union(&mut self, newer: &Self) {
        self.0.extend(newer.iter());
    }

    /// The positions of those of `vbs` that have one. No vbuckets select nothing.
    #[must_use]
    pub fn select(&self, vbs: &BTreeSet<VbId>) -> Self {
        self.iter().filter(|(vb, _)| vbs.contains(vb)).collect()
    }

    /// The positions of all vbuckets but `vbs`.
    #[must_use]
    pub fn filter(&self, vbs: &BTreeSet<VbId>) -> Self {
        self.iter().filter(|(vb, _)| !vbs.contains(vb)).collect()
    }

    /// Goes back to `to` in a vbucket, if it is further. What lay between is no snapshot any more, so the window
    /// closes around `to`; the branch stays, for the producer to judge.
    pub fn rollback(&mut self, vb: VbId, to: Seqno) {
        if let Some(position) = self.0.get_mut(&vb).filter(|position| position.seqno > to) {
            *position = Position::at(position.vbuuid, to);
        }
    }

    /// All positions, in ascending order of the vbucket.
    pub fn iter(&self) -> impl Iterator<Item = (VbId, Position)> + '_ {
        self.0.iter().map(|(vb, position)| (*vb, *position))
    }

    /// Changes that are covered: the sum of the seqnos of all vbuckets.
    pub fn changes(&self) -> u64 {
        self.0.values().fold(0, |sum: u64, position| sum.saturating_add(position.seqno.0))
    }

    /// Number of vbuckets that have a position.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no vbucket has a position.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(VbId, Position)> for TsVbuuid {
    fn from_iter<I: IntoIterator<Item = (VbId, Position)>>(positions: I) -> Self {
        Self(positions.into_iter().collect())
    }
}
