//! The inside hosts of IPv6 that have bindings: address to place, and back. A place is what a [`token`](super::token)
//! stands for.
//!
//! The control core writes a host before its first binding and takes it out after its last one, so a packet that finds
//! no host has no binding either.

use std::{
    hash::Hasher,
    net::{Ipv4Addr, Ipv6Addr},
};

use siphasher::sip::SipHasher13;

use super::hash_index::HashIndex;
use crate::dataplane::huge::{HugeArray, Memory, huge_pages_for};

/// Nobody's address: the place is unused.
const UNUSED: u128 = 0;

/// The hosts of a worker.
#[derive(Debug)]
pub struct Hosts6 {
    /// By place.
    addresses: HugeArray<u128>,
    places: HashIndex,
    key: [u8; 16],
}

impl Hosts6 {
    /// Room for `count` hosts. `key` is secret, so that nobody can choose addresses that collide.
    pub fn new(count: u32, key: [u8; 16]) -> Self {
        Self { addresses: HugeArray::new(count as usize, &UNUSED), places: HashIndex::new(count), key }
    }

    /// Huge pages that the tables take where they can.
    pub fn huge_pages(count: u32) -> usize {
        huge_pages_for(count as usize * size_of::<u128>()) + HashIndex::huge_pages(count)
    }

    /// The memory of each table.
    pub fn memory(&self) -> impl Iterator<Item = Memory> + use<> {
        [self.addresses.memory(), self.places.memory()].into_iter()
    }

    /// Where the host with this address is.
    #[inline]
    pub fn find(&self, address: Ipv6Addr) -> Option<u32> {
        let bits = address.to_bits();
        self.places.find(self.hash(bits), |place| self.addresses[place as usize] == bits)
    }

    /// The address of the host at `place`.
    #[inline]
    pub fn address(&self, place: u32) -> Option<Ipv6Addr> {
        self.addresses.get(place as usize).filter(|bits| **bits != UNUSED).map(|bits| Ipv6Addr::from_bits(*bits))
    }

    /// Writes the host at `place`, or takes it out.
    pub fn set(&mut self, place: u32, address: Option<Ipv6Addr>) {
        let Some(&old) = self.addresses.get(place as usize) else { return };
        let new = address.map_or(UNUSED, Ipv6Addr::to_bits);
        if old != UNUSED {
            self.places.remove(self.hash(old), place);
        }
        if new != UNUSED {
            self.places.insert(self.hash(new), place);
        }
        self.addresses[place as usize] = new;
    }

    /// What stands for a remote address where it is only compared.
    #[inline]
    pub fn remote(&self, address: Ipv6Addr) -> Ipv4Addr {
        Ipv4Addr::from_bits((hash(&self.key, address.to_bits()) >> 32) as u32)
    }

    #[inline]
    fn hash(&self, bits: u128) -> u32 {
        hash(&self.key, bits) as u32
    }
}

#[inline]
fn hash(key: &[u8; 16], bits: u128) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write_u64((bits >> 64) as u64);
    hasher.write_u64(bits as u64);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    proptest::proptest! {
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((0u32..8, 0u16..12), 1..200)) {
            let mut hosts = Hosts6::new(8, [3; 16]);
            let mut model: HashMap<u32, Ipv6Addr> = HashMap::new();
            let name = |n: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n);
            for (place, n) in steps {
                // The control core keeps a host at one place.
                let address = Some(name(n)).filter(|address| n != 0 && !model.values().any(|known| known == address));
                hosts.set(place, address);
                match address {
                    Some(address) => model.insert(place, address),
                    None => model.remove(&place),
                };
                for place in 0..8 {
                    proptest::prop_assert_eq!(hosts.address(place), model.get(&place).copied());
                }
                for n in 1..12 {
                    let expected = model.iter().find(|(_, known)| **known == name(n)).map(|(place, _)| *place);
                    proptest::prop_assert_eq!(hosts.find(name(n)), expected);
                }
            }
        }
    }

    #[test]
    fn places_beyond_the_end_are_nobodys() {
        let mut none = Hosts6::new(0, [1; 16]);
        none.set(0, Some(Ipv6Addr::LOCALHOST));
        assert_eq!((none.find(Ipv6Addr::LOCALHOST), none.address(0)), (None, None));
        assert_ne!(none.remote(Ipv6Addr::LOCALHOST), Hosts6::new(0, [2; 16]).remote(Ipv6Addr::LOCALHOST));
    }
}
