//! A NIC's table of rules (ntuple filters), read and written as `ethtool -N` does: by the ethtool ioctl, the only way there is.

use std::net::Ipv4Addr;

use super::ethtool_ioctl::{RXNFC_WORDS, TCP4, UDP4, ask};
use crate::{
    dataplane::port_rules::{Bits, Rule},
    wire::ip4,
};

/// `ETHTOOL_GFLAGS`, and of the flags `ETH_FLAG_NTUPLE`.
const GET_FLAGS: u32 = 0x25;
const NTUPLE: u32 = 1 << 27;

/// `ETHTOOL_GRXCLSRLCNT`, `GRXCLSRULE`, `GRXCLSRLALL`, `SRXCLSRLDEL`, `SRXCLSRLINS`.
const COUNT: u32 = 0x2e;
const GET: u32 = 0x2f;
const GET_ALL: u32 = 0x30;
const DELETE: u32 = 0x31;
const INSERT: u32 = 0x32;

/// `RX_CLS_LOC_SPECIAL`: the driver can choose locations; `RX_CLS_LOC_ANY`: it is to.
const CHOOSES_LOCATION: u32 = 0x8000_0000;
const ANY_LOCATION: u32 = 0xffff_ffff;

/// Words of `struct ethtool_rxnfc`: `data`, then in `fs` the kind of packet, its fields, their masks, queue and place,
/// then the number of rules and their places.
const DATA: usize = 2;
const FLOW: usize = 4;
const FIELDS: usize = 5;
const MASKS: usize = 23;
const QUEUE: usize = 42;
const LOCATION: usize = 44;
const RULE_COUNT: usize = 46;
const LOCATIONS: usize = 47;

/// Words of the fields of a packet: those of its kind, then (`FLOW_EXT`) VLAN and others.
const FIELD_WORDS: usize = 18;
const EXT: usize = 13;
const FLOW_EXT: u32 = 0x8000_0000;

/// More rules than any NIC has are no table.
const RULES_MAX: u32 = 1 << 16;

type Request = [u32; RXNFC_WORDS];

/// A NIC's table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Table {
    /// How many places it has. `None`: the driver chooses one.
    pub(super) places: Option<u32>,
    /// Which are taken, and the rules there that could be ours by what they are about.
    pub(super) rules: Vec<(u32, Option<Rule>)>,
}

/// What a NIC has of rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum RuleSupport {
    None,
    Off,
    On,
}

/// That of the interface called `name`.
pub fn rule_support(name: &str) -> RuleSupport {
    match (count(name), OfKernel.is_on(name)) {
        (Err(_), _) => RuleSupport::None,
        (Ok(_), false) => RuleSupport::Off,
        (Ok(_), true) => RuleSupport::On,
    }
}

/// The tables of all NICs.
pub(super) trait Tables: Send {
    /// True where the NIC has rules and they are switched on (`ethtool -K DEVICE ntuple on`).
    fn is_on(&mut self, name: &str) -> bool;
    /// How many rules there are.
    fn count(&mut self, name: &str) -> nix::Result<u32>;
    /// All of them.
    fn read(&mut self, name: &str) -> nix::Result<Table>;
    /// Adds one, at a place of the table, or where the driver likes.
    fn insert(&mut self, name: &str, place: Option<u32>, rule: &Rule) -> nix::Result<()>;
    /// Takes one away.
    fn delete(&mut self, name: &str, place: u32) -> nix::Result<()>;
}

/// Those of this network namespace.
pub(super) struct OfKernel;

impl Tables for OfKernel {
    fn is_on(&mut self, name: &str) -> bool {
        let mut request = [GET_FLAGS, 0];
        ask(name, &mut request).is_ok() && request[1] & NTUPLE != 0
    }

    fn count(&mut self, name: &str) -> nix::Result<u32> {
        Ok(count(name)?[RULE_COUNT])
    }

    fn read(&mut self, name: &str) -> nix::Result<Table> {
        let counted = count(name)?;
        let rules = counted[RULE_COUNT].min(RULES_MAX);
        let mut all = vec![0; RXNFC_WORDS.max(LOCATIONS + rules as usize)];
        (all[0], all[RULE_COUNT]) = (GET_ALL, rules);
        ask(name, &mut all)?;
        let there = all[RULE_COUNT].min(rules) as usize;
        let mut table = Table { places: places(counted[DATA], all[DATA]), rules: Vec::new() };
        for place in &all[LOCATIONS..][..there] {
            let mut one = [0; RXNFC_WORDS];
            (one[0], one[LOCATION]) = (GET, *place);
            ask(name, &mut one)?;
            table.rules.push((*place, decode(&one)));
        }
        Ok(table)
    }

    fn insert(&mut self, name: &str, place: Option<u32>, rule: &Rule) -> nix::Result<()> {
        ask(name, &mut encode(rule, place))
    }

    fn delete(&mut self, name: &str, place: u32) -> nix::Result<()> {
        let mut request = [0; RXNFC_WORDS];
        (request[0], request[LOCATION]) = (DELETE, place);
        ask(name, &mut request)
    }
}

fn count(name: &str) -> nix::Result<Request> {
    let mut request = [0; RXNFC_WORDS];
    request[0] = COUNT;
    ask(name, &mut request)?;
    Ok(request)
}

/// The size of the table: said with the list of rules, unless with their number it was said that there are no places.
fn places(with_count: u32, with_list: u32) -> Option<u32> {
    (with_count & CHOOSES_LOCATION == 0).then_some(with_list)
}

/// `struct ethtool_tcpip4_spec` in words: addresses, both ports, type of service.
fn spec(destination: u32, source_port: u16, destination_port: u16) -> [u32; 3] {
    let [[a, b], [c, d]] = [source_port, destination_port].map(u16::to_be_bytes);
    [0, destination.to_be(), u32::from_ne_bytes([a, b, c, d])]
}

/// The request for a rule.
fn encode(rule: &Rule, place: Option<u32>) -> Request {
    let Rule { protocol, destination, source_port, destination_port, queue } = *rule;
    let mut request = [0; RXNFC_WORDS];
    request[0] = INSERT;
    request[FLOW] = if protocol == ip4::TCP { TCP4 } else { UDP4 };
    let fields = spec(destination.to_bits(), source_port.value, destination_port.value);
    request[FIELDS..][..3].copy_from_slice(&fields);
    request[MASKS..][..3].copy_from_slice(&spec(u32::MAX, source_port.mask, destination_port.mask));
    let [low, high] = words(queue.into());
    (request[QUEUE], request[QUEUE + 1]) = (low, high);
    request[LOCATION] = place.unwrap_or(ANY_LOCATION);
    request
}

/// The rule in an answer. `None`: it is about other things than a [`Rule`] is.
fn decode(answer: &Request) -> Option<Rule> {
    // Some drivers (ixgbe) say FLOW_EXT of every rule, also of those without a VLAN or other such fields.
    let protocol = match answer[FLOW] & !FLOW_EXT {
        TCP4 => ip4::TCP,
        UDP4 => ip4::UDP,
        _ => return None,
    };
    let (fields, masks) = (&answer[FIELDS..][..FIELD_WORDS], &answer[MASKS..][..FIELD_WORDS]);
    let is_plain = masks[0] == 0
        && masks[1] == u32::MAX
        && masks[3..].iter().all(|mask| *mask == 0)
        && fields[EXT..].iter().all(|field| *field == 0);
    let ports = |words: &[u32]| {
        let [a, b, c, d] = words[2].to_ne_bytes();
        [[a, b], [c, d]].map(u16::from_be_bytes)
    };
    let bits = |at: usize| Bits { value: ports(fields)[at] & ports(masks)[at], mask: ports(masks)[at] };
    let [low, high] = [answer[QUEUE], answer[QUEUE + 1]].map(u32::to_ne_bytes);
    let queue = u64::from_ne_bytes([low, high].concat().try_into().expect("eight bytes"));
    is_plain.then_some(Rule {
        protocol,
        destination: Ipv4Addr::from_bits(u32::from_be(fields[1])),
        source_port: bits(0),
        destination_port: bits(1),
        queue: u16::try_from(queue).ok()?,
    })
}

/// The words of a number of eight bytes, as they lie in memory.
fn words(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_ne_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    /// What ethtool 6.1 asks on a little-endian machine, but for its uninitialised words: of each half the first three words, queue, place.
    fn asked(flow: u32, fields: [u32; 3], masks: [u32; 3], queue: u32, place: u32) -> Request {
        let mut request = [0; RXNFC_WORDS];
        (request[0], request[4], request[42], request[44]) = (0x32, flow, queue, place);
        request[5..8].copy_from_slice(&fields);
        request[23..26].copy_from_slice(&masks);
        request
    }

    fn rule(protocol: u8, source_port: Bits, destination_port: Bits, queue: u16) -> Rule {
        Rule { protocol, destination: DESTINATION, source_port, destination_port, queue }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_rule_is_asked_for_as_ethtool_does() {
        let bits = |value, mask| Bits { value, mask };
        // flow-type tcp4 dst-ip 192.0.2.7 dst-port 4 m 0xfff9 action 2 loc 9
        let answers = rule(ip4::TCP, bits(0, 0), bits(4, 6), 2);
        let request = asked(1, [0, 0x0702_00c0, 0x0400_0000], [0, 0xffff_ffff, 0x0600_0000], 2, 9);
        assert_eq!((encode(&answers, Some(9)), decode(&request)), (request, Some(answers)));
        // flow-type udp4 dst-ip 192.0.2.7 src-port 2 m 0xfff9 dst-port 40000 action 1 loc 3
        let hop = rule(ip4::UDP, bits(2, 6), bits(40_000, 0xffff), 1);
        let request = asked(2, [0, 0x0702_00c0, 0x409c_0200], [0, 0xffff_ffff, 0xffff_0600], 1, 3);
        assert_eq!((encode(&hop, Some(3)), decode(&request)), (request, Some(hop)));
        assert_eq!(encode(&hop, None)[44], 0xffff_ffff);
    }

    #[test]
    fn rules_about_other_things_are_none_of_ours() {
        let ours = encode(&rule(ip4::UDP, Bits { value: 0, mask: 0 }, Bits { value: 2, mask: 6 }, 1), Some(0));
        let with = |word: usize, value| {
            let mut other = ours;
            other[word] = value;
            decode(&other)
        };
        assert!(decode(&ours).is_some());
        assert_eq!(with(FLOW, 5), None, "TCP over IPv6");
        assert_eq!(with(FLOW, UDP4 | FLOW_EXT), decode(&ours), "which says nothing");
        assert_eq!([with(FIELDS + 15, 1), with(MASKS + 15, 1)], [None; 2], "a VLAN");
        assert_eq!(with(FLOW, UDP4 | 0x2000_0000), None, "a table of RSS");
        assert_eq!(with(MASKS, 0xff), None, "a source address");
        assert_eq!(with(MASKS + 1, 0xff), None, "a network");
        assert_eq!(with(MASKS + 3, 1), None, "a type of service");
        assert_eq!(with(QUEUE, u32::MAX), None, "what is to be dropped");
    }

    #[test]
    fn the_table_has_places_unless_the_driver_chooses() {
        assert_eq!(places(0, 1024), Some(1024));
        assert_eq!(places(CHOOSES_LOCATION | 4, 1024), None);
    }

    #[test]
    fn an_interface_without_rules_has_none() {
        assert_eq!(rule_support("lo"), RuleSupport::None);
        assert_eq!((OfKernel.is_on("lo"), OfKernel.count("lo")), (false, Err(nix::errno::Errno::EOPNOTSUPP)));
        assert!(OfKernel.read("no such one").is_err());
    }
}
