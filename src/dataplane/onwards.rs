//! Packets that leave a node in passes of its own, outside of [`Context::each`]: those that go the same way one after the other
//! are entered there together.

use super::{context::Context, graph::NodeId, packet::Bitmap};

/// Those that have not been entered yet.
pub(super) struct Onwards {
    node: NodeId,
    way: NodeId,
    together: Bitmap,
}

impl Onwards {
    /// None, out of `node`; most of them will go to `way`.
    #[inline]
    pub(super) fn new(node: NodeId, way: NodeId) -> Self {
        Self { node, way, together: Bitmap::default() }
    }

    /// The packet in `slot` goes to `next`.
    #[inline]
    pub(super) fn push(&mut self, context: &mut Context, slot: usize, next: NodeId) {
        if next != self.way {
            std::mem::replace(self, Self::new(self.node, next)).finish(context);
        }
        self.together.insert(slot);
    }

    /// That was all. Not inline: [`Self::push`] rarely comes here, and its loop keeps its registers.
    pub(super) fn finish(self, context: &mut Context) {
        context.move_all_on(self.together, self.node, self.way);
    }
}
