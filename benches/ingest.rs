//! A file to a durable, scanned index, beside `SQLite` doing the same: CPU-seconds, wall time and peak memory of both.
//!
//! One index over `name`, in the store `lsm` with two workers. `SQLite` keeps the documents in a table without row ids
//! and has an expression index on the same member; write-ahead log, `synchronous=NORMAL`, one prepared statement. Its
//! transactions have as many documents as there are in a round of our recovery points, and each is followed by a
//! checkpoint. Both end durable, with a scan of all entries in key order; then both take a tenth of the documents
//! again, with another name. Each side is a process of its own, in turns, and medians are shown.
//!
//! * `DORMOUSE_BENCH_CITIES`: a file of JSON lines with `id` and `name`, gzip if it ends in `.gz`. Without it, the
//!   airports.
//! * `DORMOUSE_BENCH_COPIES`: how many times its documents are there, under other ids (10)
//! * `DORMOUSE_BENCH_ROUNDS`: number of turns (5)
//! * `DORMOUSE_BENCH_PROFILE`: our side alone, once, for a profiler
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]
#![expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dormouse::bucket::{BucketConfig, BucketSpec, DataDir, IngestOptions};
use dormouse::index::{IndexDefinition, ScanQuery};
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use flate2::read::MultiGzDecoder;
use rusqlite::Connection;
use rustix::time::{ClockId, clock_gettime};

const AIRPORTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/airports.jsonl");
const SIDES: [&str; 2] = ["dormouse", "sqlite"];
const WORKS: [&str; 2] = ["load", "update"];
/// One of so many documents is updated.
const UPDATED_OF: usize = 10;

/// What a child process prints, a number a line.
#[derive(Clone, Copy)]
struct Figures {
    wall_s: f64,
    cpu_s: f64,
    peak_mib: f64,
    entries: f64,
    /// Documents in a round of recovery points.
    commit_documents: usize,
}

fn setting(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(place) = args.iter().position(|arg| arg == "--child") {
        let words = &args[place + 1..];
        return child(&words[0], &words[1], Path::new(&words[2]), words[3].parse().unwrap());
    }
    let is_test = args.iter().any(|arg| arg == "--test");
    let copies = if is_test { 1 } else { setting("DORMOUSE_BENCH_COPIES", 10) };
    let is_profile = env::var("DORMOUSE_BENCH_PROFILE").is_ok();
    let rounds = if is_test || is_profile { 1 } else { setting("DORMOUSE_BENCH_ROUNDS", 5) };
    let sides = if is_profile { &SIDES[..1] } else { &SIDES[..] };
    let inputs = tempfile::tempdir().unwrap();
    let documents = write_inputs(inputs.path(), copies);
    println!("{documents} documents, {rounds} rounds in turns, medians");
    let mut found = vec![vec![Vec::new(); WORKS.len()]; sides.len()];
    let mut commit_documents = documents;
    for _ in 0..rounds {
        for (side, found) in sides.iter().zip(&mut found) {
            let dir = tempfile::tempdir_in(inputs.path()).unwrap();
            for (work, found) in WORKS.iter().zip(found.iter_mut()) {
                let figures = run(side, work, dir.path(), commit_documents);
                assert!((figures.entries - documents as f64).abs() < 0.5, "{side} has other entries");
                if *side == SIDES[0] && *work == WORKS[0] {
                    commit_documents = figures.commit_documents;
                }
                found.push(figures);
            }
        }
    }
    println!("{commit_documents} documents a transaction");
    println!("| what | side | wall s | CPU-s | documents/s | peak memory MiB |\n|---|---|--:|--:|--:|--:|");
    for (place, work) in WORKS.iter().enumerate() {
        let changed = if place == 0 { documents } else { documents.div_ceil(UPDATED_OF) };
        for (side, found) in sides.iter().zip(&found) {
            let median = |figure: fn(&Figures) -> f64| {
                let mut values: Vec<f64> = found[place].iter().map(figure).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let wall_s = median(|figures| figures.wall_s);
            println!(
                "| {work} | {side} | {wall_s:.3} | {:.3} | {:.0} | {:.0} |",
                median(|figures| figures.cpu_s),
                changed as f64 / wall_s,
                median(|figures| figures.peak_mib),
            );
        }
    }
}

/// Writes what is loaded and what is updated. Gives back the number of documents.
fn write_inputs(dir: &Path, copies: usize) -> usize {
    let source = env::var("DORMOUSE_BENCH_CITIES").unwrap_or_else(|_| AIRPORTS.to_owned());
    let file = File::open(&source).unwrap();
    let mut text = String::new();
    if Path::new(&source).extension().is_some_and(|ending| ending == "gz") {
        MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    } else {
        BufReader::new(file).read_to_string(&mut text).unwrap();
    }
    let create = |name: &str| BufWriter::new(File::create(dir.join(name)).unwrap());
    let (mut load, mut update) = (create("load"), create("update"));
    let mut documents = 0;
    for copy in 0..copies {
        for line in text.lines() {
            let behind = line.strip_prefix("{\"id\":\"").unwrap();
            writeln!(load, "{{\"id\":\"{copy}{behind}").unwrap();
            if documents % UPDATED_OF == 0 {
                let renamed = behind.replacen("\"name\":\"", "\"name\":\"New ", 1);
                writeln!(update, "{{\"id\":\"{copy}{renamed}").unwrap();
            }
            documents += 1;
        }
    }
    load.into_inner().unwrap().sync_all().unwrap();
    update.into_inner().unwrap().sync_all().unwrap();
    documents
}

fn run(side: &str, work: &str, dir: &Path, commit_documents: usize) -> Figures {
    let mut child = Command::new(env::current_exe().unwrap());
    let out =
        child.args(["--child", side, work]).arg(dir).arg(commit_documents.to_string()).output().unwrap();
    assert!(out.status.success(), "{work} of {side}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let mut told = text.lines();
    let mut figure = || told.next().unwrap().parse().unwrap();
    let (wall_s, cpu_s, peak_mib, entries) = (figure(), figure(), figure(), figure());
    let commit_documents = told.next().unwrap().parse().unwrap();
    Figures { wall_s, cpu_s, peak_mib, entries, commit_documents }
}

fn child(side: &str, work: &str, dir: &Path, commit_documents: usize) {
    let began = Instant::now();
    let input = dir.parent().unwrap().join(work);
    let (entries, commit_documents) = match side {
        "dormouse" => dormouse(work, &input, dir),
        _ => (sqlite(work, &input, dir, commit_documents).unwrap(), commit_documents),
    };
    let wall_s = began.elapsed().as_secs_f64();
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{wall_s}\n{}\n{}\n{entries}\n{commit_documents}", cpu.as_secs_f64(), peak_kib / 1024.0);
}

/// Entries of the index, and documents in a round of recovery points.
fn dormouse(work: &str, input: &Path, dir: &Path) -> (u64, usize) {
    let data = DataDir::open_or_create(&dir.join("data")).unwrap();
    let (name, config) = ("bench".parse().unwrap(), BucketConfig::default());
    let index = IndexDefinition::parse("by_name=name").unwrap();
    let bucket = if work == WORKS[0] {
        let bucket = data.create_bucket(&name, BucketSpec::default(), &config).unwrap();
        bucket.ensure_index(&index, false).unwrap();
        bucket
    } else {
        data.open_bucket(&name, &config).unwrap()
    };
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: false };
    let inputs = vec![Input::Path(input.to_owned())];
    let report = bucket.ingest(inputs, &options, &Until::default(), &mut |_| {}).unwrap();
    let shards = bucket.status().shards;
    let commits: u64 = shards.iter().map(|shard| shard.commits).sum();
    let rounds = usize::try_from(commits).unwrap().div_ceil(shards.len()).max(1);
    let scan = bucket.query(index.name(), &ScanQuery::default(), &Until::default()).unwrap();
    let entries = scan.inspect(|entry| assert!(!entry.as_ref().unwrap().id.is_empty())).count() as u64;
    bucket.close(&Until::default()).unwrap();
    (entries, usize::try_from(report.documents).unwrap().div_ceil(rounds))
}

/// Entries of the index.
fn sqlite(work: &str, input: &Path, dir: &Path, commit_documents: usize) -> rusqlite::Result<u64> {
    let db = Connection::open(dir.join("db"))?;
    // As much memory as our shards may have for what is uncommitted and for their cache.
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-196608;",
    )?;
    if work == WORKS[0] {
        db.execute_batch(
            "CREATE TABLE documents (id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
             CREATE INDEX by_name ON documents (json_extract(document, '$.name'));",
        )?;
    }
    let mut lines = BufReader::with_capacity(256 * 1024, File::open(input).unwrap());
    let (mut line, mut is_over) = (String::new(), false);
    let mut upsert = db.prepare(
        "INSERT INTO documents VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET document = excluded.document",
    )?;
    while !is_over {
        let transaction = db.unchecked_transaction()?;
        for _ in 0..commit_documents {
            line.clear();
            is_over = lines.read_line(&mut line).unwrap() == 0;
            if is_over {
                break;
            }
            let text = line.trim_end();
            upsert.execute((id_of(text), text))?;
        }
        transaction.commit()?;
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    let mut scan = db.prepare(
        "SELECT json_extract(document, '$.name'), id FROM documents INDEXED BY by_name
         ORDER BY json_extract(document, '$.name'), id",
    )?;
    let mut rows = scan.query([])?;
    let mut entries = 0;
    while let Some(row) = rows.next()? {
        let (name, id) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        assert!(!id.is_empty() && name.len() < 1 << 20);
        entries += 1;
    }
    Ok(entries)
}

/// The id of a document that was checked by nobody: `SQLite` checks it when it evaluates the index.
fn id_of(text: &str) -> &str {
    let id = text.strip_prefix("{\"id\":\"").and_then(|behind| behind.split_once('"')).map(|(id, _)| id);
    id.unwrap()
}
