//! Whom each binding has sent to, for a NAT that lets in nobody else (RFC 4787 section 5).
//!
//! A fixed array of entries, found by a hash of binding and remote end, and chained by binding so that they go with it.
//! Without such filtering there are none, and nothing is looked up.

use super::{Endpoint, Filtering, hash_index::HashIndex};
use crate::dataplane::huge::{HugeArray, Memory, huge_pages_for};

/// Index plus one of an entry; zero: none.
type Link = u32;

/// A remote end that a binding has sent to.
#[derive(Clone, Copy, Debug)]
struct Peer {
    binding: u32,
    remote: Endpoint,
    /// The binding's next entry, or the next free one.
    next: Link,
}

/// All entries of a worker.
#[derive(Debug)]
pub(super) struct Peers {
    entries: HugeArray<Peer>,
    index: HashIndex,
    /// By binding: its first entry.
    heads: HugeArray<Link>,
    free: Link,
}

impl Peers {
    /// Room for `count` entries of `bindings` bindings.
    pub(super) fn new(count: u32, bindings: u32) -> Self {
        let entry = |at: usize| Peer {
            binding: 0,
            remote: (std::net::Ipv4Addr::UNSPECIFIED, 0),
            next: if at as u32 + 1 < count { at as u32 + 2 } else { 0 },
        };
        Self {
            entries: HugeArray::from_fn(count as usize, entry),
            index: HashIndex::new(count),
            heads: HugeArray::new(bindings as usize, &0),
            free: u32::from(count > 0),
        }
    }

    /// Huge pages that the tables take where they can.
    pub(super) fn huge_pages(count: u32, bindings: u32) -> usize {
        let lists =
            huge_pages_for(count as usize * size_of::<Peer>()) + huge_pages_for(bindings as usize * size_of::<Link>());
        lists + HashIndex::huge_pages(count)
    }

    /// The memory of each table.
    pub(super) fn memory(&self) -> impl Iterator<Item = Memory> + use<> {
        [self.entries.memory(), self.heads.memory(), self.index.memory()].into_iter()
    }

    /// True where the binding has sent to `remote`, whose hash with it is `hash`.
    #[inline]
    pub(super) fn knows(&self, hash: u32, binding: u32, remote: Endpoint) -> bool {
        let is_it = |at: u32| {
            let peer = &self.entries[at as usize];
            peer.binding == binding && peer.remote == remote
        };
        self.index.find(hash, is_it).is_some()
    }

    /// The binding sends to `remote`. False: there is no room.
    pub(super) fn admit(&mut self, hash: u32, binding: u32, remote: Endpoint) -> bool {
        if self.knows(hash, binding, remote) {
            return true;
        }
        let Some(at) = self.free.checked_sub(1) else { return false };
        self.free = self.entries[at as usize].next;
        self.entries[at as usize] = Peer { binding, remote, next: self.heads[binding as usize] };
        self.heads[binding as usize] = at + 1;
        self.index.insert(hash, at);
        true
    }

    /// The binding is gone. `hash_of` hashes it with a remote end.
    pub(super) fn forget(&mut self, binding: u32, hash_of: impl Fn(Endpoint) -> u32) {
        let Some(head) = self.heads.get_mut(binding as usize) else { return };
        let mut link = std::mem::take(head);
        while let Some(at) = link.checked_sub(1) {
            let peer = &mut self.entries[at as usize];
            self.index.remove(hash_of(peer.remote), at);
            link = std::mem::replace(&mut peer.next, self.free);
            self.free = at + 1;
        }
    }
}

/// What of a remote end a filter looks at.
#[inline]
pub(super) fn filtered_by(filtering: Filtering, remote: Endpoint) -> Endpoint {
    match filtering {
        Filtering::AddressDependent => (remote.0, 0),
        Filtering::EndpointIndependent | Filtering::AddressAndPortDependent => remote,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    proptest::proptest! {
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((0u32..4, 0u8..6, 0u8..4), 1..200)) {
            let mut peers = Peers::new(8, 4);
            let mut model: HashSet<(u32, Endpoint)> = HashSet::new();
            let remote = |number: u8| (std::net::Ipv4Addr::new(198, 51, 100, number), 0);
            let hash = |binding: u32, remote: Endpoint| binding * 7 + u32::from(remote.0.octets()[3]) % 3;
            for (binding, number, action) in steps {
                let end = remote(number);
                if action == 0 {
                    peers.forget(binding, |end| hash(binding, end));
                    model.retain(|(held, _)| *held != binding);
                } else {
                    let has_room = model.len() < 8 || model.contains(&(binding, end));
                    proptest::prop_assert_eq!(peers.admit(hash(binding, end), binding, end), has_room);
                    if has_room {
                        model.insert((binding, end));
                    }
                }
                for binding in 0..4 {
                    for end in (0..6).map(remote) {
                        let expected = model.contains(&(binding, end));
                        proptest::prop_assert_eq!(peers.knows(hash(binding, end), binding, end), expected);
                    }
                }
            }
        }
    }
}
