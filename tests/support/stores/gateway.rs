//! A real S3 server: `juicefs gateway`, which is `MinIO`'s S3 over a folder and `SQLite`.
//!
//! It is installed beside the build by `.ci/run`, or found on the path. Where it is neither, tests that need it say
//! so in one line and are over; with `DORMOUSE_SERVERS=required` that is a failure, as it is in CI.
//!
//! A developer who wants to see another server tested names it in `DORMOUSE_S3_SERVER`, such as `127.0.0.1:9105`: it
//! has to know [`ACCESS_KEY`] and [`SECRET_KEY`], and to have the bucket [`BUCKET`].

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use dormouse::objstore::{CredentialSource, Credentials, ObjectStore, S3Config, S3Store};

use crate::support::{eventually, key, skip_without, watchdog};

pub(crate) const BUCKET: &str = "lab";
const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const SECRET_KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// One server for all tests of the process. It ends, and its folder goes, when its standard input closes, which is
/// when the process ends, however it ends.
pub(crate) struct Gateway {
    port: u16,
    _stdin: Option<ChildStdin>,
}

const SCRIPT: &str = r#"
"$1" format --quiet --storage file --bucket "$2/objects/" --trash-days 0 "sqlite3://$2/meta.db" lab >"$2/log" 2>&1 || exit 1
"$1" gateway "sqlite3://$2/meta.db" "127.0.0.1:$3" --keep-etag --object-meta --no-banner --no-usage-report \
    --cache-size 0 --backup-meta 0 --log "$2/gateway.log" --cache-dir "$2/cache" >>"$2/log" 2>&1 </dev/null &
server=$!
read -r _
kill -9 $server
rm -rf "$2"
"#;

fn program() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("servers").join("bin/juicefs");
    let on_path = env::var_os("PATH").unwrap_or_default();
    let mut places =
        std::iter::once(beside).chain(env::split_paths(&on_path).map(|folder| folder.join("juicefs")));
    places.find(|program| program.is_file())
}

fn start() -> Option<Gateway> {
    if let Ok(named) = env::var("DORMOUSE_S3_SERVER") {
        let (_, port) = named.rsplit_once(':').unwrap();
        return Some(Gateway { port: port.parse().unwrap(), _stdin: None });
    }
    let program = program()?;
    // Somebody else may take the port before the server does.
    let gateway = (0..3).find_map(|_| start_on_a_free_port(&program));
    assert!(gateway.is_some(), "the gateway does not start: see the logs in the folders beside the tests");
    gateway
}

/// Nothing where it ended.
fn start_on_a_free_port(program: &Path) -> Option<Gateway> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("sh")
        .args(["-c", SCRIPT, "gateway"])
        .args([program.as_os_str(), folder.as_os_str()])
        .arg(port.to_string())
        .env("MINIO_ROOT_USER", ACCESS_KEY)
        .env("MINIO_ROOT_PASSWORD", SECRET_KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdin = server.stdin.take();
    let gateway = Gateway { port, _stdin: stdin };
    let store = gateway.store();
    let mut has_ended = false;
    eventually("the gateway answers", || {
        has_ended = server.try_wait().unwrap().is_some();
        has_ended || store.list(None, &watchdog()).is_ok()
    });
    (!has_ended).then_some(gateway)
}

impl Gateway {
    /// The server; `None`, said in one line, where it is not installed.
    pub(crate) fn get() -> Option<&'static Self> {
        static GATEWAY: OnceLock<Option<Gateway>> = OnceLock::new();
        let gateway = GATEWAY.get_or_init(start).as_ref();
        if gateway.is_none() {
            skip_without("juicefs");
        }
        gateway
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What a store in a folder of its own is opened with.
    pub(crate) fn config(&self) -> S3Config {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        config(&self.endpoint(), &format!("test-{}-{number}", std::process::id()))
    }

    /// A store in a folder of its own.
    pub(crate) fn store(&self) -> S3Store {
        S3Store::open(self.config()).unwrap()
    }

    /// The variables that the program takes its credentials from.
    pub(crate) fn variables() -> [(&'static str, &'static str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
    }
}

/// What a store below `prefix` of the server with the URL `endpoint` is opened with.
pub(crate) fn config(endpoint: &str, prefix: &str) -> S3Config {
    S3Config {
        prefix: Some(key(prefix)),
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
        credentials: vec![given(SECRET_KEY)],
        parallel: 4,
        ..S3Config::new(BUCKET, "us-east-1")
    }
}

pub(crate) fn given(secret: &str) -> CredentialSource {
    CredentialSource::Given(Credentials {
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: secret.to_owned(),
        session_token: None,
        expires: None,
    })
}
