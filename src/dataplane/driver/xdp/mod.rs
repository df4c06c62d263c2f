//! The AF_XDP driver: packets go between the NIC and a worker's memory, past the kernel's network stack.
//!
//! 1. [`AttachedInterface`] puts our XDP program on an interface, once a process. From then on the program looks at every
//!    packet, but as long as no socket is bound all of them go to the kernel.
//! 2. [`XdpDriver::open`] makes one worker's part: frame memory, and a socket for each of its queues of each interface. Of
//!    N workers, number w has queues w, w + N, w + 2N ... and sends by the first of them.
//!
//! ```no_run
//! use starnet::dataplane::driver::xdp::{AttachedInterface, Reserved, XdpDriver};
//! use starnet::dataplane::gateway::Realm;
//! # fn run() -> Result<(), starnet::dataplane::driver::xdp::Error> {
//! let reserved = Reserved::new(&["192.0.2.1".parse().unwrap()], 40000..=49999);
//! let attach = |name| AttachedInterface::attach(name, &reserved, Realm::Neither);
//! let mut interfaces = vec![attach("e0")?, attach("e1")?];
//! for worker in 0..2 {
//!     let (driver, waker) = XdpDriver::open(worker, 2, &mut interfaces, 4096)?;
//!     std::thread::spawn(move || drop(driver /* into the Worker */));
//!     waker.wake();
//! }
//! # Ok(()) }
//! ```
//!
//! Keep the [`AttachedInterface`]s until the workers have ended: dropping one takes the program off, and its packets go
//! to the kernel again.

mod attach;
mod error;
mod link;
mod program;
mod socket;
#[cfg(test)]
mod tests;
mod transit;
mod umem;
mod waker;

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

pub use self::{
    attach::AttachedInterface,
    error::Error,
    link::receive_queues,
    program::{AttachMode, Reserved, Verdict, Verdicts},
    transit::TransitRules,
    waker::Waker,
};
use self::{
    error::{io_error, is_privilege},
    socket::XdpSocket,
    umem::{FRAMES_A_HUGE_PAGE, FrameMemory, Owner},
};
pub use super::super::huge::Pages;
use super::{super::packet::Bitmap, Driver, DriverStatistics, Frames, Received, Transmit};
use crate::limits::PACKET_SLOTS;

/// The first kernel with all that is used here: a UMEM that sockets of several interfaces share. That one was tried by hand, 6.1
/// is in the tests. (Before 5.13 veth does not tell its queues, and so is taken to have one.)
pub const KERNEL_MIN: (u32, u32) = (5, 10);

/// Entries of each ring of each socket.
const RING_ENTRIES: u32 = 4096;

/// How a socket shares frames with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindMode {
    /// The NIC reads and writes our frames itself.
    ZeroCopy,
    /// The kernel copies each packet to or from our frames.
    Copy,
}

impl std::fmt::Display for BindMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        })
    }
}

/// One worker's AF_XDP sockets and frames. Made in any thread, then moved to the worker's.
#[derive(Debug)]
pub struct XdpDriver {
    sockets: Vec<XdpSocket>,
    /// By interface number: the socket that sends.
    senders: Vec<usize>,
    /// The socket that comes first in this sweep, so that a flooded queue does not starve the others.
    next: usize,
    /// Frames the worker has.
    held: usize,
    /// The sockets and the waker, as `wait` needs them.
    poll: Vec<PollFd<'static>>,
    waker: Waker,
    bind_mode: BindMode,
    memory: FrameMemory,
}

const _: () = {
    const fn can_move_to_the_worker<T: Send>() {}
    can_move_to_the_worker::<XdpDriver>();
    can_move_to_the_worker::<AttachedInterface>();
};

impl XdpDriver {
    /// Opens the part of worker number `worker` out of `workers` on all `interfaces`, whose place in the slice is their
    /// number in [`Received::interface`]. `frames` is rounded up to whole huge pages (1024 frames each). The frames lie in
    /// huge pages where there are enough, else in small ones, with a warning in the log.
    ///
    /// Zero-copy is tried first where the program runs in native mode, then copy mode: one mode for all sockets of a
    /// worker, as they share their frames. The mode is in the log, in [`Self::bind_mode`] and in
    /// [`AttachedInterface::bind_mode`].
    ///
    /// As soon as this returns packets come in, so start the worker soon.
    ///
    /// # Errors
    /// See [`Error`]: each says in one line what to do.
    pub fn open(
        worker: usize,
        workers: usize,
        interfaces: &mut [AttachedInterface],
        frames: u32,
    ) -> Result<(Self, Waker), Error> {
        assert!(worker < workers && interfaces.len() <= usize::from(u8::MAX));
        for interface in &*interfaces {
            let queues = interface.queues().count();
            if (queues as usize) < workers {
                return Err(Error::Queues { name: interface.name().into(), queues, workers });
            }
        }
        let is_native = interfaces.iter().all(|interface| interface.mode() == AttachMode::Native);
        let is_copy_known = interfaces.iter().any(|interface| interface.bind_mode == Some(BindMode::Copy));
        let modes: &[BindMode] =
            if is_native && !is_copy_known { &[BindMode::ZeroCopy, BindMode::Copy] } else { &[BindMode::Copy] };
        let mut pages = Pages::Huge;
        let mut opened = None;
        for mode in modes {
            let mut memory = new_memory(worker, workers, interfaces, frames, pages)?;
            pages = memory.pages();
            // What a failed attempt leaves in libxdp and the kernel is not for the next one: it starts with new memory.
            match bind_all(worker, workers, interfaces, &mut memory, *mode) {
                Ok(sockets) => {
                    opened = Some((memory, sockets, *mode));
                    break;
                }
                Err(error) if *mode == BindMode::ZeroCopy && !matches!(error, Error::Privilege { .. }) => {
                    tracing::debug!(worker, %error, "no zero-copy");
                }
                Err(error) => return Err(error),
            }
        }
        let (memory, sockets, bind_mode) = opened.expect("the last mode either binds or is an error");
        let driver = Self::new(memory, sockets, bind_mode, interfaces)?;
        tracing::info!(
            worker,
            sockets = driver.sockets.len(),
            frames = driver.memory_count(),
            pages = ?pages,
            bind_mode = %bind_mode,
            "AF_XDP sockets bound"
        );
        let waker = driver.waker.clone();
        Ok((driver, waker))
    }

    fn new(
        mut memory: FrameMemory,
        mut sockets: Vec<(u32, XdpSocket)>,
        bind_mode: BindMode,
        interfaces: &mut [AttachedInterface],
    ) -> Result<Self, Error> {
        let waker = Waker::new()?;
        let mut fds: Vec<_> = sockets.iter().map(|(_, socket)| socket.fd()).collect();
        fds.push(waker.fd().as_raw_fd());
        // SAFETY: sockets and waker are fields of the driver next to this, and are closed when it is dropped.
        let poll =
            fds.iter().map(|fd| PollFd::new(unsafe { BorrowedFd::borrow_raw(*fd) }, PollFlags::POLLIN)).collect();
        let senders = (0..interfaces.len())
            .map(|number| {
                let sends = |(_, socket): &(u32, XdpSocket)| usize::from(socket.interface()) == number;
                sockets.iter().position(sends).expect("each interface has a queue for each worker")
            })
            .collect();
        // Frames first: the kernel drops what it has none for.
        for (queue, socket) in &mut sockets {
            socket.refill(&mut memory);
            let interface = &mut interfaces[usize::from(socket.interface())];
            interface.program.set_socket(*queue, socket.fd()).map_err(|error| {
                Error::system(
                    format!("interface {}: putting the socket of queue {queue} into the map", interface.name()),
                    io_error(&error),
                )
            })?;
            interface.bind_mode = Some(bind_mode);
        }
        let sockets = sockets.into_iter().map(|(_, socket)| socket).collect();
        Ok(Self { sockets, senders, next: 0, held: 0, poll, waker, bind_mode, memory })
    }

    /// How the sockets are bound.
    pub fn bind_mode(&self) -> BindMode {
        self.bind_mode
    }

    /// The pages that the frames lie in.
    pub fn pages(&self) -> Pages {
        self.memory.pages()
    }

    /// Every frame is free, in a ring or the worker's: none is lost, none is counted twice.
    fn is_frame_count_right(&self) -> bool {
        let in_rings: usize = self.sockets.iter().map(XdpSocket::frames).sum();
        self.memory.free() + in_rings + self.held == self.memory_count()
    }

    /// The socket whose turn is next. (A division takes longer than the look at an empty ring.)
    #[inline]
    fn after(&self, number: usize) -> usize {
        if number + 1 < self.sockets.len() { number + 1 } else { 0 }
    }

    fn memory_count(&self) -> usize {
        self.memory.count() as usize
    }
}

impl Driver for XdpDriver {
    fn frames(&mut self) -> &mut Frames {
        self.memory.frames()
    }

    fn receive(&mut self, into: &mut [Received]) -> usize {
        self.next = self.after(self.next);
        let (mut count, mut number) = (0, self.next);
        for _ in 0..self.sockets.len() {
            count += self.sockets[number].receive(&mut self.memory, &mut into[count..]);
            number = self.after(number);
        }
        self.held += count;
        count
    }

    fn replenish(&mut self) {
        for socket in &mut self.sockets {
            socket.reap(&mut self.memory);
        }
        let mut number = self.next;
        for _ in 0..self.sockets.len() {
            self.sockets[number].refill(&mut self.memory);
            number = self.after(number);
        }
        debug_assert!(self.is_frame_count_right(), "{self:?}");
    }

    fn allocate(&mut self) -> Option<u32> {
        let frame = self.memory.take(Owner::Worker)?;
        self.held += 1;
        Some(frame)
    }

    fn release(&mut self, frame: u32) {
        self.memory.put(frame, Owner::Worker);
        self.held -= 1;
    }

    fn transmit(&mut self, batch: &[Transmit], refused: &mut Bitmap) {
        for (place, packet) in batch.iter().enumerate() {
            let socket = &mut self.sockets[self.senders[usize::from(packet.interface)]];
            if socket.stage(&mut self.memory, packet) {
                self.held -= 1;
            } else {
                refused.insert(place);
            }
        }
        for socket in &mut self.sockets {
            socket.submit();
        }
    }

    fn flush(&mut self) {
        for socket in &mut self.sockets {
            socket.wake();
        }
    }

    fn wait(&mut self, timeout: Duration) {
        // An error is a signal: as good a reason to look as any.
        let _ = ppoll(&mut self.poll, Some(TimeSpec::from_duration(timeout)), None);
        self.waker.answer();
    }

    fn statistics(&mut self) -> DriverStatistics {
        self.sockets.iter().map(XdpSocket::statistics).fold(DriverStatistics::default(), |sum, one| DriverStatistics {
            rx_dropped: sum.rx_dropped + one.rx_dropped,
            fill_empty: sum.fill_empty + one.fill_empty,
        })
    }
}

/// Which queues of an interface a worker has.
fn queues_of(worker: usize, workers: usize, interface: &AttachedInterface) -> impl Iterator<Item = u32> + use<> {
    (worker as u32..interface.queues().count()).step_by(workers)
}

fn new_memory(
    worker: usize,
    workers: usize,
    interfaces: &[AttachedInterface],
    frames: u32,
    pages: Pages,
) -> Result<FrameMemory, Error> {
    /// Frames for each socket to receive into, at least.
    const FILL_MIN: usize = 64;

    let sockets: usize = interfaces.iter().map(|interface| queues_of(worker, workers, interface).count()).sum();
    // Half are for receiving; the worker needs some for a sweep and as many for what is being sent.
    let min = (2 * FILL_MIN * sockets + 2 * PACKET_SLOTS) as u32;
    let rounded = frames.max(1).next_multiple_of(FRAMES_A_HUGE_PAGE);
    if rounded < min {
        return Err(Error::TooFewFrames { frames, sockets, min });
    }
    FrameMemory::new(rounded, pages)
}

/// Binds a socket to each of the worker's queues; each comes with the number of its queue.
fn bind_all(
    worker: usize,
    workers: usize,
    interfaces: &[AttachedInterface],
    memory: &mut FrameMemory,
    mode: BindMode,
) -> Result<Vec<(u32, XdpSocket)>, Error> {
    let wanted: Vec<_> = interfaces
        .iter()
        .enumerate()
        .flat_map(|(number, interface)| {
            queues_of(worker, workers, interface).map(move |queue| (number, interface, queue))
        })
        .collect();
    let fill_target = (memory.count() / 2 / wanted.len() as u32).min(RING_ENTRIES);
    let mut sockets = Vec::with_capacity(wanted.len());
    for (number, interface, queue) in wanted {
        sockets.push((queue, bind_patiently(memory, (interface.name(), number as u8), queue, mode, fill_target)?));
    }
    Ok(sockets)
}

/// The kernel frees a queue some time after its socket was closed, so "busy" is final only after a while.
fn bind_patiently(
    memory: &FrameMemory,
    interface: (&str, u8),
    queue: u32,
    mode: BindMode,
    fill_target: u32,
) -> Result<XdpSocket, Error> {
    const ATTEMPTS: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(50);

    let name = interface.0;
    let mut attempt = 1;
    loop {
        match XdpSocket::bind(memory, interface, queue, mode, fill_target) {
            Ok(socket) => return Ok(socket),
            Err(error) if is_busy(&error) && attempt < ATTEMPTS => std::thread::sleep(PAUSE),
            Err(error) if is_busy(&error) => return Err(Error::QueueBusy { name: name.into(), queue }),
            Err(error) if is_privilege(&error) => {
                return Err(Error::Privilege { what: format!("interface {name}: binding an AF_XDP socket") });
            }
            Err(source) => return Err(Error::Socket { name: name.into(), queue, source }),
        }
        attempt += 1;
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}
