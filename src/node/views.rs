//! What a node shows its operator, made from what it publishes and from its control core.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    clock::NodeClock,
    config::{IdlePolicy, NodeConfig},
    nics::{Nic, Nics},
};
use crate::{
    MILLISECOND, Nanos, SECOND,
    control::{Control, RequestId, SessionView, Summary, page::Page},
    dataplane::{
        conntrack::{CtIndex, FanReport},
        graph::NODES,
        huge::Memory,
        published::{NodeCounters, Published, WorkerCounters},
        reason::Reason,
        rss::Queues,
    },
    rpc::messages::Roles,
    telemetry::{
        histogram::Histograms,
        show::{DropView, EdgeView, GraphNodeView, InterfaceView, LatencyView, NodeView, PathRow, Topic, WorkerView},
    },
};

/// What a node knows of itself; read while it runs, without asking the control core.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) config: NodeConfig,
    pub(super) clock: NodeClock,
    pub(super) started: Nanos,
    pub(super) boot_epoch: u64,
    /// As they were attached and bound.
    pub(super) interfaces: Vec<InterfaceView>,
    /// What they do now.
    pub(super) nics: Arc<Nics>,
    pub(super) is_hugepages: bool,
    /// By worker.
    pub(super) cores: Vec<Option<usize>>,
    /// By worker: what its tables take.
    pub(super) tables: Vec<Memory>,
    /// By worker.
    pub(super) published: Vec<Arc<Published>>,
    /// When the control core last went round its loop.
    pub(super) heartbeat: Arc<AtomicU64>,
    /// The control centre answers.
    pub(super) is_registered: AtomicBool,
}

impl Facts {
    /// The answer to a topic that does not need the control core; `None` for one that does.
    pub(super) fn show(&self, topic: Topic) -> Option<Result<Value, String>> {
        Some(match topic {
            Topic::Workers => to_json(self.workers()),
            Topic::Graph => to_json(graph(&self.published)),
            Topic::Drops => to_json(drops(&self.published)),
            Topic::Topology | Topic::Nodes => {
                let place = match &self.config.overlay {
                    Some(overlay) => format!("ask its socket (it is at {})", overlay.controller),
                    None => "this node has none".to_owned(),
                };
                Err(format!("'{}' is what the control centre knows: {place}", topic.name()))
            }
            Topic::Nat => Err("the NAT is asked about in parts: `starnet show nat`".to_owned()),
            Topic::Node | Topic::Sessions | Topic::Paths | Topic::Peers | Topic::Latency => return None,
        })
    }

    /// The node in one page; `summary` is the control core's, where it answered.
    pub(super) fn node(&self, summary: Option<Summary>) -> Result<Value, String> {
        let now = self.clock.now();
        let config = &self.config;
        let workers = config.workers as u64;
        let used = |counter: fn(&WorkerCounters) -> &AtomicU64| {
            self.published.iter().map(|published| counter(&published.worker).load(Relaxed)).sum()
        };
        let overlay = config.overlay.as_ref();
        let of_overlay = overlay.map_or(Roles::NONE, |overlay| overlay.roles);
        let roles = [
            ("entry", of_overlay.entry),
            ("relay", of_overlay.relay),
            ("exit", of_overlay.exit),
            ("gateway", config.gateway.is_some()),
        ];
        to_json(NodeView {
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_sub(self.started) / SECOND,
            address: config.address,
            data_port: config.ports.first,
            nat_ports: format!("{}-{}", config.ports.first + 1, config.ports.last),
            control: overlay.map(|overlay| overlay.control),
            roles: roles.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| (*name).to_owned()).collect(),
            controller: overlay.map(|overlay| overlay.controller),
            is_registered: self.is_registered.load(Relaxed),
            boot_epoch: format!("{:016x}", self.boot_epoch),
            idle: match config.idle {
                IdlePolicy::Adaptive => "adaptive",
                IdlePolicy::Busy => "busy",
            }
            .to_owned(),
            is_hugepages: self.is_hugepages,
            interfaces: self
                .interfaces
                .iter()
                .zip(self.nics.all())
                .map(|(attached, nic)| with(attached, &nic))
                .collect(),
            cores: self.cores.clone(),
            control_core_age_ms: now.saturating_sub(self.heartbeat.load(Relaxed)) / MILLISECOND,
            slots_used: used(|worker| &worker.slots_used),
            slots: workers * u64::from(config.limits.slots),
            bindings_used: used(|worker| &worker.bindings_used),
            bindings: workers * u64::from(config.limits.bindings),
            control_core: summary,
        })
    }

    /// By worker.
    pub(super) fn each_worker(&self) -> Vec<WorkerView> {
        let mut views: Vec<WorkerView> = Vec::new();
        for (number, published) in self.published.iter().enumerate() {
            let core = self.cores.get(number).copied().flatten();
            let Memory { bytes, huge } = self.tables.get(number).copied().unwrap_or_default();
            let (table_bytes, table_bytes_huge) = (bytes as u64, huge as u64);
            let counters = worker(&published.worker);
            views.push(WorkerView { worker: number.to_string(), core, table_bytes, table_bytes_huge, ..counters });
        }
        views
    }

    fn workers(&self) -> Vec<WorkerView> {
        let mut views = self.each_worker();
        if views.len() > 1 {
            let mut all = WorkerView { worker: "all".to_owned(), ..WorkerView::default() };
            views.iter().for_each(|view| all.add(view));
            views.push(all);
        }
        views
    }
}

/// The answer to a topic that the control core alone can answer.
pub(super) fn of_control(control: &Control, topic: Topic) -> Result<Value, String> {
    match topic {
        Topic::Peers => to_json(control.peers()),
        Topic::Latency => to_json(latency(&control.histograms())),
        _ => Err(format!("the control core knows nothing of '{}'", topic.name())),
    }
}

fn to_json(view: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(view).map_err(|error| error.to_string())
}

/// An interface with what its NIC does now.
fn with(attached: &InterfaceView, nic: &Nic) -> InterfaceView {
    InterfaceView {
        rss: nic.rss(),
        rules: nic.rules(),
        rss_changes: nic.changes,
        rss_changed_s: nic.changed.map(|changed| changed.elapsed().as_secs()),
        queues: nic.queues.map(Queues::count),
        sockets: nic.sockets,
        trouble: nic.trouble(),
        ..attached.clone()
    }
}

fn worker(counters: &WorkerCounters) -> WorkerView {
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    WorkerView {
        worker: String::new(),
        core: None,
        is_asleep: counters.is_asleep.load(Relaxed) != 0,
        sweeps: read(&counters.sweeps),
        busy_sweeps: read(&counters.busy_sweeps),
        received: read(&counters.received),
        received_bytes: read(&counters.received_bytes),
        injected: read(&counters.injected),
        sent: read(&counters.sent),
        sent_bytes: read(&counters.sent_bytes),
        dropped: read(&counters.dropped),
        consumed: read(&counters.consumed),
        punted: read(&counters.punted),
        held: read(&counters.held),
        handed_off: read(&counters.handed_off),
        commands: read(&counters.commands),
        waiting: read(&counters.waiting),
        slots_used: read(&counters.slots_used),
        bindings_used: read(&counters.bindings_used),
        kernel_rx_dropped: read(&counters.kernel_rx_dropped),
        kernel_fill_empty: read(&counters.kernel_fill_empty),
        table_bytes: 0,
        table_bytes_huge: 0,
    }
}

/// Sum over the workers of one counter of graph node `node`.
pub(super) fn sum(published: &[Arc<Published>], node: usize, counter: impl Fn(&NodeCounters) -> &AtomicU64) -> u64 {
    published.iter().map(|worker| counter(&worker.nodes[node]).load(Relaxed)).sum()
}

/// The packet graph, all workers together.
pub(super) fn graph(published: &[Arc<Published>]) -> Vec<GraphNodeView> {
    let view = |node: &crate::dataplane::graph::Node| {
        let number = node.id as usize;
        let edges = node.next.iter().map(|next| EdgeView {
            to: NODES[*next as usize].name.to_owned(),
            packets: sum(published, number, |counters| &counters.next[*next as usize]),
        });
        GraphNodeView {
            node: node.name.to_owned(),
            packets: sum(published, number, |counters| &counters.packets),
            batches: sum(published, number, |counters| &counters.batches),
            drops: (0..Reason::COUNT).map(|reason| sum(published, number, |counters| &counters.drops[reason])).sum(),
            next: edges.collect(),
        }
    };
    NODES.iter().map(view).collect()
}

fn drops(published: &[Arc<Published>]) -> Vec<DropView> {
    let of_node = |node: &'static crate::dataplane::graph::Node| {
        Reason::ALL.iter().map(move |reason| DropView {
            counter: format!("{}.drop.{}", node.name, reason.name()),
            packets: sum(published, node.id as usize, |counters| &counters.drops[*reason as usize]),
            meaning: reason.sentence().to_owned(),
        })
    };
    NODES.iter().flat_map(of_node).collect()
}

fn latency(histograms: &Histograms) -> Vec<LatencyView> {
    let nodes = NODES.iter().map(|node| (node.name, &histograms.nodes[node.id as usize]));
    nodes
        .chain([
            ("residence", &histograms.residence),
            ("waited", &histograms.waited),
            ("first_packet", &histograms.first_packet),
        ])
        .map(|(what, histogram): (&str, &Histogram<u64>)| LatencyView {
            what: what.to_owned(),
            count: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        })
        .collect()
}

/// An operator who asked for the paths of a page of sessions: the workers report on each one that merges here.
pub(super) struct PathsQuestion {
    sessions: Page<SessionView>,
    waiting: HashMap<RequestId, CtIndex>,
    reports: HashMap<CtIndex, FanReport>,
    deadline: Nanos,
    answer: oneshot::Sender<Page<PathRow>>,
}

impl PathsQuestion {
    /// About `sessions`; what is not known at `deadline` is left out.
    pub(super) fn new(sessions: Page<SessionView>, answer: oneshot::Sender<Page<PathRow>>, deadline: Nanos) -> Self {
        Self { sessions, waiting: HashMap::new(), reports: HashMap::new(), deadline, answer }
    }

    /// Sessions whose paths merge here.
    pub(super) fn merging(&self) -> Vec<CtIndex> {
        self.sessions.rows.iter().filter(|session| session.role != "relay").map(|session| session.ct_index).collect()
    }

    /// A report under this number was asked for.
    pub(super) fn wait_for(&mut self, id: RequestId, ct_index: CtIndex) {
        self.waiting.insert(id, ct_index);
    }

    /// A report came.
    pub(super) fn take(&mut self, id: RequestId, report: &FanReport) {
        if let Some(ct_index) = self.waiting.remove(&id) {
            self.reports.insert(ct_index, *report);
        }
    }

    /// True where nothing more is to come.
    pub(super) fn is_ready(&self, now: Nanos) -> bool {
        self.waiting.is_empty() || now >= self.deadline
    }

    /// Answers with what is known.
    pub(super) fn answer(self) {
        let Page { rows: sessions, next } = &self.sessions;
        let rows = sessions.iter().flat_map(|session| rows(session, self.reports.get(&session.ct_index))).collect();
        let _ = self.answer.send(Page { rows, next: *next });
    }
}

fn rows(session: &SessionView, report: Option<&FanReport>) -> Vec<PathRow> {
    let row = |path: &crate::control::show::PathView| {
        let counters = report.and_then(|report| report.paths.get(usize::from(path.path)));
        let is_anything = report.is_some_and(|report| report.paths.iter().any(|path| path.received > 0));
        let sent = report.filter(|_| is_anything).map(|report| report.highest.saturating_sub(report.lowest) + 1);
        PathRow {
            session: session.session.clone(),
            role: session.role.clone(),
            path: path.path,
            upstream: path.upstream.as_ref().map(|hop| hop.node.clone()),
            downstream: path.downstream.as_ref().map(|hop| hop.node.clone()),
            received: counters.map(|counters| counters.received),
            first: counters.map(|counters| counters.first),
            missing: sent.zip(counters).map(|(sent, counters)| sent.saturating_sub(counters.received)),
            failure: path.failure.clone(),
        }
    };
    session.paths.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{conntrack::PathCounters, graph::NodeId, published::add};

    fn two_workers() -> Vec<Arc<Published>> {
        (0..2).map(|_| Arc::new(Published::new(1, 1))).collect()
    }

    #[test]
    fn workers_are_summed_in_the_graph_and_in_drops() {
        let published = two_workers();
        for worker in &published {
            let node = &worker.nodes[NodeId::Ip4Input as usize];
            add(&node.packets, 5);
            add(&node.batches, 2);
            add(&node.next[NodeId::L4Classify as usize], 4);
            add(&node.drops[Reason::BadChecksum as usize], 1);
        }
        let graph = graph(&published);
        let node = graph.iter().find(|view| view.node == "ip4_input").unwrap();
        assert_eq!((node.packets, node.batches, node.drops), (10, 4, 2));
        assert_eq!(node.next.iter().find(|edge| edge.to == "l4_classify").unwrap().packets, 8);
        let drops = drops(&published);
        assert_eq!(drops.len(), NODES.len() * Reason::COUNT);
        let drop = drops.iter().find(|view| view.counter == "ip4_input.drop.bad_checksum").unwrap();
        assert_eq!((drop.packets, drop.meaning.as_str()), (2, Reason::BadChecksum.sentence()));
    }

    #[test]
    fn latency_has_every_node_and_the_way_through() {
        let mut histograms = Histograms::new();
        histograms.residence.record(1_000).unwrap();
        let views = latency(&histograms);
        assert_eq!(views.len(), NODES.len() + 3);
        let residence = views.iter().find(|view| view.what == "residence").unwrap();
        assert_eq!(residence.count, 1);
        assert!((1_000..1_010).contains(&residence.p50_ns), "two significant digits: {}", residence.p50_ns);
    }

    #[test]
    fn what_a_path_did_not_bring_is_missing() {
        let session = SessionView {
            session: "00112233".into(),
            role: "exit".into(),
            state: "open".into(),
            kind: "tunnel 100.64.0.2".into(),
            client: "alice".into(),
            entry: "a".into(),
            ct_index: CtIndex(7),
            generation: 1,
            idle_ms: 0,
            packets: 0,
            bytes: 0,
            bindings: 0,
            paths: vec![crate::control::show::PathView { path: 1, upstream: None, downstream: None, failure: None }],
        };
        let mut report = FanReport { highest: 109, lowest: 10, ..FanReport::default() };
        report.paths[1] = PathCounters { received: 95, first: 60 };
        let (answer, mut answered) = oneshot::channel();
        let mut question = PathsQuestion::new(Page { rows: vec![session], next: None }, answer, 1000);
        assert_eq!(question.merging(), [CtIndex(7)]);
        question.wait_for(RequestId(3), CtIndex(7));
        assert!(!question.is_ready(999), "the report is to come");
        assert!(question.is_ready(1000), "but not waited for forever");
        question.take(RequestId(3), &report);
        assert!(question.is_ready(0));
        question.answer();
        let rows = answered.try_recv().unwrap().rows;
        assert_eq!((rows[0].received, rows[0].missing), (Some(95), Some(5)));
    }
}
