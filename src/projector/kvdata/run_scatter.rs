//! The data thread of a `KvData`: splits batches by worker, without copying a payload.
//!
//! Every event is looked at once; a worker gets the shared batch and the numbers of its events in one send. The
//! [`Ledger`] of what the feed is still to be told lives outside of what can panic and is handed to `gen_server` as
//! the thread's last message, so that the begins and ends that are owed are known in every ending.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TrySendError, select_biased};
use parking_lot::Mutex;
use slog::{Logger, info, warn};

use crate::event::{DcpEvent, EventBatch, EventKind, StreamEndReason, StreamStatus, VbId};
use crate::thread::{self, Fin, FinHolder};
use crate::timestamp::{Position, TsVbuuid};

use super::super::books::StreamState;
use super::super::feed::FeedLink;
use super::super::worker::Scattered;
use super::EndReason;
use super::stats::{BatchCounts, KvStats};

/// What the feed is owed.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Streams of which it was told that they began, and not that they ended.
    begun: BTreeSet<VbId>,
    /// What it was not told yet, in its order.
    untold: VecDeque<DcpEvent>,
}

impl Ledger {
    /// Tells the feed everything that it was not told yet.
    fn tell(&mut self, link: &FeedLink, req_ts: &Mutex<TsVbuuid>) {
        while let Some(event) = self.untold.pop_front() {
            let requested = || req_ts.lock().get(event.vb).unwrap_or_default();
            // No code of a host runs from here to the post: what the ledger says, the feed was told.
            let state = match event.kind {
                EventKind::StreamReq { status: StreamStatus::Success { vbuuid } } => {
                    self.begun.insert(event.vb);
                    StreamState::Active(Position { vbuuid, ..requested() })
                }
                EventKind::StreamReq { status: StreamStatus::Rollback { to } } => {
                    StreamState::RolledBack { from: requested(), to }
                }
                EventKind::StreamReq { status } => StreamState::Refused(status),
                EventKind::StreamEnd { reason } => {
                    self.begun.remove(&event.vb);
                    StreamState::Ended(reason)
                }
                _ => continue,
            };
            link.post_stream(event.vb, state);
        }
    }

    /// Pays what is owed once nothing can come any more: what was on its way, and an end for each stream that has
    /// none. A begin that a worker may have seen is thus always told before its end.
    pub(super) fn settle(mut self, link: &FeedLink, req_ts: &Mutex<TsVbuuid>) {
        self.tell(link, req_ts);
        for vb in self.begun {
            link.post_stream(vb, StreamState::Ended(StreamEndReason::DataPathEnded));
        }
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
                    // Before its worker can know of it: what a worker was given, the feed is owed.
                    ledger.untold.push_back(*event);
                    self.log_refusal(event);
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
        self.hand_off(batch, shares)?;
        ledger.tell(&self.link, &self.req_ts);
        Ok(())
    }

    fn hand_off(&self, batch: EventBatch, shares: Vec<Vec<u32>>) -> Result<(), EndReason> {
        let batch = Arc::new(batch);
        for (worker, (sender, events)) in self.workers.iter().zip(shares).enumerate() {
            if events.is_empty() {
                continue;
            }
            let scattered = Scattered { batch: Arc::clone(&batch), events };
            // Most queues have room: only where one has none is there something to wait for, beside the fin.
            let sent = match sender.try_send(scattered) {
                Err(TrySendError::Full(scattered)) => thread::send(sender, scattered, &self.fin).is_ok(),
                sent => sent.is_ok(),
            };
            if !sent {
                return Err(if self.fin.is_given() {
                    EndReason::Closed
                } else {
                    EndReason::HandOffFailed { worker }
                });
            }
        }
        Ok(())
    }

    fn log_refusal(&self, event: &DcpEvent) {
        match event.kind {
            EventKind::StreamReq { status: StreamStatus::Rollback { to } } => {
                info!(self.logger, "a stream is to be rolled back"; "vbucket" => event.vb.0, "to" => to.0);
            }
            EventKind::StreamReq { status } if !matches!(status, StreamStatus::Success { .. }) => {
                warn!(self.logger, "a stream was refused: {status}"; "vbucket" => event.vb.0);
            }
            _ => {}
        }
    }
}
