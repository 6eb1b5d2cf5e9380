//! Which entries a document has in an index, and in which order entries stand.
//!
//! An [`IndexDefinition`] names the [`KeyPath`]s whose values make up a key, and perhaps a [`Filter`]; a [`KeyPlan`] of
//! several definitions turns a document into a [`KeyList`] for each; [`collate`] writes keys as bytes whose plain order
//! is the order of the values; a [`KeyRange`] turns what was asked for into bounds on those bytes, and a [`ScanQuery`]
//! has several of them. All of that computes only. A [`Scan`] is what reads: it merges the entries of all shards.
//!
//! A stored entry is the encoded key followed by the document's id. Invariant: two entries compare as bytes as
//! their keys compare as JSON values, and entries of equal keys as their ids.

pub mod collate;
mod definition;
mod document;
mod evaluate;
mod filter;
mod json;
mod judge;
mod path;
mod plan;
mod query;
mod range;
mod scan;

pub use definition::{DefinitionError, IndexDefinition, IndexKind, IndexName, NAME_BYTES_MAX, PATHS_MAX};
pub use document::{DOCUMENT_DEPTH_MAX, Document, DocumentError};
pub(crate) use document::{Pass, Place, read};
pub use evaluate::{DOCUMENT_KEY_BYTES_MAX, DOCUMENT_KEYS_MAX, KEY_BYTES_MAX, KeyList};
pub use filter::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX, Filter, FilterError};
pub use path::{KeyPath, KeyPathError, STEPS_MAX};
pub use plan::{Extract, KeyPlan};
pub use query::{Cursor, CursorError, QueryError, ScanQuery};
pub use range::{KeyBounds, KeyRange, RangeError};
pub use scan::{OpenScans, Scan, ScanEntry, ScanError, ScanPlace};

/// The most characters of somebody's input that an error message repeats.
const SHOWN_CHARS_MAX: usize = 200;

/// `text` as it fits into a one-line message: without control characters, and cut when it is long.
fn shown(text: &str) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == SHOWN_CHARS_MAX {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}
