//! How sessions end.

use super::*;

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
