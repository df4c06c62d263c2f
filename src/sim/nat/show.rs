//! What `starnet show nat` and `starnet clear nat` say and do, of a gateway with many bindings.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::*;
use crate::control::show_nat::{FlowView, NatFilter, NatPart, NatProtocol, NatQuestion};

const HOSTS: u8 = 5;
const FLOWS: u16 = 30;

/// Five hosts with thirty UDP flows each, over two workers, and one TCP connection.
fn busy() -> Nat {
    let mut nat = Nat::with(Setup { workers: 2, bindings: 1024, ..Setup::default() });
    for host in 0..HOSTS {
        for port in 0..FLOWS {
            let inside = (Ipv4Addr::new(10, 0, 0, 10 + host), 5000 + port);
            nat.seen(&crate::dataplane::testing::udp_packet(inside, (SERVER, 53), b"x"));
        }
    }
    nat.seen(&segment((HOST, 4000), (SERVER, 80), tcp::SYN, 1, 0));
    nat
}

fn question(filter: NatFilter, limit: usize) -> NatQuestion {
    NatQuestion { part: NatPart::Flows, filter, after: None, limit }
}

/// All rows, in pages of `limit`.
fn flows(nat: &Nat, filter: &NatFilter, limit: usize) -> Vec<FlowView> {
    let mut question = question(filter.clone(), limit);
    let mut rows = Vec::new();
    loop {
        let page = nat.control.nat_flows(&question, nat.now);
        assert!(page.rows.len() <= limit);
        rows.extend(page.rows);
        question.after = page.next;
        if question.after.is_none() {
            return rows;
        }
    }
}

#[test]
fn every_binding_is_on_one_page_whatever_the_pages_size() {
    let nat = busy();
    for limit in [1, 7, 1000] {
        let rows = flows(&nat, &NatFilter::default(), limit);
        let places: BTreeSet<_> = rows.iter().map(|row| (row.worker, row.index)).collect();
        assert_eq!((rows.len(), places.len()), (151, 151));
    }
    let tcp = NatFilter { protocol: Some(NatProtocol::Tcp), ..NatFilter::default() };
    let rows = flows(&nat, &tcp, 10);
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.inside, row.state.as_str()), (SocketAddr::from((HOST, 4000)), "opening"));
    assert_eq!((row.outside.ip(), row.packets, row.left_ms), (IpAddr::from(OUTSIDE[0]), 1, Some(240_000)));
    let host = NatFilter { host: Some([10, 0, 0, 11].into()), ..NatFilter::default() };
    assert_eq!(flows(&nat, &host, 4).len(), usize::from(FLOWS));
    let port = NatFilter { port: Some(5003), ..NatFilter::default() };
    assert!(flows(&nat, &port, 4).len() >= usize::from(HOSTS), "by inside port, and whoever has it outside");
}

#[test]
fn hosts_and_ports_add_up_to_the_summary() {
    let nat = busy();
    let mut question = question(NatFilter::default(), 2);
    let mut hosts = Vec::new();
    loop {
        let page = nat.control.nat_hosts(&question);
        hosts.extend(page.rows);
        question.after = page.next;
        if question.after.is_none() {
            break;
        }
    }
    assert_eq!(hosts.len(), usize::from(HOSTS) + 1);
    assert!(hosts.iter().all(|host| host.owner == "inside"));
    let summary = nat.control.nat_summary();
    assert_eq!(summary.iter().map(|worker| worker.hosts).sum::<u64>(), hosts.len() as u64);
    assert_eq!(summary.iter().map(|worker| worker.bindings.used).sum::<u64>(), 151);
    assert_eq!(hosts.iter().map(|host| host.ports[2]).sum::<u32>(), 150);
    let ports = nat.control.nat_ports(&NatFilter::default());
    assert_eq!(ports.iter().map(|ports| ports.leased).sum::<u32>(), 151);
    assert!(ports.iter().all(|ports| ports.resting == 0));
}

#[test]
fn what_is_cleared_is_gone_and_its_ports_rest() {
    let mut nat = busy();
    let host = NatFilter { host: Some([10, 0, 0, 11].into()), ..NatFilter::default() };
    let (cleared, next) = nat.control.clear_nat(&host, None);
    assert_eq!((cleared, next), (u64::from(FLOWS), None));
    nat.settle();
    assert!(flows(&nat, &host, 10).is_empty());
    assert_eq!(nat.bindings(), 121);
    let ports = nat.control.nat_ports(&NatFilter::default());
    assert_eq!(ports.iter().map(|ports| ports.resting).sum::<u32>(), u32::from(FLOWS));
    assert_eq!(nat.control.clear_nat(&host, None).0, 0, "nothing is cleared twice");
    let again = crate::dataplane::testing::udp_packet((Ipv4Addr::new(10, 0, 0, 11), 5000), (SERVER, 53), b"x");
    nat.seen(&again);
    assert_eq!(flows(&nat, &host, 10).len(), 1);
}
