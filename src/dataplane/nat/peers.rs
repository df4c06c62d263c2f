//! Whom each binding has sent to, for a NAT that lets in nobody else (RFC 4787 section 5).
//!
//! A fixed array of entries, found by a hash of binding and remote end. Those of a binding are a ring, in the order in which
//! they came, so that they go with it, and that whoever sends to everyone forgets its oldest instead of taking what
//! others need. Without such filtering there are none, and nothing is looked up.

use super::{Endpoint, Filtering, hash_index::HashIndex};
use crate::dataplane::huge::{HugeArray, Memory, huge_pages_for};

/// Index plus one of an entry; zero: none.
type Link = u32;

/// Entries of one binding, at most: more than a host speaks with at a time, and few enough to be freed at once.
const BINDING_MAX: u32 = 1024;

/// Nor has a binding more than this part of all entries.
const BINDING_SHARE: u32 = 4;

/// A remote end that a binding has sent to.
#[derive(Clone, Copy, Debug)]
struct Peer {
    binding: u32,
    remote: Endpoint,
    /// Counts the binding's entries, wrapping.
    number: u16,
    /// The binding's next newer entry, and of the newest the oldest; or the next free one.
    next: Link,
}

const _: () = assert!(BINDING_MAX <= 1 << 16, "the numbers of a binding's entries differ");

/// Whether a binding may send to a remote end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) enum Admission {
    /// It may, and that one may answer.
    Granted,
    /// The same; whom it sent to first, of those that were known, is so no more.
    InPlaceOfOldest,
    /// There is no room to remember it.
    Refused,
}

/// All entries of a worker.
#[derive(Debug)]
pub(super) struct Peers {
    entries: HugeArray<Peer>,
    index: HashIndex,
    /// By binding: its newest entry.
    newest: HugeArray<Link>,
    free: Link,
    /// Entries of one binding, at most.
    binding_max: u32,
}

impl Peers {
    /// Room for `count` entries of `bindings` bindings.
    pub(super) fn new(count: u32, bindings: u32) -> Self {
        let entry = |at: usize| Peer {
            binding: 0,
            remote: (std::net::Ipv4Addr::UNSPECIFIED, 0),
            number: 0,
            next: if at as u32 + 1 < count { at as u32 + 2 } else { 0 },
        };
        Self {
            entries: HugeArray::from_fn(count as usize, entry),
            index: HashIndex::new(count),
            newest: HugeArray::new(bindings as usize, &0),
            free: u32::from(count > 0),
            binding_max: (count / BINDING_SHARE).clamp(1, BINDING_MAX),
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
        [self.entries.memory(), self.newest.memory(), self.index.memory()].into_iter()
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

    /// The binding sends to `remote`. `hash_of` hashes it with a remote end.
    pub(super) fn admit(&mut self, binding: u32, remote: Endpoint, hash_of: impl Fn(Endpoint) -> u32) -> Admission {
        let hash = hash_of(remote);
        if self.knows(hash, binding, remote) {
            return Admission::Granted;
        }
        let newest = self.newest[binding as usize].checked_sub(1);
        let (at, admission) = match newest {
            Some(newest) if self.free == 0 || self.count_to(newest) >= self.binding_max => {
                let at = self.oldest(newest);
                self.index.remove(hash_of(self.entries[at as usize].remote), at);
                (at, Admission::InPlaceOfOldest)
            }
            _ => {
                let Some(at) = self.free.checked_sub(1) else { return Admission::Refused };
                self.free = self.entries[at as usize].next;
                let oldest = newest.map_or(at, |newest| self.oldest(newest));
                self.entries[at as usize].next = oldest + 1;
                (at, Admission::Granted)
            }
        };
        let mut number = 0;
        if let Some(newest) = newest {
            let newest = &mut self.entries[newest as usize];
            newest.next = at + 1;
            number = newest.number.wrapping_add(1);
        }
        let next = self.entries[at as usize].next;
        self.entries[at as usize] = Peer { binding, remote, number, next };
        self.newest[binding as usize] = at + 1;
        self.index.insert(hash, at);
        admission
    }

    /// The binding is gone. `hash_of` hashes it with a remote end.
    pub(super) fn forget(&mut self, binding: u32, hash_of: impl Fn(Endpoint) -> u32) {
        let Some(newest) = self.newest.get_mut(binding as usize) else { return };
        let Some(newest) = std::mem::take(newest).checked_sub(1) else { return };
        let mut at = self.oldest(newest);
        loop {
            let peer = &mut self.entries[at as usize];
            self.index.remove(hash_of(peer.remote), at);
            let newer = std::mem::replace(&mut peer.next, self.free) - 1;
            self.free = at + 1;
            if at == newest {
                return;
            }
            at = newer;
        }
    }

    /// The oldest entry of a binding.
    fn oldest(&self, newest: u32) -> u32 {
        self.entries[newest as usize].next - 1
    }

    /// How many entries a binding has.
    fn count_to(&self, newest: u32) -> u32 {
        let number = |at: u32| self.entries[at as usize].number;
        u32::from(number(newest).wrapping_sub(number(self.oldest(newest)))) + 1
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

    #[test]
    fn one_binding_that_sends_to_everyone_leaves_room_for_the_others() {
        let mut peers = Peers::new(64, 16);
        let remote = |n: u32| (std::net::Ipv4Addr::from_bits(n), 53);
        let hash = |end: Endpoint| end.0.to_bits().wrapping_mul(0x9e37_79b1);
        let admissions: Vec<_> = (0..100_000).map(|n| peers.admit(0, remote(n), hash)).collect();
        let granted = admissions.iter().filter(|admission| **admission == Admission::Granted).count();
        assert_eq!((granted, admissions[16]), (16, Admission::InPlaceOfOldest));
        for binding in 1..16 {
            assert_eq!(peers.admit(binding, remote(7), hash), Admission::Granted, "binding {binding}");
        }
        for n in 0..100_000 {
            assert_eq!(peers.knows(hash(remote(n)), 0, remote(n)), n >= 100_000 - 16, "its latest are known");
        }
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_queue_of_each_binding(steps in proptest::collection::vec((0u32..6, 0u8..6, 0u8..4), 1..200)) {
            let mut peers = Peers::new(8, 6);
            let mut model: Vec<(u32, Endpoint)> = Vec::new();
            let remote = |number: u8| (std::net::Ipv4Addr::new(198, 51, 100, number), 0);
            let hash = |binding: u32, remote: Endpoint| binding * 7 + u32::from(remote.0.octets()[3]) % 3;
            for (binding, number, action) in steps {
                let end = remote(number);
                let mine = model.iter().filter(|(held, _)| *held == binding).count();
                if action == 0 {
                    peers.forget(binding, |end| hash(binding, end));
                    model.retain(|(held, _)| *held != binding);
                } else {
                    let expected = match () {
                        () if model.contains(&(binding, end)) => Admission::Granted,
                        () if mine == 2 || mine > 0 && model.len() == 8 => Admission::InPlaceOfOldest,
                        () if model.len() == 8 => Admission::Refused,
                        () => Admission::Granted,
                    };
                    proptest::prop_assert_eq!(peers.admit(binding, end, |end| hash(binding, end)), expected);
                    if expected == Admission::InPlaceOfOldest {
                        let oldest = model.iter().position(|(held, _)| *held == binding).unwrap();
                        model.remove(oldest);
                    }
                    if expected != Admission::Refused && !model.contains(&(binding, end)) {
                        model.push((binding, end));
                    }
                }
                for binding in 0..6 {
                    for end in (0..6).map(remote) {
                        let expected = model.contains(&(binding, end));
                        proptest::prop_assert_eq!(peers.knows(hash(binding, end), binding, end), expected);
                    }
                }
            }
        }
    }
}
