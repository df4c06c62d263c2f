//! Requests to other nodes: time-outs, one retry, and answers that come too late.
//!
//! A retry is a call of its own with the same content; whichever is answered first counts. When a Setup is given up,
//! the next node may still have done what was asked, so it is told to undo it, at once and again if its answer
//! comes after all.

use std::collections::{BTreeSet, HashMap};

use super::{
    Control,
    interface::{CallId, Effect},
    sessions::{Downstream, Hop, link, source_ports},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    dataplane::conntrack::{CtIndex, NodeKey},
    limits::HOPS_MAX,
    rpc::messages::{Failure, FailureReason, Request, Response, SetUp, Setup, Teardown},
};

/// A call is repeated after this.
const TIME_OUT: Nanos = 2 * SECOND;

/// Further time after the last attempt for each node behind the next one, so that the node next to a dead one gives
/// up first and its name reaches the client.
const GRACE_A_HOP: Nanos = 500 * MILLISECOND;

/// Calls for one exchange.
const ATTEMPTS: u64 = 2;

/// A time-out is longer by a random part of this, so that what was lost together is not repeated together.
const JITTER_MS: u32 = 100;

/// How long the transport must keep a call open: an answer that comes later than this is not waited for.
pub const CALL_PATIENCE: Nanos = TIME_OUT + GRACE_A_HOP * HOPS_MAX as u64;

/// How long the late answer of an abandoned Setup is recognised. Later than that, what it allocated has aged out.
const ABANDONED: Nanos = 30 * SECOND;

/// What is done with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A path of the session in this slot.
    Setup { ct_index: CtIndex, path: u8 },
    /// The session does not want the path any more.
    Abandoned,
    /// Nothing waits for it.
    Teardown,
}

#[derive(Debug)]
struct Exchange {
    to: Hop,
    request: Request,
    purpose: Purpose,
    attempt: u64,
    deadline: Nanos,
}

/// All exchanges that are not over. `CallId` is the exchange's number times [`ATTEMPTS`] plus the attempt's.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    next: u64,
    open: HashMap<u64, Exchange>,
    deadlines: BTreeSet<(Nanos, u64)>,
}

impl Exchanges {
    /// Exchanges that something waits for.
    pub(super) fn len(&self) -> usize {
        self.open.values().filter(|exchange| exchange.purpose != Purpose::Abandoned).count()
    }

    fn remove(&mut self, number: u64) -> Option<Exchange> {
        let exchange = self.open.remove(&number)?;
        self.deadlines.remove(&(exchange.deadline, number));
        Some(exchange)
    }

    fn set_deadline(&mut self, number: u64, deadline: Nanos) {
        if let Some(exchange) = self.open.get_mut(&number) {
            self.deadlines.remove(&(exchange.deadline, number));
            exchange.deadline = deadline;
            self.deadlines.insert((deadline, number));
        }
    }
}

impl Control {
    /// The other node answered (or, `None`, could not be reached, or the transport gave up).
    pub fn on_response(&mut self, call: CallId, response: Option<Response>, now: Nanos) {
        let (number, attempt) = (call.0 / ATTEMPTS, call.0 % ATTEMPTS);
        let Some(exchange) = self.exchanges.open.get(&number) else { return };
        match response {
            Some(response) => self.answered(number, response, now),
            // An earlier attempt's failure says nothing while a later one is under way.
            None if exchange.attempt == attempt && exchange.purpose != Purpose::Abandoned => {
                self.attempt_failed(number, now);
            }
            None => {}
        }
    }

    /// Asks the next node of a path; the answer goes to the session in slot `ct_index`.
    pub(super) fn call_setup(&mut self, to: Hop, setup: Setup, ct_index: CtIndex, now: Nanos) -> u64 {
        let path = setup.path;
        self.start(to, Request::Setup(setup), Purpose::Setup { ct_index, path }, now)
    }

    /// Tells the next node of a path that it is over.
    pub(super) fn call_teardown(&mut self, to: Hop, teardown: Teardown, now: Nanos) {
        self.start(to, Request::Teardown(teardown), Purpose::Teardown, now);
    }

    /// Gives up a Setup whose answer is not there yet.
    pub(super) fn abandon(&mut self, number: u64, now: Nanos) {
        let Some(exchange) = self.exchanges.open.get_mut(&number) else { return };
        if exchange.purpose == Purpose::Abandoned {
            return;
        }
        exchange.purpose = Purpose::Abandoned;
        self.exchanges.set_deadline(number, now + ABANDONED);
        self.undo(number, now);
    }

    /// Repeats or gives up the calls that were not answered in time.
    pub(super) fn expire_exchanges(&mut self, now: Nanos) {
        while let Some(&(_, number)) = self.exchanges.deadlines.first().filter(|(deadline, _)| *deadline <= now) {
            match self.exchanges.open.get(&number).map(|exchange| exchange.purpose) {
                Some(Purpose::Setup { .. } | Purpose::Teardown) => self.attempt_failed(number, now),
                Some(Purpose::Abandoned) | None => drop(self.exchanges.remove(number)),
            }
        }
    }

    fn start(&mut self, to: Hop, request: Request, purpose: Purpose, now: Nanos) -> u64 {
        let number = self.exchanges.next;
        self.exchanges.next += 1;
        let deadline = now + TIME_OUT + self.jitter();
        self.exchanges.open.insert(number, Exchange { to, request, purpose, attempt: 0, deadline });
        self.exchanges.deadlines.insert((deadline, number));
        self.send_attempt(number);
        number
    }

    fn jitter(&mut self) -> Nanos {
        Nanos::from(self.random.below(JITTER_MS)) * MILLISECOND
    }

    fn send_attempt(&mut self, number: u64) {
        let Some(exchange) = self.exchanges.open.get(&number) else { return };
        let call = CallId(number * ATTEMPTS + exchange.attempt);
        let (to, address) = (exchange.to.name.clone(), exchange.to.control);
        let request = exchange.request.clone();
        self.effects.push_back(Effect::Call { call, to, address, request });
    }

    fn attempt_failed(&mut self, number: u64, now: Nanos) {
        let Some(exchange) = self.exchanges.open.get_mut(&number) else { return };
        if exchange.attempt + 1 < ATTEMPTS {
            exchange.attempt += 1;
            let hops_behind = match &exchange.request {
                Request::Setup(setup) => setup.route.len() as u64 - 1,
                _ => 0,
            };
            let time_out = TIME_OUT + GRACE_A_HOP * hops_behind + self.jitter();
            self.exchanges.set_deadline(number, now + time_out);
            self.send_attempt(number);
            return;
        }
        let (purpose, hop) = (exchange.purpose, exchange.to.name.clone());
        match purpose {
            Purpose::Setup { ct_index, path } => {
                self.abandon(number, now);
                let failure = Failure { hop, reason: FailureReason::Unreachable };
                self.path_answered(ct_index, path, Err(failure), now);
            }
            // What the next node keeps of the path ages out there.
            Purpose::Teardown | Purpose::Abandoned => drop(self.exchanges.remove(number)),
        }
    }

    fn answered(&mut self, number: u64, response: Response, now: Nanos) {
        let Some(exchange) = self.exchanges.open.get(&number) else { return };
        let (ct_index, path) = match exchange.purpose {
            Purpose::Setup { ct_index, path } => (ct_index, path),
            Purpose::Teardown => return drop(self.exchanges.remove(number)),
            Purpose::Abandoned => {
                if matches!(response, Response::SetUp(_)) {
                    self.counters.late_answers += 1;
                    self.undo(number, now);
                }
                return;
            }
        };
        let attempt = exchange.attempt;
        let result = match response {
            Response::SetUp(answer)
                if answer.downstream.data == exchange.to.data && self.is_source_port(answer.downstream.source_port) =>
            {
                let to = exchange.to.name.clone();
                match self.learnt_node_key(&to, answer.key, now) {
                    Ok(key) => Ok(self.downstream(number, &answer, key)),
                    // Of a node that tells of ever other keys.
                    Err(_) => Err(Failure { hop: to, reason: FailureReason::BadRequest }),
                }
            }
            Response::Failed(failure) => Err(failure),
            // An answer of another kind, or one that points at a third party.
            _ => Err(Failure { hop: exchange.to.name.clone(), reason: FailureReason::BadRequest }),
        };
        match &result {
            Ok(_) => drop(self.exchanges.remove(number)),
            // The other attempt may yet succeed over there.
            Err(failure) if attempt > 0 || failure.reason == FailureReason::BadRequest => {
                self.abandon(number, now);
            }
            Err(_) => drop(self.exchanges.remove(number)),
        }
        self.path_answered(ct_index, path, result, now);
    }

    /// What an answer says of the hop.
    fn downstream(&self, number: u64, answer: &SetUp, key: NodeKey) -> Downstream {
        let exchange = &self.exchanges.open[&number];
        let to = &exchange.to;
        let theirs = match &exchange.request {
            Request::Setup(setup) => setup.upstream.source_port,
            _ => to.data.port(),
        };
        Downstream {
            next: Hop { boot_epoch: answer.boot_epoch, ..to.clone() },
            link: link(answer.downstream, key),
            ports: source_ports(self.data_address(), answer.downstream.source_port, to.data, theirs),
            exit_address: answer.exit_address,
            exit_address6: answer.exit_address6,
        }
    }

    /// Tells the node that was asked for a path to undo it.
    fn undo(&mut self, number: u64, now: Nanos) {
        let Some(exchange) = self.exchanges.open.get(&number) else { return };
        let to = exchange.to.clone();
        if let Some(teardown) = teardown_of(&exchange.request) {
            self.call_teardown(to, teardown, now);
        }
    }

    fn path_answered(&mut self, ct_index: CtIndex, path: u8, result: Result<Downstream, Failure>, now: Nanos) {
        if self.is_entry(ct_index) {
            self.entry_path_answered(ct_index, path, result, now);
        } else {
            self.relay_answered(ct_index, result, now);
        }
    }
}

/// What undoes a Setup.
fn teardown_of(request: &Request) -> Option<Teardown> {
    match request {
        Request::Setup(setup) => Some(Teardown {
            entry: setup.entry.clone(),
            session: setup.session,
            path: setup.path,
            upstream: setup.upstream,
        }),
        _ => None,
    }
}
