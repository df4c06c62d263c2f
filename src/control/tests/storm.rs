//! Everything at once: long runs of a network on which everything fails now and then.

use super::*;
use crate::control::random::Random;

/// Thousands of steps of clients that open, use, close and forget sessions over a network that loses, repeats and
/// delays, with workers that stall and nodes that start anew. The workers of the harness check every command; at
/// the end, when all is quiet, nothing may be left.
fn storm(seed: u64) {
    let mut random = Random::new(&std::array::from_fn(|at| (seed >> (at % 8 * 8)) as u8));
    let mut net = Net::new(&["a", "b", "c", "d", "e"], 2, |_, config| {
        (config.slots, config.fans, config.bindings, config.bindings_a_session) = (24, 12, 24, 4);
        config.nat.addresses[0].last = config.nat.addresses[0].first + 19;
    });
    let mut fate = random.clone();
    net.fate = Box::new(move |_| {
        let delay = |fate: &mut Random| Nanos::from(1 + fate.below(200)) * MILLISECOND;
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
