//! Can anything stall a worker? Residence of established flows at a steady load, while the control core's thread does its
//! worst.
//!
//! Packets fall due at a fixed rate; residence is from then until the driver is given them, so a worker that comes late is
//! seen. Quiet slices and others take turns. For contrast the design that this one replaces: one table under a lock, which
//! the ageing thread holds while it scans.

use std::{
    fmt::Write,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
        mpsc::{Receiver, Sender, channel},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use starnet::dataplane::{
    command::{Command, Event},
    graph::NODES,
    handoff,
    published::Published,
    worker::Worker,
};

use crate::{
    case::Case,
    replay::Replay,
    world::{World, generation, relay_slot},
};

/// Sessions whose packets come; the rest of the table is what is written, aged and listed.
const ACTIVE: u32 = 1 << 20;

/// Short enough that the kernel does not take the core from a real-time thread.
const SLICE: Duration = Duration::from_millis(300);
const REST: Duration = Duration::from_millis(60);

const STOP: Duration = Duration::from_millis(100);

/// What goes on beside the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Quiet,
    Stopped,
    Writes,
    Ageing,
    Listing,
    Scraping,
    LockWhole,
    LockPieces,
}

const ALL: [(Beside, &str); 8] = [
    (Beside::Quiet, "quiet"),
    (Beside::Stopped, "control core stopped 100 ms again and again"),
    (Beside::Writes, "100,000 conntrack writes a second"),
    (Beside::Ageing, "4 M slots scanned a second, 10,000 expire"),
    (Beside::Listing, "1 M sessions listed"),
    (Beside::Scraping, "all counters scraped"),
    (Beside::LockWhole, "one table under a lock, scanned at once"),
    (Beside::LockPieces, "one table under a lock, scanned by 4,096"),
];

/// The thread beside the worker's.
struct Control {
    published: Arc<Published>,
    commands: rtrb::Producer<Command>,
    events: rtrb::Consumer<Event>,
    lock: Arc<Mutex<()>>,
    sessions: u32,
    next: u32,
}

/// Rounds of one slice of each kind; `packets_a_second` of load. Prints one line of JSON.
pub(crate) fn run(case: Case, rounds: usize, packets_a_second: u64) {
    let mut world = World::new(case, 0, handoff::mesh(1).remove(0));
    world.active = ACTIVE.min(case.sessions / 2);
    world.prepare();
    let first = world.active;
    let World { mut worker, published, commands, events, .. } = world;
    worker.driver().pace(packets_a_second);
    let lock = Arc::new(Mutex::new(()));
    let mut control =
        Control { published, commands, events, lock: Arc::clone(&lock), sessions: case.sessions, next: first };

    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let (orders, ordered) = channel::<(Beside, Arc<AtomicBool>)>();
    let (report, reports) = channel();
    let core = cores.last().copied();
    std::thread::spawn(move || {
        core.map(core_affinity::set_for_current);
        work(&mut worker, &ordered, &report, &lock);
    });
    cores.first().copied().map(core_affinity::set_for_current);
    let mut lines = Vec::new();
    for round in 0..=rounds {
        let mut slices = serde_json::Map::new();
        for (beside, name) in ALL {
            let is_over = Arc::new(AtomicBool::new(false));
            orders.send((beside, Arc::clone(&is_over))).expect("the worker waits");
            control.disturb(beside, &is_over, first);
            let seen: Histogram<u64> = reports.recv().expect("the worker reports");
            let at = |quantile| seen.value_at_quantile(quantile);
            let values = serde_json::json!({"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": seen.max()});
            slices.insert(name.into(), values);
            control.settle(&orders, &reports);
            sleep(REST);
        }
        // The first round warms up.
        if round > 0 {
            lines.push(slices);
        }
    }
    println!("{}", serde_json::json!({ "rounds": lines }));
}

/// One slice after another.
fn work(
    worker: &mut Worker<Replay>,
    orders: &Receiver<(Beside, Arc<AtomicBool>)>,
    report: &Sender<Histogram<u64>>,
    lock: &Mutex<()>,
) {
    let clock = quanta::Clock::new();
    for (beside, is_over) in orders {
        worker.driver().begin_slice();
        let until = Instant::now() + SLICE;
        let is_locked = matches!(beside, Beside::LockWhole | Beside::LockPieces);
        let mut sweeps = 0u64;
        while !sweeps.is_multiple_of(64) || Instant::now() < until {
            sweeps += 1;
            let _held = is_locked.then(|| lock.lock().expect("nobody panics"));
            worker.sweep(clock.delta_as_nanos(0, clock.raw()));
        }
        is_over.store(true, Release);
        if report.send(worker.driver().end_slice()).is_err() {
            return;
        }
    }
}

impl Control {
    /// Until the slice is over.
    fn disturb(&mut self, beside: Beside, is_over: &AtomicBool, first: u32) {
        let mut scanned = 0;
        while !is_over.load(Acquire) {
            match beside {
                Beside::Quiet => sleep(Duration::from_millis(1)),
                Beside::Stopped => {
                    // What has piled up meanwhile comes at once.
                    while self.events.pop().is_ok() {}
                    (0..2048).for_each(|_| self.rewrite(first));
                    sleep(STOP);
                }
                Beside::Writes => {
                    (0..100).for_each(|_| self.rewrite(first));
                    sleep(Duration::from_millis(1));
                }
                Beside::Ageing => {
                    while self.events.pop().is_ok() {}
                    scanned = self.scan(scanned, self.sessions as usize / 100);
                    (0..100).for_each(|_| self.expire(first));
                    sleep(Duration::from_millis(10));
                }
                Beside::Listing => {
                    std::hint::black_box(self.list(is_over));
                }
                Beside::Scraping => {
                    std::hint::black_box(self.scrape());
                    sleep(Duration::from_millis(100));
                }
                Beside::LockWhole => {
                    let lock = Arc::clone(&self.lock);
                    let held = lock.lock().expect("nobody panics");
                    self.scan(0, self.sessions as usize);
                    drop(held);
                    sleep(Duration::from_millis(100));
                }
                Beside::LockPieces => {
                    let lock = Arc::clone(&self.lock);
                    let held = lock.lock().expect("nobody panics");
                    scanned = self.scan(scanned, 4096);
                    drop(held);
                    std::hint::spin_loop();
                }
            }
        }
    }

    /// The slot after the last one, of those without packets.
    fn slot(&mut self, first: u32) -> u32 {
        self.next = if self.next + 1 < self.sessions { self.next + 1 } else { first };
        self.next
    }

    fn rewrite(&mut self, first: u32) {
        let slot = self.slot(first);
        let _ = self.commands.push(relay_slot(slot));
    }

    fn expire(&mut self, first: u32) {
        let slot = self.slot(first);
        let _ = self.commands.push(Command::FreeSlot { slot, generation: generation(slot), idle_since: None });
        let _ = self.commands.push(relay_slot(slot));
    }

    /// Reads `count` stamps as ageing does; returns where to go on.
    fn scan(&self, from: usize, count: usize) -> usize {
        let stamps = &self.published.slots;
        let idle = (0..count).filter(|at| {
            let stamp = &stamps[(from + at) % stamps.count()];
            stamp.last_seen.load(Relaxed) == u32::MAX && stamp.packets.load(Relaxed) > 0
        });
        std::hint::black_box(idle.count());
        (from + count) % stamps.count()
    }

    /// As `show sessions`: a line of JSON a session.
    fn list(&self, is_over: &AtomicBool) -> usize {
        let mut text = String::new();
        for (slot, stamp) in self.published.slots.iter().take(ACTIVE as usize).enumerate() {
            let (seen, packets, bytes) =
                (stamp.last_seen.load(Relaxed), stamp.packets.load(Relaxed), stamp.bytes.load(Relaxed));
            let session = format!("{slot:08x}");
            let view = serde_json::json!({"session": session, "role": "relay", "state": "open", "ct_index": slot,
                "idle_ms": seen, "packets": packets, "bytes": bytes});
            write!(text, "{view}").expect("memory takes it");
            if slot % 1024 == 0 && is_over.load(Relaxed) {
                break;
            }
        }
        text.len()
    }

    /// Every counter of every node of the graph, as text.
    fn scrape(&self) -> usize {
        let mut text = String::new();
        for (node, counters) in NODES.iter().zip(self.published.nodes.iter()) {
            for counter in counters.next.iter().chain(&counters.drops) {
                writeln!(text, "starnet_packets{{node=\"{}\"}} {}", node.name, counter.load(Relaxed))
                    .expect("memory takes it");
            }
        }
        text.len()
    }

    /// Lets the worker apply what is left of the commands, so that the next slice begins without.
    fn settle(&mut self, orders: &Sender<(Beside, Arc<AtomicBool>)>, reports: &Receiver<Histogram<u64>>) {
        while self.commands.slots() < self.commands.buffer().capacity() {
            while self.events.pop().is_ok() {}
            orders.send((Beside::Quiet, Arc::default())).expect("the worker waits");
            let _ = reports.recv();
        }
        while self.events.pop().is_ok() {}
    }
}
