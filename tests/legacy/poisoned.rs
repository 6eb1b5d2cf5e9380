//! An environment in which every word is a trap, and servers that go away.

use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse::bucket::DataDir;
use dormouse::objstore::{
    Body, CredentialSource, Credentials, FileStore, ObjectKey, ObjectStore, S3Config, S3Store,
};
use dormouse::source::Input;
use rustix::fs::inotify;
use rustix::io::Errno;
use signal_hook::consts::SIGPIPE;
use tempfile::TempDir;

use crate::process::eventually;
use crate::service::{away_and_back, config, ingest, make, minutes, numbers, scan, write_documents};

/// Where the variables of [`prepare`] lead: a folder that is watched, and a server that nobody may come to.
const TRAP: &str = "DORMOUSE_TEST_TRAP";

/// Variables that hold a URL, and those that hold a path.
const URLS: [&str; 9] = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
];
const PATHS: [&str; 9] = [
    "HOME",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSLKEYLOGFILE",
];
const WORDS: [(&str, &str); 9] = [
    ("AWS_ACCESS_KEY_ID", "trapped"),
    ("AWS_SECRET_ACCESS_KEY", "trapped"),
    ("AWS_SESSION_TOKEN", "trapped"),
    ("AWS_PROFILE", "trapped"),
    ("AWS_REGION", "trapped"),
    ("DORMOUSE_PASSWORD", "trapped"),
    ("RUST_LOG", "trace"),
    ("RAYON_NUM_THREADS", "7"),
    ("TZ", "Trap/Trap"),
];

pub(crate) fn prepare(command: &mut Command) {
    let folder = TempDir::new().unwrap().keep();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    // Files that whoever follows a variable finds and opens.
    let path = |name: &str| folder.join(name);
    for name in PATHS {
        match name {
            "HOME" | "TMPDIR" | "XDG_CONFIG_HOME" | "SSL_CERT_DIR" => {
                std::fs::create_dir(path(name)).unwrap();
            }
            _ => std::fs::write(path(name), "trapped").unwrap(),
        }
        command.env(name, path(name));
    }
    std::fs::create_dir(path("HOME").join(".aws")).unwrap();
    command.envs(URLS.map(|name| (name, &url))).envs(WORDS);
    command.env_remove("no_proxy").env_remove("NO_PROXY");
    command.env(TRAP, &folder).current_dir("/");
}

/// Sees whatever is done in a folder and the folders in it.
struct Trap(rustix::fd::OwnedFd);

impl Trap {
    fn set(folder: &Path) -> Self {
        let trap = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            folders.extend(
                next.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()),
            );
            inotify::add_watch(&trap, &next, inotify::WatchFlags::ALL_EVENTS).unwrap();
        }
        let set = Self(trap);
        // What it took to set it.
        set.sprung();
        set
    }

    /// What was touched since the last look.
    fn sprung(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut sprung = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => sprung.push(format!("{:?} {:?}", event.file_name(), event.events())),
                Err(Errno::AGAIN) => return sprung,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A store whose server is this one.
fn store_at(server: &TcpListener) -> S3Store {
    let credentials = Credentials {
        access_key_id: "handed-in".to_owned(),
        secret_access_key: "secret".to_owned(),
        session_token: None,
        expires: None,
    };
    let config = S3Config {
        endpoint: Some(format!("http://{}", server.local_addr().unwrap())),
        path_style: true,
        credentials: vec![CredentialSource::Given(credentials)],
        ..S3Config::new("bucket", "region")
    };
    S3Store::open(config).unwrap()
}

/// Reads the head of a request.
fn head_of(client: &TcpStream) -> String {
    let mut lines = BufReader::new(client).lines().map(Result::unwrap);
    lines.by_ref().take_while(|line| !line.is_empty()).map(|line| line + "\n").collect()
}

/// Asks a store for an object. Gives the head of what its server got.
fn ask(server: &TcpListener, store: &S3Store) -> String {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let (mut client, _) = server.accept().unwrap();
            let head = head_of(&client);
            client.write_all(b"HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 5\r\n\r\nhello").unwrap();
            head
        });
        let mut content = Vec::new();
        store.get(&"object".parse::<ObjectKey>().unwrap(), &mut content, &minutes(1)).unwrap();
        assert_eq!(content, b"hello");
        asked.join().unwrap()
    })
}

pub(crate) fn environment() {
    let folder = std::env::var_os(TRAP).unwrap();
    let folder = Path::new(&folder);
    let root = tempfile::tempdir_in("/tmp").unwrap();
    let proxy = std::env::var("HTTP_PROXY").unwrap();
    let nobody = TcpListener::bind(proxy.trim_start_matches("http://")).unwrap();
    nobody.set_nonblocking(true).unwrap();
    let trap = Trap::set(folder);

    let (journal, data) = (Arc::default(), DataDir::open_or_create(&root.path().join("data")).unwrap());
    let (archive, documents) =
        (FileStore::open(&root.path().join("archive")).unwrap(), root.path().join("documents"));
    write_documents(&documents, 0..1000);
    let config = config(&journal);
    for store in crate::service::STORES {
        let name = store.to_string();
        let bucket = make(&data, &name, store, &config);
        ingest(&bucket, Input::Path(documents.clone())).unwrap();
        let bucket = away_and_back(bucket, &data, &archive, &config);
        assert_eq!(scan(&bucket), numbers(0..1000));
        bucket.close(&minutes(1)).unwrap();
    }
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let head = ask(&server, &store_at(&server));
    assert!(head.starts_with("GET /bucket/object") && head.contains("handed-in/"), "{head}");
    assert!(!head.contains("trapped") && head.contains("/region/"), "{head}");

    assert_eq!(trap.sprung(), Vec::<String>::new(), "the environment was followed");
    assert!(nobody.accept().is_err(), "the environment's server was called");
    // Traps that catch nothing would prove nothing.
    std::fs::read(folder.join("AWS_CONFIG_FILE")).unwrap();
    assert!(!trap.sprung().is_empty());
    std::fs::remove_dir_all(folder).unwrap();
}

pub(crate) fn broken_pipe() {
    // In place of what the Rust runtime does with the signal: a service that has no such runtime is ended by it.
    let came = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGPIPE, Arc::clone(&came)).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = store_at(&server);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3 {
                let (mut client, _) = server.accept().unwrap();
                let mut some = [0; 1024];
                assert!(client.read(&mut some).unwrap() > 0);
            }
        });
        let content = vec![0; 32 * 1024 * 1024];
        for _ in 0..3 {
            let key: ObjectKey = "object".parse().unwrap();
            assert!(store.put(&key, Body::Bytes(&content), &minutes(1)).is_err());
        }
    });
    assert!(!came.load(Ordering::SeqCst), "the signal came");
    signal_hook::low_level::raise(SIGPIPE).unwrap();
    eventually("a signal that was raised", || came.load(Ordering::SeqCst));
}
