//! Clients that speak IPv6 through the overlay: they reach servers of IPv6 by the exit's address (NAPT66), and servers of
//! IPv4 by their names in the well-known prefix (NAT64), with the programs that people use.

use std::net::Ipv6Addr;

use crate::{
    servers6::{DNS6, DNS64, WWW6, WWW64, dig, echo_in_fragments, run},
    support::{Testbed, WWW, echo_tcp, noise, text},
};

const EXIT: &str = "198.18.1.1";
const EXIT6: &str = "2001:db8:ff::1";
const ROUTER6: &str = "2001:db8:f0::1";

#[test]
fn ping_curl_and_dig_of_a_client_reach_servers_of_both_families() {
    let testbed = Testbed::up("client6", "overlay6");
    let session = &testbed.show("client", "sessions")[0];
    assert_eq!((session["source6"].as_str(), session["exit_address6"].as_str()), (Some("2001:db8:5::2"), Some(EXIT6)));
    for server in [WWW6, WWW64, DNS6, DNS64] {
        let said = run(&testbed, "client", &["ping", "-6", "-c", "20", "-i", "0.05", "-s", "1000", server]);
        assert!(said.contains(" 0% packet loss"), "{said}");
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
        let options = ["-6", "-g", "-sS", "--retry", "20", "--retry-connrefused", "-o", back.to_str().unwrap(), &url];
        run(&testbed, "client", &[&["curl"], &options[..]].concat());
        assert!(std::fs::read(&back).unwrap() == noise(7, 4 << 20), "the file came back changed from {server}");
    }
    // The other way: what the client's kernel hands over in segments of 64 KiB.
    let dns: Ipv6Addr = DNS6.parse().unwrap();
    testbed.tcp_echo("dns", (dns, 7001));
    echo_tcp(&testbed.connect("client", (dns, 7001)).unwrap(), &noise(1, 4 << 20));

    dig(&testbed, "client2", EXIT, EXIT6);
}

#[test]
fn what_is_larger_than_any_link_crosses_in_fragments() {
    let testbed = Testbed::up("fragments6", "overlay6");
    // The server's first answer tells it that the tunnel carries less than its link.
    testbed.run("client", &["ping", "-6", "-c", "2", "-W", "1", "-s", "6000", DNS6]);
    let said = run(&testbed, "client", &["ping", "-6", "-c", "10", "-i", "0.1", "-s", "6000", DNS6]);
    assert!(said.contains(" 0% packet loss"), "{said}");
    testbed.udp_echo("dns", (Ipv6Addr::UNSPECIFIED, 7000));
    for server in [DNS6, DNS64] {
        echo_in_fragments(&testbed, "client", server);
    }
}

#[test]
fn errors_on_the_way_reach_the_client_as_if_nothing_were_in_between() {
    let testbed = Testbed::up("errors6", "overlay6");
    // The exit is the first hop.
    for (server, router) in [(WWW6, ROUTER6), (WWW64, "64:ff9b::c612:8")] {
        let way = [EXIT6, router, server].map(|hop| hop.parse::<Ipv6Addr>().unwrap());
        for method in [&["-U"][..], &["-I"], &["-T", "-p", "80"]] {
            let options = [&["traceroute", "-6", "-n", "-q", "1", "-w", "5"], method, &[server]].concat();
            let said = text(&testbed.run("client", &options).stdout);
            let hop = |line: &str| line.split_whitespace().nth(1).and_then(|hop| hop.parse().ok());
            let hops: Vec<Option<Ipv6Addr>> = said.lines().skip(1).map(hop).collect();
            assert_eq!(hops, way.map(Some), "traceroute {method:?} {server}: {said}");
        }
    }
    // The link to www carries 1340 bytes: of IPv4 1360, when it is IPv6 before.
    for (server, mtu) in [(WWW6, 1340), (WWW64, 1360)] {
        let ping = |packet: usize| {
            let payload = (packet - 48).to_string();
            let output =
                testbed.run("client2", &["ping", "-6", "-M", "do", "-c", "2", "-W", "5", "-s", &payload, server]);
            (output.status.success(), text(&output.stdout) + &text(&output.stderr))
        };
        let (_, said) = ping(mtu + 8);
        assert!(said.contains(&format!("mtu={mtu}")) || said.contains(&format!("mtu: {mtu}")), "{server}: {said}");
        let (is_answered, said) = ping(mtu);
        assert!(is_answered, "{server}: {said}");
    }
    for server in [WWW6, WWW64] {
        let socket = testbed.udp("client", (Ipv6Addr::UNSPECIFIED, 0));
        socket.connect((server.parse::<Ipv6Addr>().unwrap(), 7001)).unwrap();
        socket.send(b"anyone?").unwrap();
        let refused = socket.recv(&mut [0; 10]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{server}");
        let said = testbed.run("client", &["nc", "-6", "-w", "5", "-z", "-v", server, "7001"]);
        assert!(text(&said.stderr).contains("refused"), "{server}: {}", text(&said.stderr));
    }
    // A private address of IPv4 by its name.
    let said = testbed.run("client", &["ping", "-6", "-c", "1", "-W", "2", "64:ff9b::a00:1"]);
    assert!(!said.status.success());
    assert_eq!(testbed.drops("exit", "nat6_in2out.drop.denied"), 1);
}

#[test]
fn clients_with_the_same_inside_address_of_ipv6_get_their_own_packets() {
    let testbed = Testbed::up("clients6", "overlay6");
    let www: Ipv6Addr = WWW6.parse().unwrap();
    testbed.udp_echo("www", (www, 7000));
    let clients = ["client", "client2"].map(|host| {
        // The same port too: nothing but the session tells them apart.
        let socket = testbed.udp(host, (Ipv6Addr::UNSPECIFIED, 5555));
        socket.connect((www, 7000)).unwrap();
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
