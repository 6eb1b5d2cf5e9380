//! Many files between a disk and a store, as fast as the store takes them.
//!
//! Files go up and come down in pieces of [`CHUNK_BYTES`](super::CHUNK_BYTES), on as many threads as the store says
//! are worth it; where that is one, on the caller's thread. A store that takes drafts gets a file in one pass of one
//! thread, and an encoded object is decoded by one. The threads have ended when a call returns.
//!
//! Invariants: memory does not grow with the size of a file, only with the number of threads. Progress and results
//! are told on the caller's thread.

mod decoding;
mod download;
mod drafts;
mod hashing;
mod pour;
mod upload;

pub use decoding::{Decoded, EncodedFetch, fetch_encoded};
pub use download::{FileFetch, fetch_files};
pub use drafts::{Drafted, FileDraft, NameDraft, draft_files};
pub use hashing::{FileRead, hash_files};
pub use pour::{EncodedContent, FileContent, FileEncode, encode_files};
pub use upload::{FileUpload, give_up, upload_files};

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam::channel::unbounded;

use super::error::StoreError;
use crate::durable::PathError;
use crate::thread::{self, CancelOnDrop, Failure, FailureKind, Panicked, Stopped, Until};

/// The most memory that one thread takes for what it carries: the window of what it decodes (see
/// [`Encoding`](super::Encoding)), which is 8 MiB, and its buffers, which are less than 2 MiB. What is not encoded
/// takes these alone.
pub const TRANSFER_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// Why not all files were carried over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A local file cannot be read or written.
    #[error(transparent)]
    Local(#[from] PathError),
    /// A local file is shorter than it is said to be.
    #[error("cannot read {}: {what}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// How long it is.
        what: String,
    },
    /// The store failed.
    #[error("{error}")]
    Store {
        /// Which of the call's files it was about.
        file: usize,
        /// What failed.
        error: StoreError,
    },
    /// The caller's limit ended first.
    #[error("cannot carry all files over: {0}")]
    Stopped(#[from] Stopped),
    /// No thread could be started.
    #[error("cannot start a thread to carry files over: {0}")]
    Thread(io::Error),
    /// A thread panicked.
    #[error("cannot carry all files over: {0}")]
    Panicked(#[from] Panicked),
}

impl Failure for TransferError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Store { error, .. } => error.kind(),
            Self::Stopped(why) => why.kind(),
            Self::Local(_) | Self::Short { .. } | Self::Thread(_) | Self::Panicked(_) => FailureKind::Lasting,
        }
    }
}

/// Does `jobs` in about their order and hands each result to `on_done`, on this thread. The first error, of a job
/// or of `on_done`, keeps the jobs that have not begun from beginning and ends the limit of those that have, and is
/// returned when all threads have ended.
fn run_jobs<J: Sync, D: Send>(
    parallel: usize,
    jobs: &[J],
    until: &Until,
    work: impl Fn(&J, &Until) -> Result<D, TransferError> + Sync,
    on_done: &mut dyn FnMut(D) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    if parallel.min(jobs.len()) <= 1 {
        return jobs.iter().try_for_each(|job| {
            until.check()?;
            on_done(work(job, until)?)
        });
    }
    let until = &until.child();
    let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, results) = unbounded();
    let worker = |sender: crossbeam::channel::Sender<Result<D, TransferError>>| {
        while !has_failed.load(Ordering::Relaxed) {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let result = until.check().map_err(TransferError::from).and_then(|()| work(job, until));
            let failed = result.is_err();
            has_failed.fetch_or(failed, Ordering::Relaxed);
            // It has room without end, and its receiver outlives the threads.
            let _ = sender.try_send(result);
            // Last, so that the cause stands before what it ends.
            if failed {
                until.cancel().cancel();
            }
        }
    };
    let workers: Vec<_> = (0..parallel.min(jobs.len()))
        .map(|_| {
            let sender = sender.clone();
            move || worker(sender)
        })
        .collect();
    drop(sender);
    let mut first_error = None;
    let collect = || {
        // A panic of the caller's own code ends what is under way as an error does.
        let _ends_the_threads = CancelOnDrop(until.cancel().clone());
        // Ends with the threads, and those with their calls' limit.
        while let Ok(result) = thread::recv(&results, &Until::default()) {
            if let Err(error) = result.and_then(&mut *on_done) {
                has_failed.store(true, Ordering::Relaxed);
                until.cancel().cancel();
                first_error.get_or_insert(error);
            }
        }
    };
    let ended = thread::with_threads("dm-store", workers, collect).map_err(TransferError::Thread)?;
    match first_error {
        Some(error) => Err(error),
        None => Ok(ended.into_iter().collect::<Result<(), Panicked>>()?),
    }
}
