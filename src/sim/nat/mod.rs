//! The NAT of a gateway, whole: control core and workers over the memory driver, on a virtual clock. The tests are by
//! RFC and named after its requirements; `docs/NAT.md` is their table, and `document` checks that it is in step. `model`
//! checks every packet of long random runs against a few maps.

mod document;
mod errors;
mod forwarded6;
mod full;
mod hairpin;
mod model;
mod pool;
mod rfc4787;
mod rfc5382;
mod rfc5508;
mod rfc6146;
mod rfc6888;
mod rfc7857;
mod shipped;
mod show;
mod soak;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    Nanos, SECOND,
    control::{Control, ControlConfig, Effect, KernelEvent, Summary},
    dataplane::{
        command::{Command, Event},
        driver::memory::MemoryDriver,
        exit_policy::ExitPolicy,
        forwarding::{Identity, Interface, Prefix, Route},
        gateway::{Gateway, OutsideAddress, Realm, StaticMapping},
        handoff,
        nat::{Endpoint, Filtering, NatConfig},
        published::Published,
        reason::Reason,
        testing::has_valid_checksums,
        testing6::has_valid_checksums6,
        worker::{Rings, Worker, WorkerConfig},
    },
    limits::{COMMAND_RING, EVENT_RING, PACKET_SLOTS, TICK},
    rpc::messages::Roles,
    wire::{ethernet, icmp, ip4, ip6, read_u16, read_u32, tcp, udp, write},
};

const FRAMES: u32 = 8192;

/// The gateway's outside addresses; the first is its own.
pub(super) const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 77)];
/// Hosts behind it.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(super) const OTHER_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
/// Hosts in front of it.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

const OUTSIDE_INTERFACE: u8 = 0;
const INSIDE_INTERFACE: u8 = 1;
const MACS: [ethernet::Mac; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// What is to be tried.
pub(super) struct Setup {
    pub(super) workers: u8,
    pub(super) bindings: u32,
    pub(super) addresses: usize,
    pub(super) ports: (u16, u16),
    pub(super) adjust: fn(&mut NatConfig),
    pub(super) exempt: Vec<Prefix>,
    pub(super) mappings: Vec<StaticMapping>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 1,
            bindings: 256,
            addresses: 1,
            ports: (1024, 65_535),
            adjust: |_| (),
            exempt: Vec::new(),
            mappings: Vec::new(),
        }
    }
}

/// A gateway.
pub(super) struct Nat {
    pub(super) control: Control,
    workers: Vec<Worker<MemoryDriver>>,
    commands: Vec<rtrb::Producer<Command>>,
    events: Vec<rtrb::Consumer<Event>>,
    published: Vec<Arc<Published>>,
    pub(super) now: Nanos,
    /// What the gateway's file says.
    file: Gateway,
    /// The control core hears and says nothing.
    pub(super) is_stalled: bool,
    /// The longest that the control core was busy with the events of one sweep.
    pub(super) busy_longest: Duration,
    out: Vec<Sent>,
    /// The MAC address that the last packet went to.
    pub(super) next_hop: ethernet::Mac,
}

/// A packet that the gateway sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) is_to_inside: bool,
    pub(super) packet: Vec<u8>,
}

impl Nat {
    pub(super) fn new() -> Self {
        Self::with(Setup::default())
    }

    /// A gateway whose NAT is configured otherwise.
    pub(super) fn adjusted(adjust: fn(&mut NatConfig)) -> Self {
        Self::with(Setup { adjust, ..Setup::default() })
    }

    pub(super) fn with(setup: Setup) -> Self {
        let identity = Identity {
            address: OUTSIDE[0],
            data_port: 1023,
            nat_port_first: setup.ports.0,
            nat_port_last: setup.ports.1,
            probe_key: [3; 16],
            workers: setup.workers,
        };
        let outside =
            |address: &Ipv4Addr| OutsideAddress { address: *address, first: setup.ports.0, last: setup.ports.1 };
        let addresses: Vec<OutsideAddress> = OUTSIDE[..setup.addresses].iter().map(outside).collect();
        let mut nat = NatConfig::of(&identity).with_gateway(&addresses);
        (setup.adjust)(&mut nat);
        let realms = vec![Realm::Outside, Realm::Inside];
        let (exempt, mappings) = (setup.exempt, in_order(setup.mappings));
        let addresses = nat.gateway.iter().map(|number| nat.addresses[usize::from(*number)]).collect();
        let addresses6 = nat.addresses6.clone();
        let file = Gateway { realms, addresses, addresses6, exempt, mappings, ..Gateway::default() };
        let interfaces = vec![
            Interface { index: 2, mac: MACS[0], mtu: 1500, is_up: true },
            Interface { index: 3, mac: MACS[1], mtu: 1500, is_up: true },
        ];
        let config = ControlConfig {
            name: "gateway".into(),
            identity,
            control: SocketAddrV4::new(OUTSIDE[0], 0),
            roles: Roles::NONE,
            slots: 1,
            fans: 1,
            bindings: setup.bindings,
            bindings_a_session: setup.bindings,
            nat: nat.clone(),
            interfaces,
            policy: ExitPolicy::default(),
            gateway: Some(file.clone()),
            boot_epoch: 1,
            seed: [7; 32],
        };
        let now = SECOND;
        let published: Vec<_> =
            (0..setup.workers).map(|_| Arc::new(Published::new(1, setup.bindings as usize))).collect();
        let mut gateway = Self {
            control: Control::new(config, published.clone(), now),
            workers: Vec::new(),
            commands: Vec::new(),
            events: Vec::new(),
            published,
            now,
            file,
            is_stalled: false,
            busy_longest: Duration::ZERO,
            out: Vec::new(),
            next_hop: [0; 6],
        };
        for (index, handoff) in handoff::mesh(usize::from(setup.workers)).into_iter().enumerate() {
            let (commands, command_consumer) = rtrb::RingBuffer::new(COMMAND_RING);
            let (event_producer, events) = rtrb::RingBuffer::new(EVENT_RING);
            let config = WorkerConfig {
                index,
                identity,
                fans: 1,
                bindings: setup.bindings,
                nat: nat.clone(),
                hash_key: [9; 16],
                clock: quanta::Clock::mock().0,
            };
            let rings = Rings { commands: command_consumer, events: event_producer, handoff };
            let published = gateway.published[index].clone();
            gateway.workers.push(Worker::new(config, MemoryDriver::new(FRAMES), rings, published));
            gateway.commands.push(commands);
            gateway.events.push(events);
        }
        let route = |address: [u8; 4], length, interface| Route {
            prefix: Prefix::new(address.into(), length),
            gateway: None,
            interface,
            metric: 0,
        };
        let routes = vec![route([0, 0, 0, 0], 0, OUTSIDE_INTERFACE), route([10, 0, 0, 0], 8, INSIDE_INTERFACE)];
        gateway.control.on_kernel(KernelEvent::Routes(routes), now);
        gateway.control.on_kernel(KernelEvent::Routes6(rfc6146::routes()), now);
        gateway.settle();
        gateway
    }

    /// A host behind the gateway sends a packet; what goes out. Unknown next hops are resolved at once.
    pub(super) fn send_inside(&mut self, packet: &[u8]) -> Vec<Sent> {
        self.put(INSIDE_INTERFACE, packet);
        self.settle()
    }

    /// A host in front of the gateway sends a packet; what goes out.
    pub(super) fn send_outside(&mut self, packet: &[u8]) -> Vec<Sent> {
        self.put(OUTSIDE_INTERFACE, packet);
        self.settle()
    }

    /// The same by a receive queue of one's choice.
    pub(super) fn send_inside_by(&mut self, queue: usize, packet: &[u8]) -> Vec<Sent> {
        self.put_by(queue, INSIDE_INTERFACE, packet);
        self.settle()
    }

    /// The same from outside.
    pub(super) fn send_outside_by(&mut self, queue: usize, packet: &[u8]) -> Vec<Sent> {
        self.put_by(queue, OUTSIDE_INTERFACE, packet);
        self.settle()
    }

    /// The NIC spreads packets by addresses alone.
    fn put(&mut self, interface: u8, packet: &[u8]) {
        let sum = read_u32(packet, ip4::SOURCE).wrapping_add(read_u32(packet, ip4::DESTINATION));
        let queue = (sum.wrapping_mul(0x9e37_79b1) >> 16) as usize % self.workers.len();
        self.put_by(queue, interface, packet);
    }

    fn put_by(&mut self, queue: usize, interface: u8, packet: &[u8]) {
        let mut frame = vec![0; ethernet::HEADER_BYTES];
        let ether_type = if is_ip6(packet) { ethernet::TYPE_IP6 } else { ethernet::TYPE_IP4 };
        ethernet::emit_as(&mut frame, MACS[usize::from(interface)], [2, 0, 0, 0, 9, 9], ether_type);
        frame.extend_from_slice(packet);
        self.workers[queue].driver().put(interface, &frame);
    }

    /// Time passes, with as many ticks as there are in it; what goes out meanwhile.
    pub(super) fn pass(&mut self, time: Nanos) -> Vec<Sent> {
        let end = self.now + time;
        let mut out = Vec::new();
        while self.now < end {
            self.now = (self.now + TICK).min(end);
            if !self.is_stalled {
                self.control.on_tick(self.now);
            }
            out.extend(self.settle());
        }
        out
    }

    /// Lets control core and workers do all there is to do at this moment; what went out, every checksum right.
    pub(super) fn settle(&mut self) -> Vec<Sent> {
        let out = self.settle_unchecked();
        for Sent { packet, .. } in &out {
            if is_ip6(packet) {
                let is_fragment = ip6::parse(packet).expect("a packet that parses").is_fragment();
                assert!(is_fragment || has_valid_checksums6(packet), "a wrong checksum: {packet:02x?}");
                continue;
            }
            let header = ip4::parse(packet).expect("a packet that parses");
            let has_none = header.is_fragment()
                || header.protocol == ip4::UDP && read_u16(packet, header.header_length + udp::CHECKSUM) == 0;
            assert!(has_none || has_valid_checksums(packet), "a wrong checksum: {packet:02x?}");
        }
        out
    }

    fn settle_unchecked(&mut self) -> Vec<Sent> {
        loop {
            let mut is_idle = true;
            if !self.is_stalled {
                for (worker, ring) in self.commands.iter_mut().enumerate() {
                    is_idle &= self.control.write_commands(worker, ring) == 0;
                }
                while let Some(effect) = self.control.poll() {
                    is_idle = false;
                    if let Effect::Resolve { interface, address } = effect {
                        let mac = mac_of(address);
                        self.control.on_kernel(KernelEvent::NeighbourUp { interface, address, mac }, self.now);
                    }
                }
            }
            for worker in &mut self.workers {
                is_idle &= worker.sweep(self.now).is_idle();
                for (interface, frame) in worker.driver().take() {
                    self.next_hop.copy_from_slice(&frame[..6]);
                    let packet = frame[ethernet::HEADER_BYTES..].to_vec();
                    self.out.push(Sent { is_to_inside: interface == INSIDE_INTERFACE, packet });
                }
            }
            let start = Instant::now();
            for (worker, events) in self.events.iter_mut().enumerate() {
                if !self.is_stalled && self.control.on_events(worker, events, usize::MAX, self.now) > 0 {
                    is_idle = false;
                }
            }
            self.busy_longest = self.busy_longest.max(start.elapsed());
            if is_idle {
                return std::mem::take(&mut self.out);
            }
        }
    }

    /// The file is read anew: these ports are forwarded.
    pub(super) fn set_mappings(&mut self, mappings: Vec<StaticMapping>) {
        self.file.mappings = in_order(mappings);
        self.reload();
    }

    /// The file is read anew: hosts are given these addresses. What is said about it.
    pub(super) fn set_addresses(&mut self, addresses: &[Ipv4Addr]) -> Result<(), String> {
        let OutsideAddress { first, last, .. } = self.file.addresses[0];
        let addresses = addresses.iter().map(|address| OutsideAddress { address: *address, first, last }).collect();
        let file = Gateway { addresses, ..self.file.clone() };
        self.control.set_gateway(file.clone(), self.now).map_err(|error| error.to_string())?;
        self.file = file;
        self.settle();
        Ok(())
    }

    fn reload(&mut self) {
        self.control.set_gateway(self.file.clone(), self.now).expect("the pool can be so");
        self.settle();
    }

    /// The way to the servers is by this router.
    pub(super) fn route_by(&mut self, gateway: Ipv4Addr) {
        let route = |prefix, gateway, interface| Route { prefix, gateway, interface, metric: 0 };
        let routes = vec![
            route(Prefix::new([0, 0, 0, 0].into(), 0), Some(gateway), OUTSIDE_INTERFACE),
            route(Prefix::new([192, 0, 2, 0].into(), 24), None, OUTSIDE_INTERFACE),
            route(Prefix::new([10, 0, 0, 0].into(), 8), None, INSIDE_INTERFACE),
        ];
        self.control.on_kernel(KernelEvent::Routes(routes), self.now);
        self.settle();
    }

    /// The way to the servers is gone.
    pub(super) fn lose_default_route(&mut self) {
        let inside = Route {
            prefix: Prefix::new([10, 0, 0, 0].into(), 8),
            gateway: None,
            interface: INSIDE_INTERFACE,
            metric: 0,
        };
        self.control.on_kernel(KernelEvent::Routes(vec![inside]), self.now);
        self.settle();
    }

    /// Sends from inside what must go out, and returns how the server sees its sender.
    #[track_caller]
    pub(super) fn seen(&mut self, packet: &[u8]) -> Endpoint {
        let out = self.send_inside(packet);
        assert!(out.len() == 1 && !out[0].is_to_inside, "one packet goes out: {out:02x?}");
        source(&out[0].packet)
    }

    /// True where a packet from outside reaches a host.
    pub(super) fn is_let_in(&mut self, packet: &[u8]) -> bool {
        self.send_outside(packet).iter().any(|sent| sent.is_to_inside)
    }

    /// Packets dropped for this reason.
    pub(super) fn dropped(&self, reason: Reason) -> u64 {
        let nodes = self.published.iter().flat_map(|published| published.nodes.iter());
        nodes.map(|node| node.drops[reason as usize].load(Relaxed)).sum()
    }

    /// Bindings in use, as the workers count them.
    pub(super) fn bindings(&self) -> u64 {
        self.published.iter().map(|published| published.worker.bindings_used.load(Relaxed)).sum()
    }

    pub(super) fn summary(&self) -> Summary {
        self.control.summary(self.now)
    }

    /// Panics unless no binding, port, waiting packet or frame is in use.
    pub(super) fn assert_all_free(&mut self) {
        for worker in &self.summary().workers {
            let pools = [worker.bindings, worker.icmp_ids, worker.tcp_ports, worker.udp_ports];
            assert!(pools.iter().all(|pool| pool.used == 0), "{worker:?}");
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let shown = &self.published[index].worker;
            assert_eq!([&shown.bindings_used, &shown.waiting].map(|count| count.load(Relaxed)), [0; 2]);
            assert_eq!(worker.driver().free_frames(), FRAMES as usize - PACKET_SLOTS, "worker {index} lost frames");
        }
    }
}

/// As a node's file is read.
fn in_order(mut mappings: Vec<StaticMapping>) -> Vec<StaticMapping> {
    mappings.sort_unstable_by_key(StaticMapping::place);
    mappings
}

/// Numbers that follow from a seed (xorshift), which must not be zero.
pub(super) struct Draws(pub(super) u64);

impl Draws {
    /// The next one, below `below`.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// The MAC address of a neighbour.
pub(super) fn mac_of(address: IpAddr) -> ethernet::Mac {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    [2, 0, 0, 0, 9, last]
}

fn is_ip6(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
}

/// Sender and port (or identifier) of a packet.
pub(super) fn source(packet: &[u8]) -> Endpoint {
    end(packet, ip4::SOURCE, udp::SOURCE)
}

/// Receiver and port (or identifier) of a packet.
pub(super) fn destination(packet: &[u8]) -> Endpoint {
    end(packet, ip4::DESTINATION, udp::DESTINATION)
}

fn end(packet: &[u8], address: usize, port: usize) -> Endpoint {
    let header = ip4::parse(packet).expect("a packet that parses");
    let port = if header.protocol == ip4::ICMP { icmp::IDENTIFIER } else { port };
    (read_u32(packet, address).into(), read_u16(packet, header.header_length + port))
}

/// A TCP segment with these numbers.
pub(super) fn segment(from: Endpoint, to: Endpoint, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    let mut segment = vec![0u8; tcp::HEADER_BYTES];
    segment[12] = 5 << 4;
    segment[tcp::FLAGS] = flags;
    write(&mut segment, tcp::SOURCE, &from.1.to_be_bytes());
    write(&mut segment, tcp::DESTINATION, &to.1.to_be_bytes());
    write(&mut segment, tcp::SEQUENCE, &sequence.to_be_bytes());
    write(&mut segment, tcp::ACKNOWLEDGEMENT, &acknowledgement.to_be_bytes());
    write(&mut segment, tcp::WINDOW, &1000u16.to_be_bytes());
    crate::dataplane::testing::packet(from.0, to.0, ip4::TCP, &segment)
}

/// An ICMP echo message.
pub(super) fn echo(kind: u8, from: Ipv4Addr, to: Ipv4Addr, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    crate::dataplane::testing::icmp_packet(from, to, kind, 0, &[high, low, 0, 1, 7, 7])
}

/// An ICMP error about `quoted`, to `to`; what stands in the second word is `word`.
pub(super) fn error(from: Ipv4Addr, to: Ipv4Addr, kind: u8, code: u8, word: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let rest: Vec<u8> = word.into_iter().chain(quoted.iter().copied()).collect();
    crate::dataplane::testing::icmp_packet(from, to, kind, code, &rest)
}

/// The packet in fragments with at most `size` bytes (a multiple of eight) of payload each.
pub(super) fn fragments(packet: &[u8], size: usize, identification: u16) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(ip4::HEADER_BYTES);
    let last = payload.len().div_ceil(size) - 1;
    let cut = |(number, part): (usize, &[u8])| {
        let mut fragment = [header, part].concat();
        let more = if number == last { 0 } else { ip4::MORE_FRAGMENTS };
        let length = fragment.len() as u16;
        write(&mut fragment, ip4::TOTAL_LENGTH, &length.to_be_bytes());
        write(&mut fragment, ip4::IDENTIFICATION, &identification.to_be_bytes());
        write(&mut fragment, ip4::FRAGMENT, &(more | (number * size / 8) as u16).to_be_bytes());
        mend(&mut fragment);
        fragment
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// The packet that fragments were cut from, with valid checksums; they need not be in order, but none may be missing.
pub(super) fn reassembled(sent: &[Sent]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = sent.iter().map(|sent| &sent.packet[..]).collect();
    parts.sort_by_key(|part| read_u16(part, ip4::FRAGMENT) & ip4::OFFSET_MASK);
    let mut whole = parts[0][..ip4::HEADER_BYTES].to_vec();
    for part in parts {
        let start = usize::from(read_u16(part, ip4::FRAGMENT) & ip4::OFFSET_MASK) * 8;
        assert_eq!(start, whole.len() - ip4::HEADER_BYTES, "a part is missing or comes twice");
        whole.extend_from_slice(&part[ip4::HEADER_BYTES..]);
    }
    let length = whole.len() as u16;
    write(&mut whole, ip4::TOTAL_LENGTH, &length.to_be_bytes());
    write(&mut whole, ip4::FRAGMENT, &[0, 0]);
    mend(&mut whole);
    assert!(has_valid_checksums(&whole), "a wrong checksum: {whole:02x?}");
    whole
}

/// Writes the header's checksum anew.
pub(super) fn mend(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 0xf) * 4;
    write(packet, ip4::CHECKSUM, &[0, 0]);
    let field = crate::wire::checksum::of(&packet[..header]);
    write(packet, ip4::CHECKSUM, &field.to_be_bytes());
}
