//! What happens to an S3 store when the network or the server does what it should not.
//!
//! For each fault a whole round of calls is made, again and again, and each time the fault befalls another request
//! of the round. It has to end in success, with the right content, within its deadline, and nothing may be left.

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use dormouse::objstore::{
    Body, ContentHash, CredentialSource, FileFetch, FileUpload, Floor, Layer, ObjectStore, Retry,
    RetryConfig, S3Config, S3Store, StoreCause, StoreError, TransferError, fetch_files, upload_files,
};
use dormouse::thread::{Cancel, Failure, Stopped, Until, spawn};

use crate::support::stores::gateway::{BUCKET, Gateway, given};
use crate::support::stores::http::{Server, answer, error_document};
use crate::support::stores::proxy::{Fault, Proxy};
use crate::support::stores::{chunks_of, content, each_call_but_a_look, get, names, put};
use crate::support::{eventually, forever, key, watchdog};

const CHUNK: usize = 8 * 1024 * 1024;
/// What a call that ends by itself may take on a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(20);

/// A server behind a proxy.
struct Scene {
    proxy: Proxy,
    config: S3Config,
}

impl Scene {
    fn new() -> Option<Self> {
        let gateway = Gateway::get()?;
        let proxy = Proxy::before(gateway.port());
        let endpoint = Some(proxy.url());
        // A machine with other things to do makes the server slow.
        let silence_limit = Duration::from_secs(60);
        Some(Self { config: S3Config { endpoint, silence_limit, ..gateway.config() }, proxy })
    }

    /// One try each, for as long as it takes.
    fn bare(&self) -> S3Store {
        S3Store::open(self.config.clone()).unwrap()
    }

    /// One try each, while the server is not silent.
    fn impatient(&self) -> S3Store {
        let silence_limit = Duration::from_millis(700);
        S3Store::open(S3Config { silence_limit, ..self.config.clone() }).unwrap()
    }

    fn store(&self) -> impl ObjectStore + use<> {
        let retry = RetryConfig {
            tries: 6,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(20),
            budget: 1000,
        };
        let floor =
            Floor { bytes_per_second: 10_000_000, grace: Duration::from_millis(1500), call_limit: None };
        Layer::new(Box::new(Layer::new(Box::new(self.impatient()), floor)), Retry::new(retry))
    }
}

/// Puts and fetches a small file and one in parts, lists and deletes them.
fn round(store: &dyn ObjectStore, until: &Until) -> Result<(), TransferError> {
    let folder = tempfile::tempdir().unwrap();
    let files = [("small", content(100_000)), ("large", content(CHUNK + 100_000))];
    let (keys, paths) = (
        files.each_ref().map(|(name, _)| key(name)),
        files.each_ref().map(|(name, _)| folder.path().join(name)),
    );
    let chunks = files.each_ref().map(|(_, bytes)| chunks_of(bytes));
    let mut uploads = Vec::new();
    let mut wanted = Vec::new();
    for (number, (_, bytes)) in files.iter().enumerate() {
        std::fs::write(&paths[number], bytes).unwrap();
        let (key, path, length_bytes) = (&keys[number], paths[number].as_path(), bytes.len() as u64);
        uploads.push(FileUpload { key, path, length_bytes, chunks: &chunks[number] });
        wanted.push(FileFetch { key, length_bytes, path: None });
    }
    upload_files(store, &uploads, until, &mut |_| {})?;
    fetch_files(store, &wanted, until, &mut |number, came| {
        let came = came.map_err(|error| TransferError::Store { file: number, error })?;
        assert_eq!(came.hash, ContentHash::of_chunks(&chunks[number]), "{}", keys[number]);
        Ok(())
    })?;
    let failed = |error| TransferError::Store { file: 0, error };
    let listed = store.list(None, until).map_err(failed)?;
    assert_eq!(listed.len(), 2);
    store.delete(&keys, until).map_err(failed)?;
    let left = store.in_parts().unwrap().uploads(Some(&keys[1]), until).map_err(failed)?;
    assert_eq!(left, []);
    Ok(())
}

fn every_round_succeeds(fault: Fault) {
    if let Some(scene) = Scene::new() {
        every_round_of(&scene, fault);
    }
}

/// Each request of a round in its turn suffers `fault`, and the round succeeds all the same.
fn every_round_of(scene: &Scene, fault: Fault) {
    let mut befallen = 0;
    loop {
        let number = befallen + 1;
        scene.proxy.plan(fault, number, |_| true);
        let began = Instant::now();
        round(&scene.store(), &watchdog()).unwrap_or_else(|e| panic!("request {number}: {e}"));
        assert!(began.elapsed() < Duration::from_secs(30), "request {number}: {:?}", began.elapsed());
        // A round that ends before its turn comes is the last. On a busy machine some requests are made again.
        if scene.proxy.faulty() == befallen {
            break;
        }
        befallen = number;
    }
    assert!(befallen >= 12, "{befallen} requests are too few for a round");
    scene.proxy.plan(fault, 0, |_| false);
    assert!(names(&scene.bare(), None).is_empty());
}

macro_rules! succeeds {
    ($($name:ident: $fault:ident,)*) => {
        $(#[test]
        fn $name() {
            every_round_succeeds(Fault::$fault);
        })*
    };
}

succeeds! {
    a_reset_before_the_body_is_overcome: ResetBeforeBody,
    a_reset_within_the_body_is_overcome: ResetWithinBody,
    a_reset_after_the_body_is_overcome: ResetAfterBody,
    a_lost_answer_is_overcome: LostAnswer,
    a_server_that_says_nothing_is_overcome: Stall,
    a_server_that_is_busy_before_the_body_is_overcome: BusyBeforeBody,
    bytes_that_change_on_their_way_up_are_overcome: FlippedUp,
    a_server_that_stops_taking_a_body_is_overcome: StallWithinBody,
    an_error_where_a_success_was_said_is_overcome: ErrorInSuccess,
}

/// Faults that show in a body: only requests whose answers have one can suffer them.
fn fetches_succeed(fault: Fault) {
    let Some(scene) = Scene::new() else { return };
    let (bytes, store) = (content(200_000), scene.store());
    put(&store, "x", &bytes);
    scene.proxy.plan(fault, 1, |request| request.method == "GET");
    assert!(get(&store, "x").unwrap() == bytes);
    scene.proxy.plan(fault, 1, |request| request.method == "GET");
    let mut piece = Vec::new();
    store.get_range(&key("x"), 1000..150_000, &mut piece, &watchdog()).unwrap();
    assert!(piece == bytes[1000..150_000]);
    scene.proxy.plan(fault, 1, |request| request.method == "GET");
    assert_eq!(names(&store, None), ["x"]);
    assert_eq!(scene.proxy.faulty(), 3);
}

#[test]
fn a_truncated_answer_is_overcome() {
    fetches_succeed(Fault::Truncated);
}

#[test]
fn a_reset_within_an_answer_is_overcome() {
    fetches_succeed(Fault::ResetWithinAnswer);
}

#[test]
fn an_answer_that_is_shorter_than_it_says_is_overcome() {
    fetches_succeed(Fault::ShorterThanSaid);
}

#[test]
fn an_answer_that_comes_packed_although_nobody_asked_for_that_is_overcome() {
    fetches_succeed(Fault::Packed);
}

#[test]
fn an_answer_whose_length_is_wrong_is_overcome() {
    let Some(scene) = Scene::new() else { return };
    let (bytes, store) = (content(200_000), scene.store());
    put(&store, "x", &bytes);
    scene.proxy.plan(Fault::LongerThanSaid, 1, |request| request.method == "GET");
    let mut piece = Vec::new();
    store.get_range(&key("x"), 1000..150_000, &mut piece, &watchdog()).unwrap();
    assert!(piece == bytes[1000..150_000]);
    assert_eq!(scene.proxy.faulty(), 1);
}

#[test]
fn an_answer_that_dribbles_is_cut_off_and_asked_for_again() {
    let Some(scene) = Scene::new() else { return };
    let (bytes, store) = (content(200_000), scene.store());
    put(&store, "x", &bytes);
    scene.proxy.plan(Fault::Dribble, 1, |request| request.method == "GET");
    assert!(get(&store, "x").unwrap() == bytes);
    let floor = Floor { bytes_per_second: 1_000_000, grace: Duration::from_millis(100), call_limit: None };
    let impatient = Layer::new(Box::new(scene.bare()), floor);
    scene.proxy.plan(Fault::Dribble, 0, |request| request.method == "GET");
    let error = get(&impatient, "x").unwrap_err();
    assert!(
        matches!(error.cause, StoreCause::TooSlow { limit } if limit == Duration::from_millis(1100)),
        "{error}"
    );
    assert!(error.is_temporary());
}

#[test]
fn a_body_that_is_taken_a_byte_at_a_time_is_cut_off_and_sent_again() {
    let Some(scene) = Scene::new() else { return };
    let (bytes, store) = (content(3_000_000), scene.store());
    scene.proxy.plan(Fault::DribbleUp, 1, |request| request.method == "PUT");
    put(&store, "x", &bytes);
    assert_eq!(scene.proxy.faulty(), 1);
    assert!(get(&store, "x").unwrap() == bytes);
    let floor = Floor { bytes_per_second: 10_000_000, grace: Duration::from_millis(100), call_limit: None };
    // What the system has buffered is sent, as far as the client knows: then only the answer is missing.
    let impatient = Layer::new(Box::new(scene.bare()), floor);
    scene.proxy.plan(Fault::DribbleUp, 0, |request| request.method == "PUT");
    let error = impatient.put(&key("y"), Body::Bytes(&bytes), &forever()).unwrap_err();
    assert!(
        matches!(error.cause, StoreCause::TooSlow { limit } if limit == Duration::from_millis(1100)),
        "{error}"
    );
    assert_eq!(names(&store, None), ["x"]);
}

#[test]
fn a_document_that_dribbles_is_cut_off_and_asked_for_again() {
    let Some(scene) = Scene::new() else { return };
    let floor = Floor { bytes_per_second: 10_000_000, grace: Duration::from_millis(100), call_limit: None };
    // No byte lets wait for long.
    let impatient = || Layer::new(Box::new(scene.bare()), floor);
    let (patient, store, x) = (scene.bare(), impatient(), key("x"));
    for name in ["a", "b", "c"] {
        put(&patient, name, b"content");
    }
    let upload = patient.in_parts().unwrap().begin(&x, &forever()).unwrap();
    let content = Body::Bytes(b"content");
    let part = patient.in_parts().unwrap().put_part(&upload, 1, content, &forever()).unwrap();
    let parts = store.in_parts().unwrap();
    scene.proxy.plan(Fault::Dribble, 0, |_| true);
    let began = Instant::now();
    let errors = [
        store.list(None, &forever()).unwrap_err(),
        parts.parts(&upload, &forever()).unwrap_err(),
        parts.complete(&upload, &[part], &forever()).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error.cause, StoreCause::TooSlow { limit } if limit.as_millis() == 1000), "{error}");
    }
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    scene.proxy.plan(Fault::Dribble, 1, |request| request.method == "GET");
    let again = Layer::new(Box::new(impatient()), Retry::new(RetryConfig::default()));
    assert_eq!(names(&again, None), ["a", "b", "c", "x"]);
}

#[test]
fn a_success_that_holds_an_error_is_overcome() {
    let Some(scene) = Scene::new() else { return };
    for number in 1..=2 {
        scene.proxy.plan(Fault::ErrorInSuccess, number, |request| request.method == "POST");
        round(&scene.store(), &watchdog()).unwrap();
        assert_eq!(scene.proxy.faulty(), number);
    }
    let error = {
        scene.proxy.plan(Fault::ErrorInSuccess, 0, |request| request.method == "POST");
        scene.bare().in_parts().unwrap().begin(&key("x"), &forever()).unwrap_err()
    };
    assert!(error.is_temporary());
    assert!(error.to_string().contains("InternalError (status 500): Try again."), "{error}");
}

#[test]
fn content_that_changes_on_its_way_down_is_seen_by_its_hash() {
    let Some(scene) = Scene::new() else { return };
    let (bytes, store) = (content(CHUNK + 1000), scene.store());
    put(&store, "x", &bytes);
    scene.proxy.plan(Fault::FlippedDown, 1, |request| request.method == "GET");
    let wanted = [FileFetch { key: &key("x"), length_bytes: bytes.len() as u64, path: None }];
    let mut hashes = Vec::new();
    for _ in 0..2 {
        fetch_files(&store, &wanted, &watchdog(), &mut |_, came| {
            hashes.push(came.unwrap().hash);
            Ok(())
        })
        .unwrap();
    }
    let right = ContentHash::of_chunks(&chunks_of(&bytes));
    assert!(hashes[0] != right && hashes[1] == right);
}

/// One call of each kind.
fn each_call(store: &dyn ObjectStore) -> Vec<StoreError> {
    let look = store.head(&key("x"), &watchdog()).unwrap_err();
    std::iter::once(look).chain(each_call_but_a_look(store, &content(100_000))).collect()
}

#[test]
fn a_connection_that_is_refused_is_a_temporary_error() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = S3Config {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        path_style: true,
        ..S3Config::new("bucket", "us-east-1")
    };
    for error in each_call(&S3Store::open(config).unwrap()) {
        assert!(error.is_temporary(), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!(
                "in s3://bucket at http://127.0.0.1:{port}: the exchange with 127.0.0.1 failed: "
            )),
            "{text}"
        );
        assert!(text.starts_with("cannot ") && text.contains("refused"), "{text}");
    }
}

#[test]
fn a_server_that_stays_bad_is_one_clear_error_and_the_next_upload_goes_on_and_leaves_no_part() {
    let Some(scene) = Scene::new() else { return };
    let (folder, bytes, x) = (tempfile::tempdir().unwrap(), content(CHUNK + 100_000), key("x"));
    let (path, chunks) = (folder.path().join("x"), chunks_of(&bytes));
    std::fs::write(&path, &bytes).unwrap();
    let file = FileUpload { key: &x, path: &path, length_bytes: bytes.len() as u64, chunks: &chunks };
    for fault in [Fault::ResetBeforeBody, Fault::ResetAfterBody, Fault::BusyBeforeBody, Fault::FlippedUp] {
        let store = scene.store();
        scene.proxy.plan(fault, 0, |request| request.path.contains("partNumber=2"));
        let error = upload_files(&store, &[file], &watchdog(), &mut |_| {}).unwrap_err();
        assert!(matches!(&error, TransferError::Store { error, .. } if error.is_temporary()), "{error}");
        assert!(error.to_string().starts_with("cannot put a part of x in s3://lab/test-"), "{error}");
        assert_eq!(store.head(&x, &watchdog()).unwrap(), None, "{fault:?}");
        scene.proxy.plan(fault, 0, |_| false);
        upload_files(&store, &[file], &watchdog(), &mut |_| {}).unwrap();
        assert!(get(&store, "x").unwrap() == bytes, "{fault:?}");
        let left = store.in_parts().unwrap().uploads(None, &watchdog()).unwrap();
        assert_eq!(left, [], "{fault:?}");
        store.delete(std::slice::from_ref(&x), &watchdog()).unwrap();
    }
}

#[test]
fn what_a_busy_server_says_before_the_body_is_heard() {
    let Some(scene) = Scene::new() else { return };
    let bytes = content(3_000_000);
    scene.proxy.plan(Fault::BusyBeforeBody, 1, |request| request.method == "PUT");
    let error = scene.bare().put(&key("x"), Body::Bytes(&bytes), &forever()).unwrap_err();
    assert!(
        matches!(&error.cause, StoreCause::Refused { status: 503, code, .. } if code == "SlowDown"),
        "{error}"
    );
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
    assert!(error.is_temporary());
}

#[test]
fn a_deadline_and_a_cancel_end_a_call_on_a_server_that_says_nothing() {
    let Some(scene) = Scene::new() else { return };
    let (bare, x) = (scene.bare(), key("x"));
    scene.proxy.plan(Fault::Stall, 0, |_| true);
    let began = Instant::now();
    let bytes = content(100_000);
    let soon = || Until::within(Duration::from_millis(200));
    let errors =
        [bare.head(&x, &soon()).unwrap_err(), bare.put(&x, Body::Bytes(&bytes), &soon()).unwrap_err()];
    let passed = |cause: &StoreCause| matches!(cause, StoreCause::Stopped(Stopped::DeadlinePassed));
    assert!(errors.iter().all(|error| passed(&error.cause)), "{errors:?}");
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    let before = scene.proxy.faulty();
    let cancel = Cancel::new();
    let until = Until::new(None, cancel.clone());
    let caller = spawn("caller", move || bare.get(&key("x"), &mut io::sink(), &until)).unwrap();
    eventually("the request is there", || scene.proxy.faulty() > before);
    let began = Instant::now();
    cancel.cancel();
    let error = caller.join(&watchdog()).unwrap().unwrap_err();
    assert!(matches!(error.cause, StoreCause::Stopped(Stopped::Cancelled)), "{error}");
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
}

/// A store without layers, and a caller without a limit.
#[test]
fn a_silence_ends_each_call() {
    let Some(scene) = Scene::new() else { return };
    let (impatient, x) = (scene.impatient(), key("x"));
    let bytes = content(3_000_000);
    put(&scene.bare(), "x", &bytes);
    let began = Instant::now();
    let mut errors = Vec::new();
    for fault in [Fault::Stall, Fault::StallWithinBody, Fault::ShorterThanSaid] {
        scene.proxy.plan(fault, 0, |_| true);
        errors.push(match fault {
            Fault::Stall => impatient.head(&x, &forever()).unwrap_err(),
            Fault::StallWithinBody => impatient.put(&x, Body::Bytes(&bytes), &forever()).unwrap_err(),
            _ => impatient.get(&x, &mut io::sink(), &forever()).unwrap_err(),
        });
    }
    for error in errors {
        assert!(matches!(error.cause, StoreCause::Connection(_)) && error.is_temporary(), "{error}");
    }
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
}

#[test]
fn a_clock_that_is_off_is_a_permanent_error_with_the_way_out() {
    let Some(scene) = Scene::new() else { return };
    scene.proxy.plan(Fault::ClockSkew, 0, |_| true);
    let errors = each_call(&scene.store());
    assert_eq!(scene.proxy.requests(), errors.len(), "none is tried again");
    assert!(errors.iter().all(|error| !error.is_temporary()), "{errors:?}");
    let texts = errors.iter().map(ToString::to_string);
    let (told, looks): (Vec<_>, Vec<_>) = texts.partition(|text| text.contains("RequestTimeTooSkewed"));
    for text in told {
        assert!(text.contains("the server's clock says Thu, 01 Jan 2026"), "{text}");
        assert!(text.ends_with("; set this machine's clock"), "{text}");
    }
    // The answer to a look has no document: its status is all it says. Two other calls begin with a look.
    assert_eq!(looks.len(), 3, "{looks:?}");
    assert!(looks.iter().all(|text| text.contains("the server says Forbidden (status 403)")), "{looks:?}");
}

#[test]
fn an_expired_token_is_permanent_unless_others_can_be_had() {
    let Some(scene) = Scene::new() else { return };
    scene.proxy.plan(Fault::ExpiredToken, 1, |_| true);
    let error = scene.store().list(None, &watchdog()).unwrap_err();
    assert!(!error.is_temporary());
    assert!(error.to_string().ends_with("; get new credentials"), "{error}");
}

#[test]
fn an_expired_token_is_renewed_whatever_the_call() {
    let Some(scene) = Scene::new() else { return };
    // The same credentials, from a place that can give others.
    let CredentialSource::Given(same) = scene.config.credentials[0].clone() else { panic!("given") };
    let document = format!(
        r#"{{"AccessKeyId":"{}","SecretAccessKey":"{}","Expiration":"2099-01-01T00:00:00Z"}}"#,
        same.access_key_id, same.secret_access_key
    );
    let container = Server::start(move |_| answer(200, "", document.as_bytes()));
    let source = CredentialSource::Container { url: container.url(), authorization: None };
    let scene = Scene { config: S3Config { credentials: vec![source], ..scene.config }, proxy: scene.proxy };
    every_round_of(&scene, Fault::ExpiredToken);
}

/// A store on a server that gives this answer to everything.
fn store_that_hears(status: u16, headers: &'static str, body: Vec<u8>) -> (Server, S3Store) {
    let server = Server::start(move |_| answer(status, headers, &body));
    let config = S3Config {
        endpoint: Some(server.url()),
        path_style: true,
        credentials: vec![given("secret")],
        ..S3Config::new(BUCKET, "us-east-1")
    };
    (server, S3Store::open(config).unwrap())
}

#[test]
fn answers_that_cannot_be_right_are_errors_and_no_panics() {
    let list = |content: &str| format!("<ListBucketResult>{content}</ListBucketResult>").into_bytes();
    let entry = |key: &str, size: &str| format!("<Contents><Key>{key}</Key><Size>{size}</Size></Contents>");
    for body in [
        list(&entry("a", "many")),
        list("<IsTruncated>perhaps</IsTruncated>"),
        list("<IsTruncated>true</IsTruncated>"),
        list(&(entry("a", "1") + &entry("a", "1"))),
        list("<MaxKeys/>"),
        b"<html>Not what was asked for</html>".to_vec(),
        b"\xff\xfe".to_vec(),
        b"<ListBucketResult>".to_vec(),
        b"<ListBucketResult><Contents></ListBucketResult>".to_vec(),
        Vec::new(),
    ] {
        let text = String::from_utf8_lossy(&body).into_owned();
        let (_server, store) = store_that_hears(200, "", body);
        let error = store.list(None, &forever()).unwrap_err();
        assert!(matches!(error.cause, StoreCause::Answer(_)), "{text}: {error}");
        assert!(!error.to_string().contains("it cannot be read"), "{text}: a panic had to be caught");
    }
    let (_server, store) = store_that_hears(200, "", list(&entry("b/x", "1")));
    let error = store.list(Some(&key("a")), &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Answer(_)), "another folder: {error}");
    for headers in ["", "ETag: \"\"\r\n"] {
        let (_server, store) = store_that_hears(200, headers, Vec::new());
        let body = Body::Bytes(b"content");
        let errors = [
            store.put(&key("x"), body, &forever()).unwrap_err(),
            store.get(&key("x"), &mut io::sink(), &forever()).unwrap_err(),
        ];
        assert!(errors.iter().all(|e| matches!(e.cause, StoreCause::Answer(_))), "{errors:?}");
    }
    for headers in [
        "ETag: \"x\"\r\n",
        "ETag: \"x\"\r\nContent-Range: bytes 1-4/9\r\n",
        "ETag: \"x\"\r\nContent-Range: bytes 0-3/*\r\n",
        "ETag: \"x\"\r\nContent-Range: nonsense\r\n",
    ] {
        let (_server, store) = store_that_hears(200, headers, b"1234".to_vec());
        let mut found = Vec::new();
        let error = store.get_range(&key("x"), 0..4, &mut found, &forever()).unwrap_err();
        assert!(matches!(error.cause, StoreCause::Answer(_)), "{headers}: {error}");
        assert!(found.is_empty());
    }
}

#[test]
fn a_document_without_end_is_not_read_to_its_end() {
    let (_server, store) = store_that_hears(200, "", vec![b' '; 17 * 1024 * 1024]);
    let error = store.list(None, &forever()).unwrap_err();
    assert!(error.to_string().contains("more than 16777216 bytes"), "{error}");
}

#[test]
fn a_redirect_is_an_error_that_names_region_and_endpoint() {
    let body = error_document("PermanentRedirect", "Use the other endpoint.");
    let (_server, store) = store_that_hears(301, "Location: http://127.0.0.1:1/\r\n", body);
    let error = store.list(None, &forever()).unwrap_err();
    assert!(!error.is_temporary());
    assert!(error.to_string().ends_with("; check the region and the endpoint"), "{error}");
}

#[test]
fn a_name_that_has_no_address_is_an_error_within_its_deadline() {
    let config = S3Config {
        endpoint: Some("http://nowhere.invalid:9000".to_owned()),
        path_style: true,
        ..S3Config::new("bucket", "us-east-1")
    };
    let store = S3Store::open(config).unwrap();
    let began = Instant::now();
    let error = store.head(&key("x"), &Until::within(Duration::from_millis(500))).unwrap_err();
    let is_expected =
        matches!(error.cause, StoreCause::Connection(_) | StoreCause::Stopped(Stopped::DeadlinePassed));
    assert!(is_expected, "{error}");
    assert!(began.elapsed() < SLACK);
}
