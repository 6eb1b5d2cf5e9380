//! `couchbase://[user@]host[:port][,host[:port]…]/bucket`: which cluster, which bucket of it, and who asks.
//!
//! A password has no place in it: what stands where one would be is refused, and never repeated in an error.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// Port of the KV service, and the one with TLS.
const PORTS: (u16, u16) = (11210, 11207);

/// Where a node's KV service listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    /// Name or IP address; that of version six without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl NodeAddress {
    /// Reads `host`, `host:port`, `[address]` or `[address]:port`.
    pub(super) fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Some(default_port), |port| port.parse().ok().filter(|port| *port > 0))?;
        let is_host = !host.is_empty() && !host.contains(['@', '/', '?', ' ']);
        is_host.then(|| Self { host: host.to_owned(), port })
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterUrl {
    /// Whether it is spoken to over TLS, as by `couchbases://`.
    pub is_tls: bool,
    /// Who logs in.
    pub user: Option<String>,
    /// Nodes to begin with; at least one.
    pub seeds: Vec<NodeAddress>,
    /// The bucket.
    pub bucket: String,
}

/// Why a text is no such URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterUrlError {
    /// It begins otherwise.
    #[error("a cluster's URL begins with couchbase:// or couchbases://")]
    Scheme,
    /// It holds a password.
    #[error(
        "a password has no place in a cluster's URL; give it in a file or in the environment, and the user alone here"
    )]
    Password,
    /// A node.
    #[error("`{0}` is no node of a cluster; it has to be a host, or a host and a port")]
    Node(String),
    /// It names no bucket.
    #[error("a cluster's URL names a bucket, as in couchbase://user@host/bucket")]
    Bucket,
}

impl ClusterUrl {
    /// Whether a text is meant as such a URL.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with("couchbase://") || text.starts_with("couchbases://")
    }
}

impl FromStr for ClusterUrl {
    type Err = ClusterUrlError;

    fn from_str(text: &str) -> Result<Self, ClusterUrlError> {
        let (is_tls, rest) = match (text.strip_prefix("couchbase://"), text.strip_prefix("couchbases://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(ClusterUrlError::Scheme),
        };
        // The last one: a password may hold others.
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, _)) if user.contains(':') => return Err(ClusterUrlError::Password),
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (nodes, bucket) = rest.split_once('/').ok_or(ClusterUrlError::Bucket)?;
        if bucket.is_empty() || bucket.contains(['/', '?']) {
            return Err(ClusterUrlError::Bucket);
        }
        let port = if is_tls { PORTS.1 } else { PORTS.0 };
        let node =
            |text: &str| NodeAddress::parse(text, port).ok_or_else(|| ClusterUrlError::Node(text.to_owned()));
        let seeds = nodes.split(',').map(node).collect::<Result<_, _>>()?;
        let user = user.map(decode).filter(|user| !user.is_empty());
        Ok(Self { is_tls, user, seeds, bucket: decode(bucket) })
    }
}

impl fmt::Display for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds: Vec<String> = self.seeds.iter().map(NodeAddress::to_string).collect();
        let scheme = if self.is_tls { "couchbases" } else { "couchbase" };
        write!(f, "{scheme}://{}/{}", seeds.join(","), self.bucket)
    }
}
