//! What `starnet show` prints of the control core: plain values, to be serialised.

use std::{
    net::{IpAddr, SocketAddrV4},
    sync::atomic::Ordering::Relaxed,
};

use serde::{Deserialize, Serialize};

use super::{
    Control,
    sessions::{EntryPath, Part, RelayDown, Session, State},
    tables::{Parts, Tables},
};
use crate::{
    Nanos,
    dataplane::{
        conntrack::{CtIndex, Link},
        forwarding::Lookup,
    },
    rpc::messages::{LinkEnd, LinkQuality, NodeName, SessionKind},
};

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Opens that came from clients, retries included.
    pub opens: u64,
    /// Sessions that started here as their entry.
    pub opened: u64,
    /// Opens refused, and sessions of which no path could be set up.
    pub opens_failed: u64,
    /// Setups that came from nodes, retries included.
    pub setups: u64,
    /// Setups refused here or further downstream.
    pub setups_failed: u64,
    /// Answers that came after the path was given up, and were undone.
    pub late_answers: u64,
    /// Sessions freed because they were idle.
    pub aged: u64,
    /// NAT bindings made.
    pub bindings_made: u64,
    /// Packets refused for want of a binding.
    pub bindings_refused: u64,
}

/// A session at this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionView {
    /// First eight hexadecimal digits of its number.
    pub session: String,
    /// `entry`, `relay` or `exit`.
    pub role: String,
    /// `opening`, `open`, `ageing` or `closing`.
    pub state: String,
    /// `tunnel 100.64.0.2` or `udp 100.64.0.2:5000 > 198.51.100.1:5000`.
    pub kind: String,
    /// Name in the client's token.
    pub client: String,
    /// The entry node.
    pub entry: NodeName,
    /// Its slot.
    pub ct_index: CtIndex,
    /// Its slot's generation.
    pub generation: u16,
    /// Milliseconds since the last packet, to one tick.
    pub idle_ms: u64,
    /// Packets through the slot, wrapping at 2^32.
    pub packets: u32,
    /// Bytes of IP packets through the slot.
    pub bytes: u64,
    /// NAT bindings (exit).
    pub bindings: usize,
    /// Its paths at this node.
    pub paths: Vec<PathView>,
}

/// A path at this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathView {
    /// Its number in the session.
    pub path: u8,
    /// The node towards the client, but at an entry.
    pub upstream: Option<HopView>,
    /// The node towards the server, but at an exit, and only when it has answered.
    pub downstream: Option<HopView>,
    /// Why it is not in use.
    pub failure: Option<String>,
}

/// The other end of a hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopView {
    /// The node.
    pub node: NodeName,
    /// Its data address.
    pub address: SocketAddrV4,
    /// Its slot.
    pub ct_index: CtIndex,
}

/// A neighbour node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its name.
    pub name: NodeName,
    /// Its data address.
    pub address: SocketAddrV4,
    /// The MAC address of the way to it is known.
    pub is_resolved: bool,
    /// Still named by the control centre.
    pub is_active: bool,
    /// From the probes of the last ten seconds.
    pub quality: LinkQuality,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdjacencyView {
    /// The driver's number of the interface.
    pub interface: u8,
    /// Its address.
    pub next_hop: IpAddr,
    /// Its MAC address, where known.
    pub mac: Option<String>,
    /// `resolved`, `held` (the kernel lost it) or `asked`.
    pub state: String,
}

/// The node at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The node.
    pub name: NodeName,
    /// Random at each start.
    pub boot_epoch: u64,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// The control centre has spoken since the start.
    pub is_registered: bool,
    /// Sessions it is the entry of, the relay of (by path), the exit of.
    pub entries: usize,
    /// See `entries`.
    pub relays: usize,
    /// See `entries`.
    pub exits: usize,
    /// Requests to other nodes that wait for an answer.
    pub calls: usize,
    /// Neighbours the control centre names.
    pub peers: usize,
    /// By worker.
    pub workers: Vec<WorkerSummary>,
    /// Since the start.
    pub counters: Counters,
}

/// A worker's places, used and there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSummary {
    /// Conntrack slots.
    pub slots: Use,
    /// Fans.
    pub fans: Use,
    /// NAT bindings.
    pub bindings: Use,
    /// ICMP identifiers; resting ones are not counted as used.
    pub icmp_ids: Use,
    /// TCP ports.
    pub tcp_ports: Use,
    /// UDP ports.
    pub udp_ports: Use,
    /// Commands that wait for room in its ring.
    pub backlog: usize,
}

/// How many of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// In use now.
    pub used: u32,
    /// There are.
    pub capacity: u32,
}

impl Control {
    /// The first page of all sessions, by worker and slot: more than a test has.
    #[cfg(test)]
    pub(crate) fn sessions(&self, now: Nanos) -> Vec<SessionView> {
        let question = super::show_sessions::SessionQuestion { limit: super::page::ROWS_MAX, ..Default::default() };
        self.session_page(&question, now).rows
    }

    /// All neighbours, those that are gone at the end of their time included.
    pub fn peers(&self) -> Vec<PeerView> {
        let forwarding = self.forwarding();
        let view = |place: &super::peers::Place| {
            let node = &place.neighbour.node;
            PeerView {
                name: node.name.clone(),
                address: node.data,
                is_resolved: matches!(forwarding.lookup(*node.data.ip()), Lookup::Found { .. }),
                is_active: place.is_active,
                quality: place.probes.quality(),
            }
        };
        self.peers.places.iter().map(view).collect()
    }

    /// All next hops.
    pub fn adjacencies(&self) -> Vec<AdjacencyView> {
        let view = |(interface, next_hop, mac, is_held): (u8, IpAddr, Option<[u8; 6]>, bool)| AdjacencyView {
            interface,
            next_hop,
            mac: mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")),
            state: match (mac, is_held) {
                (None, _) => "asked".into(),
                (Some(_), false) => "resolved".into(),
                (Some(_), true) => "held".into(),
            },
        };
        self.adjacencies.iter().map(view).collect()
    }

    /// The node at a glance.
    pub fn summary(&self, now: Nanos) -> Summary {
        let sum = |count: fn(&Parts) -> usize| self.workers.iter().map(|tables| count(&tables.parts)).sum();
        Summary {
            name: self.config.name.clone(),
            boot_epoch: self.config.boot_epoch,
            uptime_ms: now.saturating_sub(self.started) / crate::MILLISECOND,
            is_registered: self.tokens.has_key(),
            entries: sum(|parts| parts.entries),
            relays: sum(|parts| parts.relays),
            exits: sum(|parts| parts.exits),
            calls: self.exchanges.len(),
            peers: self.peers.places.iter().filter(|place| place.is_active).count(),
            workers: self.workers.iter().map(worker_summary).collect(),
            counters: self.counters,
        }
    }
}

fn worker_summary(tables: &Tables) -> WorkerSummary {
    let pool = |pool: &super::pools::Pool| Use { used: pool.used(), capacity: pool.capacity() };
    let ports = |row| {
        let (used, capacity) = tables.hosts.used(row);
        Use { used, capacity }
    };
    let [icmp_ids, tcp_ports, udp_ports] = [ports(0), ports(1), ports(2)];
    WorkerSummary {
        slots: pool(&tables.slots),
        fans: pool(&tables.fans),
        bindings: pool(&tables.bindings),
        icmp_ids,
        tcp_ports,
        udp_ports,
        backlog: tables.backlog.len(),
    }
}

/// What is shown of a session.
pub(super) fn view(tables: &Tables, ct_index: CtIndex, session: &Session, now: Nanos) -> SessionView {
    let stamp = &tables.published.slots[ct_index.slot() as usize];
    let is_written = session.state != State::Opening;
    let idle = (tables.tick.at(now).wrapping_sub(stamp.last_seen.load(Relaxed)) as i32).max(0) as u32;
    let (role, bindings, paths) = match &session.part {
        Part::Entry(entry) => ("entry", 0, (0u8..).zip(&entry.paths).map(|(n, path)| entry_path(n, path)).collect()),
        Part::Relay(relay) => {
            let downstream = match &relay.down {
                RelayDown::Up { next, link, .. } => Some(hop_of_link(&next.name, link)),
                RelayDown::Calling { .. } => None,
            };
            let upstream = Some(hop_of_end(&relay.upstream.name, relay.up));
            ("relay", 0, vec![PathView { path: session.name.path.unwrap_or(0), upstream, downstream, failure: None }])
        }
        Part::Exit(exit) => {
            let paths = (0u8..).zip(&exit.paths).filter_map(|(path, state)| {
                let upstream = state.as_ref().map(|state| hop_of_end(&state.upstream.name, state.up))?;
                Some(PathView { path, upstream: Some(upstream), downstream: None, failure: None })
            });
            ("exit", exit.bindings.len(), paths.collect())
        }
    };
    SessionView {
        session: session.name.session[..4].iter().map(|byte| format!("{byte:02x}")).collect(),
        role: role.into(),
        state: session.state.name().into(),
        kind: kind(session.kind),
        client: session.client.clone(),
        entry: session.name.entry.clone(),
        ct_index,
        generation: session.generation,
        idle_ms: if is_written { tables.tick.times(idle) / crate::MILLISECOND } else { 0 },
        packets: if is_written { stamp.packets.load(Relaxed) } else { 0 },
        bytes: if is_written { stamp.bytes.load(Relaxed) } else { 0 },
        bindings,
        paths,
    }
}

fn entry_path(path: u8, state: &EntryPath) -> PathView {
    let (downstream, failure) = match state {
        EntryPath::Calling { failure, .. } => (None, failure.as_ref().map(ToString::to_string)),
        EntryPath::Up { next, link, .. } => (Some(hop_of_link(&next.name, link)), None),
        EntryPath::Down(failure) => (None, Some(failure.to_string())),
    };
    PathView { path, upstream: None, downstream, failure }
}

fn hop_of_end(node: &NodeName, end: LinkEnd) -> HopView {
    HopView { node: node.clone(), address: end.data, ct_index: end.ct_index }
}

fn hop_of_link(node: &NodeName, link: &Link) -> HopView {
    HopView { node: node.clone(), address: SocketAddrV4::new(link.address, link.port), ct_index: link.ct_index }
}

fn kind(kind: SessionKind) -> String {
    match kind {
        SessionKind::Tunnel { inside, inside6: None } => format!("tunnel {inside}"),
        SessionKind::Tunnel { inside, inside6: Some(inside6) } => format!("tunnel {inside} {inside6}"),
        SessionKind::Flow { protocol, source, server } => {
            let protocol = if protocol == crate::wire::ip4::TCP { "tcp" } else { "udp" };
            format!("{protocol} {source} > {server}")
        }
    }
}
