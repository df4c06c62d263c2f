//! Several next hops of one route: one that stops answering although its link is up loses its destinations to the others,
//! and gets them back when it answers again.

use std::{net::Ipv4Addr, time::Duration};

use crate::support::{Testbed, eventually, text};

const GATEWAY: &str = "198.18.1.1";
const ROUTERS: [&str; 2] = ["router-a", "router-b"];

/// Addresses of the server beside its own, so that there are destinations for either next hop.
fn servers() -> impl Iterator<Item = Ipv4Addr> {
    (96..112).map(|last| Ipv4Addr::new(203, 0, 113, last))
}

#[test]
fn a_router_that_does_not_answer_loses_its_destinations_to_the_other_and_gets_them_back() {
    let testbed = Testbed::up("nexthops", "two-routers");
    let ip = |host: &str, words: &str| {
        let output = testbed.run(host, &[&["ip"], &words.split_whitespace().collect::<Vec<_>>()[..]].concat());
        assert!(output.status.success(), "{host}: ip {words}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    // The address of a host on its link to another, with the length of its network.
    let on_link = |host: &str, other: &str| {
        let said = ip(host, &format!("-4 -o address show dev {other}"));
        said.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap().to_owned()
    };
    let plain = |address: &str| address.split('/').next().unwrap().to_owned();
    let to_gateway = ROUTERS.map(|router| on_link(router, "gateway"));
    let [first, second] = to_gateway.each_ref().map(|address| plain(address));
    for server in servers() {
        ip("www", &format!("address add {server}/32 dev lo"));
    }
    for router in ROUTERS {
        ip(router, &format!("route add 203.0.113.96/28 via {}", plain(&on_link("www", router))));
    }
    ip(
        "gateway",
        &format!("route add 203.0.113.96/28 nexthop via {first} dev router-a nexthop via {second} dev router-b"),
    );
    // What goes back takes one way all the time.
    let back_by = |router: &str| {
        ip("www", &format!("route replace {GATEWAY} via {}", plain(&on_link(router, "www"))));
    };
    let received_by = |router: &str| -> u64 {
        let said = text(&testbed.run(router, &["cat", "/proc/net/dev"]).stdout);
        let counts = said.lines().find_map(|line| line.trim().strip_prefix("gateway:")).unwrap();
        counts.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    testbed.udp_echo("www", (Ipv4Addr::UNSPECIFIED, 7000));
    let alice = testbed.udp("alice", (Ipv4Addr::UNSPECIFIED, 5000));
    alice.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut number = 0u32;
    let mut is_reached = |server: Ipv4Addr| {
        number += 1;
        alice.send_to(&number.to_be_bytes(), (server, 7000)).unwrap();
        let mut answer = [0; 4];
        // What comes late is another question's answer.
        while alice.recv(&mut answer).is_ok() {
            if answer == number.to_be_bytes() {
                return true;
            }
        }
        false
    };
    let mut are_all_reached = || servers().filter(|server| is_reached(*server)).count() == servers().count();
    // The link stays up, and nobody answers there.
    let kill = |router: &str| {
        ip(router, "address flush dev gateway");
        ip(router, "link set dev gateway address 02:00:00:00:66:66");
    };

    back_by("router-b");
    eventually("all servers to be reached", || are_all_reached().then_some(()));
    let before = ROUTERS.map(received_by);
    eventually("all servers to be reached", || are_all_reached().then_some(()));
    for (router, before) in ROUTERS.into_iter().zip(before) {
        assert!(received_by(router) >= before + 3, "{router} has its share");
    }

    kill("router-a");
    assert!(!are_all_reached(), "those of the dead router are not");
    eventually("all servers to be reached by the other router", || are_all_reached().then_some(()));

    // It is back. Nothing is sent there unless the gateway finds out by itself.
    ip("router-a", &format!("address add {} dev gateway", to_gateway[0]));
    ip("router-a", &format!("route add {GATEWAY} via {}", plain(&on_link("gateway", "router-a"))));
    let before = received_by("router-a");
    let has_share = || (received_by("router-a") > before + 100).then_some(());
    eventually("the router to have its share again", || are_all_reached().then(has_share).flatten());
    kill("router-b");
    back_by("router-a");
    eventually("all servers to be reached by the first router", || are_all_reached().then_some(()));
}
