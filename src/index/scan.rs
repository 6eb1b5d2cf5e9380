//! Scans: the entries of an index, merged over all shards in key order.
//!
//! A scan takes one snapshot of each shard, in ascending order of their ids, all before its first entry and each
//! at a batch boundary. A document's entries lie in one shard, so no document is seen twice or in two versions.
//! Entries stream: memory does not grow with their number.
//!
//! An open scan keeps files and old versions of entries from being removed, so it ends when it is too old: its own
//! calls look at its age, and [`OpenScans::end_old`] ends those that nobody calls. A scan is counted from before it
//! looks at anything: whoever removes files asks [`OpenScans::close_if_none`] first, after which no scan begins.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use parking_lot::Mutex;
use serde_json::Value;

use crate::event::{Seqno, VbId};
use crate::shard::store::StoreFault;
use crate::shard::{InstId, ReadError, Shard, ShardId, ShardScan, ShardSnapshot};
use crate::thread::{Failure, FailureKind, RecvError, Stopped, Until, recv};

use super::collate::{CollateError, decode_parts, split_parts};
use super::query::{Cursor, QueryError, ScanQuery, Stretch, beyond};

/// One entry of an index.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanEntry {
    /// The parts of the key; a missing one is null.
    pub key: Vec<Value>,
    /// Id of the document.
    pub id: String,
}

/// Why a scan did not begin, or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The caller's limit ended first.
    #[error("cannot go on scanning: {0}")]
    Stopped(#[from] Stopped),
    /// The index cannot be asked for this.
    #[error("cannot scan the index: {0}")]
    Query(#[from] QueryError),
    /// The index did not come to cover what it was to.
    #[error(
        "cannot scan the index at seqno {wanted} of vbucket {vb}: it has come to {reached}, and {why}; see that its \
         source is followed, or wait longer"
    )]
    Behind {
        /// The first vbucket that is behind.
        vb: VbId,
        /// The change that the index was to cover.
        wanted: Seqno,
        /// The last one that it covers.
        reached: Seqno,
        /// What ended the wait.
        why: Stopped,
    },
    /// The scan was open for too long.
    #[error(
        "cannot go on scanning: the scan is older than {}, and the files that it holds are to go; begin another one \
         after the cursor of its last entry", humantime::format_duration(*max_age)
    )]
    TooOld {
        /// The age that a scan may have.
        max_age: Duration,
    },
    /// No snapshot of a shard could be taken.
    #[error(transparent)]
    Snapshot(#[from] ReadError),
    /// A shard cannot be read.
    #[error(
        "cannot scan shard {shard}: {fault}; if a file is damaged, bring the bucket back with `resume`, after a `drop` or \
         into another data folder"
    )]
    Store {
        /// The shard.
        shard: ShardId,
        /// What its engine said.
        fault: StoreFault,
    },
    /// An entry is not what an index writes.
    #[error(
        "cannot read an entry of shard {shard}: {error}; bring the bucket back with `resume`, after a `drop` or into \
         another data folder"
    )]
    Entry {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        error: CollateError,
    },
}

impl Failure for ScanError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped(why) | Self::Behind { why, .. } => why.kind(),
            Self::Snapshot(error) => error.kind(),
            _ => FailureKind::Lasting,
        }
    }
}

/// How often a scan asks whether its limit has ended, in entries.
const CHECK_EVERY: u32 = 1024;

/// Entries of a group that are stepped over before the next group is sought: a seek costs as much as some steps.
const STEPS_BEFORE_SEEK: usize = 16;

/// What a scan holds.
enum Held {
    /// Nothing yet.
    Beginning,
    Open(Merge),
    /// Nothing any more, as it was too old.
    Ended,
}

/// The scans that are open, and the age that they may have.
pub struct OpenScans {
    max_age: Duration,
    listed: Mutex<Listed>,
}

#[derive(Default)]
struct Listed {
    is_closed: bool,
    scans: Vec<(Instant, Weak<Mutex<Held>>)>,
}

/// A scan that is about to begin, and counts as open.
pub struct ScanPlace {
    held: Arc<Mutex<Held>>,
    max_age: Duration,
}

impl OpenScans {
    /// None yet. One that is older than `max_age` is ended.
    pub fn new(max_age: Duration) -> Self {
        Self { max_age, listed: Mutex::default() }
    }

    /// The place of a scan, to be taken before anything is looked at that the scan depends on. `None` where no scan
    /// may begin any more.
    pub fn enter(&self) -> Option<ScanPlace> {
        self.end_old();
        let mut listed = self.listed.lock();
        if listed.is_closed {
            return None;
        }
        let held = Arc::new(Mutex::new(Held::Beginning));
        listed.scans.push((Instant::now(), Arc::downgrade(&held)));
        Some(ScanPlace { held, max_age: self.max_age })
    }

    /// Lets no scan begin from now on, unless some are open, whose number is given back.
    pub fn close_if_none(&self) -> Result<(), usize> {
        let mut listed = self.listed.lock();
        listed.scans.retain(|(_, held)| held.strong_count() > 0);
        match listed.scans.len() {
            0 => listed.is_closed = true,
            open => return Err(open),
        }
        Ok(())
    }

    /// Lets scans begin again.
    pub fn reopen(&self) {
        self.listed.lock().is_closed = false;
    }

    /// Ends those that are too old, but none that is just being read: that one looks at its age itself.
    pub fn end_old(&self) {
        let max_age = self.max_age;
        self.listed.lock().scans.retain(|(began, held)| {
            let Some(held) = held.upgrade() else { return false };
            if began.elapsed() > max_age {
                let Some(mut held) = held.try_lock() else { return true };
                if let Held::Open(_) = *held {
                    *held = Held::Ended;
                }
                return matches!(*held, Held::Beginning);
            }
            true
        });
    }

    /// Number of scans that hold a snapshot, or are about to.
    pub fn count(&self) -> usize {
        self.listed.lock().scans.iter().filter(|(_, held)| held.strong_count() > 0).count()
    }
}

/// Which entries of an instance a scan goes through, and how.
struct Plan {
    inst: InstId,
    components: usize,
    stretches: Vec<Stretch>,
    reverse: bool,
    distinct: Option<usize>,
    /// Asked now and then, and between stretches that hold nothing: there may be many.
    until: Until,
}

/// A shard's part of a scan.
struct Lane {
    shard: ShardId,
    /// Gone when the last stretch was begun and no place will be sought.
    snapshot: Option<ShardSnapshot>,
    entries: Option<ShardScan>,
    /// Stretches that were begun.
    begun: usize,
    head: Option<Vec<u8>>,
}

/// What the lanes have left.
struct Merge {
    plan: Plan,
    lanes: Vec<Lane>,
    /// The last entry that was given.
    last: Vec<u8>,
}

/// A running scan. It may be dropped at any time.
pub struct Scan {
    held: Arc<Mutex<Held>>,
    began: Instant,
    max_age: Duration,
    since_check: u32,
    ended: bool,
    has_last: bool,
}

impl Scan {
    /// Begins a scan of an instance whose keys have `components` parts, after a wait for the seqnos that the query
    /// names.
    pub fn begin(
        shards: &[Shard],
        (inst, components): (InstId, usize),
        query: &ScanQuery,
        place: ScanPlace,
        until: &Until,
    ) -> Result<Self, ScanError> {
        let stretches = query.stretches(components)?;
        wait_for(shards, inst, &query.at_least, until)?;
        let snapshots: Vec<(ShardId, ShardSnapshot)> = shards
            .iter()
            .map(|shard| Ok((shard.id(), shard.snapshot(until)?)))
            .collect::<Result<_, ReadError>>()?;
        let ScanQuery { reverse, distinct, .. } = *query;
        let plan = Plan { inst, components, stretches, reverse, distinct, until: until.clone() };
        let mut lanes = Vec::with_capacity(snapshots.len());
        for (shard, snapshot) in snapshots {
            let mut lane = Lane { shard, snapshot: Some(snapshot), entries: None, begun: 0, head: None };
            lane.step(&plan, None)?;
            lanes.push(lane);
        }
        let ScanPlace { held, max_age } = place;
        *held.lock() = Held::Open(Merge { plan, lanes, last: Vec::new() });
        Ok(Self { held, began: Instant::now(), max_age, since_check: 0, ended: false, has_last: false })
    }

    /// With another limit from now on.
    #[must_use]
    pub fn within(self, until: &Until) -> Self {
        if let Held::Open(merge) = &mut *self.held.lock() {
            merge.plan.until = until.clone();
        }
        self
    }

    /// The place behind the last entry that was given, for another scan to go on from; `None` before the first.
    pub fn cursor(&self) -> Option<Cursor> {
        match &*self.held.lock() {
            Held::Open(merge) if self.has_last => Some(Cursor::behind(&merge.last)),
            _ => None,
        }
    }

    /// Counts the entries that are left, without decoding them.
    pub fn count_entries(self) -> Result<u64, ScanError> {
        let mut entries = 0;
        loop {
            let counted = self.advance(|merge| merge.count_some(CHECK_EVERY))?;
            entries += u64::from(counted);
            if counted < CHECK_EVERY {
                return Ok(entries);
            }
            self.advance(|merge| Ok(merge.plan.until.check()?))?;
        }
    }

    /// Does a step, unless the scan is too old.
    fn advance<T>(&self, step: impl FnOnce(&mut Merge) -> Result<T, ScanError>) -> Result<T, ScanError> {
        let mut held = self.held.lock();
        if self.began.elapsed() > self.max_age {
            *held = Held::Ended;
        }
        let Held::Open(merge) = &mut *held else { return Err(ScanError::TooOld { max_age: self.max_age }) };
        step(merge)
    }

    fn next_entry(&mut self) -> Result<Option<ScanEntry>, ScanError> {
        self.since_check = (self.since_check + 1) % CHECK_EVERY;
        let is_due = self.since_check == 0;
        self.advance(|merge| {
            if is_due {
                merge.plan.until.check()?;
            }
            merge.next_entry()
        })
    }
}

impl Iterator for Scan {
    type Item = Result<ScanEntry, ScanError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_entry().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        self.has_last |= !self.ended;
        next
    }
}

impl Merge {
    /// Takes the next entry of all lanes, with the shard that it is of.
    fn take_next(&mut self) -> Result<Option<(ShardId, Vec<u8>)>, ScanError> {
        let Self { plan, lanes, .. } = self;
        // Few shards: looking at each head is as quick as a heap.
        let heads = lanes.iter_mut().filter(|lane| lane.head.is_some());
        let next = if plan.reverse {
            heads.max_by(|a, b| a.head.cmp(&b.head))
        } else {
            heads.min_by(|a, b| a.head.cmp(&b.head))
        };
        let Some(lane) = next else { return Ok(None) };
        let Some(entry) = lane.head.take() else { return Ok(None) };
        lane.step(plan, None)?;
        let shard = lane.shard;
        if let Some(parts) = plan.distinct {
            let (group, _) = split_parts(&entry, parts).map_err(|error| ScanError::Entry { shard, error })?;
            lanes.iter_mut().try_for_each(|lane| lane.pass(plan, group))?;
        }
        Ok(Some((shard, entry)))
    }

    fn next_entry(&mut self) -> Result<Option<ScanEntry>, ScanError> {
        let Some((shard, entry)) = self.take_next()? else { return Ok(None) };
        let damaged = |error| ScanError::Entry { shard, error };
        let (mut key, id) = decode_parts(&entry, self.plan.components).map_err(damaged)?;
        key.truncate(self.plan.distinct.unwrap_or(usize::MAX));
        let id = String::from_utf8_lossy(id).into_owned();
        self.last = entry;
        Ok(Some(ScanEntry { key, id }))
    }

    /// Counts and passes at most `most` entries.
    fn count_some(&mut self, most: u32) -> Result<u32, ScanError> {
        let mut counted = 0;
        while counted < most {
            if self.plan.distinct.is_some() {
                if self.take_next()?.is_none() {
                    break;
                }
            } else {
                // The order does not matter for a count, so the lanes are emptied one after another.
                let Some(lane) = self.lanes.iter_mut().find(|lane| lane.head.is_some()) else { break };
                lane.step(&self.plan, None)?;
            }
            counted += 1;
        }
        Ok(counted)
    }
}

impl Lane {
    /// Goes to the next entry. What lies before `place` in the stretches that are yet to be begun is left out.
    fn step(&mut self, plan: &Plan, place: Option<&[u8]>) -> Result<(), ScanError> {
        let mut begun = 0;
        loop {
            let next = match &mut self.entries {
                Some(entries) if plan.reverse => entries.next_back(),
                Some(entries) => entries.next(),
                None => None,
            };
            self.head = next.transpose().map_err(|fault| ScanError::Store { shard: self.shard, fault })?;
            if self.head.is_some() {
                return Ok(());
            }
            if begun > 0 && self.begun < plan.stretches.len() {
                plan.until.check()?;
            }
            if !self.begin_next(plan, place) {
                return Ok(());
            }
            begun += 1;
        }
    }

    /// Begins the next stretch, if there is one.
    fn begin_next(&mut self, plan: &Plan, place: Option<&[u8]>) -> bool {
        let count = plan.stretches.len();
        self.entries = None;
        while self.begun < count {
            let number = if plan.reverse { count - 1 - self.begun } else { self.begun };
            self.begun += 1;
            let left = plan.stretches.get(number).and_then(|stretch| stretch.from(place, plan.reverse));
            if let (Some(left), Some(snapshot)) = (left, &self.snapshot) {
                self.entries = Some(snapshot.scan(plan.inst, &left.bounds()));
                break;
            }
        }
        if self.begun == count && plan.distinct.is_none() {
            self.snapshot = None;
        }
        self.entries.is_some()
    }

    /// Goes to the first entry that does not begin with `group`.
    fn pass(&mut self, plan: &Plan, group: &[u8]) -> Result<(), ScanError> {
        let mut steps = 0;
        while self.head.as_ref().is_some_and(|head| head.starts_with(group)) {
            if steps < STEPS_BEFORE_SEEK {
                steps += 1;
                self.step(plan, None)?;
            } else {
                // The stretch that is being read is begun once more, behind the group.
                self.begun -= 1;
                self.entries = None;
                self.step(plan, Some(&beyond(group, plan.reverse)))?;
            }
        }
        Ok(())
    }
}

/// Waits until the instance covers all of `wanted`.
fn wait_for(
    shards: &[Shard],
    inst: InstId,
    wanted: &[(VbId, Seqno)],
    until: &Until,
) -> Result<(), ScanError> {
    let count = u16::try_from(shards.len()).unwrap_or(u16::MAX);
    let reached = |vb: VbId| {
        let shard = shards.get(usize::from(ShardId::of_vb(vb, count).0));
        let positions = shard.and_then(|shard| shard.positions(inst));
        positions.and_then(|positions| positions.get(vb)).map_or(Seqno(0), |position| position.seqno)
    };
    let behind = || {
        let mut now = wanted.iter().map(|(vb, wanted)| (*vb, *wanted, reached(*vb)));
        now.find(|(_, wanted, reached)| reached < wanted)
    };
    if behind().is_none() {
        return Ok(());
    }
    // Watched before the next look: what is applied in between leaves a message.
    let (wake, applied) = bounded(1);
    for shard in shards {
        shard.watch(wake.clone());
    }
    loop {
        let Some((vb, wanted, reached)) = behind() else { return Ok(()) };
        match recv(&applied, until) {
            Ok(()) => {}
            Err(RecvError::Stopped(why)) => return Err(ScanError::Behind { vb, wanted, reached, why }),
            // The shards hold its senders.
            Err(RecvError::Closed) => {
                return Err(ScanError::Behind { vb, wanted, reached, why: Stopped::Cancelled });
            }
        }
    }
}
