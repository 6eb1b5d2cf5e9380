//! What an index is called and what its keys are made of.
//!
//! A definition is written on the command line as `NAME=PATH[,PATH…]` and kept with the bucket as JSON:
//! `{"name":"by_country","kind":"secondary","paths":["country","city"]}`, or `{"name":"primary","kind":"primary"}`. One
//! with a filter has it as its text in the member `filter`, and `"version":2`, so that a program that knows no filters
//! says so; without a version it is 1. Members that this version does not know are refused, because an index that is
//! read without them would have other entries than it says.
//!
//! Invariants: a secondary index has 1 to [`PATHS_MAX`] paths, and at most one of them holds `[]`, so that the
//! number of a document's entries is the length of one array and never a product.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::stored_as_text;

use super::filter::{Filter, FilterError};
use super::path::{KeyPath, KeyPathError};
use super::shown;

/// The longest name of an index.
pub const NAME_BYTES_MAX: usize = 100;

/// The most paths of a secondary index.
pub const PATHS_MAX: usize = 16;

/// Versions of the JSON form.
const VERSION_WITHOUT_FILTER: u32 = 1;
const VERSION_WITH_FILTER: u32 = 2;

/// The name of an index: 1 to [`NAME_BYTES_MAX`] ASCII letters, digits, `_`, `-`, `.` and `#`, and no `.` in
/// front.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexName(String);

/// A named index and what its keys are made of. Two definitions are equal when they give every document the
/// same entries under the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct IndexDefinition {
    name: IndexName,
    kind: IndexKind,
    filter: Option<Box<Filter>>,
}

/// What the keys of an index are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexKind {
    /// The document's id.
    Primary,
    /// Values of the document.
    Secondary {
        /// Where they lie, in the order of the key's parts.
        paths: Vec<KeyPath>,
    },
}

/// Why an index cannot be defined so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DefinitionError {
    /// The text has no `=`.
    #[error(
        "cannot define an index by `{text}`: expected NAME=PATH[,PATH…], such as by_country=country,city"
    )]
    Form {
        /// The text.
        text: String,
    },
    /// The name is empty, too long or holds other characters.
    #[error(
        "`{name}` cannot name an index: expected 1 to {NAME_BYTES_MAX} letters (a-z, A-Z), digits, `_`, `-`, `.` \
         and `#`, not beginning with `.`"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// A path is none.
    #[error("cannot define index {name}: {source}")]
    Path {
        /// The index.
        name: IndexName,
        /// What is wrong.
        source: KeyPathError,
    },
    /// The text of a filter has no `=` after a name.
    #[error("cannot filter an index by `{text}`: expected NAME=FILTER, such as by_country=altitude > 1000")]
    FilterForm {
        /// The text.
        text: String,
    },
    /// A filter is none.
    #[error("cannot filter index {name}: {source}")]
    Filter {
        /// The index.
        name: IndexName,
        /// What is wrong.
        source: FilterError,
    },
    /// A newer program wrote the definition.
    #[error(
        "cannot read the definition of index {name}: it has version {found}, and this program knows those up to \
         {VERSION_WITH_FILTER}; take the program that made it, or a later one"
    )]
    Version {
        /// The index.
        name: IndexName,
        /// The version.
        found: u32,
    },
    /// There is no path, or there are too many.
    #[error("cannot define index {name}: found {found} paths, expected 1 to {PATHS_MAX}")]
    PathCount {
        /// The index.
        name: IndexName,
        /// Number of paths.
        found: usize,
    },
    /// Two paths hold `[]`.
    #[error(
        "cannot define index {name}: both `{}` and `{}` hold `[]`, expected at most one such path",
        shown(&.first.to_string()),
        shown(&.second.to_string())
    )]
    TwoArrays {
        /// The index.
        name: IndexName,
        /// The first of the paths.
        first: KeyPath,
        /// The next one.
        second: KeyPath,
    },
    /// A primary index was given paths.
    #[error("cannot define index {name}: a primary index has no paths")]
    PrimaryWithPaths {
        /// The index.
        name: IndexName,
    },
}

impl IndexName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IndexName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IndexName {
    type Err = DefinitionError;

    fn from_str(name: &str) -> Result<Self, DefinitionError> {
        let may_hold = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.#".contains(&byte);
        if (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(may_hold)
        {
            Ok(Self(name.to_owned()))
        } else {
            Err(DefinitionError::Name { name: shown(name) })
        }
    }
}

stored_as_text!(IndexName);

impl IndexDefinition {
    /// An index over the document's id.
    pub fn primary(name: IndexName) -> Self {
        Self { name, kind: IndexKind::Primary, filter: None }
    }

    /// An index over values of the document.
    pub fn secondary(name: IndexName, paths: Vec<KeyPath>) -> Result<Self, DefinitionError> {
        if !(1..=PATHS_MAX).contains(&paths.len()) {
            return Err(DefinitionError::PathCount { name, found: paths.len() });
        }
        let mut arrays = paths.iter().filter(|path| path.is_array());
        if let (Some(first), Some(second)) = (arrays.next(), arrays.next()) {
            return Err(DefinitionError::TwoArrays { name, first: first.clone(), second: second.clone() });
        }
        Ok(Self { name, kind: IndexKind::Secondary { paths }, filter: None })
    }

    /// A secondary index as the command line writes it: `NAME=PATH[,PATH…]`.
    pub fn parse(text: &str) -> Result<Self, DefinitionError> {
        let (name, paths) =
            text.split_once('=').ok_or_else(|| DefinitionError::Form { text: shown(text) })?;
        let name: IndexName = name.parse()?;
        match KeyPath::parse_list(paths) {
            Ok(paths) => Self::secondary(name, paths),
            Err(source) => Err(DefinitionError::Path { name, source }),
        }
    }

    /// A name and a filter as the command line writes them: `NAME=FILTER`.
    pub fn parse_filter(text: &str) -> Result<(IndexName, Filter), DefinitionError> {
        let (name, filter) =
            text.split_once('=').ok_or_else(|| DefinitionError::FilterForm { text: shown(text) })?;
        let name: IndexName = name.parse()?;
        match filter.parse() {
            Ok(filter) => Ok((name, filter)),
            Err(source) => Err(DefinitionError::Filter { name, source }),
        }
    }

    /// The same index over those documents alone of which `filter` is true.
    #[must_use]
    pub fn with_filter(self, filter: Filter) -> Self {
        Self { filter: Some(Box::new(filter)), ..self }
    }

    /// Which documents it is about, if not all.
    pub fn filter(&self) -> Option<&Filter> {
        self.filter.as_deref()
    }

    /// What the index is called.
    pub fn name(&self) -> &IndexName {
        &self.name
    }

    /// What its keys are made of.
    pub fn kind(&self) -> &IndexKind {
        &self.kind
    }

    /// Number of parts of its keys.
    pub fn components(&self) -> usize {
        match &self.kind {
            IndexKind::Primary => 1,
            IndexKind::Secondary { paths } => paths.len(),
        }
    }
}

impl fmt::Display for IndexDefinition {
    /// The form of the command line; of a primary index the name alone. A filter follows behind ` where `.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        if let IndexKind::Secondary { paths } = &self.kind {
            for (count, path) in paths.iter().enumerate() {
                write!(f, "{}{path}", if count == 0 { '=' } else { ',' })?;
            }
        }
        self.filter.iter().try_for_each(|filter| write!(f, " where {filter}"))
    }
}

/// The JSON form of a definition, before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(default = "version_without_filter", skip_serializing_if = "is_without_filter")]
    version: u32,
    name: IndexName,
    kind: StoredKind,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    paths: Vec<KeyPath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<Filter>,
}

fn version_without_filter() -> u32 {
    VERSION_WITHOUT_FILTER
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_without_filter(version: &u32) -> bool {
    *version == VERSION_WITHOUT_FILTER
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredKind {
    Primary,
    Secondary,
}

impl From<IndexDefinition> for Stored {
    fn from(definition: IndexDefinition) -> Self {
        let (kind, paths) = match definition.kind {
            IndexKind::Primary => (StoredKind::Primary, Vec::new()),
            IndexKind::Secondary { paths } => (StoredKind::Secondary, paths),
        };
        let filter = definition.filter.map(|filter| *filter);
        let version = if filter.is_some() { VERSION_WITH_FILTER } else { VERSION_WITHOUT_FILTER };
        Self { version, name: definition.name, kind, paths, filter }
    }
}

impl TryFrom<Stored> for IndexDefinition {
    type Error = DefinitionError;

    fn try_from(stored: Stored) -> Result<Self, DefinitionError> {
        if stored.version > VERSION_WITH_FILTER {
            return Err(DefinitionError::Version { name: stored.name, found: stored.version });
        }
        let whole = match stored.kind {
            StoredKind::Secondary => Self::secondary(stored.name, stored.paths)?,
            StoredKind::Primary if stored.paths.is_empty() => Self::primary(stored.name),
            StoredKind::Primary => return Err(DefinitionError::PrimaryWithPaths { name: stored.name }),
        };
        Ok(Self { filter: stored.filter.map(Box::new), ..whole })
    }
}
