//! The records of sessions (slots, fans), as a worker holds them. Those of NAT bindings are in [`super::nat`].
//!
//! A relay needs one [`Slot`], one cache line. An entry or exit needs a [`Fan`] besides: the session's up to
//! eight paths, its duplicate window and its sequence.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::limits;

/// Which slot of which worker: worker (8 bits) | slot (24 bits). Travels in the relay header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct CtIndex(pub u32);

impl CtIndex {
    /// Slot `slot` of worker `worker`.
    pub fn new(worker: usize, slot: u32) -> Self {
        debug_assert!(worker < limits::WORKERS_MAX && (slot as usize) < limits::CT_SLOTS_MAX);
        Self((worker as u32) << 24 | slot)
    }

    /// The worker that owns the slot.
    #[inline]
    pub fn worker(self) -> usize {
        (self.0 >> 24) as usize
    }

    /// The slot's number in its worker's array.
    #[inline]
    pub fn slot(self) -> u32 {
        self.0 & 0x00ff_ffff
    }
}

/// What the session does here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Role {
    /// Not in use: packets for it are dropped.
    #[default]
    Free,
    /// The client's first node: copies up, merges down.
    Entry,
    /// Rewrites in place, one upstream, one downstream.
    Relay,
    /// The last node: merges up, translates, copies down.
    Exit,
}

/// The number of a key of hops to another node, in [`NodeKeys`](super::node_keys::NodeKeys).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeKey(pub u16);

/// The other end of one hop: where to send, under which slot and key. `address` and `port`, with
/// [`SourcePorts::theirs`] added where that is a node's, are also what packets from there must come from. The key is shared
/// by both ends; the header's kind tells the direction.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Link {
    /// Address of the other end.
    pub address: Ipv4Addr,
    /// Its UDP port. Zero: a client that has not sent an authentic keep-alive yet.
    pub port: u16,
    /// Generation of its slot.
    pub generation: u16,
    /// Its slot.
    pub ct_index: CtIndex,
    /// Key of the tags in both directions. A client's hop has one of its own, in the [`Fan`](super::fan::Fan).
    pub key: NodeKey,
}

impl Link {
    /// The link of an unused place.
    pub const NONE: Self =
        Self { address: Ipv4Addr::UNSPECIFIED, port: 0, generation: 0, ct_index: CtIndex(0), key: NodeKey(0) };
}

/// The source ports of a hop between two nodes, each as how far it is above its node's data port. Whoever receives
/// chooses: by the source port a NIC tells the queue, and so the worker ([`super::rss`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourcePorts {
    /// We send from.
    pub ours: u8,
    /// The other end sends from.
    pub theirs: u8,
}

/// How many there are to choose from: the data port and those above it. NAT has them, too.
pub const SOURCE_PORTS: u16 = 1 << u8::BITS;

/// Those of a relay's two hops. A relay has no fan, so they are in that place of its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RelayPorts {
    /// Towards the client.
    pub up: SourcePorts,
    /// Towards the server.
    pub down: SourcePorts,
}

impl RelayPorts {
    /// As they are in the place of the fan.
    #[inline]
    pub fn to_bits(self) -> u32 {
        u32::from_le_bytes([self.up.ours, self.up.theirs, self.down.ours, self.down.theirs])
    }

    /// From there.
    #[inline]
    pub fn from_bits(bits: u32) -> Self {
        let [up_ours, up_theirs, down_ours, down_theirs] = bits.to_le_bytes();
        Self {
            up: SourcePorts { ours: up_ours, theirs: up_theirs },
            down: SourcePorts { ours: down_ours, theirs: down_theirs },
        }
    }
}

/// A session at this node. With its stamp it is one cache line ([`Slots`](super::slots::Slots)).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Slot {
    /// Changes with each reuse of the slot; packets of the last use are refused.
    pub generation: u16,
    /// What the session does here.
    pub role: Role,
    /// Index of the session's [`Fan`] (entry and exit), or a relay's [`RelayPorts`].
    pub fan: u32,
    /// Towards the client (entry: the client itself). Unused at an exit.
    pub up: Link,
    /// Towards the server. Only a relay's.
    pub down: Link,
}

impl Slot {
    /// A slot that is not in use.
    pub const FREE: Self = Self { generation: 0, role: Role::Free, fan: 0, up: Link::NONE, down: Link::NONE };
}

/// What is written of a new fan; window and counters start at zero.
#[derive(Clone, Copy, Debug)]
pub struct FanInit {
    /// The client's address inside the overlay; inner packets must carry it. Zero: any (tunnel).
    pub inside: Ipv4Addr,
    /// The same of IPv6. Zero: none, the session carries no IPv6.
    pub inside6: Ipv6Addr,
    /// The binding of a flow session: found by index, without a hash. `u32::MAX`: a tunnel session.
    pub binding: u32,
    /// Largest inner packet in bytes, both ways.
    pub mtu: u16,
}

impl FanInit {
    /// What nothing is set up for: nobody's terms.
    pub const NONE: Self =
        Self { inside: Ipv4Addr::UNSPECIFIED, inside6: Ipv6Addr::UNSPECIFIED, binding: NO_BINDING, mtu: 0 };
}

/// No binding: the session is a tunnel.
pub const NO_BINDING: u32 = u32::MAX;

/// What one path of a session delivered to this node, where paths merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PathCounters {
    /// Copies that arrived authentic, duplicates included.
    pub received: u64,
    /// Copies that were the first of their packet.
    pub first: u64,
}

/// How a session's merging goes, read on demand.
#[derive(Clone, Copy, Debug, Default)]
pub struct FanReport {
    /// By path number.
    pub paths: [PathCounters; limits::PATHS_MAX],
    /// Highest sequence number received.
    pub highest: u64,
    /// Lowest sequence number received in this session: `highest - lowest + 1` were sent.
    pub lowest: u64,
    /// The client's address and port as bound at an entry.
    pub client: Option<(Ipv4Addr, u16)>,
}
