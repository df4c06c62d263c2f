//! The metrics endpoint of real processes, asked by curl.

use std::collections::HashMap;

use crate::support::{STARNET, Testbed, WWW, eventually, text};

/// Where every node and the control centre of a testbed answer, each in its own namespace.
const ENDPOINT: &str = "127.0.0.1:9100";

/// Status and body of a request.
fn curl(testbed: &Testbed, host: &str, method: &str, path: &str) -> (u16, String) {
    let url = format!("http://{ENDPOINT}{path}");
    let output = testbed.run(host, &["curl", "-sS", "-X", method, "-w", "%{stderr}%{http_code}", &url]);
    let status = text(&output.stderr);
    (status.parse().unwrap_or_else(|_| panic!("curl of {host}: {status}")), text(&output.stdout))
}

/// Every sample of a host, by its name with its labels.
fn samples(testbed: &Testbed, host: &str) -> HashMap<String, f64> {
    let (status, body) = curl(testbed, host, "GET", "/metrics");
    assert_eq!(status, 200, "{body}");
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        })
        .collect()
}

#[test]
fn nodes_and_control_centre_answer_with_what_they_do() {
    let testbed = Testbed::up("metrics", "default");
    let ping = || testbed.run("client", &["ping", "-c", "5", "-i", "0.1", &WWW.to_string()]);
    assert!(ping().status.success());

    let entry = samples(&testbed, "entry");
    assert_eq!(entry["starnet_sessions{part=\"entry\"}"], 1.0);
    assert_eq!(entry["starnet_control_core_up"], 1.0);
    assert_eq!(entry["starnet_slots_used{worker=\"0\"}"], 1.0);
    let sent = "starnet_sent_packets_total{worker=\"0\"}";
    let up = "starnet_graph_packets_total{node=\"entry_up\"}";
    assert!(entry[up] >= 5.0, "{}", entry[up]);
    assert!(entry[sent] >= 2.0 * entry[up], "a copy a path: {} of {}", entry[sent], entry[up]);
    assert!(entry["starnet_drop_duplicate_packets_total{node=\"entry_down\"}"] >= 4.0, "the copies that came second");
    eventually("the probes' round trip", || {
        samples(&testbed, "entry").get("starnet_peer_rtt_seconds{peer=\"relay-a\",quantile=\"0.5\"}").copied()
    });
    eventually("the time from rx to tx", || {
        samples(&testbed, "entry")
            .get("starnet_residence_seconds{quantile=\"0.99\"}")
            .filter(|time| **time > 0.0)
            .copied()
    });
    let exit = samples(&testbed, "exit");
    assert_eq!(exit["starnet_bindings_used{worker=\"0\"}"], 1.0, "of the ping");
    assert_eq!(exit["starnet_ports_used{worker=\"0\",protocol=\"icmp\"}"], 1.0);
    assert_eq!(exit["starnet_first_packet_seconds_count"], 1.0);

    assert!(ping().status.success());
    assert!(samples(&testbed, "entry")[up] >= entry[up] + 5.0, "counters grow");

    let controller = samples(&testbed, "controller");
    for node in ["entry", "relay-a", "relay-b", "exit"] {
        assert_eq!(controller[&format!("starnet_controller_node_live{{name=\"{node}\"}}")], 1.0);
    }
    for host in ["entry", "controller"] {
        assert_eq!(curl(&testbed, host, "GET", "/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(curl(&testbed, host, "GET", "/").0, 404);
        assert_eq!(curl(&testbed, host, "DELETE", "/metrics").0, 405);
    }
}

#[test]
fn an_address_in_use_is_refused_before_anything_is_applied() {
    let testbed = Testbed::up("metrics-use", "default");
    let links = || text(&testbed.run("entry", &["ip", "-details", "-brief", "link"]).stdout);
    let before = links();
    let second = testbed.directory().join("config/second.toml");
    let socket = testbed.directory().join("run/second.sock");
    let config = format!(
        "[node]\nname = \"second\"\naddress = \"198.18.0.3\"\nports = \"20000-29999\"\nsocket = {socket:?}\n\
         [gateway]\ninside = [\"client\"]\noutside = [\"relay-a\"]\n[metrics]\nlisten = \"{ENDPOINT}\"\n"
    );
    std::fs::write(&second, config).unwrap();
    let (status, said) = testbed.spawn("entry", &[STARNET, "node", "--config", second.to_str().unwrap()]).output();
    assert!(status.is_some_and(|status| status != 0), "{said}");
    assert!(said.contains(&format!("metrics.listen: {ENDPOINT}: ")) && said.contains("in use"), "{said}");
    assert_eq!(links(), before);
    assert!(!socket.exists());
}
