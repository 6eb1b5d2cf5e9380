//! The source `dcp`: a bucket of a Couchbase cluster, over its Database Change Protocol.
//!
//! Two layers: the wire's words, [`Frame`], [`Message`], [`Body`] and [`Request`], check every length before they
//! read, borrow from what was read, and know nothing of sockets. A [`Connection`] speaks them to one node: it makes
//! batches of the streams that it is asked for, and sends them where the data path takes them.
//!
//! Which node has which vbucket stands in a [`ClusterMap`], which any node of a [`Cluster`] gives. Where streams begin,
//! and what becomes of one that ended, is decided above: a connection tells everything that happens to a stream as an
//! event, and asks for nothing by itself.
//!
//! A stream is of one collection, which is named by its id alone. The default collection is in every manifest that it
//! was not dropped from, so no node is behind on it. Where it is another one a connection asks its node for the
//! manifest of collections, and a stream request may name the newest one that is known: a node that has not heard of
//! that yet is told from one where the collection was dropped.

mod answer;
mod assembler;
mod body;
mod cluster;
mod config;
mod connection;
mod error;
mod frame;
mod handshake;
mod inflate;
mod leb128;
mod manifest;
mod map;
mod message;
mod opcode;
mod persisted;
mod queue;
mod reader;
mod request;
mod sasl;
mod sender;
mod shared;
mod socket;
mod stats;
mod streams;
mod url;

pub use answer::{AnswerError, FailoverLog, Observed, features, stream_status, vb_seqnos};
pub use body::{Body, BodyError};
pub use cluster::{Cluster, ClusterCause, ClusterError};
pub use config::{DcpConfig, Login, NAME_BYTES_MAX, Tls};
pub use connection::{Connection, DcpStillRunning, SeqnosAnswer};
pub use error::{ConnectionError, DcpEnd, DcpRequestError, OpenCause, OpenError};
pub use frame::{Decoded, FRAME_BYTES_MAX, Frame, FrameError, HEADER_BYTES, Magic};
pub use leb128::CollectionId;
pub use manifest::Manifest;
pub use map::{ClusterMap, MapError, Network};
pub use message::{
    DocumentKey, Message, MessageError, Mutation, Removal, SnapshotMarker, SystemMessage, SystemSubject,
};
pub use opcode::{Feature, Opcode, Status};
pub use request::{Request, StreamRequest};
pub use sender::DcpOutput;
pub use stats::DcpStats;
pub use url::{ClusterUrl, ClusterUrlError, NodeAddress};
