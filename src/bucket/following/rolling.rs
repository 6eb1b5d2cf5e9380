//! Rolling a shard back, because the producer has lost what the shard has.
//!
//! It concerns every vbucket and every index of the shard: their streams are ended and what they brought is applied,
//! the shard goes back to the newest recovery point that the producer still knows, writes of older generations are
//! fenced off, and all its vbuckets are asked for again. The other shards go on meanwhile, and so do the shard's other
//! vbuckets for as long as nobody knows where it may go back to: a node that does not tell a vbucket's branches holds
//! up that vbucket alone. The point is chosen once more when nothing moves the shard any more, as branches may have
//! come.
//!
//! ```text
//!   Wanted ──> Choosing ──> Chosen ──> Rolling ──> gone       whatever fails ──> Wanted, after a while
//!              streams run  streams end
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{info, warn};

use crate::event::{Generation, Seqno, VbId};
use crate::shard::store::RecoveryPoint;
use crate::shard::{RollBackError, Shard, ShardId};
use crate::source::dcp::{Connection, FailoverLog};
use crate::thread::Until;
use crate::timestamp::Position;

use super::super::intake::Broken;
use super::super::pausing::millis;
use super::backoff::{Backoff, chance};
use super::cause::FollowCause;
use super::follower::Follower;
use super::jobs::{Done, RollFault};
use super::links::LinkId;
use super::streams::MAIN;

/// Where a roll-back stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    /// Nothing is under way.
    #[default]
    Wanted,
    /// A recovery point is looked for, while streams run.
    Choosing,
    /// There is one to go back to, or none that fits, and the streams are closed.
    Chosen,
    /// The shard goes back.
    Rolling,
}

/// A shard that is to be rolled back.
#[derive(Default)]
pub(super) struct Roll {
    /// For each vbucket that asked for it, the highest seqno that it may go back to.
    to: BTreeMap<VbId, Seqno>,
    /// Connections that these were answered on.
    links: BTreeMap<VbId, LinkId>,
    step: Step,
    /// Since when the shard's streams are closed.
    closed: Option<Instant>,
    backoff: Backoff,
}

/// A vbucket whose branches have to be known, how far it may go back, and who tells them.
type Wanted = (VbId, Seqno, Arc<Connection>);

impl Follower<'_> {
    /// Whether a shard is to be rolled back.
    pub(super) fn is_rolling(&self, shard: ShardId) -> bool {
        self.rolls.contains_key(&shard)
    }

    /// Whether no stream of a vbucket may be asked for, because of a roll-back.
    pub(super) fn is_held_back(&self, vb: VbId) -> bool {
        let roll = self.rolls.get(&self.shard_of(vb));
        roll.is_some_and(|roll| {
            roll.to.contains_key(&vb) || matches!(roll.step, Step::Chosen | Step::Rolling)
        })
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
        let steps: Vec<(ShardId, Step)> = self
            .rolls
            .iter()
            .filter(|(_, roll)| roll.backoff.is_over(now))
            .map(|(shard, roll)| (*shard, roll.step))
            .collect();
        for (id, step) in steps {
            match step {
                Step::Wanted => self.choose_point(id)?,
                Step::Chosen if self.close_streams(id) => self.roll_back(id)?,
                Step::Choosing | Step::Chosen | Step::Rolling => {}
            }
        }
        Ok(())
    }

    /// Who tells the branches of the vbuckets that have to go back; nobody, as long as that is not known of each.
    fn wanted(&mut self, id: ShardId) -> Option<(Shard, Vec<Wanted>)> {
        let (shard, roll) = (self.bucket.shards().get(usize::from(id.0))?, self.rolls.get(&id)?);
        let wanted = roll.to.iter().map(|(vb, to)| {
            let has_it = self.link_of(MAIN, *vb).and_then(|link| self.connection(&link));
            // The one that answered knows them as a rule, where the map is old or that connection is not open yet.
            let answered = || self.connection(roll.links.get(vb)?);
            Some((*vb, *to, has_it.or_else(answered)?))
        });
        let wanted = wanted.collect::<Option<Vec<Wanted>>>().map(|wanted| (shard.clone(), wanted));
        self.topology.is_stale |= wanted.is_none();
        wanted
    }

    fn choose_point(&mut self, id: ShardId) -> Result<(), Broken> {
        let Some((shard, wanted)) = self.wanted(id) else { return Ok(()) };
        let timeout = self.options.cluster.connection.step_timeout;
        self.set_step(id, Step::Choosing);
        self.start_job(move |until| Done::Chosen(id, newest_fit(&shard, &wanted, timeout, until).map(drop)))
    }

    pub(super) fn take_chosen(&mut self, id: ShardId, chosen: Result<(), RollFault>) -> Result<(), Broken> {
        match chosen {
            Ok(()) => {
                self.set_step(id, Step::Chosen);
                if let Some(roll) = self.rolls.get_mut(&id) {
                    roll.closed = Some(Instant::now());
                }
                Ok(())
            }
            Err(fault) => self.take_fault(id, fault),
        }
    }

    fn set_step(&mut self, id: ShardId, step: Step) {
        if let Some(roll) = self.rolls.get_mut(&id) {
            roll.step = step;
        }
    }

    fn roll_back(&mut self, id: ShardId) -> Result<(), Broken> {
        let Some((shard, wanted)) = self.wanted(id) else {
            // The others of the shard need not wait for a connection.
            self.set_step(id, Step::Wanted);
            return Ok(());
        };
        let timeout = self.options.cluster.connection.step_timeout;
        let generation = self.bucket.next_generation();
        self.set_step(id, Step::Rolling);
        self.start_job(move |until| {
            let rolled = newest_fit(&shard, &wanted, timeout, until).and_then(|point| {
                let to = point.map(|point| point.id);
                shard.roll_back(to, generation, until).map_err(RollFault::Shard)
            });
            let rolled = rolled.map(|()| generation);
            Done::RolledBack(id, rolled)
        })
    }

    pub(super) fn take_rolled_back(
        &mut self,
        id: ShardId,
        rolled: Result<Generation, RollFault>,
        until: &Until,
    ) -> Result<(), Broken> {
        let generation = match rolled {
            Ok(generation) => generation,
            Err(fault) => return self.take_fault(id, fault),
        };
        self.fences.insert(id, generation);
        let closed = self.rolls.remove(&id).and_then(|roll| roll.closed);
        self.rolled_back += 1;
        let vbs: Vec<VbId> = self.members().filter(|vb| self.shard_of(*vb) == id).collect();
        self.arrived.retain(|vb, _| !vbs.contains(vb));
        self.filled.retain(|vb, _| !vbs.contains(vb));
        if let Some(build) = &mut self.build {
            build.begin_again(vbs.into_iter());
        }
        let ms = closed.map(millis);
        info!(self.logger, "a shard was rolled back, and is followed again"; "shard" => id.0, "ms" => ms);
        self.fence(id, until)?;
        self.part_instances(id, until)
    }

    /// A roll-back did not come to its end: it is tried again, where that may help.
    fn take_fault(&mut self, id: ShardId, fault: RollFault) -> Result<(), Broken> {
        let why = match fault {
            // A point that was chosen goes where another one is kept for it meanwhile.
            RollFault::Shard(error @ (RollBackError::Locked { .. } | RollBackError::NoPoint { .. })) => {
                error.to_string()
            }
            RollFault::Log(vb, error) => {
                // The vbucket may be elsewhere by now.
                self.topology.is_stale = true;
                if let Some(roll) = self.rolls.get_mut(&id) {
                    roll.links.remove(&vb);
                }
                format!("vbucket {vb}: {error}")
            }
            RollFault::Shard(error) => {
                return Err(self.bucket.cannot_follow(FollowCause::RollBack(error)).into());
            }
            RollFault::Points(error) => {
                return Err(self.bucket.cannot_follow(FollowCause::Points(error)).into());
            }
        };
        warn!(self.logger, "a shard is not rolled back yet: {why}"; "shard" => id.0);
        if let Some(roll) = self.rolls.get_mut(&id) {
            roll.step = Step::Wanted;
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

/// The newest recovery point in which no instance is further than the producer's history allows. Each node may take
/// `timeout` to tell of a vbucket.
fn newest_fit(
    shard: &Shard,
    wanted: &[Wanted],
    timeout: Duration,
    until: &Until,
) -> Result<Option<RecoveryPoint>, RollFault> {
    let mut logs = Vec::new();
    for (vb, to, connection) in wanted {
        let log = connection.failover_log(*vb, &until.at_most(timeout));
        logs.push((*vb, *to, log.map_err(|error| RollFault::Log(*vb, error))?));
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
