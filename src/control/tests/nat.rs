//! NAT bindings: made by first packets, freed by time.

use super::*;

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
