//! What is logged about failures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

/// Lines that tell of failures, each with how often.
#[derive(Default)]
pub(crate) struct Failures(Mutex<BTreeMap<String, usize>>);

impl Failures {
    /// What hears them, and what they are logged to.
    pub(crate) fn heard() -> (Arc<Self>, Logger) {
        let failures = Arc::<Self>::default();
        let logger = Logger::root(Arc::clone(&failures), o!());
        (failures, logger)
    }

    pub(crate) fn told(&self) -> BTreeMap<String, usize> {
        self.0.lock().unwrap().clone()
    }
}

impl Drain for Failures {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        if record.level() <= Level::Error {
            *self.0.lock().unwrap().entry(record.msg().to_string()).or_default() += 1;
        }
        Ok(())
    }
}
