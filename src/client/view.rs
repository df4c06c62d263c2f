//! What the operator's socket of a client answers.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use super::{drops::Drops, flow::Flow, session::Counters};
use crate::{
    Nanos, SECOND,
    control::show_sessions::SessionFilter,
    rpc::messages::{SessionId, SessionKind},
    telemetry::{show::DropView, show_sessions},
};

/// One session, open or not.
#[derive(Clone, Debug, Serialize)]
pub struct SessionView {
    /// The session's number; none while it is being opened.
    pub session: Option<String>,
    /// `tunnel`, `udp` or `tcp`.
    pub kind: &'static str,
    /// Source of the inner packets.
    pub source: String,
    /// The same of IPv6, for a tunnel that carries it.
    pub source6: Option<String>,
    /// Their destination, for a flow.
    pub server: Option<String>,
    /// `opening`, `waiting` (for the first answer of the exit) or `ready`.
    pub state: &'static str,
    /// The entry's name.
    pub entry: Option<String>,
    /// The exit's name.
    pub exit: Option<String>,
    /// Where the exit sends from.
    pub exit_address: Option<String>,
    /// The same of IPv6, where it sends that.
    pub exit_address6: Option<String>,
    /// Paths that are open.
    pub paths: usize,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// Milliseconds since the exit was last heard of.
    pub heard_ms: Option<u64>,
    /// What passed.
    #[serde(flatten)]
    pub counters: Counters,
}

/// One path of a session.
#[derive(Clone, Debug, Serialize)]
pub struct PathView {
    /// The session's number.
    pub session: String,
    /// The path's number.
    pub path: usize,
    /// From entry to exit.
    pub nodes: Vec<String>,
    /// One way, microseconds, when it was planned.
    pub latency_us: u64,
    /// Probes lost, 0 to 1, when it was planned.
    pub loss: f64,
    /// False where a link of it had no measurements.
    pub is_measured: bool,
    /// `open`, or why not.
    pub state: String,
}

/// The answer to a question, or what can be asked.
pub(super) fn answer(topic: &str, flows: &HashMap<u64, Flow>, drops: &Drops, now: Nanos) -> Result<Value, String> {
    let topic = match show_sessions::read(topic) {
        Some(question) => {
            let (topic, question) = question?;
            if question.filter != SessionFilter::default() {
                return Err("a client shows all of its sessions: there are no filters".to_owned());
            }
            topic.name()
        }
        None => topic,
    };
    let mut flows: Vec<_> = flows.iter().collect();
    flows.sort_by_key(|(id, _)| **id);
    let flows = flows.into_iter().map(|(_, flow)| flow);
    let value = match topic {
        "sessions" => serde_json::to_value(flows.map(|flow| session(flow, now)).collect::<Vec<_>>()),
        "paths" => serde_json::to_value(flows.flat_map(paths).collect::<Vec<_>>()),
        "drops" => serde_json::to_value(drops.iter().map(drop_view).collect::<Vec<_>>()),
        _ => return Err(format!("a client does not know '{topic}'; it knows sessions, paths and drops")),
    };
    value.map_err(|error| error.to_string())
}

fn session(flow: &Flow, now: Nanos) -> SessionView {
    let (kind, source, server) = match flow.carrier.kind() {
        SessionKind::Tunnel { inside, .. } => ("tunnel", inside.to_string(), None),
        SessionKind::Flow { protocol, source, server } => {
            let kind = if protocol == crate::wire::ip4::TCP { "tcp" } else { "udp" };
            (kind, source.to_string(), Some(server.to_string()))
        }
    };
    let live = flow.carrier.live();
    let details = live.map(|live| &live.details);
    SessionView {
        session: details.map(|details| hex(&details.id)),
        kind,
        source,
        source6: match flow.carrier.kind() {
            SessionKind::Tunnel { inside6, .. } => inside6.map(|address| address.to_string()),
            SessionKind::Flow { .. } => None,
        },
        server,
        state: match live {
            None => "opening",
            Some(live) if live.session.is_ready() => "ready",
            Some(_) => "waiting",
        },
        entry: details.map(|details| details.plan.entry.name.clone()),
        exit: details.map(|details| details.plan.exit.name.clone()),
        exit_address: details.map(|details| details.opened.exit_address.to_string()),
        exit_address6: details.and_then(|details| details.opened.exit_address6.map(|address| address.to_string())),
        paths: details.map_or(0, |details| details.opened.paths.iter().filter(|path| path.is_none()).count()),
        age_s: live.map_or(0, |live| (now - live.since) / SECOND),
        heard_ms: live.map(|live| (now - live.session.heard()) / crate::MILLISECOND),
        counters: live.map(|live| live.session.counters()).unwrap_or_default(),
    }
}

fn paths(flow: &Flow) -> Vec<PathView> {
    let Some(live) = flow.carrier.live() else { return Vec::new() };
    let details = &live.details;
    let paths = details.plan.paths.iter().zip(&details.opened.paths).enumerate();
    paths
        .map(|(number, (path, failure))| PathView {
            session: hex(&details.id),
            path: number,
            nodes: path.nodes.clone(),
            latency_us: path.latency_us,
            loss: path.loss,
            is_measured: path.is_measured,
            state: failure.as_ref().map_or_else(|| "open".to_owned(), ToString::to_string),
        })
        .collect()
}

fn drop_view((reason, packets): (super::drops::Reason, u64)) -> DropView {
    DropView { counter: format!("client.drop.{}", reason.name()), packets, meaning: reason.sentence().to_owned() }
}

fn hex(id: &SessionId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
