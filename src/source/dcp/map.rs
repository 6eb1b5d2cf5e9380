//! Which node of a cluster has which vbucket, as a node's answer to `GET_CLUSTER_CONFIG` tells.
//!
//! Source: the configurations in the tests of Couchbase's clients. Nodes stand in `nodesExt` in the order of the
//! server list; those behind its end have no vbuckets. A node that leaves its own host out means the one that it was
//! asked by.
//!
//! A cluster behind a translation of addresses tells others beside its own, each kind as a network with a name. Those
//! of one network are used together: which one, is seen by where the node was found that the cluster is known by.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;

use serde::Deserialize;

use super::url::NodeAddress;
use crate::event::{VBUCKETS_MAX, VbId};

/// Stands for the host that was asked.
const THIS_HOST: &str = "$HOST";

/// Which of their addresses the nodes of a cluster are spoken to at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Network {
    /// Those among which a seed is; the cluster's own where it is among none.
    #[default]
    Auto,
    /// The cluster's own.
    Own,
    /// The alternate ones of this name.
    Named(String),
}

impl FromStr for Network {
    type Err = Infallible;

    /// Reads `auto`, `default`, or the name of alternate addresses, which is `external` as a rule.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "default" => Self::Own,
            name => Self::Named(name.to_owned()),
        })
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMap {
    /// Epoch and revision.
    version: (i64, i64),
    network: Network,
    nodes: Vec<NodeAddress>,
    /// For each vbucket the place in `nodes` of the one where it is active.
    active: Vec<Option<usize>>,
}

/// Why a configuration is no map.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// It cannot be read.
    #[error("the cluster's configuration cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// It tells of no vbuckets.
    #[error(
        "the cluster's configuration has no vbuckets; is it a Couchbase or ephemeral bucket, and is it ready?"
    )]
    NoVbuckets,
    /// It has more vbuckets than there can be.
    #[error("the cluster's configuration has {0} vbuckets, and {VBUCKETS_MAX} are the most")]
    TooMany(usize),
    /// A node that has vbuckets cannot be spoken to.
    #[error("the cluster's configuration has no usable address of {node}; does it offer {}?", if *.is_tls { "TLS" } else { "its KV service" })]
    Address {
        /// The node, as the configuration calls it.
        node: String,
        /// Whether an address for TLS was looked for.
        is_tls: bool,
    },
    /// A node that has vbuckets has no address in the network.
    #[error(
        "the cluster's configuration has no address of {node} in network `{network}`; name another network"
    )]
    Network {
        /// The node, as the configuration calls it.
        node: String,
        /// The network.
        network: String,
    },
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    rev: i64,
    #[serde(default, rename = "revEpoch")]
    epoch: i64,
    #[serde(rename = "vBucketServerMap")]
    servers: Option<Servers>,
    #[serde(default, rename = "nodesExt")]
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Servers {
    #[serde(rename = "serverList")]
    list: Vec<String>,
    #[serde(rename = "vBucketMap")]
    vbuckets: Vec<Vec<i32>>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    services: BTreeMap<String, u16>,
    #[serde(default, rename = "alternateAddresses")]
    alternates: BTreeMap<String, Alternate>,
}

/// A node as another network knows it.
#[derive(Deserialize)]
struct Alternate {
    hostname: String,
    /// Where they are left out they are those of the cluster's own network.
    ports: Option<BTreeMap<String, u16>>,
}

impl ClusterMap {
    /// Reads a configuration that the node at `asked` gave, with the cluster's own addresses. With `is_tls` the nodes'
    /// ports are those with TLS.
    pub fn parse(json: &str, asked: &NodeAddress, is_tls: bool) -> Result<Self, MapError> {
        Self::parse_in(&Network::Own, &[], json, asked, is_tls)
    }

    /// The same, with the addresses of a network. `seeds` are where the cluster was looked for.
    pub fn parse_in(
        network: &Network,
        seeds: &[NodeAddress],
        json: &str,
        asked: &NodeAddress,
        is_tls: bool,
    ) -> Result<Self, MapError> {
        let config: Config = serde_json::from_str(json)?;
        let network = match network {
            Network::Auto => network_of(seeds, &config.nodes, asked, is_tls),
            chosen => chosen.clone(),
        };
        let servers = config.servers.filter(|servers| !servers.vbuckets.is_empty());
        let servers = servers.ok_or(MapError::NoVbuckets)?;
        if servers.vbuckets.len() > usize::from(VBUCKETS_MAX) {
            return Err(MapError::TooMany(servers.vbuckets.len()));
        }
        let active = servers.vbuckets.iter().map(|copies| {
            let first = copies.first().and_then(|place| usize::try_from(*place).ok());
            first.filter(|place| *place < servers.list.len())
        });
        let node = |(place, server): (usize, &String)| {
            let node = config.nodes.get(place);
            let address = match &network {
                Network::Named(name) => {
                    let elsewhere = || MapError::Network { node: server.clone(), network: name.clone() };
                    let node =
                        node.filter(|node| node.alternates.contains_key(name)).ok_or_else(elsewhere)?;
                    alternate_address(node, name, is_tls)
                }
                Network::Auto | Network::Own => address(server, node, asked, is_tls),
            };
            address.ok_or_else(|| MapError::Address { node: server.clone(), is_tls })
        };
        let nodes = servers.list.iter().enumerate().map(node).collect::<Result<_, _>>()?;
        Ok(Self { version: (config.epoch, config.rev), active: active.collect(), nodes, network })
    }

    /// The network whose addresses these are.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Number of vbuckets.
    pub fn vbuckets(&self) -> u16 {
        u16::try_from(self.active.len()).unwrap_or(u16::MAX)
    }

    /// The nodes that have vbuckets.
    pub fn nodes(&self) -> &[NodeAddress] {
        &self.nodes
    }

    /// The node where a vbucket is active, if there is one.
    pub fn node_of(&self, vb: VbId) -> Option<&NodeAddress> {
        let place = self.active.get(usize::from(vb.0)).copied().flatten()?;
        self.nodes.get(place)
    }

    /// Whether this one was made later.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.version > other.version
    }
}

/// The address of a node in the server list, of which more may be known.
fn address(server: &str, node: Option<&Node>, asked: &NodeAddress, is_tls: bool) -> Option<NodeAddress> {
    let listed = NodeAddress::parse(server, asked.port)?;
    let named = node.and_then(|node| node.hostname.clone()).unwrap_or(listed.host);
    let port = match node.and_then(|node| node.services.get(service(is_tls))) {
        Some(port) => *port,
        None if is_tls => return None,
        None => listed.port,
    };
    Some(NodeAddress { host: if named == THIS_HOST { asked.host.clone() } else { named }, port })
}

fn service(is_tls: bool) -> &'static str {
    if is_tls { "kvSSL" } else { "kv" }
}

fn alternate_address(node: &Node, network: &str, is_tls: bool) -> Option<NodeAddress> {
    let alternate = node.alternates.get(network)?;
    let port = *alternate.ports.as_ref().unwrap_or(&node.services).get(service(is_tls))?;
    Some(NodeAddress { host: alternate.hostname.clone(), port })
}

/// The network that a seed is in: by host and port first, as several nodes may be told from each other by their ports
/// alone, and then by the host.
fn network_of(seeds: &[NodeAddress], nodes: &[Node], asked: &NodeAddress, is_tls: bool) -> Network {
    let own = |node: &Node| {
        let host = node.hostname.clone().unwrap_or_else(|| asked.host.clone());
        Some(NodeAddress { host, port: *node.services.get(service(is_tls))? })
    };
    let named = |node: &Node| -> Vec<(NodeAddress, String)> {
        let named = |name: &String| Some((alternate_address(node, name, is_tls)?, name.clone()));
        node.alternates.keys().filter_map(named).collect()
    };
    let is_seed = |address: &NodeAddress, with_port: bool| {
        let is_it = |seed: &NodeAddress| {
            seed.host.eq_ignore_ascii_case(&address.host) && (!with_port || seed.port == address.port)
        };
        seeds.iter().any(is_it)
    };
    for with_port in [true, false] {
        if nodes.iter().filter_map(own).any(|address| is_seed(&address, with_port)) {
            return Network::Own;
        }
        let mut all = nodes.iter().flat_map(named);
        if let Some((_, name)) = all.find(|(address, _)| is_seed(address, with_port)) {
            return Network::Named(name);
        }
    }
    Network::Own
}
