//! Tells an IPv6 packet's sender by ICMPv6 why it goes no further (RFC 4443).
//!
//! Path: gateway6_input | nat6_in2out | nat6_out2in -> here -> exit_down (to the client) | ip6_output | handoff (about what was
//! hairpinned, as [`icmp_error`](super::icmp_error)) | drop.
//! Reads: l3, from_inside, slot, icmp_type, icmp_code, mtu. Writes: offset, length, l3, l4, kind.
//!
//! That nobody answers at a next hop shows only after the NAT: that error is made between two sweeps ([`host_unreachable`]).
//!
//! Sent only within the budget that ICMP of IPv4 has, too, and never about an error, a fragment's tail, a packet to many,
//! or one from an address that is nobody's (RFC 4443 section 2.4 (e)).

use std::net::Ipv6Addr;

use super::{icmp_error::hand_back, prelude::*};
use crate::{
    dataplane::{
        gateway::Realm,
        nat::{
            icmp64::MTU_MIN,
            rewrite6::{self, seal_icmp},
        },
        outer,
        packet::{Fragment, Packet},
    },
    wire::{icmp, icmp6, ip4, ip6, relay, write},
};

node!(Icmp6Error, "icmp6_error", [ExitDown, Ip6Output, Handoff], icmp6_error);

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
    let mut packet = context.packets[slot];
    if let Err(reason) = become_error(context, frames, &mut packet) {
        return Verdict::Drop(reason);
    }
    context.packets[slot] = packet;
    let ip = packet.ip(frames);
    if let Ok(header) = ip6::parse(ip)
        && context.is_ours6(header.destination)
    {
        let sender = rewrite6::quote(ip, &header).ok().and_then(|quote| {
            let token = context.bindings.outside().token_of(quote.source.0)?;
            Some((rewrite6::table_protocol(quote.header.protocol), (token, quote.source.1)))
        });
        return hand_back(context, slot, sender, NodeId::Nat6Out2in);
    }
    Verdict::Next(if packet.from_inside { NodeId::ExitDown } else { NodeId::Ip6Output })
}

/// The packet becomes the error about it, to its sender.
fn become_error(context: &mut Context, frames: &mut Frames, packet: &mut Packet) -> Result<(), Reason> {
    let Ok(header) = ip6::parse(packet.ip(frames)) else { return Err(Reason::ErrorUnanswered) };
    let is_error =
        header.protocol == ip6::ICMP && packet.ip(frames).get(header.header_length).is_none_or(|kind| kind & 0x80 == 0);
    let source = header.source;
    let is_nobody = source.is_unspecified() || source.is_multicast() || source.is_loopback();
    if is_error || is_nobody || header.destination.is_multicast() || header.is_tail() || context.icmp_budget == 0 {
        return Err(Reason::ErrorUnanswered);
    }
    // Its sender knows us as the router on its link; a server, or a client of the overlay, by the outside address. To a
    // client whose exit has none we are the router on its link.
    let gateway = context.routes.forwarding().gateway.as_ref().filter(|_| !packet.from_inside);
    let router = gateway.and_then(|gateway| gateway.router6(packet.interface));
    let ours = router.or_else(|| context.bindings.outside().first6());
    let Some(from) = ours.or_else(|| packet.from_inside.then_some(CLIENTS_ROUTER)) else {
        return Err(Reason::ErrorUnanswered);
    };
    context.icmp_budget -= 1;

    let quoted = header.total_length.min(usize::from(MTU_MIN) - HEADERS);
    packet.length = packet.l3 - packet.offset + quoted as u16;
    outer::place(packet, usize::from(packet.l3) - HEADERS);
    packet.l4 = packet.l3 + ip6::HEADER_BYTES as u16;
    packet.protocol = ip6::ICMP;
    packet.kind = relay::Kind::DataDown;
    let ip = packet.ip(frames);
    let length = (icmp::HEADER_BYTES + quoted) as u16;
    ip6::emit(ip, from, source, ip6::ICMP, length, HOP_LIMIT);
    ip6::set_traffic_class(ip, ip4::INTERNETWORK_CONTROL);
    write(ip, ip6::HEADER_BYTES, &[packet.icmp_type, packet.icmp_code, 0, 0]);
    write(ip, ip6::HEADER_BYTES + icmp6::MTU, &u32::from(packet.mtu).to_be_bytes());
    seal_icmp(ip, ip6::HEADER_BYTES);
    Ok(())
}

/// A packet that has been through the NAT, if it needed to, cannot be delivered: nobody answers at its next hop. As for IPv4
/// ([`icmp_error`](super::icmp_error)) it becomes "address unreachable", and the node is returned that takes the error the
/// NAT's way back. `None`: there is nobody to tell.
pub(in crate::dataplane) fn host_unreachable(
    context: &mut Context,
    frames: &mut Frames,
    packet: &mut Packet,
) -> Option<NodeId> {
    let header = ip6::parse(packet.ip(frames)).ok()?;
    packet.icmp_type = icmp6::UNREACHABLE;
    packet.icmp_code = icmp6::CODE_ADDRESS;
    packet.mtu = 0;
    packet.from_inside = false;
    packet.slot = Packet::NO_SLOT;
    packet.fragment = Fragment::No;
    become_error(context, frames, packet).ok()?;
    let (from, to) = (context.routes.lookup6(header.source), context.routes.lookup6(header.destination));
    let is_from_us = context.is_ours6(header.source);
    let is_from_ip4 = context.nat64.is_some_and(|prefix| prefix.contains(header.source));
    let is_from_outside = is_from_us || is_from_ip4 || from.realm == Realm::Outside && !from.is_exempt;
    Some(match () {
        () if to.realm == Realm::Inside && is_from_outside => NodeId::Nat6In2out,
        () if is_from_us => NodeId::Nat6Out2in,
        () => NodeId::Ip6Output,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            command::{Command, Event, PuntCause},
            nat::{Owner, Translation},
            nodes::icmp_error::budget,
            testing::*,
            testing6::*,
            tick::Tick,
        },
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

    /// Has a packet wait in vain for its next hop behind `interface`; what is sent then.
    fn in_vain(bench: &mut Bench, deaf: u8, packet: Vec<u8>) -> Vec<Vec<u8>> {
        bench.change_forwarding(|forwarding| forwarding.adjacencies6.retain(|adjacency| adjacency.interface != deaf));
        assert!(bench.run(&[packet]).is_empty());
        let Ok(Event::Punt { waiting, cause: PuntCause::NoAdjacency { .. } }) = bench.events.pop() else {
            panic!("it does not wait for a next hop: {:?}", bench.moved())
        };
        bench.commands.push(Command::Refuse { waiting, reason: Reason::Unresolved }).unwrap();
        bench.run(&[])
    }

    fn told(error: &[u8]) -> (Ipv6Addr, Ipv6Addr, [u8; 2], &[u8]) {
        assert!(has_valid_checksums6(error));
        let header = ip6::parse(error).unwrap();
        (header.source, header.destination, [error[40], error[41]], &error[48..])
    }

    const UNREACHABLE: [u8; 2] = [icmp6::UNREACHABLE, icmp6::CODE_ADDRESS];

    #[test]
    fn a_client_hears_that_the_router_of_its_exit_does_not_answer_about_the_packet_it_sent() {
        let mut bench = Bench::exit6(|_| {});
        bench.bind6_for(Owner::session(3), Translation::Nat66, ip4::UDP, 1000, PORT6);
        let mut question = udp6_packet((INSIDE6, 1000), (SERVER6, 53), b"question");
        let out = in_vain(&mut bench, 0, Relayed::up(3, 1, question.clone()).frame());
        question[ip6::HOP_LIMIT] -= 1;
        assert_eq!(out.len(), 1, "{:?}", bench.moved());
        let error = sent(&out[0], &UP_KEY).inner;
        assert_eq!(told(&error), (US6, INSIDE6, UNREACHABLE, &question[..]));
    }

    #[test]
    fn a_server_hears_that_an_inside_host_does_not_answer_and_not_who_it_is() {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
        let mut answer = udp6_packet((SERVER6, 53), (US6, PORT6), b"answer");
        let out = in_vain(&mut bench, 1, frame6(&answer));
        answer[ip6::HOP_LIMIT] -= 1;
        assert_eq!(out.len(), 1, "{:?}", bench.moved());
        assert_eq!(told(&out[0][14..]), (US6, SERVER6, UNREACHABLE, &answer[..]));
    }

    #[test]
    fn a_server_of_ipv4_hears_so_in_its_own_words() {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat64, ip4::UDP, 1000, 41_000);
        let out = in_vain(&mut bench, 1, frame(&udp_packet((SERVER, 53), (US, 41_000), b"answer")));
        assert_eq!(out.len(), 1, "{:?}", bench.moved());
        let error = &out[0][14..];
        let header = ip4::parse(error).unwrap();
        assert!(has_valid_checksums(error));
        assert_eq!((header.source, header.destination, &error[20..22]), (US, SERVER, &[icmp::UNREACHABLE, 1][..]));
        let quoted = udp_packet((SERVER, 53), (US, 41_000), b"answer");
        assert_eq!(error[28 + ip4::SOURCE..], quoted[ip4::SOURCE..]);
    }
}
