//! Scans: the entries of an index, merged over all shards in key order.
//!
//! A scan takes one snapshot of each shard, in ascending order of their ids, all before its first entry and each
//! at a batch boundary. A document's entries lie in one shard, so no document is seen twice or in two versions.
//! Entries stream: memory does not grow with their number.

use serde_json::Value;

use crate::shard::store::StoreFault;
use crate::shard::{InstId, ReadError, Shard, ShardId, ShardScan, ShardSnapshot};
use crate::thread::{Stopped, Until};

use super::collate::{CollateError, decode_parts};
use super::range::KeyBounds;

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
    /// No snapshot of a shard could be taken.
    #[error(transparent)]
    Snapshot(#[from] ReadError),
    /// A shard cannot be read.
    #[error("cannot scan shard {shard}: {fault}; if a file is damaged, bring the bucket back with `resume`")]
    Store {
        /// The shard.
        shard: ShardId,
        /// What its engine said.
        fault: StoreFault,
    },
    /// An entry is not what an index writes.
    #[error("cannot read an entry of shard {shard}: {error}; bring the bucket back with `resume`")]
    Entry {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        error: CollateError,
    },
}

/// How often a scan asks whether its limit has ended, in entries.
const CHECK_EVERY: u32 = 1024;

/// A shard's part of a scan.
struct Lane {
    shard: ShardId,
    entries: ShardScan,
    head: Option<Vec<u8>>,
}

/// A running scan.
pub struct Scan {
    lanes: Vec<Lane>,
    components: usize,
    reverse: bool,
    until: Until,
    since_check: u32,
    ended: bool,
}

impl Scan {
    /// Begins a scan of an instance whose keys have `components` parts.
    pub fn begin(
        shards: &[Shard],
        (inst, components): (InstId, usize),
        bounds: &KeyBounds,
        reverse: bool,
        until: &Until,
    ) -> Result<Self, ScanError> {
        let snapshots: Vec<(ShardId, ShardSnapshot)> = shards
            .iter()
            .map(|shard| Ok((shard.id(), shard.snapshot(until)?)))
            .collect::<Result<_, ReadError>>()?;
        let mut scan = Self {
            lanes: Vec::with_capacity(snapshots.len()),
            components,
            reverse,
            until: until.clone(),
            since_check: 0,
            ended: false,
        };
        for (shard, snapshot) in snapshots {
            let mut lane = Lane { shard, entries: snapshot.scan(inst, bounds), head: None };
            lane.step(reverse)?;
            scan.lanes.push(lane);
        }
        Ok(scan)
    }

    /// Counts the entries that are left, without decoding them.
    pub fn count_entries(mut self) -> Result<u64, ScanError> {
        let mut entries = 0;
        // The order does not matter for a count, so the lanes are emptied one after another.
        for lane in &mut self.lanes {
            while lane.head.is_some() {
                entries += 1;
                if entries % u64::from(CHECK_EVERY) == 0 {
                    self.until.check()?;
                }
                lane.step(self.reverse)?;
            }
        }
        Ok(entries)
    }

    fn next_entry(&mut self) -> Result<Option<ScanEntry>, ScanError> {
        self.since_check += 1;
        if self.since_check >= CHECK_EVERY {
            self.since_check = 0;
            self.until.check()?;
        }
        // Few shards: looking at each head is as quick as a heap.
        let heads = self.lanes.iter_mut().filter(|lane| lane.head.is_some());
        let next = if self.reverse {
            heads.max_by(|a, b| a.head.cmp(&b.head))
        } else {
            heads.min_by(|a, b| a.head.cmp(&b.head))
        };
        let Some(lane) = next else { return Ok(None) };
        let Some(entry) = lane.head.take() else { return Ok(None) };
        lane.step(self.reverse)?;
        let damaged = |error| ScanError::Entry { shard: lane.shard, error };
        let (key, id) = decode_parts(&entry, self.components).map_err(damaged)?;
        Ok(Some(ScanEntry { key, id: String::from_utf8_lossy(id).into_owned() }))
    }
}

impl Lane {
    fn step(&mut self, reverse: bool) -> Result<(), ScanError> {
        let next = if reverse { self.entries.next_back() } else { self.entries.next() };
        self.head = next.transpose().map_err(|fault| ScanError::Store { shard: self.shard, fault })?;
        Ok(())
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
        next
    }
}
