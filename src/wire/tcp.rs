//! TCP (RFC 9293): what a NAT needs of it.

use super::{checksum::Delta, read_u16, write};

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;

/// Offset of the source port.
pub const SOURCE: usize = 0;
/// Offset of the destination port.
pub const DESTINATION: usize = 2;
/// Offset of the flags byte.
pub const FLAGS: usize = 13;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// ACK flag.
pub const ACK: u8 = 0x10;

/// Header length with options where it is believable.
#[inline]
pub fn checked_header_length(segment: &[u8]) -> Option<usize> {
    if segment.len() < HEADER_BYTES {
        return None;
    }
    let length = usize::from(segment[12] >> 4) * 4;
    (HEADER_BYTES..=segment.len()).contains(&length).then_some(length)
}

/// Lowers the maximum segment size option of a SYN to `mss` and updates the checksum; leaves anything else
/// alone, malformed options included. True where something changed.
pub fn clamp_mss(segment: &mut [u8], mss: u16) -> bool {
    let Some(header) = checked_header_length(segment) else { return false };
    if segment[FLAGS] & SYN == 0 {
        return false;
    }
    let mut at = HEADER_BYTES;
    while at + 1 < header {
        match segment[at] {
            0 => return false,
            1 => at += 1,
            2 if segment[at + 1] == 4 && at + 4 <= header => {
                let old = read_u16(segment, at + 2);
                if old <= mss {
                    return false;
                }
                // An option may start at an odd offset; then the value straddles two checksum words.
                let word = (at + 2) & !1;
                let span = if (at + 2).is_multiple_of(2) { 2 } else { 4 };
                let mut delta = Delta::default();
                let before: [u8; 4] = std::array::from_fn(|i| if i < span { segment[word + i] } else { 0 });
                write(segment, at + 2, &mss.to_be_bytes());
                for i in (0..span).step_by(2) {
                    delta = delta.word(read_u16(&before, i), read_u16(segment, word + i));
                }
                let field = delta.apply(read_u16(segment, CHECKSUM));
                write(segment, CHECKSUM, &field.to_be_bytes());
                return true;
            }
            _ => {
                let length = usize::from(segment[at + 1]);
                if length < 2 {
                    return false;
                }
                at += length;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum;

    fn syn(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0u8; 20];
        segment.extend_from_slice(options);
        segment[12] = ((segment.len() / 4) as u8) << 4;
        segment[FLAGS] = SYN;
        let field = checksum::of(&segment);
        write(&mut segment, CHECKSUM, &field.to_be_bytes());
        segment
    }

    #[test]
    fn a_larger_mss_is_lowered_and_the_checksum_follows() {
        for options in [&[2, 4, 5, 0xb4][..], &[1, 2, 4, 5, 0xb4, 0, 0, 0][..]] {
            let mut segment = syn(options);
            assert!(clamp_mss(&mut segment, 1360));
            assert!(checksum::is_valid(&segment), "{options:?}");
        }
    }

    #[test]
    fn a_smaller_mss_and_broken_options_are_left_alone() {
        for options in [&[2, 4, 2, 0][..], &[2, 0, 0, 0][..], &[3, 40, 0, 0][..], &[0, 2, 4, 9][..], &[2, 4, 9, 9][..0]]
        {
            let mut segment = syn(options);
            let before = segment.clone();
            assert!(!clamp_mss(&mut segment, 1360));
            assert_eq!(segment, before);
        }
    }
}
