//! A reader of JSON text that is quick where documents are small.
//!
//! Most documents are a few hundred bytes, and there `serde_json` takes longer for what surrounds the bytes than for
//! the bytes themselves: it reaches each through layers, makes room for each text with an escape anew, and does not
//! check what it skips. This reader is for the same seeds. It checks what it skips, keeps its room, and says nothing of
//! why it refuses a text: `serde_json` reads that once more, and what it says holds.
//!
//! Invariant: what this reader reads has the value that `serde_json` gives it, and lies at most
//! [`DOCUMENT_DEPTH_MAX`] deep. It may refuse what is a document, which then only takes longer.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::document::DOCUMENT_DEPTH_MAX;

/// The text is left to `serde_json`.
#[derive(Debug)]
pub(super) struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not read quickly")
    }
}

impl std::error::Error for Refused {}

impl Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// Powers of ten that doubles hold exactly.
const POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];
/// Up to here doubles hold all integers exactly.
const EXACT_MAX: u64 = 1 << 53;
/// As many digits fit into 64 bits, whichever they are.
const DIGITS_MAX: usize = 19;

enum Number {
    Unsigned(u64),
    Signed(i64),
    Double(f64),
}

/// A place in a text.
pub(super) struct Reader<'d, 's> {
    text: &'d str,
    at: usize,
    depth: usize,
    /// Where texts with escapes are put together.
    scratch: &'s mut String,
}

/// Reads a whole text, which has nothing behind its value.
pub(super) fn read<'d, S: DeserializeSeed<'d>>(
    text: &'d str,
    scratch: &mut String,
    seed: S,
) -> Result<S::Value, Refused> {
    let mut reader = Reader { text, at: 0, depth: 0, scratch };
    let value = seed.deserialize(&mut reader)?;
    reader.peek();
    if reader.at == text.len() { Ok(value) } else { Err(Refused) }
}

/// The length of the beginning of a string that stands for itself: up to a quote, a backslash or a control character.
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    // The highest bit of the lowest byte that is below `bound`, which is at most 128; those above may be wrong.
    let below = |chunk: u64, bound: u64| chunk.wrapping_sub(ONES * bound) & !chunk;
    let (chunks, rest) = bytes.as_chunks();
    for (number, chunk) in chunks.iter().enumerate() {
        let chunk = u64::from_le_bytes(*chunk);
        // With this bit turned a quote, `22`, is the one character that comes next to those of control.
        let control_or_quote = below(chunk ^ (ONES * 2), 0x21);
        let backslash = below(chunk ^ (ONES * u64::from(b'\\')), 1);
        let found = (control_or_quote | backslash) & (ONES << 7);
        if found != 0 {
            return number * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    bytes.len() - rest.len() + rest.iter().position(is_special).unwrap_or(rest.len())
}

impl<'d> Reader<'d, '_> {
    fn byte(&self) -> u8 {
        // No text that is JSON has this byte.
        self.text.as_bytes().get(self.at).copied().unwrap_or_default()
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> u8 {
        loop {
            let byte = self.byte();
            // Most of what is no white space is above it.
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return byte;
            }
            self.at += 1;
        }
    }

    /// Takes this byte, and white space before it.
    fn take(&mut self, wanted: u8) -> Result<(), Refused> {
        if self.peek() != wanted {
            return Err(Refused);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<(), Refused> {
        let after = self.at + word.len();
        let found = self.text.as_bytes().get(self.at..after) == Some(word.as_bytes());
        self.at = after;
        if found { Ok(()) } else { Err(Refused) }
    }

    /// Goes on to the end of the string or its next escape, and tells which of them it is.
    fn run(&mut self) -> Result<u8, Refused> {
        self.at += plain_length(self.text.as_bytes().get(self.at..).unwrap_or_default());
        match self.byte() {
            byte @ (b'"' | b'\\') => Ok(byte),
            _ => Err(Refused),
        }
    }

    fn part(&self, from: usize) -> Result<&'d str, Refused> {
        self.text.get(from..self.at).ok_or(Refused)
    }

    /// The rest of a string; `None` where it has escapes and stands in `scratch`.
    fn string(&mut self) -> Result<Option<&'d str>, Refused> {
        let mut from = self.at;
        if self.run()? == b'"' {
            let whole = self.part(from)?;
            self.at += 1;
            return Ok(Some(whole));
        }
        self.scratch.clear();
        loop {
            let part = self.part(from)?;
            self.scratch.push_str(part);
            self.at += 1;
            let escaped = self.escaped()?;
            self.scratch.push(escaped);
            from = self.at;
            if self.run()? == b'"' {
                let part = self.part(from)?;
                self.scratch.push_str(part);
                self.at += 1;
                return Ok(None);
            }
        }
    }

    /// The character that stands behind a backslash.
    fn escaped(&mut self) -> Result<char, Refused> {
        let byte = self.byte();
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => byte.into(),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.unit()?;
                let code = if (0xd800..0xdc00).contains(&unit) {
                    self.word("\\u")?;
                    let low = self.unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400).ok_or(Refused)?;
                    0x10000 + ((unit - 0xd800) << 10 | low)
                } else {
                    unit
                };
                char::from_u32(code).ok_or(Refused)?
            }
            _ => return Err(Refused),
        })
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, Refused> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).ok_or(Refused)?;
        self.at += 4;
        digits
            .iter()
            .try_fold(0, |unit, digit| Ok(unit << 4 | char::from(*digit).to_digit(16).ok_or(Refused)?))
    }

    /// Takes digits, of which there is at least one, and adds them to a number that ends where 64 bits do.
    fn digits(&mut self, number: &mut u64) -> Result<usize, Refused> {
        let from = self.at;
        while let digit @ b'0'..=b'9' = self.byte() {
            *number = number.wrapping_mul(10).wrapping_add((digit - b'0').into());
            self.at += 1;
        }
        if self.at == from { Err(Refused) } else { Ok(self.at - from) }
    }

    fn number(&mut self) -> Result<Number, Refused> {
        let from = self.at;
        let is_negative = self.byte() == b'-';
        self.at += usize::from(is_negative);
        let begins_with_zero = self.byte() == b'0';
        let (mut number, mut fraction) = (0, 0);
        let mut digits = self.digits(&mut number)?;
        if begins_with_zero && digits > 1 {
            return Err(Refused);
        }
        let mut is_whole = true;
        if self.byte() == b'.' {
            self.at += 1;
            fraction = self.digits(&mut number)?;
            (digits, is_whole) = (digits + fraction, false);
        }
        let has_exponent = matches!(self.byte(), b'e' | b'E');
        if has_exponent {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), b'+' | b'-'));
            self.digits(&mut 0)?;
        }
        let is_exact = digits <= DIGITS_MAX && !has_exponent;
        match POWERS_OF_TEN.get(fraction) {
            _ if is_exact && is_whole && !is_negative => return Ok(Number::Unsigned(number)),
            // -0 is a double, and so is what is below 64 bits.
            _ if is_exact && is_whole && (1..=1 << 63).contains(&number) => {
                return Ok(Number::Signed(0_i64.wrapping_sub_unsigned(number)));
            }
            Some(power) if is_exact && number <= EXACT_MAX => {
                // Both are exact, and so the quotient is the nearest double.
                #[expect(clippy::cast_precision_loss, reason = "a double holds it exactly")]
                let double = number as f64 / power;
                return Ok(Number::Double(if is_negative { -double } else { double }));
            }
            _ => {}
        }
        let text = self.part(from)?;
        if is_whole
            && !has_exponent
            && let Ok(number) = text.parse()
        {
            return Ok(Number::Unsigned(number));
        }
        let double = text.parse().ok().filter(|double: &f64| double.is_finite());
        double.map(Number::Double).ok_or(Refused)
    }

    /// Goes into an array or object.
    fn enter(&mut self) -> Result<(), Refused> {
        if self.depth == DOCUMENT_DEPTH_MAX {
            return Err(Refused);
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.at += 1;
    }

    /// Whether the array or object that was entered is empty, and left again.
    fn is_empty(&mut self, end: u8) -> bool {
        let is_empty = self.peek() == end;
        if is_empty {
            self.leave();
        }
        is_empty
    }

    /// Whether another value follows in an array or object, which is left otherwise.
    fn goes_on(&mut self, end: u8) -> Result<bool, Refused> {
        match self.peek() {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            next if next == end => {
                self.leave();
                Ok(false)
            }
            _ => Err(Refused),
        }
    }

    fn skip_string(&mut self) -> Result<(), Refused> {
        while self.run()? == b'\\' {
            self.at += 1;
            self.escaped()?;
        }
        self.at += 1;
        Ok(())
    }

    /// Checks a value, and makes nothing of it.
    fn skip(&mut self) -> Result<(), Refused> {
        match self.peek() {
            b'"' => {
                self.at += 1;
                self.skip_string()
            }
            b'{' => {
                self.enter()?;
                let mut goes_on = !self.is_empty(b'}');
                while goes_on {
                    self.take(b'"')?;
                    self.skip_string()?;
                    self.take(b':')?;
                    self.skip()?;
                    goes_on = self.goes_on(b'}')?;
                }
                Ok(())
            }
            b'[' => {
                self.enter()?;
                let mut goes_on = !self.is_empty(b']');
                while goes_on {
                    self.skip()?;
                    goes_on = self.goes_on(b']')?;
                }
                Ok(())
            }
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.number().map(drop),
        }
    }
}

impl<'de> Deserializer<'de> for &mut Reader<'de, '_> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.peek() {
            b'"' => self.deserialize_str(visitor),
            b'{' => {
                self.enter()?;
                let mut items = Items { reader: self, is_first: true, is_left: false };
                let value = visitor.visit_map(&mut items)?;
                if items.is_left { Ok(value) } else { Err(Refused) }
            }
            b'[' => {
                self.enter()?;
                let mut items = Items { reader: self, is_first: true, is_left: false };
                let value = visitor.visit_seq(&mut items)?;
                if items.is_left { Ok(value) } else { Err(Refused) }
            }
            b't' => self.word("true").and_then(|()| visitor.visit_bool(true)),
            b'f' => self.word("false").and_then(|()| visitor.visit_bool(false)),
            b'n' => self.word("null").and_then(|()| visitor.visit_unit()),
            _ => match self.number()? {
                Number::Unsigned(number) => visitor.visit_u64(number),
                Number::Signed(number) => visitor.visit_i64(number),
                Number::Double(number) => visitor.visit_f64(number),
            },
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.take(b'"')?;
        match self.string()? {
            Some(text) => visitor.visit_borrowed_str(text),
            None => visitor.visit_str(self.scratch),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.skip()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

/// What is left of an array or object.
struct Items<'r, 'd, 's> {
    reader: &'r mut Reader<'d, 's>,
    is_first: bool,
    is_left: bool,
}

impl Items<'_, '_, '_> {
    /// Whether there is one more.
    fn next(&mut self, end: u8) -> Result<bool, Refused> {
        self.is_left = self.is_left
            || if std::mem::take(&mut self.is_first) {
                self.reader.is_empty(end)
            } else {
                !self.reader.goes_on(end)?
            };
        Ok(!self.is_left)
    }
}

impl<'d> SeqAccess<'d> for Items<'_, 'd, '_> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'d>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        if self.next(b']')? { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }
}

impl<'d> MapAccess<'d> for Items<'_, 'd, '_> {
    type Error = Refused;

    fn next_key_seed<S: DeserializeSeed<'d>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        if !self.next(b'}')? {
            return Ok(None);
        }
        if self.reader.peek() != b'"' {
            return Err(Refused);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'d>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        self.reader.take(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}
