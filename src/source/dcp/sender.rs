//! The thread `dcp-send-N`: hands batches on and acknowledges them.
//!
//! What came compressed is inflated here, once its turn has come: what waits before that takes the memory that it took
//! on the wire.
//!
//! Invariant: bytes are acknowledged once all that came in them was handed on.

use std::sync::Arc;

use crossbeam::channel::Sender;
use slog::{Logger, info, warn};

use super::error::{ConnectionError, DcpEnd};
use super::inflate::Pieces;
use super::persisted::Hold;
use super::queue::{Next, Ready};
use super::request::Request;
use super::shared::Shared;
use super::stats::add;
use crate::event::{ByteBudget, EventBatch, Generation};
use crate::thread::{self, FinHolder};

/// Where batches go, and on whose account.
#[derive(Debug, Clone)]
pub struct DcpOutput {
    /// Life of the streams that events belong to.
    pub generation: Generation,
    /// Takes the batches. When nobody is left at the other end, the connection ends.
    pub batches: Sender<EventBatch>,
    /// Batches weigh on it from when they are handed on.
    pub budget: ByteBudget,
}

/// See the module.
pub(super) struct BatchSender {
    pub(super) shared: Arc<Shared>,
    pub(super) output: DcpOutput,
    pub(super) hold: Option<Hold>,
    pub(super) window_bytes: u64,
    /// What is inflated is handed on in batches of about so many bytes.
    pub(super) batch_bytes: usize,
    /// Bytes that were handed on and not acknowledged; `None` once an acknowledgement has failed, after which there is
    /// no other one.
    pub(super) owed_bytes: Option<u64>,
    pub(super) logger: Logger,
}

impl BatchSender {
    /// The thread's body.
    pub(super) fn run(mut self, _ended: FinHolder) -> DcpEnd {
        let end = self.send_all();
        // The reader ends with it, whatever it waits for.
        self.shared.stop.cancel();
        self.shared.socket.shut_down();
        match &end {
            DcpEnd::Failed(error) => warn!(self.logger, "a connection ended: {error}"),
            DcpEnd::Stopped | DcpEnd::ReceiverGone => info!(self.logger, "a connection was closed"),
        }
        end
    }

    fn send_all(&mut self) -> DcpEnd {
        let stop = self.shared.stop.fin().clone();
        loop {
            let ready = match self.shared.queue.pop(&stop) {
                None => return DcpEnd::Stopped,
                Some(Next::End(end)) => return end,
                Some(Next::Batch(ready)) => ready,
            };
            let ack_bytes = ready.ack_bytes;
            if let Err(end) = self.hand_on(ready) {
                return end;
            }
            self.acknowledge(ack_bytes);
        }
    }

    fn hand_on(&mut self, ready: Ready) -> Result<(), DcpEnd> {
        let Ready { mut batch, has_compressed, .. } = ready;
        if let Some(hold) = &mut self.hold {
            hold.settle(&mut batch, &self.shared).map_err(|_| DcpEnd::Stopped)?;
        }
        if !has_compressed {
            return self.send(batch);
        }
        let mut pieces = Pieces::new(batch, self.batch_bytes);
        while let Some(piece) = pieces.next() {
            for (vb, seqno) in pieces.take_bad() {
                self.shared.note_bad_value(vb, seqno, &self.logger);
            }
            self.send(piece)?;
        }
        Ok(())
    }

    fn send(&self, mut batch: EventBatch) -> Result<(), DcpEnd> {
        if batch.events.is_empty() {
            return Ok(());
        }
        let stop = self.shared.stop.fin();
        let charge = self.output.budget.charge(batch.weight_bytes(), stop);
        batch.charge = Some(charge.ok_or(DcpEnd::Stopped)?);
        thread::send(&self.output.batches, batch, stop)
            .map_err(|_| if stop.is_given() { DcpEnd::Stopped } else { DcpEnd::ReceiverGone })
    }

    fn acknowledge(&mut self, bytes: u64) {
        let Some(owed_bytes) = &mut self.owed_bytes else { return };
        *owed_bytes += bytes;
        if *owed_bytes < self.window_bytes / 5 {
            return;
        }
        let owed = u32::try_from(*owed_bytes).unwrap_or(u32::MAX);
        let mut frame = Vec::new();
        let written = match Request::BufferAck(owed).encode(0, &mut frame) {
            Ok(_) => self.shared.socket.send(&frame),
            Err(error) => Err(std::io::Error::other(error)),
        };
        match written {
            Ok(()) => {
                *owed_bytes -= u64::from(owed);
                add(&self.shared.stats.acked_bytes, u64::from(owed));
            }
            Err(error) => {
                self.owed_bytes = None;
                self.shared.fail(ConnectionError::Write(error));
            }
        }
    }
}
