//! A session's fan at its entry or exit: the paths, the duplicate window, the sequence.

use super::{
    conntrack::{FanInit, FanReport, Link, PathCounters, SourcePorts},
    prefetch::prefetch,
    window::{Reject, Window},
};
use crate::{limits::PATHS_MAX, wire::relay::HopKey};

/// Words of the window of packets from the client. They come over one path, so they overtake each other less than
/// those that merge: 1984 of them, at 50,000 a second 40 ms.
const CLIENT_WORDS: usize = 32;

/// One session's fan.
///
/// A packet touches three or four of its lines: the first, that of its path, and one or two words of the window.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Fan {
    /// What the session was set up for.
    pub init: FanInit,
    /// By path number: one bit each where there is a link.
    paths: u8,
    /// Exit: the sequence number of the next packet down. Entry: unused.
    pub next_sequence: u64,
    lowest: u64,
    window: Window,
    /// Entry: key of the client's hop.
    pub client_key: HopKey,
    /// Entry: what came from the client.
    from_client: Window<CLIENT_WORDS>,
    lanes: [Lane; PATHS_MAX],
}

/// Some of a fan's paths, by number.
#[derive(Clone, Copy, Debug)]
pub struct Paths(u8);

impl Iterator for Paths {
    type Item = u8;

    /// The lowest number.
    #[inline]
    fn next(&mut self) -> Option<u8> {
        let path = (self.0 != 0).then(|| self.0.trailing_zeros() as u8)?;
        self.0 &= self.0 - 1;
        Some(path)
    }
}

impl Paths {
    /// True where there is no further one.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// One path: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Lane {
    link: Link,
    ports: SourcePorts,
    counters: PathCounters,
}

const _: () = assert!(size_of::<Lane>() == 64);
const _: () = assert!(PATHS_MAX <= 8, "Fan::paths has a bit for each path");

impl Fan {
    /// A fan without paths.
    pub fn new(init: FanInit, client_key: HopKey) -> Self {
        Self {
            init,
            paths: 0,
            next_sequence: 1,
            lowest: 0,
            window: Window::default(),
            client_key,
            from_client: Window::default(),
            lanes: [Lane { link: Link::NONE, ports: SourcePorts::default(), counters: PathCounters::default() };
                PATHS_MAX],
        }
    }

    /// A fan that no session uses.
    pub fn unused() -> Self {
        Self::new(FanInit::NONE, HopKey::default())
    }

    /// Asks for the lines that a packet of this path and sequence number touches.
    #[inline]
    pub fn prefetch(&self, path: u8, sequence: u64) {
        prefetch(self);
        prefetch(&self.lanes[usize::from(path) % PATHS_MAX]);
        self.window.prefetch(sequence);
    }

    /// Asks for the lines that a packet from the client touches at its entry.
    #[inline]
    pub fn prefetch_from_client(&self, sequence: u64) {
        prefetch(self);
        self.from_client.prefetch(sequence);
    }

    /// May packet `sequence` be a new one from the client?
    #[inline]
    pub fn check_from_client(&self, sequence: u64) -> Result<(), Reject> {
        self.from_client.check(sequence)
    }

    /// An authentic packet came from the client: it is copied once, whoever sends it again. True where it is the newest.
    #[inline]
    pub fn admit_from_client(&mut self, sequence: u64) -> Result<bool, Reject> {
        self.from_client.check(sequence)?;
        let is_newest = sequence > self.from_client.highest();
        self.from_client.mark(sequence);
        Ok(is_newest)
    }

    /// Asks for the lines that a packet down all paths touches.
    #[inline]
    pub fn prefetch_links(&self) {
        self.paths().for_each(|path| prefetch(&self.lanes[usize::from(path)]));
    }

    /// How many paths have a link.
    pub fn width(&self) -> usize {
        self.paths.count_ones() as usize
    }

    /// The paths that have a link.
    #[inline]
    pub fn paths(&self) -> Paths {
        Paths(self.paths)
    }

    /// The link of a path and its ports; `None` where there is none, or no such path.
    #[inline]
    pub fn link(&self, path: u8) -> Option<(&Link, SourcePorts)> {
        let has_link = usize::from(path) < PATHS_MAX && self.paths & 1 << path != 0;
        has_link.then(|| (&self.lanes[usize::from(path)].link, self.lanes[usize::from(path)].ports))
    }

    /// Sets or clears the link of a path. False where there is no such path.
    pub fn set_link(&mut self, path: u8, link: Option<(Link, SourcePorts)>) -> bool {
        let Some(lane) = self.lanes.get_mut(usize::from(path)) else { return false };
        (lane.link, lane.ports) = link.unwrap_or((Link::NONE, SourcePorts::default()));
        self.paths = self.paths & !(1 << path) | u8::from(link.is_some()) << path;
        true
    }

    /// An authentic copy of packet `sequence` came over `path`: is it the first?
    #[inline]
    pub fn merge(&mut self, path: u8, sequence: u64) -> Result<(), Reject> {
        let counters = &mut self.lanes[usize::from(path)].counters;
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
        FanReport {
            paths: self.lanes.map(|lane| lane.counters),
            highest: self.window.highest(),
            lowest: self.lowest,
            client: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_and_go() {
        let mut fan = Fan::unused();
        assert_eq!((fan.width(), fan.paths().collect()), (0, vec![]));
        for path in [3, 0, 7] {
            assert!(
                fan.set_link(path, Some((Link { generation: u16::from(path), ..Link::NONE }, SourcePorts::default())))
            );
        }
        assert_eq!((fan.width(), fan.paths().collect()), (3, vec![0, 3, 7]));
        assert_eq!(fan.link(3).map(|(link, _)| link.generation), Some(3));
        assert!(fan.set_link(7, None));
        assert_eq!((fan.width(), fan.paths().collect()), (2, vec![0, 3]));
        assert!(fan.link(7).is_none() && fan.link(8).is_none() && fan.link(255).is_none());
        assert!(!fan.set_link(8, Some((Link::NONE, SourcePorts::default()))));
    }
}
