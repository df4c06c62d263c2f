//! Where packets leave: routes, adjacencies, neighbour nodes and exit policy, as one immutable snapshot.
//!
//! The control core builds a new snapshot on every change and hands it over; a worker looks up, never writes.
//! Lookups by destination are cached per worker, so a snapshot may be a plain list.

use std::net::Ipv4Addr;

use crate::{
    limits,
    wire::{ethernet::Mac, relay::HopKey},
};

/// An IPv4 prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Prefix {
    /// The network address, host bits zero.
    pub address: Ipv4Addr,
    /// Bits of the network part, 0 to 32.
    pub length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that `address` is in. Panics where `length` is above 32.
    pub const fn new(address: Ipv4Addr, length: u8) -> Self {
        assert!(length <= 32);
        Self { address: Ipv4Addr::from_bits(address.to_bits() & Self::mask(length)), length }
    }

    const fn mask(length: u8) -> u32 {
        if length == 0 { 0 } else { u32::MAX << (32 - length) }
    }

    /// True where `address` is inside.
    #[inline]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & Self::mask(self.length) == 0
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    /// Reads `192.0.2.0/24`, or a plain address as a /32.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| format!("'{text}' is not an IPv4 prefix"))?;
        let length: u8 =
            length.parse().ok().filter(|n| *n <= 32).ok_or_else(|| format!("'{text}': a prefix length is 0 to 32"))?;
        let prefix = Self::new(address, length);
        if prefix.address != address {
            return Err(format!(
                "'{text}' has bits set after its prefix length; did you mean {}/{length}?",
                prefix.address
            ));
        }
        Ok(prefix)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A route of the kernel's main table that leads out of one of our interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where to.
    pub prefix: Prefix,
    /// Through which router; `None`: the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Index in [`Forwarding::interfaces`].
    pub interface: u8,
    /// Smaller is better among equal prefixes.
    pub metric: u32,
}

/// An interface the driver serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interface {
    /// The kernel's index.
    pub index: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU, bytes of IP packet.
    pub mtu: u16,
    /// Carrier and administratively up.
    pub is_up: bool,
}

/// A next hop whose MAC address is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Adjacency {
    /// The next hop's address.
    pub next_hop: Ipv4Addr,
    /// Its MAC address.
    pub mac: Mac,
    /// Index in [`Forwarding::interfaces`].
    pub interface: u8,
}

/// A neighbour node, to be probed and to answer probes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its data address.
    pub address: Ipv4Addr,
    /// Its data port.
    pub port: u16,
    /// Key of the probes it receives and of its answers to them.
    pub key: HopKey,
    /// False: the place of a peer that is gone; indices of the others stay.
    pub is_active: bool,
}

/// What a node is: does not change while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Address that peers and clients send to and servers see.
    pub address: Ipv4Addr,
    /// UDP port of relay packets: the first of the reserved range.
    pub data_port: u16,
    /// First port of the reserved range that NAT may use.
    pub nat_port_first: u16,
    /// Last one.
    pub nat_port_last: u16,
    /// Key of probes this node receives.
    pub probe_key: HopKey,
    /// Workers of the node: a NAT port belongs to the worker `(port - nat_port_first) % workers`.
    pub workers: u8,
}

impl Identity {
    /// The worker that owns NAT port `port`, or `None` where it is not in the range.
    #[inline]
    pub fn owner_of_port(&self, port: u16) -> Option<usize> {
        (self.nat_port_first..=self.nat_port_last)
            .contains(&port)
            .then(|| usize::from(port - self.nat_port_first) % usize::from(self.workers))
    }
}

/// The snapshot.
#[derive(Clone, Debug, Default)]
pub struct Forwarding {
    /// By the driver's interface number.
    pub interfaces: Vec<Interface>,
    /// In any order.
    pub routes: Vec<Route>,
    /// In any order; at most [`limits::ADJACENCIES_MAX`].
    pub adjacencies: Vec<Adjacency>,
    /// By peer number; at most [`limits::PEERS_MAX`].
    pub peers: Vec<Peer>,
    /// Destinations that an exit sends nothing to; an address in `allow` is let through all the same.
    pub deny: Vec<Prefix>,
    /// Exceptions from `deny`.
    pub allow: Vec<Prefix>,
}

/// Where a packet goes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Out of this interface to this MAC address.
    Found {
        /// Index in [`Forwarding::interfaces`].
        interface: u8,
        /// The next hop's.
        mac: Mac,
    },
    /// The next hop's MAC address is not known.
    Unresolved {
        /// Index in [`Forwarding::interfaces`].
        interface: u8,
        /// The next hop.
        next_hop: Ipv4Addr,
    },
    /// No route out of our interfaces.
    NoRoute,
}

impl Forwarding {
    /// Longest-prefix match, then the next hop's adjacency.
    pub fn lookup(&self, destination: Ipv4Addr) -> Lookup {
        let best = self
            .routes
            .iter()
            .filter(|route| route.prefix.contains(destination))
            .max_by_key(|route| (route.prefix.length, std::cmp::Reverse(route.metric)));
        let Some(route) = best else { return Lookup::NoRoute };
        let next_hop = route.gateway.unwrap_or(destination);
        match self.adjacencies.iter().find(|a| a.next_hop == next_hop && a.interface == route.interface) {
            Some(adjacency) => Lookup::Found { interface: route.interface, mac: adjacency.mac },
            None => Lookup::Unresolved { interface: route.interface, next_hop },
        }
    }

    /// True where an exit may send to `destination`.
    pub fn is_exit_allowed(&self, destination: Ipv4Addr) -> bool {
        self.allow.iter().any(|prefix| prefix.contains(destination))
            || !self.deny.iter().any(|prefix| prefix.contains(destination))
    }

    /// True where the snapshot keeps to the limits.
    pub fn is_within_limits(&self) -> bool {
        self.adjacencies.len() <= limits::ADJACENCIES_MAX && self.peers.len() <= limits::PEERS_MAX
    }
}
