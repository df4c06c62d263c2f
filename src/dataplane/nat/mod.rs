//! Network address translation: one, for both ways in. Packets of overlay sessions come to it from the exit, packets
//! of hosts that route through this node from the gateway; what differs is the [`Owner`] of a binding.
//!
//! - [`binding`]: one mapping between an inside and an outside address and port, one cache line.
//! - [`bindings`]: all of a worker's, found from inside and from outside. [`hash_index`] is the table they use.
//! - `connections`: the TCP connections of a binding. [`class`]: how long an idle binding is kept.
//! - `established`: the short way of packets whose flows are known. `flow_cache`: what is known of them.
//! - `ahead`: asks for the memory of a batch before it is read.
//! - `account`: what a packet means for its binding's life.
//! - `peers`: whom a binding has sent to, for filtering. [`held_syns`]: those from outside that nothing lets in.
//! - [`outside`]: the addresses that servers see. [`pool`]: how they come and go. `port_tables`: who has which of their ports.
//! - [`token`]: what IPv6 addresses are in all of these. [`hosts6`]: the inside hosts that they stand for.
//! - [`prefix64`]: names of IPv4 addresses in IPv6, for NAT64.
//! - [`rewrite`]: what a translation does to the bytes of a packet, ICMP errors and their quotes included.
//!
//! What this NAT promises, requirement by requirement, is in `docs/NAT.md`.

mod account;
pub(super) mod ahead;
pub mod binding;
pub mod bindings;
pub mod class;
pub(super) mod connections;
pub(super) mod established;
pub(super) mod flow_cache;
pub(crate) mod hash_index;
pub mod held_syns;
pub mod hosts6;
pub(super) mod icmp64;
pub(super) mod nat64;
pub mod outside;
mod peers;
pub mod pool;
mod port_tables;
pub mod prefix64;
pub(super) mod rewrite;
pub(super) mod rewrite6;
pub mod token;

pub use binding::{Binding, BindingInit, BindingKey, Endpoint, Filtering, Mapping, Owner, remote_end};
pub use bindings::{Bindings, NewPool};
pub use class::{Class, Timers};
pub use hosts6::Hosts6;
pub use outside::OutsideAddresses;
pub use port_tables::{PROTOCOLS, PortTable, row};
pub use prefix64::Prefix64;
pub use token::Translation;

use self::{flow_cache::FlowCache, hash_index::HashIndex};
use super::{
    forwarding::Identity,
    gateway::{OutsideAddress, OutsideAddress6},
    published::Stamp,
    tick::Tick,
};

/// Memory of a worker that each binding it has room for costs, at most: itself, its stamp and class, its places in the two
/// tables of [`Bindings`], and its flows. Besides that each outside address costs 768 KiB, whoever has its ports.
pub const BYTES_A_BINDING: usize =
    size_of::<Binding>() + size_of::<Stamp>() + 1 + 2 * HashIndex::BYTES_AN_INDEX + FlowCache::BYTES_A_BINDING;

const _: () = assert!(BYTES_A_BINDING == 341, "as docs/ARCHITECTURE.md says");

/// How the NAT behaves; the same for workers and control core. [`NatConfig::new`] has what the RFCs ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// The addresses servers see, not necessarily contiguous; a place in this list is an address's number, and a vacant one
    /// waits for another. The first is the node's own, which all sessions of the overlay have.
    pub addresses: Vec<OutsideAddress>,
    /// Numbers of the addresses that hosts of the gateway get; none where the node is no gateway.
    pub gateway: Vec<u8>,
    /// The IPv6 addresses that servers see; their numbers are from [`FIRST6`](outside::FIRST6) on. Sessions of the overlay
    /// have the first.
    pub addresses6: Vec<OutsideAddress6>,
    /// Numbers of addresses that hosts of the gateway get no longer, and some may have flows of.
    pub withdrawn: Vec<u8>,
    /// Where the IPv4 internet is for hosts that speak IPv6.
    pub nat64: Option<Prefix64>,
    /// Which packets from outside a binding lets in.
    pub filtering: Filtering,
    /// How long idle bindings are kept.
    pub timers: Timers,
    /// How exact they are, and the stamps of sessions, too.
    pub tick: Tick,
    /// Bindings are for one remote endpoint each, and such bindings share ports: for more than 64 Ki flows an address.
    /// RFC 4787 REQ-1 and RFC 5382 REQ-1 are not kept then.
    pub is_endpoint_dependent: bool,
    /// An even port for an even one, an odd for an odd (RFC 4787 REQ-4).
    pub keeps_parity: bool,
    /// Ports of a block that is given to one host; zero: ports are given one by one out of the whole pool.
    pub port_block: u16,
    /// Bindings a host may have, all protocols together.
    pub bindings_a_host: u32,
    /// Ports a host may have, each protocol for itself.
    pub ports_a_host: u32,
}

impl NatConfig {
    /// Everything as RFC 4787 and its kin recommend, with `own` as the only address that servers see.
    pub fn new(own: OutsideAddress) -> Self {
        Self {
            addresses: vec![own],
            gateway: Vec::new(),
            addresses6: Vec::new(),
            withdrawn: Vec::new(),
            nat64: None,
            filtering: Filtering::EndpointIndependent,
            timers: Timers::default(),
            tick: Tick::DEFAULT,
            is_endpoint_dependent: false,
            keeps_parity: true,
            port_block: 0,
            bindings_a_host: u32::MAX,
            ports_a_host: u32::MAX,
        }
    }

    /// The NAT of a node whose ports are those of `identity`, and no gateway.
    pub fn of(identity: &Identity) -> Self {
        Self::new(OutsideAddress {
            address: identity.address,
            first: identity.nat_port_first,
            last: identity.nat_port_last,
        })
    }

    /// True where hosts of IPv6 are translated.
    pub fn has_ip6(&self) -> bool {
        !self.addresses6.is_empty() || self.nat64.is_some()
    }
}
