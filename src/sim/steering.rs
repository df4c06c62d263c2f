//! Same flow, same core: each node has two workers and a NIC with RSS, whose key it knows or does not know.

use std::net::SocketAddrV4;

use super::{
    node::Knowledge,
    packets,
    server::OPEN_PORT,
    world::{SERVER, World},
};
use crate::{
    MILLISECOND, SECOND,
    wire::{icmp, ip4, tcp},
};

const NODES: [&str; 4] = ["entry", "left", "right", "exit"];
const PATHS: [&str; 3] = ["entry-left-exit", "entry-right-exit", "entry-exit"];
const CLIENTS: u8 = 4;

/// Flows of each kind that each client has.
const FLOWS: u16 = 3;

/// A world with clients whose sessions over all paths are open.
fn connected(knowledge: Knowledge, seed: u64) -> (World, Vec<usize>) {
    let mut world = World::knowing(knowledge, seed, &NODES);
    let clients = connect(&mut world, 2);
    (world, clients)
}

/// Clients, numbered from `first` on, whose sessions over all paths are open.
fn connect(world: &mut World, first: u8) -> Vec<usize> {
    let clients: Vec<usize> = (first..first + CLIENTS).map(|number| world.add_client(number)).collect();
    for &client in &clients {
        world.open(client, &PATHS);
    }
    world.run(2 * SECOND);
    for &client in &clients {
        assert!(world.client(client).session.as_ref().is_some_and(|session| session.is_ready()));
    }
    clients
}

/// Each client has flows of UDP and TCP to the server, and each of their packets is answered.
fn converse(world: &mut World, clients: &[usize]) {
    let server = SocketAddrV4::new(SERVER, OPEN_PORT);
    for _ in 0..10 {
        for &client in clients {
            for flow in 0..FLOWS {
                let source = SocketAddrV4::new(world.client(client).inside.ip4, 1_000 + flow);
                world.send(client, &packets::udp(source, server, &flow.to_be_bytes()));
                world.send(client, &packets::tcp(source, server, tcp::SYN));
            }
        }
        world.run(100 * MILLISECOND);
    }
    for &client in clients {
        let received = &world.client(client).received;
        let of = |protocol| received.iter().filter(|(_, packet)| packet[ip4::PROTOCOL] == protocol).count();
        assert_eq!((of(ip4::UDP), of(ip4::TCP)), (10 * usize::from(FLOWS), 10 * usize::from(FLOWS)));
    }
}

fn handed_off(world: &mut World) -> [u64; 4] {
    NODES.map(|name| {
        let number = world.number(name);
        world.node(number).handed_off()
    })
}

#[test]
fn no_packet_is_handed_over_where_rss_is_known_or_the_nic_takes_rules() {
    for (seed, knowledge) in
        (100..120).map(|seed| (seed, Knowledge::Right)).chain((120..130).map(|seed| (seed, Knowledge::Rules)))
    {
        let (mut world, clients) = connected(knowledge, seed);
        converse(&mut world, &clients);
        assert_eq!(handed_off(&mut world), [0; 4], "{knowledge:?}, seed {seed}");
        for name in NODES {
            let number = world.number(name);
            let received = world.node(number).received();
            assert!(received.iter().all(|count| *count > 100), "{name}: all queues are used: {received:?}");
        }
    }
}

#[test]
fn packets_are_handed_over_and_arrive_where_rss_is_unknown_or_not_as_it_was_said_to_be() {
    for knowledge in [Knowledge::None, Knowledge::Wrong] {
        for seed in 120..124 {
            let (mut world, clients) = connected(knowledge, seed);
            converse(&mut world, &clients);
            let handed_off = handed_off(&mut world);
            assert!(handed_off.iter().sum::<u64>() > 500, "{knowledge:?}, seed {seed}: {handed_off:?}");
        }
    }
}

/// Somebody changes key and table of every NIC (`ethtool -X`) while the nodes run.
fn change_nics(world: &mut World, seed: u64, is_told: bool) {
    for name in NODES {
        let (number, now) = (world.number(name), world.now);
        let node = world.node(number);
        node.change_nic(seed ^ number as u64);
        if is_told {
            node.tell_nic(now);
        }
    }
}

#[test]
fn what_is_set_up_after_a_nics_change_goes_by_it_and_what_was_there_goes_on() {
    for seed in 140..144 {
        let (mut world, clients) = connected(Knowledge::Right, seed);
        converse(&mut world, &clients);
        change_nics(&mut world, !seed, true);
        // Sessions and flows of before: nothing is lost, but the queues are not those that were chosen.
        clients.iter().for_each(|&client| world.client(client).received.clear());
        converse(&mut world, &clients);
        let before = handed_off(&mut world);
        assert!(before.iter().sum::<u64>() > 200, "seed {seed}: {before:?}");
        clients.iter().for_each(|&client| world.close(client));
        world.run(30 * SECOND);
        world.assert_all_free();

        let before = handed_off(&mut world);
        let clients = connect(&mut world, 2 + CLIENTS);
        converse(&mut world, &clients);
        assert_eq!(handed_off(&mut world), before, "seed {seed}");
    }
}

#[test]
fn a_change_that_nobody_tells_of_costs_hand_overs_and_nothing_else() {
    let (mut world, clients) = connected(Knowledge::Right, 145);
    change_nics(&mut world, 99, false);
    converse(&mut world, &clients);
    clients.iter().for_each(|&client| world.close(client));
    world.run(30 * SECOND);
    let more = connect(&mut world, 2 + CLIENTS);
    converse(&mut world, &more);
    assert!(handed_off(&mut world).iter().sum::<u64>() > 500);
}

#[test]
fn nothing_is_left_of_sessions_whose_ports_were_chosen() {
    let (mut world, clients) = connected(Knowledge::Right, 130);
    converse(&mut world, &clients);
    clients.iter().for_each(|&client| world.close(client));
    world.run(30 * SECOND);
    world.assert_all_free();
}

/// ICMP has no ports to choose: what can be known does not help it.
#[test]
fn answers_to_pings_arrive_all_the_same() {
    let (mut world, clients) = connected(Knowledge::Right, 131);
    for &client in &clients {
        let source = world.client(client).inside.ip4;
        for identifier in 0..FLOWS {
            world.send(client, &packets::echo(icmp::ECHO_REQUEST, source, SERVER, identifier, b"ping"));
        }
    }
    world.run(SECOND);
    for &client in &clients {
        assert_eq!(world.client(client).received.len(), usize::from(FLOWS));
    }
    let [entry, left, right, exit] = handed_off(&mut world);
    assert_eq!([entry, left, right], [0; 3], "between nodes it is as any other packet");
    assert!(exit > 0);
}
