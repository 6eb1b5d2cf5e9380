//! What answers of an S3 server mean that is not as it should be: whose they are, and what may be believed of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse::objstore::{
    Body, CHUNK_BYTES, FileUpload, ObjectStore, Part, S3Config, S3Store, StoreCause, Upload, give_up,
    upload_files,
};
use dormouse::thread::Failure;

use crate::support::stores::gateway::given;
use crate::support::stores::http::{Request, Server, answer, error_document};
use crate::support::stores::{chunks_of, content, each_call_but_a_look};
use crate::support::{key, watchdog};

fn store_on(server: &Server) -> S3Store {
    let config = S3Config {
        endpoint: Some(server.url()),
        path_style: true,
        credentials: vec![given("secret")],
        ..S3Config::new("bucket", "us-east-1")
    };
    S3Store::open(config).unwrap()
}

#[test]
fn what_something_on_the_way_does_not_find_is_a_passing_error_that_names_what_came() {
    let page = "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>nginx</body>\r\n</html>\r\n";
    for (body, said) in [
        (
            page,
            "(status 404): what came of the type text/html is no document of S3: \"<html> <head><title>404 Not Found",
        ),
        ("", "(status 404): it came without a document of S3"),
    ] {
        let server = Server::start(move |_| answer(404, "Content-Type: text/html\r\n", body.as_bytes()));
        let store = store_on(&server);
        for error in each_call_but_a_look(&store, b"x") {
            assert!(error.is_temporary(), "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
        // The answer to a look has no document, whoever gives it.
        assert_eq!(store.head(&key("x"), &watchdog()).unwrap(), None);
    }
}

#[test]
fn a_head_without_end_is_an_error_that_says_so() {
    let headers = format!("X-Long: {}\r\n", "x".repeat(4096)).repeat(64);
    let server = Server::start(move |_| answer(200, &headers, b"x"));
    for error in each_call_but_a_look(&store_on(&server), b"x") {
        assert!(error.to_string().contains("response header is too big"), "{error}");
    }
}

#[test]
fn a_bucket_that_is_not_there_is_no_object_that_is_not_there() {
    let server = Server::start(|_| answer(404, "", &error_document("NoSuchBucket", "None.")));
    for error in each_call_but_a_look(&store_on(&server), b"x") {
        assert!(!error.is_temporary(), "{error}");
        assert!(error.to_string().ends_with("; create the bucket, or name another"), "{error}");
    }
}

#[test]
fn a_document_that_changed_on_its_way_is_sent_again() {
    let server =
        Server::start(|_| answer(400, "", &error_document("XAmzContentSHA256Mismatch", "Not that.")));
    let store = store_on(&server);
    let (x, until) = (key("x"), watchdog());
    let (upload, part) = (
        Upload { key: x.clone(), id: "id".to_owned() },
        Part { number: 1, length_bytes: 1, tag: "\"tag\"".to_owned() },
    );
    let errors = [
        store.delete(std::slice::from_ref(&x), &until).unwrap_err(),
        store.in_parts().unwrap().complete(&upload, &[part], &until).unwrap_err(),
        store.put(&x, Body::Bytes(b"x"), &until).unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_temporary(), "{error}");
        assert!(error.to_string().contains("XAmzContentSHA256Mismatch (status 400): Not that."), "{error}");
    }
}

/// A server whose listings are what `page` gives for the number of the request, from 0.
fn listing(page: impl Fn(usize) -> String + Send + Sync + 'static) -> (Server, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    let server = Server::start(move |_| {
        let page = page(seen.fetch_add(1, Ordering::Relaxed));
        answer(200, "", format!("<ListBucketResult>{page}</ListBucketResult>").as_bytes())
    });
    (server, requests)
}

fn more(token: &str) -> String {
    format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>")
}

fn object(key: &str) -> String {
    format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")
}

#[test]
fn a_listing_that_goes_round_in_circles_is_an_error() {
    // The same mark for ever, of pages without objects.
    let (same_mark, asked) = listing(|_| more("t"));
    let error = store_on(&same_mark).list(None, &watchdog()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Answer(_)), "{error}");
    assert!(error.to_string().contains("is to be followed by itself"), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    // Another mark each time, and the same objects.
    let (same_objects, asked) = listing(|number| more(&number.to_string()) + &object("a") + &object("b"));
    let error = store_on(&same_objects).list(None, &watchdog()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Answer(_)), "{error}");
    assert!(error.to_string().contains("the listing has a twice"), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let (right, _) = listing(|number| match number {
        0 => more("1") + &object("a"),
        1 => more("2"),
        _ => object("b"),
    });
    assert_eq!(store_on(&right).list(None, &watchdog()).unwrap().len(), 2);
}

#[test]
fn a_listing_that_goes_folder_by_folder_is_put_in_order() {
    let pages: [fn(usize) -> String; 2] = [
        |_| object("travel/manifests/m") + &object("travel-sample/manifests/m"),
        |number| match number {
            0 => more("1") + &object("travel/manifests/m"),
            _ => object("travel-sample/manifests/m"),
        },
    ];
    for page in pages {
        let (server, _) = listing(page);
        let listed = store_on(&server).list(None, &watchdog()).unwrap();
        let keys: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(keys, ["travel-sample/manifests/m", "travel/manifests/m"]);
    }
}

/// A server that takes an object in parts. What it has of it is seen by a look from the moment on that it is put
/// together.
fn in_parts(uploads: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static, length: usize) -> Server {
    let is_there = AtomicUsize::new(0);
    Server::start(move |request| {
        let tagged = "ETag: \"tag\"\r\n";
        let (method, path) = (request.method.as_str(), request.path.as_str());
        match method {
            "POST" if path.contains("uploadId") => {
                is_there.store(1, Ordering::Relaxed);
                let done =
                    "<CompleteMultipartUploadResult><ETag>\"tag\"</ETag></CompleteMultipartUploadResult>";
                answer(200, "", done.as_bytes())
            }
            "POST" => answer(
                200,
                "",
                b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
            ),
            "PUT" => answer(200, tagged, b""),
            "HEAD" if is_there.load(Ordering::Relaxed) == 1 => {
                let head = format!(
                    "HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: {length}\r\n{tagged}\r\n"
                );
                head.into_bytes()
            }
            "HEAD" => answer(404, "", b""),
            _ => uploads(request),
        }
    })
}

#[test]
fn a_server_that_lists_no_uploads_takes_files_in_parts_all_the_same() {
    let bytes = content(usize::try_from(CHUNK_BYTES).unwrap() + 1);
    let server = in_parts(|_| answer(501, "", &error_document("NotImplemented", "Not here.")), bytes.len());
    let (store, folder) = (store_on(&server), tempfile::tempdir().unwrap());
    let (path, chunks, x) = (folder.path().join("x"), chunks_of(&bytes), key("x"));
    std::fs::write(&path, &bytes).unwrap();
    let file = FileUpload { key: &x, path: &path, length_bytes: bytes.len() as u64, chunks: &chunks };
    upload_files(&store, &[file], &watchdog(), &mut |_| {}).unwrap();
    assert_eq!(store.in_parts().unwrap().uploads(None, &watchdog()).unwrap(), []);
    give_up(&store, &[&x], &watchdog()).unwrap();
}

#[test]
fn an_upload_that_a_part_under_way_brings_back_is_given_up_again() {
    // It is listed once more after it was given up: a part that was being taken in made it anew.
    let given_up = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given_up);
    let uploads = move |request: &Request| {
        if request.method == "DELETE" {
            count.fetch_add(1, Ordering::Relaxed);
            return answer(204, "", b"");
        }
        let upload = "<Upload><Key>x</Key><UploadId>u</UploadId></Upload>";
        let listed = if count.load(Ordering::Relaxed) < 2 { upload } else { "" };
        let document = format!("<ListMultipartUploadsResult>{listed}</ListMultipartUploadsResult>");
        answer(200, "", document.as_bytes())
    };
    let server = in_parts(uploads, 0);
    let store = store_on(&server);
    give_up(&store, &[&key("x")], &watchdog()).unwrap();
    assert_eq!(given_up.load(Ordering::Relaxed), 2);
    assert_eq!(store.in_parts().unwrap().uploads(None, &watchdog()).unwrap(), []);
}

#[test]
fn a_bucket_of_another_region_is_an_error_that_names_its_region() {
    let headers = "x-amz-bucket-region: eu-west-1\r\n";
    // A look is refused without a document, as credentials that are too old are.
    let looked = Server::start(move |_| answer(400, headers, b""));
    let error = store_on(&looked).head(&key("x"), &watchdog()).unwrap_err();
    let is_in = "the bucket is in the region eu-west-1, not in us-east-1";
    assert!(!error.is_temporary() && error.to_string().ends_with(is_in), "{error}");
    let listed =
        Server::start(move |_| answer(301, headers, &error_document("PermanentRedirect", "Elsewhere.")));
    let error = store_on(&listed).list(None, &watchdog()).unwrap_err();
    assert!(!error.is_temporary() && error.to_string().contains(&format!("Elsewhere. ({is_in})")), "{error}");
    // A refusal that is about something else.
    let own = Server::start(|_| {
        answer(403, "x-amz-bucket-region: us-east-1\r\n", &error_document("AccessDenied", "No."))
    });
    let text = store_on(&own).list(None, &watchdog()).unwrap_err().to_string();
    assert!(!text.contains("region"), "{text}");
}

#[test]
fn a_bucket_of_the_same_name_on_another_server_is_another_archive() {
    let [one, other] = [9000, 9001].map(|port| {
        let endpoint = Some(format!("http://127.0.0.1:{port}/"));
        S3Store::open(S3Config { endpoint, ..S3Config::new("bucket", "us-east-1") }).unwrap()
    });
    let of_aws = S3Store::open(S3Config::new("bucket", "us-east-1")).unwrap();
    assert_eq!(one.describe(), "s3://bucket at http://127.0.0.1:9000");
    assert_eq!(of_aws.describe(), "s3://bucket");
    assert_ne!(one.describe(), other.describe());
}
