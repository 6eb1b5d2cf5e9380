//! `pause`: put a bucket to sleep in an archive.

use anyhow::Context;
use clap::Args;
use dormouse::bucket::{Bucket, BucketName, DataDir, PauseOptions, PauseReport};
use dormouse::objstore::ArchiveUrl;

use super::args::{ArchiveArgs, BucketArgs, DryRunArgs, Format, TransferArgs};
use super::output::{files, time};
use super::progress::Progress;
use super::session::{Session, close_after};

/// Put a bucket to sleep in an archive
///
/// Only what the archive does not have is uploaded. Until it is resumed the bucket takes no changes; it can still be
/// scanned, unless its local data was removed. A pause that was interrupted goes on where it was; one whose end nobody
/// knows is found out first. A folder has to have room for what is new before any of it is uploaded; with `--compress`
/// what counts is what it is compressed to, and where the disk has no room for the files as they are they are
/// compressed once more beforehand, to know. `--dry-run` fails where the pause would, unless only a write can tell.
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse pause --data-dir d --bucket travel --archive /var/archive --dry-run
  dormouse pause --data-dir d --bucket travel --archive file:///var/archive --evict --format json
  dormouse pause --data-dir d --bucket travel --archive s3://archives/travel --s3-region eu-west-1 --compress")]
pub(super) struct PauseArgs {
    #[command(flatten)]
    target: BucketArgs,
    #[command(flatten)]
    only: DryRunArgs,
    /// Remove the local data, once the archive was read back and checked, also of a bucket that is paused there already
    /// [default: off]
    #[arg(long)]
    evict: bool,
    /// Compress files where that saves a tenth and more: less room in the archive, more work [default: off]
    #[arg(long)]
    compress: bool,
    #[command(flatten)]
    into: ArchiveArgs,
}

pub(super) fn run(args: &PauseArgs, session: &mut Session) -> anyhow::Result<()> {
    let data_dir = DataDir::open(&args.target.data_dir)?;
    let bucket = data_dir.open_bucket(&args.target.bucket, &session.bucket_config())?;
    let into = (&args.into.archive, &args.into.how);
    let options = PauseOptions { evict: args.evict, compress: args.compress };
    let worked = if args.only.dry_run {
        plan(&bucket, &args.target.bucket, into, options, session)
    } else {
        pause(&bucket, &args.target.bucket, into, options, session)
    };
    let report = close_after(bucket, worked)?;
    match session.format {
        Format::Json => session.out.json(&report)?,
        Format::Table => {
            let text = describe(&report, &args.target.bucket, &args.into.archive, args.evict);
            session.out.line(text)?;
        }
    }
    Ok(())
}

/// Pauses a bucket into an archive, which is made where there is none.
pub(super) fn pause(
    bucket: &Bucket,
    name: &BucketName,
    (archive, how): (&ArchiveUrl, &TransferArgs),
    options: PauseOptions,
    session: &Session,
) -> anyhow::Result<PauseReport> {
    let pausing = || format!("cannot pause bucket {name}");
    let store = archive.open(&how.options(archive)?).with_context(pausing)?;
    let mut progress = Progress::new(format!("pausing bucket {name}"));
    let mut on_progress = |at: dormouse::pause::Progress| {
        progress.report(at.done_bytes, Some(at.total_bytes), " durable in the archive");
    };
    Ok(bucket.pause(store.as_ref(), options, &session.until, &mut on_progress)?)
}

fn plan(
    bucket: &Bucket,
    name: &BucketName,
    (archive, how): (&ArchiveUrl, &TransferArgs),
    options: PauseOptions,
    session: &Session,
) -> anyhow::Result<PauseReport> {
    let pausing = || format!("cannot plan the pause of bucket {name}");
    let store = archive.open_to_plan(&how.options(archive)?).with_context(pausing)?;
    Ok(bucket.plan_pause(store.as_ref(), options, &session.until)?)
}

/// What a pause did, in a line.
pub(super) fn describe(
    report: &PauseReport,
    bucket: &BucketName,
    archive: &ArchiveUrl,
    evict: bool,
) -> String {
    let all = files(report.files, report.bytes);
    let uploaded = files(report.uploaded_files, report.uploaded_bytes);
    let Some(pause) = report.pause else {
        let evicted = if evict { "; the local data would be removed" } else { "" };
        return format!(
            "pausing bucket {bucket} would archive {all} in {archive}, of which {uploaded} are new there{evicted}"
        );
    };
    let evicted = if evict { "; the local data was removed" } else { "" };
    format!(
        "paused bucket {bucket} as {pause} in {archive}: {all}, of which {uploaded} were uploaded, in {} ({} \
         locked){evicted}",
        time(report.total_ms),
        time(report.locked_ms)
    )
}
