//! A session's fan at its entry or exit: the paths, the duplicate window, the sequence.

use super::{
    conntrack::{FanInit, FanReport, Link, NO_BINDING, PathCounters},
    window::{Reject, Window},
};
use crate::limits::PATHS_MAX;

/// One session's fan.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Fan {
    /// By path number.
    pub links: [Option<Link>; PATHS_MAX],
    /// What the session was set up for.
    pub init: FanInit,
    /// Exit: the sequence number of the next packet down. Entry: unused.
    pub next_sequence: u64,
    /// Entry: the highest sequence number of an authentic packet from the client.
    pub newest_from_client: u64,
    lowest: u64,
    window: Window,
    paths: [PathCounters; PATHS_MAX],
}

impl Fan {
    /// A fan without paths.
    pub fn new(init: FanInit) -> Self {
        Self {
            links: [None; PATHS_MAX],
            init,
            next_sequence: 1,
            newest_from_client: 0,
            lowest: 0,
            window: Window::default(),
            paths: [PathCounters::default(); PATHS_MAX],
        }
    }

    /// A fan that no session uses.
    pub fn unused() -> Self {
        Self::new(FanInit { inside: std::net::Ipv4Addr::UNSPECIFIED, binding: NO_BINDING, mtu: 0 })
    }

    /// How many paths have a link.
    pub fn width(&self) -> usize {
        self.links.iter().flatten().count()
    }

    /// An authentic copy of packet `sequence` came over `path`: is it the first?
    #[inline]
    pub fn merge(&mut self, path: u8, sequence: u64) -> Result<(), Reject> {
        let counters = &mut self.paths[usize::from(path)];
        counters.received += 1;
        self.window.check(sequence)?;
        counters.first += 1;
        self.window.mark(sequence);
        if self.lowest == 0 || sequence < self.lowest {
            self.lowest = sequence;
        }
        Ok(())
    }

    /// How the merging goes.
    pub fn report(&self) -> FanReport {
        FanReport { paths: self.paths, highest: self.window.highest(), lowest: self.lowest, client: None }
    }
}
