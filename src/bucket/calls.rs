//! The calls on a bucket that are under way, so that its close ends them and waits for them.
//!
//! Each call works with a limit of its own, a child of the one that the host handed in. A close gives the tokens of all
//! of them, lets no other begin, and waits for their ends within its own limit.

use parking_lot::Mutex;

use crate::thread::{Cancel, Fin, FinHolder, Until, fin};

/// See the module.
#[derive(Default)]
pub(super) struct Calls {
    listed: Mutex<Listed>,
}

#[derive(Default)]
struct Listed {
    is_closed: bool,
    running: Vec<Running>,
}

#[derive(Clone)]
struct Running {
    doing: &'static str,
    cancel: Cancel,
    ended: Fin,
}

/// A call that is under way, until this is dropped.
pub(super) struct Call {
    until: Until,
    _ended: FinHolder,
}

impl Call {
    /// The limit that it has, which also a close ends.
    pub(super) fn until(&self) -> &Until {
        &self.until
    }
}

impl Calls {
    /// Begins a call. `None` where the bucket is closed.
    pub(super) fn begin(&self, doing: &'static str, until: &Until) -> Option<Call> {
        let mut listed = self.listed.lock();
        if listed.is_closed {
            return None;
        }
        let (until, (holder, ended)) = (until.child(), fin());
        listed.running.retain(|call| !call.ended.is_given());
        listed.running.push(Running { doing, cancel: until.cancel().clone(), ended });
        Some(Call { until, _ended: holder })
    }

    /// Lets no call begin from now on, cancels those that are under way and waits for their ends. Gives back what is
    /// still being done when the limit ends. Calls stay listed until they end, for whoever closes at the same time.
    pub(super) fn close(&self, until: &Until) -> Vec<&'static str> {
        let running = {
            let mut listed = self.listed.lock();
            listed.is_closed = true;
            listed.running.retain(|call| !call.ended.is_given());
            listed.running.clone()
        };
        for call in &running {
            call.cancel.cancel();
        }
        running.iter().filter(|call| call.ended.wait(until).is_err()).map(|call| call.doing).collect()
    }
}
