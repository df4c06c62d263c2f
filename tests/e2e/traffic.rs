//! What users came for: UDP, TCP and ICMP echo cross the overlay unharmed, and each session's own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
};

use crate::support::{ENTRY, STARNET, Testbed, WWW, echo_tcp, eventually, noise, text};

#[test]
fn udp_tcp_and_ping_cross_the_overlay() {
    let testbed = Testbed::up("traffic", "default");

    testbed.udp_echo("www", (WWW, 7000));
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 7000)).unwrap();
    // From nothing to the largest that fits the TUN's MTU of 1400.
    for size in [0, 1, 2, 3, 100, 777, 1371, 1372] {
        let sent = noise(size as u64, size);
        socket.send(&sent).unwrap();
        let mut buffer = [0; 2000];
        let length = socket.recv(&mut buffer).unwrap();
        assert!(buffer[..length] == sent, "{size} bytes were sent, {length} came back, not the same");
    }

    testbed.tcp_echo("www", (WWW, 7001));
    let stream = testbed.connect("client", (WWW, 7001)).unwrap();
    echo_tcp(&stream, &noise(1, 4 << 20));

    let ping = testbed.run("client", &["ping", "-c", "5", "-i", "0.2", "-s", "1000", &WWW.to_string()]);
    assert!(text(&ping.stdout).contains(" 0% packet loss"), "{}", text(&ping.stdout));
    // Larger than any link: fragments, both ways.
    let ping = testbed.run("client", &["ping", "-c", "5", "-i", "0.2", "-s", "6000", &WWW.to_string()]);
    assert!(text(&ping.stdout).contains(" 0% packet loss"), "{}", text(&ping.stdout));
}

#[test]
fn a_packet_goes_over_both_paths_and_arrives_once() {
    let testbed = Testbed::up("paths", "default");
    testbed.udp_echo("www", (WWW, 7000));
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 7000)).unwrap();
    let before = testbed.drops("exit", "duplicate");
    for number in 0..200u32 {
        socket.send(&number.to_be_bytes()).unwrap();
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], number.to_be_bytes(), "each comes back once, in its turn");
    }
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 100]).is_err(), "a second copy came back");
    let dropped = testbed.drops("exit", "duplicate") - before;
    assert!(dropped >= 190, "the exit saw {dropped} second copies of 200");
}

#[test]
fn clients_with_the_same_inside_address_get_their_own_packets() {
    let testbed = Testbed::up("clients", "two-clients");
    testbed.udp_echo("www", (WWW, 7000));
    let clients = ["client", "client2"].map(|host| {
        // The same port too: nothing but the session tells them apart.
        let socket = testbed.udp(host, (Ipv4Addr::UNSPECIFIED, 5555));
        socket.connect((WWW, 7000)).unwrap();
        (host, socket)
    });
    for round in 0..100 {
        for (host, socket) in &clients {
            socket.send(format!("{host} {round}").as_bytes()).unwrap();
        }
        for (host, socket) in &clients {
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(text(&buffer[..length]), format!("{host} {round}"));
        }
    }
}

#[test]
fn forwarded_ports_need_no_root() {
    let testbed = Testbed::up("forward", "default");
    testbed.udp_echo("www", (WWW, 7000));
    testbed.tcp_echo("www", (WWW, 7001));
    let config = testbed.forwarding_client(&testbed.directory().join("tls/client.token"));
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let udp = format!("udp:127.0.0.1:6000={WWW}:7000");
    let tcp = format!("tcp:127.0.0.1:6001={WWW}:7001");
    // Nobody may not be allowed to read the folder the program was built in.
    let programs = tempfile::tempdir().unwrap();
    std::fs::set_permissions(programs.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let starnet = programs.path().join("starnet");
    std::fs::copy(STARNET, &starnet).unwrap();
    let client = [starnet.to_str().unwrap(), "client", "--config", config.to_str().unwrap()];
    let _client = testbed
        .spawn("client", &[&nobody[..], &client, &["--forward", udp.as_str(), "--forward", tcp.as_str()]].concat());

    let stream = eventually("the forwarded TCP port", || testbed.connect("client", local(6001)).ok());
    echo_tcp(&stream, &noise(2, 1 << 20));
    let second = testbed.connect("client", local(6001)).unwrap();
    echo_tcp(&second, &noise(3, 1000));

    let socket = testbed.udp("client", local(0));
    socket.connect(local(6000)).unwrap();
    for number in 0..100u32 {
        socket.send(&number.to_be_bytes()).unwrap();
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], number.to_be_bytes());
    }
}

#[test]
fn two_workers_on_two_queues_hand_over_what_arrives_at_the_wrong_one() {
    let testbed = Testbed::up("queues", "two-queues");
    testbed.udp_echo("www", (WWW, 7000));
    // Many flows: the server's kernel spreads the replies over both queues of its link.
    let sockets: Vec<_> = (0..32).map(|_| testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0))).collect();
    for round in 0..10u32 {
        for socket in &sockets {
            socket.send_to(&round.to_be_bytes(), (WWW, 7000)).unwrap();
        }
        for socket in &sockets {
            let mut buffer = [0; 100];
            let (length, _) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], round.to_be_bytes());
        }
    }
    testbed.tcp_echo("www", (WWW, 7001));
    for seed in 0..4 {
        echo_tcp(&testbed.connect("client", (WWW, 7001)).unwrap(), &noise(seed, 256 << 10));
    }

    let workers = testbed.show("exit", "workers");
    let of = |name: &str, field: &str| {
        let view = workers.as_array().unwrap().iter().find(|view| view["worker"] == name);
        view.unwrap_or_else(|| panic!("no worker {name} in {workers}"))[field].as_u64().unwrap()
    };
    for worker in ["0", "1"] {
        assert!(of(worker, "received") > 0, "worker {worker} received nothing: {workers}");
    }
    assert!(of("all", "handed_off") > 0, "nothing was handed over: {workers}");
    assert_eq!(testbed.drops("exit", "handoff"), 0);
}

#[test]
fn the_kernels_services_at_a_nodes_own_address_keep_working() {
    let testbed = Testbed::up("kernel", "default");
    let address = ENTRY.to_string();
    let _server = testbed.spawn("entry", &["python3", "-m", "http.server", "--bind", &address, "80"]);
    let url = format!("http://{address}/");
    for neighbour in ["client", "relay-a"] {
        eventually("the HTTP server", || {
            testbed.run(neighbour, &["curl", "-fsS", "--max-time", "5", &url]).status.success().then_some(())
        });
        let ping = testbed.run(neighbour, &["ping", "-c", "3", "-i", "0.2", &address]);
        assert!(text(&ping.stdout).contains(" 0% packet loss"), "{}", text(&ping.stdout));
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
