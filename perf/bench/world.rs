//! A worker with its tables filled, and the packets that come to it.

use std::{net::Ipv4Addr, sync::Arc};

use starnet::{
    dataplane::{
        command::{Command, Event},
        conntrack::{Binding, CtIndex, FanInit, Link, NO_BINDING, Role},
        forwarding::{Adjacency, Forwarding, Identity, Interface, Prefix, Route},
        handoff,
        published::Published,
        worker::{Rings, Worker, WorkerConfig},
    },
    limits::{COMMAND_RING, EVENT_RING, WORKERS_MAX},
    wire::{OVERLAY_BYTES, checksum, ethernet, ip4, relay, udp, write},
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
const _: () = assert!(WORKERS_MAX > 1);

/// Everything of one worker's benchmark.
pub(crate) struct World {
    case: Case,
    pub(crate) worker: Worker<Replay>,
    pub(crate) published: Arc<Published>,
    commands: rtrb::Producer<Command>,
    events: rtrb::Consumer<Event>,
    random: u64,
    /// Last sequence number by session.
    sequences: Vec<u64>,
    /// In which order the copies of a chunk come: place in the chunk -> (packet, path).
    order: Vec<(u32, u8)>,
}

impl World {
    /// Allocates, and writes every session and binding over the command ring.
    pub(crate) fn new(case: Case) -> Self {
        let (commands, commands_in) = rtrb::RingBuffer::new(COMMAND_RING);
        let (events_out, events) = rtrb::RingBuffer::new(EVENT_RING);
        let handoff = handoff::mesh(1).remove(0);
        let has_fan = case.path != Path::Relay;
        let has_bindings = matches!(case.path, Path::In2out | Path::Out2in);
        let bindings = if has_bindings { case.flows } else { 0 };
        let published = Arc::new(Published::new(case.sessions as usize, bindings as usize));
        let config = WorkerConfig {
            index: 0,
            identity: Identity {
                address: US,
                data_port: DATA_PORT,
                nat_port_first: NAT_PORT_FIRST,
                nat_port_last: u16::MAX,
                probe_key: [3; 16],
                workers: 1,
            },
            slots: case.sessions,
            fans: if has_fan { case.sessions } else { 0 },
            bindings,
            hash_key: [9; 16],
            clock: quanta::Clock::new(),
        };
        let copies = usize::from(if case.path == Path::In2out { case.paths } else { 1 });
        let order = order(CHUNK / copies, copies);
        let length = if case.path == Path::Out2in { 64 } else { INNER_AT + ip4::HEADER_BYTES + udp::HEADER_BYTES };
        let prepared = Prepared::new(order.len(), length.max(case.size));
        let rings = Rings { commands: commands_in, events: events_out, handoff };
        let worker = Worker::new(config, Replay::new(prepared, case.burst), rings, published.clone());
        let mut world = Self {
            case,
            worker,
            published,
            commands,
            events,
            random: 0x9e37_79b9_7f4a_7c15,
            sequences: vec![0; case.sessions as usize],
            order,
        };
        world.tell(Command::SetForwarding(Box::new(forwarding())));
        for session in 0..case.sessions {
            world.set_up(session);
        }
        for flow in 0..bindings {
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
            Path::In2out | Path::Out2in => Role::Exit,
        };
        if role != Role::Relay {
            let init = FanInit { inside: Ipv4Addr::UNSPECIFIED, binding: NO_BINDING, mtu: 1400 };
            self.tell(Command::InitFan { fan: session, init });
            for path in 0..self.case.paths {
                let link = if role == Role::Entry { down(session, path) } else { up(session, path) };
                self.tell(Command::SetFanLink { fan: session, path, link: Some(link) });
            }
        }
        let up = match role {
            Role::Entry => Link { address: CLIENT, port: 5555, ..up(session, 0) },
            _ => up(session, 0),
        };
        let down = down(session, 0);
        self.tell(Command::SetSlot { slot: session, generation: generation(session), role, fan: session, up, down });
    }

    fn binding(&self, flow: u32) -> Binding {
        Binding {
            slot: flow % self.case.sessions,
            protocol: ip4::UDP,
            inside_address: INSIDE,
            inside_port: INSIDE_PORT + (flow / self.case.sessions) as u16,
            outside_address: US,
            outside_port: NAT_PORT_FIRST + (flow % u32::from(u16::MAX - NAT_PORT_FIRST)) as u16,
            remote: None,
        }
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 32) * u64::from(bound) >> 32) as u32
    }

    /// Prepares a chunk of packets: random sessions and flows, each with the next sequence number of its session and
    /// an authentic tag. The worker's tables are not touched, so that they are as cold as their size makes them.
    pub(crate) fn prepare(&mut self) {
        let packets = self.order.iter().map(|(packet, _)| *packet + 1).max().unwrap_or(0);
        let flows: Vec<_> = (0..packets)
            .map(|_| {
                let flow = self.below(self.case.flows.max(self.case.sessions));
                let session = flow % self.case.sessions;
                self.sequences[session as usize] += 1;
                (flow, session, self.sequences[session as usize])
            })
            .collect();
        for place in 0..self.order.len() {
            let (packet, path) = self.order[place];
            let (flow, session, sequence) = flows[packet as usize];
            let bytes = self.worker.driver().prepared.packet(place);
            match self.case.path {
                Path::Relay => relayed(bytes, session, path, sequence, None),
                Path::Entry => relayed(bytes, session, path, sequence, Some(CLIENT)),
                Path::In2out => {
                    let port = INSIDE_PORT + (flow / self.case.sessions) as u16;
                    plain(&mut bytes[INNER_AT..], (INSIDE, port), (server(flow), 53));
                    relayed(bytes, session, path, sequence, None);
                }
                Path::Out2in => {
                    let port = NAT_PORT_FIRST + (flow % u32::from(u16::MAX - NAT_PORT_FIRST)) as u16;
                    ethernet::emit(bytes, [2; 6], [4; 6]);
                    plain(&mut bytes[ethernet::HEADER_BYTES..], (server(flow), 53), (US, port));
                }
            }
        }
    }

    /// What a chunk must bring: packets received, packets sent.
    pub(crate) fn chunk(&self) -> (u64, u64) {
        let count = self.order.len() as u64;
        let paths = u64::from(self.case.paths);
        match self.case.path {
            Path::Relay => (count, count),
            Path::Entry | Path::Out2in => (count, count * paths),
            Path::In2out => (count, count / paths),
        }
    }
}

/// The copies of path p come `LAG` packets later than those of path p - 1.
fn order(packets: usize, copies: usize) -> Vec<(u32, u8)> {
    let mut all: Vec<_> = (0..packets).flat_map(|packet| (0..copies).map(move |path| (packet, path))).collect();
    all.sort_by_key(|(packet, path)| (packet + path * LAG, *path));
    all.into_iter().map(|(packet, path)| (packet as u32, path as u8)).collect()
}

fn relayed(bytes: &mut [u8], session: u32, path: u8, sequence: u64, client: Option<Ipv4Addr>) {
    let link = up(session, path);
    let (from, port) = client.map_or((link.address, link.port), |address| (address, 5555));
    ethernet::emit(bytes, [2; 6], [4; 6]);
    let header = relay::Header {
        kind: relay::Kind::DataUp,
        path,
        generation: generation(session),
        ct_index: CtIndex::new(0, session).0,
        sequence,
    };
    relay::emit(&mut bytes[RELAY_AT..], &header, &link.key);
    datagram(&mut bytes[ethernet::HEADER_BYTES..], (from, port), (US, DATA_PORT));
    if client.is_some() {
        // A client's kernel makes a real checksum, and the entry checks it.
        let transport = &mut bytes[ethernet::HEADER_BYTES + ip4::HEADER_BYTES..];
        let pseudo = checksum::pseudo_header(from, US, ip4::UDP, transport.len() as u16);
        let field = !checksum::fold(checksum::sum(transport, pseudo));
        write(transport, udp::CHECKSUM, &field.to_be_bytes());
    }
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

fn generation(session: u32) -> u16 {
    (session as u16).wrapping_mul(31) | 1
}

fn up(session: u32, path: u8) -> Link {
    link(session * 16 + u32::from(path), Ipv4Addr::from_bits(0xc000_0300 | (session + u32::from(path)) % NEIGHBOURS))
}

fn down(session: u32, path: u8) -> Link {
    let hop = session * 16 + 8 + u32::from(path);
    link(hop, Ipv4Addr::from_bits(0xc000_0400 | (session / 3 + u32::from(path)) % NEIGHBOURS))
}

/// The key of a hop follows from its number, so that making packets reads no table.
fn link(hop: u32, address: Ipv4Addr) -> Link {
    let mut key = [0; 16];
    let word = (u64::from(hop) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key[..8].copy_from_slice(&word.to_ne_bytes());
    key[8..].copy_from_slice(&(word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_ne_bytes());
    Link { address, port: DATA_PORT, generation: hop as u16, ct_index: CtIndex(hop & 0xff_ffff), key }
}

fn server(flow: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc633_6400 | flow % SERVERS)
}

/// A default route, and the neighbour nodes on the link.
fn forwarding() -> Forwarding {
    let router = Ipv4Addr::new(192, 0, 2, 254);
    let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED, 0);
    Forwarding {
        interfaces: vec![Interface { index: 5, mac: [2; 6], mtu: 1500, is_up: true }],
        routes: vec![Route { prefix: everywhere, gateway: Some(router), interface: 0, metric: 0 }],
        adjacencies: vec![Adjacency { next_hop: router, mac: [4; 6], interface: 0 }],
        ..Forwarding::default()
    }
}
