//! Messages between nodes that get lost, come twice or come late.

use super::*;

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
        Message::Response { to: harness::Origin::Client(_), .. } => vec![DELAY],
        Message::Request { origin: harness::Origin::Client(_), .. } => vec![DELAY],
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
