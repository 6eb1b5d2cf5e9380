//! New indexes over a bucket that has data: filled by a second data path, with streams of its own from where they
//! stand, and handed over to the first one.
//!
//! The first path evaluates for them from the beginning, and the shards pass that over. Once the second stream of a
//! vbucket has come to where the first one is, the shard lets the instances [join](crate::shard::Shard::join) the
//! others there: from the next batch on the first stream moves them too, and the second one ends. That is a point in
//! the stream of one vbucket; neither its first stream nor anything else is interrupted. Once all vbuckets are handed
//! over the second path ends, and the index may be scanned.
//!
//! ```text
//!   Behind ──> Joined ──> Done            each of them ──> Behind, where the shard is rolled back
//!     └─> Held ──┘
//! ```
//!
//! Where documents change without a pause the second stream may stay some changes behind for ever. Then the first one
//! is held: it is closed for as long as the second one needs to pass the point where it stands.
//!
//! Invariant: the instances that a path keeps stand at one place in each vbucket. A producer judges the one place that
//! a stream is asked for from, and says nothing of what is further. So instances that stand elsewhere, as also finished
//! ones may after a crash or a roll-back, are brought up by the second path: those that stand where the first of them
//! stands together, and the others after that. Where no finished index is there to be kept, the first path fills the
//! first ones.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slog::info;

use crate::event::{Seqno, VbId};
use crate::projector::{Engine, Keyspace};
use crate::shard::{InstId, Joined, Shard, ShardId};
use crate::thread::Until;
use crate::timestamp::TsVbuuid;

use super::super::bucket::Bucket;
use super::super::intake::Broken;
use super::super::intake_error::IntakeError;
use super::super::meta::{IndexEntry, IndexState};
use super::follower::Follower;
use super::links::LinkId;
use super::streams::{BUILD, MAIN, Stream, least_positions};

/// How often vbuckets are looked at.
const STEP: Duration = Duration::from_millis(20);
/// How far behind the first stream of a vbucket the second one may be for the first one to be held, in changes.
const NEAR: u64 = 1000;
/// How long the second stream may be near and go on without coming up.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the first stream is held at most before the second one is left to come nearer again.
const HELD_LONGEST: Duration = Duration::from_secs(2);
/// Vbuckets whose first stream is held at the same time.
const HELD_MAX: usize = 8;

/// Where the hand-over of a vbucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The second stream fills the instances. It has been near the first one since then, when it was there.
    Behind(Option<(Instant, Seqno)>),
    /// The first stream is closed since then, so that the second one comes up.
    Held(Instant),
    /// Both may move the instances, and the second one is closed.
    Joined,
    /// The first stream alone moves them.
    Done,
}

/// Indexes that are being built.
pub(super) struct Build {
    instances: Vec<InstId>,
    /// What the first path had evaluated without them, where that may not be applied yet.
    pub(super) points: BTreeMap<VbId, Seqno>,
    vbs: BTreeMap<VbId, Phase>,
}

impl Build {
    /// Whether a path is to have a stream of a vbucket.
    pub(super) fn wants(&self, path: usize, vb: VbId) -> bool {
        match self.vbs.get(&vb) {
            Some(Phase::Behind(_)) => true,
            Some(Phase::Held(_)) => path == BUILD,
            Some(Phase::Joined | Phase::Done) | None => path == MAIN,
        }
    }

    /// The shard of these vbuckets was rolled back: nothing of it has joined any more.
    pub(super) fn begin_again(&mut self, vbs: impl Iterator<Item = VbId>) {
        for vb in vbs {
            self.points.remove(&vb);
            self.vbs.insert(vb, Phase::Behind(None));
        }
    }
}

/// Those of some indexes that stand where the first one of them stands, in shards where nothing moves them.
pub(super) fn together(
    bucket: &Bucket,
    shards: &[Shard],
    wanted: impl Fn(&IndexEntry) -> bool,
) -> Vec<Engine> {
    let mut engines = bucket.engines_where(wanted);
    let positions = |inst: InstId| shards.iter().map(|shard| shard.positions(inst)).collect::<Vec<_>>();
    let Some(first) = engines.first().map(|engine| positions(engine.inst)) else { return engines };
    engines.retain(|engine| positions(engine.inst) == first);
    engines
}

impl Follower<'_> {
    /// Starts the second data path, if an index waits for it.
    pub(super) fn start_building(&mut self, until: &Until) -> Result<(), Broken> {
        let Some(first) = self.paths.get(MAIN).filter(|_| self.build.is_none()) else { return Ok(()) };
        let keyspace = first.keyspace.clone();
        let shards = self.bucket.shards();
        let engines = together(self.bucket, shards, |entry| !first.instances.contains(&entry.inst));
        if engines.is_empty() {
            return Ok(());
        }
        let instances: Vec<InstId> = engines.iter().map(|engine| engine.inst).collect();
        info!(self.logger, "indexes are built by streams of their own"; "indexes" => instances.len());
        for shard in shards {
            shard.part(&instances, until).map_err(Broken::Stopped)?;
        }
        let points = self.feed.kvdata(&keyspace)?.join_engines(engines.clone(), until)?;
        let generation = self.bucket.next_generation();
        self.start_path(Keyspace(format!("{}:build", self.bucket.name())), generation, engines, until)
            .map_err(|error| Broken::from(error).unless_ended(until))?;
        let shards: Vec<ShardId> = self.fences.keys().copied().collect();
        for shard in shards {
            self.fence(shard, until)?;
        }
        let points = points.into_iter().collect();
        let vbs = self.members().map(|vb| (vb, Phase::Behind(None))).collect();
        self.build = Some(Build { instances, points, vbs });
        Ok(())
    }

    /// Takes what is built a step on.
    pub(super) fn advance_building(&mut self, now: Instant, until: &Until) -> Result<(), Broken> {
        if self.build_due > now {
            return Ok(());
        }
        self.build_due = now + STEP;
        if !self.filling.is_empty() && self.has_filled() {
            let filled = std::mem::take(&mut self.filling);
            self.note_built(&filled)?;
        }
        let Some(mut build) = self.build.take() else { return Ok(()) };
        self.hold(&mut build, now);
        let unfinished: Vec<(VbId, Phase)> =
            build.vbs.iter().filter(|(_, phase)| **phase != Phase::Done).map(|(vb, at)| (*vb, *at)).collect();
        for (vb, phase) in unfinished {
            let next = self.next_phase(&build, vb, phase, now);
            if next == Phase::Joined && phase != Phase::Joined {
                self.close_stream(BUILD, vb);
            }
            build.vbs.insert(vb, next);
        }
        if build.vbs.values().all(|phase| *phase == Phase::Done) {
            return self.end_building(&build.instances, until);
        }
        self.build = Some(build);
        Ok(())
    }

    /// After a shard was rolled back: instances that do not stand where the others of their path stand any more leave
    /// it, and are brought up again.
    pub(super) fn part_instances(&mut self, shard: ShardId, until: &Until) -> Result<(), Broken> {
        let mut gone: Vec<InstId> = Vec::new();
        let shards = self.shard(shard).cloned();
        for path in &mut self.paths {
            let is_here = |entry: &IndexEntry| path.instances.contains(&entry.inst);
            let engines = together(self.bucket, shards.as_slice(), is_here);
            let stays = |inst: &InstId| engines.iter().any(|engine| engine.inst == *inst);
            gone.extend(path.instances.extract_if(.., |inst| !stays(inst)));
        }
        if gone.is_empty() {
            return Ok(());
        }
        info!(self.logger, "indexes that stand elsewhere are brought up apart"; "indexes" => gone.len());
        self.filling.retain(|inst| !gone.contains(inst));
        if let Some(build) = &mut self.build {
            build.instances.retain(|inst| !gone.contains(inst));
        }
        for path in &self.paths {
            self.feed.kvdata(&path.keyspace)?.delete_engines(gone.clone(), until)?;
        }
        self.start_building(until)
    }

    fn stream(&self, path: usize, vb: VbId) -> Option<&Stream> {
        self.paths.get(path)?.streams.get(&vb)
    }

    /// Lets the instances join in a vbucket where they may, and tells where its hand-over stands then.
    fn next_phase(&self, build: &Build, vb: VbId, phase: Phase, now: Instant) -> Phase {
        let shard = self.shard_of(vb);
        let (Some(first), Some(second)) = (self.stream(MAIN, vb), self.stream(BUILD, vb)) else {
            return phase;
        };
        let Some(shard) = self.shard(shard).filter(|shard| !self.is_rolling(shard.id())) else {
            return phase;
        };
        // Both began on one branch, and nothing came on any other since.
        let is_one_history = second.is_live() && second.branch == first.branch;
        let may_join = match phase {
            Phase::Behind(_) => is_one_history && first.is_live(),
            Phase::Held(_) => is_one_history,
            Phase::Joined | Phase::Done => false,
        };
        let members = self.paths.get(MAIN).map_or(&[][..], |first| &first.instances);
        let from = build.points.get(&vb).copied().unwrap_or_default();
        if may_join && shard.join(vb, &build.instances, members, from) {
            return Phase::Joined;
        }
        match phase {
            Phase::Held(since) if !is_one_history || now.duration_since(since) >= HELD_LONGEST => {
                Phase::Behind(None)
            }
            Phase::Joined => match shard.joined(vb, &build.instances, members) {
                Joined::No => Phase::Behind(None),
                Joined::Level if second.is_idle() => Phase::Done,
                Joined::Level | Joined::Ahead => Phase::Joined,
            },
            phase => phase,
        }
    }

    /// Closes the first stream of vbuckets whose second one is near for so long that it will not come up.
    fn hold(&mut self, build: &mut Build, now: Instant) {
        let is_behind = |(vb, phase): (&VbId, &Phase)| matches!(phase, Phase::Behind(_)).then_some(*vb);
        let both_live =
            |vb: &VbId| [MAIN, BUILD].iter().all(|path| self.stream(*path, *vb).is_some_and(Stream::is_live));
        let vbs: Vec<VbId> = build.vbs.iter().filter_map(is_behind).filter(both_live).collect();
        if vbs.is_empty() {
            return;
        }
        let shards = self.bucket.shards();
        let reached = |instances: &[InstId]| least_positions(shards, instances, &vbs);
        let members = self.paths.get(MAIN).map_or(&[][..], |first| &first.instances);
        let (first, second) = (reached(members), reached(&build.instances));
        let mut held = build.vbs.values().filter(|phase| matches!(phase, Phase::Held(_))).count();
        for vb in vbs {
            let seqno = |positions: &TsVbuuid| positions.get(vb).unwrap_or_default().seqno;
            let (ahead, there) = (seqno(&first), seqno(&second));
            let Some(Phase::Behind(near)) = build.vbs.get(&vb).copied() else { continue };
            let near =
                if ahead.0.saturating_sub(there.0) <= NEAR { near.or(Some((now, there))) } else { None };
            // One that stands still would not come up either.
            let is_late = near.is_some_and(|(since, at)| there > at && now.duration_since(since) >= PATIENCE);
            let phase = if is_late && held < HELD_MAX {
                held += 1;
                self.close_stream(MAIN, vb);
                Phase::Held(now)
            } else {
                Phase::Behind(near)
            };
            build.vbs.insert(vb, phase);
        }
    }

    fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.bucket.shards().get(usize::from(id.0))
    }

    fn end_building(&mut self, instances: &[InstId], until: &Until) -> Result<(), Broken> {
        let engines = self.bucket.engines_where(|entry| instances.contains(&entry.inst));
        let Some(second) = self.paths.pop() else { return Ok(()) };
        let left: Vec<LinkId> = self.links.keys().filter(|id| id.path == BUILD).cloned().collect();
        for id in &left {
            self.leave(id);
        }
        if let Err(still) = self.feed.stop(&second.keyspace, until) {
            return Err(self.still_running(still.threads).unless_ended(until));
        }
        self.left_out_before = self.left_out_before.with(&second.stats);
        if let Some(first) = self.paths.get_mut(MAIN) {
            self.feed.kvdata(&first.keyspace)?.add_engines(engines, until)?;
            first.instances.extend(instances);
        }
        self.note_built(instances)?;
        self.start_building(until)
    }

    fn note_built(&self, instances: &[InstId]) -> Result<(), Broken> {
        self.bucket
            .change_meta(|meta| {
                let built = meta.indexes.iter_mut().filter(|entry| instances.contains(&entry.inst));
                built.for_each(|entry| entry.state = IndexState::Ready);
            })
            .map_err(IntakeError::from)?;
        info!(self.logger, "indexes were built"; "indexes" => instances.len());
        Ok(())
    }
}
