//! One AF_XDP socket: one queue of one interface, with its four rings.
//!
//! ```text
//!            fill ring                          transmit ring
//!   free  ------------> kernel         worker  ------------->  kernel
//!   worker <----------- kernel           free  <-------------  kernel
//!           receive ring                       completion ring
//! ```

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use nix::libc;
use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue,
    config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig},
};

use super::{
    BindMode, RING_ENTRIES,
    error::io_error,
    umem::{FrameMemory, Owner, frame_of},
};
use crate::{
    dataplane::driver::{DriverStatistics, Received, Transmit},
    limits::{FRAME_SIZE, PACKET_BYTES_MAX, PACKET_SLOTS},
};

/// Frames are put into the fill ring at least so many at a time, while it is not short of them.
const FILL_BATCH: u32 = 32;

/// Packets that one wake-up sends in copy mode where the kernel does not let us ask for more.
const SENT_A_WAKEUP: u32 = 32;

/// What we ask for instead (XDP_MAX_TX_SKB_BUDGET, since Linux 6.18): a whole sweep.
const SENT_A_WAKEUP_WANTED: u32 = PACKET_SLOTS as u32;

#[derive(Debug)]
pub(super) struct XdpSocket {
    /// The interface's number in the driver.
    interface: u8,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Frames the kernel should have to receive into, those in the receive ring included.
    fill_target: u32,
    /// How many it has.
    filling: u32,
    /// Frames in the transmit ring, on their way out or in the completion ring.
    sending: u32,
    /// Packets for the transmit ring, collected by [`Self::stage`].
    staged: Vec<FrameDesc>,
    /// Descriptors on their way to or from a ring.
    scratch: Box<[FrameDesc; PACKET_SLOTS]>,
    /// Packets the kernel sends at most for one wake-up.
    sent_a_wakeup: u32,
    /// The last wake-up left packets in the transmit ring.
    is_stalled: bool,
}

impl XdpSocket {
    /// Binds a socket to `queue` of the interface called `name`. Has no frames yet: call [`Self::refill`].
    pub(super) fn bind(
        memory: &FrameMemory,
        (name, interface): (&str, u8),
        queue: u32,
        mode: BindMode,
        fill_target: u32,
    ) -> io::Result<Self> {
        assert!(fill_target <= RING_ENTRIES);
        let ring = QueueSize::new(RING_ENTRIES).expect("a power of two");
        let flags = match mode {
            BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
            BindMode::Copy => BindFlags::XDP_COPY,
        };
        let mut config = SocketConfig::builder();
        config.rx_queue_size(ring).tx_queue_size(ring);
        config.libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD);
        config.bind_flags(flags | BindFlags::XDP_USE_NEED_WAKEUP);
        let device: Interface = name.parse().map_err(io::Error::other)?;
        // SAFETY: libxdp's own program is inhibited, which is the condition.
        let (tx, rx, rings) =
            unsafe { Socket::new(config.build(), memory.umem(), &device, queue) }.map_err(|error| io_error(&error))?;
        let Some((fill, completion)) = rings else {
            return Err(io::Error::other("the queue is bound twice from one UMEM"));
        };
        let sent_a_wakeup = ask_for_larger_batches(rx.fd().as_raw_fd());
        Ok(Self {
            interface,
            rx,
            tx,
            fill,
            completion,
            fill_target,
            filling: 0,
            sending: 0,
            staged: Vec::with_capacity(RING_ENTRIES as usize),
            scratch: Box::new([FrameDesc::default(); PACKET_SLOTS]),
            sent_a_wakeup,
            is_stalled: false,
        })
    }

    /// The interface's number in the driver.
    pub(super) fn interface(&self) -> u8 {
        self.interface
    }

    pub(super) fn fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }

    /// Frames that the kernel has, to receive into and to send from.
    pub(super) fn frames(&self) -> usize {
        (self.filling + self.sending) as usize
    }

    /// Gets back the frames of packets that were sent, and tries again to send those that could not be.
    pub(super) fn reap(&mut self, memory: &mut FrameMemory) {
        if self.is_stalled {
            self.wake();
        }
        while self.sending > 0 {
            // SAFETY: the ring is of the UMEM of `memory`.
            let count = unsafe { self.completion.consume(&mut self.scratch[..]) };
            for descriptor in &self.scratch[..count] {
                memory.put(frame_of(descriptor), Owner::Sending);
            }
            self.sending -= count as u32;
            if count < self.scratch.len() {
                return;
            }
        }
    }

    /// Gives the kernel frames to receive into, up to the target or as many as are free.
    pub(super) fn refill(&mut self, memory: &mut FrameMemory) {
        let batch = FILL_BATCH.min(self.fill_target / 2);
        while self.fill_target - self.filling >= batch {
            let wanted = (self.fill_target - self.filling).min(self.scratch.len() as u32) as usize;
            let mut count = 0;
            while count < wanted
                && let Some(frame) = memory.take(Owner::Filling)
            {
                self.scratch[count] = memory.descriptor(frame);
                count += 1;
            }
            // SAFETY: the frames were free until now, so nobody refers to them; they are of the UMEM of this ring.
            let taken = unsafe { self.fill.produce(&self.scratch[..count]) };
            self.filling += taken as u32;
            for descriptor in &self.scratch[taken..count] {
                memory.put(frame_of(descriptor), Owner::Filling);
            }
            if taken < wanted {
                break;
            }
        }
        if self.fill.needs_wakeup() {
            // Polls without waiting. An error here (the interface is down) is not ours to handle: the next sweep tries again.
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
    }

    /// Takes packets that came in; returns how many.
    pub(super) fn receive(&mut self, memory: &mut FrameMemory, into: &mut [Received]) -> usize {
        let room = into.len().min(self.scratch.len());
        // SAFETY: the ring is of the UMEM of `memory`.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        for (descriptor, received) in self.scratch[..count].iter().zip(into) {
            let frame = frame_of(descriptor);
            memory.pass(frame, Owner::Filling, Owner::Worker);
            *received = Received {
                frame,
                offset: (descriptor.addr() % FRAME_SIZE) as u16,
                length: descriptor.lengths().data() as u16,
                interface: self.interface,
            };
        }
        self.filling -= count as u32;
        count
    }

    /// Takes a packet for sending, if there is room in the ring; [`Self::submit`] puts it there.
    #[inline]
    pub(super) fn stage(&mut self, memory: &mut FrameMemory, packet: &Transmit) -> bool {
        let staged = self.staged.len() as u32;
        if self.tx.nb_free(staged + 1) <= staged {
            return false;
        }
        assert!(
            usize::from(packet.length) <= PACKET_BYTES_MAX
                && usize::from(packet.offset) + usize::from(packet.length) <= FRAME_SIZE,
            "a packet that no interface of ours can send"
        );
        self.staged.push(memory.packet_descriptor(packet.frame, packet.offset, packet.length));
        memory.pass(packet.frame, Owner::Worker, Owner::Sending);
        true
    }

    /// Puts the staged packets into the transmit ring.
    pub(super) fn submit(&mut self) {
        // SAFETY: the frames were passed to us by the worker, which refers to them no more; they are of the UMEM of this
        // ring.
        let taken = unsafe { self.tx.produce(&self.staged) };
        assert_eq!(taken, self.staged.len(), "stage() makes sure of the room");
        self.sending += taken as u32;
        self.staged.clear();
    }

    /// Has the kernel send what is in the transmit ring, if it does not do so by itself. Never waits; what the device
    /// does not take now stays in the ring, and [`Self::reap`] tries again.
    pub(super) fn wake(&mut self) {
        self.is_stalled = false;
        if self.sending == 0 {
            return;
        }
        let mut waiting = self.waiting_to_be_sent();
        while waiting > 0 && self.tx.needs_wakeup() {
            // An error (the interface is down) shows in what is left.
            let _ = self.tx.wakeup();
            let left = self.waiting_to_be_sent();
            // Less than a full batch was sent, but not all: the device is busy.
            self.is_stalled = left > 0 && waiting - left < self.sent_a_wakeup;
            if self.is_stalled {
                return;
            }
            waiting = left;
        }
    }

    fn waiting_to_be_sent(&mut self) -> u32 {
        RING_ENTRIES - self.tx.nb_free_exact()
    }

    /// What the kernel dropped on the way to this socket.
    pub(super) fn statistics(&self) -> DriverStatistics {
        self.rx.fd().xdp_statistics().map_or_else(
            |_| DriverStatistics::default(),
            |kernel| DriverStatistics {
                rx_dropped: kernel.rx_ring_full(),
                fill_empty: kernel.rx_fill_ring_empty_descs(),
            },
        )
    }
}

/// Raises the number of packets the kernel sends for one wake-up; returns what it is now.
fn ask_for_larger_batches(socket: RawFd) -> u32 {
    const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
    let budget = SENT_A_WAKEUP_WANTED;
    // SAFETY: the option's value is a u32, which lives through the call; the socket is open.
    let result = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const budget).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { budget } else { SENT_A_WAKEUP }
}
