//! Addresses of either family: what routes, next hops and caches are made of.

use std::{
    fmt::Debug,
    hash::Hash,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::wire::ethernet;

/// An IPv4 or IPv6 address.
pub trait Address: Copy + Ord + Hash + Debug + Send + 'static {
    /// Its bits as a number.
    type Bits: Copy + Ord + Debug + Default + Send;
    /// How many.
    const LENGTH: u8;
    /// None in particular.
    const UNSPECIFIED: Self;
    /// EtherType of the packets that have such ones.
    const ETHER_TYPE: u16;

    /// The number.
    fn number(self) -> Self::Bits;

    /// The number, however many bits it has.
    fn wide(self) -> u128;

    /// The number from however many bits; those too many are cut off.
    fn from_wide(bits: u128) -> Self;

    /// 32 bits that are different for addresses that are near each other.
    fn spread(self) -> u32;
}

const GOLDEN: u32 = 0x9e37_79b1;

impl Address for Ipv4Addr {
    type Bits = u32;
    const LENGTH: u8 = 32;
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const ETHER_TYPE: u16 = ethernet::TYPE_IP4;

    #[inline]
    fn number(self) -> u32 {
        self.to_bits()
    }

    #[inline]
    fn wide(self) -> u128 {
        u128::from(self.to_bits())
    }

    #[inline]
    fn from_wide(bits: u128) -> Self {
        Self::from_bits(bits as u32)
    }

    #[inline]
    fn spread(self) -> u32 {
        self.to_bits().wrapping_mul(GOLDEN)
    }
}

impl Address for Ipv6Addr {
    type Bits = u128;
    const LENGTH: u8 = 128;
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const ETHER_TYPE: u16 = ethernet::TYPE_IP6;

    #[inline]
    fn number(self) -> u128 {
        self.to_bits()
    }

    #[inline]
    fn wide(self) -> u128 {
        self.to_bits()
    }

    #[inline]
    fn from_wide(bits: u128) -> Self {
        Self::from_bits(bits)
    }

    /// Each word is multiplied before the next comes in, so that no two words cancel each other out.
    #[inline]
    fn spread(self) -> u32 {
        let bits = self.to_bits();
        [96, 64, 32, 0].into_iter().fold(0u32, |sum, shift| (sum ^ (bits >> shift) as u32).wrapping_mul(GOLDEN))
    }
}
