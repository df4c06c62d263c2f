//! One NAT binding: whose it is, and what is translated to what.

use std::{
    hash::{Hash, Hasher},
    mem::size_of,
    net::Ipv4Addr,
};

use super::{
    class::Class,
    connections::{Connections, Origin, Phase, Standing},
};
use crate::{
    limits::CT_SLOTS_MAX,
    wire::{
        ip4,
        tcp::{self, Segment},
    },
};

/// An address, and a port or the identifier of an ICMP query.
pub type Endpoint = (Ipv4Addr, u16);

/// The remote end of a packet as bindings and filters know it: an ICMP query has one number, which is the inside's.
#[inline]
pub fn remote_end(protocol: u8, end: Endpoint) -> Endpoint {
    if protocol == ip4::ICMP { (end.0, 0) } else { end }
}

/// On whose behalf a binding is made: who may use it from inside, and where its answers go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner(u32);

impl Owner {
    /// The hosts behind the gateway's inside interfaces.
    pub const INSIDE: Self = Self(u32::MAX);

    /// The overlay session in slot `slot` of the worker.
    #[inline]
    pub const fn session(slot: u32) -> Self {
        debug_assert!(slot < CT_SLOTS_MAX as u32);
        Self(slot)
    }

    /// The session's slot; `None` for the gateway's hosts.
    #[inline]
    pub const fn slot(self) -> Option<u32> {
        if self.0 == Self::INSIDE.0 { None } else { Some(self.0) }
    }
}

/// Which remote endpoints a binding is for (RFC 4787 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// Any: found by the inside endpoint alone (RFC 4787 REQ-1).
    EndpointIndependent,
    /// This one only. The inside side finds it by its index, which the session's fan holds.
    Flow(Endpoint),
    /// This one only, found by inside and remote endpoint. Such bindings may share an outside port.
    EndpointDependent(Endpoint),
}

/// Which packets from outside a binding lets in (RFC 4787 section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Filtering {
    /// Everyone's (REQ-8, most transparent).
    #[default]
    EndpointIndependent,
    /// From addresses that the inside has sent to (REQ-8, most stringent that is recommended).
    AddressDependent,
    /// From addresses and ports that the inside has sent to.
    AddressAndPortDependent,
}

/// What the control core writes of a new binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindingInit {
    /// On whose behalf.
    pub owner: Owner,
    /// ICMP, TCP or UDP.
    pub protocol: u8,
    /// Source address of the packets from inside.
    pub inside_address: Ipv4Addr,
    /// Their source port, or identifier of an ICMP query.
    pub inside_port: u16,
    /// Address the server sees: one of the pool.
    pub outside_address: Ipv4Addr,
    /// Port or identifier the server sees.
    pub outside_port: u16,
    /// Which remote endpoints it is for.
    pub mapping: Mapping,
    /// Whom it lets in.
    pub filtering: Filtering,
}

impl BindingInit {
    /// What its packets are found by from inside.
    pub fn key(&self) -> BindingKey {
        let remote = match self.mapping {
            Mapping::EndpointDependent(remote) => Some(remote),
            Mapping::EndpointIndependent | Mapping::Flow(_) => None,
        };
        BindingKey {
            owner: self.owner,
            protocol: self.protocol,
            address: self.inside_address,
            port: self.inside_port,
            remote,
        }
    }
}

/// What a packet from inside is bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindingKey {
    /// Who sent it.
    pub owner: Owner,
    /// ICMP, TCP or UDP.
    pub protocol: u8,
    /// Source address.
    pub address: Ipv4Addr,
    /// Source port or ICMP identifier.
    pub port: u16,
    /// Destination, where mapping is endpoint-dependent; else `None`.
    pub remote: Option<Endpoint>,
}

impl BindingKey {
    /// The same for any destination.
    #[inline]
    pub fn for_all(&self) -> Self {
        Self { remote: None, ..*self }
    }
}

/// In few words, for it is done for each first packet, and where there is no better way, for each packet. A key with a
/// remote end of zeros looks like one without; they are told apart when they are compared.
impl Hash for BindingKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (remote_address, remote_port) = self.remote.unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
        let ports = u64::from(self.port) << 16 | u64::from(remote_port);
        state.write_u64(u64::from(self.owner.0) << 32 | u64::from(self.address.to_bits()));
        state.write_u64(u64::from(remote_address.to_bits()) << 32 | ports);
        state.write_u8(self.protocol);
    }
}

/// How a binding is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    Free,
    EndpointIndependent,
    Flow,
    EndpointDependent,
}

/// A binding as a worker holds it: one cache line, of which the worker is the only writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Binding {
    /// On whose behalf.
    pub owner: Owner,
    /// Source address of the packets from inside.
    pub inside_address: Ipv4Addr,
    /// Address the server sees.
    pub outside_address: Ipv4Addr,
    /// Source port of the packets from inside, or identifier of an ICMP query.
    pub inside_port: u16,
    /// Port or identifier the server sees.
    pub outside_port: u16,
    /// ICMP, TCP or UDP.
    pub protocol: u8,
    kind: Kind,
    /// Whom it lets in.
    pub filtering: Filtering,
    /// Number of the outside address.
    pub(super) outside_number: u8,
    remote_address: Ipv4Addr,
    remote_port: u16,
    /// TCP: more connections are open than are followed.
    is_crowded: bool,
    connections: Connections,
}

const _: () = assert!(size_of::<Binding>() == 64, "a packet touches one cache line of its binding");

impl Binding {
    /// A place that holds none.
    pub const FREE: Self = Self {
        owner: Owner::INSIDE,
        inside_address: Ipv4Addr::UNSPECIFIED,
        outside_address: Ipv4Addr::UNSPECIFIED,
        inside_port: 0,
        outside_port: 0,
        protocol: 0,
        kind: Kind::Free,
        filtering: Filtering::EndpointIndependent,
        outside_number: 0,
        remote_address: Ipv4Addr::UNSPECIFIED,
        remote_port: 0,
        is_crowded: false,
        connections: Connections::NONE,
    };

    /// A new binding; its outside address has this number in the pool.
    pub fn new(init: &BindingInit, outside_number: u8) -> Self {
        let (kind, (remote_address, remote_port)) = match init.mapping {
            Mapping::EndpointIndependent => (Kind::EndpointIndependent, (Ipv4Addr::UNSPECIFIED, 0)),
            Mapping::Flow(remote) => (Kind::Flow, remote),
            Mapping::EndpointDependent(remote) => (Kind::EndpointDependent, remote),
        };
        Self {
            owner: init.owner,
            inside_address: init.inside_address,
            outside_address: init.outside_address,
            inside_port: init.inside_port,
            outside_port: init.outside_port,
            protocol: init.protocol,
            kind,
            filtering: init.filtering,
            outside_number,
            remote_address,
            remote_port,
            is_crowded: false,
            connections: Connections::NONE,
        }
    }

    /// By which timer it ages.
    #[inline]
    pub fn class(&self) -> Class {
        match self.protocol {
            ip4::TCP if self.is_crowded => Class::TcpEstablished,
            ip4::TCP => match self.connections.phase() {
                Phase::Opening => Class::TcpOpening,
                Phase::Established => Class::TcpEstablished,
                Phase::Closing => Class::TcpClosing,
            },
            ip4::ICMP => Class::Icmp,
            _ => Class::Udp,
        }
    }

    /// A TCP segment to or from `remote` passes. Returns whether it shows that a connection lives: those that belong to
    /// one that is over do not, nor does a RST that answers a stranger (RFC 7857 section 6.1).
    #[inline]
    pub(in crate::dataplane) fn on_segment(&mut self, from: Origin, remote: Endpoint, segment: &Segment) -> bool {
        match self.connections.on_segment(from, remote, segment) {
            Standing::Alive => true,
            Standing::Over => false,
            Standing::Unknown => {
                let is_life = from == Origin::Inside && segment.flags & tcp::RST == 0;
                self.is_crowded |= is_life;
                is_life
            }
        }
    }

    /// True where the place holds one.
    #[inline]
    pub fn is_used(&self) -> bool {
        self.kind != Kind::Free
    }

    /// The inside endpoint.
    #[inline]
    pub fn inside(&self) -> Endpoint {
        (self.inside_address, self.inside_port)
    }

    /// The outside endpoint.
    #[inline]
    pub fn outside(&self) -> Endpoint {
        (self.outside_address, self.outside_port)
    }

    /// The only remote endpoint it is for, `None`: any.
    #[inline]
    pub fn remote(&self) -> Option<Endpoint> {
        matches!(self.kind, Kind::Flow | Kind::EndpointDependent).then_some((self.remote_address, self.remote_port))
    }

    /// True where it is found from inside by its index alone.
    #[inline]
    pub(super) fn is_flow(&self) -> bool {
        self.kind == Kind::Flow
    }

    /// True where others may have the same outside port.
    #[inline]
    pub(super) fn is_endpoint_dependent(&self) -> bool {
        self.kind == Kind::EndpointDependent
    }

    /// What its packets are found by from inside.
    #[inline]
    pub fn key(&self) -> BindingKey {
        BindingKey {
            owner: self.owner,
            protocol: self.protocol,
            address: self.inside_address,
            port: self.inside_port,
            remote: if self.is_endpoint_dependent() { self.remote() } else { None },
        }
    }
}
