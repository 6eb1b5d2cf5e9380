//! A least rate: a peer that dribbles is as bad as one that is silent, and shows in no time-out of silence.

use std::time::Duration;

use super::{CallInfo, Policy};
use crate::objstore::error::{StoreCause, StoreError};
use crate::thread::{Stopped, Until};

/// Ends a call whose bytes come or go too slowly. Calls that carry no content are let be.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// The least that is put up with, over a whole call.
    pub bytes_per_second: u64,
    /// Time that each call has besides, for the way to the server and its work.
    pub grace: Duration,
}

impl Policy for Floor {
    fn call<T>(
        &self,
        call: CallInfo,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let bytes = call.sent_bytes.max(call.wanted_bytes);
        if bytes == 0 {
            return go(until);
        }
        let bytes_per_second = self.bytes_per_second.max(1);
        let limit = self.grace.saturating_add(Duration::from_secs(bytes.div_ceil(bytes_per_second)));
        go(&until.at_most(limit)).map_err(|e| match (&e.cause, until.check()) {
            (StoreCause::Stopped(Stopped::DeadlinePassed), Ok(())) => {
                StoreError { cause: StoreCause::TooSlow { bytes_per_second }, ..e }
            }
            _ => e,
        })
    }

    fn needs_length(&self) -> bool {
        true
    }
}
