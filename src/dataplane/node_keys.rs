//! Keys of the hops between nodes, as a worker has them: AES-128, each with its schedule.
//!
//! Two nodes share one key for all sessions that one asks the other for, so that a busy node has a few dozen keys where it
//! has a million sessions: their schedules stay in the cache, and a tag is eleven instructions of the CPU. Nothing waits for
//! it, neither the packet nor the next one's.

use super::conntrack::NodeKey;
use crate::{
    limits::NODE_KEYS_MAX,
    wire::relay::{self, HopKey, Tagged},
};

const _: () = assert!(NODE_KEYS_MAX.is_power_of_two() && NODE_KEYS_MAX <= 1 << u16::BITS);

/// All keys, by number.
pub struct NodeKeys(Kept);

enum Kept {
    #[cfg(target_arch = "x86_64")]
    Schedules(Box<[native::Schedule]>),
    /// For a CPU without instructions for it.
    Ciphers(Box<[aes::Aes128]>),
}

impl NodeKeys {
    /// `none` is the key of all numbers that have none yet: one that nobody knows.
    pub fn new(none: &HopKey) -> Self {
        #[cfg(target_arch = "x86_64")]
        if native::is_there() {
            return Self(Kept::Schedules(vec![native::schedule(none); NODE_KEYS_MAX].into()));
        }
        Self::portable(none)
    }

    fn portable(none: &HopKey) -> Self {
        Self(Kept::Ciphers(vec![cipher(none); NODE_KEYS_MAX].into()))
    }

    /// Sets the key of a number.
    pub fn set(&mut self, number: NodeKey, key: &HopKey) {
        let place = place(number);
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            Kept::Schedules(schedules) => schedules[place] = native::schedule(key),
            Kept::Ciphers(ciphers) => ciphers[place] = cipher(key),
        }
    }

    /// The tag of a header.
    #[inline]
    pub fn tag(&self, number: NodeKey, header: Tagged) -> u64 {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Kept::Schedules(schedules) => native::tag(header, &schedules[place(number)]),
            Kept::Ciphers(ciphers) => relay::node_tag_under(header, &ciphers[place(number)]),
        }
    }
}

#[inline]
fn place(number: NodeKey) -> usize {
    usize::from(number.0) % NODE_KEYS_MAX
}

fn cipher(key: &HopKey) -> aes::Aes128 {
    aes::cipher::KeyInit::new(key.into())
}

#[cfg(target_arch = "x86_64")]
mod native {
    use std::arch::{asm, x86_64::*};

    use super::{HopKey, Tagged};

    /// Round keys. No key without the instructions: only [`schedule`] makes one.
    #[derive(Clone)]
    #[repr(C, align(64))]
    pub(super) struct Schedule([u128; 11]);

    pub(super) fn is_there() -> bool {
        std::arch::is_x86_feature_detected!("aes")
    }

    /// Panics where the CPU has no instructions for it.
    pub(super) fn schedule(key: &HopKey) -> Schedule {
        assert!(is_there());
        // SAFETY: the CPU has the instructions.
        unsafe { expand(key) }
    }

    /// FIPS 197, section 5.2.
    #[target_feature(enable = "aes,sse2")]
    fn expand(key: &HopKey) -> Schedule {
        let mut schedule = Schedule([0; 11]);
        // SAFETY: 16 bytes are read.
        let mut key = unsafe { _mm_loadu_si128(key.as_ptr().cast()) };
        let mut put = |round: usize, key: __m128i| {
            // SAFETY: 16 bytes are written, to a place of 16.
            unsafe { _mm_store_si128((&raw mut schedule.0[round]).cast(), key) }
        };
        put(0, key);
        macro_rules! round {
            ($round:literal, $constant:literal) => {
                let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(key));
                key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
                key = _mm_xor_si128(key, _mm_slli_si128::<8>(key));
                key = _mm_xor_si128(key, word);
                put($round, key);
            };
        }
        round!(1, 0x01);
        round!(2, 0x02);
        round!(3, 0x04);
        round!(4, 0x08);
        round!(5, 0x10);
        round!(6, 0x20);
        round!(7, 0x40);
        round!(8, 0x80);
        round!(9, 0x1b);
        round!(10, 0x36);
        schedule
    }

    /// Written out, since a function for this feature of the CPU could not be inlined into one that does without, and the
    /// call would be as long as itself.
    #[inline]
    pub(super) fn tag(header: Tagged, schedule: &Schedule) -> u64 {
        let [first, second] = header.words();
        // SAFETY: a schedule shows that the CPU has the instructions; its 176 bytes, aligned to 16, are only read.
        unsafe {
            let mut block = _mm_set_epi64x(second.cast_signed(), first.cast_signed());
            asm!(
                "pxor {block}, [{key}]",
                "aesenc {block}, [{key} + 16]",
                "aesenc {block}, [{key} + 32]",
                "aesenc {block}, [{key} + 48]",
                "aesenc {block}, [{key} + 64]",
                "aesenc {block}, [{key} + 80]",
                "aesenc {block}, [{key} + 96]",
                "aesenc {block}, [{key} + 112]",
                "aesenc {block}, [{key} + 128]",
                "aesenc {block}, [{key} + 144]",
                "aesenclast {block}, [{key} + 160]",
                block = inout(xmm_reg) block,
                key = in(reg) &raw const *schedule,
                options(pure, readonly, nostack, preserves_flags),
            );
            _mm_cvtsi128_si64(block).cast_unsigned().swap_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> [NodeKeys; 2] {
        [NodeKeys::new(&[0; 16]), NodeKeys::portable(&[0; 16])]
    }

    #[test]
    fn a_tag_is_the_start_of_the_published_ciphertext() {
        // FIPS 197, appendices B and C.1.
        let hex = |text: u128| text.to_be_bytes();
        for (key, plain, tag) in [
            (0x2b7e151628aed2a6abf7158809cf4f3c, 0x3243f6a8885a308d313198a2e0370734, 0x3925841d02dc09fb),
            (0x000102030405060708090a0b0c0d0e0f, 0x00112233445566778899aabbccddeeff, 0x69c4e0d86a7b0430),
        ] {
            for mut keys in both() {
                keys.set(NodeKey(7), &hex(key));
                assert_eq!(keys.tag(NodeKey(7), Tagged::of(&hex(plain))), tag);
            }
            assert_eq!(relay::node_tag(Tagged::of(&hex(plain)), &hex(key)), tag);
        }
    }

    #[test]
    fn each_number_has_its_key() {
        for mut keys in both() {
            let key = |n: u16| u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_le_bytes();
            let all = [0, 1, 2, 500, NODE_KEYS_MAX as u16 - 1];
            all.iter().for_each(|n| keys.set(NodeKey(*n), &key(*n)));
            keys.set(NodeKey(2), &key(77));
            let header = Tagged::of(&[9; 16]);
            for n in all {
                let expected = relay::node_tag(header, &key(if n == 2 { 77 } else { n }));
                assert_eq!(keys.tag(NodeKey(n), header), expected, "number {n}");
            }
        }
    }
}
