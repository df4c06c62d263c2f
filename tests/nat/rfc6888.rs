//! RFC 6888: carrier-grade NATs.

use std::time::Instant;

use std::collections::BTreeSet;

use crate::{
    LIMITED, PATIENCE, POOL, TINY, TINY_POOL, Turn,
    packet::{
        Host::{A, B, S, T},
        Packet, SYN,
    },
    renumbered,
    rig::Side::{Inside, Outside},
};

#[test]
fn req4_and_req11_a_host_has_no_more_ports_than_it_may_and_keeps_those_it_has() {
    let mut turn = Turn::with(LIMITED);
    let from = |number| Packet::udp(A.own(number), S.port(53), b"");
    let told: Vec<_> = (1..8).map(|number| turn.inside(&from(number)).remove(0)).collect();
    let kept: Vec<_> = told.iter().take_while(|said| said.starts_with("Outside: udp Gateway:m")).collect();
    assert!(kept.len() <= 2, "{told:?}");
    for said in &told[kept.len()..] {
        assert!(said.starts_with("Inside: error 3/13 (0) GatewayInside > A about [udp A:+"), "{told:?}");
    }
    for (number, said) in (1..).zip(&kept) {
        assert_eq!(turn.inside(&from(number)), [said.as_str()]);
    }
}

#[test]
fn req5_a_host_has_no_more_bindings_than_it_may() {
    let mut turn = Turn::with(LIMITED);
    // All protocols together.
    let mut out = 0;
    for number in 1..4 {
        let of_each = [
            Packet::udp(A.own(number), S.port(53), b""),
            Packet::tcp(A.own(number), S.port(80), SYN, (1, 0), b""),
            Packet::ping(A.own(number), S, b""),
        ];
        out += of_each.iter().filter(|packet| turn.inside(packet)[0].starts_with("Outside")).count();
    }
    assert!(out <= 4, "{out} bindings");
}

#[test]
fn req6_exempt_destinations_are_reached_untranslated() {
    let mut turn = Turn::with(LIMITED);
    let question = Packet::udp(A.own(1), T.port(53), b"");
    assert_eq!(turn.inside(&question), ["Outside: udp A:+1 > T:53"]);
    assert_eq!(turn.outside(&Packet::udp(T.port(53), A.own(1), b"")), ["Inside: udp T:53 > A:+1"]);
}

#[test]
fn req3_every_address_of_the_pool_is_used() {
    let turn = Turn::with(POOL);
    let mut seen = BTreeSet::new();
    // Hosts that nobody has heard of; what is seen of them is enough.
    for host in 10..40 {
        let packet = Packet::udp(A.own(1), S.port(53), b"").bytes(&turn.names).expect("a packet");
        let packet = renumbered(packet, 15, host);
        for (_, out) in turn.put(Inside, &packet) {
            seen.insert(out[12..16].to_vec());
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [[203, 0, 113, 1], [203, 0, 113, 2]]);
}

#[test]
fn req12_a_block_of_ports_is_one_hosts() {
    let mut turn = Turn::with(POOL);
    let mut blocks = std::collections::BTreeMap::new();
    for number in 1..20 {
        for host in [A, B] {
            let (address, port) = turn.seen(&Packet::udp(host.own(number), S.port(53), b""));
            assert_eq!(*blocks.entry((address, (port - 40_000) / 64)).or_insert(host), host);
        }
    }
}

#[test]
fn req13_and_req11_every_port_of_the_pool_is_used_before_a_host_is_refused() {
    let mut turn = Turn::with(TINY);
    let from = |number| Packet::udp(A.own(number), S.port(53), b"");
    let ports: BTreeSet<u16> = (0..8).map(|number| turn.seen(&from(number)).1).collect();
    assert_eq!(ports, (40_000..40_008).collect());
    for number in 8..12 {
        let told = format!("Inside: error 3/13 (0) GatewayInside > A about [udp A:+{number} > S:53]");
        assert_eq!(turn.inside(&from(number)), [told], "told, and never forwarded as it is");
    }
    assert!(ports.contains(&turn.seen(&from(0)).1), "those that there are go on");
}

#[test]
fn req8_a_port_rests_after_its_use() {
    let mut turn = Turn::with(TINY_POOL);
    let query = |host: crate::packet::Host, number| Packet::ping(host.own(number), S, b"");
    // All there are.
    for (host, numbers) in [(A, 1..5), (B, 1..5)] {
        for number in numbers {
            let sent = query(host, number).bytes(&turn.names).expect("a packet");
            let came = turn.put(Inside, &sent);
            assert!(matches!(came[..], [(Outside, _)]), "{came:02x?}; {}", turn.rig().story());
        }
    }
    let until = Instant::now() + PATIENCE;
    while !turn.rig().ask("show nat summary --json").contains("\"hosts\": 0") {
        assert!(Instant::now() < until, "mappings do not end; {}", turn.rig().story());
    }
    let told = turn.inside(&query(A, 1));
    assert_eq!(told, ["Inside: error 3/13 (0) GatewayInside > A about [ping A:+1 > S]"]);
}
