"""The overlay on top: certificates, tokens, configuration files, and waiting until it carries traffic."""

import json
import subprocess
import time

from . import Failed, processes
from .kernel import run

METRICS = {"listen": "127.0.0.1:9100"}  # each host has a loopback of its own
CONTROL_PORT = 4433  # outside the reserved range: control messages go through the kernel
PORTS = "40000-49999"
INSIDE = "100.64.0.{}"
TUN_MTU = 1400  # 1500 less what the overlay adds, rounded down


def configure(state, topology):
    """Writes all files that the programs need."""
    for gateway in topology.with_role("gateway"):
        write(state, gateway, gateway_config(state, topology, gateway))
    if not topology.with_role("controller"):
        return
    tls = state.directory / "tls"
    run(state.starnet, "cert", "ca", "--dir", tls)
    run(state.starnet, "cert", "controller", "--dir", tls)
    run(state.starnet, "token", "key", "--key", tls / "token.key")
    for host in topology.hosts.values():
        if host.is_node:
            run(state.starnet, "cert", "node", host.name, "--dir", tls)
        if host.role == "client":
            token = run(state.starnet, "token", "issue", "--client", host.name, "--key", tls / "token.key")
            (tls / f"{host.name}.token").write_text(token)
    for number, client in enumerate(topology.with_role("client"), start=2):
        write(state, client, client_config(state, topology, client, INSIDE.format(number)))
    for node in topology.with_role("entry", "relay", "exit"):
        write(state, node, node_config(state, topology, node))
    for controller in topology.with_role("controller"):
        write(state, controller, controller_config(state, topology, controller))


def controller_config(state, topology, host):
    return {
        "controller": {
            "listen": controller_address(topology),
            "socket": str(state.socket(host.name)),
            "links": [list(pair) for pair in topology.neighbours()],
        },
        "tls": tls_files(state, "controller"),
        "token": {"key": str(state.directory / "tls" / "token.key")},
        "metrics": METRICS,
    }


def node_config(state, topology, host):
    config = {
        "node": {
            "name": host.name,
            "address": host.address,
            "interfaces": [interface.name for interface in host.interfaces if not interface.network],
            "control": f"{host.address}:{CONTROL_PORT}",
            "ports": PORTS,
            "roles": [host.role],
            "workers": host.workers,
            "idle": "adaptive",
            # A whole overlay shares this machine: the scheduler spreads it better than one node's own placement can.
            "pin": False,
            "socket": str(state.socket(host.name)),
        },
        "tls": tls_files(state, host.name),
        "controller": {"address": controller_address(topology)},
        "metrics": METRICS,
    }
    if host.role == "exit":
        # The test servers have addresses reserved for documentation, which an exit denies by default.
        config["exit"] = {"allow": [f"{server.address}/32" for server in topology.with_role("server", "plain")]}
    return config


def gateway_config(state, topology, host):
    links = [interface.name for interface in host.interfaces if not interface.network]
    inside = [name for name in links if topology.hosts[name].role == "host"]
    return {
        "node": {
            "name": host.name,
            "address": host.address,
            "ports": PORTS,
            "workers": host.workers,
            "idle": "adaptive",
            "pin": False,
            "socket": str(state.socket(host.name)),
        },
        "gateway": {"inside": inside, "outside": [name for name in links if name not in inside]},
        "metrics": METRICS,
    }


def client_config(state, topology, host, inside):
    tls = state.directory / "tls"
    return {
        "client": {
            "controller": controller_address(topology),
            "ca": str(tls / "ca.pem"),
            "token": str(tls / f"{host.name}.token"),
            "paths": 2,
            "inside": inside,
            "socket": str(state.socket(host.name)),
        },
        "tun": {
            "name": "starnet0",
            "mtu": TUN_MTU,
            "routes": [f"{server.address}/32" for server in topology.with_role("server")],
        },
    }


def controller_address(topology):
    name = topology.with_role("controller")[0].name
    for network in topology.networks.values():
        if name in network.members:
            return f"{network.members[name]}:{CONTROL_PORT}"
    raise Failed(f"{name} is in no network of the topology: nothing could reach it")


def tls_files(state, name):
    tls = state.directory / "tls"
    return {"ca": str(tls / "ca.pem"), "certificate": str(tls / f"{name}.pem"), "key": str(tls / f"{name}.key")}


def config_file(state, host):
    return state.directory / "config" / f"{host}.toml"


def write(state, host, config):
    config_file(state, host.name).write_text(to_toml(merge(config, host.config)))


def merge(base, over):
    """`over` wins, table by table; an empty list or table takes the key away."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and value:
            merged[key] = merge(merged[key], value)
        elif value in ({}, []):
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def to_toml(config):
    lines = []
    for table, entries in config.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            lines.append(f"[[{table}]]" if isinstance(entries, list) else f"[{table}]")
            lines += [f"{key} = {to_toml_value(value)}" for key, value in entry.items()]
            lines.append("")
    return "\n".join(lines)


def to_toml_value(value):
    """JSON's strings, numbers and booleans are TOML's too."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {to_toml_value(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml_value, value)) + "]"
    return json.dumps(value)


def start(state, host):
    """Starts a host's starnet process."""
    command = "node" if host.is_node or host.role == "gateway" else host.role
    state.socket(host.name).unlink(missing_ok=True)
    return processes.start(state, host.name, host.name,
                           [state.starnet, command, "--config", config_file(state, host.name)])


def show(state, host, view):
    """What `starnet show VIEW --json` says of a host; None while it does not answer."""
    result = subprocess.run([state.starnet, "show", view, "--socket", state.socket(host), "--json"],
                            capture_output=True, text=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def start_all(state, topology, patience_s, progress):
    """Starts controller, nodes and clients, each once what it needs is there."""

    def wait(what, condition):
        wait_for(state, what, condition, patience_s, progress)

    hosts = [host for host in topology.hosts.values() if host.runs_starnet]
    for host in hosts:
        if host.role != "client":
            start(state, host)
    gateways = topology.with_role("gateway")
    if gateways:
        wait("the gateway", lambda: all(show(state, host.name, "node") for host in gateways))
    if not topology.with_role("controller"):
        return
    wait("the nodes to register and to measure their links", lambda: measured(state, topology))
    clients = [host for host in hosts if host.role == "client"]
    for host in clients:
        start(state, host)
    wait("the clients' sessions", lambda: all(has_session(state, host) for host in clients))


def measured(state, topology):
    """True when the control centre knows each node and the quality of each link, in both directions."""
    seen = show(state, topology.with_role("controller")[0].name, "topology")
    if seen is None:
        return False
    links = {(link["from"], link["to"]) for link in seen["links"] if link["quality"]["probes"] > 0}
    wanted = {pair for ends in topology.neighbours() for pair in (ends, ends[::-1])}
    nodes = {node["name"] for node in seen["nodes"]}
    return links >= wanted and nodes >= {host.name for host in topology.hosts.values() if host.is_node}


def has_session(state, host):
    """True when the client has sessions and the exit answers over all of them."""
    sessions = show(state, host.name, "sessions")
    return bool(sessions) and all(session["state"] == "ready" for session in sessions)


def wait_for(state, what, condition, patience_s, progress):
    progress(f"waiting for {what}")
    deadline = time.monotonic() + patience_s
    while not condition():
        for record in state.processes:
            if not processes.running(record):
                raise Failed(f"{record['program']} ended:\n{tail(state, record['program'])}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {record['program']}\n{tail(state, record['program'])}" for record in state.processes)
            raise Failed(f"waited {patience_s} s in vain for {what}; the ends of the logs:\n{logs}")
        time.sleep(0.1)


def tail(state, program, lines=15):
    return "\n".join(state.log(program).read_text(errors="replace").splitlines()[-lines:]) or "(nothing logged)"
