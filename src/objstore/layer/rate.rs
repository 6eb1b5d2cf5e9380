//! A highest rate, so that archiving leaves room for others.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{CallInfo, Policy};
use crate::objstore::error::StoreError;
use crate::thread::Until;

/// Lets at most so many bytes a second pass, both ways and of all threads together. A body goes out in one piece
/// when its turn has come: it is the average that is kept.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: NonZeroU64,
    /// When the bytes that were let pass so far are paid for.
    paid_at: Mutex<Option<Instant>>,
}

impl Rate {
    /// At most `bytes_per_second`.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, paid_at: Mutex::new(None) }
    }

    /// Waits for the turn of `bytes`, or for the end of the limit, which the caller sees too.
    fn pass(&self, bytes: u64, until: &Until) {
        if bytes == 0 {
            return;
        }
        let price = Duration::from_secs_f64(float(bytes) / float(self.bytes_per_second.get()));
        let wait = {
            let mut paid_at = self.paid_at.lock();
            let now = Instant::now();
            let turn = paid_at.unwrap_or(now).max(now);
            *paid_at = turn.checked_add(price).or(Some(turn));
            turn.duration_since(now)
        };
        if !wait.is_zero() {
            let _ = until.pause(wait);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a wait need not be exact")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

impl Policy for Rate {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.pass(call.sent_bytes, until);
        go(until)
    }

    fn came(&self, bytes: usize, until: &Until) {
        self.pass(bytes as u64, until);
    }

    fn went(&self, bytes: usize, until: &Until) {
        self.pass(bytes as u64, until);
    }
}
