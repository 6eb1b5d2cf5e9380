//! The data thread of a `KvData`: splits batches by worker, without copying a payload.
//!
//! Every event is looked at once; a worker gets the shared batch and the numbers of its events in one send. The
//! [`Ledger`] of streams that began and did not end yet lives outside of what can panic and is handed to
//! `gen_server` as the thread's last message, so that the ends that are owed are known in every ending.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, select_biased};
use parking_lot::Mutex;
use slog::{Logger, info, warn};

use crate::event::{DcpEvent, EventBatch, EventKind, StreamEndReason, StreamStatus, VbId};
use crate::thread::{self, Fin, FinHolder};
use crate::timestamp::{Position, TsVbuuid};

use super::super::feed::{FeedLink, StreamState};
use super::super::worker::Scattered;
use super::EndReason;
use super::stats::{BatchCounts, KvStats};

/// Streams that began and whose end was not passed on, with whether the feed knows that they began.
#[derive(Debug, Default)]
pub(super) struct Ledger(BTreeMap<VbId, bool>);

impl Ledger {
    pub(super) fn owed(self) -> impl Iterator<Item = VbId> {
        self.0.into_keys()
    }

    /// A stream is about to begin; it may replace one that is there.
    fn announce(&mut self, vb: VbId) {
        self.0.entry(vb).or_insert(false);
    }

    /// A stream began. Gives back whether the feed still waits for the end of the one before it.
    fn begin(&mut self, vb: VbId) -> bool {
        self.0.insert(vb, true).unwrap_or(false)
    }

    fn end(&mut self, vb: VbId) {
        self.0.remove(&vb);
    }
}

/// The last message of the thread.
pub(super) struct HandOver {
    pub(super) ledger: Ledger,
    pub(super) reason: EndReason,
}

pub(super) struct RunScatter {
    pub(super) upstream: Receiver<EventBatch>,
    /// Given by `gen_server` when it ends, or by a stop from the feed.
    pub(super) fin: Fin,
    pub(super) workers: Vec<Sender<Scattered>>,
    /// Worker of each vbucket.
    pub(super) routes: Vec<u16>,
    pub(super) link: FeedLink,
    pub(super) req_ts: Arc<Mutex<TsVbuuid>>,
    pub(super) stats: Arc<KvStats>,
    pub(super) logger: Logger,
}

impl RunScatter {
    /// The thread's body. `gen_server_fin` is dropped on every way out.
    pub(super) fn run(self, name: &str, hand_over: &Sender<HandOver>, gen_server_fin: FinHolder) {
        let mut ledger = Ledger::default();
        let reason =
            thread::catch(name, || self.scatter_all(&mut ledger)).unwrap_or_else(EndReason::Panicked);
        // The workers see that nothing can come any more before anybody waits for them.
        drop(self);
        // Capacity one, and this is the only message.
        let _ = hand_over.try_send(HandOver { ledger, reason });
        drop(gen_server_fin);
    }

    fn scatter_all(&self, ledger: &mut Ledger) -> EndReason {
        loop {
            let batch = select_biased! {
                recv(self.fin.receiver()) -> _ => return EndReason::Closed,
                recv(self.upstream) -> batch => match batch {
                    Ok(batch) => batch,
                    Err(_) => return EndReason::UpstreamClosed,
                },
            };
            if let Err(reason) = self.scatter(batch, ledger) {
                return reason;
            }
        }
    }

    fn scatter(&self, batch: EventBatch, ledger: &mut Ledger) -> Result<(), EndReason> {
        let mut counts = BatchCounts { events: batch.events.len() as u64, ..BatchCounts::default() };
        if batch.generation != self.link.generation() {
            counts.foreign = counts.events;
            self.stats.add(counts);
            return Ok(());
        }
        let expected = batch.events.len() / self.workers.len().max(1);
        let mut shares: Vec<Vec<u32>> =
            self.workers.iter().map(|_| Vec::with_capacity(expected + expected / 4)).collect();
        let mut control = Vec::new();
        for (index, event) in (0_u32..).zip(&batch.events) {
            let route = self.routes.get(usize::from(event.vb.0));
            let Some(share) = route.and_then(|worker| shares.get_mut(usize::from(*worker))) else {
                counts.foreign += 1;
                continue;
            };
            share.push(index);
            match event.kind {
                EventKind::Mutation { .. } => counts.mutations += 1,
                EventKind::Deletion { .. } => counts.deletions += 1,
                EventKind::Expiration { .. } => counts.expirations += 1,
                EventKind::StreamReq { .. } | EventKind::StreamEnd { .. } => {
                    control.push(*event);
                    continue;
                }
                EventKind::SystemEvent { .. } => counts.system_events += 1,
                EventKind::SeqnoAdvanced => counts.seqnos_advanced += 1,
                // Markers stand at no seqno of their own.
                EventKind::SnapshotMarker { .. } | EventKind::OsoSnapshot { .. } => continue,
            }
            self.stats.note_seqno(event.vb, event.seqno);
        }
        self.stats.add(counts);
        // A stream is in the ledger before its worker can know of it: what began is owed an end.
        for event in &control {
            if let EventKind::StreamReq { status: StreamStatus::Success { .. } } = event.kind {
                ledger.announce(event.vb);
            }
        }
        self.hand_off(batch, shares)?;
        for event in control {
            self.post(event, ledger);
        }
        Ok(())
    }

    fn hand_off(&self, batch: EventBatch, shares: Vec<Vec<u32>>) -> Result<(), EndReason> {
        let batch = Arc::new(batch);
        for (worker, (sender, events)) in self.workers.iter().zip(shares).enumerate() {
            if events.is_empty() {
                continue;
            }
            let scattered = Scattered { batch: Arc::clone(&batch), events };
            if thread::send(sender, scattered, &self.fin).is_err() {
                return Err(if self.fin.is_given() {
                    EndReason::Closed
                } else {
                    EndReason::HandOffFailed { worker }
                });
            }
        }
        Ok(())
    }

    /// Tells the feed what became of a stream, after its worker has the event.
    fn post(&self, event: DcpEvent, ledger: &mut Ledger) {
        let requested = || self.req_ts.lock().get(event.vb).unwrap_or_default();
        let state = match event.kind {
            EventKind::StreamReq { status: StreamStatus::Success { vbuuid } } => {
                if ledger.begin(event.vb) {
                    self.link.post_stream(event.vb, StreamState::Ended(StreamEndReason::Superseded));
                }
                StreamState::Active(Position { vbuuid, ..requested() })
            }
            EventKind::StreamReq { status: StreamStatus::Rollback { to } } => {
                info!(self.logger, "a stream is to be rolled back"; "vbucket" => event.vb.0, "to" => to.0);
                StreamState::RolledBack { from: requested(), to }
            }
            EventKind::StreamReq { status } => {
                warn!(self.logger, "a stream was refused: {status}"; "vbucket" => event.vb.0);
                StreamState::Refused(status)
            }
            EventKind::StreamEnd { reason } => {
                ledger.end(event.vb);
                StreamState::Ended(reason)
            }
            _ => return,
        };
        self.link.post_stream(event.vb, state);
    }
}
