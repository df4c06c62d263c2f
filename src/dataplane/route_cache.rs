//! Lookups by destination, cached: the snapshot of [`Forwarding`] is a list, this makes it cheap per packet.
//!
//! Direct-mapped, one entry a bucket; a new snapshot makes all entries stale by its epoch.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    address::Address,
    forwarding::{Forwarding, Lookup},
    gateway::Realm,
};
use crate::wire::ethernet::Mac;

/// A gateway's hosts and their servers, or an exit's servers: tens of thousands of destinations at a time.
const ENTRIES: usize = 1 << 14;

/// What a packet to one destination needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Cached<A = Ipv4Addr> {
    destination: A,
    epoch: u32,
    /// MAC address of the interface it leaves by.
    pub source: Mac,
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
        source: [0; 6],
        lookup: Lookup::NoRoute,
        is_exit_allowed: false,
        mtu: 0,
        is_up: false,
        realm: Realm::Neither,
        is_exempt: false,
    };
}

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

    /// What there is to know of `destination`.
    #[inline]
    pub fn lookup(&mut self, destination: Ipv4Addr) -> &Cached {
        let bucket = (destination.spread() >> 16) as usize % ENTRIES;
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
        let bucket = (destination.spread() >> 16) as usize % ENTRIES;
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
        Cached {
            lookup,
            source: interface.map_or([0; 6], |i| i.mac),
            mtu: interface.map_or(0, |i| i.mtu),
            is_up: interface.is_some_and(|i| i.is_up),
            realm: number.map_or(Realm::Neither, |number| self.realm(number)),
            ..Cached::STALE
        }
    }
}
