//! `resume`: wake a bucket up from an archive.

use anyhow::Context;
use clap::Args;
use dormouse::bucket::{DataDir, DataDirError, ResumeOptions, ResumeReport};
use dormouse::objstore::ObjectStore;
use dormouse::pause::{Membership, PauseId};

use super::args::{ArchiveArgs, BucketArgs, DryRunArgs, Format, parse_member};
use super::output::{files, time};
use super::progress::Progress;
use super::session::Session;

/// Wake a bucket up from an archive
///
/// Everything is checked before the bucket is switched on, and the data folder is made if it is not there. Where the
/// paused bucket still lies in the data folder it is checked and switched on without download. What was downloaded
/// stays for another try where the resume is interrupted or fails.
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse resume --data-dir d --bucket travel --archive /var/archive
  dormouse resume --data-dir other --bucket travel --archive /var/archive --dry-run --format json")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    target: BucketArgs,
    #[command(flatten)]
    only: DryRunArgs,
    /// The pause to wake the bucket up from [default: the newest]
    #[arg(long, value_name = "ID")]
    pause: Option<PauseId>,
    /// The Nth of M members that follow the bucket, each a part of its vbuckets [default: the one that is in the data
    /// folder, or 1/1]
    #[arg(long, value_name = "N/M", value_parser = parse_member)]
    member: Option<Membership>,
    #[command(flatten)]
    from: ArchiveArgs,
}

impl ResumeArgs {
    fn options(&self) -> ResumeOptions {
        ResumeOptions { pause: self.pause, member: self.member }
    }
}

pub(super) fn run(args: &ResumeArgs, session: &mut Session) -> anyhow::Result<()> {
    let bucket = &args.target.bucket;
    let store = args.from.open_existing().with_context(|| format!("cannot resume bucket {bucket}"))?;
    let report = if args.only.dry_run {
        plan(args, store.as_ref(), session)?
    } else {
        resume(args, store.as_ref(), session)?
    };
    match session.format {
        Format::Json => session.out.json(&report)?,
        Format::Table => session.out.line(describe(&report, args))?,
    }
    Ok(())
}

fn resume(args: &ResumeArgs, store: &dyn ObjectStore, session: &Session) -> anyhow::Result<ResumeReport> {
    let data_dir = DataDir::open_or_create(&args.target.data_dir)?;
    let name = &args.target.bucket;
    let mut progress = Progress::new(format!("resuming bucket {name}"));
    let mut on_progress = |at: dormouse::pause::Progress| {
        progress.report(at.done_bytes, Some(at.total_bytes), " checked and durable");
    };
    let config = session.bucket_config();
    Ok(data_dir.resume(name, store, args.options(), &config, &session.until, &mut on_progress)?)
}

fn plan(args: &ResumeArgs, store: &dyn ObjectStore, session: &Session) -> anyhow::Result<ResumeReport> {
    let (folder, name) = (&args.target.data_dir, &args.target.bucket);
    match DataDir::open(folder) {
        Err(DataDirError::Missing { .. }) => {
            Ok(DataDir::plan_first_resume(folder, name, store, args.options(), &session.until)?)
        }
        opened => Ok(opened?.plan_resume(name, store, args.options(), &session.until)?),
    }
}

fn describe(report: &ResumeReport, args: &ResumeArgs) -> String {
    let (bucket, pause) = (&args.target.bucket, report.pause);
    let all = files(report.files, report.bytes);
    let downloaded = files(report.downloaded_files, report.downloaded_bytes);
    if args.only.dry_run {
        return format!(
            "resuming bucket {bucket} from {pause} takes {all}, of which {downloaded} are downloaded"
        );
    }
    format!(
        "resumed bucket {bucket} from {pause}: {all}, of which {downloaded} were downloaded, in {}",
        time(report.total_ms)
    )
}
