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
}

impl Histograms {
    /// Empty ones, 1 ns to 10 s, two significant digits. All the memory they will ever need.
    pub fn new() -> Self {
        let empty = || Histogram::new_with_bounds(1, 10_000_000_000, 2).expect("the bounds are constants");
        Self { nodes: (0..NODES_MAX).map(|_| empty()).collect(), residence: empty(), waited: empty() }
    }

    /// Adds what `other` recorded.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.nodes.iter_mut().zip(&other.nodes) {
            mine.add(theirs).expect("the bounds are the same");
        }
        self.residence.add(&other.residence).expect("the bounds are the same");
        self.waited.add(&other.waited).expect("the bounds are the same");
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.nodes.iter_mut().for_each(Histogram::reset);
        self.residence.reset();
        self.waited.reset();
    }
}

impl Default for Histograms {
    fn default() -> Self {
        Self::new()
    }
}
