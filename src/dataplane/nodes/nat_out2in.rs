//! NAT in the other direction: a server's packet finds its session, or the gateway's host, by address and port.
//!
//! Path: l4_classify | sv_reassembly | nat_in2out | nat6_in2out (hairpin) -> here -> exit_down | ip_output (to a host
//! of the gateway) | ip6_output (to one of IPv6) | icmp_error | handoff | drop.
//! Reads: l3, l4, protocol, fragment, ports. Writes: slot, kind, destination.
//!
//! A port belongs to a worker by its number ([`OutsideAddresses::owner_of`]), so the packet finds its owner
//! before any table is looked at. Packets from outside do not keep a UDP or ICMP binding alive (RFC 4787
//! REQ-6, RFC 7857 section 2): else a stranger could hold it open.
//!
//! [`OutsideAddresses::owner_of`]: crate::dataplane::nat::OutsideAddresses::owner_of

use super::{
    fragment,
    nat_in2out::{error, largest_segment, reason_of},
    nat64_out2in::{Inbound, nat64_out2in},
    prelude::*,
};
use crate::{
    dataplane::{
        gateway::Realm,
        nat::{
            Endpoint, Owner, ahead,
            connections::Origin,
            established,
            flow_cache::{Decision, Way},
            remote_end,
            rewrite::{self as nat, Quote, Side},
            token,
        },
        packet::Fragment,
    },
    wire::{icmp, ip4, relay, tcp},
};

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node {
    id: NodeId::NatOut2in,
    name: "nat_out2in",
    next: &[
        NodeId::ExitDown,
        NodeId::IpOutput,
        NodeId::IcmpError,
        NodeId::Fragment,
        NodeId::Handoff,
        NodeId::Ip6Output,
    ],
    process: |context, frames, batch| {
        ahead::from_outside(context, frames, batch);
        context.each(frames, batch, NodeId::NatOut2in, nat_out2in);
    },
};

fn nat_out2in(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let ip = packet.ip(frames);
    let header_length = usize::from(packet.l4 - packet.l3);
    let Ok(header) = ip4::parse(ip) else { return Verdict::Drop(Reason::BadLength) };
    let transport = &ip[header_length..];

    // An ICMP error finds its binding by the sender of the packet it quotes: us.
    let quote = match header.protocol {
        ip4::ICMP if packet.fragment == Fragment::No && icmp::is_error(transport[icmp::TYPE]) => {
            match nat::quote(transport) {
                Ok(quote) => Some(quote),
                Err(bad) => return Verdict::Drop(reason_of(bad)),
            }
        }
        _ => None,
    };
    let (protocol, outside, remote) = match &quote {
        Some(quote) if quote.protocol == ip4::UDP && context.is_relayed(quote.source, quote.destination) => {
            return Verdict::Drop(Reason::PeerUnreachable);
        }
        Some(quote) => (quote.protocol, quote.source, quote.destination),
        None => {
            let Some((from, to)) = nat::ports(transport, header.protocol, &packet) else {
                return Verdict::Drop(Reason::UnknownProtocol);
            };
            (header.protocol, (header.destination, to), (header.source, from))
        }
    };
    // In the pool there are tokens, too: on the wire they are nobody's addresses.
    let number = context.bindings.outside().number_of(outside.0).filter(|_| !token::is_reserved(outside.0));
    let Some(address) = number else { return Verdict::Drop(Reason::NotOurs) };
    let port = outside.1;
    let remote = remote_end(protocol, remote);
    match context.owner_of(protocol, outside) {
        None => return Verdict::Drop(Reason::NotOurPort),
        Some(owner) if owner != context.index => return context.hand_off(slot, owner, NodeId::NatOut2in),
        Some(_) => {}
    }
    let is_later = packet.fragment == Fragment::Later;
    let is_segment = quote.is_none() && protocol == ip4::TCP && !is_later;
    let found = context.bindings.find_outside(address, protocol, port, remote);
    let Some((index, &binding)) = found.and_then(|index| Some((index, context.bindings.get(index)?))) else {
        return hold_or_drop(context, slot, ip, is_segment.then_some((remote, outside)), Reason::NoMapping);
    };
    if !context.bindings.lets_in(index, remote) {
        let reason = if binding.remote().is_some() { Reason::NotRemote } else { Reason::Filtered };
        return hold_or_drop(context, slot, ip, is_segment.then_some((remote, outside)), reason);
    }
    if header.ttl <= 1 {
        return error(context, slot, icmp::TIME_EXCEEDED, 0, 0);
    }
    let segment = if is_segment { tcp::parse(&ip[header_length..]) } else { None };
    let is_new = segment.as_ref().is_some_and(|segment| segment.flags & (tcp::SYN | tcp::ACK) == tcp::SYN);
    if is_new && binding.owner == Owner::INSIDE && context.routes.is_draining() {
        return Verdict::Drop(Reason::Draining);
    }
    if token::is_reserved(binding.inside_address) {
        let (quote, segment) = (quote.as_ref(), segment.as_ref());
        let inbound = Inbound { header: &header, quote, segment, index, binding: &binding, remote };
        return nat64_out2in(context, frames, slot, &inbound);
    }
    // Without a session `exit_down` drops it.
    let mtu = context.mtu_to_host(binding.owner, binding.inside_address.into());
    if mtu != 0 && header.total_length > usize::from(mtu) && header.is_dont_fragment() {
        return error(context, slot, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, mtu);
    }

    let inside = binding.inside();
    let ip = packet.ip(frames);
    ip4::decrement_ttl(ip);
    match quote {
        Some(quote) => translate_error(ip, header_length, &quote, inside),
        None if is_later => drop(ip4::replace_address(ip, ip4::DESTINATION, inside.0)),
        None => {
            nat::translate(ip, header_length, protocol, Side::Destination, inside.0, inside.1);
            if protocol == ip4::TCP && binding.owner.slot().is_some() {
                tcp::clamp_mss(&mut ip[header_length..], largest_segment(mtu));
            }
        }
    }
    match quote {
        Some(_) => context.published.bindings[index as usize].count(header.total_length),
        None => context.account(index, Origin::Outside, remote, segment.as_ref(), header.total_length),
    }
    // What comes from inside is hairpinned: on the wire it looked different.
    let is_from_inside = context.routes.realm(packet.interface) == Realm::Inside;
    if quote.is_none() && !is_from_inside && segment.as_ref().is_none_or(|segment| segment.flags & tcp::SYN == 0) {
        let (way, mtu) = match binding.owner.slot() {
            Some(_) => (Way::ToSession, u16::MAX),
            None => (Way::ToHost, mtu),
        };
        let decision = Decision { binding: index, way, end: inside, mtu };
        established::note(context, &packet, &header, (remote.1, port), &decision);
    }
    let packet = &mut context.packets[slot];
    match binding.owner.slot() {
        Some(session) => {
            packet.slot = session;
            packet.kind = relay::Kind::DataDown;
            fragment::unless_too_big(packet, mtu, NodeId::ExitDown)
        }
        None => {
            packet.destination = binding.inside_address;
            fragment::unless_too_big(packet, mtu, NodeId::IpOutput)
        }
    }
}

/// Nothing lets the packet in. A SYN (`segment`: its ends) is held, for the other end may be about to send one, too
/// (RFC 5382 REQ-4).
pub(super) fn hold_or_drop(
    context: &mut Context,
    slot: usize,
    ip: &[u8],
    segment: Option<(Endpoint, Endpoint)>,
    reason: Reason,
) -> Verdict {
    let packet = &context.packets[slot];
    let flags = ip[usize::from(packet.l4 - packet.l3)..].get(tcp::FLAGS).copied().unwrap_or(0);
    let is_syn = flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
    match segment {
        Some((remote, outside)) if is_syn && !context.is_ours(remote.0) => {
            context.held_syns.hold(context.now, context.packets[slot].interface, remote, outside, ip);
            Verdict::Drop(Reason::HeldSyn)
        }
        _ => Verdict::Drop(reason),
    }
}

/// RFC 5508 REQ-4: the quoted packet becomes the one the client sent, the error itself goes to the client. Who
/// sent the error stays: a router on the way is seen as itself.
fn translate_error(ip: &mut [u8], header_length: usize, quote: &Quote, inside: Endpoint) {
    ip4::replace_address(ip, ip4::DESTINATION, inside.0);
    nat::translate_quote(&mut ip[header_length..], quote, Side::Source, inside.0, inside.1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        command::Command,
        conntrack::NO_BINDING,
        handoff::mesh,
        nat::{BindingInit, Mapping, NatConfig},
        testing::*,
    };

    fn tunnel(protocol: u8) -> Bench {
        let mut bench = Bench::new();
        bench.exit(2, NO_BINDING);
        bench.bind(protocol, 1000, 41_000, None);
        bench
    }

    #[test]
    fn an_answer_goes_to_the_client_over_every_path_with_one_sequence_number() {
        let mut bench = tunnel(ip4::UDP);
        let out = bench.run(&[frame(&udp_packet((SERVER, 53), (US, 41_000), b"answer"))]);
        assert_eq!(bench.moved(), []);
        let mut expected = udp_packet((SERVER, 53), (INSIDE, 1000), b"answer");
        ip4::decrement_ttl(&mut expected);
        assert_eq!(out.len(), 2);
        for frame in &out {
            let got = sent(frame, &UP_KEY);
            assert!(got.is_authentic);
            assert_eq!((got.header.sequence, got.to), (1, (UPSTREAM, DATA_PORT)));
            assert_eq!(got.inner, expected);
        }
    }

    #[test]
    fn an_echo_reply_finds_its_asker_by_identifier() {
        let mut bench = tunnel(ip4::ICMP);
        let reply = icmp_packet(SERVER, US, icmp::ECHO_REPLY, 0, &[0xa0, 0x28, 0, 9, 1, 2, 3]);
        let out = bench.run(&[frame(&reply)]);
        let inner = sent(&out[0], &UP_KEY).inner;
        assert!(has_valid_checksums(&inner));
        assert_eq!(inner[24..26], 1000u16.to_be_bytes());
    }

    #[test]
    fn an_answer_to_a_host_of_the_gateway_goes_straight_to_it() {
        let mut bench = Bench::new();
        bench.bind_for(Owner::INSIDE, ip4::UDP, 1000, 41_000, None);
        bench.route_to_inside();
        let out = bench.run(&[frame(&udp_packet((SERVER, 53), (US, 41_000), b"answer"))]);
        assert_eq!(bench.moved(), []);
        let mut expected = udp_packet((SERVER, 53), (INSIDE, 1000), b"answer");
        ip4::decrement_ttl(&mut expected);
        assert_eq!(out[0][14..], expected);
    }

    #[test]
    fn an_unknown_packet_from_outside_is_dropped() {
        let mut bench = tunnel(ip4::UDP);
        bench.expect_drop(frame(&udp_packet((SERVER, 53), (US, 41_001), b"x")), "nat_out2in.drop.no_mapping");
        let segment = |flags| frame(&tcp_packet((SERVER, 80), (US, 41_000), flags, &[]));
        bench.expect_drop(segment(tcp::ACK), "nat_out2in.drop.no_mapping");
        bench.expect_drop(segment(tcp::SYN), "nat_out2in.drop.held_syn");
    }

    #[test]
    fn a_flow_hears_its_server_only() {
        let mut bench = Bench::new();
        bench.exit(1, 4);
        bench.bind(ip4::UDP, 1000, 41_000, Some((SERVER, 53)));
        bench.expect_drop(frame(&udp_packet((SERVER, 54), (US, 41_000), b"x")), "nat_out2in.drop.not_remote");
        bench.expect_drop(frame(&udp_packet((ROUTER, 53), (US, 41_000), b"x")), "nat_out2in.drop.not_remote");
        assert_eq!(bench.run(&[frame(&udp_packet((SERVER, 53), (US, 41_000), b"x"))]).len(), 1);
    }

    #[test]
    fn an_icmp_error_reaches_the_client_with_the_packet_it_sent() {
        let mut bench = tunnel(ip4::UDP);
        let quoted = udp_packet((US, 41_000), (SERVER, 53), b"question");
        let rest: Vec<u8> = [0, 0, 5, 0].into_iter().chain(quoted.iter().copied()).collect();
        let out = bench.run(&[frame(&icmp_packet(ROUTER, US, icmp::UNREACHABLE, 4, &rest))]);
        assert_eq!(bench.moved(), []);
        let inner = sent(&out[0], &UP_KEY).inner;
        assert!(has_valid_checksums(&inner));
        let header = ip4::parse(&inner).unwrap();
        assert_eq!((header.source, header.destination), (ROUTER, INSIDE), "the router is seen as itself");
        assert_eq!(inner[26..28], [5, 0], "the next hop's MTU stays");
        assert_eq!(&inner[28..], udp_packet((INSIDE, 1000), (SERVER, 53), b"question"));
    }

    #[test]
    fn errors_that_quote_what_we_did_not_send_are_dropped() {
        let mut bench = tunnel(ip4::UDP);
        let about = |quoted: &[u8]| {
            let rest: Vec<u8> = [0; 4].into_iter().chain(quoted.iter().copied()).collect();
            frame(&icmp_packet(ROUTER, US, icmp::UNREACHABLE, 1, &rest))
        };
        bench.expect_drop(about(&udp_packet((CLIENT, 41_000), (SERVER, 53), b"")), "nat_out2in.drop.not_ours");
        bench.expect_drop(about(&udp_packet((US, 41_002), (SERVER, 53), b"")), "nat_out2in.drop.no_mapping");
        bench.expect_drop(about(&udp_packet((US, 22), (SERVER, 53), b"")), "nat_out2in.drop.not_our_port");
        for port in [DATA_PORT, DATA_PORT + 255] {
            let relayed = udp_packet((US, port), (DOWNSTREAM, DATA_PORT), b"");
            bench.expect_drop(about(&relayed), "nat_out2in.drop.peer_unreachable");
        }
        let translated = udp_packet((US, DATA_PORT + 255), (DOWNSTREAM, DATA_PORT + 1), b"");
        bench.expect_drop(about(&translated), "nat_out2in.drop.no_mapping");
        bench.expect_drop(about(&packet(US, SERVER, 47, &[0; 16])), "nat_out2in.drop.unknown_protocol");
        bench.expect_drop(about(&[0x45]), "nat_out2in.drop.too_short");
        let mut broken = about(&udp_packet((US, 41_000), (SERVER, 53), b""));
        broken[14 + 24] ^= 1;
        bench.expect_drop(broken, "nat_out2in.drop.bad_checksum");
    }

    #[test]
    fn a_packet_too_big_for_the_tunnel_is_answered_with_the_size_that_fits() {
        let mut bench = tunnel(ip4::UDP);
        let big = udp_packet((SERVER, 53), (US, 41_000), &[0; 1400]);
        let out = bench.run(&[frame(&big)]);
        let ip = &out[0][14..];
        assert!(has_valid_checksums(ip));
        let header = ip4::parse(ip).unwrap();
        assert_eq!((header.source, header.destination), (US, SERVER));
        assert_eq!((ip[20], ip[21], &ip[26..28]), (icmp::UNREACHABLE, 4, &INSIDE_MTU.to_be_bytes()[..]));
        assert_eq!(ip[28..], big[..ip.len() - 28]);
    }

    #[test]
    fn a_hairpinned_packet_too_big_for_the_way_back_is_answered() {
        let mut bench = Bench::new();
        bench.gateway();
        bench.change_forwarding(|forwarding| forwarding.interfaces[2].mtu = 1400);
        bench.bind_for(Owner::INSIDE, ip4::UDP, 1000, 41_000, None);
        let neighbour = BindingInit {
            owner: Owner::INSIDE,
            protocol: ip4::UDP,
            inside_address: NEIGHBOUR,
            inside_port: 2000,
            outside_address: US,
            outside_port: 41_001,
            mapping: Mapping::EndpointIndependent,
            filtering: Default::default(),
        };
        bench.tell(Command::SetBinding { index: 5, binding: neighbour });
        let sent = udp_packet((INSIDE, 1000), (US, 41_001), &[7; 1450]);
        let out = bench.run_at(1, std::slice::from_ref(&sent));
        assert_eq!(bench.moved(), []);
        assert_eq!(out.len(), 1);
        let ip = &out[0].1[14..];
        let header = ip4::parse(ip).unwrap();
        assert_eq!((out[0].0, header.destination, ip[20], ip[21]), (1, INSIDE, icmp::UNREACHABLE, 4));
    }

    #[test]
    fn a_packet_for_another_workers_port_is_handed_over_and_goes_on_there() {
        let mut rings = mesh(2);
        let mut second = Bench::at(1, 2, rings.pop().unwrap());
        let mut first = Bench::with_workers(2, rings.pop().unwrap());
        second.exit(1, NO_BINDING);
        let port = *NatConfig::of(&identity(2)).outside(2).ports_of(0, 1).start();
        second.bind(ip4::UDP, 1000, port, None);
        assert!(first.run(&[frame(&udp_packet((SERVER, 53), (US, port), b"answer"))]).is_empty());
        assert_eq!(first.moved(), []);
        let out = second.run(&[]);
        assert_eq!(second.moved(), []);
        assert!(has_valid_checksums(&sent(&out[0], &UP_KEY).inner));
    }
}
