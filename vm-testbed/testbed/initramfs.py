"""What the kernel finds before it finds a root file system: busybox, a handful of modules and guest/init. In cpio's format."""

import re
import stat
from pathlib import Path

from . import Failed

# What the way to the host's files and back to the caller is made of.
NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")

BUSYBOX = Path("/bin/busybox")


def build(kernel, init, files):
    """The archive. `files` are more of them: contents by name."""
    if not BUSYBOX.exists():
        raise Failed(f"{BUSYBOX} is missing (Debian: busybox-static); run: scripts/install")
    modules = [kernel.modules / path for path in in_order(kernel, NEEDED)]
    archive = b"".join(entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "modules", "proc", "lower", "upper", "root"))
    archive += entry("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes())
    archive += entry("init", stat.S_IFREG | 0o755, init.read_bytes())
    for module in modules:
        archive += entry(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    files = files | {"modules/order": "".join(f"{module.name}\n" for module in modules).encode()}
    for name, contents in files.items():
        archive += entry(name, stat.S_IFREG | 0o644, contents)
    return archive + entry("TRAILER!!!", 0)


def in_order(kernel, names):
    """Modules with what they depend on before them, as depmod found out."""
    needs, paths = {}, {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
        paths[re.sub(r"\.ko.*", "", path.rpartition("/")[2])] = path
    order = []

    def add(path):
        for other in needs[path]:
            add(other)
        if path not in order:
            order.append(path)

    for name in names:
        if name not in paths:
            raise Failed(f"the kernel {kernel.release} has no module {name}")
        add(paths[name])
    return order


def entry(name, mode, contents=b""):
    """One file in the format `newc`: a header of numbers in hexadecimal; name and contents, each padded to four bytes."""
    name = name.encode() + b"\0"
    number, user, group, links, changed, device, special = 0, 0, 0, 1, 0, (0, 0), (0, 0)
    fields = (number, mode, user, group, links, changed, len(contents), *device, *special, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return padded(header) + padded(contents)


def padded(data):
    return data + b"\0" * (-len(data) % 4)
