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
    /// How many of them there are: counting bits takes a dozen instructions a word, for not every x86-64 has one for it.
    counts: [u32; NODE_COUNT],
    /// Nodes that have any, one bit each.
    nodes: u32,
}

const _: () = assert!(NODE_COUNT <= u32::BITS as usize, "a bit for each node");

impl Pending {
    /// A packet is to go to `node`.
    #[inline]
    pub(super) fn insert(&mut self, node: NodeId, slot: usize) {
        self.packets[node as usize].insert(slot);
        self.came(node, 1);
    }

    /// The packets of one word of a bitmap are; it must not be empty. Returns how many they are.
    #[inline]
    pub(super) fn insert_word(&mut self, node: NodeId, word: usize, packets: u64) -> u32 {
        self.packets[node as usize].insert_word(word, packets);
        let count = packets.count_ones();
        self.came(node, count);
        count
    }

    /// Several are, so many; at least one.
    #[inline]
    pub(super) fn insert_all(&mut self, node: NodeId, packets: Bitmap, count: usize) {
        self.packets[node as usize].insert_all(packets);
        self.came(node, count as u32);
    }

    #[inline]
    fn came(&mut self, node: NodeId, count: u32) {
        self.counts[node as usize] += count;
        self.nodes |= 1 << node as u32;
    }

    /// True where no node has any.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// The first node in order that has packets, these, which are its no more, and how many they are.
    #[inline]
    pub(super) fn take_first(&mut self) -> Option<(&'static Node, Bitmap, usize)> {
        let node = NODES.get(self.nodes.trailing_zeros() as usize)?;
        self.nodes &= self.nodes - 1;
        let count = std::mem::take(&mut self.counts[node.id as usize]);
        Some((node, std::mem::take(&mut self.packets[node.id as usize]), count as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_have_packets_come_in_order_and_once() {
        let mut pending = Pending::default();
        pending.insert(NodeId::Tx, 255);
        assert_eq!(pending.insert_word(NodeId::RelayInput, 1, 0b11), 2);
        pending.insert(NodeId::RelayInput, 0);
        pending.insert_all(NodeId::EthernetInput, Bitmap::FULL, 256);
        let mut taken = || {
            let (node, packets, count) = pending.take_first()?;
            assert_eq!(count, packets.count());
            Some((node.id, packets.collect::<Vec<_>>()))
        };
        assert_eq!(taken(), Some((NodeId::EthernetInput, (0..256).collect())));
        assert_eq!(taken(), Some((NodeId::RelayInput, vec![0, 64, 65])));
        assert_eq!(taken(), Some((NodeId::Tx, vec![255])));
        assert_eq!(taken(), None);
        assert!(pending.is_empty());
    }
}
