//! A hash table of indices into an array that holds the keys themselves.
//!
//! Open addressing with linear probing. A place is eight bytes, half of them the hash, so a lookup follows an index
//! only where it almost surely leads to its key: one line of this table, one of the array. Deletion shifts back, so
//! that no lookup ever meets a tombstone.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

use crate::dataplane::{
    huge::{HugeArray, Memory, huge_pages_for},
    prefetch::prefetch,
};

/// Hash in the upper half, index plus one in the lower; zero is empty.
type Place = u64;

const EMPTY: Place = 0;

/// The hash of a key under a secret, or hosts could choose keys that are slow to find.
#[inline]
pub(crate) fn keyed_hash(key: &impl Hash, secret: &[u8; 16]) -> u32 {
    let mut hasher = SipHasher13::new_with_key(secret);
    key.hash(&mut hasher);
    hasher.finish() as u32
}

/// The table.
#[derive(Debug)]
pub(crate) struct HashIndex {
    places: HugeArray<Place>,
}

impl HashIndex {
    /// Memory that each index costs, at most.
    pub(crate) const BYTES_AN_INDEX: usize = 4 * size_of::<Place>();

    /// Room for `count` indices; at most half of the places are ever taken.
    pub(crate) fn new(count: u32) -> Self {
        Self { places: HugeArray::new(places_for(count), &EMPTY) }
    }

    /// Huge pages it takes where it can.
    pub(crate) fn huge_pages(count: u32) -> usize {
        huge_pages_for(places_for(count) * size_of::<Place>())
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> Memory {
        self.places.memory()
    }

    /// Asks for the line that a lookup of `hash` begins with.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        prefetch(&self.places[self.home(hash)]);
    }

    /// The first index under `hash`: almost surely the one looked for. To be prefetched, not to be trusted.
    #[inline]
    pub(crate) fn candidate(&self, hash: u32) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// The index under `hash` that `is_match` accepts.
    #[inline]
    pub(crate) fn find(&self, hash: u32, is_match: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = self.home(hash);
        loop {
            let place = self.places[at];
            if place == EMPTY {
                return None;
            }
            if hash_of(place) == hash && is_match(index_of(place)) {
                return Some(index_of(place));
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Enters `index`. The caller keeps to the count given at the start and enters nothing twice.
    pub(crate) fn insert(&mut self, hash: u32, index: u32) {
        let mut at = self.home(hash);
        while self.places[at] != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.places[at] = u64::from(hash) << 32 | u64::from(index + 1);
    }

    /// Takes `index` out. Nothing happens where it is not there.
    pub(crate) fn remove(&mut self, hash: u32, index: u32) {
        let wanted = u64::from(hash) << 32 | u64::from(index + 1);
        let mut hole = self.home(hash);
        while self.places[hole] != wanted {
            if self.places[hole] == EMPTY {
                return;
            }
            hole = (hole + 1) & self.mask();
        }
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask();
            let moved = self.places[at];
            if moved == EMPTY {
                break;
            }
            // An entry may fill the hole only if its home is not between the hole and where it stands.
            let home = self.home(hash_of(moved));
            if (at.wrapping_sub(home) & self.mask()) >= (at.wrapping_sub(hole) & self.mask()) {
                self.places[hole] = moved;
                hole = at;
            }
        }
        self.places[hole] = EMPTY;
    }

    /// True where there is no index.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.places.iter().all(|place| *place == EMPTY)
    }

    #[inline]
    fn home(&self, hash: u32) -> usize {
        hash as usize & self.mask()
    }

    #[inline]
    fn mask(&self) -> usize {
        self.places.len() - 1
    }
}

fn places_for(count: u32) -> usize {
    (count as usize * 2).next_power_of_two().max(16)
}

#[inline]
fn hash_of(place: Place) -> u32 {
    (place >> 32) as u32
}

#[inline]
fn index_of(place: Place) -> u32 {
    place as u32 - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    proptest::proptest! {
        /// Few hashes and few places, so that runs wrap around and entries of several homes mix.
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((0u32..8, 0u32..24, proptest::bool::ANY), 1..300)) {
            let mut table = HashIndex::new(8);
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (index, hash, is_insert) in steps {
                if let Some(old) = model.remove(&index) {
                    table.remove(old, index);
                }
                if is_insert {
                    table.insert(hash, index);
                    model.insert(index, hash);
                }
                for hash in 0..24 {
                    for index in 0..8 {
                        let expected = model.get(&index).filter(|held| **held == hash).map(|_| index);
                        proptest::prop_assert_eq!(table.find(hash, |found| found == index), expected);
                    }
                }
            }
        }
    }
}
