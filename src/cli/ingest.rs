//! `ingest`: documents and changes from files or standard input into a bucket, or from a cluster, which [`follow`]
//! does.
//!
//! The words and the sources are looked at before anything is made, so that a slip of the fingers leaves neither a
//! bucket nor an index behind.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use dormouse::bucket::{
    Bucket, BucketConfig, BucketName, BucketSpec, DataDir, IngestOptions, IngestProgress, IngestReport,
};
use dormouse::index::{DefinitionError, Filter, IndexDefinition, IndexName};
use dormouse::shard::StoreKind;
use dormouse::source::dcp::{ClusterUrl, ClusterUrlError};
use dormouse::source::{Input, ReplayFormat};

use super::WordsOff;
use super::args::{BucketArgs, Format};
use super::follow::{self, ClusterArgs};
use super::output::{Output, OutputError, say, time};
use super::polled::Polled;
use super::progress::Progress;
use super::session::{Session, close_after};

/// The source that stands for standard input.
const STDIN: &str = "-";
/// Name of the index that a bucket gets when none is asked for.
const PRIMARY: &str = "primary";
/// Bad lines that are shown.
const BAD_LINES_SHOWN: usize = 5;

/// Read documents or changes into a bucket and its indexes, or follow a bucket of a Couchbase cluster
///
/// The bucket is made if it is not there. A cluster's bucket is followed until interrupted, or until what --once or
/// --sleep-after says. A file is always read from its start and may be read again: nothing is
/// skipped, and nothing is counted twice. Whatever ends an ingest, what was applied before is kept.
///
/// While a cluster is followed, "behind" is the sum over all vbuckets of the changes that the indexes have not seen; a
/// program that uses the library gets it for each vbucket (`FollowProgress::lags`).
#[derive(Args)]
#[command(after_help = "Examples:
  dormouse ingest --data-dir d --bucket travel --index by_country=country,city airports.jsonl
  zcat changes.jsonl.gz | dormouse ingest --data-dir d --bucket travel --changes -
  dormouse ingest --data-dir d --bucket travel --index by_city=city --password-file p couchbase://me@node1/travel
  dormouse ingest --data-dir d --bucket travel --sleep-after 10m --archive /var/archive couchbase://me@node1/travel")]
pub(super) struct IngestArgs {
    #[command(flatten)]
    pub(super) target: BucketArgs,
    /// Storage engine of the bucket's shards, fixed when the bucket is made [default: lsm]
    #[arg(long, value_enum)]
    store: Option<Store>,
    /// Number of shards, fixed when the bucket is made [default: 4]
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Number of vbuckets, fixed when the bucket is made [default: 1024]
    #[arg(long, value_name = "N")]
    vbuckets: Option<u16>,
    /// An index that the bucket is to have, such as `by_city=address.city`; may be given several times [default: an
    /// index `primary` over the ids, where the bucket has none]
    #[arg(long = "index", value_name = "NAME=PATH[,PATH…]", value_parser = parse_index)]
    indexes: Vec<IndexDefinition>,
    /// Which documents one of the indexes is about, such as `by_city=country = "DE" and exists address`; others have
    /// no entry in it. Tests are `=`, `!=`, `<`, `<=`, `>`, `>=`, `in [..]`, `like "Ber%"` and `exists`, joined by
    /// `not`, `and`, `or`; may be given once for each index [default: all documents]
    #[arg(long = "where", value_name = "NAME=FILTER", value_parser = parse_filter)]
    filters: Vec<(IndexName, Filter)>,
    /// SOURCE holds all documents: fill new indexes of a bucket that has data from it [default: off]
    #[arg(long)]
    rebuild: bool,
    /// Member of a document that holds its id
    #[arg(long, value_name = "MEMBER", default_value = "id", conflicts_with = "changes")]
    id_field: String,
    /// Lines are changes, {"op":"upsert","id":"k","doc":{…}}, and `delete` and `expire` without `doc` [default: off]
    #[arg(long)]
    changes: bool,
    /// Go on after a bad line, and count it [default: off]
    #[arg(long)]
    skip_bad: bool,
    /// Time after which a shard makes its newest changes durable
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    commit_interval: Duration,
    /// Files of JSON lines, one document a line, as gzip if the name ends in .gz; - is standard input; or one bucket
    /// of a cluster, `couchbase[s]://USER@host[:port]/bucket`
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Store {
    /// A log-structured merge tree
    Lsm,
    /// Everything in memory, with recovery points on disk
    Memdb,
    /// A copy-on-write B-tree in one file
    Cow,
}

impl From<Store> for StoreKind {
    fn from(store: Store) -> Self {
        match store {
            Store::Lsm => Self::Lsm,
            Store::Memdb => Self::Memdb,
            Store::Cow => Self::Cow,
        }
    }
}

fn parse_filter(text: &str) -> Result<(IndexName, Filter), DefinitionError> {
    IndexDefinition::parse_filter(text)
}

fn parse_index(text: &str) -> Result<IndexDefinition, DefinitionError> {
    IndexDefinition::parse(text)
}

pub(super) fn run(args: &IngestArgs, session: &mut Session) -> anyhow::Result<()> {
    if let Some(url) = args.cluster_url()? {
        args.check_names()?;
        return follow::run(args, &url, session);
    }
    let spec = args.spec();
    if let Some(problem) = spec.problem() {
        return Err(WordsOff(problem).into());
    }
    args.check_names()?;
    let definitions = args.definitions()?;
    let inputs = open_sources(&args.sources)?;
    let data_dir = DataDir::open_or_create(&args.target.data_dir)?;
    let bucket = open_or_create(&data_dir, args, spec, &args.config(session))?;
    let worked = ingest(&bucket, args, &definitions, inputs, session);
    let report = close_after(bucket, worked)?;
    if report.bad_lines > 0 {
        say_bad_lines(&report);
    }
    match session.format {
        Format::Json => session.out.json(&report)?,
        Format::Table => print(&report, &mut session.out)?,
    }
    Ok(())
}

impl IngestArgs {
    /// The cluster that is to be followed, if that is what is asked for.
    fn cluster_url(&self) -> anyhow::Result<Option<ClusterUrl>> {
        let is_url = |source: &&PathBuf| source.to_str().is_some_and(ClusterUrl::is_meant_by);
        let Some(url) = self.sources.iter().find(is_url).and_then(|source| source.to_str()) else {
            if self.cluster.is_used() {
                return Err(
                    WordsOff("an option is for a couchbase:// source, and there is none".to_owned()).into()
                );
            }
            return Ok(None);
        };
        if self.sources.len() > 1 {
            return Err(
                WordsOff("a cluster is followed by itself; give no other source with it".to_owned()).into()
            );
        }
        if self.changes || self.skip_bad || self.rebuild {
            let text = "--changes, --skip-bad and --rebuild are for files; leave them out with a cluster";
            return Err(WordsOff(text.to_owned()).into());
        }
        Ok(Some(url.parse().map_err(|error: ClusterUrlError| WordsOff(error.to_string()))?))
    }

    pub(super) fn config(&self, session: &Session) -> BucketConfig {
        let mut config = session.bucket_config();
        config.shards.commit_interval = self.commit_interval;
        config
    }

    pub(super) fn vbuckets(&self) -> Option<u16> {
        self.vbuckets
    }

    /// Makes the indexes that are asked for; without any, the primary one of a bucket that has none.
    pub(super) fn ensure_indexes(
        &self,
        bucket: &Bucket,
        definitions: &[IndexDefinition],
    ) -> anyhow::Result<()> {
        if !definitions.is_empty() {
            bucket.ensure_indexes(definitions, self.rebuild)?;
        } else if bucket.describe().indexes.is_empty() {
            bucket.ensure_index(&IndexDefinition::primary(PRIMARY.parse()?), self.rebuild)?;
        }
        Ok(())
    }

    /// What a bucket is made with.
    pub(super) fn spec(&self) -> BucketSpec {
        let default = BucketSpec::default();
        BucketSpec {
            store: self.store.map_or(default.store, StoreKind::from),
            shards: self.shards.unwrap_or(default.shards),
            vbuckets: self.vbuckets.unwrap_or(default.vbuckets),
            ..default
        }
    }

    /// The indexes that are asked for, with their filters. Without any there is the primary index, if it has one.
    pub(super) fn definitions(&self) -> anyhow::Result<Vec<IndexDefinition>> {
        let mut definitions = self.indexes.clone();
        let of_primary = |(name, _): &(IndexName, Filter)| name.as_str() == PRIMARY;
        if definitions.is_empty() && self.filters.iter().any(of_primary) {
            definitions.push(IndexDefinition::primary(PRIMARY.parse()?));
        }
        for (count, (name, filter)) in self.filters.iter().enumerate() {
            if self.filters.iter().take(count).any(|(other, _)| other == name) {
                return Err(WordsOff(format!(
                    "index `{name}` is filtered twice; join both filters by `and`"
                ))
                .into());
            }
            let mut is_there = false;
            for definition in definitions.iter_mut().filter(|definition| definition.name() == name) {
                *definition = definition.clone().with_filter(filter.clone());
                is_there = true;
            }
            if !is_there {
                return Err(WordsOff(format!(
                    "there is no --index of the name `{name}` to filter; give the index with its filter"
                ))
                .into());
            }
        }
        Ok(definitions)
    }

    /// Refuses two definitions of one index, and a second reader of standard input.
    fn check_names(&self) -> Result<(), WordsOff> {
        for (count, definition) in self.indexes.iter().enumerate() {
            let mut before = self.indexes.iter().take(count);
            if before.any(|other| other.name() == definition.name() && other != definition) {
                let name = definition.name();
                return Err(WordsOff(format!(
                    "index `{name}` is defined twice; give each index its own name"
                )));
            }
        }
        if self.sources.iter().filter(|source| *source == Path::new(STDIN)).count() > 1 {
            return Err(WordsOff("standard input can be read once only; give `-` once".to_owned()));
        }
        Ok(())
    }
}

fn open_sources(sources: &[PathBuf]) -> anyhow::Result<Vec<Input>> {
    let open = |source: &PathBuf| {
        open_source(source)
            .with_context(|| format!("cannot read the source {}; nothing was ingested", source.display()))
    };
    sources.iter().map(open).collect()
}

fn open_source(source: &Path) -> io::Result<Input> {
    if source == Path::new(STDIN) {
        say("standard input cannot be replayed: after a failure, give all of it again");
        return Ok(Input::Reader { name: "standard input".to_owned(), reader: Box::new(Polled::stdin()?) });
    }
    let found = std::fs::metadata(source)?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        let reader = Box::new(Polled::open(source)?);
        return Ok(Input::Reader { name: source.display().to_string(), reader });
    }
    // The source opens it again when its turn comes: there may be more files than a process may have open.
    File::open(source)?;
    Ok(Input::Path(source.to_owned()))
}

pub(super) fn open_or_create(
    data_dir: &DataDir,
    args: &IngestArgs,
    spec: BucketSpec,
    config: &BucketConfig,
) -> anyhow::Result<Bucket> {
    let name = &args.target.bucket;
    if !data_dir.has_bucket(name) {
        return Ok(data_dir.create_bucket(name, spec, config)?);
    }
    let there = data_dir.bucket_meta(name)?.spec;
    differs(name, "shards", there.shards, args.shards)?;
    differs(name, "vbuckets", there.vbuckets, args.vbuckets)?;
    differs(name, "store", there.store, args.store.map(StoreKind::from))?;
    differs(name, "member", there.membership, args.cluster.member())?;
    if there.source != spec.source {
        let (there, wanted) = (there.source, spec.source);
        anyhow::bail!(
            "cannot ingest into bucket {name} from {wanted}: it was made for {there} as its source, which is fixed; take \
             another bucket"
        );
    }
    Ok(data_dir.open_bucket(name, config)?)
}

/// Refuses another value of what was fixed when the bucket was made.
fn differs<T: Copy + PartialEq + std::fmt::Display>(
    bucket: &BucketName,
    option: &str,
    there: T,
    wanted: Option<T>,
) -> anyhow::Result<()> {
    match wanted.filter(|wanted| *wanted != there) {
        Some(wanted) => Err(anyhow::anyhow!(
            "cannot ingest into bucket {bucket} with --{option} {wanted}: it was made with --{option} {there}, which \
             is fixed; leave the option out, or take another bucket"
        )),
        None => Ok(()),
    }
}

fn ingest(
    bucket: &Bucket,
    args: &IngestArgs,
    definitions: &[IndexDefinition],
    inputs: Vec<Input>,
    session: &Session,
) -> anyhow::Result<IngestReport> {
    args.ensure_indexes(bucket, definitions)?;
    let format = if args.changes {
        ReplayFormat::Changes
    } else {
        ReplayFormat::Documents { id_field: args.id_field.clone() }
    };
    let options = IngestOptions { format, skip_bad: args.skip_bad, rebuild: args.rebuild };
    let mut progress = Progress::new(format!("ingesting into bucket {}", args.target.bucket));
    let mut on_progress = |at: IngestProgress| {
        progress.report(at.read_bytes, at.total_bytes, &format!(", {} documents", at.documents));
    };
    Ok(bucket.ingest(inputs, &options, &session.until, &mut on_progress)?)
}

fn say_bad_lines(report: &IngestReport) {
    say(&format!("{} bad lines were skipped, the first of them:", report.bad_lines));
    for line in report.first_bad_lines.iter().take(BAD_LINES_SHOWN) {
        say(line);
    }
}

fn print(report: &IngestReport, out: &mut Output) -> Result<(), OutputError> {
    let IngestReport { bucket, documents, bad_lines, quarantined, oversize_keys, total_ms, .. } = report;
    out.line(format_args!("ingested {documents} documents into bucket {bucket} in {}", time(*total_ms)))?;
    for (count, what) in [
        (bad_lines, "bad lines were skipped"),
        (quarantined, "documents could not be evaluated and are not in an index"),
        (oversize_keys, "keys were too long and are not in an index"),
    ] {
        if *count > 0 {
            out.line(format_args!("{count} {what}"))?;
        }
    }
    Ok(())
}
