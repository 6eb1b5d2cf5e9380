//! I/O errors with the path that they are about.

use std::io;
use std::path::{Path, PathBuf};

/// An I/O error that names its path and what was being done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct PathError {
    /// The verb, such as `read`.
    pub doing: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Gives an I/O result its path: `fs::read(p).at("read", p)`.
pub trait AtPath<T> {
    /// Wraps the error, if there is one.
    fn at(self, doing: &'static str, path: &Path) -> Result<T, PathError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, PathError> {
        self.map_err(|source| PathError { doing, path: path.to_owned(), source })
    }
}
