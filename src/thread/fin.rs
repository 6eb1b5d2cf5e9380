//! A signal that is given by *dropping* its only holder: exactly once, on every way out of the holder's scope, also
//! while a panic unwinds.

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};

use super::channel::{RecvError, recv};
use super::until::{Stopped, Until};

/// A value that cannot exist: channels of it carry nothing but their closing.
#[derive(Debug, Clone, Copy)]
pub enum Never {}

/// The side of a fin signal that gives it, by being dropped.
#[derive(Debug)]
pub struct FinHolder {
    _closes_on_drop: Sender<Never>,
}

/// The side of a fin signal that sees it. Clones see the same signal.
#[derive(Debug, Clone)]
pub struct Fin(Receiver<Never>);

/// Makes a signal that is given when the holder is dropped.
pub fn fin() -> (FinHolder, Fin) {
    let (sender, receiver) = bounded(0);
    (FinHolder { _closes_on_drop: sender }, Fin(receiver))
}

impl Fin {
    /// Whether the signal was given.
    pub fn is_given(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// The channel that closes with the signal, for use in a `select`.
    pub fn receiver(&self) -> &Receiver<Never> {
        &self.0
    }

    /// Waits for the signal, at most until `until` ends.
    pub fn wait(&self, until: &Until) -> Result<(), Stopped> {
        match recv(&self.0, until) {
            Ok(never) => match never {},
            Err(RecvError::Closed) => Ok(()),
            Err(RecvError::Stopped(why)) => Err(why),
        }
    }
}
