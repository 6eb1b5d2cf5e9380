//! `archive list` and `archive prune`: what an archive holds, and what it need not hold any more.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use dormouse::pause::{
    BucketPart, ManifestError, Membership, PauseSummary, PruneError, PruneOptions, PruneReport,
    describe_pauses, prune,
};
use serde::Serialize;

use super::args::{DryRunArgs, Format, PartArgs};
use super::output::{self, OutputError, files};
use super::session::Session;

/// Look into an archive, or remove from it what is not needed any more
#[derive(Args)]
pub(super) struct ArchiveVerbArgs {
    #[command(subcommand)]
    verb: ArchiveVerb,
}

#[derive(Subcommand)]
enum ArchiveVerb {
    List(ListArgs),
    Prune(PruneArgs),
}

/// Show the pauses of an archive
#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    part: PartArgs,
}

/// Remove old pauses, and objects that no pause names
///
/// Objects that no pause names are noted at first. A later prune deletes them, when they were noted for longer than
/// the grace time and no pause names them then. Run it now and then.
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse archive prune --archive /var/archive --keep 2 --dry-run
  dormouse archive prune --archive /var/archive --bucket travel --keep 2")]
struct PruneArgs {
    /// Keep so many of the newest pauses of each bucket, at least one [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// How long noted objects stay, an hour at least; those that are noted already stay as long as was said then
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    grace: Duration,
    #[command(flatten)]
    only: DryRunArgs,
    #[command(flatten)]
    part: PartArgs,
}

#[derive(Serialize)]
struct Listing {
    pauses: Vec<PauseSummary>,
}

#[derive(Serialize)]
struct Pruned {
    bucket: String,
    membership: Membership,
    #[serde(flatten)]
    report: PruneReport,
}

#[derive(Serialize)]
struct AllPruned {
    buckets: Vec<Pruned>,
}

/// What went wrong with some of the buckets, the others being dealt with.
#[derive(Default)]
struct Failures(Vec<anyhow::Error>);

impl Failures {
    /// The first of them is told once the results are.
    fn tell(self) -> anyhow::Result<()> {
        let others = self.0.len().saturating_sub(1);
        let Some(first) = self.0.into_iter().next() else { return Ok(()) };
        Err(if others == 0 { first } else { first.context(format!("the first of {} failures", others + 1)) })
    }
}

pub(super) fn run(args: &ArchiveVerbArgs, session: &mut Session) -> anyhow::Result<()> {
    match &args.verb {
        ArchiveVerb::List(args) => list(args, session).context("cannot list the archive"),
        ArchiveVerb::Prune(args) => prune_all(args, session).context("cannot prune the archive"),
    }
}

fn list(args: &ListArgs, session: &mut Session) -> anyhow::Result<()> {
    let store = args.part.archive.open_existing()?;
    let (mut pauses, mut failures) = (Vec::new(), Failures::default());
    for part in args.part.parts(store.as_ref(), &session.until)? {
        match describe_pauses(store.as_ref(), &part, &session.until) {
            Ok(described) => {
                for pause in described {
                    match pause {
                        Ok(summary) => pauses.push(summary),
                        Err(error) => failures.0.push(error.into()),
                    }
                }
            }
            Err(error @ ManifestError::Store(_)) => return Err(error.into()),
            Err(error) => failures.0.push(error.into()),
        }
    }
    let told = show_pauses(pauses, session);
    failures.tell()?;
    Ok(told?)
}

fn show_pauses(pauses: Vec<PauseSummary>, session: &mut Session) -> Result<(), OutputError> {
    if session.format == Format::Json {
        return session.out.json(&Listing { pauses });
    }
    for summary in pauses {
        let PauseSummary { pause, created, store, files: count, bytes, object_bytes, .. } = &summary;
        let stored = if object_bytes < bytes {
            format!(", compressed to {}", output::bytes(*object_bytes))
        } else {
            String::new()
        };
        let (part, files) = (summary.part(), files(*count, *bytes));
        session.out.line(format!("{part}  {pause}  {created}  {store}  {files}{stored}"))?;
    }
    Ok(())
}

fn prune_all(args: &PruneArgs, session: &mut Session) -> anyhow::Result<()> {
    let store = args.part.archive.open_existing()?;
    let (mut buckets, mut failures) = (Vec::new(), Failures::default());
    for part in args.part.parts(store.as_ref(), &session.until)? {
        let options = PruneOptions {
            keep: args.keep.map(|keep| keep as usize),
            grace: args.grace,
            now: SystemTime::now(),
            dry_run: args.only.dry_run,
        };
        match prune(store.as_ref(), &part, &options, &session.until) {
            Ok(report) => {
                let (bucket, membership) = (part.bucket().to_owned(), part.membership());
                buckets.push((part, Pruned { bucket, membership, report }));
            }
            Err(error @ (PruneError::Store(_) | PruneError::Manifest(ManifestError::Store(_)))) => {
                return Err(error.into());
            }
            Err(error) => failures.0.push(error.into()),
        }
    }
    let told = show_pruned(buckets, args, session);
    failures.tell()?;
    Ok(told?)
}

fn show_pruned(
    buckets: Vec<(BucketPart, Pruned)>,
    args: &PruneArgs,
    session: &mut Session,
) -> Result<(), OutputError> {
    if session.format == Format::Json {
        let buckets = buckets.into_iter().map(|(_, pruned)| pruned).collect();
        return session.out.json(&AllPruned { buckets });
    }
    let would = if args.only.dry_run { "would be " } else { "" };
    for (part, Pruned { report, .. }) in buckets {
        let deleted = files(report.deleted_objects, report.deleted_bytes);
        let condemned = files(report.condemned_objects, report.condemned_bytes);
        session.out.line(format!(
            "{part}: {} pauses {would}removed; {deleted} and {} leftovers {would}deleted; {condemned} and {} unfinished \
             uploads {would}noted, to be deleted in {}",
            report.removed_pauses.len(),
            report.deleted_leftovers,
            report.condemned_uploads,
            humantime::format_duration(args.grace)
        ))?;
    }
    Ok(())
}
