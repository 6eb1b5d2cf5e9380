//! Where each vbucket's stream stands, and what is done about it.
//!
//! Invariant: a stream is asked for only when the shard has everything of the earlier one, whose end was noted. So at
//! most one answer or end is under way for each vbucket of a path, and a stream always continues what the shard has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use slog::{info, warn};

use crate::event::{
    ByteBudget, DcpEvent, EventBatch, EventKind, Generation, StreamEndReason, StreamStatus, VbId, VbUuid,
};
use crate::projector::{FeedError, Keyspace, RequestError, WorkerStats};
use crate::shard::{InstId, Shard, ShardId};
use crate::source::dcp::{Status, StreamRequest};
use crate::thread::Until;
use crate::timestamp::{Position, TsVbuuid};

use super::FollowError;
use super::backoff::{Backoff, chance};
use super::follower::{Broken, Follower};
use super::links::{LinkId, Order};
use super::notes::Notes;

/// Refusals that asking again does not help.
const FATAL: &[Status] = &[
    Status::EINVAL,
    Status::ERANGE,
    Status::AUTH_ERROR,
    Status::EACCESS,
    Status::UNKNOWN_COMMAND,
    Status::NOT_SUPPORTED,
];

/// The data path that keeps the finished indexes up to date.
pub(super) const MAIN: usize = 0;
/// The one that fills those that are being built, while there are any.
pub(super) const BUILD: usize = 1;

/// A data path, with the streams that feed it.
pub(super) struct Path {
    pub(super) keyspace: Keyspace,
    pub(super) generation: Generation,
    pub(super) instances: Vec<InstId>,
    /// Kept so that the end of a connection does not end the data path.
    pub(super) upstream: crossbeam::channel::Sender<EventBatch>,
    pub(super) budget: ByteBudget,
    pub(super) notes: Arc<Notes>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) streams: BTreeMap<VbId, Stream>,
}

#[derive(Debug, Default)]
pub(super) enum State {
    /// It is not asked for.
    #[default]
    Idle,
    /// It was asked for and not answered.
    Asked(LinkId),
    /// It began.
    Live(LinkId),
    /// Its end was asked for.
    Closing(LinkId),
}

/// The stream of a vbucket.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) state: State,
    /// The branch that it follows, or followed last.
    pub(super) branch: VbUuid,
    backoff: Backoff,
}

impl Stream {
    /// The connection that it is on.
    pub(super) fn link(&self) -> Option<&LinkId> {
        match &self.state {
            State::Idle => None,
            State::Asked(link) | State::Live(link) | State::Closing(link) => Some(link),
        }
    }

    fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing(_))
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Live(_))
    }

    /// Whether it was asked for over a connection, and not answered.
    pub(super) fn is_asked(&self, over: &LinkId) -> bool {
        matches!(&self.state, State::Asked(link) if link == over)
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// It is over, for a reason that may come again.
    pub(super) fn fail(&mut self) {
        self.backoff.fail(Instant::now(), chance());
        self.state = State::Idle;
    }

    /// It may be asked for at once, whatever it failed with before.
    pub(super) fn forget_failures(&mut self) {
        self.backoff.clear();
    }

    /// It is over, for a reason that does not come again, or that others wait for.
    fn end(&mut self) {
        self.state = State::Idle;
    }
}

/// Where the instance stands that is least far, for each of `vbs`: there its stream begins.
pub(super) fn least_positions(shards: &[Shard], instances: &[InstId], vbs: &[VbId]) -> TsVbuuid {
    let mut all: BTreeMap<InstId, TsVbuuid> = BTreeMap::new();
    for inst in instances {
        let of_inst = all.entry(*inst).or_default();
        shards
            .iter()
            .filter_map(|shard| shard.positions(*inst))
            .for_each(|of_shard| of_inst.union(&of_shard));
    }
    let least = |vb: VbId| {
        let positions = all.values().map(|of_inst| of_inst.get(vb).unwrap_or(Position::ZERO));
        positions.min_by_key(|position| position.seqno).unwrap_or(Position::ZERO)
    };
    vbs.iter().map(|vb| (*vb, least(*vb))).collect()
}

impl Follower<'_> {
    pub(super) fn shard_of(&self, vb: VbId) -> ShardId {
        ShardId::of_vb(vb, self.spec.shards)
    }

    fn stream_mut(&mut self, path: usize, vb: VbId) -> Option<&mut Stream> {
        self.paths.get_mut(path)?.streams.get_mut(&vb)
    }

    /// Takes up what became of streams.
    pub(super) fn take_notes(&mut self) -> Result<(), Broken> {
        for path in 0..self.paths.len() {
            let told = self.paths.get(path).map(|path| path.notes.take()).unwrap_or_default();
            for event in told {
                self.take_note(path, &event)?;
            }
        }
        Ok(())
    }

    fn take_note(&mut self, path: usize, event: &DcpEvent) -> Result<(), Broken> {
        let vb = event.vb;
        let shard = self.shard_of(vb);
        let node = self.topology.map.node_of(vb).cloned();
        let Some(stream) = self.stream_mut(path, vb) else { return Ok(()) };
        match event.kind {
            EventKind::StreamReq { status: StreamStatus::Success { vbuuid } } => {
                stream.branch = vbuuid;
                if let State::Asked(link) = &stream.state {
                    stream.state = State::Live(link.clone());
                }
                self.manifests.caught_up(vb);
            }
            EventKind::StreamReq { status: StreamStatus::Rollback { to } } => {
                let link = stream.link().cloned();
                stream.end();
                info!(self.logger, "a vbucket is to be rolled back"; "vbucket" => vb.0, "from" => event.seqno.0, "to" => to.0);
                self.want_roll_back(shard, vb, (event.seqno, to), link);
            }
            EventKind::StreamReq { status } => {
                // What a node refuses says nothing of the one that has the vbucket since.
                if stream.link().map(|link| &link.node) == node.as_ref() {
                    stream.fail();
                } else {
                    stream.end();
                }
                self.take_refusal(vb, status)?;
            }
            EventKind::StreamEnd { reason } => self.take_end(path, vb, reason)?,
            _ => {}
        }
        Ok(())
    }

    fn take_refusal(&mut self, vb: VbId, status: StreamStatus) -> Result<(), Broken> {
        if self.may_be_behind(status) {
            return self.take_behind(vb, status);
        }
        let is_fatal = match status {
            StreamStatus::UnknownCollection | StreamStatus::UnknownScope => true,
            StreamStatus::Refused { status } => FATAL.contains(&Status(status)),
            StreamStatus::Success { .. } | StreamStatus::Rollback { .. } => false,
        };
        if is_fatal {
            return Err(FollowError::Refused { bucket: self.bucket.name(), vb, status }.into());
        }
        self.topology.is_stale |= status == StreamStatus::Refused { status: Status::NOT_MY_VBUCKET.0 };
        Ok(())
    }

    fn take_end(&mut self, path: usize, vb: VbId, reason: StreamEndReason) -> Result<(), Broken> {
        if let Some(build) = self.build.as_mut().filter(|_| path == MAIN) {
            // What it brought is applied.
            build.points.remove(&vb);
        }
        let Some(stream) = self.stream_mut(path, vb) else { return Ok(()) };
        match reason {
            // Its connection waits before it is opened again.
            StreamEndReason::Disconnected => stream.end(),
            StreamEndReason::Closed if stream.is_closing() => stream.end(),
            StreamEndReason::StateChanged => {
                stream.end();
                self.topology.is_stale = true;
            }
            StreamEndReason::FilterEmpty | StreamEndReason::LostPrivileges => {
                return Err(FollowError::StreamLost { bucket: self.bucket.name(), vb, reason }.into());
            }
            _ => {
                stream.fail();
                warn!(self.logger, "a stream ended: {reason}"; "vbucket" => vb.0);
            }
        }
        Ok(())
    }

    /// Whether a path is to have a stream of a vbucket.
    pub(super) fn is_wanted(&self, path: usize, vb: VbId) -> bool {
        self.build.as_ref().is_none_or(|build| build.wants(path, vb))
    }

    /// Asks for the streams that are not asked for and may be.
    pub(super) fn ask_streams(&mut self, now: Instant, until: &Until) -> Result<(), Broken> {
        for path in 0..self.paths.len() {
            let mut askable = Vec::new();
            for (vb, stream) in self.paths.get(path).iter().flat_map(|path| &path.streams) {
                let may_begin = stream.is_idle()
                    && stream.backoff.is_over(now)
                    && self.is_wanted(path, *vb)
                    && !self.is_held_back(*vb);
                let link = if may_begin { self.link_of(path, *vb) } else { None };
                // A vbucket without a node gets one, and the map tells.
                self.topology.is_stale |= may_begin && link.is_none();
                askable.extend(link.filter(|id| self.connection(id).is_some()).map(|id| (*vb, id)));
            }
            if !askable.is_empty() {
                self.ask(path, askable, until)?;
            }
        }
        Ok(())
    }

    fn ask(&mut self, number: usize, askable: Vec<(VbId, LinkId)>, until: &Until) -> Result<(), Broken> {
        let shards = self.bucket.shards();
        let Some(path) = self.paths.get(number) else { return Ok(()) };
        let vbs: Vec<VbId> = askable.iter().map(|(vb, ..)| *vb).collect();
        let from = least_positions(shards, &path.instances, &vbs);
        self.feed.request_streams(&path.keyspace, &from, until).map_err(|error| match error {
            FeedError::Request { error: RequestError::Stopped(why), .. } => Broken::Stopped(why),
            _ => Broken::Ended,
        })?;
        for (vb, link) in askable {
            let Some(stream) = self.stream_mut(number, vb) else { continue };
            stream.state = State::Asked(link.clone());
            let begin = StreamRequest::follow(vb, from.get(vb).unwrap_or(Position::ZERO));
            let request = StreamRequest { manifest_uid: self.manifests.uid(), ..begin };
            self.order(&link, Order::Request(request));
        }
        Ok(())
    }

    /// Asks for the end of the streams of a shard. `true` once none of them is open.
    pub(super) fn close_streams(&mut self, shard: ShardId) -> bool {
        let shards = self.spec.shards;
        let mut open = Vec::new();
        for (number, path) in self.paths.iter().enumerate() {
            let of_shard = path.streams.iter().filter(|(vb, _)| ShardId::of_vb(**vb, shards) == shard);
            open.extend(of_shard.filter(|(_, stream)| !stream.is_idle()).map(|(vb, _)| (number, *vb)));
        }
        for (path, vb) in &open {
            self.close_stream(*path, *vb);
        }
        open.is_empty()
    }

    /// Asks for the end of a stream that has begun.
    pub(super) fn close_stream(&mut self, path: usize, vb: VbId) {
        let Some(Stream { state, .. }) = self.stream_mut(path, vb) else { return };
        let State::Live(link) = state else { return };
        let link = link.clone();
        *state = State::Closing(link.clone());
        self.order(&link, Order::Close(vb));
    }
}
