//! Outside addresses come and go while the gateway runs, and nobody who speaks through it feels that.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use crate::support::{STARNET, Testbed, WWW, eventually, text};

const FIRST: &str = "198.18.1.1";
const SECOND: &str = "198.18.1.9";

/// Who the server says it sees.
fn connect(testbed: &Testbed, host: &str) -> (TcpStream, IpAddr) {
    let listener = testbed.within("www", || TcpListener::bind((WWW, 0))).unwrap();
    let SocketAddr::V4(at) = listener.local_addr().unwrap() else { panic!("the server is one of IPv4") };
    let accepted = thread::spawn(move || listener.accept().unwrap());
    let stream = testbed.connect(host, (WWW, at.port())).unwrap();
    let (mut server, seen) = accepted.join().unwrap();
    let mut reader = server.try_clone().unwrap();
    thread::spawn(move || std::io::copy(&mut reader, &mut server));
    (stream, seen.ip())
}

/// The connection is as it was: its other end sends back what it is sent.
fn goes_on(mut stream: &TcpStream) {
    let sent = b"goes on";
    let mut back = [0; 7];
    stream.write_all(sent).unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, sent);
}

#[test]
fn outside_addresses_follow_the_file_and_no_flow_feels_it() {
    let testbed = Testbed::up("pool", "gateway");
    let run = |host: &str, program: &[&str]| {
        let output = testbed.run(host, program);
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let socket = testbed.directory().join("run/gateway.sock");
    let order = |words: &[&str]| run("gateway", &[&[STARNET], words, &["--socket", socket.to_str().unwrap()]].concat());
    let file = testbed.directory().join("config/gateway.toml");
    let mut table: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let mut reload = |addresses: &[&str], keeps_mappings: bool| {
        let gateway = table["gateway"].as_table_mut().unwrap();
        gateway.insert("addresses".to_owned(), addresses.to_vec().into());
        gateway.insert("ports".to_owned(), "20000-29999".into());
        if !keeps_mappings {
            gateway.remove("mapping");
        }
        std::fs::write(&file, table.to_string()).unwrap();
        order(&["reload"])
    };
    // The second address is where the first one is.
    for host in ["router", "www"] {
        let (_, way) = run(host, &["ip", "route", "get", FIRST]);
        let via = way.split_whitespace().skip_while(|word| *word != "via").nth(1).unwrap_or_else(|| panic!("{way}"));
        assert!(run(host, &["ip", "route", "add", SECOND, "via", via]).0);
    }

    let (of_first, seen) = connect(&testbed, "alice");
    assert_eq!(seen.to_string(), FIRST);
    let (is_done, said) = reload(&[FIRST, SECOND], true);
    assert!(!is_done && said.contains("198.18.1.9 is not an address of this machine"), "{said}");
    assert!(run("gateway", &["ip", "address", "add", "198.18.1.9/32", "dev", "lo"]).0);
    let (is_done, said) = reload(&[FIRST, SECOND], true);
    assert!(is_done && said.contains(" 2 outside addresses"), "{said}");
    assert_eq!(connect(&testbed, "alice").1.to_string(), FIRST, "a host keeps its address");

    // The first is withdrawn: with it goes what is forwarded there, and nothing else.
    let (is_done, said) = reload(&[SECOND], true);
    assert!(!is_done && said.contains("its address is none of the gateway's"), "{said}");
    let (is_done, said) = reload(&[SECOND], false);
    assert!(
        is_done && said.starts_with("reloaded: 0 static mappings, 0 exempt networks, 1 outside addresses"),
        "{said}"
    );
    goes_on(&of_first);
    let (of_second, seen) = connect(&testbed, "bob");
    assert_eq!(seen.to_string(), SECOND);
    assert_eq!(connect(&testbed, "alice").1.to_string(), SECOND, "and new ones are seen as the other");
    let ping = run("alice", &["ping", "-c", "3", "-i", "0.05", &WWW.to_string()]).1;
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    let (_, said) = order(&["show", "nat", "ports", "--outside", FIRST]);
    assert!(said.lines().skip(1).all(|line| line.ends_with("withdrawn")), "{said}");

    // And back. Whoever does not want to wait ends the flows of the one that is to go.
    let (is_done, said) = reload(&[FIRST], false);
    assert!(is_done, "{said}");
    goes_on(&of_second);
    goes_on(&of_first);
    assert_eq!(connect(&testbed, "bob").1.to_string(), FIRST);
    let flows = || order(&["show", "nat", "flows", "--outside", SECOND]).1;
    assert!(flows().contains(SECOND), "{}", flows());
    let (is_done, said) = order(&["clear", "nat", "--outside", SECOND]);
    assert!(is_done, "{said}");
    eventually("its flows to be gone", || (!flows().contains(SECOND)).then_some(()));
    goes_on(&of_first);
}
