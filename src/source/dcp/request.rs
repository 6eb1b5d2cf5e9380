//! What a consumer asks and tells.
//!
//! Source: `docs/dcp/documentation/commands`, `docs/BinaryProtocol.md` and `docs/sasl.md` of `couchbase/kv_engine`.

use super::frame::{Frame, FrameError, Magic};
use super::leb128::CollectionId;
use super::opcode::{Feature, Opcode};
use crate::event::{Seqno, VbId, VbUuid};
use crate::timestamp::Position;

/// The vbuckets whose last seqnos are asked for: those that are active on the node.
const STATE_ACTIVE: u32 = 1;

/// A stream to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRequest {
    /// The vbucket.
    pub vb: VbId,
    /// Bits: 0x10 asks only where the vbucket is active.
    pub flags: u32,
    /// Where it continues.
    pub from: Position,
    /// Its last seqno: [`Seqno::OPEN_END`] follows for ever.
    pub to: Seqno,
    /// The number of the newest manifest of collections that is known: a node that has an older one refuses to go on.
    pub manifest_uid: Option<u64>,
}

impl StreamRequest {
    /// Follow a vbucket from a position on, where it is active.
    pub fn follow(vb: VbId, from: Position) -> Self {
        Self { vb, flags: 0x10, from, to: Seqno::OPEN_END, manifest_uid: None }
    }
}

/// One request, or an answer to one of the producer's.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Which features to use.
    Hello {
        /// What the consumer calls itself.
        agent: &'a str,
        /// What it can.
        features: &'a [Feature],
    },
    /// Which ways to log in there are.
    SaslMechanisms,
    /// The first message of a log-in.
    SaslAuth {
        /// Its way.
        mechanism: &'a str,
        /// What that says.
        message: &'a [u8],
    },
    /// A further message of a log-in.
    SaslStep {
        /// Its way.
        mechanism: &'a str,
        /// What that says.
        message: &'a [u8],
    },
    /// Which bucket the connection is about.
    SelectBucket(&'a str),
    /// Where each vbucket is.
    ClusterConfig,
    /// The bucket's collections.
    Manifest,
    /// Makes the connection one of DCP.
    DcpOpen {
        /// Its name, which no other connection of the bucket has.
        name: &'a str,
        /// Bits: 0x1 the server produces, 0x4 with extended attributes, 0x20 with times of deletion.
        flags: u32,
    },
    /// A setting.
    Control {
        /// Its name.
        name: &'a str,
        /// Its value.
        value: &'a str,
    },
    /// A stream, of one collection or of the whole bucket.
    Stream(&'a StreamRequest, Option<CollectionId>),
    /// The end of a stream.
    CloseStream(VbId),
    /// A vbucket's branches.
    FailoverLog(VbId),
    /// The last seqno of each active vbucket, of one collection or of the whole bucket.
    VbSeqnos(Option<CollectionId>),
    /// How far a vbucket is on disk, for somebody who knows it by this branch.
    ObserveSeqno(VbId, VbUuid),
    /// So many bytes were taken.
    BufferAck(u32),
    /// The answer to a noop.
    NoopAnswer,
}

impl Request<'_> {
    /// Appends the request's frame to `out`, and gives its opcode. `opaque` comes back in its answer.
    pub fn encode(&self, opaque: u32, out: &mut Vec<u8>) -> Result<Opcode, FrameError> {
        let put = |opcode, vb: u16, extras: &[u8], key: &[u8], value: &[u8], out: &mut Vec<u8>| {
            let magic = if matches!(self, Self::NoopAnswer) { Magic::Response } else { Magic::Request };
            let (datatype, cas, framing): (u8, u64, &[u8]) = (0, 0, &[]);
            Frame { magic, opcode, datatype, vb_or_status: vb, opaque, cas, framing, extras, key, value }
                .encode(out)?;
            Ok(opcode)
        };
        match *self {
            Self::Hello { agent, features } => {
                let features: Vec<u8> = features.iter().flat_map(|feature| feature.0.to_be_bytes()).collect();
                put(Opcode::HELLO, 0, &[], agent.as_bytes(), &features, out)
            }
            Self::SaslMechanisms => put(Opcode::SASL_LIST_MECHS, 0, &[], &[], &[], out),
            Self::SaslAuth { mechanism, message } => {
                put(Opcode::SASL_AUTH, 0, &[], mechanism.as_bytes(), message, out)
            }
            Self::SaslStep { mechanism, message } => {
                put(Opcode::SASL_STEP, 0, &[], mechanism.as_bytes(), message, out)
            }
            Self::SelectBucket(name) => put(Opcode::SELECT_BUCKET, 0, &[], name.as_bytes(), &[], out),
            Self::ClusterConfig => put(Opcode::GET_CLUSTER_CONFIG, 0, &[], &[], &[], out),
            Self::Manifest => put(Opcode::GET_COLLECTIONS_MANIFEST, 0, &[], &[], &[], out),
            Self::DcpOpen { name, flags } => {
                let extras = u64::from(flags).to_be_bytes();
                put(Opcode::DCP_OPEN, 0, &extras, name.as_bytes(), &[], out)
            }
            Self::Control { name, value } => {
                put(Opcode::DCP_CONTROL, 0, &[], name.as_bytes(), value.as_bytes(), out)
            }
            Self::Stream(request, collection) => {
                let filter = stream_filter(request.manifest_uid, collection);
                let extras = stream_extras(request);
                put(Opcode::DCP_STREAM_REQ, request.vb.0, &extras, &[], filter.as_bytes(), out)
            }
            Self::CloseStream(vb) => put(Opcode::DCP_CLOSE_STREAM, vb.0, &[], &[], &[], out),
            Self::FailoverLog(vb) => put(Opcode::DCP_FAILOVER_LOG, vb.0, &[], &[], &[], out),
            Self::VbSeqnos(collection) => {
                let mut extras = STATE_ACTIVE.to_be_bytes().to_vec();
                extras.extend(collection.iter().flat_map(|id| id.0.to_be_bytes()));
                put(Opcode::GET_ALL_VB_SEQNOS, 0, &extras, &[], &[], out)
            }
            Self::ObserveSeqno(vb, branch) => {
                put(Opcode::OBSERVE_SEQNO, vb.0, &[], &[], &branch.0.to_be_bytes(), out)
            }
            Self::BufferAck(bytes) => put(Opcode::DCP_BUFFER_ACK, 0, &bytes.to_be_bytes(), &[], &[], out),
            Self::NoopAnswer => put(Opcode::DCP_NOOP, 0, &[], &[], &[], out),
        }
    }
}

/// The manifest that is known, and the collection; nothing at all for the whole bucket.
fn stream_filter(manifest_uid: Option<u64>, collection: Option<CollectionId>) -> String {
    let uid = manifest_uid.map(|uid| format!("\"uid\":\"{uid:x}\""));
    let collections = collection.map(|id| format!("\"collections\":[\"{id}\"]"));
    let parts: Vec<String> = [uid, collections].into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!("{{{}}}", parts.join(",")) }
}

/// Flags, four reserved bytes, start, end, branch, and the window that the start lies in.
fn stream_extras(request: &StreamRequest) -> Vec<u8> {
    let StreamRequest { flags, from, to, .. } = *request;
    let mut extras = Vec::with_capacity(48);
    extras.extend_from_slice(&flags.to_be_bytes());
    extras.extend_from_slice(&[0; 4]);
    for number in [from.seqno.0, to.0, from.vbuuid.0, from.snap_start.0, from.snap_end.0] {
        extras.extend_from_slice(&number.to_be_bytes());
    }
    extras
}
