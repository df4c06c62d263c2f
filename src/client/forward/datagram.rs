//! Inner packets of forwarded ports: datagrams wrapped and unwrapped, ICMP errors recognised.

use std::net::SocketAddrV4;

use crate::{
    client::drops::Reason,
    wire::{checksum, icmp, ip4, read_u16, udp, write},
};

/// Bytes in front of a datagram's payload.
pub const HEADERS_BYTES: usize = ip4::HEADER_BYTES + udp::HEADER_BYTES;

/// Time to live of what we make (RFC 1700's default).
const TTL: u8 = 64;

/// Writes the headers of a UDP packet whose payload of `length` bytes is at [`HEADERS_BYTES`] of `packet` already;
/// returns the packet's length. The checksum is a real one: the server sees this packet.
///
/// `packet` must hold all of it, and the length must fit 16 bits.
pub fn wrap(packet: &mut [u8], source: SocketAddrV4, server: SocketAddrV4, length: usize) -> usize {
    let total = HEADERS_BYTES + length;
    let datagram_length = (udp::HEADER_BYTES + length) as u16;
    ip4::emit(packet, *source.ip(), *server.ip(), ip4::UDP, total as u16, TTL);
    let datagram = &mut packet[ip4::HEADER_BYTES..total];
    udp::emit(datagram, source.port(), server.port(), datagram_length);
    let pseudo = checksum::pseudo_header(*source.ip(), *server.ip(), ip4::UDP, datagram_length);
    // Zero means "none" on the wire; a sum of zero is sent as its other representation.
    let field = match !checksum::fold(checksum::sum(datagram, pseudo)) {
        0 => 0xffff,
        field => field,
    };
    write(datagram, udp::CHECKSUM, &field.to_be_bytes());
    total
}

/// What came for a forwarded flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inner<'a> {
    /// The payload of a datagram of the flow.
    Payload(&'a [u8]),
    /// A TCP segment of the flow: the whole packet.
    Segment(&'a [u8]),
    /// A node on the way, or the server's host, could not deliver a packet of the flow.
    Error(IcmpError),
}

/// An ICMP error about a packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Who says so.
    pub from: std::net::Ipv4Addr,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Of "fragmentation needed": the MTU that would pass; zero: not told (RFC 1191).
    pub mtu: u16,
}

impl IcmpError {
    /// True for "fragmentation needed and DF set".
    pub fn is_too_big(&self) -> bool {
        (self.kind, self.code) == (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED)
    }
}

impl std::fmt::Display for IcmpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match (self.kind, self.code) {
            (icmp::UNREACHABLE, 0) => "network unreachable",
            (icmp::UNREACHABLE, 1) => "host unreachable",
            (icmp::UNREACHABLE, 2) => "protocol unreachable",
            (icmp::UNREACHABLE, 3) => "port unreachable",
            (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED) => "fragmentation needed",
            (icmp::UNREACHABLE, 9 | 10 | icmp::CODE_PROHIBITED) => "administratively prohibited",
            (icmp::UNREACHABLE, _) => "unreachable",
            (icmp::TIME_EXCEEDED, _) => "time to live exceeded",
            _ => "parameter problem",
        };
        write!(f, "{what} (from {})", self.from)
    }
}

/// Reads a packet that came down a flow's session; `source` is our end of the flow.
pub fn unwrap(packet: &[u8], protocol: u8, source: SocketAddrV4, server: SocketAddrV4) -> Result<Inner<'_>, Reason> {
    let header = ip4::parse(packet).map_err(|_| Reason::NotIp)?;
    if header.is_fragment() || header.destination != *source.ip() {
        return Err(Reason::NotFlow);
    }
    let packet = &packet[..header.total_length];
    let transport = &packet[header.header_length..];
    if header.protocol == ip4::ICMP {
        return error(transport, header.source, protocol, source, server).map(Inner::Error).ok_or(Reason::NotFlow);
    }
    // The first four bytes of UDP and TCP are the ports.
    let is_of_flow = header.protocol == protocol
        && header.source == *server.ip()
        && transport.len() >= 4
        && read_u16(transport, 0) == server.port()
        && read_u16(transport, 2) == source.port();
    match protocol {
        _ if !is_of_flow => Err(Reason::NotFlow),
        ip4::UDP => payload(transport, source, server).map(Inner::Payload).ok_or(Reason::NotFlow),
        _ => Ok(Inner::Segment(packet)),
    }
}

fn payload(transport: &[u8], source: SocketAddrV4, server: SocketAddrV4) -> Option<&[u8]> {
    let length = udp::checked_length(transport)?;
    let datagram = &transport[..length];
    if read_u16(datagram, udp::CHECKSUM) != 0 {
        let pseudo = checksum::pseudo_header(*server.ip(), *source.ip(), ip4::UDP, length as u16);
        if checksum::fold(checksum::sum(datagram, pseudo)) != 0xffff {
            return None;
        }
    }
    Some(&datagram[udp::HEADER_BYTES..])
}

/// The error, where it is one and quotes a packet of ours: of this flow, source to server.
fn error(
    message: &[u8],
    from: std::net::Ipv4Addr,
    protocol: u8,
    source: SocketAddrV4,
    server: SocketAddrV4,
) -> Option<IcmpError> {
    if message.len() < icmp::HEADER_BYTES || !icmp::is_error(message[icmp::TYPE]) || !checksum::is_valid(message) {
        return None;
    }
    let quoted = &message[icmp::HEADER_BYTES..];
    let header = ip4::parse_quoted(quoted).ok()?;
    let ports = &quoted[header.header_length..];
    let is_ours = header.protocol == protocol
        && (header.source, header.destination) == (*source.ip(), *server.ip())
        && ports.len() >= 4
        && (read_u16(ports, 0), read_u16(ports, 2)) == (source.port(), server.port());
    is_ours.then(|| IcmpError {
        from,
        kind: message[icmp::TYPE],
        code: message[icmp::CODE],
        mtu: read_u16(message, icmp::NEXT_HOP_MTU),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    pub(in crate::client::forward) const SOURCE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 2), 50_000);
    pub(in crate::client::forward) const SERVER: SocketAddrV4 =
        SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 5_000);

    fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADERS_BYTES + payload.len()];
        packet[HEADERS_BYTES..].copy_from_slice(payload);
        wrap(&mut packet, from, to, payload.len());
        packet
    }

    /// An ICMP error that quotes `quoted`.
    pub(in crate::client::forward) fn icmp_error(kind: u8, code: u8, mtu: u16, quoted: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; ip4::HEADER_BYTES + icmp::HEADER_BYTES];
        packet.extend_from_slice(&quoted[..quoted.len().min(28)]);
        let total = packet.len() as u16;
        ip4::emit(&mut packet, *SERVER.ip(), *SOURCE.ip(), ip4::ICMP, total, 60);
        let message = &mut packet[ip4::HEADER_BYTES..];
        message[icmp::TYPE] = kind;
        message[icmp::CODE] = code;
        write(message, icmp::NEXT_HOP_MTU, &mtu.to_be_bytes());
        let field = checksum::of(message);
        write(message, icmp::CHECKSUM, &field.to_be_bytes());
        packet
    }

    fn read(packet: &[u8]) -> Result<Inner<'_>, Reason> {
        unwrap(packet, ip4::UDP, SOURCE, SERVER)
    }

    proptest::proptest! {
        #[test]
        fn what_one_end_wraps_the_other_unwraps(payload in proptest::collection::vec(0u8.., 0..1400)) {
            let packet = datagram(SOURCE, SERVER, &payload);
            proptest::prop_assert_eq!(
                unwrap(&packet, ip4::UDP, SERVER, SOURCE), Ok(Inner::Payload(payload.as_slice()))
            );
        }

        #[test]
        fn noise_is_refused_without_a_panic(mut packet in proptest::collection::vec(0u8.., 0..80), fix in 0u8..2) {
            if fix == 1 && packet.len() >= 20 {
                let (length, protocol) = (packet.len() as u16, [ip4::UDP, ip4::ICMP][usize::from(packet[9] & 1)]);
                ip4::emit(&mut packet, *SERVER.ip(), *SOURCE.ip(), protocol, length, 9);
            }
            let _ = read(&packet);
        }
    }

    #[test]
    fn a_checksum_that_sums_to_zero_is_sent_as_all_ones() {
        let mut payload = [0u8; 2];
        let packet = datagram(SOURCE, SERVER, &payload);
        payload.copy_from_slice(&packet[26..28]);
        let packet = datagram(SOURCE, SERVER, &payload);
        assert_eq!(packet[26..28], [0xff, 0xff]);
        assert_eq!(unwrap(&packet, ip4::UDP, SERVER, SOURCE), Ok(Inner::Payload(&payload)));
    }

    #[test]
    fn packets_of_another_flow_or_damaged_ones_are_refused() {
        let stranger = SocketAddrV4::new(*SERVER.ip(), 5_001);
        assert_eq!(read(&datagram(stranger, SOURCE, b"x")), Err(Reason::NotFlow));
        assert_eq!(read(&datagram(SERVER, stranger, b"x")), Err(Reason::NotFlow));
        let mut damaged = datagram(SERVER, SOURCE, b"x");
        damaged[28] ^= 1;
        assert_eq!(read(&damaged), Err(Reason::NotFlow));
        assert_eq!(read(&damaged[..20]), Err(Reason::NotIp));
        let good = datagram(SERVER, SOURCE, b"x");
        assert_eq!(read(&good), Ok(Inner::Payload(b"x")));
        assert_eq!(unwrap(&good, ip4::TCP, SOURCE, SERVER), Err(Reason::NotFlow));
    }

    #[test]
    fn an_error_about_our_packet_is_recognised_and_one_about_anothers_is_not() {
        let ours = datagram(SOURCE, SERVER, b"hello");
        let Ok(Inner::Error(error)) = read(&icmp_error(icmp::UNREACHABLE, 3, 0, &ours)).map(|inner| match inner {
            Inner::Error(error) => Inner::Error(error),
            other => panic!("{other:?}"),
        }) else {
            panic!("not recognised")
        };
        assert_eq!(error.to_string(), "port unreachable (from 198.51.100.1)");
        let too_big = icmp_error(icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, 1280, &ours);
        assert!(matches!(read(&too_big), Ok(Inner::Error(error)) if error.is_too_big() && error.mtu == 1280));
        let theirs = datagram(SERVER, SOURCE, b"hello");
        assert_eq!(read(&icmp_error(icmp::UNREACHABLE, 3, 0, &theirs)), Err(Reason::NotFlow));
        assert_eq!(read(&icmp_error(icmp::ECHO_REPLY, 0, 0, &ours)), Err(Reason::NotFlow));
        assert_eq!(read(&icmp_error(icmp::UNREACHABLE, 3, 0, &ours[..22])), Err(Reason::NotFlow));
    }
}
