//! `scan`: the entries of an index, as they stream.

use clap::Args;
use dormouse::bucket::{Bucket, DataDir};
use dormouse::index::{IndexName, KeyRange, RangeError, ScanEntry};
use serde::Serialize;
use serde_json::Value;

use super::args::{BucketArgs, Format};
use super::output::{Output, OutputError, printable};
use super::session::{Session, close_after};

/// Print the entries of an index in key order
///
/// The order is null, false, true, numbers, strings by code point, arrays, objects; equal keys go by document id.
/// A table has the key as a JSON array, a tab and the id; JSON has {"key":[…],"id":"…"}.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = "Examples:
  dormouse scan --data-dir d --bucket travel --index by_country --from '[\"Iceland\"]' --to '[\"Ireland\",\"Cork\"]'
  dormouse scan --data-dir d --bucket travel --index by_alt --reverse --limit 10 --format json")]
pub(super) struct ScanArgs {
    #[command(flatten)]
    target: BucketArgs,
    /// Name of the index (required)
    #[arg(long, value_name = "NAME")]
    index: IndexName,
    /// Low end, a JSON array of the first parts of a key [default: the lowest key]
    #[arg(long, value_name = "JSON", value_parser = parse_bound)]
    from: Option<Bound>,
    /// High end, a JSON array of the first parts of a key [default: the highest key]
    #[arg(long, value_name = "JSON", value_parser = parse_bound)]
    to: Option<Bound>,
    /// Leave out keys that begin with the low end [default: off]
    #[arg(long, requires = "from")]
    exclusive_from: bool,
    /// Leave out keys that begin with the high end [default: off]
    #[arg(long, requires = "to")]
    exclusive_to: bool,
    /// From the highest key to the lowest [default: off]
    #[arg(long)]
    reverse: bool,
    /// Print at most this many entries [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print the number of entries alone, whatever the limit [default: off]
    #[arg(long)]
    count: bool,
}

/// One end of a range.
#[derive(Debug, Clone)]
struct Bound(Vec<Value>);

fn parse_bound(text: &str) -> Result<Bound, RangeError> {
    KeyRange::parse_bound(text).map(Bound)
}

/// An entry as it is printed.
#[derive(Serialize)]
struct Line<'e> {
    key: &'e [Value],
    id: &'e str,
}

pub(super) fn run(mut args: ScanArgs, session: &mut Session) -> anyhow::Result<()> {
    let range = KeyRange {
        from: args.from.take().map(|bound| bound.0),
        to: args.to.take().map(|bound| bound.0),
        from_exclusive: args.exclusive_from,
        to_exclusive: args.exclusive_to,
    };
    let data_dir = DataDir::open(&args.target.data_dir)?;
    let bucket = data_dir.open_bucket(&args.target.bucket, &session.bucket_config())?;
    let worked = scan(&bucket, &args, &range, session);
    close_after(bucket, worked)
}

fn scan(bucket: &Bucket, args: &ScanArgs, range: &KeyRange, session: &mut Session) -> anyhow::Result<()> {
    let scan = bucket.scan(&args.index, range, args.reverse, &session.until)?;
    if args.count {
        return Ok(session.out.line(scan.count_entries()?)?);
    }
    for entry in scan.take(args.limit.unwrap_or(usize::MAX)) {
        print(&entry?, session.format, &mut session.out)?;
    }
    Ok(())
}

fn print(entry: &ScanEntry, format: Format, out: &mut Output) -> Result<(), OutputError> {
    match format {
        Format::Json => out.json(&Line { key: &entry.key, id: &entry.id }),
        Format::Table => out.line(format_args!("{}\t{}", serde_json::json!(entry.key), printable(&entry.id))),
    }
}
