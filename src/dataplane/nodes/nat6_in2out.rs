//! Source NAT of IPv6: from a packet of a session's client, or of a host of the gateway, to one that the server can answer. To
//! an address of the NAT64 prefix it becomes a packet of IPv4 (RFC 6146), to any other it gets another address and port
//! (NAPT66).
//!
//! Path: exit_up | gateway6_input | sv_reassembly -> here -> ip6_output | nat6_out2in (hairpin) | icmp6_error | punt (no binding yet) | drop;
//! of NAT64 ip_output | fragment | nat_out2in (hairpin).
//! Reads: l3, slot, from_inside, fragment, ports. Writes: l3, l4, offset, length, protocol, destination; the binding's stamp. What comes from the
//! gateway is at the worker that owns the host ([`Identity::owner_of_host6`]).
//!
//! Which binding, which life it has and what may use it is the same for both translations and for IPv4; only the bytes
//! that are written differ. Nothing of the packet is changed before everything is decided.
//!
//! [`Identity::owner_of_host6`]: crate::dataplane::forwarding::Identity::owner_of_host6

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    fragment,
    icmp6_error::tell,
    ip6_input,
    nat_in2out::{SMTP, reason_of},
    prelude::*,
};
use crate::{
    dataplane::{
        command::{Flow6, PuntCause},
        nat::{
            Binding, BindingKey, Endpoint, Owner, Translation,
            connections::Origin,
            icmp64::{GROWTH, Mtus},
            nat64::{self, ErrorToIp4, Place, Rewrite},
            remote_end,
            rewrite::{self as nat, Side},
            rewrite6::{self as nat6, table_protocol},
            token,
        },
        packet::{Fragment, Packet},
        published::add,
    },
    wire::{
        icmp, icmp6, ip4, ip6, read_u16,
        tcp::{self, Segment},
        udp,
    },
};

node!(Nat6In2out, "nat6_in2out", [Ip6Output, IpOutput, NatOut2in, Nat6Out2in, Icmp6Error, Fragment, Punt], nat6_in2out);

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
enum Destination {
    Ip6(Ipv6Addr),
    /// By its name in the NAT64 prefix.
    Ip4(Ipv4Addr),
}

impl Destination {
    fn of(context: &Context, address: Ipv6Addr) -> Self {
        match context.nat64.and_then(|prefix| prefix.extract(address)) {
            Some(address) => Self::Ip4(address),
            None => Self::Ip6(address),
        }
    }

    fn translation(self) -> Translation {
        match self {
            Self::Ip6(_) => Translation::Nat66,
            Self::Ip4(_) => Translation::Nat64,
        }
    }

    /// What bindings and filters know it by.
    fn token(self, context: &Context) -> Ipv4Addr {
        match self {
            // Our own addresses have tokens, so that both ends of a hairpin are compared as what they are.
            Self::Ip6(address) => {
                context.bindings.outside().token_of(address).unwrap_or_else(|| context.hosts6.remote(address))
            }
            Self::Ip4(address) => address,
        }
    }
}

fn nat6_in2out(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let header = match ip6_input::check(&mut context.packets[slot], frames) {
        Ok(header) => header,
        Err(reason) => return Verdict::Drop(reason),
    };
    let packet = context.packets[slot];
    let owner = packet.owner();
    let Some(init) = context.terms(owner) else { return Verdict::Drop(Reason::FreeSlot) };
    if owner != Owner::INSIDE && (header.source != init.inside6 || header.source.is_unspecified()) {
        return Verdict::Drop(Reason::NotInside);
    }
    let destination = Destination::of(context, header.destination);
    let is_later = packet.fragment == Fragment::Later;
    if packet.fragment != Fragment::No && destination.translation() == Translation::Nat64 {
        // ICMPv6's checksum covers a length that only the last one tells, and what goes with the extension headers would be
        // missing in the middle.
        let has_more = header.header_length != header.fragment_at + ip6::FRAGMENT_HEADER_BYTES;
        if header.protocol == ip6::ICMP || has_more {
            return Verdict::Drop(Reason::Fragment);
        }
    }
    if let Destination::Ip4(address) = destination
        && is_nowhere(context, address)
    {
        return Verdict::Drop(Reason::Denied);
    }
    let is_hairpin = match destination {
        Destination::Ip6(address) => context.is_ours6(address),
        Destination::Ip4(address) => context.is_ours(address),
    };
    let (mtu, is_exit_allowed) = way_towards(context, destination);
    if owner != Owner::INSIDE && !is_hairpin && !is_exit_allowed {
        return Verdict::Drop(Reason::Denied);
    }
    if header.hop_limit <= 1 {
        return tell(context, slot, icmp6::TIME_EXCEEDED, 0, 0);
    }
    let is_untranslatable = context.bindings.outside().first6().is_none();
    if matches!(destination, Destination::Ip6(_)) && !is_hairpin && (mtu == 0 || is_untranslatable) {
        return tell(context, slot, icmp6::UNREACHABLE, icmp6::CODE_NO_ROUTE, 0);
    }
    if !is_hairpin && packet.ip_length() > largest(destination, mtu, &header) {
        return too_big(context, slot, destination, mtu);
    }

    let transport = packet.transport(frames);
    let segment = match check_transport(transport, header.protocol, packet.fragment) {
        Ok(segment) => segment,
        Err(reason) => return Verdict::Drop(reason),
    };
    let is_message = header.protocol == ip6::ICMP && !is_later;
    if is_message && icmp6::is_error(transport[icmp::TYPE]) {
        return icmp_error_from_inside(context, frames, slot, &header, destination);
    }
    if is_message && transport[icmp::TYPE] != icmp6::ECHO_REQUEST {
        return Verdict::Drop(Reason::UnknownProtocol);
    }
    let Some((source, to)) = nat::ports(transport, header.protocol, &packet) else {
        return Verdict::Drop(Reason::UnknownProtocol);
    };
    let protocol = table_protocol(header.protocol);
    let remote = (destination.token(context), to);
    if owner != Owner::INSIDE && protocol == ip4::TCP && to == SMTP {
        return Verdict::Drop(Reason::Denied);
    }
    // Who pings our address means us, and we do not answer here; nobody else can be meant.
    if is_hairpin && (protocol == ip4::ICMP || context.owner_of(protocol, remote).is_none()) {
        return Verdict::Drop(Reason::Denied);
    }
    let remote = remote_end(protocol, remote);

    let translation = destination.translation();
    let flow = Flow6 { owner, translation, protocol, address: header.source, port: source, remote };
    let flags = segment.map_or(0, |segment| segment.flags);
    let (index, binding) = match find(context, &flow) {
        Some(found) => found,
        None if protocol == ip4::TCP && flags & (tcp::SYN | tcp::ACK | tcp::RST) != tcp::SYN => {
            return Verdict::Drop(Reason::NotSyn);
        }
        None => return context.punt(slot, PuntCause::NoBinding6 { flow, tcp_flags: flags }, NodeId::Nat6In2out),
    };
    if is_hairpin {
        // Behind both translations nobody could be told any more.
        let back = context.mtus_of_way_back(protocol, remote, binding.outside());
        let mtu = if translation == Translation::Nat64 { back.ip4 } else { back.ip6 };
        if packet.ip_length() > largest(destination, mtu, &header) {
            return too_big(context, slot, destination, mtu);
        }
    }
    if !context.admit(index, remote) {
        add(&context.published.nodes[NodeId::Nat6In2out as usize].drops[Reason::TableFull as usize], 1);
        return tell(context, slot, icmp6::UNREACHABLE, icmp6::CODE_PROHIBITED, 0);
    }
    if flags & tcp::SYN != 0 {
        context.held_syns.forget(remote, binding.outside());
    }
    let hop_limit = header.hop_limit - u8::from(!is_hairpin);
    let bytes = header.total_length;
    match destination {
        Destination::Ip6(_) => {
            let Some(outside) = context.bindings.outside().address6(binding.outside_address) else {
                return Verdict::Drop(Reason::NoMapping);
            };
            let ip = packet.ip(frames);
            ip[ip6::HOP_LIMIT] = hop_limit;
            match is_later {
                true => drop(nat6::replace_address(ip, Side::Source, outside)),
                false => {
                    let new = (outside, binding.outside_port);
                    nat6::translate(ip, header.header_length, header.protocol, Side::Source, new);
                }
            }
            if segment.is_some() {
                tcp::clamp_mss(&mut ip[header.header_length..], largest_segment6(init.mtu));
            }
        }
        Destination::Ip4(address) => {
            let to = Rewrite {
                source: binding.outside_address,
                destination: address,
                side: Side::Source,
                port: binding.outside_port,
                hop_limit,
            };
            let identification = context.next_identification();
            let frame = frames.frame(packet.frame);
            let place = nat64::to_ip4(frame, Place::of(&packet), &header, &to, identification);
            let packet = &mut context.packets[slot];
            place.apply(packet);
            packet.protocol = protocol;
            if protocol == ip4::TCP {
                let inside = context.mtu_to_host(binding.owner, header.source.into());
                tcp::clamp_mss(&mut frame[place.l4..place.end], largest_segment64(Mtus { ip4: mtu, ip6: inside }));
            }
        }
    }
    context.account(index, Origin::Inside, remote, segment.as_ref(), bytes);
    context.packets[slot].ports.0 = binding.outside_port;
    leave(&mut context.packets[slot], destination, is_hairpin, mtu)
}

/// RFC 6052 section 3.1: by the well-known prefix nobody is meant whom only some can reach. And nothing is sent to
/// what is no host.
pub(super) fn is_nowhere(context: &Context, address: Ipv4Addr) -> bool {
    let is_private = address.is_private() || address.is_link_local();
    let is_no_host = address.is_loopback() || address.is_multicast() || address.octets()[0] == 0;
    is_no_host || token::is_reserved(address) || (is_private && context.nat64 == Some(super::nat64_out2in::WELL_KNOWN))
}

/// MTU of the way ahead, in the family that the packet leaves in; zero where there is no way. And whether an exit may send
/// there.
fn way_towards(context: &mut Context, destination: Destination) -> (u16, bool) {
    match destination {
        Destination::Ip6(address) => {
            let route = context.routes.lookup6(address);
            (route.mtu, route.is_exit_allowed)
        }
        Destination::Ip4(address) => {
            let route = *context.routes.lookup(address);
            (route.mtu, route.is_exit_allowed)
        }
    }
}

/// The largest packet with this header that `mtu` lets pass; zero is none that is known. One that may be cut on its way may
/// be cut here.
fn largest(destination: Destination, mtu: u16, header: &ip6::Header) -> usize {
    match destination {
        _ if mtu == 0 => usize::MAX,
        Destination::Ip6(_) => usize::from(mtu),
        Destination::Ip4(_) => {
            let longer = header.header_length - ip4::HEADER_BYTES;
            usize::from(mtu).max(nat64::MAY_BE_FRAGMENTED_MAX) + longer
        }
    }
}

/// Tells the sender how much `mtu` lets pass, as it counts.
fn too_big(context: &mut Context, slot: usize, destination: Destination, mtu: u16) -> Verdict {
    let growth = if destination.translation() == Translation::Nat64 { GROWTH } else { 0 };
    tell(context, slot, icmp6::PACKET_TOO_BIG, 0, mtu.saturating_add(growth))
}

/// The largest TCP segment that fits a packet of `mtu` bytes.
pub(super) fn largest_segment6(mtu: u16) -> u16 {
    mtu.saturating_sub((ip6::HEADER_BYTES + tcp::HEADER_BYTES) as u16)
}

/// The largest TCP segment that fits both sides of NAT64.
pub(super) fn largest_segment64(mtus: Mtus) -> u16 {
    let fits = |mtu: u16, header: usize| match mtu {
        0 => u16::MAX,
        mtu => mtu.saturating_sub((header + tcp::HEADER_BYTES) as u16),
    };
    fits(mtus.ip4, ip4::HEADER_BYTES).min(fits(mtus.ip6, ip6::HEADER_BYTES))
}

/// The binding of a flow that has one.
fn find(context: &Context, flow: &Flow6) -> Option<(u32, Binding)> {
    let key = BindingKey {
        owner: flow.owner,
        protocol: flow.protocol,
        address: token::host(flow.translation, context.hosts6.find(flow.address)?),
        port: flow.port,
        remote: context.is_endpoint_dependent.then_some(flow.remote),
    };
    let index = context.bindings.find_inside(&key)?;
    Some((index, *context.bindings.get(index)?))
}

/// Lengths of the transport header, where there is one; returns what a TCP segment says.
pub(super) fn check_transport(transport: &[u8], protocol: u8, fragment: Fragment) -> Result<Option<Segment>, Reason> {
    match protocol {
        // `sv_reassembly` has seen that it is there.
        _ if fragment == Fragment::Later => Ok(None),
        ip4::UDP if fragment == Fragment::First && read_u16(transport, udp::CHECKSUM) != 0 => Ok(None),
        ip4::UDP if fragment == Fragment::First => Err(Reason::BadChecksum),
        // Without a checksum a change of the address would go unseen: IPv6 has no other (RFC 8200 section 8.1).
        ip4::UDP => match udp::checked_length(transport) {
            None => Err(Reason::BadLength),
            Some(_) if read_u16(transport, udp::CHECKSUM) == 0 => Err(Reason::BadChecksum),
            Some(_) => Ok(None),
        },
        ip4::TCP => tcp::parse(transport).map(Some).ok_or(Reason::BadLength),
        ip6::ICMP if transport.len() >= icmp::HEADER_BYTES => Ok(None),
        ip6::ICMP => Err(Reason::TooShort),
        _ => Err(Reason::UnknownProtocol),
    }
}

/// An ICMPv6 error that a host sends about a server's packet. Where it goes and whom the quoted packet is from need not
/// be the same, but must be of one family.
fn icmp_error_from_inside(
    context: &mut Context,
    frames: &mut Frames,
    slot: usize,
    header: &ip6::Header,
    destination: Destination,
) -> Verdict {
    let packet = context.packets[slot];
    let quote = match nat6::quote(packet.ip(frames), header) {
        Ok(quote) => quote,
        Err(bad) => return Verdict::Drop(reason_of(bad)),
    };
    let server = Destination::of(context, quote.source.0);
    let protocol = table_protocol(quote.header.protocol);
    let remote: Endpoint = remote_end(protocol, (server.token(context), quote.source.1));
    let (owner, translation) = (packet.owner(), server.translation());
    let (address, port) = quote.destination;
    let Some((_, binding)) = find(context, &Flow6 { owner, translation, protocol, address, port, remote }) else {
        return Verdict::Drop(Reason::NoMapping);
    };
    let (mtu, _) = way_towards(context, destination);
    let is_hairpin = match (destination, server) {
        (Destination::Ip6(to), Destination::Ip6(_)) => {
            let is_hairpin = context.is_ours6(to);
            let Some(outside) = context.bindings.outside().address6(binding.outside_address) else {
                return Verdict::Drop(Reason::NoMapping);
            };
            let ip = packet.ip(frames);
            ip[ip6::HOP_LIMIT] -= u8::from(!is_hairpin);
            nat6::replace_address(ip, Side::Source, outside);
            nat6::translate_quote(ip, header, &quote, Side::Destination, (outside, binding.outside_port));
            is_hairpin
        }
        (Destination::Ip4(to), Destination::Ip4(remote)) => {
            let is_hairpin = context.is_ours(to);
            let mtus = Mtus { ip4: mtu, ip6: context.mtu_to_host(binding.owner, header.source.into()) };
            let error = ErrorToIp4 {
                outside: binding.outside(),
                destination: to,
                remote,
                hop_limit: header.hop_limit - u8::from(!is_hairpin),
                mtus,
            };
            let frame = frames.frame(packet.frame);
            let Some(place) = nat64::error_to_ip4(frame, Place::of(&packet), header, &quote, &error) else {
                return Verdict::Drop(Reason::NoEquivalent);
            };
            place.apply(&mut context.packets[slot]);
            context.packets[slot].protocol = ip4::ICMP;
            is_hairpin
        }
        _ => return Verdict::Drop(Reason::NoMapping),
    };
    leave(&mut context.packets[slot], destination, is_hairpin, mtu)
}

fn leave(packet: &mut Packet, destination: Destination, is_hairpin: bool, mtu: u16) -> Verdict {
    packet.from_inside = false;
    match destination {
        Destination::Ip6(_) => Verdict::Next(if is_hairpin { NodeId::Nat6Out2in } else { NodeId::Ip6Output }),
        Destination::Ip4(address) => {
            packet.destination = address;
            match is_hairpin {
                true => Verdict::Next(NodeId::NatOut2in),
                false => fragment::unless_too_big(packet, mtu, NodeId::IpOutput),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            command::{Command, Event},
            gateway::StaticMapping,
            handoff::mesh,
            nat::Owner,
            testing::*,
            testing6::*,
        },
        wire::{ethernet, read_u32, write},
    };

    /// What the host behind interface 1 sends, and what leaves for whom.
    fn out(bench: &mut Bench, packet: &[u8]) -> (u8, Vec<u8>) {
        let mut out = bench.run_at6(1, std::slice::from_ref(&packet.to_vec()));
        assert_eq!(bench.moved(), []);
        assert_eq!(out.len(), 1);
        let (interface, frame) = out.remove(0);
        let ip = frame[ethernet::HEADER_BYTES..].to_vec();
        assert!(if ip[0] >> 4 == 6 { has_valid_checksums6(&ip) } else { has_valid_checksums(&ip) });
        assert_eq!(frame[12..14], if ip[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] });
        (interface, ip)
    }

    fn name(address: Ipv4Addr) -> Ipv6Addr {
        crate::dataplane::nat::Prefix64::WELL_KNOWN.embed(address)
    }

    #[test]
    fn a_known_flow_is_rewritten_exactly_and_nothing_else_changes() {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
        let got = out(&mut bench, &udp6_packet((INSIDE6, 1000), (SERVER6, 53), b"question"));
        let mut expected = udp6_packet((US6, PORT6), (SERVER6, 53), b"question");
        expected[ip6::HOP_LIMIT] -= 1;
        assert_eq!(got, (0, expected));
        bench.bind6(Translation::Nat66, ip4::ICMP, 7, PORT6);
        let (_, got) = out(&mut bench, &icmp6_packet(INSIDE6, SERVER6, icmp6::ECHO_REQUEST, 0, &[0, 7, 0, 1, 9]));
        assert_eq!(nat::port(&got[40..], ip6::ICMP, Side::Source), Some(PORT6));
    }

    #[test]
    fn a_flow_to_the_prefix_leaves_as_ipv4() {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat64, ip4::TCP, 1000, 41_000);
        let syn = tcp6_packet((INSIDE6, 1000), (name(SERVER), 80), tcp::SYN, &[2, 4, 5, 0xb4]);
        let (interface, got) = out(&mut bench, &syn);
        let header = ip4::parse(&got).unwrap();
        assert_eq!((interface, header.source, header.destination, header.ttl), (0, US, SERVER, 63));
        assert_eq!(got[40..], [2, 4, 5, 0xa0], "1440 = 1500 - 60: what the host's own link carries");
        let ports = [Side::Source, Side::Destination].map(|side| nat::port(&got[20..], ip4::TCP, side));
        assert_eq!(ports, [Some(41_000), Some(80)]);
    }

    #[test]
    fn a_first_packet_waits_with_its_address_and_is_not_lost() {
        let mut bench = Bench::gateway6();
        for (to, translation, remote) in
            [(SERVER6, Translation::Nat66, None), (name(SERVER), Translation::Nat64, Some(SERVER))]
        {
            let sent = udp6_packet((INSIDE6, 1000), (to, 53), b"question");
            assert!(bench.run_at6(1, std::slice::from_ref(&sent)).is_empty());
            let Ok(Event::Punt { waiting, cause: PuntCause::NoBinding6 { flow, tcp_flags: 0 } }) = bench.events.pop()
            else {
                panic!("nothing punted")
            };
            let remote = remote.unwrap_or_else(|| bench.worker.context().hosts6.remote(to));
            let expected = Flow6 {
                owner: Owner::INSIDE,
                translation,
                protocol: ip4::UDP,
                address: INSIDE6,
                port: 1000,
                remote: (remote, 53),
            };
            assert_eq!(flow, expected);
            bench.bind6(translation, ip4::UDP, 1000, PORT6);
            bench.commands.push(Command::Resume { waiting }).unwrap();
            assert_eq!(bench.sweep().len(), 1);
        }
    }

    #[test]
    fn what_finds_no_room_is_refused_with_an_error_of_its_family() {
        let mut bench = Bench::gateway6();
        let sent = udp6_packet((INSIDE6, 1000), (SERVER6, 53), b"question");
        assert!(bench.run_at6(1, std::slice::from_ref(&sent)).is_empty());
        let Ok(Event::Punt { waiting, .. }) = bench.events.pop() else { panic!("nothing punted") };
        bench.commands.push(Command::Refuse { waiting, reason: Reason::PortsExhausted }).unwrap();
        let told = bench.sweep();
        assert_eq!(bench.moved(), [("punt.drop.ports_exhausted".to_owned(), 1)]);
        assert_eq!(told[0][14 + 40..][..2], [icmp6::UNREACHABLE, icmp6::CODE_PROHIBITED]);
        assert_eq!(told[0][14 + 48..], sent);
    }

    #[test]
    fn what_is_not_translated_is_dropped_by_reason_before_anything_is_allocated() {
        let mut bench = Bench::gateway6();
        let mut dropped = |packet: Vec<u8>, reason: &str| {
            assert!(bench.run_at6(1, &[packet]).is_empty());
            assert_eq!(bench.moved(), [(format!("nat6_in2out.drop.{reason}"), 1)]);
        };
        let udp = |to| udp6_packet((INSIDE6, 1), (to, 53), b"x");
        for private in [[10, 0, 0, 1], [192, 168, 0, 1], [127, 0, 0, 1], [224, 0, 0, 1], [240, 0, 0, 1], [0, 0, 0, 0]] {
            dropped(udp(name(private.into())), "denied");
        }
        dropped(udp(US6), "denied");
        dropped(udp(name(US)), "denied");
        dropped(tcp6_packet((INSIDE6, 1), (SERVER6, 80), tcp::ACK, &[]), "not_syn");
        dropped(packet6(INSIDE6, SERVER6, 47, &[0; 8]), "unknown_protocol");
        dropped(icmp6_packet(INSIDE6, SERVER6, 135, 0, &[0; 20]), "unknown_protocol");
        dropped(icmp6_packet(INSIDE6, SERVER6, icmp6::ECHO_REPLY, 0, &[0, 1, 0, 1]), "unknown_protocol");
        let mut unsummed = udp(SERVER6);
        write(&mut unsummed, 40 + udp::CHECKSUM, &[0, 0]);
        dropped(unsummed, "bad_checksum");
        assert!(bench.events.pop().is_err(), "the control core is not asked");
    }

    #[test]
    fn a_packet_that_is_too_big_for_ipv4_is_told_the_size_that_ipv6_counts_in() {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat64, ip4::UDP, 1000, 41_000);
        bench.change_forwarding(|forwarding| forwarding.interfaces[0].mtu = 1400);
        let sent = |bytes: usize| udp6_packet((INSIDE6, 1000), (name(SERVER), 53), &vec![7; bytes - 48]);
        let (interface, got) = out(&mut bench, &sent(1421));
        assert_eq!((interface, got[40], got[41], read_u32(&got, 44)), (1, icmp6::PACKET_TOO_BIG, 0, 1420));
        let (interface, got) = out(&mut bench, &sent(1420));
        assert_eq!((interface, got.len()), (0, 1400));
        assert!(ip4::parse(&got).unwrap().is_dont_fragment());
    }

    #[test]
    fn hosts_behind_it_reach_each_other_by_their_outside_addresses() {
        // Both of IPv6, by the address of IPv6.
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
        let (interface, got) = out(&mut bench, &udp6_packet((INSIDE6, 1000), (US6, PORT6), b"hello me"));
        let mut expected = udp6_packet((US6, PORT6), (INSIDE6, 1000), b"hello me");
        expected[ip6::HOP_LIMIT] -= 1;
        assert_eq!((interface, got), (1, expected), "the outside source (RFC 4787 REQ-9)");
        // Both of IPv6, by the name of the address of IPv4 (RFC 6146 section 3.8).
        bench.bind6(Translation::Nat64, ip4::UDP, 1000, 41_000);
        let (interface, got) = out(&mut bench, &udp6_packet((INSIDE6, 1000), (name(US), 41_000), b"hello me"));
        let mut expected = udp6_packet((name(US), 41_000), (INSIDE6, 1000), b"hello me");
        expected[ip6::HOP_LIMIT] -= 1;
        assert_eq!((interface, got), (1, expected));
        // From IPv6 to IPv4 and back.
        bench.bind4(ip4::UDP, 2000, (US, 42_000));
        let (interface, got) = out(&mut bench, &udp6_packet((INSIDE6, 1000), (name(US), 42_000), b"hello you"));
        assert_eq!((interface, &got[20..]), (1, &udp_packet((US, 41_000), (INSIDE, 2000), b"hello you")[20..]));
        let back = bench.run_at(1, &[udp_packet((INSIDE, 2000), (US, 41_000), b"hello back")]);
        let mut expected = udp6_packet((name(US), 42_000), (INSIDE6, 1000), b"hello back");
        expected[ip6::HOP_LIMIT] -= 1;
        assert_eq!(back[0].1[14..], expected);
    }

    #[test]
    fn a_hairpinned_packet_too_big_for_the_way_back_is_answered_as_its_sender_counts() {
        let mut bench = Bench::gateway6();
        bench.change_forwarding(|forwarding| forwarding.interfaces[1].mtu = 1400);
        bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
        bench.bind6(Translation::Nat64, ip4::UDP, 1000, 41_000);
        bench.bind4(ip4::UDP, 2000, (US, 42_000));
        // To a host of IPv6 by both of its addresses, and to one of IPv4, where it becomes shorter.
        for (to, mtu) in [((US6, PORT6), 1400), ((name(US), 41_000), 1400), ((name(US), 42_000), 1420)] {
            let sent = |bytes: usize| udp6_packet((INSIDE6, 1000), to, &vec![7; bytes - 48]);
            let (interface, got) = out(&mut bench, &sent(mtu + 1));
            let told = (icmp6::PACKET_TOO_BIG, 0, mtu as u32);
            assert_eq!((interface, (got[40], got[41], read_u32(&got, 44))), (1, told), "{to:?}");
            assert_eq!(ip6::parse(&got).unwrap().destination, INSIDE6);
            let (_, got) = out(&mut bench, &sent(mtu));
            assert_eq!(got.len(), 1400);
        }
        // From IPv4, where it becomes longer.
        let sent = |bytes: usize| udp_packet((INSIDE, 2000), (US, 41_000), &vec![7; bytes - 28]);
        let told = bench.run_at(1, &[sent(1381)]);
        assert_eq!((told[0].1[14 + 20], read_u16(&told[0].1, 14 + 20 + icmp::NEXT_HOP_MTU)), (icmp::UNREACHABLE, 1380));
        assert_eq!(bench.run_at(1, &[sent(1380)])[0].1.len(), 14 + 1400);
    }

    #[test]
    fn a_forwarded_ports_way_back_is_known_to_every_worker() {
        let mut benches: Vec<Bench> =
            mesh(2).into_iter().enumerate().map(|(index, ends)| Bench::at6(index, 2, ends)).collect();
        let owner = identity(2).owner_of_host6(INSIDE6);
        let other = (2..).map(|n| Ipv6Addr::from_bits(INSIDE6.to_bits() + n));
        let inside = other.into_iter().find(|host| identity(2).owner_of_host6(*host) != owner).unwrap();
        let bench = &mut benches[owner];
        bench.change_forwarding(|forwarding| {
            forwarding.interfaces[1].mtu = 1400;
            let mapping =
                StaticMapping { protocol: ip4::UDP, outside: (US6.into(), 80), inside: (inside.into(), 8080) };
            forwarding.gateway.as_mut().unwrap().mappings = vec![mapping];
        });
        bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
        let (interface, got) = out(bench, &udp6_packet((INSIDE6, 1000), (US6, 80), &[7; 1353]));
        assert_eq!((interface, got[40], read_u32(&got, 44)), (1, icmp6::PACKET_TOO_BIG, 1400));
    }

    #[test]
    fn an_error_from_inside_reaches_the_server_translated() {
        let mut bench = Bench::gateway6();
        bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
        bench.bind6(Translation::Nat64, ip4::UDP, 1000, 41_000);
        let about = |server| {
            let quoted = udp6_packet((server, 53), (INSIDE6, 1000), b"late answer");
            error6_packet(INSIDE6, server, icmp6::UNREACHABLE, icmp6::CODE_PORT, [0; 4], &quoted)
        };
        let (_, got) = out(&mut bench, &about(SERVER6));
        let header = ip6::parse(&got).unwrap();
        assert_eq!((header.source, header.destination), (US6, SERVER6));
        assert_eq!(nat6::quote(&got, &header).unwrap().destination, (US6, PORT6));
        let (_, got) = out(&mut bench, &about(name(SERVER)));
        let header = ip4::parse(&got).unwrap();
        assert_eq!((header.source, header.destination, got[20], got[21]), (US, SERVER, icmp::UNREACHABLE, 3));
        assert_eq!(nat::quote(&got[20..]).unwrap().destination, (US, 41_000));
        let unlike = error6_packet(
            INSIDE6,
            name(SERVER),
            icmp6::PARAMETER_PROBLEM,
            2,
            [0; 4],
            &udp6_packet((name(SERVER), 53), (INSIDE6, 1000), b"late answer"),
        );
        assert!(bench.run_at6(1, &[unlike]).is_empty());
        assert_eq!(bench.moved(), [("nat6_in2out.drop.no_equivalent".to_owned(), 1)]);
    }
}
