//! What keeps the files few and about as large as what they hold.
//!
//! Logs grow with every recovery point. When they outweigh half of the parts, the state that the last of them
//! led to is written as parts, and they go. A part whose leaves are all as they were is kept as it is: where
//! changes fall into few ranges of keys, or into one instance of many, most of the parts stay, and the next
//! archive of the shard is spared them. Between two such merges small logs are united into larger ones.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::durable;

use super::super::InstId;
use super::super::store::StoreFault;
use super::file::{FileName, FileRef, Kind, Reader, Writer};
use super::leaf::Leaf;
use super::manifest::{Image, Part, remove};
use super::state::{BLOCK_BYTES, Operation, Operations, State};

/// A part is closed when it has this many bytes. The next archive of the shard copies a part as a whole.
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Logs are not merged into parts before they outweigh half of those by this much.
const LOG_BYTES_MIN: u64 = 1024 * 1024;
/// So many logs of about one size are united.
const LOGS_UNITED: usize = 8;
/// Logs up to this length are all of one size.
const SMALL_LOG_BYTES: u64 = 64 * 1024;

/// Whether `state` should be written as parts instead of what `image` has: what the files have for nothing is then
/// too much, or it is the rest of a dropped instance, which may be as large as it likes.
pub(super) fn is_due(image: &Image, state: &State) -> bool {
    let part_bytes: u64 = image.parts.iter().map(|part| part.file.length_bytes).sum();
    state.has_dead || image.log_bytes() > part_bytes / 2 + LOG_BYTES_MIN
}

/// Files that are being made; whatever of them is not taken is removed.
pub(super) struct Unfinished<'a> {
    folder: &'a Path,
    number: &'a mut dyn FnMut() -> u64,
    names: Vec<FileName>,
}

impl<'a> Unfinished<'a> {
    /// Files in `folder` with numbers that `number` gives.
    pub(super) fn new(folder: &'a Path, number: &'a mut dyn FnMut() -> u64) -> Self {
        Self { folder, number, names: Vec::new() }
    }

    fn create(&mut self, kind: Kind) -> Result<Writer, StoreFault> {
        let name = kind.name((self.number)());
        self.names.push(name);
        Writer::create(self.folder, name).map_err(|e| StoreFault::new("write the store's files", &e))
    }

    fn at<T>(&self, outcome: io::Result<T>) -> Result<T, StoreFault> {
        let name = self.names.last().map(FileName::to_string).unwrap_or_default();
        outcome.map_err(|e| StoreFault::at("write the store's files", &self.folder.join(name), &e))
    }

    /// Writes a log of operations.
    pub(super) fn log(&mut self, operations: &Operations) -> Result<FileRef, StoreFault> {
        let mut log = self.create(Kind::Log)?;
        let written = operations.blocks().iter().try_for_each(|block| log.block(block));
        self.at(written.and_then(|()| log.finish()))
    }

    /// Ends the making: every file is durable, and from now on they are the caller's.
    pub(super) fn take(mut self) -> Result<(), StoreFault> {
        durable::sync_folder(self.folder).map_err(|e| StoreFault::new("write the store's files", &e))?;
        self.names.clear();
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // What cannot be removed is when the store is opened.
        for name in &self.names {
            let _ = remove(&self.folder.join(name.to_string()));
        }
    }
}

/// Writes what leads to `state`, with parts of `current` where they are as they were.
pub(super) fn write_state(
    files: &mut Unfinished<'_>,
    state: &State,
    current: &Image,
) -> Result<Image, StoreFault> {
    let known = current.parts.iter().map(|part| (part.file.number, part)).collect();
    let mut parts = Vec::new();
    let mut head = Operations::default();
    for (inst, instance) in &state.instances {
        head.push(Operation::AddInstance(*inst));
        let leaves: Vec<_> = instance.entries.leaves().collect();
        write_entries(files, *inst, &leaves, &known, &mut parts)?;
    }
    for ((inst, vb), position) in &state.positions {
        head.push(Operation::Position { inst: *inst, vb: *vb, position: *position });
    }
    let logs = if head.bytes() == 0 { Vec::new() } else { vec![files.log(&head)?] };
    Ok(Image { parts, logs })
}

fn write_entries(
    files: &mut Unfinished<'_>,
    inst: InstId,
    leaves: &[&Arc<Leaf>],
    known: &HashMap<u64, &Part>,
    parts: &mut Vec<Part>,
) -> Result<(), StoreFault> {
    // Neighbours of one part, or of none, one run after the other.
    let mut waiting: &[&Arc<Leaf>] = &[];
    let mut place = 0;
    for run in leaves.chunk_by(|a, b| a.part() == b.part()) {
        place += run.len();
        let part = run.first().and_then(|leaf| known.get(&leaf.part()));
        // A small part beside leaves that are written anyway is united with them.
        let stays = |part: &Part| {
            part.leaves == run.len() && (waiting.is_empty() || part.file.length_bytes >= PART_BYTES / 2)
        };
        if let Some(part) = part.filter(|part| stays(part)) {
            write_leaves(files, inst, waiting, parts)?;
            parts.push((*part).clone());
            waiting = &[];
        } else {
            waiting = leaves.get(place - run.len() - waiting.len()..place).unwrap_or_default();
        }
    }
    write_leaves(files, inst, waiting, parts)
}

/// Writes leaves as parts of about one size.
fn write_leaves(
    files: &mut Unfinished<'_>,
    inst: InstId,
    mut leaves: &[&Arc<Leaf>],
    parts: &mut Vec<Part>,
) -> Result<(), StoreFault> {
    let mut block = Vec::with_capacity(BLOCK_BYTES * 2);
    while !leaves.is_empty() {
        let mut writer = files.create(Kind::Part)?;
        let mut taken = 0;
        for leaf in leaves {
            taken += 1;
            leaf.encode(&mut block);
            if block.len() >= BLOCK_BYTES {
                files.at(writer.block(&block))?;
                block.clear();
                if writer.length_bytes() >= PART_BYTES {
                    break;
                }
            }
        }
        if !block.is_empty() {
            files.at(writer.block(&block))?;
            block.clear();
        }
        let file = files.at(writer.finish())?;
        let (written, rest) = leaves.split_at(taken);
        for leaf in written {
            leaf.set_part(file.number);
        }
        parts.push(Part { inst, leaves: taken, file });
        leaves = rest;
    }
    Ok(())
}

/// The logs at the end that should be one. Those of one size, eight times as large as the one below it, are at
/// most seven: their number grows with the logarithm of what was written.
pub(super) fn to_unite(logs: &[FileRef]) -> Option<&[FileRef]> {
    let size = |log: &FileRef| (log.length_bytes / SMALL_LOG_BYTES).checked_ilog(LOGS_UNITED as u64);
    let mut sizes: Vec<_> = logs.iter().map(size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes.into_iter().find_map(|up_to| {
        let run = logs.iter().rev().take_while(|log| size(log) <= up_to).count();
        (run >= LOGS_UNITED).then(|| logs.get(logs.len() - run..)).flatten()
    })
}

/// Writes the operations of `logs` as one log.
pub(super) fn unite(
    files: &mut Unfinished<'_>,
    folder: &Path,
    logs: &[FileRef],
) -> Result<FileRef, StoreFault> {
    let mut united = files.create(Kind::Log)?;
    let mut block = Vec::new();
    let mut gathered = Vec::with_capacity(BLOCK_BYTES * 2);
    for log in logs {
        let fault = |e: io::Error| {
            StoreFault::at("unite logs", &folder.join(Kind::Log.name(log.number).to_string()), &e)
        };
        let mut reader = Reader::open(folder, Kind::Log, log).map_err(fault)?;
        while reader.next(&mut block).map_err(fault)? {
            gathered.extend_from_slice(&block);
            if gathered.len() >= BLOCK_BYTES {
                files.at(united.block(&gathered))?;
                gathered.clear();
            }
        }
    }
    if !gathered.is_empty() {
        files.at(united.block(&gathered))?;
    }
    files.at(united.finish())
}
