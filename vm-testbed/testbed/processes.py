"""Starting, finding and ending programs in the testbed's namespaces."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from . import Failed, kernel

PATIENCE_S = 5


def start(state, program, host, command):
    """Starts a program in a host's namespace, its output in a log, and writes down its process id."""
    with open(state.log(program), "ab") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", state.namespace(host), *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True)
    # `ip netns exec` becomes the program: the process id stays.
    record = {"program": program, "host": host, "pid": process.pid, "started": started(process.pid),
              "command": [str(word) for word in command]}
    state.processes = [other for other in state.processes if other["program"] != program] + [record]
    state.save()
    return process


def started(pid):
    """When a process was started, in clock ticks since boot; None if there is none. Tells a reused id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def running(record):
    return record["started"] is not None and started(record["pid"]) == record["started"]


def of_program(state, program):
    """The record of a program that runs."""
    for record in state.processes:
        if record["program"] == program:
            return record if running(record) else None
    return None


def send(record, number):
    """Sends a signal to a recorded process if it is still the one recorded."""
    if running(record):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record["pid"], number)


def stop(state, program, number=signal.SIGTERM):
    """Ends one program and waits for it."""
    record = of_program(state, program)
    if record is None:
        raise Failed(f"{program} is not running")
    send(record, number)
    if not wait_gone([record]):
        raise Failed(f"{program} (process {record['pid']}) did not end in {PATIENCE_S} s on signal {int(number)}")


def stop_all(state):
    """Ends every recorded program, then all that is left inside the namespaces."""
    # Clients before nodes before the controller, as they were started last.
    for number in (signal.SIGTERM, signal.SIGKILL):
        for record in reversed(state.processes):
            send(record, number)
        if wait_gone(state.processes):
            break
    deadline = time.monotonic() + PATIENCE_S
    there = kernel.existing().intersection(state.namespaces)
    while left := [pid for namespace in there for pid in kernel.pids(namespace)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise Failed(f"processes {left} did not end on SIGKILL")
        time.sleep(0.02)


def wait_gone(records):
    deadline = time.monotonic() + PATIENCE_S
    while any(map(running, records)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
