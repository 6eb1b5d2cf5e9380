//! `scan`: the entries of an index, as they stream.

use std::time::Duration;

use clap::Args;
use dormouse::bucket::{Bucket, DataDir, IndexError};
use dormouse::event::{Seqno, VbId};
use dormouse::index::{Cursor, IndexName, KeyRange, PATHS_MAX, RangeError, ScanEntry, ScanError, ScanQuery};
use dormouse::thread::Until;
use serde::Serialize;
use serde_json::Value;

use super::args::{BucketArgs, Format};
use super::output::{Output, OutputError, printable, say};
use super::session::{Session, close_after};

/// Print the entries of an index in key order
///
/// The order is null, false, true, numbers, strings by code point, arrays, objects; equal keys go by document id. A
/// table has the key as a JSON array, a tab and the id; JSON has {"key":[…],"id":"…"}. With --distinct there are keys
/// alone. Several ranges are read as one: in key order, and what lies in two of them comes once. Where --limit leaves
/// entries out, standard error tells the cursor that goes on behind the last one.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = "Examples:
  dormouse scan --data-dir d --bucket travel --index by_country --from '[\"Iceland\"]' --to '[\"Ireland\",\"Cork\"]'
  dormouse scan --data-dir d --bucket travel --index by_alt --reverse --limit 10 --format json
  dormouse scan --data-dir d --bucket travel --index by_country --distinct 1
  dormouse scan --data-dir d --bucket travel --index by_alt --range '{\"to\":[0]}' --range '{\"from\":[4000]}'")]
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
    /// A range as a JSON object: the members `from` and `to` are ends as above, `exclusive_from` and `exclusive_to` are
    /// true or false; may be given several times [default: one range, of --from and --to]
    #[arg(long, value_name = "JSON", value_parser = KeyRange::parse, conflicts_with_all = ["from", "to"])]
    range: Vec<KeyRange>,
    /// Refuse to scan unless the index covers this seqno of this vbucket, such as 7:1200; may be given several times
    /// [default: scan what is there]
    #[arg(long, value_name = "VB:SEQNO", value_parser = parse_seqno)]
    at_least: Vec<(VbId, Seqno)>,
    /// From the highest key to the lowest [default: off]
    #[arg(long)]
    reverse: bool,
    /// Print at most this many entries [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on behind the entry that this cursor stands for, in the direction of the scan [default: from the start]
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
    /// Print each different beginning of this many key parts once, without ids [default: off]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=PATHS_MAX as i64))]
    distinct: Option<u16>,
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

fn parse_seqno(text: &str) -> Result<(VbId, Seqno), String> {
    let parsed = text.split_once(':').and_then(|(vb, seqno)| Some((vb.parse().ok()?, seqno.parse().ok()?)));
    let (vb, seqno) =
        parsed.ok_or("expected the number of a vbucket, a colon and a seqno, such as 7:1200")?;
    Ok((VbId(vb), Seqno(seqno)))
}

/// An entry as it is printed.
#[derive(Serialize)]
struct Line<'e> {
    key: &'e [Value],
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'e str>,
}

pub(super) fn run(mut args: ScanArgs, session: &mut Session) -> anyhow::Result<()> {
    let mut ranges = std::mem::take(&mut args.range);
    if ranges.is_empty() {
        ranges.push(KeyRange {
            from: args.from.take().map(|bound| bound.0),
            to: args.to.take().map(|bound| bound.0),
            from_exclusive: args.exclusive_from,
            to_exclusive: args.exclusive_to,
        });
    }
    let query = ScanQuery {
        ranges,
        reverse: args.reverse,
        after: args.after.take(),
        distinct: args.distinct.map(usize::from),
        at_least: Vec::new(),
    };
    let data_dir = DataDir::open(&args.target.data_dir)?;
    let bucket = data_dir.open_bucket(&args.target.bucket, &session.bucket_config())?;
    let worked = scan(&bucket, &args, &query, session);
    close_after(bucket, worked)
}

fn scan(bucket: &Bucket, args: &ScanArgs, query: &ScanQuery, session: &mut Session) -> anyhow::Result<()> {
    refuse_behind(bucket, args)?;
    let mut scan = bucket.query(&args.index, query, &session.until)?;
    if args.count {
        return Ok(session.out.line(scan.count_entries()?)?);
    }
    for entry in scan.by_ref().take(args.limit.unwrap_or(usize::MAX)) {
        print(&entry?, args.distinct.is_some(), session.format, &mut session.out)?;
    }
    if let Some(cursor) = scan.cursor()
        && scan.next().transpose()?.is_some()
    {
        session.out.flush()?;
        say(&format!("the limit left entries out; go on with --after {cursor}"));
    }
    Ok(())
}

/// Refuses an index that does not cover what it is to. Nobody else has the bucket while this program does, so there is
/// nothing to wait for; and what is covered stays so.
fn refuse_behind(bucket: &Bucket, args: &ScanArgs) -> anyhow::Result<()> {
    if args.at_least.is_empty() {
        return Ok(());
    }
    let query = ScanQuery { at_least: args.at_least.clone(), ..ScanQuery::default() };
    match bucket.query(&args.index, &query, &Until::within(Duration::ZERO)) {
        Err(IndexError::Scan(ScanError::Behind { vb, wanted, reached, .. })) => anyhow::bail!(
            "cannot scan index `{}` at seqno {wanted} of vbucket {vb}: it has come to {reached}; ingest into bucket {} \
             first, or leave out --at-least",
            args.index,
            args.target.bucket
        ),
        begun => Ok(begun.map(drop)?),
    }
}

fn print(entry: &ScanEntry, distinct: bool, format: Format, out: &mut Output) -> Result<(), OutputError> {
    let id = (!distinct).then_some(entry.id.as_str());
    match (format, id) {
        (Format::Json, id) => out.json(&Line { key: &entry.key, id }),
        (Format::Table, None) => out.line(serde_json::json!(entry.key)),
        (Format::Table, Some(id)) => {
            out.line(format_args!("{}\t{}", serde_json::json!(entry.key), printable(id)))
        }
    }
}
