//! Compressed objects: as small as said, decoded to the byte, and believed no more than others.

use std::fs;
use std::io::Write;
use std::time::SystemTime;

use dormouse::objstore::{CHUNK_BYTES, Content, ContentHash, Encoding, FileStore, ObjectStore};
use dormouse::pause::{
    AttemptId, BadObject, Difference, DownloadError, ImageFile, KnownHashes, Manifest, PauseId, Reusable,
    Staged, Standing, Stored, UploadOptions, check_local, download, plan_upload, upload, verify, weigh,
};
use tempfile::TempDir;

use crate::support::stores::memory::MemoryStore;
use crate::support::stores::{chunks_of, content, put};
use crate::support::{
    ALL_FAILS, BUCKET, FailingStore, Fails, archive_as, attempt, forever, image, manifest, part, reusable,
    tree, upload_options, watchdog,
};

/// A folder with files, of which two compress well, and an archive beside them in a folder or in memory.
struct Scene {
    folder: TempDir,
    store: Box<dyn ObjectStore>,
    files: Vec<ImageFile>,
}

/// Digits that look random: four bits of each byte.
fn digits(length: usize) -> Vec<u8> {
    let hex = |byte: &u8| {
        [b"0123456789abcdef"[usize::from(byte >> 4)], b"0123456789abcdef"[usize::from(byte & 15)]]
    };
    content(length.div_ceil(2)).iter().flat_map(hex).take(length).collect()
}

impl Scene {
    fn over(store: impl FnOnce(&TempDir) -> Box<dyn ObjectStore>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = vec![
            image(folder.path(), 0, "digits", &digits(300_000)),
            image(folder.path(), 0, "noise", &content(200_000)),
            image(folder.path(), 0, "small", b"so small that nothing is saved"),
            image(folder.path(), 1, "zeros", &vec![0; 1_000_000]),
            image(folder.path(), 1, "again", &digits(300_000)),
        ];
        Self { store: store(&folder), folder, files }
    }

    /// One in a folder, one in memory.
    fn both() -> [Self; 2] {
        let in_folder = |folder: &TempDir| -> Box<dyn ObjectStore> {
            Box::new(FileStore::open(&folder.path().join("archive")).unwrap())
        };
        [Self::over(in_folder), Self::over(|_| Box::new(MemoryStore::default()))]
    }

    fn options(&self) -> UploadOptions {
        UploadOptions { encoding: Some(Encoding::Zstd), ..upload_options(&*self.store) }
    }

    fn archived(&self) -> Manifest {
        archive_as(&self.options(), &*self.store, first(), &self.files, None, &forever()).unwrap().0
    }

    fn download(&self, manifest: &Manifest) -> Result<(), DownloadError> {
        let staging = self.folder.path().join("staging");
        let _ = fs::remove_dir_all(&staging);
        download(manifest, &*self.store, &staging, &Staged::default(), &forever(), &mut |_| {})
    }

    fn object(&self, manifest: &Manifest, file: usize) -> Vec<u8> {
        let mut found = Vec::new();
        self.store.get(&manifest.files[file].object, &mut found, &forever()).unwrap();
        found
    }

    /// The manifest of a pause whose only file is `file`, stored as `object`.
    fn forged(&self, file: &[u8], object: &[u8]) -> Manifest {
        let hash = |bytes: &[u8]| ContentHash::of_chunks(&chunks_of(bytes));
        let mut forged = self.archived();
        forged.files.truncate(1);
        let named = &mut forged.files[0];
        (named.length_bytes, named.hash) = (file.len() as u64, hash(file));
        let (length_bytes, hash) = (object.len() as u64, hash(object));
        named.stored = Some(Stored { encoding: Encoding::Zstd, length_bytes, hash });
        named.object = part(BUCKET).object_key(hash, attempt()).unwrap();
        put(&*self.store, named.object.as_str(), object);
        forged
    }
}

fn first() -> PauseId {
    "0000000001-00000000000000aa".parse().unwrap()
}

fn second() -> PauseId {
    "0000000002-00000000000000ab".parse().unwrap()
}

fn encoded(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The only bad object of a pause, as a download and `verify` tell of it.
fn only_bad(scene: &Scene, manifest: &Manifest) -> BadObject {
    let Err(DownloadError::Bad { bad, .. }) = scene.download(manifest) else { panic!("it was restored") };
    assert_eq!(verify(manifest, &*scene.store, &forever()).unwrap(), [(*bad).clone()]);
    *bad
}

#[test]
fn what_compresses_well_is_stored_compressed_and_comes_back_byte_for_byte() {
    for scene in Scene::both() {
        let manifest = scene.archived();
        for (number, file) in manifest.files.iter().enumerate() {
            let (object, original) =
                (scene.object(&manifest, number), fs::read(&scene.files[number].path).unwrap());
            let Content { length_bytes, hash } = file.object_content();
            assert_eq!(
                (length_bytes, hash),
                (object.len() as u64, ContentHash::of_chunks(&chunks_of(&object)))
            );
            assert!(
                file.object.as_str().contains(&hash.to_string()),
                "an object is named by its own content"
            );
            if file.stored.is_some() {
                assert!(object.len() * 10 < original.len() * 9);
                assert_eq!(zstd::decode_all(&object[..]).unwrap(), original);
            } else {
                assert!(object == original);
            }
        }
        let is_encoded: Vec<bool> = manifest.files.iter().map(|file| file.stored.is_some()).collect();
        assert_eq!(is_encoded, [true, false, false, true, true]);
        assert_eq!(manifest.files[0].object, manifest.files[4].object, "equal files are one object");
        assert_eq!(manifest.format_version(), 2);
        assert_eq!(verify(&manifest, &*scene.store, &forever()).unwrap(), []);
        scene.download(&manifest).unwrap();
        check_local(&manifest, &scene.folder.path().join("staging"), &forever()).unwrap();
    }
}

#[test]
fn the_bytes_that_are_told_are_those_in_the_store_also_by_a_dry_run() {
    for scene in Scene::both() {
        let dry = UploadOptions { takes_drafts: false, ..scene.options() };
        let (none, mut known) = (Reusable::default(), KnownHashes::default());
        let plan = plan_upload(&dry, &scene.files, &none, &mut known, &forever()).unwrap();
        let weighed = weigh(&plan, 2, &none, &forever()).unwrap();
        assert_eq!(scene.store.list(None, &forever()).unwrap(), []);
        let (_, new) =
            archive_as(&scene.options(), &*scene.store, first(), &scene.files, None, &forever()).unwrap();
        let objects = scene.store.list(None, &forever()).unwrap();
        let objects = objects.iter().filter(|object| object.key.as_str().contains("/objects/"));
        let bytes: u64 = objects.map(|object| object.length_bytes).sum();
        assert_eq!((new.files, new.bytes), (4, bytes));
        assert_eq!(weighed, new);
    }
}

#[test]
fn what_a_parent_stored_is_named_again_whether_compressed_or_not() {
    for scene in Scene::both() {
        let parent = scene.archived();
        for encoding in [None, Some(Encoding::Zstd)] {
            let options =
                UploadOptions { encoding, attempt: "00000000000000cc".parse().unwrap(), ..scene.options() };
            let plain = FailingStore::new(&*scene.store, 0, Fails::Before);
            let (later, new) =
                archive_as(&options, &plain, second(), &scene.files, Some(&parent), &forever()).unwrap();
            assert_eq!((later.files, new.files, plain.puts()), (parent.files.clone(), 0, 1));
            scene
                .store
                .delete(&[format!("{BUCKET}/manifests/{}.manifest", second()).parse().unwrap()], &forever())
                .unwrap();
        }
    }
}

#[test]
fn what_an_attempt_stored_before_it_was_interrupted_is_not_stored_again() {
    for scene in Scene::both() {
        let upload_all = |reusable: &mut Reusable| {
            let (known, to) = (&mut KnownHashes::default(), scene.folder.path().join("encoded"));
            let plan = plan_upload(&scene.options(), &scene.files, reusable, known, &forever()).unwrap();
            upload(&plan, (&*scene.store, &to), reusable, known, &forever(), &mut |_| {}).unwrap()
        };
        let before = upload_all(&mut Reusable::default());
        let mut found = reusable(&*scene.store, None, attempt(), &forever()).unwrap();
        let again = upload_all(&mut found);
        assert_eq!((&again.files, again.new.files), (&before.files, 0));
        assert_eq!(before.new.files, 4);
    }
}

#[test]
fn what_was_stored_under_an_earlier_name_of_the_attempt_is_named_by_it() {
    for scene in Scene::both() {
        let to = scene.folder.path().join("encoded");
        let upload_all = |attempt: AttemptId, reusable: &mut Reusable| {
            let (known, options) = (&mut KnownHashes::default(), scene.options());
            let options = UploadOptions { attempt, ..options };
            let plan = plan_upload(&options, &scene.files, reusable, known, &forever()).unwrap();
            upload(&plan, (&*scene.store, &to), reusable, known, &forever(), &mut |_| {}).unwrap()
        };
        let before = upload_all(attempt(), &mut Reusable::default());
        let renamed = "00000000000000cc".parse().unwrap();
        let standing = Standing::look(&*scene.store, &part(BUCKET), SystemTime::now(), &forever()).unwrap();
        let mut found = Reusable::find(&part(BUCKET), None, &[attempt(), renamed], &standing).unwrap();
        let again = upload_all(renamed, &mut found);
        assert_eq!((&again.files, again.new.files), (&before.files, 0));
        assert_eq!(standing.lacks(&again.files), None);
    }
}

#[test]
fn a_compressed_object_with_a_flipped_bit_is_named_as_damaged() {
    for scene in Scene::both() {
        let manifest = scene.archived();
        let whole = scene.object(&manifest, 3);
        for at in [0, 4, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            put(&*scene.store, manifest.files[3].object.as_str(), &flipped);
            let bad = only_bad(&scene, &manifest);
            assert_eq!(bad.object, manifest.files[3].object);
            assert!(matches!(bad.difference, Difference::Hash { .. }), "byte {at}: {bad}");
        }
        put(&*scene.store, manifest.files[3].object.as_str(), &whole[..whole.len() - 1]);
        assert!(matches!(only_bad(&scene, &manifest).difference, Difference::Length { .. }));
    }
}

#[test]
fn an_object_that_decodes_to_more_than_its_file_fills_no_disk() {
    for scene in Scene::both() {
        let bomb = encoded(&vec![0; 64 * 1024 * 1024]);
        let manifest = scene.forged(&vec![0; 100_000], &bomb);
        let bad = only_bad(&scene, &manifest);
        assert_eq!(bad.difference, Difference::Encoded("it holds more than the file has".to_owned()));
        let staged = tree(&scene.folder.path().join("staging"));
        assert!(staged.values().all(|file| file.len() <= 100_000));
    }
}

#[test]
fn an_object_that_does_not_hold_its_file_is_told_as_such() {
    for scene in Scene::both() {
        let file = vec![0; 100_000];
        let mut ends_early = encoded(&file);
        ends_early.truncate(ends_early.len() - 4);
        let mut other = file.clone();
        other[50_000] = 1;
        for object in [encoded(&file[1..]), encoded(&other), b"this is no frame".to_vec(), ends_early] {
            let bad = only_bad(&scene, &scene.forged(&file, &object));
            assert!(matches!(bad.difference, Difference::Encoded(_)), "{bad}");
        }
    }
}

#[test]
fn a_frame_that_wants_much_memory_is_refused() {
    let [scene, _] = Scene::both();
    let file = digits(300_000);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&file).unwrap();
    let bad = only_bad(&scene, &scene.forged(&file, &encoder.finish().unwrap()));
    assert!(matches!(bad.difference, Difference::Encoded(_)), "{bad}");
}

#[test]
fn a_manifest_whose_object_is_not_smaller_than_its_file_is_refused() {
    let [scene, _] = Scene::both();
    let manifest = scene.forged(b"abc", &encoded(b"abc"));
    let refused = manifest.publish(&*scene.store, &forever()).unwrap_err().to_string();
    assert!(refused.contains("is encoded to no use"), "{refused}");
}

/// Two files whose compressed objects have several chunks, and a small one.
fn in_parts() -> (TempDir, Vec<ImageFile>) {
    let folder = tempfile::tempdir().unwrap();
    let long = digits(usize::try_from(CHUNK_BYTES).unwrap() * 2 + 1_500_000);
    let mut other = long.clone();
    other.reverse();
    let files = vec![
        image(folder.path(), 0, "long", &long),
        image(folder.path(), 0, "small", &digits(10_000)),
        image(folder.path(), 1, "other", &other),
    ];
    (folder, files)
}

#[test]
fn whichever_call_fails_compressed_objects_in_parts_are_uploaded_afterwards() {
    let (_folder, files) = in_parts();
    for number in 1.. {
        let memory = MemoryStore::default();
        let mut failing = FailingStore::new(&memory, number, ALL_FAILS[number % ALL_FAILS.len()]);
        failing.around.one_at_a_time = true;
        let options = UploadOptions { encoding: Some(Encoding::Zstd), ..upload_options(&memory) };
        let interrupted = archive_as(&options, &failing, first(), &files, None, &watchdog());
        if !failing.has_failed() {
            let (manifest, _) = interrupted.unwrap();
            assert!(manifest.files[0].object_content().length_bytes > CHUNK_BYTES);
            assert!(number > 10, "an upload has more calls than {number}");
            return;
        }
        let mut found = reusable(&memory, None, attempt(), &forever()).unwrap();
        let (known, scratch) = (&mut KnownHashes::default(), tempfile::tempdir().unwrap());
        let plan = plan_upload(&options, &files, &found, known, &forever()).unwrap();
        let to = scratch.path().join("encoded");
        let uploaded = upload(&plan, (&memory, &to), &mut found, known, &watchdog(), &mut |_| {}).unwrap();
        let manifest = manifest(second(), None, uploaded.files);
        assert_eq!(verify(&manifest, &memory, &watchdog()).unwrap(), [], "call {number}");
        assert_eq!(memory.parts_left(), 0, "call {number}");
    }
}

#[test]
fn whichever_call_fails_compressed_objects_in_parts_are_downloaded_afterwards() {
    let (_folder, files) = in_parts();
    let memory = MemoryStore::default();
    let options = UploadOptions { encoding: Some(Encoding::Zstd), ..upload_options(&memory) };
    let (manifest, _) = archive_as(&options, &memory, first(), &files, None, &watchdog()).unwrap();
    for number in 1.. {
        let staging = tempfile::tempdir().unwrap();
        let to = staging.path().join("staging");
        let failing = FailingStore::new(&memory, number, ALL_FAILS[number % ALL_FAILS.len()]);
        let interrupted = download(&manifest, &failing, &to, &Staged::default(), &watchdog(), &mut |_| {});
        if !failing.has_failed() {
            interrupted.unwrap();
            assert_eq!(number, 6, "two pieces of each long object, one of the small one");
            return;
        }
        interrupted.unwrap_err();
        let staged = dormouse::pause::take_up(&manifest, &to, &watchdog()).unwrap();
        download(&manifest, &memory, &to, &staged, &watchdog(), &mut |_| {}).unwrap();
        check_local(&manifest, &to, &watchdog()).unwrap();
    }
}
