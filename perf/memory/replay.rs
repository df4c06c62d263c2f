//! The driver of the benchmark: DPDK's `net_pcap` with `infinite_rx=1`, in memory.
//!
//! Receiving copies a prepared packet's bytes into a frame, transmitting frees the frame, as `net_pcap` without an
//! output file does. The clocks spent in here are counted, so that the worker's own can be told from them.

use std::time::Duration;

use hdrhistogram::Histogram;
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
    /// Packets that may have been received and not sent.
    pub(crate) in_flight_max: u64,
    taken: u64,
    pace: Option<Pace>,
}

/// A steady load: packets fall due at a fixed rate, whether or not the worker comes.
struct Pace {
    /// Clocks between two packets.
    interval: u64,
    due: u64,
    /// When the packet in each frame fell due.
    since: Vec<u64>,
    /// Nanoseconds from then until it was sent.
    residence: Histogram<u64>,
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
            in_flight_max: u64::MAX,
            taken: 0,
            pace: None,
        }
    }

    /// From now on the prepared packets come again and again, at this rate.
    pub(crate) fn pace(&mut self, packets_a_second: u64) {
        let nanos = self.clock.delta_as_nanos(0, 1_000_000_000);
        self.pace = Some(Pace {
            interval: 1_000_000_000u64.saturating_mul(1_000_000_000 / packets_a_second) / nanos.max(1),
            due: 0,
            since: vec![0; FRAMES as usize],
            residence: Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("the bounds are constants"),
        });
    }

    /// The load begins.
    pub(crate) fn begin_slice(&mut self) {
        let now = self.clock.raw();
        let pace = self.pace.as_mut().expect("there is a load");
        pace.due = now;
        pace.residence.reset();
    }

    /// What was seen since then.
    pub(crate) fn end_slice(&mut self) -> Histogram<u64> {
        self.pace.as_ref().expect("there is a load").residence.clone()
    }

    /// How many packets there are now, of the `most` that there is room for.
    fn ready(&mut self, now: u64, most: usize) -> usize {
        match &self.pace {
            Some(pace) => most.min(if now < pace.due { 0 } else { ((now - pace.due) / pace.interval) as usize + 1 }),
            None => most
                .min(self.prepared.count - self.next)
                .min((self.in_flight_max - (self.taken - self.passed.sent).min(self.in_flight_max)) as usize),
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
        let count = self.ready(before, into.len().min(self.burst).min(self.free.len()));
        let (length, interface) = (self.prepared.length, self.prepared.interface);
        for place in &mut into[..count] {
            let frame = self.free.pop().expect("counted above");
            if let Some(pace) = &mut self.pace {
                self.next %= self.prepared.count;
                pace.since[frame as usize] = pace.due;
                pace.due += pace.interval;
            }
            let packet = &self.prepared.bytes[self.next * self.prepared.stride..][..length];
            self.frames.frame(frame)[FRAME_HEADROOM..][..length].copy_from_slice(packet);
            *place = Received { frame, offset: FRAME_HEADROOM as u16, length: length as u16, interface };
            self.next += 1;
        }
        self.taken += count as u64;
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
        if let Some(pace) = &mut self.pace {
            for packet in batch {
                let clocks = before.saturating_sub(pace.since[packet.frame as usize]);
                pace.residence.saturating_record(self.clock.delta_as_nanos(0, clocks));
            }
        }
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
