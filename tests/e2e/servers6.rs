//! The servers of the topologies `gateway6` and `overlay6`: of IPv6, and of IPv4 by their names in the well-known prefix. And
//! what is asked of them from behind a NAT, whichever it is.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
};

use crate::support::{Testbed, noise, text};

pub(crate) const WWW6: &str = "2001:db8:80::10";
pub(crate) const DNS: &str = "203.0.113.20";
pub(crate) const DNS6: &str = "2001:db8:53::20";
/// WWW and DNS by their names in 64:ff9b::/96.
pub(crate) const WWW64: &str = "64:ff9b::cb00:710a";
pub(crate) const DNS64: &str = "64:ff9b::cb00:7114";

/// Runs a program in a host; it must succeed. What it said.
pub(crate) fn run(testbed: &Testbed, host: &str, program: &[&str]) -> String {
    let output = testbed.run(host, program);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{program:?}: {said}");
    said
}

/// `dig` asks each server a question in vain, and servers see `seen` (IPv4) and `seen6` asking.
pub(crate) fn dig(testbed: &Testbed, host: &str, seen: &str, seen6: &str) {
    for (server, at, seen) in [(DNS64, DNS, seen), (DNS6, DNS6, seen6)] {
        let socket = testbed.udp("dns", SocketAddr::new(at.parse().unwrap(), 53));
        let answered = thread::spawn(move || answer_one_question(&socket));
        let said = run(testbed, host, &["dig", "+noedns", "+tries=1", &format!("@{server}"), "example.org"]);
        assert!(said.contains("NOERROR"), "{said}");
        assert_eq!(answered.join().unwrap(), seen.parse::<IpAddr>().unwrap(), "servers see the NAT's address");
    }
}

/// Answers by the same question, marked as an answer without records. Who asked.
pub(crate) fn answer_one_question(socket: &UdpSocket) -> IpAddr {
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    buffer[2] |= 0x80;
    socket.send_to(&buffer[..length], from).unwrap();
    from.ip()
}

/// Datagrams that are larger than any link come back from `server`, which echoes at port 7000.
pub(crate) fn echo_in_fragments(testbed: &Testbed, host: &str, server: &str) {
    let socket = testbed.udp(host, (Ipv6Addr::UNSPECIFIED, 0));
    socket.connect((server.parse::<Ipv6Addr>().unwrap(), 7000)).unwrap();
    for round in 0..10 {
        let sent = noise(round, 5000);
        socket.send(&sent).unwrap();
        let mut buffer = [0; 6000];
        let length = socket.recv(&mut buffer).unwrap();
        assert!(buffer[..length] == sent, "{server}: {length} bytes came back to {host}, not the same");
    }
}
