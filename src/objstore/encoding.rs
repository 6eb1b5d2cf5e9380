//! Content that takes less room in a store than in a file.
//!
//! An encoded object is one frame of its encoding, as the tools of that encoding read it (`zstd -d`). What it was
//! made of is known by the hash of the file, what it is by its own; the encoder may change, so the latter names it.
//!
//! It is Zstandard at its first level, after what was measured on the shard files of 171,075 cities with two indexes
//! (virtual machine, one thread, rustc 1.95, 2026-11-28): what is left of the bytes, and MB of files a second that are
//! encoded and decoded. LZ4 leaves a quarter to a half more, is no slower to encode with, and mostly faster to decode.
//!
//! | | `lsm` | `memdb` | `cow` |
//! |---|---|---|---|
//! | Zstandard, level 1 | 47 %, 231, 762 | 35 %, 209, 742 | 13 %, 446, 546 |
//! | Zstandard, level 3 | 44 %, 82, 516 | 34 %, 93, 431 | 12 %, 253, 540 |
//! | LZ4 (`lz4_flex` 0.13) | 58 %, 235, 1155 | 46 %, 280, 1095 | 20 %, 599, 493 |
//!
//! The files of 7,184 airports gave 39, 23 and 9 % with the first, 34, 23 and 8 % with the second, 52, 34 and 14 % with
//! the third.
//!
//! Invariants: encoding and decoding take constant memory, whatever a frame says of itself. Encoded content that saves
//! less than a tenth is not kept.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use zstd::stream::write::{Decoder, Encoder};

/// How an object holds a file's content where it does not hold it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Encoding {
    /// One frame of Zstandard (RFC 8878).
    Zstd,
}

/// Files of fewer bytes are not encoded: they take a block of most disks all the same.
pub const ENCODED_FILE_BYTES_MIN: u64 = 4096;

const LEVEL: i32 = 1;
/// As binary logarithm, how much of what was decoded a frame may refer back to: 8 MiB, what RFC 8878 asks every
/// decoder to take.
const WINDOW_LOG_MAX: u32 = 23;

impl Encoding {
    /// A writer that encodes content of so many bytes.
    pub(super) fn encoder<W: Write>(self, to: W, length_bytes: u64) -> io::Result<Encoder<'static, W>> {
        let Self::Zstd = self;
        let mut encoder = Encoder::new(to, LEVEL)?;
        encoder.set_pledged_src_size(Some(length_bytes))?;
        Ok(encoder)
    }

    /// A writer that decodes. What it was given is with `to` after a flush.
    pub(super) fn decoder<W: Write>(self, to: W) -> io::Result<Decoder<'static, W>> {
        let Self::Zstd = self;
        let mut decoder = Decoder::new(to)?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        Ok(decoder)
    }
}

/// Whether so many encoded bytes are worth to be decoded again.
pub(super) fn pays(encoded_bytes: u64, file_bytes: u64) -> bool {
    encoded_bytes <= file_bytes - file_bytes / 10
}
