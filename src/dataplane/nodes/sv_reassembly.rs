//! Shallow virtual reassembly: gives all fragments of a packet the ports that only the first one has.
//!
//! Path: ip4_input | ip6_input | gateway_input | gateway6_input | exit_up | handoff -> here -> nat_in2out | nat_out2in, or
//! their like of IPv6 | handoff | held | drop.
//! Reads: l3, slot, from_inside, fragment. Writes: l4, protocol, length, fragment, ports, generation.
//!
//! The fragments of a packet from inside are all at the worker that owns their host or session. Those of a packet from
//! outside meet at a worker that is chosen by what they have in common, since only the first one tells who owns its
//! binding; from there the NAT hands them on to the owner as it does with whole packets.

use std::net::IpAddr;

use super::{super::packet::Bitmap, ip4_input, ip6_input, prelude::*};
use crate::{
    dataplane::{
        address::Address,
        nat::rewrite::{self as nat, Side},
        packet::{Fragment, Packet},
        published::add,
        reassembly::{Fate, Key, Part, Ports},
    },
    wire::{icmp, ip4, ip6, read_u16, read_u32, tcp, udp},
};

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node {
    id: NodeId::SvReassembly,
    name: "sv_reassembly",
    next: &[NodeId::NatIn2out, NodeId::Nat6In2out, NodeId::NatOut2in, NodeId::Nat6Out2in, NodeId::Handoff],
    process: sv_reassembly,
};

fn sv_reassembly(context: &mut Context, frames: &mut Frames, batch: Bitmap) {
    for slot in batch {
        match decide(context, frames, slot) {
            Some(verdict) => context.leave(slot, NodeId::SvReassembly, verdict),
            None => {
                add(&context.published.worker.held, 1);
                context.finish_without_frame(slot);
            }
        }
    }
}

/// What becomes of a fragment; `None`: it is held.
fn decide(context: &mut Context, frames: &mut Frames, slot: usize) -> Option<Verdict> {
    let is_ip6 = context.packets[slot].ip(frames).first().is_some_and(|first| first >> 4 == 6);
    let next = nat_of(&context.packets[slot], is_ip6);
    let generation = generation_of(context, &context.packets[slot]);
    if context.packets[slot].fragment != Fragment::No {
        // It was held, and its first one has come; meanwhile its slot may have become another session's.
        let is_stale = context.packets[slot].generation != generation;
        return Some(if is_stale { Verdict::Drop(Reason::StaleGeneration) } else { Verdict::Next(next) });
    }
    context.packets[slot].generation = generation;
    let read = if is_ip6 { read6 } else { read4 };
    let (key, part) = match read(&mut context.packets[slot], frames, next) {
        Ok(read) => read,
        Err(reason) => return Some(Verdict::Drop(reason)),
    };
    let mut packet = context.packets[slot];
    let meeting = meeting_worker(&key, usize::from(context.identity.workers));
    if matches!(next, NodeId::NatOut2in | NodeId::Nat6Out2in) && meeting != context.index {
        return Some(context.hand_off(slot, meeting, NodeId::SvReassembly));
    }
    let ports = match part.start {
        0 => match ports_of(packet.transport(frames), key.protocol) {
            Ok(ports) => Some(ports),
            Err(reason) => return Some(Verdict::Drop(reason)),
        },
        _ if matches!((key.protocol, is_ip6), (ip4::TCP | ip4::UDP, _) | (ip4::ICMP, false) | (ip6::ICMP, true)) => {
            None
        }
        _ => return Some(Verdict::Drop(Reason::UnknownProtocol)),
    };
    packet.fragment = if ports.is_some() { Fragment::First } else { Fragment::Later };
    match context.reassembly.take(context.now, &key, part, ports, &Packet { has_waited: true, ..packet }) {
        Fate::Go(ports) => {
            context.packets[slot] = Packet { ports, ..packet };
            Some(Verdict::Next(next))
        }
        Fate::Held => None,
        Fate::Refused(reason) => Some(Verdict::Drop(reason)),
    }
}

/// Which way it is to be translated.
fn nat_of(packet: &Packet, is_ip6: bool) -> NodeId {
    let is_from_inside = packet.from_inside || packet.slot == Packet::NO_SLOT;
    match (is_from_inside, is_ip6) {
        (true, false) => NodeId::NatIn2out,
        (true, true) => NodeId::Nat6In2out,
        (false, false) => NodeId::NatOut2in,
        (false, true) => NodeId::Nat6Out2in,
    }
}

/// Which use of its slot a packet belongs to; zero for one of the gateway, or from outside.
fn generation_of(context: &Context, packet: &Packet) -> u16 {
    match packet.from_inside && packet.slot != Packet::NO_SLOT {
        true => context.slots[packet.slot as usize].generation,
        false => 0,
    }
}

/// Which packet it is of, and which part; `node` will translate it.
fn read4(packet: &mut Packet, frames: &mut Frames, node: NodeId) -> Result<(Key, Part), Reason> {
    let header = ip4_input::check(packet, frames)?;
    let part = Part::of(&header).ok_or(Reason::BadLength)?;
    let identification = read_u16(packet.ip(frames), ip4::IDENTIFICATION).into();
    let (source, destination) = (header.source.into(), header.destination.into());
    let Packet { slot, generation, .. } = *packet;
    Ok((Key { source, destination, identification, protocol: header.protocol, node, slot, generation }, part))
}

/// The same of IPv6.
fn read6(packet: &mut Packet, frames: &mut Frames, node: NodeId) -> Result<(Key, Part), Reason> {
    let header = ip6_input::check(packet, frames)?;
    let part = Part::of6(&header).ok_or(Reason::BadLength)?;
    let identification = read_u32(packet.ip(frames), header.fragment_at + 4);
    let (source, destination) = (header.source.into(), header.destination.into());
    let Packet { slot, generation, .. } = *packet;
    Ok((Key { source, destination, identification, protocol: header.protocol, node, slot, generation }, part))
}

/// Where the fragments of a packet from outside meet. Anyone may choose it: all workers do the same for it.
fn meeting_worker(key: &Key, workers: usize) -> usize {
    let source = match key.source {
        IpAddr::V4(source) => source.to_bits(),
        IpAddr::V6(source) => source.spread(),
    };
    let common = source ^ key.identification << 8 ^ u32::from(key.protocol);
    (common.wrapping_mul(0x9e37_79b1) >> 16) as usize % workers
}

/// The ports of a packet whose first fragment has this much of its transport header: all of it, or it is dropped (RFC
/// 1858, the tiny fragment attack).
fn ports_of(transport: &[u8], protocol: u8) -> Result<Ports, Reason> {
    let is_there = match protocol {
        ip4::UDP => transport.len() >= udp::HEADER_BYTES,
        ip4::TCP => tcp::checked_header_length(transport).is_some(),
        ip4::ICMP | ip6::ICMP => transport.len() >= icmp::HEADER_BYTES,
        _ => return Err(Reason::UnknownProtocol),
    };
    if !is_there {
        return Err(Reason::TooShort);
    }
    let port = |side| nat::port(transport, protocol, side);
    // An ICMP error quotes no more than fits one packet.
    port(Side::Source).zip(port(Side::Destination)).ok_or(Reason::Fragment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        SECOND,
        dataplane::{
            command::Command,
            conntrack::{Link, NO_BINDING, Role},
            handoff::mesh,
            nat::{BindingInit, Filtering, Mapping, Owner},
            testing::*,
        },
        limits::TICK,
        wire::{checksum, write},
    };

    /// A packet's fragments of at most `size` bytes of payload.
    fn fragments(whole: &[u8], size: usize) -> Vec<Vec<u8>> {
        let payload = &whole[20..];
        (0..payload.len())
            .step_by(size)
            .map(|start| {
                let end = payload.len().min(start + size);
                let mut part = [&whole[..20], &payload[start..end]].concat();
                let more = if end < payload.len() { ip4::MORE_FRAGMENTS } else { 0 };
                let length = part.len() as u16;
                write(&mut part, ip4::TOTAL_LENGTH, &length.to_be_bytes());
                write(&mut part, ip4::IDENTIFICATION, &77u16.to_be_bytes());
                write(&mut part, ip4::FRAGMENT, &(more | (start / 8) as u16).to_be_bytes());
                write(&mut part, ip4::CHECKSUM, &[0, 0]);
                let field = checksum::of(&part[..20]);
                write(&mut part, ip4::CHECKSUM, &field.to_be_bytes());
                part
            })
            .collect()
    }

    /// The packet that fragments were cut from, however they come.
    fn whole(mut fragments: Vec<Vec<u8>>) -> Vec<u8> {
        fragments.sort_by_key(|part| read_u16(part, ip4::FRAGMENT) & ip4::OFFSET_MASK);
        let mut whole = fragments[0].clone();
        for part in &fragments[1..] {
            assert_eq!(usize::from(read_u16(part, ip4::FRAGMENT) & ip4::OFFSET_MASK) * 8, whole.len() - 20);
            assert!(checksum::is_valid(&part[..20]));
            whole.extend_from_slice(&part[20..]);
        }
        let length = whole.len() as u16;
        write(&mut whole, ip4::TOTAL_LENGTH, &length.to_be_bytes());
        write(&mut whole, ip4::IDENTIFICATION, &[0, 0]);
        write(&mut whole, ip4::FRAGMENT, &[0, 0]);
        write(&mut whole, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&whole[..20]);
        write(&mut whole, ip4::CHECKSUM, &field.to_be_bytes());
        whole
    }

    fn gateway() -> Bench {
        let mut bench = Bench::new();
        bench.gateway();
        bench.bind_for(Owner::INSIDE, ip4::UDP, 1000, 41_000, None);
        bench
    }

    fn ips(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        frames.into_iter().map(|frame| frame[14..].to_vec()).collect()
    }

    fn with_identification(mut ip: Vec<u8>) -> Vec<u8> {
        write(&mut ip, ip4::IDENTIFICATION, &[0, 0]);
        write(&mut ip, ip4::FRAGMENT, &[0, 0]);
        write(&mut ip, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&ip[..20]);
        write(&mut ip, ip4::CHECKSUM, &field.to_be_bytes());
        ip
    }

    #[test]
    fn from_outside_in_any_order_each_fragment_is_translated_and_nothing_is_lost() {
        let payload: Vec<u8> = (0..100).collect();
        let sent = udp_packet((SERVER, 53), (US, 41_000), &payload);
        let mut expected = udp_packet((SERVER, 53), (INSIDE, 1000), &payload);
        ip4::decrement_ttl(&mut expected);
        let parts = fragments(&sent, 40);
        assert_eq!(parts.len(), 3);
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            let mut bench = gateway();
            let mut out = Vec::new();
            for at in order {
                out.extend(bench.run_at(0, &[parts[at].clone()]));
                assert_eq!(bench.moved(), []);
                out.extend(bench.sweep().into_iter().map(|frame| (1, frame)));
            }
            assert!(out.iter().all(|(interface, _)| *interface == 1));
            let out = out.into_iter().map(|(_, frame)| frame).collect();
            assert_eq!(whole(ips(out)), with_identification(expected.clone()), "{order:?}");
            assert_eq!(bench.worker.context().reassembly.used(), 0);
        }
    }

    #[test]
    fn from_a_client_of_the_overlay_fragments_are_translated_and_a_new_flow_is_asked_for_once_each() {
        let mut bench = Bench::new();
        bench.exit(1, NO_BINDING);
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let payload = [9; 100];
        let parts = fragments(&udp_packet((INSIDE, 1000), (SERVER, 53), &payload), 48);
        let frames: Vec<_> = parts
            .iter()
            .rev()
            .enumerate()
            .map(|(n, part)| Relayed::up(3, n as u64 + 1, part.clone()).frame())
            .collect();
        let mut out = bench.run(&frames);
        assert_eq!(bench.moved(), []);
        out.extend(bench.sweep());
        let mut expected = udp_packet((US, 41_000), (SERVER, 53), &payload);
        ip4::decrement_ttl(&mut expected);
        assert_eq!(whole(ips(out)), with_identification(expected));
    }

    /// Slot 3 becomes another session's, whose client has the same address, between two sweeps.
    fn reuse_slot(bench: &mut Bench) {
        let binding = Command::FreeBinding { index: 4, idle_since: None };
        let slot = Command::FreeSlot { slot: 3, generation: GENERATION, idle_since: None };
        bench.commands.push(binding).unwrap();
        bench.commands.push(slot).unwrap();
        let (role, fan, up, down) = (Role::Exit, 1, Link::NONE, Link::NONE);
        bench.commands.push(Command::SetSlot { slot: 3, generation: GENERATION + 1, role, fan, up, down }).unwrap();
        let binding = BindingInit {
            owner: Owner::session(3),
            protocol: ip4::UDP,
            inside_address: INSIDE,
            inside_port: 1000,
            outside_address: US,
            outside_port: 42_000,
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
        };
        bench.commands.push(Command::SetBinding { index: 4, binding }).unwrap();
    }

    /// Two fragments of one packet of INSIDE, relayed in this use of slot 3.
    fn halves(sequence: u64, generation: u16, filling: u8) -> [Vec<u8>; 2] {
        let parts = fragments(&udp_packet((INSIDE, 1000), (SERVER, 53), &[filling; 80]), 48);
        let part = |n: usize| Relayed { generation, ..Relayed::up(3, sequence + n as u64, parts[n].clone()) }.frame();
        [part(0), part(1)]
    }

    #[test]
    fn no_fragment_of_a_session_is_put_to_those_of_the_next_one_in_its_slot() {
        for held in [0, 1] {
            let mut bench = Bench::new();
            bench.exit(1, NO_BINDING);
            bench.bind(ip4::UDP, 1000, 41_000, None);
            let old = halves(1, GENERATION, 0xaa);
            let new = halves(11, GENERATION + 1, 0xbb);
            bench.run(&[old[held].clone()]);
            reuse_slot(&mut bench);
            // What the last session left has the same addresses, protocol and identification.
            let mut out = bench.run(&[new[1 - held].clone()]);
            assert_eq!(bench.moved(), []);
            out.extend(bench.sweep());
            out.extend(bench.run(&[new[held].clone()]));
            assert_eq!(bench.moved(), []);
            out.extend(bench.sweep());
            assert_eq!(out.len(), 2, "the second session's alone");
            assert!(out.iter().all(|frame| !frame.contains(&0xaa)));
        }
    }

    #[test]
    fn a_held_fragment_whose_slot_becomes_anothers_before_it_goes_on_is_dropped() {
        let mut bench = Bench::new();
        bench.exit(1, NO_BINDING);
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let [first, second] = halves(1, GENERATION, 0xaa);
        assert!(bench.run(&[second]).is_empty());
        assert_eq!(bench.run(&[first]).len(), 1);
        reuse_slot(&mut bench);
        assert!(bench.run(&[]).is_empty());
        assert_eq!(bench.moved(), [("sv_reassembly.drop.stale_generation".to_owned(), 1)]);
    }

    #[test]
    fn what_cannot_be_a_fragment_of_ours_has_its_reason() {
        let mut bench = gateway();
        let mut drop = |ip: Vec<u8>, counter: &str| {
            let out = bench.run_at(0, &[ip]);
            assert_eq!((out.len(), bench.moved()), (0, vec![(format!("sv_reassembly.drop.{counter}"), 1)]));
        };
        let tcp = tcp_packet((SERVER, 80), (US, 41_000), tcp::ACK, &[]);
        drop(fragments(&tcp, 8).remove(0), "too_short");
        drop(fragments(&packet(SERVER, US, 47, &[0; 24]), 8).remove(1), "unknown_protocol");
        let error = icmp_packet(ROUTER, US, icmp::UNREACHABLE, 1, &[0; 60]);
        drop(fragments(&error, 32).remove(0), "fragment");
        let udp = fragments(&udp_packet((SERVER, 53), (US, 41_000), &[0; 40]), 16);
        bench.run_at(0, &[udp[0].clone()]);
        let mut drop = |ip: Vec<u8>, counter: &str| {
            let out = bench.run_at(0, &[ip]);
            assert_eq!((out.len(), bench.moved()), (0, vec![(format!("sv_reassembly.drop.{counter}"), 1)]));
        };
        drop(udp[0].clone(), "fragment_overlap");
    }

    #[test]
    fn what_waits_in_vain_is_dropped_after_two_seconds() {
        let mut bench = gateway();
        let parts = fragments(&udp_packet((SERVER, 53), (US, 41_000), &[0; 40]), 16);
        assert!(bench.run_at(0, &[parts[1].clone()]).is_empty());
        assert_eq!(bench.moved(), []);
        bench.now += 2 * SECOND + TICK;
        bench.sweep();
        bench.now += TICK;
        bench.sweep();
        assert_eq!(bench.moved(), [("sv_reassembly.drop.fragment_timeout".to_owned(), 1)]);
    }

    #[test]
    fn with_two_workers_the_fragments_of_a_packet_meet_at_one() {
        let parts = fragments(&udp_packet((SERVER, 53), (US, 41_000), &[0; 40]), 16);
        let mut rings = mesh(2);
        let second = rings.pop().unwrap();
        let mut benches = [Bench::at(0, 2, rings.pop().unwrap()), Bench::at(1, 2, second)];
        let mut ways = Vec::new();
        for bench in &mut benches {
            for part in &parts {
                ways.push(bench.way(frame(part)).contains(&"sv_reassembly > handoff".to_owned()));
            }
        }
        let count = parts.len();
        assert!(ways[..count].iter().all(|is_handed| *is_handed == ways[0]), "{ways:?}");
        assert!(ways[count..].iter().all(|is_handed| *is_handed != ways[0]), "{ways:?}");
    }
}
