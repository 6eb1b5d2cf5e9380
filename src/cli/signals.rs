//! An interrupt ends the verb in order; a second one ends the process.
//!
//! The thread `dm-signals` waits for signals and is ended and joined by [`Signals::end`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use dormouse::thread::{self, Cancel, Thread, Until};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Incoming};

/// How long the thread may take to end once it is told to.
const GRACE: Duration = Duration::from_secs(5);

pub(super) struct Signals {
    handle: Handle,
    thread: Thread<()>,
    /// Status for the first signal that came; zero is none.
    status: Arc<AtomicU8>,
}

impl Signals {
    /// Starts to watch: the first interrupt or termination gives `cancel`.
    pub(super) fn watch(cancel: &Cancel) -> io::Result<Self> {
        let mut incoming = Incoming::new([SIGINT, SIGTERM])?;
        let handle = incoming.handle();
        let status = Arc::new(AtomicU8::new(0));
        let (cancel, first) = (cancel.clone(), Arc::clone(&status));
        let thread = thread::spawn("dm-signals", move || {
            for signal in incoming.forever() {
                let wanted = status_of(signal);
                match first.compare_exchange(0, wanted, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => cancel.cancel(),
                    Err(earlier) => signal_hook::low_level::exit(earlier.into()),
                }
            }
        })?;
        Ok(Self { handle, thread, status })
    }

    /// Ends the thread and gives the status that a signal asks for, if one came.
    pub(super) fn end(self) -> Option<u8> {
        self.handle.close();
        // The process ends next, so a thread that hangs is left to that.
        let _ = self.thread.join(&Until::within(GRACE));
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status != 0)
    }
}

/// 128 and the signal's number, as shells have it.
fn status_of(signal: i32) -> u8 {
    u8::try_from(signal).map_or(u8::MAX, |signal| signal.saturating_add(128))
}
