//! Next hops, and what is known of neighbours.

use std::net::IpAddr;

use super::*;

fn kernel(net: &mut Net, event: KernelEvent) {
    let now = net.now;
    net.node("in").control.on_kernel(event, now);
    net.settle();
}

fn punt_adjacency(net: &mut Net, next_hop: Ipv4Addr, ticket: u32) {
    let now = net.now;
    let cause = PuntCause::NoAdjacency { interface: 7, next_hop: next_hop.into() };
    net.node("in").control.on_event(0, Event::Punt { waiting: ticket, cause }, now);
    net.settle();
}

#[test]
fn a_packet_waits_for_its_next_hop_and_goes_on_behind_the_snapshot_that_has_it() {
    let mut net = net();
    let gateway = Ipv4Addr::new(192, 0, 2, 1);
    let prefix = "0.0.0.0/0".parse().unwrap();
    kernel(&mut net, KernelEvent::Routes(vec![Route { prefix, gateway: Some(gateway), interface: 0, metric: 0 }]));
    assert!(!net.node("in").control.peers()[0].is_resolved);
    punt_adjacency(&mut net, gateway, 1);
    punt_adjacency(&mut net, gateway, 2);
    assert_eq!(net.node("in").resolves, [(0, gateway.into())], "the kernel is asked once");
    net.run(900 * MILLISECOND);
    kernel(&mut net, KernelEvent::NeighbourUp { interface: 0, address: gateway.into(), mac: [1; 6] });
    let worker = &net.node("in").workers[0];
    assert_eq!(worker.resumed, [1, 2]);
    assert_eq!(worker.forwarding.lookup(SERVER), Lookup::Found { interface: 0, mac: [1; 6] });
    punt_adjacency(&mut net, gateway, 3);
    assert_eq!(net.node("in").workers[0].resumed, [1, 2, 3], "it asked before the snapshot came");
    assert!(net.node("in").control.peers()[0].is_resolved);
}

#[test]
fn a_next_hop_that_does_not_answer_is_asked_again_and_then_costs_its_packets() {
    let mut net = net();
    let nobody = Ipv4Addr::new(192, 0, 2, 99);
    punt_adjacency(&mut net, nobody, 1);
    net.run(3900 * MILLISECOND);
    assert!(net.node("in").workers[0].refused.is_empty());
    assert_eq!(net.node("in").resolves.len(), 4, "once a second");
    net.run(300 * MILLISECOND);
    assert_eq!(net.node("in").workers[0].refused, [(1, Reason::Unresolved)]);
    net.run(3 * SECOND);
    assert!(net.node("in").control.adjacencies().is_empty());
    let asked = net.node("in").resolves.len();
    punt_adjacency(&mut net, nobody, 2);
    assert_eq!(net.node("in").resolves.len(), asked + 1, "a later packet has the kernel asked again");
}

#[test]
fn packets_to_nobody_are_few_that_wait_and_others_get_their_places_back() {
    let mut net = net();
    let nobody = |ticket: usize| Ipv4Addr::from(0xc000_0200 + (ticket % 200) as u32);
    for ticket in 0..=UNRESOLVED_MAX {
        punt_adjacency(&mut net, nobody(ticket), ticket as u32);
    }
    assert_eq!(net.node("in").workers[0].refused, [(UNRESOLVED_MAX as u32, Reason::Unresolved)]);
    kernel(&mut net, KernelEvent::NeighbourUp { interface: 0, address: nobody(7).into(), mac: [1; 6] });
    kernel(&mut net, KernelEvent::NeighbourGone { interface: 0, address: nobody(8).into() });
    let answered = net.node("in").workers[0].resumed.len();
    assert_eq!(net.node("in").workers[0].refused.len(), 1 + answered, "three each of the two");
    for ticket in 0..=2 * answered {
        punt_adjacency(&mut net, nobody(9), 10_000 + ticket as u32);
    }
    assert_eq!(net.node("in").workers[0].refused.len(), 2 + answered, "one too many again");
    net.run(5 * SECOND);
    assert_eq!(net.node("in").workers[0].refused.len(), 2 + UNRESOLVED_MAX + answered);
    for ticket in 0..UNRESOLVED_MAX {
        punt_adjacency(&mut net, nobody(ticket), 20_000 + ticket as u32);
    }
    assert_eq!(net.node("in").workers[0].refused.len(), 2 + UNRESOLVED_MAX + answered, "all places are free again");
}

#[test]
fn the_last_mac_address_is_held_for_a_minute() {
    let mut net = net();
    let address = Ipv4Addr::new(192, 0, 2, 1);
    kernel(&mut net, KernelEvent::NeighbourUp { interface: 0, address: address.into(), mac: [1; 6] });
    kernel(&mut net, KernelEvent::NeighbourGone { interface: 0, address: address.into() });
    net.run(59 * SECOND);
    assert_eq!(net.node("in").workers[0].forwarding.adjacencies.len(), 1);
    assert!(net.node("in").resolves.len() >= 10, "and the kernel is asked meanwhile");
    kernel(&mut net, KernelEvent::NeighbourUp { interface: 0, address: address.into(), mac: [2; 6] });
    net.run(10 * SECOND);
    assert_eq!(net.node("in").workers[0].forwarding.adjacencies[0].mac, [2; 6]);
    kernel(&mut net, KernelEvent::NeighbourGone { interface: 0, address: address.into() });
    net.run(61 * SECOND);
    assert!(net.node("in").workers[0].forwarding.adjacencies.is_empty());
}

const HOPS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

fn up(number: usize) -> KernelEvent {
    KernelEvent::NeighbourUp { interface: 0, address: HOPS[number].into(), mac: [number as u8 + 1; 6] }
}

fn gone(number: usize) -> KernelEvent {
    KernelEvent::NeighbourGone { interface: 0, address: HOPS[number].into() }
}

/// A default route by both of [`HOPS`].
fn two_ways() -> Net {
    let mut net = net();
    let prefix = "0.0.0.0/0".parse().unwrap();
    let route = |gateway| Route { prefix, gateway: Some(gateway), interface: 0, metric: 0 };
    kernel(&mut net, KernelEvent::Routes(HOPS.map(route).to_vec()));
    net
}

/// How many of 256 destinations go by each of [`HOPS`]; those that wait for a MAC address are in neither.
fn shares(net: &mut Net) -> [usize; 2] {
    let forwarding = &net.node("in").workers[0].forwarding;
    let by = |mac: u8| {
        let is_by = |n: &u32| {
            forwarding.lookup(Ipv4Addr::from(0xc633_6400 + n)) == Lookup::Found { interface: 0, mac: [mac; 6] }
        };
        (0..256).filter(is_by).count()
    };
    [by(1), by(2)]
}

#[test]
fn a_next_hop_that_stops_answering_leaves_its_destinations_to_the_others_until_it_answers_again() {
    let mut net = two_ways();
    (0..2).for_each(|number| kernel(&mut net, up(number)));
    let both = shares(&mut net);
    assert!(both.iter().all(|share| *share > 64) && both.iter().sum::<usize>() == 256, "{both:?}");
    kernel(&mut net, gone(0));
    assert_eq!(shares(&mut net), [0, 256], "although its MAC address is held");
    // Its packets do not bring it back, for it gets none.
    net.run(70 * SECOND);
    assert_eq!(shares(&mut net), [0, 256]);
    let asked = net.node("in").resolves.clone();
    for hop in HOPS {
        let times = asked.iter().filter(|(_, address)| *address == IpAddr::from(hop)).count();
        assert!((13..=16).contains(&times), "{hop} was asked for {times} times");
    }
    kernel(&mut net, up(0));
    assert_eq!(shares(&mut net), both);

    // With none left it is as with one: a MAC address is held for a minute, and then packets wait.
    (0..2).for_each(|number| kernel(&mut net, gone(number)));
    assert_eq!(shares(&mut net), both);
    net.run(61 * SECOND);
    assert_eq!(shares(&mut net), [0, 0]);
    punt_adjacency(&mut net, HOPS[0], 1);
    kernel(&mut net, gone(0));
    assert_eq!(net.node("in").workers[0].refused, [(1, Reason::Unresolved)]);
}

#[test]
fn a_next_hop_that_the_kernel_forgot_is_asked_for_at_once_and_one_that_is_gone_no_more_often_than_before() {
    let mut net = two_ways();
    (0..2).for_each(|number| kernel(&mut net, up(number)));
    net.run(SECOND);
    let asked =
        |net: &mut Net| net.node("in").resolves.iter().filter(|(_, address)| *address == IpAddr::from(HOPS[0])).count();
    assert_eq!(asked(&mut net), 1, "the next question is due in four seconds");
    kernel(&mut net, gone(0));
    net.run(100 * MILLISECOND);
    assert_eq!(asked(&mut net), 2);
    kernel(&mut net, gone(0));
    net.run(4 * SECOND);
    assert_eq!(asked(&mut net), 2, "it was asked for in vain");
}

#[test]
fn a_packet_that_waits_for_a_next_hop_that_never_answers_goes_by_another() {
    let mut net = two_ways();
    net.run(200 * MILLISECOND);
    let mut asked = net.node("in").resolves.clone();
    asked.sort_unstable();
    assert_eq!(asked, HOPS.map(|hop| (0, hop.into())), "before any packet");
    kernel(&mut net, up(1));
    punt_adjacency(&mut net, HOPS[0], 1);
    assert!(net.node("in").workers[0].resumed.is_empty());
    kernel(&mut net, gone(0));
    let worker = &net.node("in").workers[0];
    assert_eq!((&worker.resumed[..], &worker.refused[..]), (&[1][..], &[][..]));
    assert_eq!(shares(&mut net), [0, 256]);
}

#[test]
fn nobody_is_asked_for_who_is_no_alternative_any_more() {
    let mut net = two_ways();
    let prefix = "0.0.0.0/0".parse().unwrap();
    (0..2).for_each(|number| kernel(&mut net, gone(number)));
    let route = Route { prefix, gateway: Some(HOPS[0]), interface: 0, metric: 0 };
    kernel(&mut net, KernelEvent::Routes(vec![route]));
    net.run(10 * SECOND);
    let asked = net.node("in").resolves.len();
    net.run(60 * SECOND);
    assert_eq!(net.node("in").resolves.len(), asked);
    assert!(net.node("in").workers[0].forwarding.failed.is_empty());
    punt_adjacency(&mut net, HOPS[0], 1);
    assert_eq!(net.node("in").resolves.len(), asked + 1);
}

#[test]
fn links_are_measured_by_their_probes() {
    let mut net = net();
    for _ in 0..150 {
        net.run(100 * MILLISECOND);
        net.node("in").answer_probes(|sequence| (!sequence.is_multiple_of(10)).then_some(5 * MILLISECOND));
    }
    net.run(2 * SECOND);
    let report = net.node("in").control.report();
    assert_eq!(report.links.iter().map(|link| link.to.as_str()).collect::<Vec<_>>(), ["left", "out", "right"]);
    for link in &report.links {
        let quality = link.quality;
        assert_eq!((quality.rtt_min_us, quality.rtt_p99_us, quality.jitter_us), (5000, 5000, 0));
        assert_eq!(quality.probes, 100);
        assert!(quality.loss > 0.1 && quality.loss < 0.35, "a tenth, and the last second's: {}", quality.loss);
    }
}

#[test]
fn a_neighbour_that_goes_keeps_the_places_of_the_others() {
    let mut net = net();
    let before = net.node("in").workers[0].forwarding.peers.clone();
    let register: Vec<_> = net.nodes.values().map(|node| node.control.register()).collect();
    let nodes = register
        .into_iter()
        .filter(|r| r.node.name != "left")
        .map(|r| crate::rpc::messages::Neighbour { node: r.node, probe_key: r.probe_key })
        .collect();
    let (now, token_key) = (net.now, net.key.public());
    net.node("in").control.on_neighbours(Neighbours { nodes, token_key }, now);
    net.settle();
    let after = net.node("in").workers[0].forwarding.peers.clone();
    assert_eq!((after[0].is_active, after[1], after[2]), (false, before[1], before[2]));
    net.introduce();
    assert_eq!(net.node("in").workers[0].forwarding.peers, before);
}
