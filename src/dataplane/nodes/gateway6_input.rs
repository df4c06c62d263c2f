//! The gateway as a router of IPv6; what [`gateway_input`](super::gateway_input) is for IPv4.
//!
//! Path: ip6_input | handoff -> here -> nat6_in2out | sv_reassembly (a fragment) | ip6_output (no translation) | icmp6_error | handoff | drop.
//! Reads: l3, l4, interface, protocol. Writes: slot.
//!
//! Destinations in the NAT64 prefix are IPv4 addresses by another name, so no route of IPv6 says where they are.

use std::net::Ipv6Addr;

use super::{icmp6_error::tell, prelude::*};
use crate::{
    dataplane::{gateway::Realm, packet::Packet},
    wire::{icmp, icmp6, ip6},
};

node!(Gateway6Input, "gateway6_input", [Nat6In2out, SvReassembly, Icmp6Error, Ip6Output, Handoff], gateway6_input);

fn gateway6_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let routes = &mut context.routes;
    // Frames for others come in while someone listens to the whole link.
    let mac = routes.forwarding().interfaces.get(usize::from(packet.interface)).map(|interface| interface.mac);
    if mac.is_none_or(|mac| packet.bytes(frames)[..mac.len()] != mac) {
        return Verdict::Drop(Reason::NotOurMac);
    }
    let Ok(header) = ip6::parse_quoted(packet.ip(frames)) else { return Verdict::Drop(Reason::BadLength) };
    let from = routes.lookup6(header.source);
    if from.lookup.interface() != Some(packet.interface) {
        return Verdict::Drop(Reason::Spoofed);
    }
    let is_from_inside = routes.realm(packet.interface) == Realm::Inside;
    context.packets[slot].slot = Packet::NO_SLOT;
    if context.nat64.is_some_and(|prefix| prefix.contains(header.destination)) {
        return match is_from_inside {
            true => translate(context, frames, slot, &header),
            false => Verdict::Drop(Reason::NoRoute),
        };
    }
    let to = context.routes.lookup6(header.destination);
    let is_hairpin = context.is_ours6(header.destination);
    match to.realm {
        _ if is_from_inside && is_hairpin => translate(context, frames, slot, &header),
        Realm::Outside if is_from_inside && !to.is_exempt => translate(context, frames, slot, &header),
        Realm::Outside if is_from_inside => route(context, frames, slot, &header, to.mtu),
        Realm::Inside if is_from_inside || from.is_exempt => route(context, frames, slot, &header, to.mtu),
        _ if is_from_inside => tell(context, slot, icmp6::UNREACHABLE, icmp6::CODE_NO_ROUTE, 0),
        _ => Verdict::Drop(Reason::NoRoute),
    }
}

/// To the NAT of the worker that owns the host.
fn translate(context: &mut Context, frames: &mut Frames, slot: usize, header: &ip6::Header) -> Verdict {
    let packet = context.packets[slot];
    let host = host_of(packet.transport(frames), header).unwrap_or(header.source);
    let owner = context.identity.owner_of_host6(host);
    if owner != context.index {
        return context.hand_off(slot, owner, NodeId::Gateway6Input);
    }
    Verdict::Next(if header.is_fragment() { NodeId::SvReassembly } else { NodeId::Nat6In2out })
}

/// Whose binding an ICMPv6 error from inside is about: the receiver of the packet it quotes, though a router may have
/// sent the error.
fn host_of(transport: &[u8], header: &ip6::Header) -> Option<Ipv6Addr> {
    if header.protocol != ip6::ICMP || header.is_fragment() || !icmp6::is_error(*transport.first()?) {
        return None;
    }
    let quoted = transport.get(icmp::HEADER_BYTES..).filter(|quoted| quoted.len() >= ip6::HEADER_BYTES)?;
    Some(ip6::address(quoted, ip6::DESTINATION))
}

/// On as it is.
fn route(context: &mut Context, frames: &mut Frames, slot: usize, header: &ip6::Header, mtu: u16) -> Verdict {
    if header.hop_limit <= 1 {
        return tell(context, slot, icmp6::TIME_EXCEEDED, 0, 0);
    }
    let packet = &mut context.packets[slot];
    if packet.ip_length() > usize::from(mtu) {
        return tell(context, slot, icmp6::PACKET_TOO_BIG, 0, mtu);
    }
    packet.ip(frames)[ip6::HOP_LIMIT] -= 1;
    Verdict::Next(NodeId::Ip6Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            command::{Event, PuntCause},
            handoff::mesh,
            testing::*,
            testing6::*,
        },
        wire::{ethernet, read_u32},
    };

    fn ip_of(frame: &[u8]) -> &[u8] {
        assert!(has_valid_checksums6(&frame[ethernet::HEADER_BYTES..]));
        &frame[ethernet::HEADER_BYTES..]
    }

    #[test]
    fn hosts_of_two_inside_networks_and_exempt_ones_reach_each_other_untranslated() {
        let mut bench = Bench::gateway6();
        for (from, source, destination, to) in
            [(1, INSIDE6, NEIGHBOUR6, 2), (1, INSIDE6, OFFICE6, 0), (0, OFFICE6, INSIDE6, 1)]
        {
            let sent = udp6_packet((source, 1000), (destination, 53), b"x");
            let out = bench.run_at6(from, std::slice::from_ref(&sent));
            assert_eq!(bench.moved(), []);
            let mut expected = sent;
            expected[ip6::HOP_LIMIT] -= 1;
            assert_eq!((out[0].0, ip_of(&out[0].1)), (to, &expected[..]));
            assert_eq!(out[0].1[12..14], [0x86, 0xdd]);
        }
    }

    #[test]
    fn nobody_pretends_to_be_someone_else_or_comes_in_uninvited() {
        let mut bench = Bench::gateway6();
        let drop = |bench: &mut Bench, interface, source, destination, counter: &str| {
            let out = bench.run_at6(interface, &[udp6_packet((source, 1), (destination, 2), b"x")]);
            assert_eq!((bench.moved(), out.len()), (vec![(counter.to_owned(), 1)], 0));
        };
        drop(&mut bench, 1, SERVER6, NEIGHBOUR6, "gateway6_input.drop.spoofed");
        drop(&mut bench, 2, INSIDE6, SERVER6, "gateway6_input.drop.spoofed");
        drop(&mut bench, 0, SERVER6, INSIDE6, "gateway6_input.drop.no_route");
        let name = bench.worker.context().nat64.unwrap().embed(SERVER);
        drop(&mut bench, 0, SERVER6, name, "gateway6_input.drop.no_route");
        let mut frame = frame6(&udp6_packet((INSIDE6, 1), (SERVER6, 2), b"x"));
        frame[5] = 0x77;
        bench.worker.driver().put(1, &frame);
        assert!(bench.run(&[]).is_empty());
        assert_eq!(bench.moved(), [("gateway6_input.drop.not_our_mac".to_owned(), 1)]);
    }

    #[test]
    fn errors_come_from_the_address_that_the_host_knows_its_router_by() {
        let mut bench = Bench::gateway6();
        let mut late = udp6_packet((INSIDE6, 1000), (NEIGHBOUR6, 53), b"traceroute");
        late[ip6::HOP_LIMIT] = 1;
        let big = udp6_packet((INSIDE6, 1000), (NEIGHBOUR6, 53), &[7; 1460]);
        let lost = udp6_packet((INSIDE6, 1000), ("3fff::1".parse().unwrap(), 53), b"nowhere");
        for (sent, kind, code, word) in [
            (late, icmp6::TIME_EXCEEDED, 0, 0),
            (big, icmp6::PACKET_TOO_BIG, 0, 1500),
            (lost, icmp6::UNREACHABLE, icmp6::CODE_NO_ROUTE, 0),
        ] {
            let out = bench.run_at6(1, std::slice::from_ref(&sent));
            assert_eq!(bench.moved(), []);
            let got = ip_of(&out[0].1);
            let header = ip6::parse(got).unwrap();
            assert_eq!((out[0].0, header.source, header.destination), (1, INSIDE_ROUTER6, INSIDE6));
            assert_eq!((got[40], got[41], read_u32(got, 44)), (kind, code, word));
            assert_eq!(got[48..], sent[..sent.len().min(1280 - 48)], "as much as fits, as it was sent");
        }
    }

    #[test]
    fn a_host_of_another_worker_is_handed_to_it() {
        let mut benches: Vec<Bench> =
            mesh(2).into_iter().enumerate().map(|(index, ends)| Bench::at6(index, 2, ends)).collect();
        let owner = identity(2).owner_of_host6(INSIDE6);
        let other = 1 - owner;
        assert!(benches[other].run_at6(1, &[udp6_packet((INSIDE6, 1), (SERVER6, 2), b"x")]).is_empty());
        benches[owner].sweep();
        let Ok(Event::Punt { cause: PuntCause::NoBinding6 { flow, .. }, .. }) = benches[owner].events.pop() else {
            panic!("nothing punted")
        };
        assert_eq!((flow.address, flow.port), (INSIDE6, 1));
    }
}
