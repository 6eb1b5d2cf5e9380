//! A folder as an object store.
//!
//! The default archive: no server, no credentials, and files that other tools can copy. An object is a file at
//! `<root>/<key>`. It is written under a temporary name in its own folder, flushed, renamed to its key, and the
//! folder is flushed, with those above it until they are known to be durable; an object is therefore whole from the
//! moment it can be seen.
//! Files are readable by their owner only, and so are folders that the store makes.
//!
//! Invariants: nothing outside the root is touched: keys cannot name it, and a symbolic link that stands in the
//! place of a folder or an object is not followed. (The root itself may be reached through links; it is resolved
//! once. Whoever can change the root's folders *while* a call runs is trusted.) A root that has vanished is an
//! error, never an empty store.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::error::{Operation, StoreCause, StoreError};
use super::hash::{COPY_BYTES, ContentHash, HashingWriter, ReadError, read_pieces};
use super::key::ObjectKey;
use super::store::{Body, DraftStore, ObjectMeta, ObjectStore, Page, PageMark, WriteDraft};
use crate::durable::{Steady, TEMPORARY_SUFFIX, free_bytes, sync_folder};
use crate::thread::Until;

/// An [`ObjectStore`] in a folder.
#[derive(Debug)]
pub struct FileStore {
    root: PathBuf,
    may_be_missing: bool,
    /// Folders that are known to be there after a power cut.
    durable: Mutex<BTreeSet<PathBuf>>,
    parallel: usize,
}

/// Calls at the same time, unless the host says otherwise: one waits for the disk while another reads.
pub const FOLDER_PARALLEL_DEFAULT: usize = 4;

impl FileStore {
    /// The store in the folder `root`, which is created, with its parents, if it is not there.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        create_folders(root)
            .and_then(|()| resolve(root)?.ok_or_else(|| vanished(root)))
            .map_err(|cause| StoreError::new(Operation::Open, None, url_of(root), cause))
    }

    /// The store in the folder `root`, or `None` where there is no such folder; nothing is created.
    pub fn open_existing(root: &Path) -> Result<Option<Self>, StoreError> {
        resolve(root).map_err(|cause| StoreError::new(Operation::Open, None, url_of(root), cause))
    }

    /// The store in the folder `root`, to be looked at. Where there is no such folder the store is empty, and has the
    /// room of the disk that the folder would be on; nothing is created before something is put.
    pub fn open_to_plan(root: &Path) -> Result<Self, StoreError> {
        let opened = |cause| StoreError::new(Operation::Open, None, url_of(root), cause);
        if let Some(store) = resolve(root).map_err(opened)? {
            return Ok(store);
        }
        let path = std::path::absolute(root).map_err(|e| opened(e.into()))?;
        let found = path.ancestors().skip(1).find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
        let (above, there) = found.ok_or_else(|| opened(vanished(root)))?;
        let below = path.strip_prefix(above).unwrap_or(&path);
        Ok(Self { may_be_missing: true, ..Self::at(there.join(below)) })
    }

    fn at(root: PathBuf) -> Self {
        Self { root, may_be_missing: false, durable: Mutex::default(), parallel: FOLDER_PARALLEL_DEFAULT }
    }

    /// The same with so many calls at the same time for many files.
    #[must_use]
    pub fn with_parallel(self, parallel: NonZeroUsize) -> Self {
        Self { parallel: parallel.get(), ..self }
    }

    fn named<T>(
        &self,
        operation: Operation,
        key: Option<&ObjectKey>,
        result: Result<T, StoreCause>,
    ) -> Result<T, StoreError> {
        result.map_err(|cause| StoreError::new(operation, key, self.describe(), cause))
    }

    /// The root and the folders below it that `key` goes through, outermost first.
    fn folders_of(&self, key: &ObjectKey) -> Vec<PathBuf> {
        let mut folders = self.folders_to(key);
        folders.pop();
        folders
    }

    /// The root and the folders below it down to `folder`, outermost first.
    fn folders_to(&self, folder: &ObjectKey) -> Vec<PathBuf> {
        let path = self.root.join(folder.as_str());
        let outward = path.ancestors().take_while(|folder| folder.starts_with(&self.root));
        let mut folders: Vec<PathBuf> = outward.map(Path::to_owned).collect();
        folders.reverse();
        folders
    }

    /// Whether every folder that `key` goes through is there.
    fn is_reachable(&self, key: &ObjectKey) -> Result<bool, StoreCause> {
        self.root_is_there()?;
        for folder in self.folders_of(key) {
            if !folder_is_there(&folder)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The object's file and its length; `None` if there is none.
    fn find(&self, key: &ObjectKey) -> Result<Option<(PathBuf, u64)>, StoreCause> {
        if !self.is_reachable(key)? {
            return Ok(None);
        }
        let path = self.root.join(key.as_str());
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => Ok(Some((path, found.len()))),
            Ok(_) => Err(io::Error::other("something is in its place that is no file").into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn root_is_there(&self) -> Result<(), StoreCause> {
        if self.may_be_missing || folder_is_there(&self.root)? { Ok(()) } else { Err(vanished(&self.root)) }
    }

    /// Makes a file in the last of `folders`: `fill` writes it, and `place` puts it in its place unless `fill` gives
    /// nothing.
    fn write<T>(
        &self,
        folders: &[PathBuf],
        fill: impl FnOnce(&mut dyn Write) -> Result<Option<T>, StoreCause>,
        place: impl FnOnce(tempfile::NamedTempFile, &T) -> Result<(), StoreCause>,
        until: &Until,
    ) -> Result<Option<T>, StoreCause> {
        until.check()?;
        self.root_is_there()?;
        for folder in folders {
            if !folder_is_there(folder)? {
                create_folder(folder)?;
                self.durable.lock().remove(folder);
            }
        }
        let folder = folders.last().unwrap_or(&self.root);
        // Removed on drop, so on every early return.
        let temporary = tempfile::Builder::new()
            .prefix(".")
            .rand_bytes(16)
            .suffix(TEMPORARY_SUFFIX)
            .tempfile_in(folder)?;
        let Some(filled) = fill(&mut Steady::new(temporary.as_file()))? else { return Ok(None) };
        temporary.as_file().sync_all()?;
        until.check()?;
        let placed = place(temporary, &filled);
        // Who made what is there already may have died, or failed, before it was durable.
        if matches!(placed, Ok(()) | Err(StoreCause::Exists)) {
            File::open(folder)?.sync_all()?;
            self.make_durable(folders)?;
        }
        placed?;
        Ok(Some(filled))
    }

    fn write_as(
        &self,
        key: &ObjectKey,
        body: Body<'_>,
        until: &Until,
        place: impl FnOnce(tempfile::NamedTempFile, &Path) -> Result<(), StoreCause>,
    ) -> Result<(), StoreCause> {
        let path = self.root.join(key.as_str());
        let fill = |file: &mut dyn Write| write_body(file, body, until).map(Some);
        self.write(&self.folders_of(key), fill, |temporary, ()| place(temporary, &path), until).map(drop)
    }

    /// Flushes the folders above those that are not known to be durable, also of such that were there already:
    /// whoever made them may have died before flushing them. The innermost one's own names are flushed already.
    fn make_durable(&self, folders: &[PathBuf]) -> Result<(), StoreCause> {
        for pair in folders.windows(2).rev() {
            let [above, folder] = pair else { continue };
            if !self.durable.lock().contains(folder) {
                File::open(above)?.sync_all()?;
                self.durable.lock().insert(folder.clone());
            }
        }
        Ok(())
    }

    /// Reads `wanted` of the object, or all of it, and gives its whole length.
    fn read(
        &self,
        key: &ObjectKey,
        wanted: Option<Range<u64>>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreCause> {
        until.check()?;
        let (path, _) = self.find(key)?.ok_or(StoreCause::NotFound)?;
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreCause::NotFound),
            opened => opened?,
        };
        // Of the file that is open: the object may have been replaced since it was found.
        let length_bytes = file.metadata()?.len();
        let range = wanted.unwrap_or(0..length_bytes);
        if range.end > length_bytes {
            return Err(StoreCause::OutOfRange { start: range.start, end: range.end });
        }
        let copied = read_pieces(&file, range, until, |piece| to.write_all(piece).map_err(GetError::To));
        match copied {
            Ok(()) => to.flush().map_err(StoreCause::Receiver)?,
            Err(GetError::To(e)) => return Err(StoreCause::Receiver(e)),
            Err(GetError::From(ReadError::Stopped(why))) => return Err(why.into()),
            Err(GetError::From(ReadError::Io(e))) => return Err(e.into()),
            Err(GetError::From(short @ ReadError::TooShort { .. })) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, short.to_string()).into());
            }
        }
        Ok(length_bytes)
    }

    fn walk(&self, folder: Option<&ObjectKey>, until: &Until) -> Result<Vec<ObjectMeta>, StoreCause> {
        until.check()?;
        self.root_is_there()?;
        if !folder.map_or(Ok(true), |key| self.is_reachable(key))? {
            return Ok(Vec::new());
        }
        let mut objects = Vec::new();
        let mut folders = vec![folder.cloned()];
        while let Some(folder) = folders.pop() {
            let path = folder.as_ref().map_or_else(|| self.root.clone(), |key| self.root.join(key.as_str()));
            if folder_is_there(&path)? {
                list_folder(&path, folder.as_ref(), until, &mut objects, &mut folders)?;
            }
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    fn remove(&self, key: &ObjectKey, until: &Until) -> Result<(), StoreCause> {
        until.check()?;
        let Some((path, _)) = self.find(key)? else { return Ok(()) };
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => Ok(result?),
        }
    }

    fn sweep_folder(
        &self,
        folder: &ObjectKey,
        before: SystemTime,
        dry_run: bool,
        until: &Until,
    ) -> Result<usize, StoreCause> {
        until.check()?;
        let path = self.root.join(folder.as_str());
        if !self.is_reachable(folder)? || !folder_is_there(&path)? {
            return Ok(0);
        }
        let mut swept = 0;
        for entry in fs::read_dir(&path)? {
            until.check()?;
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_temporary = name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX);
            let found = match entry.metadata() {
                // It was finished.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if is_temporary && found.is_file() && found.modified()? < before {
                swept += 1;
                if !dry_run {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(swept)
    }
}

impl ObjectStore for FileStore {
    fn parallel(&self) -> usize {
        self.parallel
    }

    fn describe(&self) -> String {
        url_of(&self.root)
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        self.named(Operation::Put, Some(key), self.write_as(key, body, until, put_in_place))
    }

    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        let result = self.write_as(key, body, until, |temporary, path| {
            temporary.persist_noclobber(path).map(drop).map_err(|e| match e.error.kind() {
                io::ErrorKind::AlreadyExists => StoreCause::Exists,
                _ => e.error.into(),
            })
        });
        self.named(Operation::Put, Some(key), result)
    }

    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError> {
        self.named(Operation::Get, Some(key), self.read(key, None, to, until))
    }

    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError> {
        self.named(Operation::Get, Some(key), self.read(key, Some(range), to, until))
    }

    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError> {
        let found = until.check().map_err(StoreCause::from).and_then(|()| self.find(key));
        self.named(Operation::Head, Some(key), found.map(|file| file.map(|(_, length_bytes)| length_bytes)))
    }

    /// One page: a folder's names come in no order, so all of them are read before the first can be given.
    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError> {
        let mut objects = self.named(Operation::List, folder, self.walk(folder, until))?;
        objects.retain(|object| after.is_none_or(|mark| object.key.as_str() > mark.0.as_str()));
        Ok(Page { objects, next: None })
    }

    fn sweep(
        &self,
        folder: &ObjectKey,
        before: SystemTime,
        dry_run: bool,
        until: &Until,
    ) -> Result<usize, StoreError> {
        let swept = self.sweep_folder(folder, before, dry_run, until);
        self.named(Operation::Delete, Some(folder), swept)
    }

    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| self.named(Operation::Delete, Some(key), self.remove(key, until)))
    }

    fn room_bytes(&self, until: &Until) -> Result<Option<u64>, StoreError> {
        let room = until.check().map_err(StoreCause::from).and_then(|()| {
            self.root_is_there()?;
            Ok(Some(free_bytes(&self.root).map_err(|e| e.source)?))
        });
        self.named(Operation::Open, None, room)
    }

    fn in_drafts(&self) -> Option<&dyn DraftStore> {
        Some(self)
    }
}

impl DraftStore for FileStore {
    fn put_draft(
        &self,
        folder: &ObjectKey,
        write: &mut WriteDraft<'_>,
        until: &Until,
    ) -> Result<Option<ObjectKey>, StoreError> {
        let fill = |file: &mut dyn Write| {
            let key = write(file)?;
            match &key {
                Some(key) if key.below(folder).is_none_or(|name| name.contains('/')) => {
                    let text = format!("{key} is not in the folder {folder}, where it was written");
                    Err(io::Error::new(io::ErrorKind::InvalidInput, text).into())
                }
                _ => Ok(key),
            }
        };
        let place = |temporary, key: &ObjectKey| put_in_place(temporary, &self.root.join(key.as_str()));
        let result = self.write(&self.folders_to(folder), fill, place, until);
        self.named(Operation::Put, Some(folder), result)
    }
}

fn put_in_place(temporary: tempfile::NamedTempFile, path: &Path) -> Result<(), StoreCause> {
    temporary.persist(path).map(drop).map_err(|e| e.error.into())
}

/// Which side of a copy failed.
enum GetError {
    From(ReadError),
    To(io::Error),
}

impl From<ReadError> for GetError {
    fn from(error: ReadError) -> Self {
        Self::From(error)
    }
}

fn url_of(root: &Path) -> String {
    format!("file://{}", root.display())
}

fn vanished(root: &Path) -> StoreCause {
    let text = format!("the folder {} is gone; is its disk mounted?", root.display());
    io::Error::new(io::ErrorKind::NotFound, text).into()
}

/// The store whose root `path` leads to, if there is one.
fn resolve(path: &Path) -> Result<Option<FileStore>, StoreCause> {
    match fs::canonicalize(path) {
        Ok(root) => Ok(folder_is_there(&root)?.then(|| FileStore::at(root))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether there is a folder at `path`; anything else there, a symbolic link too, is an error.
fn folder_is_there(path: &Path) -> Result<bool, StoreCause> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => {
            let text = format!("{} is no folder", path.display());
            Err(io::Error::new(io::ErrorKind::NotADirectory, text).into())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes one folder; one that somebody else makes at the same time will do.
fn create_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Makes a folder and those above it that are missing, durably.
fn create_folders(path: &Path) -> Result<(), StoreCause> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), create_folders)?;
    create_folder(path)?;
    sync_folder(parent.unwrap_or(Path::new("."))).map_err(|e| e.source.into())
}

fn write_body(file: &mut dyn Write, body: Body<'_>, until: &Until) -> Result<(), StoreCause> {
    match body {
        Body::Bytes(bytes) => bytes.chunks(COPY_BYTES).try_for_each(|piece| {
            until.check()?;
            Ok(file.write_all(piece)?)
        }),
        Body::File { file: from, offset_bytes, length_bytes, chunks } => {
            let mut to = HashingWriter::new(file);
            let range = offset_bytes..offset_bytes.saturating_add(length_bytes);
            read_pieces(from, range, until, |piece| Ok::<_, StoreCause>(to.write_all(piece)?))?;
            let is_as_promised = to.finish().0.hash == ContentHash::of_chunks(chunks);
            if is_as_promised { Ok(()) } else { Err(StoreCause::BodyChanged) }
        }
    }
}

fn list_folder(
    path: &Path,
    folder: Option<&ObjectKey>,
    until: &Until,
    objects: &mut Vec<ObjectMeta>,
    folders: &mut Vec<Option<ObjectKey>>,
) -> Result<(), StoreCause> {
    for entry in fs::read_dir(path)? {
        until.check()?;
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // The root of a file system has a folder of its own, which only its owner may read.
        if folder.is_none() && name == "lost+found" {
            continue;
        }
        // Temporary names are no keys.
        let Ok(key) = folder.map_or_else(|| ObjectKey::new(&*name), |folder| folder.join(&name)) else {
            continue;
        };
        let found = match entry.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        if found.is_dir() {
            folders.push(Some(key));
        } else if found.is_file() {
            objects.push(ObjectMeta { key, length_bytes: found.len() });
        }
    }
    Ok(())
}
