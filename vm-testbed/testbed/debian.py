"""Debian 12's own kernel, its modules and its headers: fetched by apt-get and unpacked under target/vm, never installed."""

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import Failed
from .kernel import run

SERIES = "6.1"  # Debian 12's

# Of 320 MB of modules: what a network needs, and what the virtual machine itself is made of.
MODULES = re.compile(r"modules\.|kernel/(arch|crypto|lib|net)/|kernel/fs/(9p|fscache|netfs|overlayfs)/"
                     r"|kernel/drivers/(net/[^/]*\.ko|virtio/|char/(virtio_console|hw_random/))")

XZ = b"\xfd7zXZ\x00"


@dataclass
class Kernel:
    directory: Path
    release: str

    @property
    def image(self):
        """Unpacked: an emulated processor would take a quarter of a minute for it."""
        return self.directory / "vmlinux"

    @property
    def root(self):
        """What holds lib/modules, for depmod."""
        return self.directory / "root"

    @property
    def modules(self):
        return self.root / "lib/modules" / self.release

    @property
    def headers(self):
        return self.directory / "root/usr/src" / f"linux-headers-{self.release}"


def kernel(cache, progress):
    """The one that was fetched, or else Debian's newest. To have a newer one, delete `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache):
        directory = cache / f"linux-{SERIES}"
        if not directory.exists():
            # Made beside it and renamed: what is there is whole.
            for left in cache.glob("new-*"):
                shutil.rmtree(left)
            new = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
            try:
                fetch(new, progress)
                new.rename(directory)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return Kernel(directory, (directory / "release").read_text().strip())


@contextlib.contextmanager
def lock(directory):
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def fetch(directory, progress):
    packages = directory / "packages"
    packages.mkdir()
    try:
        download(packages, progress)
    except Failed:
        # The lists that apt has may be older than what the archive keeps.
        run("apt-get", "update")
        download(packages, progress)
    for package in packages.iterdir():
        unpack(package, directory)
    shutil.rmtree(packages)


def download(directory, progress):
    """The kernel, and headers of the very same version."""
    image = dependency("linux-image-amd64", rf"linux-image-({re.escape(SERIES)}\.\S+-amd64)")
    headers = image.replace("-image-", "-headers-")
    names = [image, headers, dependency(headers, r"linux-headers-\S+-common"), f"linux-kbuild-{SERIES}"]
    progress(f"fetching {' '.join(names)} (85 MB)")
    try:
        subprocess.run(["apt-get", "download", "-q", *names], cwd=directory, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise Failed(f"cannot fetch {' '.join(names)}: {error.stderr.strip()}") from None


def dependency(package, pattern):
    """The package of that name which `package` depends on."""
    for line in run("apt-cache", "depends", "--important", package).splitlines():
        name = line.rpartition(" ")[2]
        if line.lstrip().startswith("Depends:") and re.fullmatch(pattern, name):
            return name
    raise Failed(f"apt knows no {package} of Debian 12 (it depends on no {pattern})")


def unpack(package, directory):
    """The kernel's image and modules as chosen above; of other packages everything but the documentation."""
    root = directory / "root"
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if image := re.fullmatch(r"boot/vmlinuz-(.*)", name):
                    (directory / "vmlinux").write_bytes(decompress(archive.extractfile(member).read()))
                    (directory / "release").write_text(image[1])
                elif name.startswith("usr/src/") or name.startswith("usr/lib/") or is_wanted_module(name):
                    archive.extract(member, root)
    if unpacking.returncode:
        raise Failed(f"{package.name} cannot be unpacked")
    for makefile in root.glob("usr/src/linux-headers-*-amd64/Makefile"):
        # It says where it would be installed.
        makefile.write_text(makefile.read_text().replace("/usr/src/", "../"))
    for modules in root.glob("lib/modules/*"):
        run("depmod", "-b", root, modules.name)


def is_wanted_module(name):
    found = re.match(r"lib/modules/[^/]*/", name)
    return found and MODULES.match(name[found.end():])


def decompress(image):
    """The kernel proper, which a bzImage carries behind the program that unpacks it."""
    start = image.find(XZ)
    if start < 0:
        raise Failed("the kernel's image is not compressed by XZ")
    return lzma.LZMADecompressor().decompress(image[start:])


def build_module(kernel, source):
    """Builds a module with the host's compiler, and has it where the guest's `modprobe` finds it."""
    name = source.name
    build = kernel.directory / "build" / name
    with lock(kernel.directory):
        build.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            there = build / file.name
            if not there.exists() or there.read_bytes() != file.read_bytes():
                shutil.copy(file, there)
        (build / "Kbuild").write_text(f"obj-m := {name}.o\n")
        run("make", "-s", "-C", kernel.headers, f"M={build}", "modules")
        built, installed = build / f"{name}.ko", kernel.modules / "extra" / f"{name}.ko"
        if not installed.exists() or installed.read_bytes() != built.read_bytes():
            installed.parent.mkdir(exist_ok=True)
            shutil.copy(built, installed)
            run("depmod", "-b", kernel.root, kernel.release)
