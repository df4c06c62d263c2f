//! Address and port translation of one packet's bytes, ICMP queries and quoted packets included.
//!
//! Checksums are updated incrementally (RFC 1624), so an error in a packet stays an error; a UDP checksum of
//! zero stays zero (RFC 4787 leaves it, RFC 768 says "none").

use std::net::Ipv4Addr;

use crate::dataplane::packet::{Fragment, Packet};
use crate::wire::{checksum, checksum::Delta, icmp, icmp6, ip4, ip6, read_u16, tcp, udp, write};

/// Which end of a packet is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) enum Side {
    /// The sender.
    Source,
    /// The receiver.
    Destination,
}

/// The port at one end, or the identifier of an ICMP query; `None` where there is none. `transport` may be
/// cut short after its first 8 bytes, as in a packet quoted by an ICMP error.
#[inline]
pub(in crate::dataplane) fn port(transport: &[u8], protocol: u8, side: Side) -> Option<u16> {
    let at = port_at(transport, protocol, side)?;
    (transport.len() >= at + 2).then(|| read_u16(transport, at))
}

/// Both ports of a packet; those of a fragment are known from its packet's first one.
#[inline]
pub(in crate::dataplane) fn ports(transport: &[u8], protocol: u8, packet: &Packet) -> Option<(u16, u16)> {
    match packet.fragment {
        Fragment::No => port(transport, protocol, Side::Source).zip(port(transport, protocol, Side::Destination)),
        Fragment::First | Fragment::Later => Some(packet.ports),
    }
}

#[inline]
pub(super) fn port_at(transport: &[u8], protocol: u8, side: Side) -> Option<usize> {
    match (protocol, side) {
        (ip4::UDP | ip4::TCP, Side::Source) => Some(tcp::SOURCE),
        (ip4::UDP | ip4::TCP, Side::Destination) => Some(tcp::DESTINATION),
        // A query's identifier belongs to whoever asked; it stands for the port at both ends.
        (ip4::ICMP, _) => {
            let is_query = transport.first().is_some_and(|kind| icmp::is_request(*kind) || icmp::is_reply(*kind));
            is_query.then_some(icmp::IDENTIFIER)
        }
        (ip6::ICMP, _) => {
            matches!(transport.first(), Some(&icmp6::ECHO_REQUEST | &icmp6::ECHO_REPLY)).then_some(icmp::IDENTIFIER)
        }
        _ => None,
    }
}

const _: () = assert!(udp::SOURCE == tcp::SOURCE && udp::DESTINATION == tcp::DESTINATION);

/// Replaces address and port of one end in an IPv4 packet (or a quoted one) whose header is `header_length`
/// bytes. Whatever of the transport header was cut off is left alone.
#[inline]
pub(in crate::dataplane) fn translate(
    packet: &mut [u8],
    header_length: usize,
    protocol: u8,
    side: Side,
    address: Ipv4Addr,
    port: u16,
) {
    let at = match side {
        Side::Source => ip4::SOURCE,
        Side::Destination => ip4::DESTINATION,
    };
    let address_change = ip4::replace_address(packet, at, address);
    let transport = &mut packet[header_length..];
    let Some(port_at) = port_at(transport, protocol, side) else { return };
    if transport.len() < port_at + 2 {
        return;
    }
    let old = read_u16(transport, port_at);
    write(transport, port_at, &port.to_be_bytes());
    match protocol {
        ip4::UDP => {
            if transport.len() >= udp::CHECKSUM + 2 && read_u16(transport, udp::CHECKSUM) != 0 {
                let field = address_change.word(old, port).apply(read_u16(transport, udp::CHECKSUM));
                let field = if field == 0 { 0xffff } else { field };
                write(transport, udp::CHECKSUM, &field.to_be_bytes());
            }
        }
        ip4::TCP => {
            if transport.len() >= tcp::CHECKSUM + 2 {
                let field = address_change.word(old, port).apply(read_u16(transport, tcp::CHECKSUM));
                write(transport, tcp::CHECKSUM, &field.to_be_bytes());
            }
        }
        _ => {
            // ICMP has no pseudo-header: only the identifier counts.
            let field = Delta::default().word(old, port).apply(read_u16(transport, icmp::CHECKSUM));
            write(transport, icmp::CHECKSUM, &field.to_be_bytes());
        }
    }
}

/// A packet quoted by an ICMP error: what a NAT finds its mapping by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct Quote {
    /// Where it starts in the ICMP message.
    pub(in crate::dataplane) at: usize,
    /// Its header's length.
    pub(in crate::dataplane) header_length: usize,
    /// Its protocol.
    pub(in crate::dataplane) protocol: u8,
    /// Its sender.
    pub(in crate::dataplane) source: (Ipv4Addr, u16),
    /// Its receiver; for an ICMP query the port is the identifier at both ends.
    pub(in crate::dataplane) destination: (Ipv4Addr, u16),
}

/// Why an ICMP error is not translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) enum BadQuote {
    /// The checksum of the message, or of the quoted IP header, is wrong (RFC 5508 REQ-3).
    Checksum,
    /// Too short to find a mapping by, or not IPv4.
    TooShort,
    /// It quotes a protocol without ports, or a fragment's tail.
    Protocol,
}

/// Reads the packet that the ICMP error `message` quotes.
pub(in crate::dataplane) fn quote(message: &[u8]) -> Result<Quote, BadQuote> {
    if !checksum::is_valid(message) {
        return Err(BadQuote::Checksum);
    }
    let at = icmp::HEADER_BYTES;
    let quoted = message.get(at..).ok_or(BadQuote::TooShort)?;
    let header = ip4::parse_quoted(quoted).map_err(|_| BadQuote::TooShort)?;
    if !checksum::is_valid(&quoted[..header.header_length]) {
        return Err(BadQuote::Checksum);
    }
    let transport = &quoted[header.header_length..];
    if header.fragment & 0x1fff != 0 || !matches!(header.protocol, ip4::ICMP | ip4::TCP | ip4::UDP) {
        return Err(BadQuote::Protocol);
    }
    if transport.len() < 8 {
        return Err(BadQuote::TooShort);
    }
    let source = port(transport, header.protocol, Side::Source).ok_or(BadQuote::Protocol)?;
    let destination = port(transport, header.protocol, Side::Destination).ok_or(BadQuote::Protocol)?;
    Ok(Quote {
        at,
        header_length: header.header_length,
        protocol: header.protocol,
        source: (header.source, source),
        destination: (header.destination, destination),
    })
}

/// Replaces one end of the quoted packet and writes the message's checksum anew (it was valid before).
pub(in crate::dataplane) fn translate_quote(
    message: &mut [u8],
    quote: &Quote,
    side: Side,
    address: Ipv4Addr,
    port: u16,
) {
    translate(&mut message[quote.at..], quote.header_length, quote.protocol, side, address, port);
    write(message, icmp::CHECKSUM, &[0, 0]);
    let field = checksum::of(message);
    write(message, icmp::CHECKSUM, &field.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
    const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const C: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    fn packet(protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 20];
        bytes.extend_from_slice(transport);
        let total = bytes.len() as u16;
        ip4::emit(&mut bytes, A, B, protocol, total, 64);
        let at = match protocol {
            ip4::UDP => udp::CHECKSUM,
            ip4::TCP => tcp::CHECKSUM,
            _ => icmp::CHECKSUM,
        };
        let field = !checksum::fold(checksum::sum(&bytes[20..], pseudo(&bytes)));
        write(&mut bytes, 20 + at, &field.to_be_bytes());
        bytes
    }

    fn pseudo(bytes: &[u8]) -> u32 {
        let header = ip4::parse(bytes).unwrap();
        if header.protocol == ip4::ICMP {
            return 0;
        }
        checksum::pseudo_header(header.source, header.destination, header.protocol, (bytes.len() - 20) as u16)
    }

    fn is_valid(bytes: &[u8]) -> bool {
        ip4::parse(bytes).is_ok() && checksum::fold(checksum::sum(&bytes[20..], pseudo(bytes))) == 0xffff
    }

    fn udp_packet() -> Vec<u8> {
        packet(ip4::UDP, &[0x13, 0x88, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4])
    }

    #[test]
    fn a_translated_packet_has_right_checksums_and_nothing_else_changed() {
        let tcp_segment: Vec<u8> = (0..24)
            .map(|i| {
                if i == 12 {
                    0x50
                } else if i == 16 || i == 17 {
                    0
                } else {
                    i
                }
            })
            .collect();
        for before in [
            udp_packet(),
            packet(ip4::TCP, &tcp_segment),
            packet(ip4::ICMP, &[icmp::ECHO_REQUEST, 0, 0, 0, 0x12, 0x34, 0, 1, 9]),
            packet(ip4::ICMP, &[icmp::TIMESTAMP_REQUEST, 0, 0, 0, 0x12, 0x34, 0, 1, 0, 0, 0, 9]),
        ] {
            let protocol = before[ip4::PROTOCOL];
            let mut after = before.clone();
            translate(&mut after, 20, protocol, Side::Source, C, 50_000);
            assert!(is_valid(&after), "protocol {protocol}");
            assert_eq!(port(&after[20..], protocol, Side::Source), Some(50_000));
            let old = port(&before[20..], protocol, Side::Source).unwrap();
            translate(&mut after, 20, protocol, Side::Source, A, old);
            assert_eq!(after, before, "translating back restores every byte");
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_stays_zero() {
        let mut bytes = udp_packet();
        write(&mut bytes, 20 + udp::CHECKSUM, &[0, 0]);
        translate(&mut bytes, 20, ip4::UDP, Side::Source, C, 50_000);
        assert_eq!(read_u16(&bytes, 20 + udp::CHECKSUM), 0);
    }

    fn error_about(quoted: &[u8]) -> Vec<u8> {
        let mut message = vec![icmp::UNREACHABLE, 3, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(quoted);
        let field = checksum::of(&message);
        write(&mut message, icmp::CHECKSUM, &field.to_be_bytes());
        message
    }

    #[test]
    fn a_quote_of_eight_transport_bytes_is_translated() {
        let mut message = error_about(&udp_packet()[..28]);
        let found = quote(&message).unwrap();
        assert_eq!((found.source, found.destination), ((A, 5000), (B, 53)));
        translate_quote(&mut message, &found, Side::Source, C, 6000);
        assert!(checksum::is_valid(&message));
        assert_eq!(quote(&message).unwrap().source, (C, 6000));
    }

    #[test]
    fn quotes_that_name_no_port_are_refused() {
        let gre = {
            let mut bytes = udp_packet();
            ip4::emit(&mut bytes, A, B, 47, 32, 64);
            bytes
        };
        assert_eq!(quote(&error_about(&gre)), Err(BadQuote::Protocol));
        assert_eq!(quote(&error_about(&udp_packet()[..27])), Err(BadQuote::TooShort));
        assert_eq!(quote(&error_about(&[])), Err(BadQuote::TooShort));
        let mut broken = error_about(&udp_packet());
        broken[20] ^= 1;
        assert_eq!(quote(&broken), Err(BadQuote::Checksum));
    }
}
