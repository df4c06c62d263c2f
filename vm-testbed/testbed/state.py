"""What is up. Written down before it is made, so that `down` finds it after any crash."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from pathlib import Path

from . import Failed

ROOT = Path("/run/starnet-testbed")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class State:
    """One testbed's directory: `state.json`, configuration, certificates, logs, sockets."""

    def __init__(self, name):
        if not NAME.fullmatch(name):
            raise Failed(f"{name!r} is no name for a testbed: up to 31 of a-z, 0-9 and -")
        self.name = name
        self.directory = ROOT / name
        self.file = self.directory / "state.json"
        self.namespaces = []
        self.processes = []  # {"host", "pid", "started", "command"}
        self.topology = ""
        self.starnet = ""

    @classmethod
    def load(cls, name):
        """Of a testbed that is up, perhaps by half."""
        state = cls(name)
        if not state.directory.exists():
            up = ", ".join(names()) or "none"
            raise Failed(f"testbed {name} is not up (up: {up}); start it with: vm-testbed/netns up {name}")
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            state.__dict__.update(json.loads(state.file.read_text()))
        return state

    def create(self):
        """Makes the directory; fails if the testbed is up."""
        ROOT.mkdir(exist_ok=True)
        try:
            self.directory.mkdir()
        except FileExistsError:
            raise Failed(f"testbed {self.name} is up already; end it with: vm-testbed/netns down {self.name}") from None
        for part in ("config", "log", "run", "tls"):
            (self.directory / part).mkdir()
        (self.directory / "run").chmod(0o1777)  # programs that are not root make their sockets here too

    def save(self):
        """Replaces the file in one step: it is whole at any moment."""
        new = self.file.with_suffix(".new")
        fields = {key: getattr(self, key) for key in ("namespaces", "processes", "topology", "starnet")}
        new.write_text(json.dumps(fields, indent=1))
        new.rename(self.file)

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            ROOT.rmdir()

    def namespace(self, host):
        return f"{self.name}.{host}"

    def socket(self, host):
        """Where the host's starnet answers `starnet show`."""
        return self.directory / "run" / f"{host}.sock"

    def log(self, program):
        return self.directory / "log" / f"{program}.log"

    @contextlib.contextmanager
    def lock(self):
        """Keeps two commands from changing one testbed at the same time."""
        handle = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def names():
    """Of the testbeds that are up."""
    return sorted(path.name for path in ROOT.iterdir()) if ROOT.is_dir() else []
