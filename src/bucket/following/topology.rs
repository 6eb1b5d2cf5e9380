//! Which node has which vbucket, as far as the cluster has told.
//!
//! A node that the cluster has cut off may know nothing of it: it answers whatever it is asked, and tells of no change
//! any more. So the map is asked for every few seconds, over the connections that are open, and in turn at one of the
//! nodes that there is no connection to. The newest one wins. Where something failed, it is asked for at once as well.
//!
//! Invariant: a stream on a node that the map says another one has taken the place of is closed, and asked for there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{info, warn};

use crate::event::VbId;
use crate::source::dcp::{Cluster, ClusterError, ClusterMap, Connection, NodeAddress};

use super::super::intake::Broken;
use super::backoff::{Backoff, chance};
use super::follower::Follower;
use super::jobs::Done;
use super::links::{LinkId, LinkState};

/// How often the map is asked for where nothing seems wrong.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// How long a node may take to tell it that is asked for no other reason.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// The cluster's map, and when another one is wanted.
pub(super) struct Topology {
    pub(super) map: ClusterMap,
    pub(super) is_stale: bool,
    /// For each vbucket that is followed, which of the vbuckets of its node it is.
    ranks: BTreeMap<VbId, u16>,
    /// Some nodes are being asked over connections for this alone.
    is_asking: bool,
    /// Nodes are being asked over open connections.
    is_polling: bool,
    poll_due: Instant,
    asked: usize,
    backoff: Backoff,
}

fn ranks(map: &ClusterMap, members: impl Iterator<Item = VbId>) -> BTreeMap<VbId, u16> {
    let mut counts: BTreeMap<&NodeAddress, u16> = BTreeMap::new();
    let rank = |vb| {
        let count = counts.entry(map.node_of(vb)?).or_default();
        *count += 1;
        Some((vb, *count - 1))
    };
    members.filter_map(rank).collect()
}

impl Topology {
    pub(super) fn new(map: ClusterMap, members: impl Iterator<Item = VbId>) -> Self {
        Self {
            ranks: ranks(&map, members),
            map,
            is_stale: false,
            is_asking: false,
            is_polling: false,
            poll_due: Instant::now() + REFRESH_INTERVAL,
            asked: 0,
            backoff: Backoff::default(),
        }
    }

    /// The connection that a vbucket is followed over: those of a node share its vbuckets evenly, however they are
    /// spread over the nodes.
    pub(super) fn link_of(&self, path: usize, vb: VbId, connections: u16) -> Option<LinkId> {
        let node = self.map.node_of(vb)?.clone();
        Some(LinkId { path, node, number: self.ranks.get(&vb)? % connections.max(1) })
    }

    /// Some of the nodes, others each time, and at most `count`.
    fn in_turn(&mut self, mut nodes: Vec<NodeAddress>, count: usize) -> Vec<NodeAddress> {
        let places = nodes.len().max(1);
        nodes.rotate_left(self.asked % places);
        self.asked = self.asked.wrapping_add(1);
        nodes.truncate(count);
        nodes
    }
}

impl Follower<'_> {
    /// Asks for the cluster's map where it is time to, or where the one that is there seems old.
    pub(super) fn refresh_map(&mut self, now: Instant) -> Result<(), Broken> {
        let topology = &self.topology;
        if topology.is_stale && !topology.is_asking && topology.backoff.is_over(now) {
            let mut nodes = topology.map.nodes().to_vec();
            nodes.extend(self.options.cluster.seeds.iter().cloned());
            self.topology.is_stale = false;
            self.topology.backoff.fail(now, chance());
            // Another one is first each time: one that has left the cluster may go on telling its last map.
            self.ask_map(nodes, usize::MAX, None)?;
        }
        if self.topology.poll_due <= now && !self.topology.is_polling {
            self.topology.poll_due = now + REFRESH_INTERVAL;
            self.poll_map()?;
        }
        Ok(())
    }

    /// Asks nodes for the map, each over a connection for this alone, until one has told it.
    fn ask_map(
        &mut self,
        nodes: Vec<NodeAddress>,
        count: usize,
        timeout: Option<Duration>,
    ) -> Result<(), Broken> {
        let nodes = self.topology.in_turn(nodes, count);
        self.topology.is_asking = true;
        let (cluster, logger) = (self.cluster_as_found(), self.logger.clone());
        self.start_job(move |until| {
            let limit = timeout.map_or_else(|| until.clone(), |timeout| until.at_most(timeout));
            Done::Map(cluster.ask_for_map(&nodes, &logger, &limit))
        })
    }

    /// Where following began tells the network, also once that node is gone.
    fn cluster_as_found(&self) -> Cluster {
        Cluster { network: self.topology.map.network().clone(), ..self.options.cluster.clone() }
    }

    /// Asks all nodes that there are connections to for the map, and one that there is none to.
    fn poll_map(&mut self) -> Result<(), Broken> {
        let mut connected: BTreeMap<NodeAddress, Arc<Connection>> = BTreeMap::new();
        for (id, link) in &self.links {
            if let LinkState::Up(connection) = &link.state {
                connected.entry(id.node.clone()).or_insert_with(|| Arc::clone(connection));
            }
        }
        let is_apart = |node: &&NodeAddress| !connected.contains_key(*node);
        let apart: Vec<NodeAddress> = self.topology.map.nodes().iter().filter(is_apart).cloned().collect();
        if !apart.is_empty() && !self.topology.is_asking {
            self.ask_map(apart, 1, Some(NODE_TIMEOUT))?;
        }
        if connected.is_empty() {
            return Ok(());
        }
        self.topology.is_polling = true;
        let (cluster, logger) = (self.cluster_as_found(), self.logger.clone());
        self.start_job(move |until| {
            let told = connected.iter().filter_map(|(node, connection)| {
                let limit = until.at_most(NODE_TIMEOUT);
                let told = cluster.map_over(node, connection, &limit);
                told.inspect_err(|error| warn!(logger, "a node does not tell the cluster's map: {error}"))
                    .ok()
            });
            let newer = |a: ClusterMap, b: ClusterMap| if b.is_newer_than(&a) { b } else { a };
            Done::Polled(told.reduce(newer))
        })
    }

    /// Takes up what the nodes that there are connections to have told.
    pub(super) fn take_polled(&mut self, told: Option<ClusterMap>) -> Result<(), Broken> {
        self.topology.is_polling = false;
        self.topology.is_stale |= told.is_none();
        told.map_or(Ok(()), |map| self.note_map(map))
    }

    pub(super) fn take_map(&mut self, fetched: Result<ClusterMap, ClusterError>) -> Result<(), Broken> {
        self.topology.is_asking = false;
        match fetched {
            Ok(map) => self.note_map(map),
            Err(error) => {
                self.topology.is_stale = true;
                warn!(self.logger, "the cluster's map cannot be asked for: {error}");
                Ok(())
            }
        }
    }

    fn note_map(&mut self, map: ClusterMap) -> Result<(), Broken> {
        self.bucket.check_vbuckets(&map)?;
        if !map.is_newer_than(&self.topology.map) {
            return Ok(());
        }
        info!(self.logger, "the cluster has changed"; "nodes" => map.nodes().len());
        // How far a vbucket is, its new node tells.
        let has_moved = |vb: &VbId| map.node_of(*vb) != self.topology.map.node_of(*vb);
        let moved: Vec<VbId> = self.members().filter(has_moved).collect();
        self.forget_highs(&moved);
        let streams = self.paths.iter_mut().flat_map(|path| &mut path.streams);
        streams.filter(|(vb, _)| moved.contains(vb)).for_each(|(_, stream)| stream.forget_failures());
        self.topology.ranks = ranks(&map, self.members());
        self.topology.map = map;
        self.topology.backoff.clear();
        Ok(())
    }

    /// Closes the streams on nodes that do not have their vbuckets any more.
    pub(super) fn close_strayed(&mut self) {
        let mut strayed = Vec::new();
        for (number, path) in self.paths.iter().enumerate() {
            let elsewhere = path.streams.iter().filter(|(vb, stream)| {
                let node = self.topology.map.node_of(**vb);
                stream.is_live() && stream.link().is_some_and(|link| Some(&link.node) != node)
            });
            strayed.extend(elsewhere.map(|(vb, _)| (number, *vb)));
        }
        for (path, vb) in strayed {
            info!(self.logger, "a vbucket is followed at another node"; "vbucket" => vb.0);
            self.close_stream(path, vb);
        }
    }
}
