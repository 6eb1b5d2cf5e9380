//! The verbs, what they have in common, and the status that the process ends with.
//!
//! | status | when |
//! |---|---|
//! | 0 | it is done, or nobody reads the output any more |
//! | 1 | it failed |
//! | 2 | the call's words are off; nothing was touched |
//! | 130, 143 | it was interrupted, or told to terminate |
//!
//! Besides the library's threads there is `dm-signals`, which is joined before the process ends. Everything that
//! is shown while a verb works is drawn on the main thread.
//!
//! Invariants: standard output holds results only; an error is one line on standard error; a bucket that was
//! opened is closed on every way out.

mod archive;
mod args;
mod demo;
mod drop;
mod follow;
mod ingest;
mod output;
mod pause;
mod polled;
mod progress;
mod resume;
mod scan;
mod session;
mod signals;
mod status;
mod verify;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use dormouse::thread::Cancel;

use args::Common;
use output::{OutputError, say};
use session::Session;
use signals::Signals;

const FAILED: u8 = 1;
const WORDS_OFF: u8 = 2;

/// Keeps secondary indexes over a bucket of JSON documents, and puts buckets that went idle to sleep in an
/// archive.
#[derive(Parser)]
#[command(name = "dormouse", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Verb {
    Demo(demo::DemoArgs),
    Ingest(ingest::IngestArgs),
    Scan(scan::ScanArgs),
    Status(status::StatusArgs),
    Drop(drop::DropArgs),
    Pause(pause::PauseArgs),
    Resume(resume::ResumeArgs),
    Verify(verify::VerifyArgs),
    Archive(archive::ArchiveVerbArgs),
}

/// The words are well formed and make no sense together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WordsOff(String);

/// Runs the verb that the process was called with.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_words(&error),
    };
    let cancel = Cancel::new();
    let signals = match Signals::watch(&cancel) {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("cannot watch for signals: {error}"));
            return FAILED.into();
        }
    };
    let outcome = run(cli, cancel);
    let signal_status = signals.end();
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    if matches!(error.downcast_ref(), Some(OutputError::Closed)) {
        return ExitCode::SUCCESS;
    }
    say(&in_one_line(&error));
    signal_status.unwrap_or(if error.is::<WordsOff>() { WORDS_OFF } else { FAILED }).into()
}

fn run(cli: Cli, cancel: Cancel) -> anyhow::Result<()> {
    // Those print when all else is over.
    let prints_last = matches!(cli.verb, Verb::Ingest(_) | Verb::Drop(_) | Verb::Pause(_) | Verb::Resume(_));
    let mut session = Session::new(&cli.common, cancel)?;
    let done = match cli.verb {
        Verb::Demo(args) => demo::run(&args, &mut session),
        Verb::Ingest(args) => ingest::run(&args, &mut session),
        Verb::Scan(args) => scan::run(args, &mut session),
        Verb::Status(args) => status::run(&args, &mut session),
        Verb::Drop(args) => drop::run(&args, &mut session),
        Verb::Pause(args) => pause::run(&args, &mut session),
        Verb::Resume(args) => resume::run(&args, &mut session),
        Verb::Verify(args) => verify::run(&args, &mut session),
        Verb::Archive(args) => archive::run(&args, &mut session),
    };
    // Also after a failure: what was printed before it is a result.
    let flushed = session.out.flush();
    let done = done.and(flushed.map_err(anyhow::Error::from));
    done.map_err(|error| match error.downcast_ref() {
        Some(OutputError::Write(_)) if prints_last => {
            anyhow::anyhow!("{error}; what was to be done is done all the same")
        }
        _ => error,
    })
}

/// The message and those of its causes that it does not repeat.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// Prints help and version as they are, and what is wrong with the words as one line.
fn refuse_words(error: &clap::Error) -> ExitCode {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_help {
        // A closed pipe is no reason to fail.
        if let Err(OutputError::Write(error)) = error.print().map_err(OutputError::from) {
            say(&format!("cannot write to standard output: {error}"));
            return FAILED.into();
        }
        return if error.use_stderr() { WORDS_OFF.into() } else { ExitCode::SUCCESS };
    }
    let text = error.render().to_string();
    // What is wrong and tips stand before the usage, each in a paragraph.
    let told: Vec<String> = text
        .split("\n\n")
        .take_while(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let line = told.join("; ");
    say(&format!("{}; see --help", line.strip_prefix("error: ").unwrap_or(&line)));
    WORDS_OFF.into()
}
