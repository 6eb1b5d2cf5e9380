//! Keys of objects.
//!
//! A key becomes a path in a folder store and a part of a URL in others, and it may come from a manifest that
//! somebody else wrote. It is therefore checked once, when it is made.
//!
//! Invariant: an [`ObjectKey`] joined to a folder names something below that folder, never a temporary file.

use std::fmt;
use std::str::FromStr;

use crate::durable::TEMPORARY_SUFFIX;
use crate::text::stored_as_text;

/// The longest key, in bytes: the limit of S3.
pub const KEY_BYTES_MAX: usize = 1024;

/// The longest segment of a key, in bytes: the limit of common file systems for one name.
pub const SEGMENT_BYTES_MAX: usize = 255;

/// A relative key such as `a/b/c`: 1 to [`KEY_BYTES_MAX`] bytes of segments between slashes.
///
/// No segment is empty, `.` or `..`, is longer than [`SEGMENT_BYTES_MAX`] bytes or ends in the suffix of
/// temporary files; there is no backslash and no control character. The same rules are those of a file's name
/// inside an image, so this type serves for both. Keys are ordered by their bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be the name of an object: {reason}")]
pub struct KeyError {
    /// The text.
    pub text: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl ObjectKey {
    /// Checks `text` and makes it a key.
    pub fn new(text: impl Into<String>) -> Result<Self, KeyError> {
        let text = text.into();
        match broken_rule(&text) {
            Some(reason) => Err(KeyError { text, reason }),
            None => Ok(Self(text)),
        }
    }

    /// The key of `tail` below this one: `self/tail`. `tail` may have several segments.
    pub fn join(&self, tail: &str) -> Result<Self, KeyError> {
        Self::new(format!("{}/{tail}", self.0))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows `folder` and a slash in this key, if this key is below `folder`.
    pub fn below(&self, folder: &Self) -> Option<&str> {
        self.0.strip_prefix(folder.as_str())?.strip_prefix('/')
    }
}

fn broken_rule(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > KEY_BYTES_MAX {
        return Some("it is longer than 1024 bytes");
    }
    if text.contains('\\') {
        return Some("it holds a backslash");
    }
    if text.contains(char::is_control) {
        return Some("it holds a control character");
    }
    text.split('/').find_map(|segment| match segment {
        "" => Some("it begins or ends with a slash or has two in a row"),
        "." | ".." => Some("it holds a segment `.` or `..`"),
        long if long.len() > SEGMENT_BYTES_MAX => Some("a segment is longer than 255 bytes"),
        temporary if temporary.ends_with(TEMPORARY_SUFFIX) => {
            Some("a segment ends in `.tmp`, which marks unfinished files")
        }
        _ => None,
    })
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ObjectKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

stored_as_text!(ObjectKey);
