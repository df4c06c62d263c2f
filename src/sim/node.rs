//! A node: a control core and its workers, joined by the same rings as in the process.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    wires::Random,
    world::{Origin, mac_of},
};
use crate::{
    Nanos,
    control::{Caller, Control, ControlConfig, Effect, KernelEvent, RequestId},
    dataplane::{
        command::{Command, Event},
        driver::memory::MemoryDriver,
        exit_policy::ExitPolicy,
        forwarding::{Identity, Interface},
        gateway::OutsideAddress,
        gateway::OutsideAddress6,
        handoff,
        nat::{NatConfig, Prefix64},
        port_rules::{self, Classes, PortRules, Rule},
        published::Published,
        reason::Reason,
        rss::{Inputs, KEY_BYTES, Rss, Tuple},
        spread::Spread,
        worker::{Rings, Worker, WorkerConfig},
    },
    limits::{COMMAND_RING, EVENT_RING, PACKET_SLOTS},
    rpc::messages::{NodeName, Request, Response, Roles},
    wire::{ethernet, ip4, ip6, read_u16},
};

/// Port of relay packets, and of each node's reserved range the first.
pub(super) const DATA_PORT: u16 = 40_000;

const FRAMES: u32 = 1024;

/// Slots, fans and bindings of each worker.
pub(super) const SLOTS: u32 = 16;

pub(super) struct Node {
    pub(super) name: NodeName,
    pub(super) address: Ipv4Addr,
    pub(super) control: Control,
    workers: Vec<Worker<MemoryDriver>>,
    commands: Vec<rtrb::Producer<Command>>,
    events: Vec<rtrb::Consumer<Event>>,
    published: Vec<Arc<Published>>,
    nic: Rss,
    /// Those in the NIC's table; they come before its hash.
    rules: Vec<Rule>,
    /// Requests it has not answered yet.
    asked: HashMap<RequestId, Origin>,
    next_request: u64,
    /// Workers that have something to do, by number.
    is_woken: Vec<bool>,
}

/// What a node knows of how its NIC spreads packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Knowledge {
    None,
    Right,
    /// It was told another key.
    Wrong,
    /// None of the hash, but the NIC takes rules.
    Rules,
}

/// What a node wants of the world around it.
pub(super) enum Wish {
    Frame(Vec<u8>),
    Call { call: crate::control::CallId, to: NodeName, request: Request },
    Answer { to: Origin, response: Response },
    Resolve { interface: u8, address: IpAddr },
}

impl Node {
    pub(super) fn new(name: &str, address: Ipv4Addr, workers: u8, knowledge: Knowledge, seed: u64, now: Nanos) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_be_bytes());
        key[8..12].copy_from_slice(&address.octets());
        let nic = nic(workers, seed ^ u64::from(address.to_bits()));
        let identity = Identity {
            address,
            data_port: DATA_PORT,
            nat_port_first: DATA_PORT + 1,
            nat_port_last: DATA_PORT + 999,
            probe_key: std::array::from_fn(|i| key[i % 12]),
            workers,
        };
        let config = ControlConfig {
            name: name.into(),
            identity,
            control: SocketAddrV4::new(address, 4433),
            roles: Roles { entry: true, relay: true, exit: true },
            slots: SLOTS,
            fans: SLOTS,
            bindings: SLOTS,
            bindings_a_session: SLOTS,
            nat: nat(&identity),
            interfaces: vec![Interface { index: 2, mac: mac_of(address), mtu: 1500, is_up: true }],
            policy: ExitPolicy { deny: vec!["10.0.0.0/8".parse().expect("a prefix")], ..ExitPolicy::default() },
            gateway: None,
            boot_epoch: seed ^ u64::from(address.to_bits()),
            seed: key,
        };
        let published: Vec<_> =
            (0..workers).map(|_| Arc::new(Published::new(SLOTS as usize, SLOTS as usize))).collect();
        let mut node = Self {
            name: name.into(),
            address,
            control: Control::new(config, published.clone(), now),
            workers: Vec::new(),
            commands: Vec::new(),
            events: Vec::new(),
            published,
            nic,
            rules: Vec::new(),
            asked: HashMap::new(),
            next_request: 0,
            is_woken: vec![true; usize::from(workers)],
        };
        let known = match knowledge {
            Knowledge::None => Spread::default(),
            Knowledge::Right => Spread::by_hash(node.nic.clone()),
            Knowledge::Wrong => Spread::by_hash(self::nic(workers, !seed)),
            Knowledge::Rules => {
                let ours = SocketAddrV4::new(address, DATA_PORT);
                let outside = OutsideAddress { address, first: identity.nat_port_first, last: identity.nat_port_last };
                node.rules = [port_rules::hops(ours, workers), port_rules::answers(&outside, workers)].concat();
                let hops = Some((ours, Classes::among(workers)));
                let rules = PortRules { hops, outside: vec![address], count: node.rules.len() };
                Spread { rss: None, rules: Some(rules) }
            }
        };
        node.control.on_kernel(KernelEvent::Spread { interface: 0, now: known }, now);
        for (index, handoff) in handoff::mesh(usize::from(workers)).into_iter().enumerate() {
            let (commands, command_consumer) = rtrb::RingBuffer::new(COMMAND_RING);
            let (event_producer, events) = rtrb::RingBuffer::new(EVENT_RING);
            let config = WorkerConfig {
                index,
                identity,
                fans: SLOTS,
                bindings: SLOTS,
                nat: nat(&identity),
                hash_key: [index as u8; 16],
                clock: quanta::Clock::new(),
            };
            let rings = Rings { commands: command_consumer, events: event_producer, handoff };
            node.workers.push(Worker::new(config, MemoryDriver::new(FRAMES), rings, node.published[index].clone()));
            node.commands.push(commands);
            node.events.push(events);
        }
        node
    }

    /// Somebody has its NIC spread otherwise. The control core hears of it by [`Node::tell_nic`] only.
    pub(super) fn change_nic(&mut self, seed: u64) {
        self.nic = nic(self.workers.len() as u8, seed);
    }

    /// The control core hears how its NIC spreads.
    pub(super) fn tell_nic(&mut self, now: Nanos) {
        let nic = Spread::by_hash(self.nic.clone());
        self.control.on_kernel(KernelEvent::Spread { interface: 0, now: nic }, now);
    }

    /// A control message came.
    pub(super) fn on_request(&mut self, caller: Caller, origin: Origin, request: Request, now: Nanos, unix: u64) {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.asked.insert(id, origin);
        self.control.on_request(caller, id, request, now, unix);
    }

    /// A frame came in: to the worker whose queue the NIC would choose.
    pub(super) fn put(&mut self, frame: &[u8]) {
        let queue = receive_queue(&self.nic, &self.rules, frame);
        self.workers[queue].driver().put(0, frame);
        self.is_woken[queue] = true;
    }

    /// Lets control core and workers do all there is to do at this moment; what they want of the world.
    pub(super) fn settle(&mut self, now: Nanos) -> Vec<Wish> {
        let mut wishes = Vec::new();
        loop {
            let mut is_idle = true;
            for (worker, ring) in self.commands.iter_mut().enumerate() {
                if self.control.write_commands(worker, ring) > 0 {
                    is_idle = false;
                    self.is_woken[worker] = true;
                }
            }
            while let Some(effect) = self.control.poll() {
                is_idle = false;
                match effect {
                    Effect::Respond { request, response } => {
                        let to = self.asked.remove(&request).expect("a request is answered once");
                        wishes.push(Wish::Answer { to, response });
                    }
                    Effect::Call { call, to, request, .. } => wishes.push(Wish::Call { call, to, request }),
                    Effect::Resolve { interface, address } => wishes.push(Wish::Resolve { interface, address }),
                    Effect::FanReport { .. } | Effect::Take(_) => {}
                }
            }
            for number in 0..self.workers.len() {
                while std::mem::take(&mut self.is_woken[number]) {
                    is_idle = false;
                    let sweep = self.workers[number].sweep(now);
                    self.is_woken[number] = !sweep.is_idle();
                    (0..self.workers.len())
                        .filter(|to| sweep.handed_to >> to & 1 == 1)
                        .for_each(|to| self.is_woken[to] = true);
                    let sent = self.workers[number].driver().take();
                    wishes.extend(sent.into_iter().map(|(_, frame)| Wish::Frame(frame)));
                }
            }
            for (worker, events) in self.events.iter_mut().enumerate() {
                is_idle &= self.control.on_events(worker, events, usize::MAX, now) == 0;
            }
            if is_idle {
                return wishes;
            }
        }
    }

    /// Packets dropped for this reason, in all nodes of the graph.
    pub(super) fn dropped(&self, reason: Reason) -> u64 {
        let counters = self.published.iter().flat_map(|published| published.nodes.iter());
        counters.map(|node| node.drops[reason as usize].load(Relaxed)).sum()
    }

    /// Packets that one worker gave another.
    pub(super) fn handed_off(&self) -> u64 {
        self.published.iter().map(|published| published.worker.handed_off.load(Relaxed)).sum()
    }

    /// Packets that came in, by worker.
    pub(super) fn received(&self) -> Vec<u64> {
        self.published.iter().map(|published| published.worker.received.load(Relaxed)).collect()
    }

    /// Slots in use, as the workers see it.
    pub(super) fn slots_used(&self) -> u64 {
        self.published.iter().map(|published| published.worker.slots_used.load(Relaxed)).sum()
    }

    /// Panics unless nothing is in use, neither in the control core's books nor in the workers' tables.
    pub(super) fn assert_all_free(&mut self, now: Nanos) {
        let name = &self.name;
        let summary = self.control.summary(now);
        for worker in &summary.workers {
            let pools =
                [worker.slots, worker.fans, worker.bindings, worker.icmp_ids, worker.tcp_ports, worker.udp_ports];
            assert!(pools.iter().all(|pool| pool.used == 0), "{name}: {worker:?}");
        }
        assert_eq!((summary.entries, summary.relays, summary.exits, summary.calls), (0, 0, 0, 0), "{name}");
        assert!(self.asked.is_empty(), "{name} has not answered every request");
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let shown = &self.published[index].worker;
            let used = [&shown.slots_used, &shown.bindings_used, &shown.waiting].map(|count| count.load(Relaxed));
            assert_eq!(used, [0; 3], "{name}: slots, bindings, waiting packets of worker {index}");
            // A worker at rest keeps one sweep's stock of frames for copies.
            assert_eq!(worker.driver().free_frames(), FRAMES as usize - PACKET_SLOTS, "{name}: frames");
        }
    }
}

/// A NIC with a queue for each worker and a key of its own. It has no eight zero bits in a row: there, eight bits of a port
/// would say nothing about the last one of the hash, and no port that differs in these alone would do.
fn nic(workers: u8, seed: u64) -> Rss {
    let mut random = Random::new(seed);
    let mut draw = || -> [u8; KEY_BYTES] { std::array::from_fn(|_| (random.next() >> 56) as u8) };
    let has_gap = |key: &[u8; KEY_BYTES]| {
        let bits: String = key.iter().map(|byte| format!("{byte:08b}")).collect();
        bits.contains("00000000")
    };
    let mut key = draw();
    while has_gap(&key) {
        key = draw();
    }
    let table = (0..128).map(|entry| entry % u16::from(workers)).collect();
    Rss::new(&key, table, Inputs::ALL).expect("key and table are there")
}

/// The node's address of IPv6, which servers see.
pub(super) fn address6_of(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).to_bits() | u128::from(address.to_bits()))
}

/// An exit's NAT: of IPv6, too.
fn nat(identity: &Identity) -> NatConfig {
    let (first, last) = (identity.nat_port_first, identity.nat_port_last);
    let outside = OutsideAddress6 { address: address6_of(identity.address), first, last };
    NatConfig { addresses6: vec![outside], nat64: Some(Prefix64::WELL_KNOWN), ..NatConfig::of(identity) }
}

/// The queue that the NIC chooses: by its rules, else by addresses and, of UDP and TCP, ports.
fn receive_queue(nic: &Rss, rules: &[Rule], frame: &[u8]) -> usize {
    let ip = &frame[ethernet::HEADER_BYTES..];
    let (protocol, source, destination, at): (_, IpAddr, IpAddr, _) = match ip4::parse(ip) {
        Ok(header) => (header.protocol, header.source.into(), header.destination.into(), header.header_length),
        Err(_) => {
            let header = ip6::parse(ip).expect("hosts send well-formed packets");
            (header.protocol, header.source.into(), header.destination.into(), header.header_length)
        }
    };
    let has_ports = matches!(protocol, ip4::TCP | ip4::UDP);
    let port = |offset| if has_ports { read_u16(ip, at + offset) } else { 0 };
    let tuple = Tuple { protocol, source: (source, port(0)), destination: (destination, port(2)) };
    let ruled = rules.iter().find(|rule| rule.has(&tuple)).map(|rule| usize::from(rule.queue));
    ruled.or_else(|| nic.queue(&tuple)).expect("it hashes all kinds of packets")
}
