//! Connections to the nodes that have vbuckets: opened, watched, opened again.
//!
//! A connection that ends is opened again after a wait that grows where nothing has come of it: neither did it live for
//! a while, nor did it bring anything that was not there before. Bytes that make no sense at one place again and again
//! end following with what is wrong with them.
//!
//! What is written to a node is handed to a job, in the order of a round: a node that takes nothing holds up that job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{info, warn};

use crate::event::{Generation, Seqno, VbId};
use crate::source::dcp::{
    ClusterError, Connection, ConnectionError, DcpEnd, DcpOutput, DcpRequestError, NodeAddress, SeqnosAnswer,
    Status, StreamRequest,
};
use crate::thread::{Failure, Until};

use super::super::intake::Broken;
use super::backoff::{Backoff, chance};
use super::cause::FollowCause;
use super::follower::Follower;
use super::jobs::Done;
use super::streams::{MAIN, Stream, least_positions};

/// How often the bytes of a connection may make no sense in a row at one place before following ends.
const MALFORMED_MAX: u32 = 5;
/// A connection that lived for so long was a good one.
const STEADY: Duration = Duration::from_secs(5);
/// What the threads of a connection that has ended may take to end: more than a machine that is short of memory takes.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often nodes are asked how far their vbuckets are.
pub(super) const SEQNOS_INTERVAL: Duration = Duration::from_secs(1);

/// A connection: which path it feeds, to which node it is, and which of several it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinkId {
    pub(super) path: usize,
    pub(super) node: NodeAddress,
    pub(super) number: u16,
}

#[derive(Default)]
pub(super) enum LinkState {
    #[default]
    Down,
    Opening,
    Up(Arc<Connection>),
}

#[derive(Default)]
pub(super) struct Link {
    pub(super) state: LinkState,
    /// That of the path that it is opened for.
    generation: Generation,
    backoff: Backoff,
    /// Since when the node did nothing but refuse in a way that does not pass by itself.
    refused_since: Option<Instant>,
    /// When it was opened, and where its vbuckets were when it ended the last time.
    opened: Option<Instant>,
    reached: Option<u64>,
    /// Bytes that made no sense: where their vbucket was then, or all of them where it is not known, and how often.
    malformed: BTreeMap<Option<VbId>, (u64, u32)>,
    /// Its threads have told that they end.
    ended: Option<Instant>,
    /// When seqnos were asked for that have not come.
    asked: Option<Instant>,
    seqnos: Option<SeqnosAnswer>,
}

/// What is to be written to a node.
pub(super) enum Order {
    Request(StreamRequest),
    Close(VbId),
    Seqnos,
}

/// What became of orders.
pub(super) struct Written {
    pub(super) link: LinkId,
    /// That of the path that they were for.
    generation: Generation,
    refused: Vec<(VbId, DcpRequestError)>,
    seqnos: Option<Result<SeqnosAnswer, DcpRequestError>>,
}

impl Follower<'_> {
    /// The connection that a vbucket is followed over.
    pub(super) fn link_of(&self, path: usize, vb: VbId) -> Option<LinkId> {
        self.topology.link_of(path, vb, self.options.connections)
    }

    /// An open connection.
    pub(super) fn connection(&self, id: &LinkId) -> Option<Arc<Connection>> {
        match &self.links.get(id)?.state {
            LinkState::Up(connection) => Some(Arc::clone(connection)),
            LinkState::Down | LinkState::Opening => None,
        }
    }

    /// Opens the connections that are needed, and closes those that nothing needs any more.
    pub(super) fn open_links(&mut self, now: Instant) -> Result<(), Broken> {
        let needed = self.needed_links();
        for id in &needed {
            let link = self.links.entry(id.clone()).or_default();
            if !matches!(link.state, LinkState::Down) || !link.backoff.is_over(now) {
                continue;
            }
            link.state = LinkState::Opening;
            let Some(path) = self.paths.get(id.path) else { continue };
            link.generation = path.generation;
            let output = DcpOutput {
                generation: path.generation,
                batches: path.upstream.clone(),
                budget: path.budget.clone(),
            };
            let (cluster, logger, id) = (self.options.cluster.clone(), self.logger.clone(), id.clone());
            let number = self.opened;
            self.opened = number.wrapping_add(1);
            self.start_job(move |until| {
                let opened = cluster.open(&id.node, number, &output, &logger, until);
                Done::Opened(id, opened.map(Arc::new))
            })?;
        }
        let left: Vec<LinkId> = self.links.keys().filter(|id| !needed.contains(id)).cloned().collect();
        for id in left {
            self.leave(&id);
        }
        Ok(())
    }

    /// Whether every connection is open that is needed.
    pub(super) fn is_everything_open(&self) -> bool {
        self.needed_links().iter().all(|id| self.connection(id).is_some())
    }

    fn needed_links(&self) -> BTreeSet<LinkId> {
        let paths = self.paths.iter().enumerate();
        paths
            .flat_map(|(number, path)| path.streams.keys().filter_map(move |vb| self.link_of(number, *vb)))
            .collect()
    }

    /// Ends a connection that has no streams any more.
    pub(super) fn leave(&mut self, id: &LinkId) {
        let has_streams = self
            .paths
            .get(id.path)
            .is_some_and(|path| path.streams.values().any(|stream| stream.link() == Some(id)));
        let is_opening = self.links.get(id).is_some_and(|link| matches!(link.state, LinkState::Opening));
        if has_streams || is_opening {
            return;
        }
        if let Some(Link { state: LinkState::Up(connection), .. }) = self.links.remove(id) {
            info!(self.logger, "a connection is not needed any more"; "node" => %id.node);
            self.let_go(connection);
        }
    }

    /// Stops a connection. Its threads are joined once they have ended.
    fn let_go(&mut self, connection: Arc<Connection>) {
        connection.stop();
        self.stopping.push(connection);
    }

    pub(super) fn take_opened(
        &mut self,
        id: &LinkId,
        opened: Result<Arc<Connection>, ClusterError>,
    ) -> Result<(), Broken> {
        let now = Instant::now();
        let patience = self.options.cluster.connection.refusal_timeout;
        let link = self.links.entry(id.clone()).or_default();
        let is_current = self.paths.get(id.path).is_some_and(|path| path.generation == link.generation);
        match opened {
            // Its path has ended, and nobody takes what it brings.
            Ok(connection) if !is_current => {
                link.state = LinkState::Down;
                self.let_go(connection);
            }
            Ok(connection) => {
                info!(self.logger, "a connection is open"; "node" => %id.node, "connection" => connection.name());
                self.manifests.note(connection.manifest());
                link.state = LinkState::Up(connection);
                (link.opened, link.ended, link.refused_since) = (Some(now), None, None);
                self.seqnos_due = now;
            }
            Err(error) => {
                link.state = LinkState::Down;
                link.backoff.fail(now, chance());
                self.topology.is_stale = true;
                warn!(self.logger, "a connection cannot be opened: {error}");
                if error.is_temporary() {
                    link.refused_since = None;
                } else if now.duration_since(*link.refused_since.get_or_insert(now)) >= patience {
                    return Err(self.bucket.cannot_follow(error.into()).into());
                }
            }
        }
        Ok(())
    }

    /// Takes up connections that have ended by themselves. The ends of their streams come as notes.
    pub(super) fn reap_links(&mut self, now: Instant) -> Result<(), Broken> {
        self.stopping.retain(|connection| connection.join(&Until::within(Duration::ZERO)).is_err());
        let mut ended = Vec::new();
        for (id, link) in &mut self.links {
            let LinkState::Up(connection) = &link.state else { continue };
            connection.give_up_unanswered();
            if !connection.ended().is_given() {
                continue;
            }
            let since = *link.ended.get_or_insert(now);
            if connection.threads().is_empty() || now.duration_since(since) >= JOIN_TIMEOUT {
                ended.push((id.clone(), Arc::clone(connection)));
            }
        }
        for (id, connection) in ended {
            match connection.join(&Until::within(Duration::ZERO)) {
                Ok(Some(DcpEnd::Failed(error))) => self.take_lost(&id, error, now)?,
                // The data path ends, and says why.
                Ok(Some(DcpEnd::ReceiverGone)) => return Err(Broken::Ended),
                Ok(Some(DcpEnd::Stopped) | None) => {
                    return Err(self.bucket.cannot_follow(FollowCause::ConnectionBroke).into());
                }
                Err(still) => return Err(self.still_running(still.threads)),
            }
        }
        Ok(())
    }

    /// A connection failed: it is opened again, later where nothing has come of it, and not for ever.
    fn take_lost(&mut self, id: &LinkId, error: ConnectionError, now: Instant) -> Result<(), Broken> {
        let of_link = |vb: &VbId| self.link_of(id.path, *vb).as_ref() == Some(id);
        let reached = self.reached(id.path, &self.members().filter(of_link).collect::<Vec<_>>());
        let vb = match &error {
            ConnectionError::Message { vb, .. } => Some(*vb),
            _ => None,
        };
        let place = vb.map_or(reached, |vb| self.reached(id.path, &[vb]));
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        let has_moved = link.reached.replace(reached) != Some(reached);
        let is_steady = link.opened.is_some_and(|opened| now.duration_since(opened) >= STEADY);
        // The same bytes may come again wherever it goes on.
        if is_steady || (has_moved && !error.is_malformed()) {
            link.backoff.clear();
        }
        (link.state, link.asked, link.seqnos) = (LinkState::Down, None, None);
        link.backoff.fail(now, chance());
        self.topology.is_stale = true;
        if !error.is_malformed() {
            return Ok(());
        }
        let (at, times) = link.malformed.entry(vb).or_insert((place, 0));
        *times = if *at == place { *times + 1 } else { 1 };
        *at = place;
        if *times < MALFORMED_MAX {
            return Ok(());
        }
        let (node, times) = (id.node.clone(), *times);
        Err(self.bucket.cannot_follow(FollowCause::Malformed { node, times, error }).into())
    }

    /// How far the instances of a path are in some vbuckets, taken together.
    fn reached(&self, path: usize, vbs: &[VbId]) -> u64 {
        let Some(path) = self.paths.get(path) else { return 0 };
        let positions = least_positions(self.bucket.shards(), &path.instances, vbs);
        positions.iter().fold(0, |sum: u64, (_, position)| sum.wrapping_add(position.seqno.0))
    }

    /// Has something written to a node, in a job that begins at the end of the round.
    pub(super) fn order(&mut self, id: &LinkId, order: Order) {
        self.orders.entry(id.clone()).or_default().push(order);
    }

    /// Begins the jobs that write what was ordered.
    pub(super) fn hand_over_orders(&mut self) -> Result<(), Broken> {
        for (link, orders) in std::mem::take(&mut self.orders) {
            let Some(generation) = self.paths.get(link.path).map(|path| path.generation) else { continue };
            // Orders are for connections that are open, and none ends within a round.
            let Some(connection) = self.connection(&link) else { continue };
            self.start_job(move |_| {
                let mut written = Written { link, generation, refused: Vec::new(), seqnos: None };
                for order in orders {
                    match order {
                        Order::Request(request) => {
                            let refused = connection.request_stream(&request).err();
                            written.refused.extend(refused.map(|error| (request.vb, error)));
                        }
                        // Where the connection has ended, the end of the stream is on its way.
                        Order::Close(vb) => drop(connection.close_stream(vb)),
                        Order::Seqnos => written.seqnos = Some(connection.ask_vb_seqnos()),
                    }
                }
                Done::Written(written)
            })?;
        }
        Ok(())
    }

    pub(super) fn take_written(&mut self, written: Written) -> Result<(), Broken> {
        let Written { link: id, generation, refused, seqnos } = written;
        if let (Some(seqnos), Some(link)) = (seqnos, self.links.get_mut(&id)) {
            link.seqnos = seqnos.ok();
            if link.seqnos.is_none() {
                link.asked = None;
            }
        }
        let Some(path) = self.paths.get_mut(id.path).filter(|path| path.generation == generation) else {
            return Ok(());
        };
        for (vb, error) in refused {
            match error {
                // The connection ends, and this stream with it.
                DcpRequestError::Write { .. } => {}
                DcpRequestError::Closed(_) => {
                    let stream = path.streams.get_mut(&vb).filter(|stream| stream.is_asked(&id));
                    stream.into_iter().for_each(Stream::fail);
                }
                error => return Err(self.bucket.cannot_follow(FollowCause::Request(error)).into()),
            }
        }
        Ok(())
    }

    /// Asks the nodes how far their vbuckets are, and takes their answers up.
    pub(super) fn poll_seqnos(&mut self, now: Instant) -> Result<(), Broken> {
        let is_due = self.seqnos_due <= now;
        let (mut told, mut refused, mut asked) = (Vec::new(), None, BTreeSet::new());
        for (id, link) in self.links.iter_mut().filter(|(id, _)| id.path == MAIN) {
            // One connection to each node is enough.
            if !matches!(link.state, LinkState::Up(_))
                || asked.iter().any(|other: &LinkId| other.node == id.node)
            {
                continue;
            }
            asked.insert(id.clone());
            let Some(answer) = link.seqnos.as_ref().and_then(SeqnosAnswer::take) else { continue };
            link.seqnos = None;
            match (answer, link.asked.take()) {
                (Ok(seqnos), Some(at)) => told.push((id.node.clone(), seqnos, at)),
                (Err(error), _) => refused = refused.or(Some(error)),
                (Ok(_), None) => {}
            }
        }
        if is_due {
            self.seqnos_due = now + SEQNOS_INTERVAL;
            for id in asked {
                let link = self.links.get_mut(&id).filter(|link| link.asked.is_none());
                if let Some(link) = link {
                    link.asked = Some(now);
                    self.order(&id, Order::Seqnos);
                }
            }
        }
        if let Some(error) = refused {
            self.take_seqnos_refusal(error)?;
        }
        for (node, seqnos, at) in told {
            let of_node: BTreeMap<VbId, Seqno> = seqnos.into_iter().collect();
            self.note_highs(&node, &of_node, at);
        }
        Ok(())
    }

    /// A node that never tells how far it is leaves an end that depends on that out of reach.
    fn take_seqnos_refusal(&self, error: DcpRequestError) -> Result<(), Broken> {
        let DcpRequestError::Refused { status, .. } = &error else { return Ok(()) };
        let is_needed = self.options.once || self.options.idle_after.is_some();
        if is_needed && !matches!(*status, Status::TMPFAIL | Status::ENOMEM | Status::NOT_MY_VBUCKET) {
            return Err(self.bucket.cannot_follow(FollowCause::Seqnos(error)).into());
        }
        warn!(self.logger, "a node does not tell how far it is: {error}");
        Ok(())
    }
}
