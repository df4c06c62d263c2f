//! Which binding of a worker is found by which key: the same table as the worker's own, over the control core's list.
//!
//! A standard map would do, but for what it cannot: to be asked for ahead. Of a million flows each first packet meets
//! memory that is in no cache, and a burst of them can wait for all of it at once ([`BindingIndex::ask_for`]).

use super::tables::NatBinding;
use crate::dataplane::nat::{BindingKey, hash_index::HashIndex};

/// The keys of a worker's bindings.
#[derive(Debug)]
pub(super) struct BindingIndex {
    table: HashIndex,
    hash_key: [u8; 16],
}

impl BindingIndex {
    /// Room for `count` bindings; `hash_key` is secret.
    pub(super) fn new(count: u32, hash_key: [u8; 16]) -> Self {
        Self { table: HashIndex::new(count), hash_key }
    }

    /// Huge pages it takes where it can.
    pub(super) fn huge_pages(count: u32) -> usize {
        HashIndex::huge_pages(count)
    }

    /// Asks for the memory that [`BindingIndex::find`] begins with.
    pub(super) fn ask_for(&self, key: &BindingKey) {
        self.table.prefetch(self.hash(key));
    }

    /// The binding that is found by `key`; `nat` has all of them by their index.
    pub(super) fn find(&self, key: &BindingKey, nat: &[Option<NatBinding>]) -> Option<u32> {
        let has_key = |index| matches!(nat.get(index as usize), Some(Some(binding)) if binding.key == *key);
        self.table.find(self.hash(key), has_key)
    }

    /// From now on `key` finds `index`, and no longer what it found before.
    pub(super) fn insert(&mut self, key: &BindingKey, index: u32, nat: &[Option<NatBinding>]) {
        if let Some(before) = self.find(key, nat) {
            self.remove(key, before);
        }
        self.table.insert(self.hash(key), index);
    }

    /// `key` no longer finds `index`. Nothing happens where it finds another.
    pub(super) fn remove(&mut self, key: &BindingKey, index: u32) {
        self.table.remove(self.hash(key), index);
    }

    /// True where no key finds anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    fn hash(&self, key: &BindingKey) -> u32 {
        key.keyed_hash(&self.hash_key)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{dataplane::nat::Owner, wire::ip4};

    fn key(port: u16) -> BindingKey {
        let address = Ipv4Addr::new(10, 0, 0, 1);
        BindingKey { owner: Owner::INSIDE, protocol: ip4::UDP, address, port, remote: None }
    }

    fn binding(port: u16) -> Option<NatBinding> {
        Some(NatBinding {
            key: key(port),
            lease: None,
            since: 0,
            due: 0,
            is_flow: false,
            is_static: false,
            is_free_pending: false,
            is_closing: false,
        })
    }

    #[test]
    fn a_key_finds_its_latest_binding_and_an_older_one_does_not_take_it_away() {
        let mut index = BindingIndex::new(8, [3; 16]);
        let mut nat = vec![binding(1), binding(2), None];
        index.insert(&key(1), 0, &nat);
        index.insert(&key(2), 1, &nat);
        assert_eq!([1, 2, 3].map(|port| index.find(&key(port), &nat)), [Some(0), Some(1), None]);
        index.insert(&key(1), 2, &nat);
        nat[2] = binding(1);
        assert_eq!(index.find(&key(1), &nat), Some(2));
        nat[0] = None;
        index.remove(&key(1), 0);
        assert_eq!(index.find(&key(1), &nat), Some(2));
        index.remove(&key(1), 2);
        index.remove(&key(2), 1);
        assert!(index.is_empty() && index.find(&key(1), &nat).is_none());
    }
}
