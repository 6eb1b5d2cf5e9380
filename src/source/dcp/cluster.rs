//! A cluster: where it is found, and how each of its nodes is spoken to.
//!
//! It keeps nothing of what it learns. Calls but for [`Cluster::fetch_map`] wait for names as well as for nodes, so they
//! belong to threads that nothing else waits for.

use std::net::{SocketAddr, ToSocketAddrs};

use slog::{Logger, debug};

use super::config::{DcpConfig, Login, Tls};
use super::connection::Connection;
use super::error::OpenError;
use super::handshake;
use super::map::{ClusterMap, MapError, Network};
use super::sender::DcpOutput;
use super::url::{ClusterUrl, NodeAddress};
use crate::thread::{self, Failure, FailureKind, JoinError, Panicked, Stopped, Until};

/// What stands for an address that is not known yet.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// See the module.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Nodes to begin with.
    pub seeds: Vec<NodeAddress>,
    /// Which of their addresses nodes are spoken to at.
    pub network: Network,
    /// What each connection is like. Its address, and the name that TLS proves, are those of its node.
    pub connection: DcpConfig,
}

/// Why a node could not be spoken to.
#[derive(Debug, thiserror::Error)]
#[error("node {node}: {cause}")]
pub struct ClusterError {
    /// The node.
    pub node: NodeAddress,
    /// Why.
    #[source]
    pub cause: ClusterCause,
}

/// See [`ClusterError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterCause {
    /// Its name has no address, or is none that TLS could prove.
    #[error("its name cannot be used: {0}")]
    Name(#[from] std::io::Error),
    /// The caller's limit ended.
    #[error("{0}")]
    Stopped(#[from] Stopped),
    /// No connection was opened.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// Its configuration is no map of the bucket.
    #[error("{0}")]
    Map(#[from] MapError),
    /// No thread could be started to ask it.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The thread that asks it has a defect.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// It does not tell its configuration.
    #[error("{0}")]
    Request(#[from] super::error::DcpRequestError),
}

impl Failure for ClusterError {
    fn kind(&self) -> FailureKind {
        match &self.cause {
            ClusterCause::Name(_)
            | ClusterCause::Map(_)
            | ClusterCause::Request(_)
            | ClusterCause::Thread(_) => FailureKind::Temporary,
            ClusterCause::Panicked(_) => FailureKind::Lasting,
            ClusterCause::Stopped(why) => why.kind(),
            ClusterCause::Open(error) => error.kind(),
        }
    }
}

impl Cluster {
    /// The cluster of a URL. `vbuckets` is the bucket's number of them, as far as that is known yet.
    pub fn new(url: &ClusterUrl, login: Login, tls: Option<Tls>, vbuckets: u16) -> Self {
        let connection = DcpConfig { tls, ..DcpConfig::new(NOWHERE, &url.bucket, vbuckets, login) };
        Self { seeds: url.seeds.clone(), network: Network::Auto, connection }
    }

    /// How a node is spoken to, at each of its addresses.
    fn configs(&self, node: &NodeAddress) -> Result<Vec<DcpConfig>, ClusterCause> {
        let tls = self.connection.tls.as_ref().map(|tls| tls.for_host(&node.host)).transpose()?;
        let addresses = (node.host.as_str(), node.port).to_socket_addrs()?;
        Ok(addresses
            .map(|address| DcpConfig { address, tls: tls.clone(), ..self.connection.clone() })
            .collect())
    }

    /// Does something at the first of a node's addresses where that works.
    fn at_node<T>(
        &self,
        node: &NodeAddress,
        until: &Until,
        mut work: impl FnMut(&DcpConfig) -> Result<T, ClusterCause>,
    ) -> Result<T, ClusterError> {
        let at = |cause| ClusterError { node: node.clone(), cause };
        let mut failed = ClusterCause::Name(std::io::Error::other("it has no address"));
        for config in self.configs(node).map_err(at)? {
            until.check().map_err(|why| at(why.into()))?;
            match work(&config) {
                Ok(done) => return Ok(done),
                Err(cause) => failed = cause,
            }
        }
        Err(at(failed))
    }

    /// The map of the cluster as the first of `nodes` tells it that can be spoken to. The error is that of the last
    /// one. Nothing can end a look-up of a name, so it is asked for on a thread `dm-map`, which outlasts the call where
    /// that hangs.
    pub fn fetch_map(
        &self,
        nodes: &[NodeAddress],
        logger: &Logger,
        until: &Until,
    ) -> Result<ClusterMap, ClusterError> {
        let (cluster, asked, told, limit) = (self.clone(), nodes.to_vec(), logger.clone(), until.clone());
        let asking = thread::spawn("dm-map", move || cluster.ask_for_map(&asked, &told, &limit));
        let fetched = asking.map_err(ClusterCause::Thread).and_then(|asking| match asking.join(until) {
            Ok(map) => Ok(map),
            Err(JoinError::Panicked(panicked)) => Err(panicked.into()),
            Err(JoinError::StillRunning(_)) => {
                Err(until.check().err().unwrap_or(Stopped::DeadlinePassed).into())
            }
        });
        fetched.unwrap_or_else(|cause| Err(of_first(nodes, cause)))
    }

    /// The same on this thread, which waits for names.
    pub(crate) fn ask_for_map(
        &self,
        nodes: &[NodeAddress],
        logger: &Logger,
        until: &Until,
    ) -> Result<ClusterMap, ClusterError> {
        let mut failed = None;
        for node in nodes {
            let map = self.at_node(node, until, |config| {
                let json = handshake::cluster_config(config, until)?;
                let is_tls = config.tls.is_some();
                Ok(ClusterMap::parse_in(&self.network, &self.seeds, &json, node, is_tls)?)
            });
            match map {
                Ok(map) => return Ok(map),
                Err(error) => {
                    debug!(logger, "a node does not tell the cluster's map: {error}");
                    failed = Some(error);
                }
            }
        }
        let unknown = || of_first(nodes, std::io::Error::other("no node of the cluster is known").into());
        Err(failed.unwrap_or_else(unknown))
    }

    /// The map as the node tells it that a connection is open to.
    pub fn map_over(
        &self,
        node: &NodeAddress,
        connection: &Connection,
        until: &Until,
    ) -> Result<ClusterMap, ClusterError> {
        let told = connection.cluster_config(until).map_err(ClusterCause::from).and_then(|json| {
            let is_tls = self.connection.tls.is_some();
            Ok(ClusterMap::parse_in(&self.network, &self.seeds, &json, node, is_tls)?)
        });
        told.map_err(|cause| ClusterError { node: node.clone(), cause })
    }

    /// Opens a connection to a node, as [`Connection::open`] does.
    pub fn open(
        &self,
        node: &NodeAddress,
        number: u16,
        output: &DcpOutput,
        logger: &Logger,
        until: &Until,
    ) -> Result<Connection, ClusterError> {
        self.at_node(node, until, |config| {
            Ok(Connection::open(config, number, output.clone(), logger, until)?)
        })
    }
}

fn of_first(nodes: &[NodeAddress], cause: ClusterCause) -> ClusterError {
    let nobody = || NodeAddress { host: String::new(), port: 0 };
    ClusterError { node: nodes.first().cloned().unwrap_or_else(nobody), cause }
}
