//! Packets as hosts around the nodes send them: whole, with checksums.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::wire::{
    checksum,
    ethernet::{self, Mac},
    icmp, ip4, read_u16, relay, tcp, udp, write,
};

/// An IPv4 packet around a transport header and payload.
pub(super) fn ip(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ip4::HEADER_BYTES];
    packet.extend_from_slice(transport);
    let length = packet.len() as u16;
    ip4::emit(&mut packet, source, destination, protocol, length, 64);
    packet
}

/// A UDP packet.
pub(super) fn udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; udp::HEADER_BYTES];
    datagram.extend_from_slice(payload);
    let length = datagram.len() as u16;
    udp::emit(&mut datagram, source.port(), destination.port(), length);
    seal(*source.ip(), *destination.ip(), ip4::UDP, udp::CHECKSUM, datagram)
}

/// A TCP segment without options and payload.
pub(super) fn tcp(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Vec<u8> {
    let mut segment = vec![0; tcp::HEADER_BYTES];
    write(&mut segment, tcp::SOURCE, &source.port().to_be_bytes());
    write(&mut segment, tcp::DESTINATION, &destination.port().to_be_bytes());
    segment[12] = 5 << 4;
    segment[tcp::FLAGS] = flags;
    seal(*source.ip(), *destination.ip(), ip4::TCP, tcp::CHECKSUM, segment)
}

fn seal(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, at: usize, mut transport: Vec<u8>) -> Vec<u8> {
    let sum = checksum::pseudo_header(source, destination, protocol, transport.len() as u16);
    let field = match !checksum::fold(checksum::sum(&transport, sum)) {
        0 => 0xffff, // in UDP zero means none; in TCP both are right
        field => field,
    };
    write(&mut transport, at, &field.to_be_bytes());
    ip(source, destination, protocol, &transport)
}

/// An ICMP echo request or reply.
pub(super) fn echo(kind: u8, source: Ipv4Addr, destination: Ipv4Addr, identifier: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; icmp::HEADER_BYTES];
    message[icmp::TYPE] = kind;
    write(&mut message, icmp::IDENTIFIER, &identifier.to_be_bytes());
    message.extend_from_slice(payload);
    icmp_packet(source, destination, message)
}

/// "Destination unreachable" about `quoted`, to its sender.
pub(super) fn unreachable(source: Ipv4Addr, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![0; icmp::HEADER_BYTES];
    message[icmp::TYPE] = icmp::UNREACHABLE;
    message[icmp::CODE] = code;
    message.extend_from_slice(&quoted[..quoted.len().min(ip4::HEADER_BYTES + 8)]);
    icmp_packet(source, Ipv4Addr::from_bits(crate::wire::read_u32(quoted, ip4::SOURCE)), message)
}

fn icmp_packet(source: Ipv4Addr, destination: Ipv4Addr, mut message: Vec<u8>) -> Vec<u8> {
    let field = checksum::of(&message);
    write(&mut message, icmp::CHECKSUM, &field.to_be_bytes());
    ip(source, destination, ip4::ICMP, &message)
}

/// A relay packet; `emit` writes its header.
pub(super) fn relay(source: SocketAddrV4, to: SocketAddrV4, emit: impl Fn(&mut [u8]), inner: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; relay::HEADER_BYTES];
    emit(&mut datagram);
    datagram.extend_from_slice(inner);
    udp(source, to, &datagram)
}

/// A frame around a packet.
pub(super) fn frame(destination: Mac, source: Mac, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER_BYTES];
    let is_ip6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let kind = if is_ip6 { ethernet::TYPE_IP6 } else { ethernet::TYPE_IP4 };
    ethernet::emit_as(&mut frame, destination, source, kind);
    frame.extend_from_slice(packet);
    frame
}

/// The parts of a UDP packet: source, destination, payload. Checks every length and checksum.
pub(super) fn parse_udp(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let (source, destination, datagram) = parse(packet, ip4::UDP)?;
    let length = udp::checked_length(datagram)?;
    (length == datagram.len()).then_some((source, destination, &datagram[udp::HEADER_BYTES..]))
}

/// The parts of a TCP segment: source, destination, flags. Checks every length and checksum.
pub(super) fn parse_tcp(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, u8)> {
    let (source, destination, segment) = parse(packet, ip4::TCP)?;
    tcp::checked_header_length(segment)?;
    Some((source, destination, segment[tcp::FLAGS]))
}

fn parse(packet: &[u8], protocol: u8) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let header = ip4::parse(packet).ok().filter(|header| header.protocol == protocol)?;
    let transport = &packet[header.header_length..header.total_length];
    if transport.len() < udp::HEADER_BYTES {
        return None;
    }
    let has_checksum = protocol == ip4::TCP || read_u16(transport, udp::CHECKSUM) != 0;
    let sum = checksum::pseudo_header(header.source, header.destination, protocol, transport.len() as u16);
    if has_checksum && checksum::fold(checksum::sum(transport, sum)) != 0xffff {
        return None;
    }
    let source = SocketAddrV4::new(header.source, read_u16(transport, udp::SOURCE));
    let destination = SocketAddrV4::new(header.destination, read_u16(transport, udp::DESTINATION));
    Some((source, destination, transport))
}

/// The parts of an ICMP message: source, destination, the message. Checks its checksum.
pub(super) fn parse_icmp(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, &[u8])> {
    let header = ip4::parse(packet).ok().filter(|header| header.protocol == ip4::ICMP)?;
    let message = &packet[header.header_length..header.total_length];
    (message.len() >= icmp::HEADER_BYTES && checksum::is_valid(message)).then_some((
        header.source,
        header.destination,
        message,
    ))
}
