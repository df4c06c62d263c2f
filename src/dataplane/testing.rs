//! For the tests of the nodes: a worker over the memory driver, packets by their fields, counters that moved.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, sync::atomic::Ordering::Relaxed};

use super::{
    command::{Command, Event},
    conntrack::{CtIndex, FanInit, Link, NO_BINDING, NodeKey, Role, SourcePorts},
    driver::memory::MemoryDriver,
    exit_policy::ExitPolicy,
    forwarding::{Adjacency, Forwarding, Identity, Interface, Peer, Prefix, Route},
    gateway::{Gateway, Realm},
    graph::NODES,
    handoff,
    nat::{BindingInit, Endpoint, Filtering, Mapping, NatConfig, Owner},
    published::Published,
    reason::Reason,
    route_table::RouteTable,
    testing6,
    worker::{Rings, Worker, WorkerConfig},
};
use crate::{
    SECOND,
    limits::{COMMAND_RING, EVENT_RING},
    wire::{checksum, ethernet, icmp, ip4, relay, tcp, udp, write},
};

pub(crate) const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const UPSTREAM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const DOWNSTREAM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 4);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const UNRESOLVED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
pub(crate) const INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
pub(crate) const INSIDE_ROUTER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
pub(crate) const DATA_PORT: u16 = 40_000;
pub(crate) const UP_KEY: relay::HopKey = [1; 16];
pub(crate) const DOWN_KEY: relay::HopKey = [2; 16];
/// Their numbers.
pub(crate) const UP: NodeKey = NodeKey(1);
pub(crate) const DOWN: NodeKey = NodeKey(2);
pub(crate) const PROBE_KEY: relay::HopKey = [3; 16];
pub(crate) const PEER_KEY: relay::HopKey = [4; 16];
pub(crate) const GENERATION: u16 = 7;
pub(crate) const INSIDE_MTU: u16 = 1400;
const MAC: ethernet::Mac = [2, 0, 0, 0, 0, 1];

/// A worker, its rings' other ends, and what its counters were.
pub(crate) struct Bench {
    pub(crate) worker: Worker<MemoryDriver>,
    pub(crate) commands: rtrb::Producer<Command>,
    pub(crate) events: rtrb::Consumer<Event>,
    pub(crate) now: u64,
    published: Arc<Published>,
    before: BTreeMap<String, u64>,
}

/// The node of the tests, with `workers` workers.
pub(crate) fn identity(workers: u8) -> Identity {
    Identity {
        address: US,
        data_port: DATA_PORT,
        nat_port_first: DATA_PORT + 1,
        nat_port_last: DATA_PORT + 9_999,
        probe_key: PROBE_KEY,
        workers,
    }
}

fn routes() -> Vec<Route> {
    let on_link = |prefix: Prefix| Route { prefix, gateway: None, interface: 0, metric: 0 };
    let private = Route { prefix: Prefix::new(PRIVATE, 8), gateway: Some(ROUTER), interface: 0, metric: 0 };
    vec![on_link(Prefix::new(US, 24)), on_link(Prefix::new(SERVER, 24)), private]
}

fn forwarding() -> Box<Forwarding> {
    let known = [UPSTREAM, DOWNSTREAM, CLIENT, SERVER, ROUTER];
    Box::new(Forwarding {
        interfaces: vec![Interface { index: 5, mac: MAC, mtu: 1500, is_up: true }],
        routes: RouteTable::new(&routes()),
        adjacencies: known.map(|next_hop| Adjacency { next_hop, mac: [2, 0, 0, 0, 0, 9], interface: 0 }).to_vec(),
        failed: vec![],
        routes6: RouteTable::default(),
        adjacencies6: vec![],
        failed6: vec![],
        peers: vec![Peer { address: DOWNSTREAM, port: DATA_PORT, key: PEER_KEY, is_active: true }],
        policy: ExitPolicy { deny: vec![Prefix::new(PRIVATE, 8)], ..ExitPolicy::default() },
        gateway: None,
    })
}

impl Bench {
    /// Worker 0 of one.
    pub(crate) fn new() -> Self {
        Self::with_workers(1, handoff::mesh(1).remove(0))
    }

    /// Worker 0 of `workers`, with its ends of the hand-over rings.
    pub(crate) fn with_workers(workers: u8, handoff: handoff::Handoff) -> Self {
        Self::at(0, workers, handoff)
    }

    /// Worker `index` of `workers`.
    pub(crate) fn at(index: usize, workers: u8, handoff: handoff::Handoff) -> Self {
        Self::translating(index, NatConfig::of(&identity(workers)), workers, handoff)
    }

    /// The same, translating as `nat` says.
    pub(crate) fn translating(index: usize, nat: NatConfig, workers: u8, handoff: handoff::Handoff) -> Self {
        let (commands, commands_in) = rtrb::RingBuffer::new(COMMAND_RING);
        let (events_out, events) = rtrb::RingBuffer::new(EVENT_RING);
        let published = Arc::new(Published::new(16, 16));
        let config = WorkerConfig {
            index,
            identity: identity(workers),
            fans: 8,
            bindings: 16,
            nat,
            hash_key: [9; 16],
            clock: quanta::Clock::mock().0,
        };
        let rings = Rings { commands: commands_in, events: events_out, handoff };
        let worker = Worker::new(config, MemoryDriver::new(4096), rings, published.clone());
        let mut bench = Self { worker, commands, events, now: SECOND, published, before: BTreeMap::new() };
        bench.tell(Command::SetForwarding(forwarding()));
        for (number, key) in [(UP, UP_KEY), (DOWN, DOWN_KEY)] {
            bench.tell(Command::SetNodeKey { number, key });
        }
        assert!(matches!(bench.events.pop(), Ok(Event::ForwardingRetired(_))));
        bench
    }

    /// The worker applies a command.
    pub(crate) fn tell(&mut self, command: Command) {
        self.commands.push(command).unwrap();
        self.worker.sweep(self.now);
    }

    /// The worker is told tables that differ from those it has.
    pub(crate) fn change_forwarding(&mut self, change: impl FnOnce(&mut Forwarding)) {
        let mut forwarding = self.worker.context().routes.forwarding().clone();
        change(&mut forwarding);
        self.tell(Command::SetForwarding(Box::new(forwarding)));
        while self.events.pop().is_ok() {}
    }

    /// Packets come in, one sweep passes; what goes out.
    pub(crate) fn run(&mut self, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.before = self.counters();
        for packet in packets {
            self.worker.driver().put(0, packet);
        }
        self.sweep()
    }

    /// One sweep passes; what goes out.
    pub(crate) fn sweep(&mut self) -> Vec<Vec<u8>> {
        self.worker.sweep(self.now);
        self.worker.driver().take().into_iter().map(|(_, packet)| packet).collect()
    }

    /// Counters of drops, and of edges to `punt` and `handoff`, that moved since the last [`Bench::run`].
    pub(crate) fn moved(&self) -> Vec<(String, u64)> {
        self.counters()
            .into_iter()
            .map(|(name, value)| {
                let before = self.before.get(&name).copied().unwrap_or(0);
                (name, value - before)
            })
            .filter(|(_, change)| *change > 0)
            .collect()
    }

    /// A packet comes in, nothing goes out, and of all drop counters this one moves, by one.
    #[track_caller]
    pub(crate) fn expect_drop(&mut self, packet: Vec<u8>, counter: &str) {
        let out = self.run(&[packet]);
        assert_eq!(self.moved(), [(counter.to_owned(), 1)]);
        assert!(out.is_empty(), "a dropped packet went out");
    }

    /// The edges of the graph that one packet takes, itself and what comes of it, with how many took each; edges are
    /// in the graph's order. Where it ends without being sent the edge is to the reason.
    pub(crate) fn way(&mut self, packet: Vec<u8>) -> Vec<String> {
        let before = self.edges();
        self.run(&[packet]);
        let mut way = Vec::new();
        for ((edge, after), (_, before)) in self.edges().into_iter().zip(before) {
            match after - before {
                0 => {}
                1 => way.push(edge),
                n => way.push(format!("{n} {edge}")),
            }
        }
        way
    }

    /// By node of the graph: packets that were there.
    pub(crate) fn visits(&self) -> impl Iterator<Item = u64> {
        self.published.nodes.iter().map(|node| node.packets.load(Relaxed))
    }

    fn edges(&self) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        for (node, counters) in NODES.iter().zip(self.published.nodes.iter()) {
            for next in &NODES {
                let count = counters.next[next.id as usize].load(Relaxed);
                all.push((format!("{} > {}", node.name, next.name), count));
            }
            for reason in Reason::ALL {
                let count = counters.drops[reason as usize].load(Relaxed);
                all.push((format!("{} > {}", node.name, reason.name()), count));
            }
        }
        all
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (node, counters) in NODES.iter().zip(self.published.nodes.iter()) {
            for reason in Reason::ALL {
                let name = format!("{}.drop.{}", node.name, reason.name());
                all.insert(name, counters.drops[reason as usize].load(Relaxed));
            }
        }
        all
    }

    /// A session that relays from UPSTREAM to DOWNSTREAM, in slot 1.
    pub(crate) fn relay(&mut self) {
        self.tell(Command::SetSlot {
            slot: 1,
            generation: GENERATION,
            role: Role::Relay,
            fan: 0,
            up: link(UPSTREAM, DATA_PORT, 11, UP),
            down: link(DOWNSTREAM, DATA_PORT, 12, DOWN),
        });
    }

    /// A session of CLIENT over `paths` paths that all lead to DOWNSTREAM, in slot 2; the client's port is known.
    pub(crate) fn entry(&mut self, paths: u8) {
        self.fan(0, paths, NO_BINDING, DOWNSTREAM, DOWN);
        self.tell(Command::SetSlot {
            slot: 2,
            generation: GENERATION,
            role: Role::Entry,
            fan: 0,
            up: link(CLIENT, 5555, 0, NodeKey(0)),
            down: Link::NONE,
        });
    }

    /// A session over `paths` paths that all come from UPSTREAM, in slot 3; `binding` as in [`FanInit`].
    pub(crate) fn exit(&mut self, paths: u8, binding: u32) {
        self.fan(1, paths, binding, UPSTREAM, UP);
        self.tell(Command::SetSlot {
            slot: 3,
            generation: GENERATION,
            role: Role::Exit,
            fan: 1,
            up: Link::NONE,
            down: Link::NONE,
        });
    }

    /// The session of [`Bench::exit`] is set up anew: its client is `inside` and takes packets of `mtu` bytes.
    pub(crate) fn tell_terms(&mut self, inside: Ipv4Addr, mtu: u16) {
        let init = FanInit { inside, binding: NO_BINDING, mtu, ..FanInit::NONE };
        self.fan_of(1, 1, init, UPSTREAM, UP);
    }

    fn fan(&mut self, fan: u32, paths: u8, binding: u32, address: Ipv4Addr, key: NodeKey) {
        let inside6 = if binding == NO_BINDING { testing6::INSIDE6 } else { FanInit::NONE.inside6 };
        self.fan_of(fan, paths, FanInit { inside: INSIDE, inside6, binding, mtu: INSIDE_MTU }, address, key);
    }

    fn fan_of(&mut self, fan: u32, paths: u8, init: FanInit, address: Ipv4Addr, key: NodeKey) {
        self.tell(Command::InitFan { fan, init, client_key: UP_KEY });
        for path in 0..paths {
            let link = link(address, DATA_PORT, 20 + u32::from(path), key);
            self.tell(Command::SetFanLink { fan, path, link: Some((link, SourcePorts::default())) });
        }
    }

    /// INSIDE is a host on the link: one of the gateway's.
    pub(crate) fn route_to_inside(&mut self) {
        let mut forwarding = forwarding();
        let prefix = Prefix::new(INSIDE, 24);
        let mut routes = routes();
        routes.push(Route { prefix, gateway: None, interface: 0, metric: 0 });
        forwarding.routes = RouteTable::new(&routes);
        forwarding.adjacencies.push(Adjacency { next_hop: INSIDE, mac: [2, 0, 0, 0, 0, 8], interface: 0 });
        forwarding.adjacencies.sort_unstable_by_key(|adjacency| (adjacency.interface, adjacency.next_hop));
        self.tell(Command::SetForwarding(forwarding));
        while self.events.pop().is_ok() {}
    }

    /// A gateway: INSIDE is a host behind interface 1, NEIGHBOUR one behind interface 2, everyone else is behind interface
    /// 0, where the networks of PRIVATE are exempt from translation.
    pub(crate) fn gateway(&mut self) {
        let mut forwarding = forwarding();
        let mut all = routes();
        for (interface, host) in [(1, INSIDE), (2, NEIGHBOUR)] {
            let mac = [2, 0, 0, 0, 1, interface];
            forwarding.interfaces.push(Interface { index: 5 + u32::from(interface), mac, mtu: 1500, is_up: true });
            all.push(Route { prefix: Prefix::new(host, 24), gateway: None, interface, metric: 0 });
            forwarding.adjacencies.push(Adjacency { next_hop: host, mac: [2, 0, 0, 0, 2, interface], interface });
        }
        forwarding.routes = RouteTable::new(&all);
        forwarding.gateway = Some(Gateway {
            realms: vec![Realm::Outside, Realm::Inside, Realm::Inside],
            routers: vec![None, Some(INSIDE_ROUTER), None],
            exempt: vec![Prefix::new(PRIVATE, 8)],
            ..Gateway::default()
        });
        self.tell(Command::SetForwarding(forwarding));
        while self.events.pop().is_ok() {}
    }

    /// Packets come in by `interface`, framed for it; one sweep passes; what goes out, and by which interface.
    pub(crate) fn run_at(&mut self, interface: u8, packets: &[Vec<u8>]) -> Vec<(u8, Vec<u8>)> {
        self.run_framed(interface, packets, frame)
    }

    /// The same with frames made by `frame`.
    pub(crate) fn run_framed(
        &mut self,
        interface: u8,
        packets: &[Vec<u8>],
        frame: fn(&[u8]) -> Vec<u8>,
    ) -> Vec<(u8, Vec<u8>)> {
        self.before = self.counters();
        let mac = self.worker.context().routes.forwarding().interfaces[usize::from(interface)].mac;
        for ip in packets {
            let mut bytes = frame(ip);
            bytes[..6].copy_from_slice(&mac);
            self.worker.driver().put(interface, &bytes);
        }
        self.worker.sweep(self.now);
        self.worker.driver().take()
    }

    /// INSIDE:`inside` is US:`outside` to servers, in the session of slot 3.
    pub(crate) fn bind(&mut self, protocol: u8, inside: u16, outside: u16, remote: Option<Endpoint>) {
        self.bind_for(Owner::session(3), protocol, inside, outside, remote);
    }

    /// The same on behalf of `owner`.
    pub(crate) fn bind_for(&mut self, owner: Owner, protocol: u8, inside: u16, outside: u16, remote: Option<Endpoint>) {
        let mapping = remote.map_or(Mapping::EndpointIndependent, Mapping::Flow);
        let binding = BindingInit { mapping, ..binding(owner, protocol, inside, outside) };
        self.tell(Command::SetBinding { index: 4, binding });
    }

    /// The packet waiting under this ticket is the first one of INSIDE:`inside`, which is US:`outside` to servers.
    pub(crate) fn bind_and_resume(&mut self, owner: Owner, (inside, outside): (u16, u16), waiting: u32) {
        let binding = binding(owner, ip4::UDP, inside, outside);
        self.commands.push(Command::SetBindingAndResume { index: 4, binding, waiting }).unwrap();
    }
}

fn binding(owner: Owner, protocol: u8, inside: u16, outside: u16) -> BindingInit {
    BindingInit {
        owner,
        protocol,
        inside_address: INSIDE,
        inside_port: inside,
        outside_address: US,
        outside_port: outside,
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::EndpointIndependent,
    }
}

fn link(address: Ipv4Addr, port: u16, slot: u32, key: NodeKey) -> Link {
    Link { address, port, generation: 70, ct_index: CtIndex(slot), key }
}

/// An Ethernet frame around an IP packet.
pub(crate) fn frame(ip: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0u8; ethernet::HEADER_BYTES];
    ethernet::emit(&mut bytes, MAC, [2, 0, 0, 0, 0, 9]);
    bytes.extend_from_slice(ip);
    bytes
}

/// An IPv4 packet with right checksums; `transport`'s checksum field is filled in.
pub(crate) fn packet(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0u8; ip4::HEADER_BYTES];
    bytes.extend_from_slice(transport);
    let total = bytes.len() as u16;
    ip4::emit(&mut bytes, source, destination, protocol, total, 64);
    let (at, pseudo) = match protocol {
        ip4::UDP => (udp::CHECKSUM, checksum::pseudo_header(source, destination, protocol, total - 20)),
        ip4::TCP => (tcp::CHECKSUM, checksum::pseudo_header(source, destination, protocol, total - 20)),
        _ => (icmp::CHECKSUM, 0),
    };
    write(&mut bytes, 20 + at, &[0, 0]);
    let field = !checksum::fold(checksum::sum(&bytes[20..], pseudo));
    write(&mut bytes, 20 + at, &field.to_be_bytes());
    bytes
}

/// A UDP packet.
pub(crate) fn udp_packet(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0u8; udp::HEADER_BYTES];
    datagram.extend_from_slice(payload);
    let length = datagram.len() as u16;
    udp::emit(&mut datagram, source.1, destination.1, length);
    packet(source.0, destination.0, ip4::UDP, &datagram)
}

/// A TCP segment with these flags and options.
pub(crate) fn tcp_packet(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), flags: u8, options: &[u8]) -> Vec<u8> {
    let mut segment = vec![0u8; tcp::HEADER_BYTES];
    segment.extend_from_slice(options);
    segment[12] = ((segment.len() / 4) as u8) << 4;
    segment[tcp::FLAGS] = flags;
    write(&mut segment, tcp::SOURCE, &source.1.to_be_bytes());
    write(&mut segment, tcp::DESTINATION, &destination.1.to_be_bytes());
    packet(source.0, destination.0, ip4::TCP, &segment)
}

/// An ICMP message: type, code, then the rest after the checksum.
pub(crate) fn icmp_packet(source: Ipv4Addr, destination: Ipv4Addr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(rest);
    packet(source, destination, ip4::ICMP, &message)
}

/// A relay packet to us.
pub(crate) struct Relayed {
    pub(crate) from: (Ipv4Addr, u16),
    pub(crate) kind: relay::Kind,
    pub(crate) path: u8,
    pub(crate) generation: u16,
    pub(crate) ct_index: u32,
    pub(crate) sequence: u64,
    pub(crate) key: relay::HopKey,
    /// Over the client's hop.
    pub(crate) is_from_client: bool,
    pub(crate) inner: Vec<u8>,
}

impl Relayed {
    /// Data from UPSTREAM for the session in `slot`.
    pub(crate) fn up(slot: u32, sequence: u64, inner: Vec<u8>) -> Self {
        Self {
            from: (UPSTREAM, DATA_PORT),
            kind: relay::Kind::DataUp,
            path: 0,
            generation: GENERATION,
            ct_index: slot,
            sequence,
            key: UP_KEY,
            is_from_client: false,
            inner,
        }
    }

    /// Data from DOWNSTREAM for the session in `slot`.
    pub(crate) fn down(slot: u32, sequence: u64, inner: Vec<u8>) -> Self {
        let up = Self::up(slot, sequence, inner);
        Self { from: (DOWNSTREAM, DATA_PORT), kind: relay::Kind::DataDown, key: DOWN_KEY, ..up }
    }

    /// Data from CLIENT for the session in slot 2.
    pub(crate) fn from_client(sequence: u64, inner: Vec<u8>) -> Self {
        Self { from: (CLIENT, 5555), is_from_client: true, ..Self::up(2, sequence, inner) }
    }

    /// As an Ethernet frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut payload = vec![0u8; relay::HEADER_BYTES];
        let header = relay::Header {
            kind: self.kind,
            path: self.path,
            generation: self.generation,
            ct_index: self.ct_index,
            sequence: self.sequence,
        };
        match self.is_from_client || self.kind.is_probe() {
            true => relay::emit(&mut payload, &header, &self.key),
            false => relay::emit_between_nodes(&mut payload, &header, &self.key),
        }
        payload.extend_from_slice(&self.inner);
        let mut ip = udp_packet(self.from, (US, DATA_PORT), &payload);
        write(&mut ip, 20 + udp::CHECKSUM, &[0, 0]);
        frame(&ip)
    }
}

/// What a relay packet that we sent says: destination, header, whether `key` made the tag, inner packet.
pub(crate) struct Sent {
    pub(crate) to: (Ipv4Addr, u16),
    pub(crate) header: relay::Header,
    pub(crate) is_authentic: bool,
    pub(crate) inner: Vec<u8>,
}

/// Reads a relay packet that we sent. Panics where it is malformed or not from us.
pub(crate) fn sent(frame: &[u8], key: &relay::HopKey) -> Sent {
    let ip = &frame[ethernet::HEADER_BYTES..];
    let header = ip4::parse(ip).unwrap();
    assert_eq!((header.source, header.total_length), (US, ip.len()));
    let datagram = &ip[20..];
    assert_eq!(udp::checked_length(datagram), Some(datagram.len()));
    assert_eq!(crate::wire::read_u16(datagram, udp::SOURCE), DATA_PORT);
    let payload = &datagram[8..];
    let to = (header.destination, crate::wire::read_u16(datagram, udp::DESTINATION));
    let header = relay::parse(payload).unwrap();
    let is_between_nodes = to.1 == DATA_PORT && !header.kind.is_probe();
    Sent {
        to,
        header,
        is_authentic: match is_between_nodes {
            true => relay::is_authentic_between_nodes(payload, key),
            false => relay::is_authentic(payload, key),
        },
        inner: payload[relay::HEADER_BYTES..].to_vec(),
    }
}

/// True where all checksums of an IPv4 packet are right.
pub(crate) fn has_valid_checksums(ip: &[u8]) -> bool {
    let Ok(header) = ip4::parse(ip) else { return false };
    let transport = &ip[header.header_length..];
    let pseudo = match header.protocol {
        ip4::ICMP => 0,
        _ => checksum::pseudo_header(header.source, header.destination, header.protocol, transport.len() as u16),
    };
    checksum::fold(checksum::sum(transport, pseudo)) == 0xffff
}
