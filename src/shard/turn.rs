//! Turns: mutexes that may be held over file access, and are therefore waited for within a limit.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::thread::{Stopped, Until};

/// How long a wait for a turn goes on before it looks at its limit again.
const TURN_SLICE: Duration = Duration::from_millis(20);

/// Takes a turn, while the limit lasts.
pub(crate) fn take_turn<'m, T>(mutex: &'m Mutex<T>, until: &Until) -> Result<MutexGuard<'m, T>, Stopped> {
    if let Some(guard) = mutex.try_lock() {
        return Ok(guard);
    }
    loop {
        until.check()?;
        if let Some(guard) = mutex.try_lock_for(TURN_SLICE) {
            return Ok(guard);
        }
    }
}
