//! What can go wrong with a store, and whether another try can help.
//!
//! Invariant: an error names what was being done, the object, the store, the reason and the way out, in one line,
//! and it is temporary only if the same call may succeed a little later without anybody's help.

use std::fmt;
use std::io;
use std::time::Duration;

use super::hash::ReadError;
use super::key::ObjectKey;
use crate::thread::{Failure, FailureKind, Stopped};

/// A kind of call on a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Making the store ready for calls.
    Open,
    /// [`ObjectStore::put`](super::ObjectStore::put) or
    /// [`ObjectStore::put_if_absent`](super::ObjectStore::put_if_absent).
    Put,
    /// [`ObjectStore::get`](super::ObjectStore::get) or [`ObjectStore::get_range`](super::ObjectStore::get_range).
    Get,
    /// [`ObjectStore::head`](super::ObjectStore::head).
    Head,
    /// [`ObjectStore::list_page`](super::ObjectStore::list_page).
    List,
    /// [`ObjectStore::delete`](super::ObjectStore::delete).
    Delete,
    /// [`PartStore::begin`](super::PartStore::begin).
    Begin,
    /// [`PartStore::put_part`](super::PartStore::put_part).
    PutPart,
    /// [`PartStore::parts`](super::PartStore::parts).
    Parts,
    /// [`PartStore::complete`](super::PartStore::complete).
    Complete,
    /// [`PartStore::abort`](super::PartStore::abort).
    Abort,
    /// [`PartStore::uploads`](super::PartStore::uploads).
    Uploads,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "look at",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Begin => "begin the parts of",
            Self::PutPart => "put a part of",
            Self::Parts => "list the parts of",
            Self::Complete => "put together",
            Self::Abort => "give up the parts of",
            Self::Uploads => "list what is unfinished of",
        })
    }
}

/// A call on a store that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {} in {store}: {cause}{}", subject(key.as_ref()), way_out(*operation, cause))]
#[non_exhaustive]
pub struct StoreError {
    /// What was being done.
    pub operation: Operation,
    /// The object or the folder; `None` is the whole store.
    pub key: Option<ObjectKey>,
    /// The store's URL.
    pub store: String,
    /// Why it failed.
    pub cause: StoreCause,
}

/// Why a call on a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreCause {
    /// There is no such object, or no such upload in parts.
    #[error("it is not there")]
    NotFound,
    /// There is such an object already.
    #[error("it is there already")]
    Exists,
    /// The object does not have all bytes of the range that was asked for.
    #[error("it does not have all of the bytes {} to {}", .start, .end)]
    OutOfRange {
        /// The first byte that was asked for.
        start: u64,
        /// The byte after the last.
        end: u64,
    },
    /// The caller's limit ended first. For a `put` the outcome is unknown.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The file with the content ends too early.
    #[error("the file with its content ends after {found_bytes} of {expected_bytes} bytes")]
    BodyTooShort {
        /// The length that the file was said to have.
        expected_bytes: u64,
        /// The length that it has.
        found_bytes: u64,
    },
    /// The file does not hold the content that was promised.
    #[error("the file with its content changed after it was hashed")]
    BodyChanged,
    /// The file with the content cannot be read.
    #[error("the file with its content cannot be read: {0}")]
    Body(io::Error),
    /// The writer that was to take the content failed.
    #[error("its content cannot be written where it was asked for: {0}")]
    Receiver(io::Error),
    /// The store's place failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server answered with an error.
    #[error("the server says {code} (status {status}){}", said(.message))]
    Refused {
        /// The status of its answer.
        status: u16,
        /// The code of its error document, or what stands for one where it sent none.
        code: String,
        /// What it says about it; may be empty.
        message: String,
        /// Whether it says so of a passing condition.
        is_temporary: bool,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The server could not be reached, or the exchange with it broke off.
    #[error("{0}")]
    Connection(String),
    /// The server's answer is not one to this call, or not whole: nothing of it is believed.
    #[error("the server's answer cannot be right: {0}")]
    Answer(String),
    /// The server cannot be trusted, or not be talked to as it is set.
    #[error("{0}")]
    Endpoint(String),
    /// There are no credentials to sign the call with.
    #[error("there are no credentials: {reason}")]
    Credentials {
        /// Where they were looked for and why there are none.
        reason: String,
        /// Whether they may be there a little later.
        is_temporary: bool,
    },
    /// The call, or the bytes that it carries, took longer than is put up with.
    #[error("it took longer than {}, which is all the time that it has", humantime::format_duration(*.limit))]
    TooSlow {
        /// How long the call had.
        limit: Duration,
    },
}

impl StoreError {
    /// An error of `operation` on the object or folder `key` of the store with the URL `store`.
    pub fn new(
        operation: Operation,
        key: Option<&ObjectKey>,
        store: impl Into<String>,
        cause: impl Into<StoreCause>,
    ) -> Self {
        Self { operation, key: key.cloned(), store: store.into(), cause: cause.into() }
    }

    /// How long the store asks to be left alone before another try.
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.cause {
            StoreCause::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Failure for StoreError {
    fn kind(&self) -> FailureKind {
        use io::ErrorKind::{Interrupted, ResourceBusy, StaleNetworkFileHandle, TimedOut, WouldBlock};
        let is_temporary = match &self.cause {
            StoreCause::Stopped(why) => return why.kind(),
            StoreCause::Io(e) => {
                matches!(
                    e.kind(),
                    Interrupted | ResourceBusy | StaleNetworkFileHandle | TimedOut | WouldBlock
                )
            }
            StoreCause::Refused { is_temporary, .. } | StoreCause::Credentials { is_temporary, .. } => {
                *is_temporary
            }
            StoreCause::Connection(_) | StoreCause::Answer(_) | StoreCause::TooSlow { .. } => true,
            _ => false,
        };
        if is_temporary { FailureKind::Temporary } else { FailureKind::Lasting }
    }
}

impl From<ReadError> for StoreCause {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Stopped(why) => Self::Stopped(why),
            ReadError::TooShort { expected_bytes, found_bytes } => {
                Self::BodyTooShort { expected_bytes, found_bytes }
            }
            ReadError::Io(e) => Self::Body(e),
        }
    }
}

fn subject(key: Option<&ObjectKey>) -> &str {
    key.map_or("the archive", ObjectKey::as_str)
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn way_out(operation: Operation, cause: &StoreCause) -> &'static str {
    match cause {
        StoreCause::Io(e) => way_out_of_io(operation, e.kind()),
        StoreCause::Refused { code, .. } => way_out_of_refusal(code),
        StoreCause::Credentials { is_temporary: false, .. } => {
            "; give them in the environment or in a profile, as for the usual AWS tools"
        }
        _ => "",
    }
}

fn way_out_of_io(operation: Operation, kind: io::ErrorKind) -> &'static str {
    use io::ErrorKind::{NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match (kind, operation) {
        (PermissionDenied, Operation::Get | Operation::Head | Operation::List) => {
            "; make the folder readable for this user"
        }
        (PermissionDenied | ReadOnlyFilesystem, _) => {
            "; make the folder writable for this user or name another archive"
        }
        (StorageFull | QuotaExceeded, _) => "; free space there or name another archive",
        (NotADirectory, _) => "; name a folder, or move away what is in its place",
        _ => "",
    }
}

fn way_out_of_refusal(code: &str) -> &'static str {
    match code {
        "AccessDenied" | "Forbidden" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" => {
            "; check the credentials and what they allow"
        }
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "TemporaryRedirect"
        | "IllegalLocationConstraintException" => "; check the region and the endpoint",
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => "; get new credentials",
        "NoSuchBucket" => "; create the bucket, or name another",
        "RequestTimeTooSkewed" | "RequestExpired" => "; set this machine's clock",
        _ => "",
    }
}
