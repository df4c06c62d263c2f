//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::Ipv4Addr;

/// One's-complement sum of `bytes` on top of `sum`, folded to 16 bits.
#[inline]
pub fn sum(bytes: &[u8], sum: u32) -> u32 {
    u32::from(u16::from_be(folded(bytes))) + (sum & 0xffff) + (sum >> 16)
}

/// The sum of `bytes` in the CPU's byte order, on which it does not depend but for being turned round (RFC 1071
/// section 2 (B)).
#[inline]
fn folded(bytes: &[u8]) -> u16 {
    let mut total = total(bytes);
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff_ffff) + (total >> 32);
    fold(total as u32)
}

/// The same before it is folded: a number that leaves the same remainder by all ones.
#[inline]
fn total(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0u8; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

/// Folds a sum to 16 bits.
#[inline]
pub fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field for `bytes` whose own checksum field is zero.
#[inline]
pub fn of(bytes: &[u8]) -> u16 {
    !fold(sum(bytes, 0))
}

/// True where `bytes`, checksum field included, sum to all ones.
#[inline]
pub fn is_valid(bytes: &[u8]) -> bool {
    // The same in either byte order. One multiplication, where folding takes a dozen instructions.
    let total = total(bytes);
    total != 0 && total.is_multiple_of(0xffff)
}

/// The sum of the IPv4 pseudo-header of UDP and TCP.
#[inline]
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, bytes: u16) -> u32 {
    let (from, to) = (source.to_bits(), destination.to_bits());
    (from >> 16) + (from & 0xffff) + (to >> 16) + (to & 0xffff) + u32::from(protocol) + u32::from(bytes)
}

/// A running change to a checksum: the difference between words removed and words put in their place, at most some
/// thousands of them. Folded when it is applied.
///
/// RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
#[derive(Clone, Copy, Default, Debug)]
pub struct Delta(u32);

impl Delta {
    /// A 16-bit word that changed from `old` to `new`.
    #[inline]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u32::from(!old) + u32::from(new))
    }

    /// An IPv4 address that changed from `old` to `new`.
    #[inline]
    pub fn address(self, old: Ipv4Addr, new: Ipv4Addr) -> Self {
        let (old, new) = (old.to_bits(), new.to_bits());
        self.word((old >> 16) as u16, (new >> 16) as u16).word(old as u16, new as u16)
    }

    /// Words that are gone; an even number of bytes.
    #[inline]
    pub fn take(self, bytes: &[u8]) -> Self {
        self.word(fold(sum(bytes, 0)), 0)
    }

    /// Words that are new; an even number of bytes.
    #[inline]
    pub fn put(self, bytes: &[u8]) -> Self {
        self.word(0, fold(sum(bytes, 0)))
    }

    /// Both changes.
    #[inline]
    pub fn join(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum field that was `field` before the change.
    #[inline]
    pub fn apply(self, field: u16) -> u16 {
        !fold(self.0 + u32::from(!field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc1071_example_sums_to_ddf2() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)), 0xddf2);
    }

    #[test]
    fn an_odd_byte_counts_as_the_high_half_of_a_word() {
        assert_eq!(of(&[0xab]), !0xab00);
    }

    proptest::proptest! {
        #[test]
        fn an_incremental_update_equals_a_fresh_sum(mut bytes in proptest::collection::vec(0u8.., 12..64), new in 0u16..) {
            bytes.truncate(bytes.len() & !1);
            bytes[0] |= 1; // a sum of all zeros has two representations
            bytes[10..12].fill(0);
            let field = of(&bytes);
            let old = crate::wire::read_u16(&bytes, 2);
            bytes[2..4].copy_from_slice(&new.to_be_bytes());
            proptest::prop_assert_eq!(Delta::default().word(old, new).apply(field), of(&bytes));
        }

        #[test]
        fn bytes_are_valid_where_their_folded_sum_is_all_ones(mut bytes in proptest::collection::vec(0u8.., 0..64), zeros in 0usize..64) {
            bytes.iter_mut().take(zeros).for_each(|byte| *byte = 0);
            proptest::prop_assert_eq!(is_valid(&bytes), fold(sum(&bytes, 0)) == 0xffff);
            if bytes.len() >= 2 {
                bytes[..2].fill(0);
                let field = of(&bytes);
                bytes[..2].copy_from_slice(&field.to_be_bytes());
                proptest::prop_assert!(is_valid(&bytes));
            }
        }

        #[test]
        fn words_may_come_and_go(kept in 1u16.., old in 0u64.., new in 0u128..) {
            let (kept, old, new) = (kept.to_be_bytes(), old.to_be_bytes(), new.to_be_bytes());
            let before = of(&[&kept[..], &old].concat());
            let after = of(&[&kept[..], &new].concat());
            proptest::prop_assert_eq!(Delta::default().take(&old).put(&new).apply(before), after);
        }
    }
}
