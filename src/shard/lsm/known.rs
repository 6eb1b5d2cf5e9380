//! Which documents a tree may know: what is new to it has nothing in the back index that is worth looking for.
//!
//! A first load consists of such documents, and looking for each in the memtable and in every table takes longer than
//! writing it. [`Known`] is a Bloom filter that begins with a tree without documents and hears of all that come. It is
//! memory alone: a tree that is opened with documents has none, and neither has one that has heard of too many.
//!
//! Invariant: a key of the back index that is in the tree was noted before it was written. A roll-back leaves a tree
//! with some of these keys, and no other.

use xxhash_rust::xxh3::xxh3_64;

/// A block is a cache line, and has all bits of a key.
const BLOCK_WORDS: usize = 8;
const BLOCKS: usize = 1 << 13;
/// With as many keys, one of forty is taken for a known one.
const KEYS_MAX: usize = BLOCKS * BLOCK_WORDS * 64 / 8;
const KEY_BITS: u32 = 5;
/// Bits of a hash that tell a word of a block, and a bit of the word.
const WORD_BITS: u32 = BLOCK_WORDS.trailing_zeros();
const PLACE_BITS: u32 = WORD_BITS + u64::BITS.trailing_zeros();

/// See the module.
pub(super) struct Known {
    words: Vec<u64>,
    room: usize,
}

impl Known {
    /// That of a tree without documents.
    pub(super) fn nothing() -> Self {
        Self { words: Vec::new(), room: KEYS_MAX }
    }

    /// Whether there is no room for another key, and nothing is gained any more.
    pub(super) fn is_full(&self) -> bool {
        self.room == 0
    }

    /// Notes a key of the back index. `true` unless it was surely not noted before.
    pub(super) fn note(&mut self, key: &[u8]) -> bool {
        // Most buckets that are opened are not loaded.
        self.words.resize(BLOCKS * BLOCK_WORDS, 0);
        let hash = xxh3_64(key);
        let block = low_bits(hash >> (KEY_BITS * PLACE_BITS), BLOCKS.trailing_zeros());
        let words = self.words.get_mut(block * BLOCK_WORDS..(block + 1) * BLOCK_WORDS).unwrap_or_default();
        let mut is_known = true;
        for number in 0..KEY_BITS {
            let place = hash >> (number * PLACE_BITS);
            let bit = 1 << ((place >> WORD_BITS) % u64::from(u64::BITS));
            if let Some(word) = words.get_mut(low_bits(place, WORD_BITS)) {
                is_known &= *word & bit != 0;
                *word |= bit;
            }
        }
        self.room = self.room.saturating_sub(usize::from(!is_known));
        is_known
    }
}

fn low_bits(hash: u64, bits: u32) -> usize {
    // Few enough for any size of a pointer.
    usize::try_from(hash % (1 << bits)).unwrap_or_default()
}
