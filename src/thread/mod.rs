//! The threads that this library starts, the signals that end them and the limits of every wait.
//!
//! What all rooms share lives here, so that each is decided once:
//!
//! * [`spawn()`]: a thread with a name, whose panic is caught and whose end can be waited for with a deadline.
//! * [`Roster`]: the threads of one instance, counted from their starts to their ends.
//! * [`Process`]: tells a process from one that was forked from it, which has the memory and none of the threads.
//! * [`fin()`]: a signal that is given by *dropping* its only [`FinHolder`]. It is therefore given exactly once,
//!   on every way out of the holder's scope, also while a panic unwinds.
//! * [`Until`]: the deadline and the [`Cancel`] token of a call; every call that can block takes one.
//! * [`Failure`]: whether that limit ended a call, or what else did, told alike by the errors of all calls.
//! * [`send`] and [`recv`]: the only blocking channel operations in the crate. Plain `Sender::send` and
//!   `Receiver::recv` are forbidden by lint, because they cannot be ended from outside.
//!
//! Invariant: nothing here waits without a signal or a deadline that somebody else can use to end the wait.

mod channel;
mod failure;
mod fin;
mod process;
mod roster;
mod spawn;
mod until;

pub use channel::{RecvError, recv, send};
pub use failure::{Failure, FailureKind};
pub use fin::{Fin, FinHolder, Never, fin};
pub use process::Process;
pub use roster::Roster;
pub use spawn::{
    JoinError, Panicked, THREAD_NAME_BYTES_MAX, Thread, catch, join_all, names, spawn, with_threads,
};
pub(crate) use until::CancelOnDrop;
pub use until::{Cancel, Stopped, Until};
