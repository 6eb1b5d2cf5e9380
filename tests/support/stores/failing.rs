//! A store of which one call fails.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse::objstore::{ObjectKey, ObjectStore, Operation, StoreCause, StoreError};

use super::forward::{Around, Call, Carries, Forward, Pass};
use crate::support::kill_this_process;

/// When the chosen call of a [`FailingStore`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fails {
    /// Before it has done anything.
    Before,
    /// After it was carried out: its answer is lost.
    After,
    /// Before it has done anything, and another try may help.
    Passing,
    /// After it was carried out: the process is killed.
    Kills,
    /// In the middle of content: a half comes, or a half goes out. A call without content fails before it has done
    /// anything.
    Half,
}

/// The ways of failing, for who has time for one of them.
pub(crate) const ALL_FAILS: [Fails; 4] = [Fails::Before, Fails::After, Fails::Passing, Fails::Half];

/// Hands calls on to another store, counts them, and fails one of them.
pub(crate) type FailingStore<'a> = Forward<'a, Failing<'a>>;

pub(crate) struct Failing<'a> {
    fail_at: usize,
    fails: Fails,
    calls: AtomicUsize,
    puts: AtomicUsize,
    /// Whether callers are to make one call after the other, so that the order of calls is known.
    pub(crate) one_at_a_time: bool,
    /// Is called before each call with its number, what it does, and to what.
    pub(crate) before: Option<&'a BeforeCall<'a>>,
    /// What it says of its room.
    pub(crate) room_bytes: Option<u64>,
}

/// What happens before a call of a [`FailingStore`].
pub(crate) type BeforeCall<'a> = dyn Fn(usize, Operation, Option<&ObjectKey>) + Sync + 'a;

impl<'a> FailingStore<'a> {
    /// Fails the call number `fail_at`, counted from 1; 0 fails none.
    pub(crate) fn new(inner: &'a dyn ObjectStore, fail_at: usize, fails: Fails) -> Self {
        let (calls, puts) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (one_at_a_time, before, room_bytes) = (false, None, None);
        Self::around(inner, Failing { fail_at, fails, calls, puts, one_at_a_time, before, room_bytes })
    }

    /// Calls that were made.
    pub(crate) fn calls(&self) -> usize {
        self.around.calls.load(Ordering::Relaxed)
    }

    /// Calls of all kinds of put that were made.
    pub(crate) fn puts(&self) -> usize {
        self.around.puts.load(Ordering::Relaxed)
    }

    /// Whether the chosen call was made.
    pub(crate) fn has_failed(&self) -> bool {
        self.around.fail_at != 0 && self.calls() >= self.around.fail_at
    }
}

impl Around for Failing<'_> {
    fn call<T>(
        &self,
        call: &Call<'_>,
        go: &mut dyn FnMut(Pass<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if let Carries::Body(_) | Carries::NewBody(_) | Carries::Draft = call.carries {
            self.puts.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(before) = self.before {
            before(number, call.operation, call.key);
        }
        if number != self.fail_at {
            return go(Pass::Whole);
        }
        let made_up = || call.failed(io::Error::other("it was made to fail"));
        let passing = || call.failed(StoreCause::Connection("it was made to fail".to_owned()));
        match self.fails {
            Fails::Before => Err(made_up()),
            Fails::After => go(Pass::Whole).and_then(|_| Err(made_up())),
            Fails::Passing => Err(passing()),
            Fails::Kills => {
                let _ = go(Pass::Whole);
                kill_this_process()
            }
            Fails::Half => {
                if !matches!(call.carries, Carries::Nothing) {
                    let _ = go(Pass::Half);
                }
                Err(passing())
            }
        }
    }

    fn parallel(&self, of_inner: usize) -> usize {
        if self.one_at_a_time { 1 } else { of_inner }
    }
    fn room_bytes(&self) -> Option<u64> {
        self.room_bytes
    }
}
