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

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Noise, and noise that begins as a header of either family does.
        #[test]
        fn parsers_never_panic(mut bytes in proptest::collection::vec(0u8.., 0..160), first in 0u8..4, next in 0u8..6) {
            if let Some(byte) = bytes.first_mut() {
                *byte = [*byte, 0x45, 0x4f, 0x60][usize::from(first)];
            }
            if first == 3 && bytes.len() > ip6::NEXT_HEADER {
                bytes[ip6::NEXT_HEADER] = [0, 43, 44, 60, 17, 58][usize::from(next)];
            }
            for parsed in [ip4::parse(&bytes), ip4::parse_quoted(&bytes)].into_iter().flatten() {
                proptest::prop_assert!(parsed.header_length <= bytes.len());
                ip4::options(&bytes[..parsed.header_length]).for_each(drop);
            }
            for parsed in [ip6::parse(&bytes), ip6::parse_quoted(&bytes)].into_iter().flatten() {
                proptest::prop_assert!((ip6::HEADER_BYTES..=bytes.len()).contains(&parsed.header_length));
            }
            let _ = (tcp::parse(&bytes), tcp::clamp_mss(&mut bytes.clone(), 1000), udp::checked_length(&bytes));
            let _ = (relay::parse(&bytes), ethernet::ether_type(&bytes));
        }
    }
}
