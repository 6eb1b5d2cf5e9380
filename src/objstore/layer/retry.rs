//! Another try where that can help.
//!
//! Only an error that says it is temporary is tried again, after a wait that is drawn at random between nothing and
//! a bound that doubles each time, so that many callers do not come back at once. All calls of a store share a
//! budget: where most of them fail, trying each again only adds to the load.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{CallInfo, Policy};
use crate::objstore::error::StoreError;
use crate::thread::{Failure, Stopped, Until};

/// How often and how soon to try again.
#[derive(Debug, Clone, Copy)]
pub struct RetryConfig {
    /// Tries of a call, the first one included.
    pub tries: u32,
    /// Bound of the first wait; it doubles with each try.
    pub first_wait: Duration,
    /// The bound that waits do not grow beyond.
    pub longest_wait: Duration,
    /// Further tries that all calls together may have. A call that succeeds gives a tenth of a try back.
    pub budget: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            tries: 10,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(20),
            budget: 500,
        }
    }
}

/// Tries calls again.
#[derive(Debug)]
pub struct Retry {
    config: RetryConfig,
    tenths_left: AtomicU32,
}

impl Retry {
    /// Tries again as `config` says.
    pub fn new(config: RetryConfig) -> Self {
        Self { config, tenths_left: AtomicU32::new(config.budget.saturating_mul(10)) }
    }

    /// Waits before another try. `false`: there is none, because the budget is used up, or because the wait would
    /// outlast the limit: then the error says more than that time is up.
    fn wait(&self, tries: u32, error: &StoreError, until: &Until) -> bool {
        let paid = self
            .tenths_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tenths| tenths.checked_sub(10));
        if paid.is_err() {
            return false;
        }
        let doubled = self.config.first_wait.saturating_mul(1_u32.checked_shl(tries - 1).unwrap_or(u32::MAX));
        let drawn = doubled.min(self.config.longest_wait).mul_f64(draw());
        let wait = drawn.max(error.retry_after().unwrap_or_default());
        let left = until.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left <= wait) {
            return false;
        }
        until.pause(wait).is_ok()
    }

    fn give_back(&self) {
        let most = self.config.budget.saturating_mul(10);
        let _ = self.tenths_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tenths| {
            (tenths < most).then_some(tenths + 1)
        });
    }
}

/// A number from 0 to 1. Without randomness the whole wait is as good.
fn draw() -> f64 {
    getrandom::u32().map_or(1.0, |drawn| f64::from(drawn) / f64::from(u32::MAX))
}

impl Policy for Retry {
    fn call<T>(
        &self,
        _: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut tries = 1;
        loop {
            match go(until) {
                Ok(done) => {
                    self.give_back();
                    return Ok(done);
                }
                Err(error)
                    if error.is_temporary()
                        && tries < self.config.tries
                        && self.wait(tries, &error, until) =>
                {
                    tries += 1;
                }
                // Who cancelled wants to hear of that; at a deadline the error says more.
                Err(error) if until.cancel().is_cancelled() => {
                    return Err(StoreError { cause: Stopped::Cancelled.into(), ..error });
                }
                Err(error) => return Err(error),
            }
        }
    }
}
