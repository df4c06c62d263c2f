//! The clock, the switch, and everything that is on its way.

use std::{
    collections::BTreeMap,
    hash::Hasher,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use siphasher::sip::SipHasher13;

use super::{
    client::Client,
    node::{Knowledge, Node, Wish, address6_of},
    packets,
    server::Server,
    wires::{Random, Wire, Wires},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    control::{CallId, Caller, KernelEvent},
    dataplane::forwarding::Route,
    rpc::{
        messages::{Neighbour, Neighbours, NodeName, Open, Request, Response, SessionKind},
        token::{self, Claims, SigningKey},
    },
    wire::{
        ethernet::{self, Mac},
        ip4, ip6, read_u32,
    },
};

/// The router between the overlay's network and the server's.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 255, 254);

/// The same router as nodes know it by in IPv6.
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);

pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 1);

/// The wall clock when the virtual one is at zero.
const UNIX_START: u64 = 1_800_000_000;

/// Between two ticks of a control core.
const TICK: Nanos = 50 * MILLISECOND;

/// After this a call that was not answered has failed, as far as the transport is concerned.
const CALL_TIME_OUT: Nanos = 3 * SECOND;

/// Until the kernel gives up on a neighbour.
const RESOLVE_TIME_OUT: Nanos = 3 * SECOND;

/// A client sends an Open that was not answered again.
const OPEN_RETRY: Nanos = SECOND;

pub(super) fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

fn destination_of(packet: &[u8]) -> IpAddr {
    match ip4::parse(packet) {
        Ok(header) => header.destination.into(),
        Err(_) => ip6::parse(packet).expect("hosts send well-formed packets").destination.into(),
    }
}

/// Who waits for the answer to a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Node(usize, CallId),
    Client(usize),
}

enum Happening {
    Frame {
        to: usize,
        frame: Vec<u8>,
    },
    Request {
        to: usize,
        caller: Caller,
        origin: Origin,
        request: Request,
    },
    /// `None`: the transport gave up.
    Response {
        to: Origin,
        response: Option<Response>,
    },
    Resolved {
        node: usize,
        event: KernelEvent,
    },
    Tick {
        node: usize,
    },
    ClientTimer {
        client: usize,
    },
    OpenRetry {
        client: usize,
    },
}

pub(super) enum Host {
    Node(Box<Node>),
    Client(Box<Client>),
    Server(Server),
}

impl Host {
    fn address(&self) -> Ipv4Addr {
        match self {
            Self::Node(node) => node.address,
            Self::Client(client) => *client.address.ip(),
            Self::Server(server) => server.address,
        }
    }

    fn has_address(&self, address: IpAddr) -> bool {
        match (address, self) {
            (IpAddr::V4(address), _) => self.address() == address,
            (IpAddr::V6(address), Self::Node(node)) => address6_of(node.address) == address,
            (IpAddr::V6(address), Self::Server(server)) => server.address6 == address,
            (IpAddr::V6(_), Self::Client(_)) => false,
        }
    }
}

/// A frame that the switch lost.
pub(super) struct Lost {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) frame: Vec<u8>,
}

pub(super) struct World {
    pub(super) now: Nanos,
    hosts: Vec<Host>,
    is_dead: Vec<bool>,
    wires: Wires,
    /// Control messages lost, per mille, requests and responses alike.
    pub(super) message_loss: u64,
    random: Random,
    happenings: BTreeMap<(Nanos, u64), Happening>,
    next_happening: u64,
    pub(super) lost: Vec<Lost>,
    /// Of every frame sent: when, by whom, the bytes.
    trace: SipHasher13,
    key: SigningKey,
}

impl World {
    /// Nodes of these names, neighbours of each other, with two workers each, and the server.
    pub(super) fn new(seed: u64, nodes: &[&str]) -> Self {
        Self::knowing(Knowledge::None, seed, nodes)
    }

    /// The same, whose nodes know this of their NICs.
    pub(super) fn knowing(knowledge: Knowledge, seed: u64, nodes: &[&str]) -> Self {
        let mut world = Self {
            now: 0,
            hosts: Vec::new(),
            is_dead: Vec::new(),
            wires: Wires::new(seed),
            message_loss: 0,
            random: Random::new(seed),
            happenings: BTreeMap::new(),
            next_happening: 0,
            lost: Vec::new(),
            trace: SipHasher13::new(),
            key: SigningKey::generate(),
        };
        for (number, name) in nodes.iter().enumerate() {
            let address = Ipv4Addr::new(10, 0, 0, number as u8 + 1);
            world.add(Host::Node(Box::new(Node::new(name, address, 2, knowledge, seed, 0))));
            world.happens(TICK + number as Nanos * MILLISECOND, Happening::Tick { node: number });
        }
        world.add(Host::Server(Server::new(SERVER, SERVER6)));
        world.introduce();
        world
    }

    fn add(&mut self, host: Host) -> usize {
        self.hosts.push(host);
        self.is_dead.push(false);
        self.hosts.len() - 1
    }

    /// What the kernel and the control centre tell every node at its start.
    fn introduce(&mut self) {
        let registered: Vec<_> = self.nodes().map(|node| node.control.register()).collect();
        let neighbours: Vec<_> =
            registered.into_iter().map(|r| Neighbour { node: r.node, probe_key: r.probe_key }).collect();
        let token_key = self.key.public();
        let route = |prefix: &str, gateway| Route {
            prefix: prefix.parse().expect("a prefix"),
            gateway,
            interface: 0,
            metric: 0,
        };
        let routes = vec![route("10.0.0.0/16", None), route("0.0.0.0/0", Some(ROUTER))];
        for number in 0..self.nodes().count() {
            let now = self.now;
            let node = self.node(number);
            node.control.on_kernel(KernelEvent::Routes(routes.clone()), now);
            let prefix = "::/0".parse().expect("a prefix");
            let default6 = Route { prefix, gateway: Some(ROUTER6), interface: 0, metric: 0 };
            node.control.on_kernel(KernelEvent::Routes6(vec![default6]), now);
            node.control.on_neighbours(Neighbours { nodes: neighbours.clone(), token_key }, now);
            self.settle(number);
        }
    }

    /// A client with this number's addresses; returns the host's number.
    pub(super) fn add_client(&mut self, number: u8) -> usize {
        let address = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, number), 5_000 + u16::from(number));
        self.add(Host::Client(Box::new(Client::new(address, Ipv4Addr::new(100, 64, 0, number).into()))))
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.hosts.iter().filter_map(|host| if let Host::Node(node) = host { Some(&**node) } else { None })
    }

    /// The number of the node called `name`.
    pub(super) fn number(&self, name: &str) -> usize {
        self.nodes().position(|node| node.name == name).unwrap_or_else(|| panic!("no node is called {name}"))
    }

    pub(super) fn node(&mut self, number: usize) -> &mut Node {
        let Host::Node(node) = &mut self.hosts[number] else { panic!("host {number} is no node") };
        node
    }

    pub(super) fn client(&mut self, number: usize) -> &mut Client {
        let Host::Client(client) = &mut self.hosts[number] else { panic!("host {number} is no client") };
        client
    }

    /// The number of the server.
    pub(super) fn server_number(&self) -> usize {
        self.hosts.iter().position(|host| matches!(host, Host::Server(_))).expect("there is one")
    }

    pub(super) fn server(&mut self) -> &mut Server {
        let number = self.server_number();
        let Host::Server(server) = &mut self.hosts[number] else { unreachable!() };
        server
    }

    /// From now on the host neither sends nor hears.
    pub(super) fn kill(&mut self, number: usize) {
        self.is_dead[number] = true;
    }

    /// Both directions between two hosts are like this from now on.
    pub(super) fn set_wire(&mut self, a: usize, b: usize, wire: Wire) {
        self.wires.set(a, b, wire);
        self.wires.set(b, a, wire);
    }

    /// All wires between all hosts there are now.
    pub(super) fn set_all_wires(&mut self, wire: Wire) {
        for a in 0..self.hosts.len() {
            for b in 0..a {
                self.set_wire(a, b, wire);
            }
        }
    }

    /// A hash of everything that was sent so far, and when.
    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// The client asks the first node of `paths` for a tunnel over them.
    pub(super) fn open(&mut self, client: usize, paths: &[&str]) {
        let claims = Claims {
            client: format!("client {client}"),
            expires: UNIX_START + 86_400,
            not_before: UNIX_START,
            exits: None,
            paths_max: 8,
            sessions_max: 100,
        };
        let token = token::issue(&claims, &self.key);
        let session = std::array::from_fn(|_| self.random.next() as u8);
        let host = self.client(client);
        let kind = SessionKind::Tunnel { inside: host.inside.ip4, inside6: host.inside.ip6 };
        let paths = paths.iter().map(|path| path.split('-').map(NodeName::from).collect()).collect();
        host.open = Some(Open { token, session, kind, mtu: 1400, paths });
        self.ask_to_open(client);
    }

    fn ask_to_open(&mut self, client: usize) {
        let host = self.client(client);
        let Some(open) = host.open.clone().filter(|_| host.opened.is_none()) else { return };
        let caller = Caller::Client(*host.address.ip());
        let entry = self.number(&open.paths[0][0]);
        self.request(entry, caller, Origin::Client(client), Request::Open(open));
        self.happens(OPEN_RETRY, Happening::OpenRetry { client });
    }

    /// The client sends an inner packet.
    pub(super) fn send(&mut self, client: usize, inner: &[u8]) {
        let packet = self.client(client).send(inner);
        self.send_packet(client, &packet);
    }

    /// The client ends its session.
    pub(super) fn close(&mut self, client: usize) {
        let host = self.client(client);
        let open = host.open.clone().expect("the client has opened a session");
        let caller = Caller::Client(*host.address.ip());
        let entry = self.number(&open.paths[0][0]);
        let request = Request::Close { token: open.token, session: open.session };
        self.request(entry, caller, Origin::Client(client), request);
        self.client(client).session = None;
    }

    /// The server sends a packet of its own accord.
    pub(super) fn send_from_server(&mut self, packet: &[u8]) {
        let server = self.server_number();
        self.send_packet(server, packet);
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Nanos) {
        let end = self.now + time;
        while let Some(entry) = self.happenings.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now = entry.key().0;
            let happening = entry.remove();
            self.happen(happening);
        }
        self.now = end;
    }

    fn happens(&mut self, after: Nanos, happening: Happening) {
        self.next_happening += 1;
        self.happenings.insert((self.now + after, self.next_happening), happening);
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.now;
        match happening {
            Happening::Frame { to, frame } => self.deliver(to, &frame),
            Happening::Request { to, caller, origin, request } => {
                if !self.is_dead[to] {
                    let unix = UNIX_START + now / SECOND;
                    self.node(to).on_request(caller, origin, request, now, unix);
                    self.settle(to);
                }
            }
            Happening::Response { to: Origin::Node(node, call), response } => {
                if !self.is_dead[node] {
                    self.node(node).control.on_response(call, response, now);
                    self.settle(node);
                }
            }
            Happening::Response { to: Origin::Client(client), response } => {
                let Some(response) = response else { return };
                if self.client(client).on_response(response, now) {
                    self.happens(0, Happening::ClientTimer { client });
                }
            }
            Happening::Resolved { node, event } => {
                self.node(node).control.on_kernel(event, now);
                self.settle(node);
            }
            Happening::Tick { node } => {
                if !self.is_dead[node] {
                    self.node(node).control.on_tick(now);
                    self.settle(node);
                    self.happens(TICK, Happening::Tick { node });
                }
            }
            Happening::ClientTimer { client } => {
                if self.is_dead[client] {
                    return;
                }
                let (packet, next) = self.client(client).poll(now);
                if let Some(packet) = packet {
                    self.send_packet(client, &packet);
                }
                if let Some(next) = next {
                    self.happens(next.saturating_sub(now).max(1), Happening::ClientTimer { client });
                }
            }
            Happening::OpenRetry { client } => self.ask_to_open(client),
        }
    }

    /// Has a node do what there is to do, and carries out what it wants.
    fn settle(&mut self, number: usize) {
        let now = self.now;
        for wish in self.node(number).settle(now) {
            match wish {
                Wish::Frame(frame) => self.switch(number, frame),
                Wish::Call { call, to, request } => {
                    let caller = Caller::Node(self.node(number).name.clone());
                    let to = self.number(&to);
                    self.request(to, caller, Origin::Node(number, call), request);
                }
                Wish::Answer { to, response } => {
                    if !self.random.chance(self.message_loss) {
                        let delay = self.message_delay();
                        self.happens(delay, Happening::Response { to, response: Some(response) });
                    }
                }
                Wish::Resolve { interface, address } => {
                    let next_hop = match address {
                        IpAddr::V4(next_hop) => next_hop,
                        IpAddr::V6(router) => {
                            assert_eq!(router, ROUTER6, "nodes speak IPv4 with each other");
                            ROUTER
                        }
                    };
                    let is_there =
                        next_hop == ROUTER || self.host_at(next_hop.into()).is_some_and(|host| !self.is_dead[host]);
                    let (delay, event) = if is_there {
                        (MILLISECOND, KernelEvent::NeighbourUp { interface, address, mac: mac_of(next_hop) })
                    } else {
                        (RESOLVE_TIME_OUT, KernelEvent::NeighbourGone { interface, address })
                    };
                    self.happens(delay, Happening::Resolved { node: number, event });
                }
            }
        }
    }

    fn request(&mut self, to: usize, caller: Caller, origin: Origin, request: Request) {
        if !self.random.chance(self.message_loss) {
            let delay = self.message_delay();
            self.happens(delay, Happening::Request { to, caller, origin, request });
        }
        // The control core takes the first answer or failure and ignores what comes after.
        if matches!(origin, Origin::Node(..)) {
            self.happens(CALL_TIME_OUT, Happening::Response { to: origin, response: None });
        }
    }

    fn message_delay(&mut self) -> Nanos {
        10 * MILLISECOND + self.random.below(10 * MILLISECOND)
    }

    fn host_at(&self, address: IpAddr) -> Option<usize> {
        self.hosts.iter().position(|host| host.has_address(address))
    }

    /// Sends a packet of a client or the server, whose kernel knows everybody's MAC address.
    pub(super) fn send_packet(&mut self, from: usize, packet: &[u8]) {
        let to = self.host_at(destination_of(packet)).map(|to| self.hosts[to].address());
        let destination = to.unwrap_or(Ipv4Addr::from_bits(read_u32(packet, ip4::DESTINATION)));
        let frame = packets::frame(mac_of(destination), mac_of(self.hosts[from].address()), packet);
        self.switch(from, frame);
    }

    /// The switch: delivers by MAC address, and what is for the router by IP address.
    fn switch(&mut self, from: usize, frame: Vec<u8>) {
        self.trace.write_u64(self.now);
        self.trace.write_usize(from);
        self.trace.write(&frame);
        let packet = &frame[ethernet::HEADER_BYTES..];
        let destination = destination_of(packet);
        let is_ip6 = destination.is_ipv6();
        let kind = if is_ip6 { ethernet::TYPE_IP6 } else { ethernet::TYPE_IP4 };
        assert_eq!(ethernet::ether_type(&frame), Some(kind));
        let source = mac_of(self.hosts[from].address());
        assert_eq!(frame[6..12], source, "the source MAC address is the sender's");
        let to = self.host_at(destination);
        let is_local = matches!(destination, IpAddr::V4(address) if address.octets()[..2] == [10, 0]);
        let is_node = matches!(self.hosts[from], Host::Node(_));
        let next_hop = match (destination, to) {
            _ if is_node && !is_local => ROUTER,
            (IpAddr::V4(address), _) => address,
            (IpAddr::V6(_), to) => self.hosts[to.expect("the server answers who is there")].address(),
        };
        assert_eq!(frame[..6], mac_of(next_hop), "to {destination} by {next_hop}");
        let Some(to) = to else { return };
        let fate = self.wires.fate(from, to);
        if fate.is_empty() || self.is_dead[from] {
            self.lost.push(Lost { from, to, frame });
            return;
        }
        for delay in fate {
            self.happens(delay, Happening::Frame { to, frame: frame.clone() });
        }
    }

    fn deliver(&mut self, to: usize, frame: &[u8]) {
        let now = self.now;
        if self.is_dead[to] {
            return;
        }
        let packet = &frame[ethernet::HEADER_BYTES..];
        match &mut self.hosts[to] {
            Host::Node(node) => {
                node.put(frame);
                self.settle(to);
            }
            Host::Client(client) => client.on_packet(packet, now),
            Host::Server(server) => {
                if let Some(answer) = server.on_packet(packet) {
                    self.send_packet(to, &answer);
                }
            }
        }
    }

    /// Panics unless nothing is in use at any living node.
    pub(super) fn assert_all_free(&mut self) {
        let now = self.now;
        for number in 0..self.nodes().count() {
            if !self.is_dead[number] {
                self.node(number).assert_all_free(now);
            }
        }
    }
}
