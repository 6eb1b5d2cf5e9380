//! Extended attributes: what applications and services keep beside a document.

use std::iter::FusedIterator;

/// The extended attributes of a document: the name of each, and its value in JSON. They are read from where they are,
/// and only as far as somebody asks for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Xattrs<'a>(&'a [u8]);

/// Attributes end in the middle of one, or one has no name. Nothing more comes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read extended attributes: they are cut off")]
pub struct XattrsCutOff;

impl<'a> Xattrs<'a> {
    /// Attributes as they travel: `{ pair length, 4 bytes | name 0 value 0 } …`.
    pub fn of(pairs: &'a [u8]) -> Self {
        Self(pairs)
    }

    /// What is left of them, as it travels.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The value of the attribute of this name, if there is one that can be read.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.clone()
            .map_while(Result::ok)
            .find_map(|(found, value)| (found == name.as_bytes()).then_some(value))
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), XattrsCutOff>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let pair = self.0.split_first_chunk::<4>().and_then(|(len, rest)| {
            let (pair, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            self.0 = rest;
            let pair = pair.strip_suffix(&[0])?;
            let (name, value) = pair.split_at_checked(memchr::memchr(0, pair)?)?;
            Some((name, value.get(1..)?))
        });
        if pair.is_none() {
            self.0 = &[];
        }
        Some(pair.ok_or(XattrsCutOff))
    }
}

impl FusedIterator for Xattrs<'_> {}
