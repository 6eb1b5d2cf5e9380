//! Files that one process may have for itself.
//!
//! Invariant: a claim ends when it is dropped where it was taken; a copy of it in a fork ends nothing.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::thread::Process;

use super::path::{AtPath, PathError};

/// A file that is locked against every other opening of it, in this process or another, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    file: File,
    process: Process,
}

impl Claim {
    /// Locks the file at `path`. It comes back where somebody else has it locked.
    pub fn take(file: File, path: &Path) -> Result<Result<Self, File>, PathError> {
        match file.try_lock() {
            Ok(()) => Ok(Ok(Self { file, process: Process::current() })),
            Err(TryLockError::WouldBlock) => Ok(Err(file)),
            Err(TryLockError::Error(source)) => Err(source).at("lock", path)?,
        }
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The process that it belongs to.
    pub fn process(&self) -> Process {
        self.process
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing does not give the lock back while a program that the host is starting still has a copy of the
        // file; and a copy in a forked process must not give it back. What fails here, closing mends.
        if self.process.is_current() {
            let _ = self.file.unlock();
        }
    }
}
