//! What `starnet show nat` costs everyone else, with a million bindings: how long a page of each view holds the control core,
//! and what it does meanwhile to the residence of packets whose flows are known, and to new flows.
//!
//! As in a node, the control core answers one page, then takes what the worker's events ask for. To write the answer as
//! text is another thread's work, and not in here.

use std::{
    hint::black_box,
    sync::atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use starnet::{
    Nanos,
    control::{
        Control,
        page::{Cursor, ROWS_MAX},
        show_nat::{NatAnswer, NatFilter, NatPart, NatQuestion},
    },
};

use crate::{
    case::Case,
    flows::NewFlows,
    tails::{Kind, Tails, measure},
};

const SLICE: Duration = Duration::from_millis(20);

/// Between two chunks of new flows.
const REST: Duration = Duration::from_millis(6);

/// Flows that are set up beside each kind, in chunks.
const CHUNKS: u32 = 8;

/// What is listed beside the packets. In the quiet one, and in its control, the control core only looks for events.
const ALL: [&str; 7] = [
    "quiet",
    "flows",
    "flows, none matches",
    "hosts",
    "hosts, none matches",
    "ports and summary",
    "control: quiet, once more",
];

/// Not a kind: the control core sleeps, for the kernel takes the core from a real-time thread that never does.
const RESTING: usize = usize::MAX;

/// What the control core is to list, and how long its pages took.
pub(crate) struct Listings {
    /// A place in [`ALL`].
    kind: AtomicUsize,
    /// Pages so far.
    pages: AtomicU64,
    after: Mutex<Option<Cursor>>,
    times: Mutex<[Vec<Duration>; ALL.len()]>,
}

impl Default for Listings {
    fn default() -> Self {
        Self { kind: AtomicUsize::new(0), pages: AtomicU64::new(0), after: Mutex::default(), times: Mutex::default() }
    }
}

impl Listings {
    fn begin(&self, kind: usize) {
        self.kind.store(kind, Release);
    }

    /// A page, if any is wanted.
    pub(crate) fn go_on(&self, control: &Control, now: Nanos) {
        let kind = self.kind.load(Acquire);
        if kind == RESTING {
            return sleep(Duration::from_millis(1));
        }
        let nobody = NatFilter { host: Some([192, 0, 2, 200].into()), ..NatFilter::default() };
        let (part, filter) = match kind {
            1 => (NatPart::Flows, NatFilter::default()),
            2 => (NatPart::Flows, nobody),
            3 => (NatPart::Hosts, NatFilter::default()),
            4 => (NatPart::Hosts, nobody),
            5 if self.pages.load(Relaxed).is_multiple_of(2) => (NatPart::Ports, NatFilter::default()),
            5 => (NatPart::Summary, NatFilter::default()),
            _ => return,
        };
        let mut after = self.after.lock().unwrap_or_else(PoisonError::into_inner);
        let question = NatQuestion { part, filter, after: *after, limit: ROWS_MAX };
        let start = Instant::now();
        let answer = black_box(control.answer_nat(&question, now));
        let time = start.elapsed();
        *after = match &answer {
            NatAnswer::Flows(page) => page.next,
            NatAnswer::Hosts(page) => page.next,
            NatAnswer::Summary(_) | NatAnswer::Ports(_) => None,
        };
        self.pages.fetch_add(1, Relaxed);
        self.times.lock().unwrap_or_else(PoisonError::into_inner)[kind].push(time);
    }
}

/// Sets up half of `case.flows` flows, then new ones and known ones in turns with nothing and with each listing beside
/// them. Prints one line of JSON.
pub(crate) fn run(case: Case, rounds: usize, packets_a_second: u64) {
    let mut flows = NewFlows::start(case);
    for _ in 0..flows.chunks_in_half() {
        flows.set_up();
    }
    let known = flows.chunks_in_half() * flows.world.chunk().0 as u32;

    let mut news = [(0, Duration::ZERO); ALL.len()];
    for _ in 0..CHUNKS {
        for (kind, sum) in news.iter_mut().enumerate() {
            flows.listings().begin(kind);
            let (count, time) = flows.set_up();
            flows.listings().begin(RESTING);
            *sum = (sum.0 + count, sum.1 + time);
            sleep(REST);
        }
    }

    flows.world.active = known;
    flows.world.prepare();
    flows.world.worker.driver().pace(packets_a_second);
    let mut tails = Tails::new(ALL[1..].iter().map(|name| Kind { name, length: SLICE, every: 1 }));
    for round in 0..=rounds {
        tails.round(round, |slice| {
            flows.listings().begin(slice.kind.map_or(0, |place| place + 1));
            let times = measure(&mut flows.world.worker, slice.length, || ());
            flows.listings().begin(RESTING);
            sleep(slice.rest());
            times
        });
    }

    let (_, _, listings) = flows.stop();
    let mut times = listings.times.lock().unwrap_or_else(PoisonError::into_inner);
    let pages: serde_json::Map<_, _> = ALL
        .iter()
        .zip(times.iter_mut())
        .filter(|(_, times)| !times.is_empty())
        .map(|(name, times)| {
            times.sort_unstable();
            let at = |part: usize| times[(times.len() - 1) * part / 1000].as_nanos() as u64;
            let values = serde_json::json!({"count": times.len(), "p50": at(500), "p99": at(990), "max": at(1000)});
            ((*name).into(), values)
        })
        .collect();
    let rate = |(count, time): (u64, Duration)| count as f64 / time.as_secs_f64();
    let news: serde_json::Map<_, _> =
        ALL.iter().zip(news).map(|(name, sum)| ((*name).into(), rate(sum).into())).collect();
    println!(
        "{}",
        serde_json::json!({ "rounds": rounds, "tails": tails.report(), "pages": pages, "new_flows_a_second": news })
    );
}
