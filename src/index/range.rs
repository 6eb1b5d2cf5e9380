//! Which entries lie between two keys.
//!
//! The ends of a range are JSON arrays that need not be whole keys: the beginning of a key stands for every key
//! that begins so. Stored entries are an encoded key followed by a document id in UTF-8, so no byte `FF`
//! follows an encoded prefix, and prefix and `FF` together lie just beyond all entries of that prefix.
//!
//! Invariant: a low bound is never beyond its high bound, also where the range that was asked for is empty,
//! because ordered maps refuse such a pair.

use std::fmt;
use std::ops::Bound;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::collate::{EncodeError, encode_value};
use super::document::{ValueSeed, read};
use super::shown;

/// No byte of an entry after a prefix of its key is as high.
pub(super) const BEYOND: u8 = 0xff;

/// The low and the high bound of stored entries, as ordered maps take them.
pub type KeyBounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// What part of an index is asked for. Without ends it is the whole index.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeyRange {
    /// First parts of the lowest keys; no parts bound nothing.
    pub from: Option<Vec<Value>>,
    /// First parts of the highest keys; no parts bound nothing.
    pub to: Option<Vec<Value>>,
    /// Whether keys that begin with `from` are left out.
    pub from_exclusive: bool,
    /// Whether keys that begin with `to` are left out.
    pub to_exclusive: bool,
}

/// Why an index cannot be asked for this range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// A bound is not a JSON array.
    #[error("cannot use `{given}` as a bound: {why}, expected a JSON array such as [\"DE\",\"Berlin\"]")]
    NotAnArray {
        /// The bound.
        given: String,
        /// What it is instead.
        why: String,
    },
    /// A text is not a range.
    #[error(
        "cannot use `{given}` as a range: {why}; expected a JSON object such as \
         {{\"from\":[\"DE\"],\"to\":[\"FR\"],\"exclusive_to\":true}}"
    )]
    NotARange {
        /// The text.
        given: String,
        /// What is wrong.
        why: String,
    },
    /// A bound has more parts than the keys.
    #[error("cannot use a bound of {given} parts: the index has keys of {components}, give at most as many")]
    TooManyParts {
        /// Parts of the bound.
        given: usize,
        /// Parts of the keys.
        components: usize,
    },
    /// A part of a bound cannot be part of a key.
    #[error("cannot use part {part} of a bound: {source}: give fewer parts")]
    Part {
        /// Which part, from one.
        part: usize,
        /// What is wrong.
        source: EncodeError,
    },
}

/// The members of a range as JSON. The ends are read as any other end is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeText<'t> {
    #[serde(borrow)]
    from: Option<&'t RawValue>,
    #[serde(borrow)]
    to: Option<&'t RawValue>,
    #[serde(default)]
    exclusive_from: bool,
    #[serde(default)]
    exclusive_to: bool,
}

impl KeyRange {
    /// Parses a range: a JSON object with the members `from` and `to`, which are ends as [`KeyRange::parse_bound`]
    /// takes them, and `exclusive_from` and `exclusive_to`. All may be left out.
    pub fn parse(text: &str) -> Result<Self, RangeError> {
        let wrong =
            |why: &dyn fmt::Display| RangeError::NotARange { given: shown(text), why: why.to_string() };
        // An array would be read too, as the members in their order.
        if !text.trim_start().starts_with('{') {
            return Err(wrong(&"it is no object"));
        }
        let range: RangeText<'_> = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        let end = |end: Option<&RawValue>| end.map(|end| Self::parse_bound(end.get())).transpose();
        Ok(Self {
            from: end(range.from)?,
            to: end(range.to)?,
            from_exclusive: range.exclusive_from,
            to_exclusive: range.exclusive_to,
        })
    }

    /// Parses one end of a range, a JSON array.
    pub fn parse_bound(text: &str) -> Result<Vec<Value>, RangeError> {
        // As deep as a document, because that is how deep the key of one may be with the array around it.
        let why = match read(text.as_bytes(), |place| ValueSeed { place }) {
            Ok(Value::Array(parts)) => return Ok(parts),
            Ok(Value::Object(_)) => "it is an object".to_owned(),
            Ok(_) => "it is a single value".to_owned(),
            Err(e) => e.to_string(),
        };
        Err(RangeError::NotAnArray { given: shown(text), why })
    }

    /// The low and the high bound of the entries, in an index whose keys have `components` parts.
    pub fn bounds(&self, components: usize) -> Result<KeyBounds, RangeError> {
        let low = prefix(self.from.as_deref(), self.from_exclusive, components)?;
        let high = prefix(self.to.as_deref(), !self.to_exclusive, components)?;
        Ok(match (low, high) {
            (Some(low), Some(high)) => {
                let high = if low > high { low.clone() } else { high };
                (Bound::Included(low), Bound::Excluded(high))
            }
            (low, high) => (
                low.map_or(Bound::Unbounded, Bound::Included),
                high.map_or(Bound::Unbounded, Bound::Excluded),
            ),
        })
    }
}

/// The place just before all entries whose keys begin with `parts`, or just beyond them; `None` without parts.
fn prefix(parts: Option<&[Value]>, beyond: bool, components: usize) -> Result<Option<Vec<u8>>, RangeError> {
    let parts = parts.unwrap_or_default();
    if parts.is_empty() {
        return Ok(None);
    }
    if parts.len() > components {
        return Err(RangeError::TooManyParts { given: parts.len(), components });
    }
    let mut bytes = Vec::new();
    for (place, part) in parts.iter().enumerate() {
        encode_value(part, &mut bytes).map_err(|source| RangeError::Part { part: place + 1, source })?;
    }
    bytes.extend(beyond.then_some(BEYOND));
    Ok(Some(bytes))
}
