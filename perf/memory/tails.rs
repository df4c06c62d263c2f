//! What goes on beside the packets, and what it does to their tail, told from what the machine's neighbours do.
//!
//! Those come and go within seconds and cost more than anything looked for here. So kinds of disturbance take turns in blocks
//! of four slices of some tens of milliseconds: quiet, disturbed, disturbed, quiet, and the reverse in every other round. A kind
//! is compared to the quiet slices of its own blocks, in two ways. All slices together give p99.9 and its ratio, which a few
//! long pauses of the machine decide; the median of the blocks' ratios does not know them, and does not know what a disturbance
//! does in less than half of the blocks. Intervals are bootstraps over the blocks: how far the ratio would scatter if blocks
//! like these were drawn again. A kind in which nothing is done shows what the method makes of nothing.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use starnet::dataplane::worker::Worker;

use crate::replay::Replay;

const TAIL: f64 = 0.999;

/// How often blocks are drawn for the interval, of which 95 in 100 are within.
const DRAWS: usize = 400;
const OUTSIDE: f64 = 0.025;

/// Before a slice: caches fill, what is left of commands is applied.
pub(crate) const WARM_UP: Duration = Duration::from_millis(2);

/// After a slice: the kernel takes the core from a real-time thread that never pauses.
const REST: f64 = 0.2;

/// One slice to be run.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    /// A place in the kinds; `None`: quiet.
    pub(crate) kind: Option<usize>,
    pub(crate) length: Duration,
}

impl Slice {
    /// To be kept after it.
    pub(crate) fn rest(&self) -> Duration {
        self.length.mul_f64(REST)
    }
}

/// Packets go through `worker` for so long, after a warm-up; the times that they took. What `enter` returns is kept during a
/// sweep.
pub(crate) fn measure<T>(worker: &mut Worker<Replay>, length: Duration, enter: impl Fn() -> T) -> Histogram<u64> {
    let clock = quanta::Clock::new();
    for length in [WARM_UP, length] {
        worker.driver().begin_slice();
        let until = Instant::now() + length;
        let mut sweeps = 0u64;
        while !sweeps.is_multiple_of(64) || Instant::now() < until {
            sweeps += 1;
            let _entered = enter();
            worker.sweep(clock.delta_as_nanos(0, clock.raw()));
        }
    }
    worker.driver().end_slice()
}

/// A kind of disturbance.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Of a slice: what it does is to be in each.
    pub(crate) length: Duration,
    /// It takes its turn in one of so many rounds.
    pub(crate) every: usize,
}

/// Times, and how often each was seen.
type Counts = Vec<(u64, u64)>;

/// What was seen in one.
struct Block {
    quiet: Counts,
    disturbed: Counts,
}

/// The kinds, and the blocks of each.
pub(crate) struct Tails(Vec<(Kind, Vec<Block>)>);

impl Tails {
    pub(crate) fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self(kinds.into_iter().map(|kind| (kind, Vec::new())).collect())
    }

    /// A block of each kind whose turn it is: `run` runs a slice and returns the times of its packets. Round 0 warms up and
    /// does not count.
    pub(crate) fn round(&mut self, number: usize, mut run: impl FnMut(Slice) -> Histogram<u64>) {
        for (place, (kind, blocks)) in self.0.iter_mut().enumerate() {
            if !number.is_multiple_of(kind.every) {
                continue;
            }
            let mut slice =
                |is_disturbed: bool| run(Slice { kind: is_disturbed.then_some(place), length: kind.length });
            let is_reverse = (number / kind.every).is_multiple_of(2);
            let mut outer = slice(is_reverse);
            let mut inner = slice(!is_reverse);
            inner.add(slice(!is_reverse)).expect("they have the same bounds");
            outer.add(slice(is_reverse)).expect("they have the same bounds");
            let (quiet, disturbed) = if is_reverse { (inner, outer) } else { (outer, inner) };
            if number > 0 {
                blocks.push(Block { quiet: counts(&quiet), disturbed: counts(&disturbed) });
            }
        }
    }

    /// By name, of all quiet slices and of each kind: quantiles in nanoseconds and how many packets. Of a kind also p99.9 of its
    /// own quiet slices, the ratio to that, the median of the blocks' ratios, and the interval of either.
    pub(crate) fn report(&self) -> Map<String, Value> {
        let all = Series::new(self.0.iter().flat_map(|(_, blocks)| blocks).map(|block| &block.quiet));
        let mut report = Map::from_iter([("quiet".to_owned(), all.view())]);
        for (kind, blocks) in self.0.iter().filter(|(_, blocks)| !blocks.is_empty()) {
            let quiet = Series::new(blocks.iter().map(|block| &block.quiet));
            let disturbed = Series::new(blocks.iter().map(|block| &block.disturbed));
            let tail = |series: &Series, draw: &[u64]| series.quantile(draw, TAIL) as f64;
            let ratio = |draw: &[u64]| tail(&disturbed, draw) / tail(&quiet, draw);
            let once = vec![1; blocks.len()];
            let alone = |block: usize| (0..blocks.len()).map(|at| u64::from(at == block)).collect::<Vec<_>>();
            let ratios: Vec<_> = (0..blocks.len()).map(|block| ratio(&alone(block))).collect();
            let mut random = Random(1);
            let draws: Vec<_> = (0..DRAWS).map(|_| random.draw(blocks.len())).collect();

            let mut view = disturbed.view();
            view["quiet"] = tail(&quiet, &once).into();
            view["ratio"] = ratio(&once).into();
            view["interval"] = interval(draws.iter().map(|draw| ratio(draw)));
            view["median"] = median(&ratios, &once).into();
            view["median_interval"] = interval(draws.iter().map(|draw| median(&ratios, draw)));
            report.insert(kind.name.to_owned(), view);
        }
        report
    }
}

fn counts(times: &Histogram<u64>) -> Counts {
    times.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value())).collect()
}

/// The values, each taken so many times.
fn median(values: &[f64], draw: &[u64]) -> f64 {
    let mut drawn: Vec<_> =
        values.iter().zip(draw).flat_map(|(value, times)| std::iter::repeat_n(*value, *times as usize)).collect();
    drawn.sort_unstable_by(f64::total_cmp);
    (drawn[(drawn.len() - 1) / 2] + drawn[drawn.len() / 2]) / 2.0
}

fn interval(drawn: impl Iterator<Item = f64>) -> Value {
    let mut drawn: Vec<_> = drawn.collect();
    drawn.sort_unstable_by(f64::total_cmp);
    let bound = |share: f64| drawn[((drawn.len() - 1) as f64 * share).round() as usize];
    json!([bound(OUTSIDE), bound(1.0 - OUTSIDE)])
}

/// One side of the blocks of a kind.
struct Series {
    /// All that were seen, in order.
    times: Vec<u64>,
    /// By block: a place in `times`, and how often.
    blocks: Vec<Vec<(usize, u64)>>,
}

impl Series {
    fn new<'a>(blocks: impl Iterator<Item = &'a Counts> + Clone) -> Self {
        let mut times: Vec<_> = blocks.clone().flatten().map(|(time, _)| *time).collect();
        times.sort_unstable();
        times.dedup();
        let place = |time: &u64| times.binary_search(time).expect("it is one of them");
        let blocks = blocks.map(|counts| counts.iter().map(|(time, count)| (place(time), *count)).collect()).collect();
        Self { times, blocks }
    }

    fn view(&self) -> Value {
        let once = vec![1; self.blocks.len()];
        let at = |share| self.quantile(&once, share);
        let packets: u64 = self.blocks.iter().flatten().map(|(_, count)| count).sum();
        json!({"blocks": self.blocks.len(), "packets": packets, "p50": at(0.5), "p99": at(0.99), "p999": at(TAIL), "max": at(1.0)})
    }

    /// The time that so large a share of the packets did not exceed, each block taken so many times.
    fn quantile(&self, draw: &[u64], share: f64) -> u64 {
        let mut sums = vec![0; self.times.len()];
        for (block, times) in self.blocks.iter().zip(draw).filter(|(_, times)| **times > 0) {
            for (place, count) in block {
                sums[*place] += count * times;
            }
        }
        let wanted = (sums.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut so_far = 0;
        let place = sums.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        });
        self.times[place.expect("it is no more than all")]
    }
}

/// SplitMix64: the same draws for the same figures.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `count` draws of so many blocks: how often each was drawn.
    fn draw(&mut self, count: usize) -> Vec<u64> {
        let mut times = vec![0; count];
        (0..count).for_each(|_| times[(self.next() % count as u64) as usize] += 1);
        times
    }
}
