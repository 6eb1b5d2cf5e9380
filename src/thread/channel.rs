//! The only blocking channel operations in the crate: each can be ended from outside.

use crossbeam::channel::{self, Receiver, Sender, select_biased};

use super::fin::Fin;
use super::until::{Stopped, Until};

/// Why [`recv`] returned without a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// All senders are gone.
    #[error("the sender is gone")]
    Closed,
    /// The limit ended first.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Receives one message. A message that is already there is delivered even when `until` has ended, so that a
/// result that was produced reaches the one who asked for it.
pub fn recv<T>(receiver: &Receiver<T>, until: &Until) -> Result<T, RecvError> {
    let timer = until.timer();
    select_biased! {
        recv(receiver) -> message => message.map_err(|_| RecvError::Closed),
        recv(until.cancel().fin().receiver()) -> _ => Err(Stopped::Cancelled.into()),
        recv(timer) -> _ => Err(Stopped::DeadlinePassed.into()),
    }
}

/// Sends one message, waiting for room while `fin` is not given. The message comes back when `fin` was given or
/// the receiver is gone.
pub fn send<T>(sender: &Sender<T>, message: T, fin: &Fin) -> Result<(), T> {
    if fin.is_given() {
        return Err(message);
    }
    let mut select = channel::Select::new_biased();
    select.recv(fin.receiver());
    let sending = select.send(sender);
    let operation = select.select();
    if operation.index() == sending {
        operation.send(sender, message).map_err(|refused| refused.0)
    } else {
        let _ = operation.recv(fin.receiver());
        Err(message)
    }
}
