"""Can anything that an operator or a monitoring system does be felt by packets? A real node forwards established traffic at
a steady rate; windows in which it is left alone and windows in which somebody wants something of it take turns.

Times are the node's own: residence, from rx to tx, as its histogram has it. `starnet debug residence` tells the counts of that
histogram, and what came between two readings is a window. Traffic stops in between for longer than the control core
takes to collect what the workers recorded.
"""

import contextlib
import json
import statistics
import subprocess
import threading
import time
import urllib.request

from bed import GENERATOR_CPU, GENERATOR_PRIORITY, STARNET, TRAFFIC
import peers

METRICS = "127.0.0.1:9100"
RATE = 50_000
QUIET = "quiet"
# Twice the time after which the control core collects anew.
COLLECT_S = 2.2
QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)


class Node:
    """A node in a bed, and what can be asked of it."""

    def __init__(self, bed):
        self.bed = bed
        self.socket = bed.directory / "sock"

    def starnet(self, *words):
        return self.bed.run("dut", STARNET, *words, "--socket", self.socket)

    def residence(self):
        return {value: count for value, count in json.loads(self.starnet("debug", "residence"))}


def again_and_again(pause_s, act):
    """A disturbance: calls `act` until told to stop, and says how often that was."""
    @contextlib.contextmanager
    def disturb(node):
        stop, calls, failures = threading.Event(), [], []

        def loop():
            while not stop.is_set():
                try:
                    act(node)
                except Exception as error:  # told to the caller below
                    failures.append(error)
                    return
                calls.append(None)
                stop.wait(pause_s)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield calls
        finally:
            stop.set()
            thread.join()
        if failures:
            raise RuntimeError(f"the disturbance failed: {failures[0]}")
        if not calls:
            raise RuntimeError("nothing was disturbed")
    return disturb


def scrape(node):
    # The gateway's NAT has all ports that the kernel would choose from.
    node.bed.run("dut", "curl", "-sSf", "--local-port", "900-1023", "-o", "/dev/null", f"http://{METRICS}/metrics")


STALL = ("control core stopped 100 ms again and again", again_and_again(0.02, lambda node: node.starnet("debug", "stall", "100")))
SCRAPE = ("metrics scraped each second", again_and_again(1.0, scrape))
SESSIONS = ("show sessions, all of them", again_and_again(0.1, lambda node: node.starnet("show", "sessions", "--limit", "0", "--json")))
FLOWS = ("show nat flows, all of them", again_and_again(0.1, lambda node: node.starnet("show", "nat", "flows", "--limit", "0", "--json")))


@contextlib.contextmanager
def traffic(bed, frames):
    """At a steady rate, which leaves the generator's processor time for the control core and those who ask it."""
    generator = bed.start("gen", TRAFFIC, "generate", "g0", frames, "--rate", RATE, cpu=GENERATOR_CPU,
                          priority=GENERATOR_PRIORITY, stdout=subprocess.PIPE)
    try:
        if not generator.stdout.readline():
            raise RuntimeError(f"the generator did not start:\n{bed.said()}")
        yield
    finally:
        bed.stop(generator)


def window(node, frames, seconds, disturb):
    """Residence times in it, by value: how many."""
    before = node.residence()
    with traffic(node.bed, frames), disturb(node) as calls:
        time.sleep(seconds)
    time.sleep(COLLECT_S)
    after = node.residence()
    counts = {value: count - before.get(value, 0) for value, count in after.items()}
    counts = {value: count for value, count in sorted(counts.items()) if count > 0}
    if sum(counts.values()) < RATE * seconds / 2:
        raise RuntimeError(f"only {sum(counts.values())} packets in {seconds} s:\n{node.bed.said()}")
    return counts, len(calls)


def quantile(counts, wanted):
    """The value that so large a part of the counts is not above."""
    left = wanted * sum(counts.values())
    for value, count in counts.items():
        left -= count
        if left <= 0:
            return value
    return value


@contextlib.contextmanager
def nothing(_node):
    yield []


def measure(bed, start, disturbances, quick, say):
    """Rounds of windows of each kind. By kind: the quantiles of each round."""
    seconds, rounds = (2, 2) if quick else (4, 5)
    kinds = {QUIET: nothing, **dict(disturbances)}
    seen = {kind: [] for kind in kinds}
    with start(bed) as frames:
        node = Node(bed)
        # Warm-up: first packets of flows, pages, the kernel's neighbours.
        window(node, frames, 2, nothing)
        for _ in range(rounds):
            for kind, disturb in kinds.items():
                counts, calls = window(node, frames, seconds, disturb)
                seen[kind].append([quantile(counts, wanted) for wanted in QUANTILES])
                say(f"{kind}: {sum(counts.values())} packets, p99.9 {seen[kind][-1][3]} ns, disturbed {calls} times")
    return seen


def results(seen):
    """By kind and quantile: the median, and that of the ratios to the quiet window of the same round."""
    for kind, rounds in seen.items():
        medians = [statistics.median(values) for values in zip(*rounds)]
        pairs = list(zip(rounds, seen[QUIET]))
        ratios = [statistics.median(mine[at] / quiet[at] for mine, quiet in pairs) for at in range(len(QUANTILES))]
        yield kind, medians, ratios
