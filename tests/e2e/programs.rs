//! Programs through the gateway that tell a good NAT from a poor one: a STUN client that judges it, ssh, the control
//! connection of FTP; and what they see of a gateway that is killed.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{
    stun::{judge, stun_server},
    support::{Testbed, WWW, echo_tcp, eventually, noise, text},
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);

/// Runs a program in a host; it must succeed.
fn run(testbed: &Testbed, host: &str, program: &[&str]) -> String {
    let output = testbed.run(host, program);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{program:?}: {said}\n{}", testbed.netns(&["show", "gateway", "drops"]));
    said
}

#[test]
fn a_stun_client_finds_the_gateways_nat_independent_of_endpoints_and_hairpinning() {
    let testbed = Testbed::up("judge", "gateway");
    // A STUN server needs two addresses; the router finds the other one where it finds the first.
    run(&testbed, "www", &["ip", "address", "add", "203.0.113.11/32", "dev", "lo"]);
    let route = run(&testbed, "router", &["ip", "route", "show", &WWW.to_string()]);
    let route = route.trim().replace(&WWW.to_string(), "203.0.113.11");
    run(&testbed, "router", &["sh", "-c", &format!("ip route add {route}")]);
    let _server = stun_server(&testbed, "www");
    for host in ["alice", "bob"] {
        eventually("the STUN server", || {
            let output = testbed.run(host, &["timeout", "1", "turnutils_stunclient", &WWW.to_string()]);
            text(&output.stdout).contains(&format!("reflexive addr: {GATEWAY}:")).then_some(())
        });
        judge(&|words| run(&testbed, host, &["sh", "-c", words]));
    }
}

#[test]
fn ssh_by_key_runs_a_command_and_copies_files_both_ways() {
    let testbed = Testbed::up("ssh", "gateway");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for key in ["host", "user"] {
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]).status().unwrap();
        assert!(made.success());
    }
    let config = format!(
        "ListenAddress {WWW}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
         PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n",
        path("host"),
        path("user.pub")
    );
    std::fs::write(path("config"), config).unwrap();
    // Where it wants a folder to change its root to.
    std::fs::create_dir_all("/run/sshd").unwrap();
    let _server = testbed.spawn("www", &["/usr/sbin/sshd", "-D", "-e", "-f", &path("config")]);
    eventually("the ssh server", || testbed.connect("www", (WWW, 22)).ok());

    let known = format!("UserKnownHostsFile={}", path("known"));
    let key = path("user");
    let options =
        ["-F", "none", "-i", &key, "-o", &known, "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"];
    let there = format!("root@{WWW}");
    let said = run(&testbed, "alice", &[&["ssh"], &options[..], &[&there, "echo $SSH_CONNECTION"]].concat());
    assert!(said.contains(&format!("{GATEWAY} ")), "servers see the gateway: {said}");
    let bytes = noise(3, 8 << 20);
    std::fs::write(path("file"), &bytes).unwrap();
    let (up, down) = (format!("{there}:{}", path("up")), format!("{there}:{}", path("file")));
    run(&testbed, "bob", &[&["scp", "-q"], &options[..], &[&path("file"), &up]].concat());
    run(&testbed, "bob", &[&["scp", "-q"], &options[..], &[&down, &path("down")]].concat());
    for copy in ["up", "down"] {
        assert!(std::fs::read(path(copy)).unwrap() == bytes, "{copy}: it came over changed");
    }
}

#[test]
fn what_ftp_says_of_addresses_and_ports_is_not_touched() {
    let testbed = Testbed::up("ftp", "gateway");
    let lines =
        ["PORT 192,168,0,1,19,137", "EPRT |1|192.168.0.1|5001|", "227 Entering Passive Mode (203,0,113,10,19,137)."];
    let listener = testbed.within("www", || TcpListener::bind((WWW, 21))).unwrap();
    let server = thread::spawn(move || {
        let (stream, from) = listener.accept().unwrap();
        let heard: Vec<String> = BufReader::new(&stream).lines().take(lines.len()).map(Result::unwrap).collect();
        for line in lines {
            (&stream).write_all(format!("{line}\r\n").as_bytes()).unwrap();
        }
        (heard, from)
    });
    let stream = testbed.connect("alice", (WWW, 21)).unwrap();
    for line in lines {
        (&stream).write_all(format!("{line}\r\n").as_bytes()).unwrap();
    }
    let answered: Vec<String> = BufReader::new(&stream).lines().take(lines.len()).map(Result::unwrap).collect();
    let (heard, from) = server.join().unwrap();
    assert_eq!(from.ip(), GATEWAY);
    assert_eq!((heard.as_slice(), answered.as_slice()), (&lines.map(str::to_owned)[..], &lines.map(str::to_owned)[..]));
    // No hole was opened for the connection that was announced.
    let announced: SocketAddr = (GATEWAY, 5001).into();
    assert!(
        testbed.within("www", || std::net::TcpStream::connect_timeout(&announced, Duration::from_millis(500))).is_err()
    );
}

#[test]
fn a_gateway_killed_under_load_leaves_no_xdp_program_and_carries_again_after_its_start() {
    let testbed = Testbed::up("killed", "gateway");
    testbed.udp_echo("www", (WWW, 7000));
    testbed.tcp_echo("www", (WWW, 7001));
    let is_over = AtomicBool::new(false);
    let load = ["alice", "bob"].map(|host| testbed.udp(host, (Ipv4Addr::UNSPECIFIED, 0)));
    let asking = testbed.udp("alice", (Ipv4Addr::UNSPECIFIED, 0));
    asking.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let is_answered = || {
        let mut buffer = [0; 10];
        asking.send_to(b"anyone?", (WWW, 7000)).unwrap();
        asking.recv_from(&mut buffer).is_ok()
    };
    let programs = || text(&testbed.run("gateway", &["ip", "-details", "link"]).stdout).matches("xdp").count();
    thread::scope(|scope| {
        for socket in &load {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    // Fails where the router is gone, as it should.
                    let _ = socket.send_to(&[7; 500], (WWW, 7000));
                    thread::sleep(Duration::from_micros(200));
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..2 {
                eventually("an answer through the gateway", || is_answered().then_some(()));
                assert!(programs() > 0);
                testbed.netns(&["stop", "--signal", "KILL", "gateway"]);
                eventually("the XDP programs to be gone", || (programs() == 0).then_some(()));
                while is_answered() {}
                testbed.netns(&["start", "gateway"]);
                eventually("an answer after the restart", || is_answered().then_some(()));
                let stream = eventually("a connection", || testbed.connect("bob", (WWW, 7001)).ok());
                echo_tcp(&stream, &noise(1, 1 << 20));
            }
        }));
        is_over.store(true, Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
