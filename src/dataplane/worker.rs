//! A worker: its tables, and the loop that takes packets through the graph.
//!
//! One [`Worker::sweep`] is: apply commands, receive, visit every node of [`NODES`] once in order, transmit.
//! The order matters at one place: commands come first, so that a packet that was sent because a session is
//! set up always finds it. Nothing in a sweep waits, locks or allocates.

use std::sync::{
    Arc,
    atomic::Ordering::{self, Relaxed},
};

use super::{
    command::{Command, Event, PuntCause},
    conntrack::{FanReport, NO_BINDING, Role, Slot},
    context::Context,
    driver::{Driver, Received, Transmit},
    express::Express,
    fan::Fan,
    forwarding::{Forwarding, Identity},
    graph::{NODE_COUNT, NODES, NodeId},
    handoff::{self, HandedOver, Handoff},
    huge::{HugeArray, Memory, huge_pages_for},
    nat::{
        BindingInit, Bindings, Hosts6, NatConfig, ahead, established::Established, flow_cache::FlowCache,
        held_syns::HeldSyns, token,
    },
    node_keys::NodeKeys,
    nodes::{icmp_error, icmp6_error, probe, punt::RESERVED_FOR_ANSWERS, relay_input::Claims},
    outer::{self, Unsigned},
    packet::{Bitmap, Packet},
    published::{Published, Stamp, add},
    reason::Reason,
    reassembly::Reassembly,
    route_cache::RouteCache,
    slots::{SLOT_BYTES, Slots},
    tick::Tick,
    waiting::Waiting,
};
use crate::{
    Nanos,
    limits::{COMMANDS_A_SWEEP, FRAME_HEADROOM, PACKET_SLOTS},
    telemetry::histogram::Histograms,
    wire::{OVERLAY_BYTES, ethernet, icmp, icmp6, ip4, relay, write},
};

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
    /// Packets taken through the graph.
    pub packets: usize,
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
        self.packets == 0 && self.commands == 0
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
    histograms: Box<Histograms>,
    received: Box<[Received; PACKET_SLOTS]>,
    transmit: Box<[Transmit; PACKET_SLOTS]>,
    /// The most paths a session here has or had: each packet may become this many.
    width: usize,
    /// Nodes are counted and timed.
    is_watched: bool,
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
            pending: [Bitmap::default(); NODE_COUNT],
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
            histograms: Box::default(),
            received: Box::new([Received::default(); PACKET_SLOTS]),
            transmit: Box::new([Transmit::default(); PACKET_SLOTS]),
            width: 1,
            is_watched: true,
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
        self.from_first = (self.from_first + 1) % self.from_workers.len().max(1);
        self.take_handed_over(self.room() / 2);
        self.receive();
        self.take_handed_over(0);
        let packets = PACKET_SLOTS - self.context.free.count();
        if packets > 0 {
            let received = self.clock.raw();
            self.visit_nodes(received);
            self.transmit(received);
        }
        self.end(packets);
        let has_events = self.context.events.slots() < self.context.events.buffer().capacity();
        Sweep { packets, commands, has_events, handed_to: std::mem::take(&mut self.context.handed_to) }
    }

    fn begin(&mut self, now: Nanos) {
        let tick = self.tick.at(now);
        if tick != self.context.tick {
            self.context.icmp_budget = icmp_error::budget(self.tick);
            let below = self.driver.statistics();
            let shown = &self.context.published.worker;
            shown.kernel_rx_dropped.store(below.rx_dropped, Relaxed);
            shown.kernel_fill_empty.store(below.fill_empty, Relaxed);
            self.context.reassembly.expire(now);
        }
        self.context.now = now;
        self.context.tick = tick;
        while self.context.spare.len() < PACKET_SLOTS {
            match self.driver.allocate() {
                Some(frame) => self.context.spare.push(frame),
                None => break,
            }
        }
    }

    /// Bounded, so that a burst of commands does not hold packets up; stops early where an answer might not fit.
    fn apply_commands(&mut self) -> usize {
        if let Ok(next) = self.commands.read_chunk(self.commands.slots().min(COMMANDS_A_SWEEP)) {
            let (first, rest) = next.as_slices();
            ahead::new_flows(&self.context, self.driver.frames(), first.iter().chain(rest));
        }
        let mut applied = 0;
        while applied < COMMANDS_A_SWEEP
            && self.context.events.slots() > 1
            && self.room() > 0
            && let Ok(command) = self.commands.pop()
        {
            self.apply(command);
            applied += 1;
        }
        add(&self.context.published.worker.commands, applied as u64);
        applied
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::InitFan { fan, init, client_key } => {
                if let Some(fan) = self.context.fans.get_mut(fan as usize) {
                    *fan = Fan::new(init, client_key);
                }
            }
            Command::SetFanLink { fan, path, link } => {
                if let Some(fan) = self.context.fans.get_mut(fan as usize)
                    && fan.set_link(path, link)
                {
                    self.width = self.width.max(fan.width());
                }
            }
            Command::SetSlot { slot, generation, role, fan, up, down } => {
                self.set_slot(slot, Slot { generation, role, fan, up, down });
            }
            Command::SetNodeKey { number, key } => self.context.node_keys.set(number, &key),
            Command::FreeSlot { slot, generation, idle_since } => self.free_slot(slot, generation, idle_since),
            Command::SetBinding { index, binding } => self.set_binding(index, &binding),
            Command::SetBindingAndResume { index, binding, waiting } => {
                self.set_binding(index, &binding);
                self.resume(waiting, index);
            }
            Command::SetHost6 { place, address } => self.context.hosts6.set(place, address),
            Command::FreeBinding { index, idle_since } => {
                let stamp = self.context.published.bindings.get(index as usize);
                let is_kept = idle_since.is_some_and(|then| stamp.is_some_and(|s| s.last_seen.load(Relaxed) != then));
                if !is_kept {
                    self.context.established.flows.binding_changed(index, self.context.tick);
                    self.context.bindings.remove(index);
                }
                self.show_used();
                self.tell(if is_kept { Event::BindingKept { index } } else { Event::BindingFreed { index } });
            }
            Command::Resume { waiting } => self.resume(waiting, NO_BINDING),
            Command::Refuse { waiting, reason } => {
                if let Some((packet, _)) = self.context.waiting.take(waiting) {
                    match reason {
                        Reason::PortsExhausted | Reason::TableFull | Reason::HostLimit => self.prohibit(packet, reason),
                        Reason::Unresolved => self.host_unreachable(packet),
                        _ => self.end_waiting(packet, NodeId::Punt, reason),
                    }
                }
            }
            Command::SetForwarding(forwarding) => {
                self.context.established.flows.snapshot_changed(self.context.tick);
                let retired = self.context.routes.replace(forwarding);
                self.tell(Event::ForwardingRetired(retired));
            }
            Command::SetOutside(mut pool) => {
                // What went out to an address that is ours now, or came in to one that was, goes another way.
                self.context.established.flows.snapshot_changed(self.context.tick);
                self.context.bindings.set_outside(&mut pool);
                self.tell(Event::OutsideRetired(pool));
            }
            Command::SendProbe { peer, sequence } => self.send_probe(peer, sequence),
            Command::SwapHistograms(empty) => {
                let filled = std::mem::replace(&mut self.histograms, empty);
                self.tell(Event::Histograms(filled));
            }
            Command::ReadFan { slot, fan, request, mut report } => {
                let client = self
                    .context
                    .slots
                    .get(slot as usize)
                    .filter(|slot| slot.role == Role::Entry && slot.fan == fan)
                    .map(|slot| (slot.up.address, slot.up.port));
                if let Some(fan) = self.context.fans.get(fan as usize) {
                    *report = FanReport { client, ..fan.report() };
                }
                self.tell(Event::Fan { request, report });
            }
        }
    }

    fn set_slot(&mut self, slot: u32, mut new: Slot) {
        let Some(place) = self.context.slots.get_mut(slot as usize) else { return };
        let is_same = place.role != Role::Free && place.generation == new.generation;
        if is_same && place.up.port != 0 && new.up.port == 0 {
            // Rewritten in place: the client's address, which only this worker learns, stays.
            (new.up.address, new.up.port) = (place.up.address, place.up.port);
        }
        if place.role == Role::Free {
            add(&self.context.published.worker.slots_used, 1);
        }
        *place = new;
        if !is_same {
            self.context.published.slots[slot as usize].reset(self.context.tick);
        }
    }

    fn free_slot(&mut self, slot: u32, generation: u16, idle_since: Option<u32>) {
        if let Some(place) = self.context.slots.get_mut(slot as usize)
            && place.role != Role::Free
            && place.generation == generation
        {
            let last_seen = self.context.published.slots[slot as usize].last_seen.load(Relaxed);
            if idle_since.is_some_and(|then| then != last_seen) {
                return self.tell(Event::SlotKept { slot });
            }
            let used = &self.context.published.worker.slots_used;
            used.store(used.load(Relaxed) - 1, Relaxed);
            *place = Slot { generation, ..Slot::FREE };
        }
        self.tell(Event::SlotFreed { slot });
    }

    fn set_binding(&mut self, index: u32, binding: &BindingInit) {
        self.context.established.flows.binding_changed(index, self.context.tick);
        if self.context.bindings.insert(index, binding) {
            let class = self.context.bindings.get(index).map_or(0, |binding| binding.class() as u8);
            self.context.published.classes[index as usize].store(class, Relaxed);
            self.context.published.bindings[index as usize].reset(self.context.tick);
        }
        self.show_used();
    }

    /// The packet goes on; `binding` was made for it.
    fn resume(&mut self, waiting: u32, binding: u32) {
        if let Some((packet, node)) = self.context.waiting.take(waiting) {
            if node == NodeId::NatIn2out {
                let waited = self.context.now.saturating_sub(packet.received);
                self.histograms.first_packet.saturating_record(waited);
            }
            self.context.inject(Packet { binding, ..packet }, node).expect("apply_commands leaves room for one packet");
        }
    }

    fn send_probe(&mut self, peer: u16, sequence: u64) {
        let Some(&peer) = self.context.routes.forwarding().peers.get(usize::from(peer)) else { return };
        if !peer.is_active {
            return;
        }
        let Some(frame) = self.context.spare.pop() else { return };
        let l3 = FRAME_HEADROOM + ethernet::HEADER_BYTES;
        let mut packet = Packet {
            frame,
            offset: FRAME_HEADROOM as u16,
            length: (ethernet::HEADER_BYTES + OVERLAY_BYTES + relay::PROBE_BYTES) as u16,
            l3: l3 as u16,
            kind: relay::Kind::Probe,
            sequence,
            received: self.context.now,
            ..Packet::EMPTY
        };
        let frames = self.driver.frames();
        let payload = &mut packet.ip(frames)[outer::RELAY_AT..];
        payload.fill(0);
        write(payload, probe::SENT, &self.context.now.to_be_bytes());
        let context = &mut self.context;
        let link = probe::link_to(&peer);
        outer::rewrite_batched(frames, &mut packet, &context.identity, &link, &peer.key, &mut context.unsigned);
        context.unsigned.sign(frames);
        self.context.inject(packet, NodeId::IpOutput).expect("apply_commands leaves room for one packet");
    }

    /// A packet that waited ends without having gone through the graph again.
    fn end_waiting(&mut self, packet: Packet, node: NodeId, reason: Reason) {
        add(&self.context.published.worker.injected, 1);
        add(&self.context.published.nodes[node as usize].drops[reason as usize], 1);
        add(&self.context.published.worker.dropped, 1);
        self.context.finished.push(packet.frame);
    }

    /// There is no room for a packet's flow: its sender is told by ICMP (RFC 5508 REQ-8). The packet becomes the error.
    fn prohibit(&mut self, packet: Packet, reason: Reason) {
        add(&self.context.published.nodes[NodeId::Punt as usize].drops[reason as usize], 1);
        let is_ip6 = packet.ip(self.driver.frames())[0] >> 4 == 6;
        let (icmp_type, icmp_code, node) = match is_ip6 {
            true => (icmp6::UNREACHABLE, icmp6::CODE_PROHIBITED, NodeId::Icmp6Error),
            false => (icmp::UNREACHABLE, icmp::CODE_PROHIBITED, NodeId::IcmpError),
        };
        self.context
            .inject(Packet { icmp_type, icmp_code, mtu: 0, ..packet }, node)
            .expect("apply_commands leaves room for one packet");
    }

    /// A packet's next hop does not answer: its sender is told by ICMP, where that is anyone. The packet becomes the error.
    fn host_unreachable(&mut self, mut packet: Packet) {
        let frames = self.driver.frames();
        let is_ip6 = packet.ip(frames)[0] >> 4 == 6;
        let unreachable = if is_ip6 { icmp6_error::host_unreachable } else { icmp_error::host_unreachable };
        let node = unreachable(&mut self.context, frames, &mut packet);
        let Some(node) = node else { return self.end_waiting(packet, NodeId::Punt, Reason::Unresolved) };
        add(&self.context.published.nodes[NodeId::Punt as usize].drops[Reason::Unresolved as usize], 1);
        self.context.inject(packet, node).expect("apply_commands leaves room for one packet");
    }

    /// Tells those whose SYN was let in by nobody for six seconds that nobody listens.
    fn answer_held_syns(&mut self) {
        while self.room() > 0
            && let Some(frame) = self.context.spare.pop()
        {
            let Some(held) = self.context.held_syns.next(self.context.now) else {
                self.context.spare.push(frame);
                return;
            };
            let l3 = FRAME_HEADROOM + ethernet::HEADER_BYTES;
            let (icmp_type, icmp_code, node) = match held.packet()[0] >> 4 {
                6 => (icmp6::UNREACHABLE, icmp6::CODE_PORT, NodeId::Icmp6Error),
                _ => (icmp::UNREACHABLE, icmp::CODE_PORT, NodeId::IcmpError),
            };
            let packet = Packet {
                frame,
                offset: FRAME_HEADROOM as u16,
                length: (ethernet::HEADER_BYTES + held.packet().len()) as u16,
                l3: l3 as u16,
                l4: (l3 + ip4::HEADER_BYTES) as u16,
                interface: held.interface,
                icmp_type,
                icmp_code,
                received: self.context.now,
                has_waited: true,
                ..Packet::EMPTY
            };
            packet.ip(self.driver.frames()).copy_from_slice(held.packet());
            self.context.inject(packet, node).expect("there is room");
        }
    }

    /// Lets fragments go on whose first one has come, and ends those for which it did not.
    fn release_fragments(&mut self) {
        while let Some(packet) = self.context.reassembly.next_lost() {
            self.end_waiting(packet, NodeId::SvReassembly, Reason::FragmentTimeout);
        }
        while self.room() > 0
            && let Some(packet) = self.context.reassembly.next_ready()
        {
            self.context.inject(packet, NodeId::SvReassembly).expect("there is room");
        }
    }

    fn tell(&mut self, event: Event) {
        self.context.events.push(event).expect("apply_commands leaves room for the answer to one command");
    }

    fn show_used(&self) {
        self.context.published.worker.bindings_used.store(self.context.bindings.used() as u64, Relaxed);
    }

    /// As long as there is more room than is `kept`; every worker has its turn to be the first.
    fn take_handed_over(&mut self, kept: usize) {
        let workers = self.from_workers.len();
        for step in 0..workers {
            let from = (self.from_first + step) % workers;
            while self.room() > kept && !self.context.spare.is_empty() {
                let Some(Ok(chunk)) = self.from_workers[from].as_mut().map(|ring| ring.read_chunk(1)) else { break };
                let over = &chunk.as_slices().0[0];
                let frame = self.context.spare.pop().expect("checked above");
                let (about, bytes) = (over.about, over.bytes());
                self.driver.frames().frame(frame)[handoff::OFFSET..handoff::OFFSET + bytes.len()]
                    .copy_from_slice(bytes);
                let packet = Packet {
                    frame,
                    offset: handoff::OFFSET as u16,
                    length: about.length,
                    l3: handoff::OFFSET as u16 + about.l3,
                    l4: handoff::OFFSET as u16 + about.l4,
                    interface: about.interface,
                    protocol: about.protocol,
                    received: about.received,
                    has_waited: true,
                    handoffs: about.handoffs,
                    fragment: about.fragment,
                    ports: about.ports,
                    ..Packet::EMPTY
                };
                chunk.commit_all();
                self.context.inject(packet, about.node).expect("there is room");
            }
        }
    }

    /// How many packets may still begin in this sweep. Each needs room for its copies: a sweep of sessions with
    /// three paths takes a third of the packets of one that only relays.
    fn room(&self) -> usize {
        let begun = PACKET_SLOTS - self.context.free.count();
        (PACKET_SLOTS / self.width).saturating_sub(begun)
    }

    fn receive(&mut self) {
        let room = self.room();
        let count = self.driver.receive(&mut self.received[..room]);
        let slots = self.context.free.take_lowest(count);
        let (now, packets) = (self.context.now, &mut self.context.packets);
        let mut bytes = 0;
        let mut received = self.received[..count].iter();
        slots.for_each(|slot| {
            let received = received.next().expect("no more are received than there are free slots");
            packets[slot] = Packet::received(received, now);
            bytes += u64::from(received.length);
        });
        self.context.pending[NodeId::EthernetInput as usize].insert_all(slots);
        add(&self.context.published.worker.received, count as u64);
        add(&self.context.published.worker.received_bytes, bytes);
    }

    fn visit_nodes(&mut self, received: u64) {
        let mut before = received;
        for node in &NODES {
            let batch = self.context.pending[node.id as usize];
            if batch.is_empty() || node.id == NodeId::Tx {
                continue;
            }
            self.context.pending[node.id as usize] = Bitmap::default();
            (node.process)(&mut self.context, self.driver.frames(), batch);
            if self.is_watched {
                let after = self.clock.raw();
                self.record(node.id, batch.count() as u64, after.saturating_sub(before));
                before = after;
            }
        }
    }

    fn record(&mut self, node: NodeId, packets: u64, clocks: u64) {
        let counters = &self.context.published.nodes[node as usize];
        add(&counters.packets, packets);
        add(&counters.batches, 1);
        add(&counters.clocks, clocks);
        let nanos = self.clock.delta_as_nanos(0, clocks);
        self.histograms.nodes[node as usize].saturating_record_n(nanos / packets, packets);
    }

    fn transmit(&mut self, received: u64) {
        let batch = std::mem::take(&mut self.context.pending[NodeId::Tx as usize]);
        if batch.is_empty() {
            return;
        }
        let before = self.clock.raw();
        let (now, packets) = (self.context.now, &self.context.packets);
        let (mut count, mut bytes, mut late) = (0, 0, Bitmap::default());
        batch.for_each(|slot| {
            let Packet { frame, offset, length, interface, received, has_waited, .. } = packets[slot];
            self.transmit[count % PACKET_SLOTS] = Transmit { frame, offset, length, interface };
            count += 1;
            bytes += u64::from(length);
            if received != now || has_waited {
                late.insert(slot);
            }
        });
        let mut refused = Bitmap::default();
        self.driver.transmit(&self.transmit[..count], &mut refused);
        self.driver.flush();
        let after = self.clock.raw();
        if self.is_watched {
            self.record(NodeId::Tx, count as u64, after.saturating_sub(before));
        }
        let mut sent = batch;
        if !refused.is_empty() {
            // The places in `refused` found a ring full; their packets are still ours.
            for (_, slot) in batch.enumerate().filter(|(place, _)| refused.contains(*place)) {
                sent.remove(slot);
                late.remove(slot);
                bytes -= u64::from(self.context.packets[slot].length);
                self.context.leave(slot, NodeId::Tx, super::graph::Verdict::Drop(Reason::TxFull));
            }
        }
        self.record_residence(sent.count(), late, self.clock.delta_as_nanos(received, after));
        self.context.free.insert_all(sent);
        add(&self.context.published.worker.sent, sent.count() as u64);
        add(&self.context.published.worker.sent_bytes, bytes);
    }

    /// Of `sent` packets all but those in `late` came in with this sweep, so that they stayed equally long: they are
    /// recorded together.
    fn record_residence(&mut self, sent: usize, late: Bitmap, in_sweep: Nanos) {
        let fresh = (sent - late.count()) as u64;
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

    fn end(&mut self, packets: usize) {
        for frame in self.context.finished.drain(..) {
            self.driver.release(frame);
        }
        let shown = &self.context.published.worker;
        shown.waiting.store(self.context.waiting.count() as u64, Relaxed);
        add(&shown.sweeps, 1);
        add(&shown.busy_sweeps, u64::from(packets > 0));
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

const _: () = assert!(RESERVED_FOR_ANSWERS < crate::limits::EVENT_RING, "punts have some of the ring, too");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{driver::memory::MemoryDriver, nat::Filtering, testing::*},
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

    #[test]
    fn what_others_hand_over_leaves_room_for_what_comes_in_here() {
        let mut rings = handoff::mesh(3);
        let mut benches: Vec<_> = (0..3).rev().map(|at| Bench::at(at, 3, rings.pop().unwrap())).collect();
        let mut ours = benches.pop().unwrap();
        ours.relay();
        let frame = |n| Relayed::up(1, n, vec![]).frame();
        for (from, other) in (1..).zip(&mut benches) {
            for sweep in 0..4 {
                let burst: Vec<_> = (1..=256).map(|n| frame(from * 10_000 + sweep * 256 + n)).collect();
                other.run(&burst);
            }
        }
        let burst: Vec<_> = (1..=100).map(frame).collect();
        let received = |bench: &Bench| bench.worker.context().published.worker.received.load(Relaxed);
        let before = received(&ours);
        let waiting = |bench: &Bench| -> Vec<usize> {
            bench.worker.from_workers.iter().flatten().map(rtrb::Consumer::slots).collect()
        };
        assert_eq!(waiting(&ours), [1024, 1024]);
        ours.run(&burst);
        assert_eq!(received(&ours) - before, 100);
        (0..2).for_each(|_| drop(ours.sweep()));
        assert!(waiting(&ours).iter().all(|count| *count < 1024), "each has its turn: {:?}", waiting(&ours));
        (0..20).for_each(|_| drop(ours.sweep()));
        assert_eq!(waiting(&ours), [0, 0]);
    }

    #[test]
    fn a_slot_in_use_is_freed_only_if_it_stayed_idle() {
        let mut bench = Bench::new();
        bench.relay();
        let stamp = (bench.now / crate::limits::TICK) as u32;
        bench.now += crate::SECOND;
        bench.run(&[Relayed::up(1, 1, vec![]).frame()]);
        bench.tell(Command::FreeSlot { slot: 1, generation: GENERATION, idle_since: Some(stamp) });
        assert!(matches!(bench.events.pop(), Ok(Event::SlotKept { slot: 1 })));
        let stamp = stamp + 10;
        bench.now += crate::SECOND;
        bench.run(&[Relayed::down(1, 1, vec![]).frame()]);
        bench.tell(Command::FreeSlot { slot: 1, generation: GENERATION, idle_since: Some(stamp) });
        assert!(
            matches!(bench.events.pop(), Ok(Event::SlotFreed { slot: 1 })),
            "the server's side keeps nothing alive"
        );
    }

    #[test]
    fn rewriting_an_entrys_slot_keeps_the_clients_address() {
        let mut bench = Bench::new();
        bench.entry(1);
        let moved = Relayed {
            kind: crate::wire::relay::Kind::KeepAliveUp,
            from: (ROUTER, 999),
            ..Relayed::from_client(1, vec![])
        };
        bench.run(&[moved.frame()]);
        let slot = bench.worker.context().slots[2];
        let unknown = crate::dataplane::conntrack::Link { port: 0, ..slot.up };
        bench.tell(Command::SetSlot {
            slot: 2,
            generation: GENERATION,
            role: slot.role,
            fan: slot.fan,
            up: unknown,
            down: slot.down,
        });
        let out = bench.run(&[Relayed::down(2, 1, vec![]).frame()]);
        assert_eq!(sent(&out[0], &UP_KEY).to, (ROUTER, 999));
    }

    #[test]
    fn histograms_are_exchanged_for_empty_ones() {
        let mut bench = Bench::new();
        bench.relay();
        bench.run(&[Relayed::up(1, 1, vec![]).frame()]);
        bench.tell(Command::SwapHistograms(Box::default()));
        let Ok(Event::Histograms(filled)) = bench.events.pop() else { panic!("not exchanged") };
        assert_eq!((filled.residence.len(), filled.waited.len()), (1, 0));
    }
}
