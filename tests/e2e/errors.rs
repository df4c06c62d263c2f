//! A connection's ends see each other: refusals and ICMP errors from behind the exit reach the client.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::libc;

use crate::support::{Testbed, WWW, ask, echo_tcp, eventually, noise, text};

#[test]
fn a_closed_port_refuses_at_once() {
    let testbed = Testbed::up("refused", "default");
    for _ in 0..3 {
        let error = testbed.connect("client", (WWW, 9)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 9)).unwrap();
    let error = ask(&socket, b"anyone?", &mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn a_routers_small_mtu_is_learnt_by_the_client() {
    let testbed = Testbed::up("mtu", "routed");

    testbed.udp_echo("www", (WWW, 7000));
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 7000)).unwrap();
    set_dont_fragment(&socket);
    assert_eq!(path_mtu(&socket), 1400, "at first the client knows of the TUN's MTU only");
    // Too large for the router's link: it answers with fragmentation-needed.
    socket.send(&noise(1, 1372)).unwrap();
    eventually("the path MTU to be learnt", || (path_mtu(&socket) == 1300).then_some(()));
    let _ = socket.take_error();
    let sent = noise(2, 1300 - 28);
    socket.send(&sent).unwrap();
    let mut buffer = [0; 2000];
    let length = socket.recv(&mut buffer).unwrap();
    assert!(buffer[..length] == sent);

    testbed.tcp_echo("www", (WWW, 7001));
    let stream = testbed.connect("client", (WWW, 7001)).unwrap();
    echo_tcp(&stream, &noise(3, 1 << 20));
}

#[test]
fn traceroute_sees_the_routers_behind_the_exit() {
    let testbed = Testbed::up("trace", "routed");
    for probe in ["-U", "-I"] {
        let trace = testbed.run("client", &["traceroute", probe, "-n", "-q", "1", "-w", "3", &WWW.to_string()]);
        let said = text(&trace.stdout);
        let hops: Vec<_> = said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        let router = hops.len().checked_sub(2).and_then(|last_but_one| hops.get(last_but_one));
        assert!(router.is_some_and(|hop| hop.starts_with("198.18.")), "no answer of the router: {said}");
        assert_eq!(hops.last(), Some(&WWW.to_string().as_str()), "{said}");
    }
}

fn set_dont_fragment(socket: &UdpSocket) {
    let mode: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: `mode` is live and of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const mode).cast(),
            size_of_val(&mode) as u32,
        )
    };
    assert_eq!(result, 0);
}

/// The path MTU that the kernel knows of to the connected socket's other end.
fn path_mtu(socket: &UdpSocket) -> i32 {
    let (mut mtu, mut length): (libc::c_int, libc::socklen_t) = (0, 4);
    // SAFETY: `mtu` is live and of the size `length` says.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU, (&raw mut mtu).cast(), &raw mut length)
    };
    assert_eq!(result, 0);
    mtu
}
