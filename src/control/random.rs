//! Where keys, generations and ports come from: a keyed counter.
//!
//! SipHash-2-4 with 128 bits of output, keyed with 128 secret bits of the system's random source, over a counter
//! and 128 more secret bits: a pseudo-random function, so that whoever sees any number of outputs (a client sees
//! the keys of its own hop) learns nothing of the others. A hop key of 128 bits cannot ask for more than that. A
//! process that starts anew has a new seed, so a counter never meets the same key twice. And a test that gives the
//! seed replays the same run.

use siphasher::sip128::SipHasher24;

use crate::wire::relay::HopKey;

/// The generator.
#[derive(Clone)]
pub(super) struct Random {
    function: SipHasher24,
    /// Eight bytes of counter, then the second half of the seed.
    block: [u8; 24],
    counter: u64,
}

impl std::fmt::Debug for Random {
    /// Nothing secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Random").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl Random {
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        let (mut key, mut block) = ([0; 16], [0; 24]);
        key.copy_from_slice(&seed[..16]);
        block[8..].copy_from_slice(&seed[16..]);
        Self { function: SipHasher24::new_with_key(&key), block, counter: 0 }
    }

    /// A key that nobody can guess.
    pub(super) fn key(&mut self) -> HopKey {
        self.counter += 1;
        self.block[..8].copy_from_slice(&self.counter.to_le_bytes());
        self.function.hash(&self.block).as_bytes()
    }

    /// Any number.
    pub(super) fn number(&mut self) -> u64 {
        let key = self.key();
        u64::from_le_bytes(key[..8].try_into().expect("eight of sixteen bytes"))
    }

    /// A number below `bound`, which must not be zero. The bias is below 2^-32 for bounds below 2^32.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_and_another_seed_differs() {
        let keys = |seed: [u8; 32]| {
            let mut random = Random::new(&seed);
            (0..100).map(|_| random.key()).collect::<Vec<_>>()
        };
        assert_eq!(keys([1; 32]), keys([1; 32]));
        let mut seed = [1; 32];
        seed[31] = 2;
        assert!(keys([1; 32]).iter().zip(keys(seed)).all(|(a, b)| *a != b), "the second half of the seed counts");
        let mut all = keys([1; 32]);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 100);
    }

    #[test]
    fn numbers_below_a_bound_reach_both_ends_and_no_further() {
        let mut random = Random::new(&[3; 32]);
        let numbers: Vec<u32> = (0..1000).map(|_| random.below(7)).collect();
        assert_eq!((numbers.iter().min(), numbers.iter().max()), (Some(&0), Some(&6)));
    }
}
