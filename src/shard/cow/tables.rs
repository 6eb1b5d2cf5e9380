//! The tables of the database, and what is done to them.

use std::ops::Bound;

use redb::{Error, ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use crate::event::VbId;
use crate::timestamp::Position;

use super::super::InstId;
use super::super::batch::Change;
use super::super::codec::{EntryEdits, decode_position, edits, encode_position, write_back_value};
use super::super::store::{EntryBounds, InstancePositions, PointId};

/// An instance and an entry.
pub(super) const ENTRIES: TableDefinition<'static, &'static [u8], ()> = TableDefinition::new("entries");
/// An instance and a document id, with the document's encoded keys.
const BACK: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("back index");
const POSITIONS: TableDefinition<'static, (u32, u16), [u8; 32]> = TableDefinition::new("positions");
/// The instances, with whether they exist: of one that was dropped something may still be there.
const INSTANCES: TableDefinition<'static, u32, bool> = TableDefinition::new("instances");
const FACTS: TableDefinition<'static, &'static str, u64> = TableDefinition::new("facts");

/// Version of what is in the tables.
const VERSION: u64 = 1;
const VERSION_FACT: &str = "version";
const NEWEST_POINT_FACT: &str = "newest point";
const HELD_BYTES_FACT: &str = "held bytes";

const INSTANCE_BYTES: usize = 4;
/// What a record takes up beside its key and value.
const RECORD_BYTES: u64 = 8;
/// Records of a dropped instance that one sweep removes.
const SWEEP_RECORDS: usize = 4096;

fn damaged(what: &str) -> Error {
    Error::Corrupted(format!("a record of its {what} is damaged"))
}

fn record_bytes(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + RECORD_BYTES
}

fn append_key(keys: &mut Vec<u8>, inst: InstId, rest: &[&[u8]]) {
    keys.extend_from_slice(&inst.0.to_be_bytes());
    for part in rest {
        keys.extend_from_slice(part);
    }
}

fn key(inst: InstId, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(INSTANCE_BYTES + rest.len());
    append_key(&mut key, inst, &[rest]);
    key
}

/// The entry in a key of the entries' table.
pub(super) fn entry_of(key: &[u8]) -> &[u8] {
    key.get(INSTANCE_BYTES..).unwrap_or_default()
}

/// The table's bounds of a scan over an instance's entries.
pub(super) fn entry_range(inst: InstId, bounds: &EntryBounds) -> EntryBounds {
    let low = match &bounds.0 {
        Bound::Included(low) => Bound::Included(key(inst, low)),
        Bound::Excluded(low) => Bound::Excluded(key(inst, low)),
        Bound::Unbounded => Bound::Included(key(inst, &[])),
    };
    let high = match &bounds.1 {
        Bound::Included(high) => Bound::Included(key(inst, high)),
        Bound::Excluded(high) => Bound::Excluded(key(inst, high)),
        Bound::Unbounded => after(inst),
    };
    (low, high)
}

/// Everything up to the end of an instance's records.
fn after(inst: InstId) -> Bound<Vec<u8>> {
    inst.0.checked_add(1).map_or(Bound::Unbounded, |next| Bound::Excluded(key(InstId(next), &[])))
}

/// What the tables say about themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// The newest recovery point that was kept. Later ones are of a time that was rolled back.
    pub(super) newest_point: PointId,
    /// Roughly the bytes of all entries and back-index records.
    pub(super) held_bytes: u64,
}

impl Facts {
    pub(super) fn write(self, txn: &WriteTransaction) -> Result<(), Error> {
        let mut facts = txn.open_table(FACTS)?;
        facts.insert(NEWEST_POINT_FACT, self.newest_point.0)?;
        facts.insert(HELD_BYTES_FACT, self.held_bytes)?;
        Ok(())
    }

    pub(super) fn read(txn: &ReadTransaction) -> Result<Self, Error> {
        let facts = txn.open_table(FACTS)?;
        let newest_point = PointId(fact(&facts, NEWEST_POINT_FACT)?);
        Ok(Self { newest_point, held_bytes: fact(&facts, HELD_BYTES_FACT)? })
    }
}

fn fact(facts: &ReadOnlyTable<&'static str, u64>, name: &str) -> Result<u64, Error> {
    Ok(facts.get(name)?.ok_or_else(|| damaged("facts"))?.value())
}

/// Makes the tables of an empty shard.
pub(super) fn create(txn: &WriteTransaction) -> Result<(), Error> {
    txn.open_table(ENTRIES)?;
    txn.open_table(BACK)?;
    txn.open_table(POSITIONS)?;
    txn.open_table(INSTANCES)?;
    txn.open_table(FACTS)?.insert(VERSION_FACT, VERSION)?;
    Facts::default().write(txn)
}

/// Fails where the tables are not there, or were written by a later program.
pub(super) fn check_version(txn: &ReadTransaction) -> Result<(), Error> {
    let found = fact(&txn.open_table(FACTS)?, VERSION_FACT)?;
    if found > VERSION {
        let cause = format!(
            "it has format version {found}, this program reads version {VERSION}: use a newer dormouse"
        );
        return Err(std::io::Error::other(cause).into());
    }
    txn.open_table(ENTRIES)?;
    txn.open_table(BACK)?;
    txn.open_table(POSITIONS)?;
    txn.open_table(INSTANCES)?;
    Ok(())
}

/// The instances that exist, with their positions, and those that were dropped.
pub(super) fn load(txn: &ReadTransaction) -> Result<(Vec<InstancePositions>, Vec<InstId>), Error> {
    let positions = txn.open_table(POSITIONS)?;
    let (mut live, mut dropped) = (Vec::new(), Vec::new());
    for record in txn.open_table(INSTANCES)?.iter()? {
        let (inst, exists) = record?;
        let inst = InstId(inst.value());
        if exists.value() {
            live.push((inst, positions_of(&positions, inst)?));
        } else {
            dropped.push(inst);
        }
    }
    Ok((live, dropped))
}

fn positions_of(
    positions: &ReadOnlyTable<(u32, u16), [u8; 32]>,
    inst: InstId,
) -> Result<Vec<(VbId, Position)>, Error> {
    let of_inst = positions.range((inst.0, 0)..=(inst.0, u16::MAX))?;
    of_inst
        .map(|record| {
            let (key, value) = record?;
            let position = decode_position(&value.value()).ok_or_else(|| damaged("positions"))?;
            Ok((VbId(key.value().1), position))
        })
        .collect()
}

pub(super) fn write_positions(
    txn: &WriteTransaction,
    moved: &[(InstId, VbId, Position)],
) -> Result<(), Error> {
    let mut positions = txn.open_table(POSITIONS)?;
    for (inst, vb, position) in moved {
        positions.insert((inst.0, vb.0), encode_position(position))?;
    }
    Ok(())
}

/// Records that an instance exists, or that it does not any more.
pub(super) fn set_instance(txn: &WriteTransaction, inst: InstId, exists: bool) -> Result<(), Error> {
    txn.open_table(INSTANCES)?.insert(inst.0, exists)?;
    Ok(())
}

/// Bytes that came into the tables and that left them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) inserted: u64,
    pub(super) removed: u64,
}

impl Moved {
    pub(super) fn of_all(self) -> u64 {
        self.inserted + self.removed
    }
}

/// Replaces the entries of documents, each of which comes once.
pub(super) fn apply(txn: &WriteTransaction, changes: &[Change<'_>]) -> Result<Moved, Error> {
    let mut back = txn.open_table(BACK)?;
    let (mut back_key, mut old_value, mut back_value) = (Vec::new(), Vec::new(), Vec::new());
    let (mut entries, mut moved) = (EntryEdits::default(), Moved::default());
    for change in changes {
        back_key.clear();
        append_key(&mut back_key, change.inst, &[change.doc_id]);
        old_value.clear();
        if !change.once
            && let Some(old) = back.get(back_key.as_slice())?
        {
            old_value.extend_from_slice(old.value());
        }
        write_back_value(&mut back_value, change.keys());
        if old_value == back_value {
            continue;
        }
        for edit in edits(&old_value, change) {
            entries.note(edit, |keys, entry| append_key(keys, change.inst, &[entry, change.doc_id]));
        }
        if !old_value.is_empty() {
            moved.removed += record_bytes(&back_key, &old_value);
        }
        if back_value.is_empty() {
            back.remove(back_key.as_slice())?;
        } else {
            back.insert(back_key.as_slice(), back_value.as_slice())?;
            moved.inserted += record_bytes(&back_key, &back_value);
        }
    }
    drop(back);
    let mut table = txn.open_table(ENTRIES)?;
    for (key, is_there) in entries.in_order() {
        if is_there {
            table.insert(key, ())?;
            moved.inserted += record_bytes(key, &[]);
        } else {
            table.remove(key)?;
            moved.removed += record_bytes(key, &[]);
        }
    }
    drop(table);
    Ok(moved)
}

/// Removes a part of what a dropped instance left. Gives back the bytes, and whether nothing is left.
pub(super) fn sweep(txn: &WriteTransaction, inst: InstId) -> Result<(u64, bool), Error> {
    let (low, high) = (Bound::Included(key(inst, &[])), after(inst));
    let range = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
    let (mut records, mut bytes) = (0, 0);
    for record in
        txn.open_table(ENTRIES)?.extract_from_if::<&[u8], _>(range, |_, ()| true)?.take(SWEEP_RECORDS)
    {
        bytes += record_bytes(record?.0.value(), &[]);
        records += 1;
    }
    let mut back = txn.open_table(BACK)?;
    for record in back.extract_from_if::<&[u8], _>(range, |_, _| true)?.take(SWEEP_RECORDS - records) {
        let (key, value) = record?;
        bytes += record_bytes(key.value(), value.value());
        records += 1;
    }
    let is_done = records < SWEEP_RECORDS;
    if is_done {
        // At most one for each vbucket.
        let of_inst = (inst.0, 0)..=(inst.0, u16::MAX);
        txn.open_table(POSITIONS)?.retain_in(of_inst, |_, _| false)?;
        txn.open_table(INSTANCES)?.remove(inst.0)?;
    }
    Ok((bytes, is_done))
}
