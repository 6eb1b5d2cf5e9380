//! Which files there are: the manifest, kept recovery points and pins, and what no name leads to any more.
//!
//! ```text
//! memdb/manifest   the newest recovery point: names of its files, replaced in one step
//! memdb/part-3     entries of one instance, in their order
//! memdb/log-4      operations since the parts were written, or since the log before
//! memdb/point-7    a kept recovery point: its description, and names of its files
//! memdb/pin-1      a second name of a manifest whose files are pinned
//! ```
//!
//! Parts and logs are never changed. They are durable before a manifest names them, and they are removed when
//! neither the manifest nor a kept point nor a pin does. A file whose manifest could not be written stays until one
//! could: whether the one on disk names it is unknown until then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use crate::durable::{self, TEMPORARY_SUFFIX};
use crate::thread::Until;

use super::super::InstId;
use super::super::store::{CheckFault, PinnedFiles, PointId, RecoveryPoint, ShardFile, StoreFault};
use super::FOLDER;
use super::file::{self, FileName, FileRef, Kind};

const MANIFEST: &str = "manifest";
const MANIFEST_KIND: &str = "memdb-manifest";
const POINT_PREFIX: &str = "point-";
const POINT_KIND: &str = "memdb-point";
const PIN_PREFIX: &str = "pin-";
const VERSION: u32 = 1;

/// Neighbouring leaves of an instance's entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) inst: InstId,
    pub(super) leaves: usize,
    pub(super) file: FileRef,
}

/// The files of a state: that of the parts, and the operations that lead on from there, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Image {
    pub(super) parts: Vec<Part>,
    pub(super) logs: Vec<FileRef>,
}

impl Image {
    pub(super) fn files(&self) -> impl Iterator<Item = (Kind, &FileRef)> {
        let parts = self.parts.iter().map(|part| (Kind::Part, &part.file));
        parts.chain(self.logs.iter().map(|log| (Kind::Log, log)))
    }

    fn names(&self) -> impl Iterator<Item = FileName> {
        self.files().map(|(kind, file)| kind.name(file.number))
    }

    pub(super) fn log_bytes(&self) -> u64 {
        self.logs.iter().map(|log| log.length_bytes).sum()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// No file has this number or a higher one, unless it was never named.
    next_file: u64,
    /// Kept points with higher numbers were gone back beyond: nothing is left of them but perhaps their files.
    points_up_to: PointId,
    image: Image,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeptPoint {
    pub(super) point: RecoveryPoint,
    pub(super) image: Image,
}

struct Pin {
    hold: Weak<()>,
    names: BTreeSet<FileName>,
    link: PathBuf,
}

/// See the module.
pub(super) struct Files {
    folder: PathBuf,
    image: Image,
    points_up_to: PointId,
    next_file: u64,
    next_pin: u64,
    points: BTreeMap<PointId, KeptPoint>,
    /// The newest manifest makes it possible and its own file is still to be written.
    to_keep: Option<KeptPoint>,
    pins: Vec<Pin>,
    /// Parts and logs on disk that are safe to remove when nothing here names them.
    present: BTreeSet<FileName>,
    /// Files that the manifest on disk may name, after the writing of one failed.
    doubtful: BTreeSet<FileName>,
    is_settled: bool,
}

impl Files {
    /// Makes the folder of an empty store.
    pub(super) fn create(shard_folder: &Path) -> Result<(), StoreFault> {
        let doing = "create the store";
        let folder = shard_folder.join(FOLDER);
        fs::create_dir(&folder).map_err(|e| StoreFault::at(doing, &folder, &e))?;
        let manifest = Manifest { next_file: 1, points_up_to: PointId(0), image: Image::default() };
        write(&folder.join(MANIFEST), MANIFEST_KIND, &manifest, doing)?;
        durable::sync_folder(shard_folder).map_err(|e| StoreFault::new(doing, &e))
    }

    /// Reads the manifest and the kept points of a store.
    pub(super) fn open(shard_folder: &Path) -> Result<Self, StoreFault> {
        let folder = shard_folder.join(FOLDER);
        let manifest: Manifest = read(&folder.join(MANIFEST), MANIFEST_KIND, "open the store")?;
        let mut files = Self {
            image: manifest.image,
            points_up_to: manifest.points_up_to,
            next_file: manifest.next_file,
            next_pin: 1,
            points: BTreeMap::new(),
            to_keep: None,
            pins: Vec::new(),
            present: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            is_settled: true,
            folder,
        };
        for (name, path) in files.list()? {
            if let Some(id) = number_after(&name, POINT_PREFIX).filter(|id| *id <= files.points_up_to.0) {
                let kept = read(&path, POINT_KIND, "read a recovery point")?;
                files.points.insert(PointId(id), kept);
            }
        }
        files.present = files.named();
        Ok(files)
    }

    /// Removes what a crash left: files that nothing names.
    pub(super) fn remove_leftovers(&self) -> Result<(), StoreFault> {
        let named: BTreeSet<String> = self.named().iter().map(FileName::to_string).collect();
        for (name, path) in self.list()? {
            let is_point = |id: u64| self.points.contains_key(&PointId(id));
            let is_leftover = name.ends_with(TEMPORARY_SUFFIX)
                || name.starts_with(PIN_PREFIX)
                || number_after(&name, POINT_PREFIX).is_some_and(|id| !is_point(id))
                || ["part-", "log-"].iter().any(|kind| number_after(&name, kind).is_some())
                    && !named.contains(&name);
            if is_leftover {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<(String, PathBuf)>, StoreFault> {
        let fault = |e: io::Error| StoreFault::at("list the store's files", &self.folder, &e);
        let entries = fs::read_dir(&self.folder).map_err(fault)?;
        let named = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
        entries.map(|entry| entry.map(named).map_err(fault)).collect()
    }

    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    pub(super) fn points_up_to(&self) -> PointId {
        self.points_up_to
    }

    /// A number for a file that is going to be written.
    pub(super) fn new_number(&mut self) -> u64 {
        self.next_file += 1;
        self.next_file - 1
    }

    /// Every file that is needed.
    fn named(&self) -> BTreeSet<FileName> {
        let kept = self.points.values().chain(&self.to_keep).flat_map(|kept| kept.image.names());
        let mut names: BTreeSet<_> = self.image.names().chain(kept).collect();
        self.pins.iter().for_each(|pin| names.extend(&pin.names));
        names
    }

    /// Makes `image`, whose files are durable, the newest recovery point.
    pub(super) fn publish(&mut self, image: Image, points_up_to: PointId) -> Result<(), StoreFault> {
        let manifest = Manifest { next_file: self.next_file, points_up_to, image };
        let written =
            write(&self.folder.join(MANIFEST), MANIFEST_KIND, &manifest, "write the store's manifest");
        let new = manifest.image.names().filter(|name| !self.present.contains(name));
        self.doubtful.extend(new);
        self.is_settled = written.is_ok();
        written?;
        self.present.append(&mut self.doubtful);
        self.image = manifest.image;
        self.points_up_to = points_up_to;
        Ok(())
    }

    /// Writes the manifest once more after that failed, so that the one on disk is known.
    pub(super) fn settle(&mut self) -> Result<(), StoreFault> {
        if self.is_settled { Ok(()) } else { self.publish(self.image.clone(), self.points_up_to) }
    }

    /// Keeps the newest recovery point with the next [`Files::write_point`].
    pub(super) fn keep(&mut self, point: RecoveryPoint) {
        self.to_keep = Some(KeptPoint { point, image: self.image.clone() });
    }

    pub(super) fn write_point(&mut self) -> Result<(), StoreFault> {
        let Some(kept) = &self.to_keep else { return Ok(()) };
        let id = kept.point.id;
        write(&self.point_path(id), POINT_KIND, kept, "keep a recovery point")?;
        self.points.extend(self.to_keep.take().map(|kept| (id, kept)));
        Ok(())
    }

    fn point_path(&self, id: PointId) -> PathBuf {
        self.folder.join(format!("{POINT_PREFIX}{id}"))
    }

    pub(super) fn points(&self) -> impl Iterator<Item = &KeptPoint> {
        self.points.values()
    }

    pub(super) fn point(&self, id: PointId) -> Option<&KeptPoint> {
        self.points.get(&id)
    }

    pub(super) fn forget(&mut self, id: PointId) -> Result<(), StoreFault> {
        if self.points.contains_key(&id) {
            remove(&self.point_path(id))?;
            durable::sync_folder(&self.folder).map_err(|e| StoreFault::new("forget a recovery point", &e))?;
            self.points.remove(&id);
        }
        Ok(())
    }

    /// Forgets the points that the manifest does not allow any more.
    pub(super) fn forget_gone_points(&mut self) -> Result<(), StoreFault> {
        self.to_keep = None;
        let gone: Vec<_> = self.points.keys().filter(|id| **id > self.points_up_to).copied().collect();
        gone.into_iter().try_for_each(|id| self.forget(id))
    }

    /// The files of the newest recovery point, with the manifest at `manifest`.
    fn shard_files(&self, manifest: PathBuf) -> Result<Vec<ShardFile>, StoreFault> {
        let length = fs::metadata(&manifest)
            .map_err(|e| StoreFault::at("list the store's files", &manifest, &e))?
            .len();
        let mut files =
            vec![ShardFile { name: format!("{FOLDER}/{MANIFEST}"), path: manifest, length_bytes: length }];
        files.extend(self.image.files().map(|(kind, file)| {
            let name = kind.name(file.number).to_string();
            let path = self.folder.join(&name);
            ShardFile { name: format!("{FOLDER}/{name}"), path, length_bytes: file.length_bytes }
        }));
        Ok(files)
    }

    /// The files of the newest recovery point.
    pub(super) fn newest(&mut self) -> Result<Vec<ShardFile>, StoreFault> {
        self.settle()?;
        self.shard_files(self.folder.join(MANIFEST))
    }

    /// The files of the newest recovery point, which stay for as long as the result lives.
    pub(super) fn pin(&mut self) -> Result<PinnedFiles, StoreFault> {
        self.settle()?;
        let link = self.folder.join(format!("{PIN_PREFIX}{}", self.next_pin));
        self.next_pin += 1;
        fs::hard_link(self.folder.join(MANIFEST), &link)
            .map_err(|e| StoreFault::at("pin the store's files", &link, &e))?;
        let hold = Arc::new(());
        let names = self.image.names().collect();
        self.pins.push(Pin { hold: Arc::downgrade(&hold), names, link: link.clone() });
        Ok(PinnedFiles::new(self.shard_files(link)?, hold))
    }

    /// Compares the manifest and every file of the newest recovery point with their checksums.
    pub(super) fn check(&self, until: &Until) -> Result<(), CheckFault> {
        let doing = "check the store";
        let path = self.folder.join(MANIFEST);
        let found: Manifest = read(&path, MANIFEST_KIND, doing)?;
        if self.is_settled && found.image != self.image {
            return Err(StoreFault::at(doing, &path, &"it names other files than the store has").into());
        }
        self.image.files().try_for_each(|(kind, of)| file::check(&self.folder, kind, of, until))
    }

    /// Takes out of the books what nothing needs any more, for removal.
    pub(super) fn take_unused(&mut self) -> Vec<PathBuf> {
        let mut unused = Vec::new();
        self.pins.retain(|pin| {
            let is_held = pin.hold.strong_count() > 0;
            unused.extend((!is_held).then(|| pin.link.clone()));
            is_held
        });
        let named = self.named();
        let folder = &self.folder;
        let gone = self.present.difference(&named);
        unused.extend(gone.map(|name| folder.join(name.to_string())));
        self.present.retain(|name| named.contains(name));
        unused
    }
}

fn number_after(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.parse().ok()
}

fn write<T: Serialize>(path: &Path, kind: &str, document: &T, doing: &'static str) -> Result<(), StoreFault> {
    let sealed = durable::seal(kind, VERSION, document).map_err(|e| StoreFault::new(doing, &e))?;
    durable::replace(path, &sealed).map_err(|e| StoreFault::new(doing, &e))
}

fn read<T: serde::de::DeserializeOwned>(
    path: &Path,
    kind: &'static str,
    doing: &'static str,
) -> Result<T, StoreFault> {
    let sealed = fs::read(path).map_err(|e| StoreFault::at(doing, path, &e))?;
    durable::unseal(kind, VERSION, &sealed).map_err(|why| StoreFault::at(doing, path, &why))
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Result<(), StoreFault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreFault::at("remove a file that is not needed any more", path, &error))
        }
        _ => Ok(()),
    }
}
