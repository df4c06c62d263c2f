//! Latency histograms of a worker: one a graph node, one of residence from rx to tx.

use hdrhistogram::Histogram;

use crate::dataplane::published::NODES_MAX;

/// Nanoseconds; recorded by the worker that owns them, exchanged for empty ones by the control core.
#[derive(Debug, Clone)]
pub struct Histograms {
    /// Time per packet in each node of the graph.
    pub nodes: Vec<Histogram<u64>>,
    /// From the sweep that received a packet to the one that sent it.
    pub residence: Histogram<u64>,
    /// Of packets that waited for the control core: rx to tx, too.
    pub waited: Histogram<u64>,
    /// Of first packets of flows: from rx to when their binding was there.
    pub first_packet: Histogram<u64>,
}

impl Histograms {
    /// Empty ones, 1 ns to 10 s, two significant digits. All the memory they will ever need.
    pub fn new() -> Self {
        let empty = || Histogram::new_with_bounds(1, 10_000_000_000, 2).expect("the bounds are constants");
        let nodes = (0..NODES_MAX).map(|_| empty()).collect();
        Self { nodes, residence: empty(), waited: empty(), first_packet: empty() }
    }

    /// Adds what `other` recorded.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.all_mut().zip(other.all()) {
            // Most nodes of the graph see no packet for long times; adding nothing costs as much as adding much.
            if !theirs.is_empty() {
                mine.add(theirs).expect("the bounds are the same");
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.all_mut().filter(|histogram| !histogram.is_empty()).for_each(Histogram::reset);
    }

    fn all(&self) -> impl Iterator<Item = &Histogram<u64>> {
        self.nodes.iter().chain([&self.residence, &self.waited, &self.first_packet])
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Histogram<u64>> {
        self.nodes.iter_mut().chain([&mut self.residence, &mut self.waited, &mut self.first_packet])
    }
}

impl Default for Histograms {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_merged_once_and_cleared_away() {
        let (mut sum, mut part) = (Histograms::new(), Histograms::new());
        for round in 1..3 {
            part.nodes[3].record(100).unwrap();
            part.residence.record(200).unwrap();
            part.waited.record(300).unwrap();
            sum.merge(&part);
            part.clear();
            assert!(part.all().all(Histogram::is_empty));
            assert_eq!([&sum.nodes[3], &sum.residence, &sum.waited].map(|h| h.len()), [round; 3]);
        }
        assert_eq!(sum.all().map(Histogram::len).sum::<u64>(), 6);
    }
}
