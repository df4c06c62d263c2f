//! The short way through the NAT, of packets of flows that are known ([`FlowCache`]): all that the nodes on the long way ask
//! is asked in one look at the packet, or was asked when the flow's last packet took the long way.
//!
//! For IPv4 without options or fragments, UDP, and TCP but for SYNs. A packet that is in any way different, or of a flow
//! that is not known, takes the long way, so this need not know why. Works in passes over a batch, each of which asks
//! for the memory that the next one reads.

use std::net::Ipv4Addr;

use super::{
    Owner,
    connections::Origin,
    flow_cache::{Decision, Flow, FlowCache, FlowKey, Way, Whence},
};
use crate::{
    dataplane::{
        conntrack::NO_BINDING,
        context::Context,
        driver::Frames,
        graph::NodeId,
        onwards::Onwards,
        packet::{Bitmap, Fragment, Packet},
        prefetch::prefetch,
    },
    limits::PACKET_SLOTS,
    wire::{checksum, checksum::Delta, ethernet, ip4, read_u16, read_u32, relay, tcp, udp, write},
};

/// The flows of a worker, and the packets that are being looked at.
pub(in crate::dataplane) struct Established {
    /// The flows.
    pub(in crate::dataplane) flows: FlowCache,
    count: usize,
    candidates: Box<[Candidate; PACKET_SLOTS]>,
    /// Those that are not in their flow's first set.
    elsewhere: Box<[Candidate; PACKET_SLOTS]>,
}

/// A packet that may be of a known flow.
#[derive(Clone, Copy, Default)]
struct Candidate {
    key: FlowKey,
    set: u32,
    slot: u8,
    is_tcp: bool,
    /// Bytes of the IP packet.
    length: u16,
    flow: Flow,
}

impl Established {
    /// None.
    pub(in crate::dataplane) fn new(flows: FlowCache) -> Self {
        let none = || Box::new([Candidate::default(); PACKET_SLOTS]);
        Self { flows, count: 0, candidates: none(), elsewhere: none() }
    }

    #[inline]
    fn push(&mut self, slot: usize, plain: &Plain, whence: Whence) {
        let Plain { source, destination, ports, length, is_tcp } = *plain;
        let key = FlowKey::new(source, destination, ports, is_tcp, whence);
        let set = self.flows.ask_for(key);
        self.candidates[self.count] = Candidate { key, set, slot: slot as u8, is_tcp, length, flow: Flow::default() };
        self.count += 1;
    }
}

/// What a packet must be to go the short way, and its flow.
struct Plain {
    source: u32,
    destination: u32,
    /// That of the source in the upper half.
    ports: u32,
    length: u16,
    is_tcp: bool,
}

/// Of the headers of IPv4 and UDP, or as many of TCP's bytes.
const LEAST_BYTES: usize = ip4::HEADER_BYTES + udp::HEADER_BYTES;

impl Plain {
    /// The long way (`ip4_input`, `l4_classify`, the nodes of the NAT) asks the same, and more kindly.
    #[inline]
    fn of(ip: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEAST_BYTES] = ip.first_chunk()?;
        let header: &[u8; ip4::HEADER_BYTES] = bytes.first_chunk().expect("it is in the chunk");
        let length = read_u16(header, ip4::TOTAL_LENGTH);
        let is_it = (header[0] == 0x45)
            & (usize::from(length) >= LEAST_BYTES)
            & (usize::from(length) <= ip.len())
            & (read_u16(header, ip4::FRAGMENT) & ip4::FRAGMENT_MASK == 0)
            & (header[ip4::TTL] > 1)
            & checksum::is_valid(header);
        if !is_it {
            return None;
        }
        let is_tcp = match header[ip4::PROTOCOL] {
            ip4::UDP => {
                let datagram = usize::from(read_u16(bytes, ip4::HEADER_BYTES + udp::LENGTH));
                if !(udp::HEADER_BYTES..=usize::from(length) - ip4::HEADER_BYTES).contains(&datagram) {
                    return None;
                }
                false
            }
            ip4::TCP => {
                let segment = &ip[ip4::HEADER_BYTES..usize::from(length)];
                tcp::checked_header_length(segment)?;
                if segment[tcp::FLAGS] & tcp::SYN != 0 {
                    return None;
                }
                true
            }
            _ => return None,
        };
        Some(Self {
            source: read_u32(header, ip4::SOURCE),
            destination: read_u32(header, ip4::DESTINATION),
            ports: read_u32(bytes, ip4::HEADER_BYTES),
            length,
            is_tcp,
        })
    }
}

/// A packet off the wire: true where it may be of a known flow, and [`pass`] is to decide about it.
#[inline]
pub(in crate::dataplane) fn ask_off_the_wire(context: &mut Context, frames: &mut Frames, slot: usize) -> bool {
    let packet = &mut context.packets[slot];
    let interface = packet.interface;
    let Some((frame, ip)) = packet.bytes(frames).split_at_checked(ethernet::HEADER_BYTES) else { return false };
    let Some(ours) = context.routes.forwarding().interfaces.get(usize::from(interface)) else { return false };
    if frame[..ours.mac.len()] != ours.mac || ethernet::ether_type(frame) != Some(ethernet::TYPE_IP4) {
        return false;
    }
    let Some(plain) = Plain::of(ip) else { return false };
    packet.l3 = packet.offset + ethernet::HEADER_BYTES as u16;
    context.established.push(slot, &plain, Whence::Interface(interface));
    true
}

/// The same for a packet out of the overlay, which starts at `l3`.
#[inline]
pub(in crate::dataplane) fn ask_out_of_the_overlay(context: &mut Context, frames: &mut Frames, slot: usize) -> bool {
    let packet = &context.packets[slot];
    if packet.slot == Packet::NO_SLOT || packet.fragment != Fragment::No {
        return false;
    }
    let Some(plain) = Plain::of(packet.ip(frames)) else { return false };
    let whence = Whence::Session(packet.slot);
    context.established.push(slot, &plain, whence);
    true
}

/// The long way did this with a packet. What may not go the short way is not noted.
pub(in crate::dataplane) fn note(
    context: &mut Context,
    packet: &Packet,
    header: &ip4::Header,
    (source, destination): (u16, u16),
    decision: &Decision,
) {
    let is_tcp = header.protocol == ip4::TCP;
    let is_plain = header.header_length == ip4::HEADER_BYTES
        && packet.fragment == Fragment::No
        && (is_tcp || header.protocol == ip4::UDP);
    if !is_plain {
        return;
    }
    let whence = match (decision.way, packet.owner().slot()) {
        (Way::Out, Some(session)) => Whence::Session(session),
        _ => Whence::Interface(packet.interface),
    };
    let ports = u32::from(source) << 16 | u32::from(destination);
    let key = FlowKey::new(header.source.to_bits(), header.destination.to_bits(), ports, is_tcp, whence);
    context.established.flows.note(key, decision, context.tick);
}

/// Translates those of the packets asked about whose flows are known, and has them go on from `node`; returns the others.
pub(in crate::dataplane) fn pass(context: &mut Context, frames: &mut Frames, node: NodeId) -> Bitmap {
    let mut others = Bitmap::default();
    if context.established.count == 0 {
        return others;
    }
    let (mut known, mut elsewhere) = (0, 0);
    for place in 0..std::mem::take(&mut context.established.count) {
        let established = &mut context.established;
        let candidate = established.candidates[place];
        if let Some(flow) = established.flows.find(candidate.set, candidate.key) {
            keep_known(context, known, candidate, flow);
            known += 1;
        } else {
            let set = established.flows.ask_for_other(candidate.key);
            established.elsewhere[elsewhere] = Candidate { set, ..candidate };
            elsewhere += 1;
        }
    }
    for place in 0..elsewhere {
        let candidate = context.established.elsewhere[place];
        if let Some(flow) = context.established.flows.find(candidate.set, candidate.key) {
            keep_known(context, known, candidate, flow);
            known += 1;
        } else {
            // The long way looks up the routes to both ends.
            let (source, destination) = candidate.key.addresses();
            context.routes.ask_for(source.into());
            context.routes.ask_for(destination.into());
            others.insert(usize::from(candidate.slot));
        }
    }
    let mut onwards = Onwards::new(node, NodeId::IpOutput);
    for place in 0..known {
        let candidate = context.established.candidates[place];
        let slot = usize::from(candidate.slot);
        match translate(context, frames, slot, &candidate) {
            Some(next) => onwards.push(context, slot, next),
            None => others.insert(slot),
        }
    }
    onwards.finish(context);
    others
}

/// Puts a packet of a known flow in its place, and asks for what its translation reads.
#[inline]
fn keep_known(context: &mut Context, place: usize, candidate: Candidate, flow: Flow) {
    context.established.candidates[place] = Candidate { flow, ..candidate };
    if let Some(stamp) = context.published.bindings.get(flow.binding() as usize) {
        prefetch(stamp);
    }
    if candidate.is_tcp || flow.way() == Way::ToSession {
        context.bindings.prefetch(flow.binding());
    }
}

/// The packet is translated as the last one of its flow was. `None`: it is left as it came.
#[inline]
fn translate(context: &mut Context, frames: &mut Frames, slot: usize, candidate: &Candidate) -> Option<NodeId> {
    let Candidate { key, is_tcp, length, ref flow, .. } = *candidate;
    if !context.established.flows.is_valid(flow) || length > flow.mtu {
        return None;
    }
    let way = flow.way();
    let (index, bytes) = (flow.binding(), usize::from(length));
    let packet = context.packets[slot];
    let ip = &mut packet.ip(frames)[..bytes];
    // A session's terms are asked each time, for they may be written anew while its bindings stay.
    let session = match way {
        Way::Out => key.session(),
        Way::ToHost => None,
        Way::ToSession => Some(context.bindings.get(index)?.owner.slot()?),
    };
    if let Some(session) = session {
        let terms = context.terms(Owner::session(session))?;
        let is_within = match way {
            Way::Out => {
                (terms.inside == Ipv4Addr::UNSPECIFIED || terms.inside.to_bits() == read_u32(ip, ip4::SOURCE))
                    && (terms.binding == NO_BINDING || terms.binding == index)
            }
            _ => length <= terms.mtu,
        };
        if !is_within {
            return None;
        }
    }
    let segment = if is_tcp { Some(tcp::parse(&ip[ip4::HEADER_BYTES..])?) } else { None };
    let (source, destination) = (read_u32(ip, ip4::SOURCE).into(), read_u32(ip, ip4::DESTINATION).into());
    let remote = match way {
        Way::Out => (destination, read_u16(ip, ip4::HEADER_BYTES + tcp::DESTINATION)),
        _ => (source, read_u16(ip, ip4::HEADER_BYTES + tcp::SOURCE)),
    };
    rewrite(ip, flow, way, is_tcp);
    let origin = if way == Way::Out { Origin::Inside } else { Origin::Outside };
    context.account(index, origin, remote, segment.as_ref(), bytes);

    let packet = &mut context.packets[slot];
    packet.length = packet.l3 - packet.offset + length;
    packet.l4 = packet.l3 + ip4::HEADER_BYTES as u16;
    packet.protocol = if is_tcp { ip4::TCP } else { ip4::UDP };
    packet.from_inside = false;
    match (way, session) {
        (Way::ToSession, Some(session)) => {
            packet.slot = session;
            packet.kind = relay::Kind::DataDown;
            return Some(NodeId::ExitDown);
        }
        (Way::Out, None) => packet.slot = Packet::NO_SLOT,
        _ => {}
    }
    packet.destination = if way == Way::Out { destination } else { flow.address.into() };
    if way != Way::Out {
        // To servers it made no difference.
        context.routes.ask_for(packet.destination);
    }
    Some(NodeId::IpOutput)
}

/// As [`super::rewrite::translate`] and [`ip4::decrement_ttl`] do it, in one.
#[inline]
fn rewrite(ip: &mut [u8], flow: &Flow, way: Way, is_tcp: bool) {
    let (address_at, port_at) = match way {
        Way::Out => (ip4::SOURCE, ip4::HEADER_BYTES + tcp::SOURCE),
        _ => (ip4::DESTINATION, ip4::HEADER_BYTES + tcp::DESTINATION),
    };
    let bytes: &mut [u8; LEAST_BYTES] = ip.first_chunk_mut().expect("it was looked at");
    let address = Delta::default().address(read_u32(bytes, address_at).into(), flow.address.into());
    let port = Delta::default().word(read_u16(bytes, port_at), flow.port);
    let hops = read_u16(bytes, ip4::TTL);
    let checksum = address.word(hops, hops - (1 << 8)).apply(read_u16(bytes, ip4::CHECKSUM));
    write(bytes, ip4::TTL, &(hops - (1 << 8)).to_be_bytes());
    write(bytes, ip4::CHECKSUM, &checksum.to_be_bytes());
    write(bytes, address_at, &flow.address.to_be_bytes());
    write(bytes, port_at, &flow.port.to_be_bytes());
    let at = ip4::HEADER_BYTES + if is_tcp { tcp::CHECKSUM } else { udp::CHECKSUM };
    let old = read_u16(ip, at);
    let new = address.join(port).apply(old);
    let new = match (is_tcp, old, new) {
        (true, ..) => new,
        (false, 0, _) => 0,
        (false, _, 0) => 0xffff,
        (false, ..) => new,
    };
    write(ip, at, &new.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::{
        dataplane::{conntrack::NO_BINDING, testing::*},
        limits::TICK,
    };

    const OUTSIDE: u16 = 41_000;

    /// A gateway or an exit with one binding of INSIDE:1000; every flow that `packets` belong to has been seen. Where
    /// `is_known` is false time stands still, and so no flow is ever known.
    fn bench(owner: Owner, protocol: u8, is_known: bool, packets: &[Vec<u8>]) -> Bench {
        let mut bench = Bench::new();
        match owner.slot() {
            Some(_) => bench.exit(1, NO_BINDING),
            None => bench.gateway(),
        }
        bench.bind_for(owner, protocol, 1000, OUTSIDE, None);
        bench.now += if is_known { TICK } else { 0 };
        bench.run_at(0, &packets[..1]);
        enter(&mut bench, owner, 1, &packets[1]);
        bench
    }

    /// From inside: of a host behind interface 1, or of a client. Whatever went out.
    fn enter(bench: &mut Bench, owner: Owner, sequence: u64, ip: &[u8]) -> Vec<(u8, Vec<u8>)> {
        match owner.slot() {
            None => bench.run_at(1, &[ip.to_vec()]),
            Some(slot) => {
                let out = bench.run(&[Relayed::up(slot, sequence, ip.to_vec()).frame()]);
                out.into_iter().map(|frame| (0, frame)).collect()
            }
        }
    }

    /// One packet from outside, one from inside.
    fn both_ways(protocol: u8, payload: &[u8]) -> [Vec<u8>; 2] {
        let (inside, outside, server) = ((INSIDE, 1000), (US, OUTSIDE), (SERVER, 443));
        match protocol {
            ip4::UDP => [udp_packet(server, outside, payload), udp_packet(inside, server, payload)],
            _ => [tcp_packet(server, outside, tcp::ACK, &[1; 4]), tcp_packet(inside, server, tcp::ACK, &[1; 8])],
        }
    }

    const OWNERS: [Owner; 2] = [Owner::INSIDE, Owner::session(3)];

    #[test]
    fn packets_of_a_known_flow_take_the_short_way() {
        for (owner, protocol) in OWNERS.into_iter().flat_map(|owner| [(owner, ip4::UDP), (owner, ip4::TCP)]) {
            let packets = both_ways(protocol, b"payload");
            let mut known = bench(owner, protocol, true, &packets);
            let inbound = known.way(frame(&packets[0]));
            let next = if owner == Owner::INSIDE { "ip_output" } else { "exit_down" };
            assert_eq!(inbound[0], format!("ethernet_input > {next}"));
            if owner == Owner::INSIDE {
                known.run_at(1, &packets[1..]);
                assert_eq!(known.visits().nth(NodeId::GatewayInput as usize), Some(1), "the first packet only");
            } else {
                enter(&mut known, owner, 2, &packets[1]);
                assert_eq!(known.visits().nth(NodeId::NatIn2out as usize), Some(2));
            }
        }
    }

    #[test]
    fn a_session_whose_terms_change_is_asked_anew() {
        let packets = both_ways(ip4::UDP, b"payload");
        let mut known = bench(OWNERS[1], ip4::UDP, true, &packets);
        known.tell_terms(SERVER, 1400);
        assert!(enter(&mut known, OWNERS[1], 2, &packets[1]).is_empty());
        assert_eq!(known.moved(), [("nat_in2out.drop.not_inside".to_owned(), 1)]);
        known.tell_terms(INSIDE, 30);
        assert_eq!(known.way(frame(&packets[0]))[0], "ethernet_input > ip4_input", "it does not fit any more");
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(48))]

        /// Whatever is done to a packet of a known flow, what comes out is what the long way makes of it.
        #[test]
        fn nothing_comes_out_that_the_long_way_would_not_make(
            is_session in proptest::bool::ANY, is_tcp in proptest::bool::ANY, is_inbound in proptest::bool::ANY,
            changes in proptest::collection::vec((0usize..48, 0u8..8, proptest::bool::ANY, 0usize..4), 1..40),
        ) {
            let owner = OWNERS[usize::from(is_session)];
            let protocol = if is_tcp { ip4::TCP } else { ip4::UDP };
            let mut packets = both_ways(protocol, b"a payload of some bytes");
            // One bit from the last hop.
            packets.iter_mut().for_each(|ip| (0..61).for_each(|_| ip4::decrement_ttl(ip)));
            let mut benches = [true, false].map(|is_known| bench(owner, protocol, is_known, &packets));
            for (sequence, (at, bit, is_fixed, cut)) in (2..).zip(changes) {
                let mut ip = packets[usize::from(!is_inbound)].clone();
                if let Some(byte) = ip.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                ip.truncate(ip.len() - cut.saturating_sub(1) * 5);
                if is_fixed && ip[0] == 0x45 {
                    write(&mut ip, ip4::CHECKSUM, &[0, 0]);
                    let field = checksum::of(&ip[..ip4::HEADER_BYTES]);
                    write(&mut ip, ip4::CHECKSUM, &field.to_be_bytes());
                }
                let [short, long] = benches.each_mut().map(|bench| {
                    let out = match is_inbound {
                        true => bench.run_at(0, std::slice::from_ref(&ip)),
                        false => enter(bench, owner, sequence, &ip),
                    };
                    let context = bench.worker.context();
                    let stamp = &context.published.bindings[4];
                    let counted = (stamp.packets.load(Relaxed), stamp.bytes.load(Relaxed));
                    (out, bench.moved(), counted, context.bindings.get(4).copied())
                });
                proptest::prop_assert_eq!(short, long, "byte {} bit {} of {:?}", at, bit, ip);
            }
        }
    }
}
