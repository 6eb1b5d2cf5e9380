//! What is to outlive a crash: files that are there whole or not at all.
//!
//! * [`replace`]: everything small that this library must not lose — a bucket's metadata, a shard's, an archive's
//!   manifest — is written to a temporary name, flushed to the disk, renamed into place, and the folder flushed. A
//!   reader therefore sees the old content or the new one.
//! * [`Steady`]: a large file is flushed while it is written.
//! * [`PageBuffer`]: where files are read to.
//! * [`seal()`] and [`unseal`]: a header with a checksum before a JSON document.
//! * [`Claim`]: a file that nobody else may have.
//! * [`require_room`]: whether the disk takes it.
//! * [`PathError`]: what failed, and where.

mod claim;
mod file;
mod path;
mod room;
mod seal;

pub use claim::Claim;
pub use file::{
    FLUSH_BYTES, PageBuffer, Steady, TEMPORARY_SUFFIX, begin_flush, create_folders, create_new, replace,
    sync_folder,
};
pub use path::{AtPath, PathError};
pub use room::{RoomError, free_bytes, require_room};
pub use seal::{UnsealError, hex, seal, unseal, unseal_any};
