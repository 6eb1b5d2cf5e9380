//! The threads that this library starts, the signals that end them and the limits of every wait.
//!
//! Five things that all rooms share live here, so that each is decided once:
//!
//! * [`spawn`]: a thread with a name, whose panic is caught and whose end can be waited for with a deadline.
//! * [`Process`]: tells a process from one that was forked from it, which has the memory and none of the threads.
//! * [`fin`]: a signal that is given by *dropping* its only [`FinHolder`]. It is therefore given exactly once,
//!   on every way out of the holder's scope, also while a panic unwinds.
//! * [`Until`]: the deadline and the [`Cancel`] token of a call; every call that can block takes one.
//! * [`send`] and [`recv`]: the only blocking channel operations in the crate. Plain `Sender::send` and
//!   `Receiver::recv` are forbidden by lint, because they cannot be ended from outside.
//!
//! Invariant: nothing here waits without a signal or a deadline that somebody else can use to end the wait.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender, TryRecvError, bounded, select_biased};
use parking_lot::Mutex;

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

    /// A channel that delivers a message at the deadline, for use in a `select`.
    pub fn timer(&self) -> Receiver<Instant> {
        self.deadline.map_or_else(channel::never, channel::at)
    }
}

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
        recv(until.cancel.fin().receiver()) -> _ => Err(Stopped::Cancelled.into()),
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

/// The process that something was made in. One that was forked from it has a copy of the memory, and neither the threads
/// nor the right to the locks and files that are told of there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    /// The one that runs this.
    pub fn current() -> Self {
        Self(std::process::id())
    }

    /// Whether this is still the same process, and no fork of it. A system call.
    pub fn is_current(self) -> bool {
        self == Self::current()
    }

    /// Its number.
    pub fn id(self) -> u32 {
        self.0
    }
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
    let name = name.into();
    debug_assert!(name.len() <= THREAD_NAME_BYTES_MAX, "thread name {name} is cut by the system");
    let (sender, outcome) = bounded(1);
    let own_name = name.clone();
    let handle = std::thread::Builder::new().name(name.clone()).spawn(move || {
        let result = catch(&own_name, work);
        // Capacity one and one message: it never blocks, and nobody may be left to read it.
        let _ = sender.try_send(result);
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

/// The threads of one instance: each is counted from its start to its end, wherever its handle is.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Vec<String>>>);

/// Takes a thread off its roster when dropped.
struct Entry {
    roster: Roster,
    name: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut names = self.roster.0.lock();
        if let Some(place) = names.iter().position(|name| *name == self.name) {
            names.swap_remove(place);
        }
    }
}

impl Roster {
    /// The names of the threads that run now, in their order.
    pub fn running(&self) -> Vec<String> {
        let mut names = self.0.lock().clone();
        names.sort();
        names
    }

    /// Starts a thread as [`spawn`] does, and counts it.
    pub fn spawn<T, F>(&self, name: impl Into<String>, work: F) -> std::io::Result<Thread<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let name = name.into();
        self.0.lock().push(name.clone());
        let entry = Entry { roster: self.clone(), name: name.clone() };
        spawn(name, move || {
            let _on_roster = entry;
            work()
        })
    }

    /// Starts a thread that takes `given`, as [`Roster::spawn`] does. Where no thread is to be had it comes back.
    pub fn spawn_with<G, F>(
        &self,
        name: impl Into<String>,
        given: G,
        work: F,
    ) -> Result<Thread<()>, (std::io::Error, Option<G>)>
    where
        G: Send + 'static,
        F: FnOnce(G) + Send + 'static,
    {
        let kept = Arc::new(Mutex::new(Some(given)));
        let own = Arc::clone(&kept);
        let started = self.spawn(name, move || {
            let given = own.lock().take();
            if let Some(given) = given {
                work(given);
            }
        });
        started.map_err(|error| (error, kept.lock().take()))
    }
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
