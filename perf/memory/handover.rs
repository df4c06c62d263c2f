//! Packets that come in at another worker than that of their slot: one worker receives them all and hands them over to
//! the other, which owns every session and sends them on. One thread polls both in turn, so the clocks are those of both
//! together; what it costs to move a packet's lines from one core's cache to another's is not in them.

use std::time::{Duration, Instant};

use starnet::dataplane::{graph::NODES, handoff};

use crate::{Spent, case::Case, nodes, world::World};

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
            assert!(self.owner.worker.sweep(now).packets > 0, "packets were dropped");
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
