//! Setup of sessions, and what it leaves behind.

use super::*;

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
    let (now, unix) = (net.now, harness::UNIX_START);
    let node = &mut net.node("in").control;
    node.on_request(Caller::Client(SERVER), RequestId(1 << 40), Request::Open(open), now, unix);
    let calls = |node: &mut crate::control::Control| {
        let mut calls = Vec::new();
        while let Some(effect) = node.poll() {
            if let crate::control::Effect::Call { call, .. } = effect {
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
