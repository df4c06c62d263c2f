//! Sends prepared frames at a steady rate, by a packet socket.
//!
//! The generator's way is none for this: a call that sends frames without leaving the kernel takes some twenty
//! milliseconds to begin and end.

use std::{
    os::fd::AsRawFd,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send},
};

use crate::{Outcome, delay::packet_socket, frames::Frames};

/// Frames that are sent one after the other, before others may have this processor.
const BATCH: u32 = 16;

/// A sender that came later than this does not make up for it: that would be a burst.
const LATE: Duration = Duration::from_millis(2);

/// Says when it begins. Does not end by itself.
pub(crate) fn run(interface: &str, file: &Path, rate: u32) -> Outcome {
    let frames = Frames::load(file)?;
    let socket = packet_socket(interface)?;
    println!("sending");
    let interval = Duration::from_secs(1) * BATCH / rate;
    let mut due = Instant::now();
    let mut frames = frames.iter().cycle();
    loop {
        for frame in frames.by_ref().take(BATCH as usize) {
            match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
                // What does not fit is lost, as it is on any wire.
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        due += interval;
        let now = Instant::now();
        if now > due + LATE {
            due = now;
        }
        sleep(due.saturating_duration_since(now));
    }
}
