"""What the measurements on veth have in common: namespaces, frames, and rates.

    gen              dut                 sink
     g0 ============= d0   d1 ============= s1

The generator sends out of g0 from processor 0, where the kernel also takes the packets from the veth up to the socket or
through the stack. What is measured gets processor 1 to itself and sends by d1. At s1 an XDP program counts and drops.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "vm-testbed"))

from testbed.kernel import existing, run  # noqa: E402

BUILT = ROOT / "target" / "release"
TRAFFIC = BUILT / "examples" / "perf-veth"
STARNET = BUILT / "starnet"

MACS = {"g0": "02:00:00:00:00:01", "d0": "02:00:00:00:00:02", "d1": "02:00:00:00:00:03", "s1": "02:00:00:00:00:04"}
ADDRESSES = {"g0": "10.1.0.1", "d0": "10.1.0.2", "d1": "10.2.0.1", "s1": "10.2.0.2"}
GENERATOR_CPU, MEASURED_CPU = "0", "1"
# What is measured goes first where both want the generator's processor.
GENERATOR_PRIORITY, MEASURED_PRIORITY = 5, 10
HUGE_PAGES = 256
WARM_UP_S = 0.5
PATIENCE_S = 30


@contextlib.contextmanager
def huge_pages():
    """All who use AF_XDP here keep their packets in huge pages, as they should anywhere."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = int(setting.read_text())
    setting.write_text(str(max(before, HUGE_PAGES)))
    try:
        yield
    finally:
        setting.write_text(str(before))


class Bed:
    """Three namespaces and two cables, gone at the end whatever happens."""

    def __init__(self, number=0):
        self.name = f"perf-veth-{os.getpid()}-{number}"
        self.directory = Path(tempfile.mkdtemp(prefix="starnet-perf-"))
        self.programs = []

    def __enter__(self):
        for host in ("gen", "dut", "sink"):
            run("ip", "netns", "add", self.namespace(host))
            self.set("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1", host=host)
        self.cable(("gen", "g0"), ("dut", "d0"))
        self.cable(("dut", "d1"), ("sink", "s1"))
        return self

    def __exit__(self, *_):
        for program in reversed(self.programs):
            stop(program)
        for namespace in existing():
            if namespace.startswith(f"{self.name}."):
                run("ip", "netns", "delete", namespace)
        shutil.rmtree(self.directory)

    def namespace(self, host):
        return f"{self.name}.{host}"

    def cable(self, one, other):
        words = []
        for host, interface in (one, other):
            words.append(f"name {interface} address {MACS[interface]} netns {self.namespace(host)}".split())
        run("ip", "link", "add", *words[0], "type", "veth", "peer", *words[1])
        for (host, interface), (_, far) in ((one, other), (other, one)):
            self.ip(host, "link", "set", interface, "up")
            # Redirected frames go only between two ends with NAPI, which GRO switches on where the interface is up.
            self.run(host, "ethtool", "-K", interface, "gro", "on")
            self.ip(host, "address", "add", f"{ADDRESSES[interface]}/16", "dev", interface)
            self.ip(host, "neighbour", "add", ADDRESSES[far], "lladdr", MACS[far], "dev", interface)

    def ip(self, host, *words):
        run("ip", "-n", self.namespace(host), *words)

    def set(self, *settings, host="dut"):
        self.run(host, "sysctl", "-qw", *settings)

    def run(self, host, *command):
        return run("ip", "netns", "exec", self.namespace(host), *map(str, command))

    def start(self, host, *command, cpu=None, priority=0, stdin=subprocess.DEVNULL, stdout=None):
        """Starts a program that ends with the bed at the latest; its output goes to a log unless taken.

        With a priority nothing without one runs beside it on its processor: what else this machine does is kept out.
        """
        prefix = ["taskset", "-c", cpu] if cpu else []
        prefix += ["chrt", "--fifo", str(priority)] if priority else []
        log = open(self.directory / f"{Path(command[0]).name}.log", "ab")
        with log:
            program = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace(host), *prefix, *map(str, command)],
                stdin=stdin, stdout=stdout or log, stderr=log, text=True, start_new_session=True)
        self.programs.append(program)
        return program

    def stop(self, program):
        self.programs.remove(program)
        stop(program)

    def pause(self):
        """Nothing runs in here until it is resumed."""
        for program in self.programs:
            os.killpg(program.pid, signal.SIGSTOP)

    def resume(self):
        for program in self.programs:
            os.killpg(program.pid, signal.SIGCONT)

    def log(self, name):
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / f"{name}.log").read_text(errors="replace")
        return ""

    def wait_for(self, what, condition, program=None):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline or (program and program.poll() is not None):
                raise RuntimeError(f"waited in vain for {what}; it said:\n{self.said()}")
            time.sleep(0.05)

    def said(self):
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
                         for path in sorted(self.directory.glob("*.log")))

    # Frames and rates.

    def udp_frames(self, flows, source, destination, port, size=128):
        """A file of UDP datagrams of so many flows, to be routed by d0."""
        path = self.directory / "frames"
        words = [path, "--mac", MACS["d0"], "--source-mac", MACS["g0"], "--from", source, "--to", destination,
                 "--port", port, "--flows", flows, "--size", size]
        run(TRAFFIC, "frames", *map(str, words))
        return path

    @contextlib.contextmanager
    def traffic(self, frames):
        """Sends as fast as it can."""
        generator = self.start("gen", TRAFFIC, "generate", "g0", frames, cpu=GENERATOR_CPU, priority=GENERATOR_PRIORITY,
                               stdout=subprocess.PIPE)
        try:
            if not generator.stdout.readline():
                raise RuntimeError(f"the generator did not start:\n{self.said()}")
            yield generator
        finally:
            self.stop(generator)

    def rate(self, frames, seconds):
        """Packets a second that come out at the far end."""
        sink = self.start("sink", TRAFFIC, "sink", "s1", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        reading(sink)
        with self.traffic(frames) as generator:
            time.sleep(WARM_UP_S)
            before = reading(sink)
            time.sleep(seconds)
            after = reading(sink)
            if generator.poll() is not None:
                raise RuntimeError(f"the generator ended:\n{self.said()}")
        self.stop(sink)
        return (after[1] - before[1]) * 1e9 / (after[0] - before[0])

    def delay(self, frames, count):
        """Percentiles of the time one frame takes from g0 to s1, in nanoseconds."""
        ends = [f"{self.namespace(host)}:{interface}" for host, interface in (("gen", "g0"), ("sink", "s1"))]
        return json.loads(run("taskset", "-c", GENERATOR_CPU, "chrt", "--fifo", str(GENERATOR_PRIORITY), TRAFFIC, "delay", *ends, frames, "--count", str(count)))


def reading(sink):
    """Nanoseconds and packets."""
    sink.stdin.write("\n")
    sink.stdin.flush()
    return tuple(map(int, sink.stdout.readline().split()))


def stop(program):
    """Ends a program and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(timeout=5)
            return
