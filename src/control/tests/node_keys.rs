//! Keys of the hops between nodes.

use super::*;
use crate::{control::Effect, limits::NODE_KEYS_OF_ONE_MAX, wire::relay::HopKey};

/// The keys of the hops of a session's path, from the entry on; the two ends of each agree.
fn keys(net: &Net, opened: &Opened) -> Vec<HopKey> {
    let key = |(node, slot): (String, CtIndex)| {
        let worker = &net.nodes[&node].workers[slot.worker()];
        let (_, role, fan, up, _) = worker.slots[&slot.slot()];
        let up = if role == Role::Exit { worker.fans[&fan].1[0].unwrap() } else { up };
        worker.node_keys[&up.key.0]
    };
    net.trace(opened, 0).into_iter().skip(1).map(key).collect()
}

#[test]
fn all_sessions_that_one_node_asks_another_for_have_one_key() {
    let mut net = Net::new(&NAMES, 3, |_, _| ());
    let paths = ["in-left-out", "in-left-out", "in-right-out", "out-left-in"];
    let found: Vec<_> = (1u8..)
        .zip(paths)
        .map(|(session, path)| {
            let opened = net.open(net.tunnel("alice", session, &[path]));
            keys(&net, &opened)
        })
        .collect();
    assert_eq!(found[0], found[1]);
    let different: HashSet<_> = found.iter().flatten().collect();
    assert_eq!(different.len(), 6, "of three paths, two hops each; the way back is another hop");
}

#[test]
fn keys_that_no_session_uses_make_room() {
    let mut net = net();
    let kept = net.open(net.tunnel("alice", 1, &["in-right-out"]));
    let before = keys(&net, &kept);
    let mut seen = HashSet::new();
    for session in 2..3 * NODE_KEYS_OF_ONE_MAX as u8 {
        let opened = net.open(net.tunnel("alice", session, &["in-left-out"]));
        assert!(seen.insert(keys(&net, &opened)[0]), "a node that was started anew has a new key");
        net.restart("left");
        net.run(5 * SECOND);
        run_with_traffic(&mut net, &kept, &[0], SECOND);
    }
    assert_eq!(keys(&net, &kept), before);
    let other = net.open(net.tunnel("bob", 100, &["in-right-out"]));
    assert_eq!(keys(&net, &other), before);
}

#[test]
fn a_node_that_tells_ever_other_keys_is_not_believed() {
    let mut net = net();
    let left = net.node("left").control.data_address();
    let now = net.now;
    let opens: Vec<_> = (0..=NODE_KEYS_OF_ONE_MAX as u8).map(|n| net.tunnel("alice", n, &["in-left-out"])).collect();
    let node = &mut net.node("in").control;
    let mut answers = Vec::new();
    for (n, open) in (0u8..).zip(opens) {
        let id = RequestId(1 << 40 | u64::from(n));
        node.on_request(Caller::Client(SERVER), id, Request::Open(open), now, harness::UNIX_START);
        let mut torn_down = 0;
        while let Some(effect) = node.poll() {
            match effect {
                Effect::Call { call, request: Request::Setup(setup), .. } => {
                    let ct_index = CtIndex::new(0, u32::from(n));
                    let source_port = setup.upstream.data.port();
                    let answer = SetUp {
                        downstream: LinkEnd { data: left, ct_index, generation: 1, source_port },
                        key: [n; 16],
                        exit_address: SERVER,
                        exit_address6: None,
                        boot_epoch: 1000,
                    };
                    node.on_response(call, Some(Response::SetUp(answer)), now);
                }
                Effect::Call { request: Request::Teardown(_), .. } => torn_down += 1,
                Effect::Respond { response, .. } => answers.push((response, torn_down)),
                _ => {}
            }
        }
    }
    let (last, believed) = answers.split_last().unwrap();
    assert_eq!(believed.len(), NODE_KEYS_OF_ONE_MAX);
    assert!(believed.iter().all(|(response, _)| matches!(response, Response::Opened(_))));
    assert_eq!(*last, (failed("left", FailureReason::BadRequest), 1));
}
