//! The contract of an object store.
//!
//! It is small because it is what an archive needs and no more, and blocking because its callers are threads
//! that wait for it. The words at [`ObjectStore`] bind every implementation.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};

use super::hash::{ContentHash, ReadError};
use super::key::ObjectKey;
use crate::thread::{Stopped, Until};

/// Named, immutable pieces of bytes in one place.
///
/// * Each call is one try: it does not repeat itself, and its error tells whether another try can help.
/// * Each call ends soon after its [`Until`] has ended, with [`StoreCause::Stopped`]. A single operation of the
///   system, such as a flush to the disk, is not interrupted. A call whose limit has ended before it does
///   anything does nothing.
/// * A call that succeeded is seen by every later call, from every process.
/// * Callers do not use a key both for an object and as the beginning of other keys (`a` and `a/b`): a folder
///   cannot hold both.
pub trait ObjectStore: Send + Sync {
    /// The store's URL, for messages. It holds no secrets.
    fn describe(&self) -> String;

    /// Creates the object or replaces it. After success it is durable. After an error it is there with the
    /// whole of `body`, or what was there before (an object or none) is there unchanged.
    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError>;

    /// Creates the object unless there is one: then the cause is [`StoreCause::Exists`] and nothing changes.
    /// Of several calls for one key at the same time at most one succeeds. Otherwise like [`ObjectStore::put`].
    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError>;

    /// Writes the object's content to `to` and gives its length in bytes. After an error `to` may have taken a
    /// part of it; an error of `to` itself is [`StoreCause::Receiver`]. No object: [`StoreCause::NotFound`].
    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError>;

    /// The object's length in bytes; `None` if there is no object.
    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError>;

    /// All objects below `folder` (those whose key begins with `folder` and a slash), or all of the store, in
    /// ascending order of the key. Unfinished objects, and names that are no [`ObjectKey`], are left out.
    fn list(&self, folder: Option<&ObjectKey>, until: &Until) -> Result<Vec<ObjectMeta>, StoreError>;

    /// Removes the object; one that is not there is fine. After a power failure it may be there again.
    fn delete(&self, key: &ObjectKey, until: &Until) -> Result<(), StoreError>;
}

/// What an object is to hold.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The first bytes of a file. They are read by position, so the file's cursor does not matter and another
    /// try reads them again.
    File {
        /// The file, open for reading.
        file: &'a File,
        /// How many bytes. A file that is shorter is refused as [`StoreCause::BodyTooShort`].
        length_bytes: u64,
        /// The hash they must have. The store computes it from what it stores, and refuses other content with
        /// [`StoreCause::BodyChanged`] *before* the object appears: an object whose key promises a content
        /// never has another one.
        hash: ContentHash,
    },
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key.
    pub key: ObjectKey,
    /// Its length.
    pub length_bytes: u64,
}

/// A kind of call on a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Making the store ready for calls.
    Open,
    /// [`ObjectStore::put`] or [`ObjectStore::put_if_absent`].
    Put,
    /// [`ObjectStore::get`].
    Get,
    /// [`ObjectStore::head`].
    Head,
    /// [`ObjectStore::list`].
    List,
    /// [`ObjectStore::delete`].
    Delete,
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
    /// There is no such object.
    #[error("it is not there")]
    NotFound,
    /// There is such an object already.
    #[error("it is there already")]
    Exists,
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
    #[error("the file with its content changed: it now has the hash {found}")]
    BodyChanged {
        /// The hash of what was read.
        found: ContentHash,
    },
    /// The file with the content cannot be read.
    #[error("the file with its content cannot be read: {0}")]
    Body(io::Error),
    /// The writer that was to take the content failed.
    #[error("its content cannot be written where it was asked for: {0}")]
    Receiver(io::Error),
    /// The store's place failed.
    #[error("{0}")]
    Io(#[from] io::Error),
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

    /// Whether the same call may succeed a little later without anybody's help.
    pub fn is_temporary(&self) -> bool {
        use io::ErrorKind::{Interrupted, ResourceBusy, StaleNetworkFileHandle, TimedOut, WouldBlock};
        match &self.cause {
            StoreCause::Io(e) => {
                matches!(
                    e.kind(),
                    Interrupted | ResourceBusy | StaleNetworkFileHandle | TimedOut | WouldBlock
                )
            }
            _ => false,
        }
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

fn way_out(operation: Operation, cause: &StoreCause) -> &'static str {
    use io::ErrorKind::{NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let StoreCause::Io(e) = cause else { return "" };
    match (e.kind(), operation) {
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
