//! The bound on what is under way between a source and the shards.
//!
//! Invariant: what was charged is given back when its [`Charge`] drops, on whatever thread that is.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded, select_biased};
use parking_lot::Mutex;

use crate::thread::Fin;

/// A bound on the bytes that are under way between a source and the shards.
#[derive(Debug, Clone)]
pub struct ByteBudget(Arc<BudgetInner>);

#[derive(Debug)]
struct BudgetInner {
    limit_bytes: usize,
    used_bytes: Mutex<usize>,
    room: (Sender<()>, Receiver<()>),
}

/// Bytes taken from a [`ByteBudget`], given back on drop.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<BudgetInner>,
    bytes: usize,
}

impl ByteBudget {
    /// A budget of `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Self(Arc::new(BudgetInner { limit_bytes, used_bytes: Mutex::new(0), room: bounded(1) }))
    }

    /// Bytes that are under way now.
    pub fn used_bytes(&self) -> usize {
        *self.0.used_bytes.lock()
    }

    /// Takes `bytes`, waiting until there is room; `None` when `fin` is given first. More bytes than the whole
    /// budget are granted when nothing else is under way.
    pub fn charge(&self, bytes: usize, fin: &Fin) -> Option<Charge> {
        loop {
            {
                let mut used = self.0.used_bytes.lock();
                if *used == 0 || *used + bytes <= self.0.limit_bytes {
                    *used += bytes;
                    break;
                }
            }
            select_biased! {
                recv(fin.receiver()) -> _ => return None,
                recv(self.0.room.1) -> _ => {}
            }
        }
        // Another waiter may fit as well, and the wake-up that came was the only one.
        let _ = self.0.room.0.try_send(());
        Some(Charge { budget: Arc::clone(&self.0), bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        *self.budget.used_bytes.lock() -= self.bytes;
        let _ = self.budget.room.0.try_send(());
    }
}
