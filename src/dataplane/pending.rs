//! Which packets wait at which node of the graph.
//!
//! A sweep of one packet must not pay for every node that has none: those that have any are told by one word.

use super::{
    graph::{NODE_COUNT, NODES, Node, NodeId},
    packet::Bitmap,
};

/// The packets of each node.
#[derive(Debug, Default)]
pub(super) struct Pending {
    packets: [Bitmap; NODE_COUNT],
    /// Nodes that have any, one bit each.
    nodes: u32,
}

const _: () = assert!(NODE_COUNT <= u32::BITS as usize, "a bit for each node");

impl Pending {
    /// A packet is to go to `node`.
    #[inline]
    pub(super) fn insert(&mut self, node: NodeId, slot: usize) {
        self.packets[node as usize].insert(slot);
        self.nodes |= 1 << node as u32;
    }

    /// The packets of one word of a bitmap are; it must not be empty.
    #[inline]
    pub(super) fn insert_word(&mut self, node: NodeId, word: usize, packets: u64) {
        self.packets[node as usize].insert_word(word, packets);
        self.nodes |= 1 << node as u32;
    }

    /// Several are; at least one.
    #[inline]
    pub(super) fn insert_all(&mut self, node: NodeId, packets: Bitmap) {
        self.packets[node as usize].insert_all(packets);
        self.nodes |= 1 << node as u32;
    }

    /// The first node in order that has packets, and these, which are its no more.
    #[inline]
    pub(super) fn take_first(&mut self) -> Option<(&'static Node, Bitmap)> {
        let node = NODES.get(self.nodes.trailing_zeros() as usize)?;
        self.nodes &= self.nodes - 1;
        Some((node, std::mem::take(&mut self.packets[node.id as usize])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_have_packets_come_in_order_and_once() {
        let mut pending = Pending::default();
        pending.insert(NodeId::Tx, 255);
        pending.insert_word(NodeId::RelayInput, 1, 0b11);
        pending.insert(NodeId::RelayInput, 0);
        pending.insert_all(NodeId::EthernetInput, Bitmap::FULL);
        let mut taken = || pending.take_first().map(|(node, packets)| (node.id, packets.collect::<Vec<_>>()));
        assert_eq!(taken(), Some((NodeId::EthernetInput, (0..256).collect())));
        assert_eq!(taken(), Some((NodeId::RelayInput, vec![0, 64, 65])));
        assert_eq!(taken(), Some((NodeId::Tx, vec![255])));
        assert_eq!(taken(), None);
    }
}
