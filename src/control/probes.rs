//! How good the links to the neighbours are, from probes that the workers send and answer.
//!
//! Ten a second to each neighbour; figures are over the last [`WINDOW`] of them, so over ten seconds. A probe that
//! is not answered within a second is lost; its answer does not count when it comes later. Until the first answer
//! nothing is known of the link: the neighbour may not have heard of us yet, and then drops our probes.

use std::collections::VecDeque;

use crate::{MILLISECOND, Nanos, SECOND, rpc::messages::LinkQuality};

/// Time between two probes to a neighbour.
pub(super) const INTERVAL: Nanos = 100 * MILLISECOND;

/// After this a probe is lost.
const TIME_OUT: Nanos = SECOND;

/// Probes that the figures are from.
const WINDOW: usize = 100;

/// The probes to one neighbour.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// When the next one is due.
    next: Nanos,
    /// Sent and not answered: number, time of sending.
    pending: VecDeque<(u64, Nanos)>,
    /// Round trips in nanoseconds, `None` for a lost probe; oldest first.
    outcomes: VecDeque<Option<Nanos>>,
    /// The neighbour has answered before.
    has_answered: bool,
}

impl Probes {
    /// The first one is due at `first`.
    pub(super) fn new(first: Nanos) -> Self {
        Self { next: first, ..Self::default() }
    }

    /// True where a probe is due. After a pause only one is, not all that were missed.
    pub(super) fn is_due(&self, now: Nanos) -> bool {
        now >= self.next
    }

    /// A probe with this number is on its way (or was left out: `None`).
    pub(super) fn sent(&mut self, sequence: Option<u64>, now: Nanos) {
        self.next = if now < self.next + INTERVAL { self.next + INTERVAL } else { now + INTERVAL };
        self.pending.extend(sequence.map(|sequence| (sequence, now)));
    }

    /// The answer to probe `sequence` came after `round_trip`. One that is not awaited is ignored.
    pub(super) fn answered(&mut self, sequence: u64, round_trip: Nanos) {
        if let Some(at) = self.pending.iter().position(|(pending, _)| *pending == sequence) {
            self.pending.remove(at);
            if !std::mem::replace(&mut self.has_answered, true) {
                self.pending.drain(..at);
            }
            self.finish((round_trip <= TIME_OUT).then_some(round_trip));
        }
    }

    /// Gives up the probes that have waited too long.
    pub(super) fn expire(&mut self, now: Nanos) {
        while self.pending.front().is_some_and(|(_, sent)| now.saturating_sub(*sent) > TIME_OUT) {
            self.pending.pop_front();
            if self.has_answered {
                self.finish(None);
            }
        }
    }

    /// What the window says.
    pub(super) fn quality(&self) -> LinkQuality {
        let answered: Vec<Nanos> = self.outcomes.iter().flatten().copied().collect();
        let total = self.outcomes.len();
        if total == 0 {
            return LinkQuality::default();
        }
        let differences: Nanos = answered.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
        let jitter = differences / (answered.len().saturating_sub(1)).max(1) as u64;
        let mut sorted = answered;
        sorted.sort_unstable();
        // The smallest value that at least this share of the round trips does not exceed.
        let quantile = |percent: usize| match sorted.len() {
            0 => 0,
            n => sorted[(n * percent).div_ceil(100) - 1],
        };
        LinkQuality {
            probes: total as u32,
            rtt_min_us: microseconds(sorted.first().copied().unwrap_or(0)),
            rtt_p50_us: microseconds(quantile(50)),
            rtt_p99_us: microseconds(quantile(99)),
            jitter_us: microseconds(jitter),
            loss: (total - sorted.len()) as f32 / total as f32,
        }
    }

    fn finish(&mut self, outcome: Option<Nanos>) {
        if self.outcomes.len() == WINDOW {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(outcome);
    }
}

fn microseconds(time: Nanos) -> u32 {
    u32::try_from(time / 1000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_last_hundred_probes() {
        let mut probes = Probes::new(0);
        for n in 0..250u64 {
            probes.sent(Some(n), n * INTERVAL);
            // The first 150 are slow and must be forgotten; then 1 ms to 100 ms in turn.
            let round_trip = if n < 150 { 900 } else { n - 149 };
            probes.answered(n, round_trip * MILLISECOND);
        }
        assert_eq!(
            probes.quality(),
            LinkQuality {
                probes: 100,
                rtt_min_us: 1000,
                rtt_p50_us: 50_000,
                rtt_p99_us: 99_000,
                jitter_us: 1000,
                loss: 0.0
            }
        );
    }

    #[test]
    fn a_probe_is_lost_after_a_second_and_its_late_answer_is_ignored() {
        let mut probes = Probes::new(0);
        for n in 0..4 {
            probes.sent(Some(n), 0);
        }
        probes.answered(0, MILLISECOND);
        probes.answered(0, MILLISECOND);
        probes.expire(SECOND);
        assert_eq!(probes.quality().probes, 1);
        probes.expire(SECOND + 1);
        probes.answered(2, SECOND + 2);
        let quality = probes.quality();
        assert_eq!((quality.probes, quality.loss), (4, 0.75));
        assert_eq!((quality.rtt_min_us, quality.rtt_p99_us, quality.jitter_us), (1000, 1000, 0));
    }

    #[test]
    fn probes_to_a_neighbour_that_has_not_heard_of_us_yet_are_not_losses() {
        let mut probes = Probes::new(0);
        for n in 0..20 {
            probes.sent(Some(n), n * INTERVAL);
            probes.expire(n * INTERVAL);
        }
        assert_eq!(probes.quality(), LinkQuality::default());
        probes.answered(19, MILLISECOND);
        probes.expire(10 * SECOND);
        assert_eq!((probes.quality().probes, probes.quality().loss), (1, 0.0));
    }

    #[test]
    fn nothing_is_known_before_the_first_outcome() {
        let mut probes = Probes::new(5);
        assert!(!probes.is_due(4) && probes.is_due(5));
        probes.sent(Some(1), 5);
        assert_eq!(probes.quality(), LinkQuality::default());
    }

    #[test]
    fn probes_keep_their_rhythm_and_do_not_burst_after_a_pause() {
        let mut probes = Probes::new(0);
        probes.sent(Some(0), 30 * MILLISECOND);
        assert!(probes.is_due(INTERVAL), "the rhythm is that of the plan, not of late ticks");
        probes.sent(Some(1), 10 * SECOND);
        assert!(!probes.is_due(10 * SECOND + INTERVAL - 1) && probes.is_due(10 * SECOND + INTERVAL));
    }
}
