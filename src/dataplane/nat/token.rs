//! IPv6 addresses as the NAT's tables know them: in 32 bits, in the place of an IPv4 address.
//!
//! Bindings, their keys, hosts, ports and timers are the same for both families then, and the IPv4 path carries nothing
//! of the other. A token is an address out of 240.0.0.0/4, which no host has; what it stands for is looked up
//! where a packet is rewritten.
//!
//! - An *inside host* is known exactly: by its place in [`Hosts6`](super::hosts6::Hosts6), and by which of the two
//!   translations it uses. So one host has, of one port, a binding for each.
//! - An *outside address* is known by its place in the pool.
//! - A *remote end* of NAPT66 is known by a keyed hash of 32 bits, for it is only ever compared, and only within what
//!   one binding or one outside port is about. With a chance of one in four thousand millions a stranger passes for one that
//!   the host has sent to, or two servers share a binding of an endpoint-dependent NAT; nobody can look for such a pair
//!   without the key. The remote ends of NAT64 are IPv4 addresses as they are.

use std::net::Ipv4Addr;

/// Inside hosts of IPv6 that a worker can know.
pub const HOSTS_MAX: u32 = 1 << 26;

const FIRST: u32 = 0xf000_0000;
const NAT64: u32 = 0x0400_0000;
const OUTSIDE: u32 = 0xf800_0000;

const _: () = assert!(FIRST + NAT64 + HOSTS_MAX <= OUTSIDE && NAT64 >= HOSTS_MAX, "the ranges do not overlap");

/// What an inside host of IPv6 is translated to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Translation {
    /// IPv6 with another address and port.
    Nat66,
    /// IPv4 (RFC 6146).
    Nat64,
}

/// The token of the inside host at `place`.
#[inline]
pub fn host(translation: Translation, place: u32) -> Ipv4Addr {
    debug_assert!(place < HOSTS_MAX);
    let first = match translation {
        Translation::Nat66 => FIRST,
        Translation::Nat64 => FIRST + NAT64,
    };
    Ipv4Addr::from_bits(first + place)
}

/// The place of the inside host that a token stands for; `None`: it stands for none.
#[inline]
pub fn host_of(address: Ipv4Addr) -> Option<(Translation, u32)> {
    let bits = address.to_bits();
    match bits {
        FIRST..OUTSIDE if bits & NAT64 == 0 => Some((Translation::Nat66, bits & (HOSTS_MAX - 1))),
        FIRST..OUTSIDE => Some((Translation::Nat64, bits & (HOSTS_MAX - 1))),
        _ => None,
    }
}

/// The token of the outside address at `place`.
#[inline]
pub fn outside(place: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(OUTSIDE + u32::from(place))
}

/// The place of the outside address that a token stands for; `None`: it stands for none.
#[inline]
pub fn outside_of(address: Ipv4Addr) -> Option<u8> {
    address.to_bits().checked_sub(OUTSIDE).and_then(|place| u8::try_from(place).ok())
}

/// True for what may be a token: no host of IPv4 has it (RFC 1112 section 4, class E).
#[inline]
pub fn is_reserved(address: Ipv4Addr) -> bool {
    address.to_bits() >= FIRST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_every_kind_are_told_apart_and_from_addresses() {
        for place in [0, 1, HOSTS_MAX - 1] {
            for translation in [Translation::Nat66, Translation::Nat64] {
                let token = host(translation, place);
                assert_eq!((host_of(token), outside_of(token)), (Some((translation, place)), None));
                assert!(is_reserved(token));
            }
        }
        for place in [0, u8::MAX] {
            assert_eq!((outside_of(outside(place)), host_of(outside(place))), (Some(place), None));
            assert!(is_reserved(outside(place)));
        }
        for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(239, 255, 255, 255)] {
            assert_eq!((host_of(address), outside_of(address), is_reserved(address)), (None, None, false));
        }
        assert_eq!((host_of(Ipv4Addr::BROADCAST), outside_of(Ipv4Addr::BROADCAST)), (None, None));
    }
}
