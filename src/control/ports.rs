//! NAT ports and ICMP identifiers of one worker, for one protocol.
//!
//! A worker owns a part of the range ([`OutsideAddresses::ports_of`]), so that what comes back from a server finds its
//! owner by the port alone. A port is picked at random (RFC 6056, RFC 6888 REQ-15): a random place,
//! then the next free one. No port is shared by two mappings (RFC 4787 REQ-3), and one that was given back rests
//! before it serves another (RFC 6888 REQ-8), so that what is still on the way reaches nobody.
//!
//! [`OutsideAddresses::ports_of`]: crate::dataplane::nat::OutsideAddresses::ports_of

use std::collections::VecDeque;

use super::random::Random;
use crate::{Nanos, SECOND};

/// How long a port rests after its use.
pub(super) const QUARANTINE: Nanos = 120 * SECOND;

/// The ports.
#[derive(Debug)]
pub(super) struct Ports {
    /// Port of place 0.
    first: u16,
    places: u32,
    /// One bit a place: leased, or resting.
    taken: Vec<u64>,
    /// When each resting place is free again, soonest first.
    resting: VecDeque<(Nanos, u32)>,
    leased: u32,
}

impl Ports {
    /// All of `range`, free.
    pub(super) fn new(range: std::ops::RangeInclusive<u16>) -> Self {
        let places = range.len() as u32;
        let taken = vec![0; places.div_ceil(64) as usize];
        Self { first: *range.start(), places, taken, resting: VecDeque::new(), leased: 0 }
    }

    /// Leases a random free port.
    pub(super) fn lease(&mut self, random: &mut Random, now: Nanos) -> Option<u16> {
        while let Some(&(_, place)) = self.resting.front().filter(|(until, _)| *until <= now) {
            self.resting.pop_front();
            self.taken[place as usize / 64] &= !(1 << (place % 64));
        }
        if self.leased + self.resting.len() as u32 >= self.places {
            return None;
        }
        let start = random.below(self.places);
        let place = self.free_from(start, self.places).or_else(|| self.free_from(0, start))?;
        self.taken[place as usize / 64] |= 1 << (place % 64);
        self.leased += 1;
        Some(self.first + place as u16)
    }

    /// Gives a leased port back; it rests for [`QUARANTINE`].
    pub(super) fn give(&mut self, port: u16, now: Nanos) {
        let place = u32::from(port - self.first);
        debug_assert!(self.taken[place as usize / 64] & 1 << (place % 64) != 0, "port {port} was not leased");
        self.leased -= 1;
        self.resting.push_back((now + QUARANTINE, place));
    }

    /// Ports leased now.
    pub(super) fn leased(&self) -> u32 {
        self.leased
    }

    /// Ports there are.
    pub(super) fn capacity(&self) -> u32 {
        self.places
    }

    /// The first free place in `from..to`, a word of 64 at a time.
    fn free_from(&self, from: u32, to: u32) -> Option<u32> {
        let mut at = from;
        while at < to {
            let free = !self.taken[at as usize / 64] >> (at % 64);
            if free != 0 {
                return Some(at + free.trailing_zeros()).filter(|place| *place < to);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_the_range_is_leased_once() {
        let mut random = Random::new(&[1; 32]);
        let mut ports = Ports::new(40_001..=40_200);
        let mut all: Vec<u16> = std::iter::from_fn(|| ports.lease(&mut random, 0)).collect();
        all.sort_unstable();
        assert_eq!(all, (40_001..=40_200).collect::<Vec<u16>>());
        assert_eq!(ports.leased(), ports.capacity());
    }

    #[test]
    fn a_port_rests_before_it_serves_again() {
        let mut ports = Ports::new(65_535..=65_535);
        let mut random = Random::new(&[1; 32]);
        assert_eq!(ports.lease(&mut random, 0), Some(65535));
        ports.give(65535, 7);
        assert_eq!(ports.lease(&mut random, 7 + QUARANTINE - 1), None);
        assert_eq!(ports.lease(&mut random, 7 + QUARANTINE), Some(65535));
        assert_eq!(ports.leased(), 1);
    }

    #[test]
    fn the_order_of_ports_is_not_guessable_from_the_last_one() {
        let mut ports = Ports::new(1024..=65_535);
        let mut random = Random::new(&[9; 32]);
        let leases: Vec<u16> = (0..100).map(|_| ports.lease(&mut random, 0).unwrap()).collect();
        let neighbours = leases.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 8).count();
        assert!(neighbours < 5, "{neighbours} of 99 ports follow the one before");
    }
}
