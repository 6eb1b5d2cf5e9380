//! Holds changes back until the node that tells them has them on its disk.
//!
//! What a node has only in memory is lost when it fails. A consumer that waits for the disk never has what is lost so,
//! and need not be rolled back for it. What was read from the disk in the first place is not waited for. Batches wait
//! in the order of their connection and are acknowledged after that, so the flow-control window bounds what waits, and
//! a vbucket whose node does not get on with its disk holds up those that it shares the connection with.
//!
//! Nodes are asked with `OBSERVE_SEQNO`, over the connection that the changes come on, only while something waits, for
//! a bounded number of vbuckets at a time, and less and less often. Where the node says that the branch of a stream has
//! ended, the changes that wait are dropped, and the stream is closed: whoever asked for it asks again from what came
//! through.
//!
//! Invariant: no change passes that was neither read from disk nor told to be there, on the branch of its stream.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slog::{Logger, warn};

use super::answer::Observed;
use super::error::{ConnectionError, DcpRequestError};
use super::opcode::{Opcode, Status};
use super::request::Request;
use super::shared::Shared;
use super::stats::add;
use crate::event::{DcpEvent, EventBatch, EventKind, OsoEdge, Seqno, StreamStatus, VbId, VbUuid};
use crate::thread::{self, RecvError, Stopped, Until};

/// The first wait between two questions, and the longest: each is twice as long as the one before.
const WAITS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// Vbuckets that are asked for at once.
const ASKED_MAX: usize = 128;

/// What is known of a vbucket's stream.
#[derive(Debug, Clone, Copy)]
struct Kept {
    branch: VbUuid,
    /// Everything up to here is on disk, or was before the stream began.
    persisted: Seqno,
    /// Within an out-of-order snapshot, which is read from disk.
    is_unordered: bool,
    /// Nothing more of it is going to be on disk.
    is_lost: bool,
}

/// For each of some vbuckets the seqno that has to be on disk.
type Wanted = BTreeMap<VbId, Seqno>;

/// See the module.
pub(super) struct Hold {
    vbs: BTreeMap<VbId, Kept>,
    answer_timeout: Duration,
    logger: Logger,
}

/// The limit of the connection has ended.
pub(super) struct Halted;

fn is_change(event: &DcpEvent) -> bool {
    match event.kind {
        EventKind::Mutation { .. }
        | EventKind::Deletion { .. }
        | EventKind::Expiration { .. }
        | EventKind::SystemEvent { .. }
        | EventKind::SeqnoAdvanced => true,
        EventKind::StreamReq { .. }
        | EventKind::SnapshotMarker { .. }
        | EventKind::OsoSnapshot { .. }
        | EventKind::StreamEnd { .. } => false,
    }
}

impl Hold {
    /// An answer may take `answer_timeout`.
    pub(super) fn new(answer_timeout: Duration, logger: &Logger) -> Self {
        Self { vbs: BTreeMap::new(), answer_timeout, logger: logger.clone() }
    }

    /// Waits until what a batch holds is on disk, and takes out what is lost.
    pub(super) fn settle(&mut self, batch: &mut EventBatch, shared: &Shared) -> Result<(), Halted> {
        let mut from = 0;
        while from < batch.events.len() {
            let (wanted, end) = self.scan(&batch.events, from);
            self.wait(wanted, shared)?;
            let lost = batch.events.extract_if(from..end, |event| self.has_lost(event)).count();
            add(&shared.stats.lost, lost as u64);
            from = end - lost;
        }
        Ok(())
    }

    /// What has to be on disk for the events from one on, up to where a vbucket that waits begins anew.
    fn scan(&mut self, events: &[DcpEvent], from: usize) -> (Wanted, usize) {
        let mut wanted = Wanted::new();
        for (index, event) in events.iter().enumerate().skip(from) {
            if let EventKind::StreamReq { status: StreamStatus::Success { vbuuid } } = event.kind {
                if wanted.contains_key(&event.vb) {
                    return (wanted, index);
                }
                let (persisted, is_unordered, is_lost) = (event.seqno, false, false);
                self.vbs.insert(event.vb, Kept { branch: vbuuid, persisted, is_unordered, is_lost });
                continue;
            }
            let Some(kept) = self.vbs.get_mut(&event.vb).filter(|kept| !kept.is_lost) else { continue };
            match event.kind {
                EventKind::SnapshotMarker { end, each_once: true, .. } => {
                    kept.persisted = kept.persisted.max(end);
                }
                EventKind::OsoSnapshot { edge } => kept.is_unordered = edge == OsoEdge::Start,
                _ if !is_change(event) => {}
                _ if kept.is_unordered => kept.persisted = kept.persisted.max(event.seqno),
                _ if event.seqno > kept.persisted => {
                    wanted.insert(event.vb, event.seqno);
                }
                _ => {}
            }
        }
        (wanted, events.len())
    }

    /// Also what of it is on disk: a position in the middle of a snapshot whose end is lost is none to go on from.
    fn has_lost(&self, event: &DcpEvent) -> bool {
        is_change(event) && self.vbs.get(&event.vb).is_some_and(|kept| kept.is_lost)
    }

    fn wait(&mut self, mut wanted: Wanted, shared: &Shared) -> Result<(), Halted> {
        let mut pause = WAITS.0;
        loop {
            wanted.retain(|vb, seqno| self.is_behind(*vb, *seqno));
            if wanted.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.ask(&wanted, shared) {
                match error {
                    DcpRequestError::Stopped { why: Stopped::Cancelled, .. } => return Err(Halted),
                    // The connection has ended; why, it says by itself.
                    DcpRequestError::Closed(_) => {}
                    error => shared.fail(ConnectionError::Persisted(error)),
                }
                for vb in wanted.keys() {
                    self.lose(*vb);
                }
                return Ok(());
            }
            // Those that were not asked for yet have nothing to wait for.
            if wanted.iter().take(ASKED_MAX).any(|(vb, seqno)| self.is_behind(*vb, *seqno)) {
                if shared.stop.fin().wait(&Until::within(pause)).is_ok() {
                    return Err(Halted);
                }
                pause = (pause * 2).min(WAITS.1);
            }
        }
    }

    /// Whether a change of a vbucket is not on disk yet and may come there.
    fn is_behind(&self, vb: VbId, seqno: Seqno) -> bool {
        self.vbs.get(&vb).is_some_and(|kept| !kept.is_lost && kept.persisted < seqno)
    }

    fn lose(&mut self, vb: VbId) {
        if let Some(kept) = self.vbs.get_mut(&vb) {
            kept.is_lost = true;
        }
    }

    /// Asks for some of the vbuckets, and takes up what their node says.
    fn ask(&mut self, wanted: &Wanted, shared: &Shared) -> Result<(), DcpRequestError> {
        let opcode = Opcode::OBSERVE_SEQNO;
        let (mut bytes, mut asked) = (Vec::new(), Vec::new());
        for (vb, seqno) in wanted.iter().take(ASKED_MAX) {
            let Some(kept) = self.vbs.get(vb) else { continue };
            let (opaque, answer) = shared.book.call(opcode)?;
            Request::ObserveSeqno(*vb, kept.branch).encode(opaque, &mut bytes)?;
            asked.push((*vb, *seqno, answer));
        }
        add(&shared.stats.observed, asked.len() as u64);
        shared.socket.send(&bytes).map_err(|source| DcpRequestError::Write { opcode, source })?;
        let until = Until::new(Instant::now().checked_add(self.answer_timeout), shared.stop.clone());
        for (vb, seqno, answer) in asked {
            let answer = thread::recv(&answer, &until).map_err(|error| match error {
                RecvError::Closed => DcpRequestError::Closed(opcode),
                RecvError::Stopped(why) => DcpRequestError::Stopped { opcode, why },
            })?;
            let is_there = match answer.value(opcode) {
                Ok(value) => {
                    let observed = Observed::decode(&value)
                        .map_err(|error| DcpRequestError::Answer { opcode, error })?;
                    self.note(vb, seqno, &observed)
                }
                Err(DcpRequestError::Refused { status: Status::TMPFAIL | Status::ENOMEM, .. }) => true,
                Err(DcpRequestError::Refused {
                    status: Status::NOT_MY_VBUCKET | Status::KEY_ENOENT, ..
                }) => false,
                Err(error) => return Err(error),
            };
            if !is_there {
                warn!(self.logger, "changes were lost before they were on disk; their stream is closed";
                    "vbucket" => vb.0, "seqno" => seqno.0);
                self.lose(vb);
                shared.close_stream(vb)?;
            }
        }
        Ok(())
    }

    /// Takes up how far a vbucket is on disk; whether what is wanted is there, or may still come there.
    fn note(&mut self, vb: VbId, wanted: Seqno, observed: &Observed) -> bool {
        let Some(kept) = self.vbs.get_mut(&vb) else { return false };
        let (is_branch, shared_up_to) = match observed.failover {
            // The branch goes on in another one, up to here.
            Some((branch, last)) => (branch == kept.branch, last),
            None => (observed.vbuuid == kept.branch, Seqno::OPEN_END),
        };
        if is_branch {
            kept.persisted = kept.persisted.max(observed.persisted.min(shared_up_to));
        }
        is_branch && wanted <= shared_up_to
    }
}
