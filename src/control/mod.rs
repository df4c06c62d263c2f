//! The control core: the one place of a node that allocates slots, fans, bindings and ports.
//!
//! Sans-IO. What happens is told to [`Control`] (a request came, a worker spoke, the kernel changed a route,
//! time passed); what is to be done comes out of [`Control::write_commands`] and, as [`Effect`]s, of [`Control::poll`]. No
//! socket, no clock, no thread: the node's process and the simulator drive the same code.
//!
//! A session's way through these files: [`admission`] checks the request, [`entry`] reserves a slot and asks the
//! next nodes ([`exchanges`]), each [`relay`] passes it on, the [`exit`] writes it to its worker and answers, and so
//! back. [`nat`] binds a tunnel's flows while it lives; [`teardown`] ends it, or [`ageing`] does. Where packets go
//! is [`adjacency`] and [`peers`]; which worker they arrive at is [`steering`]; how good the ways are is [`probes`].

mod adjacency;
mod admission;
mod ageing;
mod entry;
mod exchanges;
mod exit;
mod gateway;
#[cfg(test)]
pub(crate) mod harness;
mod hosts;
mod hosts6;
pub mod interface;
mod key_index;
mod known_tokens;
mod nat;
mod nat_ageing;
mod node_keys;
mod outside;
pub mod page;
mod peers;
mod pools;
mod ports;
mod probes;
mod random;
mod relay;
mod repair;
mod sessions;
pub mod show;
pub mod show_nat;
pub mod show_sessions;
mod steering;
mod tables;
mod teardown;
#[cfg(test)]
mod tests;
mod wheel;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::Ipv4Addr,
    sync::Arc,
};

pub use exchanges::CALL_PATIENCE;
pub use interface::{CallId, Caller, ControlConfig, Effect, KernelEvent, LocalAddress, RequestId};
pub use show::{AdjacencyView, Counters, PeerView, SessionView, Summary};

use self::{
    adjacency::Adjacencies,
    exchanges::Exchanges,
    gateway::GatewayState,
    hosts::Hosts,
    key_index::KeyIndex,
    known_tokens::KnownTokens,
    node_keys::NodeKeys,
    peers::Peers,
    random::Random,
    sessions::{Asker, Name, Part, Session},
    steering::Steering,
    tables::Tables,
};
use crate::{
    Nanos, SECOND,
    dataplane::{
        command::{Command, Event, PuntCause},
        conntrack::CtIndex,
        nat::BindingKey,
        published::Published,
        reason::Reason,
    },
    rpc::messages::{Failure, FailureReason, LinkEnd, NodeInfo, Register, Request, Response},
    telemetry::histogram::Histograms,
};

/// Time between two exchanges of a worker's histograms.
const HISTOGRAM_INTERVAL: Nanos = SECOND;

/// The control core of one node.
#[derive(Debug)]
pub struct Control {
    config: ControlConfig,
    random: Random,
    /// By worker.
    workers: Vec<Tables>,
    names: HashMap<Name, CtIndex>,
    /// Sessions of each client that entered here.
    clients: HashMap<String, u32>,
    /// Sessions without a packet yet, by the address that opened them.
    half_open: HashMap<Ipv4Addr, u32>,
    exchanges: Exchanges,
    peers: Peers,
    node_keys: NodeKeys,
    /// Tokens of clients.
    tokens: KnownTokens,
    adjacencies: Adjacencies,
    gateway: Option<GatewayState>,
    steering: Steering,
    /// Reports of fans that were asked for: who asked.
    fan_requests: BTreeMap<u64, Asker>,
    fan_request_next: u64,
    /// Sessions that entered here, by when they are visited next.
    visits: BTreeSet<(Nanos, u32)>,
    histograms_due: Nanos,
    /// When withdrawn addresses are looked at next.
    retirement_due: Nanos,
    /// Everything that all workers recorded since the start; shared with those who asked.
    histograms: Arc<Histograms>,
    /// What is not a worker's to do; its commands wait in its backlog.
    effects: VecDeque<Effect>,
    counters: Counters,
    started: Nanos,
}

/// Huge pages that the control core takes for a worker of `bindings`, where it can.
pub fn huge_pages(bindings: u32) -> usize {
    KeyIndex::<BindingKey>::huge_pages(bindings) + Hosts::huge_pages(bindings)
}

impl Control {
    /// A control core without sessions; one of `published` for each worker. Stamps are in ticks of
    /// [`NatConfig::tick`](crate::dataplane::nat::NatConfig::tick) on the clock of `now`.
    pub fn new(config: ControlConfig, published: Vec<Arc<Published>>, now: Nanos) -> Self {
        assert_eq!(published.len(), usize::from(config.identity.workers), "what a worker publishes, for each worker");
        let mut random = Random::new(&config.seed);
        let workers = published
            .into_iter()
            .enumerate()
            .map(|(n, stamps)| Tables::new(&config, n, stamps, &mut random, now))
            .collect();
        let mut control = Self {
            random,
            workers,
            names: HashMap::new(),
            clients: HashMap::new(),
            half_open: HashMap::new(),
            exchanges: Exchanges::default(),
            peers: Peers::default(),
            node_keys: NodeKeys::default(),
            tokens: KnownTokens::default(),
            adjacencies: Adjacencies::new(config.interfaces.clone()),
            gateway: config.gateway.clone().map(GatewayState::new),
            steering: Steering::new(config.interfaces.len(), usize::from(config.identity.workers)),
            fan_requests: BTreeMap::new(),
            fan_request_next: 0,
            visits: BTreeSet::new(),
            histograms_due: now + HISTOGRAM_INTERVAL,
            retirement_due: now,
            histograms: Arc::default(),
            effects: VecDeque::new(),
            counters: Counters::default(),
            started: now,
            config,
        };
        control.write_mappings(now);
        control
    }

    /// A request came in. It is answered by [`Effect::Respond`], at once or later, always once.
    /// `unix_seconds` is the wall clock, for the token alone.
    pub fn on_request(&mut self, caller: Caller, id: RequestId, request: Request, now: Nanos, unix_seconds: u64) {
        match (caller, request) {
            (Caller::Client(source), Request::Open(open)) => self.on_open(source, id, open, now, unix_seconds),
            (Caller::Client(_), Request::Close { token, session }) => {
                self.on_close(id, &token, session, now, unix_seconds);
            }
            (Caller::Node(node), Request::Setup(setup)) => self.on_setup(&node, id, setup, now, unix_seconds),
            (Caller::Node(node), Request::Teardown(teardown)) => self.on_teardown(&node, id, &teardown, now),
            (Caller::Client(_), Request::Setup(_) | Request::Teardown(_)) => {
                self.refuse(id, FailureReason::Unauthorised)
            }
            // A node that opens a session has no client's address to answer to; the rest is for the control centre.
            _ => self.refuse(id, FailureReason::BadRequest),
        }
    }

    /// A worker spoke, as often as its ring holds, up to `most` times. Returns how often.
    pub fn on_events(&mut self, worker: usize, events: &mut rtrb::Consumer<Event>, most: usize, now: Nanos) -> usize {
        let count = events.slots().min(most);
        let Ok(events) = events.read_chunk(count) else { return 0 };
        let (first, rest) = events.as_slices();
        self.workers[worker].ask_for(first.iter().chain(rest));
        events.into_iter().for_each(|event| self.on_event(worker, event, now));
        count
    }

    /// A worker spoke.
    pub fn on_event(&mut self, worker: usize, event: Event, now: Nanos) {
        match event {
            Event::Punt { waiting, cause: PuntCause::NoBinding { key, remote, tcp_flags } } => {
                self.on_no_binding(worker, waiting, key, remote, tcp_flags, now);
            }
            Event::Punt { waiting, cause: PuntCause::NoBinding6 { flow, tcp_flags } } => {
                self.on_no_binding6(worker, waiting, &flow, tcp_flags, now);
            }
            Event::Punt { waiting, cause: PuntCause::NoAdjacency { interface, next_hop } } => {
                self.on_no_adjacency(worker, waiting, interface, next_hop, now);
            }
            Event::SlotFreed { slot } => self.on_slot_freed(CtIndex::new(worker, slot), now),
            Event::SlotKept { slot } => self.on_slot_kept(CtIndex::new(worker, slot)),
            Event::BindingFreed { index } => self.on_binding_freed(worker, index, now),
            Event::BindingKept { index } => self.on_binding_kept(worker, index),
            Event::BindingClosing { index } => self.watch_binding(worker, index),
            Event::ProbeAnswered(answer) => {
                self.peers.answered(answer.peer, answer.sequence, answer.received.saturating_sub(answer.sent));
            }
            Event::ForwardingRetired(retired) => drop(retired),
            Event::OutsideRetired(retired) => drop(retired),
            Event::Histograms(mut filled) => {
                // Copied only while someone still reads what they were before.
                Arc::make_mut(&mut self.histograms).merge(&filled);
                let tables = &mut self.workers[worker];
                tables.add_first_packets(&filled);
                filled.clear();
                tables.spare_histograms = Some(filled);
            }
            Event::Fan { request, report } => match self.fan_requests.remove(&request) {
                Some(Asker::Operator(request)) => {
                    self.effects.push_back(Effect::FanReport { request, report: *report })
                }
                Some(Asker::Watch { ct_index, generation }) => {
                    self.on_path_report(ct_index, generation, &report, now);
                }
                None => {}
            },
        }
    }

    /// Time passed: to be called every 1 to 100 ms.
    pub fn on_tick(&mut self, now: Nanos) {
        self.expire_exchanges(now);
        self.visit_sessions(now);
        self.expire_adjacencies(now);
        self.send_probes(now);
        self.age(now);
        self.retire_addresses(now);
        if now >= self.histograms_due {
            self.histograms_due = now + HISTOGRAM_INTERVAL;
            for worker in 0..self.workers.len() {
                if let Some(spare) = self.workers[worker].spare_histograms.take() {
                    self.command(worker, Command::SwapHistograms(spare));
                }
            }
        }
    }

    /// Writes what a worker is to do into its ring, as far as there is room; how much that was. To be called before
    /// [`Control::poll`], so that a session is in its worker's ring before its client hears of it. New work for a worker that
    /// does not keep up is refused with [`FailureReason::Busy`]; what must be done (freeing, above all) waits in order.
    pub fn write_commands(&mut self, worker: usize, ring: &mut rtrb::Producer<Command>) -> usize {
        self.flush_forwarding();
        if self.workers[worker].backlog.is_empty() {
            // To ask for the room takes a line away from the worker.
            return 0;
        }
        let commands = self.take_commands(worker, ring.slots());
        match ring.write_chunk_uninit(commands.len()) {
            Ok(chunk) => chunk.fill_from_iter(commands),
            Err(_) => 0,
        }
    }

    /// The same without a ring: the next commands for a worker, `most` at most.
    pub fn take_commands(&mut self, worker: usize, most: usize) -> impl ExactSizeIterator<Item = Command> {
        self.flush_forwarding();
        let backlog = &mut self.workers[worker].backlog;
        backlog.drain(..most.min(backlog.len()))
    }

    /// The next thing to be done that is not a worker's.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// What the node presents itself as to the control centre.
    pub fn register(&self) -> Register {
        let node = NodeInfo {
            name: self.config.name.clone(),
            control: self.config.control,
            data: self.data_address(),
            roles: self.config.roles,
            boot_epoch: self.config.boot_epoch,
        };
        Register { node, probe_key: self.config.identity.probe_key }
    }

    /// Reads how a session's paths merge here: answered by [`Effect::FanReport`]. False where `ct_index` is no
    /// open session with paths that merge (a relay's has none), and nothing comes.
    pub fn read_paths(&mut self, request: RequestId, ct_index: CtIndex) -> bool {
        self.read_fan(Asker::Operator(request), ct_index)
    }

    fn read_fan(&mut self, asker: Asker, ct_index: CtIndex) -> bool {
        let fan = match self.session(ct_index) {
            Some(session) if session.state == sessions::State::Open => session.fan(),
            _ => None,
        };
        let Some(fan) = fan else { return false };
        let number = self.fan_request_next;
        self.fan_request_next += 1;
        self.fan_requests.insert(number, asker);
        self.command(
            ct_index.worker(),
            Command::ReadFan { slot: ct_index.slot(), fan, request: number, report: Box::default() },
        );
        true
    }

    /// What all workers' histograms recorded since the start, at most about a second old.
    pub fn histograms(&self) -> Arc<Histograms> {
        Arc::clone(&self.histograms)
    }

    fn command(&mut self, worker: usize, command: Command) {
        self.workers[worker].backlog.push_back(command);
    }

    fn respond(&mut self, request: RequestId, response: Response) {
        self.effects.push_back(Effect::Respond { request, response });
    }

    /// Answers that this node refuses.
    fn refuse(&mut self, request: RequestId, reason: FailureReason) {
        let failure = self.failure(reason);
        self.respond(request, Response::Failed(failure));
    }

    /// A failure at this node.
    fn failure(&self, reason: FailureReason) -> Failure {
        Failure { hop: self.config.name.clone(), reason }
    }

    fn refuse_packet(&mut self, worker: usize, waiting: u32, reason: Reason) {
        self.command(worker, Command::Refuse { waiting, reason });
    }

    fn data_address(&self) -> std::net::SocketAddrV4 {
        std::net::SocketAddrV4::new(self.config.identity.address, self.config.identity.data_port)
    }

    /// This node's end of a hop, for one who is to send to it from `source_port`.
    fn link_end(&self, ct_index: CtIndex, generation: u16, source_port: u16) -> LinkEnd {
        LinkEnd { data: self.data_address(), ct_index, generation, source_port }
    }

    fn session(&mut self, ct_index: CtIndex) -> Option<&mut Session> {
        self.workers.get_mut(ct_index.worker())?.session(ct_index.slot())
    }

    fn is_entry(&mut self, ct_index: CtIndex) -> bool {
        self.session(ct_index).is_some_and(|session| matches!(session.part, Part::Entry(_)))
    }

    /// Takes a slot, and a fan where the role needs one, of the worker with the fewest sessions.
    fn take_slot(&mut self, needs_fan: bool) -> Result<Place, FailureReason> {
        let has_room = |tables: &Tables| !(tables.slots.is_exhausted() || needs_fan && tables.fans.is_exhausted());
        if !self.workers.iter().any(has_room) {
            return Err(FailureReason::SlotsExhausted);
        }
        let worker = (0..self.workers.len())
            .filter(|&worker| has_room(&self.workers[worker]) && !self.workers[worker].is_busy())
            .min_by_key(|&worker| self.workers[worker].slots.used())
            .ok_or(FailureReason::Busy)?;
        let tables = &mut self.workers[worker];
        let slot = tables.slots.take().ok_or(FailureReason::SlotsExhausted)?;
        let fan = if needs_fan { tables.fans.take() } else { None };
        let generation = tables.generations.renew(slot);
        Ok(Place { ct_index: CtIndex::new(worker, slot), generation, fan: fan.unwrap_or(0) })
    }
}

/// A slot that was taken, with its fan (zero where there is none).
#[derive(Clone, Copy, Debug)]
struct Place {
    ct_index: CtIndex,
    generation: u16,
    fan: u32,
}
