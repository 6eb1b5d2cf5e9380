//! `status`: what is there and what it is doing.

use std::path::PathBuf;

use clap::Args;
use dormouse::bucket::{BucketName, BucketStatus, DataDir, IndexState};
use indicatif::HumanBytes;
use serde::Serialize;

use super::args::Format;
use super::output::{Output, OutputError, say};
use super::session::{Session, close_after};

/// Show buckets, their indexes and their sizes
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse status --data-dir d
  dormouse status --data-dir d --bucket travel --format json")]
pub(super) struct StatusArgs {
    /// Folder that holds the buckets (required)
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of the bucket [default: all buckets]
    #[arg(long, value_name = "NAME")]
    bucket: Option<BucketName>,
}

/// What is printed of all buckets.
#[derive(Serialize)]
struct AllBuckets {
    buckets: Vec<BucketStatus>,
}

pub(super) fn run(args: &StatusArgs, session: &mut Session) -> anyhow::Result<()> {
    let data_dir = DataDir::open(&args.data_dir)?;
    if let Some(name) = &args.bucket {
        let status = look_at(&data_dir, name, session)?;
        match session.format {
            Format::Json => session.out.json(&status)?,
            Format::Table => print(&status, &mut session.out)?,
        }
        return Ok(());
    }
    let mut buckets = Vec::new();
    let mut failed = 0;
    for name in data_dir.buckets()? {
        session.until.check().map_err(|why| anyhow::anyhow!("cannot look at all buckets: {why}"))?;
        match look_at(&data_dir, &name, session) {
            Ok(status) => buckets.push(status),
            Err(error) => {
                failed += 1;
                say(&error.to_string());
            }
        }
    }
    match session.format {
        Format::Json => session.out.json(&AllBuckets { buckets })?,
        Format::Table => buckets.iter().try_for_each(|status| print(status, &mut session.out))?,
    }
    anyhow::ensure!(failed == 0, "{failed} buckets could not be looked at; each has its line above");
    Ok(())
}

fn look_at(data_dir: &DataDir, name: &BucketName, session: &Session) -> anyhow::Result<BucketStatus> {
    let meta = data_dir.recover(name, &session.logger)?;
    if meta.state.is_evicted() {
        return Ok(BucketStatus::closed(&meta));
    }
    let bucket = data_dir.open_bucket(name, &session.bucket_config())?;
    let status = bucket.status();
    close_after(bucket, Ok(status))
}

fn print(status: &BucketStatus, out: &mut Output) -> Result<(), OutputError> {
    let BucketStatus { bucket, source, store, vbuckets, shards, .. } = status;
    let bytes = shards.iter().map(|shard| shard.disk_bytes).sum();
    out.line(format_args!("bucket {bucket}: {}", status.state))?;
    out.line(format_args!(
        "  source {source}, store {store}, {vbuckets} vbuckets, {} shards here with {}",
        shards.len(),
        HumanBytes(bytes)
    ))?;
    for index in &status.indexes {
        let state = match index.state {
            _ if shards.is_empty() => "in the archive".to_owned(),
            IndexState::Ready => format!("ready, {} changes", index.changes),
            IndexState::Building => format!("unfinished, {} changes", index.changes),
        };
        out.line(format_args!("  index {}: {state}", index.definition))?;
    }
    Ok(())
}
