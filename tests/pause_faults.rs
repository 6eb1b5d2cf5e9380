//! Every call of an archive fails once, during a pause and during a resume: nothing is lost, locked or left behind,
//! and the same call succeeds afterwards.
//!
//! Each number of call fails in each of the ways of [`ALL_FAILS`] where the shards are of the kind `lsm`, and in one of
//! them where they are of another kind, but for `DORMOUSE_LONG`. The archive is a store in memory that takes parts, or
//! a folder, which takes drafts.

use dormouse::bucket::{Bucket, BucketState, PauseError, PauseOptions};
use dormouse::objstore::{CHUNK_BYTES, FileStore, ObjectStore};
use dormouse::pause::UploadError;
use dormouse::shard::StoreKind;

use crate::support::buckets::{
    World, close, ids, ingest, is_locked, lines, long_lines, named, pause, prune_to_what_is_named, scan,
    scratch,
};
use crate::support::shards::for_each_store;
use crate::support::stores::memory::MemoryStore;
use crate::support::{ALL_FAILS, FailingStore, Fails, is_long, tree, watchdog};

for_each_store! {
    whichever_call_of_a_pause_fails_it_goes_on_afterwards,
    whichever_call_of_a_resume_fails_it_goes_on_afterwards,
    whichever_call_of_a_compressing_pause_fails_it_goes_on_afterwards,
    whichever_call_of_a_pause_into_a_folder_fails_it_goes_on_afterwards,
    whichever_call_of_a_compressing_pause_into_a_folder_fails_it_goes_on_afterwards,
    whichever_call_of_a_resume_from_a_folder_fails_it_goes_on_afterwards,
    an_archive_without_room_is_refused_before_anything_is_uploaded,
    what_is_compressed_has_to_fit_as_it_will_be_and_a_dry_run_says_so,
    objects_in_parts_survive_the_failure_of_any_call,
    objects_in_parts_come_back_whichever_call_of_a_resume_fails,
}

const DOCUMENTS: u32 = 60;
/// Enough for files that are worth compressing.
const COMPRESSED_DOCUMENTS: u32 = 1000;
/// Enough for files of several chunks.
const LONG_DOCUMENTS: u32 = 3300;

/// A bucket that is online and closed.
fn world(kind: StoreKind, text: String) -> World {
    filled(World::of(kind), text)
}

fn filled(world: World, text: String) -> World {
    let bucket = world.bucket("b");
    ingest(&bucket, text).unwrap();
    close(bucket);
    world
}

/// In which ways call `number` fails.
fn fails(world: &World, number: usize) -> Vec<Fails> {
    let all = is_long() || world.spec.store == StoreKind::Lsm;
    if all { ALL_FAILS.to_vec() } else { vec![ALL_FAILS[number % ALL_FAILS.len()]] }
}

/// An archive that is empty at first.
enum Archive {
    Memory(MemoryStore),
    Folder(FileStore, tempfile::TempDir),
}

impl Archive {
    fn in_memory() -> Self {
        Self::Memory(MemoryStore::default())
    }

    fn in_a_folder() -> Self {
        let folder = scratch();
        Self::Folder(FileStore::open(folder.path()).unwrap(), folder)
    }

    fn store(&self) -> &dyn ObjectStore {
        match self {
            Self::Memory(memory) => memory,
            Self::Folder(store, _) => store,
        }
    }

    /// A call that failed removes what it had not finished; only one that was killed leaves it to a prune.
    fn assert_nothing_is_half_written(&self, what: &str) {
        if let Self::Folder(_, folder) = self {
            let is_temporary = |path: &&String| path.rsplit('/').next().unwrap().starts_with('.');
            let files = tree(folder.path());
            assert_eq!(files.keys().find(is_temporary), None, "{what}");
        }
    }

    /// There is nothing but what a pause names.
    fn assert_is_tidy_after_a_prune(&self, what: &str) {
        prune_to_what_is_named(self.store(), "b");
        match self {
            Self::Memory(memory) => assert_eq!(memory.uploads_left(), 0, "{what}: parts are left"),
            Self::Folder(store, folder) => {
                let listed = store.list(None, &watchdog()).unwrap();
                assert_eq!(
                    tree(folder.path()).len(),
                    listed.len(),
                    "{what}: files are left that are no objects"
                );
            }
        }
    }
}

/// A store that makes its calls one after the other, of which one fails.
fn failing(store: &dyn ObjectStore, number: usize, fails: Fails) -> FailingStore<'_> {
    let mut failing = FailingStore::new(store, number, fails);
    failing.around.one_at_a_time = true;
    failing
}

fn assert_is_told(bucket: &Bucket, paused: &Result<(), PauseError>, what: &str) {
    let state = bucket.describe().state;
    assert!(!is_locked(bucket), "{what}: a lock is left");
    assert!(state.is_lasting(), "{what}: it is {state}");
    match paused {
        Ok(()) | Err(PauseError::Evict { .. }) => {
            assert!(matches!(state, BucketState::Paused { .. }), "{what}");
        }
        Err(PauseError::InDoubt { .. }) => assert!(matches!(state, BucketState::InDoubt { .. }), "{what}"),
        Err(error) => assert_eq!(state, BucketState::Online, "{what}: {error}"),
    }
}

/// Puts the bucket to sleep, wakes it up and looks whether everything is there and nothing else.
fn finish(world: &World, archive: &Archive, evict: bool, documents: &[String], what: &str) {
    let store = archive.store();
    let state = world.data.bucket_meta(&named("b")).unwrap().state;
    if !matches!(state, BucketState::Paused { evicted, .. } if evicted == evict) {
        let bucket = world.open("b");
        pause(&bucket, store, evict).unwrap_or_else(|error| panic!("{what}: {error}"));
        close(bucket);
    }
    let resumed = world.resume_from(store, "b", &watchdog());
    resumed.unwrap_or_else(|error| panic!("{what}: {error}"));
    let bucket = world.open("b");
    assert!(scan(&bucket) == documents, "{what}: the scan differs");
    assert!(!is_locked(&bucket));
    close(bucket);
    assert!(world.staged().is_empty(), "{what}: something is staged");
    archive.assert_is_tidy_after_a_prune(what);
}

/// Each call of a pause fails once. Gives how many there are.
fn every_call_of_a_pause(
    world: &World,
    empty: fn() -> Archive,
    options: PauseOptions,
    documents: &[String],
) -> usize {
    let evict = options.evict;
    for number in 1.. {
        for fails in fails(world, number) {
            let what = format!("call {number} {fails:?}");
            let (world, archive) = (world.copy(), empty());
            let failing = failing(archive.store(), number, fails);
            let bucket = world.open("b");
            let paused = bucket.pause(&failing, options, &watchdog(), &mut |_| {}).map(drop);
            assert_is_told(&bucket, &paused, &what);
            close(bucket);
            if !failing.has_failed() {
                paused.unwrap();
                return number;
            }
            archive.assert_nothing_is_half_written(&what);
            finish(&world, &archive, evict, documents, &what);
        }
    }
    unreachable!()
}

fn whichever_call_of_a_pause_fails_it_goes_on_afterwards(kind: StoreKind) {
    every_call_of_a_small_pause(kind, Archive::in_memory);
}

fn whichever_call_of_a_pause_into_a_folder_fails_it_goes_on_afterwards(kind: StoreKind) {
    every_call_of_a_small_pause(kind, Archive::in_a_folder);
}

fn every_call_of_a_small_pause(kind: StoreKind, empty: fn() -> Archive) {
    let options = PauseOptions { evict: true, compress: false };
    let world = world(kind, lines(0..DOCUMENTS));
    let calls = every_call_of_a_pause(&world, empty, options, &ids(0..DOCUMENTS));
    assert!(calls > 10, "a pause has more calls than {calls}");
}

fn whichever_call_of_a_compressing_pause_fails_it_goes_on_afterwards(kind: StoreKind) {
    every_call_of_a_compressing_pause(kind, Archive::in_memory);
}

fn whichever_call_of_a_compressing_pause_into_a_folder_fails_it_goes_on_afterwards(kind: StoreKind) {
    every_call_of_a_compressing_pause(kind, Archive::in_a_folder);
}

fn every_call_of_a_compressing_pause(kind: StoreKind, empty: fn() -> Archive) {
    let options = PauseOptions { evict: true, compress: true };
    let world = world(kind, lines(0..COMPRESSED_DOCUMENTS));
    let calls = every_call_of_a_pause(&world, empty, options, &ids(0..COMPRESSED_DOCUMENTS));
    assert!(calls > 10, "a pause has more calls than {calls}");
}

fn an_archive_without_room_is_refused_before_anything_is_uploaded(kind: StoreKind) {
    let world = world(kind, lines(0..DOCUMENTS));
    let full = MemoryStore::with_room(100);
    let bucket = world.open("b");
    let error = pause(&bucket, &full, false).unwrap_err();
    assert!(matches!(error, PauseError::Upload { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("memory: has room for 100 bytes, and ") && text.contains("; free some there"),
        "{text}"
    );
    assert_eq!(full.objects().len(), 0);
    assert!(!is_locked(&bucket));
    assert_eq!(bucket.describe().state, BucketState::Online);
    let roomy = MemoryStore::with_room(1 << 40);
    pause(&bucket, &roomy, false).unwrap();
    close(bucket);
}

/// Plans or makes a pause that compresses, and gives the bytes that it uploads.
fn compressed_bytes(bucket: &Bucket, store: &dyn ObjectStore, is_plan: bool) -> Result<u64, PauseError> {
    let (options, until) = (PauseOptions { evict: false, compress: true }, watchdog());
    let report = if is_plan {
        bucket.plan_pause(store, options, &until)
    } else {
        bucket.pause(store, options, &until, &mut |_| {})
    };
    report.map(|report| report.uploaded_bytes)
}

fn what_is_compressed_has_to_fit_as_it_will_be_and_a_dry_run_says_so(kind: StoreKind) {
    let world = world(kind, lines(0..COMPRESSED_DOCUMENTS));
    for (empty, is_plan) in [Archive::in_memory, Archive::in_a_folder]
        .into_iter()
        .flat_map(|empty| [(empty, true), (empty, false)])
    {
        let with_room = |room_bytes: u64| {
            let (world, archive) = (world.copy(), empty());
            let mut store = FailingStore::new(archive.store(), 0, Fails::Before);
            store.around.room_bytes = Some(room_bytes);
            let bucket = world.open("b");
            let done = compressed_bytes(&bucket, &store, is_plan);
            assert!(!is_locked(&bucket));
            let is_left_alone = is_plan || done.is_err();
            assert_eq!(bucket.describe().state == BucketState::Online, is_left_alone);
            if is_left_alone {
                assert_eq!(archive.store().list(None, &watchdog()).unwrap(), []);
            }
            close(bucket);
            done
        };
        let needed_bytes = with_room(u64::MAX).unwrap();
        assert_eq!(with_room(needed_bytes).unwrap(), needed_bytes);
        let refused = with_room(needed_bytes - 1).unwrap_err();
        assert!(
            matches!(refused, PauseError::Upload { error: UploadError::ArchiveFull { .. }, .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains(&format!("and {needed_bytes} are needed")), "{refused}");
    }
}

fn whichever_call_of_a_resume_fails_it_goes_on_afterwards(kind: StoreKind) {
    every_call_of_a_resume(kind, &Archive::in_memory());
}

fn whichever_call_of_a_resume_from_a_folder_fails_it_goes_on_afterwards(kind: StoreKind) {
    every_call_of_a_resume(kind, &Archive::in_a_folder());
}

fn every_call_of_a_resume(kind: StoreKind, archive: &Archive) {
    let (world, store) = (world(kind, lines(0..DOCUMENTS)), archive.store());
    let bucket = world.open("b");
    pause(&bucket, store, true).unwrap();
    close(bucket);
    let before = world.local();
    let mut kept_max = 0;
    for number in 1.. {
        for fails in fails(&world, number) {
            let what = format!("call {number} {fails:?}");
            let world = world.copy();
            let failing = failing(store, number, fails);
            let resume = |store: &FailingStore<'_>| world.resume_from(store, "b", &watchdog());
            let resumed = resume(&failing);
            if !failing.has_failed() {
                let files = resumed.unwrap().files;
                // All of them where the last one came whole and its answer was lost.
                assert!(
                    kept_max >= files - 1,
                    "what was downloaded is downloaded again: {kept_max} of {files}"
                );
                return;
            }
            resumed.unwrap_err();
            assert!(world.local() == before, "{what}: local state changed");
            let again = FailingStore::new(store, 0, Fails::Before);
            let report = resume(&again).unwrap();
            // One call lists the pauses, one reads the manifest, and each object is one.
            assert_eq!(again.calls(), 2 + report.downloaded_files, "{what}");
            kept_max = kept_max.max(report.files - report.downloaded_files);
            let bucket = world.open("b");
            assert_eq!(scan(&bucket), ids(0..DOCUMENTS), "{what}");
            assert!(!is_locked(&bucket) && world.staged().is_empty(), "{what}");
            ingest(&bucket, lines(0..1)).unwrap();
            close(bucket);
        }
    }
}

/// A bucket with a file of several chunks.
fn long_world(kind: StoreKind) -> World {
    let mut world = World::of(kind);
    // Two thirds of the documents are in one shard.
    world.spec.vbuckets = 3;
    let world = filled(world, long_lines(0..LONG_DOCUMENTS));
    let largest = world.local().values().map(Vec::len).max().unwrap();
    assert!(largest as u64 > CHUNK_BYTES, "the largest file has {largest} bytes");
    world
}

fn objects_in_parts_survive_the_failure_of_any_call(kind: StoreKind) {
    let (world, options) = (long_world(kind), PauseOptions::default());
    let calls = every_call_of_a_pause(&world, Archive::in_memory, options, &ids(0..LONG_DOCUMENTS));
    assert!(calls > 15, "a pause has more calls than {calls}");
}

/// Their chunks are asked for by several threads.
fn objects_in_parts_come_back_whichever_call_of_a_resume_fails(kind: StoreKind) {
    let (world, memory) = (long_world(kind), MemoryStore::default());
    let bucket = world.open("b");
    pause(&bucket, &memory, true).unwrap();
    close(bucket);
    let before = world.local();
    for number in 1.. {
        for fails in fails(&world, number) {
            let what = format!("call {number} {fails:?}");
            let world = world.copy();
            let failing = FailingStore::new(&memory, number, fails);
            let resumed = world.resume_from(&failing, "b", &watchdog());
            if !failing.has_failed() {
                let report = resumed.unwrap();
                assert!(number - 3 > report.files, "no object was asked for in parts");
                return;
            }
            resumed.unwrap_err();
            assert!(world.local() == before, "{what}: local state changed");
            let bucket = {
                world
                    .resume_from(&memory, "b", &watchdog())
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                world.open("b")
            };
            assert!(scan(&bucket) == ids(0..LONG_DOCUMENTS), "{what}: the scan differs");
            assert!(!is_locked(&bucket) && world.staged().is_empty(), "{what}");
            close(bucket);
        }
    }
}
