//! The gateway and hosts of IPv6: they reach servers of IPv6 by its outside address (NAPT66), and servers of IPv4 by
//! their names in the well-known prefix (NAT64), with the programs that people use.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    servers6::{DNS6, DNS64, WWW6, WWW64, answer_one_question, dig, echo_in_fragments, run},
    support::{STARNET, Testbed, WWW, ask, echo_tcp, eventually, noise, text},
};

const OUTSIDE: &str = "198.18.1.1";
const OUTSIDE6: &str = "2001:db8:ff::1";
/// OUTSIDE by its name in the well-known prefix.
const OUTSIDE64: &str = "64:ff9b::c612:101";

#[test]
fn ping_curl_and_dig_reach_servers_of_both_families() {
    let testbed = Testbed::up("programs6", "gateway6");
    for host in ["alice", "bob"] {
        for server in [WWW6, WWW64, DNS6, DNS64] {
            let said = run(&testbed, host, &["ping", "-6", "-c", "20", "-i", "0.05", "-s", "1000", server]);
            assert!(said.contains(" 0% packet loss"), "{said}");
        }
        // The other host, untranslated.
        let other = if host == "alice" { "2001:db8:2::2" } else { "2001:db8:1::2" };
        let said = run(&testbed, host, &["ping", "-6", "-c", "5", "-i", "0.05", other]);
        assert!(said.contains(" 0% packet loss") && said.contains("ttl=63"), "{said}");
    }

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), noise(7, 4 << 20)).unwrap();
    let path = folder.path().to_str().unwrap();
    let www = WWW.to_string();
    let serve = |address: &str| {
        testbed.spawn("www", &["python3", "-m", "http.server", "8000", "--bind", address, "--directory", path])
    };
    let _servers = [serve(&www), serve(WWW6)];
    let back = folder.path().join("back");
    for server in [WWW6, WWW64] {
        let url = format!("http://[{server}]:8000/file");
        let options = ["-g", "-sS", "--retry", "20", "--retry-connrefused", "-o", back.to_str().unwrap(), &url];
        run(&testbed, "alice", &[&["curl"], &options[..]].concat());
        assert!(std::fs::read(&back).unwrap() == noise(7, 4 << 20), "the file came back changed from {server}");
    }

    dig(&testbed, "bob", OUTSIDE, OUTSIDE6);
}

#[test]
fn what_is_larger_than_any_link_is_translated_in_fragments() {
    let testbed = Testbed::up("fragments6", "gateway6");
    let said = run(&testbed, "alice", &["ping", "-6", "-c", "10", "-i", "0.1", "-s", "6000", DNS6]);
    assert!(said.contains(" 0% packet loss"), "{said}");
    testbed.udp_echo("dns", (Ipv6Addr::UNSPECIFIED, 7000));
    for (host, server) in [("alice", DNS6), ("alice", DNS64), ("bob", DNS6), ("bob", DNS64)] {
        echo_in_fragments(&testbed, host, server);
    }
}

#[test]
fn traceroute_shows_the_hops_and_routers_of_ipv4_have_names() {
    let testbed = Testbed::up("hops6", "gateway6");
    for (server, router) in [(WWW6, "2001:db8:f0::1"), (WWW64, "64:ff9b::c612:1")] {
        let way = ["2001:db8:1::1", router, server].map(|hop| hop.parse::<Ipv6Addr>().unwrap());
        for method in [&["-U"][..], &["-I"], &["-T", "-p", "80"]] {
            let options = [&["traceroute", "-6", "-n", "-q", "1", "-w", "5"], method, &[server]].concat();
            let said = text(&testbed.run("alice", &options).stdout);
            let hop = |line: &str| line.split_whitespace().nth(1).and_then(|hop| hop.parse().ok());
            let hops: Vec<Option<Ipv6Addr>> = said.lines().skip(1).map(hop).collect();
            assert_eq!(hops, way.map(Some), "traceroute {method:?} {server}: {said}");
        }
    }
}

#[test]
fn a_packet_that_is_too_big_on_the_way_is_told_the_size_that_its_sender_counts_in() {
    let testbed = Testbed::up("too-big6", "gateway6");
    // The link to www carries 1400 bytes: of IPv4 1420, when it is IPv6 before.
    for (server, mtu) in [(WWW6, 1400), (WWW64, 1420)] {
        let ping = |packet: usize| {
            let payload = (packet - 48).to_string();
            let output = testbed.run("bob", &["ping", "-6", "-M", "do", "-c", "2", "-W", "5", "-s", &payload, server]);
            (output.status.success(), text(&output.stdout) + &text(&output.stderr))
        };
        let (_, said) = ping(mtu + 8);
        assert!(said.contains(&format!("mtu={mtu}")) || said.contains(&format!("mtu: {mtu}")), "{server}: {said}");
        let (is_answered, said) = ping(mtu);
        assert!(is_answered, "{server}: {said}");
    }
}

#[test]
fn what_a_server_refuses_is_heard_at_once() {
    let testbed = Testbed::up("refusals6", "gateway6");
    for server in [WWW6, WWW64] {
        let socket = testbed.udp("alice", (Ipv6Addr::UNSPECIFIED, 0));
        socket.connect((server.parse::<Ipv6Addr>().unwrap(), 7001)).unwrap();
        let refused = ask(&socket, b"anyone?", &mut [0; 10]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{server}");
        let said = testbed.run("alice", &["nc", "-6", "-w", "5", "-z", "-v", server, "7001"]);
        assert!(text(&said.stderr).contains("refused"), "{server}: {}", text(&said.stderr));
    }
}

#[test]
fn curl_dig_and_nc_reach_forwarded_ports_from_both_families_and_from_inside() {
    let testbed = Testbed::up("served6", "gateway6");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), noise(7, 1 << 20)).unwrap();
    let path = folder.path().to_str().unwrap();
    let _http = testbed
        .spawn("alice", &["python3", "-m", "http.server", "8080", "--bind", "2001:db8:1::2", "--directory", path]);
    let back = folder.path().join("back");
    let fetch = |host: &str, server: &str| {
        let url =
            if server.contains(':') { format!("http://[{server}]/file") } else { format!("http://{server}/file") };
        let options = ["-g", "-sS", "--retry", "20", "--retry-connrefused", "-o", back.to_str().unwrap(), &url];
        run(&testbed, host, &[&["curl"], &options[..]].concat());
        assert!(std::fs::read(&back).unwrap() == noise(7, 1 << 20), "{host} got another file from {server}");
        std::fs::remove_file(&back).unwrap();
    };
    for host in ["www", "dns"] {
        [OUTSIDE6, OUTSIDE].iter().for_each(|server| fetch(host, server));
    }
    // From inside, the server itself included.
    for host in ["bob", "alice"] {
        [OUTSIDE6, OUTSIDE64, OUTSIDE].iter().for_each(|server| fetch(host, server));
    }

    for (server, asking) in [(OUTSIDE6, DNS6), (OUTSIDE, DNS64)] {
        let socket = testbed.udp("bob", "[2001:db8:2::2]:5353".parse::<SocketAddr>().unwrap());
        let answered = thread::spawn(move || answer_one_question(&socket));
        let said = run(&testbed, "dns", &["dig", "+noedns", "+tries=1", &format!("@{server}"), "example.org"]);
        assert!(said.contains("NOERROR"), "{said}");
        assert_eq!(answered.join().unwrap(), asking.parse::<IpAddr>().unwrap(), "hosts see the client, or its name");
    }
    // Nobody listens there any more, and who asks hears so.
    for server in [OUTSIDE6, OUTSIDE] {
        let socket =
            testbed.udp("www", SocketAddr::new(if server == OUTSIDE { "0.0.0.0" } else { "::" }.parse().unwrap(), 0));
        socket.connect(SocketAddr::new(server.parse().unwrap(), 53)).unwrap();
        let refused = ask(&socket, b"anyone?", &mut [0; 10]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{server}");
    }
    for (host, server) in [("www", OUTSIDE6), ("www", OUTSIDE), ("bob", OUTSIDE64)] {
        let said = testbed.run(host, &["nc", "-w", "5", "-z", "-v", server, "80"]);
        assert!(said.status.success(), "{host} {server}: {}", text(&said.stderr));
    }
}

#[test]
fn forwarded_ports_of_both_families_follow_the_file_and_other_flows_go_on() {
    let testbed = Testbed::up("forwarded6", "gateway6");
    let [inside, www] = ["2001:db8:1::2", WWW6].map(|address| address.parse::<Ipv6Addr>().unwrap());
    testbed.tcp_echo("alice", (inside, 8080));
    testbed.tcp_echo("www", (Ipv6Addr::UNSPECIFIED, 7001));
    let reach = |server: &str, port| testbed.connect("www", SocketAddr::new(server.parse().unwrap(), port));
    // A flow of a host, and one through a forwarded port that stays.
    let old = [testbed.connect("alice", (www, 7001)).unwrap(), reach(OUTSIDE, 80).unwrap()];
    let others_go_on = || old.iter().for_each(goes_on);
    echo_tcp(&reach(OUTSIDE6, 80).unwrap(), &noise(3, 100_000));
    others_go_on();

    let file = testbed.directory().join("config/gateway.toml");
    let socket = testbed.directory().join("run/gateway.sock");
    let order = |words: &[&str]| {
        let command = [&[STARNET], words, &["--socket", socket.to_str().unwrap()]].concat();
        let output = testbed.run("gateway", &command);
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let change = |from: &str, to: &str| {
        let before = std::fs::read_to_string(&file).unwrap();
        let after = before.replace(from, to);
        assert_ne!(before, after);
        std::fs::write(&file, after).unwrap();
    };
    change("[2001:db8:ff::1]:80\"", "[2001:db8:ff::1]:8000\"");
    let (is_done, said) = order(&["reload"]);
    assert!(is_done && said.starts_with("reloaded: 4 static mappings"), "{said}");
    echo_tcp(&reach(OUTSIDE6, 8000).unwrap(), b"the new port");
    assert!(reach(OUTSIDE6, 80).is_err(), "the old port is the kernel's, where nobody listens");
    others_go_on();

    // What makes no sense changes nothing, and says where it stands.
    let good = std::fs::read_to_string(&file).unwrap();
    change("[2001:db8:1::2]:8080\"", "192.168.0.1:8080\"");
    let (is_done, said) = order(&["reload"]);
    assert!(!is_done && said.contains("gateway.mapping.inside: 192.168.0.1:8080 is not allowed"), "{said}");
    std::fs::write(&file, &good).unwrap();
    echo_tcp(&reach(OUTSIDE6, 8000).unwrap(), b"still there");

    // They can be seen, and are not cleared.
    let shown = || order(&["show", "nat", "flows", "--state", "static"]).1;
    let said = shown();
    for end in
        ["[2001:db8:ff::1]:8000", "[2001:db8:ff::1]:53", "198.18.1.1:80", "198.18.1.1:53", "[2001:db8:1::2]:8080"]
    {
        assert!(said.contains(end), "{end}: {said}");
    }
    let (is_done, said) = order(&["clear", "nat", "--host", "2001:db8:2::2"]);
    assert!(is_done && said == "cleared: 0 bindings\n", "{said}");
    assert!(shown().contains("[2001:db8:2::2]:5353"));

    // SIGHUP is the same: that of IPv6 is gone, and its port the kernel's.
    let at = good.find("8000\"").unwrap();
    let next = at + good[at..].find('{').expect("another table in the same line");
    let without = [&good[..good[..at].rfind('{').unwrap()], &good[next..]].concat();
    std::fs::write(&file, without).unwrap();
    testbed.signal("gateway", Signal::SIGHUP);
    eventually("the forwarded port to be gone", || reach(OUTSIDE6, 8000).is_err().then_some(()));
    others_go_on();
}

/// The other end still echoes what a connection says.
fn goes_on(mut stream: &TcpStream) {
    let mut back = [0; 18];
    stream.write_all(b"a flow from before").unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"a flow from before");
}

#[test]
fn exempt_networks_follow_the_file_and_other_flows_go_on() {
    const INSIDE: &str = "2001:db8:1::2";
    let testbed = Testbed::up("exempt6", "gateway6");
    let [inside, outside, www, www64, dns] =
        [INSIDE, OUTSIDE6, WWW6, WWW64, DNS6].map(|address| address.parse::<Ipv6Addr>().unwrap());
    run(&testbed, "router", &["ip", "-6", "route", "add", "2001:db8:1::/64", "via", "2001:db8:f0::2"]);

    // Flows that the change is not about: connections of both families, and a mapping that a server knows.
    testbed.tcp_echo("www", (Ipv6Addr::UNSPECIFIED, 7001));
    let connections = [www, www64].map(|server| testbed.connect("alice", (server, 7001)).unwrap());
    let watcher = testbed.udp("www", (www, 7000));
    let mapped = testbed.udp("alice", (inside, 6000));
    let seen_by_www = || {
        mapped.send_to(b"who am I?", (www, 7000)).unwrap();
        watcher.recv_from(&mut [0; 100]).unwrap().1
    };
    let before = seen_by_www();
    assert_eq!(before.ip(), IpAddr::from(outside));
    let others_go_on = || {
        connections.iter().for_each(goes_on);
        assert_eq!(seen_by_www(), before);
    };

    // The one that it is about.
    let server = testbed.udp("dns", (dns, 7000));
    let alice = testbed.udp("alice", (inside, 5000));
    let is_seen_as = |address: Ipv6Addr| {
        alice.send_to(b"who am I?", (dns, 7000)).unwrap();
        let (_, seen) = server.recv_from(&mut [0; 100]).unwrap();
        (seen.ip() == IpAddr::from(address)).then_some(seen)
    };
    assert!(is_seen_as(outside).is_some());

    let file = testbed.directory().join("config/gateway.toml");
    let without = std::fs::read_to_string(&file).unwrap();
    let with = without.replace("addresses6 =", "exempt6 = [\"2001:db8:53::/64\"]\naddresses6 =");
    assert_ne!(with, without);
    std::fs::write(&file, &with).unwrap();
    let socket = testbed.directory().join("run/gateway.sock");
    let said = run(&testbed, "gateway", &[STARNET, "reload", "--socket", socket.to_str().unwrap()]);
    assert!(said.starts_with("reloaded: 4 static mappings, 1 exempt networks"), "{said}");
    eventually("the exempt network to see alice as she is", || is_seen_as(inside));
    // Who is exempt may speak first.
    let listener = testbed.udp("alice", (inside, 5001));
    listener.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let hears = |from: &UdpSocket| {
        from.send_to(b"hello", (inside, 5001)).unwrap();
        listener.recv_from(&mut [0; 100]).ok()
    };
    eventually("alice to be reached as she is", || hears(&server));
    others_go_on();
    assert!(hears(&watcher).is_none(), "who is not exempt does not reach her");

    // SIGHUP is the same.
    std::fs::write(&file, &without).unwrap();
    testbed.signal("gateway", Signal::SIGHUP);
    eventually("the network to see the gateway's address again", || is_seen_as(outside));
    others_go_on();
}
