//! The XDP program of `bpf/starnet.bpf.c`: loading it, and its counters.
//!
//! Each interface has an instance of its own, so each has its own socket map and counters.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{MapError, PerCpuArray, XskMap},
    programs::Xdp,
};

use super::{
    error::{Error, io_error, is_privilege},
    transit::TransitRules,
};
use crate::dataplane::gateway::{OutsideAddress, Realm, Transit};

/// Name of the program in the kernel; a program of this name on an interface is ours.
pub(super) const NAME: &str = "starnet_xdp";

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/starnet.bpf.o"));

/// What the kernel sends to the AF_XDP sockets instead of handling it itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The node translates IPv6, from addresses of its own or to IPv4.
    pub takes_ip6: bool,
    /// The node translates: fragments without ports may be its.
    pub takes_fragments: bool,
    /// The part that may change while the program runs.
    pub transit: Transit,
}

impl Reserved {
    /// These ports at these addresses and nothing else.
    pub fn new(addresses: &[Ipv4Addr], ports: RangeInclusive<u16>) -> Self {
        let (first, last) = ports.into_inner();
        let addresses = addresses.iter().map(|&address| OutsideAddress { address, first, last }).collect();
        Self { takes_ip6: false, takes_fragments: false, transit: Transit { addresses, ..Transit::default() } }
    }
}

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the NIC's driver, before a socket buffer is made.
    Native,
    /// In the network stack, on a finished socket buffer ("SKB mode"): works everywhere, costs more.
    Generic,
}

impl std::fmt::Display for AttachMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

// The order is that of `enum verdict` in bpf/starnet.bpf.c; the tests below compare every one.
crate::telemetry::named::counters! {
    /// What the XDP program did with a packet; each verdict has a counter.
    pub enum Verdict;
    XskUdp "xsk_udp" "To the socket: UDP to a reserved port."
    XskTcp "xsk_tcp" "To the socket: TCP to a reserved port."
    XskIcmpQuery "xsk_icmp_query" "To the socket: an ICMP echo reply with a reserved identifier."
    XskIcmpError "xsk_icmp_error" "To the socket: an ICMP error that quotes a packet of ours."
    XskFragment "xsk_fragment" "To the socket: a fragment without the transport header, of what may be ours."
    XskRouted "xsk_routed" "To the socket: what an inside host wants routed on."
    XskExempt "xsk_exempt" "To the socket: from a network that is exempt from translation, to be routed on."
    PassNotIpv4 "pass_not_ipv4" "To the kernel: not IPv4 (ARP, a VLAN tag), nor IPv6 where that is translated."
    PassMalformed "pass_malformed" "To the kernel: cut short, or a length that cannot be."
    PassAddress "pass_address" "To the kernel: the destination is none of our addresses."
    PassFragment "pass_fragment" "To the kernel: a fragment without the transport header, not ours."
    PassProtocol "pass_protocol" "To the kernel: neither UDP, TCP nor ICMP."
    PassPort "pass_port" "To the kernel: the destination port is not reserved."
    PassIcmpType "pass_icmp_type" "To the kernel: an ICMP message that is neither echo reply nor error."
    PassIcmpIdentifier "pass_icmp_identifier" "To the kernel: an echo reply whose identifier is not reserved."
    PassIcmpQuote "pass_icmp_quote" "To the kernel: an ICMP error about a packet that is not ours."
    PassLocal "pass_local" "To the kernel: an inside host speaks to this machine itself."
    PassNotUnicast "pass_not_unicast" "To the kernel: broadcast or multicast."
}

/// Packets of one interface by [`Verdict`].
pub type Verdicts = [u64; Verdict::COUNT];

/// A loaded instance, not attached to anything yet.
#[derive(Debug)]
pub(super) struct Program {
    ebpf: Ebpf,
    /// Until it is taken out, to be changed elsewhere.
    pub(super) rules: Option<TransitRules>,
}

impl Program {
    /// Has the kernel verify and take the program, for an interface on this side of the gateway.
    pub(super) fn load(reserved: &Reserved, realm: Realm) -> Result<Self, Error> {
        let realm = match realm {
            Realm::Neither => 0_u8,
            Realm::Inside => 1,
            Realm::Outside => 2,
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("realm", &realm, true)
            .override_global("takes_ip6", &u8::from(reserved.takes_ip6), true)
            .override_global("takes_fragments", &u8::from(reserved.takes_fragments), true)
            .load(OBJECT)
            .map_err(|error| load_error(&error))?;
        let mut rules = TransitRules::new(&mut ebpf).map_err(|error| load_error(&error))?;
        rules.set(&reserved.transit).map_err(|error| load_error(&error))?;
        let mut program = Self { ebpf, rules: Some(rules) };
        program.xdp().load().map_err(|error| load_error(&error))?;
        Ok(program)
    }

    /// The program itself.
    pub(super) fn xdp(&mut self) -> &mut Xdp {
        let program = self.ebpf.program_mut(NAME).expect("the object has this program");
        program.try_into().expect("it is an XDP program")
    }

    /// Queues the socket map has room for.
    pub(super) fn queues_max(&mut self) -> u32 {
        XskMap::try_from(self.ebpf.map("sockets").expect("the program has this map")).map_or(0, |sockets| sockets.len())
    }

    /// Sends what is ours on `queue` to this socket from now on. The kernel takes it out when the socket is closed.
    pub(super) fn set_socket(&mut self, queue: u32, socket: std::os::fd::RawFd) -> Result<(), MapError> {
        let map = self.ebpf.map_mut("sockets").expect("the program has this map");
        XskMap::try_from(map)?.set(queue, socket, 0)
    }

    /// The counters, summed over all CPUs.
    pub(super) fn verdicts(&self) -> Result<Verdicts, MapError> {
        let map = self.ebpf.map("verdicts").expect("the program has this map");
        let counters: PerCpuArray<_, u64> = map.try_into()?;
        let mut sums = Verdicts::default();
        for (number, sum) in sums.iter_mut().enumerate() {
            *sum = counters.get(&(number as u32), 0)?.iter().sum();
        }
        Ok(sums)
    }
}

fn load_error(error: &(dyn std::error::Error + 'static)) -> Error {
    let io = io_error(error);
    if is_privilege(&io) {
        Error::Privilege { what: "loading the XDP program".into() }
    } else {
        Error::Load { why: format!("{error} ({io})") }
    }
}

/// Our program under another name of the same length, as if it were someone else's.
#[cfg(test)]
pub(super) fn load_as(name: &[u8; NAME.len()]) -> Ebpf {
    let mut object = OBJECT.to_vec();
    for at in 0..object.len() - name.len() {
        if &object[at..at + name.len()] == NAME.as_bytes() {
            object[at..at + name.len()].copy_from_slice(name);
        }
    }
    EbpfLoader::new().load(&object).unwrap()
}

#[cfg(test)]
mod tests;
