//! Questions asked once, at the start of a node: interfaces, addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;

use super::{
    KernelError,
    family::Family,
    messages::{Link, parse_local_address},
    netlink::Requests,
};
use crate::dataplane::forwarding::Interface;

/// The interface called `name`, as it is now.
pub fn interface_by_name(name: &str) -> Result<Interface, KernelError> {
    find(&links(&mut Requests::open()?)?, name)
}

/// Every IPv4 address configured on this host (in this network namespace).
pub fn local_addresses() -> Result<Vec<Ipv4Addr>, KernelError> {
    let all = Requests::open()?.addresses(AddressFamily::Inet)?;
    Ok(all.iter().filter_map(parse_local_address).filter_map(Family::of).collect())
}

/// Every IPv6 address.
pub fn local_addresses6() -> Result<Vec<Ipv6Addr>, KernelError> {
    let all = Requests::open()?.addresses(AddressFamily::Inet6)?;
    Ok(all.iter().filter_map(parse_local_address).filter_map(Family::of).collect())
}

pub(super) fn links(requests: &mut Requests) -> Result<Vec<Link>, KernelError> {
    Ok(requests.links()?.iter().map(Link::parse).collect())
}

pub(super) fn find(links: &[Link], name: &str) -> Result<Interface, KernelError> {
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let known: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        return Err(KernelError::NoInterface { name: name.to_owned(), known: known.join(", ") });
    };
    link.interface().ok_or_else(|| KernelError::NotEthernet { name: name.to_owned() })
}
