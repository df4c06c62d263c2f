//! A worker with as many bindings as it may have: filled, listed, aged, and empty in the end.
//!
//! The test of 16 million wants ten GiB and a release build, so it is asked for by name:
//! `cargo test --release --lib as_many_bindings_as_a_worker_may_have -- --ignored --nocapture`. It prints memory and times,
//! and asserts none.

use std::time::{Duration, Instant};

use super::*;
use crate::{
    control::{
        page::ROWS_MAX,
        show_nat::{NatFilter, NatPart, NatQuestion},
    },
    dataplane::{nat::BYTES_A_BINDING, testing::udp_packet},
    limits::CT_SLOTS_MAX,
};

/// First packets that are on the way at a time: fewer than may wait.
const BURST: u32 = 250;

/// Flow number `number`: a host has 64, to one of 4096 servers.
fn first_packet(number: u32) -> Vec<u8> {
    let host = (Ipv4Addr::from_bits(0x0a00_0100 + number / 64), 5000 + (number % 64) as u16);
    udp_packet(host, (Ipv4Addr::from_bits(0xc633_0000 + number % 4096), 53), b"")
}

/// The longest and the mean time of something.
#[derive(Default)]
struct Times {
    longest: Duration,
    all: Duration,
    count: u32,
}

impl Times {
    fn measure<T>(&mut self, what: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = what();
        let time = start.elapsed();
        self.longest = self.longest.max(time);
        self.all += time;
        self.count += 1;
        result
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} times {:?}, at most {:?}", self.count, self.all / self.count.max(1), self.longest)
    }
}

/// Memory of this process that is in use, MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

fn fill_list_and_age(bindings: u32) {
    let before = resident_mib();
    // So many flows have few enough ports that they share them.
    let adjust = |nat: &mut NatConfig| nat.is_endpoint_dependent = true;
    let mut nat = Nat::with(Setup { bindings, addresses: 2, adjust, ..Setup::default() });
    nat.route_by(ROUTER);
    let start = Instant::now();
    let mut number = 0;
    while number < bindings {
        for _ in 0..BURST.min(bindings - number) {
            nat.put(INSIDE_INTERFACE, &first_packet(number));
            number += 1;
        }
        let out = nat.settle_unchecked();
        assert!(out.iter().all(|sent| !sent.is_to_inside), "refused before number {number}");
    }
    assert_eq!(nat.bindings(), u64::from(bindings));
    let filled = start.elapsed();
    println!("{bindings} flows, {} bytes of tables each, in {filled:.0?}", BYTES_A_BINDING);
    println!("{} MiB in use, all of the control core included", resident_mib() - before);

    // One more is refused, and the first is still there.
    assert!(nat.send_inside(&first_packet(bindings)).iter().all(|sent| sent.is_to_inside));
    assert_eq!(nat.dropped(Reason::TableFull), 1);
    assert_eq!(nat.send_inside(&first_packet(0)).len(), 1);

    let mut pages = Times::default();
    let mut listed = 0;
    let mut question = NatQuestion { part: NatPart::Flows, filter: NatFilter::default(), after: None, limit: ROWS_MAX };
    loop {
        let page = pages.measure(|| nat.control.nat_flows(&question, nat.now));
        listed += page.rows.len();
        question.after = page.next;
        if question.after.is_none() {
            break;
        }
    }
    assert_eq!(listed, bindings as usize);
    println!("a page of {ROWS_MAX} flows: {pages}");
    let mut pages = Times::default();
    question.filter.state = Some("closing".into());
    loop {
        let page = pages.measure(|| nat.control.nat_flows(&question, nat.now));
        assert!(page.rows.is_empty());
        question.after = page.next;
        if question.after.is_none() {
            break;
        }
    }
    println!("a page in which nothing is found: {pages}");

    // All at once, the worst that can be.
    nat.now += 400 * SECOND;
    let mut ticks = Times::default();
    while nat.bindings() > 0 {
        nat.now += TICK;
        ticks.measure(|| nat.control.on_tick(nat.now));
        nat.settle_unchecked();
        assert!(ticks.count < 2 * bindings.div_ceil(1024) + 100, "{} bindings are left", nat.bindings());
    }
    println!("a tick in which bindings are aged: {ticks}");
    nat.assert_all_free();
}

#[test]
fn a_full_table_is_listed_aged_and_empty_in_the_end() {
    fill_list_and_age(20_000);
}

#[test]
#[ignore = "ten GiB"]
fn as_many_bindings_as_a_worker_may_have_are_aged_and_none_is_left() {
    fill_list_and_age(CT_SLOTS_MAX as u32);
}
