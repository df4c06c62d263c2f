//! A worker: its tables, and the loop that takes packets through the graph.
//!
//! One [`Worker::sweep`] is: apply commands, receive, visit each node of the [graph](super::graph) that packets come to, in
//! order, transmit; what can wait until the packets have left comes after that.
//! The order matters at one place: commands come first, so that a packet that was sent because a session is
//! set up always finds it. Nothing in a sweep waits, locks or allocates.

mod commands;
mod entering;

use std::sync::{
    Arc,
    atomic::Ordering::{self, Relaxed},
};

use super::{
    command::{Command, Event, PuntCause},
    context::Context,
    driver::{Driver, Received, Transmit},
    express::Express,
    fan::Fan,
    forwarding::{Forwarding, Identity},
    graph::{NODE_COUNT, NodeId},
    handoff::{HandedOver, Handoff},
    huge::{HugeArray, Memory, huge_pages_for},
    nat::{Bindings, Hosts6, NatConfig, established::Established, flow_cache::FlowCache, held_syns::HeldSyns, token},
    node_keys::NodeKeys,
    nodes::{icmp_error, relay_input::Claims},
    outer::Unsigned,
    packet::{Bitmap, Packet},
    pending::Pending,
    published::{Published, Stamp, add},
    reason::Reason,
    reassembly::Reassembly,
    route_cache::RouteCache,
    slots::{SLOT_BYTES, Slots},
    tick::Tick,
    waiting::Waiting,
};
use crate::{Nanos, limits::PACKET_SLOTS, telemetry::histogram::Histograms};

/// What a worker is told at its start.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its number.
    pub index: usize,
    /// The node's addresses and keys.
    pub identity: Identity,
    /// Fans: sessions this worker can be entry or exit of.
    pub fans: u32,
    /// NAT bindings.
    pub bindings: u32,
    /// How the NAT behaves.
    pub nat: NatConfig,
    /// Secret key of the binding table's hash.
    pub hash_key: [u8; 16],
    /// Times the nodes of the graph; `now` of a sweep is handed in.
    pub clock: quanta::Clock,
}

/// Huge pages that the tables of a worker take where they can; `nat` and the sizes as in [`WorkerConfig`].
pub fn huge_pages(slots: u32, fans: u32, bindings: u32, nat: &NatConfig) -> usize {
    huge_pages_for(slots as usize * SLOT_BYTES)
        + huge_pages_for(fans as usize * size_of::<Fan>())
        + Bindings::huge_pages(bindings, nat.filtering, nat.outside(1).numbers().count())
        + FlowCache::huge_pages(bindings)
        + Hosts6::huge_pages(hosts6(bindings, nat))
        + huge_pages_for(bindings as usize * size_of::<Stamp>())
        + huge_pages_for(bindings as usize)
}

/// Inside hosts of IPv6 that a worker has room for.
fn hosts6(bindings: u32, nat: &NatConfig) -> u32 {
    if nat.has_ip6() { bindings.min(token::HOSTS_MAX) } else { 0 }
}

/// The worker's ends of its rings.
pub struct Rings {
    /// From the control core.
    pub commands: rtrb::Consumer<Command>,
    /// To the control core.
    pub events: rtrb::Producer<Event>,
    /// From and to the other workers.
    pub handoff: Handoff,
}

/// What a sweep did: the loop around it decides by this whether to sleep and whom to wake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// True where packets were taken through the graph.
    pub has_packets: bool,
    /// Commands applied.
    pub commands: usize,
    /// True where the control core has something to read.
    pub has_events: bool,
    /// Workers that were handed packets, one bit each.
    pub handed_to: u64,
}

impl Sweep {
    /// True where there was nothing to do.
    pub fn is_idle(&self) -> bool {
        !self.has_packets && self.commands == 0
    }
}

/// A worker over a driver.
pub struct Worker<D: Driver> {
    context: Context,
    driver: D,
    commands: rtrb::Consumer<Command>,
    from_workers: Vec<Option<rtrb::Consumer<HandedOver>>>,
    /// Whose ring is read first.
    from_first: usize,
    clock: quanta::Clock,
    tick: Tick,
    tick_ends: Nanos,
    histograms: Box<Histograms>,
    received: Box<[Received; PACKET_SLOTS]>,
    transmit: Box<[Transmit; PACKET_SLOTS]>,
    /// Packets that may begin in a sweep: each may become as many as the most paths that a session here has or had.
    begin_max: usize,
    /// Nodes are counted and timed.
    is_watched: bool,
    /// Nodes that this sweep visited: their packets and clocks, written down when the packets have left.
    visited: Vec<(NodeId, usize, u64)>,
}

impl<D: Driver> Worker<D> {
    /// Allocates everything the worker will ever need.
    pub fn new(config: WorkerConfig, driver: D, rings: Rings, published: Arc<Published>) -> Self {
        let no_cause = PuntCause::NoAdjacency { interface: 0, next_hop: std::net::Ipv4Addr::UNSPECIFIED.into() };
        let context = Context {
            now: 0,
            tick: 0,
            index: config.index,
            identity: config.identity,
            express: Express::new(&config.identity),
            packets: Box::new([Packet::EMPTY; PACKET_SLOTS]),
            punts: Box::new([no_cause; PACKET_SLOTS]),
            slots: Slots::own(published.slots.clone()),
            fans: HugeArray::new(config.fans as usize, &Fan::unused()),
            node_keys: NodeKeys::new(&config.hash_key),
            bindings: Bindings::new(
                config.bindings,
                config.nat.filtering,
                config.nat.outside(config.identity.workers),
                config.hash_key,
            ),
            established: Established::new(FlowCache::new(config.bindings, config.hash_key)),
            hosts6: Hosts6::new(hosts6(config.bindings, &config.nat), config.hash_key),
            nat64: config.nat.nat64,
            is_endpoint_dependent: config.nat.is_endpoint_dependent,
            is_refreshed_from_outside: config.nat.timers.is_refreshed_from_outside,
            routes: RouteCache::new(Box::<Forwarding>::default()),
            published,
            reassembly: Reassembly::new(config.hash_key),
            held_syns: HeldSyns::new(),
            waiting: Waiting::new(),
            events: rings.events,
            handoff: rings.handoff.to,
            handed_to: 0,
            identification: config.index as u16,
            icmp_budget: icmp_error::budget(config.nat.tick),
            free: Bitmap::FULL,
            pending: Pending::default(),
            spare: Vec::with_capacity(PACKET_SLOTS),
            finished: Vec::with_capacity(PACKET_SLOTS * 2),
            unsigned: Box::new(Unsigned::new()),
            claims: Box::new(Claims::new()),
        };
        Self {
            context,
            driver,
            commands: rings.commands,
            from_workers: rings.handoff.from,
            from_first: 0,
            clock: config.clock,
            tick: config.nat.tick,
            tick_ends: 0,
            histograms: Box::default(),
            received: Box::new([Received::default(); PACKET_SLOTS]),
            transmit: Box::new([Transmit::default(); PACKET_SLOTS]),
            begin_max: PACKET_SLOTS,
            is_watched: true,
            visited: Vec::with_capacity(NODE_COUNT),
        }
    }

    /// The driver.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// The memory of each of its tables.
    pub fn memory(&self) -> impl Iterator<Item = Memory> {
        let Context { fans, bindings, established, hosts6, published, .. } = &self.context;
        let tables = std::iter::once(fans.memory())
            .chain(bindings.memory())
            .chain(established.flows.memory())
            .chain(hosts6.memory());
        tables.chain(published.memory())
    }

    /// Whether nodes are counted and timed. A node always has it on; off, a benchmark shows what it costs.
    pub fn set_watched(&mut self, is_watched: bool) {
        self.is_watched = is_watched;
    }

    /// The worker's tables.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Takes all that has come in through the graph. `now` must not run backwards.
    pub fn sweep(&mut self, now: Nanos) -> Sweep {
        self.begin(now);
        let commands = self.apply_commands();
        self.answer_held_syns();
        self.release_fragments();
        // Half of the room first: what others are flooded with must not keep out what comes in here, nor the reverse.
        self.from_first = self.after(self.from_first);
        let is_handed_some = self.take_handed_over(self.room() / 2);
        self.receive();
        if is_handed_some {
            self.take_handed_over(0);
        }
        let has_packets = !self.context.pending.is_empty();
        if has_packets {
            self.visit_nodes();
        }
        self.end(has_packets);
        let has_events = self.context.events.slots() < self.context.events.buffer().capacity();
        Sweep { has_packets, commands, has_events, handed_to: std::mem::take(&mut self.context.handed_to) }
    }

    fn begin(&mut self, now: Nanos) {
        if now >= self.tick_ends {
            self.context.tick = self.tick.at(now);
            self.tick_ends = self.tick.end(now);
            self.context.icmp_budget = icmp_error::budget(self.tick);
            let below = self.driver.statistics();
            let shown = &self.context.published.worker;
            shown.kernel_rx_dropped.store(below.rx_dropped, Relaxed);
            shown.kernel_fill_empty.store(below.fill_empty, Relaxed);
            self.context.reassembly.expire(now);
        }
        self.context.now = now;
        while self.context.spare.len() < PACKET_SLOTS {
            match self.driver.allocate() {
                Some(frame) => self.context.spare.push(frame),
                None => break,
            }
        }
    }

    /// How many packets may still begin in this sweep. Each needs room for its copies: a sweep of sessions with
    /// three paths takes a third of the packets of one that only relays.
    fn room(&self) -> usize {
        self.begin_max.saturating_sub(self.begun())
    }

    /// How many packets are in the graph. That there is none, as in most sweeps, is seen without counting.
    fn begun(&self) -> usize {
        if self.context.free == Bitmap::FULL { 0 } else { PACKET_SLOTS - self.context.free.count() }
    }

    fn receive(&mut self) {
        let room = self.room();
        let count = self.driver.receive(&mut self.received[..room]);
        if count == 0 {
            return;
        }
        let slots = self.context.free.take_lowest(count);
        let (now, packets) = (self.context.now, &mut self.context.packets);
        let mut bytes = 0;
        let mut received = self.received[..count].iter();
        slots.for_each(|slot| {
            let received = received.next().expect("no more are received than there are free slots");
            packets[slot] = Packet::received(received, now);
            bytes += u64::from(received.length);
        });
        self.context.pending.insert_all(NodeId::EthernetInput, slots, count);
        add(&self.context.published.worker.received, count as u64);
        add(&self.context.published.worker.received_bytes, bytes);
    }

    /// Every node once, in order, that packets come to; `tx` is the last.
    fn visit_nodes(&mut self) {
        let received = self.clock.raw();
        let mut before = received;
        while let Some((node, batch, count)) = self.context.pending.take_first() {
            let after = match node.id {
                NodeId::Tx => self.transmit(batch, count, received),
                _ => {
                    (node.process)(&mut self.context, self.driver.frames(), batch);
                    if self.is_watched { self.clock.raw() } else { before }
                }
            };
            self.visited.push((node.id, count, after.saturating_sub(before)));
            before = after;
        }
        for at in 0..self.visited.len() {
            let (node, packets, clocks) = self.visited[at];
            if self.is_watched {
                self.record(node, packets, clocks);
            }
        }
        self.visited.clear();
    }

    fn record(&mut self, node: NodeId, packets: usize, clocks: u64) {
        let counters = &self.context.published.nodes[node as usize];
        let packets = packets as u64;
        add(&counters.packets, packets);
        add(&counters.batches, 1);
        add(&counters.clocks, clocks);
        let nanos = self.clock.delta_as_nanos(0, clocks);
        self.histograms.nodes[node as usize].saturating_record_n(nanos / packets, packets);
    }

    /// Sends a batch of `count` that came in when the clock said `received`; returns what it says when the driver has it.
    fn transmit(&mut self, batch: Bitmap, count: usize, received: u64) -> u64 {
        let (now, packets) = (self.context.now, &self.context.packets);
        let (mut place, mut bytes, mut late) = (0, 0, Bitmap::default());
        batch.for_each(|slot| {
            let Packet { frame, offset, length, interface, received, has_waited, .. } = packets[slot];
            self.transmit[place % PACKET_SLOTS] = Transmit { frame, offset, length, interface };
            place += 1;
            bytes += u64::from(length);
            if received != now || has_waited {
                late.insert(slot);
            }
        });
        let mut refused = Bitmap::default();
        self.driver.transmit(&self.transmit[..count], &mut refused);
        self.driver.flush();
        let after = self.clock.raw();
        let (mut sent, mut count) = (batch, count);
        if !refused.is_empty() {
            // The places in `refused` found a ring full; their packets are still ours.
            for (_, slot) in batch.enumerate().filter(|(place, _)| refused.contains(*place)) {
                sent.remove(slot);
                count -= 1;
                late.remove(slot);
                bytes -= u64::from(self.context.packets[slot].length);
                self.context.leave(slot, NodeId::Tx, super::graph::Verdict::Drop(Reason::TxFull));
            }
        }
        self.record_residence(count, late, self.clock.delta_as_nanos(received, after));
        self.context.free.insert_all(sent);
        add(&self.context.published.worker.sent, count as u64);
        add(&self.context.published.worker.sent_bytes, bytes);
        after
    }

    /// Of `sent` packets all but those in `late` came in with this sweep, so that they stayed equally long: they are
    /// recorded together.
    fn record_residence(&mut self, sent: usize, late: Bitmap, in_sweep: Nanos) {
        let fresh = if late.is_empty() { sent } else { sent - late.count() } as u64;
        if fresh > 0 {
            self.histograms.residence.saturating_record_n(in_sweep, fresh);
        }
        late.for_each(|slot| {
            let packet = &self.context.packets[slot];
            let residence = self.context.now.saturating_sub(packet.received) + in_sweep;
            let histogram =
                if packet.has_waited { &mut self.histograms.waited } else { &mut self.histograms.residence };
            histogram.saturating_record(residence);
        });
    }

    fn end(&mut self, has_packets: bool) {
        for frame in self.context.finished.drain(..) {
            self.driver.release(frame);
        }
        self.driver.replenish();
        let shown = &self.context.published.worker;
        shown.waiting.store(self.context.waiting.count() as u64, Relaxed);
        add(&shown.sweeps, 1);
        add(&shown.busy_sweeps, has_packets.into());
        self.check_conservation();
    }

    /// Every slot is free again, and every packet that began has ended in exactly one way.
    fn check_conservation(&self) {
        assert!(self.context.free == Bitmap::FULL, "a packet was left in the graph");
        let shown = &self.context.published.worker;
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let began = get(&shown.received) + get(&shown.injected);
        let ended = get(&shown.sent)
            + get(&shown.dropped)
            + get(&shown.consumed)
            + get(&shown.punted)
            + get(&shown.held)
            + get(&shown.handed_off);
        assert!(began == ended, "packets were lost or made: {began} began, {ended} ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{driver::memory::MemoryDriver, handoff, nat::Filtering, testing::*},
        limits::PATHS_MAX,
    };

    #[test]
    fn the_huge_pages_a_worker_takes_are_known_before_it_is_made() {
        let identity = identity(1);
        let nat = NatConfig { filtering: Filtering::AddressDependent, ..NatConfig::of(&identity) };
        let [slots, fans, bindings] = [70_000, 3_000, 50_000];
        let clock = quanta::Clock::mock().0;
        let config = WorkerConfig { index: 0, identity, fans, bindings, nat: nat.clone(), hash_key: [0; 16], clock };
        let (_, commands) = rtrb::RingBuffer::new(1);
        let (events, _) = rtrb::RingBuffer::new(1);
        let rings = Rings { commands, events, handoff: handoff::mesh(1).remove(0) };
        let published = Arc::new(Published::new(slots as usize, bindings as usize));
        let worker = Worker::new(config, MemoryDriver::new(PACKET_SLOTS as u32 * 2), rings, published);
        let taken: usize = worker.memory().map(|memory| huge_pages_for(memory.bytes)).sum();
        assert_eq!(taken, huge_pages(slots, fans, bindings, &nat));
    }

    #[test]
    fn a_full_transmit_ring_drops_the_newest_and_keeps_every_frame() {
        let mut bench = Bench::new();
        bench.relay();
        let before = bench.worker.driver().free_frames();
        bench.worker.driver().limit_transmit(3);
        let burst: Vec<_> = (1..=10).map(|n| Relayed::up(1, n, vec![]).frame()).collect();
        assert_eq!(bench.run(&burst).len(), 3);
        assert_eq!(bench.moved(), [("tx.drop.tx_full".to_owned(), 7)]);
        assert_eq!(bench.worker.driver().free_frames(), before);
    }

    #[test]
    fn every_copy_of_a_full_burst_finds_a_slot() {
        let mut bench = Bench::new();
        bench.entry(PATHS_MAX as u8);
        for n in 1..=300 {
            bench.worker.driver().put(0, &Relayed::from_client(n, vec![0; 100]).frame());
        }
        let mut sent = bench.run(&[]).len();
        for _ in 0..20 {
            sent += bench.sweep().len();
        }
        assert_eq!(bench.moved(), []);
        assert_eq!(sent, 300 * PATHS_MAX);
    }
}
