"""TCP through a tunnel: client, entry, exit, server. starnet's, or wireguard-go's between client and exit.

The programs of both are free to use both processors, as they would be on a client's machine.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bed import BUILT, ROOT, run, stop

NETNS = ROOT / "vm-testbed" / "netns"
TOPOLOGY = Path(__file__).with_name("tunnel.toml")
INSIDE = {"client": "10.77.0.1", "exit": "10.77.0.2"}
WIREGUARD_PORT = 51820
# What else this machine does must count as little as possible.
NICE = ["nice", "-n", "-20"]
UP, DOWN = ("TCP to the server", "Mbit/s"), ("TCP from the server", "Mbit/s")


class Testbed:
    """The topology, with or without starnet in it."""

    def __init__(self, *options):
        self.name = f"perf-tun-{os.getpid()}"
        self.options = options

    def __enter__(self):
        self.netns("up", "--topology", TOPOLOGY, *self.options)
        self.status = json.loads(self.netns("status", "--json"))["hosts"]
        return self

    def __exit__(self, *_):
        self.netns("down")

    def netns(self, *words):
        environment = os.environ | {"STARNET": str(BUILT / "starnet")}
        done = subprocess.run([*NICE, NETNS, "--name", self.name, *words], env=environment, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def address(self, host):
        return self.status[host]["address"]

    def command(self, host, *command):
        return [*NICE, "ip", "netns", "exec", self.status[host]["namespace"], *map(str, command)]

    def run(self, host, *command):
        return run(*self.command(host, *command))

    def spawn(self, host, *command, **options):
        return subprocess.Popen(self.command(host, *command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, start_new_session=True, **options)


def throughput(start, quick):
    """Both directions, one connection each."""
    with start() as testbed:
        server = testbed.spawn("www", "iperf3", "--server")
        try:
            time.sleep(0.5)
            seconds = 3 if quick else 8
            return {UP: iperf(testbed, seconds), DOWN: iperf(testbed, seconds, "--reverse")}
        finally:
            stop(server)


def iperf(testbed, seconds, *options):
    said = testbed.run("client", "iperf3", "--client", testbed.address("www"), "--time", seconds, "--omit", 1, "--json",
                       *options)
    return json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e6


@contextlib.contextmanager
def starnet():
    with Testbed() as testbed:
        yield testbed


@contextlib.contextmanager
def wireguard():
    """wireguard-go at client and exit; the kernel forwards between them, and at the exit to the server."""
    with Testbed("--plain") as testbed, tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        for host in ("entry", "exit"):
            testbed.run(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        links = addresses_of_links(testbed)
        testbed.run("client", "ip", "route", "add", links["exit", "entry"], "via", links["entry", "client"])
        testbed.run("exit", "ip", "route", "add", links["client", "entry"], "via", links["entry", "exit"])
        keys = {host: key_pair(Path(folder) / host) for host in INSIDE}
        for host, other, toward in (("client", "exit", ("exit", "entry")), ("exit", "client", ("client", "entry"))):
            ends.callback(stop, wireguard_end(testbed, host, keys, other, links[toward]))
        testbed.run("client", "ip", "route", "replace", testbed.address("www"), "dev", device("client"))
        testbed.run("www", "ip", "route", "replace", INSIDE["client"], "via", links["exit", "www"])
        yield testbed


def wireguard_end(testbed, host, keys, other, endpoint):
    process = testbed.spawn(host, "wireguard-go", "--foreground", device(host))
    socket = Path(f"/var/run/wireguard/{device(host)}.sock")
    deadline = time.monotonic() + 10
    while not socket.exists():
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError("wireguard-go did not start")
        time.sleep(0.05)
    testbed.run(host, "wg", "set", device(host), "private-key", keys[host][0], "listen-port", WIREGUARD_PORT,
                "peer", keys[other][1], "endpoint", f"{endpoint}:{WIREGUARD_PORT}", "allowed-ips", "0.0.0.0/0")
    testbed.run(host, "ip", "address", "add", f"{INSIDE[host]}/24", "dev", device(host))
    testbed.run(host, "ip", "link", "set", device(host), "up")
    return process


def device(host):
    return f"wg-{host}-{os.getpid() % 10000}"


def key_pair(path):
    """The file of the private key, and the public key."""
    private = run("wg", "genkey")
    path.write_text(private)
    path.chmod(0o600)
    return path, run("wg", "pubkey", text=private).strip()


def addresses_of_links(testbed):
    """The address of a host on its link to another, by (host, other)."""
    found = {}
    for host in testbed.status:
        for interface in json.loads(testbed.run(host, "ip", "-j", "-4", "address")):
            for address in interface["addr_info"]:
                found[host, interface["ifname"]] = address["local"]
    return found
