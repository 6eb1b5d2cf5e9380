//! What the benches of shards measure: one shard of ours on each of its stores, and `fjall` with the same work.
//!
//! A document has one key in one index and an id of 16 bytes. Each document's old key is looked up in the back index,
//! removed, and the new one put in its place.

use std::fmt::Write as _;
use std::hint::black_box;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use dormouse::event::{Seqno, VbId, VbUuid};
use dormouse::shard::batch::{Advance, Window, WriteBatch};
use dormouse::shard::{InstId, InstanceStart, ShardSet, ShardSetConfig, ShardSpec, StoreKind};
use dormouse::thread::Until;
use dormouse::timestamp::Position;
use rustix::time::{ClockId, clock_gettime};
use slog::{Discard, Logger, o};
use tempfile::TempDir;

/// Documents of a batch.
pub(crate) const BATCH_DOCUMENTS: u32 = 1000;
/// Documents between two recovery points.
pub(crate) const COMMIT_DOCUMENTS: u32 = 50_000;
const INDEX: InstId = InstId(1);
/// Bytes of a key where nothing else is asked for.
pub(crate) const KEY_BYTES: usize = 24;
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// A document's number, and the number that its key is made of; none where it is deleted.
pub(crate) type Write = (u32, Option<u32>);

/// Numbers that look random and come each once.
fn shuffled(n: u32) -> u32 {
    n.wrapping_mul(0x9e37_79b1).rotate_left(13).wrapping_mul(0x85eb_ca6b)
}

fn doc_id(n: u32) -> String {
    format!("doc-{:012x}", shuffled(n))
}

/// A key that compresses badly beyond its first bytes.
fn key(n: u32, bytes: usize) -> String {
    let mut key = format!("key-{:010x}-{:09}", shuffled(n ^ 0x5555), n % 1_000_000_000);
    let mut part = n;
    while key.len() < bytes {
        part = shuffled(part ^ 0x1234_5677);
        let _ = write!(key, "{part:08x}");
    }
    key.truncate(bytes.max(KEY_BYTES));
    key
}

/// What is measured: one shard of ours, or the same on another engine.
pub(crate) trait Engine {
    /// One batch of documents, each once.
    fn write(&mut self, writes: &[Write]);
    /// Everything that was written is durable.
    fn commit(&mut self);
    /// Number of entries from the key of `from` on, at most `limit`.
    fn scan(&self, from: Option<u32>, limit: usize) -> usize;
}

/// One shard.
pub(crate) struct Ours {
    pub(crate) set: ShardSet,
    key_bytes: usize,
    seqno: u64,
    spare: Option<Box<WriteBatch>>,
}

fn config() -> ShardSetConfig {
    // Recovery points are made when they are asked for.
    ShardSetConfig {
        commit_bytes: 1 << 40,
        commit_interval: Duration::from_secs(3600),
        cache_bytes: CACHE_BYTES,
        ..ShardSetConfig::default()
    }
}

impl Ours {
    /// An empty shard that gets keys of `key_bytes`.
    pub(crate) fn create(kind: StoreKind, folder: &Path, key_bytes: usize) -> Self {
        ShardSet::create(folder, ShardSpec::all(1, 1, kind, 1)).unwrap();
        let ours = Self::open(kind, folder, key_bytes);
        ours.set.shards()[0].create_instance(INDEX, InstanceStart::Zero).unwrap();
        ours
    }

    pub(crate) fn open(kind: StoreKind, folder: &Path, key_bytes: usize) -> Self {
        let logger = Logger::root(Discard, o!());
        let set = ShardSet::open(folder, ShardSpec::all(1, 1, kind, 1), &config(), None, &logger).unwrap();
        let position = set.shards()[0].positions(INDEX).and_then(|ts| ts.get(VbId(0)));
        Self { set, key_bytes, seqno: position.unwrap_or_default().seqno.0, spare: None }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.set.close(&Until::default()).unwrap();
    }
}

impl Engine for Ours {
    fn write(&mut self, writes: &[Write]) {
        let mut batch = self.spare.take().unwrap_or_default();
        batch.instances = [INDEX].into();
        let from = Seqno(self.seqno);
        for (document, key_of) in writes {
            self.seqno += 1;
            let id = batch.add_document(doc_id(*document).as_bytes());
            let key = key_of.map(|n| key(n, self.key_bytes));
            batch.add_change(INDEX, (VbId(0), Seqno(self.seqno)), id, key.as_ref().map(String::as_bytes));
        }
        let to = Position::at(VbUuid(1), Seqno(self.seqno));
        batch.advances.push(Advance { vb: VbId(0), from, to, window: Window::Ordered });
        self.spare = Some(self.set.shards()[0].try_apply(batch).unwrap());
    }

    fn commit(&mut self) {
        self.set.commit(&Until::default()).unwrap();
    }

    fn scan(&self, from: Option<u32>, limit: usize) -> usize {
        let low = from.map_or(Bound::Unbounded, |n| Bound::Included(key(n, self.key_bytes).into_bytes()));
        let snapshot = self.set.shards()[0].snapshot(&Until::default()).unwrap();
        let entries = snapshot.scan(INDEX, &(low, Bound::Unbounded)).take(limit);
        entries.fold(0, |count, entry| {
            black_box(entry.unwrap());
            count + 1
        })
    }
}

struct Fjall {
    database: fjall::Database,
    entries: fjall::Keyspace,
    back: fjall::Keyspace,
    positions: fjall::Keyspace,
    seqno: u64,
}

impl Fjall {
    fn create(folder: &Path) -> Self {
        let database = fjall::Database::builder(folder).cache_size(CACHE_BYTES).open().unwrap();
        let open = |name| database.keyspace(name, fjall::KeyspaceCreateOptions::default).unwrap();
        let (entries, back, positions) = (open("entries"), open("back"), open("positions"));
        Self { database, entries, back, positions, seqno: 0 }
    }
}

impl Engine for Fjall {
    fn write(&mut self, writes: &[Write]) {
        let mut batch = self.database.batch();
        for (document, key_of) in writes {
            self.seqno += 1;
            let id = doc_id(*document);
            let entry = |key: &[u8]| [key, id.as_bytes()].concat();
            let old = self.back.get(&id).unwrap();
            let new = key_of.map(|n| key(n, KEY_BYTES));
            if let Some(old) = &old {
                batch.remove(&self.entries, entry(old));
            }
            match new {
                Some(new) => {
                    batch.insert(&self.entries, entry(new.as_bytes()), []);
                    batch.insert(&self.back, id.as_bytes(), new.as_bytes());
                }
                None => batch.remove(&self.back, id.as_bytes()),
            }
        }
        batch.insert(&self.positions, 0_u16.to_be_bytes(), self.seqno.to_be_bytes());
        batch.commit().unwrap();
    }

    fn commit(&mut self) {
        self.database.persist(fjall::PersistMode::SyncAll).unwrap();
    }

    fn scan(&self, from: Option<u32>, limit: usize) -> usize {
        let snapshot = self.database.snapshot();
        let low = from.map(|n| key(n, KEY_BYTES)).unwrap_or_default();
        let entries = fjall::Readable::range(&snapshot, &self.entries, low.as_bytes()..).take(limit);
        entries.fold(0, |count, entry| {
            black_box(entry.key().unwrap());
            count + 1
        })
    }
}

/// Ours and the other.
pub(crate) const SUBJECTS: [&str; 4] = ["lsm", "memdb", "cow", "fjall"];

/// Which store of ours it is, if it is one.
pub(crate) fn kind(subject: &str) -> Option<StoreKind> {
    serde_json::from_str(&format!("{subject:?}")).ok()
}

/// An empty engine, with the folder that it lies in.
pub(crate) fn fresh(subject: &str) -> (Box<dyn Engine>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let engine: Box<dyn Engine> = match kind(subject) {
        Some(kind) => Box::new(Ours::create(kind, dir.path(), KEY_BYTES)),
        None => Box::new(Fjall::create(dir.path())),
    };
    (engine, dir)
}

/// Batch by batch, with recovery points in between and one at the end.
pub(crate) fn write_all(engine: &mut dyn Engine, writes: impl Iterator<Item = Write>) {
    let mut batch = Vec::with_capacity(BATCH_DOCUMENTS as usize);
    let mut uncommitted = 0;
    for write in writes {
        batch.push(write);
        uncommitted += 1;
        if batch.len() == BATCH_DOCUMENTS as usize {
            engine.write(&batch);
            batch.clear();
        }
        if uncommitted == COMMIT_DOCUMENTS {
            engine.commit();
            uncommitted = 0;
        }
    }
    engine.write(&batch);
    engine.commit();
}

/// CPU time of the process so far, all threads together.
pub(crate) fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap())
}
