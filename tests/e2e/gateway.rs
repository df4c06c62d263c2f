//! The gateway: hosts that use it as their router, and know nothing of it, reach what they could reach through any
//! good router, and are seen by its address.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    thread,
};

use crate::support::{STARNET, Testbed, WWW, ask, echo_tcp, eventually, noise, text};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
const ALICE: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const BOB: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const DNS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);

/// The gateway's address on its link to alice.
const ALICES_ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 16, 2);

fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 2000];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (text(&buffer[..length]), from)
}

#[test]
fn ping_curl_iperf_dig_and_a_banner_work_as_through_any_router() {
    let testbed = Testbed::up("programs", "gateway");
    let run = |host: &str, program: &[&str]| {
        let output = testbed.run(host, program);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{program:?}: {said}\n{}", testbed.netns(&["show", "gateway", "drops"]));
        said
    };
    for host in ["alice", "bob"] {
        let said = run(host, &["ping", "-c", "20", "-i", "0.05", "-s", "1000", &WWW.to_string()]);
        assert!(said.contains(" 0% packet loss"), "{said}");
        // In fragments, which meet at one of the two workers.
        let said = run(host, &["ping", "-c", "20", "-i", "0.05", "-s", "6000", &WWW.to_string()]);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), noise(7, 20 << 20)).unwrap();
    let path = folder.path().to_str().unwrap();
    let _http = testbed.spawn("www", &["python3", "-m", "http.server", "8000", "--directory", path]);
    let back = folder.path().join("back");
    let url = format!("http://{WWW}:8000/file");
    run("alice", &["curl", "-sS", "--retry", "20", "--retry-connrefused", "-o", back.to_str().unwrap(), &url]);
    assert!(std::fs::read(back).unwrap() == noise(7, 20 << 20), "the file came back changed");

    for options in [&[][..], &["-R"], &["-u", "-b", "20M"], &["-u", "-b", "20M", "-R"]] {
        let server = testbed.spawn("www", &["iperf3", "-s", "-1"]);
        eventually("the iperf3 server", || {
            let listening = testbed.run("www", &["ss", "-Hltn", "sport", "=", ":5201"]);
            (!listening.stdout.is_empty()).then_some(())
        });
        let address = WWW.to_string();
        run("bob", &[&["iperf3", "-c", &address, "-t", "1"], options].concat());
        drop(server);
    }

    let server = testbed.udp("dns", (DNS, 53));
    let answer_one_question = move || {
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        // The same question, marked as an answer without records.
        buffer[2] |= 0x80;
        server.send_to(&buffer[..length], from).unwrap();
        from
    };
    let answered = thread::spawn(answer_one_question);
    let said = run("alice", &["dig", "+noedns", "+tries=1", &format!("@{DNS}"), "example.org"]);
    assert!(said.contains("NOERROR"), "{said}");
    assert_eq!(answered.join().unwrap().ip(), GATEWAY, "servers see the gateway");

    let listener = testbed.within("www", || std::net::TcpListener::bind((WWW, 22))).unwrap();
    let greeting = thread::spawn(move || {
        use std::io::Write;
        listener.accept().unwrap().0.write_all(b"SSH-2.0-banner\r\n").unwrap();
    });
    let said = run("bob", &["nc", "-w", "5", &WWW.to_string(), "22"]);
    assert!(said.starts_with("SSH-2.0-banner"), "{said}");
    greeting.join().unwrap();
}

#[test]
fn traceroute_and_mtr_show_the_hops_as_they_are() {
    let testbed = Testbed::up("hops", "gateway");
    let www = WWW.to_string();
    let way = [ALICES_ROUTER, ROUTER, WWW].map(|address| address.to_string());
    for method in [&["-U"][..], &["-I"], &["-T", "-p", "80"]] {
        let said =
            testbed.run("alice", &[&["traceroute", "-n", "-q", "1", "-w", "5"], method, &[www.as_str()]].concat());
        let said = text(&said.stdout);
        let hops: Vec<_> = said.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(hops, way, "traceroute {method:?}: {said}");
    }
    for method in [&[][..], &["--udp"], &["--tcp", "--port", "80"]] {
        let said =
            testbed.run("alice", &[&["mtr", "-n", "--raw", "-c", "2", "-i", "0.3"], method, &[www.as_str()]].concat());
        let said = text(&said.stdout);
        for (number, hop) in way.iter().enumerate() {
            assert!(said.lines().any(|line| line == format!("h {number} {hop}")), "mtr {method:?}: {said}");
        }
    }
}

#[test]
fn what_servers_and_routers_refuse_is_heard_at_once() {
    let testbed = Testbed::up("refusals", "gateway");
    let refused = testbed.connect("alice", (WWW, 7001)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let socket = testbed.udp("bob", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 7001)).unwrap();
    let refused = ask(&socket, b"anyone?", &mut [0; 10]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // The gateway has no route there, and says so.
    let unreachable = testbed.connect("alice", (Ipv4Addr::new(192, 0, 2, 1), 80)).unwrap_err();
    assert_eq!(unreachable.kind(), std::io::ErrorKind::NetworkUnreachable);
    // From outside nobody reaches a host that has not spoken first.
    let stranger = testbed.udp("www", (WWW, 0));
    let bob = testbed.udp("bob", (Ipv4Addr::UNSPECIFIED, 6000));
    bob.set_nonblocking(true).unwrap();
    stranger.send_to(b"hello", (GATEWAY, 45_678)).unwrap();
    let dropped = || testbed.drops("gateway", "nat_out2in.drop.no_mapping");
    eventually("the stranger's packet to be dropped", || (dropped() > 0).then_some(()));
    assert!(bob.recv(&mut [0; 10]).is_err());
}

#[test]
fn inside_hosts_reach_each_other_as_they_are_and_by_the_outside_address() {
    let testbed = Testbed::up("inside", "gateway");
    let www = testbed.udp("www", (WWW, 7000));
    let sockets = [("alice", ALICE), ("bob", BOB)].map(|(host, address)| testbed.udp(host, (address, 5000)));
    let outside = sockets.each_ref().map(|socket| {
        socket.send_to(b"who am I?", (WWW, 7000)).unwrap();
        let (said, seen) = receive(&www);
        assert_eq!((said.as_str(), seen.ip()), ("who am I?", GATEWAY.into()));
        seen
    });
    assert_ne!(outside[0], outside[1]);
    let [alice, bob] = &sockets;

    alice.send_to(b"directly", (BOB, 5000)).unwrap();
    assert_eq!(receive(bob), ("directly".to_owned(), SocketAddrV4::new(ALICE, 5000).into()));
    // RFC 4787 REQ-9: the sender looks as it would from outside.
    alice.send_to(b"around", outside[1]).unwrap();
    assert_eq!(receive(bob), ("around".to_owned(), outside[0]));
    bob.send_to(b"and back", outside[0]).unwrap();
    assert_eq!(receive(alice), ("and back".to_owned(), outside[1]));
    // Whoever knows the address may speak to it: mapping and filtering do not depend on the server.
    let other = testbed.udp("dns", (DNS, 7000));
    other.send_to(b"from elsewhere", outside[0]).unwrap();
    assert_eq!(receive(alice), ("from elsewhere".to_owned(), SocketAddrV4::new(DNS, 7000).into()));
}

#[test]
fn what_comes_in_at_the_other_worker_is_handed_over() {
    let testbed = Testbed::up("workers", "gateway");
    testbed.tcp_echo("www", (WWW, 7001));
    thread::scope(|scope| {
        for (number, host) in ["alice", "bob"].into_iter().cycle().take(8).enumerate() {
            let testbed = &testbed;
            scope.spawn(move || {
                let stream = testbed.connect(host, (WWW, 7001)).unwrap();
                echo_tcp(&stream, &noise(number as u64, 1 << 20));
                // Echo replies arrive on whatever queue the router chose.
                let said = testbed.run(host, &["ping", "-c", "5", "-i", "0.05", &WWW.to_string()]);
                assert!(text(&said.stdout).contains(" 0% packet loss"), "{}", text(&said.stdout));
            });
        }
    });
    let workers = testbed.show("gateway", "workers");
    let all = workers.as_array().unwrap().iter().find(|worker| worker["worker"] == "all").unwrap();
    assert!(all["handed_off"].as_u64().unwrap() > 0, "{workers}");
    assert_eq!(testbed.drops("gateway", ""), 0, "{}", testbed.netns(&["show", "gateway", "drops"]));
}

#[test]
fn the_gateway_itself_stays_reachable_and_nobody_inside_pretends() {
    let testbed = Testbed::up("itself", "gateway");
    for address in [GATEWAY, ALICES_ROUTER] {
        let said = testbed.run("alice", &["ping", "-c", "2", "-i", "0.1", &address.to_string()]);
        assert!(text(&said.stdout).contains(" 0% packet loss"), "{}", text(&said.stdout));
    }
    testbed.tcp_echo("gateway", (GATEWAY, 2222));
    for host in ["alice", "www"] {
        let stream = testbed.connect(host, (GATEWAY, 2222)).unwrap();
        echo_tcp(&stream, b"as if there were no gateway");
    }
    let added = testbed.run("alice", &["ip", "address", "add", "192.168.0.2/32", "dev", "lo"]);
    assert!(added.status.success());
    let pretender = testbed.udp("alice", (BOB, 0));
    pretender.send_to(b"I am bob", (WWW, 7000)).unwrap();
    let spoofed = || testbed.drops("gateway", "gateway_input.drop.spoofed");
    eventually("the packet to be dropped", || (spoofed() == 1).then_some(()));
}

#[test]
fn forwarded_ports_reach_their_hosts_and_follow_the_file() {
    let testbed = Testbed::up("forwarded", "gateway");
    testbed.tcp_echo("alice", (ALICE, 8080));
    // From outside, from inside by the outside address, and from the host itself.
    for host in ["www", "bob", "alice"] {
        let stream = testbed.connect(host, (GATEWAY, 80)).unwrap();
        echo_tcp(&stream, &noise(3, 100_000));
    }
    let bob = testbed.udp("bob", (BOB, 5353));
    let dns = testbed.udp("dns", (DNS, 9000));
    let ask_and_answer = |port| {
        dns.send_to(b"question", (GATEWAY, port)).unwrap();
        let (said, from) = receive(&bob);
        assert_eq!((said.as_str(), from), ("question", SocketAddrV4::new(DNS, 9000).into()));
        bob.send_to(b"answer", from).unwrap();
        assert_eq!(receive(&dns), ("answer".to_owned(), SocketAddrV4::new(GATEWAY, port).into()));
    };
    ask_and_answer(53);

    // A flow that there is, before the file changes.
    testbed.tcp_echo("www", (WWW, 7001));
    let old = testbed.connect("alice", (WWW, 7001)).unwrap();
    let file = testbed.directory().join("config/gateway.toml");
    let text_of = || std::fs::read_to_string(&file).unwrap();
    let socket = testbed.directory().join("run/gateway.sock");
    let order = |words: &[&str]| {
        let command = [&[STARNET], words, &["--socket", socket.to_str().unwrap()]].concat();
        let output = testbed.run("gateway", &command);
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    std::fs::write(&file, text_of().replace("198.18.1.1:80\"", "198.18.1.1:8000\"")).unwrap();
    let (is_done, said) = order(&["reload"]);
    assert!(is_done && said.starts_with("reloaded: 2 static mappings"), "{said}");
    echo_tcp(&testbed.connect("www", (GATEWAY, 8000)).unwrap(), b"the new port");
    assert!(testbed.connect("www", (GATEWAY, 80)).is_err(), "the old port is the kernel's, where nobody listens");
    ask_and_answer(53);

    // SIGHUP is the same.
    std::fs::write(&file, text_of().replace("198.18.1.1:8000\"", "198.18.1.1:8001\"")).unwrap();
    testbed.signal("gateway", nix::sys::signal::Signal::SIGHUP);
    eventually("the new port", || testbed.connect("www", (GATEWAY, 8001)).ok());

    // What cannot change while it runs, and what is wrong, changes nothing.
    let good = text_of();
    for (change, complaint) in
        [(("workers = 2", "workers = 1"), "node.workers changed"), (("inside =", "insight ="), "insight")]
    {
        std::fs::write(&file, good.replace(change.0, change.1)).unwrap();
        let (is_done, said) = order(&["reload"]);
        assert!(!is_done && said.contains(complaint), "{said}");
    }
    echo_tcp(&testbed.connect("www", (GATEWAY, 8001)).unwrap(), b"still there");

    // What there is can be seen, and cleared but for what the file says.
    let (is_done, said) = order(&["show", "nat", "flows", "--protocol", "tcp", "--state", "static"]);
    assert!(is_done && said.contains("198.18.1.1:8001") && said.contains("stays"), "{said}");
    let late = testbed.udp("alice", (Ipv4Addr::UNSPECIFIED, 6001));
    late.send_to(b"to be cleared", (WWW, 7000)).unwrap();
    let flows = || order(&["show", "nat", "flows", "--host", "192.168.0.1", "--port", "6001"]).1;
    eventually("the binding to be seen", || flows().contains("192.168.0.1:6001").then_some(()));
    let (is_done, said) = order(&["clear", "nat", "--host", "192.168.0.1", "--port", "6001"]);
    assert!(is_done && said == "cleared: 1 bindings\n", "{said}");
    eventually("the binding to be gone", || (!flows().contains("6001")).then_some(()));
    for part in ["summary", "hosts", "ports"] {
        let (is_done, said) = order(&["show", "nat", part]);
        assert!(is_done && said.lines().count() >= 2, "{part}: {said}");
    }
    let (is_done, said) = order(&["clear", "nat"]);
    assert!(!is_done && said.contains("--all"), "{said}");

    // An established flow does not need the control core; a new one waits for it and is not lost.
    testbed.udp_echo("www", (WWW, 7002));
    let steady = testbed.udp("alice", (Ipv4Addr::UNSPECIFIED, 0));
    let echo = || {
        steady.send_to(b"while the control core does nothing", (WWW, 7002)).unwrap();
        receive(&steady);
    };
    echo();
    thread::scope(|scope| {
        let stalled = scope.spawn(|| order(&["debug", "stall", "500"]));
        (0..20).for_each(|_| echo());
        echo_tcp(&testbed.connect("bob", (WWW, 7001)).unwrap(), b"a new one");
        assert_eq!(stalled.join().unwrap(), (true, "stalled: 500 ms\n".to_owned()));
    });
    assert!(!order(&["debug", "stall", "1001"]).0);

    let (is_done, said) = order(&["drain"]);
    assert!(is_done && said.starts_with("draining: "), "{said}");
    let late = testbed.udp("alice", (Ipv4Addr::UNSPECIFIED, 0));
    late.send_to(b"too late", (WWW, 7000)).unwrap();
    eventually("the new flow to be refused", || (testbed.drops("gateway", "draining") > 0).then_some(()));
    echo_tcp(&old, b"a flow from before all this");
    assert!(order(&["drain", "--off"]).0);
    echo_tcp(&testbed.connect("bob", (WWW, 7001)).unwrap(), b"and new ones again");
}

#[test]
fn an_exit_is_a_gateway_at_the_same_time() {
    let testbed = Testbed::up("both", "gateway-exit");
    let www = testbed.udp("www", (WWW, 7000));
    let sockets = ["client", "alice"].map(|host| {
        let socket = testbed.udp(host, (Ipv4Addr::UNSPECIFIED, 5000));
        socket.connect((WWW, 7000)).unwrap();
        (host, socket)
    });
    let seen = sockets.each_ref().map(|(host, socket)| {
        socket.send(host.as_bytes()).unwrap();
        let (said, seen) = receive(&www);
        assert_eq!((said.as_str(), seen.ip()), (*host, GATEWAY.into()), "both are seen by the node's address");
        seen
    });
    assert_ne!(seen[0], seen[1]);
    for ((host, socket), seen) in sockets.iter().zip(seen) {
        www.send_to(format!("to {host}").as_bytes(), seen).unwrap();
        assert_eq!(receive(socket).0, format!("to {host}"));
    }
    for host in ["client", "alice"] {
        let said = testbed.run(host, &["ping", "-c", "5", "-i", "0.1", &WWW.to_string()]);
        assert!(text(&said.stdout).contains(" 0% packet loss"), "{host}: {}", text(&said.stdout));
    }
    // Each reaches the other by its outside address.
    let client = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 5002));
    client.send_to(b"who am I?", (WWW, 7000)).unwrap();
    let (_, outside) = receive(&www);
    let alice = testbed.udp("alice", (Ipv4Addr::UNSPECIFIED, 5002));
    alice.send_to(b"into the overlay", outside).unwrap();
    let (said, from) = receive(&client);
    assert_eq!((said.as_str(), from.ip()), ("into the overlay", GATEWAY.into()));
    client.send_to(b"and back", from).unwrap();
    assert_eq!(receive(&alice), ("and back".to_owned(), outside));
}
