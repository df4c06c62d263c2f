//! The nodes of the packet graph, one file each, named as in the graph.
//!
//! Each file says in its head where packets come from and go to, which fields of [`super::packet::Packet`] the
//! node reads and writes, and why it does what might surprise.

pub(super) mod entry_down;
pub(super) mod entry_up;
pub(super) mod ethernet_input;
pub(super) mod exit_down;
pub(super) mod exit_up;
pub(super) mod fragment;
pub(super) mod fragment6;
pub(super) mod gateway6_input;
pub(super) mod gateway_input;
pub(super) mod handoff;
pub(super) mod icmp6_error;
pub(super) mod icmp_error;
pub(super) mod ip4_input;
pub(super) mod ip6_input;
pub(super) mod ip6_output;
pub(super) mod ip_output;
pub(super) mod l4_classify;
pub(super) mod nat64_out2in;
pub(super) mod nat6_in2out;
pub(super) mod nat6_out2in;
pub(super) mod nat_in2out;
pub(super) mod nat_out2in;
pub(super) mod probe;
pub(super) mod punt;
pub(super) mod relay_forward;
pub(super) mod relay_input;
pub(super) mod sv_reassembly;

/// What every node file starts with.
mod prelude {
    pub(super) use super::super::{
        context::Context,
        driver::Frames,
        graph::{Node, NodeId, Verdict},
        reason::Reason,
    };

    /// The process function of a node whose packets are decided one by one.
    macro_rules! node {
        ($id:ident, $name:literal, [$($next:ident),*], $decide:expr) => {
            /// The node's entry in the graph.
            pub(in crate::dataplane) const NODE: Node = Node {
                id: NodeId::$id,
                name: $name,
                next: &[$(NodeId::$next),*],
                process: |context, frames, batch| context.each(frames, batch, NodeId::$id, $decide),
            };
        };
    }
    pub(super) use node;
}
