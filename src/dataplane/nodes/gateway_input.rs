//! The gateway as a router: what hosts behind it send, and what networks that see them as they are send to them.
//!
//! Path: ip4_input | handoff -> here -> nat_in2out | sv_reassembly (a fragment) | ip_output (no translation) | icmp_error | handoff | drop.
//! Reads: l3, l4, interface, protocol. Writes: slot, destination.
//!
//! Nobody inside may pretend to be someone else: the route back to a source must lead out of the interface that the
//! packet came in by (RFC 3704 section 2.2). All of a host's bindings are one worker's ([`Identity::owner_of_host`]),
//! so a packet is handed over before it reaches the NAT, never after.
//!
//! [`Identity::owner_of_host`]: crate::dataplane::forwarding::Identity::owner_of_host

use std::net::Ipv4Addr;

use super::{fragment, nat_in2out::error, prelude::*};
use crate::{
    dataplane::{gateway::Realm, packet::Packet},
    wire::{icmp, ip4, read_u32},
};

node!(GatewayInput, "gateway_input", [NatIn2out, SvReassembly, IcmpError, Fragment, IpOutput, Handoff], gateway_input);

fn gateway_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let routes = &mut context.routes;
    // Frames for others come in while someone listens to the whole link.
    let mac = routes.forwarding().interfaces.get(usize::from(packet.interface)).map(|interface| interface.mac);
    if mac.is_none_or(|mac| packet.bytes(frames)[..mac.len()] != mac) {
        return Verdict::Drop(Reason::NotOurMac);
    }
    let Ok(header) = ip4::parse_quoted(packet.ip(frames)) else { return Verdict::Drop(Reason::BadLength) };
    let from = *routes.lookup(header.source);
    if from.lookup.interface() != Some(packet.interface) {
        return Verdict::Drop(Reason::Spoofed);
    }
    let to = *routes.lookup(header.destination);
    let is_from_inside = routes.realm(packet.interface) == Realm::Inside;
    let is_hairpin = context.is_ours(header.destination);
    context.packets[slot].slot = Packet::NO_SLOT;

    match to.realm {
        _ if is_from_inside && is_hairpin => translate(context, frames, slot, &header),
        Realm::Outside if is_from_inside && !to.is_exempt => translate(context, frames, slot, &header),
        Realm::Outside if is_from_inside => route(context, frames, slot, &header, to.mtu),
        Realm::Inside if is_from_inside || from.is_exempt => route(context, frames, slot, &header, to.mtu),
        _ if is_from_inside => error(context, slot, icmp::UNREACHABLE, icmp::CODE_NET, 0),
        _ => Verdict::Drop(Reason::NoRoute),
    }
}

/// To the NAT of the worker that owns the host.
fn translate(context: &mut Context, frames: &mut Frames, slot: usize, header: &ip4::Header) -> Verdict {
    let packet = context.packets[slot];
    let quoted = if header.is_fragment() { None } else { host_of(packet.transport(frames), packet.protocol) };
    let host = quoted.unwrap_or(header.source);
    let owner = context.identity.owner_of_host(host);
    if owner != context.index {
        return context.hand_off(slot, owner, NodeId::GatewayInput);
    }
    Verdict::Next(if header.is_fragment() { NodeId::SvReassembly } else { NodeId::NatIn2out })
}

/// Whose binding an ICMP error from inside is about: the receiver of the packet it quotes, though a router may have
/// sent the error.
fn host_of(transport: &[u8], protocol: u8) -> Option<Ipv4Addr> {
    if protocol != ip4::ICMP || !icmp::is_error(*transport.first()?) {
        return None;
    }
    let quoted = transport.get(icmp::HEADER_BYTES..).filter(|quoted| quoted.len() >= ip4::HEADER_BYTES)?;
    Some(read_u32(quoted, ip4::DESTINATION).into())
}

/// On as it is.
fn route(context: &mut Context, frames: &mut Frames, slot: usize, header: &ip4::Header, mtu: u16) -> Verdict {
    if header.ttl <= 1 {
        return error(context, slot, icmp::TIME_EXCEEDED, 0, 0);
    }
    let packet = &mut context.packets[slot];
    if packet.ip_length() > usize::from(mtu) && header.is_dont_fragment() {
        return error(context, slot, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, mtu);
    }
    packet.destination = header.destination;
    ip4::decrement_ttl(packet.ip(frames));
    fragment::unless_too_big(packet, mtu, NodeId::IpOutput)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            command::{Command, Event, PuntCause},
            handoff::mesh,
            nat::{BindingInit, Filtering, Mapping, Owner},
            testing::*,
        },
        wire::{checksum, ethernet, tcp, write},
    };

    const OFFICE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

    fn gateway() -> Bench {
        let mut bench = Bench::new();
        bench.gateway();
        bench
    }

    fn with_ttl(mut ip: Vec<u8>, ttl: u8) -> Vec<u8> {
        ip[ip4::TTL] = ttl;
        write(&mut ip, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&ip[..20]);
        write(&mut ip, ip4::CHECKSUM, &field.to_be_bytes());
        ip
    }

    fn ip_of(frame: &[u8]) -> &[u8] {
        assert!(has_valid_checksums(&frame[ethernet::HEADER_BYTES..]));
        &frame[ethernet::HEADER_BYTES..]
    }

    fn bind(bench: &mut Bench, index: u32, inside: (Ipv4Addr, u16), outside_port: u16) {
        let binding = BindingInit {
            owner: Owner::INSIDE,
            protocol: ip4::UDP,
            inside_address: inside.0,
            inside_port: inside.1,
            outside_address: US,
            outside_port,
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
        };
        bench.tell(Command::SetBinding { index, binding });
    }

    #[test]
    fn a_hosts_first_packet_waits_for_its_binding_and_both_ways_are_translated() {
        let mut bench = gateway();
        let question = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
        assert!(bench.run_at(1, std::slice::from_ref(&question)).is_empty());
        let Ok(Event::Punt { waiting, cause: PuntCause::NoBinding { key, .. } }) = bench.events.pop() else {
            panic!("nothing punted")
        };
        assert_eq!((key.owner, key.address, key.port), (Owner::INSIDE, INSIDE, 1000));
        bench.bind_and_resume(Owner::INSIDE, (1000, 41_000), waiting);
        bench.worker.sweep(bench.now);
        let out = bench.worker.driver().take();
        let expected = with_ttl(udp_packet((US, 41_000), (SERVER, 53), b"question"), 63);
        assert_eq!((out[0].0, ip_of(&out[0].1)), (0, &expected[..]));

        let out = bench.run_at(0, &[udp_packet((SERVER, 53), (US, 41_000), b"answer")]);
        let expected = with_ttl(udp_packet((SERVER, 53), (INSIDE, 1000), b"answer"), 63);
        assert_eq!((out[0].0, ip_of(&out[0].1)), (1, &expected[..]));
        assert_eq!(out[0].1[..6], [2, 0, 0, 0, 2, 1], "the host's MAC address");
    }

    #[test]
    fn nobody_inside_pretends_to_be_someone_else() {
        let mut bench = gateway();
        for source in [NEIGHBOUR, SERVER, US, Ipv4Addr::new(203, 0, 113, 5), Ipv4Addr::UNSPECIFIED] {
            assert!(bench.run_at(1, &[udp_packet((source, 1), (SERVER, 53), b"")]).is_empty());
            assert_eq!(bench.moved(), [("gateway_input.drop.spoofed".to_owned(), 1)], "{source}");
        }
        let mut other = frame(&udp_packet((INSIDE, 1), (SERVER, 53), b""));
        other[5] = 77;
        bench.worker.driver().put(1, &other);
        bench.run(&[]);
        assert_eq!(bench.moved(), [("gateway_input.drop.not_our_mac".to_owned(), 1)]);
    }

    #[test]
    fn from_one_inside_network_to_another_and_to_exempt_ones_nothing_is_translated() {
        let mut bench = gateway();
        for (from, source, destination, by) in
            [(1, INSIDE, NEIGHBOUR, 2), (2, NEIGHBOUR, INSIDE, 1), (1, INSIDE, OFFICE, 0), (0, OFFICE, INSIDE, 1)]
        {
            // Of no transport protocol that NAT knows, and a fragment besides.
            let mut sent = packet(source, destination, 47, &[1, 2, 3, 4]);
            write(&mut sent, ip4::FRAGMENT, &[0x20, 0]);
            let sent = with_ttl(sent, 9);
            let out = bench.run_at(from, std::slice::from_ref(&sent));
            assert_eq!(bench.moved(), []);
            assert_eq!((out[0].0, &out[0].1[ethernet::HEADER_BYTES..]), (by, &with_ttl(sent, 8)[..]));
        }
        assert!(bench.run_at(0, &[udp_packet((SERVER, 53), (INSIDE, 1), b"")]).is_empty());
        assert_eq!(bench.moved(), [("gateway_input.drop.no_route".to_owned(), 1)], "from outside nobody is let in");
    }

    #[test]
    fn errors_come_from_the_router_that_the_host_knows() {
        let mut bench = gateway();
        bind(&mut bench, 0, (INSIDE, 1000), 41_000);
        let long = |destination| udp_packet((INSIDE, 1000), (destination, 53), &[0; 1473]);
        let nowhere = Ipv4Addr::new(8, 8, 8, 8);
        for (sent, kind, code) in [
            (with_ttl(udp_packet((INSIDE, 1000), (SERVER, 53), b"x"), 1), icmp::TIME_EXCEEDED, 0),
            (with_ttl(udp_packet((INSIDE, 1000), (NEIGHBOUR, 53), b"x"), 1), icmp::TIME_EXCEEDED, 0),
            (udp_packet((INSIDE, 1000), (nowhere, 53), b"x"), icmp::UNREACHABLE, icmp::CODE_NET),
            (long(SERVER), icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED),
            (long(OFFICE), icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED),
        ] {
            let out = bench.run_at(1, std::slice::from_ref(&sent));
            assert_eq!(bench.moved(), []);
            assert_eq!(out[0].0, 1);
            let ip = ip_of(&out[0].1);
            let header = ip4::parse(ip).unwrap();
            assert_eq!((header.source, header.destination), (INSIDE_ROUTER, INSIDE));
            assert_eq!((ip[20], ip[21]), (kind, code));
            assert_eq!(ip[28..], sent[..ip.len() - 28], "quoted as the host sent it");
        }
    }

    #[test]
    fn a_packet_is_handed_to_the_worker_of_its_host_and_a_hairpinned_one_once_more() {
        let mut rings = mesh(2);
        let second = rings.pop().unwrap();
        let mut benches = [Bench::with_workers(2, rings.pop().unwrap()), Bench::at(1, 2, second)];
        benches.iter_mut().for_each(Bench::gateway);
        // Two hosts of one network whose bindings are different workers', and ports that these own.
        let host = |owner| {
            let at = |n| Ipv4Addr::from(INSIDE.to_bits() + n);
            (1..).map(at).find(|address| identity(2).owner_of_host(*address) == owner).unwrap()
        };
        let [first, second] = [host(0), host(1)];
        bind(&mut benches[0], 0, (first, 1000), DATA_PORT + 1);
        bind(&mut benches[1], 0, (second, 2000), DATA_PORT + 9_999);

        let hairpin = udp_packet((first, 1000), (US, DATA_PORT + 9_999), b"to my neighbour");
        assert!(benches[1].run_at(1, &[hairpin]).is_empty(), "it came in at the wrong worker");
        for worker in [0, 1] {
            let now = benches[worker].now;
            benches[worker].worker.sweep(now);
            assert_eq!(benches[worker].moved(), []);
        }
        let Ok(Event::Punt { cause: PuntCause::NoAdjacency { next_hop, .. }, .. }) = benches[1].events.pop() else {
            panic!("it did not come through")
        };
        assert_eq!(next_hop, second, "translated twice, it waits for the host's MAC address");
    }

    #[test]
    fn an_error_about_a_hosts_packet_is_handled_where_its_binding_is() {
        let quoted = udp_packet((SERVER, 53), (INSIDE, 1000), b"");
        let message: Vec<u8> = [vec![icmp::UNREACHABLE, 3, 0, 0, 0, 0, 0, 0], quoted].concat();
        assert_eq!(host_of(&message, ip4::ICMP), Some(INSIDE));
        for cut in 0..28 {
            assert_eq!(host_of(&message[..cut], ip4::ICMP), None, "{cut} bytes");
        }
        assert_eq!(host_of(&[icmp::ECHO_REQUEST; 40], ip4::ICMP), None);
        assert_eq!(host_of(&message, ip4::TCP), None);
    }

    #[test]
    fn an_inside_host_may_be_a_client_of_the_overlay() {
        let mut bench = gateway();
        let relayed = udp_packet((INSIDE, 5), (US, DATA_PORT), &[0; 30]);
        bench.run_at(1, &[relayed]);
        assert_eq!(bench.moved(), [("relay_input.drop.bad_version".to_owned(), 1)], "it is taken for a relay packet");
    }

    #[test]
    fn a_segment_of_an_unknown_connection_is_not_let_out() {
        let mut bench = gateway();
        bench.run_at(1, &[tcp_packet((INSIDE, 1), (SERVER, 80), tcp::ACK, &[])]);
        assert_eq!(bench.moved(), [("nat_in2out.drop.not_syn".to_owned(), 1)]);
        assert!(bench.events.pop().is_err(), "nobody is asked");
    }
}
