//! IPv4 addresses in IPv6 ones (RFC 6052): how hosts that speak IPv6 alone name a server of the IPv4 internet.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The prefix that stands for all of IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix64 {
    address: Ipv6Addr,
    length: u8,
}

/// Why a prefix is none for NAT64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadPrefix64 {
    /// RFC 6052 section 2.2 knows lengths of 32, 40, 48, 56, 64 and 96 bits.
    Length,
    /// Bits are set after the prefix length, or in bits 64 to 71, which stay zero.
    Bits,
}

impl Prefix64 {
    /// `64:ff9b::/96`, the one that everybody knows.
    pub const WELL_KNOWN: Self = Self { address: Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), length: 96 };

    /// The prefix of these bits.
    pub fn new(address: Ipv6Addr, length: u8) -> Result<Self, BadPrefix64> {
        if !matches!(length, 32 | 40 | 48 | 56 | 64 | 96) {
            return Err(BadPrefix64::Length);
        }
        let prefix = Self { address, length };
        if address.to_bits() & !prefix.mask() != 0 || address.octets()[RESERVED] != 0 {
            return Err(BadPrefix64::Bits);
        }
        Ok(prefix)
    }

    /// Its first address.
    pub fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// Its bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// True where `address` is a name of an IPv4 address.
    #[inline]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// The IPv6 name of `address`.
    #[inline]
    pub fn embed(&self, address: Ipv4Addr) -> Ipv6Addr {
        let mut bytes = self.address.octets();
        for (at, byte) in self.places().zip(address.octets()) {
            bytes[at] = byte;
        }
        bytes.into()
    }

    /// The IPv4 address that `address` is a name of. What stands behind it is ignored (RFC 6052 section 2.2).
    #[inline]
    pub fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        if !self.contains(address) {
            return None;
        }
        let bytes = address.octets();
        let mut places = self.places();
        Some(Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(|_| places.next().map_or(0, |at| bytes[at]))))
    }

    /// Where the four bytes are: right behind the prefix, but never in the reserved byte.
    #[inline]
    fn places(&self) -> impl Iterator<Item = usize> {
        (usize::from(self.length / 8)..16).filter(|at| *at != RESERVED).take(4)
    }

    const fn mask(&self) -> u128 {
        u128::MAX << (128 - self.length)
    }
}

/// The byte of bits 64 to 71: zero, as the format of interface identifiers asks for.
const RESERVED: usize = 8;

impl std::str::FromStr for Prefix64 {
    type Err = String;

    /// Reads `64:ff9b::/96`.
    fn from_str(text: &str) -> Result<Self, String> {
        let not = || format!("'{text}' is not an IPv6 prefix");
        let (address, length) = text.split_once('/').ok_or_else(not)?;
        let (address, length) = (address.parse().map_err(|_| not())?, length.parse().map_err(|_| not())?);
        Self::new(address, length).map_err(|bad| match bad {
            BadPrefix64::Length => format!("'{text}': a NAT64 prefix has 32, 40, 48, 56, 64 or 96 bits"),
            BadPrefix64::Bits => format!("'{text}' has bits set after its prefix length, or in bits 64 to 71"),
        })
    }
}

impl std::fmt::Display for Prefix64 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc6052_section_2_4_names_192_0_2_33_by_every_length() {
        let address = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix, name) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
        ] {
            let prefix: Prefix64 = prefix.parse().unwrap();
            let name: Ipv6Addr = name.parse().unwrap();
            assert_eq!(prefix.embed(address), name, "{prefix}");
            assert_eq!(prefix.extract(name), Some(address), "{prefix}");
            assert_eq!(prefix.extract("2001:db9::1".parse().unwrap()), None);
        }
        assert_eq!("64:ff9b::/96".parse(), Ok(Prefix64::WELL_KNOWN));
    }

    #[test]
    fn what_is_no_prefix_for_nat64_is_refused() {
        for text in ["64:ff9b::", "64:ff9b::/97", "64:ff9b::/128", "::/0", "1.2.3.4/32", "x/96", "64:ff9b::/-1"] {
            assert!(text.parse::<Prefix64>().is_err(), "{text}");
        }
        let new = |address: &str, length| Prefix64::new(address.parse().unwrap(), length);
        assert_eq!(new("64:ff9b::1", 96), Err(BadPrefix64::Bits));
        assert_eq!(new("2001:db8:0:0:100::", 96), Err(BadPrefix64::Bits), "bits 64 to 71 are zero");
        assert_eq!(new("2001:db8::", 33), Err(BadPrefix64::Length));
    }

    proptest::proptest! {
        #[test]
        fn what_is_embedded_comes_out_again(bits in 0u32.., length in 0usize..6) {
            let length = [32, 40, 48, 56, 64, 96][length];
            let prefix = Prefix64::new(Ipv6Addr::from_bits(0x2001_0db8 << 96), length).unwrap();
            let name = prefix.embed(Ipv4Addr::from_bits(bits));
            proptest::prop_assert_eq!(prefix.extract(name), Some(Ipv4Addr::from_bits(bits)));
            proptest::prop_assert_eq!(name.octets()[8], 0);
        }
    }
}
