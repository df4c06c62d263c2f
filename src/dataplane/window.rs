//! The duplicate window of a merge point, and the replay window of an entry (RFC 6479): which sequence numbers have been
//! seen.
//!
//! A ring of words instead of a shifting bitmap: advancing clears words, it never moves bits. Sequence numbers
//! start at 1 and never wrap (64 bits). Checking is separate from marking, since only an authentic packet may
//! be marked and checking is the cheaper test.

use super::{prefetch::prefetch, reason::Reason};
use crate::limits::WINDOW_BITS;

/// Words of a merge point's window.
const WORDS: usize = WINDOW_BITS / 64;

/// Why a sequence number is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// It was marked before.
    Duplicate,
    /// It is so far behind the highest that nobody remembers, or zero.
    TooOld,
}

impl From<Reject> for Reason {
    fn from(reject: Reject) -> Self {
        match reject {
            Reject::Duplicate => Self::Duplicate,
            Reject::TooOld => Self::TooOld,
        }
    }
}

/// The window, of `N` words: a merge point's where nothing else is said.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Window<const N: usize = WORDS> {
    highest: u64,
    words: [u64; N],
}

impl<const N: usize> Default for Window<N> {
    fn default() -> Self {
        Self { highest: 0, words: [0; N] }
    }
}

impl<const N: usize> Window<N> {
    /// One word of the ring is always being entered, so this many numbers behind the highest are told apart.
    pub const DEPTH: u64 = (N as u64 - 1) * 64;

    /// The highest number marked; zero: none yet.
    #[inline]
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Asks for the word of `sequence`.
    #[inline]
    pub fn prefetch(&self, sequence: u64) {
        prefetch(&self.words[Self::word(sequence)]);
    }

    /// May `sequence` still be marked?
    #[inline]
    pub fn check(&self, sequence: u64) -> Result<(), Reject> {
        if sequence > self.highest {
            return Ok(());
        }
        if sequence == 0 || self.highest - sequence >= Self::DEPTH {
            return Err(Reject::TooOld);
        }
        if self.words[Self::word(sequence)] & bit(sequence) != 0 { Err(Reject::Duplicate) } else { Ok(()) }
    }

    /// Marks a number that [`Window::check`] let pass.
    #[inline]
    pub fn mark(&mut self, sequence: u64) {
        if sequence > self.highest {
            let steps = (sequence / 64 - self.highest / 64).min(N as u64);
            for step in 0..steps {
                self.words[((sequence / 64 - step) % N as u64) as usize] = 0;
            }
            self.highest = sequence;
        }
        self.words[Self::word(sequence)] |= bit(sequence);
    }

    #[inline]
    fn word(sequence: u64) -> usize {
        (sequence / 64 % N as u64) as usize
    }
}

#[inline]
fn bit(sequence: u64) -> u64 {
    1 << (sequence % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const DEPTH: u64 = <Window>::DEPTH;

    #[test]
    fn a_number_passes_once_in_any_order() {
        let mut window = <Window>::default();
        for sequence in [5, 1, 3, 1900, 4, 100] {
            assert_eq!(window.check(sequence), Ok(()), "{sequence}");
            window.mark(sequence);
            assert_eq!(window.check(sequence), Err(Reject::Duplicate), "{sequence}");
        }
        window.mark(2 + DEPTH);
        assert_eq!(window.check(2), Err(Reject::TooOld));
        assert_eq!(window.check(0), Err(Reject::TooOld));
    }

    proptest::proptest! {
        /// Against the obvious model: a set of all numbers ever marked.
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((0..DEPTH * 3 / 2, 0u64..2), 1..400)) {
            let mut window = <Window>::default();
            let mut seen = HashSet::new();
            for (distance, forward) in steps {
                let sequence = if forward == 1 { window.highest + distance / 8 } else { window.highest.saturating_sub(distance) };
                let expected = if sequence == 0 || (sequence <= window.highest && window.highest - sequence >= DEPTH) {
                    Err(Reject::TooOld)
                } else if seen.contains(&sequence) {
                    Err(Reject::Duplicate)
                } else {
                    Ok(())
                };
                proptest::prop_assert_eq!(window.check(sequence), expected);
                if expected.is_ok() {
                    window.mark(sequence);
                    seen.insert(sequence);
                }
            }
        }
    }
}
