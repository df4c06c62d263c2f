//! The ports, or ICMP identifiers, of one outside address that one worker owns, for one protocol.
//!
//! A worker owns a part of the range ([`OutsideAddresses::ports_of`]), so that what comes back from a server finds its
//! owner by the port alone. A port is picked at random (RFC 6056, RFC 6888 REQ-15): a random place, then the next free
//! one of the same parity, if there is one (RFC 4787 REQ-4). One that is leased is nobody else's (RFC 4787 REQ-3), and
//! one that was given back rests before it serves again (RFC 6888 REQ-8), so that what is still on the way reaches
//! nobody. Endpoint-dependent bindings share ports among themselves, and only among themselves.
//!
//! [`OutsideAddresses::ports_of`]: crate::dataplane::nat::OutsideAddresses::ports_of

use std::{collections::VecDeque, ops::RangeInclusive};

use super::random::Random;
use crate::{Nanos, SECOND};

/// How long a port rests after its use.
pub(super) const QUARANTINE: Nanos = 120 * SECOND;

/// One parity of a word of places; the other is its complement.
const EVEN: u64 = 0x5555_5555_5555_5555;

/// The ports.
#[derive(Debug)]
pub(super) struct Ports {
    /// Port of place 0.
    first: u16,
    places: u32,
    /// One bit a place: leased, shared or resting.
    taken: Vec<u64>,
    /// How many share each place; empty until the first is shared.
    sharers: Vec<u32>,
    /// When each resting place is free again, soonest first.
    resting: VecDeque<(Nanos, u32)>,
    /// Leased or shared ones.
    leased: u32,
    blocks: Blocks,
}

/// Blocks of neighbouring places, each for one host.
#[derive(Debug)]
struct Blocks {
    /// Places of a block; zero: none are made.
    size: u16,
    free: Vec<u16>,
    resting: VecDeque<(Nanos, u16)>,
}

/// A lease must meet these wishes if it can, the first one first.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    /// A port as even or odd as this one.
    pub(super) parity_of: Option<u16>,
    /// One by which the server's answers come to the owner.
    pub(super) lands: Option<&'a dyn Fn(u16) -> bool>,
}

/// Free ports that are asked whether they land. Of a node with 64 queues, one in 56 leases finds none.
const TRIES: usize = 256;

impl Ports {
    /// All of `range`, free. `block`: how many ports a block has that is given to a host; zero: none.
    pub(super) fn new(range: RangeInclusive<u16>, block: u16) -> Self {
        let places = range.len() as u32;
        let free = places.checked_div(u32::from(block)).map_or(Vec::new(), |count| (0..count as u16).collect());
        Self {
            first: *range.start(),
            places,
            taken: vec![0; places.div_ceil(64) as usize],
            sharers: Vec::new(),
            resting: VecDeque::new(),
            leased: 0,
            blocks: Blocks { size: block, free, resting: VecDeque::new() },
        }
    }

    /// Leases a random free port.
    pub(super) fn lease(&mut self, wish: Wish<'_>, random: &mut Random, now: Nanos) -> Option<u16> {
        self.lease_within(0..self.places, wish, random, now)
    }

    /// Leases a random free port of a block.
    pub(super) fn lease_in_block(
        &mut self,
        block: u16,
        wish: Wish<'_>,
        random: &mut Random,
        now: Nanos,
    ) -> Option<u16> {
        let first = u32::from(block) * u32::from(self.blocks.size);
        self.lease_within(first..first + u32::from(self.blocks.size), wish, random, now)
    }

    fn lease_within(
        &mut self,
        places: std::ops::Range<u32>,
        wish: Wish<'_>,
        random: &mut Random,
        now: Nanos,
    ) -> Option<u16> {
        self.wake(now);
        if places.is_empty() {
            return None;
        }
        let start = places.start + random.below(places.end - places.start);
        let parity = wish.parity_of.map(|port| if (port ^ self.first) & 1 == 0 { EVEN } else { !EVEN });
        let find = |mask| self.find(start, places.clone(), mask, wish.lands);
        let place = parity.and_then(find).or_else(|| find(u64::MAX))?;
        self.taken[place as usize / 64] |= 1 << (place % 64);
        self.leased += 1;
        Some(self.first + place as u16)
    }

    /// A port that `is_good` accepts, shared with others that share, or free; random first, then any.
    pub(super) fn share(&mut self, is_good: impl Fn(u16) -> bool, random: &mut Random, now: Nanos) -> Option<u16> {
        self.wake(now);
        if self.places == 0 {
            return None;
        }
        if self.sharers.is_empty() {
            self.sharers = vec![0; self.places as usize];
        }
        let start = random.below(self.places);
        let place = (start..self.places).chain(0..start).find(|&place| {
            let is_ours = self.sharers[place as usize] > 0 || self.taken[place as usize / 64] & 1 << (place % 64) == 0;
            is_ours && is_good(self.first + place as u16)
        })?;
        self.taken[place as usize / 64] |= 1 << (place % 64);
        self.sharers[place as usize] += 1;
        self.leased += u32::from(self.sharers[place as usize] == 1);
        Some(self.first + place as u16)
    }

    /// Gives a leased port back, or a share of one; it rests for [`QUARANTINE`] when nobody has it any more.
    pub(super) fn give(&mut self, port: u16, now: Nanos) {
        let place = u32::from(port - self.first);
        debug_assert!(self.taken[place as usize / 64] & 1 << (place % 64) != 0, "port {port} was not leased");
        if let Some(sharers) = self.sharers.get_mut(place as usize).filter(|sharers| **sharers > 0) {
            *sharers -= 1;
            if *sharers > 0 {
                return;
            }
        }
        self.leased -= 1;
        self.resting.push_back((now + QUARANTINE, place));
    }

    /// A random free block of ports for one host.
    pub(super) fn take_block(&mut self, random: &mut Random, now: Nanos) -> Option<u16> {
        while let Some(&(_, block)) = self.blocks.resting.front().filter(|(until, _)| *until <= now) {
            self.blocks.resting.pop_front();
            self.blocks.free.push(block);
        }
        let at = match self.blocks.free.len() as u32 {
            0 => return None,
            count => random.below(count) as usize,
        };
        Some(self.blocks.free.swap_remove(at))
    }

    /// Gives a block back, none of whose ports is leased; it rests as its ports do.
    pub(super) fn give_block(&mut self, block: u16, now: Nanos) {
        self.blocks.resting.push_back((now + QUARANTINE, block));
    }

    /// The ports of a block.
    pub(super) fn block_range(&self, block: u16) -> RangeInclusive<u16> {
        let first = self.first + block * self.blocks.size;
        first..=first + (self.blocks.size - 1)
    }

    /// The block that a port is in.
    pub(super) fn block_of(&self, port: u16) -> u16 {
        (port - self.first) / self.blocks.size
    }

    /// First and last one; `None`: there are none.
    pub(super) fn range(&self) -> Option<(u16, u16)> {
        Some((self.first, self.first + u16::try_from(self.places.checked_sub(1)?).ok()?))
    }

    /// Ports that rest after their use, whether or not their time is over.
    pub(super) fn resting(&self) -> u32 {
        self.resting.len() as u32
    }

    /// Ports leased or shared now.
    pub(super) fn leased(&self) -> u32 {
        self.leased
    }

    /// Ports there are.
    pub(super) fn capacity(&self) -> u32 {
        self.places
    }

    /// True where no port could be given to a host that has none.
    pub(super) fn is_exhausted(&self, now: Nanos) -> bool {
        match self.blocks.size {
            0 => {
                let over = self.resting.iter().take_while(|(until, _)| *until <= now).count() as u32;
                self.leased + self.resting.len() as u32 - over >= self.places
            }
            _ => self.blocks.free.is_empty() && self.blocks.resting.front().is_none_or(|(until, _)| *until > now),
        }
    }

    /// True where none is leased, shared or resting.
    pub(super) fn is_unused(&self, now: Nanos) -> bool {
        self.leased == 0 && self.resting.back().is_none_or(|(until, _)| *until <= now)
    }

    fn wake(&mut self, now: Nanos) {
        while let Some(&(_, place)) = self.resting.front().filter(|(until, _)| *until <= now) {
            self.resting.pop_front();
            self.taken[place as usize / 64] &= !(1 << (place % 64));
        }
    }

    /// A free place from `start` on, and round, whose bit is in the mask of its word: the first one that lands, or the
    /// first one.
    fn find(
        &self,
        start: u32,
        places: std::ops::Range<u32>,
        mask: u64,
        lands: Option<&dyn Fn(u16) -> bool>,
    ) -> Option<u32> {
        let before = self.free_places(places.start, start, mask);
        let mut free = self.free_places(start, places.end, mask).chain(before).take(TRIES);
        let first = free.next()?;
        let Some(lands) = lands else { return Some(first) };
        let landing = std::iter::once(first).chain(free).find(|place| lands(self.first + *place as u16));
        Some(landing.unwrap_or(first))
    }

    fn free_places(&self, from: u32, to: u32, mask: u64) -> impl Iterator<Item = u32> {
        let mut at = from;
        std::iter::from_fn(move || {
            let place = self.free_from(at, to, mask)?;
            at = place + 1;
            Some(place)
        })
    }

    /// The first free place in `from..to` whose bit is in the mask of its word; a word of 64 at a time.
    fn free_from(&self, from: u32, to: u32, mask: u64) -> Option<u32> {
        let mut at = from;
        while at < to {
            let free = (!self.taken[at as usize / 64] & mask) >> (at % 64);
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

    const ANY: Wish<'_> = Wish { parity_of: None, lands: None };

    #[test]
    fn every_port_of_the_range_is_leased_once() {
        let mut random = Random::new(&[1; 32]);
        let mut ports = Ports::new(40_001..=40_200, 0);
        let mut all: Vec<u16> = std::iter::from_fn(|| ports.lease(ANY, &mut random, 0)).collect();
        all.sort_unstable();
        assert_eq!(all, (40_001..=40_200).collect::<Vec<u16>>());
        assert_eq!(ports.leased(), 200);
    }

    #[test]
    fn a_port_rests_before_it_serves_again() {
        let mut ports = Ports::new(65_535..=65_535, 0);
        let mut random = Random::new(&[1; 32]);
        assert_eq!(ports.lease(ANY, &mut random, 0), Some(65535));
        assert!(ports.is_exhausted(0));
        ports.give(65535, 7);
        assert_eq!(ports.lease(ANY, &mut random, 7 + QUARANTINE - 1), None);
        assert!(ports.is_exhausted(7 + QUARANTINE - 1) && !ports.is_exhausted(7 + QUARANTINE));
        assert_eq!(ports.lease(ANY, &mut random, 7 + QUARANTINE), Some(65535));
        assert_eq!(ports.leased(), 1);
    }

    #[test]
    fn the_order_of_ports_is_not_guessable_from_the_last_one() {
        let mut ports = Ports::new(1024..=65_535, 0);
        let mut random = Random::new(&[9; 32]);
        let leases: Vec<u16> = (0..100).map(|_| ports.lease(ANY, &mut random, 0).unwrap()).collect();
        let neighbours = leases.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 8).count();
        assert!(neighbours < 5, "{neighbours} of 99 ports follow the one before");
    }

    #[test]
    fn parity_is_kept_while_there_is_a_port_of_it() {
        for first in [1000, 1001] {
            let mut ports = Ports::new(first..=first + 99, 0);
            let mut random = Random::new(&[2; 32]);
            let odd = Wish { parity_of: Some(7), ..ANY };
            for _ in 0..50 {
                assert_eq!(ports.lease(odd, &mut random, 0).unwrap() % 2, 1);
            }
            assert_eq!(ports.lease(odd, &mut random, 0).unwrap() % 2, 0, "rather the other parity than none");
        }
    }

    #[test]
    fn a_port_that_lands_is_taken_before_one_that_does_not_and_parity_comes_first() {
        let mut ports = Ports::new(1000..=1099, 0);
        let mut random = Random::new(&[5; 32]);
        let wish = Wish { parity_of: Some(1), lands: Some(&|port| port % 5 == 0) };
        let mut lease =
            |count: usize| -> Vec<u16> { (0..count).map(|_| ports.lease(wish, &mut random, 0).unwrap()).collect() };
        assert!(lease(10).iter().all(|port| port % 10 == 5), "ten are odd and land");
        assert!(lease(40).iter().all(|port| port % 2 == 1 && port % 5 != 0), "forty are odd");
        assert!(lease(10).iter().all(|port| port % 10 == 0), "ten of the others land");
        assert!(lease(40).iter().all(|port| port % 2 == 0 && port % 5 != 0), "and these are better than none");
    }

    #[test]
    fn a_shared_port_is_free_when_its_last_sharer_has_gone() {
        let mut ports = Ports::new(5..=6, 0);
        let mut random = Random::new(&[3; 32]);
        assert_eq!(ports.lease(ANY, &mut random, 0).unwrap(), 5);
        assert_eq!([0; 2].map(|_| ports.share(|_| true, &mut random, 0)), [Some(6), Some(6)], "5 is leased");
        assert_eq!(ports.share(|port| port != 6, &mut random, 0), None);
        ports.give(6, 0);
        assert_eq!((ports.leased(), ports.lease(ANY, &mut random, QUARANTINE)), (2, None), "one still has it");
        ports.give(6, 0);
        assert_eq!(ports.lease(ANY, &mut random, QUARANTINE), Some(6));
    }

    #[test]
    fn a_block_serves_one_host_and_rests_before_the_next() {
        let mut ports = Ports::new(1000..=1199, 64);
        let mut random = Random::new(&[4; 32]);
        let mut blocks: Vec<u16> = std::iter::from_fn(|| ports.take_block(&mut random, 0)).collect();
        blocks.sort_unstable();
        assert_eq!(blocks, [0, 1, 2], "what is left over makes no block");
        assert!(ports.is_exhausted(0));
        let mut leased: Vec<u16> = std::iter::from_fn(|| ports.lease_in_block(1, ANY, &mut random, 0)).collect();
        leased.sort_unstable();
        assert_eq!(leased, ports.block_range(1).collect::<Vec<u16>>());
        assert!(leased.iter().all(|port| ports.block_of(*port) == 1));
        leased.iter().for_each(|port| ports.give(*port, 5));
        ports.give_block(1, 5);
        assert_eq!(ports.take_block(&mut random, 5 + QUARANTINE - 1), None);
        assert_eq!(ports.take_block(&mut random, 5 + QUARANTINE), Some(1));
        assert!(ports.lease_in_block(1, ANY, &mut random, 5 + QUARANTINE).is_some());
    }
}
