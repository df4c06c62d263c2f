//! NAPT66 in the other direction: a server's packet finds its session, or the gateway's host, by address and port.
//!
//! Path: ip6_input | sv_reassembly | nat6_in2out (hairpin) -> here -> ip6_output | exit_down | icmp6_error | handoff | drop.
//! Reads: l3, l4, protocol, fragment, ports. Writes: slot, kind.
//!
//! As for IPv4 a port belongs to a worker by its number, and packets from outside keep nothing alive but what TCP says.

use super::{
    icmp6_error::tell,
    nat_in2out::reason_of,
    nat_out2in::hold_or_drop,
    nat6_in2out::{check_transport, largest_segment6},
    prelude::*,
};
use crate::{
    dataplane::{
        nat::{
            Owner,
            connections::Origin,
            remote_end,
            rewrite::{self as nat, Side},
            rewrite6::{self as nat6, table_protocol},
            token,
        },
        packet::Fragment,
    },
    wire::{icmp, icmp6, ip4, ip6, relay, tcp},
};

node!(Nat6Out2in, "nat6_out2in", [Ip6Output, ExitDown, Icmp6Error, Handoff], nat6_out2in);

fn nat6_out2in(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let ip = packet.ip(frames);
    let Ok(header) = ip6::parse(ip) else { return Verdict::Drop(Reason::BadLength) };
    let is_later = packet.fragment == Fragment::Later;
    let transport = &ip[header.header_length..];
    let segment = match check_transport(transport, header.protocol, packet.fragment) {
        Ok(segment) => segment,
        Err(reason) => return Verdict::Drop(reason),
    };
    // An ICMPv6 error finds its binding by the sender of the packet it quotes: us.
    let quote = match header.protocol {
        ip6::ICMP if is_later => None,
        ip6::ICMP if icmp6::is_error(transport[icmp::TYPE]) => match nat6::quote(ip, &header) {
            Ok(quote) => Some(quote),
            Err(bad) => return Verdict::Drop(reason_of(bad)),
        },
        ip6::ICMP if transport[icmp::TYPE] != icmp6::ECHO_REPLY => return Verdict::Drop(Reason::UnknownProtocol),
        _ => None,
    };
    let (protocol, outside, remote) = match &quote {
        Some(quote) => (quote.header.protocol, quote.source, quote.destination),
        None => {
            let Some((from, to)) = nat::ports(transport, header.protocol, &packet) else {
                return Verdict::Drop(Reason::UnknownProtocol);
            };
            (header.protocol, (header.destination, to), (header.source, from))
        }
    };
    let protocol = table_protocol(protocol);
    let pool = context.bindings.outside();
    let Some(outside) = pool.token_of(outside.0).map(|token| (token, outside.1)) else {
        return Verdict::Drop(Reason::NotOurs);
    };
    let remote_token = pool.token_of(remote.0).unwrap_or_else(|| context.hosts6.remote(remote.0));
    let Some(number) = pool.number_of(outside.0) else { return Verdict::Drop(Reason::NotOurs) };
    let remote = remote_end(protocol, (remote_token, remote.1));
    match context.owner_of(protocol, outside) {
        None => return Verdict::Drop(Reason::NotOurPort),
        Some(owner) if owner != context.index => return context.hand_off(slot, owner, NodeId::Nat6Out2in),
        Some(_) => {}
    }
    let is_segment = quote.is_none() && protocol == ip4::TCP && !is_later;
    let ends = is_segment.then_some((remote, outside));
    let found = context.bindings.find_outside(number, protocol, outside.1, remote);
    let Some((index, &binding)) = found.and_then(|index| Some((index, context.bindings.get(index)?))) else {
        return hold_or_drop(context, slot, ip, ends, Reason::NoMapping);
    };
    if !context.bindings.lets_in(index, remote) {
        let reason = if binding.remote().is_some() { Reason::NotRemote } else { Reason::Filtered };
        return hold_or_drop(context, slot, ip, ends, reason);
    }
    let host = token::host_of(binding.inside_address).and_then(|(_, place)| context.hosts6.address(place));
    let Some(host) = host else { return Verdict::Drop(Reason::NoMapping) };
    if header.hop_limit <= 1 {
        return tell(context, slot, icmp6::TIME_EXCEEDED, 0, 0);
    }
    let mtu = context.mtu_to_host(binding.owner, host.into());
    if mtu != 0 && header.total_length > usize::from(mtu) {
        return tell(context, slot, icmp6::PACKET_TOO_BIG, 0, mtu);
    }
    let is_new = segment.as_ref().is_some_and(|segment| segment.flags & (tcp::SYN | tcp::ACK) == tcp::SYN);
    if is_new && binding.owner == Owner::INSIDE && context.routes.is_draining() {
        return Verdict::Drop(Reason::Draining);
    }
    let ip = packet.ip(frames);
    ip[ip6::HOP_LIMIT] -= 1;
    let inside = (host, binding.inside_port);
    match &quote {
        Some(quote) => {
            nat6::replace_address(ip, Side::Destination, host);
            nat6::translate_quote(ip, &header, quote, Side::Source, inside);
            context.published.bindings[index as usize].count(header.total_length);
        }
        None => {
            match is_later {
                true => drop(nat6::replace_address(ip, Side::Destination, host)),
                false => nat6::translate(ip, header.header_length, header.protocol, Side::Destination, inside),
            }
            if segment.is_some() && binding.owner.slot().is_some() {
                tcp::clamp_mss(&mut ip[header.header_length..], largest_segment6(mtu));
            }
            context.account(index, Origin::Outside, remote, segment.as_ref(), header.total_length);
        }
    }
    leave(context, slot, binding.owner)
}

/// To the host: behind the gateway, or a client of the overlay.
pub(super) fn leave(context: &mut Context, slot: usize, owner: Owner) -> Verdict {
    match owner.slot() {
        Some(session) => {
            let packet = &mut context.packets[slot];
            packet.slot = session;
            packet.kind = relay::Kind::DataDown;
            Verdict::Next(NodeId::ExitDown)
        }
        None => Verdict::Next(NodeId::Ip6Output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            handoff::mesh,
            nat::{Translation, held_syns::HOLD},
            testing::*,
            testing6::*,
        },
        wire::{ethernet, read_u32},
    };

    fn bound(protocol: u8) -> Bench {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat66, protocol, 1000, PORT6);
        bench
    }

    fn arrived(bench: &mut Bench, packet: Vec<u8>) -> Vec<u8> {
        let out = bench.run_at6(0, &[packet]);
        assert_eq!(bench.moved(), []);
        assert_eq!((out.len(), out[0].0), (1, 1));
        assert!(has_valid_checksums6(&out[0].1[ethernet::HEADER_BYTES..]));
        out[0].1[ethernet::HEADER_BYTES..].to_vec()
    }

    #[test]
    fn an_answer_is_rewritten_exactly_and_nothing_else_changes() {
        let mut bench = bound(ip4::UDP);
        let got = arrived(&mut bench, udp6_packet((SERVER6, 53), (US6, PORT6), b"answer"));
        let mut expected = udp6_packet((SERVER6, 53), (INSIDE6, 1000), b"answer");
        expected[ip6::HOP_LIMIT] -= 1;
        assert_eq!(got, expected);
        let mut bench = bound(ip4::ICMP);
        let [high, low] = PORT6.to_be_bytes();
        let got = arrived(&mut bench, icmp6_packet(SERVER6, US6, icmp6::ECHO_REPLY, 0, &[high, low, 0, 1]));
        assert_eq!(nat::port(&got[40..], ip6::ICMP, Side::Destination), Some(1000));
    }

    #[test]
    fn what_is_for_nobody_is_dropped_by_reason() {
        let mut bench = bound(ip4::UDP);
        bench.expect_drop(frame6(&udp6_packet((SERVER6, 53), (US6, PORT6 + 1), b"x")), "nat6_out2in.drop.no_mapping");
        bench.expect_drop(frame6(&udp6_packet((SERVER6, 53), (US6, 80), b"x")), "nat6_out2in.drop.not_our_port");
        let ping = icmp6_packet(SERVER6, US6, icmp6::ECHO_REQUEST, 0, &[0, 1, 0, 1]);
        bench.expect_drop(frame6(&ping), "nat6_out2in.drop.unknown_protocol");
        bench.expect_drop(frame6(&packet6(SERVER6, US6, 47, &[0; 8])), "nat6_out2in.drop.unknown_protocol");
        let strange = udp6_packet((OFFICE6, 9), (ROUTER6, 9), b"not of this packet");
        let error = error6_packet(ROUTER6, US6, icmp6::UNREACHABLE, 0, [0; 4], &strange);
        bench.expect_drop(frame6(&error), "nat6_out2in.drop.not_ours");
    }

    #[test]
    fn an_error_about_a_hosts_packet_reaches_it_as_about_its_own() {
        let mut bench = bound(ip4::UDP);
        let quoted = udp6_packet((US6, PORT6), (SERVER6, 33_434), b"traceroute");
        let error = error6_packet(ROUTER6, US6, icmp6::PACKET_TOO_BIG, 0, [0, 0, 5, 0x14], &quoted);
        let got = arrived(&mut bench, error);
        let header = ip6::parse(&got).unwrap();
        assert_eq!((header.source, header.destination), (ROUTER6, INSIDE6));
        assert_eq!((got[40], read_u32(&got, 44)), (icmp6::PACKET_TOO_BIG, 1300));
        assert_eq!(got[48..], udp6_packet((INSIDE6, 1000), (SERVER6, 33_434), b"traceroute"));
    }

    #[test]
    fn what_is_too_big_or_too_old_for_the_way_to_the_host_is_told() {
        let mut bench = bound(ip4::UDP);
        bench.change_forwarding(|forwarding| forwarding.interfaces[1].mtu = 1280);
        let big = udp6_packet((SERVER6, 53), (US6, PORT6), &[7; 1400]);
        let mut late = udp6_packet((SERVER6, 53), (US6, PORT6), b"late");
        late[ip6::HOP_LIMIT] = 1;
        for (packet, kind, word) in [(big, icmp6::PACKET_TOO_BIG, 1280), (late, icmp6::TIME_EXCEEDED, 0)] {
            let out = bench.run_at6(0, &[packet]);
            let got = &out[0].1[14..];
            assert_eq!((out[0].0, got[40], read_u32(got, 44)), (0, kind, word));
            assert_eq!(ip6::parse(got).unwrap().source, US6, "servers know us by it");
        }
    }

    #[test]
    fn a_port_of_another_worker_is_handed_to_it() {
        let mut benches: Vec<Bench> =
            mesh(2).into_iter().enumerate().map(|(index, ends)| Bench::at6(index, 2, ends)).collect();
        let port = identity(2).nat_port_last;
        benches[1].bind6(Translation::Nat66, ip4::UDP, 1000, port);
        assert!(benches[0].run_at6(0, &[udp6_packet((SERVER6, 53), (US6, port), b"answer")]).is_empty());
        assert_eq!(benches[1].sweep().len(), 1);
    }

    #[test]
    fn a_syn_that_nothing_lets_in_is_answered_after_six_seconds() {
        let mut bench = bound(ip4::UDP);
        let syn = tcp6_packet((SERVER6, 80), (US6, PORT6), tcp::SYN, &[]);
        bench.expect_drop(frame6(&syn), "nat6_out2in.drop.held_syn");
        bench.now += HOLD;
        let told = bench.sweep();
        assert_eq!(told[0][14 + 40..][..2], [icmp6::UNREACHABLE, icmp6::CODE_PORT]);
        assert!(has_valid_checksums6(&told[0][14..]));
    }
}
