//! Where packets leave: interfaces, routes and resolved next hops as the kernel tells them, and the snapshot of all of
//! it that the workers forward by.
//!
//! The kernel resolves (we send no ARP): a packet whose next hop is unknown waits in its worker while the kernel is
//! asked. A MAC address that was good once is held for a while when the kernel loses the neighbour: traffic that
//! flows must not stop for a missed ARP answer.
//!
//! Next hops that share their destinations with others of their route are *alternatives*. The kernel is asked for them all
//! the time, whether or not packets go there: one that does not answer gets no packets as long as another one does, and
//! nothing else would find out when it is back.

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// The kernel is asked for alternatives once in this time.
const ALTERNATIVE_ASK: Nanos = 5 * SECOND;

/// How often time-outs are looked at.
const CHECK: Nanos = 100 * MILLISECOND;

/// A next hop.
#[derive(Debug, Default)]
struct NextHop {
    mac: Option<Mac>,
    /// The kernel lost it then; the MAC address is held.
    lost: Option<Nanos>,
    /// It did not answer when the kernel last asked.
    has_failed: bool,
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
    /// Those of the snapshot that the workers have.
    alternatives: BTreeSet<(u8, IpAddr)>,
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
            alternatives: BTreeSet::new(),
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
        self.is_changed |= std::mem::take(&mut hop.has_failed) && self.alternatives.contains(&key);
        self.waiting -= hop.waiting.len();
        self.resumes.extend(hop.waiting.drain(..).map(|(worker, ticket, _)| (worker, ticket)));
    }

    /// Marks a neighbour as lost; returns the packets that waited for it in vain. Those of an alternative that has just
    /// failed look for another one.
    fn gone(&mut self, interface: u8, address: IpAddr, now: Nanos) -> Vec<(usize, u32, Nanos)> {
        let key = (interface, address);
        let Some(hop) = self.next_hops.get_mut(&key) else { return Vec::new() };
        if hop.mac.is_some() {
            hop.lost.get_or_insert(now);
        }
        self.waiting -= hop.waiting.len();
        let waited = std::mem::take(&mut hop.waiting);
        let is_news = !std::mem::replace(&mut hop.has_failed, true) && self.alternatives.contains(&key);
        if is_news {
            tracing::warn!(next_hop = %address, "does not answer: its destinations go by the others of its route");
            self.is_changed = true;
            // The kernel may only have been told to forget it (`ip neigh flush`): it is asked at the next look.
            hop.asked = None;
            self.resumes.extend(waited.into_iter().map(|(worker, ticket, _)| (worker, ticket)));
            return Vec::new();
        }
        waited
    }

    /// What the kernel is to be asked for all the time from now on, out of the routes.
    fn follow(&mut self, routes: &RouteTable, routes6: &RouteTable<Ipv6Addr>) {
        let ours = |interface: &u8| usize::from(*interface) < self.interfaces.len();
        let four = routes.alternatives().filter_map(|hop| Some((hop.interface, hop.gateway?.into())));
        let six = routes6.alternatives().filter_map(|hop| Some((hop.interface, hop.gateway?.into())));
        self.alternatives = four.chain(six).filter(|(interface, _)| ours(interface)).collect();
        for key in &self.alternatives {
            if self.next_hops.len() < ADJACENCIES_MAX {
                self.next_hops.entry(*key).or_default();
            }
        }
    }

    /// Alternatives that do not answer.
    fn failed(&self) -> impl Iterator<Item = (u8, IpAddr)> {
        let has_failed = |key: &&(u8, IpAddr)| self.next_hops.get(key).is_some_and(|hop| hop.has_failed);
        self.alternatives.iter().filter(has_failed).copied()
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
            KernelEvent::Spread { interface, now } => self.on_spread(interface, now),
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
        let (interfaces, alternatives) = (&state.interfaces, &state.alternatives);
        state.next_hops.retain(|&(interface, address), hop| {
            let is_late = |since: Nanos| now >= since + WAIT;
            refused.extend(hop.waiting.extract_if(.., |(_, _, since)| is_late(*since)));
            if alternatives.contains(&(interface, address)) {
                let ask_every = if hop.waiting.is_empty() { ALTERNATIVE_ASK } else { ASK };
                let is_due = hop.asked.is_none_or(|asked| now >= asked + ask_every);
                if is_due && interfaces.get(usize::from(interface)).is_some_and(|interface| interface.is_up) {
                    hop.asked = Some(now);
                    effects.push_back(Effect::Resolve { interface, address });
                }
                if hop.lost.is_some_and(|lost| now >= lost + HOLD) {
                    (hop.lost, hop.mac) = (None, None);
                    *is_changed = true;
                }
                return true;
            }
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
            let mut snapshot = self.forwarding();
            self.adjacencies.follow(&snapshot.routes, &snapshot.routes6);
            for (interface, next_hop) in self.adjacencies.failed() {
                match next_hop {
                    IpAddr::V4(next_hop) => snapshot.failed.push((interface, next_hop)),
                    IpAddr::V6(next_hop) => snapshot.failed6.push((interface, next_hop)),
                }
            }
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

    /// The snapshot as of now, but for alternatives that have failed.
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
            failed: Vec::new(),
            routes6: RouteTable::new(&state.routes6),
            adjacencies6,
            failed6: Vec::new(),
            peers,
            policy: ExitPolicy { deny, ..self.config.policy.clone() },
            gateway: self.gateway_snapshot(),
        }
    }
}
