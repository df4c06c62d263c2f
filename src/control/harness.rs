//! Several control cores in one process, on a virtual clock: their calls reach each other as messages with delay,
//! loss and duplication, and their commands reach workers that only keep the tables and check what they are told.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{CallId, Caller, Control, ControlConfig, Effect, RequestId, show::Summary, tables::Tables};
use crate::{
    MILLISECOND, Nanos,
    dataplane::{
        command::{Command, Event, ProbeAnswer},
        conntrack::{CtIndex, FanInit, FanReport, Link, Role},
        exit_policy::ExitPolicy,
        forwarding::{Forwarding, Identity, Interface},
        gateway::Transit,
        nat::{BindingInit, Class, Mapping, NatConfig, OutsideAddresses, Owner, token as nat_token},
        published::Published,
        reason::Reason,
        tick::Tick,
    },
    limits::PATHS_MAX,
    rpc::{
        messages::{Neighbour, Neighbours, NodeName, Open, Opened, Request, Response, Roles, SessionId, SessionKind},
        token::{self, Claims, SigningKey},
    },
    wire::relay::HopKey,
};

/// The wall clock when the virtual one is at zero.
pub(crate) const UNIX_START: u64 = 1_800_000_000;

const TICK_OF_CONTROL: Nanos = 10 * MILLISECOND;

/// The tables of a worker, without packets.
#[derive(Debug)]
pub(crate) struct TableWorker {
    number: usize,
    identity: Identity,
    tick: Tick,
    outside: OutsideAddresses,
    pub(crate) published: Arc<Published>,
    /// By slot: generation, role, fan, up, down.
    pub(crate) slots: BTreeMap<u32, (u16, Role, u32, Link, Link)>,
    /// Keys of entries' clients, by fan.
    client_keys: BTreeMap<u32, HopKey>,
    /// By number.
    pub(crate) node_keys: BTreeMap<u16, HopKey>,
    generations: HashMap<u32, u16>,
    pub(crate) fans: BTreeMap<u32, (FanInit, [Option<Link>; PATHS_MAX])>,
    pub(crate) bindings: BTreeMap<u32, BindingInit>,
    pub(crate) hosts6: BTreeMap<u32, Ipv6Addr>,
    /// By fan: what is said of it.
    pub(crate) reports: BTreeMap<u32, FanReport>,
    pub(crate) forwarding: Forwarding,
    pub(crate) resumed: Vec<u32>,
    pub(crate) refused: Vec<(u32, Reason)>,
    pub(crate) probes: Vec<(u16, u64, Nanos)>,
}

impl TableWorker {
    fn new(config: &ControlConfig, number: usize) -> Self {
        Self {
            number,
            identity: config.identity,
            tick: config.nat.tick,
            outside: config.nat.outside(config.identity.workers),
            published: Arc::new(Published::new(config.slots as usize, config.bindings as usize)),
            slots: BTreeMap::new(),
            client_keys: BTreeMap::new(),
            node_keys: BTreeMap::new(),
            generations: HashMap::new(),
            fans: BTreeMap::new(),
            bindings: BTreeMap::new(),
            hosts6: BTreeMap::new(),
            reports: BTreeMap::new(),
            forwarding: Forwarding::default(),
            resumed: Vec::new(),
            refused: Vec::new(),
            probes: Vec::new(),
        }
    }

    /// Applies a command as a worker does; asserts what the control core promises.
    fn apply(&mut self, command: Command, now: Nanos) -> Option<Event> {
        let tick = self.tick.at(now);
        match command {
            Command::InitFan { fan, init, client_key } => {
                assert!(self.slots.values().all(|slot| slot.1 == Role::Relay || slot.2 != fan), "fan {fan} is in use");
                self.fans.insert(fan, (init, [None; PATHS_MAX]));
                self.client_keys.insert(fan, client_key);
            }
            Command::SetFanLink { fan, path, link } => {
                // Clearing a link of a fan that was freed a moment ago is harmless.
                match self.fans.get_mut(&fan) {
                    Some((_, links)) => links[usize::from(path)] = link.map(|(link, _)| link),
                    None => assert!(link.is_none(), "link of fan {fan} before its start"),
                }
            }
            Command::SetNodeKey { number, key } => drop(self.node_keys.insert(number.0, key)),
            Command::SetSlot { slot, generation, role, fan, up, down } => {
                match self.slots.get(&slot) {
                    Some(held) => assert_eq!(held.0, generation, "slot {slot} is in use"),
                    None => assert_ne!(self.generations.insert(slot, generation), Some(generation), "reused as it was"),
                }
                assert!(
                    self.bindings
                        .values()
                        .all(|b| b.owner != Owner::session(slot) || matches!(b.mapping, Mapping::Flow(_))),
                    "bindings of the last use"
                );
                if role != Role::Relay {
                    let (_, links) = &self.fans[&fan];
                    assert!(links.iter().any(Option::is_some), "the links come before the slot");
                }
                self.slots.insert(slot, (generation, role, fan, up, down));
                self.published.slots[slot as usize].reset(tick);
            }
            Command::FreeSlot { slot, generation, idle_since } => {
                let &(held, role, fan, ..) = self.slots.get(&slot).expect("a slot in use is freed, once");
                assert_eq!(held, generation);
                let last_seen = self.published.slots[slot as usize].last_seen.load(Relaxed);
                if idle_since.is_some_and(|since| since != last_seen) {
                    return Some(Event::SlotKept { slot });
                }
                self.slots.remove(&slot);
                if role != Role::Relay {
                    self.fans.remove(&fan);
                }
                return Some(Event::SlotFreed { slot });
            }
            Command::SetBinding { index, binding } => self.set_binding(index, binding, now),
            Command::SetBindingAndResume { index, binding, waiting } => {
                self.set_binding(index, binding, now);
                self.resumed.push(waiting);
            }
            Command::FreeBinding { index, idle_since } => {
                assert!(self.bindings.contains_key(&index), "a binding in use is freed, once");
                let last_seen = self.published.bindings[index as usize].last_seen.load(Relaxed);
                if idle_since.is_some_and(|since| since != last_seen) {
                    return Some(Event::BindingKept { index });
                }
                self.bindings.remove(&index);
                return Some(Event::BindingFreed { index });
            }
            Command::SetHost6 { place, address: Some(address) } => {
                assert!(!self.hosts6.values().any(|held| *held == address), "{address} has one place");
                assert!(self.hosts6.insert(place, address).is_none(), "place {place} is in use");
            }
            Command::SetHost6 { place, address: None } => {
                let is_its =
                    |held: &BindingInit| nat_token::host_of(held.inside_address).is_some_and(|(_, at)| at == place);
                assert!(!self.bindings.values().any(is_its), "a host goes after its bindings");
                assert!(self.hosts6.remove(&place).is_some(), "place {place} is unused");
            }
            Command::Resume { waiting } => self.resumed.push(waiting),
            Command::Refuse { waiting, reason } => self.refused.push((waiting, reason)),
            Command::SetForwarding(new) => {
                assert!(new.is_within_limits());
                let old = std::mem::replace(&mut self.forwarding, *new);
                return Some(Event::ForwardingRetired(Box::new(old)));
            }
            Command::SetOutside(mut new) => {
                let is_bound = |binding: &BindingInit| new.pool.contains(binding.outside_address);
                assert!(self.bindings.values().all(is_bound), "an address goes after its bindings");
                std::mem::swap(&mut self.outside, &mut new.pool);
                return Some(Event::OutsideRetired(new));
            }
            Command::SendProbe { peer, sequence } => self.probes.push((peer, sequence, now)),
            Command::SwapHistograms(empty) => return Some(Event::Histograms(empty)),
            Command::ReadFan { fan, request, mut report, .. } => {
                *report = self.reports.get(&fan).copied().unwrap_or_default();
                return Some(Event::Fan { request, report });
            }
        }
        None
    }

    fn set_binding(&mut self, index: u32, binding: BindingInit, now: Nanos) {
        let tick = self.tick.at(now);
        let outside = (binding.outside_address, binding.outside_port);
        let port = |of: &BindingInit| (of.protocol, of.outside_address, of.outside_port);
        let is_same_port = |held: &BindingInit| port(held) == port(&binding);
        let host = match nat_token::host_of(binding.inside_address) {
            Some((_, place)) => (*self.hosts6.get(&place).expect("its host comes first")).into(),
            None => binding.inside_address.into(),
        };
        let owner = self.outside.owner_of(outside).unwrap_or_else(|| self.identity.owner_of(host));
        assert_eq!(owner, self.number);
        assert!(!self.bindings.values().any(is_same_port), "port {} is taken", binding.outside_port);
        assert!(self.bindings.insert(index, binding).is_none(), "binding {index} is in use");
        let class = Class::first(binding.protocol) as u8;
        self.published.classes[index as usize].store(class, Relaxed);
        self.published.bindings[index as usize].reset(tick);
    }

    /// A packet through a slot.
    pub(crate) fn touch(&self, slot: u32, now: Nanos) {
        self.published.slots[slot as usize].touch(self.tick.at(now), 100);
    }
}

/// A control core and its workers.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) control: Control,
    pub(crate) workers: Vec<TableWorker>,
    pub(crate) config: ControlConfig,
    is_up: bool,
    /// While true the workers apply nothing, as if their threads did not run.
    pub(crate) is_stalled: bool,
    stalled: Vec<(usize, Command)>,
    /// Commands that the workers' rings have room for.
    pub(crate) room: usize,
    /// Requests it has not answered yet.
    asked: HashMap<RequestId, Origin>,
    next_request: u64,
    pub(crate) fan_reports: Vec<RequestId>,
    /// What the XDP programs take of what passes through.
    pub(crate) takes: Transit,
    pub(crate) resolves: Vec<(u8, IpAddr)>,
}

/// Who asked.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// A node in this life of it: its connections end with it.
    Node(NodeName, u64, CallId),
    Client(u64),
}

/// A message under way.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Request {
        origin: Origin,
        caller: Caller,
        to: NodeName,
        request: Request,
    },
    Response {
        to: Origin,
        from: NodeName,
        response: Response,
    },
    /// The transport could not reach the node.
    Unreachable {
        to: Origin,
    },
}

/// Delays of the copies of a message that arrive: none is a loss.
pub(crate) type Fate = Box<dyn FnMut(&Message) -> Vec<Nanos>>;

/// The nodes and what is on its way between them.
pub(crate) struct Net {
    pub(crate) now: Nanos,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) fate: Fate,
    /// Calls to stopped nodes fail at once, rather than never.
    pub(crate) tells_unreachable: bool,
    messages: BTreeMap<(Nanos, u64), Message>,
    next_message: u64,
    next_client: u64,
    pub(crate) answers: HashMap<u64, Vec<Response>>,
    pub(crate) key: SigningKey,
}

impl Net {
    /// Nodes of these names, all of them neighbours of each other, `workers` workers each.
    pub(crate) fn new(names: &[&str], workers: u8, adjust: impl Fn(&str, &mut ControlConfig)) -> Self {
        let mut net = Self {
            now: 0,
            nodes: BTreeMap::new(),
            fate: Box::new(|_| vec![10 * MILLISECOND]),
            tells_unreachable: false,
            messages: BTreeMap::new(),
            next_message: 0,
            next_client: 0,
            answers: HashMap::new(),
            key: SigningKey::generate(),
        };
        for (at, name) in names.iter().enumerate() {
            let mut config = config(name, at as u8 + 1, workers);
            adjust(name, &mut config);
            net.nodes.insert(name.to_string(), Node::new(config, 0));
        }
        net.introduce();
        net
    }

    /// Tells every node of every other one, as the control centre does.
    pub(crate) fn introduce(&mut self) {
        let registered: Vec<_> = self.nodes.values().map(|node| node.control.register()).collect();
        let neighbour = |r: &crate::rpc::messages::Register| Neighbour { node: r.node.clone(), probe_key: r.probe_key };
        for node in self.nodes.values_mut() {
            let nodes = registered.iter().map(neighbour).collect();
            node.control.on_neighbours(Neighbours { nodes, token_key: self.key.public() }, self.now);
        }
        self.settle();
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("a node of this name")
    }

    /// A token of `client`, good for an hour, with these changes.
    pub(crate) fn token(&self, client: &str, adjust: impl Fn(&mut Claims)) -> String {
        let mut claims = Claims {
            client: client.into(),
            expires: UNIX_START + 3600,
            not_before: UNIX_START,
            exits: None,
            paths_max: 8,
            sessions_max: 1000,
        };
        adjust(&mut claims);
        token::issue(&claims, &self.key)
    }

    /// An Open of a tunnel over these paths, each `a-b-c`.
    pub(crate) fn tunnel(&self, client: &str, session: u8, paths: &[&str]) -> Open {
        Open {
            token: self.token(client, |_| ()),
            session: [session; 16],
            kind: SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None },
            mtu: 1400,
            paths: paths.iter().map(|path| path.split('-').map(str::to_owned).collect()).collect(),
        }
    }

    /// Sends a client's request; the answers come under the number returned.
    pub(crate) fn ask(&mut self, entry: &str, request: Request) -> u64 {
        self.ask_from(Ipv4Addr::new(203, 0, 113, 1), entry, request)
    }

    /// The same from a certain address.
    pub(crate) fn ask_from(&mut self, source: Ipv4Addr, entry: &str, request: Request) -> u64 {
        self.next_client += 1;
        let (origin, caller) = (Origin::Client(self.next_client), Caller::Client(source));
        self.send(Message::Request { origin, caller, to: entry.into(), request });
        self.next_client
    }

    /// A request with any caller, at once and without a network.
    pub(crate) fn ask_as(&mut self, caller: Caller, to: &str, request: Request) -> u64 {
        self.next_client += 1;
        let origin = Origin::Client(self.next_client);
        self.deliver(Message::Request { origin, caller, to: to.into(), request });
        self.settle();
        self.next_client
    }

    /// The one answer to a request that must be there by now.
    pub(crate) fn answer(&self, asked: u64) -> Response {
        match self.answers.get(&asked).map(Vec::as_slice) {
            Some([answer]) => answer.clone(),
            other => panic!("one answer to request {asked}, not {other:?}"),
        }
    }

    /// Opens a session and waits for it.
    pub(crate) fn open(&mut self, open: Open) -> Opened {
        let entry = open.paths[0][0].clone();
        let asked = self.ask(&entry, Request::Open(open));
        self.run(500 * MILLISECOND);
        match self.answer(asked) {
            Response::Opened(opened) => opened,
            other => panic!("not opened: {other:?}"),
        }
    }

    /// Ends a session and waits for it.
    pub(crate) fn close(&mut self, entry: &str, client: &str, session: SessionId) -> Response {
        let token = self.token(client, |_| ());
        let asked = self.ask(entry, Request::Close { token, session });
        self.run(500 * MILLISECOND);
        self.answer(asked)
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Nanos) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + TICK_OF_CONTROL).min(end);
            while let Some(entry) = self.messages.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let message = entry.remove();
                self.deliver(message);
                self.settle();
            }
            for node in self.nodes.values_mut().filter(|node| node.is_up) {
                node.control.on_tick(self.now);
            }
            self.settle();
        }
    }

    /// Stops a node: it hears and says nothing.
    pub(crate) fn stop(&mut self, name: &str) {
        self.node(name).is_up = false;
    }

    /// Starts a node anew, with nothing left of before, and all nodes are told.
    pub(crate) fn restart(&mut self, name: &str) {
        self.restart_alone(name);
        self.introduce();
    }

    /// Starts a node anew that has not reached the control centre yet.
    pub(crate) fn restart_alone(&mut self, name: &str) {
        let now = self.now;
        let node = self.node(name);
        let mut config = node.config.clone();
        config.boot_epoch += 1;
        config.seed[24..].copy_from_slice(&config.boot_epoch.to_le_bytes());
        *node = Node::new(config, now);
    }

    /// Summaries of all nodes.
    pub(crate) fn summaries(&self) -> Vec<Summary> {
        self.nodes.values().map(|node| node.control.summary(self.now)).collect()
    }

    /// Panics unless nothing at all is in use at any node, in the control cores' books and in the workers' tables.
    pub(crate) fn assert_all_free(&self) {
        for summary in self.summaries() {
            for worker in &summary.workers {
                let used =
                    [worker.slots, worker.fans, worker.bindings, worker.icmp_ids, worker.tcp_ports, worker.udp_ports];
                assert!(used.iter().all(|places| places.used == 0), "{}: {worker:?}", summary.name);
            }
            assert_eq!(
                (summary.entries, summary.relays, summary.exits, summary.calls),
                (0, 0, 0, 0),
                "{}",
                summary.name
            );
        }
        for (name, node) in &self.nodes {
            let control = &node.control;
            assert!(control.names.is_empty() && control.clients.is_empty() && control.half_open.is_empty(), "{name}");
            let is_empty = |tables: &Tables| tables.by_key.is_empty() && tables.hosts.count() == 0;
            assert!(control.workers.iter().all(is_empty), "{name}");
            for worker in &node.workers {
                assert!(worker.slots.is_empty() && worker.fans.is_empty() && worker.bindings.is_empty(), "{name}");
                assert!(worker.hosts6.is_empty(), "{name}");
            }
        }
    }

    /// Follows a path from the client's end to the exit through what is written in the workers' tables, and asserts
    /// that the two ends of each hop agree. Returns node and slot of each step.
    pub(crate) fn trace(&self, opened: &Opened, path: usize) -> Vec<(NodeName, CtIndex)> {
        let mut way = Vec::new();
        let (mut end, mut key) = (opened.entry, opened.key);
        let mut upstream: Option<(SocketAddrV4, CtIndex, u16)> = None;
        loop {
            let by_address = |node: &&Node| node.control.data_address() == end.data;
            let node = self.nodes.values().find(by_address).expect("a node at this address");
            let worker = &node.workers[end.ct_index.worker()];
            let &(generation, role, fan, up, down) = worker.slots.get(&end.ct_index.slot()).expect("a slot in use");
            assert_eq!(generation, end.generation);
            way.push((node.config.name.clone(), end.ct_index));
            let up = if role == Role::Exit { worker.fans[&fan].1[path].expect("a link for the path") } else { up };
            let own_key = match role {
                Role::Entry => worker.client_keys[&fan],
                _ => worker.node_keys[&up.key.0],
            };
            assert_eq!(own_key, key, "both ends of the hop share the key");
            if let Some((data, ct_index, generation)) = upstream {
                assert_eq!((up.address, up.port), (*data.ip(), data.port()));
                assert_eq!((up.ct_index, up.generation), (ct_index, generation));
            }
            let down = match role {
                Role::Entry => worker.fans[&fan].1[path].expect("a link for the path"),
                Role::Relay => down,
                Role::Exit | Role::Free => return way,
            };
            upstream = Some((end.data, end.ct_index, generation));
            end.data = SocketAddrV4::new(down.address, down.port);
            (end.ct_index, end.generation, key) = (down.ct_index, down.generation, worker.node_keys[&down.key.0]);
        }
    }

    /// A packet over the whole of a path.
    pub(crate) fn traffic(&self, opened: &Opened, path: usize) {
        for (node, ct_index) in self.trace(opened, path) {
            self.nodes[&node].workers[ct_index.worker()].touch(ct_index.slot(), self.now);
        }
    }

    /// Carries out what the control cores want done, until they want nothing more at this moment.
    pub(crate) fn settle(&mut self) {
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            let now = self.now;
            let mut out = Vec::new();
            let node = self.node(&name);
            node.unstall(now);
            while let Some(effect) = node.next_effect(now) {
                match effect {
                    Effect::Respond { request, response } => {
                        let to = node.asked.remove(&request).expect("a request is answered once");
                        out.push(Message::Response { to, from: name.clone(), response });
                    }
                    Effect::Call { call, to, address, request } => {
                        assert_ne!(address.port(), 0);
                        let (origin, caller) =
                            (Origin::Node(name.clone(), node.config.boot_epoch, call), Caller::Node(name.clone()));
                        out.push(Message::Request { origin, caller, to, request });
                    }
                    Effect::Resolve { interface, address } => node.resolves.push((interface, address)),
                    Effect::FanReport { request, .. } => node.fan_reports.push(request),
                    Effect::Take(transit) => node.takes = transit,
                }
            }
            if node.is_up {
                out.into_iter().for_each(|message| self.send(message));
            }
        }
    }

    fn send(&mut self, message: Message) {
        for delay in (self.fate)(&message) {
            self.next_message += 1;
            self.messages.insert((self.now + delay, self.next_message), message.clone());
        }
    }

    fn deliver(&mut self, message: Message) {
        let now = self.now;
        match message {
            Message::Request { origin, caller, to, request } => {
                let node = self.node(&to);
                if !node.is_up {
                    if self.tells_unreachable {
                        self.send(Message::Unreachable { to: origin });
                    }
                } else {
                    node.next_request += 1;
                    let id = RequestId(node.next_request);
                    node.asked.insert(id, origin);
                    node.control.on_request(caller, id, request, now, UNIX_START + now / crate::SECOND);
                }
            }
            Message::Unreachable { to: Origin::Node(name, _, call) } => {
                self.node(&name).control.on_response(call, None, now);
            }
            Message::Unreachable { .. } => {}
            Message::Response { to: Origin::Client(asked), response, .. } => {
                self.answers.entry(asked).or_default().push(response);
            }
            Message::Response { to: Origin::Node(name, epoch, call), response, .. } => {
                let node = self.node(&name);
                if node.is_up && node.config.boot_epoch == epoch {
                    node.control.on_response(call, Some(response), now);
                }
            }
        }
    }
}

impl Node {
    fn new(config: ControlConfig, now: Nanos) -> Self {
        let workers: Vec<_> = (0..usize::from(config.identity.workers)).map(|n| TableWorker::new(&config, n)).collect();
        let published = workers.iter().map(|worker| worker.published.clone()).collect();
        Self {
            control: Control::new(config.clone(), published, now),
            workers,
            config,
            is_up: true,
            is_stalled: false,
            stalled: Vec::new(),
            room: usize::MAX,
            asked: HashMap::new(),
            next_request: 0,
            fan_reports: Vec::new(),
            takes: Transit::default(),
            resolves: Vec::new(),
        }
    }

    /// Gives a command to a worker and its event back.
    fn apply(&mut self, worker: usize, command: Command, now: Nanos) {
        if let Some(event) = self.workers[worker].apply(command, now) {
            self.control.on_event(worker, event, now);
        }
    }

    /// Has the workers do what they are to do, and then says what else there is.
    fn next_effect(&mut self, now: Nanos) -> Option<Effect> {
        loop {
            let mut count = 0;
            for worker in 0..self.workers.len() {
                let commands: Vec<Command> = self.control.take_commands(worker, self.room).collect();
                count += commands.len();
                self.room -= commands.len();
                for command in commands {
                    match self.is_stalled {
                        true => self.stalled.push((worker, command)),
                        false => self.apply(worker, command, now),
                    }
                }
            }
            if count == 0 {
                return self.control.poll();
            }
        }
    }

    fn unstall(&mut self, now: Nanos) {
        if !self.is_stalled {
            for (worker, command) in std::mem::take(&mut self.stalled) {
                self.apply(worker, command, now);
            }
        }
    }

    /// Answers the probes sent so far: `round_trip` by sequence number, `None` for a lost one.
    pub(crate) fn answer_probes(&mut self, round_trip: impl Fn(u64) -> Option<Nanos>) {
        for worker in 0..self.workers.len() {
            for (peer, sequence, sent) in std::mem::take(&mut self.workers[worker].probes) {
                if let Some(time) = round_trip(sequence) {
                    let received = sent + time;
                    let answer = ProbeAnswer { peer, sequence, sent, remote_received: 0, received };
                    self.control.on_event(worker, Event::ProbeAnswered(answer), received);
                }
            }
        }
    }
}

fn config(name: &str, number: u8, workers: u8) -> ControlConfig {
    let address = Ipv4Addr::new(10, 0, 0, number);
    let identity = Identity {
        address,
        data_port: 40000,
        nat_port_first: 40001,
        nat_port_last: 40999,
        probe_key: [number; 16],
        workers,
    };
    ControlConfig {
        name: name.into(),
        identity,
        control: SocketAddrV4::new(address, 4433),
        roles: Roles { entry: true, relay: true, exit: true },
        slots: 512,
        fans: 256,
        bindings: 256,
        bindings_a_session: 64,
        nat: NatConfig { gateway: vec![0], ..NatConfig::of(&identity) },
        interfaces: vec![Interface { index: 7, mac: [2, 0, 0, 0, 0, number], mtu: 1500, is_up: true }],
        policy: ExitPolicy { deny: vec!["10.0.0.0/8".parse().expect("a prefix")], ..ExitPolicy::default() },
        gateway: None,
        boot_epoch: 1000,
        seed: [number; 32],
    }
}
