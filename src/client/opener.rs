//! Opens and closes sessions: topology from the control centre, a plan, an Open at the entry.
//!
//! Runs in a thread of its own with a tokio runtime; the data thread sends [`Order`]s and never waits. Decisions are
//! in [`Attempt`], which knows no socket and no clock. An Open is repeated under the same session number, so that
//! hearing it twice opens one session; what an answer that never came may have opened is closed.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::Instant,
};

use super::{
    config::ClientConfig,
    mailbox::{Letter, Mailbox},
    planner::{self, Plan, PlanError, Wishes},
    random,
};
use crate::{
    rpc::{
        cert::{ServerIdentity, Tls},
        messages::{
            Failure, FailureReason, NodeInfo, Open, Opened, Request, Response, SessionId, SessionKind, Topology,
        },
        quic::{CallError, Pool},
    },
    telemetry::operator::OperatorSocket,
};

/// For the control centre's answer.
const TOPOLOGY_TIMEOUT: Duration = Duration::from_secs(3);

/// For the entry's answer; the nodes behind it have to answer first, and each has a time-out of its own.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// For the answer to a check; there will be another one.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens sent before a session is given up.
const TRIES_MAX: u32 = 3;

/// Between two of them.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// For a Close; nobody waits for it, except a client that ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A topology of this age serves again: many connections may be opened at once.
const TOPOLOGY_FRESH: Duration = Duration::from_secs(1);

/// What the data thread asks for.
#[derive(Debug)]
pub enum Order {
    /// Plan and open nothing; the answer is a [`Letter::Planned`].
    Plan,
    /// Open a session; the answer is a [`Letter::Opened`] with the same ticket.
    Open {
        /// Names the order.
        ticket: u64,
        /// What the session will carry.
        kind: SessionKind,
    },
    /// Ask the entry how a session's paths do, by the Open it was opened with. An entry that was started anew opens it
    /// anew. The answer is a [`Letter::Checked`]; there is none where the entry does not answer.
    Check {
        /// Names the order.
        ticket: u64,
        /// What the session carries.
        kind: SessionKind,
        /// Which.
        session: SessionId,
        /// The plan it was opened by.
        plan: Plan,
    },
    /// End a session.
    Close {
        /// Its entry.
        entry: NodeInfo,
        /// Which.
        session: SessionId,
    },
}

/// A session as it was opened.
#[derive(Clone, Debug)]
pub struct OpenSession {
    /// Its number.
    pub id: SessionId,
    /// The plan it was opened by.
    pub plan: Plan,
    /// The entry's answer; says which of the plan's paths are open.
    pub opened: Opened,
}

impl OpenSession {
    /// The paths that could not be opened, one line each.
    fn partial_failures(&self) -> Vec<String> {
        let open = self.opened.paths.iter().filter(|failure| failure.is_none()).count();
        let failed = self.opened.paths.iter().zip(&self.plan.paths).enumerate();
        failed
            .filter_map(|(number, (failure, path))| {
                let via = match &path.nodes[1..path.nodes.len() - 1] {
                    [] => "direct".to_owned(),
                    inner => format!("via {}", inner.join(", ")),
                };
                let s = if open == 1 { "" } else { "s" };
                failure.as_ref().map(|failure| format!("path {number} {via}: {failure}; going on with {open} path{s}"))
            })
            .collect()
    }
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The topology could not be had.
    #[error("no topology: {0}")]
    Topology(String),
    /// The topology has no such paths.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// A node refused.
    #[error("{0}")]
    Failed(Failure),
    /// The entry did not answer.
    #[error("{0}")]
    Call(String),
    /// The answer makes no sense.
    #[error("the answer of {0} is not one to this request: is it of another version?")]
    Protocol(String),
}

impl OpenError {
    /// True where trying again would not help: the client itself, or its token, is not what it should be.
    pub fn is_final(&self) -> bool {
        use FailureReason::{BadRequest, NotAllowed, TokenExpired, Unauthorised};
        match self {
            Self::Failed(failure) => {
                matches!(failure.reason, BadRequest | NotAllowed | TokenExpired | Unauthorised)
            }
            Self::Plan(error) => matches!(error, PlanError::SameNode(_) | PlanError::NotWilling { .. }),
            Self::Topology(_) | Self::Call(_) | Self::Protocol(_) => false,
        }
    }
}

/// One session on its way to being open: sans-IO.
#[derive(Debug)]
pub struct Attempt {
    session: SessionId,
    plan: Plan,
    tries: u32,
}

/// What follows from an answer.
#[derive(Debug)]
pub enum Step {
    /// It is open.
    Open(Box<OpenSession>),
    /// Send the request again.
    Again,
    /// It will not open. `may_be_open` where the entry may have opened it all the same.
    Failed {
        /// Why.
        error: OpenError,
        /// True: close it.
        may_be_open: bool,
    },
}

impl Attempt {
    /// Number `session` must be random and never used before.
    pub fn new(session: SessionId, plan: Plan) -> Self {
        Self { session, plan, tries: 0 }
    }

    /// The same in each try.
    pub fn request(&self, token: &str, kind: SessionKind, mtu: u16) -> Request {
        Request::Open(Open {
            token: token.to_owned(),
            session: self.session,
            kind,
            mtu,
            paths: self.plan.paths.iter().map(|path| path.nodes.clone()).collect(),
        })
    }

    /// An answer, or that none came.
    pub fn on_answer(&mut self, answer: Result<Response, CallError>) -> Step {
        self.tries += 1;
        let may_try_again = self.tries < TRIES_MAX;
        let entry = || self.plan.entry.name.clone();
        match answer {
            Ok(Response::Opened(opened))
                if opened.paths.len() == self.plan.paths.len() && opened.paths.contains(&None) =>
            {
                Step::Open(Box::new(OpenSession { id: self.session, plan: self.plan.clone(), opened }))
            }
            Ok(Response::Failed(failure)) if failure.reason == FailureReason::Busy && may_try_again => Step::Again,
            Ok(Response::Failed(failure)) => Step::Failed { error: OpenError::Failed(failure), may_be_open: false },
            Ok(_) => Step::Failed { error: OpenError::Protocol(entry()), may_be_open: true },
            Err(_) if may_try_again => Step::Again,
            Err(error) => Step::Failed { error: OpenError::Call(error.to_string()), may_be_open: true },
        }
    }
}

/// The opener's thread, as the data thread sees it. Dropping it ends the thread, once what is being closed is closed.
#[derive(Debug)]
pub struct Opener {
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Opener {
    /// Starts the thread. Answers and the operator's questions go to `mailbox`.
    ///
    /// Errors where a certificate, a socket or a thread cannot be had; their texts say what to do.
    pub fn start(config: &ClientConfig, mailbox: Mailbox) -> Result<Self, String> {
        let tls = Tls::load_client(&config.ca).map_err(|error| error.to_string())?;
        let config = config.clone();
        let (orders, incoming) = mpsc::unbounded_channel();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("opener".into())
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready.send(Err(format!("no tokio runtime: {error}")))),
                };
                runtime.block_on(async {
                    match Work::new(config, &tls, mailbox) {
                        Ok((work, socket)) => {
                            let _ = ready.send(Ok(()));
                            serve(Arc::new(work), socket, incoming).await;
                        }
                        Err(error) => drop(ready.send(Err(error.to_string()))),
                    }
                });
            })
            .map_err(|error| format!("no thread for control messages: {error}"))?;
        match is_ready.recv() {
            Ok(Ok(())) => Ok(Self { orders: Some(orders), thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("the thread for control messages ended at its start".into()),
        }
    }

    /// Has something done; does not wait.
    pub fn order(&self, order: Order) {
        let Some(orders) = &self.orders else { return };
        if orders.send(order).is_err() {
            tracing::error!("the thread for control messages has ended");
        }
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the tasks of the opener's thread share.
struct Work {
    config: ClientConfig,
    wishes: Wishes,
    pool: Pool,
    mailbox: Mailbox,
    topology: Mutex<Option<(Instant, Arc<Topology>)>>,
}

impl Work {
    fn new(config: ClientConfig, tls: &Tls, mailbox: Mailbox) -> io::Result<(Self, Option<OperatorSocket>)> {
        let pool = Pool::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), tls)?;
        let socket = config.socket.as_deref().map(OperatorSocket::bind).transpose()?;
        let wishes = Wishes { entry: config.entry.clone(), exit: config.exit.clone(), paths: config.paths };
        Ok((Self { config, wishes, pool, mailbox, topology: Mutex::default() }, socket))
    }

    async fn plan(&self) -> Result<Plan, OpenError> {
        Ok(planner::plan(&*self.topology().await?, &self.wishes)?)
    }

    async fn open(&self, kind: SessionKind) -> Result<OpenSession, OpenError> {
        let plan = self.plan().await?;
        let entry = plan.entry.clone();
        let session = random();
        let mut attempt = Attempt::new(session, plan);
        let request = attempt.request(&self.config.token, kind, self.config.mtu());
        let identity = ServerIdentity::Node(entry.name.clone());
        loop {
            match attempt.on_answer(self.pool.call(&identity, entry.control, &request, OPEN_TIMEOUT).await) {
                Step::Open(session) => {
                    session.partial_failures().iter().for_each(|line| tracing::warn!("{line}"));
                    return Ok(*session);
                }
                Step::Again => tokio::time::sleep(TRY_AGAIN_AFTER).await,
                Step::Failed { error, may_be_open } => {
                    if may_be_open {
                        self.close(&entry, session).await;
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn check(&self, kind: SessionKind, session: SessionId, plan: Plan) -> Option<OpenSession> {
        let entry = plan.entry.clone();
        let mut attempt = Attempt::new(session, plan);
        let request = attempt.request(&self.config.token, kind, self.config.mtu());
        let identity = ServerIdentity::Node(entry.name.clone());
        let answer = self.pool.call(&identity, entry.control, &request, CHECK_TIMEOUT).await;
        match attempt.on_answer(answer) {
            Step::Open(session) => Some(*session),
            Step::Again => None,
            Step::Failed { error, .. } => {
                tracing::debug!("{} says nothing of the session's paths: {error}", entry.name);
                None
            }
        }
    }

    /// The topology: one of a moment ago, a new one, or, while the control centre does not answer, the last one.
    async fn topology(&self) -> Result<Arc<Topology>, OpenError> {
        let mut known = self.topology.lock().await;
        if let Some((at, topology)) = &*known
            && at.elapsed() < TOPOLOGY_FRESH
        {
            return Ok(Arc::clone(topology));
        }
        let request = Request::Topology { token: self.config.token.clone() };
        let controller = self.config.controller;
        let error = match self.pool.call(&ServerIdentity::Controller, controller, &request, TOPOLOGY_TIMEOUT).await {
            Ok(Response::Topology(topology)) => {
                let topology = Arc::new(topology);
                *known = Some((Instant::now(), Arc::clone(&topology)));
                return Ok(topology);
            }
            Ok(Response::Failed(failure)) => return Err(OpenError::Failed(failure)),
            Ok(_) => return Err(OpenError::Protocol("the control centre".into())),
            Err(error) => error,
        };
        match &*known {
            Some((_, topology)) => {
                tracing::warn!("{error}; planning with the last topology");
                Ok(Arc::clone(topology))
            }
            None => Err(OpenError::Topology(error.to_string())),
        }
    }

    /// Best effort: a session nobody closes ages.
    async fn close(&self, entry: &NodeInfo, session: SessionId) {
        let request = Request::Close { token: self.config.token.clone(), session };
        let identity = ServerIdentity::Node(entry.name.clone());
        match self.pool.call(&identity, entry.control, &request, CLOSE_TIMEOUT).await {
            Ok(Response::Closed) => {}
            Ok(Response::Failed(Failure { reason: FailureReason::UnknownSession, .. })) => {}
            Ok(Response::Failed(failure)) => tracing::debug!("session not closed: {failure}"),
            Ok(_) => tracing::debug!("session not closed: {} answered something else", entry.name),
            Err(error) => tracing::debug!("session not closed: {error}"),
        }
    }

    /// Has the data thread answer the operator.
    async fn ask(&self, topic: String) -> Result<Value, String> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.mailbox.post(Letter::Question { topic, reply });
        answer.await.map_err(|_| "the client is ending".to_owned())?
    }
}

/// Carries out orders until nobody is left to give any, then waits for the sessions that are being closed.
async fn serve(work: Arc<Work>, socket: Option<OperatorSocket>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let operator = socket.map(|socket| {
        let work = Arc::clone(&work);
        tokio::spawn(async move {
            let answer = move |topic| {
                let work = Arc::clone(&work);
                async move { work.ask(topic).await }
            };
            socket.serve(answer).await;
        })
    });
    let mut opening = JoinSet::new();
    let mut closing = JoinSet::new();
    while let Some(order) = orders.recv().await {
        let work = Arc::clone(&work);
        match order {
            Order::Plan => drop(opening.spawn(async move {
                let result = work.plan().await;
                work.mailbox.post(Letter::Planned(result.map(Box::new)));
            })),
            Order::Open { ticket, kind } => drop(opening.spawn(async move {
                let result = work.open(kind).await;
                work.mailbox.post(Letter::Opened { ticket, result: result.map(Box::new) });
            })),
            Order::Check { ticket, kind, session, plan } => drop(opening.spawn(async move {
                if let Some(details) = work.check(kind, session, plan).await {
                    work.mailbox.post(Letter::Checked { ticket, details: Box::new(details) });
                }
            })),
            Order::Close { entry, session } => drop(closing.spawn(async move { work.close(&entry, session).await })),
        }
        while opening.try_join_next().is_some() {}
        while closing.try_join_next().is_some() {}
    }
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, async { while closing.join_next().await.is_some() {} }).await;
    if let Some(operator) = operator {
        // Aborting and waiting drops the socket, which removes its file.
        operator.abort();
        let _ = operator.await;
    }
    work.pool.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::session::tests::opened,
        rpc::messages::{LinkQuality, Roles, TopologyLink},
    };

    fn plan() -> Plan {
        let node = |name: &str, entry, relay, exit| NodeInfo {
            name: name.into(),
            control: "192.0.2.1:4433".parse().unwrap(),
            data: "192.0.2.1:40000".parse().unwrap(),
            roles: Roles { entry, relay, exit },
            boot_epoch: 1,
        };
        let link = |from: &str, to: &str| TopologyLink {
            from: from.into(),
            to: to.into(),
            quality: LinkQuality { probes: 1, rtt_p50_us: 1000, ..LinkQuality::default() },
        };
        let topology = Topology {
            nodes: vec![
                node("in", true, false, false),
                node("relay-a", false, true, false),
                node("relay-b", false, true, false),
                node("out", false, false, true),
            ],
            links: vec![link("in", "relay-a"), link("relay-a", "out"), link("in", "relay-b"), link("relay-b", "out")],
        };
        planner::plan(&topology, &Wishes { entry: None, exit: None, paths: 2 }).unwrap()
    }

    fn timeout() -> CallError {
        CallError::Timeout {
            to: ServerIdentity::Node("in".into()),
            address: "192.0.2.1:4433".parse().unwrap(),
            after: OPEN_TIMEOUT,
        }
    }

    fn failure(reason: FailureReason) -> Failure {
        Failure { hop: "relay-b".into(), reason }
    }

    #[test]
    fn every_try_asks_for_the_same_session() {
        let mut attempt = Attempt::new([7; 16], plan());
        let kind = SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None };
        let first = attempt.request("token", kind, 1400);
        assert!(matches!(attempt.on_answer(Err(timeout())), Step::Again));
        assert_eq!(attempt.request("token", kind, 1400), first);
        let Request::Open(open) = first else { panic!("an Open") };
        assert_eq!((open.session, open.paths.len(), open.paths[1].len()), ([7; 16], 2, 3));
    }

    #[test]
    fn an_entry_that_stays_silent_is_given_up_and_what_it_may_have_opened_is_closed() {
        let mut attempt = Attempt::new([7; 16], plan());
        for _ in 1..TRIES_MAX {
            assert!(matches!(attempt.on_answer(Err(timeout())), Step::Again));
        }
        let Step::Failed { error, may_be_open: true } = attempt.on_answer(Err(timeout())) else { panic!("given up") };
        assert_eq!(error.to_string(), "in at 192.0.2.1:4433 did not answer within 5000 ms");
        assert!(!error.is_final());
    }

    #[test]
    fn a_busy_entry_is_asked_again_and_a_refusal_is_told_with_its_hop() {
        let mut attempt = Attempt::new([7; 16], plan());
        assert!(matches!(attempt.on_answer(Ok(Response::Failed(failure(FailureReason::Busy)))), Step::Again));
        let refused = attempt.on_answer(Ok(Response::Failed(failure(FailureReason::TokenExpired))));
        let Step::Failed { error, may_be_open: false } = refused else { panic!("refused") };
        assert_eq!(error.to_string(), "the token has expired (at relay-b)");
        assert!(error.is_final());
    }

    #[test]
    fn a_path_that_failed_is_told_and_the_session_starts_with_the_rest() {
        let mut attempt = Attempt::new([7; 16], plan());
        let mut answer = opened();
        answer.paths = vec![None, Some(failure(FailureReason::Unreachable))];
        let Step::Open(session) = attempt.on_answer(Ok(Response::Opened(answer))) else { panic!("open") };
        assert_eq!(
            session.partial_failures(),
            ["path 1 via relay-b: the next node did not answer in time (at relay-b); going on with 1 path"]
        );
    }

    #[test]
    fn an_answer_that_opens_no_path_or_is_for_something_else_is_refused() {
        let mut closed = opened();
        closed.paths = vec![Some(failure(FailureReason::Unreachable)); 2];
        let mut short = opened();
        short.paths = vec![None];
        for answer in [Response::Opened(closed), Response::Opened(short), Response::Closed] {
            let mut attempt = Attempt::new([7; 16], plan());
            assert!(matches!(attempt.on_answer(Ok(answer)), Step::Failed { error: OpenError::Protocol(_), .. }));
        }
    }
}
