//! The NAT bindings of a worker: an array, and two ways to find an entry in it.
//!
//! From inside by [`BindingKey`]: an open-addressing table of array indices, linear probing, deletion by
//! shifting back, so that no lookup ever meets a tombstone. From outside by protocol and port: an array.
//! A flow session needs neither: its fan holds the index.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::conntrack::{Binding, BindingKey};
use crate::wire::ip4;

const EMPTY: u32 = u32::MAX;

/// All bindings of a worker.
#[derive(Debug)]
pub struct Bindings {
    entries: Box<[Option<Binding>]>,
    /// Places for indices, a power of two, at most half of them taken.
    by_key: Box<[u32]>,
    /// By protocol (ICMP, TCP, UDP) and port.
    by_port: [Box<[u32]>; 3],
    hash_key: [u8; 16],
    used: usize,
}

impl Bindings {
    /// Room for `count` bindings. `hash_key` is secret, so that nobody can choose ports that collide.
    pub fn new(count: u32, hash_key: [u8; 16]) -> Self {
        let places = (count as usize * 2).next_power_of_two().max(16);
        Self {
            entries: vec![None; count as usize].into_boxed_slice(),
            by_key: vec![EMPTY; places].into_boxed_slice(),
            by_port: std::array::from_fn(|_| vec![EMPTY; 1 << 16].into_boxed_slice()),
            hash_key,
            used: 0,
        }
    }

    /// How many are in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The binding at `index`.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&Binding> {
        self.entries.get(index as usize)?.as_ref()
    }

    /// The index of the tunnel binding for `key`.
    #[inline]
    pub fn find_inside(&self, key: &BindingKey) -> Option<u32> {
        let mut place = self.home(key);
        loop {
            let index = self.by_key[place];
            if index == EMPTY {
                return None;
            }
            if self.key_at(index) == *key {
                return Some(index);
            }
            place = (place + 1) & (self.by_key.len() - 1);
        }
    }

    /// The index of the binding that owns this port (or ICMP identifier).
    #[inline]
    pub fn find_outside(&self, protocol: u8, port: u16) -> Option<u32> {
        let index = self.by_port[row(protocol)?][usize::from(port)];
        (index != EMPTY).then_some(index)
    }

    /// Writes a binding; what was at `index` before is gone. False where `index` or the protocol is out of range.
    pub fn insert(&mut self, index: u32, binding: Binding) -> bool {
        let Some(row) = row(binding.protocol) else { return false };
        if index as usize >= self.entries.len() {
            return false;
        }
        self.remove(index);
        self.by_port[row][usize::from(binding.outside_port)] = index;
        self.entries[index as usize] = Some(binding);
        self.used += 1;
        if binding.remote.is_none() {
            let mut place = self.home(&key_of(&binding));
            while self.by_key[place] != EMPTY {
                place = (place + 1) & (self.by_key.len() - 1);
            }
            self.by_key[place] = index;
        }
        true
    }

    /// Takes a binding out. Nothing happens where there is none.
    pub fn remove(&mut self, index: u32) {
        let Some(binding) = self.entries.get(index as usize).copied().flatten() else { return };
        if let Some(row) = row(binding.protocol) {
            self.by_port[row][usize::from(binding.outside_port)] = EMPTY;
        }
        if binding.remote.is_none() {
            self.unlink(&key_of(&binding), index);
        }
        self.entries[index as usize] = None;
        self.used -= 1;
    }

    fn unlink(&mut self, key: &BindingKey, index: u32) {
        let mask = self.by_key.len() - 1;
        let mut hole = self.home(key);
        while self.by_key[hole] != index {
            hole = (hole + 1) & mask;
        }
        let mut place = hole;
        loop {
            place = (place + 1) & mask;
            let moved = self.by_key[place];
            if moved == EMPTY {
                break;
            }
            // An entry may fill the hole only if its home is not between the hole and where it stands.
            let home = self.home(&self.key_at(moved));
            if (place.wrapping_sub(home) & mask) >= (place.wrapping_sub(hole) & mask) {
                self.by_key[hole] = moved;
                hole = place;
            }
        }
        self.by_key[hole] = EMPTY;
    }

    #[inline]
    fn key_at(&self, index: u32) -> BindingKey {
        key_of(&self.entries[index as usize].expect("the table holds indices of bindings in use"))
    }

    #[inline]
    fn home(&self, key: &BindingKey) -> usize {
        let mut hasher = SipHasher13::new_with_key(&self.hash_key);
        hasher.write_u64(u64::from(key.slot) << 32 | u64::from(key.address.to_bits()));
        hasher.write_u32(u32::from(key.protocol) << 16 | u32::from(key.port));
        hasher.finish() as usize & (self.by_key.len() - 1)
    }
}

fn key_of(binding: &Binding) -> BindingKey {
    BindingKey {
        slot: binding.slot,
        protocol: binding.protocol,
        address: binding.inside_address,
        port: binding.inside_port,
    }
}

fn row(protocol: u8) -> Option<usize> {
    match protocol {
        ip4::ICMP => Some(0),
        ip4::TCP => Some(1),
        ip4::UDP => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashMap, net::Ipv4Addr};

    fn binding(slot: u32, inside_port: u16, outside_port: u16) -> Binding {
        Binding {
            slot,
            protocol: ip4::UDP,
            inside_address: Ipv4Addr::new(10, 0, 0, 1),
            inside_port,
            outside_address: Ipv4Addr::new(192, 0, 2, 1),
            outside_port,
            remote: None,
        }
    }

    proptest::proptest! {
        /// Against two hash maps: every binding is found both ways after any sequence of changes.
        #[test]
        fn agrees_with_hash_maps(steps in proptest::collection::vec((0u32..12, 0u16..8, 0u8..2), 1..300)) {
            let mut bindings = Bindings::new(12, [3; 16]);
            let mut model: HashMap<u32, Binding> = HashMap::new();
            for (index, inside, insert) in steps {
                let new = binding(index % 3, inside * 3 + (index / 3) as u16 * 100, 1000 + index as u16);
                if insert == 1 {
                    proptest::prop_assert!(bindings.insert(index, new));
                    model.insert(index, new);
                } else {
                    bindings.remove(index);
                    model.remove(&index);
                }
                proptest::prop_assert_eq!(bindings.used(), model.len());
                for index in 0..12 {
                    proptest::prop_assert_eq!(bindings.get(index), model.get(&index));
                    let port = 1000 + index as u16;
                    proptest::prop_assert_eq!(bindings.find_outside(ip4::UDP, port), model.get(&index).map(|_| index));
                }
                for (index, known) in &model {
                    proptest::prop_assert_eq!(bindings.find_inside(&key_of(known)), Some(*index));
                }
            }
        }
    }

    #[test]
    fn a_flow_binding_is_not_found_by_inside_key() {
        let mut bindings = Bindings::new(4, [0; 16]);
        let flow = Binding { remote: Some((Ipv4Addr::new(198, 51, 100, 1), 53)), ..binding(0, 1, 2) };
        assert!(bindings.insert(0, flow));
        assert_eq!(bindings.find_inside(&key_of(&flow)), None);
        assert_eq!(bindings.find_outside(ip4::UDP, 2), Some(0));
        assert!(!bindings.insert(4, flow), "an index out of range is refused");
    }
}
