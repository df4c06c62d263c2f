//! A worker with as many bindings as it may have: filled, listed, aged, and empty in the end.
//!
//! The test of 16 million wants five GiB, some minutes and an optimised build, so it is asked for by name:
//! `cargo test --release --lib as_many_bindings_as_a_worker_may_have -- --ignored --nocapture`. It prints memory and times,
//! and asserts none. `STARNET_FULL_BINDINGS` has it do with fewer.

use std::{
    num::NonZero,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    control::{
        page::{Page, ROWS_MAX},
        show_nat::{NatFilter, NatPart, NatQuestion},
    },
    dataplane::{nat::BYTES_A_BINDING, testing::udp_packet},
    limits::CT_SLOTS_MAX,
};

/// First packets that are on the way at a time: fewer than may wait.
const BURST: u32 = 250;

/// Flows of a host.
const FLOWS: u32 = 64;

/// Flow number `number`: a host has 64, to one of 4096 servers.
fn first_packet(number: u32) -> Vec<u8> {
    let host = (Ipv4Addr::from_bits(0x0a00_0100 + number / FLOWS), 5000 + (number % FLOWS) as u16);
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
        write!(f, "{} times {:.1?}, at most {:.1?}", self.count, self.all / self.count.max(1), self.longest)
    }
}

/// Memory of this process that is in use, MiB. Other tests take and give back theirs meanwhile.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

fn full(bindings: u32) -> Nat {
    let before = resident_mib();
    // So many flows have few enough ports that they share them.
    let adjust = |nat: &mut NatConfig| nat.is_endpoint_dependent = true;
    let mut nat = Nat::with(Setup { bindings, addresses: 2, adjust, ..Setup::default() });
    nat.route_by(ROUTER);
    let start = Instant::now();
    println!("{} MiB in use by empty tables", resident_mib().saturating_sub(before));
    nat.busy_longest = Duration::ZERO;
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
    println!("{bindings} flows, {BYTES_A_BINDING} bytes of a worker's tables each, in {:.1?}", start.elapsed());
    println!("{} MiB in use, all of the control core included", resident_mib().saturating_sub(before));
    println!("busy with the events of {BURST} new flows: at most {:.1?}", nat.busy_longest);
    nat
}

/// The number of rows that a question brings, page by page; prints how long a page took.
fn list<T>(name: &str, mut question: NatQuestion, ask: impl Fn(&NatQuestion) -> Page<T>) -> usize {
    let (mut pages, mut rows) = (Times::default(), 0);
    loop {
        let page = pages.measure(|| ask(&question));
        rows += page.rows.len();
        question.after = page.next;
        if question.after.is_none() {
            println!("a page of {name}, {rows} in all: {pages}");
            return rows;
        }
    }
}

fn list_all(nat: &Nat, bindings: u32) {
    let all = NatQuestion { part: NatPart::Flows, filter: NatFilter::default(), after: None, limit: ROWS_MAX };
    let closing = NatFilter { state: Some("closing".into()), ..NatFilter::default() };
    let stranger = NatFilter { host: Some([10, 255, 0, 1].into()), ..NatFilter::default() };
    let of = |filter: &NatFilter| NatQuestion { filter: filter.clone(), ..all.clone() };
    let (flows, hosts) =
        (|q: &NatQuestion| nat.control.nat_flows(q, nat.now), |q: &NatQuestion| nat.control.nat_hosts(q));
    assert_eq!(list("flows", all.clone(), flows), bindings as usize);
    assert_eq!(list("flows in a state that none is in", of(&closing), flows), 0);
    assert_eq!(list("flows of a host that has none", of(&stranger), flows), 0);
    assert_eq!(list("hosts", all.clone(), hosts), bindings.div_ceil(FLOWS) as usize);
    assert_eq!(list("hosts of which there is none", of(&stranger), hosts), 0);
    let mut once = Times::default();
    assert_eq!(once.measure(|| nat.control.nat_summary())[0].bindings.used, u64::from(bindings));
    assert_eq!(once.measure(|| nat.control.nat_ports(&NatFilter::default())).len(), 6);
    println!("summary and ports: {once}");
}

/// All at once, the worst that can be.
fn age(nat: &mut Nat, bindings: u32) {
    let start = Instant::now();
    nat.busy_longest = Duration::ZERO;
    nat.now += 400 * SECOND;
    let mut ticks = Times::default();
    while nat.bindings() > 0 {
        nat.now += TICK;
        ticks.measure(|| nat.control.on_tick(nat.now));
        nat.settle_unchecked();
        assert!(ticks.count < 2 * bindings.div_ceil(1024) + 100, "{} bindings are left", nat.bindings());
    }
    println!("aged and freed in {:.1?}; a tick: {ticks}", start.elapsed());
    println!("busy with the events of a sweep that frees: at most {:.1?}", nat.busy_longest);
}

fn fill_list_and_age(bindings: u32) {
    let mut nat = full(bindings);

    // One more is refused, and the first is still there.
    assert!(nat.send_inside(&first_packet(bindings)).iter().all(|sent| sent.is_to_inside));
    assert_eq!(nat.dropped(Reason::TableFull), 1);
    assert_eq!(nat.send_inside(&first_packet(0)).len(), 1);

    list_all(&nat, bindings);
    age(&mut nat, bindings);
    nat.assert_all_free();
}

#[test]
fn a_full_table_is_listed_aged_and_empty_in_the_end() {
    fill_list_and_age(20_000);
}

#[test]
#[ignore = "five GiB and some minutes"]
fn as_many_bindings_as_a_worker_may_have_are_aged_and_none_is_left() {
    let fewer = std::env::var("STARNET_FULL_BINDINGS").ok().and_then(|number| number.parse::<NonZero<u32>>().ok());
    fill_list_and_age(fewer.map_or(CT_SLOTS_MAX as u32, NonZero::get));
}
