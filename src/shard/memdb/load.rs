//! Opening: every file of an image is read, compared with its checksums, and made a state.
//!
//! Parts are read in parallel, and so are logs for different instances, on threads that end before the call does.
//! They have names, `dm-load-N`, and are at most as many as the machine has processors, one less for the caller,
//! who works like them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use parking_lot::Mutex;

use crate::thread::{self, Thread, Until};

use super::super::InstId;
use super::super::store::StoreFault;
use super::file::{FileRef, Kind, Reader};
use super::leaf::Leaf;
use super::manifest::{Image, Part};
use super::packed::Builder;
use super::state::{Edits, Instance, Operation, State};

/// Less than this is read before a thread has started.
const PARALLEL_BYTES: u64 = 2 * 1024 * 1024;

/// The state that the files of an image in `folder` lead to.
pub(super) fn load(folder: &Path, image: &Image) -> Result<State, StoreFault> {
    let folder: Arc<Path> = folder.into();
    let state = load_parts(&folder, &image.parts)?;
    if image.logs.is_empty() {
        return Ok(state);
    }
    let logs: Arc<[FileRef]> = image.logs.clone().into();
    let groups = threads(image.log_bytes());
    let jobs = split(state, groups);
    let grouped = in_parallel(groups, jobs, move |(group, mut state)| {
        let is_own = |inst: InstId| inst.0 as usize % groups == group;
        replay(&folder, &logs, &mut state, is_own).map(|()| state)
    })?;
    let mut state = State::default();
    for part in grouped {
        state.instances.extend(part.instances);
        state.positions.extend(part.positions);
        state.has_dead |= part.has_dead;
    }
    Ok(state)
}

/// How many threads are worth starting for so many bytes, the caller's included.
fn threads(bytes: u64) -> usize {
    if bytes < PARALLEL_BYTES { 1 } else { available_parallelism().map_or(1, usize::from) }
}

/// Deals out the instances.
fn split(state: State, groups: usize) -> Vec<(usize, State)> {
    let mut all: Vec<(usize, State)> = (0..groups).map(|group| (group, State::default())).collect();
    for (inst, instance) in state.instances {
        if let Some((_, state)) = all.get_mut(inst.0 as usize % groups) {
            state.instances.insert(inst, instance);
        }
    }
    all
}

fn load_parts(folder: &Arc<Path>, parts: &[Part]) -> Result<State, StoreFault> {
    let threads = threads(parts.iter().map(|part| part.file.length_bytes).sum());
    let own_folder = Arc::clone(folder);
    let loaded = in_parallel(threads, parts.to_vec(), move |part: Part| read_part(&own_folder, &part))?;
    let mut leaves: BTreeMap<InstId, Vec<Leaf>> = BTreeMap::new();
    for (part, own) in parts.iter().zip(loaded) {
        leaves.entry(part.inst).or_default().extend(own);
    }
    let own_folder = Arc::clone(folder);
    let instances = in_parallel(threads, leaves.into_iter().collect(), move |(inst, leaves)| {
        let mut entries = Builder::default();
        for leaf in leaves {
            entries.push_leaf(leaf);
        }
        let instance = entries.finish().and_then(Instance::from_entries).ok_or_else(|| {
            StoreFault::at("open the store", &own_folder, &format!("the parts of index {inst} make no map"))
        })?;
        Ok((inst, instance))
    })?;
    Ok(State { instances: instances.into_iter().collect(), ..State::default() })
}

fn read_part(folder: &Path, part: &Part) -> Result<Vec<Leaf>, StoreFault> {
    let mut leaves = Vec::new();
    each_block(folder, Kind::Part, &part.file, |mut block| {
        while !block.is_empty() {
            leaves.push(Leaf::decode(&mut block, part.file.number)?);
        }
        Some(())
    })?;
    if leaves.len() == part.leaves {
        return Ok(leaves);
    }
    let path = folder.join(Kind::Part.name(part.file.number).to_string());
    Err(StoreFault::at("open the store", &path, &"it has another number of leaves than its manifest says"))
}

fn replay(
    folder: &Path,
    logs: &[FileRef],
    state: &mut State,
    is_own: impl Fn(InstId) -> bool,
) -> Result<(), StoreFault> {
    let mut edits = Edits::default();
    logs.iter().try_for_each(|log| {
        each_block(folder, Kind::Log, log, |mut block| {
            while !block.is_empty() {
                let operation = Operation::decode(&mut block)?;
                if is_own(operation.inst()) {
                    state.apply(operation, &mut edits).ok()?;
                }
            }
            Some(())
        })
    })?;
    state.settle(&mut edits);
    Ok(())
}

/// Gives every block of a file to `take`, which gives `None` where it does not understand one.
fn each_block(
    folder: &Path,
    kind: Kind,
    of: &FileRef,
    mut take: impl FnMut(&[u8]) -> Option<()>,
) -> Result<(), StoreFault> {
    let fault =
        |e: io::Error| StoreFault::at("open the store", &folder.join(kind.name(of.number).to_string()), &e);
    let not_understood = || fault(io::Error::other("its content is not understood"));
    let mut reader = Reader::open(folder, kind, of).map_err(fault)?;
    let mut block = Vec::new();
    while reader.next(&mut block).map_err(fault)? {
        take(&block).ok_or_else(not_understood)?;
    }
    Ok(())
}

/// Does all `jobs` on so many threads, the caller's included, and gives back what they made, in their order.
fn in_parallel<J, T>(
    threads: usize,
    jobs: Vec<J>,
    work: impl Fn(J) -> Result<T, StoreFault> + Send + Sync + 'static,
) -> Result<Vec<T>, StoreFault>
where
    J: Send + 'static,
    T: Send + 'static,
{
    let threads = threads.min(jobs.len());
    let queue = Arc::new(Mutex::new(jobs.into_iter().enumerate()));
    let work = Arc::new(work);
    let worker = || {
        let (queue, work) = (Arc::clone(&queue), Arc::clone(&work));
        move || {
            let next = || queue.lock().next();
            let mut made = Vec::new();
            while let Some((place, job)) = next() {
                match work(job) {
                    Ok(one) => made.push((place, one)),
                    Err(fault) => {
                        // The others have nothing to go on for.
                        queue.lock().by_ref().for_each(drop);
                        return Err(fault);
                    }
                }
            }
            Ok(made)
        }
    };
    // Where the system has no more threads the caller does the work.
    let started: Vec<Thread<_>> =
        (1..threads).map_while(|n| thread::spawn(format!("dm-load-{n}"), worker()).ok()).collect();
    let own = worker()();
    // Every thread is waited for, also after a failure: their work is finite.
    let others: Vec<_> = started.into_iter().map(|thread| thread.join(&Until::default())).collect();
    let mut made = own?;
    for other in others {
        made.extend(other.map_err(|e| StoreFault::new("open the store", &e))??);
    }
    made.sort_by_key(|(place, _)| *place);
    Ok(made.into_iter().map(|(_, one)| one).collect())
}
