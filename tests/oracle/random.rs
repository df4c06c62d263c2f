//! Random cases from a seed: the same seed, the same packets.

use crate::{
    packet::{
        ACK, FIN,
        Host::{A, B, Gateway, R, S, T},
        Packet, Point, RST, SYN, mapped,
    },
    rig::Side::{Inside, Outside},
    script::Case,
};

/// Case number `number` of a seed.
pub(crate) fn case(seed: u64, number: u64) -> Case {
    let mut dice = Dice(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut case = Case::new(format!("random {seed}.{number}"));
    for _ in 0..4 + dice.below(8) {
        case = step(case, &mut dice);
    }
    case
}

/// Each inside port is one host's, and speaks to one server by one protocol: else Linux gives several of them one outside
/// port and starnet several, and what comes back to "the third mapping" is no longer the same question.
fn step(case: Case, dice: &mut Dice) -> Case {
    let (host, number) = ([A, B][dice.below(2)], 1 + dice.below(2) as u16);
    let server = if number == 1 { S } else { T };
    let first = if host == A { 0 } else { 10 };
    let [udp, tcp, ping] = [0, 2, 4].map(|place| host.own(first + place + number));
    let (dns, web) = (server.port(53), server.port(80));
    let mapping = mapped(dice.below(3));
    let payload = vec![dice.below(256) as u8; dice.below(40)];
    let numbers = (100 + dice.below(3) as u32, 900 + dice.below(3) as u32);
    let flags = [SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK][dice.below(8)];
    match dice.below(12) {
        0..=2 => case.inside(Packet::udp(udp, dns, &payload)),
        3..=4 => case.outside(Packet::udp(dns, mapping, &payload)),
        5 => case.inside(Packet::tcp(tcp, web, flags, numbers, &payload)),
        6 => case.outside(Packet::tcp(web, mapping, flags, (numbers.1, numbers.0), &payload)),
        7 => case.inside(Packet::ping(ping, server, &payload)),
        8 => case.outside(Packet::pong(server, mapping, &payload)),
        9 => case.outside(Packet::error(R, Gateway, error(dice), quote(mapping, dns, web, dice), 8 + dice.below(30))),
        10 => case.in_fragments(Inside, Packet::udp(udp, dns, &[payload, vec![1; 900]].concat()), 400, order(dice)),
        _ => case.in_fragments(Outside, Packet::udp(dns, mapping, &[payload, vec![1; 900]].concat()), 400, order(dice)),
    }
}

fn error(dice: &mut Dice) -> (u8, u8) {
    [(3, 0), (3, 1), (3, 3), (11, 0), (3, 13), (12, 0)][dice.below(6)]
}

/// A packet of a mapping as it was sent, or might have been.
fn quote(mapping: Point, dns: Point, web: Point, dice: &mut Dice) -> Packet {
    match dice.below(3) {
        0 => Packet::udp(mapping, dns, b"quoted"),
        1 => Packet::tcp(mapping, web, SYN, (100, 0), b""),
        _ => Packet::ping(mapping, dns.host, b"quoted"),
    }
}

fn order(dice: &mut Dice) -> &'static [usize] {
    [&[0, 1, 2][..], &[2, 1, 0], &[1, 0, 2], &[0, 2, 1]][dice.below(4)]
}

/// xorshift64* (Vigna 2016): small, seeded, good enough to choose.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound as u64) as usize
    }
}
