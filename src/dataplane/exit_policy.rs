//! Where an exit sends to, and where not: a client must not reach what is private to the exit, or nobody's.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    forwarding::{Prefix, Prefix6},
    nat::Prefix64,
};

/// The policy; without any entry all is allowed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExitPolicy {
    /// Destinations that an exit sends nothing to; an address in `allow` is let through all the same.
    pub deny: Vec<Prefix>,
    /// Exceptions from `deny`.
    pub allow: Vec<Prefix>,
    /// The same of IPv6.
    pub deny6: Vec<Prefix6>,
    /// Exceptions from `deny6`.
    pub allow6: Vec<Prefix6>,
}

impl ExitPolicy {
    /// True where an exit may send to `destination`.
    pub fn allows(&self, destination: Ipv4Addr) -> bool {
        self.allow.iter().any(|prefix| prefix.contains(destination))
            || !self.deny.iter().any(|prefix| prefix.contains(destination))
    }

    /// The same of IPv6. An address that leads to one of IPv4 is no way around the policy for that.
    pub fn allows6(&self, destination: Ipv6Addr) -> bool {
        let is_allowed = self.allow6.iter().any(|prefix| prefix.contains(destination))
            || !self.deny6.iter().any(|prefix| prefix.contains(destination));
        is_allowed && embedded(destination).is_none_or(|address| self.allows(address))
    }
}

/// The IPv4 address that a translator or a tunnel somewhere would take out of `address`.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    const MAPPED: Prefix6 = Prefix6::of(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
    const COMPATIBLE: Prefix6 = Prefix6::of(Ipv6Addr::UNSPECIFIED, 96);
    const TEREDO: Prefix6 = Prefix6::of(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32);
    const SIX_TO_FOUR: Prefix6 = Prefix6::of(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);
    let bits = address.to_bits();
    match () {
        // RFC 4291 section 2.5.5, RFC 6052 section 2.1.
        () if MAPPED.contains(address) || COMPATIBLE.contains(address) || Prefix64::WELL_KNOWN.contains(address) => {
            Some(Ipv4Addr::from_bits(bits as u32))
        }
        // RFC 4380 section 4: the client's, every bit turned.
        () if TEREDO.contains(address) => Some(Ipv4Addr::from_bits(!bits as u32)),
        // RFC 3056 section 2.
        () if SIX_TO_FOUR.contains(address) => Some(Ipv4Addr::from_bits((bits >> 80) as u32)),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_lets_through_what_is_denied_and_nothing_else_is_concerned() {
        let policy = ExitPolicy {
            deny: vec!["10.0.0.0/8".parse().unwrap()],
            allow: vec!["10.1.0.0/16".parse().unwrap()],
            deny6: vec!["fc00::/7".parse().unwrap()],
            allow6: vec!["fd00:1::/32".parse().unwrap()],
        };
        let four = |text: &str| policy.allows(text.parse().unwrap());
        assert_eq!([four("10.0.0.1"), four("10.1.0.1"), four("11.0.0.1")], [false, true, true]);
        let six = |text: &str| policy.allows6(text.parse().unwrap());
        assert_eq!([six("fd00::1"), six("fd00:1::1"), six("2a00::1")], [false, true, true]);
    }

    #[test]
    fn a_private_address_of_ipv4_is_not_reached_by_a_name_of_ipv6() {
        let policy = ExitPolicy { deny: vec!["10.0.0.0/8".parse().unwrap()], ..ExitPolicy::default() };
        let allows = |text: &str| policy.allows6(text.parse().unwrap());
        for (private, public) in [
            ("::ffff:10.0.0.1", "::ffff:11.0.0.1"),
            ("::10.0.0.1", "::11.0.0.1"),
            ("64:ff9b::10.0.0.1", "64:ff9b::11.0.0.1"),
            ("2002:a00:1::1", "2002:b00:1::1"),
            // 10.0.0.1 and 11.0.0.1 with every bit turned.
            ("2001:0:1:2:3:4:f5ff:fffe", "2001:0:1:2:3:4:f4ff:fffe"),
        ] {
            assert!(!allows(private) && allows(public), "{private}, {public}");
        }
    }
}
