//! Header formats: where each field is, how it is read and written. No policy.
//!
//! Every reader takes a slice and returns `None` or an error where the bytes are too few or a length field
//! lies; none of them panics on any input (`parsers_never_panic` in `tests` below feeds them noise).

pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod icmp6;
pub mod ip4;
pub mod ip6;
pub mod relay;
pub mod tcp;
pub mod udp;

/// Bytes the overlay adds to an inner packet, from the outer IPv4 header to the end of the relay header.
pub const OVERLAY_BYTES: usize = ip4::HEADER_BYTES + udp::HEADER_BYTES + relay::HEADER_BYTES;

/// The big-endian 16-bit word at `at`. Panics where the caller has not checked the length.
#[inline]
pub fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// The big-endian 32-bit word at `at`. Panics where the caller has not checked the length.
#[inline]
pub fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// The big-endian 64-bit word at `at`. Panics where the caller has not checked the length.
#[inline]
pub fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// One check of the length, one load.
#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has this length")
}

/// Writes `bytes` at `at`.
#[inline]
pub fn write(packet: &mut [u8], at: usize, bytes: &[u8]) {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
}
