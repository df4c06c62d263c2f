//! Letters to the data thread, which sleeps in epoll: each one wakes it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, mpsc},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    opener::{OpenError, OpenSession},
    planner::Plan,
};

/// What other threads tell or ask the data thread.
#[derive(Debug)]
pub enum Letter {
    /// The end of an [`Order::Open`](super::opener::Order::Open).
    Opened {
        /// Of the order.
        ticket: u64,
        /// The session, or why there is none.
        result: Result<Box<OpenSession>, OpenError>,
    },
    /// The answer to an [`Order::Check`](super::opener::Order::Check).
    Checked {
        /// Of the order.
        ticket: u64,
        /// How the session is now.
        details: Box<OpenSession>,
    },
    /// The end of an [`Order::Plan`](super::opener::Order::Plan).
    Planned(Result<Box<Plan>, OpenError>),
    /// The operator wants to see something.
    Question {
        /// What.
        topic: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Value, String>>,
    },
    /// The client is to end.
    Stop,
}

/// Where letters are posted. Clones lead to the same reader.
#[derive(Clone, Debug)]
pub struct Mailbox {
    letters: mpsc::Sender<Letter>,
    bell: Arc<EventFd>,
}

impl Mailbox {
    /// An empty mailbox and its reader.
    pub fn new() -> io::Result<(Self, Reader)> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (letters, incoming) = mpsc::channel();
        Ok((Self { letters, bell: Arc::clone(&bell) }, Reader { incoming, bell }))
    }

    /// Posts a letter and wakes the reader. A letter to a reader that is gone is lost.
    pub fn post(&self, letter: Letter) {
        if self.letters.send(letter).is_ok() {
            // It fails only where the counter is full; then the bell rings already.
            let _ = self.bell.write(1);
        }
    }
}

/// The reader's end. Its file descriptor is readable while there are letters.
#[derive(Debug)]
pub struct Reader {
    incoming: mpsc::Receiver<Letter>,
    bell: Arc<EventFd>,
}

impl Reader {
    /// All letters there are now.
    pub fn read(&self) -> Vec<Letter> {
        // Silenced first: a letter posted in between rings again.
        let _ = self.bell.read();
        self.incoming.try_iter().collect()
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn a_letter_rings_until_it_is_read() {
        let (mailbox, reader) = Mailbox::new().unwrap();
        let rings = || poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1;
        assert!(!rings());
        mailbox.post(Letter::Stop);
        mailbox.post(Letter::Stop);
        assert!(rings());
        assert_eq!(reader.read().len(), 2);
        assert!(!rings());
    }
}
