//! What several modules of tests use.

pub(crate) mod buckets;
pub(crate) mod capture;
pub(crate) mod cli;
pub(crate) mod consumer;
pub(crate) mod endpoint;
pub(crate) mod followed;
pub(crate) mod json;
pub(crate) mod naive;
pub(crate) mod path;
pub(crate) mod producer;
pub(crate) mod shards;
pub(crate) mod stores;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crossbeam::channel::Sender;

use dormouse::objstore::{
    Body, DraftStore, ObjectKey, ObjectStore, Operation, Page, PageMark, Part, PartStore, StoreCause,
    StoreError, Upload, WriteDraft,
};
use dormouse::pause::{
    AttemptId, BucketPart, ImageFile, KnownHashes, Manifest, ManifestFile, Membership, NewObjects, PauseId,
    Reusable, Standing, UploadOptions, plan_upload, upload,
};
use dormouse::shard::ShardId;
use dormouse::thread::{self, Cancel, Until, fin};

use stores::chunks_of;

/// A limit that never ends.
pub(crate) fn forever() -> Until {
    Until::default()
}

/// A limit that has ended.
pub(crate) fn cancelled() -> Until {
    let cancel = Cancel::new();
    cancel.cancel();
    Until::new(None, cancel)
}

/// A limit that ends only where a test hangs.
pub(crate) fn watchdog() -> Until {
    Until::within(Duration::from_secs(60))
}

/// Waits until `holds`, and fails where that does not come.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let (_holder, never) = fin();
    let limit = watchdog();
    while !holds() {
        assert!(limit.check().is_ok(), "this did not come: {what}");
        let _ = never.wait(&Until::within(Duration::from_millis(1)));
    }
}

/// Sends with no way to be stopped but the end of the receiver.
pub(crate) fn push<T>(sender: &Sender<T>, message: T) {
    let (_holder, never) = fin();
    assert!(thread::send(sender, message, &never).is_ok(), "nobody receives any more");
}

pub(crate) fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

/// Says that something which a test needs is not installed. Where all has to be there, as in CI, that is a failure.
pub(crate) fn skip_without(what: &str) {
    let wanted = std::env::var_os("DORMOUSE_SERVERS").is_some_and(|wanted| wanted == "required");
    assert!(!wanted, "{what} is not installed: .ci/run installs it, and --without-servers does without");
    println!("skipped: {what} is not installed (.ci/run installs it)");
}

/// Name of the bucket that tests archive.
pub(crate) const BUCKET: &str = "travel";

/// A bucket with one member, as archives name it.
pub(crate) fn part(bucket: &str) -> BucketPart {
    BucketPart::whole(bucket)
}

/// What a pause of [`BUCKET`] may name without uploading it.
pub(crate) fn reusable(
    store: &dyn ObjectStore,
    parent: Option<&Manifest>,
    attempt: AttemptId,
    until: &Until,
) -> anyhow::Result<Reusable> {
    let standing = Standing::look(store, &part(BUCKET), SystemTime::now(), until)?;
    Ok(Reusable::find(&part(BUCKET), parent, &[attempt], &standing)?)
}

/// Makes the file `<folder>/<shard>-<name>` and gives it as a part of an image.
pub(crate) fn image(folder: &Path, shard: u16, name: &str, content: &[u8]) -> ImageFile {
    let path = folder.join(format!("{shard}-{}", name.replace('/', "-")));
    std::fs::write(&path, content).unwrap();
    ImageFile { shard: ShardId(shard), name: key(name), path, length_bytes: content.len() as u64 }
}

/// The manifest of a pause of [`BUCKET`] in two shards.
pub(crate) fn manifest(pause: PauseId, parent: Option<PauseId>, files: Vec<ManifestFile>) -> Manifest {
    Manifest {
        pause,
        attempt: attempt(),
        parent,
        created: "2026-01-02T03:04:05Z".to_owned(),
        bucket: BUCKET.to_owned(),
        bucket_uuid: 0xfedc_ba98_7654_3210,
        vbuckets: 16,
        shards: 2,
        store: "lsm".to_owned(),
        source: "files".to_owned(),
        membership: Membership::WHOLE,
        definitions: serde_json::json!([{ "name": "primary" }]),
        positions: serde_json::json!({ "0": { "primary": { "0": { "seqno": u64::MAX } } } }),
        files,
    }
}

/// The attempt that tests upload as.
pub(crate) fn attempt() -> AttemptId {
    "00000000000000bb".parse().unwrap()
}

/// How tests upload to the store, without an encoding.
pub(crate) fn upload_options(store: &dyn ObjectStore) -> UploadOptions {
    UploadOptions {
        bucket: part(BUCKET),
        attempt: attempt(),
        encoding: None,
        takes_drafts: store.in_drafts().is_some(),
    }
}

/// Uploads `files` after `parent`, publishes the pause, and gives its manifest.
pub(crate) fn archive(
    store: &dyn ObjectStore,
    pause: PauseId,
    files: &[ImageFile],
    parent: Option<&Manifest>,
    until: &Until,
) -> anyhow::Result<Manifest> {
    archive_as(&upload_options(store), store, pause, files, parent, until).map(|(manifest, _)| manifest)
}

/// The same as `options` have it, with the objects that were new.
pub(crate) fn archive_as(
    options: &UploadOptions,
    store: &dyn ObjectStore,
    pause: PauseId,
    files: &[ImageFile],
    parent: Option<&Manifest>,
    until: &Until,
) -> anyhow::Result<(Manifest, NewObjects)> {
    let mut reusable = match parent {
        Some(_) => reusable(store, parent, attempt(), until)?,
        None => Reusable::default(),
    };
    let (known, scratch) = (&mut KnownHashes::default(), tempfile::tempdir()?);
    let plan = plan_upload(options, files, &reusable, known, until)?;
    let encoded = scratch.path().join("encoded");
    let uploaded = upload(&plan, (store, &encoded), &mut reusable, known, until, &mut |_| {});
    assert!(!encoded.exists(), "something is left of what was encoded");
    let uploaded = uploaded?;
    let manifest = manifest(pause, parent.map(|parent| parent.pause), uploaded.files);
    manifest.publish(store, until)?;
    Ok((manifest, uploaded.new))
}

/// Every file below `folder`, by its path from there.
pub(crate) fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

/// Ends this process at once, as a crash does.
pub(crate) fn kill_this_process() -> ! {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    loop {
        std::thread::park();
    }
}

/// When the chosen call of a [`FailingStore`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fails {
    /// Before it has done anything.
    Before,
    /// After it was carried out: its answer is lost.
    After,
    /// Before it has done anything, and another try may help.
    Passing,
    /// After it was carried out: the process is killed.
    Kills,
    /// In the middle of content: a half comes, or a half goes out. A call without content fails before it has done
    /// anything.
    Half,
}

/// The ways of failing, for who has time for one of them.
pub(crate) const ALL_FAILS: [Fails; 4] = [Fails::Before, Fails::After, Fails::Passing, Fails::Half];

/// Hands calls on to another store, counts them, and fails one of them.
pub(crate) struct FailingStore<'a> {
    inner: &'a dyn ObjectStore,
    fail_at: usize,
    fails: Fails,
    calls: AtomicUsize,
    puts: AtomicUsize,
    /// Whether callers are to make one call after the other, so that the order of calls is known.
    pub(crate) one_at_a_time: bool,
    /// Is called before each call with its number, what it does, and to what.
    pub(crate) before: Option<&'a BeforeCall<'a>>,
    /// What it says of its room.
    pub(crate) room_bytes: Option<u64>,
}

/// What happens before a call of a [`FailingStore`].
pub(crate) type BeforeCall<'a> = dyn Fn(usize, Operation, Option<&ObjectKey>) + Sync + 'a;

impl<'a> FailingStore<'a> {
    /// Fails the call number `fail_at`, counted from 1; 0 fails none.
    pub(crate) fn new(inner: &'a dyn ObjectStore, fail_at: usize, fails: Fails) -> Self {
        Self {
            inner,
            fail_at,
            fails,
            calls: AtomicUsize::new(0),
            puts: AtomicUsize::new(0),
            one_at_a_time: false,
            before: None,
            room_bytes: None,
        }
    }

    /// Calls that were made.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Calls of all kinds of put that were made.
    pub(crate) fn puts(&self) -> usize {
        self.puts.load(Ordering::Relaxed)
    }

    /// Whether the chosen call was made.
    pub(crate) fn has_failed(&self) -> bool {
        self.fail_at != 0 && self.calls() >= self.fail_at
    }

    fn call<T>(
        &self,
        operation: Operation,
        key: Option<&ObjectKey>,
        carry_out: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(before) = self.before {
            before(number, operation, key);
        }
        let made_up =
            || StoreError::new(operation, key, self.describe(), io::Error::other("it was made to fail"));
        if number != self.fail_at {
            return carry_out();
        }
        match self.fails {
            Fails::Before => Err(made_up()),
            Fails::After => carry_out().and_then(|_| Err(made_up())),
            Fails::Kills => {
                let _ = carry_out();
                kill_this_process()
            }
            Fails::Passing | Fails::Half => {
                let cause = StoreCause::Connection("it was made to fail".to_owned());
                Err(StoreError::new(operation, key, self.describe(), cause))
            }
        }
    }

    /// Whether the next call breaks off in the middle.
    fn breaks_off(&self) -> bool {
        self.fails == Fails::Half && self.calls() + 1 == self.fail_at
    }

    /// The call sends content; the one that is chosen may send a half.
    fn send<T>(
        &self,
        operation: Operation,
        key: &ObjectKey,
        body: Body<'_>,
        carry_out: impl FnOnce(Body<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        if !self.breaks_off() || body.length_bytes() == 0 {
            return self.call(operation, Some(key), || carry_out(body));
        }
        let bytes = bytes_of(body);
        let mut half = tempfile::tempfile().unwrap();
        half.write_all(&bytes[..bytes.len() / 2]).unwrap();
        let (length_bytes, chunks) = (body.length_bytes(), chunks_of(&bytes));
        let cut = Body::File { file: &half, offset_bytes: 0, length_bytes, chunks: &chunks };
        assert!(carry_out(cut).is_err(), "a half was taken for the whole");
        self.call(operation, Some(key), || unreachable!("it was made to fail"))
    }

    /// The call hands content on; the one that is chosen may hand on a half.
    fn receive(
        &self,
        key: &ObjectKey,
        to: &mut dyn Write,
        carry_out: impl FnOnce(&mut dyn Write) -> Result<u64, StoreError>,
    ) -> Result<u64, StoreError> {
        if self.breaks_off() {
            let mut content = Vec::new();
            carry_out(&mut content)?;
            to.write_all(&content[..content.len() / 2]).unwrap();
            return self.call(Operation::Get, Some(key), || Ok(0));
        }
        self.call(Operation::Get, Some(key), || carry_out(to))
    }
}

impl ObjectStore for FailingStore<'_> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        self.send(Operation::Put, key, body, |body| self.inner.put(key, body, until))
    }

    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        self.send(Operation::Put, key, body, |body| self.inner.put_if_absent(key, body, until))
    }

    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError> {
        self.receive(key, to, |to| self.inner.get(key, to, until))
    }

    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError> {
        self.call(Operation::Head, Some(key), || self.inner.head(key, until))
    }

    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError> {
        self.receive(key, to, |to| self.inner.get_range(key, range, to, until))
    }

    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError> {
        self.call(Operation::List, folder, || self.inner.list_page(folder, after, until))
    }

    fn sweep(
        &self,
        folder: &ObjectKey,
        before: SystemTime,
        dry_run: bool,
        until: &Until,
    ) -> Result<usize, StoreError> {
        self.call(Operation::Delete, Some(folder), || self.inner.sweep(folder, before, dry_run, until))
    }

    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Delete, keys.first(), || self.inner.delete(keys, until))
    }

    fn room_bytes(&self, _: &Until) -> Result<Option<u64>, StoreError> {
        Ok(self.room_bytes)
    }

    fn in_parts(&self) -> Option<&dyn PartStore> {
        self.inner.in_parts().map(|_| self as &dyn PartStore)
    }

    fn in_drafts(&self) -> Option<&dyn DraftStore> {
        self.inner.in_drafts().map(|_| self as &dyn DraftStore)
    }

    fn parallel(&self) -> usize {
        if self.one_at_a_time { 1 } else { self.inner.parallel() }
    }
}

/// Takes so many bytes and no more.
struct Cut<'a> {
    to: &'a mut dyn Write,
    left_bytes: usize,
}

impl Write for Cut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.left_bytes);
        self.to.write_all(&bytes[..taken])?;
        self.left_bytes -= taken;
        if taken < bytes.len() { Err(io::Error::other("it was cut off")) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn bytes_of(body: Body<'_>) -> Vec<u8> {
    match body {
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::File { file, offset_bytes, length_bytes, .. } => {
            let mut bytes = vec![0; usize::try_from(length_bytes).unwrap()];
            file.read_exact_at(&mut bytes, offset_bytes).unwrap();
            bytes
        }
    }
}

impl DraftStore for FailingStore<'_> {
    fn put_draft(
        &self,
        folder: &ObjectKey,
        write: &mut WriteDraft<'_>,
        until: &Until,
    ) -> Result<Option<ObjectKey>, StoreError> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let drafts = self.inner.in_drafts().unwrap();
        if !self.breaks_off() {
            return self.call(Operation::Put, Some(folder), || drafts.put_draft(folder, write, until));
        }
        let mut all = Cut { to: &mut io::sink(), left_bytes: usize::MAX };
        let _ = write(&mut all);
        let half = (usize::MAX - all.left_bytes) / 2;
        let mut cut = |to: &mut dyn Write| write(&mut Cut { to, left_bytes: half });
        let put = drafts.put_draft(folder, &mut cut, until);
        assert!(!matches!(put, Ok(Some(_))), "a half was taken for the whole");
        self.call(Operation::Put, Some(folder), || unreachable!("it was made to fail"))
    }
}

impl FailingStore<'_> {
    fn parts_of_inner(&self) -> &dyn PartStore {
        self.inner.in_parts().unwrap()
    }
}

impl PartStore for FailingStore<'_> {
    fn begin(&self, key: &ObjectKey, until: &Until) -> Result<Upload, StoreError> {
        self.call(Operation::Begin, Some(key), || self.parts_of_inner().begin(key, until))
    }

    fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Body<'_>,
        until: &Until,
    ) -> Result<Part, StoreError> {
        let put = |body: Body<'_>| self.parts_of_inner().put_part(upload, number, body, until);
        self.send(Operation::PutPart, &upload.key, body, put)
    }

    fn parts(&self, upload: &Upload, until: &Until) -> Result<Vec<Part>, StoreError> {
        self.call(Operation::Parts, Some(&upload.key), || self.parts_of_inner().parts(upload, until))
    }

    fn complete(&self, upload: &Upload, parts: &[Part], until: &Until) -> Result<(), StoreError> {
        let complete = || self.parts_of_inner().complete(upload, parts, until);
        self.call(Operation::Complete, Some(&upload.key), complete)
    }

    fn abort(&self, upload: &Upload, until: &Until) -> Result<(), StoreError> {
        self.call(Operation::Abort, Some(&upload.key), || self.parts_of_inner().abort(upload, until))
    }

    fn uploads(&self, key: Option<&ObjectKey>, until: &Until) -> Result<Vec<Upload>, StoreError> {
        self.call(Operation::Uploads, key, || self.parts_of_inner().uploads(key, until))
    }
}
