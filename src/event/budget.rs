//! The bound on what is under way between a source and the shards.
//!
//! Invariant: what was charged is given back when its [`Charge`] drops, on whatever thread that is.

use std::sync::Arc;

use crossbeam::channel::select_biased;
use parking_lot::Mutex;

use crate::thread::{Fin, FinHolder, fin};

/// A bound on the bytes that are under way between a source and the shards.
#[derive(Debug, Clone)]
pub struct ByteBudget(Arc<BudgetInner>);

#[derive(Debug)]
struct BudgetInner {
    limit_bytes: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    /// Given to all who wait when some are given back: who was first may not fit while another one does.
    freed: Option<(FinHolder, Fin)>,
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
        Self(Arc::new(BudgetInner { limit_bytes, used: Mutex::default() }))
    }

    /// Bytes that are under way now.
    pub fn used_bytes(&self) -> usize {
        self.0.used.lock().bytes
    }

    /// Takes `bytes`, waiting until there is room; `None` when `stop` is given first. More bytes than the whole
    /// budget are granted when nothing else is under way.
    pub fn charge(&self, bytes: usize, stop: &Fin) -> Option<Charge> {
        loop {
            let freed = {
                let mut used = self.0.used.lock();
                if used.bytes == 0 || used.bytes + bytes <= self.0.limit_bytes {
                    used.bytes += bytes;
                    return Some(Charge { budget: Arc::clone(&self.0), bytes });
                }
                used.freed.get_or_insert_with(fin).1.clone()
            };
            select_biased! {
                recv(stop.receiver()) -> _ => return None,
                recv(freed.receiver()) -> _ => {}
            }
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let freed = {
            let mut used = self.budget.used.lock();
            used.bytes -= self.bytes;
            used.freed.take()
        };
        drop(freed);
    }
}
