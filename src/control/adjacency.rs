//! Where packets leave: interfaces, routes and resolved next hops as the kernel tells them, and the snapshot of all of
//! it that the workers forward by.
//!
//! The kernel resolves (we send no ARP): a packet whose next hop is unknown waits in its worker while the kernel is
//! asked. A MAC address that was good once is held for a while when the kernel loses the neighbour: traffic that
//! flows must not stop for a missed ARP answer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    Control,
    interface::{Effect, KernelEvent},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    dataplane::{
        command::Command,
        exit_policy::ExitPolicy,
        forwarding::{Adjacency, Forwarding, Interface, Prefix, Route},
        reason::Reason,
        route_table::RouteTable,
    },
    limits::{ADJACENCIES_MAX, UNRESOLVED_MAX},
    wire::ethernet::Mac,
};

/// How long a packet waits for its next hop: a little longer than the kernel asks for it by default, which is three times,
/// a second apart. So a lost question or answer does not cost the packet.
const WAIT: Nanos = 4 * SECOND;

/// While packets wait, the kernel is asked once in this time.
const ASK: Nanos = SECOND;

/// How long a MAC address is held after the kernel lost the neighbour.
const HOLD: Nanos = 60 * SECOND;

/// While it is held, the kernel is asked once in this time.
const HOLD_ASK: Nanos = 5 * SECOND;

/// How often time-outs are looked at.
const CHECK: Nanos = 100 * MILLISECOND;

/// A next hop.
#[derive(Debug, Default)]
struct NextHop {
    mac: Option<Mac>,
    /// The kernel lost it then; the MAC address is held.
    lost: Option<Nanos>,
    /// When the kernel was last asked.
    asked: Option<Nanos>,
    /// Packets that wait for it: worker, ticket, since when.
    waiting: Vec<(usize, u32, Nanos)>,
}

/// What the kernel told.
#[derive(Debug)]
pub(super) struct Adjacencies {
    interfaces: Vec<Interface>,
    routes: Vec<Route>,
    routes6: Vec<Route<Ipv6Addr>>,
    next_hops: BTreeMap<(u8, IpAddr), NextHop>,
    /// How many packets wait for next hops.
    waiting: usize,
    /// Packets that go on with the next snapshot: worker, ticket.
    resumes: Vec<(usize, u32)>,
    /// The workers' snapshot is out of date.
    pub(super) is_changed: bool,
    next_check: Nanos,
}

impl Adjacencies {
    /// Interfaces without routes or neighbours.
    pub(super) fn new(interfaces: Vec<Interface>) -> Self {
        Self {
            interfaces,
            routes: Vec::new(),
            routes6: Vec::new(),
            next_hops: BTreeMap::new(),
            waiting: 0,
            resumes: Vec::new(),
            is_changed: true,
            next_check: 0,
        }
    }

    /// Interface, next hop, MAC address, and whether it is only held.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, IpAddr, Option<Mac>, bool)> {
        self.next_hops.iter().map(|((interface, address), hop)| (*interface, *address, hop.mac, hop.lost.is_some()))
    }

    fn up(&mut self, interface: u8, address: IpAddr, mac: Mac) {
        let key = (interface, address);
        if usize::from(interface) >= self.interfaces.len()
            || (self.next_hops.len() >= ADJACENCIES_MAX && !self.next_hops.contains_key(&key))
        {
            return;
        }
        let hop = self.next_hops.entry(key).or_default();
        hop.lost = None;
        self.is_changed |= hop.mac.replace(mac) != Some(mac);
        self.waiting -= hop.waiting.len();
        self.resumes.extend(hop.waiting.drain(..).map(|(worker, ticket, _)| (worker, ticket)));
    }

    /// Marks a neighbour as lost; returns the packets that waited for it in vain.
    fn gone(&mut self, interface: u8, address: IpAddr, now: Nanos) -> Vec<(usize, u32, Nanos)> {
        let Some(hop) = self.next_hops.get_mut(&(interface, address)) else { return Vec::new() };
        if hop.mac.is_some() {
            hop.lost.get_or_insert(now);
        }
        self.waiting -= hop.waiting.len();
        std::mem::take(&mut hop.waiting)
    }
}

impl Control {
    /// The kernel changed its mind about a route, a neighbour or an interface.
    pub fn on_kernel(&mut self, event: KernelEvent, now: Nanos) {
        let state = &mut self.adjacencies;
        match event {
            KernelEvent::Routes(routes) => {
                state.is_changed |= state.routes != routes;
                state.routes = routes;
            }
            KernelEvent::Routes6(routes) => {
                state.is_changed |= state.routes6 != routes;
                state.routes6 = routes;
            }
            KernelEvent::Addresses(addresses) => self.on_addresses(addresses),
            KernelEvent::Addresses6(addresses) => self.on_addresses6(addresses),
            KernelEvent::NeighbourUp { interface, address, mac } => state.up(interface, address, mac),
            KernelEvent::NeighbourGone { interface, address } => {
                for (worker, ticket, _) in state.gone(interface, address, now) {
                    self.refuse_packet(worker, ticket, Reason::Unresolved);
                }
            }
            KernelEvent::Interface { interface, now } => {
                if let Some(interface) = state.interfaces.get_mut(usize::from(interface)) {
                    state.is_changed |= *interface != now;
                    *interface = now;
                }
            }
            KernelEvent::Rss { interface, now } => self.on_rss(interface, now),
            // The sockets are bound to the queues there were. That an interface is down was told before it is removed.
            KernelEvent::Queues { .. } | KernelEvent::InterfaceRemoved { .. } => {}
        }
    }

    /// A packet waits because its next hop's MAC address is unknown. `index` is the kernel's number of the interface.
    pub(super) fn on_no_adjacency(&mut self, worker: usize, ticket: u32, index: u32, address: IpAddr, now: Nanos) {
        let state = &mut self.adjacencies;
        let Some(interface) = state.interfaces.iter().position(|interface| interface.index == index) else {
            return self.refuse_packet(worker, ticket, Reason::InterfaceDown);
        };
        let key = (interface as u8, address);
        if state.next_hops.len() >= ADJACENCIES_MAX && !state.next_hops.contains_key(&key) {
            return self.refuse_packet(worker, ticket, Reason::Unresolved);
        }
        let hop = state.next_hops.entry(key).or_default();
        if hop.mac.is_some() {
            // The worker asked before the snapshot that has it arrived.
            state.resumes.push((worker, ticket));
            return;
        }
        if state.waiting >= UNRESOLVED_MAX {
            return self.refuse_packet(worker, ticket, Reason::Unresolved);
        }
        state.waiting += 1;
        hop.waiting.push((worker, ticket, now));
        if hop.asked.is_none_or(|asked| now >= asked + ASK) {
            hop.asked = Some(now);
            self.effects.push_back(Effect::Resolve { interface: key.0, address });
        }
    }

    /// Refuses what has waited too long, asks again, and forgets what has been gone for long.
    pub(super) fn expire_adjacencies(&mut self, now: Nanos) {
        let state = &mut self.adjacencies;
        if now < state.next_check {
            return;
        }
        state.next_check = now + CHECK;
        let mut refused = Vec::new();
        let effects = &mut self.effects;
        let is_changed = &mut state.is_changed;
        state.next_hops.retain(|&(interface, address), hop| {
            let is_late = |since: Nanos| now >= since + WAIT;
            refused.extend(hop.waiting.extract_if(.., |(_, _, since)| is_late(*since)));
            let (ask_every, is_wanted) = match (hop.mac, hop.lost) {
                (Some(_), None) => return true,
                (Some(_), Some(lost)) => (HOLD_ASK, now < lost + HOLD),
                (None, _) => (ASK, !hop.waiting.is_empty()),
            };
            let is_due = hop.asked.is_none_or(|asked| now >= asked + ask_every);
            if is_wanted && is_due {
                hop.asked = Some(now);
                effects.push_back(Effect::Resolve { interface, address });
            }
            *is_changed |= !is_wanted && hop.mac.is_some();
            // An unanswered question is remembered until it may be asked again.
            is_wanted || (hop.mac.is_none() && !is_due)
        });
        state.waiting -= refused.len();
        for (worker, ticket, _) in refused {
            self.refuse_packet(worker, ticket, Reason::Unresolved);
        }
    }

    /// Hands the workers a new snapshot where the last one is out of date, then lets go on what waited for it.
    pub(super) fn flush_forwarding(&mut self) {
        if std::mem::take(&mut self.adjacencies.is_changed) {
            let snapshot = self.forwarding();
            self.steering.follow(&snapshot);
            for tables in &mut self.workers {
                let waiting = tables.backlog.iter_mut().find_map(|command| match command {
                    Command::SetForwarding(forwarding) => Some(forwarding),
                    _ => None,
                });
                // One that the worker has not got yet is replaced: a snapshot is whole, the newest is enough.
                match waiting {
                    Some(forwarding) => **forwarding = snapshot.clone(),
                    None => tables.backlog.push_back(Command::SetForwarding(Box::new(snapshot.clone()))),
                }
            }
        }
        for (worker, waiting) in std::mem::take(&mut self.adjacencies.resumes) {
            self.command(worker, Command::Resume { waiting });
        }
    }

    /// True where this node as an exit may send to `destination`. Never to itself or (but for an exception in the
    /// configuration) to other nodes: a client could otherwise reach into the overlay.
    pub(super) fn is_exit_allowed(&self, destination: Ipv4Addr) -> bool {
        let policy = &self.config.policy;
        destination != self.config.identity.address
            && (policy.allow.iter().any(|prefix| prefix.contains(destination))
                || (policy.allows(destination) && !self.peers.has_address(destination)))
    }

    /// The snapshot as of now.
    pub(super) fn forwarding(&self) -> Forwarding {
        let state = &self.adjacencies;
        let peers = self.peers.snapshot();
        let own = std::iter::once(self.config.identity.address);
        let nodes = own.chain(peers.iter().filter(|peer| peer.is_active).map(|peer| peer.address));
        let deny =
            self.config.policy.deny.iter().copied().chain(nodes.map(|address| Prefix::new(address, 32))).collect();
        // The order is that of addresses, those of IPv4 first, so both parts are sorted as the workers' are.
        let (mut adjacencies, mut adjacencies6) = (Vec::new(), Vec::new());
        for (&(interface, next_hop), hop) in &state.next_hops {
            let Some(mac) = hop.mac else { continue };
            match next_hop {
                IpAddr::V4(next_hop) => adjacencies.push(Adjacency { next_hop, mac, interface }),
                IpAddr::V6(next_hop) => adjacencies6.push(Adjacency { next_hop, mac, interface }),
            }
        }
        Forwarding {
            interfaces: state.interfaces.clone(),
            routes: RouteTable::new(&state.routes),
            adjacencies,
            routes6: RouteTable::new(&state.routes6),
            adjacencies6,
            peers,
            policy: ExitPolicy { deny, ..self.config.policy.clone() },
            gateway: self.gateway_snapshot(),
        }
    }
}
