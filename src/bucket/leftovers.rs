//! Threads of a bucket that were to end and did not, because a disk, a socket or the host's code hangs.
//!
//! What ran them gave up at its limit and handed them over here. [`Bucket::close`](super::Bucket::close) tries again,
//! and names those that still run.

use parking_lot::Mutex;

use crate::thread::{Process, Until};

/// Tries to end and join some threads within a limit, and gives back the names of those that still run.
pub(super) type Leftover = Box<dyn FnMut(&Until) -> Vec<String> + Send>;

/// See the module.
pub(super) struct Leftovers {
    left: Mutex<Vec<Leftover>>,
    process: Process,
}

impl Default for Leftovers {
    fn default() -> Self {
        Self { left: Mutex::default(), process: Process::current() }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        // They run in another process, on what they have here a copy of.
        if !self.process.is_current() {
            std::mem::forget(std::mem::take(self.left.get_mut()));
        }
    }
}

impl Leftovers {
    pub(super) fn keep(&self, leftover: Leftover) {
        self.left.lock().push(leftover);
    }

    /// Tries all of them. Those that have ended are forgotten.
    pub(super) fn end(&self, until: &Until) -> Vec<String> {
        let mut running = Vec::new();
        let mut left = std::mem::take(&mut *self.left.lock());
        left.retain_mut(|leftover| {
            let threads = leftover(until);
            let is_over = threads.is_empty();
            running.extend(threads);
            !is_over
        });
        self.left.lock().extend(left);
        running
    }
}
