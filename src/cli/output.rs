//! Results on standard output, and everything else on standard error.
//!
//! The macros that print panic when nobody reads any more, so nothing here uses them.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use dormouse::thread::Cancel;
use indicatif::HumanBytes;
use serde::Serialize;

use super::polled::PolledOutput;

/// Why a result was not printed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    /// Whoever read the output has gone, and wants no more.
    #[error("nobody reads the output any more")]
    Closed,
    /// The system refused.
    #[error("cannot write the results to standard output: {0}")]
    Write(io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Write(error) }
    }
}

/// Standard output. What is written is seen after [`Output::flush`], or when there is much of it.
pub(super) struct Output(BufWriter<PolledOutput>);

impl Output {
    /// A write that nobody reads ends when `cancel` is given.
    pub(super) fn new(cancel: Cancel) -> io::Result<Self> {
        Ok(Self(BufWriter::new(PolledOutput::stdout(cancel)?)))
    }

    /// Prints a line of text.
    pub(super) fn line(&mut self, text: impl fmt::Display) -> Result<(), OutputError> {
        Ok(writeln!(self.0, "{text}")?)
    }

    /// Prints a value as one line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), OutputError> {
        serde_json::to_writer(&mut self.0, value).map_err(io::Error::from)?;
        Ok(self.0.write_all(b"\n")?)
    }

    pub(super) fn flush(&mut self) -> Result<(), OutputError> {
        Ok(self.0.flush()?)
    }
}

/// Prints one line on standard error. That nobody reads it is no reason to end.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "dormouse: {}", printable(text));
}

/// `text` with its control characters written as escapes, so that it stays on one line.
pub(super) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// A number of files and their bytes, for people.
pub(super) fn files(count: usize, bytes: u64) -> String {
    format!("{count} {} with {}", if count == 1 { "file" } else { "files" }, self::bytes(bytes))
}

/// A number of bytes, for people.
pub(super) fn bytes(bytes: u64) -> impl fmt::Display {
    HumanBytes(bytes)
}

/// A time in milliseconds, for people.
pub(super) fn time(ms: u64) -> String {
    if ms == 0 {
        return "less than 1ms".to_owned();
    }
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}
