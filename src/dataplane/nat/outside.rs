//! The addresses and ports that servers see, and which worker each port belongs to.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::{binding::Endpoint, token};
use crate::dataplane::{
    address::Address,
    gateway::{OutsideAddress, OutsideAddress6},
};

/// Numbers of addresses: a binding keeps its in a byte.
pub const ADDRESSES_MAX: usize = 256;

/// The number of the first IPv6 address; those before it are IPv4's.
pub const FIRST6: u8 = 128;

/// The pool. Each worker owns a part of each address's ports, all next to each other.
#[derive(Clone, Debug)]
pub struct OutsideAddresses {
    /// By number.
    addresses: Box<[Option<Place>; ADDRESSES_MAX]>,
    /// Number plus one of each address, at its [`home`] or in the places after it; zero: none. That an address is not ours,
    /// which most are not, is mostly told by one look.
    by_address: Box<[u16; PLACES]>,
    /// Those of IPv6, by place; the unspecified one where there is none.
    addresses6: Box<[Ipv6Addr]>,
}

/// At least half of them are empty.
const PLACES: usize = 2 * ADDRESSES_MAX;

#[inline]
fn home(address: Ipv4Addr) -> usize {
    (address.spread() >> 16) as usize % PLACES
}

#[derive(Clone, Copy, Debug)]
struct Place {
    address: Ipv4Addr,
    first: u16,
    last: u16,
    /// Ports that one worker owns.
    share: u32,
}

/// Ports of `outside` that each of `workers` owns, but for what the last one is short of.
fn share(outside: &OutsideAddress, workers: u8) -> u32 {
    (u32::from(outside.last - outside.first) + 1).div_ceil(u32::from(workers))
}

/// The ports of `outside` that `worker` of `workers` owns; none where there are fewer ports than workers.
pub fn part(outside: &OutsideAddress, workers: u8, worker: usize) -> RangeInclusive<u16> {
    part_of(outside.first, outside.last, share(outside, workers), worker)
}

const NO_PORTS: RangeInclusive<u16> = RangeInclusive::new(1, 0);

fn part_of(first: u16, last: u16, share: u32, worker: usize) -> RangeInclusive<u16> {
    let first = u32::from(first) + worker as u32 * share;
    let last = (first + share - 1).min(u32::from(last));
    if first > last { NO_PORTS } else { first as u16..=last as u16 }
}

impl OutsideAddresses {
    /// A pool whose addresses are numbered by their place, vacant ones included, those of IPv6 from [`FIRST6`] on, for a
    /// node of `workers` workers. Panics where an address is there twice or there are more than [`FIRST6`] of a family.
    pub fn new(addresses: &[OutsideAddress], addresses6: &[OutsideAddress6], workers: u8) -> Self {
        assert!(addresses.len().max(addresses6.len()) <= usize::from(FIRST6), "at most {FIRST6} of a family");
        let known_by_token = (0..FIRST6).zip(addresses6).filter(|(_, outside)| !outside.is_vacant()).map(
            |(place, OutsideAddress6 { first, last, .. })| {
                (FIRST6 + place, OutsideAddress { address: token::outside(place), first: *first, last: *last })
            },
        );
        let known = (0..FIRST6).zip(addresses.iter().copied()).filter(|(_, outside)| !outside.is_vacant());
        let mut pool = Self {
            addresses: Box::new([None; ADDRESSES_MAX]),
            by_address: Box::new([0; PLACES]),
            addresses6: addresses6.iter().map(|outside| outside.address).collect(),
        };
        for (number, outside) in known.chain(known_by_token) {
            let OutsideAddress { address, first, last } = outside;
            let share = share(&outside, workers);
            assert!(!pool.contains(address), "an address is in the pool once");
            pool.addresses[usize::from(number)] = Some(Place { address, first, last, share });
            let mut at = home(address);
            while pool.by_address[at] != 0 {
                at = (at + 1) % PLACES;
            }
            pool.by_address[at] = u16::from(number) + 1;
        }
        let addresses6 = &pool.addresses6;
        let is_there_before = |n: usize| !addresses6[n].is_unspecified() && addresses6[..n].contains(&addresses6[n]);
        assert!(!(0..addresses6.len()).any(is_there_before), "an address is there once");
        pool
    }

    /// The number of an address, `None` where it is not in the pool.
    #[inline]
    pub fn number_of(&self, address: Ipv4Addr) -> Option<u8> {
        let mut at = home(address);
        loop {
            let number = self.by_address[at].checked_sub(1)? as u8;
            if self.addresses[usize::from(number)].is_some_and(|place| place.address == address) {
                return Some(number);
            }
            at = (at + 1) % PLACES;
        }
    }

    /// True where the address is in the pool.
    #[inline]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.number_of(address).is_some()
    }

    /// The token of an IPv6 address, `None` where it is not in the pool.
    #[inline]
    pub fn token_of(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let is_it = |known: &Ipv6Addr| *known == address && !address.is_unspecified();
        self.addresses6.iter().position(is_it).map(|place| token::outside(place as u8))
    }

    /// The first address of IPv6.
    pub fn first6(&self) -> Option<Ipv6Addr> {
        self.addresses6.first().copied()
    }

    /// The IPv6 address that a token stands for.
    #[inline]
    pub fn address6(&self, outside: Ipv4Addr) -> Option<Ipv6Addr> {
        let address = self.addresses6.get(usize::from(token::outside_of(outside)?)).copied();
        address.filter(|address| !address.is_unspecified())
    }

    /// What servers know an outside address by.
    #[inline]
    pub fn name_of(&self, outside: Ipv4Addr) -> IpAddr {
        self.address6(outside).map_or(outside.into(), IpAddr::from)
    }

    /// The numbers of all addresses, of both families.
    pub fn numbers(&self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).zip(&*self.addresses).filter(|(_, place)| place.is_some()).map(|(number, _)| number)
    }

    /// The worker that owns a port (or ICMP identifier) of an address; `None` where it is not NAT's.
    #[inline]
    pub fn owner_of(&self, outside: Endpoint) -> Option<usize> {
        let number = self.number_of(outside.0)?;
        let place = self.addresses[usize::from(number)]?;
        (place.first..=place.last)
            .contains(&outside.1)
            .then(|| (u32::from(outside.1 - place.first) / place.share) as usize)
    }

    /// The ports of address `number` that `worker` gives out; none where there are fewer ports than workers.
    pub fn ports_of(&self, number: u8, worker: usize) -> RangeInclusive<u16> {
        let Some(Place { first, last, share, .. }) = self.addresses[usize::from(number)] else { return NO_PORTS };
        part_of(first, last, share, worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    fn outside(address: Ipv4Addr, first: u16, last: u16) -> OutsideAddress {
        OutsideAddress { address, first, last }
    }

    #[test]
    fn addresses_keep_the_number_of_their_place_and_need_not_be_neighbours() {
        let c = Ipv4Addr::new(198, 51, 100, 1);
        let pool = OutsideAddresses::new(&[A, B, c].map(|address| outside(address, 1, 65_535)), &[], 1);
        assert_eq!([A, B, c].map(|address| pool.number_of(address)), [Some(0), Some(1), Some(2)]);
        assert!(!pool.contains(Ipv4Addr::new(192, 0, 2, 8)));
        let one = OutsideAddresses::new(&[outside(A, 0, 65_535)], &[], 1);
        assert_eq!((one.number_of(A), one.number_of(B)), (Some(0), None));
        assert_eq!((one.owner_of((A, 0)), one.owner_of((A, 65_535))), (Some(0), Some(0)));
    }

    #[test]
    fn every_address_of_a_full_pool_is_found_and_no_other_one() {
        // All of one family; the second half share the homes of the first.
        let half: Vec<Ipv4Addr> = (0..64).map(|n| Ipv4Addr::from_bits(0xc633_6400 + n)).collect();
        let like = |address: &Ipv4Addr| {
            let others = (0x0a00_0000..).map(Ipv4Addr::from_bits);
            others.filter(|other| home(*other) == home(*address)).nth(3).unwrap()
        };
        let all: Vec<Ipv4Addr> = half.iter().copied().chain(half.iter().map(like)).collect();
        let named: Vec<OutsideAddress> = all.iter().map(|address| outside(*address, 1, 2)).collect();
        let pool = OutsideAddresses::new(&named, &[], 1);
        for (number, address) in (0..).zip(&all) {
            assert_eq!(pool.number_of(*address), Some(number));
            let near = (0..9).map(|step| Ipv4Addr::from_bits(address.to_bits().wrapping_add(step << 16)));
            assert!(near.filter(|other| !all.contains(other)).all(|other| !pool.contains(other)));
        }
    }

    #[test]
    fn addresses_of_ipv6_have_numbers_of_their_own_and_are_found_by_their_tokens() {
        let six = |n| OutsideAddress6 { address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n), first: 7, last: 9 };
        let pool = OutsideAddresses::new(&[outside(A, 1, 2)], &[six(1), six(2)], 1);
        let token = pool.token_of(six(2).address).unwrap();
        assert_eq!((pool.numbers().count(), pool.number_of(token), pool.number_of(A)), (3, Some(FIRST6 + 1), Some(0)));
        assert_eq!(pool.address6(token), Some(six(2).address));
        assert_eq!([token, A].map(|outside| pool.name_of(outside)), [six(2).address.into(), IpAddr::from(A)]);
        assert_eq!((pool.owner_of((token, 7)), pool.owner_of((token, 1))), (Some(0), None));
        assert_eq!((pool.token_of(six(3).address), pool.address6(A)), (None, None));
    }

    #[test]
    fn every_port_of_the_range_has_one_owner_and_no_other_port_has() {
        for (first, last, workers) in [(40_001, 40_200, 3), (1, 65_535, 4), (65_534, 65_535, 4), (7, 7, 1)] {
            let pool = OutsideAddresses::new(&[outside(B, 1, 2), outside(A, first, last)], &[], workers);
            for port in 0..=u16::MAX {
                let owners: Vec<usize> =
                    (0..usize::from(workers)).filter(|worker| pool.ports_of(1, *worker).contains(&port)).collect();
                let expected: Vec<usize> = pool.owner_of((A, port)).into_iter().collect();
                assert_eq!(owners, expected, "port {port} of {first}-{last} among {workers}");
                assert_eq!(owners.len(), usize::from((first..=last).contains(&port)));
            }
        }
    }
}
