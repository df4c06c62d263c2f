//! The ways through the graph: which edges a packet of each kind takes. What it looks like then is for the tests of
//! the nodes.

use super::{conntrack::NO_BINDING, handoff, testing::*};
use crate::wire::{
    icmp, ip4,
    relay::Kind::{DataUp, KeepAliveUp},
    tcp,
};

/// A packet comes in like this ...
const IN: [&str; 2] = ["ethernet_input > ip4_input", "ip4_input > l4_classify"];
/// ... a relay packet of a node like this ...
const RELAY: [&str; 1] = ["ethernet_input > relay_input"];
/// ... and what is sent leaves like this.
const OUT: [&str; 1] = ["ip_output > tx"];

#[track_caller]
fn expect(bench: &mut Bench, packet: Vec<u8>, parts: &[&[&str]]) {
    assert_eq!(bench.way(packet), parts.concat());
}

#[test]
fn a_relay_forwards_both_ways() {
    let mut bench = Bench::new();
    bench.relay();
    let way: &[&[&str]] = &[&RELAY, &["relay_input > relay_forward", "relay_forward > ip_output"], &OUT];
    expect(&mut bench, Relayed::up(1, 1, vec![0; 40]).frame(), way);
    expect(&mut bench, Relayed::down(1, 1, vec![0; 40]).frame(), way);
}

#[test]
fn an_entry_copies_up_and_merges_down() {
    let mut bench = Bench::new();
    bench.entry(3);
    let inner = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
    let up = ["relay_input > entry_up", "3 entry_up > ip_output", "3 ip_output > tx"];
    expect(&mut bench, Relayed::from_client(1, inner.clone()).frame(), &[&RELAY, &up]);
    let down = ["relay_input > entry_down", "entry_down > ip_output"];
    expect(&mut bench, Relayed::down(2, 1, inner.clone()).frame(), &[&RELAY, &down, &OUT]);
    let again = ["relay_input > entry_down", "entry_down > duplicate"];
    expect(&mut bench, Relayed { path: 1, ..Relayed::down(2, 1, inner) }.frame(), &[&RELAY, &again]);
}

#[test]
fn an_exit_translates_out_and_back_over_all_paths() {
    let mut bench = Bench::new();
    bench.exit(2, NO_BINDING);
    bench.bind(ip4::UDP, 1000, 41_000, None);
    let question = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
    let out = ["relay_input > exit_up", "exit_up > nat_in2out", "nat_in2out > ip_output"];
    expect(&mut bench, Relayed::up(3, 1, question).frame(), &[&RELAY, &out, &OUT]);
    let back = ["l4_classify > nat_out2in", "nat_out2in > exit_down", "2 exit_down > ip_output", "2 ip_output > tx"];
    expect(&mut bench, frame(&udp_packet((SERVER, 53), (US, 41_000), b"answer")), &[&IN, &back]);
}

#[test]
fn an_exit_answers_a_keep_alive_over_all_paths() {
    let mut bench = Bench::new();
    bench.exit(2, NO_BINDING);
    let way = ["relay_input > exit_up", "exit_up > exit_down", "2 exit_down > ip_output", "2 ip_output > tx"];
    expect(&mut bench, Relayed { kind: KeepAliveUp, ..Relayed::up(3, 1, vec![]) }.frame(), &[&RELAY, &way]);
}

#[test]
fn the_first_packet_of_a_flow_waits_for_the_control_core() {
    let mut bench = Bench::new();
    bench.exit(1, NO_BINDING);
    let question = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
    let way = ["relay_input > exit_up", "exit_up > nat_in2out", "nat_in2out > punt"];
    expect(&mut bench, Relayed::up(3, 1, question).frame(), &[&RELAY, &way]);
}

#[test]
fn a_packet_to_a_next_hop_without_mac_waits_for_it() {
    let mut bench = Bench::new();
    bench.exit(1, NO_BINDING);
    bench.bind(ip4::UDP, 1000, 41_000, None);
    let question = udp_packet((INSIDE, 1000), (UNRESOLVED, 53), b"question");
    let way = ["relay_input > exit_up", "exit_up > nat_in2out", "nat_in2out > ip_output", "ip_output > punt"];
    expect(&mut bench, Relayed::up(3, 1, question).frame(), &[&RELAY, &way]);
}

#[test]
fn a_packet_that_may_not_live_on_is_answered_with_an_error() {
    let mut bench = Bench::new();
    bench.exit(1, NO_BINDING);
    let mut dying = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
    ip4::emit(&mut dying, INSIDE, SERVER, ip4::UDP, 36, 1);
    let way = [
        "relay_input > exit_up",
        "exit_up > nat_in2out",
        "nat_in2out > icmp_error",
        "icmp_error > exit_down",
        "exit_down > ip_output",
    ];
    expect(&mut bench, Relayed::up(3, 1, dying).frame(), &[&RELAY, &way, &OUT]);
}

#[test]
fn a_servers_refusals_reach_the_client() {
    let mut bench = Bench::new();
    bench.exit(1, NO_BINDING);
    bench.bind(ip4::TCP, 1000, 41_000, None);
    let way = ["l4_classify > nat_out2in", "nat_out2in > exit_down", "exit_down > ip_output"];
    let reset = tcp_packet((SERVER, 80), (US, 41_000), tcp::RST, &[]);
    expect(&mut bench, frame(&reset), &[&IN, &way, &OUT]);
    let quote = tcp_packet((US, 41_000), (SERVER, 80), tcp::SYN, &[]);
    let unreachable = icmp_packet(ROUTER, US, icmp::UNREACHABLE, 1, &[&[0; 4], &quote[..28]].concat());
    expect(&mut bench, frame(&unreachable), &[&IN, &way, &OUT]);
}

#[test]
fn a_hairpin_turns_without_leaving() {
    let mut bench = Bench::new();
    bench.exit(1, NO_BINDING);
    bench.bind(ip4::UDP, 1000, 41_000, None);
    let to_itself = udp_packet((INSIDE, 1000), (US, 41_000), b"hello");
    let way = [
        "relay_input > exit_up",
        "exit_up > nat_in2out",
        "nat_in2out > nat_out2in",
        "nat_out2in > exit_down",
        "exit_down > ip_output",
    ];
    expect(&mut bench, Relayed::up(3, 1, to_itself).frame(), &[&RELAY, &way, &OUT]);
}

#[test]
fn what_another_worker_owns_is_handed_over_and_ends_as_it_would_here() {
    let mut mesh = handoff::mesh(2).into_iter();
    let (first, second) = (mesh.next().unwrap(), mesh.next().unwrap());
    let (mut stranger, mut owner) = (Bench::at(0, 2, first), Bench::at(1, 2, second));
    owner.relay();
    let packet = Relayed { kind: DataUp, ..Relayed::up(1 << 24 | 1, 1, vec![0; 40]) };
    expect(&mut stranger, packet.frame(), &[&RELAY, &["relay_input > handoff"]]);
    assert_eq!(owner.sweep().len(), 1, "the owner sends it");
}

#[test]
fn what_is_not_for_us_ends_where_that_is_seen() {
    let mut bench = Bench::new();
    let stranger = udp_packet((SERVER, 53), (US, DATA_PORT - 1), b"?");
    expect(&mut bench, frame(&stranger), &[&IN, &["l4_classify > not_our_port"]]);
    expect(&mut bench, vec![0; 60], &[&["ethernet_input > unknown_ethertype"]]);
    expect(&mut bench, Relayed::up(9, 1, vec![]).frame(), &[&RELAY, &["relay_input > free_slot"]]);
}
