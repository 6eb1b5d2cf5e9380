//! What libraries and servers on the way to an S3 store do that nobody expects; the table of all of it is
//! `src/objstore/hazards.rs`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormouse::objstore::{
    Body, CHUNK_BYTES, ChunkHash, FileUpload, ObjectKey, ObjectStore, PARTS_MAX, Page, PageMark, Part,
    PartStore, S3Config, S3Store, StoreCause, StoreError, TransferError, Upload, upload_files,
};
use dormouse::thread::{Failure, Until};
use parking_lot::Mutex;

use crate::support::stores::gateway::{Gateway, given};
use crate::support::stores::http::{Request, Server, answer, read_head};
use crate::support::stores::signature::is_signed;
use crate::support::stores::{Full, content, get, names, put};
use crate::support::{eventually, forever, key, watchdog};

fn config(server: &Server) -> S3Config {
    S3Config {
        endpoint: Some(server.url()),
        path_style: true,
        credentials: vec![given("secret")],
        ..S3Config::new("bucket", "us-east-1")
    }
}

fn store_on(server: &Server) -> S3Store {
    S3Store::open(config(server)).unwrap()
}

/// A server with a document for each request whose method and path hold these words, the first that fits.
fn scripted(script: &'static [(&'static str, &'static str, &'static str)]) -> Server {
    Server::start(move |request| {
        let asked = format!("{} {}", request.method, request.path);
        let fits = |line: &&(&str, &str, &str)| asked.contains(line.0);
        let Some((_, headers, document)) = script.iter().find(fits) else { return answer(404, "", b"") };
        answer(200, headers, document.as_bytes())
    })
}

/// Words that would need an async runtime, or start a thread of somebody else's, wherever they are called.
const FORBIDDEN: [&str; 18] = [
    "block_on",
    "into_blocking_read",
    "into_async_read",
    "HttpClient",
    "S3Client::new(",
    "S3Client::new_with(",
    "Client::shared",
    "ChainProvider",
    "DefaultCredentialsProvider",
    "InstanceMetadataProvider",
    "ContainerProvider",
    "ProfileProvider",
    "AutoRefreshingProvider",
    "tokio",
    "futures",
    "timeout_global",
    "timeout_per_call",
    "timeout_resolve",
];

#[test]
fn nothing_is_called_that_needs_a_runtime_or_starts_a_thread() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/objstore")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let text = fs::read_to_string(&path).unwrap();
            for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                let found = FORBIDDEN.iter().find(|word| line.contains(*word));
                assert_eq!(found, None, "{}: {line}", path.display());
            }
        }
    }
    assert!(files > 20, "only {files} files were found");
}

const TAGGED: &str = "ETag: \"tag\"\r\n";
const BEGUN: &str = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
const NO_UPLOADS: &str = "<ListMultipartUploadsResult></ListMultipartUploadsResult>";
const COMPLETED: &str = "<CompleteMultipartUploadResult><ETag>\"tag\"</ETag></CompleteMultipartUploadResult>";

#[test]
fn a_completion_that_tells_neither_an_error_nor_a_tag_is_no_success() {
    let upload = Upload { key: key("x"), id: "u".to_owned() };
    let part = Part { number: 1, length_bytes: 1, tag: "\"tag\"".to_owned() };
    for document in [
        "",
        "   ",
        "<CompleteMultipartUploadResult/>",
        "<CompleteMultipartUploadResult><ETag/></CompleteMultipartUploadResult>",
        "<Other><ETag>\"tag\"</ETag></Other>",
    ] {
        let server = Server::start(move |_| answer(200, "", document.as_bytes()));
        let store = store_on(&server);
        let parts = store.in_parts().unwrap();
        let error = parts.complete(&upload, std::slice::from_ref(&part), &forever()).unwrap_err();
        assert!(matches!(error.cause, StoreCause::Answer(_)), "{document:?}: {error}");
        assert!(error.is_temporary());
    }
}

#[test]
fn an_upload_begins_whatever_the_name_of_the_document_that_says_so() {
    let begin = |document: &'static str| {
        let server = Server::start(move |_| answer(200, "", document.as_bytes()));
        store_on(&server).in_parts().unwrap().begin(&key("x"), &forever())
    };
    for document in [BEGUN, "<InitiateMultipartUpload><UploadId>u</UploadId></InitiateMultipartUpload>"] {
        assert_eq!(begin(document).unwrap().id, "u", "{document}");
    }
    for document in [
        "<InitiateMultipartUpload></InitiateMultipartUpload>",
        "<InitiateMultipartUpload><UploadId/></InitiateMultipartUpload>",
        "<ListPartsResult><UploadId>u</UploadId></ListPartsResult>",
    ] {
        let error = begin(document).unwrap_err();
        assert!(matches!(error.cause, StoreCause::Answer(_)), "{document}: {error}");
    }
}

#[test]
fn a_completion_without_a_tag_counts_where_the_whole_object_is_there() {
    let complete = |looked: Vec<u8>| {
        let server = Server::start(move |request| match request.method.as_str() {
            "HEAD" => looked.clone(),
            _ => answer(
                200,
                "",
                b"<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>",
            ),
        });
        let upload = Upload { key: key("x"), id: "u".to_owned() };
        let part = |number, length_bytes| Part { number, length_bytes, tag: "\"tag\"".to_owned() };
        let store = store_on(&server);
        store.in_parts().unwrap().complete(&upload, &[part(1, 3), part(2, 2)], &forever())
    };
    complete(answer(200, TAGGED, b"12345")).unwrap();
    for looked in [answer(200, TAGGED, b"123"), answer(200, "", b"12345"), answer(404, "", b"")] {
        let error = complete(looked).unwrap_err();
        assert!(matches!(error.cause, StoreCause::Answer(_)) && error.is_temporary(), "{error}");
    }
}

#[test]
fn a_completion_whose_object_has_another_length_is_no_success() {
    let server = scripted(&[
        ("POST /bucket/x?uploads", "", BEGUN),
        ("PUT /bucket/x?partNumber", TAGGED, ""),
        ("POST /bucket/x?uploadId", "", COMPLETED),
        ("GET /bucket?", "", NO_UPLOADS),
        ("HEAD /bucket/x", TAGGED, "12345"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes = content(usize::try_from(CHUNK_BYTES).unwrap() + 1);
    fs::write(&path, &bytes).unwrap();
    let chunks = crate::support::stores::chunks_of(&bytes);
    let file = FileUpload { key: &key("x"), path: &path, length_bytes: bytes.len() as u64, chunks: &chunks };
    let error = upload_files(&store_on(&server), &[file], &watchdog(), &mut |_| {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cannot put together x in s3://bucket at http://"), "{text}");
    assert!(text.contains(&format!("the object has 5 bytes instead of {}", bytes.len())), "{text}");
}

#[test]
fn parts_that_are_listed_twice_or_in_any_order_are_each_there_once() {
    let part = |number: u32, size: u32| {
        format!("<Part><PartNumber>{number}</PartNumber><Size>{size}</Size><ETag>\"{number}\"</ETag></Part>")
    };
    let page = move |parts: &[(u32, u32)], next: Option<u32>| {
        let next = next.map_or_else(
            || "<IsTruncated>false</IsTruncated>".to_owned(),
            |next| {
                format!("<IsTruncated>true</IsTruncated><NextPartNumberMarker>{next}</NextPartNumberMarker>")
            },
        );
        let parts: String = parts.iter().map(|(number, size)| part(*number, *size)).collect();
        format!("<ListPartsResult>{next}{parts}</ListPartsResult>").into_bytes()
    };
    let server = Server::start(move |request| {
        let document = match request.path.split_once("part-number-marker=") {
            None => page(&[(2, 20), (1, 10)], Some(2)),
            // The marker itself again.
            Some((_, rest)) if rest.starts_with('2') => page(&[(2, 20), (4, 40), (3, 30)], Some(4)),
            // And for ever the same page.
            Some(_) => page(&[(4, 40)], Some(4)),
        };
        answer(200, "", &document)
    });
    let store = store_on(&server);
    let upload = Upload { key: key("x"), id: "u".to_owned() };
    let listed = store.in_parts().unwrap().parts(&upload, &watchdog()).unwrap();
    let found: Vec<(u32, u64)> = listed.iter().map(|part| (part.number, part.length_bytes)).collect();
    assert_eq!(found, [(1, 10), (2, 20), (3, 30), (4, 40)]);
}

#[test]
fn a_range_is_the_one_that_its_answer_names_whatever_the_status() {
    let got = |status: u16, range: &str| {
        let headers = format!("{TAGGED}Content-Range: bytes {range}\r\n");
        let server = Server::start(move |_| answer(status, &headers, b"2345"));
        let mut came = Vec::new();
        let whole = store_on(&server).get_range(&key("x"), 2..6, &mut came, &forever());
        whole.map(|whole_bytes| (whole_bytes, came))
    };
    for status in [200, 206] {
        assert_eq!(got(status, "2-5/10").unwrap(), (10, b"2345".to_vec()));
        for other in ["0-3/10", "3-6/10", "2-6/10"] {
            let error = got(status, other).unwrap_err();
            assert!(matches!(error.cause, StoreCause::Answer(_)), "{other}: {error}");
        }
    }
}

/// A body in pieces has no length, whatever the head says of it.
#[test]
fn content_of_another_length_than_the_head_said_is_refused() {
    for said in [3, 5] {
        let head = format!("{TAGGED}Content-Length: {said}\r\nTransfer-Encoding: chunked\r\n");
        let server = Server::start(move |_| {
            format!("HTTP/1.1 200 X\r\nConnection: close\r\n{head}\r\n4\r\n1234\r\n0\r\n\r\n").into_bytes()
        });
        let error = get(&store_on(&server), "x").unwrap_err();
        assert!(matches!(error.cause, StoreCause::Answer(_)) && error.is_temporary(), "{said}: {error}");
    }
}

#[test]
fn a_deletion_that_fails_for_one_key_names_it() {
    let server = scripted(&[(
        "POST /bucket?delete",
        "",
        "<DeleteResult><Error><Key>a/y</Key><Code>AccessDenied</Code><Message>No.</Message></Error></DeleteResult>",
    )]);
    let error = store_on(&server).delete(&[key("a/x"), key("a/y")], &forever()).unwrap_err();
    assert_eq!(error.key, Some(key("a/y")));
    assert!(!error.is_temporary());
    assert!(error.to_string().contains("the server says AccessDenied (status 403): No."), "{error}");
}

#[test]
fn keys_that_are_not_encoded_although_that_was_asked_for_are_taken_as_they_are() {
    let server = scripted(&[(
        "GET /bucket?",
        "",
        "<ListBucketResult><Contents><Key>a%20b+c</Key><Size>1</Size></Contents></ListBucketResult>",
    )]);
    assert_eq!(names(&store_on(&server), None), ["a%20b+c"]);
}

#[test]
fn what_is_no_key_of_ours_is_left_out_of_a_listing() {
    let server = scripted(&[(
        "GET /bucket?",
        "",
        "<ListBucketResult><Contents><Key>a/</Key><Size>0</Size></Contents>\
         <Contents><Key>a/../b</Key><Size>1</Size></Contents><Contents><Key>a//b</Key><Size>1</Size></Contents>\
         <Contents><Key>a/b</Key><Size>1</Size></Contents></ListBucketResult>",
    )]);
    assert_eq!(names(&store_on(&server), None), ["a/b"]);
}

/// An answer after which the connection stays open.
fn kept_alive(status: u16) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

/// A server that hands each connection, and its number from 1, to `serve`, and counts those that are over.
fn counted(
    serve: impl Fn(usize, &mut BufReader<TcpStream>) -> io::Result<()> + Send + Sync + 'static,
) -> (Server, Arc<AtomicUsize>) {
    let (begun, over) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let closed = Arc::clone(&over);
    let server = Server::of_connections(move |mut stream| {
        let result = serve(begun.fetch_add(1, Ordering::Relaxed) + 1, &mut stream);
        drop(stream);
        closed.fetch_add(1, Ordering::Release);
        result
    });
    (server, over)
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_not_used_again() {
    let (server, over) = counted(|_, stream| {
        read_head(stream)?;
        stream.get_mut().write_all(&kept_alive(404))
    });
    let store = store_on(&server);
    for number in 1..=3 {
        assert_eq!(store.head(&key("x"), &watchdog()).unwrap(), None);
        eventually("the connection is closed", || over.load(Ordering::Acquire) == number);
    }
}

#[test]
fn a_connection_that_breaks_when_it_is_used_again_is_a_passing_error() {
    let (server, _) = counted(|number, stream| {
        read_head(stream)?;
        stream.get_mut().write_all(&kept_alive(404))?;
        if number == 1 {
            // The second request is read, and the connection closed without an answer.
            read_head(stream)?;
        }
        Ok(())
    });
    let store = store_on(&server);
    assert_eq!(store.head(&key("x"), &watchdog()).unwrap(), None);
    let error = store.head(&key("x"), &watchdog()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Connection(_)) && error.is_temporary(), "{error}");
    assert_eq!(store.head(&key("x"), &watchdog()).unwrap(), None);
}

#[test]
fn an_answer_that_nobody_read_to_its_end_does_not_spoil_the_next() {
    let Some(gateway) = Gateway::get() else { return };
    let store = gateway.store();
    let large = content(10_000_000);
    put(&store, "large", &large);
    put(&store, "small", b"content");
    for _ in 0..5 {
        store.get(&key("large"), &mut Full, &watchdog()).unwrap_err();
        assert_eq!(get(&store, "small").unwrap(), b"content");
        assert_eq!(store.head(&key("large"), &watchdog()).unwrap(), Some(large.len() as u64));
    }
}

/// A server that says yes and keeps what was asked.
fn listener() -> (Server, Arc<Mutex<Vec<Request>>>) {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    let server = Server::start(move |request| {
        kept.lock().push(request.clone());
        answer(200, TAGGED, b"<ListBucketResult></ListBucketResult>")
    });
    (server, requests)
}

#[test]
fn a_signature_holds_for_values_with_runs_of_blanks() {
    let (server, requests) = listener();
    let storage_class = Some(" A   CLASS  ".to_owned());
    let store = S3Store::open(S3Config { storage_class, ..config(&server) }).unwrap();
    put(&store, "a b/ä+%=&", b"content");
    names(&store, Some("a b+/%"));
    let requests = requests.lock();
    assert_eq!(requests[0].header("x-amz-storage-class"), "A CLASS");
    for request in requests.iter() {
        assert!(is_signed(request, "secret"), "{request:?}");
        assert!(!is_signed(request, "another"));
        let mut tampered = request.clone();
        tampered.path.push('x');
        assert!(!is_signed(&tampered, "secret"));
    }
}

#[test]
fn the_bucket_is_the_first_label_of_the_server_s_name() {
    let (server, requests) = listener();
    // With this bucket the name is an address, so nobody has to resolve it.
    let endpoint = Some(server.url().replace("127.0.0.1", "0.0.1"));
    let bucket = "127".to_owned();
    let store = S3Store::open(S3Config { endpoint, bucket, path_style: false, ..config(&server) }).unwrap();
    put(&store, "127/a b", b"content");
    names(&store, None);
    let requests = requests.lock();
    assert_eq!(requests[0].path, "/127/a%20b");
    assert!(requests[1].path.starts_with("/?"), "{}", requests[1].path);
    for request in requests.iter() {
        assert_eq!(request.header("host"), server.url().trim_start_matches("http://"));
        assert!(is_signed(request, "secret"), "{request:?}");
    }
}

#[test]
fn a_bucket_of_a_server_that_is_an_address_is_in_the_path() {
    let (server, requests) = listener();
    let store = S3Store::open(S3Config { path_style: false, ..config(&server) }).unwrap();
    put(&store, "k", b"content");
    assert_eq!(requests.lock()[0].path, "/bucket/k");
    assert_eq!(requests.lock()[0].header("host"), server.url().trim_start_matches("http://"));
}

/// These bytes as `gzip` packs them.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// What a store makes of this answer to everything.
fn served(headers: &str, body: Vec<u8>) -> (Server, S3Store) {
    let headers = format!("ETag: \"tag\"\r\n{headers}\r\n");
    let server = Server::start(move |_| answer(200, &headers, &body));
    let store = store_on(&server);
    (server, store)
}

/// The test holds in a build in which another crate has switched unpacking and recoding on, too.
#[test]
fn what_the_client_may_have_unpacked_or_recoded_is_refused() {
    let text = packed(b"text");
    let in_packed = format!("Content-Range: bytes 0-{}/{0}\r\nContent-Encoding: gzip", text.len() - 1);
    let of_text = "Content-Range: bytes 0-3/4\r\nContent-Type: text/plain; charset=";
    for (headers, body) in [
        (in_packed, text),
        // In this character set these are other letters, and more bytes in UTF-8.
        (format!("{of_text}iso-8859-1"), b"\xe4\xf6\xfc\xdf".to_vec()),
        // In this one other bytes of the same number.
        (format!("{of_text}utf-16le"), b"A\0\0\x4e".to_vec()),
    ] {
        let (length_bytes, (_server, store)) = (body.len() as u64, served(&headers, body));
        let mut came = Vec::new();
        let errors = [
            store.get(&key("x"), &mut came, &forever()).unwrap_err(),
            store.get_range(&key("x"), 0..length_bytes, &mut came, &forever()).unwrap_err(),
        ];
        assert!(errors.iter().all(|e| matches!(e.cause, StoreCause::Answer(_))), "{headers}: {errors:?}");
        assert!(came.is_empty(), "{headers}: {came:?}");
    }
    // A build that unpacks drops the length with the encoding, and reads documents as they were before.
    let (_server, store) = served("Content-Encoding: gzip", packed(b"<ListBucketResult></ListBucketResult>"));
    let listed = store.list(None, &forever());
    assert!(matches!(&listed, Ok(objects) if objects.is_empty()) || listed.is_err(), "{listed:?}");
}

#[test]
fn bytes_that_look_like_text_or_like_gzip_are_not_touched() {
    for (kind, body) in [
        ("application/gzip", packed(b"text")),
        ("text/plain", b"\xe4\xf6\xfc\xdf".to_vec()),
        ("text/plain; charset=UTF-8", b"\xff\xfe\xe4\r\n".to_vec()),
        ("text/xml; charset=\"utf-8\"", b"\xff\xfe\xe4\r\n".to_vec()),
        ("application/octet-stream; charset=utf-16le", b"A\0\0\x4e".to_vec()),
    ] {
        let (_server, store) =
            served(&format!("Content-Type: {kind}\r\nContent-Encoding: identity"), body.clone());
        assert_eq!(get(&store, "x").unwrap(), body, "{kind}");
    }
}

/// A store that takes parts without a look at them.
#[derive(Default)]
struct Swallows {
    parts: Mutex<BTreeMap<u32, (u64, u64)>>,
    completed: Mutex<Vec<u32>>,
}

impl ObjectStore for Swallows {
    fn describe(&self) -> String {
        "nowhere:".to_owned()
    }

    fn put(&self, _: &ObjectKey, _: Body<'_>, _: &Until) -> Result<(), StoreError> {
        unreachable!("it goes in parts")
    }

    fn put_if_absent(&self, _: &ObjectKey, _: Body<'_>, _: &Until) -> Result<(), StoreError> {
        unreachable!("it goes in parts")
    }

    fn get(&self, _: &ObjectKey, _: &mut dyn Write, _: &Until) -> Result<u64, StoreError> {
        unreachable!("nothing is asked for")
    }

    fn get_range(
        &self,
        _: &ObjectKey,
        _: Range<u64>,
        _: &mut dyn Write,
        _: &Until,
    ) -> Result<u64, StoreError> {
        unreachable!("nothing is asked for")
    }

    fn head(&self, _: &ObjectKey, _: &Until) -> Result<Option<u64>, StoreError> {
        Ok(Some(self.parts.lock().values().map(|(_, length)| length).sum()))
    }

    fn list_page(&self, _: Option<&ObjectKey>, _: Option<&PageMark>, _: &Until) -> Result<Page, StoreError> {
        unreachable!("nothing is listed")
    }

    fn delete(&self, _: &[ObjectKey], _: &Until) -> Result<(), StoreError> {
        unreachable!("nothing is deleted")
    }

    fn in_parts(&self) -> Option<&dyn PartStore> {
        Some(self)
    }
}

impl PartStore for Swallows {
    fn begin(&self, key: &ObjectKey, _: &Until) -> Result<Upload, StoreError> {
        Ok(Upload { key: key.clone(), id: "u".to_owned() })
    }

    fn put_part(&self, _: &Upload, number: u32, body: Body<'_>, _: &Until) -> Result<Part, StoreError> {
        let Body::File { offset_bytes, length_bytes, chunks, .. } = body else { panic!("it is a file") };
        assert_eq!(length_bytes.div_ceil(CHUNK_BYTES), chunks.len() as u64);
        assert!(self.parts.lock().insert(number, (offset_bytes, length_bytes)).is_none());
        Ok(Part { number, length_bytes, tag: "tag".to_owned() })
    }

    fn parts(&self, _: &Upload, _: &Until) -> Result<Vec<Part>, StoreError> {
        Ok(Vec::new())
    }

    fn complete(&self, _: &Upload, parts: &[Part], _: &Until) -> Result<(), StoreError> {
        self.completed.lock().extend(parts.iter().map(|part| part.number));
        Ok(())
    }

    fn abort(&self, _: &Upload, _: &Until) -> Result<(), StoreError> {
        Ok(())
    }

    fn uploads(&self, _: Option<&ObjectKey>, _: &Until) -> Result<Vec<Upload>, StoreError> {
        Ok(Vec::new())
    }
}

#[test]
fn a_file_of_more_chunks_than_there_may_be_parts_goes_in_larger_ones() -> Result<(), TransferError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    File::create(&path).unwrap();
    for (chunks, expected_parts) in [(10_000, 10_000), (10_001, 5_001), (30_001, 7_501)] {
        let store = Swallows::default();
        let length_bytes = (chunks as u64 - 1) * CHUNK_BYTES + 1;
        let hashes = vec![ChunkHash([0; 32]); chunks];
        let file = FileUpload { key: &key("x"), path: &path, length_bytes, chunks: &hashes };
        upload_files(&store, &[file], &Until::within(Duration::from_secs(60)), &mut |_| {})?;
        let parts = store.parts.lock();
        assert_eq!(parts.len(), expected_parts);
        assert!(parts.len() <= PARTS_MAX as usize);
        let end = parts.values().fold(0, |end, (offset, length)| {
            assert_eq!(*offset, end, "parts lie side by side");
            end + length
        });
        assert_eq!(end, length_bytes);
        assert!(store.completed.lock().iter().eq(parts.keys()), "all of them, in order");
    }
    Ok(())
}
