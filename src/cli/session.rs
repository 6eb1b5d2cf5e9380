//! What a verb works with: its limit, its logger and its output.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dormouse::bucket::{Bucket, BucketConfig};
use dormouse::thread::{Cancel, Until};
use slog::{Drain, Level, LevelFilter, Logger, o};
use slog_term::{FullFormat, PlainDecorator};

use super::args::{Common, Format, LogFormat};
use super::output::{Output, OutputError};

/// What closing a bucket may take, also after an interrupt.
const CLOSE_GRACE: Duration = Duration::from_secs(30);

pub(super) struct Session {
    pub(super) until: Until,
    pub(super) logger: Logger,
    pub(super) format: Format,
    pub(super) out: Output,
}

impl Session {
    pub(super) fn new(common: &Common, cancel: Cancel) -> Result<Self, OutputError> {
        let deadline = common.deadline.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(Self {
            out: Output::new(cancel.clone())?,
            until: Until::new(deadline, cancel),
            logger: make_logger(common),
            format: common.format,
        })
    }

    /// The usual way for a bucket to work.
    pub(super) fn bucket_config(&self) -> BucketConfig {
        BucketConfig { logger: self.logger.clone(), ..BucketConfig::default() }
    }
}

/// Closes a bucket after its work was done, or failed. The failure of the work is the one that is told.
pub(super) fn close_after<T>(bucket: Bucket, worked: anyhow::Result<T>) -> anyhow::Result<T> {
    let closed = bucket.close(&Until::within(CLOSE_GRACE));
    drop(bucket);
    let done = worked?;
    closed?;
    Ok(done)
}

fn make_logger(common: &Common) -> Logger {
    let level = match common.verbose {
        0 => Level::Warning,
        1 => Level::Info,
        _ => Level::Debug,
    };
    match common.log_format {
        LogFormat::Text => {
            let format = FullFormat::new(PlainDecorator::new(io::stderr())).use_utc_timestamp();
            root(format.build(), level)
        }
        LogFormat::Json => root(slog_json::Json::default(io::stderr()), level),
    }
}

/// The drain behind a mutex, as slog's own asynchronous one would be a thread that nobody joins. A log line that
/// cannot be written is dropped.
fn root<D: Drain + Send + 'static>(drain: D, level: Level) -> Logger {
    Logger::root(LevelFilter::new(Mutex::new(drain), level).ignore_res(), o!())
}
