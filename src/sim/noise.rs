//! Anything at all into the graph of two workers: valid packets of every kind, mutated ones and random bytes, with
//! a control core that answers late, wrongly or not at all, and a driver that takes no packet. Nothing panics,
//! every packet ends in exactly one way, and every frame comes back.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use proptest::prelude::*;

use super::{noise6, packets};
use crate::{
    Nanos, SECOND,
    dataplane::{
        command::{Command, Event, PuntCause},
        conntrack::{CtIndex, FanInit, Link, NO_BINDING, NodeKey, Role, SourcePorts},
        driver::memory::MemoryDriver,
        exit_policy::ExitPolicy,
        forwarding::{Adjacency, Forwarding, Identity, Interface, Peer, Route},
        gateway::{Gateway, Realm},
        graph::NODES,
        handoff,
        nat::{BindingInit, Filtering, Mapping, NatConfig, Owner},
        published::Published,
        reason::Reason,
        route_table::RouteTable,
        worker::{Rings, Worker, WorkerConfig},
    },
    limits::{PACKET_SLOTS, TICK},
    wire::{
        checksum, ethernet, icmp, ip4,
        relay::{self, Header, Kind},
        tcp, udp, write,
    },
};

const WORKERS: usize = 2;
const NAT_PORTS: u16 = 100;
const FRAMES: u32 = 1024;
/// Small enough that a stalled control core fills it.
const EVENTS: usize = 300;
const NODE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 40_000);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 5_000);
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 40_000);
const OTHER_PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 4), 40_000);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 7);
const SILENT_SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 7);
const INSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 2), 1_000);
/// A host behind the gateway.
const HOST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 16, 0, 2), 1_000);
const HOSTS_INTERFACE: u8 = 2;
const KEY: relay::HopKey = [5; 16];

/// The number of the key of all hops between nodes.
const NODE_KEY: NodeKey = NodeKey(3);
const GENERATION: u16 = 3;
const MAC: ethernet::Mac = [2, 0, 0, 0, 0, 1];

/// What a worker has: the same slots, fans and bindings in each.
const ENTRY: u32 = 0;
const RELAY: u32 = 1;
const TUNNEL: u32 = 2;
const FLOW: u32 = 3;
const SLOTS: u32 = 5;

fn nat_port(worker: usize, number: u16) -> u16 {
    40_001 + worker as u16 * (NAT_PORTS / WORKERS as u16) + number
}

struct Node {
    workers: Vec<Worker<MemoryDriver>>,
    commands: Vec<rtrb::Producer<Command>>,
    events: Vec<rtrb::Consumer<Event>>,
    published: Vec<Arc<Published>>,
    /// Punted packets that nobody answered for yet.
    waiting: Vec<(usize, u32, PuntCause)>,
    next_binding: u32,
    now: Nanos,
}

impl Node {
    fn new() -> Self {
        let identity = Identity {
            address: *NODE.ip(),
            data_port: NODE.port(),
            nat_port_first: 40_001,
            nat_port_last: 40_000 + NAT_PORTS,
            probe_key: KEY,
            workers: WORKERS as u8,
        };
        let mut node = Self {
            workers: Vec::new(),
            commands: Vec::new(),
            events: Vec::new(),
            published: Vec::new(),
            waiting: Vec::new(),
            next_binding: 2,
            now: TICK,
        };
        for (index, handoff) in handoff::mesh(WORKERS).into_iter().enumerate() {
            let (commands, command_consumer) = rtrb::RingBuffer::new(256);
            let (event_producer, events) = rtrb::RingBuffer::new(EVENTS);
            let published = Arc::new(Published::new(SLOTS as usize, 16));
            let mut nat = NatConfig::of(&identity);
            noise6::translate(&mut nat, (identity.nat_port_first, identity.nat_port_last));
            let config = WorkerConfig {
                index,
                identity,
                fans: 4,
                bindings: 16,
                nat,
                hash_key: [1; 16],
                clock: quanta::Clock::new(),
            };
            let rings = Rings { commands: command_consumer, events: event_producer, handoff };
            node.workers.push(Worker::new(config, MemoryDriver::new(FRAMES), rings, published.clone()));
            node.commands.push(commands);
            node.events.push(events);
            node.published.push(published);
            for command in tables(index) {
                node.command(index, command);
            }
        }
        node.step(true);
        node
    }

    fn command(&mut self, worker: usize, command: Command) {
        self.commands[worker].push(command).expect("the ring is read in every step");
    }

    /// One sweep of each worker, the checks, and what the control core hears unless it is stalled.
    fn step(&mut self, is_listening: bool) {
        for worker in 0..WORKERS {
            self.workers[worker].sweep(self.now);
            self.workers[worker].driver().take();
            let shown = &self.published[worker].worker;
            let began = shown.received.load(Relaxed) + shown.injected.load(Relaxed);
            let ended = [&shown.sent, &shown.dropped, &shown.consumed, &shown.punted, &shown.held, &shown.handed_off];
            assert_eq!(began, ended.map(|counter| counter.load(Relaxed)).iter().sum::<u64>());
            while is_listening && let Ok(event) = self.events[worker].pop() {
                if let Event::Punt { waiting, cause } = event {
                    self.waiting.push((worker, waiting, cause));
                }
            }
        }
    }

    fn answer(&mut self, is_resumed: bool, is_bound: bool) {
        let Some((worker, waiting, cause)) = self.waiting.pop() else { return };
        if let PuntCause::NoBinding { key, .. } = cause
            && is_bound
            && self.next_binding < 14
        {
            let outside_port = nat_port(worker, self.next_binding as u16);
            let binding = BindingInit {
                owner: key.owner,
                protocol: key.protocol,
                inside_address: key.address,
                inside_port: key.port,
                outside_address: *NODE.ip(),
                outside_port,
                mapping: Mapping::EndpointIndependent,
                filtering: Filtering::EndpointIndependent,
            };
            let index = self.next_binding;
            self.next_binding += 1;
            if is_resumed {
                return self.command(worker, Command::SetBindingAndResume { index, binding, waiting });
            }
            self.command(worker, Command::SetBinding { index, binding });
        }
        let resume = Command::Resume { waiting };
        self.command(worker, if is_resumed { resume } else { Command::Refuse { waiting, reason: Reason::Refused } });
    }

    /// Ends every packet that still waits and checks that no frame is missing.
    fn finish(mut self) {
        for worker in &mut self.workers {
            worker.driver().limit_transmit(usize::MAX);
        }
        // Packets may still be in a ring between workers, events in that to the control core, and fragments held.
        for _ in 0..16 {
            self.now += SECOND;
            self.step(true);
            while !self.waiting.is_empty() && self.commands.iter().all(|ring| ring.slots() > 0) {
                self.answer(false, false);
            }
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            assert_eq!(self.published[index].worker.waiting.load(Relaxed), 0);
            // A worker at rest keeps one sweep's stock of frames for copies.
            assert_eq!(worker.driver().free_frames(), FRAMES as usize - PACKET_SLOTS, "worker {index} lost frames");
        }
    }
}

fn tables(worker: usize) -> Vec<Command> {
    let link = |to: SocketAddrV4, slot: u32| Link {
        address: *to.ip(),
        port: to.port(),
        generation: GENERATION,
        ct_index: CtIndex::new(0, slot),
        key: NODE_KEY,
    };
    let interface = |index: u32, is_up| Interface { index, mac: MAC, mtu: 1500, is_up };
    let route = |prefix: &str, gateway: Option<[u8; 4]>, interface| Route {
        prefix: prefix.parse().unwrap(),
        gateway: gateway.map(Ipv4Addr::from),
        interface,
        metric: 0,
    };
    let adjacency =
        |last: u8| Adjacency { next_hop: [10, 0, 0, last].into(), mac: [2, 0, 0, 0, 0, last], interface: 0 };
    let host = Adjacency { next_hop: *HOST.ip(), mac: [2; 6], interface: HOSTS_INTERFACE };
    let peer = |at: SocketAddrV4, is_active| Peer { address: *at.ip(), port: at.port(), key: KEY, is_active };
    let mut forwarding = Forwarding {
        interfaces: vec![interface(7, true), interface(9, false), interface(11, true)],
        routes: RouteTable::new(&[
            route("10.0.0.0/24", None, 0),
            route("198.51.100.0/24", Some([10, 0, 0, 254]), 0),
            route("192.0.2.0/24", Some([10, 0, 0, 253]), 0),
            route("203.0.113.0/24", Some([10, 0, 1, 1]), 1),
            route("172.16.0.0/24", None, HOSTS_INTERFACE),
        ]),
        adjacencies: [adjacency(2), adjacency(3), adjacency(254), host].to_vec(),
        peers: vec![peer(PEER, true), peer(OTHER_PEER, false)],
        policy: ExitPolicy { deny: vec!["10.0.0.0/8".parse().unwrap()], ..ExitPolicy::default() },
        gateway: Some(Gateway {
            realms: vec![Realm::Outside, Realm::Neither, Realm::Inside],
            exempt: vec!["192.0.2.0/24".parse().unwrap()],
            ..Gateway::default()
        }),
        ..Forwarding::default()
    };
    noise6::route(&mut forwarding, HOSTS_INTERFACE);
    let fan = |fan, binding| Command::InitFan {
        fan,
        init: FanInit { inside: *INSIDE.ip(), binding, mtu: 1400, ..FanInit::NONE },
        client_key: KEY,
    };
    let path = |fan, path, to| Command::SetFanLink { fan, path, link: Some((link(to, 9), SourcePorts::default())) };
    let slot = |slot, role, fan, up| Command::SetSlot {
        slot,
        generation: GENERATION,
        role,
        fan,
        up: link(up, 0),
        down: link(OTHER_PEER, 8),
    };
    let binding = |slot, protocol, number, mapping| BindingInit {
        owner: Owner::session(slot),
        protocol,
        inside_address: *INSIDE.ip(),
        inside_port: INSIDE.port(),
        outside_address: *NODE.ip(),
        outside_port: nat_port(worker, number),
        mapping,
        filtering: Filtering::EndpointIndependent,
    };
    let flow = binding(FLOW, ip4::UDP, 0, Mapping::Flow((*SERVER.ip(), SERVER.port())));
    let mut commands = vec![
        Command::SetForwarding(Box::new(forwarding)),
        Command::SetNodeKey { number: NODE_KEY, key: KEY },
        // The entry's second path has a next hop without a MAC address, so one copy of each packet is punted.
        fan(0, NO_BINDING),
        path(0, 0, PEER),
        path(0, 1, OTHER_PEER),
        slot(ENTRY, Role::Entry, 0, CLIENT),
        slot(RELAY, Role::Relay, 0, PEER),
        fan(1, NO_BINDING),
        path(1, 0, PEER),
        path(1, 5, CLIENT),
        slot(TUNNEL, Role::Exit, 1, PEER),
        Command::SetBinding { index: 1, binding: binding(TUNNEL, ip4::TCP, 1, Mapping::EndpointIndependent) },
        fan(2, 0),
        path(2, 0, PEER),
        slot(FLOW, Role::Exit, 2, PEER),
        Command::SetBinding { index: 0, binding: flow },
    ];
    commands.extend(noise6::tables((*NODE.ip(), nat_port(worker, 3))));
    commands
}

/// One of three fragments of a packet, of eight bytes of payload each.
fn fragment(whole: &[u8], number: u16, identification: u64) -> Vec<u8> {
    let start = ip4::HEADER_BYTES + usize::from(number) * 8;
    let mut packet = [&whole[..ip4::HEADER_BYTES], &whole[start..start + 8]].concat();
    let more = if number < 2 { ip4::MORE_FRAGMENTS } else { 0 };
    let length = packet.len() as u16;
    write(&mut packet, ip4::TOTAL_LENGTH, &length.to_be_bytes());
    write(&mut packet, ip4::IDENTIFICATION, &(identification as u16).to_be_bytes());
    write(&mut packet, ip4::FRAGMENT, &(more | number).to_be_bytes());
    repair(&mut packet);
    packet
}

/// Valid packets for worker `worker`: of every kind, for every role, and what servers answer.
fn templates(worker: usize, sequence: u64) -> Vec<Vec<u8>> {
    let relayed = |from, kind, path, slot, inner: &[u8]| {
        let ct_index = CtIndex::new(worker, slot).0;
        let header = Header { kind, path, generation: GENERATION, ct_index, sequence };
        packets::relay(from, NODE, |payload| emit(payload, &header), inner)
    };
    let outside = |number| SocketAddrV4::new(*NODE.ip(), nat_port(worker, number));
    let inner_udp = packets::udp(INSIDE, SERVER, b"hello");
    let unbound = packets::udp(SocketAddrV4::new(*INSIDE.ip(), 2_000 + (sequence % 60_000) as u16), SERVER, b"hello");
    let hop_limit = {
        let mut packet = packets::udp(INSIDE, SERVER, b"last hop");
        packet[ip4::TTL] = 1;
        repair(&mut packet);
        packet
    };
    let too_big = packets::udp(INSIDE, SERVER, &[0; 1480]);
    let to_be_cut = {
        let mut packet = packets::udp(SERVER, outside(0), &[0; 1450]);
        write(&mut packet, ip4::FRAGMENT, &[0, 0]);
        repair(&mut packet);
        packet
    };
    let sent_to_server = packets::udp(outside(0), SERVER, b"hello");
    let from_server = packets::udp(SERVER, outside(0), b"answer");
    let (up, down) = (packets::udp(INSIDE, SERVER, &[0; 16]), packets::udp(SERVER, outside(0), &[0; 16]));
    let (host, long_ago) = (packets::udp(HOST, SERVER, &[0; 16]), sequence / 4);
    let to_host6 = packets::udp(SERVER, outside(3), &[0; 16]);
    let probe = [0; relay::PROBE_BYTES];
    let probe_header = |kind| Header { kind, path: 0, generation: 0, ct_index: 0, sequence };
    let mut all = vec![
        relayed(CLIENT, Kind::DataUp, 0, ENTRY, &inner_udp),
        relayed(CLIENT, Kind::KeepAliveUp, 0, ENTRY, &[]),
        relayed(PEER, Kind::DataDown, 0, ENTRY, &inner_udp),
        relayed(PEER, Kind::DataUp, 3, RELAY, &inner_udp),
        relayed(OTHER_PEER, Kind::DataDown, 3, RELAY, &inner_udp),
        relayed(PEER, Kind::DataUp, 0, TUNNEL, &packets::tcp(INSIDE, SERVER, tcp::SYN)),
        relayed(CLIENT, Kind::DataUp, 5, TUNNEL, &unbound),
        relayed(PEER, Kind::DataUp, 0, TUNNEL, &packets::tcp(INSIDE, SILENT_SERVER, tcp::ACK)),
        relayed(PEER, Kind::DataUp, 0, TUNNEL, &packets::echo(icmp::ECHO_REQUEST, *INSIDE.ip(), *SERVER.ip(), 1, b"x")),
        relayed(PEER, Kind::DataUp, 0, TUNNEL, &packets::udp(INSIDE, NODE, b"hairpin")),
        relayed(PEER, Kind::DataUp, 0, TUNNEL, &packets::tcp(INSIDE, outside(1), tcp::SYN)),
        relayed(PEER, Kind::KeepAliveUp, 0, TUNNEL, &[]),
        relayed(PEER, Kind::DataUp, 0, FLOW, &inner_udp),
        relayed(PEER, Kind::DataUp, 0, FLOW, &hop_limit),
        relayed(PEER, Kind::DataUp, 0, FLOW, &too_big),
        relayed(
            PEER,
            Kind::DataUp,
            0,
            FLOW,
            &packets::unreachable(*INSIDE.ip(), 3, &packets::udp(SERVER, INSIDE, b"")),
        ),
        packets::relay(PEER, NODE, |payload| emit(payload, &probe_header(Kind::Probe)), &probe),
        packets::relay(PEER, NODE, |payload| emit(payload, &probe_header(Kind::ProbeReply)), &probe),
        packets::tcp(SERVER, outside(1), tcp::SYN | tcp::ACK),
        packets::unreachable(*SERVER.ip(), 3, &sent_to_server),
        packets::echo(icmp::ECHO_REPLY, *SERVER.ip(), *NODE.ip(), nat_port(worker, 2), b"x"),
        packets::udp(SERVER, outside(0), &[0; 1450]),
        to_be_cut,
        from_server,
        packets::udp(HOST, SERVER, b"first of many"),
        packets::tcp(HOST, SERVER, tcp::SYN),
        packets::echo(icmp::ECHO_REQUEST, *HOST.ip(), *SERVER.ip(), 7, b"x"),
        packets::udp(HOST, outside(2), b"hairpin"),
        packets::udp(HOST, SILENT_SERVER, b"as it is"),
        packets::udp(SILENT_SERVER, HOST, b"as it is"),
        packets::unreachable(*HOST.ip(), 3, &packets::udp(SERVER, HOST, b"")),
        relayed(PEER, Kind::DataUp, 0, FLOW, &fragment(&up, (sequence % 3) as u16, long_ago)),
        fragment(&down, 2, long_ago),
        fragment(&down, 1, long_ago),
        fragment(&down, 0, long_ago),
        fragment(&host, (sequence % 3) as u16, long_ago),
        fragment(&to_host6, 0, long_ago),
        fragment(&to_host6, 1, long_ago),
        packets::udp(SERVER, outside(3), b"answer to a host of IPv6"),
        {
            let mut packet = packets::udp(SERVER, outside(3), &[0; 1450]);
            write(&mut packet, ip4::FRAGMENT, &[0, 0]);
            repair(&mut packet);
            packet
        },
        packets::unreachable(*SERVER.ip(), 3, &packets::udp(outside(3), SERVER, b"of a host of IPv6")),
    ];
    all.extend(noise6::templates(nat_port(worker, 3), (*SERVER.ip(), SERVER.port()), sequence));
    all
}

/// Where a packet comes in.
fn interface_of(packet: &[u8]) -> u8 {
    let is_from_inside = match is_ip6(packet) {
        true => noise6::is_from_inside(packet),
        false => packet.get(ip4::SOURCE..ip4::DESTINATION) == Some(&HOST.ip().octets()),
    };
    if is_from_inside { HOSTS_INTERFACE } else { 0 }
}

fn is_ip6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|byte| byte >> 4 == 6)
}

fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = packets::frame(MAC, [2; 6], packet);
    if is_ip6(packet) {
        write(&mut frame, 12, &ethernet::TYPE_IP6.to_be_bytes());
    }
    frame
}

/// Makes the header checksum of whatever this is right, where there are bytes for one.
fn repair(packet: &mut [u8]) {
    if is_ip6(packet) {
        return noise6::repair(packet);
    }
    if packet.len() < ip4::HEADER_BYTES {
        return;
    }
    let header = (usize::from(packet[0] & 0xf) * 4).clamp(ip4::HEADER_BYTES, packet.len());
    write(packet, ip4::CHECKSUM, &[0, 0]);
    let field = checksum::of(&packet[..header]);
    write(packet, ip4::CHECKSUM, &field.to_be_bytes());
}

const RELAY_AT: usize = ip4::HEADER_BYTES + udp::HEADER_BYTES;

/// Makes a relay packet the one after it, with the same inner packet; leaves others alone.
fn next_in_sequence(packet: &mut [u8]) {
    if is_ip6(packet) {
        return;
    }
    if let Some(payload) = packet.get_mut(RELAY_AT..)
        && let Ok(header) = relay::parse(payload)
    {
        emit(payload, &Header { sequence: header.sequence + 1, ..header });
        write(packet, ip4::HEADER_BYTES + udp::CHECKSUM, &[0, 0]);
    }
}

/// Gives a relay packet a right tag, whatever its header says, and no UDP checksum: what a hostile neighbour could
/// send that knows the keys.
fn retag(packet: &mut [u8]) {
    if is_ip6(packet) || packet.len() < RELAY_AT + relay::HEADER_BYTES {
        return;
    }
    write(packet, ip4::HEADER_BYTES + udp::CHECKSUM, &[0, 0]);
    if let Ok(header) = relay::parse(&packet[RELAY_AT..]) {
        emit(&mut packet[RELAY_AT..], &header);
    }
}

/// Writes a relay header with the tag of its hop.
fn emit(payload: &mut [u8], header: &Header) {
    let is_from_client = header.kind.is_up() && CtIndex(header.ct_index).slot() == ENTRY;
    match is_from_client || header.kind.is_probe() {
        true => relay::emit(payload, header, &KEY),
        false => relay::emit_between_nodes(payload, header, &KEY),
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// A template, mutated.
    Packet {
        worker: usize,
        template: usize,
        sequence: u64,
        changes: Vec<(usize, u8)>,
        cut: Option<usize>,
        mend: u8,
    },
    /// Bytes.
    Bytes(usize, Vec<u8>),
    /// A whole sweep's worth of one template at once.
    Burst {
        worker: usize,
        template: usize,
        sequence: u64,
    },
    Answer {
        is_resumed: bool,
        is_bound: bool,
    },
    LimitTransmit(usize, usize),
    Free {
        worker: usize,
        slot: u32,
    },
    /// Several sweeps without the control core reading its events.
    Stall,
    Step,
}

fn actions() -> impl Strategy<Value = Action> {
    let worker = 0..WORKERS;
    let template = 0..templates(0, 0).len();
    let changes = prop::collection::vec((0..120usize, any::<u8>()), 0..4);
    let packet = (worker.clone(), template.clone(), 1..200u64, changes, prop::option::of(0..1500usize), 0..4u8)
        .prop_map(|(worker, template, sequence, changes, cut, mend)| {
            let cut = cut.filter(|_| mend == 3);
            Action::Packet { worker, template, sequence, changes, cut, mend }
        });
    prop_oneof![
        12 => packet,
        1 => (worker.clone(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(w, bytes)| Action::Bytes(w, bytes)),
        1 => (worker.clone(), template, 200..u64::from(u32::MAX))
            .prop_map(|(worker, template, sequence)| Action::Burst { worker, template, sequence }),
        3 => any::<(bool, bool)>().prop_map(|(is_resumed, is_bound)| Action::Answer { is_resumed, is_bound }),
        1 => (worker.clone(), prop_oneof![Just(0usize), Just(3), Just(usize::MAX)])
            .prop_map(|(worker, room)| Action::LimitTransmit(worker, room)),
        1 => (worker, 0..SLOTS).prop_map(|(worker, slot)| Action::Free { worker, slot }),
        1 => Just(Action::Stall),
        3 => Just(Action::Step),
    ]
}

fn perform(node: &mut Node, action: Action) {
    match action {
        Action::Packet { worker, template, sequence, changes, cut, mend } => {
            let mut packet = templates(worker, sequence).swap_remove(template);
            for (at, value) in changes {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
            packet.truncate(cut.unwrap_or(usize::MAX));
            if mend > 0 {
                retag(&mut packet);
                repair(&mut packet);
            }
            // Mostly to the worker that owns the slot, sometimes to the other: a handoff.
            let receiver = if sequence.is_multiple_of(5) { 1 - worker } else { worker };
            node.workers[receiver].driver().put(interface_of(&packet), &frame(&packet));
        }
        Action::Bytes(worker, bytes) => node.workers[worker].driver().put(0, &bytes),
        Action::Burst { worker, template, sequence } => {
            let mut packet = templates(worker, sequence).swap_remove(template);
            for _ in 0..PACKET_SLOTS {
                next_in_sequence(&mut packet);
                node.workers[worker].driver().put(interface_of(&packet), &frame(&packet));
            }
        }
        Action::Answer { is_resumed, is_bound } => node.answer(is_resumed, is_bound),
        Action::LimitTransmit(worker, room) => node.workers[worker].driver().limit_transmit(room),
        Action::Free { worker, slot } => {
            node.command(worker, Command::FreeSlot { slot, generation: GENERATION, idle_since: None });
        }
        Action::Stall => (0..3).for_each(|_| node.step(false)),
        Action::Step => {
            node.now += TICK / 3;
            node.step(true);
        }
    }
    // The command rings are small: never more than a few actions between two sweeps.
    if node.commands.iter().any(|ring| ring.slots() < 8) {
        node.step(true);
    }
}

proptest! {
    #[test]
    fn no_input_breaks_a_worker_and_no_frame_is_lost(actions in prop::collection::vec(actions(), 1..120)) {
        let mut node = Node::new();
        for action in actions {
            perform(&mut node, action);
        }
        node.finish();
    }
}

#[test]
fn the_valid_packets_reach_every_node_of_the_graph() {
    let mut node = Node::new();
    for template in 0..templates(0, 0).len() {
        let packet =
            Action::Packet { worker: 0, template, sequence: template as u64 + 1, changes: vec![], cut: None, mend: 0 };
        perform(&mut node, packet);
        perform(&mut node, Action::Step);
    }
    for graph_node in &NODES {
        let packets = node.published.iter().map(|p| p.nodes[graph_node.id as usize].packets.load(Relaxed)).sum::<u64>();
        assert!(packets > 0, "nothing came to {}", graph_node.name);
    }
    node.finish();
}
