//! The driver of the benchmark: DPDK's `net_pcap` with `infinite_rx=1`, in memory.
//!
//! Receiving copies a prepared packet's bytes into a frame, transmitting frees the frame, as `net_pcap` without an
//! output file does. The clocks spent in here are counted, so that the worker's own can be told from them.

use std::time::Duration;

use starnet::{
    dataplane::{
        driver::{Driver, DriverStatistics, Frames, Received, Transmit},
        packet::Bitmap,
    },
    limits::{FRAME_HEADROOM, FRAME_SIZE},
};

/// Frames of the driver: far more than a sweep needs; they are reused last in, first out, as DPDK's mempool cache does.
const FRAMES: u32 = 4096;

/// Packets to be received, each in a place of `stride` bytes.
pub(crate) struct Prepared {
    bytes: Vec<u8>,
    stride: usize,
    length: usize,
    count: usize,
    interface: u8,
}

impl Prepared {
    /// Room for `count` packets of `length` bytes that come in by `interface`.
    pub(crate) fn new(count: usize, length: usize, interface: u8) -> Self {
        let stride = length.next_multiple_of(64);
        Self { bytes: vec![0; stride * count], stride, length, count, interface }
    }

    /// One of them.
    pub(crate) fn packet(&mut self, index: usize) -> &mut [u8] {
        &mut self.bytes[index * self.stride..][..self.length]
    }
}

/// Clocks spent in the driver, and what passed it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Passed {
    pub(crate) rx_clocks: u64,
    pub(crate) tx_clocks: u64,
    pub(crate) sent: u64,
}

/// The driver.
pub(crate) struct Replay {
    // Boxed and never touched but through `frames` while this lives.
    _memory: Box<[u8]>,
    frames: Frames,
    free: Vec<u32>,
    /// What comes in.
    pub(crate) prepared: Prepared,
    next: usize,
    burst: usize,
    clock: quanta::Clock,
    /// What happened so far.
    pub(crate) passed: Passed,
}

impl Replay {
    /// Receives at most `burst` packets at a time.
    pub(crate) fn new(prepared: Prepared, burst: usize) -> Self {
        let mut memory = vec![0u8; FRAMES as usize * FRAME_SIZE].into_boxed_slice();
        // SAFETY: the memory lives as long as `self` and nothing else touches it.
        let frames = unsafe { Frames::new(memory.as_mut_ptr(), FRAMES) };
        let next = prepared.count;
        Self {
            _memory: memory,
            frames,
            free: (0..FRAMES).rev().collect(),
            prepared,
            next,
            burst,
            clock: quanta::Clock::new(),
            passed: Passed::default(),
        }
    }

    /// From now on the prepared packets come in, each once.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    /// True where all have come in.
    pub(crate) fn is_drained(&self) -> bool {
        self.next == self.prepared.count
    }
}

impl Driver for Replay {
    fn frames(&mut self) -> &mut Frames {
        &mut self.frames
    }

    fn receive(&mut self, into: &mut [Received]) -> usize {
        let before = self.clock.raw();
        let count = into.len().min(self.burst).min(self.prepared.count - self.next).min(self.free.len());
        let (length, interface) = (self.prepared.length, self.prepared.interface);
        for place in &mut into[..count] {
            let frame = self.free.pop().expect("counted above");
            let packet = &self.prepared.bytes[self.next * self.prepared.stride..][..length];
            self.frames.frame(frame)[FRAME_HEADROOM..][..length].copy_from_slice(packet);
            *place = Received { frame, offset: FRAME_HEADROOM as u16, length: length as u16, interface };
            self.next += 1;
        }
        self.passed.rx_clocks += self.clock.raw() - before;
        count
    }

    fn allocate(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn release(&mut self, frame: u32) {
        self.free.push(frame);
    }

    fn transmit(&mut self, batch: &[Transmit], _: &mut Bitmap) {
        let before = self.clock.raw();
        self.free.extend(batch.iter().map(|packet| packet.frame));
        self.passed.sent += batch.len() as u64;
        self.passed.tx_clocks += self.clock.raw() - before;
    }

    fn flush(&mut self) {}

    fn wait(&mut self, _: Duration) {}

    fn statistics(&mut self) -> DriverStatistics {
        DriverStatistics::default()
    }
}
