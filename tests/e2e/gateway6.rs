//! The gateway and hosts of IPv6: they reach servers of IPv6 by its outside address (NAPT66), and servers of IPv4 by
//! their names in the well-known prefix (NAT64), with the programs that people use.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    servers6::{DNS6, DNS64, WWW6, WWW64, dig, echo_in_fragments, run},
    support::{STARNET, Testbed, WWW, ask, eventually, noise, text},
};

const OUTSIDE: &str = "198.18.1.1";
const OUTSIDE6: &str = "2001:db8:ff::1";

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
        for mut stream in &connections {
            let mut back = [0; 18];
            stream.write_all(b"a flow from before").unwrap();
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"a flow from before");
        }
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
    assert!(said.starts_with("reloaded: 0 static mappings, 1 exempt networks"), "{said}");
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
