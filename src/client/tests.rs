//! The whole client against a control centre and an entry that only this file knows: real QUIC, real sockets, no
//! root but for the TUN device. The entry answers keep-alives, echoes datagrams and refuses TCP connections.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    config::{ClientConfig, Forward, TunConfig},
    data::Data,
    forward::datagram,
    mailbox::{Letter, Mailbox},
    opener::Opener,
    routes,
    tun::Tun,
};
use crate::{
    dataplane::conntrack::CtIndex,
    rpc::{
        cert::{CONTROLLER_DNS_NAME, Tls, make_ca, make_controller, make_node, node_dns_name},
        messages::{
            Failure, FailureReason, LinkEnd, LinkQuality, NodeInfo, Open, Opened, Request, Response, Roles,
            SessionKind, Topology, TopologyLink,
        },
        quic::Server,
    },
    wire::{
        checksum, ip4, read_u16, read_u32,
        relay::{self, HEADER_BYTES, Header, HopKey, Kind},
        tcp, write,
    },
};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 5_000);
const INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const PATIENCE: Duration = Duration::from_secs(20);

/// What the entry knows and did.
#[derive(Default)]
struct Record {
    /// By ct_index.
    sessions: HashMap<u32, (Open, HopKey)>,
    closed: usize,
    is_token_refused: AtomicBool,
}

/// Control centre and entry.
struct Overlay {
    folder: tempfile::TempDir,
    controller: SocketAddrV4,
    record: Arc<Mutex<Record>>,
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("everything here is IPv4"),
    }
}

fn topology(control: SocketAddrV4, data: SocketAddrV4) -> Topology {
    let node = |name: &str, entry, relay, exit| NodeInfo {
        name: name.into(),
        control,
        data,
        roles: Roles { entry, relay, exit },
        boot_epoch: 1,
    };
    let link = |from: &str, to: &str| TopologyLink {
        from: from.into(),
        to: to.into(),
        quality: LinkQuality { probes: 1, rtt_p50_us: 1000, ..LinkQuality::default() },
    };
    Topology {
        nodes: vec![node("in", true, false, false), node("relay", false, true, false), node("out", false, false, true)],
        links: vec![link("in", "relay"), link("relay", "out"), link("in", "out")],
    }
}

impl Overlay {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        make_ca(folder.path(), false).unwrap();
        make_controller(folder.path(), false).unwrap();
        make_node(folder.path(), "in", false).unwrap();
        let file = |name: &str| folder.path().join(name);
        let tls = |name: &str, dns: &str| {
            Tls::load(&file("ca.pem"), &file(&format!("{name}.pem")), &file(&format!("{name}.key")), dns).unwrap()
        };
        let (of_controller, of_entry) = (tls("controller", CONTROLLER_DNS_NAME), tls("in", &node_dns_name("in")));
        let record = Arc::<Mutex<Record>>::default();

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let data = v4(socket.local_addr().unwrap());
        let known = Arc::clone(&record);
        std::thread::spawn(move || relay_packets(&socket, &known));

        let (addresses, ready) = std::sync::mpsc::channel();
        let asked = Arc::clone(&record);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
                let (controller, mut asks) = Server::listen(any, &of_controller).unwrap();
                let (entry, mut orders) = Server::listen(any, &of_entry).unwrap();
                addresses.send(v4(controller.address().unwrap())).unwrap();
                let topology = topology(v4(entry.address().unwrap()), data);
                loop {
                    let (incoming, is_controller) = tokio::select! {
                        Some(incoming) = asks.recv() => (incoming, true),
                        Some(incoming) = orders.recv() => (incoming, false),
                    };
                    let response = answer(&incoming.request, is_controller, &topology, &mut asked.lock().unwrap());
                    incoming.responder.respond(response);
                }
            });
        });
        Self { folder, controller: ready.recv().unwrap(), record }
    }

    fn config(&self, forwards: &[&str]) -> ClientConfig {
        ClientConfig {
            controller: self.controller,
            ca: self.folder.path().join("ca.pem"),
            token: "token".into(),
            entry: None,
            exit: None,
            paths: 2,
            inside: INSIDE.into(),
            socket: None,
            tun: None,
            forwards: forwards.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn kinds(&self) -> Vec<SessionKind> {
        self.record.lock().unwrap().sessions.values().map(|(open, _)| open.kind).collect()
    }

    fn closed(&self) -> usize {
        self.record.lock().unwrap().closed
    }
}

fn answer(request: &Request, is_controller: bool, topology: &Topology, record: &mut Record) -> Response {
    match request {
        Request::Topology { .. } if is_controller && record.is_token_refused.load(Ordering::Relaxed) => {
            Response::Failed(Failure { hop: "controller".into(), reason: FailureReason::TokenExpired })
        }
        Request::Topology { token } if is_controller && token == "token" => Response::Topology(topology.clone()),
        Request::Open(open) if !is_controller => {
            let known = record.sessions.iter().find(|(_, (known, _))| known.session == open.session);
            let ct_index = known.map_or(record.sessions.len() as u32 + 7, |(ct_index, _)| *ct_index);
            let key = [ct_index as u8; 16];
            record.sessions.insert(ct_index, (open.clone(), key));
            Response::Opened(Opened {
                entry: LinkEnd {
                    data: topology.nodes[0].data,
                    ct_index: CtIndex(ct_index),
                    generation: 3,
                    source_port: 0,
                },
                key,
                exit_address: Ipv4Addr::new(192, 0, 2, 9),
                exit_address6: None,
                paths: vec![None; open.paths.len()],
            })
        }
        Request::Close { .. } if !is_controller => {
            record.closed += 1;
            Response::Closed
        }
        other => panic!("nobody should ask this here: {other:?}"),
    }
}

/// The entry's data plane, and in one all that is behind it.
fn relay_packets(socket: &UdpSocket, record: &Mutex<Record>) {
    let mut sequence = 0;
    let mut bytes = [0; 2048];
    loop {
        let (length, client) = socket.recv_from(&mut bytes).unwrap();
        let header = relay::parse(&bytes[..length]).unwrap();
        let key = record.lock().unwrap().sessions[&header.ct_index].1;
        assert!(relay::is_authentic(&bytes[..length], &key) && header.generation == 3);
        let (kind, inner) = match header.kind {
            Kind::KeepAliveUp => (Kind::KeepAliveDown, Vec::new()),
            Kind::DataUp => (Kind::DataDown, reply(&bytes[HEADER_BYTES..length])),
            other => panic!("{other:?} from a client"),
        };
        sequence += 1;
        let mut datagram = vec![0; HEADER_BYTES];
        datagram.extend_from_slice(&inner);
        relay::emit(&mut datagram, &Header { kind, path: 0, generation: 0, ct_index: 0, sequence }, &key);
        // Two paths deliver everything twice.
        socket.send_to(&datagram, client).unwrap();
        socket.send_to(&datagram, client).unwrap();
    }
}

/// A server that echoes datagrams and refuses connections.
fn reply(packet: &[u8]) -> Vec<u8> {
    let header = ip4::parse(packet).unwrap();
    let transport = &packet[header.header_length..header.total_length];
    let from = SocketAddrV4::new(header.source, read_u16(transport, 0));
    let to = SocketAddrV4::new(header.destination, read_u16(transport, 2));
    if header.protocol == ip4::UDP {
        let mut echo = packet.to_vec();
        datagram::wrap(&mut echo, to, from, transport.len() - 8);
        return echo;
    }
    let mut reset = vec![0; 40];
    ip4::emit(&mut reset, *to.ip(), *from.ip(), ip4::TCP, 40, 64);
    let segment = &mut reset[20..];
    write(segment, tcp::SOURCE, &to.port().to_be_bytes());
    write(segment, tcp::DESTINATION, &from.port().to_be_bytes());
    write(segment, 8, &(read_u32(transport, 4).wrapping_add(1)).to_be_bytes());
    segment[12] = 5 << 4;
    segment[tcp::FLAGS] = tcp::RST | tcp::ACK;
    let field = !checksum::fold(checksum::sum(segment, checksum::pseudo_header(*to.ip(), *from.ip(), ip4::TCP, 20)));
    write(segment, tcp::CHECKSUM, &field.to_be_bytes());
    reset
}

/// The client in a thread, and how to end it.
struct Running {
    mailbox: Mailbox,
    thread: JoinHandle<Result<(), String>>,
}

impl Running {
    fn start(config: ClientConfig) -> Self {
        let (mailbox, reader) = Mailbox::new().unwrap();
        let letters = mailbox.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let tun = config.tun.as_ref().map(|tun| Tun::create(tun, config.inside)).transpose()?;
            let opener = Opener::start(&config, letters)?;
            let data = Data::new(config, tun, opener, reader)?;
            ready.send(()).unwrap();
            data.run()
        });
        let _ = is_ready.recv();
        Self { mailbox, thread }
    }

    fn ask(&self, topic: &str) -> Result<serde_json::Value, String> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.mailbox.post(Letter::Question { topic: topic.into(), reply });
        answer.blocking_recv().unwrap()
    }

    fn stop(self) -> Result<(), String> {
        self.mailbox.post(Letter::Stop);
        self.thread.join().unwrap()
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn local_program() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn exchange(program: &UdpSocket, to: SocketAddrV4, text: &[u8]) {
    program.send_to(text, to).unwrap();
    let mut bytes = [0; 2048];
    let (length, from) = program.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..length], v4(from)), (text, to));
}

#[test]
fn datagrams_cross_in_a_session_a_peer_and_sessions_are_closed_at_the_end() {
    let overlay = Overlay::start();
    let forward: Forward = format!("udp:127.0.0.1:{}={SERVER}", free_port()).parse().unwrap();
    let client = Running::start(overlay.config(&[&forward.to_string()]));
    let (one, other) = (local_program(), local_program());
    for round in 0..50 {
        exchange(&one, forward.listen, format!("one {round}").as_bytes());
        exchange(&other, forward.listen, &vec![round; 1372]);
    }
    other.send_to(&[0; 1373], forward.listen).unwrap();
    exchange(&other, forward.listen, b"");
    assert_eq!(overlay.kinds().len(), 2);
    assert!(overlay.kinds().iter().all(|kind| matches!(
        kind,
        SessionKind::Flow { protocol: ip4::UDP, source, server: SERVER } if *source.ip() == INSIDE
    )));

    let sessions = client.ask("sessions").unwrap();
    assert_eq!((sessions[0]["state"].as_str(), sessions[0]["sent"].as_u64()), (Some("ready"), Some(50)));
    let paths = client.ask("paths").unwrap();
    assert_eq!(paths[0]["nodes"], serde_json::json!(["in", "out"]));
    assert_eq!((paths.as_array().unwrap().len(), paths[1]["state"].as_str()), (4, Some("open")));
    let drops = client.ask("drops").unwrap();
    let count = |name: &str| {
        let counter = format!("client.drop.{name}");
        drops.as_array().unwrap().iter().find(|drop| drop["counter"] == counter).unwrap()["packets"].as_u64().unwrap()
    };
    assert_eq!(count("too_big"), 1);
    assert!(count("duplicate") >= 100, "every packet came twice");
    for other in ["wrong_tag", "not_ready", "session_failed", "not_flow", "not_for_us", "deliver_failed"] {
        assert_eq!(count(other), 0, "{other}");
    }
    assert!(client.ask("graph").is_err());
    assert_eq!(client.stop(), Ok(()));
    assert_eq!(overlay.closed(), 2);
}

#[test]
fn a_servers_refusal_resets_the_local_connection_and_closes_its_session() {
    let overlay = Overlay::start();
    let listen = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port());
    let client = Running::start(overlay.config(&[&format!("tcp:{listen}={SERVER}")]));
    for _ in 0..2 {
        let mut program = TcpStream::connect(listen).unwrap();
        program.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(program.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(client.ask("sessions").unwrap(), serde_json::json!([]));
    assert_eq!(client.stop(), Ok(()));
    assert_eq!((overlay.kinds().len(), overlay.closed()), (2, 2));
}

#[test]
fn a_token_that_has_expired_ends_the_client_with_the_reason() {
    let overlay = Overlay::start();
    overlay.record.lock().unwrap().is_token_refused.store(true, Ordering::Relaxed);
    let client = Running::start(overlay.config(&[&format!("udp:127.0.0.1:{}={SERVER}", free_port())]));
    let error = client.thread.join().unwrap().unwrap_err();
    assert_eq!(error, "no paths: the token has expired (at controller)");
}

#[test]
fn a_forward_to_a_port_in_use_is_refused_by_its_name() {
    let overlay = Overlay::start();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forward = format!("udp:{}={SERVER}", taken.local_addr().unwrap());
    let error = Running::start(overlay.config(&[&forward])).thread.join().unwrap().unwrap_err();
    assert!(error.contains(&forward) && error.contains("cannot be bound"), "{error}");
}

#[test]
fn the_hosts_packets_cross_by_the_tun_device() {
    // Threads started from here share this thread's namespace; it goes away with them.
    if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: a network namespace needs root ({error})");
        return;
    }
    routes::bring_loopback_up().unwrap();
    let overlay = Overlay::start();
    let mut config = overlay.config(&[]);
    config.tun = Some(TunConfig {
        name: "star0".into(),
        mtu: 1300,
        routes: vec!["198.51.100.0/24".parse().unwrap()],
        routes6: Vec::new(),
    });
    let client = Running::start(config);
    let program = UdpSocket::bind("0.0.0.0:0").unwrap();
    program.set_read_timeout(Some(PATIENCE)).unwrap();
    for round in 0..100 {
        exchange(&program, SERVER, &vec![round; 1272]);
    }
    let refused = TcpStream::connect_timeout(&SERVER.into(), PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(overlay.kinds(), [SessionKind::Tunnel { inside: INSIDE, inside6: None }]);
    assert_eq!(client.stop(), Ok(()));
    assert_eq!(overlay.closed(), 1);
    assert!(program.send_to(b"x", SERVER).is_err(), "device and route are gone");
}
