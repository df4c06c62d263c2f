//! Tells an IPv6 packet's sender by ICMPv6 why it goes no further (RFC 4443).
//!
//! Path: gateway6_input | nat6_in2out | nat6_out2in -> here -> exit_down (to the client) | ip6_output | drop.
//! Reads: l3, from_inside, slot, icmp_type, icmp_code, mtu. Writes: offset, length, l3, l4, kind.
//!
//! Sent only within the budget that ICMP of IPv4 has, too, and never about an error, a fragment's tail, a packet to many,
//! or one from an address that is nobody's (RFC 4443 section 2.4 (e)).

use std::net::Ipv6Addr;

use super::prelude::*;
use crate::dataplane::nat::{icmp64::MTU_MIN, rewrite6::seal_icmp};
use crate::{
    dataplane::outer,
    wire::{icmp, icmp6, ip4, ip6, relay, write},
};

node!(Icmp6Error, "icmp6_error", [ExitDown, Ip6Output], icmp6_error);

/// Bytes before the quoted packet.
const HEADERS: usize = ip6::HEADER_BYTES + icmp::HEADER_BYTES;

const HOP_LIMIT: u8 = 64;

/// This node on the link that a client's TUN device is one end of.
const CLIENTS_ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Has this node tell the sender.
pub(super) fn tell(context: &mut Context, slot: usize, kind: u8, code: u8, mtu: u16) -> Verdict {
    let packet = &mut context.packets[slot];
    packet.icmp_type = kind;
    packet.icmp_code = code;
    packet.mtu = mtu;
    Verdict::Next(NodeId::Icmp6Error)
}

fn icmp6_error(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let Ok(header) = ip6::parse(packet.ip(frames)) else { return Verdict::Drop(Reason::ErrorUnanswered) };
    let is_error =
        header.protocol == ip6::ICMP && packet.ip(frames).get(header.header_length).is_none_or(|kind| kind & 0x80 == 0);
    let source = header.source;
    let is_nobody = source.is_unspecified() || source.is_multicast() || source.is_loopback();
    if is_error || is_nobody || header.destination.is_multicast() || header.is_tail() || context.icmp_budget == 0 {
        return Verdict::Drop(Reason::ErrorUnanswered);
    }
    // Its sender knows us as the router on its link; a server, or a client of the overlay, by the outside address. To a
    // client whose exit has none we are the router on its link.
    let gateway = context.routes.forwarding().gateway.as_ref().filter(|_| !packet.from_inside);
    let router = gateway.and_then(|gateway| gateway.router6(packet.interface));
    let ours = router.or_else(|| context.bindings.outside().first6());
    let Some(from) = ours.or_else(|| packet.from_inside.then_some(CLIENTS_ROUTER)) else {
        return Verdict::Drop(Reason::ErrorUnanswered);
    };
    context.icmp_budget -= 1;

    let packet = &mut context.packets[slot];
    let quoted = header.total_length.min(usize::from(MTU_MIN) - HEADERS);
    packet.length = packet.l3 - packet.offset + quoted as u16;
    outer::place(packet, usize::from(packet.l3) - HEADERS);
    packet.l4 = packet.l3 + ip6::HEADER_BYTES as u16;
    packet.protocol = ip6::ICMP;
    packet.kind = relay::Kind::DataDown;
    let packet = *packet;
    let ip = packet.ip(frames);
    let length = (icmp::HEADER_BYTES + quoted) as u16;
    ip6::emit(ip, from, source, ip6::ICMP, length, HOP_LIMIT);
    ip6::set_traffic_class(ip, ip4::INTERNETWORK_CONTROL);
    write(ip, ip6::HEADER_BYTES, &[packet.icmp_type, packet.icmp_code, 0, 0]);
    write(ip, ip6::HEADER_BYTES + icmp6::MTU, &u32::from(packet.mtu).to_be_bytes());
    seal_icmp(ip, ip6::HEADER_BYTES);
    Verdict::Next(if packet.from_inside { NodeId::ExitDown } else { NodeId::Ip6Output })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{nodes::icmp_error::budget, testing::*, testing6::*, tick::Tick},
        limits::TICK,
    };

    fn late(mut packet: Vec<u8>) -> Vec<u8> {
        packet[ip6::HOP_LIMIT] = 1;
        packet
    }

    #[test]
    fn no_more_errors_than_the_budget_are_sent_a_tick() {
        let mut bench = Bench::gateway6();
        let flood = vec![late(udp6_packet((INSIDE6, 1), (NEIGHBOUR6, 2), b"x")); budget(Tick::DEFAULT) as usize + 5];
        assert_eq!(bench.run_at6(1, &flood).len(), budget(Tick::DEFAULT) as usize);
        assert_eq!(bench.moved(), [("icmp6_error.drop.error_unanswered".to_owned(), 5)]);
        bench.now += TICK;
        assert_eq!(bench.run_at6(1, &flood[..1]).len(), 1);
    }

    #[test]
    fn no_error_is_sent_about_an_error() {
        let mut bench = Bench::gateway6();
        let quoted = udp6_packet((NEIGHBOUR6, 2), (INSIDE6, 1), b"question");
        let error = error6_packet(INSIDE6, NEIGHBOUR6, icmp6::UNREACHABLE, 4, [0; 4], &quoted);
        assert!(bench.run_at6(1, &[late(error)]).is_empty());
        assert_eq!(bench.moved(), [("icmp6_error.drop.error_unanswered".to_owned(), 1)]);
        let ping = icmp6_packet(INSIDE6, NEIGHBOUR6, icmp6::ECHO_REQUEST, 0, &[0, 1, 0, 1]);
        assert_eq!(bench.run_at6(1, &[late(ping)]).len(), 1, "a query is none");
    }
}
