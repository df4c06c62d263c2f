//! Who gets which place of a worker's arrays: slots, fans and bindings.
//!
//! A place comes back here only after the worker has said that it is out of use. The one freed longest ago is taken
//! first, and only while [`RESTING`] others rest, too: the longer a place rests, the less a packet of its last use can
//! still be on the way. Yet an array that is mostly empty is used from its front only, and stays in the cache.

use std::collections::VecDeque;

/// Places that rest before one of them is used again, while there are unused ones.
const RESTING: usize = 256;

/// The free places of one array.
#[derive(Debug)]
pub(super) struct Pool {
    capacity: u32,
    /// Places from here on were never used.
    fresh: u32,
    free: VecDeque<u32>,
}

impl Pool {
    /// A pool of `capacity` free places.
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, fresh: 0, free: VecDeque::new() }
    }

    /// Takes a place.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.free.len() > RESTING || self.fresh == self.capacity {
            return self.free.pop_front();
        }
        self.fresh += 1;
        Some(self.fresh - 1)
    }

    /// Gives a place back.
    pub(super) fn give(&mut self, place: u32) {
        debug_assert!(place < self.fresh && self.used() > 0, "place {place} was not taken");
        self.free.push_back(place);
    }

    /// Places taken now.
    pub(super) fn used(&self) -> u32 {
        self.fresh - self.free.len() as u32
    }

    /// Places there are.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// True where none is left.
    pub(super) fn is_exhausted(&self) -> bool {
        self.used() == self.capacity
    }
}

/// The generations of a worker's slots: the next use of a slot has another one, so that packets of the last use
/// are refused. They start at random, so that packets of the process before this one are refused, too.
#[derive(Debug)]
pub(super) struct Generations {
    first: u16,
    uses: Vec<u16>,
}

impl Generations {
    /// All slots start at `first`.
    pub(super) fn new(first: u16) -> Self {
        Self { first, uses: Vec::new() }
    }

    /// The generation of a new use of `slot`. Never zero, which is what a record that was never written has.
    pub(super) fn renew(&mut self, slot: u32) -> u16 {
        let slot = slot as usize;
        if slot >= self.uses.len() {
            self.uses.resize(slot + 1, self.first);
        }
        let generation = self.uses[slot].checked_add(1).unwrap_or(1);
        self.uses[slot] = generation;
        generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_given_out_once_and_the_longest_rested_comes_back_first() {
        let mut pool = Pool::new(3);
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(0), Some(1), Some(2), None]);
        assert!(pool.is_exhausted());
        pool.give(2);
        pool.give(0);
        assert_eq!(pool.used(), 1);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(2), Some(0), None]);
    }

    #[test]
    fn a_large_array_is_used_from_its_front() {
        let mut pool = Pool::new(1 << 24);
        for _ in 0..10_000 {
            let place = pool.take().unwrap();
            assert!(place as usize <= RESTING, "{place}");
            pool.give(place);
        }
    }

    #[test]
    fn a_reused_slot_has_another_generation_and_none_is_zero() {
        let mut generations = Generations::new(u16::MAX - 1);
        let seen: Vec<u16> = (0..3).map(|_| generations.renew(5)).collect();
        assert_eq!(seen, [u16::MAX, 1, 2]);
        assert_eq!(generations.renew(4), u16::MAX);
    }
}
