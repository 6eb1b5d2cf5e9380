//! What several modules of tests use.

pub(crate) mod buckets;
pub(crate) mod capture;
pub(crate) mod cli;
pub(crate) mod consumer;
pub(crate) mod endpoint;
pub(crate) mod failures;
pub(crate) mod followed;
pub(crate) mod json;
pub(crate) mod naive;
pub(crate) mod path;
pub(crate) mod producer;
pub(crate) mod prolific;
pub(crate) mod shards;
pub(crate) mod stores;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crossbeam::channel::Sender;

use dormouse::objstore::{ObjectKey, ObjectStore};
use dormouse::pause::{
    AttemptId, BucketPart, ImageFile, KnownHashes, Manifest, ManifestFile, Membership, NewObjects, PauseId,
    Reusable, Standing, UploadOptions, plan_upload, upload,
};
use dormouse::shard::ShardId;
use dormouse::thread::{self, Cancel, Until, fin};

pub(crate) use self::stores::failing::{ALL_FAILS, FailingStore, Fails};

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

/// Whether tests are to take their time.
pub(crate) fn is_long() -> bool {
    std::env::var_os("DORMOUSE_LONG").is_some()
}

/// Waits until `holds`, and fails where that does not come.
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_or(|| what.to_owned(), holds);
}

/// The same; what did not come is put into words then.
pub(crate) fn eventually_or(what: impl FnOnce() -> String, mut holds: impl FnMut() -> bool) {
    let (_holder, never) = fin();
    let limit = watchdog();
    while !holds() {
        assert!(limit.check().is_ok(), "this did not come: {}", what());
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
