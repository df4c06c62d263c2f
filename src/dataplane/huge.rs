//! Arrays of fixed length on huge pages: the tables of a worker.
//!
//! A table of 64-byte records is read at random, so with 4 KiB pages nearly each record costs a TLB miss besides its cache
//! miss. Where there are not enough huge pages an array lies in ordinary ones, and asks the kernel to join them
//! (transparent huge pages). Either way every page is there from the start: no packet waits for one.

use std::{
    fmt,
    mem::{align_of, needs_drop, size_of},
    num::NonZeroUsize,
    ops::{AddAssign, Deref, DerefMut},
    ptr::NonNull,
    slice,
};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a huge page; the length of a mapping of them must be a multiple.
pub const HUGE_PAGE: usize = 2 << 20;

/// An array smaller than this is not worth a huge page of its own.
const WORTH_A_HUGE_PAGE: usize = HUGE_PAGE / 4;

/// No mapping is aligned to less.
const SMALL_PAGE: usize = 4096;

/// The pages that memory lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// 2 MiB.
    Huge,
    /// 4 KiB: works, with more TLB misses.
    Small,
}

/// An array. What it holds is never dropped.
pub struct HugeArray<T> {
    start: NonNull<T>,
    length: usize,
    /// Bytes of the mapping; zero: there is none, since the array is empty.
    mapped: usize,
    pages: Pages,
}

// SAFETY: the array owns its mapping as a box would.
unsafe impl<T: Send> Send for HugeArray<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for HugeArray<T> {}

impl<T: Clone> HugeArray<T> {
    /// `length` times `value`.
    pub fn new(length: usize, value: &T) -> Self {
        Self::from_fn(length, |_| value.clone())
    }
}

impl<T> HugeArray<T> {
    /// `length` values, made in order.
    ///
    /// # Panics
    /// Where there is no memory for them, as any allocation does.
    pub fn from_fn(length: usize, mut make: impl FnMut(usize) -> T) -> Self {
        const { assert!(!needs_drop::<T>() && size_of::<T>() > 0 && align_of::<T>() <= SMALL_PAGE) };
        let bytes = length.checked_mul(size_of::<T>()).expect("a table fits the address space");
        let Some(small) = NonZeroUsize::new(bytes) else {
            return Self { start: NonNull::dangling(), length, mapped: 0, pages: Pages::Small };
        };
        let (start, mapped, pages) = map_huge(small).unwrap_or_else(|| map_small(small));
        let start = start.cast::<T>();
        for at in 0..length {
            // SAFETY: `at` is within the mapping, which is fresh, ours alone, writable and aligned to a page.
            unsafe { start.add(at).write(make(at)) };
        }
        Self { start, length, mapped, pages }
    }

    /// How much memory it takes, and of which kind.
    pub fn memory(&self) -> Memory {
        Memory { bytes: self.mapped, huge: if self.pages == Pages::Huge { self.mapped } else { 0 } }
    }
}

fn map_huge(bytes: NonZeroUsize) -> Option<(NonNull<u8>, usize, Pages)> {
    if bytes.get() < WORTH_A_HUGE_PAGE {
        return None;
    }
    let whole = NonZeroUsize::new(bytes.get().next_multiple_of(HUGE_PAGE))?;
    // Fails where there are too few: the kernel sets them aside now and not when they are touched.
    let start = map(whole, MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB).ok()?;
    Some((start, whole.get(), Pages::Huge))
}

fn map_small(bytes: NonZeroUsize) -> (NonNull<u8>, usize, Pages) {
    let start = map(bytes, MapFlags::empty()).unwrap_or_else(|error| panic!("no memory for {bytes} bytes: {error}"));
    // SAFETY: the mapping is ours and this long. A kernel without transparent huge pages says no, which changes nothing.
    let _ = unsafe { madvise(start.cast(), bytes.get(), MmapAdvise::MADV_HUGEPAGE) };
    (start, bytes.get(), Pages::Small)
}

fn map(bytes: NonZeroUsize, kind: MapFlags) -> nix::Result<NonNull<u8>> {
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping where the kernel likes: no memory of anyone else is touched.
    unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE | kind) }.map(NonNull::cast)
}

impl<T> Drop for HugeArray<T> {
    fn drop(&mut self) {
        if self.mapped > 0 {
            // SAFETY: the mapping of `from_fn`, to which no reference is left.
            let unmapped = unsafe { munmap(self.start.cast(), self.mapped) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
    }
}

impl<T> Deref for HugeArray<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `from_fn` has written `length` values there.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> DerefMut for HugeArray<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed for writing.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T> fmt::Debug for HugeArray<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[{} values, {:?} pages]", self.length, self.pages)
    }
}

/// Memory that tables take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// All of it.
    pub bytes: usize,
    /// What lies on huge pages.
    pub huge: usize,
}

impl AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.huge += other.huge;
    }
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// Huge pages that an array of this many bytes takes where it can.
pub fn huge_pages_for(bytes: usize) -> usize {
    if bytes < WORTH_A_HUGE_PAGE { 0 } else { bytes.div_ceil(HUGE_PAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_made_and_can_be_written() {
        let mut array = HugeArray::from_fn(100_000, |at| at as u64);
        assert_eq!(array.len(), 100_000);
        assert!(array.iter().enumerate().all(|(at, value)| *value == at as u64));
        array[99_999] = 7;
        assert_eq!(array.last(), Some(&7));
        assert_eq!(array.get(100_000), None);
    }

    #[test]
    fn an_empty_one_takes_no_memory() {
        let array = HugeArray::new(0, &0u32);
        assert!(array.is_empty());
        assert_eq!(array.memory(), Memory::default());
    }

    #[test]
    fn records_keep_their_alignment() {
        #[derive(Clone)]
        #[repr(align(64))]
        #[allow(dead_code, reason = "only its place matters")]
        struct Line(u8);
        let array = HugeArray::new(3, &Line(1));
        assert!(array.iter().all(|line| std::ptr::from_ref(line).addr().is_multiple_of(64)));
    }

    #[test]
    fn a_small_one_leaves_huge_pages_to_others() {
        assert_eq!(HugeArray::new(1024, &0u8).memory(), Memory { bytes: 1024, huge: 0 });
        assert_eq!([0, 512 << 10, 2 << 20, (2 << 20) + 1].map(huge_pages_for), [0, 1, 1, 2]);
    }

    /// Whether this machine has huge pages is not ours to say, but what is said must be so.
    #[test]
    fn it_says_truly_which_pages_it_lies_in() {
        let array = HugeArray::new(HUGE_PAGE, &1u8);
        let start = format!("{:x}-", array.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let size = lines.find_map(|line| line.strip_prefix("KernelPageSize:")).map(str::trim);
        match array.memory() {
            Memory { bytes: HUGE_PAGE, huge: HUGE_PAGE } => assert_eq!(size, Some("2048 kB")),
            // Ordinary mappings next to each other may be shown as one.
            memory => assert_eq!((memory.huge, size.unwrap_or("4 kB")), (0, "4 kB")),
        }
    }
}
