//! Packets that come in at another worker than that of their slot: one worker receives them all and hands them over to
//! the other, which owns every session and sends them on. The clocks are those of both together.
//!
//! In a [`Pair`] one thread polls both in turn, so that nothing else differs from a worker that receives its own packets.
//! [`Apart`] each has a thread and a core of its own, and what is handed over moves from one core's cache to the other's;
//! there, sweeps that found nothing to do are not counted.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
        mpsc::channel,
    },
    time::{Duration, Instant},
};

use starnet::{
    dataplane::{graph::NODES, handoff},
    limits::HANDOFF_RING,
};

use crate::{Spent, case::Case, nodes, pin, world::World};

/// The two workers.
pub(crate) struct Pair {
    receiver: World,
    owner: World,
}

impl Pair {
    pub(crate) fn new(case: Case) -> Self {
        let case = Case { workers: 2, ..case };
        let mut worlds =
            handoff::mesh(2).into_iter().enumerate().map(|(index, handoff)| World::new(case, index, handoff));
        let (Some(mut receiver), Some(owner)) = (worlds.next(), worlds.next()) else { unreachable!("a mesh of two") };
        receiver.owner = 1;
        Self { receiver, owner }
    }

    pub(crate) fn run(&mut self, duration: Duration) -> Spent {
        let mut spent = Spent::default();
        let until = Instant::now() + duration;
        while Instant::now() < until {
            self.chunk(&mut spent);
        }
        spent
    }

    /// Prepares a chunk of packets, then takes it through both workers, timed.
    fn chunk(&mut self, spent: &mut Spent) {
        self.receiver.prepare();
        let (received, sent) = self.receiver.chunk();
        let clock = quanta::Clock::new();
        let worlds = [&mut self.receiver, &mut self.owner];
        let before = worlds.map(|world| (nodes(world), world.worker.driver().passed));
        let until = before[1].1.sent + sent;
        self.receiver.worker.driver().rewind();
        let start = clock.raw();
        while !self.receiver.worker.driver().is_drained() || self.owner.worker.driver().passed.sent < until {
            let now = clock.delta_as_nanos(0, clock.raw());
            self.receiver.worker.sweep(now);
            assert!(self.owner.worker.sweep(now).has_packets, "packets were dropped");
        }
        spent.clocks += clock.raw() - start;

        spent.received += received;
        spent.sent += sent;
        spent.nodes.resize(NODES.len(), (0, 0));
        for (world, (nodes_before, passed)) in [&mut self.receiver, &mut self.owner].into_iter().zip(before) {
            let after = world.worker.driver().passed;
            spent.rx += after.rx_clocks - passed.rx_clocks;
            spent.tx += after.tx_clocks - passed.tx_clocks;
            for ((sum, after), before) in spent.nodes.iter_mut().zip(nodes(world)).zip(nodes_before) {
                sum.0 += after.0 - before.0;
                sum.1 += after.1 - before.1;
            }
        }
    }
}

/// The receiver, and what it sees of the owner.
pub(crate) struct Apart {
    receiver: World,
    owner: Arc<Owner>,
}

/// What the owner's thread tells.
#[derive(Default)]
struct Owner {
    sent: AtomicU64,
    clocks: AtomicU64,
}

impl Apart {
    /// The owner's thread ends with the process.
    pub(crate) fn new(case: Case) -> Self {
        let case = Case { workers: 2, ..case };
        let mut mesh = handoff::mesh(2);
        let owner = Arc::new(Owner::default());
        let (ready, is_ready) = channel();
        let (shared, handoff) = (Arc::clone(&owner), mesh.remove(1));
        std::thread::spawn(move || {
            pin(1);
            let mut world = World::new(case, 1, handoff);
            ready.send(()).expect("it is waited for");
            shared.serve(&mut world);
        });
        is_ready.recv().expect("the owner starts");
        pin(0);
        let mut receiver = World::new(case, 0, mesh.remove(0));
        receiver.owner = 1;
        receiver.worker.driver().in_flight_max = HANDOFF_RING as u64;
        Self { receiver, owner }
    }

    pub(crate) fn run(&mut self, duration: Duration) -> Spent {
        let mut spent = Spent { nodes: vec![(0, 0); NODES.len()], ..Spent::default() };
        let until = Instant::now() + duration;
        while Instant::now() < until {
            self.chunk(&mut spent);
        }
        spent
    }

    fn chunk(&mut self, spent: &mut Spent) {
        self.receiver.prepare();
        let (received, sent) = self.receiver.chunk();
        let clock = quanta::Clock::new();
        let (until, clocks) = (self.owner.sent.load(Acquire) + sent, self.owner.clocks.load(Acquire));
        self.receiver.worker.driver().rewind();
        loop {
            let sent_by_now = self.owner.sent.load(Acquire);
            if sent_by_now == until {
                break;
            }
            // The ring is never fuller than it can be: no packet is dropped.
            self.receiver.worker.driver().passed.sent = sent_by_now;
            let start = clock.raw();
            let sweep = self.receiver.worker.sweep(clock.delta_as_nanos(0, start));
            spent.clocks += if sweep.has_packets { clock.raw() - start } else { 0 };
        }
        spent.clocks += self.owner.clocks.load(Acquire) - clocks;
        spent.received += received;
        spent.sent += sent;
    }
}

impl Owner {
    fn serve(&self, world: &mut World) {
        let clock = quanta::Clock::new();
        let mut clocks = 0;
        loop {
            let start = clock.raw();
            if world.worker.sweep(clock.delta_as_nanos(0, start)).has_packets {
                clocks += clock.raw() - start;
                self.clocks.store(clocks, Release);
                self.sent.store(world.worker.driver().passed.sent, Release);
            }
        }
    }
}
