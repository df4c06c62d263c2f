//! The NAT bindings of a worker: an array of cache lines, and the ways to find one in it.
//!
//! From inside by [`BindingKey`]: a hash table. From outside by address, protocol and port: an array, and where
//! endpoint-dependent bindings share the port, a hash table with the remote endpoint. A flow session needs none of
//! them from inside: its fan holds the index.
//!
//! A batch looks up in stages, so that each memory access was asked for a stage before it is made:
//! [`hash`](Bindings::hash) and [`prefetch_inside`](Bindings::prefetch_inside), then
//! [`candidate`](Bindings::candidate) and [`prefetch`](Bindings::prefetch), then [`find`](Bindings::find); from
//! outside [`prefetch_outside`](Bindings::prefetch_outside), then [`at_port`](Bindings::at_port) and
//! [`prefetch`](Bindings::prefetch), then [`find_outside`](Bindings::find_outside).

use std::{hash::Hasher, net::Ipv4Addr};

use siphasher::sip::SipHasher13;

use super::{
    binding::{Binding, BindingInit, BindingKey, Endpoint, Filtering},
    hash_index::{HashIndex, keyed_hash},
    outside::OutsideAddresses,
    peers::{Admission, Peers, filtered_by},
    port_tables::{PortPlace, PortTable, PortTables},
};
use crate::dataplane::{
    huge::{HugeArray, Memory, huge_pages_for},
    prefetch,
};

/// The port is nobody's.
const UNUSED: PortPlace = 0;
/// The port is that of endpoint-dependent bindings: they are found with the remote endpoint.
const SHARED: PortPlace = u32::MAX;

/// Remote ends, on average, that a binding has sent to where it filters.
const PEERS_A_BINDING: u32 = 4;

/// Another pool for a worker.
#[derive(Debug)]
pub struct NewPool {
    /// The pool; after the exchange the old one.
    pub pool: OutsideAddresses,
    /// The ports of numbers that the worker has not seen yet; empty after the exchange.
    pub table: PortTable,
}

/// All bindings of a worker.
#[derive(Debug)]
pub struct Bindings {
    outside: OutsideAddresses,
    entries: HugeArray<Binding>,
    by_inside: HashIndex,
    /// Endpoint-dependent ones, by outside and remote endpoint.
    by_remote: HashIndex,
    /// Whom bindings that filter have sent to.
    peers: Peers,
    /// Index plus one of the binding that has the port.
    by_port: PortTables,
    hash_key: [u8; 16],
    used: usize,
}

impl Bindings {
    /// Room for `count` bindings to these outside addresses, and for whom they send to where `filtering` asks for it.
    /// `hash_key` is secret, so that nobody can choose
    /// endpoints that collide.
    pub fn new(count: u32, filtering: Filtering, outside: OutsideAddresses, hash_key: [u8; 16]) -> Self {
        Self {
            entries: HugeArray::new(count as usize, &Binding::FREE),
            by_inside: HashIndex::new(count),
            by_remote: HashIndex::new(count),
            peers: match filtering {
                Filtering::EndpointIndependent => Peers::new(0, 0),
                _ => Peers::new(count.saturating_mul(PEERS_A_BINDING), count),
            },
            by_port: PortTables::new(PortTable::new(outside.numbers().collect())),
            outside,
            hash_key,
            used: 0,
        }
    }

    /// Huge pages that the tables take where they can.
    pub fn huge_pages(count: u32, filtering: Filtering, addresses: usize) -> usize {
        let index = HashIndex::huge_pages(count);
        let peers = match filtering {
            Filtering::EndpointIndependent => 0,
            _ => Peers::huge_pages(count.saturating_mul(PEERS_A_BINDING), count),
        };
        let entries = huge_pages_for(count as usize * size_of::<Binding>());
        entries + PortTables::huge_pages(addresses) + 2 * index + peers
    }

    /// The memory of each table.
    pub fn memory(&self) -> impl Iterator<Item = Memory> {
        [self.entries.memory(), self.by_port.memory(), self.by_inside.memory(), self.by_remote.memory()]
            .into_iter()
            .chain(self.peers.memory())
    }

    /// How many are in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The pool of addresses that servers see.
    #[inline]
    pub fn outside(&self) -> &OutsideAddresses {
        &self.outside
    }

    /// Exchanges the pool for another one, in which addresses that bindings have keep their numbers. The old one is in its
    /// place then.
    pub fn set_outside(&mut self, new: &mut NewPool) {
        std::mem::swap(&mut self.outside, &mut new.pool);
        self.by_port.add(&mut new.table);
    }

    /// The binding at `index`.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&Binding> {
        self.entries.get(index as usize).filter(|binding| binding.is_used())
    }

    /// The binding at `index`, for what the worker keeps of its connections.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Binding> {
        self.entries.get_mut(index as usize).filter(|binding| binding.is_used())
    }

    /// Asks for the line of the binding at `index`.
    #[inline]
    pub fn prefetch(&self, index: u32) {
        if let Some(binding) = self.entries.get(index as usize) {
            prefetch::prefetch(binding);
        }
    }

    /// The hash of a key, for [`Bindings::find`] and the stages before it.
    #[inline]
    pub fn hash(&self, key: &BindingKey) -> u32 {
        keyed_hash(key, &self.hash_key)
    }

    /// Asks for the line of the table that a lookup of `hash` begins with.
    #[inline]
    pub fn prefetch_inside(&self, hash: u32) {
        self.by_inside.prefetch(hash);
    }

    /// Asks for the lines of the tables that [`Bindings::insert`] of this binding writes, but for its own.
    pub(in crate::dataplane) fn prefetch_new(&self, init: &BindingInit) {
        self.prefetch_inside(self.hash(&init.key()));
        if let Some(number) = self.outside.number_of(init.outside_address) {
            self.prefetch_outside(number, init.protocol, init.outside_port);
        }
    }

    /// What [`Bindings::find`] will almost surely return: to be prefetched, not to be trusted.
    #[inline]
    pub fn candidate(&self, hash: u32) -> Option<u32> {
        self.by_inside.candidate(hash)
    }

    /// The index of the binding of `key`, whose hash is `hash`. A flow's is not found.
    #[inline]
    pub fn find(&self, hash: u32, key: &BindingKey) -> Option<u32> {
        self.by_inside.find(hash, |index| self.entries[index as usize].key() == *key)
    }

    /// The index of the binding that serves `key`: its own, or where it has none, one for all remote ends. A static mapping is
    /// such a one, also where others are endpoint-dependent.
    #[inline]
    pub fn find_inside(&self, key: &BindingKey) -> Option<u32> {
        let find = |key: &BindingKey| self.find(self.hash(key), key);
        find(key).or_else(|| key.remote.and_then(|_| find(&key.for_all())))
    }

    /// Asks for the line that [`Bindings::at_port`] reads. `address` is the number of an outside address.
    #[inline]
    pub fn prefetch_outside(&self, address: u8, protocol: u8, port: u16) {
        self.by_port.prefetch(address, protocol, port);
    }

    /// The binding that has this port for itself, if it is one's alone: to be prefetched.
    #[inline]
    pub fn at_port(&self, address: u8, protocol: u8, port: u16) -> Option<u32> {
        match self.by_port.get(address, protocol, port) {
            UNUSED | SHARED => None,
            place => Some(place - 1),
        }
    }

    /// The index of the binding that a packet from `remote` to this port (or ICMP identifier) is for. `address` is the
    /// number of the outside address it came to. Whether the packet may pass is the caller's to ask.
    #[inline]
    pub fn find_outside(&self, address: u8, protocol: u8, port: u16, remote: Endpoint) -> Option<u32> {
        match self.by_port.get(address, protocol, port) {
            UNUSED => None,
            SHARED => {
                let hash = self.remote_hash(address, protocol, port, remote);
                self.by_remote.find(hash, |index| {
                    let binding = &self.entries[index as usize];
                    binding.remote() == Some(remote)
                        && binding.outside_port == port
                        && binding.outside_number == address
                        && binding.protocol == protocol
                })
            }
            place => Some(place - 1),
        }
    }

    /// A packet goes out by the binding at `index` to `remote`, and so `remote` may answer.
    #[inline]
    pub(in crate::dataplane) fn admit(&mut self, index: u32, remote: Endpoint) -> Admission {
        let Some(filtering) = self.get(index).map(|binding| binding.filtering) else { return Admission::Refused };
        if filtering == Filtering::EndpointIndependent {
            return Admission::Granted;
        }
        let key = self.hash_key;
        self.peers.admit(index, filtered_by(filtering, remote), |remote| peer_hash(&key, index, remote))
    }

    /// True where a packet from `remote` may come in by the binding at `index`.
    #[inline]
    pub fn lets_in(&self, index: u32, remote: Endpoint) -> bool {
        let Some(binding) = self.get(index) else { return false };
        if binding.remote().is_some_and(|only| only != remote) {
            return false;
        }
        let seen = filtered_by(binding.filtering, remote);
        binding.filtering == Filtering::EndpointIndependent
            || self.peers.knows(self.peer_hash(index, seen), index, seen)
    }

    /// Writes a binding; what was at `index` before is gone. False where index, protocol or address is none of ours.
    pub fn insert(&mut self, index: u32, init: &BindingInit) -> bool {
        let Some(number) = self.outside.number_of(init.outside_address) else { return false };
        if index as usize >= self.entries.len() || !self.by_port.has(number, init.protocol) {
            return false;
        }
        self.remove(index);
        let binding = Binding::new(init, number);
        self.entries[index as usize] = binding;
        self.used += 1;
        if !binding.is_flow() {
            self.by_inside.insert(self.hash(&binding.key()), index);
        }
        let place = if binding.is_endpoint_dependent() {
            self.by_remote.insert(self.hash_outside(&binding), index);
            SHARED
        } else {
            index + 1
        };
        self.by_port.set(number, binding.protocol, binding.outside_port, place);
        true
    }

    /// Takes a binding out. Nothing happens where there is none.
    pub fn remove(&mut self, index: u32) {
        let Some(&binding) = self.get(index) else { return };
        if !binding.is_flow() {
            self.by_inside.remove(self.hash(&binding.key()), index);
        }
        if binding.is_endpoint_dependent() {
            // The port stays marked as shared: others may still have it, and a lookup of none finds none.
            self.by_remote.remove(self.hash_outside(&binding), index);
        } else {
            self.by_port.set(binding.outside_number, binding.protocol, binding.outside_port, UNUSED);
        }
        if binding.filtering != Filtering::EndpointIndependent {
            let key = self.hash_key;
            self.peers.forget(index, |remote| peer_hash(&key, index, remote));
        }
        self.entries[index as usize] = Binding::FREE;
        self.used -= 1;
    }

    fn peer_hash(&self, index: u32, remote: Endpoint) -> u32 {
        peer_hash(&self.hash_key, index, remote)
    }

    fn hash_outside(&self, binding: &Binding) -> u32 {
        let remote = binding.remote().unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
        self.remote_hash(binding.outside_number, binding.protocol, binding.outside_port, remote)
    }

    #[inline]
    fn remote_hash(&self, address: u8, protocol: u8, port: u16, remote: Endpoint) -> u32 {
        let mut hasher = SipHasher13::new_with_key(&self.hash_key);
        hasher.write_u64(u64::from(remote.0.to_bits()) << 32 | u64::from(remote.1) << 16 | u64::from(port));
        hasher.write_u16(u16::from(address) << 8 | u16::from(protocol));
        hasher.finish() as u32
    }
}

fn peer_hash(key: &[u8; 16], index: u32, remote: Endpoint) -> u32 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write_u64(u64::from(remote.0.to_bits()) << 32 | u64::from(index));
    hasher.write_u16(remote.1);
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        gateway::OutsideAddress,
        nat::{Mapping, Owner},
    };
    use crate::wire::ip4;
    use std::collections::HashMap;

    const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(203, 0, 113, 200)];

    fn bindings(count: u32) -> Bindings {
        let pool = POOL.map(|address| OutsideAddress { address, first: 1, last: 65_535 });
        Bindings::new(count, Filtering::EndpointIndependent, OutsideAddresses::new(&pool, &[], 1), [3; 16])
    }

    fn binding(owner: Owner, inside_port: u16, outside: Endpoint, mapping: Mapping) -> BindingInit {
        BindingInit {
            owner,
            protocol: ip4::UDP,
            inside_address: Ipv4Addr::new(10, 0, 0, 1),
            inside_port,
            outside_address: outside.0,
            outside_port: outside.1,
            mapping,
            filtering: Filtering::EndpointIndependent,
        }
    }

    fn remote(number: u32) -> Endpoint {
        (Ipv4Addr::new(198, 51, 100, number as u8), 443)
    }

    proptest::proptest! {
        /// Against a plain map: every binding is found both ways after any sequence of changes. Even indices have a
        /// port of their own, odd ones share one port and are told apart by the remote endpoint.
        #[test]
        fn agrees_with_hash_maps(steps in proptest::collection::vec((0u32..12, 0u16..8, 0u8..2), 1..300)) {
            let mut bindings = bindings(12);
            let mut model: HashMap<u32, BindingInit> = HashMap::new();
            for (index, inside, insert) in steps {
                let owner = if index % 3 == 0 { Owner::INSIDE } else { Owner::session(index % 3) };
                let new = if index % 2 == 0 {
                    let outside = (POOL[index as usize / 2 % 2], 1000 + index as u16);
                    binding(owner, inside * 12 + index as u16, outside, Mapping::EndpointIndependent)
                } else {
                    binding(owner, inside, (POOL[1], 2000), Mapping::EndpointDependent(remote(index)))
                };
                if insert == 1 {
                    proptest::prop_assert!(bindings.insert(index, &new));
                    model.insert(index, new);
                } else {
                    bindings.remove(index);
                    model.remove(&index);
                }
                proptest::prop_assert_eq!(bindings.used(), model.len());
                for index in 0..12 {
                    let held = model.get(&index);
                    proptest::prop_assert_eq!(bindings.get(index).map(Binding::key), held.map(BindingInit::key));
                    let (address, port) =
                        if index % 2 == 0 { (index as u8 / 2 % 2, 1000 + index as u16) } else { (1, 2000) };
                    let found = bindings.find_outside(address, ip4::UDP, port, remote(index));
                    proptest::prop_assert_eq!(found, held.map(|_| index));
                }
                for (index, known) in &model {
                    proptest::prop_assert_eq!(bindings.find_inside(&known.key()), Some(*index));
                }
            }
        }
    }

    #[test]
    fn a_flow_binding_is_not_found_by_inside_key() {
        let mut bindings = bindings(4);
        let flow = binding(Owner::session(0), 1, (POOL[0], 2), Mapping::Flow(remote(1)));
        assert!(bindings.insert(0, &flow));
        assert_eq!(bindings.find_inside(&flow.key()), None);
        assert_eq!(bindings.find_outside(0, ip4::UDP, 2, remote(1)), Some(0));
        assert!(!bindings.insert(4, &flow), "an index out of range is refused");
        let elsewhere = BindingInit { outside_address: Ipv4Addr::new(192, 0, 2, 9), ..flow };
        assert!(!bindings.insert(1, &elsewhere), "an address outside the pool is refused");
    }

    #[test]
    fn the_same_port_of_two_addresses_is_two_ports() {
        let mut bindings = bindings(4);
        for (index, address) in (0..).zip(POOL) {
            let inside = 10 + index as u16;
            let init = binding(Owner::INSIDE, inside, (address, 7), Mapping::EndpointIndependent);
            assert!(bindings.insert(index, &init));
        }
        assert_eq!([0, 1].map(|number| bindings.at_port(number, ip4::UDP, 7)), [Some(0), Some(1)]);
        assert_eq!(bindings.at_port(0, ip4::TCP, 7), None);
        assert_eq!(bindings.find_outside(2, ip4::UDP, 7, remote(1)), None, "no such address");
        bindings.remove(0);
        assert_eq!([0, 1].map(|number| bindings.at_port(number, ip4::UDP, 7)), [None, Some(1)]);
    }
}
