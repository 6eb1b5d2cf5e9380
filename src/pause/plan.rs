//! From files to an archive, the first half: what is to be done.
//!
//! A plan names what the archive has already and lists what it lacks; making one changes nothing, and it can be shown
//! instead of carried out. A file is read for it where its content may be in the archive: where an object that can be
//! named again, or another of the files, is as long. Any other file is read once, while it is uploaded, if the store
//! names objects after it has written them.
//!
//! Invariant: a file that is not read has a length that no reusable object and no other file has, so its content is
//! new.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::AttemptId;
use super::condemned::Standing;
use super::manifest::{Archived, Manifest, ManifestFile};
use super::part::BucketPart;
use super::upload::{UploadError, upload_error};
use crate::durable::AtPath;
use crate::objstore::{
    ChunkHash, Content, ContentHash, Encoding, FileRead, ObjectKey, TransferError, hash_files,
};
use crate::shard::ShardId;
use crate::thread::Until;

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

impl ImageFile {
    pub(super) fn archived(&self, archived: Archived) -> ManifestFile {
        let Archived { hash, object, stored } = archived;
        let (shard, name, length_bytes) = (self.shard, self.name.clone(), self.length_bytes);
        ManifestFile { shard, name, length_bytes, hash, object, stored }
    }
}

/// How files become objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOptions {
    /// The bucket that the files are of.
    pub bucket: BucketPart,
    /// The attempt that uploads them.
    pub attempt: AttemptId,
    /// How they are encoded where that pays; `None` leaves all as they are.
    pub encoding: Option<Encoding>,
    /// Whether a file whose content is certainly new may be left unread: the store takes drafts.
    pub takes_drafts: bool,
}

impl UploadOptions {
    pub(super) fn object_key(&self, hash: ContentHash) -> Result<ObjectKey, UploadError> {
        self.bucket.object_key(hash, self.attempt).map_err(UploadError::Bucket)
    }
}

/// What is to be uploaded, and what need not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPlan {
    pub(super) options: UploadOptions,
    files: Vec<PlannedFile>,
}

/// One file of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// The file.
    pub image: ImageFile,
    /// How it comes into the archive.
    pub way: Way,
    pub(super) identity: FileIdentity,
}

/// How a file comes into an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It is there, as this.
    There(Archived),
    /// It is equal to the file of the plan with this number, which is uploaded.
    Like(usize),
    /// It is uploaded. Its chunks have these hashes.
    New(Vec<ChunkHash>),
    /// It is uploaded, and read only then.
    Unread,
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

    /// Bytes of the files that are uploaded.
    pub fn new_bytes(&self) -> u64 {
        total_bytes(self.only_new().map(|(_, planned)| planned))
    }

    /// The files that are uploaded, each with its number.
    pub(super) fn only_new(&self) -> impl Iterator<Item = (usize, &PlannedFile)> {
        let is_new = |planned: &PlannedFile| matches!(planned.way, Way::New(_) | Way::Unread);
        self.files.iter().enumerate().filter(move |(_, planned)| is_new(planned))
    }
}

pub(super) fn total_bytes<'a>(files: impl Iterator<Item = &'a PlannedFile>) -> u64 {
    files.fold(0, |sum, planned| sum.saturating_add(planned.image.length_bytes))
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

/// What a pause may name without uploading it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reusable {
    /// What holds a file of this content.
    files: HashMap<Content, Archived>,
    /// Objects of an interrupted attempt by their own content. Of what, if they are encoded, nobody knows.
    objects: HashMap<Content, ObjectKey>,
}

impl Reusable {
    /// Of what stands in the archive, the objects that `parent` names, an earlier pause of the same bucket, or that one
    /// of `attempts` has uploaded before it was interrupted.
    pub fn find(
        bucket: &BucketPart,
        parent: Option<&Manifest>,
        attempts: &[AttemptId],
        standing: &Standing,
    ) -> Result<Self, UploadError> {
        let folder = bucket.objects().map_err(UploadError::Bucket)?;
        let of_parent: HashMap<&ObjectKey, &ManifestFile> =
            parent.into_iter().flat_map(|parent| &parent.files).map(|file| (&file.object, file)).collect();
        let mut reusable = Self::default();
        for (object, length_bytes) in standing.objects() {
            let named = of_parent.get(object);
            if let Some(file) = named.filter(|file| file.object_content().length_bytes == length_bytes) {
                reusable.add(std::slice::from_ref(*file));
            } else if let Some(hash) = uploaded_by(attempts, object, &folder) {
                reusable.objects.insert(Content { length_bytes, hash }, object.clone());
            }
        }
        Ok(reusable)
    }

    /// Leaves out what does not stand any more.
    pub fn keep_standing(&mut self, standing: &Standing) {
        self.files.retain(|content, archived| {
            let length_bytes = archived.stored.map_or(content.length_bytes, |stored| stored.length_bytes);
            standing.has(&archived.object, length_bytes)
        });
        self.objects.retain(|content, object| standing.has(object, content.length_bytes));
    }

    /// Adds what was uploaded meanwhile.
    pub fn add(&mut self, files: &[ManifestFile]) {
        self.files.extend(files.iter().map(|file| (file.content(), file.archived())));
    }

    fn file(&self, content: Content) -> Option<Archived> {
        let as_it_is =
            |object: &ObjectKey| Archived { hash: content.hash, object: object.clone(), stored: None };
        self.files.get(&content).cloned().or_else(|| self.object(content).map(as_it_is))
    }

    /// The object of the attempt that has this very content.
    pub(super) fn object(&self, content: Content) -> Option<&ObjectKey> {
        self.objects.get(&content)
    }

    fn lengths(&self) -> HashSet<u64> {
        self.files.keys().chain(self.objects.keys()).map(|content| content.length_bytes).collect()
    }
}

/// The content that the object's key promises, if the object is one of the attempts'.
fn uploaded_by(attempts: &[AttemptId], object: &ObjectKey, folder: &ObjectKey) -> Option<ContentHash> {
    let (hash, of) = object.below(folder)?.split_once('-')?;
    of.parse().is_ok_and(|of| attempts.contains(&of)).then(|| hash.parse().ok())?
}

/// Hashes of files that were read before, so that they need not be read again under another name. Whoever keeps
/// them sees to it that none of those files changes or gives its place on the disk away.
#[derive(Debug, Default)]
pub struct KnownHashes {
    chunks: HashMap<FileIdentity, Vec<ChunkHash>>,
    threads: usize,
}

/// Device, number on it, and length.
pub(super) type FileIdentity = (u64, u64, u64);

impl KnownHashes {
    /// None yet; files are read by so many threads at a time.
    pub fn read_by(threads: usize) -> Self {
        Self { chunks: HashMap::new(), threads }
    }

    pub(super) fn add(&mut self, identity: FileIdentity, chunks: Vec<ChunkHash>) {
        self.chunks.insert(identity, chunks);
    }

    /// Reads those of the files that are wanted and not known yet.
    fn learn(
        &mut self,
        files: &[(&ImageFile, FileIdentity)],
        is_wanted: impl Fn(&ImageFile) -> bool,
        until: &Until,
    ) -> Result<(), UploadError> {
        let unknown: Vec<&(&ImageFile, FileIdentity)> = files
            .iter()
            .filter(|(image, identity)| !self.chunks.contains_key(identity) && is_wanted(image))
            .collect();
        let wanted: Vec<FileRead<'_>> = unknown
            .iter()
            .map(|(image, _)| FileRead { path: &image.path, length_bytes: image.length_bytes })
            .collect();
        let found = hash_files(self.threads, &wanted, until).map_err(|error| match error {
            TransferError::Short { path, what } => UploadError::Changed { path, what },
            error => upload_error(error, |_| None),
        })?;
        self.chunks.extend(unknown.iter().map(|(_, identity)| *identity).zip(found));
        Ok(())
    }
}

/// Plans the upload of the files. What is in the archive and in `reusable`, or in a file that comes first, is not
/// uploaded again.
pub fn plan_upload(
    options: &UploadOptions,
    files: &[ImageFile],
    reusable: &Reusable,
    known: &mut KnownHashes,
    until: &Until,
) -> Result<UploadPlan, UploadError> {
    // So that no key fails after something was uploaded.
    options.object_key(ContentHash::of_chunks(&[]))?;
    until.check()?;
    let mut identified = Vec::with_capacity(files.len());
    let mut as_long: HashMap<u64, usize> = HashMap::new();
    for image in files {
        let meta = std::fs::metadata(&image.path).at("look at", &image.path)?;
        identified.push((image, (meta.dev(), meta.ino(), image.length_bytes)));
        *as_long.entry(image.length_bytes).or_default() += 1;
    }
    let reusable_lengths = reusable.lengths();
    let may_be_there = |image: &ImageFile| {
        let length_bytes = image.length_bytes;
        as_long.get(&length_bytes).is_some_and(|files| *files > 1) || reusable_lengths.contains(&length_bytes)
    };
    known.learn(&identified, |image| !options.takes_drafts || may_be_there(image), until)?;
    let mut firsts: HashMap<Content, usize> = HashMap::new();
    let way = |(number, (image, identity)): (usize, (&ImageFile, FileIdentity))| {
        let way = match known.chunks.get(&identity) {
            None => Way::Unread,
            Some(chunks) => {
                let hash = ContentHash::of_chunks(chunks);
                let content = Content { length_bytes: image.length_bytes, hash };
                match (reusable.file(content), firsts.get(&content)) {
                    (Some(archived), _) => Way::There(archived),
                    (None, Some(first)) => Way::Like(*first),
                    (None, None) => {
                        firsts.insert(content, number);
                        Way::New(chunks.clone())
                    }
                }
            }
        };
        PlannedFile { image: image.clone(), way, identity }
    };
    let files = identified.into_iter().enumerate().map(way).collect();
    Ok(UploadPlan { options: options.clone(), files })
}
