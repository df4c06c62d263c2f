//! What the nodes of the graph work on: the packet slots and the worker's tables.
//!
//! Nothing in here knows the driver: frames for copies come from a stock that the worker fills before each
//! sweep, frames of finished packets go to a list that it empties after.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    command::{Event, PuntCause},
    conntrack::{FanInit, Link, Role, SOURCE_PORTS, SourcePorts},
    driver::Frames,
    express::Express,
    fan::Fan,
    forwarding::{Identity, Peer},
    gateway::StaticMapping,
    graph::{NODES, NodeId, Verdict},
    handoff::HandedOver,
    huge::HugeArray,
    nat::{
        Bindings, Endpoint, Hosts6, Owner, Prefix64, established::Established, held_syns::HeldSyns, icmp64::Mtus, token,
    },
    node_keys::NodeKeys,
    nodes::relay_input::Claims,
    outer::Unsigned,
    packet::{Bitmap, Packet},
    pending::Pending,
    published::{Published, add},
    reason::Reason,
    reassembly::Reassembly,
    route_cache::RouteCache,
    slots::Slots,
    waiting::Waiting,
};
use crate::{Nanos, limits::PACKET_SLOTS};

/// How often a packet is handed over: to the worker of the inside host, and from there, where one inside host speaks to
/// another by its outside address (hairpin), to that one's.
const HANDOFFS_MAX: u8 = 2;

/// State of one worker, the driver apart.
pub struct Context {
    /// When this sweep began.
    pub now: Nanos,
    /// The same in ticks of the last-seen stamps.
    pub tick: u32,
    /// This worker's number.
    pub index: usize,
    /// The node's addresses and keys.
    pub identity: Identity,
    /// What most packets look like.
    pub(super) express: Express,
    /// Metadata of the packet slots.
    pub packets: Box<[Packet; PACKET_SLOTS]>,
    /// Why a packet on its way to `punt` goes there.
    pub punts: Box<[PuntCause; PACKET_SLOTS]>,
    /// Sessions.
    pub slots: Slots,
    /// Their fans.
    pub fans: HugeArray<Fan>,
    /// NAT bindings.
    pub bindings: Bindings,
    /// What the NAT did with the flows that it knows.
    pub(super) established: Established,
    /// Inside hosts of IPv6.
    pub hosts6: Hosts6,
    /// Where the IPv4 internet is for them.
    pub nat64: Option<Prefix64>,
    /// Keys of the hops to other nodes.
    pub node_keys: NodeKeys,
    /// Bindings of tunnels and of the gateway's hosts are for one remote endpoint each.
    pub is_endpoint_dependent: bool,
    /// Packets from outside keep a binding alive, too.
    pub is_refreshed_from_outside: bool,
    /// Routes, adjacencies, peers and policy.
    pub routes: RouteCache,
    /// What others may look at.
    pub published: Arc<Published>,
    /// Fragmented packets on their way through the NAT.
    pub reassembly: Reassembly,
    /// SYNs from outside that nothing lets in.
    pub held_syns: HeldSyns,
    /// Packets put aside for the control core.
    pub waiting: Waiting,
    /// To the control core.
    pub events: rtrb::Producer<Event>,
    /// To the other workers.
    pub handoff: Vec<Option<rtrb::Producer<HandedOver>>>,
    /// Workers that were handed packets in this sweep, one bit each.
    pub handed_to: u64,
    /// The last identification given to a packet that NAT64 made.
    pub identification: u16,
    /// ICMP errors that may still be sent in this tick.
    pub icmp_budget: u32,
    pub(super) free: Bitmap,
    pub(super) pending: Pending,
    pub(super) spare: Vec<u32>,
    pub(super) finished: Vec<u32>,
    /// Headers written in this batch whose tags are still to be made.
    pub(super) unsigned: Box<Unsigned>,
    /// Headers read in this batch whose tags are still to be verified.
    pub(super) claims: Box<Claims>,
}

impl Context {
    /// Runs `decide` on each packet of a batch and moves the packet on.
    ///
    /// Most packets of a batch go the same way, so those that go where the one before went are kept in a register and
    /// entered together.
    #[inline]
    pub fn each(
        &mut self,
        frames: &mut Frames,
        batch: Bitmap,
        node: NodeId,
        decide: impl Fn(&mut Self, &mut Frames, usize) -> Verdict,
    ) {
        let mut way = NODES[node as usize].next.first().copied().unwrap_or(NodeId::Tx);
        for (word, mut waiting) in batch.words() {
            let mut together = 0;
            while waiting != 0 {
                let lowest = waiting & waiting.wrapping_neg();
                waiting ^= lowest;
                let slot = (word * 64 + lowest.trailing_zeros() as usize) % PACKET_SLOTS;
                match decide(self, frames, slot) {
                    Verdict::Next(next) if next == way => together |= lowest,
                    Verdict::Next(next) => {
                        self.move_on(word, together, node, way);
                        (way, together) = (next, lowest);
                    }
                    verdict => self.leave(slot, node, verdict),
                }
            }
            self.move_on(word, together, node, way);
        }
        self.unsigned.sign(frames);
    }

    /// Packets leave `node` for `next`.
    #[inline]
    pub(super) fn move_all_on(&mut self, packets: Bitmap, node: NodeId, next: NodeId) {
        for (word, packets) in packets.words() {
            self.move_on(word, packets, node, next);
        }
    }

    /// The packets of one word of a bitmap leave `node` for `next`.
    #[inline]
    pub(super) fn move_on(&mut self, word: usize, packets: u64, node: NodeId, next: NodeId) {
        if packets != 0 {
            debug_assert!(NODES[node as usize].next.contains(&next), "{node:?} declares no edge to {next:?}");
            let count = self.pending.insert_word(next, word, packets);
            add(&self.published.nodes[node as usize].next[next as usize], count.into());
        }
    }

    /// A packet leaves `node`. Every packet does so exactly once.
    #[inline]
    pub fn leave(&mut self, slot: usize, node: NodeId, verdict: Verdict) {
        match verdict {
            Verdict::Next(next) => self.move_on(slot / 64, 1 << (slot % 64), node, next),
            Verdict::Drop(reason) => {
                add(&self.published.nodes[node as usize].drops[reason as usize], 1);
                add(&self.published.worker.dropped, 1);
                self.finish(slot);
            }
            Verdict::Consumed => {
                add(&self.published.worker.consumed, 1);
                self.finish(slot);
            }
        }
    }

    /// A packet begins here instead of at the driver: it takes a slot and goes to `node`. `None`: no slot is
    /// free, and the frame is still the caller's.
    #[inline]
    pub fn inject(&mut self, packet: Packet, node: NodeId) -> Option<usize> {
        let slot = self.free.pop()?;
        self.packets[slot] = packet;
        self.pending.insert(node, slot);
        add(&self.published.worker.injected, 1);
        Some(slot)
    }

    /// A copy of the packet in `slot`, in a slot and frame of its own, on its way from `node` to `next`. Where
    /// there is no room the copy counts as dropped.
    #[inline]
    pub fn copy(&mut self, frames: &mut Frames, slot: usize, node: NodeId, next: NodeId) -> Option<usize> {
        add(&self.published.worker.injected, 1);
        let (copy, frame) = match (self.free.pop(), self.spare.pop()) {
            (Some(copy), Some(frame)) => (copy, frame),
            (copy, frame) => return self.cannot_copy(node, copy, frame),
        };
        let original = &self.packets[slot];
        frames.copy(original.frame, frame, original.range());
        self.packets[copy] = self.packets[slot];
        self.packets[copy].frame = frame;
        add(&self.published.nodes[node as usize].next[next as usize], 1);
        self.pending.insert(next, copy);
        Some(copy)
    }

    /// What was there for the copy goes back.
    #[cold]
    fn cannot_copy(&mut self, node: NodeId, slot: Option<usize>, frame: Option<u32>) -> Option<usize> {
        slot.into_iter().for_each(|slot| self.free.insert(slot));
        self.spare.extend(frame);
        add(&self.published.nodes[node as usize].drops[Reason::NoSlot as usize], 1);
        add(&self.published.worker.dropped, 1);
        None
    }

    /// The packet goes down every path of a fan: the last one takes the packet itself, the others take copies, so
    /// that with one path nothing is copied. `address` writes the headers for one path.
    #[inline]
    pub(super) fn fan_out(
        &mut self,
        frames: &mut Frames,
        slot: usize,
        fan: usize,
        node: NodeId,
        address: impl Fn(&mut Frames, &mut Packet, &Identity, (&Link, SourcePorts), &NodeKeys),
    ) -> Verdict {
        let mut paths = self.fans[fan].paths();
        if paths.is_empty() {
            return Verdict::Drop(Reason::NoPath);
        }
        while let Some(path) = paths.next() {
            let taken = if paths.is_empty() { Some(slot) } else { self.copy(frames, slot, node, NodeId::IpOutput) };
            if let (Some(taken), Some(hop)) = (taken, self.fans[fan].link(path)) {
                let packet = &mut self.packets[taken];
                packet.path = path;
                address(frames, packet, &self.identity, hop, &self.node_keys);
            }
        }
        Verdict::Next(NodeId::IpOutput)
    }

    /// True for the node's own address and those of the NAT's pool.
    #[inline]
    pub fn is_ours(&self, address: Ipv4Addr) -> bool {
        address == self.identity.address || self.bindings.outside().contains(address)
    }

    /// True for a packet of ours to the other end of a hop; what NAT sends may come from the same ports.
    pub fn is_relayed(&self, source: Endpoint, destination: Endpoint) -> bool {
        let Identity { address, data_port, .. } = self.identity;
        let is_peer = |peer: &Peer| (peer.address, peer.port) == destination;
        source.0 == address
            && (source.1 == data_port
                || source.1.wrapping_sub(data_port) < SOURCE_PORTS
                    && self.routes.forwarding().peers.iter().any(is_peer))
    }

    /// True for the outside addresses of IPv6.
    #[inline]
    pub fn is_ours6(&self, address: Ipv6Addr) -> bool {
        self.bindings.outside().token_of(address).is_some()
    }

    /// What a session was set up for, `None` once it is over: its bindings are freed after it. The gateway's hosts may send
    /// anything that the routes carry.
    #[inline]
    pub(super) fn terms(&self, owner: Owner) -> Option<FanInit> {
        let Some(slot) = owner.slot() else { return Some(FanInit { mtu: u16::MAX, ..FanInit::NONE }) };
        let session = &self.slots[slot as usize];
        (session.role == Role::Exit).then(|| self.fans[session.fan as usize].init)
    }

    /// MTU of the way to an inside host. Zero: there is none, or the session is over.
    pub fn mtu_to_host(&mut self, owner: Owner, host: IpAddr) -> u16 {
        match (owner.slot(), host) {
            (Some(_), _) => self.terms(owner).map_or(0, |terms| terms.mtu),
            (None, IpAddr::V4(host)) => self.routes.lookup(host).mtu,
            (None, IpAddr::V6(host)) => self.routes.lookup6(host).mtu,
        }
    }

    /// MTUs of the way to the inside host that a hairpinned packet is for, whatever the family of its sender. Zero: not known, for
    /// the host is another worker's.
    pub(super) fn mtus_of_way_back(&mut self, protocol: u8, to: Endpoint, from: Endpoint) -> Mtus {
        let Some((owner, host)) = self.inside_of(protocol, to, from) else { return Mtus { ip4: 0, ip6: 0 } };
        Mtus::to_host(host.is_ipv6(), self.mtu_to_host(owner, host))
    }

    /// Whom a packet from `from` to this port of an outside address is for, as far as this worker knows: forwarded ports are
    /// known to all.
    fn inside_of(&self, protocol: u8, outside: Endpoint, from: Endpoint) -> Option<(Owner, IpAddr)> {
        if let Some(mapping) = self.mapping_of(protocol, outside) {
            return Some((Owner::INSIDE, mapping.inside.0));
        }
        let number = self.bindings.outside().number_of(outside.0)?;
        let binding = self.bindings.get(self.bindings.find_outside(number, protocol, outside.1, from)?)?;
        let host = match token::host_of(binding.inside_address) {
            Some((_, place)) => self.hosts6.address(place)?.into(),
            None => binding.inside_address.into(),
        };
        Some((binding.owner, host))
    }

    /// The identification of a packet of IPv4 that may be fragmented and had none before. No two of this node's are the
    /// same until all were used (RFC 6864 section 4.3).
    #[inline]
    pub fn next_identification(&mut self) -> u16 {
        let workers = u16::from(self.identity.workers);
        self.identification = self.identification.wrapping_add(workers);
        self.identification
    }

    /// The worker that owns a port (or ICMP identifier) of an outside address; `None` where it is not NAT's. A forwarded
    /// port is owned by the worker of its host, whatever its number.
    #[inline]
    pub fn owner_of(&self, protocol: u8, outside: Endpoint) -> Option<usize> {
        match self.mapping_of(protocol, outside) {
            Some(mapping) => Some(self.identity.owner_of(mapping.inside.0)),
            None => self.bindings.outside().owner_of(outside),
        }
    }

    #[inline]
    fn mapping_of(&self, protocol: u8, outside: Endpoint) -> Option<&StaticMapping> {
        let gateway = self.routes.forwarding().gateway.as_ref()?;
        gateway.mapping_of(protocol, (self.bindings.outside().name_of(outside.0), outside.1))
    }

    /// To the control core with it; it goes on at `resume_at` when that answers.
    #[inline]
    pub fn punt(&mut self, slot: usize, cause: PuntCause, resume_at: NodeId) -> Verdict {
        self.punts[slot] = cause;
        self.packets[slot].resume_at = resume_at;
        Verdict::Next(NodeId::Punt)
    }

    /// To `worker` with it; it goes on at `resume_at` there.
    #[inline]
    pub fn hand_off(&mut self, slot: usize, worker: usize, resume_at: NodeId) -> Verdict {
        if self.packets[slot].handoffs >= HANDOFFS_MAX {
            return Verdict::Drop(Reason::NotAfterHandoff);
        }
        self.packets[slot].worker = worker as u8;
        self.packets[slot].resume_at = resume_at;
        Verdict::Next(NodeId::Handoff)
    }

    /// The slot is free again, and so is its frame.
    #[inline]
    pub(super) fn finish(&mut self, slot: usize) {
        self.finished.push(self.packets[slot].frame);
        self.free.insert(slot);
    }

    /// The slot is free again; its frame has a new owner.
    #[inline]
    pub(super) fn finish_without_frame(&mut self, slot: usize) {
        self.free.insert(slot);
    }

    /// The count of one drop reason at one node, for tests and `show`.
    pub fn drops(&self, node: NodeId, reason: Reason) -> u64 {
        self.published.nodes[node as usize].drops[reason as usize].load(Relaxed)
    }
}
