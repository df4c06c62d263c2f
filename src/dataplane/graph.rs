//! The packet graph: its nodes, in the order in which a sweep visits them.
//!
//! ```text
//!        +--------- a plain relay packet -----------+
//!        |                      +--> gateway_input --|-----------> nat_in2out | ip_output
//!        |                      |                    v
//!  rx -> ethernet_input -> ip4_input -> l4_classify -+-> relay_input -+-> probe ---------+
//!                                                    |                +-> entry_up ------+
//!                                                    |                +-> entry_down ----+
//!                                                    |                +-> relay_forward -+
//!                                                    |                +-> exit_up -> nat_in2out
//!                                                    +-> nat_out2in -> exit_down --------+   (or, at a
//!                                                                   +--------------------+    gateway, at once)
//!                                                                                        v
//!      (icmp_error, fragment, handoff and punt: from the side;                          ip_output -> tx
//!       fragments enter the NAT through sv_reassembly)
//!
//!  A packet of a flow that the NAT knows goes from ethernet_input to ip_output or exit_down (`nat/established.rs`).
//!
//!  IPv6: ethernet_input -> ip6_input -+-> gateway6_input -> nat6_in2out -> ip6_output | ip_output (NAT64)
//!                                     +-> nat6_out2in -> ip6_output;    nat_out2in -> ip6_output (NAT64)
//!        (of a client: exit_up -> nat6_in2out, nat6_out2in | nat_out2in -> exit_down)
//! ```
//!
//! Edges only go forward, so one pass over [`NODES`] finishes every packet; the assertion at the foot of this
//! file holds the table to that. A node decides about one packet at a time and returns a [`Verdict`]; counting,
//! timing and moving packets between nodes is the dispatcher's ([`super::worker`]) and [`Context`]'s alone.

use super::{
    context::Context,
    driver::Frames,
    nodes::{
        entry_down, entry_up, ethernet_input, exit_down, exit_up, fragment, gateway_input, gateway6_input, handoff,
        icmp_error, icmp6_error, ip_output, ip4_input, ip6_input, ip6_output, l4_classify, nat_in2out, nat_out2in,
        nat6_in2out, nat6_out2in, probe, punt, relay_forward, relay_input, sv_reassembly,
    },
    packet::Bitmap,
    published::NODES_MAX,
    reason::Reason,
};

/// A node of the graph; its number is its place in [`NODES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each node's file says what it does")]
pub enum NodeId {
    EthernetInput,
    Ip4Input,
    Ip6Input,
    L4Classify,
    GatewayInput,
    Gateway6Input,
    RelayInput,
    Probe,
    EntryUp,
    EntryDown,
    RelayForward,
    ExitUp,
    SvReassembly,
    NatIn2out,
    Nat6In2out,
    NatOut2in,
    Nat6Out2in,
    IcmpError,
    Icmp6Error,
    Fragment,
    ExitDown,
    IpOutput,
    Ip6Output,
    Handoff,
    Punt,
    Tx,
}

/// How a packet leaves a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// On to a later node.
    Next(NodeId),
    /// It ends here, for this reason.
    Drop(Reason),
    /// It ends here because it was for us.
    Consumed,
}

/// A node: data, no state.
pub struct Node {
    /// Its own number.
    pub id: NodeId,
    /// Its name in counters and on screen.
    pub name: &'static str,
    /// Where its packets may go.
    pub next: &'static [NodeId],
    /// Handles all packets of a batch.
    pub process: fn(&mut Context, &mut Frames, Bitmap),
}

/// How many nodes there are.
pub const NODE_COUNT: usize = NODES.len();

/// The jump table. `tx` is last: what it is given, the worker hands to the driver.
pub const NODES: [Node; 26] = [
    ethernet_input::NODE,
    ip4_input::NODE,
    ip6_input::NODE,
    l4_classify::NODE,
    gateway_input::NODE,
    gateway6_input::NODE,
    relay_input::NODE,
    probe::NODE,
    entry_up::NODE,
    entry_down::NODE,
    relay_forward::NODE,
    exit_up::NODE,
    sv_reassembly::NODE,
    nat_in2out::NODE,
    nat6_in2out::NODE,
    nat_out2in::NODE,
    nat6_out2in::NODE,
    icmp_error::NODE,
    icmp6_error::NODE,
    fragment::NODE,
    exit_down::NODE,
    ip_output::NODE,
    ip6_output::NODE,
    handoff::NODE,
    punt::NODE,
    Node { id: NodeId::Tx, name: "tx", next: &[], process: |_, _, _| {} },
];

const _: () = {
    assert!(NODES.len() <= NODES_MAX, "published::NodeCounters has room for every node");
    let mut i = 0;
    while i < NODES.len() {
        assert!(NODES[i].id as usize == i, "a node's number is its place in the table");
        let mut edge = 0;
        while edge < NODES[i].next.len() {
            assert!(NODES[i].next[edge] as usize > i, "edges only go forward");
            edge += 1;
        }
        i += 1;
    }
};
