//! What a feed knows of the streams of one generation: a record for each vbucket.
//!
//! A record says two things apart from each other: whether the stream is active, which it is from its begin to
//! its end, and where the latest request for it stands. A request that is refused while an earlier stream goes on
//! therefore changes nothing about that stream, and the end of a stream nothing about a request that came later.
//!
//! Invariant: a stream that is active has one more begin than ends, any other as many of one as of the other.

use std::collections::BTreeMap;

use crate::event::{Seqno, StreamEndReason, StreamStatus, VbId};
use crate::timestamp::{Position, TsVbuuid};

use super::kvdata::EndReason;

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// It was asked for, from this position on.
    Requested(Position),
    /// It began, at this position.
    Active(Position),
    /// The producer wants the consumer to go back.
    RolledBack {
        /// What was asked for.
        from: Position,
        /// How far to go back.
        to: Seqno,
    },
    /// The producer refused it.
    Refused(StreamStatus),
    /// It ended.
    Ended(StreamEndReason),
}

/// How often the stream of a vbucket began and ended within one generation. Each begin gets one end: a stream
/// that begins again without one is counted as ended, and what is still active when the data path ends gets its
/// end then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamCounts {
    /// Times that it began.
    pub begins: u64,
    /// Times that it ended after it had begun.
    pub ends: u64,
    /// Ends that came while it was not active.
    pub stray_ends: u64,
}

/// The streams of a keyspace, by what they stand at: each is in one of the first five.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Books {
    /// Asked for and not answered.
    pub requested: TsVbuuid,
    /// Begun and not ended.
    pub active: TsVbuuid,
    /// To be rolled back, to these seqnos.
    pub rolled_back: TsVbuuid,
    /// Refused.
    pub refused: BTreeMap<VbId, StreamStatus>,
    /// Ended, or given up by the producer before they began.
    pub ended: BTreeMap<VbId, StreamEndReason>,
    /// Of the active ones those that were asked for once more, with where that request stands: it was not
    /// answered, refused, or is to be rolled back. The stream that is active goes on all the same.
    pub asked_again: BTreeMap<VbId, StreamState>,
    /// What was counted for each stream that ever began or ended.
    pub counts: BTreeMap<VbId, StreamCounts>,
}

struct Record {
    /// Where the stream began, while it is active.
    active: Option<Position>,
    /// Where the latest request stands.
    latest: StreamState,
    counts: StreamCounts,
}

/// The book of one generation.
#[derive(Default)]
pub(super) struct Life {
    streams: BTreeMap<VbId, Record>,
    pub(super) fin: Option<EndReason>,
}

impl Record {
    fn new(latest: StreamState) -> Self {
        Self { active: None, latest, counts: StreamCounts::default() }
    }

    fn state(&self) -> StreamState {
        self.active.map_or(self.latest, StreamState::Active)
    }

    fn note(&mut self, state: StreamState) {
        match state {
            StreamState::Active(position) => {
                if self.active.replace(position).is_some() {
                    self.counts.ends += 1;
                }
                self.counts.begins += 1;
                self.latest = state;
            }
            StreamState::Ended(_) => self.end(state),
            StreamState::Requested(_) | StreamState::RolledBack { .. } | StreamState::Refused(_) => {
                self.latest = state;
            }
        }
    }

    /// An end is about what is active; without that it can only be about a request that nobody answered.
    fn end(&mut self, ended: StreamState) {
        let concerns_latest = if self.active.take().is_some() {
            self.counts.ends += 1;
            matches!(self.latest, StreamState::Active(_))
        } else {
            self.counts.stray_ends += 1;
            matches!(self.latest, StreamState::Requested(_))
        };
        if concerns_latest {
            self.latest = ended;
        }
    }
}

impl Life {
    /// Streams were asked for, from these positions.
    pub(super) fn request(&mut self, ts: &TsVbuuid) {
        for (vb, position) in ts.iter() {
            self.note(vb, StreamState::Requested(position));
        }
    }

    /// Something became of a stream.
    pub(super) fn note(&mut self, vb: VbId, state: StreamState) {
        // A stream that nobody noted as asked for counts as asked for from the beginning.
        let unasked = || Record::new(StreamState::Requested(Position::default()));
        self.streams.entry(vb).or_insert_with(unasked).note(state);
    }

    pub(super) fn states(&self) -> impl Iterator<Item = (VbId, StreamState)> + '_ {
        self.streams.iter().map(|(vb, record)| (*vb, record.state()))
    }

    pub(super) fn books(&self) -> Books {
        let mut books = Books::default();
        for (vb, record) in &self.streams {
            let vb = *vb;
            if record.counts != StreamCounts::default() {
                books.counts.insert(vb, record.counts);
            }
            match record.state() {
                StreamState::Requested(position) => {
                    books.requested.insert(vb, position);
                }
                StreamState::Active(position) => {
                    books.active.insert(vb, position);
                    if !matches!(record.latest, StreamState::Active(_)) {
                        books.asked_again.insert(vb, record.latest);
                    }
                }
                StreamState::RolledBack { from, to } => {
                    books.rolled_back.insert(vb, Position::at(from.vbuuid, to));
                }
                StreamState::Refused(status) => {
                    books.refused.insert(vb, status);
                }
                StreamState::Ended(reason) => {
                    books.ended.insert(vb, reason);
                }
            }
        }
        books
    }
}
