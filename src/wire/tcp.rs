//! TCP (RFC 9293): what a NAT needs of it.

use super::{checksum::Delta, read_u16, read_u32, write};

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;

/// Offset of the source port.
pub const SOURCE: usize = 0;
/// Offset of the destination port.
pub const DESTINATION: usize = 2;
/// Offset of the sequence number.
pub const SEQUENCE: usize = 4;
/// Offset of the acknowledgement number.
pub const ACKNOWLEDGEMENT: usize = 8;
/// Offset of the flags byte.
pub const FLAGS: usize = 13;
/// Offset of the window.
pub const WINDOW: usize = 14;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;

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

/// What a NAT looks at in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The flags byte.
    pub flags: u8,
    /// Number of its first byte, or of its SYN.
    pub sequence: u32,
    /// The next byte that its sender expects; of use only with ACK.
    pub acknowledgement: u32,
    /// The window, not scaled.
    pub window: u16,
    /// Bytes of payload.
    pub payload: u32,
    /// The window scale that a SYN offers (RFC 7323).
    pub scale: Option<u8>,
}

impl Segment {
    /// The number after its last byte; SYN and FIN count as one each.
    #[inline]
    pub fn end(&self) -> u32 {
        let flags = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.sequence.wrapping_add(self.payload).wrapping_add(flags)
    }
}

/// Reads a segment; `None` where its header is not whole. `payload` is what there is of it.
#[inline]
pub fn parse(segment: &[u8]) -> Option<Segment> {
    let header = checked_header_length(segment)?;
    let flags = segment[FLAGS];
    let scale = match flags & SYN {
        0 => None,
        _ => find_option(&segment[..header], OPTION_WINDOW_SCALE, 3).map(|at| segment[at + 2]),
    };
    Some(Segment {
        flags,
        sequence: read_u32(segment, SEQUENCE),
        acknowledgement: read_u32(segment, ACKNOWLEDGEMENT),
        window: read_u16(segment, WINDOW),
        payload: (segment.len() - header) as u32,
        scale,
    })
}

/// Where in a header the first option of this kind and length begins; options after a malformed one are not seen.
fn find_option(header: &[u8], kind: u8, length: usize) -> Option<usize> {
    let mut at = HEADER_BYTES;
    while at + 1 < header.len() {
        match header[at] {
            OPTION_END => return None,
            OPTION_NOTHING => at += 1,
            found => {
                let bytes = usize::from(header[at + 1]);
                if found == kind && bytes == length && at + bytes <= header.len() {
                    return Some(at);
                }
                if bytes < 2 {
                    return None;
                }
                at += bytes;
            }
        }
    }
    None
}

/// Lowers the maximum segment size option of a SYN to `mss` and updates the checksum; leaves anything else
/// alone, malformed options included. True where something changed.
pub fn clamp_mss(segment: &mut [u8], mss: u16) -> bool {
    let Some(header) = checked_header_length(segment) else { return false };
    if segment[FLAGS] & SYN == 0 {
        return false;
    }
    let Some(option) = find_option(&segment[..header], OPTION_MSS, 4) else { return false };
    let value = option + 2;
    if read_u16(segment, value) <= mss {
        return false;
    }
    // An option may start at an odd offset; then the value straddles two checksum words.
    let word = value & !1;
    let span = if value.is_multiple_of(2) { 2 } else { 4 };
    let before: [u8; 4] = std::array::from_fn(|i| if i < span { segment[word + i] } else { 0 });
    write(segment, value, &mss.to_be_bytes());
    let mut delta = Delta::default();
    for i in (0..span).step_by(2) {
        delta = delta.word(read_u16(&before, i), read_u16(segment, word + i));
    }
    let field = delta.apply(read_u16(segment, CHECKSUM));
    write(segment, CHECKSUM, &field.to_be_bytes());
    true
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

    #[test]
    fn a_segments_numbers_and_the_scale_of_a_syn_are_read() {
        let mut segment = syn(&[1, 3, 3, 7]);
        write(&mut segment, SEQUENCE, &100u32.to_be_bytes());
        write(&mut segment, WINDOW, &500u16.to_be_bytes());
        let read = parse(&segment).unwrap();
        assert_eq!((read.sequence, read.window, read.scale, read.end()), (100, 500, Some(7), 101));
        segment[FLAGS] = ACK | FIN;
        segment.extend_from_slice(b"data");
        let read = parse(&segment).unwrap();
        assert_eq!((read.payload, read.scale, read.end()), (4, None, 105));
        for broken in [&[3, 2, 9, 9][..], &[3, 0, 0, 0], &[3, 4, 7, 0], &[1, 1, 3, 3]] {
            assert_eq!(parse(&syn(broken)).unwrap().scale, None, "{broken:?}");
        }
    }
}
