//! Where packets leave: routes, adjacencies, neighbour nodes and exit policy, as one immutable snapshot.
//!
//! The control core builds a new snapshot on every change and hands it over; a worker looks up, never writes.
//! Lookups by destination are cached per worker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    address::Address,
    exit_policy::ExitPolicy,
    gateway::Gateway,
    route_table::{NOWHERE, NextHop, RouteTable},
};
use crate::{
    limits,
    wire::{ethernet::Mac, relay::HopKey},
};

/// A prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Prefix<A = Ipv4Addr> {
    /// The network address, host bits zero.
    pub address: A,
    /// Bits of the network part, 0 to 32 (or 128).
    pub length: u8,
}

/// A prefix of IPv6.
pub type Prefix6 = Prefix<Ipv6Addr>;

impl Prefix {
    /// The prefix of `length` bits that `address` is in. Panics where `length` is above 32.
    pub const fn new(address: Ipv4Addr, length: u8) -> Self {
        assert!(length <= 32);
        Self { address: Ipv4Addr::from_bits(address.to_bits() & Self::mask(length)), length }
    }

    const fn mask(length: u8) -> u32 {
        if length == 0 { 0 } else { u32::MAX << (32 - length) }
    }

    /// The last address inside.
    pub const fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !Self::mask(self.length))
    }

    /// True where `address` is inside.
    #[inline]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & Self::mask(self.length) == 0
    }
}

impl Prefix6 {
    /// The prefix of `length` bits that `address` is in. Panics where `length` is above 128.
    pub const fn of(address: Ipv6Addr, length: u8) -> Self {
        assert!(length <= 128);
        Self { address: Ipv6Addr::from_bits(address.to_bits() & Self::mask(length)), length }
    }

    const fn mask(length: u8) -> u128 {
        if length == 0 { 0 } else { u128::MAX << (128 - length) }
    }

    /// True where `address` is inside.
    #[inline]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & Self::mask(self.length) == 0
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    /// Reads `192.0.2.0/24`, or a plain address as a /32.
    fn from_str(text: &str) -> Result<Self, String> {
        read(text, "IPv4", Self::new)
    }
}

impl std::str::FromStr for Prefix6 {
    type Err = String;

    /// Reads `2001:db8::/32`, or a plain address as a /128.
    fn from_str(text: &str) -> Result<Self, String> {
        read(text, "IPv6", Self::of)
    }
}

fn read<A: Address + std::str::FromStr + std::fmt::Display>(
    text: &str,
    family: &str,
    new: fn(A, u8) -> Prefix<A>,
) -> Result<Prefix<A>, String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, length.parse().ok()),
        None => (text, Some(A::LENGTH)),
    };
    let address: A = address.parse().map_err(|_| format!("'{text}' is not an {family} prefix"))?;
    let length: u8 =
        length.filter(|n| *n <= A::LENGTH).ok_or_else(|| format!("'{text}': a prefix length is 0 to {}", A::LENGTH))?;
    let prefix = new(address, length);
    if prefix.address != address {
        return Err(format!(
            "'{text}' has bits set after its prefix length; did you mean {}/{length}?",
            prefix.address
        ));
    }
    Ok(prefix)
}

impl<A: std::fmt::Display> std::fmt::Display for Prefix<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A route of the kernel's main table. One with several next hops is several of these, of equal prefix and metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route<A = Ipv4Addr> {
    /// Where to.
    pub prefix: Prefix<A>,
    /// Through which router; `None`: the destination is on the link.
    pub gateway: Option<A>,
    /// Index in [`Forwarding::interfaces`], or [`NOWHERE`].
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
pub struct Adjacency<A = Ipv4Addr> {
    /// The next hop's address.
    pub next_hop: A,
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
    /// Workers of the node. Each owns a part of the NAT ports ([`OutsideAddresses`](super::nat::OutsideAddresses)).
    pub workers: u8,
}

impl Identity {
    /// The worker that owns the bindings of an inside host of the gateway: all of them, so that limits, port blocks and
    /// the one outside address of a host (RFC 4787 REQ-2) need no agreement between workers. A packet from inside that
    /// came in elsewhere is handed over before it reaches the NAT.
    #[inline]
    pub fn owner_of_host(&self, inside: Ipv4Addr) -> usize {
        (inside.spread() >> 16) as usize % usize::from(self.workers)
    }

    /// The same for one of IPv6.
    #[inline]
    pub fn owner_of_host6(&self, inside: Ipv6Addr) -> usize {
        (inside.spread() >> 16) as usize % usize::from(self.workers)
    }

    /// The same for one of either family.
    #[inline]
    pub fn owner_of(&self, inside: IpAddr) -> usize {
        match inside {
            IpAddr::V4(inside) => self.owner_of_host(inside),
            IpAddr::V6(inside) => self.owner_of_host6(inside),
        }
    }
}

/// The snapshot.
#[derive(Clone, Debug, Default)]
pub struct Forwarding {
    /// By the driver's interface number.
    pub interfaces: Vec<Interface>,
    /// Where destinations are.
    pub routes: RouteTable,
    /// Sorted by interface and next hop; at most [`limits::ADJACENCIES_MAX`].
    pub adjacencies: Vec<Adjacency>,
    /// Interfaces and addresses of next hops that do not answer, and share their destinations with others; sorted.
    pub failed: Vec<(u8, Ipv4Addr)>,
    /// The same of IPv6.
    pub routes6: RouteTable<Ipv6Addr>,
    /// The same of IPv6.
    pub adjacencies6: Vec<Adjacency<Ipv6Addr>>,
    /// The same of IPv6.
    pub failed6: Vec<(u8, Ipv6Addr)>,
    /// By peer number; at most [`limits::PEERS_MAX`].
    pub peers: Vec<Peer>,
    /// Where the node sends to as an exit.
    pub policy: ExitPolicy,
    /// What the node does as a gateway, if anything.
    pub gateway: Option<Gateway>,
}

/// Where a packet goes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup<A = Ipv4Addr> {
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
        next_hop: A,
    },
    /// No route out of our interfaces.
    NoRoute,
}

impl<A: Copy> Lookup<A> {
    /// The interface that a packet leaves by.
    #[inline]
    pub fn interface(self) -> Option<u8> {
        match self {
            Self::Found { interface, .. } | Self::Unresolved { interface, .. } => Some(interface),
            Self::NoRoute => None,
        }
    }
}

impl Forwarding {
    /// Longest-prefix match, a choice among equal next hops, then the next hop's adjacency.
    pub fn lookup(&self, destination: Ipv4Addr) -> Lookup {
        self.find(&self.routes, &self.adjacencies, &self.failed, destination)
    }

    /// The same for IPv6.
    pub fn lookup6(&self, destination: Ipv6Addr) -> Lookup<Ipv6Addr> {
        self.find(&self.routes6, &self.adjacencies6, &self.failed6, destination)
    }

    fn find<A: Address>(
        &self,
        routes: &RouteTable<A>,
        adjacencies: &[Adjacency<A>],
        failed: &[(u8, A)],
        destination: A,
    ) -> Lookup<A> {
        let Some(hop) = self.choose(routes.lookup(destination), failed, destination) else { return Lookup::NoRoute };
        let next_hop = hop.gateway.unwrap_or(destination);
        let key = (hop.interface, next_hop);
        match adjacencies.binary_search_by_key(&key, |a| (a.interface, a.next_hop)) {
            Ok(at) => Lookup::Found { interface: hop.interface, mac: adjacencies[at].mac },
            Err(_) => Lookup::Unresolved { interface: hop.interface, next_hop },
        }
    }

    /// The same next hop for the same destination, as long as its interface is up and it answers; else the next one that
    /// does. Where none answers, one of those that are up: its last MAC address is tried, or it is asked for again.
    fn choose<'a, A: Address>(
        &self,
        hops: &'a [NextHop<A>],
        failed: &[(u8, A)],
        destination: A,
    ) -> Option<&'a NextHop<A>> {
        let ours = |hop: &&NextHop<A>| hop.interface != NOWHERE;
        if hops.len() <= 1 {
            return hops.first().filter(ours);
        }
        let first = (destination.spread() >> 8) as usize % hops.len();
        let (after, before) = (&hops[first..], &hops[..first]);
        let is_up = |hop: &&NextHop<A>| self.interfaces.get(usize::from(hop.interface)).is_some_and(|i| i.is_up);
        let answers = |hop: &&NextHop<A>| {
            hop.gateway.is_none_or(|gateway| failed.binary_search(&(hop.interface, gateway)).is_err())
        };
        let ring = after.iter().chain(before);
        let alive = ring.clone().find(|hop| is_up(hop) && answers(hop));
        alive.or_else(|| ring.clone().find(is_up)).or(hops.first()).filter(ours)
    }

    /// True where the snapshot keeps to the limits.
    pub fn is_within_limits(&self) -> bool {
        self.adjacencies.len() <= limits::ADJACENCIES_MAX
            && self.adjacencies6.len() <= limits::ADJACENCIES_MAX
            && self.peers.len() <= limits::PEERS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_next_hops_share_the_destinations_and_one_that_is_down_gets_none() {
        let interface = |is_up| Interface { index: 1, mac: [2; 6], mtu: 1500, is_up };
        let via = |interface| Route {
            prefix: Prefix::new(Ipv4Addr::UNSPECIFIED, 0),
            gateway: Some(Ipv4Addr::new(192, 0, 2, interface)),
            interface,
            metric: 0,
        };
        let routes = RouteTable::new(&[via(0), via(1)]);
        let mut forwarding =
            Forwarding { interfaces: vec![interface(true), interface(true)], routes, ..Forwarding::default() };
        let over = |forwarding: &Forwarding, n: u32| match forwarding.lookup(Ipv4Addr::from(0xc633_6400 + n)) {
            Lookup::Unresolved { interface, next_hop } => {
                assert_eq!(next_hop.octets()[3], interface);
                usize::from(interface)
            }
            other => panic!("{other:?}"),
        };
        let mut share = [0; 2];
        for n in 0..256 {
            share[over(&forwarding, n)] += 1;
            assert_eq!(over(&forwarding, n), over(&forwarding, n), "one destination, one way");
        }
        assert!(share.iter().all(|count| *count > 64), "{share:?}");
        forwarding.interfaces[0].is_up = false;
        assert!((0..256).all(|n| over(&forwarding, n) == 1));
    }

    #[test]
    fn a_next_hop_that_does_not_answer_gets_no_destination_while_another_does_and_the_others_keep_theirs() {
        let hop = |n| Ipv4Addr::new(192, 0, 2, n);
        let via =
            |n| Route { prefix: Prefix::new(Ipv4Addr::UNSPECIFIED, 0), gateway: Some(hop(n)), interface: 0, metric: 0 };
        let routes = RouteTable::new(&[via(0), via(1), via(2)]);
        assert_eq!(routes.alternatives().filter_map(|hop| hop.gateway).collect::<Vec<_>>(), [0, 1, 2].map(hop));
        let interfaces = vec![Interface { index: 1, mac: [2; 6], mtu: 1500, is_up: true }];
        let mut forwarding = Forwarding { interfaces, routes, ..Forwarding::default() };
        let ways = |forwarding: &Forwarding| -> Vec<u8> {
            let of = |n: u32| match forwarding.lookup(Ipv4Addr::from(0xc633_6400 + n)) {
                Lookup::Unresolved { next_hop, .. } => next_hop.octets()[3],
                other => panic!("{other:?}"),
            };
            (0..256).map(of).collect()
        };
        let all = ways(&forwarding);
        forwarding.failed = vec![(0, hop(1))];
        for (before, after) in all.iter().zip(ways(&forwarding)) {
            assert!(if *before == 1 { after != 1 } else { after == *before }, "{before} became {after}");
        }
        forwarding.failed = [0, 1, 2].map(|n| (0, hop(n))).to_vec();
        assert_eq!(ways(&forwarding), all, "where none answers it is as if all did");
        let alone = RouteTable::new(&[via(1)]);
        assert_eq!(alone.alternatives().count(), 0);
        forwarding.routes = alone;
        assert!(ways(&forwarding).iter().all(|way| *way == 1), "there is no other");
    }

    #[test]
    fn a_route_to_nowhere_hides_the_default_route() {
        let route =
            |prefix: &str, interface| Route { prefix: prefix.parse().unwrap(), gateway: None, interface, metric: 0 };
        let routes = RouteTable::new(&[route("0.0.0.0/0", 0), route("10.0.0.0/8", NOWHERE)]);
        let forwarding = Forwarding { routes, ..Forwarding::default() };
        assert_eq!(forwarding.lookup(Ipv4Addr::new(10, 1, 1, 1)), Lookup::NoRoute);
        assert!(matches!(forwarding.lookup(Ipv4Addr::new(11, 1, 1, 1)), Lookup::Unresolved { interface: 0, .. }));
    }
}
