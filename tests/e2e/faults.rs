//! What breaks: relays, nodes, packets. And what the user must not notice of it.

use std::{net::Ipv4Addr, thread, time::Duration};

use serde_json::Value;

use crate::support::{ENTRY, Program, STARNET, Testbed, WWW, eventually, noise, text};

#[test]
fn a_killed_relay_costs_not_one_datagram() {
    let testbed = Testbed::up("kill", "default");
    testbed.udp_echo("www", (WWW, 7000));
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 7000)).unwrap();
    const COUNT: u32 = 1500;
    let sender = socket.try_clone().unwrap();
    let sending = thread::spawn(move || {
        for number in 0..COUNT {
            sender.send(&number.to_be_bytes()).unwrap();
            thread::sleep(Duration::from_millis(3));
        }
    });
    let mut came = vec![0; COUNT as usize];
    thread::scope(|scope| {
        for turn in 0..COUNT {
            if turn == COUNT / 3 {
                // Beside this: the socket's buffer does not hold what comes until it is done.
                scope.spawn(|| testbed.netns(&["stop", "--signal", "KILL", "relay-a"]));
            }
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("after {turn} datagrams: {error}"));
            let number = u32::from_be_bytes(buffer[..length].try_into().unwrap());
            came[number as usize] += 1;
        }
    });
    sending.join().unwrap();
    assert!(came.iter().all(|times| *times == 1), "some were lost, others came twice");
}

#[test]
fn two_lossy_paths_lose_far_less_than_one() {
    let testbed = Testbed::up("loss", "default");
    testbed.netns(&["impair", "entry-relay-a", "loss=0.05,reorder=0.02,duplicate=0.02"]);
    testbed.netns(&["impair", "entry-relay-b", "loss=0.05,reorder=0.02,duplicate=0.02"]);
    testbed.udp_echo("www", (WWW, 7000));
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 7000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    const COUNT: u32 = 4000;
    let sender = socket.try_clone().unwrap();
    let sending = thread::spawn(move || {
        for number in 0..COUNT {
            sender.send(&number.to_be_bytes()).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    });
    let mut came = vec![0; COUNT as usize];
    let mut buffer = [0; 100];
    while let Ok(length) = socket.recv(&mut buffer) {
        came[u32::from_be_bytes(buffer[..length].try_into().unwrap()) as usize] += 1;
    }
    sending.join().unwrap();
    assert!(came.iter().all(|times| *times <= 1), "the wire's duplicates came through");
    // Both ways at 0.25% each: 20 of 4000 are expected. One path would lose 390.
    let lost = came.iter().filter(|times| **times == 0).count();
    assert!(lost < 50, "{lost} of {COUNT} round trips were lost");
}

#[test]
fn a_session_starts_with_the_paths_that_work_names_the_others_and_gets_them_back() {
    let testbed = Testbed::up("partial", "default");
    testbed.netns(&["stop", "client"]);
    // The control centre does not know yet: the client plans over the dead relay too.
    testbed.netns(&["stop", "--signal", "KILL", "relay-a"]);
    testbed.netns(&["start", "client"]);
    eventually("the session over the other path", || reaches_server(&testbed).then_some(()));
    let sessions = testbed.show("client", "sessions");
    assert_eq!(sessions[0]["paths"], 1, "{sessions}");
    let of = |relay: &str| {
        let paths = testbed.show("client", "paths");
        let through = |path: &&Value| path["nodes"].as_array().unwrap().iter().any(|node| node == relay);
        paths.as_array().unwrap().iter().find(through).map(|path| path["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(of("relay-b").as_deref(), Some("open"));
    eventually("the failed path to be shown with its reason", || {
        let state = of("relay-a")?;
        (state.contains("did not answer") && state.contains("relay-a")).then_some(())
    });
    testbed.netns(&["start", "relay-a"]);
    eventually("the path to come back", || (of("relay-a")? == "open").then_some(()));
    assert_eq!(testbed.show("client", "sessions")[0]["session"], sessions[0]["session"], "within the same session");
}

#[test]
fn a_forbidden_destination_is_refused_by_the_exit() {
    let testbed = Testbed::up("denied", "default");
    let config = testbed.forwarding_client(&testbed.directory().join("tls/client.token"));
    let client =
        [STARNET, "client", "--config", config.to_str().unwrap(), "--forward", "udp:127.0.0.1:6000=10.255.0.1:53"];
    let client = testbed.spawn("client", &client);
    // A forwarded UDP port may open its session with the first datagram.
    let socket = testbed.udp("client", (Ipv4Addr::LOCALHOST, 0));
    for _ in 0..20 {
        let _ = socket.send_to(b"anyone?", (Ipv4Addr::LOCALHOST, 6000));
        thread::sleep(Duration::from_millis(100));
    }
    let said = client.stop();
    assert!(said.contains("the exit's policy forbids the destination (at exit)"), "{said}");
}

#[test]
fn a_restarted_entry_gets_its_sessions_back() {
    let testbed = Testbed::up("restart", "default");
    assert!(reaches_server(&testbed));
    testbed.netns(&["stop", "--signal", "KILL", "entry"]);
    assert!(!reaches_server(&testbed));
    testbed.netns(&["start", "entry"]);
    eventually("the client to open a new session", || reaches_server(&testbed).then_some(()));
}

#[test]
fn a_restarted_exit_gets_its_sessions_back() {
    let testbed = Testbed::up("exit", "default");
    assert!(reaches_server(&testbed));
    testbed.netns(&["stop", "exit"]);
    testbed.netns(&["start", "exit"]);
    eventually("the client to open a new session", || reaches_server(&testbed).then_some(()));
}

#[test]
fn a_link_that_flaps_keeps_the_flows_through_it() {
    let testbed = Testbed::up("flap", "default");
    testbed.udp_echo("www", (WWW, 7000));
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect((WWW, 7000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut buffer = [0; 100];
    let mut echo = || {
        socket.send(b"still there?").unwrap();
        socket.recv(&mut buffer).ok()
    };
    eventually("the first echo", &mut echo);
    let session = || testbed.show("client", "sessions")[0]["session"].clone();
    let before = session();
    assert!(before.is_string());
    let ip = |words: &str| {
        let output = testbed.run("exit", &["sh", "-c", words]);
        assert!(output.status.success(), "{words}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    // The kernel forgets the routes of a link that goes down; an operator's daemon would bring them back.
    let routes = ip("ip route show dev www");
    ip("ip link set www down");
    assert_eq!(echo(), None);
    ip("ip link set www up");
    for route in routes.lines().filter(|route| !route.contains("proto kernel")) {
        ip(&format!("ip route add {route} dev www"));
    }
    eventually("an echo after the link is back", &mut echo);
    assert_eq!(session(), before, "no new session was needed");
}

#[test]
fn a_node_whose_interface_is_removed_says_so_and_ends() {
    let testbed = Testbed::up("unplug", "default");
    let output = testbed.run("exit", &["ip", "link", "delete", "dns"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = testbed.directory().join("log/exit.log");
    eventually("the node's last words", || {
        std::fs::read_to_string(&log).unwrap().contains("interface 'dns' was removed").then_some(())
    });
    eventually("the node's end", || {
        let status: Value = serde_json::from_str(&testbed.netns(&["status", "--json"])).unwrap();
        status["hosts"]["exit"]["pid"].is_null().then_some(())
    });
}

#[test]
fn noise_and_forgeries_are_dropped_with_a_reason() {
    let testbed = Testbed::up("noise", "default");
    let socket = testbed.udp("client", (Ipv4Addr::UNSPECIFIED, 0));
    let before = testbed.drops("entry", ".drop.");
    const COUNT: usize = 2000;
    for number in 0..COUNT {
        let mut packet = noise(number as u64, number % 200);
        // Half of them look like relay packets of version 1 and of slots that are in use.
        if number % 2 == 0 && packet.len() >= 24 {
            packet[0] = 0x10 | (number % 8) as u8;
            packet[4..8].copy_from_slice(&(number as u32 % 16).to_be_bytes());
        }
        socket.send_to(&packet, (ENTRY, 40000)).unwrap();
        // NAT ports are as open to the world as the data port.
        if number % 4 == 0 {
            socket.send_to(&packet, (ENTRY, 40001 + number as u16)).unwrap();
        }
        if number % 64 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    eventually("the drops to be counted", || (testbed.drops("entry", ".drop.") - before >= COUNT as u64).then_some(()));
    assert!(reaches_server(&testbed), "and the session goes on");
}

#[test]
fn a_token_of_another_key_opens_nothing() {
    let testbed = Testbed::up("token", "default");
    let directory = testbed.directory();
    let key = directory.join("tls/other.key");
    let token = directory.join("tls/other.token");
    let run = |words: &[&str]| {
        let output = std::process::Command::new(STARNET).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    };
    run(&["token", "key", "--key", key.to_str().unwrap()]);
    let (key, token) = (key.to_str().unwrap(), token.as_path());
    run(&["token", "issue", "--client", "mallory", "--key", key, "--out", token.to_str().unwrap()]);
    let config = testbed.forwarding_client(token);
    let forward = format!("udp:127.0.0.1:6000={WWW}:7000");
    let client: Program =
        testbed.spawn("client", &[STARNET, "client", "--config", config.to_str().unwrap(), "--forward", &forward]);
    let (status, said) = client.output();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("no valid certificate or token"), "{said}");
}

fn reaches_server(testbed: &Testbed) -> bool {
    testbed.run("client", &["ping", "-c", "1", "-W", "1", &WWW.to_string()]).status.success()
}
