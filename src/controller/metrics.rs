//! The control centre's metrics: its nodes, and what it was asked. What lies between nodes is in the nodes' own metrics,
//! since a full mesh of them has as many links as would drown everything else.

use super::{Controller, Requests};
use crate::{
    Nanos,
    telemetry::metrics::{
        Exposition,
        Kind::{Counter, Gauge},
        seconds,
    },
};

/// All of them, as text.
pub(super) fn text(controller: &Controller, started: Nanos, now: Nanos) -> String {
    let mut text = Exposition::default();
    let labels = [("version", env!("CARGO_PKG_VERSION"))];
    text.family(Gauge, "starnet_controller_info", "Which version this is; always 1.").sample(&labels, 1);
    let uptime = seconds(now.saturating_sub(started));
    text.single(Gauge, "starnet_uptime_seconds", "Since the start of the control centre.", uptime);

    let nodes = || controller.registry().nodes();
    let mut family =
        text.family(Gauge, "starnet_controller_node_live", "1 where the node is in the topology, 0: silent.");
    nodes().for_each(|node| family.sample(&[("name", &node.info.name)], u8::from(node.is_live(now))));
    let mut family =
        text.family(Gauge, "starnet_controller_node_heard_seconds", "Since it registered or reported last.");
    nodes().for_each(|node| family.sample(&[("name", &node.info.name)], seconds(now.saturating_sub(node.heard))));

    let Requests { registers, reports, topologies, others, refused } = controller.requests();
    let mut family = text.family(Counter, "starnet_controller_requests_total", "Requests, refused ones included.");
    for (request, count) in [("register", registers), ("report", reports), ("topology", topologies), ("other", others)]
    {
        family.sample(&[("request", request)], count);
    }
    text.single(Counter, "starnet_controller_requests_refused_total", "Requests that were refused.", refused);
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Links, registry::tests::register},
        *,
    };
    use crate::{SECOND, control::interface::Caller, rpc::messages::Request, telemetry::metrics::tests::parse};

    #[test]
    fn nodes_and_requests_are_counted() {
        let mut centre = Controller::new(Links::FullMesh, [0; 32]);
        for (name, caller, now) in [("a", "a", 0), ("b", "b", 8 * SECOND), ("c", "b", 8 * SECOND)] {
            let request = Request::Register(register(name, name.as_bytes()[0], 7));
            centre.handle(&Caller::Node(caller.to_owned()), request, now, 0);
        }
        centre.handle(&Caller::Node("a".to_owned()), Request::Topology { token: String::new() }, 8 * SECOND, 0);
        let parsed = parse(&text(&centre, 0, 10 * SECOND));
        let of = |name: &'static str| [("name", name)];
        assert_eq!(parsed.value("starnet_controller_node_live", &of("a")), Some(0.0));
        assert_eq!(parsed.value("starnet_controller_node_live", &of("b")), Some(1.0));
        assert_eq!(parsed.value("starnet_controller_node_live", &of("c")), None, "it was another who said so");
        assert_eq!(parsed.value("starnet_controller_node_heard_seconds", &of("b")), Some(2.0));
        let requests = |request| parsed.value("starnet_controller_requests_total", &[("request", request)]);
        assert_eq!([requests("register"), requests("report"), requests("topology")], [Some(3.0), Some(0.0), Some(1.0)]);
        assert_eq!(parsed.value("starnet_controller_requests_refused_total", &[]), Some(2.0));
        assert_eq!(parsed.value("starnet_uptime_seconds", &[]), Some(10.0));
    }
}
