//! What operators meet: the views, the ends of processes, wrong files, and a testbed that leaves nothing behind.

use std::process::Command;

use crate::support::{PATIENCE, STARNET, Testbed, WWW, eventually, text};

#[test]
fn every_view_is_valid_json_and_readable_columns() {
    let testbed = Testbed::up("show", "default");
    let node_views = ["node", "workers", "graph", "sessions", "paths", "peers", "drops", "latency"];
    for host in ["entry", "relay-a", "exit"] {
        for view in node_views {
            let answer = testbed.show(host, view);
            assert!(!answer.is_null(), "{view} of {host}");
            assert!(!testbed.netns(&["show", host, view]).trim().is_empty(), "{view} of {host}");
        }
        let sessions = testbed.show(host, "sessions");
        assert_eq!(sessions["rows"].as_array().map(Vec::len), Some(1), "sessions of {host}: {sessions}");
    }
    for view in ["topology", "nodes"] {
        assert!(!testbed.show("controller", view).is_null());
        assert!(testbed.netns(&["show", "controller", view]).contains("relay-b"), "{view}");
    }
    for view in ["sessions", "paths"] {
        assert!(!testbed.show("client", view).is_null());
    }
    assert!(testbed.netns(&["show", "client", "paths"]).contains("relay-b"));
}

#[test]
fn probes_measure_the_delay_of_a_link() {
    let testbed = Testbed::up("probes", "default");
    testbed.netns(&["impair", "entry-relay-a", "delay_ms=40,jitter_ms=0"]);
    eventually("the control centre to see it", || {
        let topology = testbed.show("controller", "topology");
        let links = topology["links"].as_array().unwrap();
        let link = links.iter().find(|link| link["from"] == "entry" && link["to"] == "relay-a")?;
        let median = link["quality"]["rtt_p50_us"].as_u64()?;
        // Never sooner than light in this wire; a loaded machine may be late.
        (median >= 80_000).then_some(())
    });
}

#[test]
fn a_node_that_ends_leaves_no_xdp_program() {
    let testbed = Testbed::up("detach", "default");
    let programs = || text(&testbed.run("entry", &["ip", "-details", "link"]).stdout).matches("xdp").count();
    assert!(programs() > 0);
    for signal in ["TERM", "INT", "KILL"] {
        testbed.netns(&["stop", "--signal", signal, "entry"]);
        eventually("the XDP programs to be gone", || (programs() == 0).then_some(()));
        testbed.netns(&["start", "entry"]);
        eventually("the node to be back", || (programs() > 0).then_some(()));
        eventually("the node to answer", || {
            testbed
                .run("entry", &[STARNET, "show", "node", "--socket", &socket(&testbed, "entry")])
                .status
                .success()
                .then_some(())
        });
    }
}

#[test]
fn a_second_node_with_the_same_ports_is_refused_by_the_owners_name() {
    let testbed = Testbed::up("ports", "default");
    let config = std::fs::read_to_string(testbed.directory().join("config/entry.toml")).unwrap();
    let second = testbed.directory().join("config/second.toml");
    std::fs::write(&second, config.replace("entry.sock", "second.sock").replace("198.18.0.3:4433", "198.18.0.3:4434"))
        .unwrap();
    let (status, said) = testbed.spawn("entry", &[STARNET, "node", "--config", second.to_str().unwrap()]).output();
    assert!(status.is_some_and(|status| status != 0), "{said}");
    assert!(said.contains("overlap") && said.contains("'entry'"), "{said}");
}

#[test]
fn wrong_configurations_are_refused_by_file_and_field() {
    let directory = tempfile::tempdir().unwrap();
    let node = "[node]\nname = \"n\"\naddress = \"192.0.2.1\"\ninterfaces = [\"lo\"]\ncontrol = \"192.0.2.1:4433\"\n\
                ports = \"40000-49999\"\nroles = [\"relay\"]\n[tls]\nca = \"ca.pem\"\ncertificate = \"n.pem\"\n\
                key = \"n.key\"\n[controller]\naddress = \"192.0.2.2:4433\"\n";
    for (command, config, complaint) in [
        ("node", node.replace("40000-49999", "40000"), "ports"),
        ("node", node.replace("relay", "lighthouse"), "roles"),
        ("node", node.replace("[\"lo\"]", "[]"), "interfaces"),
        ("node", node.replace("name =", "nome ="), "nome"),
        ("node", node.replace("192.0.2.1\"", "192.0.2\""), "address"),
        ("node", "[node".to_owned(), "bad.toml"),
        ("controller", "[controller]\nlisten = \"here\"\n".to_owned(), "listen"),
        ("client", "[client]\ncontroller = \"192.0.2.2:4433\"\npaths = 99\n".to_owned(), "bad.toml"),
    ] {
        let file = directory.path().join("bad.toml");
        std::fs::write(&file, config).unwrap();
        let output = Command::new(STARNET).args([command, "--config", file.to_str().unwrap()]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command}, {complaint}: {said}");
        assert!(said.contains("bad.toml") && said.contains(complaint), "{command}, {complaint}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "one line: {said}");
    }
    let output = Command::new(STARNET).args(["node", "--config", "/nowhere/node.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nowhere/node.toml"), "{}", text(&output.stderr));
}

#[test]
fn down_leaves_nothing_after_everything_was_killed() {
    let testbed = Testbed::up("nothing", "default");
    let other_links = links();
    let _stray = testbed.spawn("www", &["sleep", "1000"]);
    let status = testbed.netns(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let mut pids = Vec::new();
    for host in status["hosts"].as_object().unwrap().values() {
        let inside = Command::new("ip").args(["netns", "pids", host["namespace"].as_str().unwrap()]).output().unwrap();
        pids.extend(text(&inside.stdout).split_whitespace().map(str::to_owned));
    }
    assert!(pids.len() >= 6, "{pids:?}");
    assert!(Command::new("kill").arg("-KILL").args(&pids).status().unwrap().success());

    testbed.netns(&["down"]);
    assert!(!testbed.directory().exists());
    let namespaces = text(&Command::new("ip").args(["netns", "list"]).output().unwrap().stdout);
    assert!(!namespaces.contains(&format!("{}.", testbed.name())), "{namespaces}");
    assert_eq!(links(), other_links);
    for pid in pids {
        eventually("the processes to be gone", || (!alive(&pid)).then_some(()));
    }
}

#[test]
fn two_testbeds_run_side_by_side() {
    let first = Testbed::up("side", "default");
    let other = format!("{}-2", first.name());
    let netns = |words: &[&str]| first.netns(&[&["--name", &other], words].concat());
    netns(&["down"]);
    first.bring_up_as(&other, "default");
    let limit = PATIENCE.as_secs().to_string();
    for name in [first.name(), &other] {
        let ping =
            first.netns(&["--name", name, "exec", "client", "timeout", &limit, "ping", "-c", "3", &WWW.to_string()]);
        assert!(ping.contains(" 0% packet loss"), "{name}: {ping}");
    }
    netns(&["down"]);
    let ping = first.run("client", &["ping", "-c", "3", "-i", "0.2", &WWW.to_string()]);
    assert!(text(&ping.stdout).contains(" 0% packet loss"), "the other's end did this one no harm");
}

fn socket(testbed: &Testbed, host: &str) -> String {
    testbed.directory().join("run").join(format!("{host}.sock")).to_str().unwrap().to_owned()
}

/// Interfaces of the namespace the tests run in.
fn links() -> String {
    text(&Command::new("ip").args(["-brief", "link"]).output().unwrap().stdout)
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with(['Z', 'X']))
}
