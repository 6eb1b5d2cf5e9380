//! A new index over a bucket that has data: filled by a second data path, with streams of its own from seqno zero, and
//! handed over to the first one.
//!
//! When it has nearly caught up it is handed over shard by shard: the streams of the shard end on both paths, the first
//! path gets the engines for that shard, and asks for the streams again from where the instance stands that is least
//! far. So nothing is missing and nothing counts twice, whichever of the two was further. The other shards go on.
//! Once all shards are handed over the second path ends, and the index may be scanned.

use std::collections::BTreeSet;

use slog::info;

use crate::event::VbId;
use crate::projector::Keyspace;
use crate::shard::{InstId, ShardId};
use crate::thread::Until;

use super::super::meta::IndexState;
use super::FollowError;
use super::follower::{Broken, Follower};
use super::links::LinkId;
use super::streams::least_positions;

/// How far behind the first path the second one may be when it is handed over, in changes.
const NEAR: u64 = 1000;

/// What is being handed over.
#[derive(Default)]
pub(super) struct HandOver {
    /// The shard whose streams are ended for it.
    pub(super) shard: Option<ShardId>,
    /// Shards that were handed over.
    pub(super) done: BTreeSet<ShardId>,
}

impl Follower<'_> {
    /// Starts the second data path, if an index waits for it.
    pub(super) fn start_building(&mut self, until: &Until) -> Result<(), FollowError> {
        let engines = self.bucket.engines_where(|entry| entry.state == IndexState::Building);
        if engines.is_empty() {
            return Ok(());
        }
        info!(self.logger, "indexes are built by streams of their own"; "indexes" => engines.len());
        let generation = self.bucket.next_generation();
        let keyspace = Keyspace(format!("{}:build", self.bucket.name()));
        self.start_path(keyspace, generation, engines, until)?;
        let shards: Vec<ShardId> = self.fences.keys().copied().collect();
        for shard in shards {
            self.fence(shard, until).map_err(|broken| self.explain_start(broken))?;
        }
        Ok(())
    }

    /// The instances that a path fills in a shard.
    pub(super) fn instances_of(&self, path: usize, shard: ShardId) -> Vec<InstId> {
        let of = |path: usize| self.paths.get(path).map(|path| path.instances.clone()).unwrap_or_default();
        let mut instances = of(path);
        if path == 0 && self.hand_over.done.contains(&shard) {
            instances.extend(of(1));
        }
        instances
    }

    /// Takes the hand-over a step on.
    pub(super) fn advance_building(&mut self, until: &Until) -> Result<(), Broken> {
        if self.paths.len() < 2 {
            return Ok(());
        }
        if let Some(shard) = self.hand_over.shard {
            if self.rolls.contains_key(&shard) || !self.close_streams(shard) {
                return Ok(());
            }
            self.take_over(shard, until)?;
        }
        let all: Vec<ShardId> = self.fences.keys().copied().collect();
        match all.iter().find(|shard| !self.hand_over.done.contains(*shard)) {
            None => self.end_building(until),
            Some(next) if self.may_hand_over(*next) => {
                self.hand_over.shard = Some(*next);
                self.close_streams(*next);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether all streams of a shard run and the second path is near enough to the first.
    fn may_hand_over(&self, shard: ShardId) -> bool {
        if self.rolls.contains_key(&shard) {
            return false;
        }
        let vbs: Vec<VbId> = self.members().filter(|vb| self.shard_of(*vb) == shard).collect();
        let is_live = |path: usize, vb: &VbId| {
            self.paths
                .get(path)
                .and_then(|path| path.streams.get(vb))
                .is_some_and(super::streams::Stream::is_live)
        };
        if !vbs.iter().all(|vb| is_live(0, vb) && is_live(1, vb)) {
            return false;
        }
        let shards = self.bucket.shards();
        let [first, second] =
            [0, 1].map(|path| least_positions(shards, &self.instances_of(path, shard), &vbs));
        let behind = first.iter().map(|(vb, position)| {
            position.seqno.0.saturating_sub(second.get(vb).unwrap_or_default().seqno.0)
        });
        behind.sum::<u64>() <= NEAR
    }

    /// The first path evaluates for the new instances too in this shard, and the second one does no more.
    fn take_over(&mut self, shard: ShardId, until: &Until) -> Result<(), Broken> {
        let engines = self.building_engines();
        let (Some(first), shards) = (self.paths.first(), self.spec.shards) else { return Ok(()) };
        self.feed.kvdata(&first.keyspace)?.add_engines_to(shard, engines, until)?;
        if let Some(second) = self.paths.get_mut(1) {
            second.streams.retain(|vb, _| ShardId::of_vb(*vb, shards) != shard);
        }
        self.hand_over.done.insert(shard);
        self.hand_over.shard = None;
        info!(self.logger, "an index was handed over in a shard"; "shard" => shard.0);
        Ok(())
    }

    fn building_engines(&self) -> Vec<crate::projector::Engine> {
        let instances = self.paths.get(1).map(|path| path.instances.clone()).unwrap_or_default();
        self.bucket.engines_where(|entry| instances.contains(&entry.inst))
    }

    fn end_building(&mut self, until: &Until) -> Result<(), Broken> {
        let engines = self.building_engines();
        let Some(second) = self.paths.pop() else { return Ok(()) };
        let left: Vec<LinkId> = self.links.keys().filter(|id| id.path == 1).cloned().collect();
        for id in &left {
            self.leave(id);
        }
        self.feed.stop(&second.keyspace, until).map_err(|still| FollowError::StillRunning {
            bucket: self.bucket.name(),
            threads: still.threads,
        })?;
        if let Some(first) = self.paths.first_mut() {
            self.feed.kvdata(&first.keyspace)?.add_engines(engines, until)?;
            first.instances.extend(&second.instances);
        }
        self.hand_over = HandOver::default();
        self.bucket
            .change_meta(|meta| {
                let built = meta.indexes.iter_mut().filter(|entry| second.instances.contains(&entry.inst));
                built.for_each(|entry| entry.state = IndexState::Ready);
            })
            .map_err(FollowError::Meta)?;
        info!(self.logger, "indexes were built"; "indexes" => second.instances.len());
        Ok(())
    }
}
