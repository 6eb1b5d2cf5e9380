//! `drop`: remove an index, or a bucket with all its local data.

use clap::Args;
use dormouse::bucket::DataDir;
use dormouse::index::IndexName;
use serde::Serialize;

use super::WordsOff;
use super::args::{BucketArgs, Format};
use super::session::{Session, close_after};

/// Remove a bucket from the data folder, or one of its indexes
///
/// What the bucket has in archives stays there.
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse drop --data-dir d --bucket travel --index by_alt --yes
  dormouse drop --data-dir d --bucket travel --yes")]
pub(super) struct DropArgs {
    #[command(flatten)]
    target: BucketArgs,
    /// Remove this index alone [default: the whole bucket]
    #[arg(long, value_name = "NAME")]
    index: Option<IndexName>,
    /// Really do it (required)
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Dropped<'a> {
    bucket: &'a str,
    index: Option<&'a IndexName>,
}

pub(super) fn run(args: &DropArgs, session: &mut Session) -> anyhow::Result<()> {
    let bucket = &args.target.bucket;
    let what = match &args.index {
        Some(index) => format!("index `{index}` of bucket {bucket}"),
        None => format!("bucket {bucket} and all its data"),
    };
    let folder = args.target.data_dir.display();
    if !args.yes {
        return Err(WordsOff(format!("this would remove {what} from {folder}; add --yes to do it")).into());
    }
    let data_dir = DataDir::open(&args.target.data_dir)?;
    match &args.index {
        None => data_dir.drop_bucket(bucket)?,
        Some(index) => {
            let opened = data_dir.open_bucket(bucket, &session.bucket_config())?;
            let worked = opened.drop_index(index, &session.until);
            close_after(opened, worked.map_err(anyhow::Error::from))?;
        }
    }
    match session.format {
        Format::Json => session.out.json(&Dropped { bucket: bucket.as_str(), index: args.index.as_ref() })?,
        Format::Table => session.out.line(format_args!("removed {what} from {folder}"))?,
    }
    Ok(())
}
