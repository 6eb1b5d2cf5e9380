//! What is under way in a data folder: one entry a bucket.
//!
//! An entry is taken before the first look at a bucket that is to be paused, resumed or changed, and given back after
//! the last trace of it is gone. It is the only thing that keeps such work apart, so who comes second is refused
//! before it has done anything. The entry of what ended stays, to be looked at, until the next work on the bucket.
//!
//! Invariant: a bucket has at most one running entry. Progress never falls, and is 1 only after success.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::pause::Progress;
use crate::text::number_id;
use crate::thread::{Cancel, Failure, FailureKind, Fin, FinHolder, Stopped, Until, fin};

use super::error::Forked;
use super::meta::BucketName;

/// What progress is shown of what is not over yet, at most.
const PROGRESS_RUNNING_MAX: f64 = 0.99;

number_id! {
    /// Names a task for as long as the process uses the data folder.
    TaskId(u64)
}

/// What a task does with its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TaskKind {
    /// It is put to sleep.
    Pause,
    /// It is woken up.
    Resume,
    /// Its indexes change.
    Index,
    /// It is removed.
    Drop,
    /// What was interrupted is cleaned up.
    Recovery,
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "a pause",
            Self::Resume => "a resume",
            Self::Index => "a change of its indexes",
            Self::Drop => "its removal",
            Self::Recovery => "the clean-up of what was interrupted",
        })
    }
}

/// Whether a task is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It is under way.
    Running,
    /// It came to its end.
    Done,
    /// It failed or was cancelled.
    Failed,
}

/// A look at a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskStatus {
    /// Its name.
    pub task: TaskId,
    /// The bucket.
    pub bucket: BucketName,
    /// What it does.
    pub kind: TaskKind,
    /// Whether it is over.
    pub state: TaskState,
    /// From 0 to 1; it never falls, and it is 1 only after success.
    pub progress: f64,
    /// Why it failed.
    pub error: Option<String>,
}

/// All tasks at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskList {
    /// Another number than that of any other list of this data folder that says something else.
    pub revision: u64,
    /// One for each bucket that something was done with, in the order of their names.
    pub tasks: Vec<TaskStatus>,
}

/// The bucket has a task that is under way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} is under way (task {task}); wait for it, or cancel it")]
pub struct TaskBusy {
    /// That task.
    pub task: TaskId,
    /// What it does.
    pub kind: TaskKind,
}

/// Why a task was not cancelled, or not seen to end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// There is none, or another one followed it.
    #[error("cannot cancel task {task}: there is no such task; it may have ended long ago")]
    Missing {
        /// The task that was asked for.
        task: TaskId,
    },
    /// It was told to end and has not yet.
    #[error("task {task} was cancelled and has not ended yet: {why}; wait for it")]
    Stopped {
        /// The task.
        task: TaskId,
        /// What ended the wait.
        why: Stopped,
    },
}

impl Failure for CancelError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Forked(_) | Self::Missing { .. } => FailureKind::Lasting,
        }
    }
}

/// Why a wait for another list of tasks gave none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The caller's limit ended first.
    #[error("no task changed: {0}")]
    Stopped(#[from] Stopped),
}

impl Failure for WaitError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped(why) => why.kind(),
            Self::Forked(_) => FailureKind::Lasting,
        }
    }
}

/// The book of a data folder.
#[derive(Debug)]
pub(super) struct Tasks(Mutex<Book>);

#[derive(Debug)]
struct Book {
    revision: u64,
    last: TaskId,
    entries: BTreeMap<BucketName, Entry>,
    /// Replaced with each revision; who waits for the next one sees the old one close.
    changed: (FinHolder, Fin),
}

#[derive(Debug)]
struct Entry {
    status: TaskStatus,
    cancel: Cancel,
}

impl Default for Tasks {
    fn default() -> Self {
        let (last, entries) = (TaskId(0), BTreeMap::new());
        Self(Mutex::new(Book { revision: 1, last, entries, changed: fin() }))
    }
}

impl Book {
    fn list(&self) -> TaskList {
        let tasks = self.entries.values().map(|entry| entry.status.clone()).collect();
        TaskList { revision: self.revision, tasks }
    }

    fn change(&mut self) {
        self.revision += 1;
        self.changed = fin();
    }

    fn of_task(&mut self, task: TaskId) -> Option<&mut Entry> {
        self.entries.values_mut().find(|entry| entry.status.task == task)
    }
}

impl Tasks {
    /// Takes the bucket's entry.
    pub(super) fn begin(
        self: &Arc<Self>,
        bucket: &BucketName,
        kind: TaskKind,
        until: &Until,
    ) -> Result<Task, TaskBusy> {
        let mut book = self.0.lock();
        if let Some(Entry { status, .. }) = book.entries.get(bucket)
            && status.state == TaskState::Running
        {
            return Err(TaskBusy { task: status.task, kind: status.kind });
        }
        let task = TaskId(book.last.0 + 1);
        let (bucket, until) = (bucket.clone(), until.child());
        let status = TaskStatus {
            task,
            bucket: bucket.clone(),
            kind,
            state: TaskState::Running,
            progress: 0.0,
            error: None,
        };
        book.last = task;
        book.entries.insert(bucket, Entry { status, cancel: until.cancel().clone() });
        book.change();
        Ok(Task { book: Arc::clone(self), id: task, until, is_over: false })
    }

    pub(super) fn list(&self) -> TaskList {
        self.0.lock().list()
    }

    /// The list as soon as it is another than that of `revision`.
    pub(super) fn wait(&self, revision: u64, until: &Until) -> Result<TaskList, Stopped> {
        loop {
            let changed = {
                let book = self.0.lock();
                if book.revision != revision {
                    return Ok(book.list());
                }
                book.changed.1.clone()
            };
            changed.wait(until)?;
        }
    }

    /// Ends a task's limit and waits until it has cleaned up. What has ended already is as it is.
    pub(super) fn cancel(&self, task: TaskId, until: &Until) -> Result<TaskStatus, CancelError> {
        loop {
            let revision = {
                let mut book = self.0.lock();
                let revision = book.revision;
                let entry = book.of_task(task).ok_or(CancelError::Missing { task })?;
                if entry.status.state != TaskState::Running {
                    return Ok(entry.status.clone());
                }
                let cancel = entry.cancel.clone();
                drop(book);
                cancel.cancel();
                revision
            };
            self.wait(revision, until).map_err(|why| CancelError::Stopped { task, why })?;
        }
    }

    fn update(&self, task: TaskId, update: impl FnOnce(&mut TaskStatus)) {
        let mut book = self.0.lock();
        let Some(entry) = book.of_task(task) else { return };
        let before = entry.status.clone();
        update(&mut entry.status);
        if entry.status != before {
            book.change();
        }
    }
}

/// A bucket's entry, for as long as the work lasts.
#[must_use = "dropping the task gives its entry back as failed"]
#[derive(Debug)]
pub(super) struct Task {
    book: Arc<Tasks>,
    id: TaskId,
    until: Until,
    is_over: bool,
}

impl Task {
    /// The caller's limit, which a cancel of the task ends too.
    pub(super) fn until(&self) -> &Until {
        &self.until
    }

    pub(super) fn report(&self, Progress { done_bytes, total_bytes }: Progress) {
        #[expect(clippy::cast_precision_loss, reason = "it is a share, to be looked at")]
        let share = done_bytes as f64 / total_bytes.max(1) as f64;
        self.book.update(self.id, |status| {
            status.progress = status.progress.max(share.min(PROGRESS_RUNNING_MAX));
        });
    }

    /// Gives the entry back with what came of the work, of which nothing may be left when it is called.
    pub(super) fn end<T, E: fmt::Display>(mut self, outcome: Result<T, E>) -> Result<T, E> {
        let error = outcome.as_ref().err().map(ToString::to_string);
        self.is_over = true;
        self.book.update(self.id, |status| end(status, error));
        outcome
    }
}

fn end(status: &mut TaskStatus, error: Option<String>) {
    match error {
        None => (status.state, status.progress) = (TaskState::Done, 1.0),
        error => (status.state, status.error) = (TaskState::Failed, error),
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.is_over {
            self.book.update(self.id, |status| end(status, Some("it panicked".to_owned())));
        }
    }
}
