//! `verify`: read an archive back, and say what is wrong with it.

use anyhow::{Context, bail};
use clap::Args;
use dormouse::objstore::ObjectStore;
use dormouse::pause::{BucketPart, Manifest, ManifestError, PauseId, list_pauses, verify};
use dormouse::thread::Until;
use serde::Serialize;

use super::WordsOff;
use super::args::{Format, PartArgs};
use super::output::{files, printable};
use super::session::Session;

/// Read an archive back and check every byte
///
/// Every object that a pause names is read and compared with its hash. Each bad one is listed, and the status is 1
/// then.
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse verify --archive /var/archive
  dormouse verify --archive s3://archive/dormouse --bucket travel --format json")]
pub(super) struct VerifyArgs {
    /// Only this pause of the bucket [default: all]
    #[arg(long, value_name = "ID")]
    pause: Option<PauseId>,
    #[command(flatten)]
    part: PartArgs,
}

/// What was read, and what is wrong.
#[derive(Default, Serialize)]
struct Report {
    pauses: usize,
    files: usize,
    bytes: u64,
    bad: Vec<String>,
}

pub(super) fn run(args: &VerifyArgs, session: &mut Session) -> anyhow::Result<()> {
    if args.pause.is_some() && args.part.bucket.is_none() {
        return Err(WordsOff("--pause names a pause of a bucket: give --bucket too".to_owned()).into());
    }
    let mut report = Report::default();
    let checked = check(args, session, &mut report).context("cannot verify the archive");
    if report.bad.is_empty() {
        checked?;
        return tell(&report, session);
    }
    // Also where not all could be read.
    let told = tell(&report, session);
    checked?;
    told?;
    let (bad, archive) = (report.bad.len(), &args.part.archive.archive);
    bail!(
        "{bad} objects or manifests in {archive} are bad; remove them from there, and pause their buckets again while they \
         are online: what is missing is uploaded then"
    )
}

fn tell(report: &Report, session: &mut Session) -> anyhow::Result<()> {
    match session.format {
        Format::Json => session.out.json(report)?,
        Format::Table => {
            for bad in &report.bad {
                session.out.line(printable(bad))?;
            }
            let read = files(report.files, report.bytes);
            session.out.line(format!("{} pauses with {read}: {} bad", report.pauses, report.bad.len()))?;
        }
    }
    Ok(())
}

fn check(args: &VerifyArgs, session: &Session, report: &mut Report) -> anyhow::Result<()> {
    let store = args.part.archive.open_existing()?;
    let (store, until) = (store.as_ref(), &session.until);
    if let (Some(pause), Some(bucket)) = (args.pause, &args.part.bucket) {
        let part = BucketPart::new(bucket.as_str(), args.part.member.unwrap_or_default());
        return check_pause(store, &part, pause, until, report);
    }
    for part in args.part.parts(store, until)? {
        let pauses = match list_pauses(store, &part, until) {
            Ok(pauses) => pauses,
            Err(error @ ManifestError::TwoOfOneGeneration { .. }) => {
                report.bad.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if pauses.is_empty() && args.part.bucket.is_some() {
            bail!("bucket {part} has no pause in {}; `archive list` shows what is there", store.describe());
        }
        for pause in pauses {
            check_pause(store, &part, pause, until, report)?;
        }
    }
    Ok(())
}

fn check_pause(
    store: &dyn ObjectStore,
    part: &BucketPart,
    pause: PauseId,
    until: &Until,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.pauses += 1;
    match Manifest::read(store, part, pause, until) {
        Ok(manifest) => {
            report.files += manifest.files.len();
            report.bytes += manifest.bytes();
            let bad = verify(&manifest, store, until)?;
            report.bad.extend(bad.iter().map(|bad| format!("bucket {part}, pause {pause}: {bad}")));
        }
        Err(
            error @ (ManifestError::Damaged { .. }
            | ManifestError::Invalid { .. }
            | ManifestError::TooLarge { .. }),
        ) => {
            report.bad.push(error.to_string());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
