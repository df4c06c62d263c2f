//! A worker with its tables filled, and the packets that come to it.

use std::{net::Ipv4Addr, sync::Arc};

use starnet::{
    dataplane::{
        command::{Command, Event},
        conntrack::{CtIndex, FanInit, Link, NodeKey, Role, SourcePorts},
        forwarding::{Adjacency, Forwarding, Identity, Interface, Prefix, Route},
        gateway::{Gateway, OutsideAddress, Realm},
        handoff::Handoff,
        nat::{BindingInit, Endpoint, Filtering, Mapping, NatConfig, Owner},
        published::Published,
        route_table::RouteTable,
        worker::{Rings, Worker, WorkerConfig},
    },
    limits::{COMMAND_RING, EVENT_RING},
    wire::{
        OVERLAY_BYTES, checksum, ethernet, ip4,
        relay::{self, HopKey},
        udp, write,
    },
};

use crate::{
    case::{Case, Path},
    replay::{Prepared, Replay},
};

/// Packets prepared at a time: they stay in the second-level cache, as the few of a pcap file do.
const CHUNK: usize = 4096;

/// Neighbour nodes, and servers behind the exit.
const NEIGHBOURS: u32 = 16;
const SERVERS: u32 = 512;

/// How many packets a path lags behind the one before it.
const LAG: usize = 50;

const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const DATA_PORT: u16 = 1023;
const NAT_PORT_FIRST: u16 = 1024;
const INSIDE_PORT: u16 = 2000;
const INNER_AT: usize = ethernet::HEADER_BYTES + OVERLAY_BYTES;
const RELAY_AT: usize = INNER_AT - relay::HEADER_BYTES;
const MAC: ethernet::Mac = [2; 6];

/// Interfaces: everything but the gateway's hosts is behind the first.
const OUTSIDE: u8 = 0;
const INSIDE_INTERFACE: u8 = 1;

/// NAT ports of one address.
const PORTS: u32 = (u16::MAX - NAT_PORT_FIRST) as u32 + 1;

/// Everything of one worker's benchmark.
pub(crate) struct World {
    case: Case,
    /// The worker whose sessions the packets are of: this one, unless it is to hand them over.
    pub(crate) owner: usize,
    pub(crate) worker: Worker<Replay>,
    pub(crate) published: Arc<Published>,
    pub(crate) commands: rtrb::Producer<Command>,
    pub(crate) events: rtrb::Consumer<Event>,
    random: u64,
    /// Of so many flows or sessions come packets.
    pub(crate) active: u32,
    /// The next one, where they come in order.
    next: u32,
    /// Last sequence number by session.
    sequences: Vec<u64>,
    /// In which order the copies of a chunk come: place in the chunk -> (packet, path).
    order: Vec<(u32, u8)>,
}

impl World {
    /// Allocates worker number `index`, and writes every session and binding over the command ring.
    pub(crate) fn new(case: Case, index: usize, handoff: Handoff) -> Self {
        let (commands, commands_in) = rtrb::RingBuffer::new(COMMAND_RING);
        let (events_out, events) = rtrb::RingBuffer::new(EVENT_RING);
        let has_fan = case.path.has_sessions() && case.path != Path::Relay;
        let slots = if case.path.has_sessions() { case.sessions } else { 0 };
        let bindings = if case.path.has_bindings() { case.flows } else { 0 };
        let published = Arc::new(Published::new(slots as usize, bindings as usize));
        let identity = identity(case.workers);
        let config = WorkerConfig {
            index,
            identity,
            fans: if has_fan { slots } else { 0 },
            bindings,
            nat: nat_config(bindings),
            hash_key: [9; 16],
            clock: quanta::Clock::new(),
        };
        let copies = usize::from(if case.path == Path::ExitUp { case.paths } else { 1 });
        let order = order(CHUNK / copies, copies);
        let is_relayed = matches!(case.path, Path::Relay | Path::Entry | Path::ExitUp);
        let smallest = if is_relayed { INNER_AT + ip4::HEADER_BYTES + udp::HEADER_BYTES } else { 0 };
        let interface = if case.path == Path::NatIn2out { INSIDE_INTERFACE } else { OUTSIDE };
        let prepared = Prepared::new(order.len(), smallest.max(case.size), interface);
        let rings = Rings { commands: commands_in, events: events_out, handoff };
        let mut worker = Worker::new(config, Replay::new(prepared, case.burst), rings, published.clone());
        worker.set_watched(case.watched != 0);
        let mut world = Self {
            case,
            owner: index,
            worker,
            published,
            commands,
            events,
            random: 0x9e37_79b9_7f4a_7c15,
            active: case.flows.max(case.sessions),
            next: 0,
            sequences: vec![0; case.sessions as usize],
            order,
        };
        world.tell(Command::SetForwarding(Box::new(forwarding(!case.path.has_sessions()))));
        for number in (0..2 * NEIGHBOURS as u16).map(NodeKey) {
            world.tell(Command::SetNodeKey { number, key: node_key(number) });
        }
        for session in 0..slots {
            world.set_up(session);
        }
        for flow in 0..if case.is_bound { bindings } else { 0 } {
            let binding = world.binding(flow);
            world.tell(Command::SetBinding { index: flow, binding });
        }
        world.settle();
        world
    }

    fn tell(&mut self, command: Command) {
        self.commands.push(command).expect("drained below");
        if self.commands.is_full() {
            self.settle();
        }
    }

    fn settle(&mut self) {
        while self.commands.slots() < COMMAND_RING {
            self.worker.sweep(1);
            while self.events.pop().is_ok() {}
        }
    }

    fn set_up(&mut self, session: u32) {
        let role = match self.case.path {
            Path::Relay => Role::Relay,
            Path::Entry => Role::Entry,
            _ => Role::Exit,
        };
        if role != Role::Relay {
            let init = FanInit { mtu: 1400, ..FanInit::NONE };
            self.tell(Command::InitFan { fan: session, init, client_key: client_key(session) });
            for path in 0..self.case.paths {
                let link = if role == Role::Entry { down(session, path) } else { up(session, path) };
                self.tell(Command::SetFanLink { fan: session, path, link: Some((link, SourcePorts::default())) });
            }
        }
        let up = match role {
            Role::Entry => Link { address: CLIENT, port: 5555, ..up(session, 0) },
            _ => up(session, 0),
        };
        let (fan, down) = (if role == Role::Relay { 0 } else { session }, down(session, 0));
        self.tell(Command::SetSlot { slot: session, generation: generation(session), role, fan, up, down });
    }

    fn binding(&self, flow: u32) -> BindingInit {
        let (inside_address, inside_port) = self.inside(flow);
        let (outside_address, outside_port) = outside(flow);
        let owner =
            if self.case.path.has_sessions() { Owner::session(flow % self.case.sessions) } else { Owner::INSIDE };
        BindingInit {
            owner,
            protocol: ip4::UDP,
            inside_address,
            inside_port,
            outside_address,
            outside_port,
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
        }
    }

    /// The inside end of a flow: that of the session's client, or of one of as many hosts.
    fn inside(&self, flow: u32) -> Endpoint {
        let host = if self.case.path.has_sessions() { 0 } else { flow % self.case.sessions };
        (Ipv4Addr::from_bits(INSIDE.to_bits() + host), INSIDE_PORT + (flow / self.case.sessions) as u16)
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (((self.random >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// Prepares a chunk of packets: random sessions and flows, each with the next sequence number of its session and
    /// an authentic tag. The worker's tables are not touched, so that they are as cold as their size makes them.
    pub(crate) fn prepare(&mut self) {
        self.prepare_of(|world| world.below(world.active));
    }

    /// The same with flows that had no packet yet, one after the other.
    pub(crate) fn prepare_in_order(&mut self) {
        self.prepare_of(|world| {
            world.next += 1;
            world.next - 1
        });
    }

    /// The ends of the rings that the control core has; the world has none afterwards.
    pub(crate) fn take_rings(&mut self) -> (rtrb::Producer<Command>, rtrb::Consumer<Event>) {
        let (commands, _) = rtrb::RingBuffer::new(1);
        let (_, events) = rtrb::RingBuffer::new(1);
        (std::mem::replace(&mut self.commands, commands), std::mem::replace(&mut self.events, events))
    }

    fn prepare_of(&mut self, mut choose: impl FnMut(&mut Self) -> u32) {
        let packets = self.order.iter().map(|(packet, _)| *packet + 1).max().unwrap_or(0);
        let flows: Vec<_> = (0..packets)
            .map(|_| {
                let flow = choose(self);
                let session = flow % self.case.sessions;
                self.sequences[session as usize] += 1;
                (flow, session, self.sequences[session as usize])
            })
            .collect();
        for place in 0..self.order.len() {
            let (packet, path) = self.order[place];
            let (flow, session, sequence) = flows[packet as usize];
            let inside = self.inside(flow);
            let ct_index = CtIndex::new(self.owner, session);
            let bytes = self.worker.driver().prepared.packet(place);
            match self.case.path {
                Path::Relay => relayed(bytes, ct_index, path, sequence, None),
                Path::Entry => relayed(bytes, ct_index, path, sequence, Some(CLIENT)),
                Path::ExitUp => {
                    plain(&mut bytes[INNER_AT..], inside, server(flow));
                    relayed(bytes, ct_index, path, sequence, None);
                }
                Path::NatIn2out => {
                    ethernet::emit(bytes, MAC, [4; 6]);
                    plain(&mut bytes[ethernet::HEADER_BYTES..], inside, server(flow));
                }
                Path::ExitDown | Path::NatOut2in => {
                    ethernet::emit(bytes, MAC, [4; 6]);
                    plain(&mut bytes[ethernet::HEADER_BYTES..], server(flow), outside(flow));
                }
            }
        }
    }

    /// What a chunk must bring: packets received, packets sent.
    pub(crate) fn chunk(&self) -> (u64, u64) {
        let count = self.order.len() as u64;
        let paths = u64::from(self.case.paths);
        match self.case.path {
            Path::Relay | Path::NatIn2out | Path::NatOut2in => (count, count),
            Path::Entry | Path::ExitDown => (count, count * paths),
            Path::ExitUp => (count, count / paths),
        }
    }
}

/// The copies of path p come `LAG` packets later than those of path p - 1.
fn order(packets: usize, copies: usize) -> Vec<(u32, u8)> {
    let mut all: Vec<_> = (0..packets).flat_map(|packet| (0..copies).map(move |path| (packet, path))).collect();
    all.sort_by_key(|(packet, path)| (packet + path * LAG, *path));
    all.into_iter().map(|(packet, path)| (packet as u32, path as u8)).collect()
}

fn relayed(bytes: &mut [u8], ct_index: CtIndex, path: u8, sequence: u64, client: Option<Ipv4Addr>) {
    let session = ct_index.slot();
    let link = up(session, path);
    let (from, port) = client.map_or((link.address, link.port), |address| (address, 5555));
    ethernet::emit(bytes, MAC, [4; 6]);
    let header = relay::Header {
        kind: relay::Kind::DataUp,
        path,
        generation: generation(session),
        ct_index: ct_index.0,
        sequence,
    };
    match client {
        Some(_) => relay::emit(&mut bytes[RELAY_AT..], &header, &client_key(session)),
        None => relay::emit_between_nodes(&mut bytes[RELAY_AT..], &header, &node_key(link.key)),
    }
    datagram(&mut bytes[ethernet::HEADER_BYTES..], (from, port), (US, DATA_PORT));
    if client.is_some() {
        // A client's kernel makes a real checksum, and the entry checks it.
        let transport = &mut bytes[ethernet::HEADER_BYTES + ip4::HEADER_BYTES..];
        let pseudo = checksum::pseudo_header(from, US, ip4::UDP, transport.len() as u16);
        let field = !checksum::fold(checksum::sum(transport, pseudo));
        write(transport, udp::CHECKSUM, &field.to_be_bytes());
    }
}

/// A relay's slot as the control core writes it.
pub(crate) fn relay_slot(session: u32) -> Command {
    Command::SetSlot {
        slot: session,
        generation: generation(session),
        role: Role::Relay,
        fan: 0,
        up: up(session, 0),
        down: down(session, 0),
    }
}

/// The node.
pub(crate) fn identity(workers: u8) -> Identity {
    Identity {
        address: US,
        data_port: DATA_PORT,
        nat_port_first: NAT_PORT_FIRST,
        nat_port_last: u16::MAX,
        probe_key: [3; 16],
        workers,
    }
}

/// Addresses for `flows` flows.
pub(crate) fn nat_config(flows: u32) -> NatConfig {
    NatConfig::of(&identity(1)).with_gateway(&outside_addresses(flows))
}

/// An inner packet. Its UDP checksum is not zero, so translation updates it; nobody on the way verifies it.
fn plain(ip: &mut [u8], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    datagram(ip, from, to);
    write(ip, ip4::HEADER_BYTES + udp::CHECKSUM, &[0x12, 0x34]);
}

fn datagram(ip: &mut [u8], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    let length = ip.len() as u16;
    ip4::emit(ip, from.0, to.0, ip4::UDP, length, 64);
    udp::emit(&mut ip[ip4::HEADER_BYTES..], from.1, to.1, length - ip4::HEADER_BYTES as u16);
}

pub(crate) fn generation(session: u32) -> u16 {
    (session as u16).wrapping_mul(31) | 1
}

fn up(session: u32, path: u8) -> Link {
    let neighbour = (session + u32::from(path)) % NEIGHBOURS;
    link(session * 16 + u32::from(path), Ipv4Addr::from_bits(0xc000_0300 | neighbour), NodeKey(neighbour as u16))
}

fn down(session: u32, path: u8) -> Link {
    let hop = session * 16 + 8 + u32::from(path);
    let neighbour = (session / 3 + u32::from(path)) % NEIGHBOURS;
    link(hop, Ipv4Addr::from_bits(0xc000_0400 | neighbour), NodeKey((NEIGHBOURS + neighbour) as u16))
}

fn link(hop: u32, address: Ipv4Addr, key: NodeKey) -> Link {
    Link { address, port: DATA_PORT, generation: hop as u16, ct_index: CtIndex(hop & 0xff_ffff), key }
}

fn node_key(number: NodeKey) -> HopKey {
    key(u64::from(number.0))
}

fn client_key(session: u32) -> HopKey {
    key(1 << 32 | u64::from(session))
}

/// Follows from a number, so that making packets reads no table.
fn key(number: u64) -> HopKey {
    let mut key = [0; 16];
    let word = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key[..8].copy_from_slice(&word.to_ne_bytes());
    key[8..].copy_from_slice(&(word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_ne_bytes());
    key
}

fn server(flow: u32) -> Endpoint {
    (Ipv4Addr::from_bits(0xc633_6400 | (flow % SERVERS)), 53)
}

/// Each flow has a port of its own; when those of an address are used up the next address comes.
fn outside(flow: u32) -> Endpoint {
    let address = match flow / PORTS {
        0 => US,
        further => Ipv4Addr::from_bits(0xc612_0000 | further),
    };
    (address, NAT_PORT_FIRST + (flow % PORTS) as u16)
}

fn outside_addresses(flows: u32) -> Vec<OutsideAddress> {
    let first_flows = (0..flows.div_ceil(PORTS)).map(|address| address * PORTS);
    first_flows.map(|flow| OutsideAddress { address: outside(flow).0, first: NAT_PORT_FIRST, last: u16::MAX }).collect()
}

/// A default route; inside hosts of a gateway are behind a router of their own.
fn forwarding(is_gateway: bool) -> Forwarding {
    let outer = Ipv4Addr::new(192, 0, 2, 254);
    let inner = Ipv4Addr::new(192, 0, 2, 253);
    let route = |prefix, router, interface| Route { prefix, gateway: Some(router), interface, metric: 0 };
    let interface = |index| Interface { index, mac: MAC, mtu: 1500, is_up: true };
    let adjacency = |next_hop, interface| Adjacency { next_hop, mac: [4; 6], interface };
    Forwarding {
        interfaces: vec![interface(5), interface(6)],
        routes: RouteTable::new(&[
            route(Prefix::new(Ipv4Addr::UNSPECIFIED, 0), outer, OUTSIDE),
            route(Prefix::new(INSIDE, 10), inner, INSIDE_INTERFACE),
        ]),
        adjacencies: vec![adjacency(outer, OUTSIDE), adjacency(inner, INSIDE_INTERFACE)],
        gateway: is_gateway.then(|| Gateway {
            realms: vec![Realm::Outside, Realm::Inside],
            routers: vec![Some(US), Some(inner)],
            ..Gateway::default()
        }),
        ..Forwarding::default()
    }
}
