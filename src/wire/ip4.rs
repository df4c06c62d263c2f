//! IPv4 (RFC 791).

use std::net::Ipv4Addr;

use super::{checksum, checksum::Delta, read_u16, read_u32, write};

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;

/// Offset of the total length.
pub const TOTAL_LENGTH: usize = 2;
/// Offset of the identification.
pub const IDENTIFICATION: usize = 4;
/// Offset of the flags and fragment offset.
pub const FRAGMENT: usize = 6;
/// Offset of the time to live.
pub const TTL: usize = 8;
/// Offset of the protocol.
pub const PROTOCOL: usize = 9;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SOURCE: usize = 12;
/// Offset of the destination address.
pub const DESTINATION: usize = 16;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// "Don't fragment".
pub const DONT_FRAGMENT: u16 = 0x4000;
/// "More fragments" and the offset: zero in an unfragmented packet.
pub const FRAGMENT_MASK: u16 = 0x3fff;
/// "More fragments".
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset, in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// Options that say which routers the packet is to pass: loose and strict source and record route.
const SOURCE_ROUTES: [u8; 2] = [131, 137];

/// Why bytes are not an IPv4 packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header, or than the header length says.
    TooShort,
    /// The version is not four.
    Version,
    /// The header length is below 20 or above the total length, or that above the bytes there are.
    Length,
    /// The header checksum is wrong.
    Checksum,
}

/// The fields of a checked header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Header bytes, options included.
    pub header_length: usize,
    /// Bytes of the packet, header included; the slice may be longer (Ethernet padding).
    pub total_length: usize,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Header {
    /// True where the packet is one of several fragments.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment & FRAGMENT_MASK != 0
    }

    /// True where the sender forbids fragmentation.
    #[inline]
    pub fn is_dont_fragment(&self) -> bool {
        self.fragment & DONT_FRAGMENT != 0
    }
}

/// Reads and checks a header, checksum included.
#[inline]
pub fn parse(packet: &[u8]) -> Result<Header, Malformed> {
    let header = parse_quoted(packet)?;
    if header.total_length < header.header_length || header.total_length > packet.len() {
        return Err(Malformed::Length);
    }
    let is_valid = match packet.first_chunk::<HEADER_BYTES>() {
        Some(plain) if header.header_length == HEADER_BYTES => checksum::is_valid(plain),
        _ => checksum::is_valid(&packet[..header.header_length]),
    };
    if is_valid { Ok(header) } else { Err(Malformed::Checksum) }
}

/// Reads a header quoted by an ICMP error: its packet is cut short and its checksum may be stale.
#[inline]
pub fn parse_quoted(packet: &[u8]) -> Result<Header, Malformed> {
    let Some(header) = packet.first_chunk::<HEADER_BYTES>() else { return Err(Malformed::TooShort) };
    if header[0] >> 4 != 4 {
        return Err(Malformed::Version);
    }
    let header_length = usize::from(header[0] & 0xf) * 4;
    if header_length < HEADER_BYTES || header_length > packet.len() {
        return Err(Malformed::Length);
    }
    Ok(Header {
        header_length,
        total_length: usize::from(read_u16(header, TOTAL_LENGTH)),
        fragment: read_u16(header, FRAGMENT),
        ttl: header[TTL],
        protocol: header[PROTOCOL],
        source: Ipv4Addr::from_bits(read_u32(header, SOURCE)),
        destination: Ipv4Addr::from_bits(read_u32(header, DESTINATION)),
    })
}

/// The options of a checked header, each with its type and length; no-operations and what follows the end are left
/// out. Ends early where an option's length is wrong.
pub fn options(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    let mut left = &header[HEADER_BYTES..];
    std::iter::from_fn(move || {
        while left.first() == Some(&NO_OPERATION) {
            left = &left[1..];
        }
        let length = usize::from(*left.get(1)?);
        if left[0] == END || length < 2 || length > left.len() {
            return None;
        }
        let (option, rest) = left.split_at(length);
        left = rest;
        Some(option)
    })
}

/// True where the sender chose the packet's way: nobody does that in good faith (RFC 7126 section 4.3).
#[inline]
pub fn has_source_route(header: &[u8]) -> bool {
    header.len() > HEADER_BYTES && options(header).any(|option| SOURCE_ROUTES.contains(&option[0]))
}

/// Writes a header without options, "don't fragment" set, identification zero (RFC 6864: atomic).
#[inline]
pub fn emit(packet: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, total_length: u16, ttl: u8) {
    let (from, to) = (source.to_bits(), destination.to_bits());
    let start = 0x4500_0000_0000_0000 | u64::from(total_length) << 32 | u64::from(DONT_FRAGMENT);
    let ttl_and_protocol = u32::from(ttl) << 8 | u32::from(protocol);
    // Summed from the values: reading back what was just written in other sizes would stall.
    let constant = 0x4500 + u32::from(DONT_FRAGMENT);
    let addresses = (from >> 16) + (from & 0xffff) + (to >> 16) + (to & 0xffff);
    let field = !checksum::fold(constant + u32::from(total_length) + ttl_and_protocol + addresses);

    let header: &mut [u8; HEADER_BYTES] = packet.first_chunk_mut().expect("the caller has room for a header");
    header[..TTL].copy_from_slice(&start.to_be_bytes());
    header[TTL..SOURCE].copy_from_slice(&(ttl_and_protocol << 16 | u32::from(field)).to_be_bytes());
    header[SOURCE..DESTINATION].copy_from_slice(&from.to_be_bytes());
    header[DESTINATION..].copy_from_slice(&to.to_be_bytes());
}

/// Type of service of what routers say (RFC 1812 section 4.3.2.5).
pub const INTERNETWORK_CONTROL: u8 = 0xc0;

/// Sets the type of service (today DSCP and ECN) and updates the header checksum.
#[inline]
pub fn set_type_of_service(packet: &mut [u8], new: u8) {
    let old = read_u16(packet, 0);
    packet[1] = new;
    let field = Delta::default().word(old, read_u16(packet, 0)).apply(read_u16(packet, CHECKSUM));
    write(packet, CHECKSUM, &field.to_be_bytes());
}

/// Replaces the address at `at` ([`SOURCE`] or [`DESTINATION`]), updates the header checksum, and returns the
/// change for the checksum of the transport header.
#[inline]
pub fn replace_address(packet: &mut [u8], at: usize, new: Ipv4Addr) -> Delta {
    let packet: &mut [u8; HEADER_BYTES] = packet.first_chunk_mut().expect("the caller has checked the header");
    let old = Ipv4Addr::from_bits(read_u32(packet, at));
    let delta = Delta::default().address(old, new);
    write(packet, at, &new.octets());
    let field = delta.apply(read_u16(packet, CHECKSUM));
    write(packet, CHECKSUM, &field.to_be_bytes());
    delta
}

/// Lowers the time to live by one and updates the checksum. The caller has checked that it is above zero.
#[inline]
pub fn decrement_ttl(packet: &mut [u8]) {
    let packet: &mut [u8; HEADER_BYTES] = packet.first_chunk_mut().expect("the caller has checked the header");
    let old = read_u16(packet, TTL);
    let new = old - (1 << 8);
    packet[TTL] = (new >> 8) as u8;
    let field = Delta::default().word(old, new).apply(read_u16(packet, CHECKSUM));
    write(packet, CHECKSUM, &field.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Vec<u8> {
        let mut bytes = vec![0u8; 28];
        emit(&mut bytes, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), UDP, 28, 64);
        bytes
    }

    #[test]
    fn an_emitted_header_parses_and_stays_valid_when_changed() {
        let mut bytes = packet();
        replace_address(&mut bytes, SOURCE, Ipv4Addr::new(192, 0, 2, 255));
        decrement_ttl(&mut bytes);
        let header = parse(&bytes).unwrap();
        assert_eq!((header.ttl, header.source), (63, Ipv4Addr::new(192, 0, 2, 255)));
        assert!(header.is_dont_fragment() && !header.is_fragment());
    }

    #[test]
    fn lying_lengths_are_refused() {
        for (at, value, why) in [
            (0, 0x44, Malformed::Length),
            (0, 0x4f, Malformed::Length),
            (0, 0x65, Malformed::Version),
            (3, 29, Malformed::Length),
            (8, 1, Malformed::Checksum),
        ] {
            let mut bytes = packet();
            bytes[at] = value;
            assert_eq!(parse(&bytes).unwrap_err(), why, "byte {at} = {value:#x}");
        }
        assert_eq!(parse(&packet()[..19]).unwrap_err(), Malformed::TooShort);
    }

    #[test]
    fn options_are_read_one_by_one_up_to_the_end_or_the_first_that_is_wrong() {
        let with = |bytes: &[u8]| [&[0; HEADER_BYTES], bytes].concat();
        let read = |bytes: &[u8]| options(&with(bytes)).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(read(&[1, 1, 7, 3, 4, 0x94, 4, 0, 0, 0, 7, 3]), [vec![7, 3, 4], vec![0x94, 4, 0, 0]]);
        assert_eq!(read(&[]), [[0; 0]; 0]);
        for wrong in [&[7, 0, 0, 0][..], &[7, 1, 0, 0], &[7, 5, 0, 0], &[1, 1, 1, 7]] {
            assert!(read(wrong).is_empty(), "{wrong:?}");
        }
        assert!(has_source_route(&with(&[1, 131, 3, 4])) && !has_source_route(&with(&[7, 4, 131, 137])));
    }

    #[test]
    fn setting_the_type_of_service_keeps_the_checksum_right() {
        let mut packet = [0; HEADER_BYTES];
        emit(&mut packet, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, UDP, 20, 9);
        set_type_of_service(&mut packet, INTERNETWORK_CONTROL);
        assert_eq!(packet[1], 0xc0);
        assert!(parse(&packet).is_ok());
    }
}
