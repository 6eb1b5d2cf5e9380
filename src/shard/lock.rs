//! Locking: a shard that is locked changes nothing on disk until its guard is dropped.
//!
//! A [`ShardLock`] holds a token, not a mutex guard: it may travel between threads, and a lock that was granted
//! to one owner cannot be given back by another. Unlocking happens in `Drop` and only there, so it happens in
//! all three cases alike: the work under the lock was done, it failed, or the thread is unwinding. `Drop` takes
//! the state's mutex for a moment and does nothing else; what is to be cleaned up on disk is left to the
//! thread that compacts.

use std::time::{Duration, Instant};

use crate::thread::{Failure, FailureKind, Stopped, Until, fin};

use super::ShardId;
use super::error::{CommitError, Forked};
use super::shard::{Access, Grant, Shard};
use super::store::{ShardFile, StoreFault};

/// Why a shard was not locked. No shard stays locked by the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The call was made in a forked process.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// Somebody else holds the lock.
    #[error(
        "cannot lock shard {shard} for {wanted_by}: {owner} has held it for {}; wait for that to end, or cancel it",
        humantime::format_duration(Duration::from_secs(held_for.as_secs()))
    )]
    Held {
        /// The shard.
        shard: ShardId,
        /// Who asked.
        wanted_by: String,
        /// Who holds it.
        owner: String,
        /// Since how long.
        held_for: Duration,
    },
    /// The bucket is asleep.
    #[error(
        "cannot lock shard {shard} for {wanted_by}: it was put to sleep by {by}; resume the bucket first"
    )]
    Sealed {
        /// The shard.
        shard: ShardId,
        /// Who asked.
        wanted_by: String,
        /// Who sealed it.
        by: String,
    },
    /// The caller's limit ended while a compaction or a write was still under way.
    #[error("cannot lock shard {shard} for {wanted_by}: {why}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// Who asked.
        wanted_by: String,
        /// What ended the wait.
        why: Stopped,
    },
    /// What was written before the lock could not be made durable.
    #[error("cannot lock for {wanted_by}: {cause}")]
    Commit {
        /// Who asked.
        wanted_by: String,
        /// Why the commit failed.
        cause: CommitError,
    },
    /// The files of the recovery point could not be listed.
    #[error("cannot lock shard {shard} for {wanted_by}: {fault}")]
    Store {
        /// The shard.
        shard: ShardId,
        /// Who asked.
        wanted_by: String,
        /// What the engine said.
        fault: StoreFault,
    },
}

impl Failure for LockError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Held { .. } => FailureKind::Temporary,
            Self::Commit { cause, .. } => cause.kind(),
            Self::Forked(_) | Self::Sealed { .. } | Self::Store { .. } => FailureKind::Lasting,
        }
    }
}

/// A locked shard; dropping it unlocks.
#[must_use = "dropping the guard unlocks the shard"]
pub struct ShardLock {
    shard: Shard,
    token: u64,
    files: Vec<ShardFile>,
    seal_for: Option<String>,
}

impl Shard {
    /// Waits for the write and the compaction in flight, commits, and freezes the shard: nothing on disk changes
    /// until the guard is dropped, and batches come back with a signal for the unlock. Reads go on. A lock that
    /// somebody else holds is not waited for.
    pub fn lock(&self, owner: &str, until: &Until) -> Result<ShardLock, LockError> {
        self.refuse_fork()?;
        let wanted_by = || owner.to_owned();
        let shard = self.id();
        let mut guard = self.grant(owner, false)?;
        self.wait_for_compaction(until).map_err(|why| LockError::Stopped {
            shard,
            wanted_by: wanted_by(),
            why,
        })?;
        // The commit takes the writer's turn after the state says `Locked`: no write is in flight behind it.
        self.commit(until).map_err(|cause| LockError::Commit { wanted_by: wanted_by(), cause })?;
        guard.files =
            self.files().map_err(|fault| LockError::Store { shard, wanted_by: wanted_by(), fault })?;
        Ok(guard)
    }

    /// Takes the lock of a shard that is sealed. Dropping the guard seals it again, unless it is told to open.
    fn lock_sealed(&self, owner: &str) -> Result<ShardLock, LockError> {
        let (shard, wanted_by) = (self.id(), owner.to_owned());
        let mut guard = self.grant(owner, true)?;
        guard.seal_on_drop(owner);
        guard.files = self.files().map_err(|fault| LockError::Store { shard, wanted_by, fault })?;
        Ok(guard)
    }

    fn grant(&self, owner: &str, takes_sealed: bool) -> Result<ShardLock, LockError> {
        let mut state = self.0.state.lock();
        let (shard, wanted_by) = (self.id(), owner.to_owned());
        match &state.access {
            Access::Open => {}
            Access::Sealed { .. } if takes_sealed => {}
            Access::Locked(grant) => {
                let (owner, held_for) = (grant.owner.clone(), grant.since.elapsed());
                return Err(LockError::Held { shard, wanted_by, owner, held_for });
            }
            Access::Sealed { by } => {
                return Err(LockError::Sealed { shard, wanted_by, by: by.clone() });
            }
        }
        let token = state.next_token;
        state.next_token += 1;
        let (holder, unlocked) = fin();
        let grant = Grant { token, owner: wanted_by, since: Instant::now(), unlocked, _holder: holder };
        state.access = Access::Locked(grant);
        drop(state);
        Ok(ShardLock { shard: self.clone(), token, files: Vec::new(), seal_for: None })
    }
}

impl ShardLock {
    /// The shard that is locked.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The files of the shard's newest recovery point, which hold everything that was ever applied. They stay as
    /// they are until the guard is dropped.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// Makes the drop of this guard leave the shard sealed: readable, and closed for writes until it is opened
    /// again. `by` is named to those who try.
    pub fn seal_on_drop(&mut self, by: &str) {
        self.seal_for = Some(by.to_owned());
    }

    /// Takes back what [`ShardLock::seal_on_drop`] said.
    pub fn open_on_drop(&mut self) {
        self.seal_for = None;
    }
}

impl Drop for ShardLock {
    fn drop(&mut self) {
        let mut state = self.shard.0.state.lock();
        match &state.access {
            Access::Locked(grant) if grant.token == self.token => {}
            _ => return,
        }
        // Nothing else is woken: a lock that held nothing up leaves the disk as it is.
        let wakes = state.merge_was_held || !state.retired.is_empty();
        state.merge_was_held = false;
        let next = self.seal_for.take().map_or(Access::Open, |by| Access::Sealed { by });
        let granted = std::mem::replace(&mut state.access, next);
        drop(state);
        // Drops the signal's holder: those who wait for the unlock go on.
        drop(granted);
        if wakes {
            self.shard.wake_maintenance();
        }
    }
}

/// Locks shards in ascending order of their ids, all or none: on the first failure the guards that were granted
/// before are dropped.
pub fn lock_all(shards: &[Shard], owner: &str, until: &Until) -> Result<Vec<ShardLock>, LockError> {
    let mut ascending: Vec<&Shard> = shards.iter().collect();
    ascending.sort_by_key(|shard| shard.id());
    ascending.into_iter().map(|shard| shard.lock(owner, until)).collect()
}

/// Locks shards that are sealed, all or none, so that they can be opened for writes. Nobody but who sealed them, or
/// opened them so, may ask for it. Dropping the guards seals them again, for `owner`, unless they are told to open.
pub(crate) fn lock_sealed(shards: &[Shard], owner: &str) -> Result<Vec<ShardLock>, LockError> {
    shards.iter().map(|shard| shard.lock_sealed(owner)).collect()
}
