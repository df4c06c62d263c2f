//! Can anything stall a worker? Residence of established flows at a steady load, while the control core's thread does its
//! worst.
//!
//! Packets fall due at a fixed rate; residence is from then until the driver is given them, so a worker that comes late is
//! seen. Quiet slices and others take turns ([`tails`](crate::tails)). Two kinds are controls of the method: nothing is done
//! in one, and in the other the control core's processor is busy with nothing. For contrast the design that this one replaces: one table under a lock, which
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
    thread::{Thread, park_timeout, sleep},
    time::Duration,
};

use hdrhistogram::Histogram;
use starnet::{
    control::page::ROWS_MAX,
    dataplane::{
        command::{Command, Event},
        graph::NODES,
        handoff,
        published::Published,
        worker::Worker,
    },
};

use crate::{
    case::Case,
    replay::Replay,
    tails::{Kind, Tails, WARM_UP, measure},
    world::{World, generation, relay_slot},
};

/// Sessions whose packets come; the rest of the table is what is written, aged and listed.
const ACTIVE: u32 = 1 << 20;

/// Of what comes again and again within milliseconds, and of a scan of the whole table.
const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_millis(110);

/// In most of it nothing happens, as in a quiet slice. A slice is its last part, and what comes then.
const STOP: Duration = Duration::from_millis(100);
const STOP_SEEN: Duration = Duration::from_millis(10);

/// What the control core's thread does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Spinning,
    Stopped,
    Writes,
    Ageing,
    Listing,
    Scraping,
    LockWhole,
    LockPieces,
}

const fn kind(name: &'static str, length: Duration, every: usize) -> Kind {
    Kind { name, length, every }
}

const ALL: [(Beside, Kind); 9] = [
    (Beside::Nothing, kind("control: quiet, once more", SHORT, 1)),
    (Beside::Spinning, kind("control: the other core spins", SHORT, 1)),
    (Beside::Stopped, kind("control core stopped 100 ms again and again", SHORT, 1)),
    (Beside::Writes, kind("100,000 conntrack writes a second", SHORT, 1)),
    (Beside::Ageing, kind("4 M slots scanned a second, 10,000 expire", SHORT, 1)),
    (Beside::Listing, kind("1 M sessions listed", SHORT, 1)),
    (Beside::Scraping, kind("all counters scraped", SHORT, 1)),
    // For contrast, and so far off that a few will do.
    (Beside::LockWhole, kind("one table under a lock, scanned at once", LONG, 16)),
    (Beside::LockPieces, kind("one table under a lock, scanned by 4,096", SHORT, 16)),
];

/// What the worker's thread is told.
struct Order {
    beside: Beside,
    length: Duration,
    is_over: Arc<AtomicBool>,
}

/// The thread beside the worker's.
struct Control {
    published: Arc<Published>,
    commands: rtrb::Producer<Command>,
    events: rtrb::Consumer<Event>,
    lock: Arc<Mutex<()>>,
    sessions: u32,
    /// Sessions from this one on have no packets.
    first: u32,
    /// The last one of these that was written.
    written: u32,
    /// Where the scan and the listing go on.
    scanned: usize,
    listed: usize,
}

/// So many rounds, under a load of `packets_a_second`. Prints one line of JSON.
pub(crate) fn run(case: Case, rounds: usize, packets_a_second: u64) {
    let mut world = World::new(case, 0, handoff::mesh(1).remove(0));
    world.active = ACTIVE.min(case.sessions / 2);
    world.prepare();
    let first = world.active;
    let World { mut worker, published, commands, events, .. } = world;
    worker.driver().pace(packets_a_second);
    let lock = Arc::new(Mutex::new(()));
    let mut control = Control {
        published,
        commands,
        events,
        lock: Arc::clone(&lock),
        sessions: case.sessions,
        first,
        written: first,
        scanned: 0,
        listed: 0,
    };

    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let (orders, ordered) = channel();
    let (report, reports) = channel();
    let (core, beside) = (cores.last().copied(), std::thread::current());
    std::thread::spawn(move || {
        core.map(core_affinity::set_for_current);
        work(&mut worker, &ordered, &report, &lock, &beside);
    });
    cores.first().copied().map(core_affinity::set_for_current);
    let mut tails = Tails::new(ALL.map(|(_, kind)| kind));
    for round in 0..=rounds {
        tails.round(round, |slice| {
            let beside = slice.kind.map_or(Beside::Nothing, |place| ALL[place].0);
            let times = control.slice(beside, slice.length, &orders, &reports);
            control.settle(&orders, &reports);
            sleep(slice.rest());
            times
        });
    }
    println!("{}", serde_json::json!({ "rounds": rounds, "tails": tails.report() }));
}

/// One slice after another.
fn work(
    worker: &mut Worker<Replay>,
    orders: &Receiver<Order>,
    report: &Sender<Histogram<u64>>,
    lock: &Mutex<()>,
    beside: &Thread,
) {
    for Order { beside: what, length, is_over } in orders {
        let is_locked = matches!(what, Beside::LockWhole | Beside::LockPieces);
        let times = measure(worker, length, || is_locked.then(|| lock.lock().expect("nobody panics")));
        is_over.store(true, Release);
        beside.unpark();
        if report.send(times).is_err() {
            return;
        }
    }
}

impl Control {
    /// Does it until the slice is over; the times that packets took.
    fn slice(
        &mut self,
        beside: Beside,
        length: Duration,
        orders: &Sender<Order>,
        reports: &Receiver<Histogram<u64>>,
    ) -> Histogram<u64> {
        if beside == Beside::Stopped {
            sleep(STOP - STOP_SEEN);
        }
        let is_over = Arc::new(AtomicBool::new(false));
        orders.send(Order { beside, length, is_over: Arc::clone(&is_over) }).expect("the worker waits");
        if beside == Beside::Stopped {
            park_timeout(STOP_SEEN);
        }
        while !is_over.load(Acquire) {
            let pause = self.disturb(beside);
            if !pause.is_zero() {
                park_timeout(pause);
            }
        }
        reports.recv().expect("the worker reports")
    }

    /// Once; returns for how long to pause then.
    fn disturb(&mut self, beside: Beside) -> Duration {
        match beside {
            Beside::Nothing => LONG,
            Beside::Spinning => {
                (0..1000).for_each(|_| std::hint::spin_loop());
                Duration::ZERO
            }
            Beside::Stopped => {
                // What has piled up meanwhile comes at once.
                while self.events.pop().is_ok() {}
                (0..2048).for_each(|_| self.rewrite());
                STOP
            }
            Beside::Writes => {
                (0..100).for_each(|_| self.rewrite());
                Duration::from_millis(1)
            }
            Beside::Ageing => {
                while self.events.pop().is_ok() {}
                self.scan(self.sessions as usize / 100);
                (0..100).for_each(|_| self.expire());
                Duration::from_millis(10)
            }
            Beside::Listing => {
                std::hint::black_box(self.list());
                Duration::ZERO
            }
            Beside::Scraping => {
                std::hint::black_box(self.scrape());
                LONG
            }
            Beside::LockWhole => {
                let lock = Arc::clone(&self.lock);
                let _held = lock.lock().expect("nobody panics");
                self.scan(self.sessions as usize);
                STOP
            }
            Beside::LockPieces => {
                let lock = Arc::clone(&self.lock);
                let held = lock.lock().expect("nobody panics");
                self.scan(4096);
                drop(held);
                std::hint::spin_loop();
                Duration::ZERO
            }
        }
    }

    /// The slot after the last one, of those without packets.
    fn slot(&mut self) -> u32 {
        self.written = if self.written + 1 < self.sessions { self.written + 1 } else { self.first };
        self.written
    }

    fn rewrite(&mut self) {
        let slot = self.slot();
        let _ = self.commands.push(relay_slot(slot));
    }

    fn expire(&mut self) {
        let slot = self.slot();
        let _ = self.commands.push(Command::FreeSlot { slot, generation: generation(slot), idle_since: None });
        let _ = self.commands.push(relay_slot(slot));
    }

    /// Reads the next `count` stamps as ageing does.
    fn scan(&mut self, count: usize) {
        let stamps = &self.published.slots;
        let idle = (0..count).filter(|at| {
            let stamp = &stamps[(self.scanned + at) % stamps.count()];
            stamp.last_seen.load(Relaxed) == u32::MAX && stamp.packets.load(Relaxed) > 0
        });
        std::hint::black_box(idle.count());
        self.scanned = (self.scanned + count) % stamps.count();
    }

    /// The next page as of `show sessions`: a line of JSON a session.
    fn list(&mut self) -> String {
        let mut text = String::new();
        for (slot, stamp) in self.published.slots.iter().enumerate().skip(self.listed).take(ROWS_MAX) {
            let (seen, packets, bytes) =
                (stamp.last_seen.load(Relaxed), stamp.packets.load(Relaxed), stamp.bytes.load(Relaxed));
            let session = format!("{slot:08x}");
            let view = serde_json::json!({"session": session, "role": "relay", "state": "open", "ct_index": slot,
                "idle_ms": seen, "packets": packets, "bytes": bytes});
            write!(text, "{view}").expect("memory takes it");
        }
        self.listed = (self.listed + ROWS_MAX) % ACTIVE as usize;
        text
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
    fn settle(&mut self, orders: &Sender<Order>, reports: &Receiver<Histogram<u64>>) {
        while self.commands.slots() < self.commands.buffer().capacity() {
            while self.events.pop().is_ok() {}
            self.slice(Beside::Nothing, WARM_UP, orders, reports);
        }
        while self.events.pop().is_ok() {}
    }
}
