//! Threads with a name, whose panics are caught and whose ends can be waited for with a deadline.
//!
//! Invariant: a panic ends only the thread that it is on, and reaches whoever joins it.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, bounded};

use super::channel::{RecvError, recv};
use super::process::Process;
use super::until::Until;

/// A panic that was caught at the edge of one of our threads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("thread {thread} panicked: {message}")]
pub struct Panicked {
    /// Name of the thread.
    pub thread: String,
    /// What the panic said.
    pub message: String,
}

/// Runs `work` and turns a panic into an error that names `thread`.
pub fn catch<T>(thread: &str, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|payload| Panicked { thread: thread.to_owned(), message: panic_message(payload.as_ref()) })
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is no text".to_owned())
}

/// A thread of ours. It is to be joined; dropping it instead leaves the thread to end by itself.
#[must_use = "a thread is joined by whoever started it"]
pub struct Thread<T> {
    name: String,
    outcome: Receiver<Result<T, Panicked>>,
    /// `None` only while this is dropped.
    handle: Option<JoinHandle<()>>,
    process: Process,
}

impl<T> Drop for Thread<T> {
    fn drop(&mut self) {
        if !self.process.is_current() {
            std::mem::forget(self.handle.take());
        }
    }
}

/// Why [`Thread::join`] gave no result.
#[derive(Debug, thiserror::Error)]
pub enum JoinError<T> {
    /// The thread panicked; it has ended.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// The limit ended first. The handle comes back, for another try.
    #[error("thread {} is still running", .0.name)]
    StillRunning(Thread<T>),
}

impl<T> fmt::Debug for Thread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The longest name that the operating system keeps for a thread.
pub const THREAD_NAME_BYTES_MAX: usize = 15;

/// Starts a thread with a name of at most [`THREAD_NAME_BYTES_MAX`] bytes. A panic in it ends only this thread
/// and is delivered by [`Thread::join`]. It blocks the signals that its starter blocks.
pub fn spawn<T, F>(name: impl Into<String>, work: F) -> std::io::Result<Thread<T>>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    spawn_with_rest(name.into(), work, ())
}

/// Starts a thread as [`spawn`] does. `rest` is dropped when the thread's outcome can be taken, and before a join that
/// takes it returns.
pub(super) fn spawn_with_rest<T, F, R>(name: String, work: F, rest: R) -> std::io::Result<Thread<T>>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
    R: Send + 'static,
{
    debug_assert!(name.len() <= THREAD_NAME_BYTES_MAX, "thread name {name} is cut by the system");
    let (sender, outcome) = bounded(1);
    let own_name = name.clone();
    let handle = std::thread::Builder::new().name(name.clone()).spawn(move || {
        let result = catch(&own_name, work);
        // Capacity one and one message: it never blocks, and nobody may be left to read it.
        let _ = sender.try_send(result);
        drop(rest);
    })?;
    Ok(Thread { name, outcome, handle: Some(handle), process: Process::current() })
}

impl<T> Thread<T> {
    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the end of the thread and takes its result. In a forked process nothing is waited for: the thread runs
    /// in the other one.
    pub fn join(mut self, until: &Until) -> Result<T, JoinError<T>> {
        if !self.process.is_current() {
            return Err(JoinError::StillRunning(self));
        }
        match recv(&self.outcome, until) {
            Ok(outcome) => {
                // What is left of the thread after its result is its own unwinding, which takes no lock of ours.
                let _ = self.handle.take().map(JoinHandle::join);
                Ok(outcome?)
            }
            Err(RecvError::Stopped(_)) => Err(JoinError::StillRunning(self)),
            Err(RecvError::Closed) => {
                let (thread, message) = (self.name.clone(), "it ended without a result".to_owned());
                Err(Panicked { thread, message }.into())
            }
        }
    }
}

/// Runs each of `works` on a thread of its own, named `<prefix>-0`, `<prefix>-1` and so on, and `meanwhile` on this
/// one. All have ended when it returns, so they may borrow. A panic is the result of its thread. Where not all
/// threads can be started, fewer do; the error is that of the first.
pub fn with_threads<T: Send>(
    prefix: &str,
    works: Vec<impl FnOnce() -> T + Send>,
    meanwhile: impl FnOnce(),
) -> std::io::Result<Vec<Result<T, Panicked>>> {
    std::thread::scope(|scope| {
        let mut handles = Vec::with_capacity(works.len());
        for (number, work) in works.into_iter().enumerate() {
            let name = format!("{prefix}-{number}");
            debug_assert!(name.len() <= THREAD_NAME_BYTES_MAX, "thread name {name} is cut by the system");
            let own_name = name.clone();
            match std::thread::Builder::new().name(name).spawn_scoped(scope, move || catch(&own_name, work)) {
                Ok(handle) => handles.push(handle),
                Err(e) if handles.is_empty() => return Err(e),
                Err(_) => break,
            }
        }
        meanwhile();
        let gone =
            |_| Panicked { thread: prefix.to_owned(), message: "it ended without a result".to_owned() };
        Ok(handles.into_iter().map(|handle| handle.join().map_err(gone).flatten()).collect())
    })
}

/// Joins each of `threads` while the limit lasts and gives back those that still run. Panics of the others are
/// dropped: a thread whose outcome matters is joined by itself.
pub fn join_all(threads: Vec<Thread<()>>, until: &Until) -> Vec<Thread<()>> {
    threads
        .into_iter()
        .filter_map(|thread| match thread.join(until) {
            Err(JoinError::StillRunning(thread)) => Some(thread),
            Ok(()) | Err(JoinError::Panicked(_)) => None,
        })
        .collect()
}

/// The names of threads, for a message.
pub fn names<T>(threads: &[Thread<T>]) -> Vec<String> {
    threads.iter().map(|thread| thread.name().to_owned()).collect()
}
