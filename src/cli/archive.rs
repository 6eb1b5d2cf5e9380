//! `archive list` and `archive prune`: what an archive holds, and what it need not hold any more.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use dormouse::bucket::BucketName;
use dormouse::objstore::ObjectStore;
use dormouse::pause::{PauseSummary, PruneOptions, PruneReport, describe_pauses, list_buckets, prune};
use dormouse::thread::Until;
use serde::Serialize;

use super::args::{ArchiveArgs, DryRunArgs, Format};
use super::output::{self, files};
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

/// Which part of which archive.
#[derive(Args)]
struct PartArgs {
    #[command(flatten)]
    archive: ArchiveArgs,
    /// Only this bucket [default: all]
    #[arg(long, value_name = "NAME")]
    bucket: Option<BucketName>,
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
    #[command(flatten)]
    part: PartArgs,
    /// Keep so many of the newest pauses of each bucket, at least one [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// How long noted objects stay; no pause may take longer than half of it
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    grace: Duration,
    #[command(flatten)]
    only: DryRunArgs,
}

#[derive(Serialize)]
struct Listing {
    pauses: Vec<PauseSummary>,
}

#[derive(Serialize)]
struct Pruned {
    bucket: String,
    #[serde(flatten)]
    report: PruneReport,
}

#[derive(Serialize)]
struct AllPruned {
    buckets: Vec<Pruned>,
}

pub(super) fn run(args: &ArchiveVerbArgs, session: &mut Session) -> anyhow::Result<()> {
    match &args.verb {
        ArchiveVerb::List(args) => list(args, session),
        ArchiveVerb::Prune(args) => prune_all(args, session),
    }
}

impl PartArgs {
    fn buckets(&self, store: &dyn ObjectStore, until: &Until) -> anyhow::Result<Vec<String>> {
        match &self.bucket {
            Some(bucket) => Ok(vec![bucket.to_string()]),
            None => Ok(list_buckets(store, until)?),
        }
    }
}

fn list(args: &ListArgs, session: &mut Session) -> anyhow::Result<()> {
    let listing = || -> anyhow::Result<Listing> {
        let store = args.part.archive.open_existing()?;
        let mut pauses = Vec::new();
        for bucket in args.part.buckets(store.as_ref(), &session.until)? {
            pauses.extend(describe_pauses(store.as_ref(), &bucket, &session.until)?);
        }
        Ok(Listing { pauses })
    };
    let listing = listing().context("cannot list the archive")?;
    if session.format == Format::Json {
        return Ok(session.out.json(&listing)?);
    }
    for PauseSummary { bucket, pause, created, store, files: count, bytes, object_bytes, .. } in
        listing.pauses
    {
        let stored = if object_bytes < bytes {
            format!(", compressed to {}", output::bytes(object_bytes))
        } else {
            String::new()
        };
        session
            .out
            .line(format!("{bucket}  {pause}  {created}  {store}  {}{stored}", files(count, bytes)))?;
    }
    Ok(())
}

fn prune_all(args: &PruneArgs, session: &mut Session) -> anyhow::Result<()> {
    let options = PruneOptions {
        keep: args.keep.map(|keep| keep as usize),
        grace: args.grace,
        now: SystemTime::now(),
        dry_run: args.only.dry_run,
    };
    let prune_buckets = || -> anyhow::Result<AllPruned> {
        let store = args.part.archive.open_existing()?;
        let mut buckets = Vec::new();
        for bucket in args.part.buckets(store.as_ref(), &session.until)? {
            let report = prune(store.as_ref(), &bucket, &options, &session.until)?;
            buckets.push(Pruned { bucket, report });
        }
        Ok(AllPruned { buckets })
    };
    let pruned = prune_buckets().context("cannot prune the archive")?;
    if session.format == Format::Json {
        return Ok(session.out.json(&pruned)?);
    }
    let would = if args.only.dry_run { "would be " } else { "" };
    for Pruned { bucket, report } in pruned.buckets {
        let deleted = files(report.deleted_objects, report.deleted_bytes);
        let condemned = files(report.condemned_objects, report.condemned_bytes);
        session.out.line(format!(
            "{bucket}: {} pauses {would}removed; {deleted} and {} leftovers {would}deleted; {condemned} and {} unfinished \
             uploads {would}noted, to be deleted in {}",
            report.removed_pauses.len(),
            report.deleted_leftovers,
            report.condemned_uploads,
            humantime::format_duration(args.grace)
        ))?;
    }
    Ok(())
}
