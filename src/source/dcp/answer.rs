//! What the answers to a consumer's requests hold.
//!
//! Source: `docs/dcp/documentation/commands` and `docs/BinaryProtocol.md` of `couchbase/kv_engine`.

use super::message::Fields;
use super::opcode::{Feature, Status};
use crate::event::{Seqno, StreamStatus, VbId, VbUuid};

/// How much of a server's own words is put into an error.
const SAID_BYTES_MAX: usize = 200;

/// Why an answer cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// A failover log has entries of 16 bytes, and one at least.
    #[error("a failover log of {0} bytes is none")]
    FailoverLog(usize),
    /// A rollback names a seqno, of eight bytes.
    #[error("a rollback of {0} bytes names no seqno")]
    Rollback(usize),
    /// Seqnos of vbuckets have entries of ten bytes.
    #[error("seqnos of vbuckets of {0} bytes are none")]
    VbSeqnos(usize),
    /// How far a vbucket is on disk has 27 bytes, and 43 after a failover.
    #[error("{0} bytes do not say how far a vbucket is on disk")]
    Observed(usize),
    /// A manifest of collections is JSON with its number.
    #[error("{0} bytes are no manifest of collections")]
    Manifest(usize),
    /// Features have two bytes each.
    #[error("features of {0} bytes are none")]
    Features(usize),
}

/// The branches of a vbucket's history, the newest first: each with the seqno at which it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverLog(Vec<(VbUuid, Seqno)>);

impl FailoverLog {
    /// Reads the value of an answer. There is at least one branch.
    pub fn decode(value: &[u8]) -> Result<Self, AnswerError> {
        let (entries, rest) = value.as_chunks::<16>();
        if entries.is_empty() || !rest.is_empty() {
            return Err(AnswerError::FailoverLog(value.len()));
        }
        let entry = |entry: &[u8; 16]| {
            let mut fields = Fields(entry);
            Some((VbUuid(fields.u64()?), Seqno(fields.u64()?)))
        };
        Ok(Self(entries.iter().filter_map(entry).collect()))
    }

    /// All branches, the newest first.
    pub fn entries(&self) -> &[(VbUuid, Seqno)] {
        &self.0
    }

    /// The branch that the vbucket is on.
    pub fn newest(&self) -> VbUuid {
        self.0.first().map(|(vbuuid, _)| *vbuuid).unwrap_or_default()
    }
}

/// Reads the answer to a stream request.
pub fn stream_status(status: Status, value: &[u8]) -> Result<StreamStatus, AnswerError> {
    Ok(match status {
        Status::SUCCESS => StreamStatus::Success { vbuuid: FailoverLog::decode(value)?.newest() },
        Status::ROLLBACK => {
            let to = <[u8; 8]>::try_from(value).map_err(|_| AnswerError::Rollback(value.len()))?;
            StreamStatus::Rollback { to: Seqno(u64::from_be_bytes(to)) }
        }
        Status::UNKNOWN_COLLECTION => StreamStatus::UnknownCollection,
        Status::UNKNOWN_SCOPE => StreamStatus::UnknownScope,
        Status(status) => StreamStatus::Refused { status },
    })
}

/// Reads the last seqno of each vbucket.
pub fn vb_seqnos(value: &[u8]) -> Result<Vec<(VbId, Seqno)>, AnswerError> {
    let (entries, rest) = value.as_chunks::<10>();
    if !rest.is_empty() {
        return Err(AnswerError::VbSeqnos(value.len()));
    }
    let entry = |entry: &[u8; 10]| {
        let mut fields = Fields(entry);
        Some((VbId(fields.u16()?), Seqno(fields.u64()?)))
    };
    Ok(entries.iter().filter_map(entry).collect())
}

/// How far a vbucket is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The vbucket.
    pub vb: VbId,
    /// The branch that it is on.
    pub vbuuid: VbUuid,
    /// Everything up to here is on disk.
    pub persisted: Seqno,
    /// Everything up to here is in memory.
    pub high: Seqno,
    /// Where whoever asked knows another branch: that one, and the last seqno of it that is part of this one.
    pub failover: Option<(VbUuid, Seqno)>,
}

impl Observed {
    /// Reads the value of an answer.
    pub fn decode(value: &[u8]) -> Result<Self, AnswerError> {
        let read = || {
            let (format, rest) = value.split_first()?;
            let mut fields = Fields(rest);
            let (vb, vbuuid) = (VbId(fields.u16()?), VbUuid(fields.u64()?));
            let (persisted, high) = (Seqno(fields.u64()?), Seqno(fields.u64()?));
            let failover = match format {
                0 => None,
                1 => Some((VbUuid(fields.u64()?), Seqno(fields.u64()?))),
                _ => return None,
            };
            fields.0.is_empty().then_some(Self { vb, vbuuid, persisted, high, failover })
        };
        read().ok_or(AnswerError::Observed(value.len()))
    }
}

/// Reads the features of a HELLO.
pub fn features(value: &[u8]) -> Result<Vec<Feature>, AnswerError> {
    let (entries, rest) = value.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(AnswerError::Features(value.len()));
    }
    Ok(entries.iter().map(|entry| Feature(u16::from_be_bytes(*entry))).collect())
}

/// What a server says about an error, for a message: the start of it, on one line.
pub(super) fn said(value: &[u8]) -> String {
    let start = value.get(..SAID_BYTES_MAX).unwrap_or(value);
    let text = String::from_utf8_lossy(start);
    if text.is_empty() { String::new() } else { format!(", {}", text.escape_debug()) }
}
