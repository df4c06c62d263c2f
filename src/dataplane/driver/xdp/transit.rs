//! Which packets the XDP program takes: addresses and ports of the node, and what only passes through a gateway. Unlike all
//! else it goes by, this changes while it runs.

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf, Pod,
    maps::{
        HashMap, MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};

use crate::dataplane::{
    address::Address,
    forwarding::{Prefix, Prefix6},
    gateway::{OutsideAddress, Transit},
};

/// The maps of one interface's program that hold [`Transit`]; may be changed from any thread while it runs.
#[derive(Debug)]
pub struct TransitRules {
    addresses: HashMap<MapData, u32, [u16; 2]>,
    addresses6: HashMap<MapData, [u8; 16], [u16; 2]>,
    forwarded: HashMap<MapData, Forwarded, u8>,
    forwarded6: HashMap<MapData, Forwarded6, u8>,
    local: HashMap<MapData, u32, u8>,
    exempt: LpmTrie<MapData, u32, u8>,
    local6: HashMap<MapData, [u8; 16], u8>,
    exempt6: LpmTrie<MapData, [u8; 16], u8>,
    /// What the maps hold.
    now: Transit,
}

/// `struct forwarded` of the program.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Forwarded {
    address: u32,
    port: u16,
    protocol: u8,
    zero: u8,
}

// SAFETY: plain integers without padding between or behind them.
unsafe impl Pod for Forwarded {}

impl Forwarded {
    fn new((protocol, address, port): (u8, Ipv4Addr, u16)) -> Self {
        Self { address: in_network_order(address), port: port.to_be(), protocol, zero: 0 }
    }
}

/// `struct forwarded6` of the program.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Forwarded6 {
    address: [u8; 16],
    port: u16,
    protocol: u8,
    zero: u8,
}

// SAFETY: plain integers without padding between or behind them.
unsafe impl Pod for Forwarded6 {}

impl Forwarded6 {
    fn new((protocol, address, port): (u8, Ipv6Addr, u16)) -> Self {
        Self { address: address.octets(), port: port.to_be(), protocol, zero: 0 }
    }
}

pub(super) fn in_network_order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn trie_key(prefix: Prefix) -> Key<u32> {
    Key::new(u32::from(prefix.length), in_network_order(prefix.address))
}

fn trie_key6(prefix: Prefix6) -> Key<[u8; 16]> {
    Key::new(u32::from(prefix.length), prefix.address.octets())
}

/// Addresses that are in `old` and, with whatever ports, not in `new`.
fn withdrawn<'a, A: Address>(
    old: &'a [OutsideAddress<A>],
    new: &'a [OutsideAddress<A>],
) -> impl Iterator<Item = &'a OutsideAddress<A>> {
    old.iter().filter(|outside| !new.iter().any(|other| other.address == outside.address))
}

impl TransitRules {
    /// Takes the maps out of a loaded object.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let mut take = |name| ebpf.take_map(name).expect("the program has this map");
        Ok(Self {
            addresses: take("addresses").try_into()?,
            addresses6: take("addresses6").try_into()?,
            forwarded: take("forwarded").try_into()?,
            forwarded6: take("forwarded6").try_into()?,
            local: take("local").try_into()?,
            exempt: take("exempt").try_into()?,
            local6: take("local6").try_into()?,
            exempt6: take("exempt6").try_into()?,
            now: Transit::default(),
        })
    }

    /// Makes `transit` what is taken. What is in the old and in the new set is taken all the time.
    pub fn set(&mut self, transit: &Transit) -> Result<(), MapError> {
        let old = std::mem::take(&mut self.now);
        // What goes makes room for what comes.
        for outside in withdrawn(&old.addresses, &transit.addresses) {
            self.addresses.remove(&in_network_order(outside.address))?;
        }
        for outside in changes(&old.addresses, &transit.addresses).1 {
            self.addresses.insert(in_network_order(outside.address), [outside.first, outside.last], 0)?;
        }
        let (gone, new) = changes(&old.forwarded, &transit.forwarded);
        gone.iter().try_for_each(|entry| self.forwarded.remove(&Forwarded::new(**entry)))?;
        new.iter().try_for_each(|entry| self.forwarded.insert(Forwarded::new(**entry), 0, 0))?;
        let (gone, new) = changes(&old.local, &transit.local);
        gone.iter().try_for_each(|address| self.local.remove(&in_network_order(**address)))?;
        new.iter().try_for_each(|address| self.local.insert(in_network_order(**address), 0, 0))?;
        let (gone, new) = changes(&old.exempt, &transit.exempt);
        gone.iter().try_for_each(|prefix| self.exempt.remove(&trie_key(**prefix)))?;
        new.iter().try_for_each(|prefix| self.exempt.insert(&trie_key(**prefix), 0, 0))?;
        self.set6(&old, transit)?;
        self.now = transit.clone();
        Ok(())
    }

    fn set6(&mut self, old: &Transit, transit: &Transit) -> Result<(), MapError> {
        for outside in withdrawn(&old.addresses6, &transit.addresses6) {
            self.addresses6.remove(&outside.address.octets())?;
        }
        for outside in changes(&old.addresses6, &transit.addresses6).1 {
            self.addresses6.insert(outside.address.octets(), [outside.first, outside.last], 0)?;
        }
        let (gone, new) = changes(&old.forwarded6, &transit.forwarded6);
        gone.iter().try_for_each(|entry| self.forwarded6.remove(&Forwarded6::new(**entry)))?;
        new.iter().try_for_each(|entry| self.forwarded6.insert(Forwarded6::new(**entry), 0, 0))?;
        let (gone, new) = changes(&old.local6, &transit.local6);
        gone.iter().try_for_each(|address| self.local6.remove(&address.octets()))?;
        new.iter().try_for_each(|address| self.local6.insert(address.octets(), 0, 0))?;
        let (gone, new) = changes(&old.exempt6, &transit.exempt6);
        gone.iter().try_for_each(|prefix| self.exempt6.remove(&trie_key6(**prefix)))?;
        new.iter().try_for_each(|prefix| self.exempt6.insert(&trie_key6(**prefix), 0, 0))
    }
}

/// What is in the old set alone, and what in the new one alone.
fn changes<'a, T: PartialEq>(old: &'a [T], new: &'a [T]) -> (Vec<&'a T>, Vec<&'a T>) {
    let alone = |of: &'a [T], other: &[T]| of.iter().filter(|entry| !other.contains(entry)).collect();
    (alone(old, new), alone(new, old))
}
