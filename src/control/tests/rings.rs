//! The rings to the workers, and what is asked through them.

use super::*;

#[test]
fn a_worker_that_does_not_keep_up_gets_no_new_work_and_nothing_is_lost() {
    let mut net = Net::new(&NAMES, 1, |_, config| (config.slots, config.fans) = (4096, 4096));
    net.node("out").room = 10;
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
    net.node("out").room = usize::MAX;
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

#[test]
fn what_all_workers_recorded_is_one_and_who_asked_keeps_what_it_was() {
    use crate::{dataplane::command::Event, telemetry::histogram::Histograms};
    let mut net = Net::new(&["one"], 2, |_, _| {});
    let control = &mut net.node("one").control;
    let filled = |first_packet: u64| {
        let mut histograms = Box::new(Histograms::new());
        histograms.residence.record(100).unwrap();
        histograms.first_packet.record(first_packet).unwrap();
        Event::Histograms(histograms)
    };
    control.on_event(0, filled(1_000), 0);
    let before = control.histograms();
    control.on_event(1, filled(2_000), 0);
    let after = control.histograms();
    assert_eq!([&before, &after].map(|asked| (asked.residence.len(), asked.first_packet.len())), [(1, 1), (2, 2)]);
    let of_workers: Vec<_> = control.nat_summary().iter().map(|worker| worker.first_packets).collect();
    assert_eq!(of_workers, [1, 1], "each worker's own");
    assert!(std::sync::Arc::ptr_eq(&after, &control.histograms()), "nothing is added up to answer");
}
