//! From files to an archive, the second half: a plan is carried out.
//!
//! A store that takes drafts gets each file in one pass, which reads it, encodes it where that is wanted and pays, and
//! names the object by what was written. Any other store is told the hash of an object before its bytes: there a file
//! that is to be encoded is encoded to a temporary file first, few at a time.
//!
//! Invariant: an object that was uploaded holds the content that its key names, and what the manifest says of a file
//! was computed from the bytes that were uploaded. A file that was read for the plan and changes before its upload is
//! an error, never an archive. An upload that fails leaves objects that no manifest names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::{Archived, ManifestError, ManifestFile, Stored};
use super::part::BucketPart;
use super::plan::{KnownHashes, PlannedFile, Reusable, UploadPlan, Way, total_bytes};
use super::{AttemptId, Meter, Progress};
use crate::durable::{AtPath, PathError, RoomError, require_room};
use crate::objstore::{
    Body, ChunkHash, Content, ContentHash, DraftStore, EncodedContent, Encoding, FileContent, FileDraft,
    FileEncode, FileUpload, ObjectStore, StoreCause, StoreError, TransferError, draft_files, encode_files,
    upload_files,
};
use crate::thread::{Failure, FailureKind, Stopped, Until};

/// Bytes of files that are encoded before they are uploaded, at most, but for a file that has more by itself.
const ENCODED_AHEAD_BYTES: u64 = 64 * 1024 * 1024;

/// Why files could not be planned for or uploaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// A file cannot be read, or an encoded one not be written.
    #[error(transparent)]
    Local(#[from] PathError),
    /// There is no room for encoded files.
    #[error("cannot encode files before they are uploaded: {0}, or pause without compression")]
    Room(#[from] RoomError),
    /// The archive has too little room for what is new.
    #[error(
        "cannot archive all files: {store} has room for {free_bytes} bytes, and {needed_bytes} are needed; free some there, \
         or name another archive"
    )]
    ArchiveFull {
        /// URL of the archive.
        store: String,
        /// How much there is.
        free_bytes: u64,
        /// How much there has to be.
        needed_bytes: u64,
    },
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

impl Failure for UploadError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Bucket(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Thread(error) => error.kind(),
            Self::Stopped(why) => why.kind(),
            Self::Changed { .. } => FailureKind::Temporary,
            Self::Local(_) | Self::Room(_) | Self::ArchiveFull { .. } => FailureKind::Lasting,
        }
    }
}

/// Whether the archive takes objects: puts a small one and deletes it. An error of the latter comes back beside: the
/// object is one that no manifest names, and a prune deletes it.
pub fn probe(
    store: &dyn ObjectStore,
    bucket: &BucketPart,
    attempt: AttemptId,
    until: &Until,
) -> Result<Option<StoreError>, ManifestError> {
    let key = bucket.below(&bucket.objects()?, &format!("probe-{attempt}"))?;
    store.put(&key, Body::Bytes(b"dormouse"), until)?;
    Ok(store.delete(&[key], until).err())
}

/// Objects that an upload put, or would put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewObjects {
    /// How many.
    pub files: usize,
    /// Their bytes, as they are in the store.
    pub bytes: u64,
}

impl NewObjects {
    /// Counts one more.
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What came of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// The files for the manifest, in the plan's order.
    pub files: Vec<ManifestFile>,
    /// What the archive did not have.
    pub new: NewObjects,
}

/// Whether the archive has room for what the plan uploads, as far as it can tell beforehand. `weigh` says how much that
/// is, and is asked only where there is no room for the files as they are.
fn require_archive_room(
    plan: &UploadPlan,
    store: &dyn ObjectStore,
    weigh: impl FnOnce() -> Result<NewObjects, UploadError>,
    until: &Until,
) -> Result<(), UploadError> {
    let Some(free_bytes) = store.room_bytes(until).map_err(store_error)? else { return Ok(()) };
    if free_bytes >= plan.new_bytes() {
        return Ok(());
    }
    let needed_bytes = weigh()?.bytes;
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(UploadError::ArchiveFull { store: store.describe(), free_bytes, needed_bytes })
}

/// Whether there is room for the plan, which puts `new`: in the archive, and where files are encoded before they are
/// uploaded, in `folder` for as many as lie there at a time.
pub fn check_room(
    plan: &UploadPlan,
    new: NewObjects,
    (store, folder): (&dyn ObjectStore, &Path),
    until: &Until,
) -> Result<(), UploadError> {
    require_archive_room(plan, store, || Ok(new), until)?;
    if plan.options.encoding.is_none() || store.in_drafts().is_some() {
        return Ok(());
    }
    let new: Vec<(usize, &PlannedFile)> = plan.only_new().collect();
    let most = batches_of(&new).map(|batch| total_bytes(batch.iter().map(|(_, planned)| *planned))).max();
    Ok(require_room(folder, most.unwrap_or(0))?)
}

/// Carries the plan out. Where the archive has too little room nothing is put there; what is encoded counts as it will
/// be there, and is encoded once more to know where the room is too little for the files as they are. Where the store
/// takes no drafts, encoded files are made in the folder `scratch`, which is created for them and removed, whatever
/// comes of the call. Bytes of files count as done when their objects, or parts of them, are durable. What was uploaded
/// is added to `reusable` and `known`. Carrying out a plan again is fine: an object that went half in parts is taken
/// up. Parts that nobody takes up are removed by a prune.
pub fn upload(
    plan: &UploadPlan,
    (store, scratch): (&dyn ObjectStore, &Path),
    reusable: &mut Reusable,
    known: &mut KnownHashes,
    until: &Until,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Uploaded, UploadError> {
    require_archive_room(plan, store, || weigh(plan, store.parallel(), reusable, until), until)?;
    let mut act = Act {
        plan,
        reusable,
        until,
        meter: Meter::new(plan.new_bytes(), on_progress),
        made: BTreeMap::new(),
        new: NewObjects::default(),
    };
    match (store.in_drafts(), plan.options.encoding) {
        (Some(drafts), _) => act.draft((drafts, store.parallel()), known)?,
        (None, None) => act.upload_as_they_are(store)?,
        (None, Some(encoding)) => act.upload_encoded(store, scratch, encoding)?,
    }
    let Act { made, new, .. } = act;
    let mut files = Vec::with_capacity(plan.files());
    for (number, planned) in plan.planned().iter().enumerate() {
        let archived = match &planned.way {
            Way::There(archived) => Some(archived),
            Way::Like(first) => made.get(first),
            Way::New(_) | Way::Unread => made.get(&number),
        };
        let left_out = || changed(planned, "nothing of it was uploaded");
        files.push(planned.image.archived(archived.cloned().ok_or_else(left_out)?));
    }
    reusable.add(&files);
    Ok(Uploaded { files, new })
}

/// What [`upload`] would put, which is known beforehand only where nothing is encoded: else the files are encoded, by
/// so many threads, to be counted.
pub fn weigh(
    plan: &UploadPlan,
    parallel: usize,
    reusable: &Reusable,
    until: &Until,
) -> Result<NewObjects, UploadError> {
    let Some(encoding) = plan.options.encoding else {
        return Ok(NewObjects { files: plan.new_files(), bytes: plan.new_bytes() });
    };
    let new: Vec<&PlannedFile> = plan.only_new().map(|(_, planned)| planned).collect();
    let files: Vec<FileEncode<'_>> = new.iter().map(|planned| encode(planned, encoding, None)).collect();
    let encoded = encode_files(parallel, &files, until).map_err(|error| upload_error(error, |_| None))?;
    let mut found = NewObjects::default();
    for (planned, content) in new.into_iter().zip(encoded) {
        match content.and_then(|content| content.encoded) {
            Some(encoded) if reusable.object(encoded.content()).is_some() => {}
            Some(encoded) => found.add(encoded.length_bytes),
            None => found.add(planned.image.length_bytes),
        }
    }
    Ok(found)
}

/// A plan that is being carried out.
struct Act<'a> {
    plan: &'a UploadPlan,
    reusable: &'a Reusable,
    until: &'a Until,
    meter: Meter<'a>,
    /// What came of files of the plan, by their numbers.
    made: BTreeMap<usize, Archived>,
    new: NewObjects,
}

impl Act<'_> {
    fn draft(
        &mut self,
        drafts: (&dyn DraftStore, usize),
        known: &mut KnownHashes,
    ) -> Result<(), UploadError> {
        let options = &self.plan.options;
        let new: Vec<(usize, &PlannedFile)> = self.plan.only_new().collect();
        let files: Vec<FileDraft<'_>> = new
            .iter()
            .map(|(_, planned)| FileDraft {
                path: &planned.image.path,
                length_bytes: planned.image.length_bytes,
                encoding: options.encoding,
            })
            .collect();
        let planned_at = |place: usize| new.get(place).map(|(_, planned)| *planned);
        let folder = options.bucket.objects().map_err(UploadError::Bucket)?;
        let name = |place: usize, content: &FileContent| {
            if let Some(Way::New(chunks)) = planned_at(place).map(|planned| &planned.way)
                && *chunks != content.chunks
            {
                return Err(StoreCause::BodyChanged);
            }
            let encoded = content.encoded.as_ref().map(EncodedContent::content);
            if encoded.is_some_and(|content| self.reusable.object(content).is_some()) {
                return Ok(None);
            }
            let hash = encoded.map_or_else(|| content.hash(), |content| content.hash);
            options.object_key(hash).map(Some).map_err(|e| io::Error::other(e.to_string()).into())
        };
        let meter = &mut self.meter;
        let mut on_durable =
            |place| meter.add(planned_at(place).map_or(0, |planned| planned.image.length_bytes));
        let drafted = draft_files(drafts, &folder, &files, &name, self.until, &mut on_durable)
            .map_err(|error| upload_error(error, |place| planned_at(place).map(path_of)))?;
        for ((number, planned), drafted) in new.into_iter().zip(drafted) {
            let Some(drafted) = drafted else { continue };
            let archived = self.archived(drafted.content.hash(), drafted.content.encoded.as_ref())?;
            if drafted.object.is_some() {
                self.new.add(object_bytes(planned, &archived));
            }
            self.made.insert(number, archived);
            known.add(planned.identity, drafted.content.chunks);
        }
        Ok(())
    }

    fn upload_as_they_are(&mut self, store: &dyn ObjectStore) -> Result<(), UploadError> {
        let as_it_is = |(number, planned)| self.as_it_is(number, planned);
        let sent = self.plan.only_new().map(as_it_is).collect::<Result<_, _>>()?;
        self.send(store, sent)
    }

    /// Encodes as many files as may lie on the disk at a time, uploads them, and so on.
    fn upload_encoded(
        &mut self,
        store: &dyn ObjectStore,
        scratch: &Path,
        encoding: Encoding,
    ) -> Result<(), UploadError> {
        let new: Vec<(usize, &PlannedFile)> = self.plan.only_new().collect();
        fs::create_dir(scratch).at("create the folder", scratch)?;
        let _scratch = Scratch(scratch);
        for batch in batches_of(&new) {
            let bytes = total_bytes(batch.iter().map(|(_, planned)| *planned));
            require_room(scratch, bytes)?;
            let paths: Vec<PathBuf> =
                batch.iter().map(|(number, _)| scratch.join(format!("{number}"))).collect();
            let done = self.encode_and_send(store, batch, &paths, encoding);
            for path in paths.iter().filter(|path| path.exists()) {
                fs::remove_file(path).at("remove", path)?;
            }
            done?;
        }
        Ok(())
    }

    fn encode_and_send(
        &mut self,
        store: &dyn ObjectStore,
        batch: &[(usize, &PlannedFile)],
        paths: &[PathBuf],
        encoding: Encoding,
    ) -> Result<(), UploadError> {
        let files: Vec<FileEncode<'_>> = batch
            .iter()
            .zip(paths)
            .map(|((_, planned), path)| encode(planned, encoding, Some(path)))
            .collect();
        let encoded = encode_files(store.parallel(), &files, self.until)
            .map_err(|error| upload_error(error, |_| None))?;
        let mut sent = Vec::new();
        for ((&(number, planned), path), content) in batch.iter().zip(paths).zip(encoded) {
            let Some(FileContent { chunks, encoded: Some(encoded) }) = content else {
                sent.push(self.as_it_is(number, planned)?);
                continue;
            };
            if chunks != chunks_of(planned) {
                return Err(changed(planned, &StoreCause::BodyChanged.to_string()));
            }
            let archived = self.archived(ContentHash::of_chunks(&chunks), Some(&encoded))?;
            if self.reusable.object(encoded.content()).is_some() {
                self.meter.add(planned.image.length_bytes);
                self.made.insert(number, archived);
            } else {
                sent.push(Sent { number, planned, archived, path, chunks: Cow::Owned(encoded.chunks) });
            }
        }
        self.send(store, sent)
    }

    fn as_it_is<'p>(&self, number: usize, planned: &'p PlannedFile) -> Result<Sent<'p>, UploadError> {
        let (path, chunks) = (planned.image.path.as_path(), chunks_of(planned));
        let archived = self.archived(ContentHash::of_chunks(chunks), None)?;
        Ok(Sent { number, planned, archived, path, chunks: Cow::Borrowed(chunks) })
    }

    fn send(&mut self, store: &dyn ObjectStore, sent: Vec<Sent<'_>>) -> Result<(), UploadError> {
        let files: Vec<FileUpload<'_>> = sent
            .iter()
            .map(|Sent { planned, archived, path, chunks, .. }| FileUpload {
                key: &archived.object,
                path,
                length_bytes: object_bytes(planned, archived),
                chunks,
            })
            .collect();
        let all_bytes = files.iter().map(|file| file.length_bytes).sum();
        let of_files = total_bytes(sent.iter().map(|file| file.planned));
        let mut scale = Scale { sent_bytes: 0, all_bytes, told_bytes: 0, of_files };
        let meter = &mut self.meter;
        let path = |place: usize| sent.get(place).map(|file| path_of(file.planned));
        upload_files(store, &files, self.until, &mut |bytes| meter.add(scale.after(bytes)))
            .map_err(|error| upload_error(error, path))?;
        for Sent { number, planned, archived, .. } in sent {
            self.new.add(object_bytes(planned, &archived));
            self.made.insert(number, archived);
        }
        Ok(())
    }

    /// What encodes to the content of an object that is there already is in that one, whichever attempt it is called
    /// by.
    fn archived(&self, hash: ContentHash, encoded: Option<&EncodedContent>) -> Result<Archived, UploadError> {
        let stored = encoded.map(|encoded| {
            let (Content { length_bytes, hash }, encoding) = (encoded.content(), encoded.encoding);
            Stored { encoding, length_bytes, hash }
        });
        let there = encoded.and_then(|encoded| self.reusable.object(encoded.content()));
        let object = match there {
            Some(object) => object.clone(),
            None => self.plan.options.object_key(stored.map_or(hash, |stored| stored.hash))?,
        };
        Ok(Archived { hash, object, stored })
    }
}

/// A file whose object is known.
struct Sent<'p> {
    number: usize,
    planned: &'p PlannedFile,
    archived: Archived,
    /// Where the object's content lies.
    path: &'p Path,
    /// The hashes of its chunks.
    chunks: Cow<'p, [ChunkHash]>,
}

fn object_bytes(planned: &PlannedFile, archived: &Archived) -> u64 {
    archived.stored.map_or(planned.image.length_bytes, |stored| stored.length_bytes)
}

/// A folder that goes when this does. What cannot be removed is left to whoever made the place that it is in.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0);
    }
}

/// Tells of bytes of files by what of their objects is durable.
struct Scale {
    sent_bytes: u64,
    all_bytes: u64,
    told_bytes: u64,
    of_files: u64,
}

impl Scale {
    fn after(&mut self, sent_bytes: u64) -> u64 {
        self.sent_bytes += sent_bytes;
        let reached = u128::from(self.of_files) * u128::from(self.sent_bytes);
        let reached =
            reached.checked_div(u128::from(self.all_bytes)).and_then(|bytes| u64::try_from(bytes).ok());
        let new = reached.unwrap_or(self.of_files).saturating_sub(self.told_bytes);
        self.told_bytes += new;
        new
    }
}

/// The files that are encoded at a time.
fn batches_of<'a, 'p>(
    files: &'a [(usize, &'p PlannedFile)],
) -> impl Iterator<Item = &'a [(usize, &'p PlannedFile)]> {
    let mut rest = files;
    std::iter::from_fn(move || {
        let mut bytes = 0_u64;
        let fits = |(_, planned): &&(usize, &PlannedFile)| {
            bytes = bytes.saturating_add(planned.image.length_bytes);
            bytes <= ENCODED_AHEAD_BYTES
        };
        let (batch, later) = rest.split_at(rest.iter().take_while(fits).count().max(1).min(rest.len()));
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}

fn encode<'a>(planned: &'a PlannedFile, encoding: Encoding, to: Option<&'a PathBuf>) -> FileEncode<'a> {
    let (path, length_bytes) = (planned.image.path.as_path(), planned.image.length_bytes);
    FileEncode { path, length_bytes, encoding, to: to.map(PathBuf::as_path) }
}

fn chunks_of(planned: &PlannedFile) -> &[ChunkHash] {
    match &planned.way {
        Way::New(chunks) => chunks,
        _ => &[],
    }
}

fn path_of(planned: &PlannedFile) -> PathBuf {
    planned.image.path.clone()
}

fn changed(planned: &PlannedFile, what: &str) -> UploadError {
    UploadError::Changed { path: path_of(planned), what: what.to_owned() }
}

/// `path` gives that of the file with a number.
pub(super) fn upload_error(error: TransferError, path: impl Fn(usize) -> Option<PathBuf>) -> UploadError {
    let (file, error) = match error {
        TransferError::Local(error) => return error.into(),
        TransferError::Stopped(why) => return why.into(),
        TransferError::Short { path, what } => return UploadError::Changed { path, what },
        TransferError::Store { file, error } => (file, error),
        other => return UploadError::Thread(other),
    };
    let path = path(file).unwrap_or_default();
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
