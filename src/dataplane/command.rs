//! The protocol of the two rings between the control core and a worker.
//!
//! Commands are applied in order, between two sweeps. A session is written bottom-up: links of the fan first,
//! the slot last, so that a packet never meets a half-written record. What a worker gives up (a freed slot, an
//! old table) goes back as an event; only then does the control core reuse it. A worker never frees memory.

use std::net::{IpAddr, Ipv6Addr};

use super::{
    conntrack::{FanInit, FanReport, Link, NodeKey, Role, SourcePorts},
    forwarding::Forwarding,
    nat::{BindingInit, BindingKey, Endpoint, NewPool, Owner, Translation},
    reason::Reason,
};
use crate::{Nanos, telemetry::histogram::Histograms, wire::relay::HopKey};

/// From the control core to a worker.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant's sentence names its fields")]
pub enum Command {
    /// Starts fan `fan` anew: no links, empty window, counters at zero. `client_key`: at an entry, of the client's hop.
    InitFan { fan: u32, init: FanInit, client_key: HopKey },
    /// Sets or clears the link of path `path` in a fan.
    SetFanLink { fan: u32, path: u8, link: Option<(Link, SourcePorts)> },
    /// Puts a slot into use, or rewrites it in place (the same generation). `fan`: as in [`Slot`](super::conntrack::Slot).
    SetSlot { slot: u32, generation: u16, role: Role, fan: u32, up: Link, down: Link },
    /// Sets the key of a number, before the first link that names it.
    SetNodeKey { number: NodeKey, key: HopKey },
    /// Frees a slot of this generation, with `idle_since` only where its stamp is still that one.
    /// Answered by [`Event::SlotFreed`] or [`Event::SlotKept`].
    FreeSlot { slot: u32, generation: u16, idle_since: Option<u32> },
    /// Writes a binding and makes it findable by inside key and by outside port.
    SetBinding { index: u32, binding: BindingInit },
    /// The same, and then what [`Command::Resume`] does: one command for each new flow.
    SetBindingAndResume { index: u32, binding: BindingInit, waiting: u32 },
    /// Writes the inside host of IPv6 at `place`, before its first binding, or takes it out after its last one.
    SetHost6 { place: u32, address: Option<Ipv6Addr> },
    /// Frees a binding, with `idle_since` only where its stamp is still that one.
    /// Answered by [`Event::BindingFreed`] or [`Event::BindingKept`].
    FreeBinding { index: u32, idle_since: Option<u32> },
    /// The packet waiting under this number goes on where it stopped.
    Resume { waiting: u32 },
    /// The packet waiting under this number is dropped, for this reason.
    Refuse { waiting: u32, reason: Reason },
    /// Replaces routes, adjacencies, peers and policy. The old ones come back as [`Event::ForwardingRetired`].
    SetForwarding(Box<Forwarding>),
    /// Exchanges the pool of outside addresses: one that is new comes before its first binding, one that is gone goes after
    /// its last one. The old pool comes back as [`Event::OutsideRetired`].
    SetOutside(Box<NewPool>),
    /// Sends a probe to a peer (its index in [`Forwarding::peers`]).
    SendProbe { peer: u16, sequence: u64 },
    /// Exchanges the histograms: the worker goes on with these, the filled ones come as [`Event::Histograms`].
    SwapHistograms(Box<Histograms>),
    /// Reads the merging state of the fan of the session in `slot` into `report`; answered by [`Event::Fan`].
    ReadFan { slot: u32, fan: u32, request: u64, report: Box<FanReport> },
}

/// From a worker to the control core.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant's sentence names its fields")]
pub enum Event {
    /// A packet waits for the control core.
    Punt { waiting: u32, cause: PuntCause },
    /// The slot and its fan are out of use and may be used anew.
    SlotFreed { slot: u32 },
    /// The slot had traffic since: it stays.
    SlotKept { slot: u32 },
    /// The binding is out of use.
    BindingFreed { index: u32 },
    /// The binding had traffic since: it stays.
    BindingKept { index: u32 },
    /// All connections of the binding are over: it ages by a shorter timer now. Not always told.
    BindingClosing { index: u32 },
    /// A neighbour answered a probe.
    ProbeAnswered(ProbeAnswer),
    /// The tables that [`Command::SetForwarding`] replaced, to be freed or reused.
    ForwardingRetired(Box<Forwarding>),
    /// The pool that [`Command::SetOutside`] replaced, to be freed.
    OutsideRetired(Box<NewPool>),
    /// The histograms since the last exchange.
    Histograms(Box<Histograms>),
    /// The answer to [`Command::ReadFan`].
    Fan { request: u64, report: Box<FanReport> },
}

const _: () = assert!(size_of::<Command>() <= 72 && size_of::<Event>() <= 48, "each new flow moves one of both");

/// Why a packet waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PuntCause {
    /// The NAT has no binding for it. Session or gateway, the key's owner says which; a gateway's node asks in the same
    /// way (see [`nat_in2out`](super::graph)): the packet is at the worker that owns the inside host
    /// ([`Identity::owner_of_host`](super::forwarding::Identity::owner_of_host)), and its slot is that of
    /// [`Owner::INSIDE`](super::nat::Owner::INSIDE).
    NoBinding {
        /// What the new binding is for.
        key: BindingKey,
        /// The first packet's destination.
        remote: Endpoint,
        /// Flags of a TCP segment.
        tcp_flags: u8,
    },
    /// The same of an inside host of IPv6, which may have no token yet.
    NoBinding6 {
        /// What the new binding is for.
        flow: Flow6,
        /// Flags of a TCP segment.
        tcp_flags: u8,
    },
    /// The MAC address of the next hop is not known.
    NoAdjacency {
        /// Kernel index of the interface.
        interface: u32,
        /// The next hop.
        next_hop: IpAddr,
    },
}

/// What a binding of an inside host of IPv6 is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow6 {
    /// Who sent the packet.
    pub owner: Owner,
    /// To which family it is translated.
    pub translation: Translation,
    /// ICMP (the number of IPv4's), TCP or UDP.
    pub protocol: u8,
    /// Source address.
    pub address: Ipv6Addr,
    /// Source port or ICMP identifier.
    pub port: u16,
    /// Where to: an address of IPv4, or what [`Hosts6::remote`](super::nat::Hosts6::remote) makes of one of IPv6.
    pub remote: Endpoint,
}

/// One answered probe, on this node's clock but for `remote_received`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// Index in [`Forwarding::peers`].
    pub peer: u16,
    /// As given in [`Command::SendProbe`].
    pub sequence: u64,
    /// When the probe was sent.
    pub sent: Nanos,
    /// When the neighbour received it, on the neighbour's clock.
    pub remote_received: Nanos,
    /// When the answer was received.
    pub received: Nanos,
}
