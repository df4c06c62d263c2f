//! The tags of many relay headers at once: SipHash-2-4 of 16 bytes, each under a key of its own.
//!
//! One hash is a chain of 140 operations that each wait for the one before, so a CPU that works on one at a time is
//! mostly idle. Eight at a time, in two vectors of four, cost a third of that (`perf/RESULTS.md`). Where the CPU has
//! no AVX2 they are made one by one.

use siphasher::sip::SipHasher24;

use crate::{
    limits::PACKET_SLOTS,
    wire::relay::{self, HopKey, Tagged},
};

/// Headers and keys, and the tags made of them. Columns, so that vectors load from them directly.
#[derive(Debug)]
pub struct Tags {
    count: usize,
    words: [[u64; PACKET_SLOTS]; 2],
    keys: [[u64; PACKET_SLOTS]; 2],
    tags: [u64; PACKET_SLOTS],
}

impl Tags {
    /// No headers.
    pub fn new() -> Self {
        Self { count: 0, words: [[0; PACKET_SLOTS]; 2], keys: [[0; PACKET_SLOTS]; 2], tags: [0; PACKET_SLOTS] }
    }

    /// True where there are no headers.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a header in; returns its place. Panics where there are as many as packet slots.
    #[inline]
    pub fn push(&mut self, header: Tagged, key: &HopKey) -> usize {
        let place = self.count;
        let [first, second] = header.words();
        let key = u128::from_le_bytes(*key);
        self.words[0][place] = first;
        self.words[1][place] = second;
        self.keys[0][place] = key as u64;
        self.keys[1][place] = (key >> 64) as u64;
        self.count += 1;
        place
    }

    /// Makes the tags of all headers, in the order in which they came, and forgets the headers.
    #[inline]
    pub fn make(&mut self) -> &[u64] {
        let count = std::mem::take(&mut self.count);
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, and `count` is at most PACKET_SLOTS, for `push` has indexed with it.
            unsafe { avx2::make(&self.words, &self.keys, &mut self.tags, count) };
            return &self.tags[..count];
        }
        self.make_one_by_one(count);
        &self.tags[..count]
    }

    /// The tag that was made last of the header at `place`.
    #[inline]
    pub fn made(&self, place: usize) -> u64 {
        self.tags[place]
    }

    fn make_one_by_one(&mut self, count: usize) {
        for place in 0..count {
            let key = u128::from(self.keys[0][place]) | u128::from(self.keys[1][place]) << 64;
            let bytes = u128::from(self.words[0][place]) | u128::from(self.words[1][place]) << 64;
            self.tags[place] = SipHasher24::new_with_key(&key.to_le_bytes()).hash(&bytes.to_le_bytes());
        }
    }
}

impl Default for Tags {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(relay::TAGGED_BYTES == 16, "a header is two words");

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::PACKET_SLOTS;

    /// Hashes in one vector, and vectors worked on at a time: more would not fit the registers.
    const LANES: usize = 4;
    const VECTORS: usize = 2;
    const STEP: usize = LANES * VECTORS;
    const _: () = assert!(PACKET_SLOTS.is_multiple_of(STEP), "the last step stays inside the columns");

    /// "somepseudorandomlygeneratedbytes"
    const INITIAL: [u64; 4] =
        [0x736f_6d65_7073_6575, 0x646f_7261_6e64_6f6d, 0x6c79_6765_6e65_7261, 0x7465_6462_7974_6573];

    /// The last word of a message of 16 bytes: its length in the upper byte.
    const LENGTH: u64 = 16 << 56;

    type Column = [u64; PACKET_SLOTS];
    type State = [[__m256i; VECTORS]; 4];

    /// Makes the first `count` tags, and up to seven more of whatever stands behind the headers.
    ///
    /// # Safety
    /// `count` must not be above [`PACKET_SLOTS`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn make(words: &[Column; 2], keys: &[Column; 2], tags: &mut Column, count: usize) {
        debug_assert!(count <= PACKET_SLOTS);
        for at in (0..count).step_by(STEP) {
            // SAFETY: `at` is a multiple of STEP below `count`, so STEP places from there are inside a column.
            unsafe {
                let keys = [load(&keys[0], at), load(&keys[1], at)];
                let words = [load(&words[0], at), load(&words[1], at), [all(LENGTH); VECTORS]];
                store(tags, at, siphash(keys, words));
            }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn siphash(keys: [[__m256i; VECTORS]; 2], words: [[__m256i; VECTORS]; 3]) -> [__m256i; VECTORS] {
        let mut v: State = [keys[0], keys[1], keys[0], keys[1]];
        for (v, initial) in v.iter_mut().zip(INITIAL) {
            xor(v, [all(initial); VECTORS]);
        }
        for word in words {
            xor(&mut v[3], word);
            round(&mut v);
            round(&mut v);
            xor(&mut v[0], word);
        }
        xor(&mut v[2], [all(0xff); VECTORS]);
        for _ in 0..4 {
            round(&mut v);
        }
        let [mut tag, v1, v2, v3] = v;
        xor(&mut tag, v1);
        xor(&mut tag, v2);
        xor(&mut tag, v3);
        tag
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn round(v: &mut State) {
        let [v0, v1, v2, v3] = v;
        add(v0, *v1);
        rotate::<13, 51>(v1);
        xor(v1, *v0);
        rotate_32(v0);
        add(v2, *v3);
        rotate_16(v3);
        xor(v3, *v2);
        add(v0, *v3);
        rotate::<21, 43>(v3);
        xor(v3, *v0);
        add(v2, *v1);
        rotate::<17, 47>(v1);
        xor(v1, *v2);
        rotate_32(v2);
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(to: &mut [__m256i; VECTORS], from: [__m256i; VECTORS]) {
        for i in 0..VECTORS {
            to[i] = _mm256_add_epi64(to[i], from[i]);
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn xor(to: &mut [__m256i; VECTORS], from: [__m256i; VECTORS]) {
        for i in 0..VECTORS {
            to[i] = _mm256_xor_si256(to[i], from[i]);
        }
    }

    /// AVX2 has no rotation of 64-bit words; by 16 and 32 bits a shuffle does it.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate<const LEFT: i32, const RIGHT: i32>(v: &mut [__m256i; VECTORS]) {
        const { assert!(LEFT + RIGHT == 64) };
        for v in v {
            *v = _mm256_or_si256(_mm256_slli_epi64::<LEFT>(*v), _mm256_srli_epi64::<RIGHT>(*v));
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate_16(v: &mut [__m256i; VECTORS]) {
        let bytes = _mm_setr_epi8(6, 7, 0, 1, 2, 3, 4, 5, 14, 15, 8, 9, 10, 11, 12, 13);
        for v in v {
            *v = _mm256_shuffle_epi8(*v, _mm256_set_m128i(bytes, bytes));
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate_32(v: &mut [__m256i; VECTORS]) {
        for v in v {
            *v = _mm256_shuffle_epi32::<0b10_11_00_01>(*v);
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn all(word: u64) -> __m256i {
        _mm256_set1_epi64x(word as i64)
    }

    /// # Safety
    /// `at + STEP` must not be above [`PACKET_SLOTS`].
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(column: &Column, at: usize) -> [__m256i; VECTORS] {
        let mut vectors = [all(0); VECTORS];
        for (i, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *vector = unsafe { _mm256_loadu_si256(column.as_ptr().add(at + i * LANES).cast()) };
        }
        vectors
    }

    /// # Safety
    /// `at + STEP` must not be above [`PACKET_SLOTS`].
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn store(column: &mut Column, at: usize, vectors: [__m256i; VECTORS]) {
        for (i, vector) in vectors.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_si256(column.as_mut_ptr().add(at + i * LANES).cast(), vector) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::relay::{Header, Kind};

    fn header(n: u64) -> Tagged {
        let kind = if n.is_multiple_of(2) { Kind::DataUp } else { Kind::DataDown };
        Header { kind, path: n as u8, generation: n as u16 * 7, ct_index: n as u32 * 99, sequence: n << 40 | n }
            .tagged()
    }

    fn key(n: u64) -> HopKey {
        std::array::from_fn(|i| (n as u8).wrapping_mul(31).wrapping_add(i as u8))
    }

    #[test]
    fn every_batch_makes_the_tags_that_single_headers_have() {
        let mut tags = Tags::new();
        for count in [0, 1, 7, 8, 9, 100, PACKET_SLOTS as u64] {
            assert!(tags.is_empty());
            let expected: Vec<_> = (0..count).map(|n| relay::tag(header(n), &key(n))).collect();
            (0..count).for_each(|n| assert_eq!(tags.push(header(n), &key(n)), n as usize));
            assert_eq!(tags.make(), expected);
            (0..count).for_each(|n| assert_eq!(tags.push(header(n), &key(n)), n as usize));
            tags.make_one_by_one(count as usize);
            assert_eq!(tags.tags[..count as usize], expected, "without AVX2");
            tags.count = 0;
        }
    }

    #[test]
    fn a_tag_is_the_published_siphash() {
        // Appendix A of the SipHash paper has 15 bytes; this is vector 16 of its reference implementation.
        let bytes: [u8; 16] = std::array::from_fn(|i| i as u8);
        let mut tags = Tags::new();
        tags.push(Tagged::of(&bytes), &bytes);
        assert_eq!(tags.make()[0].to_le_bytes(), [0xdb, 0x9b, 0xc2, 0x57, 0x7f, 0xcc, 0x2a, 0x3f]);
    }
}
