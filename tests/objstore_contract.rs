//! The contract of an object store, over every kind of store: a folder, memory, a real S3 server.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use dormouse::objstore::{
    Body, CHUNK_BYTES, ContentHash, FileFetch, FileStore, FileUpload, ObjectStore, Operation, Part,
    PartStore, StoreCause, StoreError, fetch_files, give_up, upload_files,
};
use dormouse::thread::{Cancel, Failure, Stopped, Until, spawn};
use tempfile::TempDir;

use crate::support::stores::gateway::Gateway;
use crate::support::stores::memory::MemoryStore;
use crate::support::stores::{Full, chunks_of, content, file_with, get, names, put};
use crate::support::{FailingStore, Fails, cancelled, forever, key, watchdog};

/// A store, and a folder for what the test needs besides.
struct Place {
    store: Arc<dyn ObjectStore>,
    folder: TempDir,
}

fn place(make: impl FnOnce(&TempDir) -> Arc<dyn ObjectStore>) -> Place {
    let folder = tempfile::tempdir().unwrap();
    Place { store: make(&folder), folder }
}

fn in_a_folder() -> Place {
    place(|folder| Arc::new(FileStore::open(&folder.path().join("archive")).unwrap()))
}

fn in_memory() -> Place {
    place(|_| Arc::new(MemoryStore::default()))
}

fn on_a_server() -> Option<Place> {
    Gateway::get().map(|gateway| place(|_| Arc::new(gateway.store())))
}

macro_rules! contract {
    ($($behaviour:ident,)*) => {
        contract!(@over in_a_folder: $($behaviour,)*);
        contract!(@over in_memory: $($behaviour,)*);
        contract!(@over on_a_server: $($behaviour,)*);
    };
    (@over $kind:ident: $($behaviour:ident,)*) => {
        mod $kind {
            $(#[test]
            fn $behaviour() {
                if let Some(place) = Option::<super::Place>::from(super::$kind()) {
                    super::$behaviour(&place);
                }
            })*
        }
    };
}

contract! {
    an_object_comes_back_as_it_was_put,
    a_file_of_several_chunks_comes_back_as_it_was_put,
    a_piece_of_a_file_comes_back_as_it_was_put,
    put_replaces_an_object,
    what_is_not_there_is_said_so,
    put_if_absent_leaves_what_is_there,
    a_listing_is_in_ascending_order_and_stays_in_its_folder,
    a_listing_goes_on_page_by_page,
    odd_keys_are_like_any_other,
    a_deleted_object_is_gone_and_deleting_it_again_is_fine,
    a_file_that_is_shorter_than_promised_is_refused_and_leaves_nothing,
    a_file_with_another_content_is_refused_and_what_was_there_stays,
    a_range_is_those_bytes_and_no_others,
    a_range_beyond_the_end_is_refused,
    a_call_whose_limit_has_ended_does_nothing,
    a_cancel_ends_a_copy_that_is_under_way,
    a_receiver_that_fails_is_told_from_a_store_that_fails,
    threads_share_a_store,
    parts_become_an_object_when_they_are_completed,
    a_part_may_be_put_again,
    an_upload_that_is_given_up_is_gone,
    an_upload_that_is_not_there_is_said_so,
    files_of_all_sizes_come_back_as_they_were,
    an_interrupted_upload_is_taken_up_where_it_was,
    an_upload_cut_in_another_way_is_begun_anew,
    an_upload_that_is_given_up_leaves_no_parts,
    an_object_of_another_length_is_told_as_such,
}

fn an_object_comes_back_as_it_was_put(place: &Place) {
    let store = &*place.store;
    let large = content(300_000);
    for (name, bytes) in [("b/objects/x", &b"content"[..]), ("empty", b""), ("large", &large)] {
        put(store, name, bytes);
        assert!(get(store, name).unwrap() == bytes, "{name}");
        assert_eq!(store.head(&key(name), &forever()).unwrap(), Some(bytes.len() as u64));
    }
}

fn a_file_of_several_chunks_comes_back_as_it_was_put(place: &Place) {
    let bytes = content(usize::try_from(CHUNK_BYTES).unwrap() + 1000);
    let file = file_with(place.folder.path(), &bytes);
    let chunks = chunks_of(&bytes);
    let body = Body::File { file: &file, offset_bytes: 0, length_bytes: bytes.len() as u64, chunks: &chunks };
    place.store.put(&key("x"), body, &forever()).unwrap();
    assert!(get(&*place.store, "x").unwrap() == bytes);
}

fn a_piece_of_a_file_comes_back_as_it_was_put(place: &Place) {
    let bytes = content(200_000);
    let file = file_with(place.folder.path(), &bytes);
    let piece = &bytes[1000..151_000];
    let chunks = chunks_of(piece);
    let body = Body::File { file: &file, offset_bytes: 1000, length_bytes: 150_000, chunks: &chunks };
    place.store.put(&key("x"), body, &forever()).unwrap();
    assert!(get(&*place.store, "x").unwrap() == piece);
}

fn put_replaces_an_object(place: &Place) {
    put(&*place.store, "x", b"the first, longer one");
    put(&*place.store, "x", b"second");
    assert_eq!(get(&*place.store, "x").unwrap(), b"second");
}

fn what_is_not_there_is_said_so(place: &Place) {
    let store = &*place.store;
    let error = get(store, "a/b").unwrap_err();
    assert!(matches!(error.cause, StoreCause::NotFound), "{error}");
    assert_eq!(error.to_string(), format!("cannot get a/b in {}: it is not there", store.describe()));
    let error = store.get_range(&key("a/b"), 0..1, &mut io::sink(), &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::NotFound), "{error}");
    assert!(!error.is_temporary());
    assert_eq!(store.head(&key("a/b"), &forever()).unwrap(), None);
    assert_eq!(store.list(Some(&key("a")), &forever()).unwrap(), []);
}

fn put_if_absent_leaves_what_is_there(place: &Place) {
    let store = &*place.store;
    store.put_if_absent(&key("a/x"), Body::Bytes(b"first"), &forever()).unwrap();
    let error = store.put_if_absent(&key("a/x"), Body::Bytes(b"second"), &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Exists), "{error}");
    assert!(!error.is_temporary());
    assert_eq!(get(store, "a/x").unwrap(), b"first");
}

fn a_listing_is_in_ascending_order_and_stays_in_its_folder(place: &Place) {
    let store = &*place.store;
    for name in ["a/z", "a.b", "a/b/c", "ab/x", "a/a", "b", "a-b", "a0"] {
        put(store, name, name.as_bytes());
    }
    assert_eq!(names(store, None), ["a-b", "a.b", "a/a", "a/b/c", "a/z", "a0", "ab/x", "b"]);
    assert_eq!(names(store, Some("a")), ["a/a", "a/b/c", "a/z"]);
    let listed = store.list(Some(&key("a/b")), &forever()).unwrap();
    assert_eq!(listed.iter().map(|object| object.length_bytes).collect::<Vec<_>>(), [5]);
}

fn a_listing_goes_on_page_by_page(place: &Place) {
    let store = &*place.store;
    let wanted: Vec<String> = (0..10).map(|number| format!("a/{number:02}")).collect();
    for name in &wanted {
        put(store, name, b"x");
    }
    let mut found = Vec::new();
    let mut mark = None;
    loop {
        let page = store.list_page(Some(&key("a")), mark.as_ref(), &forever()).unwrap();
        found.extend(page.objects.into_iter().map(|object| object.key.to_string()));
        mark = page.next;
        if mark.is_none() {
            break;
        }
    }
    assert_eq!(found, wanted);
}

fn odd_keys_are_like_any_other(place: &Place) {
    let store = &*place.store;
    let mut odd = vec![
        "a b",
        "a+b",
        "a%b",
        "a%2Fb",
        "a%20b",
        "ä/ö ü",
        "日本/語",
        "a&b=c;d,e:f@g$h!i",
        "a'b(c)*d[e]{f}|g~h^i`j",
        "a<b>c\"d",
        "#a?b",
        "..a/b..",
    ];
    for name in &odd {
        put(store, name, name.as_bytes());
    }
    for name in &odd {
        assert_eq!(get(store, name).unwrap(), name.as_bytes(), "{name}");
    }
    odd.sort_unstable();
    assert_eq!(names(store, None), odd);
    let keys: Vec<_> = odd.iter().map(|name| key(name)).collect();
    store.delete(&keys, &forever()).unwrap();
    assert!(names(store, None).is_empty());
}

fn a_deleted_object_is_gone_and_deleting_it_again_is_fine(place: &Place) {
    let store = &*place.store;
    for name in ["a/x", "a/y", "b"] {
        put(store, name, b"content");
    }
    for _ in 0..2 {
        store.delete(&[key("a/x"), key("never/was"), key("b")], &forever()).unwrap();
        assert_eq!(names(store, None), ["a/y"]);
    }
    store.delete(&[], &forever()).unwrap();
}

fn a_file_that_is_shorter_than_promised_is_refused_and_leaves_nothing(place: &Place) {
    let file = file_with(place.folder.path(), b"12345");
    let body = Body::File { file: &file, offset_bytes: 0, length_bytes: 6, chunks: &chunks_of(b"123456") };
    let error = place.store.put(&key("a/x"), body, &forever()).unwrap_err();
    let is_short = matches!(error.cause, StoreCause::BodyTooShort { expected_bytes: 6, found_bytes: 5 });
    assert!(is_short, "{error}");
    assert!(names(&*place.store, None).is_empty());
}

fn a_file_with_another_content_is_refused_and_what_was_there_stays(place: &Place) {
    let store = &*place.store;
    put(store, "x", b"before");
    let large = content(usize::try_from(CHUNK_BYTES).unwrap() + 1);
    for bytes in [&b"12345"[..], &large] {
        let mut other = bytes.to_vec();
        other[2] ^= 1;
        let file = file_with(place.folder.path(), bytes);
        let (chunks, length_bytes) = (chunks_of(&other), bytes.len() as u64);
        let body = Body::File { file: &file, offset_bytes: 0, length_bytes, chunks: &chunks };
        let error = store.put(&key("x"), body, &forever()).unwrap_err();
        assert!(matches!(error.cause, StoreCause::BodyChanged), "{error}");
        assert!(!error.is_temporary());
    }
    assert_eq!(get(store, "x").unwrap(), b"before");
}

fn a_range_is_those_bytes_and_no_others(place: &Place) {
    let bytes = content(1_000_000);
    put(&*place.store, "x", &bytes);
    for range in [0..1, 0..1_000_000, 999_999..1_000_000, 123_456..654_321] {
        let mut found = Vec::new();
        let wanted = range.start as u64..range.end as u64;
        let whole = place.store.get_range(&key("x"), wanted, &mut found, &forever()).unwrap();
        assert_eq!(whole, 1_000_000);
        assert!(found == bytes[range.clone()], "{range:?}");
    }
}

fn a_range_beyond_the_end_is_refused(place: &Place) {
    put(&*place.store, "x", b"content");
    put(&*place.store, "empty", b"");
    for (name, range) in [("x", 7..8), ("x", 5..8), ("x", 100..200), ("empty", 0..1)] {
        let mut found = Vec::new();
        let error = place.store.get_range(&key(name), range.clone(), &mut found, &forever()).unwrap_err();
        assert!(matches!(error.cause, StoreCause::OutOfRange { .. }), "{name} {range:?}: {error}");
        assert_eq!((error.is_temporary(), found.len()), (false, 0));
    }
}

fn a_call_whose_limit_has_ended_does_nothing(place: &Place) {
    let store = &*place.store;
    put(store, "x", b"content");
    let (x, body, until) = (key("x"), Body::Bytes(b"other"), cancelled());
    let errors = [
        store.put(&x, body, &until).unwrap_err(),
        store.put_if_absent(&key("y"), body, &until).unwrap_err(),
        store.get(&x, &mut io::sink(), &until).unwrap_err(),
        store.get_range(&x, 0..1, &mut io::sink(), &until).unwrap_err(),
        store.head(&x, &until).unwrap_err(),
        store.list(None, &until).unwrap_err(),
        store.delete(&[key("x")], &until).unwrap_err(),
    ];
    assert!(errors.iter().all(|e| matches!(e.cause, StoreCause::Stopped(Stopped::Cancelled))), "{errors:?}");
    assert_eq!(names(store, None), ["x"]);
    assert_eq!(get(store, "x").unwrap(), b"content");
}

/// Cancels a token as soon as it takes something.
struct CancelsOnWrite(Cancel);

impl Write for CancelsOnWrite {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.cancel();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn a_cancel_ends_a_copy_that_is_under_way(place: &Place) {
    put(&*place.store, "x", &vec![7; 30_000_000]);
    let cancel = Cancel::new();
    let until = Until::new(None, cancel.clone());
    let error = place.store.get(&key("x"), &mut CancelsOnWrite(cancel), &until).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Stopped(Stopped::Cancelled)), "{error}");
}

fn a_receiver_that_fails_is_told_from_a_store_that_fails(place: &Place) {
    put(&*place.store, "x", b"content");
    let error = place.store.get(&key("x"), &mut Full, &forever()).unwrap_err();
    assert!(!error.is_temporary());
    assert!(matches!(error.cause, StoreCause::Receiver(e) if e.kind() == io::ErrorKind::StorageFull));
}

fn threads_share_a_store(place: &Place) {
    let threads: Vec<_> = (0..6_u8)
        .map(|number| {
            let store = Arc::clone(&place.store);
            spawn(format!("client {number}"), move || {
                for round in 0..5 {
                    let name = format!("{number}/{round}");
                    put(&*store, &name, &vec![number; 10_000 + round]);
                    assert_eq!(get(&*store, &name).unwrap(), vec![number; 10_000 + round]);
                }
            })
            .unwrap()
        })
        .collect();
    for thread in threads {
        thread.join(&watchdog()).unwrap();
    }
    assert_eq!(names(&*place.store, None).len(), 30);
}

/// The store as one that takes parts. One that takes none has nothing to prove.
fn in_parts(place: &Place) -> Option<&dyn PartStore> {
    place.store.in_parts()
}

fn chunk(number: u8) -> Vec<u8> {
    vec![number; usize::try_from(CHUNK_BYTES).unwrap()]
}

fn parts_become_an_object_when_they_are_completed(place: &Place) {
    let Some(parts) = in_parts(place) else { return };
    let upload = parts.begin(&key("a/x"), &forever()).unwrap();
    let last = parts.put_part(&upload, 2, Body::Bytes(b"the end"), &forever()).unwrap();
    let first = parts.put_part(&upload, 1, Body::Bytes(&chunk(1)), &forever()).unwrap();
    assert_eq!((first.number, first.length_bytes), (1, CHUNK_BYTES));
    assert!(names(&*place.store, None).is_empty(), "nothing is seen before the end");
    let listed = parts.parts(&upload, &forever()).unwrap();
    let ends = |parts: &[Part]| parts.iter().map(|part| (part.number, part.length_bytes)).collect::<Vec<_>>();
    assert_eq!(ends(&listed), [(1, CHUNK_BYTES), (2, 7)]);
    assert_eq!(parts.uploads(Some(&key("a/x")), &forever()).unwrap(), std::slice::from_ref(&upload));
    assert_eq!(parts.uploads(Some(&key("a")), &forever()).unwrap(), []);
    parts.complete(&upload, &[first, last], &forever()).unwrap();
    assert!(get(&*place.store, "a/x").unwrap() == [&chunk(1)[..], b"the end"].concat());
    assert_eq!(parts.uploads(Some(&key("a/x")), &forever()).unwrap(), []);
}

fn a_part_may_be_put_again(place: &Place) {
    let Some(parts) = in_parts(place) else { return };
    let upload = parts.begin(&key("x"), &forever()).unwrap();
    parts.put_part(&upload, 1, Body::Bytes(b"first"), &forever()).unwrap();
    let part = parts.put_part(&upload, 1, Body::Bytes(b"second"), &forever()).unwrap();
    parts.complete(&upload, &[part], &forever()).unwrap();
    assert_eq!(get(&*place.store, "x").unwrap(), b"second");
}

fn an_upload_that_is_given_up_is_gone(place: &Place) {
    let Some(parts) = in_parts(place) else { return };
    let upload = parts.begin(&key("x"), &forever()).unwrap();
    parts.put_part(&upload, 1, Body::Bytes(b"part"), &forever()).unwrap();
    for _ in 0..2 {
        parts.abort(&upload, &forever()).unwrap();
        assert_eq!(parts.uploads(Some(&key("x")), &forever()).unwrap(), []);
    }
    assert_eq!(place.store.head(&key("x"), &forever()).unwrap(), None);
}

fn an_upload_that_is_not_there_is_said_so(place: &Place) {
    let Some(parts) = in_parts(place) else { return };
    let upload = parts.begin(&key("x"), &forever()).unwrap();
    let part = parts.put_part(&upload, 1, Body::Bytes(b"part"), &forever()).unwrap();
    parts.abort(&upload, &forever()).unwrap();
    let errors = [
        parts.parts(&upload, &forever()).unwrap_err(),
        parts.put_part(&upload, 1, Body::Bytes(b"part"), &forever()).unwrap_err(),
        parts.complete(&upload, &[part], &forever()).unwrap_err(),
    ];
    assert!(errors.iter().all(|e| matches!(e.cause, StoreCause::NotFound)), "{errors:?}");
}

/// A file of so many bytes, and what its upload takes.
struct Local {
    path: std::path::PathBuf,
    bytes: Vec<u8>,
    chunks: Vec<dormouse::objstore::ChunkHash>,
    key: dormouse::objstore::ObjectKey,
}

fn local(place: &Place, name: &str, length: usize) -> Local {
    let path = place.folder.path().join(name);
    let bytes = content(length);
    std::fs::write(&path, &bytes).unwrap();
    Local { path, chunks: chunks_of(&bytes), bytes, key: key(name) }
}

impl Local {
    fn upload(&self) -> FileUpload<'_> {
        let (key, path, chunks) = (&self.key, self.path.as_path(), self.chunks.as_slice());
        FileUpload { key, path, length_bytes: self.bytes.len() as u64, chunks }
    }
}

const CHUNK: usize = 8 * 1024 * 1024;

fn files_of_all_sizes_come_back_as_they_were(place: &Place) {
    let store = &*place.store;
    let sizes = [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 17];
    let files: Vec<Local> = sizes.iter().map(|size| local(place, &format!("f{size}"), *size)).collect();
    let uploads: Vec<_> = files.iter().map(Local::upload).collect();
    let mut durable_bytes = 0;
    upload_files(store, &uploads, &watchdog(), &mut |bytes| durable_bytes += bytes).unwrap();
    assert_eq!(durable_bytes, sizes.iter().sum::<usize>() as u64);
    let paths: Vec<_> = files.iter().map(|file| file.path.with_extension("back")).collect();
    let wanted: Vec<_> = uploads
        .iter()
        .zip(&paths)
        .map(|(file, path)| FileFetch { key: file.key, length_bytes: file.length_bytes, path: Some(path) })
        .collect();
    let mut told = vec![0; files.len()];
    fetch_files(store, &wanted, &watchdog(), &mut |number, came| {
        told[number] += 1;
        let came = came.unwrap();
        assert_eq!(came.length_bytes, uploads[number].length_bytes);
        assert_eq!(came.hash, ContentHash::of_chunks(uploads[number].chunks));
        Ok(())
    })
    .unwrap();
    assert!(told.iter().all(|times| *times == 1), "{told:?}");
    for (file, path) in files.iter().zip(&paths) {
        assert!(std::fs::read(path).unwrap() == file.bytes, "{}", file.key);
    }
    if let Some(parts) = in_parts(place) {
        assert_eq!(parts.uploads(Some(&files[5].key), &forever()).unwrap(), []);
    }
}

fn an_interrupted_upload_is_taken_up_where_it_was(place: &Place) {
    if in_parts(place).is_none() {
        return;
    }
    let file = local(place, "x", 3 * CHUNK + 5);
    // The calls are: list, begin, four parts, complete, head, list. The third part that is put fails.
    let mut failing = FailingStore::new(&*place.store, 5, Fails::Before);
    failing.around.one_at_a_time = true;
    upload_files(&failing, &[file.upload()], &watchdog(), &mut |_| {}).unwrap_err();
    assert_eq!(failing.puts(), 3);
    let counting = FailingStore::new(&*place.store, 0, Fails::Before);
    let mut durable_bytes = 0;
    upload_files(&counting, &[file.upload()], &watchdog(), &mut |bytes| durable_bytes += bytes).unwrap();
    assert_eq!(counting.puts(), 2, "the two parts that were missing");
    assert_eq!(durable_bytes, file.bytes.len() as u64);
    assert!(get(&*place.store, "x").unwrap() == file.bytes);
}

fn an_upload_cut_in_another_way_is_begun_anew(place: &Place) {
    let Some(parts) = in_parts(place) else { return };
    let file = local(place, "x", CHUNK + 5);
    let strange = parts.begin(&file.key, &forever()).unwrap();
    parts.put_part(&strange, 1, Body::Bytes(b"of another size"), &forever()).unwrap();
    upload_files(&*place.store, &[file.upload()], &watchdog(), &mut |_| {}).unwrap();
    assert!(get(&*place.store, "x").unwrap() == file.bytes);
    assert_eq!(parts.uploads(Some(&file.key), &forever()).unwrap(), []);
}

fn an_upload_that_is_given_up_leaves_no_parts(place: &Place) {
    let Some(parts) = in_parts(place) else { return };
    let file = local(place, "x", 3 * CHUNK);
    for fail_at in 3..6 {
        let failing = FailingStore::new(&*place.store, fail_at, Fails::Before);
        upload_files(&failing, &[file.upload()], &watchdog(), &mut |_| {}).unwrap_err();
        assert_eq!(parts.uploads(Some(&file.key), &forever()).unwrap().len(), 1);
        give_up(&*place.store, &[&file.key], &watchdog()).unwrap();
        assert_eq!(parts.uploads(Some(&file.key), &forever()).unwrap(), []);
    }
    assert_eq!(place.store.head(&file.key, &forever()).unwrap(), None);
}

fn an_object_of_another_length_is_told_as_such(place: &Place) {
    let (small, large) = (key("small"), key("large"));
    put(&*place.store, "small", b"content");
    put(&*place.store, "large", &content(CHUNK + 100));
    for (key, expected, found) in [
        (&small, 6, 7),
        (&small, 8, 7),
        (&small, 3 * CHUNK, 7),
        (&large, CHUNK + 99, CHUNK + 100),
        (&large, CHUNK + 101, CHUNK + 100),
        (&large, 5, CHUNK + 100),
    ] {
        let path = place.folder.path().join(format!("{key} {expected}"));
        let wanted = [FileFetch { key, length_bytes: expected as u64, path: Some(&path) }];
        let told = Cell::new(None);
        fetch_files(&*place.store, &wanted, &watchdog(), &mut |_, came| {
            told.set(Some(came.unwrap().length_bytes));
            Ok(())
        })
        .unwrap();
        assert_eq!(told.get(), Some(found as u64), "{key} as {expected} bytes");
        let on_disk = File::open(&path).unwrap().metadata().unwrap().len();
        assert!(on_disk <= expected as u64, "{on_disk} bytes of {expected}");
    }
}

#[test]
fn an_error_names_the_call_the_object_and_the_store() {
    let store = MemoryStore::default();
    let error: StoreError = store.parts(&upload_of("a/x"), &forever()).unwrap_err();
    assert_eq!(error.operation, Operation::Parts);
    assert_eq!(error.to_string(), "cannot list the parts of a/x in memory:: it is not there");
    assert_eq!((store.parts_left(), store.uploads_left(), store.objects().len()), (0, 0, 0));
}

fn upload_of(name: &str) -> dormouse::objstore::Upload {
    dormouse::objstore::Upload { key: key(name), id: "none".to_owned() }
}
