//! All shards of a bucket, and the two threads that work for them.
//!
//! `dm-flush` makes recovery points, by bytes and by time and when the set is asked for them; `dm-compact` merges
//! tables after one was made and drops what was kept during a lock. They are apart because a merge may take seconds
//! and recovery points go on meanwhile, until too many of them wait for it. Both end when the set is closed.
//!
//! Invariants: a disk that hangs holds up these threads and nobody who asks the set with a limit. Where one of them
//! panics, all shards are broken off: who writes is told, instead of waiting for what nobody does any more.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, after, bounded, never, select_biased};
use parking_lot::Mutex;
use slog::{Logger, error, info};

use crate::durable::{AtPath, Claim, PathError};
use crate::thread::{self, Fin, FinHolder, Process, RecvError, Stopped, Thread, Until, fin};

use super::ShardId;
use super::engines::StoreShared;
use super::error::{CommitError, OpenError};
use super::shard::{Shard, ShardConfig, ShardSpec, claim};
use super::store::StoreFault;

/// How long the flushing thread waits after a recovery point failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a thread that has begun is waited for where the other one could not be started.
const START_FAILED_GRACE: Duration = Duration::from_secs(5);

/// What the shards of one bucket have in common.
#[derive(Debug, Clone)]
pub struct ShardSetConfig {
    /// A shard makes a recovery point when this many bytes are uncommitted. Twice as many hold up its writers, and so
    /// do three times as many together with those that are being made durable.
    pub commit_bytes: u64,
    /// A shard makes a recovery point this long after its first uncommitted write. While documents come faster than
    /// tables are merged, recovery points wait for merges, those by bytes too.
    pub commit_interval: Duration,
    /// A recovery point is kept, to be rolled back to, when the last one that was is this old.
    pub point_interval: Duration,
    /// How many are kept. With none, a roll-back goes to zero, unless the host keeps one itself.
    pub points_kept: usize,
    /// Block cache of all shards together. A quarter of that of a bucket with the store `lsm` is set aside for telling
    /// which documents are new, in a first load.
    pub cache_bytes: u64,
    /// Open tables of all shards together.
    pub open_files_max: usize,
}

impl Default for ShardSetConfig {
    fn default() -> Self {
        Self {
            commit_bytes: 16 * 1024 * 1024,
            commit_interval: Duration::from_secs(10),
            point_interval: Duration::from_secs(600),
            points_kept: 2,
            cache_bytes: 64 * 1024 * 1024,
            open_files_max: 256,
        }
    }
}

/// See the module.
pub struct ShardSet {
    shards: Vec<Shard>,
    orders: Sender<Order>,
    /// `None` once the threads were told to end.
    stop: Mutex<Option<FinHolder>>,
    /// Held for a moment: whoever joins them takes them out meanwhile.
    threads: Mutex<Vec<Thread<()>>>,
    process: Process,
}

/// Asks the thread that flushes for a recovery point of one shard.
struct Order {
    shard: Shard,
    made: Sender<Result<bool, CommitError>>,
}

impl Drop for ShardSet {
    fn drop(&mut self) {
        // In a forked process nothing of it is touched, the storage engines least of all, which may write when they
        // are dropped.
        if !self.process.is_current() {
            std::mem::forget(self.orders.clone());
            std::mem::forget(self.stop.get_mut().take());
            std::mem::forget(std::mem::take(&mut self.shards));
            std::mem::forget(std::mem::take(self.threads.get_mut()));
        }
    }
}

/// Whether the error says that there is no such file.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl ShardSet {
    /// Makes the empty shards of a bucket in `folder`, which must exist.
    pub fn create(folder: &Path, specs: impl Iterator<Item = ShardSpec>) -> Result<(), OpenError> {
        let shared = StoreShared::new(1, 0, 16);
        for spec in specs {
            Shard::create(&folder.join(spec.id.folder()), spec, &shared)?;
        }
        Ok(())
    }

    /// Takes every shard below `folder` for as long as the claims are held, so that the folder may be moved or
    /// removed. Fails where one of them is open.
    pub(crate) fn claim(folder: &Path) -> Result<Vec<Claim>, OpenError> {
        let mut claims = Vec::new();
        for entry in fs::read_dir(folder).at("list", folder)? {
            let shard = entry.at("list", folder)?.path();
            match claim(&shard) {
                Ok(file) => claims.push(file),
                // No shard, or one that was never finished.
                Err(OpenError::Path(PathError { source, .. })) if is_absent(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(claims)
    }

    /// Opens the shards of a bucket and starts their threads. With `sealed_by` they are open for reading alone,
    /// and those who try to write are told that name.
    pub fn open(
        folder: &Path,
        specs: impl Iterator<Item = ShardSpec>,
        config: &ShardSetConfig,
        sealed_by: Option<&str>,
        logger: &Logger,
    ) -> Result<Self, OpenError> {
        let specs: Vec<ShardSpec> = specs.collect();
        let (flush_wake, flush_woken) = bounded(1);
        let (compact_wake, compact_woken) = bounded(1);
        let shard_config = ShardConfig {
            // With none, every write would wait for a recovery point that nothing makes due.
            commit_bytes: config.commit_bytes.max(1),
            commit_interval: config.commit_interval,
            flush_wake,
            compact_wake,
            points_kept: config.points_kept,
            point_interval: config.point_interval,
            shared: StoreShared::new(specs.len(), config.cache_bytes, config.open_files_max),
        };
        let shards = specs
            .into_iter()
            .map(|spec| {
                Shard::open(&folder.join(spec.id.folder()), spec, shard_config.clone(), sealed_by, logger)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for shard in &shards {
            // What dropped indexes left is swept from the start on; nothing else asks for work without a write.
            if shard.sweep().map_err(|fault| OpenError::Store { shard: shard.id(), fault })? {
                shard.wake_maintenance();
            }
        }
        let (stop, stopped) = fin();
        let (orders, ordered) = bounded(1);
        let set = Self {
            shards,
            orders,
            stop: Mutex::new(Some(stop)),
            threads: Mutex::default(),
            process: Process::current(),
        };
        let flusher = Flusher {
            shards: set.shards.clone(),
            woken: flush_woken,
            ordered,
            told: Told(BTreeMap::new()),
            logger: logger.clone(),
        };
        let compactor = Compactor {
            shards: set.shards.clone(),
            woken: compact_woken,
            told: Told(BTreeMap::new()),
            logger: logger.clone(),
        };
        let flush_stop = stopped.clone();
        let flush = set.watched("dm-flush", logger, move || flusher.run(&flush_stop));
        let compact = set.watched("dm-compact", logger, move || compactor.run(&stopped));
        let started = thread::spawn("dm-flush", flush).and_then(|flushing| {
            set.threads.lock().push(flushing);
            thread::spawn("dm-compact", compact)
        });
        match started {
            Ok(compacting) => set.threads.lock().push(compacting),
            Err(source) => {
                // The one that was started only waits, so it ends at once.
                let _ = set.close(&Until::within(START_FAILED_GRACE));
                let path = PathBuf::from(folder);
                let doing = "start the threads for";
                return Err(OpenError::Path(PathError { doing, path, source }));
            }
        }
        Ok(set)
    }

    /// The body of a thread whose panic ends all writing.
    fn watched<W: FnOnce() + Send + 'static>(
        &self,
        name: &'static str,
        logger: &Logger,
        work: W,
    ) -> impl FnOnce() + Send + 'static + use<W> {
        let (shards, logger) = (self.shards.clone(), logger.clone());
        move || {
            if let Err(panicked) = thread::catch(name, work) {
                let fault = panicked.clone().into();
                // All of them before the host's logger is called, which may be what panicked.
                for shard in &shards {
                    shard.refuse_all(&fault);
                }
                error!(logger, "a thread of the shards panicked; nothing is written any more"; "error" => %panicked);
            }
        }
    }

    /// The shards, in ascending order of their ids.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Makes a recovery point of every shard, on the thread that flushes: where the disk hangs, the caller's limit
    /// ends the call all the same. All are tried; the first failure is reported.
    pub fn commit(&self, until: &Until) -> Result<(), CommitError> {
        let outcomes: Vec<_> = self.shards.iter().map(|shard| self.commit_one(shard, until)).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    fn commit_one(&self, shard: &Shard, until: &Until) -> Result<bool, CommitError> {
        let stopped = |why| CommitError::Stopped { shard: shard.id(), why };
        let (made, outcome) = bounded(1);
        let timer = until.timer();
        select_biased! {
            // Where nobody takes it any more it is dropped, which is seen below.
            send(self.orders, Order { shard: shard.clone(), made }) -> _ => {}
            recv(until.cancel().fin().receiver()) -> _ => return Err(stopped(Stopped::Cancelled)),
            recv(timer) -> _ => return Err(stopped(Stopped::DeadlinePassed)),
        }
        match thread::recv(&outcome, until) {
            Ok(outcome) => outcome,
            Err(RecvError::Stopped(why)) => Err(stopped(why)),
            // The thread has ended, and the disk does not hang. If it has panicked, the shard says why.
            Err(RecvError::Closed) => shard.commit(until),
        }
    }

    /// Tells the threads to end, and waits for nothing.
    pub fn stop(&self) {
        *self.stop.lock() = None;
    }

    /// Ends the threads. What is uncommitted stays so. Gives back the names of the threads that still run when
    /// the limit ends; the call may then be repeated, by one caller at a time.
    pub fn close(&self, until: &Until) -> Result<(), Vec<String>> {
        self.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        let running = thread::join_all(threads, until);
        let names = thread::names(&running);
        self.threads.lock().extend(running);
        if names.is_empty() { Ok(()) } else { Err(names) }
    }
}

/// Does a piece of work for a shard. A panic of the engine breaks that shard off, whose writers are told; the
/// thread goes on for the others.
fn unpanicked<T>(shard: &Shard, thread: &str, work: impl FnOnce() -> T) -> Option<T> {
    thread::catch(thread, work).map_err(|panicked| shard.break_off(&panicked.into())).ok()
}

/// The failure of each shard that was told: the same one is not told again with every try.
struct Told<E>(BTreeMap<ShardId, E>);

impl<E: PartialEq> Told<E> {
    fn failed(&mut self, shard: ShardId, error: E, tell: impl FnOnce(&E)) {
        if self.0.get(&shard) != Some(&error) {
            tell(&error);
            self.0.insert(shard, error);
        }
    }

    /// Gives back whether it failed before.
    fn went_well(&mut self, shard: ShardId) -> bool {
        self.0.remove(&shard).is_some()
    }
}

struct Flusher {
    shards: Vec<Shard>,
    woken: Receiver<()>,
    ordered: Receiver<Order>,
    told: Told<CommitError>,
    logger: Logger,
}

impl Flusher {
    fn run(mut self, stop: &Fin) {
        loop {
            let failed = self.commit_due_shards();
            let next = self.shards.iter().filter_map(Shard::commit_due).min();
            let timer = match next {
                _ if failed => after(RETRY_PAUSE),
                Some(due) => after(due.saturating_duration_since(Instant::now())),
                None => never(),
            };
            select_biased! {
                recv(stop.receiver()) -> _ => return,
                recv(self.ordered) -> order => if let Ok(Order { shard, made }) = order {
                    let commit = || shard.commit(&Until::default());
                    if let Some(outcome) = unpanicked(&shard, "dm-flush", commit) {
                        // Whoever asked may have stopped waiting.
                        let _ = made.try_send(outcome);
                    }
                },
                recv(timer) -> _ => {}
                recv(if failed { never() } else { self.woken.clone() }) -> _ => {}
            }
        }
    }

    /// Gives back whether a commit failed.
    fn commit_due_shards(&mut self) -> bool {
        let mut failed = false;
        for shard in &self.shards {
            let shard_id = shard.id();
            match unpanicked(shard, "dm-flush", || shard.commit_if_due()) {
                Some(Err(error)) => {
                    failed = true;
                    self.told.failed(shard_id, error, |error| {
                        error!(self.logger, "no recovery point was made; it is tried again"; "error" => %error);
                    });
                }
                Some(Ok(true)) if self.told.went_well(shard_id) => {
                    info!(self.logger, "recovery points are made again"; "shard" => shard_id.0);
                }
                Some(Ok(_)) | None => {}
            }
        }
        failed
    }
}

struct Compactor {
    shards: Vec<Shard>,
    woken: Receiver<()>,
    told: Told<StoreFault>,
    logger: Logger,
}

impl Compactor {
    fn run(mut self, stop: &Fin) {
        loop {
            select_biased! {
                recv(stop.receiver()) -> _ => return,
                recv(self.woken) -> _ => {}
            }
            // In turns: one that has always something to do keeps no other waiting.
            let mut busy = self.shards.clone();
            while !busy.is_empty() && !stop.is_given() {
                busy.retain(|shard| !stop.is_given() && self.compact(shard));
                if self.woken.try_recv().is_ok() {
                    busy.clone_from(&self.shards);
                }
            }
        }
    }

    /// Gives back whether there may be more to do.
    fn compact(&mut self, shard: &Shard) -> bool {
        let shard_id = shard.id();
        match unpanicked(shard, "dm-compact", || shard.compact()) {
            Some(Ok(goes_on)) => {
                // As long as it goes on it may not have come to what failed.
                if !goes_on {
                    self.told.went_well(shard_id);
                }
                goes_on
            }
            Some(Err(fault)) => {
                self.told.failed(shard_id, fault, |fault| {
                    error!(self.logger, "a compaction failed; it is tried again after the next commit";
                        "shard" => shard_id.0, "error" => %fault);
                });
                false
            }
            None => false,
        }
    }
}
