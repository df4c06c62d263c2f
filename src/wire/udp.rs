//! UDP (RFC 768).

use std::net::Ipv4Addr;

use super::{checksum, ip4, read_u16, write};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;

/// Offset of the source port.
pub const SOURCE: usize = 0;
/// Offset of the destination port.
pub const DESTINATION: usize = 2;
/// Offset of the length (header and payload).
pub const LENGTH: usize = 4;
/// Offset of the checksum; zero means none over IPv4.
pub const CHECKSUM: usize = 6;

/// The length field where it is believable: at least a header and within `datagram`.
#[inline]
pub fn checked_length(datagram: &[u8]) -> Option<usize> {
    if datagram.len() < HEADER_BYTES {
        return None;
    }
    let length = usize::from(read_u16(datagram, LENGTH));
    (HEADER_BYTES..=datagram.len()).contains(&length).then_some(length)
}

/// True where the checksum is right or there is none. `datagram` must hold at least the header, and nothing behind the
/// datagram.
#[inline]
pub fn is_checksum_valid(source: Ipv4Addr, destination: Ipv4Addr, datagram: &[u8]) -> bool {
    read_u16(datagram, CHECKSUM) == 0 || {
        let pseudo = checksum::pseudo_header(source, destination, ip4::UDP, datagram.len() as u16);
        checksum::fold(checksum::sum(datagram, pseudo)) == 0xffff
    }
}

/// Writes a header with a zero checksum, as RFC 6935 and RFC 768 allow for tunnels over IPv4: the relay
/// header has a tag of its own and the inner packet its own checksums.
#[inline]
pub fn emit(datagram: &mut [u8], source: u16, destination: u16, length: u16) {
    let header = u64::from(source) << 48 | u64::from(destination) << 32 | u64::from(length) << 16;
    write(datagram, SOURCE, &header.to_be_bytes());
}
