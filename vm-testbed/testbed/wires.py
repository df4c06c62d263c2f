"""The wires: one process (wire.rs) a link marked `wire`, and how to change it while frames are under way."""

import contextlib
import json
import os
import socket
import time
import zlib

from . import Failed, processes
from .topology import INFRASTRUCTURE

DIRECTIONS = ("a-to-b", "b-to-a")


def program(link):
    return f"wire-{link.name}"


def start(state, link, binary):
    command = [binary, *link.middles, "--control", control(state, link), "--seed", zlib.crc32(link.name.encode())]
    for direction, parameters in zip(DIRECTIONS, link.impairment):
        command += [f"--{direction}", ",".join(f"{name}={value}" for name, value in parameters.items())]
    process = processes.start(state, program(link), INFRASTRUCTURE, command)
    deadline = time.monotonic() + processes.PATIENCE_S
    while not control(state, link).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"{program(link)} did not start: {state.log(program(link)).read_text().strip()}")
        time.sleep(0.01)


def control(state, link):
    return state.directory / "run" / f"{program(link)}.sock"


def ask(state, link, command):
    """Sends a command to a link's wire; its parameters and counters, by direction."""
    if not link.wire:
        raise Failed(f"link {link.name} has no wire: set wire = true in the topology file")
    own = state.directory / "run" / f"ask-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        asker.bind(str(own))
        try:
            asker.settimeout(processes.PATIENCE_S)
            asker.sendto(command.encode(), str(control(state, link)))
            answer = asker.recv(65536).decode()
        except OSError as error:
            raise Failed(f"{program(link)} does not answer: {error}") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                own.unlink()
    if answer.startswith("error: "):
        raise Failed(f"{link.name}: {answer.removeprefix('error: ')}")
    return json.loads(answer)


def show(state, link):
    """A link's parameters and counters; None where it has no wire, or that does not answer."""
    try:
        return ask(state, link, "show") if link.wire else None
    except Failed:
        return None


def direction(link, sender):
    """As the wire calls the direction of what `sender` sends; both for None."""
    if sender is None:
        return "both"
    if sender not in link.ends:
        raise Failed(f"{sender} is not an end of link {link.name}")
    return DIRECTIONS[link.ends.index(sender)]
