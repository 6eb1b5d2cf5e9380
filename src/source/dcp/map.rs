//! Which node of a cluster has which vbucket, as a node's answer to `GET_CLUSTER_CONFIG` tells.
//!
//! Source: the configurations in the tests of Couchbase's clients. Nodes stand in `nodesExt` in the order of the
//! server list; those behind its end have no vbuckets. A node that leaves its own host out means the one that it was
//! asked by.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::url::NodeAddress;
use crate::event::{VBUCKETS_MAX, VbId};

/// Stands for the host that was asked.
const THIS_HOST: &str = "$HOST";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMap {
    /// Epoch and revision.
    version: (i64, i64),
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
}

impl ClusterMap {
    /// Reads a configuration that the node at `asked` gave. With `is_tls` the nodes' ports are those with TLS.
    pub fn parse(json: &str, asked: &NodeAddress, is_tls: bool) -> Result<Self, MapError> {
        let config: Config = serde_json::from_str(json)?;
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
            let address = address(server, config.nodes.get(place), asked, is_tls);
            address.ok_or_else(|| MapError::Address { node: server.clone(), is_tls })
        };
        Ok(Self {
            version: (config.epoch, config.rev),
            active: active.collect(),
            nodes: servers.list.iter().enumerate().map(node).collect::<Result<_, _>>()?,
        })
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
    let service = if is_tls { "kvSSL" } else { "kv" };
    let port = match node.and_then(|node| node.services.get(service)) {
        Some(port) => *port,
        None if is_tls => return None,
        None => listed.port,
    };
    Some(NodeAddress { host: if named == THIS_HOST { asked.host.clone() } else { named }, port })
}
