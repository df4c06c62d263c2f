//! Somebody changes the queues of a running node's interfaces.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::support::{STARNET, Testbed, eventually, text};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// A gateway with two workers in the host www, between two interfaces of which `in0` has two queues of four.
fn with_gateway(name: &str, body: impl FnOnce(&Testbed, &dyn Fn() -> Value)) -> String {
    let testbed = Testbed::up(name, "default");
    let run = |program: &[&str]| {
        let output = testbed.run("www", program);
        assert!(output.status.success(), "{program:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    for (interface, queues) in [("in0", "4"), ("out0", "2")] {
        let peer = format!("{interface}p");
        let queues = ["numrxqueues", queues, "numtxqueues", queues];
        let veth = [&["type", "veth", "peer", "name", &peer][..], &queues].concat();
        run(&[&["ip", "link", "add", interface][..], &queues, &veth].concat());
        run(&["ip", "link", "set", interface, "up"]);
        run(&["ip", "link", "set", &peer, "up"]);
    }
    run(&["ethtool", "-L", "in0p", "tx", "2"]);
    run(&["ethtool", "-L", "in0", "rx", "2"]);
    let file = testbed.directory().join("config/nics.toml");
    let socket = testbed.directory().join("run/nics.sock");
    let config = format!(
        "[node]\nname = \"nics\"\naddress = \"{ADDRESS}\"\nports = \"20000-29999\"\nsocket = {socket:?}\nworkers = 2\n\
         [gateway]\ninside = [\"in0\"]\noutside = [\"out0\"]\n"
    );
    std::fs::write(&file, config).unwrap();
    let node = testbed.spawn("www", &[STARNET, "node", "--config", file.to_str().unwrap()]);
    let show = || {
        let socket = socket.to_str().unwrap();
        let said = testbed.run("www", &[STARNET, "show", "node", "--socket", socket, "--json"]);
        let node: Value = serde_json::from_slice(&said.stdout).ok()?;
        Some(node["interfaces"].as_array()?.iter().find(|interface| interface["name"] == "in0")?.clone())
    };
    eventually("the node", show);
    body(&testbed, &|| eventually("the interface", show));
    node.stop()
}

#[test]
fn queues_that_are_added_under_a_running_node_are_told_with_the_command_that_takes_them_away() {
    let said = with_gateway("queues-more", |testbed, interface| {
        let ethtool = |words: &[&str]| testbed.run("www", &[&["ethtool", "-L", "in0"], words].concat());
        let before = interface();
        assert_eq!((&before["queues"], &before["sockets"]), (&Value::from(2), &Value::from(2)), "{before}");
        assert_eq!((&before["trouble"], &before["rss"]), (&Value::Null, &Value::Null), "veth does not tell: {before}");

        assert!(!ethtool(&["rx", "1"]).status.success(), "the kernel protects queues with sockets");
        assert!(ethtool(&["rx", "3"]).status.success());
        let trouble = eventually("the trouble", || interface()["trouble"].as_str().map(str::to_owned));
        assert!(trouble.contains("run `ethtool -L in0 rx 2` or start the node again"), "{trouble}");
        assert!(ethtool(&["rx", "2"]).status.success());
        eventually("its end", || interface()["trouble"].is_null().then_some(()));
        let after = interface();
        assert_eq!((&after["queues"], &after["rss_changes"]), (&Value::from(2), &Value::from(0)), "{after}");
    });
    let errors: Vec<_> = said.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "once, not every few seconds: {said}");
    assert!(errors[0].contains("ethtool -L in0 rx 2") && errors[0].contains("in0"), "{said}");
    assert!(said.contains("a receive queue for each AF_XDP socket again"), "{said}");
}
