//! Stories of clients that speak IPv6: to servers of IPv6 by the exit's address, and to those of IPv4 by their names.

use std::net::Ipv6Addr;

use super::{
    node::address6_of,
    server::{OPEN_PORT, SILENT_PORT},
    wires::Wire,
    world::{SERVER, SERVER6, World},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    client::inside::Inside,
    dataplane::{
        nat::Prefix64,
        testing6::{has_valid_checksums6, icmp6_packet, udp6_packet},
    },
    wire::{icmp, icmp6, ip4, ip6, read_u16, udp},
};

const NODES: [&str; 4] = ["entry", "left", "right", "exit"];
const PATHS: [&str; 2] = ["entry-left-exit", "entry-right-exit"];
const INSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// Long enough for anything on the way to arrive.
const QUIET: Nanos = SECOND;

/// A world with clients whose sessions are open and ready, all with the same inside addresses.
fn connected<const N: usize>(seed: u64) -> (World, [usize; N]) {
    let mut world = World::new(seed, &NODES);
    let clients = std::array::from_fn(|number| {
        let client = world.add_client(number as u8 + 2);
        world.client(client).inside = Inside { ip4: [100, 64, 0, 2].into(), ip6: Some(INSIDE6) };
        world.open(client, &PATHS);
        client
    });
    world.run(2 * SECOND);
    for client in clients {
        let host = world.client(client);
        assert!(host.session.as_ref().is_some_and(|session| session.is_ready()), "{:?}", host.opened);
    }
    (world, clients)
}

fn exit6(world: &mut World) -> Ipv6Addr {
    let number = world.number("exit");
    address6_of(world.node(number).address)
}

/// The payloads of the UDP packets that the client received from `server`, in order.
fn answers(world: &mut World, client: usize, server: Ipv6Addr) -> Vec<Vec<u8>> {
    let parse = |(_, packet): &(Nanos, Vec<u8>)| {
        let header = ip6::parse(packet).ok()?;
        assert!(has_valid_checksums6(packet) && header.destination == INSIDE6);
        let is_answer = header.protocol == ip4::UDP && header.source == server;
        is_answer.then(|| packet[header.header_length + udp::HEADER_BYTES..].to_vec())
    };
    world.client(client).received.iter().filter_map(parse).collect()
}

fn names() -> [Ipv6Addr; 2] {
    [SERVER6, Prefix64::WELL_KNOWN.embed(SERVER)]
}

#[test]
fn a_packet_goes_there_and_back_exactly_once_over_two_paths_whatever_the_server_speaks() {
    let (mut world, [client]) = connected(1);
    let opened = world.client(client).opened.clone().unwrap().unwrap();
    let exit = exit6(&mut world);
    assert_eq!(opened.exit_address6, Some(exit));
    for server in names() {
        world.send(client, &udp6_packet((INSIDE6, 1_000), (server, OPEN_PORT), b"hello"));
        world.run(QUIET);
        assert_eq!(answers(&mut world, client, server), [b"hello"]);
    }
    let received = world.server().received.clone();
    let [six, four] = &received[..] else { panic!("{} packets", received.len()) };
    assert_eq!(ip6::parse(six).unwrap().source, exit);
    assert_eq!(ip4::parse(four).unwrap().source, opened.exit_address);
    assert_eq!(world.client(client).dropped(), 0);
    world.close(client);
    world.run(QUIET);
    world.assert_all_free();
}

#[test]
fn pings_and_port_unreachable_come_back_translated() {
    let (mut world, [client]) = connected(2);
    let probe = udp6_packet((INSIDE6, 1_000), (SERVER6, 99), b"anybody?");
    world.send(client, &icmp6_packet(INSIDE6, SERVER6, icmp6::ECHO_REQUEST, 0, &[0, 77, 0, 1, 9]));
    world.run(QUIET);
    world.send(client, &probe);
    world.run(QUIET);
    let received = world.client(client).received.clone();
    let [(_, reply), (_, error)] = &received[..] else { panic!("{} packets", received.len()) };
    assert!(has_valid_checksums6(reply) && has_valid_checksums6(error));
    assert_eq!(
        (reply[40], read_u16(reply, 40 + icmp::IDENTIFIER), &reply[46..]),
        (icmp6::ECHO_REPLY, 77, &[0, 1, 9][..])
    );
    assert_eq!((error[40], error[41]), (icmp6::UNREACHABLE, icmp6::CODE_PORT));
    assert_eq!(error[48 + ip6::SOURCE..], probe[ip6::SOURCE..], "its own packet");
}

#[test]
fn clients_with_the_same_address_and_port_get_their_own_packets_over_a_bad_network() {
    let (mut world, clients) = connected::<2>(3);
    world.set_all_wires(Wire { jitter: 5 * MILLISECOND, loss: 20, ..Wire::GOOD });
    for number in 0..200u8 {
        for (client, name) in clients.into_iter().zip(*b"ab") {
            for server in names() {
                world.send(client, &udp6_packet((INSIDE6, 1_000), (server, OPEN_PORT), &[name, number]));
            }
        }
        world.run(5 * MILLISECOND);
    }
    world.run(QUIET);
    for (client, name) in clients.into_iter().zip(*b"ab") {
        for server in names() {
            let mut answers = answers(&mut world, client, server);
            assert!(answers.iter().all(|answer| answer[0] == name), "an answer of the other client");
            let all = answers.len();
            answers.sort_unstable();
            answers.dedup();
            assert_eq!(answers.len(), all, "each comes once");
            assert!(all > 150, "{all} of 200");
        }
    }
}

#[test]
fn a_session_that_ends_leaves_no_host_behind() {
    let (mut world, clients) = connected::<2>(4);
    for client in clients {
        for port in 0..3 {
            world.send(client, &udp6_packet((INSIDE6, 1_000 + port), (SERVER6, SILENT_PORT), b"x"));
        }
    }
    world.run(QUIET);
    let sources: Vec<_> = world.server().received.iter().map(|packet| read_u16(packet, 40 + udp::SOURCE)).collect();
    let different: std::collections::BTreeSet<_> = sources.iter().collect();
    assert_eq!((sources.len(), different.len()), (6, 6), "each flow of each client has a port of its own");
    clients.into_iter().for_each(|client| world.close(client));
    world.run(QUIET);
    world.assert_all_free();
}
