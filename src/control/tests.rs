//! The control cores of a whole overlay on a virtual clock. What each test needs of the network it says in `fate`.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::Ordering::Relaxed,
};

use super::{
    Caller, KernelEvent, RequestId,
    harness::{Message, Net},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    dataplane::{
        command::{Event, PuntCause},
        conntrack::{CtIndex, Role},
        forwarding::{Lookup, Route},
        nat::{BindingKey, Class, Mapping, Owner},
        reason::Reason,
        tick::Tick,
    },
    limits::{TICK, UNRESOLVED_MAX},
    rpc::messages::{
        Failure, FailureReason, LinkEnd, Neighbours, Open, Opened, Request, Response, SessionKind, Setup, Teardown,
    },
    wire::{ip4, tcp},
};

const NAMES: [&str; 4] = ["in", "left", "out", "right"];
const BOTH: [&str; 2] = ["in-left-out", "in-right-out"];
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const DELAY: Nanos = 10 * MILLISECOND;

fn net() -> Net {
    Net::new(&NAMES, 1, |_, _| ())
}

fn failed(hop: &str, reason: FailureReason) -> Response {
    Response::Failed(Failure { hop: hop.into(), reason })
}

fn flow(net: &Net, session: u8, paths: &[&str], protocol: u8, server: Ipv4Addr) -> Open {
    let source = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 2), 5000);
    let kind = SessionKind::Flow { protocol, source, server: SocketAddrV4::new(server, 53) };
    Open { kind, ..net.tunnel("alice", session, paths) }
}

/// The packets of a session refresh its stamps for `time`.
fn run_with_traffic(net: &mut Net, opened: &Opened, paths: &[usize], time: Nanos) {
    let end = net.now + time;
    while net.now < end {
        paths.iter().for_each(|path| net.traffic(opened, *path));
        net.run(SECOND);
    }
}

fn exit_slot(net: &Net, opened: &Opened) -> CtIndex {
    net.trace(opened, 0).last().expect("a path ends somewhere").1
}

/// A packet of a tunnel that waits at the exit under `ticket`; what becomes of it: `None` it goes on.
fn punt(net: &mut Net, key: BindingKey, remote: Ipv4Addr, tcp_flags: u8, ticket: u32) -> Option<Reason> {
    let now = net.now;
    let cause = PuntCause::NoBinding { key, remote: (remote, 443), tcp_flags };
    net.node("out").control.on_event(0, Event::Punt { waiting: ticket, cause }, now);
    net.settle();
    let worker = &net.node("out").workers[0];
    let refused = worker.refused.iter().find(|(waiting, _)| *waiting == ticket).map(|(_, reason)| *reason);
    assert_ne!(refused.is_some(), worker.resumed.contains(&ticket), "a waiting packet hears exactly one thing");
    refused
}

fn key(slot: u32, protocol: u8, port: u16) -> BindingKey {
    BindingKey { owner: Owner::session(slot), protocol, address: Ipv4Addr::new(100, 64, 0, 2), port, remote: None }
}

fn use_binding(net: &mut Net, index: usize) {
    let now = net.now;
    net.node("out").workers[0].published.bindings[index].touch((now / TICK) as u32, 60);
}

// Setup, and what it leaves.

#[test]
fn a_session_over_two_relays_agrees_on_every_hop() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    assert_eq!(opened.paths, [None, None]);
    assert_eq!(opened.exit_address, Ipv4Addr::new(10, 0, 0, 3));
    let ways: Vec<Vec<String>> =
        (0..2).map(|path| net.trace(&opened, path).into_iter().map(|(node, _)| node).collect()).collect();
    assert_eq!(ways, [["in", "left", "out"], ["in", "right", "out"]]);

    let entry = &net.node("in").workers[0];
    let (_, role, fan, up, _) = entry.slots[&opened.entry.ct_index.slot()];
    assert_eq!((role, up.address, up.port), (Role::Entry, Ipv4Addr::new(203, 0, 113, 1), 0));
    assert_eq!((entry.fans[&fan].0.mtu, entry.fans[&fan].0.inside), (1400, Ipv4Addr::new(100, 64, 0, 2)));
    let used: Vec<(u32, u32)> =
        net.summaries().iter().map(|s| (s.workers[0].slots.used, s.workers[0].fans.used)).collect();
    assert_eq!(used, [(1, 1), (1, 0), (1, 1), (1, 0)], "in, left, out, right: the exit has one slot for both paths");

    assert_eq!(net.close("in", "alice", [1; 16]), Response::Closed);
    net.assert_all_free();
}

#[test]
fn a_session_needs_no_relay_and_may_have_many() {
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g", "h"], 2, |_, _| ());
    let opened = net.open(net.tunnel("alice", 1, &["a-h", "a-b-c-d-e-f-g-h", "a-g-h"]));
    assert_eq!([0, 1, 2].map(|path| net.trace(&opened, path).len()), [2, 8, 3]);
    net.close("a", "alice", [1; 16]);
    net.assert_all_free();
}

#[test]
fn the_inner_mtu_is_what_fits_through_1500_bytes() {
    let mut net = net();
    let opened = net.open(Open { mtu: 9000, ..net.tunnel("alice", 1, &BOTH) });
    let exit = exit_slot(&net, &opened);
    for (name, slot) in [("in", opened.entry.ct_index), ("out", exit)] {
        let worker = &net.node(name).workers[0];
        assert_eq!(worker.fans[&worker.slots[&slot.slot()].2].0.mtu, 1448, "{name}");
    }
    let asked = net.ask("in", Request::Open(Open { mtu: 575, ..net.tunnel("alice", 2, &BOTH) }));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("in", FailureReason::BadRequest));
}

#[test]
fn sessions_of_two_clients_share_no_index_and_no_key() {
    let mut net = net();
    let opened = [net.open(net.tunnel("alice", 1, &BOTH)), net.open(net.tunnel("bob", 2, &BOTH))];
    let mut slots = HashSet::new();
    for session in &opened {
        for path in 0..2 {
            slots.extend(net.trace(session, path));
        }
    }
    assert_eq!(slots.len(), 8, "four nodes, two sessions");
    assert_ne!(opened[0].key, opened[1].key);
    // Bob cannot end Alice's session, nor tell whether there is one.
    assert_eq!(net.close("in", "bob", [1; 16]), failed("in", FailureReason::UnknownSession));
    let asked = net.ask("in", Request::Open(net.tunnel("bob", 1, &BOTH)));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("in", FailureReason::NotAllowed));
    net.trace(&opened[0], 0);
}

#[test]
fn the_workers_of_a_node_get_the_same_share() {
    let mut net = Net::new(&NAMES, 3, |_, _| ());
    for session in 0..9 {
        let opened = net.open(flow(&net, session, &BOTH, ip4::UDP, SERVER));
        let (node, slot) = net.trace(&opened, 0).pop().unwrap();
        let worker = &net.nodes[&node].workers[slot.worker()];
        let port =
            worker.bindings.values().find(|binding| binding.owner == Owner::session(slot.slot())).unwrap().outside_port;
        assert!(
            net.nodes[&node].control.config.nat.outside(3).ports_of(0, slot.worker()).contains(&port),
            "the port's owner is the session's worker"
        );
    }
    for summary in net.summaries().iter().filter(|summary| summary.name != "left" && summary.name != "right") {
        assert_eq!(summary.workers.iter().map(|worker| worker.slots.used).collect::<Vec<_>>(), [3, 3, 3]);
    }
}

#[test]
fn when_one_path_fails_the_session_starts_with_the_other_and_says_why() {
    let mut net = net();
    net.stop("right");
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
    net.run(10 * SECOND);
    let Response::Opened(opened) = net.answer(asked) else { panic!("{:?}", net.answer(asked)) };
    assert_eq!(opened.paths, [None, Some(Failure { hop: "right".into(), reason: FailureReason::Pending })]);
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
    net.run(SECOND);
    let Response::Opened(again) = net.answer(asked) else { panic!("{:?}", net.answer(asked)) };
    assert_eq!(again.paths, [None, Some(Failure { hop: "right".into(), reason: FailureReason::Unreachable })]);
    net.trace(&opened, 0);
    let entry = &net.node("in").workers[0];
    assert!(entry.fans[&0].1[1].is_none(), "no copy is sent down a path that is not there");
    net.close("in", "alice", [1; 16]);
    net.run(10 * SECOND);
    net.assert_all_free();
}

#[test]
fn when_all_paths_fail_everything_is_freed_and_the_first_failure_is_told() {
    let mut net = net();
    net.stop("out");
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
    net.run(10 * SECOND);
    assert_eq!(net.answer(asked), failed("out", FailureReason::Unreachable), "not the relay's fault");
    net.run(10 * SECOND);
    net.assert_all_free();
}

#[test]
fn a_failure_of_the_transport_is_repeated_once_at_once() {
    let mut net = net();
    net.stop("out");
    net.tells_unreachable = true;
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("out", FailureReason::Unreachable), "without waiting for a time-out");
    net.run(40 * SECOND);
    net.assert_all_free();
    assert_eq!(net.summaries().iter().map(|s| s.counters.setups).collect::<Vec<_>>(), [0, 1, 0, 1]);

    // An attempt that fails after the next one was made is no news.
    net.restart("out");
    let open = net.tunnel("alice", 2, &["in-out"]);
    let (now, unix) = (net.now, super::harness::UNIX_START);
    let node = &mut net.node("in").control;
    node.on_request(Caller::Client(SERVER), RequestId(1 << 40), Request::Open(open), now, unix);
    let calls = |node: &mut super::Control| {
        let mut calls = Vec::new();
        while let Some(effect) = node.poll() {
            if let super::Effect::Call { call, .. } = effect {
                calls.push(call);
            }
        }
        calls
    };
    let first = calls(node);
    node.on_tick(now + 3 * SECOND);
    let second = calls(node);
    assert_eq!((first.len(), second.len()), (1, 1));
    node.on_response(first[0], None, now + 3 * SECOND);
    assert_eq!((calls(node).len(), node.summary(now).entries), (0, 1));
    node.on_response(second[0], None, now + 3 * SECOND);
    assert_eq!(node.summary(now).entries, 0);
}

#[test]
fn a_next_hop_that_is_no_neighbour_fails_its_path_only_and_names_who_does_not_know_it() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &["in-left-stranger-out", "in-stranger-out", "in-right-out"]));
    let unknown = |hop: &str| Some(Failure { hop: hop.into(), reason: FailureReason::UnknownNode });
    assert_eq!(opened.paths, [unknown("left"), unknown("in"), None]);
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 2, &["in-stranger-out"])));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("in", FailureReason::UnknownNode));
    net.close("in", "alice", [1; 16]);
    net.assert_all_free();
}

#[test]
fn a_full_node_refuses_the_new_and_keeps_the_old() {
    let mut net = Net::new(&NAMES, 1, |name, config| {
        if name == "left" {
            config.slots = 1
        }
    });
    let first = net.open(net.tunnel("alice", 1, &["in-left-out"]));
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 2, &["in-left-out"])));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("left", FailureReason::SlotsExhausted));
    net.trace(&first, 0);
    net.close("in", "alice", [1; 16]);
    net.open(net.tunnel("alice", 2, &["in-left-out"]));
    net.close("in", "alice", [2; 16]);
    net.assert_all_free();
}

#[test]
fn a_flow_gets_its_binding_at_setup() {
    let mut net = net();
    let opened = net.open(flow(&net, 1, &BOTH, ip4::UDP, SERVER));
    let exit = exit_slot(&net, &opened);
    let worker = &net.node("out").workers[0];
    let (fan, _) = worker.fans[&worker.slots[&exit.slot()].2];
    let binding = worker.bindings[&fan.binding];
    assert_eq!((binding.owner, binding.protocol), (Owner::session(exit.slot()), ip4::UDP));
    assert_eq!((binding.inside_address, binding.inside_port), (Ipv4Addr::new(100, 64, 0, 2), 5000));
    assert_eq!(binding.outside_address, Ipv4Addr::new(10, 0, 0, 3));
    assert!((40001..=40999).contains(&binding.outside_port));
    assert_eq!(binding.mapping, Mapping::Flow((SERVER, 53)));
    net.close("in", "alice", [1; 16]);
    net.assert_all_free();
}

#[test]
fn an_exit_denies_private_addresses_itself_and_other_nodes() {
    let mut net = Net::new(&NAMES, 1, |_, config| {
        config.policy.deny = vec!["192.168.0.0/16".parse().unwrap()];
        config.policy.allow = vec!["192.168.7.0/24".parse().unwrap(), "10.0.0.3".parse().unwrap()];
    });
    let denied = [Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 2)];
    for (session, server) in (1..).zip(denied) {
        let asked = net.ask("in", Request::Open(flow(&net, session, &BOTH, ip4::TCP, server)));
        net.run(SECOND);
        assert_eq!(net.answer(asked), failed("out", FailureReason::DestinationDenied), "{server}");
    }
    let Open { kind: SessionKind::Flow { source, .. }, .. } = flow(&net, 0, &BOTH, ip4::TCP, SERVER) else { panic!() };
    let kind = SessionKind::Flow { protocol: ip4::TCP, source, server: SocketAddrV4::new(SERVER, 25) };
    let asked = net.ask("in", Request::Open(Open { kind, ..net.tunnel("alice", 8, &BOTH) }));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("out", FailureReason::DestinationDenied), "mail");
    net.assert_all_free();
    net.open(flow(&net, 9, &BOTH, ip4::TCP, Ipv4Addr::new(192, 168, 7, 1)));
}

#[test]
fn without_a_port_the_flow_is_refused_and_nothing_is_kept() {
    let mut net = Net::new(&NAMES, 1, |_, config| config.nat.addresses[0].last = config.nat.addresses[0].first);
    net.open(flow(&net, 1, &BOTH, ip4::UDP, SERVER));
    let asked = net.ask("in", Request::Open(flow(&net, 2, &BOTH, ip4::UDP, SERVER)));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("out", FailureReason::PortsExhausted));
    net.close("in", "alice", [1; 16]);
    net.assert_all_free();
}

// Who may ask.

#[test]
fn tokens_are_checked_for_signature_time_exit_paths_and_number_of_sessions() {
    let mut net = net();
    let good = net.tunnel("alice", 1, &BOTH);
    let with = |token: String| Open { token, ..good.clone() };
    let cases = [
        (with("nonsense".into()), FailureReason::Unauthorised),
        (
            with(net.token("alice", |claims| claims.expires = super::harness::UNIX_START - 61)),
            FailureReason::TokenExpired,
        ),
        (with(net.token("alice", |claims| claims.exits = Some(vec!["left".into()]))), FailureReason::NotAllowed),
        (with(net.token("alice", |claims| claims.paths_max = 1)), FailureReason::NotAllowed),
        (with(net.token("alice", |claims| claims.sessions_max = 0)), FailureReason::NotAllowed),
    ];
    for (open, reason) in cases {
        let asked = net.ask("in", Request::Open(open));
        net.run(SECOND);
        assert_eq!(net.answer(asked), failed("in", reason));
    }
    net.assert_all_free();

    let one = net.token("alice", |claims| claims.sessions_max = 1);
    net.open(with(one.clone()));
    let asked = net.ask("in", Request::Open(Open { session: [2; 16], ..with(one.clone()) }));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("in", FailureReason::NotAllowed));
    net.close("in", "alice", [1; 16]);
    net.open(Open { session: [2; 16], ..with(one) });
}

#[test]
fn malformed_paths_are_refused() {
    let mut net = net();
    let bad: [&[&str]; 6] = [
        &[],
        &["in"],
        &["left-out"],
        &["in-left-in-out"],
        &["in-left-out", "in-right"],
        &["in-out", "in-out", "in-out", "in-out", "in-out", "in-out", "in-out", "in-out", "in-out"],
    ];
    for paths in bad {
        let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, paths)));
        net.run(SECOND);
        assert_eq!(net.answer(asked), failed("in", FailureReason::BadRequest), "{paths:?}");
    }
    net.assert_all_free();
}

#[test]
fn a_node_only_takes_the_roles_it_is_willing_to_have() {
    let mut net = Net::new(&NAMES, 1, |name, config| {
        config.roles.entry = name == "in";
        config.roles.relay = name == "left";
        config.roles.exit = name == "out";
    });
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    assert_eq!(opened.paths, [None, Some(Failure { hop: "right".into(), reason: FailureReason::NotAllowed })]);
    let cases = [("in-left", "left"), ("left-out", "left")];
    for (path, hop) in cases {
        let open = net.tunnel("alice", 2, &[path]);
        let asked = net.ask(&open.paths[0][0].clone(), Request::Open(open));
        net.run(SECOND);
        assert_eq!(net.answer(asked), failed(hop, FailureReason::NotAllowed), "{path}");
    }
}

fn setup(net: &Net, upstream: LinkEnd) -> Setup {
    Setup {
        token: net.token("alice", |_| ()),
        entry: "in".into(),
        session: [1; 16],
        kind: SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None },
        mtu: 1400,
        path: 0,
        route: vec!["out".into()],
        upstream,
        boot_epoch: 1000,
    }
}

fn end(number: u8, slot: u32) -> LinkEnd {
    let data = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number), 40000);
    LinkEnd { data, ct_index: CtIndex(slot), generation: 9, source_port: 40000 }
}

#[test]
fn a_setup_is_taken_from_a_neighbour_only_and_for_its_own_address_only() {
    let mut net = net();
    let node = |name: &str| Caller::Node(name.into());
    let request = |net: &Net, upstream| Request::Setup(setup(net, upstream));
    let good = request(&net, end(1, 5));
    let cases = [
        (Caller::Client(Ipv4Addr::new(10, 0, 0, 1)), good.clone(), FailureReason::Unauthorised),
        (node("stranger"), good.clone(), FailureReason::UnknownNode),
        (node("in"), request(&net, end(77, 5)), FailureReason::NotAllowed),
        (node("left"), good.clone(), FailureReason::NotAllowed),
        (
            node("in"),
            Request::Setup(Setup { token: "x".into(), ..setup(&net, end(1, 5)) }),
            FailureReason::Unauthorised,
        ),
        (node("in"), Request::Setup(Setup { path: 8, ..setup(&net, end(1, 5)) }), FailureReason::BadRequest),
        (node("in"), Request::Setup(Setup { route: vec![], ..setup(&net, end(1, 5)) }), FailureReason::BadRequest),
        (node("in"), Request::Topology { token: String::new() }, FailureReason::BadRequest),
        (node("in"), request(&net, LinkEnd { source_port: 39_999, ..end(1, 5) }), FailureReason::BadRequest),
        (node("in"), request(&net, LinkEnd { source_port: 40_256, ..end(1, 5) }), FailureReason::BadRequest),
    ];
    for (caller, request, reason) in cases {
        let asked = net.ask_as(caller, "out", request);
        net.run(SECOND);
        assert_eq!(net.answer(asked), failed("out", reason));
    }
    net.assert_all_free();
    let asked = net.ask_as(node("in"), "out", good);
    net.run(DELAY);
    assert!(matches!(net.answer(asked), Response::SetUp(_)));
}

#[test]
fn before_the_control_centre_has_spoken_nothing_is_opened() {
    let mut net = net();
    let open = net.tunnel("alice", 1, &BOTH);
    net.restart_alone("in");
    let asked = net.ask("in", Request::Open(open.clone()));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("in", FailureReason::Unauthorised));
    net.introduce();
    net.open(open);
}

#[test]
fn half_open_sessions_of_one_address_are_capped_and_others_are_not_touched() {
    let mut net = Net::new(&NAMES, 1, |_, _| ());
    let flooder = Ipv4Addr::new(192, 0, 2, 66);
    let mut asked = 0;
    for session in 0..65 {
        asked = net.ask_from(flooder, "in", Request::Open(net.tunnel("mallory", session, &["in-out"])));
    }
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("in", FailureReason::Busy));
    let opened = net.open(net.tunnel("alice", 100, &BOTH));
    // Sessions with packets are not half-open any more.
    for summary in net.node("in").control.sessions(0) {
        let now = net.now;
        net.node("in").workers[0].touch(summary.ct_index.slot(), now);
    }
    net.run(SECOND);
    let asked = net.ask_from(flooder, "in", Request::Open(net.tunnel("mallory", 65, &["in-out"])));
    net.run(SECOND);
    assert!(matches!(net.answer(asked), Response::Opened(_)));
    net.trace(&opened, 1);
}

// Messages that get lost, come twice or come late.

#[test]
fn the_same_open_again_gets_the_same_answer_and_takes_nothing() {
    let mut net = net();
    let open = net.tunnel("alice", 1, &BOTH);
    let first = net.ask("in", Request::Open(open.clone()));
    let second = net.ask("in", Request::Open(open.clone()));
    net.run(SECOND);
    let third = net.ask("in", Request::Open(open.clone()));
    net.run(SECOND);
    assert!(matches!(net.answer(first), Response::Opened(_)));
    assert_eq!((net.answer(second), net.answer(third)), (net.answer(first), net.answer(first)));
    assert!(net.summaries().iter().all(|summary| summary.workers[0].slots.used == 1));
    let asked = net.ask("in", Request::Open(Open { paths: vec![open.paths[0].clone()], ..open }));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("in", FailureReason::BadRequest), "another session under the same number");
}

/// Loses the first `count` messages that `is_meant`.
fn lose(net: &mut Net, mut count: u32, is_meant: impl Fn(&Message) -> bool + 'static) {
    net.fate = Box::new(move |message| {
        if count > 0 && is_meant(message) {
            count -= 1;
            return vec![];
        }
        vec![DELAY]
    });
}

fn is_set_up_from(message: &Message, node: &str) -> bool {
    matches!(message, Message::Response { from, response: Response::SetUp(_), .. } if from == node)
}

#[test]
fn a_lost_answer_is_asked_for_again_and_changes_nothing() {
    for node in ["left", "out"] {
        let mut net = net();
        lose(&mut net, 1, move |message| is_set_up_from(message, node));
        let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
        net.run(SECOND);
        let Response::Opened(opened) = net.answer(asked) else { panic!("{:?}", net.answer(asked)) };
        assert_eq!(opened.paths.iter().flatten().count(), 1, "one path is not there yet");
        net.run(2 * SECOND);
        let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
        net.run(SECOND);
        let Response::Opened(opened) = net.answer(asked) else { panic!("{:?}", net.answer(asked)) };
        assert_eq!(opened.paths, [None, None], "lost answer of {node}");
        net.trace(&opened, 0);
        net.trace(&opened, 1);
        assert!(net.summaries().iter().all(|summary| summary.workers[0].slots.used == 1));
        net.close("in", "alice", [1; 16]);
        net.assert_all_free();
    }
}

#[test]
fn messages_that_come_twice_do_no_harm() {
    let mut net = net();
    net.fate = Box::new(|message| match message {
        // A client's request has one answer here, so that it can be looked at.
        Message::Response { to: super::harness::Origin::Client(_), .. } => vec![DELAY],
        Message::Request { origin: super::harness::Origin::Client(_), .. } => vec![DELAY],
        _ => vec![DELAY, 3 * DELAY],
    });
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    assert_eq!(net.trace(&opened, 0).len() + net.trace(&opened, 1).len(), 6);
    assert!(net.summaries().iter().all(|summary| summary.workers[0].slots.used == 1));
    net.close("in", "alice", [1; 16]);
    net.run(SECOND);
    net.assert_all_free();
}

#[test]
fn an_answer_after_the_path_was_given_up_is_undone() {
    let mut net = net();
    // Setups from the entry take so long that it has given up, and told so, when they arrive.
    net.fate = Box::new(move |message| match message {
        Message::Request { request: Request::Setup(setup), .. } if setup.upstream.data == end(1, 0).data => {
            vec![9 * SECOND]
        }
        _ => vec![DELAY],
    });
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
    net.run(8 * SECOND);
    assert_eq!(net.answer(asked), failed("left", FailureReason::Unreachable));
    net.run(SECOND + 3 * DELAY);
    let used = |net: &Net| net.summaries().iter().map(|s| s.workers[0].slots.used).collect::<Vec<_>>();
    assert_eq!(used(&net)[1..], [1, 1, 1], "left, out and right did what they were asked too late");
    // Long before anything would age: the answers themselves made the entry undo it.
    net.run(4 * SECOND);
    net.assert_all_free();
    assert!(net.summaries()[0].counters.late_answers >= 2);
}

#[test]
fn the_late_end_of_one_attempt_does_not_end_the_next() {
    let mut net = net();
    let node = |name: &str| Caller::Node(name.into());
    let teardown = |upstream| Request::Teardown(Teardown { entry: "in".into(), session: [1; 16], path: 0, upstream });
    net.ask_as(node("in"), "out", Request::Setup(setup(&net, end(1, 5))));
    let asked = net.ask_as(node("in"), "out", Request::Setup(setup(&net, end(1, 6))));
    net.run(DELAY);
    assert!(matches!(net.answer(asked), Response::SetUp(_)));
    let exits = |net: &Net| net.summaries()[2].exits;
    for (caller, upstream, left) in [
        (node("in"), end(1, 5), 1),
        (node("left"), end(1, 6), 1),
        (node("in"), end(1, 6), 0),
        (node("in"), end(1, 6), 0),
    ] {
        let asked = net.ask_as(caller, "out", teardown(upstream));
        net.run(DELAY);
        assert_eq!((net.answer(asked), exits(&net)), (Response::Closed, left));
    }
    net.assert_all_free();
}

#[test]
fn an_answer_that_points_at_a_third_party_is_refused_and_undone() {
    let mut net = net();
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &["in-left-out"])));
    net.run(SECOND);
    assert!(matches!(net.answer(asked), Response::Opened(_)));
    // The control centre says that `out` lives elsewhere; `out` itself still answers with its old address.
    let mut moved: Vec<_> = net
        .nodes
        .values()
        .map(|node| node.control.register())
        .map(|r| crate::rpc::messages::Neighbour { node: r.node, probe_key: r.probe_key })
        .collect();
    moved[2].node.data = SocketAddrV4::new(SERVER, 40000);
    let (now, token_key) = (net.now, net.key.public());
    net.node("left").control.on_neighbours(Neighbours { nodes: moved, token_key }, now);
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 2, &["in-left-out"])));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("out", FailureReason::BadRequest));
    net.close("in", "alice", [1; 16]);
    net.assert_all_free();
}

#[test]
fn closing_a_session_that_is_being_opened_ends_both() {
    let mut net = net();
    let opening = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
    net.run(2 * DELAY);
    let token = net.token("alice", |_| ());
    let closing = net.ask("in", Request::Close { token, session: [1; 16] });
    net.run(6 * SECOND);
    assert_eq!(net.answer(opening), failed("in", FailureReason::UnknownSession));
    assert_eq!(net.answer(closing), Response::Closed);
    net.run(30 * SECOND);
    net.assert_all_free();
}

// The end of sessions.

#[test]
fn a_session_without_any_packet_is_freed_after_thirty_seconds() {
    let mut net = net();
    net.open(flow(&net, 1, &BOTH, ip4::UDP, SERVER));
    // Nothing helps the others: no node tells another.
    net.fate = Box::new(|_| vec![]);
    net.run(29 * SECOND);
    assert!(net.summaries().iter().all(|summary| summary.workers[0].slots.used == 1));
    net.run(2 * SECOND);
    assert!(net.summaries().iter().all(|summary| summary.workers[0].slots.used == 0));
    net.run(10 * SECOND);
    net.assert_all_free();
}

#[test]
fn a_session_ages_out_sixty_seconds_after_its_last_packet_everywhere() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    run_with_traffic(&mut net, &opened, &[0, 1], 100 * SECOND);
    net.fate = Box::new(|_| vec![]);
    net.run(58 * SECOND);
    assert!(net.summaries().iter().all(|summary| summary.workers[0].slots.used == 1));
    net.run(3 * SECOND);
    assert!(net.summaries().iter().all(|summary| summary.workers[0].slots.used == 0 && summary.counters.aged == 1));
    net.run(10 * SECOND);
    net.assert_all_free();
}

#[test]
fn a_packet_that_comes_while_the_session_is_aged_keeps_it() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    net.traffic(&opened, 0);
    net.traffic(&opened, 1);
    net.node("out").is_stalled = true;
    net.run(57 * SECOND);
    // All but the exit's worker see traffic; that one has already been asked when it sees some.
    for _ in 0..5 {
        for (node, slot) in net.trace(&opened, 0).into_iter().chain(net.trace(&opened, 1)).filter(|(n, _)| n != "out") {
            let now = net.now;
            net.node(&node).workers[0].touch(slot.slot(), now);
        }
        net.run(SECOND);
    }
    assert_eq!(net.node("out").control.sessions(0)[0].state, "ageing");
    let asked =
        net.ask_as(Caller::Node("in".into()), "out", Request::Setup(Setup { path: 3, ..setup(&net, end(1, 5)) }));
    net.run(DELAY);
    assert_eq!(net.answer(asked), failed("out", FailureReason::Busy));
    net.traffic(&opened, 0);
    net.node("out").is_stalled = false;
    net.run(SECOND);
    assert_eq!(net.node("out").control.sessions(0)[0].state, "open");
    net.trace(&opened, 1);
    net.close("in", "alice", [1; 16]);
    net.assert_all_free();
}

#[test]
fn a_session_closed_while_it_is_aged_is_freed_once() {
    for is_kept in [false, true] {
        let mut net = net();
        let opened = net.open(net.tunnel("alice", 1, &BOTH));
        net.traffic(&opened, 0);
        net.traffic(&opened, 1);
        net.node("in").is_stalled = true;
        net.run(62 * SECOND);
        assert_eq!(net.node("in").control.sessions(0)[0].state, "ageing");
        if is_kept {
            let now = net.now;
            net.node("in").workers[0].touch(opened.entry.ct_index.slot(), now);
        }
        assert_eq!(net.close("in", "alice", [1; 16]), Response::Closed);
        net.node("in").is_stalled = false;
        net.run(SECOND);
        net.assert_all_free();
    }
}

#[test]
fn a_slot_serves_another_session_only_when_the_worker_has_let_go_and_with_another_generation() {
    let mut net = Net::new(&NAMES, 1, |name, config| {
        if name == "out" {
            config.slots = 1;
        }
    });
    let first = net.open(net.tunnel("alice", 1, &BOTH));
    let old = exit_slot(&net, &first);
    let old_generation = net.node("out").workers[0].slots[&old.slot()].0;
    net.node("out").is_stalled = true;
    net.close("in", "alice", [1; 16]);
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 2, &BOTH)));
    net.run(SECOND);
    assert_eq!(net.answer(asked), failed("out", FailureReason::SlotsExhausted));
    net.node("out").is_stalled = false;
    net.run(SECOND);
    let second = net.open(net.tunnel("alice", 2, &BOTH));
    let new = exit_slot(&net, &second);
    assert_eq!(new, old);
    assert_ne!(net.node("out").workers[0].slots[&new.slot()].0, old_generation);
}

#[test]
fn paths_over_a_node_that_was_started_anew_are_dropped_and_the_others_stay() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    let only_left = net.open(net.tunnel("alice", 2, &["in-left-out"]));
    net.restart("left");
    net.run(SECOND);
    net.trace(&opened, 1);
    let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
    net.run(SECOND);
    let Response::Opened(again) = net.answer(asked) else { panic!("{:?}", net.answer(asked)) };
    assert_eq!(again.paths, [Some(Failure { hop: "left".into(), reason: FailureReason::Unreachable }), None]);
    assert!(!net.node("in").workers[0].slots.contains_key(&only_left.entry.ct_index.slot()));
    net.close("in", "alice", [1; 16]);
    net.assert_all_free();
    // A session through the node's new life works.
    let fresh = net.open(net.tunnel("alice", 3, &BOTH));
    net.introduce();
    net.trace(&fresh, 0);
}

// NAT.

#[test]
fn the_first_packet_of_a_tunnels_flow_gets_a_binding_and_goes_on() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    let slot = exit_slot(&net, &opened).slot();
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 5000), SERVER, 0, 1), None);
    assert_eq!(
        punt(&mut net, key(slot, ip4::UDP, 5000), SERVER, 0, 2),
        None,
        "a second packet before the first went on"
    );
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 5000), Ipv4Addr::new(192, 0, 2, 9), 0, 3), None, "another server");
    assert_eq!(net.node("out").workers[0].bindings.len(), 1, "the mapping is endpoint-independent");
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 5000), Ipv4Addr::new(10, 0, 0, 3), 0, 6), None, "hairpin");
    assert_eq!(punt(&mut net, key(slot, ip4::TCP, 5000), SERVER, tcp::SYN, 4), None);
    assert_eq!(punt(&mut net, key(slot, ip4::ICMP, 5000), SERVER, 0, 5), None);
    let worker = &net.node("out").workers[0];
    assert_eq!(worker.bindings.len(), 3);
    assert!(
        worker
            .bindings
            .values()
            .all(|binding| binding.mapping == Mapping::EndpointIndependent && binding.owner == Owner::session(slot))
    );
    net.close("in", "alice", [1; 16]);
    net.assert_all_free();
}

#[test]
fn packets_that_must_not_have_a_binding_are_refused_with_the_reason() {
    let mut net = Net::new(&NAMES, 1, |_, config| config.bindings_a_session = 2);
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    let slot = exit_slot(&net, &opened).slot();
    assert_eq!(punt(&mut net, key(slot, ip4::TCP, 1), SERVER, tcp::ACK, 1), Some(Reason::NotSyn));
    assert_eq!(punt(&mut net, key(slot, ip4::TCP, 1), SERVER, tcp::SYN | tcp::ACK, 2), Some(Reason::NotSyn));
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 1), Ipv4Addr::new(10, 1, 1, 1), 0, 3), Some(Reason::Denied));
    assert_eq!(punt(&mut net, key(slot, 47, 1), SERVER, 0, 4), Some(Reason::UnknownProtocol));
    assert_eq!(punt(&mut net, key(slot + 1, ip4::UDP, 1), SERVER, 0, 5), Some(Reason::FreeSlot));
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 1), SERVER, 0, 6), None);
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 2), SERVER, 0, 7), None);
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 3), SERVER, 0, 8), Some(Reason::TableFull));
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 1), SERVER, 0, 9), None, "the old ones are kept");
    assert_eq!(net.node("out").workers[0].bindings.len(), 2);
}

#[test]
fn out_of_ports_the_packet_is_refused_and_the_table_is_unchanged() {
    let mut net = Net::new(&NAMES, 1, |_, config| config.nat.addresses[0].last = config.nat.addresses[0].first + 2);
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    let slot = exit_slot(&net, &opened).slot();
    for port in 1..=3 {
        assert_eq!(punt(&mut net, key(slot, ip4::UDP, port), SERVER, 0, u32::from(port)), None);
    }
    let before = net.node("out").workers[0].bindings.clone();
    assert_eq!(punt(&mut net, key(slot, ip4::UDP, 4), SERVER, 0, 4), Some(Reason::PortsExhausted));
    assert_eq!(net.node("out").workers[0].bindings, before);
    assert_eq!(
        punt(&mut net, key(slot, ip4::TCP, 4), SERVER, tcp::SYN, 5),
        None,
        "another protocol's ports are its own"
    );
}

/// Lets time pass, with packets in the session but not through bindings, until binding `index` is gone; how many
/// ticks that took.
fn ticks_until_freed(net: &mut Net, opened: &Opened, index: u32, patience: u32) -> u32 {
    for tick in 0..patience {
        if !net.node("out").workers[0].bindings.contains_key(&index) {
            return tick;
        }
        if tick % 100 == 0 {
            net.traffic(opened, 0);
        }
        net.run(TICK);
    }
    panic!("binding {index} is not freed")
}

fn seconds(seconds: u32) -> u32 {
    seconds * (SECOND / TICK) as u32
}

#[test]
fn an_idle_binding_is_freed_at_the_first_tick_at_which_it_has_been_idle_for_its_time() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &["in-out"]));
    let slot = exit_slot(&net, &opened);
    for (index, (protocol, class, limit)) in (0..).zip([
        (ip4::ICMP, Class::Icmp, 60),
        (ip4::UDP, Class::Udp, 300),
        (ip4::TCP, Class::TcpOpening, 240),
        (ip4::TCP, Class::TcpClosing, 240),
        (ip4::TCP, Class::TcpEstablished, 7440),
    ]) {
        net.run(TICK - net.now % TICK + MILLISECOND);
        let key = key(slot.slot(), protocol, 10 + index as u16);
        assert_eq!(punt(&mut net, key, SERVER, tcp::SYN, index), None);
        net.node("out").workers[0].published.classes[index as usize].store(class as u8, Relaxed);
        run_with_traffic(&mut net, &opened, &[0], 30 * SECOND);
        use_binding(&mut net, index as usize);
        let ticks = ticks_until_freed(&mut net, &opened, index, 80_000);
        let exact = seconds(limit);
        assert!((exact..=exact + 2).contains(&ticks), "{class:?}: {ticks} ticks for {exact}");
    }
    assert_eq!(net.summaries()[1].workers[0].tcp_ports.used, 0);
}

#[test]
fn with_ticks_of_any_length_what_is_idle_is_freed_to_the_tick() {
    for milliseconds in [10, 30, 1000] {
        let tick = Tick::from_millis(milliseconds);
        let mut net = Net::new(&NAMES, 1, |_, config| config.nat.tick = tick);
        let opened = net.open(net.tunnel("alice", 1, &["in-out"]));
        let slot = exit_slot(&net, &opened);
        assert_eq!(punt(&mut net, key(slot.slot(), ip4::ICMP, 1), SERVER, 0, 1), None);
        for _ in 0..6 {
            net.run(20 * SECOND);
            net.traffic(&opened, 0);
            let used = tick.at(net.now);
            net.node("out").workers[0].published.bindings[0].touch(used, 60);
        }
        // Its minute begins with its last packet, which may have come at the end of a tick.
        let (start, limit) = (net.now, 60 * SECOND);
        while net.node("out").workers[0].bindings.contains_key(&0) {
            net.run(10 * MILLISECOND);
            if (net.now - start).is_multiple_of(10 * SECOND) {
                net.traffic(&opened, 0);
            }
        }
        let took = net.now - start;
        assert!((limit..=limit + 2 * tick.times(1) + 20 * MILLISECOND).contains(&took), "{tick:?}: {took} ns");
        net.run(50 * SECOND);
        let now = net.now;
        assert_eq!(net.node("in").control.sessions(now)[0].state, "open", "a minute is not over");
        net.run(20 * SECOND);
        net.assert_all_free();
    }
}

#[test]
fn a_binding_that_is_used_is_never_freed() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &["in-out"]));
    let slot = exit_slot(&net, &opened);
    assert_eq!(punt(&mut net, key(slot.slot(), ip4::ICMP, 1), SERVER, 0, 1), None);
    for _ in 0..50 {
        use_binding(&mut net, 0);
        run_with_traffic(&mut net, &opened, &[0], 60 * SECOND - TICK);
        assert!(net.node("out").workers[0].bindings.contains_key(&0));
    }
    // In the very moment at which the control core has found it idle a packet comes.
    net.node("out").is_stalled = true;
    run_with_traffic(&mut net, &opened, &[0], 2 * SECOND);
    use_binding(&mut net, 0);
    net.node("out").is_stalled = false;
    run_with_traffic(&mut net, &opened, &[0], 59 * SECOND);
    assert!(net.node("out").workers[0].bindings.contains_key(&0), "kept, since the stamp has moved");
    assert!(ticks_until_freed(&mut net, &opened, 0, 100) <= 12, "and not for longer than its time");
}

#[test]
fn a_connection_that_closes_is_freed_by_the_shorter_timer_told_or_not() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &["in-out"]));
    let slot = exit_slot(&net, &opened);
    for (index, is_told) in [(0u32, true), (1, false)] {
        let key = key(slot.slot(), ip4::TCP, 10 + index as u16);
        assert_eq!(punt(&mut net, key, SERVER, tcp::SYN, index), None);
        let class = |net: &mut Net, class: Class| {
            net.node("out").workers[0].published.classes[index as usize].store(class as u8, Relaxed);
            use_binding(net, index as usize);
        };
        class(&mut net, Class::TcpEstablished);
        run_with_traffic(&mut net, &opened, &[0], 400 * SECOND);
        class(&mut net, Class::TcpClosing);
        if is_told {
            let now = net.now;
            net.node("out").control.on_event(0, Event::BindingClosing { index }, now);
        }
        let ticks = ticks_until_freed(&mut net, &opened, index, 10_000);
        assert!((seconds(240)..=seconds(240) + 2).contains(&ticks), "{ticks}: the next look comes within a minute");
    }
}

#[test]
fn a_flows_binding_lives_as_long_as_its_session() {
    let mut net = net();
    let opened = net.open(flow(&net, 1, &BOTH, ip4::UDP, SERVER));
    run_with_traffic(&mut net, &opened, &[0, 1], 400 * SECOND);
    assert_eq!(net.node("out").workers[0].bindings.len(), 1);
    net.run(70 * SECOND);
    net.assert_all_free();
}

// Where packets go.

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

// The rings to the workers.

#[test]
fn a_worker_that_does_not_keep_up_gets_no_new_work_and_nothing_is_lost() {
    let mut net = Net::new(&NAMES, 1, |_, config| (config.slots, config.fans) = (4096, 4096));
    net.node("out").control.set_command_room(0, 10);
    let mut sessions = Vec::new();
    let mut busy = 0;
    for session in 0..900u16 {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&session.to_be_bytes());
        let source = Ipv4Addr::from(0xc000_0200 + u32::from(session));
        let open = Open { session: id, ..net.tunnel("alice", 0, &["in-out"]) };
        let asked = net.ask_from(source, "in", Request::Open(open));
        net.run(DELAY * 3);
        sessions.push((id, asked));
    }
    net.run(SECOND);
    for (id, asked) in &sessions {
        match net.answer(*asked) {
            Response::Opened(_) => {}
            answer => {
                assert_eq!(answer, failed("out", FailureReason::Busy));
                busy += 1;
            }
        }
        let _ = id;
    }
    assert!(busy > 100, "{busy}");
    assert!(net.node("out").workers[0].slots.len() < 10);
    net.node("out").control.set_command_room(0, usize::MAX);
    net.settle();
    assert_eq!(net.node("out").workers[0].slots.len(), 900 - busy, "what was promised is done, in order");
    net.run(100 * SECOND);
    net.assert_all_free();
}

#[test]
fn the_merging_of_paths_is_read_where_paths_merge() {
    let mut net = net();
    let opened = net.open(net.tunnel("alice", 1, &BOTH));
    let relay = net.trace(&opened, 0)[1].1;
    assert!(net.node("in").control.read_paths(RequestId(77), opened.entry.ct_index));
    assert!(!net.node("left").control.read_paths(RequestId(78), relay));
    assert!(!net.node("in").control.read_paths(RequestId(79), CtIndex::new(0, 500)));
    net.settle();
    assert_eq!(net.node("in").fan_reports, [RequestId(77)]);
}

#[test]
fn sessions_are_shown_with_their_paths() {
    let mut net = net();
    let opened = net.open(flow(&net, 0xab, &BOTH, ip4::UDP, SERVER));
    net.traffic(&opened, 1);
    let now = net.now;
    let views = net.node("in").control.sessions(now);
    let view = &views[0];
    assert_eq!((view.session.as_str(), view.role.as_str(), view.state.as_str()), ("abababab", "entry", "open"));
    assert_eq!((view.client.as_str(), view.packets, view.bytes), ("alice", 1, 100));
    assert_eq!(view.kind, "udp 100.64.0.2:5000 > 198.51.100.1:53");
    assert_eq!(view.paths[1].downstream.as_ref().map(|hop| hop.node.as_str()), Some("right"));
    let relay = &net.node("right").control.sessions(now)[0];
    assert_eq!(relay.paths[0].upstream.as_ref().map(|hop| hop.node.as_str()), Some("in"));
    assert_eq!(relay.paths[0].downstream.as_ref().map(|hop| hop.node.as_str()), Some("out"));
    let exit = &net.node("out").control.sessions(now)[0];
    assert_eq!((exit.role.as_str(), exit.bindings, exit.paths.len()), ("exit", 1, 2));
    serde_json::to_string(&(view, relay, exit, net.summaries())).expect("all of it can be printed");
}

// Everything at once.

/// Thousands of steps of clients that open, use, close and forget sessions over a network that loses, repeats and
/// delays, with workers that stall and nodes that start anew. The workers of the harness check every command; at
/// the end, when all is quiet, nothing may be left.
fn storm(seed: u64) {
    let mut random = super::random::Random::new(&std::array::from_fn(|at| (seed >> (at % 8 * 8)) as u8));
    let mut net = Net::new(&["a", "b", "c", "d", "e"], 2, |_, config| {
        (config.slots, config.fans, config.bindings, config.bindings_a_session) = (24, 12, 24, 4);
        config.nat.addresses[0].last = config.nat.addresses[0].first + 19;
    });
    let mut fate = random.clone();
    net.fate = Box::new(move |_| {
        let delay = |fate: &mut super::random::Random| Nanos::from(1 + fate.below(200)) * MILLISECOND;
        match fate.below(20) {
            0..=2 => vec![],
            3..=5 => vec![delay(&mut fate), delay(&mut fate)],
            6 => vec![Nanos::from(fate.below(8)) * SECOND + 1],
            _ => vec![delay(&mut fate)],
        }
    });
    let names = ["a", "b", "c", "d", "e"];
    let mut opened_count = 0;
    let mut asked = Vec::new();
    for step in 0..3000u32 {
        let session = random.below(40) as u8;
        let (entry, client) = (names[random.below(2) as usize], ["alice", "bob"][usize::from(session % 2)]);
        match random.below(12) {
            0..=4 => {
                let exit = names[3 + random.below(2) as usize];
                let middle = [format!("{entry}-{exit}"), format!("{entry}-c-{exit}")];
                let other = if entry == "a" { "b" } else { "a" };
                let third = format!("{entry}-{other}-c-{exit}");
                let mut paths: Vec<&str> = vec![&middle[0], &middle[1], &third];
                paths.truncate(1 + random.below(3) as usize);
                let open = match random.below(2) {
                    0 => net.tunnel(client, session, &paths),
                    _ => Open { token: net.token(client, |_| ()), ..flow(&net, session, &paths, ip4::UDP, SERVER) },
                };
                let source = Ipv4Addr::new(192, 0, 2, session);
                asked.push(net.ask_from(source, entry, Request::Open(open)));
            }
            5 | 6 => {
                let token = net.token(client, |_| ());
                net.ask(entry, Request::Close { token, session: [session; 16] });
            }
            7 | 8 => {
                // Packets at some slots, and first packets of flows at exits.
                let now = net.now;
                for name in ["d", "e"] {
                    let node = net.node(name);
                    for worker in 0..2 {
                        let slots: Vec<(u32, Role)> =
                            node.workers[worker].slots.iter().map(|(slot, held)| (*slot, held.1)).collect();
                        for (slot, role) in slots {
                            if random.below(2) == 0 {
                                continue;
                            }
                            node.workers[worker].touch(slot, now);
                            if role == Role::Exit {
                                let port = random.below(6) as u16;
                                let cause = PuntCause::NoBinding {
                                    key: key(slot, [ip4::TCP, ip4::UDP][random.below(2) as usize], port),
                                    remote: (SERVER, 80),
                                    tcp_flags: tcp::SYN,
                                };
                                node.control.on_event(worker, Event::Punt { waiting: step, cause }, now);
                            }
                        }
                    }
                }
                net.settle();
            }
            9 => {
                let name = names[random.below(5) as usize];
                let node = net.node(name);
                node.is_stalled = !node.is_stalled;
            }
            10 if random.below(20) == 0 => net.restart(names[random.below(5) as usize]),
            _ => {}
        }
        net.run(Nanos::from(random.below(800)) * MILLISECOND);
        opened_count = net.answers.values().flatten().filter(|answer| matches!(answer, Response::Opened(_))).count();
    }
    assert!(opened_count > 100, "seed {seed}: only {opened_count} of {} opened", asked.len());
    for name in names {
        net.node(name).is_stalled = false;
    }
    net.fate = Box::new(|_| vec![DELAY]);
    // A session, what its end leaves at others, and the longest a message can be late.
    net.run(300 * SECOND);
    net.assert_all_free();
}

#[test]
fn after_any_storm_nothing_is_left_in_use() {
    (1..=4).for_each(storm);
}

#[test]
fn a_seed_replays_the_same_keys_and_slots() {
    let run = || {
        let mut net = net();
        let opened = net.open(net.tunnel("alice", 1, &BOTH));
        (opened.key, opened.entry, net.trace(&opened, 0))
    };
    assert_eq!(run(), run());
}
