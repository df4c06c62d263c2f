//! Where packets come from and go to. AF_XDP and memory are drivers.
//!
//! A frame is a fixed piece of memory, named by its index. It is owned by one at a time: the driver (fill or
//! transmit ring), the worker (from `receive` or `allocate` until `transmit` or `release`). A packet is a
//! range of a frame and may start anywhere in it.

pub mod memory;
pub mod xdp;

use std::time::Duration;

use super::packet::Bitmap;
use crate::limits::FRAME_SIZE;

/// A received packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// The frame it is in; now the worker's.
    pub frame: u32,
    /// Where in the frame the Ethernet header starts.
    pub offset: u16,
    /// Bytes from there.
    pub length: u16,
    /// The interface, by the number it has in `Forwarding::interfaces`.
    pub interface: u8,
}

/// A packet to send: the same fields, the other way.
pub type Transmit = Received;

/// Drops that happened below us, as far as the kernel tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStatistics {
    /// Packets dropped because the RX ring was full.
    pub rx_dropped: u64,
    /// Packets dropped because the fill ring was empty.
    pub fill_empty: u64,
}

/// A source and sink of packets. Never blocks but in [`Driver::wait`].
pub trait Driver {
    /// The memory of the frames.
    fn frames(&mut self) -> &mut Frames;

    /// Fills `into` from the front with packets that came in; returns how many.
    fn receive(&mut self, into: &mut [Received]) -> usize;

    /// Gets back the frames of what was sent, and gives the kernel others to receive into. Called once a sweep, when its packets
    /// have left.
    fn replenish(&mut self) {}

    /// A free frame for a packet that begins here.
    fn allocate(&mut self) -> Option<u32>;

    /// Gives a frame back.
    fn release(&mut self, frame: u32);

    /// Takes packets for sending, frames included. Those it has no room for it enters into `refused` by their place
    /// in `batch`; their frames are still the caller's. One interface whose ring is full does not hold up the others.
    fn transmit(&mut self, batch: &[Transmit], refused: &mut Bitmap);

    /// Tells the kernel about what `transmit` took. Called once a sweep.
    fn flush(&mut self);

    /// Sleeps until a packet or a wake-up comes, or for `timeout` at most.
    fn wait(&mut self, timeout: Duration);

    /// Drops below us so far.
    fn statistics(&mut self) -> DriverStatistics;
}

/// The memory of all frames of a worker: one piece, [`FRAME_SIZE`] bytes a frame.
#[derive(Debug)]
pub struct Frames {
    base: *mut u8,
    count: u32,
}

// SAFETY: the memory belongs to the driver, which moves to its worker's thread together with this.
unsafe impl Send for Frames {}

impl Frames {
    /// The memory from `base` on.
    ///
    /// # Safety
    /// `base` must point to `count * FRAME_SIZE` bytes that stay valid and are written by no one else but the
    /// kernel (and by it only in frames the driver owns) for as long as this lives.
    pub unsafe fn new(base: *mut u8, count: u32) -> Self {
        Self { base, count }
    }

    /// How many frames there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// All bytes of a frame. Panics where there is no such frame.
    #[inline]
    pub fn frame(&mut self, frame: u32) -> &mut [u8] {
        assert!(frame < self.count);
        // SAFETY: within the memory `new` was given; the exclusive borrow of self makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(frame as usize * FRAME_SIZE), FRAME_SIZE) }
    }

    /// Copies bytes `range` of frame `from` to the same place in frame `to`. Panics where they are the same.
    #[inline]
    pub fn copy(&mut self, from: u32, to: u32, range: std::ops::Range<usize>) {
        assert!(
            from != to && from < self.count && to < self.count && range.end <= FRAME_SIZE && range.start <= range.end
        );
        // SAFETY: two different frames of the memory `new` was given, so the ranges do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.add(from as usize * FRAME_SIZE + range.start),
                self.base.add(to as usize * FRAME_SIZE + range.start),
                range.len(),
            );
        }
    }
}
