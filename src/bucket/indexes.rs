//! Making and dropping a bucket's indexes.
//!
//! Invariant: an index is in the metadata before a shard has an instance of it, and out of it before a shard drops
//! that; what a crash leaves between the two is mended when the bucket is opened.

use parking_lot::MutexGuard;

use crate::index::{IndexDefinition, IndexName};
use crate::pause::Refusal;
use crate::shard::InstId;
use crate::thread::Until;

use super::bucket::Bucket;
use super::error::IndexError;
use super::meta::{IndexEntry, IndexState, SourceKind};
use super::tasks::{Task, TaskKind};

impl Bucket {
    /// Makes sure that there is such an index. On a bucket of files without data it can be scanned at once; on one that
    /// has data a new one needs `rebuild`, which says that all documents are going to be ingested again, and can be
    /// scanned after that. On a bucket that follows a cluster an index can be scanned once following has brought it to
    /// where the cluster's vbuckets were when it began: the first ones are filled by the streams of the bucket, later
    /// ones by streams of their own. It stays so after a shard was rolled back, and a scan gives what came again so
    /// far: who needs more says so by [`ScanQuery::at_least`](crate::index::ScanQuery::at_least). Indexes do not change
    /// while something is ingested: a new one would miss what is under way.
    pub fn ensure_index(&self, wanted: &IndexDefinition, rebuild: bool) -> Result<(), IndexError> {
        self.ensure_indexes(std::slice::from_ref(wanted), rebuild)
    }

    /// Makes sure that there are all these indexes, as [`Bucket::ensure_index`] does; where one of them cannot be
    /// made, none is.
    pub fn ensure_indexes(&self, wanted: &[IndexDefinition], rebuild: bool) -> Result<(), IndexError> {
        let call = self.begin_call::<IndexError>("a change of its indexes", &Until::default())?;
        if self.new_indexes(wanted)?.is_empty() && !self.lacks_instances() {
            return Ok(());
        }
        let task = self.begin_change("create an index", call.until())?;
        task.end(self.make_indexes(wanted, rebuild))
    }

    fn make_indexes(&self, wanted: &[IndexDefinition], rebuild: bool) -> Result<(), IndexError> {
        let _not_ingesting = self.admit_change("create an index")?;
        // Asked again: somebody else may have been quicker.
        let new = self.new_indexes(wanted)?;
        if let Some(first) = new.first() {
            let changes_before = self.changes();
            let has_data = changes_before > 0 || self.meta().has_had_data;
            let comes_again = self.meta().spec.source == SourceKind::Couchbase;
            if has_data && !rebuild && !comes_again {
                return Err(IndexError::NeedsRebuild { bucket: self.name(), wanted: first.clone() });
            }
            // What a cluster has already comes only once it is followed: till then nothing is there that is whole.
            let state = if has_data || comes_again { IndexState::Building } else { IndexState::Ready };
            self.change_meta(|meta| {
                for definition in new {
                    let inst = meta.next_inst;
                    meta.next_inst = InstId(inst.0 + 1);
                    meta.indexes.push(IndexEntry { inst, definition, state, changes_before });
                }
            })?;
        }
        // All of them: a shard that was locked when an index was made has no instance of it yet.
        for shard in self.set.shards() {
            for inst in self.instances() {
                shard.create_instance(inst, self.instance_start())?;
            }
        }
        Ok(())
    }

    /// Whether a shard has no instance of one of the indexes.
    fn lacks_instances(&self) -> bool {
        let wanted = self.instances();
        self.set.shards().iter().any(|shard| {
            let there = shard.instances();
            wanted.iter().any(|inst| !there.contains(inst))
        })
    }

    /// Those of `wanted` that are not there yet.
    fn new_indexes(&self, wanted: &[IndexDefinition]) -> Result<Vec<IndexDefinition>, IndexError> {
        let meta = self.meta();
        let mut new: Vec<IndexDefinition> = Vec::new();
        for wanted in wanted {
            let there = meta.index(wanted.name()).map(|entry| &entry.definition);
            match there.or_else(|| new.iter().find(|other| other.name() == wanted.name())) {
                Some(there) if there != wanted => {
                    let (wanted, there) = (wanted.clone(), there.clone());
                    return Err(IndexError::Differs { wanted, there });
                }
                Some(_) => {}
                None => new.push(wanted.clone()),
            }
        }
        Ok(new)
    }

    /// Removes an index, durably; its entries go bit by bit afterwards.
    pub fn drop_index(&self, name: &IndexName, until: &Until) -> Result<(), IndexError> {
        let call = self.begin_call::<IndexError>("a change of its indexes", until)?;
        self.find_index(name)?;
        let task = self.begin_change("drop an index", call.until())?;
        let dropped = self.drop_index_now(name, task.until());
        task.end(dropped)
    }

    fn drop_index_now(&self, name: &IndexName, until: &Until) -> Result<(), IndexError> {
        let _not_ingesting = self.admit_change("drop an index")?;
        let inst = self.find_index(name)?.inst;
        let has_data = self.changes() > 0;
        self.change_meta(|meta| {
            meta.indexes.retain(|entry| entry.inst != inst);
            meta.has_had_data |= has_data;
        })?;
        for shard in self.set.shards() {
            shard.drop_instance(inst)?;
        }
        self.set.commit(until)?;
        Ok(())
    }

    pub(super) fn find_index(&self, name: &IndexName) -> Result<IndexEntry, IndexError> {
        let meta = self.meta();
        meta.index(name).cloned().ok_or_else(|| IndexError::Missing {
            bucket: meta.name.clone(),
            index: name.clone(),
            there: meta.indexes.iter().map(|entry| entry.definition.name().clone()).collect(),
        })
    }

    /// Takes the bucket's entry, in which nothing else may be under way.
    fn begin_change(&self, doing: &'static str, until: &Until) -> Result<Task, IndexError> {
        let begun = self.data_dir.begin_task(&self.name(), TaskKind::Index, until);
        begun.map_err(|busy| IndexError::Task { doing, bucket: self.name(), busy })
    }

    /// Refuses to change the indexes of a bucket that sleeps, or whose stream was built with the present ones.
    fn admit_change(&self, doing: &'static str) -> Result<MutexGuard<'_, ()>, IndexError> {
        let bucket = self.name();
        match self.closed_for_writes() {
            Some(Refusal::Asleep { archive, .. }) => Err(IndexError::Paused { doing, bucket, archive }),
            Some(refusal) => Err(IndexError::InDoubt { doing, bucket, refusal }),
            None => self.ingesting.try_lock().ok_or(IndexError::Busy { doing, bucket }),
        }
    }
}
