//! Where in a document the value of a key part lies.
//!
//! A path is written `address.city`; names that hold other characters than letters, digits and `_` stand in
//! backticks (`` `MPAA Rating` ``, a doubled backtick is one backtick); `tags[]` stands for each element of an
//! array, `geo[0]` for one. A path begins with a member name, because a document's top is an object.
//!
//! Invariants: a path has 1 to [`STEPS_MAX`] steps and at most one `[]`; its [`Display`](fmt::Display) text
//! parses to the same path, and equal paths have equal texts.

use std::fmt;
use std::iter::Peekable;
use std::str::{Chars, FromStr};

use crate::text::stored_as_text;

use super::shown;

/// The most steps of one path.
pub const STEPS_MAX: usize = 64;

/// A path to a value in a document, serialised as its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPath {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// The member of an object with this name.
    Member(String),
    /// The element of an array at this place, from zero.
    Element(u32),
    /// Each element of an array.
    Each,
}

/// Why a text is no path. Positions are counted in characters, from one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyPathError {
    /// A character stands where it cannot.
    #[error("path `{path}`: at character {position}: found {found}, expected {expected}")]
    Syntax {
        /// The path.
        path: String,
        /// Where in the path.
        position: usize,
        /// What stands there.
        found: String,
        /// What could stand there.
        expected: &'static str,
    },
    /// The path has more than [`STEPS_MAX`] steps.
    #[error("path `{path}`: at character {position}: found step {}, expected at most {STEPS_MAX}", STEPS_MAX + 1)]
    TooManySteps {
        /// The path.
        path: String,
        /// Where the first step too many ends.
        position: usize,
    },
}

impl KeyPath {
    /// Parses paths that are separated by commas; commas in backticks belong to a name. There is always at
    /// least one path to parse, so an empty text is an error.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, KeyPathError> {
        let mut quoted = false;
        text.split(|c| {
            quoted ^= c == '`';
            c == ',' && !quoted
        })
        .map(Self::from_str)
        .collect()
    }

    /// Whether the path holds a `[]`, that is, whether it may have several values in one document.
    pub fn is_array(&self) -> bool {
        self.steps.contains(&Step::Each)
    }

    /// The way to the value.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }
}

pub(super) fn is_plain(c: char) -> bool {
    c.is_alphabetic() || c.is_ascii_digit() || c == '_'
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, step) in self.steps.iter().enumerate() {
            match step {
                Step::Member(name) => {
                    let dot = if count == 0 { "" } else { "." };
                    if !name.is_empty() && name.chars().all(is_plain) {
                        write!(f, "{dot}{name}")?;
                    } else {
                        write!(f, "{dot}`{}`", name.replace('`', "``"))?;
                    }
                }
                Step::Element(place) => write!(f, "[{place}]")?,
                Step::Each => f.write_str("[]")?,
            }
        }
        Ok(())
    }
}

impl FromStr for KeyPath {
    type Err = KeyPathError;

    fn from_str(text: &str) -> Result<Self, KeyPathError> {
        let mut parser = Parser { text, chars: text.chars().peekable(), position: 1 };
        let mut steps = vec![Step::Member(parser.member()?)];
        while let Some(next) = parser.peek() {
            steps.push(match next {
                '.' => {
                    parser.advance();
                    Step::Member(parser.member()?)
                }
                '[' => parser.subscript(steps.contains(&Step::Each))?,
                _ => {
                    return Err(parser.unexpected(
                        "`.`, `[` or the end (a name with other characters than letters, digits and `_` stands in \
                         backticks)",
                    ));
                }
            });
            if steps.len() > STEPS_MAX {
                return Err(KeyPathError::TooManySteps { path: shown(text), position: parser.position - 1 });
            }
        }
        Ok(Self { steps })
    }
}

stored_as_text!(KeyPath);

struct Parser<'t> {
    text: &'t str,
    chars: Peekable<Chars<'t>>,
    /// Of the next character.
    position: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().copied()
    }

    fn advance(&mut self) -> Option<char> {
        self.chars.next().inspect(|_| self.position += 1)
    }

    fn advance_if(&mut self, wanted: impl FnOnce(char) -> bool) -> Option<char> {
        self.chars.next_if(|c| wanted(*c)).inspect(|_| self.position += 1)
    }

    fn member(&mut self) -> Result<String, KeyPathError> {
        if self.advance_if(|c| c == '`').is_some() {
            return self.quoted();
        }
        let mut name = String::new();
        while let Some(c) = self.advance_if(is_plain) {
            name.push(c);
        }
        if name.is_empty() { Err(self.unexpected("a member name")) } else { Ok(name) }
    }

    /// The rest of a name in backticks.
    fn quoted(&mut self) -> Result<String, KeyPathError> {
        let mut name = String::new();
        loop {
            match self.advance() {
                Some('`') if self.advance_if(|c| c == '`').is_some() => name.push('`'),
                Some('`') => return Ok(name),
                Some(c) => name.push(c),
                None => return Err(self.unexpected("a closing backtick")),
            }
        }
    }

    fn subscript(&mut self, has_each: bool) -> Result<Step, KeyPathError> {
        let opening = self.position;
        self.advance();
        let start = self.position;
        let mut digits = String::new();
        while let Some(c) = self.advance_if(|c| c.is_ascii_digit()) {
            digits.push(c);
        }
        if self.peek() != Some(']') {
            return Err(self.unexpected(if digits.is_empty() {
                "an element's place or `]`"
            } else {
                "a digit or `]`"
            }));
        }
        self.advance();
        match digits.parse() {
            Ok(place) => Ok(Step::Element(place)),
            Err(_) if digits.is_empty() && has_each => {
                Err(self.syntax(opening, "a second `[]`".to_owned(), "at most one in a path"))
            }
            Err(_) if digits.is_empty() => Ok(Step::Each),
            Err(_) => Err(self.syntax(start, format!("`{}`", shown(&digits)), "a place up to 4294967295")),
        }
    }

    fn unexpected(&mut self, expected: &'static str) -> KeyPathError {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some('`') => "a backtick".to_owned(),
            Some(c) => format!("`{}`", shown(c.encode_utf8(&mut [0; 4]))),
        };
        self.syntax(self.position, found, expected)
    }

    fn syntax(&self, position: usize, found: String, expected: &'static str) -> KeyPathError {
        KeyPathError::Syntax { path: shown(self.text), position, found, expected }
    }
}
