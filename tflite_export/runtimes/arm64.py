"""LiteRT for aarch64, run under qemu's user-mode emulation: found in the cache, or installed there on request.

    tflite-export install arm64

installs what is needed into the cache: a few packages of Debian for arm64, unpacked and never run on this machine, the
aarch64 wheels of LiteRT and NumPy, and the counter, compiled from `assets/count_instructions.c`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tflite_export.errors import ExportError
from tflite_export.runtimes.cache import cache_folder
from tflite_export.runtimes.litertjs import ASSETS

__all__ = [
    "COMMAND",
    "CPU",
    "CPUS",
    "EMULATOR",
    "KEYRING",
    "MIRROR",
    "NUMPY",
    "PACKAGES",
    "PYTHON",
    "RELEASE",
    "TIMEOUT",
    "TOOLS",
    "arm64_folder",
    "find_arm64_runtime",
    "install_arm64_runtime",
    "make_root",
    "require_tools",
]

COMMAND = "tflite-export install arm64"
EMULATOR = "qemu-aarch64"
TOOLS = {EMULATOR: "qemu-user", "debootstrap": "debootstrap", "dpkg-deb": "dpkg", "tar": "tar", "cc": "gcc"}
"""What the installation runs, and Debian's package that holds it; afterwards only the emulator is needed."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
RELEASE = "bookworm"
PYTHON = "3.11"
"""Of that release."""
NUMPY = "2.2.6"
PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3"),
    *("libuuid1", "libcrypt1", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", f"python{PYTHON}-minimal"),
)
MIRROR = "http://deb.debian.org/debian"
"""Its packages are signed: debootstrap checks them."""
CPUS = {"cortex-a53": "0xd03", "cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
"""Processors that can be emulated, and the number by which XNNPACK knows them and picks its kernels."""
CPU = "cortex-a76"
TIMEOUT = 3600
"""Seconds for one step of the installation."""


def arm64_folder() -> Path:
    """Return where the runtime is, or would be."""
    return cache_folder() / f"arm64-litert-{version('ai-edge-litert')}"


def find_arm64_runtime() -> Path:
    """Return the folder of the installed runtime.

    Raises:
        ExportError: it is not installed, or qemu is not.
    """
    require_tools(EMULATOR)
    folder = arm64_folder()
    if not (folder / "complete").exists():
        raise ExportError("LiteRT for aarch64", "must be installed", f"nothing in '{folder}'", f"Run: {COMMAND}")
    return folder


def install_arm64_runtime() -> Path:
    """Install the runtime into the cache, at once or not at all; return its folder.

    Raises:
        ExportError: a tool is missing or fails.
    """
    folder = arm64_folder()
    require_tools(*TOOLS, *_as_root())
    if (folder / "complete").exists():
        return folder
    if not KEYRING.exists():
        raise ExportError(
            "Debian's keys", f"must be in '{KEYRING}'", "no file", "Run: apt-get install debian-archive-keyring"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="installing-") as temporary:
        target = Path(temporary) / "runtime"
        target.mkdir()
        _unpack_debian(target, Path(temporary) / "debian")
        _install_wheels(target / "site")
        _compile_counter(target)
        for cpu in CPUS:
            make_root(target, cpu)
        (target / "complete").touch()
        shutil.rmtree(folder, ignore_errors=True)  # one that is not complete
        target.rename(folder)
    return folder


def require_tools(*tools: str) -> list[str]:
    """Return the paths of tools.

    Raises:
        ExportError: some are not on the PATH; the message names all of these.
    """
    found = {tool: shutil.which(tool) for tool in tools}
    missing = [tool for tool in tools if found[tool] is None]
    if missing:
        packages = " ".join(TOOLS.get(tool, tool) for tool in missing)
        raise ExportError(
            ", ".join(f"'{tool}'" for tool in missing),
            "must be on the PATH",
            "none",
            f"Run: apt-get install {packages}",
        )
    return [str(path) for path in found.values()]


def _as_root() -> tuple[str, ...]:
    """What a command for root starts with; nothing of the system is changed."""
    return () if os.geteuid() == 0 else ("fakeroot",)


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(what, f"must work by '{' '.join(command)}'", error, "Check the network.") from error
    if done.returncode:
        last = (done.stdout + done.stderr).strip()[-800:]
        raise ExportError(what, f"must work by '{' '.join(command)}'", last, "Check the network.")


def _unpack_debian(target: Path, downloads: Path) -> None:
    """Unpack the packages of the guest: no script of theirs is run, and only debootstrap asks for root."""
    command = ["debootstrap", "--download-only", "--force-check-gpg", f"--keyring={KEYRING}", "--arch=arm64"]
    command += ["--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE, str(downloads), MIRROR]
    _run([*_as_root(), *command], "Debian's packages for arm64")
    # Packages of before the merged /usr hold /lib; the links make it one folder.
    for name in ("lib", "bin"):
        (target / "usr" / name).mkdir(parents=True)
        (target / name).symlink_to(f"usr/{name}")
    for package in PACKAGES:
        (archive,) = (downloads / "var" / "cache" / "apt" / "archives").glob(f"{package}_*.deb")
        unpacked = downloads / "package.tar"
        with unpacked.open("wb") as file:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=file, timeout=TIMEOUT, check=True)
        _run(["tar", "-xf", str(unpacked), "--keep-directory-symlink", "--no-same-owner", "-C", str(target)], package)


def _install_wheels(site: Path) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    command += [f"--python-version={PYTHON}", f"--target={site}"]
    command += [f"ai-edge-litert=={version('ai-edge-litert')}", f"numpy=={NUMPY}"]
    _run(command, "the wheels for aarch64")


def _compile_counter(target: Path) -> None:
    """Compile the counter for the version of the plugin API that the installed qemu takes."""
    source = str(ASSETS / "count_instructions.c")
    library = target / "count_instructions.so"
    program = [str(target / "usr" / "bin" / f"python{PYTHON}"), "-c", ""]
    for api in range(1, 8):
        _run(["cc", "-shared", "-fPIC", "-O2", f"-DAPI={api}", "-o", str(library), source], "the instruction counter")
        plugin = ["-plugin", f"file={library},out={os.devnull}"]
        tried = subprocess.run(
            [EMULATOR, "-L", str(target), *plugin, *program],
            capture_output=True,
            text=True,
            timeout=60,
            env={},
            check=False,
            executable=require_tools(EMULATOR)[0],
        )
        if tried.returncode == 0:
            return
    raise ExportError(EMULATOR, "must take a TCG plugin", tried.stderr.strip()[-500:], "Install qemu-user 7.2.")


def make_root(folder: Path, cpu: str) -> Path:
    """Make the tree in which the guest sees one processor of a kind; return it.

    LiteRT reads the processor from files that the emulator does not translate, and crashes on those of an x86. A tree
    holds its own, and links to the packages that all trees share.

    Args:
        folder: of the runtime.
        cpu: a key of `CPUS`.
    """
    root = folder / f"root-{cpu}"
    topology = root / "sys" / "devices" / "system" / "cpu" / "cpu0" / "topology"
    topology.mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "usr").symlink_to("../usr")
    (root / "lib").symlink_to("usr/lib")
    (root / "proc" / "cpuinfo").write_text(
        "processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {CPUS[cpu]}\n"
        "CPU revision\t: 1\n\n"
    )
    for name in ("possible", "present", "online"):
        (topology.parent.parent / name).write_text("0\n")
    for name in ("core_id", "physical_package_id", "core_siblings_list", "thread_siblings_list"):
        (topology / name).write_text("0\n")
    return root
