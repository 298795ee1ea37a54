"""LiteRT.js, the WebAssembly runtime of .tflite files: found in the cache, or installed there on request.

    tflite-export install web

installs it by npm, at the versions and checksums of `assets/package-lock.json`. Nothing else installs anything.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from tflite_export.errors import ExportError
from tflite_export.runtimes.cache import cache_folder

__all__ = [
    "ASSETS",
    "BUILDS",
    "COMMAND",
    "VERSION",
    "find_web_runtime",
    "install_web_runtime",
    "installed",
    "web_runtime_folder",
]

VERSION = "2.5.3"
"""Of `@litertjs/core`. Which kernels are sparse, and where it fails silently, was measured with this one."""
COMMAND = "tflite-export install web"
ASSETS = Path(__file__).parent / "assets"
BUILDS = ("litert_wasm_internal", "litert_wasm_compat_internal")
"""For one thread: with relaxed SIMD, and without."""
_TIMEOUT = 600


def web_runtime_folder() -> Path:
    """Return where the runtime is, or would be: the folder that holds its `node_modules`."""
    return cache_folder() / f"litertjs-{VERSION}"


def find_web_runtime() -> Path:
    """Return the folder of the installed runtime.

    Raises:
        ExportError: it is not installed, or another version is there.
    """
    folder = web_runtime_folder()
    if not installed(folder):
        raise ExportError(
            f"LiteRT.js {VERSION}", "must be installed", f"nothing of that version in '{folder}'", f"Run: {COMMAND}"
        )
    return folder


def installed(folder: Path) -> bool:
    """Return whether a folder holds the runtime in the version that is asked for."""
    package = folder / "node_modules" / "@litertjs" / "core" / "package.json"
    try:
        return bool(json.loads(package.read_text(encoding="utf-8"))["version"] == VERSION)
    except (OSError, ValueError, KeyError):
        return False


def install_web_runtime() -> Path:
    """Install the runtime into the cache by npm, at once or not at all; return its folder.

    Only what `assets/package-lock.json` lists is fetched, each archive is held against its checksum there
    (`npm ci`), and no script of a package is run.

    Raises:
        ExportError: npm is missing, or fails.
    """
    folder = web_runtime_folder()
    if installed(folder):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError("npm", "must be on the PATH", "no npm", "Install Node.js 20 or later.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="installing-") as temporary:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(ASSETS / name, temporary)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed(command, str(error)) from error
        if done.returncode or not installed(Path(temporary)):
            raise _failed(command, done.stderr.strip()[-1000:])
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one of before
        Path(temporary).rename(folder)  # leaving the block is then silent
    return folder


def _failed(command: list[str], received: str) -> ExportError:
    return ExportError(
        "LiteRT.js", f"must install by '{' '.join(command[1:])}'", received, "Check the network and npm's registry."
    )
