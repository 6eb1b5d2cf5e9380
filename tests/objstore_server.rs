//! An S3 store on a real server: what the contract does not say, or says of sizes that are only met there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use dormouse::objstore::{
    ContentHash, Encryption, FileFetch, FileUpload, ObjectStore, S3Config, S3Store, StoreCause, fetch_files,
    hash_chunks, upload_files,
};
use dormouse::thread::{Failure, Until, spawn};

use crate::support::cli::{BUCKET as TARGET, World, thread_names, wait_until};
use crate::support::stores::gateway::{BUCKET, Gateway, given};
use crate::support::stores::proxy::{Fault, Proxy};
use crate::support::stores::{content, get, names, put};
use crate::support::{forever, is_long, key};

#[test]
fn a_wrong_secret_is_refused_in_the_servers_words() {
    let Some(gateway) = Gateway::get() else { return };
    let config = S3Config { credentials: vec![given("wrong")], ..gateway.config() };
    let store = S3Store::open(config).unwrap();
    let error = store.list(None, &forever()).unwrap_err();
    assert!(matches!(&error.cause, StoreCause::Refused { status: 403, .. }), "{error}");
    assert!(!error.is_temporary());
    let text = error.to_string();
    assert!(text.contains("the server says SignatureDoesNotMatch (status 403)"), "{text}");
    assert!(text.ends_with("; check the credentials and what they allow"), "{text}");
    let bytes = content(3_000_000);
    let body = dormouse::objstore::Body::Bytes(&bytes);
    let error = store.put(&key("x"), body, &forever()).unwrap_err();
    assert!(
        matches!(error.cause, StoreCause::Refused { status: 403, .. }),
        "before the body was sent: {error}"
    );
}

#[test]
fn a_request_without_credentials_is_refused() {
    let Some(gateway) = Gateway::get() else { return };
    let store = S3Store::open(S3Config { credentials: Vec::new(), ..gateway.config() }).unwrap();
    let error = store.list(None, &forever()).unwrap_err();
    assert!(matches!(&error.cause, StoreCause::Refused { status: 403, .. }), "{error}");
}

#[test]
fn a_bucket_that_is_not_there_is_named_with_the_way_out() {
    let Some(gateway) = Gateway::get() else { return };
    let config = S3Config { bucket: "nowhere".to_owned(), ..gateway.config() };
    let error = S3Store::open(config).unwrap().list(None, &forever()).unwrap_err();
    assert!(!error.is_temporary());
    let text = error.to_string();
    assert!(
        text.contains("NoSuchBucket") && text.ends_with("; create the bucket, or name another"),
        "{text}"
    );
}

#[test]
fn a_server_is_found_by_its_name_too() {
    let Some(gateway) = Gateway::get() else { return };
    let endpoint = gateway.endpoint().replace("127.0.0.1", "localhost");
    let store = S3Store::open(S3Config { endpoint: Some(endpoint), ..gateway.config() }).unwrap();
    put(&store, "x", b"content");
    assert_eq!(get(&store, "x").unwrap(), b"content");
}

#[test]
fn five_thousand_keys_are_listed_in_pages_and_deleted() {
    let Some(gateway) = Gateway::get() else { return };
    let config = gateway.config();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let store = S3Store::open(config.clone()).unwrap();
            spawn(format!("putter {thread}"), move || {
                for number in (thread..5000).step_by(8) {
                    put(&store, &format!("many/{number:04}"), b"x");
                }
            })
            .unwrap()
        })
        .collect();
    for thread in threads {
        // The server writes a file for each: that takes its time on a busy disk.
        thread.join(&Until::within(Duration::from_secs(300))).unwrap();
    }
    let store = S3Store::open(config).unwrap();
    let folder = key("many");
    let (mut pages, mut found, mut mark) = (0, Vec::new(), None);
    loop {
        let page = store.list_page(Some(&folder), mark.as_ref(), &forever()).unwrap();
        pages += 1;
        found.extend(page.objects.into_iter().map(|object| object.key));
        mark = page.next;
        if mark.is_none() {
            break;
        }
    }
    assert_eq!(found, (0..5000).map(|number| key(&format!("many/{number:04}"))).collect::<Vec<_>>());
    assert!(pages >= 5, "{pages} pages");
    store.delete(&found, &forever()).unwrap();
    assert!(names(&store, None).is_empty());
}

#[test]
fn a_prefix_hides_what_is_beside_it() {
    let Some(gateway) = Gateway::get() else { return };
    let config = gateway.config();
    let whole = S3Config { prefix: None, ..config.clone() };
    let prefix = config.prefix.clone().unwrap();
    let (inner, outer) = (S3Store::open(config).unwrap(), S3Store::open(whole).unwrap());
    put(&inner, "a/x", b"inner");
    put(&outer, &format!("{prefix}-beside/x"), b"outer");
    assert_eq!(names(&inner, None), ["a/x"]);
    assert_eq!(get(&outer, &format!("{prefix}/a/x")).unwrap(), b"inner");
    assert_eq!(inner.describe(), format!("s3://{BUCKET}/{prefix} at {}", gateway.endpoint()));
}

#[test]
fn what_a_store_is_opened_with_is_checked() {
    let good = || S3Config::new("bucket", "eu-west-1");
    let refused = [
        S3Config { bucket: String::new(), ..good() },
        S3Config { bucket: "a/b".to_owned(), ..good() },
        S3Config { region: "eu west".to_owned(), ..good() },
        S3Config { endpoint: Some("ftp://host".to_owned()), ..good() },
        S3Config { endpoint: Some("host:9000".to_owned()), ..good() },
        S3Config { endpoint: Some("http://user@host".to_owned()), ..good() },
        S3Config { endpoint: Some("http://host/path".to_owned()), ..good() },
        S3Config { authorities_pem: Some(b"nothing".to_vec()), ..good() },
    ];
    for config in refused {
        let told = format!("{config:?}");
        let error = S3Store::open(config).unwrap_err();
        assert!(matches!(error.cause, StoreCause::Endpoint(_)) && !error.is_temporary(), "{told}: {error}");
    }
    S3Store::open(S3Config { encryption: Encryption::Kms(None), ..good() }).unwrap();
}

/// Writes a file of pieces that are all different, without holding it in memory.
fn large_file(path: &Path, length: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let piece = content(1024 * 1024);
    let mut at = 0;
    while at < length {
        let rest = usize::try_from(length - at).unwrap_or(usize::MAX).min(piece.len());
        file.write_all_at(&piece[..rest], at).unwrap();
        file.write_all_at(&at.to_le_bytes()[..rest.min(8)], at).unwrap();
        at += rest as u64;
    }
    file
}

#[test]
fn a_large_file_goes_up_and_comes_down_byte_for_byte() {
    let Some(gateway) = Gateway::get() else { return };
    let length_bytes = if is_long() { 1 << 30 } else { 100_000_007 };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (path, back) = (folder.path().join("file"), folder.path().join("back"));
    let file = large_file(&path, length_bytes);
    let chunks = hash_chunks(&file, length_bytes, &forever()).unwrap();
    let (store, key) = (gateway.store(), key("large"));
    let upload = FileUpload { key: &key, path: &path, length_bytes, chunks: &chunks };
    upload_files(&store, &[upload], &forever(), &mut |_| {}).unwrap();
    let wanted = FileFetch { key: &key, length_bytes, path: Some(&back) };
    fetch_files(&store, &[wanted], &forever(), &mut |_, came| {
        assert_eq!(came.unwrap().hash, ContentHash::of_chunks(&chunks));
        Ok(())
    })
    .unwrap();
    // Not by our own hash.
    let compared = std::process::Command::new("cmp").args([&path, &back]).status().unwrap();
    assert!(compared.success());
    store.delete(&[key], &forever()).unwrap();
}

/// The words that name an archive on the gateway, and what the program needs to get there.
fn archive(world: &World, endpoint: &str, words: &[&str]) -> std::process::Command {
    let all = [words, &["--s3-endpoint", endpoint, "--s3-path-style"]].concat();
    let mut command = world.command(&all);
    command.env_remove("AWS_PROFILE").env("HOME", world.path("home")).envs(Gateway::variables());
    // Proxies of the environment are none of ours.
    command.envs(["HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| (name, "http://127.0.0.1:1")));
    command
}

#[test]
fn a_bucket_sleeps_on_a_server_and_wakes_up_as_it_was() {
    let Some(gateway) = Gateway::get() else { return };
    let world = World::with_airports();
    let before = world.all_scans("d");
    let url = format!("s3://{BUCKET}/{}", gateway.config().prefix.unwrap());
    let run = |words: &[&str]| {
        let output = archive(&world, &gateway.endpoint(), words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let pause = [&["pause"], &TARGET[..], &["--archive", &url]].concat();
    assert!(run(&[&pause[..], &["--dry-run"]].concat()).contains("would archive"));
    let said = run(&[&pause[..], &["--evict", "--parallel", "3", "--rate-limit", "100MiB"]].concat());
    assert!(said.contains(&format!("in {url}")) && said.contains("the local data was removed"), "{said}");
    assert!(!world.path("d/buckets/travel/shard-0000").exists());
    run(&[&["resume"], &TARGET[..], &["--archive", &url]].concat());
    assert!(world.all_scans("d") == before);
}

#[test]
fn a_pause_that_the_server_refuses_says_why_in_one_line() {
    let Some(gateway) = Gateway::get() else { return };
    let world = World::with_airports();
    let words = [&["pause"], &TARGET[..], &["--archive", "s3://lab/refused"]].concat();
    let output =
        archive(&world, &gateway.endpoint(), &words).env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    crate::support::cli::assert_is_one_error(&said, &["SignatureDoesNotMatch", "check the credentials"]);
}

/// The names that a process that pauses into a bucket may give its threads.
fn is_ours(name: &str) -> bool {
    let ours = ["dormouse", "dm-signals", "dm-flush", "dm-compact", "dm-s3-watch", "dm-s3-names"];
    ours.contains(&name) || name.strip_prefix("dm-store-").is_some_and(|number| number.parse::<u8>().is_ok())
}

#[test]
fn only_our_own_threads_run_while_files_are_carried() {
    let Some(gateway) = Gateway::get() else { return };
    let world = World::with_airports();
    let proxy = Proxy::before(gateway.port());
    // So the upload stands still, with all its threads, until it is looked at; the test of the archive does not.
    proxy.plan(Fault::Stall, 0, |request| request.method == "PUT" && !request.path.contains("/probe-"));
    let url = format!("s3://{BUCKET}/{}", gateway.config().prefix.unwrap());
    let words = [&["pause"], &TARGET[..], &["--archive", &url, "--parallel", "3"]].concat();
    let mut child = archive(&world, &proxy.url(), &words)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("three uploads at the same time", || proxy.faulty() >= 3);
    let running = thread_names(child.id());
    assert!(running.iter().all(|name| is_ours(name)), "{running:?}");
    let expected =
        ["dm-s3-names", "dm-s3-watch", "dm-store-0", "dm-store-1", "dm-store-2"].map(str::to_owned);
    assert!(BTreeSet::from(expected).is_subset(&running), "{running:?}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(ended.code(), Some(130), "an interrupt ends a call that waits for the server");
    std::io::stderr().flush().unwrap();
}
