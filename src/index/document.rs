//! Documents as JSON text: checked as a whole, and read no further than somebody asks.
//!
//! A document is JSON in UTF-8 with at most [`DOCUMENT_DEPTH_MAX`] arrays and objects within each other. The last of
//! duplicate members wins. Integers of 64 bits keep their value, other numbers are the nearest double.
//!
//! The text is walked by the readers of serde, whose values are made only for who asks: by [a quick one](super::json),
//! and where that refuses the text by `serde_json`, which reads all the rest and says what is wrong. Other crates were
//! measured as they are, each over the whole document with the same members taken out, on documents of 200 B, 2 KiB and
//! 20 KiB: `serde_json` took 0.46, 1.7 and 15 µs, `sonic-rs` 0.5 as a reader of serde 0.59, 2.4 and 22, its lazy values
//! 1.2, 2.2 and 13, `simd-json` 0.19 0.45, 2.2 and 21 with the copy that it wants to write into, and `jiter` 0.19 0.65,
//! 2.5 and 21; values of `serde_json` took 1.3, 8 and 101. Documents that nest deep overflow the stack of `sonic-rs`,
//! which ends the process (its issue 232). What `serde_json` skips it does not check enough for a document: any depth
//! passes, numbers beyond a double and halves of surrogate pairs.
//!
//! Invariants: the stack that a document takes is bounded, as every seed below counts its depth, and so does skipping;
//! whether a text is a document does not depend on who asks for what.

use std::cell::OnceCell;
use std::fmt;
use std::str::Utf8Error;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::event::Xattrs;

use super::json;

/// The most arrays and objects that may lie within each other in a document.
pub const DOCUMENT_DEPTH_MAX: usize = 128;

/// Why bytes are no document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// They are no text.
    #[error("it is no JSON: {0}")]
    Utf8(#[from] Utf8Error),
    /// The text is no JSON, or nests too deep.
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A document that an evaluator is asked about. Its value is made when it is first asked for.
pub struct Document<'d> {
    text: Option<&'d [u8]>,
    xattrs: Xattrs<'d>,
    value: OnceCell<Value>,
}

impl<'d> Document<'d> {
    /// A document of JSON.
    pub fn json(text: &'d [u8]) -> Self {
        Self { text: Some(text), xattrs: Xattrs::default(), value: OnceCell::new() }
    }

    /// A document of anything else. Its value is null.
    pub fn binary() -> Self {
        Self { text: None, xattrs: Xattrs::default(), value: OnceCell::new() }
    }

    /// The same document with these extended attributes.
    #[must_use]
    pub fn with_xattrs(self, xattrs: Xattrs<'d>) -> Self {
        Self { xattrs, ..self }
    }

    /// Its extended attributes, those of the system among them. Documents of files have none.
    pub fn xattrs(&self) -> Xattrs<'d> {
        self.xattrs.clone()
    }

    /// The text, if it is JSON.
    pub fn text(&self) -> Option<&'d [u8]> {
        self.text
    }

    /// The whole document as a value, made once for all who ask.
    pub fn value(&self) -> Result<&Value, DocumentError> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let value = self.text.map(|text| read(text, |place| ValueSeed { place })).transpose()?;
        Ok(self.value.get_or_init(|| value.unwrap_or_default()))
    }
}

/// Reads a document to its end with a seed that counts depth, from the place that it is given. It may be made twice.
pub(crate) fn read<'d, S: DeserializeSeed<'d>>(
    text: &'d [u8],
    seed: impl Fn(Place) -> S,
) -> Result<S::Value, DocumentError> {
    let text = std::str::from_utf8(text)?;
    match json::read(text, &mut String::new(), seed(Place::CHECKED)) {
        Ok(read) => Ok(read),
        Err(json::Refused) => read_slowly(text, seed(Place::TOP)),
    }
}

/// The same of a text that is not read quickly, or is no document.
pub(super) fn read_slowly<'d, S: DeserializeSeed<'d>>(
    text: &'d str,
    seed: S,
) -> Result<S::Value, DocumentError> {
    let mut reader = serde_json::Deserializer::from_str(text);
    // Its own limit is one lower, and the seeds count.
    reader.disable_recursion_limit();
    let read = seed.deserialize(&mut reader)?;
    reader.end()?;
    Ok(read)
}

/// Where in a document a value lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Arrays and objects around it.
    depth: usize,
    /// The reader checks what it skips.
    may_skip: bool,
}

impl Place {
    /// The whole document, of which nothing is skipped.
    pub(crate) const TOP: Self = Self { depth: 0, may_skip: false };
    /// The same where what nobody asks for may be.
    pub(super) const CHECKED: Self = Self { may_skip: true, ..Self::TOP };

    /// The place of what lies within an array or object.
    pub(crate) fn within<E: Error>(self) -> Result<Self, E> {
        if self.depth == DOCUMENT_DEPTH_MAX {
            return Err(E::custom(format_args!(
                "more than {DOCUMENT_DEPTH_MAX} arrays and objects lie within each other"
            )));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

/// The visits to what is neither array nor object, where none of them matters.
macro_rules! pass_scalars {
    () => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON value")
        }
        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
        fn visit_bool<E>(self, _: bool) -> Result<(), E> {
            Ok(())
        }
        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }
        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }
        fn visit_f64<E>(self, _: f64) -> Result<(), E> {
            Ok(())
        }
        fn visit_str<E>(self, _: &str) -> Result<(), E> {
            Ok(())
        }
    };
}
pub(super) use pass_scalars;

/// Checks a value that nobody asks for.
#[derive(Clone, Copy)]
pub(crate) struct Pass {
    pub(crate) place: Place,
}

impl<'d> DeserializeSeed<'d> for Pass {
    type Value = ();

    fn deserialize<D: Deserializer<'d>>(self, reader: D) -> Result<(), D::Error> {
        if self.place.may_skip {
            return reader.deserialize_ignored_any(self);
        }
        reader.deserialize_any(self)
    }
}

impl<'d> Visitor<'d> for Pass {
    type Value = ();

    pass_scalars!();

    fn visit_seq<A: SeqAccess<'d>>(self, mut elements: A) -> Result<(), A::Error> {
        let inner = Self { place: self.place.within()? };
        while elements.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'d>>(self, mut members: A) -> Result<(), A::Error> {
        let inner = Self { place: self.place.within()? };
        // A name is a text like any other.
        while members.next_key_seed(inner)?.is_some() {
            members.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// Makes a value.
#[derive(Clone, Copy)]
pub(super) struct ValueSeed {
    pub(super) place: Place,
}

impl<'d> DeserializeSeed<'d> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'d>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'d> Visitor<'d> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut elements: A) -> Result<Value, A::Error> {
        let inner = Self { place: self.place.within()? };
        let mut all = Vec::new();
        while let Some(element) = elements.next_element_seed(inner)? {
            all.push(element);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'d>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = Self { place: self.place.within()? };
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            all.insert(name, members.next_value_seed(inner)?);
        }
        Ok(all.into())
    }
}
