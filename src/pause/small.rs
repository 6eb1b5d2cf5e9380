//! Reading objects that are to be small: manifests, and records of what is condemned.
//!
//! Invariant: an object that somebody else put in the place of one takes no more memory than [`SMALL_BYTES_MAX`].

use std::io::{self, Write};

use crate::objstore::{ObjectKey, ObjectStore, StoreCause, StoreError};
use crate::thread::Until;

/// The most bytes that a manifest, or a record of condemned objects, may have: a manifest of some 150,000 files.
pub const SMALL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Takes no more than it may.
struct Bounded {
    content: Vec<u8>,
    is_over: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.content.len() as u64 + bytes.len() as u64 > SMALL_BYTES_MAX {
            self.is_over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The content of an object; `None` where it has more than [`SMALL_BYTES_MAX`].
pub(super) fn get_small(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    until: &Until,
) -> Result<Option<Vec<u8>>, StoreError> {
    let mut to = Bounded { content: Vec::new(), is_over: false };
    match store.get(key, &mut to, until) {
        Err(StoreError { cause: StoreCause::Receiver(_), .. }) if to.is_over => Ok(None),
        got => got.map(|_| Some(to.content)),
    }
}
