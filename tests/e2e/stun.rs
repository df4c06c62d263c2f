//! What an independent judge of NATs says of ours: coturn's server and its NAT behaviour discovery (RFC 5780).

use crate::support::{Program, Testbed, eventually, text};

/// A STUN server needs two addresses.
const SERVER: [&str; 2] = ["203.0.113.10", "203.0.113.11"];

#[test]
fn a_stun_client_finds_the_exits_nat_independent_of_endpoints_and_hairpinning() {
    let testbed = Testbed::up("stun", "default");
    let run = |host: &str, words: &str| {
        let output = testbed.run(host, &["sh", "-c", words]);
        assert!(output.status.success(), "{host}: {words}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    run("www", &format!("ip address add {}/32 dev lo", SERVER[1]));
    let route = run("exit", &format!("ip route show {}", SERVER[0]));
    run("exit", &format!("ip route add {}", route.trim().replace(SERVER[0], SERVER[1])));
    // The exit is willing to reach the server's other address and, for hairpins, the client its own.
    let config = testbed.directory().join("config/exit.toml");
    let allowing = std::fs::read_to_string(&config).unwrap().replace("allow = [", "allow = [\"203.0.113.11/32\", ");
    std::fs::write(&config, allowing).unwrap();
    testbed.netns(&["stop", "exit"]);
    testbed.netns(&["start", "exit"]);
    for address in [SERVER[1], "198.18.0.6"] {
        run("client", &format!("ip route add {address} dev starnet0"));
    }

    let _server = stun_server(&testbed, "www");
    eventually("the session's return and the server", || {
        let output = testbed.run("client", &["timeout", "1", "turnutils_stunclient", SERVER[0]]);
        text(&output.stdout).contains("reflexive addr: 198.18.0.6:").then_some(())
    });
    judge(&|words| run("client", words));
}

/// coturn as a STUN server with both addresses.
pub(crate) fn stun_server(testbed: &Testbed, host: &str) -> Program {
    let [first, second] = SERVER.map(|address| format!("--listening-ip={address}"));
    let words = ["turnserver", "-n", "-S", "--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout"];
    let pid = format!("--pidfile={}/turnserver.pid", testbed.directory().display());
    testbed.spawn(host, &[&words[..], &[&first, &second, &pid]].concat())
}

/// Has the client judge the NAT between it and the server.
pub(crate) fn judge(client: &dyn Fn(&str) -> String) {
    let discover = |what: &str| client(&format!("turnutils_natdiscovery {what} {}", SERVER[0]));
    for (what, verdict) in [
        ("-m", "NAT with Endpoint Independent Mapping!"),
        ("-f", "NAT with Endpoint Independent Filtering!"),
        ("-H", "successful hairpinning"),
    ] {
        let said = discover(what);
        assert!(said.contains(verdict), "natdiscovery {what}: {said}");
    }
}
