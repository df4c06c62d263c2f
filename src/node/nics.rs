//! What the NICs do with what they receive, as the kernel's mirror heard last: for the log, `starnet show node` and metrics.

use std::{
    cmp::Ordering,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use crate::{
    control::KernelEvent,
    dataplane::{rss::Queues, spread::Spread},
    telemetry::show::RssView,
};

/// The NICs of a node. Locked by those who tell and show, never by a worker.
#[derive(Debug)]
pub(super) struct Nics {
    by_number: Mutex<Vec<Nic>>,
}

/// A NIC.
#[derive(Clone, Debug, Default)]
pub(super) struct Nic {
    /// Its interface.
    pub(super) name: String,
    spread: Spread,
    /// How often it has changed how it spreads, since the sockets were bound.
    pub(super) changes: u64,
    /// When it did last.
    pub(super) changed: Option<Instant>,
    /// Receive queues it has.
    pub(super) queues: Option<Queues>,
    /// Receive queues with an AF_XDP socket; none: the sockets are not bound yet.
    pub(super) sockets: Option<u32>,
}

impl Nics {
    /// Those of these interfaces.
    pub(super) fn new(names: &[String]) -> Self {
        let nic = |name: &String| Nic { name: name.clone(), ..Nic::default() };
        Self { by_number: Mutex::new(names.iter().map(nic).collect()) }
    }

    /// All of them, by the driver's number of the interface.
    pub(super) fn all(&self) -> Vec<Nic> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The queues of `interface`, these, have a socket each.
    pub(super) fn bound(&self, interface: usize, queues: Queues) {
        self.change(interface, |nic| (nic.queues, nic.sockets) = (Some(queues), Some(queues.count())));
    }

    /// The kernel's mirror has something to say, perhaps of a NIC.
    pub(super) fn hear(&self, event: &KernelEvent) {
        match event {
            KernelEvent::Spread { interface, now } => self.change((*interface).into(), |nic| nic.spread(now)),
            KernelEvent::Queues { interface, now } => self.change((*interface).into(), |nic| nic.count(*now)),
            _ => {}
        }
    }

    fn change(&self, interface: usize, change: impl FnOnce(&mut Nic)) {
        let mut all = self.by_number.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nic) = all.get_mut(interface) {
            change(nic);
        }
    }
}

impl Nic {
    /// What is wrong with the number of its queues, and what to do.
    pub(super) fn trouble(&self) -> Option<String> {
        let Self { name, queues: Some(queues), sockets: Some(sockets), .. } = self else { return None };
        let count = queues.count();
        let what = match count.cmp(sockets) {
            Ordering::Equal => return None,
            Ordering::Greater => "what arrives at the others goes to the kernel, which is not meant to have it",
            Ordering::Less => "nothing is received, and perhaps nothing sent, by those whose queue is gone",
        };
        let back = queues.command(name, *sockets).map(|command| format!("run `{command}` or ")).unwrap_or_default();
        Some(format!("receive queues: {count}, with an AF_XDP socket: {sockets}; {what}; {back}start the node again"))
    }

    /// How it spreads by its hash; none: it does not tell.
    pub(super) fn rss(&self) -> Option<RssView> {
        self.spread.rss.as_ref().map(RssView::of)
    }

    /// How many rules of ours steer packets before that.
    pub(super) fn rules(&self) -> usize {
        self.spread.rules.as_ref().map_or(0, |rules| rules.count)
    }

    fn spread(&mut self, now: &Spread) {
        let before = std::mem::replace(&mut self.spread, now.clone());
        // Rules follow the addresses, which is no change of the NIC's ways.
        let is_same = before.rss == now.rss && before.rules.is_some() == now.rules.is_some();
        if is_same || self.sockets.is_none() {
            return;
        }
        self.changes += 1;
        self.changed = Some(Instant::now());
        let interface = &self.name;
        match (self.rss(), &now.rules) {
            (_, Some(rules)) => {
                tracing::info!(%interface, rules = rules.count, "the NIC steers by rules now, and else as its hash says");
            }
            (Some(rss), None) => tracing::info!(
                %interface,
                "the NIC spreads otherwise now, {rss}: new sessions and flows choose their ports by that, others are handed over"
            ),
            (None, None) => tracing::warn!(
                %interface,
                "it is not known any more how the NIC spreads what it receives: packets are handed over"
            ),
        }
    }

    fn count(&mut self, now: Queues) {
        let before = self.trouble();
        self.queues = Some(now);
        let interface = &self.name;
        match self.trouble() {
            Some(trouble) if before.as_ref() != Some(&trouble) => tracing::error!(%interface, "{trouble}"),
            None if before.is_some() => tracing::info!(%interface, "a receive queue for each AF_XDP socket again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::rss::{Inputs, KEY_BYTES, Rss};

    fn queues(rx: u32) -> KernelEvent {
        KernelEvent::Queues { interface: 1, now: Queues { rx, combined: 0, rx_max: 4, combined_max: 0 } }
    }

    fn nics() -> Nics {
        Nics::new(&["e0".to_owned(), "e1".to_owned()])
    }

    #[test]
    fn what_a_nic_is_at_the_start_is_no_change() {
        let nics = nics();
        let rss = Rss::new(&[7; KEY_BYTES], vec![0, 1, 1], Inputs::ALL);
        nics.hear(&KernelEvent::Spread { interface: 1, now: Spread { rss, rules: None } });
        nics.bound(1, Queues::ONE);
        let nic = || nics.all().remove(1);
        assert_eq!((nic().rss().unwrap().entries, nic().changes, nic().changed.is_some()), (vec![1, 2], 0, false));
        nics.hear(&KernelEvent::Spread { interface: 1, now: Spread::default() });
        assert_eq!((nic().rss().is_none(), nic().changes, nic().changed.is_some()), (true, 1, true));
        assert_eq!(nics.all()[0].changes, 0);
    }

    #[test]
    fn queues_without_sockets_and_sockets_without_queues_are_trouble() {
        let nics = nics();
        let trouble = || nics.all()[1].trouble();
        nics.hear(&queues(1));
        assert_eq!(trouble(), None, "before there are sockets");
        let KernelEvent::Queues { now: bound, .. } = queues(2) else { unreachable!() };
        nics.bound(1, bound);
        assert_eq!(trouble(), None, "the driver added one for the XDP program");
        nics.hear(&queues(2));
        assert_eq!(trouble(), None);
        nics.hear(&queues(4));
        assert_eq!(
            trouble().unwrap(),
            "receive queues: 4, with an AF_XDP socket: 2; what arrives at the others goes to the kernel, which is not meant \
             to have it; run `ethtool -L e1 rx 2` or start the node again"
        );
        nics.hear(&queues(1));
        assert!(trouble().unwrap().contains("queues: 1, with an AF_XDP socket: 2; nothing is received"));
        nics.hear(&queues(2));
        assert_eq!(trouble(), None);
    }
}
