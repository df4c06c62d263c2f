"""What is measured: starnet, and what it is measured against. Each brings itself up in `dut` and says what to send it."""

import contextlib
import json
import subprocess

from bed import ADDRESSES, BUILT, GENERATOR_CPU, MACS, MEASURED_CPU, MEASURED_PRIORITY, STARNET, TRAFFIC, run

DATA_PORT = 40000
CONTROL = "10.9.0.1"
OUTSIDE = "10.2.0.9"
HOSTS = "10.1.1.0"
SERVERS = "198.51.100.0"
PORT = 9000


def starnet_config(bed, name, tables):
    path = bed.directory / f"{name}.toml"
    lines = []
    for table, entries in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def answering(bed, metrics):
    """The tables of a node that answers with metrics at this address of the loopback, if any."""
    if not metrics:
        return {}
    bed.ip("dut", "link", "set", "lo", "up")
    return {"metrics": {"listen": metrics}}


@contextlib.contextmanager
def relay(bed, sessions=1, size=128, starnet=None, metrics=None):
    """A real node that relays; its neighbours and its control centre are played by perf-veth."""
    pki = bed.directory / "pki"
    for words in (["ca"], ["controller"], ["node", "relay"], ["node", "upstream"], ["node", "downstream"]):
        run(STARNET, "cert", *words, "--dir", pki)
    bed.ip("dut", "link", "set", "lo", "up")
    bed.ip("dut", "address", "add", f"{CONTROL}/32", "dev", "lo")
    bed.ip("dut", "address", "add", "10.9.0.2/32", "dev", "lo")
    frames = bed.directory / "frames"
    neighbours = bed.start(
        "dut", TRAFFIC, "relay", frames, "--mac", MACS["d0"], "--source-mac", MACS["g0"], "--pki", pki,
        "--control", CONTROL, "--upstream", f"{ADDRESSES['g0']}:{DATA_PORT}",
        "--downstream", f"{ADDRESSES['s1']}:{DATA_PORT}", "--sessions", sessions, "--size", size, cpu=GENERATOR_CPU)
    config = starnet_config(bed, "relay", {
        "node": {"name": "relay", "address": "10.9.0.2", "interfaces": ["d0", "d1"], "control": "10.9.0.2:4700",
                 "ports": "40000-49999", "roles": ["relay"], "idle": "busy", "socket": str(bed.directory / "sock")},
        "tls": {"ca": str(pki / "ca.pem"), "certificate": str(pki / "relay.pem"), "key": str(pki / "relay.key")},
        "controller": {"address": f"{CONTROL}:4600"},
        **answering(bed, metrics),
    })
    node = bed.start("dut", starnet or STARNET, "node", "--config", config, priority=MEASURED_PRIORITY)
    bed.wait_for("the relay's sessions", frames.exists, neighbours)
    try:
        yield frames
    finally:
        bed.stop(node)
        bed.stop(neighbours)


@contextlib.contextmanager
def testpmd(bed, size=128, options=""):
    """DPDK's test program over AF_XDP, in MAC mode: rewrites the Ethernet addresses and sends on."""
    program = bed.start(
        "dut", "stdbuf", "-oL", "dpdk-testpmd", "-l", f"{GENERATOR_CPU},{MEASURED_CPU}", "-m", "256", "--in-memory",
        "--no-pci", "--no-telemetry", f"--vdev=net_af_xdp0,iface=d0{options}",
        f"--vdev=net_af_xdp1,iface=d1{options}", "--", "--forward-mode=mac", "--auto-start", "--nb-cores=1", "--total-num-mbufs=32768",
        "--no-mlockall", f"--eth-peer=1,{MACS['s1']}", priority=MEASURED_PRIORITY,
        stdin=subprocess.PIPE)
    bed.wait_for("testpmd to forward", lambda: "Press enter to exit" in bed.log("stdbuf"), program)
    try:
        yield bed.udp_frames(1, HOSTS, SERVERS, PORT, size)
    finally:
        bed.stop(program)


@contextlib.contextmanager
def gateway(bed, flows=1, size=128, metrics=None):
    """A real node that translates the addresses of the hosts behind d0."""
    bed.ip("dut", "address", "add", f"{OUTSIDE}/32", "dev", "d1")
    route_to_servers(bed)
    config = starnet_config(bed, "gateway", {
        "node": {"name": "gateway", "address": OUTSIDE, "ports": "1024-65535", "idle": "busy",
                 "socket": str(bed.directory / "sock")},
        "gateway": {"inside": ["d0"], "outside": ["d1"]},
        "limits": {"bindings": 1 << 17},
        **answering(bed, metrics),
    })
    node = bed.start("dut", STARNET, "node", "--config", config, priority=MEASURED_PRIORITY)
    bed.wait_for("the gateway", lambda: "running" in bed.log("starnet"), node)
    try:
        yield bed.udp_frames(flows, HOSTS, SERVERS, PORT, size)
    finally:
        bed.stop(node)


@contextlib.contextmanager
def kernel(bed, flows=1, size=128, masquerade=False):
    """The kernel routes from d0 to d1, and translates: where the packets come in, on the generator's processor."""
    bed.set("net.ipv4.ip_forward=1")
    route_to_servers(bed)
    if masquerade:
        bed.run("dut", "nft", "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; "
                              "add rule ip nat out oifname d1 masquerade")
        bed.set("net.netfilter.nf_conntrack_max=262144")
    yield bed.udp_frames(flows, HOSTS, SERVERS, PORT, size)


def kernel_rps(bed, *words, **options):
    """The same on the measured processor: the other one hands the packets over."""
    bed.run("dut", "sh", "-c", f"echo {1 << int(MEASURED_CPU):x} >/sys/class/net/d0/queues/rx-0/rps_cpus")
    return kernel(bed, *words, **options)


@contextlib.contextmanager
def nginx(bed, size=128):
    """nginx's stream module as a relay of UDP: from a socket it listens at to one that is connected to the server."""
    config = bed.directory / "nginx.conf"
    config.write_text(f"""
        load_module /usr/lib/nginx/modules/ngx_stream_module.so;
        daemon off;
        user root;
        worker_processes 1;
        pid {bed.directory}/nginx.pid;
        error_log stderr;
        events {{ worker_connections 1024; }}
        stream {{
            server {{
                listen {ADDRESSES["d0"]}:{PORT} udp;
                proxy_pass {ADDRESSES["s1"]}:{PORT};
                proxy_responses 0;
                proxy_timeout 60s;
            }}
        }}
    """)
    program = bed.start("dut", "nginx", "-e", "stderr", "-c", config, cpu=MEASURED_CPU, priority=MEASURED_PRIORITY)
    bed.wait_for("nginx", lambda: f":{PORT} " in bed.run("dut", "ss", "-Hlun"), program)
    try:
        yield bed.udp_frames(1, HOSTS, ADDRESSES["d0"], PORT, size)
    finally:
        bed.stop(program)


def route_to_servers(bed):
    bed.ip("dut", "route", "add", f"{SERVERS}/24", "via", ADDRESSES["s1"])
