//! How the NICs spread what they receive, followed while the node runs; where their hash does not let us choose a queue, rules
//! of ours are put in.
//!
//! Anyone may change it at any time (`ethtool -X`, `-N`, `-L`). Not every kernel and not every change has a notification, so all
//! of it is read again every few seconds, and at once where there was one.

use std::os::fd::{AsFd, BorrowedFd};

use super::{
    ethtool::EthtoolChanges,
    ntuple::Tables,
    rss::rss,
    rules::{RuleKeeper, Steering},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    control::KernelEvent,
    dataplane::{
        driver::xdp::receive_queues,
        rss::{Queues, Rss},
        spread::Spread,
    },
};

/// Time between two readings that nothing was heard before.
const INTERVAL: Nanos = 5 * SECOND;

/// Least time between two readings: each asks the drivers, who may ask their NICs.
const PAUSE: Nanos = 200 * MILLISECOND;

/// What is read of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reading {
    /// `None`: it does not tell.
    pub(super) rss: Option<Rss>,
    /// `None`: it could not be asked.
    pub(super) queues: Option<Queues>,
}

/// Reads it, by the interface's name.
pub(super) type Reader = Box<dyn FnMut(&str) -> Reading + Send>;

/// Asks the kernel.
pub(super) fn ask() -> Reader {
    Box::new(|name| Reading { rss: rss(name), queues: receive_queues(name).ok() })
}

/// What was told of an interface.
struct Told {
    spread: Spread,
    queues: Option<Queues>,
}

/// The NICs of a node, and what they were when they were read last.
pub(super) struct Nics {
    read: Reader,
    /// Name, and what was told of it.
    interfaces: Vec<(String, Option<Told>)>,
    rules: RuleKeeper,
    changes: Option<EthtoolChanges>,
    read_last: Option<Nanos>,
    due: Nanos,
}

impl Nics {
    /// Those of these names, read by `read`, with rules that `tables` keeps. The first reading is due at once.
    pub(super) fn new(names: &[String], read: Reader, tables: Box<dyn Tables>) -> Self {
        let changes = EthtoolChanges::subscribe();
        let changes = changes.inspect_err(|error| tracing::debug!("changes by ethtool are not told: {error}")).ok();
        let interfaces = names.iter().map(|name| (name.clone(), None)).collect();
        let rules = RuleKeeper::new(names.len(), tables);
        Self { read, interfaces, rules, changes, read_last: None, due: 0 }
    }

    /// Readable where there is something to hear.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(AsFd::as_fd)
    }

    /// When [`Nics::follow`] has something to do.
    pub(super) fn due(&self) -> Nanos {
        self.due
    }

    /// This is to be steered from now on.
    pub(super) fn steer(&mut self, wanted: Steering) {
        if self.rules.set(wanted) {
            self.due = 0;
        }
    }

    /// Takes our rules out.
    pub(super) fn withdraw(&mut self) {
        self.rules.withdraw(self.interfaces.iter().map(|(name, _)| name.as_str()));
    }

    /// Reads the NICs where it is time; `events` are what differs from what was told before.
    pub(super) fn follow(&mut self, now: Nanos, events: &mut Vec<KernelEvent>) {
        if self.changes.as_mut().is_some_and(EthtoolChanges::take) {
            self.due = self.due.min(self.read_last.map_or(now, |last| now.max(last + PAUSE)));
        }
        if now < self.due {
            return;
        }
        self.read_last = Some(now);
        self.due = now + INTERVAL;
        for (number, (name, told)) in self.interfaces.iter_mut().enumerate() {
            let interface = number as u8;
            let Reading { rss, queues } = (self.read)(name);
            let before = told.take();
            // For as long as it cannot be asked, it is what it was.
            let queues = queues.or(before.as_ref().and_then(|before| before.queues));
            let hash_will_do = rss.as_ref().is_some_and(Rss::tells_ports);
            let rules = self.rules.keep(number, name, hash_will_do, queues.map_or(1, Queues::count));
            let spread = Spread { rss, rules };
            if before.as_ref().map(|before| &before.spread) != Some(&spread) {
                events.push(KernelEvent::Spread { interface, now: spread.clone() });
            }
            if let Some(now) = queues
                && before.is_none_or(|before| before.queues != queues)
            {
                events.push(KernelEvent::Queues { interface, now });
            }
            *told = Some(Told { spread, queues });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::{super::ntuple::OfKernel, *};
    use crate::dataplane::rss::{Inputs, KEY_BYTES};

    fn reading(key: u8, count: u32) -> Reading {
        let queues = Queues { rx: 0, combined: count, rx_max: 0, combined_max: 8 };
        Reading { rss: Rss::new(&[key; KEY_BYTES], vec![0, 1], Inputs::ALL), queues: Some(queues) }
    }

    fn follow(nics: &mut Nics, now: Nanos) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        nics.follow(now, &mut events);
        events
    }

    #[test]
    fn all_is_told_at_first_then_what_changed_and_for_what_cannot_be_read_nothing() {
        let now_is = Arc::new(Mutex::new(reading(1, 2)));
        let read = Arc::clone(&now_is);
        let names = ["e0".to_owned(), "e1".to_owned()];
        let other = reading(9, 4);
        let constant = other.clone();
        let mut nics = Nics::new(
            &names,
            Box::new(move |name| if name == "e0" { read.lock().unwrap().clone() } else { constant.clone() }),
            Box::new(OfKernel),
        );
        let rss = |interface, reading: &Reading| KernelEvent::Spread {
            interface,
            now: Spread { rss: reading.rss.clone(), rules: None },
        };
        let queues = |interface, reading: &Reading| KernelEvent::Queues { interface, now: reading.queues.unwrap() };
        let first = reading(1, 2);
        let expected = [rss(0, &first), queues(0, &first), rss(1, &other), queues(1, &other)];
        assert_eq!(follow(&mut nics, 7), expected);
        assert_eq!(nics.due(), 7 + INTERVAL);

        *now_is.lock().unwrap() = reading(2, 2);
        assert_eq!(follow(&mut nics, 6 + INTERVAL), [], "it is not time yet");
        assert_eq!(follow(&mut nics, 7 + INTERVAL), [rss(0, &reading(2, 2))]);
        *now_is.lock().unwrap() = reading(2, 3);
        assert_eq!(follow(&mut nics, 20 * SECOND), [queues(0, &reading(2, 3))]);
        *now_is.lock().unwrap() = Reading { rss: None, queues: None };
        assert_eq!(follow(&mut nics, 30 * SECOND), [KernelEvent::Spread { interface: 0, now: Spread::default() }]);
        *now_is.lock().unwrap() = reading(2, 3);
        assert_eq!(follow(&mut nics, 40 * SECOND), [rss(0, &reading(2, 3))]);
        assert_eq!(follow(&mut nics, 50 * SECOND), []);
    }
}
