//! What makes a tag of 16 bytes cheapest: SipHash-2-4 as the data plane has it, or AES-128 by the CPU's instructions? A block
//! cipher of one block is a MAC of it, too. For benchmarks only.
//!
//! Keys are as they lie in a node's memory: SipHash's in the line of the slot, which is read anyway; AES's beside it, or, as a
//! schedule made beforehand, in three lines more.

use starnet::{
    dataplane::{prefetch::prefetch, tags::Tags},
    wire::relay::{Header, HopKey, Kind, Tagged, tag},
};

/// Headers a batch.
const BATCH: usize = 256;

/// Hops of a busy node: more than any cache holds.
const MANY: usize = 1 << 20;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Slot {
    key: HopKey,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Schedule([u128; 11]);

/// Prints one line of JSON: clocks a tag.
pub(crate) fn run(rounds: usize) {
    let few = figures(BATCH, rounds);
    let many = figures(MANY, rounds);
    println!("{}", serde_json::json!({"few": few, "many": many}));
}

fn figures(hops: usize, rounds: usize) -> serde_json::Value {
    let slots: Vec<Slot> =
        (0..hops).map(|n| Slot { key: ((n as u128 + 1) * 0x9e37_79b9_7f4a_7c15).to_le_bytes() }).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut choose = || -> Vec<usize> {
        let next = |_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize % hops
        };
        (0..BATCH).map(next).collect()
    };
    let batches: Vec<Vec<usize>> = (0..rounds).map(|_| choose()).collect();
    let headers: Vec<Tagged> = (0..BATCH).map(header).collect();
    let one_by_one = timed(&batches, |batch| {
        batch.iter().for_each(|hop| prefetch(&slots[*hop]));
        batch.iter().zip(&headers).fold(0, |sum, (hop, header)| sum ^ tag(*header, &slots[*hop].key))
    });
    let mut tags = Tags::new();
    let together = timed(&batches, |batch| {
        batch.iter().for_each(|hop| prefetch(&slots[*hop]));
        batch.iter().zip(&headers).for_each(|(hop, header)| {
            tags.push(*header, &slots[*hop].key);
        });
        tags.make().iter().fold(0, |sum, tag| sum ^ tag)
    });
    let mut figures = serde_json::json!({"SipHash, one by one": one_by_one, "SipHash, eight at a time": together});
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("aes") {
        let schedules: Vec<Schedule> = slots.iter().map(|slot| aes::schedule(&slot.key)).collect();
        let expanded = timed(&batches, |batch| {
            batch.iter().for_each(|hop| prefetch(&slots[*hop]));
            batch
                .iter()
                .zip(&headers)
                .fold(0, |sum, (hop, header)| sum ^ aes::tag(*header, &aes::schedule(&slots[*hop].key)))
        });
        let kept = timed(&batches, |batch| {
            for hop in batch {
                (0..11).step_by(4).for_each(|at| prefetch(&schedules[*hop].0[at]));
            }
            batch.iter().zip(&headers).fold(0, |sum, (hop, header)| sum ^ aes::tag(*header, &schedules[*hop]))
        });
        figures["AES, schedule made each time"] = expanded.into();
        figures["AES, schedule in memory"] = kept.into();
    }
    figures
}

fn header(n: usize) -> Tagged {
    let (sequence, ct_index) = (n as u64 * 3, n as u32);
    Header { kind: Kind::DataUp, path: 1, generation: 7, ct_index, sequence }.tagged()
}

/// Clocks a tag, the median over batches.
fn timed(batches: &[Vec<usize>], mut make: impl FnMut(&[usize]) -> u64) -> f64 {
    let clock = quanta::Clock::new();
    let mut spent: Vec<u64> = batches
        .iter()
        .map(|batch| {
            let start = clock.raw();
            std::hint::black_box(make(batch));
            clock.raw() - start
        })
        .collect();
    spent.sort_unstable();
    spent[spent.len() / 2] as f64 / BATCH as f64
}

#[cfg(target_arch = "x86_64")]
mod aes {
    use std::arch::x86_64::*;

    use super::{HopKey, Schedule, Tagged};

    pub(super) fn schedule(key: &HopKey) -> Schedule {
        // SAFETY: the caller has seen that the CPU has the instructions.
        unsafe { expand(key) }
    }

    pub(super) fn tag(header: Tagged, schedule: &Schedule) -> u64 {
        // SAFETY: as above.
        unsafe { encrypt(header, schedule) }
    }

    #[target_feature(enable = "aes,sse2")]
    fn expand(key: &HopKey) -> Schedule {
        let mut schedule = [0u128; 11];
        // SAFETY: 16 bytes are read.
        let mut key = unsafe { _mm_loadu_si128(key.as_ptr().cast()) };
        let mut put = |at: usize, key: __m128i| {
            // SAFETY: 16 bytes are written, to a place of 16.
            unsafe { _mm_storeu_si128((&raw mut schedule[at]).cast(), key) }
        };
        put(0, key);
        macro_rules! round {
            ($at:literal, $constant:literal) => {
                let assist = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(key));
                key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
                key = _mm_xor_si128(key, _mm_slli_si128::<8>(key));
                key = _mm_xor_si128(key, assist);
                put($at, key);
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
        Schedule(schedule)
    }

    #[target_feature(enable = "aes,sse2")]
    fn encrypt(header: Tagged, schedule: &Schedule) -> u64 {
        let [first, second] = header.words();
        let round = |at: usize| {
            // SAFETY: 16 bytes are read, from a place of 16.
            unsafe { _mm_loadu_si128((&raw const schedule.0[at]).cast()) }
        };
        let mut block = _mm_xor_si128(_mm_set_epi64x(second as i64, first as i64), round(0));
        for at in 1..10 {
            block = _mm_aesenc_si128(block, round(at));
        }
        _mm_cvtsi128_si64(_mm_aesenclast_si128(block, round(10))) as u64
    }
}
