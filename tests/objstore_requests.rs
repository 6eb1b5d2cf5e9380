//! What an S3 store sends, as a server sees it, and answers that are unusual and right.

use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dormouse::objstore::{Body, Encryption, ObjectStore, S3Config, S3Store, StoreCause, Upload};
use dormouse::thread::Failure;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

use crate::support::stores::gateway::given;
use crate::support::stores::http::{Request, Server, answer, error_document, read_head};
use crate::support::stores::{chunks_of, content, file_with, get, names};
use crate::support::{forever, key};

fn config(server: &Server) -> S3Config {
    S3Config {
        endpoint: Some(server.url()),
        path_style: true,
        credentials: vec![given("secret")],
        ..S3Config::new("bucket", "eu-west-1")
    }
}

/// A server that says yes to everything and keeps what was asked.
fn listener(document: &'static str) -> (Server, Arc<Mutex<Vec<Request>>>) {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    let server = Server::start(move |request| {
        kept.lock().push(request.clone());
        let status = if request.method == "HEAD" { 404 } else { 200 };
        answer(status, "ETag: \"tag\"\r\n", document.as_bytes())
    });
    (server, requests)
}

#[test]
fn a_put_is_signed_with_its_hash_for_its_region_and_says_how_it_is_to_be_kept() {
    let (server, requests) = listener("");
    let encryption = Encryption::Kms(Some("the-key".to_owned()));
    let storage_class = Some("STANDARD_IA".to_owned());
    let store = S3Store::open(S3Config { encryption, storage_class, ..config(&server) }).unwrap();
    store.put(&key("a b/ä"), Body::Bytes(b"content"), &forever()).unwrap();
    let request = requests.lock().remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/bucket/a%20b/%C3%A4"));
    assert_eq!(request.body, b"content");
    let hash = dormouse::durable::hex(&Sha256::digest(b"content"));
    assert_eq!(request.header("x-amz-content-sha256"), hash);
    assert_eq!(request.header("x-amz-server-side-encryption"), "aws:kms");
    assert_eq!(request.header("x-amz-server-side-encryption-aws-kms-key-id"), "the-key");
    assert_eq!(request.header("x-amz-storage-class"), "STANDARD_IA");
    assert_eq!(request.header("content-type"), "application/octet-stream");
    assert!(request.header("authorization").contains("/eu-west-1/s3/aws4_request, SignedHeaders="));
    assert_eq!(request.header("accept-encoding"), "identity");
    for name in ["transfer-encoding", "expect", "if-none-match"] {
        assert_eq!(request.header(name), "", "{name}");
    }
}

#[test]
fn a_put_that_must_be_new_looks_first_and_asks_the_server_too() {
    let (server, requests) = listener("");
    let store = S3Store::open(config(&server)).unwrap();
    store.put_if_absent(&key("x"), Body::Bytes(b""), &forever()).unwrap();
    let requests = requests.lock();
    let methods: Vec<&str> = requests.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["HEAD", "PUT"]);
    assert_eq!(requests[1].header("if-none-match"), "*");
    assert_eq!(requests[1].header("content-length"), "0");
}

#[test]
fn a_request_without_a_body_announces_none() {
    let document = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    let (server, requests) = listener(document);
    let encryption = Encryption::S3;
    let store = S3Store::open(S3Config { encryption, ..config(&server) }).unwrap();
    assert_eq!(store.in_parts().unwrap().begin(&key("x"), &forever()).unwrap().id, "u");
    let request = requests.lock().remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/bucket/x?uploads="));
    assert_eq!(request.header("content-length"), "0");
    assert_eq!(request.header("transfer-encoding"), "");
    assert_eq!(request.header("x-amz-server-side-encryption"), "AES256");
}

#[test]
fn blanks_before_a_document_and_unknown_headers_are_no_matter() {
    let document = "  \n \r\n<?xml version=\"1.0\"?>\n<ListBucketResult><Contents><Key>a+b%2B</Key><Size>1</Size>\
                    </Contents><EncodingType>url</EncodingType></ListBucketResult>\n";
    let (server, _) = listener(document);
    assert_eq!(names(&S3Store::open(config(&server)).unwrap(), None), ["a b+"]);
    let odd = "ETag: \"x\"\r\nx-amz-missing-meta: many\r\nx-amz-mp-parts-count: -\r\nx-amz-delete-marker: perhaps\r\n";
    let server = Server::start(move |_| answer(200, odd, b"content"));
    assert_eq!(get(&S3Store::open(config(&server)).unwrap(), "x").unwrap(), b"content");
}

#[test]
fn a_server_that_never_says_that_it_wants_a_body_is_waited_for_once() {
    let waited = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&waited);
    let server = Server::of_connections(move |mut stream| {
        let Some(request) = read_head(&mut stream)? else { return Ok(()) };
        noted.lock().push(request.waits());
        std::io::Read::read_exact(&mut stream, &mut vec![0; request.body_bytes()])?;
        stream.get_mut().write_all(&answer(200, "ETag: \"x\"\r\n", b""))
    });
    let store = S3Store::open(config(&server)).unwrap();
    let bytes = content(100_000);
    for _ in 0..3 {
        store.put(&key("x"), Body::Bytes(&bytes), &forever()).unwrap();
    }
    assert_eq!(*waited.lock(), [true, false, false]);
}

/// A certificate for `localhost`, and that of its authority, that are good for a hundred years.
fn tls_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
}

/// A server on TLS where no object is.
fn tls_server() -> Server {
    let certificate = CertificateDer::from_pem_file(tls_file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(tls_file("server.key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(versions.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
    Server::of_connections(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(connection, stream.into_inner()));
        if read_head(&mut stream)?.is_some() {
            stream.get_mut().write_all(&answer(404, "", b""))?;
        }
        Ok(())
    })
}

#[test]
fn a_server_on_tls_is_trusted_by_its_authority_and_its_name_alone() {
    let server = tls_server();
    let by_address = server.url().replace("http:", "https:");
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let authority = Some(std::fs::read(tls_file("authority.pem")).unwrap());
    let look = |endpoint: &str, authorities_pem: Option<Vec<u8>>| {
        let config = S3Config { endpoint: Some(endpoint.to_owned()), authorities_pem, ..config(&server) };
        S3Store::open(config).unwrap().head(&key("x"), &forever())
    };
    assert_eq!(look(&by_name, authority.clone()).unwrap(), None);
    let of_another_name = "; name the server as its certificate does, and the bucket in the path where its name is a part of \
                           that one";
    for (error, way_out) in [
        (look(&by_name, None).unwrap_err(), "; name its authority"),
        (look(&by_address, authority).unwrap_err(), of_another_name),
    ] {
        assert!(matches!(error.cause, StoreCause::Endpoint(_)) && !error.is_temporary(), "{error}");
        let text = error.to_string();
        assert!(text.contains(": cannot trust ") && text.ends_with(way_out), "{text}");
    }
    let plain = look(&server.url(), None).unwrap_err();
    assert!(plain.is_temporary(), "{plain}");
}

#[test]
fn a_server_that_knows_no_conditions_is_asked_without_one() {
    for is_there in [false, true] {
        let methods = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&methods);
        let server = Server::start(move |request| {
            kept.lock().push(request.method.clone());
            match request.method.as_str() {
                "HEAD" if is_there => answer(200, "ETag: \"tag\"\r\n", b""),
                "HEAD" => answer(404, "", b""),
                _ if request.header("if-none-match").is_empty() => answer(200, "ETag: \"tag\"\r\n", b""),
                _ => answer(501, "", &error_document("NotImplemented", "A header is not implemented.")),
            }
        });
        let store = S3Store::open(config(&server)).unwrap();
        let put = store.put_if_absent(&key("x"), Body::Bytes(b"content"), &forever());
        if is_there {
            assert!(matches!(put.unwrap_err().cause, StoreCause::Exists));
            assert_eq!(*methods.lock(), ["HEAD"]);
        } else {
            put.unwrap();
            assert_eq!(*methods.lock(), ["HEAD", "PUT", "PUT"]);
        }
    }
}

#[test]
fn a_bucket_that_retains_its_objects_is_told_their_md5() {
    let puts = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&puts);
    let server = Server::start(move |request| {
        if request.method == "HEAD" {
            return answer(404, "", b"");
        }
        let told = request.header("content-md5").to_owned();
        let is_right = told == STANDARD.encode(md5::Md5::digest(&request.body));
        kept.lock().push((request.body.len(), !told.is_empty()));
        if is_right {
            return answer(200, "ETag: \"tag\"\r\n", b"");
        }
        let message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object \
                       Lock parameters";
        answer(400, "", &error_document("InvalidRequest", message))
    });
    let store = S3Store::open(config(&server)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = file_with(folder.path(), &content(300_000));
    let chunks = chunks_of(&content(300_000));
    let body = || Body::File { file: &file, offset_bytes: 0, length_bytes: 300_000, chunks: &chunks };
    let error = store.put(&key("x"), body(), &forever()).unwrap_err();
    assert!(error.is_temporary(), "{error}");
    store.put(&key("x"), body(), &forever()).unwrap();
    store.put_if_absent(&key("y"), Body::Bytes(b"content"), &forever()).unwrap();
    let part = Upload { key: key("z"), id: "id".to_owned() };
    store.in_parts().unwrap().put_part(&part, 1, body(), &forever()).unwrap();
    assert_eq!(*puts.lock(), [(300_000, false), (300_000, true), (7, true), (300_000, true)]);
}
