//! The relay header: 24 bytes after the outer UDP header. `docs/WIRE.md` has it byte by byte.
//!
//! The first 16 bytes are covered by the tag, under a key that the two ends of this hop share. Between two nodes it is
//! AES-128 of these bytes, cut to eight: two nodes have one key for all their sessions, and so its schedule at hand. On a
//! client's hop, which has a key of its own, and of probes, it is SipHash-2-4.

use aes::{
    Aes128,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use siphasher::sip::SipHasher24;

use super::{read_u16, read_u32, read_u64, write};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 24;

/// Bytes of the header that the tag covers.
pub const TAGGED_BYTES: usize = 16;

/// Version of the header: the upper four bits of the first byte.
pub const VERSION: u8 = 1;

/// Bytes of a probe after the header: three timestamps.
pub const PROBE_BYTES: usize = 24;

const PATH: usize = 1;
const GENERATION: usize = 2;
/// Offset of the receiver's slot.
pub const CT_INDEX: usize = 4;
const SEQUENCE: usize = 8;
const TAG: usize = 16;

/// The key of a client's hop, or of the hops between two nodes: shared by the two ends.
pub type HopKey = [u8; 16];

/// What a relay packet is: the lower four bits of the first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An inner packet on its way to the server.
    DataUp = 1,
    /// An inner packet on its way to the client.
    DataDown = 2,
    /// From the client, empty; keeps every slot on the way alive and may bind the client's address.
    KeepAliveUp = 3,
    /// The exit's answer to it.
    KeepAliveDown = 4,
    /// From a node to its neighbour.
    Probe = 5,
    /// The neighbour's answer.
    ProbeReply = 6,
}

impl Kind {
    /// True for what travels from client to server.
    #[inline]
    pub fn is_up(self) -> bool {
        matches!(self, Self::DataUp | Self::KeepAliveUp)
    }

    /// True for what belongs to the node itself, not to a session.
    #[inline]
    pub fn is_probe(self) -> bool {
        matches!(self, Self::Probe | Self::ProbeReply)
    }
}

/// Why bytes are not a relay packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Fewer bytes than the header.
    TooShort,
    /// A version that is not [`VERSION`].
    Version,
    /// A kind there is none of.
    Kind,
}

/// The header's fields, the tag apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the packet is.
    pub kind: Kind,
    /// Which of the session's paths this copy takes.
    pub path: u8,
    /// Generation of the receiver's slot.
    pub generation: u16,
    /// The receiver's slot.
    pub ct_index: u32,
    /// Set by the client (up) or the exit (down), never changed on the way.
    pub sequence: u64,
}

/// The bytes of a header that the tag covers, as two big-endian words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tagged {
    first: u64,
    sequence: u64,
}

impl Tagged {
    /// Of a header on the wire. Panics where the caller has not checked the length.
    #[inline]
    pub fn of(payload: &[u8]) -> Self {
        Self { first: read_u64(payload, 0), sequence: read_u64(payload, SEQUENCE) }
    }

    /// As SipHash and AES read them: little-endian.
    #[inline]
    pub fn words(self) -> [u64; 2] {
        [self.first.swap_bytes(), self.sequence.swap_bytes()]
    }
}

impl Header {
    /// The bytes that the tag covers.
    #[inline]
    pub fn tagged(&self) -> Tagged {
        let first = u64::from(VERSION << 4 | self.kind as u8) << 56
            | u64::from(self.path) << 48
            | u64::from(self.generation) << 32
            | u64::from(self.ct_index);
        Tagged { first, sequence: self.sequence }
    }
}

/// Reads the header at the start of a UDP payload. Does not look at the tag.
#[inline]
pub fn parse(payload: &[u8]) -> Result<Header, Malformed> {
    let Some(payload) = payload.first_chunk::<HEADER_BYTES>() else { return Err(Malformed::TooShort) };
    const FIRST: u8 = VERSION << 4;
    // One comparison of the whole byte where it is as it should be.
    let kind = match payload[0].wrapping_sub(FIRST) {
        1 => Kind::DataUp,
        2 => Kind::DataDown,
        3 => Kind::KeepAliveUp,
        4 => Kind::KeepAliveDown,
        5 => Kind::Probe,
        6 => Kind::ProbeReply,
        _ if payload[0] >> 4 != VERSION => return Err(Malformed::Version),
        _ => return Err(Malformed::Kind),
    };
    Ok(Header {
        kind,
        path: payload[PATH],
        generation: read_u16(payload, GENERATION),
        ct_index: read_u32(payload, CT_INDEX),
        sequence: read_u64(payload, SEQUENCE),
    })
}

/// Writes the header and its tag, for a client's hop or a probe. `payload` must hold at least [`HEADER_BYTES`].
#[inline]
pub fn emit(payload: &mut [u8], header: &Header, key: &HopKey) {
    let tagged = emit_untagged(payload, header);
    emit_tag(payload, tag(tagged, key));
}

/// The same for a hop between two nodes.
pub fn emit_between_nodes(payload: &mut [u8], header: &Header, key: &HopKey) {
    let tagged = emit_untagged(payload, header);
    emit_tag(payload, node_tag(tagged, key));
}

/// Writes the header but for its tag, which [`emit_tag`] adds. `payload` must hold at least [`HEADER_BYTES`].
#[inline]
pub fn emit_untagged(payload: &mut [u8], header: &Header) -> Tagged {
    let tagged = header.tagged();
    write(payload, 0, &tagged.first.to_be_bytes());
    write(payload, SEQUENCE, &tagged.sequence.to_be_bytes());
    tagged
}

/// Writes the tag. `payload` must hold at least [`HEADER_BYTES`].
#[inline]
pub fn emit_tag(payload: &mut [u8], tag: u64) {
    write(payload, TAG, &tag.to_be_bytes());
}

/// The tag on the wire. Panics where the caller has not checked the length.
#[inline]
pub fn read_tag(payload: &[u8]) -> u64 {
    read_u64(payload, TAG)
}

/// True where the tag is the one `key` makes, for a client's hop or a probe.
#[inline]
pub fn is_authentic(payload: &[u8], key: &HopKey) -> bool {
    is_same_tag(tag(Tagged::of(payload), key), read_tag(payload))
}

/// The same for a hop between two nodes.
pub fn is_authentic_between_nodes(payload: &[u8], key: &HopKey) -> bool {
    is_same_tag(node_tag(Tagged::of(payload), key), read_tag(payload))
}

/// Compares in constant time.
#[inline]
pub fn is_same_tag(made: u64, received: u64) -> bool {
    made ^ received == 0
}

/// The tag under `key`, for a client's hop or a probe: SipHash-2-4.
#[inline]
pub fn tag(header: Tagged, key: &HopKey) -> u64 {
    let [first, second] = header.words();
    let bytes = u128::from(first) | u128::from(second) << 64;
    SipHasher24::new_with_key(key).hash(&bytes.to_le_bytes())
}

/// The tag under `key` for a hop between two nodes: the first eight bytes of AES-128 of the header. Makes the key's schedule
/// anew; a node has it in [`NodeKeys`](crate::dataplane::node_keys::NodeKeys).
pub fn node_tag(header: Tagged, key: &HopKey) -> u64 {
    node_tag_under(header, &Aes128::new(key.into()))
}

/// The same with a schedule.
pub(crate) fn node_tag_under(header: Tagged, key: &Aes128) -> u64 {
    let mut block = (u128::from(header.first) << 64 | u128::from(header.sequence)).to_be_bytes().into();
    key.encrypt_block(&mut block);
    read_u64(&block, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        kind: Kind::DataDown,
        path: 3,
        generation: 0x0102,
        ct_index: 0x0a0b_0c0d,
        sequence: 0x1122_3344_5566_7788,
    };

    #[test]
    fn bytes_are_where_the_document_says() {
        let mut bytes = [0u8; HEADER_BYTES];
        emit(&mut bytes, &HEADER, &[7; 16]);
        assert_eq!(
            bytes[..TAGGED_BYTES],
            [0x12, 3, 1, 2, 0x0a, 0x0b, 0x0c, 0x0d, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]
        );
        assert_eq!(parse(&bytes), Ok(HEADER));
    }

    #[test]
    fn a_change_to_any_bit_or_the_key_breaks_the_tag() {
        let mut bytes = [0u8; HEADER_BYTES];
        emit(&mut bytes, &HEADER, &[7; 16]);
        assert!(is_authentic(&bytes, &[7; 16]));
        assert!(!is_authentic(&bytes, &[8; 16]));
        for bit in 0..HEADER_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_authentic(&bytes, &[7; 16]), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn short_packets_other_versions_and_unknown_kinds_are_refused() {
        assert_eq!(parse(&[0x11; 23]), Err(Malformed::TooShort));
        assert_eq!(parse(&[0x21; 24]), Err(Malformed::Version));
        assert_eq!(parse(&[0x1f; 24]), Err(Malformed::Kind));
    }
}
