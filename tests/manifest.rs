//! Manifests: published last and once, believed only when whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dormouse::durable::seal;
use dormouse::event::Generation;
use dormouse::objstore::{Body, Encoding, FileStore, ObjectStore};
use dormouse::pause::{
    AttemptId, IdError, Manifest, ManifestError, Membership, PauseId, SMALL_BYTES_MAX, Stored, UploadOptions,
    check_local, download, list_pauses, verify,
};
use tempfile::TempDir;

use crate::support::{
    BUCKET, FailingStore, Fails, archive, archive_as, forever, image, key, manifest, part, tree,
    upload_options,
};

const FIRST: &str = "0000000001-00000000000000aa";
const SECOND: &str = "0000000002-00000000000000ab";

fn id(text: &str) -> PauseId {
    text.parse().unwrap()
}

/// An archive with one pause of two files.
fn archived() -> (TempDir, FileStore, Manifest) {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(&folder.path().join("archive")).unwrap();
    let files = [image(folder.path(), 0, "a.sst", b"alpha"), image(folder.path(), 1, "sub/b.sst", b"beta")];
    let manifest = archive(&store, id(FIRST), &files, None, &forever()).unwrap();
    (folder, store, manifest)
}

fn manifest_path(folder: &TempDir) -> PathBuf {
    folder.path().join(format!("archive/{BUCKET}/manifests/{FIRST}.manifest"))
}

fn read(store: &FileStore) -> Result<Manifest, ManifestError> {
    Manifest::read(store, &part(BUCKET), id(FIRST), &forever())
}

/// The error of reading `manifest` after it was written, sealed, past all checks, as pause [`FIRST`].
fn refusal(manifest: &Manifest) -> String {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let sealed = seal("manifest", manifest.format_version(), manifest).unwrap();
    let place = key(&format!("{BUCKET}/manifests/{FIRST}.manifest"));
    store.put(&place, Body::Bytes(&sealed), &forever()).unwrap();
    read(&store).unwrap_err().to_string()
}

#[test]
fn a_published_manifest_is_read_back_as_it_was() {
    let (_folder, store, manifest) = archived();
    assert_eq!(read(&store).unwrap(), manifest);
    assert_eq!(list_pauses(&store, &part(BUCKET), &forever()).unwrap(), [manifest.pause]);
}

#[test]
fn a_manifest_with_a_flipped_bit_at_any_position_is_refused() {
    let (folder, store, _) = archived();
    let whole = fs::read(manifest_path(&folder)).unwrap();
    for position in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << bit;
            fs::write(manifest_path(&folder), &damaged).unwrap();
            let error = read(&store).unwrap_err();
            assert!(matches!(error, ManifestError::Damaged { .. }), "byte {position}, bit {bit}: {error}");
        }
    }
}

#[test]
fn a_manifest_that_is_cut_at_any_length_is_refused() {
    let (folder, store, _) = archived();
    let whole = fs::read(manifest_path(&folder)).unwrap();
    for length in 0..whole.len() {
        fs::write(manifest_path(&folder), &whole[..length]).unwrap();
        assert!(matches!(read(&store), Err(ManifestError::Damaged { .. })), "{length} bytes");
    }
}

#[test]
fn a_manifest_that_is_too_large_is_refused_and_not_read() {
    let (folder, store, _) = archived();
    let file = fs::File::options().write(true).open(manifest_path(&folder)).unwrap();
    file.set_len(SMALL_BYTES_MAX + 1).unwrap();
    let error = read(&store).unwrap_err();
    assert!(matches!(error, ManifestError::TooLarge { .. }), "{error}");
    file.set_len(SMALL_BYTES_MAX).unwrap();
    let error = read(&store).unwrap_err();
    assert!(matches!(error, ManifestError::Damaged { .. }), "{error}");
}

#[test]
fn a_manifest_under_another_pauses_key_or_bucket_is_refused() {
    let (folder, store, _) = archived();
    let sealed = fs::read(manifest_path(&folder)).unwrap();
    for place in
        [format!("{BUCKET}/manifests/{SECOND}.manifest"), format!("other/manifests/{FIRST}.manifest")]
    {
        store.put(&key(&place), Body::Bytes(&sealed), &forever()).unwrap();
    }
    let other_pause = Manifest::read(&store, &part(BUCKET), id(SECOND), &forever());
    let other_bucket = Manifest::read(&store, &part("other"), id(FIRST), &forever());
    assert!(matches!(other_pause, Err(ManifestError::Invalid { .. })), "{other_pause:?}");
    assert!(matches!(other_bucket, Err(ManifestError::Invalid { .. })), "{other_bucket:?}");
}

#[test]
fn a_manifest_with_a_file_in_no_shard_is_refused() {
    let (_folder, _, mut manifest) = archived();
    manifest.files[0].shard = dormouse::shard::ShardId(2);
    assert!(refusal(&manifest).contains("shard-0002/a.sst is in none of its 2 shards"));
}

#[test]
fn a_manifest_that_names_a_file_twice_is_refused() {
    let (_folder, _, mut manifest) = archived();
    manifest.files.push(manifest.files[1].clone());
    assert!(refusal(&manifest).contains("it names shard-0001/sub/b.sst twice"));
}

#[test]
fn a_manifest_that_names_a_file_outside_its_shard_is_refused() {
    let (_folder, _, manifest) = archived();
    let mut document = serde_json::to_value(&manifest).unwrap();
    document["files"][0]["name"] = "../../etc/passwd".into();
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let sealed = seal("manifest", 1, &document).unwrap();
    store
        .put(&key(&format!("{BUCKET}/manifests/{FIRST}.manifest")), Body::Bytes(&sealed), &forever())
        .unwrap();
    assert!(read(&store).unwrap_err().to_string().contains("it holds a segment `.` or `..`"));
}

#[test]
fn a_manifest_that_names_an_object_of_another_bucket_or_content_is_refused() {
    let (_folder, _, manifest) = archived();
    let attempt: AttemptId = "00000000000000bb".parse().unwrap();
    let hash = manifest.files[0].hash;
    let foreign = part("other").object_key(hash, attempt).unwrap();
    let other_content = manifest.files[1].object.clone();
    for object in [foreign, other_content, key(&format!("{BUCKET}/objects/{hash}"))] {
        let mut manifest = manifest.clone();
        manifest.files[0].object = object;
        assert!(refusal(&manifest).contains("of shard-0000/a.sst is none of its bucket's"));
    }
}

#[test]
fn a_manifest_with_numbers_that_make_no_sense_is_refused() {
    let (_folder, _, manifest) = archived();
    let changes: [fn(&mut Manifest); 5] = [
        |m| m.membership = Membership { member: 2, of: 1 },
        |m| m.membership = Membership { member: 0, of: 1 },
        |m| m.vbuckets = 0,
        |m| m.shards = 0,
        |m| m.parent = Some(m.pause),
    ];
    for change in changes {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        assert!(refusal(&manifest).contains("is not valid"), "{manifest:?}");
    }
}

#[test]
fn an_invalid_manifest_is_not_published() {
    let (_folder, store, mut manifest) = archived();
    manifest.pause = id(SECOND);
    manifest.files[0].shard = dormouse::shard::ShardId(9);
    assert!(matches!(manifest.publish(&store, &forever()), Err(ManifestError::Invalid { .. })));
    assert_eq!(list_pauses(&store, &part(BUCKET), &forever()).unwrap(), [id(FIRST)]);
}

#[test]
fn publishing_the_same_manifest_again_is_fine_and_another_one_under_its_key_is_not() {
    let (_folder, store, manifest) = archived();
    manifest.publish(&store, &forever()).unwrap();
    let mut other = manifest.clone();
    other.created.push('!');
    assert!(matches!(other.publish(&store, &forever()), Err(ManifestError::Taken { .. })));
    assert_eq!(read(&store).unwrap(), manifest);
}

#[test]
fn a_publish_whose_answer_was_lost_succeeds_when_it_is_tried_again() {
    let (_folder, store, mut manifest) = archived();
    manifest.pause = id(SECOND);
    let failing = FailingStore::new(&store, 1, Fails::After);
    assert!(matches!(manifest.publish(&failing, &forever()), Err(ManifestError::Store(_))));
    manifest.publish(&failing, &forever()).unwrap();
}

#[test]
fn a_pause_that_is_not_there_is_named() {
    let (_folder, store, _) = archived();
    let error = Manifest::read(&store, &part(BUCKET), id(SECOND), &forever()).unwrap_err();
    assert!(error.to_string().starts_with(&format!("bucket {BUCKET} has no pause {SECOND} in ")), "{error}");
}

#[test]
fn pauses_are_listed_oldest_first_and_foreign_names_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let later = "0000000010-0000000000000000";
    for pause in [later, SECOND, FIRST] {
        manifest(id(pause), None, Vec::new()).publish(&store, &forever()).unwrap();
    }
    for name in [
        "README",
        "1-2.manifest",
        "0000000003-00000000000000AB.manifest",
        "sub/0000000003-0000000000000000.manifest",
    ] {
        store.put(&key(&format!("{BUCKET}/manifests/{name}")), Body::Bytes(b""), &forever()).unwrap();
    }
    assert_eq!(list_pauses(&store, &part(BUCKET), &forever()).unwrap(), [id(FIRST), id(SECOND), id(later)]);
    assert_eq!(list_pauses(&store, &part("never-paused"), &forever()).unwrap(), []);
}

#[test]
fn two_manifests_of_one_generation_are_an_error_that_names_both() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let rival = "0000000001-00000000000000ff";
    for pause in [FIRST, rival] {
        manifest(id(pause), None, Vec::new()).publish(&store, &forever()).unwrap();
    }
    let error = list_pauses(&store, &part(BUCKET), &forever()).unwrap_err().to_string();
    for pause in [FIRST, rival] {
        assert!(error.contains(&format!("{BUCKET}/manifests/{pause}.manifest")), "{error}");
    }
}

#[test]
fn a_bucket_whose_name_would_leave_its_place_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    for bucket in ["", "..", "a/b", "a\\b"] {
        let error = list_pauses(&store, &part(bucket), &forever()).unwrap_err();
        assert!(matches!(error, ManifestError::Bucket { .. }), "{bucket:?}: {error}");
    }
}

#[test]
fn the_id_of_a_pause_has_one_spelling() {
    assert_eq!(id(FIRST).to_string(), FIRST);
    let refused = [
        "",
        "1-00000000000000aa",
        "+000000001-00000000000000aa",
        "0000000001-00000000000000AA",
        "0000000001-aa",
        "00000000001-00000000000000aa",
        "10000000000-00000000000000aa",
        "0000000001-+0000000000000aa",
        "0000000001-00000000000000aa-",
    ];
    for text in refused {
        assert!(text.parse::<PauseId>().is_err(), "{text:?}");
    }
}

#[test]
fn the_next_pause_has_the_next_generation_and_other_random_bits() {
    let first = PauseId::following(None).unwrap();
    assert_eq!(first.generation(), Generation(1));
    let next = PauseId::following(Some(first)).unwrap();
    assert_eq!(next.generation(), Generation(2));
    assert_ne!(PauseId::following(Some(first)).unwrap(), next);
    assert!(matches!(PauseId::following(Some(id("9999999999-0000000000000000"))), Err(IdError::UsedUp)));
    assert_ne!(AttemptId::generate().unwrap(), AttemptId::generate().unwrap());
}

/// An archive of this version of the format, as it was written when the version was new. None of them ever changes.
fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/archive-v{version}"))
}

/// What was compressed in the archive of format 2.
fn long_text() -> String {
    let lines: Vec<String> =
        (0..300).map(|n| format!("entry {n:05} of an archive that is to be read for ever\n")).collect();
    lines.concat()
}

/// Checks an archive of format `version`, and that it gives back these files.
fn assert_is_restored(version: u32, expected: &[(&str, &str)]) {
    let store = FileStore::open(&golden(version)).unwrap();
    let pauses = list_pauses(&store, &part(BUCKET), &forever()).unwrap();
    assert_eq!(pauses, [id(FIRST)]);
    let manifest = Manifest::read(&store, &part(BUCKET), pauses[0], &forever()).unwrap();
    assert_eq!((manifest.bucket_uuid, manifest.format_version()), (0xfedc_ba98_7654_3210, version));
    assert_eq!(verify(&manifest, &store, &forever()).unwrap(), []);
    let staging = tempfile::tempdir().unwrap();
    download(&manifest, &store, staging.path(), &dormouse::pause::Staged::default(), &forever(), &mut |_| {})
        .unwrap();
    check_local(&manifest, staging.path(), &forever()).unwrap();
    let expected = expected.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()));
    assert_eq!(tree(staging.path()), expected.collect());
}

#[test]
fn an_archive_of_format_1_is_read_verified_and_restored() {
    assert_is_restored(1, &[("shard-0000/a.sst", "alpha"), ("shard-0001/sub/b.sst", "beta")]);
}

#[test]
fn an_archive_of_format_2_is_read_verified_and_restored() {
    assert_is_restored(2, &[("shard-0000/a.sst", &long_text()), ("shard-0001/sub/b.sst", "beta")]);
}

#[test]
fn an_archive_is_written_in_format_1_to_the_byte() {
    let (folder, _, _) = archived();
    assert_eq!(tree(&folder.path().join("archive")), tree(&golden(1)));
}

/// To the byte but for what the encoder, which may change, made of the long file. `DORMOUSE_GOLDEN=1` writes the golden
/// image where there is none.
#[test]
fn an_archive_with_a_compressed_object_is_written_in_format_2() {
    let folder = tempfile::tempdir().unwrap();
    let long = image(folder.path(), 0, "a.sst", long_text().as_bytes());
    let files = [long, image(folder.path(), 1, "sub/b.sst", b"beta")];
    let place = folder.path().join("archive");
    let into = |place: &Path| {
        let store = FileStore::open(place).unwrap();
        let options = UploadOptions { encoding: Some(Encoding::Zstd), ..upload_options(&store) };
        archive_as(&options, &store, id(FIRST), &files, None, &forever()).unwrap();
    };
    if std::env::var_os("DORMOUSE_GOLDEN").is_some() && !golden(2).exists() {
        into(&golden(2));
    }
    into(&place);
    let written = |place: &Path| -> BTreeMap<String, String> {
        let text = |(name, content): (String, Vec<u8>)| {
            let is_encoded = content.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            let decoded = if is_encoded { zstd::decode_all(&content[..]).unwrap() } else { content };
            let hides = |line: &&str| {
                !["object", "hash", "length_bytes", "dormouse"].iter().any(|w| line.contains(w))
            };
            let text = String::from_utf8(decoded).unwrap();
            let lines: Vec<&str> = text.lines().filter(hides).collect();
            (if is_encoded { "encoded".to_owned() } else { name }, lines.join("\n"))
        };
        tree(place).into_iter().map(text).collect()
    };
    assert_eq!(written(&place), written(&golden(2)));
    let head = fs::read(place.join(format!("{BUCKET}/manifests/{FIRST}.manifest"))).unwrap();
    assert!(head.starts_with(b"dormouse manifest 2 "));
}

#[test]
fn a_manifest_in_another_version_than_it_needs_is_refused() {
    let (folder, store, mut manifest) = archived();
    let seal_as = |version, manifest: &Manifest| {
        fs::write(manifest_path(&folder), seal("manifest", version, manifest).unwrap()).unwrap();
        read(&store).unwrap_err().to_string()
    };
    assert!(seal_as(2, &manifest).contains("it has format version 2 and says what is of another"));
    let (length_bytes, hash) = (1, manifest.files[1].hash);
    manifest.files[0].stored = Some(Stored { encoding: Encoding::Zstd, length_bytes, hash });
    assert!(seal_as(1, &manifest).contains("it has format version 1 and says what is of another"));
    assert!(
        seal_as(3, &manifest).contains("it has format version 3, this program reads version 2: use a newer")
    );
}
