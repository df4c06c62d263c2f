//! Lookups by destination, cached: the snapshot of [`Forwarding`] is a list, this makes it cheap per packet.
//!
//! Direct-mapped, one entry a bucket; a new snapshot makes all entries stale by its epoch.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    address::Address,
    forwarding::{Forwarding, Lookup},
    gateway::Realm,
    prefetch::prefetch,
};
use crate::wire::ethernet;

/// A gateway's hosts and their servers, or an exit's servers: tens of thousands of destinations at a time.
const ENTRIES: usize = 1 << 14;

#[inline]
fn bucket<A: Address>(destination: A) -> usize {
    (destination.spread() >> 16) as usize % ENTRIES
}

/// What a packet to one destination needs to know: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Cached<A = Ipv4Addr> {
    destination: A,
    epoch: u32,
    /// Bytes of an IP packet that may leave now, at most: nothing where there is no way, or it is not resolved or down.
    pub room: u16,
    /// The interface it leaves by.
    pub interface: u8,
    /// The Ethernet header it leaves with.
    pub header: [u8; ethernet::HEADER_BYTES],
    /// Where it leaves.
    pub lookup: Lookup<A>,
    /// True where an exit may send there.
    pub is_exit_allowed: bool,
    /// MTU of the interface it leaves by; zero where there is no route.
    pub mtu: u16,
    /// True where that interface is up.
    pub is_up: bool,
    /// Whose side of the gateway that interface is on.
    pub realm: Realm,
    /// True where the gateway translates nothing to and from there.
    pub is_exempt: bool,
}

impl<A: Address> Cached<A> {
    /// Of no snapshot.
    const STALE: Self = Self {
        destination: A::UNSPECIFIED,
        epoch: 0,
        room: 0,
        interface: 0,
        header: [0; ethernet::HEADER_BYTES],
        lookup: Lookup::NoRoute,
        is_exit_allowed: false,
        mtu: 0,
        is_up: false,
        realm: Realm::Neither,
        is_exempt: false,
    };
}

const _: () = assert!(size_of::<Cached>() == 64 && size_of::<Cached<Ipv6Addr>>() <= 128);

/// The current snapshot and the cache over it.
#[derive(Debug)]
pub struct RouteCache {
    forwarding: Box<Forwarding>,
    epoch: u32,
    entries: Box<[Cached]>,
    entries6: Box<[Cached<Ipv6Addr>]>,
}

impl RouteCache {
    /// A cache over `forwarding`.
    pub fn new(forwarding: Box<Forwarding>) -> Self {
        Self {
            forwarding,
            epoch: 1,
            entries: vec![Cached::STALE; ENTRIES].into_boxed_slice(),
            entries6: vec![Cached::STALE; ENTRIES].into_boxed_slice(),
        }
    }

    /// The current snapshot.
    pub fn forwarding(&self) -> &Forwarding {
        &self.forwarding
    }

    /// Whose side of the gateway an interface is on.
    #[inline]
    pub fn realm(&self, interface: u8) -> Realm {
        self.forwarding.gateway.as_ref().map_or(Realm::Neither, |gateway| gateway.realm(interface))
    }

    /// True where the gateway takes no new flows.
    #[inline]
    pub fn is_draining(&self) -> bool {
        self.forwarding.gateway.as_ref().is_some_and(|gateway| gateway.is_draining)
    }

    /// Takes a new snapshot and gives the old one back.
    pub fn replace(&mut self, forwarding: Box<Forwarding>) -> Box<Forwarding> {
        self.epoch = self.epoch.wrapping_add(1);
        std::mem::replace(&mut self.forwarding, forwarding)
    }

    /// Asks for the line that [`Self::lookup`] of the same destination reads.
    #[inline]
    pub fn ask_for(&self, destination: Ipv4Addr) {
        prefetch(&self.entries[bucket(destination)]);
    }

    /// What there is to know of `destination`.
    #[inline]
    pub fn lookup(&mut self, destination: Ipv4Addr) -> &Cached {
        let bucket = bucket(destination);
        let entry = &self.entries[bucket];
        if entry.destination != destination || entry.epoch != self.epoch {
            self.look_up_anew(destination, bucket);
        }
        &self.entries[bucket]
    }

    #[cold]
    fn look_up_anew(&mut self, destination: Ipv4Addr, bucket: usize) {
        let forwarding = &self.forwarding;
        let fresh = Cached {
            destination,
            epoch: self.epoch,
            is_exit_allowed: forwarding.policy.allows(destination),
            is_exempt: forwarding.gateway.as_ref().is_some_and(|gateway| gateway.is_exempt(destination)),
            ..self.way(forwarding.lookup(destination))
        };
        self.entries[bucket] = fresh;
    }

    /// The same for IPv6.
    #[inline]
    pub fn lookup6(&mut self, destination: Ipv6Addr) -> Cached<Ipv6Addr> {
        let bucket = bucket(destination);
        let entry = self.entries6[bucket];
        if entry.destination == destination && entry.epoch == self.epoch {
            return entry;
        }
        let forwarding = &self.forwarding;
        let fresh = Cached {
            destination,
            epoch: self.epoch,
            is_exit_allowed: forwarding.policy.allows6(destination),
            is_exempt: forwarding.gateway.as_ref().is_some_and(|gateway| gateway.is_exempt6(destination)),
            ..self.way(forwarding.lookup6(destination))
        };
        self.entries6[bucket] = fresh;
        fresh
    }

    /// What follows from the way alone.
    fn way<A: Address>(&self, lookup: Lookup<A>) -> Cached<A> {
        let number = lookup.interface();
        let interface = number.and_then(|number| self.forwarding.interfaces.get(usize::from(number)));
        let (mut header, mut room) = ([0; ethernet::HEADER_BYTES], 0);
        if let (Some(interface), Lookup::Found { mac, .. }) = (interface, lookup) {
            ethernet::emit_as(&mut header, mac, interface.mac, A::ETHER_TYPE);
            room = if interface.is_up { interface.mtu } else { 0 };
        }
        Cached {
            lookup,
            room,
            interface: number.unwrap_or_default(),
            header,
            mtu: interface.map_or(0, |i| i.mtu),
            is_up: interface.is_some_and(|i| i.is_up),
            realm: number.map_or(Realm::Neither, |number| self.realm(number)),
            ..Cached::STALE
        }
    }
}
