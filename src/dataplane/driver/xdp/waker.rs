//! Waking a worker that sleeps in [`Driver::wait`](crate::dataplane::driver::Driver::wait).

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::error::Error;

/// Wakes one worker, from any thread. Clones wake the same one.
///
/// Put the work where the worker looks for it (a ring), then call [`Waker::wake`]: a worker that sleeps or is about to
/// will look. Between two sleeps of the worker only the first call is a system call, so it may be called for each item.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    event: EventFd,
    /// Set by the first call since the worker last slept; the event is readable then, or about to be.
    is_called: AtomicBool,
}

impl Waker {
    /// Makes the worker's next or current sleep end at once.
    pub fn wake(&self) {
        if !self.0.is_called.swap(true, Ordering::AcqRel) {
            // Fails only where the counter would overflow, and then the event is readable anyway.
            let _ = self.0.event.write(1);
        }
    }

    pub(super) fn new() -> Result<Self, Error> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| Error::system("making an eventfd", error.into()))?;
        Ok(Self(Arc::new(Shared { event, is_called: AtomicBool::new(false) })))
    }

    /// Readable while there is a call to answer.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    /// Called by the worker after it slept and before it looks for work.
    ///
    /// First empties the event, then allows the next system call. In the other order the event of a call in between would
    /// be emptied while that call still keeps all later ones from making another. A call between the two steps makes
    /// none either, but what it announces was there before it, and the exchange makes that visible to the look that
    /// follows.
    pub(super) fn answer(&self) {
        // Nothing to read: the worker woke for a packet, or for a call whose event is still to come.
        let _ = self.0.event.read();
        self.0.is_called.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_readable(waker: &Waker) -> bool {
        poll(&mut [PollFd::new(waker.fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn a_call_stays_until_it_is_answered_and_the_next_one_counts_again() {
        let waker = Waker::new().unwrap();
        for _ in 0..3 {
            assert!(!is_readable(&waker));
            waker.clone().wake();
            waker.wake();
            assert!(is_readable(&waker));
            waker.answer();
        }
        assert!(!is_readable(&waker));
    }
}
