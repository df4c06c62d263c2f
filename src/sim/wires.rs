//! What happens to a frame between two hosts, from a seed.

use std::collections::HashMap;

use crate::{MILLISECOND, Nanos};

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which may be zero: then zero.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    /// True `per_mille` times of a thousand.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// One direction between two hosts. Jitter above the distance of two frames reorders them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    pub(super) delay: Nanos,
    /// Up to this much more, uniformly.
    pub(super) jitter: Nanos,
    /// Per mille.
    pub(super) loss: u64,
    /// Per mille.
    pub(super) duplication: u64,
}

impl Wire {
    /// Five milliseconds, in order, nothing lost.
    pub(super) const GOOD: Self = Self { delay: 5 * MILLISECOND, jitter: 0, loss: 0, duplication: 0 };
}

/// All wires. Each has randomness of its own, so that traffic on one does not change what happens on another.
#[derive(Debug)]
pub(super) struct Wires {
    seed: u64,
    wires: HashMap<(usize, usize), (Wire, Random)>,
}

impl Wires {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, wires: HashMap::new() }
    }

    fn wire(&mut self, from: usize, to: usize) -> &mut (Wire, Random) {
        let seed = Random::new(self.seed ^ (from as u64) << 32 ^ (to as u64) << 48).next();
        self.wires.entry((from, to)).or_insert_with(|| (Wire::GOOD, Random::new(seed)))
    }

    pub(super) fn set(&mut self, from: usize, to: usize, wire: Wire) {
        self.wire(from, to).0 = wire;
    }

    /// The delays after which copies of the next frame arrive: none is a loss.
    pub(super) fn fate(&mut self, from: usize, to: usize) -> Vec<Nanos> {
        let (wire, random) = self.wire(from, to);
        if random.chance(wire.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(random.chance(wire.duplication));
        (0..copies).map(|_| wire.delay + random.below(wire.jitter)).collect()
    }
}
