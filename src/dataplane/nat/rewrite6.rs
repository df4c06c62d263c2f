//! NAPT66: what the translation of an IPv6 packet to IPv6 does to its bytes, ICMPv6 errors and their quotes included.
//!
//! As for IPv4 ([`rewrite`](super::rewrite)) checksums are updated incrementally, so an error in a packet stays an error.
//! IPv6's header has none, but ICMPv6's covers the addresses.

use std::net::Ipv6Addr;

use super::rewrite::{BadQuote, Side, port, port_at};
use crate::wire::{
    checksum::{self, Delta},
    icmp, ip4, ip6, read_u16, tcp, udp, write,
};

/// An address, and a port or the identifier of an ICMP query.
pub(in crate::dataplane) type Endpoint6 = (Ipv6Addr, u16);

/// The protocol as tables know it: they have one row for ICMP of both families.
#[inline]
pub(in crate::dataplane) fn table_protocol(protocol: u8) -> u8 {
    if protocol == ip6::ICMP { ip4::ICMP } else { protocol }
}

/// Replaces address and port of one end in an IPv6 packet (or a quoted one) whose headers before the transport header
/// are `header_length` bytes. Whatever of the transport header was cut off is left alone.
#[inline]
pub(in crate::dataplane) fn translate(
    packet: &mut [u8],
    header_length: usize,
    protocol: u8,
    side: Side,
    new: Endpoint6,
) {
    let change = replace_address(packet, side, new.0);
    let transport = &mut packet[header_length..];
    let Some(at) = port_at(transport, protocol, side).filter(|at| transport.len() >= at + 2) else { return };
    let change = change.word(read_u16(transport, at), new.1);
    write(transport, at, &new.1.to_be_bytes());
    update_checksum(transport, protocol, change);
}

/// Replaces the address of one end; the change for the checksum of the transport header.
#[inline]
pub(in crate::dataplane) fn replace_address(packet: &mut [u8], side: Side, new: Ipv6Addr) -> Delta {
    let at = match side {
        Side::Source => ip6::SOURCE,
        Side::Destination => ip6::DESTINATION,
    };
    let change = Delta::default().take(&packet[at..at + 16]).put(&new.octets());
    write(packet, at, &new.octets());
    change
}

/// Updates the checksum of a transport header, if it was not cut off.
#[inline]
pub(super) fn update_checksum(transport: &mut [u8], protocol: u8, change: Delta) {
    let at = match protocol {
        ip4::UDP => udp::CHECKSUM,
        ip4::TCP => tcp::CHECKSUM,
        _ => icmp::CHECKSUM,
    };
    if transport.len() < at + 2 {
        return;
    }
    let old = read_u16(transport, at);
    if protocol == ip4::UDP && old == 0 {
        return;
    }
    let field = match change.apply(old) {
        0 if protocol == ip4::UDP => 0xffff,
        field => field,
    };
    write(transport, at, &field.to_be_bytes());
}

/// True where the checksum of the transport header of a whole packet is right.
pub(in crate::dataplane) fn is_transport_valid(packet: &[u8], header: &ip6::Header) -> bool {
    let transport = &packet[header.header_length..header.total_length];
    let sum = ip6::pseudo_header(header.source, header.destination, header.protocol, transport.len() as u32);
    checksum::fold(checksum::sum(transport, sum)) == 0xffff
}

/// Writes the checksum of an ICMPv6 message anew. `packet` is all of it, its headers before the message
/// `header_length` bytes.
pub(in crate::dataplane) fn seal_icmp(packet: &mut [u8], header_length: usize) {
    let (source, destination) = (ip6::address(packet, ip6::SOURCE), ip6::address(packet, ip6::DESTINATION));
    let message = &mut packet[header_length..];
    let sum = ip6::pseudo_header(source, destination, ip6::ICMP, message.len() as u32);
    write(message, icmp::CHECKSUM, &[0, 0]);
    let field = !checksum::fold(checksum::sum(message, sum));
    write(message, icmp::CHECKSUM, &field.to_be_bytes());
}

/// A packet quoted by an ICMPv6 error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct Quote6 {
    /// Its header.
    pub(in crate::dataplane) header: ip6::Header,
    /// Its sender.
    pub(in crate::dataplane) source: Endpoint6,
    /// Its receiver; for an ICMP query the port is the identifier at both ends.
    pub(in crate::dataplane) destination: Endpoint6,
}

/// Reads the packet that an ICMPv6 error quotes. `packet` is all of the error, `header` its own header.
pub(in crate::dataplane) fn quote(packet: &[u8], header: &ip6::Header) -> Result<Quote6, BadQuote> {
    if !is_transport_valid(packet, header) {
        return Err(BadQuote::Checksum);
    }
    let quoted = packet[..header.total_length].get(quote_at(header)..).ok_or(BadQuote::TooShort)?;
    let inner = ip6::parse_quoted(quoted).map_err(|_| BadQuote::TooShort)?;
    if inner.is_tail() || !matches!(inner.protocol, ip6::ICMP | ip4::TCP | ip4::UDP) {
        return Err(BadQuote::Protocol);
    }
    let transport = &quoted[inner.header_length..];
    if transport.len() < 8 {
        return Err(BadQuote::TooShort);
    }
    let source = port(transport, inner.protocol, Side::Source).ok_or(BadQuote::Protocol)?;
    let destination = port(transport, inner.protocol, Side::Destination).ok_or(BadQuote::Protocol)?;
    Ok(Quote6 { header: inner, source: (inner.source, source), destination: (inner.destination, destination) })
}

/// Where the quoted packet starts in the error.
#[inline]
pub(super) fn quote_at(header: &ip6::Header) -> usize {
    header.header_length + icmp::HEADER_BYTES
}

/// Replaces one end of the quoted packet and writes the error's checksum anew (it was valid before).
pub(in crate::dataplane) fn translate_quote(
    packet: &mut [u8],
    header: &ip6::Header,
    quote: &Quote6,
    side: Side,
    new: Endpoint6,
) {
    let quoted = &mut packet[quote_at(header)..];
    translate(quoted, quote.header.header_length, quote.header.protocol, side, new);
    seal_icmp(packet, header.header_length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::testing6::*,
        wire::{icmp6, tcp::SYN},
    };

    const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2);
    const B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 7);
    const C: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0xffff, 0, 1);

    #[test]
    fn a_translated_packet_has_right_checksums_and_nothing_else_changed() {
        for before in [
            udp6_packet((A, 5000), (B, 53), b"odd"),
            tcp6_packet((A, 5000), (B, 80), SYN, &[2, 4, 5, 0xa0]),
            icmp6_packet(A, B, icmp6::ECHO_REQUEST, 0, &[0x12, 0x34, 0, 1, 9]),
        ] {
            let header = ip6::parse(&before).unwrap();
            let mut after = before.clone();
            translate(&mut after, 40, header.protocol, Side::Source, (C, 50_000));
            assert!(has_valid_checksums6(&after), "protocol {}", header.protocol);
            assert_eq!(port(&after[40..], header.protocol, Side::Source), Some(50_000));
            assert_eq!(ip6::parse(&after).unwrap().source, C);
            let old = port(&before[40..], header.protocol, Side::Source).unwrap();
            translate(&mut after, 40, header.protocol, Side::Source, (A, old));
            assert_eq!(after, before, "translating back restores every byte");
        }
    }

    #[test]
    fn a_udp_checksum_that_comes_to_zero_is_written_as_all_ones() {
        let mut seen = false;
        for port in 1..=u16::MAX {
            let mut bytes = udp6_packet((A, 5000), (B, 53), b"");
            translate(&mut bytes, 40, ip4::UDP, Side::Source, (C, port));
            let field = read_u16(&bytes, 40 + udp::CHECKSUM);
            assert_ne!(field, 0);
            seen |= field == 0xffff;
        }
        assert!(seen);
    }

    #[test]
    fn a_quote_of_eight_transport_bytes_behind_extension_headers_is_translated() {
        let mut quoted = with_destination_options(&udp6_packet((A, 5000), (B, 53), b"question"));
        quoted.truncate(48 + 8);
        let mut error = error6_packet(B, A, icmp6::UNREACHABLE, 4, [0; 4], &quoted);
        let header = ip6::parse(&error).unwrap();
        let found = quote(&error, &header).unwrap();
        assert_eq!((found.source, found.destination), ((A, 5000), (B, 53)));
        replace_address(&mut error, Side::Destination, C);
        translate_quote(&mut error, &header, &found, Side::Source, (C, 6000));
        assert!(has_valid_checksums6(&error));
        let header = ip6::parse(&error).unwrap();
        assert_eq!(quote(&error, &header).unwrap().source, (C, 6000));
        let mut inner = udp6_packet((A, 5000), (B, 53), b"question");
        translate(&mut inner, 40, ip4::UDP, Side::Source, (C, 6000));
        assert_eq!(error[40 + 8 + 48..], inner[40..48], "its checksum follows, though it covers what was cut off");
    }

    #[test]
    fn quotes_that_name_no_port_are_refused() {
        let read = |quoted: &[u8]| {
            let error = error6_packet(B, A, icmp6::TIME_EXCEEDED, 0, [0; 4], quoted);
            quote(&error, &ip6::parse(&error).unwrap())
        };
        let whole = udp6_packet((A, 5000), (B, 53), b"question");
        assert_eq!(read(&whole[..47]), Err(BadQuote::TooShort));
        assert_eq!(read(&[]), Err(BadQuote::TooShort));
        let mut gre = whole.clone();
        gre[ip6::NEXT_HEADER] = 47;
        assert_eq!(read(&gre), Err(BadQuote::Protocol));
        assert_eq!(read(&icmp6_packet(A, B, 135, 0, &[0; 20])), Err(BadQuote::Protocol));
        let mut broken = error6_packet(B, A, icmp6::TIME_EXCEEDED, 0, [0; 4], &whole);
        broken[60] ^= 1;
        assert_eq!(quote(&broken, &ip6::parse(&broken).unwrap()), Err(BadQuote::Checksum));
    }
}
