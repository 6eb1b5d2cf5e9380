//! One line of a replayed file: what it changes, and what can be wrong with it.
//!
//! Invariant: a document that is accepted here is one to the reader of [`crate::index`] as well, because that is what
//! checks it, so evaluation finds nothing wrong with it later.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{DOCUMENT_BYTES_MAX, KEY_BYTES_MAX};
use crate::index::{DocumentError, Pass, Place, read};

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// Not JSON, or not the JSON that is expected.
    #[error("it is not JSON of the expected form: {0}")]
    Json(String),
    /// The file ends within the line.
    #[error("the file ends in the middle of the line; was it copied or written to its end?")]
    CutOff,
    /// Larger than a document may be.
    #[error("its document is larger than {} MiB", DOCUMENT_BYTES_MAX >> 20)]
    TooLarge,
    /// No member with the document's id.
    #[error("it has no member `{0}`")]
    NoId(String),
    /// The id is no string.
    #[error("its id is no string")]
    IdNoString,
    /// The id is empty or too long.
    #[error("its id has {0} bytes; 1 to {KEY_BYTES_MAX} are allowed")]
    IdLength(usize),
    /// The operation of a change is unknown.
    #[error("its `op` is `{0}`; `upsert`, `delete` and `expire` are known")]
    UnknownOp(String),
    /// An upsert without document.
    #[error("it is an upsert without a `doc`")]
    NoDocument,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<'l> {
    /// The document is the whole line, or this part of it.
    Upsert {
        id: Cow<'l, str>,
        document: &'l [u8],
    },
    Delete {
        id: Cow<'l, str>,
    },
    Expire {
        id: Cow<'l, str>,
    },
}

/// Reads a line that is a document with its id in the member `id_field`.
pub(super) fn parse_document<'l>(line: &'l [u8], id_field: &str) -> Result<Change<'l>, LineProblem> {
    if line.len() > DOCUMENT_BYTES_MAX {
        return Err(LineProblem::TooLarge);
    }
    let id = read(line, |place| FindId { field: id_field, place }).map_err(bad_document)?;
    let id = id.ok_or_else(|| LineProblem::NoId(id_field.to_owned()))?.check()?;
    Ok(Change::Upsert { id, document: line })
}

/// Reads a line of a change file: `{"op":…,"id":…,"doc":…}`.
pub(super) fn parse_change(line: &[u8]) -> Result<Change<'_>, LineProblem> {
    // An array would be read too, as the members in their order.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(LineProblem::Json("a change is an object".to_owned()));
    }
    let change: ChangeLine<'_> = serde_json::from_slice(line).map_err(json_problem)?;
    let id = change.id.ok_or_else(|| LineProblem::NoId("id".to_owned()))?.check()?;
    match change.op.as_ref() {
        "upsert" => {
            let document = change.doc.ok_or(LineProblem::NoDocument)?.get().as_bytes();
            if document.len() > DOCUMENT_BYTES_MAX {
                return Err(LineProblem::TooLarge);
            }
            read(document, |place| Pass { place }).map_err(bad_document)?;
            Ok(Change::Upsert { id, document })
        }
        "delete" => Ok(Change::Delete { id }),
        "expire" => Ok(Change::Expire { id }),
        other => Err(LineProblem::UnknownOp(other.chars().take(40).collect())),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn json_problem(error: serde_json::Error) -> LineProblem {
    // A line is one line to the parser as well: its "line 1" would only contradict the file's line number.
    let text = error.to_string();
    LineProblem::Json(text.replacen(" at line 1 column ", " at column ", 1))
}

fn bad_document(error: DocumentError) -> LineProblem {
    match error {
        DocumentError::Json(error) => json_problem(error),
        DocumentError::Utf8(error) => LineProblem::Json(error.to_string()),
    }
}

#[derive(Deserialize)]
struct ChangeLine<'l> {
    #[serde(borrow)]
    op: Cow<'l, str>,
    #[serde(borrow, default)]
    id: Option<Id<'l>>,
    #[serde(borrow, default)]
    doc: Option<&'l RawValue>,
}

/// The value of an id member.
#[derive(Debug)]
enum Id<'l> {
    Text(Cow<'l, str>),
    Other,
}

impl<'l> Id<'l> {
    fn check(self) -> Result<Cow<'l, str>, LineProblem> {
        match self {
            Self::Other => Err(LineProblem::IdNoString),
            Self::Text(id) if id.is_empty() || id.len() > KEY_BYTES_MAX => {
                Err(LineProblem::IdLength(id.len()))
            }
            Self::Text(id) => Ok(id),
        }
    }
}

impl<'de: 'l, 'l> Deserialize<'de> for Id<'l> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ReadId { place: Place::TOP }.deserialize(deserializer)
    }
}

/// Reads an id, or checks what stands in its place.
struct ReadId {
    place: Place,
}

impl<'de> DeserializeSeed<'de> for ReadId {
    type Value = Id<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Id<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadId {
    type Value = Id<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Id<'de>, E> {
        Ok(Id::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Id<'de>, E> {
        Ok(Id::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_unit<E>(self) -> Result<Id<'de>, E> {
        Ok(Id::Other)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Id<'de>, E> {
        Ok(Id::Other)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Id<'de>, E> {
        Ok(Id::Other)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Id<'de>, E> {
        Ok(Id::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Id<'de>, E> {
        Ok(Id::Other)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Id<'de>, A::Error> {
        Pass { place: self.place }.visit_seq(seq).map(|()| Id::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Id<'de>, A::Error> {
        Pass { place: self.place }.visit_map(map).map(|()| Id::Other)
    }
}

/// Finds the id of a document and checks everything else on the way.
struct FindId<'f> {
    field: &'f str,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for FindId<'_> {
    type Value = Option<Id<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FindId<'_> {
    type Value = Option<Id<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let place = self.place.within()?;
        let mut id = None;
        while let Some(is_id) = map.next_key_seed(IsName(self.field))? {
            if is_id {
                // The last of duplicate members wins.
                id = Some(map.next_value_seed(ReadId { place })?);
            } else {
                map.next_value_seed(Pass { place })?;
            }
        }
        Ok(id)
    }
}

/// Compares a member's name without keeping it.
struct IsName<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
