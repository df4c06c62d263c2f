//! The memory of a worker's frames, and who owns each frame.

use std::{io, num::NonZeroU32};

use nix::{
    libc,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};
use xsk_rs::{
    FrameDesc, Umem,
    config::{FrameSize, QueueSize, UmemConfig},
};

use super::{
    RING_ENTRIES,
    error::{Error, io_error},
};
use crate::{
    dataplane::{
        driver::Frames,
        huge::{HUGE_PAGE, Pages},
    },
    limits::{FRAME_HEADROOM, FRAME_SIZE},
};

/// Frames are counted in huge pages, whether or not there are any.
pub(super) const FRAMES_A_HUGE_PAGE: u32 = (HUGE_PAGE / FRAME_SIZE) as u32;

/// All frames of a worker: the memory that is registered with the kernel, and the list of those that are free.
#[derive(Debug)]
pub(super) struct FrameMemory {
    /// Every frame's descriptor, its start at the canonical offset: the only way to a descriptor with an address.
    descriptors: Box<[FrameDesc]>,
    /// A stack, so that the frame used last, still in the cache, is the next one used.
    free: Vec<u32>,
    ledger: Ledger,
    frames: Frames,
    pages: Pages,
    umem: Umem,
}

impl FrameMemory {
    /// Maps and registers `count` frames, which must be a multiple of [`FRAMES_A_HUGE_PAGE`]. Logs a warning where there
    /// are no huge pages for them.
    pub(super) fn new(count: u32, pages: Pages) -> Result<Self, Error> {
        assert!(count > 0 && count.is_multiple_of(FRAMES_A_HUGE_PAGE));
        // Without CAP_IPC_LOCK the frames count against this limit. Where it cannot be raised it may still suffice.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        if pages == Pages::Huge {
            match Self::map(count, pages) {
                Ok(memory) => return Ok(memory),
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => tracing::warn!(
                    hint = format!("sysctl vm.nr_hugepages={} or more a worker", count / FRAMES_A_HUGE_PAGE),
                    "too few free huge pages: using 4 KiB pages, which are slower"
                ),
                Err(error) => return Err(refused(count, error)),
            }
        }
        Self::map(count, Pages::Small).map_err(|error| refused(count, error))
    }

    fn map(count: u32, pages: Pages) -> io::Result<Self> {
        let ring = QueueSize::new(RING_ENTRIES).expect("a power of two");
        let mut config = UmemConfig::builder();
        config.frame_size(FrameSize::new(FRAME_SIZE as u32).expect("2048 or more"));
        config.fill_queue_size(ring).comp_queue_size(ring);
        let config = config.build().map_err(io::Error::other)?;
        let count = NonZeroU32::new(count).expect("asserted by the caller");
        let (umem, descriptors) = Umem::new(config, count, pages == Pages::Huge).map_err(|error| io_error(&error))?;
        assert_eq!(descriptors[0].addr(), FRAME_HEADROOM, "the canonical offset is what the kernel leaves free");
        // SAFETY: the descriptor belongs to this UMEM, which nobody else knows of yet.
        let first_packet = unsafe { umem.data(&descriptors[0]) }.contents().as_ptr();
        // The mapping is the kernel's, not an object of Rust's, so its address may be used to reach all of it.
        let base = std::ptr::with_exposed_provenance_mut(first_packet.expose_provenance() - FRAME_HEADROOM);
        // SAFETY: the UMEM is a mapping of `count` frames that lives in `self` next to this; frames are handed to the
        // kernel, and got back, only by way of `self`, whose ledger says who owns which.
        let frames = unsafe { Frames::new(base, count.get()) };
        Ok(Self {
            free: (0..count.get()).rev().collect(),
            ledger: Ledger::new(count.get()),
            descriptors: descriptors.into(),
            frames,
            pages,
            umem,
        })
    }

    /// What the sockets are made from.
    pub(super) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// All frames.
    pub(super) fn count(&self) -> u32 {
        self.frames.count()
    }

    /// The pages in use.
    pub(super) fn pages(&self) -> Pages {
        self.pages
    }

    /// The bytes.
    pub(super) fn frames(&mut self) -> &mut Frames {
        &mut self.frames
    }

    /// Free frames.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// A free frame, for `owner`.
    #[inline]
    pub(super) fn take(&mut self, owner: Owner) -> Option<u32> {
        let frame = self.free.pop()?;
        self.ledger.pass(frame, Owner::Free, owner);
        Some(frame)
    }

    /// Puts a frame of `owner` back among the free ones.
    #[inline]
    pub(super) fn put(&mut self, frame: u32, owner: Owner) {
        self.ledger.pass(frame, owner, Owner::Free);
        self.free.push(frame);
    }

    /// Notes that a frame changes hands.
    #[inline]
    pub(super) fn pass(&mut self, frame: u32, from: Owner, to: Owner) {
        self.ledger.pass(frame, from, to);
    }

    /// The descriptor of a frame, empty, for the fill ring.
    #[inline]
    pub(super) fn descriptor(&self, frame: u32) -> FrameDesc {
        self.descriptors[frame as usize]
    }

    /// The descriptor of the packet of `length` bytes at `offset` in a frame, for the transmit ring.
    ///
    /// Moves the packet where need be: xsk-rs can describe only packets that start at the canonical offset. A relayed
    /// packet does, as its headers keep their length.
    #[inline]
    pub(super) fn packet_descriptor(&mut self, frame: u32, offset: u16, length: u16) -> FrameDesc {
        let (offset, length) = (usize::from(offset), usize::from(length));
        if offset != FRAME_HEADROOM {
            self.frames.frame(frame).copy_within(offset..offset + length, FRAME_HEADROOM);
        }
        let mut descriptor = self.descriptors[frame as usize];
        // SAFETY: the descriptor is of this UMEM, and the worker that passed us the frame holds no reference into it.
        unsafe { self.umem.data_mut(&mut descriptor) }.cursor().set_pos(length);
        descriptor
    }
}

/// The frame a descriptor from the kernel is in.
#[inline]
pub(super) fn frame_of(descriptor: &FrameDesc) -> u32 {
    (descriptor.addr() / FRAME_SIZE) as u32
}

fn refused(count: u32, error: io::Error) -> Error {
    if super::error::is_privilege(&error) {
        return Error::Privilege { what: "opening an AF_XDP socket".into() };
    }
    Error::Memory { bytes: count as usize * FRAME_SIZE, source: error }
}

/// Who owns a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// Nobody: on the free list.
    Free,
    /// The kernel, to receive into: from the fill ring until taken from the receive ring.
    Filling,
    /// The worker.
    Worker,
    /// The kernel, to send from: from the transmit ring until taken from the completion ring.
    Sending,
}

/// Every frame's owner, to find a frame that is released twice or used after it was sent. Only in debug builds: it costs
/// a cache line a packet.
#[derive(Debug)]
struct Ledger {
    #[cfg(debug_assertions)]
    owners: Box<[Owner]>,
}

impl Ledger {
    #[cfg(debug_assertions)]
    fn new(count: u32) -> Self {
        Self { owners: vec![Owner::Free; count as usize].into() }
    }

    #[cfg(debug_assertions)]
    fn pass(&mut self, frame: u32, from: Owner, to: Owner) {
        let owner = &mut self.owners[frame as usize];
        assert_eq!(*owner, from, "frame {frame} on its way to {to:?} has another owner than it should");
        *owner = to;
    }

    #[cfg(not(debug_assertions))]
    fn new(_: u32) -> Self {
        Self {}
    }

    #[cfg(not(debug_assertions))]
    #[inline]
    fn pass(&mut self, _: u32, _: Owner, _: Owner) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> FrameMemory {
        FrameMemory::new(FRAMES_A_HUGE_PAGE, Pages::Small).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn each_frame_is_given_out_once_and_has_its_own_memory() {
        let mut memory = memory();
        let mut seen = vec![false; FRAMES_A_HUGE_PAGE as usize];
        while let Some(frame) = memory.take(Owner::Worker) {
            assert!(!std::mem::replace(&mut seen[frame as usize], true));
            memory.frames().frame(frame).fill(frame as u8);
            assert_eq!(frame_of(&memory.descriptor(frame)), frame);
        }
        assert!(seen.iter().all(|seen| *seen));
        for frame in 0..FRAMES_A_HUGE_PAGE {
            assert!(memory.frames().frame(frame).iter().all(|byte| *byte == frame as u8));
            memory.put(frame, Owner::Worker);
        }
        assert_eq!(memory.free(), FRAMES_A_HUGE_PAGE as usize);
    }

    #[test]
    fn a_packet_that_starts_elsewhere_is_moved_to_where_it_can_be_described() {
        let mut memory = memory();
        let frame = memory.take(Owner::Worker).unwrap();
        for offset in [FRAME_HEADROOM - 38, FRAME_HEADROOM, FRAME_HEADROOM + 38, FRAME_SIZE - 100, 0] {
            let packet: Vec<u8> = (0..100).map(|n| n as u8 ^ offset as u8).collect();
            memory.frames().frame(frame)[offset..offset + 100].copy_from_slice(&packet);
            let descriptor = memory.packet_descriptor(frame, offset as u16, 100);
            assert_eq!((frame_of(&descriptor), descriptor.lengths().data()), (frame, 100));
            assert_eq!(descriptor.addr() % FRAME_SIZE, FRAME_HEADROOM);
            // SAFETY: the frame is the test's own.
            assert_eq!(unsafe { memory.umem().data(&descriptor) }.contents(), packet);
        }
    }

    #[test]
    #[should_panic(expected = "another owner")]
    fn a_frame_released_twice_is_found() {
        let mut memory = memory();
        let frame = memory.take(Owner::Worker).unwrap();
        memory.put(frame, Owner::Worker);
        memory.put(frame, Owner::Worker);
    }
}
