//! The control cores of a whole overlay on a virtual clock. What each test needs of the network it says in `fate`.

mod admission;
mod endings;
mod forwarding;
mod messages;
mod nat;
mod node_keys;
mod opening;
mod rings;
mod storm;

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::Ordering::Relaxed,
};

use super::{
    Caller, KernelEvent, RequestId,
    harness::{self, Message, Net},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    dataplane::{
        command::{Event, PuntCause},
        conntrack::{CtIndex, Role},
        forwarding::{Lookup, Route},
        nat::{BindingKey, Class, Mapping, Owner},
        reason::Reason,
        tick::Tick,
    },
    limits::{TICK, UNRESOLVED_MAX},
    rpc::messages::{
        Failure, FailureReason, LinkEnd, Neighbours, Open, Opened, Request, Response, SessionKind, SetUp, Setup,
        Teardown,
    },
    wire::{ip4, tcp},
};

const NAMES: [&str; 4] = ["in", "left", "out", "right"];
const BOTH: [&str; 2] = ["in-left-out", "in-right-out"];
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const DELAY: Nanos = 10 * MILLISECOND;

fn net() -> Net {
    Net::new(&NAMES, 1, |_, _| ())
}

fn failed(hop: &str, reason: FailureReason) -> Response {
    Response::Failed(Failure { hop: hop.into(), reason })
}

fn flow(net: &Net, session: u8, paths: &[&str], protocol: u8, server: Ipv4Addr) -> Open {
    let source = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 2), 5000);
    let kind = SessionKind::Flow { protocol, source, server: SocketAddrV4::new(server, 53) };
    Open { kind, ..net.tunnel("alice", session, paths) }
}

/// The packets of a session refresh its stamps for `time`.
fn run_with_traffic(net: &mut Net, opened: &Opened, paths: &[usize], time: Nanos) {
    let end = net.now + time;
    while net.now < end {
        paths.iter().for_each(|path| net.traffic(opened, *path));
        net.run(SECOND);
    }
}

fn exit_slot(net: &Net, opened: &Opened) -> CtIndex {
    net.trace(opened, 0).last().expect("a path ends somewhere").1
}

/// A packet of a tunnel that waits at the exit under `ticket`; what becomes of it: `None` it goes on.
fn punt(net: &mut Net, key: BindingKey, remote: Ipv4Addr, tcp_flags: u8, ticket: u32) -> Option<Reason> {
    let now = net.now;
    let cause = PuntCause::NoBinding { key, remote: (remote, 443), tcp_flags };
    net.node("out").control.on_event(0, Event::Punt { waiting: ticket, cause }, now);
    net.settle();
    let worker = &net.node("out").workers[0];
    let refused = worker.refused.iter().find(|(waiting, _)| *waiting == ticket).map(|(_, reason)| *reason);
    assert_ne!(refused.is_some(), worker.resumed.contains(&ticket), "a waiting packet hears exactly one thing");
    refused
}

fn key(slot: u32, protocol: u8, port: u16) -> BindingKey {
    BindingKey { owner: Owner::session(slot), protocol, address: Ipv4Addr::new(100, 64, 0, 2), port, remote: None }
}

fn use_binding(net: &mut Net, index: usize) {
    let now = net.now;
    net.node("out").workers[0].published.bindings[index].touch((now / TICK) as u32, 60);
}

fn setup(net: &Net, upstream: LinkEnd) -> Setup {
    Setup {
        token: net.token("alice", |_| ()),
        entry: "in".into(),
        session: [1; 16],
        kind: SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None },
        mtu: 1400,
        path: 0,
        route: vec!["out".into()],
        upstream,
        boot_epoch: 1000,
    }
}

fn end(number: u8, slot: u32) -> LinkEnd {
    let data = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number), 40000);
    LinkEnd { data, ct_index: CtIndex(slot), generation: 9, source_port: 40000 }
}
