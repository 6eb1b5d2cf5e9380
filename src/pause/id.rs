//! The names of pauses and of attempts to pause.
//!
//! Both end in 64 random bits, because an archive may be written by processes that do not know of each other,
//! and no store is trusted to refuse a key that was used before.
//!
//! Invariant: an id has one spelling; a text that reads as an id prints as the same text.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::event::Generation;
use crate::text::stored_as_text;

/// The highest generation: ten digits.
pub const GENERATION_MAX: Generation = Generation(9_999_999_999);

/// Names one published pause of a bucket: `<generation, 10 digits>-<random, 16 hexadecimal digits>`.
///
/// Ids are ordered by generation: the later pause is the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PauseId {
    generation: Generation,
    random: u64,
}

/// Names one attempt to pause: 16 random hexadecimal digits. Objects that an attempt uploads carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(u64);

/// Why there is no such id.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is no pause id.
    #[error("{0:?} is no pause: it takes 10 digits, a dash and 16 lower-case hexadecimal digits")]
    Pause(String),
    /// The text is no attempt id.
    #[error("{0:?} is no attempt: it takes 16 lower-case hexadecimal digits")]
    Attempt(String),
    /// Every generation was used.
    #[error("no generation comes after {GENERATION_MAX}: use another archive")]
    UsedUp,
    /// The system gave no random bits.
    #[error("cannot get random bits for an id: {0}")]
    Random(io::Error),
}

impl PauseId {
    /// A new id of the generation after `latest`, the greatest id that the archive lists for the bucket, or might.
    pub fn following(latest: Option<Self>) -> Result<Self, IdError> {
        let used = latest.map_or(Generation(0), Self::generation);
        if used >= GENERATION_MAX {
            return Err(IdError::UsedUp);
        }
        Ok(Self { generation: Generation(used.0 + 1), random: random()? })
    }

    /// Counts the pauses of a bucket in an archive, from 1.
    pub fn generation(self) -> Generation {
        self.generation
    }
}

impl AttemptId {
    /// A new id.
    pub fn generate() -> Result<Self, IdError> {
        random().map(Self)
    }
}

fn random() -> Result<u64, IdError> {
    getrandom::u64().map_err(|e| IdError::Random(io::Error::other(e.to_string())))
}

/// Exactly 16 lower-case hexadecimal digits.
pub(super) fn parse_hex(text: &str) -> Option<u64> {
    let value = u64::from_str_radix(text, 16).ok()?;
    (format!("{value:016x}") == text).then_some(value)
}

impl fmt::Display for PauseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:016x}", self.generation.0, self.random)
    }
}

impl FromStr for PauseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parse = || {
            let (generation, random) = text.split_once('-')?;
            let id = Self { generation: Generation(generation.parse().ok()?), random: parse_hex(random)? };
            (id.generation <= GENERATION_MAX && id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| IdError::Pause(text.to_owned()))
    }
}

stored_as_text!(PauseId);

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for AttemptId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text).map(Self).ok_or_else(|| IdError::Attempt(text.to_owned()))
    }
}

stored_as_text!(AttemptId);
