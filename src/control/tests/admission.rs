//! Who may ask a node for what.

use super::*;

#[test]
fn tokens_are_checked_for_signature_time_exit_paths_and_number_of_sessions() {
    let mut net = net();
    let good = net.tunnel("alice", 1, &BOTH);
    let with = |token: String| Open { token, ..good.clone() };
    let cases = [
        (with("nonsense".into()), FailureReason::Unauthorised),
        (with(net.token("alice", |claims| claims.expires = harness::UNIX_START - 61)), FailureReason::TokenExpired),
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
