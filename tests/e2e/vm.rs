//! On another kernel, Debian 12's, in a virtual machine (`vm-testbed/vm`); and on NICs with rules, which there are only there.
//!
//! What runs in the machine are the scripts beside this file. They print, and what they print is looked at here.

use std::{
    collections::HashMap,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{STARNET, root, text, turn};

/// What a script printed in the machine, by section.
struct Sections(HashMap<String, String>);

impl Sections {
    /// Runs a script to its end, which must be a good one.
    fn of(script: &str, options: &[&str]) -> Self {
        let _turn = turn();
        let script = format!("tests/e2e/vm/{script}");
        let mut vm = Command::new(root().join("vm-testbed/vm"));
        vm.args(["--timeout", "420"]).args(options).args(["--", "sh", &script]);
        let ran = vm.current_dir(root()).env("STARNET", STARNET).stdin(Stdio::null()).output().unwrap();
        let (said, told) = (text(&ran.stdout), text(&ran.stderr));
        assert!(ran.status.success(), "{script}: {}\n{said}\n{told}", ran.status);
        // So that a failed assertion has it.
        eprintln!("{told}");
        let sections = said.split("== ").skip(1);
        Self(sections.filter_map(|it| it.split_once('\n')).map(|(name, it)| (name.into(), it.into())).collect())
    }

    fn text(&self, section: &str) -> &str {
        self.0.get(section).unwrap_or_else(|| panic!("no section {section:?}"))
    }

    fn json(&self, section: &str) -> Value {
        let text = self.text(section);
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{section}: {error}: {text}"))
    }

    fn numbers(&self, section: &str) -> Vec<u64> {
        self.text(section).split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    /// How many packets workers have handed over to each other.
    fn handed_off(&self, section: &str) -> u64 {
        let workers = self.json(section);
        let all = workers.as_array().unwrap().iter().find(|worker| worker["worker"] == "all").unwrap();
        all["handed_off"].as_u64().unwrap()
    }

    fn assert_traffic_arrived(&self) {
        let ping = self.text("ping");
        assert!(ping.contains("3 packets transmitted") && !ping.contains(" 0 received"), "{ping}");
        assert_eq!(self.text("curl"), std::fs::read_to_string(root().join("LICENSE")).unwrap());
    }

    fn assert_native(&self, node: &str, interfaces: usize, queues: usize) {
        let node = self.json(node);
        let of_node = node["interfaces"].as_array().unwrap();
        assert_eq!(of_node.len(), interfaces, "{node}");
        for interface in of_node {
            assert_eq!((&interface["xdp"], &interface["sockets"]), (&"native".into(), &queues.into()), "{node}");
        }
    }
}

#[test]
fn an_overlay_carries_traffic_on_the_kernel_of_debian_12() {
    let said = Sections::of("overlay.sh", &[]);
    for node in ["entry", "relay", "exit"] {
        said.assert_native(node, 2, 1);
    }
    said.assert_traffic_arrived();
    let doctor = said.json("doctor");
    let kernel = doctor.as_array().unwrap().iter().find(|finding| finding["what"] == "kernel").unwrap();
    assert!(kernel["found"].as_str().unwrap().starts_with("6.1."), "not Debian 12's: {doctor}");
    assert!(
        doctor.as_array().unwrap().iter().all(|finding| finding["state"] != "missing"),
        "a node does run: {doctor}"
    );
}

#[test]
fn a_gateway_carries_traffic_on_the_kernel_of_debian_12() {
    let said = Sections::of("gateway.sh", &[]);
    said.assert_native("gateway", 3, 2);
    said.assert_traffic_arrived();
}

#[test]
fn a_nic_that_has_rules_gives_each_worker_the_answers_to_what_it_sent() {
    let said = Sections::of("rules.sh", &["--module", "steernic"]);

    // The NIC does what ethtool tells it: [queue 0, queue 1, by a rule]; three datagrams of four have one.
    let [before, to_1, to_0] = ["before", "by rule to 1", "by rule to 0"].map(|section| said.numbers(section));
    assert_eq!((before[2], to_1[2], to_0[2]), (0, 3, 6));
    assert!(to_1[1] - before[1] >= 3, "{before:?}, then {to_1:?}");
    assert!(to_0[0] - to_1[0] >= 3, "{to_1:?}, then {to_0:?}");

    // A node uses it: what is handed over then is of what the hosts sent, if anything, and not of the twenty answers to each.
    let rules = |section| said.json(section)["interfaces"][1]["rules"].as_u64().unwrap();
    assert_eq!(rules("node without rules"), 0);
    assert!(rules("node with rules") > 0);
    let handed = |with: &str| {
        let [before, after] = ["before", "after"].map(|when| said.handed_off(&format!("workers {when}, {with}")));
        (after - before, said.numbers(&format!("asked {with}")))
    };
    let (without, asked) = handed("without rules");
    assert!(without > asked[0], "{without} of {asked:?} questions and answers were handed over: chance would do that");
    let (with, asked) = handed("with rules");
    assert!(asked[1] >= 10 * asked[0] && with <= asked[0], "{with} of {asked:?} were handed over");
}
