//! How long a call may take: its deadline, and the token that ends it from another thread.
//!
//! Invariant: a token that was given stays given, for its children too, whoever holds them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};
use parking_lot::Mutex;

use super::fin::{Fin, FinHolder, fin};

/// A token that ends calls from another thread. It may be given more than once and stays valid afterwards.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<CancelInner>);

#[derive(Debug)]
struct CancelInner {
    state: Mutex<CancelState>,
    fin: Fin,
    /// Kept, so that what is told to a parent reaches the children of a child that nobody holds.
    _parent: Option<Arc<CancelInner>>,
}

#[derive(Debug)]
struct CancelState {
    /// Gone when the token was given.
    holder: Option<FinHolder>,
    children: Vec<Weak<CancelInner>>,
}

impl CancelInner {
    fn cancel(&self) {
        let (holder, children) = {
            let mut state = self.state.lock();
            (state.holder.take(), std::mem::take(&mut state.children))
        };
        drop(holder);
        children.iter().filter_map(Weak::upgrade).for_each(|child| child.cancel());
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::below(None)
    }
}

impl Cancel {
    /// A token that was not given yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn below(parent: Option<Arc<CancelInner>>) -> Self {
        let (holder, fin) = fin();
        let state = CancelState { holder: Some(holder), children: Vec::new() };
        Self(Arc::new(CancelInner { state: Mutex::new(state), fin, _parent: parent }))
    }

    /// Ends every call that holds this token or a child of it, now and later.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// A token that is given together with this one, and may be given alone.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self::below(Some(Arc::clone(&self.0)));
        let mut state = self.0.state.lock();
        if state.holder.is_none() {
            drop(state);
            child.cancel();
            return child;
        }
        state.children.retain(|other| other.strong_count() > 0);
        state.children.push(Arc::downgrade(&child.0));
        drop(state);
        child
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.fin.is_given()
    }

    /// The token as a signal.
    pub fn fin(&self) -> &Fin {
        &self.0.fin
    }
}

/// Gives a token on every way out of its holder's scope, also while a panic unwinds.
pub(crate) struct CancelOnDrop(pub(crate) Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// How long a call may take: up to a deadline, and only while nobody cancels it.
#[derive(Debug, Clone, Default)]
pub struct Until {
    deadline: Option<Instant>,
    cancel: Cancel,
}

/// Why a wait ended before what it waited for had happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The caller's [`Cancel`] was given.
    #[error("it was cancelled")]
    Cancelled,
    /// The caller's deadline passed. What was asked for may still happen: the outcome is unknown.
    #[error("its deadline passed")]
    DeadlinePassed,
}

impl Until {
    /// A limit with both parts. No deadline means that only `cancel` ends the call.
    pub fn new(deadline: Option<Instant>, cancel: Cancel) -> Self {
        Self { deadline, cancel }
    }

    /// A limit that ends `timeout` from now and that nobody can cancel.
    pub fn within(timeout: Duration) -> Self {
        Self::new(Instant::now().checked_add(timeout), Cancel::new())
    }

    /// The same limit with a deadline no later than `timeout` from now.
    #[must_use]
    pub fn at_most(&self, timeout: Duration) -> Self {
        let sooner = Instant::now().checked_add(timeout);
        let deadline = match (self.deadline, sooner) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { deadline, cancel: self.cancel.clone() }
    }

    /// The same limit with a token of its own, which ends it alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { deadline: self.deadline, cancel: self.cancel.child() }
    }

    /// The moment at which the limit ends by itself.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The token that ends the limit early.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Fails when the limit has ended: to be asked between the steps of long work.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.cancel.is_cancelled() {
            Err(Stopped::Cancelled)
        } else if self.deadline.is_some_and(|d| d <= Instant::now()) {
            Err(Stopped::DeadlinePassed)
        } else {
            Ok(())
        }
    }

    /// Waits for so long, at most until the limit ends. Fails when it has.
    pub fn pause(&self, how_long: Duration) -> Result<(), Stopped> {
        // Given or not, what the limit says afterwards counts.
        let _ = self.cancel.fin().wait(&self.at_most(how_long));
        self.check()
    }

    /// A channel that delivers a message at the deadline, for use in a `select`.
    pub fn timer(&self) -> Receiver<Instant> {
        self.deadline.map_or_else(channel::never, channel::at)
    }
}
