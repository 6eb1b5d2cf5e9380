//! A least rate: a peer that dribbles is as bad as one that is silent, and shows in no time-out of silence.

use std::time::Duration;

use super::{CallInfo, Policy};
use crate::objstore::error::{Operation, StoreCause, StoreError};
use crate::thread::{Stopped, Until};

/// Ends a call whose bytes come or go too slowly, and any other whose answer does not end in time.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// The least that is put up with, over a whole call.
    pub bytes_per_second: u64,
    /// Time that each call has besides, for the way to the server and its work. Calls that carry no content have
    /// [`GRACES_WITHOUT_CONTENT`] times as long, as putting an object together or listing one may be much work. A
    /// draft, whose length nobody knows before its end, has no limit.
    pub grace: Duration,
    /// The longest that any call may take, whatever it carries, for who wants one.
    pub call_limit: Option<Duration>,
}

/// How many times [`Floor::grace`] a call without content may take.
pub const GRACES_WITHOUT_CONTENT: u32 = 10;

impl Floor {
    /// How long the call may take.
    fn limit(&self, call: CallInfo<'_>) -> Option<Duration> {
        let bytes = call.sent_bytes.max(call.wanted_bytes);
        let limit = match call.operation {
            Operation::Put if bytes == 0 => None,
            _ if bytes == 0 => Some(self.grace.saturating_mul(GRACES_WITHOUT_CONTENT)),
            _ => {
                let carrying = Duration::from_secs(bytes.div_ceil(self.bytes_per_second.max(1)));
                Some(self.grace.saturating_add(carrying))
            }
        };
        limit.into_iter().chain(self.call_limit).min()
    }
}

impl Policy for Floor {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Some(limit) = self.limit(call) else { return go(until) };
        go(&until.at_most(limit)).map_err(|e| match (&e.cause, until.check()) {
            (StoreCause::Stopped(Stopped::DeadlinePassed), Ok(())) => {
                StoreError { cause: StoreCause::TooSlow { limit }, ..e }
            }
            _ => e,
        })
    }

    fn needs_length(&self) -> bool {
        true
    }
}
