//! What a node's metrics are: the counters that its workers publish, and what the control core says of itself.
//!
//! A scrape reads atomics and asks the control core once, for work that does not grow with sessions or bindings. Workers
//! do not notice. While the control core does not answer, what is its is left out, and `starnet_control_core_up` is 0.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::{sync::oneshot, time::timeout};

use super::{
    control_thread::{ControlSender, Input},
    nics::Nic,
    views::{self, Facts},
};
use crate::{
    Nanos, SECOND,
    control::{Control, PeerView, Summary, show::Use},
    dataplane::{graph::NODES, published::Published, reason::Reason, rss::Queues},
    telemetry::{
        histogram::Histograms,
        metrics::{
            Exposition,
            Kind::{self, Counter, Gauge},
            seconds,
        },
        show::WorkerView,
    },
};

/// How long the control core may take: less than a scrape does.
const CORE_PATIENCE: Duration = Duration::from_secs(1);

/// Quantiles of times.
const QUANTILES: [(&str, f64); 5] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999), ("1", 1.0)];

/// What the control core says of itself.
#[derive(Debug)]
pub(super) struct Measured {
    summary: Summary,
    peers: Vec<PeerView>,
    /// All workers together, since the start.
    histograms: Arc<Histograms>,
}

impl Measured {
    /// As it is now.
    pub(super) fn of(control: &Control, now: Nanos) -> Self {
        Self { summary: control.summary(now), peers: control.peers(), histograms: control.histograms() }
    }

    /// Residence times since the start, and how often each was seen: who asks twice knows those in between.
    pub(super) fn residence(&self) -> Vec<(u64, u64)> {
        let recorded = self.histograms.residence.iter_recorded();
        recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }
}

/// What the control core says of itself now; none: it did not answer.
pub(super) async fn measure(control: &ControlSender) -> Option<Measured> {
    let (answer, answered) = oneshot::channel();
    control.send(Input::Measure(answer));
    timeout(CORE_PATIENCE, answered).await.ok().and_then(Result::ok)
}

/// All metrics of the node, as text.
pub(super) async fn text(control: ControlSender, facts: Arc<Facts>) -> String {
    let measured = measure(&control).await;
    let mut text = Exposition::default();
    write_facts(&mut text, &facts, measured.is_some());
    write_workers(&mut text, &facts);
    write_graph(&mut text, &facts.published);
    if let Some(measured) = &measured {
        write_latency(&mut text, &measured.histograms);
        write_control(&mut text, &measured.summary);
        write_peers(&mut text, &measured.peers);
    }
    text.finish()
}

fn write_facts(text: &mut Exposition, facts: &Facts, is_core_up: bool) {
    let now = facts.clock.now();
    let labels = [("name", facts.config.name.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
    text.family(Gauge, "starnet_node_info", "Which node this is; always 1.").sample(&labels, 1);
    let uptime = now.saturating_sub(facts.started) / SECOND;
    text.single(Gauge, "starnet_uptime_seconds", "Since the start of the node.", uptime);
    if facts.config.overlay.is_some() {
        let is_registered = u8::from(facts.is_registered.load(Relaxed));
        text.single(Gauge, "starnet_registered", "1 while the control centre answers.", is_registered);
    }
    let (name, help) = ("starnet_control_core_up", "1 where the control core answered; else what it knows is missing.");
    text.single(Gauge, name, help, u8::from(is_core_up));
    let age = seconds(now.saturating_sub(facts.heartbeat.load(Relaxed)));
    text.single(Gauge, "starnet_control_core_age_seconds", "Since the control core last went round its loop.", age);
    write_nics(text, &facts.nics.all());
}

fn write_nics(text: &mut Exposition, nics: &[Nic]) {
    type OfNic = (Kind, &'static str, &'static str, fn(&Nic) -> u64);
    let all: [OfNic; 5] = [
        (Gauge, "starnet_nic_queues", "Receive queues of the interface.", |nic| {
            nic.queues.map_or(0, Queues::count).into()
        }),
        (Gauge, "starnet_nic_sockets", "Receive queues of the interface with an AF_XDP socket.", |nic| {
            nic.sockets.unwrap_or(0).into()
        }),
        (Gauge, "starnet_nic_rss_known", "1 where the NIC tells how it spreads what it receives.", |nic| {
            nic.rss().is_some().into()
        }),
        (Gauge, "starnet_nic_rules", "Rules of ours in the NIC that steer packets by their ports.", |nic| {
            nic.rules() as u64
        }),
        (Counter, "starnet_nic_rss_changes_total", "How often it has changed how it spreads.", |nic| nic.changes),
    ];
    for (kind, name, help, value) in all {
        let mut family = text.family(kind, name, help);
        nics.iter().for_each(|nic| family.sample(&[("interface", &nic.name)], value(nic)));
    }
}

/// A family with a sample for each worker.
type OfWorker = (Kind, &'static str, &'static str, fn(&WorkerView) -> u64);

const OF_WORKERS: [OfWorker; 20] = [
    (Counter, "starnet_received_packets_total", "Packets the driver received.", |w| w.received),
    (Counter, "starnet_received_bytes_total", "Bytes of them, Ethernet header included.", |w| w.received_bytes),
    (Counter, "starnet_sent_packets_total", "Packets the driver took for sending.", |w| w.sent),
    (Counter, "starnet_sent_bytes_total", "Bytes of them, Ethernet header included.", |w| w.sent_bytes),
    (
        Counter,
        "starnet_injected_packets_total",
        "Packets that began here: copies, probes, ICMP errors, resumed ones, those handed over to this worker.",
        |w| w.injected,
    ),
    (Counter, "starnet_dropped_packets_total", "Packets dropped, all reasons.", |w| w.dropped),
    (Counter, "starnet_consumed_packets_total", "Packets that were for the node itself.", |w| w.consumed),
    (Counter, "starnet_punted_packets_total", "Packets put aside for the control core.", |w| w.punted),
    (Counter, "starnet_held_packets_total", "Fragments put aside until the first one of their packet.", |w| w.held),
    (Counter, "starnet_handed_over_packets_total", "Packets given to another worker.", |w| w.handed_off),
    (Counter, "starnet_commands_total", "Commands of the control core that were applied.", |w| w.commands),
    (Counter, "starnet_sweeps_total", "Sweeps of the packet graph, idle ones included.", |w| w.sweeps),
    (Counter, "starnet_busy_sweeps_total", "Sweeps that had at least one packet.", |w| w.busy_sweeps),
    (
        Counter,
        "starnet_kernel_rx_dropped_packets_total",
        "Packets the kernel dropped because the worker's RX ring was full.",
        |w| w.kernel_rx_dropped,
    ),
    (Counter, "starnet_kernel_fill_empty_packets_total", "Packets the kernel had no frame of the worker's for.", |w| {
        w.kernel_fill_empty
    }),
    (Gauge, "starnet_waiting_packets", "Packets that wait for the control core.", |w| w.waiting),
    (Gauge, "starnet_worker_asleep", "1 while the worker sleeps in the kernel for want of packets.", |w| {
        u64::from(w.is_asleep)
    }),
    (Gauge, "starnet_slots_used", "Conntrack slots in use.", |w| w.slots_used),
    (Gauge, "starnet_bindings_used", "NAT bindings in use.", |w| w.bindings_used),
    (Gauge, "starnet_table_bytes", "Memory of the worker's tables.", |w| w.table_bytes),
];

fn write_workers(text: &mut Exposition, facts: &Facts) {
    let workers = facts.each_worker();
    for (kind, name, help, value) in OF_WORKERS {
        let mut family = text.family(kind, name, help);
        for view in &workers {
            family.sample(&[("worker", &view.worker)], value(view));
        }
    }
    let limits = &facts.config.limits;
    for (name, help, size, used) in [
        (
            "starnet_slots_free",
            "Conntrack slots that are free.",
            limits.slots,
            (|w| w.slots_used) as fn(&WorkerView) -> u64,
        ),
        ("starnet_bindings_free", "NAT bindings that are free.", limits.bindings, |w| w.bindings_used),
    ] {
        let mut family = text.family(Gauge, name, help);
        for view in &workers {
            family.sample(&[("worker", &view.worker)], u64::from(size).saturating_sub(used(view)));
        }
    }
}

/// All workers together. A reason is a family, since its sentence is the family's; a node that never dropped for it has no
/// sample, as a node and a reason that do not go together never will have.
fn write_graph(text: &mut Exposition, published: &[Arc<Published>]) {
    let graph = views::graph(published);
    let mut family = text.family(Counter, "starnet_graph_packets_total", "Packets that entered a node of the graph.");
    graph.iter().for_each(|view| family.sample(&[("node", &view.node)], view.packets));
    let mut family = text.family(Counter, "starnet_graph_batches_total", "Batches in which the node had any packets.");
    graph.iter().for_each(|view| family.sample(&[("node", &view.node)], view.batches));
    let mut family =
        text.family(Counter, "starnet_graph_edge_packets_total", "Packets that left a node for another one.");
    for view in &graph {
        view.next.iter().for_each(|edge| family.sample(&[("node", &view.node), ("to", &edge.to)], edge.packets));
    }
    for reason in Reason::ALL {
        let name = format!("starnet_drop_{}_packets_total", reason.name());
        let help = format!("Dropped: {}", reason.sentence());
        let mut family = text.family(Counter, &name, &help);
        for node in &NODES {
            let packets = views::sum(published, node.id as usize, |counters| &counters.drops[reason as usize]);
            if packets > 0 {
                family.sample(&[("node", node.name)], packets);
            }
        }
    }
}

fn write_latency(text: &mut Exposition, histograms: &Histograms) {
    let mut family =
        text.family(Kind::Summary, "starnet_graph_packet_seconds", "Time per packet in each node of the graph.");
    for node in &NODES {
        let (count, quantiles) = quantiles(&histograms.nodes[node.id as usize]);
        family.quantiles(&[("node", node.name)], count, &quantiles);
    }
    for (name, help, histogram) in [
        ("starnet_residence_seconds", "Time of a packet in the node, from rx to tx.", &histograms.residence),
        (
            "starnet_waited_residence_seconds",
            "The same of those that the control core was asked about.",
            &histograms.waited,
        ),
        ("starnet_first_packet_seconds", "From a flow's first packet to its binding.", &histograms.first_packet),
    ] {
        let (count, quantiles) = quantiles(histogram);
        text.family(Kind::Summary, name, help).quantiles(&[], count, &quantiles);
    }
}

/// Of nothing there are no quantiles.
fn quantiles(histogram: &Histogram<u64>) -> (u64, Vec<(&'static str, f64)>) {
    let of = |(name, quantile): (&'static str, f64)| (name, seconds(histogram.value_at_quantile(quantile)));
    let all = if histogram.is_empty() { Vec::new() } else { QUANTILES.map(of).to_vec() };
    (histogram.len(), all)
}

fn write_control(text: &mut Exposition, summary: &Summary) {
    let mut family =
        text.family(Gauge, "starnet_sessions", "Sessions by what the node is in them; of a relay by path.");
    for (part, count) in [("entry", summary.entries), ("relay", summary.relays), ("exit", summary.exits)] {
        family.sample(&[("part", part)], count);
    }
    text.single(Gauge, "starnet_calls_waiting", "Requests to other nodes that wait for an answer.", summary.calls);
    text.single(Gauge, "starnet_peers", "Neighbours that the control centre names.", summary.peers);

    let workers: Vec<(String, _)> = summary.workers.iter().enumerate().map(|(n, w)| (n.to_string(), w)).collect();
    let free = |places: Use| places.capacity.saturating_sub(places.used);
    for (name, help, value) in [
        ("starnet_fans_used", "Sessions that begin or end here.", (|places| places.used) as fn(Use) -> u32),
        ("starnet_fans_free", "Further ones there is room for.", free),
    ] {
        let mut family = text.family(Gauge, name, help);
        workers.iter().for_each(|(number, worker)| family.sample(&[("worker", number)], value(worker.fans)));
    }
    for (name, help, value) in [
        ("starnet_ports_used", "Outside ports (or ICMP identifiers) leased.", (|places| places.used) as fn(Use) -> u32),
        ("starnet_ports_free", "Outside ports (or ICMP identifiers) that are not, resting ones included.", free),
    ] {
        let mut family = text.family(Gauge, name, help);
        for (number, worker) in &workers {
            for (protocol, places) in [("icmp", worker.icmp_ids), ("tcp", worker.tcp_ports), ("udp", worker.udp_ports)]
            {
                family.sample(&[("worker", number), ("protocol", protocol)], value(places));
            }
        }
    }
    let mut family =
        text.family(Gauge, "starnet_commands_waiting", "Commands that wait for room in the worker's ring.");
    workers.iter().for_each(|(number, worker)| family.sample(&[("worker", number)], worker.backlog));

    let counters = &summary.counters;
    for (name, help, value) in [
        ("starnet_opens_total", "Opens that came from clients, retries included.", counters.opens),
        ("starnet_sessions_opened_total", "Sessions that started here as their entry.", counters.opened),
        ("starnet_opens_failed_total", "Opens refused, and sessions without any path.", counters.opens_failed),
        ("starnet_setups_total", "Setups that came from nodes, retries included.", counters.setups),
        ("starnet_setups_failed_total", "Setups refused here or further downstream.", counters.setups_failed),
        ("starnet_late_answers_total", "Answers that came after their path was given up.", counters.late_answers),
        ("starnet_sessions_aged_total", "Sessions freed because they were idle.", counters.aged),
        ("starnet_bindings_made_total", "NAT bindings made.", counters.bindings_made),
        ("starnet_bindings_refused_total", "Packets refused for want of a binding.", counters.bindings_refused),
    ] {
        text.single(Counter, name, help, value);
    }
}

/// Of the last ten seconds' probes; what was never measured is left out.
fn write_peers(text: &mut Exposition, peers: &[PeerView]) {
    let active: Vec<&PeerView> = peers.iter().filter(|peer| peer.is_active).collect();
    let measured: Vec<&&PeerView> = active.iter().filter(|peer| peer.quality.probes > 0).collect();
    let mut family =
        text.family(Gauge, "starnet_peer_resolved", "1 where the MAC address of the way to the neighbour is known.");
    active.iter().for_each(|peer| family.sample(&[("peer", &peer.name)], u8::from(peer.is_resolved)));
    let mut family =
        text.family(Gauge, "starnet_peer_rtt_seconds", "Round trip of the probes of the last ten seconds.");
    for peer in &measured {
        let quality = &peer.quality;
        for (quantile, micros) in [("0", quality.rtt_min_us), ("0.5", quality.rtt_p50_us), ("0.99", quality.rtt_p99_us)]
        {
            family.sample(&[("peer", &peer.name), ("quantile", quantile)], seconds(u64::from(micros) * 1000));
        }
    }
    let mut family = text.family(Gauge, "starnet_peer_jitter_seconds", "Jitter of those round trips.");
    measured.iter().for_each(|peer| {
        family.sample(&[("peer", &peer.name)], seconds(u64::from(peer.quality.jitter_us) * 1000));
    });
    let mut family = text.family(Gauge, "starnet_peer_loss_ratio", "Share of those probes that were lost.");
    measured.iter().for_each(|peer| family.sample(&[("peer", &peer.name)], peer.quality.loss));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::{
            KernelEvent,
            show::{Counters, WorkerSummary},
        },
        dataplane::{
            graph::NodeId,
            port_rules::PortRules,
            published::add,
            rss::{Inputs, KEY_BYTES, Rss},
            spread::Spread,
        },
        node::nics::Nics,
        rpc::messages::LinkQuality,
        telemetry::metrics::tests::{Parsed, parse},
    };

    fn written(write: impl FnOnce(&mut Exposition)) -> Parsed {
        let mut text = Exposition::default();
        write(&mut text);
        parse(&text.finish())
    }

    #[test]
    fn a_drop_is_counted_under_its_reason_whose_sentence_is_the_help() {
        let published: Vec<_> = (0..2).map(|_| Arc::new(Published::new(1, 1))).collect();
        for worker in &published {
            let node = &worker.nodes[NodeId::RelayInput as usize];
            add(&node.packets, 5);
            add(&node.next[NodeId::EntryUp as usize], 3);
            add(&node.drops[Reason::WrongTag as usize], 2);
        }
        let parsed = written(|text| write_graph(text, &published));
        let node = [("node", "relay_input")];
        assert_eq!(parsed.value("starnet_graph_packets_total", &node), Some(10.0));
        assert_eq!(parsed.value("starnet_graph_packets_total", &[("node", "tx")]), Some(0.0));
        let edge = [("node", "relay_input"), ("to", "entry_up")];
        assert_eq!(parsed.value("starnet_graph_edge_packets_total", &edge), Some(6.0));
        assert_eq!(parsed.value("starnet_drop_wrong_tag_packets_total", &node), Some(4.0));
        assert_eq!(
            parsed.helps["starnet_drop_wrong_tag_packets_total"],
            "Dropped: The tag was not made with this hop's key."
        );
        let drops = parsed.samples.keys().filter(|(name, _)| name.starts_with("starnet_drop_")).count();
        assert_eq!(drops, 1, "what never happened has no sample");
    }

    #[test]
    fn a_nic_has_its_queues_and_how_it_spreads() {
        let nics = Nics::new(&["e0".to_owned(), "e1".to_owned()]);
        let queues = |combined| Queues { rx: 0, combined, rx_max: 0, combined_max: 4 };
        nics.bound(0, queues(2));
        nics.hear(&KernelEvent::Queues { interface: 0, now: queues(3) });
        for key in [1, 2, 3] {
            let rss = Rss::new(&[key; KEY_BYTES], vec![0, 1], Inputs::ALL);
            nics.hear(&KernelEvent::Spread { interface: 0, now: Spread { rss, rules: None } });
        }
        let rules = PortRules { count: 12, ..PortRules::default() };
        nics.hear(&KernelEvent::Spread { interface: 1, now: Spread { rss: None, rules: Some(rules) } });
        let parsed = written(|text| write_nics(text, &nics.all()));
        let of = |name| ["e0", "e1"].map(|nic| parsed.value(name, &[("interface", nic)]).unwrap());
        assert_eq!(of("starnet_nic_queues"), [3.0, 0.0]);
        assert_eq!(of("starnet_nic_sockets"), [2.0, 0.0]);
        assert_eq!(of("starnet_nic_rss_known"), [1.0, 0.0]);
        assert_eq!(of("starnet_nic_rss_changes_total"), [3.0, 0.0]);
        assert_eq!(of("starnet_nic_rules"), [0.0, 12.0]);
    }

    #[test]
    fn times_are_in_seconds_and_there_are_none_of_nothing() {
        let mut histograms = Histograms::new();
        (1..=100).for_each(|n| histograms.residence.record(n * 10_000).unwrap());
        let parsed = written(|text| write_latency(text, &histograms));
        let median = parsed.value("starnet_residence_seconds", &[("quantile", "0.5")]).unwrap();
        assert!((median - 500e-6).abs() < 10e-6, "two significant digits: {median}");
        assert_eq!(parsed.value("starnet_residence_seconds_count", &[]), Some(100.0));
        assert_eq!(parsed.value("starnet_first_packet_seconds_count", &[]), Some(0.0));
        assert_eq!(parsed.value("starnet_first_packet_seconds", &[("quantile", "0.5")]), None);
        assert_eq!(parsed.kinds["starnet_graph_packet_seconds"], "summary");
        assert_eq!(parsed.samples.len(), 5 + 3 + NODES.len());
    }

    #[test]
    fn the_control_cores_part_has_places_counters_and_neighbours() {
        let places = |used| Use { used, capacity: 100 };
        let worker = WorkerSummary {
            slots: places(1),
            fans: places(2),
            bindings: places(3),
            icmp_ids: places(4),
            tcp_ports: places(5),
            udp_ports: places(6),
            backlog: 7,
        };
        let summary = Summary {
            name: "fra1".into(),
            boot_epoch: 1,
            uptime_ms: 1,
            is_registered: true,
            entries: 1,
            relays: 2,
            exits: 3,
            calls: 4,
            peers: 1,
            workers: vec![worker.clone(), worker],
            counters: Counters { opens: 9, ..Counters::default() },
        };
        let parsed = written(|text| write_control(text, &summary));
        assert_eq!(parsed.value("starnet_sessions", &[("part", "relay")]), Some(2.0));
        let labels = [("worker", "1"), ("protocol", "tcp")];
        assert_eq!(parsed.value("starnet_ports_used", &labels), Some(5.0));
        assert_eq!(parsed.value("starnet_ports_free", &labels), Some(95.0));
        assert_eq!(parsed.value("starnet_opens_total", &[]), Some(9.0));

        let quality = LinkQuality { probes: 10, rtt_p50_us: 1500, loss: 0.25, ..LinkQuality::default() };
        let peer = |name: &str, is_active, quality| PeerView {
            name: name.into(),
            address: "192.0.2.1:40000".parse().unwrap(),
            is_resolved: true,
            is_active,
            quality,
        };
        let peers = [peer("a", true, quality), peer("new", true, LinkQuality::default()), peer("gone", false, quality)];
        let parsed = written(|text| write_peers(text, &peers));
        assert_eq!(parsed.value("starnet_peer_rtt_seconds", &[("peer", "a"), ("quantile", "0.5")]), Some(0.0015));
        assert_eq!(parsed.value("starnet_peer_loss_ratio", &[("peer", "a")]), Some(0.25));
        assert_eq!(parsed.value("starnet_peer_loss_ratio", &[("peer", "new")]), None, "not measured yet");
        assert_eq!(parsed.value("starnet_peer_resolved", &[("peer", "new")]), Some(1.0));
        assert!(parsed.samples.keys().all(|(_, labels)| labels["peer"] != "gone"));
    }
}
