//! The end of [`nat_out2in`](super::nat_out2in) for a binding whose host speaks IPv6: the packet becomes one of IPv6
//! (RFC 6146 section 3.5, RFC 7915 section 4).
//!
//! What is too big for the way to the host is answered or cut there, as IPv4: a router of IPv6 cuts nothing.

use std::net::Ipv6Addr;

use super::{
    fragment6,
    nat_in2out::error,
    nat6_in2out::{is_nowhere, largest_segment64},
    nat6_out2in::leave,
    prelude::*,
};
use crate::{
    dataplane::{
        nat::{
            Binding, Endpoint, Prefix64,
            connections::Origin,
            icmp64::{GROWTH, MTU_MIN, Mtus},
            nat64::{self, ErrorToIp6, Place, Rewrite},
            rewrite::{Quote, Side},
            token,
        },
        packet::Fragment,
    },
    wire::{
        icmp, ip4, ip6, read_u16,
        tcp::{self, Segment},
        udp,
    },
};

/// The prefix that has rules of its own.
pub(super) const WELL_KNOWN: Prefix64 = Prefix64::WELL_KNOWN;

/// A packet that was let in.
pub(super) struct Inbound<'a> {
    /// Its header.
    pub(super) header: &'a ip4::Header,
    /// What it quotes, where it is an ICMP error.
    pub(super) quote: Option<&'a Quote>,
    /// What it says, where it is a TCP segment.
    pub(super) segment: Option<&'a Segment>,
    /// Its binding.
    pub(super) index: u32,
    /// The same.
    pub(super) binding: &'a Binding,
    /// Whom it is from, or was to.
    pub(super) remote: Endpoint,
}

/// The packet becomes one of IPv6 and leaves for its host.
pub(super) fn nat64_out2in(context: &mut Context, frames: &mut Frames, slot: usize, inbound: &Inbound) -> Verdict {
    let Inbound { header, quote, segment, index, binding, remote } = inbound;
    let host = token::host_of(binding.inside_address).and_then(|(_, place)| context.hosts6.address(place));
    let (Some(host), Some(prefix)) = (host, context.nat64) else { return Verdict::Drop(Reason::NoMapping) };
    // It would have no name by which the host could answer. Who reports an error wants no answer.
    if quote.is_none() && is_nowhere(context, header.source) {
        return Verdict::Drop(Reason::Denied);
    }
    let mtu = context.mtu_to_host(binding.owner, host.into());
    if mtu != 0 && grown(header) > usize::from(mtu) && header.is_dont_fragment() && !header.is_fragment() {
        let told = mtu.saturating_sub(GROWTH);
        return error(context, slot, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, told);
    }
    let packet = context.packets[slot];
    let frame = frames.frame(packet.frame);
    let identification = read_u16(frame, usize::from(packet.l3) + ip4::IDENTIFICATION);
    let is_fragment = packet.fragment != Fragment::No;
    if is_fragment && let Err(reason) = check_fragment(&frame[usize::from(packet.l4)..packet.end()], header) {
        return Verdict::Drop(reason);
    }
    let mtus = Mtus { ip4: context.routes.lookup(header.source).mtu, ip6: mtu };
    let from: Ipv6Addr = prefix.embed(header.source);
    let place = match quote {
        Some(quote) => {
            let inside = (host, binding.inside_port);
            let error = ErrorToIp6 { inside, source: from, remote: prefix.embed(quote.destination.0), mtus };
            match nat64::error_to_ip6(frame, Place::of(&packet), header, quote, &error) {
                Some(place) => place,
                None => return Verdict::Drop(Reason::NoEquivalent),
            }
        }
        None => {
            let to = Rewrite {
                source: from,
                destination: host,
                side: Side::Destination,
                port: binding.inside_port,
                hop_limit: header.ttl - 1,
            };
            let place = nat64::to_ip6(frame, Place::of(&packet), header, &to);
            if segment.is_some() {
                tcp::clamp_mss(&mut frame[place.l4..place.end], largest_segment64(mtus));
            }
            place
        }
    };
    let packet = &mut context.packets[slot];
    place.apply(packet);
    packet.protocol = frame[place.l3 + ip6::NEXT_HEADER];
    match quote {
        Some(_) => context.published.bindings[*index as usize].count(header.total_length),
        None => context.account(*index, Origin::Outside, *remote, *segment, header.total_length),
    }
    let is_cut = is_fragment || !header.is_dont_fragment() && place.end - place.l3 > usize::from(MTU_MIN);
    let origin = fragment6::Origin { identification, fragment: header.fragment };
    match leave(context, slot, binding.owner) {
        Verdict::Next(next) if is_cut => fragment6::cut(&mut context.packets[slot], MTU_MIN, origin, next),
        verdict => verdict,
    }
}

/// What a fragment must not be: of ICMP, whose checksum covers a length in IPv6 that only the last one tells, and of UDP
/// without a checksum, which only all of them together would give.
fn check_fragment(transport: &[u8], header: &ip4::Header) -> Result<(), Reason> {
    let is_first = header.fragment & ip4::OFFSET_MASK == 0;
    match header.protocol {
        ip4::ICMP => Err(Reason::Fragment),
        ip4::UDP if is_first && transport.len() < udp::HEADER_BYTES => Err(Reason::TooShort),
        ip4::UDP if is_first && read_u16(transport, udp::CHECKSUM) == 0 => Err(Reason::BadChecksum),
        _ => Ok(()),
    }
}

/// Bytes of a packet when it is one of IPv6; options are not carried over.
fn grown(header: &ip4::Header) -> usize {
    header.total_length - header.header_length + ip6::HEADER_BYTES
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{
            nat::{Prefix64, Translation},
            testing::*,
            testing6::*,
        },
        wire::{checksum, icmp, icmp6, ip4, ip6, read_u16, read_u32, tcp, write},
    };

    fn bound(protocol: u8) -> Bench {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat64, protocol, 1000, 41_000);
        bench
    }

    fn name(address: std::net::Ipv4Addr) -> std::net::Ipv6Addr {
        Prefix64::WELL_KNOWN.embed(address)
    }

    #[test]
    fn an_answer_reaches_the_host_as_ipv6() {
        let mut bench = bound(ip4::UDP);
        let out = bench.run_at(0, &[udp_packet((SERVER, 53), (US, 41_000), b"answer")]);
        assert_eq!(bench.moved(), []);
        let mut expected = udp6_packet((name(SERVER), 53), (INSIDE6, 1000), b"answer");
        expected[ip6::HOP_LIMIT] -= 1;
        assert_eq!((out[0].0, &out[0].1[14..]), (1, &expected[..]));
        assert_eq!(out[0].1[12..14], [0x86, 0xdd]);
    }

    #[test]
    fn a_client_without_a_name_in_the_prefix_is_not_let_in() {
        let mut bench = bound(ip4::UDP);
        let private = std::net::Ipv4Addr::new(10, 1, 1, 1);
        assert!(bench.run_at(0, &[udp_packet((private, 53), (US, 41_000), b"hello")]).is_empty());
        assert_eq!(bench.moved(), [("nat_out2in.drop.denied".to_owned(), 1)]);
        // A router on the way may have such an address.
        let quoted = udp_packet((US, 41_000), (SERVER, 33_434), b"traceroute");
        let told = icmp_packet(private, US, icmp::TIME_EXCEEDED, 0, &[&[0; 4], &quoted[..28]].concat());
        assert_eq!(bench.run_at(0, &[told]).len(), 1);
    }

    #[test]
    fn a_syn_announces_no_more_than_both_sides_carry() {
        let mut bench = bound(ip4::TCP);
        let answer = tcp_packet((SERVER, 80), (US, 41_000), tcp::SYN | tcp::ACK, &[2, 4, 5, 0xb4]);
        let out = bench.run_at(0, &[answer]);
        assert_eq!(out[0].1[14 + 60..], [2, 4, 5, 0xa0], "1440 = 1500 - 60");
        assert!(has_valid_checksums6(&out[0].1[14..]));
    }

    #[test]
    fn an_error_about_a_hosts_packet_reaches_it_in_its_own_words() {
        let mut bench = bound(ip4::UDP);
        let quoted = udp_packet((US, 41_000), (SERVER, 33_434), b"traceroute");
        let rest: Vec<u8> = [0; 4].into_iter().chain(quoted[..28].iter().copied()).collect();
        let out = bench.run_at(0, &[icmp_packet(ROUTER, US, icmp::TIME_EXCEEDED, 0, &rest)]);
        assert_eq!(bench.moved(), []);
        let got = &out[0].1[14..];
        assert!(has_valid_checksums6(got));
        let header = ip6::parse(got).unwrap();
        assert_eq!((header.source, header.destination, got[40]), (name(ROUTER), INSIDE6, icmp6::TIME_EXCEEDED));
        let sent = udp6_packet((INSIDE6, 1000), (name(SERVER), 33_434), b"traceroute");
        assert_eq!(got[48..], sent[..48]);
        let redirect_like = icmp_packet(ROUTER, US, icmp::UNREACHABLE, 14, &rest);
        assert!(bench.run_at(0, &[redirect_like]).is_empty());
        assert_eq!(bench.moved(), [("nat_out2in.drop.no_equivalent".to_owned(), 1)]);
    }

    #[test]
    fn an_error_that_claims_to_quote_nearly_nothing_does_no_harm() {
        let mut bench = bound(ip4::UDP);
        let quoted = udp_packet((US, 41_000), (SERVER, 33_434), b"traceroute");
        let rest = [&[0, 1, 0, 0], &quoted[..28]].concat();
        let out = bench.run_at(0, &[icmp_packet(ROUTER, US, icmp::TIME_EXCEEDED, 0, &rest)]);
        assert!(has_valid_checksums6(&out[0].1[14..]));
    }

    #[test]
    fn a_token_is_nobodys_address_on_the_wire() {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
        bench.bind4(ip4::UDP, 7, (US, 41_000));
        let token = crate::dataplane::nat::token::outside(0);
        let not_ours = [("nat_out2in.drop.not_ours".to_owned(), 1)];
        assert!(bench.run_at(0, &[udp_packet((SERVER, 53), (token, PORT6), b"by another name")]).is_empty());
        assert_eq!(bench.moved(), not_ours);
        assert!(bench.run_at(1, &[udp_packet((INSIDE, 7), (token, PORT6), b"from inside")]).is_empty());
        assert_eq!(bench.moved(), not_ours);
        let quoted = udp_packet((token, PORT6), (SERVER, 53), b"never sent");
        let rest = [&[0; 4], &quoted[..]].concat();
        let error = icmp_packet(ROUTER, US, icmp::UNREACHABLE, icmp::CODE_PORT, &rest);
        assert!(bench.run_at(0, &[error]).is_empty());
        assert_eq!(bench.moved(), not_ours);
    }

    fn narrow(bench: &mut Bench, mtu: u16) {
        bench.change_forwarding(|forwarding| forwarding.interfaces[1].mtu = mtu);
    }

    #[test]
    fn what_is_too_big_when_it_has_grown_is_told_the_size_that_ipv4_counts_in() {
        let mut bench = bound(ip4::UDP);
        narrow(&mut bench, 1400);
        let sent = |bytes: usize| udp_packet((SERVER, 53), (US, 41_000), &vec![7; bytes - 28]);
        let out = bench.run_at(0, &[sent(1381)]);
        let got = &out[0].1[14..];
        assert_eq!((out[0].0, got[20], got[21]), (0, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED));
        assert_eq!(read_u16(got, 20 + icmp::NEXT_HOP_MTU), 1380);
        assert_eq!(bench.run_at(0, &[sent(1380)])[0].1.len(), 14 + 1400);
    }

    /// Bytes of payload that the first one of two fragments has.
    const FIRST: usize = 1480;

    fn in_two(whole: &[u8]) -> [Vec<u8>; 2] {
        let (header, payload) = whole.split_at(ip4::HEADER_BYTES);
        let part = |payload: &[u8], field: u16| {
            let mut bytes = [header, payload].concat();
            let length = bytes.len() as u16;
            write(&mut bytes, ip4::TOTAL_LENGTH, &length.to_be_bytes());
            write(&mut bytes, ip4::IDENTIFICATION, &[7, 7]);
            write(&mut bytes, ip4::FRAGMENT, &field.to_be_bytes());
            write(&mut bytes, ip4::CHECKSUM, &[0, 0]);
            let field = checksum::of(&bytes[..ip4::HEADER_BYTES]);
            write(&mut bytes, ip4::CHECKSUM, &field.to_be_bytes());
            bytes
        };
        [part(&payload[..FIRST], ip4::MORE_FRAGMENTS), part(&payload[FIRST..], (FIRST / 8) as u16)]
    }

    #[test]
    fn a_ping_in_fragments_is_dropped_because_its_checksum_would_cover_a_length_that_none_tells() {
        let mut bench = bound(ip4::ICMP);
        let rest = [&41_000u16.to_be_bytes()[..], &[0, 1], &[9; 2000]].concat();
        let out = bench.run_at(0, &in_two(&icmp_packet(SERVER, US, icmp::ECHO_REPLY, 0, &rest)));
        assert_eq!((out.len(), bench.moved()), (0, vec![("nat_out2in.drop.fragment".to_owned(), 2)]));
        // The same in one is translated.
        let answer = icmp_packet(SERVER, US, icmp::ECHO_REPLY, 0, &rest[..1000]);
        assert_eq!(bench.run_at(0, &[answer]).len(), 1);
    }

    #[test]
    fn fragments_of_ipv4_are_fragments_of_ipv6() {
        let mut bench = bound(ip4::UDP);
        let data: Vec<u8> = (0..2400u32).map(|n| n as u8).collect();
        let whole = udp_packet((SERVER, 53), (US, 41_000), &data);
        let out = bench.run_at(0, &in_two(&whole));
        assert_eq!(bench.moved(), []);
        let mut expected = udp6_packet((name(SERVER), 53), (INSIDE6, 1000), &data);
        expected[ip6::HOP_LIMIT] -= 1;
        let mut parts: Vec<_> = out.iter().map(|(_, frame)| frame[14..].to_vec()).collect();
        parts.sort_by_key(|part| read_u16(part, 42));
        assert_eq!(parts.len(), 3, "what grew beyond what every link carries was cut again");
        let mut payload = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(ip6::parse(part).unwrap().fragment, Some(payload.len() as u16 | u16::from(number < 2)));
            assert_eq!((part.len() <= 1280, read_u32(part, 44)), (true, 0x0707));
            payload.extend_from_slice(&part[48..]);
        }
        assert_eq!(payload, expected[40..]);
    }

    #[test]
    fn what_may_be_fragmented_reaches_the_host_in_parts_that_every_link_carries() {
        let mut bench = bound(ip4::UDP);
        let data: Vec<u8> = (0..1440u32).map(|n| n as u8).collect();
        let mut sent = udp_packet((SERVER, 53), (US, 41_000), &data);
        write(&mut sent, ip4::IDENTIFICATION, &[0xab, 0xcd, 0, 0]);
        write(&mut sent, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&sent[..20]);
        write(&mut sent, ip4::CHECKSUM, &field.to_be_bytes());
        let out = bench.run_at(0, &[sent]);
        assert_eq!(bench.moved(), []);
        let mut whole = udp6_packet((name(SERVER), 53), (INSIDE6, 1000), &data);
        whole[ip6::HOP_LIMIT] -= 1;
        let mut payload = Vec::new();
        assert_eq!(out.len(), 2);
        for (number, (_, frame)) in out.iter().enumerate() {
            let part = &frame[14..];
            assert!(part.len() <= 1280);
            let header = ip6::parse(part).unwrap();
            assert_eq!((header.total_length, header.header_length), (part.len(), 48));
            assert_eq!((part[ip6::NEXT_HEADER], part[40], read_u32(part, 44)), (44, ip4::UDP, 0xabcd));
            assert_eq!(header.fragment, Some((payload.len() as u16) | u16::from(number == 0)));
            assert_eq!(part[8..40], whole[8..40]);
            payload.extend_from_slice(&part[48..]);
        }
        assert_eq!(payload, whole[40..]);
    }
}
