//! Keys as bytes: an encoding of JSON values whose byte order is the order of the values.
//!
//! Stores compare plain bytes, and a scan must find `2` before `10` and `"a"` before `"ab"` in them. The order
//! is missing < null < false < true < numbers < strings by code point < arrays < objects. Arrays compare
//! element by element, and the shorter of two comes first; objects compare as arrays of their names and values
//! by turns, sorted by name. Each value begins with a tag, and a composite key is its parts one after the
//! other:
//!
//! | value | bytes |
//! |---|---|
//! | missing | `10` |
//! | null | `18` |
//! | false, true | `20`, `28` |
//! | number | `30`, the nearest double (8 bytes), what the number exceeds it by (2 bytes) |
//! | string | `38`, its UTF-8 with `00` as `01 01` and `01` as `01 02`, `00` |
//! | array | `40`, its elements, `00` |
//! | object | `48`, for each member in order of names the name as a string and the value, `00` |
//!
//! The double is big-endian IEEE 754 with all bits inverted if it is negative and only the sign bit if not. The
//! excess is big-endian with an offset of 32768; it is not zero only for integers beyond 2⁵³, and at most 1024
//! for those of 64 bits. Rounding to the nearest double never swaps two numbers, so the double decides first
//! and the excess among those that share it. 1 and 1.0 are one key, and so are 0 and -0.0; a number that fits
//! is decoded as an integer.
//!
//! Invariants: tags lie strictly between `00` and `F0`, so `FF` begins no value and a key followed by `FF` is
//! beyond every continuation of that key; a value ends by itself, so a key is never the beginning of a
//! different one of as many parts; every key has one encoding, and others are refused as damage.
//!
//! Encodings of this kind exist, and none has this order: the crates `memcomparable` and `storekey` write typed
//! Rust values and must be told the type to read them back, so values of different JSON types and numbers of
//! different Rust types do not compare. The tuple layer of `FoundationDB` is self-describing, but puts integers
//! and doubles into separate ranges, and has no objects.

use serde_json::{Map, Number, Value};

/// The most arrays and objects that may lie within each other in a part of a key.
pub const DEPTH_MAX: usize = 128;

/// Ends strings, arrays and objects. It is below every tag and every byte of an escaped string, which puts the
/// shorter one first.
pub(super) const END: u8 = 0x00;
const ESCAPE: u8 = 0x01;
const MISSING: u8 = 0x10;
pub(super) const NULL: u8 = 0x18;
pub(super) const FALSE: u8 = 0x20;
pub(super) const TRUE: u8 = 0x28;
const NUMBER: u8 = 0x30;
const STRING: u8 = 0x38;
pub(super) const ARRAY: u8 = 0x40;
const OBJECT: u8 = 0x48;

const NUMBER_BYTES: usize = 10;
const SIGN: u64 = 1 << 63;
const EXCESS_OFFSET: u16 = 1 << 15;
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

/// Why a value cannot be part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Arrays and objects lie too deep within each other.
    #[error("it holds more than {DEPTH_MAX} arrays and objects within each other")]
    TooDeep,
    /// The encoding takes more bytes than were allowed.
    #[error("it takes more than {limit_bytes} bytes")]
    TooLong {
        /// Bytes that were allowed.
        limit_bytes: usize,
    },
    /// The number is beyond the range of a double.
    #[error("it holds a number beyond the range of a double")]
    NumberRange,
}

/// Why bytes are no key. Places are counted in bytes from the key's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollateError {
    /// The bytes end within a value.
    #[error("cannot read an index key: its {len} bytes end within a value: rebuild the index")]
    Truncated {
        /// Number of bytes that are there.
        len: usize,
    },
    /// No value begins with this byte.
    #[error("cannot read an index key: no value begins with byte {found:#04x} at {at}: rebuild the index")]
    Tag {
        /// The byte.
        found: u8,
        /// Where it stands.
        at: usize,
    },
    /// A value was not written so.
    #[error("cannot read an index key: {what} before byte {at} is damaged: rebuild the index")]
    Damaged {
        /// The kind of value.
        what: &'static str,
        /// Where the value ends.
        at: usize,
    },
    /// Arrays and objects lie too deep within each other.
    #[error(
        "cannot read an index key: more than {DEPTH_MAX} arrays and objects within each other at byte {at}: rebuild \
         the index"
    )]
    TooDeep {
        /// Where the one too many begins.
        at: usize,
    },
}

/// Appends the encoding of `value` to `out`. On an error `out` is as it was.
pub fn encode_value(value: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode_value_within(value, usize::MAX, out)
}

/// Appends the encoding of `value` to `out` if it takes at most `limit_bytes`; `out` grows by no more even
/// while a larger value is looked at. On an error `out` is as it was.
pub fn encode_value_within(value: &Value, limit_bytes: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let result = Encoder { out, start, limit_bytes }.value(value, 0);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Appends the encoding of a part that the document does not have.
pub fn encode_missing(out: &mut Vec<u8>) {
    out.push(MISSING);
}

/// Appends the encoding of a string, which is that of the JSON value.
pub fn encode_str(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    // Nearly no text has such a byte, and most are short: this look has no branch for each byte.
    if bytes.iter().fold(u8::MAX, |lowest, byte| lowest.min(*byte)) > ESCAPE {
        return encode_plain(text, out);
    }
    out.push(STRING);
    let mut rest = bytes;
    while let Some((plain, [byte, behind @ ..])) =
        memchr::memchr2(END, ESCAPE, rest).map(|place| rest.split_at(place))
    {
        out.extend_from_slice(plain);
        out.extend_from_slice(&[ESCAPE, byte + 1]);
        rest = behind;
    }
    out.extend_from_slice(rest);
    out.push(END);
}

/// Appends the encoding of a string without control characters.
pub(super) fn encode_plain(text: &str, out: &mut Vec<u8>) {
    out.push(STRING);
    out.extend_from_slice(text.as_bytes());
    out.push(END);
}

/// Appends the encoding of an integer of 64 bits, with or without a sign.
pub(super) fn encode_integer(integer: i128, out: &mut Vec<u8>) {
    let (nearest, excess) = around(integer);
    push_number(nearest, excess, out);
}

/// Appends the encoding of a double, which JSON has no text for unless it is finite.
pub(super) fn encode_double(double: f64, out: &mut Vec<u8>) {
    // Adding zero makes -0.0 the zero that it equals.
    push_number(double + 0.0, 0, out);
}

fn push_number(nearest: f64, excess: i16, out: &mut Vec<u8>) {
    let bits = nearest.to_bits();
    let ordered = if bits & SIGN == 0 { bits | SIGN } else { !bits };
    let rest = excess.cast_unsigned() ^ EXCESS_OFFSET;
    let bytes = u128::from(NUMBER) << 80 | u128::from(ordered) << 16 | u128::from(rest);
    // The last eleven.
    out.extend_from_slice(
        bytes.to_be_bytes().last_chunk::<{ 1 + NUMBER_BYTES }>().map_or(&[], |bytes| bytes),
    );
}

/// What encoded values of one type have in common: their first byte, but for the two booleans.
pub(super) fn type_of(encoded: &[u8]) -> Option<u8> {
    encoded.first().map(|first| if *first == FALSE { TRUE } else { *first })
}

struct Encoder<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    limit_bytes: usize,
}

impl Encoder<'_> {
    fn room(&self, bytes: usize) -> Result<(), EncodeError> {
        let taken = self.out.len() - self.start;
        if bytes > self.limit_bytes - taken.min(self.limit_bytes) {
            return Err(EncodeError::TooLong { limit_bytes: self.limit_bytes });
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8) -> Result<(), EncodeError> {
        self.room(1)?;
        self.out.push(byte);
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), EncodeError> {
        let escapes = text.bytes().filter(|byte| *byte <= ESCAPE).count();
        self.room(text.len() + escapes + 2)?;
        encode_str(text, self.out);
        Ok(())
    }

    /// `depth` is the number of arrays and objects around the value; it bounds the recursion.
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), EncodeError> {
        if depth == DEPTH_MAX && matches!(value, Value::Array(_) | Value::Object(_)) {
            return Err(EncodeError::TooDeep);
        }
        match value {
            Value::Null => self.byte(NULL),
            Value::Bool(false) => self.byte(FALSE),
            Value::Bool(true) => self.byte(TRUE),
            Value::Number(number) => {
                self.room(1 + NUMBER_BYTES)?;
                let (nearest, excess) = split(number).ok_or(EncodeError::NumberRange)?;
                push_number(nearest, excess, self.out);
                Ok(())
            }
            Value::String(text) => self.string(text),
            Value::Array(elements) => {
                self.byte(ARRAY)?;
                for element in elements {
                    self.value(element, depth + 1)?;
                }
                self.byte(END)
            }
            Value::Object(members) => self.object(members, depth),
        }
    }

    fn object(&mut self, members: &Map<String, Value>, depth: usize) -> Result<(), EncodeError> {
        self.byte(OBJECT)?;
        // The map iterates in another order where any crate of the build turns on serde_json's `preserve_order`.
        let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
        sorted.sort_unstable_by_key(|(name, _)| *name);
        for (name, member) in sorted {
            self.string(name)?;
            self.value(member, depth + 1)?;
        }
        self.byte(END)
    }
}

/// The double nearest to a number, and what the number exceeds it by; `None` beyond the range of a double.
fn split(number: &Number) -> Option<(f64, i16)> {
    match number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)) {
        Some(integer) => Some(around(integer)),
        // Adding zero makes -0.0 the zero that it equals.
        None => Some((number.as_f64().filter(|double| double.is_finite())? + 0.0, 0)),
    }
}

/// The double nearest to an integer of at most 64 bits, and what the integer exceeds it by.
#[expect(clippy::cast_precision_loss, reason = "what the rounding loses is the excess")]
#[expect(clippy::cast_possible_truncation, reason = "doubles below 2^64 lie at most 2048 apart")]
fn around(integer: i128) -> (f64, i16) {
    // Most integers are small, and then exact: casts of 128 bits take longer than all the rest.
    if let Ok(small) = i32::try_from(integer) {
        return (small.into(), 0);
    }
    let nearest = integer as f64;
    (nearest, (integer - nearest as i128) as i16)
}

/// The number that [`push_number`] wrote; `None` for bytes that it does not write.
#[expect(
    clippy::cast_possible_truncation,
    reason = "only doubles without a fraction and up to 2^64 are cast"
)]
fn number_of(bytes: [u8; NUMBER_BYTES]) -> Option<Number> {
    let (double, rest) = bytes.split_first_chunk()?;
    let ordered = u64::from_be_bytes(*double);
    let excess = (u16::from_be_bytes(rest.try_into().ok()?) ^ EXCESS_OFFSET).cast_signed();
    let nearest = f64::from_bits(if ordered & SIGN == 0 { !ordered } else { ordered & !SIGN });
    let whole = nearest.fract() == 0.0 && nearest.abs() <= TWO_TO_64;
    let integer = whole.then(|| nearest as i128 + i128::from(excess));
    let number = integer
        .and_then(|integer| {
            let signed = i64::try_from(integer).map(Number::from);
            signed.or_else(|_| u64::try_from(integer).map(Number::from)).ok()
        })
        .or_else(|| Number::from_f64(nearest))?;
    let (written, written_excess) = split(&number)?;
    (written.to_bits() == nearest.to_bits() && written_excess == excess).then_some(number)
}

/// Decodes a key of `components` parts from the front of `bytes`; gives its parts and the bytes after it. A
/// missing part becomes null.
pub fn decode_parts(bytes: &[u8], components: usize) -> Result<(Vec<Value>, &[u8]), CollateError> {
    let mut reader = Reader { rest: bytes, len: bytes.len() };
    let parts = (0..components).map(|_| reader.part()).collect::<Result<_, _>>()?;
    Ok((parts, reader.rest))
}

/// Splits `bytes` after a key of `components` parts without building its values. It sees where values end, not
/// whether their content was damaged.
pub fn split_parts(bytes: &[u8], components: usize) -> Result<(&[u8], &[u8]), CollateError> {
    let mut reader = Reader { rest: bytes, len: bytes.len() };
    for _ in 0..components {
        reader.skip()?;
    }
    Ok(bytes.split_at(reader.at()))
}

struct Reader<'b> {
    rest: &'b [u8],
    len: usize,
}

impl<'b> Reader<'b> {
    fn at(&self) -> usize {
        self.len - self.rest.len()
    }

    fn damaged(&self, what: &'static str) -> CollateError {
        CollateError::Damaged { what, at: self.at() }
    }

    fn byte(&mut self) -> Result<u8, CollateError> {
        let (byte, rest) = self.rest.split_first().ok_or(CollateError::Truncated { len: self.len })?;
        self.rest = rest;
        Ok(*byte)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], CollateError> {
        let (chunk, rest) = self.rest.split_first_chunk().ok_or(CollateError::Truncated { len: self.len })?;
        self.rest = rest;
        Ok(*chunk)
    }

    /// The bytes of a string up to its end, still escaped.
    fn escaped(&mut self) -> Result<&'b [u8], CollateError> {
        let end = memchr::memchr(END, self.rest).ok_or(CollateError::Truncated { len: self.len })?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        Ok(text)
    }

    fn ends(&mut self) -> bool {
        let rest = self.rest.strip_prefix(&[END]);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn part(&mut self) -> Result<Value, CollateError> {
        if let Some(rest) = self.rest.strip_prefix(&[MISSING]) {
            self.rest = rest;
            return Ok(Value::Null);
        }
        self.value(0)
    }

    /// `depth` is the number of arrays and objects around the value; it bounds the recursion.
    fn value(&mut self, depth: usize) -> Result<Value, CollateError> {
        let at = self.at();
        match self.byte()? {
            NULL => Ok(Value::Null),
            FALSE => Ok(Value::Bool(false)),
            TRUE => Ok(Value::Bool(true)),
            NUMBER => {
                let bytes = self.chunk()?;
                number_of(bytes).map(Value::Number).ok_or_else(|| self.damaged("a number"))
            }
            STRING => self.string().map(Value::String),
            ARRAY | OBJECT if depth == DEPTH_MAX => Err(CollateError::TooDeep { at }),
            ARRAY => {
                let mut elements = Vec::new();
                while !self.ends() {
                    elements.push(self.value(depth + 1)?);
                }
                Ok(Value::Array(elements))
            }
            OBJECT => self.object(depth),
            found => Err(CollateError::Tag { found, at }),
        }
    }

    fn string(&mut self) -> Result<String, CollateError> {
        let mut escaped = self.escaped()?.iter();
        let mut text = Vec::with_capacity(escaped.len());
        while let Some(byte) = escaped.next() {
            text.push(match byte {
                &ESCAPE => match escaped.next() {
                    Some(escaped @ (1 | 2)) => escaped - 1,
                    _ => return Err(self.damaged("a string")),
                },
                plain => *plain,
            });
        }
        String::from_utf8(text).map_err(|_| self.damaged("a string"))
    }

    fn object(&mut self, depth: usize) -> Result<Value, CollateError> {
        let mut members = Map::new();
        let mut last: Option<String> = None;
        while !self.ends() {
            let at = self.at();
            match self.byte()? {
                STRING => {}
                found => return Err(CollateError::Tag { found, at }),
            }
            let name = self.string()?;
            if last.is_some_and(|last| last >= name) {
                return Err(self.damaged("an object"));
            }
            last = Some(name.clone());
            let member = self.value(depth + 1)?;
            members.insert(name, member);
        }
        Ok(Value::Object(members))
    }

    fn skip(&mut self) -> Result<(), CollateError> {
        let mut depth = 0;
        loop {
            let at = self.at();
            match self.byte()? {
                MISSING if depth == 0 => {}
                NULL | FALSE | TRUE => {}
                NUMBER => drop(self.chunk::<NUMBER_BYTES>()?),
                STRING => drop(self.escaped()?),
                ARRAY | OBJECT if depth == DEPTH_MAX => return Err(CollateError::TooDeep { at }),
                ARRAY | OBJECT => depth += 1,
                END if depth > 0 => depth -= 1,
                found => return Err(CollateError::Tag { found, at }),
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}
