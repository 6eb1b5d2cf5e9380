//! One shard: who may write to it, and when what was written becomes durable.
//!
//! A shard's folder belongs to one open shard at a time: its metadata file, which is never replaced, is locked
//! for as long as anything holds the shard, a scan included.

use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, TrySendError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use slog::{Logger, error};

use crate::durable::{self, AtPath, Claim};
use crate::event::{Generation, Seqno, VbId};
use crate::thread::{self, Fin, FinHolder, Process, Stopped, Until, fin};
use crate::timestamp::TsVbuuid;

use super::batch::{Change, WriteBatch};
use super::engines::{self, StoreShared};
use super::error::{ApplyError, Forked, InstanceError, Later, OpenError, ReadError, Refused};
use super::gate::Gate;
use super::merging::MergeHolds;
use super::snapshot::ShardSnapshot;
use super::store::{ShardFile, ShardStore, StoreFault};
use super::turn::take_turn;
use super::{InstId, ShardId, StoreKind};

/// Metadata file of a shard; written last when a shard is made.
const SPEC_FILE: &str = "shard.meta";
const SPEC_KIND: &str = "shard";
const SPEC_VERSION: u32 = 1;
/// How long a batch in flight is waited for before instances join; whoever asks does so for one vbucket after another.
const JOIN_PATIENCE: Duration = Duration::from_millis(2);

/// What a shard is; fixed when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSpec {
    /// Number of the shard.
    pub id: ShardId,
    /// Number of shards of the bucket.
    pub shards: u16,
    /// Number of vbuckets of the bucket.
    pub vbuckets: u16,
    /// Storage engine.
    pub store: StoreKind,
    /// The bucket's identity, so that no shard is opened in another bucket's place.
    pub bucket_uuid: u64,
}

impl ShardSpec {
    /// The shards of a bucket, in ascending order of their ids.
    pub fn all(shards: u16, vbuckets: u16, store: StoreKind, bucket_uuid: u64) -> impl Iterator<Item = Self> {
        (0..shards).map(move |id| Self { id: ShardId(id), shards, vbuckets, store, bucket_uuid })
    }
}

/// When a shard makes recovery points, and how it wakes the threads that do it.
#[derive(Clone)]
pub(super) struct ShardConfig {
    pub(super) commit_bytes: u64,
    pub(super) commit_interval: Duration,
    pub(super) flush_wake: Sender<()>,
    pub(super) compact_wake: Sender<()>,
    pub(super) points_kept: usize,
    pub(super) point_interval: Duration,
    pub(super) shared: StoreShared,
}

/// Where a new instance begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceStart {
    /// Before the first change: it is to be filled by streams from seqno zero.
    Zero,
    /// At the shard's furthest position of each vbucket: it is to be filled by documents that come again as new
    /// changes, as they do from files.
    AtShard,
}

/// Whether instances that another data path fills move with the others in a vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// They do not, or do not any more.
    No,
    /// They do, from a position on that the others have not reached.
    Ahead,
    /// They do, and stand where the others stand.
    Level,
}

/// A shard that is open. Clones are the same shard.
#[derive(Clone)]
pub struct Shard(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) spec: ShardSpec,
    folder: PathBuf,
    pub(super) logger: Logger,
    pub(super) config: ShardConfig,
    pub(super) store: Box<dyn ShardStore>,
    /// Held by whoever makes a recovery point.
    pub(super) commit_turn: Mutex<()>,
    /// Held by whoever compacts.
    pub(super) compact_turn: Mutex<()>,
    /// Held by whoever writes, also over file access: a batch, a change of instances, a cut.
    pub(super) write_turn: Mutex<()>,
    /// Changed in the writer's turn alone, and held for a moment: who looks waits for no file.
    pub(super) gate: Mutex<Gate>,
    pub(super) state: Mutex<State>,
    applied_changes: AtomicU64,
    pub(super) commits: AtomicU64,
    /// Locked; the last field, so that it is given back when everything else is gone.
    claim: Claim,
}

/// What anyone may look at, for a moment.
pub(super) struct State {
    pub(super) access: Access,
    pub(super) next_token: u64,
    /// The engine failed in the middle of a batch: nothing may be applied or committed any more.
    pub(super) broken: Option<StoreFault>,
    /// The last flush failed; the next one may succeed.
    pub(super) flush_fault: Option<StoreFault>,
    /// Dropped when a recovery point was made, for those who wait for room.
    pub(super) committed: Option<(FinHolder, Fin)>,
    /// Snapshots and scans that ended at a bad time: with them files may go from the disk.
    pub(super) retired: Vec<Box<dyn Send>>,
    /// Background work was put off because of the lock.
    pub(super) merge_was_held: bool,
    /// How many ask that no merge begins.
    pub(super) merge_holds: MergeHolds,
    /// Whether the thread that merges has something to do, as far as it knows.
    pub(super) merging: bool,
    watchers: Vec<Sender<()>>,
}

pub(super) enum Access {
    Open,
    Locked(Grant),
    Sealed { by: String },
}

/// One lock that was granted.
pub(super) struct Grant {
    pub(super) token: u64,
    pub(super) owner: String,
    pub(super) since: Instant,
    pub(super) unlocked: Fin,
    /// Dropped with the grant.
    pub(super) _holder: FinHolder,
}

/// A look at a shard.
#[derive(Debug, Clone, Serialize)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Bytes on disk, those of kept recovery points included.
    pub disk_bytes: u64,
    /// Bytes in memory, roughly, without the caches that shards share.
    pub memory_bytes: u64,
    /// Roughly the bytes that a crash would lose, which come again from the source.
    pub uncommitted_bytes: u64,
    /// Changes that were applied since the shard was opened.
    pub applied_changes: u64,
    /// Recovery points that were made since the shard was opened.
    pub commits: u64,
    /// Who holds the lock, and for how long, in milliseconds.
    pub locked_by: Option<(String, u64)>,
}

impl Shard {
    /// Makes an empty shard in a folder that must not exist yet.
    pub(super) fn create(folder: &Path, spec: ShardSpec, shared: &StoreShared) -> Result<(), OpenError> {
        std::fs::create_dir(folder).at("create the folder", folder)?;
        let failed = |fault| OpenError::Store { shard: spec.id, fault };
        engines::create(spec.store, folder, shared).map_err(failed)?;
        let sealed = durable::seal(SPEC_KIND, SPEC_VERSION, &spec)
            .map_err(|e| failed(StoreFault::new("describe the shard", &e)))?;
        durable::replace(&folder.join(SPEC_FILE), &sealed)?;
        Ok(())
    }

    /// Opens the shard that `spec` describes.
    pub(super) fn open(
        folder: &Path,
        spec: ShardSpec,
        config: ShardConfig,
        sealed_by: Option<&str>,
        logger: &Logger,
    ) -> Result<Self, OpenError> {
        let path = folder.join(SPEC_FILE);
        let claim = claim(folder)?;
        let sealed = std::fs::read(&path).at("read", &path)?;
        let found: ShardSpec = durable::unseal(SPEC_KIND, SPEC_VERSION, &sealed)
            .map_err(|why| OpenError::Spec { shard: spec.id, path: path.clone(), why })?;
        if found != spec {
            return Err(OpenError::Foreign { shard: spec.id, path });
        }
        let fault = |fault| OpenError::Store { shard: spec.id, fault };
        let store = engines::open(spec.store, folder, &config.shared).map_err(fault)?;
        let gate = load_gate(spec, store.as_ref()).map_err(fault)?;
        Ok(Self(Arc::new(Inner {
            spec,
            folder: folder.to_owned(),
            logger: logger.new(slog::o!("shard" => spec.id.0)),
            config,
            store,
            commit_turn: Mutex::new(()),
            compact_turn: Mutex::new(()),
            write_turn: Mutex::new(()),
            gate: Mutex::new(gate),
            state: Mutex::new(State {
                access: sealed_by.map_or(Access::Open, |by| Access::Sealed { by: by.to_owned() }),
                next_token: 1,
                broken: None,
                flush_fault: None,
                committed: None,
                retired: Vec::new(),
                merge_was_held: false,
                merge_holds: MergeHolds::default(),
                merging: false,
                watchers: Vec::new(),
            }),
            applied_changes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            claim,
        })))
    }

    /// Fails in a fork of the process that opened the shard.
    pub(super) fn refuse_fork(&self) -> Result<(), Forked> {
        let (owner, here) = (self.0.claim.process(), Process::current());
        if owner == here {
            return Ok(());
        }
        Err(Forked { shard: self.id(), opened_by: owner.id(), here: here.id() })
    }

    /// The shard's number.
    pub fn id(&self) -> ShardId {
        self.0.spec.id
    }

    /// Applies a batch as a whole, or not at all. Instances skip changes at or below their own position. The
    /// batch comes back empty. This waits for other writers of the shard, and for nothing else: where it would
    /// have to, the batch comes back with a signal.
    pub fn try_apply(&self, mut batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, Refused> {
        self.refuse_fork().map_err(|forked| Refused::Never(forked.into()))?;
        let turn = self.0.write_turn.lock();
        let mut gate = self.0.gate.lock();
        if let Err(refusal) = self.admit(&gate) {
            return Err(match refusal {
                Refusal::Later(why, ready) => Refused::Later { batch, why, ready },
                Refusal::Never(error) => Refused::Never(error),
            });
        }
        gate.check(&batch).map_err(Refused::Never)?;
        gate.begin(&batch);
        let new = latest(batch.changes().filter_map(|change| gate.admit(&batch, change)));
        drop(gate);
        let applied = new.len() as u64;
        let outcome = caught(|| self.0.store.apply(&new));
        drop(new);
        match outcome {
            Ok(bytes) => {
                let mut gate = self.0.gate.lock();
                gate.advance(&batch);
                self.note_write(&mut gate, bytes);
            }
            Err(fault) => {
                self.break_off(&fault);
                return Err(Refused::Never(ApplyError::Store { shard: self.id(), fault }));
            }
        }
        drop(turn);
        self.0.applied_changes.fetch_add(applied, Ordering::Relaxed);
        self.notify_watchers();
        batch.clear();
        Ok(batch)
    }

    /// Ends all writing and committing until the shard is opened again.
    pub(super) fn break_off(&self, fault: &StoreFault) {
        self.refuse_all(fault);
        error!(self.0.logger, "a write failed half-way; nothing is committed any more"; "error" => %fault);
    }

    /// The same, told to nobody.
    pub(super) fn refuse_all(&self, fault: &StoreFault) {
        let mut state = self.0.state.lock();
        state.broken.get_or_insert_with(|| fault.clone());
        state.committed = None;
    }

    /// Counts a write, and wakes the flushing thread when it has to arm its timer or to commit.
    pub(super) fn note_write(&self, gate: &mut Gate, bytes: u64) {
        if gate.note_write(bytes) || gate.uncommitted_bytes >= self.0.config.commit_bytes {
            let _ = self.0.config.flush_wake.try_send(());
        }
    }

    /// Whether a batch may be applied now.
    fn admit(&self, gate: &Gate) -> Result<(), Refusal> {
        let mut state = self.0.state.lock();
        let shard = self.id();
        if let Some(fault) = state.broken.as_ref().or(state.flush_fault.as_ref()) {
            return Err(Refusal::Never(ApplyError::Store { shard, fault: fault.clone() }));
        }
        match &state.access {
            Access::Sealed { by } => {
                return Err(Refusal::Never(ApplyError::Sealed { shard, by: by.clone() }));
            }
            Access::Locked(grant) => {
                let why = Later::Locked { owner: grant.owner.clone() };
                return Err(Refusal::Later(why, grant.unlocked.clone()));
            }
            Access::Open => {}
        }
        if gate.is_full(self.0.config.commit_bytes) {
            let (_, committed) = state.committed.get_or_insert_with(fin);
            return Err(Refusal::Later(Later::Full, committed.clone()));
        }
        Ok(())
    }

    fn notify_watchers(&self) {
        self.0
            .state
            .lock()
            .watchers
            .retain(|watcher| !matches!(watcher.try_send(()), Err(TrySendError::Disconnected(()))));
    }

    /// From now on a message is sent into `wake` after each batch, where there is room, for as long as somebody
    /// holds its receiver. One may come without a batch, too.
    pub fn watch(&self, wake: Sender<()>) {
        // Those that are gone are known by a message alone, and without batches none is sent.
        self.notify_watchers();
        self.0.state.lock().watchers.push(wake);
    }

    /// The positions of an instance, or `None` where there is no such instance.
    pub fn positions(&self, inst: InstId) -> Option<TsVbuuid> {
        self.0.gate.lock().positions(inst)
    }

    /// The instances of the shard.
    pub fn instances(&self) -> Vec<InstId> {
        self.0.gate.lock().instances()
    }

    /// Whether every instance has reached all the positions of `ts` that are of this shard's vbuckets.
    pub fn covers(&self, ts: &TsVbuuid) -> bool {
        self.0.gate.lock().covers(ts)
    }

    /// From now on only batches of `generation` are applied for those of `vbs` that are of this shard. Waits for the
    /// batch in flight while the limit lasts; then nothing changes.
    pub fn install_generation(
        &self,
        vbs: impl IntoIterator<Item = VbId>,
        generation: Generation,
        until: &Until,
    ) -> Result<(), Stopped> {
        let _turn = take_turn(&self.0.write_turn, until)?;
        let mut gate = self.0.gate.lock();
        vbs.into_iter().for_each(|vb| gate.install_generation(vb, generation));
        Ok(())
    }

    /// Lets instances that another data path fills be moved in a vbucket, from now on, by the batches that name them
    /// as [joining](WriteBatch::joining). `false`, and nothing changes, unless they stand where all of `members`
    /// stand, or further on the same branch; those have reached `from`; and nobody is within an out-of-order
    /// snapshot. The batches after that continue what the instances have, and changes that they have already are
    /// passed over, so nothing is missing and nothing counts twice.
    ///
    /// Instances at the same seqno on two branches may join: whoever calls knows that both are in one history.
    ///
    /// A batch in flight is waited for a moment: where a disk hangs this is `false`, too.
    ///
    /// It ends by [`Shard::part`], when the shard is rolled back, and where a stream that begins before the instances'
    /// position is on another branch than they: then nobody has said that what they have is on it.
    pub fn join(&self, vb: VbId, joining: &[InstId], members: &[InstId], from: Seqno) -> bool {
        let turn = self.0.write_turn.try_lock_for(JOIN_PATIENCE);
        turn.is_some_and(|_turn| self.0.gate.lock().join(vb, joining, members, from))
    }

    /// Ends what [`Shard::join`] began, in all vbuckets. Waits for the batch in flight while the limit lasts; then
    /// nothing changes.
    pub fn part(&self, instances: &[InstId], until: &Until) -> Result<(), Stopped> {
        let _turn = take_turn(&self.0.write_turn, until)?;
        self.0.gate.lock().part(instances);
        Ok(())
    }

    /// Whether instances have joined others in a vbucket.
    pub fn joined(&self, vb: VbId, joining: &[InstId], members: &[InstId]) -> Joined {
        self.0.gate.lock().joined(vb, joining, members)
    }

    /// Adds an empty instance; one that is there stays as it is. It lasts from the next recovery point on.
    pub fn create_instance(&self, inst: InstId, start: InstanceStart) -> Result<(), InstanceError> {
        self.refuse_fork()?;
        let doing = "create an index";
        let _turn = self.0.write_turn.lock();
        if self.0.gate.lock().has_instance(inst) {
            return Ok(());
        }
        self.refuse_if_locked(doing)?;
        self.0.store.add_instance(inst).map_err(|fault| InstanceError::Store {
            doing,
            shard: self.id(),
            fault,
        })?;
        let mut gate = self.0.gate.lock();
        gate.add_instance(inst, start);
        self.note_write(&mut gate, 1);
        Ok(())
    }

    /// Removes an instance. It is gone for good from the next recovery point on; its entries are removed bit by
    /// bit afterwards, by the thread that compacts.
    pub fn drop_instance(&self, inst: InstId) -> Result<(), InstanceError> {
        self.refuse_fork()?;
        let doing = "drop an index";
        let _turn = self.0.write_turn.lock();
        self.refuse_if_locked(doing)?;
        let mut gate = self.0.gate.lock();
        if gate.remove_instance(inst) {
            self.note_write(&mut gate, 1);
            drop(gate);
            self.0.store.remove_instance(inst).map_err(|fault| InstanceError::Store {
                doing,
                shard: self.id(),
                fault,
            })?;
            self.wake_maintenance();
        }
        Ok(())
    }

    fn refuse_if_locked(&self, doing: &'static str) -> Result<(), InstanceError> {
        let owner = match &self.0.state.lock().access {
            Access::Open => return Ok(()),
            Access::Locked(grant) => grant.owner.clone(),
            Access::Sealed { by } => by.clone(),
        };
        Err(InstanceError::Locked { doing, shard: self.id(), owner })
    }

    /// A snapshot at a batch boundary.
    pub fn snapshot(&self, until: &Until) -> Result<ShardSnapshot, ReadError> {
        self.refuse_fork()?;
        let shard = self.id();
        let _turn = take_turn(&self.0.write_turn, until).map_err(|why| ReadError::Stopped { shard, why })?;
        let store = self.0.store.snapshot().map_err(|fault| ReadError::Store { shard, fault })?;
        Ok(ShardSnapshot::new(store, self.clone()))
    }

    /// The files of the newest recovery point, the shard's metadata first.
    pub(super) fn files(&self) -> Result<Vec<ShardFile>, StoreFault> {
        let mut files = vec![self.spec_file()?];
        files.extend(self.0.store.files()?);
        Ok(files)
    }

    /// The shard's metadata, which never changes.
    pub(super) fn spec_file(&self) -> Result<ShardFile, StoreFault> {
        let path = self.0.folder.join(SPEC_FILE);
        let meta =
            std::fs::metadata(&path).map_err(|e| StoreFault::at("list the shard's files", &path, &e))?;
        Ok(ShardFile { name: SPEC_FILE.to_owned(), path, length_bytes: meta.len() })
    }

    /// A look at the shard.
    pub fn status(&self) -> ShardStatus {
        let uncommitted_bytes = self.0.gate.lock().volatile_bytes();
        let locked_by = match &self.0.state.lock().access {
            Access::Locked(grant) => {
                let held_ms = u64::try_from(grant.since.elapsed().as_millis()).unwrap_or(u64::MAX);
                Some((grant.owner.clone(), held_ms))
            }
            Access::Open | Access::Sealed { .. } => None,
        };
        let size = self.0.store.size();
        ShardStatus {
            shard: self.id(),
            disk_bytes: size.disk_bytes,
            memory_bytes: size.memory_bytes,
            uncommitted_bytes,
            applied_changes: self.0.applied_changes.load(Ordering::Relaxed),
            commits: self.0.commits.load(Ordering::Relaxed),
            locked_by,
        }
    }
}

/// The last change of each document in each instance, in ascending order of both. It says what the document's
/// entries are from then on, whatever came before it in the batch; and stores are quicker in the order of keys.
fn latest<'a>(changes: impl Iterator<Item = Change<'a>>) -> Vec<Change<'a>> {
    let mut changes: Vec<Change<'a>> = changes.collect();
    // Stable: changes of one document stay in the order of their seqnos.
    changes.sort_by(|a, b| (a.inst, a.doc_id).cmp(&(b.inst, b.doc_id)));
    changes.dedup_by(|later, kept| {
        let is_same = (later.inst, later.doc_id) == (kept.inst, kept.doc_id);
        if is_same {
            *kept = *later;
        }
        is_same
    });
    changes
}

fn load_gate(spec: ShardSpec, store: &dyn ShardStore) -> Result<Gate, StoreFault> {
    let loaded = store.load()?;
    let unmoved: Vec<InstId> =
        loaded.iter().filter(|(_, positions)| positions.is_empty()).map(|(inst, _)| *inst).collect();
    let mut gate = Gate::load(spec, loaded);
    for inst in unmoved {
        let all = (Bound::Unbounded, Bound::Unbounded);
        // An out-of-order snapshot may have left entries without a position.
        if store.snapshot()?.scan(inst, &all).next().is_none() {
            gate.note_empty(inst);
        }
    }
    if let Some(newest) = store.points()?.last() {
        gate.note_newest_point(newest);
    }
    Ok(gate)
}

enum Refusal {
    Later(Later, Fin),
    Never(ApplyError),
}

/// Takes the folder of a shard for as long as the claim is held.
pub(super) fn claim(folder: &Path) -> Result<Claim, OpenError> {
    let path = folder.join(SPEC_FILE);
    let file = File::open(&path).at("open", &path)?;
    Claim::take(file, &path)?.map_err(|_| OpenError::InUse { folder: folder.to_owned() })
}

/// Does a piece of work of the engine that changes something. Its panic is a fault like others.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, StoreFault>) -> Result<T, StoreFault> {
    let here = std::thread::current();
    thread::catch(here.name().unwrap_or("of the host"), work)?
}
