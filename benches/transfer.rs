//! One large file to an S3 server and back: CPU-seconds a GiB, peak memory and wall time of this library and of the
//! clients `s5cmd`, `rclone` and `aws` where they are on the path, in turns.
//!
//! A developer starts a server (`juicefs gateway` is the quickest), makes a bucket in it, and gives
//!
//! * `DORMOUSE_BENCH_ENDPOINT`: its URL, such as `http://127.0.0.1:9101`
//! * `DORMOUSE_BENCH_BUCKET`: the bucket
//! * `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`: what the server knows
//! * `DORMOUSE_BENCH_CA`: for `https`, a file with the authority of the server's certificate
//! * `DORMOUSE_BENCH_MIB`, `DORMOUSE_BENCH_ROUNDS`: size of the file (1024) and number of turns (5)
//!
//! Without an endpoint the library alone is measured, with a folder. GNU `time` has to be installed: each run is a
//! process of its own. Ours hashes the file before it uploads it, and again what it receives; the CPU time of the
//! first hash is shown apart.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse::objstore::{
    ChunkHash, ContentHash, CredentialSource, Credentials, FileFetch, FileStore, FileUpload, ObjectKey,
    ObjectStore, S3Config, S3Store, fetch_files, hash_chunks, upload_files,
};
use dormouse::thread::Until;
use rustix::time::{ClockId, clock_gettime};

const PEERS: [&str; 3] = ["s5cmd", "rclone", "aws"];
/// Calls at the same time, of each client.
const PARALLEL: usize = 8;

fn setting(name: &str) -> Option<String> {
    env::var(name).ok()
}

fn number(name: &str, default: u64) -> u64 {
    setting(name).map_or(default, |text| text.parse().unwrap())
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(place) = args.iter().position(|arg| arg == "--child") {
        return child(&args[place + 1], Path::new(&args[place + 2]));
    }
    let is_test = args.iter().any(|arg| arg == "--test");
    let dir = tempfile::tempdir().unwrap();
    let mib = if is_test { 9 } else { number("DORMOUSE_BENCH_MIB", 1024) };
    let rounds = if is_test { 1 } else { number("DORMOUSE_BENCH_ROUNDS", 5) };
    write_noise(&dir.path().join("file"), mib);
    let has_peers = setting("DORMOUSE_BENCH_ENDPOINT").is_some();
    let is_there = |peer: &&str| has_peers && Command::new(peer).output().is_ok();
    let subjects: Vec<&str> = std::iter::once("dormouse").chain(PEERS.into_iter().filter(is_there)).collect();
    println!("{mib} MiB, {rounds} rounds in turns, medians; {PARALLEL} calls at the same time");
    println!(
        "| client | way | wall s | CPU-s a GiB | of them the first hash | peak memory MiB |\n|---|---|--:|--:|--:|--:|"
    );
    for way in ["up", "down"] {
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
                "| {subject} | {way} | {:.2} | {cpu:.2} | {hash:.2} | {:.1} |",
                median(0),
                median(2) / 1024.0
            );
        }
    }
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
        _ => {
            command.args(["aws", "--endpoint-url", &endpoint, "s3", "cp", "--only-show-errors"]);
            command.args(certificates.iter().flat_map(|ca| ["--ca-bundle", ca]));
            command.args(ends(path("s3://")));
        }
    }
}

fn open(dir: &Path) -> Box<dyn ObjectStore> {
    let Some(endpoint) = setting("DORMOUSE_BENCH_ENDPOINT") else {
        return Box::new(FileStore::open(&dir.join("store")).unwrap());
    };
    let given = Credentials {
        access_key_id: setting("AWS_ACCESS_KEY_ID").unwrap(),
        secret_access_key: setting("AWS_SECRET_ACCESS_KEY").unwrap(),
        session_token: None,
        expires: None,
    };
    let config = S3Config {
        endpoint: Some(endpoint),
        path_style: true,
        parallel: PARALLEL,
        authorities_pem: setting("DORMOUSE_BENCH_CA").map(|path| fs::read(path).unwrap()),
        credentials: vec![CredentialSource::Given(given)],
        ..S3Config::new(setting("DORMOUSE_BENCH_BUCKET").unwrap(), "us-east-1")
    };
    Box::new(S3Store::open(config).unwrap())
}

fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap()).as_secs_f64()
}

fn child(way: &str, dir: &Path) {
    let (until, key) = (Until::default(), ObjectKey::new("bench/dormouse").unwrap());
    let path = dir.join("file");
    let file = File::open(&path).unwrap();
    let length_bytes = file.metadata().unwrap().len();
    let hash_path = dir.join("hash");
    let store = open(dir);
    if way == "up" {
        let chunks: Vec<ChunkHash> = hash_chunks(&file, length_bytes, &until).unwrap();
        println!("hash {}", cpu_seconds());
        fs::write(hash_path, ContentHash::of_chunks(&chunks).to_string()).unwrap();
        // Another content than the one that is there, as far as the store knows.
        store.delete(std::slice::from_ref(&key), &until).unwrap();
        let upload = FileUpload { key: &key, path: &path, length_bytes, chunks: &chunks };
        upload_files(store.as_ref(), &[upload], &until, &mut |_| {}).unwrap();
    } else {
        let back = dir.join("back");
        let fetch = FileFetch { key: &key, length_bytes, path: Some(&back) };
        let expected: ContentHash = fs::read_to_string(hash_path).unwrap().parse().unwrap();
        let mut check = |_, content: Result<dormouse::objstore::Content, _>| {
            assert_eq!(content.unwrap().hash, expected);
            Ok(())
        };
        fetch_files(store.as_ref(), &[fetch], &until, &mut check).unwrap();
    }
}
