//! Which documents an index is about: a small expression over the paths of their members.
//!
//! ```text
//! country = "DE" and (altitude >= 1000 or type in ["heliport", "seaplane_base"])
//! exists `MPAA Rating` and not title like "The %"
//! tags[] = "pool" and price < list_price
//! ```
//!
//! A test is `PATH OP VALUE` with one of `= != < <= > >=`, where VALUE is JSON or another path; `PATH in [VALUE, …]`;
//! `PATH like "text%"`, which is a beginning (a `%`, `_` or `\` of the text itself stands behind a `\`); or
//! `exists PATH`. Tests are joined by `not`, `and`, `or`, in this order of precedence, and parentheses. Paths that
//! are called like one of these words, or `true`, `false` and `null`, stand in backticks. A path with `[]` stands for
//! any element.
//!
//! Values compare as in keys: `null` is a value, 1 and 1.0 are equal, strings go by code point. A comparison says
//! *nothing* where a path is missing, and so do `<` and its like between values of different types; `not` of nothing
//! is nothing, and `and` and `or` say something only where the other side settles it. A document for which the filter
//! says nothing, or no, has no entry.
//!
//! Known languages were judged first. CEL (`cel` 0.15) takes a missing member for an error, and has names of its own
//! kind in place of these paths. `JMESPath` (`jmespath` 0.5) does not tell missing from null, and orders nothing but
//! numbers. `JSONPath` (`serde_json_path` 0.7) fits best, but has no `in`, and prefixes as regular expressions alone.
//! All three are crates below 1.0 that want the whole document as a value of theirs, which takes longer to make than
//! all the rest of an evaluation; this one compares encoded values, which the keys need anyway.
//!
//! Invariants: a filter has at most [`FILTER_BYTES_MAX`] bytes, given and shown, and nests at most [`FILTER_DEPTH_MAX`]
//! deep; its [`Display`](fmt::Display) text parses to an equal filter.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::text::stored_as_text;

use super::collate::encode_value_within;
use super::evaluate::KEY_BYTES_MAX;
use super::path::{KeyPath, KeyPathError, is_plain};
use super::shown;

/// The longest text of a filter, as it is given and as it is shown: with a space around each sign.
pub const FILTER_BYTES_MAX: usize = 8192;
/// The most parentheses and `not` within each other.
pub const FILTER_DEPTH_MAX: usize = 64;

const WORDS: [&str; 9] = ["and", "or", "not", "exists", "in", "like", "true", "false", "null"];

/// An expression over the members of a document, serialised as its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(pub(super) Expr<KeyPath>);

/// An expression whose paths are told by `P`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr<P> {
    And(Vec<Self>),
    Or(Vec<Self>),
    Not(Box<Self>),
    Exists(P),
    Compare(P, Comparison, Operand<P>),
    In(P, Vec<Literal>),
    Like(P, Literal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operand<P> {
    Path(P),
    Value(Literal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// A value and its encoding, by which it is compared.
#[derive(Debug, Clone)]
pub(super) struct Literal {
    value: Value,
    pub(super) bytes: Vec<u8>,
}

impl PartialEq for Literal {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Literal {}

/// Why a text is no filter. Positions are counted in characters, from one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Something stands where it cannot.
    #[error("filter `{filter}`: at character {position}: found {found}, expected {expected}")]
    Syntax {
        /// The filter.
        filter: String,
        /// Where in it.
        position: usize,
        /// What stands there.
        found: String,
        /// What could stand there.
        expected: &'static str,
    },
    /// A path is none.
    #[error("filter `{filter}`: {source}")]
    Path {
        /// The filter.
        filter: String,
        /// What is wrong.
        source: KeyPathError,
    },
    /// It is too long.
    #[error(
        "a filter of {found_bytes} bytes, as it is given or as it is stored with a space around each sign, is too long, \
         expected at most {FILTER_BYTES_MAX}"
    )]
    TooLong {
        /// Bytes of its text, as it is given or as it is shown.
        found_bytes: usize,
    },
}

impl Comparison {
    const ALL: [(&'static str, Self); 6] = [
        ("!=", Self::Unequal),
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("=", Self::Equal),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    fn sign(self) -> &'static str {
        Self::ALL.iter().find(|(_, comparison)| *comparison == self).map_or("=", |(sign, _)| sign)
    }
}

impl<P> Expr<P> {
    /// The same with its paths told in another way.
    pub(super) fn map<Q>(&self, tell: &mut impl FnMut(&P) -> Q) -> Expr<Q> {
        match self {
            Self::And(all) => Expr::And(all.iter().map(|expr| expr.map(tell)).collect()),
            Self::Or(all) => Expr::Or(all.iter().map(|expr| expr.map(tell)).collect()),
            Self::Not(expr) => Expr::Not(Box::new(expr.map(tell))),
            Self::Exists(path) => Expr::Exists(tell(path)),
            Self::Compare(path, how, Operand::Path(other)) => {
                Expr::Compare(tell(path), *how, Operand::Path(tell(other)))
            }
            Self::Compare(path, how, Operand::Value(literal)) => {
                Expr::Compare(tell(path), *how, Operand::Value(literal.clone()))
            }
            Self::In(path, literals) => Expr::In(tell(path), literals.clone()),
            Self::Like(path, prefix) => Expr::Like(tell(path), prefix.clone()),
        }
    }

    fn joined(mut all: Vec<Self>, is_and: bool) -> Self {
        if all.len() == 1
            && let Some(only) = all.pop()
        {
            return only;
        }
        let mut flat = Vec::with_capacity(all.len());
        for expr in all {
            match expr {
                Self::And(inner) if is_and => flat.extend(inner),
                Self::Or(inner) if !is_and => flat.extend(inner),
                other => flat.push(other),
            }
        }
        if is_and { Self::And(flat) } else { Self::Or(flat) }
    }
}

impl Filter {
    /// The paths that it names.
    pub(super) fn paths(&self) -> Vec<KeyPath> {
        let mut paths = Vec::new();
        self.0.map(&mut |path| paths.push(path.clone()));
        paths
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A path as a filter has it: words of the language stand in backticks.
struct Named<'p>(&'p KeyPath);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let first = text.split(|c| !is_plain(c)).next().unwrap_or_default();
        if is_word(first) || first.starts_with(|c: char| c.is_ascii_digit()) {
            let rest = text.get(first.len()..).unwrap_or_default();
            return write!(f, "`{first}`{rest}");
        }
        f.write_str(&text)
    }
}

fn is_word(name: &str) -> bool {
    WORDS.iter().any(|word| word.eq_ignore_ascii_case(name))
}

impl fmt::Display for Expr<KeyPath> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, all: &[Self], joint: &str| {
            all.iter().enumerate().try_for_each(|(count, expr)| {
                f.write_str(if count == 0 { "" } else { joint })?;
                match expr {
                    Self::Or(_) => write!(f, "({expr})"),
                    _ => write!(f, "{expr}"),
                }
            })
        };
        match self {
            Self::And(all) => list(f, all, " and "),
            Self::Or(all) => list(f, all, " or "),
            Self::Not(expr) if matches!(**expr, Self::And(_) | Self::Or(_)) => write!(f, "not ({expr})"),
            Self::Not(expr) => write!(f, "not {expr}"),
            Self::Exists(path) => write!(f, "exists {}", Named(path)),
            Self::Compare(path, how, Operand::Path(other)) => {
                write!(f, "{} {} {}", Named(path), how.sign(), Named(other))
            }
            Self::Compare(path, how, Operand::Value(literal)) => {
                write!(f, "{} {} {}", Named(path), how.sign(), literal.value)
            }
            Self::In(path, literals) => {
                write!(f, "{} in [", Named(path))?;
                for (count, literal) in literals.iter().enumerate() {
                    write!(f, "{}{}", if count == 0 { "" } else { ", " }, literal.value)?;
                }
                f.write_str("]")
            }
            Self::Like(path, prefix) => {
                let mut pattern = String::new();
                for c in prefix.value.as_str().unwrap_or_default().chars() {
                    pattern.extend(matches!(c, '%' | '_' | '\\').then_some('\\'));
                    pattern.push(c);
                }
                write!(f, "{} like {}", Named(path), Value::from(pattern + "%"))
            }
        }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        check_length(text)?;
        let mut parser = Parser { text, at: 0, depth: 0 };
        let expr = parser.either()?;
        if parser.peek().is_some() {
            return Err(parser.unexpected("`and`, `or` or the end"));
        }
        let filter = Self(expr);
        // It is stored as it is shown, which may take more than was given, and has to be read again.
        check_length(&filter.to_string())?;
        Ok(filter)
    }
}

stored_as_text!(Filter);

fn check_length(text: &str) -> Result<(), FilterError> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(FilterError::TooLong { found_bytes: text.len() });
    }
    Ok(())
}

struct Parser<'t> {
    text: &'t str,
    /// In bytes, always before a character.
    at: usize,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next character that is no white space.
    fn peek(&mut self) -> Option<char> {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        self.rest().chars().next()
    }

    fn take(&mut self, sign: &str) -> bool {
        self.peek();
        let found = self.rest().starts_with(sign);
        self.at += if found { sign.len() } else { 0 };
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        self.peek();
        let rest = self.rest();
        let length = rest.find(|c| !is_plain(c)).unwrap_or(rest.len());
        let found = rest.get(..length).is_some_and(|name| name.eq_ignore_ascii_case(word));
        self.at += if found { length } else { 0 };
        found
    }

    fn either(&mut self) -> Result<Expr<KeyPath>, FilterError> {
        let mut all = vec![self.both()?];
        while self.take_word("or") {
            all.push(self.both()?);
        }
        Ok(Expr::joined(all, false))
    }

    fn both(&mut self) -> Result<Expr<KeyPath>, FilterError> {
        let mut all = vec![self.term()?];
        while self.take_word("and") {
            all.push(self.term()?);
        }
        Ok(Expr::joined(all, true))
    }

    fn term(&mut self) -> Result<Expr<KeyPath>, FilterError> {
        if self.depth == FILTER_DEPTH_MAX {
            return Err(self.unexpected("at most 64 parentheses and `not` within each other"));
        }
        self.depth += 1;
        let expr = if self.take_word("not") {
            Expr::Not(Box::new(self.term()?))
        } else if self.take("(") {
            let expr = self.either()?;
            if !self.take(")") {
                return Err(self.unexpected("`and`, `or` or `)`"));
            }
            expr
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn test(&mut self) -> Result<Expr<KeyPath>, FilterError> {
        if self.take_word("exists") {
            return Ok(Expr::Exists(self.path()?));
        }
        let path = self.path()?;
        if self.take_word("in") {
            let Value::Array(values) = self.value("a JSON array such as [1, 2]", |c| c == '[')? else {
                return Err(self.unexpected("a JSON array"));
            };
            let literals = values.into_iter().map(|value| self.literal(value)).collect::<Result<_, _>>()?;
            return Ok(Expr::In(path, literals));
        }
        if self.take_word("like") {
            return Ok(Expr::Like(path, self.prefix()?));
        }
        let found = Comparison::ALL.iter().find(|(sign, _)| self.take(sign));
        let Some((_, how)) = found else {
            return Err(self.unexpected("`=`, `!=`, `<`, `<=`, `>`, `>=`, `in` or `like`"));
        };
        Ok(Expr::Compare(path, *how, self.operand()?))
    }

    fn path(&mut self) -> Result<KeyPath, FilterError> {
        self.peek();
        let rest = self.rest();
        let name = rest.split(|c| !is_plain(c)).next().unwrap_or_default();
        if is_word(name) {
            return Err(
                self.unexpected("a path (one that is called like a word of the filter stands in backticks)")
            );
        }
        let mut quoted = false;
        let length = rest.find(|c| {
            quoted ^= c == '`';
            !(quoted || is_plain(c) || matches!(c, '`' | '.' | '[' | ']'))
        });
        let text = rest.get(..length.unwrap_or(rest.len())).unwrap_or_default();
        if text.is_empty() {
            return Err(self.unexpected("a path"));
        }
        self.at += text.len();
        text.parse().map_err(|source| FilterError::Path { filter: shown(self.text), source })
    }

    fn operand(&mut self) -> Result<Operand<KeyPath>, FilterError> {
        for (word, value) in
            [("null", Value::Null), ("true", Value::from(true)), ("false", Value::from(false))]
        {
            if self.take_word(word) {
                return self.literal(value).map(Operand::Value);
            }
        }
        let is_value = |c: char| matches!(c, '"' | '[' | '{' | '-') || c.is_ascii_digit();
        if self.peek().is_some_and(is_value) {
            let value = self.value("a JSON value", is_value)?;
            return self.literal(value).map(Operand::Value);
        }
        let start = self.at;
        let path = self.path()?;
        if path.is_array() {
            self.at = start;
            return Err(self.unexpected("a path without `[]` on this side"));
        }
        Ok(Operand::Path(path))
    }

    /// A JSON value, which begins as `begins` says.
    fn value(&mut self, expected: &'static str, begins: impl Fn(char) -> bool) -> Result<Value, FilterError> {
        let Some(first) = self.peek().filter(|c| begins(*c)) else { return Err(self.unexpected(expected)) };
        let rest = self.rest();
        let (value, length) = if first == '-' || first.is_ascii_digit() {
            let is_number = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
            let length = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
            (serde_json::from_str(rest.get(..length).unwrap_or_default()).ok(), length)
        } else {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter();
            (values.next().and_then(Result::ok), values.byte_offset())
        };
        let Some(value) = value else { return Err(self.unexpected(expected)) };
        self.at += length;
        Ok(value)
    }

    fn literal(&mut self, value: Value) -> Result<Literal, FilterError> {
        let mut bytes = Vec::new();
        match encode_value_within(&value, KEY_BYTES_MAX, &mut bytes) {
            Ok(()) => Ok(Literal { value, bytes }),
            Err(_) => Err(self.unexpected("a value before it that is short enough to be part of a key")),
        }
    }

    /// The text before the `%` of a pattern.
    fn prefix(&mut self) -> Result<Literal, FilterError> {
        const EXPECTED: &str = "a string such as \"Ber%\", with one `%`, at its end, and `\\` before a `%`, `_` or `\\` that \
                                stands for itself";
        let start = self.at;
        let value = self.value(EXPECTED, |c| c == '"')?;
        let (mut chars, mut prefix) = (value.as_str().unwrap_or_default().chars().peekable(), String::new());
        while let Some(c) = chars.next() {
            match c {
                '%' if chars.peek().is_none() => {
                    let mut literal = self.literal(Value::from(prefix))?;
                    // Without the end of the string it begins every string that begins so.
                    literal.bytes.pop();
                    return Ok(literal);
                }
                '\\' => match chars.next() {
                    Some(c @ ('%' | '_' | '\\')) => prefix.push(c),
                    _ => break,
                },
                '%' | '_' => break,
                c => prefix.push(c),
            }
        }
        self.at = start;
        Err(self.unexpected(EXPECTED))
    }

    fn unexpected(&mut self, expected: &'static str) -> FilterError {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some('`') => "a backtick".to_owned(),
            Some(_) => {
                let rest = self.rest();
                let length = rest.find(|c| !is_plain(c)).unwrap_or(rest.len());
                let word = rest.get(..length).filter(|word| !word.is_empty());
                format!(
                    "`{}`",
                    shown(word.unwrap_or_else(|| {
                        rest.get(..rest.chars().next().map_or(0, char::len_utf8)).unwrap_or_default()
                    }))
                )
            }
        };
        let position = self.text.get(..self.at).unwrap_or_default().chars().count() + 1;
        FilterError::Syntax { filter: shown(self.text), position, found, expected }
    }
}
