//! Real QUIC over the loopback interface.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use tokio::sync::mpsc;

use super::*;
use crate::{
    control::interface::Caller,
    rpc::{
        cert::{
            ServerIdentity, Tls,
            tests::{deployment, load_controller, load_node},
        },
        codec,
        messages::{ALPN, Failure, FailureReason, Request, Response},
    },
};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
/// Far more than is ever needed: a test that runs into it has failed.
const LONG: Duration = Duration::from_secs(20);

fn node(name: &str) -> ServerIdentity {
    ServerIdentity::Node(name.to_owned())
}

fn request(token: &str) -> Request {
    Request::Topology { token: token.to_owned() }
}

fn v4(address: std::net::SocketAddr) -> SocketAddrV4 {
    match address {
        std::net::SocketAddr::V4(address) => address,
        other => panic!("{other} is not IPv4"),
    }
}

/// Answers each request by who asked and what.
fn echo(mut requests: mpsc::Receiver<Incoming>) {
    tokio::spawn(async move {
        while let Some(Incoming { caller, request, responder }) = requests.recv().await {
            responder.respond(said(&caller, &request));
        }
    });
}

fn said(caller: &Caller, request: &Request) -> Response {
    let Request::Topology { token } = request else { panic!("{request:?}") };
    Response::Failed(Failure { hop: format!("{caller:?} {token}"), reason: FailureReason::Busy })
}

fn serve(address: SocketAddrV4, tls: &Tls) -> (Server, SocketAddrV4) {
    let (server, requests) = Server::listen(address, tls).unwrap();
    echo(requests);
    let address = v4(server.address().unwrap());
    (server, address)
}

fn client(dir: &Path) -> Pool {
    Pool::bind(ANY, &Tls::load_client(&dir.join("ca.pem")).unwrap()).unwrap()
}

/// A bare connection, to misbehave over.
async fn connect(dir: &Path, address: SocketAddrV4, alpn: &[u8]) -> Result<Connection, String> {
    let tls = Tls::load_client(&dir.join("ca.pem")).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(crate::rpc::cert::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(&tls.roots))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let endpoint = Endpoint::client(ANY.into()).unwrap();
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let connecting = endpoint.connect_with(config, address.into(), "relay-1.node.starnet").unwrap();
    connecting.await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_node_is_known_by_its_certificate_and_a_client_by_its_address() {
    let dir = deployment(&["relay-1", "relay-2"]);
    let (server, address) = serve(ANY, &load_node(dir.path(), "relay-1").unwrap());

    let tls = load_node(dir.path(), "relay-2").unwrap();
    let (other, _) = serve(ANY, &tls);
    for pool in [Pool::bind(ANY, &tls).unwrap(), Pool::sharing(&other, &tls).unwrap()] {
        let response = pool.call(&node("relay-1"), address, &request("one"), LONG).await.unwrap();
        assert_eq!(response, said(&Caller::Node("relay-2".into()), &request("one")));
    }
    let response = client(dir.path()).call(&node("relay-1"), address, &request("two"), LONG).await.unwrap();
    assert_eq!(response, said(&Caller::Client(Ipv4Addr::LOCALHOST), &request("two")));
    assert_eq!(server.counters().retries.load(Relaxed), 3, "each new source has to show that it is there");
}

#[tokio::test]
async fn the_control_centre_answers_under_its_own_name() {
    let dir = deployment(&["relay-1"]);
    let (_server, address) = serve(ANY, &load_controller(dir.path()).unwrap());
    let pool = client(dir.path());
    pool.call(&ServerIdentity::Controller, address, &request(""), LONG).await.unwrap();
    let error = pool.call(&node("relay-1"), address, &request(""), LONG).await.unwrap_err();
    assert!(matches!(error, CallError::Connection { .. }), "{error}");
}

#[tokio::test]
async fn a_node_cannot_answer_under_another_nodes_name() {
    let dir = deployment(&["relay-1", "relay-2"]);
    let (_server, address) = serve(ANY, &load_node(dir.path(), "relay-2").unwrap());
    let error = client(dir.path()).call(&node("relay-1"), address, &request(""), LONG).await.unwrap_err();
    assert!(matches!(error, CallError::Connection { .. }), "{error}");
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_on_both_sides() {
    let (dir, other) = (deployment(&["relay-1"]), deployment(&["relay-1", "relay-2"]));
    let (server, address) = serve(ANY, &load_node(dir.path(), "relay-1").unwrap());

    // The caller trusts the server, the server does not trust the caller.
    let stranger = load_node(other.path(), "relay-2").unwrap();
    let mixed = Tls { roots: Tls::load_client(&dir.path().join("ca.pem")).unwrap().roots, ..stranger };
    let pool = Pool::bind(ANY, &mixed).unwrap();
    let error = pool.call(&node("relay-1"), address, &request(""), LONG).await.unwrap_err();
    assert!(matches!(error, CallError::Connection { .. }), "{error}");

    // The other way round.
    let error = client(other.path()).call(&node("relay-1"), address, &request(""), LONG).await.unwrap_err();
    assert!(matches!(error, CallError::Connection { .. }), "{error}");
    assert_eq!(server.counters().requests.load(Relaxed), 0);
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let dir = deployment(&["relay-1"]);
    let (_server, address) = serve(ANY, &load_node(dir.path(), "relay-1").unwrap());
    assert!(connect(dir.path(), address, b"h3").await.is_err());
    assert!(connect(dir.path(), address, ALPN).await.is_ok());
}

#[tokio::test]
async fn garbage_and_oversized_requests_reset_their_stream_and_nothing_else() {
    let dir = deployment(&["relay-1"]);
    let (server, address) = serve(ANY, &load_node(dir.path(), "relay-1").unwrap());
    let connection = connect(dir.path(), address, ALPN).await.unwrap();
    let good = codec::encode(&request("good")).unwrap();
    let mut lies = good.clone();
    lies[3] ^= 1;
    let oversized = vec![0; codec::frame_bytes_max::<Request>() + 1];
    let noise: Vec<u8> = (0..200u32).map(|i| (i * 97 + 13) as u8).collect();
    for bad in [&[][..], &[0, 0], &lies, &noise, &oversized] {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let _ = send.write_all(bad).await;
        let _ = send.finish();
        let error = receive.read_to_end(1 << 20).await.unwrap_err();
        assert!(
            matches!(&error, quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) if *code == code::MALFORMED),
            "{error}"
        );
    }
    assert_eq!(server.counters().malformed.load(Relaxed), 5);
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&good).await.unwrap();
    send.finish().unwrap();
    let response = receive.read_to_end(1 << 20).await.unwrap();
    assert_eq!(codec::decode(&response), Ok(said(&Caller::Client(Ipv4Addr::LOCALHOST), &request("good"))));

    // Our own side does not even send what is too long.
    let huge = request(&"x".repeat(limits::MESSAGE_BYTES_MAX));
    let error = client(dir.path()).call(&node("relay-1"), address, &huge, LONG).await.unwrap_err();
    assert!(matches!(error, CallError::Message { .. }), "{error}");
}

#[tokio::test]
async fn requests_share_a_connection_and_a_slow_one_holds_up_no_other() {
    let dir = deployment(&["relay-1"]);
    let (server, mut requests) = Server::listen(ANY, &load_node(dir.path(), "relay-1").unwrap()).unwrap();
    let address = v4(server.address().unwrap());
    tokio::spawn(async move {
        let mut slow = None;
        let mut answered = 0;
        while let Some(Incoming { caller, request, responder }) = requests.recv().await {
            if request == self::request("slow") {
                slow = Some((caller, responder));
                continue;
            }
            responder.respond(said(&caller, &request));
            answered += 1;
            // The slow one is answered only after all others were.
            if answered == 100 {
                let (caller, responder) = slow.take().expect("the slow one came first");
                responder.respond(said(&caller, &self::request("slow")));
            }
        }
    });
    let pool = client(dir.path());
    let call = |text: String| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let response = pool.call(&node("relay-1"), address, &request(&text), LONG).await.unwrap();
            assert_eq!(response, said(&Caller::Client(Ipv4Addr::LOCALHOST), &request(&text)));
        })
    };
    let slow = call("slow".into());
    while server.counters().requests.load(Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let fast: Vec<_> = (0..100).map(|number| call(format!("fast {number}"))).collect();
    for task in fast {
        task.await.unwrap();
    }
    slow.await.unwrap();
    assert_eq!(server.counters().connections.load(Relaxed), 1);
    assert_eq!(server.counters().requests.load(Relaxed), 101);
}

#[tokio::test]
async fn a_server_that_stopped_and_came_back_is_found_again() {
    let dir = deployment(&["relay-1"]);
    let tls = load_node(dir.path(), "relay-1").unwrap();
    let (server, address) = serve(ANY, &tls);
    let pool = client(dir.path());
    pool.call(&node("relay-1"), address, &request("before"), LONG).await.unwrap();
    server.close().await;
    drop(server);
    let (_server, requests) = loop {
        // The socket goes when the last task that holds it does.
        match Server::listen(address, &tls) {
            Ok(server) => break server,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    echo(requests);
    pool.call(&node("relay-1"), address, &request("after"), LONG).await.unwrap();
}

#[tokio::test]
async fn a_killed_servers_successor_tells_its_callers_that_it_knows_nothing() {
    let dir = deployment(&["relay-1"]);
    let tls = load_node(dir.path(), "relay-1").unwrap();
    let (started, address) = tokio::sync::oneshot::channel();
    let (kill, killed) = tokio::sync::oneshot::channel::<()>();
    let first = std::thread::spawn({
        let tls = tls.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // When this ends nothing of the runtime is polled again, so no farewell is sent.
            runtime.block_on(async {
                let (_server, address) = serve(ANY, &tls);
                started.send(address).unwrap();
                killed.await.unwrap();
            });
        }
    });
    let address = address.await.unwrap();
    let pool = client(dir.path());
    pool.call(&node("relay-1"), address, &request("before"), LONG).await.unwrap();
    let connection = pool.open_connection(&node("relay-1"), address).await.unwrap();
    kill.send(()).unwrap();
    first.join().unwrap();
    assert!(connection.close_reason().is_none());

    let (_server, _) = serve(address, &tls);
    pool.call(&node("relay-1"), address, &request("after"), LONG).await.unwrap();
    assert!(matches!(connection.close_reason(), Some(ConnectionError::Reset)), "{:?}", connection.close_reason());
}

#[tokio::test]
async fn nobody_there_is_a_time_out_and_an_answer_nobody_makes_a_refusal() {
    let dir = deployment(&["relay-1"]);
    let (server, mut requests) = Server::listen(ANY, &load_node(dir.path(), "relay-1").unwrap()).unwrap();
    let address = v4(server.address().unwrap());
    let pool = client(dir.path());
    let call = |timeout| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.call(&node("relay-1"), address, &request(""), timeout).await })
    };

    let refused = call(LONG);
    drop(requests.recv().await.unwrap().responder);
    let error = refused.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error}");

    let late = call(Duration::from_millis(50));
    let incoming = requests.recv().await.unwrap();
    let error = late.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error}");
    while !incoming.responder.is_abandoned() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let silent = UdpSocketHolder::new();
    let error = pool.call(&node("relay-1"), silent.address, &request(""), Duration::from_millis(50)).await.unwrap_err();
    assert!(error.to_string().contains("did not answer within 50 ms"), "{error}");
}

/// A port that is taken and never answers.
struct UdpSocketHolder {
    address: SocketAddrV4,
    _socket: std::net::UdpSocket,
}

impl UdpSocketHolder {
    fn new() -> Self {
        let socket = std::net::UdpSocket::bind(ANY).unwrap();
        Self { address: v4(socket.local_addr().unwrap()), _socket: socket }
    }
}
