//! `verify`: read an archive back, and say what is wrong with it.

use anyhow::{Context, bail};
use clap::Args;
use dormouse::bucket::BucketName;
use dormouse::pause::{Manifest, ManifestError, PauseId, list_buckets, list_pauses, verify};
use serde::Serialize;

use super::WordsOff;
use super::args::{ArchiveArgs, Format};
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
    #[command(flatten)]
    archive: ArchiveArgs,
    /// Only this bucket [default: all]
    #[arg(long, value_name = "NAME")]
    bucket: Option<BucketName>,
    /// Only this pause of the bucket [default: all]
    #[arg(long, value_name = "ID")]
    pause: Option<PauseId>,
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
    if args.pause.is_some() && args.bucket.is_none() {
        return Err(WordsOff("--pause names a pause of a bucket: give --bucket too".to_owned()).into());
    }
    let report = check(args, session).context("cannot verify the archive")?;
    match session.format {
        Format::Json => session.out.json(&report)?,
        Format::Table => {
            for bad in &report.bad {
                session.out.line(printable(bad))?;
            }
            let read = files(report.files, report.bytes);
            session.out.line(format!("{} pauses with {read}: {} bad", report.pauses, report.bad.len()))?;
        }
    }
    if !report.bad.is_empty() {
        let (bad, archive) = (report.bad.len(), &args.archive.archive);
        bail!(
            "{bad} objects or manifests in {archive} are bad; pause their buckets again while they are online"
        );
    }
    Ok(())
}

fn check(args: &VerifyArgs, session: &Session) -> anyhow::Result<Report> {
    let store = args.archive.open_existing()?;
    let (store, until) = (store.as_ref(), &session.until);
    let buckets = match &args.bucket {
        Some(bucket) => vec![bucket.to_string()],
        None => list_buckets(store, until)?,
    };
    let mut report = Report::default();
    for bucket in buckets {
        let pauses = match args.pause {
            Some(pause) => vec![pause],
            None => list_pauses(store, &bucket, until)?,
        };
        if pauses.is_empty() {
            bail!("bucket {bucket} has no pause in {}; `archive list` shows what is there", store.describe());
        }
        for pause in pauses {
            report.pauses += 1;
            let manifest = match Manifest::read(store, &bucket, pause, until) {
                Ok(manifest) => manifest,
                Err(error @ (ManifestError::Damaged { .. } | ManifestError::Invalid { .. })) => {
                    report.bad.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            report.files += manifest.files.len();
            report.bytes += manifest.bytes();
            let bad = verify(&manifest, store, until)?;
            report.bad.extend(bad.iter().map(|bad| format!("bucket {bucket}, pause {pause}: {bad}")));
        }
    }
    Ok(report)
}
