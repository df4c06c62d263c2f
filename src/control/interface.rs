//! What goes into the control core and comes out of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use crate::{
    dataplane::{
        conntrack::FanReport,
        exit_policy::ExitPolicy,
        forwarding::{Identity, Interface, Prefix},
        gateway::{Gateway, Transit},
        nat::NatConfig,
        rss::Queues,
        spread::Spread,
    },
    rpc::messages::{NodeName, Request, Response, Roles},
    wire::ethernet::Mac,
};

/// What a control core is told at its start.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Name of the node.
    pub name: NodeName,
    /// Addresses, ports, keys and the number of workers.
    pub identity: Identity,
    /// Where the node answers control messages.
    pub control: SocketAddrV4,
    /// What it is willing to be.
    pub roles: Roles,
    /// Slots a worker.
    pub slots: u32,
    /// Fans a worker.
    pub fans: u32,
    /// NAT bindings a worker.
    pub bindings: u32,
    /// NAT bindings one session may have.
    pub bindings_a_session: u32,
    /// How the NAT behaves.
    pub nat: NatConfig,
    /// Interfaces in the driver's order.
    pub interfaces: Vec<Interface>,
    /// Where the node sends to as an exit (never to its own address).
    pub policy: ExitPolicy,
    /// What the node does as a gateway, if anything.
    pub gateway: Option<Gateway>,
    /// Random at each start.
    pub boot_epoch: u64,
    /// Seed of session keys, generations and ports: from the system's random source, or a test's.
    pub seed: [u8; 32],
}

/// A request that came from outside and waits for its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// A request of ours that waits for its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// Who asks, as the transport authenticated it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node, by its certificate.
    Node(NodeName),
    /// Anyone without certificate, at a validated address: only its token counts.
    Client(Ipv4Addr),
}

/// A change the kernel told of, or the answer to [`Effect::Resolve`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant's sentence names its fields")]
pub enum KernelEvent {
    /// All routes as they are now (`interface` is the driver's number, or `NOWHERE`).
    Routes(Vec<crate::dataplane::forwarding::Route>),
    /// The same of IPv6.
    Routes6(Vec<crate::dataplane::forwarding::Route<Ipv6Addr>>),
    /// All IPv4 addresses of this machine as they are now.
    Addresses(Vec<LocalAddress>),
    /// The same of IPv6, but for those of one link alone.
    Addresses6(Vec<LocalAddress<Ipv6Addr>>),
    /// A neighbour's MAC address is known.
    NeighbourUp {
        /// The driver's number of the interface.
        interface: u8,
        /// The neighbour.
        address: IpAddr,
        /// Its MAC address.
        mac: Mac,
    },
    /// A neighbour did not answer, or was removed.
    NeighbourGone {
        /// The driver's number of the interface.
        interface: u8,
        /// The neighbour.
        address: IpAddr,
    },
    /// An interface changed: carrier, MAC address or MTU.
    Interface {
        /// The driver's number of the interface.
        interface: u8,
        /// As it is now.
        now: Interface,
    },
    /// How an interface spreads what it receives, at the start and whenever it changed.
    Spread {
        /// The driver's number of the interface.
        interface: u8,
        /// As it is now.
        now: Spread,
    },
    /// How many receive queues an interface has, at the start and whenever it changed.
    Queues {
        /// The driver's number of the interface.
        interface: u8,
        /// As it is now.
        now: Queues,
    },
    /// An interface was removed, and its sockets with it: nothing goes through it until the node starts anew.
    InterfaceRemoved {
        /// The driver's number of the interface.
        interface: u8,
    },
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress<A = Ipv4Addr> {
    /// The driver's number of its interface; `None`: not one of ours.
    pub interface: Option<u8>,
    /// The address.
    pub address: A,
    /// The network it is in.
    pub network: Prefix<A>,
}

/// What is to be done.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant's sentence names its fields")]
pub enum Effect {
    /// Answer a request.
    Respond {
        /// As given to `Control::on_request`.
        request: RequestId,
        /// The answer.
        response: Response,
    },
    /// Ask another node; the result goes to `Control::on_response` under this id, a failure of the transport
    /// or a time-out as `None`. The control core has time-outs of its own: the transport's must not be shorter than
    /// [`CALL_PATIENCE`](super::CALL_PATIENCE), or the answer of a node that waited for another is lost.
    Call {
        /// Never used twice.
        call: CallId,
        /// The name its certificate must have.
        to: NodeName,
        /// Where it answers control messages.
        address: SocketAddrV4,
        /// What to ask.
        request: Request,
    },
    /// Have the kernel resolve a neighbour.
    Resolve {
        /// The driver's number of the interface.
        interface: u8,
        /// The neighbour.
        address: IpAddr,
    },
    /// Have the XDP programs take these packets, too.
    Take(Transit),
    /// What `Control::read_paths` asked for.
    FanReport {
        /// As given to it.
        request: RequestId,
        /// How the session's paths merge.
        report: FanReport,
    },
}
