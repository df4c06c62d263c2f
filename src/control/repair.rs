//! Paths that are slow, fail or fall silent, at the session's entry: the one node that has whole paths and the client's
//! token.
//!
//! A session does not wait for its slowest path: it starts a moment after the first one is up, and the others join it.
//! From then on it is visited every few seconds. A path that is down is set up anew under its old number, with pauses
//! that double. A path that brings nothing while others deliver is broken somewhere behind the next node (a relay that
//! died, a slot that aged out over there): it is taken down, and so comes back by the same means. The client's
//! keep-alives are answered over every path, so a living path is never silent for long.
//!
//! Where all paths are silent nothing is done: the client notices, and opens a session by a new plan.

use super::{
    Control,
    sessions::{Asker, EntryPath, Part, State},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    dataplane::{
        command::Command,
        conntrack::{CtIndex, FanReport},
    },
    rpc::messages::{Failure, FailureReason, Teardown},
};

/// A session that has a path starts this long after, whatever the others do.
const PATIENCE: Nanos = 300 * MILLISECOND;

/// Between two visits to a session.
const VISIT: Nanos = 5 * SECOND;

/// Visits made in one tick.
const VISITS_A_TICK: usize = 256;

/// A path is broken that brought nothing at so many visits in a row at which others had.
const SILENT_MAX: u8 = 3;

/// Most visits between two attempts to set up a path: about a minute.
const PAUSE_MAX: u8 = 12;

/// How a path does, by its entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Care {
    /// What had arrived over it at the last visit.
    received: u64,
    /// Visits in a row at which nothing had.
    silent: u8,
    /// Visits from one attempt to set it up to the next.
    pause: u8,
    /// Visits until the next attempt.
    wait: u8,
}

impl Care {
    /// It could not be set up, or broke.
    fn failed(&mut self) {
        self.wait = self.pause;
        self.pause = (self.pause * 2).clamp(1, PAUSE_MAX);
        self.silent = 0;
    }

    /// So much had arrived over it by now, and `others` says whether anything had over any path. True: it is broken.
    fn is_broken(&mut self, received: u64, others: bool) -> bool {
        let is_alive = received != self.received;
        self.received = received;
        if is_alive {
            (self.silent, self.pause) = (0, 0);
        } else if others {
            self.silent += 1;
        }
        self.silent >= SILENT_MAX
    }
}

impl Control {
    /// The first path of a session is up: the others have a moment left to be in time.
    pub(super) fn hurry(&mut self, ct_index: CtIndex, now: Nanos) {
        self.schedule_visit(ct_index, now + PATIENCE);
    }

    /// The session has started.
    pub(super) fn watch(&mut self, ct_index: CtIndex, now: Nanos) {
        let Some(Part::Entry(entry)) = self.session(ct_index).map(|session| &mut session.part) else { return };
        for (path, care) in entry.paths.iter().zip(&mut entry.care) {
            if matches!(path, EntryPath::Down(_)) {
                care.failed();
            }
        }
        self.schedule_visit(ct_index, now + VISIT);
    }

    /// A session has one visit before it; a new one replaces it.
    fn schedule_visit(&mut self, ct_index: CtIndex, due: Nanos) {
        let Some(Part::Entry(entry)) = self.session(ct_index).map(|session| &mut session.part) else { return };
        let before = std::mem::replace(&mut entry.visit_due, due);
        self.visits.remove(&(before, ct_index.0));
        self.visits.insert((due, ct_index.0));
    }

    /// The session ends.
    pub(super) fn unwatch(&mut self, ct_index: CtIndex) {
        if let Some(Part::Entry(entry)) = self.session(ct_index).map(|session| &session.part) {
            let due = entry.visit_due;
            self.visits.remove(&(due, ct_index.0));
        }
    }

    /// Visits the sessions whose time has come.
    pub(super) fn visit_sessions(&mut self, now: Nanos) {
        for _ in 0..VISITS_A_TICK {
            match self.visits.first() {
                Some(&(due, index)) if due <= now => {
                    self.visits.pop_first();
                    self.visit(CtIndex(index), now);
                }
                _ => return,
            }
        }
    }

    fn visit(&mut self, ct_index: CtIndex, now: Nanos) {
        let Some(session) = self.session(ct_index) else { return };
        let generation = session.generation;
        let Part::Entry(entry) = &mut session.part else { return };
        match session.state {
            State::Opening if entry.paths.iter().any(|path| matches!(path, EntryPath::Up { .. })) => {
                return self.entry_conclude(ct_index, now);
            }
            State::Opening | State::Closing => return,
            State::Open | State::Ageing => {}
        }
        let mut due = Vec::new();
        for (number, path) in (0u8..).zip(&entry.paths) {
            let care = &mut entry.care[usize::from(number)];
            match path {
                EntryPath::Down(_) if care.wait == 0 => due.push(number),
                EntryPath::Down(_) => care.wait -= 1,
                EntryPath::Up { .. } | EntryPath::Calling { .. } => {}
            }
        }
        if !due.is_empty() {
            let open = entry.open.clone();
            for number in due {
                let path = self.ask_next_node(&open, number, generation, ct_index, now);
                self.set_entry_path(ct_index, number, path);
            }
        }
        if !self.workers[ct_index.worker()].is_busy() {
            self.read_fan(Asker::Watch { ct_index, generation }, ct_index);
        }
        self.schedule_visit(ct_index, now + VISIT);
    }

    pub(super) fn set_entry_path(&mut self, ct_index: CtIndex, number: u8, mut path: EntryPath) {
        let Some(Part::Entry(entry)) = self.session(ct_index).map(|session| &mut session.part) else { return };
        let (place, care) = (&mut entry.paths[usize::from(number)], &mut entry.care[usize::from(number)]);
        match (&mut path, &*place) {
            (EntryPath::Down(_), _) => care.failed(),
            (EntryPath::Up { .. }, _) => care.silent = 0,
            (EntryPath::Calling { failure, .. }, EntryPath::Down(before)) => *failure = Some(before.clone()),
            (EntryPath::Calling { .. }, _) => {}
        }
        *place = path;
    }

    /// What a session's paths have brought by now.
    pub(super) fn on_path_report(&mut self, ct_index: CtIndex, generation: u16, report: &FanReport, now: Nanos) {
        let Some(session) = self.session(ct_index).filter(|session| session.generation == generation) else { return };
        if session.state != State::Open {
            return;
        }
        let Part::Entry(entry) = &mut session.part else { return };
        let has_moved = report.highest != entry.highest;
        entry.highest = report.highest;
        let mut broken = Vec::new();
        for (number, path) in (0u8..).zip(&entry.paths) {
            let received = report.paths[usize::from(number)].received;
            if entry.care[usize::from(number)].is_broken(received, has_moved) && matches!(path, EntryPath::Up { .. }) {
                broken.push(number);
            }
        }
        for number in broken {
            self.take_down(ct_index, number, now);
        }
    }

    /// Writes the links of all paths once more: they may have changed while it was not known whether the slot is kept.
    pub(super) fn write_links(&mut self, ct_index: CtIndex) {
        let Some(Part::Entry(entry)) = self.session(ct_index).map(|session| &session.part) else { return };
        let fan = entry.fan;
        let links: Vec<_> = entry
            .paths
            .iter()
            .map(|path| match path {
                EntryPath::Up { link, ports, .. } => Some((*link, *ports)),
                EntryPath::Calling { .. } | EntryPath::Down(_) => None,
            })
            .collect();
        for (path, link) in (0u8..).zip(links) {
            self.command(ct_index.worker(), Command::SetFanLink { fan, path, link });
        }
    }

    /// Nothing comes over a path any more: its next node is told to forget it, and it is set up anew at a later visit.
    fn take_down(&mut self, ct_index: CtIndex, number: u8, now: Nanos) {
        let Some(session) = self.session(ct_index) else { return };
        let (name, generation) = (session.name.clone(), session.generation);
        let Part::Entry(entry) = &mut session.part else { return };
        let EntryPath::Up { next, .. } = &entry.paths[usize::from(number)] else { return };
        let (next, fan) = (next.clone(), entry.fan);
        tracing::debug!(slot = ct_index.0, path = number, via = next.name, "nothing comes over a path any more");
        let failure = Failure { hop: next.name.clone(), reason: FailureReason::Silent };
        self.set_entry_path(ct_index, number, EntryPath::Down(failure));
        self.command(ct_index.worker(), Command::SetFanLink { fan, path: number, link: None });
        let upstream = self.link_end(ct_index, generation, 0);
        let teardown = Teardown { entry: name.entry, session: name.session, path: number, upstream };
        self.call_teardown(next, teardown, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::harness::Net,
        rpc::messages::{Opened, Request, Response},
    };

    const BOTH: [&str; 2] = ["in-left-out", "in-right-out"];

    fn net() -> Net {
        Net::new(&["in", "left", "out", "right"], 1, |_, _| ())
    }

    /// What the client is told when it asks once more.
    fn ask_again(net: &mut Net) -> Opened {
        let asked = net.ask("in", Request::Open(net.tunnel("alice", 1, &BOTH)));
        net.run(SECOND);
        let Response::Opened(opened) = net.answer(asked) else { panic!("{:?}", net.answer(asked)) };
        opened
    }

    /// Time passes with packets over these paths, up and down.
    fn run_with_traffic(net: &mut Net, opened: &Opened, paths: &[usize], time: Nanos) {
        for _ in 0..time / SECOND {
            paths.iter().for_each(|path| net.traffic(opened, *path));
            let worker = &mut net.node("in").workers[0];
            let fan = worker.slots[&opened.entry.ct_index.slot()].2;
            let report = worker.reports.entry(fan).or_default();
            report.highest += 1;
            paths.iter().for_each(|path| report.paths[*path].received += 1);
            net.run(SECOND);
        }
    }

    fn reason(opened: &Opened, path: usize) -> Option<FailureReason> {
        opened.paths[path].as_ref().map(|failure| failure.reason)
    }

    #[test]
    fn a_session_does_not_wait_for_a_path_that_does_not_answer() {
        let mut net = net();
        net.stop("right");
        let opened = net.open(net.tunnel("alice", 1, &BOTH));
        assert_eq!((reason(&opened, 0), reason(&opened, 1)), (None, Some(FailureReason::Pending)));
        net.trace(&opened, 0);
        run_with_traffic(&mut net, &opened, &[0], 6 * SECOND);
        assert_eq!(reason(&ask_again(&mut net), 1), Some(FailureReason::Unreachable));
    }

    #[test]
    fn a_path_whose_node_comes_back_comes_back() {
        let mut net = net();
        net.stop("right");
        let opened = net.open(net.tunnel("alice", 1, &BOTH));
        run_with_traffic(&mut net, &opened, &[0], 8 * SECOND);
        net.restart("right");
        run_with_traffic(&mut net, &opened, &[0], 15 * SECOND);
        let again = ask_again(&mut net);
        assert_eq!((again.entry, again.key), (opened.entry, opened.key), "the same session");
        assert_eq!(again.paths, [None, None]);
        net.trace(&again, 0);
        net.trace(&again, 1);
        net.close("in", "alice", [1; 16]);
        net.assert_all_free();
    }

    #[test]
    fn a_path_over_a_node_that_was_started_anew_is_set_up_again_by_the_next_visit() {
        let mut net = net();
        let opened = net.open(net.tunnel("alice", 1, &BOTH));
        net.restart("left");
        run_with_traffic(&mut net, &opened, &[1], 6 * SECOND);
        let again = ask_again(&mut net);
        assert_eq!(again.paths, [None, None]);
        net.trace(&again, 0);
        net.trace(&again, 1);
    }

    #[test]
    fn a_path_that_falls_silent_behind_the_next_node_is_taken_down_and_set_up_again() {
        let mut net = net();
        let opened = net.open(net.tunnel("alice", 1, &BOTH));
        let before = net.trace(&opened, 0);
        run_with_traffic(&mut net, &opened, &[1], 24 * SECOND);
        let again = ask_again(&mut net);
        assert_eq!(again.paths, [None, None]);
        let after = net.trace(&again, 0);
        assert_ne!(before[1], after[1], "the relay has a slot of a new use");
        net.close("in", "alice", [1; 16]);
        net.run(SECOND);
        net.assert_all_free();
    }

    #[test]
    fn where_no_path_delivers_none_is_blamed() {
        let mut net = net();
        let opened = net.open(net.tunnel("alice", 1, &BOTH));
        for _ in 0..40 {
            net.traffic(&opened, 0);
            net.traffic(&opened, 1);
            net.run(SECOND);
        }
        assert_eq!(ask_again(&mut net).paths, [None, None]);
        assert_eq!(net.summaries()[0].counters.setups, 0);
    }

    #[test]
    fn pauses_between_attempts_double_up_to_a_minute_and_a_packet_ends_them() {
        let mut care = Care::default();
        let waits: Vec<u8> = (0..7)
            .map(|_| {
                care.failed();
                care.wait
            })
            .collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 12, 12]);
        assert!(!care.is_broken(1, true));
        care.failed();
        assert_eq!(care.wait, 0);
    }

    #[test]
    fn only_a_path_that_is_silent_while_others_deliver_is_broken() {
        let mut care = Care::default();
        assert!(!care.is_broken(5, true));
        for _ in 0..100 {
            assert!(!care.is_broken(5, false), "nobody was to be heard");
        }
        assert_eq!(
            [5, 5, 6, 6, 6, 6].map(|received| care.is_broken(received, true)),
            [false, false, false, false, false, true]
        );
    }
}
