//! The packet path in memory, one pinned worker, clocks a packet.
//!
//! `perf/cases/memory` starts this, interleaves its runs with those of the yardstick, and says what the figures mean.
//! Arguments: a case (`relay sessions=1000000 size=64`), see [`case`]. Each line `run MILLISECONDS` on standard input is
//! answered by one line of JSON. `packets=N` as the first argument takes N packets through once, for `valgrind`.

mod case;
mod replay;
mod world;

use std::{
    io::{BufRead, Write},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use case::Case;
use starnet::dataplane::graph::NODES;
use world::World;

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
    // `cargo bench` adds `--bench`.
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let once = arguments.first().and_then(|first| first.strip_prefix("packets=")).map(str::to_owned);
    if once.is_some() {
        arguments.remove(0);
    }
    let case = match Case::parse(&arguments) {
        Ok(case) => case,
        Err(problem) => {
            eprintln!("memory: {problem}");
            std::process::exit(2);
        }
    };
    let mut world = World::new(case);
    if let Some(packets) = once {
        let packets: u64 = packets.parse().expect("packets=N is a number");
        let mut spent = Spent::default();
        while spent.received < packets {
            chunk(&mut world, &mut spent);
        }
        return println!("{}", report(&spent));
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Some(milliseconds) = line.strip_prefix("run ").and_then(|n| n.parse().ok()) else {
            eprintln!("memory: '{line}' is not 'run MILLISECONDS'");
            std::process::exit(2);
        };
        println!("{}", report(&run(&mut world, Duration::from_millis(milliseconds))));
        std::io::stdout().flush().expect("standard output is open");
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

fn report(spent: &Spent) -> String {
    let nodes: serde_json::Map<_, _> = NODES
        .iter()
        .zip(&spent.nodes)
        .filter(|(_, (packets, _))| *packets > 0)
        .map(|(node, (packets, clocks))| (node.name.into(), serde_json::json!([packets, clocks])))
        .collect();
    serde_json::json!({
        "received": spent.received, "sent": spent.sent, "clocks": spent.clocks, "rx": spent.rx, "tx": spent.tx, "nodes": nodes,
    })
    .to_string()
}
