//! What `starnet show nat` prints, a page at a time, and `starnet clear nat`.
//!
//! A node may have millions of bindings: what lists them is asked in pages ([`page`]). Workers are not asked, for what they
//! know alone they publish.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
};

use serde::{Deserialize, Serialize};

use super::{
    Control,
    hosts::Host,
    page::{self, Cursor, Page, ROWS_MAX},
    tables::{NatBinding, Tables},
};
use crate::{
    MILLISECOND, Nanos,
    dataplane::nat::{Class, Owner, PROTOCOLS, Translation, row, token},
    wire::ip4,
};

/// Bindings that one order frees: the worker's ring has room for them.
const CLEARED_AT_ONCE: usize = 1024;

/// What can be asked of the NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NatPart {
    /// Bindings, hosts and ports in use, per worker
    Summary,
    /// Bindings: whose, translated to what, in which state, for how long
    Flows,
    /// Inside hosts: their outside address, bindings, ports and blocks of ports
    Hosts,
    /// Ports of each outside address: leased, resting, free
    Ports,
}

/// Which bindings or hosts are meant; all conditions at once, and none means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct NatFilter {
    /// Of this inside host
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
    /// Of this protocol
    #[arg(long, value_name = "tcp|udp|icmp")]
    pub protocol: Option<NatProtocol>,
    /// With this inside or outside port (or ICMP identifier)
    #[arg(long)]
    pub port: Option<u16>,
    /// Seen by servers at this address
    #[arg(long, value_name = "ADDRESS")]
    pub outside: Option<IpAddr>,
    /// In this state: udp, icmp, opening, established, closing; of sessions: opening, open, ageing, closing
    #[arg(long)]
    pub state: Option<String>,
    /// Of this session of the overlay (its slot); `inside`: of no session, but of the gateway's hosts
    #[arg(long, value_name = "SLOT|inside")]
    pub owner: Option<String>,
}

/// A protocol that is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum NatProtocol {
    Icmp,
    Tcp,
    Udp,
}

/// A question about the NAT.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NatQuestion {
    /// What about.
    pub part: NatPart,
    /// Which ones.
    pub filter: NatFilter,
    /// From where on; none: from the start.
    pub after: Option<Cursor>,
    /// Rows at most.
    pub limit: usize,
}

/// How many of what there may be are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    /// In use.
    pub used: u64,
    /// There may be.
    pub of: u64,
}

/// A worker's NAT at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSummary {
    /// Its number.
    pub worker: usize,
    /// Bindings.
    pub bindings: InUse,
    /// Inside hosts (and sessions) that have any.
    pub hosts: u64,
    /// Ports or identifiers leased, all outside addresses together: ICMP, TCP, UDP.
    pub ports: [InUse; PROTOCOLS],
    /// Packets that wait for the control core.
    pub waiting: u64,
    /// First packets of flows: from the arrival to when the binding was there.
    pub first_packets: u64,
    /// Their median.
    pub first_packet_p50_ns: u64,
    /// 99 of 100 took no longer.
    pub first_packet_p99_ns: u64,
    /// The slowest.
    pub first_packet_max_ns: u64,
}

/// A binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// Its worker.
    pub worker: usize,
    /// Its place there.
    pub index: u32,
    /// TCP, UDP or ICMP.
    pub protocol: NatProtocol,
    /// `inside`, or the session's slot.
    pub owner: String,
    /// Who sends.
    pub inside: SocketAddr,
    /// As whom.
    pub outside: SocketAddr,
    /// To whom alone, where mapping is endpoint-dependent; not shown of IPv6.
    pub remote: Option<SocketAddr>,
    /// `udp`, `icmp`, `opening`, `established`, `closing`, or `static`.
    pub state: String,
    /// Since its last packet that keeps it alive, to one tick.
    pub idle_ms: u64,
    /// Until it is freed, where it ages.
    pub left_ms: Option<u64>,
    /// Packets, both ways, wrapping at 2^32.
    pub packets: u32,
    /// Bytes of IP packets.
    pub bytes: u64,
}

/// An inside host, or what a session's client has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// The worker that owns it.
    pub worker: usize,
    /// `inside`, or the session's slot.
    pub owner: String,
    /// Its address.
    pub host: IpAddr,
    /// As whom servers know it.
    pub outside: IpAddr,
    /// Bindings.
    pub bindings: u32,
    /// Ports or identifiers: ICMP, TCP, UDP.
    pub ports: [u32; PROTOCOLS],
    /// Blocks of ports that are its alone: protocol, first and last port.
    pub blocks: Vec<(NatProtocol, u16, u16)>,
}

/// Ports of an outside address that a worker gives out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsView {
    /// The address.
    pub outside: IpAddr,
    /// The protocol.
    pub protocol: NatProtocol,
    /// The worker.
    pub worker: usize,
    /// True where nothing new is given of it.
    pub is_withdrawn: bool,
    /// First and last one; none: this worker has no part of them.
    pub range: Option<(u16, u16)>,
    /// Leased, or shared.
    pub leased: u32,
    /// In quarantine.
    pub resting: u32,
    /// All of them.
    pub ports: u32,
}

/// The answer to a question about the NAT.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "they are those of the question's parts")]
pub enum NatAnswer {
    Summary(Vec<NatSummary>),
    Flows(Page<FlowView>),
    Hosts(Page<HostView>),
    Ports(Vec<PortsView>),
}

impl NatProtocol {
    const ALL: [Self; PROTOCOLS] = [Self::Icmp, Self::Tcp, Self::Udp];

    fn of(protocol: u8) -> Self {
        row(protocol).map_or(Self::Udp, |row| Self::ALL[row])
    }

    fn number(self) -> u8 {
        match self {
            Self::Icmp => ip4::ICMP,
            Self::Tcp => ip4::TCP,
            Self::Udp => ip4::UDP,
        }
    }
}

fn owner_name(owner: Owner) -> String {
    owner.slot().map_or_else(|| "inside".to_owned(), |slot| slot.to_string())
}

impl Control {
    /// Answers a question about the NAT.
    pub fn answer_nat(&self, question: &NatQuestion, now: Nanos) -> NatAnswer {
        match question.part {
            NatPart::Summary => NatAnswer::Summary(self.nat_summary()),
            NatPart::Flows => NatAnswer::Flows(self.nat_flows(question, now)),
            NatPart::Hosts => NatAnswer::Hosts(self.nat_hosts(question)),
            NatPart::Ports => NatAnswer::Ports(self.nat_ports(&question.filter)),
        }
    }

    /// The NAT at a glance, by worker.
    pub fn nat_summary(&self) -> Vec<NatSummary> {
        let mut all = Vec::new();
        for (worker, tables) in self.workers.iter().enumerate() {
            let in_use = |(used, of): (u32, u32)| InUse { used: u64::from(used), of: u64::from(of) };
            let first = &tables.first_packet;
            all.push(NatSummary {
                worker,
                bindings: InUse {
                    used: tables.published.worker.bindings_used.load(Relaxed),
                    of: u64::from(self.config.bindings),
                },
                hosts: tables.hosts.count() as u64,
                ports: std::array::from_fn(|row| in_use(tables.hosts.used(row))),
                waiting: tables.published.worker.waiting.load(Relaxed),
                first_packets: first.len(),
                first_packet_p50_ns: first.value_at_quantile(0.5),
                first_packet_p99_ns: first.value_at_quantile(0.99),
                first_packet_max_ns: first.max(),
            });
        }
        all
    }

    /// A page of bindings.
    pub fn nat_flows(&self, question: &NatQuestion, now: Nanos) -> Page<FlowView> {
        let limit = question.limit.min(ROWS_MAX);
        let mut rows = Vec::new();
        let next = self.scan(question.after, |flow| {
            if question.filter.takes(&flow) {
                rows.push(flow.view(now));
            }
            rows.len() < limit
        });
        Page { rows, next }
    }

    /// A page of hosts.
    pub fn nat_hosts(&self, question: &NatQuestion) -> Page<HostView> {
        let limit = question.limit.min(ROWS_MAX);
        let mut rows = Vec::new();
        let hosts = self.workers.iter().map(|tables| tables.hosts.all());
        let next = page::scan(hosts, question.after, |worker, _, host| {
            let tables = &self.workers[worker];
            if question.filter.takes_host(tables, host) {
                rows.push(host_view(worker, tables, host));
            }
            rows.len() < limit
        });
        Page { rows, next }
    }

    /// Ports by outside address and protocol.
    pub fn nat_ports(&self, filter: &NatFilter) -> Vec<PortsView> {
        let mut views = Vec::new();
        for (worker, tables) in self.workers.iter().enumerate() {
            for (number, rows) in tables.hosts.ports() {
                for (ports, protocol) in rows.iter().zip(NatProtocol::ALL) {
                    views.push(PortsView {
                        outside: tables.hosts.outside_name(number),
                        protocol,
                        worker,
                        is_withdrawn: self.config.nat.withdrawn.contains(&number),
                        range: ports.range(),
                        leased: ports.leased(),
                        resting: ports.resting(),
                        ports: ports.capacity(),
                    });
                }
            }
        }
        views.retain(|view| filter.protocol.is_none_or(|wanted| wanted == view.protocol));
        views.retain(|view| filter.outside.is_none_or(|wanted| wanted == view.outside));
        views.sort_by_key(|view| (view.outside, view.protocol.number(), view.worker));
        views
    }

    /// Frees bindings, whatever their traffic: how many, and where to go on. Static mappings and the bindings of flow
    /// sessions stay: the one is the file's, the other its session's.
    pub fn clear_nat(&mut self, filter: &NatFilter, after: Option<Cursor>) -> (u64, Option<Cursor>) {
        let mut chosen = Vec::new();
        let next = self.scan(after, |flow| {
            let may_go = !flow.binding.is_flow && !flow.binding.is_static && !flow.binding.is_free_pending;
            if may_go && filter.takes(&flow) {
                chosen.push((flow.worker, flow.index));
            }
            chosen.len() < CLEARED_AT_ONCE
        });
        for (worker, index) in &chosen {
            self.free_binding(*worker, *index);
        }
        (chosen.len() as u64, next)
    }

    /// Goes through bindings.
    fn scan(&self, after: Option<Cursor>, mut look: impl FnMut(Flow<'_>) -> bool) -> Option<Cursor> {
        let tables = self.workers.iter().map(|tables| tables.nat.as_slice());
        page::scan(tables, after, |worker, index, binding| {
            look(Flow { control: self, tables: &self.workers[worker], worker, index, binding })
        })
    }
}

/// A binding, and where it is.
struct Flow<'a> {
    control: &'a Control,
    tables: &'a Tables,
    worker: usize,
    index: u32,
    binding: &'a NatBinding,
}

impl Flow<'_> {
    fn inside(&self) -> IpAddr {
        self.tables.hosts.name(self.binding.key.address)
    }

    fn outside(&self) -> SocketAddr {
        match self.binding.lease {
            Some(lease) => SocketAddr::new(self.tables.hosts.outside_name(lease.address), lease.port),
            None => {
                let outside = self.control.static_outside(self.worker, self.index);
                outside.unwrap_or_else(|| SocketAddr::from(([0; 4], 0)))
            }
        }
    }

    fn class(&self) -> Class {
        Class::from_number(self.tables.published.classes[self.index as usize].load(Relaxed))
    }

    fn state(&self) -> &'static str {
        match self.class() {
            _ if self.binding.is_static => "static",
            Class::Udp => "udp",
            Class::Icmp => "icmp",
            Class::TcpOpening => "opening",
            Class::TcpEstablished => "established",
            Class::TcpClosing => "closing",
        }
    }

    fn view(&self, now: Nanos) -> FlowView {
        let config = &self.control.config.nat;
        let (stamp, binding) = (&self.tables.published.bindings[self.index as usize], self.binding);
        let (key, tick) = (&binding.key, config.tick);
        let made = tick.at(binding.since);
        let last_seen = stamp.last_seen.load(Relaxed);
        let used = if last_seen.wrapping_sub(made) as i32 > 0 { last_seen } else { made };
        let idle = tick.times(tick.at(now).wrapping_sub(used));
        let left = config.timers.of(self.class()).saturating_sub(idle);
        // A remote end of IPv6 is known by a hash, which nobody would recognise.
        let is_hash = matches!(token::host_of(key.address), Some((Translation::Nat66, _)));
        let remote = key.remote.filter(|_| !is_hash);
        FlowView {
            worker: self.worker,
            index: self.index,
            protocol: NatProtocol::of(key.protocol),
            owner: owner_name(key.owner),
            inside: SocketAddr::new(self.inside(), key.port),
            outside: self.outside(),
            remote: remote.map(|(address, port)| SocketAddr::new(address.into(), port)),
            state: self.state().to_owned(),
            idle_ms: idle / MILLISECOND,
            left_ms: (!binding.is_flow && !binding.is_static).then_some(left / MILLISECOND),
            packets: stamp.packets.load(Relaxed),
            bytes: stamp.bytes.load(Relaxed),
        }
    }
}

fn host_view(worker: usize, tables: &Tables, host: &Host) -> HostView {
    let (owner, address) = host.name;
    let blocks = tables.hosts.blocks(host).map(|(row, first, last)| (NatProtocol::ALL[row], first, last));
    HostView {
        worker,
        owner: owner_name(owner),
        host: tables.hosts.name(address),
        outside: tables.hosts.outside_name(host.address),
        bindings: host.bindings,
        ports: host.ports,
        blocks: blocks.collect(),
    }
}

/// Each condition is decided on the tables themselves: a view of what is passed over would be made for nothing.
impl NatFilter {
    fn takes(&self, flow: &Flow<'_>) -> bool {
        let key = &flow.binding.key;
        self.protocol.is_none_or(|wanted| wanted == NatProtocol::of(key.protocol))
            && self.port.is_none_or(|wanted| wanted == key.port || wanted == flow.outside().port())
            && self.takes_owner(key.owner)
            && self.host.is_none_or(|wanted| wanted == flow.inside())
            && self.outside.is_none_or(|wanted| wanted == flow.outside().ip())
            && self.state.as_ref().is_none_or(|wanted| wanted == flow.state())
    }

    fn takes_host(&self, tables: &Tables, host: &Host) -> bool {
        let (owner, address) = host.name;
        self.takes_owner(owner)
            && self.host.is_none_or(|wanted| wanted == tables.hosts.name(address))
            && self.outside.is_none_or(|wanted| wanted == tables.hosts.outside_name(host.address))
    }

    fn takes_owner(&self, owner: Owner) -> bool {
        self.owner.as_ref().is_none_or(|wanted| match owner.slot() {
            None => wanted == "inside",
            Some(slot) => wanted.parse() == Ok(slot),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_being_written() {
        let cursor = Cursor { worker: 3, place: u64::MAX };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert!("3".parse::<Cursor>().is_err() && "x.1".parse::<Cursor>().is_err());
    }
}
