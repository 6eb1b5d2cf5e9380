//! The loop that follows a bucket, on the caller's thread.
//!
//! It waits for notes, for outcomes of jobs and for time, and never for a node, a disk or a shard. Whatever happened,
//! the same round brings everything a step on: links, map, roll-backs, streams. What a round has for nodes goes to jobs
//! at its end. A second data path that is done is waited for until its threads have ended, which no node holds up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, never, select_biased, tick};
use slog::Logger;

use crate::event::{Generation, Seqno, VbId, VbUuid};
use crate::pause::Refusal;
use crate::projector::{Endpoint, Engine, Feed, Keyspace, WorkerStats};
use crate::shard::{InstId, ShardId};
use crate::source::dcp::{ClusterMap, Connection, NodeAddress};
use crate::thread::{Stopped, Until};
use crate::timestamp::{Position, TsVbuuid};

use super::super::bucket::Bucket;
use super::super::intake::{Broken, DataPath, Intake, PROGRESS_INTERVAL, PathSpec, Started};
use super::super::intake_error::IntakeError;
use super::super::meta::{BucketSpec, IndexState};
use super::building::{Build, together};
use super::jobs::{Done, Jobs};
use super::links::{Link, LinkId, LinkState, Order};
use super::manifests::Manifests;
use super::notes::{NotedEndpoint, Notes};
use super::rolling::Roll;
use super::streams::{BUILD, MAIN, Path, Stream, least_positions};
use super::topology::Topology;
use super::{FollowEnd, FollowOptions, FollowProgress};

/// Ticks of progress between two looks at how far the shards are.
const TICKS_A_LOOK: u64 = 3;

/// What could not be indexed.
#[derive(Clone, Copy, Default)]
pub(super) struct LeftOut {
    pub(super) quarantined: u64,
    pub(super) oversize_keys: u64,
}

impl LeftOut {
    /// Together with that of one data path.
    pub(super) fn with(self, stats: &WorkerStats) -> Self {
        Self {
            quarantined: self.quarantined + stats.quarantined(),
            oversize_keys: self.oversize_keys + stats.oversize_keys(),
        }
    }
}

/// A vbucket that has come to where following ends.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    since: Instant,
    /// Nothing of what there was is missing.
    is_whole: bool,
}

/// The last seqno of a vbucket.
struct High {
    seqno: Seqno,
    /// When its node was asked for it.
    asked: Instant,
}

pub(super) struct Follower<'b> {
    pub(super) bucket: &'b Bucket,
    pub(super) options: &'b FollowOptions,
    pub(super) spec: BucketSpec,
    pub(super) logger: Logger,
    pub(super) feed: Feed,
    pub(super) paths: Vec<Path>,
    pub(super) links: BTreeMap<LinkId, Link>,
    /// What is to be written to nodes at the end of the round.
    pub(super) orders: BTreeMap<LinkId, Vec<Order>>,
    /// Connections that nothing needs any more, until their threads have ended.
    pub(super) stopping: Vec<Arc<Connection>>,
    pub(super) topology: Topology,
    pub(super) manifests: Manifests,
    pub(super) rolls: BTreeMap<ShardId, Roll>,
    pub(super) build: Option<Build>,
    /// Unfinished indexes that the first path fills, because it has no others to keep.
    pub(super) filling: Vec<InstId>,
    pub(super) build_due: Instant,
    /// The generation that each shard takes writes of.
    pub(super) fences: BTreeMap<ShardId, Generation>,
    pub(super) rolled_back: u64,
    /// Of data paths that have ended.
    pub(super) left_out_before: LeftOut,
    /// Connections that were opened so far, for the names of their threads.
    pub(super) opened: u16,
    pub(super) seqnos_due: Instant,
    jobs: Jobs,
    noted: (Sender<()>, Receiver<()>),
    /// Holds a message when a shard applied something.
    applied: Receiver<()>,
    /// How far each vbucket is, as its node told it last.
    highs: BTreeMap<VbId, High>,
    /// Where following ends, as far as that is known.
    targets: BTreeMap<VbId, Seqno>,
    /// The vbuckets that are there, of all instances, and of those that are filled first.
    pub(super) arrived: BTreeMap<VbId, Arrival>,
    pub(super) filled: BTreeMap<VbId, Arrival>,
    lags: Arc<BTreeMap<VbId, u64>>,
    moves: u64,
    moved_at: Instant,
}

impl<'b> Follower<'b> {
    /// Builds the data path. Nothing is asked for yet.
    pub(super) fn start(
        bucket: &'b Bucket,
        options: &'b FollowOptions,
        map: ClusterMap,
        until: &Until,
    ) -> Result<Self, IntakeError> {
        let (applied, spec) = (bucket.watch_shards(), bucket.describe().spec);
        let mut follower = Self {
            bucket,
            options,
            spec,
            logger: bucket.logger.clone(),
            feed: Feed::new(&bucket.logger),
            paths: Vec::new(),
            links: BTreeMap::new(),
            orders: BTreeMap::new(),
            stopping: Vec::new(),
            topology: Topology::new(map, spec.member_vbs().map(VbId)),
            manifests: Manifests::default(),
            rolls: BTreeMap::new(),
            build: None,
            filling: Vec::new(),
            build_due: Instant::now(),
            fences: BTreeMap::new(),
            rolled_back: 0,
            left_out_before: LeftOut::default(),
            opened: 0,
            seqnos_due: Instant::now(),
            jobs: Jobs::new(),
            noted: bounded(1),
            applied,
            highs: BTreeMap::new(),
            targets: BTreeMap::new(),
            arrived: BTreeMap::new(),
            filled: BTreeMap::new(),
            lags: Arc::default(),
            moves: 0,
            moved_at: Instant::now(),
        };
        let generation = bucket.fence_shards(until)?;
        follower.fences.extend(bucket.shards().iter().map(|shard| (shard.id(), generation)));
        let name = Keyspace(bucket.name().to_string());
        let mut engines = together(bucket, bucket.shards(), |entry| entry.state == IndexState::Ready);
        if engines.is_empty() {
            engines = together(bucket, bucket.shards(), |_| true);
            follower.filling = engines.iter().map(|engine| engine.inst).collect();
        }
        let started = follower.start_path(name, generation, engines, until).map_err(Broken::from);
        if let Err(broken) = started.and_then(|()| follower.start_building(until)) {
            return Err(bucket.give_up(follower.take_started(), broken, until));
        }
        Ok(follower)
    }

    /// Builds a data path for some engines.
    pub(super) fn start_path(
        &mut self,
        keyspace: Keyspace,
        generation: Generation,
        engines: Vec<Engine>,
        until: &Until,
    ) -> Result<(), IntakeError> {
        let instances: Vec<InstId> = engines.iter().map(|engine| engine.inst).collect();
        let members: Vec<VbId> = self.members().collect();
        let requested = least_positions(self.bucket.shards(), &instances, &members);
        let notes = Notes::new(self.noted.0.clone());
        let endpoint: Arc<dyn Endpoint> = Arc::new(NotedEndpoint::new(self.bucket.shards(), &notes));
        let path = PathSpec { keyspace, generation, endpoint, engines, start: &requested };
        let DataPath { keyspace, upstream, budget, stats } =
            self.bucket.start_path(&mut self.feed, path, until)?;
        let streams = members.into_iter().map(|vb| (vb, Stream::default())).collect();
        self.paths.push(Path { keyspace, generation, instances, upstream, budget, notes, stats, streams });
        Ok(())
    }

    /// The vbuckets that are followed.
    pub(super) fn members(&self) -> impl Iterator<Item = VbId> + use<> {
        self.spec.member_vbs().map(VbId)
    }

    pub(super) fn still_running(&self, threads: Vec<String>) -> Broken {
        let (doing, bucket) = self.bucket.intake();
        IntakeError::StillRunning { doing, bucket, threads }.into()
    }

    pub(super) fn start_job(
        &mut self,
        work: impl FnOnce(&Until) -> Done + Send + 'static,
    ) -> Result<(), Broken> {
        self.jobs.start(work).map_err(|source| {
            let (doing, bucket) = self.bucket.intake();
            IntakeError::Spawn { doing, bucket, source }.into()
        })
    }

    /// Brings everything a step on.
    fn round(&mut self, until: &Until) -> Result<(), Broken> {
        if let Some(Refusal::Asleep { pause, .. }) = self.bucket.closed_for_writes() {
            let ((doing, bucket), by) = (self.bucket.intake(), format!("pause {pause}"));
            return Err(IntakeError::PutToSleep { doing, bucket, by }.into());
        }
        let now = Instant::now();
        self.take_notes()?;
        self.reap_links(now)?;
        self.refresh_map(now)?;
        self.open_links(now)?;
        self.close_strayed();
        self.advance_rolls(now)?;
        self.advance_building(now, until)?;
        self.ask_streams(now, until)?;
        self.poll_seqnos(now)?;
        self.hand_over_orders()
    }

    fn take_done(&mut self, done: Done, until: &Until) -> Result<(), Broken> {
        self.jobs.reap();
        match done {
            Done::Map(fetched) => self.take_map(fetched),
            Done::Polled(told) => self.take_polled(told),
            Done::Written(written) => self.take_written(written),
            Done::Chosen(id, chosen) => self.take_chosen(id, chosen),
            Done::Opened(id, opened) => self.take_opened(&id, opened),
            Done::RolledBack(id, rolled) => self.take_rolled_back(id, rolled, until),
            Done::Panicked(panicked) => {
                let (doing, bucket) = self.bucket.intake();
                Err(IntakeError::Panicked { doing, bucket, panicked }.into())
            }
        }
    }

    /// Takes up how far a node's vbuckets are, which it was asked for at a time. An end that lies beyond what is left
    /// of a history moves back with it.
    pub(super) fn note_highs(&mut self, node: &NodeAddress, seqnos: &BTreeMap<VbId, Seqno>, asked: Instant) {
        for (vb, high) in seqnos {
            if self.topology.map.node_of(*vb) != Some(node) {
                continue;
            }
            self.highs.insert(*vb, High { seqno: *high, asked });
            let target = self.targets.entry(*vb).or_insert(*high);
            *target = (*target).min(*high);
        }
    }

    /// Nobody knows how far these vbuckets are.
    pub(super) fn forget_highs(&mut self, vbs: &[VbId]) {
        self.highs.retain(|vb, _| !vbs.contains(vb));
    }

    /// Looks now and then at how far it is, and then at what moved: what moves in between is seen.
    fn look(&mut self, closely: bool) {
        if closely {
            self.lags = Arc::new(self.measure_lags());
        }
        let moves = self.paths.iter().map(|path| path.notes.moves()).sum();
        if moves != self.moves {
            (self.moves, self.moved_at) = (moves, Instant::now());
        }
    }

    /// For each vbucket of which its node told how many changes there are, those that the instance has not seen that
    /// is least far.
    fn measure_lags(&self) -> BTreeMap<VbId, u64> {
        let members: Vec<VbId> = self.members().collect();
        let reached = least_positions(self.bucket.shards(), &self.bucket.instances(), &members);
        let lag = |(vb, position): (VbId, Position)| {
            Some((vb, self.highs.get(&vb)?.seqno.0.saturating_sub(position.seqno.0)))
        };
        reached.iter().filter_map(lag).collect()
    }

    /// The sum over all vbuckets, once it is known.
    fn lag(&self) -> Option<u64> {
        let is_known = self.lags.len() == self.members().count();
        is_known.then(|| self.lags.values().fold(0, |sum: u64, lag| sum.saturating_add(*lag)))
    }

    fn live_streams(&self) -> usize {
        self.paths.iter().flat_map(|path| path.streams.values()).filter(|stream| stream.is_live()).count()
    }

    fn wanted_streams(&self) -> usize {
        let wanted = |(number, path): (usize, &Path)| {
            path.streams.keys().filter(|vb| self.is_wanted(number, **vb)).count()
        };
        self.paths.iter().enumerate().map(wanted).sum()
    }

    fn progress(&self) -> FollowProgress {
        let links = self.links.values().filter(|link| matches!(link.state, LinkState::Up(_)));
        FollowProgress {
            documents: self.documents(),
            lag: self.lag(),
            lags: Arc::clone(&self.lags),
            live_streams: self.live_streams(),
            wanted_streams: self.wanted_streams(),
            connections: links.count(),
            building: self.filling.len() + self.paths.get(BUILD).map_or(0, |path| path.instances.len()),
        }
    }

    /// Changes that were evaluated.
    fn documents(&self) -> u64 {
        self.paths.get(MAIN).map_or(0, |path| path.stats.documents())
    }

    /// What could not be indexed.
    pub(super) fn left_out(&self) -> LeftOut {
        self.paths.iter().fold(self.left_out_before, |sum, path| sum.with(&path.stats))
    }

    fn reached_end(&mut self) -> Option<FollowEnd> {
        let is_built = self.paths.len() == 1 && self.filling.is_empty();
        let is_steady = is_built && self.rolls.is_empty() && self.live_streams() == self.wanted_streams();
        if !is_steady {
            return None;
        }
        if self.options.once {
            let before = std::mem::take(&mut self.arrived);
            if self.has_reached_targets() {
                self.arrived = self.arrive(&self.bucket.instances(), &before);
                if self.have_all_arrived(&self.arrived) {
                    return Some(FollowEnd::CaughtUp);
                }
            }
        }
        let idle_after = self.options.idle_after?;
        if !self.is_idle(idle_after) {
            return None;
        }
        // What the nodes have just told may be more than the lag was measured against.
        self.look(true);
        self.is_idle(idle_after).then_some(FollowEnd::Idle)
    }

    fn is_idle(&self, idle_after: Duration) -> bool {
        let is_quiet = self.moved_at.elapsed() >= idle_after && self.lag() == Some(0);
        is_quiet && self.highs_since(self.moved_at + idle_after)
    }

    /// Whether each vbucket's node was asked how far it is at or after a time, and has answered. One that hangs tells
    /// no change either.
    fn highs_since(&self, since: Instant) -> bool {
        self.members().all(|vb| self.highs.get(&vb).is_some_and(|high| high.asked >= since))
    }

    /// Where following ends, once that is known of all vbuckets.
    fn all_targets(&self) -> Option<TsVbuuid> {
        let target = |vb| Some((vb, Position::at(VbUuid::default(), *self.targets.get(&vb)?)));
        self.members().map(target).collect()
    }

    fn has_reached_targets(&self) -> bool {
        let targets = self.all_targets();
        targets.is_some_and(|targets| self.bucket.shards().iter().all(|shard| shard.covers(&targets)))
    }

    /// Whether the first path has everything that the nodes had when it began.
    pub(super) fn has_filled(&mut self) -> bool {
        let Some(first) = self.paths.get(MAIN) else { return false };
        let instances = first.instances.clone();
        let before = std::mem::take(&mut self.filled);
        self.filled = self.arrive(&instances, &before);
        self.have_all_arrived(&self.filled)
    }

    /// Takes up which vbuckets have come to their targets, and since when. Within a snapshot they may miss something of
    /// what there was: a document that was there and was changed since comes with its last change alone. So each one
    /// has to be at the end of a snapshot once, or where its node, asked afterwards, says the last change is: the end
    /// may be that of a change of another kind, and is never told then.
    fn arrive(&self, instances: &[InstId], before: &BTreeMap<VbId, Arrival>) -> BTreeMap<VbId, Arrival> {
        let mut positions: BTreeMap<VbId, Vec<Position>> = BTreeMap::new();
        for shard in self.bucket.shards() {
            for of_instance in instances.iter().filter_map(|inst| shard.positions(*inst)) {
                for (vb, position) in of_instance.iter() {
                    positions.entry(vb).or_default().push(position);
                }
            }
        }
        let arrival = |(vb, target): (&VbId, &Seqno)| {
            let here = positions.get(vb).map_or(&[][..], Vec::as_slice);
            let all =
                |holds: &dyn Fn(&Position) -> bool| here.len() == instances.len() && here.iter().all(holds);
            if *target > Seqno(0) && !all(&|position| position.seqno >= *target) {
                return None;
            }
            let Arrival { since, is_whole } =
                before.get(vb).copied().unwrap_or(Arrival { since: Instant::now(), is_whole: false });
            let is_told = |position: &Position| {
                let high = self.highs.get(vb).filter(|high| high.asked >= since);
                high.is_some_and(|high| position.seqno >= high.seqno)
            };
            let is_whole = is_whole
                || *target == Seqno(0)
                || all(&|position| position.seqno >= position.snap_end || is_told(position));
            Some((*vb, Arrival { since, is_whole }))
        };
        self.targets.iter().filter_map(arrival).collect()
    }

    fn have_all_arrived(&self, arrivals: &BTreeMap<VbId, Arrival>) -> bool {
        self.members().all(|vb| arrivals.get(&vb).is_some_and(|arrival| arrival.is_whole))
    }
}

impl Intake for Follower<'_> {
    type Progress = FollowProgress;
    type Outcome = FollowEnd;

    /// Follows until there is an end.
    fn run(
        &mut self,
        until: &Until,
        on_progress: &mut dyn FnMut(FollowProgress),
    ) -> Result<FollowEnd, Broken> {
        let ticker = tick(PROGRESS_INTERVAL);
        let timer = until.timer();
        let (applied, nothing) = (self.applied.clone(), never());
        let (jobs, noted) = (self.jobs.outcomes().clone(), self.noted.1.clone());
        let mut ticks: u64 = 0;
        self.round(until)?;
        loop {
            if self.paths.iter().any(|path| self.feed.has_ended(&path.keyspace)) {
                return Err(Broken::Ended);
            }
            if let Some(end) = self.reached_end() {
                on_progress(self.progress());
                return Ok(end);
            }
            // What was applied matters to those who wait for a point.
            let watched = if self.options.once || self.build.is_some() { &applied } else { &nothing };
            select_biased! {
                recv(until.cancel().fin().receiver()) -> _ => return Err(Broken::Stopped(Stopped::Cancelled)),
                recv(timer) -> _ => return Err(Broken::Stopped(Stopped::DeadlinePassed)),
                recv(self.feed.woken()) -> _ => {}
                recv(noted) -> _ => self.round(until)?,
                recv(jobs) -> done => if let Ok(done) = done {
                    self.take_done(done, until)?;
                    self.round(until)?;
                },
                recv(ticker) -> _ => {
                    ticks += 1;
                    self.round(until)?;
                    self.look(ticks.is_multiple_of(TICKS_A_LOOK));
                    on_progress(self.progress());
                }
                recv(watched) -> _ => {
                    self.advance_building(Instant::now(), until)?;
                    self.hand_over_orders()?;
                }
            }
        }
    }

    fn take_started(&mut self) -> Started {
        let up = |link: Link| match link.state {
            LinkState::Up(connection) => Some(connection),
            LinkState::Down | LinkState::Opening => None,
        };
        let mut connections = std::mem::take(&mut self.stopping);
        connections.extend(std::mem::take(&mut self.links).into_values().filter_map(up));
        let mut jobs = std::mem::replace(&mut self.jobs, Jobs::new());
        let feeders = move |until: &Until| {
            let mut running = Vec::new();
            connections.retain(|connection| {
                let still = connection.close(until).err();
                let is_open = still.is_some();
                running.extend(still.into_iter().flat_map(|still| still.threads));
                is_open
            });
            running.extend(jobs.end(until));
            running
        };
        let feed = std::mem::replace(&mut self.feed, Feed::new(&self.logger));
        Started { feed, feeders: Box::new(feeders) }
    }

    fn kept(&self) -> u64 {
        self.documents()
    }
}
