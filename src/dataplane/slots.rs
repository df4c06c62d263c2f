//! A worker's slots: of each session what the worker knows, for itself alone, and the stamp that it shows to others, in one
//! cache line, so that a packet of a million sessions misses the cache once.

use std::{
    cell::UnsafeCell,
    fmt,
    ops::{Index, IndexMut},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release},
    },
};

use super::{
    conntrack::Slot,
    huge::{HugeArray, Memory},
    prefetch::prefetch,
    published::Stamp,
};

/// A slot.
#[repr(C, align(64))]
struct Line {
    session: UnsafeCell<Slot>,
    stamp: Stamp,
}

const _: () = assert!(size_of::<Line>() == 64, "a relay's packet touches one cache line of conntrack");

// SAFETY: `session` is reached through `Slots` alone, and there is one at a time.
unsafe impl Sync for Line {}

/// Bytes of a slot.
pub const SLOT_BYTES: usize = size_of::<Line>();

/// Slots as everyone sees them: their stamps.
pub struct Stamps {
    lines: HugeArray<Line>,
    has_owner: AtomicBool,
}

impl Stamps {
    /// So many free slots.
    pub fn new(count: usize) -> Self {
        let line = |_| Line { session: UnsafeCell::new(Slot::FREE), stamp: Stamp::default() };
        Self { lines: HugeArray::from_fn(count, line), has_owner: AtomicBool::new(false) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lines.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Stamp> {
        self.lines.iter().map(|line| &line.stamp)
    }

    /// The memory of the slots.
    pub fn memory(&self) -> Memory {
        self.lines.memory()
    }
}

impl Index<usize> for Stamps {
    type Output = Stamp;

    #[inline]
    fn index(&self, slot: usize) -> &Stamp {
        &self.lines[slot].stamp
    }
}

impl fmt::Debug for Stamps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.fmt(formatter)
    }
}

/// Slots as their worker sees them.
pub struct Slots {
    /// Where `shared` has them.
    start: NonNull<Line>,
    count: usize,
    shared: Arc<Stamps>,
}

// SAFETY: the pointer is to memory that `shared` keeps, whose records only this owner reaches.
unsafe impl Send for Slots {}

impl Slots {
    /// The worker's.
    ///
    /// # Panics
    /// Where they have an owner already.
    pub fn own(shared: Arc<Stamps>) -> Self {
        assert!(!shared.has_owner.swap(true, AcqRel), "slots have one owner");
        let lines: &[Line] = &shared.lines;
        Self { start: NonNull::from(lines).cast(), count: lines.len(), shared }
    }

    /// What is known of a slot; `None`: there is none of this number.
    #[inline]
    pub fn get(&self, slot: usize) -> Option<&Slot> {
        // SAFETY: the only owner is borrowed, so nobody writes it meanwhile.
        self.line(slot).map(|line| unsafe { &*line.session.get() })
    }

    /// The same, to be written.
    #[inline]
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Slot> {
        // SAFETY: the only owner is borrowed for writing.
        self.line(slot).map(|line| unsafe { &mut *line.session.get() })
    }

    /// What others see of a slot.
    #[inline]
    pub fn stamp(&self, slot: usize) -> Option<&Stamp> {
        self.line(slot).map(|line| &line.stamp)
    }

    /// Asks for a slot's line, where there is one.
    #[inline]
    pub fn prefetch(&self, slot: usize) {
        self.line(slot).into_iter().for_each(prefetch);
    }

    #[inline]
    fn line(&self, slot: usize) -> Option<&Line> {
        // SAFETY: the array has `count` lines, and `shared` keeps it.
        (slot < self.count).then(|| unsafe { self.start.add(slot).as_ref() })
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.shared.has_owner.store(false, Release);
    }
}

impl Index<usize> for Slots {
    type Output = Slot;

    #[inline]
    fn index(&self, slot: usize) -> &Slot {
        self.get(slot).expect("a slot of this worker")
    }
}

impl IndexMut<usize> for Slots {
    #[inline]
    fn index_mut(&mut self, slot: usize) -> &mut Slot {
        self.get_mut(slot).expect("a slot of this worker")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn what_the_worker_knows_and_what_it_shows_are_kept_apart() {
        let shared = Arc::new(Stamps::new(3));
        let mut slots = Slots::own(shared.clone());
        slots[2].generation = 7;
        slots.stamp(2).unwrap().touch(5, 100);
        slots[2].fan = 9;
        assert_eq!((slots[2].generation, slots[2].fan), (7, 9));
        assert_eq!(shared[2].last_seen.load(Relaxed), 5);
        assert_eq!(shared.iter().map(|stamp| stamp.packets.load(Relaxed)).collect::<Vec<_>>(), [0, 0, 1]);
        assert!(slots.get(3).is_none() && slots.get_mut(3).is_none() && slots.stamp(3).is_none());
        slots.prefetch(1 << 24);
    }

    #[test]
    fn others_read_while_the_worker_writes() {
        let shared = Arc::new(Stamps::new(2));
        let mut slots = Slots::own(shared.clone());
        let reader = std::thread::spawn(move || while shared[1].packets.load(Relaxed) < 10_000 {});
        for n in 0..10_000 {
            slots[1].fan = n;
            slots.stamp(1).unwrap().count(1);
            assert_eq!(slots[1].fan, n);
        }
        reader.join().unwrap();
    }

    #[test]
    fn slots_have_one_owner_at_a_time() {
        let shared = Arc::new(Stamps::new(1));
        drop(Slots::own(shared.clone()));
        let _slots = Slots::own(shared.clone());
        assert!(std::thread::spawn(move || Slots::own(shared)).join().is_err());
    }
}
