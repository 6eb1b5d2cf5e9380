//! Rolling a shard back, because the producer has lost what the shard has.
//!
//! It concerns every vbucket and every index of the shard: their streams are ended and what they brought is applied,
//! the shard goes back to the newest recovery point that the producer still knows, writes of older generations are
//! fenced off, and all its vbuckets are asked for again. The other shards go on meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use slog::{info, warn};

use crate::event::{Seqno, VbId};
use crate::shard::store::RecoveryPoint;
use crate::shard::{RollBackError, Shard, ShardId};
use crate::source::dcp::{Connection, FailoverLog};
use crate::thread::Until;
use crate::timestamp::Position;

use super::FollowError;
use super::backoff::{Backoff, chance};
use super::follower::{Broken, Follower};
use super::jobs::{Done, RollFault};
use super::links::LinkId;

/// A shard that is to be rolled back.
#[derive(Default)]
pub(super) struct Roll {
    /// For each vbucket that asked for it, the highest seqno that it may go back to.
    to: BTreeMap<VbId, Seqno>,
    /// Connections over which the branches of these are asked for.
    links: BTreeMap<VbId, LinkId>,
    is_running: bool,
    backoff: Backoff,
}

impl Follower<'_> {
    /// Whether no stream of a shard may be asked for.
    pub(super) fn is_held(&self, shard: ShardId) -> bool {
        self.rolls.contains_key(&shard)
    }

    /// Notes that a vbucket that was asked for at one seqno has to go back to another.
    pub(super) fn want_roll_back(
        &mut self,
        shard: ShardId,
        vb: VbId,
        (asked, to): (Seqno, Seqno),
        link: Option<LinkId>,
    ) {
        let roll = self.rolls.entry(shard).or_default();
        // Back it goes in any case: otherwise the same would be asked and answered for ever.
        roll.to.insert(vb, to.min(Seqno(asked.0.saturating_sub(1))));
        roll.links.extend(link.map(|link| (vb, link)));
    }

    /// Takes each roll-back a step on.
    pub(super) fn advance_rolls(&mut self, now: Instant) -> Result<(), Broken> {
        let waiting: Vec<ShardId> = self
            .rolls
            .iter()
            .filter(|(_, roll)| !roll.is_running && roll.backoff.is_over(now))
            .map(|(shard, _)| *shard)
            .collect();
        for id in waiting {
            if self.close_streams(id) {
                self.roll_back(id)?;
            }
        }
        Ok(())
    }

    fn roll_back(&mut self, id: ShardId) -> Result<(), Broken> {
        let shard = self.bucket.shards().get(usize::from(id.0)).cloned();
        let (Some(shard), Some(roll)) = (shard, self.rolls.get(&id)) else { return Ok(()) };
        let mut wanted = Vec::new();
        for (vb, to) in &roll.to {
            // The node that answered may have gone since: then whichever has the vbucket tells its branches.
            let answered = roll.links.get(vb).and_then(|link| self.connection(link));
            let connection = answered.or_else(|| self.connection(&self.link_of(0, *vb)?));
            let Some(connection) = connection else { return Ok(()) };
            wanted.push((*vb, *to, connection));
        }
        let generation = self.bucket.next_generation();
        self.fences.insert(id, generation);
        if let Some(roll) = self.rolls.get_mut(&id) {
            roll.is_running = true;
        }
        self.start_job(move |until| {
            let rolled = newest_fit(&shard, &wanted, until).and_then(|point| {
                let to = point.map(|point| point.id);
                shard.roll_back(to, generation, until).map_err(RollFault::Shard)
            });
            Done::RolledBack(id, rolled)
        })
    }

    pub(super) fn take_rolled_back(
        &mut self,
        id: ShardId,
        rolled: Result<(), RollFault>,
        until: &Until,
    ) -> Result<(), Broken> {
        let bucket = self.bucket.name();
        let why = match rolled {
            Ok(()) => {
                self.rolls.remove(&id);
                self.rolled_back += 1;
                let vbs: Vec<VbId> = self.members().filter(|vb| self.shard_of(*vb) == id).collect();
                if let Some(build) = &mut self.build {
                    build.begin_again(vbs.into_iter());
                }
                info!(self.logger, "a shard was rolled back, and is followed again"; "shard" => id.0);
                self.fence(id, until)?;
                return self.part_instances(id, until);
            }
            Err(RollFault::Shard(error @ RollBackError::Locked { .. })) => error.to_string(),
            Err(RollFault::Log(error)) => error.to_string(),
            Err(RollFault::Shard(error)) => return Err(FollowError::RollBack { bucket, error }.into()),
            Err(RollFault::Points(error)) => return Err(FollowError::Points { bucket, error }.into()),
        };
        warn!(self.logger, "a shard is not rolled back yet: {why}"; "shard" => id.0);
        if let Some(roll) = self.rolls.get_mut(&id) {
            roll.is_running = false;
            roll.backoff.fail(Instant::now(), chance());
        }
        Ok(())
    }

    /// Writes to a shard in its present generation, on every path.
    pub(super) fn fence(&mut self, id: ShardId, until: &Until) -> Result<(), Broken> {
        let Some(generation) = self.fences.get(&id).copied() else { return Ok(()) };
        for path in &self.paths {
            let kvdata = self.feed.kvdata(&path.keyspace).map_err(|_| Broken::Ended)?;
            kvdata.fence(id, generation, until)?;
        }
        Ok(())
    }
}

/// The newest recovery point in which no instance is further than the producer's history allows.
fn newest_fit(
    shard: &Shard,
    wanted: &[(VbId, Seqno, Arc<Connection>)],
    until: &Until,
) -> Result<Option<RecoveryPoint>, RollFault> {
    let mut logs = Vec::new();
    for (vb, to, connection) in wanted {
        logs.push((*vb, *to, connection.failover_log(*vb, until).map_err(RollFault::Log)?));
    }
    let fits = |point: &RecoveryPoint| {
        logs.iter().all(|(vb, to, log)| {
            let of_vb = |(at, position): &&(VbId, Position)| at == vb && position.seqno > Seqno(0);
            let mut positions = point.positions.iter().flat_map(|(_, positions)| positions).filter(of_vb);
            positions.all(|(_, position)| position.seqno <= *to && is_on_branch(position, log))
        })
    };
    let points = shard.points(until).map_err(RollFault::Points)?;
    Ok(points.into_iter().rev().find(fits))
}

/// Whether a position is in the history that a log tells: on one of its branches, before the next one began.
fn is_on_branch(position: &Position, log: &FailoverLog) -> bool {
    let mut ends_at = Seqno::OPEN_END;
    for (vbuuid, began) in log.entries() {
        if *vbuuid == position.vbuuid {
            return position.seqno <= ends_at;
        }
        ends_at = *began;
    }
    false
}
