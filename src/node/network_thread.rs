//! The thread of everything that waits for sockets: control messages in and out, the control centre, the operator,
//! metrics.
//! One tokio runtime in one thread; it decides nothing.

use std::{
    future, io,
    net::SocketAddrV4,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
    time::{self, Instant, MissedTickBehavior},
};

use super::{
    config::{NodeConfig, OverlayConfig},
    control_thread::{Call, ControlSender, Input},
    metrics,
    operation::Order,
    views::Facts,
};
use crate::{
    control::CALL_PATIENCE,
    rpc::{
        cert::{ServerIdentity, Tls, node_dns_name},
        files::FileError,
        messages::{FailureReason, Register, Request, Response},
        quic::{Incoming, ListenError, Pool, Server},
    },
    telemetry::{
        http::{self, MetricsServer},
        operator::OperatorSocket,
        show::Topic,
        show_nat, show_sessions,
    },
};

/// How long another node may take to answer: it may be waiting for the next one itself.
const NODE_TIMEOUT: Duration = Duration::from_nanos(CALL_PATIENCE);

/// How long the control centre may take to answer.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two reports to the control centre.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The longest stall of the control core that can be asked for: it is to be felt, and not to be taken for its death.
const STALL_MS_MAX: u64 = 1000;

/// How long the control core may take to answer an operator.
const CORE_TIMEOUT: Duration = Duration::from_secs(2);

/// The sockets of a node, bound, with the runtime that serves them.
pub(super) struct Network {
    runtime: Runtime,
    /// None at a node without an overlay.
    overlay: Option<Overlay>,
    operator: OperatorSocket,
    metrics: Option<MetricsServer>,
}

/// What other nodes, clients and the control centre are spoken to by.
struct Overlay {
    controller: SocketAddrV4,
    server: Server,
    incoming: mpsc::Receiver<Incoming>,
    pool: Pool,
}

/// Why a node's sockets could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The certificate or key is wrong.
    #[error(transparent)]
    Files(#[from] FileError),
    /// No runtime.
    #[error("cannot start the network runtime: {0}")]
    Runtime(io::Error),
    /// The control address.
    #[error("node.control: {0}")]
    Control(#[from] ListenError),
    /// Calls to others.
    #[error("cannot make calls to other nodes: {0}")]
    Pool(io::Error),
    /// The operator's socket.
    #[error("node.socket: {0}")]
    Operator(io::Error),
    /// The metrics' address.
    #[error(transparent)]
    Metrics(#[from] http::ListenError),
}

impl Network {
    /// Binds the control address, the operator's socket and the metrics' address. Nothing is answered before [`Network::run`].
    pub(super) fn bind(config: &NodeConfig) -> Result<Self, NetworkError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NetworkError::Runtime)?;
        let guard = runtime.enter();
        let overlay = match &config.overlay {
            Some(overlay) => Some(Overlay::bind(overlay, &config.name)?),
            None => None,
        };
        let operator = OperatorSocket::bind(&config.socket).map_err(NetworkError::Operator)?;
        let metrics = config.metrics.map(MetricsServer::bind).transpose()?;
        drop(guard);
        Ok(Self { runtime, overlay, operator, metrics })
    }

    /// Serves until `stop` is sent or dropped, then tells every peer and removes the operator's socket.
    pub(super) fn run(
        self,
        control: &ControlSender,
        calls: mpsc::UnboundedReceiver<Call>,
        register: Register,
        facts: &Arc<Facts>,
        stop: oneshot::Receiver<()>,
    ) {
        let Self { runtime, mut overlay, operator, metrics: server } = self;
        runtime.block_on(async {
            let answer = {
                let (control, facts) = (control.clone(), Arc::clone(facts));
                move |topic| show(topic, control.clone(), Arc::clone(&facts))
            };
            let measure = {
                let (control, facts) = (control.clone(), Arc::clone(facts));
                move || metrics::text(control.clone(), Arc::clone(&facts))
            };
            tokio::select! {
                _ = stop => {}
                () = serve_overlay(overlay.as_mut(), calls, register, facts, control) => {}
                () = operator.serve(answer) => {}
                () = serve_metrics(server.as_ref(), measure) => {}
            }
            if let Some(Overlay { server, pool, .. }) = overlay {
                pool.close();
                server.close().await;
            }
        });
    }
}

impl Overlay {
    fn bind(config: &OverlayConfig, name: &str) -> Result<Self, NetworkError> {
        let tls = &config.tls;
        let tls = Tls::load(&tls.ca, &tls.certificate, &tls.key, &node_dns_name(name))?;
        let (server, incoming) = Server::listen(config.control, &tls)?;
        let pool = Pool::sharing(&server, &tls).map_err(NetworkError::Pool)?;
        Ok(Self { controller: config.controller, server, incoming, pool })
    }
}

/// Does not end.
async fn serve_overlay(
    overlay: Option<&mut Overlay>,
    calls: mpsc::UnboundedReceiver<Call>,
    register: Register,
    facts: &Facts,
    control: &ControlSender,
) {
    let Some(Overlay { controller, incoming, pool, .. }) = overlay else { return future::pending().await };
    tokio::select! {
        () = pass_requests(incoming, control) => {}
        () = make_calls(calls, pool, control) => {}
        () = keep_registered(pool, *controller, register, facts, control) => {}
    }
}

/// Does not end.
async fn serve_metrics<A>(server: Option<&MetricsServer>, measure: impl Fn() -> A + Clone + Send + Sync + 'static)
where
    A: Future<Output = String> + Send + 'static,
{
    match server {
        Some(server) => server.serve(measure).await,
        None => future::pending().await,
    }
}

async fn pass_requests(incoming: &mut mpsc::Receiver<Incoming>, control: &ControlSender) {
    while let Some(Incoming { caller, request, responder }) = incoming.recv().await {
        control.send(Input::Request { caller, request, responder });
    }
}

async fn make_calls(mut calls: mpsc::UnboundedReceiver<Call>, pool: &Pool, control: &ControlSender) {
    while let Some(Call { call, to, address, request }) = calls.recv().await {
        let (pool, control) = (pool.clone(), control.clone());
        tokio::spawn(async move {
            let result = pool.call(&ServerIdentity::Node(to), address, &request, NODE_TIMEOUT).await;
            let response = result.inspect_err(|error| tracing::debug!("{error}")).ok();
            control.send(Input::Answer { call, response });
        });
    }
}

/// Presents the node to the control centre, then reports to it each second. While it is away the node goes on with
/// what it knows; one log line says so, and one that it is back.
async fn keep_registered(
    pool: &Pool,
    address: SocketAddrV4,
    register: Register,
    facts: &Facts,
    control: &ControlSender,
) {
    let mut interval = time::interval_at(Instant::now(), REPORT_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was logged last, so that it is not said each second.
    let mut trouble: Option<String> = None;
    let mut is_known = false;
    loop {
        interval.tick().await;
        let request = match is_known {
            true => match report(control).await {
                Some(report) => report,
                None => continue,
            },
            false => Request::Register(register.clone()),
        };
        let result = pool.call(&ServerIdentity::Controller, address, &request, CONTROLLER_TIMEOUT).await;
        let new_trouble = match result {
            Ok(Response::Neighbours(neighbours)) => {
                if !is_known || trouble.is_some() {
                    tracing::info!(controller = %address, neighbours = neighbours.nodes.len(), "registered");
                }
                is_known = true;
                control.send(Input::Neighbours(neighbours));
                None
            }
            Ok(Response::Failed(failure)) if is_known && failure.reason == FailureReason::UnknownNode => {
                tracing::info!(controller = %address, "the control centre does not know this node any more: registering anew");
                is_known = false;
                interval.reset_immediately();
                continue;
            }
            Ok(Response::Failed(failure)) => Some(failure.to_string()),
            Ok(_) => Some("the control centre gave an answer of another kind".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        facts.is_registered.store(new_trouble.is_none(), Relaxed);
        if let Some(why) = &new_trouble
            && trouble.is_none()
        {
            tracing::warn!("{why}; going on with what is known, and trying again each second");
        }
        trouble = new_trouble;
    }
}

async fn report(control: &ControlSender) -> Option<Request> {
    let (sender, receiver) = oneshot::channel();
    control.send(Input::Report(sender));
    receiver.await.ok().map(Request::Report)
}

/// Answers an operator.
async fn show(topic: String, control: ControlSender, facts: Arc<Facts>) -> Result<Value, String> {
    if let Some(order) = Order::from_name(&topic) {
        return order.carry_out(&control, &facts).await;
    }
    if let Some(question) = show_sessions::read(&topic) {
        let (topic, question) = question?;
        if topic == Topic::Paths {
            return asked(&control, |answer| Input::ShowPaths { question, answer }).await;
        }
        return asked(&control, |answer| Input::ShowSessions { question, answer }).await;
    }
    if let Some(question) = topic.strip_prefix(show_nat::ASK) {
        let question =
            serde_json::from_str(question).map_err(|error| format!("not a question about the NAT: {error}"))?;
        return asked(&control, |answer| Input::ShowNat { question, answer }).await;
    }
    if let Some(order) = topic.strip_prefix(show_nat::CLEAR) {
        let (filter, after) = serde_json::from_str(order).map_err(|error| format!("not an order to clear: {error}"))?;
        return asked(&control, |answer| Input::ClearNat { filter, after, answer }).await;
    }
    if topic == "residence" {
        let measured = metrics::measure(&control).await.ok_or("the control core did not answer in time")?;
        return serde_json::to_value(measured.residence()).map_err(|error| error.to_string());
    }
    if let Some(milliseconds) = topic.strip_prefix("stall ") {
        let milliseconds = milliseconds.parse().ok().filter(|time| *time <= STALL_MS_MAX);
        let time = milliseconds.ok_or_else(|| format!("a stall lasts 0 to {STALL_MS_MAX} milliseconds"))?;
        let (answer, receiver) = oneshot::channel();
        control.send(Input::Stall { time: Duration::from_millis(time), answer });
        return answered(receiver).await.map(|()| Value::Null);
    }
    let topic = Topic::from_name(&topic).ok_or_else(|| format!("'{topic}' is not something that a node shows"))?;
    if let Some(answer) = facts.show(topic) {
        return answer;
    }
    if topic == Topic::Node {
        let (sender, receiver) = oneshot::channel();
        control.send(Input::Summary(sender));
        let summary = time::timeout(CORE_TIMEOUT, receiver).await;
        return facts.node(summary.ok().and_then(Result::ok));
    }
    let (answer, receiver) = oneshot::channel();
    control.send(Input::Show { topic, answer });
    answered(receiver).await?
}

/// What the control core answers, as JSON: to write it is this thread's work, not that of the control core's.
async fn asked<T: Serialize>(
    control: &ControlSender,
    input: impl FnOnce(oneshot::Sender<T>) -> Input,
) -> Result<Value, String> {
    let (answer, receiver) = oneshot::channel();
    control.send(input(answer));
    serde_json::to_value(answered(receiver).await?).map_err(|error| error.to_string())
}

/// What the control core answers.
async fn answered<T>(receiver: oneshot::Receiver<T>) -> Result<T, String> {
    match time::timeout(CORE_TIMEOUT, receiver).await {
        Ok(Ok(answer)) => Ok(answer),
        _ => Err("the control core did not answer in time; `starnet show workers` works without it".to_owned()),
    }
}
