//! What is the same of IPv4 and IPv6, as netlink has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteVia},
};

use crate::dataplane::{
    address::Address,
    forwarding::{Prefix, Prefix6},
};

/// A family of addresses as netlink has it.
pub(super) trait Family: Address {
    const FAMILY: AddressFamily;

    fn of(address: IpAddr) -> Option<Self>;

    fn of_route(address: &RouteAddress) -> Option<Self>;

    fn of_via(via: &RouteVia) -> Option<Self>;

    /// The prefix of the first `length` bits; `None`: there are not that many, or nothing of it leaves its link.
    fn prefix(self, length: u8) -> Option<Prefix<Self>>;
}

impl Family for Ipv4Addr {
    const FAMILY: AddressFamily = AddressFamily::Inet;

    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V4(address) = address { Some(address) } else { None }
    }

    fn of_route(address: &RouteAddress) -> Option<Self> {
        if let RouteAddress::Inet(address) = address { Some(*address) } else { None }
    }

    fn of_via(via: &RouteVia) -> Option<Self> {
        if let RouteVia::Inet(address) = via { Some(*address) } else { None }
    }

    fn prefix(self, length: u8) -> Option<Prefix> {
        (length <= 32).then(|| Prefix::new(self, length))
    }
}

impl Family for Ipv6Addr {
    const FAMILY: AddressFamily = AddressFamily::Inet6;

    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V6(address) = address { Some(address) } else { None }
    }

    fn of_route(address: &RouteAddress) -> Option<Self> {
        if let RouteAddress::Inet6(address) = address { Some(*address) } else { None }
    }

    fn of_via(via: &RouteVia) -> Option<Self> {
        if let RouteVia::Inet6(address) = via { Some(*address) } else { None }
    }

    fn prefix(self, length: u8) -> Option<Prefix6> {
        let is_of_one_link = self.is_unicast_link_local() || self.is_multicast();
        (length <= 128 && !is_of_one_link).then(|| Prefix6::of(self, length))
    }
}
