//! The packet path in memory, one pinned worker, clocks a packet.
//!
//! `perf/cases/memory` starts this, interleaves its runs with those of the yardstick, and says what the figures mean.
//! Arguments: a case (`relay sessions=1000000 size=64`), see [`case`]. Each line `run MILLISECONDS` on standard input is
//! answered by one line of JSON. `packets=N` as the first argument takes N packets through once, for `valgrind` (with `burst=0` it is N
//! sweeps that find none); `stall=ROUNDS`,
//! `new` and `listing=ROUNDS` as the first argument are what `perf/cases/stall` starts ([`stall`], [`flows`], [`listing`]);
//! `setup=SESSIONS,CLIENTS` is all of [`setup`], `tags=ROUNDS` of [`tags`].

mod case;
mod flows;
mod handover;
mod listing;
mod replay;
mod setup;
mod stall;
mod tags;
mod tails;
mod world;

use std::{
    io::{BufRead, Write},
    sync::{
        OnceLock,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use case::Case;
use starnet::dataplane::{
    graph::NODES,
    handoff::{self, Handoff},
};
use world::World;

/// Packets a second of established flows: some tenth of what a worker can do.
const STEADY_LOAD: u64 = 500_000;

/// What was spent in timed chunks.
#[derive(Default)]
struct Spent {
    received: u64,
    sent: u64,
    clocks: u64,
    rx: u64,
    tx: u64,
    nodes: Vec<(u64, u64)>,
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(rounds) = arguments.first().and_then(|first| first.strip_prefix("tags=")) {
        return tags::run(rounds.parse().unwrap_or_else(|_| fail("tags=ROUNDS is a number")));
    }
    if let Some(setup) = arguments.first().and_then(|first| first.strip_prefix("setup=")) {
        let numbers =
            setup.split_once(',').and_then(|(sessions, clients)| Some((sessions.parse().ok()?, clients.parse().ok()?)));
        let (sessions, clients) = numbers.unwrap_or_else(|| fail("setup=SESSIONS,CLIENTS are numbers"));
        return setup::run(sessions, clients);
    }
    let rounds = arguments.first().and_then(|first| first.strip_prefix("stall=")).map(str::to_owned);
    let is_new = arguments.first().is_some_and(|first| first == "new");
    if rounds.is_some() || is_new {
        arguments.remove(0);
    }
    let listing = arguments.first().and_then(|first| first.strip_prefix("listing=")).map(str::to_owned);
    if listing.is_some() {
        arguments.remove(0);
    }
    let once = arguments.first().and_then(|first| first.strip_prefix("packets=")).map(str::to_owned);
    if once.is_some() {
        arguments.remove(0);
    }
    let case = match Case::parse(&arguments) {
        Ok(case) => case,
        Err(problem) => fail(&problem),
    };
    if let Some(rounds) = rounds {
        let rounds = rounds.parse().unwrap_or_else(|_| fail("stall=ROUNDS is a number"));
        return stall::run(case, rounds, STEADY_LOAD);
    }
    if let Some(rounds) = listing {
        let rounds = rounds.parse().unwrap_or_else(|_| fail("listing=ROUNDS is a number"));
        return listing::run(Case { is_bound: false, ..case }, rounds, STEADY_LOAD);
    }
    if is_new {
        return flows::run(Case { is_bound: false, ..case });
    }
    if let Some(packets) = once {
        let packets: u64 = packets.parse().unwrap_or_else(|_| fail("packets=N is a number"));
        let mut world = World::new(case, 0, handoff::mesh(1).remove(0));
        let mut spent = Spent::default();
        if case.burst == 0 {
            return (0..packets).for_each(|now| assert!(world.worker.sweep(now).is_idle()));
        }
        while spent.received < packets {
            chunk(&mut world, &mut spent);
        }
        return println!("{}", report(&[spent]));
    }
    if case.handed == 1 {
        let mut pair = handover::Pair::new(case);
        return serve(|duration| vec![pair.run(duration)]);
    }
    if case.handed == 2 {
        let mut apart = handover::Apart::new(case);
        return serve(|duration| vec![apart.run(duration)]);
    }
    let mesh = handoff::mesh(usize::from(case.workers));
    let workers: Vec<_> =
        mesh.into_iter().enumerate().map(|(index, handoff)| Thread::start(case, index, handoff)).collect();
    workers.iter().for_each(|worker| assert!(worker.spent.recv().is_ok(), "a worker did not start"));
    serve(|duration| {
        workers.iter().for_each(|worker| worker.run.send(duration).expect("it waits"));
        workers.iter().map(|worker| worker.spent.recv().expect("it ran")).collect()
    });
}

/// Answers each line `run MILLISECONDS` with what was spent.
fn serve(mut run: impl FnMut(Duration) -> Vec<Spent>) {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Some(milliseconds) = line.strip_prefix("run ").and_then(|n| n.parse().ok()) else {
            fail(&format!("'{line}' is not 'run MILLISECONDS'"))
        };
        println!("{}", report(&run(Duration::from_millis(milliseconds))));
        std::io::stdout().flush().expect("standard output is open");
    }
}

fn fail(problem: &str) -> ! {
    eprintln!("memory: {problem}");
    std::process::exit(2);
}

/// Keeps this thread to the last but `index` of the cores that the process may use.
fn pin(index: usize) {
    let cores = cores();
    cores.len().checked_sub(index + 1).map(|place| core_affinity::set_for_current(cores[place]));
}

/// The cores that the process may use. A pinned thread sees its own only, so they are asked for once.
fn cores() -> &'static [core_affinity::CoreId] {
    static CORES: OnceLock<Vec<core_affinity::CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default())
}

/// A worker in a thread of its own: it answers once when it is ready, and then each run.
struct Thread {
    run: Sender<Duration>,
    spent: Receiver<Spent>,
}

impl Thread {
    /// Worker number `index` on the last but `index` of the cores that this process may use.
    fn start(case: Case, index: usize, handoff: Handoff) -> Self {
        let (run, runs) = channel::<Duration>();
        let (report, spent) = channel();
        std::thread::spawn(move || {
            pin(index);
            let mut world = World::new(case, index, handoff);
            warm_up(&mut world, case);
            report.send(Spent::default()).expect("main waits");
            for duration in runs {
                report.send(self::run(&mut world, duration)).expect("main waits");
            }
        });
        Self { run, spent }
    }
}

/// Nearly every flow has a packet, so that what is measured is not its first one.
fn warm_up(world: &mut World, case: Case) {
    let clock = quanta::Clock::new();
    let flows = if case.path.has_bindings() { u64::from(case.flows) } else { 0 };
    for _ in 0..flows / world.chunk().1 {
        world.prepare_in_order();
        world.worker.driver().rewind();
        while !world.worker.driver().is_drained() {
            world.worker.sweep(clock.delta_as_nanos(0, clock.raw()));
        }
    }
}

fn run(world: &mut World, duration: Duration) -> Spent {
    let mut spent = Spent::default();
    let until = Instant::now() + duration;
    while Instant::now() < until {
        chunk(world, &mut spent);
    }
    spent
}

/// Prepares a chunk of packets, then takes it through the worker as its thread would, timed.
fn chunk(world: &mut World, spent: &mut Spent) {
    world.prepare();
    let clock = quanta::Clock::new();
    let before = nodes(world);
    let passed = world.worker.driver().passed;
    world.worker.driver().rewind();
    let start = clock.raw();
    while !world.worker.driver().is_drained() {
        let now = clock.delta_as_nanos(0, clock.raw());
        world.worker.sweep(now);
    }
    spent.clocks += clock.raw() - start;

    let after = world.worker.driver().passed;
    let (received, sent) = world.chunk();
    assert_eq!(after.sent - passed.sent, sent, "packets were dropped");
    spent.received += received;
    spent.sent += sent;
    spent.rx += after.rx_clocks - passed.rx_clocks;
    spent.tx += after.tx_clocks - passed.tx_clocks;
    spent.nodes.resize(NODES.len(), (0, 0));
    for ((sum, after), before) in spent.nodes.iter_mut().zip(nodes(world)).zip(before) {
        sum.0 += after.0 - before.0;
        sum.1 += after.1 - before.1;
    }
}

/// Packets and clocks of each node so far.
fn nodes(world: &World) -> Vec<(u64, u64)> {
    let counters = &world.published.nodes[..NODES.len()];
    counters.iter().map(|node| (node.packets.load(Relaxed), node.clocks.load(Relaxed))).collect()
}

/// The sums over all workers, and each one's packets and nanoseconds.
fn report(workers: &[Spent]) -> String {
    let clock = quanta::Clock::new();
    let sum = |of: fn(&Spent) -> u64| workers.iter().map(of).sum::<u64>();
    let node =
        |at: usize| workers.iter().fold((0, 0), |sum, spent| (sum.0 + spent.nodes[at].0, sum.1 + spent.nodes[at].1));
    let nodes: serde_json::Map<_, _> = NODES
        .iter()
        .enumerate()
        .map(|(at, node_of)| (node_of.name, node(at)))
        .filter(|(_, (packets, _))| *packets > 0)
        .map(|(name, (packets, clocks))| (name.into(), serde_json::json!([packets, clocks])))
        .collect();
    let each: Vec<_> = workers
        .iter()
        .map(|spent| serde_json::json!({"received": spent.received, "nanos": clock.delta_as_nanos(0, spent.clocks)}))
        .collect();
    serde_json::json!({
        "received": sum(|spent| spent.received), "sent": sum(|spent| spent.sent), "clocks": sum(|spent| spent.clocks),
        "rx": sum(|spent| spent.rx), "tx": sum(|spent| spent.tx), "nodes": nodes, "workers": each,
    })
    .to_string()
}
