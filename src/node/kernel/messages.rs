//! What netlink's messages say of links, neighbours and addresses.

use std::net::IpAddr;

use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use crate::{dataplane::forwarding::Interface, wire::ethernet::Mac};

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// `None`: not an Ethernet interface.
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u16,
    pub(super) is_up: bool,
}

impl Link {
    pub(super) fn parse(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            is_up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = Mac::try_from(bytes.as_slice()).ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(*mtu).unwrap_or(u16::MAX),
                _ => {}
            }
        }
        link
    }

    pub(super) fn interface(&self) -> Option<Interface> {
        Some(Interface { index: self.index, mac: self.mac?, mtu: self.mtu, is_up: self.is_up })
    }
}

/// A neighbour entry as a message describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Usable. `is_static`: the kernel never verifies it, so it needs no refreshing.
    Up { mac: Mac, is_static: bool },
    /// Being resolved.
    Pending,
    /// Did not answer.
    Failed,
    /// No longer there.
    Removed,
}

/// Whose entry it is, and what is said of it; `None`: nothing of use.
pub(super) fn parse_neighbour(message: &NeighbourMessage, is_removed: bool) -> Option<(IpAddr, Entry)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    if is_removed {
        return Some((address, Entry::Removed));
    }
    // A multicast MAC belongs to a multicast or broadcast address, which is no next hop.
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => {
            Mac::try_from(bytes.as_slice()).ok().filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6])
        }
        _ => None,
    });
    let entry = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => {
            Entry::Up { mac: mac?, is_static: false }
        }
        NeighbourState::Permanent | NeighbourState::Noarp => Entry::Up { mac: mac?, is_static: true },
        NeighbourState::Incomplete => Entry::Pending,
        NeighbourState::Failed => Entry::Failed,
        _ => return None,
    };
    Some((address, entry))
}

/// The address that `message` configures on this host.
pub(super) fn parse_local_address(message: &AddressMessage) -> Option<IpAddr> {
    // On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is ours wherever it is given.
    let of = |select: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(select);
    of(|a| if let AddressAttribute::Local(address) = a { Some(*address) } else { None })
        .or_else(|| of(|a| if let AddressAttribute::Address(address) = a { Some(*address) } else { None }))
}
