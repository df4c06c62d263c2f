"""A virtual machine for one command: Debian 12's kernel on an emulated processor, with the host's files, which it only reads.

No KVM: where the hypervisor below lacks something it is there and fails, so what works everywhere is used everywhere.
"""

import contextlib
import ctypes
import os
import secrets
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time

from . import Failed, initramfs

PROGRAM = "qemu-system-x86_64"
# The kernel would use CMPXCHG16B for each allocation, for which QEMU stops all other processors; and what a processor has
# beyond these features costs when processes are switched. Without RDRAND programs would wait for random numbers.
MACHINE = ("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Westmere,rdrand=on,cx16=off",
           "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
FILES = ("-fsdev", "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap",
         "-device", "virtio-9p-pci,fsdev=files,mount_tag=host")

# A panic ends the machine. Mitigations cost, and protect nobody here; programs at the same addresses each time are
# translated once; the clock is QEMU's, which needs no watching.
PARAMETERS = "console=ttyS0 loglevel=6 panic=-1 mitigations=off norandmaps random.trust_cpu=on tsc=reliable"

LOG_LINES = 50

PR_SET_PDEATHSIG = 1


def run(kernel, guest, command, cpus, memory_mib, seconds):
    """Runs a command in a machine of its own; its exit code. Its output goes where ours goes, as it comes."""
    mark = secrets.token_hex(16)
    archive = initramfs.build(kernel, guest / "init", {
        "session": (guest / "session").read_bytes(),
        "request": request(kernel, command, mark).encode(),
    })
    with contextlib.ExitStack() as stack:
        initrd, log = (stack.enter_context(open(os.memfd_create(name), "w+b")) for name in ("initramfs", "log"))
        initrd.write(archive)
        initrd.flush()
        streams, ends = [], []
        for output in (sys.stdout, sys.stderr):
            ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
            streams.append(Stream(ours, output.buffer, mark))
            ends.append(theirs)
        options = ["-smp", cpus, "-m", memory_mib, "-kernel", kernel.image, "-initrd", path_of(initrd),
                   "-append", PARAMETERS, "-chardev", f"file,id=log,path={path_of(log)}", "-serial", "chardev:log",
                   "-device", "virtio-serial-pci"]
        for name, end in zip(("stdout", "stderr"), ends):
            options += ["-chardev", f"socket,id={name},fd={end.fileno()}",
                        "-device", f"virtserialport,chardev={name},name={name}"]
        qemu = start([PROGRAM, *MACHINE, *FILES, *map(str, options)], [initrd, log, *ends])
        try:
            for end in ends:
                end.close()
            return relay(streams, seconds)
        except Failed as failure:
            log.seek(0)
            said = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            raise Failed("\n".join([f"{failure}; the end of the kernel's log:", *said])) from None
        finally:
            qemu.kill()
            qemu.wait()


def path_of(file):
    return f"/proc/self/fd/{file.fileno()}"


def request(kernel, command, mark):
    """What guest/session is to know, as a piece of a shell's program."""
    variables = {"directory": os.getcwd(), "modules": kernel.modules, "release": kernel.release, "mark": mark}
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in variables.items()]
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    return "\n".join([*lines, f"command_of_caller() {{ {shlex.join(['env', '-i', *environment, *command])}; }}\n"])


def start(command, files):
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[file.fileno() for file in files],
                                preexec_fn=lambda: end_with_parent(signal.SIGKILL))
    except FileNotFoundError:
        raise Failed(f"{PROGRAM} is missing (Debian: qemu-system-x86); run: scripts/install") from None


def end_with_parent(number):
    """This process gets a signal when the one that started it ends, in whichever way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


class Stream:
    """Output of the command, up to the mark behind which its exit code is."""

    def __init__(self, source, sink, mark):
        self.source, self.sink = source, sink
        self.mark = b"\0" + mark.encode() + b" "
        self.pending = b""
        self.code = None

    def read(self):
        """Passes on what has come."""
        data = self.source.recv(65536)
        if not data:
            raise Failed("the virtual machine ended before the command did")
        self.pending += data
        said, found, code = self.pending.partition(self.mark)
        if not found:
            # What could be the mark's beginning waits.
            start = said.rfind(b"\0", -len(self.mark))
            said = said if start < 0 or not self.mark.startswith(said[start:]) else said[:start]
        elif code.endswith(b"\n"):
            self.code = int(code)
        self.sink.write(said)
        self.sink.flush()
        self.pending = self.pending[len(said):]


def relay(streams, seconds):
    """Passes on the command's output until it ends; its exit code."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.source, selectors.EVENT_READ, stream)
        while selector.get_map():
            ready = selector.select(max(0, deadline - time.monotonic()))
            if not ready:
                raise Failed(f"the command has not ended in {seconds} s")
            for key, _ in ready:
                key.data.read()
                if key.data.code is not None:
                    selector.unregister(key.fileobj)
    return streams[0].code
