//! Options that several verbs have.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use dormouse::bucket::BucketName;
use dormouse::objstore::{
    ArchiveOptions, ArchiveUrl, CredentialSource, ObjectStore, S3Config, TRANSFER_BYTES_MAX, parse_archive,
};
use dormouse::pause::{BucketPart, Membership, list_parts};
use dormouse::thread::Until;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Text to read
    Table,
    /// JSON, one object a line
    Json,
}

/// How logs are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Text to read
    Text,
    /// JSON, one object a line
    Json,
}

/// What every verb has.
#[derive(Args)]
#[command(next_help_heading = "Options of every verb")]
pub(super) struct Common {
    /// How results are printed on standard output
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
    /// Give up after this time, such as 90s or 5m [default: no limit]
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(super) deadline: Option<Duration>,
    /// Log more on standard error: -v what is done, -vv every step [default: warnings]
    #[arg(short, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// How logs are printed
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
}

/// Which bucket a verb is about.
#[derive(Args)]
pub(super) struct BucketArgs {
    /// Folder that holds the buckets (required)
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: PathBuf,
    /// Name of the bucket (required)
    #[arg(long, value_name = "NAME")]
    pub(super) bucket: BucketName,
}

/// Which archive a verb is about.
#[derive(Args)]
pub(super) struct ArchiveArgs {
    /// The archive: a folder as a path or as `file:///abs/path`, or `s3://bucket/prefix` (required)
    #[arg(long, value_name = "URL", value_parser = parse_archive)]
    pub(super) archive: ArchiveUrl,
    #[command(flatten)]
    pub(super) how: TransferArgs,
}

/// Which part of which archive.
#[derive(Args)]
pub(super) struct PartArgs {
    /// Only this bucket [default: all]
    #[arg(long, value_name = "NAME")]
    pub(super) bucket: Option<BucketName>,
    /// Only the Nth of M members that follow the bucket, each a part of its vbuckets [default: all]
    #[arg(long, value_name = "N/M", value_parser = parse_member, requires = "bucket")]
    pub(super) member: Option<Membership>,
    #[command(flatten)]
    pub(super) archive: ArchiveArgs,
}

impl PartArgs {
    /// What the archive has, as far as it is asked for. A bucket that is asked for by its name is always there.
    pub(super) fn parts(&self, store: &dyn ObjectStore, until: &Until) -> anyhow::Result<Vec<BucketPart>> {
        let Some(bucket) = &self.bucket else { return Ok(list_parts(store, None, until)?) };
        if let Some(member) = self.member {
            return Ok(vec![BucketPart::new(bucket.as_str(), member)]);
        }
        let parts = list_parts(store, Some(bucket.as_str()), until)?;
        Ok(if parts.is_empty() { vec![BucketPart::whole(bucket.as_str())] } else { parts })
    }
}

pub(super) fn parse_member(text: &str) -> Result<Membership, String> {
    let wrong = || "it has to be like 2/4, from 1/M to M/M".to_owned();
    let (member, of) = text.split_once('/').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let (member, of) = (number(member)?, number(of)?);
    if (1..=of).contains(&member) { Ok(Membership { member, of }) } else { Err(wrong()) }
}

/// Whether something is done at all.
#[derive(Args)]
pub(super) struct DryRunArgs {
    /// Say what would be done, and leave the bucket and the archive as they are [default: off]
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// How an archive is talked to.
#[derive(Args)]
#[command(next_help_heading = "Options of every archive")]
pub(super) struct TransferArgs {
    /// Server of `s3://` archives, such as <http://localhost:9000> [default: AWS, or `AWS_ENDPOINT_URL`]
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// Region of `s3://` archives [default: `AWS_REGION`, or us-east-1]
    #[arg(long, value_name = "R")]
    s3_region: Option<String>,
    /// Name the bucket in the path, not in the host, as many servers other than AWS want it [default: off, but for
    /// addresses]
    #[arg(long)]
    s3_path_style: bool,
    /// Carry at most so many bytes a second, such as 500000 or 20MiB [default: no limit]
    #[arg(long, value_name = "BYTES/s", value_parser = parse_rate)]
    rate_limit: Option<NonZeroU64>,
    /// Carry so many files, or parts of them, at the same time [default: 8 for `s3://`, 4 for a folder]
    #[arg(long, value_name = "N", value_parser = parse_parallel)]
    parallel: Option<NonZeroUsize>,
    /// Take at most so much memory for what is carried at the same time, such as 40MiB: one file or part for each
    /// 10 MiB [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_memory)]
    memory_limit: Option<ByteSize>,
    /// Give a call to the server of an `s3://` archive up after this time, and try it again [default: a minute, and
    /// more for many bytes]
    #[arg(long, value_name = "DURATION", value_parser = parse_call_limit)]
    call_limit: Option<Duration>,
}

fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let parsed: ByteSize = text.parse()?;
    NonZeroU64::new(parsed.as_u64()).ok_or_else(|| "it has to be at least a byte a second".to_owned())
}

fn parse_parallel(text: &str) -> Result<NonZeroUsize, String> {
    let parsed: NonZeroUsize = text.parse().map_err(|e: std::num::ParseIntError| e.to_string())?;
    if parsed.get() <= 256 { Ok(parsed) } else { Err("it has to be from 1 to 256".to_owned()) }
}

fn parse_memory(text: &str) -> Result<ByteSize, String> {
    let (parsed, least): (ByteSize, _) = (text.parse()?, ByteSize(TRANSFER_BYTES_MAX));
    if parsed >= least { Ok(parsed) } else { Err(format!("it has to be at least {least}")) }
}

fn parse_call_limit(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if parsed.is_zero() { Err("it has to be some time".to_owned()) } else { Ok(parsed) }
}

impl ArchiveArgs {
    /// The archive, which has to be there.
    pub(super) fn open_existing(&self) -> anyhow::Result<Box<dyn ObjectStore>> {
        let archive = &self.archive;
        archive.open_existing(&self.how.options(archive)?)?.with_context(|| {
            format!("there is no archive {archive}; is its disk mounted, or is it in another place?")
        })
    }
}

impl TransferArgs {
    /// What the options and the environment say: this program takes credentials from where the AWS tools do.
    pub(super) fn options(&self, archive: &ArchiveUrl) -> anyhow::Result<ArchiveOptions> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let region = self.s3_region.clone().or_else(|| variable("AWS_REGION"));
        let region =
            region.or_else(|| variable("AWS_DEFAULT_REGION")).unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint = self.s3_endpoint.clone().or_else(|| variable("AWS_ENDPOINT_URL_S3"));
        let mut s3 = S3Config::new("", region);
        if let ArchiveUrl::S3 { .. } = archive {
            s3.endpoint = endpoint.or_else(|| variable("AWS_ENDPOINT_URL"));
            s3.path_style = self.s3_path_style;
            s3.credentials = CredentialSource::usual(&variable);
            if let Some(path) = variable("AWS_CA_BUNDLE") {
                let read = std::fs::read(&path);
                s3.authorities_pem = Some(
                    read.with_context(|| format!("cannot read the authorities in {path} (AWS_CA_BUNDLE)"))?,
                );
            }
        }
        Ok(ArchiveOptions {
            s3,
            bytes_per_second_max: self.rate_limit,
            parallel: self.parallel,
            memory_bytes_max: self.memory_limit.map(|limit| limit.as_u64()),
            call_limit: self.call_limit,
        })
    }
}
