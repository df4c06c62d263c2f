//! The grain of the last-seen stamps, and so of everything that ages: a node's file may make it finer or coarser.

use crate::{MILLISECOND, Nanos, limits};

/// Length of a tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tick(Nanos);

impl Tick {
    /// What a node has unless its file says otherwise.
    pub const DEFAULT: Self = Self(limits::TICK);

    /// So many milliseconds, which are some of [`limits::TICK_MS`].
    pub fn from_millis(milliseconds: u32) -> Self {
        debug_assert!(limits::TICK_MS.contains(&milliseconds), "{milliseconds}");
        Self(Nanos::from(milliseconds) * MILLISECOND)
    }

    /// The tick that `now` is in. Wraps after 2^32 of them: a year at the finest.
    pub fn at(self, now: Nanos) -> u32 {
        (now / self.0) as u32
    }

    /// When the tick that `now` is in ends.
    pub fn end(self, now: Nanos) -> Nanos {
        (now / self.0 + 1) * self.0
    }

    /// Ticks that `time` takes, rounded up.
    pub fn ceil(self, time: Nanos) -> u32 {
        u32::try_from(time.div_ceil(self.0)).unwrap_or(u32::MAX)
    }

    /// How long so many ticks are.
    pub fn times(self, ticks: u32) -> Nanos {
        Nanos::from(ticks) * self.0
    }
}

impl Default for Tick {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SECOND;

    #[test]
    fn a_time_is_counted_in_ticks_of_any_length() {
        for (tick, a_second) in [(Tick::DEFAULT, 10), (Tick::from_millis(10), 100), (Tick::from_millis(1000), 1)] {
            assert_eq!(
                (tick.at(7 * SECOND), tick.ceil(SECOND), tick.times(a_second)),
                (7 * a_second, a_second, SECOND)
            );
            assert_eq!((tick.end(SECOND - 1), tick.end(SECOND)), (SECOND, SECOND + tick.times(1)));
            assert_eq!((tick.at(SECOND - 1), tick.ceil(SECOND + 1)), (a_second - 1, a_second + 1));
        }
    }
}
