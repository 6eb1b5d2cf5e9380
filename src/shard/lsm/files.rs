//! The tree's files: which belong to its newest version, how they get a second name, whether they are whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lsm_tree::{AbstractTree, AnyTree};
use xxhash_rust::xxh3::xxh3_128;

use crate::durable::{self, AtPath};
use crate::thread::Until;

use super::super::checksum::{DAMAGED, checksum};
use super::super::store::{CheckFault, ShardFile, StoreFault};
use super::FOLDER;

/// File that names the tree's newest version: 8 bytes version id, 16 bytes checksum, 1 byte kind of checksum.
const CURRENT: &str = "current";
const TABLES: &str = "tables";
const CHECKSUM_XXH3: u8 = 0;
/// How often a compaction may replace the version while its files are being named.
const VERSION_TRIES: usize = 100;

/// What `current` says.
struct Current {
    bytes: Vec<u8>,
    version: u64,
    checksum: u128,
}

impl Current {
    fn read(folder: &Path) -> Result<Self, StoreFault> {
        let doing = "read the tree's version";
        let path = folder.join(CURRENT);
        let bytes = fs::read(&path).map_err(|e| StoreFault::at(doing, &path, &e))?;
        let damaged = || StoreFault::at(doing, &path, &"it is damaged");
        let (version, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (checksum, kind) = rest.split_first_chunk::<16>().ok_or_else(damaged)?;
        if kind != [CHECKSUM_XXH3] {
            return Err(damaged());
        }
        let (version, checksum) = (u64::from_le_bytes(*version), u128::from_le_bytes(*checksum));
        Ok(Self { bytes, version, checksum })
    }

    fn version_name(&self) -> String {
        format!("v{}", self.version)
    }
}

/// Fails where the version file does not have the checksum that `current` names: the crate does not compare them,
/// and may abort the process over a damaged one.
pub(super) fn check_version_file(folder: &Path) -> Result<(), StoreFault> {
    let current = Current::read(folder)?;
    read_version(folder, &current).map(drop)
}

fn read_version(folder: &Path, current: &Current) -> Result<Vec<u8>, StoreFault> {
    let doing = "read the tree's version";
    let path = folder.join(current.version_name());
    let version = fs::read(&path).map_err(|e| {
        let cause = format!("it names {}, which cannot be read: {e}", current.version_name());
        StoreFault::at(doing, &folder.join(CURRENT), &cause)
    })?;
    if xxh3_128(&version) == current.checksum {
        return Ok(version);
    }
    let cause = format!("it does not have the checksum that {CURRENT} names: one of the two is damaged");
    Err(StoreFault::at(doing, &path, &cause))
}

/// The files of the newest version, by the names that they have in a tree that was never rolled back.
pub(super) fn list(tree: &AnyTree, folder: &Path) -> Result<Vec<ShardFile>, StoreFault> {
    let doing = "list the files of the tree";
    let version = tree.current_version();
    let current = Current::read(folder)?;
    if current.version != version.id() {
        let cause = format!("{CURRENT} names another version than v{}", version.id());
        return Err(StoreFault { doing, cause });
    }
    let mut names = vec![CURRENT.to_owned(), current.version_name()];
    names.extend(version.iter_tables().map(|table| format!("{TABLES}/{}", table.id())));
    names
        .into_iter()
        .map(|name| describe(folder, &name).map_err(|(p, e)| StoreFault::at(doing, &p, &e)))
        .collect()
}

fn describe(folder: &Path, name: &str) -> Result<ShardFile, (PathBuf, io::Error)> {
    let path = folder.join(name);
    match fs::metadata(&path) {
        Ok(meta) => Ok(ShardFile { name: format!("{FOLDER}/{name}"), path, length_bytes: meta.len() }),
        Err(error) => Err((path, error)),
    }
}

/// Makes `to` a folder with the tree's newest version: tables by a second name, the rest copied. Nothing is flushed to
/// the disk before [`sync_links`]. A compaction may go on meanwhile. The files come back as `list` gives them.
pub(super) fn link(tree: &AnyTree, folder: &Path, to: &Path) -> Result<Vec<ShardFile>, StoreFault> {
    let doing = "name the files of a recovery point";
    for _ in 0..VERSION_TRIES {
        // While the version is held none of its tables is removed.
        let version = tree.current_version();
        let current = Current::read(folder)?;
        if current.version != version.id() {
            continue;
        }
        // The next compaction may have removed it, for a newer one.
        let Ok(content) = read_version(folder, &current) else { continue };
        let tables = to.join(TABLES);
        fs::create_dir_all(&tables).map_err(|e| StoreFault::at(doing, &tables, &e))?;
        let mut names = vec![CURRENT.to_owned(), current.version_name()];
        for table in version.iter_tables() {
            let name = format!("{TABLES}/{}", table.id());
            let new = to.join(&name);
            fs::hard_link(folder.join(&name), &new).map_err(|e| StoreFault::at(doing, &new, &e))?;
            names.push(name);
        }
        let copy = |name: &str, content: &[u8]| {
            let path = to.join(name);
            let written =
                durable::create_new(&path).and_then(|mut file| file.write_all(content).at("write", &path));
            written.map_err(|e| StoreFault::new(doing, &e))
        };
        copy(&current.version_name(), &content)?;
        copy(CURRENT, &current.bytes)?;
        return names
            .into_iter()
            .map(|name| describe(to, &name).map_err(|(p, e)| StoreFault::at(doing, &p, &e)))
            .collect();
    }
    // A version that stays unreadable is damaged: the reason is given by reading it once more.
    check_version_file(folder)?;
    Err(StoreFault { doing, cause: "a compaction replaces them all the time".to_owned() })
}

/// Flushes what [`link`] made in `to`.
pub(super) fn sync_links(to: &Path) -> Result<(), StoreFault> {
    let doing = "keep a recovery point";
    let current = Current::read(to)?;
    for path in [to.join(CURRENT), to.join(current.version_name())] {
        File::open(&path).and_then(|file| file.sync_all()).map_err(|e| StoreFault::at(doing, &path, &e))?;
    }
    durable::sync_folder(&to.join(TABLES))
        .and_then(|()| durable::sync_folder(to))
        .map_err(|e| StoreFault::new(doing, &e))
}

/// Gives every file in `from`, a folder that [`link`] made, a second name in `to`.
pub(super) fn link_again(from: &Path, to: &Path) -> Result<(), StoreFault> {
    let doing = "bring a recovery point back";
    check_version_file(from)?;
    let tables = to.join(TABLES);
    fs::create_dir_all(&tables).map_err(|e| StoreFault::at(doing, &tables, &e))?;
    let entries = fs::read_dir(from.join(TABLES)).map_err(|e| StoreFault::at(doing, from, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| StoreFault::at(doing, from, &e))?;
        let new = tables.join(entry.file_name());
        fs::hard_link(entry.path(), &new).map_err(|e| StoreFault::at(doing, &new, &e))?;
    }
    let current = Current::read(from)?;
    let version = read_version(from, &current)?;
    durable::replace(&to.join(current.version_name()), &version)
        .and_then(|()| durable::replace(&to.join(CURRENT), &current.bytes))
        .and_then(|()| durable::sync_folder(&tables))
        .map_err(|e| StoreFault::new(doing, &e))
}

/// Compares every file of the newest version on disk with its checksum.
pub(super) fn check(folder: &Path, until: &Until) -> Result<(), CheckFault> {
    let doing = "check the tree";
    let current = Current::read(folder)?;
    let version = read_version(folder, &current)?;
    let tables = tables_of(&version)
        .ok_or_else(|| StoreFault::at(doing, &folder.join(current.version_name()), &"it lists no tables"))?;
    for (id, expected) in tables {
        let path = folder.join(TABLES).join(id.to_string());
        let file = File::open(&path).map_err(|e| StoreFault::at(doing, &path, &e))?;
        if checksum(&file, &path, doing, until)? != expected {
            return Err(StoreFault::at(doing, &path, &DAMAGED).into());
        }
    }
    Ok(())
}

/// Numbers and checksums of the tables that a version file lists. Its section `tables` holds, in little-endian
/// order: the number of levels (`u8`); for each the number of runs (`u8`); for each the number of tables (`u32`);
/// for each its number (`u64`), the kind of its checksum (`u8`), its xxh3-128 (`u128`) and a sequence number (`u64`).
fn tables_of(version: &[u8]) -> Option<Vec<(u64, u128)>> {
    let reader = sfa::Reader::from_reader(&mut io::Cursor::new(version)).ok()?;
    let section = reader.toc().section(b"tables")?;
    let (start, length) = (usize::try_from(section.pos()).ok()?, usize::try_from(section.len()).ok()?);
    let mut rest = version.get(start..start.checked_add(length)?)?;
    let mut tables = Vec::new();
    for _level in 0..take::<1>(&mut rest)?[0] {
        for _run in 0..take::<1>(&mut rest)?[0] {
            for _table in 0..u32::from_le_bytes(take(&mut rest)?) {
                let id = u64::from_le_bytes(take(&mut rest)?);
                let [kind] = take(&mut rest)?;
                let checksum = u128::from_le_bytes(take(&mut rest)?);
                let _seqno = take::<8>(&mut rest)?;
                (kind == CHECKSUM_XXH3).then(|| tables.push((id, checksum)))?;
            }
        }
    }
    Some(tables)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}
