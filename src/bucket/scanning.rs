//! Scans of a bucket's indexes.

use crate::index::{IndexName, KeyRange, QueryError, Scan, ScanError, ScanQuery};
use crate::pause::BucketState;
use crate::shard::InstId;
use crate::thread::Until;

use super::bucket::Bucket;
use super::error::IndexError;
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
        self.data_dir.refuse_fork()?;
        let entry = self.find_index(name)?;
        let meta = self.describe();
        if let BucketState::Paused { archive, evicted: true, .. } = meta.state {
            return Err(IndexError::Paused { doing: "scan", bucket: meta.name, archive });
        }
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
        match Scan::begin(self.set.shards(), target, query, &self.scans, until) {
            Err(ScanError::Query(error)) => Err(wrong(error)),
            begun => Ok(begun?),
        }
    }

    /// Number of scans that hold files of the bucket.
    pub fn open_scans(&self) -> usize {
        self.scans.count()
    }

    /// Changes that an instance covers: the sum of its seqnos over all vbuckets.
    pub(super) fn changes_of(&self, inst: InstId) -> u64 {
        let positions = self.set.shards().iter().filter_map(|shard| shard.positions(inst));
        positions.map(|ts| ts.iter().map(|(_, position)| position.seqno.0).sum::<u64>()).sum()
    }
}
