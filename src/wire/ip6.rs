//! IPv6 (RFC 8200).

use std::net::Ipv6Addr;

use super::{checksum, read_u16, read_u32, write};

/// Bytes of the header, extension headers apart.
pub const HEADER_BYTES: usize = 40;

/// Offset of the payload length, which counts extension headers.
pub const PAYLOAD_LENGTH: usize = 4;
/// Offset of the next header.
pub const NEXT_HEADER: usize = 6;
/// Offset of the hop limit.
pub const HOP_LIMIT: usize = 7;
/// Offset of the source address.
pub const SOURCE: usize = 8;
/// Offset of the destination address.
pub const DESTINATION: usize = 24;

/// Next header of ICMPv6.
pub const ICMP: u8 = 58;

/// The smallest MTU that a link may have (section 5).
pub const MTU_MIN: u16 = 1280;

/// Bytes of a fragment header.
pub const FRAGMENT_HEADER_BYTES: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are walked at most: nobody sends more in good faith.
const EXTENSIONS_MAX: usize = 8;

/// Why bytes are not an IPv6 packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header, or than an extension header says.
    TooShort,
    /// The version is not six.
    Version,
    /// The payload length is above the bytes there are.
    Length,
    /// More extension headers than are walked.
    Extensions,
    /// A routing header that is not used up: the sender chose the packet's way (RFC 5095).
    SourceRoute,
}

/// The fields of a checked header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Header bytes, extension headers included: where the transport header starts.
    pub header_length: usize,
    /// Bytes of the packet, header included; the slice may be longer (Ethernet padding).
    pub total_length: usize,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// The transport protocol: what the last extension header names.
    pub protocol: u8,
    /// Offset and "more fragments" of a fragment header, as it has them: the offset in the upper 13 bits, the flag in the
    /// lowest.
    pub fragment: Option<u16>,
    /// Where the fragment header starts, if there is one.
    pub fragment_at: usize,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Header {
    /// True where the packet is one of several fragments. A fragment that is the whole (RFC 8021) is none.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment & 0xfff9 != 0)
    }

    /// True where the transport header is in another fragment.
    #[inline]
    pub fn is_tail(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment & 0xfff8 != 0)
    }
}

/// Reads and checks a header and its extension headers.
#[inline]
pub fn parse(packet: &[u8]) -> Result<Header, Malformed> {
    let header = parse_quoted(packet)?;
    if header.total_length > packet.len() || header.header_length > header.total_length {
        return Err(Malformed::Length);
    }
    Ok(header)
}

/// Reads a header quoted by an ICMP error, whose packet is cut short.
#[inline]
pub fn parse_quoted(packet: &[u8]) -> Result<Header, Malformed> {
    let Some(fixed) = packet.first_chunk::<HEADER_BYTES>() else { return Err(Malformed::TooShort) };
    if fixed[0] >> 4 != 6 {
        return Err(Malformed::Version);
    }
    let mut header = Header {
        header_length: HEADER_BYTES,
        total_length: HEADER_BYTES + usize::from(read_u16(fixed, PAYLOAD_LENGTH)),
        traffic_class: (read_u16(fixed, 0) >> 4) as u8,
        hop_limit: fixed[HOP_LIMIT],
        protocol: fixed[NEXT_HEADER],
        fragment: None,
        fragment_at: 0,
        source: address(fixed, SOURCE),
        destination: address(fixed, DESTINATION),
    };
    let mut walked = 0;
    while matches!(header.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) && !header.is_tail() {
        let Some(extension) = packet.get(header.header_length..).and_then(<[u8]>::first_chunk::<8>) else {
            return Err(Malformed::TooShort);
        };
        walked += 1;
        if walked > EXTENSIONS_MAX {
            return Err(Malformed::Extensions);
        }
        let length = match header.protocol {
            FRAGMENT => {
                header.fragment = Some(read_u16(extension, 2));
                header.fragment_at = header.header_length;
                FRAGMENT_HEADER_BYTES
            }
            ROUTING if extension[3] != 0 => return Err(Malformed::SourceRoute),
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        header.header_length += length;
        header.protocol = extension[0];
    }
    if header.header_length > packet.len() {
        return Err(Malformed::TooShort);
    }
    Ok(header)
}

/// The address at `at` ([`SOURCE`] or [`DESTINATION`]). Panics where the caller has not checked the length.
#[inline]
pub fn address(packet: &[u8], at: usize) -> Ipv6Addr {
    let words: [u32; 4] = std::array::from_fn(|i| read_u32(packet, at + i * 4));
    Ipv6Addr::from_bits(words.iter().fold(0, |bits, word| bits << 32 | u128::from(*word)))
}

/// Writes a header without extension headers; traffic class and flow label are zero.
#[inline]
pub fn emit(packet: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: u16, hop_limit: u8) {
    write(packet, 0, &0x6000_0000u32.to_be_bytes());
    write(packet, PAYLOAD_LENGTH, &payload.to_be_bytes());
    packet[NEXT_HEADER] = protocol;
    packet[HOP_LIMIT] = hop_limit;
    write(packet, SOURCE, &source.octets());
    write(packet, DESTINATION, &destination.octets());
}

/// Sets the traffic class (DSCP and ECN).
#[inline]
pub fn set_traffic_class(packet: &mut [u8], class: u8) {
    packet[0] = 0x60 | class >> 4;
    packet[1] = packet[1] & 0xf | class << 4;
}

/// The sum of the pseudo-header of UDP, TCP and ICMPv6 (RFC 8200 section 8.1).
#[inline]
pub fn pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, bytes: u32) -> u32 {
    let sum = checksum::sum(&source.octets(), u32::from(protocol) + (bytes >> 16) + (bytes & 0xffff));
    checksum::sum(&destination.octets(), sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
    const B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0xffff, 3);

    fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(payload);
        emit(&mut bytes, A, B, protocol, payload.len() as u16, 64);
        bytes
    }

    #[test]
    fn an_emitted_header_is_read_back() {
        let mut bytes = packet(17, &[0; 8]);
        set_traffic_class(&mut bytes, 0xab);
        let header = parse(&bytes).unwrap();
        assert_eq!((header.source, header.destination, header.protocol, header.hop_limit), (A, B, 17, 64));
        assert_eq!((header.header_length, header.total_length, header.traffic_class), (40, 48, 0xab));
        assert!(!header.is_fragment());
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport_header() {
        let bytes = packet(HOP_BY_HOP, &[60, 0, 1, 4, 0, 0, 0, 0, 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        let header = parse(&bytes).unwrap();
        assert_eq!((header.protocol, header.header_length), (17, 64));
        let first = parse(&packet(FRAGMENT, &[17, 0, 0, 1, 0, 0, 0, 9, 1, 2])).unwrap();
        assert!(first.is_fragment() && !first.is_tail());
        let atomic = parse(&packet(FRAGMENT, &[17, 0, 0, 0, 0, 0, 0, 9, 1, 2])).unwrap();
        assert_eq!((atomic.is_fragment(), atomic.protocol, atomic.header_length), (false, 17, 48));
        let tail = parse(&packet(FRAGMENT, &[0, 0, 0, 8, 0, 0, 0, 9])).unwrap();
        assert_eq!((tail.is_tail(), tail.protocol), (true, 0), "what comes next is not looked at");
    }

    #[test]
    fn lies_are_refused() {
        assert_eq!(parse(&[0x60; 39]), Err(Malformed::TooShort));
        assert_eq!(parse(&packet(17, &[0; 8])[..47]), Err(Malformed::Length));
        assert_eq!(parse(&packet(HOP_BY_HOP, &[17, 9, 0, 0, 0, 0, 0, 0])), Err(Malformed::TooShort));
        assert_eq!(parse(&packet(HOP_BY_HOP, &[17, 0])), Err(Malformed::TooShort));
        assert_eq!(parse(&packet(ROUTING, &[17, 0, 0, 1, 0, 0, 0, 0])), Err(Malformed::SourceRoute));
        assert_eq!(parse(&packet(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9))), Err(Malformed::Extensions));
        let mut bytes = packet(17, &[0; 8]);
        bytes[0] = 0x45;
        assert_eq!(parse(&bytes), Err(Malformed::Version));
    }

    #[test]
    fn the_pseudo_header_is_summed_as_it_stands_in_the_rfc() {
        let mut bytes = Vec::new();
        bytes.extend(A.octets());
        bytes.extend(B.octets());
        bytes.extend(70_000u32.to_be_bytes());
        bytes.extend([0, 0, 0, 58]);
        assert_eq!(checksum::fold(pseudo_header(A, B, 58, 70_000)), checksum::fold(checksum::sum(&bytes, 0)));
    }
}
