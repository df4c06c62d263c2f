//! A case: packets one after the other, each with what it makes a gateway send, in words.

use std::{
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    packet::{self, Host, Names, Packet},
    rig::{Rig, Side},
};

/// Own ports of one run of a case.
const PORTS: u16 = 100;

/// One packet put on the wire, whole or in fragments.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    side: Side,
    packet: Packet,
    /// Size of the fragments, and the order in which they are sent.
    fragments: Option<Fragments>,
}

#[derive(Clone, Debug)]
struct Fragments {
    size: usize,
    order: Vec<usize>,
    /// The one that begins too early.
    overlapping: Option<usize>,
}

/// Packets that belong together, under a name.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

impl Case {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), steps: Vec::new() }
    }

    /// A packet from a host inside.
    pub(crate) fn inside(self, packet: Packet) -> Self {
        self.step(Side::Inside, packet, None)
    }

    /// A packet from a host outside.
    pub(crate) fn outside(self, packet: Packet) -> Self {
        self.step(Side::Outside, packet, None)
    }

    /// A packet in fragments of at most `size` bytes, sent in this order (a number may be left out, or come twice).
    pub(crate) fn in_fragments(self, side: Side, packet: Packet, size: usize, order: &[usize]) -> Self {
        let packet = packet.with(|packet| packet.is_dont_fragment = false);
        self.step(side, packet, Some(Fragments { size, order: order.to_vec(), overlapping: None }))
    }

    /// In fragments of which one overlaps with the one before it.
    pub(crate) fn in_overlapping_fragments(self, side: Side, packet: Packet, size: usize, overlapping: usize) -> Self {
        let packet = packet.with(|packet| packet.is_dont_fragment = false);
        self.step(side, packet, Some(Fragments { size, order: vec![0, 1, 2], overlapping: Some(overlapping) }))
    }

    fn step(mut self, side: Side, packet: Packet, fragments: Option<Fragments>) -> Self {
        self.steps.push(Step { side, packet, fragments });
        self
    }

    /// Plays the case; a line a step and what came of it. `quiet`: how long silence must last to count as an end.
    pub(crate) fn play(&self, rig: &Rig, quiet: Duration) -> Vec<String> {
        static NEXT: AtomicU16 = AtomicU16::new(10_000);
        static IDENTIFIER: AtomicU16 = AtomicU16::new(1);
        let base = NEXT
            .fetch_update(Relaxed, Relaxed, |base| Some(if base > 30_000 { 10_000 } else { base + PORTS }))
            .unwrap();
        let mut names = Names { base, mappings: Vec::new() };
        let mut told = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            // Fragments of two packets must not meet in one.
            let packet = step.packet.clone().with(|packet| packet.id = IDENTIFIER.fetch_add(1, Relaxed));
            let Some(bytes) = packet.bytes(&names) else {
                told.push(format!("{number}: cannot be sent, its mapping was not made"));
                continue;
            };
            match &step.fragments {
                None => rig.send(step.side, &bytes),
                Some(Fragments { size, order, overlapping }) => {
                    let parts = packet::fragments(&bytes, *size);
                    for part in order {
                        let is_overlapping = *overlapping == Some(*part);
                        let fragment =
                            if is_overlapping { packet::overlapping(&parts, *part) } else { parts[*part].clone() };
                        rig.send(step.side, &fragment);
                    }
                }
            }
            let came = settle(rig, quiet);
            let mut lines = Vec::new();
            for side in [Side::Inside, Side::Outside] {
                let packets = came.iter().filter(|(at, _)| *at == side).map(|(_, packet)| packet.clone()).collect();
                lines.extend(
                    packet::reassemble(packets)
                        .iter()
                        .map(|packet| format!("{number}: {side:?} gets {}", names.describe(packet))),
                );
            }
            if lines.is_empty() {
                lines.push(format!("{number}: nothing"));
            }
            told.extend(lines);
        }
        told
    }
}

/// All that comes of what was sent before.
pub(crate) fn settle(rig: &Rig, quiet: Duration) -> Vec<(Side, Vec<u8>)> {
    let mut came = until_marker(rig, quiet);
    if rig.is_t_exempt() {
        // The marker has overtaken what waits for a mapping. That the workers have asked for it is sure now; the control
        // core looks at their rings before it takes a question, so it has answered them once it takes a second one; and a
        // worker has its answer when a first packet that comes after it has left.
        for _ in 0..2 {
            rig.ask("show nat summary");
        }
        for _ in 0..2 {
            came.extend(until_marker(rig, quiet));
        }
    }
    came
}

/// What comes out, until a packet that every gateway lets through has passed and it is quiet.
fn until_marker(rig: &Rig, quiet: Duration) -> Vec<(Side, Vec<u8>)> {
    const PATIENCE: u32 = 500;
    /// A marker may be lost as any packet may; so many times it is quiet before there is another.
    const LOST: u32 = 100;
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let names = Names { base: 0, mappings: Vec::new() };
    let is_marker = |packet: &[u8]| packet.ends_with(b"marker") && packet[9] == 17;
    let mut came = Vec::new();
    for turn in 0..PATIENCE {
        if turn % LOST == 0 {
            // Of a new flow each time, so that no packet of the case which waits for its mapping comes after it.
            let source = Host::B.port(32_768 + NEXT.fetch_add(1, Relaxed) % 32_768);
            let marker = Packet::udp(source, Host::T.port(9), b"marker").bytes(&names).unwrap();
            rig.send(Side::Inside, &marker);
        }
        came.extend(rig.receive(quiet).into_iter().filter(|(side, packet)| !is_late_answer(*side, packet)));
        let before = came.len();
        came.retain(|(_, packet)| !is_marker(packet));
        if came.len() < before {
            return came;
        }
    }
    panic!("the gateway does not let the marker through; {}", rig.story());
}

/// "Port unreachable" about a SYN from outside: RFC 5382 REQ-4 has it come six seconds after the SYN, in the midst of
/// another case. (When it comes is for the requirement's own test.)
fn is_late_answer(side: Side, packet: &[u8]) -> bool {
    let quoted = packet.get(28..).filter(|quoted| quoted.len() >= 20);
    side == Side::Outside && packet[9] == 1 && packet[20..22] == [3, 3] && quoted.is_some_and(|quoted| quoted[9] == 6)
}
