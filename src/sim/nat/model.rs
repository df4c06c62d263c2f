//! A plain NAT of a few maps, and long random runs in which it checks every packet of the real one: a known flow is
//! rewritten exactly and nothing else of the packet changes; what nothing lets in is dropped, what finds no room is
//! refused, and both leave the table as it was; a binding lives as long as its timer says, to a tick.
//!
//! A run is made from a seed. `STARNET_MODEL_SEED` replays one, `STARNET_MODEL_STEPS` makes runs longer.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::{
    dataplane::testing::{icmp_packet, udp_packet},
    wire::{
        checksum,
        tcp::{ACK, FIN, RST, SYN},
    },
};

/// First numbers of client and server.
const C: u32 = 1000;
const S: u32 = 9000;
/// Stands for a reset with a number out of any window.
const FORGED: u8 = 0xff;
const QUARANTINE: Nanos = 120 * SECOND;
/// A binding is gone this long after its time at the latest: its last packet may have come late in a tick.
const LATE: Nanos = 3 * TICK;
const STEPS: u64 = 500;

/// What a binding is found by: protocol, inside, and in endpoint-dependent mode the server.
type Key = (u8, Endpoint, Option<Endpoint>);

#[derive(Clone, Copy, Debug)]
struct Flow {
    protocol: u8,
    inside: Endpoint,
    remote: Endpoint,
}

/// The one connection of a TCP binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Connection {
    Opening,
    Open,
    HalfClosed { by_host: bool },
    Over,
}

#[derive(Clone, Debug)]
struct Held {
    outside: Endpoint,
    /// When it was last kept alive.
    used: Nanos,
    peers: HashSet<Endpoint>,
    connection: Connection,
    /// A forwarded port: it is there as long as the file has it.
    is_static: bool,
}

struct Model {
    nat: Nat,
    workers: u8,
    capacity: usize,
    ports: (u16, u16),
    config: NatConfig,
    held: HashMap<Key, Held>,
    /// When the ports of bindings that are gone were given back, at the earliest.
    resting: HashMap<(u8, Endpoint), Nanos>,
    draws: Draws,
    /// Of the next packet that is fragmented.
    identification: u16,
}

impl Model {
    fn new(setup: Setup, seed: u64) -> Self {
        let outside =
            |address: &Ipv4Addr| OutsideAddress { address: *address, first: setup.ports.0, last: setup.ports.1 };
        let mut config = NatConfig::new(outside(&OUTSIDE[0]));
        (setup.adjust)(&mut config);
        let end = |(address, port)| match address {
            IpAddr::V4(address) => (address, port),
            IpAddr::V6(_) => panic!("the model knows IPv4"),
        };
        let forwarded = |mapping: &StaticMapping| {
            let (outside, peers, connection) = (end(mapping.outside), HashSet::new(), Connection::Opening);
            let held = Held { outside, used: 0, peers, connection, is_static: true };
            ((mapping.protocol, end(mapping.inside), None), held)
        };
        Self {
            workers: setup.workers,
            capacity: setup.bindings as usize,
            ports: setup.ports,
            config,
            held: setup.mappings.iter().map(forwarded).collect(),
            resting: HashMap::new(),
            draws: Draws(seed | 1),
            identification: 0,
            nat: Nat::with(setup),
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.draws.below(below)
    }

    fn draw_flow(&mut self) -> Flow {
        let inside = (Ipv4Addr::new(10, 0, 0, 2 + self.draw(6) as u8), 5000 + self.draw(12) as u16);
        let protocol = [ip4::UDP, ip4::TCP, ip4::ICMP][self.draw(3) as usize];
        // Each TCP port has one connection, so that its state is plain.
        let server = if protocol == ip4::TCP { u64::from(inside.1 % 4) } else { self.draw(4) };
        let port = if protocol == ip4::ICMP { 0 } else { 53 + (server % 2) as u16 };
        Flow { protocol, inside, remote: (Ipv4Addr::new(198, 51, 100, 1 + (server / 2) as u8), port) }
    }

    fn key(&self, flow: Flow) -> Key {
        let for_all = (flow.protocol, flow.inside, None);
        // A forwarded port is for every server, whatever the others are for.
        let is_for_one = self.config.is_endpoint_dependent && !self.held.contains_key(&for_all);
        (flow.protocol, flow.inside, is_for_one.then_some(flow.remote))
    }

    fn limit(&self, key: &Key, held: &Held) -> Nanos {
        match (key.0, held.connection) {
            _ if held.is_static => Nanos::MAX / 2,
            (ip4::UDP, _) => self.config.timers.udp,
            (ip4::ICMP, _) => self.config.timers.icmp,
            (_, Connection::Opening) => self.config.timers.tcp_opening,
            (_, Connection::Open | Connection::HalfClosed { .. }) => self.config.timers.tcp_established,
            (_, Connection::Over) => self.config.timers.tcp_closing,
        }
    }

    fn is_surely_alive(&self, key: &Key, held: &Held) -> bool {
        self.nat.now <= held.used + self.limit(key, held)
    }

    /// Time passes; forgets what is gone, and compares the tables. Only refusals of held SYNs go out meanwhile.
    fn pass(&mut self, time: Nanos) {
        for sent in self.nat.pass(time) {
            assert!(!sent.is_to_inside && sent.packet[20] == icmp::UNREACHABLE, "from nowhere: {sent:02x?}");
        }
        let gone = |(key, held): (&Key, &Held)| self.nat.now > held.used + self.limit(key, held) + LATE;
        let gone: Vec<Key> = self.held.iter().filter(|&(key, held)| gone((key, held))).map(|(key, _)| *key).collect();
        for key in gone {
            let held = &self.held[&key];
            self.resting.insert((key.0, held.outside), held.used + self.limit(&key, held));
            self.held.remove(&key);
        }
        self.compare();
    }

    /// No live binding is gone, and none that should be is there.
    fn compare(&self) {
        let sure = self.held.iter().filter(|(key, held)| self.is_surely_alive(key, held)).count();
        let used = self.nat.bindings() as usize;
        assert!(
            (sure..=self.held.len()).contains(&used),
            "{used} bindings, the model has {sure} to {}",
            self.held.len()
        );
    }

    /// Waits until there is no doubt whether this binding still lives.
    fn wait_until_sure(&mut self, key: &Key) {
        while self.held.get(key).is_some_and(|held| !self.is_surely_alive(key, held)) {
            self.pass(TICK);
        }
    }

    fn step(&mut self) {
        let ticks = if self.draw(60) == 0 { 1 + self.draw(4000) } else { 1 + self.draw(8) };
        self.pass(ticks * TICK);
        let flow = self.draw_flow();
        self.wait_until_sure(&self.key(flow));
        match self.draw(12) {
            0..=4 => self.go_out(flow),
            5 | 6 => self.come_in(flow),
            7 => self.err(flow),
            8 => self.expire_on_the_way(flow),
            9 => self.go_out_in_fragments(flow),
            10 => self.come_in_in_fragments(flow),
            _ => self.turn_back(flow),
        }
        self.compare();
    }

    /// A host sends.
    fn go_out(&mut self, flow: Flow) {
        let key = self.key(flow);
        let known = self.held.get(&key).cloned();
        let mut flags = match known.as_ref().map(|held| held.connection) {
            None | Some(Connection::Opening) => SYN,
            Some(Connection::Open | Connection::HalfClosed { .. }) => ACK,
            Some(Connection::Over) if flow.protocol == ip4::TCP => return,
            Some(Connection::Over) => ACK,
        };
        if known.is_none() && self.draw(8) == 0 {
            flags = ACK;
        }
        let mut sent = packet_out(flow, flags);
        if flow.protocol == ip4::UDP && self.draw(4) == 0 {
            write(&mut sent, 20 + udp::CHECKSUM, &[0, 0]);
        }
        let out = self.nat.send_inside(&sent);
        if known.is_none() && flow.protocol == ip4::TCP && flags != SYN {
            return assert_eq!(out, [], "a connection is made by a SYN");
        }
        let outside = match &known {
            Some(held) => held.outside,
            None => match self.created(flow, &sent, &out) {
                Some(outside) => outside,
                None => return,
            },
        };
        let expected = Sent { is_to_inside: false, packet: rewritten(&sent, Some(outside), None) };
        assert_eq!(out, [expected], "{flow:?}, known: {known:?}");
        let now = self.nat.now;
        let (peers, connection) = (HashSet::new(), Connection::Opening);
        let new = Held { outside, used: now, peers, connection, is_static: false };
        let held = self.held.entry(key).or_insert(new);
        held.used = now;
        held.peers.insert(flow.remote);
        if flow.protocol == ip4::TCP {
            self.follow_connection(flow);
        }
    }

    /// After a SYN, or in an open connection: what may come next.
    fn follow_connection(&mut self, flow: Flow) {
        let key = self.key(flow);
        let (outside, connection) = (self.held[&key].outside, self.held[&key].connection);
        let half_closed = |by_host| Connection::HalfClosed { by_host };
        // Who sends (the host: true), and its flags.
        let (segments, next): (&[(bool, u8)], _) = match (connection, self.draw(10)) {
            (Connection::Opening, 0..=3) => (&[(false, SYN | ACK), (true, ACK)], Connection::Open),
            // Both ends open at the same time (RFC 9293 figure 7).
            (Connection::Opening, 4) => {
                (&[(false, SYN), (true, SYN | ACK), (false, SYN | ACK), (true, ACK)], Connection::Open)
            }
            (Connection::Open, 0) => (&[(true, FIN | ACK), (false, FIN | ACK)], Connection::Over),
            (Connection::Open, 1) => (&[(true, FIN | ACK)], half_closed(true)),
            (Connection::Open, 2) => (&[(false, FIN | ACK)], half_closed(false)),
            (Connection::HalfClosed { by_host: true }, 0..=2) => (&[(false, FIN | ACK)], Connection::Over),
            (Connection::HalfClosed { by_host: false }, 0..=2) => (&[(true, FIN | ACK)], Connection::Over),
            (Connection::Open | Connection::HalfClosed { .. }, 3) => (&[(true, RST)], Connection::Over),
            (Connection::Open | Connection::HalfClosed { .. }, 4) => (&[(false, RST)], Connection::Over),
            // A reset that none of the two can have sent goes through and ends nothing.
            (Connection::Open | Connection::HalfClosed { .. }, 5) => (&[(false, FORGED)], connection),
            _ => return,
        };
        for &(is_outward, flags) in segments {
            if is_outward {
                let sent = packet_out(flow, flags);
                let packet = rewritten(&sent, Some(outside), None);
                assert_eq!(self.nat.send_inside(&sent), [Sent { is_to_inside: false, packet }]);
            } else {
                let sent = packet_in(flow.protocol, flow.remote, outside, flags);
                let packet = rewritten(&sent, None, Some(flow.inside));
                assert_eq!(self.nat.send_outside(&sent), [Sent { is_to_inside: true, packet }]);
            }
        }
        self.held.get_mut(&key).expect("it was there above").connection = next;
    }

    /// The first packet of a flow: how it is seen outside, by a port that is nobody else's. `None` where it was refused,
    /// which it must be only where there is no room.
    fn created(&mut self, flow: Flow, sent: &[u8], out: &[Sent]) -> Option<Endpoint> {
        let (now, is_shared) = (self.nat.now, self.config.is_endpoint_dependent);
        let all = usize::from(self.ports.1 - self.ports.0) + 1;
        let taken = self.held.keys().filter(|key| key.0 == flow.protocol).count();
        let is_rest = |&(&(protocol, _), &since): &(&(u8, Endpoint), &Nanos)| {
            protocol == flow.protocol && now <= since + QUARANTINE + SECOND
        };
        let resting = self.resting.iter().filter(is_rest).count();
        let of_host = |key: &&Key| key.1.0 == flow.inside.0;
        let live = self.held.iter().filter(|(key, held)| self.is_surely_alive(key, held)).map(|(key, _)| key);
        let (bindings, ports) = (self.config.bindings_a_host as usize, self.config.ports_a_host as usize);
        let is_over = |keys: Vec<&Key>| {
            keys.len() >= bindings || keys.iter().filter(|key| key.0 == flow.protocol).count() >= ports
        };
        let is_full = |count| self.workers == 1 && count >= self.capacity;
        let may_refuse = is_full(self.held.len())
            || self.workers == 1 && !is_shared && taken + resting >= all
            || is_over(self.held.keys().filter(of_host).collect())
            || self.blocks(flow.protocol).len() >= self.blocks_of(all);
        let must_refuse = is_full(live.clone().count()) || is_over(live.filter(of_host).collect());
        let [Sent { is_to_inside, packet }] = out else { panic!("{flow:?}: one answer, not {out:02x?}") };
        if *is_to_inside {
            assert!(may_refuse, "{flow:?} is refused, though there is room");
            assert_eq!(packet[20..22], [icmp::UNREACHABLE, icmp::CODE_PROHIBITED]);
            assert_eq!(packet[28..], *sent, "the refusal quotes what was sent");
            return None;
        }
        assert!(!must_refuse, "{flow:?}: a table too full");
        let outside = source(packet);
        assert!((self.ports.0..=self.ports.1).contains(&outside.1) && OUTSIDE.contains(&outside.0), "{outside:?}");
        let key = self.key(flow);
        for (other, held) in &self.held {
            let is_same_place = (other.0, other.2, held.outside) == (key.0, key.2, outside);
            assert!(!is_same_place, "{flow:?}: port {outside:?} is {other:?}'s");
            let is_same_host = other.1.0 == flow.inside.0 && self.is_surely_alive(other, held);
            assert!(!is_same_host || held.outside.0 == outside.0, "{flow:?}: a host has one outside address");
        }
        let block = self.block_of(outside);
        let owner = self.held.iter().find(|(other, held)| {
            other.0 == flow.protocol && self.config.port_block > 0 && self.block_of(held.outside) == block
        });
        assert!(owner.is_none_or(|(other, _)| other.1.0 == flow.inside.0), "{flow:?}: in a block of {owner:?}");
        if let Some(since) = self.resting.get(&(flow.protocol, outside)).filter(|_| !is_shared) {
            assert!(now > since + QUARANTINE - TICK, "{flow:?}: port {outside:?} rests");
        }
        Some(outside)
    }

    /// The block of ports that a port is in.
    fn block_of(&self, outside: Endpoint) -> (Ipv4Addr, u16) {
        (outside.0, (outside.1 - self.ports.0.min(outside.1)) / self.config.port_block.max(1))
    }

    /// Blocks that are somebody's, or may rest.
    fn blocks(&self, protocol: u8) -> HashSet<(Ipv4Addr, u16)> {
        let held = self.held.iter().filter(|(key, _)| key.0 == protocol).map(|(_, held)| held.outside);
        let is_rest = |&(_, since): &(&(u8, Endpoint), &Nanos)| self.nat.now <= since + QUARANTINE + SECOND;
        let resting = self.resting.iter().filter(is_rest).map(|((of, outside), _)| (*of, *outside));
        let resting = resting.filter(|(of, _)| *of == protocol).map(|(_, outside)| outside);
        held.chain(resting).map(|outside| self.block_of(outside)).collect()
    }

    /// How many blocks there are in so many ports; where there are none, more than can be in use.
    fn blocks_of(&self, ports: usize) -> usize {
        if self.config.port_block == 0 { usize::MAX } else { ports / usize::from(self.config.port_block) }
    }

    /// The datagram in fragments, in no order.
    fn in_fragments(&mut self, from: Endpoint, to: Endpoint) -> (Vec<u8>, Vec<Vec<u8>>) {
        self.identification = self.identification.wrapping_add(1);
        let length = 200 + self.draw(1500) as usize;
        let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let mut whole = udp_packet(from, to, &payload);
        write(&mut whole, ip4::IDENTIFICATION, &self.identification.to_be_bytes());
        write(&mut whole, ip4::FRAGMENT, &[0, 0]);
        mend(&mut whole);
        let size = 8 * (10 + self.draw(60) as usize);
        let mut parts = fragments(&whole, size, self.identification);
        for at in (1..parts.len()).rev() {
            let other = self.draw(at as u64 + 1) as usize;
            parts.swap(at, other);
        }
        (whole, parts)
    }

    /// A host of a flow that there is sends what is too big for one packet.
    fn go_out_in_fragments(&mut self, flow: Flow) {
        let Some(outside) = self.held.get(&self.key(flow)).map(|held| held.outside) else { return };
        if flow.protocol != ip4::UDP {
            return;
        }
        let (whole, parts) = self.in_fragments(flow.inside, flow.remote);
        let out: Vec<Sent> = parts.iter().flat_map(|part| self.nat.send_inside(part)).collect();
        assert!(out.len() == parts.len() && out.iter().all(|sent| !sent.is_to_inside), "{flow:?}: {out:02x?}");
        assert_eq!(reassembled(&out), rewritten(&whole, Some(outside), None), "{flow:?}");
        let (key, now) = (self.key(flow), self.nat.now);
        let held = self.held.get_mut(&key).expect("it was there above");
        held.used = now;
        held.peers.insert(flow.remote);
    }

    /// A server does.
    fn come_in_in_fragments(&mut self, flow: Flow) {
        let Some(held) = self.held.get(&self.key(flow)).filter(|_| flow.protocol == ip4::UDP).cloned() else { return };
        let (whole, parts) = self.in_fragments(flow.remote, held.outside);
        let out: Vec<Sent> = parts.iter().flat_map(|part| self.nat.send_outside(part)).collect();
        if !self.is_let_in(&held, flow.remote) {
            return assert_eq!(out, [], "{flow:?}: {held:?}");
        }
        assert!(out.len() == parts.len() && out.iter().all(|sent| sent.is_to_inside), "{flow:?}: {out:02x?}");
        assert_eq!(reassembled(&out), rewritten(&whole, None, Some(flow.inside)), "{flow:?}");
    }

    /// Somebody outside sends: a server a host spoke to, another, or to a port that is nobody's.
    fn come_in(&mut self, flow: Flow) {
        let key = self.key(flow);
        let Some(held) = self.held.get(&key).cloned() else { return self.come_in_to_nobody(flow) };
        let is_open = matches!(held.connection, Connection::Open | Connection::HalfClosed { .. });
        if flow.protocol == ip4::TCP && !is_open {
            return;
        }
        let is_let_in = self.is_let_in(&held, flow.remote);
        let sent = packet_in(flow.protocol, flow.remote, held.outside, ACK);
        let packet = rewritten(&sent, None, Some(flow.inside));
        let expected = if is_let_in { vec![Sent { is_to_inside: true, packet }] } else { Vec::new() };
        assert_eq!(self.nat.send_outside(&sent), expected, "{flow:?}: {held:?}");
    }

    fn is_let_in(&self, held: &Held, remote: Endpoint) -> bool {
        match self.config.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => held.peers.iter().any(|peer| peer.0 == remote.0),
            Filtering::AddressAndPortDependent => held.peers.contains(&remote),
        }
    }

    fn come_in_to_nobody(&mut self, flow: Flow) {
        let port = self.ports.0 + self.draw(u64::from(self.ports.1 - self.ports.0) + 1) as u16;
        let to = (OUTSIDE[0], port);
        if self.held.iter().any(|(key, held)| key.0 == flow.protocol && held.outside == to) {
            return;
        }
        let flags = [SYN, ACK][self.draw(2) as usize];
        assert_eq!(self.nat.send_outside(&packet_in(flow.protocol, flow.remote, to, flags)), [], "to nobody");
    }

    /// A router reports an error about what a host sent: the host learns of it, and of no binding the life changes.
    fn err(&mut self, flow: Flow) {
        let Some(held) = self.held.get(&self.key(flow)).cloned() else { return };
        if !held.peers.contains(&flow.remote) {
            return;
        }
        let original = packet_out(flow, ACK);
        let seen = rewritten(&original, Some(held.outside), None);
        let report = |to, quoted: &[u8]| error(ROUTER, to, icmp::UNREACHABLE, 1, [0; 4], quoted);
        let mut quoted = original;
        quoted[ip4::TTL] -= 1;
        write_checksum(&mut quoted, ip4::CHECKSUM, 0..20, 0);
        let packet = rewritten(&report(flow.inside.0, &quoted), None, None);
        let out = self.nat.send_outside(&report(held.outside.0, &seen));
        assert_eq!(out, [Sent { is_to_inside: true, packet }], "{flow:?}");
    }

    /// A packet whose time is over: the host is told, and no binding is made or kept alive.
    fn expire_on_the_way(&mut self, flow: Flow) {
        let mut sent = packet_out(flow, SYN);
        sent[ip4::TTL] = 1;
        write_checksum(&mut sent, ip4::CHECKSUM, 0..20, 0);
        let out = self.nat.send_inside(&sent);
        let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("{flow:?}: {out:02x?}") };
        assert_eq!((packet[20], &packet[28..]), (icmp::TIME_EXCEEDED, &sent[..]));
    }

    /// A host sends to another by its outside address.
    fn turn_back(&mut self, flow: Flow) {
        let is_plain = self.config.filtering == Filtering::EndpointIndependent && !self.config.is_endpoint_dependent;
        let own = self.key(flow);
        let Some(held) = self.held.get(&own).filter(|_| is_plain && flow.protocol == ip4::UDP).cloned() else { return };
        let others = self
            .held
            .iter()
            .filter(|(key, other)| key.0 == ip4::UDP && **key != own && self.is_surely_alive(key, other));
        let Some((inside, to)) = others.map(|(key, other)| (key.1, other.outside)).min() else { return };
        let sent = udp_packet(flow.inside, to, b"payload");
        let packet = rewritten(&sent, Some(held.outside), Some(inside));
        assert_eq!(self.nat.send_inside(&sent), [Sent { is_to_inside: true, packet }], "{flow:?} to {inside:?}");
        self.held.get_mut(&own).expect("it was there above").used = self.nat.now;
    }
}

fn packet_out(flow: Flow, flags: u8) -> Vec<u8> {
    match flow.protocol {
        ip4::UDP => udp_packet(flow.inside, flow.remote, b"payload"),
        ip4::ICMP => echo(icmp::ECHO_REQUEST, flow.inside.0, flow.remote.0, flow.inside.1),
        _ => {
            let (sequence, acknowledgement) = match flags {
                SYN => (C, 0),
                _ if flags & SYN != 0 => (C, S + 1),
                _ => (C + 1, S + 1),
            };
            segment(flow.inside, flow.remote, flags, sequence, acknowledgement)
        }
    }
}

fn packet_in(protocol: u8, from: Endpoint, to: Endpoint, flags: u8) -> Vec<u8> {
    match protocol {
        ip4::UDP => udp_packet(from, to, b"answer"),
        ip4::ICMP => icmp_packet(from.0, to.0, icmp::ECHO_REPLY, 0, &[&to.1.to_be_bytes()[..], &[0, 1, 7, 7]].concat()),
        _ if flags == FORGED => segment(from, to, RST, S + 900_000_000, 0),
        _ if flags == SYN => segment(from, to, SYN, S, 0),
        _ => segment(from, to, flags, if flags & SYN != 0 { S } else { S + 1 }, C + 1),
    }
}

/// The packet as it must leave: other ends where there are, one hop less, and every checksum computed anew.
fn rewritten(packet: &[u8], from: Option<Endpoint>, to: Option<Endpoint>) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let header = ip4::parse(packet).expect("a packet that parses");
    let start = header.header_length;
    let is_icmp = header.protocol == ip4::ICMP;
    for (end, address, port) in [(from, ip4::SOURCE, udp::SOURCE), (to, ip4::DESTINATION, udp::DESTINATION)] {
        let Some(end) = end else { continue };
        write(&mut bytes, address, &end.0.octets());
        write(&mut bytes, start + if is_icmp { icmp::IDENTIFIER } else { port }, &end.1.to_be_bytes());
    }
    bytes[ip4::TTL] -= 1;
    write_checksum(&mut bytes, ip4::CHECKSUM, 0..start, 0);
    let ends = [ip4::SOURCE, ip4::DESTINATION].map(|at| Ipv4Addr::from(read_u32(&bytes, at)));
    let length = bytes.len();
    let pseudo = checksum::pseudo_header(ends[0], ends[1], header.protocol, (length - start) as u16);
    match header.protocol {
        ip4::UDP if read_u16(packet, start + udp::CHECKSUM) == 0 => {}
        ip4::UDP => write_checksum(&mut bytes, start + udp::CHECKSUM, start..length, pseudo),
        ip4::TCP => write_checksum(&mut bytes, start + tcp::CHECKSUM, start..length, pseudo),
        _ => write_checksum(&mut bytes, start + icmp::CHECKSUM, start..length, 0),
    }
    bytes
}

fn write_checksum(bytes: &mut [u8], at: usize, over: std::ops::Range<usize>, pseudo: u32) {
    write(bytes, at, &[0, 0]);
    let field = !checksum::fold(checksum::sum(&bytes[over], pseudo));
    write(bytes, at, &field.to_be_bytes());
}

/// Says how to replay a run that fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to replay: STARNET_MODEL_SEED={} with this test alone", self.0);
        }
    }
}

fn number_in_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Plays random steps, and then waits until nothing is left. The gateway, whose counters say what happened.
fn run(setup: fn() -> Setup, seed: u64) -> Nat {
    let seed = number_in_environment("STARNET_MODEL_SEED").unwrap_or(seed);
    let _replay = Replay(seed);
    let mut model = Model::new(setup(), seed);
    for _ in 0..number_in_environment("STARNET_MODEL_STEPS").unwrap_or(STEPS) {
        model.step();
    }
    // The file is read anew, and has no forwarded ports.
    model.nat.set_mappings(Vec::new());
    model.held.retain(|_, held| !held.is_static);
    while !model.held.is_empty() {
        model.pass(10 * SECOND);
    }
    model.nat.assert_all_free();
    model.nat
}

#[test]
fn random_flows_are_translated_as_by_the_model() {
    run(|| Setup { addresses: 2, ..Setup::default() }, 0x5eed_0001);
}

#[test]
fn random_flows_over_three_workers_are_translated_as_by_the_model() {
    run(|| Setup { workers: 3, bindings: 512, addresses: 2, ..Setup::default() }, 0x5eed_0002);
}

#[test]
fn a_full_table_refuses_and_keeps_what_the_model_says() {
    let nat = run(|| Setup { bindings: 12, ..Setup::default() }, 0x5eed_0003);
    assert_ne!(nat.dropped(Reason::TableFull), 0, "the table was full at times");
}

#[test]
fn an_empty_pool_refuses_and_lets_ports_rest_as_the_model_says() {
    let nat =
        run(|| Setup { ports: (2000, 2007), adjust: |nat| nat.keeps_parity = false, ..Setup::default() }, 0x5eed_0004);
    assert_ne!(nat.dropped(Reason::PortsExhausted), 0);
}

#[test]
fn hosts_have_no_more_than_they_may_by_the_model() {
    let nat = run(
        || Setup { adjust: |nat| (nat.bindings_a_host, nat.ports_a_host) = (9, 4), ..Setup::default() },
        0x5eed_0008,
    );
    assert_ne!(nat.dropped(Reason::HostLimit), 0);
}

#[test]
fn blocks_of_ports_are_one_hosts_as_in_the_model() {
    let nat = run(|| Setup { ports: (2000, 2255), adjust: |nat| nat.port_block = 64, ..Setup::default() }, 0x5eed_0009);
    assert_ne!(nat.dropped(Reason::PortsExhausted), 0);
}

fn with_forwarded_ports() -> Setup {
    let forwarded = |protocol, port, inside: Endpoint| StaticMapping {
        protocol,
        outside: (OUTSIDE[0].into(), port),
        inside: (inside.0.into(), inside.1),
    };
    let mappings = vec![
        forwarded(ip4::UDP, 53, (OTHER_HOST, 5001)),
        forwarded(ip4::UDP, 99, (HOST, 5002)),
        forwarded(ip4::TCP, 80, (HOST, 5003)),
    ];
    Setup { mappings, ..Setup::default() }
}

#[test]
fn forwarded_ports_are_there_from_the_start_to_the_end_as_in_the_model() {
    run(with_forwarded_ports, 0x5eed_000a);
}

#[test]
fn forwarded_ports_of_an_endpoint_dependent_nat_are_for_every_server_as_in_the_model() {
    run(
        || Setup {
            workers: 2,
            bindings: 1024,
            adjust: |nat| nat.is_endpoint_dependent = true,
            ..with_forwarded_ports()
        },
        0x5eed_000b,
    );
}

#[test]
fn address_dependent_filtering_lets_in_whom_the_model_lets_in() {
    let nat =
        run(|| Setup { adjust: |nat| nat.filtering = Filtering::AddressDependent, ..Setup::default() }, 0x5eed_0005);
    assert_ne!(nat.dropped(Reason::Filtered), 0);
}

#[test]
fn address_and_port_dependent_filtering_lets_in_whom_the_model_lets_in() {
    let nat = run(
        || Setup { adjust: |nat| nat.filtering = Filtering::AddressAndPortDependent, ..Setup::default() },
        0x5eed_0006,
    );
    assert_ne!(nat.dropped(Reason::Filtered), 0);
}

#[test]
fn endpoint_dependent_mapping_is_as_in_the_model() {
    run(
        || Setup { workers: 2, bindings: 1024, adjust: |nat| nat.is_endpoint_dependent = true, ..Setup::default() },
        0x5eed_0007,
    );
}

#[test]
fn a_flow_that_sends_while_the_control_core_has_it_freed_is_kept() {
    let mut nat = Nat::new();
    let sent = udp_packet((HOST, 5000), (SERVER, 53), b"payload");
    let outside = nat.seen(&sent);
    nat.pass(300 * SECOND);
    nat.now += 2 * TICK;
    // Its time is over and the command is on its way; the packet is there first.
    nat.control.on_tick(nat.now);
    nat.is_stalled = true;
    assert_eq!(nat.seen(&sent), outside);
    nat.is_stalled = false;
    nat.settle();
    assert_eq!(nat.bindings(), 1);
    assert!(nat.is_let_in(&udp_packet((SERVER, 53), outside, b"answer")));
    nat.pass(301 * SECOND);
    nat.assert_all_free();
}
