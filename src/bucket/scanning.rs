//! Scans of a bucket's indexes.

use crate::index::{IndexName, KeyRange, QueryError, Scan, ScanError, ScanQuery};
use crate::pause::BucketState;
use crate::shard::InstId;
use crate::thread::Until;

use super::bucket::Bucket;
use super::error::{Closed, IndexError};
use super::meta::{IndexState, SourceKind};

impl Bucket {
    /// Scans a part of an index, in key order or in reverse, as it is now.
    pub fn scan(
        &self,
        name: &IndexName,
        range: &KeyRange,
        reverse: bool,
        until: &Until,
    ) -> Result<Scan, IndexError> {
        self.query(name, &ScanQuery { reverse, ..range.clone().into() }, until)
    }

    /// Scans an index for all that a query may ask: several ranges, from a cursor on, distinct beginnings of keys,
    /// and not before certain changes are covered, which is waited for while the limit lasts. An index that is
    /// unfinished is refused with its progress. The scan ends when it is older than
    /// [`BucketConfig::scan_max_age`](super::BucketConfig::scan_max_age).
    pub fn query(&self, name: &IndexName, query: &ScanQuery, until: &Until) -> Result<Scan, IndexError> {
        let call = self.begin_call::<IndexError>("a scan", until)?;
        let entry = self.find_index(name)?;
        // Before the look at the state: whoever removes the local data counts this scan, or the state tells of it.
        let place = self.scans.enter();
        let meta = self.describe();
        let Some(place) = place.filter(|_| !meta.state.is_evicted()) else {
            return Err(match meta.state {
                BucketState::Paused { archive, .. } => {
                    IndexError::Paused { doing: "scan", bucket: meta.name, archive }
                }
                // Only an eviction keeps scans from beginning, and that is of a bucket that is paused.
                _ => Closed { bucket: meta.name }.into(),
            });
        };
        if entry.state == IndexState::Building && meta.spec.source == SourceKind::Couchbase {
            let (covered, changes) = (self.changes_of(entry.inst), self.changes());
            return Err(IndexError::Building { bucket: meta.name, index: name.clone(), covered, changes });
        }
        if entry.state == IndexState::Building {
            let before = entry.changes_before;
            let documents = self.changes_of(entry.inst).saturating_sub(before);
            return Err(IndexError::Unfinished { bucket: meta.name, index: name.clone(), documents, before });
        }
        let wrong = |error| IndexError::Query { index: name.clone(), error };
        let vbuckets = meta.spec.vbuckets;
        if let Some((vb, _)) = query.at_least.iter().find(|(vb, _)| vb.0 >= vbuckets) {
            return Err(wrong(QueryError::Vbucket { vb: *vb, vbuckets }));
        }
        let target = (entry.inst, entry.definition.components());
        match Scan::begin(self.set.shards(), target, query, place, call.until()) {
            Err(ScanError::Query(error)) => Err(wrong(error)),
            // It goes on when the bucket is closed.
            begun => Ok(begun?.within(until)),
        }
    }

    /// Number of scans that hold files of the bucket, or are about to.
    pub fn open_scans(&self) -> usize {
        self.scans.count()
    }

    /// Changes that an instance covers: the sum of its seqnos over all vbuckets.
    pub(super) fn changes_of(&self, inst: InstId) -> u64 {
        let positions = self.set.shards().iter().filter_map(|shard| shard.positions(inst));
        positions.map(|ts| ts.changes()).sum()
    }
}
