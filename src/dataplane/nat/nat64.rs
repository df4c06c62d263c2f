//! NAT64: what the translation between the families does to a packet's bytes (RFC 7915 with the addresses of RFC 6146).
//!
//! The payload stays where it is in its frame. The new headers are written in front of it, over the old ones and, where
//! they are longer, into the frame's headroom: 20 bytes more for a packet, 40 for an error and its quote.
//! Checksums are updated incrementally, so an error in a packet stays an error; what IPv4 may leave out (UDP's) is
//! made.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    icmp64::{self, Head, MTU_MIN, Mtus},
    rewrite::{Quote, Side, port_at},
    rewrite6::{Quote6, quote_at, seal_icmp, update_checksum},
};
use crate::{
    dataplane::packet::Packet,
    wire::{
        checksum::{self, Delta},
        ethernet, icmp, icmp6, ip4, ip6, read_u16, read_u32, udp, write,
    },
};

/// A packet within its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct Place {
    /// Where its IP header starts.
    pub(in crate::dataplane) l3: usize,
    /// Where its transport header starts.
    pub(in crate::dataplane) l4: usize,
    /// One past its last byte.
    pub(in crate::dataplane) end: usize,
}

impl Place {
    /// Where a slot's packet is.
    pub(in crate::dataplane) fn of(packet: &Packet) -> Self {
        Self { l3: usize::from(packet.l3), l4: usize::from(packet.l4), end: packet.end() }
    }

    /// Lets the slot's packet be there, with room for an Ethernet header before it.
    pub(in crate::dataplane) fn apply(&self, packet: &mut Packet) {
        packet.l3 = self.l3 as u16;
        packet.l4 = self.l4 as u16;
        packet.offset = (self.l3 - ethernet::HEADER_BYTES) as u16;
        packet.length = (self.end - self.l3 + ethernet::HEADER_BYTES) as u16;
    }
}

/// What is written into the new header, and whose port (or ICMP identifier) changes to what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct Rewrite<A> {
    pub(in crate::dataplane) source: A,
    pub(in crate::dataplane) destination: A,
    pub(in crate::dataplane) side: Side,
    pub(in crate::dataplane) port: u16,
    pub(in crate::dataplane) hop_limit: u8,
}

/// An error for an inside host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct ErrorToIp6 {
    /// The host, and its port.
    pub(in crate::dataplane) inside: (Ipv6Addr, u16),
    /// The name of who sent it.
    pub(in crate::dataplane) source: Ipv6Addr,
    /// The name of whom the quoted packet was for.
    pub(in crate::dataplane) remote: Ipv6Addr,
    pub(in crate::dataplane) mtus: Mtus,
}

/// An error of an inside host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct ErrorToIp4 {
    /// How the host is seen.
    pub(in crate::dataplane) outside: (Ipv4Addr, u16),
    /// Where the error goes.
    pub(in crate::dataplane) destination: Ipv4Addr,
    /// Whose packet it is about.
    pub(in crate::dataplane) remote: Ipv4Addr,
    pub(in crate::dataplane) hop_limit: u8,
    pub(in crate::dataplane) mtus: Mtus,
}

/// Bytes of a quoted packet's transport header that there are, or the quote is refused (RFC 792).
const QUOTED_TRANSPORT_MIN: usize = 8;

/// The largest packet that IPv4 may cut on its way (RFC 7915 section 5.1): it became one that IPv6 carries everywhere.
pub(in crate::dataplane) const MAY_BE_FRAGMENTED_MAX: usize = (MTU_MIN - icmp64::GROWTH) as usize;

/// An IPv4 packet, whole or quoted, becomes one of IPv6. `header` is what was read at `place`. Of a fragment that is not
/// the first only the address changes; that it is a fragment the caller has to write.
pub(in crate::dataplane) fn to_ip6(
    frame: &mut [u8],
    place: Place,
    header: &ip4::Header,
    to: &Rewrite<Ipv6Addr>,
) -> Place {
    let type_of_service = frame[place.l3 + 1];
    // What the packet's sender sent, though a quote may hold less.
    let length = header.total_length.saturating_sub(header.header_length) as u16;
    let addresses = Delta::default().take(&header.source.octets()).take(&header.destination.octets());
    let addresses = addresses.put(&to.source.octets()).put(&to.destination.octets());
    let transport = &mut frame[place.l4..place.end];
    let protocol = if header.protocol == ip4::ICMP { ip6::ICMP } else { header.protocol };
    let is_later = header.fragment & ip4::OFFSET_MASK != 0;
    let transport = if is_later { &mut transport[..0] } else { transport };
    let mut change = replace_port(transport, header.protocol, to.side, to.port);
    if protocol == ip6::ICMP {
        // ICMP has no pseudo-header, ICMPv6 has.
        change = change.put(&length.to_be_bytes()).put(&[0, ip6::ICMP]);
        change = change.put(&to.source.octets()).put(&to.destination.octets());
        change = replace_kind(transport, change, icmp64::query_to_ip6);
    } else {
        change = change.join(addresses);
    }
    update_checksum(transport, protocol, change);
    let is_whole = !header.is_fragment() && transport.len() == usize::from(length);
    if protocol == ip4::UDP && is_whole && read_u16(transport, udp::CHECKSUM) == 0 {
        seal_udp(transport, to);
    }
    let l3 = place.l4 - ip6::HEADER_BYTES;
    ip6::emit(&mut frame[l3..], to.source, to.destination, protocol, length, to.hop_limit);
    ip6::set_traffic_class(&mut frame[l3..], type_of_service);
    Place { l3, ..place }
}

/// An IPv6 packet, whole or quoted, becomes one of IPv4; extension headers go. `identification` is for those that may be
/// fragmented; a fragment has its own. Of one that is not the first only the address changes.
pub(in crate::dataplane) fn to_ip4(
    frame: &mut [u8],
    place: Place,
    header: &ip6::Header,
    to: &Rewrite<Ipv4Addr>,
    identification: u16,
) -> Place {
    let length = header.total_length.saturating_sub(header.header_length) as u16;
    let fragment = header.fragment.filter(|_| header.is_fragment());
    let fragment = fragment.map(|field| (field, read_u16(frame, place.l3 + header.fragment_at + 6)));
    let transport = &mut frame[place.l4..place.end];
    let transport = if header.is_tail() { &mut transport[..0] } else { transport };
    let mut change = replace_port(transport, header.protocol, to.side, to.port);
    let addresses = Delta::default().take(&header.source.octets()).take(&header.destination.octets());
    let protocol = if header.protocol == ip6::ICMP { ip4::ICMP } else { header.protocol };
    if protocol == ip4::ICMP {
        change = change.join(addresses).take(&length.to_be_bytes()).take(&[0, ip6::ICMP]);
        change = replace_kind(transport, change, icmp64::query_to_ip4);
    } else {
        change = change.join(addresses).put(&to.source.octets()).put(&to.destination.octets());
    }
    update_checksum(transport, protocol, change);
    let l3 = place.l4 - ip4::HEADER_BYTES;
    // A quote may name any length.
    let total = length.saturating_add(ip4::HEADER_BYTES as u16);
    emit_ip4(&mut frame[l3..], to, protocol, total, header.traffic_class, identification);
    if let Some((field, identification)) = fragment {
        let more = if field & 1 == 0 { 0 } else { ip4::MORE_FRAGMENTS };
        seal_ip4(&mut frame[l3..], identification, field >> 3 | more);
    }
    Place { l3, ..place }
}

/// An ICMP error that came from outside becomes one of IPv6. `None`: it has no like.
pub(in crate::dataplane) fn error_to_ip6(
    frame: &mut [u8],
    place: Place,
    header: &ip4::Header,
    quote: &Quote,
    error: &ErrorToIp6,
) -> Option<Place> {
    let &ErrorToIp6 { inside, source, remote, mtus } = error;
    let type_of_service = frame[place.l3 + 1];
    let at = place.l4 + quote.at;
    let quoted = ip4::parse_quoted(&frame[at..place.end]).ok()?;
    let old = read_head(frame, place.l4);
    let new = icmp64::error_to_ip6(old, quoted.total_length as u16, mtus)?;
    // Extensions (RFC 4884) are cut off: behind the quote, whose length is in words of four bytes.
    let length = usize::from(frame[place.l4 + 5]) * 4;
    let end = without_extensions(place, at + quote.header_length, length);
    let to =
        Rewrite { source: inside.0, destination: remote, side: Side::Source, port: inside.1, hop_limit: quoted.ttl };
    let inner = to_ip6(frame, Place { l3: at, l4: at + quote.header_length, end }, &quoted, &to);
    let l4 = inner.l3 - icmp::HEADER_BYTES;
    let l3 = l4 - ip6::HEADER_BYTES;
    // RFC 4443 section 3: no error is larger than what passes everywhere.
    let end = end.min(l3 + usize::from(MTU_MIN));
    write_head(frame, l4, new);
    ip6::emit(&mut frame[l3..], source, inside.0, ip6::ICMP, (end - l4) as u16, header.ttl.saturating_sub(1));
    ip6::set_traffic_class(&mut frame[l3..], type_of_service);
    seal_icmp(&mut frame[l3..end], ip6::HEADER_BYTES);
    Some(Place { l3, l4, end })
}

/// An ICMPv6 error from inside becomes one of IPv4. `None`: it has no like.
pub(in crate::dataplane) fn error_to_ip4(
    frame: &mut [u8],
    place: Place,
    header: &ip6::Header,
    quote: &Quote6,
    error: &ErrorToIp4,
) -> Option<Place> {
    let &ErrorToIp4 { outside, destination, remote, hop_limit, mtus } = error;
    let at = place.l3 + quote_at(header);
    let old = read_head(frame, place.l4);
    let new = icmp64::error_to_ip4(old, mtus)?;
    let has_extensions = matches!(old.kind, icmp6::UNREACHABLE | icmp6::TIME_EXCEEDED);
    let length = if has_extensions { usize::from(frame[place.l4 + 4]) * 8 } else { 0 };
    let end = without_extensions(place, at + quote.header.header_length, length);
    let to = Rewrite {
        source: remote,
        destination: outside.0,
        side: Side::Destination,
        port: outside.1,
        hop_limit: quote.header.hop_limit,
    };
    let inner = Place { l3: at, l4: at + quote.header.header_length, end };
    let inner = to_ip4(frame, inner, &quote.header, &to, 0);
    let l4 = inner.l3 - icmp::HEADER_BYTES;
    let l3 = l4 - ip4::HEADER_BYTES;
    write_head(frame, l4, new);
    let field = checksum::of(&frame[l4..end]);
    write(frame, l4 + icmp::CHECKSUM, &field.to_be_bytes());
    ip4::emit(&mut frame[l3..], outside.0, destination, ip4::ICMP, (end - l3) as u16, hop_limit);
    ip4::set_type_of_service(&mut frame[l3..], header.traffic_class);
    Some(Place { l3, l4, end })
}

/// Writes the port of one end; what that changes for the checksum. A port that was cut off is left alone.
fn replace_port(transport: &mut [u8], protocol: u8, side: Side, port: u16) -> Delta {
    let Some(at) = port_at(transport, protocol, side).filter(|at| transport.len() >= at + 2) else {
        return Delta::default();
    };
    let old = read_u16(transport, at);
    write(transport, at, &port.to_be_bytes());
    Delta::default().word(old, port)
}

/// Writes the type of an echo message in the other family.
fn replace_kind(transport: &mut [u8], change: Delta, to: fn(u8) -> Option<u8>) -> Delta {
    let Some(kind) = transport.first().copied().and_then(to) else { return change };
    let old = read_u16(transport, icmp::TYPE);
    transport[icmp::TYPE] = kind;
    change.word(old, read_u16(transport, icmp::TYPE))
}

/// IPv4 may leave the checksum of UDP out, IPv6 may not (RFC 7915 section 4.5).
fn seal_udp(datagram: &mut [u8], to: &Rewrite<Ipv6Addr>) {
    let Some(length) = udp::checked_length(datagram) else { return };
    let sum = ip6::pseudo_header(to.source, to.destination, ip4::UDP, length as u32);
    let field = match !checksum::fold(checksum::sum(&datagram[..length], sum)) {
        0 => 0xffff,
        field => field,
    };
    write(datagram, udp::CHECKSUM, &field.to_be_bytes());
}

/// The header of a packet that came from IPv6: one that is small enough may be fragmented, and has an identification for
/// that (RFC 7915 section 5.1).
fn emit_ip4(
    packet: &mut [u8],
    to: &Rewrite<Ipv4Addr>,
    protocol: u8,
    total: u16,
    type_of_service: u8,
    identification: u16,
) {
    ip4::emit(packet, to.source, to.destination, protocol, total, to.hop_limit);
    packet[1] = type_of_service;
    if usize::from(total) <= MAY_BE_FRAGMENTED_MAX {
        return seal_ip4(packet, identification, 0);
    }
    let field = read_u16(packet, ip4::FRAGMENT);
    seal_ip4(packet, 0, field);
}

/// Writes which packet's fragment it may be or is, and the header's checksum anew.
fn seal_ip4(packet: &mut [u8], identification: u16, fragment: u16) {
    write(packet, ip4::IDENTIFICATION, &identification.to_be_bytes());
    write(packet, ip4::FRAGMENT, &fragment.to_be_bytes());
    write(packet, ip4::CHECKSUM, &[0, 0]);
    let field = checksum::of(&packet[..ip4::HEADER_BYTES]);
    write(packet, ip4::CHECKSUM, &field.to_be_bytes());
}

/// The end of a packet whose ICMP error quotes `length` bytes and says more behind them; zero: it does not. Whatever it
/// says, the ports of the quoted packet, whose transport header is at `l4`, are quoted: the binding was found by them.
fn without_extensions(place: Place, l4: usize, length: usize) -> usize {
    if length == 0 {
        return place.end;
    }
    place.end.min((place.l4 + icmp::HEADER_BYTES + length).max(l4 + QUOTED_TRANSPORT_MIN))
}

fn read_head(frame: &[u8], at: usize) -> Head {
    Head { kind: frame[at + icmp::TYPE], code: frame[at + icmp::CODE], word: read_u32(frame, at + 4) }
}

/// Writes the first eight bytes of a message; its checksum is zero yet.
fn write_head(frame: &mut [u8], at: usize, head: Head) {
    write(frame, at, &[head.kind, head.code, 0, 0]);
    write(frame, at + 4, &head.word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            nat::{Prefix64, rewrite, rewrite6},
            testing::{has_valid_checksums, icmp_packet, tcp_packet, udp_packet},
            testing6::*,
        },
        wire::tcp::SYN,
    };

    const INSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
    const MTUS: Mtus = Mtus { ip4: 1500, ip6: 1500 };

    fn server() -> Ipv6Addr {
        Prefix64::WELL_KNOWN.embed(SERVER)
    }

    fn about(inside: (Ipv6Addr, u16), source: Ipv6Addr) -> ErrorToIp6 {
        ErrorToIp6 { inside, source, remote: server(), mtus: MTUS }
    }

    /// A frame that holds a packet behind some headroom.
    fn framed(packet: &[u8], header_length: usize) -> (Vec<u8>, Place) {
        let l3 = 100;
        let frame = [&vec![0xee; l3], packet].concat();
        let end = frame.len();
        (frame, Place { l3, l4: l3 + header_length, end })
    }

    fn out(packet: &[u8]) -> Vec<u8> {
        let header = ip6::parse(packet).unwrap();
        let (mut frame, place) = framed(packet, header.header_length);
        let to = Rewrite {
            source: OUTSIDE,
            destination: SERVER,
            side: Side::Source,
            port: 6000,
            hop_limit: header.hop_limit - 1,
        };
        let place = to_ip4(&mut frame, place, &header, &to, 0xabcd);
        frame[place.l3..place.end].to_vec()
    }

    fn back(packet: &[u8]) -> Vec<u8> {
        let header = ip4::parse(packet).unwrap();
        let (mut frame, place) = framed(packet, header.header_length);
        let to = Rewrite {
            source: server(),
            destination: INSIDE,
            side: Side::Destination,
            port: 5000,
            hop_limit: header.ttl - 1,
        };
        let place = to_ip6(&mut frame, place, &header, &to);
        frame[place.l3..place.end].to_vec()
    }

    fn lowered(mut packet: Vec<u8>) -> Vec<u8> {
        packet[ip6::HOP_LIMIT] -= 1;
        packet
    }

    #[test]
    fn what_goes_out_is_the_packet_that_an_ipv4_host_would_send() {
        let segment = [2, 4, 5, 0xa0];
        let echo = [0x12, 0x34, 0, 1, 9];
        let echo_outside = [6000u16.to_be_bytes()[0], 6000u16.to_be_bytes()[1], 0, 1, 9];
        for (six, four) in [
            (udp6_packet((INSIDE, 5000), (server(), 53), b"odd"), udp_packet((OUTSIDE, 6000), (SERVER, 53), b"odd")),
            (
                tcp6_packet((INSIDE, 5000), (server(), 80), SYN, &segment),
                tcp_packet((OUTSIDE, 6000), (SERVER, 80), SYN, &segment),
            ),
            (
                icmp6_packet(INSIDE, server(), icmp6::ECHO_REQUEST, 0, &echo),
                icmp_packet(OUTSIDE, SERVER, icmp::ECHO_REQUEST, 0, &echo_outside),
            ),
        ] {
            let got = out(&six);
            assert!(has_valid_checksums(&got));
            assert_eq!(got[20..], four[20..], "the transport header and all behind it");
            assert_eq!(out(&with_destination_options(&six)), got, "extension headers go");
            let header = ip4::parse(&got).unwrap();
            assert_eq!((header.source, header.destination, header.ttl), (OUTSIDE, SERVER, 63));
        }
    }

    #[test]
    fn what_comes_in_is_the_packet_that_an_ipv6_host_would_send() {
        let echo = [0x12, 0x34, 0, 1, 9];
        let echo_inside = [5000u16.to_be_bytes()[0], 5000u16.to_be_bytes()[1], 0, 1, 9];
        for (four, six) in [
            (udp_packet((SERVER, 53), (OUTSIDE, 6000), b"odd"), udp6_packet((server(), 53), (INSIDE, 5000), b"odd")),
            (
                tcp_packet((SERVER, 80), (OUTSIDE, 6000), SYN, &[2, 4, 5, 0xb4]),
                tcp6_packet((server(), 80), (INSIDE, 5000), SYN, &[2, 4, 5, 0xb4]),
            ),
            (
                icmp_packet(SERVER, OUTSIDE, icmp::ECHO_REPLY, 0, &echo),
                icmp6_packet(server(), INSIDE, icmp6::ECHO_REPLY, 0, &echo_inside),
            ),
        ] {
            assert_eq!(back(&four), lowered(six));
            let mut with_options = four.clone();
            with_options.splice(20..20, [1, 1, 1, 0]);
            with_options[0] = 0x46;
            let length = with_options.len() as u16;
            write(&mut with_options, ip4::TOTAL_LENGTH, &length.to_be_bytes());
            write(&mut with_options, ip4::CHECKSUM, &[0, 0]);
            let field = checksum::of(&with_options[..24]);
            write(&mut with_options, ip4::CHECKSUM, &field.to_be_bytes());
            assert_eq!(back(&with_options), back(&four), "options go");
        }
    }

    #[test]
    fn a_udp_checksum_that_ipv4_left_out_is_made() {
        let mut four = udp_packet((SERVER, 53), (OUTSIDE, 6000), b"answer");
        write(&mut four, 20 + udp::CHECKSUM, &[0, 0]);
        assert_eq!(back(&four), lowered(udp6_packet((server(), 53), (INSIDE, 5000), b"answer")));
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let mut six = udp6_packet((INSIDE, 5000), (server(), 53), b"question");
        six[50] ^= 1;
        assert!(!has_valid_checksums(&out(&six)));
        let mut four = icmp_packet(SERVER, OUTSIDE, icmp::ECHO_REPLY, 0, &[0, 1, 0, 1, 9]);
        four[26] ^= 1;
        assert!(!has_valid_checksums6(&back(&four)));
    }

    #[test]
    fn traffic_class_and_type_of_service_are_the_same_byte() {
        let mut six = udp6_packet((INSIDE, 5000), (server(), 53), b"x");
        ip6::set_traffic_class(&mut six, 0xb9);
        assert_eq!(out(&six)[1], 0xb9);
        let mut four = udp_packet((SERVER, 53), (OUTSIDE, 6000), b"x");
        ip4::set_type_of_service(&mut four, 0xb9);
        assert_eq!(ip6::parse(&back(&four)).unwrap().traffic_class, 0xb9);
    }

    #[test]
    fn what_may_be_fragmented_has_an_identification_and_what_may_not_has_none() {
        for (payload, expected) in [(0, (0, 0xabcd)), (1232, (0, 0xabcd)), (1233, (ip4::DONT_FRAGMENT, 0))] {
            let got = out(&udp6_packet((INSIDE, 5000), (server(), 53), &vec![7; payload]));
            let fields = (read_u16(&got, ip4::FRAGMENT), read_u16(&got, ip4::IDENTIFICATION));
            assert_eq!(fields, expected, "{payload} bytes");
        }
    }

    #[test]
    fn an_error_about_our_packet_reaches_the_host_in_its_own_words() {
        let sent = udp_packet((OUTSIDE, 6000), (SERVER, 33_434), b"traceroute");
        for cut in [28, sent.len()] {
            let mut rest = vec![0, 0, 5, 0x78];
            rest.extend(&sent[..cut]);
            let error = icmp_packet(ROUTER, OUTSIDE, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, &rest);
            let header = ip4::parse(&error).unwrap();
            let quote = rewrite::quote(&error[20..]).unwrap();
            let (mut frame, place) = framed(&error, 20);
            let from = Prefix64::WELL_KNOWN.embed(ROUTER);
            let inside = (INSIDE, 5000);
            let place = error_to_ip6(&mut frame, place, &header, &quote, &about(inside, from)).unwrap();
            let got = &frame[place.l3..place.end];
            assert!(has_valid_checksums6(got));
            let header = ip6::parse(got).unwrap();
            assert_eq!((header.source, header.destination, header.hop_limit), (from, INSIDE, 63));
            assert_eq!((got[40], got[41], read_u32(got, 44)), (icmp6::PACKET_TOO_BIG, 0, 1420));
            let original = udp6_packet((INSIDE, 5000), (server(), 33_434), b"traceroute");
            assert_eq!(got[48..], original[..cut + 20], "the packet as the host sent it");
        }
    }

    #[test]
    fn an_error_from_inside_reaches_the_server_in_its_own_words() {
        let answer = udp6_packet((server(), 53), (INSIDE, 5000), b"late answer");
        let error = error6_packet(INSIDE, server(), icmp6::UNREACHABLE, icmp6::CODE_PORT, [0; 4], &answer);
        let header = ip6::parse(&error).unwrap();
        let quote = rewrite6::quote(&error, &header).unwrap();
        let (mut frame, place) = framed(&error, 40);
        let error =
            ErrorToIp4 { outside: (OUTSIDE, 6000), destination: SERVER, remote: SERVER, hop_limit: 63, mtus: MTUS };
        let place = error_to_ip4(&mut frame, place, &header, &quote, &error).unwrap();
        let got = &frame[place.l3..place.end];
        assert!(has_valid_checksums(got));
        let header = ip4::parse(got).unwrap();
        assert_eq!((header.source, header.destination, header.total_length), (OUTSIDE, SERVER, got.len()));
        assert_eq!((got[20], got[21]), (icmp::UNREACHABLE, icmp::CODE_PORT));
        let quoted = rewrite::quote(&got[20..]).unwrap();
        assert_eq!((quoted.source, quoted.destination), ((SERVER, 53), (OUTSIDE, 6000)));
        assert!(has_valid_checksums(&got[28..]), "the quoted packet is whole, and right");
    }

    #[test]
    fn a_quoted_ping_is_told_in_the_other_familys_types() {
        let ping = icmp_packet(OUTSIDE, SERVER, icmp::ECHO_REQUEST, 0, &[0x17, 0x70, 0, 1, 1, 2, 3]);
        let rest = [&[0; 4], &ping[..]].concat();
        let error = icmp_packet(ROUTER, OUTSIDE, icmp::TIME_EXCEEDED, 0, &rest);
        let (mut frame, place) = framed(&error, 20);
        let (header, quote) = (ip4::parse(&error).unwrap(), rewrite::quote(&error[20..]).unwrap());
        let from = Prefix64::WELL_KNOWN.embed(ROUTER);
        let place = error_to_ip6(&mut frame, place, &header, &quote, &about((INSIDE, 77), from)).unwrap();
        let got = &frame[place.l3..place.end];
        assert_eq!((got[40], got[41]), (icmp6::TIME_EXCEEDED, 0));
        let original = icmp6_packet(INSIDE, server(), icmp6::ECHO_REQUEST, 0, &[0, 77, 0, 1, 1, 2, 3]);
        assert_eq!(got[48..], original);
    }

    #[test]
    fn extensions_of_an_error_are_cut_off_and_a_long_one_fits_every_link() {
        let mut quoted = udp_packet((OUTSIDE, 6000), (SERVER, 53), &[7; 100]);
        quoted.resize(128, 0);
        let extension = [0x20, 0, 0xde, 0xad, 0, 8, 1, 1, 0, 0, 0, 1];
        let translated = |rest: &[u8]| {
            let error = icmp_packet(ROUTER, OUTSIDE, icmp::TIME_EXCEEDED, 0, rest);
            let (mut frame, place) = framed(&error, 20);
            let (header, quote) = (ip4::parse(&error).unwrap(), rewrite::quote(&error[20..]).unwrap());
            let from = Prefix64::WELL_KNOWN.embed(ROUTER);
            let place = error_to_ip6(&mut frame, place, &header, &quote, &about((INSIDE, 77), from)).unwrap();
            frame[place.l3..place.end].to_vec()
        };
        let got = translated(&[&[0, 32, 0, 0], &quoted[..], &extension].concat());
        assert!(has_valid_checksums6(&got));
        assert_eq!((got.len(), read_u32(&got, 44)), (48 + 128 + 20, 0));
        let long = udp_packet((OUTSIDE, 6000), (SERVER, 53), &[7; 1400]);
        let got = translated(&[&[0; 4], &long[..]].concat());
        assert!(has_valid_checksums6(&got));
        assert_eq!(got.len(), 1280);
    }

    #[test]
    fn an_error_that_claims_to_quote_less_than_the_headers_is_translated_all_the_same() {
        for length in 1..=255 {
            let sent = udp_packet((OUTSIDE, 6000), (SERVER, 53), &[7; 100]);
            let error = icmp_packet(ROUTER, OUTSIDE, icmp::TIME_EXCEEDED, 0, &[&[0, length, 0, 0], &sent[..]].concat());
            let (mut frame, place) = framed(&error, 20);
            let (header, quote) = (ip4::parse(&error).unwrap(), rewrite::quote(&error[20..]).unwrap());
            let from = Prefix64::WELL_KNOWN.embed(ROUTER);
            let place = error_to_ip6(&mut frame, place, &header, &quote, &about((INSIDE, 77), from)).unwrap();
            let got = &frame[place.l3..place.end];
            assert!(has_valid_checksums6(got));
            assert_eq!(got[88..96], udp6_packet((INSIDE, 77), (server(), 53), &[7; 100])[40..48], "{length} words");

            let answer = with_destination_options(&udp6_packet((server(), 53), (INSIDE, 77), &[7; 100]));
            let error =
                error6_packet(INSIDE, server(), icmp6::UNREACHABLE, icmp6::CODE_PORT, [length, 0, 0, 0], &answer);
            let (mut frame, place) = framed(&error, 40);
            let header = ip6::parse(&error).unwrap();
            let quote = rewrite6::quote(&error, &header).unwrap();
            let error =
                ErrorToIp4 { outside: (OUTSIDE, 6000), destination: SERVER, remote: SERVER, hop_limit: 63, mtus: MTUS };
            let place = error_to_ip4(&mut frame, place, &header, &quote, &error).unwrap();
            let got = &frame[place.l3..place.end];
            assert!(has_valid_checksums(got));
            let quoted = rewrite::quote(&got[20..]).unwrap();
            assert_eq!((quoted.source, quoted.destination), ((SERVER, 53), (OUTSIDE, 6000)), "{length} words");
        }
    }

    proptest::proptest! {
        /// Out and back again: the same bytes, whatever they are.
        #[test]
        fn a_payload_survives_both_ways(payload in proptest::collection::vec(0u8.., 0..64), kind in 0u8..3) {
            let header = [0x12, 0x34, 0, 1];
            let (six, protocol) = match kind {
                0 => (udp6_packet((INSIDE, 5000), (server(), 53), &payload), ip4::UDP),
                1 => (tcp6_packet((INSIDE, 5000), (server(), 80), SYN, &[]), ip4::TCP),
                _ => (icmp6_packet(INSIDE, server(), icmp6::ECHO_REQUEST, 0, &[&header, &payload[..]].concat()), ip4::ICMP),
            };
            let four = out(&six);
            proptest::prop_assert!(has_valid_checksums(&four));
            proptest::prop_assert_eq!(four[ip4::PROTOCOL], protocol);
            // The same packet seen from outside: only the ends of the answer are others.
            let header = ip4::parse(&four).unwrap();
            let (mut frame, place) = framed(&four, 20);
            let port = if kind == 2 { 0x1234 } else { 5000 };
            let to = Rewrite { source: INSIDE, destination: server(), side: Side::Source, port, hop_limit: 64 };
            let place = to_ip6(&mut frame, place, &header, &to);
            proptest::prop_assert_eq!(&frame[place.l3..place.end], &six[..]);
        }
    }
}
