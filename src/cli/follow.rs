//! `ingest couchbase://…`: the changes of a bucket of a cluster, until somebody ends it, everything is there, or no
//! change comes any more.
//!
//! The cluster is spoken to before anything is made, so that a wrong password leaves no bucket behind. The password
//! is in no option, and is never shown.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use dormouse::bucket::{
    Bucket, BucketSpec, DataDir, FollowEnd, FollowOptions, FollowProgress, FollowReport, PauseOptions,
    PauseReport, SourceKind,
};
use dormouse::objstore::{ArchiveUrl, parse_archive};
use dormouse::pause::Membership;
use dormouse::source::dcp::{Cluster, ClusterUrl, Login, Network, Tls};
use serde::Serialize;

use super::WordsOff;
use super::args::{Format, TransferArgs, parse_member};
use super::ingest::{IngestArgs, open_or_create};
use super::output::time;
use super::pause;
use super::progress::Progress;
use super::session::{Session, close_after};

const PASSWORD: &str = "DORMOUSE_PASSWORD";

/// How a cluster is followed.
#[derive(Args)]
#[command(next_help_heading = "Options of a couchbase:// source")]
#[expect(clippy::struct_excessive_bools, reason = "each is an option that is given or not")]
pub(super) struct ClusterArgs {
    /// File with the password of the user in the URL [default: the environment's `DORMOUSE_PASSWORD`]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File of the certificate authorities, in PEM, that couchbases:// trusts [default: those of this machine]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Stop once everything that is there at the start is indexed [default: follow until interrupted]
    #[arg(long)]
    once: bool,
    /// Stop and pause into the archive when no change came for that long, such as 10m [default: off]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "archive")]
    #[arg(conflicts_with = "once")]
    sleep_after: Option<Duration>,
    /// The archive to sleep in: a folder as a path or as `file:///abs/path`, or `s3://bucket/prefix` [default: none]
    #[arg(long, value_name = "URL", value_parser = parse_archive, requires = "sleep_after")]
    archive: Option<ArchiveUrl>,
    /// Compress files in the archive where that saves a tenth and more [default: off]
    #[arg(long, requires = "sleep_after")]
    compress: bool,
    /// Then remove the local data, once what is in the archive was read back and checked [default: keep it]
    #[arg(long, requires = "sleep_after")]
    evict: bool,
    /// Follow the Nth of M parts of the vbuckets, the others being followed elsewhere; fixed when the bucket is made
    /// [default: 1/1]
    #[arg(long, value_name = "N/M", value_parser = parse_member)]
    member: Option<Membership>,
    /// Index a change only once the node that has it has written it to its disk, so that nothing is indexed that is
    /// lost when the node fails [default: off]
    #[arg(long)]
    persisted_only: bool,
    /// Which addresses of its nodes the cluster is spoken to at: `default`, the name of alternate ones such as
    /// `external`, or those among which the host of the URL is [default: auto]
    #[arg(long, value_name = "NAME")]
    network: Option<Network>,
    /// Connections to each node of the cluster [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: Option<u16>,
    #[command(flatten)]
    how: TransferArgs,
}

/// Trusts the authorities that this machine trusts.
fn trust_machine(host: &str) -> anyhow::Result<Tls> {
    let found = rustls_native_certs::load_native_certs();
    let why = || match found.errors.first() {
        Some(error) => {
            format!("cannot use the certificate authorities of this machine ({error}); give --ca-file")
        }
        None => "cannot use the certificate authorities of this machine; give --ca-file".to_owned(),
    };
    Tls::from_der(host, found.certs.iter().map(AsRef::as_ref)).with_context(why)
}

/// What is printed in the end.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    followed: FollowReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<PauseReport>,
}

impl ClusterArgs {
    /// Whether an option is given that means nothing without a cluster.
    pub(super) fn is_used(&self) -> bool {
        self.once
            || self.password_file.is_some()
            || self.ca_file.is_some()
            || self.sleep_after.is_some()
            || self.member.is_some()
            || self.persisted_only
            || self.network.is_some()
            || self.connections.is_some()
    }

    /// The part of the vbuckets that is asked for.
    pub(super) fn member(&self) -> Option<Membership> {
        self.member
    }

    fn cluster(&self, url: &ClusterUrl) -> anyhow::Result<Cluster> {
        let user = url.user.clone().ok_or_else(|| {
            WordsOff("the URL names no user; write it as couchbase://USER@host/bucket".to_owned())
        })?;
        let login = Login { user, password: self.password()?, plain_without_tls: false };
        let host = url.seeds.first().map_or("", |seed| seed.host.as_str());
        let tls = match (&self.ca_file, url.is_tls) {
            (Some(_), false) => {
                return Err(WordsOff("--ca-file is for couchbases://, with an s".to_owned()).into());
            }
            (None, false) => None,
            (None, true) => Some(trust_machine(host)?),
            (Some(path), true) => {
                let wrong = || format!("cannot use the certificate authorities in {}", path.display());
                let pem = std::fs::read(path).with_context(wrong)?;
                Some(Tls::new(host, &pem).with_context(wrong)?)
            }
        };
        let mut cluster = Cluster::new(url, login, tls, BucketSpec::default().vbuckets);
        cluster.network = self.network.clone().unwrap_or_default();
        cluster.connection.persisted_only = self.persisted_only;
        Ok(cluster)
    }

    fn password(&self) -> anyhow::Result<String> {
        if let Some(path) = &self.password_file {
            let read = std::fs::read_to_string(path);
            let text = read.with_context(|| format!("cannot read the password in {}", path.display()))?;
            return Ok(text.lines().next().unwrap_or_default().to_owned());
        }
        match std::env::var(PASSWORD) {
            Ok(password) => Ok(password),
            Err(_) => {
                Err(WordsOff(format!("there is no password; set {PASSWORD} or give --password-file")).into())
            }
        }
    }
}

pub(super) fn run(args: &IngestArgs, url: &ClusterUrl, session: &mut Session) -> anyhow::Result<()> {
    let definitions = args.definitions()?;
    let mut cluster = args.cluster.cluster(url)?;
    let map = cluster
        .fetch_map(&cluster.seeds, &session.logger, &session.until)
        .with_context(|| format!("cannot follow {url}; nothing was made"))?;
    cluster.connection.vbuckets = map.vbuckets();
    let spec = BucketSpec {
        vbuckets: args.vbuckets().unwrap_or(map.vbuckets()),
        source: SourceKind::Couchbase,
        membership: args.cluster.member.unwrap_or_default(),
        ..args.spec()
    };
    if spec.vbuckets != map.vbuckets() {
        let (wanted, there) = (spec.vbuckets, map.vbuckets());
        return Err(
            WordsOff(format!("{url} has {there} vbuckets, not {wanted}; leave --vbuckets out")).into()
        );
    }
    if let Some(problem) = spec.problem() {
        return Err(WordsOff(problem).into());
    }
    let data_dir = DataDir::open_or_create(&args.target.data_dir)?;
    let bucket = open_or_create(&data_dir, args, spec, &args.config(session))?;
    let worked = follow(&bucket, args, cluster, &definitions, session);
    let outcome = close_after(bucket, worked)?;
    match session.format {
        Format::Json => session.out.json(&outcome)?,
        Format::Table => print(&outcome, args, session)?,
    }
    Ok(())
}

fn follow(
    bucket: &Bucket,
    args: &IngestArgs,
    cluster: Cluster,
    definitions: &[dormouse::index::IndexDefinition],
    session: &Session,
) -> anyhow::Result<Outcome> {
    args.ensure_indexes(bucket, definitions)?;
    let ClusterArgs { once, sleep_after, connections, .. } = args.cluster;
    let connections = connections.unwrap_or(1);
    let options = FollowOptions { cluster, connections, once, idle_after: sleep_after };
    let mut progress = Progress::new(format!("following into bucket {}", args.target.bucket));
    let mut rate = Rate::new();
    let mut on_progress = |at: FollowProgress| progress.note(&describe(&at, rate.take(at.documents)));
    let followed = bucket.follow(&options, &session.until, &mut on_progress)?;
    drop(progress);
    let archive = args.cluster.archive.as_ref().filter(|_| followed.end == FollowEnd::Idle);
    let options = PauseOptions { evict: args.cluster.evict, compress: args.cluster.compress };
    let into =
        |archive| pause::pause(bucket, &args.target.bucket, (archive, &args.cluster.how), options, session);
    Ok(Outcome { followed, paused: archive.map(into).transpose()? })
}

fn describe(at: &FollowProgress, rate: u64) -> String {
    let behind = at.lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string());
    let FollowProgress { documents, live_streams, wanted_streams, .. } = at;
    let building = match at.building {
        0 => String::new(),
        count => format!(", building {count} indexes"),
    };
    format!(
        "{documents} changes, {rate} a second, {behind} behind, {live_streams} of {wanted_streams} streams{building}"
    )
}

/// Changes a second, over the last second or more.
struct Rate {
    since: Instant,
    documents: u64,
    a_second: u64,
}

impl Rate {
    fn new() -> Self {
        Self { since: Instant::now(), documents: 0, a_second: 0 }
    }

    fn take(&mut self, documents: u64) -> u64 {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        if elapsed >= 1000 {
            self.a_second = documents.saturating_sub(self.documents).saturating_mul(1000) / elapsed;
            (self.since, self.documents) = (Instant::now(), documents);
        }
        self.a_second
    }
}

fn print(outcome: &Outcome, args: &IngestArgs, session: &mut Session) -> anyhow::Result<()> {
    let FollowReport { bucket, end, documents, quarantined, oversize_keys, roll_backs, total_ms } =
        &outcome.followed;
    let why = match end {
        FollowEnd::CaughtUp => "everything that was there is indexed",
        FollowEnd::Idle => "no change came any more",
    };
    let out = &mut session.out;
    out.line(format_args!(
        "followed {documents} changes into bucket {bucket} in {}: {why}",
        time(*total_ms)
    ))?;
    for (count, what) in [
        (quarantined, "documents could not be evaluated and are not in an index"),
        (oversize_keys, "keys were too long and are not in an index"),
        (roll_backs, "times a shard was rolled back to what the cluster still has"),
    ] {
        if *count > 0 {
            out.line(format_args!("{count} {what}"))?;
        }
    }
    if let (Some(paused), Some(archive)) = (&outcome.paused, &args.cluster.archive) {
        out.line(pause::describe(paused, &args.target.bucket, archive, false))?;
    }
    Ok(())
}
