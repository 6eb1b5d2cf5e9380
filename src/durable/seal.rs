//! JSON documents behind a header with a checksum, so that damage is found before a single field is believed:
//!
//! ```text
//! dormouse <kind> <format version> <SHA-256 of the rest, hex>\n
//! {…}
//! ```

use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a sealed document was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnsealError {
    /// The header is not one of ours.
    #[error("it is no dormouse {kind} or its first line is damaged")]
    Header {
        /// What was expected.
        kind: &'static str,
    },
    /// The content is not what was written.
    #[error("it is damaged: its checksum does not match")]
    Checksum,
    /// Written by a version that this one does not know.
    #[error("it has format version {found}, this program reads version {known}: use a newer dormouse")]
    Version {
        /// Version in the header.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The checksum is right and the content is not: written by a defective program.
    #[error("its content is not understood: {0}")]
    Content(String),
}

/// A JSON document behind a header with kind, format version and checksum.
pub fn seal<T: Serialize>(kind: &str, version: u32, document: &T) -> serde_json::Result<Vec<u8>> {
    let mut body = serde_json::to_vec_pretty(document)?;
    body.push(b'\n');
    let mut sealed = format!("dormouse {kind} {version} {}\n", hex(&Sha256::digest(&body))).into_bytes();
    sealed.append(&mut body);
    Ok(sealed)
}

/// Checks what [`seal`] wrote and gives back the document.
pub fn unseal<T: DeserializeOwned>(
    kind: &'static str,
    version: u32,
    sealed: &[u8],
) -> Result<T, UnsealError> {
    unseal_any(kind, version..=version, sealed).map(|(_, document)| document)
}

/// Checks what [`seal`] wrote in one of several versions, and gives back which that is and the document.
pub fn unseal_any<T: DeserializeOwned>(
    kind: &'static str,
    versions: RangeInclusive<u32>,
    sealed: &[u8],
) -> Result<(u32, T), UnsealError> {
    let header_error = || UnsealError::Header { kind };
    let end = sealed.iter().position(|byte| *byte == b'\n').ok_or_else(header_error)?;
    let (header, body) = sealed.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let header = std::str::from_utf8(header).map_err(|_| header_error())?;
    let words: Vec<&str> = header.split(' ').collect();
    let [magic, found_kind, found_version, checksum] = words[..] else {
        return Err(header_error());
    };
    if magic != "dormouse" || found_kind != kind {
        return Err(header_error());
    }
    let found: u32 = found_version.parse().map_err(|_| header_error())?;
    if checksum != hex(&Sha256::digest(body)) {
        return Err(UnsealError::Checksum);
    }
    if !versions.contains(&found) {
        return Err(UnsealError::Version { found, known: *versions.end() });
    }
    let document = serde_json::from_slice(body).map_err(|e| UnsealError::Content(e.to_string()))?;
    Ok((found, document))
}
