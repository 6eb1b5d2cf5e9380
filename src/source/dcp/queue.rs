//! Batches between the thread that reads a connection and the one that hands them on.
//!
//! The flow-control window bounds what a producer may send before it is acknowledged, and bytes are acknowledged
//! when their batch was handed on: so this queue holds one window, and one message more, by which producers
//! overshoot. That lets the reader go on reading while nobody takes batches, and answer what the producer asks in
//! the meantime. A producer that sends more makes the reader wait: the bound holds in any case.
//!
//! Invariant: the bound is on the bytes that count on the window, so that no producer who keeps to its window makes the
//! reader wait. What they take in memory is in proportion: values wait as they came, compressed perhaps, and there is
//! an event for each message. Small batches are put together while they wait, so that their number is bounded by their
//! bytes, and every two neighbours fill a buffer.

use std::collections::VecDeque;

use crossbeam::channel::{Receiver, Sender, bounded, select_biased};
use parking_lot::Mutex;

use super::error::DcpEnd;
use crate::event::EventBatch;
use crate::thread::Fin;

/// A batch, and what is to be acknowledged once it was handed on.
pub(super) struct Ready {
    pub(super) batch: EventBatch,
    pub(super) ack_bytes: u64,
    /// There are values in it that have yet to be inflated.
    pub(super) has_compressed: bool,
}

impl Ready {
    fn held_bytes(&self) -> usize {
        self.batch.weight_bytes()
    }
}

#[derive(Default)]
struct Inner {
    batches: VecDeque<Ready>,
    held_bytes: usize,
    ack_bytes: u64,
    end: Option<DcpEnd>,
}

pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// Two small batches are put together up to here.
    batch_bytes: usize,
    /// Of bytes that are to be acknowledged.
    limit_bytes: u64,
    filled: (Sender<()>, Receiver<()>),
    room: (Sender<()>, Receiver<()>),
}

/// What the queue gives.
pub(super) enum Next {
    Batch(Ready),
    /// Nothing comes any more.
    End(DcpEnd),
}

impl Queue {
    pub(super) fn new(batch_bytes: usize, limit_bytes: u64) -> Self {
        Self { inner: Mutex::default(), batch_bytes, limit_bytes, filled: bounded(1), room: bounded(1) }
    }

    /// Memory that waiting batches hold, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.inner.lock().held_bytes
    }

    /// Puts a batch in, after waiting until there is less than the limit. `false` when `fin` was given first.
    pub(super) fn push(&self, ready: Ready, fin: &Fin) -> bool {
        while self.inner.lock().ack_bytes >= self.limit_bytes {
            select_biased! {
                recv(fin.receiver()) -> _ => return false,
                recv(self.room.1) -> _ => {}
            }
        }
        {
            let mut inner = self.inner.lock();
            inner.ack_bytes += ready.ack_bytes;
            match inner.batches.back_mut() {
                Some(last) if last.batch.buffer.len() + ready.batch.buffer.len() <= self.batch_bytes => {
                    let before = last.held_bytes();
                    last.batch.append(&ready.batch);
                    last.ack_bytes += ready.ack_bytes;
                    last.has_compressed |= ready.has_compressed;
                    let grown = last.held_bytes() - before;
                    inner.held_bytes += grown;
                }
                _ => {
                    inner.held_bytes += ready.held_bytes();
                    inner.batches.push_back(ready);
                }
            }
        }
        let _ = self.filled.0.try_send(());
        true
    }

    /// Tells that nothing comes any more.
    pub(super) fn finish(&self, end: DcpEnd) {
        self.inner.lock().end = Some(end);
        let _ = self.filled.0.try_send(());
    }

    /// Takes the next one out, or waits for it; `None` when `fin` is given, which is looked at first.
    pub(super) fn pop(&self, fin: &Fin) -> Option<Next> {
        loop {
            if fin.is_given() {
                return None;
            }
            {
                let mut inner = self.inner.lock();
                if let Some(ready) = inner.batches.pop_front() {
                    inner.held_bytes -= ready.held_bytes();
                    inner.ack_bytes -= ready.ack_bytes;
                    drop(inner);
                    let _ = self.room.0.try_send(());
                    return Some(Next::Batch(ready));
                }
                if let Some(end) = inner.end.take() {
                    return Some(Next::End(end));
                }
            }
            select_biased! {
                recv(fin.receiver()) -> _ => return None,
                recv(self.filled.1) -> _ => {}
            }
        }
    }
}
