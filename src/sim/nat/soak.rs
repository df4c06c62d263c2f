//! A soak: very many flows come and go; nothing leaks, and no flow that lives is cut.
//!
//! `STARNET_SOAK_FLOWS` says how many; the default is what a test run has time for.

use super::*;
use crate::control::show_nat::NatFilter;

/// Hosts that open flows, each with a block of ports or several.
const HOSTS: u32 = 40;

/// Flows that go on all the time.
const LIVE: u16 = 12;

/// Flows that are opened before time passes.
const BURST: u32 = 200;

/// xorshift64* (Vigna 2016).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32) % bound
    }
}

fn question(number: u16) -> Vec<u8> {
    crate::dataplane::testing::udp_packet((HOST, 6000 + number), (SERVER, 53), b"still here")
}

#[test]
fn after_any_number_of_flows_nothing_is_in_use_and_no_live_one_was_cut() {
    let flows = std::env::var("STARNET_SOAK_FLOWS").map_or(20_000, |text| text.parse().expect("a number"));
    let adjust: fn(&mut NatConfig) = |nat| {
        nat.port_block = 64;
        nat.timers.udp = 3 * SECOND;
        nat.timers.icmp = 2 * SECOND;
        nat.timers.tcp_opening = 4 * SECOND;
        nat.timers.tcp_established = 6 * SECOND;
        nat.timers.tcp_closing = SECOND;
    };
    let mut nat = Nat::with(Setup { workers: 2, bindings: 4096, addresses: 2, adjust, ..Setup::default() });
    let live: Vec<Endpoint> = (0..LIVE).map(|number| nat.seen(&question(number))).collect();
    let mut dice = Dice(0x5eed);
    let (mut opened, mut refused) = (0u32, 0u32);
    while opened < flows {
        for _ in 0..BURST {
            let host = (Ipv4Addr::from_bits(0x0a00_0100 + dice.below(HOSTS)), 1024 + dice.below(60_000) as u16);
            let server = (Ipv4Addr::from_bits(0xc633_6400 + dice.below(200)), 80);
            let out = match dice.below(4) {
                0 => nat.send_inside(&echo(icmp::ECHO_REQUEST, host.0, server.0, host.1)),
                1 => nat.send_inside(&crate::dataplane::testing::udp_packet(host, server, b"x")),
                choice => {
                    let out = nat.send_inside(&segment(host, server, tcp::SYN, 1, 0));
                    if let Some(sent) = out.iter().find(|sent| !sent.is_to_inside) {
                        let seen = source(&sent.packet);
                        nat.send_outside(&segment(server, seen, tcp::SYN | tcp::ACK, 9, 2));
                        nat.send_inside(&segment(host, server, tcp::ACK, 2, 10));
                        let last = if choice == 2 { tcp::RST } else { tcp::ACK };
                        nat.send_inside(&segment(host, server, last, 2, 10));
                    }
                    out
                }
            };
            refused += u32::from(out.iter().all(|sent| sent.is_to_inside));
            opened += 1;
        }
        nat.pass(u64::from(1 + dice.below(10)) * SECOND / 10);
        for (number, outside) in (0..LIVE).zip(&live) {
            assert_eq!(nat.seen(&question(number)), *outside, "after {opened} flows");
        }
    }
    // The ports' quarantine is 120 s: some flows find none, as they should, and most do.
    assert!(refused < opened, "{refused} of {opened} refused");
    nat.pass(8 * SECOND);
    nat.assert_all_free();
    assert!(nat.control.nat_summary().iter().all(|worker| worker.hosts == 0));
    nat.pass(121 * SECOND);
    // Every port and block can be given out again.
    for ports in nat.control.nat_ports(&NatFilter::default()) {
        assert_eq!(ports.leased, 0, "{ports:?}");
    }
    for number in 0..100 {
        nat.seen(&question(number));
    }
}
