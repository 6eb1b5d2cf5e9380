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
use crate::source::dcp::{Connection, DcpRequestError, Status, StreamRequest};
use crate::thread::Until;
use crate::timestamp::{Position, TsVbuuid};

use super::FollowError;
use super::backoff::{Backoff, chance};
use super::follower::{Broken, Follower};
use super::links::LinkId;
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

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Live(_))
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// It is over, for a reason that may come again.
    fn fail(&mut self) {
        self.backoff.fail(Instant::now(), chance());
        self.state = State::Idle;
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
        let stream = self.paths.get_mut(path).and_then(|path| path.streams.get_mut(&vb));
        let Some(stream) = stream else { return Ok(()) };
        match event.kind {
            EventKind::StreamReq { status: StreamStatus::Success { vbuuid } } => {
                stream.branch = vbuuid;
                if let State::Asked(link) = &stream.state {
                    let link = link.clone();
                    stream.state = State::Live(link.clone());
                    self.note_began(&link);
                }
            }
            EventKind::StreamReq { status: StreamStatus::Rollback { to } } => {
                let link = stream.link().cloned();
                stream.end();
                info!(self.logger, "a vbucket is to be rolled back"; "vbucket" => vb.0, "from" => event.seqno.0, "to" => to.0);
                self.want_roll_back(shard, vb, (event.seqno, to), link);
            }
            EventKind::StreamReq { status } => {
                stream.fail();
                self.take_refusal(vb, status)?;
            }
            EventKind::StreamEnd { reason } => self.take_end(path, vb, reason)?,
            _ => {}
        }
        Ok(())
    }

    fn take_refusal(&mut self, vb: VbId, status: StreamStatus) -> Result<(), Broken> {
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
        let stream = self.paths.get_mut(path).and_then(|path| path.streams.get_mut(&vb));
        let Some(stream) = stream else { return Ok(()) };
        if let Some(build) = self.build.as_mut().filter(|_| path == 0) {
            // What it brought is applied.
            build.points.remove(&vb);
        }
        match reason {
            StreamEndReason::Closed | StreamEndReason::Disconnected => stream.end(),
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
                    && !self.is_held(self.shard_of(*vb));
                let link = if may_begin { self.link_of(path, *vb) } else { None };
                // A vbucket without a node gets one, and the map tells.
                self.topology.is_stale |= may_begin && link.is_none();
                if let Some((link, connection)) =
                    link.and_then(|id| Some((id.clone(), self.connection(&id)?)))
                {
                    askable.push((*vb, link, connection));
                }
            }
            if !askable.is_empty() {
                self.ask(path, askable, until)?;
            }
        }
        Ok(())
    }

    fn ask(
        &mut self,
        number: usize,
        askable: Vec<(VbId, LinkId, Arc<Connection>)>,
        until: &Until,
    ) -> Result<(), Broken> {
        let shards = self.bucket.shards();
        let Some(path) = self.paths.get_mut(number) else { return Ok(()) };
        let vbs: Vec<VbId> = askable.iter().map(|(vb, ..)| *vb).collect();
        let from = least_positions(shards, &path.instances, &vbs);
        self.feed.request_streams(&path.keyspace, &from, until).map_err(|error| match error {
            FeedError::Request { error: RequestError::Stopped(why), .. } => Broken::Stopped(why),
            _ => Broken::Ended,
        })?;
        for (vb, link, connection) in askable {
            let Some(stream) = path.streams.get_mut(&vb) else { continue };
            let request = StreamRequest::follow(vb, from.get(vb).unwrap_or(Position::ZERO));
            match connection.request_stream(&request) {
                // After a failed write the connection ends, and this stream with it.
                Ok(()) | Err(DcpRequestError::Write { .. }) => stream.state = State::Asked(link),
                Err(DcpRequestError::Closed(_)) => stream.fail(),
                Err(error) => return Err(FollowError::Request { bucket: self.bucket.name(), error }.into()),
            }
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
        let stream = self.paths.get_mut(path).and_then(|path| path.streams.get_mut(&vb));
        let Some(Stream { state, .. }) = stream else { return };
        let State::Live(link) = state else { return };
        let link = link.clone();
        *state = State::Closing(link.clone());
        // Where the connection has ended, the end of the stream is on its way.
        let _ = self.connection(&link).map(|connection| connection.close_stream(vb));
    }
}
