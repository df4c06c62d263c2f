//! Which places are to be looked at, and at which tick.
//!
//! A ring of buckets, one a tick. A place can be entered again before its time has come; then it comes up twice, and
//! the caller, who knows when it is due, passes over the time that does not count.

/// The wheel.
#[derive(Debug)]
pub(super) struct Wheel {
    /// A power of two of them, more than the span.
    buckets: Vec<Vec<u32>>,
    /// Ticks ahead at most; what is due later is looked at then and entered again.
    span: u32,
    /// The tick whose bucket is being emptied; all before it are empty.
    at: u32,
}

impl Wheel {
    /// An empty wheel that starts at tick `now`.
    pub(super) fn new(now: u32, span: u32) -> Self {
        Self { buckets: vec![Vec::new(); (span as usize + 1).next_power_of_two()], span, at: now }
    }

    /// The bucket of a tick. As their number divides 2^32, ticks may wrap.
    fn bucket(&mut self, tick: u32) -> &mut Vec<u32> {
        let place = tick as usize & (self.buckets.len() - 1);
        &mut self.buckets[place]
    }

    /// Enters a place, to come up at tick `due`, or at the end of the span if that is sooner. Returns when.
    pub(super) fn enter(&mut self, place: u32, due: u32) -> u32 {
        let ahead = (due.wrapping_sub(self.at) as i32).clamp(1, self.span as i32);
        let tick = self.at.wrapping_add(ahead as u32);
        self.bucket(tick).push(place);
        tick
    }

    /// A place whose time has come at tick `now`, and which tick it was entered for.
    pub(super) fn next(&mut self, now: u32) -> Option<(u32, u32)> {
        loop {
            if let Some(place) = self.bucket(self.at).pop() {
                return Some((place, self.at));
            }
            if now.wrapping_sub(self.at) as i32 <= 0 {
                return None;
            }
            self.at = self.at.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u32 = 600;

    fn due(wheel: &mut Wheel, now: u32) -> Vec<u32> {
        let mut places: Vec<u32> = std::iter::from_fn(|| wheel.next(now)).map(|(place, _)| place).collect();
        places.sort_unstable();
        places
    }

    #[test]
    fn a_place_comes_up_at_its_tick_and_not_before() {
        let mut wheel = Wheel::new(u32::MAX - 3, SPAN);
        assert_eq!(wheel.enter(1, 2), 2, "ticks wrap");
        assert_eq!(wheel.enter(2, u32::MAX), u32::MAX);
        assert_eq!(wheel.enter(3, 5), 5);
        assert_eq!(due(&mut wheel, u32::MAX - 1), [0u32; 0]);
        assert_eq!(due(&mut wheel, u32::MAX), [2]);
        assert_eq!(due(&mut wheel, 3), [1]);
        assert_eq!(due(&mut wheel, 4), [0u32; 0]);
        assert_eq!(due(&mut wheel, 700), [3]);
    }

    #[test]
    fn what_is_far_ahead_or_past_comes_up_at_the_end_of_the_span_or_at_once() {
        let mut wheel = Wheel::new(100, SPAN);
        assert_eq!(wheel.enter(1, 100_000), 100 + SPAN);
        assert_eq!(wheel.enter(2, 5), 101);
        assert_eq!(due(&mut wheel, 101), [2]);
        assert_eq!(due(&mut wheel, 100 + SPAN), [1]);
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut wheel = Wheel::new(0, SPAN);
        (1..=SPAN).for_each(|tick| {
            wheel.enter(tick, tick);
        });
        assert_eq!(due(&mut wheel, 1_000_000).len(), SPAN as usize);
    }
}
