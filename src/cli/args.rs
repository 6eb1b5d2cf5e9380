//! Options that several verbs have.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use dormouse::bucket::BucketName;
use dormouse::objstore::{ArchiveUrl, parse_archive};

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
    /// Folder of the archive, as a path or as `file:///abs/path` (required)
    #[arg(long, value_name = "URL", value_parser = parse_archive)]
    pub(super) archive: ArchiveUrl,
    /// Say what would be done, and leave the bucket and the archive as they are [default: off]
    #[arg(long)]
    pub(super) dry_run: bool,
}
