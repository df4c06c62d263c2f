//! Which place of an array is found by which key: the same table as the worker's own.
//!
//! A standard map would do, but for what it cannot: to be asked for ahead. Of a million flows each first packet meets
//! memory that is in no cache, and a burst of them can wait for all of it at once: [`KeyIndex::ask_for`], then whatever
//! [`KeyIndex::candidate`] leads to.

use std::{hash::Hash, marker::PhantomData};

use crate::dataplane::nat::hash_index::{HashIndex, keyed_hash};

/// The keys of what is in an array, which has them itself.
#[derive(Debug)]
pub(super) struct KeyIndex<K> {
    table: HashIndex,
    hash_key: [u8; 16],
    keys: PhantomData<fn(&K)>,
}

impl<K: Hash> KeyIndex<K> {
    /// Room for `count` keys; `hash_key` is secret, so that nobody can choose keys that are slow to find.
    pub(super) fn new(count: u32, hash_key: [u8; 16]) -> Self {
        Self { table: HashIndex::new(count), hash_key, keys: PhantomData }
    }

    /// Huge pages it takes where it can.
    pub(super) fn huge_pages(count: u32) -> usize {
        HashIndex::huge_pages(count)
    }

    /// Asks for the memory that all others begin with.
    pub(super) fn ask_for(&self, key: &K) {
        self.table.prefetch(self.hash(key));
    }

    /// The place that `key` almost surely finds: to be asked for, not to be trusted.
    pub(super) fn candidate(&self, key: &K) -> Option<u32> {
        self.table.candidate(self.hash(key))
    }

    /// The place that is found by `key`; `has_key` is true of the place that has it.
    pub(super) fn find(&self, key: &K, has_key: impl Fn(u32) -> bool) -> Option<u32> {
        self.table.find(self.hash(key), has_key)
    }

    /// From now on `key`, which finds nothing yet, finds `place`.
    pub(super) fn insert(&mut self, key: &K, place: u32) {
        self.table.insert(self.hash(key), place);
    }

    /// `key` no longer finds `place`. Nothing happens where it does not.
    pub(super) fn remove(&mut self, key: &K, place: u32) {
        self.table.remove(self.hash(key), place);
    }

    /// True where no key finds anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    fn hash(&self, key: &K) -> u32 {
        keyed_hash(key, &self.hash_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_place_until_it_is_taken_out() {
        let names = ["one", "two", "three"];
        let mut index = KeyIndex::new(8, [3; 16]);
        let find =
            |index: &KeyIndex<&str>, name: &'static str| index.find(&name, |place| names[place as usize] == name);
        assert!(index.is_empty() && index.candidate(&"one").is_none());
        (0..).zip(names).for_each(|(place, name)| index.insert(&name, place));
        assert_eq!(names.map(|name| find(&index, name)), [Some(0), Some(1), Some(2)]);
        assert_eq!(names.map(|name| index.candidate(&name)), [Some(0), Some(1), Some(2)]);
        index.remove(&"two", 0);
        assert_eq!(find(&index, "two"), Some(1), "it never found that place");
        index.remove(&"two", 1);
        assert_eq!(names.map(|name| find(&index, name)), [Some(0), None, Some(2)]);
        index.remove(&"one", 0);
        index.remove(&"three", 2);
        assert!(index.is_empty());
    }
}
