//! `demo`: everything once, with documents that are part of the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use dormouse::bucket::{
    Bucket, BucketName, BucketSpec, DataDir, IngestOptions, IngestReport, PauseOptions, PauseReport,
    ResumeOptions, ResumeReport,
};
use dormouse::index::{IndexDefinition, KeyRange};
use dormouse::objstore::FileStore;
use dormouse::source::{Input, ReplayFormat};
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::json;

use super::args::Format;
use super::output::{files, time};
use super::session::{Session, close_after};

/// 7184 airports, one document a line.
const DOCUMENTS: &[u8] = include_bytes!("../../tests/data/airports.jsonl");
const BUCKET: &str = "travel";
const INDEXES: [&str; 3] = ["by_country=country,city", "by_tz=tz", "by_alt=altitude"];

/// Index, scan, pause and resume a bucket of airports, and compare
///
/// It brings its documents along and leaves nothing behind, unless --work-dir says where.
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse demo
  dormouse demo --work-dir /tmp/look-into-it")]
pub(super) struct DemoArgs {
    /// Work in this folder, which must be empty or not there, and leave everything in it [default: a temporary
    /// folder that is removed afterwards]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

/// What the demo did.
#[derive(Serialize)]
struct DemoReport {
    ingest: IngestReport,
    pause: PauseReport,
    resume: ResumeReport,
    compared_entries: u64,
    equal: bool,
}

pub(super) fn run(args: &DemoArgs, session: &mut Session) -> anyhow::Result<()> {
    let began = Instant::now();
    let report = if let Some(folder) = &args.work_dir {
        let mut entries = fs::read_dir(folder).into_iter().flatten();
        let is_free = entries.next().is_none() && !folder.is_file();
        ensure!(is_free, "cannot work in {}: it is not empty; give another folder", folder.display());
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        demonstrate(folder, session)?
    } else {
        let folder = tempfile::Builder::new().prefix("dormouse-demo-").tempdir();
        demonstrate(folder.context("cannot make a temporary folder")?.path(), session)?
    };
    match session.format {
        Format::Json => session.out.json(&report)?,
        Format::Table => {
            let took = time(elapsed_ms(began));
            session.step("done", &format!("all of it took {took}, in one process, without a server"))?;
        }
    }
    Ok(())
}

fn demonstrate(folder: &Path, session: &mut Session) -> anyhow::Result<DemoReport> {
    let definitions: Vec<IndexDefinition> =
        INDEXES.iter().map(|text| IndexDefinition::parse(text)).collect::<Result<_, _>>()?;
    let name: BucketName = BUCKET.parse()?;
    let documents = folder.join("airports.jsonl");
    fs::write(&documents, DOCUMENTS).with_context(|| format!("cannot write {}", documents.display()))?;
    let config = session.bucket_config();
    let store = FileStore::open(&folder.join("archive"))?;

    let first = DataDir::open_or_create(&folder.join("first"))?;
    let bucket = first.create_bucket(&name, BucketSpec::default(), &config)?;
    let worked = fill_and_pause(&bucket, &definitions, documents, &store, session);
    let (ingest, pause) = close_after(bucket, worked)?;

    let second = DataDir::open_or_create(&folder.join("second"))?;
    let resume =
        second.resume(&name, &store, ResumeOptions::default(), &config, &session.until, &mut |_| {})?;
    let all = files(resume.downloaded_files, resume.downloaded_bytes);
    session.step("resume", &format!("{all} checked and restored elsewhere in {}", time(resume.total_ms)))?;

    let original = first.open_bucket(&name, &config)?;
    let worked = second.open_bucket(&name, &config).map_err(anyhow::Error::from).and_then(|restored| {
        let compared = compare_all(&original, &restored, &definitions, session);
        close_after(restored, compared)
    });
    let compared_entries = close_after(original, worked)?;
    Ok(DemoReport { ingest, pause, resume, compared_entries, equal: true })
}

fn fill_and_pause(
    bucket: &Bucket,
    definitions: &[IndexDefinition],
    documents: PathBuf,
    store: &FileStore,
    session: &mut Session,
) -> anyhow::Result<(IngestReport, PauseReport)> {
    session.step("bucket", &format!("{} in 4 shards, indexes {}", bucket.name(), INDEXES.join(" ")))?;
    bucket.ensure_indexes(definitions, false)?;
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: false };
    let ingest = bucket.ingest(vec![Input::Path(documents)], &options, &session.until, &mut |_| {})?;
    let size = HumanBytes(DOCUMENTS.len() as u64);
    let took = time(ingest.total_ms);
    session
        .step("ingest", &format!("{} documents, {size}, indexed and durable in {took}", ingest.documents))?;
    for definition in definitions {
        show_scan(bucket, definition, &KeyRange::default(), "everything", session)?;
    }
    let iceland = || KeyRange::parse_bound("[\"Iceland\"]").map(Some);
    let range = KeyRange { from: iceland()?, to: iceland()?, ..KeyRange::default() };
    if let Some(by_country) = definitions.first() {
        show_scan(bucket, by_country, &range, "[\"Iceland\"]", session)?;
    }
    let pause = bucket.pause(store, PauseOptions::default(), &session.until, &mut |_| {})?;
    let all = files(pause.uploaded_files, pause.uploaded_bytes);
    let (took, locked) = (time(pause.total_ms), time(pause.locked_ms));
    session.step("pause", &format!("{all} archived in {took}, shards locked for {locked}, scans go on"))?;
    Ok((ingest, pause))
}

/// Counts the entries of a range and shows the first of them.
fn show_scan(
    bucket: &Bucket,
    definition: &IndexDefinition,
    range: &KeyRange,
    what: &str,
    session: &mut Session,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut scan = bucket.scan(definition.name(), range, false, &session.until)?;
    let Some(first) = scan.next().transpose()? else { return Ok(()) };
    let mut entries = 1_u64;
    for entry in scan {
        entry?;
        entries += 1;
    }
    let took = time(elapsed_ms(began));
    let key = json!(first.key);
    let name = definition.name();
    session.step("scan", &format!("{name}, {what}: {entries} entries in {took}, from {key} on"))
}

/// Compares all scans of both buckets entry by entry, and gives the number of entries.
fn compare_all(
    original: &Bucket,
    restored: &Bucket,
    definitions: &[IndexDefinition],
    session: &mut Session,
) -> anyhow::Result<u64> {
    let range = KeyRange::default();
    let mut compared = 0;
    for name in definitions.iter().map(IndexDefinition::name) {
        let mut there = restored.scan(name, &range, false, &session.until)?;
        for entry in original.scan(name, &range, false, &session.until)? {
            let (entry, other) = (entry?, there.next().transpose()?);
            let is_equal = other.as_ref() == Some(&entry);
            ensure!(is_equal, "the resumed bucket differs in index {name}: {entry:?} became {other:?}");
            compared += 1;
        }
        let surplus = there.next().transpose()?;
        ensure!(surplus.is_none(), "the resumed bucket differs in index {name}: {surplus:?} is new");
    }
    session
        .step("compare", &format!("{compared} entries of {} indexes are equal in both", definitions.len()))?;
    Ok(compared)
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Session {
    /// Shows a step at once, where the result is text.
    fn step(&mut self, what: &str, text: &str) -> anyhow::Result<()> {
        if self.format == Format::Table {
            self.out.line(format_args!("{what:9} {text}"))?;
            self.out.flush()?;
        }
        Ok(())
    }
}
