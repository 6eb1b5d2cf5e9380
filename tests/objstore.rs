//! The contract of an object store, over a folder, and what belongs to it: keys, hashes, URLs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

use dormouse::objstore::{
    ArchiveOptions, ArchiveUrl, ArchiveUrlError, Body, CHUNK_BYTES, ContentHash, FileStore, HashingWriter,
    ObjectKey, ObjectStore, ReadError, StoreCause, StoreError, hash_file, parse_archive,
};
use dormouse::thread::{Cancel, Failure, Stopped, Until, fin, spawn};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::stores::{chunks_of, file_with, get, names, put};
use crate::support::{forever, key, tree};

fn store() -> (TempDir, FileStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(&folder.path().join("archive")).unwrap();
    (folder, store)
}

fn root(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("archive")
}

fn hash_of(content: &[u8]) -> ContentHash {
    let mut hashing = HashingWriter::new(io::sink());
    hashing.write_all(content).unwrap();
    hashing.finish().0.hash
}

#[test]
fn of_eight_threads_that_create_one_object_exactly_one_wins() {
    let (folder, _) = store();
    let (start, started) = fin();
    let threads: Vec<_> = (0..8_u8)
        .map(|number| {
            let store = FileStore::open(&root(&folder)).unwrap();
            let started = started.clone();
            spawn(format!("racer {number}"), move || {
                started.wait(&forever()).unwrap();
                store.put_if_absent(&key("new/x"), Body::Bytes(&[number; 1000]), &forever())
            })
            .unwrap()
        })
        .collect();
    drop(start);
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join(&forever()).unwrap()).collect();
    let winners: Vec<usize> = (0..8).filter(|&number| results[number].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    let lost = |result: &Result<(), StoreError>| {
        result.as_ref().is_err_and(|e| matches!(e.cause, StoreCause::Exists))
    };
    assert_eq!(results.iter().filter(|result| lost(result)).count(), 7, "{results:?}");
    let winner = u8::try_from(winners[0]).unwrap();
    assert_eq!(tree(&root(&folder)), [("new/x".to_owned(), vec![winner; 1000])].into());
}

#[test]
fn a_reader_sees_the_old_object_or_the_new_one_while_it_is_replaced() {
    let (folder, store) = store();
    let content = |number: u8| vec![number; 1000 * (1 + usize::from(number % 7))];
    put(&store, "x", &content(0));
    let writing = FileStore::open(&root(&folder)).unwrap();
    let (ended_holder, ended) = dormouse::thread::fin();
    let writer = spawn("writer", move || {
        let _ended = ended_holder;
        (1..100).for_each(|number| put(&writing, "x", &content(number)));
    })
    .unwrap();
    while !ended.is_given() {
        let seen = get(&store, "x").unwrap();
        assert!(seen == content(seen[0]));
    }
    writer.join(&forever()).unwrap();
    assert!(get(&store, "x").unwrap() == content(99));
}

#[test]
fn only_the_owner_may_read_objects() {
    let (folder, store) = store();
    put(&store, "a/x", b"content");
    let mode = |path: &str| fs::metadata(root(&folder).join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("a/x"), 0o600);
    assert_eq!(mode("a"), 0o700);
}

#[test]
fn unfinished_and_foreign_names_are_not_listed() {
    let (folder, store) = store();
    put(&store, "a/x", b"content");
    fs::write(root(&folder).join("a/.0123456789abcdef.tmp"), b"left over").unwrap();
    fs::write(root(&folder).join("a/with\\backslash"), b"foreign").unwrap();
    symlink("x", root(&folder).join("a/link")).unwrap();
    let listed = store.list(None, &forever()).unwrap();
    assert_eq!(listed.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a/x"]);
}

#[test]
fn symbolic_links_inside_the_root_are_not_followed() {
    let (folder, store) = store();
    let outside = folder.path().join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("secret"), b"secret").unwrap();
    symlink(&outside, root(&folder).join("a")).unwrap();
    symlink(outside.join("secret"), root(&folder).join("b")).unwrap();
    store.put(&key("a/x"), Body::Bytes(b"content"), &forever()).unwrap_err();
    store.delete(&[key("a/secret")], &forever()).unwrap_err();
    store.list(Some(&key("a")), &forever()).unwrap_err();
    store.list(Some(&key("a/inner")), &forever()).unwrap_err();
    get(&store, "a/secret").unwrap_err();
    get(&store, "b").unwrap_err();
    assert_eq!(tree(&outside), [("secret".to_owned(), b"secret".to_vec())].into());
}

#[test]
fn a_file_that_is_shorter_than_promised_is_refused_and_leaves_nothing() {
    let (folder, store) = store();
    let file = file_with(folder.path(), b"12345");
    let body = Body::File { file: &file, offset_bytes: 0, length_bytes: 6, chunks: &chunks_of(b"12345") };
    let error = store.put(&key("a/x"), body, &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::BodyTooShort { expected_bytes: 6, found_bytes: 5 }));
    assert!(tree(&root(&folder)).is_empty());
}

#[test]
fn a_file_with_another_content_than_promised_is_refused_and_what_was_there_stays() {
    let (folder, store) = store();
    put(&store, "x", b"before");
    let file = file_with(folder.path(), b"12345");
    let body = Body::File { file: &file, offset_bytes: 0, length_bytes: 5, chunks: &chunks_of(b"12346") };
    let error = store.put(&key("x"), body, &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::BodyChanged));
    assert_eq!(tree(&root(&folder)), [("x".to_owned(), b"before".to_vec())].into());
}

#[test]
fn a_root_that_vanished_is_an_error_and_no_empty_store() {
    let (folder, store) = store();
    fs::remove_dir(root(&folder)).unwrap();
    let error = store.list(Some(&key("b/manifests")), &forever()).unwrap_err();
    assert!(error.to_string().ends_with("is gone; is its disk mounted?"), "{error}");
    store.head(&key("x"), &forever()).unwrap_err();
    store.put(&key("x"), Body::Bytes(b""), &forever()).unwrap_err();
    assert!(!root(&folder).exists());
}

#[test]
fn a_root_that_cannot_be_made_is_named_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let below = file.join("archive");
    for path in [&file, &below] {
        let error = FileStore::open(path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot open the archive in file://{}: ", path.display())),
            "{error}"
        );
        assert!(error.ends_with("; name a folder, or move away what is in its place"), "{error}");
    }
}

#[test]
fn errors_of_the_system_say_the_way_out_and_whether_they_pass() {
    let error = |kind: io::ErrorKind| {
        StoreError::new(
            dormouse::objstore::Operation::Put,
            Some(&key("x")),
            "file:///a",
            io::Error::from(kind),
        )
    };
    let denied = error(io::ErrorKind::PermissionDenied);
    assert!(denied.to_string().ends_with("; make the folder writable for this user or name another archive"));
    assert!(!denied.is_temporary());
    let full = error(io::ErrorKind::StorageFull);
    assert!(full.to_string().ends_with("; free space there or name another archive"));
    assert!(error(io::ErrorKind::TimedOut).is_temporary());
}

#[test]
fn keys_that_would_leave_the_store_or_look_unfinished_are_refused() {
    let long_segment = "a".repeat(256);
    let long_key = "a/".repeat(512) + "a";
    let refused = [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/..",
        "../a",
        "a/./b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a.tmp",
        "a.tmp/b",
        ".tmp",
        &long_segment,
        &long_key,
    ];
    for text in refused {
        assert!(ObjectKey::new(text).is_err(), "{text:?}");
    }
    for text in ["a", "a/b/c", "...", ".a", "a.tmp.b", "ä b%", &"a".repeat(255)] {
        assert_eq!(key(text).to_string(), text);
    }
    assert!(key("a").join("../b").is_err());
    assert_eq!(key("a").join("b/c").unwrap(), key("a/b/c"));
}

#[test]
fn the_hash_of_a_file_is_that_of_its_chunks_hashes() {
    let chunk_bytes = usize::try_from(CHUNK_BYTES).unwrap();
    for length in [0, 1, chunk_bytes - 1, chunk_bytes, chunk_bytes + 1] {
        let content = vec![b'x'; length];
        let digests = content.chunks(chunk_bytes).flat_map(Sha256::digest).collect::<Vec<u8>>();
        let expected = dormouse::durable::hex(&Sha256::digest(digests));
        assert_eq!(hash_of(&content).to_string(), expected, "{length} bytes");
    }
}

#[test]
fn a_file_has_the_hash_of_its_bytes_up_to_the_length() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_with(folder.path(), b"content and more");
    assert_eq!(hash_file(&file, 7, &forever()).unwrap(), hash_of(b"content"));
    let short = hash_file(&file, 17, &forever()).unwrap_err();
    assert!(matches!(short, ReadError::TooShort { expected_bytes: 17, found_bytes: 16 }));
    let passed = Until::new(Some(Instant::now().checked_sub(Duration::from_secs(1)).unwrap()), Cancel::new());
    assert!(matches!(hash_file(&file, 7, &passed), Err(ReadError::Stopped(Stopped::DeadlinePassed))));
}

#[test]
fn a_hash_has_one_spelling() {
    let hash = hash_of(b"content");
    let text = hash.to_string();
    assert_eq!(text.parse::<ContentHash>().unwrap(), hash);
    for refused in
        [text.to_uppercase(), text[1..].to_owned(), format!("{text}0"), "ä".repeat(32), "g".repeat(64)]
    {
        assert!(refused.parse::<ContentHash>().is_err(), "{refused}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_hash_does_not_depend_on_how_bytes_are_written(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
        let mut hashing = HashingWriter::new(Vec::new());
        for piece in &pieces {
            hashing.write_all(piece).unwrap();
        }
        let (content, written) = hashing.finish();
        prop_assert_eq!(&written, &pieces.concat());
        prop_assert_eq!(content.hash, hash_of(&written));
        prop_assert_eq!(content.length_bytes, written.len() as u64);
    }
}

#[test]
fn an_archive_is_a_folder_given_as_a_path_or_as_a_url() {
    for (text, path) in [
        ("file:///var/archive", "/var/archive"),
        ("FILE:///var/a%20b", "/var/a%20b"),
        ("/var/archive", "/var/archive"),
        ("archive/x", "archive/x"),
        ("c:x", "c:x"),
        ("./s3://x", "./s3://x"),
    ] {
        assert_eq!(parse_archive(text).unwrap(), ArchiveUrl::Folder(path.into()), "{text}");
    }
}

#[test]
fn an_archive_may_be_a_bucket_or_a_prefix_in_one() {
    for (text, said, prefix) in [
        ("s3://bucket", "s3://bucket", None),
        ("S3://bucket/", "s3://bucket", None),
        ("s3://bucket/a/b", "s3://bucket/a/b", Some("a/b")),
        ("s3://bucket/a/", "s3://bucket/a", Some("a")),
    ] {
        let parsed = parse_archive(text).unwrap();
        assert_eq!(parsed, ArchiveUrl::S3 { bucket: "bucket".to_owned(), prefix: prefix.map(key) }, "{text}");
        assert_eq!(parsed.to_string(), said);
    }
}

#[test]
fn other_archives_are_refused_with_what_to_give_instead() {
    for text in ["s3://", "s3:///prefix", "s3:bucket", "s3://bucket/a//b", "s3://bucket/../b"] {
        assert!(matches!(parse_archive(text), Err(ArchiveUrlError::S3(_))), "{text}");
        assert!(parse_archive(text).unwrap_err().to_string().contains("s3://bucket/prefix"), "{text}");
    }
    for text in ["file://host/path", "file:relative", "file:", "file://"] {
        assert!(matches!(parse_archive(text), Err(ArchiveUrlError::File(_))), "{text}");
    }
    assert!(matches!(parse_archive("https://host/path"), Err(ArchiveUrlError::Scheme(_))));
    for text in ["file://host/path", "https://host/path", ""] {
        assert!(parse_archive(text).unwrap_err().to_string().contains("file:///var/archive"), "{text}");
    }
}

#[test]
fn opening_an_archive_makes_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    let store = parse_archive(path.to_str().unwrap()).unwrap().open(&ArchiveOptions::default()).unwrap();
    assert!(path.is_dir());
    assert_eq!(store.describe(), format!("file://{}", fs::canonicalize(path).unwrap().display()));
}

#[test]
fn the_folder_that_a_file_system_keeps_at_its_root_is_no_part_of_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    put(&store, "b/lost+found/m", b"ours");
    fs::create_dir_all(folder.path().join("lost+found/manifests")).unwrap();
    fs::write(folder.path().join("lost+found/manifests/x"), b"not ours").unwrap();
    assert_eq!(names(&store, None), ["b/lost+found/m"]);
}
