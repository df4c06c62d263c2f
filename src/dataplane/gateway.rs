//! What a node does as a gateway for the hosts behind it: the part of the [snapshot] that says who is inside, who is
//! outside, which addresses and ports are NAT's, and what is not translated.
//!
//! [snapshot]: super::forwarding::Forwarding

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    address::Address,
    forwarding::{Prefix, Prefix6},
    nat::Translation,
};

/// Whose side of the gateway an interface is on (RFC 2663: the realm).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Realm {
    /// Not the gateway's: the overlay's alone.
    #[default]
    Neither,
    /// Hosts behind it use this node as their router.
    Inside,
    /// Servers are behind it, and see one of the gateway's addresses.
    Outside,
}

/// An address that servers see, and those of its ports and ICMP identifiers that NAT gives out, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutsideAddress<A = Ipv4Addr> {
    /// The address.
    pub address: A,
    /// Its first port.
    pub first: u16,
    /// Its last port.
    pub last: u16,
}

/// The same of IPv6.
pub type OutsideAddress6 = OutsideAddress<Ipv6Addr>;

impl<A: Address> OutsideAddress<A> {
    /// No address: the place of one that is gone.
    pub const VACANT: Self = Self { address: A::UNSPECIFIED, first: 1, last: 0 };

    /// True for a place without an address.
    pub fn is_vacant(&self) -> bool {
        *self == Self::VACANT
    }
}

/// A forwarded port: what comes to `outside` goes to `inside`, and what comes from there leaves as `outside`. Both are of one
/// family, or an outside address of IPv4 leads to a host of IPv6, to which clients have their names in the NAT64 prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaticMapping {
    /// TCP or UDP.
    pub protocol: u8,
    /// One of the addresses that servers see, and a port of it that NAT gives to nobody else.
    pub outside: (IpAddr, u16),
    /// The inside host's address and port.
    pub inside: (IpAddr, u16),
}

/// The gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Gateway {
    /// By interface number.
    pub realms: Vec<Realm>,
    /// By interface number: the node's address there, if it has one. Errors about packets that came in there come from it
    /// (RFC 1812 section 4.3.2.4).
    pub routers: Vec<Option<Ipv4Addr>>,
    /// The same of IPv6.
    pub routers6: Vec<Option<Ipv6Addr>>,
    /// Outside addresses that hosts are given.
    pub addresses: Vec<OutsideAddress>,
    /// Those of IPv6.
    pub addresses6: Vec<OutsideAddress6>,
    /// Destinations that see inside hosts as they are.
    pub exempt: Vec<Prefix>,
    /// Those of IPv6.
    pub exempt6: Vec<Prefix6>,
    /// Forwarded ports, in the order of [`StaticMapping::place`].
    pub mappings: Vec<StaticMapping>,
    /// No new flows: those there are go on.
    pub is_draining: bool,
}

impl StaticMapping {
    /// What it is sorted and found by.
    #[inline]
    pub fn place(&self) -> (u8, IpAddr, u16) {
        (self.protocol, self.outside.0, self.outside.1)
    }

    /// What a host of IPv6 is translated to by it; `None`: the host is one of IPv4.
    pub fn translation(&self) -> Option<Translation> {
        self.inside.0.is_ipv6().then_some(match self.outside.0 {
            IpAddr::V4(_) => Translation::Nat64,
            IpAddr::V6(_) => Translation::Nat66,
        })
    }
}

impl Gateway {
    /// The side that an interface is on.
    #[inline]
    pub fn realm(&self, interface: u8) -> Realm {
        self.realms.get(usize::from(interface)).copied().unwrap_or_default()
    }

    /// The node's address on an interface.
    pub fn router(&self, interface: u8) -> Option<Ipv4Addr> {
        self.routers.get(usize::from(interface)).copied().flatten()
    }

    /// The same of IPv6.
    pub fn router6(&self, interface: u8) -> Option<Ipv6Addr> {
        self.routers6.get(usize::from(interface)).copied().flatten()
    }

    /// The mapping of a forwarded port.
    #[inline]
    pub fn mapping_of(&self, protocol: u8, outside: (IpAddr, u16)) -> Option<&StaticMapping> {
        let key = (protocol, outside.0, outside.1);
        self.mappings.binary_search_by_key(&key, StaticMapping::place).ok().map(|at| &self.mappings[at])
    }

    /// True where packets to or from `address` are not translated.
    pub fn is_exempt(&self, address: Ipv4Addr) -> bool {
        self.exempt.iter().any(|prefix| prefix.contains(address))
    }

    /// The same for IPv6.
    pub fn is_exempt6(&self, address: Ipv6Addr) -> bool {
        self.exempt6.iter().any(|prefix| prefix.contains(address))
    }
}

/// Packets that the NIC's XDP program takes. May change at any time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Transit {
    /// Addresses of the node, and of each the UDP and TCP ports and ICMP identifiers.
    pub addresses: Vec<OutsideAddress>,
    /// The same of IPv6.
    pub addresses6: Vec<OutsideAddress6>,
    /// Protocol, address and port of what is forwarded to inside hosts, at most 1024.
    pub forwarded: Vec<(u8, Ipv4Addr, u16)>,
    /// The same of IPv6.
    pub forwarded6: Vec<(u8, Ipv6Addr, u16)>,
    /// Every address of this machine, those of networks and broadcasts included: what goes there is not routed on.
    pub local: Vec<Ipv4Addr>,
    /// The same of IPv6, but for those of one link alone.
    pub local6: Vec<Ipv6Addr>,
    /// Networks that are routed to and from without translation, at most 1024.
    pub exempt: Vec<Prefix>,
    /// The same of IPv6.
    pub exempt6: Vec<Prefix6>,
}
