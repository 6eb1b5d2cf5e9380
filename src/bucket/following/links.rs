//! Connections to the nodes that have vbuckets: opened, watched, opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{Logger, info, warn};

use crate::event::{Generation, VbId};
use crate::source::dcp::{
    Cluster, ClusterError, ClusterMap, Connection, DcpEnd, DcpOutput, DcpRequestError, NodeAddress,
    SeqnosAnswer, Status,
};
use crate::thread::Until;

use super::FollowError;
use super::backoff::{Backoff, chance};
use super::follower::{Broken, Follower};
use super::jobs::Done;

/// How often a node may refuse in a row, in a way that does not pass by itself, before following ends: nodes that
/// join or leave a cluster do so for a while.
const REFUSALS_MAX: u32 = 5;
/// What the threads of a connection that has ended may take to end.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
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
    refusals: u32,
    /// Seqnos that were asked for and have not come.
    asked_seqnos: Option<SeqnosAnswer>,
}

/// The cluster's map, and when another one is wanted.
pub(super) struct Topology {
    pub(super) map: ClusterMap,
    pub(super) is_stale: bool,
    is_asking: bool,
    asked: usize,
    backoff: Backoff,
}

impl Topology {
    pub(super) fn new(map: ClusterMap) -> Self {
        Self { map, is_stale: false, is_asking: false, asked: 0, backoff: Backoff::default() }
    }
}

fn close(connection: &Connection, logger: &Logger) {
    if let Err(still) = connection.close(&Until::within(JOIN_TIMEOUT)) {
        warn!(logger, "a connection does not close: {still}");
    }
}

impl Follower<'_> {
    /// The connection that a vbucket is followed over.
    pub(super) fn link_of(&self, path: usize, vb: VbId) -> Option<LinkId> {
        let node = self.topology.map.node_of(vb)?.clone();
        Some(LinkId { path, node, number: vb.0 % self.options.connections.max(1) })
    }

    /// An open connection.
    pub(super) fn connection(&self, id: &LinkId) -> Option<Arc<Connection>> {
        match &self.links.get(id)?.state {
            LinkState::Up(connection) => Some(Arc::clone(connection)),
            LinkState::Down | LinkState::Opening => None,
        }
    }

    /// Asks for the cluster's map where the one that is there seems old. Another node is asked each time: one that
    /// has left the cluster may go on telling its last one.
    pub(super) fn refresh_map(&mut self, now: Instant) -> Result<(), Broken> {
        let topology = &mut self.topology;
        if !topology.is_stale || topology.is_asking || !topology.backoff.is_over(now) {
            return Ok(());
        }
        (topology.is_stale, topology.is_asking) = (false, true);
        topology.backoff.fail(now, chance());
        let mut nodes = topology.map.nodes().to_vec();
        nodes.extend(self.options.cluster.seeds.iter().cloned());
        let places = nodes.len().max(1);
        nodes.rotate_left(topology.asked % places);
        topology.asked = topology.asked.wrapping_add(1);
        // Where following began tells the network, also once that node is gone.
        let cluster = Cluster { network: topology.map.network().clone(), ..self.options.cluster.clone() };
        let logger = self.logger.clone();
        self.start_job(move |until| Done::Map(cluster.fetch_map(&nodes, &logger, until)))
    }

    pub(super) fn take_map(&mut self, fetched: Result<ClusterMap, ClusterError>) -> Result<(), Broken> {
        self.topology.is_asking = false;
        match fetched {
            Ok(map) => {
                self.check_vbuckets(&map)?;
                if map.is_newer_than(&self.topology.map) {
                    info!(self.logger, "the cluster has changed"; "nodes" => map.nodes().len());
                    self.topology.map = map;
                    self.topology.backoff.clear();
                }
            }
            Err(error) => {
                self.topology.is_stale = true;
                warn!(self.logger, "the cluster's map cannot be asked for: {error}");
            }
        }
        Ok(())
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
                Done::Opened(id, opened)
            })?;
        }
        let left: Vec<LinkId> = self.links.keys().filter(|id| !needed.contains(id)).cloned().collect();
        for id in left {
            self.leave(&id);
        }
        Ok(())
    }

    fn needed_links(&self) -> BTreeSet<LinkId> {
        let paths = self.paths.iter().enumerate();
        paths
            .flat_map(|(number, path)| path.streams.keys().filter_map(move |vb| self.link_of(number, *vb)))
            .collect()
    }

    /// Closes a connection that has no streams any more.
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
            close(&connection, &self.logger);
        }
    }

    pub(super) fn take_opened(
        &mut self,
        id: &LinkId,
        opened: Result<Connection, ClusterError>,
    ) -> Result<(), Broken> {
        let link = self.links.entry(id.clone()).or_default();
        let is_current = self.paths.get(id.path).is_some_and(|path| path.generation == link.generation);
        match opened {
            // Its path has ended, and nobody takes what it brings.
            Ok(connection) if !is_current => {
                link.state = LinkState::Down;
                close(&connection, &self.logger);
            }
            Ok(connection) => {
                info!(self.logger, "a connection is open"; "node" => %id.node, "connection" => connection.name());
                link.state = LinkState::Up(Arc::new(connection));
                link.refusals = 0;
                self.seqnos_due = Instant::now();
            }
            Err(error) => {
                link.state = LinkState::Down;
                link.backoff.fail(Instant::now(), chance());
                self.topology.is_stale = true;
                warn!(self.logger, "a connection cannot be opened: {error}");
                if !error.is_temporary() {
                    link.refusals += 1;
                    if link.refusals >= REFUSALS_MAX {
                        let bucket = self.bucket.name();
                        return Err(FollowError::Cluster { bucket, error }.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes up connections that have ended by themselves. The ends of their streams come as notes.
    pub(super) fn reap_links(&mut self, now: Instant) -> Result<(), Broken> {
        for link in self.links.values_mut() {
            let LinkState::Up(connection) = &link.state else { continue };
            if !connection.ended().is_given() {
                continue;
            }
            match connection.join(&Until::within(JOIN_TIMEOUT)) {
                Ok(Some(DcpEnd::Failed(_))) => {}
                // The data path ends, and says why.
                Ok(Some(DcpEnd::ReceiverGone)) => return Err(Broken::Ended),
                Ok(Some(DcpEnd::Stopped) | None) => {
                    let bucket = self.bucket.name();
                    return Err(FollowError::ConnectionBroke { bucket }.into());
                }
                Err(still) => {
                    let bucket = self.bucket.name();
                    return Err(FollowError::StillRunning { bucket, threads: still.threads }.into());
                }
            }
            link.state = LinkState::Down;
            link.asked_seqnos = None;
            link.backoff.fail(now, chance());
            self.topology.is_stale = true;
        }
        Ok(())
    }

    /// A stream of the connection began: the next time that it is lost it is opened again at once.
    pub(super) fn note_began(&mut self, id: &LinkId) {
        if let Some(link) = self.links.get_mut(id) {
            link.backoff.clear();
        }
    }

    /// Asks the nodes how far their vbuckets are, and takes their answers up.
    pub(super) fn poll_seqnos(&mut self, now: Instant) -> Result<(), Broken> {
        let is_due = self.seqnos_due <= now;
        let (mut told, mut refused, mut nodes) = (Vec::new(), None, BTreeSet::new());
        for (id, link) in self.links.iter_mut().filter(|(id, _)| id.path == 0) {
            let LinkState::Up(connection) = &link.state else { continue };
            // One connection to each node is enough.
            if !nodes.insert(&id.node) {
                continue;
            }
            match link.asked_seqnos.as_ref().map(SeqnosAnswer::take) {
                Some(None) => continue,
                Some(Some(Ok(seqnos))) => told.push((id.node.clone(), seqnos)),
                Some(Some(Err(error))) => refused = refused.or(Some(error)),
                None => {}
            }
            link.asked_seqnos = None;
            if is_due {
                link.asked_seqnos = connection.ask_vb_seqnos().ok();
            }
        }
        if is_due {
            self.seqnos_due = now + SEQNOS_INTERVAL;
        }
        if let Some(error) = refused {
            self.take_seqnos_refusal(error)?;
        }
        for (node, seqnos) in told {
            let of_node: BTreeMap<VbId, _> = seqnos.into_iter().collect();
            self.note_highs(&node, &of_node);
        }
        Ok(())
    }

    /// A node that never tells how far it is leaves an end that depends on that out of reach.
    fn take_seqnos_refusal(&self, error: DcpRequestError) -> Result<(), Broken> {
        let DcpRequestError::Refused { status, .. } = &error else { return Ok(()) };
        let is_needed = self.options.once || self.options.idle_after.is_some();
        if is_needed && !matches!(*status, Status::TMPFAIL | Status::ENOMEM | Status::NOT_MY_VBUCKET) {
            return Err(FollowError::Seqnos { bucket: self.bucket.name(), error }.into());
        }
        warn!(self.logger, "a node does not tell how far it is: {error}");
        Ok(())
    }
}
