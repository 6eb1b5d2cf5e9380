//! What may be wrong with a cluster that is followed, or between it and here.

use crate::event::{StreamEndReason, StreamStatus, VbId};
use crate::shard::{ReadError, RollBackError};
use crate::source::dcp::{ClusterError, ConnectionError, DcpRequestError, NodeAddress, Status};
use crate::thread::{Failure, FailureKind};

/// Why a bucket of a cluster is not followed, or not any further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowCause {
    /// There would be nothing to keep positions with.
    #[error("it has no index; create one first")]
    NoIndex,
    /// The numbers of vbuckets differ.
    #[error("the cluster's has {there} vbuckets and this one was made with {here}; take a new bucket")]
    Vbuckets {
        /// The number here.
        here: u16,
        /// The number there.
        there: u16,
    },
    /// A node cannot be spoken to.
    #[error("{0}")]
    Node(#[from] ClusterError),
    /// A stream was refused for good.
    #[error("vbucket {vb}: {status}; what was applied is kept; {}", way_out(*.status))]
    Refused {
        /// The vbucket.
        vb: VbId,
        /// What the producer answered.
        status: StreamStatus,
    },
    /// A node stays behind on the bucket's collections.
    #[error(
        "the node of vbucket {vb} has not heard of the bucket's newest collections for {seconds} seconds; what was \
         applied is kept; see that it is in touch with its cluster, and follow again"
    )]
    ManifestBehind {
        /// The vbucket.
        vb: VbId,
        /// How long it was asked again and again.
        seconds: u64,
    },
    /// A stream ended for good.
    #[error(
        "the stream of vbucket {vb} ended: {reason}; what was applied is kept; see that the user may read the bucket and \
         that what is followed there exists, and follow again"
    )]
    StreamLost {
        /// The vbucket.
        vb: VbId,
        /// Why.
        reason: StreamEndReason,
    },
    /// A stream could not be asked for.
    #[error("{0}")]
    Request(DcpRequestError),
    /// A node does not tell how far its vbuckets are.
    #[error("nobody can tell how far it is behind: {0}")]
    Seqnos(DcpRequestError),
    /// A node sends what makes no sense, each time that it is asked.
    #[error(
        "what node {node} sends makes no sense, {times} times at the same place: {error}; what was applied is kept; see \
         that nothing between here and the node changes what is sent, and report it where that is so"
    )]
    Malformed {
        /// The node.
        node: NodeAddress,
        /// How often.
        times: u32,
        /// What is wrong with it.
        error: ConnectionError,
    },
    /// A connection ended without a reason.
    #[error("a connection's thread failed; follow again")]
    ConnectionBroke,
    /// A shard could not be rolled back.
    #[error("{0}")]
    RollBack(RollBackError),
    /// A shard's recovery points, to roll it back to, could not be read.
    #[error("{0}")]
    Points(ReadError),
}

impl Failure for FollowCause {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Node(error) => error.kind(),
            Self::Request(error) | Self::Seqnos(error) => error.kind(),
            Self::ConnectionBroke | Self::ManifestBehind { .. } => FailureKind::Temporary,
            Self::RollBack(error) => error.kind(),
            Self::Points(error) => error.kind(),
            Self::NoIndex
            | Self::Vbuckets { .. }
            | Self::Refused { .. }
            | Self::StreamLost { .. }
            | Self::Malformed { .. } => FailureKind::Lasting,
        }
    }
}

/// What may be done about a stream that is refused for good.
fn way_out(status: StreamStatus) -> &'static str {
    match status {
        StreamStatus::UnknownCollection | StreamStatus::UnknownScope => {
            "follow what exists there, into a new bucket"
        }
        StreamStatus::Refused { status }
            if [Status::AUTH_ERROR, Status::EACCESS].contains(&Status(status)) =>
        {
            "let the user read the bucket's changes, and follow again"
        }
        _ => "follow again, and where that comes again into a new bucket; report it, with the node's log",
    }
}
