//! Whole stories: what a client of the overlay may rely on, each checked from outside, at client and server.

use std::{
    collections::{BTreeSet, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use super::{
    packets,
    server::{OPEN_PORT, SILENT_PORT},
    wires::Wire,
    world::{Lost, SERVER, World},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    dataplane::reason::Reason,
    rpc::messages::FailureReason,
    wire::{
        ethernet, icmp, ip4,
        relay::{self, Kind},
        tcp, udp,
    },
};

const NODES: [&str; 4] = ["entry", "left", "right", "exit"];
const PATHS: [&str; 2] = ["entry-left-exit", "entry-right-exit"];
const EXIT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, OPEN_PORT);

/// Long enough for anything on the way to arrive.
const QUIET: Nanos = SECOND;

/// A world with a client whose session over both paths is open and ready.
fn connected(seed: u64) -> (World, usize) {
    let mut world = World::new(seed, &NODES);
    let client = world.add_client(2);
    connect(&mut world, client);
    (world, client)
}

fn connect(world: &mut World, client: usize) {
    world.open(client, &PATHS);
    world.run(2 * SECOND);
    let host = world.client(client);
    assert!(matches!(host.opened, Some(Ok(_))), "{:?}", host.opened);
    assert!(host.session.as_ref().is_some_and(|session| session.is_ready()));
}

fn inside(world: &mut World, client: usize) -> SocketAddrV4 {
    SocketAddrV4::new(world.client(client).inside.ip4, 1_000)
}

/// The client sends these payloads to the server's UDP port, one each `interval`.
fn send_datagrams(world: &mut World, client: usize, port: u16, payloads: std::ops::Range<u32>, interval: Nanos) {
    let source = inside(world, client);
    for number in payloads {
        let packet = packets::udp(source, SocketAddrV4::new(SERVER, port), &number.to_be_bytes());
        world.send(client, &packet);
        world.run(interval);
    }
}

fn numbers(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<u32> {
    payloads.into_iter().map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes"))).collect()
}

fn sorted(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.sort_unstable();
    numbers
}

/// What the server got and what came back to the client, in order of arrival.
fn arrived(world: &mut World, client: usize, port: u16) -> (Vec<u32>, Vec<u32>) {
    let there = numbers(world.server().datagrams(port).into_iter().map(|(_, payload)| payload));
    (there, numbers(world.client(client).payloads()))
}

#[test]
fn a_packet_goes_there_and_back_exactly_once_over_two_paths() {
    let (mut world, client) = connected(1);
    let source = inside(&mut world, client);
    world.send(client, &packets::udp(source, ECHO, b"hello"));
    world.run(QUIET);
    let seen = world.server().datagrams(OPEN_PORT);
    assert_eq!(seen.len(), 1);
    assert_eq!((*seen[0].0.ip(), seen[0].1.as_slice()), (EXIT, &b"hello"[..]));
    let received = &world.client(client).received;
    assert_eq!(received.len(), 1);
    assert_eq!(packets::parse_udp(&received[0].1), Some((ECHO, source, &b"hello"[..])));
    // The second copies were there, and ended at exit and entry.
    for node in ["exit", "entry"] {
        let number = world.number(node);
        assert!(world.node(number).dropped(Reason::Duplicate) > 0, "{node}");
    }
    assert_eq!(world.client(client).dropped(), 0);
}

#[test]
fn tcp_ping_and_icmp_errors_come_back_translated() {
    let (mut world, client) = connected(2);
    let source = inside(&mut world, client);
    let closed = SocketAddrV4::new(SERVER, 99);
    let probe = packets::udp(source, closed, b"anybody?");
    world.send(client, &packets::tcp(source, ECHO, tcp::SYN));
    world.run(QUIET);
    world.send(client, &packets::tcp(source, closed, tcp::SYN));
    world.run(QUIET);
    world.send(client, &packets::echo(icmp::ECHO_REQUEST, *source.ip(), SERVER, 77, b"ping"));
    world.run(QUIET);
    world.send(client, &probe);
    world.run(QUIET);
    let received: Vec<_> = world.client(client).received.iter().map(|(_, packet)| packet.clone()).collect();
    assert_eq!(received.len(), 4);
    assert_eq!(packets::parse_tcp(&received[0]), Some((ECHO, source, tcp::SYN | tcp::ACK)));
    assert_eq!(packets::parse_tcp(&received[1]), Some((closed, source, tcp::RST | tcp::ACK)));
    let mut reply = packets::echo(icmp::ECHO_REPLY, SERVER, *source.ip(), 77, b"ping");
    reply[ip4::TTL..ip4::CHECKSUM + 2].copy_from_slice(&received[2][ip4::TTL..ip4::CHECKSUM + 2]);
    assert_eq!(received[2], reply);
    let (from, to, message) = packets::parse_icmp(&received[3]).expect("an ICMP message with a valid checksum");
    assert_eq!((from, to, message[icmp::TYPE], message[icmp::CODE]), (SERVER, *source.ip(), icmp::UNREACHABLE, 3));
    let quoted = &message[icmp::HEADER_BYTES..];
    assert_eq!(quoted[ip4::SOURCE..ip4::HEADER_BYTES + 4], probe[ip4::SOURCE..ip4::HEADER_BYTES + 4], "its own packet");
}

#[test]
fn the_death_of_a_relay_costs_no_packet() {
    let (mut world, client) = connected(3);
    send_datagrams(&mut world, client, OPEN_PORT, 0..200, 5 * MILLISECOND);
    let left = world.number("left");
    world.kill(left);
    send_datagrams(&mut world, client, OPEN_PORT, 200..600, 5 * MILLISECOND);
    world.run(20 * SECOND);
    let all: Vec<_> = (0..600).collect();
    assert_eq!(arrived(&mut world, client, OPEN_PORT), (all.clone(), all));
    assert!(!world.client(client).is_lost);
}

#[test]
fn the_death_of_every_path_is_noticed_by_the_client() {
    let (mut world, client) = connected(4);
    for relay in ["left", "right"] {
        let number = world.number(relay);
        world.kill(number);
    }
    world.run(21 * SECOND);
    assert!(world.client(client).is_lost);
}

/// Sequence numbers of the relay packets of this kind that got lost between two hosts.
fn lost_sequences(lost: &[Lost], from: usize, to: usize, kind: Kind) -> BTreeSet<u64> {
    lost.iter()
        .filter(|lost| (lost.from, lost.to) == (from, to))
        .filter_map(|lost| {
            let headers = ethernet::HEADER_BYTES + ip4::HEADER_BYTES + udp::HEADER_BYTES;
            relay::parse(&lost.frame[headers..]).ok()
        })
        .filter(|header| header.kind == kind)
        .map(|header| header.sequence)
        .collect()
}

#[test]
fn a_packet_is_lost_only_where_every_copy_of_it_is() {
    const PACKETS: u32 = 4_000;
    let (mut world, client) = connected(5);
    let [entry, left, right] = ["entry", "left", "right"].map(|name| world.number(name));
    for relay in [left, right] {
        world.set_wire(entry, relay, Wire { loss: 50, jitter: 3 * MILLISECOND, ..Wire::GOOD });
    }
    send_datagrams(&mut world, client, OPEN_PORT, 0..PACKETS, 2 * MILLISECOND);
    world.run(QUIET);

    let up = [left, right].map(|relay| lost_sequences(&world.lost, entry, relay, Kind::DataUp));
    let down = [left, right].map(|relay| lost_sequences(&world.lost, relay, entry, Kind::DataDown));
    let both = |[a, b]: &[BTreeSet<u64>; 2]| a.intersection(b).count();
    let (there, back) = arrived(&mut world, client, OPEN_PORT);
    assert_eq!(there.len(), PACKETS as usize - both(&up));
    assert_eq!(back.len(), there.len() - both(&down));
    for path in up.iter().chain(&down) {
        assert!((120..280).contains(&path.len()), "about 5 % of each path: {}", path.len());
    }
    assert!(PACKETS as usize - back.len() < PACKETS as usize / 100, "below 1 % both ways: {}", back.len());
    assert_eq!(there.iter().collect::<HashSet<_>>().len(), there.len(), "none twice");
    assert_eq!(back.iter().collect::<HashSet<_>>().len(), back.len(), "none twice");
}

#[test]
fn reordered_and_duplicated_frames_arrive_exactly_once() {
    for seed in 10..14 {
        let (mut world, client) = connected(seed);
        world.set_all_wires(Wire { jitter: 40 * MILLISECOND, duplication: 200, ..Wire::GOOD });
        // Between client and entry and between exit and server nothing may be doubled: nobody there could tell.
        let (entry, exit, server) = (world.number("entry"), world.number("exit"), world.server_number());
        world.set_wire(exit, server, Wire::GOOD);
        world.set_wire(client, entry, Wire { duplication: 0, jitter: 40 * MILLISECOND, ..Wire::GOOD });
        send_datagrams(&mut world, client, OPEN_PORT, 0..500, MILLISECOND);
        world.run(QUIET);
        let (there, back) = arrived(&mut world, client, OPEN_PORT);
        assert_ne!(there, sorted(there.clone()), "the wires reorder");
        let all: Vec<_> = (0..500).collect();
        assert_eq!((sorted(there), sorted(back)), (all.clone(), all), "seed {seed}");
    }
}

#[test]
fn two_clients_with_the_same_inside_address_and_port_do_not_cross() {
    let mut world = World::new(6, &NODES);
    let clients = [world.add_client(2), world.add_client(3)];
    for client in clients {
        world.client(client).inside = Ipv4Addr::new(100, 64, 0, 7).into();
        connect(&mut world, client);
    }
    for number in 0..200 {
        for (which, client) in clients.into_iter().enumerate() {
            let first = which as u32 * 1_000 + number;
            send_datagrams(&mut world, client, OPEN_PORT, first..first + 1, MILLISECOND);
        }
    }
    world.run(QUIET);
    for (which, client) in (0u32..).zip(clients) {
        let own: Vec<_> = (which * 1_000..which * 1_000 + 200).collect();
        assert_eq!(numbers(world.client(client).payloads()), own);
        assert_eq!(world.client(client).dropped(), 0);
    }
    // One port of the exit's each, kept over all packets.
    let sources: HashSet<_> = world
        .server()
        .datagrams(OPEN_PORT)
        .into_iter()
        .map(|(source, payload)| (source, u32::from_be_bytes(payload.try_into().unwrap()) / 1_000))
        .collect();
    assert_eq!(sources.len(), 2);
    assert_eq!(sources.iter().map(|(source, _)| source).collect::<HashSet<_>>().len(), 2);
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let (mut world, client) = connected(7);
    let source = inside(&mut world, client);
    world.send(client, &packets::tcp(source, ECHO, tcp::SYN));
    world.send(client, &packets::echo(icmp::ECHO_REQUEST, *source.ip(), SERVER, 77, b"ping"));
    send_datagrams(&mut world, client, SILENT_PORT, 0..10, MILLISECOND);
    world.kill(client);
    world.run(50 * SECOND);
    let numbers = NODES.map(|name| world.number(name));
    assert!(numbers.iter().all(|node| world.node(*node).slots_used() > 0), "50 s of silence are no reason");
    world.run(30 * SECOND);
    assert_eq!(numbers.map(|node| world.node(node).slots_used()), [0; 4]);
    world.assert_all_free();
}

#[test]
fn a_server_that_goes_on_sending_does_not_keep_a_session_alive() {
    let (mut world, client) = connected(8);
    send_datagrams(&mut world, client, OPEN_PORT, 0..1, SECOND);
    let outside = world.server().datagrams(OPEN_PORT)[0].0;
    world.kill(client);
    for _ in 0..80 {
        world.send_from_server(&packets::udp(ECHO, outside, b"still there?"));
        world.run(SECOND);
    }
    world.assert_all_free();
}

#[test]
fn a_session_that_is_kept_alive_lasts() {
    let (mut world, client) = connected(9);
    world.run(130 * SECOND);
    send_datagrams(&mut world, client, OPEN_PORT, 0..1, QUIET);
    assert_eq!(arrived(&mut world, client, OPEN_PORT), (vec![0], vec![0]));
}

#[test]
fn a_closed_session_is_freed_everywhere_at_once() {
    let (mut world, client) = connected(20);
    send_datagrams(&mut world, client, OPEN_PORT, 0..10, MILLISECOND);
    world.close(client);
    world.run(2 * SECOND);
    world.assert_all_free();
}

#[test]
fn a_session_starts_with_the_paths_that_can_be_had() {
    let mut world = World::new(21, &NODES);
    let left = world.number("left");
    world.kill(left);
    let client = world.add_client(2);
    world.open(client, &PATHS);
    world.run(15 * SECOND);
    let Some(Ok(opened)) = &world.client(client).opened else { panic!("the session should be open") };
    assert_eq!(opened.paths[0].as_ref().map(|failure| failure.reason), Some(FailureReason::Pending));
    assert_eq!(opened.paths[1], None);
    send_datagrams(&mut world, client, OPEN_PORT, 0..50, 5 * MILLISECOND);
    world.run(QUIET);
    let all: Vec<_> = (0..50).collect();
    assert_eq!(arrived(&mut world, client, OPEN_PORT), (all.clone(), all));
}

#[test]
fn without_any_path_the_client_is_told_and_nothing_stays_allocated() {
    let mut world = World::new(22, &NODES);
    world.run(SECOND);
    let exit = world.number("exit");
    world.kill(exit);
    let client = world.add_client(2);
    world.open(client, &PATHS);
    world.run(20 * SECOND);
    assert!(matches!(world.client(client).opened, Some(Err(_))));
    world.run(60 * SECOND);
    world.assert_all_free();
}

#[test]
fn lost_control_messages_are_repeated_and_leak_nothing() {
    let mut opened = 0;
    for seed in 30..36 {
        let mut world = World::new(seed, &NODES);
        world.message_loss = 200;
        let client = world.add_client(2);
        world.open(client, &PATHS);
        world.run(20 * SECOND);
        if matches!(world.client(client).opened, Some(Ok(_))) {
            opened += 1;
            send_datagrams(&mut world, client, OPEN_PORT, 0..5, 5 * MILLISECOND);
            world.run(QUIET);
            assert_eq!(arrived(&mut world, client, OPEN_PORT).1, [0, 1, 2, 3, 4], "seed {seed}");
        }
        world.kill(client);
        world.run(70 * SECOND);
        world.assert_all_free();
    }
    assert!(opened >= 4, "{opened} of 6");
}

#[test]
fn a_client_that_moves_is_followed_with_its_next_keep_alive() {
    let (mut world, client) = connected(23);
    send_datagrams(&mut world, client, OPEN_PORT, 0..10, 5 * MILLISECOND);
    world.run(QUIET);
    world.client(client).address = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 99), 6_000);
    world.run(8 * SECOND);
    send_datagrams(&mut world, client, OPEN_PORT, 10..20, 5 * MILLISECOND);
    world.run(QUIET);
    let all: Vec<_> = (0..20).collect();
    assert_eq!(arrived(&mut world, client, OPEN_PORT), (all.clone(), all));
}

#[test]
fn a_stranger_who_copies_a_clients_packet_gains_nothing() {
    let (mut world, client) = connected(24);
    let source = inside(&mut world, client);
    let inner = packets::udp(source, ECHO, b"secret");
    let packet = world.client(client).send(&inner);
    let mut copy = packet.clone();
    ip4::replace_address(&mut copy, ip4::SOURCE, Ipv4Addr::new(10, 0, 1, 200));
    let stranger = world.add_client(200);
    // The UDP checksum still covers the old address: none instead.
    copy[ip4::HEADER_BYTES + udp::CHECKSUM..][..2].fill(0);
    world.send_packet(stranger, &copy);
    world.run(QUIET);
    assert_eq!(world.server().received.len(), 0);
    let entry = world.number("entry");
    assert_eq!(world.node(entry).dropped(Reason::WrongSource), 1);
    world.send_packet(client, &packet);
    world.send_packet(client, &packet);
    world.run(QUIET);
    assert_eq!(world.server().received.len(), 1, "a replay is a duplicate");
}

#[test]
fn the_exit_refuses_private_destinations_and_the_overlay_itself() {
    let (mut world, client) = connected(25);
    let source = inside(&mut world, client);
    for destination in [[10, 0, 0, 1], [10, 0, 0, 4], [10, 99, 0, 1]] {
        world.send(client, &packets::udp(source, SocketAddrV4::new(destination.into(), 53), b"let me in"));
        world.run(100 * MILLISECOND);
    }
    let exit = world.number("exit");
    assert_eq!(world.node(exit).dropped(Reason::Denied), 3);
}

#[test]
fn packets_that_reach_the_wrong_worker_are_handed_over() {
    let mut handed_off = 0;
    for seed in 60..66 {
        let (mut world, client) = connected(seed);
        send_datagrams(&mut world, client, OPEN_PORT, 0..20, MILLISECOND);
        world.run(QUIET);
        let all: Vec<_> = (0..20).collect();
        assert_eq!(arrived(&mut world, client, OPEN_PORT), (all.clone(), all));
        handed_off +=
            NODES.map(|name| world.number(name)).map(|node| world.node(node).handed_off()).iter().sum::<u64>();
    }
    assert!(handed_off > 0);
}

/// A story with everything in it; its trace.
fn eventful(seed: u64) -> u64 {
    let mut world = World::new(seed, &NODES);
    world.message_loss = 50;
    let clients = [world.add_client(2), world.add_client(3), world.add_client(4)];
    let bad = Wire { jitter: 20 * MILLISECOND, loss: 30, duplication: 50, ..Wire::GOOD };
    world.set_all_wires(bad);
    for client in clients {
        world.open(client, &PATHS);
    }
    world.run(10 * SECOND);
    for round in 0..100 {
        for client in clients {
            if world.client(client).session.is_some() {
                send_datagrams(&mut world, client, OPEN_PORT, round..round + 1, MILLISECOND);
            }
        }
    }
    let left = world.number("left");
    world.kill(left);
    world.kill(clients[0]);
    world.run(90 * SECOND);
    world.trace()
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_eq!(eventful(70), eventful(70));
    assert_ne!(eventful(70), eventful(71));
}
