//! Waits between tries: each twice as long as the one before, up to a bound, and shortened by chance, so that those
//! who failed together do not try together.

use std::time::{Duration, Instant};

use crate::thread::{Stopped, Until};

const FIRST: Duration = Duration::from_millis(60);
const LONGEST: Duration = Duration::from_secs(10);

/// How often something failed in a row, and when it may be tried again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    /// Counts a failure; one that comes long after the one before it is a first one. `chance` shortens the wait by up
    /// to a half.
    pub(super) fn fail(&mut self, now: Instant, chance: u32) {
        if self.not_before.is_some_and(|at| now.saturating_duration_since(at) >= LONGEST) {
            self.failures = 0;
        }
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        let shortened = wait.mul_f64(1.0 - f64::from(chance) / f64::from(u32::MAX) / 2.0);
        self.failures += 1;
        self.not_before = Some(now + shortened);
    }

    /// Whether it may be tried.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// Waits until it may be tried.
    pub(super) fn wait(&self, until: &Until) -> Result<(), Stopped> {
        until.pause(self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now())))
    }

    /// It worked.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A number by chance. Where the system has none, tries are not spread.
pub(super) fn chance() -> u32 {
    getrandom::u32().unwrap_or(0)
}
