//! From files to an archive and back: nothing lost, nothing mixed up, nothing believed unseen.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use dormouse::objstore::{Body, FileStore, ObjectStore, StoreCause, StoreError};
use dormouse::pause::{
    CheckError, Difference, DownloadError, ImageFile, KnownHashes, Manifest, PauseId, Progress, RecordError,
    Reusable, Staged, Standing, UploadError, UploadOptions, UploadPlan, Uploaded, VerifyError, Way,
    check_local, download, list_pauses, plan_upload, take_up, upload, verify,
};
use dormouse::thread::{Cancel, Stopped, Until};
use tempfile::TempDir;

use crate::support::stores::forward::{Around, Call, Carries, Forward, Pass};
use crate::support::stores::memory::MemoryStore;
use crate::support::{
    BUCKET, FailingStore, Fails, archive, attempt, cancelled, eventually, forever, image, part, reusable,
    tree, upload_options, watchdog,
};

/// A folder with files of two shards, and a store beside them. Two of the four files are equal.
struct Scene {
    folder: TempDir,
    store: FileStore,
    files: Vec<ImageFile>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(&folder.path().join("archive")).unwrap();
        let files = vec![
            image(folder.path(), 0, "a.sst", &vec![b'a'; 1_500_000]),
            image(folder.path(), 0, "deep/er/b.sst", b"beta"),
            image(folder.path(), 1, "a.sst", b"beta"),
            image(folder.path(), 1, "empty", b""),
        ];
        Self { folder, store, files }
    }

    fn archive(
        &self,
        store: &dyn ObjectStore,
        pause: PauseId,
        parent: Option<&Manifest>,
    ) -> anyhow::Result<Manifest> {
        archive(store, pause, &self.files, parent, &forever())
    }

    fn archived(&self) -> Manifest {
        self.archive(&self.store, first(), None).unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// A plan for which every file is read.
    fn plan(&self) -> UploadPlan {
        self.plan_after(&Reusable::default(), &mut KnownHashes::default(), &forever()).unwrap()
    }

    fn plan_after(
        &self,
        reusable: &Reusable,
        known: &mut KnownHashes,
        until: &Until,
    ) -> Result<UploadPlan, UploadError> {
        let options = UploadOptions { takes_drafts: false, ..upload_options(&self.store) };
        plan_upload(&options, &self.files, reusable, known, until)
    }

    fn upload(&self, plan: &UploadPlan, store: &dyn ObjectStore) -> Result<Uploaded, UploadError> {
        self.upload_until(plan, store, &forever(), &mut |_| {})
    }

    fn upload_until(
        &self,
        plan: &UploadPlan,
        store: &dyn ObjectStore,
        until: &Until,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Uploaded, UploadError> {
        let (mut reusable, mut known) = (Reusable::default(), KnownHashes::default());
        let to = self.path("encoded");
        let uploaded = upload(plan, (store, &to), &mut reusable, &mut known, until, on_progress);
        assert!(!to.exists(), "something is left of what was encoded");
        uploaded
    }

    fn download(&self, manifest: &Manifest, store: &dyn ObjectStore) -> Result<(), DownloadError> {
        download(manifest, store, &self.path("staging"), &Staged::default(), &forever(), &mut |_| {})
    }

    /// Changes one bit in the middle of the object of the manifest's first file.
    fn damage(&self, manifest: &Manifest) {
        let path = self.path("archive").join(manifest.files[0].object.as_str());
        let mut content = fs::read(&path).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        fs::write(path, content).unwrap();
    }
}

fn first() -> PauseId {
    "0000000001-00000000000000aa".parse().unwrap()
}

fn second() -> PauseId {
    "0000000002-00000000000000ab".parse().unwrap()
}

fn restored(scene: &Scene) -> std::collections::BTreeMap<String, Vec<u8>> {
    let content = |image: &ImageFile| {
        let name = format!("shard-{:04}/{}", image.shard, image.name);
        (name, fs::read(&image.path).unwrap())
    };
    scene.files.iter().map(content).collect()
}

fn cut(path: &Path, length_bytes: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length_bytes).unwrap();
}

#[test]
fn what_is_downloaded_is_byte_for_byte_what_was_uploaded() {
    let scene = Scene::new();
    let manifest = scene.archived();
    scene.download(&manifest, &scene.store).unwrap();
    assert!(tree(&scene.path("staging")) == restored(&scene));
    assert_eq!(verify(&manifest, &scene.store, &forever()).unwrap(), []);
    check_local(&manifest, &scene.path("staging"), &forever()).unwrap();
}

#[test]
fn equal_files_are_uploaded_once() {
    let scene = Scene::new();
    let plan = scene.plan();
    assert_eq!(
        (plan.files(), plan.bytes(), plan.new_files(), plan.new_bytes()),
        (4, 1_500_008, 3, 1_500_004)
    );
    assert_eq!(
        plan.to_string(),
        "4 files with 1500008 bytes, of which 3 files with 1500004 bytes are uploaded"
    );
    let counting = FailingStore::new(&scene.store, 0, Fails::Before);
    let files = scene.upload(&plan, &counting).unwrap().files;
    assert_eq!(counting.puts(), 3);
    assert_eq!(files[1].object, files[2].object);
}

/// A plan for a store that takes drafts.
fn draft_plan(scene: &Scene, reusable: &Reusable, known: &mut KnownHashes) -> UploadPlan {
    let options = UploadOptions { takes_drafts: true, ..upload_options(&scene.store) };
    plan_upload(&options, &scene.files, reusable, known, &forever()).unwrap()
}

#[test]
fn a_file_is_read_for_the_plan_only_where_its_content_may_be_there() {
    let scene = Scene::new();
    let is_unread = |plan: &UploadPlan| -> Vec<bool> {
        plan.planned().iter().map(|planned| planned.way == Way::Unread).collect()
    };
    let plan = draft_plan(&scene, &Reusable::default(), &mut KnownHashes::default());
    assert_eq!(is_unread(&plan), [true, false, false, true], "two files are as long as each other");
    assert_eq!((plan.new_files(), plan.new_bytes()), (3, 1_500_004));
    let mut manifest = scene.archived();
    manifest.files.truncate(1);
    let mut as_long = Reusable::default();
    as_long.add(&manifest.files);
    let plan = draft_plan(&scene, &as_long, &mut KnownHashes::default());
    assert_eq!(is_unread(&plan), [false, false, false, true], "one is as long as an object");
    assert!(matches!(plan.planned()[0].way, Way::There(_)));
}

#[test]
fn a_file_that_is_read_while_it_is_uploaded_is_named_like_one_that_was_read_before() {
    let scene = Scene::new();
    let read_before = scene.upload(&scene.plan(), &MemoryStore::default()).unwrap();
    let (mut reusable, mut known) = (Reusable::default(), KnownHashes::default());
    let plan = draft_plan(&scene, &reusable, &mut known);
    let to = (&scene.store as &dyn ObjectStore, Path::new(""));
    let read_once = upload(&plan, to, &mut reusable, &mut known, &forever(), &mut |_| {}).unwrap();
    assert_eq!(read_once, read_before);
    // What was learnt on the way makes the next round read nothing: whoever read a file now would find another.
    for image in &scene.files {
        fs::write(&image.path, vec![7; usize::try_from(image.length_bytes).unwrap()]).unwrap();
    }
    let plan = draft_plan(&scene, &reusable, &mut known);
    assert!(plan.planned().iter().all(|planned| matches!(planned.way, Way::There(_))));
}

#[test]
fn a_file_that_was_read_for_the_plan_and_changed_is_no_draft_either() {
    type Change = fn(&Path);
    let changes: [(usize, Change); 2] =
        [(1, |path| fs::write(path, b"feta").unwrap()), (0, |path| cut(path, 1_400_000))];
    for (number, change) in changes {
        let scene = Scene::new();
        let (mut reusable, mut known) = (Reusable::default(), KnownHashes::default());
        let plan = draft_plan(&scene, &reusable, &mut known);
        change(&scene.files[number].path);
        let to = (&scene.store as &dyn ObjectStore, Path::new(""));
        let error = upload(&plan, to, &mut reusable, &mut known, &forever(), &mut |_| {}).unwrap_err();
        let UploadError::Changed { path, .. } = &error else { panic!("{error}") };
        assert_eq!(*path, scene.files[number].path);
        let objects = scene.store.list(None, &forever()).unwrap();
        let length_bytes = fs::metadata(path).unwrap().len();
        assert!(objects.iter().all(|object| object.length_bytes != length_bytes), "{objects:?}");
    }
}

#[test]
fn a_plan_changes_nothing() {
    let scene = Scene::new();
    scene.plan();
    assert!(tree(&scene.path("archive")).is_empty());
}

#[test]
fn a_second_upload_after_its_parent_uploads_nothing() {
    let scene = Scene::new();
    let parent = scene.archived();
    let counting = FailingStore::new(&scene.store, 0, Fails::Before);
    let manifest = scene.archive(&counting, second(), Some(&parent)).unwrap();
    assert_eq!(counting.puts(), 1, "the manifest alone");
    assert_eq!(manifest.files, parent.files);
}

#[test]
fn an_object_of_the_parent_that_is_gone_or_cut_is_not_named_again() {
    let scene = Scene::new();
    let parent = scene.archived();
    let archive = scene.path("archive");
    fs::remove_file(archive.join(parent.files[0].object.as_str())).unwrap();
    cut(&archive.join(parent.files[1].object.as_str()), 2);
    let other = "00000000000000cc".parse().unwrap();
    let reusable = reusable(&scene.store, Some(&parent), other, &forever()).unwrap();
    let mut expected = Reusable::default();
    expected.add(&parent.files[3..]);
    assert_eq!(reusable, expected);
}

#[test]
fn what_an_attempt_uploaded_before_it_was_interrupted_is_not_uploaded_again() {
    let scene = Scene::new();
    scene.upload(&scene.plan(), &scene.store).unwrap();
    let plan = |attempt| {
        let reusable = reusable(&scene.store, None, attempt, &forever()).unwrap();
        let options = UploadOptions { attempt, ..upload_options(&scene.store) };
        plan_upload(&options, &scene.files, &reusable, &mut KnownHashes::default(), &forever()).unwrap()
    };
    assert_eq!(plan(attempt()).new_files(), 0);
    let other = plan("00000000000000cc".parse().unwrap());
    assert!(other.new_files() > 0, "what another attempt uploaded may be removed at any time");
}

#[test]
fn a_file_that_was_read_under_another_name_is_not_read_again() {
    let scene = Scene::new();
    let known = &mut KnownHashes::default();
    let none = Reusable::default();
    let first = scene.plan_after(&none, known, &forever()).unwrap();
    let mut linked = scene.files.clone();
    for image in &mut linked {
        let other = image.path.with_extension("again");
        fs::hard_link(&image.path, &other).unwrap();
        // Whoever read it now would find something else.
        let length = usize::try_from(image.length_bytes).unwrap();
        fs::write(&image.path, vec![7; length]).unwrap();
        image.path = other;
    }
    let second = plan_upload(&upload_options(&scene.store), &linked, &none, known, &forever()).unwrap();
    let ways =
        |plan: &UploadPlan| -> Vec<_> { plan.planned().iter().map(|planned| planned.way.clone()).collect() };
    assert_eq!(ways(&first), ways(&second));
}

#[test]
fn a_file_that_changes_between_plan_and_upload_is_refused() {
    let scene = Scene::new();
    let plan = scene.plan();
    let path = &scene.files[0].path;
    let mut content = fs::read(path).unwrap();
    content[1_400_000] ^= 1;
    fs::write(path, &content).unwrap();
    let changed = scene.upload(&plan, &scene.store).unwrap_err();
    assert!(matches!(&changed, UploadError::Changed { path: named, .. } if named == path), "{changed}");
    cut(path, 1_400_000);
    let shorter = scene.upload(&plan, &scene.store).unwrap_err();
    assert!(matches!(&shorter, UploadError::Changed { path: named, .. } if named == path), "{shorter}");
    let lengths = scene.store.list(None, &forever()).unwrap().into_iter().map(|object| object.length_bytes);
    assert!(lengths.max() < Some(1_400_000), "an object of it is there");
}

#[test]
fn a_file_that_is_shorter_than_its_image_is_refused_by_the_plan() {
    let scene = Scene::new();
    cut(&scene.files[0].path, 10);
    let none = Reusable::default();
    let error = scene.plan_after(&none, &mut KnownHashes::default(), &forever()).unwrap_err();
    assert!(matches!(error, UploadError::Changed { .. }), "{error}");
}

#[test]
fn what_is_appended_behind_the_image_is_not_archived() {
    let scene = Scene::new();
    let plan = scene.plan();
    fs::write(&scene.files[1].path, b"beta and more").unwrap();
    let files = scene.upload(&plan, &scene.store).unwrap().files;
    assert_eq!(fs::read(scene.path("archive").join(files[1].object.as_str())).unwrap(), b"beta");
}

#[test]
fn whichever_call_fails_no_manifest_appears_and_the_next_attempt_succeeds() {
    for pauses_before in [0, 1] {
        for number in 1.. {
            let scene = Scene::new();
            let parent = (pauses_before == 1).then(|| scene.archived());
            let failing = FailingStore::new(&scene.store, number, Fails::Before);
            let result = scene.archive(&failing, second(), parent.as_ref());
            let listed = list_pauses(&scene.store, &part(BUCKET), &forever()).unwrap();
            if !failing.has_failed() {
                assert!(number > failing.calls());
                result.unwrap();
                break;
            }
            assert!(result.unwrap_err().to_string().contains("it was made to fail"));
            assert_eq!(listed.len(), pauses_before);
            let manifest = scene.archive(&scene.store, second(), parent.as_ref()).unwrap();
            assert_eq!(verify(&manifest, &scene.store, &forever()).unwrap(), []);
        }
    }
}

#[test]
fn whichever_answer_is_lost_a_manifest_that_appears_is_whole() {
    for number in 1.. {
        let scene = Scene::new();
        let failing = FailingStore::new(&scene.store, number, Fails::After);
        let result = scene.archive(&failing, first(), None);
        if !failing.has_failed() {
            assert!(result.is_ok());
            break;
        }
        result.unwrap_err();
        for pause in list_pauses(&scene.store, &part(BUCKET), &forever()).unwrap() {
            let manifest = Manifest::read(&scene.store, &part(BUCKET), pause, &forever()).unwrap();
            assert_eq!(verify(&manifest, &scene.store, &forever()).unwrap(), []);
        }
    }
}

#[test]
fn whichever_call_fails_a_download_says_so() {
    let scene = Scene::new();
    let manifest = scene.archived();
    for number in 1.. {
        let staging = tempfile::tempdir().unwrap();
        let failing = FailingStore::new(&scene.store, number, Fails::Before);
        let result =
            download(&manifest, &failing, staging.path(), &Staged::default(), &forever(), &mut |_| {});
        if !failing.has_failed() {
            assert!(result.is_ok());
            break;
        }
        assert!(matches!(result, Err(DownloadError::Store { .. })), "{result:?}");
    }
}

#[test]
fn a_missing_object_is_named_with_its_file() {
    let scene = Scene::new();
    let manifest = scene.archived();
    scene.store.delete(std::slice::from_ref(&manifest.files[1].object), &forever()).unwrap();
    let error = scene.download(&manifest, &scene.store).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(manifest.files[1].object.as_str()), "{text}");
    // It is the content of two files, and either may be the first.
    assert!(text.contains("the content of shard-000"), "{text}");
    assert!(text.contains(": it is missing; `verify`"), "{text}");
    let bad = verify(&manifest, &scene.store, &forever()).unwrap();
    assert_eq!(bad.len(), 1, "an object that two files share is named once");
    assert_eq!(bad[0].difference, Difference::Missing);
}

#[test]
fn an_object_with_a_flipped_bit_is_refused() {
    let scene = Scene::new();
    let manifest = scene.archived();
    scene.damage(&manifest);
    let Err(DownloadError::Bad { bad, .. }) = scene.download(&manifest, &scene.store) else {
        panic!("it was restored")
    };
    assert_eq!(bad.object, manifest.files[0].object);
    assert!(
        matches!(bad.difference, Difference::Hash { expected, .. } if expected == manifest.files[0].hash)
    );
    assert_eq!(verify(&manifest, &scene.store, &forever()).unwrap(), [*bad]);
}

#[test]
fn an_object_that_is_too_long_is_refused_and_fills_no_disk() {
    let scene = Scene::new();
    let manifest = scene.archived();
    let body = Body::Bytes(&[b'b'; 4000]);
    scene.store.put(&manifest.files[1].object, body, &forever()).unwrap();
    let Err(DownloadError::Bad { bad, .. }) = scene.download(&manifest, &scene.store) else {
        panic!("it was restored")
    };
    assert_eq!(bad.difference, Difference::Length { expected_bytes: 4, found_bytes: 4000 });
    assert_eq!(tree(&scene.path("staging"))["shard-0000/deep/er/b.sst"].len(), 4);
}

#[test]
fn a_download_writes_over_nothing() {
    let scene = Scene::new();
    let manifest = scene.archived();
    let file = scene.path("staging/shard-0001/a.sst");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, b"somebody's").unwrap();
    assert!(matches!(scene.download(&manifest, &scene.store), Err(DownloadError::Local(_))));
    assert_eq!(fs::read(file).unwrap(), b"somebody's");
}

#[test]
fn what_an_interrupted_download_left_is_used_where_its_content_is_right_and_removed_where_not() {
    let scene = Scene::new();
    let manifest = scene.archived();
    scene.download(&manifest, &scene.store).unwrap();
    let staging = scene.path("staging");
    let mut flipped = fs::read(staging.join("shard-0000/a.sst")).unwrap();
    flipped[700_000] ^= 1;
    fs::write(staging.join("shard-0000/a.sst"), flipped).unwrap();
    cut(&staging.join("shard-0001/a.sst"), 2);
    fs::write(staging.join("shard-0001/foreign"), "of another pause").unwrap();
    let staged = take_up(&manifest, &staging, &forever()).unwrap();
    assert_eq!((staged.files(), staged.bytes()), (2, 4));
    assert_eq!(
        tree(&staging).into_keys().collect::<Vec<_>>(),
        ["shard-0000/deep/er/b.sst", "shard-0001/empty"]
    );
    let counting = FailingStore::new(&scene.store, 0, Fails::Before);
    let mut seen = Vec::new();
    download(&manifest, &counting, &staging, &staged, &forever(), &mut |at| seen.push(at.done_bytes))
        .unwrap();
    assert_eq!(counting.calls(), 2, "the two objects that were missing");
    assert_eq!((seen.first(), seen.last()), (Some(&4), Some(&1_500_008)));
    assert!(tree(&staging) == restored(&scene));
}

#[test]
fn local_files_that_differ_from_the_manifest_are_named() {
    let scene = Scene::new();
    let manifest = scene.archived();
    scene.download(&manifest, &scene.store).unwrap();
    let first_difference = |name: &str, content: Option<&[u8]>| {
        let path = scene.path("staging").join(name);
        let before = fs::read(&path).unwrap();
        content.map_or_else(|| fs::remove_file(&path), |content| fs::write(&path, content)).unwrap();
        let result = check_local(&manifest, &scene.path("staging"), &forever());
        fs::write(&path, before).unwrap();
        let Err(CheckError::Differs { file, difference, .. }) = result else { panic!("{result:?}") };
        assert_eq!(file, name);
        difference
    };
    assert_eq!(first_difference("shard-0001/empty", None), Difference::Missing);
    let longer = Difference::Length { expected_bytes: 4, found_bytes: 5 };
    assert_eq!(first_difference("shard-0001/a.sst", Some(b"betas")), longer);
    assert!(matches!(first_difference("shard-0001/a.sst", Some(b"bete")), Difference::Hash { .. }));
}

#[test]
fn progress_only_grows_and_ends_at_the_total() {
    let scene = Scene::new();
    let mut seen: Vec<Vec<Progress>> = vec![Vec::new(); 2];
    let [uploading, downloading] = &mut seen[..] else { unreachable!() };
    let plan = scene.plan();
    scene.upload_until(&plan, &scene.store, &forever(), &mut |progress| uploading.push(progress)).unwrap();
    let manifest = scene.archived();
    let staging = scene.path("staging");
    download(&manifest, &scene.store, &staging, &Staged::default(), &forever(), &mut |progress| {
        downloading.push(progress);
    })
    .unwrap();
    for (calls, total_bytes) in seen.iter().zip([1_500_004, 1_500_008]) {
        assert!(calls.is_sorted_by_key(|progress| progress.done_bytes));
        assert!(calls.iter().all(|progress| progress.total_bytes == total_bytes));
        assert_eq!(calls.last().unwrap().done_bytes, total_bytes);
    }
}

#[test]
fn a_cancel_stops_an_upload_after_the_object_that_is_under_way() {
    let scene = Scene::new();
    let plan = scene.plan();
    let cancel = Cancel::new();
    let until = Until::new(None, cancel.clone());
    let mut store = FailingStore::new(&scene.store, 0, Fails::Before);
    store.around.one_at_a_time = true;
    let result = scene.upload_until(&plan, &store, &until, &mut |_| cancel.cancel());
    assert!(matches!(result, Err(UploadError::Stopped(Stopped::Cancelled))));
    assert_eq!(tree(&scene.path("archive")).len(), 1);
}

#[test]
fn a_cancel_stops_every_walk() {
    let scene = Scene::new();
    let manifest = scene.archived();
    let until = cancelled();
    let planned = scene.plan_after(&Reusable::default(), &mut KnownHashes::default(), &until);
    assert!(matches!(planned, Err(UploadError::Stopped(_))));
    let looked = Standing::look(&scene.store, &part(BUCKET), SystemTime::now(), &until);
    assert!(matches!(looked, Err(RecordError::Store(StoreError { cause: StoreCause::Stopped(_), .. }))));
    let downloaded =
        download(&manifest, &scene.store, &scene.path("staging"), &Staged::default(), &until, &mut |_| {});
    assert!(matches!(downloaded, Err(DownloadError::Stopped(_))));
    scene.download(&manifest, &scene.store).unwrap();
    let checked = check_local(&manifest, &scene.path("staging"), &until);
    assert!(matches!(checked, Err(CheckError::Stopped(_))));
    assert!(matches!(verify(&manifest, &scene.store, &until), Err(VerifyError::Stopped(_))));
}

/// Puts end with their limit, but for the one of an empty file, which fails once the others wait.
struct FailsBesideOthers {
    waiting: AtomicUsize,
}

impl Around for FailsBesideOthers {
    fn call<T>(
        &self,
        call: &Call<'_>,
        go: &mut dyn FnMut(Pass<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Carries::Body(body) = call.carries else { return go(Pass::Whole) };
        if body.length_bytes() == 0 {
            eventually("the others wait", || self.waiting.load(Ordering::SeqCst) == 2);
            return Err(call.failed(StoreCause::Connection("it was made to fail".to_owned())));
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let ended = call.until.cancel().fin().wait(&watchdog());
        assert!(ended.is_ok(), "nobody told the others");
        Err(call.failed(Stopped::Cancelled))
    }

    fn parallel(&self, _: usize) -> usize {
        3
    }
}

#[test]
fn a_file_that_fails_ends_the_uploads_beside_it_and_is_the_cause_that_is_told() {
    let scene = Scene::new();
    let memory = MemoryStore::default();
    let store = Forward::around(&memory, FailsBesideOthers { waiting: AtomicUsize::new(0) });
    let until = Until::default();
    let error = scene.upload_until(&scene.plan(), &store, &until, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("it was made to fail"), "{error}");
    assert!(until.check().is_ok(), "the caller's own limit is not touched");
}
