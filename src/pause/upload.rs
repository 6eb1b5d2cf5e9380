//! From files to an archive: first the plan, then the act.
//!
//! The plan reads each file once, names its content and decides what the archive lacks; it changes nothing and
//! can be shown instead of carried out. What the archive has already is named again, not uploaded.
//!
//! Invariant: an object that was uploaded holds the content that was planned. A file that changes between the
//! two is an error, never an archive. An upload that fails leaves objects that no manifest names.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::manifest::{Manifest, ManifestError, ManifestFile, object_key, objects_folder, unusable};
use super::{AttemptId, Meter, Progress};
use crate::durable::{AtPath, PathError};
use crate::objstore::{
    Body, ChunkHash, ContentHash, FileRead, FileUpload, ObjectKey, ObjectStore, StoreCause, StoreError,
    TransferError, hash_files, upload_files,
};
use crate::shard::ShardId;
use crate::thread::{Stopped, Until};

/// A file of a shard that is to be archived. Its first `length_bytes` must not change until the upload is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// The shard.
    pub shard: ShardId,
    /// Path of the file inside the shard's folder, as the archive is to name it.
    pub name: ObjectKey,
    /// Where the file lies now.
    pub path: PathBuf,
    /// How much of the file belongs to the image; a longer file is cut there, a shorter one is an error.
    pub length_bytes: u64,
}

/// What is to be uploaded, and what need not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPlan {
    files: Vec<PlannedFile>,
}

/// One file of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// The file as the manifest will name it.
    pub file: ManifestFile,
    /// Where it lies now.
    pub path: PathBuf,
    /// The hashes of its chunks.
    pub chunks: Vec<ChunkHash>,
    /// Whether its object is uploaded for it. It is not if the archive has it, or if an equal file comes first.
    pub is_new: bool,
}

/// Why files could not be planned for or uploaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// A file cannot be read.
    #[error(transparent)]
    Local(#[from] PathError),
    /// A file is shorter than its image, or has another content than when the upload was planned.
    #[error("cannot archive {}: it changed while it was read ({what}); pause again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// The bucket's name cannot be used in an archive.
    #[error(transparent)]
    Bucket(ManifestError),
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The threads that carry the files.
    #[error("cannot archive all files: {0}")]
    Thread(TransferError),
    /// The caller's limit ended first.
    #[error("cannot archive all files: {0}")]
    Stopped(#[from] Stopped),
}

impl UploadPlan {
    /// The files, in the order in which they were given.
    pub fn planned(&self) -> &[PlannedFile] {
        &self.files
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        total_bytes(self.files.iter())
    }

    /// Number of files that are uploaded.
    pub fn new_files(&self) -> usize {
        self.only_new().count()
    }

    /// Bytes that are uploaded.
    pub fn new_bytes(&self) -> u64 {
        total_bytes(self.only_new())
    }

    fn only_new(&self) -> impl Iterator<Item = &PlannedFile> {
        self.files.iter().filter(|planned| planned.is_new)
    }
}

fn total_bytes<'a>(files: impl Iterator<Item = &'a PlannedFile>) -> u64 {
    files.fold(0, |sum, planned| sum.saturating_add(planned.file.length_bytes))
}

impl fmt::Display for UploadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, bytes) = (self.files(), self.bytes());
        write!(
            f,
            "{files} files with {bytes} bytes, of which {} files with {} bytes are uploaded",
            self.new_files(),
            self.new_bytes()
        )
    }
}

/// Whether the archive takes objects: puts a small one and deletes it. An error of the latter comes back beside: the
/// object is one that no manifest names, and a prune deletes it.
pub fn probe(
    store: &dyn ObjectStore,
    bucket: &str,
    attempt: AttemptId,
    until: &Until,
) -> Result<Option<StoreError>, ManifestError> {
    let key = objects_folder(bucket)?.join(&format!("probe-{attempt}")).map_err(|e| unusable(bucket, e))?;
    store.put(&key, Body::Bytes(b"dormouse"), until)?;
    Ok(store.delete(&[key], until).err())
}

/// Objects that a pause may name without uploading them, by the hash and the length of what they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reusable(HashMap<(ContentHash, u64), ObjectKey>);

impl Reusable {
    /// The objects that are in the store, with the right length, and that `parent` names, an earlier pause of the
    /// same bucket, or that `attempt` has uploaded before it was interrupted. One listing, no object is read.
    pub fn find(
        bucket: &str,
        parent: Option<&Manifest>,
        attempt: AttemptId,
        store: &dyn ObjectStore,
        until: &Until,
    ) -> Result<Self, UploadError> {
        let folder = objects_folder(bucket).map_err(UploadError::Bucket)?;
        let listed = store.list(Some(&folder), until).map_err(store_error)?;
        let of_parent: HashMap<&ObjectKey, &ManifestFile> =
            parent.into_iter().flat_map(|parent| &parent.files).map(|file| (&file.object, file)).collect();
        let mut reusable = Self::default();
        for object in listed {
            let named = of_parent.get(&object.key).filter(|file| file.length_bytes == object.length_bytes);
            let hash = named.map(|file| file.hash).or_else(|| {
                let (hash, of) = object.key.below(&folder)?.split_once('-')?;
                (of.parse().ok() == Some(attempt)).then(|| hash.parse().ok())?
            });
            if let Some(hash) = hash {
                reusable.0.insert((hash, object.length_bytes), object.key);
            }
        }
        Ok(reusable)
    }

    /// Adds what was uploaded meanwhile.
    pub fn add(&mut self, files: &[ManifestFile]) {
        let content = |file: &ManifestFile| ((file.hash, file.length_bytes), file.object.clone());
        self.0.extend(files.iter().map(content));
    }
}

/// Hashes of files that were read before, so that they need not be read again under another name. Whoever keeps
/// them sees to it that none of those files changes or gives its place on the disk away.
#[derive(Debug, Default)]
pub struct KnownHashes {
    chunks: HashMap<FileIdentity, Vec<ChunkHash>>,
    threads: usize,
}

/// Device, number on it, and length.
type FileIdentity = (u64, u64, u64);

impl KnownHashes {
    /// None yet; files are read by so many threads at a time.
    pub fn read_by(threads: usize) -> Self {
        Self { chunks: HashMap::new(), threads }
    }

    /// Reads what is not known yet and gives the files' identities. Bytes are told of when their hash is known.
    fn learn(
        &mut self,
        files: &[ImageFile],
        until: &Until,
        on_known: &mut dyn FnMut(u64),
    ) -> Result<Vec<FileIdentity>, UploadError> {
        let (mut identities, mut unknown) = (Vec::with_capacity(files.len()), Vec::new());
        for image in files {
            let meta = std::fs::metadata(&image.path).at("look at", &image.path)?;
            let identity = (meta.dev(), meta.ino(), image.length_bytes);
            if self.chunks.contains_key(&identity) {
                on_known(image.length_bytes);
            } else {
                unknown.push((identity, FileRead { path: &image.path, length_bytes: image.length_bytes }));
            }
            identities.push(identity);
        }
        let wanted: Vec<FileRead<'_>> = unknown.iter().map(|(_, file)| *file).collect();
        let found = hash_files(self.threads, &wanted, until, on_known).map_err(|error| match error {
            TransferError::Short { path, what } => UploadError::Changed { path, what },
            error => upload_error(error, &[]),
        })?;
        self.chunks.extend(unknown.iter().map(|(identity, _)| *identity).zip(found));
        Ok(identities)
    }
}

/// Reads every file that `known` does not know, and plans the upload for `bucket` as part of `attempt`. An object
/// of `reusable` is named again for a file of equal hash and length. Bytes count as done when they were hashed.
pub fn plan_upload(
    bucket: &str,
    attempt: AttemptId,
    files: &[ImageFile],
    reusable: &Reusable,
    known: &mut KnownHashes,
    until: &Until,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<UploadPlan, UploadError> {
    let total_bytes = files.iter().fold(0, |sum: u64, image| sum.saturating_add(image.length_bytes));
    let mut meter = Meter::new(total_bytes, on_progress);
    let identities = known.learn(files, until, &mut |bytes| meter.add(bytes))?;
    let mut objects = reusable.0.clone();
    let mut planned = Vec::with_capacity(files.len());
    for (image, identity) in files.iter().zip(identities) {
        let chunks = known.chunks.get(&identity).cloned().unwrap_or_default();
        let hash = ContentHash::of_chunks(&chunks);
        let content = (hash, image.length_bytes);
        let present = objects.get(&content).cloned();
        let is_new = present.is_none();
        let object = match present {
            Some(object) => object,
            None => object_key(bucket, hash, attempt).map_err(UploadError::Bucket)?,
        };
        objects.insert(content, object.clone());
        let (shard, name, length_bytes) = (image.shard, image.name.clone(), image.length_bytes);
        let file = ManifestFile { shard, name, length_bytes, hash, object };
        planned.push(PlannedFile { file, path: image.path.clone(), chunks, is_new });
    }
    Ok(UploadPlan { files: planned })
}

/// Carries the plan out and gives the files for the manifest, in the plan's order. Bytes count as done when
/// they are durable in the store. Carrying out a plan again is fine: an object that went half in parts is taken up.
/// Parts that nobody takes up are removed by a prune.
pub fn upload(
    plan: &UploadPlan,
    store: &dyn ObjectStore,
    until: &Until,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Vec<ManifestFile>, UploadError> {
    let mut meter = Meter::new(plan.new_bytes(), on_progress);
    let files: Vec<FileUpload<'_>> = plan
        .only_new()
        .map(|PlannedFile { file, path, chunks, .. }| FileUpload {
            key: &file.object,
            path,
            length_bytes: file.length_bytes,
            chunks,
        })
        .collect();
    upload_files(store, &files, until, &mut |bytes| meter.add(bytes))
        .map_err(|error| upload_error(error, &files))?;
    Ok(plan.files.iter().map(|planned| planned.file.clone()).collect())
}

fn upload_error(error: TransferError, files: &[FileUpload<'_>]) -> UploadError {
    let (file, error) = match error {
        TransferError::Local(error) => return error.into(),
        TransferError::Stopped(why) => return why.into(),
        TransferError::Store { file, error } => (file, error),
        other => return UploadError::Thread(other),
    };
    let path = files.get(file).map_or_else(PathBuf::new, |file| file.path.to_owned());
    match error.cause {
        StoreCause::BodyTooShort { .. } | StoreCause::BodyChanged => {
            UploadError::Changed { path, what: error.cause.to_string() }
        }
        StoreCause::Body(source) => PathError { doing: "read", path, source }.into(),
        _ => store_error(error),
    }
}

fn store_error(error: StoreError) -> UploadError {
    match error.cause {
        StoreCause::Stopped(why) => why.into(),
        _ => UploadError::Store(error),
    }
}
