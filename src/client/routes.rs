//! Adds the client's routes over netlink (RFC 3549; rtnetlink(7)).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::dataplane::forwarding::Prefix;

/// IPv4 or IPv6, as the kernel speaks of them.
pub trait Family {
    /// Its number.
    const FAMILY: AddressFamily;

    /// An address in a route.
    fn into_route(self) -> RouteAddress;
}

impl Family for Ipv4Addr {
    const FAMILY: AddressFamily = AddressFamily::Inet;

    fn into_route(self) -> RouteAddress {
        RouteAddress::Inet(self)
    }
}

impl Family for Ipv6Addr {
    const FAMILY: AddressFamily = AddressFamily::Inet6;

    fn into_route(self) -> RouteAddress {
        RouteAddress::Inet6(self)
    }
}

/// Sends what is for `prefix` out of an interface, with `source` as the preferred source address. The kernel
/// removes the route together with the interface.
///
/// Errors: `AlreadyExists` where such a route is there, `PermissionDenied` without CAP_NET_ADMIN.
pub fn add<A: Family>(prefix: Prefix<A>, interface: u32, source: A) -> io::Result<()> {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: A::FAMILY,
        destination_prefix_length: prefix.length,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Link,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if prefix.length > 0 {
        route.attributes.push(RouteAttribute::Destination(prefix.address.into_route()));
    }
    route.attributes.push(RouteAttribute::Oif(interface));
    route.attributes.push(RouteAttribute::PrefSource(source.into_route()));
    ask(RouteNetlinkMessage::NewRoute(route), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// The kernel's interface on the way to `destination`.
pub fn interface_to(destination: Ipv4Addr) -> io::Result<u32> {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = 32;
    route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
    let answer = ask(RouteNetlinkMessage::GetRoute(route), 0)?;
    let Some(RouteNetlinkMessage::NewRoute(route)) = answer else {
        return Err(io::Error::other(format!("no route to {}", IpAddr::V4(destination))));
    };
    let interface = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(interface) => Some(*interface),
        _ => None,
    });
    interface.ok_or_else(|| io::Error::other(format!("the route to {destination} leads to no interface")))
}

/// One request, one answer: a message, or an acknowledgement (`None`).
fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        _ => Ok(None),
    }
}

/// `ip link set lo up`, for tests in a namespace of their own.
#[cfg(test)]
pub(super) fn bring_loopback_up() -> io::Result<()> {
    use netlink_packet_route::link::{LinkFlags, LinkMessage};
    let mut link = LinkMessage::default();
    link.header.index = 1;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    ask(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_this_host_is_its_loopback_interface() {
        assert_eq!(interface_to(Ipv4Addr::LOCALHOST).unwrap(), 1);
    }

    #[test]
    fn an_interface_that_is_not_there_is_refused_by_the_kernel() {
        let prefix = "192.0.2.0/24".parse().unwrap();
        assert!(add(prefix, u32::MAX >> 1, Ipv4Addr::LOCALHOST).is_err());
    }
}
