//! RFC 5382: NAT behavioral requirements for TCP. The state machine and timers of RFC 7857 are in [`super::rfc7857`].

use super::*;
use crate::wire::tcp::{ACK, FIN, RST, SYN};

pub(super) const CLIENT: Endpoint = (HOST, 5000);
pub(super) const WEB: Endpoint = (SERVER, 80);
/// The first numbers of client and server.
pub(super) const C: u32 = 1000;
pub(super) const S: u32 = 9000;

/// An open connection; how the server sees the client.
pub(super) fn connect(nat: &mut Nat, client: Endpoint, server: Endpoint) -> Endpoint {
    let outside = nat.seen(&segment(client, server, SYN, C, 0));
    assert!(nat.is_let_in(&segment(server, outside, SYN | ACK, S, C + 1)));
    assert_eq!(nat.seen(&segment(client, server, ACK, C + 1, S + 1)), outside);
    outside
}

/// Seconds, to one, until the one binding is gone.
pub(super) fn seconds_to_live(nat: &mut Nat) -> u64 {
    (0..9000)
        .find(|_| {
            nat.bindings() == 0 || {
                nat.pass(SECOND);
                false
            }
        })
        .expect("it is freed")
}

#[test]
fn req1_mapping_is_endpoint_independent() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    assert_eq!(connect(&mut nat, CLIENT, (OTHER_SERVER, 443)), outside);
    assert_eq!(nat.bindings(), 1);
    assert_ne!(connect(&mut nat, (HOST, 5001), WEB), outside);
}

#[test]
fn req2_every_valid_sequence_passes_simultaneous_open_included() {
    let mut nat = Nat::new();
    let outside = nat.seen(&segment(CLIENT, WEB, SYN, C, 0));
    assert!(nat.is_let_in(&segment(WEB, outside, SYN, S, 0)));
    assert_eq!(nat.seen(&segment(CLIENT, WEB, SYN | ACK, C, S + 1)), outside);
    assert!(nat.is_let_in(&segment(WEB, outside, SYN | ACK, S, C + 1)));
    assert_eq!(nat.seen(&segment(CLIENT, WEB, ACK, C + 1, S + 1)), outside);
    assert_eq!(seconds_to_live(&mut nat), 7441, "it is an established connection");
}

#[test]
fn req2_a_connection_is_made_by_a_syn_only() {
    let mut nat = Nat::new();
    for flags in [ACK, FIN | ACK, RST, SYN | ACK, RST | ACK, 0] {
        assert_eq!(nat.send_inside(&segment(CLIENT, WEB, flags, C, 0)), []);
    }
    assert_eq!((nat.bindings(), nat.dropped(Reason::NotSyn)), (0, 6));
}

#[test]
fn req3_filtering_is_endpoint_independent_and_address_dependent_by_option() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    assert!(nat.is_let_in(&segment((OTHER_SERVER, 7), outside, SYN, 1, 0)));

    let mut nat = Nat::adjusted(|nat| nat.filtering = Filtering::AddressDependent);
    let outside = connect(&mut nat, CLIENT, WEB);
    assert!(nat.is_let_in(&segment((SERVER, 7), outside, SYN, 1, 0)));
    assert!(!nat.is_let_in(&segment((OTHER_SERVER, 7), outside, ACK, 1, 0)));
    assert_eq!(nat.dropped(Reason::Filtered), 1);

    let mut nat = Nat::adjusted(|nat| nat.filtering = Filtering::AddressAndPortDependent);
    let outside = connect(&mut nat, CLIENT, WEB);
    assert!(nat.is_let_in(&segment(WEB, outside, ACK, S + 1, C + 1)));
    assert!(!nat.is_let_in(&segment((SERVER, 7), outside, ACK, 1, 0)));
}

#[test]
fn req4_an_unsolicited_syn_is_not_answered_for_six_seconds_and_then_refused() {
    let mut nat = Nat::new();
    let syn = segment(WEB, (OUTSIDE[0], 4000), SYN, S, 0);
    assert_eq!(nat.send_outside(&syn), []);
    assert_eq!(nat.pass(6 * SECOND - TICK), []);
    let told = nat.pass(2 * TICK);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].packet[20..22], [icmp::UNREACHABLE, icmp::CODE_PORT]);
    assert_eq!((destination_address(&told[0].packet), &told[0].packet[28..]), (SERVER, &syn[..]));
    assert_eq!(nat.pass(20 * SECOND), [], "once");
}

#[test]
fn req4_a_syn_from_inside_makes_the_held_one_forgotten() {
    let mut nat = Nat::adjusted(|nat| nat.filtering = Filtering::AddressDependent);
    let outside = nat.seen(&segment(CLIENT, (OTHER_SERVER, 1), SYN, C, 0));
    assert!(!nat.is_let_in(&segment(WEB, outside, SYN, S, 0)), "nobody has sent there yet");
    nat.pass(3 * SECOND);
    assert_eq!(nat.seen(&segment(CLIENT, WEB, SYN, C, 0)), outside);
    assert!(nat.is_let_in(&segment(WEB, outside, SYN, S, 0)), "its repetition is simultaneous open");
    assert_eq!(nat.pass(20 * SECOND), []);
}

#[test]
fn req5_an_established_connection_is_kept_for_two_hours_and_four_minutes() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    nat.pass(7440 * SECOND);
    assert_eq!(nat.seen(&segment(CLIENT, WEB, ACK, C + 1, S + 1)), outside, "a keep-alive after two hours");
    assert_eq!(seconds_to_live(&mut nat), 7441);
    nat.assert_all_free();
}

#[test]
fn req5_an_opening_and_a_closed_connection_are_kept_for_four_minutes() {
    let mut nat = Nat::new();
    nat.seen(&segment(CLIENT, WEB, SYN, C, 0));
    assert_eq!(seconds_to_live(&mut nat), 241);

    let outside = connect(&mut nat, CLIENT, WEB);
    nat.seen(&segment(CLIENT, WEB, FIN | ACK, C + 1, S + 1));
    nat.is_let_in(&segment(WEB, outside, ACK, S + 1, C + 2));
    nat.pass(1000 * SECOND);
    assert!(nat.is_let_in(&segment(WEB, outside, ACK, S + 1, C + 2)), "half-closed is open");
    nat.is_let_in(&segment(WEB, outside, FIN | ACK, S + 1, C + 2));
    nat.seen(&segment(CLIENT, WEB, ACK, C + 2, S + 2));
    assert_eq!(seconds_to_live(&mut nat), 241);
    nat.assert_all_free();
}

#[test]
fn req6_no_payload_is_looked_into() {
    let mut nat = Nat::new();
    connect(&mut nat, CLIENT, (SERVER, 21));
    let mut says_address = segment(CLIENT, (SERVER, 21), ACK, C + 1, S + 1)[20..].to_vec();
    says_address.extend_from_slice(b"PORT 10,0,0,2,19,136\r\n");
    let packet = crate::dataplane::testing::packet(HOST, SERVER, ip4::TCP, &says_address);
    assert_eq!(nat.send_inside(&packet)[0].packet[40..], says_address[20..]);
}

#[test]
fn req7_no_port_is_two_hosts() {
    let mut nat = Nat::with(Setup { ports: (2000, 2009), ..Setup::default() });
    let hosts = (0..10).map(|host| (Ipv4Addr::new(10, 0, 3, host), 5000));
    let seen: std::collections::HashSet<Endpoint> =
        hosts.map(|client| nat.seen(&segment(client, WEB, SYN, C, 0))).collect();
    assert_eq!(seen.len(), 10);
    assert!(nat.send_inside(&segment(CLIENT, WEB, SYN, C, 0))[0].is_to_inside, "refused");
}

#[test]
fn req8_two_hosts_connect_by_their_outside_addresses() {
    for workers in [1, 3] {
        let mut nat = Nat::with(Setup { workers, ..Setup::default() });
        let listening = connect(&mut nat, (OTHER_HOST, 8000), WEB);
        let out = nat.send_inside(&segment(CLIENT, listening, SYN, C, 0));
        let (outside, to) = (source(&out[0].packet), destination(&out[0].packet));
        assert!(out[0].is_to_inside && OUTSIDE.contains(&outside.0));
        assert_eq!((to, out[0].packet[ip4::TTL]), ((OTHER_HOST, 8000), 63), "through one router");
        let out = nat.send_inside(&segment((OTHER_HOST, 8000), outside, SYN | ACK, S, C + 1));
        assert_eq!((source(&out[0].packet), destination(&out[0].packet)), (listening, CLIENT));
    }
}

#[test]
fn req9_and_req10_icmp_errors_are_translated_and_end_nothing() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    let sent = nat.send_inside(&segment(CLIENT, WEB, ACK, C + 1, S + 1)).remove(0).packet;
    for code in 0..16 {
        let out = nat.send_outside(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, code, [0; 4], &sent[..28]));
        let quoted = &out[0].packet[28..];
        assert_eq!((&quoted[12..16], &quoted[20..22]), (&HOST.octets()[..], &5000u16.to_be_bytes()[..]));
    }
    assert!(nat.is_let_in(&segment(WEB, outside, ACK, S + 1, C + 1)));
    nat.pass(300 * SECOND);
    assert_eq!(nat.bindings(), 1, "it is still established");
}

#[test]
fn a_reset_is_let_through_and_closes_if_the_client_could_accept_it() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    assert!(nat.is_let_in(&segment(WEB, outside, RST, S + 70_000, 0)), "judged by the client, not by us");
    nat.pass(300 * SECOND);
    assert_eq!(nat.bindings(), 1, "a spoofed one closes nothing");
    assert!(nat.is_let_in(&segment(WEB, outside, RST, S + 1, 0)));
    assert_eq!(seconds_to_live(&mut nat), 241);
}

#[test]
fn a_connection_that_goes_on_after_a_reset_is_open_again() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    nat.is_let_in(&segment(WEB, outside, RST, S + 1, 0));
    nat.pass(100 * SECOND);
    nat.seen(&segment(CLIENT, WEB, ACK, C + 1, S + 1));
    assert_eq!(seconds_to_live(&mut nat), 7441);
}

#[test]
fn what_a_closed_connection_still_says_keeps_nothing() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    nat.seen(&segment(CLIENT, WEB, RST, C + 1, 0));
    for _ in 0..20 {
        nat.pass(11 * SECOND);
        nat.is_let_in(&segment(WEB, outside, ACK, S + 1, C + 1));
        nat.send_inside(&segment(CLIENT, WEB, RST, C + 1, 0));
    }
    nat.pass(21 * SECOND);
    nat.assert_all_free();
}

#[test]
fn a_second_connection_keeps_the_mapping_of_a_closed_one() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    connect(&mut nat, CLIENT, (OTHER_SERVER, 443));
    nat.is_let_in(&segment(WEB, outside, RST, S + 1, 0));
    nat.pass(300 * SECOND);
    assert!(nat.is_let_in(&segment((OTHER_SERVER, 443), outside, ACK, S + 1, C + 1)));
}

fn destination_address(packet: &[u8]) -> Ipv4Addr {
    ip4::parse(packet).expect("a packet that parses").destination
}
