//! What a failure means to whoever called.

use super::until::Stopped;

/// What a caller may do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The call's limit ended it: its deadline, or its [`Cancel`](super::Cancel), which closing a bucket and cancelling
    /// a task give too.
    Stopped(Stopped),
    /// It may pass by itself: the same call may succeed later.
    Temporary,
    /// Somebody has to mend something first. The error's text says what.
    Lasting,
}

/// An error of a call with a limit. It tells its caller whether to leave it at that, to try again, or to look for help:
///
/// ```
/// use dormouse::bucket::IntakeError;
/// use dormouse::thread::{Failure, Stopped};
///
/// fn is_shutdown(ended: &Result<(), IntakeError>) -> bool {
///     ended.as_ref().is_err_and(|error| error.stopped() == Some(Stopped::Cancelled))
/// }
/// ```
pub trait Failure: std::error::Error {
    /// What the caller may do about it.
    fn kind(&self) -> FailureKind;

    /// What ended the call, where its limit did.
    fn stopped(&self) -> Option<Stopped> {
        match self.kind() {
            FailureKind::Stopped(why) => Some(why),
            FailureKind::Temporary | FailureKind::Lasting => None,
        }
    }

    /// Whether the same call may succeed later without anybody's help.
    fn is_temporary(&self) -> bool {
        self.kind() == FailureKind::Temporary
    }
}

impl Failure for Stopped {
    fn kind(&self) -> FailureKind {
        FailureKind::Stopped(*self)
    }
}
