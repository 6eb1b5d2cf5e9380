//! Limits that a user sets: how much is carried at the same time, how much memory that takes, and how much room there
//! has to be.

use std::num::{NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormouse::objstore::{
    ArchiveOptions, ArchiveUrl, Body, CallInfo, FOLDER_PARALLEL_DEFAULT, FileDraft, FileFetch, FileUpload,
    Layer, ObjectStore, PARALLEL_DEFAULT, Policy, StoreError, TRANSFER_BYTES_MAX, draft_files, fetch_files,
    upload_files,
};
use dormouse::thread::{Until, fin};
use parking_lot::Mutex;

use crate::support::cli::World;
use crate::support::stores::chunks_of;
use crate::support::{forever, key, watchdog};

/// How many calls were under way at the same time, at most. A call waits until there are as many as there may be, or
/// until it is clear that no more come.
#[derive(Clone)]
struct Gauge {
    expected: usize,
    calls: Arc<Mutex<(usize, usize)>>,
}

impl Policy for Gauge {
    fn call<T>(
        &self,
        _: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        {
            let mut calls = self.calls.lock();
            calls.0 += 1;
            calls.1 = calls.1.max(calls.0);
        }
        let (_holder, never) = fin();
        let patience = Until::within(Duration::from_secs(30));
        while self.calls.lock().1 < self.expected && patience.check().is_ok() {
            let _ = never.wait(&Until::within(Duration::from_millis(1)));
        }
        let done = go(until);
        self.calls.lock().0 -= 1;
        done
    }
}

/// The most calls at the same time of 24 files that go up and come down.
fn calls_at_once(options: &ArchiveOptions, expected: usize) -> [usize; 3] {
    let folder = tempfile::tempdir().unwrap();
    let archive = ArchiveUrl::Folder(folder.path().join("archive"));
    let gauge = Gauge { expected, calls: Arc::default() };
    let store = Layer::new(archive.open(options).unwrap(), gauge.clone());
    let names: Vec<_> = (0..24).map(|number| key(&format!("a/{number}"))).collect();
    let (path, bytes) = (folder.path().join("file"), b"content");
    std::fs::write(&path, bytes).unwrap();
    let chunks = chunks_of(bytes);
    let length_bytes = bytes.len() as u64;
    let most = || std::mem::take(&mut *gauge.calls.lock()).1;

    let uploads: Vec<_> =
        names.iter().map(|key| FileUpload { key, path: &path, length_bytes, chunks: &chunks }).collect();
    upload_files(&store, &uploads, &watchdog(), &mut |_| {}).unwrap();
    let up = most();
    let wanted: Vec<_> = names.iter().map(|key| FileFetch { key, length_bytes, path: None }).collect();
    fetch_files(&store, &wanted, &watchdog(), &mut |_, came| {
        came.unwrap();
        Ok(())
    })
    .unwrap();
    let down = most();
    let drafts = vec![FileDraft { path: &path, length_bytes, encoding: None }; names.len()];
    let to = (store.in_drafts().unwrap(), store.parallel());
    let name = |number: usize, _: &_| Ok(Some(names[number].clone()));
    draft_files(to, &key("a"), &drafts, &name, &watchdog(), &mut |_| {}).unwrap();
    [up, down, most()]
}

#[test]
fn no_more_is_carried_at_the_same_time_than_was_set() {
    let options =
        |parallel| ArchiveOptions { parallel: NonZeroUsize::new(parallel), ..ArchiveOptions::default() };
    assert_eq!(calls_at_once(&options(6), 6), [6; 3]);
    assert_eq!(calls_at_once(&options(1), 1), [1; 3]);
    assert_eq!(
        calls_at_once(&ArchiveOptions::default(), FOLDER_PARALLEL_DEFAULT),
        [FOLDER_PARALLEL_DEFAULT; 3]
    );
}

#[test]
fn no_more_is_carried_at_the_same_time_than_the_memory_has_room_for() {
    let options = |memory_bytes_max| ArchiveOptions {
        parallel: NonZeroUsize::new(6),
        memory_bytes_max: Some(memory_bytes_max),
        ..ArchiveOptions::default()
    };
    assert_eq!(calls_at_once(&options(3 * TRANSFER_BYTES_MAX + 1), 3), [3; 3]);
    assert_eq!(calls_at_once(&options(100 * TRANSFER_BYTES_MAX), 6), [6; 3], "it adds none");
    assert_eq!(calls_at_once(&options(1), 1), [1; 3], "one at least");
}

#[test]
fn the_limits_hold_for_a_bucket_of_a_server_too() {
    let bucket = ArchiveUrl::S3 { bucket: "bucket".to_owned(), prefix: None };
    let parallel = |options: &ArchiveOptions| bucket.open(options).unwrap().parallel();
    let mut options = ArchiveOptions::default();
    assert_eq!(parallel(&options), PARALLEL_DEFAULT);
    options.parallel = NonZeroUsize::new(20);
    assert_eq!(parallel(&options), 20);
    options.memory_bytes_max = Some(5 * TRANSFER_BYTES_MAX);
    assert_eq!(parallel(&options), 5);
}

#[test]
fn a_folder_tells_how_much_room_it_has_through_all_layers() {
    let folder = tempfile::tempdir().unwrap();
    let bytes_per_second_max = NonZeroU64::new(1_000_000);
    let options = ArchiveOptions { bytes_per_second_max, ..ArchiveOptions::default() };
    let archive = ArchiveUrl::Folder(folder.path().to_owned()).open(&options).unwrap();
    let disk = rustix::fs::statvfs(folder.path()).unwrap();
    let room_bytes = archive.room_bytes(&forever()).unwrap().unwrap();
    assert!(room_bytes > 0 && room_bytes <= disk.f_blocks * disk.f_frsize, "{room_bytes}");
    let bucket = ArchiveUrl::S3 { bucket: "bucket".to_owned(), prefix: None };
    assert_eq!(bucket.open(&options).unwrap().room_bytes(&forever()).unwrap(), None);
    std::fs::remove_dir(folder.path()).unwrap();
    let text = archive.room_bytes(&forever()).unwrap_err().to_string();
    assert!(text.contains("is its disk mounted?"), "{text}");
    assert!(!Path::new(folder.path()).exists());
}

#[test]
fn a_folder_that_is_not_there_is_planned_for_as_an_empty_one_with_the_room_of_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archives/of/buckets");
    let options = ArchiveOptions::default();
    let planned = ArchiveUrl::Folder(path.clone()).open_to_plan(&options).unwrap();
    assert_eq!(planned.list(None, &forever()).unwrap(), []);
    assert!(planned.room_bytes(&forever()).unwrap().is_some_and(|room_bytes| room_bytes > 0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was made");
    let made = ArchiveUrl::Folder(path.clone()).open(&options).unwrap();
    assert_eq!(made.describe(), planned.describe());
    made.put(&key("a/b"), Body::Bytes(b"content"), &forever()).unwrap();
    let planned = ArchiveUrl::Folder(path).open_to_plan(&options).unwrap();
    assert_eq!(planned.list(None, &forever()).unwrap().len(), 1, "one that is there is looked at");
}

#[test]
fn limits_under_which_nothing_could_be_carried_are_refused() {
    let world = World::new();
    for (option, value, why) in [
        ("--rate-limit", "0", "it has to be at least a byte a second"),
        ("--parallel", "0", ""),
        ("--parallel", "257", "it has to be from 1 to 256"),
        ("--memory-limit", "1MiB", "it has to be at least 10.0 MiB"),
        ("--call-limit", "0s", "it has to be some time"),
    ] {
        let words = ["archive", "list", "--archive", "a", option, value];
        world.refused(2, &words, &[option, why]);
    }
}

/// Lets the calls for one object through. The others hang until they are cancelled.
#[derive(Clone, Default)]
struct OneGoesThrough {
    hung: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
}

impl Policy for OneGoesThrough {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if call.key.is_none_or(|key| key.as_str() != "a/0") {
            self.hung.fetch_add(1, Ordering::SeqCst);
            if until.cancel().fin().wait(&watchdog()).is_ok() {
                self.cancelled.fetch_add(1, Ordering::SeqCst);
            }
        }
        go(until)
    }
}

#[test]
fn a_panic_of_who_is_told_of_progress_ends_the_calls_that_are_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let policy = OneGoesThrough::default();
    let archive = ArchiveUrl::Folder(folder.path().join("archive"));
    let store = Layer::new(archive.open(&ArchiveOptions::default()).unwrap(), policy.clone());
    let names: Vec<_> = (0..24).map(|number| key(&format!("a/{number}"))).collect();
    let (path, bytes) = (folder.path().join("file"), b"content");
    std::fs::write(&path, bytes).unwrap();
    let chunks = chunks_of(bytes);
    let file = |key| FileUpload { key, path: &path, length_bytes: bytes.len() as u64, chunks: &chunks };
    let files: Vec<_> = names.iter().map(file).collect();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        upload_files(&store, &files, &Until::default(), &mut |_| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    let (hung, cancelled) = (policy.hung.load(Ordering::SeqCst), policy.cancelled.load(Ordering::SeqCst));
    assert!(hung < files.len() - 1 && cancelled == hung, "{cancelled} of {hung} calls were cancelled");
}
