//! What a packet means for its binding's life: the state of its connection, and the stamp that ageing reads.

use std::sync::atomic::Ordering::Relaxed;

use super::{Class, Endpoint, connections::Origin, peers::Admission};
use crate::{
    dataplane::{command::Event, context::Context, nodes::punt::RESERVED_FOR_ANSWERS},
    wire::tcp::Segment,
};

impl Context {
    /// A packet of `bytes` was translated by binding `index`. `segment`: what a TCP segment says.
    ///
    /// Only what comes from inside keeps a binding alive (RFC 4787 REQ-6), unless the operator wants otherwise; and of
    /// TCP only what belongs to a connection that is not over. A change of class starts the new timer.
    #[inline]
    pub(in crate::dataplane) fn account(
        &mut self,
        index: u32,
        from: Origin,
        remote: Endpoint,
        segment: Option<&Segment>,
        bytes: usize,
    ) {
        let mut refreshes = from == Origin::Inside || self.is_refreshed_from_outside;
        if let Some(segment) = segment {
            let Some(binding) = self.bindings.get_mut(index) else { return };
            let before = binding.class();
            refreshes &= binding.on_segment(from, remote, segment);
            let after = binding.class();
            if before != after {
                self.published.classes[index as usize].store(after as u8, Relaxed);
                refreshes = true;
                if before == Class::TcpEstablished {
                    self.tell_of_shorter_timer(index);
                }
            }
        }
        let stamp = &self.published.bindings[index as usize];
        if refreshes {
            stamp.touch(self.tick, bytes);
        } else {
            stamp.count(bytes);
        }
    }

    /// A packet goes out by binding `index` to `remote`, and so `remote` may answer. False: there is no room to remember it.
    #[inline]
    pub(in crate::dataplane) fn admit(&mut self, index: u32, remote: Endpoint) -> bool {
        let admission = self.bindings.admit(index, remote);
        if admission == Admission::InPlaceOfOldest {
            // The flow of one who may not come in any more must not go on by the short way.
            self.established.flows.binding_changed(index, self.tick);
        }
        admission != Admission::Refused
    }

    /// The control core looks at a binding when it may have become idle; here that comes sooner than it thinks. Where
    /// the ring has no room it finds out by itself, at most a minute late.
    fn tell_of_shorter_timer(&mut self, index: u32) {
        if self.events.slots() > RESERVED_FOR_ANSWERS {
            self.events.push(Event::BindingClosing { index }).expect("room was checked above");
        }
    }
}
