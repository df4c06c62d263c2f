//! Source NAT: from a packet of a session's client, or of a host of the gateway, to one that the server can answer.
//!
//! Path: exit_up | the gateway | sv_reassembly -> here -> ip_output | nat_out2in (hairpin) | icmp_error | punt (no binding yet) | drop.
//! Reads: l3, slot, which says on whose behalf ([`Packet::owner`]), from_inside, fragment, ports. Writes: l4, protocol, length,
//! destination; the binding's stamp. What comes from the gateway is at the worker that owns the host
//! ([`Identity::owner_of_host`]) and has [`Packet::NO_SLOT`] for its slot.
//!
//! Nothing of the packet is changed before everything is decided: a packet that is punted comes here again as
//! it was, and one that an ICMP error is sent about is quoted as its sender sent it.
//!
//! [`Packet::owner`]: crate::dataplane::packet::Packet::owner
//! [`Packet::NO_SLOT`]: crate::dataplane::packet::Packet::NO_SLOT
//! [`Identity::owner_of_host`]: crate::dataplane::forwarding::Identity::owner_of_host

use std::net::Ipv4Addr;

use super::{fragment, ip4_input, prelude::*};
use crate::{
    dataplane::{
        command::PuntCause,
        conntrack::{FanInit, NO_BINDING},
        nat::{
            Binding, BindingKey, Endpoint, Owner, ahead,
            connections::Origin,
            established,
            flow_cache::{Decision, Way},
            remote_end,
            rewrite::{self as nat, BadQuote, Side},
            token,
        },
        packet::{Bitmap, Fragment, Packet},
        published::add,
    },
    wire::{
        icmp, ip4,
        tcp::{self, Segment},
        udp,
    },
};

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node {
    id: NodeId::NatIn2out,
    name: "nat_in2out",
    next: &[NodeId::IpOutput, NodeId::NatOut2in, NodeId::IcmpError, NodeId::Fragment, NodeId::Punt],
    process: |context, frames, batch| {
        let mut others = Bitmap::default();
        batch.for_each(|slot| {
            if !established::ask_out_of_the_overlay(context, frames, slot) {
                others.insert(slot);
            }
        });
        others.insert_all(established::pass(context, frames, NodeId::NatIn2out));
        ahead::from_inside(context, frames, others);
        context.each(frames, others, NodeId::NatIn2out, nat_in2out);
    },
};

/// Mail is not sent through a relay (the usual policy against spam).
pub(super) const SMTP: u16 = 25;

fn nat_in2out(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let header = match ip4_input::check(&mut context.packets[slot], frames) {
        Ok(header) => header,
        Err(reason) => return Verdict::Drop(reason),
    };
    let packet = context.packets[slot];
    let owner = packet.owner();
    let Some(init) = context.terms(owner) else { return Verdict::Drop(Reason::FreeSlot) };
    if header.source != init.inside && init.inside != Ipv4Addr::UNSPECIFIED {
        return Verdict::Drop(Reason::NotInside);
    }
    if token::is_reserved(header.source) {
        return Verdict::Drop(Reason::ReservedAddress);
    }
    let is_hairpin = context.is_ours(header.destination);
    let route = *context.routes.lookup(header.destination);
    if owner != Owner::INSIDE && !is_hairpin && !route.is_exit_allowed {
        return Verdict::Drop(Reason::Denied);
    }
    if header.ttl <= 1 {
        return error(context, slot, icmp::TIME_EXCEEDED, 0, 0);
    }
    let is_too_big = !is_hairpin && route.mtu != 0 && header.total_length > usize::from(route.mtu);
    if is_too_big && header.is_dont_fragment() {
        return error(context, slot, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, route.mtu);
    }

    let transport = packet.transport(frames);
    let is_later = packet.fragment == Fragment::Later;
    let segment = match check_transport(transport, header.protocol, packet.fragment) {
        Ok(segment) => segment,
        Err(reason) => return Verdict::Drop(reason),
    };
    if header.protocol == ip4::ICMP && !is_later && icmp::is_error(transport[icmp::TYPE]) {
        return icmp_error_from_inside(context, frames, slot, header.destination);
    }
    let Some((source, destination)) = nat::ports(transport, header.protocol, &packet) else {
        return Verdict::Drop(Reason::UnknownProtocol);
    };
    if header.protocol == ip4::ICMP && !is_later && !icmp::is_request(transport[icmp::TYPE]) {
        return Verdict::Drop(Reason::UnknownProtocol);
    }
    let remote = (header.destination, destination);
    if owner != Owner::INSIDE && header.protocol == ip4::TCP && destination == SMTP {
        return Verdict::Drop(Reason::Denied);
    }
    // Who pings our address means us, and we do not answer here; nobody else can be meant.
    let is_query = header.protocol == ip4::ICMP;
    if is_hairpin && (is_query || context.owner_of(header.protocol, remote).is_none()) {
        return Verdict::Drop(Reason::Denied);
    }
    let remote = remote_end(header.protocol, remote);

    let key = BindingKey {
        owner,
        protocol: header.protocol,
        address: header.source,
        port: source,
        remote: context.is_endpoint_dependent.then_some(remote),
    };
    let flags = segment.map_or(0, |segment| segment.flags);
    let (index, binding) = match find(context, (init.binding, packet.binding), &key, remote) {
        Ok(Some(found)) => found,
        Ok(None) if segment.is_some() && flags & (tcp::SYN | tcp::ACK | tcp::RST) != tcp::SYN => {
            return Verdict::Drop(Reason::NotSyn);
        }
        Ok(None) => {
            return context.punt(slot, PuntCause::NoBinding { key, remote, tcp_flags: flags }, NodeId::NatIn2out);
        }
        Err(reason) => return Verdict::Drop(reason),
    };

    if is_hairpin && header.is_dont_fragment() {
        // Behind both translations nobody could be told any more.
        let mtu = context.mtus_of_way_back(header.protocol, remote, binding.outside()).ip4;
        if mtu != 0 && header.total_length > usize::from(mtu) {
            return error(context, slot, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, mtu);
        }
    }
    if !context.admit(index, remote) {
        return refuse(context, slot, Reason::TableFull);
    }
    if flags & tcp::SYN != 0 {
        context.held_syns.forget(remote, binding.outside());
    }
    let header_length = usize::from(packet.l4 - packet.l3);
    let ip = packet.ip(frames);
    pass_router(ip, is_hairpin);
    if is_later {
        ip4::replace_address(ip, ip4::SOURCE, binding.outside_address);
    } else {
        nat::translate(ip, header_length, header.protocol, Side::Source, binding.outside_address, binding.outside_port);
    }
    if segment.is_some() {
        tcp::clamp_mss(&mut ip[header_length..], largest_segment(init.mtu));
    }
    context.account(index, Origin::Inside, remote, segment.as_ref(), header.total_length);
    if !is_hairpin && flags & tcp::SYN == 0 {
        let decision = Decision { binding: index, way: Way::Out, end: binding.outside(), mtu: route.mtu };
        established::note(context, &packet, &header, (source, destination), &decision);
    }
    context.packets[slot].ports.0 = binding.outside_port;
    leave(&mut context.packets[slot], header.destination, is_hairpin, route.mtu)
}

/// A packet for which there is no room: its sender is told (RFC 5508 REQ-8).
fn refuse(context: &mut Context, slot: usize, reason: Reason) -> Verdict {
    add(&context.published.nodes[NodeId::NatIn2out as usize].drops[reason as usize], 1);
    error(context, slot, icmp::UNREACHABLE, icmp::CODE_PROHIBITED, 0)
}

/// This node is one router, also to a packet that goes both ways through it.
fn pass_router(ip: &mut [u8], is_hairpin: bool) {
    if !is_hairpin {
        ip4::decrement_ttl(ip);
    }
}

fn leave(packet: &mut Packet, destination: Ipv4Addr, is_hairpin: bool, mtu: u16) -> Verdict {
    packet.destination = destination;
    packet.from_inside = false;
    if is_hairpin {
        return Verdict::Next(NodeId::NatOut2in);
    }
    fragment::unless_too_big(packet, mtu, NodeId::IpOutput)
}

/// The binding of a packet, `None` where a tunnel session has none yet: the one that its session is for (`flow`), that was
/// `made` for the packet while it waited, or that is found by `key`.
fn find(
    context: &Context,
    (flow, made): (u32, u32),
    key: &BindingKey,
    remote: Endpoint,
) -> Result<Option<(u32, Binding)>, Reason> {
    if flow != NO_BINDING {
        let binding = context.bindings.get(flow).ok_or(Reason::NoMapping)?;
        let is_flow = binding.protocol == key.protocol
            && binding.inside() == (key.address, key.port)
            && binding.remote() == Some(remote);
        return if is_flow { Ok(Some((flow, *binding))) } else { Err(Reason::NotFlow) };
    }
    if let Some(binding) = context.bindings.get(made).filter(|binding| binding.key() == *key) {
        return Ok(Some((made, *binding)));
    }
    Ok(context.bindings.find_inside(key).and_then(|index| Some((index, *context.bindings.get(index)?))))
}

/// Lengths of the transport header, where there is one; returns what a TCP segment says.
fn check_transport(transport: &[u8], protocol: u8, fragment: Fragment) -> Result<Option<Segment>, Reason> {
    match protocol {
        // `sv_reassembly` has seen that it is there.
        _ if fragment == Fragment::Later => Ok(None),
        ip4::UDP if fragment == Fragment::First => Ok(None),
        ip4::UDP => udp::checked_length(transport).map(|_| None).ok_or(Reason::BadLength),
        ip4::TCP => tcp::parse(transport).map(Some).ok_or(Reason::BadLength),
        ip4::ICMP if transport.len() >= icmp::HEADER_BYTES => Ok(None),
        ip4::ICMP => Err(Reason::TooShort),
        _ => Err(Reason::UnknownProtocol),
    }
}

/// An ICMP error that the client sends about a server's packet (RFC 5508 REQ-5).
fn icmp_error_from_inside(context: &mut Context, frames: &mut Frames, slot: usize, destination: Ipv4Addr) -> Verdict {
    let packet = context.packets[slot];
    let header_length = usize::from(packet.l4 - packet.l3);
    let quote = match nat::quote(packet.transport(frames)) {
        Ok(quote) => quote,
        Err(bad) => return Verdict::Drop(reason_of(bad)),
    };
    let owner = packet.owner();
    let (address, port) = quote.destination;
    let remote = remote_end(quote.protocol, quote.source);
    let dependent = context.is_endpoint_dependent.then_some(remote);
    let key = BindingKey { owner, protocol: quote.protocol, address, port, remote: dependent };
    let Some(FanInit { binding: flow, .. }) = context.terms(owner) else { return Verdict::Drop(Reason::FreeSlot) };
    let binding = match find(context, (flow, packet.binding), &key, remote) {
        Ok(Some((_, binding))) => binding,
        Ok(None) => return Verdict::Drop(Reason::NoMapping),
        Err(reason) => return Verdict::Drop(reason),
    };
    let is_hairpin = context.is_ours(destination);
    let ip = packet.ip(frames);
    pass_router(ip, is_hairpin);
    ip4::replace_address(ip, ip4::SOURCE, binding.outside_address);
    let message = &mut ip[header_length..];
    nat::translate_quote(message, &quote, Side::Destination, binding.outside_address, binding.outside_port);
    let mtu = context.routes.lookup(destination).mtu;
    leave(&mut context.packets[slot], destination, is_hairpin, mtu)
}

/// Has `icmp_error` tell the sender.
pub(super) fn error(context: &mut Context, slot: usize, kind: u8, code: u8, mtu: u16) -> Verdict {
    let packet = &mut context.packets[slot];
    packet.icmp_type = kind;
    packet.icmp_code = code;
    packet.mtu = mtu;
    Verdict::Next(NodeId::IcmpError)
}

pub(super) fn reason_of(bad: BadQuote) -> Reason {
    match bad {
        BadQuote::Checksum => Reason::BadChecksum,
        BadQuote::TooShort => Reason::TooShort,
        BadQuote::Protocol => Reason::UnknownProtocol,
    }
}

/// The largest TCP segment that fits an inner packet of `mtu` bytes.
pub(super) fn largest_segment(mtu: u16) -> u16 {
    mtu.saturating_sub((ip4::HEADER_BYTES + tcp::HEADER_BYTES) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            command::{Command, Event},
            testing::*,
        },
        wire::{checksum, write},
    };

    fn tunnel() -> Bench {
        let mut bench = Bench::new();
        bench.exit(1, NO_BINDING);
        bench
    }

    fn up(sequence: u64, inner: &[u8]) -> Vec<u8> {
        Relayed::up(3, sequence, inner.to_vec()).frame()
    }

    #[test]
    fn a_known_flow_is_rewritten_exactly_and_nothing_else_changes() {
        let mut bench = tunnel();
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let inner = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
        let out = bench.run(&[up(1, &inner)]);
        assert_eq!(bench.moved(), []);
        let mut expected = udp_packet((US, 41_000), (SERVER, 53), b"question");
        ip4::decrement_ttl(&mut expected);
        assert_eq!(out[0][14..], expected);
    }

    #[test]
    fn a_first_packet_waits_and_is_not_lost() {
        let mut bench = tunnel();
        let inner = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
        assert!(bench.run(&[up(1, &inner)]).is_empty());
        assert_eq!(bench.moved(), []);
        let owner = Owner::session(3);
        let key = BindingKey { owner, protocol: ip4::UDP, address: INSIDE, port: 1000, remote: None };
        let Ok(Event::Punt { waiting, cause }) = bench.events.pop() else { panic!("nothing punted") };
        assert_eq!(cause, PuntCause::NoBinding { key, remote: (SERVER, 53), tcp_flags: 0 });
        bench.bind_and_resume(owner, (1000, 41_000), waiting);
        let out = bench.sweep();
        assert_eq!(out.len(), 1);
        assert!(has_valid_checksums(&out[0][14..]));
        bench.commands.push(Command::Resume { waiting }).unwrap();
        assert!(bench.sweep().is_empty(), "a second answer sends nothing");
    }

    #[test]
    fn a_packet_that_waited_is_not_translated_by_a_binding_of_another() {
        let mut bench = tunnel();
        bench.run(&[up(1, &udp_packet((INSIDE, 1000), (SERVER, 53), b"question"))]);
        let Ok(Event::Punt { waiting, .. }) = bench.events.pop() else { panic!("nothing punted") };
        bench.bind_and_resume(Owner::session(3), (1001, 41_000), waiting);
        assert!(bench.sweep().is_empty());
        assert!(matches!(bench.events.pop(), Ok(Event::Punt { .. })), "it asks for its own");
        assert_eq!(bench.run(&[up(2, &udp_packet((INSIDE, 1001), (SERVER, 53), b"question"))]).len(), 1);
    }

    #[test]
    fn a_refused_packet_is_counted_under_the_reason_given() {
        let mut bench = tunnel();
        bench.run(&[up(1, &udp_packet((INSIDE, 1000), (SERVER, 53), b"?"))]);
        let Ok(Event::Punt { waiting, .. }) = bench.events.pop() else { panic!("nothing punted") };
        bench.tell(Command::Refuse { waiting, reason: Reason::PortsExhausted });
        assert_eq!(bench.moved(), [("punt.drop.ports_exhausted".to_owned(), 1)]);
    }

    #[test]
    fn policy_is_checked_before_anything_is_allocated() {
        let mut bench = tunnel();
        let udp = |from, to| up(bench_sequence(), &udp_packet(from, to, b"x"));
        bench.expect_drop(udp((INSIDE, 1), (PRIVATE, 53)), "nat_in2out.drop.denied");
        bench.expect_drop(udp((INSIDE, 1), (US, 22)), "nat_in2out.drop.denied");
        bench.expect_drop(udp((CLIENT, 1), (SERVER, 53)), "nat_in2out.drop.not_inside");
        let tcp = |port, flags| up(bench_sequence(), &tcp_packet((INSIDE, 1), (SERVER, port), flags, &[]));
        bench.expect_drop(tcp(25, tcp::SYN), "nat_in2out.drop.denied");
        bench.expect_drop(tcp(80, tcp::ACK), "nat_in2out.drop.not_syn");
        bench.expect_drop(
            up(bench_sequence(), &packet(INSIDE, SERVER, 47, &[0; 8])),
            "nat_in2out.drop.unknown_protocol",
        );
        assert!(bench.events.pop().is_err(), "the control core is not asked");
    }

    fn bench_sequence() -> u64 {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    #[test]
    fn a_flow_session_carries_its_flow_only() {
        let mut bench = Bench::new();
        bench.exit(1, 4);
        bench.bind(ip4::UDP, 1000, 41_000, Some((SERVER, 53)));
        assert_eq!(bench.run(&[up(1, &udp_packet((INSIDE, 1000), (SERVER, 53), b"x"))]).len(), 1);
        for (n, inner) in [
            udp_packet((INSIDE, 1001), (SERVER, 53), b"x"),
            udp_packet((INSIDE, 1000), (SERVER, 54), b"x"),
            udp_packet((INSIDE, 1000), (ROUTER, 53), b"x"),
            tcp_packet((INSIDE, 1000), (SERVER, 53), tcp::SYN, &[]),
        ]
        .iter()
        .enumerate()
        {
            bench.expect_drop(up(2 + n as u64, inner), "nat_in2out.drop.not_flow");
        }
    }

    #[test]
    fn a_syn_announces_no_more_than_the_tunnel_carries() {
        let mut bench = tunnel();
        bench.bind(ip4::TCP, 1000, 41_000, None);
        let syn = tcp_packet((INSIDE, 1000), (SERVER, 80), tcp::SYN, &[2, 4, 5, 0xb4]);
        let out = bench.run(&[up(1, &syn)]);
        assert_eq!(&out[0][14 + 40..], [2, 4, 5, 0x50], "1360 = 1400 - 40");
        assert!(has_valid_checksums(&out[0][14..]));
    }

    #[test]
    fn a_clients_icmp_error_about_a_servers_packet_reaches_the_server_translated() {
        let mut bench = tunnel();
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let quoted = udp_packet((SERVER, 53), (INSIDE, 1000), b"late answer");
        let rest: Vec<u8> = [0; 4].into_iter().chain(quoted[..28].iter().copied()).collect();
        let out = bench.run(&[up(1, &icmp_packet(INSIDE, SERVER, icmp::UNREACHABLE, 3, &rest))]);
        assert_eq!(bench.moved(), []);
        let ip = &out[0][14..];
        assert!(has_valid_checksums(ip));
        assert_eq!(ip4::parse(ip).unwrap().source, US);
        assert_eq!(nat::quote(&ip[20..]).unwrap().destination, (US, 41_000));
    }

    #[test]
    fn an_error_for_a_time_to_live_that_ran_out_quotes_the_packet_as_the_client_sent_it() {
        let mut bench = tunnel();
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let mut inner = udp_packet((INSIDE, 1000), (SERVER, 33_434), b"probe");
        inner[ip4::TTL] = 1;
        write(&mut inner, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&inner[..20]);
        write(&mut inner, ip4::CHECKSUM, &field.to_be_bytes());
        let out = bench.run(&[up(1, &inner)]);
        let got = sent(&out[0], &UP_KEY);
        assert!(got.is_authentic && has_valid_checksums(&got.inner));
        let header = ip4::parse(&got.inner).unwrap();
        assert_eq!((header.source, header.destination), (US, INSIDE));
        assert_eq!((got.inner[20], got.inner[21]), (icmp::TIME_EXCEEDED, 0));
        assert_eq!(&got.inner[28..], inner);
    }

    #[test]
    fn two_clients_of_one_exit_reach_each_other_by_the_outside_address() {
        let mut bench = tunnel();
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let out = bench.run(&[up(1, &udp_packet((INSIDE, 1000), (US, 41_000), b"hello me"))]);
        assert_eq!(bench.moved(), []);
        let got = sent(&out[0], &UP_KEY);
        let header = ip4::parse(&got.inner).unwrap();
        assert_eq!((header.source, header.destination), (US, INSIDE), "the outside source (RFC 4787 REQ-9)");
        assert!(has_valid_checksums(&got.inner));
    }
}
