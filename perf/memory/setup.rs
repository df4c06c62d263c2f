//! How many sessions a second three nodes set up, hop by hop: the control cores of an entry, a relay and an exit in one thread,
//! whose messages are encoded and decoded as on the wire, but go from one to the other through memory.
//!
//! Every client's token is really verified, by each of the three, once. Workers are tables that do what a worker does about the
//! commands of a session: it is the control plane that is measured.

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use starnet::{
    Nanos,
    control::{CallId, Caller, Control, ControlConfig, Effect, RequestId},
    dataplane::{
        command::{Command, Event},
        exit_policy::ExitPolicy,
        forwarding::Identity,
        nat::NatConfig,
        published::Published,
    },
    limits::TICK,
    rpc::{
        codec::{decode, encode},
        messages::{Neighbour, Neighbours, Open, Register, Request, Response, Roles, SessionKind},
        token::{self, Claims, SigningKey},
    },
};

const NAMES: [&str; 3] = ["entry", "relay", "exit"];
const ENTRY: usize = 0;

const UNIX_SECONDS: u64 = 1_800_000_000;

/// Opens that are under way at a time.
const AT_ONCE: usize = 64;

/// Time between two ticks of a control core.
const CONTROL_TICK: Duration = Duration::from_millis(10);

/// Who waits for a node's answer.
enum Asker {
    Client,
    Node(usize, CallId),
}

struct Node {
    control: Control,
    published: Arc<Published>,
    waiting: HashMap<RequestId, Asker>,
    requests: u64,
    /// In its requests, its answers to others, its ticks, and what it decided.
    spent: Duration,
}

/// An encoded message under way.
enum Message {
    Request { to: usize, caller: Caller, asker: Asker, bytes: Vec<u8> },
    Response { to: usize, call: CallId, bytes: Vec<u8> },
}

/// What was done.
#[derive(Default)]
struct Done {
    opened: u32,
    messages: u64,
    codec: Duration,
}

/// Sets up `sessions` sessions of `clients` clients in turn, each with a token of its own; prints one line of JSON.
pub(crate) fn run(sessions: u32, clients: u32) {
    let key = SigningKey::generate();
    let mut nodes: Vec<Node> = (0..NAMES.len()).map(|place| Node::new(place, sessions)).collect();
    introduce(&mut nodes, &key);
    let opens: Vec<Vec<u8>> = opens(sessions, clients, &key);
    let mut done = Done::default();
    let mut messages = VecDeque::new();
    let start = Instant::now();
    let mut tick_next = start;
    let mut sent = 0;
    while done.opened < sessions {
        let now = start.elapsed().as_nanos() as Nanos;
        while sent < sessions && ((sent - done.opened) as usize) < AT_ONCE {
            let caller = Caller::Client(Ipv4Addr::from_bits(0x0a00_0000 + sent));
            messages.push_back(Message::Request {
                to: ENTRY,
                caller,
                asker: Asker::Client,
                bytes: opens[sent as usize].clone(),
            });
            sent += 1;
        }
        if Instant::now() >= tick_next {
            tick_next += CONTROL_TICK;
            for place in 0..nodes.len() {
                nodes[place].timed(|node| node.control.on_tick(now));
                settle(&mut nodes, place, now, &mut messages, &mut done);
            }
        }
        let Some(message) = messages.pop_front() else { continue };
        let place = deliver(&mut nodes, message, now, &mut done);
        settle(&mut nodes, place, now, &mut messages, &mut done);
        assert!(start.elapsed() < Duration::from_secs(120), "{} of {sessions} were opened", done.opened);
    }
    let nanos = start.elapsed().as_nanos() as u64;
    for (node, parts) in nodes.iter().zip([(sessions, 0, 0), (0, sessions, 0), (0, 0, sessions)]) {
        let summary = node.control.summary(0);
        let sessions = [summary.entries, summary.relays, summary.exits].map(|count| count as u32);
        assert_eq!((sessions[0], sessions[1], sessions[2]), parts, "{} holds each session once", summary.name);
    }
    let nodes: serde_json::Map<String, serde_json::Value> = NAMES
        .iter()
        .zip(&nodes)
        .map(|(name, node)| ((*name).to_owned(), (node.spent.as_nanos() as u64).into()))
        .collect();
    let told = serde_json::json!({
        "sessions": sessions, "nanos": nanos, "nodes": nodes, "codec": done.codec.as_nanos() as u64,
        "messages": done.messages, "verify": verification(&key).as_nanos() as u64,
    });
    println!("{told}");
}

impl Node {
    fn new(place: usize, sessions: u32) -> Self {
        let address = Ipv4Addr::new(192, 0, 2, place as u8 + 1);
        let identity = Identity {
            address,
            data_port: 40_000,
            nat_port_first: 40_001,
            nat_port_last: 49_999,
            probe_key: [place as u8; 16],
            workers: 1,
        };
        let published = Arc::new(Published::new(sessions as usize, 1));
        let config = ControlConfig {
            name: NAMES[place].into(),
            identity,
            control: SocketAddrV4::new(address, 4433),
            roles: Roles { entry: true, relay: true, exit: true },
            slots: sessions,
            fans: sessions,
            bindings: 1,
            bindings_a_session: 1,
            nat: NatConfig::of(&identity),
            interfaces: Vec::new(),
            policy: ExitPolicy::default(),
            gateway: None,
            boot_epoch: 1,
            seed: [place as u8; 32],
        };
        let control = Control::new(config, vec![Arc::clone(&published)], 0);
        Self { control, published, waiting: HashMap::new(), requests: 0, spent: Duration::ZERO }
    }

    fn timed<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let result = act(self);
        self.spent += start.elapsed();
        result
    }

    /// Has the worker do what it is to do, and then says what else there is.
    fn next_effect(&mut self, now: Nanos) -> Option<Effect> {
        loop {
            let commands: Vec<Command> = self.control.take_commands(0, usize::MAX).collect();
            if commands.is_empty() {
                return self.control.poll();
            }
            commands.into_iter().for_each(|command| self.apply(command, now));
        }
    }

    /// What a worker does about it, as far as the control core can tell.
    fn apply(&mut self, command: Command, now: Nanos) {
        let event = match command {
            Command::SetSlot { slot, .. } => {
                self.published.slots[slot as usize].reset((now / TICK) as u32);
                return;
            }
            Command::SetForwarding(forwarding) => Event::ForwardingRetired(forwarding),
            Command::SwapHistograms(empty) => Event::Histograms(empty),
            Command::ReadFan { request, report, .. } => Event::Fan { request, report },
            _ => return,
        };
        self.control.on_event(0, event, now);
    }
}

/// As the control centre does.
fn introduce(nodes: &mut [Node], key: &SigningKey) {
    let registered: Vec<Register> = nodes.iter().map(|node| node.control.register()).collect();
    for node in nodes {
        let neighbour = |r: &Register| Neighbour { node: r.node.clone(), probe_key: r.probe_key };
        let nodes = registered.iter().map(neighbour).collect();
        node.control.on_neighbours(Neighbours { nodes, token_key: key.public() }, 0);
    }
}

/// Encoded requests of clients, each for another session over the one path.
fn opens(sessions: u32, clients: u32, key: &SigningKey) -> Vec<Vec<u8>> {
    let token = |client: u32| {
        let claims = Claims {
            client: format!("client-{client}"),
            expires: UNIX_SECONDS + 3600,
            not_before: UNIX_SECONDS,
            exits: None,
            paths_max: 8,
            sessions_max: sessions,
        };
        token::issue(&claims, key)
    };
    let tokens: Vec<String> = (0..clients).map(token).collect();
    let open = |number: u32| {
        let mut session = [0; 16];
        session[..4].copy_from_slice(&number.to_be_bytes());
        let open = Open {
            token: tokens[(number % clients) as usize].clone(),
            session,
            kind: SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None },
            mtu: 1400,
            paths: vec![NAMES.map(str::to_owned).to_vec()],
        };
        encode(&Request::Open(open)).expect("an open is short")
    };
    (0..sessions).map(open).collect()
}

/// Gives a message to its node; which one that was.
fn deliver(nodes: &mut [Node], message: Message, now: Nanos, done: &mut Done) -> usize {
    done.messages += 1;
    match message {
        Message::Request { to, caller, asker, bytes } => {
            let request = done.timed(|| decode::<Request>(&bytes).expect("it was encoded a moment ago"));
            let node = &mut nodes[to];
            node.requests += 1;
            let id = RequestId(node.requests);
            node.waiting.insert(id, asker);
            node.timed(|node| node.control.on_request(caller, id, request, now, UNIX_SECONDS));
            to
        }
        Message::Response { to, call, bytes } => {
            let response = done.timed(|| decode::<Response>(&bytes).expect("it was encoded a moment ago"));
            nodes[to].timed(|node| node.control.on_response(call, Some(response), now));
            to
        }
    }
}

/// Carries out what a node decided.
fn settle(nodes: &mut [Node], place: usize, now: Nanos, messages: &mut VecDeque<Message>, done: &mut Done) {
    while let Some(effect) = nodes[place].timed(|node| node.next_effect(now)) {
        match effect {
            Effect::Call { call, to, request, .. } => {
                let bytes = done.timed(|| encode(&request).expect("a request is short"));
                let to = NAMES.iter().position(|name| *name == to).expect("one of the three");
                let caller = Caller::Node(NAMES[place].to_owned());
                messages.push_back(Message::Request { to, caller, asker: Asker::Node(place, call), bytes });
            }
            Effect::Respond { request, response } => {
                let bytes = done.timed(|| encode(&response).expect("a response is short"));
                match nodes[place].waiting.remove(&request) {
                    Some(Asker::Node(to, call)) => messages.push_back(Message::Response { to, call, bytes }),
                    Some(Asker::Client) => {
                        let Response::Opened(opened) = response else { panic!("not opened: {response:?}") };
                        assert_eq!(opened.paths, [None], "the path is up");
                        done.opened += 1;
                    }
                    None => panic!("an answer to nobody"),
                }
            }
            _ => {}
        }
    }
}

impl Done {
    fn timed<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = act();
        self.codec += start.elapsed();
        result
    }
}

/// What one verification of a token costs.
fn verification(key: &SigningKey) -> Duration {
    const TIMES: u32 = 2000;
    let claims = Claims {
        client: "client".into(),
        expires: UNIX_SECONDS + 3600,
        not_before: UNIX_SECONDS,
        exits: None,
        paths_max: 8,
        sessions_max: 1,
    };
    let (token, public) = (token::issue(&claims, key), key.public());
    let start = Instant::now();
    for _ in 0..TIMES {
        assert!(token::verify(std::hint::black_box(&token), &public, UNIX_SECONDS).is_ok());
    }
    start.elapsed() / TIMES
}
