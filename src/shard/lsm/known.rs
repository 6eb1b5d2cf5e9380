//! Which documents a tree may know: what is new to it has nothing in the back index that is worth looking for.
//!
//! A first load consists of such documents, and looking for each in the memtable and in every table takes longer than
//! writing it, and the longer the more tables there are. [`Known`] begins with a tree without documents and hears of
//! all that come, in Bloom filters of which each is larger than the one before, until it has its share of the cache's
//! memory. It is memory alone: a tree that is opened with documents has none, and neither has one that has heard of
//! too many.
//!
//! Invariant: a document that has keys in the tree was noted before they were written, and is found unless
//! [`Known::is_full`].

use fastbloom::BloomFilter;
use xxhash_rust::xxh3::xxh3_64;

/// With as many bits for each document, one of a hundred that are new is looked for in vain, when three filters are
/// full.
const DOCUMENT_BITS: usize = 12;
const FIRST_FILTER_BYTES: usize = 64 * 1024;
const GROWTH: usize = 8;

/// See the module.
pub(super) struct Known {
    filters: Vec<BloomFilter>,
    /// Documents that the last filter has room for.
    room: usize,
    bytes_left: usize,
}

impl Known {
    /// That of a tree without documents. It takes as many bytes at the most, and none before the first document.
    pub(super) fn nothing(bytes_max: usize) -> Self {
        Self { filters: Vec::new(), room: 0, bytes_left: bytes_max }
    }

    /// Whether there is no room for another document.
    pub(super) fn is_full(&self) -> bool {
        self.room == 0 && self.bytes_left < FIRST_FILTER_BYTES
    }

    /// Notes documents. Says of each whether it may have been noted before this call; of one that was, it does.
    pub(super) fn note<'a>(&mut self, doc_ids: impl Iterator<Item = &'a [u8]>) -> Vec<bool> {
        let hashes: Vec<u64> = doc_ids.map(xxh3_64).collect();
        let known: Vec<bool> = hashes.iter().map(|hash| self.has(*hash)).collect();
        for (hash, was_known) in hashes.into_iter().zip(&known) {
            // It may have come twice in this call.
            if !was_known && !self.has(hash) {
                self.add(hash);
            }
        }
        known
    }

    fn has(&self, hash: u64) -> bool {
        self.filters.iter().rev().any(|filter| filter.contains_hash(hash))
    }

    fn add(&mut self, hash: u64) {
        if self.room == 0 {
            self.grow();
        }
        if let Some(filter) = self.filters.last_mut() {
            filter.insert_hash(hash);
        }
        self.room = self.room.saturating_sub(1);
    }

    /// The last filter takes what comes when there is no memory for another one, and is [full](Self::is_full).
    fn grow(&mut self) {
        let bytes = self.filters.last().map_or(FIRST_FILTER_BYTES, |last| last.num_bits() / 8 * GROWTH);
        let bytes = bytes.min(self.bytes_left);
        if bytes < FIRST_FILTER_BYTES {
            return;
        }
        self.bytes_left -= bytes;
        self.room = bytes * 8 / DOCUMENT_BITS;
        self.filters.push(BloomFilter::with_num_bits(bytes * 8).expected_items(self.room));
    }
}
