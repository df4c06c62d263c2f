//! The clock of a node: one zero for all its threads.

use crate::{Nanos, SECOND};

/// Nanoseconds since a moment shortly before the start, the same in every thread. Clones share the zero.
#[derive(Clone, Debug)]
pub struct NodeClock {
    clock: quanta::Clock,
    start: u64,
}

impl NodeClock {
    /// A clock that starts now, at one second: zero is never a time of anything that happened.
    pub fn start() -> Self {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        Self { clock, start }
    }

    /// What time it is.
    #[inline]
    pub fn now(&self) -> Nanos {
        SECOND + self.clock.delta_as_nanos(self.start, self.clock.raw())
    }

    /// The clock below, for differences.
    pub fn raw_clock(&self) -> &quanta::Clock {
        &self.clock
    }
}
